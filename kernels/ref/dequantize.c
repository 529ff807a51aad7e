/* SPDX-License-Identifier: Apache-2.0
 *
 * Stored weights to float32. kernels/blocks.h draws the blocks; each function here is one of its
 * formulas with the loops around it. The values are exact but for one rounding where a minimum is
 * subtracted, so every level, and ggml, gives the same bits. (NaNs aside: a NaN scale gives NaNs,
 * and which of the NaNs is nobody's promise.)
 */
#include "kernels/ref/ref.h"

#include "kernels/blocks.h"
#include "runtime/base/bytes.h"

/* F16: sign, 5 bits of exponent (bias 15), 10 of fraction. Exact. */
static float from_f16(const uint8_t *src)
{
    uint32_t h = shunt_load_u16(src);
    uint32_t sign = (h & 0x8000) << 16;
    uint32_t exponent = h >> 10 & 0x1f;
    uint32_t fraction = h & 0x3ff;
    float denormal = (float)fraction * 0x1p-24f;
    uint32_t bits;

    if (exponent == 0)
        memcpy(&bits, &denormal, sizeof(bits));
    else if (exponent == 31) /* the top bit of its fraction makes a NaN quiet, as hardware does */
        bits = 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0);
    else
        bits = (exponent + 127 - 15) << 23 | fraction << 13;
    bits |= sign;
    return shunt_load_f32(&bits);
}

static void dequantize_f32(const void *src, float *dst, uint32_t n)
{
    memcpy(dst, src, (size_t)n * sizeof(*dst));
}

static void dequantize_f16(const void *src, float *dst, uint32_t n)
{
    const uint8_t *half = src;

    for (uint32_t i = 0; i < n; i++)
        dst[i] = from_f16(half + 2 * (size_t)i);
}

/* BF16 is the upper half of an F32. */
static void dequantize_bf16(const void *src, float *dst, uint32_t n)
{
    const uint8_t *half = src;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)shunt_load_u16(half + 2 * (size_t)i) << 16;

        memcpy(&dst[i], &bits, sizeof(bits));
    }
}

static void dequantize_q8_0(const void *src, float *dst, uint32_t n)
{
    const struct shunt_q8_0 *end = (const struct shunt_q8_0 *)src + n / SHUNT_Q_LEN;

    for (const struct shunt_q8_0 *b = src; b < end; b++, dst += SHUNT_Q_LEN) {
        float d = from_f16(b->d);

        for (uint32_t i = 0; i < SHUNT_Q_LEN; i++)
            dst[i] = d * (float)b->q[i];
    }
}

static void dequantize_q4_0(const void *src, float *dst, uint32_t n)
{
    const struct shunt_q4_0 *end = (const struct shunt_q4_0 *)src + n / SHUNT_Q_LEN;

    for (const struct shunt_q4_0 *b = src; b < end; b++, dst += SHUNT_Q_LEN) {
        float d = from_f16(b->d);

        for (uint32_t i = 0; i < SHUNT_Q_LEN / 2; i++) {
            dst[i] = d * (float)((b->q[i] & 15) - 8);
            dst[i + SHUNT_Q_LEN / 2] = d * (float)((b->q[i] >> 4) - 8);
        }
    }
}

static uint32_t group_scale(const uint8_t *scales, uint32_t group)
{
    if (group < 4)
        return scales[group] & 63u;
    return (scales[group + 4] & 15u) | (uint32_t)(scales[group - 4] >> 6) << 4;
}

static uint32_t group_min(const uint8_t *scales, uint32_t group)
{
    if (group < 4)
        return scales[group + 4] & 63u;
    return (uint32_t)(scales[group + 4] >> 4) | (uint32_t)(scales[group] >> 6) << 4;
}

/* The low four bits of weight j of a group: two groups share 32 bytes. */
static uint32_t group_low(const uint8_t *q, uint32_t group, uint32_t j)
{
    return q[group / 2 * SHUNT_K_GROUP_LEN + j] >> group % 2 * 4 & 15u;
}

static void dequantize_q4_k(const void *src, float *dst, uint32_t n)
{
    const struct shunt_q4_k *end = (const struct shunt_q4_k *)src + n / SHUNT_K_LEN;

    for (const struct shunt_q4_k *b = src; b < end; b++) {
        float d = from_f16(b->d);
        float dmin = from_f16(b->dmin);

        for (uint32_t g = 0; g < SHUNT_K_GROUPS; g++) {
            float scale = d * (float)group_scale(b->scales, g);
            float min = dmin * (float)group_min(b->scales, g);

            for (uint32_t j = 0; j < SHUNT_K_GROUP_LEN; j++)
                *dst++ = scale * (float)group_low(b->q, g, j) - min;
        }
    }
}

static void dequantize_q5_k(const void *src, float *dst, uint32_t n)
{
    const struct shunt_q5_k *end = (const struct shunt_q5_k *)src + n / SHUNT_K_LEN;

    for (const struct shunt_q5_k *b = src; b < end; b++) {
        float d = from_f16(b->d);
        float dmin = from_f16(b->dmin);

        for (uint32_t g = 0; g < SHUNT_K_GROUPS; g++) {
            float scale = d * (float)group_scale(b->scales, g);
            float min = dmin * (float)group_min(b->scales, g);

            for (uint32_t j = 0; j < SHUNT_K_GROUP_LEN; j++) {
                uint32_t fifth = b->high[j] >> g & 1u;

                *dst++ = scale * (float)(group_low(b->q, g, j) | fifth << 4) - min;
            }
        }
    }
}

static void dequantize_q6_k(const void *src, float *dst, uint32_t n)
{
    const struct shunt_q6_k *end = (const struct shunt_q6_k *)src + n / SHUNT_K_LEN;

    for (const struct shunt_q6_k *b = src; b < end; b++) {
        float d = from_f16(b->d);

        for (uint32_t i = 0; i < SHUNT_K_LEN; i++) {
            uint32_t half = i / 128, run = i / 32 % 4, j = i % 32;
            uint32_t low = b->low[half][run % 2 * 32 + j] >> run / 2 * 4 & 15u;
            uint32_t high = b->high[half][j] >> run * 2 & 3u;
            float scale = d * (float)b->scales[i / 16];

            *dst++ = scale * (float)((int32_t)(low | high << 4) - 32);
        }
    }
}

void shunt_ref_dequantize(enum shunt_weight_type type, const void *src, float *dst, uint32_t n)
{
    static void (*const by_type[SHUNT_WEIGHT_TYPES])(const void *src, float *dst, uint32_t n) = {
        [SHUNT_WEIGHT_F32] = dequantize_f32,   [SHUNT_WEIGHT_F16] = dequantize_f16,
        [SHUNT_WEIGHT_BF16] = dequantize_bf16, [SHUNT_WEIGHT_Q8_0] = dequantize_q8_0,
        [SHUNT_WEIGHT_Q4_0] = dequantize_q4_0, [SHUNT_WEIGHT_Q4_K] = dequantize_q4_k,
        [SHUNT_WEIGHT_Q5_K] = dequantize_q5_k, [SHUNT_WEIGHT_Q6_K] = dequantize_q6_k,
    };

    by_type[type](src, dst, n);
}
