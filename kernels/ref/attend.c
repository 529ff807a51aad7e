/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention of one head without a row of all its scores: after every block of keys, `out` and `sum`
 * are those of the softmax over the keys so far, relative to the largest score so far (`peak`). A
 * block that raises the peak shrinks what came before by exp(old peak - new peak); one that does
 * not multiplies it by exp(0), which is exactly 1.
 *
 *   out = sum over j of exp(s_j - peak) v_j / sum over j of exp(s_j - peak)
 */
#include "kernels/ref/ref.h"

#include <math.h>

/* scores[j] = scale * q.k of key first + j. Return: the largest, or `peak` if that is larger. */
static float score_block(const struct shunt_attend *a, uint32_t first, uint32_t n, float *scores,
                         float peak)
{
    for (uint32_t j = 0; j < n; j++) {
        const float *k = a->k + (first + j) * a->stride;

        scores[j] = a->scale * shunt_ref_dot(a->q, k, a->head_dim);
        if (scores[j] > peak)
            peak = scores[j];
    }
    return peak;
}

static void add_value(const struct shunt_attend *a, uint32_t key, float weight)
{
    const float *v = a->v + key * a->stride;

    for (uint32_t d = 0; d < a->head_dim; d++)
        a->out[d] += weight * v[d];
}

void shunt_ref_attend(const struct shunt_attend *a)
{
    float scores[SHUNT_ATTEND_BLOCK];
    float peak = -INFINITY;
    float sum = 0;

    for (uint32_t d = 0; d < a->head_dim; d++)
        a->out[d] = 0;
    for (uint32_t first = 0; first < a->key_count; first += SHUNT_ATTEND_BLOCK) {
        uint32_t left = a->key_count - first;
        uint32_t n = left < SHUNT_ATTEND_BLOCK ? left : SHUNT_ATTEND_BLOCK;
        float new_peak = score_block(a, first, n, scores, peak);
        float shrink = shunt_ref_exp(peak - new_peak);

        peak = new_peak;
        sum *= shrink;
        for (uint32_t d = 0; d < a->head_dim; d++)
            a->out[d] *= shrink;
        for (uint32_t j = 0; j < n; j++) {
            float weight = shunt_ref_exp(scores[j] - peak);

            sum += weight;
            add_value(a, first + j, weight);
        }
    }
    for (uint32_t d = 0; d < a->head_dim; d++)
        a->out[d] /= sum;
}
