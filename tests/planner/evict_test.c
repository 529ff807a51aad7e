/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/evict.h"

#include <criterion/criterion.h>

#include "tests/random.h"

#define NOW 100u

/* What is to go first stands first, whoever asks; from some line on some may not. */
static const struct {
    const char *what;
    struct shunt_evict_view view;
    bool speculation, placement; /* may take it */
} order[] = {
    /*                                     last_use  keep     placed unused_guess */
    {"a guess that was wrong, long ago", {40, 41, false, true}, true, true},
    {"a guess that was wrong just now", {99, 99, false, true}, true, true},
    {"loaded for nobody, never used", {0, 0, false, false}, true, true},
    {"not used for long", {3, 3, false, false}, true, true},
    {"used in the last step", {99, 99, false, false}, true, true},
    {"used in this step, prediction taken back", {100, 0, false, false}, true, true},
    {"placed, not used for long", {2, 0, true, false}, true, false},
    {"placed, a guess that was wrong", {50, 60, true, true}, true, false},
    {"placed, used in the last step", {99, 99, true, false}, true, false},
    {"predicted for the next step, a guess", {99, 101, false, true}, false, false},
    {"predicted for the next step", {100, 101, false, false}, false, false},
    {"needed now, not used for long", {5, 100, false, false}, false, false},
    {"needed now, a guess that was right", {99, 100, false, true}, false, false},
    {"needed now, placed", {100, 100, true, false}, false, false},
};

Test(evict, order)
{
    for (uint32_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        const struct shunt_evict_view *view = &order[i].view;
        uint64_t demand = shunt_evict_score(view, NOW, SHUNT_READ_DEMAND);

        cr_expect_neq(demand, SHUNT_EVICT_NEVER, "%s", order[i].what);
        if (i > 0)
            cr_expect_gt(demand, shunt_evict_score(&order[i - 1].view, NOW, SHUNT_READ_DEMAND),
                         "%s, before: %s", order[i].what, order[i - 1].what);
        cr_expect_eq(shunt_evict_score(view, NOW, SHUNT_READ_SPECULATIVE),
                     order[i].speculation ? demand : SHUNT_EVICT_NEVER, "%s", order[i].what);
        cr_expect_eq(shunt_evict_score(view, NOW, SHUNT_READ_PLACEMENT),
                     order[i].placement ? demand : SHUNT_EVICT_NEVER, "%s", order[i].what);
    }
}

/* Speculation never gets what a layer needs or is predicted to; a placement load never what the
 * placement wants; demand gets anything; and older goes before newer when nothing else differs. */
Test(evict, never_means_never)
{
    for (uint64_t s = 1; s <= 200000; s++) {
        uint64_t seed = s, now = 1 + (random_next(&seed) >> random_below(&seed, 60) >> 5);
        struct shunt_evict_view view = {
            .last_use = random_next(&seed) % (now + 1),
            .keep = random_below(&seed, 2) ? random_next(&seed) % (now + 2) : now,
            .placed = random_below(&seed, 2),
            .unused_guess = random_below(&seed, 2),
        };
        struct shunt_evict_view newer = view;
        uint64_t demand = shunt_evict_score(&view, now, SHUNT_READ_DEMAND);

        newer.last_use++;
        cr_assert_neq(demand, SHUNT_EVICT_NEVER, "seed %lu", s);
        cr_assert_lt(demand, shunt_evict_score(&newer, now, SHUNT_READ_DEMAND), "seed %lu", s);
        cr_assert_eq(shunt_evict_score(&view, now, SHUNT_READ_SPECULATIVE) == SHUNT_EVICT_NEVER,
                     view.keep >= now, "seed %lu", s);
        cr_assert_eq(shunt_evict_score(&view, now, SHUNT_READ_PLACEMENT) == SHUNT_EVICT_NEVER,
                     view.keep >= now || view.placed, "seed %lu", s);
    }
}

/* The last step that can be counted still leaves NEVER above everything. */
Test(evict, last_step)
{
    uint64_t now = (1ull << 60) - 1;
    struct shunt_evict_view view = {.last_use = now, .keep = now, .placed = true};

    cr_assert_lt(shunt_evict_score(&view, now, SHUNT_READ_DEMAND), SHUNT_EVICT_NEVER);
    view.keep = 0;
    cr_assert_lt(shunt_evict_score(&view, now, SHUNT_READ_SPECULATIVE), SHUNT_EVICT_NEVER);
}
