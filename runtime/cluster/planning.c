/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/planning.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "planner/node_set.h"
#include "runtime/base/clock.h"

enum { MESSAGE_REPORT = SHUNT_RACK_MESSAGE_FIRST, MESSAGE_PLACEMENT };

/* Followed by [layer][expert]: u32 activations in a report, u64 masks in a placement. */
struct report_header {
    uint32_t capacity;
    uint32_t key_count;
};
struct placement_header {
    uint64_t epoch;
    uint64_t key_count;
};
_Static_assert(sizeof(struct report_header) == 8 && sizeof(struct placement_header) == 16,
               "wire formats");

struct shunt_planning {
    struct shunt_planning_config cfg;
    uint32_t key_count;
    struct shunt_planner *planner; /* rank 0's */
    int64_t next_report_ns;
    unsigned char *message; /* control thread: being built */
    uint64_t
        *newest; /* control thread: a placement that waits for the engine to take the last one */
    uint64_t newest_epoch;
    uint64_t unsent; /* rank 0: mask of nodes to which `newest` must still go */

    uint64_t *pending; /* the engine's, once pending_epoch says so; the control thread's after
                          taken_epoch equals it */
    _Atomic uint64_t pending_epoch;
    _Atomic uint64_t taken_epoch;
};

uint32_t shunt_planning_message_max(uint32_t layer_count, uint32_t expert_count)
{
    return (uint32_t)sizeof(struct placement_header) +
           layer_count * expert_count * (uint32_t)sizeof(uint64_t);
}

/* ---- control thread */

static void report(struct shunt_planning *p)
{
    struct report_header header = {.capacity = p->cfg.capacity, .key_count = p->key_count};
    uint32_t *counts = (uint32_t *)(p->message + sizeof(header));
    int rc = 0;

    for (uint32_t k = 0; k < p->key_count; k++)
        counts[k] = atomic_load_explicit(&p->cfg.activations[k], memory_order_relaxed);
    if (p->planner) {
        shunt_planner_report(p->planner, p->cfg.rank, counts, p->cfg.capacity);
    } else {
        memcpy(p->message, &header, sizeof(header));
        rc = shunt_rack_send(p->cfg.rack, 0, MESSAGE_REPORT, p->message,
                             (uint32_t)sizeof(header) + p->key_count * (uint32_t)sizeof(*counts));
    }
    if (!rc) /* else the next tick tries again */
        p->next_report_ns = shunt_deadline_ns(p->cfg.interval_ns);
}

/* Gives the newest placement to the engine when it has taken the one before. */
static void offer(struct shunt_planning *p)
{
    uint64_t pending = atomic_load_explicit(&p->pending_epoch, memory_order_relaxed);

    if (p->newest_epoch <= pending ||
        atomic_load_explicit(&p->taken_epoch, memory_order_acquire) != pending)
        return;
    memcpy(p->pending, p->newest, p->key_count * sizeof(*p->pending));
    atomic_store_explicit(&p->pending_epoch, p->newest_epoch, memory_order_release);
}

static void distribute(struct shunt_planning *p)
{
    struct placement_header header = {.key_count = p->key_count};
    uint32_t bytes = shunt_planning_message_max(p->cfg.layer_count, p->cfg.expert_count);

    /* One placement at a time: the next one is taken when the last is active, which is the same
     * step on every node. So no two nodes ever wait for different ones. */
    if (p->unsent == 0 &&
        atomic_load_explicit(&p->taken_epoch, memory_order_acquire) == p->newest_epoch &&
        shunt_planner_take(p->planner, p->newest, &p->newest_epoch))
        p->unsent = ~0ull >> (64 - p->cfg.node_count) & ~shunt_node_set_of(p->cfg.rank);
    if (p->unsent == 0)
        return;
    header.epoch = p->newest_epoch;
    memcpy(p->message, &header, sizeof(header));
    memcpy(p->message + sizeof(header), p->newest, p->key_count * sizeof(*p->newest));
    for (uint32_t r = 0; r < p->cfg.node_count; r++)
        if (shunt_node_set_has(p->unsent, r) &&
            shunt_rack_send(p->cfg.rack, r, MESSAGE_PLACEMENT, p->message, bytes) == 0)
            p->unsent &= ~shunt_node_set_of(r);
}

void shunt_planning_tick(struct shunt_planning *p)
{
    if (p->cfg.policy == SHUNT_PLACEMENT_OFF)
        return;
    if (shunt_now_ns() >= p->next_report_ns)
        report(p);
    if (p->planner)
        distribute(p);
    offer(p);
}

static void take_report(struct shunt_planning *p, uint32_t rank, const unsigned char *data,
                        uint32_t bytes)
{
    struct report_header header;

    if (bytes != sizeof(header) + p->key_count * sizeof(uint32_t))
        return;
    memcpy(&header, data, sizeof(header));
    if (header.key_count != p->key_count)
        return;
    memcpy(p->message, data + sizeof(header), p->key_count * sizeof(uint32_t));
    shunt_planner_report(p->planner, rank, (const uint32_t *)p->message, header.capacity);
}

static void take_placement(struct shunt_planning *p, const unsigned char *data, uint32_t bytes)
{
    struct placement_header header;

    if (bytes != sizeof(header) + p->key_count * sizeof(uint64_t))
        return;
    memcpy(&header, data, sizeof(header));
    /* An older one must not take the place of a newer one that waits for the engine. */
    if (header.key_count != p->key_count || header.epoch <= p->newest_epoch)
        return;
    memcpy(p->newest, data + sizeof(header), p->key_count * sizeof(uint64_t));
    p->newest_epoch = header.epoch;
    offer(p);
}

void shunt_planning_message(struct shunt_planning *p, uint32_t rank, uint32_t type,
                            const void *data, uint32_t bytes)
{
    if (type == MESSAGE_REPORT && p->planner)
        take_report(p, rank, data, bytes);
    else if (type == MESSAGE_PLACEMENT && rank == 0 && !p->planner)
        take_placement(p, data, bytes);
}

/* ---- engine thread */

uint64_t shunt_planning_acknowledged(const struct shunt_planning *p)
{
    return atomic_load_explicit(&p->pending_epoch, memory_order_acquire);
}

const uint64_t *shunt_planning_mask(const struct shunt_planning *p)
{
    return p->pending;
}

void shunt_planning_activated(struct shunt_planning *p)
{
    uint64_t epoch = atomic_load_explicit(&p->pending_epoch, memory_order_relaxed);

    atomic_store_explicit(&p->taken_epoch, epoch, memory_order_release);
}

/* ---- set up and tear down */

int shunt_planning_open(struct shunt_planning **out, const struct shunt_planning_config *cfg,
                        struct shunt_error *err)
{
    struct shunt_planning *p = calloc(1, sizeof(*p));
    int rc = 0;

    if (!p)
        return shunt_error_set(err, -ENOMEM, "out of memory for the placement");
    p->cfg = *cfg;
    p->key_count = cfg->layer_count * cfg->expert_count;
    p->message = malloc(shunt_planning_message_max(cfg->layer_count, cfg->expert_count));
    p->newest = calloc(p->key_count, sizeof(*p->newest));
    p->pending = calloc(p->key_count, sizeof(*p->pending));
    if (!p->message || !p->newest || !p->pending)
        rc = shunt_error_set(err, -ENOMEM, "out of memory for the placement");
    if (!rc && cfg->rank == 0 && cfg->policy != SHUNT_PLACEMENT_OFF)
        rc = shunt_planner_open(&p->planner,
                                &(struct shunt_planner_config){
                                    .policy = cfg->policy,
                                    .node_count = cfg->node_count,
                                    .layer_count = cfg->layer_count,
                                    .expert_count = cfg->expert_count,
                                    .interval_ns = cfg->interval_ns,
                                },
                                err);
    if (rc) {
        shunt_planning_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void shunt_planning_close(struct shunt_planning *p)
{
    if (!p)
        return;
    shunt_planner_close(p->planner);
    free(p->message);
    free(p->newest);
    free(p->pending);
    free(p);
}
