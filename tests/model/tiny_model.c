/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/model/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/weight_type.h"
#include "runtime/base/carve.h"
#include "runtime/model/vocab.h"

static void expect(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "tiny model: %s\n", what);
        exit(1);
    }
}

/* ---- tables */

static struct tiny_kv *find_kv(struct tiny_model *m, const char *key)
{
    char full[64];

    snprintf(full, sizeof(full), "%s%s",
             strncmp(key, "general.", 8) && strncmp(key, "tokenizer.", 10) &&
                     strncmp(key, "split.", 6)
                 ? "qwen3moe."
                 : "",
             key);
    for (uint32_t i = 0; i < m->kv_count; i++)
        if (!strcmp(m->kvs[i].key, full))
            return &m->kvs[i];
    expect(m->kv_count < TINY_KVS, "too many keys");
    strcpy(m->kvs[m->kv_count].key, full);
    return &m->kvs[m->kv_count++];
}

void tiny_u32(struct tiny_model *m, const char *key, uint32_t value)
{
    struct tiny_kv *kv = find_kv(m, key);

    kv->type = SHUNT_GGUF_U32;
    kv->number = value;
}

void tiny_f32(struct tiny_model *m, const char *key, float value)
{
    struct tiny_kv *kv = find_kv(m, key);

    kv->type = SHUNT_GGUF_F32;
    kv->real = value;
}

void tiny_bool(struct tiny_model *m, const char *key, bool value)
{
    struct tiny_kv *kv = find_kv(m, key);

    kv->type = SHUNT_GGUF_BOOL;
    kv->number = value;
}

void tiny_string(struct tiny_model *m, const char *key, const char *value)
{
    struct tiny_kv *kv = find_kv(m, key);

    kv->type = SHUNT_GGUF_STRING;
    snprintf(kv->text, sizeof(kv->text), "%s", value);
}

struct tiny_tensor *tiny_tensor(struct tiny_model *m, const char *name)
{
    for (uint32_t i = 0; i < m->tensor_count; i++)
        if (!strcmp(m->tensors[i].name, name))
            return &m->tensors[i];
    expect(m->tensor_count < TINY_TENSORS, "too many tensors");
    strcpy(m->tensors[m->tensor_count].name, name);
    return &m->tensors[m->tensor_count++];
}

void tiny_remove(struct tiny_model *m, const char *name)
{
    uint32_t before = m->tensor_count;
    struct tiny_tensor *tensor = tiny_tensor(m, name);
    struct tiny_kv *kv;

    if (m->tensor_count == before) {
        memmove(tensor, tensor + 1, (char *)&m->tensors[--m->tensor_count] - (char *)tensor);
        return;
    }
    m->tensor_count = before;
    memset(tensor, 0, sizeof(*tensor));
    before = m->kv_count;
    kv = find_kv(m, name);
    expect(m->kv_count == before, "nothing to remove");
    memmove(kv, kv + 1, (char *)&m->kvs[--m->kv_count] - (char *)kv);
}

/* ---- the model */

static void add_tensor(struct tiny_model *m, const char *name, uint32_t type, uint64_t d0,
                       uint64_t d1, uint64_t d2)
{
    struct tiny_tensor *t = tiny_tensor(m, name);

    t->type = type;
    t->dim_count = d2 ? 3 : d1 ? 2 : 1;
    t->dims[0] = d0;
    t->dims[1] = d1;
    t->dims[2] = d2;
}

static void add_layer(struct tiny_model *m, uint32_t layer)
{
    static const struct {
        const char *part;
        uint32_t type;
        uint64_t d0, d1, d2;
    } parts[] = {
        {"attn_norm", TINY_F32, 32, 0, 0},     {"attn_q", TINY_Q8_0, 32, 32, 0},
        {"attn_k", TINY_Q8_0, 32, 16, 0},      {"attn_v", TINY_Q8_0, 32, 16, 0},
        {"attn_output", TINY_Q8_0, 32, 32, 0}, {"attn_q_norm", TINY_F32, 8, 0, 0},
        {"attn_k_norm", TINY_F32, 8, 0, 0},    {"ffn_norm", TINY_F32, 32, 0, 0},
        {"ffn_gate_inp", TINY_F32, 32, 4, 0},  {"ffn_gate_exps", TINY_Q8_0, 32, 32, 4},
        {"ffn_up_exps", TINY_Q8_0, 32, 32, 4}, {"ffn_down_exps", TINY_Q8_0, 32, 32, 4},
    };
    char name[64];

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, parts[i].part);
        add_tensor(m, name, parts[i].type, parts[i].d0, parts[i].d1, parts[i].d2);
    }
}

static void add_token(struct tiny_model *m, const char *text, int32_t type)
{
    strcpy(m->tokens[m->token_count], text);
    m->types[m->token_count++] = type;
}

static void add_tokenizer(struct tiny_model *m)
{
    static const char *const merges[] = {"h e", "l l", "he ll", "hell o"};

    for (uint32_t b = 0; b < 256; b++) {
        char text[3] = "";

        shunt_vocab_stand_in((unsigned char)b, text);
        add_token(m, text, SHUNT_TOKEN_NORMAL);
    }
    add_token(m, "he", SHUNT_TOKEN_NORMAL);
    add_token(m, "ll", SHUNT_TOKEN_NORMAL);
    add_token(m, "hell", SHUNT_TOKEN_NORMAL);
    add_token(m, "hello", SHUNT_TOKEN_NORMAL);
    add_token(m, "<|endoftext|>", SHUNT_TOKEN_CONTROL);
    add_token(m, "<|end|>", SHUNT_TOKEN_CONTROL);
    add_token(m, "<tool>", SHUNT_TOKEN_USER_DEFINED);
    add_token(m, "<tool>s", SHUNT_TOKEN_USER_DEFINED);
    m->type_count = m->token_count;
    for (size_t i = 0; i < sizeof(merges) / sizeof(merges[0]); i++)
        strcpy(m->merges[m->merge_count++], merges[i]);
}

void tiny_init(struct tiny_model *m)
{
    memset(m, 0, sizeof(*m));
    tiny_string(m, "general.architecture", "qwen3moe");
    tiny_string(m, "general.name", "tiny");
    tiny_u32(m, "block_count", 2);
    tiny_u32(m, "context_length", 128);
    tiny_u32(m, "embedding_length", 32);
    tiny_u32(m, "attention.head_count", 4);
    tiny_u32(m, "attention.head_count_kv", 2);
    tiny_u32(m, "attention.key_length", 8);
    tiny_u32(m, "attention.value_length", 8);
    tiny_f32(m, "attention.layer_norm_rms_epsilon", 1e-6f);
    tiny_f32(m, "rope.freq_base", 1e6f);
    tiny_u32(m, "expert_count", 4);
    tiny_u32(m, "expert_used_count", 2);
    tiny_u32(m, "expert_feed_forward_length", 32);
    tiny_string(m, "tokenizer.ggml.model", "gpt2");
    tiny_string(m, "tokenizer.ggml.pre", "qwen2");
    tiny_u32(m, "tokenizer.ggml.eos_token_id", TINY_END);
    add_tokenizer(m);
    add_tensor(m, "token_embd.weight", TINY_Q8_0, 32, TINY_VOCAB, 0);
    add_tensor(m, "output_norm.weight", TINY_F32, 32, 0, 0);
    add_tensor(m, "output.weight", TINY_Q8_0, 32, TINY_VOCAB, 0);
    add_layer(m, 0);
    add_layer(m, 1);
}

/* ---- writing */

static uint64_t tensor_bytes(const struct tiny_tensor *t)
{
    enum shunt_weight_type type;
    uint64_t rows = 1;

    if (shunt_weight_from_gguf(t->type, &type))
        return 64; /* nobody knows; enough to lie inside the file */
    for (uint32_t i = 1; i < t->dim_count; i++)
        rows *= t->dims[i];
    return rows * shunt_weight_row_bytes(type, (uint32_t)t->dims[0]);
}

static void write_kv(const struct tiny_kv *kv, struct gguf_writer *w)
{
    switch (kv->type) {
    case SHUNT_GGUF_F32:
        gguf_f32(w, kv->key, kv->real);
        break;
    case SHUNT_GGUF_BOOL:
        gguf_bool(w, kv->key, kv->number);
        break;
    case SHUNT_GGUF_STRING:
        gguf_string(w, kv->key, kv->text);
        break;
    default:
        gguf_u32(w, kv->key, kv->number);
        break;
    }
}

static void write_tokenizer(const struct tiny_model *m, struct gguf_writer *w)
{
    gguf_array(w, "tokenizer.ggml.tokens", SHUNT_GGUF_STRING, m->token_count);
    for (uint32_t i = 0; i < m->token_count; i++)
        gguf_put_string(w, m->tokens[i]);
    gguf_array(w, "tokenizer.ggml.token_type", SHUNT_GGUF_I32, m->type_count);
    gguf_put(w, m->types, m->type_count * sizeof(m->types[0]));
    gguf_array(w, "tokenizer.ggml.merges", SHUNT_GGUF_STRING, m->merge_count);
    for (uint32_t i = 0; i < m->merge_count; i++)
        gguf_put_string(w, m->merges[i]);
}

void tiny_write(const struct tiny_model *m, struct gguf_writer *w)
{
    uint64_t off = 0;

    gguf_begin(w);
    for (uint32_t i = 0; i < m->kv_count; i++)
        write_kv(&m->kvs[i], w);
    write_tokenizer(m, w);
    for (uint32_t i = 0; i < m->tensor_count; i++) {
        const struct tiny_tensor *t = &m->tensors[i];

        gguf_tensor(w, t->name, t->type, t->dim_count, t->dims, off);
        off = shunt_align_up(off + tensor_bytes(t), SHUNT_GGUF_ALIGN_DEFAULT);
    }
    gguf_end(w, SHUNT_GGUF_ALIGN_DEFAULT, off);
}
