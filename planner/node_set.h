/* SPDX-License-Identifier: Apache-2.0
 *
 * A set of nodes is a word: bit n stands for the node of rank n.
 */
#ifndef SHUNT_PLANNER_NODE_SET_H
#define SHUNT_PLANNER_NODE_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/limits.h"

/* The set of node n alone; n is in [0, SHUNT_NODES_MAX). */
static inline uint64_t shunt_node_set_of(uint32_t n)
{
    return 1ull << n;
}

static inline bool shunt_node_set_has(uint64_t set, uint32_t n)
{
    return set >> n & 1;
}

static inline uint32_t shunt_node_set_count(uint64_t set)
{
    return (uint32_t)__builtin_popcountll(set);
}

/* The lowest node of a set that is not empty. */
static inline uint32_t shunt_node_set_first(uint64_t set)
{
    return (uint32_t)__builtin_ctzll(set);
}

/* The node with `nth` lower ones in the set; nth is in [0, count). */
static inline uint32_t shunt_node_set_nth(uint64_t set, uint32_t nth)
{
    while (nth-- > 0)
        set &= set - 1;
    return shunt_node_set_first(set);
}

#endif
