/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/transport/mesh.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"

unsigned char *room; /* ROOM_BYTES */
uint64_t room_used;

void *mesh_room(uint64_t bytes)
{
    void *at;

    if (!room)
        room = mmap(NULL, ROOM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert(room != MAP_FAILED && bytes <= ROOM_BYTES - room_used);
    at = room + room_used;
    room_used += (bytes + 63) / 64 * 64;
    return at;
}

void *mesh_copy(const void *bytes, uint64_t len)
{
    return memcpy(mesh_room(len), bytes, len);
}

/* ---- nodes in one thread */

void mesh_connect_tcp(uint32_t a, uint32_t b, int fds[2])
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)a, (void)b;
    cr_assert(bind(listener, (struct sockaddr *)&addr, len) == 0 && listen(listener, 1) == 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fds[0], (struct sockaddr *)&addr, len), 0);
    fds[1] = accept(listener, NULL, NULL);
    cr_assert_geq(fds[1], 0);
    close(listener);
}

struct opening {
    struct mesh *m;
    uint32_t n;
    const struct shunt_stream *streams;
    const uint64_t *inbox_bytes;
    int rc;
    struct shunt_error err;
};

/* Zeroed, aligned to a page as the contract asks. */
void mesh_make_inbox(struct mesh_node *node)
{
    const size_t bytes = (node->inbox_bytes + MESH_GUARD - 1) / MESH_GUARD * MESH_GUARD;
    struct shunt_error err = {0};

    cr_assert_eq(shunt_shared_create(&node->room, bytes + 2 * MESH_GUARD, SHUNT_SHARED_WRITABLE,
                                     "an inbox", &err),
                 0, "%s", err.text);
    node->inbox = (unsigned char *)node->room.base + MESH_GUARD;
    memset(node->room.base, 0x5a, MESH_GUARD);
    memset(node->inbox + node->inbox_bytes, 0x5a, MESH_GUARD);
}

struct shunt_region mesh_inbox(const struct transport_backend *backend,
                               const struct mesh_node *node)
{
    if (!backend->ops->needs_shared_inbox)
        return (struct shunt_region){.base = node->inbox, .bytes = node->inbox_bytes, .fd = -1};
    return (struct shunt_region){
        .kind = SHUNT_REGION_SHARED,
        .base = node->inbox,
        .bytes = node->inbox_bytes,
        .fd = node->room.fd,
        .fd_offset = MESH_GUARD,
    };
}

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
    mesh_make_inbox(node);
    o->rc = m->backend->ops->open(&node->t,
                                  &(struct shunt_transport_config){
                                      .rank = n,
                                      .node_count = m->node_count,
                                      .streams = o->streams,
                                      .inbox = mesh_inbox(m->backend, node),
                                      .peer_inbox_bytes = inbox_bytes,
                                      .memory = &memory,
                                      .memory_count = 1,
                                      .put_timeout_ns = m->put_timeout_ns,
                                      .link = m->backend->link ? m->backend->link(n) : NULL,
                                      .patience = &patience,
                                      .loopback = m->net,
                                  },
                                  &o->err);
}

void mesh_connect(const struct transport_backend *backend, uint32_t a, uint32_t b,
                  struct shunt_stream *of_a, struct shunt_stream *of_b)
{
    struct shunt_stream ends[2];
    int pair[2];

    backend->connect(a, b, pair);
    ends[0] = (struct shunt_stream){.fd = pair[0]};
    ends[1] = (struct shunt_stream){.fd = pair[1]};
    if (backend->secure)
        backend->secure(ends);
    *of_a = ends[0];
    *of_b = ends[1];
}

static void open_nodes(struct mesh *m, const uint64_t *inbox_bytes,
                       struct shunt_stream streams[MESH_NODES_MAX][MESH_NODES_MAX])
{
    static struct opening openings[MESH_NODES_MAX];

    mesh_room(0); /* it is there */
    for (uint32_t n = 0; n < m->node_count; n++)
        openings[n] =
            (struct opening){.m = m, .n = n, .streams = streams[n], .inbox_bytes = inbox_bytes};
    at_once(m->node_count, open_node, openings, sizeof(openings[0]));
    for (uint32_t n = 0; n < m->node_count; n++)
        cr_assert_eq(openings[n].rc, 0, "%s", openings[n].err.text);
}

void mesh_open_net(struct mesh *m)
{
    struct shunt_loopback_config cfg;

    if (!m->backend->simulated)
        return;
    cfg = *m->backend->simulated;
    cfg.node_count = m->node_count;
    cr_assert_eq(shunt_loopback_create(&m->net, &cfg, NULL), 0);
}

void mesh_open_as(struct mesh *m, const struct mesh *like, const uint64_t *inbox_bytes, bool star)
{
    static struct shunt_stream streams[MESH_NODES_MAX][MESH_NODES_MAX];

    *m = *like;
    mesh_open_net(m);
    for (uint32_t a = 0; a < m->node_count; a++)
        for (uint32_t b = 0; b < m->node_count; b++)
            streams[a][b] = SHUNT_STREAM_NONE;
    for (uint32_t a = 0; a < m->node_count; a++)
        for (uint32_t b = a + 1; b < m->node_count && (a == 0 || !star); b++)
            mesh_connect(m->backend, a, b, &streams[a][b], &streams[b][a]);
    open_nodes(m, inbox_bytes, streams);
}

void mesh_open(struct mesh *m, const struct transport_backend *backend, uint32_t node_count,
               const uint64_t *inbox_bytes, bool star)
{
    const struct mesh like = {.backend = backend, .node_count = node_count};

    mesh_open_as(m, &like, inbox_bytes, star);
}

static bool guard_stands(const unsigned char *guard)
{
    for (uint32_t i = 0; i < MESH_GUARD; i++)
        if (guard[i] != 0x5a)
            return false;
    return true;
}

void mesh_close_node(struct mesh *m, uint32_t n)
{
    m->backend->ops->close(m->nodes[n].t);
    m->nodes[n].t = NULL;
}

void mesh_close(struct mesh *m)
{
    for (uint32_t n = 0; n < m->node_count; n++) {
        struct mesh_node *node = &m->nodes[n];

        cr_expect(guard_stands(node->room.base) && guard_stands(node->inbox + node->inbox_bytes),
                  "node %u: written outside its inbox", n);
        mesh_close_node(m, n);
        shunt_shared_fini(&node->room);
    }
    shunt_loopback_destroy(m->net);
}

void mesh_sleep(struct mesh *m)
{
    static struct pollfd fds[MESH_NODES_MAX * MESH_NODES_MAX];
    uint32_t count = 0;

    for (uint32_t n = 0; n < m->node_count; n++)
        if (m->nodes[n].t)
            count += m->backend->ops->prepare(m->nodes[n].t, fds + count, MESH_NODES_MAX);
    cr_assert_gt(poll(fds, count, WAIT_MS), 0, "nobody can go on");
}

uint32_t mesh_poll(struct mesh *m, uint32_t n, struct shunt_completion *out, uint32_t max)
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
        uint32_t count = mesh_poll(m, n, node->waiting + node->waiting_count, space ? 1 : 0);

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
            mesh_sleep(m);
    }
    c = node->waiting[0];
    memmove(node->waiting, node->waiting + 1, --node->waiting_count * sizeof(c));
    return c;
}

int mesh_put(struct mesh *m, uint32_t from, uint32_t to, const void *src, uint64_t bytes,
             uint64_t off, uint32_t imm)
{
    return m->backend->ops->put(m->nodes[from].t, to, src, bytes, off, imm);
}

void mesh_expect_sent(struct mesh *m, uint32_t n, uint32_t peer, uint32_t imm)
{
    struct shunt_completion c = mesh_next(m, n);

    cr_assert(c.event == SHUNT_TRANSPORT_SENT && c.peer == peer && c.imm == imm,
              "event %d peer %u imm %u, SENT of %u to %u was due", c.event, c.peer, c.imm, imm,
              peer);
}

void mesh_expect_arrived(struct mesh *m, uint32_t n, uint32_t peer, uint32_t imm)
{
    struct shunt_completion c = mesh_next(m, n);

    cr_assert(c.event == SHUNT_TRANSPORT_ARRIVED && c.peer == peer && c.imm == imm,
              "event %d peer %u imm %u, ARRIVED of %u from %u was due", c.event, c.peer, c.imm, imm,
              peer);
}

unsigned char *mesh_pattern(uint64_t seed, uint64_t bytes)
{
    unsigned char *p = mesh_room(bytes);

    random_fill(&seed, p, bytes);
    return p;
}

uint32_t mesh_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint32_t count = 0;

    cr_assert(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}
