/* SPDX-License-Identifier: Apache-2.0
 *
 * Experts over rows: what is resident at once, then what arrives from the drive, in the order of
 * arrival. An expert is held from the moment it is asked for until its last row is done, then its
 * slot is free for the next: a layer with more experts than slots runs in waves by itself.
 */
#include <errno.h>
#include <string.h>

#include "runtime/engine/moe_impl.h"

/* ---- asking the store */

void shunt_moe_need(struct shunt_moe *m, uint32_t expert)
{
    int rc;

    if (m->needs[expert] == SHUNT_NEED_HELD || m->needs[expert] == SHUNT_NEED_READ)
        return;
    if (m->needs[expert] == SHUNT_NEED_NONE)
        m->waited[expert] =
            shunt_store_state(m->cfg.store, shunt_moe_key(m, m->layer, expert)) != SHUNT_RESIDENT;
    rc = shunt_store_acquire(m->cfg.store, shunt_moe_key(m, m->layer, expert), m->layer_step);
    if (rc == -EAGAIN)
        m->needs[expert] = SHUNT_NEED_BLOCKED;
    else
        m->needs[expert] = rc == 1 ? SHUNT_NEED_HELD : SHUNT_NEED_READ;
}

static void let_go(struct shunt_moe *m, uint32_t expert)
{
    if (m->needs[expert] == SHUNT_NEED_HELD || m->needs[expert] == SHUNT_NEED_READ)
        shunt_store_release(m->cfg.store, shunt_moe_key(m, m->layer, expert));
    m->needs[expert] = SHUNT_NEED_NONE;
}

/* Asks again where there was no slot, and notes what has arrived. */
static void refresh_needs(struct shunt_moe *m)
{
    for (uint32_t e = 0; e < m->cfg.arch->expert_count; e++) {
        if (m->needs[e] == SHUNT_NEED_BLOCKED)
            shunt_moe_need(m, e);
        if (m->needs[e] == SHUNT_NEED_READ &&
            shunt_store_state(m->cfg.store, shunt_moe_key(m, m->layer, e)) == SHUNT_RESIDENT)
            m->needs[e] = SHUNT_NEED_HELD;
    }
}

/* ---- one batch on the pool */

struct batch {
    struct shunt_moe *m;
    uint32_t block; /* outputs per task */
    uint32_t tasks_per_group;
};

/* gate = silu(Wg x) * (Wu x), for some of the outputs and all rows of a group. */
static void gate_up_task(void *ctx, uint32_t index, uint32_t worker)
{
    const struct batch *b = ctx;
    struct shunt_moe *m = b->m;
    const struct shunt_kernels *k = m->cfg.compute.kernels;
    const struct shunt_moe_group *g = &m->groups[index / b->tasks_per_group];
    uint32_t ff = m->cfg.arch->expert_ff;
    uint32_t begin = index % b->tasks_per_group * b->block;
    uint32_t end = begin + b->block < ff ? begin + b->block : ff;
    float *scratch = m->cfg.compute.scratch[worker];

    k->matmul(&g->parts[SHUNT_PART_GATE], begin, end, m->entry_x + g->first, m->gate_rows + g->at,
              g->count, scratch);
    k->matmul(&g->parts[SHUNT_PART_UP], begin, end, m->entry_x + g->first, m->up_rows + g->at,
              g->count, scratch);
    for (uint32_t i = 0; i < g->count; i++)
        k->silu_mul(m->gate_rows[g->at + i] + begin, m->up_rows[g->at + i] + begin, end - begin);
}

static void down_task(void *ctx, uint32_t index, uint32_t worker)
{
    const struct batch *b = ctx;
    struct shunt_moe *m = b->m;
    const struct shunt_moe_group *g = &m->groups[index / b->tasks_per_group];
    uint32_t hidden = m->cfg.arch->hidden;
    uint32_t begin = index % b->tasks_per_group * b->block;
    uint32_t end = begin + b->block < hidden ? begin + b->block : hidden;

    m->cfg.compute.kernels->matmul(&g->parts[SHUNT_PART_DOWN], begin, end,
                                   (const float *const *)m->gate_rows + g->at,
                                   m->entry_y + g->first, g->count, m->cfg.compute.scratch[worker]);
}

static void run_phase(struct shunt_moe *m, shunt_task_fn *fn, uint32_t outputs)
{
    struct batch b = {.m = m, .block = shunt_linear_block(&m->cfg.compute, outputs)};

    b.tasks_per_group = (outputs + b.block - 1) / b.block;
    shunt_pool_run(m->cfg.compute.pool, fn, &b, m->group_count * b.tasks_per_group);
}

/* Gathers groups of experts that are here, up to a batch; a large group may be cut. */
static void fill_batch(struct shunt_moe *m)
{
    uint32_t at = 0;

    m->group_count = 0;
    for (uint32_t e = 0; e < m->cfg.arch->expert_count && at < m->batch_max; e++) {
        uint32_t left = m->entries_at[e + 1] - m->entries_at[e] - m->entries_done[e];
        struct shunt_moe_group *g = &m->groups[m->group_count];

        if (left == 0 || m->needs[e] != SHUNT_NEED_HELD)
            continue;
        *g = (struct shunt_moe_group){
            .expert = e,
            .first = m->entries_at[e] + m->entries_done[e],
            .count = left < m->batch_max - at ? left : m->batch_max - at,
            .at = at,
        };
        shunt_store_view(m->cfg.store, shunt_moe_key(m, m->layer, e), g->parts);
        at += g->count;
        m->group_count++;
    }
}

/* ---- bookkeeping after a batch */

static void count_own_calls(struct shunt_moe *m, uint32_t expert)
{
    uint32_t own = m->group_counts[m->cfg.rank * m->cfg.arch->expert_count + expert];

    if (m->waited[expert])
        m->counters.calls_read += own;
    else
        m->counters.calls_local += own;
}

/* An expert has done all its rows: its slot is free, and peers whose last rows these were get their
 * results. */
static int finish_expert(struct shunt_moe *m, uint32_t expert, struct shunt_error *err)
{
    let_go(m, expert);
    count_own_calls(m, expert);
    for (uint32_t n = 0; n < m->cfg.node_count; n++) {
        uint32_t entries = m->group_counts[n * m->cfg.arch->expert_count + expert];
        int rc;

        if (n == m->cfg.rank || entries == 0)
            continue;
        if (m->waited[expert])
            m->peers[n].waited += entries;
        m->peers[n].entries_left -= entries;
        if (m->peers[n].entries_left > 0)
            continue;
        rc = shunt_moe_send_results(m, n, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int finish_batch(struct shunt_moe *m, uint32_t *experts_left, struct shunt_error *err)
{
    for (uint32_t g = 0; g < m->group_count; g++) {
        uint32_t e = m->groups[g].expert;
        int rc;

        m->entries_done[e] += m->groups[g].count;
        if (m->entries_done[e] < m->entries_at[e + 1] - m->entries_at[e])
            continue;
        --*experts_left;
        rc = finish_expert(m, e, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- the layer's experts */

static uint32_t nothing_to_compute(void *ctx)
{
    struct shunt_moe *m = ctx;

    refresh_needs(m);
    for (uint32_t e = 0; e < m->cfg.arch->expert_count; e++)
        if (m->needs[e] == SHUNT_NEED_HELD)
            return SHUNT_WAIT_DONE;
    return SHUNT_WAIT_DRIVE;
}

int shunt_moe_compute(struct shunt_moe *m, struct shunt_error *err)
{
    const struct shunt_arch *arch = m->cfg.arch;
    uint32_t experts_left = 0;

    for (uint32_t e = 0; e < arch->expert_count; e++)
        experts_left += m->entries_at[e + 1] > m->entries_at[e];
    while (experts_left > 0) {
        int rc;

        refresh_needs(m);
        fill_batch(m);
        if (m->group_count == 0) {
            rc = shunt_progress_wait(m->cfg.progress, nothing_to_compute, m, "experts", err);
            if (rc)
                return rc;
            continue;
        }
        run_phase(m, gate_up_task, arch->expert_ff);
        run_phase(m, down_task, arch->hidden);
        /* Told to stop, the pool skips tasks: what lies there then is nobody's result, and must not
         * go out as one. */
        rc = shunt_progress_poll(m->cfg.progress, err);
        if (!rc)
            rc = finish_batch(m, &experts_left, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- combine */

/* Sums a row's results in the router's order, wherever they were computed. */
static void combine_task(void *ctx, uint32_t row, uint32_t worker)
{
    struct shunt_moe *m = ctx;
    const struct shunt_kernels *k = m->cfg.compute.kernels;
    const struct shunt_arch *arch = m->cfg.arch;
    float *sum = m->cfg.compute.scratch[worker];

    memset(sum, 0, arch->hidden * sizeof(*sum));
    for (uint32_t i = 0; i < arch->expert_used_count; i++) {
        size_t item = (size_t)row * arch->expert_used_count + i;

        k->add_scaled(sum, m->results[item], m->weights[item], arch->hidden);
    }
    k->add_scaled(m->rows.out[row], sum, 1.0f, arch->hidden);
}

void shunt_moe_combine(struct shunt_moe *m)
{
    shunt_pool_run(m->cfg.compute.pool, combine_task, m, m->rows.count);
}
