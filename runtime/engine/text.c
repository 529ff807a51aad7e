/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/text.h"

#include <string.h>

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

/* Length of the character that begins with `lead`; 0: none does. */
static uint32_t char_len(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead >= 0xc2 && lead < 0xe0)
        return 2;
    if (lead >= 0xe0 && lead < 0xf0)
        return 3;
    if (lead >= 0xf0 && lead < 0xf5)
        return 4;
    return 0;
}

/* True when `next` may follow the `len` bytes in `raw` (Unicode, table 3-7: no overlong forms, no
 * surrogates, nothing beyond U+10FFFF). */
static bool may_follow(const unsigned char *raw, uint32_t len, unsigned char next)
{
    if (next < 0x80 || next > 0xbf)
        return false;
    if (len > 1)
        return true;
    switch (raw[0]) {
    case 0xe0:
        return next >= 0xa0;
    case 0xed:
        return next < 0xa0;
    case 0xf0:
        return next >= 0x90;
    case 0xf4:
        return next < 0x90;
    default:
        return true;
    }
}

static size_t put_replacement(char *out)
{
    memcpy(out, replacement, 3);
    return 3;
}

/* One byte more; whole characters go to `out`. */
static size_t feed_byte(struct shunt_text *t, unsigned char byte, char *out)
{
    size_t n = 0;

    if (t->raw_len > 0 && !may_follow(t->raw, t->raw_len, byte)) {
        n += put_replacement(out);
        t->raw_len = 0;
    }
    if (t->raw_len == 0 && char_len(byte) == 0)
        return n + put_replacement(out + n);
    t->raw[t->raw_len++] = byte;
    if (t->raw_len == char_len(t->raw[0])) {
        memcpy(out + n, t->raw, t->raw_len);
        n += t->raw_len;
        t->raw_len = 0;
    }
    return n;
}

/* Where the first stop string begins in text[0, len); len when none is in it. */
static size_t find_stop(const struct shunt_text *t, const char *text, size_t len)
{
    for (size_t at = 0; at < len; at++)
        for (uint32_t s = 0; s < t->stop_count; s++)
            if (len - at >= t->stop_lens[s] && !memcmp(text + at, t->stops[s], t->stop_lens[s]))
                return at;
    return len;
}

/* Bytes at the end of the text that are the beginning of a stop string. */
static size_t stop_begins(const struct shunt_text *t, const char *text, size_t len)
{
    size_t longest = 0;

    for (uint32_t s = 0; s < t->stop_count; s++) {
        size_t max = t->stop_lens[s] - 1 < len ? t->stop_lens[s] - 1 : len;

        for (size_t n = max; n > longest; n--)
            if (!memcmp(text + len - n, t->stops[s], n))
                longest = n;
    }
    return longest;
}

size_t shunt_text_feed(struct shunt_text *t, const unsigned char *piece, size_t piece_bytes,
                       char *out, bool *stopped)
{
    size_t len = t->held_len;
    size_t stop;

    memcpy(out, t->held, t->held_len);
    for (size_t i = 0; i < piece_bytes; i++)
        len += feed_byte(t, piece[i], out + len);
    stop = find_stop(t, out, len);
    *stopped = stop < len;
    if (*stopped) {
        t->held_len = 0;
        t->raw_len = 0;
        return stop;
    }
    t->held_len = (uint32_t)stop_begins(t, out, len);
    memcpy(t->held, out + len - t->held_len, t->held_len);
    return len - t->held_len;
}

size_t shunt_text_finish(struct shunt_text *t, char *out)
{
    size_t len = t->held_len;

    memcpy(out, t->held, t->held_len);
    if (t->raw_len > 0)
        len += put_replacement(out + len);
    t->held_len = 0;
    t->raw_len = 0;
    return len;
}
