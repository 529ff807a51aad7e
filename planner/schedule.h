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

/* Residency of an expert on a node, as told to the others: absent, share left to load in 1/254,
 * resident. */
#define SHUNT_STATE_ABSENT   0u
#define SHUNT_STATE_RESIDENT 255u /* 1 .. 254: loading, that share of its bytes still to come */

/* The node that reads an expert which is resident nowhere: one of those the placement wants it on
 * (`placed`, a mask of nodes), else any live one; spread evenly over layers and experts. `live` has
 * at least one bit. */
uint32_t shunt_schedule_reader(uint32_t layer, uint32_t expert, uint64_t placed, uint64_t live);

/* Decode: the node that computes this node's rows of one expert, from the last snapshot. Masks of
 * nodes: `resident` and `loading` hold the expert or will in a moment. */
uint32_t shunt_schedule_decode(uint32_t self, uint32_t layer, uint32_t expert, uint64_t resident,
                               uint64_t loading, uint64_t placed, uint64_t live);

/* Prefill: all nodes' tokens of one layer at once. */
struct shunt_schedule_input {
    uint32_t node_count;
    uint32_t expert_count;
    uint32_t layer;
    uint64_t live;           /* mask of nodes */
    const uint32_t *counts;  /* [node][expert]: tokens */
    const uint8_t *states;   /* [node][expert]: SHUNT_STATE_* */
    const uint64_t *placed;  /* [expert]: mask of nodes */
    const uint64_t *read_ns; /* [node]: nanoseconds its drive takes for one expert of this layer */
};

/* node[n * expert_count + e] = the node that computes node n's tokens of expert e; n's own rank
 * where n has none. Balances reads (estimated time per drive) over the nodes, and the tokens of an
 * expert with several homes. */
void shunt_schedule_prefill(const struct shunt_schedule_input *in, uint8_t *node);

#endif
