/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/kernels.h"

#include <criterion/criterion.h>

#include "runtime/base/cpu.h"

Test(kernels, tables_are_complete)
{
    for (uint32_t i = 0; i < SHUNT_KERNEL_LEVELS; i++) {
        const struct shunt_kernels *k = shunt_kernels_get((enum shunt_kernel_level)i);
        enum shunt_kernel_level level;

        cr_assert_eq(k != NULL, shunt_kernels_available() >> i & 1);
        if (!k)
            continue;
        cr_assert_eq(k->level, i);
        cr_assert_eq(shunt_kernels_from_name(k->name, &level), 0);
        cr_assert_eq(level, i);
        cr_assert(k->matmul && k->dequantize && k->rmsnorm && k->rope && k->silu_mul && k->attend &&
                  k->add_scaled && k->route);
    }
}

Test(kernels, ref_is_everywhere)
{
    cr_assert_not_null(shunt_kernels_get(SHUNT_KERNELS_REF));
    cr_assert_eq(shunt_kernels_available() & 1, 1);
    cr_assert_eq(shunt_kernels_available() >> SHUNT_KERNEL_LEVELS, 0);
}

Test(kernels, avx2_asks_the_processor)
{
    if (!(shunt_cpu_features() & SHUNT_CPU_AVX2))
        cr_assert_null(shunt_kernels_get(SHUNT_KERNELS_AVX2));
}

Test(kernels, unknown_levels_are_refused)
{
    enum shunt_kernel_level level = SHUNT_KERNELS_REF;

    cr_assert_null(shunt_kernels_get(SHUNT_KERNEL_LEVELS));
    cr_assert_null(shunt_kernels_get((enum shunt_kernel_level)1000));
    cr_assert_eq(shunt_kernels_from_name("avx", &level), -1);
    cr_assert_eq(shunt_kernels_from_name("", &level), -1);
    cr_assert_eq(shunt_kernels_from_name("avx2 ", &level), -1);
    cr_assert_eq(level, SHUNT_KERNELS_REF);
}
