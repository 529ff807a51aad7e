/* SPDX-License-Identifier: Apache-2.0
 *
 * What is read when: three queues of loading slots, chunks of at most 1 MiB handed to the drive in
 * the order of the classes.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "planner/prefetch.h"
#include "runtime/base/carve.h"
#include "runtime/base/clock.h"
#include "runtime/store/store_impl.h"

#define RETRIES_MAX 2u
/* The same for a read that only was interrupted, or came at a bad moment. */
#define AGAINS_MAX 1000u

/* Before anything has been measured: a modest SATA SSD, so that the first guesses are few. */
#define BYTES_PER_S_START (400ull << 20)
/* A measurement spans so much, so that one fast or slow chunk does not make the rate. */
#define RATE_WINDOW_NS (2 * SHUNT_NS_PER_MS)

/* Longer between two looks at the drive, and its time is not known. */
#define WATCH_GAP_NS (200 * SHUNT_NS_PER_US)

/* Placement reads trickle: they never fill the drive's queue before a demand read. */
#define PLACEMENT_CHUNKS_MAX 4u

static void queue_push(struct shunt_store *store, uint32_t slot)
{
    struct shunt_slot *s = &store->slots[slot];
    struct shunt_queue *q = &store->queues[s->read_class];

    s->next = SHUNT_NO_SLOT;
    s->prev = q->tail;
    if (q->tail != SHUNT_NO_SLOT)
        store->slots[q->tail].next = slot;
    else
        q->head = slot;
    q->tail = slot;
    s->queued = true;
}

static void queue_remove(struct shunt_store *store, uint32_t slot)
{
    struct shunt_slot *s = &store->slots[slot];
    struct shunt_queue *q = &store->queues[s->read_class];

    if (s->prev != SHUNT_NO_SLOT)
        store->slots[s->prev].next = s->next;
    else
        q->head = s->next;
    if (s->next != SHUNT_NO_SLOT)
        store->slots[s->next].prev = s->prev;
    else
        q->tail = s->prev;
    s->queued = false;
}

void shunt_reads_init(struct shunt_store *store)
{
    for (uint32_t c = 0; c < SHUNT_READ_CLASSES; c++)
        store->queues[c] = (struct shunt_queue){SHUNT_NO_SLOT, SHUNT_NO_SLOT};
    for (uint32_t i = 0; i < SHUNT_IO_DEPTH; i++)
        store->free_chunks[i] = SHUNT_IO_DEPTH - 1 - i;
    store->free_chunk_count = SHUNT_IO_DEPTH;
    store->bytes_per_s = BYTES_PER_S_START;
}

/* The drive's first figure, from reading the non-expert weights. All nodes get theirs in the same
 * way: one that kept the guess would look slow beside one that has measured, and never be given
 * anything to measure. */
void shunt_reads_set_rate(struct shunt_store *store, uint64_t bytes, int64_t ns)
{
    if (bytes > 0 && ns > 0)
        store->bytes_per_s = (uint64_t)((double)bytes * 1e9 / (double)ns) + 1;
}

void shunt_reads_begin(struct shunt_store *store, uint32_t slot, enum shunt_read_class by)
{
    struct shunt_slot *s = &store->slots[slot];

    s->state = SHUNT_LOADING;
    s->read_class = by;
    s->guess = by == SHUNT_READ_SPECULATIVE;
    store->counters.guesses_pending += s->guess;
    s->abandoned = false;
    s->part = 0;
    s->part_done = 0;
    s->in_flight = 0;
    s->left = 0;
    for (uint32_t p = 0; p < SHUNT_PARTS; p++)
        s->left += shunt_store_part(store, s->key, p).bytes;
    store->counters.reads[by]++;
    queue_push(store, slot);
}

void shunt_reads_promote(struct shunt_store *store, uint32_t slot)
{
    struct shunt_slot *s = &store->slots[slot];
    bool queued = s->queued;

    if (queued)
        queue_remove(store, slot);
    s->read_class = SHUNT_READ_DEMAND;
    if (queued || (s->abandoned && s->part < SHUNT_PARTS))
        queue_push(store, slot);
    s->abandoned = false;
}

void shunt_reads_drop(struct shunt_store *store, uint32_t slot)
{
    struct shunt_slot *s = &store->slots[slot];

    if (s->queued)
        queue_remove(store, slot);
    s->abandoned = true;
    if (s->in_flight == 0)
        shunt_store_free_slot(store, slot);
}

/* ---- handing chunks to the drive */

static int submit_chunk(struct shunt_store *store, uint32_t tag)
{
    struct shunt_chunk *c = &store->chunks[tag];

    return store->ops->submit(store->io, &(struct shunt_io_read){
                                             .off = c->off + c->done,
                                             .buf = c->buf + c->done,
                                             .bytes = c->bytes - c->done,
                                             .file = 0,
                                             .block = store->slots[c->slot].block,
                                             .tag = tag,
                                         });
}

static uint64_t next_chunk_bytes(const struct shunt_store *store, uint32_t slot)
{
    const struct shunt_slot *s = &store->slots[slot];
    uint64_t bytes = shunt_store_part(store, s->key, s->part).bytes - s->part_done;

    return bytes < SHUNT_CHUNK_BYTES ? bytes : SHUNT_CHUNK_BYTES;
}

/* Hands out the next chunk of a queued slot. There is a free tag. */
static void issue_chunk(struct shunt_store *store, uint32_t slot)
{
    struct shunt_slot *s = &store->slots[slot];
    const struct shunt_slot_layout *layout = &store->layouts[s->key / store->expert_count];
    struct shunt_rounded r = shunt_store_part(store, s->key, s->part);
    uint64_t bytes = next_chunk_bytes(store, slot);
    uint32_t tag = store->free_chunks[--store->free_chunk_count];
    struct shunt_chunk *c = &store->chunks[tag];

    *c = (struct shunt_chunk){
        .slot = slot,
        .bytes = (uint32_t)bytes,
        .need = (uint32_t)(r.need - s->part_done < bytes ? r.need - s->part_done : bytes),
        .read_class = s->read_class,
        .off = r.begin + s->part_done,
        .buf = s->base + layout->part_at[s->part] + s->part_done,
    };
    s->part_done += bytes;
    if (s->part_done == r.bytes) {
        s->part++;
        s->part_done = 0;
    }
    if (s->part == SHUNT_PARTS)
        queue_remove(store, slot);
    s->in_flight++;
    store->bytes_in_flight[c->read_class] += bytes;
    store->counters.bytes[c->read_class] += bytes;
    /* Cannot be refused: the backend takes as many reads as there are tags. */
    submit_chunk(store, tag);
}

/* The class the next chunk may be of, or SHUNT_READ_CLASSES when nothing may go out now. */
static enum shunt_read_class next_class(const struct shunt_store *store)
{
    const uint64_t *flying = store->bytes_in_flight;

    if (store->queues[SHUNT_READ_DEMAND].head != SHUNT_NO_SLOT)
        return SHUNT_READ_DEMAND;
    if (store->queues[SHUNT_READ_SPECULATIVE].head != SHUNT_NO_SLOT) {
        uint64_t max = shunt_prefetch_inflight_max(store->bytes_per_s, SHUNT_CHUNK_BYTES);

        uint64_t more = next_chunk_bytes(store, store->queues[SHUNT_READ_SPECULATIVE].head);

        return flying[SHUNT_READ_SPECULATIVE] + more <= max ? SHUNT_READ_SPECULATIVE
                                                            : SHUNT_READ_CLASSES;
    }
    if (store->queues[SHUNT_READ_PLACEMENT].head != SHUNT_NO_SLOT &&
        flying[SHUNT_READ_DEMAND] + flying[SHUNT_READ_SPECULATIVE] == 0 &&
        flying[SHUNT_READ_PLACEMENT] < PLACEMENT_CHUNKS_MAX * SHUNT_CHUNK_BYTES)
        return SHUNT_READ_PLACEMENT;
    return SHUNT_READ_CLASSES;
}

/* Queues the next expert the placement wants and misses, when the drive has nothing else. */
static void feed_placement(struct shunt_store *store)
{
    if (store->queues[SHUNT_READ_DEMAND].head != SHUNT_NO_SLOT ||
        store->queues[SHUNT_READ_SPECULATIVE].head != SHUNT_NO_SLOT ||
        store->queues[SHUNT_READ_PLACEMENT].head != SHUNT_NO_SLOT)
        return;
    while (store->placed_next < store->key_count) {
        uint32_t key = store->placed_next++;
        uint32_t slot;

        if (!store->placed[key] || store->slot_of[key] != SHUNT_NO_SLOT)
            continue;
        slot = shunt_store_take_slot(store, key, SHUNT_READ_PLACEMENT);
        if (slot == SHUNT_NO_SLOT)
            continue; /* everything there is is worth more now; the next plan asks again */
        shunt_reads_begin(store, slot, SHUNT_READ_PLACEMENT);
        return;
    }
}

static int issue_chunks(struct shunt_store *store)
{
    bool issued = false;

    feed_placement(store);
    while (store->free_chunk_count > 0) {
        enum shunt_read_class c = next_class(store);

        if (c == SHUNT_READ_CLASSES)
            break;
        issue_chunk(store, store->queues[c].head);
        issued = true;
    }
    if (issued && store->busy_since_ns == 0) {
        store->busy_since_ns = store->watched_ns = shunt_now_ns();
        store->busy_bytes = 0;
    }
    return store->ops->flush(store->io);
}

/* ---- completions */

/* `result` is an error, or too few bytes and no more to come. */
static int fail(struct shunt_store *store, const struct shunt_chunk *c, int32_t result)
{
    const char *path = store->file.path;
    uint64_t at = c->off + c->done;

    if (result >= 0)
        return shunt_error_set(&store->error, -EBADMSG,
                               "%s: the file ends at offset %" PRIu64
                               "; it was cut while it was in use",
                               path, at + (uint32_t)result);
    return shunt_error_set(&store->error, result,
                           "%s: reading %" PRIu32 " bytes at offset %" PRIu64
                           " failed %u times: %s",
                           path, c->bytes - c->done, at, c->retries + 1, strerror(-result));
}

/* Asks again for what a short or interrupted read left. Return: true when it was asked. */
static bool resume_chunk(struct shunt_store *store, uint32_t tag, int32_t result)
{
    struct shunt_chunk *c = &store->chunks[tag];

    if (result <= 0) {
        uint32_t max = result == -EINTR || result == -EAGAIN ? AGAINS_MAX : RETRIES_MAX;

        if (result == 0 || c->retries >= max)
            return false;
        c->retries++;
    } else {
        uint32_t got = (uint32_t)result / store->file.off_align * store->file.off_align;

        if (got == 0)
            return false; /* less than one block: the file's end */
        c->done += got;
    }
    submit_chunk(store, tag);
    return true;
}

/* Return: 1 when the chunk completed its expert. */
static int finish_chunk(struct shunt_store *store, uint32_t tag)
{
    struct shunt_chunk *c = &store->chunks[tag];
    struct shunt_slot *s = &store->slots[c->slot];

    store->free_chunks[store->free_chunk_count++] = tag;
    store->bytes_in_flight[c->read_class] -= c->bytes;
    store->busy_bytes += c->bytes;
    s->in_flight--;
    s->left -= c->bytes;
    if (s->in_flight > 0)
        return 0;
    if (s->abandoned) {
        shunt_store_free_slot(store, c->slot);
        return 0;
    }
    if (s->left > 0)
        return 0;
    s->state = SHUNT_RESIDENT;
    return 1;
}

/* Exponential mean over windows of busy time. Only time in which completions would have been seen
 * at once counts: what the drive did while this thread computed is not known. */
static void measure_rate(struct shunt_store *store)
{
    bool idle = store->free_chunk_count == SHUNT_IO_DEPTH;
    int64_t now, span;

    if (store->busy_since_ns == 0)
        return;
    now = shunt_now_ns();
    span = now - store->busy_since_ns;
    if (now - store->watched_ns > WATCH_GAP_NS) {
        store->busy_since_ns = now;
        store->busy_bytes = 0;
    } else if (span >= RATE_WINDOW_NS && store->busy_bytes > 0) {
        uint64_t rate = (uint64_t)((double)store->busy_bytes * 1e9 / (double)span) + 1;

        store->bytes_per_s = (store->bytes_per_s * 7 + rate) / 8;
        store->busy_since_ns = now;
        store->busy_bytes = 0;
    }
    if (idle)
        store->busy_since_ns = 0;
    store->watched_ns = now;
}

void shunt_store_watched(struct shunt_store *store)
{
    if (store->busy_since_ns)
        store->watched_ns = shunt_now_ns();
}

int shunt_store_pump(struct shunt_store *store)
{
    struct shunt_io_done done[SHUNT_IO_DEPTH];
    int resident = 0;
    uint32_t n;
    int rc;

    if (store->error.code)
        return store->error.code;
    n = store->free_chunk_count < SHUNT_IO_DEPTH ? store->ops->poll(store->io, done, SHUNT_IO_DEPTH)
                                                 : 0;
    for (uint32_t i = 0; i < n; i++) {
        struct shunt_chunk *c = &store->chunks[done[i].tag];

        if (done[i].result < 0 || c->done + (uint32_t)done[i].result < c->need) {
            if (resume_chunk(store, done[i].tag, done[i].result))
                continue;
            return fail(store, c, done[i].result);
        }
        resident += finish_chunk(store, done[i].tag);
    }
    measure_rate(store);
    rc = issue_chunks(store);
    if (rc)
        return shunt_error_set(&store->error, rc, "%s: the kernel takes no more reads: %s",
                               store->file.path, strerror(-rc));
    return resident;
}

bool shunt_store_busy(const struct shunt_store *store)
{
    return store->free_chunk_count < SHUNT_IO_DEPTH ||
           store->queues[SHUNT_READ_DEMAND].head != SHUNT_NO_SLOT ||
           store->queues[SHUNT_READ_SPECULATIVE].head != SHUNT_NO_SLOT ||
           store->queues[SHUNT_READ_PLACEMENT].head != SHUNT_NO_SLOT ||
           store->placed_next < store->key_count;
}
