/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel tests share: random numbers from a fixed seed, memory with guards around it, and
 * random weights of every type with their bad cases.
 */
#ifndef SHUNT_TESTS_KERNELS_CHECK_H
#define SHUNT_TESTS_KERNELS_CHECK_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "tests/tolerances.h"

#define CHECK_MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- levels */

/* The next usable level at or after *level; NULL behind the last:
 * for (uint32_t l = 0; (kernels = next_level(&l)); l++) */
static inline const struct shunt_kernels *next_level(uint32_t *level)
{
    for (; *level < SHUNT_KERNEL_LEVELS; ++*level) {
        const struct shunt_kernels *k = shunt_kernels_get((enum shunt_kernel_level) * level);

        if (k)
            return k;
    }
    return NULL;
}

/* ---- random numbers (splitmix64) */

static inline uint64_t random_u64(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Uniform in [-1, 1). */
static inline float random_unit(uint64_t *seed)
{
    return (float)(int32_t)(random_u64(seed) >> 40) * 0x1p-23f - 1.0f;
}

static inline void random_floats(uint64_t *seed, float *dst, size_t n, float magnitude)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = random_unit(seed) * magnitude;
}

/* ---- comparison */

/* The same bits, or both NaN: which NaN comes of two is not part of any contract. */
static inline bool same_float(float a, float b)
{
    return (a != a && b != b) || memcmp(&a, &b, sizeof(a)) == 0;
}

static inline bool same_floats(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!same_float(a[i], b[i]))
            return false;
    return true;
}

/* ---- guarded memory */

#define GUARD_BYTES 256u
#define GUARD_FILL  0xa5

/* `bytes` at `data`, which is `skew` bytes behind a multiple of 64, with guards on both sides. */
struct guarded {
    unsigned char *base, *data;
    size_t bytes;
};

static inline void *guarded_open(struct guarded *g, size_t bytes, size_t skew)
{
    size_t total = (2 * GUARD_BYTES + skew + bytes + 63) / 64 * 64;

    g->base = aligned_alloc(64, total);
    cr_assert_not_null(g->base);
    memset(g->base, GUARD_FILL, total);
    g->data = g->base + GUARD_BYTES + skew;
    g->bytes = bytes;
    return g->data;
}

static inline float *guarded_floats(struct guarded *g, size_t n, size_t skew_floats)
{
    return guarded_open(g, n * sizeof(float), skew_floats * sizeof(float));
}

static inline bool guards_intact(const struct guarded *g)
{
    for (const unsigned char *p = g->base; p < g->data; p++)
        if (*p != GUARD_FILL)
            return false;
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (g->data[g->bytes + i] != GUARD_FILL)
            return false;
    return true;
}

static inline void guarded_close(struct guarded *g)
{
    cr_expect(guards_intact(g), "wrote outside its %zu bytes", g->bytes);
    free(g->base);
}

/* Memory that ends where reading faults, as a mapped file may: a copy of src (NULL: zeros). Goes
 * with the process, which is one test. */
static inline void *fenced(const void *src, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t mapped = (bytes + page - 1) / page * page;
    unsigned char *base =
        mmap(NULL, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    cr_assert(base != MAP_FAILED);
    cr_assert_eq(mprotect(base + mapped, page, PROT_NONE), 0);
    if (src)
        memcpy(base + mapped - bytes, src, bytes);
    return base + mapped - bytes;
}

/* ---- weights */

enum weight_case {
    WEIGHTS_TYPICAL,  /* scales of the size that models have */
    WEIGHTS_ZERO,     /* all scales 0 or -0 */
    WEIGHTS_DENORMAL, /* all scales denormal F16s (BF16, F32: denormals) */
    WEIGHTS_MAX,      /* all scales the largest of F16 */
    WEIGHTS_ANY,      /* any bits: infinities and NaNs among them */
    WEIGHT_CASES
};

static inline uint16_t random_f16(uint64_t *seed, enum weight_case c)
{
    uint32_t r = (uint32_t)random_u64(seed);
    uint32_t sign = r & 0x8000;

    switch (c) {
    case WEIGHTS_TYPICAL:
        return (uint16_t)(sign | (4 + (r >> 16) % 7) << 10 | (r & 0x3ff)); /* 2^-11 to 2^-4 */
    case WEIGHTS_ZERO:
        return (uint16_t)sign;
    case WEIGHTS_DENORMAL:
        return (uint16_t)(sign | (r & 0x3ff));
    case WEIGHTS_MAX:
        return (uint16_t)(sign | 0x7bff);
    default:
        return (uint16_t)r;
    }
}

/* One F32, from which BF16 takes the upper half. MAX: so that 4096 products with x in [-1, 1] stay
 * finite. */
static inline uint32_t random_f32_bits(uint64_t *seed, enum weight_case c)
{
    uint64_t r = random_u64(seed);
    uint32_t sign = (uint32_t)r & 0x80000000, fraction = (uint32_t)(r >> 32) & 0x7fffff;

    switch (c) {
    case WEIGHTS_TYPICAL:
        return sign | (uint32_t)(116 + r % 7) << 23 | fraction;
    case WEIGHTS_ZERO:
        return sign;
    case WEIGHTS_DENORMAL:
        return sign | fraction;
    case WEIGHTS_MAX:
        return sign | 235u << 23 | fraction;
    default:
        return (uint32_t)(r >> 16);
    }
}

/* Byte offsets of the F16 scales in a block. */
static inline void scale_offsets(enum shunt_weight_type type, uint32_t offsets[2])
{
    bool two = type == SHUNT_WEIGHT_Q4_K || type == SHUNT_WEIGHT_Q5_K;

    offsets[0] = type == SHUNT_WEIGHT_Q6_K ? 208 : 0;
    offsets[1] = two ? 2 : offsets[0];
}

static inline void random_block(uint64_t *seed, enum shunt_weight_type type, enum weight_case c,
                                unsigned char *block)
{
    uint32_t bits = random_f32_bits(seed, c);
    uint16_t half = random_f16(seed, c);
    uint32_t offsets[2];

    switch (type) {
    case SHUNT_WEIGHT_F32:
        memcpy(block, &bits, 4);
        return;
    case SHUNT_WEIGHT_BF16:
        memcpy(block, (unsigned char *)&bits + 2, 2);
        return;
    case SHUNT_WEIGHT_F16:
        memcpy(block, &half, 2);
        return;
    default:
        break;
    }
    for (uint32_t i = 0; i < shunt_weight_info(type)->block_bytes; i++)
        block[i] = (unsigned char)random_u64(seed);
    scale_offsets(type, offsets);
    for (uint32_t i = 0; i < 2; i++) {
        half = random_f16(seed, c);
        memcpy(block + offsets[i], &half, 2);
    }
}

static inline void random_weights(uint64_t *seed, enum shunt_weight_type type, enum weight_case c,
                                  void *dst, uint64_t weights)
{
    const struct shunt_weight_info *info = shunt_weight_info(type);
    unsigned char *block = dst;

    for (uint64_t i = 0; i < weights; i += info->block_len, block += info->block_bytes)
        random_block(seed, type, c, block);
}

#endif
