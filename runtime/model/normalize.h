/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8 and Unicode normal form C, in time and memory proportional to the text, whatever is in it.
 */
#ifndef SHUNT_MODEL_NORMALIZE_H
#define SHUNT_MODEL_NORMALIZE_H

#include <stddef.h>
#include <stdint.h>

/* Returns `len` when the text is UTF-8, else the offset of the first byte that is not. */
size_t shunt_utf8_check(const char *text, size_t len);

/* Buffers that grow as needed and serve one text after the other. Zeroed: empty. One thread. */
struct shunt_normalizer {
    char *out; /* owned, as is points */
    size_t out_len, out_cap;
    int32_t *points; /* code points of the part being normalised */
    size_t point_count, point_cap;
};

/* *out: `text` itself where it needs no change, else the normalizer's buffer, until the next call.
 * `text` is UTF-8. Return: 0, -ENOMEM. */
int shunt_normalize(struct shunt_normalizer *n, const char *text, size_t len, const char **out,
                    size_t *out_len);

void shunt_normalizer_fini(struct shunt_normalizer *n);

#endif
