/* SPDX-License-Identifier: Apache-2.0
 *
 * The arena: every large piece of memory of an engine, mapped once when it opens. It is a table of
 * blocks of at most 1 GiB, because io_uring, verbs and CUDA register memory by block and several of
 * them stop there. No piece lies across two blocks. Pieces are never given back; the arena goes as
 * a whole. Zeroed by the kernel. One thread; after the last shunt_arena_alloc any thread may read
 * the table.
 */
#ifndef SHUNT_BASE_ARENA_H
#define SHUNT_BASE_ARENA_H

#include "runtime/base/error.h"

#define SHUNT_ARENA_BLOCK_BYTES (1ull << 30)
#define SHUNT_ARENA_PAGE        4096u
#define SHUNT_ARENA_BLOCKS_MAX  4096u

struct shunt_arena_block {
    unsigned char *base;
    size_t bytes; /* mapped, multiple of SHUNT_ARENA_PAGE */
    int fd;       /* of a block that other processes can map; else -1 */
};

struct shunt_arena {
    struct shunt_arena_block *blocks;
    uint32_t block_count;
    uint64_t bytes; /* mapped */
};

/* Maps `bytes` on a page of its own; *out is aligned to SHUNT_ARENA_PAGE. One weight larger than a
 * block gets a larger block, which nobody registers. Return: 0 or -ENOMEM. */
int shunt_arena_alloc(struct shunt_arena *arena, size_t bytes, const char *what, void **out,
                      struct shunt_error *err);

/* The same in a block of its own that other processes can map and write (base/shared.h): *fd, which
 * stays the arena's, is the memfd whose bytes from 0 on the block is. Return: 0, -ENOMEM, -ENOSYS.
 */
int shunt_arena_alloc_shared(struct shunt_arena *arena, size_t bytes, const char *what, void **out,
                             int *fd, struct shunt_error *err);

/* Maps `count` pieces of `stride` bytes (at least 1), as many to a block as fit; out[i] is piece i.
 * The first of a block is aligned to SHUNT_ARENA_PAGE, so each is aligned to what divides `stride`.
 * Return: 0; -EINVAL for a stride larger than a block; -ENOMEM, after which out[] is of no use and
 * what was mapped goes with the arena. */
int shunt_arena_alloc_many(struct shunt_arena *arena, size_t stride, uint32_t count,
                           const char *what, unsigned char **out, struct shunt_error *err);

/* Unmaps everything. Accepts a zeroed arena. */
void shunt_arena_fini(struct shunt_arena *arena);

#endif
