/* SPDX-License-Identifier: Apache-2.0
 *
 * Routing: which experts each own row needs, and which the next layer will probably need.
 */
#include <string.h>

#include "runtime/engine/moe_impl.h"

#define ROWS_PER_TASK 16u

/* Top-k of a few rows. */
static void route_task(void *ctx, uint32_t index, uint32_t worker)
{
    struct shunt_moe *m = ctx;
    const struct shunt_arch *arch = m->cfg.arch;
    uint32_t end = (index + 1) * ROWS_PER_TASK;

    (void)worker;
    if (end > m->rows.count)
        end = m->rows.count;
    for (uint32_t row = index * ROWS_PER_TASK; row < end; row++) {
        size_t item = (size_t)row * arch->expert_used_count;

        m->cfg.compute.kernels->route(m->logit_rows[row], arch->expert_count,
                                      arch->expert_used_count, arch->normalize_weights,
                                      m->ids + item, m->weights + item);
    }
}

static void run_router(struct shunt_moe *m, uint32_t layer)
{
    uint32_t tasks = (m->rows.count + ROWS_PER_TASK - 1) / ROWS_PER_TASK;

    shunt_linear(&m->cfg.compute, &m->cfg.routers[layer], m->rows.x, m->logit_rows, m->rows.count);
    shunt_pool_run(m->cfg.compute.pool, route_task, m, tasks);
}

/* The next layer's router on this layer's state: what it chooses is a guess, and only bytes move
 * on it. */
static void guess_next(struct shunt_moe *m)
{
    uint32_t items = m->rows.count * m->cfg.arch->expert_used_count;

    memset(m->own_guesses, 0, shunt_wire_bits_bytes(m->cfg.arch->expert_count));
    if (!m->cfg.prefetch || !shunt_moe_has_next(m) || m->rows.count == 0)
        return;
    run_router(m, m->layer + 1);
    for (uint32_t i = 0; i < items; i++)
        m->own_guesses[m->ids[i] / 8] |= (uint8_t)(1u << m->ids[i] % 8);
}

/* Own items by expert, rows ascending: a counting sort. */
static void sort_items(struct shunt_moe *m)
{
    const struct shunt_arch *arch = m->cfg.arch;
    uint32_t items = m->rows.count * arch->expert_used_count;
    uint32_t at = 0;

    memset(m->counts, 0, arch->expert_count * sizeof(*m->counts));
    for (uint32_t i = 0; i < items; i++)
        m->counts[m->ids[i]]++;
    for (uint32_t e = 0; e < arch->expert_count; e++) {
        m->items_at[e] = m->cursor[e] = at;
        at += m->counts[e];
    }
    m->items_at[arch->expert_count] = at;
    for (uint32_t i = 0; i < items; i++)
        m->items[m->cursor[m->ids[i]]++] = i;
}

/* One writer, this thread; the control thread reads them now and then. */
static void count_activations(struct shunt_moe *m)
{
    _Atomic uint32_t *activations = m->activations + shunt_moe_key(m, m->layer, 0);

    for (uint32_t e = 0; e < m->cfg.arch->expert_count; e++) {
        uint32_t before = atomic_load_explicit(&activations[e], memory_order_relaxed);

        if (m->counts[e] > 0)
            atomic_store_explicit(&activations[e], before + m->counts[e], memory_order_relaxed);
    }
}

void shunt_moe_route(struct shunt_moe *m)
{
    guess_next(m);
    if (m->rows.count > 0)
        run_router(m, m->layer);
    sort_items(m);
    count_activations(m);
}
