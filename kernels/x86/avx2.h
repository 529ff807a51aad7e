/* SPDX-License-Identifier: Apache-2.0
 *
 * The avx2 level: AVX2, FMA and F16C. Its files are compiled for these instructions and nothing of
 * them may run before shunt_kernels_get has looked at the processor; so the level shows itself to
 * the rest of the library as data only.
 */
#ifndef SHUNT_KERNELS_X86_AVX2_H
#define SHUNT_KERNELS_X86_AVX2_H

#include "kernels/kernels.h"

/* The level's table; NULL in a build without it (kernels/no_avx2.c). */
extern const struct shunt_kernels *const shunt_avx2_kernels;

void shunt_avx2_dequantize(enum shunt_weight_type type, const void *src, float *dst, uint32_t n);
void shunt_avx2_matmul(const struct shunt_matrix *w, uint32_t row_begin, uint32_t row_end,
                       const float *const *x, float *const *y, uint32_t count, float *scratch);
void shunt_avx2_rmsnorm(float *y, const float *x, const float *weight, uint32_t n, float eps);
void shunt_avx2_rope(float *head, const float *cos_sin, uint32_t head_dim);
void shunt_avx2_silu_mul(float *gate, const float *up, uint32_t n);
void shunt_avx2_add_scaled(float *y, const float *x, float a, uint32_t n);
void shunt_avx2_attend(const struct shunt_attend *a);

#endif
