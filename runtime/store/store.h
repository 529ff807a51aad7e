/* SPDX-License-Identifier: Apache-2.0
 *
 * The expert store: slots in the arena, which expert is in which, and the reads that fill them.
 *
 * An expert is ABSENT, LOADING or RESIDENT; a resident one is in use while somebody holds it
 * (acquire .. release), and only one that nobody holds is evicted. Reads come in three classes.
 * Demand reads go first, whole experts in the order asked. Speculative reads use what the demand
 * reads leave, chunk by chunk, within the budget of planner/prefetch.h. Placement loads run when
 * nothing else does. A speculative read that turns out to be needed is promoted; one that turns out
 * useless is dropped as far as it was not yet handed to the drive.
 *
 * The engine thread owns the store and its ring; it calls shunt_store_pump whenever it waits and
 * between two tiles of compute. Nothing here allocates or blocks after open. An expert's weights
 * lie in its slot as they lie in the file, from the file's alignment before their first byte.
 */
#ifndef SHUNT_STORE_STORE_H
#define SHUNT_STORE_STORE_H

#include "planner/evict.h"
#include "runtime/base/patience.h"
#include "runtime/model/model.h"
#include "runtime/store/expert_io.h"

enum shunt_residency { SHUNT_ABSENT, SHUNT_LOADING, SHUNT_RESIDENT };

#define SHUNT_SLOTS_MIN        2u
#define SHUNT_SLOT_CLASSES_MAX 16u

/* Slots come in classes of one size, the largest first; an expert fits its own class and those
 * before it. */
struct shunt_slot_plan {
    struct {
        uint64_t bytes;   /* of one slot */
        uint64_t experts; /* experts of the model for which this is the smallest class that fits */
        uint32_t slot_count;
    } classes[SHUNT_SLOT_CLASSES_MAX];
    uint32_t class_count;
    uint64_t total_bytes; /* all slots */
};

/* How `slot_count` slots are dealt over the classes, in proportion to their experts. Pure.
 * slot_count in [SHUNT_SLOTS_MIN, layers x experts]. */
void shunt_store_plan(const struct shunt_model *model, uint32_t slot_count,
                      struct shunt_slot_plan *plan);

struct shunt_store_config {
    const struct shunt_model *model;
    enum shunt_io_mode io_mode;
    const struct shunt_expert_io_ops *io; /* NULL: io_uring, and pread where it is refused */
    uint32_t slot_count;
    struct shunt_notify notify;
};

struct shunt_store_counters {
    uint64_t bytes_startup;
    uint64_t bytes[SHUNT_READ_CLASSES];
    uint64_t reads[SHUNT_READ_CLASSES];
    uint64_t guesses_useful, guesses_late, guesses_wasted;
    uint64_t guesses_pending; /* held, and not needed so far */
};

struct shunt_store;

int shunt_store_open(struct shunt_store **store, struct shunt_arena *arena,
                     const struct shunt_store_config *cfg, struct shunt_error *err);

/* Return: false when the drive has not answered (SHUNT_IO_CLOSE_NS) and may still write into the
 * arena, which then must stay mapped. */
bool shunt_store_close(struct shunt_store *store);

/* Waits until what was handed to the drive has been read, so that the counters are what was read;
 * or until patience ends. After it the store can only be closed. */
void shunt_store_settle(struct shunt_store *store, const struct shunt_patience *patience);

/* A weight to be loaded when the engine opens. */
struct shunt_dense_read {
    uint64_t off;
    uint64_t bytes;   /* 0: skipped */
    const void *data; /* out: where the weight lies */
};
/* Where the weights lie in a buffer at `base` (mem_align-aligned), rounding included; sets `data`.
 * With base NULL it only measures. Return: the bytes of the buffer. */
uint64_t shunt_store_lay_out_dense(const struct shunt_file *file, unsigned char *base,
                                   struct shunt_dense_read *reads, uint32_t count);

/* Reads laid-out weights, many reads in flight. Blocks until all are there or patience ends. After
 * a failure the store can only be closed. */
int shunt_store_load_dense(struct shunt_store *store, struct shunt_dense_read *reads,
                           uint32_t count, const struct shunt_patience *patience,
                           struct shunt_error *err);

/* Experts are named by key = layer * expert_count + expert. `now` is the layer step, ascending. */
enum shunt_residency shunt_store_state(const struct shunt_store *store, uint32_t key);

/* Share still to load in 1/254 (at least 1) of a loading expert. */
uint8_t shunt_store_share_left(const struct shunt_store *store, uint32_t key);

/* A row needs the expert. Return: 1 held and resident; 0 held, its read is under way;
 * -EAGAIN not held: no slot can be had before something is released or read. */
int shunt_store_acquire(struct shunt_store *store, uint32_t key, uint64_t now);
void shunt_store_release(struct shunt_store *store, uint32_t key);

/* The expert will probably be needed by layer step `until`. With `read`, begins a speculative read
 * if a slot can be had for it; without, only guards what is resident. Return: 1 a read was begun,
 * else 0. */
int shunt_store_speculate(struct shunt_store *store, uint32_t key, uint64_t now, uint64_t until,
                          bool read);

/* The guess was wrong: what has not gone to the drive is not read. */
void shunt_store_abandon(struct shunt_store *store, uint32_t key);

/* The experts that should be here in the long run, one byte per key; read when the drive is idle.
 */
void shunt_store_set_placement(struct shunt_store *store, const uint8_t *placed);

/* The three matrices of a resident expert that the caller holds. */
void shunt_store_view(const struct shunt_store *store, uint32_t key,
                      struct shunt_matrix parts[SHUNT_PARTS]);

/* Takes completions and hands out reads. Return: experts that became resident; or the sticky error
 * of the first read that failed for good, which shunt_store_error words. */
int shunt_store_pump(struct shunt_store *store);

/* The thread has slept on shunt_store_fd and not been elsewhere: the drive's time since the last
 * pump is known. */
void shunt_store_watched(struct shunt_store *store);

const struct shunt_error *shunt_store_error(const struct shunt_store *store);

/* Whether the model file was written to since the store was opened. Any thread; never blocks.
 * Return: 0; -ESTALE. */
int shunt_store_check_file(struct shunt_store *store, struct shunt_error *err);

/* True while reads of any class are queued or in flight. */
bool shunt_store_busy(const struct shunt_store *store);

/* Readable when pump has something to take. */
int shunt_store_fd(const struct shunt_store *store);

/* Estimated time of the drive for one expert of the layer, from the measured rate. */
uint64_t shunt_store_read_ns(const struct shunt_store *store, uint32_t layer);

uint32_t shunt_store_slot_count(const struct shunt_store *store);
uint32_t shunt_store_slots_used(const struct shunt_store *store);
const struct shunt_store_counters *shunt_store_get_counters(const struct shunt_store *store);
const char *shunt_store_io_name(const struct shunt_store *store);
bool shunt_store_io_direct(const struct shunt_store *store);

#endif
