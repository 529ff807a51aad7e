/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/prefetch.h"

#include <criterion/criterion.h>

#include "tests/random.h"

#define WANTED 8u

static uint32_t off(uint32_t layer)
{
    (void)layer;
    return 100;
}

static uint32_t never(uint32_t layer)
{
    (void)layer;
    return 0;
}

static uint32_t third(uint32_t layer)
{
    (void)layer;
    return 33;
}

struct stream {
    struct shunt_prefetch_governor g;
    uint64_t begun, wasted;
    uint32_t first_off; /* layer step; 0: it has never been off */
};

/* Layer steps in each of which WANTED reads are wanted; of those begun, `wasted_percent` turn out
 * as waste one step later. */
static void run(struct stream *s, uint32_t layers, uint32_t (*wasted_percent)(uint32_t layer),
                uint64_t *seed)
{
    uint32_t begun = 0;

    for (uint32_t layer = 1; layer <= layers; layer++) {
        uint64_t wasted = 0;

        for (uint32_t i = 0; i < begun; i++)
            wasted += random_below(seed, 100) < wasted_percent(layer);
        shunt_prefetch_learn(&s->g, begun - wasted, 0, wasted);
        begun = shunt_prefetch_allow(&s->g, WANTED);
        cr_assert_leq(begun, WANTED);
        s->begun += begun;
        s->wasted += wasted;
        if (s->g.level == 0 && s->first_off == 0)
            s->first_off = layer;
    }
}

Test(prefetch, useful_stays_at_the_top)
{
    struct stream s = {0};
    uint64_t seed = 1;

    shunt_prefetch_init(&s.g);
    run(&s, 100000, never, &seed);
    cr_assert_eq(s.begun, 100000u * WANTED);
    cr_assert_eq(s.g.level, SHUNT_PREFETCH_LEVEL_MAX);
}

/* A third wasted saves more than it costs; chance alone must not turn it down. */
Test(prefetch, mostly_useful_stays_at_the_top)
{
    for (uint64_t seed = 1, i = 0; i < 20; i++) {
        struct stream s = {0};

        shunt_prefetch_init(&s.g);
        run(&s, 20000, third, &seed);
        cr_assert_eq(s.begun, 20000u * WANTED);
    }
}

/* Off after 3 windows at each level: 192 reads of 8, 6, 4 and 2 a layer step, that is 24 + 33 + 48
 * + 96 steps and a few for windows that do not end with a step. From then on a probe of one window,
 * 32 steps of 2 reads, in 1024 steps. */
Test(prefetch, wasted_goes_off)
{
    struct stream s = {0};
    uint64_t seed = 1, before;

    shunt_prefetch_init(&s.g);
    run(&s, 220, off, &seed);
    cr_assert_eq(s.g.level, 0);
    cr_assert(s.first_off > 190 && s.first_off < 215, "off after %u layer steps", s.first_off);
    cr_assert_lt(s.begun, 12 * SHUNT_PREFETCH_WINDOW + 4 * 2 * WANTED);
    before = s.begun;
    run(&s, 100 * SHUNT_PREFETCH_PROBE_LAYERS, off, &seed);
    cr_assert_leq(s.begun - before, 100 * (SHUNT_PREFETCH_WINDOW + 4));
    cr_assert_gt(s.begun - before, 90 * SHUNT_PREFETCH_WINDOW);
}

/* All useful from the first probe on. 8 windows raise each level; a window ends after 32 steps of 2
 * reads, then 16 of 4, then 11 of 6. */
Test(prefetch, comes_back_after_a_useful_probe)
{
    static const uint32_t steps[SHUNT_PREFETCH_LEVEL_MAX] = {SHUNT_PREFETCH_PROBE_LAYERS, 8 * 32,
                                                             8 * 16, 8 * 11};
    struct stream s = {0};
    uint64_t seed = 1;
    uint32_t begun = 0;

    shunt_prefetch_init(&s.g);
    run(&s, 220, off, &seed);
    cr_assert_eq(s.g.level, 0);
    s.g.off_layers = 0;
    for (uint32_t level = 0; level < SHUNT_PREFETCH_LEVEL_MAX; level++) {
        for (uint32_t i = 0; i < steps[level]; i++) {
            cr_assert_eq(s.g.level, level, "step %u at level %u", i, level);
            shunt_prefetch_learn(&s.g, begun, 0, 0);
            begun = shunt_prefetch_allow(&s.g, WANTED);
        }
        shunt_prefetch_learn(&s.g, begun, 0, 0);
        begun = 0;
    }
    cr_assert_eq(shunt_prefetch_allow(&s.g, WANTED), WANTED);
}

/* A late read counts half: 22 wasted of 64 are as much as 42 late ones save, less one. */
Test(prefetch, late_counts_half)
{
    static const struct {
        uint64_t useful, late, wasted;
        uint32_t strikes;
    } windows[] = {
        {32, 0, 32, 0},  {31, 0, 33, 1},  {0, 43, 21, 0}, {0, 42, 22, 1},
        {20, 18, 29, 0}, {20, 17, 29, 1}, {0, 64, 0, 0},  {0, 0, 64, 1},
    };

    for (uint32_t i = 0; i < sizeof(windows) / sizeof(windows[0]); i++) {
        struct shunt_prefetch_governor g;

        shunt_prefetch_init(&g);
        shunt_prefetch_learn(&g, windows[i].useful, windows[i].late, windows[i].wasted);
        cr_expect_eq(g.strikes, windows[i].strikes, "window %u", i);
        cr_expect_eq(g.useful + g.late + g.wasted, 0, "window %u has ended", i);
    }
}

/* Two lost windows and a won one, for ever: never three in a row. */
Test(prefetch, strikes_must_be_in_a_row)
{
    struct shunt_prefetch_governor g;

    shunt_prefetch_init(&g);
    for (uint32_t i = 0; i < 3000; i++)
        shunt_prefetch_learn(&g, i % 3 == 2 ? 64 : 0, 0, i % 3 == 2 ? 0 : 64);
    cr_assert_eq(g.level, SHUNT_PREFETCH_LEVEL_MAX);
}

/* Seven won windows and a lost one, for ever, below the top: never eight in a row. */
Test(prefetch, wins_must_be_in_a_row)
{
    struct shunt_prefetch_governor g;

    shunt_prefetch_init(&g);
    for (uint32_t i = 0; i < SHUNT_PREFETCH_STRIKES; i++)
        shunt_prefetch_learn(&g, 0, 0, 64);
    for (uint32_t i = 0; i < 8000; i++)
        shunt_prefetch_learn(&g, i % 8 ? 64 : 0, 0, i % 8 ? 0 : 64);
    cr_assert_eq(g.level, SHUNT_PREFETCH_LEVEL_MAX - 1);
}

/* What comes in while it is off is from before and does not weigh on the probe. */
Test(prefetch, stragglers_do_not_count)
{
    struct shunt_prefetch_governor g;

    shunt_prefetch_init(&g);
    for (uint32_t i = 0; i < 12; i++)
        shunt_prefetch_learn(&g, 0, 0, 64);
    cr_assert_eq(g.level, 0);
    shunt_prefetch_learn(&g, 0, 0, 63);
    for (uint32_t i = 1; i < SHUNT_PREFETCH_PROBE_LAYERS; i++)
        cr_assert_eq(shunt_prefetch_allow(&g, UINT32_MAX), 0, "layer step %u", i);
    cr_assert_eq(shunt_prefetch_allow(&g, WANTED), WANTED / 4);
    shunt_prefetch_learn(&g, 0, 0, 63);
    cr_assert_eq(g.level, 1);
    shunt_prefetch_learn(&g, 0, 0, 1);
    cr_assert_eq(g.level, 0);
}

Test(prefetch, level_is_a_share_of_what_is_wanted)
{
    static const uint32_t expected[SHUNT_PREFETCH_LEVEL_MAX + 1][4] = {
        {0, 0, 0, 0},          {0, 1, 2, 0x40000000}, {0, 1, 4, 0x80000000},
        {0, 1, 6, 0xc0000000}, {0, 1, 8, UINT32_MAX},
    };
    static const uint32_t wanted[4] = {0, 1, 8, UINT32_MAX};

    for (uint32_t level = 0; level <= SHUNT_PREFETCH_LEVEL_MAX; level++) {
        for (uint32_t i = 0; i < 4; i++) {
            struct shunt_prefetch_governor g = {.level = level};

            cr_expect_eq(shunt_prefetch_allow(&g, wanted[i]), expected[level][i]);
        }
    }
}

Test(prefetch, inflight_is_two_milliseconds_or_a_chunk)
{
    cr_expect_eq(shunt_prefetch_inflight_max(3000000000, 1 << 20), 5 << 20);
    cr_expect_eq(shunt_prefetch_inflight_max(500 << 20, 1 << 20), 1 << 20);
    cr_expect_eq(shunt_prefetch_inflight_max(1000 << 20, 1 << 20), 2 << 20);
    cr_expect_eq(shunt_prefetch_inflight_max(100000000, 1 << 20), 1 << 20);
    cr_expect_eq(shunt_prefetch_inflight_max(0, 1 << 20), 1 << 20);
    cr_expect_eq(shunt_prefetch_inflight_max(3000000000, 1), 6000000);
}
