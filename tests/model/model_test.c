/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/model.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/model/gguf_writer.h"
#include "tests/model/tiny_model.h"

#define SMALL_MUTATIONS 20000u
#define DEMO_MUTATIONS  300u /* slow: the file is written each time; see also tokenizer_test.c */

static int open_bytes(const void *data, size_t len, shunt_model **model, struct shunt_error *err)
{
    char path[32];
    int fd = gguf_file(data, len, path);
    int rc = shunt_model_open(model, path, err);

    close(fd);
    return rc;
}

static int open_tiny(const struct tiny_model *m, shunt_model **model, struct shunt_error *err)
{
    struct gguf_writer w;
    int rc;

    tiny_write(m, &w);
    rc = open_bytes(w.data, w.len, model, err);
    gguf_free(&w);
    return rc;
}

static struct shunt_model_info info_of(const shunt_model *model)
{
    struct shunt_model_info info = {.size = sizeof(info)};

    cr_assert_eq(shunt_model_get_info(model, &info), 0);
    return info;
}

/* ---- what a model says of itself */

Test(model, opens_a_tiny_one)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct shunt_model_info info;
    struct shunt_error err;
    shunt_model *model;

    cr_assert(m);
    tiny_init(m);
    cr_assert_eq(open_tiny(m, &model, &err), 0, "%s", err.text);
    info = info_of(model);
    cr_expect_str_eq(info.architecture, "qwen3moe");
    cr_expect_str_eq(info.name, "tiny");
    cr_expect_str_eq(info.tokenizer, "gpt2/qwen2");
    cr_expect(info.layer_count == 2 && info.hidden == 32 && info.head_count == 4);
    cr_expect(info.kv_head_count == 2 && info.head_dim == 8 && info.vocab_count == TINY_VOCAB);
    cr_expect(info.expert_count == 4 && info.expert_used_count == 2 && info.expert_ff == 32);
    cr_expect(info.context_max == 128 && info.tensor_count == 27);
    cr_expect_eq(info.expert_bytes_max, 3 * 32 * 34);
    cr_expect_eq(info.expert_bytes, 2 * 4 * 3 * 32 * 34);
    /* Embedding and output; per layer q, o, k, v, four norms and the router; the last norm. */
    cr_expect_eq(info.dense_bytes,
                 2 * TINY_VOCAB * 34 +
                     2 * ((32 + 32 + 16 + 16) * 34 + (32 + 32 + 8 + 8) * 4 + 4 * 32 * 4) + 32 * 4);
    cr_expect(info.bos_id == -1 && info.eos_id == TINY_END);
    cr_expect(shunt_model_is_end(model, TINY_END) && shunt_model_is_end(model, TINY_END_OF_TEXT));
    cr_expect(!shunt_model_is_end(model, TINY_HELLO) && !shunt_model_is_end(model, -1));
    cr_expect(model->arch.rms_eps == 1e-6f && model->arch.rope_base == 1e6f);
    cr_expect(model->arch.normalize_weights);
    cr_expect_neq(model->output.off, model->token_embd.off);
    cr_expect_geq(model->startup_bytes, model->gguf.header_bytes);
    shunt_model_close(model);
    shunt_model_close(NULL);
    free(m);
}

Test(model, takes_defaults)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct shunt_error err;
    shunt_model *model;

    cr_assert(m);
    tiny_init(m);
    tiny_remove(m, "attention.key_length"); /* 32 / 4, as written */
    tiny_remove(m, "attention.value_length");
    tiny_remove(m, "rope.freq_base");
    tiny_remove(m, "output.weight");
    tiny_remove(m, "general.name");
    tiny_bool(m, "expert_weights_norm", false);
    tiny_u32(m, "rope.dimension_count", 8);
    tiny_string(m, "rope.scaling.type", "none");
    tiny_f32(m, "rope.scaling.factor", 4.0f);
    tiny_u32(m, "feed_forward_length", 999);
    cr_assert_eq(open_tiny(m, &model, &err), 0, "%s", err.text);
    cr_expect_eq(model->arch.head_dim, 8);
    cr_expect(model->arch.rope_base == 10000.0f);
    cr_expect_not(model->arch.normalize_weights);
    cr_expect_eq(model->output.off, model->token_embd.off);
    cr_expect_str_eq(info_of(model).name, "");
    shunt_model_close(model);
    free(m);
}

Test(model, places_experts)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct shunt_extent e[3];
    struct shunt_tensor_info t = {.size = sizeof(t)};
    struct shunt_error err;
    shunt_model *model;

    cr_assert(m);
    tiny_init(m);
    cr_assert_eq(open_tiny(m, &model, &err), 0, "%s", err.text);
    cr_assert_eq(shunt_model_get_expert(model, 1, 3, e), 0);
    for (uint32_t i = 0; i < info_of(model).tensor_count; i++) {
        cr_assert_eq(shunt_model_get_tensor(model, i, &t), 0);
        if (!strcmp(t.name, "blk.1.ffn_down_exps.weight"))
            break;
    }
    cr_assert_str_eq(t.name, "blk.1.ffn_down_exps.weight");
    cr_expect_str_eq(t.type, "Q8_0");
    cr_expect(t.dim_count == 3 && t.dims[0] == 32 && t.dims[1] == 32 && t.dims[2] == 4);
    cr_expect(e[2].len == t.bytes / 4 && e[2].off == t.off + 3 * e[2].len);
    cr_expect(e[0].len == 32 * 34 && e[1].len == 32 * 34);
    cr_expect_eq(shunt_model_get_expert(model, 2, 0, e), -ERANGE);
    cr_expect_eq(shunt_model_get_expert(model, 0, 4, e), -ERANGE);
    cr_expect_eq(shunt_model_get_tensor(model, 27, &t), -ERANGE);
    shunt_model_close(model);
    free(m);
}

/* A program built against an older header has a shorter struct, one built against a newer one a
 * longer one. */
Test(model, fills_structs_of_other_versions)
{
    struct {
        struct shunt_model_info info;
        char newer[16];
    } room;
    struct tiny_model *m = malloc(sizeof(*m));
    shunt_model *model;

    cr_assert(m);
    tiny_init(m);
    cr_assert_eq(open_tiny(m, &model, NULL), 0);
    memset(&room, 0xee, sizeof(room));
    room.info.size = offsetof(struct shunt_model_info, hidden);
    cr_assert_eq(shunt_model_get_info(model, &room.info), 0);
    cr_expect_eq(room.info.layer_count, 2);
    cr_expect_eq(room.info.hidden, 0xeeeeeeee);
    memset(&room, 0xee, sizeof(room));
    room.info.size = sizeof(room);
    cr_assert_eq(shunt_model_get_info(model, &room.info), 0);
    cr_expect_eq(room.info.size, sizeof(room));
    cr_expect_eq(room.info.hidden, 32);
    for (size_t i = 0; i < sizeof(room.newer); i++)
        cr_expect_eq(room.newer[i], 0);
    room.info.size = 0;
    cr_expect_eq(shunt_model_get_info(model, &room.info), -EINVAL);
    shunt_model_close(model);
    free(m);
}

/* ---- what is refused */

enum op {
    REMOVE, /* a key or tensor */
    U32,    /* a key */
    F32,
    STRING,
    DIM_0, /* of a tensor */
    DIM_1,
    DIM_2,
    TYPE,
    EXTRA, /* a tensor of one dimension */
};

static const struct refusal {
    enum op op;
    const char *name;
    uint32_t number;
    float real;
    const char *string;
    int code;
    const char *text;
} refusals[] = {
    {REMOVE, "general.architecture", 0, 0, "", -EBADMSG, "key general.architecture is missing"},
    {STRING, "general.architecture", 0, 0, "llama", -ENOTSUP,
     "architecture is llama; this version computes qwen3moe"},
    {U32, "split.count", 3, 0, "", -ENOTSUP, "part 1 of 3 of a split model"},
    {REMOVE, "block_count", 0, 0, "", -EBADMSG, "key qwen3moe.block_count is missing"},
    {STRING, "block_count", 0, 0, "two", -EBADMSG, "qwen3moe.block_count is no single 32-bit"},
    {U32, "block_count", 0, 0, "", -EBADMSG, "qwen3moe.block_count is 0"},
    {U32, "block_count", 1025, 0, "", -ENOTSUP, "block_count is 1025; this version computes up to"},
    {U32, "block_count", 1, 0, "", -ENOTSUP, "tensor blk.1.attn_norm.weight is no part"},
    {U32, "block_count", 3, 0, "", -EBADMSG, "tensor blk.2.attn_norm.weight is missing"},
    {U32, "embedding_length", 64, 0, "", -EBADMSG, "tensor token_embd.weight has the shape 32 x"},
    {U32, "embedding_length", 1u << 20, 0, "", -ENOTSUP, "embedding_length is 1048576"},
    {REMOVE, "context_length", 0, 0, "", -EBADMSG, "context_length is missing"},
    {U32, "context_length", 0, 0, "", -EBADMSG, "context_length is 0"},
    {U32, "attention.head_count", 0, 0, "", -EBADMSG, "attention.head_count is 0"},
    {U32, "attention.head_count_kv", 3, 0, "", -EBADMSG, "4 heads cannot share 3 kv heads"},
    {U32, "attention.key_length", 7, 0, "", -ENOTSUP, "heads of 7 values"},
    {U32, "attention.key_length", 1024, 0, "", -ENOTSUP, "key_length is 1024"},
    {U32, "attention.value_length", 16, 0, "", -ENOTSUP, "8 for keys, 16 for values"},
    {U32, "attention.key_length", 16, 0, "", -ENOTSUP, "16 for keys, 8 for values"},
    {U32, "rope.dimension_count", 4, 0, "", -ENOTSUP, "8 for values, 4 rotated"},
    {REMOVE, "attention.layer_norm_rms_epsilon", 0, 0, "", -EBADMSG, "rms_epsilon is missing"},
    {F32, "attention.layer_norm_rms_epsilon", 0, 0.0f, "", -EBADMSG, "rms_epsilon is 0"},
    {F32, "attention.layer_norm_rms_epsilon", 0, __builtin_nanf(""), "", -EBADMSG,
     "rms_epsilon is"},
    {F32, "rope.freq_base", 0, -1.0f, "", -EBADMSG, "rope.freq_base is -1"},
    {F32, "rope.freq_base", 0, __builtin_inff(), "", -EBADMSG, "rope.freq_base is inf"},
    {U32, "rope.freq_base", 10000, 0, "", -EBADMSG, "rope.freq_base is no single 32-bit float"},
    {STRING, "rope.scaling.type", 0, 0, "yarn", -ENOTSUP, "rope.scaling.type asks for scaled"},
    {F32, "rope.scaling.factor", 0, 4.0f, "", -ENOTSUP, "rope.scaling.factor asks for scaled"},
    {F32, "rope.scale_linear", 0, 4.0f, "", -ENOTSUP, "rope.scale_linear asks for scaled"},
    {U32, "expert_count", 0, 0, "", -EBADMSG, "expert_count is 0"},
    {U32, "expert_count", 1025, 0, "", -ENOTSUP, "expert_count is 1025"},
    {U32, "expert_used_count", 5, 0, "", -EBADMSG, "expert_used_count is 5, but there are 4"},
    {U32, "expert_used_count", 33, 0, "", -ENOTSUP, "expert_used_count is 33"},
    {U32, "expert_feed_forward_length", 64, 0, "", -EBADMSG,
     "tensor blk.0.ffn_gate_exps.weight has the shape 32 x 32 x 4 x 1, but the dimensions of the "
     "model ask for 32 x 64 x 4 x 1"},
    {U32, "expert_weights_norm", 1, 0, "", -EBADMSG, "expert_weights_norm is no boolean"},
    {U32, "expert_shared_count", 1, 0, "", -ENOTSUP, "does not compute shared experts"},
    {U32, "expert_gating_func", 2, 0, "", -ENOTSUP, "any router but softmax"},
    {F32, "expert_weights_scale", 0, 2.5f, "", -ENOTSUP, "expert_weights_scale is 2.5"},
    {U32, "attention.sliding_window", 4096, 0, "", -ENOTSUP, "sliding windows"},
    {U32, "leading_dense_block_count", 1, 0, "", -ENOTSUP, "dense layers"},
    {REMOVE, "token_embd.weight", 0, 0, "", -EBADMSG, "tensor token_embd.weight is missing"},
    {DIM_1, "token_embd.weight", 263, 0, "", -EBADMSG, "output.weight has the shape 32 x 264"},
    {DIM_1, "output.weight", 263, 0, "", -EBADMSG, "output.weight has the shape 32 x 263"},
    {REMOVE, "output_norm.weight", 0, 0, "", -EBADMSG, "output_norm.weight is missing"},
    {REMOVE, "blk.1.attn_q_norm.weight", 0, 0, "", -EBADMSG, "blk.1.attn_q_norm.weight is missing"},
    {REMOVE, "blk.0.ffn_gate_inp.weight", 0, 0, "", -EBADMSG, "ffn_gate_inp.weight is missing"},
    {REMOVE, "blk.0.ffn_up_exps.weight", 0, 0, "", -EBADMSG, "ffn_up_exps.weight is missing"},
    {DIM_0, "blk.0.attn_norm.weight", 31, 0, "", -EBADMSG, "attn_norm.weight has the shape 31"},
    {DIM_1, "blk.0.attn_k.weight", 32, 0, "", -EBADMSG, "attn_k.weight has the shape 32 x 32"},
    {DIM_2, "blk.1.ffn_down_exps.weight", 3, 0, "", -EBADMSG, "32 x 32 x 3 x 1, but the"},
    {TYPE, "blk.0.attn_q.weight", TINY_Q4_1, 0, "", -ENOTSUP,
     "tensor blk.0.attn_q.weight has the weight type Q4_1; this version computes F32, F16, BF16, "
     "Q8_0, Q4_0, Q4_K, Q5_K, Q6_K: quantise"},
    {TYPE, "blk.0.ffn_up_exps.weight", 77, 0, "", -ENOTSUP, "has the weight type number 77"},
    {TYPE, "blk.0.attn_norm.weight", TINY_Q8_0, 0, "", -ENOTSUP,
     "attn_norm.weight has the weight type Q8_0; this version computes F32, F16 and BF16 for "
     "norms"},
    {EXTRA, "blk.0.attn_q.bias", 0, 0, "", -ENOTSUP, "tensor blk.0.attn_q.bias is no part of"},
    {EXTRA, "blk.1.ffn_gate_shexp.weight", 0, 0, "", -ENOTSUP, "blk.1.ffn_gate_shexp.weight is no"},
    {EXTRA, "blk.0.ffn_gate.weight", 0, 0, "", -ENOTSUP, "makes layer 0 a dense one"},
    {EXTRA, "rope_freqs.weight", 0, 0, "", -ENOTSUP, "tensor rope_freqs.weight is no part of"},
    {U32, "tokenizer.ggml.eos_token_id", TINY_VOCAB, 0, "", -EBADMSG, "eos_token_id is no id of"},
    {U32, "tokenizer.ggml.add_bos_token", 1, 0, "", -EBADMSG, "add_bos_token is no boolean"},
};

static void apply(struct tiny_model *m, const struct refusal *r)
{
    struct tiny_tensor *t;

    switch (r->op) {
    case REMOVE:
        tiny_remove(m, r->name);
        return;
    case U32:
        tiny_u32(m, r->name, r->number);
        return;
    case F32:
        tiny_f32(m, r->name, r->real);
        return;

    case STRING:
        tiny_string(m, r->name, r->string);
        return;
    case TYPE:
        tiny_tensor(m, r->name)->type = r->number;
        return;
    case EXTRA:
        t = tiny_tensor(m, r->name);
        t->dim_count = 1;
        t->dims[0] = 32;
        return;
    default:
        tiny_tensor(m, r->name)->dims[r->op - DIM_0] = r->number;
        return;
    }
}

Test(model, names_what_it_does_not_compute)
{
    struct tiny_model *m = malloc(sizeof(*m));

    cr_assert(m);
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        const struct refusal *r = &refusals[i];
        struct shunt_error err = {0};
        shunt_model *model = NULL;

        tiny_init(m);
        apply(m, r);
        cr_expect_eq(open_tiny(m, &model, &err), r->code, "case %zu, %s: %d %s", i, r->name,
                     err.code, err.text);
        cr_expect(strstr(err.text, r->text), "case %zu, %s: %s", i, r->name, err.text);
        cr_expect(strstr(err.text, "/proc/self/fd/") == err.text, "case %zu: %s", i, err.text);
        cr_expect_null(model);
        shunt_model_close(model);
    }
    free(m);
}

Test(model, accepts_norms_of_half_width)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct shunt_error err;
    shunt_model *model;

    cr_assert(m);
    tiny_init(m);
    tiny_tensor(m, "output_norm.weight")->type = TINY_F16;
    tiny_tensor(m, "blk.0.attn_q_norm.weight")->type = 30;
    cr_assert_eq(open_tiny(m, &model, &err), 0, "%s", err.text);
    cr_expect(model->output_norm.type == SHUNT_WEIGHT_F16 && model->output_norm.bytes == 64);
    cr_expect(model->layers[0].q_norm.type == SHUNT_WEIGHT_BF16);
    shunt_model_close(model);
    free(m);
}

Test(model, says_why_a_path_does_not_open)
{
    struct shunt_error err;
    shunt_model *model = NULL;

    cr_expect_eq(shunt_model_open(&model, "/nowhere/x.gguf", &err), -ENOENT);
    cr_expect(strstr(err.text, "/nowhere/x.gguf: cannot open"), "%s", err.text);
    cr_expect_eq(shunt_model_open(&model, "/", &err), -EINVAL);
    cr_expect_null(model);
}

/* ---- tokenizer and model */

Test(model, opens_without_a_tokenizer_it_knows)
{
    static const struct {
        const char *key, *value, *text;
    } cases[] = {
        {"tokenizer.ggml.model", "llama", "the kind llama"},
        {"tokenizer.ggml.pre", "llama-bpe", "pre-tokenizer is llama-bpe"},
        {"tokenizer.ggml.model", NULL, "has no tokenizer"},
        {"tokenizer.ggml.pre", NULL, "tokenizer.ggml.pre is missing"},
    };
    struct tiny_model *m = malloc(sizeof(*m));

    cr_assert(m);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct shunt_error err = {0};
        shunt_model *model;
        char byte;

        tiny_init(m);
        if (cases[i].value)
            tiny_string(m, cases[i].key, cases[i].value);
        else
            tiny_remove(m, cases[i].key);
        cr_assert_eq(open_tiny(m, &model, &err), 0, "%s", err.text);
        cr_expect_eq(info_of(model).tokenizer[0], '[');
        cr_expect(strstr(info_of(model).tokenizer, cases[i].text), "%s", info_of(model).tokenizer);
        cr_expect_eq(info_of(model).eos_id, TINY_END);
        cr_expect(shunt_model_is_end(model, TINY_END) && !shunt_model_is_end(model, -1));
        cr_expect_eq(shunt_tokenize(model, "x", 1, 0, NULL, 0, &err), -ENOTSUP);
        cr_expect(strstr(err.text, cases[i].text), "%s", err.text);
        cr_expect_eq(shunt_detokenize(model, 1, true, &byte, 1), -ENOTSUP);
        shunt_model_close(model);
    }
    free(m);
}

Test(model, refuses_a_tokenizer_of_another_size)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct shunt_error err = {0};
    shunt_model *model;

    cr_assert(m);
    tiny_init(m);
    m->type_count = --m->token_count;
    cr_assert_eq(open_tiny(m, &model, &err), -EBADMSG);
    cr_expect(strstr(err.text, "tokens has 263 tokens, but tensor token_embd.weight has 264 rows"),
              "%s", err.text);
    free(m);
}

/* ---- fingerprint */

struct change {
    size_t before_end, count; /* bytes */
};

static void fingerprint_of(const struct tiny_model *m, const struct change *changed,
                           uint8_t out[16])
{
    struct gguf_writer w;
    struct shunt_error err;
    shunt_model *model;

    tiny_write(m, &w);
    if (changed)
        for (size_t i = 0; i < changed->count; i++)
            w.data[w.len - changed->before_end + i] ^= 1;
    cr_assert_eq(open_bytes(w.data, w.len, &model, &err), 0, "%s", err.text);
    memcpy(out, info_of(model).fingerprint, 16);
    shunt_model_close(model);
    gguf_free(&w);
}

Test(model, fingerprint_tells_models_apart)
{
    enum { EXPERT = 32 * 34, EXPERTS = 4, PARTS = 3 }; /* bytes; Q8_0, 32 x 32 */
    struct tiny_model *m = malloc(sizeof(*m));
    uint8_t first[16], again[16], other[16];
    struct change changed = {EXPERTS * EXPERT - 100, 1};
    uint32_t seen = 0;

    cr_assert(m);
    tiny_init(m);
    fingerprint_of(m, NULL, first);
    fingerprint_of(m, NULL, again);
    cr_expect_arr_eq(first, again, 16);
    fingerprint_of(m, &changed, other); /* a weight at the beginning of the last tensor */
    cr_expect_arr_neq(first, other, 16);
    /* The end of the last expert: of the three tensors only the first 4096 bytes are looked at, but
     * of the expert one matrix. */
    for (uint32_t part = 0; part < PARTS; part++) {
        changed = (struct change){part * EXPERTS * EXPERT + 40, 40};
        fingerprint_of(m, &changed, other);
        seen += memcmp(first, other, 16) != 0;
    }
    cr_expect_eq(seen, 1);
    tiny_string(m, "general.name", "other");
    fingerprint_of(m, NULL, other);
    cr_expect_arr_neq(first, other, 16);
    free(m);
}

/* ---- the demo model */

Test(model, opens_the_demo)
{
    struct shunt_model_info info;
    struct shunt_extent e[3];
    struct shunt_error err;
    shunt_model *model;

    cr_assert_eq(shunt_model_open(&model, SHUNT_TEST_DEMO, &err), 0, "%s", err.text);
    info = info_of(model);
    cr_expect_str_eq(info.path, SHUNT_TEST_DEMO);
    cr_expect(info.layer_count == 6 && info.hidden == 128 && info.head_count == 4);
    cr_expect(info.kv_head_count == 2 && info.head_dim == 32 && info.vocab_count == 2048);
    cr_expect(info.expert_count == 32 && info.expert_used_count == 4 && info.expert_ff == 96);
    cr_expect(info.context_max == 4096 && info.tensor_count == 75);
    cr_expect(info.bos_id == 2045 && info.eos_id == 2047);
    cr_expect_eq(info.file_bytes, 8559168);
    cr_expect_eq(info.expert_bytes_max, 3 * 96 * 128 / 32 * 34);
    cr_expect_eq(info.expert_bytes, 6 * 32 * info.expert_bytes_max);
    cr_expect_eq(info.parameter_count, 7923712);
    cr_expect(model->arch.rope_base == 1e6f && model->arch.rms_eps == 1e-6f);
    cr_assert_eq(shunt_model_get_expert(model, 5, 31, e), 0);
    for (int i = 0; i < 3; i++)
        cr_expect(e[i].len == 96 * 128 / 32 * 34 && e[i].off + e[i].len <= info.file_bytes);
    shunt_model_close(model);
}

Test(model, opens_models_of_other_weight_types)
{
    static const char *const files[] = {"qwen3moe-demo-F16.gguf", "qwen3moe-demo-Q4_0.gguf",
                                        "qwen3moe-k-Q4_K_M.gguf", "qwen3moe-k-Q5_K_M.gguf",
                                        "qwen3moe-k-Q6_K.gguf"};

    if (access(SHUNT_TEST_MODELS_DIR, R_OK))
        cr_skip_test("no further models at models_dir");
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char path[1024];
        struct shunt_error err;
        shunt_model *model;

        snprintf(path, sizeof(path), "%s/%s", SHUNT_TEST_MODELS_DIR, files[i]);
        cr_assert_eq(shunt_model_open(&model, path, &err), 0, "%s", err.text);
        shunt_model_close(model);
    }
}

/* ---- mutations */

/* Uses a model that opened as an engine would. */
static void inspect(const shunt_model *model, uint64_t seed)
{
    struct shunt_model_info info = info_of(model);
    struct shunt_tensor_info t = {.size = sizeof(t)};
    struct shunt_extent e[3];
    char text[SHUNT_TOKEN_BYTES_MAX];
    int32_t ids[64];

    for (uint32_t l = 0; l < info.layer_count; l++) {
        shunt_model_get_expert(model, l, info.expert_count - 1, e);
        for (int i = 0; i < 3; i++)
            if (e[i].off > info.file_bytes || e[i].len > info.file_bytes - e[i].off)
                cr_assert_fail("seed %" PRIu64 ": an expert leaves the file", seed);
    }
    for (uint32_t i = 0; i < info.tensor_count; i++)
        if (shunt_model_get_tensor(model, i, &t) || !t.type || strlen(t.name) == 0)
            cr_assert_fail("seed %" PRIu64 ": a tensor has no name or type", seed);
    if (info.dense_bytes + info.expert_bytes > info.file_bytes)
        cr_assert_fail("seed %" PRIu64 ": more weights than bytes", seed);
    for (uint32_t id = 0; model->tokenizer && id < info.vocab_count; id++)
        if (shunt_detokenize(model, (int32_t)id, true, text, sizeof(text)) >
            (int64_t)shunt_tokenizer_piece_max(model->tokenizer))
            cr_assert_fail("seed %" PRIu64 ": a piece is too long", seed);
    if (model->tokenizer) {
        static const char sample[] = "hello <|end|> <tool>s e\xcc\x81t\xc3\xa9 12  x\n";
        int64_t n =
            shunt_tokenize(model, sample, strlen(sample), SHUNT_TOKENIZE_SPECIAL, ids, 64, NULL);

        for (int64_t i = 0; i < n && i < 64; i++)
            if (ids[i] < 0 || (uint32_t)ids[i] >= info.vocab_count)
                cr_assert_fail("seed %" PRIu64 ": an id is out of range", seed);
    }
}

static void mutate_and_open(const unsigned char *original, size_t len, size_t header_len,
                            uint32_t count, uint64_t seed)
{
    size_t cap = len + 64;
    unsigned char *data = malloc(cap);
    uint32_t opened = 0;

    cr_assert(data);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t state = seed + i;
        struct shunt_error err = {0};
        shunt_model *model = NULL;
        size_t now = len;
        int rc;

        memcpy(data, original, len);
        gguf_mutate(data, &now, cap, header_len, &state);
        rc = open_bytes(data, now, &model, &err);
        if (rc && (err.code != rc || !err.text[0]))
            cr_assert_fail("seed %" PRIu64 ": %d without a reason", seed + i, rc);
        if (rc == 0) {
            inspect(model, seed + i);
            shunt_model_close(model);
            opened++;
        }
    }
    free(data);
    cr_log_info("%u of %u mutations still open", opened, count);
    cr_assert(opened < count);
}

Test(model, survives_mutations_of_a_tiny_one)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct gguf_writer w;
    size_t header_len;
    struct gguf_memory memory;
    struct shunt_gguf_source source;
    struct shunt_gguf g;

    cr_assert(m);
    tiny_init(m);
    tiny_write(m, &w);
    source = gguf_source(&memory, w.data, w.len);
    cr_assert_eq(shunt_gguf_parse(&g, &source, NULL), 0);
    header_len = g.header_bytes;
    shunt_gguf_fini(&g);
    mutate_and_open(w.data, w.len, header_len, SMALL_MUTATIONS, 3000000);
    gguf_free(&w);
    free(m);
}

Test(model, survives_mutations_of_the_demo)
{
    FILE *f = fopen(SHUNT_TEST_DEMO, "rb");
    size_t len = 8559168;
    unsigned char *data = malloc(len);

    cr_assert(f && data, "cannot open %s", SHUNT_TEST_DEMO);
    cr_assert_eq(fread(data, 1, len, f), len);
    fclose(f);
    mutate_and_open(data, len, 62011, DEMO_MUTATIONS, 4000000);
    free(data);
}
