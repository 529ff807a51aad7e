/* SPDX-License-Identifier: Apache-2.0
 *
 * What happens to one row, or one head of it, between the matrices.
 */
#include "kernels/ref/ref.h"

#include <math.h>

void shunt_ref_rmsnorm(float *y, const float *x, const float *weight, uint32_t n, float eps)
{
    float scale = 1.0f / sqrtf(shunt_ref_dot(x, x, n) / (float)n + eps);

    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * scale * weight[i];
}

void shunt_ref_rope(float *head, const float *cos_sin, uint32_t head_dim)
{
    uint32_t half = head_dim / 2;

    for (uint32_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        float c = cos_sin[i], s = cos_sin[i + half];

        head[i] = a * c - b * s;
        head[i + half] = b * c + a * s;
    }
}

void shunt_ref_silu_mul(float *gate, const float *up, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + shunt_ref_exp(-gate[i])) * up[i];
}

void shunt_ref_add_scaled(float *y, const float *x, float a, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += a * x[i];
}
