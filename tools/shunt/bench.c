/* SPDX-License-Identifier: Apache-2.0
 *
 * shunt bench: what shunt's own transports do between two nodes (link) and with the traffic of an
 * MoE layer (dispatch). The measuring is the library's (shunt_bench.h); here are the command line,
 * the processes of --local and --nodes, and the output.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <sched.h>
#include <shunt_bench.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"

#define SIZES_MAX      32u
#define SERVER_DEFAULT "127.0.0.1:7180"
#define QPS_MAX        4u

struct bench {
    const char *command; /* "bench link" */
    struct shunt_bench_rack rack;
    char address_texts[NODES_MAX][64];
    const char *addresses[NODES_MAX];
    char *rack_text; /* --rack, cut at its commas; owned */
    uint32_t rack_count;
    bool has_rank;
    uint32_t port;        /* as in struct engine_options */
    const char *master;   /* likewise */
    struct launch launch; /* the rack of a launcher; count 0: none */
    bool local;           /* --local, or --nodes */
    bool crowded;         /* fewer processors than nodes that poll without end */
    uint32_t nodes;       /* --nodes; 0: not given */
    const char *json;     /* --json */
    uint32_t qps;         /* --qps; 0: not given */
    char devices[256];    /* --ib-dev, as often */

    /* link */
    struct shunt_bench_link link;
    uint64_t sizes[SIZES_MAX];
    const char *server, *listen;
    const char *asks; /* an option that says what is measured, or where figures go; NULL: none */
    /* dispatch */
    struct shunt_bench_dispatch dispatch;
};

/* ---- options */

static const struct option_help rack_help[] = {
    {"--transport", 0, "tcp|shm|verbs", "how rows travel (default tcp)"},
    {"--ib-dev", 'd', "NAME", "RDMA devices, one rail each: mlx5_0 or mlx5_0:1,mlx5_1:1"},
    {"--ib-port", 'i', "N", "port of the device"},
    {"--qps", 'q', "N", "queue pairs to a peer, at most 4: --ib-dev as often"},
    {"--gid-index", 'x', "N", "index of its GID"},
    {"--mtu", 'm', "BYTES", "path MTU, 256 to 4096"},
    {"--tclass", 0, "N", "traffic class, 0 to 255"},
    {"--key-file", 0, "FILE", "the key of both ends: openssl rand -hex 32"},
    {"--cert", 0, "FILE", "or this node's certificate, with"},
    {"--cert-key", 0, "FILE", "its private key, and"},
    {"--ca", 0, "FILE", "the authority that has signed every node's"},
    {"--encrypt", 0, NULL, "rows in TLS as well, over TCP"},
    {"--busy-poll", 0, "US", "a wait polls so long before it sleeps (default: for ever)"},
    {"--join-timeout", 0, "S", "wait so long for the others (default 60)"},
    {"--step-timeout", 0, "S", "fail when nothing comes or is taken for so long (default 10)"},
    {"--json", 0, "FILE", "write the figures there as well ('-': standard output, alone)"},
    {0},
};

static const struct option_help link_help[] = {
    {"--listen", 0, "HOST:PORT", "be the server there (default " SERVER_DEFAULT ")"},
    {"--local", 0, NULL, "be both ends"},
    {"--size", 's', "BYTES", "size of a message (default 4096)"},
    {"--all", 'a', NULL, "all sizes from 1 byte to 8 MiB"},
    {"--iterations", 'n', "N", "of each measurement (default 10000)"},
    {"--duration", 'D', "S", "seconds of each instead"},
    {"--only", 0, "latency|bandwidth", "measure that alone"},
    {"--bidirectional", 'b', NULL, "bandwidth with both ends sending"},
    {0},
};

static const struct option_help dispatch_help[] = {
    {"--nodes", 0, "N", "so many processes of this machine (default 2)"},
    {"--rank", 0, "N", "or one node of a rack: which,"},
    {"--rack", 0, "A,B,...", "and the addresses of all of them"},
    {"--port", 0, "P", "of a rack that srun, mpirun or torchrun has started (default 7170)"},
    {"--master", 0, "HOST", "where its rank 0 runs, if the launcher does not say"},
    {"--tokens", 0, "N", "tokens of each node (default 128)"},
    {"--hidden", 0, "N", "elements of a row (default 7168)"},
    {"--experts", 0, "N", "experts of the layer (default 256)"},
    {"--top-k", 0, "N", "experts of a token (default 8)"},
    {"--dtype", 0, "f32|bf16|fp8", "of the rows, both ways (default fp8 there, bf16 back)"},
    {"--routing", 0, "uniform|zipf", "how popular experts are (default uniform)"},
    {"--seed", 0, "N", "of the routing (default 1)"},
    {"--iterations", 'n', "N", "(default 1000)"},
    {"--preset", 0, "deepep", "128 tokens, hidden 7168, top 8 of 256, fp8 there, bf16 back"},
    {0},
};

static int wrong(const struct bench *b, const char *name, const char *value, const char *wanted)
{
    return usage_error(b->command, "%s: '%s' is %s", name, value, wanted);
}

static int take_u32(const struct bench *b, const char *name, const char *value, uint32_t min,
                    uint32_t max, uint32_t *number)
{
    uint64_t n;
    int rc = take_count(b->command, name, value, min, max, &n);

    if (!rc)
        *number = (uint32_t)n;
    return rc;
}

static int take_index(const struct bench *b, const char *name, const char *value, uint32_t max,
                      uint32_t *number)
{
    int rc = take_u32(b, name, value, 0, max, number);

    *number += rc == 0; /* 0 leaves it to the backend */
    return rc;
}

static int take_transport(struct bench *b, const char *value)
{
    static const char *const names[] = {"tcp", "shm", "verbs"};

    for (size_t i = 0; i < 3; i++)
        if (!strcmp(value, names[i]))
            return b->rack.transport = names[i], 0;
    return wrong(b, "--transport", value, "none of tcp|shm|verbs");
}

/* What link and dispatch share. Return: -1: not one of these; 0; EXIT_USAGE. */
static int rack_option(struct bench *b, const char *name, const char *value)
{
    const struct {
        const char *name;
        int64_t *ns;
    } times[] = {{"--join-timeout", &b->rack.join_timeout_ns},
                 {"--step-timeout", &b->rack.step_timeout_ns}};

    const struct {
        const char *name;
        const char **file;
    } files[] = {{"--key-file", &b->rack.key_file},
                 {"--cert", &b->rack.cert_file},
                 {"--cert-key", &b->rack.cert_key_file},
                 {"--ca", &b->rack.ca_file}};

    for (size_t i = 0; i < 4; i++)
        if (!strcmp(name, files[i].name))
            return *files[i].file = value, 0;
    for (size_t i = 0; i < 2; i++)
        if (!strcmp(name, times[i].name))
            return parse_seconds(value, times[i].ns) ? 0
                                                     : wrong(b, name, value, "no time in seconds");
    if (!strcmp(name, "--transport"))
        return take_transport(b, value);
    if (!strcmp(name, "--ib-dev"))
        return b->rack.link.device = value, 0;
    if (!strcmp(name, "--qps"))
        return take_u32(b, name, value, 1, QPS_MAX, &b->qps);
    if (!strcmp(name, "--ib-port"))
        return take_u32(b, name, value, 1, 255, &b->rack.link.port);
    if (!strcmp(name, "--gid-index"))
        return take_index(b, name, value, 255, &b->rack.link.gid_index);
    if (!strcmp(name, "--mtu"))
        return take_u32(b, name, value, 256, 4096, &b->rack.link.mtu);
    if (!strcmp(name, "--tclass"))
        return take_index(b, name, value, 255, &b->rack.link.tclass);
    if (!strcmp(name, "--busy-poll"))
        return take_busy_poll(b->command, value, &b->rack.busy_poll_ns);
    if (!strcmp(name, "--encrypt"))
        return b->rack.encrypt = true, 0;
    if (!strcmp(name, "--json"))
        return b->json = value, 0;
    return -1;
}

static int take_all_sizes(struct bench *b)
{
    b->link.bytes_count = 0;
    for (uint64_t bytes = 1; bytes <= SHUNT_BENCH_LINK_BYTES_MAX; bytes *= 2)
        b->sizes[b->link.bytes_count++] = bytes;
    return 0;
}

static int take_measure(struct bench *b, const char *value)
{
    static const char *const names[] = {"latency", "bandwidth"};

    for (uint32_t i = 0; i < 2; i++)
        if (!strcmp(value, names[i]))
            return b->link.measure = (enum shunt_bench_measure)(SHUNT_BENCH_LATENCY + i), 0;
    return wrong(b, "--only", value, "neither latency nor bandwidth");
}

static int link_option(void *ctx, const char *name, const char *value)
{
    struct bench *b = ctx;
    int rc;

    if (!name) {
        if (b->server)
            return usage_error(b->command, "'%s': one server is enough", value);
        return b->server = value, 0;
    }
    if (!strcmp(name, "--listen"))
        return b->listen = value, 0;
    if (!strcmp(name, "--local"))
        return b->local = true, 0;
    if (!strcmp(name, "--json"))
        b->asks = name;
    rc = rack_option(b, name, value);
    if (rc >= 0)
        return rc;
    b->asks = name;
    if (!strcmp(name, "--all"))
        return take_all_sizes(b);
    if (!strcmp(name, "--only"))
        return take_measure(b, value);
    if (!strcmp(name, "--bidirectional"))
        return b->link.bidirectional = true, 0;
    if (!strcmp(name, "--iterations"))
        return take_u32(b, name, value, 1, 1000000, &b->link.iterations);
    if (!strcmp(name, "--duration")) {
        b->link.iterations = 0;
        return parse_seconds(value, &b->link.duration_ns)
                   ? 0
                   : wrong(b, name, value, "no time in seconds");
    }
    b->link.bytes_count = 1; /* --size */
    return parse_size(value, &b->sizes[0]) && b->sizes[0] <= SHUNT_BENCH_LINK_BYTES_MAX
               ? 0
               : wrong(b, name, value, "no size of at most 8M");
}

static int take_dtype(struct bench *b, const char *value)
{
    static const char *const names[] = {"f32", "bf16", "fp8"};

    for (uint32_t i = 0; i < 3; i++)
        if (!strcmp(value, names[i])) {
            b->dispatch.dispatch = b->dispatch.combine = (enum shunt_bench_dtype)i;
            return 0;
        }
    return wrong(b, "--dtype", value, "none of f32|bf16|fp8");
}

static int take_preset(struct bench *b, const char *value)
{
    const uint32_t iterations = b->dispatch.iterations;

    if (strcmp(value, "deepep") != 0)
        return wrong(b, "--preset", value, "none of deepep");
    shunt_bench_dispatch_init(&b->dispatch); /* which it is */
    b->dispatch.iterations = iterations;
    return 0;
}

static int take_rack(struct bench *b, const char *value)
{
    char *at;

    free(b->rack_text);
    b->rack_text = at = strdup(value);
    for (b->rack_count = 0; at && b->rack_count < NODES_MAX; b->rack_count++) {
        char *comma = strchr(at, ',');

        if (comma)
            *comma++ = '\0';
        b->addresses[b->rack_count] = at;
        at = comma;
    }
    return b->rack_text && !at ? 0 : wrong(b, "--rack", value, "no list of at most 64 addresses");
}

static int dispatch_option(void *ctx, const char *name, const char *value)
{
    struct bench *b = ctx;
    struct shunt_bench_dispatch *d = &b->dispatch;
    int rc;

    if (!name)
        return usage_error(b->command, "'%s': what is this?", value);
    rc = rack_option(b, name, value);
    if (rc >= 0)
        return rc;
    if (!strcmp(name, "--nodes"))
        return take_u32(b, name, value, 2, NODES_MAX, &b->nodes);
    if (!strcmp(name, "--rank"))
        return b->has_rank = true, take_u32(b, name, value, 0, NODES_MAX - 1, &b->rack.rank);
    if (!strcmp(name, "--rack"))
        return take_rack(b, value);
    if (!strcmp(name, "--port"))
        return take_u32(b, name, value, 1, UINT16_MAX, &b->port);
    if (!strcmp(name, "--master"))
        return b->master = value, 0;
    if (!strcmp(name, "--tokens"))
        return take_u32(b, name, value, 1, 4096, &d->tokens);
    if (!strcmp(name, "--hidden"))
        return take_u32(b, name, value, 1, 65536, &d->hidden);
    if (!strcmp(name, "--experts"))
        return take_u32(b, name, value, 1, 1024, &d->experts);
    if (!strcmp(name, "--top-k"))
        return take_u32(b, name, value, 1, 32, &d->used);
    if (!strcmp(name, "--iterations"))
        return take_u32(b, name, value, 1, 1000000, &d->iterations);
    if (!strcmp(name, "--dtype"))
        return take_dtype(b, value);
    if (!strcmp(name, "--preset"))
        return take_preset(b, value);
    if (!strcmp(name, "--routing")) {
        d->zipf = !strcmp(value, "zipf");
        return d->zipf || !strcmp(value, "uniform")
                   ? 0
                   : wrong(b, name, value, "neither uniform nor zipf");
    }
    return take_count(b->command, name, value, 0, UINT64_MAX, &d->seed); /* --seed */
}

/* ---- addresses and processes */

/* Several queue pairs to a peer are rails of the same device. Return: 0 or EXIT_USAGE, said. */
static int multiply_devices(struct bench *b)
{
    size_t len = 0;

    if (b->qps < 2)
        return 0;
    if (!b->rack.link.device)
        return usage_error(b->command, "--qps needs --ib-dev");
    for (uint32_t i = 0; i < b->qps && len < sizeof(b->devices); i++)
        len += (size_t)snprintf(b->devices + len, sizeof(b->devices) - len, "%s%s", i ? "," : "",
                                b->rack.link.device);
    if (len >= sizeof(b->devices))
        return usage_error(b->command, "--ib-dev: too long");
    b->rack.link.device = b->devices;
    return 0;
}

/* Return: 0 or EXIT_USAGE, said. */
static int finish_rack_options(struct bench *b)
{
    const char *const read[] = {b->rack.key_file, b->rack.cert_file, b->rack.cert_key_file,
                                b->rack.ca_file};

    if (output_spares(b->command, "--json", b->json, read, 4) ||
        check_link_options(b->command, &b->rack.link, b->rack.transport))
        return EXIT_USAGE;
    /* A figure is not to name a device that had no part in it. */
    if (!strcmp(b->rack.transport, "verbs"))
        link_environment(&b->rack.link);
    return multiply_devices(b);
}

/* A socket on a port that the kernel chooses, and its address as text. Return: -1, said. */
static int listen_anywhere(struct bench *b, uint32_t rank)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 2 * NODES_MAX) ||
        getsockname(fd, (struct sockaddr *)&a, &len)) {
        complain("cannot listen on 127.0.0.1: %s", strerror(errno));
        return -1;
    }
    snprintf(b->address_texts[rank], sizeof(b->address_texts[rank]), "127.0.0.1:%u",
             ntohs(a.sin_port));
    b->addresses[rank] = b->address_texts[rank];
    return fd;
}

/* Of this process; of the host for ranks of a launcher, which may have bound each to its own. */
static uint32_t processors_of(const struct bench *b)
{
    cpu_set_t set;

    if (b->launch.count == 0 && sched_getaffinity(0, sizeof(set), &set) == 0)
        return (uint32_t)CPU_COUNT(&set);
    return (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Nodes that poll without end take a processor each. `count`: of this host. */
static void check_processors(struct bench *b, uint32_t count)
{
    const uint32_t processors = processors_of(b);

    b->crowded = b->rack.busy_poll_ns < 0 && count > processors;
    if (b->crowded && b->rack.rank == 0)
        complain("%u nodes poll on %u processor%s, so times are those of the scheduler; "
                 "--busy-poll 50 lets them sleep",
                 count, processors, processors == 1 ? "" : "s");
}

/* Runs fn as every rank but `own` in processes that do not outlive this one, then as `own` here.
 * Return: exit code. */
static int run_local(struct bench *b, uint32_t count, uint32_t own, int (*fn)(struct bench *b))
{
    const pid_t parent = getpid();
    pid_t children[NODES_MAX] = {0};
    int fds[NODES_MAX];
    int code = EXIT_DONE;

    for (uint32_t r = 0; r < count; r++)
        if ((fds[r] = listen_anywhere(b, r)) < 0)
            return EXIT_FAILED;
    b->rack.node_count = count;
    check_processors(b, count);
    fflush(NULL);
    for (uint32_t r = 0; r < count; r++) {
        if (r == own)
            continue;
        children[r] = fork();
        if (children[r] != 0)
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        complain_as(r);
        for (uint32_t i = 0; i < count; i++)
            if (i != r)
                close(fds[i]);
        b->rack.rank = r;
        b->rack.listen_fd = fds[r];
        exit(getppid() == parent ? fn(b) : EXIT_FAILED);
    }
    for (uint32_t r = 0; r < count; r++)
        if (r != own)
            close(fds[r]);
    b->rack.rank = own;
    b->rack.listen_fd = fds[own];
    code = fn(b);
    for (uint32_t r = 0; r < count; r++) {
        int status = 0;

        if (code != EXIT_DONE && children[r] > 0)
            kill(children[r], SIGKILL);
        if (children[r] > 0 && waitpid(children[r], &status, 0) == children[r] && status &&
            code == EXIT_DONE)
            code = EXIT_FAILED;
    }
    return code;
}

/* ---- output */

static const char *hardware_text(enum shunt_bench_hardware hardware)
{
    switch (hardware) {
    case SHUNT_BENCH_HOST:
        return "no RDMA";
    case SHUNT_BENCH_RDMA:
        return "RDMA hardware";
    case SHUNT_BENCH_SOFTWARE_RDMA:
        return "SOFTWARE RDMA (rxe or siw): no figure of RDMA hardware";
    }
    return "";
}

static const char *hardware_word(enum shunt_bench_hardware hardware)
{
    static const char *const words[] = {"host", "rdma", "software-rdma"};

    return words[hardware];
}

static void print_head(const struct bench *b, enum shunt_bench_hardware hardware)
{
    printf("shunt %s, %s over %s%s%s: %s\n", shunt_version(), b->command, b->rack.transport,
           b->rack.link.device ? ", " : "", b->rack.link.device ? b->rack.link.device : "",
           hardware_text(hardware));
}

static json_t *times_json(const struct shunt_bench_times *t)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "count", (json_int_t)t->count, "min_ns",
                     (json_int_t)t->min_ns, "p50_ns", (json_int_t)t->p50_ns, "p99_ns",
                     (json_int_t)t->p99_ns, "p99.9_ns", (json_int_t)t->p999_ns, "max_ns",
                     (json_int_t)t->max_ns);
}

static json_t *head_json(const struct bench *b, enum shunt_bench_hardware hardware)
{
    return json_pack("{s:i,s:s,s:s,s:s,s:s?,s:s,s:b,s:b}", "bench_version", 1, "shunt_version",
                     shunt_version(), "bench", b->command + strlen("bench "), "transport",
                     b->rack.transport, "device", b->rack.link.device, "hardware",
                     hardware_word(hardware), "emulated", hardware == SHUNT_BENCH_SOFTWARE_RDMA,
                     "oversubscribed", b->crowded);
}

/* Takes the object over. Return: exit code. */
static int write_json(const struct bench *b, struct report_file *f, json_t *o)
{
    bool written;

    fflush(stdout); /* the figures may go there as well */
    written = o && json_dumpf(o, f->file, JSON_INDENT(2)) == 0 && fputc('\n', f->file) != EOF &&
              fflush(f->file) == 0;
    json_decref(o);
    if (!written) {
        complain("%s: %s", b->json, strerror(errno));
        report_abandon(f);
        return EXIT_FAILED;
    }
    fclose(f->file);
    return output_commit(&f->output);
}

/* JSON on standard output is there alone, for who reads it. */
static bool wants_table(const struct bench *b)
{
    return !b->json || strcmp(b->json, "-") != 0;
}

static double us(int64_t ns)
{
    return (double)ns / 1000;
}

static void print_link(const struct bench *b, const struct shunt_bench_link_result *results,
                       enum shunt_bench_hardware hardware)
{
    const bool latency = b->link.measure != SHUNT_BENCH_BANDWIDTH;
    const bool bandwidth = b->link.measure != SHUNT_BENCH_LATENCY;

    print_head(b, hardware);
    printf("%9s", "bytes");
    if (latency)
        printf(" %9s %9s %9s %9s", "p50 us", "p99 us", "p99.9 us", "max us");
    if (bandwidth)
        printf(" %12s", b->link.bidirectional ? "MB/s both" : "MB/s");
    for (uint32_t i = 0; i < b->link.bytes_count; i++) {
        const struct shunt_bench_link_result *r = &results[i];

        printf("\n%9llu", (unsigned long long)r->bytes);
        if (latency)
            printf(" %9.2f %9.2f %9.2f %9.2f", us(r->latency.p50_ns), us(r->latency.p99_ns),
                   us(r->latency.p999_ns), us(r->latency.max_ns));
        if (bandwidth)
            printf(" %12.1f", r->bytes_per_second / 1e6);
    }
    putchar('\n');
}

static json_t *size_json(const struct bench *b, const struct shunt_bench_link_result *r)
{
    json_t *o = json_pack("{s:I}", "bytes", (json_int_t)r->bytes);

    if (b->link.measure != SHUNT_BENCH_BANDWIDTH)
        json_object_set_new(o, "latency", times_json(&r->latency));
    if (b->link.measure != SHUNT_BENCH_LATENCY)
        json_object_update_new(o, json_pack("{s:I,s:I,s:f}", "messages", (json_int_t)r->messages,
                                            "duration_ns", (json_int_t)r->duration_ns,
                                            "bytes_per_second", r->bytes_per_second));
    return o;
}

static json_t *link_json(const struct bench *b, const struct shunt_bench_link_result *results,
                         enum shunt_bench_hardware hardware)
{
    json_t *o = head_json(b, hardware), *list = json_array();

    for (uint32_t i = 0; i < b->link.bytes_count; i++)
        json_array_append_new(list, size_json(b, &results[i]));
    json_object_set_new(o, "bidirectional", json_boolean(b->link.bidirectional));
    json_object_set_new(o, "sizes", list);
    return o;
}

/* ---- link */

static int be_link(struct bench *b)
{
    struct shunt_bench_link_result results[SIZES_MAX];
    const bool measures = b->rack.rank > 0;
    enum shunt_bench_hardware hardware;
    struct report_file json = {0};
    struct shunt_error err;

    if (measures && b->json && report_open(&json, b->json))
        return EXIT_FAILED;
    b->rack.addresses = b->addresses;
    b->link.bytes = b->sizes;
    if (shunt_bench_link_run(&b->rack, measures ? &b->link : NULL, results, &hardware, &err)) {
        complain("%s", err.text);
        report_abandon(&json);
        return EXIT_FAILED;
    }
    if (!measures)
        return EXIT_DONE;
    if (wants_table(b))
        print_link(b, results, hardware);
    return json.file ? write_json(b, &json, link_json(b, results, hardware)) : EXIT_DONE;
}

static void say_listening(void *ctx)
{
    const struct bench *b = ctx;

    fprintf(stderr, "listening on %s\n", b->addresses[0]);
}

/* The client's own address is nobody's to know: the two meet at the server's. */
static int link_between_hosts(struct bench *b)
{
    b->rack.rank = b->server != NULL;
    b->addresses[0] = b->server ? b->server : b->listen ? b->listen : SERVER_DEFAULT;
    b->addresses[1] = NULL;
    if (!b->server) {
        b->rack.listening = say_listening;
        b->rack.listening_ctx = b;
    }
    return be_link(b);
}

/* A launcher's ranks are all given the same command line, and a link has two ends that differ. With
 * --local on one host, they would be several links at once. Return: 0 or EXIT_USAGE, said. */
static int check_launch(const struct bench *b)
{
    /* Who is where does not matter. */
    const struct launch_environment env = {
        .get = get_variable, .master = "unknown", .port = PORT_DEFAULT};
    struct launch launch;
    char why[512];

    int rc = b->server || b->listen ? 0
                                    : launch_from_environment(&env, &launch, why, sizeof(why));

    if (rc < 0)
        return usage_error(b->command, "%s", why);
    if (rc == 0 || (b->local && launch.local == 1))
        return 0;
    return usage_error(b->command,
                       "%s has started %u of these, and a link has two ends: start a server, "
                       "--listen HOST:PORT, and a client, HOST:PORT; or one with --local",
                       launch.by, launch.count);
}

static int bench_link(int argc, char **argv)
{
    struct bench b = {.command = "bench link", .sizes = {4096}};
    int rc;

    shunt_bench_rack_init(&b.rack);
    shunt_bench_link_init(&b.link);
    b.link.bytes_count = 1;
    rc = parse_arguments(argc, argv, b.command,
                         "bench link [--listen HOST:PORT]   (the server)\n"
                         "       shunt bench link HOST:PORT [OPTIONS]   (the client)\n"
                         "       shunt bench link --local [OPTIONS]\n\n"
                         "Latency (half of the time to an answer) and bandwidth of one link, as "
                         "shunt uses it.",
                         link_help, rack_help, link_option, &b);
    if (rc)
        return rc < 0 ? EXIT_DONE : rc;
    if (b.local + (b.server != NULL) + (b.listen != NULL) > 1)
        return usage_error(b.command, "--local, --listen and a server: which?");
    if (b.link.bidirectional && b.link.measure == SHUNT_BENCH_LATENCY)
        return usage_error(b.command, "--bidirectional is of bandwidth, and --only latency");
    if (check_launch(&b))
        return EXIT_USAGE;
    if (b.asks && !b.local && !b.server)
        return usage_error(b.command,
                           "%s: the client says what is measured and has the figures; give it a "
                           "server, or --local",
                           b.asks);
    if (finish_rack_options(&b))
        return EXIT_USAGE;
    return b.local ? run_local(&b, 2, 1, be_link) : link_between_hosts(&b);
}

/* ---- dispatch */

static void print_phase(const char *name, const struct shunt_bench_phase *p, uint64_t iterations)
{
    const double n = (double)iterations;

    printf("%-9s %9.2f %9.2f %9.2f %9.2f %12.1f %8.1f %8.1f %9.1f\n", name, us(p->times.p50_ns),
           us(p->times.p99_ns), us(p->times.p999_ns), us(p->times.max_ns),
           (double)p->bytes / n / 1024, (double)p->puts / n, (double)p->writes / n,
           (double)p->signalled / n);
}

static void print_dispatch(const struct bench *b, const struct shunt_bench_dispatch_result *r)
{
    const struct shunt_bench_dispatch *d = &b->dispatch;

    print_head(b, r->hardware);
    printf("%u nodes, %u tokens each of %u elements, %u of %u experts, %s; per iteration:\n",
           b->rack.node_count, d->tokens, d->hidden, d->used, d->experts,
           d->zipf ? "zipf" : "uniform");
    printf("%-9s %9s %9s %9s %9s %12s %8s %8s %9s\n", "", "p50 us", "p99 us", "p99.9 us", "max us",
           "KiB sent", "puts", "writes", "signalled");
    print_phase("dispatch", &r->dispatch, r->iterations);
    print_phase("combine", &r->combine, r->iterations);
}

static json_t *phase_json(const struct shunt_bench_phase *p)
{
    return json_pack("{s:o,s:I,s:I,s:I,s:I}", "times", times_json(&p->times), "bytes",
                     (json_int_t)p->bytes, "puts", (json_int_t)p->puts, "writes",
                     (json_int_t)p->writes, "signalled", (json_int_t)p->signalled);
}

static json_t *dispatch_json(const struct bench *b, const struct shunt_bench_dispatch_result *r)
{
    static const char *const dtypes[] = {"f32", "bf16", "fp8"};
    const struct shunt_bench_dispatch *d = &b->dispatch;
    json_t *o = head_json(b, r->hardware);

    json_object_set_new(o, "shape",
                        json_pack("{s:i,s:i,s:i,s:i,s:i,s:s,s:s,s:s,s:I}", "nodes",
                                  b->rack.node_count, "tokens", d->tokens, "hidden", d->hidden,
                                  "experts", d->experts, "top_k", d->used, "dispatch",
                                  dtypes[d->dispatch], "combine", dtypes[d->combine], "routing",
                                  d->zipf ? "zipf" : "uniform", "seed", (json_int_t)d->seed));
    json_object_set_new(o, "iterations", json_integer((json_int_t)r->iterations));
    json_object_set_new(o, "dispatch", phase_json(&r->dispatch));
    json_object_set_new(o, "combine", phase_json(&r->combine));
    return o;
}

static int be_dispatch(struct bench *b)
{
    struct shunt_bench_dispatch_result r = {.size = sizeof(r)};
    const bool tells = b->rack.rank == 0 || (!b->local && b->launch.count == 0);
    struct report_file json = {0};
    struct shunt_error err;

    if (tells && b->json && report_open(&json, b->json))
        return EXIT_FAILED;
    b->rack.addresses = b->addresses;
    if (shunt_bench_dispatch_run(&b->rack, &b->dispatch, &r, &err)) {
        complain("%s", err.text);
        report_abandon(&json);
        return EXIT_FAILED;
    }
    if (!tells)
        return EXIT_DONE;
    if (wants_table(b))
        print_dispatch(b, &r);
    return json.file ? write_json(b, &json, dispatch_json(b, &r)) : EXIT_DONE;
}

static int run_dispatch(struct bench *b)
{
    if (b->has_rank != (b->rack_count > 0))
        return usage_error(b->command, "--rank and --rack belong together");
    if (b->nodes && b->rack_count)
        return usage_error(b->command, "--nodes starts a rack here, --rank and --rack join one");
    if (b->rack_count && (b->rack_count < 2 || b->rack.rank >= b->rack_count))
        return usage_error(b->command, "--rank %u, but --rack has %u nodes", b->rack.rank,
                           b->rack_count);
    if (finish_rack_options(b))
        return EXIT_USAGE;
    if (!b->nodes && !b->rack_count &&
        take_launch(b->command, b->master, b->port, &b->launch, b->addresses))
        return EXIT_USAGE;
    if (b->launch.count) {
        b->rack_count = b->launch.count;
        b->rack.rank = b->launch.rank;
        check_processors(b, b->launch.local);
    }
    if (b->rack_count) {
        b->rack.node_count = b->rack_count;
        return be_dispatch(b);
    }
    b->local = true;
    return run_local(b, b->nodes ? b->nodes : 2, 0, be_dispatch);
}

static int bench_dispatch(int argc, char **argv)
{
    struct bench b = {.command = "bench dispatch", .port = PORT_DEFAULT};
    int rc;

    shunt_bench_rack_init(&b.rack);
    shunt_bench_dispatch_init(&b.dispatch);
    rc = parse_arguments(argc, argv, b.command,
                         "bench dispatch [--nodes N | --rank N --rack A,B,...] [OPTIONS]\n\n"
                         "The traffic of one MoE layer without its arithmetic: rows to the nodes "
                         "of their experts,\nand results back. Timed are gathering the rows, "
                         "sending them, and waiting for everybody's.",
                         dispatch_help, rack_help, dispatch_option, &b);
    rc = rc < 0 ? EXIT_DONE : rc ? rc : run_dispatch(&b);
    free(b.rack_text);
    return rc;
}

/* ---- bench */

int cmd_bench(int argc, char **argv)
{
    static const char usage[] = "usage: shunt bench link|dispatch [OPTIONS]\n\n"
                                "  link      latency and bandwidth between two nodes\n"
                                "  dispatch  the traffic of an MoE layer between all of them\n";

    if (argc > 1 && !strcmp(argv[1], "link"))
        return bench_link(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "dispatch"))
        return bench_dispatch(argc - 1, argv + 1);
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(usage, stdout);
        return EXIT_DONE;
    }
    if (argc > 1)
        return usage_error("bench", "'%s' is neither link nor dispatch", argv[1]);
    fputs(usage, stderr);
    return EXIT_USAGE;
}
