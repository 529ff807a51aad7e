/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/kernels/check.h"

struct choice {
    uint16_t ids[SHUNT_EXPERTS_USED_MAX];
    float weights[SHUNT_EXPERTS_USED_MAX];
};

static struct choice route(const float *logits, uint32_t n, uint32_t k, bool normalize)
{
    const struct shunt_kernels *kernels;
    struct choice c = {{0}, {0}};

    for (uint32_t l = 0; (kernels = next_level(&l)); l++) {
        struct choice this = {{0}, {0}};

        kernels->route(logits, n, k, normalize, this.ids, this.weights);
        cr_assert(l == 0 || memcmp(&this, &c, sizeof(c)) == 0, "levels route alike");
        c = this;
    }
    return c;
}

static void check_ids(const struct choice *c, const float *logits, uint32_t n, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++) {
        cr_assert_lt(c->ids[i], n);
        for (uint32_t j = 0; j < i; j++)
            cr_assert_neq(c->ids[i], c->ids[j], "the same expert twice");
        if (i == 0)
            continue;
        cr_assert(!(logits[c->ids[i]] > logits[c->ids[i - 1]]), "descending");
        if (logits[c->ids[i]] == logits[c->ids[i - 1]])
            cr_assert_gt(c->ids[i], c->ids[i - 1], "lower id first among equals");
    }
}

static void check_weights(const struct choice *c, const float *logits, uint32_t n, uint32_t k,
                          bool normalize, double *worst)
{
    double sum = 0, picked = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - (double)logits[c->ids[0]]);
    for (uint32_t i = 0; i < k; i++)
        picked += exp((double)logits[c->ids[i]] - (double)logits[c->ids[0]]);
    for (uint32_t i = 0; i < k; i++) {
        double want =
            exp((double)logits[c->ids[i]] - (double)logits[c->ids[0]]) / (normalize ? picked : sum);
        double error = fabs((double)c->weights[i] - want) / want;

        cr_assert(error <= SHUNT_TOL_ROUTE, "weight %u of %u is %.9g, not %.9g", i, k,
                  c->weights[i], want);
        *worst = CHECK_MAX(*worst, error);
    }
}

/* Nothing outside the choice is larger than what is in it. */
static void check_left_out(const struct choice *c, const float *logits, uint32_t n, uint32_t k)
{
    uint16_t last = c->ids[k - 1];

    for (uint16_t id = 0; id < n; id++) {
        bool in = false;

        for (uint32_t i = 0; i < k; i++)
            in |= c->ids[i] == id;
        if (!in)
            cr_assert(logits[id] < logits[last] || (logits[id] == logits[last] && id > last));
    }
}

Test(route, random_logits)
{
    static const uint32_t sizes[] = {1, 2, 8, 60, 64, 128, 256, SHUNT_EXPERTS_MAX};
    float logits[SHUNT_EXPERTS_MAX];
    double worst = 0;
    uint64_t seed = 1;

    for (uint32_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++)
        for (uint32_t round = 0; round < 200; round++) {
            uint32_t n = sizes[s];
            uint32_t most = n < SHUNT_EXPERTS_USED_MAX ? n : SHUNT_EXPERTS_USED_MAX;
            uint32_t k = 1 + (uint32_t)(random_u64(&seed) % most);
            struct choice c;

            random_floats(&seed, logits, n, 10);
            for (uint32_t i = 0; i < n && round % 2; i++)
                logits[i] = truncf(logits[i]); /* many equals */
            c = route(logits, n, k, round % 4 < 2);
            check_ids(&c, logits, n, k);
            check_left_out(&c, logits, n, k);
            check_weights(&c, logits, n, k, round % 4 < 2, &worst);
        }
    cr_log_info("largest error of a weight %.2g", worst);
}

Test(route, equals_go_by_id)
{
    const float logits[6] = {1, 2, 2, 0.0f, 2, -0.0f};
    struct choice c = route(logits, 6, 6, true);

    cr_assert_arr_eq(c.ids, ((uint16_t[]){1, 2, 4, 0, 3, 5}), 12);
}

/* NaN counts as -inf: chosen last, with no weight. */
Test(route, nan_is_lowest)
{
    const float logits[5] = {NAN, 1, -3e38f, NAN, 2};
    struct choice c = route(logits, 5, 4, true);

    cr_assert_arr_eq(c.ids, ((uint16_t[]){4, 1, 2, 0}), 8);
    cr_assert_float_eq(c.weights[0] + c.weights[1], 1, 1e-6);
    cr_assert(c.weights[2] == 0 && c.weights[3] == 0);
}

/* Whatever the logits are, the ids are distinct and in range. */
Test(route, any_bits)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 0, 1};
    float logits[64];
    uint64_t seed = 9;

    for (uint32_t round = 0; round < 2000; round++) {
        uint32_t kinds = 1 + round % 7, first = (uint32_t)(random_u64(&seed) % 7);
        struct choice c;

        for (uint32_t i = 0; i < 64; i++)
            logits[i] = bad[(first + random_u64(&seed) % kinds) % 7];
        c = route(logits, 64, SHUNT_EXPERTS_USED_MAX, round % 2);
        for (uint32_t i = 0; i < SHUNT_EXPERTS_USED_MAX; i++) {
            cr_assert_lt(c.ids[i], 64);
            cr_assert(isfinite(c.weights[i]) || isnan(c.weights[i]));
            for (uint32_t j = 0; j < i; j++)
                cr_assert_neq(c.ids[i], c.ids[j]);
        }
    }
}

/* Logits so far apart that all but one probability vanish. */
Test(route, one_takes_all)
{
    const float logits[4] = {-500, 500, 0, 499};
    struct choice c = route(logits, 4, 2, false);

    cr_assert(c.ids[0] == 1 && c.ids[1] == 3);
    cr_assert_float_eq(c.weights[0], 1 / (1 + exp(-1.0)), 1e-6);
}
