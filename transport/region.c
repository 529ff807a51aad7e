/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/region.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/shared.h"

/* Asks the kernel to do nothing with these pages, which it refuses where there are none. */
static bool is_mapped(const struct shunt_region *r)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)r->base & ~(page - 1);

    if (r->bytes > UINTPTR_MAX - (uintptr_t)r->base)
        return false;
    return msync((void *)begin, (uintptr_t)r->base + r->bytes - begin, MS_ASYNC) == 0;
}

int shunt_region_check(const struct shunt_region *region, const char *transport, const char *what,
                       struct shunt_error *err)
{
    const char *flaw = NULL;

    if (region->kind == SHUNT_REGION_DMABUF)
        return shunt_error_set(err, -ENOTSUP,
                               "%s: cannot use %s: it is a DMA-BUF, and %s copies with the "
                               "processor; use host memory, or --transport verbs",
                               transport, what, transport);
    if (region->bytes == 0)
        return 0;
    if (region->kind == SHUNT_REGION_SHARED && region->fd_offset > UINT64_MAX - region->bytes)
        flaw = "it is too short";
    else if (region->kind == SHUNT_REGION_SHARED)
        flaw = shunt_shared_flaw(region->fd, region->fd_offset + region->bytes);
    if (flaw)
        return shunt_error_set(err, -EINVAL, "%s: cannot use %s of descriptor %d: %s", transport,
                               what, region->fd, flaw);
    if (is_mapped(region))
        return 0;
    return shunt_error_set(err, -EFAULT,
                           "%s: cannot use %s: not all of the %" PRIu64 " bytes at %p are mapped",
                           transport, what, region->bytes, region->base);
}

int shunt_regions_check(const struct shunt_transport_config *cfg, const char *transport,
                        struct shunt_error *err)
{
    int rc = shunt_region_check(&cfg->inbox, transport, "the inbox", err);

    for (uint32_t i = 0; i < cfg->memory_count && !rc; i++)
        rc = shunt_region_check(&cfg->memory[i], transport, "the memory to send from", err);
    return rc;
}

int shunt_region_map_inbox(struct shunt_region *inbox, struct shunt_arena *arena, uint64_t bytes,
                           bool shared, struct shunt_error *err)
{
    *inbox = (struct shunt_region){.bytes = bytes, .fd = -1};
    if (!shared)
        return shunt_arena_alloc(arena, bytes, "the inbox", &inbox->base, err);
    inbox->kind = SHUNT_REGION_SHARED;
    return shunt_arena_alloc_shared(arena, bytes, "the inbox", &inbox->base, &inbox->fd, err);
}
