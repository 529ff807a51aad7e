/* SPDX-License-Identifier: Apache-2.0
 *
 * The weights that every node keeps in memory: everything but the experts.
 */
#ifndef SHUNT_ENGINE_WEIGHTS_H
#define SHUNT_ENGINE_WEIGHTS_H

#include "runtime/base/carve.h"
#include "runtime/store/store.h"

struct shunt_layer_weights {
    struct shunt_matrix q, k, v, o;
    const float *attn_norm, *q_norm, *k_norm, *ffn_norm;
};

struct shunt_weights {
    struct shunt_matrix token_embd, output;
    const float *output_norm;
    struct shunt_layer_weights *layers;
    struct shunt_matrix *routers; /* [layer] */
    void *memory;                 /* of the weights as stored; the arena's */
    uint64_t memory_bytes;
    float *vectors; /* norm weights as float32 */
};

/* Bytes of the weights as stored, rounding included, without loading anything. Return: 0 or
 * -ENOMEM. */
int shunt_weights_measure(const struct shunt_model *model, uint64_t *bytes,
                          struct shunt_error *err);

/* Lays out the tables; run once to measure, once to place. */
void shunt_weights_carve(struct shunt_weights *w, const struct shunt_arch *arch,
                         struct shunt_carve *carve);

struct shunt_weights_loading {
    const struct shunt_model *model;
    struct shunt_store *store;
    struct shunt_arena *arena;
    const struct shunt_kernels *kernels;
    const struct shunt_patience *patience;
};
/* Reads them into the arena. Blocks until all are there or patience ends. */
int shunt_weights_load(struct shunt_weights *w, const struct shunt_weights_loading *how,
                       struct shunt_error *err);

#endif
