/* SPDX-License-Identifier: Apache-2.0
 *
 * A complete qwen3moe model of a few kilobytes, described by tables that a test changes before it
 * is written: 2 layers, hidden size 32, 4 heads and 2 kv heads of 8, 4 experts of width 32, 2 per
 * token.
 */
#ifndef SHUNT_TESTS_TINY_MODEL_H
#define SHUNT_TESTS_TINY_MODEL_H

#include "tests/model/gguf_writer.h"

#define TINY_KVS     48
#define TINY_TENSORS 64
#define TINY_TOKENS  320
#define TINY_MERGES  16

/* GGUF's numbers of the weight types used. */
#define TINY_F32  0u
#define TINY_F16  1u
#define TINY_Q4_1 3u
#define TINY_Q8_0 8u

struct tiny_kv {
    char key[64];
    enum shunt_gguf_type type; /* U32, F32, BOOL, STRING */
    uint32_t number;
    float real;
    char text[64];
};

struct tiny_tensor {
    char name[64];
    uint32_t type;
    uint32_t dim_count;
    uint64_t dims[4];
};

struct tiny_model {
    struct tiny_kv kvs[TINY_KVS];
    uint32_t kv_count;
    struct tiny_tensor tensors[TINY_TENSORS];
    uint32_t tensor_count;
    /* Tokenizer: the 256 stand-ins, then "he", "ll", "hell", "hello", <|endoftext|>, <|end|>
     * (CONTROL), <tool>, <tool>s (USER_DEFINED). */
    char tokens[TINY_TOKENS][24];
    int32_t types[TINY_TOKENS];
    uint32_t token_count;
    uint32_t type_count; /* as many are written */
    char merges[TINY_MERGES][24];
    uint32_t merge_count;
};

#define TINY_HE          256
#define TINY_HELLO       259
#define TINY_END_OF_TEXT 260
#define TINY_END         261
#define TINY_TOOL        262
#define TINY_TOOLS       263
#define TINY_VOCAB       264

void tiny_init(struct tiny_model *m);

/* Sets a key, adding it when it is not there. `key` without "qwen3moe." when it has no such group
 * of its own ("general.", "tokenizer.", ...). */
void tiny_u32(struct tiny_model *m, const char *key, uint32_t value);
void tiny_f32(struct tiny_model *m, const char *key, float value);
void tiny_bool(struct tiny_model *m, const char *key, bool value);
void tiny_string(struct tiny_model *m, const char *key, const char *value);

/* Finds a tensor, or adds one without dimensions. */
struct tiny_tensor *tiny_tensor(struct tiny_model *m, const char *name);

/* Removes a key or a tensor; it must be there. */
void tiny_remove(struct tiny_model *m, const char *name);

/* Lays the tensors out one after the other and writes the file. */
void tiny_write(const struct tiny_model *m, struct gguf_writer *w);

#endif
