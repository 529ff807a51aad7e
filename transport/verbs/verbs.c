/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport over RDMA: a put is one or more RDMA writes of which the last carries the
 * immediate. After the queue pairs are connected, the stream to a peer says only that its process
 * is gone.
 *
 * Whoever waits polls: completions are taken from the device's queue by the thread that calls poll,
 * and noted with the peer they belong to; what is handed out comes from these notes. No system call
 * lies on that way but the one with which some devices are told of new work; streams and the
 * device's own events are looked at once in a while.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/base/carve.h"
#include "runtime/base/clock.h"
#include "transport/verbs/verbs_impl.h"

#define LOOK_NS        (1 * SHUNT_NS_PER_MS)
#define POLLS_PER_LOOK 16u
#define FLUSH_NS       (200 * SHUNT_NS_PER_MS)

static bool is_there(const struct verbs_peer *p)
{
    return p->stream.fd >= 0;
}

void verbs_lose(struct shunt_transport *t, uint32_t peer, int error, const char *format, ...)
{
    struct verbs_peer *p = &t->peers[peer];
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    va_list args;

    if (!is_there(p))
        return;
    shunt_stream_close(&p->stream);
    p->count = 0;
    for (uint32_t r = 0; r < t->rail_count; r++) {
        p->lanes[r].posted = 0;
        if (p->lanes[r].qp) /* the device lets go of what was posted */
            ibv_modify_qp(p->lanes[r].qp, &attr, IBV_QP_STATE);
    }
    p->lost_error = error;
    va_start(args, format);
    vsnprintf(p->lost_reason, sizeof(p->lost_reason), format, args);
    va_end(args);
    t->waiting &= ~(1ull << peer);
    t->lost |= 1ull << peer;
}

/* ---- completions of the device */

/* What a status usually comes from, for the person who reads it. */
static const char *usual_cause(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
        return "its NIC does not answer: the process, the link or a switch";
    case IBV_WC_RNR_RETRY_EXC_ERR:
        return "it has no receive left, which credit should prevent: a bug of shunt's";
    case IBV_WC_REM_ACCESS_ERR:
        return "its NIC refused the access: the inbox is gone, or it is not the node it was";
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
        return "its NIC could not carry it out; its kernel log may say more";
    case IBV_WC_LOC_PROT_ERR:
        return "memory that was sent from is no longer registered: a bug of shunt's";
    case IBV_WC_WR_FLUSH_ERR:
        return "the queue pair broke before; the peer or the device may have gone";
    default:
        return "look at the kernel log of both nodes";
    }
}

__attribute__((cold)) static void take_error(struct shunt_transport *t, uint32_t peer,
                                             const struct ibv_wc *wc)
{
    verbs_lose(t, peer, -EIO, "QP 0x%06x: %s (%s; status %d, vendor error 0x%x)", wc->qp_num,
               ibv_wc_status_str(wc->status), usual_cause(wc->status), wc->status, wc->vendor_err);
}

static void take_immediate(struct shunt_transport *t, uint32_t peer, uint32_t rail,
                           const struct ibv_wc *wc)
{
    struct verbs_peer *p = &t->peers[peer];

    p->lanes[rail].taken++;
    t->ready |= 1ull << peer;
    if (rail > 0) {
        p->lanes[rail].extra++;
        return;
    }
    /* What this node has not said it released is still out of the peer's credit. */
    if (p->coming_count + p->arrived + p->untold >= SHUNT_TRANSPORT_WINDOW) {
        verbs_lose(t, peer, -EPROTO, "it sent more than this node gave it credit for");
        return;
    }
    p->coming[(p->coming_first + p->coming_count++) % SHUNT_TRANSPORT_WINDOW] =
        (struct verbs_coming){.imm = ntohl(wc->imm_data),
                              .striped = t->rail_count > 1 && wc->byte_len == 0};
}

static void take_credit(struct shunt_transport *t, uint32_t peer, uint32_t rail)
{
    struct verbs_peer *p = &t->peers[peer];

    if (rail > 0) {
        verbs_lose(t, peer, -EPROTO, "it sent something that is no message of shunt's");
        return;
    }
    verbs_post_receive(t, peer, 0);
    if (p->unreleased < VERBS_CREDIT_EVERY)
        verbs_lose(t, peer, -EPROTO, "it released more than was sent");
    else
        p->unreleased -= VERBS_CREDIT_EVERY;
}

/* The oldest put whose last write on this rail was not yet done. */
static void take_written(struct shunt_transport *t, uint32_t peer, uint32_t rail)
{
    struct verbs_peer *p = &t->peers[peer];

    for (uint32_t i = 0; i < p->count; i++) {
        struct verbs_put *put = &p->puts[(p->first + i) % SHUNT_TRANSPORT_DEPTH];

        if (!(put->pending & 1u << rail))
            continue;
        put->pending &= ~(1u << rail);
        break;
    }
    t->ready |= 1ull << peer;
}

static void take(struct shunt_transport *t, const struct ibv_wc *wc)
{
    enum verbs_work work = (enum verbs_work)(wc->wr_id >> 48);
    uint32_t rail = wc->wr_id >> 40 & 0xff, peer = wc->wr_id >> 32 & 0xff;
    struct verbs_peer *p = &t->peers[peer];

    p->lanes[rail].sends -= (uint32_t)wc->wr_id;
    if (!is_there(p))
        return;
    if (p->untold >= VERBS_CREDIT_EVERY) /* the send queue had no room */
        verbs_post_credit(t, peer);
    if (wc->status != IBV_WC_SUCCESS)
        take_error(t, peer, wc);
    else if (work == VERBS_PUT)
        take_written(t, peer, rail);
    else if (work == VERBS_RECEIVE && wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM)
        take_immediate(t, peer, rail, wc);
    else if (work == VERBS_RECEIVE)
        take_credit(t, peer, rail);
}

static void drain(struct shunt_transport *t)
{
    for (uint32_t r = 0; r < t->rail_count; r++) {
        struct ibv_wc wcs[16];
        int n;

        do {
            n = ibv_poll_cq(t->rails[r].cq, 16, wcs);
            for (int i = 0; i < n; i++)
                take(t, &wcs[i]);
        } while (n == 16);
    }
}

/* ---- handing out */

struct sink {
    struct shunt_completion *out;
    uint32_t count, max;
};

/* A striped put is there when each rail has brought its part. */
static bool is_whole(const struct shunt_transport *t, const struct verbs_peer *p)
{
    const struct verbs_coming *next = &p->coming[p->coming_first];

    for (uint32_t r = 1; next->striped && r < t->rail_count; r++)
        if (p->lanes[r].extra == 0)
            return false;
    return true;
}

static void hand_out_arrived(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct verbs_peer *p = &t->peers[peer];

    while (p->coming_count > 0 && sink->count < sink->max && is_whole(t, p)) {
        const struct verbs_coming *next = &p->coming[p->coming_first];

        for (uint32_t r = 1; next->striped && r < t->rail_count; r++)
            p->lanes[r].extra--;
        sink->out[sink->count++] = (struct shunt_completion){
            .event = SHUNT_TRANSPORT_ARRIVED, .peer = peer, .imm = next->imm};
        p->coming_first = (p->coming_first + 1) % SHUNT_TRANSPORT_WINDOW;
        p->coming_count--;
        p->arrived++;
        t->counters.puts_received++;
    }
}

static bool is_sent(const struct verbs_peer *p)
{
    const struct verbs_put *oldest = &p->puts[p->first];

    return p->count > 0 && oldest->begun && oldest->pending == 0;
}

static void hand_out_sent(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct verbs_peer *p = &t->peers[peer];

    while (is_sent(p) && sink->count < sink->max) {
        const struct verbs_put *put = &p->puts[p->first];

        sink->out[sink->count++] =
            (struct shunt_completion){.event = SHUNT_TRANSPORT_SENT, .peer = peer, .imm = put->imm};
        p->first = (p->first + 1) % SHUNT_TRANSPORT_DEPTH;
        p->count--;
        for (uint32_t r = 0; r < t->rail_count; r++)
            p->lanes[r].posted--;
    }
}

static void hand_out_lost(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    const struct verbs_peer *p = &t->peers[peer];

    t->lost &= ~(1ull << peer);
    sink->out[sink->count++] = (struct shunt_completion){.event = SHUNT_TRANSPORT_LOST,
                                                         .peer = peer,
                                                         .error = p->lost_error,
                                                         .reason = p->lost_reason};
}

static bool has_something(const struct shunt_transport *t, const struct verbs_peer *p)
{
    return is_sent(p) || (p->coming_count > 0 && is_whole(t, p));
}

/* What came before a peer's end goes first. */
static void hand_out_of(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    hand_out_arrived(t, peer, sink);
    hand_out_sent(t, peer, sink);
    if (has_something(t, &t->peers[peer]))
        return;
    t->ready &= ~(1ull << peer);
    if (t->lost >> peer & 1 && sink->count < sink->max)
        hand_out_lost(t, peer, sink);
}

/* Peers take turns: one that never falls silent must not keep the others from being heard. */
static void hand_out(struct shunt_transport *t, struct sink *sink)
{
    uint64_t peers = t->ready | t->lost;

    while (peers && sink->count < sink->max) {
        uint64_t later = peers & (UINT64_MAX << t->turn);
        uint32_t peer = (uint32_t)__builtin_ctzll(later ? later : peers);

        hand_out_of(t, peer, sink);
        peers &= ~(1ull << peer);
        t->turn = (peer + 1) % SHUNT_NODES_MAX;
    }
}

/* ---- what does not come as a completion */

/* After it is connected a peer says nothing more on its stream until its process ends. */
static void look_at_stream(struct shunt_transport *t, uint32_t peer)
{
    unsigned char byte;
    ssize_t n = shunt_stream_recv(&t->peers[peer].stream, &byte, 1);

    if (n == -EAGAIN)
        return;
    drain(t); /* what it had sent is here */
    if (n > 0)
        verbs_lose(t, peer, -EPROTO, "it sent something that is no message of shunt's");
    else if (n == 0)
        verbs_lose(t, peer, -ECONNRESET, "it closed the connection");
    else
        verbs_lose(t, peer, (int)n, "%s", strerror((int)-n));
}

static void lose_queue_pair(struct shunt_transport *t, const struct ibv_qp *qp, const char *what)
{
    for (uint32_t i = 0; i < t->node_count; i++)
        for (uint32_t r = 0; r < t->rail_count; r++)
            if (t->peers[i].lanes[r].qp == qp)
                verbs_lose(t, i, -EIO, "QP 0x%06x: %s", qp->qp_num, what);
}

static void take_event(struct shunt_transport *t, const struct verbs_rail *rail,
                       const struct ibv_async_event *event)
{
    const char *what = ibv_event_type_str(event->event_type);

    switch (event->event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
        lose_queue_pair(t, event->element.qp, what);
        return;
    case IBV_EVENT_CQ_ERR:
    case IBV_EVENT_DEVICE_FATAL:
        for (uint32_t i = 0; i < t->node_count; i++)
            verbs_lose(t, i, -EIO, "%s: %s", rail->label, what);
        return;
    default: /* a port that is down may come up again while retries go on */
        return;
    }
}

static void look_at_device(struct shunt_transport *t, const struct verbs_rail *rail)
{
    struct ibv_async_event event;

    while (ibv_get_async_event(rail->device, &event) == 0) {
        take_event(t, rail, &event);
        ibv_ack_async_event(&event);
    }
}

/* A put's time begins when it is first seen waiting. */
static void check_deadline(struct shunt_transport *t, uint32_t peer, int64_t now)
{
    struct verbs_peer *p = &t->peers[peer];
    struct verbs_put *put = &p->puts[p->first];

    if (p->count == 0 || t->put_timeout_ns == 0)
        return;
    if (put->deadline_ns == 0)
        put->deadline_ns = shunt_deadline_ns(t->put_timeout_ns);
    else if (now >= put->deadline_ns)
        verbs_lose(t, peer, -ETIMEDOUT, "it has not taken a message in the time given");
}

__attribute__((cold)) static void look_around(struct shunt_transport *t)
{
    int64_t now = shunt_now_ns();

    if (now - t->looked_ns < LOOK_NS)
        return;
    t->looked_ns = now;
    for (uint32_t r = 0; r < t->rail_count; r++)
        look_at_device(t, &t->rails[r]);
    for (uint32_t i = 0; i < t->node_count; i++) {
        struct verbs_peer *p = &t->peers[i];

        if (is_there(p))
            look_at_stream(t, i);
        check_deadline(t, i, now);
    }
}

/* ---- operations */

/* `block`: that in which the bytes begin, or NULL. */
static bool is_registered(const struct shunt_transport *t, const struct verbs_block *block,
                          const unsigned char *src, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t here = block ? (uint64_t)(block->base + block->bytes - src) : 0;

        if (here == 0)
            return false;
        if (here >= bytes)
            return true;
        src += here;
        bytes -= here;
        block = verbs_find_block(t, src);
    }
    return true;
}

static int verbs_put(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
                     uint64_t off, uint32_t imm)
{
    const struct verbs_block *block;
    struct verbs_peer *p;
    struct verbs_put *put;

    if (peer >= t->node_count || peer == t->rank)
        return -EINVAL;
    p = &t->peers[peer];
    if (bytes > p->inbox_bytes || off > p->inbox_bytes - bytes)
        return -EINVAL;
    if (!is_there(p))
        return -EPIPE;
    block = verbs_find_block(t, src);
    if (!is_registered(t, block, src, bytes))
        return -EINVAL;
    if (p->count == SHUNT_TRANSPORT_DEPTH)
        return -EAGAIN;
    put = &p->puts[(p->first + p->count++) % SHUNT_TRANSPORT_DEPTH];
    *put = (struct verbs_put){
        .src = src,
        .bytes = bytes,
        .off = off,
        .imm = imm,
        .striped = t->rail_count > 1 && (bytes == 0 || bytes >= VERBS_STRIPE_BYTES),
    };
    t->counters.puts_sent++;
    t->counters.bytes_sent += bytes;
    verbs_post_new(t, peer, put, block);
    return 0;
}

static void verbs_release(struct shunt_transport *t, uint32_t peer, uint32_t count)
{
    struct verbs_peer *p = &t->peers[peer];

    p->arrived -= count;
    p->untold += count;
    if (is_there(p))
        verbs_post_credit(t, peer);
}

/* What had no credit, or no room in a send queue. */
static void post_waiting(struct shunt_transport *t)
{
    for (uint64_t peers = t->waiting; peers; peers &= peers - 1)
        verbs_post_puts(t, (uint32_t)__builtin_ctzll(peers));
}

/* The sleeper is awake. */
static void take_ready(struct shunt_transport *t)
{
    uint64_t told;

    t->ready_told = read(t->ready_fd, &told, sizeof(told)) < 0;
}

static uint32_t verbs_poll(struct shunt_transport *t, struct shunt_completion *out, uint32_t max)
{
    struct sink sink = {.out = out, .max = max};

    if (t->ready_told)
        take_ready(t);
    drain(t);
    /* Who polls without a pause does not read the clock each time. */
    if (!t->looked_ns || ++t->polls % POLLS_PER_LOOK == 0)
        look_around(t);
    if (t->waiting)
        post_waiting(t);
    if (t->ready | t->lost)
        hand_out(t, &sink);
    return sink.count;
}

static bool is_anything_ready(const struct shunt_transport *t)
{
    for (uint64_t peers = t->ready; peers; peers &= peers - 1)
        if (has_something(t, &t->peers[__builtin_ctzll(peers)]))
            return true;
    return t->lost != 0;
}

/* Armed first, then looked: what came in between is noted, and keeps the sleeper awake. */
static uint32_t verbs_prepare(struct shunt_transport *t, struct pollfd *fds, uint32_t max)
{
    const uint64_t one = 1;
    struct ibv_cq *cq;
    void *ctx;

    if (max == 0 || t->rail_count == 0)
        return 0;
    for (uint32_t r = 0; r < t->rail_count; r++) {
        while (ibv_get_cq_event(t->rails[r].channel, &cq, &ctx) == 0)
            ibv_ack_cq_events(cq, 1);
        ibv_req_notify_cq(t->rails[r].cq, 0);
    }
    drain(t);
    post_waiting(t);  /* credit may have come; what this completes raises an event */
    t->looked_ns = 0; /* whatever wakes the sleeper is looked at */
    if (is_anything_ready(t) && !t->ready_told)
        t->ready_told = write(t->ready_fd, &one, sizeof(one)) == sizeof(one);
    fds[0] = (struct pollfd){.fd = t->epoll_fd, .events = POLLIN};
    return 1;
}

static const struct shunt_transport_counters *verbs_counters(const struct shunt_transport *t)
{
    return &t->counters;
}

/* ---- open and close */

static uint32_t outstanding(const struct shunt_transport *t)
{
    uint32_t sends = 0;

    for (uint32_t i = 0; i < t->node_count; i++)
        for (uint32_t r = 0; r < t->rail_count; r++)
            sends += t->peers[i].lanes[r].sends;
    return sends;
}

/* Queue pairs in error hand back what was posted: then nothing of ours is read any more. */
static void flush(struct shunt_transport *t)
{
    int64_t give_up = shunt_now_ns() + FLUSH_NS;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    for (uint32_t i = 0; i < t->node_count; i++)
        for (uint32_t r = 0; r < t->rail_count; r++)
            if (t->peers[i].lanes[r].qp)
                ibv_modify_qp(t->peers[i].lanes[r].qp, &attr, IBV_QP_STATE);
    while (outstanding(t) > 0 && shunt_now_ns() < give_up)
        drain(t);
}

/* Return: false when a queue pair would not die. */
static bool destroy_queue_pairs(struct shunt_transport *t)
{
    bool gone = true;

    for (uint32_t i = 0; i < t->node_count; i++)
        for (uint32_t r = 0; r < t->rail_count; r++)
            if (t->peers[i].lanes[r].qp)
                gone &= ibv_destroy_qp(t->peers[i].lanes[r].qp) == 0;
    return gone;
}

static void close_rail(struct verbs_rail *rail)
{
    if (rail->cq)
        ibv_destroy_cq(rail->cq);
    if (rail->channel)
        ibv_destroy_comp_channel(rail->channel);
    if (rail->pd)
        ibv_dealloc_pd(rail->pd);
    if (rail->device)
        ibv_close_device(rail->device);
}

/* In this order a device never holds what is already gone: posting stops, what was posted comes
 * back, queue pairs go, then registrations, and only then the memory, which is the caller's. Where
 * a queue pair stays, everything it may touch stays with it. */
static bool verbs_close(struct shunt_transport *t)
{
    bool gone;

    if (!t)
        return true;
    for (uint32_t i = 0; i < t->node_count; i++)
        shunt_stream_close(&t->peers[i].stream);
    if (t->epoll_fd >= 0)
        close(t->epoll_fd);
    if (t->ready_fd >= 0)
        close(t->ready_fd);
    flush(t);
    gone = destroy_queue_pairs(t) && verbs_deregister(t);
    for (uint32_t r = 0; r < t->rail_count && gone; r++)
        close_rail(&t->rails[r]);
    free(t->memory);
    free(t->peers);
    free(t);
    return gone;
}

static int open_rail(struct shunt_transport *t, struct verbs_rail *rail, struct shunt_error *err)
{
    const int entries = (int)(t->node_count * (VERBS_RECEIVES + VERBS_SENDS));
    int flags = fcntl(rail->device->async_fd, F_GETFL);

    rail->pd = ibv_alloc_pd(rail->device);
    rail->channel = ibv_create_comp_channel(rail->device);
    rail->cq = rail->channel ? ibv_create_cq(rail->device, entries, NULL, rail->channel, 0) : NULL;
    if (rail->pd && rail->cq && fcntl(rail->channel->fd, F_SETFL, O_NONBLOCK) == 0 &&
        fcntl(rail->device->async_fd, F_SETFL, flags | O_NONBLOCK) == 0)
        return 0;
    return shunt_error_set(err, -errno, "verbs: %s gives no completion queue of %d entries: %s",
                           rail->label, entries, strerror(errno));
}

static bool watch(struct shunt_transport *t, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};

    return epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* Everything that may wake a sleeper, as one descriptor: a closed stream leaves it by itself. */
static int watch_all(struct shunt_transport *t, struct shunt_error *err)
{
    bool ok;

    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ok = t->epoll_fd >= 0 && t->ready_fd >= 0 && watch(t, t->ready_fd);
    for (uint32_t r = 0; r < t->rail_count && ok; r++)
        ok = watch(t, t->rails[r].channel->fd) && watch(t, t->rails[r].device->async_fd);
    for (uint32_t i = 0; i < t->node_count && ok; i++)
        ok = !is_there(&t->peers[i]) || watch(t, t->peers[i].stream.fd);
    if (ok)
        return 0;
    return shunt_error_set(err, -errno, "verbs: no descriptors: %s; raise ulimit -n",
                           strerror(errno));
}

static int build(struct shunt_transport *t, const struct shunt_transport_config *cfg,
                 struct shunt_error *err)
{
    uint32_t first = 0;
    int rc;

    while (first < t->node_count && !is_there(&t->peers[first]))
        first++;
    if (first == t->node_count) /* alone */
        return 0;
    rc = verbs_open_rails(t, first, err);
    for (uint32_t r = 0; r < t->rail_count && !rc; r++)
        rc = open_rail(t, &t->rails[r], err);
    if (!rc)
        rc = verbs_register(t, cfg, err);
    if (!rc)
        rc = verbs_connect(t, cfg->patience, err);
    return rc ? rc : watch_all(t, err);
}

static int verbs_open(struct shunt_transport **out, const struct shunt_transport_config *cfg,
                      struct shunt_error *err)
{
    struct shunt_transport *t = calloc(1, sizeof(*t));
    struct verbs_peer *peers = calloc(cfg->node_count, sizeof(*peers));
    struct verbs_block *memory = calloc(verbs_count_blocks(cfg) + 1, sizeof(*memory));
    int rc;

    if (!t || !peers || !memory) {
        shunt_transport_drop_streams(cfg);
        free(t);
        free(peers);
        free(memory);
        return shunt_error_set(err, -ENOMEM, "out of memory for the verbs transport");
    }
    t->rank = cfg->rank;
    t->node_count = cfg->node_count;
    t->inbox = cfg->inbox.base;
    t->inbox_bytes = cfg->inbox.bytes;
    t->put_timeout_ns = cfg->put_timeout_ns;
    t->dead_after_ns = cfg->dead_after_ns;
    t->peers = peers;
    t->memory = memory;
    t->notify = cfg->notify;
    t->epoll_fd = t->ready_fd = -1;
    if (cfg->link)
        t->link = *cfg->link;
    for (uint32_t i = 0; i < cfg->node_count; i++) {
        peers[i].stream = i == cfg->rank ? SHUNT_STREAM_NONE : cfg->streams[i];
        peers[i].inbox_bytes = cfg->peer_inbox_bytes[i];
    }
    rc = build(t, cfg, err);
    if (rc) {
        /* Where a queue pair stays, so do its registrations, which keep the pages from any other
         * use, whatever the caller then does with the addresses. */
        verbs_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

/* Of a queue pair: its send and receive queues and completions, as drivers size them. */
#define LANE_BYTES (96u << 10)

static uint64_t verbs_footprint(uint32_t node_count)
{
    return sizeof(struct shunt_transport) +
           node_count * (sizeof(struct verbs_peer) + (uint64_t)LANE_BYTES);
}

const struct shunt_transport_ops shunt_transport_verbs = {
    .name = "verbs",
    .stream_is_secret = true,
    .footprint = verbs_footprint,
    .open = verbs_open,
    .put = verbs_put,
    .release = verbs_release,
    .poll = verbs_poll,
    .prepare = verbs_prepare,
    .counters = verbs_counters,
    .close = verbs_close,
};
