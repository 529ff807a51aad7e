/* SPDX-License-Identifier: Apache-2.0
 *
 * A number nobody outside can guess, for hash tables over names that come from files: with a known
 * hash, a file could choose names that all fall into one place.
 */
#ifndef SHUNT_BASE_SEED_H
#define SHUNT_BASE_SEED_H

#include <stdint.h>
#include <sys/random.h>

#include "runtime/base/clock.h"

static inline uint64_t shunt_hash_seed(void)
{
    uint64_t seed;

    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != sizeof(seed))
        seed = (uint64_t)shunt_now_ns() * 0x9e3779b97f4a7c15u; /* so early after boot */
    return seed;
}

#endif
