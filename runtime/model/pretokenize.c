/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/pretokenize.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Unicode's White_Space, spelled out: PCRE2's \s has U+180E besides. For use inside [ ]. */
#define SPACE                                                                                      \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"             \
    "\\x{202f}\\x{205f}\\x{3000}"

/* Published with the models, in tokenizer.json. Each text has a piece at its beginning: letters,
 * numbers and spaces have an alternative each, and so has what is none of them. */
static const struct pattern {
    const char *name;
    const char *text;
} patterns[] = {
    {"qwen2", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
              "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
              "|\\p{N}"
              "| ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n]*"
              "|[" SPACE "]*[\\r\\n]+"
              "|[" SPACE "]+(?![^" SPACE "])"
              "|[" SPACE "]+"},
};

struct shunt_pretokenizer {
    const struct pattern *pattern;
    pcre2_code *code;
    pcre2_match_context *context;
};

static int compile(struct shunt_pretokenizer *p, struct shunt_error *err)
{
    PCRE2_SIZE at;
    PCRE2_UCHAR text[128];
    int code;

    /* UCP stays off: \p means Unicode anyway, and nothing else in the patterns depends on it. Every
     * match begins where the last one ended, so looking ahead for a start cannot help. */
    p->code = pcre2_compile((PCRE2_SPTR)p->pattern->text, PCRE2_ZERO_TERMINATED,
                            PCRE2_UTF | PCRE2_ANCHORED | PCRE2_NO_START_OPTIMIZE, &code, &at, NULL);
    if (!p->code && code == PCRE2_ERROR_HEAP_FAILED)
        return shunt_error_set(err, -ENOMEM, "out of memory for the pattern %s", p->pattern->name);
    if (!p->code) {
        pcre2_get_error_message(code, text, sizeof(text));
        return shunt_error_set(err, -ENOTSUP,
                               "this PCRE2 library refuses the pattern %s at %zu: %s",
                               p->pattern->name, (size_t)at, (const char *)text);
    }
    p->context = pcre2_match_context_create(NULL);
    if (!p->context)
        return shunt_error_set(err, -ENOMEM, "out of memory for the pattern %s", p->pattern->name);
    /* A run of spaces is given back one by one in search of a line's end: as many steps as spaces,
     * each taken a fixed number of times. That is linear and no runaway, however long the run. */
    pcre2_set_match_limit(p->context, UINT32_MAX);
    return 0;
}

int shunt_pretokenizer_open(struct shunt_pretokenizer **out, const char *name, size_t name_len,
                            struct shunt_error *err)
{
    const struct pattern *pattern = NULL;
    struct shunt_pretokenizer *p;
    int rc;

    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++)
        if (strlen(patterns[i].name) == name_len && !memcmp(patterns[i].name, name, name_len))
            pattern = &patterns[i];
    if (!pattern)
        return -ENOENT;
    p = calloc(1, sizeof(*p));
    if (!p)
        return shunt_error_set(err, -ENOMEM, "out of memory for the pattern %s", pattern->name);
    p->pattern = pattern;
    rc = compile(p, err);
    if (rc) {
        shunt_pretokenizer_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void shunt_pretokenizer_close(struct shunt_pretokenizer *p)
{
    if (!p)
        return;
    pcre2_match_context_free(p->context);
    pcre2_code_free(p->code);
    free(p);
}

const char *shunt_pretokenizer_name(const struct shunt_pretokenizer *p)
{
    return p->pattern->name;
}

int shunt_pieces_begin(struct shunt_pieces *it, const struct shunt_pretokenizer *p,
                       const char *text, size_t len)
{
    if (!it->match)
        it->match = pcre2_match_data_create(1, NULL); /* one pair: where the whole match lies */
    if (!it->match)
        return -ENOMEM;
    it->p = p;
    it->text = text;
    it->len = len;
    it->pos = 0;
    return 0;
}

int shunt_pieces_next(struct shunt_pieces *it, const char **piece, size_t *len)
{
    size_t end;
    int rc;

    if (it->pos == it->len)
        return 0;
    rc = pcre2_match(it->p->code, (PCRE2_SPTR)it->text, it->len, it->pos, PCRE2_NO_UTF_CHECK,
                     it->match, it->p->context);
    /* The pattern matches at any place of any UTF-8, so only memory can be missing. */
    if (rc < 0)
        return -ENOMEM;
    end = pcre2_get_ovector_pointer(it->match)[1];
    *piece = it->text + it->pos;
    *len = end - it->pos;
    it->pos = end;
    return 1;
}

void shunt_pieces_fini(struct shunt_pieces *it)
{
    pcre2_match_data_free(it->match);
    memset(it, 0, sizeof(*it));
}
