/* SPDX-License-Identifier: Apache-2.0
 *
 * Eight floats at a time: what the files of the avx2 level share.
 *
 * A sum over elements 0, 1, 2, ... is kept in eight lanes: lane j takes elements j, j + 8, ... in
 * ascending order, one FMA each, and at the end the lanes are added in the tree of sums_of. A sum
 * never has a second accumulator, so its bits do not depend on how a loop is unrolled; loops get
 * their parallelism from several sums at once. The last, partial eight go through the same
 * instructions with zeros in the missing lanes.
 */
#ifndef SHUNT_KERNELS_X86_AVX2_LANES_H
#define SHUNT_KERNELS_X86_AVX2_LANES_H

#include <immintrin.h>

#include "kernels/exp_terms.h"
#include "kernels/kernels.h"

#define LANES 8u

/* For the few functions that are only fast, or only fit the registers, with their arguments known.
 */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Four registers that are worked on together: four sums, or 32 neighbouring floats. */
struct lanes4 {
    __m256 a, b, c, d;
};

/* Lanes [0, n) on, the others off. */
static inline __m256i lane_mask(uint32_t n)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);

    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

/* The next eight of `left` elements; zeros behind the last. Nothing behind the last is touched. */
static inline __m256 load_eight(const float *p, uint32_t left)
{
    return left >= LANES ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lane_mask(left));
}

static inline void store_eight(float *p, uint32_t left, __m256 v)
{
    if (left >= LANES)
        _mm256_storeu_ps(p, v);
    else
        _mm256_maskstore_ps(p, lane_mask(left), v);
}

static inline struct lanes4 lanes4_zero(void)
{
    __m256 zero = _mm256_setzero_ps();

    return (struct lanes4){zero, zero, zero, zero};
}

static inline struct lanes4 lanes4_load(const float *p)
{
    return (struct lanes4){_mm256_loadu_ps(p), _mm256_loadu_ps(p + LANES),
                           _mm256_loadu_ps(p + 2 * LANES), _mm256_loadu_ps(p + 3 * LANES)};
}

static inline void lanes4_store(float *p, struct lanes4 v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + LANES, v.b);
    _mm256_storeu_ps(p + 2 * LANES, v.c);
    _mm256_storeu_ps(p + 3 * LANES, v.d);
}

static inline struct lanes4 lanes4_mul(struct lanes4 v, __m256 f)
{
    return (struct lanes4){_mm256_mul_ps(v.a, f), _mm256_mul_ps(v.b, f), _mm256_mul_ps(v.c, f),
                           _mm256_mul_ps(v.d, f)};
}

static inline __m128 fold(__m256 v)
{
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

/* The four sums of s, each ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7)). */
static inline __m128 sums_of(struct lanes4 s)
{
    __m128 a = fold(s.a), b = fold(s.b), c = fold(s.c), d = fold(s.d);

    _MM_TRANSPOSE4_PS(a, b, c, d);
    return _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
}

/* One sum, by the same tree. */
static inline float sum_of(__m256 s)
{
    __m128 folded = fold(s);
    __m128 pairs = _mm_add_ps(folded, _mm_movehl_ps(folded, folded));

    return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
}

/* 2^n for n in [-126, 127]; another n, which only a NaN leads to, gives some float. */
static inline __m256 power_of_two(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* exp, by the plan of kernels/exp_terms.h. */
static inline __m256 exp_lanes(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 rounder = _mm256_set1_ps(SHUNT_EXP_ROUNDER);
    __m256 sum, n, r, p, power_a, power_b;
    __m256i exponent, half;

    /* max and min return their second operand when one is NaN: NaN stays. */
    x = _mm256_max_ps(_mm256_set1_ps(SHUNT_EXP_MIN), x);
    x = _mm256_min_ps(_mm256_set1_ps(SHUNT_EXP_MAX), x);

    sum = _mm256_fmadd_ps(x, _mm256_set1_ps(SHUNT_LOG2_E), rounder);
    n = _mm256_sub_ps(sum, rounder);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(SHUNT_LN2_HI), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(SHUNT_LN2_LO), r);

    p = _mm256_set1_ps(SHUNT_EXP_C7);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SHUNT_EXP_C6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SHUNT_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SHUNT_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SHUNT_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SHUNT_EXP_C2));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);

    exponent = _mm256_sub_epi32(_mm256_castps_si256(sum), _mm256_castps_si256(rounder));
    half = _mm256_srai_epi32(exponent, 1);
    power_a = power_of_two(half);
    power_b = power_of_two(_mm256_sub_epi32(exponent, half));
    return _mm256_mul_ps(_mm256_mul_ps(p, power_a), power_b);
}

#endif
