/* SPDX-License-Identifier: Apache-2.0
 *
 * Telemetry to the planner and placements back, over the control streams. Every node reports its
 * activations to rank 0 at intervals; rank 0 runs the planner and sends each new placement to all.
 * A node's engine acknowledges a placement in its next announcement; it becomes active in the step
 * in which everybody's announcement does, which every node sees alike.
 *
 * tick and message run on the control thread; the rest belongs to the engine thread.
 */
#ifndef SHUNT_CLUSTER_PLANNING_H
#define SHUNT_CLUSTER_PLANNING_H

#include <stdatomic.h>

#include "planner/planner.h"
#include "runtime/cluster/rack.h"

struct shunt_planning_config {
    struct shunt_rack *rack;
    uint32_t rank, node_count, layer_count, expert_count;
    enum shunt_placement_policy policy;
    int64_t interval_ns;
    uint32_t capacity;                   /* experts this node can hold for long */
    const _Atomic uint32_t *activations; /* [layer][expert], written by the engine thread */
};

struct shunt_planning;

/* Bytes of the largest message, for shunt_rack_config. */
uint32_t shunt_planning_message_max(uint32_t layer_count, uint32_t expert_count);

int shunt_planning_open(struct shunt_planning **planning, const struct shunt_planning_config *cfg,
                        struct shunt_error *err);
void shunt_planning_close(struct shunt_planning *planning);

void shunt_planning_tick(struct shunt_planning *planning);
void shunt_planning_message(struct shunt_planning *planning, uint32_t rank, uint32_t type,
                            const void *data, uint32_t bytes);

/* The epoch of the newest placement this node has; what its announcements acknowledge. */
uint64_t shunt_planning_acknowledged(const struct shunt_planning *planning);

/* The placement of that epoch: mask of nodes per [layer][expert]. It stays as it is until
 * shunt_planning_activated. */
const uint64_t *shunt_planning_mask(const struct shunt_planning *planning);

/* The engine has taken it over; a newer one may come. */
void shunt_planning_activated(struct shunt_planning *planning);

#endif
