/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract of struct shunt_expert_io_ops, over every backend.
 */
#include "runtime/store/expert_io.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/random.h"
#include "tests/temp_file.h"

#define FILE_BYTES ((3u << 20) + 777u) /* ends inside a block, whatever the alignment */
#define READ_MAX   (32u << 10)
#define DEPTH_MAX  32u
#define GUARD      4096u /* behind each buffer */
#define FRESH      0xee
#define WAIT_MS    20000

/* One test for each backend, so that a failure or a skip names it. */
#define EACH_BACKEND(check)                                                                        \
    Test(io_uring, check, .timeout = 100)                                                          \
    {                                                                                              \
        check(&shunt_io_uring);                                                                    \
    }                                                                                              \
    Test(io_pread, check, .timeout = 100)                                                          \
    {                                                                                              \
        check(&shunt_io_pread);                                                                    \
    }

struct notices {
    char last[512];
    uint32_t count;
};

struct rig {
    const struct shunt_expert_io_ops *ops;
    struct shunt_expert_io *io;
    struct shunt_file files[2]; /* the second is not open */
    int fd;
    unsigned char *bytes; /* of the file */
    struct shunt_arena arena;
    uint32_t depth;
    struct notices notices;
};

static void take_notice(void *ctx, const char *text)
{
    struct notices *n = ctx;

    n->count++;
    strncpy(n->last, text, sizeof(n->last) - 1);
}

/* Each tag has a buffer with a guard behind it; odd tags lie in the second block. */
static unsigned char *buffer(const struct rig *r, uint32_t tag)
{
    return r->arena.blocks[tag % 2].base + (size_t)(tag / 2) * (READ_MAX + GUARD);
}

static void prepare(struct rig *r, const struct shunt_expert_io_ops *ops, uint32_t depth,
                    enum shunt_io_mode mode)
{
    uint64_t seed = 7;
    char path[32];
    void *block;

    memset(r, 0, sizeof(*r));
    r->ops = ops;
    r->depth = depth;
    r->bytes = malloc(FILE_BYTES);
    cr_assert(r->bytes);
    random_fill(&seed, r->bytes, FILE_BYTES);
    r->fd = temp_file(r->bytes, FILE_BYTES, path);
    cr_assert_eq(shunt_file_open(&r->files[0], path, mode, NULL), 0);
    r->files[1] = (struct shunt_file){.fd = -1};
    for (uint32_t i = 0; i < 2; i++)
        cr_assert_eq(shunt_arena_alloc(&r->arena, DEPTH_MAX / 2 * (READ_MAX + GUARD), "buffers",
                                       &block, NULL),
                     0);
}

static void start(struct rig *r, const struct shunt_arena_block *blocks, uint32_t block_count)
{
    const struct shunt_io_config cfg = {
        .files = r->files,
        .file_count = 2,
        .depth = r->depth,
        .blocks = blocks,
        .block_count = block_count,
        .notify = {take_notice, &r->notices},
    };
    struct shunt_error err = {0};
    int rc = r->ops->open(&r->io, &cfg, &err);

    if (rc && r->ops == &shunt_io_uring)
        cr_skip_test("%s", err.text);
    cr_assert_eq(rc, 0, "%s", err.text);
}

static void set_up(struct rig *r, const struct shunt_expert_io_ops *ops, uint32_t depth)
{
    prepare(r, ops, depth, SHUNT_IO_AUTO);
    start(r, r->arena.blocks, r->arena.block_count);
}

static void tear_down(struct rig *r)
{
    r->ops->close(r->io);
    shunt_file_close(&r->files[0]);
    close(r->fd);
    shunt_arena_fini(&r->arena);
    free(r->bytes);
}

static struct shunt_io_read read_of(const struct rig *r, uint32_t tag, uint64_t off, uint32_t bytes)
{
    return (struct shunt_io_read){.off = off,
                                  .buf = buffer(r, tag),
                                  .bytes = bytes,
                                  .file = 0,
                                  .block = tag % 3 ? tag % 2 : SHUNT_IO_NO_BLOCK,
                                  .tag = tag};
}

/* Readable within the time: a sleeper wakes. */
static bool readable(const struct rig *r, int timeout_ms)
{
    struct pollfd fd = {.fd = r->ops->fd(r->io), .events = POLLIN};

    return poll(&fd, 1, timeout_ms) == 1;
}

/* At least one completion, slept for on the backend's descriptor. */
static uint32_t take(struct rig *r, struct shunt_io_done *done, uint32_t max)
{
    int64_t deadline = shunt_now_ns() + WAIT_MS * SHUNT_NS_PER_MS;
    uint32_t n;

    cr_assert_eq(r->ops->flush(r->io), 0);
    while ((n = r->ops->poll(r->io, done, max)) == 0) {
        cr_assert_lt(shunt_now_ns(), deadline, "no completion");
        cr_assert(readable(r, WAIT_MS), "no completion");
    }
    cr_assert_leq(n, max);
    return n;
}

static int32_t take_one(struct rig *r, uint32_t tag)
{
    struct shunt_io_done done;

    cr_assert_eq(take(r, &done, 1), 1);
    cr_assert_eq(done.tag, tag);
    return done.result;
}

static int32_t read_now(struct rig *r, const struct shunt_io_read *read)
{
    cr_assert_eq(r->ops->submit(r->io, read), 0);
    return take_one(r, read->tag);
}

/* What a whole read of so many bytes brings. */
static uint32_t bytes_at(uint64_t off, uint32_t bytes)
{
    if (off >= FILE_BYTES)
        return 0;
    return FILE_BYTES - off < bytes ? (uint32_t)(FILE_BYTES - off) : bytes;
}

static bool all_are(const unsigned char *p, size_t len, unsigned char value)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != value)
            return false;
    return true;
}

/* ---- random reads */

struct asked {
    bool in_flight;
    uint64_t off;
    uint32_t bytes;
    uint32_t done; /* of them, when the drive answered short */
};

static void ask(struct rig *r, struct asked *a, uint32_t tag)
{
    struct shunt_io_read read = read_of(r, tag, a->off + a->done, a->bytes - a->done);

    read.buf = buffer(r, tag) + a->done;
    cr_assert_eq(r->ops->submit(r->io, &read), 0);
    a->in_flight = true;
}

static void ask_anything(struct rig *r, struct asked *a, uint32_t tag, uint64_t *random)
{
    uint32_t align = r->files[0].off_align;
    uint32_t unit = align > 1 ? align : 1 + random_below(random, 700);

    *a = (struct asked){.off = (uint64_t)unit * random_below(random, FILE_BYTES / unit + 2),
                        .bytes = unit * (1 + random_below(random, READ_MAX / unit))};
    memset(buffer(r, tag), FRESH, a->bytes + GUARD);
    ask(r, a, tag);
}

/* A short answer is asked again for the rest, as the contract has it. */
static void check_one(struct rig *r, struct asked *asked, const struct shunt_io_done *done,
                      uint64_t seed, uint32_t *left)
{
    struct asked *a = &asked[done->tag];
    uint32_t want, got;

    cr_assert(done->tag < r->depth && a->in_flight, "seed %lu: tag %u is not in flight", seed,
              done->tag);
    cr_assert_geq(done->result, 0, "seed %lu: %s", seed, strerror(-done->result));
    a->in_flight = false;
    want = bytes_at(a->off, a->bytes);
    got = a->done + (uint32_t)done->result;
    cr_assert_leq(got, want, "seed %lu: more than the file has", seed);
    if (got < want) {
        cr_assert_geq((uint32_t)done->result, r->files[0].off_align, "seed %lu: nothing", seed);
        a->done += (uint32_t)done->result / r->files[0].off_align * r->files[0].off_align;
        ask(r, a, done->tag);
        return;
    }
    cr_assert_eq(memcmp(buffer(r, done->tag), r->bytes + a->off, want), 0,
                 "seed %lu: wrong bytes at %lu", seed, a->off);
    cr_assert(all_are(buffer(r, done->tag) + a->bytes, GUARD, FRESH),
              "seed %lu: written behind the buffer", seed);
    --*left;
}

/* Keeps a random number of reads in flight; takes a random number of completions at a time. */
static void read_at_random(struct rig *r, uint32_t count, uint64_t seed)
{
    struct asked asked[DEPTH_MAX] = {{0}};
    struct shunt_io_done done[DEPTH_MAX];
    uint64_t random = seed;
    uint32_t left = count, begun = 0;

    while (left > 0) {
        uint32_t n;

        for (uint32_t tries = random_below(&random, 2 * r->depth); tries > 0; tries--) {
            uint32_t tag = random_below(&random, r->depth);

            if (asked[tag].in_flight || begun == count)
                continue;
            ask_anything(r, &asked[tag], tag, &random);
            begun++;
        }
        if (begun == count - left)
            continue; /* nothing is in flight */
        n = take(r, done, 1 + random_below(&random, r->depth));
        for (uint32_t i = 0; i < n; i++)
            check_one(r, asked, &done[i], seed, &left);
    }
    cr_assert_eq(r->ops->poll(r->io, done, DEPTH_MAX), 0);
}

static void reads_what_the_file_has(const struct shunt_expert_io_ops *ops)
{
    static const uint32_t depths[] = {1, 2, 8, 32};

    for (uint32_t i = 0; i < sizeof(depths) / sizeof(depths[0]); i++) {
        struct rig r;

        set_up(&r, ops, depths[i]);
        read_at_random(&r, 3000, 100 + i);
        tear_down(&r);
    }
}
EACH_BACKEND(reads_what_the_file_has)

/* Buffered files know no alignment. */
static void reads_through_the_page_cache(const struct shunt_expert_io_ops *ops)
{
    struct rig r;

    prepare(&r, ops, 16, SHUNT_IO_BUFFERED);
    start(&r, r.arena.blocks, r.arena.block_count);
    read_at_random(&r, 5000, 200);
    tear_down(&r);
}
EACH_BACKEND(reads_through_the_page_cache)

/* ---- the number in flight */

static void takes_depth_reads_and_no_more(const struct shunt_expert_io_ops *ops)
{
    struct shunt_io_done done[DEPTH_MAX];
    struct rig r;

    set_up(&r, ops, 8);
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t seen = 0;
        struct shunt_io_read read;

        for (uint32_t tag = 0; tag < 8; tag++) {
            read = read_of(&r, tag, tag * 8192, 4096);
            cr_assert_eq(r.ops->submit(r.io, &read), 0);
        }
        /* Refused before they go out and while they are under way; and nothing has changed. */
        read = read_of(&r, round % 8, 1 << 20, 8192);
        cr_assert_eq(r.ops->submit(r.io, &read), -EAGAIN);
        cr_assert_eq(r.ops->flush(r.io), 0);
        cr_assert_eq(r.ops->submit(r.io, &read), -EAGAIN);
        while (seen != 0xff) {
            uint32_t n = take(&r, done, 1 + round % 8);

            for (uint32_t i = 0; i < n; i++) {
                cr_assert(done[i].tag < 8 && !(seen >> done[i].tag & 1), "tag %u", done[i].tag);
                cr_assert_eq(done[i].result, 4096);
                cr_assert_eq(memcmp(buffer(&r, done[i].tag), r.bytes + done[i].tag * 8192, 4096),
                             0);
                seen |= 1u << done[i].tag;
            }
        }
        cr_assert_eq(r.ops->poll(r.io, done, DEPTH_MAX), 0);
    }
    tear_down(&r);
}
EACH_BACKEND(takes_depth_reads_and_no_more)

/* ---- ends and errors */

static void is_short_where_the_file_ends(const struct shunt_expert_io_ops *ops)
{
    struct shunt_io_read read;
    uint32_t align, last;
    struct rig r;

    set_up(&r, ops, 4);
    align = r.files[0].off_align > 512 ? r.files[0].off_align : 512;
    last = FILE_BYTES / align * align;
    read = read_of(&r, 1, last, READ_MAX);
    cr_expect_eq(read_now(&r, &read), (int32_t)(FILE_BYTES - last));
    cr_expect_eq(memcmp(buffer(&r, 1), r.bytes + last, FILE_BYTES - last), 0);
    read = read_of(&r, 2, last - align, 2 * align);
    cr_expect_eq(read_now(&r, &read), (int32_t)(FILE_BYTES - last + align));
    read = read_of(&r, 3, last + align, READ_MAX);
    cr_expect_eq(read_now(&r, &read), 0);
    read = read_of(&r, 0, 1ull << 40, READ_MAX);
    cr_expect_eq(read_now(&r, &read), 0);
    tear_down(&r);
}
EACH_BACKEND(is_short_where_the_file_ends)

static void answers_a_bad_read_with_an_error(const struct shunt_expert_io_ops *ops)
{
    void *nowhere = mmap(NULL, READ_MAX, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct shunt_io_read read;
    struct rig r;

    cr_assert_neq(nowhere, MAP_FAILED);
    set_up(&r, ops, 4);
    for (uint32_t round = 0; round < 3; round++) {
        read = read_of(&r, 0, 0, 4096); /* of a file that is not open */
        read.file = 1;
        cr_expect_eq(read_now(&r, &read), -EBADF);
        read = read_of(&r, 0, 0, 4096);
        read.buf = nowhere;
        read.block = SHUNT_IO_NO_BLOCK;
        cr_expect_eq(read_now(&r, &read), -EFAULT);
        if (r.files[0].direct) {
            int32_t rc;

            read = read_of(&r, 0, 1, 4096);
            rc = read_now(&r, &read);
            cr_expect(rc == -EINVAL || (rc > 0 && !memcmp(buffer(&r, 0), r.bytes + 1, (size_t)rc)));
            read = read_of(&r, 0, 0, 4096);
            read.buf = buffer(&r, 0) + 1;
            rc = read_now(&r, &read);
            cr_expect(rc == -EINVAL || (rc > 0 && !memcmp(read.buf, r.bytes, (size_t)rc)));
        }
        /* The next is none the worse for it. */
        read = read_of(&r, 3, 8192, 4096);
        cr_expect_eq(read_now(&r, &read), 4096);
        cr_expect_eq(memcmp(buffer(&r, 3), r.bytes + 8192, 4096), 0);
    }
    tear_down(&r);
    munmap(nowhere, READ_MAX);
}
EACH_BACKEND(answers_a_bad_read_with_an_error)

/* ---- waiting */

/* And not otherwise: a thread that sleeps on it would wake for nothing, again and again. */
static void is_readable_while_completions_wait(const struct shunt_expert_io_ops *ops)
{
    struct shunt_io_done done[4];
    struct shunt_io_read read;
    struct rig r;

    set_up(&r, ops, 4);
    cr_assert_not(readable(&r, 0));
    for (uint32_t tag = 0; tag < 4; tag++) {
        read = read_of(&r, tag, tag * 4096, 4096);
        cr_assert_eq(r.ops->submit(r.io, &read), 0);
    }
    cr_assert_eq(r.ops->flush(r.io), 0);
    for (uint32_t left = 4; left > 0; left--) {
        cr_assert(readable(&r, WAIT_MS), "%u wait", left);
        take(&r, done, 1);
    }
    cr_assert_not(readable(&r, 0));
    /* Taken the moment they are done, without sleeping. */
    for (uint32_t i = 0; i < 20000; i++) {
        int64_t deadline = shunt_now_ns() + WAIT_MS * SHUNT_NS_PER_MS;
        uint32_t left = 1 + i % 4;

        for (uint32_t tag = 0; tag < left; tag++) {
            read = read_of(&r, tag, 0, 4096);
            cr_assert_eq(r.ops->submit(r.io, &read), 0);
        }
        cr_assert_eq(r.ops->flush(r.io), 0);
        while ((left -= r.ops->poll(r.io, done, 4)) > 0)
            cr_assert_lt(shunt_now_ns(), deadline, "no completion");
        cr_assert_not(readable(&r, 0), "readable with nothing to take, after read %u", i);
    }
    tear_down(&r);
}
EACH_BACKEND(is_readable_while_completions_wait)

/* ---- close */

/* Once it is closed the buffers belong to the caller. */
static void closes_with_reads_in_flight(const struct shunt_expert_io_ops *ops)
{
    struct shunt_io_done done[DEPTH_MAX];
    struct rig r;

    prepare(&r, ops, 16, SHUNT_IO_AUTO);
    for (uint32_t round = 0; round < 200; round++) {
        start(&r, r.arena.blocks, r.arena.block_count);
        for (uint32_t tag = 0; tag < round % 17; tag++) {
            struct shunt_io_read read = read_of(&r, tag, tag * READ_MAX, READ_MAX);

            cr_assert_eq(r.ops->submit(r.io, &read), 0);
            if (tag == round / 17)
                cr_assert_eq(r.ops->flush(r.io), 0); /* some queued, some under way */
        }
        if (round % 5 == 0 && r.ops->flush(r.io) == 0)
            r.ops->poll(r.io, done, 3);
        cr_assert(r.ops->close(r.io));
        for (uint32_t tag = 0; tag < 16; tag++)
            memset(buffer(&r, tag), FRESH, READ_MAX);
        /* Time for what should not come. */
        cr_assert_eq(pread(r.fd, r.bytes, FILE_BYTES, 0), FILE_BYTES);
        for (uint32_t tag = 0; tag < 16; tag++)
            cr_assert(all_are(buffer(&r, tag), READ_MAX, FRESH), "round %u tag %u", round, tag);
    }
    start(&r, NULL, 0);
    tear_down(&r);
}
EACH_BACKEND(closes_with_reads_in_flight)

/* A read that is answered when the test says so: of a pipe, which only io_uring can ask. */
static void read_from_pipe(struct rig *r, int fds[2])
{
    struct shunt_io_read read;

    prepare(r, &shunt_io_uring, 4, SHUNT_IO_AUTO);
    cr_assert_eq(pipe(fds), 0);
    r->files[1].fd = fds[0];
    start(r, NULL, 0);
    read = read_of(r, 0, 0, 4096);
    read.file = 1;
    read.block = SHUNT_IO_NO_BLOCK;
    cr_assert_eq(r->ops->submit(r->io, &read), 0);
    cr_assert_eq(r->ops->flush(r->io), 0);
}

static void ignore(int number)
{
    (void)number;
}

static void *answer_later(void *arg)
{
    usleep(300000);
    cr_assert_eq(write(*(const int *)arg, "late", 4), 4);
    return NULL;
}

/* Signals that interrupt its sleep do not make it leave early. */
Test(io_uring, close_waits_through_signals, .timeout = 60)
{
    const struct itimerval often = {.it_interval.tv_usec = 10000, .it_value.tv_usec = 10000};
    const struct sigaction action = {.sa_handler = ignore};
    pthread_t thread;
    struct rig r;
    int fds[2];

    read_from_pipe(&r, fds);
    sigaction(SIGALRM, &action, NULL);
    cr_assert_eq(pthread_create(&thread, NULL, answer_later, &fds[1]), 0);
    setitimer(ITIMER_REAL, &often, NULL);
    cr_expect(r.ops->close(r.io));
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    cr_expect_eq(memcmp(buffer(&r, 0), "late", 4), 0);
    pthread_join(thread, NULL);
    start(&r, NULL, 0);
    tear_down(&r);
    close(fds[0]);
    close(fds[1]);
}

/* It says that the buffer is still spoken for. */
Test(io_uring, close_gives_up_on_a_read_that_is_not_answered, .timeout = 60)
{
    struct rig r;
    int fds[2];

    read_from_pipe(&r, fds);
    cr_expect_not(r.ops->close(r.io));
    start(&r, NULL, 0);
    tear_down(&r);
    close(fds[0]);
    close(fds[1]);
}

/* ---- registration */

/* A block that cannot be registered costs one notice and no read. */
static void reads_without_registration(const struct shunt_expert_io_ops *ops)
{
    struct shunt_arena_block bad[2];
    struct rig r;

    prepare(&r, ops, 8, SHUNT_IO_AUTO);
    bad[0] = r.arena.blocks[0];
    bad[1] = (struct shunt_arena_block){
        .base = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), .bytes = 4096};
    start(&r, bad, 2);
    cr_expect_eq(r.notices.count, r.ops == &shunt_io_uring ? 1 : 0);
    if (r.notices.count)
        cr_expect(strstr(r.notices.last, "not registered"), "%s", r.notices.last);
    read_at_random(&r, 500, 300);
    r.ops->close(r.io);
    start(&r, NULL, 0);
    cr_expect_leq(r.notices.count, 1);
    for (uint32_t tag = 0; tag < 8; tag++) {
        struct shunt_io_read read = read_of(&r, tag, tag * 4096, 4096);

        read.block = SHUNT_IO_NO_BLOCK;
        cr_expect_eq(read_now(&r, &read), 4096);
    }
    cr_expect(r.notices.count == (r.ops == &shunt_io_uring ? 1 : 0));
    tear_down(&r);
    munmap(bad[1].base, 4096);
}
EACH_BACKEND(reads_without_registration)

static void closes_nothing(const struct shunt_expert_io_ops *ops)
{
    struct rig r;

    set_up(&r, ops, 1); /* skips where there is no such backend */
    ops->close(NULL);
    tear_down(&r);
}
EACH_BACKEND(closes_nothing)
