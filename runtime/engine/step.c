/* SPDX-License-Identifier: Apache-2.0
 *
 * The rack's steps. Each begins with one announcement from every node, from which all conclude the
 * same: whether the prefill lane advances by a layer, whether the decode lane makes a pass, whether
 * a new placement becomes active, whether the rack ends. A node without work joins with zero rows;
 * when nobody has work, nobody announces, and the rack sleeps until somebody does.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "runtime/engine/engine_impl.h"

#include "runtime/base/clock.h"

/* Asleep, the engine still looks around so often: placement reads may be waiting for a slot. */
#define SLEEP_NS (500 * SHUNT_NS_PER_MS)
/* Leaving waits no longer than this for a drive that does not answer. */
#define SETTLE_NS (2 * SHUNT_NS_PER_S)

/* What everybody's announcements say together. */
struct agreement {
    bool decode, prefill; /* some node has rows */
    bool leaving;         /* every node is */
    uint64_t epoch;       /* of the newest placement every node has */
};

/* ---- statistics */

static void fill_stats(const struct shunt *e, struct shunt_stats *s)
{
    const struct shunt_store_counters *c = shunt_store_get_counters(e->store);
    uint32_t keys = e->model->arch.layer_count * e->model->arch.expert_count;

    *s = (struct shunt_stats){
        .size = sizeof(*s),
        .rank = e->rank,
        .node_count = e->node_count,
        .slot_count = shunt_store_slot_count(e->store),
        .slots_used = shunt_store_slots_used(e->store),
        .steps = e->decode_steps + e->prefill_layers,
        .decode_steps = e->decode_steps,
        .prompt_tokens = e->prompt_tokens,
        .tokens = e->tokens,
        .calls_local = e->moe.counters.calls_local,
        .calls_peer = e->moe.counters.calls_peer,
        .calls_read = e->moe.counters.calls_read,
        .bytes_startup = e->model->startup_bytes + c->bytes_startup,
        .bytes_demand = c->bytes[SHUNT_READ_DEMAND],
        .bytes_speculative = c->bytes[SHUNT_READ_SPECULATIVE],
        .bytes_placement = c->bytes[SHUNT_READ_PLACEMENT],
        .reads_demand = c->reads[SHUNT_READ_DEMAND],
        .reads_speculative = c->reads[SHUNT_READ_SPECULATIVE],
        .reads_placement = c->reads[SHUNT_READ_PLACEMENT],
        .speculative_useful = c->guesses_useful,
        .speculative_late = c->guesses_late,
        .speculative_wasted = c->guesses_wasted,
        .speculative_pending = c->guesses_pending,
        .rows_sent = e->moe.counters.rows_sent,
        .rows_received = e->moe.counters.rows_received,
        .wait_read_ns = e->progress.wait_read_ns,
        .wait_peer_ns = e->progress.wait_peer_ns,
        .placement_epoch = e->placement_epoch,
        .memory_bytes = e->arena.bytes,
        .memory_limit_bytes = e->options.memory_limit,
        .kernels = e->kernels->name,
        .io = shunt_store_io_name(e->store),
        .transport = e->node_count > 1 ? e->options.transport->name : "none",
        .io_direct = shunt_store_io_direct(e->store),
        .threads = e->options.threads,
        .chunk = e->options.chunk,
    };
    for (uint32_t k = 0; k < keys; k++)
        s->placed_count += e->moe.placed_here[k];
    if (e->exchange.transport) {
        const struct shunt_transport_counters *t = e->exchange.ops->counters(e->exchange.transport);

        s->bytes_sent = t->bytes_sent;
        s->bytes_received = e->exchange.bytes_received;
    }
}

/* A sequence lock over words: readers try again when the version was odd or has changed. */
void shunt_engine_publish(struct shunt *e)
{
    uint64_t words[SHUNT_STATS_WORDS] = {0};
    struct shunt_stats s;
    uint32_t version = atomic_load_explicit(&e->stats_version, memory_order_relaxed);

    fill_stats(e, &s);
    memcpy(words, &s, sizeof(s));
    atomic_store(&e->stats_version, version + 1);
    for (uint32_t i = 0; i < SHUNT_STATS_WORDS; i++)
        atomic_store(&e->stats_words[i], words[i]);
    atomic_store(&e->stats_version, version + 2);
}

/* ---- agreement */

static struct shunt_wire_announce own_announcement(struct shunt *e)
{
    struct shunt_wire_announce a = {
        .epoch = shunt_planning_acknowledged(e->planning),
        .decode_rows = shunt_lanes_decode_rows(e),
        .prefill_rows = e->prefill_running ? e->prefill.count : shunt_lanes_prefill_rows(e),
    };
    bool leaving = atomic_load(&e->leaving) || e->serve_only;

    /* Not before those have ended that wait for their reader, or have only just come. */
    if (leaving && !shunt_lanes_alive(e))
        a.flags |= SHUNT_ANNOUNCE_LEAVING;
    return a;
}

static void write_announcement(const struct shunt *e, const struct shunt_wire_announce *own,
                               unsigned char *message)
{
    struct shunt_wire_header header = shunt_exchange_header(&e->exchange, SHUNT_WIRE_ANNOUNCE);

    header.step = e->step;
    memcpy(message, &header, sizeof(header));
    memcpy(message + sizeof(header), own, sizeof(*own));
    shunt_moe_write_states(&e->moe, 0, message + sizeof(header) + sizeof(*own));
}

static void agree_with(struct agreement *all, const struct shunt_wire_announce *one)
{
    all->decode |= one->decode_rows > 0;
    all->prefill |= one->prefill_rows > 0;
    all->leaving &= (one->flags & SHUNT_ANNOUNCE_LEAVING) != 0;
    if (one->epoch < all->epoch)
        all->epoch = one->epoch;
}

static int take_announcement(struct shunt *e, uint32_t node, struct agreement *all,
                             struct shunt_error *err)
{
    const struct shunt_wire_expect expect = {
        .kind = SHUNT_WIRE_ANNOUNCE, .rank = node, .tick = e->exchange.tick, .step = e->step};
    struct shunt_wire_announce_view view;
    const void *message = shunt_exchange_gathered(&e->exchange, node);
    int rc = shunt_wire_view_announce(message, &expect, e->exchange.nodes[node].label, &view, err);

    if (rc)
        return rc;
    agree_with(all, &view.announce);
    shunt_moe_take_states(&e->moe, node, view.states);
    return 0;
}

static int agree(struct shunt *e, const struct shunt_wire_announce *own, struct agreement *all,
                 struct shunt_error *err)
{
    uint64_t bytes = shunt_wire_announce_bytes(&e->exchange.cfg.shape);
    int rc = 0;

    *all = (struct agreement){.leaving = true, .epoch = UINT64_MAX};
    agree_with(all, own);
    if (e->node_count == 1)
        return 0;
    for (uint32_t n = 0; n < e->node_count && !rc; n++) {
        void *message;

        if (n == e->rank)
            continue;
        rc = shunt_progress_gather_buffer(&e->progress, n, &message, err);
        if (rc)
            break;
        write_announcement(e, own, message);
        rc = shunt_progress_put_gather(&e->progress, n, SHUNT_WIRE_ANNOUNCE, bytes, err);
    }
    if (!rc)
        rc = shunt_progress_wait_gather(&e->progress, "announcement", err);
    for (uint32_t n = 0; n < e->node_count && !rc; n++)
        if (n != e->rank)
            rc = take_announcement(e, n, all, err);
    if (!rc)
        shunt_exchange_next(&e->exchange);
    return rc;
}

/* ---- lanes */

static int run_prefill_layer(struct shunt *e, struct shunt_error *err)
{
    int rc;

    if (e->prefill_layer == 0) {
        shunt_lanes_fill_prefill(e);
        e->prefill_running = true;
    }
    rc = shunt_forward_layer(e, &e->prefill, SHUNT_LANE_PREFILL, e->prefill_layer, err);
    if (rc)
        return rc;
    if (++e->prefill_layer == e->model->arch.layer_count) {
        rc = shunt_lanes_finish_prefill(e, err);
        e->prefill_layer = 0;
        e->prefill_running = false;
    }
    e->prefill_layers++;
    return rc;
}

static int run_decode_pass(struct shunt *e, struct shunt_error *err)
{
    int rc = 0;

    shunt_lanes_fill_decode(e);
    for (uint32_t l = 0; l < e->model->arch.layer_count && !rc; l++)
        rc = shunt_forward_layer(e, &e->decode, SHUNT_LANE_DECODE, l, err);
    if (!rc)
        rc = shunt_lanes_finish_decode(e, err);
    e->decode_steps++;
    return rc;
}

/* ---- the thread */

static void signal_events(struct shunt *e)
{
    if (e->has_events)
        shunt_engine_signal(e);
    e->has_events = false;
}

static bool same(const struct shunt_wire_announce *a, const struct shunt_wire_announce *b)
{
    return !memcmp(a, b, sizeof(*a));
}

/* Nobody had work in the last step: sleeps until this node has something to say that it has not
 * said, or a peer has said something. Reads for the placement go on meanwhile. */
static int sleep_while_idle(struct shunt *e, const struct shunt_wire_announce *said,
                            struct shunt_wire_announce *own, struct shunt_error *err)
{
    shunt_engine_publish(e);
    for (;;) {
        uint64_t sink;
        int rc = shunt_progress_poll(&e->progress, err);

        if (rc)
            return rc;
        if (read(e->wake_fd, &sink, sizeof(sink)) < 0)
            sink = 0; /* nothing was there; what matters is looked at below */
        shunt_lanes_admit(e);
        signal_events(e);
        *own = own_announcement(e);
        if (!same(own, said) || shunt_exchange_peer_waits(&e->exchange))
            return 0;
        for (uint32_t n = 0; n < e->node_count; n++)
            if (e->exchange.lost[n])
                return 0; /* the wait for its announcement words it */
        shunt_progress_sleep(&e->progress, e->wake_fd, SLEEP_NS);
    }
}

static void activate_placement(struct shunt *e, uint64_t epoch)
{
    if (epoch <= e->placement_epoch)
        return;
    shunt_moe_place(&e->moe, shunt_planning_mask(e->planning));
    e->placement_epoch = epoch;
    shunt_planning_activated(e->planning);
}

static int run(struct shunt *e, struct shunt_error *err)
{
    struct shunt_wire_announce own, said = {0};
    struct agreement all = {0};
    int rc;

    for (;;) {
        shunt_lanes_admit(e);
        own = own_announcement(e);
        if (!all.decode && !all.prefill && same(&own, &said)) {
            rc = sleep_while_idle(e, &said, &own, err);
            if (rc)
                return rc;
        }
        said = own;
        rc = agree(e, &own, &all, err);
        if (rc)
            return rc;
        activate_placement(e, all.epoch);
        if (all.leaving)
            return 0;
        if (all.prefill || e->prefill_running)
            rc = run_prefill_layer(e, err);
        if (!rc && all.decode)
            rc = run_decode_pass(e, err);
        if (rc)
            return rc;
        e->step++;
        shunt_engine_publish(e);
        signal_events(e);
    }
}

/* Guesses may be under way: they are read to their end, for numbers that are final. */
static int finish_reads(struct shunt *e, struct shunt_error *err)
{
    const struct shunt_patience patience = {.deadline_ns = shunt_now_ns() + SETTLE_NS,
                                            .abort = &e->abort};

    shunt_store_settle(e->store, &patience);
    return shunt_store_check_file(e->store, err);
}

void *shunt_engine_main(void *engine)
{
    struct shunt *e = engine;
    struct shunt_error err;
    int rc = run(e, &err);
    bool agreed = rc == 0;

    if (agreed) {
        /* From here on nobody is missed, and nobody misses us. */
        shunt_rack_end(e->rack);
        atomic_store(&e->agreed, 1);
        rc = finish_reads(e, &err);
        if (rc)
            shunt_engine_down(e, e->rank, &err);
    } else if (e->progress.lost_peer < e->node_count) {
        shunt_rack_peer_lost(e->rack, e->progress.lost_peer, &err);
    } else if (rc != -ECANCELED) { /* told to stop: the goodbye says that, or the rack is down */
        shunt_rack_fail(e->rack, &err);
    }
    atomic_store(&e->closed, 1); /* before the last look: see shunt_submit */
    shunt_lanes_end_all(e, rc ? SHUNT_END_ERROR : SHUNT_END_CANCELLED);
    shunt_engine_publish(e);
    /* Before the event: who closes on it finds the engine ended in order. */
    atomic_store(&e->finished, 1);
    if (!rc) {
        const struct shunt_error in_order = {.text = "every node has left the rack"};

        shunt_engine_down(e, e->rank, &in_order);
    }
    shunt_engine_signal(e);
    return NULL;
}
