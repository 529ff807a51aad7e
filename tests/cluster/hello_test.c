/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/hello.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/random.h"

static struct shunt_rack_config config(void)
{
    return (struct shunt_rack_config){
        .rank = 2,
        .node_count = 4,
        .serve_only = true,
        .model_name = "Qwen3-30B-A3B",
        .fingerprint = {0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xcd},
        .kernel_levels = 3,
        .rows_max = 512,
    };
}

Test(hello, says_what_it_should)
{
    struct shunt_rack_config cfg = config();
    struct shunt_hello h;
    struct shunt_error err = {0};

    memset(&h, 0xee, sizeof(h));
    shunt_hello_fill(&h, &cfg, SHUNT_STREAM_DATA);
    cr_expect_eq(
        memcmp(&h, "SHUN\1\0\0\0\1\0\0\0\1\0\0\0\2\0\0\0\4\0\0\0\0\2\0\0\3\0\0\0\xab\1\2", 35), 0);
    cr_expect_str_eq(h.version, shunt_version());
    cr_expect_str_eq(h.text, "Qwen3-30B-A3B");
    for (size_t i = strlen(h.text); i < sizeof(h.text); i++)
        cr_assert_eq(h.text[i], '\0'); /* nothing of this process's memory goes out */
    cr_expect(shunt_hello_is_one(&h));
    cr_expect_eq(shunt_hello_check(&h, &cfg, "rank 1", &err), 0, "%s", err.text);
    cfg.serve_only = false;
    shunt_hello_fill(&h, &cfg, SHUNT_STREAM_CONTROL);
    cr_expect(h.flags == 0 && h.stream == 0);
    h.magic++;
    cr_expect_not(shunt_hello_is_one(&h));
}

static void expect_refused(const struct shunt_hello *h, int code, const char *theirs,
                           const char *ours)
{
    struct shunt_rack_config cfg = config();
    struct shunt_error err = {0};

    cr_expect_eq(shunt_hello_check(h, &cfg, "rank 1 (there:1)", &err), code, "%s", err.text);
    cr_expect(strstr(err.text, "rank 1 (there:1)"), "%s", err.text);
    cr_expect(strstr(err.text, theirs), "no '%s': %s", theirs, err.text);
    cr_expect(strstr(err.text, ours), "no '%s': %s", ours, err.text);
}

/* Each mismatch names both sides' values. */
Test(hello, names_both_sides)
{
    struct shunt_rack_config cfg = config();
    struct shunt_hello right, h;

    shunt_hello_fill(&right, &cfg, SHUNT_STREAM_CONTROL);
    h = right;
    h.protocol = 77;
    expect_refused(&h, -EPROTO, "protocol 77", "protocol 1");
    h = right;
    strcpy(h.version, "9.8.7");
    expect_refused(&h, -EPROTO, "9.8.7", shunt_version());
    h = right;
    h.node_count = 3;
    expect_refused(&h, -EPROTO, "3 nodes", "one of 4");
    h = right;
    h.fingerprint[15] = 0xce;
    strcpy(h.text, "another");
    expect_refused(&h, -EPROTO, "another", "Qwen3-30B-A3B");
    expect_refused(&h, -EPROTO, "ab0102030405060708090a0b0c0d0ece",
                   "ab0102030405060708090a0b0c0d0ecd");
    h = right;
    h.kernel_levels = 4;
    expect_refused(&h, -EPROTO, "none known here", "ref, avx2");
    h = right;
    h.rows_max = 0;
    expect_refused(&h, -EPROTO, " 0 rows", "4096");
    h.rows_max = SHUNT_ROWS_MAX + 1;
    expect_refused(&h, -EPROTO, " 4097 rows", "4096");
    h.rows_max = SHUNT_ROWS_MAX;
    cr_expect_eq(shunt_hello_check(&h, &cfg, "rank 1", NULL), 0);
}

Test(hello, carries_the_reason_of_a_refusal)
{
    struct shunt_rack_config cfg = config();
    struct shunt_error why;
    struct shunt_hello h;

    shunt_hello_fill(&h, &cfg, SHUNT_STREAM_CONTROL);
    shunt_error_set(&why, -EPROTO, "too late");
    shunt_hello_refuse(&h, &why);
    expect_refused(&h, -ECONNREFUSED, "refused this node: too late", "too late");
    /* Longer than fits: cut, and still a text. */
    shunt_error_set(&why, -EPROTO, "%0*d", 400, 7);
    shunt_hello_refuse(&h, &why);
    cr_expect_eq(strnlen(h.text, sizeof(h.text)), sizeof(h.text) - 1);
    /* Another version does not know our flags: the version is what is wrong. */
    strcpy(h.version, "9.8.7");
    expect_refused(&h, -EPROTO, "9.8.7", shunt_version());
}

/* Names without an end, format characters, control characters, any bytes at all. */
Test(hello, survives_any_bytes)
{
    struct shunt_rack_config cfg = config();

    for (uint64_t seed = 1; seed <= 20000; seed++) {
        struct shunt_error err = {0};
        struct shunt_hello h;
        uint64_t random = seed;
        int rc;

        shunt_hello_fill(&h, &cfg, SHUNT_STREAM_CONTROL);
        if (seed % 4 == 0)
            random_fill(&random, &h, sizeof(h));
        for (uint32_t i = random_below(&random, 4); i > 0; i--)
            ((unsigned char *)&h)[random_below(&random, sizeof(h))] =
                (unsigned char)random_next(&random);
        if (seed % 3 == 0)
            memset(h.text, seed % 2 ? '%' : '\n', sizeof(h.text));
        if (seed % 5 == 0)
            memset(h.version, 's', sizeof(h.version));
        rc = shunt_hello_check(&h, &cfg, "rank 1", &err);
        cr_assert(rc == 0 || rc == -EPROTO || rc == -ECONNREFUSED, "seed %lu: %d", seed, rc);
        cr_assert(!strchr(err.text, '\n') && strlen(err.text) < sizeof(err.text), "seed %lu", seed);
    }
}

Test(hello, cuts_a_long_model_name)
{
    struct shunt_rack_config cfg = config();
    struct shunt_hello h;
    char name[500];

    memset(name, 'm', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    cfg.model_name = name;
    shunt_hello_fill(&h, &cfg, SHUNT_STREAM_CONTROL);
    cr_expect_eq(strnlen(h.text, sizeof(h.text)), sizeof(h.text) - 1);
}
