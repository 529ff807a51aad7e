/* SPDX-License-Identifier: Apache-2.0
 *
 * What the families share: taking keys and tensors from a header, each checked against what the
 * family expects, each error naming the key or tensor and a remedy. A family takes everything it
 * computes with; finish refuses a file that holds a tensor nobody took, because leaving out a bias
 * or a shared expert would compute another model without a word.
 *
 * Used by one thread while a model opens.
 */
#ifndef SHUNT_MODEL_LOADER_H
#define SHUNT_MODEL_LOADER_H

#include "runtime/model/model.h"

struct shunt_loader {
    struct shunt_model *model;
    const char *family;   /* the architecture's name, which is the prefix of its keys */
    unsigned char *taken; /* one flag for each tensor */
    struct shunt_error *err;
};

/* Keys are given without the prefix. A value above `max` is -ENOTSUP, any other fault -EBADMSG. The
 * _or functions leave *value alone when the key is absent. */
int shunt_loader_u32(struct shunt_loader *l, const char *key, uint32_t min, uint32_t max,
                     uint32_t *value);
int shunt_loader_u32_or(struct shunt_loader *l, const char *key, uint32_t min, uint32_t max,
                        uint32_t *value);
int shunt_loader_f32(struct shunt_loader *l, const char *key, float min, float max, float *value);
int shunt_loader_f32_or(struct shunt_loader *l, const char *key, float min, float max,
                        float *value);
int shunt_loader_bool_or(struct shunt_loader *l, const char *key, bool *value);

/* -ENOTSUP when the key is there with a value other than `harmless`. */
int shunt_loader_refuse_u32(struct shunt_loader *l, const char *key, uint32_t harmless,
                            const char *meaning);

/* Tensors are given by full name. vector: a norm's weights, F32, F16 or BF16. Return: 0; -EBADMSG
 * for a missing tensor or another shape; -ENOTSUP for a type. */
bool shunt_loader_has(const struct shunt_loader *l, const char *name);
int shunt_loader_vector(struct shunt_loader *l, const char *name, uint32_t len,
                        struct shunt_dense *out);
int shunt_loader_matrix(struct shunt_loader *l, const char *name, uint32_t rows, uint32_t cols,
                        struct shunt_dense *out);
int shunt_loader_experts(struct shunt_loader *l, const char *name, uint32_t count, uint32_t rows,
                         uint32_t cols, struct shunt_expert_part *out);

/* Rows of a matrix, in [1, max], before its shape is known otherwise. */
int shunt_loader_rows(struct shunt_loader *l, const char *name, uint32_t max, uint32_t *rows);

/* -ENOTSUP, naming it, when there is a tensor that was not taken. */
int shunt_loader_finish(struct shunt_loader *l);

/* The families. On failure the caller closes the model, layers included. */
int shunt_qwen3moe_load(struct shunt_loader *l);

#endif
