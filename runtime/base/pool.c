/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/carve.h"
#include "runtime/base/futex.h"
#include "runtime/base/thread.h"

/* About 10 us: longer than the gap between two runs of a layer, shorter than anybody else would
 * miss the core. */
#define SPIN_MAX 300u

/* One word says which run it is, how many tasks it has and which is next, so that a claim by
 * fetch_add is whole: a helper that wakes late claims either nothing or a task of the present run,
 * never half of each. Bits 63..48: run, 47..24: count, 23..0: next. */
#define CURSOR_NEXT_BITS  24
#define CURSOR_FIELD_MASK ((1ull << CURSOR_NEXT_BITS) - 1)

_Static_assert(SHUNT_POOL_TASKS_MAX + SHUNT_POOL_THREADS_MAX < CURSOR_FIELD_MASK,
               "next must not reach count");

struct shunt_pool {
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint64_t cursor;
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint32_t done; /* tasks finished in this run */
    _Atomic uint32_t caller_sleeps;
    /* Helpers sleep on it; its low 16 bits are the cursor's run. */
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint32_t run;
    _Atomic uint32_t sleepers;
    _Atomic uint32_t stop;
    _Atomic uint32_t abort;
    /* Written by the caller before it publishes `cursor`, read by whoever has claimed a task of
     * that run. */
    _Alignas(SHUNT_CACHE_LINE) shunt_task_fn *fn;
    void *ctx;
    void (*hook)(void *ctx);
    void *hook_ctx;
    uint32_t thread_count;
    struct helper {
        struct shunt_pool *pool;
        pthread_t thread;
        uint32_t worker;
    } * helpers;
    uint32_t helper_count;
};

/* Claims and runs tasks until the present run has none left. */
static void work(struct shunt_pool *pool, uint32_t worker)
{
    for (;;) {
        /* Acquire pairs with the release store in shunt_pool_run: a valid claim sees that run's fn
         * and ctx. */
        uint64_t c = atomic_fetch_add_explicit(&pool->cursor, 1, memory_order_acquire);
        uint32_t next = (uint32_t)(c & CURSOR_FIELD_MASK);
        uint32_t count = (uint32_t)(c >> CURSOR_NEXT_BITS & CURSOR_FIELD_MASK);

        if (next >= count)
            return;
        if (!atomic_load_explicit(&pool->abort, memory_order_acquire))
            pool->fn(pool->ctx, next, worker);
        /* Release pairs with the caller's acquire: it sees what the task wrote. seq_cst against
         * caller_sleeps. */
        if (atomic_fetch_add(&pool->done, 1) + 1 == count && atomic_load(&pool->caller_sleeps))
            shunt_futex_wake_all(&pool->done);
        if (worker == 0 && pool->hook)
            pool->hook(pool->hook_ctx);
    }
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct shunt_pool *pool = h->pool;
    uint32_t seen = 0;

    for (;;) {
        uint32_t run = atomic_load_explicit(&pool->run, memory_order_acquire);

        for (uint32_t spin = 0; run == seen && spin < SPIN_MAX; spin++) {
            shunt_spin_pause();
            run = atomic_load_explicit(&pool->run, memory_order_acquire);
        }
        if (run == seen) {
            atomic_fetch_add(&pool->sleepers, 1);
            while ((run = atomic_load(&pool->run)) == seen && !atomic_load(&pool->stop))
                shunt_futex_wait(&pool->run, seen, NULL);
            atomic_fetch_sub(&pool->sleepers, 1);
        }
        if (atomic_load(&pool->stop))
            return NULL;
        seen = run;
        work(pool, h->worker);
    }
}

void shunt_pool_run(struct shunt_pool *pool, shunt_task_fn *fn, void *ctx, uint32_t count)
{
    uint64_t run;

    if (count == 0)
        return;
    if (count == 1 || pool->helper_count == 0) {
        for (uint32_t i = 0; i < count; i++) {
            if (!atomic_load_explicit(&pool->abort, memory_order_acquire))
                fn(ctx, i, 0);
            if (pool->hook)
                pool->hook(pool->hook_ctx);
        }
        return;
    }
    pool->fn = fn;
    pool->ctx = ctx;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    run = (uint64_t)(atomic_load_explicit(&pool->run, memory_order_relaxed) + 1);
    atomic_store_explicit(&pool->cursor, (run & 0xffff) << 48 | (uint64_t)count << CURSOR_NEXT_BITS,
                          memory_order_release);
    atomic_store(&pool->run, (uint32_t)run);
    if (atomic_load(&pool->sleepers))
        shunt_futex_wake_all(&pool->run);
    work(pool, 0);
    for (uint32_t spin = 0; atomic_load_explicit(&pool->done, memory_order_acquire) != count;
         spin++) {
        uint32_t done;

        if (spin < SPIN_MAX) {
            shunt_spin_pause();
            continue;
        }
        atomic_store(&pool->caller_sleeps, 1);
        done = atomic_load(&pool->done);
        if (done != count)
            shunt_futex_wait(&pool->done, done, NULL);
        atomic_store(&pool->caller_sleeps, 0);
    }
}

void shunt_pool_set_hook(struct shunt_pool *pool, void (*hook)(void *ctx), void *ctx)
{
    pool->hook = hook;
    pool->hook_ctx = ctx;
}

void shunt_pool_abort(struct shunt_pool *pool)
{
    /* Release pairs with the acquire of whoever skips a task: it sees what the caller wrote before,
     * which is why. */
    atomic_store_explicit(&pool->abort, 1, memory_order_release);
}

uint32_t shunt_pool_thread_count(const struct shunt_pool *pool)
{
    return pool->thread_count;
}

int shunt_pool_open(struct shunt_pool **out, uint32_t thread_count, struct shunt_error *err)
{
    struct shunt_pool *pool;
    int rc = 0;

    if (thread_count < 1 || thread_count > SHUNT_POOL_THREADS_MAX)
        return shunt_error_set(err, -EINVAL, "threads: %u is not in [1, %u]", thread_count,
                               SHUNT_POOL_THREADS_MAX);
    pool = aligned_alloc(SHUNT_CACHE_LINE, shunt_align_up(sizeof(*pool), SHUNT_CACHE_LINE));
    if (!pool)
        return shunt_error_set(err, -ENOMEM, "out of memory for the compute pool");
    memset(pool, 0, sizeof(*pool));
    pool->thread_count = thread_count;
    pool->helpers = calloc(thread_count, sizeof(*pool->helpers));
    if (!pool->helpers) {
        shunt_pool_close(pool);
        return shunt_error_set(err, -ENOMEM, "out of memory for the compute pool");
    }
    for (uint32_t i = 1; i < thread_count && !rc; i++) {
        struct helper *h = &pool->helpers[pool->helper_count];

        *h = (struct helper){.pool = pool, .worker = i};
        rc = shunt_thread_create(&h->thread, helper_main, h);
        pool->helper_count += !rc;
    }
    if (rc) {
        shunt_error_set(err, rc,
                        "cannot start compute thread %u of %u: %s; lower --threads or raise the "
                        "limit (ulimit -u)",
                        pool->helper_count + 2, thread_count, strerror(-rc));
        shunt_pool_close(pool);
        return rc;
    }
    *out = pool;
    return 0;
}

void shunt_pool_close(struct shunt_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stop, 1);
    atomic_fetch_add(&pool->run, 1);
    shunt_futex_wake_all(&pool->run);
    for (uint32_t i = 0; i < pool->helper_count; i++)
        pthread_join(pool->helpers[i].thread, NULL);
    free(pool->helpers);
    free(pool);
}
