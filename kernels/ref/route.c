/* SPDX-License-Identifier: Apache-2.0
 *
 * The router's choice. All levels use this routine: which experts a row goes to must not hang on
 * how a level rounds, and it costs next to nothing beside one expert.
 */
#include "kernels/ref/ref.h"

#include <math.h>

/* NaN ranks with -inf, so that this is an order for any input. */
static float rankable(float logit)
{
    return logit == logit ? logit : -INFINITY;
}

/* ids[0, k) = the k highest logits, highest first. Strict comparison keeps the lower id first among
 * equals. */
static void pick(const float *logits, uint32_t n, uint32_t k, uint16_t *ids)
{
    uint32_t filled = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = filled;

        while (at > 0 && rankable(logits[i]) > rankable(logits[ids[at - 1]]))
            at--;
        if (at == k)
            continue;
        if (filled < k)
            filled++;
        for (uint32_t j = filled - 1; j > at; j--)
            ids[j] = ids[j - 1];
        ids[at] = (uint16_t)i;
    }
}

void shunt_ref_route(const float *logits, uint32_t n, uint32_t k, bool normalize, uint16_t *ids,
                     float *weights)
{
    float peak, sum = 0, picked = 0;

    pick(logits, n, k, ids);
    peak = rankable(logits[ids[0]]);
    for (uint32_t i = 0; i < n; i++)
        sum += shunt_ref_exp(rankable(logits[i]) - peak);
    for (uint32_t i = 0; i < k; i++) {
        weights[i] = shunt_ref_exp(rankable(logits[ids[i]]) - peak) / sum;
        picked += weights[i];
    }
    for (uint32_t i = 0; i < k && normalize; i++)
        weights[i] /= picked;
}
