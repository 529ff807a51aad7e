/* SPDX-License-Identifier: Apache-2.0
 *
 * The net in the process: the contract on a calm one, the contract on one that delays, reorders and
 * loses, and that it does what it was told to.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "runtime/base/clock.h"
#include "tests/random.h"
#include "tests/transport/contract.h"

static void connect_local(uint32_t a, uint32_t b, int fds[2])
{
    (void)a, (void)b;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

static const struct shunt_loopback_config calm = {.seed = 1};
static const struct shunt_loopback_config rough = {
    .seed = 2,
    .delay_max_ns = 50 * SHUNT_NS_PER_US,
    .loss_per_mille = 100,
    .retry_max = 30,
    .rto_ns = SHUNT_NS_PER_MS,
};

static const struct transport_backend loopback = {
    .ops = &shunt_transport_loopback, .connect = connect_local, .simulated = &calm};
static const struct transport_backend storm = {
    .ops = &shunt_transport_loopback, .connect = connect_local, .simulated = &rough};

TRANSPORT_KEEPS_ALL(loopback, loopback)
TRANSPORT_KEEPS_ALL(storm, storm)

/* ---- the net does what it was told */

#define EVENTS 4000u

/* What the nodes of a run see, in the order they see it. */
struct history {
    struct shunt_completion events[EVENTS];
    uint32_t nodes[EVENTS];
    uint32_t count;
};

static void note_events(struct mesh *m, struct history *h)
{
    for (uint32_t n = 0; n < m->node_count; n++) {
        struct shunt_completion c[4];
        uint32_t count = mesh_poll(m, n, c, 4);

        for (uint32_t i = 0; i < count && h->count < EVENTS; i++) {
            h->nodes[h->count] = n;
            h->events[h->count++] = c[i];
        }
    }
}

/* Node 0 sends so many puts to each of two others. */
static void run_net(const struct shunt_loopback_config *cfg, uint32_t puts, struct history *h)
{
    const struct transport_backend backend = {
        .ops = &shunt_transport_loopback, .connect = connect_local, .simulated = cfg};
    const uint64_t inboxes[] = {64, 64, 64};
    struct mesh m;

    memset(h, 0, sizeof(*h));
    mesh_open(&m, &backend, 3, inboxes, false);
    for (uint32_t i = 0; i < puts; i++)
        for (uint32_t peer = 1; peer < 3; peer++)
            while (mesh_put(&m, 0, peer, room, 64, 0, i) == -EAGAIN)
                note_events(&m, h);
    for (uint32_t idle = 0; idle < 30000; idle++)
        note_events(&m, h);
    mesh_close(&m);
}

static bool same_history(const struct history *a, const struct history *b)
{
    for (uint32_t i = 0; i < a->count; i++)
        if (a->nodes[i] != b->nodes[i] || a->events[i].event != b->events[i].event ||
            a->events[i].peer != b->events[i].peer || a->events[i].imm != b->events[i].imm)
            return false;
    return a->count == b->count;
}

static uint32_t count_events(const struct history *h, uint32_t node, uint32_t event, uint32_t peer)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < h->count; i++)
        count += h->nodes[i] == node && h->events[i].event == event && h->events[i].peer == peer;
    return count;
}

Test(loopback, the_same_seed_gives_the_same_run)
{
    static struct history a, b;
    struct shunt_loopback_config cfg = rough;

    run_net(&cfg, 200, &a);
    run_net(&cfg, 200, &b);
    cr_expect_eq(a.count, 800);
    cr_expect(same_history(&a, &b));
    cfg.seed++;
    run_net(&cfg, 200, &b);
    cr_expect_eq(b.count, 800);
    cr_expect_not(same_history(&a, &b));
}

/* Which of two peers hears of the same put first is the net's to say. */
Test(loopback, reorders_across_peers)
{
    static struct history h;
    uint32_t first[3] = {0}, seen[100] = {0};

    run_net(&rough, 100, &h);
    for (uint32_t i = 0; i < h.count; i++)
        if (h.events[i].event == SHUNT_TRANSPORT_ARRIVED && seen[h.events[i].imm]++ == 0)
            first[h.nodes[i]]++;
    cr_expect(first[1] > 5 && first[2] > 5, "%u and %u came first", first[1], first[2]);
}

/* Before its immediate a put shows in part, and from either end. */
Test(loopback, shows_bytes_in_slices)
{
    const uint64_t inboxes[] = {0, 1000};
    unsigned char *bytes = memset(mesh_room(1000), 9, 1000);
    uint32_t begins = 0, ends = 0;

    for (uint64_t seed = 1; seed <= 200; seed++) {
        const struct shunt_loopback_config cfg = {.seed = seed, .delay_max_ns = 2000};
        const struct transport_backend backend = {
            .ops = &shunt_transport_loopback, .connect = connect_local, .simulated = &cfg};
        struct shunt_completion c;
        struct mesh m;

        mesh_open(&m, &backend, 2, inboxes, false);
        cr_assert_eq(mesh_put(&m, 0, 1, bytes, 1000, 0, 1), 0);
        while (!mesh_poll(&m, 1, &c, 1)) {
            const unsigned char *inbox = m.nodes[1].inbox;

            begins += inbox[0] == 9 && inbox[999] == 0;
            ends += inbox[0] == 0 && inbox[999] == 9;
        }
        cr_assert_eq(memcmp(m.nodes[1].inbox, bytes, 1000), 0);
        mesh_close(&m);
    }
    cr_expect(begins > 20 && ends > 20, "%u times the beginning, %u the end", begins, ends);
}

Test(loopback, loses_a_link_that_lets_nothing_through)
{
    static struct history h;
    struct shunt_loopback_config cfg = rough;

    cfg.loss_per_mille = 1000;
    run_net(&cfg, 1, &h);
    for (uint32_t peer = 1; peer < 3; peer++) {
        cr_expect_eq(count_events(&h, 0, SHUNT_TRANSPORT_LOST, peer), 1);
        cr_expect_eq(count_events(&h, peer, SHUNT_TRANSPORT_LOST, 0), 1);
    }
    cr_expect_eq(h.count, 4); /* and nothing else: 1 and 2 still have each other */
}

/* Whichever operation it dies at: the others lose it once, have whole puts of it before, and go on
 * with each other. */
Test(loopback, a_node_dies_at_any_operation, .timeout = 100)
{
    static struct history h;
    struct shunt_loopback_config cfg = rough;

    for (uint32_t rank = 0; rank < 2; rank++) {
        for (cfg.dead_at = 1; cfg.dead_at < 400; cfg.dead_at += 7) {
            uint32_t arrived;

            cfg.dead_rank = rank;
            run_net(&cfg, 20, &h);
            cr_assert_eq(count_events(&h, 2, SHUNT_TRANSPORT_LOST, rank), 1);
            arrived = count_events(&h, 2, SHUNT_TRANSPORT_ARRIVED, 0);
            if (rank == 1) {
                cr_assert_eq(count_events(&h, 0, SHUNT_TRANSPORT_LOST, 1), 1);
                cr_assert_eq(arrived, 20, "operation %lu: %u arrived", cfg.dead_at, arrived);
            }
            for (uint32_t i = 0, next = 0; i < h.count; i++)
                if (h.nodes[i] == 2 && h.events[i].event == SHUNT_TRANSPORT_ARRIVED)
                    cr_assert_eq(h.events[i].imm, next++);
        }
    }
}
