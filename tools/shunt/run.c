/* SPDX-License-Identifier: Apache-2.0
 *
 * shunt run: prompts to text.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

#define TOKENS_DEFAULT 128

struct run_command {
    struct engine_options engine;
    struct prompt prompts[PROMPTS_MAX];
    uint32_t prompt_count;
    const char *prompt_files[PROMPTS_MAX];
    uint32_t prompt_file_count;
    struct sampling sampling;
    const char *report;
    bool verify;
    bool quiet;
};

static const struct option_help own_options[] = {
    {"--prompt", 'p', "TEXT", "a prompt; repeat for several, dealt out over the nodes in turn"},
    {"--prompt-file", 'f', "FILE", "a prompt from a file ('-': standard input)"},
    {"--tokens", 'n', "N", "tokens to generate at most (default 128)"},
    {"--temp", 0, "T", "temperature (default 0: always the most probable token)"},
    {"--top-k", 0, "K", "sample from the K most probable (default 0: all)"},
    {"--top-p", 0, "P", "sample from the smallest set of probability P (default 1)"},
    {"--seed", 0, "S", "seed of the first prompt; the next has S + 1, ... (default 0)"},
    {"--stop", 0, "TEXT", "end before this text; repeat for up to 8"},
    {"--ignore-eos", 0, NULL, "go on after the end-of-text token"},
    {"--report", 0, "FILE", "write everything measured as JSON ('-': standard output)"},
    {"--verify", 0, NULL, "run the prompts again on one node with all experts in memory, compare"},
    {"--quiet", 'q', NULL, "text only: no prompts before it, no table at the end"},
    {0},
};

/* ---- arguments */

static int add_prompt(struct run_command *c, char *text)
{
    if (!text) {
        complain("out of memory for a prompt");
        return EXIT_FAILED;
    }
    if (c->prompt_count == PROMPTS_MAX) {
        free(text);
        return usage_error("run", "more than %d prompts", PROMPTS_MAX);
    }
    c->prompts[c->prompt_count++].text = text;
    return 0;
}

static int read_prompt(struct run_command *c, const char *path)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "re") : stdin;
    size_t len = 0, capacity = 4096;
    char *text = malloc(capacity);
    size_t n;

    if (!f) {
        free(text);
        complain("%s: %s", path, strerror(errno));
        return EXIT_FAILED;
    }
    if (f == stdin)
        announce_input("the prompt");
    /* The end of what is typed is told once: another read would wait for it again. */
    while (text && !feof(f) && (n = fread(text + len, 1, capacity - len - 1, f)) > 0) {
        len += n;
        if (capacity - len < 2) {
            char *grown = realloc(text, capacity *= 2);

            if (!grown)
                free(text);
            text = grown;
        }
    }
    if (ferror(f)) {
        complain("%s: %s", path, strerror(errno));
        free(text);
        text = NULL;
    }
    if (f != stdin)
        fclose(f);
    if (!text)
        return EXIT_FAILED;
    if (memchr(text, '\0', len)) {
        complain("%s: not a text: it has a NUL byte", path);
        free(text);
        return EXIT_FAILED;
    }
    text[len] = '\0';
    if (c->prompt_count < PROMPTS_MAX)
        c->prompt_files[c->prompt_file_count++] = path;
    return add_prompt(c, text);
}

static int take_temperature(const char *value, float *number)
{
    if (parse_float(value, number) && *number >= 0)
        return 0;
    return usage_error("run", "--temp: '%s' is no number of 0 or more", value);
}

static int take_share(const char *value, float *number)
{
    if (parse_float(value, number) && *number > 0 && *number <= 1)
        return 0;
    return usage_error("run", "--top-p: '%s' is no number above 0 and up to 1", value);
}

static int take_stop(struct sampling *s, const char *value)
{
    const size_t len = strlen(value);

    if (s->stop_count == STOPS_MAX)
        return usage_error("run", "more than %d stop strings", STOPS_MAX);
    if (len == 0 || len > STOP_BYTES_MAX)
        return usage_error("run", "--stop: a text of %zu bytes; give one of 1 to %d", len,
                           STOP_BYTES_MAX);
    s->stops[s->stop_count++] = value;
    return 0;
}

static int take_argument(void *ctx, const char *name, const char *value)
{
    struct run_command *c = ctx;
    uint64_t number;
    int rc;

    if (!name)
        return usage_error("run", "'%s': a prompt is given with -p", value);
    rc = engine_option(&c->engine, "run", name, value);
    if (rc)
        return rc < 0 ? EXIT_USAGE : 0;
    if (!strcmp(name, "--prompt"))
        return add_prompt(c, strdup(value));
    if (!strcmp(name, "--prompt-file"))
        return read_prompt(c, value);
    if (!strcmp(name, "--tokens")) {
        rc = take_count("run", name, value, 0, UINT32_MAX, &number);
        c->sampling.tokens = (uint32_t)number;
    } else if (!strcmp(name, "--top-k")) {
        rc = take_count("run", name, value, 0, UINT32_MAX, &number);
        c->sampling.top_k = (uint32_t)number;
    } else if (!strcmp(name, "--seed")) {
        rc = take_count("run", name, value, 0, UINT64_MAX, &c->sampling.seed);
    } else if (!strcmp(name, "--temp")) {
        rc = take_temperature(value, &c->sampling.temperature);
    } else if (!strcmp(name, "--top-p")) {
        rc = take_share(value, &c->sampling.top_p);
    } else if (!strcmp(name, "--stop")) {
        rc = take_stop(&c->sampling, value);
    } else if (!strcmp(name, "--ignore-eos")) {
        c->sampling.ignore_eos = true;
    } else if (!strcmp(name, "--report")) {
        c->report = value;
    } else if (!strcmp(name, "--verify")) {
        c->verify = true;
    } else if (!strcmp(name, "--quiet")) {
        c->quiet = true;
    }
    return rc;
}

/* ---- running */

static struct node_job make_job(const struct run_command *c)
{
    return (struct node_job){
        .model = c->engine.model,
        .cfg = c->engine.cfg,
        .link_option = c->engine.link_option,
        .prompts = (struct prompt *)(uintptr_t)c->prompts,
        .prompt_count = c->prompt_count,
        .sampling = c->sampling,
        .progress = isatty(STDERR_FILENO),
    };
}

static void not_verified(void *ctx, bool peers, const char *text)
{
    (void)ctx;
    (void)peers;
    complain("the answers are not verified: %s", text);
}

/* The same prompts on one node that holds every expert, without prefetch or placement, with the
 * kernels that the rack settled on. */
static int verify(const struct run_command *c, struct results *r)
{
    struct results alone;
    struct sink sink;
    struct node_job job = make_job(c);
    int rc;

    job.cfg.node_count = 1;
    job.cfg.rank = 0;
    job.cfg.rack = NULL;
    job.cfg.slot_count = 0;
    job.cfg.slot_percent = 100;
    job.cfg.memory_bytes = 0;
    job.cfg.prefetch = false;
    job.cfg.placement = "off";
    job.cfg.kernels = r->nodes[0].kernels;
    results_init(&alone, c->prompt_count, 1);
    alone.quiet = true;
    alone.silent = true;
    sink = results_sink(&alone);
    sink.failure = not_verified;
    rc = run_node(&job, &sink);
    if (!rc)
        r->identical = results_equal(r, &alone);
    results_fini(&alone);
    return rc;
}

static int run_all(struct run_command *c, struct report_file *report)
{
    uint32_t nodes = c->engine.nodes ? c->engine.nodes : 1;
    struct node_job job = make_job(c);
    struct results r;
    struct sink sink;
    int rc, verified = 0;

    results_init(&r, c->prompt_count, nodes);
    sink = results_sink(&r);
    r.prompts = r.labelled && !c->quiet ? c->prompts : NULL;
    if (c->engine.rack_count) {
        r.first_rank = job.cfg.rank;
        rc = run_node(&job, &sink);
    } else if (c->engine.nodes) {
        job.deal = true;
        rc = run_local_rack(&job, nodes, &sink);
    } else {
        rc = run_node(&job, &sink);
    }
    if (!rc && c->verify)
        verified = verify(c, &r);
    if (verified == EXIT_INTERRUPTED)
        rc = verified;
    if (!rc && !c->quiet)
        print_table(&r, stdout);
    if (!rc)
        print_verdict(&r, stdout);
    if (!rc && report->file)
        rc = report_write(report, c->engine.model, &r);
    if (!rc) /* what was measured is worth having all the same */
        rc = verified;
    if (!rc && r.identical == 0) {
        complain("the rack's logits differ from one node's: please report this, with the model and "
                 "the command");
        rc = EXIT_FAILED;
    }
    results_fini(&r);
    return rc;
}

static int spare_inputs(const struct run_command *c)
{
    int rc = engine_options_spare(&c->engine, "run", "--report", c->report);

    return rc ? rc
              : output_spares("run", "--report", c->report, c->prompt_files, c->prompt_file_count);
}

/* The prompts are this process's. */
static int run_here(struct run_command *c, struct report_file *report)
{
    int rc = c->prompt_count ? 0 : read_prompt(c, "-");

    if (!rc && c->report)
        rc = report_open(report, c->report);
    return rc ? rc : run_all(c, report);
}

int cmd_run(int argc, char **argv)
{
    struct run_command *c = calloc(1, sizeof(*c));
    struct report_file report = {0};
    int rc;

    if (!c) {
        complain("out of memory");
        return EXIT_FAILED;
    }
    engine_options_init(&c->engine);
    c->sampling = (struct sampling){.tokens = TOKENS_DEFAULT, .top_p = 1};
    rc = parse_arguments(
        argc, argv, "run",
        "run -m FILE [-p TEXT]... [OPTIONS]\n\n"
        "Generates text, on one node, on a rack of processes here (--nodes N), or "
        "as one node\nof a rack on several machines (--rank R --rack ..., or started by "
        "srun, mpirun or\ntorchrun). Without -p the prompt is read from standard "
        "input.",
        own_options, engine_options_help, take_argument, c);
    if (!rc)
        rc = engine_options_finish(&c->engine, "run");
    if (!rc && c->verify && c->engine.rack_count)
        rc = usage_error("run", "--verify works where all nodes are here: with --nodes");
    if (!rc)
        rc = spare_inputs(c);
    if (!rc)
        rc = engine_options_serve_only(&c->engine) ? serve_node(&c->engine) : run_here(c, &report);
    report_abandon(&report);
    for (uint32_t i = 0; i < c->prompt_count; i++) {
        free(c->prompts[i].text);
        free(c->prompts[i].ids);
    }
    engine_options_fini(&c->engine);
    free(c);
    return rc < 0 ? EXIT_DONE : rc;
}
