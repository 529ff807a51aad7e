/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/wire.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/wire_walk.h"
#include "tests/random.h"

#define RANK      3u
#define LAYER     5u
#define TICK      0x123456789abull
#define MUTATIONS 60000u /* of each kind */

/* ---- messages */

struct message {
    struct shunt_wire_shape shape;
    struct shunt_wire_expect expect;
    unsigned char *bytes; /* 64-aligned, as much room as the sender has in the inbox */
    uint64_t len;         /* of the message as it was built */
};

static void *aligned(uint64_t len)
{
    void *p;

    cr_assert_eq(posix_memalign(&p, SHUNT_WIRE_ALIGN, len ? len : 1), 0);
    return p;
}

static struct shunt_wire_header header_of(const struct message *m)
{
    return (struct shunt_wire_header){
        .magic = SHUNT_WIRE_MAGIC,
        .version = SHUNT_WIRE_VERSION,
        .kind = (uint8_t)m->expect.kind,
        .lane = (uint8_t)m->expect.lane,
        .rank = m->expect.rank,
        .layer = m->expect.layer,
        .tick = m->expect.tick,
        .step = m->expect.step,
    };
}

static void begin(struct message *m, enum shunt_wire_kind kind, uint64_t len, uint64_t *random)
{
    uint64_t room = shunt_wire_gather_max(&m->shape, m->expect.rows_max);

    m->expect.kind = kind;
    m->len = len;
    m->bytes = aligned(room > len ? room : len);
    random_fill(random, m->bytes, room > len ? room : len);
}

static void put_header(struct message *m, const struct shunt_wire_header *h)
{
    memcpy(m->bytes, h, sizeof(*h));
}

static struct message any_shape(uint64_t *random)
{
    return (struct message){
        .shape = {.expert_count = 1 + random_below(random, 40),
                  .used_count = 1 + random_below(random, 4),
                  .hidden = 16 * (1 + random_below(random, 3)),
                  .layer_count = 8},
        .expect = {.lane = (enum shunt_lane)random_below(random, 2),
                   .rank = RANK,
                   .layer = LAYER,
                   .tick = TICK,
                   .step = 77,
                   .rows_max = 1 + random_below(random, 6)},
    };
}

static struct message build_announce(uint64_t *random)
{
    struct message m = any_shape(random);
    struct shunt_wire_header h;

    begin(&m, SHUNT_WIRE_ANNOUNCE, shunt_wire_announce_bytes(&m.shape), random);
    h = header_of(&m);
    put_header(&m, &h);
    return m;
}

static struct message build_counts(uint64_t *random)
{
    struct message m = any_shape(random);
    uint32_t left = m.expect.rows_max * m.shape.used_count;
    struct shunt_wire_header h;

    begin(&m, SHUNT_WIRE_COUNTS, shunt_wire_counts_bytes(&m.shape), random);
    h = header_of(&m);
    put_header(&m, &h);
    for (uint32_t e = 0; e < m.shape.expert_count; e++) {
        uint32_t count = random_below(random, left + 1);

        memcpy(m.bytes + sizeof(h) + 8 + 4 * e, &count, sizeof(count));
        left -= count;
    }
    return m;
}

/* Entries of every expert that is named go to rows in turn. */
static struct message build_dispatch_of(struct message m, uint32_t rows, uint32_t groups,
                                        uint32_t entries, uint64_t *random)
{
    struct shunt_wire_dispatch_layout at =
        shunt_wire_dispatch_layout(&m.shape, groups, entries, rows);
    struct shunt_wire_header h;
    uint32_t left = entries;

    begin(&m, SHUNT_WIRE_DISPATCH, at.bytes, random);
    h = header_of(&m);
    h.row_count = rows;
    h.group_count = groups;
    h.entry_count = entries;
    h.result_off = 4096;
    put_header(&m, &h);
    for (uint32_t g = 0; g < groups; g++) {
        struct shunt_wire_group group = {.expert = g, .count = 1};

        if (g + 1 == groups)
            group.count = left;
        left -= group.count;
        memcpy(m.bytes + at.groups + g * sizeof(group), &group, sizeof(group));
    }
    for (uint32_t i = 0; i < entries; i++) {
        uint32_t row = i % rows;

        memcpy(m.bytes + at.entries + i * sizeof(row), &row, sizeof(row));
    }
    return m;
}

static struct message build_dispatch(uint64_t *random)
{
    struct message m = any_shape(random);
    uint32_t rows = random_below(random, m.expect.rows_max + 1);
    uint32_t entries = random_below(random, rows * m.shape.used_count + 1);
    uint32_t groups = entries < m.shape.expert_count ? entries : m.shape.expert_count;

    if (groups > 1)
        groups = 1 + random_below(random, groups);
    return build_dispatch_of(m, rows, groups, entries, random);
}

static struct message build_results(uint64_t *random)
{
    struct message m = any_shape(random);
    struct shunt_wire_header h;

    m.expect.entry_count = random_below(random, 20);
    begin(&m, SHUNT_WIRE_RESULTS,
          sizeof(h) + (uint64_t)m.expect.entry_count * m.shape.hidden * sizeof(float), random);
    h = header_of(&m);
    h.entry_count = h.row_count = m.expect.entry_count;
    h.waited_count = random_below(random, h.entry_count + 1);
    put_header(&m, &h);
    return m;
}

typedef struct message build_fn(uint64_t *random);
static build_fn *const builders[] = {build_announce, build_counts, build_dispatch, build_results};
#define KINDS 4u

/* Makes a view and looks at all of it. Return: the view's code; 1 for a view that is not sound. */
static int view(const struct message *m, struct shunt_error *err)
{
    struct shunt_wire_announce_view announce;
    struct shunt_wire_counts_view counts = {
        .counts = calloc(m->shape.expert_count, sizeof(*counts.counts))};
    struct shunt_wire_dispatch_view dispatch = {
        .groups = calloc(m->shape.expert_count, sizeof(*dispatch.groups)),
        .entries =
            calloc(m->expect.rows_max * m->shape.used_count + 1u, sizeof(*dispatch.entries))};
    struct shunt_wire_header results;
    int rc;

    switch (m->expect.kind) {
    case SHUNT_WIRE_ANNOUNCE:
        rc = shunt_wire_view_announce(m->bytes, &m->expect, "rank 3", &announce, err);
        rc = !rc && !wire_walk_announce(&announce, &m->shape) ? 1 : rc;
        break;
    case SHUNT_WIRE_COUNTS:
        rc = shunt_wire_view_counts(m->bytes, &m->shape, &m->expect, "rank 3", &counts, err);
        rc = !rc && !wire_walk_counts(&counts, &m->shape, m->expect.rows_max) ? 1 : rc;
        break;
    case SHUNT_WIRE_DISPATCH:
        rc = shunt_wire_view_dispatch(m->bytes, &m->shape, &m->expect, "rank 3", &dispatch, err);
        rc = !rc && !wire_walk_dispatch(&dispatch, &m->shape, m->expect.rows_max) ? 1 : rc;
        break;
    default:
        rc = shunt_wire_view_results(m->bytes, &m->expect, "rank 3", &results, err);
        rc = !rc && (results.entry_count != m->expect.entry_count ||
                     results.waited_count > results.entry_count)
                 ? 1
                 : rc;
        break;
    }
    free(counts.counts);
    free(dispatch.groups);
    free(dispatch.entries);
    return rc;
}

static void expect_refused(const struct message *m, const char *what)
{
    struct shunt_error err = {0};

    cr_expect_eq(view(m, &err), -EPROTO, "%s", what);
    cr_expect(strstr(err.text, "rank 3"), "%s: %s", what, err.text);
}

/* ---- round trips */

Test(wire, takes_what_it_should)
{
    for (uint64_t seed = 1; seed <= 4000; seed++) {
        uint64_t random = seed;
        struct message m = builders[seed % KINDS](&random);
        struct shunt_error err = {0};

        cr_assert_eq(view(&m, &err), 0, "seed %lu: %s", seed, err.text);
        cr_assert(m.expect.kind == SHUNT_WIRE_RESULTS ||
                      m.len <= shunt_wire_gather_max(&m.shape, m.expect.rows_max),
                  "seed %lu", seed);
        free(m.bytes);
    }
}

Test(wire, shows_every_part_of_an_announcement)
{
    uint64_t random = 1;
    struct message m = build_announce(&random);
    struct shunt_wire_announce a = {
        .epoch = 9, .flags = SHUNT_ANNOUNCE_LEAVING, .decode_rows = 4, .prefill_rows = 17};
    struct shunt_wire_announce_view v;

    memcpy(m.bytes + 64, &a, sizeof(a));
    cr_assert_eq(shunt_wire_view_announce(m.bytes, &m.expect, "rank 3", &v, NULL), 0);
    cr_expect_eq(memcmp(&v.announce, &a, sizeof(a)), 0);
    cr_expect_eq(v.states, m.bytes + 64 + 24);
    cr_expect_eq(m.len, 64 + 24 + m.shape.expert_count);
    free(m.bytes);
}

Test(wire, shows_every_part_of_counts)
{
    for (uint64_t seed = 1; seed < 50; seed++) {
        uint64_t random = seed;
        struct message m = build_counts(&random);
        uint32_t experts = m.shape.expert_count;
        uint32_t counts[512];
        struct shunt_wire_counts_view v = {.counts = counts};

        cr_assert_leq(experts, 512);
        cr_assert_eq(shunt_wire_view_counts(m.bytes, &m.shape, &m.expect, "rank 3", &v, NULL), 0);
        cr_expect_eq(v.read_ns, shunt_load_u64(m.bytes + 64));
        cr_expect_eq(memcmp(counts, m.bytes + 72, 4 * experts), 0);
        memset(m.bytes + 72, 0xff, 4 * experts);
        cr_expect(v.counts == counts && counts[0] != UINT32_MAX, "the peer's writes do not show");
        cr_expect_eq(v.states, m.bytes + 72 + 4 * experts);
        cr_expect_eq(v.next_states, m.bytes + 72 + 5 * experts);
        cr_expect_eq(v.guesses, m.bytes + 72 + 6 * experts);
        cr_expect_eq(m.len, 72 + 6 * experts + (experts + 7) / 8);
        free(m.bytes);
    }
}

/* The parts of a DISPATCH lie one after the other, aligned, and the rows on a cache line. */
Test(wire, lays_out_dispatches_without_overlap)
{
    for (uint64_t seed = 1; seed < 2000; seed++) {
        uint64_t random = seed;
        struct message m = any_shape(&random);
        uint32_t groups = random_below(&random, 40), entries = random_below(&random, 300);
        uint32_t rows = random_below(&random, 100);
        struct shunt_wire_dispatch_layout at =
            shunt_wire_dispatch_layout(&m.shape, groups, entries, rows);

        cr_assert(at.states == 64 && at.guesses == at.states + m.shape.expert_count);
        cr_assert(at.groups % 8 == 0 &&
                  at.groups >= at.guesses + shunt_wire_bits_bytes(m.shape.expert_count));
        cr_assert(at.entries % 4 == 0 && at.entries == at.groups + 8 * groups);
        cr_assert(at.rows % SHUNT_WIRE_ALIGN == 0 && at.rows >= at.entries + 4 * entries);
        cr_assert_eq(at.bytes, at.rows + 4ull * rows * m.shape.hidden);
    }
}

Test(wire, shows_every_part_of_a_dispatch)
{
    uint64_t random = 4;
    struct message m = any_shape(&random);
    struct shunt_wire_dispatch_layout at;
    struct shunt_wire_group groups[9];
    uint32_t entries[12];
    struct shunt_wire_dispatch_view v = {.groups = groups, .entries = entries};

    m.shape.expert_count = 9;
    m.shape.used_count = 3;
    m.expect.rows_max = 4;
    m = build_dispatch_of(m, 4, 5, 12, &random);
    at = shunt_wire_dispatch_layout(&m.shape, 5, 12, 4);
    cr_assert_eq(shunt_wire_view_dispatch(m.bytes, &m.shape, &m.expect, "rank 3", &v, NULL), 0);
    cr_expect_eq(memcmp(&v.header, m.bytes, 64), 0);
    cr_expect(v.states == m.bytes + at.states && v.guesses == m.bytes + at.guesses);
    memset(m.bytes + at.groups, 0xff, at.rows - at.groups); /* the peer's writes do not show */
    cr_expect((const unsigned char *)v.rows == m.bytes + at.rows);
    cr_expect(v.groups[4].expert == 4 && v.groups[4].count == 8 && v.entries[11] == 3);
    free(m.bytes);
}

/* ---- exact limits */

static void change_u32(struct message *m, uint64_t at, uint32_t value)
{
    memcpy(m->bytes + at, &value, sizeof(value));
}

/* Rows, experts and entries at their most, and one more. */
Test(wire, keeps_to_the_limits_of_a_dispatch)
{
    uint64_t random = 2;
    struct message shape = any_shape(&random), m;

    shape.shape.expert_count = 6;
    shape.shape.used_count = 2;
    shape.expect.rows_max = 3;
    m = build_dispatch_of(shape, 3, 6, 6, &random);
    cr_expect_eq(view(&m, NULL), 0);
    free(m.bytes);
    m = build_dispatch_of(shape, 4, 6, 6, &random);
    expect_refused(&m, "a row too many");
    free(m.bytes);
    m = build_dispatch_of(shape, 3, 6, 7, &random);
    expect_refused(&m, "an entry too many");
    free(m.bytes);
    shape.shape.used_count = 4;
    m = build_dispatch_of(shape, 3, 7, 7, &random);
    expect_refused(&m, "a group too many");
    free(m.bytes);
    m = build_dispatch_of(shape, 0, 0, 0, &random);
    cr_expect_eq(view(&m, NULL), 0);
    free(m.bytes);
    m = build_dispatch_of(shape, 1, 0, 0, &random); /* a row that nobody wants is odd, no danger */
    cr_expect_eq(view(&m, NULL), 0);
    free(m.bytes);
}

Test(wire, checks_groups_and_entries)
{
    static const struct {
        uint32_t group, expert, count;
        const char *what;
    } groups[] = {
        {4, 9, 8, "beyond the last expert"}, {4, UINT32_MAX, 8, "no expert"},
        {2, 1, 1, "twice the same"},         {2, 0, 1, "descending"},
        {4, 4, 0, "an empty group"},         {4, 4, 7, "an entry without a group"},
        {4, 4, 9, "more than there are"},    {0, 0, UINT32_MAX, "a sum that wraps"},
    };
    uint64_t random = 4;
    struct message shape = any_shape(&random), m;
    struct shunt_wire_dispatch_layout at;

    shape.shape.expert_count = 9;
    shape.shape.used_count = 3;
    shape.expect.rows_max = 4;
    at = shunt_wire_dispatch_layout(&shape.shape, 5, 12, 4);
    for (uint32_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        m = build_dispatch_of(shape, 4, 5, 12, &random);
        change_u32(&m, at.groups + 8 * groups[i].group, groups[i].expert);
        change_u32(&m, at.groups + 8 * groups[i].group + 4, groups[i].count);
        expect_refused(&m, groups[i].what);
        free(m.bytes);
    }
    m = build_dispatch_of(shape, 4, 5, 12, &random);
    change_u32(&m, at.groups + 8 * 4, 8); /* the last expert there is */
    cr_expect_eq(view(&m, NULL), 0);
    for (uint32_t i = 0; i < 12; i++) {
        change_u32(&m, at.entries + 4 * i, 4);
        expect_refused(&m, "a row that was not sent");
        change_u32(&m, at.entries + 4 * i, 3);
        cr_expect_eq(view(&m, NULL), 0);
    }
    free(m.bytes);
}

Test(wire, keeps_to_the_limit_of_counts)
{
    uint64_t random = 5;
    struct message m = build_counts(&random);
    uint32_t most = m.expect.rows_max * m.shape.used_count;

    memset(m.bytes + 72, 0, 4 * m.shape.expert_count);
    change_u32(&m, 72, most);
    cr_expect_eq(view(&m, NULL), 0);
    change_u32(&m, 72 + 4 * (m.shape.expert_count - 1), 1);
    expect_refused(&m, "a call too many");
    for (uint32_t e = 0; e < m.shape.expert_count; e++)
        change_u32(&m, 72 + 4 * e, UINT32_MAX);
    expect_refused(&m, "all there are");
    free(m.bytes);
}

Test(wire, keeps_to_the_limits_of_results)
{
    uint64_t random = 6;
    struct message m = build_results(&random);
    struct shunt_wire_header h;

    m.expect.entry_count = 0;
    m.len = 64;
    h = header_of(&m);
    put_header(&m, &h);
    cr_expect_eq(view(&m, NULL), 0);
    h.waited_count = 1;
    put_header(&m, &h);
    expect_refused(&m, "more waited than there are");
    h.waited_count = 0;
    h.entry_count = 1;
    put_header(&m, &h);
    expect_refused(&m, "entries that were not asked for");
    free(m.bytes);
}

/* A message of another kind, sender, exchange, lane or layer is not taken, and the text says what
 * was due. */
Test(wire, takes_only_what_is_due)
{
    for (uint64_t seed = 1; seed <= 4 * KINDS; seed++) {
        uint64_t random = seed;
        struct message m = builders[seed % KINDS](&random);
        struct shunt_wire_header right, h;

        memcpy(&right, m.bytes, sizeof(right));
#define WRONG(field, value)                                                                        \
    h = right;                                                                                     \
    h.field = (value);                                                                             \
    put_header(&m, &h);                                                                            \
    expect_refused(&m, #field)
        WRONG(magic, right.magic ^ 1);
        WRONG(version, (uint16_t)(right.version + 1));
        WRONG(kind, (uint8_t)(right.kind % 4 + 1));
        WRONG(kind, 0);
        WRONG(kind, 255);
        WRONG(rank, right.rank + 1);
        WRONG(step, right.step + 1);
        WRONG(tick, right.tick + 1);
        WRONG(tick, right.tick - (1ull << 32));
        if (m.expect.kind != SHUNT_WIRE_ANNOUNCE) {
            WRONG(lane, !right.lane);
            WRONG(lane, 2);
            WRONG(layer, right.layer + 1);
        }
        if (m.expect.kind == SHUNT_WIRE_DISPATCH) {
            WRONG(row_type, 1);
            WRONG(combine, 1);
        }
#undef WRONG
        put_header(&m, &right);
        cr_expect_eq(view(&m, NULL), 0);
        free(m.bytes);
    }
}

Test(wire, says_what_came_and_what_was_due)
{
    uint64_t random = 1;
    struct message m = build_counts(&random);
    struct shunt_error err;

    m.expect.kind = SHUNT_WIRE_DISPATCH;
    cr_expect_eq(view(&m, &err), -EPROTO);
    cr_expect(strstr(err.text, "COUNTS") && strstr(err.text, "DISPATCH"), "%s", err.text);
    m.expect.kind = SHUNT_WIRE_COUNTS;
    m.expect.layer++;
    cr_expect_eq(view(&m, &err), -EPROTO);
    cr_expect(strstr(err.text, "layer 5") && strstr(err.text, "layer 6"), "%s", err.text);
    free(m.bytes);
}

/* ---- mutations */

static const uint64_t extremes[] = {0,
                                    1,
                                    2,
                                    4,
                                    63,
                                    64,
                                    255,
                                    256,
                                    0x7fffffff,
                                    1u << 31,
                                    1e9,
                                    UINT32_MAX,
                                    UINT32_MAX - 1,
                                    1ull << 32,
                                    1ull << 62,
                                    UINT64_MAX};

static void mutate(struct message *m, uint64_t *random)
{
    for (uint32_t count = 1 + random_below(random, 3); count > 0; count--) {
        /* Rather in the header and the tables than in the rows. */
        uint32_t span = random_below(random, 4) ? 64 : 400;
        uint64_t at = random_below(random, m->len < span ? (uint32_t)m->len : span);
        uint64_t value = extremes[random_below(random, sizeof(extremes) / sizeof(extremes[0]))];
        uint32_t width = 1u << random_below(random, 4);

        if (random_below(random, 3) == 0)
            m->bytes[at] ^= (unsigned char)(1u << random_below(random, 8));
        else if (m->len - at >= width)
            memcpy(m->bytes + at, &value, width);
    }
}

/* Whatever a peer sends: refused, or a view whose every index is in range. */
static void mutate_all(build_fn *build, uint64_t first_seed)
{
    uint32_t taken = 0;

    for (uint64_t seed = first_seed; seed < first_seed + MUTATIONS; seed++) {
        uint64_t random = seed;
        struct message m = build(&random);
        struct shunt_error err;
        int rc;

        mutate(&m, &random);
        rc = view(&m, &err);
        cr_assert(rc == 0 || rc == -EPROTO, "seed %lu: %d", seed, rc);
        taken += rc == 0;
        free(m.bytes);
    }
    cr_expect(taken > MUTATIONS / 50 && taken < MUTATIONS * 49 / 50, "%u taken", taken);
}

Test(wire, survives_mutated_announcements, .timeout = 100)
{
    mutate_all(build_announce, 1);
}

Test(wire, survives_mutated_counts, .timeout = 100)
{
    mutate_all(build_counts, 1000000);
}

Test(wire, survives_mutated_dispatches, .timeout = 100)
{
    mutate_all(build_dispatch, 2000000);
}

Test(wire, survives_mutated_results, .timeout = 100)
{
    mutate_all(build_results, 3000000);
}
