/* SPDX-License-Identifier: Apache-2.0
 *
 * Forming the mesh: each node connects to the ranks below its own and accepts those above. First
 * every pair's control connection, authenticated where there are credentials, with the hellos
 * compared on both sides (hello.h); when this node has met everybody it knows which transport all
 * may use, and then each pair's data connection.
 *
 *   join.c         the loop, and what it needs
 *   join_peer.c    one connection: what comes after what
 */
#ifndef SHUNT_CLUSTER_JOIN_H
#define SHUNT_CLUSTER_JOIN_H

#include "runtime/cluster/address.h"
#include "runtime/cluster/hello.h"

struct shunt_joined {
    struct shunt_stream streams[SHUNT_STREAMS]; /* none at this node's rank */
    struct shunt_hello hello;
    uint8_t live_key[SHUNT_KEY_BYTES]; /* of the pair's datagrams */
    struct shunt_address live;         /* where it takes them */
    char address[SHUNT_ADDRESS_BYTES]; /* as the rack's list has it; "" for one never told */
};

struct shunt_mesh {
    struct shunt_joined peers[SHUNT_NODES_MAX];
    enum shunt_transport_kind transport; /* the best that all may use */
    int live_fd;                         /* a bound UDP socket, not blocking */
};

/* Fills the mesh. Takes over cfg->listen_fd. On failure every descriptor is closed. */
int shunt_join(const struct shunt_rack_config *cfg, struct shunt_mesh *mesh,
               struct shunt_error *err);

/* An empty one, for those who close what they may not have. */
void shunt_mesh_init(struct shunt_mesh *mesh);

/* Closes what is left in it. */
void shunt_mesh_close(struct shunt_mesh *mesh);

/* "rank 2 (127.0.0.1:7172)"; "rank 2" without an address. */
void shunt_join_label(uint32_t rank, const char *address, char *label, size_t bytes);

#endif
