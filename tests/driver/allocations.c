/* SPDX-License-Identifier: Apache-2.0
 *
 * allocations MODEL
 *
 * Counts heap allocations of the whole process (library, every thread, this program) while a rack
 * of three nodes with few slots decodes, after a warm-up: there must be none. The allocator's
 * functions are this program's own, in front of the C library's.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "rack.h"

#define WARM_UP 8
#define TOKENS  64

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t align, size_t bytes);

static _Atomic int counting;
static _Atomic unsigned long count;

static void note(void)
{
    if (atomic_load(&counting))
        atomic_fetch_add(&count, 1);
}

void *malloc(size_t bytes)
{
    note();
    return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes)
{
    note();
    return __libc_calloc(n, bytes);
}

void *realloc(void *old, size_t bytes)
{
    note();
    return __libc_realloc(old, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    note();
    return __libc_memalign(align, bytes);
}

int posix_memalign(void **out, size_t align, size_t bytes)
{
    note();
    *out = __libc_memalign(align, bytes);
    return *out ? 0 : ENOMEM;
}

static void watch(uint32_t tokens)
{
    if (tokens == WARM_UP)
        atomic_store(&counting, 1);
    if (tokens == TOKENS - 1)
        atomic_store(&counting, 0);
}

/* The instrument sees what it should see. */
static int check_instrument(void)
{
    void *volatile p;

    atomic_store(&counting, 1);
    p = malloc(1);
    free(p);
    atomic_store(&counting, 0);
    return atomic_exchange(&count, 0) == 1;
}

int main(int argc, char **argv)
{
    struct shunt_error err;
    struct shunt_config cfg;
    shunt_model *model;
    int32_t ids[64], tokens[3][2 * TOKENS];
    struct driver_user users[3];
    struct driver_node nodes[3];
    uint32_t id_count;

    if (argc < 2 || shunt_model_open(&model, argv[1], &err)) {
        fprintf(stderr, "%s\n", argc < 2 ? "usage: allocations MODEL" : err.text);
        return 2;
    }
    if (!check_instrument()) {
        fprintf(stderr, "the counting allocator is not in use\n");
        return 2;
    }
    id_count = driver_ids(model, "What say you, my lord?", ids, 64);
    for (int n = 0; n < 3; n++) {
        /* The first user is watched; the others outlast it. */
        users[n] = (struct driver_user){.ids = ids,
                                        .id_count = id_count,
                                        .token_max = n ? 2 * TOKENS : TOKENS,
                                        .tokens = tokens[n]};
        nodes[n] = (struct driver_node){.users = &users[n], .user_count = 1};
    }
    users[0].on_token = watch;
    shunt_config_init(&cfg);
    cfg.slot_percent = 20;
    cfg.context = 64 + 2 * TOKENS;
    cfg.threads = 2;
    cfg.plan_interval_ns = 50000000;
    if (driver_run(model, &cfg, nodes, 3))
        return 1;
    shunt_model_close(model);
    printf("%lu heap allocations in %d decode steps of 3 nodes; %llu demand and %llu speculative "
           "reads by node 0\n",
           atomic_load(&count), TOKENS - 1 - WARM_UP,
           (unsigned long long)nodes[0].stats.reads_demand,
           (unsigned long long)nodes[0].stats.reads_speculative);
    if (nodes[0].stats.reads_demand == 0 || nodes[0].stats.calls_peer == 0) {
        fprintf(stderr, "nothing was read or sent meanwhile\n");
        return 1;
    }
    return atomic_load(&count) ? 1 : 0;
}
