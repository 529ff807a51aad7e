/* SPDX-License-Identifier: Apache-2.0
 *
 * identity MODEL [--full] [--kernels LEVEL] [--only N]
 *
 * The first invariant: where an expert ran never changes the answer. Computes the logits of a
 * prompt and the tokens after it on one node with every expert in memory, then again in every way
 * that must not matter, and compares bytes: number of nodes, slots, prefetch, placement, threads,
 * chunk, another user on the same node, transport. Without --full a subset in which every pair of
 * settings occurs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rack.h"

#define TOKENS  24
#define IDS_MAX 96

static const char prompt_text[] =
    "KING RICHARD:\nWhat say you, my lord? The crown is mine, and I will have it so. Renzo si "
    "voltò a guardare il frate, e disse: «Padre»\n";
static const char other_text[] = "static bool json_skip_ws(const char **p) {\n    while (";

/* ---- the ways */

enum { NODES, SLOTS, PREFETCH, PLACEMENT, THREADS, CHUNK, USER, TRANSPORT, FACTORS };

static const char *const factor_names[FACTORS] = {"nodes",   "slots", "prefetch",   "placement",
                                                  "threads", "chunk", "other user", "transport"};
static const uint32_t level_counts[FACTORS] = {3, 3, 2, 3, 2, 3, 2, 2};

static const char *const level_names[FACTORS][3] = {
    {"1", "2", "3"}, {"2", "40%", "100%"}, {"off", "on"}, {"off", "spread", "prism"},
    {"1", "2"},      {"1", "7", "512"},    {"no", "yes"}, {"tcp", "shm"},
};

struct way {
    uint32_t level[FACTORS];
};

static uint32_t all_ways(struct way *ways)
{
    uint32_t n = 1;

    for (uint32_t f = 0; f < FACTORS; f++)
        n *= level_counts[f];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t rest = i;

        for (uint32_t f = 0; f < FACTORS; f++) {
            ways[i].level[f] = rest % level_counts[f];
            rest /= level_counts[f];
        }
    }
    return n;
}

/* Pairs of settings that `way` shows and `seen` has not. */
static uint32_t new_pairs(const struct way *way, bool seen[FACTORS][3][FACTORS][3], bool mark)
{
    uint32_t n = 0;

    for (uint32_t a = 0; a < FACTORS; a++)
        for (uint32_t b = a + 1; b < FACTORS; b++) {
            bool *s = &seen[a][way->level[a]][b][way->level[b]];

            n += !*s;
            *s |= mark;
        }
    return n;
}

/* Greedily the ways that show most new pairs. */
static uint32_t covering_ways(struct way *ways, uint32_t count)
{
    static bool seen[FACTORS][3][FACTORS][3];
    uint32_t chosen = 0;

    for (;;) {
        uint32_t best = chosen, most = 0;

        for (uint32_t i = chosen; i < count; i++) {
            uint32_t n = new_pairs(&ways[i], seen, false);

            if (n > most) {
                most = n;
                best = i;
            }
        }
        if (most == 0)
            return chosen;
        struct way w = ways[best];

        ways[best] = ways[chosen];
        ways[chosen++] = w;
        new_pairs(&w, seen, true);
    }
}

/* ---- running one */

struct subject {
    const shunt_model *model;
    const char *kernels;
    uint32_t vocab;
    int32_t ids[IDS_MAX], other_ids[IDS_MAX];
    uint32_t id_count, other_count;
    struct driver_user expected;
};

static void set_way(struct shunt_config *cfg, const struct way *way)
{
    static const uint32_t slot_counts[] = {2, 0, 0}, slot_percents[] = {0, 40, 100};
    static const uint32_t chunks[] = {1, 7, 512};

    cfg->slot_count = slot_counts[way->level[SLOTS]];
    cfg->slot_percent = slot_percents[way->level[SLOTS]];
    cfg->prefetch = way->level[PREFETCH];
    cfg->placement = level_names[PLACEMENT][way->level[PLACEMENT]];
    cfg->threads = way->level[THREADS] + 1;
    cfg->transport = level_names[TRANSPORT][way->level[TRANSPORT]];
    cfg->chunk = chunks[way->level[CHUNK]];
}

static struct driver_user make_user(const struct subject *s, bool other)
{
    struct driver_user u = {
        .ids = other ? s->other_ids : s->ids,
        .id_count = other ? s->other_count : s->id_count,
        .token_max = TOKENS,
        .tokens = calloc(TOKENS, sizeof(int32_t)),
        .logits = other ? NULL : calloc((size_t)s->id_count * s->vocab, sizeof(float)),
    };

    return u;
}

static void free_user(struct driver_user *u)
{
    free(u->tokens);
    free(u->logits);
}

/* Runs the prompt in one way; *user gets what came of it. */
static int run_way(const struct subject *s, const struct way *way, struct driver_user *user)
{
    uint32_t node_count = way->level[NODES] + 1;
    struct driver_user users[2] = {make_user(s, false), make_user(s, true)};
    struct driver_user elsewhere = make_user(s, true);
    struct driver_node nodes[3] = {{.users = users, .user_count = way->level[USER] ? 2 : 1}};
    struct shunt_config cfg;
    int rc;

    if (way->level[USER] && node_count > 1)
        nodes[1] = (struct driver_node){.users = &elsewhere, .user_count = 1};
    shunt_config_init(&cfg);
    set_way(&cfg, way);
    cfg.kernels = s->kernels;
    cfg.context = IDS_MAX + TOKENS;
    cfg.plan_interval_ns = 20000000; /* several placements within the run */
    rc = driver_run(s->model, &cfg, nodes, node_count);
    if (!rc && (nodes[0].stats.calls_read == 0 ||
                (node_count > 1 && nodes[0].stats.calls_peer + nodes[0].stats.rows_sent == 0))) {
        printf("# nothing was read, or no row left its node\n");
        rc = -1;
    }
    *user = users[0];
    free_user(&users[1]);
    free_user(&elsewhere);
    return rc;
}

static void describe(const struct way *way, char *text, size_t bytes)
{
    size_t at = 0;

    for (uint32_t f = 0; f < FACTORS; f++)
        at += (size_t)snprintf(text + at, bytes - at, "%s%s %s", f ? ", " : "", factor_names[f],
                               level_names[f][way->level[f]]);
}

static bool same(const struct subject *s, const struct driver_user *u)
{
    const struct driver_user *e = &s->expected;

    return u->token_count == e->token_count && u->digest == e->digest &&
           !memcmp(u->tokens, e->tokens, e->token_count * sizeof(*e->tokens)) &&
           !memcmp(u->logits, e->logits, (size_t)s->id_count * s->vocab * sizeof(float));
}

static int compare(struct subject *s, const struct way *ways, uint32_t count)
{
    const struct way alone = {.level = {[SLOTS] = 2, [CHUNK] = 2}};
    int failures = 0;

    if (run_way(s, &alone, &s->expected))
        return 1;
    for (uint32_t i = 0; i < count; i++) {
        struct driver_user user;
        char text[256];
        bool ok;

        describe(&ways[i], text, sizeof(text));
        ok = run_way(s, &ways[i], &user) == 0 && same(s, &user);
        printf("%s %u - %s: %s\n", ok ? "ok" : "not ok", i + 1, s->kernels, text);
        fflush(stdout);
        failures += !ok;
        free_user(&user);
    }
    free_user(&s->expected);
    return failures;
}

int main(int argc, char **argv)
{
    static struct way ways[2048];
    struct shunt_model_info info = {.size = sizeof(info)};
    struct subject s = {.kernels = "auto"};
    struct shunt_error err;
    shunt_model *model;
    uint32_t count = all_ways(ways);
    uint32_t only = UINT32_MAX;
    bool full = false;
    int failures;

    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--full"))
            full = true;
        else if (!strcmp(argv[i], "--kernels") && i + 1 < argc)
            s.kernels = argv[++i];
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            only = (uint32_t)atoi(argv[++i]);
    }
    if (argc < 2 || shunt_model_open(&model, argv[1], &err)) {
        fprintf(stderr, "%s\n", argc < 2 ? "usage: identity MODEL [--full]" : err.text);
        return 2;
    }
    shunt_model_get_info(model, &info);
    s.model = model;
    s.vocab = info.vocab_count;
    s.id_count = driver_ids(model, prompt_text, s.ids, IDS_MAX);
    s.other_count = driver_ids(model, other_text, s.other_ids, IDS_MAX);
    if (!full)
        count = covering_ways(ways, count);
    if (count > only)
        count = only;
    printf("1..%u\n", count);
    failures = compare(&s, ways, count);
    shunt_model_close(model);
    return failures ? 1 : 0;
}
