/* SPDX-License-Identifier: Apache-2.0
 *
 * Nodes that find each other, each on a thread of its own, and what may come between them.
 */
#include "runtime/cluster/join.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"

#define NODES_MAX 4u

struct node {
    struct shunt_rack_config cfg;
    struct shunt_mesh mesh;
    struct shunt_error err;
    int rc;
    bool absent; /* does not even try */
};

static void join(void *arg)
{
    struct node *n = arg;

    if (!n->absent)
        n->rc = shunt_join(&n->cfg, &n->mesh, &n->err);
}

struct table {
    struct seats seats;
    struct node nodes[NODES_MAX];
};

static void sit_down(struct table *t, uint32_t count)
{
    memset(t, 0, sizeof(*t));
    seats_take(&t->seats, count);
    for (uint32_t r = 0; r < count; r++)
        t->nodes[r].cfg = seats_config(&t->seats, r);
}

static void join_all(struct table *t)
{
    at_once(t->seats.count, join, t->nodes, sizeof(t->nodes[0]));
}

static void stand_up(struct table *t)
{
    for (uint32_t a = 0; a < t->seats.count; a++)
        if (t->nodes[a].rc == 0 && !t->nodes[a].absent)
            shunt_mesh_close(&t->nodes[a].mesh);
}

static void expect_all_joined(const struct table *t)
{
    for (uint32_t r = 0; r < t->seats.count; r++)
        cr_assert_eq(t->nodes[r].rc, 0, "rank %u: %s", r, t->nodes[r].err.text);
}

static uint32_t open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint32_t count = 0;

    cr_assert(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* A byte goes in at one end and comes out where it should. */
static bool are_one_stream(const struct shunt_stream *a, const struct shunt_stream *b, char byte)
{
    struct pollfd fd = {.fd = b->fd, .events = POLLIN};
    char got = 0;

    return shunt_stream_send(a, &byte, 1) == 1 && poll(&fd, 1, 10000) == 1 &&
           shunt_stream_recv(b, &got, 1) == 1 && got == byte;
}

/* ---- all goes well */

/* What a knows of b and b of a. */
static void expect_one_pair(struct table *t, uint32_t a, uint32_t b)
{
    const struct shunt_joined *there = &t->nodes[a].mesh.peers[b];
    const struct shunt_joined *here = &t->nodes[b].mesh.peers[a];

    cr_assert_eq(there->hello.rank, b);
    cr_expect_str_eq(there->address, t->seats.texts[b]);
    cr_expect_eq(memcmp(there->live_key, here->live_key, sizeof(here->live_key)), 0);
    cr_expect(shunt_address_is_loopback(&there->live) &&
              shunt_address_port(&there->live) == there->hello.live_port);
    for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
        cr_assert(
            are_one_stream(&there->streams[s], &here->streams[s], (char)(1 + a * 16 + b * 2 + s)),
            "stream %u of %u and %u", s, a, b);
}

Test(join, gives_each_pair_its_streams, .timeout = 60)
{
    for (uint32_t count = 2; count <= NODES_MAX; count++) {
        struct table t;

        sit_down(&t, count);
        join_all(&t);
        expect_all_joined(&t);
        for (uint32_t a = 0; a < count; a++) {
            for (uint32_t b = 0; b < count; b++) {
                if (a == b)
                    continue;
                expect_one_pair(&t, a, b);
            }
        }
        stand_up(&t);
    }
}

struct late {
    struct node *node;
    int64_t delay_ns;
};

static void join_late(void *arg)
{
    struct late *l = arg;
    struct timespec delay = shunt_timespec(l->delay_ns);

    nanosleep(&delay, NULL);
    join(l->node);
}

/* Ranks connect to those below: whoever comes first waits for the others. */
Test(join, waits_for_whoever_comes_later, .timeout = 60)
{
    static const int64_t delays_ms[][3] = {{300, 0, 0}, {0, 300, 0}, {400, 200, 0}, {0, 200, 400}};

    for (uint32_t i = 0; i < 4; i++) {
        struct late late[3];
        struct table t;

        sit_down(&t, 3);
        for (uint32_t r = 0; r < 3; r++)
            late[r] = (struct late){&t.nodes[r], delays_ms[i][r] * SHUNT_NS_PER_MS};
        at_once(3, join_late, late, sizeof(late[0]));
        expect_all_joined(&t);
        stand_up(&t);
    }
}

/* ---- mismatches */

/* What a refused node says, and all it can say. */
static void expect_refused(const struct node *n)
{
    cr_expect_eq(n->rc, -ECONNREFUSED, "%d %s", n->rc, n->err.text);
    cr_expect(strstr(n->err.text, "rank 0 (127.0.0.1:") &&
                  strstr(n->err.text, "refused this node; rank 0's own message says why"),
              "%s", n->err.text);
}

/* Both sides fail; whoever refuses names both values, and the other learns no more than that. */
static void expect_mismatch(struct table *t, const char *value0, const char *value1)
{
    uint32_t before = open_descriptors();
    const struct node *owner = &t->nodes[0];

    join_all(t);
    cr_expect_eq(owner->rc, -EPROTO, "%d %s", owner->rc, owner->err.text);
    cr_expect(strstr(owner->err.text, value0) && strstr(owner->err.text, value1) &&
                  strstr(owner->err.text, "rank 1"),
              "rank 0 should name '%s' and '%s': %s", value0, value1, owner->err.text);
    expect_refused(&t->nodes[1]);
    cr_expect_eq(open_descriptors(), before - 2, "descriptors are left"); /* the listening two */
}

Test(join, names_another_model, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    t.nodes[1].cfg.fingerprint[15] = 0x99;
    t.nodes[1].cfg.model_name = "another";
    expect_mismatch(&t, "'tiny' (01020300000000000000000000000000)",
                    "'another' (01020300000000000000000000000099)");
}

Test(join, names_another_number_of_nodes, .timeout = 60)
{
    struct table t;

    sit_down(&t, 3);
    t.seats.count = 2;
    t.nodes[1].cfg.node_count = 2;
    close(t.nodes[2].cfg.listen_fd);
    expect_mismatch(&t, "of 3", "of 2 nodes");
}

Test(join, names_kernel_levels, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    t.nodes[0].cfg.kernel_levels = 1;
    t.nodes[1].cfg.kernel_levels = 2;
    expect_mismatch(&t, "ref", "avx2");
}

Test(join, names_transports, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    t.nodes[0].cfg.transports = 1u << SHUNT_TRANSPORT_TCP;
    t.nodes[1].cfg.transports = 1u << SHUNT_TRANSPORT_VERBS;
    expect_mismatch(&t, "tcp", "verbs");
}

Test(join, names_the_wire_format, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    t.nodes[1].cfg.wire_format = 77;
    expect_mismatch(&t, "format 77", "format 1");
}

Test(join, names_rows, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    t.nodes[1].cfg.rows_max = SHUNT_ROWS_MAX + 1;
    expect_mismatch(&t, "4097", "4096");
    sit_down(&t, 2);
    t.nodes[1].cfg.rows_max = 0;
    expect_mismatch(&t, " 0 rows", "4096");
}

/* Two nodes with one rank, while a third is awaited. */
Test(join, names_a_rank_that_comes_twice, .timeout = 60)
{
    uint32_t refused = 0;
    struct table t;

    sit_down(&t, 3);
    t.nodes[2].cfg.rank = 1; /* listens on its own socket, says it is rank 1 */
    t.nodes[1].cfg.join_timeout_ns = t.nodes[2].cfg.join_timeout_ns = 2 * SHUNT_NS_PER_S;
    join_all(&t);
    cr_expect_eq(t.nodes[0].rc, -EPROTO, "%s", t.nodes[0].err.text);
    cr_expect(strstr(t.nodes[0].err.text, "calls itself rank 1"), "%s", t.nodes[0].err.text);
    for (uint32_t n = 1; n < 3; n++)
        refused += t.nodes[n].rc == -ECONNREFUSED;
    cr_expect_geq(refused, 1);
    stand_up(&t);
}

/* One of three has the others' addresses swapped: whoever it meets says what differs. */
Test(join, names_an_address_that_differs, .timeout = 60)
{
    const char *swapped[3];
    uint32_t named = 0;
    struct table t;

    sit_down(&t, 3);
    swapped[0] = t.seats.addresses[1];
    swapped[1] = t.seats.addresses[0];
    swapped[2] = t.seats.addresses[2];
    t.nodes[2].cfg.addresses = swapped;
    for (uint32_t n = 0; n < 3; n++)
        t.nodes[n].cfg.join_timeout_ns = 3 * SHUNT_NS_PER_S;
    join_all(&t);
    for (uint32_t n = 0; n < 2; n++)
        named += t.nodes[n].rc == -EPROTO && strstr(t.nodes[n].err.text, "looks for rank 0 at") &&
                 strstr(t.nodes[n].err.text, t.seats.addresses[0]) &&
                 strstr(t.nodes[n].err.text, t.seats.addresses[1]);
    cr_expect_geq(named, 1, "%s; %s", t.nodes[0].err.text, t.nodes[1].err.text);
    cr_expect_eq(t.nodes[2].rc, -ECONNREFUSED, "%s", t.nodes[2].err.text);
    stand_up(&t);
}

/* ---- strangers */

static void hello_of(struct shunt_hello *h, const struct table *t, uint32_t rank)
{
    struct shunt_rack_config cfg = t->nodes[0].cfg;

    cfg.rank = rank;
    shunt_hello_fill(h, &cfg, cfg.addresses);
    h->live_port = 9;
}

/* Connections that are there before the nodes: in the queue of rank 0's socket. */
static void strangers_first(struct table *t, int *fds, uint32_t count)
{
    cr_assert_eq(listen(t->nodes[0].cfg.listen_fd, 64), 0);
    for (uint32_t i = 0; i < count; i++)
        fds[i] = seats_connect(&t->seats, 0);
}

static void close_all(const int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
}

Test(join, is_not_kept_by_strangers, .timeout = 60)
{
    struct shunt_hello part;
    char garbage[4096];
    uint64_t seed = 3;
    struct table t;
    int fds[6];

    sit_down(&t, 3);
    strangers_first(&t, fds, 6);
    random_fill(&seed, garbage, sizeof(garbage));
    hello_of(&part, &t, 1);
    /* 0 and 1 stay silent. */
    cr_assert_eq(send(fds[2], garbage, sizeof(garbage), 0), sizeof(garbage));
    cr_assert_eq(send(fds[3], "GET / HTTP/1.1\r\n\r\n", 18, 0), 18);
    cr_assert_eq(send(fds[4], &part, sizeof(part) - 1, 0), sizeof(part) - 1);
    close(fds[5]);
    join_all(&t);
    expect_all_joined(&t);
    stand_up(&t);
    close_all(fds, 5);
}

/* As many silent ones as there are places: they must give them back after a while. */
Test(join, is_not_kept_by_many_silent_strangers, .timeout = 60)
{
    struct table t;
    int fds[40];

    sit_down(&t, 2);
    strangers_first(&t, fds, 40);
    join_all(&t);
    expect_all_joined(&t);
    stand_up(&t);
    close_all(fds, 40);
}

/* A peer that says this hello to rank 0 is refused, and learns nothing else. */
static void expect_refusal_of(const struct shunt_hello *hello, struct table *t, const char *says)
{
    struct shunt_message_head answer[2];
    int fd;

    t->nodes[1].absent = true;
    strangers_first(t, &fd, 1);
    cr_assert_eq(send(fd, hello, sizeof(*hello), 0), sizeof(*hello));
    join_all(t);
    cr_expect_eq(t->nodes[0].rc, -EPROTO, "%s", t->nodes[0].err.text);
    cr_expect(strstr(t->nodes[0].err.text, says), "no '%s': %s", says, t->nodes[0].err.text);
    cr_assert_eq(recv(fd, answer, sizeof(answer), MSG_WAITALL), sizeof(answer[0]));
    cr_expect(answer[0].magic == SHUNT_ANSWER_MAGIC && answer[0].word == SHUNT_REFUSED);
    close(fd);
    close(t->nodes[1].cfg.listen_fd);
}

/* A hello of another version means to belong here: it is answered, and both sides end. */
Test(join, answers_another_version, .timeout = 60)
{
    struct shunt_hello hello;
    struct table t;

    sit_down(&t, 2);
    hello_of(&hello, &t, 1);
    strcpy(hello.version, "7.7.7");
    expect_refusal_of(&hello, &t, "7.7.7");
    sit_down(&t, 2);
    hello_of(&hello, &t, 1);
    hello.protocol = 77;
    expect_refusal_of(&hello, &t, "protocol 77");
    cr_expect(strstr(t.nodes[0].err.text, shunt_version()), "%s", t.nodes[0].err.text);
}

/* Hellos that are wrong in their rank. */
Test(join, refuses_a_place_that_is_none, .timeout = 60)
{
    static const uint32_t ranks[] = {0, 2, UINT32_MAX};

    for (uint32_t i = 0; i < sizeof(ranks) / sizeof(ranks[0]); i++) {
        struct shunt_hello hello;
        struct table t;

        sit_down(&t, 2);
        hello_of(&hello, &t, ranks[i]);
        expect_refusal_of(&hello, &t, "its own --rank");
    }
}

/* Connections that rank 0 has not yet taken from the kernel. */
static uint32_t not_accepted(int listener)
{
    struct tcp_info info;
    socklen_t len = sizeof(info);

    cr_assert_eq(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &len), 0);
    return info.tcpi_unacked;
}

static void *join_thread(void *arg)
{
    join(arg);
    return NULL;
}

/* Two that say they are the same stream of the same rank, at the same moment: one of them may have
 * the place, and no other stream is taken to be there for it. */
Test(join, gives_a_stream_to_one_of_two, .timeout = 60)
{
    for (uint32_t round = 0; round < 30; round++) {
        int64_t deadline = shunt_now_ns() + 20 * SHUNT_NS_PER_S;
        struct shunt_hello hello;
        pthread_t thread;
        struct table t;
        int fds[2], listener;

        sit_down(&t, 2);
        t.nodes[0].cfg.join_timeout_ns = 300 * SHUNT_NS_PER_MS;
        listener = dup(t.nodes[0].cfg.listen_fd);
        strangers_first(&t, fds, 2);
        hello_of(&hello, &t, 1);
        cr_assert_eq(pthread_create(&thread, NULL, join_thread, &t.nodes[0]), 0);
        while (not_accepted(listener) > 0)
            cr_assert_lt(shunt_now_ns(), deadline);
        for (uint32_t i = 0; i < 2; i++)
            cr_assert_eq(send(fds[i], &hello, sizeof(hello), MSG_NOSIGNAL), sizeof(hello));
        pthread_join(thread, NULL);
        cr_assert(t.nodes[0].rc == -EPROTO || t.nodes[0].rc == -ETIMEDOUT, "round %u: %d", round,
                  t.nodes[0].rc);
        close_all(fds, 2);
        close(listener);
        close(t.nodes[1].cfg.listen_fd);
    }
}

/* ---- nobody, or somebody else, at the other end */

Test(join, names_who_does_not_come, .timeout = 60)
{
    uint32_t before = open_descriptors();
    struct table t;

    sit_down(&t, 4);
    t.nodes[1].absent = t.nodes[3].absent = true;
    close(t.nodes[1].cfg.listen_fd);
    close(t.nodes[3].cfg.listen_fd);
    t.nodes[2].cfg.join_timeout_ns = 400 * SHUNT_NS_PER_MS; /* and rank 0 sees it leave */
    join_all(&t);
    for (uint32_t n = 0; n < 4; n += 2) {
        const char *text = t.nodes[n].err.text;

        cr_expect_eq(t.nodes[n].rc, n == 2 ? -ETIMEDOUT : -ECONNRESET, "%s", text);
        cr_expect(strstr(text, "rank 1 (127.0.0.1:") && strstr(text, "rank 3 (127.0.0.1:"), "%s",
                  text);
        cr_expect(!strstr(text, "rank 0"), "%s", text);
        cr_expect_eq(strstr(text, "rank 2 (127.0.0.1:") != NULL, n == 0, "%s", text);
    }
    cr_expect(strstr(t.nodes[2].err.text, "--join-timeout"), "%s", t.nodes[2].err.text);
    cr_expect(strstr(t.nodes[2].err.text, strerror(ECONNREFUSED)), "%s", t.nodes[2].err.text);
    cr_expect_eq(open_descriptors(), before);
}

/* A socket that listens and a program behind it that does not answer. */
Test(join, does_not_wait_for_a_silent_listener, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    t.nodes[0].absent = true;
    t.nodes[1].cfg.join_timeout_ns = 300 * SHUNT_NS_PER_MS;
    cr_assert_eq(listen(t.nodes[0].cfg.listen_fd, 4), 0);
    join_all(&t);
    cr_expect_eq(t.nodes[1].rc, -ETIMEDOUT, "%s", t.nodes[1].err.text);
    cr_expect(strstr(t.nodes[1].err.text, "rank 0"), "%s", t.nodes[1].err.text);
    close(t.nodes[0].cfg.listen_fd);
}

static void answer_like_a_web_server(void *arg)
{
    char text[300];
    int listener = *(int *)arg;
    int fd = accept(listener, NULL, NULL);

    memset(text, 'x', sizeof(text));
    memcpy(text, "HTTP/1.1 400 Bad Request\r\n", 26);
    if (send(fd, text, sizeof(text), MSG_NOSIGNAL) != sizeof(text))
        abort();
    while (recv(fd, text, sizeof(text), 0) > 0)
        ;
    close(fd);
}

struct either {
    void (*fn)(void *arg);
    void *arg;
};

static void call_either(void *arg)
{
    struct either *e = arg;

    e->fn(e->arg);
}

Test(join, says_that_it_is_not_shunt, .timeout = 60)
{
    struct table t;
    struct either calls[2];
    int listener;

    sit_down(&t, 2);
    listener = t.nodes[0].cfg.listen_fd;
    cr_assert_eq(listen(listener, 4), 0);
    calls[0] = (struct either){answer_like_a_web_server, &listener};
    calls[1] = (struct either){join, &t.nodes[1]};
    at_once(2, call_either, calls, sizeof(calls[0]));
    cr_expect_eq(t.nodes[1].rc, -EPROTO, "%s", t.nodes[1].err.text);
    cr_expect(strstr(t.nodes[1].err.text, "rank 0") && strstr(t.nodes[1].err.text, "is not shunt"),
              "%s", t.nodes[1].err.text);
    close(listener);
}

/* ---- addresses and sockets */

/* Rank 0 of two, with these addresses. */
static void join_with_addresses(struct table *t, const char *const *addresses)
{
    sit_down(t, 2);
    t->nodes[0].cfg.addresses = addresses;
    join(&t->nodes[0]);
}

Test(join, refuses_other_machines_without_a_key, .timeout = 60)
{
    const char *addresses[] = {"127.0.0.1:1", "192.0.2.1:7171"};
    struct table t;

    join_with_addresses(&t, addresses);
    cr_expect_eq(t.nodes[0].rc, -EACCES);
    cr_expect(strstr(t.nodes[0].err.text, "192.0.2.1:7171") &&
                  strstr(t.nodes[0].err.text, "openssl rand -hex 32") &&
                  strstr(t.nodes[0].err.text, "--key-file"),
              "%s", t.nodes[0].err.text);
    close(t.nodes[1].cfg.listen_fd);
}

Test(join, names_a_port_that_is_taken, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    cr_assert_eq(listen(t.nodes[0].cfg.listen_fd, 1), 0);
    t.nodes[1].cfg = t.nodes[0].cfg;
    t.nodes[1].cfg.listen_fd = -1;
    join(&t.nodes[1]);
    cr_expect_eq(t.nodes[1].rc, -EADDRINUSE);
    cr_expect(strstr(t.nodes[1].err.text, t.seats.texts[0]), "%s", t.nodes[1].err.text);
    close(t.nodes[0].cfg.listen_fd);
}

Test(join, refuses_a_listening_socket_that_is_none, .timeout = 60)
{
    struct table t;
    int pipes[2];

    sit_down(&t, 2);
    close(t.nodes[0].cfg.listen_fd);
    cr_assert_eq(pipe(pipes), 0);
    t.nodes[0].cfg.listen_fd = pipes[0];
    join(&t.nodes[0]);
    cr_expect_lt(t.nodes[0].rc, 0);
    cr_expect(strstr(t.nodes[0].err.text, "listen_fd"), "%s", t.nodes[0].err.text);
    signal(SIGPIPE, SIG_IGN);
    cr_expect(write(pipes[1], "x", 1) < 0 && errno == EPIPE, "it was taken over and closed");
    close(pipes[1]);
    close(t.nodes[1].cfg.listen_fd);
}

Test(join, refuses_an_address_that_is_none, .timeout = 60)
{
    const char *addresses[] = {"127.0.0.1:1", "127.0.0.1"};
    struct table t;

    join_with_addresses(&t, addresses);
    cr_expect_eq(t.nodes[0].rc, -EINVAL, "%s", t.nodes[0].err.text);
    close(t.nodes[1].cfg.listen_fd);
}
