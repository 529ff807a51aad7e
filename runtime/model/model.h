/* SPDX-License-Identifier: Apache-2.0
 *
 * An opened model file as the rest of the runtime sees it: dimensions, where each weight lies, the
 * tokenizer. One family so far, qwen3moe; a family is a function that fills `struct shunt_arch` and
 * the layers from the header, and refuses by name what it does not compute.
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
    struct shunt_dense token_embd, output_norm,
        output; /* output is token_embd when the file ties them */
    struct shunt_layer *layers;
    struct shunt_tokenizer *tokenizer; /* NULL: see tokenizer_error */
    struct shunt_error
        tokenizer_error; /* why text cannot be tokenized; ids still can be computed */
    uint64_t dense_bytes;
    uint64_t expert_bytes; /* of the whole model */
    uint64_t expert_bytes_max;
    uint64_t parameter_count;
    uint64_t startup_bytes; /* read from the drive to open the model */
    uint8_t fingerprint[16];
    char *architecture;   /* owned, NUL-terminated */
    char *name;           /* owned, NUL-terminated */
    char *tokenizer_kind; /* owned: "gpt2/qwen2", or the error in brackets */
    char **tensor_names;  /* owned, NUL-terminated, gguf.tensor_count of them */
};

#endif
