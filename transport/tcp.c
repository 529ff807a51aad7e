/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport over TCP streams. A put travels as a header of 32 bytes and its payload; the
 * receiver copies the payload to the offset that the header names, as a NIC would, and hands out
 * ARRIVED once it is whole. Small messages come through a staging buffer, so that header and
 * payload cost one system call; what exceeds it is received straight into the inbox. Credit rides
 * on the headers; a header of its own carries it where nothing else is sent.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "transport/region.h"
#include "transport/tcp_stage.h"
#include "transport/transport.h"

#define HEADER_MAGIC 0x32504853u /* "SHP2" */

/* Credit is told at the latest when half of the window has been released. */
#define CREDIT_EVERY (SHUNT_TRANSPORT_WINDOW / 2)

enum kind { KIND_PUT = 1, KIND_CREDIT };

/*  0       4      6          8       12      16             24             32
 *  | magic | kind | released |  imm  |   0   |    offset    |    bytes     |  payload ... */
struct put_header {
    uint32_t magic;
    uint16_t kind;
    uint16_t released;
    uint32_t imm;
    uint32_t zero;
    uint64_t off;
    uint64_t bytes;
};
_Static_assert(sizeof(struct put_header) == 32, "the header is a wire format");

struct open_put {
    struct put_header header;
    const unsigned char *src;
    bool begun;
    uint64_t sent;       /* of header and payload together */
    int64_t deadline_ns; /* 0: its time has not begun */
};

struct peer {
    struct shunt_stream stream; /* none: this node, or lost */
    uint64_t inbox_bytes;

    /* Puts not yet sent whole: a ring, oldest first. */
    struct open_put puts[SHUNT_TRANSPORT_DEPTH];
    uint32_t first, count;
    uint32_t under_way; /* of its window: puts begun and not yet released there */
    uint32_t arrived;   /* its puts ARRIVED here and not released */
    uint32_t untold;    /* released and not told */
    int send_error;     /* 0: the stream takes bytes; else it is lost once read to its end */
    bool crediting;     /* `credit` is under way */
    struct open_put credit;

    /* Receiving: staged bytes not yet consumed, and the put whose payload is under way. */
    unsigned char *stage; /* [TCP_STAGE_BYTES] */
    uint32_t stage_begin, stage_end;
    bool in_payload;
    struct put_header incoming;
    uint64_t received; /* of its payload */

    int lost_error; /* not yet handed out when lost_reason is set */
    const char *lost_reason;
};

struct shunt_transport {
    uint32_t rank, node_count;
    unsigned char *inbox;
    uint64_t inbox_bytes;
    int64_t put_timeout_ns;
    struct shunt_region *memory; /* [memory_count] */
    uint32_t memory_count;
    struct peer *peers; /* [node_count] */
    unsigned char *stages;
    uint32_t turn; /* the peer that poll looks at first */
    int ready_fd;  /* always readable: for a sleeper who need not sleep */
    struct shunt_transport_counters counters;
};

/* Completions of one poll call. */
struct sink {
    struct shunt_completion *out;
    uint32_t count, max;
};

static bool is_there(const struct peer *p)
{
    return p->stream.fd >= 0;
}

static void lose(struct peer *p, int error, const char *reason)
{
    shunt_stream_close(&p->stream);
    p->count = 0;
    p->lost_error = error;
    p->lost_reason = reason;
}

static bool tcp_close(struct shunt_transport *t)
{
    if (!t)
        return true;
    for (uint32_t i = 0; t->peers && i < t->node_count; i++)
        shunt_stream_close(&t->peers[i].stream);
    if (t->ready_fd >= 0)
        close(t->ready_fd);
    free(t->memory);
    free(t->peers);
    free(t->stages);
    free(t);
    return true;
}

static uint64_t tcp_footprint(uint32_t node_count)
{
    return sizeof(struct shunt_transport) + node_count * (TCP_STAGE_BYTES + sizeof(struct peer));
}

static struct shunt_transport *allocate(const struct shunt_transport_config *cfg)
{
    struct shunt_transport *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->ready_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    t->peers = calloc(cfg->node_count, sizeof(*t->peers));
    t->stages = malloc((size_t)cfg->node_count * TCP_STAGE_BYTES);
    t->memory = calloc(cfg->memory_count + 1, sizeof(*t->memory));
    if (t->ready_fd >= 0 && t->peers && t->stages && t->memory)
        return t;
    tcp_close(t); /* of no nodes yet */
    return NULL;
}

static int tcp_open(struct shunt_transport **out, const struct shunt_transport_config *cfg,
                    struct shunt_error *err)
{
    struct shunt_transport *t = allocate(cfg);
    const int one = 1;
    int rc;

    if (!t) {
        shunt_transport_drop_streams(cfg);
        return shunt_error_set(err, -ENOMEM, "out of memory or descriptors for the tcp transport");
    }
    t->rank = cfg->rank;
    t->node_count = cfg->node_count;
    t->inbox = cfg->inbox.base;
    t->inbox_bytes = cfg->inbox.bytes;
    t->put_timeout_ns = cfg->put_timeout_ns;
    t->memory_count = cfg->memory_count;
    if (cfg->memory_count > 0)
        memcpy(t->memory, cfg->memory, cfg->memory_count * sizeof(*cfg->memory));
    for (uint32_t i = 0; i < cfg->node_count; i++) {
        struct peer *p = &t->peers[i];

        p->stream = i == cfg->rank ? SHUNT_STREAM_NONE : cfg->streams[i];
        p->inbox_bytes = cfg->peer_inbox_bytes[i];
        p->stage = t->stages + (size_t)i * TCP_STAGE_BYTES;
        if (is_there(p)) /* a layer's message must not wait for the acknowledgement of the last */
            setsockopt(p->stream.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    rc = shunt_regions_check(cfg, "tcp", err);
    if (rc) {
        tcp_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

/* ---- sending */

/* Sends what the stream takes. Return: true when it is sent whole. A stream that takes no more may
 * still hold what the peer was told is SENT: the error waits until that has been read. */
static bool send_some(struct peer *p, struct open_put *put)
{
    const uint64_t header_bytes = sizeof(put->header);
    uint64_t total = header_bytes + put->header.bytes;

    while (put->sent < total && !p->send_error) {
        struct iovec iov[2];
        int count = 0;
        uint64_t payload_sent = put->sent > header_bytes ? put->sent - header_bytes : 0;
        ssize_t n;

        if (put->sent < header_bytes)
            iov[count++] =
                (struct iovec){(char *)&put->header + put->sent, header_bytes - put->sent};
        if (put->header.bytes > payload_sent)
            iov[count++] = (struct iovec){(unsigned char *)(uintptr_t)put->src + payload_sent,
                                          put->header.bytes - payload_sent};
        n = shunt_stream_sendv(&p->stream, iov, count);
        if (n < 0) {
            if (n != -EAGAIN)
                p->send_error = (int)n;
            return false;
        }
        put->sent += (uint64_t)n;
    }
    return put->sent == total;
}

/* What has been released since it was last told. */
static uint16_t take_credit(struct peer *p)
{
    uint16_t released = (uint16_t)p->untold;

    p->untold = 0;
    return released;
}

/* A put that has begun is sent to its end before anything else, also when the stream has not taken
 * any of it: TLS must be offered the same bytes again. One that has not waits for credit of the
 * peer's. Return: true when the oldest put is sent whole. */
static bool send_oldest(struct peer *p)
{
    struct open_put *put = &p->puts[p->first];

    if (p->count > 0 && put->begun)
        return send_some(p, put);
    if (!p->crediting && p->untold >= CREDIT_EVERY) {
        p->credit = (struct open_put){
            .header = {.magic = HEADER_MAGIC, .kind = KIND_CREDIT, .released = take_credit(p)}};
        p->crediting = true;
    }
    if (p->crediting && !send_some(p, &p->credit))
        return false;
    p->crediting = false;
    if (p->count == 0 || p->under_way == SHUNT_TRANSPORT_WINDOW)
        return false;
    put->begun = true;
    put->header.released = take_credit(p);
    p->under_way++;
    return send_some(p, put);
}

static int tcp_put(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
                   uint64_t off, uint32_t imm)
{
    struct peer *p;

    if (peer >= t->node_count || peer == t->rank)
        return -EINVAL;
    p = &t->peers[peer];
    if (bytes > p->inbox_bytes || off > p->inbox_bytes - bytes ||
        !shunt_regions_hold(t->memory, t->memory_count, src, bytes))
        return -EINVAL;
    if (!is_there(p))
        return -EPIPE;
    if (p->count == SHUNT_TRANSPORT_DEPTH)
        return -EAGAIN;
    p->puts[(p->first + p->count) % SHUNT_TRANSPORT_DEPTH] = (struct open_put){
        .header = {.magic = HEADER_MAGIC, .kind = KIND_PUT, .imm = imm, .off = off, .bytes = bytes},
        .src = src,
    };
    p->count++;
    t->counters.puts_sent++;
    t->counters.bytes_sent += bytes;
    t->counters.writes++;
    /* The common case: the socket takes it all now. SENT is handed out by poll either way. */
    if (p->count == 1)
        send_oldest(p);
    return 0;
}

static void tcp_release(struct shunt_transport *t, uint32_t peer, uint32_t count)
{
    struct peer *p = &t->peers[peer];

    p->arrived -= count;
    p->untold += count;
    if (p->untold >= CREDIT_EVERY && is_there(p) && p->count == 0)
        send_oldest(p);
}

static void finish_puts(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];

    while (sink->count < sink->max && send_oldest(p)) {
        const struct open_put *put = &p->puts[p->first];

        sink->out[sink->count++] = (struct shunt_completion){
            .event = SHUNT_TRANSPORT_SENT,
            .peer = peer,
            .imm = put->header.imm,
        };
        p->first = (p->first + 1) % SHUNT_TRANSPORT_DEPTH;
        p->count--;
    }
}

/* ---- receiving */

/* The rest of a header is checked where it is used. */
static bool is_header(const struct peer *p, const struct put_header *h)
{
    return h->magic == HEADER_MAGIC && h->zero == 0 && h->released <= p->under_way &&
           (h->kind == KIND_PUT || (h->kind == KIND_CREDIT && h->bytes == 0 && h->released > 0));
}

/* Takes headers and payload from the stage. Return: false when the sink is full or the peer is
 * lost. */
static bool consume_stage(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];

    for (;;) {
        uint64_t staged = p->stage_end - p->stage_begin;

        if (!p->in_payload) {
            if (staged < sizeof(p->incoming))
                return true;
            memcpy(&p->incoming, p->stage + p->stage_begin, sizeof(p->incoming));
            if (!is_header(p, &p->incoming)) {
                lose(p, -EPROTO, "it sent something that is no message of shunt's");
                return false;
            }
            if (p->incoming.bytes > t->inbox_bytes ||
                p->incoming.off > t->inbox_bytes - p->incoming.bytes) {
                lose(p, -EPROTO, "it tried to write beyond this node's inbox");
                return false;
            }
            p->under_way -= p->incoming.released;
            p->stage_begin += sizeof(p->incoming);
            staged -= sizeof(p->incoming);
            if (p->incoming.kind == KIND_CREDIT)
                continue;
            if (p->arrived == SHUNT_TRANSPORT_WINDOW) {
                lose(p, -EPROTO, "it sent more than this node gave it credit for");
                return false;
            }
            p->in_payload = true;
            p->received = 0;
        }
        if (staged > p->incoming.bytes - p->received)
            staged = p->incoming.bytes - p->received;
        memcpy(t->inbox + p->incoming.off + p->received, p->stage + p->stage_begin, staged);
        p->stage_begin += (uint32_t)staged;
        p->received += staged;
        if (p->received < p->incoming.bytes)
            return true;
        if (sink->count == sink->max)
            return false;
        sink->out[sink->count++] = (struct shunt_completion){
            .event = SHUNT_TRANSPORT_ARRIVED,
            .peer = peer,
            .imm = p->incoming.imm,
        };
        t->counters.puts_received++;
        p->arrived++;
        p->in_payload = false;
    }
}

/* One recv, into the inbox when much of a payload is still to come, else into the stage. Return:
 * false when there is nothing more for now or the peer is lost. */
static bool receive_once(struct shunt_transport *t, struct peer *p)
{
    uint64_t left = p->in_payload ? p->incoming.bytes - p->received : 0;
    bool direct = left >= TCP_DIRECT_BYTES;
    size_t room;
    ssize_t n;
    int error;

    if (direct) {
        room = left;
        n = shunt_stream_recv(&p->stream, t->inbox + p->incoming.off + p->received, room);
    } else {
        memmove(p->stage, p->stage + p->stage_begin, p->stage_end - p->stage_begin);
        p->stage_end -= p->stage_begin;
        p->stage_begin = 0;
        room = TCP_STAGE_BYTES - p->stage_end;
        n = shunt_stream_recv(&p->stream, p->stage + p->stage_end, room);
    }
    if (n > 0) {
        if (direct)
            p->received += (uint64_t)n;
        else
            p->stage_end += (uint32_t)n;
        /* A socket that gave less had no more, and rarely has more than a large payload; TLS gives
         * a record at a time. */
        return ((size_t)n == room && !direct) || p->stream.tls != NULL;
    }
    error = n == -EAGAIN ? p->send_error : (int)n;
    if (n == 0)
        lose(p, -ECONNRESET, "it closed the connection");
    else if (error)
        lose(p, error, strerrordesc_np(-error));
    return false;
}

static void receive(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];
    bool more = true;

    while (is_there(p) && consume_stage(t, peer, sink) && more)
        more = receive_once(t, p);
}

/* A put's time begins when a poll finds it waiting: one that goes at once needs no clock. */
static void check_deadline(struct peer *p, int64_t timeout_ns)
{
    struct open_put *put = &p->puts[p->first];

    if (p->count == 0 || timeout_ns == 0)
        return;
    if (put->deadline_ns == 0)
        put->deadline_ns = shunt_deadline_ns(timeout_ns);
    else if (shunt_now_ns() >= put->deadline_ns)
        lose(p, -ETIMEDOUT, "it has not taken a message in the time given");
}

/* What has been sent is said before what has come: the peer may have gone right after it took it.
 */
static void move(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];
    uint32_t under_way;

    if (is_there(p))
        finish_puts(t, peer, sink);
    under_way = p->under_way;
    if (is_there(p))
        receive(t, peer, sink);
    if (is_there(p) && p->under_way < under_way) /* credit has come */
        finish_puts(t, peer, sink);
    check_deadline(p, t->put_timeout_ns);
}

static uint32_t next_peer(const struct shunt_transport *t, uint32_t peer)
{
    return peer + 1 < t->node_count ? peer + 1 : 0;
}

static uint32_t tcp_poll(struct shunt_transport *t, struct shunt_completion *out, uint32_t max)
{
    struct sink sink = {.out = out, .max = max};

    for (uint32_t i = 0, peer = t->turn; i < t->node_count; i++, peer = next_peer(t, peer)) {
        struct peer *p = &t->peers[peer];

        move(t, peer, &sink);
        if (p->lost_reason && sink.count < sink.max) {
            sink.out[sink.count++] = (struct shunt_completion){
                .event = SHUNT_TRANSPORT_LOST,
                .peer = peer,
                .error = p->lost_error,
                .reason = p->lost_reason,
            };
            p->lost_reason = NULL;
        }
    }
    t->turn = next_peer(t, t->turn);
    return sink.count;
}

/* A put without credit waits for the peer's word, not for room in the socket. */
static bool wants_to_send(const struct peer *p)
{
    if (p->crediting || p->untold >= CREDIT_EVERY)
        return true;
    return p->count > 0 && (p->puts[p->first].begun || p->under_way < SHUNT_TRANSPORT_WINDOW);
}

/* True when a poll would hand something out whatever the socket says: a put that is staged whole,
 * since the last poll had no room for it, or a loss, known or near. */
static bool has_completion(const struct peer *p)
{
    uint64_t staged = p->stage_end - p->stage_begin;
    struct put_header next;

    if (p->lost_reason)
        return true;
    if (!is_there(p))
        return false;
    if (p->send_error)
        return true;
    if (p->in_payload)
        return staged >= p->incoming.bytes - p->received;
    if (staged < sizeof(next))
        return false;
    memcpy(&next, p->stage + p->stage_begin, sizeof(next));
    return staged - sizeof(next) >= next.bytes;
}

static uint32_t tcp_prepare(struct shunt_transport *t, struct pollfd *fds, uint32_t max)
{
    bool ready = false;
    uint32_t n = 0;

    for (uint32_t i = 0; i < t->node_count; i++)
        ready |= has_completion(&t->peers[i]);
    if (ready && max > 0)
        fds[n++] = (struct pollfd){.fd = t->ready_fd, .events = POLLIN};
    for (uint32_t i = 0; i < t->node_count && n < max; i++) {
        const struct peer *p = &t->peers[i];

        if (!is_there(p))
            continue;
        fds[n++] = (struct pollfd){
            .fd = p->stream.fd,
            /* What TLS holds ready is no event of the socket; that it takes bytes nearly always is
             * one. */
            .events =
                (short)(wants_to_send(p) || shunt_stream_pending(&p->stream) ? POLLIN | POLLOUT
                                                                             : POLLIN),
        };
    }
    return n;
}

static const struct shunt_transport_counters *tcp_counters(const struct shunt_transport *t)
{
    return &t->counters;
}

const struct shunt_transport_ops shunt_transport_tcp = {
    .name = "tcp",
    .footprint = tcp_footprint,
    .open = tcp_open,
    .put = tcp_put,
    .release = tcp_release,
    .poll = tcp_poll,
    .prepare = tcp_prepare,
    .counters = tcp_counters,
    .close = tcp_close,
};
