/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/hello.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/random.h"

static const char *const rack[] = {"a:1", "b:2", "c:3", "d:4"};

static struct shunt_rack_config config(void)
{
    return (struct shunt_rack_config){
        .rank = 2,
        .node_count = 4,
        .serve_only = true,
        .model_name = "Qwen3-30B-A3B",
        .fingerprint = {0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xcd},
        .kernel_levels = 3,
        .transports = 1,
        .wire_format = 5,
        .rows_max = 512,
    };
}

static struct shunt_hello hello(void)
{
    struct shunt_rack_config cfg = config();
    struct shunt_hello h;

    memset(&h, 0xee, sizeof(h));
    shunt_hello_fill(&h, &cfg, rack);
    h.live_port = 7171;
    return h;
}

Test(hello, says_what_it_should)
{
    struct shunt_rack_config cfg = config();
    struct shunt_hello h = hello();
    struct shunt_error err = {0};

    cr_expect_eq(memcmp(&h,
                        "SHUN\2\0\0\0\1\0\0\0\2\0\0\0\4\0\0\0\0\2\0\0\3\0\0\0\1\0\0\0\5\0\0\0"
                        "\x03\x1c\0\0\0\0\0\0\0\0\0\0\xab\1\2",
                        51),
                 0);
    cr_expect_str_eq(h.version, shunt_version());
    cr_expect_str_eq(h.model, "Qwen3-30B-A3B");
    cr_expect_str_eq(h.rack, "a:1,b:2,c:3,d:4");
    for (size_t i = strlen(h.model); i < sizeof(h.model); i++)
        cr_assert_eq(h.model[i], '\0'); /* nothing of this process's memory goes out */
    for (size_t i = strlen(h.rack); i < sizeof(h.rack); i++)
        cr_assert_eq(h.rack[i], '\0');
    cr_expect_eq(shunt_hello_check(&h, &h, "rank 1", &err), 0, "%s", err.text);
    cfg.serve_only = false;
    cfg.encrypt = true;
    shunt_hello_fill(&h, &cfg, NULL);
    cr_expect_eq(h.flags, SHUNT_HELLO_ENCRYPT | SHUNT_HELLO_RENDEZVOUS);
    cr_expect_eq(h.rack[0], '\0');
}

static void expect_refused(const struct shunt_hello *h, const char *theirs, const char *ours)
{
    const struct shunt_hello right = hello();
    struct shunt_error err = {0};

    cr_expect_eq(shunt_hello_check(h, &right, "rank 1 (there:1)", &err), -EPROTO, "%s", err.text);
    cr_expect(strstr(err.text, "rank 1 (there:1)"), "%s", err.text);
    cr_expect(strstr(err.text, theirs), "no '%s': %s", theirs, err.text);
    cr_expect(strstr(err.text, ours), "no '%s': %s", ours, err.text);
}

/* Each mismatch names both sides' values. */
Test(hello, names_both_sides)
{
    struct shunt_hello h = hello();

    h.protocol = 77;
    expect_refused(&h, "protocol 77", "protocol 2");
    h = hello();
    strcpy(h.version, "9.8.7");
    expect_refused(&h, "9.8.7", shunt_version());
    h = hello();
    h.node_count = 3;
    expect_refused(&h, "3 nodes", "one of 4");
    h = hello();
    h.fingerprint[15] = 0xce;
    strcpy(h.model, "another");
    expect_refused(&h, "another", "Qwen3-30B-A3B");
    expect_refused(&h, "ab0102030405060708090a0b0c0d0ece", "ab0102030405060708090a0b0c0d0ecd");
    h = hello();
    h.kernel_levels = 4;
    expect_refused(&h, "none known here", "ref, avx2");
    h = hello();
    h.transports = 2;
    expect_refused(&h, "verbs", "tcp");
    h.transports = 1u << 31;
    expect_refused(&h, "none known here", "tcp");
    h = hello();
    h.wire_format = 6;
    expect_refused(&h, "format 6", "format 5");
    h = hello();
    h.flags ^= SHUNT_HELLO_ENCRYPT;
    expect_refused(&h, "encrypted (--encrypt)", "in clear");
    h = hello();
    h.live_port = 0;
    expect_refused(&h, "on port 0", "65535");
    h.live_port = 65536;
    expect_refused(&h, "on port 65536", "65535");
    h = hello();
    h.rows_max = 0;
    expect_refused(&h, " 0 rows", "4096");
    h.rows_max = SHUNT_ROWS_MAX + 1;
    expect_refused(&h, " 4097 rows", "4096");
    h.rows_max = SHUNT_ROWS_MAX;
    cr_expect_eq(shunt_hello_check(&h, &(struct shunt_hello){0}, "rank 1", NULL), -EPROTO);
}

/* The first address that differs, also where the list is cut or shorter. */
Test(hello, names_the_address_that_differs)
{
    static const char *const other[] = {"a:1", "b:2", "cc:3", "d:4"};
    static char longs[SHUNT_NODES_MAX][60];
    const char *texts[SHUNT_NODES_MAX];
    struct shunt_rack_config cfg = config();
    struct shunt_hello h, ours;
    struct shunt_error err;

    shunt_hello_fill(&h, &cfg, other);
    h.live_port = 1;
    expect_refused(&h, "rank 2 at 'cc:3'", "this node at 'c:3'");
    h.rack[0] = '\0'; /* it does not say, and the digest differs all the same */
    expect_refused(&h, "rank 0 at ''", "this node at 'a:1'");
    shunt_hello_fill(&h, &cfg, NULL);
    expect_refused(&h, "rank 0's address only", "this node every node's");
    cfg.node_count = SHUNT_NODES_MAX;
    for (uint32_t r = 0; r < SHUNT_NODES_MAX; r++) {
        memset(longs[r], 'x', sizeof(longs[r]) - 1);
        texts[r] = longs[r];
    }
    shunt_hello_fill(&ours, &cfg, texts);
    texts[63] = "another";
    shunt_hello_fill(&h, &cfg, texts);
    cr_expect_eq(strnlen(h.rack, sizeof(h.rack)), sizeof(h.rack) - 1);
    cr_expect_eq(shunt_hello_check(&h, &ours, "rank 1", &err), -EPROTO);
    cr_expect(strstr(err.text, "another list of nodes"), "%s", err.text);
}

/* Names without an end, format characters, control characters, any bytes at all. */
Test(hello, survives_any_bytes)
{
    const struct shunt_hello right = hello();

    for (uint64_t seed = 1; seed <= 20000; seed++) {
        struct shunt_error err = {0};
        struct shunt_hello h = right;
        uint64_t random = seed;
        int rc;

        if (seed % 4 == 0)
            random_fill(&random, &h, sizeof(h));
        if (seed % 8 == 0) /* far enough to have its texts looked at */
            memcpy(&h, &right, seed % 16 ? 48 : 112);
        for (uint32_t i = random_below(&random, 4); i > 0; i--)
            ((unsigned char *)&h)[random_below(&random, sizeof(h))] =
                (unsigned char)random_next(&random);
        if (seed % 3 == 0)
            memset(h.model, seed % 2 ? '%' : '\n', sizeof(h.model));
        if (seed % 5 == 0)
            memset(h.version, 's', sizeof(h.version));
        if (seed % 7 == 0)
            memset(h.rack, seed % 2 ? ',' : 'x', sizeof(h.rack));
        rc = shunt_hello_check(&h, &right, "rank 1", &err);
        cr_assert(rc == 0 || rc == -EPROTO, "seed %lu: %d", seed, rc);
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
    shunt_hello_fill(&h, &cfg, rack);
    cr_expect_eq(strnlen(h.model, sizeof(h.model)), sizeof(h.model) - 1);
}

/* ---- the other messages */

Test(hello, compares_the_whole_token)
{
    struct shunt_prologue p = {.magic = SHUNT_PROLOGUE_MAGIC};
    uint8_t token[SHUNT_TOKEN_BYTES] = {0};

    for (uint32_t i = 0; i < SHUNT_TOKEN_BYTES; i++)
        p.token[i] = token[i] = (uint8_t)(i * 7 + 1);
    cr_expect(shunt_prologue_presents(&p, token));
    for (uint32_t i = 0; i < SHUNT_TOKEN_BYTES; i++) {
        p.token[i] ^= 1;
        cr_expect_not(shunt_prologue_presents(&p, token), "byte %u", i);
        p.token[i] ^= 1;
    }
    p.zero = 1;
    cr_expect_not(shunt_prologue_presents(&p, token));
}

static struct shunt_table table_of(uint32_t count)
{
    struct shunt_table t = {.magic = SHUNT_TABLE_MAGIC, .count = count};

    for (uint32_t r = 0; r < count; r++)
        snprintf(t.addresses[r], sizeof(t.addresses[r]), "10.0.0.%u:7171", r);
    return t;
}

Test(hello, takes_a_table_that_is_whole)
{
    struct shunt_table t = table_of(SHUNT_NODES_MAX);
    struct shunt_error err;

    cr_expect_eq(shunt_table_check(&t, SHUNT_NODES_MAX, &err), 0, "%s", err.text);
    cr_expect_eq(shunt_table_check(&t, 63, &err), -EPROTO);
    cr_expect(strstr(err.text, "64 nodes, not of 63"), "%s", err.text);
    t.magic++;
    cr_expect_eq(shunt_table_check(&t, SHUNT_NODES_MAX, &err), -EPROTO);
    t = table_of(3);
    strcpy(t.addresses[2], t.addresses[1]);
    cr_expect_eq(shunt_table_check(&t, 3, &err), -EPROTO);
    cr_expect(strstr(err.text, "for rank 1 and for rank 2"), "%s", err.text);
    for (uint32_t i = 0; i < 4; i++) {
        static const char *const texts[] = {"", "a b:1", "a,b:1", "\x7f:1"};

        t = table_of(3);
        strcpy(t.addresses[2], texts[i]);
        cr_expect_eq(shunt_table_check(&t, 3, &err), -EPROTO);
        cr_expect(strstr(err.text, "no address for rank 2"), "%s", err.text);
    }
    t = table_of(3);
    memset(t.addresses[0], 'x', sizeof(t.addresses[0]));
    cr_expect_eq(shunt_table_check(&t, 3, NULL), -EPROTO, "an address without an end");
}
