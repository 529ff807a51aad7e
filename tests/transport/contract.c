/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/transport/contract.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/base/clock.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"

#define WAIT_MS 20000
#define MIB     (1u << 20)

/* ---- memory that puts read from: one piece, named by every node at open */

#define ROOM_BYTES (80ull * MIB)

static unsigned char *room; /* ROOM_BYTES */
static uint64_t room_used;

static void *take_room(uint64_t bytes)
{
    void *at;

    if (!room)
        room = mmap(NULL, ROOM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert(room != MAP_FAILED && bytes <= ROOM_BYTES - room_used);
    at = room + room_used;
    room_used += (bytes + 63) / 64 * 64;
    return at;
}

static void *take_copy(const void *bytes, uint64_t len)
{
    return memcpy(take_room(len), bytes, len);
}

/* ---- nodes in one thread */

struct opening {
    struct mesh *m;
    uint32_t n;
    const struct shunt_stream *streams;
    const uint64_t *inbox_bytes;
    int rc;
    struct shunt_error err;
};

static void open_node(void *arg)
{
    struct opening *o = arg;
    struct mesh *m = o->m;
    uint32_t n = o->n;
    const uint64_t *inbox_bytes = o->inbox_bytes;
    struct mesh_node *node = &m->nodes[n];
    const struct shunt_region memory = {.base = room, .bytes = ROOM_BYTES, .fd = -1};
    const struct shunt_patience patience = {.deadline_ns =
                                                shunt_deadline_ns(WAIT_MS * SHUNT_NS_PER_MS)};

    node->inbox_bytes = inbox_bytes[n];
    node->room = calloc(1, inbox_bytes[n] + 2 * MESH_GUARD);
    cr_assert(node->room);
    node->inbox = node->room + MESH_GUARD;
    memset(node->room, 0x5a, MESH_GUARD);
    memset(node->inbox + inbox_bytes[n], 0x5a, MESH_GUARD);
    o->rc =
        m->backend->ops->open(&node->t,
                              &(struct shunt_transport_config){
                                  .rank = n,
                                  .node_count = m->node_count,
                                  .streams = o->streams,
                                  .inbox = {.base = node->inbox, .bytes = inbox_bytes[n], .fd = -1},
                                  .peer_inbox_bytes = inbox_bytes,
                                  .memory = &memory,
                                  .memory_count = 1,
                                  .patience = &patience,
                              },
                              &o->err);
}

void mesh_open(struct mesh *m, const struct transport_backend *backend, uint32_t node_count,
               const uint64_t *inbox_bytes, bool star)
{
    static struct shunt_stream streams[MESH_NODES_MAX][MESH_NODES_MAX];
    static struct opening openings[MESH_NODES_MAX];

    take_room(0); /* it is there */
    memset(m, 0, sizeof(*m));
    m->backend = backend;
    m->node_count = node_count;
    for (uint32_t a = 0; a < node_count; a++)
        for (uint32_t b = 0; b < node_count; b++)
            streams[a][b] = SHUNT_STREAM_NONE;
    for (uint32_t a = 0; a < node_count; a++) {
        for (uint32_t b = a + 1; b < node_count && (a == 0 || !star); b++) {
            int pair[2];

            struct shunt_stream ends[2];

            backend->connect(pair);
            ends[0] = (struct shunt_stream){.fd = pair[0]};
            ends[1] = (struct shunt_stream){.fd = pair[1]};
            if (backend->secure)
                backend->secure(ends);
            streams[a][b] = ends[0];
            streams[b][a] = ends[1];
        }
    }
    for (uint32_t n = 0; n < node_count; n++)
        openings[n] =
            (struct opening){.m = m, .n = n, .streams = streams[n], .inbox_bytes = inbox_bytes};
    at_once(node_count, open_node, openings, sizeof(openings[0]));
    for (uint32_t n = 0; n < node_count; n++)
        cr_assert_eq(openings[n].rc, 0, "%s", openings[n].err.text);
}

static bool guard_stands(const unsigned char *guard)
{
    for (uint32_t i = 0; i < MESH_GUARD; i++)
        if (guard[i] != 0x5a)
            return false;
    return true;
}

static void close_node(struct mesh *m, uint32_t n)
{
    m->backend->ops->close(m->nodes[n].t);
    m->nodes[n].t = NULL;
}

void mesh_close(struct mesh *m)
{
    for (uint32_t n = 0; n < m->node_count; n++) {
        struct mesh_node *node = &m->nodes[n];

        cr_expect(guard_stands(node->room) && guard_stands(node->inbox + node->inbox_bytes),
                  "node %u: written outside its inbox", n);
        close_node(m, n);
        free(node->room);
    }
}

/* Sleeps until some node could go on. With all of them in this thread, nothing else can happen: if
 * this times out, somebody's wake-up is missing. */
static void sleep_on_all(struct mesh *m)
{
    static struct pollfd fds[MESH_NODES_MAX * MESH_NODES_MAX];
    uint32_t count = 0;

    for (uint32_t n = 0; n < m->node_count; n++)
        if (m->nodes[n].t)
            count += m->backend->ops->prepare(m->nodes[n].t, fds + count, MESH_NODES_MAX);
    cr_assert_gt(poll(fds, count, WAIT_MS), 0, "nobody can go on");
}

static uint32_t poll_node(struct mesh *m, uint32_t n, struct shunt_completion *out, uint32_t max)
{
    uint32_t count = m->nodes[n].t ? m->backend->ops->poll(m->nodes[n].t, out, max) : 0;

    cr_assert_leq(count, max);
    for (uint32_t i = 0; i < count; i++)
        if (out[i].event == SHUNT_TRANSPORT_ARRIVED && !m->keeps)
            m->backend->ops->release(m->nodes[n].t, out[i].peer, 1);
    return count;
}

uint32_t mesh_move(struct mesh *m)
{
    uint32_t moved = 0;

    for (uint32_t n = 0; n < m->node_count; n++) {
        struct mesh_node *node = &m->nodes[n];
        uint32_t space = 4 * SHUNT_TRANSPORT_DEPTH - node->waiting_count;
        uint32_t count = poll_node(m, n, node->waiting + node->waiting_count, space ? 1 : 0);

        node->waiting_count += count;
        moved += count;
    }
    return moved;
}

struct shunt_completion mesh_next(struct mesh *m, uint32_t n)
{
    int64_t deadline = shunt_now_ns() + WAIT_MS * SHUNT_NS_PER_MS;
    struct mesh_node *node = &m->nodes[n];
    struct shunt_completion c;

    while (node->waiting_count == 0) {
        cr_assert_lt(shunt_now_ns(), deadline, "node %u gets nothing", n);
        if (mesh_move(m) == 0)
            sleep_on_all(m);
    }
    c = node->waiting[0];
    memmove(node->waiting, node->waiting + 1, --node->waiting_count * sizeof(c));
    return c;
}

static int put(struct mesh *m, uint32_t from, uint32_t to, const void *src, uint64_t bytes,
               uint64_t off, uint32_t imm)
{
    return m->backend->ops->put(m->nodes[from].t, to, src, bytes, off, imm);
}

static void expect_sent(struct mesh *m, uint32_t n, uint32_t peer, uint32_t imm)
{
    struct shunt_completion c = mesh_next(m, n);

    cr_assert(c.event == SHUNT_TRANSPORT_SENT && c.peer == peer && c.imm == imm,
              "event %d peer %u imm %u, SENT of %u to %u was due", c.event, c.peer, c.imm, imm,
              peer);
}

static void expect_arrived(struct mesh *m, uint32_t n, uint32_t peer, uint32_t imm)
{
    struct shunt_completion c = mesh_next(m, n);

    cr_assert(c.event == SHUNT_TRANSPORT_ARRIVED && c.peer == peer && c.imm == imm,
              "event %d peer %u imm %u, ARRIVED of %u from %u was due", c.event, c.peer, c.imm, imm,
              peer);
}

static unsigned char *pattern(uint64_t seed, uint64_t bytes)
{
    unsigned char *p = take_room(bytes);

    random_fill(&seed, p, bytes);
    return p;
}

/* ---- checks */

void transport_keeps_order_and_shows_bytes(const struct transport_backend *backend)
{
    static const uint64_t sizes[] = {1, 0, 100, 65535, 65536, 65537, 7, 200000};
    const uint64_t inboxes[] = {16, 8 * 200000};
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    for (uint32_t round = 0; round < 50; round++) {
        unsigned char *bytes = pattern(round, 200000 + 8);

        for (uint32_t i = 0; i < 8; i++)
            cr_assert_eq(put(&m, 0, 1, bytes + i, sizes[i], i * 200000, round * 8 + i), 0);
        for (uint32_t i = 0; i < 8; i++) {
            expect_arrived(&m, 1, 0, round * 8 + i);
            cr_assert_eq(memcmp(m.nodes[1].inbox + i * 200000, bytes + i, sizes[i]), 0,
                         "round %u put %u", round, i);
        }
        for (uint32_t i = 0; i < 8; i++)
            expect_sent(&m, 0, 1, round * 8 + i);
        room_used = 0;
    }
    mesh_close(&m);
}

void transport_takes_any_size_that_fits(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 5 * MIB + 3};
    unsigned char *bytes = pattern(1, inboxes[1]);
    const struct shunt_transport_counters *c;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    cr_expect_eq(put(&m, 0, 1, bytes, inboxes[1] + 1, 0, 1), -EINVAL);
    cr_expect_eq(put(&m, 0, 1, bytes, inboxes[1], 1, 1), -EINVAL);
    cr_expect_eq(put(&m, 0, 1, bytes, 1, inboxes[1], 1), -EINVAL);
    cr_expect_eq(put(&m, 0, 1, bytes, 0, inboxes[1] + 1, 1), -EINVAL);
    cr_expect_eq(put(&m, 0, 1, bytes, UINT64_MAX, 2, 1), -EINVAL);
    cr_expect_eq(put(&m, 0, 1, bytes, 2, UINT64_MAX, 1), -EINVAL);
    cr_expect_eq(put(&m, 1, 0, bytes, 1, 0, 1), -EINVAL); /* an inbox of nothing */
    cr_expect_eq(put(&m, 0, 0, bytes, 0, 0, 1), -EINVAL);
    cr_expect_eq(put(&m, 0, 2, bytes, 0, 0, 1), -EINVAL);
    cr_expect_eq(put(&m, 0, UINT32_MAX, bytes, 0, 0, 1), -EINVAL);
    cr_expect_eq(mesh_move(&m), 0);
    cr_assert_eq(put(&m, 0, 1, bytes, inboxes[1], 0, UINT32_MAX), 0);
    cr_assert_eq(put(&m, 0, 1, NULL, 0, inboxes[1], 0), 0);
    expect_arrived(&m, 1, 0, UINT32_MAX);
    cr_expect_eq(memcmp(m.nodes[1].inbox, bytes, inboxes[1]), 0);
    expect_arrived(&m, 1, 0, 0);
    cr_assert_eq(put(&m, 1, 0, NULL, 0, 0, 9), 0);
    expect_sent(&m, 1, 0, 9);
    c = backend->ops->counters(m.nodes[1].t);
    cr_expect(c->puts_received == 2 && c->bytes_received == inboxes[1]);
    cr_expect(c->puts_sent == 1 && c->bytes_sent == 0);
    mesh_close(&m);
}

void transport_takes_depth_puts_and_no_more(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 64, 64};
    struct shunt_completion c[16];
    struct mesh m;

    mesh_open(&m, backend, 3, inboxes, false);
    for (uint32_t round = 0; round < 100; round++) {
        uint32_t arrived = 0, sent = 0, sent_to_2 = 0;
        unsigned char *bytes = take_room(64);

        memset(bytes, (int)round, 64);
        for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
            cr_assert_eq(put(&m, 0, 1, bytes, 8, i * 8, i), 0);
        cr_assert_eq(put(&m, 0, 1, bytes, 5, 0, 99), -EAGAIN);
        cr_assert_eq(put(&m, 0, 2, bytes, 8, 0, 50), 0); /* another peer has its own */
        while (arrived < SHUNT_TRANSPORT_DEPTH || sent + sent_to_2 < SHUNT_TRANSPORT_DEPTH + 1) {
            uint32_t n = poll_node(&m, 0, c, 1 + round % 16);
            uint32_t moved = n;

            for (uint32_t i = 0; i < n; i++) {
                cr_assert_eq(c[i].event, SHUNT_TRANSPORT_SENT);
                cr_assert_eq(c[i].imm, c[i].peer == 1 ? sent++ : 50 + sent_to_2++);
            }
            moved += n = poll_node(&m, 1, c, 16);
            for (uint32_t i = 0; i < n; i++, arrived++)
                cr_assert(c[i].event == SHUNT_TRANSPORT_ARRIVED && c[i].imm == arrived);
            if (moved == 0)
                sleep_on_all(&m);
        }
        cr_assert(sent == SHUNT_TRANSPORT_DEPTH && sent_to_2 == 1);
        cr_assert_eq(memcmp(m.nodes[1].inbox, bytes, 64), 0);
        expect_arrived(&m, 2, 0, 50);
        cr_assert_eq(mesh_move(&m), 0);
    }
    mesh_close(&m);
}

/* What has been sent stays open until its SENT was taken. */
void transport_counts_puts_until_sent_is_taken(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 64};
    const void *x = take_copy("x", 1), *y = take_copy("y", 1);
    struct shunt_completion c;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
        cr_assert_eq(put(&m, 0, 1, x, 1, i, i), 0);
    for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++) {
        cr_expect_eq(put(&m, 0, 1, y, 1, 0, 99), -EAGAIN);
        while (poll_node(&m, 0, &c, 1) == 0)
            sleep_on_all(&m);
        cr_expect_eq(c.imm, i);
        cr_expect_eq(put(&m, 0, 1, x, 1, i, SHUNT_TRANSPORT_DEPTH + i), 0);
    }
    for (uint32_t i = 0; i < 2 * SHUNT_TRANSPORT_DEPTH; i++)
        expect_arrived(&m, 1, 0, i);
    mesh_close(&m);
}

/* Large puts that the receiver does not take: their sources are still read. */
void transport_leaves_the_source_alone_until_sent(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 8 * 4 * MIB};
    unsigned char *bytes = pattern(5, 4 * MIB);
    unsigned char *sources[SHUNT_TRANSPORT_DEPTH];
    uint32_t arrived = 0, sent = 0;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++) {
        sources[i] = take_copy(bytes, 4 * MIB);
        cr_assert_eq(put(&m, 0, 1, sources[i], 4 * MIB, i * 4ull * MIB, i), 0);
    }
    while (arrived < SHUNT_TRANSPORT_DEPTH || sent < SHUNT_TRANSPORT_DEPTH) {
        struct shunt_completion c;
        uint32_t moved = poll_node(&m, 0, &c, 1);

        if (moved) {
            cr_assert_eq(c.imm, sent);
            memset(sources[sent++], 0xff, 4 * MIB);
        }
        if (poll_node(&m, 1, &c, 1)) {
            cr_assert_eq(memcmp(m.nodes[1].inbox + c.imm * 4ull * MIB, bytes, 4 * MIB), 0, "put %u",
                         c.imm);
            arrived++;
        } else if (!moved) {
            sleep_on_all(&m);
        }
    }
    mesh_close(&m);
}

/* Everybody sends as much as may be open to everybody before anybody polls. */
void transport_moves_both_directions_at_once(const struct transport_backend *backend)
{
    enum { NODES = 4 };
    const uint64_t inboxes[NODES] = {NODES * MIB, NODES * MIB, NODES * MIB, NODES * MIB};
    uint32_t arrived[NODES] = {0}, sent[NODES] = {0}, done = 0;
    unsigned char *bytes[NODES];
    struct mesh m;

    mesh_open(&m, backend, NODES, inboxes, false);
    for (uint32_t a = 0; a < NODES; a++) {
        bytes[a] = pattern(a, MIB);
        for (uint32_t b = 0; b < NODES; b++)
            for (uint32_t i = 0; b != a && i < SHUNT_TRANSPORT_DEPTH; i++)
                cr_assert_eq(put(&m, a, b, bytes[a], MIB, a * MIB, i), 0);
    }
    while (done < 2 * NODES * (NODES - 1) * SHUNT_TRANSPORT_DEPTH) {
        uint32_t before = done;

        for (uint32_t n = 0; n < NODES; n++) {
            struct shunt_completion c[4];
            uint32_t count = poll_node(&m, n, c, 4);

            for (uint32_t i = 0; i < count; i++)
                ++*(c[i].event == SHUNT_TRANSPORT_SENT ? &sent[n] : &arrived[n]);
            done += count;
        }
        if (done == before)
            sleep_on_all(&m);
    }
    for (uint32_t n = 0; n < NODES; n++) {
        cr_expect_eq(sent[n], (NODES - 1) * SHUNT_TRANSPORT_DEPTH);
        cr_expect_eq(arrived[n], (NODES - 1) * SHUNT_TRANSPORT_DEPTH);
        for (uint32_t peer = 0; peer < NODES; peer++)
            cr_expect(peer == n || !memcmp(m.nodes[n].inbox + peer * MIB, bytes[peer], MIB));
    }
    mesh_close(&m);
}

/* As many as a rack may have; all of them heard, however few completions are taken at a time. */
void transport_serves_many_peers(const struct transport_backend *backend)
{
    uint64_t inboxes[MESH_NODES_MAX];
    uint64_t seen = 1;
    struct mesh m;

    for (uint32_t n = 0; n < MESH_NODES_MAX; n++)
        inboxes[n] = MESH_NODES_MAX;
    mesh_open(&m, backend, MESH_NODES_MAX, inboxes, true);
    for (uint32_t n = 1; n < MESH_NODES_MAX; n++) {
        const unsigned char byte = (unsigned char)n;

        cr_assert_eq(put(&m, n, 0, take_copy(&byte, 1), 1, n, n), 0);
        expect_sent(&m, n, 0, n);
        cr_assert_eq(put(&m, 0, n, take_copy("x", 1), 1, 0, n), 0);
    }
    for (uint32_t left = 2 * (MESH_NODES_MAX - 1); left > 0; left--) {
        struct shunt_completion c = mesh_next(&m, 0);

        if (c.event != SHUNT_TRANSPORT_ARRIVED)
            continue;
        cr_assert(c.imm == c.peer && m.nodes[0].inbox[c.peer] == c.peer);
        cr_assert_not(seen >> c.peer & 1);
        seen |= 1ull << c.peer;
    }
    cr_expect_eq(seen, UINT64_MAX);
    for (uint32_t n = 1; n < MESH_NODES_MAX; n++)
        expect_arrived(&m, n, 0, n);
    mesh_close(&m);
}

/* A ring of as many areas as the window has puts: the sender runs ahead as far as it may, the
 * receiver releases some now and then, and what it has not released stays as it was put. */
void transport_overwrites_nothing_without_credit(const struct transport_backend *backend)
{
    enum { AREA_BYTES = 96, PUTS = 1000 };
    const uint64_t inboxes[] = {SHUNT_TRANSPORT_WINDOW * AREA_BYTES, 0};
    unsigned char *sources = take_room(SHUNT_TRANSPORT_DEPTH * AREA_BYTES);
    uint32_t posted = 0, sent = 0, arrived = 0, released = 0;
    uint64_t random = 11;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    m.keeps = true;
    while (released < PUTS) {
        struct shunt_completion c;
        bool held = arrived - released == SHUNT_TRANSPORT_WINDOW;

        while (posted < PUTS && posted - sent < SHUNT_TRANSPORT_DEPTH) {
            unsigned char *source = sources + posted % SHUNT_TRANSPORT_DEPTH * AREA_BYTES;

            memset(source, (int)posted + 1, AREA_BYTES);
            cr_assert_eq(put(&m, 1, 0, source, AREA_BYTES,
                             posted % SHUNT_TRANSPORT_WINDOW * AREA_BYTES, posted),
                         0);
            posted++;
        }
        while (poll_node(&m, 1, &c, 1)) {
            cr_assert(c.event == SHUNT_TRANSPORT_SENT && c.imm == sent);
            sent++;
        }
        while (poll_node(&m, 0, &c, 1)) {
            cr_assert(c.event == SHUNT_TRANSPORT_ARRIVED && c.imm == arrived);
            arrived++;
        }
        cr_assert_leq(arrived - released, SHUNT_TRANSPORT_WINDOW);
        for (uint32_t i = released; i < arrived; i++) {
            const unsigned char *area = m.nodes[0].inbox + i % SHUNT_TRANSPORT_WINDOW * AREA_BYTES;

            for (uint32_t b = 0; b < AREA_BYTES; b++)
                cr_assert_eq(area[b], (unsigned char)(i + 1), "put %u of %u released", i, released);
        }
        if (held || arrived == PUTS || random_below(&random, 8) == 0) {
            uint32_t count = random_below(&random, arrived - released + 1);

            backend->ops->release(m.nodes[0].t, 1, count);
            released += count;
        }
    }
    mesh_close(&m);
}

void transport_says_once_that_a_peer_is_lost(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {64, 64, 64};
    struct shunt_completion c;
    uint32_t events = 0;
    struct mesh m;

    mesh_open(&m, backend, 3, inboxes, false);
    close_node(&m, 1);
    c = mesh_next(&m, 0);
    cr_expect(c.event == SHUNT_TRANSPORT_LOST && c.peer == 1);
    cr_expect(c.error == -ECONNRESET && c.reason && *c.reason);
    for (uint32_t i = 0; i < 3; i++) {
        cr_expect_eq(put(&m, 0, 1, room, 1, 0, 1), -EPIPE);
        cr_expect_eq(poll_node(&m, 0, &c, 1), 0);
    }
    /* The others go on. */
    cr_assert_eq(put(&m, 0, 2, room, 1, 3, 7), 0);
    for (uint32_t i = 0; i < 2; i++) { /* in either order */
        c = mesh_next(&m, 2);
        cr_expect(c.event == (c.peer == 1 ? SHUNT_TRANSPORT_LOST : SHUNT_TRANSPORT_ARRIVED));
        events |= 1u << c.event;
    }
    cr_expect_eq(events, 1u << SHUNT_TRANSPORT_LOST | 1u << SHUNT_TRANSPORT_ARRIVED);
    expect_sent(&m, 0, 2, 7);
    mesh_close(&m);
}

/* Whole messages of a peer that is gone are handed out first, however slowly they are taken. */
void transport_hands_out_what_came_before_the_loss(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {8 * 100000, 0};
    unsigned char *bytes = pattern(3, 100000);
    struct shunt_completion c;
    struct mesh m;

    for (uint64_t size = 0; size <= 100000; size = size * 10 + 10) {
        mesh_open(&m, backend, 2, inboxes, false);
        for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
            cr_assert_eq(put(&m, 1, 0, bytes, size, i * 100000, i), 0);
        for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
            expect_sent(&m, 1, 0, i);
        close_node(&m, 1);
        for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++) {
            expect_arrived(&m, 0, 1, i);
            cr_assert_eq(memcmp(m.nodes[0].inbox + i * 100000, bytes, size), 0);
        }
        c = mesh_next(&m, 0);
        cr_assert_eq(c.event, SHUNT_TRANSPORT_LOST);
        mesh_close(&m);
    }
}

/* ---- against a model */

#define MODEL_NODES 3u
#define AREA        (300u << 10) /* each node's own in each inbox */
#define IN_FLIGHT   (SHUNT_TRANSPORT_DEPTH + 4096u)

struct message {
    uint64_t off, bytes;
    uint32_t imm;
    unsigned char *copy;
};

/* One direction of a pair. */
struct link {
    struct message sent[SHUNT_TRANSPORT_DEPTH]; /* no SENT yet, oldest first */
    unsigned char *sources; /* [SHUNT_TRANSPORT_DEPTH + 1][AREA], used in turn */
    uint64_t next_source, first_source;
    uint32_t sent_count;
    struct message flying[IN_FLIGHT]; /* not ARRIVED yet, oldest first */
    uint32_t flying_count;
    uint32_t next_imm;
};

struct model {
    struct mesh mesh;
    struct link links[MODEL_NODES][MODEL_NODES]; /* [from][to] */
    unsigned char *images[MODEL_NODES];
    uint64_t seed, random;
};

static void model_put(struct model *m, uint32_t from, uint32_t to)
{
    struct link *l = &m->links[from][to];
    uint32_t kind = random_below(&m->random, 20);
    uint64_t most = kind == 0 ? AREA : kind < 3 ? 70000 : kind < 18 ? 3000 : 1;
    uint64_t bytes = random_below(&m->random, (uint32_t)most);
    uint64_t off = (uint64_t)from * AREA + random_below(&m->random, (uint32_t)(AREA - bytes));
    unsigned char *source = l->sources + (l->next_source++ % (SHUNT_TRANSPORT_DEPTH + 1)) * AREA;
    unsigned char *copy = malloc(bytes + 1);
    struct message message = {.off = off, .bytes = bytes, .imm = l->next_imm, .copy = copy};
    int rc;

    cr_assert(copy && l->flying_count < IN_FLIGHT);
    memset(source, (int)random_next(&m->random), bytes);
    if (bytes > 16)
        random_fill(&m->random, source + random_below(&m->random, (uint32_t)bytes - 16), 16);
    memcpy(copy, source, bytes);
    rc = put(&m->mesh, from, to, source, bytes, off, l->next_imm);
    cr_assert_eq(rc, l->sent_count == SHUNT_TRANSPORT_DEPTH ? -EAGAIN : 0, "seed %lu", m->seed);
    if (rc) {
        l->next_source--;
        free(copy);
        return;
    }
    l->next_imm++;
    l->sent[l->sent_count++] = message;
    l->flying[l->flying_count++] = message;
}

static void model_sent(struct model *m, uint32_t from, const struct shunt_completion *c)
{
    struct link *l = &m->links[from][c->peer];

    cr_assert_gt(l->sent_count, 0, "seed %lu", m->seed);
    cr_assert_eq(c->imm, l->sent[0].imm, "seed %lu: SENT", m->seed);
    /* It is ours again. */
    memset(l->sources + (l->first_source++ % (SHUNT_TRANSPORT_DEPTH + 1)) * AREA, 0xdd,
           l->sent[0].bytes);
    l->sent_count--;
    memmove(l->sent, l->sent + 1, l->sent_count * sizeof(*l->sent));
}

/* Bytes of a later put of the same sender may lie over it already. */
static bool is_overtaken(const struct link *l, const struct message *message)
{
    for (uint32_t i = 1; i < l->flying_count; i++)
        if (l->flying[i].off < message->off + message->bytes &&
            message->off < l->flying[i].off + l->flying[i].bytes)
            return true;
    return false;
}

static void model_arrived(struct model *m, uint32_t to, const struct shunt_completion *c)
{
    struct link *l = &m->links[c->peer][to];
    const struct message *first = &l->flying[0];

    cr_assert_gt(l->flying_count, 0, "seed %lu", m->seed);
    cr_assert_eq(c->imm, first->imm, "seed %lu: ARRIVED", m->seed);
    if (!is_overtaken(l, first))
        cr_assert_eq(memcmp(m->mesh.nodes[to].inbox + first->off, first->copy, first->bytes), 0,
                     "seed %lu: %u from %u is not there", m->seed, c->imm, c->peer);
    memcpy(m->images[to] + first->off, first->copy, first->bytes);
    free(first->copy);
    l->flying_count--;
    memmove(l->flying, l->flying + 1, l->flying_count * sizeof(*l->flying));
}

static uint32_t model_poll(struct model *m, uint32_t n, uint32_t max)
{
    struct shunt_completion c[16];
    uint32_t count = poll_node(&m->mesh, n, c, max);

    for (uint32_t i = 0; i < count; i++) {
        cr_assert(c[i].event == SHUNT_TRANSPORT_SENT || c[i].event == SHUNT_TRANSPORT_ARRIVED,
                  "seed %lu: node %u has lost %u: %s", m->seed, n, c[i].peer, c[i].reason);
        if (c[i].event == SHUNT_TRANSPORT_SENT)
            model_sent(m, n, &c[i]);
        else
            model_arrived(m, n, &c[i]);
    }
    return count;
}

static uint32_t model_open_messages(const struct model *m)
{
    uint32_t count = 0;

    for (uint32_t a = 0; a < MODEL_NODES; a++)
        for (uint32_t b = 0; b < MODEL_NODES; b++)
            count += m->links[a][b].sent_count + m->links[a][b].flying_count;
    return count;
}

static void model_run(struct model *m, uint32_t operations)
{
    for (uint32_t i = 0; i < operations; i++) {
        uint32_t n = random_below(&m->random, MODEL_NODES);

        if (random_below(&m->random, 3) == 0)
            model_put(m, n, (n + 1 + random_below(&m->random, MODEL_NODES - 1)) % MODEL_NODES);
        else
            model_poll(m, n, random_below(&m->random, 17));
    }
    while (model_open_messages(m) > 0) {
        uint32_t moved = 0;

        for (uint32_t n = 0; n < MODEL_NODES; n++)
            moved += model_poll(m, n, 16);
        if (moved == 0)
            sleep_on_all(&m->mesh);
    }
    for (uint32_t n = 0; n < MODEL_NODES; n++)
        cr_assert_eq(memcmp(m->images[n], m->mesh.nodes[n].inbox, MODEL_NODES * AREA), 0,
                     "seed %lu: node %u", m->seed, n);
}

void transport_behaves_like_its_model(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {MODEL_NODES * AREA, MODEL_NODES * AREA, MODEL_NODES * AREA};
    struct model *m = malloc(sizeof(*m));

    cr_assert(m);
    for (uint64_t seed = 1; seed <= 10; seed++) {
        memset(m, 0, sizeof(*m));
        m->seed = m->random = seed;
        room_used = 0;
        for (uint32_t a = 0; a < MODEL_NODES; a++)
            for (uint32_t b = 0; b < MODEL_NODES; b++)
                m->links[a][b].sources = take_room((SHUNT_TRANSPORT_DEPTH + 1) * AREA);
        mesh_open(&m->mesh, backend, MODEL_NODES, inboxes, false);
        for (uint32_t n = 0; n < MODEL_NODES; n++) {
            m->images[n] = calloc(1, MODEL_NODES * AREA);
            cr_assert(m->images[n]);
        }
        model_run(m, 12000);
        mesh_close(&m->mesh);
        for (uint32_t n = 0; n < MODEL_NODES; n++)
            free(m->images[n]);
    }
    free(m);
}
