/* SPDX-License-Identifier: Apache-2.0
 *
 * The bound that shunt's verbs transport is measured against: a bare ping-pong of RDMA writes with
 * immediate between two queue pairs, with nothing around it. What shunt takes longer is shunt's.
 *
 *   pingpong DEVICE GID-INDEX SIZE ITERATIONS PORT          waits for the other
 *   pingpong DEVICE GID-INDEX SIZE ITERATIONS PORT HOST     and this one measures
 *
 * Inside the timed window: posting a write, polling for the answer's immediate. Prints one JSON
 * line with one-way times (half of a round trip) in nanoseconds.
 */
#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP   200
#define RECEIVES  64
#define LOT       16 /* receives that are posted together, as shunt does */
#define SENDS     64
#define TIMEOUT   19 /* 2 s, which shunt bench takes for its silence of 10 s */
#define RETRIES   7
#define RNR_TIMER 12

struct word {
    uint32_t qpn, rkey, mtu, zero;
    uint64_t addr;
    uint8_t gid[16];
};

static struct ibv_context *device;
static struct ibv_pd *pd;
static struct ibv_cq *cq;
static struct ibv_qp *qp;
static struct ibv_mr *mr;
static unsigned char *buffer; /* what is sent, then what is written by the other */
static struct word own, theirs;
static uint32_t size, inline_max;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void open_device(const char *name)
{
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);

    for (int i = 0; i < count; i++)
        if (!strcmp(ibv_get_device_name(list[i]), name))
            device = ibv_open_device(list[i]);
    if (!device)
        die("device");
}

static void post_receives(void)
{
    struct ibv_recv_wr wrs[LOT] = {{0}}, *bad;

    for (int i = 0; i + 1 < LOT; i++)
        wrs[i].next = &wrs[i + 1];
    if (ibv_post_recv(qp, wrs, &bad))
        die("ibv_post_recv");
}

static void make_queue_pair(int gid_index)
{
    struct ibv_qp_init_attr init = {.qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = SENDS,
                                            .max_recv_wr = RECEIVES,
                                            .max_send_sge = 1,
                                            .max_inline_data = 64}};
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    struct ibv_port_attr port;
    union ibv_gid gid;

    buffer = aligned_alloc(4096, 2 * ((size + 4095ul) / 4096 * 4096 + 4096));
    pd = ibv_alloc_pd(device);
    cq = ibv_create_cq(device, SENDS + RECEIVES, NULL, NULL, 0);
    mr = pd ? ibv_reg_mr(pd, buffer, 2ul * size, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)
            : NULL;
    init.send_cq = init.recv_cq = cq;
    qp = cq && mr ? ibv_create_qp(pd, &init) : NULL;
    if (!qp || ibv_modify_qp(qp, &attr,
                             IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS))
        die("queue pair");
    inline_max = init.cap.max_inline_data;
    for (int i = 0; i < RECEIVES / LOT; i++)
        post_receives();
    if (ibv_query_gid(device, 1, gid_index, &gid) || ibv_query_port(device, 1, &port))
        die("port");
    own = (struct word){.qpn = qp->qp_num,
                        .rkey = mr->rkey,
                        .mtu = port.active_mtu,
                        .addr = (uintptr_t)buffer + size};
    memcpy(own.gid, gid.raw, 16);
}

/* The words travel over TCP; the descriptor stays open until the end. */
static int exchange_words(int port, const char *host)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    const int one = 1;

    if (host) {
        inet_pton(AF_INET, host, &addr.sin_addr);
        for (int tries = 0; connect(fd, (struct sockaddr *)&addr, sizeof(addr)); tries++) {
            if (tries == 500)
                die("connect");
            usleep(20000);
        }
    } else {
        int listener = fd;

        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(listener, (struct sockaddr *)&addr, sizeof(addr)) || listen(listener, 1))
            die("listen");
        fd = accept(listener, NULL, NULL);
        close(listener);
    }
    if (send(fd, &own, sizeof(own), 0) != sizeof(own) ||
        recv(fd, &theirs, sizeof(theirs), MSG_WAITALL) != sizeof(theirs))
        die("words");
    return fd;
}

static void connect_queue_pair(int gid_index)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = theirs.mtu < own.mtu ? theirs.mtu : own.mtu,
        .dest_qp_num = theirs.qpn,
        .min_rnr_timer = RNR_TIMER,
        .ah_attr = {.is_global = 1,
                    .port_num = 1,
                    .grh = {.sgid_index = (uint8_t)gid_index, .hop_limit = 64}},
    };

    memcpy(attr.ah_attr.grh.dgid.raw, theirs.gid, 16);
    if (ibv_modify_qp(qp, &attr,
                      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
        die("ready to receive");
    attr = (struct ibv_qp_attr){
        .qp_state = IBV_QPS_RTS, .timeout = TIMEOUT, .retry_cnt = RETRIES, .rnr_retry = RETRIES};
    if (ibv_modify_qp(qp, &attr,
                      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                          IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC))
        die("ready to send");
}

static void post_write(void)
{
    struct ibv_sge sge = {.addr = (uintptr_t)buffer, .length = size, .lkey = mr->lkey};
    struct ibv_send_wr *bad,
        wr = {.sg_list = &sge,
              .num_sge = 1,
              .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
              .send_flags = IBV_SEND_SIGNALED | (size <= inline_max ? IBV_SEND_INLINE : 0u),
              .wr.rdma = {.remote_addr = theirs.addr, .rkey = theirs.rkey}};

    if (ibv_post_send(qp, &wr, &bad))
        die("ibv_post_send");
}

/* Until the other's immediate is here. */
static void wait_for_write(void)
{
    static int taken;
    struct ibv_wc wc;

    for (;;) {
        int n = ibv_poll_cq(cq, 1, &wc);

        if (n < 0 || (n > 0 && wc.status != IBV_WC_SUCCESS)) {
            fprintf(stderr, "%s\n", n < 0 ? "ibv_poll_cq" : ibv_wc_status_str(wc.status));
            exit(1);
        }
        if (n > 0 && wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
            if (++taken % LOT == 0)
                post_receives();
            return;
        }
    }
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

static void measure(int iterations)
{
    int64_t *times = malloc((size_t)iterations * sizeof(*times));

    if (!times)
        die("malloc");
    for (int i = -WARM_UP; i < iterations; i++) {
        int64_t begin = now_ns();

        post_write();
        wait_for_write();
        if (i >= 0)
            times[i] = (now_ns() - begin) / 2;
    }
    qsort(times, (size_t)iterations, sizeof(*times), by_size);
    printf("{\"size\": %u, \"iterations\": %d, \"p50_ns\": %lld, \"p99_ns\": %lld, \"max_ns\": "
           "%lld}\n",
           size, iterations, (long long)times[iterations / 2],
           (long long)times[iterations * 99l / 100], (long long)times[iterations - 1]);
}

int main(int argc, char **argv)
{
    int gid_index, iterations, fd;
    char byte = 0;

    if (argc < 6)
        return fprintf(stderr, "usage: pingpong DEVICE GID-INDEX SIZE ITERATIONS PORT [HOST]\n"), 2;
    gid_index = atoi(argv[2]);
    size = (uint32_t)atoi(argv[3]);
    iterations = atoi(argv[4]);
    open_device(argv[1]);
    make_queue_pair(gid_index);
    fd = exchange_words(atoi(argv[5]), argc > 6 ? argv[6] : NULL);
    connect_queue_pair(gid_index);
    /* Both are ready before the first write. */
    if (send(fd, &byte, 1, 0) != 1 || recv(fd, &byte, 1, MSG_WAITALL) != 1)
        die("ready");
    if (argc > 6)
        measure(iterations);
    for (int i = -WARM_UP; argc == 6 && i < iterations; i++) {
        wait_for_write();
        post_write();
    }
    /* Neither leaves while the other still waits. */
    if (send(fd, &byte, 1, 0) != 1 || recv(fd, &byte, 1, MSG_WAITALL) != 1)
        die("end");
    return 0;
}
