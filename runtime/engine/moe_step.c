/* SPDX-License-Identifier: Apache-2.0
 *
 * One MoE layer, as ARCHITECTURE's data flow has it. Every node of the rack is in this function for
 * the same lane and layer at the same time.
 */
#include "runtime/engine/moe_impl.h"

int shunt_moe_step(struct shunt_moe *m, enum shunt_lane lane, uint32_t layer, uint64_t step,
                   const struct shunt_moe_rows *rows, struct shunt_error *err)
{
    int rc = 0;

    m->lane = lane;
    m->layer = layer;
    m->step = step;
    m->rows = *rows;
    m->layer_step++;

    shunt_moe_route(m); /* router, top-k; the next layer's probable experts */
    if (lane == SHUNT_LANE_PREFILL)
        rc = shunt_moe_exchange_counts(m, err); /* what everybody needs and has */
    if (rc)
        return rc;
    shunt_moe_assign(m);             /* expert -> node; own experts are asked of the store */
    rc = shunt_moe_dispatch(m, err); /* rows to those who compute them */
    if (!rc)
        rc = shunt_moe_collect(m, err); /* rows of others, and what they ask of the store */
    if (rc)
        return rc;
    shunt_moe_drop_wrong_guesses(m);
    shunt_moe_prefetch(m);          /* after this layer's own reads */
    rc = shunt_moe_compute(m, err); /* resident first, then as they arrive; results go back */
    if (!rc)
        rc = shunt_moe_collect_results(m, err);
    if (!rc)
        shunt_moe_combine(m); /* out += the weighted results, in the router's order */
    return rc;
}
