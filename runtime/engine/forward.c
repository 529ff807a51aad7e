/* SPDX-License-Identifier: Apache-2.0
 *
 * The forward pass of qwen3moe for a batch of rows: embedding, attention with its norms and its KV
 * cache, the MoE layer, logits. As the official implementation computes it (transformers,
 * Qwen3MoeForCausalLM): every head of q and k is normalised by itself before it is rotated, and the
 * rotation pairs a head's first half with its second.
 */
#include <math.h>
#include <string.h>

#include "runtime/engine/engine_impl.h"

#define NORM_ROWS_PER_TASK 16u

/* ---- tables */

/* Angles as the official code forms them: float32 frequencies, float32 products, then cos and sin.
 */
static void fill_rope(struct shunt *e)
{
    const struct shunt_arch *a = &e->model->arch;
    uint32_t half = a->head_dim / 2;

    for (uint32_t i = 0; i < half; i++) {
        float frequency =
            (float)(1.0 / pow((double)a->rope_base, (double)(2 * i) / (double)a->head_dim));

        for (uint32_t p = 0; p < e->context; p++) {
            float angle = (float)p * frequency;
            float *row = e->rope + (size_t)p * a->head_dim;

            row[i] = (float)cos((double)angle);
            row[half + i] = (float)sin((double)angle);
        }
    }
}

static void fill_rows(float **rows, float *base, uint32_t count, uint32_t stride)
{
    for (uint32_t i = 0; i < count; i++)
        rows[i] = base + (size_t)i * stride;
}

void shunt_forward_init(struct shunt *e)
{
    const struct shunt_arch *a = &e->model->arch;
    uint32_t rows = e->options.rows_max;

    fill_rope(e);
    fill_rows(e->act.normed_rows, e->act.normed, rows, a->hidden);
    fill_rows(e->act.q_rows, e->act.q, rows, a->head_count * a->head_dim);
    fill_rows(e->act.k_rows, e->act.k, rows, a->kv_head_count * a->head_dim);
    fill_rows(e->act.v_rows, e->act.v, rows, a->kv_head_count * a->head_dim);
    fill_rows(e->act.attended_rows, e->act.attended, rows, a->head_count * a->head_dim);
    fill_rows(e->act.logit_rows, e->act.logits, SHUNT_LOGIT_ROWS, a->vocab_count);
    fill_rows(e->prefill.x_rows, e->prefill.x, e->options.chunk, a->hidden);
    fill_rows(e->decode.x_rows, e->decode.x, e->sequence_count, a->hidden);
}

/* The cache of one layer, kv head and kind (0 keys, 1 values) of a sequence: [context][head_dim].
 */
static float *kv_at(const struct shunt *e, uint32_t sequence, uint32_t layer, uint32_t kind,
                    uint32_t kv_head)
{
    const struct shunt_arch *a = &e->model->arch;
    size_t index = (((size_t)sequence * a->layer_count + layer) * 2 + kind) * a->kv_head_count;

    return e->kv + (index + kv_head) * e->context * a->head_dim;
}

/* ---- pieces of a layer, each over the pool */

struct pass {
    struct shunt *e;
    struct shunt_batch *b;
    const struct shunt_layer_weights *w;
    uint32_t layer;
    const float *norm; /* what norm_task multiplies by */
};

static void norm_task(void *ctx, uint32_t index, uint32_t worker)
{
    const struct pass *p = ctx;
    const struct shunt_arch *a = &p->e->model->arch;
    uint32_t end = (index + 1) * NORM_ROWS_PER_TASK;

    (void)worker;
    if (end > p->b->count)
        end = p->b->count;
    for (uint32_t r = index * NORM_ROWS_PER_TASK; r < end; r++)
        p->e->kernels->rmsnorm(p->e->act.normed_rows[r], p->b->x_rows[r], p->norm, a->hidden,
                               a->rms_eps);
}

static void norm_rows(struct pass *p, const float *weight)
{
    uint32_t tasks = (p->b->count + NORM_ROWS_PER_TASK - 1) / NORM_ROWS_PER_TASK;

    p->norm = weight;
    shunt_pool_run(p->e->pool, norm_task, p, tasks);
}

/* Norms and rotates the heads of one row; keys and values go into the cache. */
static void heads_task(void *ctx, uint32_t r, uint32_t worker)
{
    const struct pass *p = ctx;
    const struct shunt *e = p->e;
    const struct shunt_arch *a = &e->model->arch;
    uint32_t position = p->b->positions[r];
    const float *cos_sin = e->rope + (size_t)position * a->head_dim;
    size_t head_bytes = a->head_dim * sizeof(float);

    (void)worker;
    for (uint32_t h = 0; h < a->head_count; h++) {
        float *q = e->act.q_rows[r] + (size_t)h * a->head_dim;

        e->kernels->rmsnorm(q, q, p->w->q_norm, a->head_dim, a->rms_eps);
        e->kernels->rope(q, cos_sin, a->head_dim);
    }
    for (uint32_t h = 0; h < a->kv_head_count; h++) {
        float *k = e->act.k_rows[r] + (size_t)h * a->head_dim;
        const float *v = e->act.v_rows[r] + (size_t)h * a->head_dim;
        size_t at = (size_t)position * a->head_dim;

        e->kernels->rmsnorm(k, k, p->w->k_norm, a->head_dim, a->rms_eps);
        e->kernels->rope(k, cos_sin, a->head_dim);
        memcpy(kv_at(e, p->b->sequences[r], p->layer, 0, h) + at, k, head_bytes);
        memcpy(kv_at(e, p->b->sequences[r], p->layer, 1, h) + at, v, head_bytes);
    }
}

/* One query head of one row. Its keys are all in the cache, those of its own chunk included. */
static void attend_task(void *ctx, uint32_t index, uint32_t worker)
{
    const struct pass *p = ctx;
    const struct shunt *e = p->e;
    const struct shunt_arch *a = &e->model->arch;
    uint32_t r = index / a->head_count;
    uint32_t h = index % a->head_count;
    uint32_t kv_head = h / (a->head_count / a->kv_head_count);
    const struct shunt_attend attend = {
        .q = e->act.q_rows[r] + (size_t)h * a->head_dim,
        .k = kv_at(e, p->b->sequences[r], p->layer, 0, kv_head),
        .v = kv_at(e, p->b->sequences[r], p->layer, 1, kv_head),
        .stride = a->head_dim,
        .key_count = p->b->positions[r] + 1,
        .head_dim = a->head_dim,
        .scale = 1.0f / sqrtf((float)a->head_dim),
        .out = e->act.attended_rows[r] + (size_t)h * a->head_dim,
    };

    (void)worker;
    e->kernels->attend(&attend);
}

static void add_task(void *ctx, uint32_t r, uint32_t worker)
{
    const struct pass *p = ctx;

    (void)worker;
    p->e->kernels->add_scaled(p->b->x_rows[r], p->e->act.normed_rows[r], 1.0f,
                              p->e->model->arch.hidden);
}

static void attention(struct pass *p)
{
    struct shunt *e = p->e;
    const struct shunt_arch *a = &e->model->arch;
    const struct shunt_compute c = {.kernels = e->kernels, .pool = e->pool, .scratch = e->scratch};
    const float *const *normed = (const float *const *)e->act.normed_rows;
    uint32_t count = p->b->count;

    norm_rows(p, p->w->attn_norm);
    shunt_linear(&c, &p->w->q, normed, e->act.q_rows, count);
    shunt_linear(&c, &p->w->k, normed, e->act.k_rows, count);
    shunt_linear(&c, &p->w->v, normed, e->act.v_rows, count);
    shunt_pool_run(e->pool, heads_task, p, count);
    shunt_pool_run(e->pool, attend_task, p, count * a->head_count);
    shunt_linear(&c, &p->w->o, (const float *const *)e->act.attended_rows, e->act.normed_rows,
                 count);
    shunt_pool_run(e->pool, add_task, p, count);
}

/* ---- the pass */

void shunt_forward_embed(struct shunt *e, struct shunt_batch *b)
{
    const struct shunt_matrix *w = &e->weights.token_embd;

    for (uint32_t r = 0; r < b->count; r++)
        e->kernels->dequantize(w->type,
                               (const unsigned char *)w->data + (size_t)b->ids[r] * w->row_bytes,
                               b->x_rows[r], w->cols);
}

int shunt_forward_layer(struct shunt *e, struct shunt_batch *b, enum shunt_lane lane,
                        uint32_t layer, struct shunt_error *err)
{
    struct pass p = {.e = e, .b = b, .w = &e->weights.layers[layer], .layer = layer};
    const struct shunt_moe_rows rows = {
        .x = (const float *const *)e->act.normed_rows,
        .out = b->x_rows,
        .count = b->count,
    };

    if (b->count > 0) {
        attention(&p);
        norm_rows(&p, p.w->ffn_norm);
    }
    return shunt_moe_step(&e->moe, lane, layer, e->step, &rows, err);
}

void shunt_forward_logits(struct shunt *e, const struct shunt_batch *b, const uint32_t *rows,
                          float *const *out, uint32_t count)
{
    const struct shunt_arch *a = &e->model->arch;
    const struct shunt_compute c = {.kernels = e->kernels, .pool = e->pool, .scratch = e->scratch};

    for (uint32_t i = 0; i < count; i++)
        e->kernels->rmsnorm(e->act.normed_rows[i], b->x_rows[rows[i]], e->weights.output_norm,
                            a->hidden, a->rms_eps);
    shunt_linear(&c, &e->weights.output, (const float *const *)e->act.normed_rows, out, count);
}
