/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/key_file.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/temp_file.h"

static int read_text(const char *text, mode_t mode, uint8_t *key, struct shunt_error *err)
{
    char path[32];
    int fd = temp_file(text, strlen(text), path);
    int rc;

    cr_assert_eq(fchmod(fd, mode), 0);
    rc = shunt_key_read(path, key, err);
    close(fd);
    return rc;
}

#define DIGITS32 "00112233445566778899aabbccddEEFF"

Test(key_file, reads_what_openssl_rand_prints)
{
    static const char *const ends[] = {"", "\n", "\r\n", "  \n"};
    uint8_t key[SHUNT_KEY_FILE_MAX];
    struct shunt_error err = {0};

    for (uint32_t i = 0; i < 4; i++) {
        char text[160];

        snprintf(text, sizeof(text), "%s%s%s", DIGITS32, DIGITS32, ends[i]);
        memset(key, 0x55, sizeof(key));
        cr_assert_eq(read_text(text, 0600, key, &err), 32, "%s", err.text);
        for (uint32_t b = 0; b < 32; b++)
            cr_assert_eq(key[b], b % 16 * 0x11);
        cr_assert_eq(key[32], 0x55);
    }
    cr_expect_eq(read_text(DIGITS32 DIGITS32 DIGITS32 DIGITS32, 0400, key, &err), 64);
}

/* Each with what is wrong and what to do. */
Test(key_file, refuses)
{
    static const struct {
        const char *text;
        mode_t mode;
        int code;
        const char *says[2];
    } cases[] = {
        {DIGITS32 DIGITS32, 0640, -EACCES, {"mode 0640", "chmod 600"}},
        {DIGITS32 DIGITS32, 0604, -EACCES, {"mode 0604", "chmod 600"}},
        {DIGITS32 DIGITS32, 0620, -EACCES, {"by others", "chmod 600"}},
        {DIGITS32 DIGITS32, 0602, -EACCES, {"by others", "chmod 600"}},
        {"", 0600, -EINVAL, {"is empty", "openssl rand -hex 32"}},
        {"\n", 0600, -EINVAL, {" 0 hexadecimal digits", "openssl rand"}},
        {DIGITS32, 0600, -EINVAL, {"32 hexadecimal digits", "from 64 to 128"}},
        {DIGITS32 DIGITS32 "0", 0600, -EINVAL, {"65 hexadecimal digits", "even"}},
        {DIGITS32 DIGITS32 DIGITS32 DIGITS32 "00", 0600, -EINVAL, {"130 hexadecimal", "128"}},
        {DIGITS32 DIGITS32 DIGITS32 DIGITS32 DIGITS32, 0600, -EFBIG, {"larger than", "no key"}},
        {"correct horse battery staple", 0600, -EINVAL, {"character 2 is", "openssl rand"}},
        {DIGITS32 "\n" DIGITS32, 0600, -EINVAL, {"character 33 is", "openssl rand"}},
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t key[SHUNT_KEY_FILE_MAX];
        struct shunt_error err = {0};

        cr_expect_eq(read_text(cases[i].text, cases[i].mode, key, &err), cases[i].code, "%u: %s", i,
                     err.text);
        for (uint32_t s = 0; s < 2; s++)
            cr_expect(strstr(err.text, cases[i].says[s]), "%u: no '%s': %s", i, cases[i].says[s],
                      err.text);
        cr_expect_not(strstr(err.text, "2233"), "the key is in the message: %s", err.text);
    }
}

Test(key_file, refuses_what_is_no_file)
{
    char folder[] = "/tmp/shunt-test-XXXXXX", path[64];
    uint8_t key[SHUNT_KEY_FILE_MAX];
    struct shunt_error err;

    cr_assert(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/pipe", folder);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_expect_eq(shunt_key_read(path, key, &err), -EINVAL, "%s", err.text);
    cr_expect(strstr(err.text, "no regular file"), "%s", err.text);
    unlink(path);
    cr_expect_eq(shunt_key_read(path, key, &err), -ENOENT);
    cr_expect(strstr(err.text, path) && strstr(err.text, "openssl rand -hex 32 > "), "%s",
              err.text);
    cr_expect_eq(shunt_key_read(folder, key, &err), -EINVAL, "%s", err.text);
    if (geteuid() == 0) {
        FILE *f = fopen(path, "w");

        cr_assert(f && fputs(DIGITS32 DIGITS32, f) >= 0);
        fclose(f);
        cr_assert(chmod(path, 0600) == 0 && chown(path, 12345, 0) == 0);
        cr_expect_eq(shunt_key_read(path, key, &err), -EACCES);
        cr_expect(strstr(err.text, "belongs to user 12345") && strstr(err.text, "chown"), "%s",
                  err.text);
        unlink(path);
    }
    rmdir(folder);
}
