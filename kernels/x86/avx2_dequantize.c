/* SPDX-License-Identifier: Apache-2.0
 *
 * The formulas of kernels/blocks.h, 32 weights at a time: the stored integers are put together as
 * bytes, widened to floats, and scaled. Same bits as ref: products are exact, whatever their order,
 * so that scale * q - min may be one FMA.
 */
#include "kernels/x86/avx2.h"

#include <string.h>

#include "kernels/blocks.h"
#include "kernels/x86/avx2_lanes.h"
#include "runtime/base/bytes.h"

static inline float from_f16(const uint8_t *src)
{
    return _cvtsh_ss(shunt_load_u16(src));
}

static inline __m256i load_bytes(const void *src)
{
    return _mm256_loadu_si256(src);
}

/* 32 signed bytes, which every q of every type fits, to 32 floats. */
static inline struct lanes4 widen(__m256i q)
{
    __m128i lo = _mm256_castsi256_si128(q);
    __m128i hi = _mm256_extracti128_si256(q, 1);

    return (struct lanes4){
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(lo)),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(lo, 8))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(hi)),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(hi, 8))),
    };
}

static inline __m256i low_halves(__m256i bytes)
{
    return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}

static inline __m256i high_halves(__m256i bytes)
{
    return low_halves(_mm256_srli_epi16(bytes, 4));
}

static void dequantize_f32(const void *src, float *restrict dst, uint32_t n)
{
    memcpy(dst, src, (size_t)n * sizeof(*dst));
}

static inline __m256 eight_f16(const void *src)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(src));
}

static void dequantize_f16(const void *src, float *restrict dst, uint32_t n)
{
    const uint8_t *half = src;
    uint16_t tail[LANES] = {0};
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES, half += 2 * LANES)
        _mm256_storeu_ps(dst + i, eight_f16(half));
    if (i == n)
        return;
    memcpy(tail, half, 2 * (n - i));
    store_eight(dst + i, n - i, eight_f16(tail));
}

static inline __m256 eight_bf16(const void *src)
{
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(src));

    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

static void dequantize_bf16(const void *src, float *restrict dst, uint32_t n)
{
    const uint8_t *half = src;
    uint16_t tail[LANES] = {0};
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES, half += 2 * LANES)
        _mm256_storeu_ps(dst + i, eight_bf16(half));
    if (i == n)
        return;
    memcpy(tail, half, 2 * (n - i));
    store_eight(dst + i, n - i, eight_bf16(tail));
}

static void dequantize_q8_0(const void *src, float *restrict dst, uint32_t n)
{
    const struct shunt_q8_0 *end = (const struct shunt_q8_0 *)src + n / SHUNT_Q_LEN;

    for (const struct shunt_q8_0 *b = src; b < end; b++, dst += SHUNT_Q_LEN)
        lanes4_store(dst, lanes4_mul(widen(load_bytes(b->q)), _mm256_set1_ps(from_f16(b->d))));
}

static void dequantize_q4_0(const void *src, float *restrict dst, uint32_t n)
{
    const struct shunt_q4_0 *end = (const struct shunt_q4_0 *)src + n / SHUNT_Q_LEN;

    for (const struct shunt_q4_0 *b = src; b < end; b++, dst += SHUNT_Q_LEN) {
        __m128i bytes = _mm_loadu_si128((const void *)b->q);
        __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
        __m256i q = _mm256_sub_epi8(low_halves(both), _mm256_set1_epi8(8));

        lanes4_store(dst, lanes4_mul(widen(q), _mm256_set1_ps(from_f16(b->d))));
    }
}

/* d * s[g] and dmin * m[g] of the eight groups of a Q4_K or Q5_K block. */
struct k_scales {
    float scale[SHUNT_K_GROUPS];
    float min[SHUNT_K_GROUPS];
};

/* Eight numbers of 6 bits: 0..3 in the low bits of `first`, 4..7 with their low four bits in
 * `second` and their high two in the high bits of `first`. */
static inline __m256 six_bits(uint32_t first, uint32_t second)
{
    uint64_t low = first & 0x3f3f3f3f;
    uint64_t high = (second & 0x0f0f0f0f) | (first >> 2 & 0x30303030);
    __m128i bytes = _mm_cvtsi64_si128((long long)(low | high << 32));

    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

static inline struct k_scales unpack_scales(const uint8_t *d, const uint8_t *dmin,
                                            const uint8_t *scales)
{
    uint32_t s = shunt_load_u32(scales), m = shunt_load_u32(scales + 4);
    uint32_t lows = shunt_load_u32(scales + 8);
    struct k_scales k;

    _mm256_storeu_ps(k.scale, _mm256_mul_ps(six_bits(s, lows), _mm256_set1_ps(from_f16(d))));
    _mm256_storeu_ps(k.min, _mm256_mul_ps(six_bits(m, lows >> 4), _mm256_set1_ps(from_f16(dmin))));
    return k;
}

/* dst[0, 32) = scale * q - min of group g. */
static inline void store_group(float *dst, __m256i q, const struct k_scales *k, uint32_t g)
{
    __m256 scale = _mm256_set1_ps(k->scale[g]);
    __m256 min = _mm256_set1_ps(k->min[g]);
    struct lanes4 v = widen(q);

    v.a = _mm256_fmsub_ps(scale, v.a, min);
    v.b = _mm256_fmsub_ps(scale, v.b, min);
    v.c = _mm256_fmsub_ps(scale, v.c, min);
    v.d = _mm256_fmsub_ps(scale, v.d, min);
    lanes4_store(dst, v);
}

static void dequantize_q4_k(const void *src, float *restrict dst, uint32_t n)
{
    const struct shunt_q4_k *end = (const struct shunt_q4_k *)src + n / SHUNT_K_LEN;

    for (const struct shunt_q4_k *b = src; b < end; b++) {
        struct k_scales k = unpack_scales(b->d, b->dmin, b->scales);

        for (uint32_t g = 0; g < SHUNT_K_GROUPS; g += 2, dst += 2 * SHUNT_K_GROUP_LEN) {
            __m256i pair = load_bytes(b->q + g / 2 * SHUNT_K_GROUP_LEN);

            store_group(dst, low_halves(pair), &k, g);
            store_group(dst + SHUNT_K_GROUP_LEN, high_halves(pair), &k, g + 1);
        }
    }
}

/* 16 in the bytes whose bit g is set. */
static inline __m256i fifth_bits(__m256i high, uint32_t g)
{
    __m256i bit = _mm256_set1_epi8((char)(1u << g));
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);

    return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

static void dequantize_q5_k(const void *src, float *restrict dst, uint32_t n)
{
    const struct shunt_q5_k *end = (const struct shunt_q5_k *)src + n / SHUNT_K_LEN;

    for (const struct shunt_q5_k *b = src; b < end; b++) {
        struct k_scales k = unpack_scales(b->d, b->dmin, b->scales);
        __m256i high = load_bytes(b->high);

        for (uint32_t g = 0; g < SHUNT_K_GROUPS; g += 2, dst += 2 * SHUNT_K_GROUP_LEN) {
            __m256i pair = load_bytes(b->q + g / 2 * SHUNT_K_GROUP_LEN);
            __m256i even = _mm256_or_si256(low_halves(pair), fifth_bits(high, g));
            __m256i odd = _mm256_or_si256(high_halves(pair), fifth_bits(high, g + 1));

            store_group(dst, even, &k, g);
            store_group(dst + SHUNT_K_GROUP_LEN, odd, &k, g + 1);
        }
    }
}

/* Run r of a half of a Q6_K block: low four bits from `low`, the two high ones from bits 0 and 1 of
 * `high`, and the scales of its two groups of 16. */
static inline void store_run(float *dst, __m256i low, __m256i high, const float *scales)
{
    __m256i two = _mm256_and_si256(high, _mm256_set1_epi8(3));
    __m256i six = _mm256_or_si256(low, _mm256_slli_epi16(two, 4));
    struct lanes4 v = widen(_mm256_sub_epi8(six, _mm256_set1_epi8(32)));
    __m256 first = _mm256_set1_ps(scales[0]), second = _mm256_set1_ps(scales[1]);

    v.a = _mm256_mul_ps(v.a, first);
    v.b = _mm256_mul_ps(v.b, first);
    v.c = _mm256_mul_ps(v.c, second);
    v.d = _mm256_mul_ps(v.d, second);
    lanes4_store(dst, v);
}

static void dequantize_q6_k(const void *src, float *restrict dst, uint32_t n)
{
    const struct shunt_q6_k *end = (const struct shunt_q6_k *)src + n / SHUNT_K_LEN;

    for (const struct shunt_q6_k *b = src; b < end; b++) {
        __m256 d = _mm256_set1_ps(from_f16(b->d));
        float scales[SHUNT_K_LEN / 16];

        for (uint32_t i = 0; i < SHUNT_K_LEN / 16; i += LANES) {
            __m128i s = _mm_loadl_epi64((const void *)(b->scales + i));

            _mm256_storeu_ps(scales + i,
                             _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(s))));
        }
        for (uint32_t half = 0; half < 2; half++, dst += 128) {
            const float *s = scales + 8 * half;
            __m256i a = load_bytes(b->low[half]), c = load_bytes(b->low[half] + 32);
            __m256i high = load_bytes(b->high[half]);

            store_run(dst, low_halves(a), high, s);
            store_run(dst + 32, low_halves(c), _mm256_srli_epi16(high, 2), s + 2);
            store_run(dst + 64, high_halves(a), _mm256_srli_epi16(high, 4), s + 4);
            store_run(dst + 96, high_halves(c), _mm256_srli_epi16(high, 6), s + 6);
        }
    }
}

void shunt_avx2_dequantize(enum shunt_weight_type type, const void *src, float *dst, uint32_t n)
{
    static void (*const by_type[SHUNT_WEIGHT_TYPES])(const void *src, float *restrict dst,
                                                     uint32_t n) = {
        [SHUNT_WEIGHT_F32] = dequantize_f32,   [SHUNT_WEIGHT_F16] = dequantize_f16,
        [SHUNT_WEIGHT_BF16] = dequantize_bf16, [SHUNT_WEIGHT_Q8_0] = dequantize_q8_0,
        [SHUNT_WEIGHT_Q4_0] = dequantize_q4_0, [SHUNT_WEIGHT_Q4_K] = dequantize_q4_k,
        [SHUNT_WEIGHT_Q5_K] = dequantize_q5_k, [SHUNT_WEIGHT_Q6_K] = dequantize_q6_k,
    };

    by_type[type](src, dst, n);
}
