/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/ref/ref.h"

void shunt_ref_matmul(const struct shunt_matrix *w, uint32_t row_begin, uint32_t row_end,
                      const float *const *x, float *const *y, uint32_t count, float *scratch)
{
    for (uint32_t o = row_begin; o < row_end; o++) {
        const unsigned char *row = (const unsigned char *)w->data + o * w->row_bytes;

        shunt_ref_dequantize(w->type, row, scratch, w->cols);
        for (uint32_t i = 0; i < count; i++)
            y[i][o] = shunt_ref_dot(scratch, x[i], w->cols);
    }
}
