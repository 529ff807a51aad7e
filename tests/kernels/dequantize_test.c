/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/kernels/check.h"

#include <stdio.h>

#include "runtime/base/bytes.h"

#define WEIGHTS_MAX_RUN 4096u

/* fixtures/make_dequantize.py says how the file came about. */
struct fixture {
    uint32_t gguf_id, block_bytes, weights;
    const unsigned char *blocks, *expected;
};

static unsigned char *read_file(const char *path, size_t *bytes)
{
    unsigned char *data = malloc(1 << 20);
    FILE *f = fopen(path, "rb");

    cr_assert(f && data, "cannot open %s", path);
    *bytes = fread(data, 1, 1 << 20, f);
    fclose(f);
    return data;
}

static struct fixture next_fixture(const unsigned char **at)
{
    struct fixture f = {shunt_load_u32(*at), shunt_load_u32(*at + 4), shunt_load_u32(*at + 8),
                        *at + 12, *at + 12 + shunt_load_u32(*at + 4)};

    *at = f.expected + 4 * (size_t)f.weights;
    return f;
}

static void check_fixture(const struct shunt_kernels *k, const struct fixture *f)
{
    const char *name = shunt_weight_gguf_name(f->gguf_id);
    enum shunt_weight_type type;
    struct guarded out;
    float *weights = guarded_floats(&out, f->weights, 0);

    cr_assert_eq(shunt_weight_from_gguf(f->gguf_id, &type), 0);
    cr_assert_eq(f->block_bytes, shunt_weight_row_bytes(type, f->weights));
    k->dequantize(type, f->blocks, weights, f->weights);
    for (uint32_t i = 0; i < f->weights; i++) {
        float expected = shunt_load_f32(f->expected + 4 * (size_t)i);

        cr_assert(same_float(weights[i], expected), "%s %s weight %u: %a, gguf-py has %a", k->name,
                  name, i, weights[i], expected);
    }
    guarded_close(&out);
}

/* Every level gives the bits that the gguf package gives. */
Test(dequantize, equals_gguf_py)
{
    const struct shunt_kernels *k;
    size_t bytes;
    unsigned char *data = read_file(SHUNT_KERNEL_FIXTURES "/dequantize.bin", &bytes);

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        const unsigned char *at = data;
        uint32_t types = 0;

        for (; at < data + bytes; types++) {
            struct fixture f = next_fixture(&at);

            check_fixture(k, &f);
        }
        cr_assert(at == data + bytes, "the file ends with a type");
        cr_assert_eq(types, SHUNT_WEIGHT_TYPES);
    }
    free(data);
}

/* n weights of a type from an address `skew` bytes behind an aligned one, against ref. */
static void check_level(const struct shunt_kernels *k, enum shunt_weight_type type,
                        enum weight_case c, uint32_t n, uint32_t skew, uint64_t seed)
{
    const struct shunt_kernels *ref = shunt_kernels_get(SHUNT_KERNELS_REF);
    struct guarded src, expected, out;

    guarded_open(&src, shunt_weight_row_bytes(type, n), skew);
    guarded_floats(&expected, n, 0);
    guarded_floats(&out, n, skew % 16);
    random_weights(&seed, type, c, src.data, n);
    ref->dequantize(type, src.data, (float *)expected.data, n);
    k->dequantize(type, src.data, (float *)out.data, n);
    cr_assert(same_floats((float *)expected.data, (float *)out.data, n),
              "%s %s case %u n %u skew %u differs from ref", k->name, shunt_weight_info(type)->name,
              c, n, skew);
    guarded_close(&src);
    guarded_close(&expected);
    guarded_close(&out);
}

/* All levels, types, bad cases, addresses; runs of every odd length where a block is one weight. */
Test(dequantize, levels_agree_bit_for_bit)
{
    static const uint32_t blocks[] = {0, 1, 2, 3, 5, 7, 8, 9, 15, 16};
    const struct shunt_kernels *k;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t type = 0; type < SHUNT_WEIGHT_TYPES; type++)
            for (uint32_t c = 0; c < WEIGHT_CASES; c++)
                for (uint32_t i = 0; i < sizeof(blocks) / sizeof(*blocks); i++)
                    for (uint32_t skew = 0; skew < 4; skew++)
                        check_level(k, (enum shunt_weight_type)type, (enum weight_case)c,
                                    blocks[i] * shunt_weight_info(type)->block_len, skew,
                                    1000 * type + c);
}

/* Nothing behind the last block is read: it may be the end of a mapped file. */
Test(dequantize, reads_its_blocks_only)
{
    const struct shunt_kernels *k;
    static float out[256 * 4];

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t type = 0; type < SHUNT_WEIGHT_TYPES; type++)
            for (uint32_t blocks = 1; blocks < 20; blocks++) {
                uint32_t n = blocks % 4 * shunt_weight_info(type)->block_len;

                if (shunt_weight_info(type)->block_len == 1)
                    n = blocks;
                k->dequantize((enum shunt_weight_type)type,
                              fenced(NULL, shunt_weight_row_bytes(type, n)), out, n);
            }
}

/* Each F16 there is. */
Test(dequantize, every_f16)
{
    static uint16_t halves[1 << 16];
    static float expected[1 << 16], out[1 << 16];
    const struct shunt_kernels *k;

    for (uint32_t i = 0; i < 1 << 16; i++) {
        uint32_t exponent = i >> 10 & 31;
        double fraction = (double)(i & 0x3ff) / 1024;
        double value = exponent ? ldexp(1 + fraction, (int)exponent - 15) : ldexp(fraction, -14);

        if (exponent == 31)
            value = fraction > 0 ? (double)NAN : (double)INFINITY;
        halves[i] = (uint16_t)i;
        expected[i] = (float)(i & 0x8000 ? -value : value);
    }
    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        k->dequantize(SHUNT_WEIGHT_F16, halves, out, 1 << 16);
        cr_assert(same_floats(out, expected, 1 << 16), "%s", k->name);
    }
}
