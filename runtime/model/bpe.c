/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/bpe.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/base/seed.h"

#define NONE UINT32_MAX /* no neighbour; no token */

struct shunt_bpe_symbol {
    uint32_t id; /* NONE once merged into the one before */
    uint32_t prev, next;
};

/* ---- merges */

int shunt_bpe_init(struct shunt_bpe *bpe, uint32_t merge_max)
{
    uint32_t slot_count = 4;

    while (slot_count < merge_max + merge_max / 2)
        slot_count *= 2;
    bpe->merge_count = 0;
    bpe->merges = malloc((merge_max + 1u) * sizeof(*bpe->merges));
    bpe->slots = calloc(slot_count, sizeof(*bpe->slots));
    bpe->mask = slot_count - 1;
    bpe->seed = shunt_hash_seed();
    if (bpe->merges && bpe->slots)
        return 0;
    shunt_bpe_fini(bpe);
    return -ENOMEM;
}

void shunt_bpe_fini(struct shunt_bpe *bpe)
{
    free(bpe->merges);
    free(bpe->slots);
    memset(bpe, 0, sizeof(*bpe));
}

/* The slot that holds the pair, or the free one where it belongs. */
static uint32_t *find_slot(const struct shunt_bpe *bpe, uint32_t left, uint32_t right)
{
    const uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t at = (uint32_t)XXH3_64bits_withSeed(&pair, sizeof(pair), bpe->seed) & bpe->mask;

    while (bpe->slots[at]) {
        const struct shunt_bpe_merge *m = &bpe->merges[bpe->slots[at] - 1];

        if (m->left == left && m->right == right)
            break;
        at = (at + 1) & bpe->mask;
    }
    return &bpe->slots[at];
}

void shunt_bpe_add(struct shunt_bpe *bpe, uint32_t left, uint32_t right, uint32_t result)
{
    uint32_t *slot = find_slot(bpe, left, right);

    bpe->merges[bpe->merge_count++] =
        (struct shunt_bpe_merge){.left = left, .right = right, .result = result};
    if (!*slot)
        *slot = bpe->merge_count;
}

/* ---- heap */

/* A candidate is rank << 32 | position of its left symbol, so the smallest number is the lowest
 * rank and among equals the leftmost. Nothing is ever taken out of the middle: a candidate whose
 * symbols have changed since is recognised when it comes up, because its rank says which pair it
 * was. */
static void push(struct shunt_bpe_work *work, uint64_t candidate)
{
    size_t at = work->heap_count++;

    while (at > 0 && work->heap[(at - 1) / 2] > candidate) {
        work->heap[at] = work->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    work->heap[at] = candidate;
}

static uint64_t pop(struct shunt_bpe_work *work)
{
    uint64_t *heap = work->heap;
    uint64_t top = heap[0];
    uint64_t last = heap[--work->heap_count];
    size_t at = 0;

    for (;;) {
        size_t child = 2 * at + 1;

        if (child + 1 < work->heap_count && heap[child + 1] < heap[child])
            child++;
        if (child >= work->heap_count || heap[child] >= last)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

/* ---- a piece */

static int reserve(struct shunt_bpe_work *work, size_t len)
{
    size_t cap = len < 256 ? 256 : len;

    if (len <= work->cap)
        return 0;
    /* Nothing in them is worth keeping, so they are not realloc'ed. */
    shunt_bpe_work_fini(work);
    work->symbols = malloc(cap * sizeof(*work->symbols));
    /* At first a candidate for each pair of neighbours; each merge takes one and adds at most two;
     * there are fewer merges than bytes. */
    work->heap = malloc(2 * cap * sizeof(*work->heap));
    if (!work->symbols || !work->heap)
        return -ENOMEM;
    work->cap = cap;
    return 0;
}

void shunt_bpe_work_fini(struct shunt_bpe_work *work)
{
    free(work->symbols);
    free(work->heap);
    memset(work, 0, sizeof(*work));
}

/* Offers the pair of the symbol at `at` and the one after it, if it is one to merge. */
static void offer(const struct shunt_bpe *bpe, struct shunt_bpe_work *work, uint32_t at)
{
    const struct shunt_bpe_symbol *s = work->symbols;
    uint32_t slot;

    if (at == NONE || s[at].next == NONE)
        return;
    slot = *find_slot(bpe, s[at].id, s[s[at].next].id);
    if (slot)
        push(work, (uint64_t)(slot - 1) << 32 | at);
}

static void merge_all(const struct shunt_bpe *bpe, struct shunt_bpe_work *work)
{
    struct shunt_bpe_symbol *s = work->symbols;

    while (work->heap_count) {
        uint64_t candidate = pop(work);
        const struct shunt_bpe_merge *m = &bpe->merges[candidate >> 32];
        uint32_t left = (uint32_t)candidate;
        uint32_t right = s[left].next;

        if (s[left].id != m->left || right == NONE || s[right].id != m->right)
            continue;
        s[left].id = m->result;
        s[left].next = s[right].next;
        s[right].id = NONE;
        if (s[left].next != NONE)
            s[s[left].next].prev = left;
        offer(bpe, work, s[left].prev);
        offer(bpe, work, left);
    }
}

int64_t shunt_bpe_encode(const struct shunt_bpe *bpe, struct shunt_bpe_work *work,
                         const char *piece, size_t len, int32_t *ids, size_t id_max)
{
    struct shunt_bpe_symbol *s;
    size_t count = 0;

    if (reserve(work, len))
        return -ENOMEM;
    s = work->symbols;
    for (uint32_t i = 0; i < len; i++)
        s[i] = (struct shunt_bpe_symbol){.id = bpe->byte_ids[(unsigned char)piece[i]],
                                         .prev = i ? i - 1 : NONE,
                                         .next = i + 1 < len ? i + 1 : NONE};
    work->heap_count = 0;
    for (uint32_t i = 0; i < len; i++)
        offer(bpe, work, i);
    merge_all(bpe, work);
    for (uint32_t i = 0; i != NONE; i = s[i].next) {
        if (count < id_max)
            ids[count] = (int32_t)s[i].id;
        count++;
    }
    return (int64_t)count;
}
