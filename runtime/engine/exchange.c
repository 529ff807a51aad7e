/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/exchange.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

/* The immediate: kind in the high bits, the tick's low bits below. The header repeats them in full.
 */
#define IMM_TICK_BITS 28
#define IMM_TICK_MASK ((1u << IMM_TICK_BITS) - 1)

static uint32_t make_imm(enum shunt_wire_kind kind, uint64_t tick)
{
    return (uint32_t)kind << IMM_TICK_BITS | ((uint32_t)tick & IMM_TICK_MASK);
}

/* ---- layout */

/* Results of all of a node's rows, with a header and padding for each peer's share. */
static uint64_t results_bytes(const struct shunt_exchange_config *cfg, uint32_t rank)
{
    uint64_t rows = (uint64_t)cfg->rows_max[rank] * cfg->shape.used_count;

    return shunt_align_up(rows * cfg->shape.hidden * sizeof(float) +
                              cfg->node_count * 2ull * SHUNT_WIRE_ALIGN,
                          SHUNT_WIRE_ALIGN);
}

uint64_t shunt_exchange_inbox_bytes(const struct shunt_exchange_config *cfg, uint32_t rank)
{
    uint64_t bytes = results_bytes(cfg, rank);

    for (uint32_t r = 0; r < cfg->node_count; r++)
        if (r != rank)
            bytes += 2 * shunt_wire_gather_max(&cfg->shape, cfg->rows_max[r]);
    return bytes;
}

uint64_t shunt_exchange_reach_bytes(const struct shunt_exchange_config *cfg)
{
    const uint64_t gathers = 2 * shunt_wire_gather_max(&cfg->shape, cfg->rows_max[cfg->rank]);
    uint64_t bytes = 0;

    for (uint32_t r = 0; r < cfg->node_count; r++)
        if (r != cfg->rank)
            bytes += results_bytes(cfg, r) + gathers;
    return bytes;
}

/* Where in the inbox of `to` the messages of `from` lie. */
static uint64_t gather_off(const struct shunt_exchange_config *cfg, uint32_t to, uint32_t from,
                           uint64_t tick)
{
    uint64_t off = results_bytes(cfg, to);

    for (uint32_t r = 0; r < from; r++)
        if (r != to)
            off += 2 * shunt_wire_gather_max(&cfg->shape, cfg->rows_max[r]);
    return off + tick % 2 * shunt_wire_gather_max(&cfg->shape, cfg->rows_max[from]);
}

void shunt_exchange_carve(struct shunt_exchange *x, const struct shunt_exchange_config *cfg,
                          struct shunt_carve *carve)
{
    memset(x, 0, sizeof(*x));
    x->cfg = *cfg;
    x->results_bytes = results_bytes(cfg, cfg->rank);
    x->gather_out_bytes = shunt_wire_gather_max(&cfg->shape, cfg->rows_max[cfg->rank]);
    for (uint32_t r = 0; r < cfg->node_count; r++) {
        uint64_t entries = (uint64_t)cfg->rows_max[r] * cfg->shape.used_count;

        if (r == cfg->rank)
            continue;
        x->gather_out[r] = shunt_carve_aligned(carve, 2 * x->gather_out_bytes, 1, SHUNT_WIRE_ALIGN);
        x->results_out[r] = shunt_carve_aligned(
            carve, sizeof(struct shunt_wire_header) + entries * cfg->shape.hidden * sizeof(float),
            1, SHUNT_WIRE_ALIGN);
    }
}

void shunt_exchange_set_inbox(struct shunt_exchange *x, const struct shunt_region *inbox)
{
    x->inbox = *inbox;
    x->inbox.bytes = shunt_exchange_inbox_bytes(&x->cfg, x->cfg.rank);
}

int shunt_exchange_open(struct shunt_exchange *x, const struct shunt_transport_ops *ops,
                        const struct shunt_rack_node *nodes,
                        const struct shunt_transport_config *link, struct shunt_error *err)
{
    struct shunt_transport_config cfg = *link;
    uint64_t sizes[SHUNT_NODES_MAX];

    if (x->gather_out_bytes > UINT32_MAX || x->results_bytes > UINT32_MAX)
        return shunt_error_set(err, -EINVAL,
                               "a message between two nodes would have more than 4 GiB; lower "
                               "--chunk");
    for (uint32_t r = 0; r < x->cfg.node_count; r++)
        sizes[r] = shunt_exchange_inbox_bytes(&x->cfg, r);
    cfg.rank = x->cfg.rank;
    cfg.node_count = x->cfg.node_count;
    cfg.inbox = x->inbox;
    cfg.peer_inbox_bytes = sizes;
    x->nodes = nodes;
    x->ops = ops;
    return ops->open(&x->transport, &cfg, err);
}

bool shunt_exchange_close(struct shunt_exchange *x)
{
    bool gone = !x->transport || x->ops->close(x->transport);

    x->transport = NULL;
    return gone;
}

unsigned char *shunt_exchange_results_area(const struct shunt_exchange *x)
{
    return x->inbox.base;
}

/* ---- sending */

void shunt_exchange_next(struct shunt_exchange *x)
{
    for (uint32_t r = 0; r < x->cfg.node_count; r++) {
        x->gathered[r][x->tick % 2].there = false;
        x->results[r].there = false;
    }
    x->tick++;
}

struct shunt_wire_header shunt_exchange_header(const struct shunt_exchange *x,
                                               enum shunt_wire_kind kind)
{
    return (struct shunt_wire_header){
        .magic = SHUNT_WIRE_MAGIC,
        .version = SHUNT_WIRE_VERSION,
        .kind = (uint8_t)kind,
        .row_type = SHUNT_ROW_F32,
        .combine = SHUNT_COMBINE_ROW_PER_EXPERT,
        .rank = x->cfg.rank,
        .tick = x->tick,
    };
}

void *shunt_exchange_gather_buffer(const struct shunt_exchange *x, uint32_t peer)
{
    if (x->open_gathers[peer][x->tick % 2] > 0)
        return NULL;
    return x->gather_out[peer] + x->tick % 2 * x->gather_out_bytes;
}

void *shunt_exchange_results_buffer(const struct shunt_exchange *x, uint32_t peer)
{
    return x->open_results[peer] > 0 ? NULL : x->results_out[peer];
}

/* A NIC does not tell the receiver how much it wrote: the message does. */
static void stamp(unsigned char *message, uint64_t bytes)
{
    const uint32_t value = (uint32_t)bytes;

    memcpy(message + offsetof(struct shunt_wire_header, bytes), &value, sizeof(value));
}

int shunt_exchange_put_gather(struct shunt_exchange *x, uint32_t peer, enum shunt_wire_kind kind,
                              uint64_t bytes)
{
    unsigned char *message = x->gather_out[peer] + x->tick % 2 * x->gather_out_bytes;
    int rc;

    stamp(message, bytes);
    rc = x->ops->put(x->transport, peer, message, bytes,
                     gather_off(&x->cfg, peer, x->cfg.rank, x->tick), make_imm(kind, x->tick));
    if (rc == 0)
        x->open_gathers[peer][x->tick % 2]++;
    return rc;
}

int shunt_exchange_put_results(struct shunt_exchange *x, uint32_t peer, uint64_t off,
                               uint64_t bytes)
{
    int rc;

    stamp(x->results_out[peer], bytes);
    rc = x->ops->put(x->transport, peer, x->results_out[peer], bytes, off,
                     make_imm(SHUNT_WIRE_RESULTS, x->tick));
    if (rc == 0)
        x->open_results[peer]++;
    return rc;
}

/* ---- receiving */

static const struct shunt_wire_header *gather_area(const struct shunt_exchange *x, uint32_t peer,
                                                   uint64_t tick)
{
    const unsigned char *inbox = x->inbox.base;

    return (const void *)(inbox + gather_off(&x->cfg, x->cfg.rank, peer, tick));
}

const void *shunt_exchange_gathered(const struct shunt_exchange *x, uint32_t peer)
{
    const struct shunt_arrival *a = &x->gathered[peer][x->tick % 2];

    if (!a->there || a->tick != x->tick)
        return NULL;
    return gather_area(x, peer, x->tick);
}

bool shunt_exchange_has_results(const struct shunt_exchange *x, uint32_t peer)
{
    return x->results[peer].there;
}

bool shunt_exchange_peer_waits(const struct shunt_exchange *x)
{
    for (uint32_t r = 0; r < x->cfg.node_count; r++)
        if (r != x->cfg.rank && shunt_exchange_gathered(x, r))
            return true;
    return false;
}

/* A gather is of this tick or, from a peer that is ahead, of the next; and the first of it. */
static int take_gather(struct shunt_exchange *x, const struct shunt_completion *c,
                       struct shunt_error *err)
{
    for (uint64_t tick = x->tick; tick <= x->tick + 1; tick++) {
        struct shunt_arrival *a = &x->gathered[c->peer][tick % 2];

        if ((c->imm & IMM_TICK_MASK) != ((uint32_t)tick & IMM_TICK_MASK))
            continue;
        if (a->there && a->tick == tick)
            break;
        *a = (struct shunt_arrival){.tick = tick, .there = true};
        x->bytes_received += gather_area(x, c->peer, tick)->bytes;
        return 0;
    }
    return shunt_error_set(err, -EPROTO,
                           "%s sent message %#" PRIx32 " while exchange %" PRIu64
                           " was under way; the nodes are out of step",
                           x->nodes[c->peer].label, c->imm, x->tick);
}

static int take_results(struct shunt_exchange *x, const struct shunt_completion *c,
                        struct shunt_error *err)
{
    struct shunt_arrival *a = &x->results[c->peer];

    if ((c->imm & IMM_TICK_MASK) != ((uint32_t)x->tick & IMM_TICK_MASK) || a->there)
        return shunt_error_set(err, -EPROTO, "%s sent results that nobody asked for",
                               x->nodes[c->peer].label);
    *a = (struct shunt_arrival){.tick = x->tick, .there = true};
    return 0;
}

static int take(struct shunt_exchange *x, const struct shunt_completion *c, struct shunt_error *err)
{
    bool results = c->imm >> IMM_TICK_BITS == SHUNT_WIRE_RESULTS;

    switch (c->event) {
    case SHUNT_TRANSPORT_SENT:
        if (results)
            x->open_results[c->peer]--;
        else
            x->open_gathers[c->peer][c->imm % 2]--;
        return 0;
    case SHUNT_TRANSPORT_ARRIVED:
        /* The turns of the exchange guard its areas: it needs no credit of the transport. */
        x->ops->release(x->transport, c->peer, 1);
        return results ? take_results(x, c, err) : take_gather(x, c, err);
    case SHUNT_TRANSPORT_LOST:
        x->lost[c->peer] = true;
        x->lost_error[c->peer] = c->error;
        x->lost_reason[c->peer] = c->reason;
        return 0;
    }
    return 0;
}

int shunt_exchange_poll(struct shunt_exchange *x, struct shunt_error *err)
{
    struct shunt_completion completions[32];
    uint32_t n;

    if (!x->transport)
        return 0;
    do {
        n = x->ops->poll(x->transport, completions, 32);
        for (uint32_t i = 0; i < n; i++) {
            int rc = take(x, &completions[i], err);

            if (rc)
                return rc;
        }
    } while (n == 32);
    return 0;
}
