/* SPDX-License-Identifier: Apache-2.0
 *
 * How much speculation may cost. Pure: counts in, counts and bytes out. Speculation never has more
 * than 2 ms of measured drive time in flight (or one chunk, whichever is more), and turns itself
 * down, to off, while what it wastes outweighs what it saves; then it probes now and again.
 *
 * The governor judges by windows of resolved reads: those of which it is known whether the true
 * router wanted them. A read in time saved a whole wait, a late one about half of it, a wasted one
 * cost as much drive time as it could have saved: a window is lost when wasted > useful + late / 2,
 * else won.
 * - SHUNT_PREFETCH_STRIKES lost windows in a row lower the level by one,
 *   SHUNT_PREFETCH_WINS won ones in a row raise it by one: quick to give way, slow to come back.
 * - At level 0 nothing is read and nothing counted. After SHUNT_PREFETCH_PROBE_LAYERS layer steps
 *   it is at level 1 again, where one lost window is enough to end the probe.
 * So a workload that cannot be predicted costs at most LEVEL_MAX * STRIKES windows before it is
 * off, and one window in PROBE_LAYERS layer steps from then on.
 */
#ifndef SHUNT_PLANNER_PREFETCH_H
#define SHUNT_PLANNER_PREFETCH_H

#include <stdint.h>

#define SHUNT_PREFETCH_LEVEL_MAX    4u
#define SHUNT_PREFETCH_WINDOW       64u /* reads */
#define SHUNT_PREFETCH_STRIKES      3u
#define SHUNT_PREFETCH_WINS         8u
#define SHUNT_PREFETCH_PROBE_LAYERS 1024u /* some 20 to 40 tokens of decoding */

struct shunt_prefetch_governor {
    uint32_t level;                /* in [0, SHUNT_PREFETCH_LEVEL_MAX]; 0: off */
    uint32_t strikes;              /* windows lost in a row, below SHUNT_PREFETCH_STRIKES */
    uint32_t wins;                 /* windows won in a row, below SHUNT_PREFETCH_WINS */
    uint32_t off_layers;           /* layer steps since it went off */
    uint64_t useful, late, wasted; /* in the present window */
};

/* Begins at the highest level. */
void shunt_prefetch_init(struct shunt_prefetch_governor *g);

/* The outcome of speculative reads since the last call: needed and there in time, needed and still
 * on the way, not needed. The window ends with the call that fills it. Each below 2^32. */
void shunt_prefetch_learn(struct shunt_prefetch_governor *g, uint64_t useful, uint64_t late,
                          uint64_t wasted);

/* Once per layer step, before speculating. Return: reads that may be begun for the next layer, the
 * level's share of `wanted`, rounded up: all at the highest level, none at 0. */
uint32_t shunt_prefetch_allow(struct shunt_prefetch_governor *g, uint32_t wanted);

/* Speculative bytes that may be in flight at a drive of `bytes_per_s`, in whole chunks of
 * `chunk_bytes` (at least 1): as many as it reads in 2 ms, and never less than one chunk. */
uint64_t shunt_prefetch_inflight_max(uint64_t bytes_per_s, uint64_t chunk_bytes);

#endif
