/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/planner.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "planner/node_set.h"
#include "planner/placement.h"
#include "runtime/base/clock.h"
#include "runtime/base/thread.h"

struct shunt_planner {
    struct shunt_planner_config cfg;
    size_t key_count;
    pthread_t thread;
    bool started;

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a node's first report, or the end */
    bool stop;
    uint64_t reported; /* mask of nodes */
    bool activated;    /* something new since the last plan */
    uint32_t *seen;    /* [node][key]: the last report, for differences */
    uint64_t *fresh;   /* [node][key]: activations since the last plan */
    uint32_t *capacity;
    uint64_t *plan; /* [key], the newest */
    uint64_t epoch, taken;

    /* The thread's own. */
    uint64_t *history; /* [node][key], halved with every plan */
    uint64_t *work;
    uint32_t *work_capacity;
    void *scratch;
};

/* Half of what was known before counts: a change of work shows within two plans, and noise does
 * not. */
static void decay_and_add(struct shunt_planner *p)
{
    for (size_t i = 0; i < p->cfg.node_count * p->key_count; i++) {
        p->history[i] = p->history[i] / 2 + p->fresh[i];
        p->fresh[i] = 0;
    }
}

static void make_plan(struct shunt_planner *p)
{
    const struct shunt_placement_input in = {
        .node_count = p->cfg.node_count,
        .layer_count = p->cfg.layer_count,
        .expert_count = p->cfg.expert_count,
        .activations = p->history,
        .capacity = p->work_capacity,
    };

    if (p->cfg.policy == SHUNT_PLACEMENT_PRISM)
        shunt_placement_prism(&in, p->work, p->scratch);
    else
        shunt_placement_spread(&in, p->work);
}

static bool all_reported(const struct shunt_planner *p)
{
    return shunt_node_set_count(p->reported) == p->cfg.node_count;
}

/* True when it is time for a plan; the mutex is held. */
static bool due(const struct shunt_planner *p, int64_t last_ns)
{
    if (p->cfg.policy == SHUNT_PLACEMENT_OFF || !all_reported(p))
        return false;
    if (p->epoch == 0)
        return true;
    return p->cfg.policy == SHUNT_PLACEMENT_PRISM && p->activated &&
           shunt_now_ns() - last_ns >= p->cfg.interval_ns;
}

static void *planner_main(void *arg)
{
    struct shunt_planner *p = arg;
    int64_t last_ns = 0;

    pthread_mutex_lock(&p->mutex);
    while (!p->stop) {
        if (!due(p, last_ns)) {
            struct timespec slice; /* the condition's clock is the wall's; `due` looks at ours */

            clock_gettime(CLOCK_REALTIME, &slice);
            slice.tv_nsec += 200 * SHUNT_NS_PER_MS;
            if (slice.tv_nsec >= SHUNT_NS_PER_S) {
                slice.tv_sec++;
                slice.tv_nsec -= SHUNT_NS_PER_S;
            }
            pthread_cond_timedwait(&p->changed, &p->mutex, &slice);
            continue;
        }
        p->activated = false;
        last_ns = shunt_now_ns();
        decay_and_add(p);
        memcpy(p->work_capacity, p->capacity, p->cfg.node_count * sizeof(*p->capacity));
        pthread_mutex_unlock(&p->mutex);
        make_plan(p);
        pthread_mutex_lock(&p->mutex);
        if (p->epoch == 0 || memcmp(p->plan, p->work, p->key_count * sizeof(*p->plan))) {
            memcpy(p->plan, p->work, p->key_count * sizeof(*p->plan));
            p->epoch++;
        }
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

void shunt_planner_report(struct shunt_planner *p, uint32_t node, const uint32_t *activations,
                          uint32_t capacity)
{
    uint32_t *seen = p->seen + node * p->key_count;
    uint64_t *fresh = p->fresh + node * p->key_count;

    pthread_mutex_lock(&p->mutex);
    for (size_t k = 0; k < p->key_count; k++) {
        uint32_t more = activations[k] - seen[k];

        fresh[k] += more;
        seen[k] = activations[k];
        p->activated |= more > 0;
    }
    p->capacity[node] = capacity;
    p->reported |= shunt_node_set_of(node);
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

bool shunt_planner_take(struct shunt_planner *p, uint64_t *mask, uint64_t *epoch)
{
    bool fresh;

    pthread_mutex_lock(&p->mutex);
    fresh = p->epoch > p->taken;
    if (fresh) {
        memcpy(mask, p->plan, p->key_count * sizeof(*mask));
        *epoch = p->taken = p->epoch;
    }
    pthread_mutex_unlock(&p->mutex);
    return fresh;
}

static int alloc_tables(struct shunt_planner *p)
{
    const struct shunt_placement_input shape = {.node_count = p->cfg.node_count,
                                                .layer_count = p->cfg.layer_count,
                                                .expert_count = p->cfg.expert_count};
    size_t all = p->cfg.node_count * p->key_count;

    p->seen = calloc(all, sizeof(*p->seen));
    p->fresh = calloc(all, sizeof(*p->fresh));
    p->history = calloc(all, sizeof(*p->history));
    p->capacity = calloc(p->cfg.node_count, sizeof(*p->capacity));
    p->work_capacity = calloc(p->cfg.node_count, sizeof(*p->work_capacity));
    p->plan = calloc(p->key_count, sizeof(*p->plan));
    p->work = calloc(p->key_count, sizeof(*p->work));
    p->scratch = malloc(shunt_placement_scratch_bytes(&shape));
    return p->seen && p->fresh && p->history && p->capacity && p->work_capacity && p->plan &&
                   p->work && p->scratch
               ? 0
               : -ENOMEM;
}

int shunt_planner_open(struct shunt_planner **out, const struct shunt_planner_config *cfg,
                       struct shunt_error *err)
{
    struct shunt_planner *p = calloc(1, sizeof(*p));
    int rc;

    if (!p)
        return shunt_error_set(err, -ENOMEM, "out of memory for the planner");
    p->cfg = *cfg;
    p->key_count = (size_t)cfg->layer_count * cfg->expert_count;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    if (alloc_tables(p)) {
        shunt_planner_close(p);
        return shunt_error_set(err, -ENOMEM, "out of memory for the planner");
    }
    rc = shunt_thread_create(&p->thread, planner_main, p);
    p->started = rc == 0;
    if (rc) {
        shunt_planner_close(p);
        return shunt_error_set(err, rc, "cannot start the planner thread: %s", strerror(-rc));
    }
    *out = p;
    return 0;
}

void shunt_planner_close(struct shunt_planner *p)
{
    if (!p)
        return;
    if (p->started) {
        pthread_mutex_lock(&p->mutex);
        p->stop = true;
        pthread_cond_signal(&p->changed);
        pthread_mutex_unlock(&p->mutex);
        pthread_join(p->thread, NULL);
    }
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->changed);
    free(p->seen);
    free(p->fresh);
    free(p->history);
    free(p->capacity);
    free(p->work_capacity);
    free(p->plan);
    free(p->work);
    free(p->scratch);
    free(p);
}
