/* SPDX-License-Identifier: Apache-2.0
 *
 * Seeded random numbers for property tests: splitmix64, any state will do, the state is the seed.
 */
#ifndef SHUNT_TESTS_RANDOM_H
#define SHUNT_TESTS_RANDOM_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* In [0, count). */
static inline uint32_t random_below(uint64_t *state, uint32_t count)
{
    return (uint32_t)((random_next(state) >> 32) * count >> 32);
}

static inline void random_fill(uint64_t *state, void *bytes, size_t len)
{
    unsigned char *at = bytes;

    for (size_t i = 0; i < len; i++)
        at[i] = (unsigned char)random_next(state);
}

#endif
