/* SPDX-License-Identifier: Apache-2.0
 *
 * Byte pair encoding of one piece: its bytes are symbols, and of all neighbours that the model
 * learnt to merge, those of the lowest rank are merged first, the leftmost of equals, until none is
 * left. O(n log n) for a piece of n bytes.
 *
 * Merges are looked up by the pair of ids, not by text: 12 bytes a merge and 4 a slot.
 */
#ifndef SHUNT_MODEL_BPE_H
#define SHUNT_MODEL_BPE_H

#include <stddef.h>
#include <stdint.h>

struct shunt_bpe_merge {
    uint32_t left, right, result; /* token ids */
};

/* Read-only once filled: any thread. */
struct shunt_bpe {
    uint32_t byte_ids[256];         /* the token of each single byte */
    struct shunt_bpe_merge *merges; /* owned; the index is the rank */
    uint32_t merge_count;
    uint32_t *slots; /* owned: rank + 1, 0 is free; open addressing by (left, right) */
    uint32_t mask;   /* a power of 2, minus 1 */
    uint64_t seed;
};

/* Room for `merge_max` merges (at most 2^24). byte_ids are the caller's to fill. Return: 0,
 * -ENOMEM. */
int shunt_bpe_init(struct shunt_bpe *bpe, uint32_t merge_max);
void shunt_bpe_fini(struct shunt_bpe *bpe);

/* The next rank. Of a pair that comes twice the lower rank counts. */
void shunt_bpe_add(struct shunt_bpe *bpe, uint32_t left, uint32_t right, uint32_t result);

/* Memory of an encoding, reused from piece to piece: 28 bytes for each byte of the longest.
 * Zeroed: empty. One thread. */
struct shunt_bpe_work {
    struct shunt_bpe_symbol *symbols; /* owned */
    uint64_t *heap;                   /* owned */
    size_t heap_count;
    size_t cap; /* bytes of a piece there is room for */
};
void shunt_bpe_work_fini(struct shunt_bpe_work *work);

/* Merges a piece of `len` bytes, 1 <= len < 2^32; at most `id_max` ids are written.
 * Return: the number of ids the piece has, -ENOMEM. */
int64_t shunt_bpe_encode(const struct shunt_bpe *bpe, struct shunt_bpe_work *work,
                         const char *piece, size_t len, int32_t *ids, size_t id_max);

#endif
