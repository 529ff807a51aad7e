/* SPDX-License-Identifier: Apache-2.0
 *
 * Text against a reference that keeps everything: what a prefix of the bytes decodes to, and where
 * in it a stop string is.
 */
#include "runtime/engine/text.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/random.h"

#define BYTES_MAX 600u
#define OUT_MAX   (3 * BYTES_MAX + 200)

/* ---- the reference */

/* Unicode, table 3-7: the well-formed sequences, as ranges of each byte. */
static const struct {
    uint32_t len;
    unsigned char from[4], to[4];
} forms[] = {
    {1, {0x00}, {0x7f}},
    {2, {0xc2, 0x80}, {0xdf, 0xbf}},
    {3, {0xe0, 0xa0, 0x80}, {0xe0, 0xbf, 0xbf}},
    {3, {0xe1, 0x80, 0x80}, {0xec, 0xbf, 0xbf}},
    {3, {0xed, 0x80, 0x80}, {0xed, 0x9f, 0xbf}},
    {3, {0xee, 0x80, 0x80}, {0xef, 0xbf, 0xbf}},
    {4, {0xf0, 0x90, 0x80, 0x80}, {0xf0, 0xbf, 0xbf, 0xbf}},
    {4, {0xf1, 0x80, 0x80, 0x80}, {0xf3, 0xbf, 0xbf, 0xbf}},
    {4, {0xf4, 0x80, 0x80, 0x80}, {0xf4, 0x8f, 0xbf, 0xbf}},
};

/* The longest beginning of a well-formed sequence at p; *whole when it is all of one. */
static size_t longest_form(const unsigned char *p, size_t len, bool *whole)
{
    size_t longest = 0;

    *whole = false;
    for (size_t f = 0; f < sizeof(forms) / sizeof(forms[0]); f++) {
        size_t n = 0;

        while (n < forms[f].len && n < len && p[n] >= forms[f].from[n] && p[n] <= forms[f].to[n])
            n++;
        if (n > longest) {
            longest = n;
            *whole = n == forms[f].len;
        }
    }
    return longest;
}

/* Decodes; each longest beginning of a character that does not go on is one U+FFFD. What may still
 * go on at the end is left out unless `finish`. Return: bytes written. */
static size_t decode(const unsigned char *p, size_t len, bool finish, char *out)
{
    size_t n = 0;

    for (size_t at = 0; at < len;) {
        bool whole;
        size_t form = longest_form(p + at, len - at, &whole);

        if (whole) {
            memcpy(out + n, p + at, form);
            n += form;
        } else if (form > 0 && at + form == len && !finish) {
            return n;
        } else {
            memcpy(out + n, "\xef\xbf\xbd", 3);
            n += 3;
        }
        at += form ? form : 1;
    }
    return n;
}

/* What a reader may have seen of `text`: up to the first stop string, else all but the longest
 * beginning of one at the end. */
static size_t visible(const struct shunt_text *t, const char *text, size_t len, bool *stopped)
{
    size_t end = len;

    for (size_t at = 0; at < len; at++)
        for (uint32_t s = 0; s < t->stop_count; s++)
            if (len - at >= t->stop_lens[s] && !memcmp(text + at, t->stops[s], t->stop_lens[s])) {
                *stopped = true;
                return at;
            }
    *stopped = false;
    for (size_t at = len; at-- > 0;)
        for (uint32_t s = 0; s < t->stop_count; s++)
            if (len - at < t->stop_lens[s] && !memcmp(text + at, t->stops[s], len - at))
                end = at;
    return end;
}

/* ---- feeding */

struct run {
    struct shunt_text text;
    const unsigned char *bytes;
    size_t len, fed;
    char shown[OUT_MAX], whole[OUT_MAX];
    size_t shown_len;
    bool stopped;
    uint64_t seed;
};

static void add_stop(struct shunt_text *t, const void *stop, size_t len)
{
    memcpy(t->stops[t->stop_count], stop, len);
    t->stop_lens[t->stop_count++] = (uint32_t)len;
}

/* Room of exactly what the header promises to be enough, so that one byte more is seen. */
static void take(struct run *r, size_t room, size_t (*call)(struct run *r, char *out))
{
    char *out = malloc(room);
    size_t n;

    cr_assert(out);
    n = call(r, out);
    cr_assert_leq(n, room, "seed %lu", r->seed);
    cr_assert_leq(r->shown_len + n, sizeof(r->shown), "seed %lu", r->seed);
    memcpy(r->shown + r->shown_len, out, n);
    r->shown_len += n;
    free(out);
}

static size_t piece_len;

static size_t call_feed(struct run *r, char *out)
{
    return shunt_text_feed(&r->text, r->bytes + r->fed, piece_len, out, &r->stopped);
}

static size_t call_finish(struct run *r, char *out)
{
    return shunt_text_finish(&r->text, out);
}

static void feed(struct run *r, size_t len)
{
    bool stopped;
    size_t n;

    piece_len = len;
    take(r, shunt_text_max(len), call_feed);
    r->fed += len;
    n = visible(&r->text, r->whole, decode(r->bytes, r->fed, false, r->whole), &stopped);
    cr_assert_eq(r->stopped, stopped, "seed %lu after %zu bytes", r->seed, r->fed);
    cr_assert(r->shown_len == n && !memcmp(r->shown, r->whole, n),
              "seed %lu after %zu bytes: %.*s instead of %.*s", r->seed, r->fed, (int)r->shown_len,
              r->shown, (int)n, r->whole);
}

static void finish(struct run *r)
{
    size_t n;

    take(r, shunt_text_max(0), call_finish);
    n = decode(r->bytes, r->fed, true, r->whole);
    cr_assert(r->shown_len == n && !memcmp(r->shown, r->whole, n), "seed %lu at the end", r->seed);
}

/* In pieces of random length until a stop string or the end. */
static void feed_all(struct run *r, uint64_t *random, uint32_t piece_max)
{
    while (r->fed < r->len && !r->stopped) {
        size_t len = random_below(random, piece_max + 1);

        feed(r, len < r->len - r->fed ? len : r->len - r->fed);
    }
    if (!r->stopped)
        finish(r);
}

static struct run run_of(const void *bytes, size_t len, uint64_t seed)
{
    return (struct run){.bytes = bytes, .len = len, .seed = seed};
}

/* ---- characters */

static const char mixed[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x8e\x89 \xed\x9f\xbf\xee\x80\x80"
                            "\xf4\x8f\xbf\xbf\xc2\x80\xe0\xa0\x80\xf0\x90\x80\x80z";

/* Cut in two at every byte, and in three. */
Test(text, is_the_same_however_it_is_cut)
{
    size_t len = sizeof(mixed) - 1;

    for (size_t a = 0; a <= len; a++) {
        for (size_t b = a; b <= len; b++) {
            struct run r = run_of(mixed, len, a * 100 + b);

            feed(&r, a);
            feed(&r, b - a);
            feed(&r, len - b);
            cr_assert_eq(r.text.raw_len, 0);
            finish(&r);
            cr_assert(r.shown_len == len && !memcmp(r.shown, mixed, len));
        }
    }
}

/* Only whole characters are shown. */
Test(text, holds_back_part_of_a_character)
{
    struct run r = run_of(mixed, sizeof(mixed) - 1, 0);

    for (size_t i = 0; i + 1 < sizeof(mixed); i++) {
        feed(&r, 1);
        cr_assert(r.shown_len == sizeof(mixed) - 1 || (mixed[r.shown_len] & 0xc0) != 0x80);
    }
}

Test(text, replaces_what_is_no_utf8)
{
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"\x80", "?"},
        {"a\xff", "a?"},
        {"\xc0\xaf", "??"},
        {"\xe0\x80\xaf", "???"}, /* overlong */
        {"\xf0\x80\x80\xaf", "????"},
        {"\xed\xa0\x80", "???"},      /* a surrogate */
        {"\xf4\x90\x80\x80", "????"}, /* beyond U+10FFFF */
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", "?????A??B"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "????A"}, /* Unicode, table 3-11 */
        {"\xe2\x82", "?"},
        {"\xe2\x82z", "?z"},
        {"\xe2\xe2\x82\xac", "?\xe2\x82\xac"},
        {"\xf0\x9f\x8e", "?"},
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct run r = run_of(cases[i].bytes, strlen(cases[i].bytes), i);
        char want[64];
        size_t n = 0;

        for (const char *c = cases[i].text; *c; c++) {
            size_t len = *c == '?' ? 3 : 1;

            memcpy(want + n, *c == '?' ? "\xef\xbf\xbd" : c, len);
            n += len;
        }
        while (r.fed < r.len)
            feed(&r, 1);
        finish(&r);
        cr_expect(r.shown_len == n && !memcmp(r.shown, want, n), "case %u", i);
    }
}

/* Bytes that are leads, continuations and their neighbours, mostly wrong. */
Test(text, decodes_any_bytes_like_the_reference, .timeout = 100)
{
    static const unsigned char edges[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf,
                                          0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee,
                                          0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff};

    for (uint64_t seed = 1; seed <= 5000; seed++) {
        unsigned char bytes[64];
        uint64_t random = seed;
        size_t len = random_below(&random, sizeof(bytes) + 1);
        struct run r;

        for (size_t i = 0; i < len; i++)
            bytes[i] = seed % 2 ? edges[random_below(&random, sizeof(edges))]
                                : (unsigned char)random_next(&random);
        r = run_of(bytes, len, seed);
        feed_all(&r, &random, 1 + (uint32_t)seed % 7);
    }
}

/* ---- stop strings */

/* Few letters, so that stop strings overlap each other and themselves, and are prefixes of each
 * other. */
Test(text, stops_like_the_reference, .timeout = 100)
{
    static const char *const letters[] = {"a", "b", "\xc3\xa9"};

    for (uint64_t seed = 1; seed <= 30000; seed++) {
        uint64_t random = seed;
        unsigned char bytes[BYTES_MAX];
        uint32_t kinds = 1 + random_below(&random, 3);
        struct run r;
        size_t len = 0;

        while (len < 60) {
            const char *letter = letters[random_below(&random, kinds)];

            memcpy(bytes + len, letter, strlen(letter));
            len += strlen(letter);
            if (random_below(&random, 40) == 0)
                bytes[len++] = 0xc3; /* half of the third letter, or U+FFFD */
        }
        r = run_of(bytes, len, seed);
        for (uint32_t s = random_below(&random, SHUNT_STOPS_MAX + 1); s > 0; s--) {
            uint32_t count = 1 + random_below(&random, 1 + (uint32_t)seed % 12);
            char stop[SHUNT_STOP_BYTES_MAX] = "";

            for (uint32_t i = 0; i < count; i++)
                strcat(stop, letters[random_below(&random, kinds)]);
            add_stop(&r.text, stop, strlen(stop));
        }
        feed_all(&r, &random, 1 + (uint32_t)seed % 9);
    }
}

/* The longest stop strings there may be, nearly there again and again. */
Test(text, holds_back_as_much_as_the_longest_stop_string)
{
    unsigned char bytes[BYTES_MAX];
    char stop[SHUNT_STOP_BYTES_MAX];

    memset(stop, 'x', sizeof(stop));
    memset(bytes, 'x', sizeof(bytes));
    for (size_t run = 100; run <= SHUNT_STOP_BYTES_MAX; run++) {
        uint64_t random = run;
        struct run r = run_of(bytes, sizeof(bytes), run);

        memset(bytes, 'x', sizeof(bytes));
        for (size_t at = run; at < sizeof(bytes); at += run + 1)
            bytes[at] = (unsigned char)(at % 3 ? 'y' : 0xff);
        add_stop(&r.text, stop, sizeof(stop));
        feed_all(&r, &random, 40);
        cr_assert_eq(r.stopped, run == SHUNT_STOP_BYTES_MAX);
    }
}

Test(text, ends_before_the_stop_string)
{
    static const struct {
        const char *pieces[4], *stops[3], *shown;
        bool stopped;
    } cases[] = {
        {{"one STOP two"}, {"STOP"}, "one ", true},
        {{"one ST", "OP two"}, {"STOP"}, "one ", true},
        {{"one ST", "AR"}, {"STOP"}, "one STAR", false},
        {{"one ST"}, {"STOP"}, "one ST", false},
        {{"aa", "ab"}, {"aab"}, "a", true},
        {{"ab", "c"}, {"abc", "bc"}, "", true},
        {{"ab", "d"}, {"abc", "bd"}, "a", true},
        {{"\n", "\n", "User:"}, {"\n\nUser", "\n\n\n"}, "", true},
        {{"x"}, {"x"}, "", true},
        {{"caf\xc3", "\xa9!"}, {"\xc3\xa9"}, "caf", true},
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct shunt_text t = {0};
        char out[512], shown[512];
        bool stopped = false;
        size_t n = 0;

        for (uint32_t s = 0; s < 3 && cases[i].stops[s]; s++)
            add_stop(&t, cases[i].stops[s], strlen(cases[i].stops[s]));
        for (uint32_t p = 0; p < 4 && cases[i].pieces[p] && !stopped; p++) {
            size_t len = shunt_text_feed(&t, (const unsigned char *)cases[i].pieces[p],
                                         strlen(cases[i].pieces[p]), out, &stopped);

            memcpy(shown + n, out, len);
            n += len;
        }
        if (!stopped)
            n += shunt_text_finish(&t, shown + n);
        cr_expect_eq(stopped, cases[i].stopped, "case %u", i);
        cr_expect(n == strlen(cases[i].shown) && !memcmp(shown, cases[i].shown, n),
                  "case %u: '%.*s'", i, (int)n, shown);
        cr_expect_eq(shunt_text_finish(&t, out), 0, "case %u: nothing is left", i);
    }
}
