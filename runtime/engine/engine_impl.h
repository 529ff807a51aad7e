/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine's own structures. Threads: the engine thread owns everything but what is marked; the
 * caller's threads come in through api.c; the control thread (cluster/rack.h) calls back into
 * control.c.
 *
 *   config.c    options, and how much of what fits into memory
 *   open.c      building and tearing down
 *   api.c       submit, poll, cancel, stats
 *   control.c   what the control thread tells the engine
 *   step.c      the rack's steps: agreement, lanes, sleep
 *   lanes.c     which sequences' rows go into a lane, and what becomes of its results
 *   forward.c   embedding, attention, logits for a batch of rows
 *   moe*.c      the MoE layers
 */
#ifndef SHUNT_ENGINE_ENGINE_IMPL_H
#define SHUNT_ENGINE_ENGINE_IMPL_H

#include <pthread.h>

#include "runtime/base/arena.h"
#include "runtime/cluster/planning.h"
#include "runtime/engine/moe.h"
#include "runtime/engine/outbox.h"
#include "runtime/engine/sampler.h"
#include "runtime/engine/text.h"
#include "runtime/engine/weights.h"

#define SHUNT_SEQUENCES_MAX 256u
#define SHUNT_NOTICES_MAX   32u

/* Rows whose logits are computed together. */
#define SHUNT_LOGIT_ROWS 8u

/* ---- options, resolved */

struct shunt_options {
    struct shunt_config
        cfg; /* strings and rack point into the caller's memory: valid during open */
    enum shunt_io_mode io_mode;
    const struct shunt_expert_io_ops *io;        /* NULL: auto */
    uint32_t transports;                         /* mask of those allowed */
    const struct shunt_transport_ops *transport; /* the rack's, once it has settled on it */
    uint32_t kernel_levels;                      /* mask of those allowed */
    enum shunt_placement_policy placement;
    uint32_t threads;
    uint64_t memory_limit; /* resident bytes of the process */
    uint32_t chunk;
    uint32_t rows_max; /* of hidden state this node dispatches at once */
    uint32_t slot_count;
    struct shunt_footprint footprint;
};

/* config.c. `rows_max` of the peers, or NULL to assume they are like this node.
 * Return: 0, -EINVAL for an option, -ENOMEM when it does not fit. */
int shunt_config_check(const struct shunt_config *cfg, struct shunt_error *err);
int shunt_options_resolve(struct shunt_options *o, const struct shunt_model *model,
                          const struct shunt_config *cfg, struct shunt_error *err);
int shunt_options_fit(struct shunt_options *o, const struct shunt_model *model,
                      const uint32_t *rows_max, struct shunt_error *err);

/* ---- sequences */

enum shunt_sequence_state {
    SHUNT_SEQUENCE_FREE,      /* a caller may claim it */
    SHUNT_SEQUENCE_CLAIMED,   /* a caller fills it in */
    SHUNT_SEQUENCE_SUBMITTED, /* the engine may begin it */
    SHUNT_SEQUENCE_PREFILL,
    SHUNT_SEQUENCE_DECODE,
    SHUNT_SEQUENCE_ENDED, /* its END lies in the outbox; poll frees it */
};

struct shunt_sequence {
    _Atomic uint32_t state; /* release by whoever hands it on, acquire by who takes it over */
    _Atomic uint64_t id;
    _Atomic uint64_t cancel_id; /* == id: to be cancelled; ids are never used again */
    _Atomic uint32_t
        paused; /* left out for want of room in the outbox: the reader wakes the engine */

    /* Filled in by submit. */
    int32_t *ids; /* [context]: the prompt */
    uint32_t id_count;
    uint32_t token_max;
    bool ignore_eos;
    float *logits;
    int64_t submit_ns;

    /* The engine's. */
    struct shunt_sampler sampler;
    struct shunt_text text;
    uint32_t position; /* positions in the KV cache */
    int32_t token;     /* the last one generated, not yet in the cache */
    uint32_t tokens;
    int64_t first_ns, last_ns;
    uint64_t digest;
    enum shunt_end_reason reason;

    struct shunt_outbox outbox;
};

/* ---- a batch of rows on their way through the layers */

struct shunt_batch {
    uint32_t count;
    uint32_t *sequences; /* [rows] */
    uint32_t *positions; /* [rows] */
    int32_t *ids;        /* [rows] */
    float *x;            /* [rows][hidden]: the residual stream */
    float **x_rows;      /* [rows] */
};

/* Scratch of one layer, shared by the lanes. */
struct shunt_activations {
    float *normed, *q, *k, *v, *attended;
    float **normed_rows, **q_rows, **k_rows, **v_rows, **attended_rows; /* [rows] */
    float *logits;                      /* [SHUNT_LOGIT_ROWS][vocab] */
    float **logit_rows;                 /* [SHUNT_LOGIT_ROWS] */
    struct shunt_candidate *candidates; /* [vocab] */
};

/* ---- statistics, readable while the engine works */

#define SHUNT_STATS_WORDS ((sizeof(struct shunt_stats) + 7) / 8)

struct shunt {
    const struct shunt_model *model;
    struct shunt_options options;
    uint32_t rank, node_count;
    bool serve_only;
    const struct shunt_kernels *kernels;

    struct shunt_arena arena;
    struct shunt_pool *pool;
    float **scratch; /* [thread] */
    struct shunt_rack *rack;
    struct shunt_store *store;
    struct shunt_planning *planning;
    struct shunt_exchange exchange;
    struct shunt_progress progress;
    struct shunt_weights weights;
    struct shunt_moe moe;

    void *work; /* everything carved: activations and buffers */
    size_t work_bytes;
    float *rope; /* [context][head_dim]: cosines, then sines */
    float *kv;   /* [sequence][layer][k, v][kv_head][context][head_dim] */
    struct shunt_activations act;
    struct shunt_batch prefill, decode;
    uint32_t prefill_layer;                /* the next one; 0: the lane is free */
    bool prefill_running;                  /* some node has rows in the lane */
    uint64_t step;                         /* announcements agreed on: the same on every node */
    uint64_t decode_steps, prefill_layers; /* done */
    uint64_t placement_epoch;

    struct shunt_sequence *sequences; /* [sequences_max] */
    uint32_t sequence_count;
    uint32_t context;
    size_t text_max; /* of one event */
    char *piece;     /* [piece_max]: a token's bytes, engine thread */
    char *text;      /* [text_max], engine thread */

    pthread_t thread;
    bool started;
    int wake_fd;  /* something to do: submit, cancel, room, close */
    int abort_fd; /* stop now */
    int event_fd; /* the caller's */
    _Atomic int abort;
    _Atomic int leaving;                        /* shunt_leave or shunt_close was called */
    _Atomic int agreed;                         /* every node has: the rack has ended in order */
    _Atomic int closed;                         /* the engine thread takes no more sequences */
    _Atomic int finished;                       /* the engine thread has ended */
    _Atomic int planning_takes, planning_sends; /* messages of the placement */

    /* Events that belong to no sequence; any thread. */
    pthread_mutex_t mutex;
    char notices[SHUNT_NOTICES_MAX][sizeof(((struct shunt_error *)0)->text)];
    uint32_t notice_head, notice_count;
    bool down, down_taken;
    uint32_t down_rank;
    struct shunt_error down_error;
    _Atomic uint64_t next_id;

    /* The reader's. */
    char *poll_text; /* [text_max + 1] */
    char notice_text[sizeof(((struct shunt_error *)0)->text)];
    uint32_t poll_turn;

    /* Published by the engine thread: odd while it writes. */
    _Atomic uint32_t stats_version;
    _Atomic uint64_t stats_words[SHUNT_STATS_WORDS];
    uint64_t prompt_tokens, tokens;
    bool has_events; /* put into an outbox and not yet signalled */
};

/* ---- between the files */

/* config.c, open.c: everything of fixed size, laid out in one piece. */
void shunt_engine_carve(struct shunt *e, const uint32_t *rows_max, struct shunt_carve *carve);

/* control.c */
void shunt_engine_notice(void *engine, const char *text);
void shunt_engine_down(void *engine, uint32_t rank, const struct shunt_error *why);
void shunt_engine_signal(struct shunt *e); /* wakes the caller */
void shunt_engine_wake(struct shunt *e);   /* wakes the engine thread */
void shunt_engine_abort(struct shunt *e);

/* step.c */
void *shunt_engine_main(void *engine);
void shunt_engine_publish(struct shunt *e); /* the statistics */

/* lanes.c */
void shunt_lanes_admit(struct shunt *e);
uint32_t shunt_lanes_prefill_rows(const struct shunt *e); /* rows that wait for a prefill */
uint32_t shunt_lanes_decode_rows(struct shunt *e);
void shunt_lanes_fill_prefill(struct shunt *e);
void shunt_lanes_fill_decode(struct shunt *e);
bool shunt_lanes_alive(const struct shunt *e); /* some sequence has not ended */
/* Return: 0; -ECANCELED when the engine was told to stop and there are no results. */
int shunt_lanes_finish_prefill(struct shunt *e, struct shunt_error *err);
int shunt_lanes_finish_decode(struct shunt *e, struct shunt_error *err);
void shunt_lanes_end_all(struct shunt *e, enum shunt_end_reason reason);

/* forward.c */
void shunt_forward_init(struct shunt *e);
void shunt_forward_embed(struct shunt *e, struct shunt_batch *b);
int shunt_forward_layer(struct shunt *e, struct shunt_batch *b, enum shunt_lane lane,
                        uint32_t layer, struct shunt_error *err);
/* Logits of `count` rows of a batch (indices in rows), into out[i]. Clobbers the normed rows. */
void shunt_forward_logits(struct shunt *e, const struct shunt_batch *b, const uint32_t *rows,
                          float *const *out, uint32_t count);

#endif
