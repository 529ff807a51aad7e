/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/bench/bench_impl.h"
#include "transport/region.h"

/* Released in lots, as a receiver that reads its puts would: not a word for each. */
#define RELEASE_EVERY (SHUNT_TRANSPORT_WINDOW / 4)

/* Polls between two looks at the clock. */
#define POLLS_PER_LOOK 64u

#define SLEEP_MAX_NS (100 * SHUNT_NS_PER_MS)

void shunt_bench_rack_init(struct shunt_bench_rack *rack)
{
    *rack = (struct shunt_bench_rack){
        .size = sizeof(*rack),
        .node_count = 2,
        .listen_fd = -1,
        .transport = "tcp",
        .busy_poll_ns = -1,
        .join_timeout_ns = 60 * SHUNT_NS_PER_S,
        .step_timeout_ns = 10 * SHUNT_NS_PER_S,
    };
}

/* ---- meeting */

static int choose_transport(struct shunt_bench_node *b, struct shunt_error *err)
{
    const char *name = b->cfg.transport ? b->cfg.transport : "";
    uint32_t kind = 0;
    char names[64];

    while (kind < SHUNT_TRANSPORT_KINDS &&
           strcmp(shunt_transport_get((enum shunt_transport_kind)kind)->name, name) != 0)
        kind++;
    if (kind == SHUNT_TRANSPORT_KINDS) {
        shunt_transport_names(UINT32_MAX, names, sizeof(names));
        return shunt_error_set(err, -EINVAL, "transport: '%s' is none of %s", name, names);
    }
    b->ops = shunt_transport_get((enum shunt_transport_kind)kind);
    b->transports = 1u << kind;
    if (b->ops->absent)
        return shunt_error_set(err, -ENOTSUP, "transport %s: %s", name, b->ops->absent);
    return b->cfg.encrypt ? shunt_transports_encrypted(&b->transports, name, err) : 0;
}

static int check_rack(const struct shunt_bench_rack *cfg, struct shunt_error *err)
{
    if (cfg->node_count < 2 || cfg->node_count > SHUNT_NODES_MAX || cfg->rank >= cfg->node_count)
        return shunt_error_set(err, -EINVAL, "rank %u of %u nodes: there are 2 to %u", cfg->rank,
                               cfg->node_count, SHUNT_NODES_MAX);
    if (cfg->join_timeout_ns <= 0 || cfg->step_timeout_ns <= 0)
        return shunt_error_set(err, -EINVAL, "timeouts must be positive");
    return 0;
}

int shunt_bench_join(struct shunt_bench_node *b, const struct shunt_bench_rack *cfg,
                     const char *name, const uint8_t shape[16], uint32_t pages,
                     struct shunt_error *err)
{
    struct shunt_rack_config rc = {
        .rank = cfg->rank,
        .node_count = cfg->node_count,
        .addresses = cfg->addresses,
        .listen_fd = cfg->listen_fd,
        .credentials = {.key = cfg->key_file,
                        .cert = cfg->cert_file,
                        .cert_key = cfg->cert_key_file,
                        .ca = cfg->ca_file},
        .encrypt = cfg->encrypt,
        .join_timeout_ns = cfg->join_timeout_ns,
        .listening = cfg->listening,
        .listening_ctx = cfg->listening_ctx,
        .dead_after_ns = cfg->step_timeout_ns,
        .model_name = name,
        .kernel_levels = 1,
        .rows_max = pages,
        .message_max = 64,
    };
    int rc2; /* of what comes before */

    memset(b, 0, sizeof(*b));
    b->cfg = *cfg;
    memcpy(rc.fingerprint, shape, sizeof(rc.fingerprint));
    rc2 = check_rack(cfg, err);
    if (!rc2)
        rc2 = choose_transport(b, err);
    rc.transports = b->transports;
    if (!rc2)
        return shunt_rack_join(&b->rack, &rc, err);
    if (cfg->listen_fd >= 0)
        close(cfg->listen_fd);
    return rc2;
}

static int map_memory(struct shunt_bench_node *b, uint64_t memory_bytes, struct shunt_error *err)
{
    const uint64_t inbox_bytes = b->inbox_bytes[b->cfg.rank];
    void *base;
    int rc;

    rc = shunt_region_map_inbox(&b->inbox, &b->arena, inbox_bytes, b->ops->needs_shared_inbox, err);
    if (!rc)
        rc = shunt_arena_alloc(&b->arena, memory_bytes, "the messages", &base, err);
    if (rc)
        return rc;
    b->memory = (struct shunt_region){.base = base, .bytes = memory_bytes, .fd = -1};
    /* No page is fetched within what is timed. */
    memset(b->inbox.base, 0, inbox_bytes);
    memset(base, 1, memory_bytes);
    return 0;
}

int shunt_bench_open(struct shunt_bench_node *b, uint64_t memory_bytes, struct shunt_error *err)
{
    const struct shunt_patience patience = {.deadline_ns =
                                                shunt_deadline_ns(b->cfg.join_timeout_ns)};
    struct shunt_stream streams[SHUNT_NODES_MAX];
    struct shunt_transport_config cfg = {
        .rank = b->cfg.rank,
        .node_count = b->cfg.node_count,
        .streams = streams,
        .peer_inbox_bytes = b->inbox_bytes,
        .memory = &b->memory,
        .memory_count = 1,
        .put_timeout_ns = b->cfg.step_timeout_ns,
        .link = &b->cfg.link,
        .dead_after_ns = b->cfg.step_timeout_ns,
        .patience = &patience,
    };
    int rc = map_memory(b, memory_bytes, err);

    if (rc)
        return rc;
    cfg.inbox = b->inbox;
    shunt_rack_take_streams(b->rack, streams);
    return b->ops->open(&b->t, &cfg, err);
}

void shunt_bench_close(struct shunt_bench_node *b)
{
    const bool let_go = !b->t || b->ops->close(b->t);

    shunt_rack_close(b->rack);
    if (let_go) /* else a device may still write there */
        shunt_arena_fini(&b->arena);
    memset(b, 0, sizeof(*b));
}

/* ---- moving */

static void take(struct shunt_bench_node *b, const struct shunt_completion *c)
{
    switch (c->event) {
    case SHUNT_TRANSPORT_SENT:
        b->open_puts[c->peer]--;
        return;
    case SHUNT_TRANSPORT_ARRIVED:
        b->arrived[c->peer][c->imm % SHUNT_BENCH_WORDS]++;
        if (++b->unreleased[c->peer] < RELEASE_EVERY)
            return;
        b->ops->release(b->t, c->peer, b->unreleased[c->peer]);
        b->unreleased[c->peer] = 0;
        return;
    case SHUNT_TRANSPORT_LOST:
        b->lost_error[c->peer] = c->error;
        b->lost_reason[c->peer] = c->reason;
    }
}

/* Return: completions. */
static uint32_t poll_once(struct shunt_bench_node *b)
{
    struct shunt_completion c[16];
    uint32_t count = b->ops->poll(b->t, c, 16);

    for (uint32_t i = 0; i < count; i++)
        take(b, &c[i]);
    return count;
}

/* One wait for one peer. */
struct wait {
    uint32_t peer;
    int64_t idle_ns; /* since when nothing has come from anybody; 0: not looked yet */
};

/* Polls until something has come, whatever it is, or it is time to look at the clock. Return:
 * whether something has come. */
static bool poll_some(struct shunt_bench_node *b)
{
    for (uint32_t polls = 0; polls < POLLS_PER_LOOK; polls++)
        if (poll_once(b) > 0)
            return true;
    return false;
}

static void sleep_some(struct shunt_bench_node *b)
{
    struct timespec timeout = shunt_timespec(SLEEP_MAX_NS);
    struct pollfd fds[SHUNT_NODES_MAX + 1];

    ppoll(fds, b->ops->prepare(b->t, fds, SHUNT_NODES_MAX + 1), &timeout, NULL);
}

/* Return: 0, or that the peer is gone. */
static int check_peer(const struct shunt_bench_node *b, uint32_t peer, struct shunt_error *err)
{
    if (b->lost_error[peer] == 0)
        return 0;
    return shunt_error_set(err, b->lost_error[peer], "%s is gone: %s",
                           shunt_rack_nodes(b->rack)[peer].label, b->lost_reason[peer]);
}

/* After poll_some: is there any going on? Return: 0, or why not. */
static int check_wait(struct shunt_bench_node *b, struct wait *w, bool has_come,
                      struct shunt_error *err)
{
    int rc = check_peer(b, w->peer, err);
    int64_t now;

    if (has_come)
        w->idle_ns = 0;
    if (rc || has_come)
        return rc;
    now = shunt_now_ns();
    if (w->idle_ns == 0)
        w->idle_ns = now;
    if (now - w->idle_ns >= b->cfg.step_timeout_ns)
        return shunt_error_set(err, -ETIMEDOUT, "waiting for %s: nothing has come for %.3g s",
                               shunt_rack_nodes(b->rack)[w->peer].label,
                               (double)b->cfg.step_timeout_ns / 1e9);
    if (b->cfg.busy_poll_ns >= 0 && now - w->idle_ns >= b->cfg.busy_poll_ns)
        sleep_some(b);
    return 0;
}

int shunt_bench_put(struct shunt_bench_node *b, uint32_t peer, const void *src, uint64_t bytes,
                    uint64_t off, enum shunt_bench_word word, struct shunt_error *err)
{
    struct wait w = {.peer = peer};

    for (;;) {
        int rc = b->ops->put(b->t, peer, src, bytes, off, word);

        b->open_puts[peer] += rc == 0;
        if (rc == 0)
            return 0;
        if (rc != -EAGAIN && rc != -EPIPE)
            return shunt_error_set(err, rc, "a put of %llu bytes is refused",
                                   (unsigned long long)bytes);
        rc = check_wait(b, &w, poll_some(b), err);
        if (rc)
            return rc;
    }
}

int shunt_bench_await_either(struct shunt_bench_node *b, uint32_t peer, enum shunt_bench_word word,
                             uint64_t count, enum shunt_bench_word other, uint64_t other_count,
                             struct shunt_error *err)
{
    const uint64_t *arrived = b->arrived[peer];
    struct wait w = {.peer = peer};
    int rc = 0;

    while (!rc && arrived[word] < count && arrived[other] < other_count) {
        bool has_come = poll_some(b);

        if (arrived[word] >= count || arrived[other] >= other_count)
            return 0; /* it came before whatever went wrong */
        rc = check_wait(b, &w, has_come, err);
    }
    return rc;
}

int shunt_bench_await(struct shunt_bench_node *b, uint32_t peer, enum shunt_bench_word word,
                      uint64_t count, struct shunt_error *err)
{
    return shunt_bench_await_either(b, peer, word, count, word, count, err);
}

int shunt_bench_drain(struct shunt_bench_node *b, struct shunt_error *err)
{
    for (uint32_t peer = 0; peer < b->cfg.node_count; peer++) {
        struct wait w = {.peer = peer};

        while (b->open_puts[peer] > 0) {
            int rc = check_wait(b, &w, poll_some(b), err);

            if (rc)
                return rc;
        }
    }
    return 0;
}

/* ---- figures */

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* The smallest value that so many of 1000 do not exceed. */
static int64_t quantile(const int64_t *sorted, uint64_t count, uint64_t of_1000)
{
    return sorted[(count * of_1000 + 999) / 1000 - 1];
}

struct shunt_bench_times shunt_bench_summarize(int64_t *samples, uint64_t count)
{
    if (count == 0)
        return (struct shunt_bench_times){0};
    qsort(samples, count, sizeof(*samples), compare_times);
    return (struct shunt_bench_times){
        .count = count,
        .min_ns = samples[0],
        .p50_ns = quantile(samples, count, 500),
        .p99_ns = quantile(samples, count, 990),
        .p999_ns = quantile(samples, count, 999),
        .max_ns = samples[count - 1],
    };
}

/* ---- hardware */

enum shunt_bench_hardware shunt_bench_hardware_of(const struct shunt_bench_node *b)
{
    if (strcmp(b->ops->name, "verbs") != 0)
        return SHUNT_BENCH_HOST;
    return b->ops->counters(b->t)->emulated ? SHUNT_BENCH_SOFTWARE_RDMA : SHUNT_BENCH_RDMA;
}
