/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/store/fake_io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct fake_io_source fake_io_source;
struct shunt_expert_io *fake_io_open;

static int open_fake(struct shunt_expert_io **io, const struct shunt_io_config *cfg,
                     struct shunt_error *err)
{
    (void)err;
    *io = calloc(1, sizeof(**io));
    if (!*io)
        abort();
    (*io)->cfg = *cfg;
    fake_io_open = *io;
    return 0;
}

/* Aligned for the drive, and in the block it names. */
static bool keeps_contract(const struct shunt_expert_io *io, const struct shunt_io_read *read)
{
    const struct shunt_file *file = &io->cfg.files[read->file];
    const struct shunt_arena_block *block;
    const unsigned char *buf = read->buf;

    if (read->off % file->off_align || read->bytes % file->off_align ||
        (uintptr_t)buf % file->mem_align)
        return false;
    if (read->block == SHUNT_IO_NO_BLOCK)
        return true;
    if (read->block >= io->cfg.block_count)
        return false;
    block = &io->cfg.blocks[read->block];
    return buf >= block->base && buf + read->bytes <= block->base + block->bytes;
}

static int submit(struct shunt_expert_io *io, const struct shunt_io_read *read)
{
    io->broken |= !keeps_contract(io, read);
    if (io->count + io->done_count == io->cfg.depth) {
        io->broken = true;
        return -EAGAIN;
    }
    for (uint32_t i = 0; i < io->count; i++)
        io->broken |= io->reads[i].tag == read->tag;
    for (uint32_t i = 0; i < io->done_count; i++)
        io->broken |= io->done[i].tag == read->tag;
    if (fake_io_source.on_submit)
        fake_io_source.on_submit(fake_io_source.ctx, read);
    io->reads[io->count++] = *read;
    io->submits++;
    io->bytes += read->bytes;
    return 0;
}

static int flush(struct shunt_expert_io *io)
{
    io->flushed = io->count;
    return fake_io_source.flush_result;
}

void fake_io_answer(struct shunt_expert_io *io, uint32_t index, int32_t result)
{
    struct shunt_io_read read = io->reads[index];

    if (index >= io->flushed)
        abort();
    if (result >= 0) {
        uint64_t left = read.off < fake_io_source.len ? fake_io_source.len - read.off : 0;

        if ((uint32_t)result > read.bytes)
            result = (int32_t)read.bytes;
        if ((uint64_t)result > left)
            result = (int32_t)left;
        memcpy(read.buf, fake_io_source.bytes + read.off, (size_t)result);
    }
    memmove(&io->reads[index], &io->reads[index + 1], (io->count - index - 1) * sizeof(read));
    io->count--;
    io->flushed--;
    io->done[io->done_count++] = (struct shunt_io_done){.tag = read.tag, .result = result};
}

void fake_io_answer_all(struct shunt_expert_io *io, int32_t result)
{
    while (io->flushed > 0)
        fake_io_answer(io, 0, result);
}

static uint32_t poll_fake(struct shunt_expert_io *io, struct shunt_io_done *done, uint32_t max)
{
    uint32_t n;

    if (fake_io_source.on_poll)
        fake_io_source.on_poll(fake_io_source.ctx, io);
    n = io->done_count < max ? io->done_count : max;
    memcpy(done, io->done, n * sizeof(*done));
    io->done_count -= n;
    memmove(io->done, io->done + n, io->done_count * sizeof(*done));
    return n;
}

static int no_fd(const struct shunt_expert_io *io)
{
    (void)io;
    return -1;
}

static bool close_fake(struct shunt_expert_io *io)
{
    free(io);
    fake_io_open = NULL;
    return true;
}

const struct shunt_expert_io_ops fake_io = {
    .name = "fake",
    .open = open_fake,
    .submit = submit,
    .flush = flush,
    .poll = poll_fake,
    .fd = no_fd,
    .close = close_fake,
};
