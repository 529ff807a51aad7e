/* SPDX-License-Identifier: Apache-2.0
 *
 * Placement on the true routing of small models. Skipped where the traces are not: they are not in
 * the repository (meson option models_dir).
 */
#include "planner/placement.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DOMAINS 3u

static const char *const domains[DOMAINS] = {"drama", "prosa", "code"};
static const char *const models[] = {"qwen3moe-demo", "deepseek2-tiny", "qwen3moe-k",
                                     "mixtral-tiny"};

/* Activations of one half of a trace each: a placement is made from the first and judged by the
 * second, which it has not seen. */
struct history {
    uint32_t layer_count, expert_count;
    uint64_t *half[2]; /* [domain][layer][expert] */
};

static uint32_t field(const char *header, const char *name)
{
    const char *at = strstr(header, name);

    return at ? (uint32_t)strtoul(at + strlen(name), NULL, 10) : 0;
}

/* Counts one domain's trace: one line of text, then tokens * layers * topk expert ids of a byte. */
static void count_trace(struct history *h, uint32_t domain, FILE *file, const char *header)
{
    uint32_t tokens = field(header, " tokens="), topk = field(header, " topk=");
    size_t per_domain;

    if (domain == 0) {
        h->layer_count = field(header, " layers=");
        h->expert_count = field(header, " experts=");
        for (uint32_t i = 0; i < 2; i++)
            h->half[i] =
                calloc((size_t)DOMAINS * h->layer_count * h->expert_count, sizeof(*h->half[i]));
    }
    cr_assert(tokens > 0 && topk > 0, "%s", header);
    cr_assert_eq(field(header, " layers="), h->layer_count);
    cr_assert_eq(field(header, " experts="), h->expert_count);
    per_domain = (size_t)h->layer_count * h->expert_count;
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t i = 0; i < h->layer_count * topk; i++) {
            int expert = fgetc(file);

            cr_assert(expert >= 0 && (uint32_t)expert < h->expert_count, "token %u", t);
            h->half[t >= tokens / 2]
                   [domain * per_domain + i / topk * h->expert_count + (uint32_t)expert]++;
        }
    }
    cr_assert_eq(fgetc(file), EOF);
}

static bool read_history(struct history *h, const char *model)
{
    for (uint32_t d = 0; d < DOMAINS; d++) {
        char path[4096], header[512];
        FILE *file;

        snprintf(path, sizeof(path), "%s/%s-%s.trace", SHUNT_TEST_MODELS_DIR, model, domains[d]);
        file = fopen(path, "rb");
        if (!file)
            return false;
        cr_assert(fgets(header, sizeof(header), file) && !strncmp(header, "shunt-trace 1 ", 14),
                  "%s", path);
        count_trace(h, d, file, header);
        fclose(file);
    }
    return true;
}

static double remote_fraction(const struct shunt_placement_input *in, const uint64_t *mask)
{
    struct shunt_placement_cost cost = shunt_placement_cost(in, mask);

    return (double)cost.remote / (double)cost.total;
}

/* Three nodes, each with the users of one domain and room for `percent` of the experts. */
static void judge(const char *model, const struct history *h, uint32_t percent)
{
    uint32_t all = h->layer_count * h->expert_count;
    uint32_t capacity[DOMAINS] = {all * percent / 100, all * percent / 100, all * percent / 100};
    struct shunt_placement_input past = {DOMAINS, h->layer_count, h->expert_count, h->half[0],
                                         capacity};
    struct shunt_placement_input future = past;
    uint64_t *mask = calloc(all, sizeof(*mask));
    void *scratch = malloc(shunt_placement_scratch_bytes(&past));
    double prism, seen, spread;

    future.activations = h->half[1];
    shunt_placement_prism(&past, mask, scratch);
    seen = remote_fraction(&past, mask);
    prism = remote_fraction(&future, mask);
    shunt_placement_spread(&past, mask);
    spread = remote_fraction(&future, mask);
    fprintf(stderr,
            "# %s, 3 nodes of %u %%: remote under prism %.3f (%.3f of the calls it was made "
            "from), under spread %.3f\n",
            model, percent, prism, seen, spread);
    cr_assert_leq(prism, spread, "%s, %u %%", model, percent);
    free(mask);
    free(scratch);
}

Test(trace, prism_keeps_more_at_home_than_spread)
{
    uint32_t found = 0;

    for (uint32_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        struct history h = {0};

        if (read_history(&h, models[m])) {
            judge(models[m], &h, 40);
            judge(models[m], &h, 55);
            found++;
        }
        free(h.half[0]);
        free(h.half[1]);
    }
    if (found == 0)
        cr_skip_test("no traces in " SHUNT_TEST_MODELS_DIR " (meson option models_dir)");
}
