/* SPDX-License-Identifier: Apache-2.0
 *
 * Placement: which expert should be resident on which nodes, in the long run. Pure functions over
 * plain arrays: no clock, no I/O, no lock, no allocation. A placement never owns slots: it raises
 * the eviction score of what it placed and lists background loads.
 *
 * `prism` is Algorithm 1 and 2 of Prism (arXiv 2508.12851): experts per layer by the entropy of the
 * activations, then the most activated experts of each layer, repaired until every expert has a
 * node. The choices the paper leaves open (ties, caps, empty history) are stated at the code.
 */
#ifndef SHUNT_PLANNER_PLACEMENT_H
#define SHUNT_PLANNER_PLACEMENT_H

#include <stddef.h>
#include <stdint.h>

struct shunt_placement_input {
    uint32_t node_count; /* in [1, 64] */
    uint32_t layer_count;
    uint32_t expert_count; /* per layer */
    const uint64_t
        *activations; /* [node][layer][expert]: tokens of that node's users, decayed or not */
    const uint32_t *capacity; /* [node]: experts it can hold */
};

/* Bytes of scratch memory the functions below need, 8-aligned. */
size_t shunt_placement_scratch_bytes(const struct shunt_placement_input *in);

/* mask[layer * expert_count + expert]: bit n is set when node n should hold the expert.
 * - No node gets more experts than its capacity.
 * - When the nodes together have room for every expert, every expert is on a node (coverage). When
 * they have not, each node takes what is activated most there, and the rest is read from drives as
 * it is needed.
 * - The same input gives the same placement. */
void shunt_placement_prism(const struct shunt_placement_input *in, uint64_t *mask, void *scratch);

/* The placement without history: experts dealt out evenly, as many to each node as it can hold, no
 * two nodes the same before all experts are covered. */
void shunt_placement_spread(const struct shunt_placement_input *in, uint64_t *mask, void *scratch);

/* Expert calls that would leave their node under a placement, of all calls; both in activations. */
struct shunt_placement_cost {
    uint64_t remote;
    uint64_t total;
};
struct shunt_placement_cost shunt_placement_cost(const struct shunt_placement_input *in,
                                                 const uint64_t *mask);

#endif
