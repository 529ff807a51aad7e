/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport between nodes of one host. Every node's inbox is a memfd that its peers map, and a
 * put is one memcpy from its source straight into the peer's inbox. What a put announces, and the
 * credit for puts that have been read, lie in a channel: one page per ordered pair, written by one
 * node and mapped read-only by the other, which the kernel holds them to. So the inbox is the only
 * memory of a node that a peer can write, and nothing that a peer writes is an index here.
 *
 * The stream that the rack hands over says at the start which descriptors of which process to map,
 * later wakes a peer that sleeps, with a byte, and says by its end that the peer is gone. It costs
 * no system call per put while both sides poll.
 *
 * What it costs: a put of n bytes is n bytes read and n written by the sender's core, once, so
 * copying at M bytes/s no put takes less than n/M, and the receiver reads them from wherever the
 * caches have them. (A TCP stream copies twice, through the kernel.) An empty put is the transfer
 * of one cache line between two cores, and its credit of another.
 *
 * Copying is work, not waiting: put never blocks, but copies at most SLICE_BYTES; the rest of a
 * large put is copied by poll, a slice at a time, so that neither a tile of compute nor the other
 * peers wait for megabytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/carve.h"
#include "runtime/base/clock.h"
#include "runtime/base/futex.h"
#include "runtime/base/shared.h"
#include "transport/region.h"
#include "transport/transport.h"

/* About 50 us of copying: what a caller's poll between two tiles may take. */
#define SLICE_BYTES (256u << 10)

/* A peer that ends is noticed after this while we poll, and at once while we sleep. */
#define LOOK_NS (1 * SHUNT_NS_PER_MS)

/* Polls between two looks at the clock. */
#define POLLS_PER_LOOK 64u

#define PAGE        4096u
#define NONCE_BYTES 16u
#define RING        SHUNT_TRANSPORT_WINDOW
_Static_assert((RING & (RING - 1)) == 0, "the numbers of puts wrap");

/* ---- shared memory */

/* What one node says to one peer. Each word is written by that node only, and each that the peer
 * polls or seldom sees change has a line of its own. */
struct channel {
    uint8_t nonce[NONCE_BYTES];     /* that of its word: this is the memory that was meant */
    uint64_t inbox_dev, inbox_node; /* so is this inbox */
    /* Of the peer's puts, those it may put others over. Stored after the last read of their bytes,
     * loaded before new bytes are put over them. */
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint32_t released;
    /* Odd while this node sleeps or is about to. See fall_asleep. The peer looks at it after each
     * put. */
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint32_t sleeps;
    /* The put announced last: number << 32 | imm, where numbers count the puts of the pair from 1.
     * Whoever has seen the number sees the bytes in the inbox. One word and always the same line:
     * between two stores a peer that polls would take the line away, and a line that it has not
     * polled lately comes later. */
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint64_t newest;
    /* Put n's imm at n % RING, for a peer that sees a newer one first: stored after the one and
     * before the other, when nobody waits for it. Written again only after the peer has released
     * put n. */
    _Alignas(SHUNT_CACHE_LINE) _Atomic uint32_t imms[RING];
};
_Static_assert(sizeof(struct channel) <= PAGE, "a channel is a page");

/* ---- the stream */

#define WORD_MAGIC   0x4d485353u /* "SSHM" */
#define WORD_VERSION 2u

/*  0       4         8     12           16         20   24           32            40      56
 *  | magic | version | pid | channel fd | inbox fd | 0  | inbox off  | inbox bytes | nonce | */
struct word {
    uint32_t magic, version;
    uint32_t pid, channel_fd, inbox_fd, zero;
    uint64_t inbox_off, inbox_bytes;
    uint8_t nonce[NONCE_BYTES];
};
_Static_assert(sizeof(struct word) == 56, "a wire format");

#define BYTE_MAPPED 'M' /* after the word: the peer's memory is mapped here */
#define BYTE_WAKE   'W'

enum state {
    ABSENT,  /* this node, or lost */
    TELLING, /* own word under way */
    HEARING, /* the peer's word under way */
    MAPPED,  /* told so; the peer has not */
    UP,
    ENDING, /* the stream has ended: what is in the ring is handed out, then LOST */
};

struct open_put {
    const unsigned char *src;
    uint64_t bytes, off, copied;
    uint32_t imm;
    int64_t deadline_ns; /* 0: its time has not begun */
};

struct peer {
    struct shunt_stream stream;
    enum state state;
    struct word own_word, word;
    uint32_t told, heard; /* bytes of them that have gone and come */
    struct shunt_shared own;
    struct channel *to;         /* own.base: what we say */
    const struct channel *from; /* the peer's, mapped */
    unsigned char *inbox;       /* the peer's, mapped; NULL where it has none */
    uint64_t inbox_bytes;

    struct open_put puts[SHUNT_TRANSPORT_DEPTH]; /* a ring, oldest first */
    uint32_t first, count;
    uint32_t announced; /* of `count`: in the peer's inbox, SENT not handed out */
    uint32_t number;    /* puts announced so far */
    uint32_t credited;  /* of them, those the peer has released, as last seen */
    uint32_t woken;     /* the peer's sleep that was ended last */
    uint32_t sleeps;    /* our own, as the peer knows */

    uint32_t arrived;  /* its puts taken so far */
    uint32_t released; /* of them */

    int lost_error; /* not yet handed out when lost_reason is set */
    const char *lost_reason;
};

struct shunt_transport {
    uint32_t rank, node_count;
    int64_t put_timeout_ns;
    struct shunt_region *memory; /* [memory_count] */
    uint32_t memory_count;
    struct peer *peers; /* [node_count] */
    int ready_fd;       /* always readable: listed when there is something to do at once */
    bool asleep;        /* the peers have been told */
    int64_t looked_ns;
    uint32_t polls; /* at the streams */
    uint32_t turn;  /* the peer that poll looks at first */
    struct shunt_transport_counters counters;
};

/* Completions of one poll call. */
struct sink {
    struct shunt_completion *out;
    uint32_t count, max;
};

static void forget_memory(struct peer *p)
{
    if (p->from)
        munmap((void *)(uintptr_t)p->from, PAGE);
    if (p->inbox)
        munmap(p->inbox, p->inbox_bytes);
    if (p->to)
        shunt_shared_fini(&p->own);
    p->from = NULL;
    p->inbox = NULL;
    p->to = NULL;
}

static void lose(struct peer *p, int error, const char *reason)
{
    shunt_stream_close(&p->stream);
    forget_memory(p);
    p->state = ABSENT;
    p->count = 0;
    p->announced = 0;
    p->lost_error = error;
    p->lost_reason = reason;
}

/* ---- open and close */

static bool shm_close(struct shunt_transport *t)
{
    if (!t)
        return true;
    for (uint32_t i = 0; t->peers && i < t->node_count; i++) {
        shunt_stream_close(&t->peers[i].stream);
        forget_memory(&t->peers[i]);
    }
    if (t->ready_fd >= 0)
        close(t->ready_fd);
    free(t->memory);
    free(t->peers);
    free(t);
    return true;
}

static uint64_t shm_footprint(uint32_t node_count)
{
    return sizeof(struct shunt_transport) + node_count * (sizeof(struct peer) + 2ull * PAGE);
}

static int make_channel(struct peer *p, const struct shunt_transport_config *cfg,
                        struct shunt_error *err)
{
    struct stat inbox = {0};
    int rc = shunt_shared_create(&p->own, PAGE, SHUNT_SHARED_READ_ONLY, "a peer", err);

    if (rc)
        return rc;
    p->to = p->own.base;
    p->own_word = (struct word){
        .magic = WORD_MAGIC,
        .version = WORD_VERSION,
        .pid = (uint32_t)getpid(),
        .channel_fd = (uint32_t)p->own.fd,
        .inbox_fd = (uint32_t)cfg->inbox.fd,
        .inbox_off = cfg->inbox.fd_offset,
        .inbox_bytes = cfg->inbox.bytes,
    };
    if (cfg->inbox.bytes > 0 && fstat(cfg->inbox.fd, &inbox))
        return shunt_error_set(err, -errno, "shm: the inbox: %s", strerror(errno));
    if (getrandom(p->own_word.nonce, NONCE_BYTES, 0) != NONCE_BYTES)
        return shunt_error_set(err, -EIO, "shm: no random numbers: %s", strerror(errno));
    memcpy(p->to->nonce, p->own_word.nonce, NONCE_BYTES);
    p->to->inbox_dev = inbox.st_dev;
    p->to->inbox_node = inbox.st_ino;
    return 0;
}

/* ---- mapping what a peer has named */

static int not_here(const struct word *w, uint32_t peer, int error, struct shunt_error *err)
{
    if (error == EACCES || error == EPERM)
        return shunt_error_set(err, -error,
                               "shm: rank %" PRIu32
                               " runs as another user, or may not be looked into (process %" PRIu32
                               "): %s; use --transport tcp",
                               peer, w->pid, strerror(error));
    return shunt_error_set(err, -EREMOTE,
                           "shm: rank %" PRIu32
                           " is not on this host, or in another process namespace: here process "
                           "%" PRIu32 " does not have its memory%s%s; use --transport tcp",
                           peer, w->pid, error ? ": " : "", error ? strerror(error) : "");
}

/* A piece of memory that a word names. */
struct piece {
    uint32_t fd;
    int mode, protection;
    uint64_t off, bytes;
    struct stat st; /* of what was mapped */
};

/* What is opened may be anything of the same user's: nothing but a sealed memfd is mapped. */
static int map_piece(struct piece *m, const struct word *w, uint32_t peer, void **out,
                     struct shunt_error *err)
{
    const char *flaw;
    char path[64];
    void *base;
    int fd;

    snprintf(path, sizeof(path), "/proc/%" PRIu32 "/fd/%" PRIu32, w->pid, m->fd);
    fd = open(path, m->mode | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return not_here(w, peer, errno, err);
    flaw = shunt_shared_flaw(fd, m->off + m->bytes);
    if (flaw || fstat(fd, &m->st)) {
        close(fd);
        return shunt_error_set(err, -EPROTO,
                               "shm: rank %" PRIu32 " offers memory that cannot be used: %s", peer,
                               flaw ? flaw : "it has gone");
    }
    base = mmap(NULL, m->bytes, m->protection, MAP_SHARED, fd, (off_t)m->off);
    close(fd);
    if (base == MAP_FAILED)
        return shunt_error_set(err, -errno, "shm: cannot map memory of rank %" PRIu32 ": %s", peer,
                               strerror(errno));
    *out = base;
    return 0;
}

/* What the numbers of a word may be, so that nothing overflows. */
static bool is_word(const struct peer *p)
{
    const struct word *w = &p->word;

    return w->magic == WORD_MAGIC && w->version == WORD_VERSION && w->zero == 0 &&
           w->pid <= INT32_MAX && w->channel_fd <= INT32_MAX && w->inbox_bytes == p->inbox_bytes &&
           w->inbox_bytes < UINT64_MAX / 4 && w->inbox_off < UINT64_MAX / 4 &&
           w->inbox_off % PAGE == 0;
}

static int map_channel(struct peer *p, uint32_t peer, struct shunt_error *err)
{
    struct piece m = {
        .fd = p->word.channel_fd, .mode = O_RDONLY, .protection = PROT_READ, .bytes = PAGE};
    void *base;
    int rc = map_piece(&m, &p->word, peer, &base, err);

    if (rc)
        return rc;
    p->from = base;
    return memcmp(p->from->nonce, p->word.nonce, NONCE_BYTES) ? not_here(&p->word, peer, 0, err)
                                                              : 0;
}

static int map_inbox(struct peer *p, uint32_t peer, struct shunt_error *err)
{
    struct piece m = {
        .fd = p->word.inbox_fd,
        .mode = O_RDWR,
        .protection = PROT_READ | PROT_WRITE,
        .off = p->word.inbox_off,
        .bytes = p->inbox_bytes,
    };
    void *base;
    int rc = map_piece(&m, &p->word, peer, &base, err);

    if (rc)
        return rc;
    p->inbox = base;
    return m.st.st_dev != p->from->inbox_dev || m.st.st_ino != p->from->inbox_node
               ? not_here(&p->word, peer, 0, err)
               : 0;
}

static int map_peer(struct peer *p, uint32_t peer, struct shunt_error *err)
{
    int rc;

    if (!is_word(p))
        return shunt_error_set(
            err, -EPROTO, "shm: rank %" PRIu32 " says what no shunt of this version does", peer);
    rc = map_channel(p, peer, err);
    if (!rc && p->inbox_bytes > 0)
        rc = map_inbox(p, peer, err);
    return rc;
}

/* ---- the talk of open */

/* Sends the rest of the own word. Return: 0, -EAGAIN, a negative errno value. */
static int tell(struct peer *p)
{
    while (p->told < sizeof(p->own_word)) {
        ssize_t n = shunt_stream_send(&p->stream, (const char *)&p->own_word + p->told,
                                      sizeof(p->own_word) - p->told);

        if (n < 0)
            return (int)n;
        p->told += (uint32_t)n;
    }
    return 0;
}

static int hear(struct peer *p)
{
    while (p->heard < sizeof(p->word)) {
        ssize_t n =
            shunt_stream_recv(&p->stream, (char *)&p->word + p->heard, sizeof(p->word) - p->heard);

        if (n <= 0)
            return n ? (int)n : -ECONNRESET;
        p->heard += (uint32_t)n;
    }
    return 0;
}

static int hear_mapped(struct peer *p)
{
    char byte;
    ssize_t n = shunt_stream_recv(&p->stream, &byte, 1);

    if (n <= 0)
        return n ? (int)n : -ECONNRESET;
    return byte == BYTE_MAPPED ? 0 : -EPROTO;
}

/* Goes on with a peer as far as it can. Return: 0 when it is UP, -EAGAIN, or why it cannot be. */
static int introduce(struct peer *p, uint32_t peer, struct shunt_error *err)
{
    int rc = 0;

    if (p->state == TELLING && !(rc = tell(p)))
        p->state = HEARING;
    if (p->state == HEARING && !(rc = hear(p))) {
        const char mapped = BYTE_MAPPED;

        rc = map_peer(p, peer, err);
        if (rc)
            return rc;
        /* Behind its first word a socket has room for a byte. */
        if (shunt_stream_send(&p->stream, &mapped, 1) != 1)
            rc = -ECONNRESET;
        else
            p->state = MAPPED;
    }
    if (p->state == MAPPED && !(rc = hear_mapped(p))) {
        p->state = UP;
        shunt_shared_close_fd(&p->own); /* it is mapped where it is needed */
    }
    if (rc == 0 || rc == -EAGAIN)
        return rc;
    return shunt_error_set(err, rc, "shm: rank %" PRIu32 " has not shared its memory: %s", peer,
                           rc == -ECONNRESET ? "it closed the connection" : strerror(-rc));
}

static int introduce_all(struct shunt_transport *t, const struct shunt_patience *patience,
                         struct shunt_error *err)
{
    for (;;) {
        struct pollfd fds[SHUNT_NODES_MAX];
        struct timespec slice = shunt_timespec(SHUNT_PATIENCE_SLICE_NS);
        uint32_t awaited = t->node_count, n = 0;
        int rc;

        for (uint32_t i = 0; i < t->node_count; i++) {
            struct peer *p = &t->peers[i];

            if (p->state == ABSENT || p->state == UP)
                continue;
            rc = introduce(p, i, err);
            if (rc == 0)
                continue;
            if (rc != -EAGAIN)
                return rc;
            awaited = i;
            fds[n++] = (struct pollfd){.fd = p->stream.fd,
                                       .events = p->state == TELLING ? POLLIN | POLLOUT : POLLIN};
        }
        if (awaited == t->node_count)
            return 0;
        rc = patience ? shunt_patience_check(patience, err) : 0;
        if (rc == -ETIMEDOUT)
            shunt_error_set(err, rc, "shm: rank %" PRIu32 " has not shared its memory in time",
                            awaited);
        if (rc)
            return rc;
        ppoll(fds, n, &slice, NULL);
    }
}

static struct shunt_transport *allocate(const struct shunt_transport_config *cfg)
{
    struct shunt_transport *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->ready_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    t->peers = calloc(cfg->node_count, sizeof(*t->peers));
    t->memory = calloc(cfg->memory_count + 1, sizeof(*t->memory));
    if (t->ready_fd >= 0 && t->peers && t->memory)
        return t;
    shm_close(t);
    return NULL;
}

static int open_peers(struct shunt_transport *t, const struct shunt_transport_config *cfg,
                      struct shunt_error *err)
{
    int rc;

    if (cfg->inbox.bytes > 0 &&
        (cfg->inbox.kind != SHUNT_REGION_SHARED || cfg->inbox.fd_offset % PAGE))
        return shunt_error_set(err, -EINVAL, "shm: the inbox must be shared memory");
    rc = shunt_regions_check(cfg, "shm", err);
    for (uint32_t i = 0; i < t->node_count && !rc; i++)
        if (t->peers[i].state == TELLING)
            rc = make_channel(&t->peers[i], cfg, err);
    return rc ? rc : introduce_all(t, cfg->patience, err);
}

static int shm_open_transport(struct shunt_transport **out,
                              const struct shunt_transport_config *cfg, struct shunt_error *err)
{
    struct shunt_transport *t = allocate(cfg);
    const int one = 1;
    int rc;

    if (!t) {
        shunt_transport_drop_streams(cfg);
        return shunt_error_set(err, -ENOMEM, "out of memory or descriptors for the shm transport");
    }
    t->rank = cfg->rank;
    t->node_count = cfg->node_count;
    t->put_timeout_ns = cfg->put_timeout_ns;
    t->memory_count = cfg->memory_count;
    if (cfg->memory_count > 0)
        memcpy(t->memory, cfg->memory, cfg->memory_count * sizeof(*cfg->memory));
    for (uint32_t i = 0; i < cfg->node_count; i++) {
        struct peer *p = &t->peers[i];

        p->stream = i == cfg->rank ? SHUNT_STREAM_NONE : cfg->streams[i];
        p->state = p->stream.fd >= 0 ? TELLING : ABSENT;
        p->inbox_bytes = cfg->peer_inbox_bytes[i];
        if (p->state == TELLING) /* a byte that wakes must not wait for another's acknowledgement */
            setsockopt(p->stream.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    rc = open_peers(t, cfg, err);
    if (rc) {
        shm_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

/* ---- waking a peer */

/* This node begins to sleep or ends it. */
static void count_sleep(struct peer *p)
{
    atomic_store_explicit(&p->to->sleeps, ++p->sleeps, memory_order_seq_cst);
}

/* After something was stored for the peer. Either it sees that before it sleeps, or we see here
 * that it sleeps: of two that each store and then load, with seq_cst, one sees the other's store.
 * The stores are `newest` and `released` here and `sleeps` in count_sleep. A sleep is ended once.
 */
static void wake(struct peer *p)
{
    const char byte = BYTE_WAKE;
    uint32_t sleeps = atomic_load_explicit(&p->from->sleeps, memory_order_seq_cst);

    if (sleeps % 2 == 0 || sleeps == p->woken)
        return;
    p->woken = sleeps;
    /* A stream that takes no byte has enough to wake the peer; one that has ended says so to look.
     */
    (void)!shunt_stream_send(&p->stream, &byte, 1);
}

/* ---- sending */

static struct open_put *nth_put(struct peer *p, uint32_t n)
{
    return &p->puts[(p->first + n) % SHUNT_TRANSPORT_DEPTH];
}

/* Return: true when the peer has room for another announcement. Its word is believed only as far as
 * it can be true. */
static bool has_credit(struct peer *p)
{
    uint32_t released;

    if (p->number - p->credited < RING)
        return true;
    released = atomic_load_explicit(&p->from->released, memory_order_acquire); /* see shm_release */
    if (released - p->credited > p->number - p->credited) {
        lose(p, -EPROTO, "it released messages that were never sent");
        return false;
    }
    p->credited = released;
    return p->number - p->credited < RING;
}

static void announce(struct peer *p, const struct open_put *put)
{
    uint32_t number = ++p->number;

    /* Releases the bytes, and the imms before this one, to newest_of; seq_cst for wake. */
    atomic_store_explicit(&p->to->newest, (uint64_t)number << 32 | put->imm, memory_order_seq_cst);
    atomic_store_explicit(&p->to->imms[number % RING], put->imm, memory_order_relaxed);
    p->announced++;
    wake(p);
}

/* Copies at most `room` bytes of the put that comes next. Return: how many. */
static inline uint64_t copy(struct peer *p, struct open_put *put, uint64_t room)
{
    uint64_t left = put->bytes - put->copied;
    uint64_t bytes = left < room ? left : room;

    if (bytes > 0)
        memcpy(p->inbox + put->off + put->copied, put->src + put->copied, bytes);
    put->copied += bytes;
    if (bytes == left)
        announce(p, put);
    return bytes;
}

/* Copies what waits and may go, at most a slice. */
static void send_some(struct peer *p)
{
    uint64_t room = SLICE_BYTES;

    while (room > 0 && p->announced < p->count && p->state == UP && has_credit(p))
        room -= copy(p, nth_put(p, p->announced), room);
}

static int shm_put(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
                   uint64_t off, uint32_t imm)
{
    struct open_put *put;
    struct peer *p;

    if (peer >= t->node_count || peer == t->rank)
        return -EINVAL;
    p = &t->peers[peer];
    if (bytes > p->inbox_bytes || off > p->inbox_bytes - bytes ||
        !shunt_regions_hold(t->memory, t->memory_count, src, bytes))
        return -EINVAL;
    if (p->state != UP)
        return -EPIPE;
    if (p->count == SHUNT_TRANSPORT_DEPTH)
        return -EAGAIN;
    put = nth_put(p, p->count++);
    *put = (struct open_put){.src = src, .bytes = bytes, .off = off, .imm = imm};
    if (p->announced == p->count - 1 && has_credit(p))
        copy(p, put, SLICE_BYTES);
    t->counters.puts_sent++;
    t->counters.bytes_sent += bytes;
    t->counters.writes++;
    return 0;
}

static void finish_puts(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];

    while (p->announced > 0 && sink->count < sink->max) {
        const struct open_put *put = nth_put(p, 0);

        sink->out[sink->count++] = (struct shunt_completion){
            .event = SHUNT_TRANSPORT_SENT,
            .peer = peer,
            .imm = put->imm,
        };
        p->first = (p->first + 1) % SHUNT_TRANSPORT_DEPTH;
        p->count--;
        p->announced--;
    }
}

/* A put's time begins when a poll finds it waiting: one that goes at once needs no clock. */
static void check_deadline(struct peer *p, int64_t timeout_ns)
{
    struct open_put *put = nth_put(p, 0);

    if (p->state != UP || p->announced > 0 || p->count == 0 || timeout_ns == 0)
        return;
    if (put->deadline_ns == 0)
        put->deadline_ns = shunt_deadline_ns(timeout_ns);
    else if (shunt_now_ns() >= put->deadline_ns)
        lose(p, -ETIMEDOUT, "it has not taken a message in the time given");
}

/* ---- receiving */

/* Acquires what the peer stored before it announced the put; seq_cst for fall_asleep. */
static uint64_t newest_of(const struct peer *p)
{
    return atomic_load_explicit(&p->from->newest, memory_order_seq_cst);
}

static void receive(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct peer *p = &t->peers[peer];
    uint64_t newest = newest_of(p);
    uint32_t waiting = (uint32_t)(newest >> 32) - p->arrived;

    if (waiting > SHUNT_TRANSPORT_WINDOW - (p->arrived - p->released)) {
        lose(p, -EPROTO, "it sent more than this node gave it credit for");
        return;
    }
    for (; waiting > 0 && sink->count < sink->max; waiting--) {
        const _Atomic uint32_t *older = &p->from->imms[++p->arrived % RING];

        sink->out[sink->count++] = (struct shunt_completion){
            .event = SHUNT_TRANSPORT_ARRIVED,
            .peer = peer,
            .imm =
                waiting == 1 ? (uint32_t)newest : atomic_load_explicit(older, memory_order_relaxed),
        };
        t->counters.puts_received++;
    }
}

static void shm_release(struct shunt_transport *t, uint32_t peer, uint32_t count)
{
    struct peer *p = &t->peers[peer];

    p->released += count;
    if (p->state != UP || count == 0)
        return;
    /* Releases to has_credit: our reads of the bytes come before the peer's next. seq_cst for wake.
     */
    atomic_store_explicit(&p->to->released, p->released, memory_order_seq_cst);
    wake(p);
}

/* ---- the streams, while we are up */

/* Takes the bytes that woke us. Whatever was stored before the end is seen after it. */
static void look(struct peer *p)
{
    char bytes[256];
    ssize_t n = 1;

    /* A peer that goes on sending does not keep us here. */
    for (uint32_t i = 0; i < 4 && n > 0; i++)
        n = shunt_stream_recv(&p->stream, bytes, sizeof(bytes));
    if (n > 0 || n == -EAGAIN)
        return;
    p->state = ENDING;
    p->lost_error = n ? (int)n : -ECONNRESET;
}

static void look_at_streams(struct shunt_transport *t)
{
    int64_t now;

    now = shunt_now_ns();
    if (!t->asleep && now - t->looked_ns < LOOK_NS)
        return;
    t->looked_ns = now;
    for (uint32_t i = 0; i < t->node_count; i++) {
        struct peer *p = &t->peers[i];

        if (p->state != UP)
            continue;
        if (t->asleep)
            count_sleep(p);
        look(p);
    }
    t->asleep = false;
}

/* Everything before the end of the stream has been handed out: now the end. */
static void finish_ending(struct peer *p, const struct sink *sink)
{
    if (p->state != ENDING || sink->count == sink->max)
        return;
    lose(p, p->lost_error,
         p->lost_error == -ECONNRESET ? "it closed the connection"
                                      : strerrordesc_np(-p->lost_error));
}

/* A division would be a good part of what a poll takes. */
static uint32_t next_peer(const struct shunt_transport *t, uint32_t peer)
{
    return peer + 1 < t->node_count ? peer + 1 : 0;
}

/* Most polls find a peer so. */
static bool is_quiet(const struct peer *p)
{
    return p->state == UP && p->count == 0 && newest_of(p) >> 32 == p->arrived;
}

static uint32_t shm_poll(struct shunt_transport *t, struct shunt_completion *out, uint32_t max)
{
    struct sink sink = {.out = out, .max = max};

    /* Who polls without a pause does not read the clock each time. */
    if (t->asleep || ++t->polls % POLLS_PER_LOOK == 0)
        look_at_streams(t);
    for (uint32_t i = 0, peer = t->turn; i < t->node_count; i++, peer = next_peer(t, peer)) {
        struct peer *p = &t->peers[peer];

        if (p->state == ABSENT ? !p->lost_reason : is_quiet(p))
            continue;
        if (p->state != ABSENT)
            receive(t, peer, &sink);
        if (p->count > 0) {
            send_some(p);
            finish_puts(t, peer, &sink);
            check_deadline(p, t->put_timeout_ns);
        }
        finish_ending(p, &sink);
        if (p->lost_reason && sink.count < sink.max) {
            sink.out[sink.count++] = (struct shunt_completion){
                .event = SHUNT_TRANSPORT_LOST,
                .peer = peer,
                .error = p->lost_error,
                .reason = p->lost_reason,
            };
            p->lost_reason = NULL;
        }
    }
    t->turn = next_peer(t, t->turn);
    if (sink.count == 0)
        shunt_spin_pause(); /* the other node may run on a thread of the same core */
    return sink.count;
}

/* ---- sleeping */

static bool has_work(const struct peer *p)
{
    if (p->lost_reason || p->state == ENDING || p->announced > 0)
        return true;
    if (p->state != UP)
        return false;
    if (newest_of(p) >> 32 != p->arrived || shunt_stream_pending(&p->stream))
        return true;
    return p->count > 0 &&
           (p->number - p->credited < RING ||
            atomic_load_explicit(&p->from->released, memory_order_seq_cst) != p->credited);
}

static bool any_has_work(const struct shunt_transport *t)
{
    for (uint32_t i = 0; i < t->node_count; i++)
        if (has_work(&t->peers[i]))
            return true;
    return false;
}

/* Tells the peers that they must wake us, then looks once more: what they stored before they could
 * know is seen now (see wake). Return: false when there is something to do. */
static bool fall_asleep(struct shunt_transport *t)
{
    if (any_has_work(t))
        return false;
    for (uint32_t i = 0; i < t->node_count && !t->asleep; i++) {
        struct peer *p = &t->peers[i];

        if (p->state == UP)
            count_sleep(p);
    }
    t->asleep = true;
    return !any_has_work(t);
}

static uint32_t shm_prepare(struct shunt_transport *t, struct pollfd *fds, uint32_t max)
{
    uint32_t n = 0;

    if (max > 0 && !fall_asleep(t))
        fds[n++] = (struct pollfd){.fd = t->ready_fd, .events = POLLIN};
    for (uint32_t i = 0; i < t->node_count && n < max; i++)
        if (t->peers[i].state == UP)
            fds[n++] = (struct pollfd){.fd = t->peers[i].stream.fd, .events = POLLIN};
    return n;
}

static const struct shunt_transport_counters *shm_counters(const struct shunt_transport *t)
{
    return &t->counters;
}

const struct shunt_transport_ops shunt_transport_shm = {
    .name = "shm",
    .stream_is_secret = true,
    .needs_shared_inbox = true,
    .footprint = shm_footprint,
    .open = shm_open_transport,
    .put = shm_put,
    .release = shm_release,
    .poll = shm_poll,
    .prepare = shm_prepare,
    .counters = shm_counters,
    .close = shm_close,
};
