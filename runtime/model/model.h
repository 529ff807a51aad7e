/* SPDX-License-Identifier: Apache-2.0
 *
 * An opened model file as the rest of the runtime sees it: dimensions, where each weight lies, the
 * tokenizer. One family so far, qwen3moe; a family is a function that fills `struct shunt_arch` and
 * the layers from the header, and refuses by name what it does not compute (see loader.h).
 *
 * Opened and closed by shunt_model_open and shunt_model_close of shunt.h; read-only in between, so
 * any thread may look at it.
 */
#ifndef SHUNT_MODEL_MODEL_H
#define SHUNT_MODEL_MODEL_H

#include "kernels/kernels.h"
#include "runtime/model/gguf.h"
#include "runtime/model/tokenizer.h"
#include "runtime/store/file.h"

enum shunt_part { SHUNT_PART_GATE, SHUNT_PART_UP, SHUNT_PART_DOWN, SHUNT_PARTS };

/* A weight that every node keeps in memory. */
struct shunt_dense {
    uint64_t off; /* in the file */
    uint64_t bytes;
    enum shunt_weight_type type;
    uint32_t rows; /* 1 for a vector */
    uint32_t cols;
};

/* One of the three matrices of a layer's experts, stacked: expert e lies at off + e * stride. */
struct shunt_expert_part {
    uint64_t off;
    uint64_t stride; /* bytes of one expert's matrix */
    enum shunt_weight_type type;
    uint32_t rows;
    uint32_t cols;
};

struct shunt_layer {
    struct shunt_dense attn_norm, q, k, v, o, q_norm, k_norm, ffn_norm, router;
    struct shunt_expert_part parts[SHUNT_PARTS];
    uint64_t expert_bytes; /* the three parts of one expert */
};

struct shunt_arch {
    uint32_t layer_count;
    uint32_t hidden;
    uint32_t head_count;
    uint32_t kv_head_count; /* divides head_count */
    uint32_t head_dim;      /* of keys and of values */
    uint32_t expert_count;
    uint32_t expert_used_count;
    uint32_t expert_ff;
    uint32_t vocab_count;
    uint32_t context_max;
    float rms_eps;
    float rope_base;
    bool normalize_weights; /* the k expert weights of a token add up to 1 */
};

struct shunt_model {
    struct shunt_file file;
    struct shunt_gguf gguf;
    struct shunt_arch arch;
    struct shunt_dense token_embd;
    struct shunt_dense output_norm;
    struct shunt_dense output;         /* equal to token_embd when the file ties them */
    struct shunt_layer *layers;        /* owned, arch.layer_count of them */
    struct shunt_tokenizer *tokenizer; /* NULL: see tokenizer_error */
    /* Why text cannot be tokenized; ids still can be computed. */
    struct shunt_error tokenizer_error;
    int32_t bos_id, eos_id; /* -1: none. Known without a tokenizer as well */
    uint64_t dense_bytes;   /* a tied matrix counts once */
    uint64_t expert_bytes;  /* of the whole model */
    uint64_t expert_bytes_max;
    uint64_t parameter_count;
    uint64_t startup_bytes; /* read from the drive to open the model */
    uint8_t fingerprint[16];
    /* Text for people: owned, NUL-terminated, control characters replaced. */
    char *architecture;
    char *name;
    char *tokenizer_kind; /* "gpt2/qwen2", or the error in brackets */
    char **tensor_names;  /* gguf.tensor_count of them, one block with its strings */
};

/* The most an architecture may ask for. With these, every size that the runtime computes from the
 * dimensions fits its type: a count of rows or columns uint32_t, a product of any three uint64_t.
 */
#define SHUNT_LAYERS_MAX  1024u
#define SHUNT_HIDDEN_MAX  (1u << 16)
#define SHUNT_HEADS_MAX   1024u
#define SHUNT_FF_MAX      (1u << 16)
#define SHUNT_VOCAB_MAX   (1u << 24)
#define SHUNT_CONTEXT_MAX (1u << 24)

/* True for ids that end a generation. */
static inline bool shunt_model_is_end(const struct shunt_model *model, int32_t id)
{
    return model->tokenizer ? shunt_tokenizer_is_end(model->tokenizer, id)
                            : id >= 0 && id == model->eos_id;
}

/* Fills fingerprint: XXH3 of the header, the file's size, the first bytes of every tensor and a
 * block of every expert. Reads the samples from the drive and adds them to startup_bytes. */
int shunt_model_take_fingerprint(struct shunt_model *model, struct shunt_error *err);

#endif
