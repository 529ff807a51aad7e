/* SPDX-License-Identifier: Apache-2.0
 *
 * How weights are stored: GGUF's tensor types that shunt computes with. A row of `cols` weights is
 * cols / block_len blocks of block_bytes; kernels/blocks.h draws the blocks.
 */
#ifndef SHUNT_KERNELS_WEIGHT_TYPE_H
#define SHUNT_KERNELS_WEIGHT_TYPE_H

#include <stddef.h>
#include <stdint.h>

enum shunt_weight_type {
    SHUNT_WEIGHT_F32,
    SHUNT_WEIGHT_F16,
    SHUNT_WEIGHT_BF16,
    SHUNT_WEIGHT_Q8_0,
    SHUNT_WEIGHT_Q4_0,
    SHUNT_WEIGHT_Q4_K,
    SHUNT_WEIGHT_Q5_K,
    SHUNT_WEIGHT_Q6_K,
    SHUNT_WEIGHT_TYPES
};

struct shunt_weight_info {
    const char *name;
    uint32_t gguf_id; /* the number that GGUF gives the type */
    uint32_t block_len;
    uint32_t block_bytes;
};

/* type in [0, SHUNT_WEIGHT_TYPES). */
const struct shunt_weight_info *shunt_weight_info(enum shunt_weight_type type);

/* Return: 0, or -1 for a GGUF type that shunt does not compute with. */
int shunt_weight_from_gguf(uint32_t gguf_id, enum shunt_weight_type *type);

/* GGUF's name of any tensor type, also of those shunt does not compute with; "type N" is the
 * caller's to print when this returns NULL. */
const char *shunt_weight_gguf_name(uint32_t gguf_id);

/* Bytes of a row; cols is a multiple of the type's block_len. */
static inline size_t shunt_weight_row_bytes(enum shunt_weight_type type, uint32_t cols)
{
    const struct shunt_weight_info *info = shunt_weight_info(type);

    return (size_t)(cols / info->block_len) * info->block_bytes;
}

#endif
