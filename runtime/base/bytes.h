/* SPDX-License-Identifier: Apache-2.0
 *
 * Fixed-width little-endian values at any address: files and wire are little-endian, and so is
 * every machine shunt runs on (checked here), so this is a copy that the compiler turns into one
 * load or store.
 */
#ifndef SHUNT_BASE_BYTES_H
#define SHUNT_BASE_BYTES_H

#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "shunt reads and writes little-endian data in place");

static inline uint16_t shunt_load_u16(const void *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t shunt_load_u32(const void *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t shunt_load_u64(const void *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline float shunt_load_f32(const void *p)
{
    float v;

    memcpy(&v, p, sizeof(v));
    return v;
}

#endif
