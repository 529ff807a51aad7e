/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/kernels/check.h"

#include "kernels/ref/ref.h"

#define N_MAX 4100u

static const uint32_t lengths[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 64, 100, 128, 2048, 4099};

#define LENGTHS (sizeof(lengths) / sizeof(*lengths))

/* ---- rmsnorm */

static double check_rmsnorm(const struct shunt_kernels *k, uint32_t n, float magnitude)
{
    struct guarded x, weight, y;
    uint64_t seed = n;
    double squares = 0, worst = 0;

    random_floats(&seed, guarded_floats(&x, n, n % 8), n, magnitude);
    random_floats(&seed, guarded_floats(&weight, n, 1), n, 2);
    guarded_floats(&y, n, 2);
    k->rmsnorm((float *)y.data, (float *)x.data, (float *)weight.data, n, 1e-6f);
    for (uint32_t i = 0; i < n; i++)
        squares += (double)((float *)x.data)[i] * (double)((float *)x.data)[i];
    for (uint32_t i = 0; i < n; i++) {
        double want = ((float *)x.data)[i] / sqrt(squares / n + (double)1e-6f) *
                      (double)((float *)weight.data)[i];
        double error = fabs((double)((float *)y.data)[i] - want) - 0x1p-149;

        cr_assert(error <= SHUNT_TOL_NORM * fabs(want), "%s n %u: y[%u] %a, in double %a", k->name,
                  n, i, ((float *)y.data)[i], want);
        if (error > 0)
            worst = CHECK_MAX(worst, error / fabs(want));
    }
    guarded_close(&x);
    guarded_close(&weight);
    guarded_close(&y);
    return worst;
}

Test(row, rmsnorm)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        double worst = 0;

        for (uint32_t i = 0; i < LENGTHS; i++) {
            worst = CHECK_MAX(worst, check_rmsnorm(k, lengths[i], 1));
            worst = CHECK_MAX(worst, check_rmsnorm(k, lengths[i], 1e10f));
            worst = CHECK_MAX(worst, check_rmsnorm(k, lengths[i], 1e-40f));
        }
        cr_log_info("%s: largest error of rmsnorm %.2g", k->name, worst);
    }
}

Test(row, rmsnorm_in_place)
{
    static float x[N_MAX], y[N_MAX], weight[N_MAX];
    const struct shunt_kernels *k;
    uint64_t seed = 1;

    random_floats(&seed, weight, N_MAX, 1);
    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t i = 0; i < LENGTHS; i++) {
            random_floats(&seed, x, N_MAX, 1);
            k->rmsnorm(y, x, weight, lengths[i], 1e-5f);
            k->rmsnorm(x, x, weight, lengths[i], 1e-5f);
            cr_assert(same_floats(x, y, lengths[i]));
        }
}

/* ---- rope and add_scaled: no sums and nothing fused, so all levels give ref's bits */

Test(row, rope_is_ref_bit_for_bit)
{
    const struct shunt_kernels *ref = shunt_kernels_get(SHUNT_KERNELS_REF), *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t head_dim = 2; head_dim <= 258; head_dim += 2) {
            struct guarded a, b, cos_sin;
            uint64_t seed = head_dim;

            random_floats(&seed, guarded_floats(&a, head_dim, head_dim % 8), head_dim, 3);
            memcpy(guarded_floats(&b, head_dim, 1), a.data, a.bytes);
            random_floats(&seed, guarded_floats(&cos_sin, head_dim, 3), head_dim, 1);
            k->rope((float *)a.data, (float *)cos_sin.data, head_dim);
            ref->rope((float *)b.data, (float *)cos_sin.data, head_dim);
            cr_assert(same_floats((float *)a.data, (float *)b.data, head_dim), "%s %u", k->name,
                      head_dim);
            guarded_close(&a);
            guarded_close(&b);
            guarded_close(&cos_sin);
        }
}

/* A quarter turn, so that the pairing and the sign are those of the header. */
Test(row, rope_turns_the_right_way)
{
    const float cos_sin[4] = {0, 1, 1, 0};
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        float head[4] = {1, 2, 3, 4};

        k->rope(head, cos_sin, 4);
        cr_assert(head[0] == -3 && head[2] == 1, "pair 0 turned by 90 degrees");
        cr_assert(head[1] == 2 && head[3] == 4, "pair 1 not turned");
    }
}

Test(row, add_scaled_is_ref_bit_for_bit)
{
    const struct shunt_kernels *ref = shunt_kernels_get(SHUNT_KERNELS_REF), *k;
    static const float factors[] = {0, 1, -0.3f, 1e-38f, 3e38f, INFINITY, NAN};

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t i = 0; i < LENGTHS * 7; i++) {
            uint32_t n = lengths[i / 7];
            struct guarded a, b, x;
            uint64_t seed = i;

            random_floats(&seed, guarded_floats(&a, n, i % 8), n, 1);
            memcpy(guarded_floats(&b, n, 0), a.data, a.bytes);
            random_floats(&seed, guarded_floats(&x, n, i % 5), n, 10);
            k->add_scaled((float *)a.data, (float *)x.data, factors[i % 7], n);
            ref->add_scaled((float *)b.data, (float *)x.data, factors[i % 7], n);
            cr_assert(same_floats((float *)a.data, (float *)b.data, n));
            guarded_close(&a);
            guarded_close(&b);
            guarded_close(&x);
        }
}

/* ---- silu_mul, and through it exp of both signs: exp(-x) for x < 0 is the whole denominator */

Test(row, silu_mul)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        double worst = 0;
        uint64_t seed = 2;

        for (double x = -103; x < 104; x += 0.0007) {
            float gate = (float)x, up = random_unit(&seed);
            double want = (double)gate / (1 + exp(-(double)gate)) * (double)up;
            double error;

            k->silu_mul(&gate, &up, 1);
            /* Where exp(-x) overflows F32 the quotient is 0; the true value is a denormal or so. */
            if (x < -88) {
                cr_assert_float_eq(gate, 0, 1e-36);
                continue;
            }
            error = fabs((double)gate - want) - 0x1p-149;
            cr_assert(error <= SHUNT_TOL_SILU * fabs(want), "%s silu(%.9g) * %.9g = %.9g, not %.9g",
                      k->name, x, up, gate, want);
            if (error > 0)
                worst = CHECK_MAX(worst, error / fabs(want));
        }
        cr_log_info("%s: largest error of silu_mul %.2g", k->name, worst);
    }
}

/* An element's bits do not depend on where in the row it stands, be it in the last, partial eight.
 */
Test(row, silu_mul_elements_are_alone)
{
    static float gate[N_MAX], up[N_MAX];
    const struct shunt_kernels *k;
    uint64_t seed = 3;

    random_floats(&seed, gate, N_MAX, 20);
    random_floats(&seed, up, N_MAX, 2);
    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t i = 0; i < LENGTHS; i++) {
            uint32_t n = lengths[i];
            struct guarded g;

            memcpy(guarded_floats(&g, n, i % 8), gate, n * sizeof(float));
            k->silu_mul((float *)g.data, up, n);
            for (uint32_t j = 0; j < n; j++) {
                float alone = gate[j];

                k->silu_mul(&alone, &up[j], 1);
                cr_assert(same_float(alone, ((float *)g.data)[j]), "%s element %u of %u", k->name,
                          j, n);
            }
            guarded_close(&g);
        }
}

Test(row, silu_mul_of_extremes)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        float gate[6] = {INFINITY, -1e30f, 1e30f, 0, -0.0f, NAN};
        const float up[6] = {1, 1, 1, 1, 1, 1};

        k->silu_mul(gate, up, 6);
        cr_assert(gate[0] == INFINITY && gate[1] == 0 && gate[2] == 1e30f);
        cr_assert(gate[3] == 0 && gate[4] == 0 && isnan(gate[5]));
    }
}

/* ---- all */

Test(row, touches_its_memory_only)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t n = 2; n < 40; n += 2) {
            size_t bytes = n * sizeof(float);
            float *x = fenced(NULL, bytes), *y = fenced(NULL, bytes), *z = fenced(NULL, bytes);

            k->rmsnorm(y, x, z, n - 1, 1e-6f);
            k->rmsnorm(y, x, z, n, 1e-6f);
            k->silu_mul(y, x, n);
            k->add_scaled(y, x, 1, n);
            k->rope(y, x, n);
        }
}

/* ---- exp of ref; that of other levels is seen through silu_mul and attend */

Test(row, ref_exp)
{
    double worst = 0;

    for (double x = -104; x < 89; x += 0.0003) {
        double want = exp((double)(float)x);
        double error = fabs((double)shunt_ref_exp((float)x) - want) - 0x1p-150;

        if (want > (double)FLT_MAX)
            continue;
        cr_assert(error <= SHUNT_TOL_EXP * want, "exp(%.9g)", x);
        worst = CHECK_MAX(worst, error / want);
    }
    cr_log_info("largest error of ref's exp %.2g", worst);
    cr_assert(shunt_ref_exp(0) == 1 && shunt_ref_exp(-0.0f) == 1);
    cr_assert(shunt_ref_exp(-INFINITY) == 0 && shunt_ref_exp(-1e38f) == 0);
    cr_assert(shunt_ref_exp(INFINITY) == INFINITY && shunt_ref_exp(88.8f) == INFINITY);
    cr_assert(isfinite(shunt_ref_exp(88.7f)) && isnan(shunt_ref_exp(NAN)));
}
