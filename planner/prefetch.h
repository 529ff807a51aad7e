/* SPDX-License-Identifier: Apache-2.0
 *
 * How much speculation may cost. Pure: counts in, bytes out. Speculation never has more than 2 ms
 * of measured drive time in flight (or one chunk, whichever is more), and turns itself down, to
 * off, while what it wastes outweighs what it saves; then it probes now and again.
 */
#ifndef SHUNT_PLANNER_PREFETCH_H
#define SHUNT_PLANNER_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

struct shunt_prefetch_governor {
    uint32_t level;                /* in [0, SHUNT_PREFETCH_LEVEL_MAX]; 0: off */
    uint32_t strikes;              /* losing windows in a row */
    uint32_t off_layers;           /* layer steps since it went off */
    uint64_t useful, late, wasted; /* in the present window */
};

#define SHUNT_PREFETCH_LEVEL_MAX 4u

void shunt_prefetch_init(struct shunt_prefetch_governor *g);

/* The outcome of speculative reads since the last call. */
void shunt_prefetch_learn(struct shunt_prefetch_governor *g, uint64_t useful, uint64_t late,
                          uint64_t wasted);

/* Once per layer step, before speculating. Return: reads that may be begun for the next layer, at
 * most `wanted`. */
uint32_t shunt_prefetch_allow(struct shunt_prefetch_governor *g, uint32_t wanted);

/* Speculative bytes that may be in flight at a drive of `bytes_per_s`, in chunks of `chunk_bytes`.
 */
uint64_t shunt_prefetch_inflight_max(uint64_t bytes_per_s, uint64_t chunk_bytes);

#endif
