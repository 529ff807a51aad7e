/* SPDX-License-Identifier: Apache-2.0
 *
 * Options: their defaults, what they mean, and how much of what fits into memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/cpu.h"
#include "runtime/cluster/address.h"
#include "runtime/engine/engine_impl.h"
#include "transport/verbs/describe.h"

#define CONTEXT_DEFAULT   2048u
#define SEQUENCES_DEFAULT 4u
#define CHUNK_DEFAULT     512u
#define CHUNK_MIN         8u

/* Stacks, thread-local storage and the allocator's own needs, as far as they become resident. */
#define THREAD_BYTES  (160u << 10)
#define PROCESS_BYTES (2u << 20)

/* Longer than a message within the machine takes, shorter than the sleep and wake-up it saves are
 * worth to others on the same processor. */
#define BUSY_POLL_DEFAULT_NS (20 * SHUNT_NS_PER_US)

/* Beyond the silence that makes a peer suspect, by what two signs of life that got lost take. */
#define DEAD_AFTER_MIN_NS (200 * SHUNT_NS_PER_MS)

/* Of a stream: what OpenSSL keeps, a record each way included; and of itself. */
#define TLS_STREAM_BYTES (64u << 10)
#define TLS_BYTES        (1u << 20)

#define RDMA_PORTS_MAX 16

#define KV_BYTES_MAX (1ull << 60)

/* Of what is free, where no limit is given: the rest is for everybody else. */
#define MACHINE_SHARE_PERCENT 85u

/* A chunk chosen by memory takes at most this part of what buffers and slots share, and beyond that
 * what slots for every expert leave. So where a little more memory doubles the chunk, the buffers
 * grow by half of that part at most, and the slots lose no more than a fifteenth: 1/16 of the room,
 * of which they had 15/16. */
#define WORK_SHARE_DIVISOR 8u

void shunt_config_init(struct shunt_config *cfg)
{
    *cfg = (struct shunt_config){
        .size = sizeof(*cfg),
        .node_count = 1,
        .listen_fd = -1,
        .cancel_fd = -1,
        .transport = "auto",
        .join_timeout_ns = 60 * SHUNT_NS_PER_S,
        .ready_timeout_ns = 1800 * SHUNT_NS_PER_S,
        .step_timeout_ns = 120 * SHUNT_NS_PER_S,
        .dead_after_ns = 500 * SHUNT_NS_PER_MS,
        .busy_poll_ns = BUSY_POLL_DEFAULT_NS,
        .context = CONTEXT_DEFAULT,
        .sequences_max = SEQUENCES_DEFAULT,
        .kernels = "auto",
        .io = "auto",
        .io_mode = "auto",
        .prefetch = true,
        .placement = "prism",
        .plan_interval_ns = 10 * SHUNT_NS_PER_S,
    };
}

/* ---- names */

struct choice {
    const char *name;
    int value;
};

static int choose(const char *option, const char *name, const struct choice *choices,
                  uint32_t count, int *value, struct shunt_error *err)
{
    char known[128] = "";

    for (uint32_t i = 0; i < count; i++) {
        if (name && !strcmp(name, choices[i].name)) {
            *value = choices[i].value;
            return 0;
        }
        if (i > 0)
            strncat(known, ", ", sizeof(known) - strlen(known) - 1);
        strncat(known, choices[i].name, sizeof(known) - strlen(known) - 1);
    }
    return shunt_error_set(err, -EINVAL, "%s: '%s' is none of %s", option, name ? name : "", known);
}

#define CHOOSE(option, name, choices, value, err)                                                  \
    choose(option, name, choices, sizeof(choices) / sizeof((choices)[0]), value, err)

/* Whether this node's address is that of an RDMA NIC. Not of one in software: that is for trying,
 * and slower than TCP. */
static bool has_rdma(const struct shunt_config *c)
{
    struct verbs_port ports[RDMA_PORTS_MAX];
    struct shunt_address address;
    char text[64];
    int count;

    if (c->node_count < 2 || !c->rack || !c->rack[c->rank] ||
        shunt_address_parse(&address, c->rack[c->rank], NULL) ||
        shunt_address_is_loopback(&address) ||
        getnameinfo((const struct sockaddr *)&address.addr, address.len, text, sizeof(text), NULL,
                    0, NI_NUMERICHOST))
        return false;
    count = verbs_list_ports(ports, RDMA_PORTS_MAX);
    for (int i = 0; i < count && i < RDMA_PORTS_MAX; i++)
        if (ports[i].usable && !ports[i].software && !strcmp(ports[i].address, text))
            return true;
    return false;
}

/* What "auto" offers to the rack, which takes the best that all nodes offer. */
static uint32_t auto_transports(const struct shunt_config *c)
{
    return 1u << SHUNT_TRANSPORT_TCP | (has_rdma(c) ? 1u << SHUNT_TRANSPORT_VERBS : 0);
}

static int resolve_transports(struct shunt_options *o, struct shunt_error *err)
{
    struct choice choices[1 + SHUNT_TRANSPORT_KINDS] = {{"auto", SHUNT_TRANSPORT_KINDS}};
    uint32_t count = 1;
    int kind = 0, rc;

    for (uint32_t k = 0; k < SHUNT_TRANSPORT_KINDS; k++) {
        const struct shunt_transport_ops *ops = shunt_transport_get((enum shunt_transport_kind)k);

        choices[count++] = (struct choice){ops->name, (int)k};
    }
    rc = choose("transport", o->cfg.transport, choices, count, &kind, err);
    if (rc)
        return rc;
    if (kind < SHUNT_TRANSPORT_KINDS) {
        const char *absent = shunt_transport_get((enum shunt_transport_kind)kind)->absent;

        if (absent)
            return shunt_error_set(err, -ENOTSUP, "transport %s: %s", o->cfg.transport, absent);
    }
    o->transports = kind == SHUNT_TRANSPORT_KINDS ? auto_transports(&o->cfg) : 1u << kind;
    return o->cfg.encrypt ? shunt_transports_encrypted(&o->transports, o->cfg.transport, err) : 0;
}

/* Nobody knows yet which it will be: the one that takes most. Where nodes share their inboxes, what
 * a node touches of its peers' counts as its own. */
static uint64_t transport_footprint(const struct shunt_options *o,
                                    const struct shunt_exchange_config *exchange)
{
    uint64_t most = 0;

    for (uint32_t k = 0; k < SHUNT_TRANSPORT_KINDS; k++) {
        const struct shunt_transport_ops *ops = shunt_transport_get((enum shunt_transport_kind)k);
        uint64_t bytes;

        if (!(o->transports >> k & 1))
            continue;
        bytes = ops->footprint(o->cfg.node_count);
        if (ops->needs_shared_inbox)
            bytes += shunt_exchange_reach_bytes(exchange);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Control streams, and data streams too where they are encrypted or need to be. */
static uint64_t tls_footprint(const struct shunt_options *o)
{
    if (!o->cfg.key_file && !o->cfg.cert_file)
        return 0;
    return TLS_BYTES + 2ull * o->cfg.node_count * TLS_STREAM_BYTES;
}

static int resolve_names(struct shunt_options *o, struct shunt_error *err)
{
    static const struct choice ios[] = {{"auto", 0}, {"uring", 1}, {"pread", 2}};
    static const struct choice modes[] = {
        {"auto", SHUNT_IO_AUTO}, {"direct", SHUNT_IO_DIRECT}, {"buffered", SHUNT_IO_BUFFERED}};
    static const struct choice placements[] = {{"prism", SHUNT_PLACEMENT_PRISM},
                                               {"spread", SHUNT_PLACEMENT_SPREAD},
                                               {"off", SHUNT_PLACEMENT_OFF}};
    static const struct shunt_expert_io_ops *const io_ops[] = {NULL, &shunt_io_uring,
                                                               &shunt_io_pread};
    enum shunt_kernel_level level;
    const char *kernels = o->cfg.kernels ? o->cfg.kernels : "";
    int io = 0, mode = 0, placement = 0;
    int rc = CHOOSE("io", o->cfg.io, ios, &io, err);

    if (!rc)
        rc = CHOOSE("io mode", o->cfg.io_mode, modes, &mode, err);
    if (!rc)
        rc = resolve_transports(o, err);
    if (!rc)
        rc = CHOOSE("placement", o->cfg.placement, placements, &placement, err);
    if (rc)
        return rc;
    o->io = io_ops[io];
    o->io_mode = (enum shunt_io_mode)mode;
    o->placement = (enum shunt_placement_policy)placement;
    o->kernel_levels = shunt_kernels_available();
    if (!strcmp(kernels, "auto"))
        return 0;
    if (shunt_kernels_from_name(kernels, &level))
        return shunt_error_set(err, -EINVAL, "kernels: '%s' is none of auto, ref, avx2", kernels);
    o->kernel_levels &= 1u << level;
    if (o->kernel_levels == 0)
        return shunt_error_set(
            err, -ENOTSUP, "kernels: this processor or this build has no %s; use auto", kernels);
    return 0;
}

/* ---- numbers */

static int check_range(const char *option, int64_t value, int64_t min, int64_t max,
                       struct shunt_error *err)
{
    if (value >= min && value <= max)
        return 0;
    return shunt_error_set(err, -EINVAL, "%s: %" PRId64 " is not between %" PRId64 " and %" PRId64,
                           option, value, min, max);
}

static int check_link(const struct shunt_link_options *l, struct shunt_error *err)
{
    int rc = check_range("port of the RDMA device", l->port, 0, 255, err);

    if (!rc)
        rc = check_range("GID index", (int64_t)l->gid_index - 1, -1, 65535, err);
    if (!rc && l->mtu && (l->mtu < 256 || l->mtu > 4096 || l->mtu & (l->mtu - 1)))
        rc = shunt_error_set(err, -EINVAL, "MTU: %u is none of 256, 512, 1024, 2048 and 4096",
                             l->mtu);
    if (!rc)
        rc = check_range("traffic class", (int64_t)l->tclass - 1, -1, 255, err);
    if (!rc)
        rc = check_range("service level", (int64_t)l->sl - 1, -1, 7, err);
    if (!rc)
        rc = check_range("queue pair timeout", l->qp_timeout, 0, 31, err);
    return rc ? rc : check_range("retries", (int64_t)l->retry_count - 1, -1, 7, err);
}

static int check_numbers(const struct shunt_options *o, const struct shunt_model *model,
                         struct shunt_error *err)
{
    const struct shunt_config *c = &o->cfg;
    const struct shunt_arch *a = &model->arch;
    int64_t experts = (int64_t)a->layer_count * a->expert_count;
    int rc = check_range("nodes", c->node_count, 1, SHUNT_NODES_MAX, err);

    if (!rc)
        rc = check_range("rank", c->rank, 0, (int64_t)c->node_count - 1, err);
    if (!rc)
        rc = check_range("local nodes", c->local_nodes, 0, SHUNT_NODES_MAX, err);
    if (!rc)
        rc = check_range("context", c->context, 1, a->context_max, err);
    if (!rc)
        rc = check_range("sequences", c->sequences_max, 1, SHUNT_SEQUENCES_MAX, err);
    if (!rc)
        rc = check_range("chunk", c->chunk, 0, SHUNT_ROWS_MAX, err);
    if (!rc)
        rc = check_range("threads", c->threads, 0, SHUNT_POOL_THREADS_MAX, err);
    if (!rc)
        rc = check_range("slots in percent", c->slot_percent, 0, 100, err);
    if (!rc && c->slot_count && (c->slot_count < SHUNT_SLOTS_MIN || c->slot_count > experts))
        rc = shunt_error_set(err, -EINVAL,
                             "slots: %u is not between %u and %" PRId64
                             ", the model's experts; give a count that is, or a percentage",
                             c->slot_count, SHUNT_SLOTS_MIN, experts);
    if (!rc && c->slot_count && c->slot_percent)
        rc = shunt_error_set(err, -EINVAL, "slots are given as a count and in percent; which?");
    if (!rc)
        rc = check_range("busy poll in ns", c->busy_poll_ns, 0, 10 * SHUNT_NS_PER_S, err);
    if (!rc)
        rc = check_link(&c->link, err);
    if (!rc && c->node_count > 1 && !c->rack)
        rc = shunt_error_set(err, -EINVAL, "a rack of %u nodes needs the address of each",
                             c->node_count);
    if (!rc && (c->join_timeout_ns <= 0 || c->ready_timeout_ns <= 0 || c->step_timeout_ns <= 0 ||
                c->dead_after_ns < DEAD_AFTER_MIN_NS || c->plan_interval_ns <= 0))
        rc = shunt_error_set(err, -EINVAL,
                             "timeouts must be positive, and a peer's silence at least 0.2 s");
    return rc;
}

int shunt_config_check(const struct shunt_config *cfg, struct shunt_error *err)
{
    if (cfg->size == sizeof(*cfg))
        return 0;
    return shunt_error_set(err, -EINVAL,
                           "struct shunt_config has %zu bytes here and %zu there; call "
                           "shunt_config_init, and compile against the installed shunt.h",
                           sizeof(*cfg), cfg->size);
}

/* What the caller has left to the machine. Measured once: later the nodes that share it have taken
 * some of theirs. */
static void share_machine(struct shunt_options *o)
{
    uint32_t nodes = o->cfg.local_nodes ? o->cfg.local_nodes : 1;

    o->threads = o->cfg.threads;
    if (o->threads == 0)
        o->threads = shunt_cpu_count() / nodes;
    if (o->threads == 0)
        o->threads = 1;
    if (o->threads > SHUNT_POOL_THREADS_MAX)
        o->threads = SHUNT_POOL_THREADS_MAX;
    o->memory_limit = o->cfg.memory_bytes;
    if (o->memory_limit == 0)
        o->memory_limit = shunt_memory_resident() +
                          shunt_memory_available() / nodes / 100 * MACHINE_SHARE_PERCENT;
}

int shunt_options_resolve(struct shunt_options *o, const struct shunt_model *model,
                          const struct shunt_config *cfg, struct shunt_error *err)
{
    int rc;

    memset(o, 0, sizeof(*o));
    o->cfg = *cfg;
    if (cfg->serve_only) { /* no rows of its own: nothing to keep for them */
        o->cfg.context = 1;
        o->cfg.sequences_max = 1;
        o->cfg.chunk = 1;
    }
    /* Without a word from the caller the context is the usual one, or the model's if that is less.
     */
    if (cfg->context == CONTEXT_DEFAULT && model->arch.context_max < CONTEXT_DEFAULT)
        o->cfg.context = model->arch.context_max;
    rc = resolve_names(o, err);
    if (!rc)
        rc = check_numbers(o, model, err);
    if (rc)
        return rc;
    share_machine(o);
    return 0;
}

/* ---- memory */

static uint64_t pages(uint64_t bytes)
{
    return shunt_align_up(bytes, SHUNT_ARENA_PAGE);
}

/* Bytes of activations, buffers and tables for a chunk. */
static uint64_t measure_work(const struct shunt_options *o, const struct shunt_model *model,
                             const uint32_t *rows_max, uint32_t chunk)
{
    struct shunt_carve carve = {0};
    uint32_t rows[SHUNT_NODES_MAX];
    struct shunt e = {.model = model, .options = *o, .node_count = o->cfg.node_count};
    uint64_t keys = (uint64_t)model->arch.layer_count * model->arch.expert_count;
    uint64_t queues = shunt_rack_buffer_bytes(
        o->cfg.node_count,
        shunt_planning_message_max(model->arch.layer_count, model->arch.expert_count));

    e.rank = o->cfg.rank;
    e.context = o->cfg.context;
    e.sequence_count = o->cfg.sequences_max;
    e.options.chunk = chunk;
    e.options.rows_max = chunk > o->cfg.sequences_max ? chunk : o->cfg.sequences_max;
    for (uint32_t n = 0; n < e.node_count; n++)
        rows[n] = rows_max && n != e.rank ? rows_max[n] : e.options.rows_max;
    shunt_engine_carve(&e, rows, &carve);
    if (e.node_count > 1)
        queues += transport_footprint(o, &e.exchange.cfg) + tls_footprint(o);
    /* Residency and placement tables, and on rank 0 the planner's. */
    return pages(carve.used) + pages(shunt_exchange_inbox_bytes(&e.exchange.cfg, e.rank)) + queues +
           keys * 64 + (e.rank == 0 ? keys * e.node_count * 20 : 0);
}

/* More than any machine has where the product does not fit: the limits of an architecture are wide
 * apart from each other. */
static uint64_t kv_bytes(const struct shunt_options *o, const struct shunt_arch *a)
{
    const uint64_t factors[] = {o->cfg.sequences_max, a->layer_count, a->kv_head_count,
                                o->cfg.context,       a->head_dim,    2 * sizeof(float)};
    uint64_t bytes = 1;

    for (size_t i = 0; i < sizeof(factors) / sizeof(factors[0]); i++)
        if (__builtin_mul_overflow(bytes, factors[i], &bytes) || bytes > KV_BYTES_MAX)
            return KV_BYTES_MAX;
    return bytes;
}

static uint64_t slot_bytes(const struct shunt_model *model, uint32_t slots)
{
    struct shunt_slot_plan plan;

    shunt_store_plan(model, slots, &plan);
    return plan.total_bytes + (uint64_t)plan.class_count * SHUNT_ARENA_PAGE +
           slots * 192ull; /* a slot's entry in the table */
}

/* The most slots that fit into `room`; 0 when not even the minimum does. */
static uint32_t slots_that_fit(const struct shunt_model *model, uint64_t room)
{
    uint32_t low = 0, high = model->arch.layer_count * model->arch.expert_count;

    while (low < high) {
        uint32_t middle = high - (high - low) / 2;

        if (middle < SHUNT_SLOTS_MIN || slot_bytes(model, middle) <= room)
            low = middle;
        else
            high = middle - 1;
    }
    return low >= SHUNT_SLOTS_MIN && slot_bytes(model, low) <= room ? low : 0;
}

static int does_not_fit(const struct shunt_footprint *f, uint64_t limit, uint64_t slots_need,
                        struct shunt_error *err)
{
    const double mib = 1024.0 * 1024.0;
    const uint64_t need =
        f->process_bytes + f->dense_bytes + f->kv_bytes + f->work_bytes + slots_need;
    char given[32];

    if (limit >> 20)
        snprintf(given, sizeof(given), "%" PRIu64 " MiB", limit >> 20);
    else
        snprintf(given, sizeof(given), "%" PRIu64 " bytes", limit);
    return shunt_error_set(
        err, -ENOMEM,
        "%" PRIu64
        " MiB of memory are needed, and %s given: process %.1f, non-expert weights %.1f, "
        "KV cache %.1f, activations and buffers %.1f, slots at least %.1f MiB. Raise --memory, or "
        "lower --ctx, --chunk, --slots or the number of prompts",
        (need + (1 << 20) - 1) >> 20, given, (double)f->process_bytes / mib,
        (double)f->dense_bytes / mib, (double)f->kv_bytes / mib, (double)f->work_bytes / mib,
        (double)slots_need / mib);
}

static uint32_t wanted_slots(const struct shunt_config *c, const struct shunt_arch *a)
{
    uint64_t experts = (uint64_t)a->layer_count * a->expert_count;
    uint64_t slots = c->slot_count;

    if (c->slot_percent)
        slots = (experts * c->slot_percent + 99) / 100;
    if (slots && slots < SHUNT_SLOTS_MIN)
        slots = SHUNT_SLOTS_MIN;
    return (uint32_t)slots;
}

/* `room`: for buffers and slots together, of which the slots need `slots_need` at least. Return:
 * the chunk. */
static uint32_t choose_chunk(const struct shunt_options *o, const struct shunt_model *model,
                             uint64_t room, uint64_t slots_need)
{
    const uint64_t left = room > slots_need ? room - slots_need : 0;
    const uint64_t share = room / WORK_SHARE_DIVISOR;
    const uint64_t all = slot_bytes(model, model->arch.layer_count * model->arch.expert_count);
    /* With slots that are given there is nothing to share. */
    uint64_t most = o->slot_count || left < share ? left : share;
    uint32_t chunk = CHUNK_DEFAULT < o->cfg.context ? CHUNK_DEFAULT : o->cfg.context;

    if (o->slot_count == 0 && room > all && room - all > most)
        most = room - all;
    while (chunk > CHUNK_MIN && measure_work(o, model, NULL, chunk) > most)
        chunk = chunk / 2 > CHUNK_MIN ? chunk / 2 : CHUNK_MIN;
    return chunk;
}

int shunt_options_fit(struct shunt_options *o, const struct shunt_model *model,
                      const uint32_t *rows_max, struct shunt_error *err)
{
    struct shunt_footprint *f = &o->footprint;
    uint64_t resident = shunt_memory_resident();
    uint64_t limit = o->memory_limit;
    uint64_t fixed, slots_need;
    int rc;

    f->size = sizeof(*f);
    f->process_bytes = resident + PROCESS_BYTES + (o->threads + 3ull) * THREAD_BYTES;
    rc = shunt_weights_measure(model, &f->dense_bytes, err);
    if (rc)
        return rc;
    f->dense_bytes = pages(f->dense_bytes);
    f->kv_bytes = pages(kv_bytes(o, &model->arch));
    fixed = f->process_bytes + f->dense_bytes + f->kv_bytes;
    o->slot_count = wanted_slots(&o->cfg, &model->arch);
    slots_need = slot_bytes(model, o->slot_count ? o->slot_count : SHUNT_SLOTS_MIN);
    if (!rows_max) { /* once chosen, a chunk stays: the peers have been told */
        o->chunk = o->cfg.chunk;
        if (o->chunk == 0)
            o->chunk = choose_chunk(o, model, limit > fixed ? limit - fixed : 0, slots_need);
        o->rows_max = o->chunk > o->cfg.sequences_max ? o->chunk : o->cfg.sequences_max;
    }
    f->work_bytes = measure_work(o, model, rows_max, o->chunk);
    f->chunk = o->chunk;
    fixed += f->work_bytes;
    if (fixed + slots_need > limit)
        return does_not_fit(f, limit, slots_need, err);
    if (o->slot_count == 0)
        o->slot_count = slots_that_fit(model, limit - fixed);
    f->slot_count = o->slot_count;
    f->slot_bytes = slot_bytes(model, o->slot_count);
    f->total_bytes = fixed + f->slot_bytes;
    return 0;
}

int shunt_get_footprint(const shunt_model *model, const struct shunt_config *cfg,
                        struct shunt_footprint *footprint, struct shunt_error *err)
{
    struct shunt_options o;
    int rc;

    if (footprint->size != sizeof(*footprint))
        return shunt_error_set(err, -EINVAL, "struct shunt_footprint has another size here");
    rc = shunt_config_check(cfg, err);
    if (!rc)
        rc = shunt_options_resolve(&o, model, cfg, err);
    if (!rc)
        rc = shunt_options_fit(&o, model, NULL, err);
    if (!rc)
        *footprint = o.footprint;
    return rc;
}
