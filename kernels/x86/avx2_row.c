/* SPDX-License-Identifier: Apache-2.0
 *
 * What happens to one row between the matrices. rope and add_scaled do not fuse their products, so
 * their bits are those of ref.
 */
#include "kernels/x86/avx2.h"

#include <math.h>

#include "kernels/x86/avx2_lanes.h"

static float sum_of_squares(const float *x, uint32_t n)
{
    __m256 sum = _mm256_setzero_ps();

    for (uint32_t i = 0; i < n; i += LANES) {
        __m256 v = load_eight(x + i, n - i);

        sum = _mm256_fmadd_ps(v, v, sum);
    }
    return sum_of(sum);
}

void shunt_avx2_rmsnorm(float *y, const float *x, const float *weight, uint32_t n, float eps)
{
    __m256 scale = _mm256_set1_ps(1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps));

    for (uint32_t i = 0; i < n; i += LANES) {
        __m256 v = _mm256_mul_ps(load_eight(x + i, n - i), scale);

        store_eight(y + i, n - i, _mm256_mul_ps(v, load_eight(weight + i, n - i)));
    }
}

void shunt_avx2_rope(float *head, const float *cos_sin, uint32_t head_dim)
{
    uint32_t half = head_dim / 2;

    for (uint32_t i = 0; i < half; i += LANES) {
        uint32_t left = half - i;
        __m256 a = load_eight(head + i, left), b = load_eight(head + half + i, left);
        __m256 c = load_eight(cos_sin + i, left), s = load_eight(cos_sin + half + i, left);

        store_eight(head + i, left, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
        store_eight(head + half + i, left, _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)));
    }
}

void shunt_avx2_silu_mul(float *gate, const float *up, uint32_t n)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);

    for (uint32_t i = 0; i < n; i += LANES) {
        __m256 g = load_eight(gate + i, n - i);
        __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exp_lanes(_mm256_xor_ps(g, sign))));

        store_eight(gate + i, n - i, _mm256_mul_ps(silu, load_eight(up + i, n - i)));
    }
}

void shunt_avx2_add_scaled(float *y, const float *x, float a, uint32_t n)
{
    __m256 factor = _mm256_set1_ps(a);

    for (uint32_t i = 0; i < n; i += LANES) {
        __m256 product = _mm256_mul_ps(factor, load_eight(x + i, n - i));

        store_eight(y + i, n - i, _mm256_add_ps(load_eight(y + i, n - i), product));
    }
}
