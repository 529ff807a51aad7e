/* SPDX-License-Identifier: Apache-2.0
 *
 * The tokens of a GGUF header: their text, their type, which of them are special, and which bytes a
 * token stands for. Texts stay in the header's buffer; a token takes 8 bytes here.
 */
#ifndef SHUNT_MODEL_VOCAB_H
#define SHUNT_MODEL_VOCAB_H

#include "runtime/model/gguf.h"

/* GGUF's numbers. */
enum shunt_token_type {
    SHUNT_TOKEN_UNDEFINED = 0, /* taken as NORMAL */
    SHUNT_TOKEN_NORMAL = 1,
    SHUNT_TOKEN_UNKNOWN = 2,
    SHUNT_TOKEN_CONTROL = 3,
    SHUNT_TOKEN_USER_DEFINED = 4,
    SHUNT_TOKEN_UNUSED = 5,
    SHUNT_TOKEN_BYTE = 6, /* taken as NORMAL */
    SHUNT_TOKEN_TYPES
};

struct shunt_token {
    uint32_t off; /* of its text in the header */
    uint16_t len; /* <= SHUNT_TOKEN_BYTES_MAX */
    uint16_t type;
};

/* A token that is cut out of the text as a whole. */
struct shunt_special {
    const char *text; /* into the header */
    uint32_t len;     /* >= 1 */
    uint32_t id;
};

/* Read-only once loaded: any thread. */
struct shunt_vocab {
    const char *texts;          /* the GGUF header, not owned */
    struct shunt_token *tokens; /* owned */
    uint32_t count;
    struct shunt_special *specials; /* owned; CONTROL and USER_DEFINED, ascending by text */
    uint32_t special_count;
    bool special_begins[256]; /* by its first byte */
};

/* Finds ids by text while a tokenizer is built. */
struct shunt_vocab_index {
    const struct shunt_vocab *vocab;
    uint32_t *slots; /* owned: id + 1, 0 is free; open addressing */
    uint32_t mask;   /* a power of 2, minus 1 */
    uint64_t seed;
};

#define SHUNT_TOKEN_NONE UINT32_MAX

/* Return: 0; -EBADMSG naming path and key; -ENOMEM. On failure nothing is left. */
int shunt_vocab_load(struct shunt_vocab *vocab, const struct shunt_gguf *gguf, const char *path,
                     struct shunt_error *err);
void shunt_vocab_fini(struct shunt_vocab *vocab);

/* Return: 0, -ENOMEM. */
int shunt_vocab_index_init(struct shunt_vocab_index *index, const struct shunt_vocab *vocab);
void shunt_vocab_index_fini(struct shunt_vocab_index *index);

/* The first id with this text, or SHUNT_TOKEN_NONE. */
uint32_t shunt_vocab_find(const struct shunt_vocab_index *index, const char *text, size_t len);

/* The special token that the text begins with, the longest of several; NULL when there is none.
 * CONTROL tokens count only with `control`. */
const struct shunt_special *shunt_vocab_match(const struct shunt_vocab *vocab, const char *text,
                                              size_t len, bool control);

/* Writes the stand-in of a byte, in UTF-8. Return: its length, 1 or 2. */
size_t shunt_vocab_stand_in(unsigned char byte, char text[2]);

/* The bytes of a NORMAL token, stand-ins taken back; a text that is not all stand-ins gives itself.
 * Writes at most `max`. Return: how many bytes the token has. */
size_t shunt_vocab_bytes(const struct shunt_vocab *vocab, uint32_t id, char *bytes, size_t max);

#endif
