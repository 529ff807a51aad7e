/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner thread. The linker hands its calls of placement.h to functions of this test, which
 * hold the thread inside a plan: so it is known which reports a plan has seen, and a report or a
 * take that waited for a plan would never return.
 */
#include "planner/planner.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "planner/placement.h"
#include "runtime/base/clock.h"
#include "tests/random.h"

#define NODES   4u
#define LAYERS  3u
#define EXPERTS 6u
#define KEYS    (LAYERS * EXPERTS)
#define WAIT_S  20
#define NEVER   (1000 * SHUNT_NS_PER_S)

/* ---- the gate in front of a plan */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t entered, left; /* plans begun, plans that were let through */
    uint32_t passes;        /* plans that may be made */
    bool spread;            /* the last one was */
    struct shunt_placement_input in;
    uint64_t activations[NODES * KEYS];
    uint32_t capacity[NODES];
} gate = {
    .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .passes = UINT32_MAX};

void __real_shunt_placement_prism(const struct shunt_placement_input *in, uint64_t *mask,
                                  void *scratch);
void __real_shunt_placement_spread(const struct shunt_placement_input *in, uint64_t *mask);
void __wrap_shunt_placement_prism(const struct shunt_placement_input *in, uint64_t *mask,
                                  void *scratch);
void __wrap_shunt_placement_spread(const struct shunt_placement_input *in, uint64_t *mask);

static void pass(const struct shunt_placement_input *in, bool spread)
{
    pthread_mutex_lock(&gate.mutex);
    gate.entered++;
    gate.spread = spread;
    gate.in = *in;
    memcpy(gate.activations, in->activations, sizeof(gate.activations));
    memcpy(gate.capacity, in->capacity, sizeof(gate.capacity));
    pthread_cond_broadcast(&gate.changed);
    while (gate.left >= gate.passes)
        pthread_cond_wait(&gate.changed, &gate.mutex);
    gate.left++;
    pthread_mutex_unlock(&gate.mutex);
}

void __wrap_shunt_placement_prism(const struct shunt_placement_input *in, uint64_t *mask,
                                  void *scratch)
{
    pass(in, false);
    __real_shunt_placement_prism(in, mask, scratch);
}

void __wrap_shunt_placement_spread(const struct shunt_placement_input *in, uint64_t *mask)
{
    pass(in, true);
    __real_shunt_placement_spread(in, mask);
}

static void let_pass(uint32_t passes)
{
    pthread_mutex_lock(&gate.mutex);
    gate.passes = passes;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.mutex);
}

static uint32_t plans_begun(void)
{
    uint32_t entered;

    pthread_mutex_lock(&gate.mutex);
    entered = gate.entered;
    pthread_mutex_unlock(&gate.mutex);
    return entered;
}

/* Waits until the thread is in plan number `count`, so that those before it can be taken. */
static void await_plan(uint32_t count)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    pthread_mutex_lock(&gate.mutex);
    while (gate.entered < count && !rc)
        rc = pthread_cond_timedwait(&gate.changed, &gate.mutex, &until);
    pthread_mutex_unlock(&gate.mutex);
    cr_assert_eq(rc, 0, "waited for plan %u, in plan %u", count, gate.entered);
}

/* ---- what opening takes, which may fail */

static long until_failure = -1; /* calls that still succeed; negative: all */

static bool fails_now(void)
{
    return until_failure >= 0 && until_failure-- == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg);

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg)
{
    return fails_now() ? EAGAIN : __real_pthread_create(thread, attr, fn, arg);
}

/* ---- a rack's counters, and what the planner should know of them */

struct model {
    uint32_t counts[NODES][KEYS]; /* as reported; they wrap */
    uint32_t capacity[NODES];
    uint64_t fresh[NODES * KEYS], history[NODES * KEYS];
};

static struct shunt_planner *open_planner(enum shunt_placement_policy policy, int64_t interval_ns)
{
    const struct shunt_planner_config cfg = {
        .policy = policy,
        .node_count = NODES,
        .layer_count = LAYERS,
        .expert_count = EXPERTS,
        .interval_ns = interval_ns,
    };
    struct shunt_planner *p;
    struct shunt_error err;

    cr_assert_eq(shunt_planner_open(&p, &cfg, &err), 0, "%s", err.text);
    return p;
}

static void activate(struct model *m, uint32_t node, uint32_t key, uint32_t more)
{
    m->counts[node][key] += more;
    m->fresh[node * KEYS + key] += more;
}

static void report(struct shunt_planner *p, const struct model *m, uint32_t node)
{
    shunt_planner_report(p, node, m->counts[node], m->capacity[node]);
}

static void report_all(struct shunt_planner *p, const struct model *m)
{
    for (uint32_t n = 0; n < NODES; n++)
        report(p, m, n);
}

/* Half of what was known, and what is new. */
static void expect_plan(struct model *m, uint64_t *mask)
{
    const struct shunt_placement_input in = {NODES, LAYERS, EXPERTS, m->history, m->capacity};
    void *scratch = malloc(shunt_placement_scratch_bytes(&in));

    for (uint32_t i = 0; i < NODES * KEYS; i++)
        m->history[i] = m->history[i] / 2 + m->fresh[i];
    memset(m->fresh, 0, sizeof(m->fresh));
    __real_shunt_placement_prism(&in, mask, scratch);
    free(scratch);
}

static bool await_take(struct shunt_planner *p, uint64_t *mask, uint64_t *epoch)
{
    int64_t deadline = shunt_now_ns() + WAIT_S * SHUNT_NS_PER_S;

    while (!shunt_planner_take(p, mask, epoch)) {
        if (shunt_now_ns() > deadline)
            return false;
        usleep(500);
    }
    return true;
}

/* ---- tests */

Test(planner, waits_until_every_node_has_reported, .timeout = 60)
{
    for (uint32_t late = 0; late < NODES; late++) {
        struct shunt_planner *p = open_planner(SHUNT_PLACEMENT_PRISM, 1);
        struct model m = {.capacity = {9, 9, 9, 9}};
        uint64_t mask[KEYS], want[KEYS], epoch = 0;
        uint32_t before = plans_begun();

        for (uint32_t turn = 0; turn < 3; turn++)
            for (uint32_t n = 0; n < NODES; n++) {
                activate(&m, n, n, 100);
                if (n != late)
                    report(p, &m, n);
            }
        usleep(20000);
        cr_expect_eq(plans_begun(), before);
        cr_expect_not(shunt_planner_take(p, mask, &epoch));
        report(p, &m, late);
        cr_assert(await_take(p, mask, &epoch));
        expect_plan(&m, want);
        cr_expect_eq(epoch, 1);
        cr_expect_arr_eq(mask, want, sizeof(want));
        shunt_planner_close(p);
    }
}

/* What a round of work adds: something, mostly; counters pass their end within a few rounds. */
static void work(struct model *m, uint64_t *random, bool as_before, const uint64_t *last)
{
    uint32_t times = 1 + random_below(random, 40);

    if (as_before) {
        memcpy(m->fresh, last, sizeof(m->fresh));
        for (uint32_t i = 0; i < NODES * KEYS; i++)
            m->counts[i / KEYS][i % KEYS] += (uint32_t)m->fresh[i];
        return;
    }
    for (uint32_t i = 0; i < times; i++)
        activate(m, random_below(random, NODES), random_below(random, KEYS),
                 1 + random_below(random, 1u << 29));
    for (uint32_t n = 0; n < NODES; n++)
        if (random_below(random, 4) == 0)
            m->capacity[n] = random_below(random, KEYS + 3);
}

/* Against the model, plan for plan. Everything below happens while the thread is inside a plan. */
Test(planner, plans_from_what_the_nodes_reported, .timeout = 100)
{
    uint32_t changed = 0, same = 0, wrapped = 0;

    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct shunt_planner *p = open_planner(SHUNT_PLACEMENT_PRISM, 1);
        uint64_t random = seed, epoch = 0, epochs = 0;
        uint64_t mask[KEYS], want[KEYS], published[KEYS] = {0};
        uint32_t begun = plans_begun();
        uint64_t last[NODES * KEYS] = {0};
        struct model m = {.capacity = {7, 3, 5, 9}};

        let_pass(begun);
        for (uint32_t round = 0; round < 40; round++) {
            uint32_t early = round ? random_below(&random, 5) : 0;
            uint32_t capacity[NODES];

            work(&m, &random, round % 3 == 2, last);
            memcpy(last, m.fresh, sizeof(last));
            /* Some report more than once, in any order. */
            for (uint32_t i = 0; i < early; i++)
                report(p, &m, random_below(&random, NODES));
            report_all(p, &m);
            for (uint32_t i = 0; i < NODES * KEYS; i++)
                wrapped += m.counts[i / KEYS][i % KEYS] < m.fresh[i];
            memcpy(capacity, m.capacity, sizeof(capacity));
            let_pass(begun + round); /* the plan before is finished, this one begins */
            await_plan(begun + round + 1);
            if (round > 0) {
                bool is_new = round == 1 || memcmp(published, want, sizeof(want));

                cr_assert_eq(shunt_planner_take(p, mask, &epoch), is_new, "seed %lu round %u", seed,
                             round);
                changed += is_new;
                same += !is_new;
                epochs += is_new;
                if (is_new) {
                    cr_assert_arr_eq(mask, want, sizeof(want));
                    cr_assert_eq(epoch, epochs);
                    memcpy(published, want, sizeof(want));
                }
                cr_assert_not(shunt_planner_take(p, mask, &epoch), "it has been taken");
            }
            expect_plan(&m, want);
            cr_assert(!gate.spread && gate.in.node_count == NODES &&
                      gate.in.layer_count == LAYERS && gate.in.expert_count == EXPERTS);
            cr_assert_arr_eq(gate.capacity, capacity, sizeof(capacity));
            cr_assert_arr_eq(gate.activations, m.history, sizeof(m.history), "seed %lu round %u",
                             seed, round);
        }
        let_pass(UINT32_MAX);
        shunt_planner_close(p);
    }
    cr_expect(changed > 50 && same > 20 && wrapped > 50, "%u plans, %u again, %u wraps", changed,
              same, wrapped);
}

/* Only the newest plan can be taken: those that nobody took are gone, and their epochs too. */
Test(planner, gives_the_newest_plan, .timeout = 60)
{
    struct shunt_planner *p = open_planner(SHUNT_PLACEMENT_PRISM, 1);
    struct model m = {.capacity = {1, 1, 1, 1}};
    uint64_t mask[KEYS], want[KEYS], epoch = 0;

    let_pass(0);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t n = 0; n < NODES; n++)
            activate(&m, n, round * NODES + n, 100u << 2 * round);
        report_all(p, &m);
        let_pass(round);
        await_plan(round + 1);
        expect_plan(&m, want);
    }
    let_pass(UINT32_MAX);
    while (epoch < 3)
        cr_assert(await_take(p, mask, &epoch));
    cr_expect_eq(epoch, 3);
    cr_expect_arr_eq(mask, want, sizeof(want));
    shunt_planner_close(p);
}

Test(planner, keeps_the_interval, .timeout = 60)
{
    const int64_t interval_ns = 400 * SHUNT_NS_PER_MS;
    struct shunt_planner *p = open_planner(SHUNT_PLACEMENT_PRISM, interval_ns);
    struct model m = {.capacity = {5, 5, 5, 5}};
    int64_t begin = shunt_now_ns();

    for (uint32_t plan = 1; plan <= 3; plan++) {
        do {
            activate(&m, 0, 0, 1); /* signalled again and again */
            report_all(p, &m);
            usleep(3000);
        } while (plans_begun() < plan);
        if (plan > 1)
            cr_expect_geq(shunt_now_ns() - begin, (plan - 1) * interval_ns);
    }
    shunt_planner_close(p);
}

/* Nothing new is no reason for a plan; and a spread one is made once. */
Test(planner, does_not_plan_for_nothing, .timeout = 60)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct shunt_planner *p =
            open_planner(i ? SHUNT_PLACEMENT_SPREAD : SHUNT_PLACEMENT_PRISM, 1);
        struct model m = {.capacity = {9, 9, 9, 9}};
        uint32_t before = plans_begun();
        uint64_t mask[KEYS], want[KEYS], epoch;

        report_all(p, &m);
        cr_assert(await_take(p, mask, &epoch));
        __real_shunt_placement_spread(
            &(struct shunt_placement_input){NODES, LAYERS, EXPERTS, NULL, m.capacity}, want);
        if (i)
            cr_expect_arr_eq(mask, want, sizeof(want));
        for (uint32_t turn = 0; turn < 10; turn++) {
            if (i)
                activate(&m, 1, 1, 50);
            report_all(p, &m);
            usleep(5000);
        }
        cr_expect_eq(plans_begun(), before + 1);
        cr_expect_eq(gate.spread, i);
        cr_expect_not(shunt_planner_take(p, mask, &epoch));
        shunt_planner_close(p);
    }
}

Test(planner, makes_no_plan_when_off, .timeout = 60)
{
    struct shunt_planner *p = open_planner(SHUNT_PLACEMENT_OFF, 1);
    struct model m = {.capacity = {9, 9, 9, 9}};
    uint64_t mask[KEYS], epoch;

    activate(&m, 0, 0, 7);
    report_all(p, &m);
    usleep(50000);
    cr_expect_eq(plans_begun(), 0);
    cr_expect_not(shunt_planner_take(p, mask, &epoch));
    shunt_planner_close(p);
}

/* At any moment: before the thread has begun, while it sleeps (not until its interval is over), and
 * from within a plan. */
Test(planner, closes_at_any_moment, .timeout = 60)
{
    struct model m = {.capacity = {9, 9, 9, 9}};
    int64_t begin = shunt_now_ns();

    shunt_planner_close(NULL);
    for (uint32_t i = 0; i < 200; i++) {
        struct shunt_planner *p = open_planner(SHUNT_PLACEMENT_PRISM, NEVER);

        if (i % 2)
            report_all(p, &m);
        if (i % 5 == 0)
            usleep(1000);
        shunt_planner_close(p);
    }
    cr_expect_lt(shunt_now_ns() - begin, WAIT_S * SHUNT_NS_PER_S);
}

Test(planner, leaves_nothing_when_it_cannot_open, .timeout = 60)
{
    const struct shunt_planner_config cfg = {.policy = SHUNT_PLACEMENT_PRISM,
                                             .node_count = NODES,
                                             .layer_count = LAYERS,
                                             .expert_count = EXPERTS,
                                             .interval_ns = NEVER};
    struct shunt_planner *const none = (void *)&gate;
    struct shunt_planner *p = none;
    uint32_t failed = 0;
    int last = 0;

    for (;;) {
        struct shunt_error err = {0};
        int rc;

        until_failure = failed;
        rc = shunt_planner_open(&p, &cfg, &err);
        until_failure = -1;
        if (!rc)
            break;
        failed++;
        last = rc;
        cr_assert(p == none && err.code == rc && strstr(err.text, "planner"), "%s", err.text);
        cr_assert_lt(failed, 100);
    }
    cr_expect_eq(last, -EAGAIN, "the thread came last");
    cr_expect_gt(failed, 8);
    shunt_planner_close(p);
}
