/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/normalize.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "tests/random.h"

static void expect(struct shunt_normalizer *n, const char *in, size_t len, const char *out,
                   size_t out_len)
{
    const char *got;
    size_t got_len;

    cr_assert_eq(shunt_normalize(n, in, len, &got, &got_len), 0);
    cr_expect(got_len == out_len && !memcmp(got, out, out_len), "%.*s became %.*s", (int)len, in,
              (int)got_len, got);
}

Test(normalize, composes)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"", ""},
        {"plain", "plain"},
        {"caf\xc3\xa9", "caf\xc3\xa9"},
        {"cafe\xcc\x81!", "caf\xc3\xa9!"},
        {"e\xcc\x81"
         "e\xcc\x81",
         "\xc3\xa9\xc3\xa9"},
        {"\xcc\x81"
         "e",
         "\xcc\x81"
         "e"},                                        /* a mark with no base */
        {"\xe2\x84\xab", "\xc3\x85"},                 /* angstrom sign */
        {"\xcd\x84", "\xcc\x88\xcc\x81"},             /* U+0344 comes apart */
        {"q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87"},   /* marks in order of class */
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"}, /* U+0958 is excluded from composition */
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"}, /* Hangul */
        {"\xea\xb0\x80\xe1\x86\xa7\xeb\x82\x98",
         "\xea\xb0\x80\xe1\x86\xa7\xeb\x82\x98"}, /* U+11A7 joins nothing */
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa7\xe1\x86\xa8",
         "\xea\xb0\x80\xe1\x86\xa7\xe1\x86\xa8"},     /* and keeps what follows from joining */
        {"\xc3\xa9\xcc\xa3", "\xe1\xba\xb9\xcc\x81"}, /* e acute + dot below: the dot goes first */
        {"\xf0\x9d\x85\x9e", "\xf0\x9d\x85\x97\xf0\x9d\x85\xa5"}, /* musical half note */
        {"a\xf0\x9f\x98\x80z", "a\xf0\x9f\x98\x80z"},
    };
    struct shunt_normalizer n = {0};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        expect(&n, cases[i].in, strlen(cases[i].in), cases[i].out, strlen(cases[i].out));
    expect(&n, "e\xcc\x81\0e\xcc\x81", 7, "\xc3\xa9\0\xc3\xa9", 5);
    shunt_normalizer_fini(&n);
}

/* Cutting a text in parts must not show: the same as utf8proc's own function for whole texts. */
Test(normalize, equals_normalizing_as_a_whole)
{
    static const uint32_t ranges[][2] = {{0x20, 0x7e},     {0xa0, 0x24f},    {0x300, 0x36f},
                                         {0x1100, 0x11ff}, {0xac00, 0xad00}, {0x900, 0x9ff},
                                         {0x1e00, 0x1fff}, {0x3040, 0x30ff}, {0x1d15e, 0x1d16f}};
    struct shunt_normalizer n = {0};
    uint64_t state = 11;

    for (int round = 0; round < 20000; round++) {
        utf8proc_uint8_t text[64];
        utf8proc_uint8_t *whole = NULL;
        size_t len = 0;
        const char *got;
        size_t got_len;
        utf8proc_ssize_t whole_len;

        for (uint64_t i = random_next(&state) % 12; i > 0; i--) {
            const uint32_t *r = ranges[random_next(&state) % (sizeof(ranges) / sizeof(ranges[0]))];
            uint32_t point = r[0] + (uint32_t)(random_next(&state) % (r[1] - r[0] + 1));

            if (point == 0x11a7)
                continue; /* which utf8proc 2.8 itself takes for a trailing consonant */
            len += (size_t)utf8proc_encode_char((utf8proc_int32_t)point, text + len);
        }
        whole_len = utf8proc_map(text, (utf8proc_ssize_t)len, &whole,
                                 (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
        cr_assert_geq(whole_len, 0);
        cr_assert_eq(shunt_normalize(&n, (const char *)text, len, &got, &got_len), 0);
        cr_assert(got_len == (size_t)whole_len && !memcmp(got, whole, got_len),
                  "round %d: %.*s became %.*s", round, (int)len, (const char *)text, (int)got_len,
                  got);
        free(whole);
    }
    shunt_normalizer_fini(&n);
}

/* Half a million marks of a high class, then as many of a low one: sorting them by exchanges would
 * take hours. */
Test(normalize, orders_many_marks_quickly, .timeout = 20)
{
    enum { MARKS = 500000 };
    size_t len = 1 + 4 * (size_t)MARKS;
    char *text = malloc(len), *out = malloc(len);
    struct shunt_normalizer n = {0};

    cr_assert(text && out);
    text[0] = out[0] = 'x';
    for (size_t i = 0; i < MARKS; i++) {
        memcpy(text + 1 + 2 * i, "\xcc\x81", 2);
        memcpy(text + 1 + 2 * (i + MARKS), "\xcc\x96", 2);
        memcpy(out + 1 + 2 * i, "\xcc\x96", 2);
        memcpy(out + 1 + 2 * (i + MARKS), "\xcc\x81", 2);
    }
    expect(&n, text, len, out, len);
    shunt_normalizer_fini(&n);
    free(text);
    free(out);
}

Test(normalize, finds_the_first_byte_that_is_no_utf8)
{
    static const struct {
        const char *text;
        size_t len, good;
    } cases[] = {
        {"", 0, 0},
        {"a\0b", 3, 3},
        {"\xc3\xa9", 2, 2},
        {"ab\xc3", 3, 2}, /* cut */
        {"ab\xe2\x82", 4, 2},
        {"\x80", 1, 0}, /* continuation alone */
        {"a\xff", 2, 1},
        {"\xc0\x80", 2, 0}, /* overlong */
        {"\xe0\x80\xaf", 3, 0},
        {"\xf0\x80\x80\xaf", 4, 0},
        {"\xed\xa0\x80", 3, 0},     /* surrogate */
        {"\xf4\x8f\xbf\xbf", 4, 4}, /* U+10FFFF */
        {"\xf4\x90\x80\x80", 4, 0}, /* beyond */
        {"\xef\xbf\xbf", 3, 3},     /* a noncharacter is UTF-8 */
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        cr_expect_eq(shunt_utf8_check(cases[i].text, cases[i].len), cases[i].good, "case %zu", i);
}
