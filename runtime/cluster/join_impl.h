/* SPDX-License-Identifier: Apache-2.0
 *
 * A rack that is forming, for join.c and join_peer.c only.
 */
#ifndef SHUNT_CLUSTER_JOIN_IMPL_H
#define SHUNT_CLUSTER_JOIN_IMPL_H

#include "runtime/base/tls.h"
#include "runtime/cluster/join.h"

enum shunt_join_state {
    SHUNT_JOIN_UNUSED,
    SHUNT_JOIN_WAITING,      /* outgoing: to connect (again) */
    SHUNT_JOIN_CONNECTING,   /* outgoing */
    SHUNT_JOIN_OPENING,      /* incoming: its first byte says what it is */
    SHUNT_JOIN_SHAKING,      /* in the TLS handshake */
    SHUNT_JOIN_READING,      /* a message of the peer's */
    SHUNT_JOIN_SENDING,      /* one of ours */
    SHUNT_JOIN_HELD,         /* until this node knows what it needs to go on with it */
    SHUNT_JOIN_TURNING_AWAY, /* incoming: our last word is on its way, what still comes is dropped
                              */
};

/* Which message is under way, or is next. */
enum shunt_join_part {
    SHUNT_JOIN_HELLO,
    SHUNT_JOIN_ANSWER,
    SHUNT_JOIN_TABLE,
    SHUNT_JOIN_PROLOGUE,
    SHUNT_JOIN_DATA_ANSWER,
};

union shunt_join_message {
    struct shunt_message_head head;
    struct shunt_hello hello;
    struct shunt_answer answer;
    struct shunt_table table;
    struct shunt_prologue prologue;
};

struct shunt_connection {
    enum shunt_join_state state;
    enum shunt_join_part part;
    struct shunt_stream stream;
    bool outgoing;
    struct shunt_address from; /* incoming */
    bool admitted; /* incoming: it belongs to `rank`; until then it may have to make room */
    uint32_t rank; /* of the peer; incoming: as its hello or token has it */
    enum shunt_stream_kind kind;
    short events;        /* that SHAKING waits for */
    int64_t since_ns;    /* incoming: a stranger since */
    int64_t deadline_ns; /* of an incoming one that is not admitted; WAITING: to try again */
    union shunt_join_message message;
    size_t bytes, done; /* of the message: due, and there */
};

/* What this node and a peer have agreed on. */
struct shunt_place {
    uint8_t token[SHUNT_TOKEN_BYTES]; /* for the data connection */
    bool granted, spent;
};

struct shunt_joining {
    const struct shunt_rack_config *cfg;
    struct shunt_mesh *mesh;
    struct shunt_tls *tls;              /* NULL: loopback only */
    const char *texts[SHUNT_NODES_MAX]; /* addresses as far as they are known */
    struct shunt_address addresses[SHUNT_NODES_MAX];
    struct shunt_place places[SHUNT_NODES_MAX];
    struct shunt_connection *connections; /* [connection_max] */
    uint32_t connection_max;
    struct pollfd *fds; /* the listener, cancel_fd, [connection_max], the peers' streams */
    uint32_t controls_missing, data_missing;
    bool has_table; /* every address is known */
    bool settled;   /* everybody's hello is here: transport and data_tls are known */
    bool data_tls;
    int listen_fd;
    uint16_t live_port;
    int64_t deadline_ns;
    int connect_errno;           /* of the last attempt that failed */
    bool hung_up_in_tls;         /* that attempt */
    int socket_errno;            /* this node cannot have another socket; 0: it can */
    uint32_t turned_away;        /* strangers without the rack's credentials */
    struct shunt_error stranger; /* the last of them, and why */
};

/* ---- join.c */

/* Listens where rank 0 can be reached from, when nobody has said where. */
int shunt_join_listen_beside(struct shunt_joining *j, int fd, struct shunt_error *err);

/* Takes over rank 0's table. */
int shunt_join_take_table(struct shunt_joining *j, const struct shunt_table *table,
                          struct shunt_error *err);

/* ---- join_peer.c */

void shunt_join_drop(struct shunt_connection *c);

/* From now on an incoming one has a stranger's time to show that it belongs here. */
void shunt_join_make_stranger(struct shunt_connection *c);

void shunt_join_connect(struct shunt_joining *j, struct shunt_connection *c);

/* Goes on with a connection as far as it can be gone. Return: 0; or what ends the join. */
int shunt_join_advance(struct shunt_joining *j, struct shunt_connection *c,
                       struct shunt_error *err);

/* What poll(2) is to wait for. */
short shunt_join_events(const struct shunt_connection *c);

#endif
