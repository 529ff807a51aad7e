/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport moves bytes into peers' memory, one-sided: a put names an offset of the peer's
 * inbox, and an immediate of 32 bits tells the peer that the bytes are there. Where they are, and
 * how many, a NIC does not say: the peers' protocol knows. One of shunt's three operation tables.
 *
 * - footprint: what open will allocate
 * - open: takes a connected stream per peer, this node's inbox and the memory that puts read from;
 *   the peers open as well, and some backends wait for them
 * - put: posts bytes to [offset, offset + bytes) of the peer's inbox, then the immediate; never
 *   blocks
 * - release: gives a peer credit for puts that have been read
 * - poll: moves whatever can be moved and hands out completions: SENT, ARRIVED, LOST
 * - prepare: lists the descriptors a waiting thread sleeps on
 * - close: gives everything back
 *
 * Contract
 * - Order: puts to one peer arrive in the order posted. When ARRIVED is handed out, the put's bytes
 *   are visible. Where two that are under way at once overlap, nobody says whose bytes stay.
 * - The source of a put belongs to the transport until its SENT, in posting order per peer. At most
 *   SHUNT_TRANSPORT_DEPTH puts per peer are open; one more returns -EAGAIN and changes nothing.
 * - Credit: of a peer's puts at most SHUNT_TRANSPORT_WINDOW are under way or ARRIVED and not
 *   released; those beyond wait at the sender and change nothing here. So a sender that lays its
 *   puts out in a ring of as many areas never overwrites one that has not been released.
 * - A put that is not SENT within put_timeout_ns ends its peer with LOST, -ETIMEDOUT.
 * - A put beyond the peer's inbox, or of bytes outside the memory named at open, is -EINVAL here;
 *   one that a peer sends beyond ours ends that peer with LOST.
 * - A lost peer is said once, with the reason; puts to it then return -EPIPE. Nothing is printed
 *   and nothing blocks.
 * - One thread calls put, release, poll and prepare. No allocation after open.
 */
#ifndef SHUNT_TRANSPORT_TRANSPORT_H
#define SHUNT_TRANSPORT_TRANSPORT_H

#include <poll.h>

#include "runtime/base/error.h"
#include "runtime/base/limits.h"
#include "runtime/base/notify.h"
#include "runtime/base/patience.h"
#include "runtime/base/stream.h"

#define SHUNT_TRANSPORT_DEPTH  8u
#define SHUNT_TRANSPORT_WINDOW 32u

struct shunt_transport;

enum shunt_region_kind {
    SHUNT_REGION_HOST,   /* this process's memory */
    SHUNT_REGION_SHARED, /* the same, and `fd` is a memfd that other processes can map */
    SHUNT_REGION_DMABUF, /* `fd` is a DMA-BUF; `base` its mapping, or where there is none the
                            address that puts name it by */
};

/* Memory that is registered when the transport opens and stays until it closes. */
struct shunt_region {
    enum shunt_region_kind kind;
    void *base; /* of an inbox: aligned to a page */
    uint64_t bytes;
    int fd;
    uint64_t fd_offset;
};

struct shunt_loopback_net; /* loopback.h */

struct shunt_transport_config {
    uint32_t rank;
    uint32_t node_count;
    const struct shunt_stream *streams; /* [node_count] to the peers; none at rank. Owned by the
                                           transport from open on, also when open fails */
    struct shunt_region inbox;          /* open to the peers' writes; nothing else is */
    const uint64_t *peer_inbox_bytes;   /* node_count sizes, for the check of offsets */
    const struct shunt_region *memory;  /* what puts read from */
    uint32_t memory_count;
    int64_t put_timeout_ns;                /* 0: none */
    const struct shunt_link_options *link; /* or NULL: all defaults */
    int64_t dead_after_ns; /* a silence that is to be survived; 0: the default of --dead-after */
    const struct shunt_patience *patience; /* for what open has to say to the peers */
    struct shunt_notify notify;            /* of a slower path that was taken */
    struct shunt_loopback_net *loopback;   /* what the loopback is opened on; else unused */
};

enum shunt_transport_event {
    SHUNT_TRANSPORT_SENT = 1,
    SHUNT_TRANSPORT_ARRIVED,
    SHUNT_TRANSPORT_LOST
};

struct shunt_completion {
    enum shunt_transport_event event;
    uint32_t peer;
    uint32_t imm; /* ARRIVED: the sender's; SENT: of the put that is done */
    int error;    /* LOST: negative errno value; -ECONNRESET when the peer closed the connection */
    const char *reason; /* LOST: text that stays until close */
};

struct shunt_transport_counters {
    uint64_t puts_sent, puts_received; /* taken by put; ARRIVED */
    uint64_t bytes_sent;               /* payload; how much was received, a NIC does not say */
    uint64_t writes;                   /* work requests or the like that puts took */
    uint64_t signalled;                /* completions that they asked for */
    bool emulated; /* an end of some link is RDMA in software: no figure of hardware */
};

struct shunt_transport_ops {
    const char *name;
    const char *absent;      /* why this build does not have it; NULL: it has */
    bool needs_shared_inbox; /* of SHUNT_REGION_SHARED */
    bool stream_is_secret;   /* what it says on its streams opens this node's memory */
    /* Bytes, in a rack of so many nodes. */
    uint64_t (*footprint)(uint32_t node_count);
    int (*open)(struct shunt_transport **t, const struct shunt_transport_config *cfg,
                struct shunt_error *err);
    /* Return: 0, -EAGAIN, -EINVAL, -EPIPE. bytes may be 0. */
    int (*put)(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
               uint64_t off, uint32_t imm);
    /* The `count` oldest puts of the peer that have ARRIVED and are not yet released. */
    void (*release)(struct shunt_transport *t, uint32_t peer, uint32_t count);
    /* Return: completions written, at most `max`. */
    uint32_t (*poll)(struct shunt_transport *t, struct shunt_completion *out, uint32_t max);
    /* Writes at most `max` entries to sleep on, with the events that would let poll go on. Return:
     * their number. */
    uint32_t (*prepare)(struct shunt_transport *t, struct pollfd *fds, uint32_t max);
    const struct shunt_transport_counters *(*counters)(const struct shunt_transport *t);
    /* NULL is allowed. Unsent puts are dropped. Return: false when a device may still read or write
     * the memory named at open: then nobody may give it back. */
    bool (*close)(struct shunt_transport *t);
};

/* The backends a rack can settle on: the last one that all of its nodes may use. Bits of a mask
 * that nodes tell each other, so numbers stay as they are. */
enum shunt_transport_kind {
    SHUNT_TRANSPORT_TCP,
    SHUNT_TRANSPORT_VERBS,
    SHUNT_TRANSPORT_SHM,
    SHUNT_TRANSPORT_KINDS
};

/* Return: also one that this build does not have, which says so; NULL for no kind. */
const struct shunt_transport_ops *shunt_transport_get(enum shunt_transport_kind kind);

/* "tcp, verbs", for a mask of kinds. */
void shunt_transport_names(uint32_t kinds, char *text, size_t bytes);

/* Leaves of a mask of kinds those that can put rows into TLS: what writes into memory by itself
 * writes in clear. `name` is what somebody has called them. Return: 0, or -EINVAL when none is
 * left.
 */
int shunt_transports_encrypted(uint32_t *kinds, const char *name, struct shunt_error *err);

/* Closes the streams of an open that fails before it has a place to keep them. */
void shunt_transport_drop_streams(const struct shunt_transport_config *cfg);

extern const struct shunt_transport_ops shunt_transport_tcp;
extern const struct shunt_transport_ops shunt_transport_shm;
extern const struct shunt_transport_ops shunt_transport_verbs;

#endif
