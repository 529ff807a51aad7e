/* SPDX-License-Identifier: Apache-2.0
 *
 * The family qwen3moe (Qwen3-30B-A3B and its kin): pre-norm layers of grouped-query attention with
 * a norm on each query and key head and rotary positions on whole heads, then an FFN of routed
 * experts. No bias, no shared expert, no dense layer.
 */
#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/loader.h"

#define NAME_ROOM 64 /* blk.1023.ffn_gate_exps.weight and shorter */

/* What the official configuration and other readers take when the file is silent. */
#define ROPE_BASE_DEFAULT 10000.0f

/* ---- dimensions */

static int load_head_dim(struct shunt_loader *l)
{
    struct shunt_arch *a = &l->model->arch;
    uint32_t keys = a->hidden / a->head_count;
    uint32_t values, rotated;
    int rc = shunt_loader_u32_or(l, "attention.key_length", 2, SHUNT_HEAD_DIM_MAX, &keys);

    if (rc)
        return rc;
    values = rotated = keys;
    rc = shunt_loader_u32_or(l, "attention.value_length", 2, SHUNT_HEAD_DIM_MAX, &values);
    if (rc)
        return rc;
    rc = shunt_loader_u32_or(l, "rope.dimension_count", 2, SHUNT_HEAD_DIM_MAX, &rotated);
    if (rc)
        return rc;
    if (keys < 2 || keys % 2 || keys > SHUNT_HEAD_DIM_MAX)
        return shunt_error_set(l->err, -ENOTSUP,
                               "%s: heads of %" PRIu32
                               " values; this version computes even sizes from 2 to %u "
                               "(key %s.attention.key_length)",
                               l->model->file.path, keys, SHUNT_HEAD_DIM_MAX, l->family);
    if (values != keys || rotated != keys)
        return shunt_error_set(l->err, -ENOTSUP,
                               "%s: heads of %" PRIu32 " for keys, %" PRIu32 " for values, %" PRIu32
                               " rotated (keys %s.attention.key_length, .value_length, "
                               ".rope.dimension_count); this version computes equal sizes only",
                               l->model->file.path, keys, values, rotated, l->family);
    a->head_dim = keys;
    return 0;
}

static int load_attention(struct shunt_loader *l)
{
    struct shunt_arch *a = &l->model->arch;
    int rc = shunt_loader_u32(l, "attention.head_count", 1, SHUNT_HEADS_MAX, &a->head_count);

    if (rc)
        return rc;
    a->kv_head_count = a->head_count;
    rc = shunt_loader_u32_or(l, "attention.head_count_kv", 1, SHUNT_HEADS_MAX, &a->kv_head_count);
    if (rc)
        return rc;
    if (a->head_count % a->kv_head_count)
        return shunt_error_set(l->err, -EBADMSG,
                               "%s: %" PRIu32 " heads cannot share %" PRIu32
                               " kv heads evenly (key %s.attention.head_count_kv)",
                               l->model->file.path, a->head_count, a->kv_head_count, l->family);
    rc = load_head_dim(l);
    if (rc)
        return rc;
    rc = shunt_loader_f32(l, "attention.layer_norm_rms_epsilon", FLT_MIN, 1.0f, &a->rms_eps);
    if (rc)
        return rc;
    a->rope_base = ROPE_BASE_DEFAULT;
    return shunt_loader_f32_or(l, "rope.freq_base", 1.0f, FLT_MAX, &a->rope_base);
}

static int load_expert_counts(struct shunt_loader *l)
{
    struct shunt_arch *a = &l->model->arch;
    int rc = shunt_loader_u32(l, "expert_count", 1, SHUNT_EXPERTS_MAX, &a->expert_count);

    if (rc)
        return rc;
    rc = shunt_loader_u32(l, "expert_used_count", 1, SHUNT_EXPERTS_USED_MAX, &a->expert_used_count);
    if (rc)
        return rc;
    if (a->expert_used_count > a->expert_count)
        return shunt_error_set(
            l->err, -EBADMSG,
            "%s: key %s.expert_used_count is %" PRIu32 ", but there are %" PRIu32 " experts",
            l->model->file.path, l->family, a->expert_used_count, a->expert_count);
    /* The family was trained with normalised weights; GGUF has a key for others. */
    a->normalize_weights = true;
    rc = shunt_loader_bool_or(l, "expert_weights_norm", &a->normalize_weights);
    if (rc)
        return rc;
    return shunt_loader_u32(l, "expert_feed_forward_length", 1, SHUNT_FF_MAX, &a->expert_ff);
}

static int load_dimensions(struct shunt_loader *l)
{
    struct shunt_arch *a = &l->model->arch;
    int rc = shunt_loader_u32(l, "block_count", 1, SHUNT_LAYERS_MAX, &a->layer_count);

    if (rc)
        return rc;
    rc = shunt_loader_u32(l, "embedding_length", 1, SHUNT_HIDDEN_MAX, &a->hidden);
    if (rc)
        return rc;
    rc = shunt_loader_u32(l, "context_length", 1, SHUNT_CONTEXT_MAX, &a->context_max);
    if (rc)
        return rc;
    rc = load_attention(l);
    if (rc)
        return rc;
    rc = load_expert_counts(l);
    if (rc)
        return rc;
    return shunt_loader_rows(l, "token_embd.weight", SHUNT_VOCAB_MAX, &a->vocab_count);
}

/* ---- what is not computed */

/* Without a type, readers take any other key of this group as linear scaling; with the type "none"
 * they ignore it. */
static int refuse_rope_scaling(struct shunt_loader *l)
{
    const struct shunt_gguf *gguf = &l->model->gguf;
    struct shunt_gguf_string type = {"", 0};
    char group[NAME_ROOM], key[NAME_ROOM];
    size_t len = (size_t)snprintf(group, sizeof(group), "%s.rope.scal", l->family);

    snprintf(key, sizeof(key), "%s.rope.scaling.type", l->family);
    if (!shunt_gguf_get_string(gguf, key, &type) && type.len == 4 && !memcmp(type.data, "none", 4))
        return 0;
    for (uint32_t i = 0; i < gguf->kv_count; i++) {
        const struct shunt_gguf_string *k = &gguf->kvs[i].key;

        if (k->len > len && !memcmp(k->data, group, len)) /* rope.scaling.*, rope.scale_linear */
            return shunt_error_set(l->err, -ENOTSUP,
                                   "%s: key %.*s asks for scaled rotary positions (%.*s), which "
                                   "this version does not compute; use the model's unscaled file",
                                   l->model->file.path, (int)k->len, k->data,
                                   type.len ? (int)(type.len < 32 ? type.len : 32) : 6,
                                   type.len ? type.data : "linear");
    }
    return 0;
}

/* Keys of related architectures that change what a layer computes. */
static int refuse_variants(struct shunt_loader *l)
{
    static const struct {
        const char *key;
        uint32_t harmless;
        const char *meaning;
    } variants[] = {
        {"expert_shared_count", 0, "shared experts"},
        {"expert_gating_func", 1, "any router but softmax"},
        {"expert_group_count", 0, "routing by groups"},
        {"leading_dense_block_count", 0, "dense layers"},
        {"attention.sliding_window", 0, "sliding windows"},
    };
    float scale = 1.0f;
    int rc = shunt_loader_f32_or(l, "expert_weights_scale", -FLT_MAX, FLT_MAX, &scale);

    if (rc)
        return rc;
    /* 0 is how converters write "none". */
    if (scale != 1.0f && scale != 0.0f)
        return shunt_error_set(l->err, -ENOTSUP,
                               "%s: key %s.expert_weights_scale is %g: this version does not "
                               "compute scaled expert weights",
                               l->model->file.path, l->family, (double)scale);
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
        rc = shunt_loader_refuse_u32(l, variants[i].key, variants[i].harmless, variants[i].meaning);
        if (rc)
            return rc;
    }
    return refuse_rope_scaling(l);
}

/* ---- tensors */

static const char *layer_tensor(char room[NAME_ROOM], uint32_t index, const char *part)
{
    snprintf(room, NAME_ROOM, "blk.%" PRIu32 ".%s.weight", index, part);
    return room;
}

static int load_layer_dense(struct shunt_loader *l, uint32_t index, struct shunt_layer *layer)
{
    const struct shunt_arch *a = &l->model->arch;
    const uint32_t q_rows = a->head_count * a->head_dim;
    const uint32_t kv_rows = a->kv_head_count * a->head_dim;
    const struct {
        const char *part;
        uint32_t len;
        struct shunt_dense *out;
    } vectors[] = {
        {"attn_norm", a->hidden, &layer->attn_norm},
        {"attn_q_norm", a->head_dim, &layer->q_norm},
        {"attn_k_norm", a->head_dim, &layer->k_norm},
        {"ffn_norm", a->hidden, &layer->ffn_norm},
    };
    const struct {
        const char *part;
        uint32_t rows, cols;
        struct shunt_dense *out;
    } matrices[] = {
        {"attn_q", q_rows, a->hidden, &layer->q},
        {"attn_k", kv_rows, a->hidden, &layer->k},
        {"attn_v", kv_rows, a->hidden, &layer->v},
        {"attn_output", a->hidden, q_rows, &layer->o},
        {"ffn_gate_inp", a->expert_count, a->hidden, &layer->router},
    };
    char room[NAME_ROOM];
    int rc = 0;

    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]) && !rc; i++)
        rc = shunt_loader_vector(l, layer_tensor(room, index, vectors[i].part), vectors[i].len,
                                 vectors[i].out);
    for (size_t i = 0; i < sizeof(matrices) / sizeof(matrices[0]) && !rc; i++)
        rc = shunt_loader_matrix(l, layer_tensor(room, index, matrices[i].part), matrices[i].rows,
                                 matrices[i].cols, matrices[i].out);
    return rc;
}

static int load_layer_experts(struct shunt_loader *l, uint32_t index, struct shunt_layer *layer)
{
    const struct shunt_arch *a = &l->model->arch;
    const struct {
        const char *part;
        uint32_t rows, cols;
    } parts[SHUNT_PARTS] = {
        [SHUNT_PART_GATE] = {"ffn_gate_exps", a->expert_ff, a->hidden},
        [SHUNT_PART_UP] = {"ffn_up_exps", a->expert_ff, a->hidden},
        [SHUNT_PART_DOWN] = {"ffn_down_exps", a->hidden, a->expert_ff},
    };
    char room[NAME_ROOM];

    if (shunt_loader_has(l, layer_tensor(room, index, "ffn_gate")))
        return shunt_error_set(l->err, -ENOTSUP,
                               "%s: tensor %s makes layer %" PRIu32
                               " a dense one; this version computes layers of experts only",
                               l->model->file.path, room, index);
    layer->expert_bytes = 0;
    for (uint32_t i = 0; i < SHUNT_PARTS; i++) {
        int rc = shunt_loader_experts(l, layer_tensor(room, index, parts[i].part), a->expert_count,
                                      parts[i].rows, parts[i].cols, &layer->parts[i]);

        if (rc)
            return rc;
        layer->expert_bytes += layer->parts[i].stride;
    }
    return 0;
}

static int load_tensors(struct shunt_loader *l)
{
    struct shunt_model *m = l->model;
    const struct shunt_arch *a = &m->arch;
    int rc = shunt_loader_matrix(l, "token_embd.weight", a->vocab_count, a->hidden, &m->token_embd);

    if (rc)
        return rc;
    m->output = m->token_embd;
    if (shunt_loader_has(l, "output.weight"))
        rc = shunt_loader_matrix(l, "output.weight", a->vocab_count, a->hidden, &m->output);
    if (rc)
        return rc;
    rc = shunt_loader_vector(l, "output_norm.weight", a->hidden, &m->output_norm);
    if (rc)
        return rc;
    m->layers = calloc(a->layer_count, sizeof(*m->layers));
    if (!m->layers)
        return shunt_error_set(l->err, -ENOMEM, "%s: out of memory for %" PRIu32 " layers",
                               m->file.path, a->layer_count);
    for (uint32_t i = 0; i < a->layer_count; i++) {
        rc = load_layer_dense(l, i, &m->layers[i]);
        if (rc)
            return rc;
        rc = load_layer_experts(l, i, &m->layers[i]);
        if (rc)
            return rc;
    }
    return 0;
}

int shunt_qwen3moe_load(struct shunt_loader *l)
{
    int rc = load_dimensions(l);

    if (rc)
        return rc;
    rc = refuse_variants(l);
    if (rc)
        return rc;
    rc = load_tensors(l);
    if (rc)
        return rc;
    return shunt_loader_finish(l);
}
