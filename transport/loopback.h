/* SPDX-License-Identifier: Apache-2.0
 *
 * A network inside the process, for tests and simulation: the nodes' transports are opened on one
 * shunt_loopback_net, which decides from a seed when what arrives. It has a clock of its own, which
 * goes on as nodes poll and jumps when all of them would sleep, so that hours of delay pass in no
 * time and the same calls in the same order give the same run. Nodes may live in one thread or each
 * in its own; then the order of their calls is the threads', and no longer the seed's alone.
 *
 * - Delay and reordering: a put, its acknowledgement (SENT) and the credit for it are each on their
 *   way for a time of their own. Puts to one peer keep their order, those to several do not.
 * - A put's bytes appear in the inbox in slices, from either end, before its immediate, and are
 * read from the source only then.
 * - Loss: a put that is lost is sent again after rto_ns; after retry_max times the link is down,
 * and both its nodes lose each other.
 * - Death: at an operation of the net's (put, poll and prepare count) a node is gone, whatever was
 *   under way; its own calls do nothing from then on.
 */
#ifndef SHUNT_TRANSPORT_LOOPBACK_H
#define SHUNT_TRANSPORT_LOOPBACK_H

#include "transport/transport.h"

struct shunt_loopback_net;

struct shunt_loopback_config {
    uint64_t seed;
    uint32_t node_count;
    int64_t delay_max_ns;    /* of each message, in [0, delay_max_ns] */
    uint32_t loss_per_mille; /* of the times a put is sent */
    uint32_t retry_max;
    int64_t rto_ns;
    uint32_t dead_rank; /* dies at operation dead_at, counted from 1; 0: nobody does */
    uint64_t dead_at;
};

/* Return: 0 or -ENOMEM. */
int shunt_loopback_create(struct shunt_loopback_net **net, const struct shunt_loopback_config *cfg,
                          struct shunt_error *err);

/* After every transport on it has been closed; NULL is allowed. */
void shunt_loopback_destroy(struct shunt_loopback_net *net);

/* Virtual time, and operations so far. */
int64_t shunt_loopback_now_ns(struct shunt_loopback_net *net);
uint64_t shunt_loopback_operations(struct shunt_loopback_net *net);

/* Opened with shunt_transport_config.loopback. The streams say which peers there are, and carry
 * nothing. */
extern const struct shunt_transport_ops shunt_transport_loopback;

#endif
