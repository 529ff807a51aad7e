/* SPDX-License-Identifier: Apache-2.0
 *
 * Schedule: which node computes which tokens of which expert, layer by layer. Pure functions of
 * what the nodes have told each other, in integers, so that every node arrives at the same answer
 * from the same bytes. No allocation.
 *
 * Policy of this version: an expert that is resident somewhere is computed there, locally when
 * local; one that is resident nowhere is read by one node, so that the rack reads it once.
 */
#ifndef SHUNT_PLANNER_SCHEDULE_H
#define SHUNT_PLANNER_SCHEDULE_H

#include <stdint.h>

#include "planner/node_set.h"

/* Residency of an expert on a node, as told to the others: absent; loading, with the share of its
 * bytes still to come in 1/254, at least 1; resident. */
#define SHUNT_STATE_ABSENT      0u
#define SHUNT_STATE_LOADING_MAX 254u
#define SHUNT_STATE_RESIDENT    255u

/* The node that reads an expert which is resident nowhere: one of those the placement wants it on
 * (`placed`), or any live one when none of these is live; spread evenly over layers and experts.
 * `live` is not empty. */
uint32_t shunt_schedule_reader(uint32_t layer, uint32_t expert, uint64_t placed, uint64_t live);

/* Decode: the node that computes this node's rows of one expert, from the last snapshot. `resident`
 * and `loading` are the nodes that hold the expert or will in a moment. This node when it is
 * resident here; else a peer where it is resident, not the same for all who ask; else, in the same
 * way, where it is loading; else its reader. Never a node outside `live`, which is not empty. */
uint32_t shunt_schedule_decode(uint32_t self, uint32_t layer, uint32_t expert, uint64_t resident,
                               uint64_t loading, uint64_t placed, uint64_t live);

/* Prefill: all nodes' tokens of one layer at once. What is said of or by a node outside `live` does
 * not count. */
struct shunt_schedule_input {
    uint32_t node_count;   /* in [1, SHUNT_NODES_MAX] */
    uint32_t expert_count; /* in [1, SHUNT_EXPERTS_MAX] */
    uint32_t layer;
    uint64_t live;           /* not empty, no bit from node_count on */
    const uint32_t *counts;  /* [node][expert]: tokens */
    const uint8_t *states;   /* [node][expert]: SHUNT_STATE_* */
    const uint64_t *placed;  /* [expert]: the nodes the placement wants it on */
    const uint64_t *read_ns; /* [node]: nanoseconds its drive takes for one expert of this layer,
                                below 2^48 */
};

/* node[n * expert_count + e] = the node that computes node n's tokens of expert e; n's own rank
 * where n has none.
 *
 * Experts are taken in the order of their tokens, most first, then by id:
 * 1. Tokens whose expert is resident at their own node stay.
 * 2. Else where it is resident: each node's tokens go to that one of these nodes which has the
 *    fewest tokens so far (those of rule 1 included), then to the lowest.
 * 3. Resident nowhere: all tokens go to the node whose load of it has the least time to go, then to
 *    the lowest; that time counts as its drive's.
 * 4. Nor loading anywhere: after all of the above, all tokens go to the node whose drive would be
 *    done with it first, after what this schedule gave it before; among equals to one the placement
 *    wants it on, then to the one with most tokens of it, then to the expert's reader among these.
 * A load that no token is sent to counts nothing: it can be dropped. */
void shunt_schedule_prefill(const struct shunt_schedule_input *in, uint8_t *node);

#endif
