/* SPDX-License-Identifier: Apache-2.0
 *
 * What the measurements share: a rack without an engine, one transport over it, and waits that have
 * a deadline. One thread. Lifetime: join, open, ..., close, which accepts what join or open left.
 */
#ifndef SHUNT_BENCH_IMPL_H
#define SHUNT_BENCH_IMPL_H

#include "runtime/base/arena.h"
#include "runtime/cluster/rack.h"
#include "runtime/shunt_bench.h"
#include "transport/transport.h"

/* What an immediate means: the low bits. */
enum shunt_bench_word {
    SHUNT_BENCH_MEET,   /* the sender begins the next measurement */
    SHUNT_BENCH_PLAN,   /* what is to be measured lies at the inbox's beginning */
    SHUNT_BENCH_DATA,   /* one of many */
    SHUNT_BENCH_LAST,   /* the last of them: answer */
    SHUNT_BENCH_ANSWER, /* to LAST */
    SHUNT_BENCH_ROWS,   /* a dispatch */
    SHUNT_BENCH_RESULTS,
    SHUNT_BENCH_WORDS,
};

struct shunt_bench_node {
    struct shunt_bench_rack cfg;
    struct shunt_rack *rack;
    const struct shunt_transport_ops *ops;
    uint32_t transports; /* the bit of its kind */
    struct shunt_transport *t;
    struct shunt_arena arena;
    struct shunt_region inbox, memory;
    uint64_t inbox_bytes[SHUNT_NODES_MAX];

    uint64_t arrived[SHUNT_NODES_MAX][SHUNT_BENCH_WORDS];
    uint32_t unreleased[SHUNT_NODES_MAX];
    uint64_t open_puts[SHUNT_NODES_MAX]; /* not SENT yet */
    int lost_error[SHUNT_NODES_MAX];     /* 0: it is there */
    const char *lost_reason[SHUNT_NODES_MAX];
};

/* Meets the others. `name` and `shape` must be the same on all; `pages` is what a node wants to
 * tell (shunt_rack_nodes(...)[rank].rows_max), in [1, SHUNT_ROWS_MAX]. */
int shunt_bench_join(struct shunt_bench_node *b, const struct shunt_bench_rack *cfg,
                     const char *name, const uint8_t shape[16], uint32_t pages,
                     struct shunt_error *err);

/* Opens the transport: b->inbox_bytes has been set for all nodes, memory_bytes is what this one
 * sends from. Both are zeroed, and present. */
int shunt_bench_open(struct shunt_bench_node *b, uint64_t memory_bytes, struct shunt_error *err);
void shunt_bench_close(struct shunt_bench_node *b);

/* Puts, polling while the transport has no room. Here and below only the loss of the peer that is
 * waited for is a failure: others may have gone when they were done. */
int shunt_bench_put(struct shunt_bench_node *b, uint32_t peer, const void *src, uint64_t bytes,
                    uint64_t off, enum shunt_bench_word word, struct shunt_error *err);

/* Polls until so many of this word have come from the peer since the start. */
int shunt_bench_await(struct shunt_bench_node *b, uint32_t peer, enum shunt_bench_word word,
                      uint64_t count, struct shunt_error *err);

int shunt_bench_await_either(struct shunt_bench_node *b, uint32_t peer, enum shunt_bench_word word,
                             uint64_t count, enum shunt_bench_word other, uint64_t other_count,
                             struct shunt_error *err);

/* Polls until every put of ours is SENT. */
int shunt_bench_drain(struct shunt_bench_node *b, struct shunt_error *err);

/* Sorts the samples. */
struct shunt_bench_times shunt_bench_summarize(int64_t *samples, uint64_t count);

enum shunt_bench_hardware shunt_bench_hardware_of(const struct shunt_bench_node *b);

#endif
