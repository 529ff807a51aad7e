/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/cluster/seats.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"

static void check(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        abort();
    }
}

void seats_take(struct seats *s, uint32_t count)
{
    memset(s, 0, sizeof(*s));
    s->count = count;
    for (uint32_t r = 0; r < count; r++) {
        struct sockaddr_in addr = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(addr);
        const int one = 1;

        s->fds[r] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        check(s->fds[r] >= 0, "socket");
        setsockopt(s->fds[r], SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        check(bind(s->fds[r], (struct sockaddr *)&addr, len) == 0, "bind");
        check(getsockname(s->fds[r], (struct sockaddr *)&addr, &len) == 0, "getsockname");
        snprintf(s->texts[r], sizeof(s->texts[r]), "127.0.0.1:%u", ntohs(addr.sin_port));
        s->addresses[r] = s->texts[r];
    }
}

struct shunt_rack_config seats_config(struct seats *s, uint32_t rank)
{
    struct shunt_rack_config cfg = {
        .rank = rank,
        .node_count = s->count,
        .addresses = s->addresses,
        .listen_fd = s->fds[rank],
        .join_timeout_ns = 20 * SHUNT_NS_PER_S,
        .dead_after_ns = 20 * SHUNT_NS_PER_S,
        .model_name = "tiny",
        .fingerprint = {1, 2, 3},
        .kernel_levels = 3,
        .transports = 1u << SHUNT_TRANSPORT_TCP,
        .wire_format = 1,
        .rows_max = 16,
        .message_max = 1000,
    };

    s->fds[rank] = -1;
    return cfg;
}

void seats_leave(struct seats *s)
{
    for (uint32_t r = 0; r < s->count; r++)
        if (s->fds[r] >= 0)
            close(s->fds[r]);
}

int seats_connect(const struct seats *s, uint32_t rank)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    check(fd >= 0, "socket");
    addr.sin_port = htons((uint16_t)atoi(strchr(s->texts[rank], ':') + 1));
    check(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "connect");
    return fd;
}

struct call {
    void (*fn)(void *arg);
    void *arg;
    pthread_t thread;
};

static void *run_call(void *arg)
{
    struct call *c = arg;

    c->fn(c->arg);
    return NULL;
}

void at_once(uint32_t count, void (*fn)(void *arg), void *args, size_t bytes)
{
    struct call *calls = calloc(count, sizeof(*calls));

    check(calls, "calloc");
    for (uint32_t i = 0; i < count; i++) {
        calls[i] = (struct call){.fn = fn, .arg = (char *)args + i * bytes};
        check(pthread_create(&calls[i].thread, NULL, run_call, &calls[i]) == 0, "pthread_create");
    }
    for (uint32_t i = 0; i < count; i++)
        pthread_join(calls[i].thread, NULL);
    free(calls);
}
