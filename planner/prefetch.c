/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/prefetch.h"

#define INFLIGHT_PER_S 500u /* 2 ms */

void shunt_prefetch_init(struct shunt_prefetch_governor *g)
{
    *g = (struct shunt_prefetch_governor){.level = SHUNT_PREFETCH_LEVEL_MAX};
}

static void lose_window(struct shunt_prefetch_governor *g)
{
    g->wins = 0;
    if (++g->strikes < SHUNT_PREFETCH_STRIKES)
        return;
    g->strikes = 0;
    g->level--;
    g->off_layers = 0;
}

static void win_window(struct shunt_prefetch_governor *g)
{
    g->strikes = 0;
    if (g->level == SHUNT_PREFETCH_LEVEL_MAX || ++g->wins < SHUNT_PREFETCH_WINS)
        return;
    g->wins = 0;
    g->level++;
}

void shunt_prefetch_learn(struct shunt_prefetch_governor *g, uint64_t useful, uint64_t late,
                          uint64_t wasted)
{
    if (g->level == 0)
        return; /* stragglers from before; a probe must be judged by its own reads */
    g->useful += useful;
    g->late += late;
    g->wasted += wasted;
    if (g->useful + g->late + g->wasted < SHUNT_PREFETCH_WINDOW)
        return;
    if (2 * g->wasted > 2 * g->useful + g->late)
        lose_window(g);
    else
        win_window(g);
    g->useful = g->late = g->wasted = 0;
}

uint32_t shunt_prefetch_allow(struct shunt_prefetch_governor *g, uint32_t wanted)
{
    uint64_t share;

    if (g->level == 0 && ++g->off_layers >= SHUNT_PREFETCH_PROBE_LAYERS) {
        g->level = 1;
        g->strikes = SHUNT_PREFETCH_STRIKES - 1;
    }
    share = (uint64_t)wanted * g->level;
    return (uint32_t)((share + SHUNT_PREFETCH_LEVEL_MAX - 1) / SHUNT_PREFETCH_LEVEL_MAX);
}

uint64_t shunt_prefetch_inflight_max(uint64_t bytes_per_s, uint64_t chunk_bytes)
{
    uint64_t chunks = bytes_per_s / INFLIGHT_PER_S / chunk_bytes;

    return (chunks > 1 ? chunks : 1) * chunk_bytes;
}
