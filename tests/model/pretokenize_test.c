/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/pretokenize.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

/* Pieces apart by '|', which the texts here do not hold. */
static const char *split(struct shunt_pieces *it, const struct shunt_pretokenizer *p,
                         const char *text, char *out)
{
    const char *piece;
    size_t len, at = 0;

    cr_assert_eq(shunt_pieces_begin(it, p, text, strlen(text)), 0);
    while (shunt_pieces_next(it, &piece, &len) > 0) {
        if (at)
            out[at++] = '|';
        memcpy(out + at, piece, len);
        at += len;
    }
    out[at] = '\0';
    return out;
}

Test(pretokenize, splits_as_qwen2)
{
    static const struct {
        const char *text, *pieces;
    } cases[] = {
        {"", ""},
        {"Hello world", "Hello| world"},
        {"I'll we'VE don't", "I|'ll| we|'VE| don|'t"},
        {"'\xc5\xbf", "'\xc5\xbf"}, /* U+017F is a form of s */
        {"x=42;", "x|=|4|2|;"},
        {"a  b", "a| | b"}, /* the last space belongs to the word */
        {"a   ", "a|   "},
        {"a \n  b", "a| \n| | b"},
        {"\n\n\tx", "\n\n|\tx"},
        {" !?\r\n\r\nx", " !?\r\n\r\n|x"},
        {"a\xc2\xa0\xc2\xa0"
         "b",
         "a|\xc2\xa0|\xc2\xa0"
         "b"}, /* no-break spaces are spaces */
        {"a\xe1\xa0\x8e\xe1\xa0\x8e!", "a|\xe1\xa0\x8e\xe1\xa0\x8e!"}, /* U+180E is none any more */
        {"a\xe2\x80\x8b!", "a|\xe2\x80\x8b!"},                         /* nor is U+200B */
        {"a\xc2\x85!", "a|\xc2\x85|!"},                                /* U+0085 is */
        {"\xcc\x81"
         "a",
         "\xcc\x81"
         "a"},                                     /* one mark joins the letters after it */
        {"\xd9\xa1\xc2\xbd", "\xd9\xa1|\xc2\xbd"}, /* numbers one by one */
    };
    struct shunt_pretokenizer *p;
    struct shunt_pieces it = {0};
    char out[64];

    cr_assert_eq(shunt_pretokenizer_open(&p, "qwen2", 5, NULL), 0);
    cr_expect_str_eq(shunt_pretokenizer_name(p), "qwen2");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        cr_expect_str_eq(split(&it, p, cases[i].text, out), cases[i].pieces, "case %zu: %s", i,
                         split(&it, p, cases[i].text, out));
    shunt_pieces_fini(&it);
    shunt_pretokenizer_close(p);
    shunt_pretokenizer_close(NULL);
}

Test(pretokenize, knows_its_patterns_by_name)
{
    struct shunt_pretokenizer *p = NULL;

    cr_expect_eq(shunt_pretokenizer_open(&p, "qwen", 4, NULL), -ENOENT);
    cr_expect_eq(shunt_pretokenizer_open(&p, "", 0, NULL), -ENOENT);
    cr_expect_null(p);
}
