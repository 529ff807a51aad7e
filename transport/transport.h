/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport moves bytes into peers' memory, one-sided: a put names an offset of the peer's
 * inbox, and an immediate of 32 bits tells the peer that the bytes are there. Where they are, and
 * how many, a NIC does not say: the peers' protocol knows. One of shunt's three operation tables.
 *
 *   footprint says what open will allocate
 *   open      takes a connected stream per peer and this node's inbox; the peers open as well, and
 * some backends wait for them
 *   put       posts bytes to [offset, offset + bytes) of the peer's inbox, then the immediate;
 * never blocks poll      moves whatever can be moved and hands out completions: SENT, ARRIVED, LOST
 *   prepare   lists the descriptors a waiting thread sleeps on
 *   close     gives everything back
 *
 * Contract
 * - Order: puts to one peer arrive in the order posted. When ARRIVED is handed out, the put's bytes
 * are visible.
 * - The source of a put belongs to the transport until its SENT, in posting order per peer. At most
 *   SHUNT_TRANSPORT_DEPTH puts per peer are open; one more returns -EAGAIN and changes nothing.
 * - Nobody stops a peer from overwriting its area: what lies in an inbox stays intact because the
 * peers' protocol (runtime/engine/exchange.h) does not put there again before it has been read.
 * - A put beyond the peer's inbox, or of bytes outside the memory named at open, is -EINVAL here;
 * one that a peer sends beyond ours ends that peer with LOST.
 * - A lost peer is said once, with the reason; puts to it then return -EPIPE. Nothing is printed
 * and nothing blocks.
 * - One thread calls put, poll and prepare. No allocation after open.
 */
#ifndef SHUNT_TRANSPORT_TRANSPORT_H
#define SHUNT_TRANSPORT_TRANSPORT_H

#include <poll.h>

#include "runtime/base/error.h"
#include "runtime/base/limits.h"
#include "runtime/base/patience.h"

#define SHUNT_TRANSPORT_DEPTH 8u

struct shunt_transport;

/* Memory that puts read from; backends that register memory do so when they open. */
struct shunt_memory {
    void *base;
    size_t bytes;
};

struct shunt_transport_config {
    uint32_t rank;
    uint32_t node_count;
    const int *peer_fds;  /* node_count connected stream sockets; -1 at rank. Owned by the transport
                             from open  on, also when open fails */
    unsigned char *inbox; /* registered for remote writes, nothing else is */
    uint64_t inbox_bytes;
    const uint64_t *peer_inbox_bytes; /* node_count sizes, for the check of offsets */
    const struct shunt_memory *memory;
    uint32_t memory_count;
    const struct shunt_patience *patience; /* for what open has to say to the peers */
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
    const char *reason; /* LOST: static text */
};

struct shunt_transport_counters {
    uint64_t puts_sent, puts_received;
    uint64_t bytes_sent, bytes_received; /* payload */
};

struct shunt_transport_ops {
    const char *name;
    /* Bytes, in a rack of so many nodes. */
    uint64_t (*footprint)(uint32_t node_count);
    int (*open)(struct shunt_transport **t, const struct shunt_transport_config *cfg,
                struct shunt_error *err);
    /* Return: 0, -EAGAIN, -EINVAL, -EPIPE. bytes may be 0. */
    int (*put)(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
               uint64_t off, uint32_t imm);
    /* Return: completions written, at most `max`. */
    uint32_t (*poll)(struct shunt_transport *t, struct shunt_completion *out, uint32_t max);
    /* Writes at most `max` entries to sleep on, with the events that would let poll go on. Return:
     * their number. */
    uint32_t (*prepare)(struct shunt_transport *t, struct pollfd *fds, uint32_t max);
    const struct shunt_transport_counters *(*counters)(const struct shunt_transport *t);
    /* NULL is allowed. Unsent puts are dropped. */
    void (*close)(struct shunt_transport *t);
};

extern const struct shunt_transport_ops shunt_transport_tcp;
extern const struct shunt_transport_ops
    shunt_transport_verbs; /* where the build has SHUNT_HAVE_VERBS */

#endif
