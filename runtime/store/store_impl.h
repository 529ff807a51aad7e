/* SPDX-License-Identifier: Apache-2.0
 *
 * The store's own structures, shared by store.c (slots and residency) and reads.c (what is read
 * when). Nobody else includes this.
 */
#ifndef SHUNT_STORE_STORE_IMPL_H
#define SHUNT_STORE_STORE_IMPL_H

#include <stdatomic.h>

#include "runtime/store/store.h"

#define SHUNT_IO_DEPTH    32u
#define SHUNT_CHUNK_BYTES (1u << 20)

#define SHUNT_NO_SLOT UINT32_MAX
#define SHUNT_NO_KEY  UINT32_MAX

struct shunt_slot {
    unsigned char *base;
    uint32_t block; /* of the store's slot blocks, for registered reads */
    uint32_t key;   /* SHUNT_NO_KEY: free */
    enum shunt_residency state;
    uint32_t holds;    /* acquires not yet released */
    uint64_t last_use; /* layer step */
    uint64_t keep;     /* needed or predicted up to this layer step */

    /* The read that fills it. */
    enum shunt_read_class read_class;
    bool guess;          /* read speculatively, no row has needed it so far */
    bool abandoned;      /* freed as soon as nothing is in flight */
    bool queued;         /* chunks remain to be handed out: it is in its class's queue */
    uint32_t part;       /* in [0, SHUNT_PARTS): the next chunk is of this matrix ... */
    uint64_t part_done;  /* ... from this byte of its rounded extent */
    uint64_t left;       /* bytes neither handed out nor, if handed out, completed */
    uint32_t in_flight;  /* chunks */
    uint32_t prev, next; /* in the queue; SHUNT_NO_SLOT at the ends */
};

struct shunt_queue {
    uint32_t head, tail; /* slots; SHUNT_NO_SLOT when empty */
};

/* One read in flight, by tag. */
struct shunt_chunk {
    uint32_t slot;
    uint32_t bytes;
    uint32_t need; /* bytes that must come; the rest is rounding past the end of the file */
    uint32_t done; /* already read, when the drive answered short */
    uint32_t retries;
    enum shunt_read_class read_class; /* when it was handed out */
    uint64_t off;
    unsigned char *buf;
};

/* Where the matrices of a layer's experts lie in a slot. */
struct shunt_slot_layout {
    uint32_t slot_class;
    uint64_t part_at[SHUNT_PARTS]; /* of the rounded extent */
};

struct shunt_store {
    const struct shunt_model *model;
    struct shunt_file file;
    int watch_fd; /* -1: not watched */
    _Atomic int written;
    uint32_t layer_count, expert_count, key_count;
    struct shunt_slot_layout *layouts; /* [layer] */
    uint32_t *slot_of;                 /* [key]: SHUNT_NO_SLOT when absent */
    uint8_t *placed;                   /* [key] */
    uint32_t placed_next;              /* keys before it have been looked at for placement reads */
    uint64_t now;                      /* the layer step of the last call that named one */

    struct shunt_slot *slots;
    uint32_t slot_count;
    uint32_t slots_used;
    uint32_t class_end[SHUNT_SLOT_CLASSES_MAX];  /* slots [0, class_end[c]) fit class c */
    uint32_t class_free[SHUNT_SLOT_CLASSES_MAX]; /* free slots of class c itself */
    uint32_t slot_class_count;

    const struct shunt_expert_io_ops *ops;
    struct shunt_expert_io *io;
    struct shunt_queue queues[SHUNT_READ_CLASSES];
    struct shunt_chunk chunks[SHUNT_IO_DEPTH];
    uint32_t free_chunks[SHUNT_IO_DEPTH]; /* stack of tags */
    uint32_t free_chunk_count;
    uint64_t bytes_in_flight[SHUNT_READ_CLASSES];

    /* The drive's rate, measured over the time in which it had something to do. */
    uint64_t bytes_per_s;
    int64_t busy_since_ns; /* 0: idle */
    uint64_t busy_bytes;
    int64_t watched_ns; /* when completions were last looked for */

    struct shunt_store_counters counters;
    struct shunt_error error; /* code 0: none */
};

/* The extent of an expert's matrix, rounded out as the drive wants. */
struct shunt_rounded {
    uint64_t begin;
    uint64_t bytes;
    uint64_t need; /* bytes up to the end of the extent itself */
    uint32_t head; /* bytes before the extent */
};
struct shunt_rounded shunt_store_round(const struct shunt_file *file, uint64_t off, uint64_t len);
struct shunt_rounded shunt_store_part(const struct shunt_store *store, uint32_t key, uint32_t part);

/* Room in a slot for one matrix of the layer's experts, wherever in the file it begins. */
uint64_t shunt_store_part_capacity(const struct shunt_model *model, uint32_t layer, uint32_t part);

/* The smallest class whose slots have `bytes`. */
uint32_t shunt_store_class_of(const struct shunt_slot_plan *plan, uint64_t bytes);

/* store.c: a slot for `key` by a read of this class, its owner evicted; SHUNT_NO_SLOT when none can
 * be had. */
uint32_t shunt_store_take_slot(struct shunt_store *store, uint32_t key, enum shunt_read_class by);
void shunt_store_free_slot(struct shunt_store *store, uint32_t slot);

/* reads.c */
void shunt_reads_init(struct shunt_store *store);
void shunt_reads_set_rate(struct shunt_store *store, uint64_t bytes, int64_t ns);
void shunt_reads_begin(struct shunt_store *store, uint32_t slot, enum shunt_read_class by);
void shunt_reads_promote(struct shunt_store *store, uint32_t slot);
void shunt_reads_drop(struct shunt_store *store, uint32_t slot);

#endif
