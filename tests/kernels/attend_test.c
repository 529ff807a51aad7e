/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/kernels/check.h"

#define KEYS_MAX 200u
#define STRIDE   (SHUNT_HEAD_DIM_MAX + 3)

static const uint32_t key_counts[] = {1,  2,  3,  4,  5,   7,   8,   9,  17,
                                      63, 64, 65, 66, 127, 128, 129, 200};
static const uint32_t head_dims[] = {1, 3, 8, 13, 64, 65, 80, 96, 100, 128, 192, 200, 256, 512};

#define COUNT_OF(a) (sizeof(a) / sizeof(*(a)))

/* Keys and values of one kv head, and a query; NaN lies between the rows. */
struct head {
    struct guarded kv, q, out;
    struct shunt_attend a;
};

static void head_open(struct head *h, uint32_t head_dim, uint32_t key_count, float magnitude,
                      uint64_t seed)
{
    size_t floats = (size_t)STRIDE * 2 * KEYS_MAX;
    float *kv = guarded_floats(&h->kv, floats, seed % 8);

    for (size_t i = 0; i < floats; i++)
        kv[i] = i % STRIDE < head_dim ? random_unit(&seed) : NAN;
    random_floats(&seed, guarded_floats(&h->q, head_dim, 1), head_dim, magnitude);
    h->a = (struct shunt_attend){.q = (float *)h->q.data,
                                 .k = kv,
                                 .v = kv + (size_t)STRIDE * KEYS_MAX,
                                 .stride = STRIDE,
                                 .key_count = key_count,
                                 .head_dim = head_dim,
                                 .scale = 1 / sqrtf((float)head_dim),
                                 .out = guarded_floats(&h->out, head_dim, 3)};
}

static void head_close(struct head *h)
{
    guarded_close(&h->kv);
    guarded_close(&h->q);
    guarded_close(&h->out);
}

/* The textbook softmax, in double. */
static void attend_in_double(const struct shunt_attend *a, double *out)
{
    double scores[KEYS_MAX], peak = -(double)INFINITY, sum = 0;

    for (uint32_t j = 0; j < a->key_count; j++) {
        scores[j] = 0;
        for (uint32_t d = 0; d < a->head_dim; d++)
            scores[j] += (double)a->q[d] * (double)a->k[j * a->stride + d];
        scores[j] *= (double)a->scale;
        peak = CHECK_MAX(peak, scores[j]);
    }
    memset(out, 0, a->head_dim * sizeof(*out));
    for (uint32_t j = 0; j < a->key_count; j++) {
        double weight = exp(scores[j] - peak);

        sum += weight;
        for (uint32_t d = 0; d < a->head_dim; d++)
            out[d] += weight * (double)a->v[j * a->stride + d];
    }
    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] /= sum;
}

static double check_head(const struct shunt_kernels *k, const struct head *h)
{
    double want[SHUNT_HEAD_DIM_MAX], worst = 0;

    k->attend(&h->a);
    attend_in_double(&h->a, want);
    for (uint32_t d = 0; d < h->a.head_dim; d++) {
        double error = fabs((double)h->a.out[d] - want[d]);

        worst = CHECK_MAX(worst, error);
        cr_assert(error <= SHUNT_TOL_ATTEND, "%s head_dim %u, %u keys: out[%u] is %.9g, not %.9g",
                  k->name, h->a.head_dim, h->a.key_count, d, h->a.out[d], want[d]);
    }
    return worst;
}

Test(attend, equals_softmax_in_double)
{
    static const float magnitudes[] = {0, 1, 20};
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        double worst = 0;

        for (uint32_t i = 0; i < COUNT_OF(head_dims); i++)
            for (uint32_t j = 0; j < COUNT_OF(key_counts); j++)
                for (uint32_t m = 0; m < COUNT_OF(magnitudes); m++) {
                    struct head h;
                    double error;

                    head_open(&h, head_dims[i], key_counts[j], magnitudes[m], 31 * i + j);
                    error = check_head(k, &h);
                    worst = CHECK_MAX(worst, error);
                    head_close(&h);
                }
        cr_log_info("%s: largest error of attend %.2g", k->name, worst);
    }
}

/* The result is the same bits wherever keys, values and query lie, at whatever stride, and whatever
 * lies behind the last key. */
Test(attend, result_depends_on_its_inputs_only)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t i = 0; i < COUNT_OF(head_dims); i++)
            for (uint32_t j = 0; j < COUNT_OF(key_counts); j++) {
                uint32_t head_dim = head_dims[i], keys = key_counts[j];
                size_t dense = (size_t)keys * head_dim;
                float alone[SHUNT_HEAD_DIM_MAX];
                struct guarded key, value;
                struct head h;

                head_open(&h, head_dim, keys, 3, 7 * i + j);
                k->attend(&h.a);
                memcpy(alone, h.a.out, head_dim * sizeof(float));

                guarded_floats(&key, dense, (i + j) % 8);
                guarded_floats(&value, dense, (i + 2 * j) % 8);
                for (size_t e = 0; e < dense; e++) {
                    size_t from = e / head_dim * STRIDE + e % head_dim;

                    ((float *)key.data)[e] = h.a.k[from];
                    ((float *)value.data)[e] = h.a.v[from];
                }
                h.a.k = (float *)key.data;
                h.a.v = (float *)value.data;
                h.a.stride = head_dim;
                k->attend(&h.a);
                cr_assert(same_floats(alone, h.a.out, head_dim), "%s %u %u", k->name, head_dim,
                          keys);
                guarded_close(&key);
                guarded_close(&value);
                head_close(&h);
            }
}

/* Nothing behind the last key, the last value or the query is read. */
Test(attend, reads_its_keys_only)
{
    const struct shunt_kernels *k;
    float out[SHUNT_HEAD_DIM_MAX];

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t i = 0; i < COUNT_OF(head_dims); i++)
            for (uint32_t keys = 1; keys < 70; keys += 3) {
                size_t row = head_dims[i] * sizeof(float);
                struct shunt_attend a = {.q = fenced(NULL, row),
                                         .k = fenced(NULL, row * keys),
                                         .v = fenced(NULL, row * keys),
                                         .stride = head_dims[i],
                                         .key_count = keys,
                                         .head_dim = head_dims[i],
                                         .scale = 1,
                                         .out = out};

                k->attend(&a);
                cr_assert(out[0] == 0);
            }
}

/* Two keys of which one is far below the other: out is exp of their distance, so the level's exp
 * shows, down to where it is 0. */
Test(attend, exp_of_negative_scores)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        double worst = 0;

        for (double x = -120; x < -17; x += 0.0007) {
            float q = 1, key[2] = {0, (float)x}, value[2] = {0, 1}, out;
            struct shunt_attend a = {&q, key, value, 1, 2, 1, 1, &out};
            double want = exp((double)key[1]), error;

            k->attend(&a);
            want /= 1 + want;
            error = fabs((double)out - want) - 0x1p-149;
            cr_assert(error <= SHUNT_TOL_EXP * want, "%s exp(%.9g) is %.9g, not %.9g", k->name, x,
                      out, want);
            worst = CHECK_MAX(worst, error / want);
        }
        cr_log_info("%s: largest error of exp %.2g", k->name, worst);
    }
}

/* A peak that moves up in every block, and one so far above that all before it vanishes. */
Test(attend, rising_scores)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        struct head h;

        head_open(&h, 2, KEYS_MAX, 1, 4);
        ((float *)h.q.data)[0] = 1;
        ((float *)h.q.data)[1] = 0;
        h.a.scale = 1;
        for (uint32_t j = 0; j < KEYS_MAX; j++)
            ((float *)h.kv.data)[j * STRIDE] = (float)j * 0.05f;
        check_head(k, &h);
        ((float *)h.kv.data)[130 * STRIDE] = 1e6f;
        k->attend(&h.a);
        cr_assert(same_floats(h.a.out, h.a.v + 130 * STRIDE, 2));
        ((float *)h.kv.data)[150 * STRIDE] = -INFINITY;
        k->attend(&h.a);
        cr_assert(same_floats(h.a.out, h.a.v + 130 * STRIDE, 2));
        head_close(&h);
    }
}

Test(attend, one_key_returns_its_value)
{
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t i = 0; i < COUNT_OF(head_dims); i++) {
            struct head h;

            head_open(&h, head_dims[i], 1, 100, i);
            k->attend(&h.a);
            cr_assert(same_floats(h.a.out, h.a.v, head_dims[i]));
            head_close(&h);
        }
}

/* NaN and infinity among the keys: no crash, and NaN is not hidden. */
Test(attend, bad_keys)
{
    const struct shunt_kernels *k;
    static const float bad[] = {NAN, INFINITY};

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t i = 0; i < KEYS_MAX * 2; i++) {
            struct head h;

            head_open(&h, 8, KEYS_MAX, 1, i);
            ((float *)h.q.data)[0] = 1;
            ((float *)h.kv.data)[i / 2 * STRIDE] = bad[i % 2];
            k->attend(&h.a);
            for (uint32_t d = 0; d < 8; d++)
                cr_assert(isnan(h.a.out[d]));
            head_close(&h);
        }
}
