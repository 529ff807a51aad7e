/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening the store: the file, the slots, the backend; and the weights that are read once.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/carve.h"
#include "runtime/base/clock.h"
#include "runtime/store/store_impl.h"

static int open_file(struct shunt_store *store, const struct shunt_store_config *cfg,
                     struct shunt_error *err)
{
    const char *path = cfg->model->file.path;
    int rc = shunt_file_open(&store->file, path, cfg->io_mode, err);

    if (rc)
        return rc;
    store->counters.bytes_startup = store->file.probed_bytes;
    store->watch_fd = shunt_file_watch(&store->file);
    if (store->watch_fd < 0)
        shunt_notify_say(&cfg->notify,
                         "%s is not watched for writes (%s): keep it as it is while it is in use",
                         path, strerror(errno));
    if (!shunt_file_same(&store->file, &cfg->model->file))
        return shunt_error_set(err, -ESTALE, "%s was changed or replaced after it was opened",
                               path);
    /* The slots' sizes come of what the model's own open found (shunt_store_plan). */
    if (store->file.off_align > cfg->model->file.off_align ||
        store->file.mem_align > cfg->model->file.mem_align)
        return shunt_error_set(err, -ESTALE,
                               "%s: the drive wants reads aligned to %u bytes now, and to %u when "
                               "the model was opened; open it again",
                               path, store->file.off_align, cfg->model->file.off_align);
    if (!store->file.direct && cfg->io_mode == SHUNT_IO_AUTO)
        shunt_notify_say(&cfg->notify,
                         "%s: the file system refuses O_DIRECT; reads go through the page cache",
                         path);
    return 0;
}

static int alloc_tables(struct shunt_store *store, struct shunt_error *err)
{
    store->layouts = calloc(store->layer_count, sizeof(*store->layouts));
    store->slot_of = malloc(store->key_count * sizeof(*store->slot_of));
    store->placed = calloc(store->key_count, sizeof(*store->placed));
    store->slots = calloc(store->slot_count, sizeof(*store->slots));
    if (!store->layouts || !store->slot_of || !store->placed || !store->slots)
        return shunt_error_set(err, -ENOMEM, "out of memory for the tables of %u slots",
                               store->slot_count);
    for (uint32_t k = 0; k < store->key_count; k++)
        store->slot_of[k] = SHUNT_NO_SLOT;
    store->placed_next = store->key_count;
    return 0;
}

/* Where the three matrices of a layer's experts lie in a slot, whatever their head in the file. */
static void lay_out_layers(struct shunt_store *store, const struct shunt_slot_plan *plan)
{
    for (uint32_t l = 0; l < store->layer_count; l++) {
        struct shunt_slot_layout *layout = &store->layouts[l];
        uint64_t at = 0;

        for (uint32_t p = 0; p < SHUNT_PARTS; p++) {
            layout->part_at[p] = at;
            at += shunt_store_part_capacity(store->model, l, p);
        }
        layout->slot_class = shunt_store_class_of(plan, at);
    }
}

static int alloc_slots(struct shunt_store *store, struct shunt_arena *arena,
                       const struct shunt_slot_plan *plan, uint32_t first_block,
                       struct shunt_error *err)
{
    unsigned char **bases = malloc(store->slot_count * sizeof(*bases));
    uint32_t at = 0;
    int rc = 0;

    if (!bases)
        return shunt_error_set(err, -ENOMEM, "out of memory for %u slots", store->slot_count);
    store->slot_class_count = plan->class_count;
    for (uint32_t c = 0; c < plan->class_count && !rc; c++) {
        uint32_t count = plan->classes[c].slot_count;

        rc = shunt_arena_alloc_many(arena, plan->classes[c].bytes, count, "expert slots",
                                    bases + at, err);
        at += count;
        store->class_end[c] = at;
        store->class_free[c] = count;
    }
    for (uint32_t i = 0; i < store->slot_count && !rc; i++) {
        uint32_t block = first_block;

        while (bases[i] < arena->blocks[block].base ||
               bases[i] >= arena->blocks[block].base + arena->blocks[block].bytes)
            block++;
        store->slots[i] = (struct shunt_slot){
            .base = bases[i], .block = block - first_block, .key = SHUNT_NO_KEY};
    }
    free(bases);
    return rc;
}

/* io_uring, and a pread pool where that is refused. */
static int open_io(struct shunt_store *store, const struct shunt_store_config *cfg,
                   const struct shunt_arena_block *blocks, uint32_t block_count,
                   struct shunt_error *err)
{
    struct shunt_io_config io_cfg = {
        .files = &store->file,
        .file_count = 1,
        .depth = SHUNT_IO_DEPTH,
        .blocks = blocks,
        .block_count = block_count,
        .notify = cfg->notify,
    };
    struct shunt_error why;
    int rc;

    store->ops = cfg->io ? cfg->io : &shunt_io_uring;
    rc = store->ops->open(&store->io, &io_cfg, &why);
    if (rc == 0)
        return 0;
    if (cfg->io)
        return shunt_error_set(err, rc, "%s; use --io auto", why.text);
    shunt_notify_say(&cfg->notify, "%s; experts are read by a pool of threads instead", why.text);
    store->ops = &shunt_io_pread;
    return store->ops->open(&store->io, &io_cfg, err);
}

/* ---- weights that every node keeps */

uint64_t shunt_store_lay_out_dense(const struct shunt_file *file, unsigned char *base,
                                   struct shunt_dense_read *reads, uint32_t count)
{
    uint64_t align = file->mem_align > SHUNT_CACHE_LINE ? file->mem_align : SHUNT_CACHE_LINE;
    uint64_t at = 0;

    for (uint32_t i = 0; i < count; i++) {
        struct shunt_rounded r = shunt_store_round(file, reads[i].off, reads[i].bytes);

        if (reads[i].bytes == 0)
            continue;
        if (base)
            reads[i].data = base + at + r.head;
        at += shunt_align_up(r.bytes, align);
    }
    return at;
}

/* The next chunk to hand out, of weight `read` from `done` bytes into its rounded extent. */
struct dense_cursor {
    uint32_t read;
    uint64_t done;
};

struct dense_chunk {
    uint64_t off;
    unsigned char *buf;
    uint32_t bytes, need;
};

static bool next_dense_chunk(const struct shunt_file *file, struct dense_cursor *at,
                             const struct shunt_dense_read *reads, uint32_t count,
                             struct dense_chunk *chunk)
{
    const struct shunt_dense_read *read;
    struct shunt_rounded r;
    uint64_t bytes;

    while (at->read < count && reads[at->read].bytes == 0)
        at->read++;
    if (at->read == count)
        return false;
    read = &reads[at->read];
    r = shunt_store_round(file, read->off, read->bytes);
    bytes = r.bytes - at->done < SHUNT_CHUNK_BYTES ? r.bytes - at->done : SHUNT_CHUNK_BYTES;
    *chunk = (struct dense_chunk){
        .off = r.begin + at->done,
        .buf = (unsigned char *)(uintptr_t)read->data - r.head + at->done,
        .bytes = (uint32_t)bytes,
        .need = (uint32_t)(r.need - at->done < bytes ? r.need - at->done : bytes),
    };
    at->done += bytes;
    if (at->done == r.bytes)
        *at = (struct dense_cursor){.read = at->read + 1};
    return true;
}

static int submit_dense(struct shunt_store *store, const struct dense_chunk *chunk, uint32_t tag)
{
    return store->ops->submit(store->io, &(struct shunt_io_read){
                                             .off = chunk->off,
                                             .buf = chunk->buf,
                                             .bytes = chunk->bytes,
                                             .block = SHUNT_IO_NO_BLOCK,
                                             .tag = tag,
                                         });
}

/* A short answer in the middle of the file is asked again from where it stopped. */
static int take_dense(struct shunt_store *store, struct dense_chunk *chunk, uint32_t tag,
                      int32_t result, struct shunt_error *err)
{
    uint32_t got;

    if (result == -EINTR || result == -EAGAIN)
        return submit_dense(store, chunk, tag);
    if (result < 0)
        return shunt_error_set(err, result, "%s: reading %u bytes at offset %llu failed: %s",
                               store->file.path, chunk->bytes, (unsigned long long)chunk->off,
                               strerror(-result));
    if ((uint32_t)result >= chunk->need)
        return 1;
    got = (uint32_t)result / store->file.off_align * store->file.off_align;
    if (got == 0)
        return shunt_error_set(err, -EBADMSG, "%s: the file ends at offset %llu; it was cut",
                               store->file.path,
                               (unsigned long long)(chunk->off + (uint32_t)result));
    *chunk = (struct dense_chunk){.off = chunk->off + got,
                                  .buf = chunk->buf + got,
                                  .bytes = chunk->bytes - got,
                                  .need = chunk->need - got};
    return submit_dense(store, chunk, tag);
}

static int still_time(const struct shunt_store *store, const struct shunt_patience *patience,
                      struct shunt_error *err)
{
    int rc = shunt_patience_check(patience, err);

    if (rc == -ETIMEDOUT)
        return shunt_error_set(err, rc,
                               "%s: the weights were not read in the time given "
                               "(--ready-timeout); the drive is too slow or does not answer",
                               store->file.path);
    return rc;
}

/* In slices, so that an abort is seen. */
static void wait_for_reads(const struct shunt_store *store)
{
    struct pollfd fd = {.fd = shunt_store_fd(store), .events = POLLIN};
    struct timespec slice = shunt_timespec(SHUNT_PATIENCE_SLICE_NS);

    ppoll(&fd, 1, &slice, NULL);
}

int shunt_store_load_dense(struct shunt_store *store, struct shunt_dense_read *reads,
                           uint32_t count, const struct shunt_patience *patience,
                           struct shunt_error *err)
{
    struct dense_chunk chunks[SHUNT_IO_DEPTH];
    struct shunt_io_done done[SHUNT_IO_DEPTH];
    uint32_t free_tags[SHUNT_IO_DEPTH];
    uint32_t free_count = SHUNT_IO_DEPTH;
    struct dense_cursor at = {0};
    int64_t begin_ns = shunt_now_ns();
    bool more = true;

    for (uint32_t i = 0; i < SHUNT_IO_DEPTH; i++)
        free_tags[i] = i;
    while (more || free_count < SHUNT_IO_DEPTH) {
        uint32_t n;
        int rc;

        while (more && free_count > 0) {
            uint32_t tag = free_tags[free_count - 1];

            more = next_dense_chunk(&store->file, &at, reads, count, &chunks[tag]);
            if (!more)
                break;
            free_count--;
            store->counters.bytes_startup += chunks[tag].bytes;
            submit_dense(store, &chunks[tag], tag);
        }
        rc = store->ops->flush(store->io);
        if (rc)
            return shunt_error_set(err, rc, "%s: the kernel takes no reads: %s", store->file.path,
                                   strerror(-rc));
        n = store->ops->poll(store->io, done, SHUNT_IO_DEPTH);
        for (uint32_t i = 0; i < n; i++) {
            rc = take_dense(store, &chunks[done[i].tag], done[i].tag, done[i].result, err);
            if (rc < 0)
                return rc;
            if (rc == 1)
                free_tags[free_count++] = done[i].tag;
        }
        if (free_count == SHUNT_IO_DEPTH)
            continue;
        /* Whether something came or not: a drive that always asks for patience sends enough. */
        rc = still_time(store, patience, err);
        if (rc)
            return rc;
        if (n == 0)
            wait_for_reads(store);
    }
    shunt_reads_set_rate(store, store->counters.bytes_startup, shunt_now_ns() - begin_ns);
    return 0;
}

/* ---- open and close */

int shunt_store_open(struct shunt_store **out, struct shunt_arena *arena,
                     const struct shunt_store_config *cfg, struct shunt_error *err)
{
    struct shunt_store *store = calloc(1, sizeof(*store));
    uint32_t first_block = arena->block_count;
    struct shunt_slot_plan plan;
    int rc;

    if (!store)
        return shunt_error_set(err, -ENOMEM, "out of memory for the expert store");
    store->file.fd = store->watch_fd = -1;
    store->model = cfg->model;
    store->layer_count = cfg->model->arch.layer_count;
    store->expert_count = cfg->model->arch.expert_count;
    store->key_count = store->layer_count * store->expert_count;
    store->slot_count = cfg->slot_count;
    shunt_reads_init(store);
    rc = open_file(store, cfg, err);
    if (!rc)
        rc = alloc_tables(store, err);
    if (!rc) {
        shunt_store_plan(cfg->model, cfg->slot_count, &plan);
        lay_out_layers(store, &plan);
        rc = alloc_slots(store, arena, &plan, first_block, err);
    }
    if (!rc)
        rc =
            open_io(store, cfg, arena->blocks + first_block, arena->block_count - first_block, err);
    if (rc) {
        shunt_store_close(store);
        return rc;
    }
    *out = store;
    return 0;
}

int shunt_store_check_file(struct shunt_store *store, struct shunt_error *err)
{
    if (shunt_file_written(store->watch_fd))
        atomic_store(&store->written, 1);
    if (!atomic_load(&store->written))
        return 0;
    return shunt_error_set(err, -ESTALE,
                           "%s was written to while it was in use, so what was computed may be "
                           "wrong; put a new model beside the old one and rename it",
                           store->file.path);
}

void shunt_store_settle(struct shunt_store *store, const struct shunt_patience *patience)
{
    struct shunt_io_done done[SHUNT_IO_DEPTH];

    while (store->free_chunk_count < SHUNT_IO_DEPTH && !shunt_patience_check(patience, NULL)) {
        uint32_t n = store->ops->poll(store->io, done, SHUNT_IO_DEPTH);

        for (uint32_t i = 0; i < n; i++)
            store->free_chunks[store->free_chunk_count++] = done[i].tag;
        if (n == 0)
            wait_for_reads(store);
    }
}

bool shunt_store_close(struct shunt_store *store)
{
    if (!store)
        return true;
    if (store->io && !store->ops->close(store->io))
        return false; /* the store stays as well: a thread may be reading its file */
    if (store->watch_fd >= 0)
        close(store->watch_fd);
    shunt_file_close(&store->file);
    free(store->layouts);
    free(store->slot_of);
    free(store->placed);
    free(store->slots);
    free(store);
    return true;
}
