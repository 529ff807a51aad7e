/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/tokenizer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/bpe.h"
#include "runtime/model/normalize.h"
#include "runtime/model/pretokenize.h"
#include "runtime/model/vocab.h"

#define KIND_ROOM 32
#define ENDS_MAX  4 /* EOS, EOT, EOM, <|endoftext|> */

struct shunt_tokenizer {
    struct shunt_vocab vocab;
    struct shunt_bpe bpe;
    struct shunt_pretokenizer *pre;
    char kind[KIND_ROOM];
    int32_t bos, eos; /* -1: none */
    int32_t ends[ENDS_MAX];
    uint32_t end_count;
    bool adds_bos;
    size_t piece_max;
};

/* ---- building */

static int load_bytes(struct shunt_tokenizer *t, const struct shunt_vocab_index *index,
                      const char *path, struct shunt_error *err)
{
    for (uint32_t b = 0; b < 256; b++) {
        char text[2];
        size_t len = shunt_vocab_stand_in((unsigned char)b, text);

        t->bpe.byte_ids[b] = shunt_vocab_find(index, text, len);
        if (t->bpe.byte_ids[b] == SHUNT_TOKEN_NONE)
            return shunt_error_set(err, -EBADMSG,
                                   "%s: key tokenizer.ggml.tokens has no token '%.*s', the "
                                   "stand-in of byte 0x%02x; convert the model again",
                                   path, (int)len, text, b);
    }
    return 0;
}

/* Adds "left right". Return: NULL, or what of it is not a token. */
static const char *add_merge(struct shunt_tokenizer *t, const struct shunt_vocab_index *index,
                             struct shunt_gguf_string merge)
{
    /* No stand-in is a space, so the space is where the two meet. */
    const char *space = memchr(merge.data, ' ', merge.len);
    size_t left_len = space ? (size_t)(space - merge.data) : merge.len;
    size_t right_len = space ? merge.len - left_len - 1 : 0;
    char joined[SHUNT_TOKEN_BYTES_MAX];
    uint32_t left, right, result;

    if (merge.len > SHUNT_TOKEN_BYTES_MAX)
        return "their whole";
    left = shunt_vocab_find(index, merge.data, left_len);
    right = shunt_vocab_find(index, merge.data + merge.len - right_len, right_len);
    memcpy(joined, merge.data, left_len);
    memcpy(joined + left_len, merge.data + merge.len - right_len, right_len);
    result = shunt_vocab_find(index, joined, left_len + right_len);
    if (left == SHUNT_TOKEN_NONE)
        return "the left one";
    if (right_len == 0 || right == SHUNT_TOKEN_NONE)
        return "the right one";
    if (result == SHUNT_TOKEN_NONE)
        return "their whole";
    shunt_bpe_add(&t->bpe, left, right, result);
    return NULL;
}

static int load_merges(struct shunt_tokenizer *t, const struct shunt_vocab_index *index,
                       const struct shunt_gguf *gguf, const char *path, struct shunt_error *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    const struct shunt_gguf_kv *kv = shunt_gguf_find(gguf, key);
    const unsigned char *cursor;

    if (!kv || kv->type != SHUNT_GGUF_ARRAY || kv->element != SHUNT_GGUF_STRING ||
        kv->count > SHUNT_TOKENS_MAX)
        return shunt_error_set(err, -EBADMSG,
                               "%s: key %s is missing or no array of at most %u strings", path, key,
                               SHUNT_TOKENS_MAX);
    if (shunt_bpe_init(&t->bpe, (uint32_t)kv->count))
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for %" PRIu64 " merges", path,
                               kv->count);
    cursor = kv->data;
    for (uint32_t i = 0; i < kv->count; i++) {
        struct shunt_gguf_string merge = shunt_gguf_next_string(&cursor);
        const char *unknown = add_merge(t, index, merge);

        if (unknown)
            return shunt_error_set(err, -EBADMSG,
                                   "%s: key %s: entry %" PRIu32 ", '%.*s', joins tokens of which "
                                   "%s is not in the vocabulary; convert the model again",
                                   path, key, i, merge.len < 64 ? (int)merge.len : 64, merge.data,
                                   unknown);
    }
    return 0;
}

static int load_tables(struct shunt_tokenizer *t, const struct shunt_gguf *gguf, const char *path,
                       struct shunt_error *err)
{
    struct shunt_vocab_index index = {0};
    int rc = shunt_vocab_load(&t->vocab, gguf, path, err);

    if (rc)
        return rc;
    if (shunt_vocab_index_init(&index, &t->vocab))
        return shunt_error_set(err, -ENOMEM,
                               "%s: out of memory for the index of %" PRIu32 " tokens", path,
                               t->vocab.count);
    rc = load_merges(t, &index, gguf, path, err);
    if (!rc)
        rc = load_bytes(t, &index, path, err);
    shunt_vocab_index_fini(&index);
    return rc;
}

/* An id that the file may name. *id stays -1 when it does not. */
static int load_id(const struct shunt_tokenizer *t, const struct shunt_gguf *gguf, const char *key,
                   int32_t *id, const char *path, struct shunt_error *err)
{
    uint32_t value = 0;
    int rc = shunt_gguf_get_u32(gguf, key, &value);

    *id = -1;
    if (rc == -ENOENT)
        return 0;
    if (rc || value >= t->vocab.count)
        return shunt_error_set(err, -EBADMSG,
                               "%s: key %s is no id of the vocabulary's %" PRIu32 " tokens", path,
                               key, t->vocab.count);
    *id = (int32_t)value;
    return 0;
}

static void add_end(struct shunt_tokenizer *t, int32_t id)
{
    if (id >= 0)
        t->ends[t->end_count++] = id;
}

static int load_ids(struct shunt_tokenizer *t, const struct shunt_gguf *gguf, const char *path,
                    struct shunt_error *err)
{
    static const char end_of_text[] = "<|endoftext|>";
    const struct shunt_special *end =
        shunt_vocab_match(&t->vocab, end_of_text, sizeof(end_of_text) - 1, true);
    int32_t eot, eom, ignored;
    const struct {
        const char *key;
        int32_t *id;
    } ids[] = {
        {"tokenizer.ggml.bos_token_id", &t->bos},
        {"tokenizer.ggml.eos_token_id", &t->eos},
        {"tokenizer.ggml.eot_token_id", &eot},
        {"tokenizer.ggml.eom_token_id", &eom},
        {"tokenizer.ggml.unknown_token_id", &ignored},
        {"tokenizer.ggml.padding_token_id", &ignored},
    };

    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        int rc = load_id(t, gguf, ids[i].key, ids[i].id, path, err);

        if (rc)
            return rc;
    }
    if (shunt_gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &t->adds_bos) == -EBADMSG)
        return shunt_error_set(err, -EBADMSG, "%s: key tokenizer.ggml.add_bos_token is no boolean",
                               path);
    add_end(t, t->eos);
    add_end(t, eot);
    add_end(t, eom);
    if (end && end->len == sizeof(end_of_text) - 1 &&
        t->vocab.tokens[end->id].type == SHUNT_TOKEN_CONTROL)
        add_end(t, (int32_t)end->id);
    return 0;
}

static int load_kind(struct shunt_tokenizer *t, const struct shunt_gguf *gguf, const char *path,
                     struct shunt_error *err)
{
    struct shunt_gguf_string model, pre;
    int rc;

    if (shunt_gguf_get_string(gguf, "tokenizer.ggml.model", &model))
        return shunt_error_set(err, -ENOTSUP, "%s: the file has no tokenizer; give ids, not text",
                               path);
    if (model.len != 4 || memcmp(model.data, "gpt2", 4))
        return shunt_error_set(err, -ENOTSUP,
                               "%s: the tokenizer is of the kind %.*s; this version knows gpt2: "
                               "give ids, not text",
                               path, model.len < 64 ? (int)model.len : 64, model.data);
    if (shunt_gguf_get_string(gguf, "tokenizer.ggml.pre", &pre))
        return shunt_error_set(err, -ENOTSUP,
                               "%s: key tokenizer.ggml.pre is missing, so how text is split is "
                               "unknown; convert the model again, or give ids, not text",
                               path);
    rc = shunt_pretokenizer_open(&t->pre, pre.data, pre.len, err);
    if (rc == -ENOENT)
        return shunt_error_set(err, -ENOTSUP,
                               "%s: the pre-tokenizer is %.*s; this version knows qwen2: give ids, "
                               "not text",
                               path, pre.len < 64 ? (int)pre.len : 64, pre.data);
    if (rc)
        return rc;
    snprintf(t->kind, sizeof(t->kind), "gpt2/%s", shunt_pretokenizer_name(t->pre));
    return 0;
}

static void measure_pieces(struct shunt_tokenizer *t)
{
    for (uint32_t id = 0; id < t->vocab.count; id++) {
        size_t len = (size_t)shunt_tokenizer_decode(t, (int32_t)id, true, NULL, 0);

        if (len > t->piece_max)
            t->piece_max = len;
    }
}

static int build(struct shunt_tokenizer *t, const struct shunt_gguf *gguf, const char *path,
                 struct shunt_error *err)
{
    int rc = load_kind(t, gguf, path, err);

    if (rc)
        return rc;
    rc = load_tables(t, gguf, path, err);
    if (rc)
        return rc;
    rc = load_ids(t, gguf, path, err);
    if (rc)
        return rc;
    measure_pieces(t);
    return 0;
}

int shunt_tokenizer_open(struct shunt_tokenizer **out, const struct shunt_gguf *gguf,
                         const char *path, struct shunt_error *err)
{
    struct shunt_tokenizer *t = calloc(1, sizeof(*t));
    int rc;

    if (!t)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for the tokenizer", path);
    rc = build(t, gguf, path, err);
    if (rc) {
        shunt_tokenizer_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

void shunt_tokenizer_close(struct shunt_tokenizer *t)
{
    if (!t)
        return;
    shunt_pretokenizer_close(t->pre);
    shunt_bpe_fini(&t->bpe);
    shunt_vocab_fini(&t->vocab);
    free(t);
}

/* ---- asking */

uint32_t shunt_tokenizer_vocab_count(const struct shunt_tokenizer *t)
{
    return t->vocab.count;
}

int32_t shunt_tokenizer_bos(const struct shunt_tokenizer *t)
{
    return t->bos;
}

int32_t shunt_tokenizer_eos(const struct shunt_tokenizer *t)
{
    return t->eos;
}

bool shunt_tokenizer_adds_bos(const struct shunt_tokenizer *t)
{
    return t->adds_bos;
}

const char *shunt_tokenizer_kind(const struct shunt_tokenizer *t)
{
    return t->kind;
}

bool shunt_tokenizer_is_end(const struct shunt_tokenizer *t, int32_t id)
{
    for (uint32_t i = 0; i < t->end_count; i++)
        if (t->ends[i] == id)
            return true;
    return false;
}

size_t shunt_tokenizer_piece_max(const struct shunt_tokenizer *t)
{
    return t->piece_max;
}

/* ---- encoding */

/* One call's memory, and the ids it has found. */
struct encoder {
    const struct shunt_tokenizer *t;
    struct shunt_normalizer normalizer;
    struct shunt_pieces pieces;
    struct shunt_bpe_work work;
    int32_t *ids;
    size_t id_max;
    size_t id_count; /* may exceed id_max */
};

static void put_id(struct encoder *e, int32_t id)
{
    if (e->id_count < e->id_max)
        e->ids[e->id_count] = id;
    e->id_count++;
}

/* Text without special tokens. Return: 0, -ENOMEM. */
static int encode_plain(struct encoder *e, const char *text, size_t len)
{
    const char *piece;
    int more;

    if (len == 0)
        return 0;
    if (shunt_normalize(&e->normalizer, text, len, &text, &len) ||
        shunt_pieces_begin(&e->pieces, e->t->pre, text, len))
        return -ENOMEM;
    while ((more = shunt_pieces_next(&e->pieces, &piece, &len)) > 0) {
        size_t room = e->id_count < e->id_max ? e->id_max - e->id_count : 0;
        int64_t count = shunt_bpe_encode(&e->t->bpe, &e->work, piece, len,
                                         room ? e->ids + e->id_count : NULL, room);

        if (count < 0)
            return -ENOMEM;
        e->id_count += (size_t)count;
    }
    return more;
}

static int encode(struct encoder *e, const char *text, size_t len, bool control)
{
    size_t plain = 0; /* where the text not yet encoded begins */
    size_t pos = 0;

    while (pos < len) {
        const struct shunt_special *special =
            shunt_vocab_match(&e->t->vocab, text + pos, len - pos, control);

        if (!special) {
            pos++;
            continue;
        }
        if (encode_plain(e, text + plain, pos - plain))
            return -ENOMEM;
        put_id(e, (int32_t)special->id);
        pos += special->len;
        plain = pos;
    }
    return encode_plain(e, text + plain, len - plain);
}

int64_t shunt_tokenizer_encode(const struct shunt_tokenizer *t, const char *text, size_t text_len,
                               uint32_t flags, int32_t *ids, size_t id_max, struct shunt_error *err)
{
    struct encoder e = {.t = t, .ids = ids, .id_max = id_max};
    size_t good;
    int rc;

    if (text_len > SHUNT_TEXT_BYTES_MAX)
        return shunt_error_set(err, -EFBIG,
                               "a text of %zu bytes; at most %llu are tokenized at once", text_len,
                               SHUNT_TEXT_BYTES_MAX);
    good = shunt_utf8_check(text, text_len);
    if (good < text_len)
        return shunt_error_set(err, -EILSEQ,
                               "the text is no UTF-8 at byte %zu (0x%02x); convert it first", good,
                               (unsigned char)text[good]);
    if ((flags & SHUNT_TOKENIZE_BOS) && t->adds_bos && t->bos >= 0)
        put_id(&e, t->bos);
    rc = text_len == 0 ? 0 : encode(&e, text, text_len, flags & SHUNT_TOKENIZE_SPECIAL);
    shunt_normalizer_fini(&e.normalizer);
    shunt_pieces_fini(&e.pieces);
    shunt_bpe_work_fini(&e.work);
    if (rc)
        return shunt_error_set(err, rc, "out of memory for a text of %zu bytes", text_len);
    return (int64_t)e.id_count;
}

/* ---- decoding */

int64_t shunt_tokenizer_decode(const struct shunt_tokenizer *t, int32_t id, bool special,
                               char *text, size_t text_max)
{
    const struct shunt_token *token;

    if (id < 0 || (uint32_t)id >= t->vocab.count)
        return -ERANGE;
    token = &t->vocab.tokens[id];
    switch (token->type) {
    case SHUNT_TOKEN_CONTROL:
    case SHUNT_TOKEN_UNKNOWN:
    case SHUNT_TOKEN_UNUSED:
        if (!special)
            return 0;
        break;
    case SHUNT_TOKEN_USER_DEFINED:
        break;
    default:
        return (int64_t)shunt_vocab_bytes(&t->vocab, (uint32_t)id, text, text_max);
    }
    /* Special tokens are text, not stand-ins. */
    if (text_max)
        memcpy(text, t->vocab.texts + token->off, token->len < text_max ? token->len : text_max);
    return token->len;
}
