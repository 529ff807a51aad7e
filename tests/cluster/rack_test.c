/* SPDX-License-Identifier: Apache-2.0
 *
 * The control thread: nodes of one process, and peers that are bare sockets speaking its frames.
 */
#include "runtime/cluster/rack.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/cluster/join.h"
#include "runtime/cluster/liveness.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"

#define NODES_MAX 4u
#define WAIT_S    20

/* Frames, as they travel. */
enum { READY = 2, FAILED, GOODBYE };

/* ---- what the control thread says */

struct news {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t downs, ticks, messages, suspicions, returns;
    uint32_t down_rank;
    struct shunt_error why;
    /* Each message is checked as it comes: numbered, of known content. */
    uint32_t next_number[NODES_MAX];
    bool wrong;
    bool hold; /* the thread stays in its tick */
    bool held;
};

static void on_down(void *ctx, uint32_t rank, const struct shunt_error *why)
{
    struct news *n = ctx;

    pthread_mutex_lock(&n->mutex);
    n->downs++;
    n->down_rank = rank;
    n->why = *why;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->mutex);
}

static void on_tick(void *ctx)
{
    struct news *n = ctx;

    pthread_mutex_lock(&n->mutex);
    n->ticks++;
    n->held = n->hold;
    pthread_cond_broadcast(&n->changed);
    while (n->hold)
        pthread_cond_wait(&n->changed, &n->mutex);
    n->held = false;
    pthread_mutex_unlock(&n->mutex);
}

/* Number `number` from one sender: random length and bytes. Return: its length. */
static uint32_t numbered(uint32_t number, uint32_t bytes_max, unsigned char *out)
{
    uint64_t random = number;
    uint32_t bytes = random_below(&random, bytes_max + 1);

    random_fill(&random, out, bytes);
    return bytes;
}

static void on_message(void *ctx, uint32_t rank, uint32_t type, const void *data, uint32_t bytes)
{
    struct news *n = ctx;
    unsigned char want[1000];
    uint32_t len;

    pthread_mutex_lock(&n->mutex);
    len = numbered(n->next_number[rank]++, sizeof(want), want);
    n->wrong |= type != SHUNT_RACK_MESSAGE_FIRST + 5 || bytes != len || memcmp(data, want, len);
    n->messages++;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->mutex);
}

static void news_init(struct news *n)
{
    memset(n, 0, sizeof(*n));
    pthread_mutex_init(&n->mutex, NULL);
    pthread_cond_init(&n->changed, NULL);
}

/* Waits until *count, which the mutex guards, is at least `least`. */
static void await(struct news *n, const uint32_t *count, uint32_t least)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    pthread_mutex_lock(&n->mutex);
    while (*count < least && !rc)
        rc = pthread_cond_timedwait(&n->changed, &n->mutex, &until);
    pthread_mutex_unlock(&n->mutex);
    cr_assert_eq(rc, 0, "waited for %u, got %u", least, *count);
}

static void expect_down(struct news *n, uint32_t rank, int code, const char *who, const char *what)
{
    await(n, &n->downs, 1);
    cr_expect_eq(n->down_rank, rank, "%s", n->why.text);
    cr_expect_eq(n->why.code, code, "%s", n->why.text);
    cr_expect(strstr(n->why.text, who) && strstr(n->why.text, what), "no '%s', '%s': %s", who, what,
              n->why.text);
}

/* ---- racks */

struct node {
    struct shunt_rack_config cfg;
    struct shunt_rack *rack;
    struct shunt_mesh bare; /* instead of a rack */
    struct news news;
    struct shunt_error err;
    int rc;
    bool is_bare, absent;
};

struct table {
    struct seats seats;
    struct node nodes[NODES_MAX];
};

static void join(void *arg)
{
    struct node *n = arg;

    if (n->absent)
        return;
    n->rc = n->is_bare ? shunt_join(&n->cfg, &n->bare, &n->err)
                       : shunt_rack_join(&n->rack, &n->cfg, &n->err);
}

static void sit_down(struct table *t, uint32_t count)
{
    memset(t, 0, sizeof(*t));
    seats_take(&t->seats, count);
    for (uint32_t r = 0; r < count; r++) {
        t->nodes[r].cfg = seats_config(&t->seats, r);
        news_init(&t->nodes[r].news);
    }
}

static void start(struct node *n)
{
    const struct shunt_rack_callbacks callbacks = {
        .ctx = &n->news, .down = on_down, .message = on_message, .tick = on_tick};

    cr_assert_eq(shunt_rack_start(n->rack, &callbacks, &n->err), 0, "%s", n->err.text);
}

/* A bare peer reads with recv, for a while. */
static void let_block(int fd)
{
    const struct timeval limit = {.tv_sec = WAIT_S};

    cr_assert_eq(fcntl(fd, F_SETFL, 0), 0);
    cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
}

/* Joins all, starts those that are no bare sockets. */
static void open_table(struct table *t)
{
    at_once(t->seats.count, join, t->nodes, sizeof(t->nodes[0]));
    for (uint32_t r = 0; r < t->seats.count; r++) {
        cr_assert_eq(t->nodes[r].rc, 0, "rank %u: %s", r, t->nodes[r].err.text);
        if (!t->nodes[r].is_bare)
            start(&t->nodes[r]);
    }
}

static void close_node(struct node *n)
{
    if (n->is_bare)
        shunt_mesh_close(&n->bare);
    n->is_bare = false;
    shunt_rack_close(n->rack);
    n->rack = NULL;
}

static void close_table(struct table *t)
{
    for (uint32_t r = 0; r < t->seats.count; r++)
        close_node(&t->nodes[r]);
}

static int bare_fd(const struct table *t)
{
    return t->nodes[1].bare.peers[0].streams[SHUNT_STREAM_CONTROL].fd;
}

/* The test has closed it. */
static void forget_bare_fd(struct table *t)
{
    t->nodes[1].bare.peers[0].streams[SHUNT_STREAM_CONTROL] = SHUNT_STREAM_NONE;
}

/* A rack of two of which rank 1 is a bare socket. Return: its end of the control stream. */
static int open_with_bare_peer(struct table *t, int64_t dead_after_ns)
{
    sit_down(t, 2);
    t->nodes[1].is_bare = true;
    if (dead_after_ns)
        t->nodes[0].cfg.dead_after_ns = dead_after_ns;
    open_table(t);
    let_block(bare_fd(t));
    return bare_fd(t);
}

/* In one piece: a second one might wait for the first to be acknowledged. */
static void send_frame(int fd, uint32_t type, const void *data, uint32_t bytes)
{
    unsigned char frame[8 + 1000];

    memcpy(frame, &type, 4);
    memcpy(frame + 4, &bytes, 4);
    if (bytes)
        memcpy(frame + 8, data, bytes);
    cr_assert_eq(send(fd, frame, 8 + bytes, MSG_NOSIGNAL), (ssize_t)(8 + bytes));
}

/* The next frame. Return: its type. */
static uint32_t receive_frame(int fd, void *data, uint32_t bytes_max, uint32_t *bytes)
{
    uint32_t frame[2];

    cr_assert_eq(recv(fd, frame, sizeof(frame), MSG_WAITALL), sizeof(frame));
    cr_assert_leq(frame[1], bytes_max);
    if (frame[1])
        cr_assert_eq(recv(fd, data, frame[1], MSG_WAITALL), (ssize_t)frame[1]);
    *bytes = frame[1];
    return frame[0];
}

/* ---- joining */

Test(rack, knows_its_nodes, .timeout = 60)
{
    struct table t;

    sit_down(&t, 3);
    t.nodes[1].cfg.serve_only = true;
    t.nodes[2].cfg.rows_max = 99;
    t.nodes[2].cfg.kernel_levels = 1;
    open_table(&t);
    for (uint32_t r = 0; r < 3; r++) {
        const struct shunt_rack_node *nodes = shunt_rack_nodes(t.nodes[r].rack);

        for (uint32_t n = 0; n < 3; n++) {
            cr_expect_eq(nodes[n].serve_only, n == 1);
            cr_expect_eq(nodes[n].rows_max, n == 2 ? 99 : 16);
            cr_expect_eq(nodes[n].kernel_levels, n == 2 ? 1 : 3);
            cr_expect(strstr(nodes[n].label, n == r ? "this node" : t.seats.texts[n]));
        }
    }
    close_table(&t);
}

Test(rack, needs_no_socket_alone, .timeout = 60)
{
    struct table t;

    sit_down(&t, 1);
    open_table(&t);
    cr_expect_eq(shunt_rack_wait_ready(t.nodes[0].rack, NULL, NULL), 0);
    await(&t.nodes[0].news, &t.nodes[0].news.ticks, 3);
    cr_expect_eq(shunt_rack_down(t.nodes[0].rack), 0);
    shunt_rack_leave(t.nodes[0].rack, true);
    close_table(&t);
    shunt_rack_close(NULL);
}

Test(rack, gives_the_data_streams_away, .timeout = 60)
{
    struct shunt_stream streams[2][2];
    struct table t;
    char byte;

    sit_down(&t, 2);
    open_table(&t);
    for (uint32_t r = 0; r < 2; r++)
        shunt_rack_take_streams(t.nodes[r].rack, streams[r]);
    cr_expect(streams[0][0].fd == -1 && streams[1][1].fd == -1);
    close_table(&t);
    cr_expect_eq(shunt_stream_send(&streams[0][1], "d", 1), 1); /* the rack's end is not theirs */
    cr_expect(recv(streams[1][0].fd, &byte, 1, MSG_WAITALL) == 1 && byte == 'd');
    shunt_stream_close(&streams[0][1]);
    shunt_stream_close(&streams[1][0]);
}

/* ---- ready */

struct readiness {
    struct node *node;
    int64_t within_ns;
    int rc;
    struct shunt_error err;
};

static void wait_ready(void *arg)
{
    struct readiness *r = arg;
    const struct shunt_patience patience = {.deadline_ns = shunt_now_ns() + r->within_ns};

    r->rc = shunt_rack_wait_ready(r->node->rack, &patience, &r->err);
}

Test(rack, is_ready_when_all_are, .timeout = 60)
{
    struct readiness ready[3] = {{0}};
    struct table t;

    sit_down(&t, 3);
    open_table(&t);
    for (uint32_t r = 0; r < 3; r++)
        ready[r] = (struct readiness){.node = &t.nodes[r], .within_ns = 100 * SHUNT_NS_PER_MS};
    at_once(2, wait_ready, ready, sizeof(ready[0]));
    for (uint32_t r = 0; r < 2; r++) {
        cr_expect_eq(ready[r].rc, -ETIMEDOUT);
        cr_expect(strstr(ready[r].err.text, "rank 2 (127.0.0.1:"), "%s", ready[r].err.text);
    }
    for (uint32_t r = 0; r < 3; r++)
        ready[r].within_ns = WAIT_S * SHUNT_NS_PER_S;
    at_once(3, wait_ready, ready, sizeof(ready[0]));
    for (uint32_t r = 0; r < 3; r++)
        cr_expect_eq(ready[r].rc, 0, "rank %u: %s", r, ready[r].err.text);
    close_table(&t);
}

Test(rack, does_not_wait_for_a_rack_that_is_down, .timeout = 60)
{
    struct table t;
    int fd = open_with_bare_peer(&t, 0);
    struct readiness ready = {.node = &t.nodes[0], .within_ns = WAIT_S * SHUNT_NS_PER_S};

    send_frame(fd, FAILED, "no weights", 10);
    wait_ready(&ready);
    cr_expect_eq(ready.rc, -EREMOTEIO);
    cr_expect(strstr(ready.err.text, "rank 1") && strstr(ready.err.text, "no weights"), "%s",
              ready.err.text);
    close_table(&t);
}

/* ---- going down */

Test(rack, tells_all_why_it_failed, .timeout = 60)
{
    struct shunt_error why, asked;
    struct table t;

    sit_down(&t, 3);
    open_table(&t);
    shunt_error_set(&why, -EIO, "the drive is on fire");
    shunt_rack_fail(t.nodes[1].rack, &why);
    expect_down(&t.nodes[0].news, 1, -EREMOTEIO, "rank 1 (", "the drive is on fire");
    expect_down(&t.nodes[2].news, 1, -EREMOTEIO, "rank 1 (", "the drive is on fire");
    expect_down(&t.nodes[1].news, 1, -EIO, "", "the drive is on fire");
    /* The first reason stays, and is said once. */
    shunt_error_set(&why, -ENOSPC, "something later");
    for (uint32_t r = 0; r < 3; r++)
        shunt_rack_fail(t.nodes[r].rack, &why);
    cr_expect_eq(shunt_rack_down(t.nodes[0].rack), -EREMOTEIO);
    cr_expect_eq(shunt_rack_why(t.nodes[1].rack, &asked), -EIO);
    cr_expect_str_eq(asked.text, "the drive is on fire");
    for (uint32_t r = 0; r < 3; r++)
        close_node(&t.nodes[r]);
    for (uint32_t r = 0; r < 3; r++)
        cr_expect_eq(t.nodes[r].news.downs, 1, "rank %u", r);
}

Test(rack, ends_in_order_when_all_agree, .timeout = 60)
{
    struct table t;

    sit_down(&t, 3);
    open_table(&t);
    for (uint32_t r = 0; r < 3; r++)
        await(&t.nodes[r].news, &t.nodes[r].news.ticks, 1);
    for (uint32_t r = 0; r < 3; r++) {
        shunt_rack_leave(t.nodes[r].rack, true);
        close_node(&t.nodes[r]); /* while the others go on */
        if (r < 2)
            await(&t.nodes[2].news, &t.nodes[2].news.ticks, t.nodes[2].news.ticks + 2);
    }
    for (uint32_t r = 0; r < 3; r++)
        cr_expect_eq(t.nodes[r].news.downs, 0, "rank %u: %s", r, t.nodes[r].news.why.text);
}

Test(rack, notices_who_leaves, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    open_table(&t);
    close_node(&t.nodes[1]);
    expect_down(&t.nodes[0].news, 1, -ESHUTDOWN, "rank 1 (", "has left");
    close_table(&t);
}

/* Before it was started nobody sends for it; what was said goes out, and is not taken back. */
Test(rack, leaves_in_order_before_it_is_started, .timeout = 60)
{
    uint32_t bytes;
    unsigned char byte;
    struct table t;
    int fd;

    sit_down(&t, 2);
    t.nodes[1].is_bare = true;
    at_once(2, join, t.nodes, sizeof(t.nodes[0]));
    cr_assert(t.nodes[0].rc == 0 && t.nodes[1].rc == 0);
    fd = bare_fd(&t);
    let_block(fd);
    shunt_rack_leave(t.nodes[0].rack, true);
    close_node(&t.nodes[0]);
    cr_expect_eq(receive_frame(fd, &byte, 1, &bytes), GOODBYE);
    cr_expect(bytes == 1 && byte == 1);
    cr_expect_eq(recv(fd, &byte, 1, 0), 0, "and nothing more");
    close_table(&t);
}

Test(rack, notices_a_peer_that_is_gone, .timeout = 60)
{
    const struct linger at_once_gone = {.l_onoff = 1};

    for (uint32_t i = 0; i < 2; i++) {
        struct table t;
        int fd = open_with_bare_peer(&t, 0);

        if (i == 1)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once_gone, sizeof(at_once_gone));
        close(fd);
        forget_bare_fd(&t);
        await(&t.nodes[0].news, &t.nodes[0].news.downs, 1);
        cr_expect_eq(t.nodes[0].news.why.code, -ECONNRESET, "%s", t.nodes[0].news.why.text);
        cr_expect(strstr(t.nodes[0].news.why.text, "rank 1 (127.0.0.1:") &&
                      strstr(t.nodes[0].news.why.text, "is gone"),
                  "%s", t.nodes[0].news.why.text);
        cr_expect_eq(t.nodes[0].news.down_rank, 1);
        close_table(&t);
    }
}

/* A message with numbered bytes as it is on the wire. Return: its bytes. */
static size_t numbered_frame(uint32_t number, unsigned char *out)
{
    uint32_t frame[2] = {SHUNT_RACK_MESSAGE_FIRST + 5, 0};

    frame[1] = numbered(number, 1000, out + sizeof(frame));
    memcpy(out, frame, sizeof(frame));
    return sizeof(frame) + frame[1];
}

/* Half a frame is no message, and none is lost before it. In one piece: what waits for an
 * acknowledgement is dropped when the socket closes. */
Test(rack, notices_a_peer_that_goes_in_the_middle_of_a_frame, .timeout = 60)
{
    struct table t;
    int fd = open_with_bare_peer(&t, 0);
    unsigned char stream[2 * (8 + 1000) + 12];
    size_t len = 0;

    for (uint32_t i = 0; i < 2; i++)
        len += numbered_frame(i, stream + len);
    memcpy(stream + len, "\x45\0\0\0\x09\0\0\0four", 12);
    len += 12;
    cr_assert_eq(send(fd, stream, len, 0), (ssize_t)len);
    close(fd);
    forget_bare_fd(&t);
    await(&t.nodes[0].news, &t.nodes[0].news.downs, 1);
    cr_expect_eq(t.nodes[0].news.messages, 2);
    cr_expect_not(t.nodes[0].news.wrong);
    close_table(&t);
}

/* ---- signs of life */

/* Those of the bare peer. */
static struct shunt_pulse pulse_of(const struct table *t)
{
    struct shunt_pulse pulse;

    shunt_pulse_init(&pulse, t->nodes[1].bare.peers[0].live_key, 0);
    return pulse;
}

static void send_datagram(const struct table *t, const void *bytes, size_t len)
{
    const struct shunt_mesh *mesh = &t->nodes[1].bare;

    cr_assert_eq(sendto(mesh->live_fd, bytes, len, 0,
                        (const struct sockaddr *)&mesh->peers[0].live.addr,
                        mesh->peers[0].live.len),
                 (ssize_t)len);
}

static void send_pulse(const struct table *t, struct shunt_pulse *pulse)
{
    struct shunt_datagram d;

    shunt_pulse_write(pulse, 1, &d);
    send_datagram(t, &d, sizeof(d));
}

static void on_notice(void *ctx, const char *text)
{
    struct news *n = ctx;

    pthread_mutex_lock(&n->mutex);
    cr_expect(strstr(text, "rank 1 ("), "%s", text);
    n->suspicions += strstr(text, "is silent for 0.") != NULL;
    n->returns += strstr(text, "is back") != NULL;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->mutex);
}

Test(rack, declares_a_silent_peer_dead, .timeout = 60)
{
    struct shunt_pulse pulse;
    int64_t begin;
    struct table t;

    open_with_bare_peer(&t, 500 * SHUNT_NS_PER_MS);
    pulse = pulse_of(&t);
    begin = shunt_now_ns();
    send_pulse(&t, &pulse);
    expect_down(&t.nodes[0].news, 1, -ETIMEDOUT, "rank 1 (", "--dead-after");
    cr_expect_geq(shunt_now_ns() - begin, 450 * SHUNT_NS_PER_MS);
    close_table(&t);
}

/* Before its first sign of life a peer may still be joining the others. */
Test(rack, waits_for_the_first_sign_of_life, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    t.nodes[1].is_bare = true;
    t.nodes[0].cfg.dead_after_ns = 200 * SHUNT_NS_PER_MS;
    t.nodes[0].cfg.join_timeout_ns = 900 * SHUNT_NS_PER_MS;
    open_table(&t);
    await(&t.nodes[0].news, &t.nodes[0].news.ticks, 5);
    cr_expect_eq(t.nodes[0].news.downs, 0);
    expect_down(&t.nodes[0].news, 1, -ETIMEDOUT, "rank 1 (", "firewall");
    close_table(&t);
}

/* Signs of life keep idle nodes alive for longer than their silence would be allowed to last. */
Test(rack, keeps_idle_peers_alive, .timeout = 60)
{
    struct table t;

    sit_down(&t, 2);
    for (uint32_t r = 0; r < 2; r++)
        t.nodes[r].cfg.dead_after_ns = 2 * SHUNT_NS_PER_S;
    open_table(&t);
    for (uint32_t r = 0; r < 2; r++)
        await(&t.nodes[r].news, &t.nodes[r].news.ticks, 30); /* one every 100 ms or later */
    for (uint32_t r = 0; r < 2; r++) {
        cr_expect_eq(shunt_rack_down(t.nodes[r].rack), 0, "%s", t.nodes[r].news.why.text);
        cr_expect_eq(shunt_rack_ignored(t.nodes[r].rack), 0);
    }
    close_table(&t);
}

/* Silent for longer than 150 ms and for less than it takes to be dead: said, and taken back. */
Test(rack, suspects_a_peer_that_is_silent_for_a_while, .timeout = 60)
{
    struct shunt_pulse pulse;
    struct news *news;
    struct table t;

    sit_down(&t, 2);
    t.nodes[1].is_bare = true;
    news = &t.nodes[0].news;
    t.nodes[0].cfg.notify = (struct shunt_notify){on_notice, news};
    open_table(&t);
    pulse = pulse_of(&t);
    for (uint32_t i = 1; i <= 3; i++) {
        send_pulse(&t, &pulse);
        await(news, &news->suspicions, i);
        await(news, &news->ticks, news->ticks + 2);
        cr_expect_eq(news->suspicions, i, "once for each silence");
        send_pulse(&t, &pulse);
        await(news, &news->returns, i);
    }
    cr_expect_eq(news->downs, 0);
    close_table(&t);
}

static void await_ignored(struct table *t, uint64_t least)
{
    int64_t deadline = shunt_now_ns() + WAIT_S * SHUNT_NS_PER_S;

    while (shunt_rack_ignored(t->nodes[0].rack) < least)
        cr_assert_lt(shunt_now_ns(), deadline, "%lu ignored, %lu expected",
                     shunt_rack_ignored(t->nodes[0].rack), least);
}

/* Datagrams of a stranger, old ones, our own sent back: counted, and no sign of life. */
Test(rack, ignores_datagrams_that_are_not_the_peers, .timeout = 60)
{
    unsigned char garbage[100] = {0};
    struct shunt_pulse pulse, stranger, mirror;
    struct shunt_datagram first, d;
    uint64_t ignored = 0, random = 5;
    int64_t begin;
    struct table t;

    open_with_bare_peer(&t, SHUNT_NS_PER_S);
    pulse = mirror = pulse_of(&t);
    shunt_pulse_init(&stranger, garbage, 0);
    shunt_pulse_write(&pulse, 1, &first);
    send_datagram(&t, &first, sizeof(first));
    begin = shunt_now_ns();
    for (uint32_t i = 0; shunt_rack_down(t.nodes[0].rack) == 0; i++) {
        random_fill(&random, garbage, sizeof(garbage));
        send_datagram(&t, &first, sizeof(first)); /* replayed */
        shunt_pulse_write(&stranger, 1, &d);
        d.sequence = d.sequence + 100;
        send_datagram(&t, &d, sizeof(d));
        shunt_pulse_write(&mirror, 0, &d); /* as if it were ours */
        send_datagram(&t, &d, sizeof(d));
        send_datagram(&t, garbage, i % 100);
        shunt_pulse_write(&pulse, 1, &d);
        ((unsigned char *)&d)[i % sizeof(d)] ^= 1; /* one bit of it */
        send_datagram(&t, &d, sizeof(d));
        ignored += 5;
        if (i % 8 == 0 && shunt_rack_down(t.nodes[0].rack) == 0 && i < 200)
            await_ignored(&t, ignored > 200 ? ignored - 200 : 1);
        usleep(2000);
    }
    expect_down(&t.nodes[0].news, 1, -ETIMEDOUT, "rank 1 (", "--dead-after");
    cr_expect_geq(shunt_now_ns() - begin, 900 * SHUNT_NS_PER_MS);
    close_table(&t);
}

/* ---- the last words of a peer */

static void hold_thread(struct news *n)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    pthread_mutex_lock(&n->mutex);
    n->hold = true;
    while (!n->held && !rc)
        rc = pthread_cond_timedwait(&n->changed, &n->mutex, &until);
    pthread_mutex_unlock(&n->mutex);
    cr_assert_eq(rc, 0);
}

static void let_thread_go(struct news *n)
{
    pthread_mutex_lock(&n->mutex);
    n->hold = false;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->mutex);
}

/* The control thread is late: a peer has said its last words and reset the connection, and a
 * message of our own is due. The words count, not the write that fails. */
static void last_words(uint32_t type, const void *data, uint32_t bytes, struct table *t)
{
    const struct linger at_once_gone = {.l_onoff = 1};
    int fd = open_with_bare_peer(t, 0);

    hold_thread(&t->nodes[0].news); /* in its tick */
    cr_assert_eq(shunt_rack_send(t->nodes[0].rack, 1, SHUNT_RACK_MESSAGE_FIRST, "late", 4), 0);
    send_frame(fd, type, data, bytes);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once_gone, sizeof(at_once_gone));
    close(fd);
    forget_bare_fd(t);
    let_thread_go(&t->nodes[0].news);
}

Test(rack, hears_a_goodbye_before_a_reset, .timeout = 60)
{
    struct table t;

    last_words(GOODBYE, "\1", 1, &t);
    await(&t.nodes[0].news, &t.nodes[0].news.ticks, t.nodes[0].news.ticks + 3);
    cr_expect_eq(t.nodes[0].news.downs, 0, "%s", t.nodes[0].news.why.text);
    close_table(&t);
}

Test(rack, hears_a_failure_before_a_reset, .timeout = 60)
{
    struct table t;

    last_words(FAILED, "no space", 8, &t);
    expect_down(&t.nodes[0].news, 1, -EREMOTEIO, "rank 1 (", "failed: no space");
    close_table(&t);
}

/* ---- messages */

struct sender {
    struct node *node;
    uint32_t to, count;
    bool right;
};

static void send_numbered(void *arg)
{
    struct sender *s = arg;
    int64_t deadline = shunt_now_ns() + WAIT_S * SHUNT_NS_PER_S;
    unsigned char data[1000];

    s->right = true;
    for (uint32_t i = 0; i < s->count && s->right;) {
        uint32_t bytes = numbered(i, sizeof(data), data);
        int rc = shunt_rack_send(s->node->rack, s->to, SHUNT_RACK_MESSAGE_FIRST + 5, data, bytes);

        i += rc == 0;
        s->right = (rc == 0 || rc == -EAGAIN) && shunt_now_ns() < deadline;
    }
}

/* Everybody to everybody at once, in order, none lost, and no step waits for another's. */
Test(rack, carries_messages_in_order, .timeout = 60)
{
    struct sender senders[6];
    struct table t;
    uint32_t n = 0;

    sit_down(&t, 3);
    open_table(&t);
    for (uint32_t a = 0; a < 3; a++)
        for (uint32_t b = 0; b < 3; b++)
            if (a != b)
                senders[n++] = (struct sender){.node = &t.nodes[a], .to = b, .count = 3000};
    at_once(6, send_numbered, senders, sizeof(senders[0]));
    for (uint32_t i = 0; i < 6; i++)
        cr_expect(senders[i].right);
    for (uint32_t r = 0; r < 3; r++) {
        await(&t.nodes[r].news, &t.nodes[r].news.messages, 6000);
        cr_expect_not(t.nodes[r].news.wrong, "rank %u", r);
        cr_expect_eq(shunt_rack_down(t.nodes[r].rack), 0, "%s", t.nodes[r].news.why.text);
    }
    close_table(&t);
}

/* A peer that does not read: the queue fills, and nothing of what was taken is lost. */
Test(rack, says_when_a_peer_takes_no_more, .timeout = 60)
{
    unsigned char data[1000], want[1000];
    struct table t;
    int fd = open_with_bare_peer(&t, 0);
    uint32_t accepted = 0, bytes;
    uint64_t refused = 0;

    while (refused < 100000) { /* so often in a row that the socket is full as well */
        uint32_t len = numbered(accepted, sizeof(data), data);
        int rc = shunt_rack_send(t.nodes[0].rack, 1, SHUNT_RACK_MESSAGE_FIRST + 5, data, len);

        cr_assert(rc == 0 || rc == -EAGAIN);
        cr_assert_lt(accepted, 1u << 20);
        accepted += rc == 0;
        refused = rc ? refused + 1 : 0;
    }
    for (uint32_t i = 0; i < accepted; i++) {
        cr_assert_eq(receive_frame(fd, data, sizeof(data), &bytes), SHUNT_RACK_MESSAGE_FIRST + 5);
        cr_assert_eq(bytes, numbered(i, sizeof(want), want));
        cr_assert_eq(memcmp(data, want, bytes), 0, "message %u", i);
    }
    cr_expect_eq(shunt_rack_send(t.nodes[0].rack, 1, SHUNT_RACK_MESSAGE_FIRST, "again", 5), 0);
    cr_expect_eq(receive_frame(fd, data, sizeof(data), &bytes), SHUNT_RACK_MESSAGE_FIRST);
    cr_expect_eq(memcmp(data, "again", 5), 0);
    close_table(&t);
}

/* Frames in pieces of any length, with unknown types of ours among them. */
Test(rack, takes_frames_in_any_pieces, .timeout = 60)
{
    unsigned char stream[80000];
    uint64_t random = 7;
    struct table t;
    int fd = open_with_bare_peer(&t, 0);
    size_t len = 0;

    for (uint32_t i = 0; i < 100; i++) {
        const uint32_t frame[2] = {i % 2 ? 1 : 63, 0}; /* neither is for the callback */

        len += numbered_frame(i, stream + len);
        memcpy(stream + len, frame, sizeof(frame));
        len += sizeof(frame);
    }
    for (size_t at = 0; at < len;) {
        size_t piece = 1 + random_below(&random, 400);

        if (piece > len - at)
            piece = len - at;
        cr_assert_eq(send(fd, stream + at, piece, MSG_NOSIGNAL), (ssize_t)piece);
        at += piece;
    }
    await(&t.nodes[0].news, &t.nodes[0].news.messages, 100);
    cr_expect_not(t.nodes[0].news.wrong);
    cr_expect_eq(shunt_rack_down(t.nodes[0].rack), 0, "%s", t.nodes[0].news.why.text);
    close_table(&t);
}

Test(rack, gives_up_a_peer_whose_message_is_too_long, .timeout = 60)
{
    static const uint32_t lengths[] = {1000 + 4096 + 1, 1u << 20, UINT32_MAX - 7, UINT32_MAX};

    for (uint32_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct table t;
        int fd = open_with_bare_peer(&t, 0);
        const uint32_t frame[2] = {SHUNT_RACK_MESSAGE_FIRST, lengths[i]};

        cr_assert_eq(send(fd, frame, sizeof(frame), MSG_NOSIGNAL), sizeof(frame));
        expect_down(&t.nodes[0].news, 1, -EPROTO, "rank 1 (", "too long");
        close_table(&t);
    }
}

/* Frames of random bytes: the rack goes down or not, and nothing else happens. */
Test(rack, survives_any_frame, .timeout = 60)
{
    for (uint64_t seed = 1; seed <= 30; seed++) {
        unsigned char bytes[512];
        uint64_t random = seed;
        struct table t;
        int fd = open_with_bare_peer(&t, 0);

        random_fill(&random, bytes, sizeof(bytes));
        for (size_t at = 0; at + 8 < sizeof(bytes); at += 40) { /* types and lengths that pass */
            memset(bytes + at, 0, 8);
            bytes[at] = (unsigned char)random_below(&random, 70);
            bytes[at + 4] = (unsigned char)random_below(&random, 34);
        }
        cr_assert_eq(send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL), sizeof(bytes));
        close(fd);
        forget_bare_fd(&t);
        await(&t.nodes[0].news, &t.nodes[0].news.ticks, t.nodes[0].news.ticks + 2);
        cr_expect_leq(t.nodes[0].news.downs, 1, "seed %lu", seed);
        close_table(&t);
    }
}
