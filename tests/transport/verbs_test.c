/* SPDX-License-Identifier: Apache-2.0
 *
 * RDMA: the contract that every transport keeps, between two addresses of this machine that belong
 * to RDMA devices: SHUNT_TEST_RDMA, "10.77.0.1 10.77.0.2" where it is not set (tests/lab); over the
 * devices of SHUNT_TEST_RDMA_DEVICES where that is set. Skipped where there is no device.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <linux/udmabuf.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"
#include "tests/transport/contract.h"
#include "transport/verbs/verbs_impl.h"

extern const struct shunt_transport_ops shunt_transport_verbs;

static struct sockaddr_in addresses[2];

static void find_addresses(void)
{
    const char *text = getenv("SHUNT_TEST_RDMA");
    char names[2][16];
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);

    if (list)
        ibv_free_device_list(list);
    if (count == 0)
        cr_skip_test("no RDMA device here; tests/lab/run has some");
    cr_assert_eq(sscanf(text ? text : "10.77.0.1 10.77.0.2", "%15s %15s", names[0], names[1]), 2);
    for (uint32_t i = 0; i < 2; i++) {
        addresses[i] = (struct sockaddr_in){.sin_family = AF_INET};
        cr_assert_eq(inet_pton(AF_INET, names[i], &addresses[i].sin_addr), 1);
    }
}

/* A node has one of the addresses, and its neighbour the other, so that writes cross a wire. */
static void connect_rdma(uint32_t a, uint32_t b, int fds[2])
{
    struct sockaddr_in to;
    socklen_t len = sizeof(to);
    int listener;

    find_addresses();
    to = addresses[a % 2];
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(bind(listener, (struct sockaddr *)&to, len) == 0 && listen(listener, 1) == 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&to, &len), 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(fds[1], (struct sockaddr *)&addresses[b % 2], sizeof(addresses[0])), 0);
    cr_assert_eq(connect(fds[1], (struct sockaddr *)&to, len), 0);
    fds[0] = accept(listener, NULL, NULL);
    cr_assert_geq(fds[0], 0);
    close(listener);
}

/* "rxe0,rxe2 rxe1,rxe3": two rails for nodes at the first address and for those at the second. */
static const struct shunt_link_options *name_devices(uint32_t node)
{
    static struct shunt_link_options links[2];
    static char names[2][64];
    const char *text = getenv("SHUNT_TEST_RDMA_DEVICES");

    if (!text)
        return NULL;
    cr_assert_eq(sscanf(text, "%63s %63s", names[0], names[1]), 2);
    links[node % 2].device = names[node % 2];
    return &links[node % 2];
}

static const struct transport_backend verbs = {
    .ops = &shunt_transport_verbs, .connect = connect_rdma, .link = name_devices, .by_nic = true};

TRANSPORT_KEEPS_ALL(verbs, verbs)

/* ---- what is particular to verbs */

static struct shunt_transport *open_pair(struct mesh *m, uint64_t inbox)
{
    const uint64_t inboxes[] = {inbox, inbox};

    mesh_open(m, &verbs, 2, inboxes, false);
    return m->nodes[0].t;
}

/* One completion is asked for, and no more writes are posted than the device's largest message
 * makes necessary, with one for the immediate. */
Test(verbs, posts_no_more_than_it_must, .timeout = 100)
{
    static const uint64_t sizes[] = {0, 1, 4096, 65536, 1u << 20, 20u << 20};
    struct mesh m;
    struct shunt_transport *t = open_pair(&m, 20u << 20);

    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct shunt_transport_counters before = t->counters;
        uint64_t most = (sizes[i] + t->rails[0].write_max - 1) / t->rails[0].write_max + 1;

        cr_assert_eq(verbs.ops->put(t, 1, mesh_room(sizes[i]), sizes[i], 0, i), 0);
        while (mesh_next(&m, 0).event != SHUNT_TRANSPORT_SENT)
            ;
        cr_expect_eq(mesh_next(&m, 1).imm, i);
        cr_expect_leq(t->counters.writes - before.writes, most * t->rail_count, "%lu bytes",
                      sizes[i]);
        cr_expect_leq(t->counters.signalled - before.signalled, t->rail_count);
    }
    mesh_close(&m);
}

static void expect_reason(struct mesh *m, uint32_t n, const char *first, const char *second)
{
    struct shunt_completion c = mesh_next(m, n);

    cr_assert_eq(c.event, SHUNT_TRANSPORT_LOST, "event %d", c.event);
    cr_expect(c.error < 0 && strstr(c.reason, first) && strstr(c.reason, second), "%s", c.reason);
}

/* A key that the peer's device does not know. */
Test(verbs, says_which_queue_pair_failed_and_why)
{
    struct mesh m;
    struct shunt_transport *t = open_pair(&m, 4096);
    char number[16];

    snprintf(number, sizeof(number), "QP 0x%06x", t->peers[1].lanes[0].qp->qp_num);
    t->peers[1].word.rails[0].rkeys[0] ^= 0x5a5a;
    cr_assert_eq(verbs.ops->put(t, 1, mesh_room(4096), 4096, 0, 1), 0);
    expect_reason(&m, 0, number, "remote access error (its NIC refused");
    cr_expect_eq(verbs.ops->put(t, 1, mesh_room(1), 1, 0, 1), -EPIPE);
    mesh_close(&m);
}

/* A put of several writes, of which one fails that asked for no completion: it is this peer's. */
Test(verbs, blames_the_peer_that_failed_and_no_other, .timeout = 60)
{
    const uint64_t inboxes[] = {20u << 20, 20u << 20, 20u << 20};
    struct shunt_transport *t;
    struct shunt_completion c;
    struct mesh m;

    mesh_open(&m, &verbs, 3, inboxes, false);
    t = m.nodes[1].t;
    for (uint32_t r = 0; r < t->rail_count; r++)
        t->peers[2].word.rails[r].rkeys[0] ^= 0x5a5a;
    cr_assert_eq(verbs.ops->put(t, 2, mesh_room(20u << 20), 20u << 20, 0, 1), 0);
    c = mesh_next(&m, 1);
    cr_assert(c.event == SHUNT_TRANSPORT_LOST && c.peer == 2, "event %d of %u: %s", c.event, c.peer,
              c.reason ? c.reason : "");
    cr_expect(strstr(c.reason, "remote access error"), "%s", c.reason);
    cr_assert_eq(verbs.ops->put(t, 0, mesh_room(20u << 20), 20u << 20, 0, 2), 0);
    mesh_expect_sent(&m, 1, 0, 2);
    mesh_close(&m);
}

/* Nothing of the rest of a node's memory can be written with a key that a peer was told. */
Test(verbs, opens_nothing_but_the_inbox_to_writes)
{
    struct mesh m;
    struct shunt_transport *t = open_pair(&m, 4096);
    unsigned char *secret = mesh_room(4096);

    memset(secret, 7, 4096);
    t->peers[1].word.inbox = (uintptr_t)secret; /* what node 1 puts from lies there too */
    cr_assert_eq(verbs.ops->put(t, 1, mesh_room(4096), 4096, 0, 1), 0);
    expect_reason(&m, 0, "QP 0x", "remote access error");
    for (uint32_t i = 0; i < 4096; i++)
        cr_assert_eq(secret[i], 7);
    mesh_close(&m);
}

/* A peer that puts without regard to its credit, and is told of no release. */
Test(verbs, gives_up_a_peer_that_puts_more_than_it_may, .timeout = 60)
{
    struct shunt_completion c;
    struct mesh m;
    uint32_t arrived = 0;

    open_pair(&m, 4096);
    m.keeps = true;
    for (uint32_t i = 0; i <= SHUNT_TRANSPORT_WINDOW; i++) {
        m.nodes[0].t->peers[1].unreleased = 0;
        cr_assert_eq(mesh_put(&m, 0, 1, mesh_room(64), 64, 0, i), 0);
        c = mesh_next(&m, 1);
        if (c.event != SHUNT_TRANSPORT_ARRIVED)
            break;
        if (++arrived < VERBS_CREDIT_EVERY) /* not worth a word yet */
            verbs.ops->release(m.nodes[1].t, 0, 1);
    }
    cr_expect_eq(arrived, SHUNT_TRANSPORT_WINDOW);
    cr_expect(c.event == SHUNT_TRANSPORT_LOST && strstr(c.reason, "gave it credit for"), "%s",
              c.event == SHUNT_TRANSPORT_LOST ? c.reason : "it goes on");
    mesh_close(&m);
}

/* Credit travels on the first rail, for which alone there is room. */
Test(verbs, gives_up_a_peer_that_sends_on_another_rail)
{
    struct mesh m;
    struct shunt_transport *t = open_pair(&m, 4096);
    struct ibv_send_wr *bad,
        wr = {.wr_id = verbs_id(VERBS_CREDIT, 1, 1, 1), .opcode = IBV_WR_SEND};

    if (t->rail_count > 1) {
        t->peers[1].lanes[1].sends++;
        cr_assert_eq(ibv_post_send(t->peers[1].lanes[1].qp, &wr, &bad), 0);
        expect_reason(&m, 1, "it sent something", "no message of shunt's");
    }
    mesh_close(&m);
}

/* A queue pair that would not die: its memory is not given back, and that is said. */
static bool qp_is_immortal;

int __real_ibv_destroy_qp(struct ibv_qp *qp);
int __wrap_ibv_destroy_qp(struct ibv_qp *qp);

int __wrap_ibv_destroy_qp(struct ibv_qp *qp)
{
    return qp_is_immortal ? EBUSY : __real_ibv_destroy_qp(qp);
}

static uint32_t deregistered;

int __real_ibv_dereg_mr(struct ibv_mr *mr);
int __wrap_ibv_dereg_mr(struct ibv_mr *mr);

int __wrap_ibv_dereg_mr(struct ibv_mr *mr)
{
    deregistered++;
    return __real_ibv_dereg_mr(mr);
}

Test(verbs, keeps_what_a_queue_pair_that_stays_may_touch)
{
    struct mesh m;

    open_pair(&m, 4096);
    qp_is_immortal = true;
    cr_expect_not(verbs.ops->close(m.nodes[0].t));
    cr_expect_eq(deregistered, 0);
    m.nodes[0].t = NULL;
    qp_is_immortal = false;
    cr_expect(verbs.ops->close(m.nodes[1].t));
    cr_expect_gt(deregistered, 0);
    m.nodes[1].t = NULL;
    mesh_close(&m);
}

/* The order of taking down: no registration goes before the queue pairs that use it. */
Test(verbs, gives_everything_back)
{
    struct mesh m;

    for (uint32_t i = 0; i < 40; i++) {
        open_pair(&m, 1u << 20);
        cr_assert_eq(verbs.ops->put(m.nodes[0].t, 1, mesh_room(1u << 20), 1u << 20, 0, 1), 0);
        cr_assert(verbs.ops->close(m.nodes[0].t)); /* with a write under way */
        m.nodes[0].t = NULL;
        mesh_close(&m);
    }
}

/* ---- memory of other devices */

#define DMABUF_BYTES (3u << 20)

/* A DMA-BUF of ordinary memory, which udmabuf makes of a memfd; or -1. */
static int make_dmabuf(int memfd)
{
    const struct udmabuf_create create = {
        .memfd = (uint32_t)memfd, .flags = UDMABUF_FLAGS_CLOEXEC, .size = DMABUF_BYTES};
    int device = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
    int fd = device >= 0 ? ioctl(device, UDMABUF_CREATE, &create) : -1;

    if (device >= 0)
        close(device);
    return fd;
}

struct half {
    struct shunt_transport_config cfg;
    struct shunt_transport *t;
    struct shunt_error err;
    int rc;
};

static void open_half(void *arg)
{
    struct half *h = arg;

    h->rc = verbs.ops->open(&h->t, &h->cfg, &h->err);
}

static void await(struct shunt_transport *t, enum shunt_transport_event event)
{
    int64_t deadline = shunt_now_ns() + 20 * SHUNT_NS_PER_S;
    struct shunt_completion c = {0};

    while (c.event != event) {
        cr_assert_lt(shunt_now_ns(), deadline);
        if (verbs.ops->poll(t, &c, 1))
            cr_assert_neq(c.event, SHUNT_TRANSPORT_LOST, "%s", c.reason);
    }
}

/* From one device memory into another, as from GPU to GPU. Where the device knows no DMA-BUF the
 * same goes by its address, as nvidia-peermem does it. */
Test(verbs, moves_memory_of_other_devices, .timeout = 60)
{
    const struct shunt_patience patience = {.deadline_ns = shunt_deadline_ns(20 * SHUNT_NS_PER_S)};
    const uint64_t sizes[2] = {DMABUF_BYTES, DMABUF_BYTES};
    struct shunt_region regions[2];
    struct shunt_stream streams[2][2];
    struct half halves[2];
    uint64_t seed = 3;
    int fds[2];

    connect_rdma(0, 1, fds);
    for (uint32_t i = 0; i < 2; i++) {
        int memfd = memfd_create("room", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        int dmabuf;

        cr_assert(memfd >= 0 && ftruncate(memfd, DMABUF_BYTES) == 0);
        cr_assert_eq(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
        dmabuf = make_dmabuf(memfd);
        cr_log_info("node %u: %s\n", i, dmabuf >= 0 ? "udmabuf" : "no udmabuf here");
        regions[i] = (struct shunt_region){
            .kind = SHUNT_REGION_DMABUF,
            .base = mmap(NULL, DMABUF_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0),
            .bytes = DMABUF_BYTES,
            .fd = dmabuf,
        };
        cr_assert_neq(regions[i].base, MAP_FAILED);
        random_fill(&seed, regions[i].base, DMABUF_BYTES);
    }
    for (uint32_t i = 0; i < 2; i++) {
        streams[i][i] = SHUNT_STREAM_NONE;
        streams[i][!i] = (struct shunt_stream){.fd = fds[i]};
        halves[i] = (struct half){.cfg = {.rank = i,
                                          .node_count = 2,
                                          .streams = streams[i],
                                          .inbox = regions[i],
                                          .peer_inbox_bytes = sizes,
                                          .memory = &regions[i],
                                          .memory_count = 1,
                                          .patience = &patience}};
    }
    at_once(2, open_half, halves, sizeof(halves[0]));
    for (uint32_t i = 0; i < 2; i++)
        cr_assert_eq(halves[i].rc, 0, "%s", halves[i].err.text);
    cr_assert_eq(verbs.ops->put(halves[0].t, 1, regions[0].base, DMABUF_BYTES - 5, 5, 1), 0);
    await(halves[0].t, SHUNT_TRANSPORT_SENT);
    await(halves[1].t, SHUNT_TRANSPORT_ARRIVED);
    cr_expect_eq(memcmp((unsigned char *)regions[1].base + 5, regions[0].base, DMABUF_BYTES - 5),
                 0);
    for (uint32_t i = 0; i < 2; i++)
        cr_expect(verbs.ops->close(halves[i].t));
}

/* ---- what cannot be */

/* What cannot be: it is said with the option that names it, and costs nothing. */
static void expect_refused(const struct shunt_link_options *link, const char *what)
{
    struct shunt_error err[2] = {{0}};
    struct shunt_stream streams[2] = {SHUNT_STREAM_NONE, SHUNT_STREAM_NONE};
    const uint64_t sizes[2] = {4096, 4096};
    static _Alignas(4096) unsigned char inbox[4096];
    const struct shunt_patience patience = {.deadline_ns = INT64_MAX};
    struct shunt_transport *t;
    int fds[2];

    connect_rdma(0, 1, fds);
    streams[1].fd = fds[0];
    cr_expect_lt(verbs.ops->open(&t,
                                 &(struct shunt_transport_config){
                                     .node_count = 2,
                                     .streams = streams,
                                     .inbox = {.base = inbox, .bytes = sizeof(inbox), .fd = -1},
                                     .peer_inbox_bytes = sizes,
                                     .link = link,
                                     .patience = &patience,
                                 },
                                 &err[0]),
                 0);
    cr_expect(strstr(err[0].text, what), "%s", err[0].text);
    close(fds[1]);
}

Test(verbs, refuses_what_the_device_cannot)
{
    expect_refused(&(struct shunt_link_options){.device = "mlx9_7"}, "--ib-dev");
    expect_refused(&(struct shunt_link_options){.device = "rxe0:9"}, "--ib-port");
    expect_refused(&(struct shunt_link_options){.device = "rxe0:x"}, "from 1 on");
    expect_refused(&(struct shunt_link_options){.device = ",rxe0"}, "names no device");
    expect_refused(&(struct shunt_link_options){.device = "a,b,c,d,e"},
                   "there is no RDMA device a");
    expect_refused(&(struct shunt_link_options){.gid_index = 1 + 200}, "--gid-index");
}

/* ---- locked memory; no device is needed to say this */

static uint64_t lockable; /* 0: what this machine says */

uint64_t __real_shunt_memory_lockable(void);
uint64_t __wrap_shunt_memory_lockable(void);

uint64_t __wrap_shunt_memory_lockable(void)
{
    return lockable ? lockable : __real_shunt_memory_lockable();
}

Test(verbs, tells_what_is_locked_from_what_may_be)
{
    static struct shunt_transport t = {.rail_count = 2};
    const struct shunt_transport_config cfg = {.inbox = {.bytes = (4u << 20) + 1, .fd = -1}};
    struct shunt_error err = {0};

    lockable = (8u << 20) + 1; /* one byte too little */
    cr_assert_eq(verbs_register(&t, &cfg, &err), -ENOMEM);
    cr_expect(strstr(err.text, "8193 KiB must be locked") && strstr(err.text, "lock 8192 KiB"),
              "%s", err.text);
    cr_expect(strstr(err.text, "--chunk (of bench: --size, --tokens)"), "%s", err.text);
}
