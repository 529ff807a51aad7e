/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/weight_type.h"

#include "kernels/blocks.h"

/* Names and numbers are GGUF's (ggml's tensor types); a number is never reused there. */
static const struct shunt_weight_info infos[SHUNT_WEIGHT_TYPES] = {
    [SHUNT_WEIGHT_F32] = {"F32", 0, 1, 4},
    [SHUNT_WEIGHT_F16] = {"F16", 1, 1, 2},
    [SHUNT_WEIGHT_BF16] = {"BF16", 30, 1, 2},
    [SHUNT_WEIGHT_Q8_0] = {"Q8_0", 8, SHUNT_Q_LEN, sizeof(struct shunt_q8_0)},
    [SHUNT_WEIGHT_Q4_0] = {"Q4_0", 2, SHUNT_Q_LEN, sizeof(struct shunt_q4_0)},
    [SHUNT_WEIGHT_Q4_K] = {"Q4_K", 12, SHUNT_K_LEN, sizeof(struct shunt_q4_k)},
    [SHUNT_WEIGHT_Q5_K] = {"Q5_K", 13, SHUNT_K_LEN, sizeof(struct shunt_q5_k)},
    [SHUNT_WEIGHT_Q6_K] = {"Q6_K", 14, SHUNT_K_LEN, sizeof(struct shunt_q6_k)},
};

/* By GGUF number. Numbers that later versions of the format withdrew are here too: such files are
 * still about, and the error should name what they hold. */
static const char *const gguf_names[] = {
    [0] = "F32",     [1] = "F16",         [2] = "Q4_0",        [3] = "Q4_1",        [4] = "Q4_2",
    [5] = "Q4_3",    [6] = "Q5_0",        [7] = "Q5_1",        [8] = "Q8_0",        [9] = "Q8_1",
    [10] = "Q2_K",   [11] = "Q3_K",       [12] = "Q4_K",       [13] = "Q5_K",       [14] = "Q6_K",
    [15] = "Q8_K",   [16] = "IQ2_XXS",    [17] = "IQ2_XS",     [18] = "IQ3_XXS",    [19] = "IQ1_S",
    [20] = "IQ4_NL", [21] = "IQ3_S",      [22] = "IQ2_S",      [23] = "IQ4_XS",     [24] = "I8",
    [25] = "I16",    [26] = "I32",        [27] = "I64",        [28] = "F64",        [29] = "IQ1_M",
    [30] = "BF16",   [31] = "Q4_0_4_4",   [32] = "Q4_0_4_8",   [33] = "Q4_0_8_8",   [34] = "TQ1_0",
    [35] = "TQ2_0",  [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4",
    [40] = "NVFP4",  [41] = "Q1_0",
};

const struct shunt_weight_info *shunt_weight_info(enum shunt_weight_type type)
{
    return &infos[type];
}

int shunt_weight_from_gguf(uint32_t gguf_id, enum shunt_weight_type *type)
{
    for (uint32_t i = 0; i < SHUNT_WEIGHT_TYPES; i++) {
        if (infos[i].gguf_id != gguf_id)
            continue;
        *type = (enum shunt_weight_type)i;
        return 0;
    }
    return -1;
}

const char *shunt_weight_gguf_name(uint32_t gguf_id)
{
    return gguf_id < sizeof(gguf_names) / sizeof(*gguf_names) ? gguf_names[gguf_id] : NULL;
}
