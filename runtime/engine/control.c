/* SPDX-License-Identifier: Apache-2.0
 *
 * What reaches the engine from its other threads: notices, the end of the rack, wake-ups.
 */
#include <stdio.h>
#include <unistd.h>

#include "runtime/engine/engine_impl.h"

static void add_one(int fd)
{
    const uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: whoever sleeps on it is awake */
}

void shunt_engine_signal(struct shunt *e)
{
    add_one(e->event_fd);
}

void shunt_engine_wake(struct shunt *e)
{
    add_one(e->wake_fd);
}

void shunt_engine_abort(struct shunt *e)
{
    atomic_store(&e->abort, 1);
    if (e->pool)
        shunt_pool_abort(e->pool);
    add_one(e->abort_fd);
}

void shunt_engine_notice(void *engine, const char *text)
{
    struct shunt *e = engine;

    pthread_mutex_lock(&e->mutex);
    if (e->notice_count < SHUNT_NOTICES_MAX) {
        uint32_t at = (e->notice_head + e->notice_count++) % SHUNT_NOTICES_MAX;

        snprintf(e->notices[at], sizeof(e->notices[at]), "%s", text);
    }
    pthread_mutex_unlock(&e->mutex);
    shunt_engine_signal(e);
}

void shunt_engine_down(void *engine, uint32_t rank, const struct shunt_error *why)
{
    struct shunt *e = engine;
    bool first;

    pthread_mutex_lock(&e->mutex);
    first = !e->down;
    if (first) {
        e->down = true;
        e->down_rank = rank;
        e->down_error = *why;
    }
    pthread_mutex_unlock(&e->mutex);
    if (!first)
        return;
    /* A step under way cannot be finished without the rack. In order, no step is under way. */
    if (why->code)
        shunt_engine_abort(e);
    shunt_engine_signal(e);
}
