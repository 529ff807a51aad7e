/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference level: scalar C, written to be read. Sums ascend; each operation rounds once, to
 * float32; nothing is fused. It gives the same bits on every machine whose float is IEEE binary32,
 * and all other levels are checked against it.
 */
#ifndef SHUNT_KERNELS_REF_REF_H
#define SHUNT_KERNELS_REF_REF_H

#include <float.h>
#include <string.h>

#include "kernels/exp_terms.h"
#include "kernels/kernels.h"

_Static_assert(FLT_EVAL_METHOD == 0 && FLT_MANT_DIG == 24, "each operation rounds once to float32");

void shunt_ref_dequantize(enum shunt_weight_type type, const void *src, float *dst, uint32_t n);
void shunt_ref_matmul(const struct shunt_matrix *w, uint32_t row_begin, uint32_t row_end,
                      const float *const *x, float *const *y, uint32_t count, float *scratch);
void shunt_ref_rmsnorm(float *y, const float *x, const float *weight, uint32_t n, float eps);
void shunt_ref_rope(float *head, const float *cos_sin, uint32_t head_dim);
void shunt_ref_silu_mul(float *gate, const float *up, uint32_t n);
void shunt_ref_add_scaled(float *y, const float *x, float a, uint32_t n);
void shunt_ref_attend(const struct shunt_attend *a);
void shunt_ref_route(const float *logits, uint32_t n, uint32_t k, bool normalize, uint16_t *ids,
                     float *weights);

static inline float shunt_ref_dot(const float *a, const float *b, uint32_t n)
{
    float sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* 2^n for n in [-126, 127]; another n, which only a NaN leads to, gives some float. */
static inline float shunt_ref_power_of_two(int32_t n)
{
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The integer that SHUNT_EXP_ROUNDER has been added to. */
static inline int32_t shunt_ref_rounded(float sum)
{
    float rounder = SHUNT_EXP_ROUNDER;
    int32_t a, b;

    memcpy(&a, &sum, sizeof(a));
    memcpy(&b, &rounder, sizeof(b));
    return a - b;
}

/* exp, by the plan of kernels/exp_terms.h. */
static inline float shunt_ref_exp(float x)
{
    float sum, n, r, p;
    int32_t exponent, half;

    x = x < SHUNT_EXP_MIN ? SHUNT_EXP_MIN : x;
    x = x > SHUNT_EXP_MAX ? SHUNT_EXP_MAX : x;

    sum = x * SHUNT_LOG2_E + SHUNT_EXP_ROUNDER;
    n = sum - SHUNT_EXP_ROUNDER;
    r = x - n * SHUNT_LN2_HI;
    r = r - n * SHUNT_LN2_LO;

    p = SHUNT_EXP_C7;
    p = p * r + SHUNT_EXP_C6;
    p = p * r + SHUNT_EXP_C5;
    p = p * r + SHUNT_EXP_C4;
    p = p * r + SHUNT_EXP_C3;
    p = p * r + SHUNT_EXP_C2;
    p = p * r + 1.0f;
    p = p * r + 1.0f;

    exponent = shunt_ref_rounded(sum);
    half = exponent / 2;
    return p * shunt_ref_power_of_two(half) * shunt_ref_power_of_two(exponent - half);
}

#endif
