/* SPDX-License-Identifier: Apache-2.0
 *
 * The compute pool: runs `count` independent tasks on the calling thread (worker 0) and its
 * helpers, and returns when all are done. Tasks are claimed one by one from an atomic counter, so
 * uneven tasks balance themselves; which worker ran a task never shows in its result. Between two
 * of its tasks worker 0 calls a hook, by which the engine thread keeps drive and network busy while
 * it computes.
 *
 * One thread (the engine's) calls run. No allocation and no lock after open; helpers that find
 * nothing spin for a moment, then sleep on a futex.
 */
#ifndef SHUNT_BASE_POOL_H
#define SHUNT_BASE_POOL_H

#include "runtime/base/error.h"

#define SHUNT_POOL_THREADS_MAX 256u
#define SHUNT_POOL_TASKS_MAX   (1u << 22)

struct shunt_pool;

/* index in [0, count); worker in [0, thread_count), for scratch memory of one's own. */
typedef void shunt_task_fn(void *ctx, uint32_t index, uint32_t worker);

/* Starts thread_count - 1 helpers. */
int shunt_pool_open(struct shunt_pool **pool, uint32_t thread_count, struct shunt_error *err);

/* Ends the helpers and frees the pool; NULL is allowed. */
void shunt_pool_close(struct shunt_pool *pool);

/* Worker 0 calls hook(ctx) between tasks. NULL: none. */
void shunt_pool_set_hook(struct shunt_pool *pool, void (*hook)(void *ctx), void *ctx);

/* count in [0, SHUNT_POOL_TASKS_MAX]. */
void shunt_pool_run(struct shunt_pool *pool, shunt_task_fn *fn, void *ctx, uint32_t count);

/* Tasks that have not begun, now or later, are skipped: runs return at once and leave rubbish. For
 * an engine that must end in the middle of a step. Any thread; there is no way back. */
void shunt_pool_abort(struct shunt_pool *pool);

uint32_t shunt_pool_thread_count(const struct shunt_pool *pool);

#endif
