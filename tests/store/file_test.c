/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/store/file.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/random.h"
#include "tests/temp_file.h"

#define FILE_BYTES (2500u << 10 | 301u) /* more than two read buffers, ends inside a block */

struct source {
    unsigned char *bytes;
    int fd;
    char path[32];
};

static void set_up(struct source *s)
{
    uint64_t seed = 3;

    s->bytes = malloc(FILE_BYTES);
    cr_assert(s->bytes);
    random_fill(&seed, s->bytes, FILE_BYTES);
    s->fd = temp_file(s->bytes, FILE_BYTES, s->path);
}

static void tear_down(struct source *s)
{
    close(s->fd);
    free(s->bytes);
}

/* Opens, or skips where the file system has no O_DIRECT. */
static void open_as(struct shunt_file *f, const char *path, enum shunt_io_mode mode)
{
    struct shunt_error err = {0};
    int rc = shunt_file_open(f, path, mode, &err);

    if (rc == -EOPNOTSUPP && mode == SHUNT_IO_DIRECT)
        cr_skip_test("the working folder has no O_DIRECT: %s", err.text);
    cr_assert_eq(rc, 0, "%s", err.text);
}

static bool power_of_2(uint32_t x)
{
    return x > 0 && (x & (x - 1)) == 0;
}

/* ---- reading */

/* Any offset, length and address; the guards on both sides stay. */
static void read_all_over(const struct shunt_file *f, const unsigned char *bytes, uint64_t seed)
{
    unsigned char *room = malloc(FILE_BYTES + 128);
    uint64_t random = seed, device = 0, asked = 0;

    cr_assert(room);
    for (uint32_t i = 0; i < 3000; i++) {
        uint32_t shift = random_below(&random, 22);
        uint32_t off = random_below(&random, FILE_BYTES + 1);
        uint32_t len = random_below(&random, 1u << shift | 1u);
        unsigned char *dst = room + 1 + random_below(&random, 60);

        if (i % 16 == 0)
            off = FILE_BYTES - random_below(&random, 1025);
        if (len > FILE_BYTES - off)
            len = FILE_BYTES - off;
        memset(dst - 1, 0xaa, len + 2u);
        cr_assert_eq(shunt_file_read(f, off, len, dst, &device, NULL), 0, "seed %lu read %u", seed,
                     i);
        cr_assert_eq(memcmp(dst, bytes + off, len), 0, "seed %lu: %u bytes at %u", seed, len, off);
        cr_assert(dst[-1] == 0xaa && dst[len] == 0xaa, "seed %lu: %u bytes at %u", seed, len, off);
        asked += len;
    }
    cr_expect_geq(device, asked);
    free(room);
}

Test(file, reads_past_the_page_cache)
{
    struct shunt_file f;
    struct source s;

    set_up(&s);
    open_as(&f, s.path, SHUNT_IO_DIRECT);
    cr_expect(f.direct && fcntl(f.fd, F_GETFL) & O_DIRECT);
    cr_expect(power_of_2(f.off_align) && power_of_2(f.mem_align));
    cr_expect_eq(f.bytes, FILE_BYTES);
    read_all_over(&f, s.bytes, 1);
    shunt_file_close(&f);
    open_as(&f, s.path, SHUNT_IO_AUTO);
    cr_expect(f.direct);
    shunt_file_close(&f);
    tear_down(&s);
}

Test(file, reads_through_the_page_cache)
{
    struct shunt_file f;
    struct source s;

    set_up(&s);
    open_as(&f, s.path, SHUNT_IO_BUFFERED);
    cr_expect(!f.direct && !(fcntl(f.fd, F_GETFL) & O_DIRECT));
    cr_expect(f.off_align == 1 && f.mem_align == 1);
    read_all_over(&f, s.bytes, 2);
    shunt_file_close(&f);
    tear_down(&s);
}

/* Each head and each tail within two blocks. */
Test(file, reads_at_every_alignment)
{
    unsigned char dst[1024 + 2];
    struct shunt_file f;
    struct source s;

    set_up(&s);
    open_as(&f, s.path, SHUNT_IO_AUTO);
    for (uint32_t head = 0; head <= 513; head++) {
        static const uint32_t lens[] = {0, 1, 2, 3, 255, 510, 511, 512, 513, 1023, 1024};

        for (uint32_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
            dst[lens[i]] = 0x55;
            cr_assert_eq(shunt_file_read(&f, 4096 + head, lens[i], dst, NULL, NULL), 0);
            cr_assert_eq(memcmp(dst, s.bytes + 4096 + head, lens[i]), 0, "%u at %u", lens[i], head);
            cr_assert_eq(dst[lens[i]], 0x55, "%u at %u", lens[i], head);
        }
    }
    shunt_file_close(&f);
    tear_down(&s);
}

Test(file, refuses_to_read_past_the_end)
{
    static const struct {
        uint64_t off;
        size_t len;
    } cases[] = {
        {0, FILE_BYTES + 1u}, {FILE_BYTES, 1},        {FILE_BYTES - 1, 2}, {FILE_BYTES + 1u, 0},
        {UINT64_MAX, 1},      {UINT64_MAX, SIZE_MAX}, {1, SIZE_MAX},       {1ull << 63, 1 << 9},
    };
    struct shunt_error err;
    struct shunt_file f;
    struct source s;
    char byte;

    set_up(&s);
    open_as(&f, s.path, SHUNT_IO_AUTO);
    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cr_expect_eq(shunt_file_read(&f, cases[i].off, cases[i].len, &byte, NULL, &err), -EBADMSG,
                     "case %u", i);
        cr_expect(strstr(err.text, s.path), "%s", err.text);
    }
    cr_expect_eq(shunt_file_read(&f, FILE_BYTES, 0, &byte, NULL, &err), 0);
    shunt_file_close(&f);
    tear_down(&s);
}

/* Somebody cuts the file after it was opened: wherever, the bytes that are still there are right,
 * and the others an error that says where it ends. */
Test(file, notices_a_file_that_is_cut)
{
    static const uint32_t cuts[] = {FILE_BYTES - 1,
                                    2u << 20 | 1,
                                    2u << 20,
                                    1u << 20 | 512,
                                    1u << 20 | 511,
                                    1u << 20,
                                    4096,
                                    513,
                                    512,
                                    1,
                                    0};
    unsigned char *dst = malloc(FILE_BYTES);
    struct source s;

    cr_assert(dst);
    set_up(&s);
    for (int mode = SHUNT_IO_AUTO; mode <= SHUNT_IO_BUFFERED; mode += SHUNT_IO_BUFFERED) {
        struct shunt_file f;

        cr_assert_eq(ftruncate(s.fd, 0), 0);
        cr_assert_eq(pwrite(s.fd, s.bytes, FILE_BYTES, 0), FILE_BYTES);
        open_as(&f, s.path, (enum shunt_io_mode)mode);
        for (uint32_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
            struct shunt_error err;
            char end[32];

            cr_assert_eq(ftruncate(s.fd, cuts[i]), 0);
            cr_expect_eq(shunt_file_read(&f, 0, FILE_BYTES, dst, NULL, &err), -EBADMSG, "cut %u",
                         cuts[i]);
            snprintf(end, sizeof(end), " %u ", cuts[i]);
            cr_expect(strstr(err.text, s.path) && strstr(err.text, end), "cut %u: %s", cuts[i],
                      err.text);
            cr_expect_eq(shunt_file_read(&f, 0, cuts[i], dst, NULL, &err), 0, "cut %u", cuts[i]);
            cr_expect_eq(memcmp(dst, s.bytes, cuts[i]), 0, "cut %u", cuts[i]);
        }
        shunt_file_close(&f);
    }
    tear_down(&s);
    free(dst);
}

Test(file, names_offset_and_cause_of_a_failed_read)
{
    struct shunt_error err;
    struct shunt_file f;
    struct source s;
    int pipes[2];
    char dst[64];

    set_up(&s);
    open_as(&f, s.path, SHUNT_IO_BUFFERED);
    cr_assert_eq(pipe(pipes), 0);
    cr_assert_eq(dup2(pipes[1], f.fd), f.fd); /* to be written only */
    cr_expect_lt(shunt_file_read(&f, 7000, sizeof(dst), dst, NULL, &err), 0);
    cr_expect(strstr(err.text, s.path) && strstr(err.text, " 7000"), "%s", err.text);
    shunt_file_close(&f);
    tear_down(&s);
}

/* ---- what is no file to read */

Test(file, refuses_what_is_no_regular_file)
{
    char folder[] = "shunt-test-XXXXXX";
    char fifo[64];
    const char *paths[] = {folder, fifo, "/dev/null"};

    cr_assert(mkdtemp(folder));
    snprintf(fifo, sizeof(fifo), "%s/fifo", folder);
    cr_expect_eq(mkfifo(fifo, 0600), 0);
    for (uint32_t i = 0; i < 3; i++) {
        for (int mode = SHUNT_IO_AUTO; mode <= SHUNT_IO_BUFFERED; mode++) {
            struct shunt_error err = {0};
            struct shunt_file f;

            cr_expect_eq(shunt_file_open(&f, paths[i], (enum shunt_io_mode)mode, &err), -EINVAL,
                         "%s in mode %d: %s", paths[i], mode, err.text);
            cr_expect(strstr(err.text, paths[i]) && strstr(err.text, "not a file"), "%s", err.text);
            cr_expect(f.fd == -1 && !f.path);
        }
    }
    unlink(fifo);
    rmdir(folder);
}

Test(file, says_why_a_file_cannot_be_opened)
{
    char secret[] = "shunt-test-XXXXXX";
    int fd = mkostemp(secret, O_CLOEXEC);
    struct shunt_error err;
    struct shunt_file f;

    cr_assert_geq(fd, 0);
    cr_expect_eq(shunt_file_open(&f, "no-such-folder/no-such-file", SHUNT_IO_AUTO, &err), -ENOENT);
    cr_expect(strstr(err.text, "no-such-folder/no-such-file: "), "%s", err.text);
    cr_expect_eq(shunt_file_open(&f, "", SHUNT_IO_BUFFERED, &err), -ENOENT);
    cr_expect_eq(fchmod(fd, 0), 0);
    cr_expect(geteuid() != 0 || seteuid(65534) == 0); /* root may read everything */
    cr_expect_eq(shunt_file_open(&f, secret, SHUNT_IO_AUTO, &err), -EACCES);
    cr_expect(strstr(err.text, secret), "%s", err.text);
    cr_expect(getuid() != 0 || seteuid(0) == 0);
    unlink(secret);
    close(fd);
}

/* ---- what kind of file it is */

/* io_uring takes O_NONBLOCK on a drive that cannot promise not to wait as a wish for -EAGAIN. */
Test(file, leaves_no_file_non_blocking)
{
    struct source s;

    set_up(&s);
    for (int mode = SHUNT_IO_AUTO; mode <= SHUNT_IO_BUFFERED; mode += SHUNT_IO_BUFFERED) {
        struct shunt_file f;

        open_as(&f, s.path, (enum shunt_io_mode)mode);
        cr_expect_not(fcntl(f.fd, F_GETFL) & O_NONBLOCK, "mode %d", mode);
        cr_expect(fcntl(f.fd, F_GETFD) & FD_CLOEXEC);
        shunt_file_close(&f);
    }
    tear_down(&s);
}

/* Memory and kernel files lie on file systems without drives, some of which refuse O_DIRECT. */
Test(file, falls_back_where_direct_reads_are_refused)
{
    static const char *const paths[] = {"/sys/kernel/btf/vmlinux", "/proc/config.gz",
                                        "/sys/kernel/notes"};
    struct shunt_error err;
    struct shunt_file f;
    uint32_t i = 0;

    while (i < 3 && shunt_file_open(&f, paths[i], SHUNT_IO_DIRECT, &err) != -EOPNOTSUPP)
        i++;
    if (i == 3)
        cr_skip_test("no file here refuses O_DIRECT");
    cr_expect(strstr(err.text, paths[i]) && strstr(err.text, "--io-mode"), "%s", err.text);
    cr_assert_eq(shunt_file_open(&f, paths[i], SHUNT_IO_AUTO, &err), 0, "%s", err.text);
    cr_expect(!f.direct && f.off_align == 1 && f.mem_align == 1);
    shunt_file_close(&f);
}

Test(file, opens_an_empty_file)
{
    struct shunt_file f;
    char path[32], byte;
    int fd = temp_file("", 0, path);

    open_as(&f, path, SHUNT_IO_AUTO);
    cr_expect_eq(f.bytes, 0);
    cr_expect_eq(shunt_file_read(&f, 0, 0, &byte, NULL, NULL), 0);
    cr_expect_eq(shunt_file_read(&f, 0, 1, &byte, NULL, NULL), -EBADMSG);
    shunt_file_close(&f);
    shunt_file_close(&f);
    close(fd);
}

Test(file, notices_that_it_is_written_to)
{
    struct source s;
    struct shunt_file f;
    char byte;
    int watch;

    set_up(&s);
    open_as(&f, s.path, SHUNT_IO_AUTO);
    watch = shunt_file_watch(&f);
    cr_assert_geq(watch, 0);
    cr_expect_eq(pread(s.fd, &byte, 1, 5), 1);
    cr_assert_eq(futimens(s.fd, NULL), 0);
    cr_expect_not(shunt_file_written(watch), "it was read, and touched");
    cr_assert_eq(pwrite(s.fd, &byte, 1, 5), 1);
    cr_expect(shunt_file_written(watch));
    cr_expect_not(shunt_file_written(watch), "not since");
    cr_assert_eq(ftruncate(s.fd, 4096), 0);
    cr_expect(shunt_file_written(watch), "cut");
    cr_expect_not(shunt_file_written(-1));
    close(watch);
    shunt_file_close(&f);
    tear_down(&s);
}

Test(file, knows_the_same_file_again)
{
    struct shunt_file a, b, c;
    struct source s, other;

    set_up(&s);
    set_up(&other);
    open_as(&a, s.path, SHUNT_IO_AUTO);
    open_as(&b, s.path, SHUNT_IO_BUFFERED);
    open_as(&c, other.path, SHUNT_IO_AUTO);
    cr_expect(shunt_file_same(&a, &b));
    cr_expect_not(shunt_file_same(&a, &c));
    shunt_file_close(&b);
    cr_assert_eq(futimens(s.fd, (const struct timespec[2]){{1, 0}, {1, 0}}), 0);
    open_as(&b, s.path, SHUNT_IO_AUTO);
    cr_expect_not(shunt_file_same(&a, &b), "written to since");
    shunt_file_close(&a);
    open_as(&a, s.path, SHUNT_IO_AUTO);
    cr_expect(shunt_file_same(&a, &b));
    shunt_file_close(&b);
    cr_assert_eq(ftruncate(s.fd, 1), 0);
    cr_assert_eq(futimens(s.fd, (const struct timespec[2]){{1, 0}, {1, 0}}), 0);
    open_as(&b, s.path, SHUNT_IO_AUTO);
    cr_expect_not(shunt_file_same(&a, &b), "cut since");
    shunt_file_close(&a);
    shunt_file_close(&b);
    shunt_file_close(&c);
    tear_down(&s);
    tear_down(&other);
}
