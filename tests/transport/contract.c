/* SPDX-License-Identifier: Apache-2.0
 *
 * Puts, credit and sleep between peers that are there.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"
#include "tests/transport/contract.h"

void transport_keeps_order_and_shows_bytes(const struct transport_backend *backend)
{
    /* Around those at which a transport goes another way. A prime number of them: each takes every
     * place among the puts of a round. */
    static const uint64_t sizes[] = {1,     0,     100,   4095,  4096,  4097,  20447, 20448,
                                     20449, 20479, 20480, 20481, 24543, 24544, 24545, 24575,
                                     24576, 24577, 65535, 65536, 65537, 7,     200000};
    const uint32_t count = sizeof(sizes) / sizeof(sizes[0]);
    const uint64_t inboxes[] = {16, 8 * 200000};
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    for (uint32_t round = 0; round < 50; round++) {
        unsigned char *bytes = mesh_pattern(round, 200000 + 8);
        uint64_t len[8];

        for (uint32_t i = 0; i < 8; i++) {
            len[i] = sizes[(round * 8 + i) % count];
            cr_assert_eq(mesh_put(&m, 0, 1, bytes + i, len[i], i * 200000, round * 8 + i), 0);
        }
        for (uint32_t i = 0; i < 8; i++) {
            mesh_expect_arrived(&m, 1, 0, round * 8 + i);
            cr_assert_eq(memcmp(m.nodes[1].inbox + i * 200000, bytes + i, len[i]), 0,
                         "round %u put %u", round, i);
        }
        for (uint32_t i = 0; i < 8; i++)
            mesh_expect_sent(&m, 0, 1, round * 8 + i);
        room_used = 0;
    }
    mesh_close(&m);
}

void transport_takes_any_size_that_fits(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 5 * MIB + 3};
    unsigned char *bytes = mesh_pattern(1, inboxes[1]);
    const struct shunt_transport_counters *c;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    cr_expect_eq(mesh_put(&m, 0, 1, bytes, inboxes[1] + 1, 0, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, bytes, inboxes[1], 1, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, bytes, 1, inboxes[1], 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, bytes, 0, inboxes[1] + 1, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, bytes, UINT64_MAX, 2, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, bytes, 2, UINT64_MAX, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 1, 0, bytes, 1, 0, 1), -EINVAL); /* an inbox of nothing */
    cr_expect_eq(mesh_put(&m, 0, 0, bytes, 0, 0, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 2, bytes, 0, 0, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, UINT32_MAX, bytes, 0, 0, 1), -EINVAL);
    cr_expect_eq(mesh_move(&m), 0);
    cr_assert_eq(mesh_put(&m, 0, 1, bytes, inboxes[1], 0, UINT32_MAX), 0);
    cr_assert_eq(mesh_put(&m, 0, 1, NULL, 0, inboxes[1], 0), 0);
    mesh_expect_arrived(&m, 1, 0, UINT32_MAX);
    cr_expect_eq(memcmp(m.nodes[1].inbox, bytes, inboxes[1]), 0);
    mesh_expect_arrived(&m, 1, 0, 0);
    cr_assert_eq(mesh_put(&m, 1, 0, NULL, 0, 0, 9), 0);
    mesh_expect_sent(&m, 1, 0, 9);
    c = backend->ops->counters(m.nodes[1].t);
    cr_expect(c->puts_received == 2);
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
        unsigned char *bytes = mesh_room(64);

        memset(bytes, (int)round, 64);
        for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
            cr_assert_eq(mesh_put(&m, 0, 1, bytes, 8, i * 8, i), 0);
        cr_assert_eq(mesh_put(&m, 0, 1, bytes, 5, 0, 99), -EAGAIN);
        cr_assert_eq(mesh_put(&m, 0, 2, bytes, 8, 0, 50), 0); /* another peer has its own */
        while (arrived < SHUNT_TRANSPORT_DEPTH || sent + sent_to_2 < SHUNT_TRANSPORT_DEPTH + 1) {
            uint32_t n = mesh_poll(&m, 0, c, 1 + round % 16);
            uint32_t moved = n;

            for (uint32_t i = 0; i < n; i++) {
                cr_assert_eq(c[i].event, SHUNT_TRANSPORT_SENT);
                cr_assert_eq(c[i].imm, c[i].peer == 1 ? sent++ : 50 + sent_to_2++);
            }
            moved += n = mesh_poll(&m, 1, c, 16);
            for (uint32_t i = 0; i < n; i++, arrived++)
                cr_assert(c[i].event == SHUNT_TRANSPORT_ARRIVED && c[i].imm == arrived);
            if (moved == 0)
                mesh_sleep(&m);
        }
        cr_assert(sent == SHUNT_TRANSPORT_DEPTH && sent_to_2 == 1);
        cr_assert_eq(memcmp(m.nodes[1].inbox, bytes, 64), 0);
        mesh_expect_arrived(&m, 2, 0, 50);
        cr_assert_eq(mesh_move(&m), 0);
    }
    mesh_close(&m);
}

/* What has been sent stays open until its SENT was taken. */
void transport_counts_puts_until_sent_is_taken(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 64};
    const void *x = mesh_copy("x", 1), *y = mesh_copy("y", 1);
    struct shunt_completion c;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
        cr_assert_eq(mesh_put(&m, 0, 1, x, 1, i, i), 0);
    for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++) {
        cr_expect_eq(mesh_put(&m, 0, 1, y, 1, 0, 99), -EAGAIN);
        while (mesh_poll(&m, 0, &c, 1) == 0)
            mesh_sleep(&m);
        cr_expect_eq(c.imm, i);
        cr_expect_eq(mesh_put(&m, 0, 1, x, 1, i, SHUNT_TRANSPORT_DEPTH + i), 0);
    }
    for (uint32_t i = 0; i < 2 * SHUNT_TRANSPORT_DEPTH; i++)
        mesh_expect_arrived(&m, 1, 0, i);
    mesh_close(&m);
}

/* Large puts that the receiver does not take: their sources are still read. */
void transport_leaves_the_source_alone_until_sent(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 8 * 4 * MIB};
    unsigned char *bytes = mesh_pattern(5, 4 * MIB);
    unsigned char *sources[SHUNT_TRANSPORT_DEPTH];
    uint32_t arrived = 0, sent = 0;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++) {
        sources[i] = mesh_copy(bytes, 4 * MIB);
        cr_assert_eq(mesh_put(&m, 0, 1, sources[i], 4 * MIB, i * 4ull * MIB, i), 0);
    }
    while (arrived < SHUNT_TRANSPORT_DEPTH || sent < SHUNT_TRANSPORT_DEPTH) {
        struct shunt_completion c;
        uint32_t moved = mesh_poll(&m, 0, &c, 1);

        if (moved) {
            cr_assert_eq(c.imm, sent);
            memset(sources[sent++], 0xff, 4 * MIB);
        }
        if (mesh_poll(&m, 1, &c, 1)) {
            cr_assert_eq(memcmp(m.nodes[1].inbox + c.imm * 4ull * MIB, bytes, 4 * MIB), 0, "put %u",
                         c.imm);
            arrived++;
        } else if (!moved) {
            mesh_sleep(&m);
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
        bytes[a] = mesh_pattern(a, MIB);
        for (uint32_t b = 0; b < NODES; b++)
            for (uint32_t i = 0; b != a && i < SHUNT_TRANSPORT_DEPTH; i++)
                cr_assert_eq(mesh_put(&m, a, b, bytes[a], MIB, a * MIB, i), 0);
    }
    while (done < 2 * NODES * (NODES - 1) * SHUNT_TRANSPORT_DEPTH) {
        uint32_t before = done;

        for (uint32_t n = 0; n < NODES; n++) {
            struct shunt_completion c[4];
            uint32_t count = mesh_poll(&m, n, c, 4);

            for (uint32_t i = 0; i < count; i++)
                ++*(c[i].event == SHUNT_TRANSPORT_SENT ? &sent[n] : &arrived[n]);
            done += count;
        }
        if (done == before)
            mesh_sleep(&m);
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

        cr_assert_eq(mesh_put(&m, n, 0, mesh_copy(&byte, 1), 1, n, n), 0);
        mesh_expect_sent(&m, n, 0, n);
        cr_assert_eq(mesh_put(&m, 0, n, mesh_copy("x", 1), 1, 0, n), 0);
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
        mesh_expect_arrived(&m, n, 0, n);
    mesh_close(&m);
}

/* A ring of as many areas as the window has puts: the sender runs ahead as far as it may, the
 * receiver releases some now and then, and what it has not released stays as it was put. */
void transport_overwrites_nothing_without_credit(const struct transport_backend *backend)
{
    enum { AREA_BYTES = 96, PUTS = 1000 };
    const uint64_t inboxes[] = {SHUNT_TRANSPORT_WINDOW * AREA_BYTES, 0};
    unsigned char *sources = mesh_room(SHUNT_TRANSPORT_DEPTH * AREA_BYTES);
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
            cr_assert_eq(mesh_put(&m, 1, 0, source, AREA_BYTES,
                                  posted % SHUNT_TRANSPORT_WINDOW * AREA_BYTES, posted),
                         0);
            posted++;
        }
        while (mesh_poll(&m, 1, &c, 1)) {
            cr_assert(c.event == SHUNT_TRANSPORT_SENT && c.imm == sent);
            sent++;
        }
        while (mesh_poll(&m, 0, &c, 1)) {
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

/* Only what was named at open is read, at its first byte and its last. */
void transport_sends_only_the_memory_it_was_given(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {0, 64};
    static unsigned char elsewhere[64];
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    cr_expect_eq(mesh_put(&m, 0, 1, elsewhere, 1, 0, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, room - 1, 1, 0, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, room - 1, 2, 0, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, room + ROOM_BYTES, 1, 0, 1), -EINVAL);
    cr_expect_eq(mesh_put(&m, 0, 1, room + ROOM_BYTES - 1, 2, 0, 1), -EINVAL);
    cr_expect_eq(mesh_move(&m), 0);
    room[ROOM_BYTES - 1] = 77;
    cr_assert_eq(mesh_put(&m, 0, 1, room + ROOM_BYTES - 1, 1, 9, 2), 0);
    cr_assert_eq(mesh_put(&m, 0, 1, NULL, 0, 0, 3), 0);
    mesh_expect_arrived(&m, 1, 0, 2);
    cr_expect_eq(m.nodes[1].inbox[9], 77);
    mesh_expect_arrived(&m, 1, 0, 3);
    mesh_close(&m);
}

/* ---- rings that wrap */

enum { WRAP_PUTS = 20000, WRAP_MOST = 120, WRAP_INBOX = 4099 };

/* Puts of any size one behind the other in an inbox of a prime number of bytes, so that every
 * offset begins one, and every ring of the backend's wraps hundreds of times at other places. As
 * many as may be unreleased fit in: only credit keeps the next from them. */
struct wrapping {
    struct mesh mesh;
    uint64_t random;
    uint32_t posted, sent, arrived, released;
    uint32_t at; /* where the next one goes */
    struct {
        uint32_t off, bytes;
    } pieces[WRAP_PUTS];
};

static unsigned char wrap_byte(uint32_t put)
{
    return (unsigned char)(put * 7 + 1);
}

static void wrap_post(struct wrapping *w, unsigned char *sources)
{
    uint32_t bytes = random_below(&w->random, WRAP_MOST + 1);
    unsigned char *source = sources + w->posted % SHUNT_TRANSPORT_DEPTH * WRAP_MOST;

    if (w->at + bytes > WRAP_INBOX)
        w->at = 0;
    memset(source, wrap_byte(w->posted), bytes);
    cr_assert_eq(mesh_put(&w->mesh, 1, 0, source, bytes, w->at, w->posted), 0);
    w->pieces[w->posted].off = w->at;
    w->pieces[w->posted].bytes = bytes;
    w->posted++;
    w->at += bytes;
}

static void wrap_check(const struct wrapping *w, uint32_t put)
{
    const unsigned char *inbox = w->mesh.nodes[0].inbox;

    for (uint32_t b = 0; b < w->pieces[put].bytes; b++)
        cr_assert_eq(inbox[w->pieces[put].off + b], wrap_byte(put),
                     "byte %u of put %u, %u released", b, put, w->released);
}

static void wrap_release(struct wrapping *w, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        wrap_check(w, w->released + i);
    w->mesh.backend->ops->release(w->mesh.nodes[0].t, 1, count);
    w->released += count;
}

void transport_wraps_its_rings(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {WRAP_INBOX, 0};
    unsigned char *sources = mesh_room(SHUNT_TRANSPORT_DEPTH * WRAP_MOST);
    struct wrapping *w = calloc(1, sizeof(*w));
    struct shunt_completion c;

    cr_assert(w);
    mesh_open(&w->mesh, backend, 2, inboxes, false);
    w->mesh.keeps = true;
    w->random = 5;
    while (w->released < WRAP_PUTS) {
        uint32_t moved = 0, held = w->arrived - w->released;

        while (w->posted < WRAP_PUTS && w->posted - w->sent < SHUNT_TRANSPORT_DEPTH)
            wrap_post(w, sources);
        for (; mesh_poll(&w->mesh, 1, &c, 1); moved++)
            cr_assert(c.event == SHUNT_TRANSPORT_SENT && c.imm == w->sent++);
        for (; mesh_poll(&w->mesh, 0, &c, 1); moved++) {
            cr_assert(c.event == SHUNT_TRANSPORT_ARRIVED && c.imm == w->arrived);
            wrap_check(w, w->arrived++);
        }
        if (moved == 0 && held > 0)
            wrap_release(w, 1 + random_below(&w->random, held));
        else if (moved == 0)
            mesh_sleep(&w->mesh);
    }
    mesh_close(&w->mesh);
    free(w);
}

/* ---- credit */

/* Polls both nodes until so many have ARRIVED at node 0, or long enough to see that no more do. */
static void take_arrivals(struct mesh *m, uint32_t *posted, uint32_t *sent, uint32_t *arrived,
                          uint32_t until)
{
    const void *x = mesh_copy("x", 1);

    for (uint32_t idle = 0; *arrived < until || idle < 1000; idle++) {
        struct shunt_completion c;

        if (*posted - *sent < SHUNT_TRANSPORT_DEPTH && *posted < 3 * SHUNT_TRANSPORT_WINDOW)
            cr_assert_eq(mesh_put(m, 1, 0, x, 1, 0, (*posted)++), 0);
        if (mesh_poll(m, 1, &c, 1))
            cr_assert(c.event == SHUNT_TRANSPORT_SENT && c.imm == (*sent)++);
        if (mesh_poll(m, 0, &c, 1))
            cr_assert(c.event == SHUNT_TRANSPORT_ARRIVED && c.imm == (*arrived)++);
        cr_assert_leq(idle, 50000000u, "%u of %u arrived", *arrived, until);
    }
}

/* A window of puts comes, and not one more; released, the next window comes. What waits for credit
 * is not SENT. */
void transport_gives_credit_by_release(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {1, 0};
    uint32_t posted = 0, sent = 0, arrived = 0;
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    m.keeps = true;
    for (uint32_t windows = 1; windows <= 3; windows++) {
        take_arrivals(&m, &posted, &sent, &arrived, windows * SHUNT_TRANSPORT_WINDOW);
        cr_assert_eq(arrived, windows * SHUNT_TRANSPORT_WINDOW);
        cr_assert_leq(sent, windows * SHUNT_TRANSPORT_WINDOW);
        backend->ops->release(m.nodes[0].t, 1, 0);
        for (uint32_t half = 0; half < 2; half++)
            backend->ops->release(m.nodes[0].t, 1, SHUNT_TRANSPORT_WINDOW / 2);
    }
    mesh_close(&m);
}

/* ---- sleep */

/* Whoever sleeps on what this node's prepare lists is awake at once. */
static void expect_awake(struct mesh *m, uint32_t n, const char *when)
{
    struct pollfd fds[MESH_NODES_MAX];
    uint32_t count = m->backend->ops->prepare(m->nodes[n].t, fds, MESH_NODES_MAX);

    cr_assert_gt(poll(fds, count, 2000), 0, "asleep %s", when);
}

static void poll_until(struct mesh *m, uint32_t n, enum shunt_transport_event event, uint32_t imm)
{
    struct shunt_completion c = {0};

    while (c.event != event || c.imm != imm)
        if (!mesh_poll(m, n, &c, 1))
            mesh_sleep(m);
}

/* What is there and not handed out yet, and what can go since credit has come: no event of the
 * kernel or the device says it again. */
void transport_keeps_a_sleeper_awake(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {64, 0};
    const void *x = mesh_copy("x", 1);
    struct shunt_completion c;
    uint32_t sent = 0;
    struct mesh m;

    if (backend->simulated) /* nothing there sleeps */
        return;
    mesh_open(&m, backend, 2, inboxes, false);
    m.keeps = true;
    for (uint32_t i = 0; i < 3; i++)
        cr_assert_eq(mesh_put(&m, 1, 0, x, 1, i, i), 0);
    poll_until(&m, 1, SHUNT_TRANSPORT_SENT, 2);
    poll_until(&m, 0, SHUNT_TRANSPORT_ARRIVED, 0);
    for (uint32_t i = 1; i < 3; i++) {
        expect_awake(&m, 0, "over puts that have come");
        poll_until(&m, 0, SHUNT_TRANSPORT_ARRIVED, i);
    }
    for (uint32_t i = 3; i <= SHUNT_TRANSPORT_WINDOW; i++) {
        while (mesh_put(&m, 1, 0, x, 1, 0, i) == -EAGAIN)
            mesh_poll(&m, 1, &c, 1);
        while (mesh_poll(&m, 1, &c, 1))
            sent = c.imm;
        mesh_poll(&m, 0, &c, 1);
    }
    while (sent + 1 < SHUNT_TRANSPORT_WINDOW)
        poll_until(&m, 1, SHUNT_TRANSPORT_SENT, ++sent);
    while (mesh_poll(&m, 0, &c, 1))
        ;
    backend->ops->release(m.nodes[0].t, 1, SHUNT_TRANSPORT_WINDOW / 2);
    usleep(100000); /* the word of it is under way no more */
    expect_awake(&m, 1, "with credit for a put");
    poll_until(&m, 1, SHUNT_TRANSPORT_SENT, SHUNT_TRANSPORT_WINDOW);
    mesh_close(&m);
}

/* Two threads that wait for each other's puts, asleep or almost. */
struct sleeper {
    struct mesh *mesh;
    uint32_t n, rounds;
    const char *wrong;
};

/* Return: false when nothing came in time. */
static bool sleep_for_arrival(const struct sleeper *s, uint32_t spins)
{
    const struct shunt_transport_ops *ops = s->mesh->backend->ops;
    struct shunt_transport *t = s->mesh->nodes[s->n].t;

    for (;;) {
        struct pollfd fds[MESH_NODES_MAX];
        struct shunt_completion c[SHUNT_TRANSPORT_DEPTH + 1];
        bool arrived = false;

        for (uint32_t i = ops->poll(t, c, SHUNT_TRANSPORT_DEPTH + 1); i-- > 0;)
            arrived |= c[i].event == SHUNT_TRANSPORT_ARRIVED;
        if (arrived) {
            ops->release(t, 1 - s->n, 1);
            return true;
        }
        if (spins > 0)
            spins--;
        else if (poll(fds, ops->prepare(t, fds, MESH_NODES_MAX), WAIT_MS / 4) == 0)
            return false;
    }
}

static void sleep_and_wake(void *arg)
{
    struct sleeper *s = arg;
    uint64_t random = s->n;

    for (uint32_t i = 0; i < s->rounds && !s->wrong; i++) {
        if (s->n == 1 && !sleep_for_arrival(s, random_below(&random, 40)))
            s->wrong = "node 1 sleeps on";
        else if (mesh_put(s->mesh, s->n, 1 - s->n, NULL, 0, 0, i))
            s->wrong = "no put";
        else if (s->n == 0 && !sleep_for_arrival(s, random_below(&random, 40)))
            s->wrong = "node 0 sleeps on";
    }
}

void transport_loses_no_wake_up(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {1, 1};
    struct sleeper sleepers[2];
    struct mesh m;

    mesh_open(&m, backend, 2, inboxes, false);
    for (uint32_t n = 0; n < 2; n++)
        sleepers[n] = (struct sleeper){
            .mesh = &m, .n = n, .rounds = backend->simulated || backend->by_nic ? 3000 : 30000};
    at_once(2, sleep_and_wake, sleepers, sizeof(sleepers[0]));
    for (uint32_t n = 0; n < 2; n++)
        cr_expect(!sleepers[n].wrong, "%s", sleepers[n].wrong);
    mesh_close(&m);
}
