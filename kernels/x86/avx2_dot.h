/* SPDX-License-Identifier: Apache-2.0
 *
 * The one dot product of the avx2 level: matmul's outputs and attend's scores are the same sums in
 * the same order. Four of them share each x, up to three x share each w: twelve accumulators, three
 * x and one w fill the sixteen registers.
 */
#ifndef SHUNT_KERNELS_X86_AVX2_DOT_H
#define SHUNT_KERNELS_X86_AVX2_DOT_H

#include "kernels/x86/avx2_lanes.h"

#define DOT_ROWS 3u

/* The sums of up to three x with four w. */
struct dot_tile {
    struct lanes4 x0, x1, x2;
};

/* sums of one w with up to three x, eight elements of each. */
ALWAYS_INLINE void dot_one(__m256 w, const __m256 x[DOT_ROWS], uint32_t rows, __m256 *sum0,
                           __m256 *sum1, __m256 *sum2)
{
    *sum0 = _mm256_fmadd_ps(w, x[0], *sum0);
    if (rows > 1)
        *sum1 = _mm256_fmadd_ps(w, x[1], *sum1);
    if (rows > 2)
        *sum2 = _mm256_fmadd_ps(w, x[2], *sum2);
}

/* Elements [i, i + 8), or those of them that are left. */
ALWAYS_INLINE void dot_eight(struct dot_tile *t, const float *const w[4], const float *const *x,
                             uint32_t rows, uint32_t i, uint32_t left)
{
    __m256 v[DOT_ROWS];

    v[0] = load_eight(x[0] + i, left);
    if (rows > 1)
        v[1] = load_eight(x[1] + i, left);
    if (rows > 2)
        v[2] = load_eight(x[2] + i, left);
    dot_one(load_eight(w[0] + i, left), v, rows, &t->x0.a, &t->x1.a, &t->x2.a);
    dot_one(load_eight(w[1] + i, left), v, rows, &t->x0.b, &t->x1.b, &t->x2.b);
    dot_one(load_eight(w[2] + i, left), v, rows, &t->x0.c, &t->x1.c, &t->x2.c);
    dot_one(load_eight(w[3] + i, left), v, rows, &t->x0.d, &t->x1.d, &t->x2.d);
}

/* Adds to the tile the products of n elements, which begin at a multiple of eight of the whole sum.
 * `rows` in [1, 3] is a constant at every call; x[rows] and beyond are not looked at. */
ALWAYS_INLINE void dot_add(struct dot_tile *tile, const float *const w[4], const float *const *x,
                           uint32_t rows, uint32_t n)
{
    struct dot_tile t = *tile;
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES)
        dot_eight(&t, w, x, rows, i, LANES);
    if (i < n)
        dot_eight(&t, w, x, rows, i, n - i);
    *tile = t;
}

#endif
