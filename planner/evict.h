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

/* Layer steps are counted from 1 and ascend over the run, below 2^60. */
struct shunt_evict_view {
    uint64_t last_use; /* layer step in which a row last used it, or it was loaded */
    uint64_t keep;     /* the last layer step that needs it, or that it is predicted for; 0: none.
                          Who learns that a prediction was wrong may take it back. */
    bool placed;       /* the placement wants it here */
    bool unused_guess; /* read speculatively and not needed so far */
};

#define SHUNT_EVICT_NEVER UINT64_MAX

/* The score at layer step `now` for a read of class `by` that wants the slot; SHUNT_EVICT_NEVER
 * when it must not have it. An expert is kept while its `keep` is `now` or later.
 *
 * Demand may take anything, in this order, the least recently used first within each:
 * 1. a guess that was wrong: not used, not kept, not placed
 * 2. what is neither kept nor placed
 * 3. what is placed and not kept
 * 4. what is kept for a later step
 * 5. what is kept for this one
 * Speculation takes 1 to 3, a placement load 1 and 2. */
uint64_t shunt_evict_score(const struct shunt_evict_view *view, uint64_t now,
                           enum shunt_read_class by);

#endif
