/* SPDX-License-Identifier: Apache-2.0
 *
 * Who computes what: in prefill from everybody's counts, in decode from the last snapshot.
 */
#include <string.h>

#include "runtime/base/bytes.h"
#include "runtime/engine/moe_impl.h"

/* What the schedule takes at most for one expert: 78 hours. */
#define READ_NS_MAX ((1ull << 48) - 1)

/* The same on every node, of its own drive as of the others'. */
static uint64_t bounded_ns(uint64_t ns)
{
    return ns < READ_NS_MAX ? ns : READ_NS_MAX;
}

/* ---- prefill: one gather, then the same schedule everywhere */

static void build_counts(struct shunt_moe *m, unsigned char *message)
{
    const struct shunt_arch *arch = m->cfg.arch;
    struct shunt_wire_header header = shunt_moe_header(m, SHUNT_WIRE_COUNTS);
    size_t own = (size_t)m->cfg.rank * arch->expert_count;
    unsigned char *at = message;

    memcpy(at, &header, sizeof(header));
    at += sizeof(header);
    memcpy(at, &m->read_ns[m->cfg.rank], sizeof(uint64_t));
    at += sizeof(uint64_t);
    memcpy(at, m->counts, arch->expert_count * sizeof(uint32_t));
    at += arch->expert_count * sizeof(uint32_t);
    memcpy(at, m->states + own, arch->expert_count);
    at += arch->expert_count;
    memcpy(at, m->next_states + own, arch->expert_count);
    at += arch->expert_count;
    memcpy(at, m->own_guesses, shunt_wire_bits_bytes(arch->expert_count));
}

static int take_counts(struct shunt_moe *m, uint32_t node, struct shunt_error *err)
{
    const struct shunt_exchange *x = m->cfg.exchange;
    size_t experts = m->cfg.arch->expert_count;
    const struct shunt_wire_expect expect = {
        .kind = SHUNT_WIRE_COUNTS,
        .lane = m->lane,
        .rank = node,
        .layer = m->layer,
        .tick = x->tick,
        .step = m->step,
        .rows_max = m->cfg.rows_max[node],
    };
    struct shunt_wire_counts_view v = {.counts = m->all_counts + node * experts};
    const void *message = shunt_exchange_gathered(x, node);
    int rc = shunt_wire_view_counts(message, &x->cfg.shape, &expect, x->nodes[node].label, &v, err);

    if (rc)
        return rc;
    m->read_ns[node] = bounded_ns(v.read_ns);
    memcpy(m->states + node * experts, v.states, experts);
    memcpy(m->next_states + node * experts, v.next_states, experts);
    for (uint32_t i = 0; i < shunt_wire_bits_bytes((uint32_t)experts); i++)
        m->guesses[i] |= v.guesses[i];
    return 0;
}

int shunt_moe_exchange_counts(struct shunt_moe *m, struct shunt_error *err)
{
    struct shunt_exchange *x = m->cfg.exchange;
    size_t experts = m->cfg.arch->expert_count;
    size_t own = m->cfg.rank * experts;
    void *message;
    int rc = 0;

    m->read_ns[m->cfg.rank] = bounded_ns(shunt_store_read_ns(m->cfg.store, m->layer));
    memcpy(m->all_counts + own, m->counts, experts * sizeof(uint32_t));
    shunt_moe_write_states(m, m->layer, m->states + own);
    memset(m->next_states + own, 0, experts);
    if (shunt_moe_has_next(m))
        shunt_moe_write_states(m, m->layer + 1, m->next_states + own);
    memcpy(m->guesses, m->own_guesses, shunt_wire_bits_bytes((uint32_t)experts));
    if (m->cfg.node_count == 1)
        return 0;
    for (uint32_t n = 0; n < m->cfg.node_count && !rc; n++) {
        if (n == m->cfg.rank)
            continue;
        rc = shunt_progress_gather_buffer(m->cfg.progress, n, &message, err);
        if (rc)
            return rc;
        build_counts(m, message);
        rc = shunt_progress_put_gather(m->cfg.progress, n, SHUNT_WIRE_COUNTS,
                                       shunt_wire_counts_bytes(&x->cfg.shape), err);
    }
    if (!rc)
        rc = shunt_progress_wait_gather(m->cfg.progress, "counts of a prefill layer", err);
    for (uint32_t n = 0; n < m->cfg.node_count && !rc; n++)
        if (n != m->cfg.rank)
            rc = take_counts(m, n, err);
    if (!rc)
        shunt_exchange_next(x);
    return rc;
}

/* Every node computes this from the same bytes; what falls to this node is asked of the store
 * before a row of it has come. */
static void assign_prefill(struct shunt_moe *m)
{
    const struct shunt_arch *arch = m->cfg.arch;
    const struct shunt_schedule_input in = {
        .node_count = m->cfg.node_count,
        .expert_count = arch->expert_count,
        .layer = m->layer,
        .live = m->live,
        .counts = m->all_counts,
        .states = m->states,
        .placed = m->placed + shunt_moe_key(m, m->layer, 0),
        .read_ns = m->read_ns,
    };

    shunt_schedule_prefill(&in, m->all_nodes);
    memcpy(m->node_of, m->all_nodes + (size_t)m->cfg.rank * arch->expert_count, arch->expert_count);
    for (uint32_t n = 0; n < m->cfg.node_count; n++)
        for (uint32_t e = 0; e < arch->expert_count; e++)
            if (m->all_counts[n * arch->expert_count + e] > 0 &&
                m->all_nodes[n * arch->expert_count + e] == m->cfg.rank)
                shunt_moe_need(m, e);
}

/* ---- decode: no round of its own */

static void assign_decode(struct shunt_moe *m)
{
    const struct shunt_arch *arch = m->cfg.arch;
    size_t own = (size_t)m->cfg.rank * arch->expert_count;

    /* What the others said of this layer came with the messages of the one before; of this node the
     * present is known. */
    memcpy(m->states, m->layer == 0 ? m->first_states : m->next_states,
           m->cfg.node_count * (size_t)arch->expert_count);
    shunt_moe_write_states(m, m->layer, m->states + own);
    for (uint32_t e = 0; e < arch->expert_count; e++) {
        uint64_t resident, loading;

        if (m->counts[e] == 0)
            continue;
        shunt_moe_holders(m, m->states, e, &resident, &loading);
        m->node_of[e] =
            (uint8_t)shunt_schedule_decode(m->cfg.rank, m->layer, e, resident, loading,
                                           m->placed[shunt_moe_key(m, m->layer, e)], m->live);
        if (m->node_of[e] == m->cfg.rank)
            shunt_moe_need(m, e);
    }
}

void shunt_moe_assign(struct shunt_moe *m)
{
    memset(m->needs, 0, m->cfg.arch->expert_count * sizeof(*m->needs));
    if (m->lane == SHUNT_LANE_PREFILL)
        assign_prefill(m);
    else
        assign_decode(m);
}
