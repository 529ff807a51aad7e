/* SPDX-License-Identifier: Apache-2.0
 *
 * Panels of four outputs against tiles of up to three rows. Every tile runs the same sequence of
 * operations for each of its (row, output) pairs, so a row does not see how many share its tile.
 *
 * A panel is dequantised chunk of columns by chunk, each just before the first tile reads it, while
 * it is still in the first cache; in decoding, with a row or two, that is all of the work. Further
 * tiles find the whole panel in `scratch`.
 */
#include "kernels/x86/avx2.h"

#include <string.h>

#include "kernels/x86/avx2_dot.h"

#define PANEL SHUNT_MATMUL_PANEL

/* Columns of a chunk: whole blocks of every type, and whole eights. */
#define CHUNK 256u

/* Rows that go through all panels before the next rows do, so that they stay in the second cache.
 * Dequantising a panel again for the next group is 3 % of the work on this many. */
#define GROUP 96u

_Static_assert(PANEL == 4, "dot_add takes four outputs");

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Where the weights of an output lie, `skip` bytes into its row. Behind the last output of the
 * range the last one stands in: sums come in fours, and computing one that is not stored costs less
 * than another shape of the code. */
static const unsigned char *weights_at(const struct shunt_matrix *w, uint32_t output,
                                       uint32_t output_end, size_t skip)
{
    return (const unsigned char *)w->data + least(output, output_end - 1) * w->row_bytes + skip;
}

static void prefetch(const unsigned char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

/* chunk[r * len + j] = weight (output + r, column + j) for r in [0, 4), j in [0, len).
 *
 * The processor follows a row by itself but does not foresee the jump to the next panel: asking for
 * the same columns of that panel now makes one row at a time 1.1 (Q6_K) to 1.5 times (Q8_0) as
 * fast. */
static void load_chunk(const struct shunt_matrix *w, uint32_t output, uint32_t output_end,
                       uint32_t column, uint32_t len, float *chunk)
{
    size_t skip = shunt_weight_row_bytes(w->type, column);
    size_t bytes = shunt_weight_row_bytes(w->type, len);

    for (uint32_t r = 0; r < PANEL; r++) {
        prefetch(weights_at(w, output + PANEL + r, output_end, skip), bytes);
        shunt_avx2_dequantize(w->type, weights_at(w, output + r, output_end, skip), chunk + r * len,
                              len);
    }
}

/* Adds a chunk's products with columns [column, column + len) of so many rows. Functions of their
 * own, so that the compiler has all registers for one tile; inlined side by side they spill. */
typedef void add_chunk_fn(struct dot_tile *tile, const float *chunk, const float *const *x,
                          uint32_t column, uint32_t len);

ALWAYS_INLINE void add_rows(struct dot_tile *tile, const float *chunk, const float *const *x,
                            uint32_t rows, uint32_t column, uint32_t len)
{
    const float *w[PANEL] = {chunk, chunk + len, chunk + 2 * len, chunk + 3 * len};
    const float *at[DOT_ROWS];

    for (uint32_t i = 0; i < rows; i++)
        at[i] = x[i] + column;
    dot_add(tile, w, at, rows, len);
}

static void add_one(struct dot_tile *tile, const float *chunk, const float *const *x,
                    uint32_t column, uint32_t len)
{
    add_rows(tile, chunk, x, 1, column, len);
}

static void add_two(struct dot_tile *tile, const float *chunk, const float *const *x,
                    uint32_t column, uint32_t len)
{
    add_rows(tile, chunk, x, 2, column, len);
}

static void add_three(struct dot_tile *tile, const float *chunk, const float *const *x,
                      uint32_t column, uint32_t len)
{
    add_rows(tile, chunk, x, 3, column, len);
}

static void store_sums(float *y, struct lanes4 s, uint32_t outputs)
{
    float sums[PANEL];

    _mm_storeu_ps(sums, sums_of(s));
    memcpy(y, sums, outputs * sizeof(*y));
}

static void store_tile(const struct dot_tile *tile, float *const *y, uint32_t rows, uint32_t output,
                       uint32_t outputs)
{
    store_sums(y[0] + output, tile->x0, outputs);
    if (rows > 1)
        store_sums(y[1] + output, tile->x1, outputs);
    if (rows > 2)
        store_sums(y[2] + output, tile->x2, outputs);
}

static void multiply_panel(const struct shunt_matrix *w, uint32_t output, uint32_t output_end,
                           const float *const *x, float *const *y, uint32_t count, float *scratch)
{
    static add_chunk_fn *const add_chunk[DOT_ROWS] = {add_one, add_two, add_three};

    for (uint32_t i = 0; i < count; i += DOT_ROWS) {
        uint32_t rows = least(count - i, DOT_ROWS);
        struct dot_tile tile = {lanes4_zero(), lanes4_zero(), lanes4_zero()};

        for (uint32_t column = 0; column < w->cols; column += CHUNK) {
            uint32_t len = least(w->cols - column, CHUNK);
            float *chunk = scratch + (size_t)PANEL * column;

            if (i == 0)
                load_chunk(w, output, output_end, column, len, chunk);
            add_chunk[rows - 1](&tile, chunk, x + i, column, len);
        }
        store_tile(&tile, y + i, rows, output, least(output_end - output, PANEL));
    }
}

void shunt_avx2_matmul(const struct shunt_matrix *w, uint32_t row_begin, uint32_t row_end,
                       const float *const *x, float *const *y, uint32_t count, float *scratch)
{
    for (uint32_t i = 0; i < count; i += GROUP)
        for (uint32_t output = row_begin; output < row_end; output += PANEL)
            multiply_panel(w, output, row_end, x + i, y + i, least(count - i, GROUP), scratch);
}
