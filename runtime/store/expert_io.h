/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads from drives into the arena, asynchronously. One of shunt's three operation tables.
 *
 *   open     takes the files, the arena blocks to register and the number of reads in flight
 *   submit   queues a read; never blocks
 *   flush    hands what was queued to the kernel or the threads; never blocks
 *   poll     hands out completions
 *   fd       readable while completions wait, for a thread that sleeps
 *   close    waits for reads in flight and gives everything back. A drive that does not answer is
 *            given SHUNT_IO_CLOSE_NS; then false says that files and buffers are still in use, and
 *            must stay where they are for good
 *
 * Contract
 * - At most `depth` reads are in flight; one more is -EAGAIN and changes nothing.
 * - Offsets, lengths and buffers keep the file's alignment (struct shunt_file).
 * - A completion may be short: at the end of the file, or because the drive says so. The caller
 *   asks again for the rest.
 * - Reads complete in any order. One thread calls everything. No allocation after open.
 */
#ifndef SHUNT_STORE_EXPERT_IO_H
#define SHUNT_STORE_EXPERT_IO_H

#include "runtime/base/arena.h"
#include "runtime/base/clock.h"
#include "runtime/base/notify.h"
#include "runtime/store/file.h"

#define SHUNT_IO_NO_BLOCK UINT32_MAX
#define SHUNT_IO_CLOSE_NS (5 * SHUNT_NS_PER_S)

struct shunt_expert_io;

struct shunt_io_config {
    const struct shunt_file *files;
    uint32_t file_count;
    uint32_t depth; /* a power of 2 */
    /* Blocks to register for reads, where the backend can; a read names its block by index here. */
    const struct shunt_arena_block *blocks;
    uint32_t block_count;
    struct shunt_notify notify;
};

struct shunt_io_read {
    uint64_t off;
    void *buf;
    uint32_t bytes;
    uint32_t file;
    uint32_t block; /* the registered block that holds buf, or SHUNT_IO_NO_BLOCK */
    uint32_t tag;   /* in [0, depth), not that of another read in flight; comes back when done */
};

struct shunt_io_done {
    uint32_t tag;
    int32_t result; /* bytes read (0: the file ends there), or a negative errno value */
};

struct shunt_expert_io_ops {
    const char *name;
    int (*open)(struct shunt_expert_io **io, const struct shunt_io_config *cfg,
                struct shunt_error *err);
    int (*submit)(struct shunt_expert_io *io, const struct shunt_io_read *read);
    /* Return: 0 or a negative errno value when the kernel refuses to take reads at all. */
    int (*flush)(struct shunt_expert_io *io);
    /* Return: completions written, at most `max`. */
    uint32_t (*poll)(struct shunt_expert_io *io, struct shunt_io_done *done, uint32_t max);
    int (*fd)(const struct shunt_expert_io *io);
    bool (*close)(struct shunt_expert_io *io);
};

extern const struct shunt_expert_io_ops shunt_io_pread;

/* io_uring; open returns -ENOSYS, -EPERM or the like where kernel or build lack it. */
extern const struct shunt_expert_io_ops shunt_io_uring;

#endif
