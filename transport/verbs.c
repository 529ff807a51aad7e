/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport over RDMA: one reliable connection (RC queue pair) per peer, puts as RDMA writes of
 * which the last carries the immediate. The stream that the rack hands over carries what the two
 * queue pairs must know of each other, and later says that the peer's process is gone.
 *
 * Nothing blocks: queue pairs are connected as the peers' words come, in poll. Until then, and
 * while the peer has no receive left for an immediate, puts wait in their ring. Receives are
 * counted: an empty send says that the peer has taken CREDIT_EVERY more, so that none is ever sent
 * in vain.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/carve.h"
#include "runtime/base/clock.h"
#include "transport/transport.h"

#define RECEIVES       SHUNT_TRANSPORT_WINDOW
#define CREDIT_EVERY   (RECEIVES / 2)
#define CREDITS_MAX    (RECEIVES / CREDIT_EVERY + 1) /* empty sends under way */
#define WRITE_MAX      (1ull << 30)
#define WRITES_PER_PUT 8u
#define LOOK_NS        (1 * SHUNT_NS_PER_MS)
#define STASH_MAX      64u

#define WORD_MAGIC   0x57425648u /* "HVBW" */
#define WORD_VERSION 1u

/* What a queue pair tells its partner. */
struct word {
    uint32_t magic, version;
    uint32_t qpn, psn;
    uint32_t inbox_rkey, mtu;
    uint64_t inbox, inbox_bytes;
    uint8_t gid[16];
};
_Static_assert(sizeof(struct word) == 56, "a wire format");

enum { TELLING, CONNECTED, UP };

struct open_put {
    const unsigned char *src;
    uint64_t bytes, off;
    uint32_t imm;
};

struct peer {
    struct shunt_stream stream; /* none: this node, or lost */
    uint64_t inbox_bytes;
    struct ibv_qp *qp;
    uint32_t state;
    struct word own, word;
    uint32_t heard; /* bytes of `word` that have come */

    struct open_put puts[SHUNT_TRANSPORT_DEPTH]; /* oldest first */
    uint32_t first, count, posted;
    uint32_t unanswered; /* immediates posted that the peer has not said it released */
    uint32_t arrived;    /* its puts ARRIVED here and not released */
    uint32_t untold;     /* released here and not said */

    int lost_error;
    const char *lost_reason;
};

struct shunt_transport {
    uint32_t rank, node_count;
    unsigned char *inbox;
    uint64_t inbox_bytes;
    struct peer *peers;
    struct ibv_context *device;
    uint8_t port;
    int gid_index;
    union ibv_gid gid;
    enum ibv_mtu mtu;
    uint64_t write_max;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_mr *inbox_mr;
    struct ibv_mr **local_mrs;
    uint32_t local_count;
    struct shunt_completion stash[STASH_MAX];
    uint32_t stash_count;
    int stash_fd;
    int64_t looked_ns;
    uint32_t turn;
    struct shunt_transport_counters counters;
};

struct sink {
    struct shunt_completion *out;
    uint32_t count, max;
};

static void lose(struct shunt_transport *t, struct peer *p, int error, const char *reason)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    (void)t;
    shunt_stream_close(&p->stream);
    p->count = 0;
    p->posted = 0;
    ibv_modify_qp(p->qp, &attr, IBV_QP_STATE); /* the NIC lets go of what was posted */
    p->lost_error = error;
    p->lost_reason = reason;
}

/* ---- open and close */

static void verbs_close(struct shunt_transport *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; t->peers && i < t->node_count; i++) {
        struct peer *p = &t->peers[i];

        if (p->qp)
            ibv_destroy_qp(p->qp);
        shunt_stream_close(&p->stream);
    }
    if (t->inbox_mr)
        ibv_dereg_mr(t->inbox_mr);
    for (uint32_t i = 0; i < t->local_count; i++)
        ibv_dereg_mr(t->local_mrs[i]);
    if (t->cq)
        ibv_destroy_cq(t->cq);
    if (t->channel)
        ibv_destroy_comp_channel(t->channel);
    if (t->pd)
        ibv_dealloc_pd(t->pd);
    if (t->device)
        ibv_close_device(t->device);
    if (t->stash_fd >= 0)
        close(t->stash_fd);
    free(t->local_mrs);
    free(t->peers);
    free(t);
}

/* The address as RoCE v2 has it: IPv4 mapped into IPv6. */
static bool gid_of_socket(int fd, union ibv_gid *gid)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);

    if (getsockname(fd, (struct sockaddr *)&a, &len))
        return false;
    memset(gid, 0, sizeof(*gid));
    if (a.ss_family == AF_INET6) {
        memcpy(gid->raw, &((struct sockaddr_in6 *)&a)->sin6_addr, 16);
        return true;
    }
    gid->raw[10] = gid->raw[11] = 0xff;
    memcpy(gid->raw + 12, &((struct sockaddr_in *)&a)->sin_addr, 4);
    return a.ss_family == AF_INET;
}

/* Opens the device that has the address of this socket. */
static int open_device(struct shunt_transport *t, int fd, struct shunt_error *err)
{
    struct ibv_gid_entry entries[256];
    struct ibv_device **list;
    union ibv_gid wanted;
    int count = 0;

    if (!gid_of_socket(fd, &wanted))
        return shunt_error_set(err, -EINVAL, "verbs: the data stream has no IP address");
    list = ibv_get_device_list(&count);
    for (int i = 0; i < count; i++) {
        struct ibv_context *device = ibv_open_device(list[i]);
        ssize_t n = device ? ibv_query_gid_table(device, entries, 256, 0) : 0;

        for (ssize_t g = 0; g < n; g++) {
            struct ibv_port_attr port;

            if (entries[g].gid_type != IBV_GID_TYPE_ROCE_V2 ||
                memcmp(entries[g].gid.raw, wanted.raw, 16) ||
                ibv_query_port(device, (uint8_t)entries[g].port_num, &port))
                continue;
            t->device = device;
            t->port = (uint8_t)entries[g].port_num;
            t->gid_index = (int)entries[g].gid_index;
            t->gid = entries[g].gid;
            t->mtu = port.active_mtu;
            t->write_max = port.max_msg_sz < WRITE_MAX ? port.max_msg_sz : WRITE_MAX;
            ibv_free_device_list(list);
            return 0;
        }
        if (device)
            ibv_close_device(device);
    }
    if (list)
        ibv_free_device_list(list);
    return shunt_error_set(err, -ENODEV, "verbs: no RDMA device has this node's address");
}

static int make_queue_pair(struct shunt_transport *t, struct peer *p, struct shunt_error *err)
{
    struct ibv_qp_init_attr init = {
        .send_cq = t->cq,
        .recv_cq = t->cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = SHUNT_TRANSPORT_DEPTH * WRITES_PER_PUT + 8,
                .max_recv_wr = RECEIVES + CREDITS_MAX,
                .max_send_sge = 1,
                .max_recv_sge = 0,
                .max_inline_data = 64},
    };
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = t->port, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};

    p->qp = ibv_create_qp(t->pd, &init);
    if (!p->qp ||
        ibv_modify_qp(p->qp, &attr,
                      IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS))
        return shunt_error_set(err, -errno, "verbs: no queue pair: %s", strerror(errno));
    for (uint32_t i = 0; i < RECEIVES + CREDITS_MAX; i++) {
        struct ibv_recv_wr wr = {0}, *bad;

        if (ibv_post_recv(p->qp, &wr, &bad))
            return shunt_error_set(err, -errno, "verbs: no receives: %s", strerror(errno));
    }
    return 0;
}

static void fill_word(struct shunt_transport *t, uint32_t peer)
{
    struct peer *p = &t->peers[peer];

    p->own = (struct word){
        .magic = WORD_MAGIC,
        .version = WORD_VERSION,
        .qpn = p->qp->qp_num,
        .psn = p->qp->qp_num * 2654435761u & 0xffffff,
        .inbox_rkey = t->inbox_mr ? t->inbox_mr->rkey : 0,
        .mtu = (uint32_t)t->mtu,
        .inbox = (uintptr_t)t->inbox,
        .inbox_bytes = t->inbox_bytes,
    };
    memcpy(p->own.gid, t->gid.raw, 16);
}

/* A piece of memory whose bytes puts read: registered for local use only. */
static int add_memory(struct shunt_transport *t, const struct shunt_region *m,
                      struct shunt_error *err)
{
    t->local_mrs[t->local_count] = ibv_reg_mr(t->pd, m->base, m->bytes, 0);
    if (!t->local_mrs[t->local_count])
        return shunt_error_set(err, -errno,
                               "verbs: cannot register %" PRIu64
                               " bytes: %s; raise the limit on locked "
                               "memory (ulimit -l unlimited)",
                               m->bytes, strerror(errno));
    t->local_count++;
    return 0;
}

static int open_resources(struct shunt_transport *t, const struct shunt_transport_config *cfg,
                          struct shunt_error *err)
{
    uint32_t entries = cfg->node_count * (RECEIVES + SHUNT_TRANSPORT_DEPTH * WRITES_PER_PUT + 8);
    int rc = 0;

    t->pd = ibv_alloc_pd(t->device);
    t->channel = ibv_create_comp_channel(t->device);
    t->cq = t->channel ? ibv_create_cq(t->device, (int)entries, NULL, t->channel, 0) : NULL;
    if (!t->pd || !t->cq || fcntl(t->channel->fd, F_SETFL, O_NONBLOCK))
        return shunt_error_set(err, -errno, "verbs: no completion queue: %s", strerror(errno));
    if (t->inbox_bytes > 0)
        t->inbox_mr = ibv_reg_mr(t->pd, t->inbox, t->inbox_bytes,
                                 IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    if (t->inbox_bytes > 0 && !t->inbox_mr)
        return shunt_error_set(err, -errno,
                               "verbs: cannot register the inbox: %s; raise the limit on locked "
                               "memory (ulimit -l unlimited)",
                               strerror(errno));
    for (uint32_t i = 0; i < cfg->memory_count && !rc; i++)
        rc = add_memory(t, &cfg->memory[i], err);
    return rc;
}

/* ---- connecting */

static bool connect_queue_pair(struct shunt_transport *t, struct peer *p)
{
    enum ibv_mtu mtu = p->word.mtu < (uint32_t)t->mtu ? (enum ibv_mtu)p->word.mtu : t->mtu;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = mtu,
        .dest_qp_num = p->word.qpn,
        .rq_psn = p->word.psn,
        .max_dest_rd_atomic = 1,
        .min_rnr_timer = 12,
        .ah_attr = {.is_global = 1,
                    .port_num = t->port,
                    .grh = {.sgid_index = (uint8_t)t->gid_index, .hop_limit = 64}},
    };

    memcpy(attr.ah_attr.grh.dgid.raw, p->word.gid, 16);
    if (ibv_modify_qp(p->qp, &attr,
                      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
        return false;
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS,
                                .timeout = 14,
                                .retry_cnt = 7,
                                .rnr_retry = 7,
                                .sq_psn = p->own.psn,
                                .max_rd_atomic = 1};
    return ibv_modify_qp(p->qp, &attr,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                             IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC) == 0;
}

static bool would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* Takes what has come of the peer's words. Return: 0; -errno, or -ECONNRESET when it has gone. */
static int hear(struct shunt_transport *t, struct peer *p)
{
    while (p->state != UP) {
        unsigned char ready;
        ssize_t n = p->state == TELLING ? recv(p->stream.fd, (char *)&p->word + p->heard,
                                               sizeof(p->word) - p->heard, MSG_DONTWAIT)
                                        : recv(p->stream.fd, &ready, 1, MSG_DONTWAIT);

        if (n < 0 && would_block(errno))
            return 0;
        if (n <= 0)
            return n ? -errno : -ECONNRESET;
        if (p->state == CONNECTED) {
            p->state = UP;
            continue;
        }
        p->heard += (uint32_t)n;
        if (p->heard < sizeof(p->word))
            continue;
        if (p->word.magic != WORD_MAGIC || p->word.version != WORD_VERSION ||
            p->word.inbox_bytes != p->inbox_bytes)
            return -EPROTO;
        if (!connect_queue_pair(t, p))
            return -errno;
        p->state = CONNECTED;
        if (send(p->stream.fd, "R", 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
            return -errno;
    }
    return 0;
}

static int wait_for_peers(struct shunt_transport *t, const struct shunt_patience *patience,
                          struct shunt_error *err)
{
    for (;;) {
        struct pollfd fds[SHUNT_NODES_MAX];
        struct timespec slice = shunt_timespec(SHUNT_PATIENCE_SLICE_NS);
        uint32_t awaited = t->node_count, n = 0;
        int rc;

        for (uint32_t i = 0; i < t->node_count; i++) {
            struct peer *p = &t->peers[i];

            if (p->stream.fd < 0 || p->state == UP)
                continue;
            rc = hear(t, p);
            if (rc)
                return shunt_error_set(
                    err, rc, "verbs: rank %" PRIu32 " cannot be connected: %s", i,
                    rc == -EPROTO ? "it speaks another language" : strerror(-rc));
            if (p->state == UP)
                continue;
            awaited = i;
            fds[n++] = (struct pollfd){.fd = p->stream.fd, .events = POLLIN};
        }
        if (awaited == t->node_count)
            return 0;
        rc = shunt_patience_check(patience, err);
        if (rc == -ETIMEDOUT)
            shunt_error_set(err, rc, "verbs: rank %" PRIu32 " has not connected its queue pair",
                            awaited);
        if (rc)
            return rc;
        ppoll(fds, n, &slice, NULL);
    }
}

static int verbs_open(struct shunt_transport **out, const struct shunt_transport_config *cfg,
                      struct shunt_error *err)
{
    struct shunt_transport *t = calloc(1, sizeof(*t));
    int rc = 0;

    if (t) {
        t->stash_fd = -1;
        t->node_count = cfg->node_count;
        t->peers = calloc(cfg->node_count, sizeof(*t->peers));
        t->local_mrs = calloc(cfg->memory_count + 1, sizeof(struct ibv_mr *));
    }
    if (!t || !t->peers || !t->local_mrs) {
        for (uint32_t i = 0; i < cfg->node_count; i++)
            shunt_stream_close(&(struct shunt_stream){cfg->streams[i].fd, cfg->streams[i].tls});
        if (t)
            t->node_count = 0;
        verbs_close(t);
        return shunt_error_set(err, -ENOMEM, "out of memory for the verbs transport");
    }
    t->rank = cfg->rank;
    t->inbox = cfg->inbox.base;
    t->inbox_bytes = cfg->inbox.bytes;
    for (uint32_t i = 0; i < cfg->node_count; i++) {
        t->peers[i].stream = i == cfg->rank ? SHUNT_STREAM_NONE : cfg->streams[i];
        t->peers[i].inbox_bytes = cfg->peer_inbox_bytes[i];
    }
    t->stash_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (uint32_t i = 0; i < cfg->node_count && !t->device && !rc; i++)
        if (t->peers[i].stream.fd >= 0)
            rc = open_device(t, t->peers[i].stream.fd, err);
    if (!rc && t->device)
        rc = open_resources(t, cfg, err);
    for (uint32_t i = 0; i < cfg->node_count && !rc; i++) {
        struct peer *p = &t->peers[i];

        if (p->stream.fd < 0)
            continue;
        rc = make_queue_pair(t, p, err);
        if (rc)
            break;
        fill_word(t, i);
        if (send(p->stream.fd, &p->own, sizeof(p->own), MSG_NOSIGNAL | MSG_DONTWAIT) !=
            (ssize_t)sizeof(p->own))
            rc = shunt_error_set(err, -ECONNRESET,
                                 "verbs: rank %" PRIu32 " has closed the connection", i);
    }
    if (!rc)
        rc = wait_for_peers(t, cfg->patience, err);
    if (rc) {
        verbs_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

static uint64_t verbs_footprint(uint32_t node_count)
{
    return sizeof(struct shunt_transport) + node_count * (sizeof(struct peer) + (64u << 10));
}

/* ---- the end of a peer */

/* After its words a peer says nothing more on the stream until its process ends. */
static void look_at_stream(struct shunt_transport *t, struct peer *p)
{
    unsigned char byte;
    ssize_t n = recv(p->stream.fd, &byte, 1, MSG_DONTWAIT);

    if (n > 0)
        lose(t, p, -EPROTO, "it sent something that is no message of shunt's");
    else if (n == 0)
        lose(t, p, -ECONNRESET, "it closed the connection");
    else if (!would_block(errno))
        lose(t, p, -errno, strerrordesc_np(errno));
}

/* ---- sending */

static uint32_t lkey_of(const struct shunt_transport *t, const void *src, uint64_t bytes)
{
    for (uint32_t i = 0; i < t->local_count; i++) {
        const struct ibv_mr *mr = t->local_mrs[i];
        const unsigned char *base = mr->addr, *at = src;

        if (at >= base && at + bytes <= base + mr->length)
            return mr->lkey;
    }
    return 0;
}

static void post_put(struct shunt_transport *t, uint32_t peer, const struct open_put *put)
{
    struct peer *p = &t->peers[peer];
    struct ibv_send_wr wrs[WRITES_PER_PUT], *bad;
    struct ibv_sge sges[WRITES_PER_PUT];
    uint32_t lkey = lkey_of(t, put->src, put->bytes);
    uint64_t done = 0;
    uint32_t n = 0;

    do {
        uint64_t bytes = put->bytes - done < t->write_max ? put->bytes - done : t->write_max;
        bool last = done + bytes == put->bytes;

        sges[n] = (struct ibv_sge){
            .addr = (uintptr_t)put->src + done, .length = (uint32_t)bytes, .lkey = lkey};
        wrs[n] = (struct ibv_send_wr){
            .wr_id = peer,
            .sg_list = &sges[n],
            .num_sge = bytes > 0,
            .opcode = last ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE,
            .send_flags =
                (last ? IBV_SEND_SIGNALED : 0u) | (put->bytes <= 64 ? IBV_SEND_INLINE : 0u),
            .imm_data = htonl(put->imm),
            .wr.rdma = {.remote_addr = p->word.inbox + put->off + done, .rkey = p->word.inbox_rkey},
        };
        if (n > 0)
            wrs[n - 1].next = &wrs[n];
        n++;
        done += bytes;
    } while (done < put->bytes);
    p->unanswered++;
    if (ibv_post_send(p->qp, wrs, &bad))
        lose(t, p, -errno, "the NIC takes no more writes to it");
}

static void post_puts(struct shunt_transport *t, uint32_t peer)
{
    struct peer *p = &t->peers[peer];

    while (p->stream.fd >= 0 && p->posted < p->count && p->unanswered < RECEIVES) {
        p->posted++;
        post_put(t, peer, &p->puts[(p->first + p->posted - 1) % SHUNT_TRANSPORT_DEPTH]);
    }
}

static int verbs_put(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
                     uint64_t off, uint32_t imm)
{
    struct peer *p;

    if (peer >= t->node_count || peer == t->rank)
        return -EINVAL;
    p = &t->peers[peer];
    if (bytes > p->inbox_bytes || off > p->inbox_bytes - bytes ||
        bytes > t->write_max * WRITES_PER_PUT)
        return -EINVAL;
    if (p->stream.fd < 0)
        return -EPIPE;
    if (bytes > 64 && !lkey_of(t, src, bytes))
        return -EINVAL;
    if (p->count == SHUNT_TRANSPORT_DEPTH)
        return -EAGAIN;
    p->puts[(p->first + p->count) % SHUNT_TRANSPORT_DEPTH] =
        (struct open_put){.src = src, .bytes = bytes, .off = off, .imm = imm};
    p->count++;
    post_puts(t, peer);
    return 0;
}

/* Tells the peer that CREDIT_EVERY of its immediates have been taken. */
static void tell(struct shunt_transport *t, uint32_t peer)
{
    struct peer *p = &t->peers[peer];
    struct ibv_send_wr *bad,
        wr = {.wr_id = 1ull << 32 | peer, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED};

    p->untold -= CREDIT_EVERY;
    if (ibv_post_send(p->qp, &wr, &bad))
        lose(t, p, -errno, "the NIC takes no more writes to it");
}

static void verbs_release(struct shunt_transport *t, uint32_t peer, uint32_t count)
{
    struct peer *p = &t->peers[peer];

    p->arrived -= count;
    p->untold += count;
    while (p->untold >= CREDIT_EVERY && p->stream.fd >= 0)
        tell(t, peer);
}

/* ---- completions */

static const char *cause(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
        return "its NIC does not answer (transport retry counter exceeded): process, link or "
               "switch";
    case IBV_WC_RNR_RETRY_EXC_ERR:
        return "it has no receive left (RNR retry counter exceeded)";
    case IBV_WC_REM_ACCESS_ERR:
        return "its NIC refused the access (remote access error)";
    case IBV_WC_REM_OP_ERR:
        return "its NIC failed (remote operation error)";
    default:
        return ibv_wc_status_str(status);
    }
}

static uint32_t peer_of(const struct shunt_transport *t, uint32_t qpn)
{
    uint32_t i = 0;

    while (i < t->node_count && !(t->peers[i].qp && t->peers[i].qp->qp_num == qpn))
        i++;
    return i;
}

static void take(struct shunt_transport *t, const struct ibv_wc *wc, struct sink *sink)
{
    uint32_t peer = peer_of(t, wc->qp_num);
    struct peer *p = &t->peers[peer];
    struct ibv_recv_wr again = {0}, *bad;

    if (peer == t->node_count || p->stream.fd < 0)
        return;
    if (wc->status != IBV_WC_SUCCESS) {
        lose(t, p, -EIO, cause(wc->status));
        return;
    }
    if (wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
        ibv_post_recv(p->qp, &again, &bad);
        sink->out[sink->count++] = (struct shunt_completion){
            .event = SHUNT_TRANSPORT_ARRIVED, .peer = peer, .imm = ntohl(wc->imm_data)};
        t->counters.puts_received++;
        t->counters.bytes_received += wc->byte_len;
        p->arrived++;
        return;
    }
    if (wc->opcode == IBV_WC_RECV) {
        ibv_post_recv(p->qp, &again, &bad);
        if (p->unanswered < CREDIT_EVERY)
            lose(t, p, -EPROTO, "it took more than was sent");
        else
            p->unanswered -= CREDIT_EVERY;
        return;
    }
    if (wc->wr_id >> 32)
        return;
    sink->out[sink->count++] = (struct shunt_completion){
        .event = SHUNT_TRANSPORT_SENT, .peer = peer, .imm = p->puts[p->first].imm};
    t->counters.puts_sent++;
    t->counters.bytes_sent += p->puts[p->first].bytes;
    p->first = (p->first + 1) % SHUNT_TRANSPORT_DEPTH;
    p->count--;
    p->posted--;
}

static void take_some(struct shunt_transport *t, struct sink *sink)
{
    while (sink->count < sink->max) {
        struct ibv_wc wcs[16];
        uint32_t room = sink->max - sink->count;
        int n = ibv_poll_cq(t->cq, room < 16 ? (int)room : 16, wcs);

        for (int i = 0; i < n; i++)
            take(t, &wcs[i], sink);
        if (n <= 0)
            return;
    }
}

static void look_around(struct shunt_transport *t)
{
    int64_t now = shunt_now_ns();

    if (now - t->looked_ns < LOOK_NS)
        return;
    t->looked_ns = now;
    for (uint32_t i = 0; i < t->node_count; i++)
        if (t->peers[i].stream.fd >= 0)
            look_at_stream(t, &t->peers[i]);
}

static uint32_t verbs_poll(struct shunt_transport *t, struct shunt_completion *out, uint32_t max)
{
    struct sink sink = {.out = out, .max = max};

    if (t->stash_count > 0) {
        uint32_t n = t->stash_count < max ? t->stash_count : max;
        uint64_t sunk;

        memcpy(out, t->stash, n * sizeof(*out));
        memmove(t->stash, t->stash + n, (t->stash_count - n) * sizeof(*out));
        t->stash_count -= n;
        sink.count = n;
        if (t->stash_count == 0 && read(t->stash_fd, &sunk, sizeof(sunk)) < 0)
            return n;
        if (t->stash_count > 0)
            return n;
    }
    if (!t->device)
        return sink.count;
    take_some(t, &sink);
    if (sink.count < max)
        look_around(t); /* what came before a peer's end has been handed out */
    for (uint32_t i = 0; i < t->node_count; i++) {
        struct peer *p = &t->peers[i];

        if (p->stream.fd >= 0)
            post_puts(t, i);
        if (p->lost_reason && sink.count < max) {
            sink.out[sink.count++] = (struct shunt_completion){.event = SHUNT_TRANSPORT_LOST,
                                                               .peer = i,
                                                               .error = p->lost_error,
                                                               .reason = p->lost_reason};
            p->lost_reason = NULL;
        }
    }
    return sink.count;
}

/* Armed first, then looked: what came in between is stashed and says so. */
static uint32_t verbs_prepare(struct shunt_transport *t, struct pollfd *fds, uint32_t max)
{
    struct ibv_cq *cq;
    void *ctx;
    uint32_t n = 0;

    if (!t->device || max < 2)
        return 0;
    while (ibv_get_cq_event(t->channel, &cq, &ctx) == 0)
        ibv_ack_cq_events(cq, 1);
    ibv_req_notify_cq(t->cq, 0);
    if (t->stash_count == 0) {
        struct sink sink = {.out = t->stash, .max = STASH_MAX};
        const uint64_t one = 1;

        take_some(t, &sink);
        t->stash_count = sink.count;
        if (sink.count > 0 && write(t->stash_fd, &one, sizeof(one)) < 0)
            return 0;
    }
    fds[n++] = (struct pollfd){.fd = t->channel->fd, .events = POLLIN};
    fds[n++] = (struct pollfd){.fd = t->stash_fd, .events = POLLIN};
    for (uint32_t i = 0; i < t->node_count && n < max; i++)
        if (t->peers[i].stream.fd >= 0)
            fds[n++] = (struct pollfd){.fd = t->peers[i].stream.fd, .events = POLLIN};
    return n;
}

static const struct shunt_transport_counters *verbs_counters(const struct shunt_transport *t)
{
    return &t->counters;
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
