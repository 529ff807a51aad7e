/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the verbs transport share. A rail is one port of one device with its own
 * protection domain, completion queue and registrations; to each peer there is one reliable
 * connection (RC queue pair) per rail.
 *
 * - device.c: which ports, by rdma_cm's routes or by name
 * - memory.c: registration in blocks, the limit on locked memory, DMA-BUF
 * - connect.c: what queue pairs are told of each other over the peer's stream
 * - post.c: puts to work requests
 * - verbs.c: completions and the operation table
 */
#ifndef SHUNT_TRANSPORT_VERBS_IMPL_H
#define SHUNT_TRANSPORT_VERBS_IMPL_H

#include <infiniband/verbs.h>
#include <string.h>

#include "transport/transport.h"

#define VERBS_RAILS_MAX 4u
/* Registrations are no larger: several drivers and every GPU stop somewhere, and one large one is
 * slow to make. */
#define VERBS_BLOCK_BYTES      (1ull << 30)
#define VERBS_INBOX_BLOCKS_MAX 64u

/* Of each rail and peer. An immediate takes a receive; so does a word of credit, on rail 0.
 *
 * These receives are enough. The peer may have a window of puts that it has not been told are
 * released, and what put receives it used before that word is posted again before the word is (on
 * every rail: a put is released when it has come on all of its rails); so a window of receives
 * serves its puts. A word is said for every CREDIT_EVERY released: until the first of them is taken,
 * and its receive posted again, a window of puts cannot give more than CREDITS_MAX. */
#define VERBS_CREDIT_EVERY (SHUNT_TRANSPORT_WINDOW / 2)
#define VERBS_CREDITS_MAX  (SHUNT_TRANSPORT_WINDOW / VERBS_CREDIT_EVERY + 1)
#define VERBS_RECEIVES     (SHUNT_TRANSPORT_WINDOW + VERBS_CREDITS_MAX)
#define VERBS_SENDS        128u
#define VERBS_BATCH        32u /* writes of one put that are posted together */

/* Below this a put is not worth spreading over rails. */
#define VERBS_STRIPE_BYTES (64ull << 10)

struct verbs_block {
    unsigned char *base;
    uint64_t bytes;
    bool of_device; /* the processor may not be able to read it */
    struct ibv_mr *mrs[VERBS_RAILS_MAX];
};

struct verbs_rail {
    struct ibv_context *device;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    uint8_t port;
    uint32_t gid_index;
    union ibv_gid gid;
    enum ibv_mtu mtu;
    uint64_t write_max; /* bytes of one work request */
    bool software;      /* the device is emulated */
    char label[64];     /* "mlx5_0 port 1" */
};

/* What a queue pair is told of its partner; see connect.c for the whole word. */
struct verbs_word_rail {
    uint32_t qpn, psn, mtu;
    uint32_t software; /* 1: the device is emulated */
    uint8_t gid[16];
    uint32_t rkeys[VERBS_INBOX_BLOCKS_MAX];
};

struct verbs_word {
    uint32_t magic, version;
    uint32_t rail_count, block_count;
    uint64_t inbox, inbox_bytes;
    struct verbs_word_rail rails[VERBS_RAILS_MAX];
};

struct verbs_put {
    const unsigned char *src;
    uint64_t bytes, off;
    uint32_t imm;
    uint32_t pending; /* rails whose last write is not yet completed */
    bool striped;
    bool begun;          /* has credit, and may be posted */
    int64_t deadline_ns; /* 0: its time has not begun */
};

/* What remains to be posted of the put that comes next on a rail. */
struct verbs_share {
    uint64_t begin, end; /* of the put's bytes */
    bool open;
};

struct verbs_lane { /* of one peer on one rail */
    struct ibv_qp *qp;
    struct ibv_qp_ex *qpx; /* the same, where the device has the newer way of posting; or NULL */
    uint32_t inline_max;
    uint32_t sends;  /* work requests posted and not known to be done */
    uint32_t taken;  /* receives that came with a put, to be posted again */
    uint32_t posted; /* puts of the ring, oldest first, posted whole here */
    struct verbs_share share;
    uint32_t extra; /* rail > 0: immediates that came ahead of rail 0's */
};

struct verbs_coming {
    uint32_t imm;
    bool striped;
};

struct verbs_peer {
    struct shunt_stream stream; /* none: this node, or lost */
    uint64_t inbox_bytes;
    uint32_t state;
    struct verbs_lane lanes[VERBS_RAILS_MAX];
    struct verbs_word own, word;
    uint32_t told, heard; /* bytes of own sent, of word come */

    struct verbs_put puts[SHUNT_TRANSPORT_DEPTH]; /* oldest first */
    uint32_t first, count;
    uint32_t unreleased; /* puts posted that the peer has not said it released */

    struct verbs_coming coming[SHUNT_TRANSPORT_WINDOW]; /* came and not handed out, oldest first */
    uint32_t coming_first, coming_count;
    uint32_t arrived; /* its puts ARRIVED here and not released */
    uint32_t untold;  /* released here and not said */

    int lost_error;
    char lost_reason[224];
};

struct shunt_transport {
    uint32_t rank, node_count;
    unsigned char *inbox;
    uint64_t inbox_bytes;
    int64_t put_timeout_ns, dead_after_ns;
    struct verbs_peer *peers; /* [node_count] */

    struct verbs_rail rails[VERBS_RAILS_MAX];
    uint32_t rail_count;
    struct verbs_block inbox_blocks[VERBS_INBOX_BLOCKS_MAX];
    uint32_t inbox_block_count;
    struct verbs_block *memory; /* what puts read from */
    uint32_t memory_count;
    struct shunt_link_options link;
    struct shunt_notify notify;

    /* Sets of peers. */
    uint64_t waiting; /* with puts not posted whole */
    uint64_t ready;   /* with completions that may be ready to be handed out */
    uint64_t lost;    /* whose loss has not been handed out */
    uint32_t turn;    /* the peer that is handed out first */

    int epoll_fd; /* everything that may wake a sleeper */
    int ready_fd; /* readable while something became ready as it went to sleep */
    bool ready_told;
    int64_t looked_ns; /* 0: something may have happened */
    uint32_t polls;
    struct shunt_transport_counters counters;
};

/* wr_id: what has completed, for whom, and how many work requests of the send queue it ends. */
enum verbs_work { VERBS_PUT = 1, VERBS_PART, VERBS_CREDIT, VERBS_RECEIVE };

static inline uint64_t verbs_id(enum verbs_work work, uint32_t peer, uint32_t rail, uint32_t sends)
{
    return (uint64_t)work << 48 | (uint64_t)rail << 40 | (uint64_t)peer << 32 | sends;
}

/* Entries of a GID table that are looked at. */
#define VERBS_GIDS_MAX 512

static inline uint32_t verbs_mtu_bytes(enum ibv_mtu mtu)
{
    return 128u << mtu;
}

/* A GID that carries an IPv4 address is the one that racks route. */
static inline bool verbs_gid_has_ipv4(const union ibv_gid *gid)
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};

    return !memcmp(gid->raw, prefix, sizeof(prefix));
}

/* The peer is gone, with a reason as printf words it; said by the next poll. */
void verbs_lose(struct shunt_transport *t, uint32_t peer, int error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* device.c: fills t->rails but for what open_rail makes. `first` is the lowest peer. */
int verbs_open_rails(struct shunt_transport *t, uint32_t first, struct shunt_error *err);

/* memory.c */
uint32_t verbs_count_blocks(const struct shunt_transport_config *cfg); /* of cfg->memory */
int verbs_register(struct shunt_transport *t, const struct shunt_transport_config *cfg,
                   struct shunt_error *err);
/* Return: false when a device still holds some of the memory. */
bool verbs_deregister(struct shunt_transport *t);
/* The block in which bytes from `at` on lie, up to its end; NULL when they lie in none. */
static inline const struct verbs_block *verbs_find_block(const struct shunt_transport *t,
                                                         const unsigned char *at)
{
    for (uint32_t i = 0; i < t->memory_count; i++)
        if ((uintptr_t)at - (uintptr_t)t->memory[i].base < t->memory[i].bytes)
            return &t->memory[i];
    return NULL;
}

/* connect.c: makes the queue pairs, tells the peers, and waits for them. */
int verbs_connect(struct shunt_transport *t, const struct shunt_patience *patience,
                  struct shunt_error *err);

/* post.c */
void verbs_post_receive(struct shunt_transport *t, uint32_t peer, uint32_t rail);
/* Posts what may go. The newest put was not there before, and begins in the block. */
void verbs_post_new(struct shunt_transport *t, uint32_t peer, struct verbs_put *put,
                    const struct verbs_block *block);
void verbs_post_puts(struct shunt_transport *t, uint32_t peer);
/* Says what has been released, as far as the send queue has room, and posts the receives for it. */
void verbs_post_credit(struct shunt_transport *t, uint32_t peer);

#endif
