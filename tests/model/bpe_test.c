/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/bpe.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/random.h"

#define LETTERS 6u
#define MERGES  60u
#define PIECE   48u

/* What the definition says, step by step. */
static size_t merge_slowly(const struct shunt_bpe *bpe, const char *piece, size_t len,
                           uint32_t *ids)
{
    size_t count = len;

    for (size_t i = 0; i < len; i++)
        ids[i] = bpe->byte_ids[(unsigned char)piece[i]];
    for (;;) {
        uint32_t best = UINT32_MAX;
        size_t at = 0;

        for (size_t i = 0; i + 1 < count; i++)
            for (uint32_t rank = 0; rank < bpe->merge_count && rank < best; rank++)
                if (bpe->merges[rank].left == ids[i] && bpe->merges[rank].right == ids[i + 1]) {
                    best = rank;
                    at = i;
                }
        if (best == UINT32_MAX)
            return count;
        ids[at] = bpe->merges[best].result;
        count--;
        memmove(ids + at + 1, ids + at + 2, (count - at - 1) * sizeof(*ids));
    }
}

static void make_random_merges(struct shunt_bpe *bpe, uint64_t *state)
{
    uint32_t token_count = 256;

    cr_assert_eq(shunt_bpe_init(bpe, MERGES), 0);
    for (uint32_t b = 0; b < 256; b++)
        bpe->byte_ids[b] = b;
    for (uint32_t i = 0; i < MERGES; i++) {
        /* Of letters and of what was merged before; now and then a pair comes again. */
        uint32_t n = LETTERS + token_count - 256;
        uint32_t pair[2];

        for (int k = 0; k < 2; k++) {
            uint32_t pick = (uint32_t)(random_next(state) % n);

            pair[k] = pick < LETTERS ? 'a' + pick : 256 + pick - LETTERS;
        }
        shunt_bpe_add(bpe, pair[0], pair[1], token_count++);
    }
}

Test(bpe, merges_as_defined)
{
    struct shunt_bpe_work work = {0};
    uint64_t state = 7;

    for (int table = 0; table < 40; table++) {
        struct shunt_bpe bpe;

        make_random_merges(&bpe, &state);
        for (int n = 0; n < 200; n++) {
            size_t len = 1 + random_next(&state) % PIECE;
            char piece[PIECE];
            uint32_t slow[PIECE];
            int32_t ids[PIECE];
            size_t count;

            for (size_t i = 0; i < len; i++)
                piece[i] = (char)('a' + random_next(&state) % LETTERS);
            count = merge_slowly(&bpe, piece, len, slow);
            cr_assert_eq(shunt_bpe_encode(&bpe, &work, piece, len, ids, PIECE), (int64_t)count);
            cr_assert_eq(memcmp(slow, ids, count * sizeof(*ids)), 0, "table %d, piece %.*s", table,
                         (int)len, piece);
        }
        shunt_bpe_fini(&bpe);
    }
    shunt_bpe_work_fini(&work);
}

Test(bpe, writes_no_more_than_there_is_room_for)
{
    struct shunt_bpe bpe;
    struct shunt_bpe_work work = {0};
    int32_t ids[3] = {-1, -1, -1};

    cr_assert_eq(shunt_bpe_init(&bpe, 0), 0);
    for (uint32_t b = 0; b < 256; b++)
        bpe.byte_ids[b] = b;
    cr_expect_eq(shunt_bpe_encode(&bpe, &work, "abcde", 5, ids, 2), 5);
    cr_expect(ids[0] == 'a' && ids[1] == 'b' && ids[2] == -1);
    cr_expect_eq(shunt_bpe_encode(&bpe, &work, "abcde", 5, NULL, 0), 5);
    shunt_bpe_work_fini(&work);
    shunt_bpe_fini(&bpe);
}
