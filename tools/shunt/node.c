/* SPDX-License-Identifier: Apache-2.0
 *
 * One node of a rack in this process: opens model and engine, submits its prompts, hands on what
 * comes until the rack has ended. And the `node` command, which has no prompts.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cli.h"

#define PROGRESS_MS 500

struct node {
    const struct node_job *job;
    const struct sink *sink;
    shunt_model *model;
    shunt *engine;
    int signal_fd;
    sigset_t signals_before;
    uint64_t ids[PROMPTS_MAX]; /* sequence of a prompt; 0: not this node's, or ended */
    uint32_t waiting;          /* prompts not ended */
    uint64_t prompt_total;     /* positions of this node's prompts */
    uint64_t logits_bytes;     /* taken off --memory before the engine gets the rest */
    bool started;              /* a token has come: the text is progress enough */
    bool progress_shown;
};

static bool is_mine(const struct node_job *job, uint32_t prompt)
{
    return !job->deal || prompt % job->cfg.node_count == job->cfg.rank;
}

static uint32_t own_prompts(const struct node_job *job)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < job->prompt_count; i++)
        count += is_mine(job, i);
    return count;
}

/* ---- failures */

/* What a node of another process has brought upon this one. */
static bool is_peers(int code)
{
    return code == -EREMOTEIO || code == -ESHUTDOWN || code == -ECONNRESET || code == -EPIPE ||
           code == -ETIMEDOUT;
}

static int failed(const struct node *n, int code, const char *text)
{
    n->sink->failure(n->sink->ctx, is_peers(code), text);
    return EXIT_FAILED;
}

static int prompt_failed(const struct node *n, uint32_t index, const char *why)
{
    char text[sizeof(((struct shunt_error *)NULL)->text) + 32];

    snprintf(text, sizeof(text), "prompt %u: %s", index, why);
    return failed(n, 0, text);
}

/* ---- signals: taken from a descriptor, so that an interrupt is an event like the others */

static int block_signals(struct node *n)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, &n->signals_before);
    n->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    stop_fd = n->signal_fd;
    return n->signal_fd < 0 ? -errno : 0;
}

static void unblock_signals(struct node *n)
{
    struct signalfd_siginfo info;

    /* What was taken note of is not delivered once more. */
    while (n->signal_fd >= 0 && read(n->signal_fd, &info, sizeof(info)) > 0)
        ;
    stop_fd = -1;
    if (n->signal_fd >= 0)
        close(n->signal_fd);
    sigprocmask(SIG_SETMASK, &n->signals_before, NULL);
}

static bool interrupted(const struct node *n)
{
    struct signalfd_siginfo info;

    return read(n->signal_fd, &info, sizeof(info)) == sizeof(info);
}

/* ---- prompts */

static int tokenize(struct node *n, struct prompt *p, uint32_t index)
{
    size_t len = p->text ? strlen(p->text) : 0;
    struct shunt_error err;
    int64_t count;

    if (p->ids)
        return 0;
    count = shunt_tokenize(n->model, p->text, len, SHUNT_TOKENIZE_SPECIAL | SHUNT_TOKENIZE_BOS,
                           NULL, 0, &err);
    if (count >= 0) {
        p->ids = malloc((size_t)(count ? count : 1) * sizeof(*p->ids));
        p->id_count = (size_t)count;
        if (p->ids)
            count =
                shunt_tokenize(n->model, p->text, len, SHUNT_TOKENIZE_SPECIAL | SHUNT_TOKENIZE_BOS,
                               p->ids, p->id_count, &err);
    }
    if (count < 0 || !p->ids)
        return prompt_failed(n, index, count < 0 ? err.text : "out of memory");
    return 0;
}

static int tokenize_all(struct node *n)
{
    for (uint32_t i = 0; i < n->job->prompt_count; i++) {
        int rc = is_mine(n->job, i) ? tokenize(n, &n->job->prompts[i], i) : 0;

        if (rc)
            return rc;
        if (is_mine(n->job, i))
            n->prompt_total += n->job->prompts[i].id_count;
    }
    return 0;
}

static int submit_all(struct node *n)
{
    const struct sampling *s = &n->job->sampling;

    for (uint32_t i = 0; i < n->job->prompt_count; i++) {
        const struct prompt *p = &n->job->prompts[i];
        struct shunt_request r;
        struct shunt_error err;
        int rc;

        if (!is_mine(n->job, i))
            continue;
        shunt_request_init(&r);
        r.ids = p->ids;
        r.id_count = (uint32_t)p->id_count;
        r.token_max = s->tokens;
        r.temperature = s->temperature;
        r.top_k = s->top_k;
        r.top_p = s->top_p;
        r.seed = s->seed + i;
        r.ignore_eos = s->ignore_eos;
        r.stop = s->stops;
        r.stop_count = s->stop_count;
        r.logits = p->logits;
        rc = shunt_submit(n->engine, &r, &n->ids[i], &err);
        if (rc == -EPIPE)
            return 0; /* the event that waits says why */
        if (rc)
            return prompt_failed(n, i, err.text);
        n->waiting++;
    }
    return 0;
}

/* ---- events */

static uint32_t prompt_of(const struct node *n, uint64_t id)
{
    uint32_t i = 0;

    while (n->ids[i] != id)
        i++;
    return i;
}

static void clear_progress(struct node *n)
{
    if (n->progress_shown)
        fputs("\r\033[K", stderr);
    n->progress_shown = false;
}

static void show_progress(struct node *n)
{
    struct shunt_stats stats = {.size = sizeof(stats)};

    if (!n->job->progress || n->started || n->waiting == 0 || !isatty(STDERR_FILENO))
        return;
    shunt_get_stats(n->engine, &stats);
    fprintf(stderr, "\rprompt: %llu of %llu positions", (unsigned long long)stats.prompt_tokens,
            (unsigned long long)n->prompt_total);
    n->progress_shown = true;
}

static void take_end(struct node *n, const struct shunt_event *event)
{
    uint32_t prompt = prompt_of(n, event->id);
    const struct outcome outcome = {
        .prompt = prompt,
        .reason = event->reason,
        .prompt_tokens = event->prompt_tokens,
        .tokens = event->tokens,
        .ttft_ns = event->ttft_ns,
        .decode_ns = event->decode_ns,
        .digest = event->digest,
    };

    if (event->text_len)
        n->sink->token(n->sink->ctx, prompt, -1, event->text, event->text_len);
    n->sink->end(n->sink->ctx, &outcome);
    n->ids[prompt] = 0;
    if (--n->waiting == 0)
        shunt_leave(n->engine);
}

/* Return: -1 to go on, else an exit code. */
static int take_event(struct node *n, const struct shunt_event *event)
{
    switch (event->type) {
    case SHUNT_EVENT_TOKEN:
        clear_progress(n);
        n->started = true;
        n->sink->token(n->sink->ctx, prompt_of(n, event->id), event->token, event->text,
                       event->text_len);
        return -1;
    case SHUNT_EVENT_END:
        clear_progress(n);
        if (event->reason != SHUNT_END_ERROR)
            take_end(n, event);
        return -1;
    case SHUNT_EVENT_NOTICE:
        clear_progress(n);
        n->sink->notice(n->sink->ctx, event->text);
        return -1;
    case SHUNT_EVENT_RACK_DOWN:
        clear_progress(n);
        return event->error ? failed(n, event->error, event->text) : EXIT_DONE;
    }
    return -1;
}

static int serve(struct node *n)
{
    struct pollfd fds[2] = {{.fd = shunt_get_fd(n->engine), .events = POLLIN},
                            {.fd = n->signal_fd, .events = POLLIN}};

    for (;;) {
        struct shunt_event event = {.size = sizeof(event)};
        struct shunt_error err;
        int rc = shunt_poll(n->engine, 0, &event, 0, &err);

        if (rc < 0)
            return failed(n, rc, err.text);
        if (rc == 1) {
            int code = take_event(n, &event);

            if (code >= 0)
                return code;
            continue;
        }
        poll(fds, 2, n->job->progress ? PROGRESS_MS : -1);
        if (interrupted(n)) {
            clear_progress(n);
            return EXIT_INTERRUPTED;
        }
        show_progress(n);
    }
}

/* ---- the end */

static uint64_t peak_memory(void)
{
    unsigned long long peak = 0, huge = 0;
    char line[256];
    FILE *f = fopen("/proc/self/status", "re");

    while (f && fgets(line, sizeof(line), f)) {
        sscanf(line, "VmHWM: %llu kB", &peak);
        sscanf(line, "HugetlbPages: %llu kB", &huge);
    }
    if (f)
        fclose(f);
    return (peak + huge) << 10;
}

static void summarize(struct node *n)
{
    struct node_summary s = {.stats = {.size = sizeof(s.stats)}};
    struct shunt_model_info info = {.size = sizeof(info)};

    shunt_get_stats(n->engine, &s.stats);
    shunt_model_get_info(n->model, &info);
    snprintf(s.kernels, sizeof(s.kernels), "%s", s.stats.kernels);
    snprintf(s.io, sizeof(s.io), "%s", s.stats.io);
    snprintf(s.transport, sizeof(s.transport), "%s", s.stats.transport);
    snprintf(s.model_name, sizeof(s.model_name), "%s", info.name);
    s.stats.memory_limit_bytes += n->logits_bytes;
    s.vm_hwm_bytes = peak_memory();
    n->sink->summary(n->sink->ctx, &s);
}

/* Logits lie in memory of ours, which counts as the engine's does. Return: 0 or EXIT_FAILED. */
static int reserve_logits(struct node *n, struct shunt_config *cfg)
{
    struct shunt_model_info info = {.size = sizeof(info)};
    uint64_t bytes = 0;
    char text[160], need[32], given[32];

    shunt_model_get_info(n->model, &info);
    for (uint32_t i = 0; i < n->job->prompt_count; i++)
        if (is_mine(n->job, i) && n->job->prompts[i].logits)
            bytes += n->job->prompts[i].id_count * info.vocab_count * sizeof(float);
    if (cfg->memory_bytes == 0 || bytes < cfg->memory_bytes) {
        n->logits_bytes = cfg->memory_bytes ? bytes : 0;
        cfg->memory_bytes -= n->logits_bytes;
        return 0;
    }
    snprintf(text, sizeof(text),
             "the logits alone take %s, and --memory is %s; raise it, or give fewer ids",
             size_text(bytes, need, sizeof(need)),
             size_text(cfg->memory_bytes, given, sizeof(given)));
    return failed(n, -ENOMEM, text);
}

/* Until it is erased: opening takes as long as the slowest node does. */
static void show_waiting(struct node *n, uint32_t nodes)
{
    if (!n->job->progress || nodes < 2)
        return;
    fprintf(stderr, "\rwaiting for the other %u node%s of the rack", nodes - 1,
            nodes > 2 ? "s" : "");
    n->progress_shown = true;
}

static int open_engine(struct node *n, const struct shunt_config *cfg)
{
    const double logits = (double)n->logits_bytes / (1 << 20);
    struct shunt_error err;
    char text[sizeof(err.text) + 64];
    int rc;

    show_waiting(n, cfg->node_count);
    rc = shunt_open(&n->engine, n->model, cfg, &err);
    clear_progress(n);
    if (rc == 0)
        return 0;
    if (err.code == -ECANCELED)
        return EXIT_INTERRUPTED;
    snprintf(text, sizeof(text), "%s", err.text);
    if (err.code == -ENOMEM && logits > 0)
        snprintf(text, sizeof(text), "%s (besides %.1f for the logits)", err.text, logits);
    return failed(n, err.code, text);
}

/* Whether the options of RDMA devices mean something is known only when the nodes have settled on a
 * transport. */
static void check_transport(struct node *n)
{
    struct shunt_stats stats = {.size = sizeof(stats)};
    char text[128];

    shunt_get_stats(n->engine, &stats);
    if (!n->job->link_option || n->job->cfg.node_count < 2 || !strcmp(stats.transport, "verbs"))
        return;
    snprintf(text, sizeof(text),
             "%s has no effect: rows travel over %s; --transport verbs insists on RDMA",
             n->job->link_option, stats.transport);
    n->sink->notice(n->sink->ctx, text);
}

static int open_and_serve(struct node *n)
{
    struct shunt_config cfg = n->job->cfg;
    uint32_t prompts = own_prompts(n->job);
    int rc = tokenize_all(n);

    if (!rc)
        rc = reserve_logits(n, &cfg);

    if (rc) {
        if (cfg.listen_fd >= 0)
            close(cfg.listen_fd);
        return rc;
    }
    cfg.serve_only = prompts == 0;
    cfg.sequences_max = prompts ? prompts : 1;
    cfg.cancel_fd = n->signal_fd;
    rc = open_engine(n, &cfg);
    if (rc)
        return rc;
    check_transport(n);
    rc = submit_all(n);
    if (!rc)
        rc = serve(n);
    if (rc == EXIT_DONE)
        summarize(n);
    /* In order the rack has ended already; else there is nothing to wait for. */
    shunt_close(n->engine, 0);
    return rc;
}

int run_node(const struct node_job *job, const struct sink *sink)
{
    struct node n = {.job = job, .sink = sink};
    struct shunt_error err;
    int rc;

    /* Opening a model looks at no descriptor: until then a signal does what it always does. */
    if (shunt_model_open(&n.model, job->model, &err))
        return failed(&n, err.code, err.text);
    if (block_signals(&n)) {
        complain("signalfd: %s", strerror(errno));
        rc = EXIT_FAILED;
    } else {
        rc = open_and_serve(&n);
    }
    unblock_signals(&n);
    shunt_model_close(n.model);
    return rc;
}

/* ---- the command */

static const struct option_help own_options[] = {{0}};

struct node_command {
    struct engine_options engine;
};

static int take_argument(void *ctx, const char *name, const char *value)
{
    struct node_command *c = ctx;

    if (!name)
        return usage_error("node", "'%s': node takes options only", value);
    return engine_option(&c->engine, "node", name, value) < 0 ? EXIT_USAGE : 0;
}

static void ignore_token(void *ctx, uint32_t prompt, int32_t id, const char *text, size_t len)
{
    (void)ctx;
    (void)prompt;
    (void)id;
    (void)text;
    (void)len;
}

static void ignore_end(void *ctx, const struct outcome *outcome)
{
    (void)ctx;
    (void)outcome;
}

static void say_notice(void *ctx, const char *text)
{
    (void)ctx;
    complain("%s", text);
}

static void say_failure(void *ctx, bool peers, const char *text)
{
    (void)ctx;
    (void)peers;
    complain("%s", text);
}

static void ignore_summary(void *ctx, const struct node_summary *summary)
{
    (void)ctx;
    (void)summary;
}

int serve_node(const struct engine_options *engine)
{
    const struct sink sink = {.token = ignore_token,
                              .end = ignore_end,
                              .notice = say_notice,
                              .failure = say_failure,
                              .summary = ignore_summary};
    const struct node_job job = {.model = engine->model,
                                 .cfg = engine->cfg,
                                 .link_option = engine->link_option,
                                 .progress = isatty(STDERR_FILENO)};

    return run_node(&job, &sink);
}

int cmd_node(int argc, char **argv)
{
    struct node_command c;
    int rc;

    engine_options_init(&c.engine);
    rc = parse_arguments(argc, argv, "node",
                         "node -m FILE --rank R --rack HOST:PORT,... [OPTIONS]\n\n"
                         "Serves experts to the other nodes of a rack until every node with "
                         "prompts has finished.",
                         own_options, engine_options_help, take_argument, &c);
    if (!rc)
        rc = engine_options_finish(&c.engine, "node");
    if (!rc && c.engine.rack_count < 2)
        rc = usage_error("node", "a node needs a rack: --rank R --rack HOST:PORT,HOST:PORT,...");
    if (!rc)
        rc = serve_node(&c.engine);
    engine_options_fini(&c.engine);
    return rc < 0 ? EXIT_DONE : rc;
}
