/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/weight_type.h"

#include <criterion/criterion.h>
#include <string.h>

/* From the GGUF specification, once more by hand. */
static const struct shunt_weight_info expected[SHUNT_WEIGHT_TYPES] = {
    {"F32", 0, 1, 4},    {"F16", 1, 1, 2},       {"BF16", 30, 1, 2},     {"Q8_0", 8, 32, 34},
    {"Q4_0", 2, 32, 18}, {"Q4_K", 12, 256, 144}, {"Q5_K", 13, 256, 176}, {"Q6_K", 14, 256, 210},
};

Test(weight_type, table_is_that_of_gguf)
{
    for (uint32_t i = 0; i < SHUNT_WEIGHT_TYPES; i++) {
        const struct shunt_weight_info *info = shunt_weight_info((enum shunt_weight_type)i);
        enum shunt_weight_type type;

        cr_assert_str_eq(info->name, expected[i].name);
        cr_assert_eq(info->gguf_id, expected[i].gguf_id);
        cr_assert_eq(info->block_len, expected[i].block_len);
        cr_assert_eq(info->block_bytes, expected[i].block_bytes);
        cr_assert_eq(shunt_weight_from_gguf(info->gguf_id, &type), 0);
        cr_assert_eq(type, i);
        cr_assert_str_eq(shunt_weight_gguf_name(info->gguf_id), info->name);
    }
}

Test(weight_type, row_bytes)
{
    cr_assert_eq(shunt_weight_row_bytes(SHUNT_WEIGHT_F16, 7), 14);
    cr_assert_eq(shunt_weight_row_bytes(SHUNT_WEIGHT_Q8_0, 2880), 3060);
    cr_assert_eq(shunt_weight_row_bytes(SHUNT_WEIGHT_Q4_K, 2048), 1152);
}

/* A type that is not computed with is refused and can still be named. */
Test(weight_type, names_what_it_refuses)
{
    enum shunt_weight_type type = SHUNT_WEIGHT_Q6_K;
    uint32_t accepted = 0;

    for (uint32_t id = 0; id < 64; id++)
        accepted += !shunt_weight_from_gguf(id, &type);
    cr_assert_eq(accepted, SHUNT_WEIGHT_TYPES);

    type = SHUNT_WEIGHT_Q6_K;
    cr_assert_eq(shunt_weight_from_gguf(39, &type), -1);
    cr_assert_eq(type, SHUNT_WEIGHT_Q6_K);
    cr_assert_str_eq(shunt_weight_gguf_name(39), "MXFP4");
    cr_assert_str_eq(shunt_weight_gguf_name(3), "Q4_1");
    cr_assert_str_eq(shunt_weight_gguf_name(23), "IQ4_XS");
    for (uint32_t id = 0; id <= 41; id++)
        cr_assert_not_null(shunt_weight_gguf_name(id));
    cr_assert_null(shunt_weight_gguf_name(42));
    cr_assert_null(shunt_weight_gguf_name(UINT32_MAX));
}
