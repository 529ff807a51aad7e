/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/sampler.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/random.h"

#define N_MAX 512u

static struct shunt_candidate room[N_MAX];

static int32_t sample(struct shunt_sampler *s, const float *logits, uint32_t n)
{
    memset(room, 0xff, sizeof(room)); /* what is in it does not matter */
    return shunt_sample(s, logits, n, room);
}

static struct shunt_sampler sampler_of(float temperature, uint32_t top_k, float top_p,
                                       uint64_t seed)
{
    return (struct shunt_sampler){
        .temperature = temperature, .top_k = top_k, .top_p = top_p, .random = seed};
}

/* ---- greedy */

Test(sampler, greedy_takes_the_first_of_the_best)
{
    static const struct {
        float logits[4];
        int32_t id;
    } cases[] = {
        {{1, 2, 3, 4}, 3},
        {{4, 3, 2, 1}, 0},
        {{1, 5, 5, 5}, 1},
        {{2, 2, 2, 2}, 0},
        {{-1, -5, -1, -2}, 0},
        {{NAN, 1, 2, NAN}, 2},
        {{NAN, NAN, NAN, -INFINITY}, 3},
        {{1, NAN, 0, 0}, 0},
        {{NAN, NAN, NAN, NAN}, 0},
        {{-INFINITY, -INFINITY, -INFINITY, -1e30f}, 3},
        {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0},
        {{0, INFINITY, 3, INFINITY}, 1},
        {{-0.0f, 0.0f, -0.0f, 0.0f}, 0},
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct shunt_sampler s = sampler_of(0, 3, 0.5f, 42);

        cr_expect_eq(sample(&s, cases[i].logits, 4), cases[i].id, "case %u", i);
        cr_expect_eq(s.random, 42, "nothing is drawn");
    }
}

/* ---- the choice among the best, against a sorted reference */

struct reference {
    int32_t ids[N_MAX]; /* best first */
    float weights[N_MAX];
    uint32_t count;
    double sum;
    bool on_edge; /* the nucleus ends so near top_p that rounding decides */
};

static const float *sort_logits;

static float value_of(int32_t id)
{
    return isnan(sort_logits[id]) ? -INFINITY : sort_logits[id];
}

static int best_first(const void *x, const void *y)
{
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;

    if (value_of(a) != value_of(b))
        return value_of(a) > value_of(b) ? -1 : 1;
    return a < b ? -1 : 1;
}

static void refer(struct reference *r, const struct shunt_sampler *s, const float *logits,
                  uint32_t n)
{
    double all = 0, share = 0;
    uint32_t k = s->top_k > 0 && s->top_k < n ? s->top_k : n;

    memset(r, 0, sizeof(*r));
    sort_logits = logits;
    for (uint32_t i = 0; i < n; i++)
        r->ids[i] = (int32_t)i;
    qsort(r->ids, n, sizeof(r->ids[0]), best_first);
    for (uint32_t i = 0; i < k; i++) {
        r->weights[i] = expf((value_of(r->ids[i]) - value_of(r->ids[0])) / s->temperature);
        all += r->weights[i];
    }
    r->count = k;
    for (uint32_t i = 0; i < k && s->top_p < 1; i++) {
        share += r->weights[i];
        r->on_edge |= fabs(share / all - (double)s->top_p) < 1e-6;
        if (share >= all * (double)s->top_p) {
            r->count = i + 1;
            break;
        }
    }
    for (uint32_t i = 0; i < r->count; i++)
        r->sum += r->weights[i];
}

static void any_logits(float *logits, uint32_t n, uint64_t *random)
{
    uint32_t kinds = 1 + random_below(random, 200);

    for (uint32_t i = 0; i < n; i++) {
        logits[i] = (float)random_below(random, kinds) * 0.1f - 5;
        if (random_below(random, 50) == 0)
            logits[i] = random_below(random, 2) ? NAN : -INFINITY;
    }
}

/* With top_p the candidates are walked best first, so that the draw alone decides: the very id. */
Test(sampler, nucleus_is_that_of_a_sorted_list)
{
    struct reference *r = malloc(sizeof(*r));
    float logits[N_MAX];

    cr_assert(r);
    for (uint64_t seed = 1; seed <= 20000; seed++) {
        uint64_t random = seed;
        uint32_t n = 1 + random_below(&random, 60);
        struct shunt_sampler s =
            sampler_of(0.1f + (float)random_below(&random, 30) * 0.1f, random_below(&random, 70),
                       (1 + (float)random_below(&random, 997)) / 1000, seed);
        uint64_t state = s.random;
        double pick, at = 0;
        uint32_t i = 0;
        int32_t id;

        any_logits(logits, n, &random);
        refer(r, &s, logits, n);
        id = sample(&s, logits, n);
        cr_assert_neq(s.random, state, "seed %lu", seed);
        if (r->on_edge || !isfinite(logits[r->ids[0]]))
            continue;
        pick = (double)(random_next(&state) >> 11) * 0x1p-53 * r->sum;
        while (i + 1 < r->count && (at += r->weights[i]) <= pick)
            i++;
        cr_assert_eq(id, r->ids[i], "seed %lu: %d, not %d", seed, id, r->ids[i]);
        cr_assert_eq(s.random, state, "seed %lu: one draw", seed);
    }
    free(r);
}

/* Whatever the settings: an id of the set, and every one of them in its share of the draws. The
 * sum of squared deviations over the mean is about the number of ids; six deviations are allowed,
 * and the seeds are fixed. */
static void draw_many(const struct shunt_sampler *settings, const float *logits, uint32_t n)
{
    enum { DRAWS = 20000 };
    struct reference *r = malloc(sizeof(*r));
    uint32_t *counts = calloc(n, sizeof(*counts));
    struct shunt_sampler s = *settings;
    double unevenness = 0;
    uint32_t tail = 0, kinds = 1;
    double tail_weight = 0;

    cr_assert(r && counts);
    refer(r, &s, logits, n);
    for (uint32_t i = 0; i < DRAWS; i++) {
        int32_t id = sample(&s, logits, n);

        cr_assert(id >= 0 && (uint32_t)id < n);
        counts[id]++;
    }
    for (uint32_t i = 0; i < r->count; i++) {
        double mean = DRAWS * r->weights[i] / r->sum;
        double off = counts[r->ids[i]] - mean;

        if (mean >= 5) {
            unevenness += off * off / mean;
            kinds++;
        } else {
            tail += counts[r->ids[i]];
            tail_weight += mean;
        }
        counts[r->ids[i]] = 0;
    }
    if (tail_weight > 1)
        unevenness += (tail - tail_weight) * (tail - tail_weight) / tail_weight;
    cr_expect_lt(unevenness, kinds + 6 * sqrt(2.0 * kinds), "%u kinds, top_k %u, top_p %g", kinds,
                 s.top_k, (double)s.top_p);
    for (uint32_t i = 0; i < n; i++)
        cr_expect_eq(counts[i], 0, "id %u is outside the set", i);
    free(r);
    free(counts);
}

Test(sampler, draws_in_proportion, .timeout = 100)
{
    static const float top_ps[] = {1, 0.95f, 0.5f, 0.01f};
    static const uint32_t top_ks[] = {0, 1, 2, 7, 40, 1000};
    float logits[200];

    for (uint32_t p = 0; p < 4; p++) {
        for (uint32_t k = 0; k < 6; k++) {
            for (uint32_t t = 1; t <= 3; t++) {
                uint64_t random = 1000 + p * 100 + k * 10 + t;
                struct shunt_sampler s = sampler_of(0.4f * (float)t, top_ks[k], top_ps[p], random);

                for (uint32_t i = 0; i < 200; i++)
                    logits[i] = (float)random_below(&random, 100000) * 0.00005f;
                draw_many(&s, logits, 200);
            }
        }
    }
}

/* ---- what it depends on */

Test(sampler, same_seed_same_ids)
{
    float logits[100];
    uint64_t random = 3;
    uint32_t differ = 0;

    for (uint32_t i = 0; i < 100; i++)
        logits[i] = (float)random_below(&random, 1000) * 0.002f;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct shunt_sampler a = sampler_of(1, 0, 1, seed), b = a, other = a;

        other.random++;
        for (uint32_t i = 0; i < 50; i++) {
            int32_t id = sample(&a, logits, 100);

            cr_assert_eq(id, sample(&b, logits, 100), "seed %lu", seed);
            differ += id != sample(&other, logits, 100);
        }
    }
    cr_expect_gt(differ, 2000, "%u of 2500", differ);
}

/* A top_k of all or more is none. */
Test(sampler, a_top_k_of_all_changes_nothing)
{
    float logits[64];
    uint64_t random = 5;

    for (uint32_t i = 0; i < 64; i++)
        logits[i] = (float)random_below(&random, 1000) * 0.003f;
    for (uint64_t seed = 0; seed < 500; seed++) {
        struct shunt_sampler a = sampler_of(1, 0, 1, seed), b = sampler_of(1, 64, 1, seed);
        struct shunt_sampler c = sampler_of(1, UINT32_MAX, 1, seed);
        int32_t id = sample(&a, logits, 64);

        cr_assert_eq(id, sample(&b, logits, 64));
        cr_assert_eq(id, sample(&c, logits, 64));
    }
}

/* Numbers at the end of what a float can be: an id that is there, and never a NaN's. */
Test(sampler, survives_extreme_logits)
{
    static const float values[] = {0,      1,        -1,        1e38f,  -1e38f, 3e38f,
                                   -3e38f, INFINITY, -INFINITY, 1e-45f, NAN,    NAN};
    static const float temperatures[] = {1e-38f, 1e-3f, 1, 1e38f};

    for (uint64_t seed = 1; seed <= 20000; seed++) {
        uint64_t random = seed;
        uint32_t n = 1 + random_below(&random, 12);
        struct shunt_sampler s =
            sampler_of(temperatures[random_below(&random, 4)], random_below(&random, 14),
                       random_below(&random, 2) ? 1 : 0.7f, seed);
        bool has_number = false;
        float logits[12];
        int32_t id;

        for (uint32_t i = 0; i < n; i++) {
            logits[i] = values[random_below(&random, 12)];
            has_number |= !isnan(logits[i]);
        }
        id = sample(&s, logits, n);
        cr_assert(id >= 0 && (uint32_t)id < n, "seed %lu", seed);
        cr_assert(!has_number || !isnan(logits[id]), "seed %lu: id %d", seed, id);
    }
}
