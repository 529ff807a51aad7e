/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/x86/avx2.h"

#include "kernels/ref/ref.h"

static const struct shunt_kernels table = {
    .name = "avx2",
    .level = SHUNT_KERNELS_AVX2,
    .matmul = shunt_avx2_matmul,
    .dequantize = shunt_avx2_dequantize,
    .rmsnorm = shunt_avx2_rmsnorm,
    .rope = shunt_avx2_rope,
    .silu_mul = shunt_avx2_silu_mul,
    .attend = shunt_avx2_attend,
    .add_scaled = shunt_avx2_add_scaled,
    .route = shunt_ref_route,
};

const struct shunt_kernels *const shunt_avx2_kernels = &table;
