/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/progress.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "runtime/base/clock.h"

/* Tasks may be shorter than the system call for each peer that looking at it costs. */
#define HOOK_NS (30 * SHUNT_NS_PER_US)

/* A lost wake-up would cost this much, not the step's deadline. */
#define SLEEP_MAX_NS (50 * SHUNT_NS_PER_MS)

int shunt_progress_check(const struct shunt_progress *p, struct shunt_error *err)
{
    if (!atomic_load(p->abort))
        return 0;
    return shunt_error_set(err, -ECANCELED, "the engine was told to stop");
}

int shunt_progress_poll(struct shunt_progress *p, struct shunt_error *err)
{
    int rc = shunt_progress_check(p, err);

    if (rc)
        return rc;
    if (p->hook_error.code) {
        if (err)
            *err = p->hook_error;
        return p->hook_error.code;
    }
    rc = shunt_exchange_poll(p->exchange, err);
    if (rc)
        return rc;
    rc = shunt_store_pump(p->store);
    if (rc < 0) {
        if (err)
            *err = *shunt_store_error(p->store);
        return rc;
    }
    return 0;
}

void shunt_progress_hook(void *progress)
{
    struct shunt_progress *p = progress;
    struct shunt_error err;
    int64_t now = shunt_now_ns();

    if (now - p->hook_ns < HOOK_NS || p->hook_error.code)
        return;
    p->hook_ns = now;
    if (shunt_progress_poll(p, &err))
        p->hook_error = err;
}

void shunt_progress_sleep(struct shunt_progress *p, int extra_fd, int64_t timeout_ns)
{
    struct pollfd fds[SHUNT_NODES_MAX + 3];
    struct timespec timeout = shunt_timespec(timeout_ns > 0 ? timeout_ns : 0);
    uint32_t n = 0;

    fds[n++] = (struct pollfd){.fd = p->abort_fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = extra_fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = shunt_store_fd(p->store), .events = POLLIN};
    if (p->exchange->transport)
        n += p->exchange->ops->prepare(p->exchange->transport, fds + n, SHUNT_NODES_MAX);
    ppoll(fds, n, &timeout, NULL);
    shunt_store_watched(p->store);
}

/* The peer whose message is awaited has gone. */
static int peer_lost(struct shunt_progress *p, uint32_t peer, struct shunt_error *err)
{
    const struct shunt_exchange *x = p->exchange;

    p->lost_peer = peer;
    return shunt_error_set(err, x->lost_error[peer], "%s is gone: %s", x->nodes[peer].label,
                           x->lost_reason[peer]);
}

static int too_late(const struct shunt_progress *p, uint32_t awaited, const char *what,
                    struct shunt_error *err)
{
    double seconds = (double)p->step_timeout_ns / 1e9;

    if (awaited == SHUNT_WAIT_DRIVE)
        return shunt_error_set(err, -ETIMEDOUT,
                               "the drive has not answered an expert read within %.10g s "
                               "(--step-timeout)",
                               seconds);
    return shunt_error_set(err, -ETIMEDOUT, "no %s from %s within %.10g s (--step-timeout)", what,
                           p->exchange->nodes[awaited].label, seconds);
}

static void count_wait(struct shunt_progress *p, uint32_t awaited, int64_t ns)
{
    if (awaited == SHUNT_WAIT_DRIVE)
        p->wait_read_ns += ns;
    else
        p->wait_peer_ns += ns;
}

int shunt_progress_wait(struct shunt_progress *p, shunt_wait_fn *fn, void *ctx, const char *what,
                        struct shunt_error *err)
{
    uint32_t awaited = SHUNT_WAIT_DONE; /* since `since` */
    int64_t begin = 0, since = 0;

    for (;;) {
        int rc = shunt_progress_poll(p, err);
        uint32_t next = fn(ctx);
        const bool over = rc || next == SHUNT_WAIT_DONE;
        int64_t now;

        if (over && begin == 0)
            return rc;
        now = shunt_now_ns();
        if (begin == 0)
            begin = now;
        else
            count_wait(p, awaited, now - since);
        if (over)
            return rc;
        awaited = next;
        since = now;
        if (awaited != SHUNT_WAIT_DRIVE && p->exchange->lost[awaited])
            return peer_lost(p, awaited, err);
        if (now - begin >= p->step_timeout_ns)
            return too_late(p, awaited, what, err);
        if (now - begin >= p->busy_poll_ns)
            shunt_progress_sleep(p, -1, SLEEP_MAX_NS);
    }
}

static uint32_t gather_missing(void *ctx)
{
    const struct shunt_exchange *x = ctx;

    for (uint32_t n = 0; n < x->cfg.node_count; n++)
        if (n != x->cfg.rank && !shunt_exchange_gathered(x, n))
            return n;
    return SHUNT_WAIT_DONE;
}

int shunt_progress_wait_gather(struct shunt_progress *p, const char *what, struct shunt_error *err)
{
    return shunt_progress_wait(p, gather_missing, p->exchange, what, err);
}

/* ---- buffers and puts */

struct put {
    struct shunt_progress *p;
    uint32_t peer;
    enum shunt_wire_kind kind;
    uint64_t off, bytes;
    int rc;
};

static uint32_t gather_buffer_busy(void *ctx)
{
    const struct put *put = ctx;

    return shunt_exchange_gather_buffer(put->p->exchange, put->peer) ? SHUNT_WAIT_DONE : put->peer;
}

static uint32_t results_buffer_busy(void *ctx)
{
    const struct put *put = ctx;

    return shunt_exchange_results_buffer(put->p->exchange, put->peer) ? SHUNT_WAIT_DONE : put->peer;
}

static uint32_t put_refused(void *ctx)
{
    struct put *put = ctx;

    if (put->kind == SHUNT_WIRE_RESULTS)
        put->rc = shunt_exchange_put_results(put->p->exchange, put->peer, put->off, put->bytes);
    else
        put->rc = shunt_exchange_put_gather(put->p->exchange, put->peer, put->kind, put->bytes);
    return put->rc == -EAGAIN ? put->peer : SHUNT_WAIT_DONE;
}

int shunt_progress_gather_buffer(struct shunt_progress *p, uint32_t peer, void **buffer,
                                 struct shunt_error *err)
{
    struct put put = {.p = p, .peer = peer};
    int rc = 0;

    if (gather_buffer_busy(&put) != SHUNT_WAIT_DONE)
        rc = shunt_progress_wait(p, gather_buffer_busy, &put, "room to send", err);
    if (!rc)
        *buffer = shunt_exchange_gather_buffer(p->exchange, peer);
    return rc;
}

int shunt_progress_results_buffer(struct shunt_progress *p, uint32_t peer, void **buffer,
                                  struct shunt_error *err)
{
    struct put put = {.p = p, .peer = peer};
    int rc = 0;

    if (results_buffer_busy(&put) != SHUNT_WAIT_DONE)
        rc = shunt_progress_wait(p, results_buffer_busy, &put, "room to send", err);
    if (!rc)
        *buffer = shunt_exchange_results_buffer(p->exchange, peer);
    return rc;
}

static int put_now_or_wait(struct put *put, struct shunt_error *err)
{
    int rc = 0;

    if (put_refused(put) != SHUNT_WAIT_DONE)
        rc = shunt_progress_wait(put->p, put_refused, put, "room to send", err);
    if (rc || put->rc == 0)
        return rc;
    if (put->p->exchange->lost[put->peer])
        return peer_lost(put->p, put->peer, err);
    return shunt_error_set(err, put->rc, "cannot send %llu bytes to %s: %s",
                           (unsigned long long)put->bytes, put->p->exchange->nodes[put->peer].label,
                           strerror(-put->rc));
}

int shunt_progress_put_gather(struct shunt_progress *p, uint32_t peer, enum shunt_wire_kind kind,
                              uint64_t bytes, struct shunt_error *err)
{
    struct put put = {.p = p, .peer = peer, .kind = kind, .bytes = bytes};

    return put_now_or_wait(&put, err);
}

int shunt_progress_put_results(struct shunt_progress *p, uint32_t peer, uint64_t off,
                               uint64_t bytes, struct shunt_error *err)
{
    struct put put = {.p = p, .peer = peer, .kind = SHUNT_WIRE_RESULTS, .off = off, .bytes = bytes};

    return put_now_or_wait(&put, err);
}
