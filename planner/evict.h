/* SPDX-License-Identifier: Apache-2.0
 *
 * Eviction: what a slot's expert is worth. Pure. The slot with the lowest score goes first; in-use
 * and loading experts are never offered.
 */
#ifndef SHUNT_PLANNER_EVICT_H
#define SHUNT_PLANNER_EVICT_H

#include <stdbool.h>
#include <stdint.h>

enum shunt_read_class {
    SHUNT_READ_DEMAND,
    SHUNT_READ_SPECULATIVE,
    SHUNT_READ_PLACEMENT,
    SHUNT_READ_CLASSES
};

struct shunt_evict_view {
    uint64_t last_use; /* layer step in which a row last used it (or it was loaded); ascending over
                          the run */
    uint64_t keep;     /* needed, or predicted, for a layer step >= this minus one; 0: not */
    bool placed;       /* the placement wants it here */
    bool unused_guess; /* read speculatively and not needed so far */
};

#define SHUNT_EVICT_NEVER UINT64_MAX

/* The score at layer step `now` for a read of class `by` that wants the slot; SHUNT_EVICT_NEVER
 * when it must not have it: speculation takes nothing that is needed by the current or predicted
 * for the next layer, and a placement load takes nothing that the placement wants. Demand may take
 * anything. */
uint64_t shunt_evict_score(const struct shunt_evict_view *view, uint64_t now,
                           enum shunt_read_class by);

#endif
