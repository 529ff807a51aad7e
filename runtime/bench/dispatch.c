/* SPDX-License-Identifier: Apache-2.0
 *
 * The traffic of an MoE layer: dispatch and combine, without experts. Every node computes who sends
 * what to whom from the seed, so nothing but rows travels. A few layers' routings are used in turn.
 *
 * Inbox of a node: for each other node, two areas for its rows and two for its results, used in
 * turn, since a node that has all of one iteration may be in the next.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/carve.h"
#include "runtime/base/clock.h"
#include "runtime/bench/bench_impl.h"

#define ROUTINGS       8u
#define HEADER         64u /* of a message, as the engine's */
#define ENTRY          8u  /* which row, which expert */
#define WARM_UP        20u
#define USED_MAX       32u
#define HIDDEN_MAX     65536u
#define ITERATIONS_MAX 1000000u

/* What one node sends to another in one routing. */
struct share {
    uint32_t rows;    /* tokens with an expert there */
    uint32_t entries; /* (token, expert) pairs there: rows that come back */
};

struct run {
    struct shunt_bench_node b;
    struct shunt_bench_dispatch cfg;
    uint32_t node_count, rank;
    uint64_t row_bytes, result_bytes;     /* of one row */
    uint64_t rows_area, results_area;     /* bytes */
    struct share *shares;                 /* [routing][from][to] */
    uint16_t *tokens;                     /* [routing][peer][tokens]: this node's rows */
    unsigned char *source;                /* [tokens][row_bytes]: hidden state */
    double popularity[SHUNT_EXPERTS_MAX]; /* cumulative */
    uint64_t tick;                        /* iterations begun, warm-up counted */
    int64_t *samples[2];
};

void shunt_bench_dispatch_init(struct shunt_bench_dispatch *d)
{
    *d = (struct shunt_bench_dispatch){
        .size = sizeof(*d),
        .tokens = 128,
        .hidden = 7168,
        .experts = 256,
        .used = 8,
        .dispatch = SHUNT_BENCH_FP8,
        .combine = SHUNT_BENCH_BF16,
        .seed = 1,
        .iterations = 1000,
    };
}

static int check(const struct shunt_bench_dispatch *d, uint32_t node_count, struct shunt_error *err)
{
    if (d->size != sizeof(*d))
        return shunt_error_set(err, -EINVAL, "struct shunt_bench_dispatch has another size here");
    if (d->tokens < 1 || d->tokens > SHUNT_ROWS_MAX || d->hidden < 1 || d->hidden > HIDDEN_MAX)
        return shunt_error_set(err, -EINVAL, "1 to %u tokens of 1 to %u elements", SHUNT_ROWS_MAX,
                               HIDDEN_MAX);
    if (d->experts < node_count || d->experts > SHUNT_EXPERTS_MAX || d->used < 1 ||
        d->used > USED_MAX || d->used > d->experts)
        return shunt_error_set(err, -EINVAL,
                               "%u of %u experts: at least one on each of %u nodes, at most %u; of "
                               "them 1 to %u are used",
                               d->used, d->experts, node_count, SHUNT_EXPERTS_MAX, USED_MAX);
    if (d->iterations < 1 || d->iterations > ITERATIONS_MAX)
        return shunt_error_set(err, -EINVAL, "1 to %u iterations", ITERATIONS_MAX);
    if ((uint32_t)d->dispatch > SHUNT_BENCH_FP8 || (uint32_t)d->combine > SHUNT_BENCH_FP8)
        return shunt_error_set(err, -EINVAL, "rows are of F32, BF16 or FP8");
    return 0;
}

static uint64_t bytes_of_row(enum shunt_bench_dtype dtype, uint64_t hidden)
{
    switch (dtype) {
    case SHUNT_BENCH_F32:
        return hidden * 4;
    case SHUNT_BENCH_BF16:
        return hidden * 2;
    case SHUNT_BENCH_FP8: /* and a scale for each 128 */
        return hidden + (hidden + 127) / 128 * 4;
    }
    return 0;
}

/* ---- routing, before anything is timed */

static double roll(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

/* Popular experts are spread over the nodes, not neighbours. */
static void make_popularity(struct run *r)
{
    const uint32_t n = r->cfg.experts;
    uint64_t state = r->cfg.seed;
    double sum = 0;

    for (uint32_t e = 0; e < n; e++)
        r->popularity[e] = r->cfg.zipf ? 1.0 / (e + 1) : 1.0;
    for (uint32_t e = n - 1; e > 0; e--) {
        uint32_t other = (uint32_t)(roll(&state) * (e + 1));
        double swap = r->popularity[e];

        r->popularity[e] = r->popularity[other];
        r->popularity[other] = swap;
    }
    for (uint32_t e = 0; e < n; e++)
        r->popularity[e] = sum += r->popularity[e];
}

static uint32_t draw_expert(const struct run *r, uint64_t *state)
{
    double at = roll(state) * r->popularity[r->cfg.experts - 1];
    uint32_t low = 0, high = r->cfg.experts - 1;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (r->popularity[middle] > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static struct share *share_of(const struct run *r, uint32_t routing, uint32_t from, uint32_t to)
{
    return &r->shares[((size_t)routing * r->node_count + from) * r->node_count + to];
}

static uint16_t *tokens_to(const struct run *r, uint32_t routing, uint32_t peer)
{
    return r->tokens + ((size_t)routing * r->node_count + peer) * r->cfg.tokens;
}

/* Counts a token's experts on each node. */
static void route_token(const struct run *r, uint64_t *state, uint32_t *on_node)
{
    uint32_t chosen[USED_MAX];

    memset(on_node, 0, SHUNT_NODES_MAX * sizeof(*on_node));
    for (uint32_t k = 0; k < r->cfg.used; k++) {
        bool again = true;

        while (again) {
            chosen[k] = draw_expert(r, state);
            again = false;
            for (uint32_t i = 0; i < k; i++)
                again |= chosen[i] == chosen[k];
        }
        on_node[chosen[k] * r->node_count / r->cfg.experts]++;
    }
}

static void route_node(struct run *r, uint32_t routing, uint32_t from)
{
    uint64_t state = r->cfg.seed + 1000003ull * (routing * SHUNT_NODES_MAX + from + 1);

    for (uint32_t t = 0; t < r->cfg.tokens; t++) {
        uint32_t on_node[SHUNT_NODES_MAX];

        route_token(r, &state, on_node);
        for (uint32_t to = 0; to < r->node_count; to++) {
            struct share *s = share_of(r, routing, from, to);

            if (on_node[to] > 0 && from == r->rank)
                tokens_to(r, routing, to)[s->rows] = (uint16_t)t;
            s->rows += on_node[to] > 0;
            s->entries += on_node[to];
        }
    }
}

static uint64_t rows_message(const struct run *r, const struct share *s)
{
    return HEADER + s->rows * r->row_bytes + (uint64_t)s->entries * ENTRY;
}

static uint64_t results_message(const struct run *r, const struct share *s)
{
    return HEADER + s->entries * r->result_bytes;
}

/* The largest messages of all nodes: areas are the same everywhere. */
static void size_areas(struct run *r)
{
    for (size_t i = 0; i < (size_t)ROUTINGS * r->node_count * r->node_count; i++) {
        uint64_t rows = rows_message(r, &r->shares[i]), results = results_message(r, &r->shares[i]);

        r->rows_area = rows > r->rows_area ? rows : r->rows_area;
        r->results_area = results > r->results_area ? results : r->results_area;
    }
    r->rows_area = shunt_align_up(r->rows_area, SHUNT_CACHE_LINE);
    r->results_area = shunt_align_up(r->results_area, SHUNT_CACHE_LINE);
}

static int route_all(struct run *r, struct shunt_error *err)
{
    const size_t pairs = (size_t)ROUTINGS * r->node_count * r->node_count;

    r->shares = calloc(pairs, sizeof(*r->shares));
    r->tokens = calloc((size_t)ROUTINGS * r->node_count * r->cfg.tokens, sizeof(*r->tokens));
    r->samples[0] = calloc(r->cfg.iterations, sizeof(int64_t));
    r->samples[1] = calloc(r->cfg.iterations, sizeof(int64_t));
    if (!r->shares || !r->tokens || !r->samples[0] || !r->samples[1])
        return shunt_error_set(err, -ENOMEM, "out of memory for the routing");
    make_popularity(r);
    for (uint32_t routing = 0; routing < ROUTINGS; routing++)
        for (uint32_t from = 0; from < r->node_count; from++)
            route_node(r, routing, from);
    size_areas(r);
    return 0;
}

/* ---- the phases */

/* Of an area in any node's inbox, and of the same in the memory that it is sent from. */
static uint64_t rows_off(const struct run *r, uint32_t of)
{
    return (of * 2ull + r->tick % 2) * (r->rows_area + r->results_area);
}

static uint64_t results_off(const struct run *r, uint32_t of)
{
    return rows_off(r, of) + r->rows_area;
}

static uint64_t memory_bytes(const struct run *r)
{
    return 2ull * r->node_count * (r->rows_area + r->results_area);
}

static uint64_t gather_rows(const struct run *r, uint32_t peer, unsigned char *out)
{
    const uint32_t routing = (uint32_t)(r->tick % ROUTINGS);
    const struct share *s = share_of(r, routing, r->rank, peer);
    const uint16_t *tokens = tokens_to(r, routing, peer);

    for (uint32_t i = 0; i < s->rows; i++)
        memcpy(out + HEADER + i * r->row_bytes, r->source + tokens[i] * r->row_bytes, r->row_bytes);
    return rows_message(r, s);
}

/* As many rows as the peer's tokens have experts here, from memory of the size that experts would
 * have written. */
static uint64_t gather_results(const struct run *r, uint32_t peer, unsigned char *out)
{
    const struct share *s = share_of(r, (uint32_t)(r->tick % ROUTINGS), peer, r->rank);

    for (uint32_t i = 0; i < s->entries; i++)
        memcpy(out + HEADER + i * r->result_bytes, r->source + i % r->cfg.tokens * r->result_bytes,
               r->result_bytes);
    return results_message(r, s);
}

static int run_phase(struct run *r, enum shunt_bench_word word, struct shunt_error *err)
{
    unsigned char *memory = r->b.memory.base;
    int rc = 0;

    for (uint32_t i = 1; i < r->node_count && !rc; i++) {
        uint32_t peer = (r->rank + i) % r->node_count; /* not everybody to the same at once */
        bool rows = word == SHUNT_BENCH_ROWS;
        unsigned char *out = memory + (rows ? rows_off(r, peer) : results_off(r, peer));
        uint64_t bytes = rows ? gather_rows(r, peer, out) : gather_results(r, peer, out);

        rc = shunt_bench_put(&r->b, peer, out, bytes,
                             rows ? rows_off(r, r->rank) : results_off(r, r->rank), word, err);
    }
    for (uint32_t i = 1; i < r->node_count && !rc; i++)
        rc = shunt_bench_await(&r->b, (r->rank + i) % r->node_count, word, r->tick + 1, err);
    return rc;
}

static int time_phase(struct run *r, enum shunt_bench_word word, struct shunt_bench_phase *phase,
                      int64_t *sample, struct shunt_error *err)
{
    const struct shunt_transport_counters before = *r->b.ops->counters(r->b.t);
    const struct shunt_transport_counters *after;
    const int64_t begin = shunt_now_ns();
    int rc = run_phase(r, word, err);

    *sample = shunt_now_ns() - begin;
    /* Buffers come round after two iterations, and by then they must be ours again. */
    if (!rc)
        rc = shunt_bench_drain(&r->b, err);
    after = r->b.ops->counters(r->b.t);
    phase->bytes += after->bytes_sent - before.bytes_sent;
    phase->puts += after->puts_sent - before.puts_sent;
    phase->writes += after->writes - before.writes;
    phase->signalled += after->signalled - before.signalled;
    return rc;
}

static int iterate(struct run *r, uint32_t count, struct shunt_bench_dispatch_result *result,
                   struct shunt_error *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < count && !rc; i++, r->tick++) {
        rc = time_phase(r, SHUNT_BENCH_ROWS, &result->dispatch, &r->samples[0][i], err);
        if (!rc)
            rc = time_phase(r, SHUNT_BENCH_RESULTS, &result->combine, &r->samples[1][i], err);
    }
    return rc;
}

/* ---- the whole */

/* What all nodes must have given alike. */
static void make_shape(const struct run *r, uint8_t shape[16])
{
    const struct shunt_bench_dispatch *d = &r->cfg;
    const uint64_t words[] = {d->tokens,  d->hidden, d->experts, d->used,      d->dispatch,
                              d->combine, d->zipf,   d->seed,    d->iterations};
    uint64_t hash[2] = {1, 2};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        for (uint32_t h = 0; h < 2; h++) {
            hash[h] += words[i];
            (void)roll(&hash[h]);
            hash[h] ^= hash[h] >> 29;
        }
    memcpy(shape, hash, 16);
}

static int open_run(struct run *r, const struct shunt_bench_rack *rack, struct shunt_error *err)
{
    uint8_t shape[16];
    uint64_t widest = r->row_bytes > r->result_bytes ? r->row_bytes : r->result_bytes;
    void *source;
    int rc;

    make_shape(r, shape);
    rc = shunt_bench_join(&r->b, rack, "shunt bench dispatch", shape, 1, err);
    if (rc)
        return rc;
    for (uint32_t n = 0; n < r->node_count; n++)
        r->b.inbox_bytes[n] = memory_bytes(r);
    rc = shunt_bench_open(&r->b, memory_bytes(r), err);
    if (!rc)
        rc = shunt_arena_alloc(&r->b.arena, r->cfg.tokens * widest, "rows", &source, err);
    if (!rc)
        r->source = memset(source, 3, r->cfg.tokens * widest);
    return rc;
}

static int measure(struct run *r, const struct shunt_bench_rack *rack,
                   struct shunt_bench_dispatch_result *result, struct shunt_error *err)
{
    struct shunt_bench_dispatch_result warm = {0};
    uint32_t few = r->cfg.iterations < WARM_UP ? r->cfg.iterations : WARM_UP;
    int rc = open_run(r, rack, err);

    if (!rc)
        rc = iterate(r, few, &warm, err);
    if (!rc)
        rc = iterate(r, r->cfg.iterations, result, err);
    if (rc)
        return rc;
    result->dispatch.times = shunt_bench_summarize(r->samples[0], r->cfg.iterations);
    result->combine.times = shunt_bench_summarize(r->samples[1], r->cfg.iterations);
    result->iterations = r->cfg.iterations;
    result->hardware = shunt_bench_hardware_of(&r->b);
    /* Nobody leaves while another still waits. */
    for (uint32_t n = 0; n < r->node_count && !rc; n++)
        if (n != r->rank)
            rc = shunt_bench_put(&r->b, n, NULL, 0, 0, SHUNT_BENCH_MEET, err);
    for (uint32_t n = 0; n < r->node_count && !rc; n++)
        if (n != r->rank)
            rc = shunt_bench_await(&r->b, n, SHUNT_BENCH_MEET, 1, err);
    return rc;
}

static int run_checked(struct run *r, const struct shunt_bench_rack *rack,
                       struct shunt_bench_dispatch_result *result, struct shunt_error *err)
{
    struct shunt_bench_dispatch_result got = {.size = sizeof(got)};
    int rc = route_all(r, err);

    if (rc && rack->listen_fd >= 0)
        close(rack->listen_fd);
    if (!rc)
        rc = measure(r, rack, &got, err);
    if (!rc)
        *result = got;
    return rc;
}

int shunt_bench_dispatch_run(const struct shunt_bench_rack *rack,
                             const struct shunt_bench_dispatch *dispatch,
                             struct shunt_bench_dispatch_result *result, struct shunt_error *err)
{
    struct run *r;
    int rc = check(dispatch, rack->node_count, err);

    if (!rc && (rack->size != sizeof(*rack) || result->size != sizeof(*result)))
        rc = shunt_error_set(err, -EINVAL, "a struct has another size here");
    if (!rc && (rack->node_count > SHUNT_NODES_MAX || rack->rank >= rack->node_count))
        rc = shunt_error_set(err, -EINVAL, "no rank %u of %u nodes", rack->rank, rack->node_count);
    r = rc ? NULL : calloc(1, sizeof(*r));
    if (!r) {
        if (rack->listen_fd >= 0)
            close(rack->listen_fd);
        return rc ? rc : shunt_error_set(err, -ENOMEM, "out of memory");
    }
    r->cfg = *dispatch;
    r->rank = rack->rank;
    r->node_count = rack->node_count;
    r->row_bytes = bytes_of_row(dispatch->dispatch, dispatch->hidden);
    r->result_bytes = bytes_of_row(dispatch->combine, dispatch->hidden);
    rc = run_checked(r, rack, result, err);
    shunt_bench_close(&r->b);
    free(r->shares);
    free(r->tokens);
    free(r->samples[0]);
    free(r->samples[1]);
    free(r);
    return rc;
}
