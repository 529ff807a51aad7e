/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/join.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/cluster/address.h"

/* A stranger who connects and stays silent holds a place no longer than this. */
#define HELLO_TIMEOUT_NS (5 * SHUNT_NS_PER_S)
#define RETRY_NS         (50 * SHUNT_NS_PER_MS)
/* Connections accepted and not yet known, beyond those the rack needs. */
#define STRANGERS_MAX 16u

enum state {
    UNUSED,
    WAITING,    /* to connect again */
    CONNECTING, /* outgoing */
    SENDING,    /* outgoing: our hello; incoming: our answer */
    READING,    /* the peer's hello */
};

struct connection {
    enum state state;
    int fd;
    bool outgoing;
    uint32_t rank; /* of the peer; incoming: known once its hello is read */
    enum shunt_stream_kind stream;
    int64_t deadline_ns; /* of an incoming one; of WAITING the time to try again */
    struct shunt_hello out, in;
    size_t out_done, in_done;
};

struct joining {
    const struct shunt_rack_config *cfg;
    struct shunt_joined *peers;
    struct shunt_address *addresses; /* [node_count] */
    struct connection *connections;
    struct pollfd *fds; /* the listener, cancel_fd, [connection_max], the peers' streams */
    uint32_t connection_max;
    uint32_t missing; /* streams */
    int listen_fd;
    int64_t deadline_ns;
    int connect_errno; /* of the last attempt that failed */
    int socket_errno;  /* this node cannot have another socket; 0: it can */
};

void shunt_join_label(const struct shunt_rack_config *cfg, uint32_t rank, char *label, size_t bytes)
{
    snprintf(label, bytes, "rank %" PRIu32 " (%s)", rank, cfg->addresses[rank]);
}

/* ---- one connection */

static void drop(struct connection *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = UNUSED;
}

static void retry_later(struct joining *j, struct connection *c, int error)
{
    j->connect_errno = error;
    drop(c);
    c->state = WAITING;
    c->deadline_ns = shunt_now_ns() + RETRY_NS;
}

static void start_connecting(struct joining *j, struct connection *c)
{
    const struct shunt_address *a = &j->addresses[c->rank];

    c->fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        j->socket_errno = errno;
        return;
    }
    shunt_hello_fill(&c->out, j->cfg, c->stream);
    c->out_done = 0;
    c->in_done = 0;
    c->state = CONNECTING;
    if (connect(c->fd, (const struct sockaddr *)&a->addr, a->len) && errno != EINPROGRESS)
        retry_later(j, c, errno);
}

/* Both hellos have been seen and agree: the stream is the peer's. */
static void adopt(struct joining *j, struct connection *c)
{
    struct shunt_joined *peer = &j->peers[c->rank];

    peer->hello = c->in;
    peer->fds[c->stream] = c->fd;
    c->fd = -1;
    c->state = UNUSED;
    j->missing--;
}

/* Connecting to a free port of one's own machine can, once in a while, meet itself. */
static bool met_itself(int fd)
{
    struct sockaddr_storage here, there;
    socklen_t here_len = sizeof(here), there_len = sizeof(there);

    memset(&here, 0, sizeof(here));
    memset(&there, 0, sizeof(there));
    return getsockname(fd, (struct sockaddr *)&here, &here_len) == 0 &&
           getpeername(fd, (struct sockaddr *)&there, &there_len) == 0 && here_len == there_len &&
           memcmp(&here, &there, here_len) == 0;
}

/* The peer we connected to has answered. */
static int check_answer(struct joining *j, struct connection *c, struct shunt_error *err)
{
    char label[96];
    int rc;

    shunt_join_label(j->cfg, c->rank, label, sizeof(label));
    if (met_itself(c->fd)) {
        retry_later(j, c, ECONNREFUSED);
        return 0;
    }
    if (!shunt_hello_is_one(&c->in))
        return shunt_error_set(
            err, -EPROTO, "%s: whatever listens there is not shunt; is the port right?", label);
    rc = shunt_hello_check(&c->in, j->cfg, label, err);
    if (rc)
        return rc;
    if (c->in.rank != c->rank)
        return shunt_error_set(err, -EPROTO,
                               "%s calls itself rank %u; give every node the same --rack, and each "
                               "its own --rank",
                               label, c->in.rank);
    adopt(j, c);
    return 0;
}

/* True when the stream is there, or the answer to its hello is on the way. */
static bool is_taken(const struct joining *j, uint32_t rank, uint32_t stream)
{
    for (uint32_t i = 0; i < j->connection_max; i++) {
        const struct connection *c = &j->connections[i];

        if (!c->outgoing && c->state == SENDING && c->rank == rank && c->stream == stream)
            return true;
    }
    return j->peers[rank].fds[stream] >= 0;
}

/* Somebody who connected to us has said hello: answer, or refuse. A mismatch with a node that means
 * to belong here ends the join on both sides; a stranger is only turned away. */
static int check_hello(struct joining *j, struct connection *c, struct shunt_error *err)
{
    const struct shunt_rack_config *cfg = j->cfg;
    struct shunt_error why;
    char label[96];
    int rc;

    if (!shunt_hello_is_one(&c->in)) {
        drop(c);
        return 0;
    }
    if (c->in.rank < cfg->node_count)
        shunt_join_label(cfg, c->in.rank, label, sizeof(label));
    else
        snprintf(label, sizeof(label), "rank %u", c->in.rank);
    rc = shunt_hello_check(&c->in, cfg, label, &why);
    if (!rc && (c->in.rank <= cfg->rank || c->in.rank >= cfg->node_count ||
                c->in.stream >= SHUNT_STREAMS || is_taken(j, c->in.rank, c->in.stream)))
        rc = shunt_error_set(&why, -EPROTO,
                             "a node calls itself rank %u, and rank %u does not expect one; give "
                             "every node the same --rack, and each its own --rank",
                             c->in.rank, cfg->rank);
    shunt_hello_fill(&c->out, cfg, c->in.stream);
    if (rc) {
        shunt_hello_refuse(&c->out, &why);
        /* As far as the socket takes it at once: 256 bytes on a fresh connection always fit. */
        if (send(c->fd, &c->out, sizeof(c->out), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            rc = why.code;
        drop(c);
        if (err)
            *err = why;
        return why.code;
    }
    c->rank = c->in.rank;
    c->stream = (enum shunt_stream_kind)c->in.stream;
    c->out_done = 0;
    c->state = SENDING;
    return 0;
}

/* Return: 1 done, 0 not yet, negative errno value. */
static int move_bytes(struct connection *c)
{
    bool sending = c->state == SENDING;
    size_t *done = sending ? &c->out_done : &c->in_done;
    unsigned char *bytes = sending ? (unsigned char *)&c->out : (unsigned char *)&c->in;

    while (*done < sizeof(struct shunt_hello)) {
        size_t left = sizeof(struct shunt_hello) - *done;
        ssize_t n = sending ? send(c->fd, bytes + *done, left, MSG_NOSIGNAL)
                            : recv(c->fd, bytes + *done, left, 0);

        if (n == 0)
            return -ECONNRESET;
        if (n < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        *done += (size_t)n;
    }
    return 1;
}

/* The socket of a connection is ready. */
static int advance(struct joining *j, struct connection *c, struct shunt_error *err)
{
    int rc;

    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t len = sizeof(error);

        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (error) {
            retry_later(j, c, error);
            return 0;
        }
        c->state = SENDING;
    }
    rc = move_bytes(c);
    if (rc < 0) {
        /* A listener that goes away before it answers may still be starting: try again. */
        if (c->outgoing)
            retry_later(j, c, -rc);
        else
            drop(c);
        return 0;
    }
    if (rc == 0)
        return 0;
    if (c->state == READING)
        return c->outgoing ? check_answer(j, c, err) : check_hello(j, c, err);
    if (c->outgoing)
        c->state = READING;
    else
        adopt(j, c);
    return 0;
}

static void accept_one(struct joining *j)
{
    int fd = accept4(j->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    /* Whatever else goes wrong is the matter of whoever wanted to connect. */
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM))
        j->socket_errno = errno;
    if (fd < 0)
        return;
    for (uint32_t i = 0; i < j->connection_max; i++) {
        struct connection *c = &j->connections[i];

        if (c->state != UNUSED || c->outgoing)
            continue;
        *c = (struct connection){
            .state = READING, .fd = fd, .deadline_ns = shunt_now_ns() + HELLO_TIMEOUT_NS};
        return;
    }
    close(fd);
}

/* ---- the loop */

static bool is_here(const struct joining *j, uint32_t rank)
{
    return rank == j->cfg->rank || (j->peers[rank].fds[SHUNT_STREAM_CONTROL] >= 0 &&
                                    j->peers[rank].fds[SHUNT_STREAM_DATA] >= 0);
}

/* Those who are not here, but for `except`. */
static void list_missing(const struct joining *j, uint32_t except, char *names, size_t bytes)
{
    size_t len = 0;

    names[0] = '\0';
    for (uint32_t r = 0; r < j->cfg->node_count && len < bytes - 1; r++) {
        char label[96];

        if (is_here(j, r) || r == except)
            continue;
        shunt_join_label(j->cfg, r, label, sizeof(label));
        len += (size_t)snprintf(names + len, bytes - len, "%s%s", len ? ", " : "", label);
    }
}

static int report_missing(const struct joining *j, struct shunt_error *err)
{
    bool outgoing = false;
    char names[256];

    list_missing(j, j->cfg->rank, names, sizeof(names));
    for (uint32_t r = 0; r < j->cfg->rank; r++)
        outgoing |= !is_here(j, r) && j->connect_errno;
    return shunt_error_set(
        err, -ETIMEDOUT,
        "no answer within %.10g s from %s%s%s%s; start the missing nodes, or give "
        "them longer with --join-timeout",
        (double)j->cfg->join_timeout_ns / 1e9, names, outgoing ? " (" : "",
        outgoing ? strerror(j->connect_errno) : "", outgoing ? ")" : "");
}

/* Streams of peers that are here, watched until the mesh stands: nobody reads from them yet. */
static uint32_t watch_joined(struct joining *j, uint32_t n)
{
    for (uint32_t r = 0; r < j->cfg->node_count; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            j->fds[n++] = (struct pollfd){.fd = j->peers[r].fds[s], .events = POLLRDHUP};
    return n;
}

/* A peer that has gone again would be missed only when its stream is used, and no other may take
 * its place: the rack cannot form any more. */
static int check_joined(const struct joining *j, uint32_t first, struct shunt_error *err)
{
    for (uint32_t i = 0; i < j->cfg->node_count * SHUNT_STREAMS; i++) {
        char label[96], names[256];

        if (!j->fds[first + i].revents)
            continue;
        shunt_join_label(j->cfg, i / SHUNT_STREAMS, label, sizeof(label));
        list_missing(j, i / SHUNT_STREAMS, names, sizeof(names));
        return shunt_error_set(err, -ECONNRESET,
                               "%s is gone before the rack was complete: its process ended (look "
                               "at its own last message)%s%s%s",
                               label, names[0] ? "; " : "", names, names[0] ? " had not come" : "");
    }
    return 0;
}

/* Fills j->fds; returns their number. *wake_ns is when something is due without any of them. */
static uint32_t prepare(struct joining *j, int64_t now, int64_t *wake_ns)
{
    uint32_t n = 0;

    *wake_ns = j->deadline_ns;
    j->fds[n++] = (struct pollfd){.fd = j->listen_fd, .events = POLLIN};
    j->fds[n++] =
        (struct pollfd){.fd = j->cfg->cancel_fd ? *j->cfg->cancel_fd : -1, .events = POLLIN};
    for (uint32_t i = 0; i < j->connection_max; i++) {
        struct connection *c = &j->connections[i];

        if (c->state == WAITING && now >= c->deadline_ns)
            start_connecting(j, c);
        if (!c->outgoing && c->state != UNUSED && now >= c->deadline_ns)
            drop(c);
        if ((c->state == WAITING || (!c->outgoing && c->state != UNUSED)) &&
            c->deadline_ns < *wake_ns)
            *wake_ns = c->deadline_ns;
        j->fds[n++] = (struct pollfd){
            .fd = c->state == UNUSED || c->state == WAITING ? -1 : c->fd,
            .events = c->state == READING ? POLLIN : POLLOUT,
        };
    }
    return n;
}

static int run(struct joining *j, struct shunt_error *err)
{
    while (j->missing > 0) {
        int64_t now = shunt_now_ns();
        struct timespec timeout;
        uint32_t watched, n;
        int64_t wake_ns;
        int rc;

        if (j->socket_errno)
            return shunt_error_set(err, -j->socket_errno,
                                   "no room for the connections of the rack: %s; raise ulimit -n",
                                   strerror(j->socket_errno));
        if (now >= j->deadline_ns)
            return report_missing(j, err);
        watched = prepare(j, now, &wake_ns);
        n = watch_joined(j, watched);
        timeout = shunt_timespec(wake_ns > now ? wake_ns - now : 0);
        rc = ppoll(j->fds, n, &timeout, NULL);
        if (rc < 0 && errno != EINTR)
            j->socket_errno = errno; /* EINVAL: more than the process may have open */
        if (rc <= 0)
            continue;
        if (j->fds[1].revents)
            return shunt_error_set(err, -ECANCELED, "told to stop while joining the rack");
        rc = check_joined(j, watched, err);
        if (rc)
            return rc;
        if (j->fds[0].revents)
            accept_one(j);
        for (uint32_t i = 0; i < j->connection_max; i++) {
            if (!j->fds[i + 2].revents || j->fds[i + 2].fd != j->connections[i].fd)
                continue;
            rc = advance(j, &j->connections[i], err);
            if (rc)
                return rc;
        }
    }
    return 0;
}

/* ---- set up and tear down */

static int resolve(struct joining *j, struct shunt_error *err)
{
    const struct shunt_rack_config *cfg = j->cfg;

    for (uint32_t r = 0; r < cfg->node_count; r++) {
        int rc = shunt_address_parse(&j->addresses[r], cfg->addresses[r], err);

        if (rc)
            return rc;
        if (!cfg->allow_remote && !shunt_address_is_loopback(&j->addresses[r]))
            return shunt_error_set(err, -EACCES,
                                   "%s is no loopback address. Connections are not authenticated "
                                   "yet: on a network you trust, say so with --allow-remote",
                                   cfg->addresses[r]);
    }
    return 0;
}

/* Two ranks at one address would wait for each other in vain. */
static int refuse_twins(const struct joining *j, struct shunt_error *err)
{
    for (uint32_t r = 1; r < j->cfg->node_count; r++)
        for (uint32_t other = 0; other < r; other++) {
            const struct shunt_address *a = &j->addresses[r], *b = &j->addresses[other];

            if (a->len == b->len && !memcmp(&a->addr, &b->addr, a->len))
                return shunt_error_set(err, -EINVAL,
                                       "rack address %s is there twice, as rank %" PRIu32
                                       " and as rank %" PRIu32 "; give every node its own",
                                       j->cfg->addresses[r], other, r);
        }
    return 0;
}

static bool is_loopback_socket(int fd)
{
    struct shunt_address a = {.len = sizeof(a.addr)};

    return getsockname(fd, (struct sockaddr *)&a.addr, &a.len) == 0 &&
           shunt_address_is_loopback(&a);
}

static int start_listening(struct joining *j, struct shunt_error *err)
{
    const struct shunt_rack_config *cfg = j->cfg;
    int flags;

    if (cfg->listen_fd < 0) {
        j->listen_fd = shunt_address_listen(&j->addresses[cfg->rank], cfg->addresses[cfg->rank],
                                            (int)(2 * cfg->node_count + STRANGERS_MAX), err);
        return j->listen_fd < 0 ? j->listen_fd : 0;
    }
    if (!cfg->allow_remote && !is_loopback_socket(j->listen_fd))
        return shunt_error_set(
            err, -EACCES,
            "listen_fd %d is no socket on a loopback address; connections are not "
            "authenticated: allow_remote (--allow-remote) on a network you trust",
            j->listen_fd);
    flags = fcntl(j->listen_fd, F_GETFL);
    if (flags < 0 || fcntl(j->listen_fd, F_SETFL, flags | O_NONBLOCK) ||
        listen(j->listen_fd, (int)(2 * cfg->node_count + STRANGERS_MAX)))
        return shunt_error_set(err, -errno, "listen_fd %d is no socket that can listen: %s",
                               j->listen_fd, strerror(errno));
    return 0;
}

static void plan_connections(struct joining *j)
{
    uint32_t n = 0;

    for (uint32_t r = 0; r < j->cfg->rank; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            j->connections[n++] = (struct connection){.state = WAITING,
                                                      .fd = -1,
                                                      .outgoing = true,
                                                      .rank = r,
                                                      .stream = (enum shunt_stream_kind)s};
    for (; n < j->connection_max; n++)
        j->connections[n].fd = -1;
    j->missing = (j->cfg->node_count - 1) * SHUNT_STREAMS;
}

int shunt_join(const struct shunt_rack_config *cfg, struct shunt_joined *peers,
               struct shunt_error *err)
{
    struct joining j = {
        .cfg = cfg,
        .peers = peers,
        .connection_max = cfg->node_count * SHUNT_STREAMS + STRANGERS_MAX,
        .listen_fd = cfg->listen_fd,
        .deadline_ns = shunt_deadline_ns(cfg->join_timeout_ns),
    };
    int rc;

    for (uint32_t r = 0; r < cfg->node_count; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            peers[r].fds[s] = -1;
    j.addresses = calloc(cfg->node_count, sizeof(*j.addresses));
    j.connections = calloc(j.connection_max, sizeof(*j.connections));
    j.fds = calloc(j.connection_max + 2 + cfg->node_count * SHUNT_STREAMS, sizeof(*j.fds));
    if (!j.addresses || !j.connections || !j.fds) {
        rc = shunt_error_set(err, -ENOMEM, "out of memory to join the rack");
    } else {
        plan_connections(&j);
        rc = resolve(&j, err);
        if (!rc)
            rc = refuse_twins(&j, err);
        if (!rc)
            rc = start_listening(&j, err);
        if (!rc)
            rc = run(&j, err);
        for (uint32_t i = 0; i < j.connection_max; i++)
            drop(&j.connections[i]);
    }
    if (j.listen_fd >= 0)
        close(j.listen_fd);
    for (uint32_t r = 0; rc && r < cfg->node_count; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            if (peers[r].fds[s] >= 0)
                close(peers[r].fds[s]);
    free(j.addresses);
    free(j.connections);
    free(j.fds);
    return rc;
}
