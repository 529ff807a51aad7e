/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/join.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/cluster/join_impl.h"

/* One that has begun to speak keeps its place so long, however many others want it. */
#define STRANGER_GRACE_NS (1 * SHUNT_NS_PER_S)
/* Connections accepted and not yet known, beyond those the rack needs: so many, and no more than a
 * part of the descriptors this process may have. */
#define STRANGERS_MAX     256u
#define STRANGERS_MIN     16u
#define STRANGERS_DIVISOR 8u
/* Of those that wait at the door, how many are let in between two looks at the others. */
#define ACCEPTS_MAX 32u

#define KEY_REMEDY                                                                                 \
    "other machines need a key: (umask 077; openssl rand -hex 32 > shunt.key), the same file on "  \
    "every node, and --key-file shunt.key"

static uint32_t strangers_max(void)
{
    struct rlimit limit = {0};

    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur / STRANGERS_DIVISOR >= STRANGERS_MAX)
        return STRANGERS_MAX;
    return limit.rlim_cur / STRANGERS_DIVISOR > STRANGERS_MIN
               ? (uint32_t)(limit.rlim_cur / STRANGERS_DIVISOR)
               : STRANGERS_MIN;
}

/* ---- who is there and who is not */

static bool is_here(const struct shunt_joining *j, uint32_t rank)
{
    const struct shunt_joined *peer = &j->mesh->peers[rank];

    if (rank == j->cfg->rank)
        return true;
    /* Data connections are not even tried before everybody has said hello. */
    return peer->streams[SHUNT_STREAM_CONTROL].fd >= 0 &&
           (!j->settled || peer->streams[SHUNT_STREAM_DATA].fd >= 0);
}

/* Those who are not here, but for `except`. */
static void list_missing(const struct shunt_joining *j, uint32_t except, char *names, size_t bytes)
{
    size_t len = 0;

    names[0] = '\0';
    for (uint32_t r = 0; r < j->cfg->node_count && len < bytes - 1; r++) {
        char label[96];

        if (is_here(j, r) || r == except)
            continue;
        shunt_join_label(r, j->texts[r], label, sizeof(label));
        len += (size_t)snprintf(names + len, bytes - len, "%s%s", len ? ", " : "", label);
    }
}

/* Why the attempts to reach the missing ones failed. */
static void list_reasons(const struct shunt_joining *j, char *text, size_t bytes)
{
    const char *in_tls = j->hung_up_in_tls ? ", in the TLS handshake: does it have a key?" : "";
    bool outgoing = false;

    text[0] = '\0';
    for (uint32_t r = 0; r < j->cfg->rank; r++)
        outgoing |= !is_here(j, r) && j->connect_errno;
    if (outgoing)
        snprintf(text, bytes, " (%s%s)", strerror(j->connect_errno), in_tls);
}

static int report_missing(const struct shunt_joining *j, struct shunt_error *err)
{
    char names[256], reasons[128], turned_away[64] = "";

    list_missing(j, j->cfg->rank, names, sizeof(names));
    list_reasons(j, reasons, sizeof(reasons));
    if (j->turned_away)
        snprintf(turned_away, sizeof(turned_away), "; %u turned away, the last ", j->turned_away);
    return shunt_error_set(err, -ETIMEDOUT,
                           "no answer within %.10g s from %s%s; start the missing nodes, or give "
                           "them longer with --join-timeout%s%s",
                           (double)j->cfg->join_timeout_ns / 1e9, names, reasons, turned_away,
                           j->turned_away ? j->stranger.text : "");
}

/* ---- what all agree on */

/* Two nodes find out when they say hello; of three, each pair may have one in common. */
static int refuse_transports(const struct shunt_joining *j, struct shunt_error *err)
{
    char list[384] = "";
    size_t len = 0;

    for (uint32_t r = 0; r < j->cfg->node_count && len < sizeof(list); r++) {
        bool own = r == j->cfg->rank;
        char label[96], kinds[64];

        shunt_join_label(r, own ? "this node" : j->texts[r], label, sizeof(label));
        shunt_transport_names(own ? j->cfg->transports : j->mesh->peers[r].hello.transports, kinds,
                              sizeof(kinds));
        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s has %s", r ? ", " : "", label,
                                kinds);
    }
    return shunt_error_set(err, -EPROTO,
                           "the nodes have no transport in common: %s; give every node the same "
                           "--transport",
                           list);
}

/* Everybody's hello is here: how rows travel, and whether the streams for it need TLS. */
static int settle(struct shunt_joining *j, struct shunt_error *err)
{
    const struct shunt_transport_ops *ops;
    uint32_t kinds = j->cfg->transports;

    for (uint32_t r = 0; r < j->cfg->node_count; r++)
        if (r != j->cfg->rank)
            kinds &= j->mesh->peers[r].hello.transports;
    if (kinds == 0)
        return refuse_transports(j, err);
    j->mesh->transport = (enum shunt_transport_kind)(31 - __builtin_clz(kinds));
    ops = shunt_transport_get(j->mesh->transport);
    j->data_tls = j->tls && (j->cfg->encrypt || !ops || ops->stream_is_secret);
    j->settled = true;
    return 0;
}

/* Rank 0 of a rendezvous has the table when everybody has said where to be found. */
static void look_for_table(struct shunt_joining *j)
{
    uint32_t told = 0;

    for (uint32_t i = 0; i < j->connection_max; i++)
        told += j->connections[i].state == SHUNT_JOIN_HELD &&
                j->connections[i].part == SHUNT_JOIN_TABLE;
    j->has_table = told == j->cfg->node_count - 1;
}

int shunt_join_take_table(struct shunt_joining *j, const struct shunt_table *table,
                          struct shunt_error *err)
{
    uint32_t own = j->cfg->rank;
    int rc = shunt_table_check(table, j->cfg->node_count, err);

    if (!rc && strcmp(table->addresses[own], j->texts[own]))
        return shunt_error_set(err, -EPROTO,
                               "rank 0 sent '%s' as the address of this node, which listens on %s",
                               table->addresses[own], j->texts[own]);
    for (uint32_t r = 0; r < j->cfg->node_count && !rc; r++) {
        struct shunt_joined *peer = &j->mesh->peers[r];

        memcpy(peer->address, table->addresses[r], sizeof(peer->address));
        j->texts[r] = peer->address;
        if (r == 0 || r == own)
            continue; /* reached already, by the name that was given here */
        rc = shunt_address_parse_numeric(&j->addresses[r], peer->address, err);
        if (!rc && !j->tls && !shunt_address_is_loopback(&j->addresses[r]))
            rc = shunt_error_set(err, -EACCES, "rank %" PRIu32 " listens on %s; " KEY_REMEDY, r,
                                 peer->address);
    }
    j->has_table = !rc;
    return rc;
}

/* ---- the loop */

/* Streams of peers that are here, watched until the mesh stands: nobody reads from them yet. */
static uint32_t watch_joined(struct shunt_joining *j, uint32_t n)
{
    for (uint32_t r = 0; r < j->cfg->node_count; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            j->fds[n++] =
                (struct pollfd){.fd = j->mesh->peers[r].streams[s].fd, .events = POLLRDHUP};
    return n;
}

/* A peer that has gone again would be missed only when its stream is used, and no other may take
 * its place: the rack cannot form any more. */
static int check_joined(const struct shunt_joining *j, uint32_t first, struct shunt_error *err)
{
    for (uint32_t i = 0; i < j->cfg->node_count * SHUNT_STREAMS; i++) {
        uint32_t rank = i / SHUNT_STREAMS;
        char label[96], names[256];

        if (!j->fds[first + i].revents)
            continue;
        shunt_join_label(rank, j->texts[rank], label, sizeof(label));
        list_missing(j, rank, names, sizeof(names));
        return shunt_error_set(err, -ECONNRESET,
                               "%s is gone before the rack was complete: its process ended (look "
                               "at its own last message)%s%s%s",
                               label, names[0] ? "; " : "", names, names[0] ? " had not come" : "");
    }
    return 0;
}

/* Whether `c` makes room before `other`: who has said nothing before who has, and of these whoever
 * has been a stranger for longer. A flood of silent connections so drowns in itself, while one that
 * speaks at once is heard. */
static bool goes_first(const struct shunt_connection *c, const struct shunt_connection *other)
{
    bool silent = c->state == SHUNT_JOIN_OPENING;

    if (!other)
        return true;
    if (silent != (other->state == SHUNT_JOIN_OPENING))
        return silent;
    return c->since_ns < other->since_ns;
}

/* Return: NULL when everybody there has spoken, and a moment ago. */
static struct shunt_connection *find_room(struct shunt_joining *j)
{
    struct shunt_connection *first = NULL;

    for (uint32_t i = 0; i < j->connection_max; i++) {
        struct shunt_connection *c = &j->connections[i];

        if (c->outgoing || c->admitted)
            continue;
        if (c->state == SHUNT_JOIN_UNUSED)
            return c;
        if (goes_first(c, first))
            first = c;
    }
    if (!first || (first->state != SHUNT_JOIN_OPENING &&
                   shunt_now_ns() - first->since_ns < STRANGER_GRACE_NS))
        return NULL;
    shunt_join_drop(first);
    return first;
}

/* Return: false when nobody else waits. */
static bool accept_one(struct shunt_joining *j)
{
    struct shunt_address from = {.len = sizeof(from.addr)};
    int fd = accept4(j->listen_fd, (struct sockaddr *)&from.addr, &from.len,
                     SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct shunt_connection *c;

    /* Whatever else goes wrong is the matter of whoever wanted to connect. */
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM))
        j->socket_errno = errno;
    if (fd < 0)
        return false;
    c = find_room(j);
    if (!c) {
        close(fd);
        return true;
    }
    c->state = SHUNT_JOIN_OPENING;
    c->stream = (struct shunt_stream){.fd = fd};
    c->from = from;
    c->kind = SHUNT_STREAM_CONTROL;
    shunt_join_make_stranger(c);
    return true;
}

static void accept_some(struct shunt_joining *j)
{
    for (uint32_t i = 0; i < ACCEPTS_MAX && accept_one(j); i++)
        ;
}

static bool may_connect(const struct shunt_joining *j, const struct shunt_connection *c)
{
    if (c->kind == SHUNT_STREAM_DATA)
        return j->settled;
    return c->rank == 0 || j->has_table;
}

static bool is_timed(const struct shunt_joining *j, const struct shunt_connection *c)
{
    if (c->state == SHUNT_JOIN_WAITING)
        return may_connect(j, c);
    return !c->outgoing && !c->admitted && c->state != SHUNT_JOIN_UNUSED;
}

/* Fills j->fds; returns their number. *wake_ns is when something is due without any of them. */
static uint32_t prepare(struct shunt_joining *j, int64_t now, int64_t *wake_ns)
{
    uint32_t n = 0;

    *wake_ns = j->deadline_ns;
    j->fds[n++] = (struct pollfd){.fd = j->listen_fd, .events = POLLIN};
    j->fds[n++] =
        (struct pollfd){.fd = j->cfg->cancel_fd ? *j->cfg->cancel_fd : -1, .events = POLLIN};
    for (uint32_t i = 0; i < j->connection_max; i++) {
        struct shunt_connection *c = &j->connections[i];

        if (is_timed(j, c) && now >= c->deadline_ns) {
            if (c->state == SHUNT_JOIN_WAITING)
                shunt_join_connect(j, c);
            else
                shunt_join_drop(c);
        }
        if (is_timed(j, c) && c->deadline_ns < *wake_ns)
            *wake_ns = c->deadline_ns;
        j->fds[n++] = (struct pollfd){.fd = c->stream.fd, .events = shunt_join_events(c)};
    }
    return n;
}

/* What is held goes on when what it waited for is there; nothing else would wake it. */
static int resume_held(struct shunt_joining *j, struct shunt_error *err)
{
    int rc = 0;

    if (!j->has_table && j->cfg->rank == 0)
        look_for_table(j);
    if (!j->settled && j->controls_missing == 0)
        rc = settle(j, err);
    for (uint32_t i = 0; i < j->connection_max && !rc; i++)
        if (j->connections[i].state == SHUNT_JOIN_HELD)
            rc = shunt_join_advance(j, &j->connections[i], err);
    return rc;
}

static int advance_ready(struct shunt_joining *j, struct shunt_error *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < j->connection_max && !rc; i++) {
        struct shunt_connection *c = &j->connections[i];

        if (!j->fds[i + 2].revents || j->fds[i + 2].fd != c->stream.fd)
            continue;
        if (c->state == SHUNT_JOIN_HELD)
            shunt_join_drop(c); /* it has hung up */
        else
            rc = shunt_join_advance(j, c, err);
    }
    return rc;
}

static int turn(struct shunt_joining *j, struct shunt_error *err)
{
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
        return 0;
    if (j->fds[1].revents)
        return shunt_error_set(err, -ECANCELED, "told to stop while joining the rack");
    rc = advance_ready(j, err);
    if (!rc && j->fds[0].revents)
        accept_some(j);
    /* Last: one that has met us all, and found then that it must end, has gone in good order. */
    if (!rc && (j->controls_missing > 0 || j->data_missing > 0))
        rc = check_joined(j, watched, err);
    return rc;
}

static int run(struct shunt_joining *j, struct shunt_error *err)
{
    int rc = 0;

    while (!rc && (j->controls_missing > 0 || j->data_missing > 0)) {
        rc = turn(j, err);
        if (!rc)
            rc = resume_held(j, err);
    }
    return rc;
}

/* ---- set up and tear down */

static int refuse_remote(const struct shunt_address *a, const char *text, struct shunt_error *err)
{
    if (shunt_address_is_loopback(a))
        return 0;
    return shunt_error_set(err, -EACCES, "%s is no loopback address; " KEY_REMEDY, text);
}

static int resolve(struct shunt_joining *j, struct shunt_error *err)
{
    const struct shunt_rack_config *cfg = j->cfg;
    int rc = 0;

    j->has_table = true;
    if (!cfg->addresses[0])
        return shunt_error_set(err, -EINVAL, "nobody has said where rank 0 is to be found");
    for (uint32_t r = 0; r < cfg->node_count && !rc; r++) {
        j->texts[r] = cfg->addresses[r];
        j->has_table &= j->texts[r] != NULL;
        if (!j->texts[r])
            continue;
        rc = shunt_address_parse(&j->addresses[r], j->texts[r], err);
        if (!rc && !j->tls)
            rc = refuse_remote(&j->addresses[r], j->texts[r], err);
    }
    return rc;
}

/* In a rendezvous rank 0 goes by what each node says of itself. */
static void forget_others(struct shunt_joining *j)
{
    for (uint32_t r = 1; r < j->cfg->node_count && !j->has_table; r++)
        if (r != j->cfg->rank)
            j->texts[r] = NULL;
}

/* Two ranks at one address would wait for each other in vain. */
static int refuse_twins(const struct shunt_joining *j, struct shunt_error *err)
{
    for (uint32_t r = 1; r < j->cfg->node_count; r++)
        for (uint32_t other = 0; other < r; other++) {
            const struct shunt_address *a = &j->addresses[r], *b = &j->addresses[other];

            if (j->texts[r] && j->texts[other] && a->len == b->len &&
                !memcmp(&a->addr, &b->addr, a->len))
                return shunt_error_set(err, -EINVAL,
                                       "rack address %s is there twice, as rank %" PRIu32
                                       " and as rank %" PRIu32 "; give every node its own",
                                       j->texts[r], other, r);
        }
    return 0;
}

static int backlog(const struct shunt_joining *j)
{
    return (int)j->connection_max;
}

static int own_address(int fd, struct shunt_address *a, struct shunt_error *err)
{
    memset(a, 0, sizeof(*a));
    a->len = sizeof(a->addr);
    if (getsockname(fd, (struct sockaddr *)&a->addr, &a->len) == 0)
        return 0;
    return shunt_error_set(err, -errno, "this node's own address: %s", strerror(errno));
}

/* Datagrams come to where connections do. */
static int bind_live(struct shunt_joining *j, struct shunt_error *err)
{
    struct shunt_address a;
    int rc = own_address(j->listen_fd, &a, err);

    if (rc)
        return rc;
    j->mesh->live_fd = shunt_address_bind_udp(&a, &j->live_port, err);
    return j->mesh->live_fd < 0 ? j->mesh->live_fd : 0;
}

/* What this node tells rank 0: where it listens, by the address that rank 0 is reached from. */
static int name_oneself(struct shunt_joining *j, int fd, struct shunt_error *err)
{
    struct shunt_joined *own = &j->mesh->peers[j->cfg->rank];
    struct shunt_address here, a;
    int rc = own_address(fd, &here, err);

    if (!rc)
        rc = own_address(j->listen_fd, &a, err);
    if (rc)
        return rc;
    if (shunt_address_is_any(&a)) {
        shunt_address_set_port(&here, shunt_address_port(&a));
        a = here;
    }
    shunt_address_print(&a, own->address, sizeof(own->address));
    j->texts[j->cfg->rank] = own->address;
    return 0;
}

int shunt_join_listen_beside(struct shunt_joining *j, int fd, struct shunt_error *err)
{
    struct shunt_address a;
    int rc = 0;

    if (j->texts[j->cfg->rank])
        return 0;
    if (j->listen_fd < 0) {
        rc = own_address(fd, &a, err);
        if (rc)
            return rc;
        shunt_address_set_port(&a, 0);
        j->listen_fd = shunt_address_listen(&a, "any port", backlog(j), err);
        if (j->listen_fd < 0)
            return j->listen_fd;
        rc = bind_live(j, err);
    }
    return rc ? rc : name_oneself(j, fd, err);
}

static int listen_on_given(struct shunt_joining *j, struct shunt_error *err)
{
    struct shunt_address a;
    int flags;

    if (!j->tls && (own_address(j->listen_fd, &a, NULL) || !shunt_address_is_loopback(&a)))
        return shunt_error_set(err, -EACCES,
                               "listen_fd %d is no socket on a loopback address; " KEY_REMEDY,
                               j->listen_fd);
    flags = fcntl(j->listen_fd, F_GETFL);
    if (flags < 0 || fcntl(j->listen_fd, F_SETFL, flags | O_NONBLOCK) ||
        listen(j->listen_fd, backlog(j)))
        return shunt_error_set(err, -errno, "listen_fd %d is no socket that can listen: %s",
                               j->listen_fd, strerror(errno));
    return 0;
}

/* A node that was not told where does so when it has reached rank 0. */
static int start_listening(struct shunt_joining *j, struct shunt_error *err)
{
    uint32_t rank = j->cfg->rank;
    int rc = 0;

    if (j->listen_fd >= 0) {
        rc = listen_on_given(j, err);
    } else if (j->texts[rank]) {
        j->listen_fd = shunt_address_listen(&j->addresses[rank], j->texts[rank], backlog(j), err);
        rc = j->listen_fd < 0 ? j->listen_fd : 0;
    }
    if (rc || j->listen_fd < 0)
        return rc;
    rc = bind_live(j, err);
    if (!rc && j->cfg->listening)
        j->cfg->listening(j->cfg->listening_ctx);
    return rc;
}

static void plan_connections(struct shunt_joining *j)
{
    uint32_t n = 0;

    for (uint32_t r = 0; r < j->cfg->rank; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            j->connections[n++] = (struct shunt_connection){.state = SHUNT_JOIN_WAITING,
                                                            .stream = SHUNT_STREAM_NONE,
                                                            .outgoing = true,
                                                            .rank = r,
                                                            .kind = (enum shunt_stream_kind)s};
    for (; n < j->connection_max; n++)
        j->connections[n].stream = SHUNT_STREAM_NONE;
    j->controls_missing = j->data_missing = j->cfg->node_count - 1;
}

static int open_tls(struct shunt_joining *j, struct shunt_error *err)
{
    if (shunt_credentials_given(&j->cfg->credentials))
        return shunt_tls_open(&j->tls, &j->cfg->credentials, err);
    if (!j->cfg->encrypt)
        return 0;
    return shunt_error_set(err, -EINVAL,
                           "rows cannot be encrypted (--encrypt) without a key (--key-file)");
}

static int join(struct shunt_joining *j, struct shunt_error *err)
{
    int rc = open_tls(j, err);

    plan_connections(j);
    if (!rc)
        rc = resolve(j, err);
    if (!rc)
        rc = refuse_twins(j, err);
    if (!rc)
        rc = start_listening(j, err);
    if (!rc) {
        forget_others(j);
        rc = run(j, err);
    }
    for (uint32_t i = 0; i < j->connection_max; i++)
        shunt_join_drop(&j->connections[i]);
    shunt_tls_close(j->tls);
    explicit_bzero(j->places, sizeof(j->places));
    return rc;
}

void shunt_mesh_init(struct shunt_mesh *mesh)
{
    memset(mesh, 0, sizeof(*mesh));
    mesh->live_fd = -1;
    for (uint32_t r = 0; r < SHUNT_NODES_MAX; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            mesh->peers[r].streams[s] = SHUNT_STREAM_NONE;
}

void shunt_mesh_close(struct shunt_mesh *mesh)
{
    for (uint32_t r = 0; r < SHUNT_NODES_MAX; r++)
        for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
            shunt_stream_close(&mesh->peers[r].streams[s]);
    if (mesh->live_fd >= 0)
        close(mesh->live_fd);
    mesh->live_fd = -1;
}

/* Names that were given stay; those of a rendezvous are in the mesh already. */
static void keep_addresses(struct shunt_joining *j)
{
    for (uint32_t r = 0; r < j->cfg->node_count; r++) {
        char *address = j->mesh->peers[r].address;

        if (j->texts[r] && j->texts[r] != address)
            snprintf(address, sizeof(j->mesh->peers[r].address), "%s", j->texts[r]);
    }
}

int shunt_join(const struct shunt_rack_config *cfg, struct shunt_mesh *mesh,
               struct shunt_error *err)
{
    struct shunt_joining j = {
        .cfg = cfg,
        .mesh = mesh,
        .connection_max = cfg->node_count * SHUNT_STREAMS + strangers_max(),
        .listen_fd = cfg->listen_fd,
        .deadline_ns = shunt_deadline_ns(cfg->join_timeout_ns),
    };
    int rc;

    shunt_mesh_init(mesh);
    j.connections = calloc(j.connection_max, sizeof(*j.connections));
    j.fds = calloc(j.connection_max + 2 + cfg->node_count * SHUNT_STREAMS, sizeof(*j.fds));
    if (j.connections && j.fds)
        rc = join(&j, err);
    else
        rc = shunt_error_set(err, -ENOMEM, "out of memory to join the rack");
    if (rc)
        shunt_mesh_close(mesh);
    else
        keep_addresses(&j);
    if (j.listen_fd >= 0)
        close(j.listen_fd);
    free(j.connections);
    free(j.fds);
    return rc;
}
