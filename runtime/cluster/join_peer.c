/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/cluster/join_impl.h"

#define RETRY_NS (50 * SHUNT_NS_PER_MS)
/* A stranger who connects and stays silent holds a place no longer than this. */
#define STRANGER_TIMEOUT_NS (5 * SHUNT_NS_PER_S)
/* For an alert to arrive before the reset that unread bytes would cause. */
#define TURN_AWAY_NS (SHUNT_NS_PER_S)
#define DRAIN_BYTES  (64u << 10)

#define LIVE_LABEL "EXPORTER-shunt-liveness"

/* Of a step: the connection has gone on, and may go on further at once. */
enum { WAITS = 0, WENT_ON = 1 };

void shunt_join_label(uint32_t rank, const char *address, char *label, size_t bytes)
{
    if (address && address[0])
        snprintf(label, bytes, "rank %" PRIu32 " (%s)", rank, address);
    else
        snprintf(label, bytes, "rank %" PRIu32, rank);
}

static void label_of(const struct shunt_joining *j, uint32_t rank, char *label, size_t bytes)
{
    shunt_join_label(rank, rank < j->cfg->node_count ? j->texts[rank] : NULL, label, bytes);
}

void shunt_join_drop(struct shunt_connection *c)
{
    shunt_stream_close(&c->stream);
    explicit_bzero(&c->message, sizeof(c->message)); /* a token, a key */
    c->state = SHUNT_JOIN_UNUSED;
    c->admitted = false;
}

void shunt_join_make_stranger(struct shunt_connection *c)
{
    c->admitted = false;
    c->since_ns = shunt_now_ns();
    c->deadline_ns = c->since_ns + STRANGER_TIMEOUT_NS;
}

static int retry_later(struct shunt_joining *j, struct shunt_connection *c, int error)
{
    j->connect_errno = error;
    j->hung_up_in_tls = c->state == SHUNT_JOIN_SHAKING;
    shunt_join_drop(c);
    c->state = SHUNT_JOIN_WAITING;
    c->deadline_ns = shunt_now_ns() + RETRY_NS;
    return WAITS;
}

/* A connection that broke: a listener that goes away before it answers may still be starting. */
static int broke(struct shunt_joining *j, struct shunt_connection *c, int error)
{
    if (c->outgoing)
        return retry_later(j, c, error);
    shunt_join_drop(c);
    return WAITS;
}

static int send_message(struct shunt_connection *c, size_t bytes)
{
    c->state = SHUNT_JOIN_SENDING;
    c->bytes = bytes;
    c->done = 0;
    return WENT_ON;
}

static int expect(struct shunt_connection *c, enum shunt_join_part part)
{
    c->state = SHUNT_JOIN_READING;
    c->part = part;
    c->bytes = sizeof(c->message.head); /* which says how long it is */
    c->done = 0;
    return WENT_ON;
}

static int hold(struct shunt_connection *c, enum shunt_join_part next)
{
    c->state = SHUNT_JOIN_HELD;
    c->part = next;
    return WENT_ON;
}

/* Both sides have said all there is: the stream is the peer's. */
static int adopt(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    struct shunt_joined *peer = &j->mesh->peers[c->rank];

    if (c->kind == SHUNT_STREAM_CONTROL && c->stream.tls &&
        shunt_tls_export(&c->stream, LIVE_LABEL, peer->live_key, sizeof(peer->live_key)))
        return shunt_error_set(err, -EIO, "TLS gives no key for datagrams");
    peer->streams[c->kind] = c->stream;
    c->stream = SHUNT_STREAM_NONE;
    shunt_join_drop(c);
    if (c->kind == SHUNT_STREAM_CONTROL)
        j->controls_missing--;
    else
        j->data_missing--;
    return WAITS;
}

static int start_tls(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    if (shunt_tls_begin(j->tls, &c->stream, c->outgoing ? SHUNT_TLS_CONNECTED : SHUNT_TLS_ACCEPTED))
        return shunt_error_set(err, -ENOMEM, "out of memory for TLS");
    c->state = SHUNT_JOIN_SHAKING;
    c->events = c->outgoing ? POLLOUT : POLLIN;
    return WENT_ON;
}

/* What a hello says of it: NULL while some addresses are still to come. */
static const char *const *known_rack(const struct shunt_joining *j)
{
    return j->has_table ? j->texts : NULL;
}

/* ---- those who are turned away */

/* For this node's person: who it was and why. Nobody else is told. Without a key, it is no more
 * than what may help to understand why nobody comes. */
static void note_stranger(struct shunt_joining *j, const struct shunt_connection *c,
                          const char *why)
{
    char text[64];

    shunt_address_print(&c->from, text, sizeof(text));
    shunt_error_set(&j->stranger, -EACCES, "%s: %s", text, why);
    if (j->turned_away++ == 0 && j->tls)
        shunt_notify_say(&j->cfg->notify, "turned away %s", j->stranger.text);
}

static int turn_away(struct shunt_connection *c)
{
    shutdown(c->stream.fd, SHUT_WR);
    c->state = SHUNT_JOIN_TURNING_AWAY;
    c->admitted = false;
    c->deadline_ns = shunt_now_ns() + TURN_AWAY_NS;
    return WENT_ON;
}

static int drain(struct shunt_connection *c)
{
    char sink[4096];

    for (size_t done = 0; done < DRAIN_BYTES; done += sizeof(sink)) {
        ssize_t n = recv(c->stream.fd, sink, sizeof(sink), MSG_DONTWAIT);

        if (n > 0)
            continue;
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            shunt_join_drop(c);
        break;
    }
    return WAITS;
}

/* A node that means to belong here and does not fit ends the join on both sides; it learns that it
 * is refused, and our person learns why. */
static int refuse(struct shunt_connection *c, const struct shunt_error *why,
                  struct shunt_error *err)
{
    struct shunt_message_head refusal;

    shunt_answer_refuse(&refusal);
    /* As far as the stream takes it at once: so little on a fresh connection always fits. */
    shunt_stream_send(&c->stream, &refusal, sizeof(refusal));
    shunt_join_drop(c);
    if (err)
        *err = *why;
    return why->code;
}

/* ---- outgoing */

void shunt_join_connect(struct shunt_joining *j, struct shunt_connection *c)
{
    const struct shunt_address *a = &j->addresses[c->rank];

    c->stream.fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->stream.fd < 0) {
        j->socket_errno = errno;
        return;
    }
    c->state = SHUNT_JOIN_CONNECTING;
    if (connect(c->stream.fd, (const struct sockaddr *)&a->addr, a->len) && errno != EINPROGRESS)
        retry_later(j, c, errno);
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

static int send_hello(struct shunt_joining *j, struct shunt_connection *c)
{
    struct shunt_hello *hello = &c->message.hello;
    const char *own = j->texts[j->cfg->rank];

    shunt_hello_fill(hello, j->cfg, known_rack(j));
    hello->live_port = j->live_port;
    if (own)
        snprintf(hello->address, sizeof(hello->address), "%s", own);
    c->part = SHUNT_JOIN_HELLO;
    return send_message(c, sizeof(*hello));
}

static int send_prologue(struct shunt_joining *j, struct shunt_connection *c)
{
    struct shunt_prologue *p = &c->message.prologue;

    *p = (struct shunt_prologue){
        .magic = SHUNT_PROLOGUE_MAGIC, .protocol = SHUNT_HELLO_PROTOCOL, .rank = j->cfg->rank};
    memcpy(p->token, j->places[c->rank].token, sizeof(p->token));
    c->part = SHUNT_JOIN_PROLOGUE;
    return send_message(c, sizeof(*p));
}

static int connected(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    int error = 0, rc;
    socklen_t len = sizeof(error);

    getsockopt(c->stream.fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (!error && met_itself(c->stream.fd))
        error = ECONNREFUSED;
    if (error)
        return retry_later(j, c, error);
    if (c->kind == SHUNT_STREAM_DATA)
        return send_prologue(j, c);
    rc = shunt_join_listen_beside(j, c->stream.fd, err);
    if (rc)
        return rc;
    c->part = SHUNT_JOIN_HELLO;
    return j->tls ? start_tls(j, c, err) : send_hello(j, c);
}

static int is_refused(const struct shunt_joining *j, uint32_t rank, struct shunt_error *err)
{
    char label[96];

    label_of(j, rank, label, sizeof(label));
    return shunt_error_set(err, -ECONNREFUSED,
                           "%s refused this node; rank %" PRIu32 "'s own message says why", label,
                           rank);
}

static int is_not_shunt(const struct shunt_joining *j, const struct shunt_connection *c,
                        struct shunt_error *err)
{
    char label[96];

    label_of(j, c->rank, label, sizeof(label));
    return shunt_error_set(err, -EPROTO,
                           "%s: whatever listens there is not shunt%s; is the port right?", label,
                           j->tls ? ", or was started without a key" : "");
}

/* The first words of the peer we connected to. */
static int take_answer_head(struct shunt_joining *j, struct shunt_connection *c,
                            struct shunt_error *err)
{
    const struct shunt_message_head *head = &c->message.head;

    if (c->part == SHUNT_JOIN_TABLE) {
        c->bytes = sizeof(struct shunt_table);
        return WENT_ON;
    }
    if (head->magic != SHUNT_ANSWER_MAGIC ||
        (head->word != SHUNT_REFUSED && head->word != SHUNT_ACCEPTED))
        return is_not_shunt(j, c, err);
    if (head->word == SHUNT_REFUSED)
        return is_refused(j, c->rank, err);
    if (c->part == SHUNT_JOIN_DATA_ANSWER)
        return adopt(j, c, err);
    c->bytes = sizeof(struct shunt_answer);
    return WENT_ON;
}

static void keep_hello(struct shunt_joining *j, uint32_t rank, const struct shunt_hello *hello)
{
    struct shunt_joined *peer = &j->mesh->peers[rank];

    peer->hello = *hello;
    peer->live = j->addresses[rank];
    shunt_address_set_port(&peer->live, (uint16_t)hello->live_port);
}

static int check_answer(struct shunt_joining *j, struct shunt_connection *c,
                        struct shunt_error *err)
{
    const struct shunt_answer *answer = &c->message.answer;
    struct shunt_hello ours;
    char label[96];
    int rc;

    label_of(j, c->rank, label, sizeof(label));
    if (answer->hello.magic != SHUNT_HELLO_MAGIC)
        return is_not_shunt(j, c, err);
    shunt_hello_fill(&ours, j->cfg, known_rack(j));
    rc = shunt_hello_check(&answer->hello, &ours, label, err);
    if (rc)
        return rc;
    if (answer->hello.rank != c->rank)
        return shunt_error_set(err, -EPROTO,
                               "%s calls itself rank %u; give every node the same --rack, and each "
                               "its own --rank",
                               label, answer->hello.rank);
    keep_hello(j, c->rank, &answer->hello);
    memcpy(j->places[c->rank].token, answer->token, sizeof(answer->token));
    memcpy(j->mesh->peers[c->rank].live_key, answer->live_key, sizeof(answer->live_key));
    explicit_bzero(&c->message, sizeof(c->message));
    return j->has_table ? adopt(j, c, err) : expect(c, SHUNT_JOIN_TABLE);
}

static int take_table(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    int rc = shunt_join_take_table(j, &c->message.table, err);

    return rc ? rc : adopt(j, c, err);
}

/* ---- incoming */

/* With credentials a control connection begins with TLS, and without never. */
static int look_at_first_byte(struct shunt_joining *j, struct shunt_connection *c,
                              struct shunt_error *err)
{
    unsigned char first;
    ssize_t n = recv(c->stream.fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return WAITS;
    if (n <= 0) {
        shunt_join_drop(c);
        return WAITS;
    }
    c->part = SHUNT_JOIN_HELLO;
    if (first != SHUNT_TLS_FIRST_BYTE)
        return expect(c, SHUNT_JOIN_HELLO);
    if (j->tls)
        return start_tls(j, c, err);
    note_stranger(j, c, "it uses a key, and this node has none (--key-file)");
    shunt_join_drop(c);
    return WAITS;
}

/* A hello in clear where a key is asked for: a node of ours that was not given it, or a probe. */
static int refuse_without_key(struct shunt_joining *j, struct shunt_connection *c)
{
    struct shunt_message_head refusal;

    note_stranger(j, c, "it uses no key, and this node does (--key-file)");
    shunt_answer_refuse(&refusal);
    shunt_stream_send(&c->stream, &refusal, sizeof(refusal));
    return turn_away(c);
}

/* The first words of somebody who connected to us. */
static int take_head(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    const struct shunt_message_head *head = &c->message.head;
    bool may_be_hello = !j->tls || c->stream.tls;
    struct shunt_error why;

    if (head->magic == SHUNT_PROLOGUE_MAGIC && !c->stream.tls &&
        head->word == SHUNT_HELLO_PROTOCOL) {
        c->part = SHUNT_JOIN_PROLOGUE;
        c->bytes = sizeof(struct shunt_prologue);
        return WENT_ON;
    }
    if (head->magic == SHUNT_HELLO_MAGIC && !may_be_hello)
        return refuse_without_key(j, c);
    if (head->magic != SHUNT_HELLO_MAGIC) {
        shunt_join_drop(c);
        return WAITS;
    }
    if (shunt_hello_check_protocol(head, "a node", &why))
        return refuse(c, &why, err);
    c->bytes = sizeof(struct shunt_hello);
    return WENT_ON;
}

/* True when the place is filled, or a connection of that rank is on its way to it. */
static bool is_taken(const struct shunt_joining *j, uint32_t rank, enum shunt_stream_kind kind)
{
    for (uint32_t i = 0; i < j->connection_max; i++) {
        const struct shunt_connection *c = &j->connections[i];

        if (!c->outgoing && c->admitted && c->rank == rank && c->kind == kind)
            return true;
    }
    return j->mesh->peers[rank].streams[kind].fd >= 0;
}

/* Where a node that rank 0 did not know of listens. */
static int take_address(struct shunt_joining *j, uint32_t rank, const char *who,
                        const struct shunt_hello *hello, struct shunt_error *err)
{
    struct shunt_joined *peer = &j->mesh->peers[rank];
    struct shunt_error why;

    if (j->has_table)
        return 0;
    memcpy(peer->address, hello->address, sizeof(peer->address));
    peer->address[sizeof(peer->address) - 1] = '\0';
    if (shunt_address_parse_numeric(&j->addresses[rank], peer->address, &why))
        return shunt_error_set(err, -EPROTO, "%s does not say where it listens: %s", who, why.text);
    if (!j->tls && !shunt_address_is_loopback(&j->addresses[rank]))
        return shunt_error_set(err, -EACCES, "%s listens on %s, which is no loopback address", who,
                               peer->address);
    j->texts[rank] = peer->address;
    return 0;
}

static int check_hello(struct shunt_joining *j, const struct shunt_hello *hello,
                       struct shunt_error *err)
{
    const struct shunt_rack_config *cfg = j->cfg;
    struct shunt_hello ours;
    char label[96];
    int rc;

    label_of(j, hello->rank, label, sizeof(label));
    shunt_hello_fill(&ours, cfg, known_rack(j));
    rc = shunt_hello_check(hello, &ours, label, err);
    if (rc)
        return rc;
    if (hello->rank <= cfg->rank || hello->rank >= cfg->node_count ||
        is_taken(j, hello->rank, SHUNT_STREAM_CONTROL))
        return shunt_error_set(err, -EPROTO,
                               "a node calls itself rank %u, and rank %u does not expect one; give "
                               "every node the same --rack, and each its own --rank",
                               hello->rank, cfg->rank);
    return take_address(j, hello->rank, label, hello, err);
}

/* Somebody has said hello and means to belong here. */
static int take_hello(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    struct shunt_answer *answer = &c->message.answer;
    uint32_t rank = c->message.hello.rank;
    struct shunt_place *place;
    struct shunt_error why;
    int rc;

    rc = check_hello(j, &c->message.hello, &why);
    if (rc)
        return refuse(c, &why, err);
    place = &j->places[rank];
    c->rank = rank;
    c->kind = SHUNT_STREAM_CONTROL;
    c->admitted = true;
    keep_hello(j, rank, &c->message.hello);
    memset(answer, 0, sizeof(*answer));
    answer->magic = SHUNT_ANSWER_MAGIC;
    answer->verdict = SHUNT_ACCEPTED;
    shunt_hello_fill(&answer->hello, j->cfg, known_rack(j));
    answer->hello.live_port = j->live_port;
    rc = shunt_secret_draw(place->token, sizeof(place->token));
    if (!rc && !j->tls)
        rc = shunt_secret_draw(answer->live_key, sizeof(answer->live_key));
    if (rc)
        return shunt_error_set(err, rc, "the system gives no random bytes: %s", strerror(-rc));
    place->granted = true;
    place->spent = false;
    memcpy(answer->token, place->token, sizeof(answer->token));
    memcpy(j->mesh->peers[rank].live_key, answer->live_key, sizeof(answer->live_key));
    c->part = SHUNT_JOIN_ANSWER;
    return send_message(c, sizeof(*answer));
}

static int send_table(struct shunt_joining *j, struct shunt_connection *c)
{
    struct shunt_table *table = &c->message.table;

    memset(table, 0, sizeof(*table));
    table->magic = SHUNT_TABLE_MAGIC;
    table->count = j->cfg->node_count;
    for (uint32_t r = 0; r < j->cfg->node_count; r++)
        snprintf(table->addresses[r], sizeof(table->addresses[r]), "%s", j->texts[r]);
    return send_message(c, sizeof(*table));
}

/* A token is good for one connection: it goes over the wire in clear, and whoever has seen it could
 * show it too. Where TLS follows, the first that is through with it has the place: one that broke
 * before may be made again, and one that stalls before keeps nobody from it. */
static bool is_spent(const struct shunt_joining *j, uint32_t rank)
{
    return j->places[rank].spent && (!j->data_tls || is_taken(j, rank, SHUNT_STREAM_DATA));
}

/* A data connection shows the token of its rank. What does not fit is nobody's fault that we know
 * of, and costs the rack nothing. */
static int take_prologue(struct shunt_joining *j, struct shunt_connection *c)
{
    const struct shunt_prologue *p = &c->message.prologue;
    struct shunt_place *place = p->rank < j->cfg->node_count ? &j->places[p->rank] : NULL;

    if (!place || p->rank <= j->cfg->rank || !place->granted || is_spent(j, p->rank) ||
        !shunt_prologue_presents(p, place->token)) {
        shunt_join_drop(c);
        return WAITS;
    }
    place->spent = true;
    c->rank = p->rank;
    c->kind = SHUNT_STREAM_DATA;
    c->admitted = true;
    return hold(c, SHUNT_JOIN_DATA_ANSWER);
}

/* The token has been shown, and anybody who has seen it could do so. */
static int shake_data(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    shunt_join_make_stranger(c);
    return start_tls(j, c, err);
}

static int accept_data(struct shunt_connection *c)
{
    c->admitted = true;
    c->message.head =
        (struct shunt_message_head){.magic = SHUNT_ANSWER_MAGIC, .word = SHUNT_ACCEPTED};
    c->part = SHUNT_JOIN_DATA_ANSWER;
    return send_message(c, sizeof(c->message.head));
}

/* ---- both */

static int is_shaken(struct shunt_joining *j, struct shunt_connection *c)
{
    if (c->kind == SHUNT_STREAM_CONTROL)
        return c->outgoing ? send_hello(j, c) : expect(c, SHUNT_JOIN_HELLO);
    if (c->outgoing)
        return expect(c, SHUNT_JOIN_DATA_ANSWER);
    if (!is_taken(j, c->rank, SHUNT_STREAM_DATA))
        return accept_data(c);
    shunt_join_drop(c);
    return WAITS;
}

static int handshake_failed(struct shunt_joining *j, struct shunt_connection *c,
                            const struct shunt_error *why, struct shunt_error *err)
{
    char label[96];

    if (!c->outgoing) {
        if (why->code == -EACCES || why->code == -ECONNREFUSED)
            note_stranger(j, c, why->text);
        return turn_away(c);
    }
    label_of(j, c->rank, label, sizeof(label));
    switch (why->code) {
    case -ECONNREFUSED:
        return is_refused(j, c->rank, err);
    case -EACCES:
        return shunt_error_set(err, -EACCES, "%s is not trusted: %s", label, why->text);
    case -EPROTO:
        return is_not_shunt(j, c, err);
    default:
        return retry_later(j, c, -why->code);
    }
}

static int shake(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    struct shunt_error why;
    int rc = shunt_tls_handshake(&c->stream, &c->events, &why);

    if (rc == -EAGAIN)
        return WAITS;
    return rc ? handshake_failed(j, c, &why, err) : is_shaken(j, c);
}

static int message_sent(struct shunt_joining *j, struct shunt_connection *c,
                        struct shunt_error *err)
{
    explicit_bzero(&c->message, sizeof(c->message));
    switch (c->part) {
    case SHUNT_JOIN_HELLO:
        return expect(c, SHUNT_JOIN_ANSWER);
    case SHUNT_JOIN_PROLOGUE:
        return j->data_tls ? start_tls(j, c, err) : expect(c, SHUNT_JOIN_DATA_ANSWER);
    case SHUNT_JOIN_ANSWER:
        return j->has_table ? adopt(j, c, err) : hold(c, SHUNT_JOIN_TABLE);
    default:
        return adopt(j, c, err);
    }
}

static int message_read(struct shunt_joining *j, struct shunt_connection *c,
                        struct shunt_error *err)
{
    switch (c->part) {
    case SHUNT_JOIN_HELLO:
        return hold(c, SHUNT_JOIN_HELLO);
    case SHUNT_JOIN_PROLOGUE:
        return take_prologue(j, c);
    case SHUNT_JOIN_ANSWER:
        return check_answer(j, c, err);
    default:
        return take_table(j, c, err);
    }
}

/* Return: 1 when the message is whole, 0 not yet, negative errno value. */
static int move_bytes(struct shunt_connection *c)
{
    unsigned char *bytes = (unsigned char *)&c->message;

    while (c->done < c->bytes) {
        ssize_t n = c->state == SHUNT_JOIN_SENDING
                        ? shunt_stream_send(&c->stream, bytes + c->done, c->bytes - c->done)
                        : shunt_stream_recv(&c->stream, bytes + c->done, c->bytes - c->done);

        if (n == -EAGAIN)
            return 0;
        if (n <= 0)
            return n ? (int)n : -ECONNRESET;
        c->done += (size_t)n;
    }
    return 1;
}

static int move_message(struct shunt_joining *j, struct shunt_connection *c,
                        struct shunt_error *err)
{
    int rc = move_bytes(c);

    if (rc == 0)
        return WAITS;
    /* A server that does not know our certificate says so after our handshake is done. */
    if (rc == -EPROTO && c->outgoing)
        return is_refused(j, c->rank, err);
    if (rc < 0)
        return broke(j, c, -rc);
    if (c->state == SHUNT_JOIN_SENDING)
        return message_sent(j, c, err);
    if (c->bytes > sizeof(c->message.head))
        return message_read(j, c, err);
    return c->outgoing ? take_answer_head(j, c, err) : take_head(j, c, err);
}

/* A rank other than 0 can compare nothing before it has the table; rank 0 sends it when everybody
 * has said where to be found. Data waits until the rack has settled how it travels. */
static int go_on(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    switch (c->part) {
    case SHUNT_JOIN_HELLO:
        return j->has_table || j->cfg->rank == 0 ? take_hello(j, c, err) : WAITS;
    case SHUNT_JOIN_TABLE:
        return j->has_table ? send_table(j, c) : WAITS;
    default:
        if (!j->settled)
            return WAITS;
        return j->data_tls ? shake_data(j, c, err) : accept_data(c);
    }
}

static int step(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    switch (c->state) {
    case SHUNT_JOIN_CONNECTING:
        return connected(j, c, err);
    case SHUNT_JOIN_OPENING:
        return look_at_first_byte(j, c, err);
    case SHUNT_JOIN_SHAKING:
        return shake(j, c, err);
    case SHUNT_JOIN_READING:
    case SHUNT_JOIN_SENDING:
        return move_message(j, c, err);
    case SHUNT_JOIN_HELD:
        return go_on(j, c, err);
    case SHUNT_JOIN_TURNING_AWAY:
        return drain(c);
    default:
        return WAITS;
    }
}

int shunt_join_advance(struct shunt_joining *j, struct shunt_connection *c, struct shunt_error *err)
{
    int rc;

    do {
        rc = step(j, c, err);
    } while (rc > 0);
    return rc;
}

short shunt_join_events(const struct shunt_connection *c)
{
    switch (c->state) {
    case SHUNT_JOIN_SHAKING:
        return c->events;
    case SHUNT_JOIN_CONNECTING:
    case SHUNT_JOIN_SENDING:
        return POLLOUT;
    case SHUNT_JOIN_HELD:
        return POLLRDHUP;
    default:
        return POLLIN;
    }
}
