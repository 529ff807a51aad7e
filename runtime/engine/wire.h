/* SPDX-License-Identifier: Apache-2.0
 *
 * What nodes tell each other during a step. Every message begins with one header of 64 bytes; all
 * values are little-endian and of fixed width. A view of a received message is made only after
 * everything in it has been checked against its length and against what this node knows, so a
 * broken or hostile peer costs an error and nothing else. A peer may write into its part of the
 * inbox at any moment: what is used as an index is copied, and the copy is checked. States, guesses
 * and rows may be of any value, and stay where they are.
 *
 *   ANNOUNCE  once per step, to all: what work this node has, residency of layer 0
 *   COUNTS    once per prefill layer, to all: tokens per expert, residency, guesses for the next
 * layer DISPATCH  once per layer, to each: rows and which expert each is for; in the decode lane
 * also residency and guesses for the next layer RESULTS   once per layer, to each node that sent
 * rows: one row per (row, expert), in the dispatch's order
 */
#ifndef SHUNT_ENGINE_WIRE_H
#define SHUNT_ENGINE_WIRE_H

#include "runtime/base/error.h"

#define SHUNT_WIRE_MAGIC   0x31575348u /* "HSW1" */
#define SHUNT_WIRE_VERSION 1u
#define SHUNT_WIRE_ALIGN   64u /* of the rows in a message */

enum shunt_wire_kind {
    SHUNT_WIRE_ANNOUNCE = 1,
    SHUNT_WIRE_COUNTS,
    SHUNT_WIRE_DISPATCH,
    SHUNT_WIRE_RESULTS
};

enum shunt_lane { SHUNT_LANE_DECODE, SHUNT_LANE_PREFILL, SHUNT_LANES };

enum shunt_row_type { SHUNT_ROW_F32 };

/* How results come back; another layout may follow. */
enum shunt_combine { SHUNT_COMBINE_ROW_PER_EXPERT };

struct shunt_wire_header {
    uint32_t magic;
    uint16_t version;
    uint8_t kind;
    uint8_t lane;
    uint8_t row_type;
    uint8_t combine;
    uint16_t reserved;
    uint32_t rank; /* of the sender */
    uint32_t layer;
    uint32_t row_count;
    uint64_t tick;         /* the sender's exchange, see exchange.h */
    uint64_t step;         /* of the rack */
    uint32_t entry_count;  /* (row, expert) pairs */
    uint32_t group_count;  /* experts */
    uint32_t waited_count; /* RESULTS: entries whose expert had to be read first */
    uint32_t bytes;        /* of the whole message, filled in when it is put */
    uint64_t result_off;   /* DISPATCH: where in the sender's inbox its results belong */
};
_Static_assert(sizeof(struct shunt_wire_header) == 64, "the header is a wire format");

/* What this node knows and a message must agree with. */
struct shunt_wire_shape {
    uint32_t expert_count;
    uint32_t used_count; /* experts per row at most */
    uint32_t hidden;
    uint32_t layer_count;
};

/* ---- ANNOUNCE: header, struct shunt_wire_announce, states[expert_count] of layer 0 */

enum { SHUNT_ANNOUNCE_LEAVING = 1u << 0 };

struct shunt_wire_announce {
    uint64_t epoch; /* of the newest placement the sender has */
    uint32_t flags;
    uint32_t decode_rows;
    uint32_t prefill_rows;
    uint32_t reserved;
};
_Static_assert(sizeof(struct shunt_wire_announce) == 24, "a wire format");

struct shunt_wire_announce_view {
    struct shunt_wire_announce announce;
    const uint8_t *states;
};

/* ---- COUNTS: header, u64 read_ns, u32 counts[expert_count], u8 states, u8 next_states, guess bits
 */

struct shunt_wire_counts_view {
    uint64_t read_ns; /* the sender's drive, one expert of this layer */
    uint32_t *counts; /* [expert_count]: the caller's memory, filled */
    const uint8_t *states, *next_states;
    const uint8_t
        *guesses; /* bit e: the sender's rows will probably need expert e in the next layer */
};

/* ---- DISPATCH: header, u8 states[expert_count], guess bits, groups, u32 entries[], padding, rows
 */

struct shunt_wire_group {
    uint32_t expert;
    uint32_t count; /* >= 1 */
};
_Static_assert(sizeof(struct shunt_wire_group) == 8, "a wire format");

struct shunt_wire_dispatch_view {
    struct shunt_wire_header header;
    const uint8_t *states;  /* of the next layer (decode lane) */
    const uint8_t *guesses; /* for the next layer (decode lane) */
    /* The caller's memory for [expert_count] and [rows_max * used_count], filled. */
    struct shunt_wire_group *groups; /* [group_count], experts strictly ascending */
    uint32_t *entries;               /* [entry_count] rows in [0, row_count), group by group */
    const float *rows;               /* [row_count][hidden] */
};

/* Offsets of the parts of a DISPATCH. */
struct shunt_wire_dispatch_layout {
    uint64_t states, guesses, groups, entries, rows, bytes;
};
struct shunt_wire_dispatch_layout shunt_wire_dispatch_layout(const struct shunt_wire_shape *shape,
                                                             uint32_t groups, uint32_t entries,
                                                             uint32_t rows);

/* Bytes of the largest ANNOUNCE, COUNTS or DISPATCH of a node that sends at most `rows` rows. */
uint64_t shunt_wire_gather_max(const struct shunt_wire_shape *shape, uint32_t rows);

static inline uint32_t shunt_wire_bits_bytes(uint32_t expert_count)
{
    return (expert_count + 7) / 8;
}

uint64_t shunt_wire_announce_bytes(const struct shunt_wire_shape *shape);
uint64_t shunt_wire_counts_bytes(const struct shunt_wire_shape *shape);

/* What a received message must be: of this sender, exchange, lane and layer. */
struct shunt_wire_expect {
    enum shunt_wire_kind kind;
    enum shunt_lane lane;
    uint32_t rank;
    uint32_t layer;
    uint64_t tick;
    uint64_t step;
    uint32_t rows_max;    /* DISPATCH: rows the sender may send */
    uint32_t entry_count; /* RESULTS: entries it was sent */
};

/* Check a message at `message` (64-aligned, in an area of shunt_wire_gather_max bytes for the rows
 * its sender may send, of which a message that passes uses no more than it should) and make a view
 * of it, into the memory that the view brings along where it says so. `who` names the peer. Return:
 * 0, or -EPROTO with what is wrong. */
int shunt_wire_view_announce(const void *message, const struct shunt_wire_expect *expect,
                             const char *who, struct shunt_wire_announce_view *view,
                             struct shunt_error *err);
int shunt_wire_view_counts(const void *message, const struct shunt_wire_shape *shape,
                           const struct shunt_wire_expect *expect, const char *who,
                           struct shunt_wire_counts_view *view, struct shunt_error *err);
int shunt_wire_view_dispatch(const void *message, const struct shunt_wire_shape *shape,
                             const struct shunt_wire_expect *expect, const char *who,
                             struct shunt_wire_dispatch_view *view, struct shunt_error *err);
int shunt_wire_view_results(const void *message, const struct shunt_wire_expect *expect,
                            const char *who, struct shunt_wire_header *header,
                            struct shunt_error *err);

#endif
