/* SPDX-License-Identifier: Apache-2.0
 *
 * Building an engine and taking it down. Everything large is laid out here, once.
 */
#include <errno.h>
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/thread.h"
#include "runtime/engine/engine_impl.h"
#include "transport/region.h"

/* Of a node's slots, what a placement may fill: the rest lets other experts pass through. */
#define PLACED_SHARE_NUM 7u
#define PLACED_SHARE_DEN 8u

#define OUTBOX_RECORDS 64u

/* ---- layout */

static void carve_batch(struct shunt_batch *b, uint32_t rows, uint32_t hidden,
                        struct shunt_carve *c)
{
    memset(b, 0, sizeof(*b));
    b->sequences = shunt_carve(c, rows, sizeof(*b->sequences));
    b->positions = shunt_carve(c, rows, sizeof(*b->positions));
    b->ids = shunt_carve(c, rows, sizeof(*b->ids));
    b->x = shunt_carve(c, (size_t)rows * hidden, sizeof(*b->x));
    b->x_rows = shunt_carve(c, rows, sizeof(*b->x_rows));
}

static void carve_activations(struct shunt *e, struct shunt_carve *c)
{
    const struct shunt_arch *a = &e->model->arch;
    struct shunt_activations *act = &e->act;
    size_t rows = e->options.rows_max;
    size_t q = (size_t)a->head_count * a->head_dim;
    size_t kv = (size_t)a->kv_head_count * a->head_dim;

    act->normed = shunt_carve(c, rows * a->hidden, sizeof(float));
    act->q = shunt_carve(c, rows * q, sizeof(float));
    act->k = shunt_carve(c, rows * kv, sizeof(float));
    act->v = shunt_carve(c, rows * kv, sizeof(float));
    act->attended = shunt_carve(c, rows * q, sizeof(float));
    act->normed_rows = shunt_carve(c, rows, sizeof(float *));
    act->q_rows = shunt_carve(c, rows, sizeof(float *));
    act->k_rows = shunt_carve(c, rows, sizeof(float *));
    act->v_rows = shunt_carve(c, rows, sizeof(float *));
    act->attended_rows = shunt_carve(c, rows, sizeof(float *));
    act->logits = shunt_carve(c, (size_t)SHUNT_LOGIT_ROWS * a->vocab_count, sizeof(float));
    act->logit_rows = shunt_carve(c, SHUNT_LOGIT_ROWS, sizeof(float *));
    act->candidates = shunt_carve(c, a->vocab_count, sizeof(*act->candidates));
}

static uint32_t outbox_capacity(size_t text_max)
{
    uint32_t want = OUTBOX_RECORDS * shunt_outbox_bytes(16) + 4 * shunt_outbox_bytes(text_max);
    uint32_t capacity = 4096;

    while (capacity < want)
        capacity *= 2;
    return capacity;
}

static void carve_sequences(struct shunt *e, struct shunt_carve *c)
{
    const struct shunt_tokenizer *t = e->model->tokenizer;
    size_t piece_max = t ? shunt_tokenizer_piece_max(t) : 0;
    uint32_t capacity;

    e->text_max = shunt_text_max(piece_max);
    capacity = outbox_capacity(e->text_max);
    e->piece = shunt_carve(c, piece_max + 1, 1);
    e->text = shunt_carve(c, e->text_max + 1, 1);
    e->poll_text = shunt_carve(c, e->text_max + 1, 1);
    e->sequences = shunt_carve(c, e->sequence_count, sizeof(*e->sequences));
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        int32_t *ids = shunt_carve(c, e->context, sizeof(*ids));
        unsigned char *bytes = shunt_carve(c, capacity, 1);

        if (!c->base)
            continue;
        e->sequences[i].ids = ids;
        e->sequences[i].outbox.bytes = bytes;
        e->sequences[i].outbox.capacity = capacity;
    }
}

static uint32_t widest(const struct shunt_arch *a)
{
    uint32_t cols = a->hidden;

    if (a->expert_ff > cols)
        cols = a->expert_ff;
    if (a->head_count * a->head_dim > cols)
        cols = a->head_count * a->head_dim;
    return cols;
}

void shunt_engine_carve(struct shunt *e, const uint32_t *rows_max, struct shunt_carve *c)
{
    const struct shunt_arch *a = &e->model->arch;
    struct shunt_exchange_config exchange = {
        .rank = e->rank,
        .node_count = e->node_count,
        .shape = {.expert_count = a->expert_count,
                  .used_count = a->expert_used_count,
                  .hidden = a->hidden,
                  .layer_count = a->layer_count},
    };
    struct shunt_moe_config moe = {
        .arch = a,
        .compute = {.kernels = e->kernels, .pool = e->pool},
        .store = e->store,
        .exchange = &e->exchange,
        .progress = &e->progress,
        .rank = e->rank,
        .node_count = e->node_count,
        .prefetch = e->options.cfg.prefetch,
    };

    memcpy(exchange.rows_max, rows_max, e->node_count * sizeof(*rows_max));
    memcpy(moe.rows_max, rows_max, e->node_count * sizeof(*rows_max));
    e->scratch = shunt_carve(c, e->options.threads, sizeof(*e->scratch));
    for (uint32_t t = 0; t < e->options.threads; t++) {
        float *scratch = shunt_carve(c, shunt_compute_scratch(widest(a)), sizeof(float));

        if (c->base)
            e->scratch[t] = scratch;
    }
    shunt_weights_carve(&e->weights, a, c);
    e->rope = shunt_carve(c, (size_t)e->context * a->head_dim, sizeof(*e->rope));
    carve_activations(e, c);
    carve_batch(&e->prefill, e->options.chunk, a->hidden, c);
    carve_batch(&e->decode, e->sequence_count, a->hidden, c);
    carve_sequences(e, c);
    shunt_exchange_carve(&e->exchange, &exchange, c);
    moe.routers = e->weights.routers;
    moe.compute.scratch = e->scratch;
    shunt_moe_carve(&e->moe, &moe, c);
}

/* ---- stages of opening, in order */

static int open_descriptors(struct shunt *e, struct shunt_error *err)
{
    e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (e->wake_fd < 0 || e->abort_fd < 0 || e->event_fd < 0)
        return shunt_error_set(err, -errno, "no descriptors: %s; raise ulimit -n", strerror(errno));
    return 0;
}

static int join_rack(struct shunt *e, const struct shunt_config *cfg, struct shunt_error *err)
{
    struct shunt_rack_config rc = {
        .rank = e->rank,
        .node_count = e->node_count,
        .addresses = cfg->rack,
        .listen_fd = cfg->listen_fd,
        .credentials = {.key = cfg->key_file,
                        .cert = cfg->cert_file,
                        .cert_key = cfg->cert_key_file,
                        .ca = cfg->ca_file},
        .encrypt = cfg->encrypt,
        .serve_only = cfg->serve_only,
        .join_timeout_ns = cfg->join_timeout_ns,
        .cancel_fd = &cfg->cancel_fd,
        .dead_after_ns = cfg->dead_after_ns,
        .model_name = e->model->name,
        .kernel_levels = e->options.kernel_levels,
        .transports = e->options.transports,
        .wire_format = SHUNT_WIRE_VERSION,
        .rows_max = e->options.rows_max,
        .message_max =
            shunt_planning_message_max(e->model->arch.layer_count, e->model->arch.expert_count),
        .notify = {.say = shunt_engine_notice, .ctx = e},
    };

    memcpy(rc.fingerprint, e->model->fingerprint, sizeof(rc.fingerprint));
    return shunt_rack_join(&e->rack, &rc, err);
}

/* Two nodes find out when they say hello; of three, each pair may have one in common. */
static int refuse_kernels(const struct shunt *e, struct shunt_error *err)
{
    const struct shunt_rack_node *nodes = shunt_rack_nodes(e->rack);
    char list[384] = "";
    size_t len = 0;

    for (uint32_t n = 0; n < e->node_count && len < sizeof(list); n++) {
        char levels[64];

        shunt_kernels_names(nodes[n].kernel_levels, levels, sizeof(levels));
        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s has %s", n ? ", " : "",
                                nodes[n].label, levels);
    }
    return shunt_error_set(err, -EPROTO,
                           "the nodes have no kernels in common: %s; use --kernels auto everywhere",
                           list);
}

/* The best level that every node has. */
static int settle_kernels(struct shunt *e, struct shunt_error *err)
{
    const struct shunt_rack_node *nodes = shunt_rack_nodes(e->rack);
    uint32_t levels = e->options.kernel_levels;

    for (uint32_t n = 0; n < e->node_count; n++)
        levels &= nodes[n].kernel_levels;
    if (levels == 0)
        return refuse_kernels(e, err);
    e->kernels = shunt_kernels_get((enum shunt_kernel_level)(31 - __builtin_clz(levels)));
    return 0;
}

/* A rack that only serves would wait for ever: nodes do not change. */
static int look_around(const struct shunt *e, uint32_t *rows_max, struct shunt_error *err)
{
    const struct shunt_rack_node *nodes = shunt_rack_nodes(e->rack);
    bool submits = false;

    for (uint32_t n = 0; n < e->node_count; n++) {
        rows_max[n] = nodes[n].rows_max;
        submits |= !nodes[n].serve_only;
    }
    if (submits)
        return 0;
    return shunt_error_set(
        err, -EINVAL,
        "every node of the rack was started to serve (shunt node), and none takes "
        "prompts; start at least one with shunt run --rank");
}

static int open_store(struct shunt *e, struct shunt_error *err)
{
    struct shunt_store_config cfg = {
        .model = e->model,
        .io_mode = e->options.io_mode,
        .io = e->options.io,
        .slot_count = e->options.slot_count,
        .notify = {.say = shunt_engine_notice, .ctx = e},
    };

    return shunt_store_open(&e->store, &e->arena, &cfg, err);
}

static int place_inbox(struct shunt *e, struct shunt_region *inbox, struct shunt_error *err)
{
    const bool shared = e->node_count > 1 && e->options.transport->needs_shared_inbox;

    return shunt_region_map_inbox(
        inbox, &e->arena, shunt_exchange_inbox_bytes(&e->exchange.cfg, e->rank), shared, err);
}

static int place_memory(struct shunt *e, const uint32_t *rows_max, struct shunt_error *err)
{
    struct shunt_carve carve = {0};
    struct shunt_region inbox;
    void *base;
    void *kv;
    int rc;

    shunt_engine_carve(e, rows_max, &carve);
    rc = shunt_arena_alloc(&e->arena, carve.used, "activations and buffers", &base, err);
    if (!rc)
        rc = place_inbox(e, &inbox, err);
    if (!rc)
        rc = shunt_arena_alloc(&e->arena, e->options.footprint.kv_bytes, "the KV cache", &kv, err);
    if (rc)
        return rc;
    e->work = base;
    e->work_bytes = carve.used;
    carve = (struct shunt_carve){.base = base};
    shunt_engine_carve(e, rows_max, &carve);
    shunt_exchange_set_inbox(&e->exchange, &inbox);
    e->kv = kv;
    shunt_moe_init(&e->moe);
    shunt_forward_init(e);
    return 0;
}

static void planning_message(void *engine, uint32_t rank, uint32_t type, const void *data,
                             uint32_t bytes)
{
    struct shunt *e = engine;

    if (atomic_load(&e->planning_takes))
        shunt_planning_message(e->planning, rank, type, data, bytes);
}

static void control_tick(void *engine)
{
    struct shunt *e = engine;
    struct shunt_error why;

    if (!atomic_load(&e->planning_sends))
        return;
    if (shunt_store_check_file(e->store, &why))
        shunt_rack_fail(e->rack, &why);
    shunt_planning_tick(e->planning);
}

static int start_control(struct shunt *e, struct shunt_error *err)
{
    const struct shunt_rack_callbacks callbacks = {
        .ctx = e,
        .down = shunt_engine_down,
        .message = planning_message,
        .tick = control_tick,
    };

    return shunt_rack_start(e->rack, &callbacks, err);
}

/* Before this node says that it is ready it takes messages; it sends some when all are. */
static int open_planning(struct shunt *e, struct shunt_error *err)
{
    const struct shunt_planning_config cfg = {
        .rack = e->rack,
        .rank = e->rank,
        .node_count = e->node_count,
        .layer_count = e->model->arch.layer_count,
        .expert_count = e->model->arch.expert_count,
        .policy = e->options.placement,
        .interval_ns = e->options.cfg.plan_interval_ns,
        .capacity = e->options.slot_count * PLACED_SHARE_NUM / PLACED_SHARE_DEN,
        .activations = e->moe.activations,
    };
    int rc = shunt_planning_open(&e->planning, &cfg, err);

    if (!rc)
        atomic_store(&e->planning_takes, 1);
    return rc;
}

static int load_weights(struct shunt *e, const struct shunt_patience *patience,
                        struct shunt_error *err)
{
    const struct shunt_weights_loading how = {
        .model = e->model,
        .store = e->store,
        .arena = &e->arena,
        .kernels = e->kernels,
        .patience = patience,
    };

    return shunt_weights_load(&e->weights, &how, err);
}

static int open_exchange(struct shunt *e, const struct shunt_patience *patience,
                         struct shunt_error *err)
{
    /* The block with the buffers: slots, weights and what peers wrote are nobody's to send. */
    const struct shunt_region memory = {.base = e->work, .bytes = e->work_bytes, .fd = -1};
    struct shunt_stream streams[SHUNT_NODES_MAX];
    const struct shunt_transport_config link = {
        .streams = streams,
        .memory = &memory,
        .memory_count = 1,
        .put_timeout_ns = e->options.cfg.step_timeout_ns,
        .link = &e->options.cfg.link,
        .dead_after_ns = e->options.cfg.dead_after_ns,
        .patience = patience,
        .notify = {.say = shunt_engine_notice, .ctx = e},
    };

    e->progress = (struct shunt_progress){
        .exchange = &e->exchange,
        .store = e->store,
        .abort_fd = e->abort_fd,
        .abort = &e->abort,
        .step_timeout_ns = e->options.cfg.step_timeout_ns,
        .busy_poll_ns = e->options.cfg.busy_poll_ns,
        .lost_peer = SHUNT_NODES_MAX,
    };
    if (e->node_count == 1)
        return 0;
    shunt_rack_take_streams(e->rack, streams);
    return shunt_exchange_open(&e->exchange, e->options.transport, shunt_rack_nodes(e->rack), &link,
                               err);
}

static int start_engine(struct shunt *e, struct shunt_error *err)
{
    int rc;

    shunt_pool_set_hook(e->pool, shunt_progress_hook, &e->progress);
    shunt_engine_publish(e); /* who asks at once gets an answer */
    rc = shunt_thread_create(&e->thread, shunt_engine_main, e);
    if (rc)
        return shunt_error_set(err, rc, "cannot start the engine thread: %s", strerror(-rc));
    e->started = true;
    return 0;
}

/* Everything after the mesh stands. */
static int build(struct shunt *e, const struct shunt_patience *patience, struct shunt_error *err)
{
    uint32_t rows_max[SHUNT_NODES_MAX];
    int rc;

    e->options.transport = shunt_transport_get(shunt_rack_transport(e->rack));
    rc = look_around(e, rows_max, err);
    if (!rc)
        rc = settle_kernels(e, err);
    if (!rc)
        rc = shunt_options_fit(&e->options, e->model, rows_max, err);
    if (!rc)
        rc = shunt_pool_open(&e->pool, e->options.threads, err);
    /* Pinning slots and loading weights take their time, and heartbeats go on meanwhile. */
    if (!rc)
        rc = start_control(e, err);
    if (!rc)
        rc = open_store(e, err);
    if (!rc)
        rc = place_memory(e, rows_max, err);
    if (!rc)
        rc = open_planning(e, err);
    if (!rc)
        rc = load_weights(e, patience, err);
    if (!rc)
        rc = open_exchange(e, patience, err);
    if (!rc)
        rc = shunt_rack_wait_ready(e->rack, patience, err);
    if (!rc)
        atomic_store(&e->planning_sends, 1);
    if (!rc)
        rc = start_engine(e, err);
    return rc;
}

static void destroy(struct shunt *e)
{
    bool let_go;

    shunt_rack_close(e->rack); /* before what its callbacks touch */
    shunt_planning_close(e->planning);
    let_go = shunt_exchange_close(&e->exchange);
    shunt_pool_close(e->pool);
    let_go &= shunt_store_close(e->store);
    if (let_go) /* else somebody may still write into the arena */
        shunt_arena_fini(&e->arena);
    if (e->wake_fd >= 0)
        close(e->wake_fd);
    if (e->abort_fd >= 0)
        close(e->abort_fd);
    if (e->event_fd >= 0)
        close(e->event_fd);
    pthread_mutex_destroy(&e->mutex);
    free(e);
}

static int open_engine(struct shunt **out, const struct shunt_model *model,
                       const struct shunt_config *cfg, struct shunt_error *err)
{
    struct shunt *e = aligned_alloc(SHUNT_CACHE_LINE, shunt_align_up(sizeof(*e), SHUNT_CACHE_LINE));
    int rc;

    if (!e) {
        if (cfg->listen_fd >= 0)
            close(cfg->listen_fd);
        return shunt_error_set(err, -ENOMEM, "out of memory for the engine");
    }
    memset(e, 0, sizeof(*e));
    e->model = model;
    e->wake_fd = e->abort_fd = e->event_fd = -1;
    pthread_mutex_init(&e->mutex, NULL);
    rc = shunt_options_resolve(&e->options, model, cfg, err);
    if (!rc)
        rc = shunt_options_fit(&e->options, model, NULL, err);
    if (!rc) {
        e->rank = cfg->rank;
        e->node_count = cfg->node_count;
        e->serve_only = cfg->serve_only;
        e->context = e->options.cfg.context;
        e->sequence_count = e->options.cfg.sequences_max;
        rc = open_descriptors(e, err);
    }
    if (rc) {
        if (cfg->listen_fd >= 0)
            close(cfg->listen_fd);
    } else {
        rc = join_rack(e, cfg, err);
    }
    if (!rc) {
        const struct shunt_patience patience = {
            .deadline_ns = shunt_deadline_ns(cfg->ready_timeout_ns),
            .abort = &e->abort,
            .cancel_fd = &cfg->cancel_fd,
        };
        struct shunt_error why;

        rc = build(e, &patience, &why);
        if (rc && rc != -ECANCELED)
            shunt_rack_fail(e->rack, &why); /* the others need not wait for their deadline */
        if (rc && err)
            *err = why;
        if (rc && shunt_rack_down(e->rack))
            rc = shunt_rack_why(e->rack, err); /* the first reason, if a peer's was */
    }
    if (rc) {
        destroy(e);
        return rc;
    }
    *out = e;
    return 0;
}

int shunt_open(struct shunt **out, const struct shunt_model *model, const struct shunt_config *cfg,
               struct shunt_error *err)
{
    fenv_t callers;
    int rc = shunt_config_check(cfg, err); /* before anything of it is looked at, or closed */

    if (rc)
        return rc;
    /* What is computed here, and on the threads created here, which inherit it, must not depend on
     * the caller's rounding or flushing of denormals: kernels.h asks for this environment. */
    fegetenv(&callers);
    fesetenv(FE_DFL_ENV);
    rc = open_engine(out, model, cfg, err);
    fesetenv(&callers);
    return rc;
}

/* Waits for the engine thread to end by itself. Return: true when it has. */
static bool wait_finished(struct shunt *e, int64_t deadline_ns)
{
    while (!atomic_load(&e->finished)) {
        if (shunt_now_ns() >= deadline_ns)
            return false;
        usleep(2000);
    }
    return true;
}

void shunt_leave(struct shunt *e)
{
    atomic_store(&e->leaving, 1);
    shunt_engine_wake(e);
}

/* What ended the rack, or what this node found wrong after the end. */
static int why_down(struct shunt *e)
{
    int rc = shunt_rack_down(e->rack);

    pthread_mutex_lock(&e->mutex);
    if (!rc && e->down)
        rc = e->down_error.code;
    pthread_mutex_unlock(&e->mutex);
    return rc;
}

int shunt_close(struct shunt *e, int64_t timeout_ns)
{
    bool in_time, agreed;
    int rc;

    if (!e)
        return 0;
    for (uint32_t i = 0; i < e->sequence_count; i++)
        atomic_store(&e->sequences[i].cancel_id, atomic_load(&e->sequences[i].id));
    shunt_leave(e);
    in_time = wait_finished(e, shunt_deadline_ns(timeout_ns));
    if (!in_time)
        shunt_engine_abort(e);
    pthread_join(e->thread, NULL);
    rc = why_down(e);
    agreed = atomic_load(&e->agreed);
    shunt_rack_leave(e->rack, agreed);
    destroy(e);
    return rc || in_time || agreed ? rc : -ETIMEDOUT;
}
