/* SPDX-License-Identifier: Apache-2.0
 *
 * Placements on their way from the planner into everybody's step. The linker hands this unit's
 * calls of rack and planner to functions of this test: a simulated rack, whose messages, ticks and
 * steps come in any order drawn from a seed, over a planner that plans on command. The last test
 * has the real ones.
 */
#include "runtime/cluster/planning.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "planner/placement.h"
#include "runtime/base/clock.h"
#include "tests/cluster/seats.h"
#include "tests/random.h"

#define LAYERS    2u
#define EXPERTS   5u
#define KEYS      (LAYERS * EXPERTS)
#define NODES_MAX 5u
#define QUEUE_MAX 64u
#define PLANS_MAX 64u
#define WAIT_S    20
#define BYTES_MAX (16u + 8 * KEYS)

/* As they travel: {capacity, keys} and counts; {epoch, keys} and masks. */
enum { REPORT = SHUNT_RACK_MESSAGE_FIRST, PLACEMENT };

/* ---- a simulated rack and its planner */

struct message {
    uint32_t from, type, bytes;
    unsigned char data[BYTES_MAX];
};

struct sim_node {
    struct shunt_planning *planning;
    uint32_t rank;
    bool deaf; /* takes no message */
    _Atomic uint32_t activations[KEYS];
    struct message queue[NODES_MAX][QUEUE_MAX]; /* [sender] */
    uint32_t begin[NODES_MAX], end[NODES_MAX];
    bool announced, stepped;
    uint64_t announcement;
    uint64_t epoch; /* active */
};

static struct sim {
    uint32_t node_count;
    uint64_t random;
    uint32_t refuse_percent;
    struct sim_node nodes[NODES_MAX];
    uint64_t agreed;
    /* The planner: plans[i] is of epochs[i]; `due` of them may be taken. */
    bool planner_open;
    uint32_t planner_fails;
    uint64_t epochs[PLANS_MAX], plans[PLANS_MAX][KEYS];
    uint32_t plan_count, taken;
    uint32_t reports[NODES_MAX], last_version[NODES_MAX];
    uint32_t sent, refused, placements_sent;
} * sim;

static uint32_t capacity_of(uint32_t rank)
{
    return 100 * rank + 7;
}

/* What a node has activated after `version` pieces of work; the first says how many. */
static uint32_t activations_of(uint32_t rank, uint32_t version, uint32_t key)
{
    uint64_t random = (uint64_t)rank << 40 ^ (uint64_t)version << 8 ^ key;

    return key == 0 ? version : (uint32_t)random_next(&random);
}

int __real_shunt_rack_send(struct shunt_rack *rack, uint32_t rank, uint32_t type, const void *data,
                           uint32_t bytes);
int __wrap_shunt_rack_send(struct shunt_rack *rack, uint32_t rank, uint32_t type, const void *data,
                           uint32_t bytes);
int __real_shunt_planner_open(struct shunt_planner **planner,
                              const struct shunt_planner_config *cfg, struct shunt_error *err);
int __wrap_shunt_planner_open(struct shunt_planner **planner,
                              const struct shunt_planner_config *cfg, struct shunt_error *err);
void __real_shunt_planner_close(struct shunt_planner *planner);
void __wrap_shunt_planner_close(struct shunt_planner *planner);
void __real_shunt_planner_report(struct shunt_planner *planner, uint32_t node,
                                 const uint32_t *activations, uint32_t capacity);
void __wrap_shunt_planner_report(struct shunt_planner *planner, uint32_t node,
                                 const uint32_t *activations, uint32_t capacity);
bool __real_shunt_planner_take(struct shunt_planner *planner, uint64_t *mask, uint64_t *epoch);
bool __wrap_shunt_planner_take(struct shunt_planner *planner, uint64_t *mask, uint64_t *epoch);

static void enqueue(struct sim_node *to, uint32_t from, uint32_t type, const void *data,
                    uint32_t bytes)
{
    struct message *m = &to->queue[from][to->end[from]++ % QUEUE_MAX];

    cr_assert_leq(bytes, BYTES_MAX);
    cr_assert_leq(to->end[from] - to->begin[from], QUEUE_MAX);
    *m = (struct message){.from = from, .type = type, .bytes = bytes};
    memcpy(m->data, data, bytes);
}

int __wrap_shunt_rack_send(struct shunt_rack *rack, uint32_t rank, uint32_t type, const void *data,
                           uint32_t bytes)
{
    struct sim_node *from = (struct sim_node *)(void *)rack;

    if (!sim)
        return __real_shunt_rack_send(rack, rank, type, data, bytes);
    cr_assert(rank < sim->node_count && rank != from->rank, "to rank %u", rank);
    if (random_below(&sim->random, 100) < sim->refuse_percent || sim->nodes[rank].deaf ||
        sim->nodes[rank].end[from->rank] - sim->nodes[rank].begin[from->rank] == QUEUE_MAX / 2) {
        sim->refused++;
        return -EAGAIN;
    }
    sim->sent++;
    sim->placements_sent += type == PLACEMENT;
    enqueue(&sim->nodes[rank], from->rank, type, data, bytes);
    return 0;
}

int __wrap_shunt_planner_open(struct shunt_planner **planner,
                              const struct shunt_planner_config *cfg, struct shunt_error *err)
{
    if (!sim)
        return __real_shunt_planner_open(planner, cfg, err);
    cr_assert_not(sim->planner_open);
    cr_assert(cfg->node_count == sim->node_count && cfg->layer_count == LAYERS &&
              cfg->expert_count == EXPERTS && cfg->policy == SHUNT_PLACEMENT_PRISM);
    if (sim->planner_fails)
        return shunt_error_set(err, -EAGAIN, "no planner today");
    sim->planner_open = true;
    *planner = (struct shunt_planner *)(void *)sim;
    return 0;
}

void __wrap_shunt_planner_close(struct shunt_planner *planner)
{
    if (!sim) {
        __real_shunt_planner_close(planner);
        return;
    }
    if (planner)
        sim->planner_open = false;
}

/* Each report is whole and as its node wrote it, and a node's come in order. */
void __wrap_shunt_planner_report(struct shunt_planner *planner, uint32_t node,
                                 const uint32_t *activations, uint32_t capacity)
{
    if (!sim) {
        __real_shunt_planner_report(planner, node, activations, capacity);
        return;
    }
    cr_assert(sim->planner_open && node < sim->node_count);
    cr_assert_eq(capacity, capacity_of(node));
    cr_assert_geq(activations[0], sim->last_version[node]);
    sim->last_version[node] = activations[0];
    for (uint32_t k = 0; k < KEYS; k++)
        cr_assert_eq(activations[k], activations_of(node, activations[0], k), "node %u", node);
    sim->reports[node]++;
}

bool __wrap_shunt_planner_take(struct shunt_planner *planner, uint64_t *mask, uint64_t *epoch)
{
    if (!sim)
        return __real_shunt_planner_take(planner, mask, epoch);
    cr_assert(sim->planner_open);
    if (sim->taken == sim->plan_count)
        return false;
    sim->taken = sim->plan_count; /* the newest; those before nobody will ever see */
    memcpy(mask, sim->plans[sim->taken - 1], KEYS * sizeof(*mask));
    *epoch = sim->epochs[sim->taken - 1];
    return true;
}

/* ---- nodes of the simulated rack */

static struct shunt_planning_config node_config(uint32_t rank, int64_t interval_ns)
{
    return (struct shunt_planning_config){
        .rack = (struct shunt_rack *)(void *)&sim->nodes[rank],
        .rank = rank,
        .node_count = sim->node_count,
        .layer_count = LAYERS,
        .expert_count = EXPERTS,
        .policy = SHUNT_PLACEMENT_PRISM,
        .interval_ns = interval_ns,
        .capacity = capacity_of(rank),
        .activations = sim->nodes[rank].activations,
    };
}

static void start_sim(uint32_t nodes, uint64_t seed, int64_t interval_ns)
{
    sim = calloc(1, sizeof(*sim));
    cr_assert(sim);
    sim->node_count = nodes;
    sim->random = seed;
    for (uint32_t r = 0; r < nodes; r++) {
        struct shunt_planning_config cfg = node_config(r, interval_ns);
        struct shunt_error err;

        sim->nodes[r].rank = r;
        for (uint32_t k = 0; k < KEYS; k++)
            sim->nodes[r].activations[k] = activations_of(r, 0, k);
        cr_assert_eq(shunt_planning_open(&sim->nodes[r].planning, &cfg, &err), 0);
    }
}

static void end_sim(void)
{
    for (uint32_t r = 0; r < sim->node_count; r++)
        shunt_planning_close(sim->nodes[r].planning);
    cr_expect_not(sim->planner_open);
    free(sim);
    sim = NULL;
}

/* A new plan of random masks; some of its epochs were replaced before anybody could take them. */
static void plan(void)
{
    uint32_t i = sim->plan_count++;

    cr_assert_lt(i, PLANS_MAX);
    sim->epochs[i] = (i ? sim->epochs[i - 1] : 0) + 1 + random_below(&sim->random, 3);
    for (uint32_t k = 0; k < KEYS; k++)
        sim->plans[i][k] = 1 + random_below(&sim->random, (1u << sim->node_count) - 1);
}

static const uint64_t *plan_of(uint64_t epoch)
{
    for (uint32_t i = 0; i < sim->taken; i++)
        if (sim->epochs[i] == epoch)
            return sim->plans[i];
    return NULL;
}

/* In a block of its own and at no alignment, as it lies in a stream. */
static void hand_over(struct sim_node *n, const struct message *m)
{
    unsigned char *block = malloc(m->bytes + 1);

    memcpy(block + 1, m->data, m->bytes);
    shunt_planning_message(n->planning, m->from, m->type, block + 1, m->bytes);
    free(block);
}

static bool deliver(struct sim_node *n, uint32_t from)
{
    if (n->begin[from] == n->end[from])
        return false;
    hand_over(n, &n->queue[from][n->begin[from]++ % QUEUE_MAX]);
    return true;
}

static void do_work(struct sim_node *n)
{
    uint32_t version = n->activations[0] + 1;

    for (uint32_t k = 0; k < KEYS; k++)
        n->activations[k] = activations_of(n->rank, version, k);
}

/* What a node holds back for its engine does not change under it. */
static void check_offer(const struct sim_node *n)
{
    uint64_t epoch = shunt_planning_acknowledged(n->planning);

    if (epoch == 0)
        return;
    cr_assert(plan_of(epoch), "node %u acknowledges %lu", n->rank, epoch);
    cr_assert_arr_eq(shunt_planning_mask(n->planning), plan_of(epoch), KEYS * sizeof(uint64_t));
}

/* The next part of a node's step, as step.c does it: announces, and when all have, activates what
 * all have announced. */
static void advance(struct sim_node *n)
{
    uint32_t announced = 0, stepped = 0;

    check_offer(n);
    if (!n->announced) {
        n->announcement = shunt_planning_acknowledged(n->planning);
        n->announced = true;
    }
    for (uint32_t r = 0; r < sim->node_count; r++)
        announced += sim->nodes[r].announced;
    if (announced < sim->node_count || n->stepped)
        return;
    sim->agreed = UINT64_MAX;
    for (uint32_t r = 0; r < sim->node_count; r++)
        if (sim->nodes[r].announcement < sim->agreed)
            sim->agreed = sim->nodes[r].announcement;
    cr_assert_geq(sim->agreed, n->epoch, "a placement is taken back");
    if (sim->agreed > n->epoch) {
        cr_assert_arr_eq(shunt_planning_mask(n->planning), plan_of(sim->agreed),
                         KEYS * sizeof(uint64_t), "node %u takes another placement", n->rank);
        n->epoch = sim->agreed;
        shunt_planning_activated(n->planning);
    }
    n->stepped = true;
    for (uint32_t r = 0; r < sim->node_count; r++)
        stepped += sim->nodes[r].stepped;
    for (uint32_t r = 0; stepped == sim->node_count && r < sim->node_count; r++)
        sim->nodes[r].announced = sim->nodes[r].stepped = false;
}

/* A peer says what it must not: of any length, type and content, or an old placement again. */
static void say_nonsense(void)
{
    struct sim_node *to = &sim->nodes[random_below(&sim->random, sim->node_count)];
    struct message m = {.from = random_below(&sim->random, sim->node_count)};
    uint64_t header[2] = {random_next(&sim->random) >> random_below(&sim->random, 60), KEYS};
    uint32_t whole;

    random_fill(&sim->random, m.data, sizeof(m.data));
    if (m.from == to->rank)
        return;
    switch (random_below(&sim->random, 5)) {
    case 0: /* a placement, but not from rank 0 or not to another */
        if (m.from == 0)
            return;
        memcpy(m.data, header, sizeof(header));
        m.type = PLACEMENT;
        m.bytes = BYTES_MAX;
        break;
    case 1: /* a report to a node that has no planner */
        if (to->rank == 0)
            return;
        m.type = REPORT;
        m.bytes = 8 + 4 * KEYS;
        break;
    case 2: /* another length: empty, cut, too long, that of the other type */
        m.type = random_below(&sim->random, 2) ? REPORT : PLACEMENT;
        whole = m.type == REPORT ? 8 + 4 * KEYS : BYTES_MAX;
        m.bytes = random_below(&sim->random, BYTES_MAX + 1);
        memcpy(m.data, header, sizeof(header));
        if (m.bytes == whole)
            return;
        break;
    case 3: /* of another model's shape, or of a later version */
        m.type = REPORT + random_below(&sim->random, 4);
        m.bytes = m.type == REPORT ? 8 + 4 * KEYS : BYTES_MAX;
        header[1] = KEYS ^ (1ull << random_below(&sim->random, 64));
        memcpy(m.data, header, sizeof(header));
        if (m.type == REPORT)
            memcpy(m.data, &(uint32_t[2]){3, KEYS + 1}, 8);
        break;
    default: /* rank 0 repeats itself, or what it sent is overtaken by something old */
        if (m.from != 0 || sim->taken == 0)
            return;
        m.type = PLACEMENT;
        m.bytes = BYTES_MAX;
        header[0] = random_below(&sim->random, (uint32_t)to->epoch + 1);
        memcpy(m.data, header, sizeof(header));
    }
    hand_over(to, &m);
}

static bool all_have(uint64_t epoch)
{
    for (uint32_t r = 0; r < sim->node_count; r++)
        if (sim->nodes[r].epoch != epoch)
            return false;
    return true;
}

static void any_event(bool nonsense)
{
    struct sim_node *n = &sim->nodes[random_below(&sim->random, sim->node_count)];

    switch (random_below(&sim->random, 6)) {
    case 0:
        shunt_planning_tick(n->planning);
        break;
    case 1:
    case 2:
        deliver(n, random_below(&sim->random, sim->node_count));
        break;
    case 3:
        do_work(n);
        break;
    default:
        advance(n);
    }
    if (nonsense && random_below(&sim->random, 3) == 0)
        say_nonsense();
}

/* ---- tests of the simulated rack */

/* Any order of events, refused sends, nonsense between: whoever activates a placement activates the
 * same in the same step, and when plans end, everybody comes to have the last. */
static void adopt_alike(bool nonsense)
{
    uint32_t active = 0;

    for (uint32_t seed = 1; seed <= 300; seed++) {
        uint64_t last;

        start_sim(1 + seed % NODES_MAX, seed, 1);
        sim->refuse_percent = seed % 3 * 30;
        for (uint32_t i = 0; i < 4000; i++) {
            if (sim->plan_count < PLANS_MAX && random_below(&sim->random, 150) == 0)
                plan();
            any_event(nonsense);
        }
        plan();
        last = sim->epochs[sim->plan_count - 1];
        for (uint32_t i = 0; i < 40000 && !all_have(last); i++)
            any_event(nonsense);
        cr_assert(all_have(last), "seed %u: not everybody has the last plan", seed);
        active += sim->taken;
        for (uint32_t r = 0; r < sim->node_count; r++)
            cr_expect_gt(sim->reports[r], 0, "rank %u", r);
        end_sim();
    }
    cr_expect_gt(active, 1000);
}

Test(planning, is_adopted_by_all_in_the_same_step, .timeout = 60)
{
    adopt_alike(false);
}

Test(planning, is_not_disturbed_by_nonsense, .timeout = 60)
{
    adopt_alike(true);
}

/* An old placement from rank 0 itself, while a newer one waits for the engine to take the one
 * before: the newer one stays. */
Test(planning, does_not_go_back, .timeout = 60)
{
    struct sim_node *n;

    start_sim(2, 1, 1);
    n = &sim->nodes[1];
    for (uint32_t i = 0; i < 3; i++)
        plan();
    sim->taken = 3;
    for (uint32_t i = 0; i < 4; i++) { /* first, third, and then the second and the first again */
        static const uint32_t order[] = {0, 2, 1, 0};
        uint64_t header[2] = {sim->epochs[order[i]], KEYS};
        struct message m = {.from = 0, .type = PLACEMENT, .bytes = BYTES_MAX};

        memcpy(m.data, header, sizeof(header));
        memcpy(m.data + 16, sim->plans[order[i]], sizeof(sim->plans[0]));
        hand_over(n, &m);
        cr_expect_eq(shunt_planning_acknowledged(n->planning), sim->epochs[0]);
        cr_expect_arr_eq(shunt_planning_mask(n->planning), sim->plans[0], sizeof(sim->plans[0]));
    }
    shunt_planning_activated(n->planning);
    shunt_planning_tick(n->planning);
    cr_expect_eq(shunt_planning_acknowledged(n->planning), sim->epochs[2]);
    cr_expect_arr_eq(shunt_planning_mask(n->planning), sim->plans[2], sizeof(sim->plans[0]));
    end_sim();
}

/* A node that takes no message any more keeps nobody else from theirs; nobody steps without it. */
Test(planning, reaches_the_others_past_a_lost_node, .timeout = 60)
{
    start_sim(4, 9, 1);
    sim->nodes[2].deaf = true;
    plan();
    for (uint32_t i = 0; i < 5000; i++) {
        any_event(false);
        cr_assert(all_have(0));
    }
    for (uint32_t r = 0; r < 4; r++)
        cr_expect_eq(shunt_planning_acknowledged(sim->nodes[r].planning),
                     r == 2 ? 0 : sim->epochs[0], "rank %u", r);
    cr_expect_eq(sim->placements_sent, 2, "each once");
    plan(); /* waits for the one before */
    for (uint32_t i = 0; i < 1000; i++)
        any_event(false);
    cr_expect_eq(sim->taken, 1);
    sim->nodes[2].deaf = false;
    for (uint32_t i = 0; i < 20000 && !all_have(sim->epochs[1]); i++)
        any_event(false);
    cr_expect(all_have(sim->epochs[1]));
    end_sim();
}

/* One report per interval; one that could not be sent goes at the next tick. */
Test(planning, reports_at_intervals, .timeout = 60)
{
    const int64_t interval_ns = 100 * SHUNT_NS_PER_MS;
    int64_t begin = shunt_now_ns();

    start_sim(2, 1, interval_ns);
    sim->nodes[0].deaf = true;
    for (uint32_t i = 0; i < 10; i++)
        shunt_planning_tick(sim->nodes[1].planning);
    cr_expect(sim->sent == 0 && sim->refused == 10, "%u sent, %u refused", sim->sent, sim->refused);
    sim->nodes[0].deaf = false;
    do {
        for (uint32_t r = 0; r < 2; r++)
            shunt_planning_tick(sim->nodes[r].planning);
        deliver(&sim->nodes[0], 1);
    } while (sim->reports[0] < 5 || sim->reports[1] < 5);
    for (uint32_t r = 0; r < 2; r++)
        cr_expect_leq(sim->reports[r], 1 + (shunt_now_ns() - begin) / interval_ns, "rank %u", r);
    end_sim();
    start_sim(1, 1, INT64_MAX); /* never again */
    for (uint32_t i = 0; i < 10; i++)
        shunt_planning_tick(sim->nodes[0].planning);
    cr_expect_eq(sim->reports[0], 1);
    end_sim();
}

Test(planning, says_and_does_nothing_when_off, .timeout = 60)
{
    start_sim(0, 1, 1);
    sim->node_count = 2;
    for (uint32_t r = 0; r < 2; r++) {
        struct shunt_planning_config cfg = node_config(r, 1);

        sim->nodes[r].rank = r;
        cfg.policy = SHUNT_PLACEMENT_OFF;
        cr_assert_eq(shunt_planning_open(&sim->nodes[r].planning, &cfg, NULL), 0);
        cr_expect_not(sim->planner_open);
        for (uint32_t i = 0; i < 5; i++)
            shunt_planning_tick(sim->nodes[r].planning);
        say_nonsense();
        cr_expect_eq(shunt_planning_acknowledged(sim->nodes[r].planning), 0);
    }
    cr_expect_eq(sim->sent, 0);
    end_sim();
}

Test(planning, opens_no_planner_but_on_rank_0, .timeout = 60)
{
    struct shunt_planning *p = NULL;
    struct shunt_planning_config cfg;
    struct shunt_error err = {0};

    start_sim(3, 1, 1);
    sim->planner_open = false; /* rank 0's */
    sim->planner_fails = 1;
    cfg = node_config(0, 1);
    cr_expect_eq(shunt_planning_open(&p, &cfg, &err), -EAGAIN);
    cr_expect(p == NULL && !strcmp(err.text, "no planner today"));
    cfg = node_config(2, 1);
    cr_expect_eq(shunt_planning_open(&p, &cfg, &err), 0);
    shunt_planning_close(p);
    shunt_planning_close(NULL);
    sim->planner_open = true;
    end_sim();
}

/* What message_max says is what fits: shunt_rack_config takes it, and no message is longer. */
Test(planning, knows_its_longest_message, .timeout = 60)
{
    cr_expect_eq(shunt_planning_message_max(LAYERS, EXPERTS), BYTES_MAX);
    cr_expect_eq(shunt_planning_message_max(1, 1), 24);
    cr_expect_eq(shunt_planning_message_max(94, 512), 16 + 94 * 512 * 8);
}

/* ---- nodes of one process, on the loopback, with the planner itself */

struct real_node {
    struct shunt_rack_config cfg;
    struct shunt_rack *rack;
    struct shunt_planning *planning;
    _Atomic uint32_t activations[KEYS];
    _Atomic int down;
    struct shunt_error err;
    int rc;
    uint64_t epoch, mask[KEYS];
};

static void on_down(void *ctx, uint32_t rank, const struct shunt_error *why)
{
    struct real_node *n = ctx;

    (void)rank;
    (void)why;
    atomic_store(&n->down, 1);
}

static void on_message(void *ctx, uint32_t rank, uint32_t type, const void *data, uint32_t bytes)
{
    struct real_node *n = ctx;

    shunt_planning_message(n->planning, rank, type, data, bytes);
}

static void on_tick(void *ctx)
{
    struct real_node *n = ctx;

    shunt_planning_tick(n->planning);
}

static void join(void *arg)
{
    struct real_node *n = arg;

    n->rc = shunt_rack_join(&n->rack, &n->cfg, &n->err);
}

static void start(struct real_node *n, uint32_t capacity)
{
    const struct shunt_rack_callbacks callbacks = {
        .ctx = n, .down = on_down, .message = on_message, .tick = on_tick};
    const struct shunt_planning_config cfg = {
        .rack = n->rack,
        .rank = n->cfg.rank,
        .node_count = n->cfg.node_count,
        .layer_count = LAYERS,
        .expert_count = EXPERTS,
        .policy = SHUNT_PLACEMENT_PRISM,
        .interval_ns = 1,
        .capacity = capacity,
        .activations = n->activations,
    };

    cr_assert_eq(n->rc, 0, "%s", n->err.text);
    cr_assert_eq(shunt_planning_open(&n->planning, &cfg, &n->err), 0, "%s", n->err.text);
    cr_assert_eq(shunt_rack_start(n->rack, &callbacks, &n->err), 0, "%s", n->err.text);
}

/* Steps of all until all have a newer placement. */
static void step_until_new(struct real_node *nodes, uint32_t count)
{
    int64_t deadline = shunt_now_ns() + WAIT_S * SHUNT_NS_PER_S;
    uint64_t agreed, before = nodes[0].epoch;

    do {
        cr_assert_lt(shunt_now_ns(), deadline, "no newer placement than %lu", before);
        usleep(2000);
        agreed = UINT64_MAX;
        for (uint32_t r = 0; r < count; r++) {
            uint64_t own = shunt_planning_acknowledged(nodes[r].planning);

            agreed = own < agreed ? own : agreed;
            cr_assert_not(atomic_load(&nodes[r].down));
        }
    } while (agreed == before);
    for (uint32_t r = 0; r < count; r++) {
        memcpy(nodes[r].mask, shunt_planning_mask(nodes[r].planning), sizeof(nodes[r].mask));
        nodes[r].epoch = agreed;
        shunt_planning_activated(nodes[r].planning);
        cr_assert_arr_eq(nodes[r].mask, nodes[0].mask, sizeof(nodes[0].mask), "rank %u", r);
    }
}

Test(planning, follows_the_work_of_a_rack, .timeout = 60)
{
    const uint32_t capacity[3] = {4, 2, 6};
    struct real_node nodes[3];
    uint64_t activations[3 * KEYS], want[KEYS];
    const struct shunt_placement_input in = {3, LAYERS, EXPERTS, activations, capacity};
    void *scratch = malloc(shunt_placement_scratch_bytes(&in));
    uint32_t hot[LAYERS];
    struct seats seats;

    memset(nodes, 0, sizeof(nodes));
    seats_take(&seats, 3);
    for (uint32_t r = 0; r < 3; r++) {
        nodes[r].cfg = seats_config(&seats, r);
        nodes[r].cfg.message_max = shunt_planning_message_max(LAYERS, EXPERTS);
        for (uint32_t k = 0; k < KEYS; k++) {
            activations[r * KEYS + k] = activations_of(r, 1, k) % 1000;
            nodes[r].activations[k] = (uint32_t)activations[r * KEYS + k];
        }
    }
    at_once(3, join, nodes, sizeof(nodes[0]));
    for (uint32_t r = 0; r < 3; r++)
        start(&nodes[r], capacity[r]);
    step_until_new(nodes, 3);
    shunt_placement_prism(&in, want, scratch);
    cr_expect_arr_eq(nodes[0].mask, want, sizeof(want));
    cr_expect_eq(nodes[0].epoch, 1);
    /* The work moves: rank 1, which has room for one of each layer, works with another. */
    for (uint32_t l = 0; l < LAYERS; l++) {
        hot[l] = l * EXPERTS;
        while (nodes[0].mask[hot[l]] >> 1 & 1)
            hot[l]++;
        cr_assert_lt(hot[l], (l + 1) * EXPERTS);
        atomic_fetch_add(&nodes[1].activations[hot[l]], 1u << 20);
    }
    do
        step_until_new(nodes, 3);
    while (!(nodes[2].mask[hot[0]] >> 1 & 1) || !(nodes[2].mask[hot[1]] >> 1 & 1));
    for (uint32_t r = 0; r < 3; r++)
        shunt_rack_leave(nodes[r].rack, true);
    for (uint32_t r = 0; r < 3; r++) {
        shunt_rack_close(nodes[r].rack);
        shunt_planning_close(nodes[r].planning);
        cr_expect_not(atomic_load(&nodes[r].down));
    }
    free(scratch);
}
