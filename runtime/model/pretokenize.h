/* SPDX-License-Identifier: Apache-2.0
 *
 * Splitting text into the pieces that are merged on their own: words with the space before them,
 * single digits, runs of punctuation, runs of white space. The pattern decides; it belongs to the
 * model as its vocabulary does.
 */
#ifndef SHUNT_MODEL_PRETOKENIZE_H
#define SHUNT_MODEL_PRETOKENIZE_H

#include "runtime/base/error.h"

/* A compiled pattern. Read-only, any thread. */
struct shunt_pretokenizer;

/* `name` is GGUF's tokenizer.ggml.pre. Return: 0; -ENOENT for an unknown name (err untouched: the
 * caller knows the file); -ENOTSUP when the PCRE2 library lacks something; -ENOMEM. */
int shunt_pretokenizer_open(struct shunt_pretokenizer **p, const char *name, size_t name_len,
                            struct shunt_error *err);
void shunt_pretokenizer_close(struct shunt_pretokenizer *p);

/* "qwen2". Static. */
const char *shunt_pretokenizer_name(const struct shunt_pretokenizer *p);

/* A walk over the pieces of one text. Zeroed: no memory taken. One thread. */
struct shunt_pieces {
    const struct shunt_pretokenizer *p;
    void *match; /* owned */
    const char *text;
    size_t len, pos;
};

/* `text` is UTF-8 in normal form C and stays until the walk is over. The same walk may begin again
 * with another text. Return: 0, -ENOMEM. */
int shunt_pieces_begin(struct shunt_pieces *it, const struct shunt_pretokenizer *p,
                       const char *text, size_t len);

/* Return: 1 with a piece of at least one byte, 0 at the end, -ENOMEM. The pieces add up to the
 * text. */
int shunt_pieces_next(struct shunt_pieces *it, const char **piece, size_t *len);

void shunt_pieces_fini(struct shunt_pieces *it);

#endif
