/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/sampler.h"

#include <math.h>
#include <stdbool.h>

/* splitmix64 (Steele, Lea and Flood, 2014): one word of state, any seed will do. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* In [0, 1), 53 bits. */
static double next_uniform(uint64_t *state)
{
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

static int32_t most_probable(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i])))
            best = i;
    return (int32_t)best;
}

/* Descending by logit, the lower id first among equals: a total order, so any sort gives the same.
 */
static int by_logit(const struct shunt_candidate *x, const struct shunt_candidate *y)
{
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* True when a comes after b in the order above. */
static bool worse(const struct shunt_candidate *a, const struct shunt_candidate *b)
{
    return by_logit(a, b) > 0;
}

static void sift_down(struct shunt_candidate *heap, uint32_t count, uint32_t at)
{
    for (;;) {
        uint32_t child = 2 * at + 1;
        struct shunt_candidate held = heap[at];

        if (child >= count)
            return;
        if (child + 1 < count && worse(&heap[child + 1], &heap[child]))
            child++;
        if (!worse(&heap[child], &held))
            return;
        heap[at] = heap[child];
        heap[child] = held;
        at = child;
    }
}

/* Heap sort with the worst on top leaves the best first. In place: qsort may allocate. */
static void sort_best_first(struct shunt_candidate *c, uint32_t count)
{
    for (uint32_t i = count / 2; i-- > 0;)
        sift_down(c, count, i);
    for (uint32_t left = count; left > 1; left--) {
        struct shunt_candidate worst = c[0];

        c[0] = c[left - 1];
        c[left - 1] = worst;
        sift_down(c, left - 1, 0);
    }
}

/* Keeps the k best of n: a heap of k with the worst on top. */
static uint32_t keep_best(struct shunt_candidate *c, uint32_t n, uint32_t k)
{
    if (k >= n)
        return n;
    for (uint32_t i = k / 2; i-- > 0;)
        sift_down(c, k, i);
    for (uint32_t i = k; i < n; i++) {
        if (worse(&c[i], &c[0]))
            continue;
        c[0] = c[i];
        sift_down(c, k, 0);
    }
    return k;
}

/* The smallest set of best candidates whose probability reaches the share top_p of `sum`; the one
 * that crosses it belongs to it. */
static uint32_t keep_nucleus(const struct shunt_candidate *c, uint32_t count, double limit)
{
    double sum = 0;

    for (uint32_t i = 0; i < count; i++) {
        sum += c[i].logit;
        if (sum >= limit)
            return i + 1;
    }
    return count;
}

int32_t shunt_sample(struct shunt_sampler *s, const float *logits, uint32_t n,
                     struct shunt_candidate *c)
{
    int32_t best = most_probable(logits, n);
    uint32_t count = n;
    double sum = 0, at = 0, pick;

    if (s->temperature <= 0)
        return best;
    for (uint32_t i = 0; i < n; i++)
        c[i] = (struct shunt_candidate){isnan(logits[i]) ? -INFINITY : logits[i], (int32_t)i};
    if (s->top_k > 0)
        count = keep_best(c, n, s->top_k);
    if (s->top_p < 1)
        sort_best_first(c, count);
    for (uint32_t i = 0; i < count; i++) {
        c[i].logit = expf((c[i].logit - logits[best]) / s->temperature);
        sum += c[i].logit;
    }
    if (s->top_p < 1) {
        count = keep_nucleus(c, count, sum * s->top_p);
        sum = 0;
        for (uint32_t i = 0; i < count; i++)
            sum += c[i].logit;
    }
    pick = next_uniform(&s->random) * sum;
    for (uint32_t i = 0; i < count; i++) {
        at += c[i].logit;
        if (at > pick)
            return c[i].id;
    }
    return best; /* every logit is NaN or infinite */
}
