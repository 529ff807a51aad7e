/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/evict.h"

/* Ranks stand above the step of last use; the highest leaves SHUNT_EVICT_NEVER free. */
#define RANK_SHIFT 60

enum rank { RANK_WRONG_GUESS, RANK_PLAIN, RANK_PLACED, RANK_LATER, RANK_NOW };

/* Above every rank that a read of the class may take. */
static const enum rank beyond[SHUNT_READ_CLASSES] = {
    [SHUNT_READ_DEMAND] = RANK_NOW + 1,
    [SHUNT_READ_SPECULATIVE] = RANK_LATER,
    [SHUNT_READ_PLACEMENT] = RANK_PLACED,
};

static enum rank rank_of(const struct shunt_evict_view *view, uint64_t now)
{
    if (view->keep >= now)
        return view->keep == now ? RANK_NOW : RANK_LATER;
    if (view->placed)
        return RANK_PLACED;
    return view->unused_guess ? RANK_WRONG_GUESS : RANK_PLAIN;
}

uint64_t shunt_evict_score(const struct shunt_evict_view *view, uint64_t now,
                           enum shunt_read_class by)
{
    enum rank rank = rank_of(view, now);

    if (rank >= beyond[by])
        return SHUNT_EVICT_NEVER;
    return (uint64_t)rank << RANK_SHIFT | view->last_use;
}
