/* SPDX-License-Identifier: Apache-2.0
 *
 * soak MODEL [ROUNDS] [SEED]
 *
 * Three nodes, several users each, who come and go: prompts of all lengths, cancelled in the
 * middle, read slowly, prefill of one beside decode of another, few slots, placements that change.
 * Whatever a sequence says must be what one node alone said to the same prompt.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rack.h"

#define NODES   3
#define USERS   3
#define PROMPTS 12
#define IDS_MAX 80
#define TOKENS  40
#define TIMEOUT 60000000000ll

static shunt_model *model;
static uint32_t rounds = 12;
static uint64_t seed = 1;

static struct {
    int32_t ids[IDS_MAX];
    uint32_t id_count;
    int32_t tokens[TOKENS]; /* what one node alone generates */
    uint64_t digest;
} prompts[PROMPTS];

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

static int failed(uint32_t node, const char *what)
{
    fprintf(stderr, "soak: node %u, seed %llu: %s\n", node, (unsigned long long)seed, what);
    return -1;
}

/* ---- the truth */

static int learn(void)
{
    static const char text[] =
        "Sing to me of the man, Muse, the man of twists and turns driven time and again off "
        "course, "
        "once he had plundered the hallowed heights of Troy. static int f(void) { return 0; } Quel "
        "ramo del lago di Como, che volge a mezzogiorno, tra due catene non interrotte di monti";
    int32_t all[256];
    uint32_t count = driver_ids(model, text, all, 256);
    struct driver_user users[PROMPTS];
    struct driver_node node = {.users = users, .user_count = PROMPTS};
    struct shunt_config cfg;
    uint64_t random = 99;

    shunt_config_init(&cfg);
    cfg.context = IDS_MAX + TOKENS;
    for (uint32_t p = 0; p < PROMPTS; p++) {
        uint32_t at = (uint32_t)next_random(&random) % (count - IDS_MAX);

        prompts[p].id_count = 1 + (uint32_t)next_random(&random) % IDS_MAX;
        memcpy(prompts[p].ids, all + at, prompts[p].id_count * sizeof(int32_t));
        users[p] = (struct driver_user){.ids = prompts[p].ids,
                                        .id_count = prompts[p].id_count,
                                        .token_max = TOKENS,
                                        .tokens = prompts[p].tokens};
    }
    if (driver_run(model, &cfg, &node, 1))
        return -1;
    for (uint32_t p = 0; p < PROMPTS; p++)
        prompts[p].digest = users[p].digest;
    return 0;
}

/* ---- a node's users */

struct user {
    uint64_t id; /* 0: away */
    uint32_t prompt, tokens, heard;
    uint32_t cancel_after; /* tokens; above TOKENS: never */
};

struct life {
    struct shunt_config cfg;
    pthread_t thread;
    int rc;
};

static int come(struct life *l, shunt *engine, struct user *u, uint64_t *random)
{
    struct shunt_request r;
    struct shunt_error err;

    *u = (struct user){.prompt = (uint32_t)next_random(random) % PROMPTS,
                       .tokens = 1 + (uint32_t)next_random(random) % TOKENS,
                       .cancel_after = (uint32_t)next_random(random) % (2 * TOKENS)};
    shunt_request_init(&r);
    r.ids = prompts[u->prompt].ids;
    r.id_count = prompts[u->prompt].id_count;
    r.token_max = u->tokens;
    r.ignore_eos = true;
    if (shunt_submit(engine, &r, &u->id, &err))
        return failed(l->cfg.rank, err.text);
    if (u->cancel_after == 0)
        shunt_cancel(engine, u->id);
    return 0;
}

/* Return: 1 when the user has gone, 0 when not, -1 for a wrong word. */
static int listen_to(struct life *l, shunt *engine, struct user *u, const struct shunt_event *event)
{
    if (event->type == SHUNT_EVENT_TOKEN) {
        if (u->heard == u->tokens || event->token != prompts[u->prompt].tokens[u->heard])
            return failed(l->cfg.rank, "another token than on one node alone");
        if (++u->heard == u->cancel_after)
            shunt_cancel(engine, u->id);
        return 0;
    }
    u->id = 0;
    if (event->reason == SHUNT_END_CANCELLED)
        return u->cancel_after <= TOKENS ? 1 : failed(l->cfg.rank, "cancelled by nobody");
    if (event->reason != SHUNT_END_LENGTH || u->heard != u->tokens)
        return failed(l->cfg.rank, "ended too early");
    if (u->tokens == TOKENS && event->digest != prompts[u->prompt].digest)
        return failed(l->cfg.rank, "other bits than on one node alone");
    return 1;
}

static int serve_users(struct life *l, shunt *engine)
{
    struct user users[USERS] = {{0}};
    uint64_t random = seed * 1000 + l->cfg.rank;
    uint32_t gone = 0, come_count = 0;

    while (gone < rounds) {
        struct shunt_event event = {.size = sizeof(event)};
        struct shunt_error err;
        struct user *u = users;
        uint64_t only;
        int rc;

        for (uint32_t i = 0; i < USERS && come_count < rounds; i++)
            if (users[i].id == 0 && next_random(&random) % 2 == 0) {
                if (come(l, engine, &users[i], &random))
                    return -1;
                come_count++;
            }
        /* Now and then one user is read alone, while the others' words pile up. */
        only = next_random(&random) % 4 == 0 ? users[next_random(&random) % USERS].id : 0;
        rc = shunt_poll(engine, only, &event, come_count == gone ? 0 : TIMEOUT, &err);
        if (rc == 0 && come_count == gone)
            continue;
        if (rc != 1)
            return failed(l->cfg.rank, rc ? err.text : "no event came");
        if (event.type == SHUNT_EVENT_RACK_DOWN)
            return failed(l->cfg.rank, event.text);
        if (event.type == SHUNT_EVENT_NOTICE)
            continue;
        while (u->id != event.id)
            u++;
        rc = listen_to(l, engine, u, &event);
        if (rc < 0)
            return rc;
        gone += (uint32_t)rc;
    }
    return 0;
}

static void *live(void *arg)
{
    struct life *l = arg;
    struct shunt_error err;
    shunt *engine;

    l->rc = -1;
    if (shunt_open(&engine, model, &l->cfg, &err)) {
        failed(l->cfg.rank, err.text);
        return NULL;
    }
    l->rc = serve_users(l, engine);
    if (shunt_close(engine, l->rc ? 0 : TIMEOUT) && !l->rc)
        l->rc = failed(l->cfg.rank, "the rack did not end in order");
    return NULL;
}

static int soak(void)
{
    static const char *const placements[] = {"prism", "spread", "off"};
    struct life lives[NODES];
    char addresses[NODES][32];
    const char *rack[NODES];
    int rc = 0;

    for (uint32_t n = 0; n < NODES; n++) {
        struct shunt_config *c = &lives[n].cfg;

        shunt_config_init(c);
        c->rank = n;
        c->node_count = NODES;
        c->dead_after_ns = 30000000000ll; /* the machine may be busy */
        c->rack = rack;
        rack[n] = addresses[n];
        c->listen_fd = driver_listen(addresses[n], sizeof(addresses[n]));
        c->context = IDS_MAX + TOKENS;
        c->sequences_max = USERS;
        c->threads = 1 + n % 2;
        c->slot_count = n == 0 ? 2 : 20 + 40 * n;
        c->chunk = 5 + 20 * n; /* differs from node to node */
        c->plan_interval_ns = 30000000;
        c->placement = placements[seed % 3];
        c->io = n == 1 ? "pread" : "auto";
    }
    for (uint32_t n = 0; n < NODES; n++)
        pthread_create(&lives[n].thread, NULL, live, &lives[n]);
    for (uint32_t n = 0; n < NODES; n++) {
        pthread_join(lives[n].thread, NULL);
        rc |= lives[n].rc;
    }
    return rc;
}

int main(int argc, char **argv)
{
    struct shunt_error err;
    uint64_t last;

    if (argc < 2 || shunt_model_open(&model, argv[1], &err)) {
        fprintf(stderr, "%s\n", argc < 2 ? "usage: soak MODEL [ROUNDS] [SEED]" : err.text);
        return 2;
    }
    if (argc > 2)
        rounds = (uint32_t)atoi(argv[2]);
    if (argc > 3)
        seed = strtoull(argv[3], NULL, 10);
    if (learn())
        return 1;
    for (last = seed + 3; seed < last; seed++)
        if (soak())
            return 1;
    printf("%u sequences on each of %d nodes, 3 seeds\n", rounds, NODES);
    shunt_model_close(model);
    return 0;
}
