/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/arena.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/carve.h"
#include "runtime/base/shared.h"

#define HUGE_PAGE (2ull << 20)

/* Room in the table for one more block. */
static int grow_table(struct shunt_arena *arena, const char *what, struct shunt_error *err)
{
    struct shunt_arena_block *grown;

    if (arena->block_count == SHUNT_ARENA_BLOCKS_MAX)
        return shunt_error_set(err, -ENOMEM, "memory for %s: more than %u blocks of 1 GiB", what,
                               SHUNT_ARENA_BLOCKS_MAX);
    grown = realloc(arena->blocks, (arena->block_count + 1) * sizeof(*grown));
    if (!grown)
        return shunt_error_set(err, -ENOMEM, "out of memory for the block table");
    arena->blocks = grown;
    return 0;
}

static void add_block(struct shunt_arena *arena, void *base, size_t bytes, int fd)
{
    arena->blocks[arena->block_count++] =
        (struct shunt_arena_block){.base = base, .bytes = bytes, .fd = fd};
    arena->bytes += bytes;
}

static int map_block(struct shunt_arena *arena, size_t bytes, const char *what,
                     struct shunt_error *err)
{
    void *base;
    int rc = grow_table(arena, what, err);

    if (rc)
        return rc;
    base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
    /* EAGAIN: of a process that locks all its memory, and is at its limit */
    if (base == MAP_FAILED)
        return shunt_error_set(err, -ENOMEM, "cannot map %zu bytes for %s: %s", bytes, what,
                               strerror(errno));
    /* Fewer TLB misses and faster pinning. Only where a block holds whole huge pages, so that a
     * small node does not become resident in more than it asked for. */
    if (bytes % HUGE_PAGE == 0)
        madvise(base, bytes, MADV_HUGEPAGE);
    add_block(arena, base, bytes, -1);
    return 0;
}

int shunt_arena_alloc(struct shunt_arena *arena, size_t bytes, const char *what, void **out,
                      struct shunt_error *err)
{
    int rc;

    if (bytes > SIZE_MAX - SHUNT_ARENA_PAGE)
        return shunt_error_set(err, -ENOMEM, "cannot map %zu bytes for %s", bytes, what);
    rc = map_block(arena, shunt_align_up(bytes ? bytes : 1, SHUNT_ARENA_PAGE), what, err);
    if (rc)
        return rc;
    *out = arena->blocks[arena->block_count - 1].base;
    return 0;
}

int shunt_arena_alloc_shared(struct shunt_arena *arena, size_t bytes, const char *what, void **out,
                             int *fd, struct shunt_error *err)
{
    struct shunt_shared shared;
    int rc;

    if (bytes > SSIZE_MAX - SHUNT_ARENA_PAGE)
        return shunt_error_set(err, -ENOMEM, "cannot map %zu bytes for %s", bytes, what);
    rc = grow_table(arena, what, err);
    if (!rc)
        rc = shunt_shared_create(&shared, shunt_align_up(bytes ? bytes : 1, SHUNT_ARENA_PAGE),
                                 SHUNT_SHARED_WRITABLE, what, err);
    if (rc)
        return rc;
    add_block(arena, shared.base, shared.bytes, shared.fd);
    *out = shared.base;
    *fd = shared.fd;
    return 0;
}

int shunt_arena_alloc_many(struct shunt_arena *arena, size_t stride, uint32_t count,
                           const char *what, unsigned char **out, struct shunt_error *err)
{
    uint32_t per_block;
    uint32_t done = 0;
    int rc;

    if (stride > SHUNT_ARENA_BLOCK_BYTES)
        return shunt_error_set(err, -EINVAL,
                               "%s takes %zu bytes in one piece; a block of the arena has %llu",
                               what, stride, SHUNT_ARENA_BLOCK_BYTES);
    per_block = (uint32_t)(SHUNT_ARENA_BLOCK_BYTES / stride);
    while (done < count) {
        uint32_t now = count - done < per_block ? count - done : per_block;
        struct shunt_arena_block *block;

        rc = map_block(arena, shunt_align_up((uint64_t)now * stride, SHUNT_ARENA_PAGE), what, err);
        if (rc)
            return rc;
        block = &arena->blocks[arena->block_count - 1];
        for (uint32_t i = 0; i < now; i++)
            out[done + i] = block->base + (size_t)i * stride;
        done += now;
    }
    return 0;
}

void shunt_arena_fini(struct shunt_arena *arena)
{
    for (uint32_t i = 0; i < arena->block_count; i++) {
        munmap(arena->blocks[i].base, arena->blocks[i].bytes);
        if (arena->blocks[i].fd >= 0)
            close(arena->blocks[i].fd);
    }
    free(arena->blocks);
    memset(arena, 0, sizeof(*arena));
}
