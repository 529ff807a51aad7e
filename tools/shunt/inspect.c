/* SPDX-License-Identifier: Apache-2.0
 *
 * shunt inspect: what a model file holds, and what fits in how much memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

struct inspect_command {
    struct engine_options engine;
    bool tensors, experts;
};

static const struct option_help own_options[] = {
    {"--model", 'm', "FILE", "model file (GGUF); or without -m"},
    {"--tensors", 0, NULL, "list every tensor: type, dimensions, place in the file"},
    {"--experts", 0, NULL, "list the extents of every expert"},
    {"--nodes", 0, "N", "nodes of the rack the memory table is for (default 1)"},
    {"--ctx", 0, "N", "positions per prompt and answer it counts (default 2048, or the model's)"},
    {"--chunk", 0, "N", "prompt positions that go through a layer together"},
    {0},
};

static int take_argument(void *ctx, const char *name, const char *value)
{
    struct inspect_command *c = ctx;

    if (!name) {
        if (c->engine.model)
            return usage_error("inspect", "'%s': one model at a time", value);
        c->engine.model = value;
        return 0;
    }
    if (!strcmp(name, "--tensors"))
        c->tensors = true;
    else if (!strcmp(name, "--experts"))
        c->experts = true;
    else if (engine_option(&c->engine, "inspect", name, value) < 0)
        return EXIT_USAGE;
    return 0;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* "30.5 G", as models are named. */
static const char *count_text(uint64_t value, char *text, size_t bytes)
{
    static const char *const units[] = {"", " K", " M", " G", " T"};
    double v = (double)value;
    uint32_t unit = 0;

    for (; v >= 1000 && unit < 4; unit++)
        v /= 1000;
    snprintf(text, bytes, unit ? "%.2f%s" : "%.0f%s", v, units[unit]);
    return text;
}

static void print_model(const struct shunt_model_info *m)
{
    char all[32], experts[32], rest[32];

    printf("%s\n", m->path);
    printf("%-22s %s%s%s\n", "architecture", m->architecture, m->name[0] ? ": " : "", m->name);
    printf("%-22s %u, hidden %u, %u heads (%u kv) of %u, context %u\n", "layers", m->layer_count,
           m->hidden, m->head_count, m->kv_head_count, m->head_dim, m->context_max);
    printf("%-22s %u per layer, %u used, width %u\n", "experts", m->expert_count,
           m->expert_used_count, m->expert_ff);
    printf("%-22s %u ids, %s\n", "vocabulary", m->vocab_count, m->tokenizer);
    printf("%-22s %s\n", "parameters", count_text(m->parameter_count, all, sizeof(all)));
    printf("%-22s %s: experts %s, the rest %s\n", "weights",
           size_text(m->expert_bytes + m->dense_bytes, all, sizeof(all)),
           size_text(m->expert_bytes, experts, sizeof(experts)),
           size_text(m->dense_bytes, rest, sizeof(rest)));
    printf("%-22s %s at most, %llu experts in all\n", "one expert",
           size_text(m->expert_bytes_max, all, sizeof(all)),
           (unsigned long long)m->layer_count * m->expert_count);
    printf("%-22s ", "fingerprint");
    for (size_t i = 0; i < sizeof(m->fingerprint); i++)
        printf("%02x", m->fingerprint[i]);
    printf("\n");
}

/* ---- tensors by type */

#define TYPES_MAX 48

struct type_sum {
    const char *type;
    uint32_t count;
    uint64_t bytes;
};

static void print_types(const shunt_model *model, uint32_t tensor_count)
{
    struct type_sum sums[TYPES_MAX];
    uint32_t count = 0;

    for (uint32_t i = 0; i < tensor_count; i++) {
        struct shunt_tensor_info t = {.size = sizeof(t)};
        uint32_t s = 0;

        shunt_model_get_tensor(model, i, &t);
        while (s < count && strcmp(sums[s].type, t.type))
            s++;
        if (s == TYPES_MAX)
            continue;
        if (s == count)
            sums[count++] = (struct type_sum){.type = t.type};
        sums[s].count++;
        sums[s].bytes += t.bytes;
    }
    printf("\n%-22s %8s %12s\n", "tensors by type", "count", "MiB");
    for (uint32_t s = 0; s < count; s++)
        printf("%-22s %8u %12.1f\n", sums[s].type, sums[s].count, mib(sums[s].bytes));
}

static void print_tensors(const shunt_model *model, uint32_t tensor_count)
{
    printf("\n%-36s %-6s %16s %14s  %s\n", "tensor", "type", "offset", "bytes", "dimensions");
    for (uint32_t i = 0; i < tensor_count; i++) {
        struct shunt_tensor_info t = {.size = sizeof(t)};

        shunt_model_get_tensor(model, i, &t);
        printf("%-36s %-6s %16llu %14llu ", t.name, t.type, (unsigned long long)t.off,
               (unsigned long long)t.bytes);
        for (uint32_t d = 0; d < t.dim_count; d++)
            printf("%s%llu", d ? " x " : " ", (unsigned long long)t.dims[d]);
        printf("\n");
    }
}

/* ---- experts: where they lie */

static void print_extents(const shunt_model *model, uint32_t layer, uint32_t expert)
{
    struct shunt_extent e[3];

    shunt_model_get_expert(model, layer, expert, e);
    printf("%5u %6u", layer, expert);
    for (uint32_t p = 0; p < 3; p++)
        printf(" %16llu +%-10llu", (unsigned long long)e[p].off, (unsigned long long)e[p].len);
    printf("\n");
}

static void print_experts(const shunt_model *model, const struct shunt_model_info *m, bool all)
{
    printf("\n%5s %6s %16s %-11s %16s %-11s %16s %-11s\n", "layer", "expert", "gate at", "+bytes",
           "up at", "+bytes", "down at", "+bytes");
    for (uint32_t l = 0; l < m->layer_count; l++)
        for (uint32_t e = 0; e < m->expert_count; e++)
            if (all || (e == 0 && (l == 0 || l + 1 == m->layer_count)) ||
                (l + 1 == m->layer_count && e + 1 == m->expert_count))
                print_extents(model, l, e);
    if (!all)
        printf("(first and last; all of them with --experts)\n");
}

/* ---- memory */

static const uint32_t percents[] = {0, 10, 25, 40, 50, 75, 100}; /* 0: the minimum */

#define PERCENT_COUNT (sizeof(percents) / sizeof(percents[0]))

struct memory_table {
    uint32_t nodes, context;
    struct shunt_footprint rows[PERCENT_COUNT];
    uint64_t memory_mib[PERCENT_COUNT];
};

/* The footprint within the least memory that gives so many slots: what fits depends on the chunk,
 * which is chosen by memory, so the least is searched for. `row` has what the slots take with the
 * largest chunk. Return: as shunt_get_footprint. */
static int find_least(const shunt_model *model, struct shunt_config *cfg,
                      struct shunt_footprint *row, struct shunt_error *err)
{
    const uint32_t slots = row->slot_count;
    uint64_t low = 0, high = row->total_bytes + (1 << 20);

    cfg->slot_count = cfg->slot_percent = 0;
    while (low < high) {
        struct shunt_footprint f = {.size = sizeof(f)};
        int rc;

        cfg->memory_bytes = low + (high - low) / 2;
        if (cfg->memory_bytes == 0)
            return 0;
        rc = shunt_get_footprint(model, cfg, &f, err);
        if (rc && rc != -ENOMEM)
            return rc;
        if (rc || f.slot_count < slots) {
            low = cfg->memory_bytes + 1;
        } else {
            high = cfg->memory_bytes;
            *row = f;
        }
    }
    return 0;
}

/* A whole number of MiB from which so many slots follow, also for a run, which touches a little
 * more of the libraries than this command does: 250 KiB in the mean, and up to 540 as what the
 * loader leaves resident differs from one process to the next. Not any number above the least:
 * where it lets the chunk grow, the slots shrink. */
static uint64_t round_up(const shunt_model *model, const struct shunt_config *cfg,
                         const struct shunt_footprint *row)
{
    const uint64_t more = 768u << 10;
    uint64_t memory = (row->total_bytes + more + (1u << 20) - 1) >> 20;
    struct shunt_config at = *cfg;

    at.slot_count = at.slot_percent = 0;
    for (uint32_t steps = 0; steps < 64; steps++, memory++) {
        struct shunt_footprint most = {.size = sizeof(most)}, least = most;
        int rc;

        at.memory_bytes = memory << 20;
        rc = shunt_get_footprint(model, &at, &most, NULL);
        at.memory_bytes -= more;
        if (!rc)
            rc = shunt_get_footprint(model, &at, &least, NULL);
        if (!rc && most.slot_count >= row->slot_count && least.slot_count >= row->slot_count)
            break;
    }
    return memory;
}

/* Return: 0 or EXIT_FAILED, said. */
static int measure_memory(const shunt_model *model, const struct engine_options *o,
                          struct memory_table *table)
{
    struct shunt_config cfg = o->cfg;
    struct shunt_error err;
    const char *rack[NODES_MAX];

    for (uint32_t n = 0; n < NODES_MAX; n++)
        rack[n] = "127.0.0.1:1";
    cfg.rack = rack;
    cfg.node_count = o->nodes ? o->nodes : 1;
    cfg.sequences_max = 1;
    table->nodes = cfg.node_count;
    table->context = cfg.context;
    for (size_t i = 0; i < PERCENT_COUNT; i++) {
        cfg.slot_count = percents[i] ? 0 : 2;
        cfg.slot_percent = percents[i];
        /* The question is how much it takes, not whether it is there. */
        cfg.memory_bytes = UINT64_MAX / 4;
        table->rows[i].size = sizeof(table->rows[i]);
        if (shunt_get_footprint(model, &cfg, &table->rows[i], &err) ||
            find_least(model, &cfg, &table->rows[i], &err)) {
            complain("%s", err.text);
            return EXIT_FAILED;
        }
        table->memory_mib[i] = round_up(model, &cfg, &table->rows[i]);
    }
    return 0;
}

static void print_memory(const struct memory_table *table)
{
    const struct shunt_footprint *f = &table->rows[0];

    printf("\nmemory per node (%u node%s, one prompt of up to %u positions)\n", table->nodes,
           table->nodes > 1 ? "s" : "", table->context);
    printf("%8s %8s %12s %12s %8s\n", "slots", "count", "slots MiB", "--memory MiB", "chunk");
    for (size_t i = 0; i < PERCENT_COUNT; i++) {
        const struct shunt_footprint *row = &table->rows[i];
        char label[16] = "minimum";

        if (percents[i])
            snprintf(label, sizeof(label), "%u %%", percents[i]);
        printf("%8s %8u %12.1f %12llu %8u\n", label, row->slot_count, mib(row->slot_bytes),
               (unsigned long long)table->memory_mib[i], row->chunk);
    }
    printf(
        "(besides the slots: non-expert weights %.1f, KV cache %.1f MiB; buffers, of %.1f MiB for "
        "the minimum, by the chunk)\n",
        mib(f->dense_bytes), mib(f->kv_bytes), mib(f->work_bytes));
}

static int inspect(const struct inspect_command *c)
{
    struct shunt_model_info m = {.size = sizeof(m)};
    struct engine_options o = c->engine;
    struct memory_table memory;
    struct shunt_error err;
    shunt_model *model;
    int rc;

    if (shunt_model_open(&model, c->engine.model, &err)) {
        complain("%s", err.text);
        return EXIT_FAILED;
    }
    shunt_model_get_info(model, &m);
    if (o.cfg.context > m.context_max)
        o.cfg.context = m.context_max;
    rc = measure_memory(model, &o, &memory);
    if (!rc) {
        print_model(&m);
        print_types(model, m.tensor_count);
        if (c->tensors)
            print_tensors(model, m.tensor_count);
        print_experts(model, &m, c->experts);
        print_memory(&memory);
    }
    shunt_model_close(model);
    return rc;
}

int cmd_inspect(int argc, char **argv)
{
    struct inspect_command c = {0};
    int rc;

    engine_options_init(&c.engine);
    rc = parse_arguments(argc, argv, "inspect",
                         "inspect MODEL [OPTIONS]\n\n"
                         "Shows a model's architecture, its tensors by type, where its experts lie "
                         "and what\nfits in how much memory. Reads the header and samples of the "
                         "weights.",
                         own_options, NULL, take_argument, &c);
    if (!rc && !c.engine.model)
        rc = usage_error("inspect", "no model");
    if (!rc)
        rc = inspect(&c);
    engine_options_fini(&c.engine);
    return rc < 0 ? EXIT_DONE : rc;
}
