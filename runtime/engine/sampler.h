/* SPDX-License-Identifier: Apache-2.0
 *
 * Choosing the next token from a row of logits. The choice depends on the row, the settings and the
 * sequence's own random state only, so it is the same wherever and beside whomever it runs.
 */
#ifndef SHUNT_ENGINE_SAMPLER_H
#define SHUNT_ENGINE_SAMPLER_H

#include <stdint.h>

struct shunt_sampler {
    float temperature; /* 0: the most probable */
    float top_p;       /* (0, 1] */
    uint32_t top_k;    /* 0: all */
    uint64_t random;   /* state; the seed at first */
};

struct shunt_candidate {
    float logit; /* then probability */
    int32_t id;
};

/* `candidates`: n of the caller's. A NaN logit is never chosen over a number. Return: the id. */
int32_t shunt_sample(struct shunt_sampler *s, const float *logits, uint32_t n,
                     struct shunt_candidate *candidates);

#endif
