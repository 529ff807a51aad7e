/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared memory: the contract that every transport keeps, and what a peer can do with what it
 * shares. Sees the inside, because a peer that lies is made of the same structures.
 */
#include "transport/shm.c"

#include <criterion/criterion.h>
#include <sys/ioctl.h>

#include "tests/random.h"
#include "tests/transport/contract.h"

static void connect_local(uint32_t a, uint32_t b, int fds[2])
{
    (void)a, (void)b;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

static const struct transport_backend shm = {.ops = &shunt_transport_shm, .connect = connect_local};

TRANSPORT_KEEPS_ALL(shm, shm)

/* ---- a peer made by hand */

#define INBOX 8192u

/* Node 0, which is real, and node 1, which says what the test wants. */
struct liar {
    struct shunt_transport *t;
    struct mesh_node node; /* node 0's inbox */
    struct shunt_shared channel, inbox;
    struct channel *says; /* channel.base */
    struct word word;
    int fd;
    struct shunt_error err;
};

static void prepare_liar(struct liar *l)
{
    struct stat st;

    memset(l, 0, sizeof(*l));
    l->node.inbox_bytes = INBOX;
    mesh_make_inbox(&l->node);
    cr_assert_eq(shunt_shared_create(&l->channel, PAGE, SHUNT_SHARED_READ_ONLY, "", NULL), 0);
    cr_assert_eq(shunt_shared_create(&l->inbox, INBOX, SHUNT_SHARED_WRITABLE, "", NULL), 0);
    cr_assert_eq(fstat(l->inbox.fd, &st), 0);
    l->says = l->channel.base;
    l->says->inbox_dev = st.st_dev;
    l->says->inbox_node = st.st_ino;
    l->word = (struct word){
        .magic = WORD_MAGIC,
        .version = WORD_VERSION,
        .pid = (uint32_t)getpid(),
        .channel_fd = (uint32_t)l->channel.fd,
        .inbox_fd = (uint32_t)l->inbox.fd,
        .inbox_bytes = INBOX,
    };
    cr_assert_eq(getrandom(l->word.nonce, NONCE_BYTES, 0), NONCE_BYTES);
    memcpy(l->says->nonce, l->word.nonce, NONCE_BYTES);
}

/* Whatever node 0 wants to hear has been said before it listens. */
static int meet(struct liar *l)
{
    const struct shunt_patience patience = {.deadline_ns = shunt_deadline_ns(SHUNT_NS_PER_S)};
    const struct shunt_region memory = {.base = mesh_room(0), .bytes = MIB, .fd = -1};
    const uint64_t inboxes[] = {INBOX, INBOX};
    struct shunt_stream streams[2] = {SHUNT_STREAM_NONE, SHUNT_STREAM_NONE};
    int fds[2];

    connect_local(0, 1, fds);
    streams[1].fd = fds[0];
    l->fd = fds[1];
    cr_assert_eq(send(l->fd, &l->word, sizeof(l->word), 0), sizeof(l->word));
    cr_assert_eq(send(l->fd, "M", 1, 0), 1);
    return shunt_transport_shm.open(&l->t,
                                    &(struct shunt_transport_config){
                                        .node_count = 2,
                                        .streams = streams,
                                        .inbox = mesh_inbox(&shm, &l->node),
                                        .peer_inbox_bytes = inboxes,
                                        .memory = &memory,
                                        .memory_count = 1,
                                        .patience = &patience,
                                    },
                                    &l->err);
}

static void part(struct liar *l)
{
    shunt_transport_shm.close(l->t);
    close(l->fd);
    shunt_shared_fini(&l->node.room);
    shunt_shared_fini(&l->channel);
    shunt_shared_fini(&l->inbox);
}

static void expect_refused(struct liar *l, int code, const char *text)
{
    uint32_t before = mesh_descriptors();

    cr_expect_eq(meet(l), code, "%s: %s", text, l->err.text);
    cr_expect(strstr(l->err.text, text) && strstr(l->err.text, "rank 1"), "'%s' says no '%s'",
              l->err.text, text);
    cr_expect_eq(mesh_descriptors(), before + 1, "%s", text); /* the liar's own */
    l->t = NULL;
    part(l);
}

Test(shm, takes_an_honest_peer)
{
    struct liar l;

    prepare_liar(&l);
    cr_expect_eq(meet(&l), 0, "%s", l.err.text);
    part(&l);
}

Test(shm, refuses_a_peer_that_is_not_here)
{
    struct liar l;

    prepare_liar(&l);
    l.word.pid = INT32_MAX; /* beyond what Linux gives */
    expect_refused(&l, -EREMOTE, "not on this host");
    prepare_liar(&l); /* the same numbers mean something else here */
    l.word.nonce[15] ^= 1;
    expect_refused(&l, -EREMOTE, "not on this host");
    prepare_liar(&l);
    l.says->inbox_node++;
    expect_refused(&l, -EREMOTE, "not on this host");
    prepare_liar(&l);
    l.word.channel_fd = 1000;
    expect_refused(&l, -EREMOTE, "use --transport tcp");
}

Test(shm, refuses_memory_that_could_be_cut_short)
{
    int bare = memfd_create("bare", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct liar l;
    int pipes[2];

    cr_assert(bare >= 0 && null >= 0 && ftruncate(bare, INBOX) == 0 && pipe(pipes) == 0);
    for (uint32_t inbox = 0; inbox < 2; inbox++) {
        const int fds[] = {bare, null, pipes[0]};
        const char *flaws[] = {"not sealed", "no memfd", "no memfd"};

        for (uint32_t i = 0; i < 3; i++) {
            prepare_liar(&l);
            *(inbox ? &l.word.inbox_fd : &l.word.channel_fd) = (uint32_t)fds[i];
            expect_refused(&l, -EPROTO, flaws[i]);
        }
    }
    prepare_liar(&l);
    l.word.inbox_off = PAGE;
    expect_refused(&l, -EPROTO, "too short");
    prepare_liar(&l); /* a peer whose inbox nobody may write */
    l.word.inbox_fd = l.word.channel_fd;
    expect_refused(&l, -EPROTO, "too short");
}

/* Each field at values that would overflow, and every bit turned: open ends in time, and what it
 * takes can be closed. */
Test(shm, survives_any_word, .timeout = 100)
{
    const uint64_t values[] = {0,          1,          INBOX - 1, INBOX + 1,  1ull << 31,
                               UINT32_MAX, 1ull << 62, INT64_MAX, UINT64_MAX, UINT64_MAX - 4095};
    struct liar l;

    for (uint32_t bit = 0; bit < 8 * sizeof(l.word); bit++) {
        prepare_liar(&l);
        ((unsigned char *)&l.word)[bit / 8] ^= (unsigned char)(1u << bit % 8);
        /* Another process number may be that of a thread of ours, which has the same memory. */
        if (meet(&l))
            l.t = NULL;
        else
            cr_expect_eq(bit / 32, offsetof(struct word, pid) / 4, "bit %u", bit);
        part(&l);
    }
    for (uint32_t i = 0; i < 2 * sizeof(values) / sizeof(values[0]); i++) {
        prepare_liar(&l);
        *(i % 2 ? &l.word.inbox_off : &l.word.inbox_bytes) = values[i / 2];
        if (meet(&l))
            l.t = NULL;
        else
            cr_expect(i == 1, "value %u", i); /* an offset of 0 */
        part(&l);
    }
}

/* ---- a peer that lies later */

static struct shunt_completion next(struct liar *l)
{
    struct shunt_completion c = {0};

    for (uint32_t i = 0; i < 1000 && c.event == 0; i++)
        shunt_transport_shm.poll(l->t, &c, 1);
    return c;
}

static void expect_given_up(struct liar *l, const char *reason)
{
    struct shunt_completion c;

    do
        c = next(l);
    while (c.event == SHUNT_TRANSPORT_ARRIVED || c.event == SHUNT_TRANSPORT_SENT);
    cr_expect(c.event == SHUNT_TRANSPORT_LOST && c.error == -EPROTO, "event %d for '%s'", c.event,
              reason);
    cr_expect(c.reason && strstr(c.reason, reason), "%s", c.reason);
    cr_expect_eq(shunt_transport_shm.put(l->t, 1, room, 1, 0, 0), -EPIPE);
    part(l);
}

/* Announces put `number`, whose imm is the same. */
static void say(struct liar *l, uint32_t number)
{
    atomic_store(&l->says->newest, (uint64_t)number << 32 | number);
    atomic_store(&l->says->imms[number % RING], number);
}

Test(shm, gives_up_a_peer_that_lies)
{
    struct liar l;

    prepare_liar(&l);
    cr_assert_eq(meet(&l), 0);
    say(&l, 1);
    cr_expect_eq(next(&l).imm, 1);
    say(&l, 0); /* backwards */
    expect_given_up(&l, "more than this node gave it credit for");
    prepare_liar(&l);
    cr_assert_eq(meet(&l), 0);
    for (uint32_t i = 1; i <= RING; i++)
        say(&l, i);
    for (uint32_t i = 1; i <= RING; i++)
        cr_expect_eq(next(&l).imm, i);
    cr_expect_eq(next(&l).event, 0);
    say(&l, RING + 1); /* over one that was not released */
    expect_given_up(&l, "more than this node gave it credit for");
    prepare_liar(&l);
    cr_assert_eq(meet(&l), 0);
    for (uint32_t i = 0; i < RING + 1; i++) {
        cr_expect_eq(shunt_transport_shm.put(l.t, 1, room, 1, 0, i), 0);
        cr_expect_eq(next(&l).event, i < RING ? SHUNT_TRANSPORT_SENT : 0);
    }
    atomic_store(&l.says->released, RING + 1);
    expect_given_up(&l, "released messages that were never sent");
}

/* Every word of the channel turns into anything at any time: what comes out is ARRIVED, SENT or one
 * LOST, a call returns, and nothing outside the inbox has changed. */
Test(shm, survives_any_scribble, .timeout = 100)
{
    for (uint64_t seed = 1; seed <= 3000; seed++) {
        uint64_t random = seed;
        uint32_t lost = 0;
        struct pollfd fds[4];
        struct liar l;

        prepare_liar(&l);
        cr_assert_eq(meet(&l), 0);
        for (uint32_t i = 0; i < 60; i++) {
            uint32_t *words = (uint32_t *)l.says;
            uint32_t at = random_below(&random, PAGE / 4);
            struct shunt_completion c[16];
            uint32_t count;

            if (random_below(&random, 4) == 0)
                at = (uint32_t)(offsetof(struct channel, released) / 4);
            words[at] = random_below(&random, 2) ? (uint32_t)random_next(&random)
                                                 : random_below(&random, 40);
            say(&l, 1 + random_below(&random, 40));
            shunt_transport_shm.put(l.t, 1, room, random_below(&random, INBOX), 0, i);
            shunt_transport_shm.prepare(l.t, fds, 4);
            count = shunt_transport_shm.poll(l.t, c, 16);
            cr_assert_leq(count, 16);
            for (uint32_t n = 0; n < count; n++) {
                lost += c[n].event == SHUNT_TRANSPORT_LOST;
                if (c[n].event == SHUNT_TRANSPORT_ARRIVED)
                    shunt_transport_shm.release(l.t, 1, 1);
            }
        }
        cr_assert_leq(lost, 1, "seed %lu", seed);
        for (uint32_t i = 0; i < MESH_GUARD; i++)
            cr_assert(((unsigned char *)l.node.room.base)[i] == 0x5a &&
                      l.node.inbox[INBOX + i] == 0x5a);
        part(&l);
    }
}

/* A peer that talks on its stream without end keeps nobody in poll. */
Test(shm, does_not_listen_for_ever)
{
    char noise[4096] = {0};
    struct shunt_completion c;
    struct pollfd fds[4];
    struct liar l;

    prepare_liar(&l);
    cr_assert_eq(meet(&l), 0);
    while (send(l.fd, noise, sizeof(noise), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
        ;
    say(&l, 1);
    shunt_transport_shm.prepare(l.t, fds, 4);
    cr_expect_eq(shunt_transport_shm.poll(l.t, &c, 1), 1);
    cr_expect_eq(c.event, SHUNT_TRANSPORT_ARRIVED);
    part(&l);
}

/* ---- who may write what */

Test(shm, a_peer_cannot_write_what_we_say)
{
    const uint64_t inboxes[] = {64, 64};
    struct peer *p;
    struct mesh m;
    char path[64];
    int fd;

    mesh_open(&m, &shm, 2, inboxes, false);
    p = &m.nodes[0].t->peers[1];
    cr_expect(mprotect((void *)(uintptr_t)p->from, PAGE, PROT_READ | PROT_WRITE) != 0 &&
              errno == EACCES);
    mesh_close(&m);

    struct shunt_shared s; /* nor by opening it once more */

    cr_assert_eq(shunt_shared_create(&s, PAGE, SHUNT_SHARED_READ_ONLY, "", NULL), 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", s.fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    cr_expect_eq(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    cr_expect_neq(ftruncate(fd, 0), 0);
    close(fd);
    shunt_shared_fini(&s);
}

/* ---- costs */

static int waiting_bytes(int fd)
{
    int bytes = -1;

    cr_assert_eq(ioctl(fd, FIONREAD, &bytes), 0);
    return bytes;
}

/* No byte, and so no system call, to a peer that polls; one to a peer that sleeps, however many
 * puts come meanwhile. */
Test(shm, wakes_nobody_who_polls)
{
    const uint64_t inboxes[] = {64, 64};
    struct pollfd fds[MESH_NODES_MAX];
    struct shunt_completion c;
    struct mesh m;
    int stream;

    mesh_open(&m, &shm, 2, inboxes, false);
    stream = m.nodes[1].t->peers[0].stream.fd;
    for (uint32_t sleeps = 1; sleeps <= 3; sleeps++) {
        for (uint32_t i = 0; i < SHUNT_TRANSPORT_DEPTH; i++)
            cr_assert_eq(mesh_put(&m, 0, 1, room, 1, 0, i), 0);
        cr_expect_eq(waiting_bytes(stream), 0);
        while (mesh_poll(&m, 0, &c, 1) || mesh_poll(&m, 1, &c, 1))
            ;
        cr_assert_eq(shunt_transport_shm.prepare(m.nodes[1].t, fds, MESH_NODES_MAX), 1);
        cr_expect_eq(poll(fds, 1, 0), 0);
        for (uint32_t i = 0; i < 3; i++)
            cr_assert_eq(mesh_put(&m, 0, 1, room, 1, 0, i), 0);
        cr_expect_eq(waiting_bytes(stream), 1);
        while (mesh_poll(&m, 0, &c, 1) || mesh_poll(&m, 1, &c, 1))
            ;
    }
    mesh_close(&m);
}

/* Over TCP a byte that wakes would else wait for the acknowledgement of the one before. */
Test(shm, does_not_wait_to_fill_a_packet)
{
    static const struct transport_backend over_tcp = {.ops = &shunt_transport_shm,
                                                      .connect = mesh_connect_tcp};
    const uint64_t inboxes[] = {64, 64};
    struct mesh m;

    mesh_open(&m, &over_tcp, 2, inboxes, false);
    for (uint32_t n = 0; n < 2; n++) {
        int on = 0;
        socklen_t len = sizeof(on);

        cr_expect(getsockopt(m.nodes[n].t->peers[1 - n].stream.fd, IPPROTO_TCP, TCP_NODELAY, &on,
                             &len) == 0 &&
                  on);
    }
    mesh_close(&m);
}

/* A put of many slices does not hold up the caller, nor a small one to another peer. */
Test(shm, copies_large_puts_in_slices)
{
    const uint64_t inboxes[] = {64, 8 * SLICE_BYTES, 64};
    unsigned char *big = mesh_pattern(1, 8 * SLICE_BYTES);
    struct shunt_completion c;
    struct mesh m;
    uint32_t polls = 1;

    mesh_open(&m, &shm, 3, inboxes, false);
    cr_assert_eq(mesh_put(&m, 0, 1, big, 8 * SLICE_BYTES, 0, 1), 0);
    cr_expect_eq(m.nodes[0].t->peers[1].puts[0].copied, SLICE_BYTES);
    cr_assert_eq(mesh_put(&m, 0, 2, big, 64, 0, 2), 0);
    mesh_expect_arrived(&m, 2, 0, 2);
    cr_expect_lt(m.nodes[0].t->peers[1].puts[0].copied, 8 * SLICE_BYTES);
    for (; newest_of(&m.nodes[1].t->peers[0]) == 0; polls++)
        shunt_transport_shm.poll(m.nodes[0].t, &c, 1);
    cr_expect_leq(polls, 8);
    mesh_expect_arrived(&m, 1, 0, 1);
    cr_expect_eq(memcmp(m.nodes[1].inbox, big, 8 * SLICE_BYTES), 0);
    mesh_close(&m);
}
