/* SPDX-License-Identifier: Apache-2.0
 *
 * A rack of several engines in one process, for drivers that only use shunt.h: each node lives on a
 * thread of its own, from open to close.
 */
#ifndef SHUNT_TESTS_DRIVER_RACK_H
#define SHUNT_TESTS_DRIVER_RACK_H

#include <shunt.h>

#define DRIVER_NODES_MAX 8

/* One user of a node: a prompt, and what came of it. */
struct driver_user {
    const int32_t *ids;
    uint32_t id_count;
    uint32_t token_max;
    float *logits;                    /* [id_count][vocab], or NULL */
    int32_t *tokens;                  /* [token_max], filled */
    void (*on_token)(uint32_t count); /* after each token, or NULL */
    uint32_t token_count;
    uint64_t digest;
};

struct driver_node {
    struct driver_user *users;
    uint32_t user_count;
    struct shunt_stats stats; /* when its own users had ended */
};

/* Runs the users of all nodes to their end with this configuration (rack, rank and listen_fd are
 * set here). Return: 0, or -1 with a message on standard error. */
int driver_run(const shunt_model *model, const struct shunt_config *cfg, struct driver_node *nodes,
               uint32_t node_count);

/* A listening socket on a free loopback port, and its address as text. Return: -1 when there is
 * none. */
int driver_listen(char *address, size_t bytes);

/* Ids of a text. Return: their number, at most `max`. */
uint32_t driver_ids(const shunt_model *model, const char *text, int32_t *ids, uint32_t max);

#endif
