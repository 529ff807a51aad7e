/* SPDX-License-Identifier: Apache-2.0
 *
 * A drive that does what a test tells it: reads wait in the order they came until they are
 * answered, whole, in part or with an error. Bytes come from memory.
 */
#ifndef SHUNT_TESTS_FAKE_IO_H
#define SHUNT_TESTS_FAKE_IO_H

#include "runtime/store/expert_io.h"

#define FAKE_DEPTH_MAX 64u
#define FAKE_WHOLE     INT32_MAX /* as much as was asked and the file has */

struct shunt_expert_io {
    struct shunt_io_config cfg;
    struct shunt_io_read reads[FAKE_DEPTH_MAX]; /* not answered, oldest first */
    uint32_t count;
    uint32_t flushed;                          /* the first so many have been handed out */
    struct shunt_io_done done[FAKE_DEPTH_MAX]; /* answered, not polled */
    uint32_t done_count;
    uint64_t submits, bytes; /* in total */
    bool broken;             /* the contract was: alignment, block, more than depth, a tag twice */
};

/* What the next one to open reads from, and its callbacks; all may be NULL but `bytes`. */
struct fake_io_source {
    const unsigned char *bytes;
    uint64_t len;
    void *ctx;
    void (*on_submit)(void *ctx, const struct shunt_io_read *read); /* before it is taken */
    void (*on_poll)(void *ctx, struct shunt_expert_io *io);         /* may answer */
    int flush_result;
};
extern struct fake_io_source fake_io_source;

extern const struct shunt_expert_io_ops fake_io;

/* The one that is open, NULL when none is. */
extern struct shunt_expert_io *fake_io_open;

/* Answers read `index` of those that wait, by at most `result` bytes or with an error. */
void fake_io_answer(struct shunt_expert_io *io, uint32_t index, int32_t result);

/* Answers all that were handed out. */
void fake_io_answer_all(struct shunt_expert_io *io, int32_t result);

#endif
