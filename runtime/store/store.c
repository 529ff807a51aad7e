/* SPDX-License-Identifier: Apache-2.0
 *
 * Slots and residency.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/carve.h"
#include "runtime/base/clock.h"
#include "runtime/store/store_impl.h"

#define SLOT_ALIGN 64u /* a cache line: two slots never share one */

/* A smaller class must save this share of a slot (1/32, 3 %) to be worth its own pool. */
#define CLASS_GAIN_DIVISOR 32u

/* ---- slot classes */

struct shunt_rounded shunt_store_round(const struct shunt_file *file, uint64_t off, uint64_t len)
{
    uint64_t begin = off / file->off_align * file->off_align;
    uint64_t end = shunt_align_up(off + len, file->off_align);

    return (struct shunt_rounded){
        .begin = begin,
        .bytes = end - begin,
        .need = off + len - begin,
        .head = (uint32_t)(off - begin),
    };
}

struct shunt_rounded shunt_store_part(const struct shunt_store *store, uint32_t key, uint32_t part)
{
    const struct shunt_expert_part *p =
        &store->model->layers[key / store->expert_count].parts[part];
    uint32_t expert = key % store->expert_count;

    return shunt_store_round(&store->file, p->off + expert * p->stride, p->stride);
}

/* Room for one matrix, wherever in the file it begins. */
uint64_t shunt_store_part_capacity(const struct shunt_model *model, uint32_t layer, uint32_t p)
{
    const struct shunt_file *file = &model->file;
    const struct shunt_expert_part *part = &model->layers[layer].parts[p];
    uint64_t align = file->off_align > file->mem_align ? file->off_align : file->mem_align;

    if (align < SLOT_ALIGN)
        align = SLOT_ALIGN;
    return shunt_align_up(part->stride + file->off_align - 1, align);
}

static uint64_t layer_capacity(const struct shunt_model *model, uint32_t layer)
{
    uint64_t bytes = 0;

    for (uint32_t p = 0; p < SHUNT_PARTS; p++)
        bytes += shunt_store_part_capacity(model, layer, p);
    return bytes;
}

uint32_t shunt_store_class_of(const struct shunt_slot_plan *plan, uint64_t bytes)
{
    uint32_t c = plan->class_count - 1;

    while (c > 0 && plan->classes[c].bytes < bytes)
        c--;
    return c;
}

/* Classes in descending size, each worth its own pool. */
static void find_classes(const struct shunt_model *model, struct shunt_slot_plan *plan)
{
    uint64_t below = UINT64_MAX;

    while (plan->class_count < SHUNT_SLOT_CLASSES_MAX) {
        uint64_t largest = 0;

        for (uint32_t l = 0; l < model->arch.layer_count; l++) {
            uint64_t bytes = layer_capacity(model, l);

            if (bytes > largest && bytes <= below)
                largest = bytes;
        }
        if (largest == 0)
            break;
        plan->classes[plan->class_count++].bytes = largest;
        below = largest - largest / CLASS_GAIN_DIVISOR - 1;
    }
    for (uint32_t l = 0; l < model->arch.layer_count; l++)
        plan->classes[shunt_store_class_of(plan, layer_capacity(model, l))].experts +=
            model->arch.expert_count;
}

void shunt_store_plan(const struct shunt_model *model, uint32_t slot_count,
                      struct shunt_slot_plan *plan)
{
    uint64_t experts = (uint64_t)model->arch.layer_count * model->arch.expert_count;
    uint32_t left = slot_count;

    memset(plan, 0, sizeof(*plan));
    find_classes(model, plan);
    /* The smaller classes get their share rounded down; what remains goes to the largest, which
     * fits every expert. So the largest always has the two slots without which a layer of large
     * experts could not run. */
    for (uint32_t c = plan->class_count; c-- > 1;) {
        uint64_t share = slot_count * plan->classes[c].experts / experts;

        if (left - share < SHUNT_SLOTS_MIN && slot_count < experts)
            share = left > SHUNT_SLOTS_MIN ? left - SHUNT_SLOTS_MIN : 0;
        plan->classes[c].slot_count = (uint32_t)share;
        left -= (uint32_t)share;
    }
    plan->classes[0].slot_count = left;
    for (uint32_t c = 0; c < plan->class_count; c++)
        plan->total_bytes += plan->classes[c].bytes * plan->classes[c].slot_count;
}

/* ---- slots */

void shunt_store_free_slot(struct shunt_store *store, uint32_t slot)
{
    struct shunt_slot *s = &store->slots[slot];
    uint32_t c = 0;

    if (s->guess) {
        store->counters.guesses_wasted++;
        store->counters.guesses_pending--;
    }
    store->slot_of[s->key] = SHUNT_NO_SLOT;
    s->key = SHUNT_NO_KEY;
    s->state = SHUNT_ABSENT;
    s->guess = false;
    s->abandoned = false;
    s->keep = 0;
    while (slot >= store->class_end[c])
        c++;
    store->class_free[c]++;
    store->slots_used--;
}

/* A free slot of the class, else of a larger one. */
static uint32_t find_free(const struct shunt_store *store, uint32_t slot_class)
{
    for (uint32_t c = slot_class + 1; c-- > 0;) {
        if (store->class_free[c] == 0)
            continue;
        for (uint32_t i = store->class_end[c]; i-- > 0;)
            if (store->slots[i].key == SHUNT_NO_KEY)
                return i;
    }
    return SHUNT_NO_SLOT;
}

/* The slot that is worth least to keep, the smaller one of equals. */
static uint32_t find_victim(const struct shunt_store *store, uint32_t slot_class,
                            enum shunt_read_class by)
{
    uint64_t lowest = SHUNT_EVICT_NEVER;
    uint32_t victim = SHUNT_NO_SLOT;

    for (uint32_t i = store->class_end[slot_class]; i-- > 0;) {
        const struct shunt_slot *s = &store->slots[i];
        struct shunt_evict_view view;
        uint64_t score;

        if (s->state != SHUNT_RESIDENT || s->holds > 0)
            continue;
        view = (struct shunt_evict_view){
            .last_use = s->last_use,
            .keep = s->keep,
            .placed = store->placed[s->key],
            .unused_guess = s->guess,
        };
        score = shunt_evict_score(&view, store->now, by);
        if (score < lowest) {
            lowest = score;
            victim = i;
        }
    }
    return victim;
}

uint32_t shunt_store_take_slot(struct shunt_store *store, uint32_t key, enum shunt_read_class by)
{
    uint32_t slot_class = store->layouts[key / store->expert_count].slot_class;
    uint32_t slot = find_free(store, slot_class);
    uint32_t c = 0;

    if (slot == SHUNT_NO_SLOT) {
        slot = find_victim(store, slot_class, by);
        if (slot == SHUNT_NO_SLOT)
            return SHUNT_NO_SLOT;
        shunt_store_free_slot(store, slot);
    }
    while (slot >= store->class_end[c])
        c++;
    store->class_free[c]--;
    store->slots_used++;
    store->slots[slot].key = key;
    store->slots[slot].last_use = store->now;
    store->slot_of[key] = slot;
    return slot;
}

/* ---- residency */

enum shunt_residency shunt_store_state(const struct shunt_store *store, uint32_t key)
{
    uint32_t slot = store->slot_of[key];

    return slot == SHUNT_NO_SLOT ? SHUNT_ABSENT : store->slots[slot].state;
}

uint8_t shunt_store_share_left(const struct shunt_store *store, uint32_t key)
{
    const struct shunt_slot *s = &store->slots[store->slot_of[key]];
    uint64_t total = 0;

    for (uint32_t p = 0; p < SHUNT_PARTS; p++)
        total += shunt_store_part(store, key, p).bytes;
    return (uint8_t)(1 + s->left * 253 / total);
}

int shunt_store_acquire(struct shunt_store *store, uint32_t key, uint64_t now)
{
    uint32_t slot = store->slot_of[key];
    struct shunt_slot *s;

    store->now = now;
    if (slot == SHUNT_NO_SLOT) {
        slot = shunt_store_take_slot(store, key, SHUNT_READ_DEMAND);
        if (slot == SHUNT_NO_SLOT)
            return -EAGAIN;
        shunt_reads_begin(store, slot, SHUNT_READ_DEMAND);
    }
    s = &store->slots[slot];
    if (s->guess) {
        if (s->state == SHUNT_RESIDENT)
            store->counters.guesses_useful++;
        else
            store->counters.guesses_late++;
        store->counters.guesses_pending--;
        s->guess = false;
    }
    if (s->state == SHUNT_LOADING && s->read_class != SHUNT_READ_DEMAND)
        shunt_reads_promote(store, slot);
    s->holds++;
    s->last_use = now;
    if (s->keep < now)
        s->keep = now;
    return s->state == SHUNT_RESIDENT;
}

void shunt_store_release(struct shunt_store *store, uint32_t key)
{
    store->slots[store->slot_of[key]].holds--;
}

int shunt_store_speculate(struct shunt_store *store, uint32_t key, uint64_t now, uint64_t until,
                          bool read)
{
    uint32_t slot = store->slot_of[key];
    int begun = 0;

    store->now = now;
    if (slot == SHUNT_NO_SLOT && read) {
        slot = shunt_store_take_slot(store, key, SHUNT_READ_SPECULATIVE);
        if (slot != SHUNT_NO_SLOT) {
            shunt_reads_begin(store, slot, SHUNT_READ_SPECULATIVE);
            begun = 1;
        }
    }
    if (slot != SHUNT_NO_SLOT && store->slots[slot].keep < until)
        store->slots[slot].keep = until;
    return begun;
}

void shunt_store_abandon(struct shunt_store *store, uint32_t key)
{
    uint32_t slot = store->slot_of[key];

    if (slot == SHUNT_NO_SLOT)
        return;
    store->slots[slot].keep = 0;
    if (store->slots[slot].guess && store->slots[slot].queued)
        shunt_reads_drop(store, slot);
}

void shunt_store_set_placement(struct shunt_store *store, const uint8_t *placed)
{
    memcpy(store->placed, placed, store->key_count);
    store->placed_next = 0;
}

void shunt_store_view(const struct shunt_store *store, uint32_t key,
                      struct shunt_matrix parts[SHUNT_PARTS])
{
    uint32_t layer = key / store->expert_count;
    const struct shunt_slot *s = &store->slots[store->slot_of[key]];

    for (uint32_t p = 0; p < SHUNT_PARTS; p++) {
        const struct shunt_expert_part *part = &store->model->layers[layer].parts[p];

        parts[p] = (struct shunt_matrix){
            .data =
                s->base + store->layouts[layer].part_at[p] + shunt_store_part(store, key, p).head,
            .type = part->type,
            .rows = part->rows,
            .cols = part->cols,
            .row_bytes = part->stride / part->rows,
        };
    }
}

/* ---- what others ask */

const struct shunt_error *shunt_store_error(const struct shunt_store *store)
{
    return &store->error;
}

int shunt_store_fd(const struct shunt_store *store)
{
    return store->ops->fd(store->io);
}

uint64_t shunt_store_read_ns(const struct shunt_store *store, uint32_t layer)
{
    uint64_t ns =
        store->model->layers[layer].expert_bytes * SHUNT_NS_PER_S / store->bytes_per_s + 1;
    int shift = 61 - __builtin_clzll(ns);

    /* Three significant bits: drives that are alike should look alike, so that ties are decided by
     * the placement and not by noise. */
    return shift > 0 ? ns >> shift << shift : ns;
}

uint32_t shunt_store_slot_count(const struct shunt_store *store)
{
    return store->slot_count;
}

uint32_t shunt_store_slots_used(const struct shunt_store *store)
{
    return store->slots_used;
}

const struct shunt_store_counters *shunt_store_get_counters(const struct shunt_store *store)
{
    return &store->counters;
}

const char *shunt_store_io_name(const struct shunt_store *store)
{
    return store->ops->name;
}

bool shunt_store_io_direct(const struct shunt_store *store)
{
    return store->file.direct;
}
