/* SPDX-License-Identifier: Apache-2.0
 *
 * Joining with credentials: who gets in, who does not and what they learn, and that those who hang
 * on the way keep nobody else from it. And the rendezvous, which knows rank 0's address only.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/cluster/join.h"
#include "tests/base/credentials.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"

#define NODES_MAX 4u

struct node {
    struct shunt_rack_config cfg;
    struct shunt_mesh mesh;
    struct shunt_error err;
    int rc;
    bool absent;
    int64_t delay_ns;
};

struct table {
    struct seats seats;
    struct node nodes[NODES_MAX];
};

static struct credential_files files;

static void make_files(void)
{
    credentials_make(&files);
}

static void remove_files(void)
{
    credentials_remove(&files);
}

TestSuite(secure_join, .init = make_files, .fini = remove_files, .timeout = 60);

static void join(void *arg)
{
    struct node *n = arg;
    struct timespec delay = shunt_timespec(n->delay_ns);

    nanosleep(&delay, NULL);
    if (!n->absent)
        n->rc = shunt_join(&n->cfg, &n->mesh, &n->err);
}

/* Everybody with these credentials. */
static void sit_down(struct table *t, uint32_t count, struct shunt_credentials c)
{
    memset(t, 0, sizeof(*t));
    seats_take(&t->seats, count);
    for (uint32_t r = 0; r < count; r++) {
        t->nodes[r].cfg = seats_config(&t->seats, r);
        t->nodes[r].cfg.credentials = c;
    }
}

static void join_all(struct table *t)
{
    at_once(t->seats.count, join, t->nodes, sizeof(t->nodes[0]));
}

static void stand_up(struct table *t)
{
    for (uint32_t r = 0; r < t->seats.count; r++)
        if (t->nodes[r].rc == 0 && !t->nodes[r].absent)
            shunt_mesh_close(&t->nodes[r].mesh);
}

static bool are_one_stream(const struct shunt_stream *a, const struct shunt_stream *b)
{
    struct pollfd fd = {.fd = b->fd, .events = POLLIN};
    char got[4] = "";

    return shunt_stream_send(a, "row", 4) == 4 && poll(&fd, 1, 10000) == 1 &&
           shunt_stream_recv(b, got, 4) == 4 && !strcmp(got, "row");
}

static void expect_joined(struct table *t, bool data_in_tls)
{
    for (uint32_t r = 0; r < t->seats.count; r++)
        cr_assert_eq(t->nodes[r].rc, 0, "rank %u: %s", r, t->nodes[r].err.text);
    for (uint32_t a = 0; a < t->seats.count; a++)
        for (uint32_t b = 0; b < a; b++) {
            const struct shunt_joined *there = &t->nodes[a].mesh.peers[b];
            const struct shunt_joined *here = &t->nodes[b].mesh.peers[a];

            cr_expect(there->hello.rank == b && here->hello.rank == a);
            cr_expect_eq(memcmp(there->live_key, here->live_key, SHUNT_KEY_BYTES), 0);
            cr_expect_eq(there->streams[SHUNT_STREAM_DATA].tls != NULL, data_in_tls);
            cr_expect_eq(here->streams[SHUNT_STREAM_DATA].tls != NULL, data_in_tls);
            for (uint32_t s = 0; s < SHUNT_STREAMS; s++)
                cr_assert(are_one_stream(&there->streams[s], &here->streams[s]));
        }
}

/* ---- all goes well */

Test(secure_join, joins_with_a_key_or_certificates)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct table t;

        sit_down(&t, 4, i ? credentials_cert(&files) : credentials_key(&files));
        join_all(&t);
        expect_joined(&t, false);
        for (uint32_t r = 1; r < 4; r++)
            cr_expect(t.nodes[r].mesh.peers[0].streams[SHUNT_STREAM_CONTROL].tls);
        stand_up(&t);
    }
}

/* Where it is asked for, and where the transport tells on its stream what opens memory. */
Test(secure_join, puts_data_into_tls)
{
    struct table t;

    sit_down(&t, 3, credentials_key(&files));
    for (uint32_t r = 0; r < 3; r++)
        t.nodes[r].cfg.encrypt = true;
    join_all(&t);
    expect_joined(&t, true);
    stand_up(&t);
    sit_down(&t, 3, credentials_key(&files));
    for (uint32_t r = 0; r < 3; r++)
        t.nodes[r].cfg.transports = 1u << SHUNT_TRANSPORT_VERBS | (r ? 1u : 0u);
    join_all(&t);
    expect_joined(&t, true);
    cr_expect_eq(t.nodes[2].mesh.transport, SHUNT_TRANSPORT_VERBS);
    stand_up(&t);
}

Test(secure_join, names_transports_of_three_that_have_none_in_common)
{
    struct table t;
    uint32_t named = 0;

    sit_down(&t, 3, credentials_key(&files));
    t.nodes[0].cfg.transports = 3;
    t.nodes[1].cfg.transports = 1;
    t.nodes[2].cfg.transports = 6;
    t.nodes[1].cfg.transports = 5; /* each pair has one */
    t.nodes[0].cfg.transports = 3;
    join_all(&t);
    for (uint32_t r = 0; r < 3; r++) {
        cr_expect_lt(t.nodes[r].rc, 0);
        named += strstr(t.nodes[r].err.text, "no transport in common") != NULL;
    }
    cr_expect_geq(named, 1);
}

Test(secure_join, needs_a_key_to_encrypt)
{
    struct table t;

    sit_down(&t, 2, (struct shunt_credentials){0});
    t.nodes[0].cfg.encrypt = true;
    join(&t.nodes[0]);
    cr_expect_eq(t.nodes[0].rc, -EINVAL);
    cr_expect(strstr(t.nodes[0].err.text, "--encrypt") && strstr(t.nodes[0].err.text, "--key-file"),
              "%s", t.nodes[0].err.text);
    seats_leave(&t.seats);
}

/* ---- those who do not belong */

/* Rank 1 has the wrong credentials: it is refused, rank 0 knows why, and the right one gets in. */
static void expect_turned_away(struct shunt_credentials rack, struct shunt_credentials other,
                               const char *why)
{
    struct table t;

    sit_down(&t, 2, rack);
    t.nodes[1].cfg.credentials = other;
    t.nodes[0].cfg.join_timeout_ns = 2 * SHUNT_NS_PER_S;
    join_all(&t);
    cr_expect_eq(t.nodes[1].rc, -ECONNREFUSED, "%s", t.nodes[1].err.text);
    cr_expect(strstr(t.nodes[1].err.text, "refused this node; rank 0's own message says why"), "%s",
              t.nodes[1].err.text);
    cr_expect_eq(t.nodes[0].rc, -ETIMEDOUT, "%s", t.nodes[0].err.text);
    cr_expect(strstr(t.nodes[0].err.text, "1 turned away, the last 127.0.0.1:") &&
                  strstr(t.nodes[0].err.text, why),
              "no '%s': %s", why, t.nodes[0].err.text);
}

Test(secure_join, turns_away_who_has_other_credentials)
{
    struct shunt_credentials key = credentials_key(&files), cert = credentials_cert(&files);
    struct shunt_credentials other_key = {.key = files.other_key};
    struct shunt_credentials expired = cert, strange = cert;

    expired.cert = files.expired_cert;
    strange.cert = files.strange_cert;
    expect_turned_away(key, other_key, "it has another key");
    expect_turned_away(key, (struct shunt_credentials){0}, "it uses no key");
    expect_turned_away(cert, expired, "certificate has expired");
    expect_turned_away(cert, strange, "its certificate: ");
    expect_turned_away(cert, (struct shunt_credentials){0}, "it uses no key");
}

/* The node that connects finds out. */
Test(secure_join, does_not_trust_a_rank_0_of_another_rack)
{
    struct shunt_credentials cert = credentials_cert(&files), expired = cert;
    struct table t;

    expired.cert = files.expired_cert;
    sit_down(&t, 2, expired);
    t.nodes[1].cfg.credentials = cert;
    t.nodes[0].cfg.join_timeout_ns = 500 * SHUNT_NS_PER_MS;
    join_all(&t);
    cr_expect_eq(t.nodes[1].rc, -EACCES, "%s", t.nodes[1].err.text);
    cr_expect(strstr(t.nodes[1].err.text, "rank 0") && strstr(t.nodes[1].err.text, "not trusted") &&
                  strstr(t.nodes[1].err.text, "expired"),
              "%s", t.nodes[1].err.text);
    cr_expect_eq(t.nodes[0].rc, -ETIMEDOUT);
    /* One without a key is no shunt of ours, as far as anybody can tell. */
    sit_down(&t, 2, (struct shunt_credentials){0});
    t.nodes[1].cfg.credentials = credentials_key(&files);
    t.nodes[0].cfg.join_timeout_ns = t.nodes[1].cfg.join_timeout_ns = 500 * SHUNT_NS_PER_MS;
    join_all(&t);
    cr_expect_lt(t.nodes[1].rc, 0);
    cr_expect(strstr(t.nodes[1].err.text, "rank 0"), "%s", t.nodes[1].err.text);
    cr_expect_eq(t.nodes[0].rc, -ETIMEDOUT);
    cr_expect(strstr(t.nodes[0].err.text, "it uses a key, and this node has none"), "%s",
              t.nodes[0].err.text);
}

/* A mismatch inside TLS: named at the owner, and the other learns that it is refused. */
Test(secure_join, names_a_mismatch_at_the_owner_only)
{
    struct table t;

    sit_down(&t, 2, credentials_key(&files));
    t.nodes[1].cfg.fingerprint[15] = 0x99;
    join_all(&t);
    cr_expect_eq(t.nodes[0].rc, -EPROTO);
    cr_expect(strstr(t.nodes[0].err.text, "another model"), "%s", t.nodes[0].err.text);
    cr_expect_eq(t.nodes[1].rc, -ECONNREFUSED);
    cr_expect_not(strstr(t.nodes[1].err.text, "model"), "%s", t.nodes[1].err.text);
}

/* ---- those who hang on the way */

static int listen_and_connect(struct table *t)
{
    cr_assert_eq(listen(t->nodes[0].cfg.listen_fd, 64), 0);
    return seats_connect(&t->seats, 0);
}

/* A stranger with the key, which is not a stranger to TLS. */
struct insider {
    struct shunt_tls *tls;
    struct shunt_stream stream;
};

static void let_in(struct insider *in, const struct table *t)
{
    struct shunt_credentials c = credentials_key(&files);
    int64_t deadline = shunt_now_ns() + 20 * SHUNT_NS_PER_S;
    short events = 0;
    int rc;

    cr_assert_eq(shunt_tls_open(&in->tls, &c, NULL), 0);
    in->stream = (struct shunt_stream){.fd = seats_connect(&t->seats, 0)};
    cr_assert_eq(shunt_tls_begin(in->tls, &in->stream, SHUNT_TLS_CONNECTED), 0);
    while ((rc = shunt_tls_handshake(&in->stream, &events, NULL)) == -EAGAIN)
        cr_assert(poll(&(struct pollfd){.fd = in->stream.fd, .events = events}, 1, 20000) == 1 &&
                  shunt_now_ns() < deadline);
    cr_assert_eq(rc, 0);
}

static void put_out(struct insider *in)
{
    shunt_stream_close(&in->stream);
    shunt_tls_close(in->tls);
}

static void *join_thread(void *node)
{
    join(node);
    return NULL;
}

static ssize_t read_all(const struct shunt_stream *s, void *bytes, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = shunt_stream_recv(s, (char *)bytes + done, len - done);

        if (n == -EAGAIN)
            cr_assert_eq(poll(&(struct pollfd){.fd = s->fd, .events = POLLIN}, 1, 20000), 1);
        else if (n <= 0)
            return n ? n : (ssize_t)done;
        else
            done += (size_t)n;
    }
    return (ssize_t)done;
}

/* In every state in which a stranger can hang, many of them; the honest node is in within seconds.
 */
Test(secure_join, is_not_kept_by_those_who_hang)
{
    /* The beginning of a handshake, cut; of a prologue, cut; a hello in clear, cut. */
    static const char *const parts[] = {
        "", "\x16\x03\x01\x01\x20\x01", "SHUD\2\0\0\0\1\0\0\0", "SHUD", "\x16", "SHUN"};
    static const size_t lens[] = {0, 6, 20, 3, 1, 2};
    struct insider shaken, half;
    struct shunt_hello hello;
    pthread_t thread;
    struct table t;
    int fds[60];

    sit_down(&t, 2, credentials_key(&files));
    for (uint32_t i = 0; i < 60; i++) {
        char bytes[32] = {0};

        fds[i] = listen_and_connect(&t);
        memcpy(bytes, parts[i % 6], lens[i % 6] < 12 ? lens[i % 6] : 12);
        cr_assert_eq(send(fds[i], bytes, lens[i % 6], 0), (ssize_t)lens[i % 6]);
    }
    cr_assert_eq(pthread_create(&thread, NULL, join_thread, &t.nodes[0]), 0);
    let_in(&shaken, &t); /* and says nothing */
    let_in(&half, &t);   /* says half a hello */
    shunt_hello_fill(&hello, &t.nodes[1].cfg, t.seats.addresses);
    cr_assert_eq(shunt_stream_send(&half.stream, &hello, 1000), 1000);
    t.nodes[1].rc = shunt_join(&t.nodes[1].cfg, &t.nodes[1].mesh, &t.nodes[1].err);
    pthread_join(thread, NULL);
    expect_joined(&t, false);
    put_out(&shaken);
    put_out(&half);
    for (uint32_t i = 0; i < 60; i++)
        close(fds[i]);
    stand_up(&t);
}

/* One with the key takes a place and says nothing more: the deadline ends it, by name. */
Test(secure_join, does_not_wait_for_a_node_that_hangs_after_its_hello)
{
    struct shunt_answer answer;
    struct shunt_hello hello;
    struct insider in;
    pthread_t thread;
    struct table t;

    sit_down(&t, 2, credentials_key(&files));
    t.nodes[0].cfg.join_timeout_ns = SHUNT_NS_PER_S;
    cr_assert_eq(listen(t.nodes[0].cfg.listen_fd, 64), 0);
    cr_assert_eq(pthread_create(&thread, NULL, join_thread, &t.nodes[0]), 0);
    let_in(&in, &t);
    shunt_hello_fill(&hello, &t.nodes[1].cfg, t.seats.addresses);
    hello.live_port = 9;
    cr_assert_eq(shunt_stream_send(&in.stream, &hello, sizeof(hello)), sizeof(hello));
    cr_assert_eq(read_all(&in.stream, &answer, sizeof(answer)), sizeof(answer));
    cr_expect_eq(answer.verdict, SHUNT_ACCEPTED);
    pthread_join(thread, NULL);
    cr_expect_eq(t.nodes[0].rc, -ETIMEDOUT, "%s", t.nodes[0].err.text);
    cr_expect(strstr(t.nodes[0].err.text, "rank 1 (127.0.0.1:"), "%s", t.nodes[0].err.text);
    put_out(&in);
    seats_leave(&t.seats);
}

/* All that a node without the key gets to read. */
Test(secure_join, tells_nothing_to_who_has_no_key)
{
    unsigned char answer[4096];
    struct shunt_hello hello;
    pthread_t thread;
    struct table t;
    int fd;

    sit_down(&t, 2, credentials_key(&files));
    t.nodes[0].cfg.join_timeout_ns = SHUNT_NS_PER_S;
    fd = listen_and_connect(&t);
    shunt_hello_fill(&hello, &t.nodes[1].cfg, t.seats.addresses);
    cr_assert_eq(send(fd, &hello, sizeof(hello), 0), sizeof(hello));
    cr_assert_eq(pthread_create(&thread, NULL, join_thread, &t.nodes[0]), 0);
    cr_expect_eq(recv(fd, answer, sizeof(answer), 0), 8);
    cr_expect_eq(memcmp(answer, "SHUA\1\0\0\0", 8), 0);
    cr_expect_leq(recv(fd, answer, sizeof(answer), 0), 0);
    close(fd);
    pthread_join(thread, NULL);
    cr_expect_eq(t.nodes[0].rc, -ETIMEDOUT);
    seats_leave(&t.seats);
}

/* ---- a join that was recorded */

#define TAPPED 3u

struct wire_tap {
    int listen_fd, server_fd;
    unsigned char said[1 << 16]; /* by the first that connected */
    size_t len;
    struct seats *seats;
    /* Breaks the second connection, once it has said something: as both see it, or as only the one
     * that connected does. */
    bool cut, cut_here;
    _Atomic bool stop;
};

static void cut(struct wire_tap *w, const int ends[2])
{
    if (w->cut || w->cut_here)
        shutdown(ends[0], SHUT_RDWR);
    if (w->cut)
        shutdown(ends[1], SHUT_RDWR);
    w->cut = w->cut_here = false;
}

/* Hands on what the connections say, and keeps what came on the first. */
static void *tap(void *arg)
{
    struct wire_tap *w = arg;
    int ends[2 * TAPPED]; /* of each connection: the one that came, the one made for it */
    uint32_t count = 0;

    memset(ends, -1, sizeof(ends));
    for (uint32_t idle = 0; idle < 40 && !w->stop;) {
        struct pollfd fds[1 + 2 * TAPPED] = {{.fd = w->listen_fd, .events = POLLIN}};
        unsigned char bytes[8192];

        for (uint32_t i = 0; i < 2 * TAPPED; i++)
            fds[1 + i] = (struct pollfd){.fd = ends[i], .events = POLLIN};
        idle = poll(fds, 1 + 2 * TAPPED, 50) == 0 ? idle + 1 : 0;
        if (fds[0].revents && count < TAPPED) {
            ends[2 * count] = accept(w->listen_fd, NULL, NULL);
            ends[2 * count + 1] = seats_connect(w->seats, 0);
            count++;
        }
        for (uint32_t i = 0; i < 2 * TAPPED; i++) {
            ssize_t n = fds[1 + i].revents ? recv(ends[i], bytes, sizeof(bytes), 0) : 0;

            if (n <= 0)
                continue;
            if (i == 0 && w->len + (size_t)n <= sizeof(w->said)) {
                memcpy(w->said + w->len, bytes, (size_t)n);
                w->len += (size_t)n;
            }
            if (send(ends[i ^ 1], bytes, (size_t)n, MSG_NOSIGNAL) != n)
                continue; /* to an end that was cut */
            if (i == 2)
                cut(w, ends + 2);
        }
    }
    for (uint32_t i = 0; i < 2 * count; i++)
        close(ends[i]);
    return NULL;
}

/* Both know rank 0 by the address of the tap. */
static void tap_wire(struct table *t, struct wire_tap *w, struct seats *public,
                     const char *addresses[2], pthread_t *thread)
{
    seats_take(public, 1);
    cr_assert_eq(listen(public->fds[0], 8), 0);
    addresses[0] = public->texts[0];
    addresses[1] = t->seats.texts[1];
    t->nodes[0].cfg.addresses = t->nodes[1].cfg.addresses = addresses;
    w->listen_fd = public->fds[0];
    w->seats = &t->seats;
    cr_assert_eq(listen(t->nodes[0].cfg.listen_fd, 8), 0);
    cr_assert_eq(pthread_create(thread, NULL, tap, w), 0);
}

Test(secure_join, is_not_fooled_by_a_join_that_was_recorded)
{
    static struct wire_tap w;
    const char *addresses[2];
    struct seats public;
    pthread_t tapping, joining;
    unsigned char answer[8192];
    struct table t;
    size_t got = 0;
    ssize_t n;
    int fd;

    sit_down(&t, 2, credentials_key(&files));
    tap_wire(&t, &w, &public, addresses, &tapping);
    join_all(&t);
    w.stop = true;
    pthread_join(tapping, NULL);
    for (uint32_t r = 0; r < 2; r++)
        cr_assert_eq(t.nodes[r].rc, 0, "rank %u: %s", r, t.nodes[r].err.text);
    stand_up(&t);
    cr_assert_gt(w.len, 2048);

    sit_down(&t, 2, credentials_key(&files));
    t.nodes[0].cfg.addresses = t.nodes[1].cfg.addresses = addresses;
    t.nodes[0].cfg.join_timeout_ns = SHUNT_NS_PER_S;
    fd = listen_and_connect(&t);
    cr_assert_eq(send(fd, w.said, w.len, 0), (ssize_t)w.len);
    cr_assert_eq(pthread_create(&joining, NULL, join_thread, &t.nodes[0]), 0);
    while ((n = recv(fd, answer + got, sizeof(answer) - got, 0)) > 0)
        got += (size_t)n;
    cr_expect_lt(got, 1000, "an answer would have 2120 bytes at least");
    close(fd);
    pthread_join(joining, NULL);
    cr_expect_eq(t.nodes[0].rc, -ETIMEDOUT, "%s", t.nodes[0].err.text);
    close(public.fds[0]);
    seats_leave(&t.seats);
}

/* ---- a wire that breaks */

static void join_across(struct wire_tap *w)
{
    const char *addresses[2];
    struct seats public;
    pthread_t tapping;
    struct table t;

    sit_down(&t, 2, credentials_key(&files));
    for (uint32_t r = 0; r < 2; r++) {
        t.nodes[r].cfg.encrypt = true;
        t.nodes[r].cfg.join_timeout_ns = 10 * SHUNT_NS_PER_S;
    }
    tap_wire(&t, w, &public, addresses, &tapping);
    join_all(&t);
    cr_expect(!w->cut && !w->cut_here);
    expect_joined(&t, true);
    w->stop = true;
    pthread_join(tapping, NULL);
    stand_up(&t);
    close(public.fds[0]);
}

/* With its token the connection has said all that it can say once. In TLS it may say it again. */
Test(secure_join, makes_a_data_connection_again)
{
    static struct wire_tap w = {.cut = true};

    join_across(&w);
}

/* One that has shown the token and goes no further, as anybody could who has seen it: here what is
 * left of the peer's own first attempt. */
Test(secure_join, does_not_keep_the_place_for_a_token_alone)
{
    static struct wire_tap w = {.cut_here = true};

    join_across(&w);
}

/* ---- a flood */

/* More than a node has places for strangers. */
#define FLOOD_HELD 600u

struct flood {
    struct sockaddr_in to;
    _Atomic bool holds, stop;
};

static int connect_to(const struct sockaddr_in *to)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) == 0 || errno == EINPROGRESS)
        return fd;
    close(fd);
    return -1;
}

/* Holds as many connections as it can, which say nothing, and makes each again that it loses. */
static void *flood(void *arg)
{
    struct flood *f = arg;
    struct pollfd fds[FLOOD_HELD];

    for (uint32_t i = 0; i < FLOOD_HELD; i++)
        fds[i] = (struct pollfd){.fd = connect_to(&f->to), .events = POLLIN};
    f->holds = true;
    while (!f->stop) {
        poll(fds, FLOOD_HELD, 1);
        for (uint32_t i = 0; i < FLOOD_HELD; i++) {
            if (fds[i].fd >= 0 && !fds[i].revents)
                continue;
            close(fds[i].fd);
            fds[i].fd = connect_to(&f->to);
        }
    }
    for (uint32_t i = 0; i < FLOOD_HELD; i++)
        close(fds[i].fd);
    return NULL;
}

/* Within less time than a stranger may be silent, so that none of them has left by itself. */
Test(secure_join, is_heard_through_a_flood)
{
    struct flood f = {.to = {.sin_family = AF_INET}};
    pthread_t flooding, joining;
    struct table t;

    sit_down(&t, 3, credentials_key(&files));
    for (uint32_t r = 0; r < 3; r++)
        t.nodes[r].cfg.join_timeout_ns = 4500 * SHUNT_NS_PER_MS;
    cr_assert_eq(
        getsockname(t.nodes[0].cfg.listen_fd, (struct sockaddr *)&f.to, &(socklen_t){sizeof(f.to)}),
        0);
    cr_assert_eq(listen(t.nodes[0].cfg.listen_fd, (int)FLOOD_HELD), 0);
    cr_assert_eq(pthread_create(&flooding, NULL, flood, &f), 0);
    while (!f.holds)
        usleep(1000);
    cr_assert_eq(pthread_create(&joining, NULL, join_thread, &t.nodes[0]), 0);
    usleep(100000);           /* the places for strangers are taken */
    t.nodes[0].absent = true; /* is at it already */
    join_all(&t);
    pthread_join(joining, NULL);
    f.stop = true;
    pthread_join(flooding, NULL);
    t.nodes[0].absent = false;
    expect_joined(&t, false);
    stand_up(&t);
}

/* ---- a rendezvous */

static void forget_addresses(struct table *t, const char **known)
{
    memset(known, 0, SHUNT_NODES_MAX * sizeof(*known));
    known[0] = t->seats.texts[0];
    for (uint32_t r = 0; r < t->seats.count; r++) {
        t->nodes[r].cfg.addresses = known;
        if (r == 0)
            continue;
        close(t->nodes[r].cfg.listen_fd);
        t->nodes[r].cfg.listen_fd = -1;
    }
}

Test(secure_join, meets_at_rank_0)
{
    const char *known[SHUNT_NODES_MAX];

    for (uint32_t i = 0; i < 6; i++) {
        struct table t;

        sit_down(&t, 4, i % 2 ? credentials_key(&files) : (struct shunt_credentials){0});
        forget_addresses(&t, known);
        for (uint32_t r = 0; r < 4; r++)
            t.nodes[r].delay_ns = (i + r) % 4 * 60 * SHUNT_NS_PER_MS;
        join_all(&t);
        expect_joined(&t, false);
        for (uint32_t a = 0; a < 4; a++)
            for (uint32_t b = 0; b < 4; b++)
                cr_expect_str_eq(t.nodes[a].mesh.peers[b].address,
                                 t.nodes[0].mesh.peers[b].address);
        cr_expect_str_eq(t.nodes[2].mesh.peers[0].address, t.seats.texts[0]);
        stand_up(&t);
    }
}

/* One knows all addresses and the others do not; and one who does not come. */
Test(secure_join, meets_only_those_who_meet)
{
    const char *known[SHUNT_NODES_MAX];
    struct table t;

    sit_down(&t, 2, credentials_key(&files));
    t.nodes[1].cfg.addresses = known;
    memset(known, 0, sizeof(known));
    known[0] = t.seats.texts[0];
    join_all(&t);
    cr_expect_eq(t.nodes[0].rc, -EPROTO);
    cr_expect(strstr(t.nodes[0].err.text, "rank 0's address only"), "%s", t.nodes[0].err.text);
    cr_expect_eq(t.nodes[1].rc, -ECONNREFUSED);
    sit_down(&t, 3, credentials_key(&files));
    forget_addresses(&t, known);
    t.nodes[1].absent = true;
    t.nodes[0].cfg.join_timeout_ns = 500 * SHUNT_NS_PER_MS;
    t.nodes[2].cfg.join_timeout_ns = 1500 * SHUNT_NS_PER_MS;
    join_all(&t);
    cr_expect_eq(t.nodes[0].rc, -ETIMEDOUT, "%s", t.nodes[0].err.text);
    cr_expect(strstr(t.nodes[0].err.text, "rank 1"), "%s", t.nodes[0].err.text);
    cr_expect_lt(t.nodes[2].rc, 0);
}
