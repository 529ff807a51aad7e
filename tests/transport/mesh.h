/* SPDX-License-Identifier: Apache-2.0
 *
 * Nodes of one transport in one thread, which sleeps on nothing but what `prepare` lists, so that a
 * wake-up that is missing shows. A backend says how two nodes are connected.
 */
#ifndef SHUNT_TESTS_TRANSPORT_MESH_H
#define SHUNT_TESTS_TRANSPORT_MESH_H

#include "runtime/base/shared.h"
#include "transport/loopback.h"
#include "transport/transport.h"

#define WAIT_MS 20000
#define MIB     (1u << 20)

struct transport_backend {
    const struct shunt_transport_ops *ops;
    /* The two ends of a stream that the transport takes, of node a and of node b. */
    void (*connect)(uint32_t a, uint32_t b, int fds[2]);
    void (*secure)(struct shunt_stream ends[2]); /* puts them into TLS; or NULL */
    /* Options of a node's links; or NULL. */
    const struct shunt_link_options *(*link)(uint32_t node);
    bool by_nic; /* regions are the device's affair, DMA-BUFs among them */
    /* What the nodes of a mesh are opened on, in virtual time: their streams carry nothing. */
    const struct shunt_loopback_config *simulated;
};

#define MESH_NODES_MAX SHUNT_NODES_MAX
#define MESH_GUARD     4096u

struct mesh_node {
    struct shunt_transport *t; /* NULL: closed */
    struct shunt_shared room;  /* guard, inbox, guard */
    unsigned char *inbox;
    uint64_t inbox_bytes;
    struct shunt_completion waiting[4 * SHUNT_TRANSPORT_DEPTH]; /* taken for mesh_next */
    uint32_t waiting_count;
};

struct mesh {
    const struct transport_backend *backend;
    uint32_t node_count;
    bool keeps; /* ARRIVED puts are released by the test, not as soon as they are handed out */
    int64_t put_timeout_ns;
    struct shunt_loopback_net *net;
    struct mesh_node nodes[MESH_NODES_MAX];
};

/* Everybody with everybody, or (star) everybody with node 0. Inboxes are zeroed. */
void mesh_open(struct mesh *m, const struct transport_backend *backend, uint32_t node_count,
               const uint64_t *inbox_bytes, bool star);

/* Closes what is open; checks the guards. */
void mesh_close(struct mesh *m);

/* Moves what can be moved; completions wait for mesh_next. Return: how many came. */
uint32_t mesh_move(struct mesh *m);

/* The oldest completion of node `n`, moving all nodes until there is one; fails after a while. */
struct shunt_completion mesh_next(struct mesh *m, uint32_t n);

/* The same for a mesh that is `like` another in all but its nodes. */
void mesh_open_as(struct mesh *m, const struct mesh *like, const uint64_t *inbox_bytes, bool star);

/* The net of a simulated mesh, for a test that opens by itself. */
void mesh_open_net(struct mesh *m);

void mesh_close_node(struct mesh *m, uint32_t n);

/* A pair of streams of nodes a and b, and a node's inbox of inbox_bytes, for a test that opens by
 * itself. */
void mesh_connect(const struct transport_backend *backend, uint32_t a, uint32_t b,
                  struct shunt_stream *of_a, struct shunt_stream *of_b);
void mesh_make_inbox(struct mesh_node *node);
struct shunt_region mesh_inbox(const struct transport_backend *backend,
                               const struct mesh_node *node);

/* The memory that puts read from: one piece, named by every node at open, and parts of it. What was
 * taken is taken until room_used is 0 again. */
#define ROOM_BYTES (80ull * MIB)
extern unsigned char *room;
extern uint64_t room_used;
void *mesh_room(uint64_t bytes);
void *mesh_copy(const void *bytes, uint64_t len);
unsigned char *mesh_pattern(uint64_t seed, uint64_t bytes);

int mesh_put(struct mesh *m, uint32_t from, uint32_t to, const void *src, uint64_t bytes,
             uint64_t off, uint32_t imm);
uint32_t mesh_poll(struct mesh *m, uint32_t n, struct shunt_completion *out, uint32_t max);
void mesh_expect_sent(struct mesh *m, uint32_t n, uint32_t peer, uint32_t imm);
void mesh_expect_arrived(struct mesh *m, uint32_t n, uint32_t peer, uint32_t imm);

/* Sleeps until some node could go on. With all of them in this thread, nothing else can happen: if
 * this times out, somebody's wake-up is missing. */
void mesh_sleep(struct mesh *m);

/* Both ends of a connection over the loopback. */
void mesh_connect_tcp(uint32_t a, uint32_t b, int fds[2]);

/* Descriptors that this process has open. */
uint32_t mesh_descriptors(void);

#endif
