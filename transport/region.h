/* SPDX-License-Identifier: Apache-2.0
 *
 * What is done with regions more than once: mapping an inbox, and the checks that the backends
 * without a NIC share. A NIC's driver refuses memory that is not there when it is registered; those
 * that copy would find out by a fault, in the middle of a step.
 */
#ifndef SHUNT_TRANSPORT_REGION_H
#define SHUNT_TRANSPORT_REGION_H

#include "runtime/base/arena.h"
#include "transport/transport.h"

/* What a backend that copies can take: host memory that is mapped, shared memory whose descriptor
 * is what it says. `what` completes "tcp: cannot use <what>: ...". Return: 0, -EINVAL, -EFAULT, or
 * -ENOTSUP for a DMA-BUF. */
int shunt_region_check(const struct shunt_region *region, const char *transport, const char *what,
                       struct shunt_error *err);

/* The same for everything that a transport is opened on. */
int shunt_regions_check(const struct shunt_transport_config *cfg, const char *transport,
                        struct shunt_error *err);

/* Maps an inbox in a piece of the arena that is its own, so that peers can write nothing else.
 * `shared`: as memory that other processes can map. Return: 0 or -ENOMEM and the like. */
int shunt_region_map_inbox(struct shunt_region *inbox, struct shunt_arena *arena, uint64_t bytes,
                           bool shared, struct shunt_error *err);

/* True when [src, src + bytes) lies within one of the regions; of no bytes, always. */
static inline bool shunt_regions_hold(const struct shunt_region *regions, uint32_t count,
                                      const void *src, uint64_t bytes)
{
    for (uint32_t i = 0; i < count; i++) {
        /* Wraps to more than any region has where src lies before it. */
        uintptr_t off = (uintptr_t)src - (uintptr_t)regions[i].base;

        if (bytes <= regions[i].bytes && off <= regions[i].bytes - bytes)
            return true;
    }
    return bytes == 0;
}

#endif
