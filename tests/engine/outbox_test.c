/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/outbox.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "tests/random.h"

#define TEXT_MAX 100u

static void open_box(struct shunt_outbox *o, uint32_t capacity, uint32_t at)
{
    memset(o, 0, sizeof(*o));
    o->capacity = capacity;
    o->bytes = malloc(capacity); /* exactly: a byte beyond is seen */
    cr_assert(o->bytes);
    atomic_store(&o->head, at);
    atomic_store(&o->tail, at);
}

/* Record and text both say which one it is. */
static struct shunt_outbox_record record_of(uint32_t number, char *text)
{
    uint64_t random = number;
    struct shunt_outbox_record r = {.type = number % 7 + 1,
                                    .token = (int32_t)number,
                                    .text_len = random_below(&random, TEXT_MAX + 1)};

    random_fill(&random, text, r.text_len);
    return r;
}

static bool is_record(const struct shunt_outbox_record *r, const char *text, uint32_t number)
{
    char want[TEXT_MAX];
    struct shunt_outbox_record w = record_of(number, want);

    return r->type == w.type && r->token == w.token && r->text_len == w.text_len &&
           !memcmp(text, want, w.text_len);
}

Test(outbox, says_how_much_a_record_takes)
{
    cr_expect_eq(shunt_outbox_bytes(0), 16);
    cr_expect_eq(shunt_outbox_bytes(1), 24);
    cr_expect_eq(shunt_outbox_bytes(8), 24);
    cr_expect_eq(shunt_outbox_bytes(9), 32);
}

/* Empty it has room for all of its capacity and no byte more; full for nothing. */
Test(outbox, is_full_to_the_byte)
{
    struct shunt_outbox_record r = {.type = 1};
    struct shunt_outbox o;
    char text[64] = "";

    open_box(&o, 64, 0);
    cr_expect_not(shunt_outbox_take(&o, &r, text));
    cr_expect(shunt_outbox_has_room(&o, 64) && !shunt_outbox_has_room(&o, 65));
    r.text_len = 48;
    shunt_outbox_put(&o, &r, text);
    cr_expect(shunt_outbox_has_room(&o, 0) && !shunt_outbox_has_room(&o, 1));
    cr_assert(shunt_outbox_take(&o, &r, text) && r.text_len == 48);
    cr_expect(shunt_outbox_has_room(&o, 64) && !shunt_outbox_take(&o, &r, text));
    for (uint32_t i = 0; i < 4; i++)
        shunt_outbox_put(&o, &(struct shunt_outbox_record){.type = i + 1}, NULL);
    cr_expect_not(shunt_outbox_has_room(&o, 1));
    cr_assert(shunt_outbox_take(&o, &r, text) && r.type == 1);
    cr_expect(shunt_outbox_has_room(&o, 16) && !shunt_outbox_has_room(&o, 17));
    shunt_outbox_reset(&o);
    cr_expect(!shunt_outbox_take(&o, &r, text) && shunt_outbox_has_room(&o, 64));
    free(o.bytes);
}

/* In one thread, at random, across the ends of the ring and of the counters. */
Test(outbox, behaves_like_a_queue)
{
    for (uint64_t seed = 1; seed <= 50; seed++) {
        uint32_t capacity = 256u << seed % 4;
        uint64_t random = seed;
        uint32_t put = 0, taken = 0, used = 0;
        struct shunt_outbox o;

        open_box(&o, capacity, seed % 2 ? 0 : UINT32_MAX - 8 * random_below(&random, 1000) - 7);
        for (uint32_t i = 0; i < 5000; i++) {
            struct shunt_outbox_record r;
            char text[TEXT_MAX];

            if (random_below(&random, 2)) {
                bool room;

                r = record_of(put, text);
                room = used + shunt_outbox_bytes(r.text_len) <= capacity;
                cr_assert_eq(shunt_outbox_has_room(&o, shunt_outbox_bytes(r.text_len)), room,
                             "seed %lu", seed);
                if (!room)
                    continue;
                shunt_outbox_put(&o, &r, text);
                used += shunt_outbox_bytes(r.text_len);
                put++;
            } else {
                cr_assert_eq(shunt_outbox_take(&o, &r, text), put > taken, "seed %lu", seed);
                if (put == taken)
                    continue;
                cr_assert(is_record(&r, text, taken), "seed %lu record %u", seed, taken);
                used -= shunt_outbox_bytes(r.text_len);
                taken++;
            }
        }
        free(o.bytes);
    }
}

/* ---- two threads */

#define RECORDS 200000u

struct pair {
    struct shunt_outbox o;
    _Atomic int give_up;
};

static void *write_all(void *arg)
{
    struct pair *p = arg;
    char text[TEXT_MAX];

    for (uint32_t i = 0; i < RECORDS && !atomic_load(&p->give_up);) {
        struct shunt_outbox_record r = record_of(i, text);

        if (!shunt_outbox_has_room(&p->o, shunt_outbox_bytes(r.text_len))) {
            sched_yield();
            continue;
        }
        shunt_outbox_put(&p->o, &r, text);
        i++;
    }
    return NULL;
}

Test(outbox, loses_nothing_between_two_threads, .timeout = 100)
{
    int64_t deadline = shunt_now_ns() + 60 * SHUNT_NS_PER_S;
    bool right = true;
    struct pair p = {0};
    pthread_t writer;

    open_box(&p.o, 1024, UINT32_MAX - 4096 + 1);
    cr_assert_eq(pthread_create(&writer, NULL, write_all, &p), 0);
    for (uint32_t i = 0; i < RECORDS && right;) {
        struct shunt_outbox_record r;
        char text[TEXT_MAX];

        if (shunt_outbox_take(&p.o, &r, text)) {
            right = is_record(&r, text, i++);
        } else {
            right = shunt_now_ns() < deadline;
            sched_yield();
        }
    }
    atomic_store(&p.give_up, !right);
    pthread_join(writer, NULL);
    cr_expect(right);
    free(p.o.bytes);
}
