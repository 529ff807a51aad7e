/* SPDX-License-Identifier: Apache-2.0
 *
 * A footprint against what engines allocate: the linker hands the allocator's functions to those
 * below, which keep account.
 */
#include <criterion/criterion.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/arena.h"
#include "runtime/engine/engine_impl.h"
#include "tests/cluster/seats.h"
#include "tests/model/tiny_model.h"

#define NODES   8u
#define EXPERTS 256u

/* ---- account */

static _Atomic int64_t heap, mapped; /* bytes now */
static _Atomic uint64_t watched;     /* an allocation of this size... */
static _Atomic uint32_t seen;        /* ...and how often it came */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void __real_free(void *p);
int __real_munmap(void *at, size_t bytes);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void __wrap_free(void *p);
void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *at, size_t bytes, int prot, int flags, int fd, off_t off);
int __wrap_munmap(void *at, size_t bytes);

static void *counted(void *p)
{
    heap += malloc_usable_size(p);
    return p;
}

void *__wrap_malloc(size_t size)
{
    seen += size == watched;
    return counted(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
    return counted(__real_calloc(count, size));
}

void *__wrap_realloc(void *p, size_t size)
{
    heap -= malloc_usable_size(p);
    return counted(__real_realloc(p, size));
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return counted(__real_aligned_alloc(align, size));
}

void __wrap_free(void *p)
{
    heap -= malloc_usable_size(p);
    __real_free(p);
}

void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off)
{
    mapped += bytes;
    return (void *)syscall(SYS_mmap, at, bytes, prot, flags, fd, off);
}

void *__wrap_mmap64(void *at, size_t bytes, int prot, int flags, int fd, off_t off)
{
    return __wrap_mmap(at, bytes, prot, flags, fd, off);
}

int __wrap_munmap(void *at, size_t bytes)
{
    mapped -= bytes;
    return __real_munmap(at, bytes);
}

/* ---- racks */

/* Many experts, so that tables and messages are what counts. */
static shunt_model *open_model(int *fd)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct shunt_error err;
    struct gguf_writer w;
    shunt_model *model;
    char path[32];

    cr_assert(m);
    tiny_init(m);
    tiny_u32(m, "expert_count", EXPERTS);
    for (uint32_t i = 0; i < m->tensor_count; i++) {
        struct tiny_tensor *t = &m->tensors[i];

        if (strstr(t->name, "_exps"))
            t->dims[2] = EXPERTS;
        if (strstr(t->name, "ffn_gate_inp"))
            t->dims[1] = EXPERTS;
    }
    tiny_write(m, &w);
    *fd = gguf_file(w.data, w.len, path);
    cr_assert_eq(shunt_model_open(&model, path, &err), 0, "%s", err.text);
    free(w.data);
    free(m);
    return model;
}

struct node {
    shunt_model *model;
    struct shunt_config cfg;
    shunt *engine;
    struct shunt_error err;
    int rc;
};

static void configure(struct node *n, shunt_model *model, uint32_t rank, uint32_t nodes)
{
    n->model = model;
    shunt_config_init(&n->cfg);
    n->cfg.rank = rank;
    n->cfg.node_count = nodes;
    n->cfg.context = 16;
    n->cfg.sequences_max = 1;
    n->cfg.chunk = 8;
    n->cfg.threads = 1;
    n->cfg.slot_count = 4;
    n->cfg.io = "pread";
}

static void open_engine(void *arg)
{
    struct node *n = arg;

    n->rc = shunt_open(&n->engine, n->model, &n->cfg, &n->err);
}

static void close_engine(void *arg)
{
    struct node *n = arg;

    n->rc = shunt_close(n->engine, -1);
}

Test(config, a_footprint_has_room_for_every_allocation, .timeout = 100)
{
    int fd; /* keeps the file, which has no name */
    shunt_model *model = open_model(&fd);
    struct node nodes[NODES];
    struct seats seats;
    int64_t promised = 0, taken, before;

    memset(nodes, 0, sizeof(nodes));
    seats_take(&seats, NODES);
    for (uint32_t r = 0; r < NODES; r++) {
        struct shunt_footprint f = {.size = sizeof(f)};
        struct shunt_rack_config seat = seats_config(&seats, r);

        configure(&nodes[r], model, r, NODES);
        nodes[r].cfg.rack = seats.addresses;
        nodes[r].cfg.listen_fd = seat.listen_fd;
        cr_assert_eq(shunt_get_footprint(model, &nodes[r].cfg, &f, &nodes[r].err), 0, "%s",
                     nodes[r].err.text);
        promised += (int64_t)(f.dense_bytes + f.kv_bytes + f.work_bytes + f.slot_bytes);
    }
    before = heap + mapped;
    at_once(NODES, open_engine, nodes, sizeof(nodes[0]));
    for (uint32_t r = 0; r < NODES; r++)
        cr_assert_eq(nodes[r].rc, 0, "rank %u: %s", r, nodes[r].err.text);

    taken = heap + mapped - before;
    cr_expect_leq(taken, promised, "%ld bytes are taken, %ld promised", taken, promised);
    at_once(NODES, close_engine, nodes, sizeof(nodes[0]));
    for (uint32_t r = 0; r < NODES; r++)
        cr_expect_eq(nodes[r].rc, 0, "rank %u", r);
    cr_expect_leq(heap + mapped, before, "%ld bytes are lost", heap + mapped - before);
    shunt_model_close(model);
    close(fd);
}

/* What a rack allocates for its control messages is what the footprint counts. */
Test(config, a_rack_takes_the_buffers_that_are_counted, .timeout = 60)
{
    struct shunt_rack_config cfg = {.node_count = 1, .listen_fd = -1};
    struct shunt_rack *rack;

    for (uint32_t bytes = 24; bytes < 1u << 22; bytes *= 3) {
        cfg.message_max = bytes;
        watched = shunt_rack_buffer_bytes(1, bytes);
        seen = 0;
        cr_assert_eq(shunt_rack_join(&rack, &cfg, NULL), 0);
        cr_expect_eq(seen, 1, "messages of %u bytes", bytes);
        cr_expect_eq(shunt_rack_buffer_bytes(64, bytes), 64 * shunt_rack_buffer_bytes(1, bytes));
        cr_expect_gt(shunt_rack_buffer_bytes(1, bytes), 2 * bytes);
        shunt_rack_close(rack);
    }
}

/* The longest timeouts there are do not pass the end of the clock. */
Test(config, the_longest_timeouts_are_no_short_ones, .timeout = 60)
{
    int fd;
    shunt_model *model = open_model(&fd);
    struct shunt_event event = {.size = sizeof(event)};
    struct node nodes[2];
    struct seats seats;

    memset(nodes, 0, sizeof(nodes));
    seats_take(&seats, 2);
    for (uint32_t r = 0; r < 2; r++) {
        configure(&nodes[r], model, r, 2);
        nodes[r].cfg.rack = seats.addresses;
        nodes[r].cfg.listen_fd = seats_config(&seats, r).listen_fd;
        nodes[r].cfg.join_timeout_ns = INT64_MAX;
        nodes[r].cfg.ready_timeout_ns = INT64_MAX;
        nodes[r].cfg.step_timeout_ns = INT64_MAX;
        nodes[r].cfg.dead_after_ns = INT64_MAX;
        nodes[r].cfg.plan_interval_ns = INT64_MAX;
    }
    at_once(2, open_engine, nodes, sizeof(nodes[0]));
    for (uint32_t r = 0; r < 2; r++)
        cr_assert_eq(nodes[r].rc, 0, "rank %u: %s", r, nodes[r].err.text);
    shunt_leave(nodes[0].engine);
    shunt_leave(nodes[1].engine);
    cr_expect_eq(shunt_poll(nodes[0].engine, 0, &event, INT64_MAX, &nodes[0].err), 1);
    cr_expect_eq(event.type, SHUNT_EVENT_RACK_DOWN);
    cr_expect_eq(shunt_close(nodes[0].engine, INT64_MAX), 0);
    cr_expect_eq(shunt_close(nodes[1].engine, INT64_MAX), 0);
    shunt_model_close(model);
    close(fd);
}
