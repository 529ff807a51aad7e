/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* A layer's expert, and the next one. */
#define SLOTS_MIN 2

const struct option_help engine_options_help[] = {
    {"--model", 'm', "FILE", "model file (GGUF)"},
    {"--nodes", 0, "N", "run N nodes as N processes on this machine"},
    {"--rank", 0, "R", "this node's place in --rack, from 0"},
    {"--rack", 0, "HOST:PORT,...", "the address of every node, the same list on each"},
    {"--port", 0, "P", "of a rack that srun, mpirun or torchrun has started (default 7170)"},
    {"--master", 0, "HOST", "where its rank 0 runs, if the launcher does not say"},
    {"--key-file", 0, "FILE", "the rack's key: openssl rand -hex 32, readable by its owner only"},
    {"--cert", 0, "FILE", "or this node's certificate, with"},
    {"--cert-key", 0, "FILE", "its private key, and"},
    {"--ca", 0, "FILE", "the authority that has signed every node's"},
    {"--encrypt", 0, NULL, "rows in TLS as well, over TCP"},
    {"--slots", 0, "40%|N", "experts held in memory per node (default: what --memory allows)"},
    {"--memory", 0, "SIZE",
     "resident memory per node, such as 2G (default: its part of what is free)"},
    {"--ctx", 0, "N", "positions per prompt and answer (default 2048, or the model's)"},
    {"--chunk", 0, "N", "prompt positions that go through a layer together"},
    {"--threads", 't', "N", "compute threads per node (default: its part of the processors)"},
    {"--kernels", 0, "auto|ref|avx2", "instruction set of the kernels"},
    {"--prefetch", 0, "on|off", "read the next layer's probable experts ahead (default on)"},
    {"--placement", 0, "prism|spread|off", "which experts stay where (default prism)"},
    {"--plan-interval", 0, "S", "seconds between two placements (default 10)"},
    {"--transport", 0, "auto|tcp|shm|verbs", "how rows travel between nodes"},
    {"--ib-dev", 0, "DEV[:PORT],...",
     "RDMA devices, one per rail (default: by the peers' addresses)"},
    {"--ib-port", 0, "N", "port of devices named without one (default 1)"},
    {"--gid-index", 0, "N", "a RoCE v2 GID of the port (default: that of the address)"},
    {"--mtu", 0, "BYTES", "256, 512, 1024, 2048 or 4096 (default: the port's)"},
    {"--tclass", 0, "N", "traffic class of RDMA packets, from 0 to 255"},
    {"--sl", 0, "N", "service level, from 0 to 7"},
    {"--qp-timeout", 0, "N", "retry after 4.096 us * 2^N (default: retries outlast --dead-after)"},
    {"--retry-count", 0, "N", "retries of RDMA, from 0 to 7 (default 7)"},
    {"--busy-poll", 0, "US",
     "microseconds of polling before a wait for a peer sleeps (default 20)"},
    {"--io", 0, "auto|uring|pread", "how experts are read"},
    {"--io-mode", 0, "auto|direct|buffered", "past the page cache, or through it"},
    {"--join-timeout", 0, "S", "wait so long for the other nodes (default 60)"},
    {"--ready-timeout", 0, "S", "and so long until all have loaded their weights (default 1800)"},
    {"--step-timeout", 0, "S", "and so long for a message within a step (default 120)"},
    {"--dead-after", 0, "S", "a node that is silent so long is dead (default 0.5)"},
    {0},
};

static const struct option_help *find_option(const struct option_help *options, const char *name,
                                             size_t len, char letter)
{
    for (; options && options->name; options++)
        if (letter ? options->letter == letter
                   : strlen(options->name) == len && !strncmp(options->name, name, len))
            return options;
    return NULL;
}

/* ---- values */

bool parse_count(const char *text, uint64_t max, uint64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoull(text, &end, 10);
    return isdigit((unsigned char)text[0]) && *end == '\0' && errno == 0 && *value <= max;
}

bool parse_size(const char *text, uint64_t *bytes)
{
    char *end;
    double value;
    int shift = 0;

    errno = 0;
    value = strtod(text, &end);
    if (!isdigit((unsigned char)text[0]) || errno)
        return false;
    switch (toupper((unsigned char)*end)) {
    case 'T':
        shift += 10; /* fall through */
    case 'G':
        shift += 10; /* fall through */
    case 'M':
        shift += 10; /* fall through */
    case 'K':
        shift += 10;
        end++;
    }
    if (!strcmp(end, "iB") || !strcmp(end, "B"))
        end += strlen(end);
    value *= (double)(1ull << shift);
    if (*end || value >= 1e18)
        return false;
    *bytes = (uint64_t)value;
    return true;
}

bool parse_float(const char *text, float *value)
{
    char *end;

    *value = strtof(text, &end);
    return end != text && *end == '\0' && isfinite(*value);
}

bool parse_seconds(const char *text, int64_t *ns)
{
    char *end;
    double value;

    errno = 0;
    value = strtod(text, &end);
    if (!(isdigit((unsigned char)text[0]) || text[0] == '.') || errno || end == text ||
        (*end && strcmp(end, "s")) || !(value > 0) || value > 1e8)
        return false;
    *ns = (int64_t)(value * 1e9);
    return true;
}

static bool parse_switch(const char *text, bool *on)
{
    *on = !strcmp(text, "on");
    return *on || !strcmp(text, "off");
}

static bool parse_slots(struct shunt_config *cfg, const char *text)
{
    size_t len = strlen(text);
    uint64_t value;
    char number[16];

    if (len > 1 && len < sizeof(number) && text[len - 1] == '%') {
        memcpy(number, text, len - 1);
        number[len - 1] = '\0';
        cfg->slot_count = 0;
        if (!parse_count(number, 100, &value) || value == 0)
            return false;
        cfg->slot_percent = (uint32_t)value;
        return true;
    }
    cfg->slot_percent = 0;
    if (!parse_count(text, UINT32_MAX, &value) || value < SLOTS_MIN)
        return false;
    cfg->slot_count = (uint32_t)value;
    return true;
}

int take_count(const char *command, const char *name, const char *value, uint64_t min, uint64_t max,
               uint64_t *number)
{
    if (parse_count(value, max, number) && *number >= min)
        return 0;
    return usage_error(command, "%s: '%s' is no number from %" PRIu64 " to %" PRIu64, name, value,
                       min, max);
}

int take_busy_poll(const char *command, const char *value, int64_t *ns)
{
    uint64_t us;
    int rc = take_count(command, "--busy-poll", value, 0, 10000000, &us);

    if (!rc)
        *ns = (int64_t)us * 1000;
    return rc;
}

const char *given_link_option(const struct shunt_link_options *link)
{
    return link->device        ? "--ib-dev"
           : link->port        ? "--ib-port"
           : link->gid_index   ? "--gid-index"
           : link->mtu         ? "--mtu"
           : link->tclass      ? "--tclass"
           : link->sl          ? "--sl"
           : link->qp_timeout  ? "--qp-timeout"
           : link->retry_count ? "--retry-count"
                               : NULL;
}

int check_link_options(const char *command, const struct shunt_link_options *link,
                       const char *transport)
{
    const char *given = given_link_option(link);

    if (!given || !transport || strcmp(transport, "auto") == 0 || strcmp(transport, "verbs") == 0)
        return 0;
    return usage_error(command, "%s is for --transport verbs, not %s", given, transport);
}

/* ---- engine options */

void engine_options_init(struct engine_options *o)
{
    memset(o, 0, sizeof(*o));
    o->port = PORT_DEFAULT;
    shunt_config_init(&o->cfg);
}

void engine_options_fini(struct engine_options *o)
{
    free(o->rack_text);
}

static int parse_rack(struct engine_options *o, const char *command, const char *value)
{
    char *at;

    free(o->rack_text);
    o->rack_text = at = strdup(value);
    o->rack_count = 0;
    if (!at)
        return usage_error(command, "out of memory"), -1;
    while (at) {
        char *comma = strchr(at, ',');

        if (o->rack_count == NODES_MAX)
            return usage_error(command, "--rack: more than %d nodes", NODES_MAX), -1;
        if (comma)
            *comma++ = '\0';
        if (*at == '\0')
            return usage_error(command, "--rack: the address of node %u is empty", o->rack_count),
                   -1;
        o->rack[o->rack_count++] = at;
        at = comma;
    }
    return 1;
}

/* What the library takes of any model, so that the rest is known to be wrong without one. */
struct number_option {
    const char *name;
    size_t offset;
    uint64_t min, max;
    uint32_t bias; /* the member holds the value plus this, so that 0 is none */
};

#define LINK(member) offsetof(struct shunt_config, link.member)

static const struct number_option numbers[] = {
    {"--ctx", offsetof(struct shunt_config, context), 1, UINT32_MAX, 0},
    {"--chunk", offsetof(struct shunt_config, chunk), 0, 4096, 0},
    {"--threads", offsetof(struct shunt_config, threads), 0, 256, 0},
    {"--rank", offsetof(struct shunt_config, rank), 0, NODES_MAX - 1, 0},
    {"--ib-port", LINK(port), 1, 255, 0},
    {"--gid-index", LINK(gid_index), 0, 255, 1},
    {"--mtu", LINK(mtu), 256, 4096, 0},
    {"--tclass", LINK(tclass), 0, 255, 1},
    {"--sl", LINK(sl), 0, 7, 1},
    {"--qp-timeout", LINK(qp_timeout), 1, 31, 0},
    {"--retry-count", LINK(retry_count), 0, 7, 1},
};

struct seconds_option {
    const char *name;
    size_t offset;
    int64_t min_ns;
};

static const struct seconds_option seconds[] = {
    {"--join-timeout", offsetof(struct shunt_config, join_timeout_ns), 1},
    {"--ready-timeout", offsetof(struct shunt_config, ready_timeout_ns), 1},
    {"--step-timeout", offsetof(struct shunt_config, step_timeout_ns), 1},
    {"--dead-after", offsetof(struct shunt_config, dead_after_ns), 200000000},
    {"--plan-interval", offsetof(struct shunt_config, plan_interval_ns), 1},
};

/* One of the words that the help lists. */
struct word_option {
    const char *name;
    size_t offset;
};

static const struct word_option words[] = {
    {"--kernels", offsetof(struct shunt_config, kernels)},
    {"--placement", offsetof(struct shunt_config, placement)},
    {"--transport", offsetof(struct shunt_config, transport)},
    {"--io", offsetof(struct shunt_config, io)},
    {"--io-mode", offsetof(struct shunt_config, io_mode)},
};

/* Names of files. */
static const struct word_option files[] = {
    {"--key-file", offsetof(struct shunt_config, key_file)},
    {"--cert", offsetof(struct shunt_config, cert_file)},
    {"--cert-key", offsetof(struct shunt_config, cert_key_file)},
    {"--ca", offsetof(struct shunt_config, ca_file)},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int number_option(char *cfg, const char *command, const struct number_option *option,
                         const char *value)
{
    uint64_t number;

    if (take_count(command, option->name, value, option->min, option->max, &number))
        return -1;
    number += option->bias;
    memcpy(cfg + option->offset, &(uint32_t){(uint32_t)number}, sizeof(uint32_t));
    return 1;
}

static int seconds_option(char *cfg, const char *command, const struct seconds_option *option,
                          const char *value)
{
    int64_t ns;

    if (!parse_seconds(value, &ns))
        return usage_error(command, "%s: '%s' is no time in seconds", option->name, value), -1;
    if (ns < option->min_ns)
        return usage_error(command, "%s: '%s' is too short; give at least %g s", option->name,
                           value, (double)option->min_ns / 1e9),
               -1;
    memcpy(cfg + option->offset, &ns, sizeof(ns));
    return 1;
}

static bool is_listed(const char *list, const char *word)
{
    const size_t len = strlen(word);

    if (strchr(word, '|'))
        return false;
    while (list) {
        if (!strncmp(list, word, len) && (list[len] == '|' || list[len] == '\0'))
            return len > 0;
        list = strchr(list, '|');
        list = list ? list + 1 : NULL;
    }
    return false;
}

static int word_option(char *cfg, const char *command, const struct word_option *option,
                       const char *value)
{
    const struct option_help *help =
        find_option(engine_options_help, option->name, strlen(option->name), 0);

    if (!is_listed(help->argument, value))
        return usage_error(command, "%s: '%s' is none of %s", option->name, value, help->argument),
               -1;
    memcpy(cfg + option->offset, &value, sizeof(value));
    return 1;
}

/* Options that set one member of the configuration. Return: as engine_option. */
static int member_option(struct engine_options *o, const char *command, const char *name,
                         const char *value)
{
    char *cfg = (char *)&o->cfg;

    for (size_t i = 0; i < COUNT(numbers); i++)
        if (!strcmp(name, numbers[i].name))
            return number_option(cfg, command, &numbers[i], value);
    for (size_t i = 0; i < COUNT(seconds); i++)
        if (!strcmp(name, seconds[i].name))
            return seconds_option(cfg, command, &seconds[i], value);
    for (size_t i = 0; i < COUNT(words); i++)
        if (!strcmp(name, words[i].name))
            return word_option(cfg, command, &words[i], value);
    for (size_t i = 0; i < COUNT(files); i++)
        if (!strcmp(name, files[i].name))
            return memcpy(cfg + files[i].offset, &value, sizeof(value)), 1;
    return 0;
}

int engine_option(struct engine_options *o, const char *command, const char *name,
                  const char *value)
{
    uint64_t number;

    if (!strcmp(name, "--rank"))
        o->has_rank = true;
    if (!strcmp(name, "--ib-dev")) {
        o->cfg.link.device = value;
        return 1;
    }
    if (!strcmp(name, "--busy-poll"))
        return take_busy_poll(command, value, &o->cfg.busy_poll_ns) ? -1 : 1;
    if (!strcmp(name, "--model")) {
        o->model = value;
        return 1;
    }
    if (!strcmp(name, "--nodes")) {
        if (take_count(command, name, value, 1, NODES_MAX, &number))
            return -1;
        o->nodes = (uint32_t)number;
        return 1;
    }
    if (!strcmp(name, "--rack"))
        return parse_rack(o, command, value);
    if (!strcmp(name, "--port")) {
        if (take_count(command, name, value, 1, UINT16_MAX, &number))
            return -1;
        o->port = (uint32_t)number;
        return 1;
    }
    if (!strcmp(name, "--master")) {
        o->master = value;
        return 1;
    }
    if (!strcmp(name, "--encrypt")) {
        o->cfg.encrypt = true;
        return 1;
    }
    if (!strcmp(name, "--slots")) {
        if (!parse_slots(&o->cfg, value))
            return usage_error(command,
                               "--slots: '%s' is neither a count of at least %d nor a percentage, "
                               "such as 40%%",
                               value, SLOTS_MIN),
                   -1;
        return 1;
    }
    if (!strcmp(name, "--memory")) {
        if (!parse_size(value, &o->cfg.memory_bytes) || o->cfg.memory_bytes == 0)
            return usage_error(command, "--memory: '%s' is no size, such as 2G", value), -1;
        return 1;
    }
    if (!strcmp(name, "--prefetch")) {
        if (!parse_switch(value, &o->cfg.prefetch))
            return usage_error(command, "--prefetch: '%s' is neither on nor off", value), -1;
        return 1;
    }
    return member_option(o, command, name, value);
}

const char *get_variable(void *ctx, const char *name)
{
    (void)ctx;
    return getenv(name);
}

int take_launch(const char *command, const char *master, uint32_t port, struct launch *launch,
                const char **addresses)
{
    const struct launch_environment env = {.get = get_variable, .master = master, .port = port};
    char why[512];
    int rc = launch_from_environment(&env, launch, why, sizeof(why));

    if (rc < 0)
        return usage_error(command, "%s", why);
    /* Where only rank 0's is known, it tells the others'. */
    for (uint32_t i = 0; rc && i < launch->count; i++)
        addresses[i] = launch->addresses[i][0] ? launch->addresses[i] : NULL;
    if (rc && launch->rank == 0)
        complain("started by %s: rank 0 of %u, on %s", launch->by, launch->count, addresses[0]);
    launch->count = rc ? launch->count : 0;
    return 0;
}

/* The seat that a launcher has given to this process, if one has. */
static int take_launched_rack(struct engine_options *o, const char *command)
{
    const struct launch *launch = &o->launch;

    if (take_launch(command, o->master, o->port, &o->launch, o->rack))
        return EXIT_USAGE;
    if (launch->count == 0)
        return 0;
    o->rack_count = launch->count;
    o->cfg.rank = launch->rank;
    o->cfg.local_nodes = launch->local;
    o->launched = true;
    return 0;
}

bool engine_options_serve_only(const struct engine_options *o)
{
    return o->launched && o->cfg.rank != 0;
}

int engine_options_spare(const struct engine_options *o, const char *command, const char *name,
                         const char *output)
{
    const char *const read[] = {o->model, o->cfg.key_file, o->cfg.cert_file, o->cfg.cert_key_file,
                                o->cfg.ca_file};

    return output_spares(command, name, output, read, COUNT(read));
}

int engine_options_finish(struct engine_options *o, const char *command)
{
    if (!o->model)
        return usage_error(command, "no model: -m FILE");
    if (check_link_options(command, &o->cfg.link, o->cfg.transport))
        return EXIT_USAGE;
    o->link_option = given_link_option(&o->cfg.link);
    link_environment(&o->cfg.link);
    if (o->has_rank != (o->rack_count > 0))
        return usage_error(command, "--rank and --rack belong together");
    if (o->nodes && o->rack_count)
        return usage_error(command,
                           "--nodes starts a rack here, --rank and --rack join one: which?");
    if (!o->nodes && !o->rack_count && take_launched_rack(o, command))
        return EXIT_USAGE;
    if (o->rack_count) {
        if (o->cfg.rank >= o->rack_count)
            return usage_error(command, "--rank %u, but --rack has %u nodes", o->cfg.rank,
                               o->rack_count);
        o->cfg.node_count = o->rack_count;
        o->cfg.rack = o->rack;
    }
    return 0;
}

/* ---- the command line */

static void print_options(const struct option_help *options)
{
    for (; options && options->name; options++) {
        char left[48];
        int len = snprintf(left, sizeof(left), "  %c%c%s %s%s%s", options->letter ? '-' : ' ',
                           options->letter ? options->letter : ' ', options->letter ? "," : " ",
                           options->name, options->argument ? " " : "",
                           options->argument ? options->argument : "");

        if (len > 32)
            printf("%s\n%34s%s\n", left, "", options->text);
        else
            printf("%-34s%s\n", left, options->text);
    }
}

int parse_arguments(int argc, char **argv, const char *command, const char *summary,
                    const struct option_help *own, const struct option_help *shared,
                    int (*fn)(void *ctx, const char *name, const char *value), void *ctx)
{
    bool only_arguments = false;

    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        const char *equals = strchr(word, '=');
        size_t len = equals ? (size_t)(equals - word) : strlen(word);
        const struct option_help *option;
        const char *value = NULL;
        char letter = 0;
        int rc;

        if (only_arguments || word[0] != '-' || word[1] == '\0') {
            rc = fn(ctx, NULL, word);
            if (rc)
                return rc;
            continue;
        }
        if (!strcmp(word, "--")) {
            only_arguments = true;
            continue;
        }
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
            printf("usage: shunt %s\n\n", summary);
            print_options(own);
            if (shared)
                printf("\n");
            print_options(shared);
            return -1;
        }
        if (word[1] != '-')
            letter = word[1];
        option = find_option(own, word, len, letter);
        if (!option)
            option = find_option(shared, word, len, letter);
        if (!option)
            return usage_error(command, "there is no option %.*s", (int)len, word);
        if (letter && word[2] != '\0')
            value = word + 2; /* -n48 */
        else if (!letter && equals)
            value = equals + 1;
        else if (option->argument && i + 1 < argc)
            value = argv[++i];
        if (!option->argument && value)
            return usage_error(command, "%s takes no value", option->name);
        if (option->argument && !value)
            return usage_error(command, "%s needs a value: %s %s", option->name, option->name,
                               option->argument);
        rc = fn(ctx, option->name, value);
        if (rc)
            return rc;
    }
    return 0;
}
