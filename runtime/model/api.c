/* SPDX-License-Identifier: Apache-2.0
 *
 * What shunt.h lets a program ask of an opened model.
 */
#include <errno.h>
#include <string.h>

#include "runtime/model/model.h"

/* The caller's struct may be an older and shorter, or a newer and longer one. */
static int copy_sized(void *dst, size_t dst_size, const void *src, size_t src_size)
{
    if (dst_size < sizeof(size_t))
        return -EINVAL;
    if (dst_size > src_size) {
        memset((char *)dst + src_size, 0, dst_size - src_size);
        dst_size = src_size;
    }
    /* The first member, the size, stays the caller's. */
    memcpy((char *)dst + sizeof(size_t), (const char *)src + sizeof(size_t),
           dst_size - sizeof(size_t));
    return 0;
}

SHUNT_API int shunt_model_get_info(const shunt_model *model, struct shunt_model_info *info)
{
    const struct shunt_arch *a = &model->arch;

    struct shunt_model_info full = {
        .path = model->file.path,
        .architecture = model->architecture,
        .name = model->name,
        .layer_count = a->layer_count,
        .hidden = a->hidden,
        .head_count = a->head_count,
        .kv_head_count = a->kv_head_count,
        .head_dim = a->head_dim,
        .expert_count = a->expert_count,
        .expert_used_count = a->expert_used_count,
        .expert_ff = a->expert_ff,
        .vocab_count = a->vocab_count,
        .context_max = a->context_max,
        .tensor_count = model->gguf.tensor_count,
        .file_bytes = model->file.bytes,
        .dense_bytes = model->dense_bytes,
        .expert_bytes = model->expert_bytes,
        .expert_bytes_max = model->expert_bytes_max,
        .parameter_count = model->parameter_count,
        .bos_id = model->bos_id,
        .eos_id = model->eos_id,
        .tokenizer = model->tokenizer_kind,
    };

    memcpy(full.fingerprint, model->fingerprint, sizeof(full.fingerprint));
    return copy_sized(info, info->size, &full, sizeof(full));
}

SHUNT_API int shunt_model_get_tensor(const shunt_model *model, uint32_t index,
                                     struct shunt_tensor_info *info)
{
    const struct shunt_gguf_tensor *t;
    struct shunt_tensor_info full = {0};

    if (index >= model->gguf.tensor_count)
        return -ERANGE;
    t = &model->gguf.tensors[index];
    full.name = model->tensor_names[index];
    full.type = shunt_weight_gguf_name(t->type);
    full.dim_count = t->dim_count;
    memcpy(full.dims, t->dims, sizeof(full.dims));
    full.off = t->off;
    full.bytes = t->bytes;
    return copy_sized(info, info->size, &full, sizeof(full));
}

SHUNT_API int shunt_model_get_expert(const shunt_model *model, uint32_t layer, uint32_t expert,
                                     struct shunt_extent extents[3])
{
    if (layer >= model->arch.layer_count || expert >= model->arch.expert_count)
        return -ERANGE;
    for (uint32_t i = 0; i < SHUNT_PARTS; i++) {
        const struct shunt_expert_part *part = &model->layers[layer].parts[i];

        extents[i].off = part->off + expert * part->stride;
        extents[i].len = part->stride;
    }
    return 0;
}

SHUNT_API int64_t shunt_tokenize(const shunt_model *model, const char *text, size_t text_len,
                                 uint32_t flags, int32_t *ids, size_t id_max,
                                 struct shunt_error *err)
{
    if (!model->tokenizer)
        return shunt_error_set(err, -ENOTSUP, "%s", model->tokenizer_error.text);
    return shunt_tokenizer_encode(model->tokenizer, text, text_len, flags, ids, id_max, err);
}

SHUNT_API int64_t shunt_detokenize(const shunt_model *model, int32_t id, bool special, char *text,
                                   size_t text_max)
{
    if (!model->tokenizer)
        return -ENOTSUP;
    return shunt_tokenizer_decode(model->tokenizer, id, special, text, text_max);
}
