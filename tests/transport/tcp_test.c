/* SPDX-License-Identifier: Apache-2.0
 *
 * TCP: the contract that every transport keeps, and what a peer can do to a stream.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/random.h"
#include "tests/transport/contract.h"
#include "transport/tcp_stage.h"

#define INBOX 200000u

static const struct transport_backend tcp = {.ops = &shunt_transport_tcp,
                                             .connect = mesh_connect_tcp};

TRANSPORT_KEEPS_ALL(tcp, tcp)

/* ---- a peer that is a bare socket */

/* Node 0 of two. */
struct host {
    struct mesh mesh;
    int peer; /* node 1's end */
};

static int bare_peer; /* what the two below kept */

/* The transport gets one end, the test the other. */
static void connect_bare_tcp(uint32_t a, uint32_t b, int fds[2])
{
    mesh_connect_tcp(a, b, fds);
    bare_peer = fds[1];
    fds[1] = dup(fds[1]); /* for the node that mesh_open makes of it, which is closed at once */
}

/* The same over a local stream: thousands of TCP connections would take the machine's ports for a
 * minute. */
static void connect_bare(uint32_t a, uint32_t b, int fds[2])
{
    (void)a, (void)b;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    bare_peer = fds[1];
    fds[1] = dup(fds[1]);
}

static void open_host_on(struct host *h, const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {INBOX, INBOX};

    mesh_open(&h->mesh, backend, 2, inboxes, false);
    shunt_transport_tcp.close(h->mesh.nodes[1].t);
    h->mesh.nodes[1].t = NULL;
    h->peer = bare_peer;
}

static void open_host(struct host *h)
{
    static const struct transport_backend bare = {.ops = &shunt_transport_tcp,
                                                  .connect = connect_bare};

    open_host_on(h, &bare);
}

static void open_tcp_host(struct host *h)
{
    static const struct transport_backend bare = {.ops = &shunt_transport_tcp,
                                                  .connect = connect_bare_tcp};

    open_host_on(h, &bare);
}

static void close_host(struct host *h)
{
    if (h->peer >= 0)
        close(h->peer);
    mesh_close(&h->mesh);
}

static void hang_up(struct host *h)
{
    close(h->peer);
    h->peer = -1;
}

#define HEADER 32u

/* A message as it travels. */
static size_t message(unsigned char *out, uint32_t magic, uint32_t imm, uint64_t off,
                      uint64_t bytes)
{
    const uint32_t words[] = {magic, 1 /* a put */, imm, 0};

    memcpy(out, words, 16);
    memcpy(out + 16, &off, 8);
    memcpy(out + 24, &bytes, 8);
    return HEADER;
}

#define MAGIC 0x32504853u

static void send_all(struct host *h, const void *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(h->peer, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0)
            mesh_move(&h->mesh);
        bytes = (const unsigned char *)bytes + (n < 0 ? 0 : n);
        len -= n < 0 ? 0 : (size_t)n;
    }
}

static void expect_lost(struct host *h, int error, const char *reason)
{
    struct shunt_completion c = mesh_next(&h->mesh, 0);

    cr_expect(c.event == SHUNT_TRANSPORT_LOST && c.peer == 1, "event %d", c.event);
    cr_expect_eq(c.error, error, "%s", c.reason);
    cr_expect(c.reason && strstr(c.reason, reason), "%s", c.reason);
    cr_expect_eq(mesh_move(&h->mesh), 0);
    cr_expect_eq(shunt_transport_tcp.put(h->mesh.nodes[0].t, 1, room, 1, 0, 0), -EPIPE);
}

static bool is_zero(const unsigned char *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i])
            return false;
    return true;
}

/* ---- what travels */

Test(tcp, speaks_the_documented_format)
{
    unsigned char want[HEADER + 5], got[HEADER + 5];
    struct host h;

    open_host(&h);
    message(want, MAGIC, 0xa1b2c3d4, 0x1234, 5);
    memcpy(want + HEADER, "hello", 5);
    cr_expect_eq(memcmp(want,
                        "SHP2\x01\0\0\0\xd4\xc3\xb2\xa1\0\0\0\0"
                        "\x34\x12\0\0\0\0\0\0\x05\0\0\0\0\0\0\0",
                        HEADER),
                 0);
    cr_assert_eq(
        shunt_transport_tcp.put(h.mesh.nodes[0].t, 1, mesh_copy("hello", 5), 5, 0x1234, 0xa1b2c3d4),
        0);
    cr_assert_eq(mesh_next(&h.mesh, 0).event, SHUNT_TRANSPORT_SENT);
    cr_assert_eq(recv(h.peer, got, sizeof(got), MSG_WAITALL), sizeof(got));
    cr_expect_eq(memcmp(got, want, sizeof(got)), 0);
    close_host(&h);
}

/* The bytes of three messages come in pieces of every length. */
Test(tcp, takes_messages_in_any_pieces, .timeout = 100)
{
    unsigned char stream[3 * HEADER + 150], payload[150];
    uint64_t seed = 1;
    size_t len = 0;

    random_fill(&seed, payload, sizeof(payload));
    for (uint32_t i = 0; i < 3; i++) {
        static const uint64_t sizes[] = {50, 0, 100};

        len += message(stream + len, MAGIC, i, 1000 * i, sizes[i]);
        memcpy(stream + len, payload, sizes[i]);
        len += sizes[i];
    }
    for (size_t piece = 1; piece <= len; piece++) {
        struct host h;

        open_host(&h);
        for (size_t at = 0; at < len; at += piece) {
            send_all(&h, stream + at, len - at < piece ? len - at : piece);
            mesh_move(&h.mesh);
        }
        for (uint32_t i = 0; i < 3; i++) {
            struct shunt_completion c = mesh_next(&h.mesh, 0);

            cr_assert(c.event == SHUNT_TRANSPORT_ARRIVED && c.imm == i, "pieces of %zu", piece);
        }
        cr_assert(!memcmp(h.mesh.nodes[0].inbox, payload, 50), "pieces of %zu", piece);
        cr_assert(!memcmp(h.mesh.nodes[0].inbox + 2000, payload, 100), "pieces of %zu", piece);
        cr_assert(is_zero(h.mesh.nodes[0].inbox + 50, 1950) &&
                  is_zero(h.mesh.nodes[0].inbox + 2100, INBOX - 2100));
        close_host(&h);
    }
}

/* ---- what a peer may not do */

Test(tcp, gives_up_a_peer_that_writes_beyond_the_inbox)
{
    static const struct {
        uint64_t off, bytes;
    } cases[] = {
        {0, INBOX + 1},       {1, INBOX},           {INBOX, 1},
        {INBOX + 1, 0},       {UINT64_MAX, 1},      {UINT64_MAX, UINT64_MAX},
        {1, UINT64_MAX},      {0, UINT64_MAX},      {1ull << 63, 1ull << 63},
        {UINT64_MAX - 9, 10}, {INBOX - 9, 10 + 64},
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned char bytes[HEADER + 4096];
        struct host h;

        open_host(&h);
        memset(bytes, 0xbb, sizeof(bytes));
        message(bytes, MAGIC, 1, cases[i].off, cases[i].bytes);
        send_all(&h, bytes, sizeof(bytes));
        expect_lost(&h, -EPROTO, "beyond this node's inbox");
        cr_expect(is_zero(h.mesh.nodes[0].inbox, INBOX), "case %u", i);
        close_host(&h);
    }
}

/* Random bytes, and messages of which one bit is wrong. */
Test(tcp, gives_up_a_peer_that_talks_garbage, .timeout = 100)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        unsigned char bytes[HEADER + 64];
        uint64_t random = seed;
        struct host h;

        open_host(&h);
        random_fill(&random, bytes, sizeof(bytes));
        if (seed % 2) {
            message(bytes, MAGIC, 1, 0, 64);
            bytes[0 + random_below(&random, 4)] ^= (unsigned char)(1u << random_below(&random, 8));
        }
        send_all(&h, bytes, sizeof(bytes));
        expect_lost(&h, -EPROTO, "no message of shunt's");
        cr_expect(is_zero(h.mesh.nodes[0].inbox, INBOX), "seed %lu", seed);
        close_host(&h);
    }
}

/* Headers that are right or wrong in any field, payloads that are there or not: it is ARRIVED or
 * LOST, and the guards of the inbox stand. */
Test(tcp, survives_any_header, .timeout = 100)
{
    for (uint64_t seed = 1; seed <= 2000; seed++) {
        unsigned char bytes[HEADER + 512] = {0};
        uint64_t random = seed;
        struct shunt_completion c;
        struct host h;

        open_host(&h);
        message(bytes, MAGIC, 1, random_below(&random, INBOX), random_below(&random, 512));
        for (uint32_t flips = random_below(&random, 3); flips > 0; flips--)
            bytes[4 + random_below(&random, HEADER - 4)] ^=
                (unsigned char)(1u << random_below(&random, 8));
        send_all(&h, bytes, sizeof(bytes));
        hang_up(&h);
        do
            c = mesh_next(&h.mesh, 0);
        while (c.event == SHUNT_TRANSPORT_ARRIVED);
        cr_assert_eq(c.event, SHUNT_TRANSPORT_LOST, "seed %lu", seed);
        close_host(&h);
    }
}

/* ---- where receiving changes its way */

/* What the transport has asked of recv since `asks` was 0. */
static size_t asked[16];
static uint32_t asks;

ssize_t __real_recv(int fd, void *bytes, size_t len, int flags);
ssize_t __wrap_recv(int fd, void *bytes, size_t len, int flags);

ssize_t __wrap_recv(int fd, void *bytes, size_t len, int flags)
{
    asked[asks++ % 16] = len;
    return __real_recv(fd, bytes, len, flags);
}

/* Payloads that end at the stage's end or beside it, and those of which beyond it just so much is
 * left that it goes into the inbox, or just too little. */
static const size_t edges[] = {TCP_STAGE_BYTES - HEADER - 1,
                               TCP_STAGE_BYTES - HEADER,
                               TCP_STAGE_BYTES - HEADER + 1,
                               TCP_STAGE_BYTES - HEADER + TCP_DIRECT_BYTES - 1,
                               TCP_STAGE_BYTES - HEADER + TCP_DIRECT_BYTES,
                               TCP_STAGE_BYTES - HEADER + TCP_DIRECT_BYTES + 1,
                               2 * TCP_STAGE_BYTES};
#define EDGES      (sizeof(edges) / sizeof(edges[0]))
#define EDGE_PLACE 100u /* in the inbox */
#define EDGE_LEN   (HEADER + 2 * TCP_STAGE_BYTES)

/* Sends what is there at once, as the transport will find it. */
static void send_edge(struct host *h, size_t payload, size_t cut)
{
    static unsigned char bytes[EDGE_LEN];

    for (size_t i = HEADER; i < HEADER + payload; i++)
        bytes[i] = (unsigned char)(i % 251 + 1);
    message(bytes, MAGIC, 5, EDGE_PLACE, payload);
    open_host(h);
    cr_assert_eq(send(h->peer, bytes, cut, MSG_NOSIGNAL | MSG_DONTWAIT), (ssize_t)cut);
    asks = 0;
}

/* The first recv fills the stage; the second, if there is one, shows which way the rest goes. */
static void expect_way(size_t payload)
{
    const size_t whole = HEADER + payload;
    const size_t left = whole > TCP_STAGE_BYTES ? whole - TCP_STAGE_BYTES : 0;

    cr_expect_eq(asked[0], TCP_STAGE_BYTES);
    if (whole >= TCP_STAGE_BYTES)
        cr_expect_eq(asked[1], left >= TCP_DIRECT_BYTES ? left : TCP_STAGE_BYTES, "%zu bytes",
                     payload);
}

Test(tcp, receives_what_ends_where_its_way_changes)
{
    for (uint32_t e = 0; e < EDGES; e++) {
        const unsigned char *inbox;
        struct host h;

        send_edge(&h, edges[e], HEADER + edges[e]);
        cr_assert_eq(mesh_next(&h.mesh, 0).event, SHUNT_TRANSPORT_ARRIVED);
        expect_way(edges[e]);
        inbox = h.mesh.nodes[0].inbox;
        for (size_t i = 0; i < edges[e]; i++)
            cr_assert_eq(inbox[EDGE_PLACE + i], (i + HEADER) % 251 + 1, "%zu of %zu", i, edges[e]);
        cr_expect(is_zero(inbox, EDGE_PLACE));
        cr_expect(is_zero(inbox + EDGE_PLACE + edges[e], INBOX - EDGE_PLACE - edges[e]));
        close_host(&h);
    }
}

/* ---- a peer that goes */

/* At every byte: a whole message is handed out, a part of one never. */
Test(tcp, loses_a_peer_at_every_byte_of_a_message, .timeout = 100)
{
    unsigned char bytes[HEADER + 200];

    memset(bytes, 0xcc, sizeof(bytes));
    message(bytes, MAGIC, 5, 100, 200);
    for (size_t cut = 0; cut <= sizeof(bytes); cut++) {
        struct shunt_completion c;
        struct host h;

        open_host(&h);
        send_all(&h, bytes, cut);
        hang_up(&h);
        if (cut == sizeof(bytes)) {
            c = mesh_next(&h.mesh, 0);
            cr_assert_eq(c.event, SHUNT_TRANSPORT_ARRIVED);
        }
        expect_lost(&h, -ECONNRESET, "closed the connection");
        cr_assert(is_zero(h.mesh.nodes[0].inbox, 100));
        cr_assert(is_zero(h.mesh.nodes[0].inbox + 300, INBOX - 300));
        close_host(&h);
    }
}

/* The same where a payload goes past the staging buffer, in payloads that end there or much later.
 */
Test(tcp, loses_a_peer_where_the_way_of_its_message_changes)
{
    static const size_t cuts[] = {TCP_STAGE_BYTES - 1,
                                  TCP_STAGE_BYTES,
                                  TCP_STAGE_BYTES + 1,
                                  TCP_STAGE_BYTES + TCP_DIRECT_BYTES - 1,
                                  TCP_STAGE_BYTES + TCP_DIRECT_BYTES,
                                  TCP_STAGE_BYTES + TCP_DIRECT_BYTES + 1,
                                  EDGE_LEN};

    for (uint32_t e = 0; e < EDGES; e++)
        for (uint32_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
            const size_t last = HEADER + edges[e] - 1;
            struct host h;

            send_edge(&h, edges[e], cuts[i] < last ? cuts[i] : last);
            hang_up(&h);
            expect_lost(&h, -ECONNRESET, "closed the connection");
            if (cuts[i] >= TCP_STAGE_BYTES)
                expect_way(edges[e]);
            cr_assert(is_zero(h.mesh.nodes[0].inbox + EDGE_PLACE + edges[e],
                              INBOX - EDGE_PLACE - edges[e]));
            close_host(&h);
        }
}

Test(tcp, loses_a_peer_in_a_large_message, .timeout = 100)
{
    static const size_t cuts[] = {HEADER, HEADER + 1,         65536,         70000,
                                  150000, INBOX + HEADER - 1, INBOX + HEADER};
    unsigned char *bytes = malloc(INBOX + HEADER);

    cr_assert(bytes);
    memset(bytes, 0xcc, INBOX + HEADER);
    message(bytes, MAGIC, 5, 0, INBOX);
    for (uint32_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct host h;

        open_host(&h);
        send_all(&h, bytes, cuts[i]);
        hang_up(&h);
        if (cuts[i] == INBOX + HEADER)
            cr_assert_eq(mesh_next(&h.mesh, 0).event, SHUNT_TRANSPORT_ARRIVED);
        expect_lost(&h, -ECONNRESET, "closed the connection");
        close_host(&h);
    }
    free(bytes);
}

/* A process that is killed resets its connections, whatever was under way. */
Test(tcp, loses_a_peer_that_resets, .timeout = 100)
{
    const struct linger at_once = {.l_onoff = 1};
    unsigned char *big = mesh_room(INBOX);

    for (uint32_t puts = 0; puts <= SHUNT_TRANSPORT_DEPTH; puts += 4) {
        struct shunt_completion c;
        struct host h;

        open_tcp_host(&h);
        for (uint32_t i = 0; i < puts; i++)
            cr_assert_eq(shunt_transport_tcp.put(h.mesh.nodes[0].t, 1, big, INBOX, 0, i), 0);
        setsockopt(h.peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
        hang_up(&h);
        do
            c = mesh_next(&h.mesh, 0);
        while (c.event == SHUNT_TRANSPORT_SENT);
        cr_expect(c.event == SHUNT_TRANSPORT_LOST && c.error < 0 && c.reason && *c.reason);
        cr_expect_eq(shunt_transport_tcp.put(h.mesh.nodes[0].t, 1, big, 1, 0, 0), -EPIPE);
        close_host(&h);
    }
}

/* Writing to a peer that is gone is an error of ours and no signal to the program: at the first
 * put, or at the second when the first has only learnt it. */
Test(tcp, raises_no_sigpipe, .timeout = 20)
{
    signal(SIGPIPE, SIG_DFL);
    for (uint32_t i = 0; i < 10; i++) {
        struct shunt_completion c[16];
        uint32_t n = 0;
        struct host h;

        if (i % 2)
            open_tcp_host(&h);
        else
            open_host(&h);
        hang_up(&h);
        for (uint32_t puts = 0; puts < SHUNT_TRANSPORT_DEPTH; puts++) {
            int rc = shunt_transport_tcp.put(h.mesh.nodes[0].t, 1, room, 1, 0, 0);

            cr_expect(rc == 0 || rc == -EPIPE);
        }
        while (n == 0 || c[n - 1].event != SHUNT_TRANSPORT_LOST)
            n = shunt_transport_tcp.poll(h.mesh.nodes[0].t, c, 16);
        close_host(&h);
    }
}

/* ---- sockets */

Test(tcp, does_not_wait_to_fill_a_packet)
{
    struct host h;
    struct pollfd fd;
    int on = 0;
    socklen_t len = sizeof(on);

    open_tcp_host(&h);
    cr_assert_eq(shunt_transport_tcp.prepare(h.mesh.nodes[0].t, &fd, 1), 1);
    cr_expect(getsockopt(fd.fd, IPPROTO_TCP, TCP_NODELAY, &on, &len) == 0 && on);
    close_host(&h);
    shunt_transport_tcp.close(NULL);
}

/* Bytes wait for the socket: the sleeper is woken when it takes more, and only then. */
Test(tcp, sleeps_for_room_only_while_something_waits)
{
    unsigned char *big = mesh_room(8 * INBOX);
    unsigned char *sink = malloc(INBOX);
    struct shunt_completion c;
    struct pollfd fd;
    struct host h;

    cr_assert(sink);
    open_tcp_host(&h);
    cr_assert_eq(shunt_transport_tcp.prepare(h.mesh.nodes[0].t, &fd, 1), 1);
    cr_expect_eq(fd.events, POLLIN);
    for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
        cr_assert_eq(shunt_transport_tcp.put(h.mesh.nodes[0].t, 1, big, INBOX, 0, i), 0);
    cr_assert_eq(shunt_transport_tcp.prepare(h.mesh.nodes[0].t, &fd, 1), 1);
    cr_expect_eq(fd.events, POLLIN | POLLOUT);
    for (uint64_t left = SHUNT_TRANSPORT_DEPTH * ((uint64_t)INBOX + HEADER); left > 0;) {
        ssize_t n = recv(h.peer, sink, INBOX, MSG_DONTWAIT);

        left -= n > 0 ? (uint64_t)n : 0;
        shunt_transport_tcp.poll(h.mesh.nodes[0].t, &c, 1);
    }
    while (shunt_transport_tcp.poll(h.mesh.nodes[0].t, &c, 1))
        ;
    cr_assert_eq(shunt_transport_tcp.prepare(h.mesh.nodes[0].t, &fd, 1), 1);
    cr_expect_eq(fd.events, POLLIN);
    close_host(&h);
    free(sink);
}
