/* SPDX-License-Identifier: Apache-2.0
 *
 * A linear map over the compute pool: the outputs are split over tasks, which cannot be seen in the
 * results (kernels.h).
 */
#ifndef SHUNT_ENGINE_LINEAR_H
#define SHUNT_ENGINE_LINEAR_H

#include "kernels/kernels.h"
#include "runtime/base/pool.h"

/* What everything that computes on the pool needs. */
struct shunt_compute {
    const struct shunt_kernels *kernels;
    struct shunt_pool *pool;
    float *const *scratch; /* [thread]: shunt_compute_scratch floats */
};

/* Floats of scratch memory per thread for matrices of at most `cols_max` inputs. */
static inline size_t shunt_compute_scratch(uint32_t cols_max)
{
    return (size_t)SHUNT_MATMUL_PANEL * cols_max;
}

/* Outputs per task: a whole number of panels, few enough that all threads have work. */
uint32_t shunt_linear_block(const struct shunt_compute *c, uint32_t rows);

/* y[i] = w x[i] for i in [0, count). */
void shunt_linear(const struct shunt_compute *c, const struct shunt_matrix *w,
                  const float *const *x, float *const *y, uint32_t count);

#endif
