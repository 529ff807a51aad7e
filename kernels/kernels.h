/* SPDX-License-Identifier: Apache-2.0
 *
 * The arithmetic of a layer, as one table of functions per level: `ref` is scalar C, meant to be
 * read, and the reference of all others; `avx2` needs AVX2, FMA and F16C. A table is complete:
 * where a level has nothing of its own it names ref's function.
 *
 * The contract every level keeps, on which the promise "where an expert ran never changes the
 * answer" rests:
 *
 * - A result for one row depends on that row and the weights only, bit for bit: never on the
 *   other rows of the call, on their number, on how rows or outputs are split over calls, or on
 *   alignment.
 * - Float32 accumulation of exact products of float32 activations and dequantised weights (ref
 *   rounds each product, avx2 fuses it); activations are never quantised. The order of every sum
 *   is fixed per level. ref: ascending. avx2: lane j of 8 takes elements j, j+8, ... ascending
 *   with one rounding each, the lanes are then added in a fixed tree.
 * - exp and its kin are the level's own polynomials, not libm's: two machines with the same level
 *   give the same bits. Only the RoPE table comes from libm; it is used at the home node alone.
 * - No function allocates, locks, or keeps state. All are safe to call from any thread at once.
 * - Weights may lie at any address (an expert lies in its slot as it lay in the file); float arrays
 *   are 4-aligned. Arrays that a call writes overlap no other, except where it says so.
 * - NaN and infinity are values like others: nothing crashes, they stay in the results they belong
 *   to, and a NaN is a NaN, no particular one.
 * - The calling thread is in C's default floating-point environment: round to nearest, denormals
 *   kept.
 *
 * Levels differ from each other by rounding only; tests/tolerances.h has the bounds and the
 * reasons.
 */
#ifndef SHUNT_KERNELS_KERNELS_H
#define SHUNT_KERNELS_KERNELS_H

#include <stdbool.h>

#include "kernels/weight_type.h"
#include "runtime/base/limits.h"

/* Weights of a linear map: `rows` outputs of `cols` inputs each. */
struct shunt_matrix {
    const void *data;
    enum shunt_weight_type type;
    uint32_t rows;
    uint32_t cols;    /* a multiple of the type's block_len */
    size_t row_bytes; /* shunt_weight_row_bytes(type, cols) */
};

/* One query head of one row against the keys and values of its kv head. */
struct shunt_attend {
    const float *q;     /* head_dim floats */
    const float *k;     /* key j at k + j * stride, head_dim floats */
    const float *v;     /* value j at v + j * stride */
    size_t stride;      /* floats */
    uint32_t key_count; /* >= 1; the row sees keys [0, key_count) */
    uint32_t head_dim;  /* in [1, SHUNT_HEAD_DIM_MAX] */
    float scale;
    float *out; /* head_dim floats */
};

#define SHUNT_HEAD_DIM_MAX 512u

/* Keys are walked in blocks of this many, counted from position 0: the absolute grid. */
#define SHUNT_ATTEND_BLOCK 64u

/* Output rows that matmul dequantises together; its scratch holds so many rows of floats. */
#define SHUNT_MATMUL_PANEL 4u

#define SHUNT_EXPERTS_USED_MAX 32u

enum shunt_kernel_level { SHUNT_KERNELS_REF, SHUNT_KERNELS_AVX2, SHUNT_KERNEL_LEVELS };

struct shunt_kernels {
    const char *name; /* "ref", "avx2" */
    enum shunt_kernel_level level;

    /* y[i][o] = sum over c of w[o][c] * x[i][c], for o in [row_begin, row_end), i in [0, count).
     * scratch: SHUNT_MATMUL_PANEL * cols floats of the caller's. */
    void (*matmul)(const struct shunt_matrix *w, uint32_t row_begin, uint32_t row_end,
                   const float *const *x, float *const *y, uint32_t count, float *scratch);

    /* dst[0, n) = the n weights stored at src; n is a multiple of block_len. The same bits in every
     * level. */
    void (*dequantize)(enum shunt_weight_type type, const void *src, float *dst, uint32_t n);

    /* y = x / sqrt(mean(x^2) + eps) * weight. y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *weight, uint32_t n, float eps);

    /* Rotates the pairs (i, i + head_dim/2) of one head: (a, b) -> (a cos - b sin, b cos + a sin).
     * cos_sin: head_dim/2 cosines, then head_dim/2 sines, of the row's position. */
    void (*rope)(float *head, const float *cos_sin, uint32_t head_dim);

    /* gate = silu(gate) * up, silu(x) = x / (1 + exp(-x)). */
    void (*silu_mul)(float *gate, const float *up, uint32_t n);

    /* out = softmax(scale * q.k) v, block by block with a running maximum, in ascending order. */
    void (*attend)(const struct shunt_attend *a);

    /* y += a * x, the product rounded on its own. The same bits in every level, and so for rope. */
    void (*add_scaled)(float *y, const float *x, float a, uint32_t n);

    /* Softmax over `n` router logits, then the `k` most probable, k in [1, min(n,
     * SHUNT_EXPERTS_USED_MAX)], n <= SHUNT_EXPERTS_MAX: ids in descending order of logit, the lower
     * id first among equals; weights are their probabilities, divided by their sum if `normalize`.
     * One routine for all levels. A NaN logit counts as -inf; whatever the logits, the ids are
     * distinct. */
    void (*route)(const float *logits, uint32_t n, uint32_t k, bool normalize, uint16_t *ids,
                  float *weights);
};

/* The table of a level, or NULL when this processor or this build does not have it. Static, never
 * freed. */
const struct shunt_kernels *shunt_kernels_get(enum shunt_kernel_level level);

/* Bit i is set when level i can be used here. Bit SHUNT_KERNELS_REF always is. */
uint32_t shunt_kernels_available(void);

/* "ref, avx2": the levels of a mask, bit i for level i; cut to `bytes`. */
void shunt_kernels_names(uint32_t levels, char *list, size_t bytes);

/* "ref", "avx2" -> level. Return: 0, or -1 for an unknown name. */
int shunt_kernels_from_name(const char *name, enum shunt_kernel_level *level);

#endif
