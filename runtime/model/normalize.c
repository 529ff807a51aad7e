/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/normalize.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Code points below U+0300 are in normal form C as they are and never join the one before: a text
 * can be cut in front of each. In UTF-8 they are the bytes below this one. */
#define FIRST_LEAD_TO_NORMALIZE 0xccu

#define COMPOSE ((utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE))

/* More than any canonical decomposition of one code point has. */
#define DECOMPOSED_MAX 8u

#define UTF8_MAX 4u /* bytes of a code point */

/* Hangul's TBase, the point before the first trailing consonant. It joins nothing, but utf8proc 2.8
 * takes it for a consonant and drops it: texts are composed from one to the next. */
#define BEFORE_TRAILING 0x11a7

size_t shunt_utf8_check(const char *text, size_t len)
{
    const utf8proc_uint8_t *bytes = (const utf8proc_uint8_t *)text;
    size_t pos = 0;

    while (pos < len) {
        utf8proc_int32_t point;
        utf8proc_ssize_t n = 1;

        if (bytes[pos] >= 0x80)
            n = utf8proc_iterate(bytes + pos, (utf8proc_ssize_t)(len - pos), &point);
        if (n <= 0)
            return pos;
        pos += (size_t)n;
    }
    return len;
}

/* Makes room for `more` items of `size` bytes behind `used`. */
static int reserve(void **array, size_t *cap, size_t used, size_t more, size_t size)
{
    size_t want = used + more;
    void *grown;

    if (want <= *cap)
        return 0;
    if (want < *cap * 2)
        want = *cap * 2;
    if (want > SIZE_MAX / size)
        return -ENOMEM;
    grown = realloc(*array, want * size);
    if (!grown)
        return -ENOMEM;
    *array = grown;
    *cap = want;
    return 0;
}

static int reserve_out(struct shunt_normalizer *n, size_t more)
{
    void *array = n->out;
    int rc = reserve(&array, &n->out_cap, n->out_len, more, sizeof(*n->out));

    n->out = array;
    return rc;
}

static int reserve_points(struct shunt_normalizer *n, size_t more)
{
    void *array = n->points;
    int rc = reserve(&array, &n->point_cap, n->point_count, more, sizeof(*n->points));

    n->points = array;
    return rc;
}

static int append(struct shunt_normalizer *n, const char *text, size_t len)
{
    if (len == 0)
        return 0;
    if (reserve_out(n, len))
        return -ENOMEM;
    memcpy(n->out + n->out_len, text, len);
    n->out_len += len;
    return 0;
}

static int decompose(struct shunt_normalizer *n, const char *text, size_t len)
{
    n->point_count = 0;
    for (size_t pos = 0; pos < len;) {
        utf8proc_int32_t point;
        utf8proc_ssize_t count;
        int boundclass; /* not asked for, but the function wants a place */

        pos += (size_t)utf8proc_iterate((const utf8proc_uint8_t *)text + pos,
                                        (utf8proc_ssize_t)(len - pos), &point);
        if (reserve_points(n, DECOMPOSED_MAX))
            return -ENOMEM;
        count = utf8proc_decompose_char(point, n->points + n->point_count, DECOMPOSED_MAX, COMPOSE,
                                        &boundclass);
        n->point_count += (size_t)count;
    }
    return 0;
}

static uint32_t combining_class(int32_t point)
{
    return (uint32_t)utf8proc_get_property(point)->combining_class & 0xff;
}

/* Stable sort by combining class, in linear time: a text may hold a million marks in a row. */
static int order_run(int32_t *points, size_t count)
{
    size_t starts[257] = {0};
    int32_t *sorted = malloc(count * sizeof(*sorted));

    if (!sorted)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        starts[combining_class(points[i]) + 1]++;
    for (uint32_t c = 1; c < 257; c++)
        starts[c] += starts[c - 1];
    for (size_t i = 0; i < count; i++)
        sorted[starts[combining_class(points[i])]++] = points[i];
    memcpy(points, sorted, count * sizeof(*sorted));
    free(sorted);
    return 0;
}

/* Canonical ordering: every run of marks (class above 0) ascending by class. */
static int order_marks(struct shunt_normalizer *n)
{
    for (size_t i = 0; i < n->point_count;) {
        uint32_t previous = 0;
        bool ordered = true;
        size_t begin = i;

        for (; i < n->point_count; i++) {
            uint32_t class = combining_class(n->points[i]);

            if (class == 0)
                break;
            ordered = ordered && class >= previous;
            previous = class;
        }
        if (!ordered && order_run(n->points + begin, i - begin))
            return -ENOMEM;
        if (i == begin)
            i++;
    }
    return 0;
}

static int compose(struct shunt_normalizer *n, int32_t *points, size_t count)
{
    utf8proc_ssize_t left = utf8proc_normalize_utf32(points, (utf8proc_ssize_t)count, COMPOSE);

    for (utf8proc_ssize_t i = 0; i < left; i++) {
        if (reserve_out(n, UTF8_MAX))
            return -ENOMEM;
        n->out_len +=
            (size_t)utf8proc_encode_char(points[i], (utf8proc_uint8_t *)n->out + n->out_len);
    }
    return 0;
}

static int normalize_part(struct shunt_normalizer *n, const char *text, size_t len)
{
    size_t begin = 0;

    if (decompose(n, text, len) || order_marks(n))
        return -ENOMEM;
    for (size_t i = 1; i <= n->point_count; i++) {
        if (i < n->point_count && n->points[i] != BEFORE_TRAILING)
            continue;
        if (compose(n, n->points + begin, i - begin))
            return -ENOMEM;
        begin = i;
    }
    return 0;
}

static size_t skip_normal(const char *text, size_t len, size_t pos)
{
    while (pos < len && (unsigned char)text[pos] < FIRST_LEAD_TO_NORMALIZE)
        pos++;
    return pos;
}

/* The code points from U+0300 on, from `pos` on; continuation bytes lie below the lead bytes. */
static size_t skip_others(const char *text, size_t len, size_t pos)
{
    while (pos < len && ((unsigned char)text[pos] >= FIRST_LEAD_TO_NORMALIZE ||
                         ((unsigned char)text[pos] & 0xc0) == 0x80))
        pos++;
    return pos;
}

int shunt_normalize(struct shunt_normalizer *n, const char *text, size_t len, const char **out,
                    size_t *out_len)
{
    size_t pos = 0;
    size_t other = skip_normal(text, len, 0);

    *out = text;
    *out_len = len;
    if (other == len)
        return 0;
    n->out_len = 0;
    while (pos < len) {
        size_t begin = other;
        size_t end;

        /* What stands before may be the base that the next one joins. */
        if (other < len && begin > pos)
            do
                begin--;
            while (((unsigned char)text[begin] & 0xc0) == 0x80);
        if (append(n, text + pos, begin - pos))
            return -ENOMEM;
        end = skip_others(text, len, other);
        if (normalize_part(n, text + begin, end - begin))
            return -ENOMEM;
        pos = end;
        other = skip_normal(text, len, pos);
    }
    *out = n->out;
    *out_len = n->out_len;
    return 0;
}

void shunt_normalizer_fini(struct shunt_normalizer *n)
{
    free(n->out);
    free(n->points);
    memset(n, 0, sizeof(*n));
}
