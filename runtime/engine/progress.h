/* SPDX-License-Identifier: Apache-2.0
 *
 * Progress and waiting. The engine thread is the only one that moves rows and expert reads: it
 * polls both between two tiles of compute, and while it waits. A wait polls for a moment, then
 * sleeps until a socket, the drive or an abort wakes it; it has a deadline and names what it waited
 * for.
 */
#ifndef SHUNT_ENGINE_PROGRESS_H
#define SHUNT_ENGINE_PROGRESS_H

#include <stdatomic.h>

#include "runtime/engine/exchange.h"
#include "runtime/store/store.h"

struct shunt_progress {
    struct shunt_exchange *exchange;
    struct shunt_store *store;
    int abort_fd; /* readable once the engine must stop */
    _Atomic int *abort;
    int64_t step_timeout_ns;
    int64_t busy_poll_ns;               /* a wait polls so long before it sleeps */
    int64_t wait_read_ns, wait_peer_ns; /* slept or polled, in total */
    uint32_t lost_peer;                 /* whose loss ended a wait; SHUNT_NODES_MAX: nobody's */
    int64_t hook_ns;                    /* when a poll between tiles was last made */
    struct shunt_error hook_error;      /* of a poll between tiles; code 0: none */
};

/* What a wait waits for. */
#define SHUNT_WAIT_DONE  UINT32_MAX
#define SHUNT_WAIT_DRIVE (UINT32_MAX - 1)

/* Return: SHUNT_WAIT_DONE when the wait is over, else the rank or SHUNT_WAIT_DRIVE it still needs.
 */
typedef uint32_t shunt_wait_fn(void *ctx);

/* Return: 0; -ECANCELED once the engine was told to stop. */
int shunt_progress_check(const struct shunt_progress *p, struct shunt_error *err);

/* Moves what can be moved. Return: 0, or why the engine must stop. */
int shunt_progress_poll(struct shunt_progress *p, struct shunt_error *err);

/* The same as a hook of the compute pool; an error waits in hook_error for the next poll. */
void shunt_progress_hook(void *progress);

/* Waits until fn says done. `what` completes "no <what> from rank 2 within 120 s". */
int shunt_progress_wait(struct shunt_progress *p, shunt_wait_fn *fn, void *ctx, const char *what,
                        struct shunt_error *err);

/* Waits until every peer's message of this tick is here. */
int shunt_progress_wait_gather(struct shunt_progress *p, const char *what, struct shunt_error *err);

/* The exchange's buffers and puts, waiting until the transport can take them. */
int shunt_progress_gather_buffer(struct shunt_progress *p, uint32_t peer, void **buffer,
                                 struct shunt_error *err);
int shunt_progress_results_buffer(struct shunt_progress *p, uint32_t peer, void **buffer,
                                  struct shunt_error *err);
int shunt_progress_put_gather(struct shunt_progress *p, uint32_t peer, enum shunt_wire_kind kind,
                              uint64_t bytes, struct shunt_error *err);
int shunt_progress_put_results(struct shunt_progress *p, uint32_t peer, uint64_t off,
                               uint64_t bytes, struct shunt_error *err);

/* Sleeps until something moves, `extra_fd` (or -1) is readable or `timeout_ns` is over; no deadline
 * of its own. */
void shunt_progress_sleep(struct shunt_progress *p, int extra_fd, int64_t timeout_ns);

#endif
