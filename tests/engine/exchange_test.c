/* SPDX-License-Identifier: Apache-2.0
 *
 * Exchanges of several nodes in one thread, over local streams.
 */
#include "runtime/engine/exchange.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/random.h"
#include "transport/loopback.h"

#define NODES_MAX 4u
#define WAIT_NS   (20 * SHUNT_NS_PER_S)

struct node {
    struct shunt_exchange x;
    void *memory, *inbox;
    size_t bytes;
};

struct party {
    uint32_t node_count;
    struct node nodes[NODES_MAX];
    struct shunt_rack_node labels[NODES_MAX];
};

static const struct shunt_wire_shape small = {
    .expert_count = 11, .used_count = 3, .hidden = 16, .layer_count = 2};

static void connect_all(struct shunt_stream streams[NODES_MAX][NODES_MAX], uint32_t node_count)
{
    for (uint32_t a = 0; a < NODES_MAX; a++)
        for (uint32_t b = 0; b < NODES_MAX; b++)
            streams[a][b] = SHUNT_STREAM_NONE;
    for (uint32_t a = 0; a < node_count; a++) {
        for (uint32_t b = a + 1; b < node_count; b++) {
            int pair[2];

            cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
            streams[a][b].fd = pair[0];
            streams[b][a].fd = pair[1];
        }
    }
}

static void open_party_on(struct party *p, uint32_t node_count,
                          const struct shunt_wire_shape *shape, const uint32_t *rows_max,
                          struct shunt_loopback_net *net)
{
    const struct shunt_transport_ops *ops = net ? &shunt_transport_loopback : &shunt_transport_tcp;
    struct shunt_exchange_config cfg = {.node_count = node_count, .shape = *shape};
    struct shunt_stream streams[NODES_MAX][NODES_MAX];

    memset(p, 0, sizeof(*p));
    p->node_count = node_count;
    memcpy(cfg.rows_max, rows_max, node_count * sizeof(*rows_max));
    connect_all(streams, node_count);
    for (uint32_t n = 0; n < node_count; n++) {
        struct node *node = &p->nodes[n];
        struct shunt_carve carve = {0};
        struct shunt_region memory;

        snprintf(p->labels[n].label, sizeof(p->labels[n].label), "rank %u", n);
        cfg.rank = n;
        shunt_exchange_carve(&node->x, &cfg, &carve);
        node->bytes = carve.used;
        cr_assert_eq(posix_memalign(&node->memory, SHUNT_WIRE_ALIGN, node->bytes), 0);
        memset(node->memory, 0, node->bytes);
        carve = (struct shunt_carve){.base = node->memory};
        shunt_exchange_carve(&node->x, &cfg, &carve);
        cr_assert_eq(carve.used, node->bytes);
        memory = (struct shunt_region){.base = node->memory, .bytes = node->bytes, .fd = -1};
        node->inbox = calloc(1, shunt_exchange_inbox_bytes(&cfg, n));
        cr_assert(node->inbox);
        shunt_exchange_set_inbox(&node->x, &(struct shunt_region){.base = node->inbox, .fd = -1});
        cr_assert_eq(shunt_exchange_open(&node->x, ops, p->labels,
                                         &(struct shunt_transport_config){.streams = streams[n],
                                                                          .memory = &memory,
                                                                          .memory_count = 1,
                                                                          .loopback = net},
                                         NULL),
                     0);
    }
}

static void open_party(struct party *p, uint32_t node_count, const struct shunt_wire_shape *shape,
                       const uint32_t *rows_max)
{
    open_party_on(p, node_count, shape, rows_max, NULL);
}

static void close_party(struct party *p)
{
    for (uint32_t n = 0; n < p->node_count; n++) {
        shunt_exchange_close(&p->nodes[n].x);
        free(p->nodes[n].memory);
        free(p->nodes[n].inbox);
    }
}

/* Polls everybody until `x` has the peer's gather, or its results. */
static void await(struct party *p, const struct shunt_exchange *x, uint32_t peer, bool results)
{
    int64_t deadline = shunt_now_ns() + WAIT_NS;

    while (results ? !shunt_exchange_has_results(x, peer) : !shunt_exchange_gathered(x, peer)) {
        cr_assert_lt(shunt_now_ns(), deadline, "nothing from rank %u", peer);
        for (uint32_t n = 0; n < p->node_count; n++)
            cr_assert_eq(shunt_exchange_poll(&p->nodes[n].x, NULL), 0);
    }
}

/* Polls everybody until node `n` fails. */
static void expect_failure(struct party *p, uint32_t n, const char *who, const char *what)
{
    int64_t deadline = shunt_now_ns() + WAIT_NS;
    struct shunt_error err = {0};

    while (shunt_exchange_poll(&p->nodes[n].x, &err) == 0) {
        cr_assert_lt(shunt_now_ns(), deadline, "%s was taken", what);
        for (uint32_t other = 0; other < p->node_count; other++)
            if (other != n)
                cr_assert_eq(shunt_exchange_poll(&p->nodes[other].x, NULL), 0);
    }
    cr_expect_eq(err.code, -EPROTO, "%s", what);
    cr_expect(strstr(err.text, who), "%s: %s", what, err.text);
}

static void put_gather(struct shunt_exchange *x, uint32_t peer, const char *text)
{
    void *buffer = shunt_exchange_gather_buffer(x, peer);

    cr_assert(buffer);
    memcpy(buffer, text, strlen(text));
    cr_assert_eq(shunt_exchange_put_gather(x, peer, SHUNT_WIRE_ANNOUNCE, strlen(text)), 0);
}

static void expect_gather(struct party *p, struct shunt_exchange *x, uint32_t peer,
                          const char *text)
{
    await(p, x, peer, false);
    cr_expect(!memcmp(shunt_exchange_gathered(x, peer), text, strlen(text)), "%.*s instead of %s",
              (int)strlen(text), (const char *)shunt_exchange_gathered(x, peer), text);
}

/* ---- layout */

/* What a node computes of another's inbox is what that one has; and no send buffers overlap. */
Test(exchange, nodes_agree_on_the_layout)
{
    for (uint64_t seed = 1; seed <= 200; seed++) {
        uint64_t random = seed;
        struct shunt_exchange_config cfg = {.node_count = 1 + random_below(&random, NODES_MAX)};
        struct shunt_exchange x[NODES_MAX];

        cfg.shape = (struct shunt_wire_shape){.expert_count = 1 + random_below(&random, 100),
                                              .used_count = 1 + random_below(&random, 8),
                                              .hidden = 1 + random_below(&random, 100)};
        for (uint32_t n = 0; n < cfg.node_count; n++)
            cfg.rows_max[n] = 1 + random_below(&random, 50);
        for (cfg.rank = 0; cfg.rank < cfg.node_count; cfg.rank++) {
            struct shunt_carve carve = {0};
            const unsigned char *end;

            shunt_exchange_carve(&x[cfg.rank], &cfg, &carve);
            carve.base = (unsigned char *)(uintptr_t)4096; /* never touched */
            carve.used = 0;
            shunt_exchange_carve(&x[cfg.rank], &cfg, &carve);
            shunt_exchange_set_inbox(&x[cfg.rank], &(struct shunt_region){.fd = -1});
            end = (unsigned char *)(uintptr_t)4096;
            for (uint32_t n = 0; n < cfg.node_count; n++) {
                if (n == cfg.rank)
                    continue;
                cr_assert_geq(x[cfg.rank].gather_out[n], end, "seed %lu", seed);
                end = x[cfg.rank].gather_out[n] + 2 * x[cfg.rank].gather_out_bytes;
                cr_assert_geq(x[cfg.rank].results_out[n], end, "seed %lu", seed);
                end = x[cfg.rank].results_out[n] + sizeof(struct shunt_wire_header) +
                      4ull * cfg.rows_max[n] * cfg.shape.used_count * cfg.shape.hidden;
                cr_assert_eq((uintptr_t)x[cfg.rank].gather_out[n] % 64, 0, "seed %lu", seed);
                cr_assert_eq((uintptr_t)x[cfg.rank].results_out[n] % 64, 0, "seed %lu", seed);
            }
            cr_assert_leq(end, (unsigned char *)(uintptr_t)4096 + carve.used, "seed %lu", seed);
        }
        for (uint32_t a = 0; a < cfg.node_count; a++)
            for (uint32_t b = 0; b < cfg.node_count; b++)
                cr_assert_eq(shunt_exchange_inbox_bytes(&x[a].cfg, b), x[b].inbox.bytes, "seed %lu",
                             seed);
    }
}

/* ---- ticks */

Test(exchange, a_message_may_be_one_tick_early)
{
    const uint32_t rows[] = {4, 4};
    struct shunt_exchange *a, *b;
    struct party p;

    open_party(&p, 2, &small, rows);
    a = &p.nodes[0].x;
    b = &p.nodes[1].x;
    cr_expect_not(shunt_exchange_peer_waits(a));
    put_gather(b, 0, "b0");
    expect_gather(&p, a, 1, "b0");
    cr_expect(shunt_exchange_peer_waits(a)); /* whatever a has done itself */
    put_gather(a, 1, "a0");
    shunt_exchange_next(a);
    put_gather(a, 1, "a1");
    cr_expect_null(shunt_exchange_gathered(a, 1)); /* b0 is over */
    for (uint32_t i = 0; i < 1000; i++)
        cr_assert_eq(shunt_exchange_poll(b, NULL) + shunt_exchange_poll(a, NULL), 0);
    expect_gather(&p, b, 0, "a0");
    shunt_exchange_next(b);
    cr_expect(shunt_exchange_gathered(b, 0)); /* it was here before b began */
    expect_gather(&p, b, 0, "a1");
    put_gather(b, 0, "b1");
    expect_gather(&p, a, 1, "b1");
    close_party(&p);
}

Test(exchange, a_message_may_not_be_two_ticks_early)
{
    const uint32_t rows[] = {4, 4};
    struct party p;

    open_party(&p, 2, &small, rows);
    shunt_exchange_next(&p.nodes[0].x);
    shunt_exchange_next(&p.nodes[0].x);
    put_gather(&p.nodes[0].x, 1, "a2");
    expect_failure(&p, 1, "rank 0", "a message of tick 2 in tick 0");
    close_party(&p);
    open_party(&p, 2, &small, rows);
    shunt_exchange_next(&p.nodes[1].x);
    put_gather(&p.nodes[0].x, 1, "a0");
    expect_failure(&p, 1, "rank 0", "a message of tick 0 in tick 1");
    close_party(&p);
}

Test(exchange, a_message_comes_once)
{
    const uint32_t rows[] = {4, 4};
    struct shunt_exchange *a;
    struct party p;

    open_party(&p, 2, &small, rows);
    a = &p.nodes[0].x;
    cr_assert_eq(shunt_exchange_put_gather(a, 1, SHUNT_WIRE_ANNOUNCE, 9), 0);
    cr_assert_eq(shunt_exchange_put_gather(a, 1, SHUNT_WIRE_COUNTS, 9), 0);
    expect_failure(&p, 1, "rank 0", "two messages in a tick");
    close_party(&p);
    open_party(&p, 2, &small, rows);
    a = &p.nodes[0].x;
    cr_assert_eq(shunt_exchange_put_results(a, 1, 0, 64), 0);
    cr_assert_eq(shunt_exchange_put_results(a, 1, 64, 64), 0);
    expect_failure(&p, 1, "rank 0", "two results in a tick");
    close_party(&p);
}

/* ---- immediates and places */

/* A bare put of node 0 to node 1. */
static void stray(const char *what, uint32_t imm)
{
    const uint32_t rows[] = {4, 4};
    struct shunt_exchange *a;
    struct party p;

    open_party(&p, 2, &small, rows);
    a = &p.nodes[0].x;
    cr_assert_eq(a->ops->put(a->transport, 1, NULL, 0, 0, imm), 0, "%s", what);
    a->open_gathers[1][imm % 2]++; /* as if it had sent it properly */
    a->open_results[1]++;
    expect_failure(&p, 1, "rank 0", what);
    close_party(&p);
}

Test(exchange, a_message_is_of_a_tick_that_is_due)
{
    stray("results of another tick", SHUNT_WIRE_RESULTS << 28 | 1);
    stray("a message of tick 2 in tick 0", SHUNT_WIRE_DISPATCH << 28 | 2);
    stray("a message of long ago", SHUNT_WIRE_DISPATCH << 28 | ((1u << 28) - 1));
}

Test(exchange, results_lie_where_they_were_wanted)
{
    const uint32_t rows[] = {4, 4};
    struct shunt_exchange *a, *b;
    struct party p;

    open_party(&p, 2, &small, rows);
    a = &p.nodes[0].x;
    b = &p.nodes[1].x;
    memset(shunt_exchange_results_buffer(a, 1), 7, 64);
    cr_assert_eq(shunt_exchange_put_results(a, 1, b->results_bytes - 64, 64), 0);
    await(&p, b, 0, true);
    cr_expect_eq(shunt_exchange_results_area(b)[b->results_bytes - 1], 7);
    cr_expect_eq(shunt_exchange_put_results(a, 1, b->inbox.bytes, 64), -EINVAL);
    close_party(&p);
}

/* ---- buffers */

/* Messages larger than the sockets take: the buffer is the transport's until they are through. */
Test(exchange, buffers_come_back_when_they_are_sent)
{
    const struct shunt_wire_shape wide = {
        .expert_count = 4, .used_count = 1, .hidden = 4096, .layer_count = 1};
    const uint32_t rows[] = {256, 256};
    struct shunt_exchange *a, *b;
    uint64_t size;
    unsigned char *first, *second, *results;
    struct party p;

    open_party(&p, 2, &wide, rows);
    a = &p.nodes[0].x;
    b = &p.nodes[1].x;
    size = shunt_wire_gather_max(&wide, 256);
    first = shunt_exchange_gather_buffer(a, 1);
    results = shunt_exchange_results_buffer(a, 1);
    cr_assert(first && results);
    memset(first, 1, size);
    cr_assert_eq(shunt_exchange_put_gather(a, 1, SHUNT_WIRE_DISPATCH, size), 0);
    memset(results, 3, 1 << 20);
    cr_assert_eq(shunt_exchange_put_results(a, 1, 0, 1 << 20), 0);
    for (uint32_t i = 0; i < 100; i++)
        cr_assert_eq(shunt_exchange_poll(a, NULL), 0);
    cr_expect_null(shunt_exchange_gather_buffer(a, 1));
    cr_expect_null(shunt_exchange_results_buffer(a, 1));
    shunt_exchange_next(a);
    second = shunt_exchange_gather_buffer(a, 1); /* the other one */
    cr_assert(second && second >= first + size);
    memset(second, 2, size);
    cr_assert_eq(shunt_exchange_put_gather(a, 1, SHUNT_WIRE_DISPATCH, size), 0);
    cr_expect_null(shunt_exchange_gather_buffer(a, 1));
    await(&p, b, 0, false);
    cr_expect(*(const unsigned char *)shunt_exchange_gathered(b, 0) == 1 &&
              ((const unsigned char *)shunt_exchange_gathered(b, 0))[size - 1] == 1);
    await(&p, b, 0, true);
    cr_expect(shunt_exchange_results_area(b)[0] == 3 &&
              shunt_exchange_results_area(b)[(1 << 20) - 1] == 3);
    shunt_exchange_next(b);
    cr_expect_not(shunt_exchange_has_results(b, 0));
    await(&p, b, 0, false);
    cr_expect_eq(*(const unsigned char *)shunt_exchange_gathered(b, 0), 2);
    while (!shunt_exchange_gather_buffer(a, 1))
        cr_assert_eq(shunt_exchange_poll(a, NULL), 0);
    cr_expect_eq(shunt_exchange_results_buffer(a, 1), results);
    close_party(&p);
}

/* ---- a peer that goes */

Test(exchange, remembers_who_is_lost)
{
    const uint32_t rows[] = {4, 4, 4};
    int64_t deadline = shunt_now_ns() + WAIT_NS;
    struct shunt_exchange *a;
    struct party p;

    open_party(&p, 3, &small, rows);
    a = &p.nodes[0].x;
    shunt_exchange_close(&p.nodes[2].x);
    shunt_exchange_close(&p.nodes[2].x);
    while (!a->lost[2]) {
        cr_assert_lt(shunt_now_ns(), deadline);
        cr_assert_eq(shunt_exchange_poll(a, NULL), 0);
    }
    cr_expect(!a->lost[1] && a->lost_error[2] == -ECONNRESET && a->lost_reason[2]);
    cr_expect_eq(shunt_exchange_put_gather(a, 2, SHUNT_WIRE_ANNOUNCE, 5), -EPIPE);
    cr_expect(shunt_exchange_gather_buffer(a, 2)); /* nothing reads from it */
    put_gather(a, 1, "still here");
    expect_gather(&p, &p.nodes[1].x, 0, "still here");
    close_party(&p);
}

/* A rack of one node has no transport. */
Test(exchange, is_silent_alone)
{
    struct shunt_exchange x = {.cfg = {.node_count = 1}};

    cr_expect_eq(shunt_exchange_poll(&x, NULL), 0);
    cr_expect_not(shunt_exchange_peer_waits(&x));
    shunt_exchange_next(&x);
    cr_expect_eq(x.tick, 1);
    shunt_exchange_close(&x);
}

/* ---- many ticks of several nodes, each at its own pace */

struct stamp {
    uint64_t tick;
    uint32_t from, to, kind;
    uint64_t count; /* of them in the message */
};

/* Where a node stands in its tick. */
struct walker {
    uint32_t gathered_to, results_to; /* peers that have been sent to */
    bool has_results;
};

struct walk {
    struct party party;
    struct walker walkers[NODES_MAX];
    uint64_t seed, random;
    uint64_t first_tick;
};

/* A message of random length that says in every word what it is. */
static uint64_t fill(struct walk *w, void *buffer, uint64_t room, uint32_t from, uint32_t to,
                     uint32_t kind)
{
    struct stamp stamp = {
        .tick = w->party.nodes[from].x.tick, .from = from, .to = to, .kind = kind};
    uint64_t count = 1 + random_below(&w->random, (uint32_t)(room / sizeof(stamp)));

    stamp.count = count;

    for (uint64_t i = 0; i < count; i++)
        memcpy((unsigned char *)buffer + i * sizeof(stamp), &stamp, sizeof(stamp));
    return count * sizeof(stamp);
}

static void check(struct walk *w, const void *message, uint32_t from, uint32_t to, uint32_t kind)
{
    struct stamp first;

    memcpy(&first, message, sizeof(first));
    for (uint64_t i = 0; i < first.count; i++) {
        struct stamp got;

        memcpy(&got, (const unsigned char *)message + i * sizeof(got), sizeof(got));
        cr_assert(got.tick == w->party.nodes[to].x.tick && got.from == from && got.to == to &&
                      got.kind == kind,
                  "seed %lu: tick %lu from %u to %u, in tick %lu from %u to %u", w->seed, got.tick,
                  got.from, got.to, w->party.nodes[to].x.tick, from, to);
    }
}

/* In every third tick results follow, to the place in the peer's area that is this rank's. */
static bool with_results(const struct shunt_exchange *x)
{
    return x->tick % 3 == 0;
}

static uint64_t results_room(const struct shunt_exchange *x)
{
    return x->results_bytes / NODES_MAX / 64 * 64;
}

static bool send_next(struct walk *w, uint32_t n)
{
    struct shunt_exchange *x = &w->party.nodes[n].x;
    struct walker *at = &w->walkers[n];
    void *buffer;

    if (at->gathered_to == n)
        at->gathered_to++;
    if (at->results_to == n)
        at->results_to++;
    if (at->gathered_to < w->party.node_count) {
        uint32_t peer = at->gathered_to;

        buffer = shunt_exchange_gather_buffer(x, peer);
        if (buffer && shunt_exchange_put_gather(
                          x, peer, SHUNT_WIRE_DISPATCH,
                          fill(w, buffer, x->gather_out_bytes, n, peer, SHUNT_WIRE_DISPATCH)) == 0)
            at->gathered_to++;
        return true;
    }
    if (with_results(x) && at->results_to < w->party.node_count) {
        uint32_t peer = at->results_to;

        if (!shunt_exchange_gathered(x, peer))
            return false; /* results answer a dispatch */
        buffer = shunt_exchange_results_buffer(x, peer);
        if (buffer && shunt_exchange_put_results(
                          x, peer, n * results_room(x),
                          fill(w, buffer, results_room(x), n, peer, SHUNT_WIRE_RESULTS)) == 0)
            at->results_to++;
        return true;
    }
    return false;
}

static void try_to_finish(struct walk *w, uint32_t n)
{
    struct shunt_exchange *x = &w->party.nodes[n].x;

    for (uint32_t peer = 0; peer < w->party.node_count; peer++)
        if (peer != n && (!shunt_exchange_gathered(x, peer) ||
                          (with_results(x) && !shunt_exchange_has_results(x, peer))))
            return;
    for (uint32_t peer = 0; peer < w->party.node_count; peer++) {
        if (peer == n)
            continue;
        check(w, shunt_exchange_gathered(x, peer), peer, n, SHUNT_WIRE_DISPATCH);
        if (with_results(x))
            check(w, shunt_exchange_results_area(x) + peer * results_room(x), peer, n,
                  SHUNT_WIRE_RESULTS);
    }
    shunt_exchange_next(x);
    w->walkers[n] = (struct walker){0};
}

static void walk_ticks(uint32_t node_count, uint64_t first_tick, uint32_t ticks, uint64_t seed)
{
    const uint32_t rows[NODES_MAX] = {5, 5, 5, 5};
    struct walk *w = calloc(1, sizeof(*w));
    int64_t deadline = shunt_now_ns() + 3 * WAIT_NS;
    uint32_t done = 0;

    cr_assert(w);
    w->seed = w->random = seed;
    open_party(&w->party, node_count, &small, rows);
    for (uint32_t n = 0; n < node_count; n++)
        w->party.nodes[n].x.tick = first_tick;
    while (done < node_count) {
        uint32_t n = random_below(&w->random, node_count);
        struct shunt_exchange *x = &w->party.nodes[n].x;
        struct shunt_error err = {0};

        cr_assert_lt(shunt_now_ns(), deadline, "seed %lu: stuck", seed);
        for (uint32_t other = 0; other < node_count; other++)
            cr_assert_leq(x->tick, w->party.nodes[other].x.tick + 1, "seed %lu", seed);
        if (random_below(&w->random, 3) == 0)
            cr_assert_eq(shunt_exchange_poll(x, &err), 0, "seed %lu: %s", seed, err.text);
        if (x->tick == first_tick + ticks || send_next(w, n))
            continue;
        try_to_finish(w, n);
        done += x->tick == first_tick + ticks;
    }
    close_party(&w->party);
    free(w);
}

Test(exchange, walks_many_ticks, .timeout = 100)
{
    for (uint32_t nodes = 2; nodes <= NODES_MAX; nodes++)
        walk_ticks(nodes, 0, 2000, nodes);
}

/* The immediate has the low 28 bits of the tick. */
Test(exchange, walks_past_the_wrap_of_the_immediate, .timeout = 100)
{
    walk_ticks(3, (1ull << 28) - 10, 30, 9);
    walk_ticks(2, (7ull << 28) - 3, 30, 10);
}

/* ---- over a net that delays, reorders and loses */

#define TALK_TICKS 30u

enum talk { GATHERING, GATHERED, ANSWERED };

/* A node of a talk: in each tick it sends something to everybody, answers what everybody sent, and
 * keeps all it was told. */
struct talker {
    struct shunt_exchange *x;
    enum talk state;
    uint32_t told; /* peers that have this stage's message, a bit each */
    uint64_t heard[TALK_TICKS][NODES_MAX][2];
};

/* What a message says: it differs for each tick and pair, and for an answer. */
static uint64_t saying(uint64_t tick, uint32_t from, uint32_t to, uint32_t answer)
{
    uint64_t state = tick * 1000 + from * 100 + to * 10 + answer;

    return random_next(&state);
}

static uint32_t peers_of(const struct talker *t)
{
    return ((1u << t->x->cfg.node_count) - 1) & ~(1u << t->x->cfg.rank);
}

/* Fills a message with what it says, so that bytes that are not there yet show. */
static void write_words(uint64_t *words, uint32_t count, uint64_t value)
{
    for (uint32_t i = 0; i < count; i++)
        words[i] = value;
}

static uint64_t read_words(const uint64_t *words, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        if (words[i] != words[0])
            return 0;
    return words[0];
}

static void tell(struct talker *t, uint32_t peer)
{
    struct shunt_exchange *x = t->x;
    bool answer = t->state == GATHERED;
    uint64_t *words =
        answer ? shunt_exchange_results_buffer(x, peer) : shunt_exchange_gather_buffer(x, peer);
    int rc;

    if (!words)
        return;
    write_words(words, 32, saying(x->tick, x->cfg.rank, peer, answer));
    rc = answer ? shunt_exchange_put_results(x, peer, 256ull * x->cfg.rank, 256)
                : shunt_exchange_put_gather(x, peer, SHUNT_WIRE_DISPATCH, 256);
    cr_assert(rc == 0 || rc == -EAGAIN);
    t->told |= rc == 0 ? 1u << peer : 0;
}

static bool has_heard(const struct talker *t, uint32_t peer)
{
    return t->state == GATHERING ? shunt_exchange_gathered(t->x, peer) != NULL
                                 : shunt_exchange_has_results(t->x, peer);
}

static void keep(struct talker *t, uint32_t peer)
{
    const unsigned char *results = shunt_exchange_results_area(t->x) + 256ull * peer;
    const void *words = t->state == GATHERING ? shunt_exchange_gathered(t->x, peer) : results;

    t->heard[t->x->tick][peer][t->state] = read_words(words, 32);
}

/* As far as it goes. */
static void talk_on(struct talker *t)
{
    uint32_t missing = 0;

    cr_assert_eq(shunt_exchange_poll(t->x, NULL), 0);
    for (uint32_t p = 0; p < t->x->cfg.node_count; p++) {
        if (!(peers_of(t) >> p & 1))
            continue;
        if (!(t->told >> p & 1))
            tell(t, p);
        missing += !has_heard(t, p);
    }
    if (missing > 0 || t->told != peers_of(t))
        return;
    for (uint32_t p = 0; p < t->x->cfg.node_count; p++)
        if (peers_of(t) >> p & 1)
            keep(t, p);
    t->told = 0;
    t->state = t->state == GATHERING ? GATHERED : ANSWERED;
    if (t->state == ANSWERED) {
        shunt_exchange_next(t->x);
        t->state = GATHERING;
    }
}

static void expect_talk(const struct talker *t, uint64_t seed)
{
    for (uint32_t tick = 0; tick < TALK_TICKS; tick++)
        for (uint32_t p = 0; p < t->x->cfg.node_count; p++)
            for (uint32_t answer = 0; p != t->x->cfg.rank && answer < 2; answer++)
                cr_assert_eq(t->heard[tick][p][answer], saying(tick, p, t->x->cfg.rank, answer),
                             "seed %lu: tick %u, rank %u of %u", seed, tick, t->x->cfg.rank, p);
}

/* Whatever the net does, and in whatever order the nodes are called: all hear what they would hear
 * in order. */
Test(exchange, hears_the_same_over_any_net, .timeout = 100)
{
    const struct shunt_wire_shape shape = {
        .expert_count = 4, .used_count = 2, .hidden = 64, .layer_count = 1};
    const uint32_t rows[] = {4, 4, 4, 4};

    for (uint64_t seed = 1; seed <= 60; seed++) {
        const struct shunt_loopback_config cfg = {
            .seed = seed,
            .node_count = NODES_MAX,
            .delay_max_ns = seed % 5 * 20 * SHUNT_NS_PER_US,
            .loss_per_mille = (uint32_t)(seed % 3 * 100),
            .retry_max = 30,
            .rto_ns = SHUNT_NS_PER_MS / 10,
        };
        struct talker talkers[NODES_MAX] = {0};
        struct shunt_loopback_net *net;
        uint64_t random = seed;
        uint32_t left = 1;
        struct party p;

        cr_assert_eq(shunt_loopback_create(&net, &cfg, NULL), 0);
        open_party_on(&p, NODES_MAX, &shape, rows, net);
        for (uint32_t n = 0; n < NODES_MAX; n++)
            talkers[n].x = &p.nodes[n].x;
        for (uint64_t calls = 0; left > 0; calls++) {
            uint32_t n = random_below(&random, NODES_MAX);

            cr_assert_lt(calls, 100000000u, "seed %lu: no end", seed);
            if (talkers[n].x->tick < TALK_TICKS)
                talk_on(&talkers[n]);
            else
                cr_assert_eq(shunt_exchange_poll(talkers[n].x, NULL), 0);
            left = 0;
            for (uint32_t i = 0; i < NODES_MAX; i++)
                left += talkers[i].x->tick < TALK_TICKS;
        }
        for (uint32_t n = 0; n < NODES_MAX; n++)
            expect_talk(&talkers[n], seed);
        close_party(&p);
        shunt_loopback_destroy(net);
    }
}
