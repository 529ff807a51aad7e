/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract of struct shunt_transport_ops as a suite that any backend runs: a backend says how
 * two nodes are connected, and its test file calls each check below. All nodes live in one thread,
 * which sleeps on nothing but what `prepare` lists, so that a wake-up that is missing shows.
 */
#ifndef SHUNT_TESTS_TRANSPORT_CONTRACT_H
#define SHUNT_TESTS_TRANSPORT_CONTRACT_H

#include "transport/transport.h"

struct transport_backend {
    const struct shunt_transport_ops *ops;
    void (*connect)(int fds[2]);                 /* two ends of a stream that the transport takes */
    void (*secure)(struct shunt_stream ends[2]); /* puts them into TLS; or NULL */
};

#define MESH_NODES_MAX SHUNT_NODES_MAX
#define MESH_GUARD     64u

struct mesh_node {
    struct shunt_transport *t; /* NULL: closed */
    unsigned char *room;       /* guard, inbox, guard */
    unsigned char *inbox;
    uint64_t inbox_bytes;
    struct shunt_completion waiting[4 * SHUNT_TRANSPORT_DEPTH]; /* taken for mesh_next */
    uint32_t waiting_count;
};

struct mesh {
    const struct transport_backend *backend;
    uint32_t node_count;
    bool keeps; /* ARRIVED puts are released by the test, not as soon as they are handed out */
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

void transport_keeps_order_and_shows_bytes(const struct transport_backend *backend);
void transport_takes_any_size_that_fits(const struct transport_backend *backend);
void transport_takes_depth_puts_and_no_more(const struct transport_backend *backend);
void transport_counts_puts_until_sent_is_taken(const struct transport_backend *backend);
void transport_leaves_the_source_alone_until_sent(const struct transport_backend *backend);
void transport_moves_both_directions_at_once(const struct transport_backend *backend);
void transport_serves_many_peers(const struct transport_backend *backend);
void transport_overwrites_nothing_without_credit(const struct transport_backend *backend);
void transport_says_once_that_a_peer_is_lost(const struct transport_backend *backend);
void transport_hands_out_what_came_before_the_loss(const struct transport_backend *backend);
void transport_behaves_like_its_model(const struct transport_backend *backend);

#endif
