/* SPDX-License-Identifier: Apache-2.0
 *
 * From tokens' bytes to text that can be shown: whole UTF-8 characters only (what is no UTF-8
 * becomes U+FFFD), and nothing that may yet turn out to be the beginning of a stop string.
 */
#ifndef SHUNT_ENGINE_TEXT_H
#define SHUNT_ENGINE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHUNT_STOPS_MAX      8u
#define SHUNT_STOP_BYTES_MAX 128u

struct shunt_text {
    char stops[SHUNT_STOPS_MAX][SHUNT_STOP_BYTES_MAX];
    uint32_t stop_lens[SHUNT_STOPS_MAX];
    uint32_t stop_count;
    unsigned char raw[4]; /* the beginning of a character */
    uint32_t raw_len;
    char held[SHUNT_STOP_BYTES_MAX]; /* text that may begin a stop string */
    uint32_t held_len;
};

/* Room that the output of one call needs for a piece of `piece_bytes`. */
static inline size_t shunt_text_max(size_t piece_bytes)
{
    return SHUNT_STOP_BYTES_MAX + 3 * (piece_bytes + 4);
}

/* Adds a token's bytes; writes what may be shown to `out`. Return: bytes written; *stopped when a
 * stop string is complete, which is then not part of the output. */
size_t shunt_text_feed(struct shunt_text *t, const unsigned char *piece, size_t piece_bytes,
                       char *out, bool *stopped);

/* The end: what was held back. */
size_t shunt_text_finish(struct shunt_text *t, char *out);

#endif
