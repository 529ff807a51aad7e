/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/vocab.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/base/bytes.h"
#include "runtime/base/seed.h"
#include "runtime/model/normalize.h"
#include "runtime/model/tokenizer.h"

_Static_assert(SHUNT_TOKEN_BYTES_MAX <= UINT16_MAX, "struct shunt_token holds a length in 16 bits");
_Static_assert(SHUNT_GGUF_HEADER_MAX <= UINT32_MAX,
               "struct shunt_token holds an offset in 32 bits");

/* ---- stand-ins */

/* GPT-2 writes a byte as the Latin-1 character of its number where that is printable, and the 68
 * others, in order, as the characters from U+0100 on. */
#define STAND_INS_OTHER 0x100u
#define STAND_INS_END   (STAND_INS_OTHER + 68u)

static bool stands_for_itself(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
           (byte >= 0xae && byte <= 0xff);
}

static uint32_t stand_in_point(uint32_t byte)
{
    uint32_t others = 0;

    if (stands_for_itself(byte))
        return byte;
    for (uint32_t b = 0; b < byte; b++)
        others += !stands_for_itself(b);
    return STAND_INS_OTHER + others;
}

/* The byte of a stand-in, or -1 for another character: 00-20, then 7f-a0, then ad. */
static int byte_of_point(uint32_t point)
{
    uint32_t other = point - STAND_INS_OTHER;

    if (point < STAND_INS_OTHER)
        return stands_for_itself(point) ? (int)point : -1;
    if (point >= STAND_INS_END)
        return -1;
    if (other <= 0x20)
        return (int)other;
    return other == 67 ? 0xad : (int)(other - 0x21 + 0x7f);
}

size_t shunt_vocab_stand_in(unsigned char byte, char text[2])
{
    uint32_t point = stand_in_point(byte);

    if (point < 0x80) {
        text[0] = (char)point;
        return 1;
    }
    text[0] = (char)(0xc0 | point >> 6);
    text[1] = (char)(0x80 | (point & 0x3f));
    return 2;
}

/* Takes one stand-in from the text. Return: its length, or 0 when there is none. */
static size_t take_stand_in(const char *text, size_t len, char *byte)
{
    unsigned char lead = (unsigned char)text[0];
    size_t used = lead < 0x80 ? 1 : 2;
    uint32_t point = lead;
    int b;

    if (used > len)
        return 0;
    if (used == 2) {
        unsigned char low = (unsigned char)text[1];

        if ((lead & 0xe0) != 0xc0 || (low & 0xc0) != 0x80)
            return 0;
        point = (lead & 0x1fu) << 6 | (low & 0x3fu);
    }
    b = byte_of_point(point);
    if (b < 0)
        return 0;
    *byte = (char)b;
    return used;
}

size_t shunt_vocab_bytes(const struct shunt_vocab *vocab, uint32_t id, char *bytes, size_t max)
{
    const struct shunt_token *token = &vocab->tokens[id];
    const char *text = vocab->texts + token->off;
    size_t count = 0;

    for (size_t pos = 0; pos < token->len; count++) {
        char byte;
        size_t used = take_stand_in(text + pos, token->len - pos, &byte);

        if (!used) {
            if (max)
                memcpy(bytes, text, token->len < max ? token->len : max);
            return token->len;
        }
        if (count < max)
            bytes[count] = byte;
        pos += used;
    }
    return count;
}

/* ---- loading */

static int find_array(const struct shunt_gguf *gguf, const char *key, enum shunt_gguf_type element,
                      const char *path, const struct shunt_gguf_kv **kv, struct shunt_error *err)
{
    *kv = shunt_gguf_find(gguf, key);
    if (*kv && ((*kv)->type != SHUNT_GGUF_ARRAY || (*kv)->element != element))
        return shunt_error_set(err, -EBADMSG, "%s: key %s is no array of %s", path, key,
                               element == SHUNT_GGUF_STRING ? "strings" : "32-bit integers");
    return 0;
}

static int load_texts(struct shunt_vocab *vocab, const struct shunt_gguf *gguf, const char *path,
                      struct shunt_error *err)
{
    static const char key[] = "tokenizer.ggml.tokens";
    const struct shunt_gguf_kv *kv;
    const unsigned char *cursor;
    int rc = find_array(gguf, key, SHUNT_GGUF_STRING, path, &kv, err);

    if (rc)
        return rc;
    if (!kv || kv->count == 0 || kv->count > SHUNT_TOKENS_MAX)
        return shunt_error_set(err, -EBADMSG, "%s: key %s has %" PRIu64 " tokens, not 1 to %u",
                               path, key, kv ? kv->count : 0, SHUNT_TOKENS_MAX);
    vocab->count = (uint32_t)kv->count;
    vocab->tokens = calloc(vocab->count, sizeof(*vocab->tokens));
    if (!vocab->tokens)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for %" PRIu32 " tokens", path,
                               vocab->count);
    cursor = kv->data;
    for (uint32_t id = 0; id < vocab->count; id++) {
        struct shunt_gguf_string text = shunt_gguf_next_string(&cursor);

        if (text.len > SHUNT_TOKEN_BYTES_MAX)
            return shunt_error_set(err, -EBADMSG,
                                   "%s: key %s: token %" PRIu32 " has %zu bytes, more than %u",
                                   path, key, id, text.len, SHUNT_TOKEN_BYTES_MAX);
        vocab->tokens[id] = (struct shunt_token){.off = (uint32_t)(text.data - vocab->texts),
                                                 .len = (uint16_t)text.len,
                                                 .type = SHUNT_TOKEN_NORMAL};
    }
    return 0;
}

static int load_types(struct shunt_vocab *vocab, const struct shunt_gguf *gguf, const char *path,
                      struct shunt_error *err)
{
    static const char key[] = "tokenizer.ggml.token_type";
    const struct shunt_gguf_kv *kv;
    int rc = find_array(gguf, key, SHUNT_GGUF_I32, path, &kv, err);

    if (rc || !kv)
        return rc; /* without the key all tokens are normal */
    if (kv->count != vocab->count)
        return shunt_error_set(err, -EBADMSG,
                               "%s: key %s has %" PRIu64
                               " entries, but tokenizer.ggml.tokens has %" PRIu32,
                               path, key, kv->count, vocab->count);
    for (uint32_t id = 0; id < vocab->count; id++) {
        uint32_t type = shunt_load_u32(kv->data + 4 * (size_t)id);

        if (type >= SHUNT_TOKEN_TYPES)
            return shunt_error_set(err, -EBADMSG,
                                   "%s: key %s gives token %" PRIu32 " the unknown type %" PRId32,
                                   path, key, id, (int32_t)type);
        vocab->tokens[id].type = (uint16_t)type;
    }
    return 0;
}

static int by_text(const void *a, const void *b)
{
    const struct shunt_special *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);

    if (order)
        return order;
    if (x->len != y->len)
        return x->len < y->len ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static bool is_special(const struct shunt_token *token)
{
    return token->len &&
           (token->type == SHUNT_TOKEN_CONTROL || token->type == SHUNT_TOKEN_USER_DEFINED);
}

static int load_specials(struct shunt_vocab *vocab, const char *path, struct shunt_error *err)
{
    uint32_t count = 0;

    for (uint32_t id = 0; id < vocab->count; id++)
        count += is_special(&vocab->tokens[id]);
    vocab->specials = calloc(count + 1u, sizeof(*vocab->specials));
    if (!vocab->specials)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for %" PRIu32 " special tokens",
                               path, count);
    for (uint32_t id = 0; id < vocab->count; id++) {
        const struct shunt_token *token = &vocab->tokens[id];

        if (!is_special(token))
            continue;
        /* Cutting one out of UTF-8 must leave UTF-8 on both sides. */
        if (shunt_utf8_check(vocab->texts + token->off, token->len) < token->len)
            return shunt_error_set(err, -EBADMSG,
                                   "%s: key tokenizer.ggml.tokens: the special token %" PRIu32
                                   " is no UTF-8; convert the model again",
                                   path, id);
        vocab->specials[vocab->special_count++] =
            (struct shunt_special){.text = vocab->texts + token->off, .len = token->len, .id = id};
        vocab->special_begins[(unsigned char)vocab->texts[token->off]] = true;
    }
    qsort(vocab->specials, count, sizeof(*vocab->specials), by_text);
    return 0;
}

int shunt_vocab_load(struct shunt_vocab *vocab, const struct shunt_gguf *gguf, const char *path,
                     struct shunt_error *err)
{
    int rc;

    memset(vocab, 0, sizeof(*vocab));
    vocab->texts = (const char *)gguf->header;
    rc = load_texts(vocab, gguf, path, err);
    if (!rc)
        rc = load_types(vocab, gguf, path, err);
    if (!rc)
        rc = load_specials(vocab, path, err);
    if (rc)
        shunt_vocab_fini(vocab);
    return rc;
}

void shunt_vocab_fini(struct shunt_vocab *vocab)
{
    free(vocab->tokens);
    free(vocab->specials);
    memset(vocab, 0, sizeof(*vocab));
}

/* ---- finding */

static uint32_t *find_slot(const struct shunt_vocab_index *index, const char *text, size_t len)
{
    const struct shunt_vocab *v = index->vocab;
    uint32_t at = (uint32_t)XXH3_64bits_withSeed(text, len, index->seed) & index->mask;

    while (index->slots[at]) {
        const struct shunt_token *token = &v->tokens[index->slots[at] - 1];

        if (token->len == len && !memcmp(v->texts + token->off, text, len))
            break;
        at = (at + 1) & index->mask;
    }
    return &index->slots[at];
}

int shunt_vocab_index_init(struct shunt_vocab_index *index, const struct shunt_vocab *vocab)
{
    uint32_t slot_count = 4;

    while (slot_count < vocab->count + vocab->count / 2)
        slot_count *= 2;
    index->vocab = vocab;
    index->mask = slot_count - 1;
    index->seed = shunt_hash_seed();
    index->slots = calloc(slot_count, sizeof(*index->slots));
    if (!index->slots)
        return -ENOMEM;
    for (uint32_t id = 0; id < vocab->count; id++) {
        const struct shunt_token *token = &vocab->tokens[id];
        uint32_t *slot = find_slot(index, vocab->texts + token->off, token->len);

        if (!*slot)
            *slot = id + 1;
    }
    return 0;
}

void shunt_vocab_index_fini(struct shunt_vocab_index *index)
{
    free(index->slots);
    memset(index, 0, sizeof(*index));
}

uint32_t shunt_vocab_find(const struct shunt_vocab_index *index, const char *text, size_t len)
{
    uint32_t slot = *find_slot(index, text, len);

    return slot ? slot - 1 : SHUNT_TOKEN_NONE;
}

/* The first of the specials in [lo, hi), all longer than `depth`, whose byte there is >= `byte`. */
static const struct shunt_special *lower_bound(const struct shunt_special *lo,
                                               const struct shunt_special *hi, size_t depth,
                                               uint32_t byte)
{
    while (lo < hi) {
        const struct shunt_special *mid = lo + (hi - lo) / 2;

        if ((unsigned char)mid->text[depth] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Narrows the sorted table byte by byte. In it, a special comes before all that it begins. */
const struct shunt_special *shunt_vocab_match(const struct shunt_vocab *vocab, const char *text,
                                              size_t len, bool control)
{
    const struct shunt_special *lo = vocab->specials;
    const struct shunt_special *hi = lo + vocab->special_count;
    const struct shunt_special *best = NULL;

    if (len == 0 || !vocab->special_begins[(unsigned char)text[0]])
        return NULL;
    for (size_t depth = 0; lo < hi; depth++) {
        for (; lo < hi && lo->len == depth; lo++)
            if ((control || vocab->tokens[lo->id].type == SHUNT_TOKEN_USER_DEFINED) &&
                (!best || best->len < depth))
                best = lo;
        if (depth == len)
            break;
        lo = lower_bound(lo, hi, depth, (unsigned char)text[depth]);
        hi = lower_bound(lo, hi, depth, (unsigned char)text[depth] + 1u);
    }
    return best;
}
