/* SPDX-License-Identifier: Apache-2.0
 *
 * Dispatch and combine traffic: own rows out and their results back, peers' rows in and their
 * results out. One message per peer, layer and direction.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "runtime/engine/moe_impl.h"

/* ---- own rows out */

/* Numbers the rows that peer `node` computes something of, in order of first mention. */
static uint32_t list_rows(struct shunt_moe *m, uint32_t node)
{
    uint32_t used = m->cfg.arch->expert_used_count;
    uint32_t rows = 0;

    m->stamp++;
    for (uint32_t e = 0; e < m->cfg.arch->expert_count; e++) {
        if (m->counts[e] == 0 || m->node_of[e] != node)
            continue;
        for (uint32_t i = m->items_at[e]; i < m->items_at[e + 1]; i++) {
            uint32_t row = m->items[i] / used;

            if (m->row_stamp[row] == m->stamp)
                continue;
            m->row_stamp[row] = m->stamp;
            m->row_slot[row] = rows;
            m->row_list[rows++] = row;
        }
    }
    return rows;
}

/* Groups, entries and the places where the results will lie. */
static void write_entries(struct shunt_moe *m, uint32_t node, struct shunt_wire_group *groups,
                          uint32_t *entries, float *results)
{
    const struct shunt_arch *arch = m->cfg.arch;

    for (uint32_t e = 0; e < arch->expert_count; e++) {
        if (m->counts[e] == 0 || m->node_of[e] != node)
            continue;
        *groups++ = (struct shunt_wire_group){.expert = e, .count = m->counts[e]};
        for (uint32_t i = m->items_at[e]; i < m->items_at[e + 1]; i++) {
            *entries++ = m->row_slot[m->items[i] / arch->expert_used_count];
            m->results[m->items[i]] = results;
            results += arch->hidden;
        }
    }
}

static uint64_t build_dispatch(struct shunt_moe *m, uint32_t node, unsigned char *message)
{
    const struct shunt_arch *arch = m->cfg.arch;
    const struct shunt_exchange *x = m->cfg.exchange;
    struct shunt_moe_peer *peer = &m->peers[node];
    struct shunt_wire_dispatch_layout at;
    struct shunt_wire_header header = shunt_moe_header(m, SHUNT_WIRE_DISPATCH);

    header.row_count = list_rows(m, node);
    header.entry_count = peer->entries_out;
    header.result_off = peer->result_off;
    for (uint32_t e = 0; e < arch->expert_count; e++)
        header.group_count += m->counts[e] > 0 && m->node_of[e] == node;
    at = shunt_wire_dispatch_layout(&x->cfg.shape, header.group_count, header.entry_count,
                                    header.row_count);
    memcpy(message, &header, sizeof(header));
    memset(message + at.states, 0, at.groups - at.states);
    if (m->lane == SHUNT_LANE_DECODE && shunt_moe_has_next(m)) {
        shunt_moe_write_states(m, m->layer + 1, message + at.states);
        memcpy(message + at.guesses, m->own_guesses, shunt_wire_bits_bytes(arch->expert_count));
    }
    write_entries(m, node, (struct shunt_wire_group *)(void *)(message + at.groups),
                  (uint32_t *)(void *)(message + at.entries),
                  (float *)(void *)(shunt_exchange_results_area(x) + peer->result_off +
                                    sizeof(struct shunt_wire_header)));
    for (uint32_t r = 0; r < header.row_count; r++)
        memcpy(message + at.rows + (size_t)r * arch->hidden * sizeof(float),
               m->rows.x[m->row_list[r]], arch->hidden * sizeof(float));
    m->counters.rows_sent += header.row_count;
    return at.bytes;
}

/* Deals out the results area: first this node's own results, then a message for each peer. */
static void place_results(struct shunt_moe *m)
{
    const struct shunt_arch *arch = m->cfg.arch;
    uint64_t row_bytes = arch->hidden * sizeof(float);
    float *own = (float *)(void *)shunt_exchange_results_area(m->cfg.exchange);
    uint64_t off = 0;

    for (uint32_t n = 0; n < m->cfg.node_count; n++)
        m->peers[n] = (struct shunt_moe_peer){0};
    for (uint32_t e = 0; e < arch->expert_count; e++) {
        if (m->counts[e] == 0)
            continue;
        m->peers[m->node_of[e]].entries_out += m->counts[e];
        if (m->node_of[e] != m->cfg.rank)
            continue;
        for (uint32_t i = m->items_at[e]; i < m->items_at[e + 1]; i++) {
            m->results[m->items[i]] = own;
            own += arch->hidden;
        }
    }
    off = shunt_align_up(m->peers[m->cfg.rank].entries_out * row_bytes, SHUNT_WIRE_ALIGN);
    for (uint32_t n = 0; n < m->cfg.node_count; n++) {
        if (n == m->cfg.rank || m->peers[n].entries_out == 0)
            continue;
        m->peers[n].result_off = off;
        off = shunt_align_up(off + sizeof(struct shunt_wire_header) +
                                 m->peers[n].entries_out * row_bytes,
                             SHUNT_WIRE_ALIGN);
    }
}

int shunt_moe_dispatch(struct shunt_moe *m, struct shunt_error *err)
{
    place_results(m);
    for (uint32_t n = 0; n < m->cfg.node_count; n++) {
        void *message;
        int rc;

        if (n == m->cfg.rank)
            continue;
        rc = shunt_progress_gather_buffer(m->cfg.progress, n, &message, err);
        if (!rc)
            rc = shunt_progress_put_gather(m->cfg.progress, n, SHUNT_WIRE_DISPATCH,
                                           build_dispatch(m, n, message), err);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- peers' rows in */

static int view_dispatch(const struct shunt_moe *m, uint32_t node,
                         struct shunt_wire_dispatch_view *view, struct shunt_error *err)
{
    const struct shunt_exchange *x = m->cfg.exchange;
    const struct shunt_wire_expect expect = {
        .kind = SHUNT_WIRE_DISPATCH,
        .lane = m->lane,
        .rank = node,
        .layer = m->layer,
        .tick = x->tick,
        .step = m->step,
        .rows_max = m->cfg.rows_max[node],
    };
    const void *message = shunt_exchange_gathered(x, node);

    return shunt_wire_view_dispatch(message, &x->cfg.shape, &expect, x->nodes[node].label, view,
                                    err);
}

static void count_peer(struct shunt_moe *m, uint32_t node,
                       const struct shunt_wire_dispatch_view *view)
{
    size_t experts = m->cfg.arch->expert_count;
    uint32_t *counts = m->group_counts + node * experts;

    for (uint32_t g = 0; g < view->header.group_count; g++)
        counts[view->groups[g].expert] = view->groups[g].count;
    m->peers[node].entries_in = m->peers[node].entries_left = view->header.entry_count;
    m->peers[node].their_result_off = view->header.result_off;
    m->counters.rows_received += view->header.row_count;
    if (m->lane != SHUNT_LANE_DECODE)
        return;
    memcpy(m->next_states + node * experts, view->states, experts);
    for (uint32_t i = 0; i < shunt_wire_bits_bytes((uint32_t)experts); i++)
        m->guesses[i] |= view->guesses[i];
}

/* In prefill both sides know from the schedule what comes: were the nodes to plan differently, the
 * results would still be right, and only the reads wrong. */
static int check_schedule(const struct shunt_moe *m, uint32_t node, struct shunt_error *err)
{
    size_t begin = (size_t)node * m->cfg.arch->expert_count;

    for (uint32_t e = 0; e < m->cfg.arch->expert_count && m->lane == SHUNT_LANE_PREFILL; e++) {
        uint32_t due = m->all_nodes[begin + e] == m->cfg.rank ? m->all_counts[begin + e] : 0;

        if (m->group_counts[begin + e] != due)
            return shunt_error_set(
                err, -EPROTO,
                "%s sent %" PRIu32 " rows for expert %" PRIu32 " of layer %" PRIu32
                " where this node's schedule has %" PRIu32 "; the nodes plan differently",
                m->cfg.exchange->nodes[node].label, m->group_counts[begin + e], e, m->layer, due);
    }
    return 0;
}

static void place_peer(struct shunt_moe *m, const struct shunt_wire_dispatch_view *view,
                       unsigned char *results)
{
    uint32_t hidden = m->cfg.arch->hidden;
    float *y = (float *)(void *)(results + sizeof(struct shunt_wire_header));
    uint32_t entry = 0;

    for (uint32_t g = 0; g < view->header.group_count; g++) {
        uint32_t e = view->groups[g].expert;

        for (uint32_t i = 0; i < view->groups[g].count; i++, entry++) {
            m->entry_x[m->cursor[e]] = view->rows + (size_t)view->entries[entry] * hidden;
            m->entry_y[m->cursor[e]] = y;
            m->cursor[e]++;
            y += hidden;
        }
    }
}

static void place_own(struct shunt_moe *m)
{
    uint32_t used = m->cfg.arch->expert_used_count;

    for (uint32_t e = 0; e < m->cfg.arch->expert_count; e++) {
        if (m->group_counts[m->cfg.rank * m->cfg.arch->expert_count + e] == 0)
            continue;
        for (uint32_t i = m->items_at[e]; i < m->items_at[e + 1]; i++) {
            m->entry_x[m->cursor[e]] = m->rows.x[m->items[i] / used];
            m->entry_y[m->cursor[e]] = m->results[m->items[i]];
            m->cursor[e]++;
        }
    }
}

/* Entries by expert over all nodes: own first, then the peers' by rank. Every expert with entries
 * is asked of the store. */
static void sort_entries(struct shunt_moe *m)
{
    uint32_t experts = m->cfg.arch->expert_count;
    uint32_t at = 0;

    for (uint32_t e = 0; e < experts; e++) {
        m->entries_at[e] = m->cursor[e] = at;
        for (uint32_t n = 0; n < m->cfg.node_count; n++)
            at += m->group_counts[n * experts + e];
        m->entries_done[e] = 0;
        if (at > m->entries_at[e])
            shunt_moe_need(m, e);
    }
    m->entries_at[experts] = at;
}

int shunt_moe_collect(struct shunt_moe *m, struct shunt_error *err)
{
    struct shunt_wire_dispatch_view views[SHUNT_NODES_MAX];
    uint32_t *entries_in = m->entries_in;
    uint32_t experts = m->cfg.arch->expert_count;
    int rc = 0;

    memset(m->group_counts, 0, m->cfg.node_count * (size_t)experts * sizeof(*m->group_counts));
    for (uint32_t e = 0; e < experts; e++)
        if (m->counts[e] > 0 && m->node_of[e] == m->cfg.rank)
            m->group_counts[m->cfg.rank * experts + e] = m->counts[e];
    if (m->lane == SHUNT_LANE_DECODE) {
        memcpy(m->guesses, m->own_guesses, shunt_wire_bits_bytes(experts));
        if (shunt_moe_has_next(m))
            shunt_moe_write_states(m, m->layer + 1, m->next_states + m->cfg.rank * (size_t)experts);
    }
    if (m->cfg.node_count > 1)
        rc = shunt_progress_wait_gather(m->cfg.progress, "rows", err);
    for (uint32_t n = 0; n < m->cfg.node_count && !rc; n++) {
        if (n == m->cfg.rank)
            continue;
        views[n].groups = m->groups_in + n * (size_t)experts;
        views[n].entries = entries_in;
        entries_in += m->cfg.rows_max[n] * m->cfg.arch->expert_used_count;
        rc = view_dispatch(m, n, &views[n], err);
        if (rc)
            break;
        count_peer(m, n, &views[n]);
        rc = check_schedule(m, n, err);
    }
    if (rc)
        return rc;
    sort_entries(m);
    place_own(m);
    for (uint32_t n = 0; n < m->cfg.node_count && !rc; n++) {
        void *results;

        if (n == m->cfg.rank || m->peers[n].entries_in == 0)
            continue;
        rc = shunt_progress_results_buffer(m->cfg.progress, n, &results, err);
        if (!rc)
            place_peer(m, &views[n], results);
    }
    return rc;
}

/* ---- results */

int shunt_moe_send_results(struct shunt_moe *m, uint32_t node, struct shunt_error *err)
{
    struct shunt_moe_peer *peer = &m->peers[node];
    struct shunt_exchange *x = m->cfg.exchange;
    struct shunt_wire_header header = shunt_moe_header(m, SHUNT_WIRE_RESULTS);

    header.row_count = peer->entries_in;
    header.entry_count = peer->entries_in;
    header.waited_count = peer->waited;
    memcpy(x->results_out[node], &header, sizeof(header));
    m->counters.rows_sent += peer->entries_in;
    return shunt_progress_put_results(
        m->cfg.progress, node, peer->their_result_off,
        sizeof(header) + (uint64_t)peer->entries_in * m->cfg.arch->hidden * sizeof(float), err);
}

static uint32_t results_missing(void *ctx)
{
    const struct shunt_moe *m = ctx;

    for (uint32_t n = 0; n < m->cfg.node_count; n++)
        if (n != m->cfg.rank && m->peers[n].entries_out > 0 &&
            !shunt_exchange_has_results(m->cfg.exchange, n))
            return n;
    return SHUNT_WAIT_DONE;
}

int shunt_moe_collect_results(struct shunt_moe *m, struct shunt_error *err)
{
    struct shunt_exchange *x = m->cfg.exchange;
    int rc;

    if (m->cfg.node_count == 1)
        return 0;
    rc = shunt_progress_wait(m->cfg.progress, results_missing, m, "results", err);
    for (uint32_t n = 0; n < m->cfg.node_count && !rc; n++) {
        const struct shunt_wire_expect expect = {
            .kind = SHUNT_WIRE_RESULTS,
            .lane = m->lane,
            .rank = n,
            .layer = m->layer,
            .tick = x->tick,
            .step = m->step,
            .entry_count = m->peers[n].entries_out,
        };
        struct shunt_wire_header header;

        if (n == m->cfg.rank || m->peers[n].entries_out == 0)
            continue;
        rc = shunt_wire_view_results(shunt_exchange_results_area(x) + m->peers[n].result_off,
                                     &expect, x->nodes[n].label, &header, err);
        if (rc)
            break;
        m->counters.calls_read += header.waited_count;
        m->counters.calls_peer += header.entry_count - header.waited_count;
        m->counters.rows_received += header.entry_count;
        x->bytes_received += header.bytes;
    }
    if (!rc)
        shunt_exchange_next(x);
    return rc;
}
