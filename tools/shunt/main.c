/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *text;
} commands[] = {
    {"run", cmd_run, "prompt to text, on one node or a rack"},
    {"node", cmd_node, "one node of a rack that serves experts to the others"},
    {"eval", cmd_eval, "logits of given ids, for checking exactness"},
    {"inspect", cmd_inspect, "what a model file holds, and what fits in how much memory"},
    {"doctor", cmd_doctor, "what this machine can do, and how to repair what it cannot"},
    {"bench", cmd_bench, "what the transports do: a link, a layer's traffic"},
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static int complaining_rank = -1;

void complain_as(uint32_t rank)
{
    complaining_rank = (int)rank;
}

/* One line, whatever a name or a file has put into it, and one write: several nodes may complain at
 * a time. */
__attribute__((format(printf, 1, 0))) static void print_message(const char *format, va_list args)
{
    char text[8192];

    vsnprintf(text, sizeof(text), format, args);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    if (complaining_rank >= 0)
        fprintf(stderr, "shunt: node %d: %s\n", complaining_rank, text);
    else
        fprintf(stderr, "shunt: %s\n", text);
}

void complain(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    print_message(format, args);
    va_end(args);
}

int usage_error(const char *command, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    print_message(format, args);
    va_end(args);
    fprintf(stderr, "try: shunt %s --help\n", command);
    return EXIT_USAGE;
}

void announce_input(const char *what)
{
    if (isatty(STDIN_FILENO))
        complain("type %s, then Enter and Ctrl-D", what);
}

static void print_help(FILE *out)
{
    fputs("shunt: Mixture-of-Experts inference on a rack whose memory does not hold the model\n\n"
          "usage: shunt COMMAND [OPTIONS]\n\n",
          out);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].text);
    fputs("\nshunt COMMAND --help lists a command's options; man shunt has the rest.\n", out);
}

/* ---- standard streams */

int stop_fd = -1;
bool stopping;

bool wait_for_stdout(void)
{
    struct pollfd fds[2] = {{.fd = STDOUT_FILENO, .events = POLLOUT},
                            {.fd = stop_fd, .events = POLLIN}};

    while (stop_fd >= 0 && !stopping) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        if (fds[0].revents)
            break;
        if (fds[1].revents)
            return false;
    }
    return !stopping;
}

/* A stream that the caller has closed must not become a file of ours: what is written to it fails
 * instead. */
static void hold_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

/* Results that did not reach standard output are a failure. A reader that has gone away (where
 * SIGPIPE is ignored) knows it. */
static int finish_output(int code)
{
    bool failed = ferror(stdout) != 0;

    errno = 0;
    failed |= fflush(stdout) != 0;
    if (!failed || code != EXIT_DONE)
        return code;
    if (errno != EPIPE)
        complain("standard output: %s", errno ? strerror(errno) : "cannot be written");
    return EXIT_FAILED;
}

static int run_command(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version")) {
        printf("shunt %s\n", shunt_version());
        return EXIT_DONE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return EXIT_DONE;
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    complain("there is no command '%s'", argv[1]);
    print_help(stderr);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    hold_standard_streams();
    return finish_output(run_command(argc, argv));
}
