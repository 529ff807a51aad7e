/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/linear.h"

#include "runtime/base/carve.h"

#define TASKS_PER_THREAD 4u
#define BLOCK_MAX        64u

struct linear {
    const struct shunt_compute *c;
    const struct shunt_matrix *w;
    const float *const *x;
    float *const *y;
    uint32_t count;
    uint32_t block;
};

uint32_t shunt_linear_block(const struct shunt_compute *c, uint32_t rows)
{
    uint32_t tasks = shunt_pool_thread_count(c->pool) * TASKS_PER_THREAD;
    uint32_t block = (uint32_t)shunt_align_up((rows + tasks - 1) / tasks, SHUNT_MATMUL_PANEL);

    return block < BLOCK_MAX ? block : BLOCK_MAX;
}

static void linear_task(void *ctx, uint32_t index, uint32_t worker)
{
    const struct linear *l = ctx;
    uint32_t begin = index * l->block;
    uint32_t end = begin + l->block < l->w->rows ? begin + l->block : l->w->rows;

    l->c->kernels->matmul(l->w, begin, end, l->x, l->y, l->count, l->c->scratch[worker]);
}

void shunt_linear(const struct shunt_compute *c, const struct shunt_matrix *w,
                  const float *const *x, float *const *y, uint32_t count)
{
    struct linear l = {
        .c = c, .w = w, .x = x, .y = y, .count = count, .block = shunt_linear_block(c, w->rows)};

    if (count > 0)
        shunt_pool_run(c->pool, linear_task, &l, (w->rows + l.block - 1) / l.block);
}
