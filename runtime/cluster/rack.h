/* SPDX-License-Identifier: Apache-2.0
 *
 * Membership: how nodes find each other, agree that they belong together, and notice that one is
 * gone. Every pair of nodes has two connections: a data stream, handed to the transport, and a
 * control stream that stays here. Between machines both sides first show in TLS that they belong to
 * the rack (runtime/base/tls.h); without credentials shunt talks to loopback addresses only. Before
 * anything else travels both sides show a hello: version, rank, the rack's nodes, model fingerprint
 * (hello.h). A node that does not fit is refused, and whoever refuses it names both sides' values.
 *
 * After shunt_rack_start one control thread owns the control streams. It sends and expects signs of
 * life (liveness.h), carries the messages of planning.h, and says once when the rack has ended: a
 * peer's stream closed without goodbye, a peer silent for dead_after_ns, a peer that reports a
 * failure. It does nothing else, and takes a higher priority than compute where it may.
 */
#ifndef SHUNT_CLUSTER_RACK_H
#define SHUNT_CLUSTER_RACK_H

#include "runtime/base/patience.h"
#include "runtime/base/tls.h"
#include "transport/transport.h"

struct shunt_rack_config {
    uint32_t rank;
    uint32_t node_count;
    const char *const *addresses; /* [node_count] "host:port"; unused for one node. NULL for others
                                     than rank 0: a rendezvous, in which rank 0 tells them */
    int listen_fd;                /* or -1 */
    struct shunt_credentials credentials;
    bool encrypt; /* rows too, which travel over TCP then */
    bool serve_only;
    int64_t join_timeout_ns;
    const int *cancel_fd; /* joining gives up when it is readable; or NULL */
    void (*listening)(void *ctx); /* by who joins, when the others can reach this node at the
                                     address it was given; or NULL */
    void *listening_ctx;
    int64_t dead_after_ns;

    const char *model_name;
    uint8_t fingerprint[16];
    uint32_t kernel_levels; /* bit i: this node can and may use level i */
    uint32_t transports;    /* bit i: the same of enum shunt_transport_kind */
    uint32_t wire_format;   /* of rows; the same on every node */
    uint32_t rows_max;      /* rows of hidden state this node ever dispatches at once */

    uint32_t message_max; /* bytes of the largest control message */
    struct shunt_notify notify;
};

/* What a node said of itself. */
struct shunt_rack_node {
    uint32_t rows_max;
    uint32_t kernel_levels;
    bool serve_only;
    char label[96]; /* "rank 2 (127.0.0.1:7172)" */
};

/* Called on the control thread; must not block. */
struct shunt_rack_callbacks {
    void *ctx;
    /* The rack has ended. Once. */
    void (*down)(void *ctx, uint32_t rank, const struct shunt_error *why);
    /* A control message of a peer, type >= SHUNT_RACK_MESSAGE_FIRST. */
    void (*message)(void *ctx, uint32_t rank, uint32_t type, const void *data, uint32_t bytes);
    /* Every 100 ms or so. */
    void (*tick)(void *ctx);
};

#define SHUNT_RACK_MESSAGE_FIRST 64u

/* Rows of hidden state in one message, so that a hello cannot ask for all of a node's memory. */
#define SHUNT_ROWS_MAX 4096u

struct shunt_rack;

/* Memory of a rack's queues of control messages, of at most `message_max` bytes each. */
uint64_t shunt_rack_buffer_bytes(uint32_t node_count, uint32_t message_max);

/* Finds the peers and compares hellos. Blocks, at most join_timeout_ns. A rack of one node opens no
 * socket. cfg->listen_fd is closed in any case. */
int shunt_rack_join(struct shunt_rack **rack, const struct shunt_rack_config *cfg,
                    struct shunt_error *err);

/* The best that all nodes may use; of more than one node. */
enum shunt_transport_kind shunt_rack_transport(const struct shunt_rack *rack);

/* [node_count], this node included. */
const struct shunt_rack_node *shunt_rack_nodes(const struct shunt_rack *rack);

/* Gives the data streams away: streams[node_count], none at this node's rank; in TLS where
 * rows are to be encrypted, or where there are credentials and the transport's words are secret. */
void shunt_rack_take_streams(struct shunt_rack *rack, struct shunt_stream *streams);

/* Starts the control thread. */
int shunt_rack_start(struct shunt_rack *rack, const struct shunt_rack_callbacks *callbacks,
                     struct shunt_error *err);

/* Says that this node is ready and waits until all are. Return: 0, -ETIMEDOUT naming who is not, or
 * why the rack has ended. */
int shunt_rack_wait_ready(struct shunt_rack *rack, const struct shunt_patience *patience,
                          struct shunt_error *err);

/* Queues a message to a peer; any thread. Return: 0, or -EAGAIN when the peer has not taken the
 * earlier ones: try again later. */
int shunt_rack_send(struct shunt_rack *rack, uint32_t rank, uint32_t type, const void *data,
                    uint32_t bytes);

/* 0 while the rack lives; else the code of what ended it. Any thread, no lock. */
int shunt_rack_down(const struct shunt_rack *rack);

/* Datagrams that came and were no sign of life of a peer. Any thread. */
uint64_t shunt_rack_ignored(const struct shunt_rack *rack);

/* What ended it. Return: its code, 0 while the rack lives. */
int shunt_rack_why(struct shunt_rack *rack, struct shunt_error *why);

/* Every node has agreed to leave: who goes from now on is not missed. Any thread. */
void shunt_rack_end(struct shunt_rack *rack);

/* Ends the rack because of this node's own failure, and tells the others. Any thread. */
void shunt_rack_fail(struct shunt_rack *rack, const struct shunt_error *why);

/* The data stream of a peer has closed. The control thread knows the reason in a moment, better
 * than the stream does (a goodbye, a failure the peer reported, its death): waits for it, and ends
 * the rack with `why` when nothing comes. */
void shunt_rack_peer_lost(struct shunt_rack *rack, uint32_t rank, const struct shunt_error *why);

/* Says goodbye to all and stops the control thread. `orderly`: every node has agreed to leave, so
 * that nobody takes it for a failure. Waits a moment for the goodbye to go out. */
void shunt_rack_leave(struct shunt_rack *rack, bool orderly);

/* NULL is allowed; leaves (not orderly) if that has not happened. */
void shunt_rack_close(struct shunt_rack *rack);

#endif
