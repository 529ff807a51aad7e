/* SPDX-License-Identifier: Apache-2.0
 *
 * The shunt command, built on the public headers alone. One file per sub-command (run.c, node.c,
 * eval.c, inspect.c, doctor.c, bench.c); what they share:
 *
 *   options.c   engine options, the same names everywhere
 *   launch.c    which node of a rack this is, where srun, mpirun or torchrun has started it
 *   node.c      one node of a rack in this process: open, submit, poll, close
 *   local.c     --nodes N: so many processes of this program, supervised
 *   wire.c      what a node process tells its supervisor
 *   show.c      text as it comes, progress, the table at the end
 *   report.c    the report as JSON
 *   output.c    files that are whole or not there
 *
 * Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed,
 * 2 wrong usage, 130 interrupted.
 */
#ifndef SHUNT_TOOLS_CLI_H
#define SHUNT_TOOLS_CLI_H

#include <shunt.h>
#include <stdio.h>

#include "launch.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

#define NODES_MAX      64
#define PORT_DEFAULT   7170 /* of a launched rack */
#define PROMPTS_MAX    256
#define NOTICES_MAX    8
#define STOPS_MAX      8
#define STOP_BYTES_MAX 128

/* ---- messages */

/* "shunt: ..." on standard error. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* From now on "shunt: node 1: ...". */
void complain_as(uint32_t rank);

/* The same, and "try shunt COMMAND --help"; returns EXIT_USAGE. */
int usage_error(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Says what is awaited from standard input when that is a terminal. */
void announce_input(const char *what);

/* ---- told to stop: signals are read from a descriptor (node.c, local.c), so a write to a terminal
 * or pipe that takes no more must look at it as well */

extern int stop_fd;   /* readable when the user has interrupted and nobody has read it; or -1 */
extern bool stopping; /* it has been read */

/* Waits until standard output takes a line. Return: false when told to stop meanwhile. */
bool wait_for_stdout(void);

/* ---- options.c */

struct engine_options {
    const char *model;
    uint32_t nodes; /* --nodes; 0: not given */
    bool has_rank;
    char *rack_text;             /* --rack as given; owned */
    const char *rack[NODES_MAX]; /* into rack_text or launch */
    uint32_t rack_count;
    uint32_t port;           /* of a launched rack's first node on each host */
    const char *master;      /* host of its rank 0; or NULL */
    bool launched;           /* the rack is a launcher's, not --rack's */
    struct launch launch;    /* ... then */
    const char *link_option; /* a given option of RDMA devices; or NULL */
    struct shunt_config cfg;
};

/* One option a command takes. */
struct option_help {
    const char *name;     /* "--slots" */
    char letter;          /* or 0 */
    const char *argument; /* "N"; NULL: takes none */
    const char *text;
};

/* Value of an engine option in a parsed command line. Return: 1 taken, 0 not one of them, -1 wrong
 * (already said). */
int engine_option(struct engine_options *o, const char *command, const char *name,
                  const char *value);
void engine_options_init(struct engine_options *o);
void engine_options_fini(struct engine_options *o);

/* Fills in what is not given and set for NCCL (nccl.c). */
void link_environment(struct shunt_link_options *link);

/* Checks what only makes sense together; takes the rack of a launcher where neither --rack nor
 * --nodes is given. Return: 0 or EXIT_USAGE. */
int engine_options_finish(struct engine_options *o, const char *command);

/* As output_spares, of the files that these options name. */
int engine_options_spare(const struct engine_options *o, const char *command, const char *name,
                         const char *output);

/* One of the ranks that a launcher has started with rank 0's command line, which serve only. */
bool engine_options_serve_only(const struct engine_options *o);

extern const struct option_help engine_options_help[];

/* Walks argv. For each option calls fn(ctx, name, value) with its long name ("--tokens"; value NULL
 * where it takes none), for each other argument fn(ctx, NULL, argument). fn returns 0 or an exit
 * code, which ends the walk. --help prints the help and returns -1. */
int parse_arguments(int argc, char **argv, const char *command, const char *summary,
                    const struct option_help *own, const struct option_help *shared,
                    int (*fn)(void *ctx, const char *name, const char *value), void *ctx);

/* "512M", "2G", "1048576" -> bytes. "2.5" -> seconds in ns. */
bool parse_size(const char *text, uint64_t *bytes);
bool parse_seconds(const char *text, int64_t *ns);
bool parse_count(const char *text, uint64_t max, uint64_t *value);
bool parse_float(const char *text, float *value); /* finite */

/* The value of an option, in [min, max]. Return: 0 or EXIT_USAGE, said. */
int take_count(const char *command, const char *name, const char *value, uint64_t min, uint64_t max,
               uint64_t *number);

/* Of --busy-poll, in microseconds. Return: 0 or EXIT_USAGE, said. */
int take_busy_poll(const char *command, const char *value, int64_t *ns);

/* getenv, as launch_from_environment wants it. */
const char *get_variable(void *ctx, const char *name);

/* The seat that a launcher has given to this process (launch.h), said by rank 0: launch->count is 0
 * where none has, else `addresses`, which has room for NODES_MAX, points into it. Return: 0 or
 * EXIT_USAGE, said. */
int take_launch(const char *command, const char *master, uint32_t port, struct launch *launch,
                const char **addresses);

/* The name of a given option of RDMA devices, or NULL; to be asked before link_environment. */
const char *given_link_option(const struct shunt_link_options *link);

/* Options of RDMA devices that would do nothing. Return: 0 or EXIT_USAGE, said. */
int check_link_options(const char *command, const struct shunt_link_options *link,
                       const char *transport);

/* ---- a node of a rack, in this process */

struct prompt {
    char *text;   /* owned; NULL when ids are given */
    int32_t *ids; /* owned; NULL when text is given */
    size_t id_count;
    float *logits; /* room for the logits of each position, or NULL */
};

struct sampling {
    uint32_t tokens;
    float temperature, top_p;
    uint32_t top_k;
    uint64_t seed; /* prompt i uses seed + i */
    bool ignore_eos;
    const char *stops[STOPS_MAX];
    uint32_t stop_count;
};

/* How a sequence ended. */
struct outcome {
    uint32_t prompt; /* index over all prompts of the rack */
    uint32_t reason; /* enum shunt_end_reason */
    uint32_t prompt_tokens, tokens;
    int64_t ttft_ns, decode_ns;
    uint64_t digest;
};

/* What a node says of itself at the end. */
struct node_summary {
    struct shunt_stats stats; /* its strings are not carried over; see below */
    char kernels[16], io[16], transport[16];
    uint64_t vm_hwm_bytes; /* peak resident memory, huge pages included */
    char model_name[64];
};

/* Where a node's results go: to the terminal, or through a pipe to the supervisor. */
struct sink {
    void *ctx;
    void (*token)(void *ctx, uint32_t prompt, int32_t id, const char *text, size_t len);
    void (*end)(void *ctx, const struct outcome *outcome);
    void (*notice)(void *ctx, const char *text);
    /* The node has failed; `peers`: because of another node. */
    void (*failure)(void *ctx, bool peers, const char *text);
    void (*summary)(void *ctx, const struct node_summary *summary);
};

struct node_job {
    const char *model;
    struct shunt_config cfg;
    const char *link_option; /* as in struct engine_options */
    struct prompt *prompts;
    uint32_t prompt_count;
    bool deal; /* the prompts are the rack's: this node takes i with i % node_count == rank */
    struct sampling sampling;
    bool progress; /* say what is going on, on a terminal */
};

/* Runs a node to its end. Return: exit code; failures have been said. */
int run_node(const struct node_job *job, const struct sink *sink);

/* The same for a node without prompts or results: what `shunt node` does. */
int serve_node(const struct engine_options *engine);

/* ---- local.c */

/* Runs job on `nodes` processes of this machine and gathers their results in `sink` (the rank comes
 * from outcome and summary). Return: exit code. */
int run_local_rack(const struct node_job *job, uint32_t nodes, const struct sink *sink);

/* ---- wire.c: frames on the pipe from a node process to its supervisor */

struct pipe_reader {
    int fd;
    unsigned char *bytes;
    size_t len, capacity;
    char *failure; /* the node's own words, kept for the supervisor to judge; owned */
    bool peers_failure;
};
struct sink pipe_sink(int *fd);
/* Reads what is there and hands whole frames to `sink`. Return: false at the end of the pipe. */
bool pipe_read(struct pipe_reader *reader, const struct sink *sink);
void pipe_reader_fini(struct pipe_reader *reader);

/* ---- results of a whole run: show.c, report.c */

struct results {
    struct outcome outcomes[PROMPTS_MAX];
    bool ended[PROMPTS_MAX];
    int32_t *tokens[PROMPTS_MAX]; /* generated ids, owned */
    uint32_t token_counts[PROMPTS_MAX];
    struct node_summary nodes[NODES_MAX];
    bool has_node[NODES_MAX];
    uint32_t prompt_count, node_count;
    uint32_t first_rank; /* of nodes[0]: not 0 where this command is one node of a larger rack */
    int identical;       /* -1: not checked */
    bool labelled;       /* several prompts: lines say whose they are */
    const struct prompt *prompts; /* shown before the first line of text; or NULL */
    char *lines[PROMPTS_MAX];     /* text not yet printed, owned */
    size_t line_lens[PROMPTS_MAX];
    bool quiet;                     /* no text */
    bool silent;                    /* no notices either */
    char notices[NOTICES_MAX][512]; /* each is said once, however many nodes say it */
    uint32_t notice_count;
};

void results_init(struct results *r, uint32_t prompt_count, uint32_t node_count);
void results_fini(struct results *r);

/* Keeps results and prints text as it comes. */
struct sink results_sink(struct results *r);

/* "1.5 MiB", in the largest unit of which there is one. Return: text. */
const char *size_text(uint64_t value, char *text, size_t bytes);

/* The table: one column per node. */
void print_table(const struct results *r, FILE *out);

/* What --verify has found, if it was asked for. */
void print_verdict(const struct results *r, FILE *out);

/* Compares ids and digests of every prompt. */
bool results_equal(const struct results *a, const struct results *b);

/* ---- output.c: files that get their name only when they are whole, and leave nothing behind when
 * a signal ends the program before. Something that is no regular file (a pipe, /dev/stdout) is
 * written in place; "-" is standard output. */

struct output {
    const char *path;
    char *target;    /* path with links followed; owned */
    char *temporary; /* owned; NULL: in place, or not open */
};
/* Two paths that lead to one file, also where it has several names. */
bool output_is_same(const char *a, const char *b);
/* `output` is what option `name` writes to, or NULL. Return: 0, or EXIT_USAGE, said, when it is one
 * of the files that are read. */
int output_spares(const char *command, const char *name, const char *output,
                  const char *const *read, uint32_t read_count);
/* Return: a descriptor for reading and writing, or -1, said. */
int output_open(struct output *o, const char *path);
/* Return: 0 or EXIT_FAILED, said. */
int output_commit(struct output *o);
void output_abandon(struct output *o);

/* Opens the report's file now, so that an unwritable place is known before the work. Return: 0 or
 * EXIT_FAILED, said. */
struct report_file {
    struct output output;
    FILE *file;
};
int report_open(struct report_file *f, const char *path);
int report_write(struct report_file *f, const char *model, const struct results *r);
void report_abandon(struct report_file *f);

/* ---- sub-commands: argv[0] is the command's name */

int cmd_run(int argc, char **argv);
int cmd_node(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_bench(int argc, char **argv);

#endif
