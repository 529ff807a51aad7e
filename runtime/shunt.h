/* SPDX-License-Identifier: Apache-2.0
 *
 * shunt: Mixture-of-Experts inference on a rack of servers whose memory does not hold the model.
 *
 * A `shunt_model` is an opened model file: its header, its tokenizer, the place of every tensor. It
 * holds no weights. A `shunt` is an engine: one node of a rack (a rack may have a single node). Its
 * own thread drives the steps of the rack; the program submits sequences and polls events:
 *
 *     struct shunt_error err;
 *     shunt_model *model;
 *     shunt *engine;
 *     struct shunt_config cfg;
 *
 *     shunt_config_init(&cfg);
 *     if (shunt_model_open(&model, path, &err) || shunt_open(&engine, model, &cfg, &err))
 *         ...                                     err.text says what failed and what to do
 *     shunt_submit(engine, &request, &id, &err);
 *     while (shunt_poll(engine, 0, &event, timeout_ns, &err) > 0)
 *         ...                                     until event.type is SHUNT_EVENT_END
 *     shunt_close(engine, timeout_ns);
 *     shunt_model_close(model);
 *
 * Rules that hold for every function
 * - Return: 0 or a count on success, a negative errno value on failure; outputs are written only on
 * success. Where a function takes `err` it may be NULL; on failure it is filled with one sentence
 * that names the file, offset, peer or option and the remedy.
 * - Nothing prints, exits, aborts, installs a signal handler, reads the environment or keeps global
 * state. Several engines may live in one process. A write to a lost peer raises no SIGPIPE.
 * - Pointers that go in are read during the call only, unless the field says otherwise. Pointers
 * that come out belong to the object they came from.
 * - Threads: a `shunt_model` may be used by many threads at once. For one `shunt`, shunt_submit,
 * shunt_cancel and shunt_get_stats may be called from any thread; shunt_poll from one thread at a
 * time; shunt_close last and alone.
 * - A struct whose first member is `size` may grow: set it to sizeof before the call (the _init
 * functions do).
 */
#ifndef SHUNT_H
#define SHUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shunt_version.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SHUNT_API __attribute__((visibility("default")))
#else
#define SHUNT_API
#endif

/* ------------------------------------------------------------------------------------------------
 * errors, version */

struct shunt_error {
    int code;       /* negative errno value */
    char text[508]; /* NUL-terminated, no newline; cut with "..." when longer */
};

/* The library's version as "major.minor.patch". Never blocks; the string is static. */
SHUNT_API const char *shunt_version(void);

/* ------------------------------------------------------------------------------------------------
 * model file */

typedef struct shunt_model shunt_model;

/* Opens a GGUF v3 file and reads its header (metadata, tensor table, tokenizer), and of the weights
 * samples, for the fingerprint. Everything in the file is checked against the file's size. Blocks
 * on the drive, and without a deadline: a drive or a file server that does not answer keeps the
 * caller waiting. Return: 0; -ENOENT, -EACCES and the like; -EBADMSG for a file that is cut or
 * contradicts itself; -ENOTSUP for an architecture, a weight type or a scaling that this version
 * does not compute (the text names it). */
SHUNT_API int shunt_model_open(shunt_model **model, const char *path, struct shunt_error *err);

/* Frees the model; NULL is allowed. Every engine opened on it must be closed before. */
SHUNT_API void shunt_model_close(shunt_model *model);

struct shunt_model_info {
    size_t size;              /* in: sizeof(struct shunt_model_info) */
    const char *path;         /* as given to shunt_model_open */
    const char *architecture; /* GGUF's general.architecture */
    const char *name;         /* GGUF's general.name, or "" */
    uint32_t layer_count;
    uint32_t hidden; /* floats in a row of hidden state */
    uint32_t head_count;
    uint32_t kv_head_count;
    uint32_t head_dim;
    uint32_t expert_count;      /* routed experts per layer */
    uint32_t expert_used_count; /* experts per token, k */
    uint32_t expert_ff;         /* intermediate size of one expert */
    uint32_t vocab_count;
    uint32_t context_max; /* positions the model was trained for */
    uint32_t tensor_count;
    uint64_t file_bytes;
    uint64_t dense_bytes;      /* weights that every node keeps in memory */
    uint64_t expert_bytes;     /* all expert weights together */
    uint64_t expert_bytes_max; /* the largest single expert */
    uint64_t parameter_count;
    int32_t bos_id, eos_id; /* -1: the model has none */
    const char
        *tokenizer; /* "gpt2/qwen2" and the like; or, in brackets, why text cannot be tokenized */
    uint8_t fingerprint[16]; /* of header, size and a sample of each tensor; equal on every node of
                                a rack */
};
SHUNT_API int shunt_model_get_info(const shunt_model *model, struct shunt_model_info *info);

struct shunt_tensor_info {
    size_t size; /* in: sizeof(struct shunt_tensor_info) */
    const char *name;
    const char *type; /* "F32", "Q4_K", ... */
    uint32_t dim_count;
    uint64_t dims[4]; /* GGUF order: the contiguous dimension first */
    uint64_t off;     /* bytes from the start of the file */
    uint64_t bytes;
};
/* index in [0, tensor_count). Return: 0 or -ERANGE. */
SHUNT_API int shunt_model_get_tensor(const shunt_model *model, uint32_t index,
                                     struct shunt_tensor_info *info);

/* An extent: bytes of a file on a drive. */
struct shunt_extent {
    uint64_t off;
    uint64_t len;
};
/* The extents of one expert in the model file: gate, up, down. Return: 0 or -ERANGE. */
SHUNT_API int shunt_model_get_expert(const shunt_model *model, uint32_t layer, uint32_t expert,
                                     struct shunt_extent extents[3]);

/* ------------------------------------------------------------------------------------------------
 * text and ids */

enum {
    /* Control tokens: "<|im_end|>" in the text becomes that one token; without it, plain text.
     * Tokens that a model's author has added as text ("<think>") always become one token. */
    SHUNT_TOKENIZE_SPECIAL = 1u << 0,
    SHUNT_TOKENIZE_BOS = 1u << 1, /* put the model's BOS id first where the model asks for one */
};

/* Turns UTF-8 text into ids. Writes at most `id_max` ids.
 * Return: the number of ids the text has (it may exceed id_max: call again with more room); -EILSEQ
 * for text that is no UTF-8 (err names the offset); -ENOTSUP when the file's tokenizer is of an
 * unknown kind; -EFBIG for a text beyond 1 GiB; -ENOMEM. Allocates. */
SHUNT_API int64_t shunt_tokenize(const shunt_model *model, const char *text, size_t text_len,
                                 uint32_t flags, int32_t *ids, size_t id_max,
                                 struct shunt_error *err);

/* Turns one id into bytes: the token's piece of UTF-8, which may begin or end inside a character.
 * Control tokens (and ids the vocabulary only reserves) give no bytes unless `special`. Writes at
 * most `text_max` bytes, no NUL.
 * Return: the number of bytes the token has; -ERANGE for an id outside the vocabulary; -ENOTSUP as
 * above. */
SHUNT_API int64_t shunt_detokenize(const shunt_model *model, int32_t id, bool special, char *text,
                                   size_t text_max);

/* ------------------------------------------------------------------------------------------------
 * configuration */

/* RDMA links. Where a member is 0 or NULL the library or the device chooses. */
struct shunt_link_options {
    const char *device;   /* "mlx5_0", or one per rail: "mlx5_0:1,mlx5_1:1", at most 4, as many on
                             every node; NULL: the one that leads to the peers' addresses */
    uint32_t port;        /* of devices named without one; from 1 on */
    uint32_t gid_index;   /* 1 + index of a RoCE v2 GID */
    uint32_t mtu;         /* bytes of a packet: 256, 512, 1024, 2048 or 4096 */
    uint32_t tclass;      /* 1 + traffic class, in [0, 255] */
    uint32_t sl;          /* 1 + service level, in [0, 7] */
    uint32_t qp_timeout;  /* an acknowledgement is awaited for 4.096 us * 2^qp_timeout, in [1, 31];
                             0: so long that all retries together outlast dead_after_ns */
    uint32_t retry_count; /* 1 + retries, in [0, 7] */
};

struct shunt_config {
    size_t size; /* sizeof(struct shunt_config) */

    /* Rack. One node: leave as initialised. */
    uint32_t rank;           /* in [0, node_count) */
    uint32_t node_count;     /* in [1, 64] */
    const char *const *rack; /* node_count strings "host:port", the same on every node; or NULL for
                                every node but rank 0, on every node: each listens where it reaches
                                rank 0 from, and rank 0 tells all where the others are */
    int listen_fd; /* a listening TCP socket to use instead of binding rack[rank]; the engine then
                      owns it; -1 */
    /* Who may be a node of the rack: whoever has the key, or a certificate of the authority.
     * Without either this node talks to loopback addresses only. Files that others than their owner
     * (this user or root) can read or write are refused where they hold a secret. All NULL by
     * default. */
    const char *key_file;      /* hexadecimal digits, 64 to 128: openssl rand -hex 32 */
    const char *cert_file;     /* this node's certificate and what leads to the authority, PEM */
    const char *cert_key_file; /* its private key, PEM, without a passphrase */
    const char *ca_file;       /* the authority that has signed every node's, PEM */
    bool encrypt;    /* rows travel in TLS as well, over TCP; they travel in clear otherwise */
    bool serve_only; /* this node submits nothing and leaves when all nodes that do have left */
    const char *transport; /* "auto" (the best that every node has); "tcp"; "shm" (nodes of one
                              host); "verbs" (RDMA) */
    struct shunt_link_options link;
    int64_t busy_poll_ns; /* a wait for a peer polls so long before it sleeps. Default 20 us */
    int cancel_fd;        /* shunt_open gives up (-ECANCELED) when this becomes readable; or -1 */
    int64_t join_timeout_ns; /* for all nodes to be there and, each, to have loaded its weights.
                                Default 60 s, 30 min */
    int64_t ready_timeout_ns;
    int64_t step_timeout_ns; /* for a peer's message within a step. Default 120 s */
    int64_t dead_after_ns;   /* silence of a peer after which it is dead, at least 0.2 s.
                                Default 0.5 s */

    /* Memory. */
    uint32_t local_nodes;  /* nodes that share this machine, this one counted, in [0, 64]; each has
                              its part of what memory_bytes 0 and threads 0 stand for. 0 or 1: it
                              has the machine for itself */
    uint64_t memory_bytes; /* resident memory of the process, what it has now included; 0: 85 % of
                              what this machine, or this process's control group, has free */
    uint32_t slot_count;   /* experts held in memory, >= 2; 0: see slot_percent */
    uint32_t slot_percent; /* in [0, 100] of the model's experts, rounded up; 0: as many as
                              memory_bytes allows */
    uint32_t
        context; /* positions per sequence, prompt included. Default 2048, at most the model's */
    uint32_t sequences_max; /* sequences alive at a time, in [1, 256]. Default 4 */
    uint32_t chunk; /* prompt positions that go through a layer together; 0: chosen by memory */

    /* Compute. */
    uint32_t threads;    /* 0: the processors this process may run on */
    const char *kernels; /* "auto" (the best that every node has), "ref", "avx2" */

    /* Storage. */
    const char *io;      /* "auto" (io_uring, else pread), "uring", "pread" */
    const char *io_mode; /* "auto" (O_DIRECT, else buffered), "direct", "buffered" */
    bool prefetch;       /* read the next layer's probable experts ahead. Default true */

    /* Placement. */
    const char *placement;    /* "prism" (by activation), "spread" (fixed, even), "off" (none) */
    int64_t plan_interval_ns; /* between two plans. Default 10 s */
};

/* Fills the defaults. */
SHUNT_API void shunt_config_init(struct shunt_config *cfg);

struct shunt_footprint {
    size_t size;            /* in: sizeof(struct shunt_footprint) */
    uint64_t process_bytes; /* resident before the engine opens, and an allowance for its threads */
    uint64_t dense_bytes;   /* non-expert weights */
    uint64_t kv_bytes;      /* context x sequences_max */
    uint64_t work_bytes;    /* activations, message buffers, tables */
    uint64_t slot_bytes;    /* all slots together */
    uint64_t total_bytes;
    uint32_t slot_count;
    uint32_t chunk; /* the chunk that was chosen */
};
/* What shunt_open would take with this configuration, without opening anything (peers are assumed
 * to use the same chunk and sequences_max). Return: 0; -EINVAL or -ENOMEM with the reason when it
 * would be refused. */
SHUNT_API int shunt_get_footprint(const shunt_model *model, const struct shunt_config *cfg,
                                  struct shunt_footprint *footprint, struct shunt_error *err);

/* ------------------------------------------------------------------------------------------------
 * engine */

typedef struct shunt shunt;

/* Checks the configuration, joins the rack, loads the non-expert weights and starts the engine's
 * threads. Blocks, at most join_timeout_ns + ready_timeout_ns. On failure nothing is left behind
 * (cfg->listen_fd is closed). `model` must outlive the engine; `cfg` need not. Return: 0; -EINVAL
 * for an option, -ENOMEM when it does not fit memory_bytes, -EADDRINUSE, -ETIMEDOUT for a peer that
 * does not come, -EPROTO for a peer with another model, version or rack, -ECONNREFUSED when a peer
 * refuses this node, -EACCES for a key that others can read, an address of another machine without
 * a key, or a peer whose certificate does not convince. */
SHUNT_API int shunt_open(shunt **engine, const shunt_model *model, const struct shunt_config *cfg,
                         struct shunt_error *err);

/* Says that this node wants to leave, and returns. It takes no more sequences, finishes those it
 * has, and goes on serving its peers' experts until every node that submits wants to leave as well;
 * then SHUNT_EVENT_RACK_DOWN comes with error 0. For a program that wants to go on polling until
 * then; shunt_close alone does the same, blocking. */
SHUNT_API void shunt_leave(shunt *engine);

/* Cancels what still runs, leaves the rack and frees the engine; NULL is allowed. Waits until every
 * node that submits has left as well, but no longer than `timeout_ns` (negative: no limit); then it
 * leaves without them. A drive that does not answer is given 5 s more, after which the memory it
 * may still write into stays mapped. Return: 0; -ETIMEDOUT when it left early; the code of the
 * failure that had ended the rack. The engine is freed in each case. */
SHUNT_API int shunt_close(shunt *engine, int64_t timeout_ns);

struct shunt_request {
    size_t size;        /* sizeof(struct shunt_request) */
    const int32_t *ids; /* prompt, >= 1 id, all in [0, vocab_count) */
    uint32_t id_count;  /* id_count + token_max <= context */
    uint32_t token_max; /* tokens to generate at most; 0: only the prompt is computed */
    float temperature;  /* 0: the most probable id, the lowest one of equals */
    uint32_t top_k;     /* 0: all */
    float top_p;        /* in (0, 1]; 1: all */
    uint64_t seed;
    bool ignore_eos;
    const char *const
        *stop; /* the sequence ends before the first of these strings appears in the output */
    uint32_t stop_count; /* at most 8, each at most 128 bytes */
    float *logits; /* NULL, or room for id_count rows of vocab_count floats: the logits at each
                      prompt position, written by the engine and valid at SHUNT_EVENT_END. The
                      memory stays the caller's and must live until then. */
};
SHUNT_API void shunt_request_init(struct shunt_request *request);

/* Hands a sequence to the engine and returns; never blocks. `id` is unique in the life of the
 * engine. Return: 0; -EAGAIN when sequences_max are alive (an alive sequence ends with its
 * SHUNT_EVENT_END, once polled); -EINVAL; -ERANGE for an id outside the vocabulary; -EPIPE when the
 * rack is down. */
SHUNT_API int shunt_submit(shunt *engine, const struct shunt_request *request, uint64_t *id,
                           struct shunt_error *err);

/* Asks for the end of a sequence; its END event follows. Return: 0, or -ENOENT when no such
 * sequence is alive. */
SHUNT_API int shunt_cancel(shunt *engine, uint64_t id);

enum shunt_event_type {
    SHUNT_EVENT_TOKEN = 1, /* one more token: token, text */
    SHUNT_EVENT_END, /* the sequence is over: reason, text (what was held back), prompt_tokens ...
                        digest */
    SHUNT_EVENT_NOTICE,    /* something to know that is no failure (a slower path was taken): text.
                              Said once each. */
    SHUNT_EVENT_RACK_DOWN, /* the rack has ended: error (0: in order, every node has left), rank,
                              text. Every sequence gets its END as well. */
};

enum shunt_end_reason {
    SHUNT_END_EOS = 1,
    SHUNT_END_LENGTH, /* token_max reached */
    SHUNT_END_STOP,   /* a stop string */
    SHUNT_END_CANCELLED,
    SHUNT_END_ERROR, /* the rack is down */
};

struct shunt_event {
    size_t size; /* in: sizeof(struct shunt_event) */
    enum shunt_event_type type;
    uint64_t id;   /* sequence; 0 where the event belongs to none */
    int32_t token; /* TOKEN: the id generated */
    uint32_t rank; /* RACK_DOWN: the node concerned */
    int error;     /* RACK_DOWN, END with SHUNT_END_ERROR: negative errno value */
    enum shunt_end_reason reason;
    const char *text; /* whole UTF-8 characters, NUL-terminated; valid until the next shunt_poll on
                         this engine */
    size_t text_len;
    uint32_t prompt_tokens; /* END: ids of the prompt */
    uint32_t tokens;        /* END: ids generated, an EOS that ended it not counted */
    int64_t ttft_ns;        /* END: from submit to the first token; 0 when there was none */
    int64_t decode_ns;      /* END: from the first token to the last */
    uint64_t digest; /* END: of the bits of every logits row a token was chosen from; equal digests,
                        equal bits */
};

/* Takes the next event; waits for one at most `timeout_ns` (0: does not wait; negative: no limit).
 * id: 0 for any event of the engine, or a sequence: then only its events, and the others stay where
 * they are. A sequence whose events are left lying pauses; the others go on.
 * Return: 1 with an event, 0 when none came in time; -EPIPE (id 0) once the rack is down and every
 * event has been taken; -ENOENT when there is no such sequence, or its END has been taken. */
SHUNT_API int shunt_poll(shunt *engine, uint64_t id, struct shunt_event *event, int64_t timeout_ns,
                         struct shunt_error *err);

/* A descriptor for poll and its kin only: it is readable when events have come since shunt_poll
 * last returned 0. It belongs to the engine. */
SHUNT_API int shunt_get_fd(const shunt *engine);

struct shunt_stats {
    size_t size; /* in: sizeof(struct shunt_stats) */
    uint32_t rank, node_count;
    uint32_t slot_count, slots_used;
    uint64_t steps;        /* decode passes and prefill layers together */
    uint64_t decode_steps; /* decode passes of the rack */
    uint64_t prompt_tokens, tokens;
    /* Expert calls of this node's tokens: one for each (token, expert). */
    uint64_t calls_local; /* the expert was resident on this node */
    uint64_t calls_peer;  /* the expert was resident on the peer that computed it */
    uint64_t calls_read;  /* the rows waited for a read, here or on a peer */
    /* Bytes this node asked of its drive, rounding to the drive's alignment included. */
    uint64_t bytes_startup;     /* header, samples, non-expert weights */
    uint64_t bytes_demand;      /* a token was waiting */
    uint64_t bytes_speculative; /* posted one layer ahead */
    uint64_t bytes_placement;   /* background loads of the placement */
    /* Experts read. */
    uint64_t reads_demand, reads_speculative, reads_placement;
    uint64_t speculative_useful;  /* complete when the first row needed it */
    uint64_t speculative_late;    /* under way when the first row needed it */
    uint64_t speculative_wasted;  /* dropped before any row needed it */
    uint64_t speculative_pending; /* held in memory, not needed so far */
    uint64_t rows_sent,
        rows_received; /* hidden-state rows to and from peers, both directions of a layer */
    uint64_t bytes_sent, bytes_received;
    int64_t wait_read_ns; /* engine thread waiting for the drive, and for peers */
    int64_t wait_peer_ns;
    uint64_t placement_epoch;             /* placements that became active */
    uint32_t placed_count;                /* experts the placement wants on this node */
    uint64_t memory_bytes;                /* what the engine has mapped */
    uint64_t memory_limit_bytes;          /* memory_bytes, or what was chosen for it */
    const char *kernels, *io, *transport; /* what was chosen; static strings */
    bool io_direct;                       /* O_DIRECT in use */
    uint32_t threads, chunk;
};
/* A snapshot; may be called at any time between open and close. */
SHUNT_API int shunt_get_stats(const shunt *engine, struct shunt_stats *stats);

/* ------------------------------------------------------------------------------------------------
 * doctor */

enum shunt_check_status {
    SHUNT_CHECK_OK = 0,
    SHUNT_CHECK_LIMITED, /* works, but slower or less: remedy says what would help */
    SHUNT_CHECK_MISSING, /* not available on this machine or in this build */
    SHUNT_CHECK_FAILED,  /* could not be looked at: detail says why */
};

struct shunt_check {
    const char *name; /* static, for instance "io_uring" */
    enum shunt_check_status status;
    char detail[256]; /* what was found */
    char remedy[256]; /* the command or setting that repairs it; "" when there is nothing to repair
                       */
};

/* Looks at what this machine gives the library: io_uring, O_DIRECT and its alignment on the drive
 * of `path` (a file or folder; NULL: the current folder), locked memory, huge pages, processor,
 * TLS, RDMA devices, GPU. Changes nothing. Return: the number of checks there are; at most
 * `check_max` are written. */
SHUNT_API int shunt_doctor(const char *path, struct shunt_check *checks, uint32_t check_max);

#ifdef __cplusplus
}
#endif

#endif
