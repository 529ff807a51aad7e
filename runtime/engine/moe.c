/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables of the MoE object, and what it tells and is told between layers.
 */
#include "runtime/engine/moe.h"

#include <string.h>

#include "runtime/engine/moe_impl.h"

/* Entries computed together at least, so that a node with few rows of its own still serves its
 * peers in large batches. */
#define BATCH_MIN 64u

static void carve_routing(struct shunt_moe *m, struct shunt_carve *c, uint32_t rows)
{
    uint32_t experts = m->cfg.arch->expert_count;
    uint32_t items = rows * m->cfg.arch->expert_used_count;

    m->logits = shunt_carve(c, (size_t)rows * experts, sizeof(*m->logits));
    m->logit_rows = shunt_carve(c, rows, sizeof(*m->logit_rows));
    m->ids = shunt_carve(c, items, sizeof(*m->ids));
    m->weights = shunt_carve(c, items, sizeof(*m->weights));
    m->counts = shunt_carve(c, experts, sizeof(*m->counts));
    m->items_at = shunt_carve(c, experts + 1, sizeof(*m->items_at));
    m->items = shunt_carve(c, items, sizeof(*m->items));
    m->node_of = shunt_carve(c, experts, sizeof(*m->node_of));
    m->results = shunt_carve(c, items, sizeof(*m->results));
    m->row_slot = shunt_carve(c, rows, sizeof(*m->row_slot));
    m->row_stamp = shunt_carve(c, rows, sizeof(*m->row_stamp));
    m->row_list = shunt_carve(c, rows, sizeof(*m->row_list));
}

static void carve_shared(struct shunt_moe *m, struct shunt_carve *c)
{
    size_t experts = m->cfg.arch->expert_count;
    size_t all = m->cfg.node_count * experts;
    size_t bits = shunt_wire_bits_bytes((uint32_t)experts);

    m->states = shunt_carve(c, all, sizeof(*m->states));
    m->next_states = shunt_carve(c, all, sizeof(*m->next_states));
    m->first_states = shunt_carve(c, all, sizeof(*m->first_states));
    m->guesses = shunt_carve(c, bits, 1);
    m->own_guesses = shunt_carve(c, bits, 1);
    m->all_counts = shunt_carve(c, all, sizeof(*m->all_counts));
    m->all_nodes = shunt_carve(c, all, sizeof(*m->all_nodes));
    m->read_ns = shunt_carve(c, m->cfg.node_count, sizeof(*m->read_ns));
    for (uint32_t lane = 0; lane < SHUNT_LANES; lane++)
        m->guessed[lane] = shunt_carve(c, experts, sizeof(*m->guessed[lane]));
}

static void carve_compute(struct shunt_moe *m, struct shunt_carve *c, uint32_t entries)
{
    size_t experts = m->cfg.arch->expert_count;
    size_t ff = m->cfg.arch->expert_ff;

    m->needs = shunt_carve(c, experts, sizeof(*m->needs));
    m->waited = shunt_carve(c, experts, sizeof(*m->waited));
    m->entries_at = shunt_carve(c, experts + 1, sizeof(*m->entries_at));
    m->entries_done = shunt_carve(c, experts, sizeof(*m->entries_done));
    m->entry_x = shunt_carve(c, entries, sizeof(*m->entry_x));
    m->entry_y = shunt_carve(c, entries, sizeof(*m->entry_y));
    m->group_counts = shunt_carve(c, m->cfg.node_count * experts, sizeof(*m->group_counts));
    m->groups_in = shunt_carve(c, m->cfg.node_count * experts, sizeof(*m->groups_in));
    m->entries_in = shunt_carve(c, entries, sizeof(*m->entries_in));
    m->cursor = shunt_carve(c, experts, sizeof(*m->cursor));
    m->groups = shunt_carve(c, experts, sizeof(*m->groups));
    m->gate = shunt_carve(c, m->batch_max * ff, sizeof(*m->gate));
    m->up = shunt_carve(c, m->batch_max * ff, sizeof(*m->up));
    m->gate_rows = shunt_carve(c, m->batch_max, sizeof(*m->gate_rows));
    m->up_rows = shunt_carve(c, m->batch_max, sizeof(*m->up_rows));
}

void shunt_moe_carve(struct shunt_moe *m, const struct shunt_moe_config *cfg,
                     struct shunt_carve *carve)
{
    size_t keys = (size_t)cfg->arch->layer_count * cfg->arch->expert_count;
    uint32_t rows = cfg->rows_max[cfg->rank];
    uint32_t entries = 0;

    memset(m, 0, sizeof(*m));
    m->cfg = *cfg;
    for (uint32_t n = 0; n < cfg->node_count; n++)
        entries += cfg->rows_max[n] * cfg->arch->expert_used_count;
    m->batch_max = rows * cfg->arch->expert_used_count;
    if (m->batch_max < BATCH_MIN)
        m->batch_max = BATCH_MIN;
    m->placed = shunt_carve(carve, keys, sizeof(*m->placed));
    m->placed_here = shunt_carve(carve, keys, sizeof(*m->placed_here));
    m->activations = shunt_carve(carve, keys, sizeof(*m->activations));
    carve_routing(m, carve, rows);
    carve_shared(m, carve);
    carve_compute(m, carve, entries);
}

void shunt_moe_init(struct shunt_moe *m)
{
    uint32_t experts = m->cfg.arch->expert_count;

    m->live = ~0ull >> (64 - m->cfg.node_count);
    for (uint32_t r = 0; r < m->cfg.rows_max[m->cfg.rank]; r++)
        m->logit_rows[r] = m->logits + (size_t)r * experts;
    for (uint32_t i = 0; i < m->batch_max; i++) {
        m->gate_rows[i] = m->gate + (size_t)i * m->cfg.arch->expert_ff;
        m->up_rows[i] = m->up + (size_t)i * m->cfg.arch->expert_ff;
    }
    shunt_prefetch_init(&m->governor);
}

void shunt_moe_write_states(const struct shunt_moe *m, uint32_t layer, uint8_t *states)
{
    for (uint32_t e = 0; e < m->cfg.arch->expert_count; e++) {
        uint32_t key = shunt_moe_key(m, layer, e);

        switch (shunt_store_state(m->cfg.store, key)) {
        case SHUNT_ABSENT:
            states[e] = SHUNT_STATE_ABSENT;
            break;
        case SHUNT_LOADING:
            states[e] = shunt_store_share_left(m->cfg.store, key);
            break;
        case SHUNT_RESIDENT:
            states[e] = SHUNT_STATE_RESIDENT;
            break;
        }
    }
}

void shunt_moe_take_states(struct shunt_moe *m, uint32_t node, const uint8_t *states)
{
    size_t experts = m->cfg.arch->expert_count;

    memcpy(m->first_states + node * experts, states, experts);
}

void shunt_moe_place(struct shunt_moe *m, const uint64_t *mask)
{
    uint32_t keys = m->cfg.arch->layer_count * m->cfg.arch->expert_count;

    memcpy(m->placed, mask, keys * sizeof(*mask));
    for (uint32_t k = 0; k < keys; k++)
        m->placed_here[k] = shunt_node_set_has(mask[k], m->cfg.rank);
    shunt_store_set_placement(m->cfg.store, m->placed_here);
}
