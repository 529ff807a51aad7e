/* SPDX-License-Identifier: Apache-2.0
 *
 * shunt eval: the logits of given ids, and the ids that follow, for checking exactness. Rank 0
 * evaluates; the other nodes of a rack serve, so that one command line fits them all but for
 * --rank.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cli.h"

struct eval_command {
    struct engine_options engine;
    const char *ids_file;
    const char *logits;
    const char *report;
    uint32_t greedy;
    bool context_given;
};

/* One of the other nodes of a rack, which have no use for ids. */
static bool serves(const struct eval_command *c)
{
    return c->engine.rack_count && c->engine.cfg.rank != 0;
}

static const struct option_help own_options[] = {
    {"--ids-file", 0, "FILE", "the ids, separated by white space ('-': standard input)"},
    {"--greedy", 0, "K", "print the K following ids, always the most probable, on one line"},
    {"--logits", 0, "FILE",
     "write the logits of every position: float32, little-endian, "
     "[ids][vocabulary]"},
    {"--report", 0, "FILE", "write everything measured as JSON ('-': standard output)"},
    {0},
};

static int take_argument(void *ctx, const char *name, const char *value)
{
    struct eval_command *c = ctx;
    uint64_t number;
    int rc;

    if (!name)
        return usage_error("eval", "'%s': eval takes options only", value);
    if (!strcmp(name, "--ctx"))
        c->context_given = true;
    rc = engine_option(&c->engine, "eval", name, value);
    if (rc)
        return rc < 0 ? EXIT_USAGE : 0;
    if (!strcmp(name, "--ids-file")) {
        c->ids_file = value;
    } else if (!strcmp(name, "--logits")) {
        c->logits = value;
    } else if (!strcmp(name, "--report")) {
        c->report = value;
    } else if (!strcmp(name, "--greedy")) {
        if (take_count("eval", name, value, 0, UINT32_MAX, &number))
            return EXIT_USAGE;
        c->greedy = (uint32_t)number;
    }
    return 0;
}

/* ---- ids */

static int bad_id(const char *path, size_t count, const char *word)
{
    complain("%s: number %zu, '%.20s', is no token id", path, count + 1, word);
    return EXIT_FAILED;
}

/* Takes the next word, cut to `room`. Return: its true length, 0 at the end. */
static size_t read_word(FILE *f, char *word, size_t room)
{
    size_t len = 0;
    int c = feof(f) ? EOF : getc(f);

    while (c != EOF && isspace(c))
        c = getc(f);
    for (; c != EOF && !isspace(c); c = getc(f), len++)
        if (len + 1 < room)
            word[len] = (char)c;
    word[len < room ? len : room - 1] = '\0';
    return len;
}

static int read_ids(const char *path, struct prompt *p)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "re") : stdin;
    size_t capacity = 0;
    char word[24];
    size_t len;
    int rc = 0;

    if (!f) {
        complain("%s: %s", path, strerror(errno));
        return EXIT_FAILED;
    }
    if (f == stdin)
        announce_input("the ids, separated by white space");
    while ((len = read_word(f, word, sizeof(word))) > 0) {
        uint64_t id;

        /* Longer than it reads as: too long, or with a NUL inside. */
        if (strlen(word) != len || !parse_count(word, INT32_MAX, &id)) {
            rc = bad_id(path, p->id_count, word);
            break;
        }
        if (p->id_count == capacity) {
            int32_t *grown = realloc(p->ids, (capacity = 2 * capacity + 256) * sizeof(*grown));

            if (!grown) {
                complain("%s: out of memory", path);
                rc = EXIT_FAILED;
                break;
            }
            p->ids = grown;
        }
        p->ids[p->id_count++] = (int32_t)id;
    }
    if (!rc && ferror(f)) {
        complain("%s: %s", path, strerror(errno));
        rc = EXIT_FAILED;
    }
    if (f != stdin)
        fclose(f);
    if (!rc && p->id_count == 0) {
        complain("%s: there are no ids in it", path);
        rc = EXIT_FAILED;
    }
    return rc;
}

/* ---- the logits' file: room for all of them, mapped, so that the engine writes them in place. It
 * gets its name only when it is whole. */

struct logits_file {
    struct output output;
    int fd;
    void *map;
    size_t bytes;
};

static int logits_failed(const struct logits_file *l, const char *what)
{
    complain("%s: %s: %s", l->output.path, what, strerror(errno));
    return EXIT_FAILED;
}

static int logits_open(struct logits_file *l, const char *path, size_t bytes)
{
    l->bytes = bytes;
    l->fd = output_open(&l->output, path);
    if (l->fd < 0)
        return EXIT_FAILED;
    if (!l->output.temporary) {
        complain("%s: logits need a file, not a pipe or a device", path);
        return EXIT_FAILED;
    }
    errno = posix_fallocate(l->fd, 0, (off_t)bytes);
    if (errno)
        return logits_failed(l, "no room for the logits");
    l->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
    if (l->map == MAP_FAILED) {
        l->map = NULL;
        return logits_failed(l, "cannot be mapped");
    }
    return 0;
}

static int logits_finish(struct logits_file *l)
{
    if (msync(l->map, l->bytes, MS_SYNC))
        return logits_failed(l, "could not be written");
    return output_commit(&l->output);
}

static void logits_close(struct logits_file *l)
{
    if (l->map)
        munmap(l->map, l->bytes);
    if (l->fd >= 0)
        close(l->fd);
    output_abandon(&l->output);
}

/* ---- running */

static int vocabulary(const char *path, uint32_t *count)
{
    struct shunt_model_info info = {.size = sizeof(info)};
    struct shunt_error err;
    shunt_model *model;

    if (shunt_model_open(&model, path, &err)) {
        complain("%s", err.text);
        return EXIT_FAILED;
    }
    shunt_model_get_info(model, &info);
    *count = info.vocab_count;
    shunt_model_close(model);
    return 0;
}

static void print_greedy(const struct results *r)
{
    for (uint32_t i = 0; i < r->token_counts[0]; i++)
        printf(i ? " %d" : "%d", r->tokens[0][i]);
    putchar('\n');
}

static int evaluate(struct eval_command *c, struct prompt *prompt, struct report_file *report)
{
    uint32_t nodes = c->engine.nodes ? c->engine.nodes : 1;
    struct node_job job = {
        .model = c->engine.model,
        .cfg = c->engine.cfg,
        .link_option = c->engine.link_option,
        .prompts = prompt,
        .prompt_count = prompt ? 1 : 0,
        /* The ids asked for are K, whatever they are. */
        .sampling = {.tokens = c->greedy, .top_p = 1, .ignore_eos = true},
        .progress = isatty(STDERR_FILENO),
    };
    struct results r;
    struct sink sink;
    int rc;

    if (prompt && !c->context_given)
        job.cfg.context = (uint32_t)prompt->id_count + c->greedy;
    results_init(&r, job.prompt_count, nodes);
    r.quiet = true;
    r.first_rank = job.cfg.rank;
    sink = results_sink(&r);
    if (c->engine.nodes) {
        job.deal = true;
        rc = run_local_rack(&job, nodes, &sink);
    } else {
        rc = run_node(&job, &sink);
    }
    if (!rc && prompt && c->greedy)
        print_greedy(&r);
    if (!rc && report->file)
        rc = report_write(report, c->engine.model, &r);
    results_fini(&r);
    return rc;
}

/* Without a prompt a node serves; what there is to report is this node's own. */
static int serve(struct eval_command *c)
{
    struct report_file report = {0};
    int rc = c->report ? report_open(&report, c->report) : 0;

    if (!rc)
        rc = evaluate(c, NULL, &report);
    report_abandon(&report);
    return rc;
}

static int check_positions(const struct eval_command *c, const struct prompt *prompt)
{
    if (prompt->id_count <= UINT32_MAX - c->greedy)
        return 0;
    complain("%zu ids and --greedy %u: no context has so many positions", prompt->id_count,
             c->greedy);
    return EXIT_FAILED;
}

static int run(struct eval_command *c)
{
    struct prompt prompt = {0};
    struct logits_file logits = {.fd = -1};
    struct report_file report = {0};
    uint32_t vocab = 0;
    int rc = read_ids(c->ids_file, &prompt);

    if (!rc)
        rc = check_positions(c, &prompt);
    if (!rc && c->report)
        rc = report_open(&report, c->report);
    if (!rc && c->logits) {
        rc = vocabulary(c->engine.model, &vocab);
        if (!rc)
            rc = logits_open(&logits, c->logits, prompt.id_count * vocab * sizeof(float));
        prompt.logits = logits.map;
    }
    if (!rc)
        rc = evaluate(c, &prompt, &report);
    if (!rc && c->logits)
        rc = logits_finish(&logits);
    logits_close(&logits);
    report_abandon(&report);
    free(prompt.ids);
    return rc;
}

static int spare_inputs(const struct eval_command *c)
{
    const struct {
        const char *name, *path;
    } outputs[] = {{"--logits", c->logits}, {"--report", c->report}};
    int rc = 0;

    for (int i = 0; i < 2 && !rc; i++) {
        rc = engine_options_spare(&c->engine, "eval", outputs[i].name, outputs[i].path);
        if (!rc)
            rc = output_spares("eval", outputs[i].name, outputs[i].path, &c->ids_file, 1);
    }
    return rc;
}

int cmd_eval(int argc, char **argv)
{
    struct eval_command c = {0};
    int rc;

    engine_options_init(&c.engine);
    rc = parse_arguments(argc, argv, "eval",
                         "eval -m FILE --ids-file IDS [--logits OUT.f32] [--greedy K] [OPTIONS]\n\n"
                         "Computes the logits that follow each of the given ids. In a rack of "
                         "several machines\nrank 0 does; the others serve as shunt node does, and "
                         "need no ids.",
                         own_options, engine_options_help, take_argument, &c);
    if (!rc)
        rc = engine_options_finish(&c.engine, "eval");
    if (!rc)
        rc = spare_inputs(&c);
    if (!rc && c.logits && c.report && output_is_same(c.logits, c.report))
        rc = usage_error("eval", "--logits and --report name the same file, '%s'", c.report);
    if (!rc && engine_options_serve_only(&c.engine))
        c.report = NULL; /* the file is rank 0's */
    if (!rc && serves(&c))
        rc = serve(&c);
    else if (!rc && !c.ids_file)
        rc = usage_error("eval", "no ids: --ids-file FILE");
    else if (!rc)
        rc = run(&c);
    engine_options_fini(&c.engine);
    return rc < 0 ? EXIT_DONE : rc;
}
