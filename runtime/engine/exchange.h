/* SPDX-License-Identifier: Apache-2.0
 *
 * The exchange: which message lies where, and when a buffer may be used again. It knows the
 * transport's one-sided puts on one side and the messages of wire.h on the other.
 *
 * Gathers (ANNOUNCE, COUNTS, DISPATCH) go from every node to every other and are numbered by one
 * counter, the tick, which advances alike on all nodes. Since a node begins tick t+1 only with all
 * messages of tick t in hand, no node is ever more than one tick ahead of another. So two areas per
 * sender, used in turn, are enough: a message of tick t+2 can only be sent after this node has sent
 * its own of t+1, that is after it is done with t. This is the credit of the exchange; none
 * travels.
 *
 * RESULTS go back within the tick of the DISPATCH they answer, to the place it named, and are read
 * before the next tick begins.
 *
 * Inbox of a node, the same layout computed by all:
 *     results   the node's own area, laid out by it anew for each DISPATCH
 *     gather    for each other node, two areas of the largest message it may send
 *
 * Engine thread only. No allocation after init.
 */
#ifndef SHUNT_ENGINE_EXCHANGE_H
#define SHUNT_ENGINE_EXCHANGE_H

#include "runtime/base/carve.h"
#include "runtime/cluster/rack.h"
#include "runtime/engine/wire.h"
#include "transport/transport.h"

struct shunt_exchange_config {
    uint32_t rank, node_count;
    struct shunt_wire_shape shape;
    uint32_t rows_max[SHUNT_NODES_MAX]; /* rows each node dispatches at most */
};

struct shunt_arrival {
    uint64_t tick;
    bool there;
};

struct shunt_exchange {
    struct shunt_exchange_config cfg;
    const struct shunt_transport_ops *ops;
    struct shunt_transport *transport;
    const struct shunt_rack_node *nodes; /* for messages */
    uint64_t tick;                       /* of the gather under way */

    struct shunt_region inbox;
    uint64_t results_bytes;                     /* the inbox's first part */
    unsigned char *gather_out[SHUNT_NODES_MAX]; /* to each peer, two areas used in turn */
    unsigned char *results_out[SHUNT_NODES_MAX];
    uint64_t gather_out_bytes; /* one area */

    struct shunt_arrival gathered[SHUNT_NODES_MAX][2]; /* by tick % 2 */
    struct shunt_arrival results[SHUNT_NODES_MAX];
    uint32_t open_gathers[SHUNT_NODES_MAX][2]; /* puts not yet SENT, by area */
    uint32_t open_results[SHUNT_NODES_MAX];
    uint64_t bytes_received; /* of gathers that came and results that were read */
    bool lost[SHUNT_NODES_MAX];
    const char *lost_reason[SHUNT_NODES_MAX];
    int lost_error[SHUNT_NODES_MAX];
};

/* Lays out the send buffers; run once to measure, once to place. */
void shunt_exchange_carve(struct shunt_exchange *x, const struct shunt_exchange_config *cfg,
                          struct shunt_carve *carve);

/* Where this node's inbox lies: at least shunt_exchange_inbox_bytes, at the beginning of a page. A
 * piece of its own, because peers write there, and nowhere else. After carve, before open. */
void shunt_exchange_set_inbox(struct shunt_exchange *x, const struct shunt_region *inbox);

/* Opens the transport on the carved memory, which lies in link->memory. Of `link` the caller fills
 * in what is not the exchange's own: streams, memory, timeouts and options. Takes the streams over.
 */
int shunt_exchange_open(struct shunt_exchange *x, const struct shunt_transport_ops *ops,
                        const struct shunt_rack_node *nodes,
                        const struct shunt_transport_config *link, struct shunt_error *err);
/* Return: as the transport's close. */
bool shunt_exchange_close(struct shunt_exchange *x);

/* Room for results of this node's own rows, for the addresses that a DISPATCH names. */
unsigned char *shunt_exchange_results_area(const struct shunt_exchange *x);

/* Begins the next tick. Every gather of the last one has been seen. */
void shunt_exchange_next(struct shunt_exchange *x);

/* The header of a message of this tick; the caller adds what its kind needs. */
struct shunt_wire_header shunt_exchange_header(const struct shunt_exchange *x,
                                               enum shunt_wire_kind kind);

/* The buffer for this tick's message to a peer, or NULL while the transport still reads from it. */
void *shunt_exchange_gather_buffer(const struct shunt_exchange *x, uint32_t peer);
void *shunt_exchange_results_buffer(const struct shunt_exchange *x, uint32_t peer);

/* Post the message that has been built there. Return: 0, -EAGAIN to try again after a poll, -EPIPE.
 */
int shunt_exchange_put_gather(struct shunt_exchange *x, uint32_t peer, enum shunt_wire_kind kind,
                              uint64_t bytes);
int shunt_exchange_put_results(struct shunt_exchange *x, uint32_t peer, uint64_t off,
                               uint64_t bytes);

/* This tick's message of a peer, or NULL while it has not come. */
const void *shunt_exchange_gathered(const struct shunt_exchange *x, uint32_t peer);

/* Whether a peer's results have come: they lie where the DISPATCH to it said. */
bool shunt_exchange_has_results(const struct shunt_exchange *x, uint32_t peer);

/* True when a peer has sent its message for this tick, whatever this node has done: the rack wakes.
 */
bool shunt_exchange_peer_waits(const struct shunt_exchange *x);

/* Moves bytes and takes completions; never blocks. Return: 0, or -EPROTO for a message that nobody
 * expects. */
int shunt_exchange_poll(struct shunt_exchange *x, struct shunt_error *err);

/* Bytes a peer may write beyond which its puts are refused. */
uint64_t shunt_exchange_inbox_bytes(const struct shunt_exchange_config *cfg, uint32_t rank);

/* Bytes of the peers' inboxes that this node ever writes: where it maps them, they are resident
 * here as well. */
uint64_t shunt_exchange_reach_bytes(const struct shunt_exchange_config *cfg);

#endif
