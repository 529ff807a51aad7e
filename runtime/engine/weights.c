/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/weights.h"

#include <errno.h>
#include <stdlib.h>

/* Weights of a model in the order in which they are read: three of the whole, then these per layer.
 */
#define MODEL_WEIGHTS 3u
#define LAYER_WEIGHTS 9u

/* Norm vectors of a layer and their lengths. */
static uint32_t layer_floats(const struct shunt_arch *arch)
{
    return 2 * arch->hidden + 2 * arch->head_dim;
}

static struct shunt_dense_read read_of(const struct shunt_dense *d)
{
    return (struct shunt_dense_read){.off = d->off, .bytes = d->bytes};
}

/* Return: the list of everything to be read, or NULL. */
static struct shunt_dense_read *list_reads(const struct shunt_model *model, uint32_t *count)
{
    struct shunt_dense_read *reads, *at;

    *count = MODEL_WEIGHTS + LAYER_WEIGHTS * model->arch.layer_count;
    reads = at = calloc(*count, sizeof(*reads));
    if (!reads)
        return NULL;
    *at++ = read_of(&model->token_embd);
    *at++ = read_of(&model->output_norm);
    /* A model that ties both has one tensor for them: read once. */
    *at = read_of(&model->output);
    if (model->output.off == model->token_embd.off)
        at->bytes = 0;
    at++;
    for (uint32_t l = 0; l < model->arch.layer_count; l++) {
        const struct shunt_layer *layer = &model->layers[l];

        *at++ = read_of(&layer->q);
        *at++ = read_of(&layer->k);
        *at++ = read_of(&layer->v);
        *at++ = read_of(&layer->o);
        *at++ = read_of(&layer->router);
        *at++ = read_of(&layer->attn_norm);
        *at++ = read_of(&layer->ffn_norm);
        *at++ = read_of(&layer->q_norm);
        *at++ = read_of(&layer->k_norm);
    }
    return reads;
}

int shunt_weights_measure(const struct shunt_model *model, uint64_t *bytes, struct shunt_error *err)
{
    uint32_t count;
    struct shunt_dense_read *reads = list_reads(model, &count);

    if (!reads)
        return shunt_error_set(err, -ENOMEM, "out of memory for the list of weights");
    *bytes = shunt_store_lay_out_dense(&model->file, NULL, reads, count);
    free(reads);
    return 0;
}

void shunt_weights_carve(struct shunt_weights *w, const struct shunt_arch *arch,
                         struct shunt_carve *carve)
{
    *w = (struct shunt_weights){0};
    w->layers = shunt_carve(carve, arch->layer_count, sizeof(*w->layers));
    w->routers = shunt_carve(carve, arch->layer_count, sizeof(*w->routers));
    w->vectors = shunt_carve(carve, arch->hidden + (size_t)arch->layer_count * layer_floats(arch),
                             sizeof(*w->vectors));
}

static struct shunt_matrix bind(const struct shunt_dense *d, const struct shunt_dense_read *read)
{
    return (struct shunt_matrix){
        .data = read->data,
        .type = d->type,
        .rows = d->rows,
        .cols = d->cols,
        .row_bytes = shunt_weight_row_bytes(d->type, d->cols),
    };
}

/* Norm weights are multiplied as float32, however they are stored. */
static const float *bind_vector(const struct shunt_kernels *k, const struct shunt_dense *d,
                                const struct shunt_dense_read *read, float **vectors)
{
    float *v = *vectors;

    k->dequantize(d->type, read->data, v, d->cols);
    *vectors += d->cols;
    return v;
}

static void bind_all(struct shunt_weights *w, const struct shunt_model *model,
                     const struct shunt_dense_read *reads, const struct shunt_kernels *k)
{
    const struct shunt_dense_read *at = reads;
    float *vectors = w->vectors;

    w->token_embd = bind(&model->token_embd, at++);
    w->output_norm = bind_vector(k, &model->output_norm, at++, &vectors);
    w->output = bind(&model->output, at->bytes ? at : reads);
    at++;
    for (uint32_t l = 0; l < model->arch.layer_count; l++) {
        const struct shunt_layer *layer = &model->layers[l];
        struct shunt_layer_weights *lw = &w->layers[l];

        lw->q = bind(&layer->q, at++);
        lw->k = bind(&layer->k, at++);
        lw->v = bind(&layer->v, at++);
        lw->o = bind(&layer->o, at++);
        w->routers[l] = bind(&layer->router, at++);
        lw->attn_norm = bind_vector(k, &layer->attn_norm, at++, &vectors);
        lw->ffn_norm = bind_vector(k, &layer->ffn_norm, at++, &vectors);
        lw->q_norm = bind_vector(k, &layer->q_norm, at++, &vectors);
        lw->k_norm = bind_vector(k, &layer->k_norm, at++, &vectors);
    }
}

int shunt_weights_load(struct shunt_weights *w, const struct shunt_weights_loading *how,
                       struct shunt_error *err)
{
    const struct shunt_file *file = &how->model->file;
    uint32_t count;
    struct shunt_dense_read *reads = list_reads(how->model, &count);
    int rc;

    if (!reads)
        return shunt_error_set(err, -ENOMEM, "out of memory for the list of weights");
    w->memory_bytes = shunt_store_lay_out_dense(file, NULL, reads, count);
    rc = shunt_arena_alloc(how->arena, w->memory_bytes, "non-expert weights", &w->memory, err);
    if (!rc) {
        shunt_store_lay_out_dense(file, w->memory, reads, count);
        rc = shunt_store_load_dense(how->store, reads, count, how->patience, err);
    }
    if (!rc)
        bind_all(w, how->model, reads, how->kernels);
    free(reads);
    return rc;
}
