/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport over TCP streams. A put travels as a header of 24 bytes and its payload; the
 * receiver copies the payload to the offset that the header names, as a NIC would, and hands out
 * ARRIVED once it is whole. Small messages come through a staging buffer, so that header and
 * payload cost one system call; what exceeds it is received straight into the inbox.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "runtime/base/bytes.h"
#include "transport/transport.h"

#define STAGE_BYTES  (64u << 10)
#define HEADER_MAGIC 0x31504853u /* "SHP1" */

/*  0       4       8              16             24
 *  | magic |  imm  |    offset    |    bytes     |  payload ... */
struct put_header {
    uint32_t magic;
    uint32_t imm;
    uint64_t off;
    uint64_t bytes;
};
_Static_assert(sizeof(struct put_header) == 24, "the header is a wire format");

struct open_put {
    struct put_header header;
    const unsigned char *src;
    uint64_t sent; /* of header and payload together */
};

struct peer {
    int fd; /* -1: this node, or lost */
    uint64_t inbox_bytes;

    /* Puts not yet sent whole: a ring, oldest first. */
    struct open_put puts[SHUNT_TRANSPORT_DEPTH];
    uint32_t first, count;

    /* Receiving: staged bytes not yet consumed, and the put whose payload is under way. */
    unsigned char *stage; /* [STAGE_BYTES] */
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
    struct peer *peers; /* [node_count] */
    unsigned char *stages;
    uint32_t turn; /* the peer that poll looks at first */
    struct shunt_transport_counters counters;
};

/* Completions of one poll call. */
struct sink {
    struct shunt_completion *out;
    uint32_t count, max;
};

static void lose(struct peer *p, int error, const char *reason)
{
    close(p->fd);
    p->fd = -1;
    p->count = 0;
    p->lost_error = error;
    p->lost_reason = reason;
}

static void tcp_close(struct shunt_transport *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; t->peers && i < t->node_count; i++)
        if (t->peers[i].fd >= 0)
            close(t->peers[i].fd);
    free(t->peers);
    free(t->stages);
    free(t);
}

static uint64_t tcp_footprint(uint32_t node_count)
{
    return sizeof(struct shunt_transport) + node_count * (STAGE_BYTES + sizeof(struct peer));
}

static int tcp_open(struct shunt_transport **out, const struct shunt_transport_config *cfg,
                    struct shunt_error *err)
{
    struct shunt_transport *t = calloc(1, sizeof(*t));
    const int one = 1;

    if (t) {
        t->peers = calloc(cfg->node_count, sizeof(*t->peers));
        t->stages = malloc((size_t)cfg->node_count * STAGE_BYTES);
    }
    if (!t || !t->peers || !t->stages) {
        for (uint32_t i = 0; i < cfg->node_count; i++)
            if (cfg->peer_fds[i] >= 0)
                close(cfg->peer_fds[i]);
        if (t)
            free(t->peers);
        if (t)
            free(t->stages);
        free(t);
        return shunt_error_set(err, -ENOMEM, "out of memory for the tcp transport");
    }
    t->rank = cfg->rank;
    t->node_count = cfg->node_count;
    t->inbox = cfg->inbox;
    t->inbox_bytes = cfg->inbox_bytes;
    for (uint32_t i = 0; i < cfg->node_count; i++) {
        struct peer *p = &t->peers[i];

        p->fd = i == cfg->rank ? -1 : cfg->peer_fds[i];
        p->inbox_bytes = cfg->peer_inbox_bytes[i];
        p->stage = t->stages + (size_t)i * STAGE_BYTES;
        if (p->fd >= 0) /* a layer's message must not wait for the acknowledgement of the last */
            setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    *out = t;
    return 0;
}

static bool would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* ---- sending */

/* Sends what the socket takes of the oldest put. Return: true when it is sent whole. */
static bool send_some(struct peer *p)
{
    struct open_put *put = &p->puts[p->first];
    const uint64_t header_bytes = sizeof(put->header);
    uint64_t total = header_bytes + put->header.bytes;

    while (put->sent < total) {
        struct iovec iov[2];
        struct msghdr msg = {.msg_iov = iov};
        uint64_t payload_sent = put->sent > header_bytes ? put->sent - header_bytes : 0;
        ssize_t n;

        if (put->sent < header_bytes)
            iov[msg.msg_iovlen++] =
                (struct iovec){(char *)&put->header + put->sent, header_bytes - put->sent};
        if (put->header.bytes > payload_sent)
            iov[msg.msg_iovlen++] =
                (struct iovec){(unsigned char *)(uintptr_t)put->src + payload_sent,
                               put->header.bytes - payload_sent};
        n = sendmsg(p->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (!would_block(errno))
                lose(p, -errno, strerrordesc_np(errno));
            return false;
        }
        put->sent += (uint64_t)n;
    }
    return true;
}

static int tcp_put(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
                   uint64_t off, uint32_t imm)
{
    struct peer *p;

    if (peer >= t->node_count || peer == t->rank)
        return -EINVAL;
    p = &t->peers[peer];
    if (bytes > p->inbox_bytes || off > p->inbox_bytes - bytes)
        return -EINVAL;
    if (p->fd < 0)
        return -EPIPE;
    if (p->count == SHUNT_TRANSPORT_DEPTH)
        return -EAGAIN;
    p->puts[(p->first + p->count) % SHUNT_TRANSPORT_DEPTH] = (struct open_put){
        .header = {.magic = HEADER_MAGIC, .imm = imm, .off = off, .bytes = bytes},
        .src = src,
    };
    p->count++;
    /* The common case: the socket takes it all now. SENT is handed out by poll either way. */
    if (p->count == 1)
        send_some(p);
    return 0;
}

static void finish_puts(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];

    while (p->count > 0 && sink->count < sink->max && send_some(p)) {
        const struct open_put *put = &p->puts[p->first];

        sink->out[sink->count++] = (struct shunt_completion){
            .event = SHUNT_TRANSPORT_SENT,
            .peer = peer,
            .imm = put->header.imm,
        };
        t->counters.puts_sent++;
        t->counters.bytes_sent += put->header.bytes;
        p->first = (p->first + 1) % SHUNT_TRANSPORT_DEPTH;
        p->count--;
    }
}

/* ---- receiving */

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
            if (p->incoming.magic != HEADER_MAGIC) {
                lose(p, -EPROTO, "it sent something that is no message of shunt's");
                return false;
            }
            if (p->incoming.bytes > t->inbox_bytes ||
                p->incoming.off > t->inbox_bytes - p->incoming.bytes) {
                lose(p, -EPROTO, "it tried to write beyond this node's inbox");
                return false;
            }
            p->stage_begin += sizeof(p->incoming);
            staged -= sizeof(p->incoming);
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
        t->counters.bytes_received += p->incoming.bytes;
        p->in_payload = false;
    }
}

/* One recv, into the inbox when a large payload is under way, else into the stage. Return: bytes, 0
 * when there is nothing more or the peer is lost. */
static size_t receive_once(struct shunt_transport *t, struct peer *p)
{
    uint64_t left = p->in_payload ? p->incoming.bytes - p->received : 0;
    bool direct = left >= STAGE_BYTES;
    ssize_t n;

    if (direct) {
        n = recv(p->fd, t->inbox + p->incoming.off + p->received, left, MSG_DONTWAIT);
    } else {
        memmove(p->stage, p->stage + p->stage_begin, p->stage_end - p->stage_begin);
        p->stage_end -= p->stage_begin;
        p->stage_begin = 0;
        n = recv(p->fd, p->stage + p->stage_end, STAGE_BYTES - p->stage_end, MSG_DONTWAIT);
    }
    if (n > 0) {
        if (direct)
            p->received += (uint64_t)n;
        else
            p->stage_end += (uint32_t)n;
        return (size_t)n;
    }
    if (n == 0)
        lose(p, -ECONNRESET, "it closed the connection");
    else if (!would_block(errno))
        lose(p, -errno, strerrordesc_np(errno));
    return 0;
}

static void receive(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];

    while (p->fd >= 0 && consume_stage(t, peer, sink) && receive_once(t, p) > 0)
        ;
}

static uint32_t tcp_poll(struct shunt_transport *t, struct shunt_completion *out, uint32_t max)
{
    struct sink sink = {.out = out, .max = max};

    for (uint32_t i = 0; i < t->node_count; i++) {
        uint32_t peer = (t->turn + i) % t->node_count;
        struct peer *p = &t->peers[peer];

        if (p->fd >= 0)
            finish_puts(t, peer, &sink);
        if (p->fd >= 0)
            receive(t, peer, &sink);
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
    t->turn = (t->turn + 1) % t->node_count;
    return sink.count;
}

static uint32_t tcp_prepare(struct shunt_transport *t, struct pollfd *fds, uint32_t max)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < t->node_count && n < max; i++) {
        const struct peer *p = &t->peers[i];

        if (p->fd < 0)
            continue;
        fds[n++] = (struct pollfd){
            .fd = p->fd,
            .events = (short)(p->count > 0 ? POLLIN | POLLOUT : POLLIN),
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
    .poll = tcp_poll,
    .prepare = tcp_prepare,
    .counters = tcp_counters,
    .close = tcp_close,
};
