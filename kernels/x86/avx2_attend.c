/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention of one head, by the plan of kernels/ref/attend.c. What is fixed here beyond that plan:
 * a score is the one dot product of this level; the weights of a block are summed as eight lanes
 * and then added to the sum so far; an element of `out` takes the keys in ascending order, one FMA
 * each.
 */
#include "kernels/x86/avx2.h"

#include <math.h>

#include "kernels/x86/avx2_dot.h"

#define BLOCK SHUNT_ATTEND_BLOCK

_Static_assert(BLOCK % LANES == 0, "a block is whole eights");

/* scores[j] = scale * q.k of keys first + [0, n), and -inf up to whole eights: those weigh
 * exp(-inf) = 0. Four keys at a time; behind the last key it stands in again. */
static void score_block(const struct shunt_attend *a, uint32_t first, uint32_t n, float *scores)
{
    __m128 scale = _mm_set1_ps(a->scale);

    for (uint32_t j = 0; j < n; j += 4) {
        struct dot_tile tile = {lanes4_zero(), lanes4_zero(), lanes4_zero()};
        const float *keys[4];

        for (uint32_t r = 0; r < 4; r++)
            keys[r] = a->k + (first + (j + r < n ? j + r : n - 1)) * a->stride;
        dot_add(&tile, keys, &a->q, 1, a->head_dim);
        _mm_storeu_ps(scores + j, _mm_mul_ps(scale, sums_of(tile.x0)));
    }
    for (uint32_t j = n; j % LANES; j++)
        scores[j] = -INFINITY;
}

/* The largest of scores[0, n) and peak. NaNs do not count. */
static float peak_of(const float *scores, uint32_t n, float peak)
{
    __m256 lanes = _mm256_set1_ps(peak);
    float each[LANES];

    /* max returns its second operand when one is NaN. */
    for (uint32_t j = 0; j < n; j += LANES)
        lanes = _mm256_max_ps(_mm256_loadu_ps(scores + j), lanes);
    _mm256_storeu_ps(each, lanes);
    for (uint32_t j = 0; j < LANES; j++)
        peak = each[j] > peak ? each[j] : peak;
    return peak;
}

/* Makes scores weights. Return: their sum. */
static float weigh_block(float *scores, uint32_t n, float peak)
{
    __m256 sum = _mm256_setzero_ps();

    for (uint32_t j = 0; j < n; j += LANES) {
        __m256 s = _mm256_sub_ps(_mm256_loadu_ps(scores + j), _mm256_set1_ps(peak));
        __m256 weights = exp_lanes(s);

        _mm256_storeu_ps(scores + j, weights);
        sum = _mm256_add_ps(sum, weights);
    }
    return sum_of(sum);
}

static inline struct lanes4 lanes4_fma(struct lanes4 sum, __m256 f, const float *v)
{
    return (struct lanes4){
        _mm256_fmadd_ps(f, _mm256_loadu_ps(v), sum.a),
        _mm256_fmadd_ps(f, _mm256_loadu_ps(v + LANES), sum.b),
        _mm256_fmadd_ps(f, _mm256_loadu_ps(v + 2 * LANES), sum.c),
        _mm256_fmadd_ps(f, _mm256_loadu_ps(v + 3 * LANES), sum.d),
    };
}

/* out = out * shrink + sum over j of weights[j] * value j, for 64 elements: eight FMAs in flight.
 */
static void add_values_64(float *out, __m256 shrink, const float *weights, const float *v,
                          size_t stride, uint32_t n)
{
    struct lanes4 lo = lanes4_mul(lanes4_load(out), shrink);
    struct lanes4 hi = lanes4_mul(lanes4_load(out + 32), shrink);

    for (uint32_t j = 0; j < n; j++, v += stride) {
        __m256 weight = _mm256_broadcast_ss(weights + j);

        lo = lanes4_fma(lo, weight, v);
        hi = lanes4_fma(hi, weight, v + 32);
    }
    lanes4_store(out, lo);
    lanes4_store(out + 32, hi);
}

/* The same for up to eight elements. */
static void add_values_8(float *out, __m256 shrink, const float *weights, const float *v,
                         size_t stride, uint32_t n, uint32_t left)
{
    __m256 sum = _mm256_mul_ps(load_eight(out, left), shrink);

    for (uint32_t j = 0; j < n; j++, v += stride)
        sum = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + j), load_eight(v, left), sum);
    store_eight(out, left, sum);
}

static void add_block(const struct shunt_attend *a, uint32_t first, uint32_t n,
                      const float *weights, float shrink)
{
    const float *v = a->v + first * a->stride;
    __m256 f = _mm256_set1_ps(shrink);
    uint32_t d = 0;

    for (; d + 64 <= a->head_dim; d += 64)
        add_values_64(a->out + d, f, weights, v + d, a->stride, n);
    for (; d < a->head_dim; d += LANES)
        add_values_8(a->out + d, f, weights, v + d, a->stride, n, a->head_dim - d);
}

static float exp_one(float x)
{
    return _mm256_cvtss_f32(exp_lanes(_mm256_set1_ps(x)));
}

void shunt_avx2_attend(const struct shunt_attend *a)
{
    float scores[BLOCK];
    float peak = -INFINITY;
    float sum = 0;

    for (uint32_t d = 0; d < a->head_dim; d++)
        a->out[d] = 0;
    for (uint32_t first = 0; first < a->key_count; first += BLOCK) {
        uint32_t n = a->key_count - first < BLOCK ? a->key_count - first : BLOCK;
        float new_peak, shrink;

        score_block(a, first, n, scores);
        new_peak = peak_of(scores, n, peak);
        shrink = exp_one(peak - new_peak);
        peak = new_peak;
        sum = sum * shrink + weigh_block(scores, n, peak);
        add_block(a, first, n, scores, shrink);
    }
    for (uint32_t d = 0; d < a->head_dim; d += LANES) {
        uint32_t left = a->head_dim - d;

        store_eight(a->out + d, left,
                    _mm256_div_ps(load_eight(a->out + d, left), _mm256_set1_ps(sum)));
    }
}
