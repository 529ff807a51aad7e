/* SPDX-License-Identifier: Apache-2.0
 *
 * Placement: which expert should be resident on which nodes, in the long run. Pure functions over
 * plain arrays: no clock, no I/O, no lock, no allocation. A placement never owns slots: it raises
 * the eviction score of what it placed and lists background loads.
 *
 * `prism` is Algorithm 1 and 2 of Prism (arXiv 2508.12851): experts per layer by the entropy of the
 * activations, then the most activated experts of each layer, repaired until every expert has a
 * node. The choices the paper leaves open (ties, caps, empty history) are stated at the code.
 *
 * One node computes a placement and sends it to the others. It need not come out the same on two
 * machines, since the entropy is a floating-point sum; on one machine the same input gives the same
 * placement.
 */
#ifndef SHUNT_PLANNER_PLACEMENT_H
#define SHUNT_PLANNER_PLACEMENT_H

#include <stddef.h>
#include <stdint.h>

#include "planner/node_set.h"

struct shunt_placement_input {
    uint32_t node_count;   /* in [1, SHUNT_NODES_MAX] */
    uint32_t layer_count;  /* at least 1 */
    uint32_t expert_count; /* per layer, at least 1; layer_count * expert_count below 2^31 */
    /* [node][layer][expert]: tokens of that node's users, decayed or not; their sum below 2^64 */
    const uint64_t *activations;
    const uint32_t *capacity; /* [node]: experts it can hold, of whichever layer; 0 and more than
                                 there are will do */
};

/* Bytes of scratch memory that prism needs, 8-aligned. */
size_t shunt_placement_scratch_bytes(const struct shunt_placement_input *in);

/* mask[layer * expert_count + expert]: the set of nodes that should hold the expert.
 * - Each node gets as many experts as its capacity, or all of them where it has room for all.
 * - When the nodes together have room for every expert, every expert is on a node (coverage).
 * - When they have not, each node takes what is activated most there, in whichever layers that is,
 *   and among experts activated alike those that the fewest other nodes hold; the rest is read from
 *   drives as it is needed.
 * - Without any history, no expert gets a second copy before every expert has one. */
void shunt_placement_prism(const struct shunt_placement_input *in, uint64_t *mask, void *scratch);

/* The placement without history, `activations` is not read: experts dealt out evenly, as many to
 * each node as it can hold, of every layer alike (to one expert), no expert a copy more before
 * every expert has as many. */
void shunt_placement_spread(const struct shunt_placement_input *in, uint64_t *mask);

/* Expert calls that would leave their node under a placement, of all calls; both in activations. */
struct shunt_placement_cost {
    uint64_t remote;
    uint64_t total;
};
struct shunt_placement_cost shunt_placement_cost(const struct shunt_placement_input *in,
                                                 const uint64_t *mask);

#endif
