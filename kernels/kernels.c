/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/kernels.h"

#include <stdio.h>
#include <string.h>

#include "kernels/ref/ref.h"
#include "kernels/x86/avx2.h"
#include "runtime/base/cpu.h"

static const struct shunt_kernels ref_kernels = {
    .name = "ref",
    .level = SHUNT_KERNELS_REF,
    .matmul = shunt_ref_matmul,
    .dequantize = shunt_ref_dequantize,
    .rmsnorm = shunt_ref_rmsnorm,
    .rope = shunt_ref_rope,
    .silu_mul = shunt_ref_silu_mul,
    .attend = shunt_ref_attend,
    .add_scaled = shunt_ref_add_scaled,
    .route = shunt_ref_route,
};

static const char *const names[SHUNT_KERNEL_LEVELS] = {
    [SHUNT_KERNELS_REF] = "ref",
    [SHUNT_KERNELS_AVX2] = "avx2",
};

const struct shunt_kernels *shunt_kernels_get(enum shunt_kernel_level level)
{
    switch (level) {
    case SHUNT_KERNELS_REF:
        return &ref_kernels;
    case SHUNT_KERNELS_AVX2:
        return shunt_cpu_features() & SHUNT_CPU_AVX2 ? shunt_avx2_kernels : NULL;
    default:
        return NULL;
    }
}

uint32_t shunt_kernels_available(void)
{
    uint32_t available = 0;

    for (uint32_t level = 0; level < SHUNT_KERNEL_LEVELS; level++)
        if (shunt_kernels_get((enum shunt_kernel_level)level))
            available |= 1u << level;
    return available;
}

void shunt_kernels_names(uint32_t levels, char *list, size_t bytes)
{
    size_t len = 0;

    snprintf(list, bytes, "none known here");
    for (uint32_t i = 0; i < SHUNT_KERNEL_LEVELS && len < bytes; i++)
        if (levels & 1u << i)
            len += (size_t)snprintf(list + len, bytes - len, "%s%s", len ? ", " : "", names[i]);
}

int shunt_kernels_from_name(const char *name, enum shunt_kernel_level *level)
{
    for (uint32_t i = 0; i < SHUNT_KERNEL_LEVELS; i++) {
        if (strcmp(name, names[i]))
            continue;
        *level = (enum shunt_kernel_level)i;
        return 0;
    }
    return -1;
}
