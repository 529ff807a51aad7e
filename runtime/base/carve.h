/* SPDX-License-Identifier: Apache-2.0
 *
 * Carving: a component lays out its memory in one function that runs twice. With base NULL it only
 * measures, and the pointers it sets are NULL; with memory it places. So the size asked for and the
 * size used cannot drift apart.
 */
#ifndef SHUNT_BASE_CARVE_H
#define SHUNT_BASE_CARVE_H

#include <stddef.h>
#include <stdint.h>

#define SHUNT_CACHE_LINE 64u

static inline uint64_t shunt_align_up(uint64_t value, uint64_t align)
{
    return (value + align - 1) / align * align;
}

struct shunt_carve {
    unsigned char *base; /* NULL: measure only; else aligned to the largest alignment asked for */
    size_t used;
};

static inline void *shunt_carve_aligned(struct shunt_carve *c, size_t count, size_t size,
                                        size_t align)
{
    size_t off = shunt_align_up(c->used, align);

    c->used = off + count * size;
    return c->base ? c->base + off : NULL;
}

/* `count` objects of `size` bytes on a cache line of their own. */
static inline void *shunt_carve(struct shunt_carve *c, size_t count, size_t size)
{
    return shunt_carve_aligned(c, count, size, SHUNT_CACHE_LINE);
}

#endif
