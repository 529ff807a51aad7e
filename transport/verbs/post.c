/* SPDX-License-Identifier: Apache-2.0
 *
 * Puts to work requests: RDMA writes, of which the last carries the immediate and asks for a
 * completion. Nothing of a put is posted before the peer has credit for it.
 *
 * A large put is spread over the rails: each posts its share and an immediate of its own, rail 0 an
 * empty write with the put's. The receiver tells the two kinds apart by the length of what came
 * with rail 0's immediate, and hands the put out when every rail's is there. So that nothing else
 * is empty, a put of no bytes goes the same way.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "runtime/base/carve.h"
#include "transport/verbs/verbs_impl.h"

/* ---- the two ways of posting */

/* One RDMA write of a batch. */
struct write {
    uint64_t id; /* also of one that asks for no completion: it completes when it fails */
    const unsigned char *src;
    uint32_t bytes, lkey, rkey, imm;
    uint64_t to;
    bool with_imm, signalled, inlined;
};

/* Inline: posting a single write, as most puts are, then costs neither loop nor struct. */
static inline int post_newer(struct ibv_qp_ex *qp, const struct write *writes, uint32_t count)
{
    ibv_wr_start(qp);
    for (uint32_t i = 0; i < count; i++) {
        const struct write *w = &writes[i];

        qp->wr_id = w->id;
        /* The flag says what ibv_wr_set_inline_data says as well; rxe needs to be told before. */
        qp->wr_flags =
            (w->signalled ? IBV_SEND_SIGNALED : 0u) | (w->inlined ? IBV_SEND_INLINE : 0u);
        if (w->with_imm)
            ibv_wr_rdma_write_imm(qp, w->rkey, w->to, htonl(w->imm));
        else
            ibv_wr_rdma_write(qp, w->rkey, w->to);
        if (w->bytes == 0)
            ibv_wr_set_sge_list(qp, 0, NULL);
        else if (w->inlined)
            ibv_wr_set_inline_data(qp, (void *)w->src, w->bytes);
        else
            ibv_wr_set_sge(qp, w->lkey, (uintptr_t)w->src, w->bytes);
    }
    return ibv_wr_complete(qp);
}

static int post_older(struct ibv_qp *qp, const struct write *writes, uint32_t count)
{
    struct ibv_send_wr wrs[VERBS_BATCH], *bad;
    struct ibv_sge sges[VERBS_BATCH];

    for (uint32_t i = 0; i < count; i++) {
        const struct write *w = &writes[i];

        sges[i] = (struct ibv_sge){
            .addr = (uintptr_t)w->src, .length = w->bytes, .lkey = w->inlined ? 0 : w->lkey};
        wrs[i] = (struct ibv_send_wr){
            .wr_id = w->id,
            .next = i + 1 < count ? &wrs[i + 1] : NULL,
            .sg_list = &sges[i],
            .num_sge = w->bytes > 0,
            .opcode = w->with_imm ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE,
            .send_flags =
                (w->signalled ? IBV_SEND_SIGNALED : 0u) | (w->inlined ? IBV_SEND_INLINE : 0u),
            .imm_data = htonl(w->imm),
            .wr.rdma = {.remote_addr = w->to, .rkey = w->rkey},
        };
    }
    return ibv_post_send(qp, wrs, &bad);
}

static int post(const struct verbs_lane *lane, const struct write *writes, uint32_t count)
{
    return lane->qpx ? post_newer(lane->qpx, writes, count) : post_older(lane->qp, writes, count);
}

/* ---- a put on one rail */

/* The rail's part of the put's bytes. */
static struct verbs_share share_of(const struct shunt_transport *t, const struct verbs_put *put,
                                   uint32_t rail)
{
    uint64_t part = shunt_align_up(put->bytes / t->rail_count + 1, SHUNT_CACHE_LINE);
    uint64_t begin = rail * part, end = begin + part;

    if (!put->striped)
        return (struct verbs_share){.end = put->bytes, .open = true};
    return (struct verbs_share){.begin = begin < put->bytes ? begin : put->bytes,
                                .end = end < put->bytes ? end : put->bytes,
                                .open = true};
}

/* The processor copies what goes inline, and must be able to read it. */
static bool is_inline(const struct verbs_lane *lane, const struct verbs_block *block,
                      uint64_t bytes)
{
    return bytes <= lane->inline_max && !block->of_device;
}

/* The next write of what is left: as far as one work request, one block here and one there go. */
static struct write next_write(const struct shunt_transport *t, const struct verbs_peer *p,
                               const struct verbs_put *put, uint32_t rail)
{
    const struct verbs_share *share = &p->lanes[rail].share;
    const unsigned char *src = put->src + share->begin;
    const struct verbs_block *block;
    uint64_t at = put->off + share->begin;
    uint64_t there = VERBS_BLOCK_BYTES - at % VERBS_BLOCK_BYTES;
    uint64_t bytes = share->end - share->begin;
    uint64_t here;

    if (bytes == 0)
        return (struct write){.to = p->word.inbox, .rkey = p->word.rails[rail].rkeys[0]};
    block = verbs_find_block(t, src);
    here = (uint64_t)(block->base + block->bytes - src);
    bytes = bytes < here ? bytes : here;
    bytes = bytes < there ? bytes : there;
    bytes = bytes < t->rails[rail].write_max ? bytes : t->rails[rail].write_max;
    return (struct write){
        .src = src,
        .bytes = (uint32_t)bytes,
        .lkey = block->mrs[rail]->lkey,
        .inlined = is_inline(&p->lanes[rail], block, bytes),
        .to = p->word.inbox + at,
        .rkey = p->word.rails[rail].rkeys[at / VERBS_BLOCK_BYTES],
    };
}

/* So many writes are about to be posted, of which the last asks for a completion. */
static void count_writes(struct shunt_transport *t, struct verbs_lane *lane, uint32_t n)
{
    lane->sends += n;
    t->counters.writes += n;
    t->counters.signalled++;
}

/* `what` was to be posted: writes, sends, receives. */
__attribute__((cold)) static void lose_queue(struct shunt_transport *t, uint32_t peer,
                                             uint32_t rail, const char *what, int error)
{
    verbs_lose(t, peer, -EIO, "QP 0x%06x: %s takes no more %s: %s",
               t->peers[peer].lanes[rail].qp->qp_num, t->rails[rail].label, what, strerror(error));
}

/* Return: false when there is no credit for it. */
static bool begin(const struct shunt_transport *t, struct verbs_peer *p, struct verbs_put *put)
{
    if (p->unreleased == SHUNT_TRANSPORT_WINDOW)
        return false;
    p->unreleased++;
    put->begun = true;
    put->pending = put->striped ? (1u << t->rail_count) - 1 : 1u;
    return true;
}

/* Posts what the send queue has room for of the put that comes next on this rail. Return: true when
 * it is posted whole. */
static bool post_share(struct shunt_transport *t, uint32_t peer, uint32_t rail)
{
    struct verbs_peer *p = &t->peers[peer];
    struct verbs_lane *lane = &p->lanes[rail];
    struct verbs_put *put = &p->puts[(p->first + lane->posted) % SHUNT_TRANSPORT_DEPTH];
    uint32_t taken = lane->sends + VERBS_CREDITS_MAX; /* credit always has its place */
    uint32_t room = taken < VERBS_SENDS ? VERBS_SENDS - taken : 0;
    struct write writes[VERBS_BATCH];
    uint32_t n = 0;
    bool done = false;
    int rc;

    if (!lane->share.open)
        lane->share = share_of(t, put, rail);
    while (n < VERBS_BATCH && n < room && !done) {
        struct verbs_share *share = &lane->share;
        /* A striped put ends with an empty write on rail 0: that one is not its last here. */
        bool empty_last = put->striped && rail == 0;
        bool was_empty = share->begin == share->end;

        writes[n] = next_write(t, p, put, rail);
        share->begin += writes[n].bytes;
        done = share->begin == share->end && (!empty_last || was_empty);
        writes[n].id = verbs_id(VERBS_PART, peer, rail, 0);
        writes[n].with_imm = done;
        writes[n].imm = put->imm;
        n++;
    }
    if (n == 0)
        return false;
    writes[n - 1].id = verbs_id(done ? VERBS_PUT : VERBS_PART, peer, rail, n);
    writes[n - 1].signalled = true;
    count_writes(t, lane, n);
    rc = post(lane, writes, n);
    if (rc) {
        lose_queue(t, peer, rail, "writes", rc);
        return false;
    }
    if (done) {
        lane->share.open = false;
        lane->posted++;
    }
    return done;
}

/* True when the put that comes next on this rail has credit, and bytes or an immediate there. */
static bool post_next(struct shunt_transport *t, uint32_t peer, uint32_t rail)
{
    struct verbs_peer *p = &t->peers[peer];
    struct verbs_lane *lane = &p->lanes[rail];
    struct verbs_put *put = &p->puts[(p->first + lane->posted) % SHUNT_TRANSPORT_DEPTH];

    if (lane->posted == p->count)
        return false;
    if (!put->begun && !begin(t, p, put))
        return false;
    if (rail > 0 && !put->striped) {
        lane->posted++;
        return true;
    }
    return post_share(t, peer, rail);
}

void verbs_post_puts(struct shunt_transport *t, uint32_t peer)
{
    struct verbs_peer *p = &t->peers[peer];
    bool whole = true;

    for (uint32_t rail = 0; rail < t->rail_count; rail++) {
        while (p->stream.fd >= 0 && post_next(t, peer, rail))
            ;
        whole &= p->lanes[rail].posted == p->count;
    }
    if (whole)
        t->waiting &= ~(1ull << peer);
    else
        t->waiting |= 1ull << peer;
}

/* True when the put can be one write: it lies in one block here and in one there. */
static bool is_one_write(const struct shunt_transport *t, const struct verbs_put *put,
                         const struct verbs_block *block)
{
    return block && put->bytes > 0 && put->bytes <= t->rails[0].write_max &&
           put->bytes <= (uint64_t)(block->base + block->bytes - put->src) &&
           put->bytes <= VERBS_BLOCK_BYTES - put->off % VERBS_BLOCK_BYTES;
}

/* Posts the newest put when nothing waits before it and it is one write on the only rail, as most
 * are: all of it in one place, so that their way is short. Return: false when it has to go the long
 * way. */
static bool post_at_once(struct shunt_transport *t, uint32_t peer, struct verbs_put *put,
                         const struct verbs_block *block)
{
    struct verbs_peer *p = &t->peers[peer];
    struct verbs_lane *lane = &p->lanes[0];
    const struct write w = {
        .id = verbs_id(VERBS_PUT, peer, 0, 1),
        .src = put->src,
        .bytes = (uint32_t)put->bytes,
        .lkey = block->mrs[0]->lkey,
        .rkey = p->word.rails[0].rkeys[put->off / VERBS_BLOCK_BYTES],
        .imm = put->imm,
        .to = p->word.inbox + put->off,
        .with_imm = true,
        .signalled = true,
        .inlined = is_inline(lane, block, put->bytes),
    };
    int rc;

    if (!begin(t, p, put))
        return false;
    lane->posted++;
    count_writes(t, lane, 1);
    rc = post_newer(lane->qpx, &w, 1);
    if (rc)
        lose_queue(t, peer, 0, "writes", rc);
    return true;
}

void verbs_post_new(struct shunt_transport *t, uint32_t peer, struct verbs_put *put,
                    const struct verbs_block *block)
{
    const struct verbs_peer *p = &t->peers[peer];
    const struct verbs_lane *lane = &p->lanes[0];
    const bool is_next = t->rail_count == 1 && lane->posted + 1 == p->count;

    if (!is_next || !lane->qpx || lane->sends + VERBS_CREDITS_MAX >= VERBS_SENDS ||
        !is_one_write(t, put, block) || !post_at_once(t, peer, put, block))
        verbs_post_puts(t, peer);
}

/* ---- credit and receives */

static int post_empty_send(const struct verbs_lane *lane, uint64_t id)
{
    struct ibv_send_wr *bad,
        wr = {.wr_id = id, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED};

    if (!lane->qpx)
        return ibv_post_send(lane->qp, &wr, &bad);
    ibv_wr_start(lane->qpx);
    lane->qpx->wr_id = id;
    lane->qpx->wr_flags = IBV_SEND_SIGNALED;
    ibv_wr_send(lane->qpx);
    ibv_wr_set_sge_list(lane->qpx, 0, NULL);
    return ibv_wr_complete(lane->qpx);
}

/* The receives that the peer's puts have taken. It learns of their release, and so may send as many
 * again, by the credit that follows: before it none of them can be missed. */
static int post_receives_taken(struct verbs_lane *lane, uint64_t id)
{
    struct ibv_recv_wr *bad, wrs[VERBS_RECEIVES];
    int rc = 0;

    while (lane->taken > 0 && !rc) {
        const uint32_t count = lane->taken < VERBS_RECEIVES ? lane->taken : VERBS_RECEIVES;

        for (uint32_t i = 0; i < count; i++)
            wrs[i] = (struct ibv_recv_wr){.wr_id = id, .next = i + 1 < count ? &wrs[i + 1] : NULL};
        lane->taken -= count;
        rc = ibv_post_recv(lane->qp, wrs, &bad);
    }
    return rc;
}

void verbs_post_credit(struct shunt_transport *t, uint32_t peer)
{
    struct verbs_peer *p = &t->peers[peer];
    struct verbs_lane *lane = &p->lanes[0];
    int rc = 0;

    if (p->untold < VERBS_CREDIT_EVERY || lane->sends >= VERBS_SENDS)
        return;
    for (uint32_t r = 0; r < t->rail_count && !rc; r++) {
        rc = post_receives_taken(&p->lanes[r], verbs_id(VERBS_RECEIVE, peer, r, 0));
        if (rc)
            lose_queue(t, peer, r, "receives", rc);
    }
    while (p->untold >= VERBS_CREDIT_EVERY && lane->sends < VERBS_SENDS && !rc) {
        p->untold -= VERBS_CREDIT_EVERY;
        lane->sends++;
        rc = post_empty_send(lane, verbs_id(VERBS_CREDIT, peer, 0, 1));
        if (rc)
            lose_queue(t, peer, 0, "sends", rc);
    }
}

void verbs_post_receive(struct shunt_transport *t, uint32_t peer, uint32_t rail)
{
    struct ibv_recv_wr *bad, wr = {.wr_id = verbs_id(VERBS_RECEIVE, peer, rail, 0)};
    int rc = ibv_post_recv(t->peers[peer].lanes[rail].qp, &wr, &bad);

    if (rc)
        lose_queue(t, peer, rail, "receives", rc);
}
