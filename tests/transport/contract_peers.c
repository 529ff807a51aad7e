/* SPDX-License-Identifier: Apache-2.0
 *
 * Peers that go, that stall, and memory that cannot be used.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"
#include "tests/transport/contract.h"

void transport_says_once_that_a_peer_is_lost(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {64, 64, 64};
    struct shunt_completion c;
    uint32_t events = 0;
    struct mesh m;

    mesh_open(&m, backend, 3, inboxes, false);
    mesh_close_node(&m, 1);
    c = mesh_next(&m, 0);
    cr_expect(c.event == SHUNT_TRANSPORT_LOST && c.peer == 1);
    cr_expect(c.error == -ECONNRESET && c.reason && *c.reason);
    for (uint32_t i = 0; i < 3; i++) {
        cr_expect_eq(mesh_put(&m, 0, 1, room, 1, 0, 1), -EPIPE);
        cr_expect_eq(mesh_poll(&m, 0, &c, 1), 0);
    }
    /* The others go on. */
    cr_assert_eq(mesh_put(&m, 0, 2, room, 1, 3, 7), 0);
    for (uint32_t i = 0; i < 2; i++) { /* in either order */
        c = mesh_next(&m, 2);
        cr_expect(c.event == (c.peer == 1 ? SHUNT_TRANSPORT_LOST : SHUNT_TRANSPORT_ARRIVED));
        events |= 1u << c.event;
    }
    cr_expect_eq(events, 1u << SHUNT_TRANSPORT_LOST | 1u << SHUNT_TRANSPORT_ARRIVED);
    mesh_expect_sent(&m, 0, 2, 7);
    mesh_close(&m);
}

static void expect_pattern(struct mesh *m, const struct shunt_completion *c, uint32_t put,
                           const unsigned char *bytes, uint64_t size)
{
    cr_assert(c->event == SHUNT_TRANSPORT_ARRIVED && c->imm == put, "event %d, imm %u, %u was due",
              c->event, c->imm, put);
    cr_assert_eq(memcmp(m->nodes[0].inbox + put * 100000, bytes, size), 0);
}

/* Takes SENT for all puts of node 1. Node 0 polls only where there is no other way for them to go:
 * most of what it gets is still to be handed out when node 1 goes. Return: what it took. */
static uint32_t take_all_sent(struct mesh *m, const unsigned char *bytes, uint64_t size)
{
    uint32_t arrived = 0, sent = 0;

    for (uint32_t idle = 0; sent < SHUNT_TRANSPORT_DEPTH; idle++) {
        struct shunt_completion c;

        if (mesh_poll(m, 1, &c, 1)) {
            cr_assert(c.event == SHUNT_TRANSPORT_SENT && c.imm == sent++);
            idle = 0;
        } else if (idle > 20000) {
            if (mesh_poll(m, 0, &c, 1))
                expect_pattern(m, &c, arrived++, bytes, size);
            idle = 0;
        }
    }
    return arrived;
}

/* To a peer that may be gone. */
static void say_nothing_of_note(struct mesh *m, uint32_t node, uint32_t peer)
{
    int rc = mesh_put(m, node, peer, NULL, 0, 0, 9);

    cr_assert(rc == 0 || rc == -EPIPE);
}

static struct shunt_completion next_but_sent(struct mesh *m, uint32_t node)
{
    struct shunt_completion c = mesh_next(m, node);

    while (c.event == SHUNT_TRANSPORT_SENT)
        c = mesh_next(m, node);
    return c;
}

/* Whole messages of a peer that is gone are handed out first, however slowly they are taken, and
 * whatever this node still wants to tell it. */
void transport_hands_out_what_came_before_the_loss(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {8 * 100000, 0};
    unsigned char *bytes = mesh_pattern(3, 100000);
    struct shunt_completion c;
    struct mesh m;

    for (uint64_t size = 0; size <= 100000; size = size * 10 + 10) {
        for (int talks = 0; talks < 2; talks++) {
            uint32_t arrived;

            mesh_open(&m, backend, 2, inboxes, false);
            for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
                cr_assert_eq(mesh_put(&m, 1, 0, bytes, size, i * 100000, i), 0);
            arrived = take_all_sent(&m, bytes, size);
            if (talks)
                say_nothing_of_note(&m, 0, 1);
            mesh_close_node(&m, 1);
            if (talks)
                say_nothing_of_note(&m, 0, 1);
            for (uint32_t i = arrived; i < SHUNT_TRANSPORT_DEPTH; i++) {
                c = next_but_sent(&m, 0);
                expect_pattern(&m, &c, i, bytes, size);
            }
            c = next_but_sent(&m, 0);
            cr_assert_eq(c.event, SHUNT_TRANSPORT_LOST);
            mesh_close(&m);
        }
    }
}

/* ---- a peer that takes nothing */

#define PUT_TIMEOUT_NS (100 * SHUNT_NS_PER_MS)

/* It is there and never polls: what it has no credit left for is late, and it is given up. Another
 * peer is served meanwhile and afterwards. */
void transport_gives_up_a_peer_that_takes_nothing(const struct transport_backend *backend)
{
    const struct mesh like = {
        .backend = backend, .node_count = 3, .put_timeout_ns = PUT_TIMEOUT_NS};
    const uint64_t inboxes[] = {64, 64, 64};
    struct shunt_completion lost = {0};
    uint32_t others = 0;
    int64_t begin = shunt_now_ns();
    struct mesh m;

    mesh_open_as(&m, &like, inboxes, false);
    while (lost.event != SHUNT_TRANSPORT_LOST) {
        struct shunt_completion c;
        int rc = mesh_put(&m, 0, 1, room, 64, 0, 1);

        cr_assert(rc == 0 || rc == -EAGAIN || rc == -EPIPE);
        if (mesh_put(&m, 0, 2, room, 64, 0, 2) == 0)
            others++;
        if (mesh_poll(&m, 0, &c, 1) && c.event == SHUNT_TRANSPORT_LOST)
            lost = c;
        mesh_poll(&m, 2, &c, 1);
        cr_assert_lt(shunt_now_ns() - begin, WAIT_MS * SHUNT_NS_PER_MS, "nobody is given up");
    }
    cr_expect(lost.peer == 1 && lost.error == -ETIMEDOUT && *lost.reason, "peer %u: %s", lost.peer,
              lost.reason);
    cr_expect(backend->simulated || shunt_now_ns() - begin >= PUT_TIMEOUT_NS);
    cr_expect_gt(others, SHUNT_TRANSPORT_WINDOW);
    cr_expect_eq(mesh_put(&m, 0, 1, room, 1, 0, 1), -EPIPE);
    while (mesh_put(&m, 0, 2, room, 64, 0, 99) == -EAGAIN)
        mesh_move(&m);
    for (struct shunt_completion c = mesh_next(&m, 2); c.imm != 99; c = mesh_next(&m, 2))
        cr_assert(c.event == SHUNT_TRANSPORT_LOST || c.imm == 2);
    mesh_close(&m);
}

/* ---- a peer that goes */

/* Until it is lost its puts come in order, and its bytes with them. */
static void expect_end(struct mesh *m, uint32_t from, uint32_t posted, uint32_t arrived,
                       const char *where)
{
    struct shunt_completion c;

    do {
        c = mesh_next(m, 0);
        cr_assert_eq(c.peer, 1);
        if (c.event != SHUNT_TRANSPORT_ARRIVED)
            continue;
        cr_assert(c.imm == from + arrived && arrived < posted, "%s: %u arrived", where, c.imm);
        cr_assert_eq(m->nodes[0].inbox[c.imm], (unsigned char)c.imm, "%s", where);
        arrived++;
    } while (c.event != SHUNT_TRANSPORT_LOST);
    cr_expect(c.error < 0 && c.reason && *c.reason, "%s", where);
    cr_expect_eq(mesh_move(m), 0, "%s", where);
    cr_expect_eq(mesh_put(m, 0, 1, room, 1, 0, 0), -EPIPE, "%s", where);
}

/* Node 1 does so many operations, in an order of the seed, and is gone. */
void transport_loses_a_peer_at_every_point(const struct transport_backend *backend)
{
    enum { SEEDS = 8, OPERATIONS = 24 };
    const uint64_t inboxes[] = {256, 256};
    unsigned char *bytes = mesh_room(256);

    for (uint32_t i = 0; i < 256; i++)
        bytes[i] = (unsigned char)i;
    for (uint64_t run = 0; run < (uint64_t)SEEDS * OPERATIONS; run++) {
        uint64_t random = run / OPERATIONS + 1;
        uint32_t posted = 0, arrived = 0, imm = 0;
        struct shunt_completion c;
        char where[64];
        struct mesh m;

        snprintf(where, sizeof(where), "seed %lu, %lu operations", random, run % OPERATIONS);
        mesh_open(&m, backend, 2, inboxes, false);
        for (uint64_t i = 0; i < run % OPERATIONS; i++) {
            switch (random_below(&random, 4)) {
            case 0:
                posted += mesh_put(&m, 1, 0, bytes + posted, 1, posted, posted) == 0;
                break;
            case 1:
                mesh_put(&m, 0, 1, bytes, 256, 0, imm++);
                break;
            case 2:
                mesh_poll(&m, 1, &c, 1);
                break;
            default:
                if (mesh_poll(&m, 0, &c, 1) && c.event == SHUNT_TRANSPORT_ARRIVED)
                    cr_assert_eq(c.imm, arrived++, "%s", where);
            }
        }
        mesh_close_node(&m, 1);
        expect_end(&m, 0, posted, arrived, where);
        mesh_close(&m);
    }
}

/* Until neither of two nodes has anything to do. */
static void settle(struct mesh *m)
{
    const struct shunt_transport_ops *ops = m->backend->ops;
    struct pollfd fds[2 * MESH_NODES_MAX];
    uint32_t count;

    do {
        struct shunt_completion c;

        while (mesh_poll(m, 0, &c, 1) || mesh_poll(m, 1, &c, 1))
            ;
        count = ops->prepare(m->nodes[0].t, fds, MESH_NODES_MAX);
        count += ops->prepare(m->nodes[1].t, fds + count, MESH_NODES_MAX);
    } while (poll(fds, count, 5) > 0);
}

/* Whoever sleeps is woken: with nothing under way, and with puts that wait for credit. */
void transport_loses_a_peer_while_it_sleeps(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {64, 64};

    for (uint32_t full = 0; full < 2; full++) {
        struct pollfd fds[MESH_NODES_MAX];
        struct shunt_completion c;
        struct mesh m;
        uint32_t count;

        mesh_open(&m, backend, 2, inboxes, false);
        m.keeps = true;
        while (full && mesh_put(&m, 0, 1, room, 64, 0, 0) == 0)
            settle(&m);
        settle(&m);
        count = backend->ops->prepare(m.nodes[0].t, fds, MESH_NODES_MAX);
        cr_expect_eq(poll(fds, count, 20), 0, "there is nothing to wake for");
        mesh_close_node(&m, 1);
        cr_expect_gt(poll(fds, count, WAIT_MS), 0, "it sleeps on");
        while (mesh_poll(&m, 0, &c, 1) == 0 || c.event != SHUNT_TRANSPORT_LOST)
            ;
        mesh_close(&m);
    }
}

/* ---- a peer that goes while it opens */

/* Two nodes that open over a wire that is cut after some bytes of what node 1 says. */
struct wire {
    struct mesh mesh;
    struct shunt_stream ends[2]; /* the nodes' */
    struct shunt_stream taps[2]; /* the other ends of theirs */
    int rcs[2];
    struct shunt_error errors[2];
    _Atomic uint32_t opened;
    uint32_t cut, passed;
};

struct wire_role {
    struct wire *wire;
    uint32_t n; /* 2: the wire itself */
};

static void open_on_wire(struct wire *w, uint32_t n)
{
    struct mesh_node *node = &w->mesh.nodes[n];
    const struct shunt_region memory = {.base = room, .bytes = ROOM_BYTES, .fd = -1};
    const struct shunt_patience patience = {.deadline_ns =
                                                shunt_deadline_ns(WAIT_MS * SHUNT_NS_PER_MS)};
    const uint64_t inboxes[] = {64, 64};
    struct shunt_stream streams[2] = {SHUNT_STREAM_NONE, SHUNT_STREAM_NONE};

    streams[1 - n] = w->ends[n];
    w->rcs[n] = w->mesh.backend->ops->open(
        &node->t,
        &(struct shunt_transport_config){
            .rank = n,
            .node_count = 2,
            .streams = streams,
            .inbox = mesh_inbox(w->mesh.backend, node),
            .peer_inbox_bytes = inboxes,
            .memory = &memory,
            .memory_count = 1,
            .link = w->mesh.backend->link ? w->mesh.backend->link(n) : NULL,
            .patience = &patience,
        },
        &w->errors[n]);
    atomic_fetch_add(&w->opened, 1);
}

/* Return: false at the end, or where node 1's words are cut. */
static bool pass_on(struct wire *w, uint32_t from)
{
    unsigned char bytes[512];
    size_t most =
        from == 1 && w->cut - w->passed < sizeof(bytes) ? w->cut - w->passed : sizeof(bytes);
    ssize_t n;

    if (most == 0)
        return false;
    n = shunt_stream_recv(&w->taps[from], bytes, most);
    if (n > 0)
        shunt_stream_send(&w->taps[1 - from], bytes, (size_t)n);
    if (n > 0 && from == 1)
        w->passed += (uint32_t)n;
    return n > 0 || n == -EAGAIN;
}

static void play(void *arg)
{
    struct wire_role *role = arg;
    struct wire *w = role->wire;

    if (role->n < 2) {
        open_on_wire(w, role->n);
        return;
    }
    while (pass_on(w, 0) && pass_on(w, 1)) {
        struct pollfd fds[] = {{.fd = w->taps[0].fd, .events = POLLIN},
                               {.fd = w->taps[1].fd, .events = POLLIN}};

        if (poll(fds, 2, 2) == 0 && atomic_load(&w->opened) == 2)
            break; /* they have said all they say */
    }
    shunt_stream_close(&w->taps[0]);
    shunt_stream_close(&w->taps[1]);
}

static void expect_cut(struct wire *w, uint32_t n)
{
    int64_t deadline = shunt_now_ns() + WAIT_MS * SHUNT_NS_PER_MS;
    struct shunt_completion c = {0};

    if (w->rcs[n]) {
        cr_expect(w->rcs[n] < 0 && *w->errors[n].text, "cut at %u: node %u", w->cut, n);
        return;
    }
    while (c.event != SHUNT_TRANSPORT_LOST) {
        cr_assert_lt(shunt_now_ns(), deadline, "cut at %u: node %u goes on", w->cut, n);
        mesh_poll(&w->mesh, n, &c, 1);
    }
}

/* Return: bytes of node 1's that passed. */
static uint32_t open_and_cut(const struct transport_backend *backend, uint32_t cut)
{
    struct wire *w = calloc(1, sizeof(*w));
    struct wire_role roles[3];
    uint32_t passed;

    cr_assert(w);
    w->mesh = (struct mesh){.backend = backend, .node_count = 2};
    w->cut = cut;
    for (uint32_t n = 0; n < 2; n++) {
        w->mesh.nodes[n].inbox_bytes = 64;
        mesh_make_inbox(&w->mesh.nodes[n]);
        mesh_connect(backend, n, 1 - n, &w->ends[n], &w->taps[n]);
    }
    for (uint32_t n = 0; n < 3; n++)
        roles[n] = (struct wire_role){.wire = w, .n = n};
    at_once(3, play, roles, sizeof(roles[0]));
    for (uint32_t n = 0; n < 2; n++)
        expect_cut(w, n);
    mesh_close(&w->mesh);
    passed = w->passed;
    free(w);
    return passed;
}

void transport_loses_a_peer_while_it_opens(const struct transport_backend *backend)
{
    uint32_t before, cut = 0;

    if (backend->simulated) /* nothing is said */
        return;
    mesh_room(0);
    open_and_cut(backend, 0); /* what is opened once for all is open */
    before = mesh_descriptors();
    /* A queue pair takes long to make. */
    while (open_and_cut(backend, cut) == cut)
        cut += backend->by_nic ? 41 : 1;
    cr_expect_eq(mesh_descriptors(), before);
}

/* ---- memory that cannot be used */

struct refusal {
    const char *what;
    bool inbox; /* it is the inbox that is of no use; else the memory to send from */
    bool shares_only, copies_only; /* backends that it is asked of */
    struct shunt_region region;
};

static int open_alone(const struct transport_backend *backend, const struct refusal *r,
                      struct shunt_error *err)
{
    const struct shunt_region good = {.base = room, .bytes = ROOM_BYTES, .fd = -1};
    const struct shunt_patience patience = {.deadline_ns = shunt_deadline_ns(SHUNT_NS_PER_S)};
    const uint64_t inboxes[] = {4096, 4096};
    struct mesh_node node = {.inbox_bytes = 4096};
    struct shunt_stream streams[2] = {SHUNT_STREAM_NONE, SHUNT_STREAM_NONE}, peer;
    struct mesh mesh = {.backend = backend, .node_count = 2};
    struct shunt_transport *t = NULL;
    int rc;

    mesh_open_net(&mesh);
    mesh_make_inbox(&node);
    mesh_connect(backend, 0, 1, &streams[1], &peer);
    rc = backend->ops->open(&t,
                            &(struct shunt_transport_config){
                                .node_count = 2,
                                .streams = streams,
                                .inbox = r->inbox ? r->region : mesh_inbox(backend, &node),
                                .peer_inbox_bytes = inboxes,
                                .memory = r->inbox ? &good : &r->region,
                                .memory_count = 1,
                                .link = backend->link ? backend->link(0) : NULL,
                                .patience = &patience,
                                .loopback = mesh.net,
                            },
                            err);
    if (!rc)
        backend->ops->close(t);
    shunt_stream_close(&peer);
    shunt_shared_fini(&node.room);
    shunt_loopback_destroy(mesh.net);
    return rc;
}

void transport_refuses_memory_it_cannot_use(const struct transport_backend *backend)
{
    void *gone = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int bare = memfd_create("bare", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct shunt_shared sealed;
    struct shunt_error err;

    mesh_room(0);
    cr_assert(gone != MAP_FAILED && bare >= 0 && null >= 0 && ftruncate(bare, 8192) == 0);
    cr_assert_eq(shunt_shared_create(&sealed, 8192, SHUNT_SHARED_WRITABLE, "a test", NULL), 0);
    munmap((char *)gone + 4096, 4096);

    const struct refusal refusals[] = {
        {"an inbox that is not mapped",
         true,
         false,
         false,
         {.base = (char *)gone + 4096, .bytes = 4096, .fd = -1}},
        {"an inbox half mapped", true, false, false, {.base = gone, .bytes = 8192, .fd = -1}},
        {"memory that is not mapped",
         false,
         false,
         false,
         {.base = (char *)gone + 4096, .bytes = 1, .fd = -1}},
        {"memory that ends nowhere",
         false,
         false,
         false,
         {.base = gone, .bytes = UINT64_MAX, .fd = -1}},
        {"a DMA-BUF as the inbox",
         true,
         false,
         true,
         {.kind = SHUNT_REGION_DMABUF, .base = room, .bytes = 4096, .fd = null}},
        {"a DMA-BUF to send from",
         false,
         false,
         true,
         {.kind = SHUNT_REGION_DMABUF, .base = room, .bytes = 4096, .fd = null}},
        {"an inbox of its own", true, true, false, {.base = room, .bytes = 4096, .fd = -1}},
        {"shared memory without a descriptor",
         true,
         true,
         false,
         {.kind = SHUNT_REGION_SHARED, .base = room, .bytes = 4096, .fd = -1}},
        {"shared memory of a closed descriptor",
         true,
         true,
         false,
         {.kind = SHUNT_REGION_SHARED, .base = room, .bytes = 4096, .fd = 1000}},
        {"shared memory that is a device",
         true,
         true,
         false,
         {.kind = SHUNT_REGION_SHARED, .base = room, .bytes = 4096, .fd = null}},
        {"shared memory without seals",
         true,
         true,
         false,
         {.kind = SHUNT_REGION_SHARED, .base = room, .bytes = 4096, .fd = bare}},
        {"shared memory that is too short",
         true,
         true,
         false,
         {.kind = SHUNT_REGION_SHARED,
          .base = room,
          .bytes = 4096,
          .fd = sealed.fd,
          .fd_offset = 8192}},
        {"shared memory beyond everything",
         true,
         true,
         false,
         {.kind = SHUNT_REGION_SHARED,
          .base = room,
          .bytes = 4096,
          .fd = sealed.fd,
          .fd_offset = UINT64_MAX - 4095}},
    };

    open_alone(backend, &refusals[0], &err); /* libraries keep descriptors of their own */
    for (uint32_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        const struct refusal *r = &refusals[i];
        uint32_t before = mesh_descriptors();

        if ((r->shares_only && !backend->ops->needs_shared_inbox) ||
            (r->copies_only && backend->by_nic))
            continue;
        err = (struct shunt_error){0};
        cr_expect_lt(open_alone(backend, r, &err), 0, "%s was taken", r->what);
        cr_expect(strstr(err.text, backend->ops->name), "%s: '%s'", r->what, err.text);
        cr_expect_neq(err.code, -ETIMEDOUT, "%s: %s", r->what, err.text);
        cr_expect_eq(mesh_descriptors(), before, "%s", r->what);
    }
    shunt_shared_fini(&sealed);
    munmap(gone, 4096);
    close(bare);
    close(null);
}
