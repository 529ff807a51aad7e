/* SPDX-License-Identifier: Apache-2.0
 *
 * threads [SEED]
 *
 * What several threads share, hammered by threads, for the sanitizers: the compute pool, a
 * sequence's events, the pread pool, the control thread, the planner, and placements on their way
 * into everybody's step. The data that is handed over is plain memory, so that a hand-over in wrong
 * order is a race that the thread sanitizer reports; without one the contents are checked.
 *
 * The one driver that sees hidden symbols.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "planner/planner.h"
#include "runtime/base/clock.h"
#include "runtime/base/pool.h"
#include "runtime/cluster/planning.h"
#include "runtime/cluster/rack.h"
#include "runtime/engine/outbox.h"
#include "runtime/store/expert_io.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"
#include "tests/temp_file.h"

#define NODES  3u
#define WAIT_S 60

static uint64_t seed = 1;

/* A thread that finds something wrong ends the program: the others may be waiting for it. */
static void need(bool ok, const char *what)
{
    if (ok)
        return;
    printf("not ok - %s (seed %llu)\n", what, (unsigned long long)seed);
    fflush(stdout);
    _exit(1);
}

static int64_t deadline(void)
{
    return shunt_now_ns() + WAIT_S * SHUNT_NS_PER_S;
}

/* ---- the compute pool: tasks write plain words, which the caller reads after the run */

#define TASKS 64u

struct run {
    uint64_t input;
    uint64_t out[TASKS];
    uint64_t by_worker[4]; /* scratch of each worker's own */
};

static void task(void *ctx, uint32_t index, uint32_t worker)
{
    struct run *r = ctx;

    r->out[index] = r->input * (index + 1);
    r->by_worker[worker]++;
}

static void count_hook(void *ctx)
{
    ++*(uint64_t *)ctx;
}

static void *abort_later(void *pool)
{
    usleep(2000);
    shunt_pool_abort(pool);
    return NULL;
}

static void hammer_pool(void)
{
    for (uint32_t threads = 1; threads <= 4; threads++) {
        struct run run = {0};
        struct shunt_pool *pool;
        uint64_t random = seed, hooks = 0;
        pthread_t aborter;

        need(shunt_pool_open(&pool, threads, NULL) == 0, "the pool opens");
        shunt_pool_set_hook(pool, count_hook, &hooks);
        for (uint32_t i = 0; i < 3000; i++) {
            uint32_t count = random_below(&random, TASKS + 1);

            run.input = random_next(&random);
            memset(run.by_worker, 0, sizeof(run.by_worker));
            memset(run.out, 0, sizeof(run.out));
            shunt_pool_run(pool, task, &run, count);
            for (uint32_t t = 0; t < TASKS; t++)
                need(run.out[t] == (t < count ? run.input * (t + 1) : 0), "a task's result");
            for (uint32_t w = 0; w < 4; w++)
                count -= (uint32_t)run.by_worker[w];
            need(count == 0, "each task runs once");
            if (i % 500 == 0)
                usleep(1000); /* the helpers fall asleep */
        }
        need(hooks > 0, "the hook runs");
        need(pthread_create(&aborter, NULL, abort_later, pool) == 0, "a thread");
        do {
            memset(run.out, 0, sizeof(run.out));
            run.input = 1;
            shunt_pool_run(pool, task, &run, TASKS);
        } while (run.out[0] || run.out[TASKS - 1]); /* until they are skipped */
        pthread_join(aborter, NULL);
        shunt_pool_close(pool);
    }
}

/* ---- a sequence's events */

#define RECORDS  30000u
#define TEXT_MAX 64u

static uint32_t text_of(uint32_t number, char *text)
{
    uint64_t random = number;
    uint32_t len = random_below(&random, TEXT_MAX + 1);

    random_fill(&random, text, len);
    return len;
}

static void *write_events(void *arg)
{
    struct shunt_outbox *o = arg;
    char text[TEXT_MAX];

    for (uint32_t i = 0; i < RECORDS;) {
        struct shunt_outbox_record r = {.type = 1, .token = (int32_t)i};

        r.text_len = text_of(i, text);
        if (shunt_outbox_has_room(o, shunt_outbox_bytes(r.text_len))) {
            shunt_outbox_put(o, &r, text);
            i++;
        } else {
            sched_yield();
        }
    }
    return NULL;
}

static void hammer_outbox(void)
{
    struct shunt_outbox o = {.capacity = 512, .bytes = malloc(512)};
    int64_t end = deadline();
    pthread_t writer;

    atomic_store(&o.head, UINT32_MAX - 1023);
    atomic_store(&o.tail, UINT32_MAX - 1023);
    need(o.bytes && pthread_create(&writer, NULL, write_events, &o) == 0, "a thread");
    for (uint32_t i = 0; i < RECORDS;) {
        struct shunt_outbox_record r;
        char text[TEXT_MAX], want[TEXT_MAX];

        if (!shunt_outbox_take(&o, &r, text)) {
            need(shunt_now_ns() < end, "an event comes");
            sched_yield();
            continue;
        }
        need(r.token == (int32_t)i && r.text_len == text_of(i, want) &&
                 !memcmp(text, want, r.text_len),
             "an event comes as it was put");
        i++;
    }
    pthread_join(writer, NULL);
    free(o.bytes);
}

/* ---- the pread pool: its threads write into buffers that this one reads after poll */

#define DEPTH      16u
#define READ_MAX   (16u << 10)
#define FILE_BYTES (1u << 20)

static uint32_t start_reads(struct shunt_expert_io *io, unsigned char *buffers, uint64_t *random,
                            struct shunt_io_read *reads)
{
    uint32_t started = 0;

    for (uint32_t tag = 0; tag < DEPTH; tag++) {
        struct shunt_io_read *r = &reads[tag];

        if (r->bytes || random_below(random, 2))
            continue;
        *r = (struct shunt_io_read){.off = random_below(random, FILE_BYTES),
                                    .buf = buffers + (size_t)tag * READ_MAX,
                                    .bytes = 1 + random_below(random, READ_MAX),
                                    .block = SHUNT_IO_NO_BLOCK,
                                    .tag = tag};
        memset(r->buf, 0, r->bytes);
        need(shunt_io_pread.submit(io, r) == 0, "a read is taken");
        started++;
    }
    need(shunt_io_pread.flush(io) == 0, "reads are flushed");
    return started;
}

static void finish_read(struct shunt_io_read *r, int32_t result, const unsigned char *file)
{
    uint64_t left = FILE_BYTES - r->off;
    uint32_t want = r->bytes < left ? r->bytes : (uint32_t)left;

    need(result == (int32_t)want && !memcmp(r->buf, file + r->off, want), "a read's bytes");
    r->bytes = 0;
}

static void hammer_pread(void)
{
    unsigned char *file = malloc(FILE_BYTES), *buffers = malloc((size_t)DEPTH * READ_MAX);
    struct shunt_io_read reads[DEPTH] = {{0}};
    struct shunt_file opened;
    struct shunt_io_config cfg = {.files = &opened, .file_count = 1, .depth = DEPTH};
    struct shunt_expert_io *io;
    uint64_t random = seed;
    int64_t end = deadline();
    uint32_t done_count = 0, in_flight = 0;
    char path[32];
    int fd;

    need(file && buffers, "memory");
    random_fill(&random, file, FILE_BYTES);
    fd = temp_file(file, FILE_BYTES, path);
    need(shunt_file_open(&opened, path, SHUNT_IO_BUFFERED, NULL) == 0 &&
             shunt_io_pread.open(&io, &cfg, NULL) == 0,
         "the pread pool opens");
    while (done_count < 3000) {
        struct pollfd waiting = {.fd = shunt_io_pread.fd(io), .events = POLLIN};
        struct shunt_io_done done[5];
        uint32_t n;

        in_flight += start_reads(io, buffers, &random, reads);
        if (in_flight > 0 && random_below(&random, 4) == 0)
            need(poll(&waiting, 1, WAIT_S * 1000) == 1, "a sleeper wakes");
        n = shunt_io_pread.poll(io, done, 1 + random_below(&random, 5));
        for (uint32_t i = 0; i < n; i++)
            finish_read(&reads[done[i].tag], done[i].result, file);
        in_flight -= n;
        done_count += n;
        need(shunt_now_ns() < end, "reads end");
    }
    start_reads(io, buffers, &random, reads);
    shunt_io_pread.close(io); /* with reads in flight */
    shunt_file_close(&opened);
    close(fd);
    free(file);
    free(buffers);
}

/* ---- the control thread, with every function that any thread may call */

#define MESSAGES 2000u

struct node {
    struct shunt_rack_config cfg;
    struct shunt_rack *rack;
    struct shunt_planning *planning; /* of the test of placements */
    _Atomic uint32_t activations[64];
    int rc;
    struct shunt_error err;
    /* The control thread's, plain until the flag says that all have come. */
    uint32_t next[NODES];
    uint32_t messages;
    char last[64];
    _Atomic int all_here;
    _Atomic int downs;
    struct shunt_error why;
    /* The engine thread's. */
    uint64_t announced, active;
    uint32_t adopted;
    uint64_t mask[64];
};

static struct node nodes[NODES];

static void on_down(void *ctx, uint32_t rank, const struct shunt_error *why)
{
    struct node *n = ctx;

    n->why = *why;
    (void)rank;
    atomic_fetch_add(&n->downs, 1);
}

static void on_message(void *ctx, uint32_t rank, uint32_t type, const void *data, uint32_t bytes)
{
    struct node *n = ctx;
    char want[64];

    if (n->planning) {
        shunt_planning_message(n->planning, rank, type, data, bytes);
        return;
    }
    snprintf(want, sizeof(want), "%u of %u to %u", n->next[rank]++, rank, n->cfg.rank);
    need(type == SHUNT_RACK_MESSAGE_FIRST && bytes == strlen(want) + 1 &&
             !memcmp(data, want, bytes),
         "a message comes in its turn");
    memcpy(n->last, data, bytes);
    if (++n->messages == (NODES - 1) * MESSAGES)
        atomic_store(&n->all_here, 1);
}

static void on_tick(void *ctx)
{
    struct node *n = ctx;

    if (n->planning)
        shunt_planning_tick(n->planning);
}

static void join_rack(void *arg)
{
    struct node *n = arg;

    n->rc = shunt_rack_join(&n->rack, &n->cfg, &n->err);
}

static void open_rack(uint32_t message_max)
{
    struct seats seats;

    memset(nodes, 0, sizeof(nodes));
    seats_take(&seats, NODES);
    for (uint32_t r = 0; r < NODES; r++) {
        nodes[r].cfg = seats_config(&seats, r);
        nodes[r].cfg.dead_after_ns = WAIT_S * SHUNT_NS_PER_S;
        nodes[r].cfg.join_timeout_ns = WAIT_S * SHUNT_NS_PER_S;
        nodes[r].cfg.message_max = message_max;
    }
    at_once(NODES, join_rack, nodes, sizeof(nodes[0]));
    for (uint32_t r = 0; r < NODES; r++)
        need(nodes[r].rc == 0, nodes[r].err.text);
}

static void start_node(struct node *n)
{
    const struct shunt_rack_callbacks callbacks = {
        .ctx = n, .down = on_down, .message = on_message, .tick = on_tick};

    need(shunt_rack_start(n->rack, &callbacks, NULL) == 0, "the control thread starts");
}

struct role {
    struct node *node;
    void (*play)(struct node *n, uint32_t number);
    uint32_t number;
};

static void play(void *arg)
{
    struct role *role = arg;

    role->play(role->node, role->number);
}

static void send_all(struct node *n, uint32_t to)
{
    int64_t end = deadline();
    char text[64];

    for (uint32_t i = 0; i < MESSAGES;) {
        int rc;

        snprintf(text, sizeof(text), "%u of %u to %u", i, n->cfg.rank, to);
        rc = shunt_rack_send(n->rack, to, SHUNT_RACK_MESSAGE_FIRST, text,
                             (uint32_t)strlen(text) + 1);
        need((rc == 0 || rc == -EAGAIN) && shunt_now_ns() < end, "a message is taken");
        i += rc == 0;
        if (rc)
            sched_yield();
    }
}

static void get_ready(struct node *n, uint32_t number)
{
    const struct shunt_patience patience = {.deadline_ns = deadline()};

    (void)number;
    need(shunt_rack_wait_ready(n->rack, &patience, NULL) == 0, "all are ready");
}

static void await_messages(struct node *n, uint32_t number)
{
    struct shunt_error why;
    int64_t end = deadline();

    (void)number;
    while (!atomic_load(&n->all_here)) {
        need(shunt_rack_down(n->rack) == 0 && shunt_rack_why(n->rack, &why) == 0, "the rack lives");
        need(shunt_now_ns() < end, "all messages come");
        sched_yield();
    }
    need(n->messages == (NODES - 1) * MESSAGES && n->last[0] == '1', "what came is whole");
}

/* Several at once, of which one is the first; and a data stream that closed. */
static void fail(struct node *n, uint32_t number)
{
    struct shunt_error why;

    shunt_error_set(&why, -EIO, "failure %u", number);
    if (number == 2)
        shunt_rack_peer_lost(n->rack, (n->cfg.rank + 1) % NODES, &why);
    else
        shunt_rack_fail(n->rack, &why);
    need(shunt_rack_down(n->rack) != 0 && shunt_rack_why(n->rack, &why) == why.code,
         "a rack that failed says why");
}

static void hammer_rack(void)
{
    struct role roles[NODES * (NODES + 2)];
    uint32_t count = 0;

    open_rack(64);
    for (uint32_t r = 0; r < NODES; r++)
        start_node(&nodes[r]);
    for (uint32_t r = 0; r < NODES; r++) {
        roles[count++] = (struct role){&nodes[r], get_ready, 0};
        roles[count++] = (struct role){&nodes[r], await_messages, 0};
        for (uint32_t to = 0; to < NODES; to++)
            if (to != r)
                roles[count++] = (struct role){&nodes[r], send_all, to};
    }
    at_once(count, play, roles, sizeof(roles[0]));
    count = 0;
    for (uint32_t r = 0; r < NODES; r++)
        for (uint32_t i = 0; i < NODES; i++)
            roles[count++] = (struct role){&nodes[r], fail, i};
    at_once(count, play, roles, sizeof(roles[0]));
    for (uint32_t r = 0; r < NODES; r++)
        shunt_rack_close(nodes[r].rack);
    for (uint32_t r = 0; r < NODES; r++)
        need(atomic_load(&nodes[r].downs) == 1 && nodes[r].why.code < 0, "the end is said once");
}

/* ---- the planner: a thread for each node, and one that takes */

#define KEYS    24u
#define REPORTS 1500u

struct reporter {
    struct shunt_planner *planner;
    uint32_t node;
    _Atomic uint32_t *left; /* reporters that go on */
};

static void report_work(void *arg)
{
    struct reporter *r = arg;
    uint64_t random = seed + r->node;
    uint32_t counts[KEYS] = {0}, plans = 0;
    uint64_t mask[KEYS], epoch = 0, last = 0;

    if (r->node == NODES) {
        while (atomic_load(r->left) > 0 || plans == 0) {
            if (!shunt_planner_take(r->planner, mask, &epoch)) {
                sched_yield();
                continue;
            }
            need(epoch > last, "epochs rise");
            last = epoch;
            plans++;
            for (uint32_t k = 0; k < KEYS; k++)
                need(mask[k] != 0 && mask[k] >> NODES == 0, "every expert is on a node");
        }
        return;
    }
    for (uint32_t i = 0; i < REPORTS; i++) {
        counts[random_below(&random, KEYS)] += random_below(&random, 1000);
        shunt_planner_report(r->planner, r->node, counts, KEYS / 2);
    }
    atomic_fetch_sub(r->left, 1);
}

static void hammer_planner(void)
{
    const struct shunt_planner_config cfg = {.policy = SHUNT_PLACEMENT_PRISM,
                                             .node_count = NODES,
                                             .layer_count = 4,
                                             .expert_count = KEYS / 4,
                                             .interval_ns = 1};
    _Atomic uint32_t left = NODES;
    struct reporter reporters[NODES + 1];
    struct shunt_planner *planner;

    need(shunt_planner_open(&planner, &cfg, NULL) == 0, "the planner opens");
    for (uint32_t i = 0; i <= NODES; i++)
        reporters[i] = (struct reporter){planner, i, &left};
    at_once(NODES + 1, report_work, reporters, sizeof(reporters[0]));
    shunt_planner_close(planner);
}

/* ---- placements: an engine thread for each node beside its control thread */

#define PLACEMENTS 4u

static pthread_barrier_t step;

/* Word by word: a copy of fixed size is none that gcc's thread sanitizer sees. */
static void adopt(struct node *n, uint64_t epoch)
{
    const uint64_t *mask = shunt_planning_mask(n->planning);

    for (uint32_t k = 0; k < KEYS; k++) {
        n->mask[k] = mask[k];
        need(n->mask[k] != 0 && n->mask[k] >> NODES == 0, "every expert is on a node");
    }
    n->active = epoch;
    n->adopted++;
    shunt_planning_activated(n->planning);
}

static void drive(struct node *n, uint32_t number)
{
    int64_t end = deadline();
    uint64_t random = seed + n->cfg.rank;

    (void)number;
    for (;;) {
        uint64_t agreed = UINT64_MAX;

        need(shunt_now_ns() < end, "placements come");
        for (uint32_t k = 0; k < KEYS; k++)
            atomic_fetch_add_explicit(&n->activations[k], random_below(&random, 50),
                                      memory_order_relaxed);
        n->announced = shunt_planning_acknowledged(n->planning);
        pthread_barrier_wait(&step);
        for (uint32_t r = 0; r < NODES; r++)
            agreed = nodes[r].announced < agreed ? nodes[r].announced : agreed;
        if (agreed > n->active)
            adopt(n, agreed);
        pthread_barrier_wait(&step);
        need(n->active == nodes[0].active &&
                 !memcmp(n->mask, nodes[0].mask, sizeof(n->mask[0]) * KEYS),
             "all have the same placement in the same step");
        pthread_barrier_wait(&step);
        if (n->adopted == PLACEMENTS) /* so have all */
            return;
        usleep(200);
    }
}

static void hammer_planning(void)
{
    struct role roles[NODES];

    open_rack(shunt_planning_message_max(4, KEYS / 4));
    for (uint32_t r = 0; r < NODES; r++) {
        const struct shunt_planning_config cfg = {.rack = nodes[r].rack,
                                                  .rank = r,
                                                  .node_count = NODES,
                                                  .layer_count = 4,
                                                  .expert_count = KEYS / 4,
                                                  .policy = SHUNT_PLACEMENT_PRISM,
                                                  .interval_ns = 1,
                                                  .capacity = KEYS / 2,
                                                  .activations = nodes[r].activations};

        need(shunt_planning_open(&nodes[r].planning, &cfg, NULL) == 0, "planning opens");
        roles[r] = (struct role){&nodes[r], drive, 0};
    }
    pthread_barrier_init(&step, NULL, NODES);
    for (uint32_t r = 0; r < NODES; r++)
        start_node(&nodes[r]);
    at_once(NODES, play, roles, sizeof(roles[0]));
    for (uint32_t r = 0; r < NODES; r++)
        shunt_rack_leave(nodes[r].rack, true);
    for (uint32_t r = 0; r < NODES; r++) {
        shunt_rack_close(nodes[r].rack);
        shunt_planning_close(nodes[r].planning);
        need(atomic_load(&nodes[r].downs) == 0, "the rack ends in order");
    }
    pthread_barrier_destroy(&step);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {
        {"the compute pool", hammer_pool}, {"a sequence's events", hammer_outbox},
        {"the pread pool", hammer_pread},  {"the control thread", hammer_rack},
        {"the planner", hammer_planner},   {"placements", hammer_planning},
    };
    const uint32_t count = sizeof(parts) / sizeof(parts[0]);

    if (argc > 1)
        seed = strtoull(argv[1], NULL, 10);
    printf("1..%u\n", count);
    for (uint32_t i = 0; i < count; i++) {
        parts[i].run();
        printf("ok %u - %s\n", i + 1, parts[i].name);
        fflush(stdout);
    }
    return 0;
}
