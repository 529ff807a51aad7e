/* SPDX-License-Identifier: Apache-2.0
 *
 * shm [SEED]
 *
 * The shared memory transport between two threads, between two processes, and with a process that
 * is killed at any moment: every put carries its number and a pattern, which the receiver checks
 * when it arrives and again when it releases it; both sides sleep now and then. For the sanitizers,
 * which Criterion does not run under. (The thread sanitizer sees what two threads share by the same
 * address, not what they share by two mappings; the patterns see the rest.)
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/shared.h"
#include "tests/random.h"
#include "transport/transport.h"

#define AREA_BYTES 20000u
#define WAIT_NS    (30 * SHUNT_NS_PER_S)

static uint64_t seed = 1;

static void need(bool ok, const char *what)
{
    if (ok)
        return;
    printf("not ok - %s (seed %llu, process %d)\n", what, (unsigned long long)seed, getpid());
    fflush(stdout);
    _exit(1);
}

struct node {
    uint32_t rank, puts; /* to send, and to receive */
    int fd;
    uint64_t random;
    struct shunt_transport *t;
    struct shunt_shared inbox;
    unsigned char *sources;
    uint32_t posted, sent, arrived, released;
    bool lost;
};

/* ---- one node */

static uint32_t put_bytes(uint32_t rank, uint32_t put)
{
    uint64_t random = seed * 1000003 + rank * 77777 + put;

    return 8 + random_below(&random, put % 16 == 0 ? AREA_BYTES - 8 : 300);
}

static void fill(unsigned char *at, uint32_t rank, uint32_t put)
{
    memcpy(at, &put, sizeof(put));
    memcpy(at + 4, &rank, sizeof(rank));
    memset(at + 8, (int)(put * 31 + rank), put_bytes(rank, put) - 8);
}

static bool is_filled(const unsigned char *at, uint32_t rank, uint32_t put)
{
    uint32_t bytes = put_bytes(rank, put);

    if (memcmp(at, &put, 4) != 0 || memcmp(at + 4, &rank, 4) != 0)
        return false;
    for (uint32_t i = 8; i < bytes; i++)
        if (at[i] != (unsigned char)(put * 31 + rank))
            return false;
    return true;
}

static void open_node(struct node *n)
{
    const uint64_t sizes[] = {(uint64_t)SHUNT_TRANSPORT_WINDOW * AREA_BYTES,
                              (uint64_t)SHUNT_TRANSPORT_WINDOW * AREA_BYTES};
    const struct shunt_patience patience = {.deadline_ns = shunt_deadline_ns(WAIT_NS)};
    struct shunt_stream streams[2] = {SHUNT_STREAM_NONE, SHUNT_STREAM_NONE};
    struct shunt_region memory = {.bytes = SHUNT_TRANSPORT_DEPTH * AREA_BYTES, .fd = -1};
    struct shunt_error err = {0};

    n->random = seed + n->rank;
    n->sources = malloc(memory.bytes);
    memory.base = n->sources;
    streams[1 - n->rank].fd = n->fd;
    need(n->sources && shunt_shared_create(&n->inbox, sizes[0], SHUNT_SHARED_WRITABLE, "the driver",
                                           NULL) == 0,
         "memory");
    shunt_transport_shm.open(&n->t,
                             &(struct shunt_transport_config){
                                 .rank = n->rank,
                                 .node_count = 2,
                                 .streams = streams,
                                 .inbox = {.kind = SHUNT_REGION_SHARED,
                                           .base = n->inbox.base,
                                           .bytes = sizes[0],
                                           .fd = n->inbox.fd},
                                 .peer_inbox_bytes = sizes,
                                 .memory = &memory,
                                 .memory_count = 1,
                                 .patience = &patience,
                             },
                             &err);
    need(n->t != NULL, err.text[0] ? err.text : "open");
}

static void close_node(struct node *n)
{
    shunt_transport_shm.close(n->t);
    shunt_shared_fini(&n->inbox);
    free(n->sources);
}

static const unsigned char *area(const struct node *n, uint32_t put)
{
    return (unsigned char *)n->inbox.base + put % SHUNT_TRANSPORT_WINDOW * AREA_BYTES;
}

static void post(struct node *n)
{
    unsigned char *source = n->sources + n->posted % SHUNT_TRANSPORT_DEPTH * AREA_BYTES;
    int rc;

    fill(source, n->rank, n->posted);
    rc = shunt_transport_shm.put(n->t, 1 - n->rank, source, put_bytes(n->rank, n->posted),
                                 n->posted % SHUNT_TRANSPORT_WINDOW * AREA_BYTES, n->posted);
    need(rc == 0 || rc == -EPIPE, "a put is refused");
    n->posted += rc == 0;
}

static void take(struct node *n, const struct shunt_completion *c)
{
    switch (c->event) {
    case SHUNT_TRANSPORT_SENT:
        need(c->imm == n->sent, "SENT out of order");
        n->sent++;
        return;
    case SHUNT_TRANSPORT_ARRIVED:
        need(c->imm == n->arrived, "ARRIVED out of order");
        need(is_filled(area(n, c->imm), 1 - n->rank, c->imm), "bytes are not there");
        n->arrived++;
        return;
    case SHUNT_TRANSPORT_LOST:
        n->lost = true;
    }
}

static void release_some(struct node *n)
{
    uint32_t count = random_below(&n->random, n->arrived - n->released + 1);

    for (uint32_t i = 0; i < count; i++)
        need(is_filled(area(n, n->released + i), 1 - n->rank, n->released + i),
             "overwritten before it was released");
    shunt_transport_shm.release(n->t, 1 - n->rank, count);
    n->released += count;
}

static bool is_done(const struct node *n)
{
    return n->sent == n->puts && n->released == n->puts;
}

/* The peer may be done, and gone, before we have released the last of its puts. */
static bool has_all(const struct node *n)
{
    return n->sent == n->puts && n->arrived == n->puts;
}

static void run(struct node *n)
{
    int64_t deadline = shunt_deadline_ns(WAIT_NS);

    while (!n->lost && !is_done(n)) {
        struct shunt_completion c[8];
        struct pollfd fds[4];
        uint32_t count;

        while (!n->lost && n->posted < n->puts && n->posted - n->sent < SHUNT_TRANSPORT_DEPTH &&
               random_below(&n->random, 4) > 0)
            post(n);
        count = shunt_transport_shm.poll(n->t, c, 1 + random_below(&n->random, 8));
        for (uint32_t i = 0; i < count; i++)
            take(n, &c[i]);
        release_some(n);
        need(shunt_now_ns() < deadline, "nothing moves");
        /* With nothing left to post or to release, only the peer can bring more. */
        if (count == 0 && n->released == n->arrived &&
            (n->posted == n->puts || n->posted - n->sent == SHUNT_TRANSPORT_DEPTH))
            poll(fds, shunt_transport_shm.prepare(n->t, fds, 4), 1000);
    }
}

static void *live(void *arg)
{
    struct node *n = arg;

    open_node(n);
    run(n);
    return NULL;
}

static void make_pair(struct node *nodes, uint32_t puts)
{
    int fds[2];

    need(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0, "socketpair");
    for (uint32_t r = 0; r < 2; r++)
        nodes[r] = (struct node){.rank = r, .puts = puts, .fd = fds[r]};
}

/* ---- two of them */

static void two_threads(void)
{
    struct node nodes[2];
    pthread_t threads[2];

    make_pair(nodes, 20000);
    for (uint32_t r = 0; r < 2; r++)
        need(pthread_create(&threads[r], NULL, live, &nodes[r]) == 0, "pthread_create");
    for (uint32_t r = 0; r < 2; r++)
        pthread_join(threads[r], NULL);
    for (uint32_t r = 0; r < 2; r++) {
        need(has_all(&nodes[r]), "a thread ended early");
        close_node(&nodes[r]);
    }
    printf("ok - two threads: puts arrive whole and in order\n");
}

/* Forks node 1. Return: its process. */
static pid_t start_child(struct node *nodes)
{
    pid_t child;

    fflush(stdout);
    child = fork();
    need(child >= 0, "fork");
    if (child > 0) {
        close(nodes[1].fd);
        return child;
    }
    close(nodes[0].fd);
    live(&nodes[1]);
    need(has_all(&nodes[1]), "the child ended early");
    /* Not before the parent has what it is owed: SENT is not yet taken. */
    while (!nodes[1].lost) {
        struct shunt_completion c;

        if (shunt_transport_shm.poll(nodes[1].t, &c, 1))
            take(&nodes[1], &c);
        usleep(100);
    }
    close_node(&nodes[1]);
    _exit(0);
}

static void two_processes(void)
{
    struct node nodes[2];
    int status = -1;
    pid_t child;

    make_pair(nodes, 20000);
    child = start_child(nodes);
    live(&nodes[0]);
    need(has_all(&nodes[0]), "the parent ended early");
    close_node(&nodes[0]);
    need(waitpid(child, &status, 0) == child && status == 0, "the child failed");
    printf("ok - two processes: puts arrive whole and in order\n");
}

static uint32_t entries(const char *folder)
{
    DIR *dir = opendir(folder);
    uint32_t count = 0;

    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count;
}

struct killing {
    pid_t child;
    uint32_t after_us;
};

static void *kill_later(void *arg)
{
    const struct killing *k = arg;

    usleep(k->after_us);
    kill(k->child, SIGKILL);
    return NULL;
}

/* What had arrived was whole, the loss is said, and nothing stays behind. */
static void a_killed_process(void)
{
    uint32_t descriptors = entries("/proc/self/fd"), files = entries("/dev/shm");
    uint64_t random = seed;

    for (uint32_t i = 0; i < 30; i++) {
        struct node nodes[2];
        struct killing killing;
        pthread_t killer;

        make_pair(nodes, UINT32_MAX);
        killing.child = start_child(nodes);
        open_node(&nodes[0]);
        killing.after_us = random_below(&random, 4000);
        need(pthread_create(&killer, NULL, kill_later, &killing) == 0, "pthread_create");
        run(&nodes[0]);
        need(nodes[0].lost, "nobody said that the peer is gone");
        pthread_join(killer, NULL);
        waitpid(killing.child, NULL, 0);
        close_node(&nodes[0]);
    }
    need(entries("/proc/self/fd") == descriptors, "descriptors stay open");
    need(entries("/dev/shm") == files, "files stay in /dev/shm");
    printf("ok - a process that is killed is lost, and leaves nothing behind\n");
}

int main(int argc, char **argv)
{
    if (argc > 1)
        seed = strtoull(argv[1], NULL, 10);
    two_processes();
    a_killed_process();
    two_threads();
    printf("1..3\n");
    return 0;
}
