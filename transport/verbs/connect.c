/* SPDX-License-Identifier: Apache-2.0
 *
 * Connecting. Each side tells the other over the stream what its queue pairs must know: numbers,
 * first sequence numbers, addresses, keys of the inbox. One that has connected its own says so with
 * one more byte, since a write to a queue pair that is not ready would be lost.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "runtime/base/clock.h"
#include "transport/verbs/verbs_impl.h"

#define WORD_MAGIC   0x57425648u /* "HVBW" */
#define WORD_VERSION 2u
#define READY        'R'

_Static_assert(sizeof(struct verbs_word_rail) == 288, "a wire format");
_Static_assert(sizeof(struct verbs_word) == 32 + VERBS_RAILS_MAX * 288, "a wire format");

enum { TELLING, HEARING, READYING, CONNECTED, UP };

#define PSN_MASK      0xffffffu
#define RETRIES       7u /* the most that verbs know */
#define TIMEOUT_MAX   31u
#define RNR_TIMER     12u /* 0.64 ms */
#define RNR_RETRIES   6u  /* credit keeps a receive for every immediate: more would hide a bug */
#define HOPS          64u
#define TIMEOUT_NS(t) (4096ll << (t))
#define INLINE_WISHED 256u
#define DEAD_AFTER_NS (500 * SHUNT_NS_PER_MS)

/* ---- queue pairs */

/* *inline_max: wished for, then granted. */
static struct ibv_qp *create(const struct verbs_rail *rail, uint32_t *inline_max, bool newer)
{
    struct ibv_qp *qp;
    struct ibv_qp_init_attr_ex init = {
        .send_cq = rail->cq,
        .recv_cq = rail->cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = VERBS_SENDS,
                .max_recv_wr = VERBS_RECEIVES,
                .max_send_sge = 1,
                .max_recv_sge = 0,
                .max_inline_data = *inline_max},
        .comp_mask = IBV_QP_INIT_ATTR_PD | (newer ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : 0u),
        .pd = rail->pd,
        .send_ops_flags =
            IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_SEND,
    };

    qp = ibv_create_qp_ex(rail->device, &init);
    if (qp)
        *inline_max = init.cap.max_inline_data;
    return qp;
}

/* As much inline as the device grants, and the newer way of posting where it has that: the one is
 * halved and the other dropped until the device agrees. */
static int create_lane(const struct verbs_rail *rail, struct verbs_lane *lane)
{
    for (uint32_t wished = INLINE_WISHED;; wished /= 2) {
        lane->inline_max = wished;
        lane->qp = create(rail, &lane->inline_max, true);
        if (lane->qp) {
            lane->qpx = ibv_qp_to_qp_ex(lane->qp);
            return 0;
        }
        lane->qp = create(rail, &lane->inline_max, false);
        if (lane->qp)
            return 0;
        if (wished == 0)
            return -errno;
    }
}

static int make_lane(struct shunt_transport *t, uint32_t peer, uint32_t rail,
                     struct shunt_error *err)
{
    const struct verbs_rail *r = &t->rails[rail];
    struct verbs_lane *lane = &t->peers[peer].lanes[rail];
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = r->port, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    int rc = create_lane(r, lane);

    if (!rc)
        rc = -ibv_modify_qp(lane->qp, &attr,
                            IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (rc)
        return shunt_error_set(err, rc, "verbs: %s gives no queue pair for rank %" PRIu32 ": %s",
                               r->label, peer, strerror(-rc));
    for (uint32_t i = 0; i < VERBS_RECEIVES; i++)
        verbs_post_receive(t, peer, rail);
    return 0;
}

/* The exponent with which all retries together outlast a silence that is still to be survived. */
static uint8_t timeout_of(const struct shunt_transport *t, uint32_t retries)
{
    int64_t wanted = t->dead_after_ns > 0 ? t->dead_after_ns : DEAD_AFTER_NS;
    uint32_t exponent = 8;

    if (t->link.qp_timeout)
        return (uint8_t)(t->link.qp_timeout & TIMEOUT_MAX);
    while (exponent < TIMEOUT_MAX && (retries + 1) * TIMEOUT_NS(exponent) < wanted)
        exponent++;
    return (uint8_t)exponent;
}

static int connect_lane(struct shunt_transport *t, struct verbs_peer *p, uint32_t rail)
{
    const struct verbs_rail *r = &t->rails[rail];
    const struct verbs_word_rail *theirs = &p->word.rails[rail];
    uint32_t retries = t->link.retry_count ? t->link.retry_count - 1 : RETRIES;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = theirs->mtu < (uint32_t)r->mtu ? (enum ibv_mtu)theirs->mtu : r->mtu,
        .dest_qp_num = theirs->qpn,
        .rq_psn = theirs->psn,
        .max_dest_rd_atomic = 0,
        .min_rnr_timer = RNR_TIMER,
        .ah_attr = {.is_global = 1,
                    .port_num = r->port,
                    .sl = (uint8_t)(t->link.sl ? t->link.sl - 1 : 0),
                    .grh = {.sgid_index = (uint8_t)r->gid_index,
                            .hop_limit = HOPS,
                            .traffic_class = (uint8_t)(t->link.tclass ? t->link.tclass - 1 : 0)}},
    };
    int rc;

    memcpy(attr.ah_attr.grh.dgid.raw, theirs->gid, sizeof(theirs->gid));
    rc = ibv_modify_qp(p->lanes[rail].qp, &attr,
                       IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                           IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (rc)
        return -rc;
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS,
                                .timeout = timeout_of(t, retries),
                                .retry_cnt = (uint8_t)(retries < RETRIES ? retries : RETRIES),
                                .rnr_retry = RNR_RETRIES,
                                .sq_psn = p->own.rails[rail].psn,
                                .max_rd_atomic = 0};
    return -ibv_modify_qp(p->lanes[rail].qp, &attr,
                          IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                              IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

/* ---- words */

static int fill_word(struct shunt_transport *t, uint32_t peer, struct shunt_error *err)
{
    struct verbs_peer *p = &t->peers[peer];

    p->own = (struct verbs_word){
        .magic = WORD_MAGIC,
        .version = WORD_VERSION,
        .rail_count = t->rail_count,
        .block_count = t->inbox_block_count,
        .inbox = (uintptr_t)t->inbox,
        .inbox_bytes = t->inbox_bytes,
    };
    for (uint32_t i = 0; i < t->rail_count; i++) {
        struct verbs_word_rail *r = &p->own.rails[i];
        uint32_t psn;

        if (getrandom(&psn, sizeof(psn), 0) != sizeof(psn))
            return shunt_error_set(err, -EIO, "verbs: the kernel gives no random numbers");
        r->qpn = p->lanes[i].qp->qp_num;
        r->psn = psn & PSN_MASK;
        r->mtu = (uint32_t)t->rails[i].mtu;
        r->software = t->rails[i].software;
        memcpy(r->gid, t->rails[i].gid.raw, sizeof(r->gid));
        for (uint32_t b = 0; b < t->inbox_block_count; b++)
            r->rkeys[b] = t->inbox_blocks[b].mrs[i]->rkey;
    }
    return 0;
}

static int check_word(const struct shunt_transport *t, uint32_t peer, struct shunt_error *err)
{
    const struct verbs_peer *p = &t->peers[peer];
    const struct verbs_word *w = &p->word;
    uint64_t blocks = (p->inbox_bytes + VERBS_BLOCK_BYTES - 1) / VERBS_BLOCK_BYTES;

    if (w->magic != WORD_MAGIC || w->version != WORD_VERSION || w->inbox_bytes != p->inbox_bytes ||
        w->inbox_bytes > VERBS_INBOX_BLOCKS_MAX * VERBS_BLOCK_BYTES || w->block_count != blocks ||
        w->inbox + w->inbox_bytes < w->inbox)
        return shunt_error_set(err, -EPROTO,
                               "verbs: rank %" PRIu32 " says something else than shunt %s does",
                               peer, shunt_version());
    if (w->rail_count != t->rail_count)
        return shunt_error_set(err, -EPROTO,
                               "verbs: rank %" PRIu32 " has %" PRIu32
                               " devices and this node %" PRIu32
                               "; name as many with --ib-dev on every node",
                               peer, w->rail_count, t->rail_count);
    for (uint32_t i = 0; i < t->rail_count; i++)
        if (w->rails[i].mtu < IBV_MTU_256 || w->rails[i].mtu > IBV_MTU_4096 ||
            w->rails[i].qpn > PSN_MASK || w->rails[i].psn > PSN_MASK)
            return shunt_error_set(err, -EPROTO,
                                   "verbs: rank %" PRIu32 " describes a queue pair that cannot be",
                                   peer);
    return 0;
}

static int connect_peer(struct shunt_transport *t, uint32_t peer, struct shunt_error *err)
{
    struct verbs_peer *p = &t->peers[peer];
    int rc = check_word(t, peer, err);

    for (uint32_t i = 0; i < t->rail_count && !rc; i++) {
        t->counters.emulated |= t->rails[i].software || p->word.rails[i].software;
        rc = connect_lane(t, p, i);
        if (rc)
            return shunt_error_set(err, rc,
                                   "verbs: %s cannot be connected with rank %" PRIu32
                                   ": %s; does its address answer (ping), over this interface?",
                                   t->rails[i].label, peer, strerror(-rc));
    }
    return rc;
}

/* Return: 1 when a step of the way is done, 0 when the stream must come first, or why not. */
static int take_step(struct shunt_transport *t, uint32_t peer, struct shunt_error *err)
{
    struct verbs_peer *p = &t->peers[peer];
    char ready = READY;
    ssize_t n;
    int rc;

    switch (p->state) {
    case TELLING:
        n = shunt_stream_send(&p->stream, (char *)&p->own + p->told, sizeof(p->own) - p->told);
        if (n > 0 && (p->told += (uint32_t)n) == sizeof(p->own))
            p->state = HEARING;
        break;
    case HEARING:
        n = shunt_stream_recv(&p->stream, (char *)&p->word + p->heard, sizeof(p->word) - p->heard);
        if (n <= 0 || (p->heard += (uint32_t)n) < sizeof(p->word))
            break;
        rc = connect_peer(t, peer, err);
        if (rc)
            return rc;
        p->state = READYING;
        break;
    case READYING:
        n = shunt_stream_send(&p->stream, &ready, 1);
        if (n == 1)
            p->state = CONNECTED;
        break;
    default:
        n = shunt_stream_recv(&p->stream, &ready, 1);
        if (n == 1 && ready == READY)
            p->state = UP;
        else if (n == 1)
            n = -EPROTO;
    }
    if (n > 0)
        return 1;
    if (n == -EAGAIN)
        return 0;
    return shunt_error_set(err, n ? (int)n : -ECONNRESET,
                           "verbs: rank %" PRIu32 " cannot be connected: %s", peer,
                           n ? strerror((int)-n)
                             : "it has closed the connection; its own message "
                               "says why");
}

static int wait_for_peers(struct shunt_transport *t, const struct shunt_patience *patience,
                          struct shunt_error *err)
{
    for (;;) {
        struct timespec slice = shunt_timespec(SHUNT_PATIENCE_SLICE_NS);
        struct pollfd fds[SHUNT_NODES_MAX];
        uint32_t awaited = 0, n = 0;
        int rc;

        for (uint32_t i = 0; i < t->node_count; i++) {
            struct verbs_peer *p = &t->peers[i];

            if (p->stream.fd < 0)
                continue;
            while (p->state != UP && (rc = take_step(t, i, err)) != 0)
                if (rc < 0)
                    return rc;
            if (p->state == UP)
                continue;
            awaited = i;
            fds[n++] = (struct pollfd){
                .fd = p->stream.fd,
                .events = p->state == TELLING || p->state == READYING ? POLLOUT : POLLIN};
        }
        if (n == 0)
            return 0;
        rc = shunt_patience_check(patience, err);
        if (rc == -ETIMEDOUT)
            shunt_error_set(err, rc,
                            "verbs: rank %" PRIu32
                            " has not connected its queue pairs in the time given "
                            "(--ready-timeout)",
                            awaited);
        if (rc)
            return rc;
        ppoll(fds, n, &slice, NULL);
    }
}

int verbs_connect(struct shunt_transport *t, const struct shunt_patience *patience,
                  struct shunt_error *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < t->node_count && !rc; i++) {
        if (t->peers[i].stream.fd < 0)
            continue;
        for (uint32_t r = 0; r < t->rail_count && !rc; r++)
            rc = make_lane(t, i, r, err);
        if (!rc)
            rc = fill_word(t, i, err);
    }
    return rc ? rc : wait_for_peers(t, patience, err);
}
