/* SPDX-License-Identifier: Apache-2.0
 *
 * Slots and residency: how slots are dealt out, and the life of an expert against a model of it
 * that is a few arrays. What is read when is reads_test.c's.
 */
#include "runtime/store/store_impl.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/model/tiny_model.h"
#include "tests/random.h"
#include "tests/store/fake_io.h"
#include "tests/store/flat_model.h"
#include "tests/temp_file.h"

/* ---- how slots are dealt out */

/* A model of nothing but sizes. */
struct sizes {
    struct shunt_model model;
    struct shunt_layer layers[40];
};

static void size_up(struct sizes *s, uint32_t layers, uint32_t experts, uint64_t seed)
{
    uint64_t random = seed;
    uint32_t kinds = 1 + random_below(&random, layers);

    memset(s, 0, sizeof(*s));
    s->model.arch.layer_count = layers;
    s->model.arch.expert_count = experts;
    s->model.layers = s->layers;
    s->model.file.off_align = 1u << random_below(&random, 13);
    s->model.file.mem_align = 1u << random_below(&random, 13);
    for (uint32_t l = 0; l < layers; l++)
        for (uint32_t p = 0; p < SHUNT_PARTS; p++)
            s->layers[l].parts[p].stride = 1000 + 2000ull * random_below(&random, kinds);
}

static uint64_t capacity(const struct shunt_model *m, uint32_t layer)
{
    uint64_t bytes = 0;

    for (uint32_t p = 0; p < SHUNT_PARTS; p++)
        bytes += shunt_store_part_capacity(m, layer, p);
    return bytes;
}

static void check_classes(const struct sizes *s, const struct shunt_slot_plan *plan, uint64_t seed)
{
    uint64_t experts = 0;

    cr_assert(plan->class_count >= 1 && plan->class_count <= SHUNT_SLOT_CLASSES_MAX);
    for (uint32_t c = 0; c < plan->class_count; c++) {
        experts += plan->classes[c].experts;
        cr_assert(plan->classes[c].experts > 0 || c + 1 < plan->class_count, "seed %lu", seed);
        cr_assert(c == 0 || plan->classes[c].bytes < plan->classes[c - 1].bytes, "seed %lu", seed);
    }
    cr_assert_eq(experts, (uint64_t)s->model.arch.layer_count * s->model.arch.expert_count,
                 "seed %lu", seed);
    for (uint32_t l = 0; l < s->model.arch.layer_count; l++) {
        uint32_t c = shunt_store_class_of(plan, capacity(&s->model, l));

        cr_assert_geq(plan->classes[c].bytes, capacity(&s->model, l), "seed %lu", seed);
        cr_assert(c + 1 == plan->class_count || plan->classes[c + 1].bytes < capacity(&s->model, l),
                  "seed %lu: layer %u has a smaller class", seed, l);
    }
}

/* Every slot count there is: all are dealt out, in proportion, the rest to the largest. */
static void check_plan(const struct sizes *s, uint32_t slots, uint64_t seed)
{
    uint64_t experts = (uint64_t)s->model.arch.layer_count * s->model.arch.expert_count;
    uint64_t bytes = 0, sum = 0;
    struct shunt_slot_plan plan;

    shunt_store_plan(&s->model, slots, &plan);
    check_classes(s, &plan, seed);
    for (uint32_t c = 0; c < plan.class_count; c++) {
        bytes += plan.classes[c].bytes * plan.classes[c].slot_count;
        sum += plan.classes[c].slot_count;
    }
    cr_assert_eq(sum, slots, "seed %lu, %u slots", seed, slots);
    cr_assert_eq(bytes, plan.total_bytes, "seed %lu, %u slots", seed, slots);
    if (slots == experts) {
        for (uint32_t c = 0; c < plan.class_count; c++)
            cr_assert_eq(plan.classes[c].slot_count, plan.classes[c].experts, "seed %lu", seed);
        return;
    }
    cr_assert_geq(plan.classes[0].slot_count, SHUNT_SLOTS_MIN, "seed %lu, %u slots", seed, slots);
    for (uint32_t c = 1; c < plan.class_count; c++) {
        double exact = (double)slots * (double)plan.classes[c].experts / (double)experts;
        double more = plan.classes[c].slot_count - exact;

        cr_assert_leq(more, 0, "seed %lu, %u slots", seed, slots);
        cr_assert(more > -1 || plan.classes[0].slot_count == SHUNT_SLOTS_MIN, "seed %lu, %u slots",
                  seed, slots);
    }
}

Test(store, plan_deals_out_every_slot, .timeout = 100)
{
    struct sizes *s = malloc(sizeof(*s));

    cr_assert(s);
    for (uint64_t seed = 1; seed <= 300; seed++) {
        uint64_t random = ~seed;
        uint32_t layers = 1 + random_below(&random, 40);
        uint32_t experts = 1 + random_below(&random, 9);

        if (layers * experts < SHUNT_SLOTS_MIN)
            continue;
        size_up(s, layers, experts, seed);
        for (uint32_t slots = SHUNT_SLOTS_MIN; slots <= layers * experts; slots++)
            check_plan(s, slots, seed);
    }
    free(s);
}

/* A class of its own must be worth it, and a layer goes to the smallest that fits. */
Test(store, plan_has_classes_that_are_worth_it)
{
    static const uint64_t strides[] = {64000, 63000, 62500, 60000, 32000, 31900, 100};
    struct sizes *s = calloc(1, sizeof(*s));
    struct shunt_slot_plan plan;

    cr_assert(s);
    s->model.layers = s->layers;
    s->model.arch.layer_count = 7;
    s->model.arch.expert_count = 10;
    s->model.file.off_align = s->model.file.mem_align = 1;
    for (uint32_t l = 0; l < 7; l++)
        for (uint32_t p = 0; p < SHUNT_PARTS; p++)
            s->layers[l].parts[p].stride = strides[l];
    shunt_store_plan(&s->model, 35, &plan);
    cr_assert_eq(plan.class_count, 4);
    cr_expect(plan.classes[0].experts == 30 && plan.classes[0].slot_count == 15);
    cr_expect(plan.classes[1].experts == 10 && plan.classes[1].slot_count == 5);
    cr_expect(plan.classes[2].experts == 20 && plan.classes[2].slot_count == 10);
    cr_expect(plan.classes[3].experts == 10 && plan.classes[3].slot_count == 5);
    cr_expect_eq(plan.classes[0].bytes, 3 * 64000);
    cr_expect_eq(plan.classes[3].bytes, 3 * 128);
    free(s);
}

/* A part fits wherever in the file it begins, and the next part begins aligned for the drive. */
Test(store, rounding_fits_the_capacity_at_every_head)
{
    struct sizes *s = calloc(1, sizeof(*s));

    cr_assert(s);
    s->model.layers = s->layers;
    for (uint32_t align = 1; align <= 4096; align *= 2) {
        struct shunt_file *f = &s->model.file;

        f->off_align = align;
        f->mem_align = align > 512 ? 512 : align;
        for (uint64_t stride = 1; stride < 9000; stride += 1 + stride / 7) {
            uint64_t room;

            s->layers[0].parts[0].stride = stride;
            room = shunt_store_part_capacity(&s->model, 0, 0);
            cr_assert(room % align == 0 && room % f->mem_align == 0 && room % 64 == 0);
            for (uint64_t off = 3ull << 40; off <= (3ull << 40) + align; off++) {
                struct shunt_rounded r = shunt_store_round(f, off, stride);

                cr_assert(r.begin % align == 0 && r.bytes % align == 0 && r.bytes <= room);
                cr_assert(r.begin <= off && off - r.begin == r.head && r.head < align);
                cr_assert(r.need == r.head + stride && r.bytes - r.need < align);
            }
        }
    }
    free(s);
}

/* ---- the life of an expert */

#define LAYERS  3u
#define EXPERTS 6u
#define KEYS    (LAYERS * EXPERTS)

/* Three sizes of expert, each a class of its own. */
static const uint64_t small_strides[LAYERS * SHUNT_PARTS] = {700, 513, 1025, 3000, 4001,
                                                             100, 1,   4096, 5000};

struct expert {
    enum shunt_residency state;
    uint32_t holds;
    uint32_t slot; /* while it is not absent */
    uint64_t last_use, keep;
    bool guess, abandoned, placed;
};

struct world {
    struct flat_model flat;
    struct shunt_arena arena;
    struct shunt_store *store;
    struct expert experts[KEYS];
    uint64_t now;
    uint64_t begun[SHUNT_READ_CLASSES], resident, dropped;
    uint64_t useful, late, wasted;
    uint64_t seed, random;
    uint32_t op;
    bool fake;
};

#define world_assert(w, what)                                                                      \
    cr_assert(what, "seed %lu, operation %u (KEYS %u)", (w)->seed, (w)->op, KEYS)

static void open_world(struct world *w, const struct shunt_expert_io_ops *io,
                       const uint64_t *strides, uint32_t slots, uint64_t seed)
{
    struct shunt_error err = {0};
    struct shunt_store_config cfg = {.io_mode = SHUNT_IO_BUFFERED, .io = io, .slot_count = slots};
    void *other;
    int rc;

    memset(w, 0, sizeof(*w));
    w->seed = w->random = seed;
    w->fake = io == &fake_io;
    flat_init(&w->flat, LAYERS, EXPERTS, strides, seed);
    if (!w->fake) {
        shunt_file_close(&w->flat.model.file);
        cr_assert_eq(shunt_file_open(&w->flat.model.file, w->flat.path, SHUNT_IO_AUTO, NULL), 0);
        cfg.io_mode = SHUNT_IO_AUTO;
    }
    fake_io_source = (struct fake_io_source){.bytes = w->flat.bytes, .len = w->flat.len};
    cfg.model = &w->flat.model;
    cr_assert_eq(shunt_arena_alloc(&w->arena, 1, "somebody else", &other, NULL), 0);
    rc = shunt_store_open(&w->store, &w->arena, &cfg, &err);
    if (rc && io == &shunt_io_uring)
        cr_skip_test("%s", err.text);
    cr_assert_eq(rc, 0, "%s", err.text);
    if (w->fake)
        w->store->file.off_align = w->store->file.mem_align = 512;
}

static void close_world(struct world *w)
{
    shunt_store_close(w->store);
    shunt_arena_fini(&w->arena);
    flat_fini(&w->flat);
}

/* Slots that an expert fits. */
static uint32_t fitting(const struct world *w, uint32_t key)
{
    return w->store->class_end[w->store->layouts[key / EXPERTS].slot_class];
}

static bool has_free_slot(const struct world *w, uint32_t key)
{
    for (uint32_t s = 0; s < fitting(w, key); s++)
        if (w->store->slots[s].key == SHUNT_NO_KEY)
            return true;
    return false;
}

static uint64_t score(const struct world *w, const struct expert *e, enum shunt_read_class by)
{
    const struct shunt_evict_view view = {
        .last_use = e->last_use, .keep = e->keep, .placed = e->placed, .unused_guess = e->guess};

    return shunt_evict_score(&view, w->now, by);
}

static uint32_t class_of_slot(const struct world *w, uint32_t slot)
{
    uint32_t c = 0;

    while (slot >= w->store->class_end[c])
        c++;
    return c;
}

/* The least of the scores of what may go to make room for `key`. */
static uint64_t lowest_score(const struct world *w, uint32_t key, enum shunt_read_class by)
{
    uint64_t lowest = SHUNT_EVICT_NEVER;

    for (uint32_t k = 0; k < KEYS; k++) {
        const struct expert *e = &w->experts[k];

        if (e->state == SHUNT_RESIDENT && e->holds == 0 && e->slot < fitting(w, key) &&
            score(w, e, by) < lowest)
            lowest = score(w, e, by);
    }
    return lowest;
}

/* An expert in at most one slot, both tables agreeing; every slot counted. */
static void check_tables(struct world *w)
{
    const struct shunt_store *s = w->store;
    uint32_t used = 0, absent = 0;

    for (uint32_t i = 0; i < s->slot_count; i++) {
        if (s->slots[i].key == SHUNT_NO_KEY)
            continue;
        used++;
        world_assert(w, s->slots[i].key < KEYS && s->slot_of[s->slots[i].key] == i);
        world_assert(w, i < fitting(w, s->slots[i].key));
    }
    for (uint32_t k = 0; k < KEYS; k++)
        absent += shunt_store_state(s, k) == SHUNT_ABSENT;
    world_assert(w, used == KEYS - absent && used == shunt_store_slots_used(s));
    for (uint32_t c = 0, i = 0; c < s->slot_class_count; c++) {
        uint32_t free_count = 0;

        for (; i < s->class_end[c]; i++)
            free_count += s->slots[i].key == SHUNT_NO_KEY;
        world_assert(w, free_count == s->class_free[c]);
    }
}

static void check_counters(struct world *w)
{
    const struct shunt_store_counters *c = shunt_store_get_counters(w->store);
    uint64_t loading = 0, pending = 0, begun = 0;

    for (uint32_t k = 0; k < KEYS; k++) {
        loading += w->experts[k].state == SHUNT_LOADING;
        pending += w->experts[k].guess;
    }
    for (uint32_t i = 0; i < SHUNT_READ_CLASSES; i++) {
        world_assert(w, c->reads[i] == w->begun[i]);
        begun += c->reads[i];
    }
    world_assert(w, begun == w->resident + w->dropped + loading);
    world_assert(w, c->guesses_useful == w->useful && c->guesses_late == w->late &&
                        c->guesses_wasted == w->wasted);
    world_assert(w, w->useful + w->late + w->wasted + pending == c->reads[SHUNT_READ_SPECULATIVE]);
}

static void forget(struct world *w, struct expert *e)
{
    if (e->guess || e->abandoned)
        w->wasted++;
    *e = (struct expert){.placed = e->placed};
}

/* `evicted` went to make room for `key`: it was the one worth least, of equals the one in the
 * smallest slot, and no slot was free. */
static void check_eviction(struct world *w, uint32_t evicted, uint32_t key,
                           enum shunt_read_class by, uint64_t lowest, bool was_free)
{
    struct expert *e = &w->experts[evicted];

    world_assert(w, e->state == SHUNT_RESIDENT && e->holds == 0);
    world_assert(w, !was_free && score(w, e, by) == lowest && e->slot < fitting(w, key));
    world_assert(w, by == SHUNT_READ_DEMAND || e->keep < w->now);
    for (uint32_t k = 0; k < KEYS; k++) {
        const struct expert *other = &w->experts[k];

        if (other->state == SHUNT_RESIDENT && other->holds == 0 && other->slot < fitting(w, key) &&
            score(w, other, by) == lowest)
            world_assert(w, class_of_slot(w, other->slot) <= class_of_slot(w, e->slot));
    }
    forget(w, e);
}

/* `key` may have got a slot by a read of this class; nothing else has changed but for one that made
 * room. Return: true when it has. */
static bool note_begin(struct world *w, uint32_t key, enum shunt_read_class by, uint64_t lowest,
                       bool was_free)
{
    bool got = shunt_store_state(w->store, key) == SHUNT_LOADING;

    for (uint32_t k = 0; k < KEYS; k++) {
        if (k == key || shunt_store_state(w->store, k) == w->experts[k].state)
            continue;
        world_assert(w, got && shunt_store_state(w->store, k) == SHUNT_ABSENT);
        check_eviction(w, k, key, by, lowest, was_free);
    }
    world_assert(w, got == (was_free || lowest != SHUNT_EVICT_NEVER));
    if (!got)
        return false;
    w->experts[key] = (struct expert){.state = SHUNT_LOADING,
                                      .slot = w->store->slot_of[key],
                                      .last_use = w->now,
                                      .guess = by == SHUNT_READ_SPECULATIVE,
                                      .placed = w->experts[key].placed};
    w->begun[by]++;
    return true;
}

/* ---- operations */

static void acquire(struct world *w, uint32_t key)
{
    struct expert *e = &w->experts[key];
    uint64_t lowest;
    bool was_free = has_free_slot(w, key);
    int rc;

    w->now += random_below(&w->random, 3) == 0;
    lowest = lowest_score(w, key, SHUNT_READ_DEMAND);
    rc = shunt_store_acquire(w->store, key, w->now);
    if (e->state == SHUNT_ABSENT && !note_begin(w, key, SHUNT_READ_DEMAND, lowest, was_free)) {
        world_assert(w, rc == -EAGAIN);
        return;
    }
    world_assert(w, rc == (e->state == SHUNT_RESIDENT));
    if (e->guess)
        *(e->state == SHUNT_RESIDENT ? &w->useful : &w->late) += 1;
    e->guess = e->abandoned = false;
    e->holds++;
    e->last_use = w->now;
    if (e->keep < w->now)
        e->keep = w->now;
    if (e->state == SHUNT_RESIDENT)
        world_assert(w, flat_is_right(&w->flat, w->store, key));
}

static void release(struct world *w, uint32_t key)
{
    struct expert *e = &w->experts[key];

    if (e->holds == 0)
        return;
    if (e->state == SHUNT_RESIDENT)
        world_assert(w, flat_is_right(&w->flat, w->store, key));
    shunt_store_release(w->store, key);
    e->holds--;
}

static void speculate(struct world *w, uint32_t key)
{
    struct expert *e = &w->experts[key];
    uint64_t until = w->now + random_below(&w->random, 4);
    bool read = random_below(&w->random, 4) > 0;
    bool was_free = has_free_slot(w, key);
    uint64_t lowest = lowest_score(w, key, SHUNT_READ_SPECULATIVE);
    bool absent = e->state == SHUNT_ABSENT;
    int rc = shunt_store_speculate(w->store, key, w->now, until, read);

    if (absent && read)
        world_assert(w, rc == note_begin(w, key, SHUNT_READ_SPECULATIVE, lowest, was_free));
    else
        world_assert(w, rc == 0);
    if (e->state != SHUNT_ABSENT && e->keep < until)
        e->keep = until;
}

static void abandon(struct world *w, uint32_t key)
{
    struct expert *e = &w->experts[key];
    bool queued = e->state == SHUNT_LOADING && w->store->slots[e->slot].queued;

    shunt_store_abandon(w->store, key);
    e->keep = 0;
    if (!e->guess || !queued)
        return;
    /* Gone at once, or when what is in flight has come. */
    if (shunt_store_state(w->store, key) == SHUNT_ABSENT) {
        w->dropped++;
        forget(w, e);
    } else {
        world_assert(w, w->store->slots[e->slot].in_flight > 0);
        e->abandoned = true;
    }
}

static void place(struct world *w)
{
    uint8_t placed[KEYS];

    for (uint32_t k = 0; k < KEYS; k++)
        placed[k] = w->experts[k].placed = random_below(&w->random, 3) == 0;
    shunt_store_set_placement(w->store, placed);
}

static bool is_abandoned(const struct world *w, uint32_t key)
{
    uint32_t slot = w->store->slot_of[key];

    return slot != SHUNT_NO_SLOT && w->store->slots[slot].abandoned;
}

/* What a pump changed: reads that arrived, guesses that were dropped, at most one placement. */
static void note_pump(struct world *w, int rc)
{
    uint32_t placed = KEYS, evicted = KEYS;
    int resident = 0;

    for (uint32_t k = 0; k < KEYS; k++) {
        struct expert *e = &w->experts[k];
        enum shunt_residency state = shunt_store_state(w->store, k);

        if (e->abandoned && !is_abandoned(w, k)) {
            w->dropped++; /* and, if it is there again, read for the placement */
            forget(w, e);
        }
        if (state == e->state)
            continue;
        if (e->state == SHUNT_LOADING && state == SHUNT_RESIDENT) {
            world_assert(w, !e->abandoned && flat_is_right(&w->flat, w->store, k));
            e->state = SHUNT_RESIDENT;
            resident++;
            w->resident++;
        } else if (e->state == SHUNT_LOADING) { /* arrived, and at once in the placement's way */
            world_assert(w, state == SHUNT_ABSENT && evicted == KEYS);
            e->state = SHUNT_RESIDENT;
            resident++;
            w->resident++;
            evicted = k;
        } else if (e->state == SHUNT_ABSENT) {
            world_assert(w, state == SHUNT_LOADING && e->placed && placed == KEYS);
            placed = k;
        } else {
            world_assert(w, state == SHUNT_ABSENT && evicted == KEYS);
            evicted = k;
        }
    }
    world_assert(w, rc == resident);
    world_assert(w, evicted == KEYS || placed != KEYS);
    if (evicted != KEYS)
        check_eviction(w, evicted, placed, SHUNT_READ_PLACEMENT,
                       lowest_score(w, placed, SHUNT_READ_PLACEMENT), false);
    if (placed != KEYS) {
        w->experts[placed] = (struct expert){.state = SHUNT_LOADING,
                                             .slot = w->store->slot_of[placed],
                                             .last_use = w->now,
                                             .placed = true};
        w->begun[SHUNT_READ_PLACEMENT]++;
    }
}

static void pump(struct world *w)
{
    note_pump(w, shunt_store_pump(w->store));
}

/* What can go wrong without being an error: short, interrupted, "try again", one failure. */
static void answer(struct world *w)
{
    struct shunt_expert_io *io = fake_io_open;
    uint32_t index;

    if (io->flushed == 0)
        return;
    index = random_below(&w->random, io->flushed);
    switch (random_below(&w->random, 12)) {
    case 0:
        fake_io_answer(io, index, -EINTR);
        return;
    case 1:
        fake_io_answer(io, index, -EAGAIN);
        return;
    case 2:
    case 3: /* never less than a block: that is the file's end */
        fake_io_answer(io, index, 512 + (int32_t)random_below(&w->random, 5000));
        return;
    default:
        fake_io_answer(io, index, FAKE_WHOLE);
    }
}

static void operate(struct world *w)
{
    uint32_t key = random_below(&w->random, KEYS);

    switch (random_below(&w->random, 16)) {
    case 0:
    case 1:
    case 2:
        acquire(w, key);
        break;
    case 3:
    case 4:
    case 5:
    case 6:
        release(w, key);
        break;
    case 7:
    case 8:
        speculate(w, key);
        break;
    case 9:
        abandon(w, key);
        break;
    case 10:
        if (random_below(&w->random, 20) == 0)
            place(w);
        break;
    case 11:
    case 12:
    case 13:
        pump(w);
        break;
    default:
        if (w->fake)
            answer(w);
    }
}

static void check_world(struct world *w)
{
    check_tables(w);
    check_counters(w);
    for (uint32_t k = 0; k < KEYS; k++) {
        const struct expert *e = &w->experts[k];
        uint8_t left;

        if (e->state == SHUNT_ABSENT) {
            world_assert(w, e->holds == 0);
            continue;
        }
        world_assert(w, w->store->slot_of[k] == e->slot); /* never moved, held or not */
        if (e->state != SHUNT_LOADING)
            continue;
        left = shunt_store_share_left(w->store, k);
        world_assert(w, left >= 1 && left <= 254);
    }
}

/* Lets go of everything and reads what is left, in a bounded number of turns. */
static void drain(struct world *w)
{
    struct pollfd fd = {.events = POLLIN};
    int64_t deadline = shunt_now_ns() + 20 * SHUNT_NS_PER_S;

    for (uint32_t k = 0; k < KEYS; k++)
        while (w->experts[k].holds > 0)
            release(w, k);
    while (shunt_store_busy(w->store)) {
        cr_assert_lt(shunt_now_ns(), deadline, "seed %lu: reads are left", w->seed);
        if (w->fake) {
            fake_io_answer_all(fake_io_open, FAKE_WHOLE);
        } else {
            fd.fd = shunt_store_fd(w->store);
            poll(&fd, 1, 1);
        }
        pump(w);
        check_world(w);
    }
    for (uint32_t k = 0; k < KEYS; k++)
        world_assert(w, w->experts[k].state != SHUNT_LOADING);
    for (uint32_t c = 0; c < SHUNT_READ_CLASSES; c++)
        world_assert(w, w->store->bytes_in_flight[c] == 0);
}

static void live(const struct shunt_expert_io_ops *io, const uint64_t *strides, uint32_t slots,
                 uint64_t seed, uint32_t operations)
{
    struct world *w = malloc(sizeof(*w));

    cr_assert(w);
    open_world(w, io, strides, slots, seed);
    w->now = 1;
    for (w->op = 0; w->op < operations; w->op++) {
        operate(w);
        check_world(w);
    }
    drain(w);
    if (w->fake)
        world_assert(w, !fake_io_open->broken);
    close_world(w);
    free(w);
}

Test(store, lives_like_its_model, .timeout = 100)
{
    for (uint32_t slots = SHUNT_SLOTS_MIN; slots <= KEYS; slots++)
        live(&fake_io, small_strides, slots, 1000 + slots, 20000);
}

/* Matrices of several chunks, so that an expert is half read when it is abandoned or promoted. */
Test(store, lives_like_its_model_with_large_experts, .timeout = 100)
{
    static const uint64_t strides[LAYERS * SHUNT_PARTS] = {
        1100000, 100, 2200001, 700000, 700000, 700000, (1 << 20) - 511, 1 << 20, (1 << 20) + 1};

    for (uint32_t slots = 3; slots <= 12; slots += 3)
        live(&fake_io, strides, slots, 2000 + slots, 2500);
}

Test(store, lives_like_its_model_on_a_drive_with_io_uring, .timeout = 100)
{
    for (uint32_t slots = 2; slots <= 17; slots += 5)
        live(&shunt_io_uring, small_strides, slots, 3000 + slots, 6000);
}

Test(store, lives_like_its_model_on_a_drive_with_pread, .timeout = 100)
{
    for (uint32_t slots = 2; slots <= 17; slots += 5)
        live(&shunt_io_pread, small_strides, slots, 4000 + slots, 6000);
}

/* ---- a model of several weight types, from its file */

static void open_tiny(struct shunt_model **model, int *fd)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct shunt_error err = {0};
    struct gguf_writer w;
    char path[32];

    cr_assert(m);
    tiny_init(m);
    tiny_tensor(m, "blk.1.ffn_gate_exps.weight")->type = TINY_F32;
    tiny_tensor(m, "blk.1.ffn_down_exps.weight")->type = TINY_F16;
    tiny_write(m, &w);
    *fd = temp_file(w.data, w.len, path);
    cr_assert_eq(shunt_model_open(model, path, &err), 0, "%s", err.text);
    gguf_free(&w);
    free(m);
}

Test(store, reads_a_model_of_several_weight_types)
{
    unsigned char bytes[4096];
    struct shunt_arena arena = {0};
    struct shunt_error err = {0};
    struct shunt_model *model;
    struct shunt_store *store;
    struct shunt_slot_plan plan;
    int fd;

    open_tiny(&model, &fd);
    shunt_store_plan(model, 5, &plan);
    cr_expect(plan.class_count == 2 && plan.classes[0].slot_count == 3);
    cr_assert_eq(shunt_store_open(&store, &arena,
                                  &(struct shunt_store_config){.model = model, .slot_count = 5},
                                  &err),
                 0, "%s", err.text);
    cr_expect_eq(shunt_store_slot_count(store), 5);
    for (uint32_t key = 0; key < 8; key++) {
        int64_t deadline = shunt_now_ns() + 20 * SHUNT_NS_PER_S;
        struct shunt_matrix parts[SHUNT_PARTS];
        struct shunt_extent extents[3];

        cr_assert_eq(shunt_store_acquire(store, key, key + 1), 0);
        while (shunt_store_state(store, key) != SHUNT_RESIDENT) {
            cr_assert_geq(shunt_store_pump(store), 0, "%s", shunt_store_error(store)->text);
            cr_assert_lt(shunt_now_ns(), deadline);
        }
        shunt_store_view(store, key, parts);
        cr_assert_eq(shunt_model_get_expert(model, key / 4, key % 4, extents), 0);
        for (uint32_t p = 0; p < SHUNT_PARTS; p++) {
            cr_assert_leq(extents[p].len, sizeof(bytes));
            cr_assert_eq(pread(fd, bytes, extents[p].len, (off_t)extents[p].off),
                         (ssize_t)extents[p].len);
            cr_expect_eq(memcmp(parts[p].data, bytes, extents[p].len), 0, "key %u part %u", key, p);
            cr_expect(parts[p].rows == 32 && parts[p].cols == 32);
            cr_expect_eq(parts[p].row_bytes, shunt_weight_row_bytes(parts[p].type, 32));
        }
        cr_expect_eq(parts[0].type, key < 4 ? SHUNT_WEIGHT_Q8_0 : SHUNT_WEIGHT_F32);
        cr_expect_eq(parts[2].type, key < 4 ? SHUNT_WEIGHT_Q8_0 : SHUNT_WEIGHT_F16);
        shunt_store_release(store, key);
    }
    shunt_store_close(store);
    shunt_arena_fini(&arena);
    shunt_model_close(model);
    close(fd);
}

/* Heads of every size from 0 to 511: an odd stride brings them all. */
Test(store, reads_experts_at_every_head, .timeout = 100)
{
    static const uint64_t strides[SHUNT_PARTS] = {1025, 513, 511};
    uint64_t heads[SHUNT_PARTS][8] = {{0}};
    struct flat_model flat;
    struct shunt_arena arena = {0};
    struct shunt_store *store;
    uint32_t seen = 0;

    flat_init(&flat, 1, 512, strides, 5);
    cr_assert_eq(flat.len % 512 != 0, true);
    fake_io_source = (struct fake_io_source){.bytes = flat.bytes, .len = flat.len};
    cr_assert_eq(shunt_store_open(&store, &arena,
                                  &(struct shunt_store_config){.model = &flat.model,
                                                               .io_mode = SHUNT_IO_BUFFERED,
                                                               .io = &fake_io,
                                                               .slot_count = 7},
                                  NULL),
                 0);
    store->file.off_align = store->file.mem_align = 512;
    for (uint32_t key = 0; key < 512; key++) {
        cr_assert_eq(shunt_store_acquire(store, key, key + 1), 0);
        for (uint32_t p = 0; p < SHUNT_PARTS; p++) {
            uint32_t head = shunt_store_part(store, key, p).head;

            heads[p][head / 64] |= 1ull << head % 64;
        }
        cr_assert_eq(shunt_store_pump(store), 0);
        fake_io_answer_all(fake_io_open, FAKE_WHOLE);
        cr_assert_eq(shunt_store_pump(store), 1);
        cr_assert(flat_is_right(&flat, store, key), "key %u", key);
        shunt_store_release(store, key);
    }
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t p = 0; p < SHUNT_PARTS; p++)
            seen += (uint32_t)__builtin_popcountll(heads[p][i]);
    cr_expect_eq(seen, 3 * 512);
    cr_expect_not(fake_io_open->broken);
    shunt_store_close(store);
    shunt_arena_fini(&arena);
    flat_fini(&flat);
}

/* ---- what it says of itself */

Test(store, says_how_long_a_read_takes)
{
    struct world *w = malloc(sizeof(*w));

    cr_assert(w);
    open_world(w, &fake_io, small_strides, 4, 1);
    for (uint64_t rate = 1000; rate < 100ull << 30; rate = rate * 3 / 2) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            double bytes = (double)w->flat.model.layers[l].expert_bytes;
            double exact, said;

            shunt_reads_set_rate(w->store, rate, SHUNT_NS_PER_S);
            exact = bytes * 1e9 / (double)rate;
            said = (double)shunt_store_read_ns(w->store, l);
            /* Three bits of precision, rounded down; a nanosecond and a byte per second added. */
            cr_expect(said <= exact + 1 && said >= exact * 0.75 - 1, "%g for %g", said, exact);
        }
    }
    close_world(w);
    free(w);
}

Test(store, refuses_another_file_than_the_model_was_opened_from)
{
    struct shunt_arena arena = {0};
    struct shunt_store *store = NULL;
    struct shunt_error err;
    struct flat_model flat;
    const struct shunt_store_config cfg = {.model = &flat.model, .slot_count = 4};

    flat_init(&flat, LAYERS, EXPERTS, small_strides, 1);
    cr_assert_eq(ftruncate(flat.fd, 100), 0);
    cr_expect_eq(shunt_store_open(&store, &arena, &cfg, &err), -ESTALE);
    cr_expect(strstr(err.text, flat.path), "%s", err.text);
    cr_expect_null(store);
    shunt_arena_fini(&arena);
    flat_fini(&flat);
}
