/* SPDX-License-Identifier: Apache-2.0
 *
 * What is read when, and what becomes of answers: on a drive that answers when it is told to.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "planner/prefetch.h"
#include "runtime/base/clock.h"
#include "runtime/store/store_impl.h"
#include "tests/random.h"
#include "tests/store/fake_io.h"
#include "tests/store/flat_model.h"

#define LAYERS  2u
#define EXPERTS 6u
#define KEYS    (LAYERS * EXPERTS)
#define LOG_MAX 4096u

#define MIB (1ull << 20)

/* Layer 0: three matrices of three chunks each, of layer 1 one of a chunk and two small ones. */
static const uint64_t strides[LAYERS * SHUNT_PARTS] = {
    5 * MIB / 2 + 1, 5 * MIB / 2, 5 * MIB / 2 - 1, MIB - 5000, 999, 700};

struct bench {
    struct flat_model flat;
    struct shunt_arena arena;
    struct shunt_store *store;
    struct shunt_expert_io *io;
    struct shunt_io_read log[LOG_MAX]; /* all reads in the order they were asked */
    uint32_t log_count;
    void (*on_submit)(struct bench *b, const struct shunt_io_read *read);
    uint64_t seed;
};

static void log_read(void *ctx, const struct shunt_io_read *read)
{
    struct bench *b = ctx;

    cr_assert_lt(b->log_count, LOG_MAX);
    b->log[b->log_count++] = *read;
    if (b->on_submit)
        b->on_submit(b, read);
}

static struct bench *open_bench(uint32_t slots)
{
    struct bench *b = calloc(1, sizeof(*b));
    struct shunt_store_config cfg = {
        .io_mode = SHUNT_IO_BUFFERED, .io = &fake_io, .slot_count = slots};

    cr_assert(b);
    flat_init(&b->flat, LAYERS, EXPERTS, strides, 9);
    fake_io_source = (struct fake_io_source){
        .bytes = b->flat.bytes, .len = b->flat.len, .ctx = b, .on_submit = log_read};
    cfg.model = &b->flat.model;
    cr_assert_eq(shunt_store_open(&b->store, &b->arena, &cfg, NULL), 0);
    b->store->file.off_align = b->store->file.mem_align = 512;
    b->io = fake_io_open;
    return b;
}

static void close_bench(struct bench *b)
{
    cr_expect_not(b->io->broken);
    shunt_store_close(b->store);
    shunt_arena_fini(&b->arena);
    flat_fini(&b->flat);
    free(b);
}

/* Whose bytes are in the middle of the read; a chunk's ends may be a neighbour's. */
static uint32_t key_of(const struct bench *b, const struct shunt_io_read *read)
{
    uint64_t at = read->off + read->bytes / 2;

    for (uint32_t l = 0; l < LAYERS; l++) {
        for (uint32_t p = 0; p < SHUNT_PARTS; p++) {
            const struct shunt_expert_part *part = &b->flat.model.layers[l].parts[p];

            if (at >= part->off && at < part->off + part->stride * EXPERTS)
                return l * EXPERTS + (uint32_t)((at - part->off) / part->stride);
        }
    }
    return KEYS;
}

static uint64_t rounded_bytes(const struct bench *b, uint32_t key)
{
    uint64_t bytes = 0;

    for (uint32_t p = 0; p < SHUNT_PARTS; p++)
        bytes += shunt_store_part(b->store, key, p).bytes;
    return bytes;
}

static void set_rate(struct bench *b, uint64_t bytes_per_s)
{
    shunt_reads_set_rate(b->store, bytes_per_s, SHUNT_NS_PER_S);
}

static void pump(struct bench *b, int resident)
{
    cr_assert_eq(shunt_store_pump(b->store), resident, "%s", shunt_store_error(b->store)->text);
}

/* Answers and pumps until `key` is there. */
static void finish(struct bench *b, uint32_t key)
{
    for (uint32_t i = 0; i < 100 && shunt_store_state(b->store, key) != SHUNT_RESIDENT; i++) {
        fake_io_answer_all(b->io, FAKE_WHOLE);
        cr_assert_geq(shunt_store_pump(b->store), 0, "%s", shunt_store_error(b->store)->text);
    }
    cr_assert_eq(shunt_store_state(b->store, key), SHUNT_RESIDENT, "key %u", key);
}

/* ---- order */

Test(reads, demand_goes_whole_and_in_the_order_asked)
{
    static const uint32_t order[] = {4, 0, 8, 2};
    struct bench *b = open_bench(12);
    uint64_t left = 0;
    uint32_t at = 0;

    for (uint32_t i = 0; i < 4; i++)
        cr_assert_eq(shunt_store_acquire(b->store, order[i], 1), 0);
    for (uint32_t i = 0; i < 4; i++)
        finish(b, order[i]);
    for (uint32_t i = 0; i < b->log_count; i++) {
        if (left == 0)
            left = rounded_bytes(b, order[at++]);
        cr_assert_eq(key_of(b, &b->log[i]), order[at - 1], "read %u", i);
        cr_assert_leq(b->log[i].bytes, SHUNT_CHUNK_BYTES);
        left -= b->log[i].bytes;
    }
    cr_expect(at == 4 && left == 0);
    close_bench(b);
}

Test(reads, demand_goes_before_what_is_guessed)
{
    struct bench *b = open_bench(12);
    uint32_t first;

    set_rate(b, 2000 * MIB); /* four chunks */
    cr_assert_eq(shunt_store_speculate(b->store, 0, 1, 2, true), 1);
    cr_assert_eq(shunt_store_speculate(b->store, 1, 1, 2, true), 1);
    pump(b, 0);
    cr_expect_eq(b->log_count, 4);
    first = b->log_count;
    cr_assert_eq(shunt_store_acquire(b->store, 2, 1), 0);
    cr_assert_eq(shunt_store_acquire(b->store, 3, 1), 0);
    pump(b, 0);
    cr_expect_eq(b->log_count, first + 18); /* there is room for both */
    for (uint32_t i = first; i < b->log_count; i++)
        cr_expect_eq(key_of(b, &b->log[i]), i < first + 9 ? 2u : 3u);
    finish(b, 3);
    finish(b, 1);
    cr_expect_eq(shunt_store_state(b->store, 0), SHUNT_RESIDENT);
    close_bench(b);
}

/* A guess that turns out right goes on as what a token waits for. */
Test(reads, a_needed_guess_is_promoted)
{
    struct bench *b = open_bench(6);

    set_rate(b, MIB); /* one chunk */
    cr_assert_eq(shunt_store_speculate(b->store, 0, 1, 2, true), 1);
    cr_assert_eq(shunt_store_speculate(b->store, 1, 1, 2, true), 1);
    pump(b, 0);
    cr_expect_eq(b->log_count, 1);
    cr_assert_eq(shunt_store_acquire(b->store, 1, 2), 0); /* nothing of it has been asked */
    cr_assert_eq(shunt_store_acquire(b->store, 0, 2), 0); /* one chunk has */
    pump(b, 0);
    cr_expect_eq(b->log_count, 18);
    for (uint32_t i = 1; i < 18; i++)
        cr_expect_eq(key_of(b, &b->log[i]), i < 10 ? 1u : 0u);
    fake_io_answer_all(b->io, FAKE_WHOLE);
    pump(b, 2);
    cr_expect(flat_is_right(&b->flat, b->store, 0) && flat_is_right(&b->flat, b->store, 1));
    cr_expect_eq(shunt_store_get_counters(b->store)->guesses_late, 2);
    cr_expect_eq(b->store->bytes_in_flight[SHUNT_READ_SPECULATIVE], 0);
    close_bench(b);
}

/* What has gone to the drive must come back before the slot is another's. */
Test(reads, a_wrong_guess_is_dropped_as_far_as_it_can)
{
    struct bench *b = open_bench(2);

    set_rate(b, MIB);
    cr_assert_eq(shunt_store_speculate(b->store, 0, 1, 2, true), 1);
    cr_assert_eq(shunt_store_speculate(b->store, 1, 1, 2, true), 1);
    pump(b, 0);
    shunt_store_abandon(b->store, 1);
    cr_expect_eq(shunt_store_state(b->store, 1), SHUNT_ABSENT);
    shunt_store_abandon(b->store, 0);
    cr_expect_eq(shunt_store_state(b->store, 0), SHUNT_LOADING);
    cr_assert_eq(shunt_store_acquire(b->store, 2, 1), 0); /* takes the slot of 1 */
    cr_assert_eq(shunt_store_acquire(b->store, 3, 1), -EAGAIN);
    pump(b, 0);
    cr_expect_eq(b->log_count, 1 + 9);
    fake_io_answer(b->io, 0, FAKE_WHOLE);
    pump(b, 0);
    cr_expect_eq(b->log_count, 1 + 9); /* nothing more of 0 */
    cr_expect_eq(shunt_store_state(b->store, 0), SHUNT_ABSENT);
    cr_assert_eq(shunt_store_acquire(b->store, 3, 1), 0);
    cr_expect_eq(shunt_store_get_counters(b->store)->guesses_wasted, 2);
    finish(b, 3);
    close_bench(b);
}

/* Abandoned, and then needed after all. */
Test(reads, an_abandoned_guess_can_still_be_needed)
{
    struct bench *b = open_bench(2);

    set_rate(b, MIB);
    cr_assert_eq(shunt_store_speculate(b->store, 0, 1, 2, true), 1);
    pump(b, 0);
    shunt_store_abandon(b->store, 0);
    cr_assert_eq(shunt_store_acquire(b->store, 0, 2), 0);
    finish(b, 0);
    cr_expect(flat_is_right(&b->flat, b->store, 0));
    cr_expect_eq(b->log_count, 9);
    cr_expect_eq(shunt_store_get_counters(b->store)->guesses_late, 1);
    cr_expect_eq(shunt_store_get_counters(b->store)->guesses_wasted, 0);
    close_bench(b);
}

/* ---- how much */

static bool guessed[KEYS];

/* Bytes of guesses in flight, with this read. The fake's list has all that are not answered. */
static void check_budget(struct bench *b, const struct shunt_io_read *read)
{
    uint64_t max = shunt_prefetch_inflight_max(b->store->bytes_per_s, SHUNT_CHUNK_BYTES);
    uint64_t flying = read->bytes;

    if (!guessed[key_of(b, read)])
        return;
    for (uint32_t i = 0; i < b->io->count; i++)
        if (guessed[key_of(b, &b->io->reads[i])])
            flying += b->io->reads[i].bytes;
    cr_assert_leq(flying, max, "seed %lu", b->seed);
}

static void guess_at_random(struct bench *b, uint64_t *random)
{
    uint32_t key = random_below(random, KEYS);

    switch (random_below(random, 8)) {
    case 0: /* as slow as one chunk, as fast as six */
        set_rate(b, (100 + 290 * random_below(random, 10)) * MIB);
        break;
    case 1:
    case 2:
        if (shunt_store_speculate(b->store, key, b->store->now + 1, b->store->now, true))
            guessed[key] = true;
        break;
    case 3:
        if (guessed[key])
            shunt_store_abandon(b->store, key);
        break;
    default:
        if (b->io->flushed)
            fake_io_answer(b->io, random_below(random, b->io->flushed), FAKE_WHOLE);
        cr_assert_geq(shunt_store_pump(b->store), 0);
    }
    for (uint32_t k = 0; k < KEYS; k++)
        guessed[k] &= shunt_store_state(b->store, k) == SHUNT_LOADING;
    b->log_count = 0;
}

Test(reads, guesses_keep_to_their_budget, .timeout = 100)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct bench *b = open_bench(7);
        uint64_t random = b->seed = seed;
        uint64_t speculative;

        memset(guessed, 0, sizeof(guessed));
        b->on_submit = check_budget;
        for (uint32_t i = 0; i < 1000; i++)
            guess_at_random(b, &random);
        speculative = shunt_store_get_counters(b->store)->bytes[SHUNT_READ_SPECULATIVE];
        cr_assert_gt(speculative, 100 * MIB, "seed %lu", seed);
        close_bench(b);
    }
}

/* ---- placement */

Test(reads, placement_is_read_when_nothing_else_is)
{
    uint8_t placed[KEYS] = {1, 1, 0, 0, 0, 0, 1};
    struct bench *b = open_bench(8);

    shunt_store_set_placement(b->store, placed);
    cr_expect(shunt_store_busy(b->store));
    cr_assert_eq(shunt_store_acquire(b->store, 2, 1), 0);
    pump(b, 0);
    cr_expect_eq(shunt_store_slots_used(b->store), 1);
    pump(b, 0);
    cr_expect_eq(b->log_count, 9); /* the demand read alone, although there is room */
    cr_assert_eq(shunt_store_speculate(b->store, 8, 1, 2, true), 1);
    finish(b, 2);
    for (uint32_t i = 9; i < b->log_count; i++)
        cr_expect_eq(key_of(b, &b->log[i]), 8);
    finish(b, 8);
    pump(b, 0);
    for (uint32_t turn = 0; shunt_store_busy(b->store); turn++) {
        uint64_t flying = 0;

        cr_assert_lt(turn, 100);
        for (uint32_t i = 0; i < b->io->count; i++)
            flying += b->io->reads[i].bytes;
        cr_expect_lt(flying, 5 * MIB); /* below four, and then a chunk */
        if (b->io->flushed)
            fake_io_answer(b->io, 0, FAKE_WHOLE);
        cr_assert_geq(shunt_store_pump(b->store), 0);
    }
    for (uint32_t k = 0; k < KEYS; k++)
        cr_expect_eq(shunt_store_state(b->store, k) == SHUNT_RESIDENT,
                     placed[k] || k == 2 || k == 8);
    cr_expect_eq(shunt_store_get_counters(b->store)->reads[SHUNT_READ_PLACEMENT], 3);
    close_bench(b);
}

/* A placement that asks for more than there are slots is read as far as it goes, and ends. */
Test(reads, placement_ends_when_the_slots_are_full)
{
    uint8_t placed[KEYS];
    struct bench *b = open_bench(4);

    memset(placed, 1, sizeof(placed));
    shunt_store_set_placement(b->store, placed);
    for (uint32_t turn = 0; shunt_store_busy(b->store); turn++) {
        cr_assert_lt(turn, 1000);
        fake_io_answer_all(b->io, FAKE_WHOLE);
        cr_assert_geq(shunt_store_pump(b->store), 0);
    }
    cr_expect_eq(shunt_store_get_counters(b->store)->reads[SHUNT_READ_PLACEMENT], 4);
    cr_expect_eq(shunt_store_slots_used(b->store), 4);
    close_bench(b);
}

/* ---- answers */

Test(reads, goes_on_after_short_and_interrupted_answers)
{
    static const int32_t answers[] = {512, -EINTR, 513, -EAGAIN, 1023, 4096, 100000, 700000};
    struct bench *b = open_bench(4);
    uint32_t i = 0;

    for (uint32_t key = 0; key < KEYS; key += 3) {
        cr_assert_eq(shunt_store_acquire(b->store, key, key + 1), 0);
        while (shunt_store_state(b->store, key) != SHUNT_RESIDENT) {
            cr_assert_lt(i, 100000);
            if (b->io->flushed)
                fake_io_answer(b->io, i % b->io->flushed, answers[i * 7 % 8]);
            i++;
            cr_assert_geq(shunt_store_pump(b->store), 0, "%s", shunt_store_error(b->store)->text);
            b->log_count = 0;
        }
        cr_expect(flat_is_right(&b->flat, b->store, key), "key %u", key);
        shunt_store_release(b->store, key);
    }
    close_bench(b);
}

static void never_now(void *ctx, struct shunt_expert_io *io)
{
    (void)ctx;
    fake_io_answer_all(io, -EAGAIN);
}

/* A drive that always says "not now" is not asked for ever. */
Test(reads, gives_up_when_it_is_never_a_good_moment)
{
    struct bench *b = open_bench(4);
    uint32_t pumps = 0;

    fake_io_source.on_poll = never_now;
    fake_io_source.on_submit = NULL;
    cr_assert_eq(shunt_store_speculate(b->store, 0, 1, 2, true), 1);
    while (shunt_store_pump(b->store) == 0)
        cr_assert_lt(pumps++, 100000);
    cr_expect_eq(shunt_store_error(b->store)->code, -EAGAIN);
    cr_expect_gt(pumps, 100);
    close_bench(b);
}

/* What the text of a failure names. */
static void expect_failure(struct bench *b, int code, uint64_t at, const char *what)
{
    const struct shunt_error *err = shunt_store_error(b->store);
    char offset[32];

    snprintf(offset, sizeof(offset), "offset %" PRIu64, at);
    cr_expect_eq(err->code, code, "%s", err->text);
    cr_expect(strstr(err->text, b->flat.path) && strstr(err->text, offset) &&
                  strstr(err->text, what),
              "%s; should have '%s'", err->text, offset);
    cr_expect_eq(shunt_store_pump(b->store), code); /* and so it stays */
}

Test(reads, tries_again_before_it_gives_up)
{
    for (uint32_t failures = 1; failures <= 3; failures++) {
        struct bench *b = open_bench(4);
        uint64_t off;

        cr_assert_eq(shunt_store_acquire(b->store, 7, 1), 0);
        pump(b, 0);
        off = b->log[1].off;
        for (uint32_t i = 0; i < failures; i++) {
            uint32_t at = 0;

            while (b->io->reads[at].off != off)
                at++;
            fake_io_answer(b->io, at, -EIO);
            cr_assert_eq(shunt_store_pump(b->store), i < 2 ? 0 : -EIO);
        }
        if (failures < 3) {
            finish(b, 7);
            cr_expect(flat_is_right(&b->flat, b->store, 7));
        } else {
            expect_failure(b, -EIO, off, strerror(EIO));
        }
        cr_expect_eq(b->log_count, 3 + (failures < 3 ? failures : 2));
        close_bench(b);
    }
}

/* Each read has its own tries: a drive that fails everything once loses nothing. */
Test(reads, counts_the_tries_of_each_read)
{
    struct bench *b = open_bench(4);

    cr_assert_eq(shunt_store_acquire(b->store, 0, 1), 0);
    pump(b, 0);
    for (uint32_t i = 0; i < 2; i++) {
        fake_io_answer_all(b->io, -EIO);
        pump(b, 0);
    }
    fake_io_answer_all(b->io, FAKE_WHOLE);
    pump(b, 1);
    cr_expect_eq(b->log_count, 3 * 9);
    close_bench(b);
}

/* Somebody cut the file: no bytes, fewer than a block, or a block and then none. */
Test(reads, says_where_a_cut_file_ends)
{
    static const int32_t left[] = {0, 100, 512, 1024 + 3};

    for (uint32_t i = 0; i < 4; i++) {
        struct bench *b = open_bench(4);
        uint64_t end;
        int rc = 0;

        cr_assert_eq(shunt_store_acquire(b->store, 3, 1), 0);
        pump(b, 0);
        end = fake_io_source.len = b->io->reads[0].off + (uint64_t)left[i];
        for (uint32_t turn = 0; turn < 5 && rc == 0; turn++) {
            fake_io_answer(b->io, turn ? b->io->flushed - 1 : 0, FAKE_WHOLE);
            rc = shunt_store_pump(b->store);
        }
        cr_expect_eq(rc, -EBADMSG);
        expect_failure(b, -EBADMSG, end, "cut");
        close_bench(b);
    }
}

Test(reads, says_when_the_kernel_takes_no_reads)
{
    struct bench *b = open_bench(4);

    cr_assert_eq(shunt_store_acquire(b->store, 3, 1), 0);
    fake_io_source.flush_result = -ENOMEM;
    cr_expect_eq(shunt_store_pump(b->store), -ENOMEM);
    fake_io_source.flush_result = 0;
    cr_expect_eq(shunt_store_pump(b->store), -ENOMEM);
    cr_expect(strstr(shunt_store_error(b->store)->text, b->flat.path));
    close_bench(b);
}

/* ---- what it says meanwhile */

Test(reads, says_what_share_is_left)
{
    struct bench *b = open_bench(4);
    uint8_t before = 255;

    cr_assert_eq(shunt_store_acquire(b->store, 0, 1), 0);
    cr_expect_eq(shunt_store_share_left(b->store, 0), 254);
    pump(b, 0);
    while (b->io->flushed > 1) {
        uint8_t left;

        fake_io_answer(b->io, b->io->flushed / 2, FAKE_WHOLE);
        pump(b, 0);
        left = shunt_store_share_left(b->store, 0);
        cr_expect(left < before && left >= 1, "%u after %u", left, before);
        before = left;
    }
    cr_expect_leq(before, 254 / 7);
    close_bench(b);
}

/* Every byte asked is counted once, in the class it went out in. */
Test(reads, counts_bytes)
{
    struct bench *b = open_bench(6);
    const struct shunt_store_counters *c = shunt_store_get_counters(b->store);
    uint64_t whole = rounded_bytes(b, 0);

    set_rate(b, MIB);
    cr_assert_eq(shunt_store_speculate(b->store, 0, 1, 2, true), 1);
    pump(b, 0);
    cr_expect_eq(c->bytes[SHUNT_READ_SPECULATIVE], MIB);
    cr_assert_eq(shunt_store_acquire(b->store, 0, 2), 0);
    finish(b, 0);
    cr_expect_eq(c->bytes[SHUNT_READ_SPECULATIVE], MIB);
    cr_expect_eq(c->bytes[SHUNT_READ_DEMAND], whole - MIB);
    cr_expect_eq(c->reads[SHUNT_READ_DEMAND], 0); /* it was begun as a guess */
    cr_expect_eq(b->io->bytes, whole);
    close_bench(b);
}

static void answer_one(void *ctx, struct shunt_expert_io *io)
{
    (void)ctx;
    if (io->flushed > 0)
        fake_io_answer(io, 0, io->count % 2 ? FAKE_WHOLE : -EIO);
}

/* What was handed to the drive has been read when the store has settled, whatever came of it, and
 * no more is asked; a drive that does not answer is waited for as long as was said. */
Test(reads, settles_before_it_is_closed)
{
    const struct shunt_patience short_one = {.deadline_ns = shunt_now_ns() + 50 * SHUNT_NS_PER_MS};
    const struct shunt_patience long_one = {.deadline_ns = shunt_now_ns() + 60 * SHUNT_NS_PER_S};
    struct bench *b = open_bench(8);

    for (uint32_t key = 0; key < 4; key++)
        cr_assert_eq(shunt_store_acquire(b->store, key, 1), 0);
    pump(b, 0);
    cr_assert_gt(b->io->flushed, 4);
    shunt_store_settle(b->store, &short_one);
    cr_expect_gt(b->io->count, 0);
    fake_io_source.on_poll = answer_one;
    shunt_store_settle(b->store, &long_one);
    cr_expect_eq(b->io->count, 0);
    cr_expect_eq(b->io->bytes, shunt_store_get_counters(b->store)->bytes[SHUNT_READ_DEMAND]);
    shunt_store_settle(b->store, &short_one); /* nothing to wait for */
    close_bench(b);
}
