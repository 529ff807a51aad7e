/* SPDX-License-Identifier: Apache-2.0
 *
 * The weights that are read once: where they are laid out, and reading them from drives that
 * answer well, badly and not at all.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/store/store_impl.h"
#include "tests/random.h"
#include "tests/store/fake_io.h"
#include "tests/store/flat_model.h"

#define READS 40u
#define GUARD 64u

static const uint64_t strides[SHUNT_PARTS] = {700001, 512, 400000};

struct bench {
    struct flat_model flat;
    struct shunt_arena arena;
    struct shunt_store *store;
    unsigned char *room; /* laid out in, with a guard behind it */
    uint64_t room_bytes;
    struct shunt_dense_read reads[READS];
    _Atomic int abort;
    uint64_t answers; /* of the fake */
    uint64_t random;
};

static void open_bench(struct bench *b, const struct shunt_expert_io_ops *io)
{
    struct shunt_store_config cfg = {.io = io, .slot_count = 2};
    struct shunt_error err = {0};
    int rc;

    memset(b, 0, sizeof(*b));
    flat_init(&b->flat, 1, 4, strides, 11);
    fake_io_source = (struct fake_io_source){.bytes = b->flat.bytes, .len = b->flat.len, .ctx = b};
    cfg.model = &b->flat.model;
    if (io == &fake_io) {
        cfg.io_mode = SHUNT_IO_BUFFERED;
    } else {
        shunt_file_close(&b->flat.model.file);
        cr_assert_eq(shunt_file_open(&b->flat.model.file, b->flat.path, SHUNT_IO_AUTO, NULL), 0);
    }
    rc = shunt_store_open(&b->store, &b->arena, &cfg, &err);
    if (rc && io == &shunt_io_uring)
        cr_skip_test("%s", err.text);
    cr_assert_eq(rc, 0, "%s", err.text);
    if (io == &fake_io)
        b->store->file.off_align = b->store->file.mem_align = 512;
}

static void close_bench(struct bench *b)
{
    shunt_store_close(b->store);
    shunt_arena_fini(&b->arena);
    flat_fini(&b->flat);
    free(b->room);
}

/* Extents of all sizes, one in five left out, the last one up to the file's end. */
static void lay_out(struct bench *b, uint64_t seed)
{
    const struct shunt_file *file = &b->store->file;
    uint64_t random = seed;
    void *room;

    for (uint32_t i = 0; i < READS; i++) {
        uint64_t len = random_below(&random, 1u << (4 + i % 18));
        uint64_t off = random_below(&random, (uint32_t)(b->flat.len - len));

        if (i + 1 == READS)
            off = b->flat.len - ++len;
        b->reads[i] = (struct shunt_dense_read){.off = off, .bytes = i % 5 ? len : 0};
    }
    b->room_bytes = shunt_store_lay_out_dense(file, NULL, b->reads, READS);
    cr_assert_eq(posix_memalign(&room, 4096, b->room_bytes + GUARD), 0);
    free(b->room);
    b->room = room;
    memset(room, 0x77, b->room_bytes + GUARD);
    cr_assert_eq(shunt_store_lay_out_dense(file, room, b->reads, READS), b->room_bytes);
}

static int load(struct bench *b, int64_t within_ns, struct shunt_error *err)
{
    const struct shunt_patience patience = {.deadline_ns = shunt_now_ns() + within_ns,
                                            .abort = &b->abort};

    return shunt_store_load_dense(b->store, b->reads, READS, &patience, err);
}

static void check_bytes(const struct bench *b, uint64_t seed)
{
    uint64_t device = b->store->file.probed_bytes;

    for (uint32_t i = 0; i < READS; i++) {
        if (b->reads[i].bytes == 0)
            continue;
        cr_assert_eq(memcmp(b->reads[i].data, b->flat.bytes + b->reads[i].off, b->reads[i].bytes),
                     0, "seed %lu, read %u", seed, i);
        device += shunt_store_round(&b->store->file, b->reads[i].off, b->reads[i].bytes).bytes;
    }
    for (uint32_t i = 0; i < GUARD; i++)
        cr_assert_eq(b->room[b->room_bytes + i], 0x77, "seed %lu", seed);
    cr_expect_eq(shunt_store_get_counters(b->store)->bytes_startup, device);
}

/* ---- layout */

static int by_address(const void *x, const void *y)
{
    const struct shunt_dense_read *a = x, *b = y;

    return (a->data > b->data) - (a->data < b->data);
}

Test(store_open, weights_lie_apart_and_as_the_drive_wants)
{
    struct bench b;

    open_bench(&b, &fake_io);
    for (uint64_t seed = 1; seed <= 100; seed++) {
        const unsigned char *end;

        b.store->file.off_align = 1u << seed % 13;
        b.store->file.mem_align = 1u << seed % 11;
        lay_out(&b, seed);
        qsort(b.reads, READS, sizeof(b.reads[0]), by_address);
        end = b.room;
        for (uint32_t i = 0; i < READS; i++) {
            const struct shunt_dense_read *read = &b.reads[i];
            struct shunt_rounded r = shunt_store_round(&b.store->file, read->off, read->bytes);
            const unsigned char *begin = (const unsigned char *)read->data - r.head;

            if (read->bytes == 0) {
                cr_assert_null(read->data);
                continue;
            }
            cr_assert(begin >= end && (uintptr_t)begin % b.store->file.mem_align == 0,
                      "seed %lu read %u", seed, i);
            end = begin + r.bytes;
        }
        cr_assert_leq(end, b.room + b.room_bytes, "seed %lu", seed);
    }
    close_bench(&b);
}

/* ---- drives */

static void loads_from(const struct shunt_expert_io_ops *io)
{
    struct bench b;

    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct shunt_error err = {0};

        open_bench(&b, io);
        lay_out(&b, seed);
        cr_assert_eq(load(&b, 60 * SHUNT_NS_PER_S, &err), 0, "seed %lu: %s", seed, err.text);
        check_bytes(&b, seed);
        close_bench(&b);
    }
}

Test(store_open, loads_with_io_uring, .timeout = 100)
{
    loads_from(&shunt_io_uring);
}

Test(store_open, loads_with_pread, .timeout = 100)
{
    loads_from(&shunt_io_pread);
}

/* Answers one read of those that wait in one of the ways that are no failure. */
static void answer_somehow(void *ctx, struct shunt_expert_io *io)
{
    static const int32_t answers[] = {FAKE_WHOLE, -EINTR, 512, FAKE_WHOLE, -EAGAIN, 70001};
    struct bench *b = ctx;

    if (io->flushed > 0)
        fake_io_answer(io, random_below(&b->random, io->flushed),
                       answers[random_below(&b->random, 6)]);
}

Test(store_open, loads_through_short_and_interrupted_answers, .timeout = 100)
{
    struct bench b;

    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct shunt_error err = {0};

        open_bench(&b, &fake_io);
        lay_out(&b, seed);
        b.random = seed;
        fake_io_source.on_poll = answer_somehow;
        cr_assert_eq(load(&b, 60 * SHUNT_NS_PER_S, &err), 0, "seed %lu: %s", seed, err.text);
        cr_assert_not(fake_io_open->broken, "seed %lu", seed);
        check_bytes(&b, seed);
        close_bench(&b);
    }
}

Test(store_open, loads_nothing_at_once)
{
    const struct shunt_patience none = {0};
    struct bench b;

    open_bench(&b, &fake_io);
    cr_expect_eq(load(&b, 0, NULL), 0);
    cr_expect_eq(shunt_store_load_dense(b.store, NULL, 0, &none, NULL), 0);
    close_bench(&b);
}

/* ---- what goes wrong */

static void fail_one(void *ctx, struct shunt_expert_io *io)
{
    struct bench *b = ctx;

    while (io->flushed > 0)
        fake_io_answer(io, 0, b->answers++ == 5 ? -EIO : FAKE_WHOLE);
}

Test(store_open, names_file_and_offset_of_a_failed_read)
{
    struct shunt_error err = {0};
    struct bench b;

    open_bench(&b, &fake_io);
    lay_out(&b, 1);
    fake_io_source.on_poll = fail_one;
    cr_expect_eq(load(&b, 60 * SHUNT_NS_PER_S, &err), -EIO);
    cr_expect(strstr(err.text, b.flat.path) && strstr(err.text, "offset ") &&
                  strstr(err.text, strerror(EIO)),
              "%s", err.text);
    close_bench(&b);
}

static void answer_whole(void *ctx, struct shunt_expert_io *io)
{
    (void)ctx;
    fake_io_answer_all(io, FAKE_WHOLE);
}

Test(store_open, says_where_a_cut_file_ends)
{
    static const uint32_t missing[] = {1, 511, 512, 5000, 1500000};

    for (uint32_t i = 0; i < sizeof(missing) / sizeof(missing[0]); i++) {
        struct shunt_error err = {0};
        char offset[32];
        struct bench b;

        open_bench(&b, &fake_io);
        memset(b.reads, 0, sizeof(b.reads));
        b.reads[3] = (struct shunt_dense_read){.off = 12345, .bytes = b.flat.len - 12345};
        b.room_bytes = shunt_store_lay_out_dense(&b.store->file, NULL, b.reads, READS);
        b.room = aligned_alloc(4096, (b.room_bytes + 4095) / 4096 * 4096);
        cr_assert(b.room);
        shunt_store_lay_out_dense(&b.store->file, b.room, b.reads, READS);
        fake_io_source.on_poll = answer_whole;
        fake_io_source.len = b.flat.len - missing[i];
        cr_expect_eq(load(&b, 60 * SHUNT_NS_PER_S, &err), -EBADMSG, "%u missing", missing[i]);
        snprintf(offset, sizeof(offset), "offset %" PRIu64, fake_io_source.len);
        cr_expect(strstr(err.text, b.flat.path) && strstr(err.text, "cut"), "%s", err.text);
        /* The last chunk knows; one before it sees only that nothing came. */
        if (missing[i] < 600000)
            cr_expect(strstr(err.text, offset), "%s; should have '%s'", err.text, offset);
        close_bench(&b);
    }
}

static void never_ready(void *ctx, struct shunt_expert_io *io)
{
    (void)ctx;
    fake_io_answer_all(io, -EAGAIN);
}

/* A drive that does not answer, and one that always says "try again". */
Test(store_open, does_not_wait_past_its_deadline, .timeout = 20)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct shunt_error err = {0};
        struct bench b;

        open_bench(&b, &fake_io);
        lay_out(&b, 1);
        fake_io_source.on_poll = i ? never_ready : NULL;
        cr_expect_eq(load(&b, 50 * SHUNT_NS_PER_MS, &err), -ETIMEDOUT);
        cr_expect(strstr(err.text, b.flat.path) && strstr(err.text, "--ready-timeout"), "%s",
                  err.text);
        close_bench(&b);
    }
}

static void abort_later(void *ctx, struct shunt_expert_io *io)
{
    struct bench *b = ctx;

    (void)io;
    b->abort = ++b->answers > 3;
}

Test(store_open, ends_when_it_is_told_to, .timeout = 20)
{
    struct bench b;

    open_bench(&b, &fake_io);
    lay_out(&b, 1);
    fake_io_source.on_poll = abort_later;
    cr_expect_eq(load(&b, 60 * SHUNT_NS_PER_S, NULL), -ECANCELED);
    close_bench(&b);
}

Test(store_open, says_when_the_kernel_takes_no_reads, .timeout = 20)
{
    struct bench b;

    open_bench(&b, &fake_io);
    lay_out(&b, 1);
    fake_io_source.flush_result = -ENOMEM;
    cr_expect_eq(load(&b, 60 * SHUNT_NS_PER_S, NULL), -ENOMEM);
    close_bench(&b);
}

/* ---- the backend */

static int refuse(struct shunt_expert_io **io, const struct shunt_io_config *cfg,
                  struct shunt_error *err)
{
    (void)io;
    (void)cfg;
    return shunt_error_set(err, -EPERM, "refused for the test");
}

/* A backend that was asked for by name is not replaced by another. */
Test(store_open, takes_the_backend_it_is_given)
{
    const struct shunt_expert_io_ops refused = {.name = "refused", .open = refuse};
    struct shunt_arena arena = {0};
    struct shunt_store *store = NULL;
    struct shunt_error err = {0};
    struct flat_model flat;

    flat_init(&flat, 1, 4, strides, 11);
    cr_expect_eq(shunt_store_open(&store, &arena,
                                  &(struct shunt_store_config){.model = &flat.model,
                                                               .io = &refused,
                                                               .io_mode = SHUNT_IO_BUFFERED,
                                                               .slot_count = 2},
                                  &err),
                 -EPERM);
    cr_expect(strstr(err.text, "refused for the test"), "%s", err.text);
    cr_expect_null(store);
    shunt_arena_fini(&arena);
    cr_assert_eq(shunt_store_open(&store, &arena,
                                  &(struct shunt_store_config){.model = &flat.model,
                                                               .io = &shunt_io_pread,
                                                               .io_mode = SHUNT_IO_BUFFERED,
                                                               .slot_count = 2},
                                  &err),
                 0);
    cr_expect_str_eq(shunt_store_io_name(store), "pread");
    shunt_store_close(store);
    shunt_store_close(NULL);
    shunt_arena_fini(&arena);
    flat_fini(&flat);
}

/* A model that was opened buffered, because O_DIRECT failed for a moment, has smaller slots. */
Test(store_open, refuses_a_drive_that_wants_more_room_than_was_planned)
{
    struct shunt_arena arena = {0};
    struct shunt_store *store = NULL;
    struct shunt_error err = {0};
    struct flat_model flat;
    struct shunt_file file;
    struct shunt_store_config cfg = {.model = &flat.model, .slot_count = 2};

    flat_init(&flat, 1, 4, strides, 11);
    cr_assert_eq(shunt_file_open(&file, flat.path, SHUNT_IO_AUTO, NULL), 0);
    if (file.off_align == 1)
        cr_skip_test("the working folder has no O_DIRECT");
    flat.model.file.off_align = flat.model.file.mem_align = 1;
    cr_expect_eq(shunt_store_open(&store, &arena, &cfg, &err), -ESTALE, "%s", err.text);
    cr_expect(strstr(err.text, flat.path), "%s", err.text);
    cfg.io_mode = SHUNT_IO_BUFFERED;
    cr_assert_eq(shunt_store_open(&store, &arena, &cfg, &err), 0, "%s", err.text);
    shunt_store_close(store);
    shunt_arena_fini(&arena);
    shunt_file_close(&file);
    flat_fini(&flat);
}
