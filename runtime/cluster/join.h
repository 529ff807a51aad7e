/* SPDX-License-Identifier: Apache-2.0
 *
 * Forming the mesh: each node connects to the ranks below its own and accepts those above, one
 * stream of each kind per pair, hellos compared on both sides.
 */
#ifndef SHUNT_CLUSTER_JOIN_H
#define SHUNT_CLUSTER_JOIN_H

#include "runtime/cluster/hello.h"

/* A peer's streams, -1 while missing, and its hello. */
struct shunt_joined {
    int fds[SHUNT_STREAMS];
    struct shunt_hello hello;
};

/* Fills peers[node_count] (the entry at cfg->rank is left alone). Takes over cfg->listen_fd. On
 * failure every descriptor is closed. */
int shunt_join(const struct shunt_rack_config *cfg, struct shunt_joined *peers,
               struct shunt_error *err);

/* "rank 2 (127.0.0.1:7172)". */
void shunt_join_label(const struct shunt_rack_config *cfg, uint32_t rank, char *label,
                      size_t bytes);

#endif
