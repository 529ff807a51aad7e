/* SPDX-License-Identifier: Apache-2.0
 *
 * The stages of a layer, in the order moe_step.c calls them. Only moe_*.c include this.
 */
#ifndef SHUNT_ENGINE_MOE_IMPL_H
#define SHUNT_ENGINE_MOE_IMPL_H

#include "planner/schedule.h"
#include "runtime/engine/moe.h"

/* moe_route.c: router, top-k, guesses for the next layer; own items by expert. */
void shunt_moe_route(struct shunt_moe *m);

/* moe_assign.c: who computes what. */
int shunt_moe_exchange_counts(struct shunt_moe *m, struct shunt_error *err);
void shunt_moe_assign(struct shunt_moe *m);

/* moe_dispatch.c: rows out, rows in. */
int shunt_moe_dispatch(struct shunt_moe *m, struct shunt_error *err);
int shunt_moe_collect(struct shunt_moe *m, struct shunt_error *err);
int shunt_moe_send_results(struct shunt_moe *m, uint32_t peer, struct shunt_error *err);
int shunt_moe_collect_results(struct shunt_moe *m, struct shunt_error *err);

/* moe_prefetch.c: reads for the next layer. */
void shunt_moe_prefetch(struct shunt_moe *m);
void shunt_moe_drop_wrong_guesses(struct shunt_moe *m);

/* moe_compute.c: experts, resident first, then as they arrive from the drive. */
void shunt_moe_need(struct shunt_moe *m, uint32_t expert);
int shunt_moe_compute(struct shunt_moe *m, struct shunt_error *err);
void shunt_moe_combine(struct shunt_moe *m);

static inline uint32_t shunt_moe_key(const struct shunt_moe *m, uint32_t layer, uint32_t expert)
{
    return layer * m->cfg.arch->expert_count + expert;
}

/* The header of a message of this layer. */
static inline struct shunt_wire_header shunt_moe_header(const struct shunt_moe *m,
                                                        enum shunt_wire_kind kind)
{
    struct shunt_wire_header h = shunt_exchange_header(m->cfg.exchange, kind);

    h.lane = (uint8_t)m->lane;
    h.layer = m->layer;
    h.step = m->step;
    return h;
}

static inline bool shunt_bit(const uint8_t *bits, uint32_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

/* True when the layer after this one belongs to the same pass. */
static inline bool shunt_moe_has_next(const struct shunt_moe *m)
{
    return m->layer + 1 < m->cfg.arch->layer_count;
}

/* Masks of the nodes that hold an expert of `states`' layer or are reading it. */
static inline void shunt_moe_holders(const struct shunt_moe *m, const uint8_t *states,
                                     uint32_t expert, uint64_t *resident, uint64_t *loading)
{
    *resident = 0;
    *loading = 0;
    for (uint32_t n = 0; n < m->cfg.node_count; n++) {
        uint8_t state = states[n * m->cfg.arch->expert_count + expert];

        if (state == SHUNT_STATE_RESIDENT)
            *resident |= shunt_node_set_of(n);
        else if (state != SHUNT_STATE_ABSENT)
            *loading |= shunt_node_set_of(n);
    }
}

#endif
