/* SPDX-License-Identifier: Apache-2.0
 *
 * Looks at everything a view of a message offers, as the engine would. Return: false when an index
 * is out of range; where the view points outside the message the sanitizer says so.
 */
#ifndef SHUNT_TESTS_WIRE_WALK_H
#define SHUNT_TESTS_WIRE_WALK_H

#include "runtime/base/bytes.h"
#include "runtime/engine/wire.h"

static inline uint64_t wire_sum(const uint8_t *bytes, uint64_t len)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < len; i++)
        sum += bytes[i];
    return sum;
}

/* So that nothing of the walk is optimised away. */
static volatile uint64_t wire_sink;

static inline bool wire_walk_announce(const struct shunt_wire_announce_view *v,
                                      const struct shunt_wire_shape *shape)
{
    wire_sink = wire_sum(v->states, shape->expert_count) + v->announce.epoch;
    return true;
}

static inline bool wire_walk_counts(const struct shunt_wire_counts_view *v,
                                    const struct shunt_wire_shape *shape, uint32_t rows_max)
{
    uint64_t total = 0;

    for (uint32_t e = 0; e < shape->expert_count; e++)
        total += v->counts[e];
    wire_sink = wire_sum(v->states, shape->expert_count) +
                wire_sum(v->next_states, shape->expert_count) +
                wire_sum(v->guesses, shunt_wire_bits_bytes(shape->expert_count)) + v->read_ns;
    return total <= (uint64_t)rows_max * shape->used_count;
}

static inline bool wire_walk_dispatch(const struct shunt_wire_dispatch_view *v,
                                      const struct shunt_wire_shape *shape, uint32_t rows_max)
{
    const struct shunt_wire_header *h = &v->header;
    uint64_t entries = 0;

    if (h->row_count > rows_max || h->entry_count > (uint64_t)h->row_count * shape->used_count)
        return false;
    for (uint32_t g = 0; g < h->group_count; g++) {
        if (v->groups[g].expert >= shape->expert_count || v->groups[g].count == 0)
            return false;
        if (g > 0 && v->groups[g].expert <= v->groups[g - 1].expert)
            return false;
        entries += v->groups[g].count;
    }
    for (uint32_t i = 0; i < h->entry_count; i++)
        if (v->entries[i] >= h->row_count)
            return false;
    wire_sink =
        wire_sum(v->states, shape->expert_count) +
        wire_sum(v->guesses, shunt_wire_bits_bytes(shape->expert_count)) +
        wire_sum((const uint8_t *)v->rows, (uint64_t)h->row_count * shape->hidden * sizeof(float));
    return entries == h->entry_count;
}

#endif
