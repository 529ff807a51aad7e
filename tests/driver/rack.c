/* SPDX-License-Identifier: Apache-2.0 */
#include "rack.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLOSE_NS 60000000000ll

struct life {
    const shunt_model *model;
    struct shunt_config cfg;
    struct driver_node *node;
    pthread_t thread;
    int rc;
};

static int failed(const struct life *l, const char *what, const char *text)
{
    fprintf(stderr, "node %u: %s: %s\n", l->cfg.rank, what, text);
    return -1;
}

static int submit_all(struct life *l, shunt *engine, uint64_t *ids)
{
    for (uint32_t u = 0; u < l->node->user_count; u++) {
        const struct driver_user *user = &l->node->users[u];
        struct shunt_request r;
        struct shunt_error err;

        shunt_request_init(&r);
        r.ids = user->ids;
        r.id_count = user->id_count;
        r.token_max = user->token_max;
        r.ignore_eos = true;
        r.logits = user->logits;
        if (shunt_submit(engine, &r, &ids[u], &err))
            return failed(l, "submit", err.text);
    }
    return 0;
}

static int take_events(struct life *l, shunt *engine, const uint64_t *ids)
{
    uint32_t left = l->node->user_count;

    while (left > 0) {
        struct shunt_event event = {.size = sizeof(event)};
        struct shunt_error err;
        struct driver_user *user = l->node->users;
        int rc = shunt_poll(engine, 0, &event, CLOSE_NS, &err);

        if (rc <= 0)
            return failed(l, "poll", rc ? err.text : "no event came");
        if (event.type == SHUNT_EVENT_RACK_DOWN)
            return failed(l, "rack down", event.text);
        if (event.type == SHUNT_EVENT_NOTICE)
            continue;
        while (ids[user - l->node->users] != event.id)
            user++;
        if (event.type == SHUNT_EVENT_TOKEN) {
            user->tokens[user->token_count++] = event.token;
            if (user->on_token)
                user->on_token(user->token_count);
            continue;
        }
        if (event.reason != SHUNT_END_LENGTH)
            return failed(l, "end", "a sequence ended for another reason than its length");
        user->digest = event.digest;
        left--;
    }
    return 0;
}

static int live(struct life *l)
{
    uint64_t ids[64] = {0};
    struct shunt_error err;
    shunt *engine;
    int rc;

    l->cfg.serve_only = l->node->user_count == 0;
    l->cfg.sequences_max = l->node->user_count ? l->node->user_count : 1;
    if (shunt_open(&engine, l->model, &l->cfg, &err))
        return failed(l, "open", err.text);
    rc = submit_all(l, engine, ids);
    if (!rc)
        rc = take_events(l, engine, ids);
    l->node->stats.size = sizeof(l->node->stats);
    shunt_get_stats(engine, &l->node->stats);
    if (shunt_close(engine, rc ? 0 : CLOSE_NS) && !rc)
        rc = failed(l, "close", "the rack did not end in order");
    return rc;
}

static void *live_main(void *arg)
{
    struct life *l = arg;

    l->rc = live(l);
    return NULL;
}

int driver_listen(char *address, size_t bytes)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 64) ||
        getsockname(fd, (struct sockaddr *)&addr, &len))
        return -1;
    snprintf(address, bytes, "127.0.0.1:%u", ntohs(addr.sin_port));
    return fd;
}

int driver_run(const shunt_model *model, const struct shunt_config *cfg, struct driver_node *nodes,
               uint32_t node_count)
{
    struct life lives[DRIVER_NODES_MAX];
    char addresses[DRIVER_NODES_MAX][32];
    const char *rack[DRIVER_NODES_MAX];
    int rc = 0;

    for (uint32_t n = 0; n < node_count; n++) {
        lives[n] = (struct life){.model = model, .cfg = *cfg, .node = &nodes[n]};
        lives[n].cfg.rank = n;
        lives[n].cfg.node_count = node_count;
        lives[n].cfg.dead_after_ns =
            CLOSE_NS; /* this is about no death, and the machine may be busy */
        lives[n].cfg.rack = rack;
        rack[n] = addresses[n];
        if (node_count > 1) {
            lives[n].cfg.listen_fd = driver_listen(addresses[n], sizeof(addresses[n]));
            if (lives[n].cfg.listen_fd < 0)
                return failed(&lives[n], "listen", "no socket");
        }
        for (uint32_t u = 0; u < nodes[n].user_count; u++)
            nodes[n].users[u].token_count = 0;
    }
    for (uint32_t n = 0; n < node_count; n++)
        pthread_create(&lives[n].thread, NULL, live_main, &lives[n]);
    for (uint32_t n = 0; n < node_count; n++) {
        pthread_join(lives[n].thread, NULL);
        rc |= lives[n].rc;
    }
    return rc;
}

uint32_t driver_ids(const shunt_model *model, const char *text, int32_t *ids, uint32_t max)
{
    int64_t n = shunt_tokenize(model, text, strlen(text), 0, ids, max, NULL);

    return n < 0 ? 0 : n > max ? max : (uint32_t)n;
}
