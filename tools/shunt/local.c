/* SPDX-License-Identifier: Apache-2.0
 *
 * --nodes N: a rack of N processes on this machine. This process listens for all of them on ports
 * that the kernel chooses, forks a child per node, and supervises: it gathers their results, and
 * when one fails or the user interrupts, none is left behind.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

/* After one has failed or the user has interrupted, the others may end by themselves; then they are
 * told, then they are killed: a rack has ended within a second. One that has not met the dead node
 * yet would wait for it. */
#define GRACE_MS 400
#define KILL_MS  400

struct child {
    pid_t pid; /* 0: ended */
    int listen_fd;
    struct pipe_reader pipe;
    int killed_by; /* a signal that was not the supervisor's; 0: none */
};

struct local_rack {
    const struct node_job *job;
    const struct sink *sink;
    uint32_t count;
    uint32_t alive;
    struct child children[NODES_MAX];
    char addresses[NODES_MAX][32];
    const char *rack[NODES_MAX];
    int signal_fd; /* interrupts */
    int child_fd;  /* SIGCHLD, which is no reason to stop */
    sigset_t signals_before;
    int code;            /* of the run: the first that is not EXIT_DONE */
    int64_t deadline_ms; /* for the next push to those that are left; 0: none */
    bool told;
    bool interrupted;
};

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- starting */

static int listen_on_any_port(struct local_rack *r, uint32_t rank)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    r->children[rank].listen_fd = fd;
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 2 * NODES_MAX) ||
        getsockname(fd, (struct sockaddr *)&addr, &len)) {
        complain("cannot listen on 127.0.0.1: %s", strerror(errno));
        return EXIT_FAILED;
    }
    snprintf(r->addresses[rank], sizeof(r->addresses[rank]), "127.0.0.1:%u", ntohs(addr.sin_port));
    r->rack[rank] = r->addresses[rank];
    return 0;
}

/* The child's whole life. */
static int be_node(struct local_rack *r, uint32_t rank, int pipe_fd, pid_t supervisor)
{
    struct node_job job = *r->job;
    const struct sink sink = pipe_sink(&pipe_fd);

    complain_as(rank);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != supervisor)
        return EXIT_FAILED;
    close(r->signal_fd);
    close(r->child_fd);
    stop_fd = -1;
    sigprocmask(SIG_SETMASK, &r->signals_before, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (uint32_t i = 0; i < r->count; i++) {
        if (i != rank)
            close(r->children[i].listen_fd);
        if (i < rank)
            close(r->children[i].pipe.fd);
    }
    job.cfg.rank = rank;
    job.cfg.node_count = job.cfg.local_nodes = r->count;
    job.cfg.rack = r->rack;
    job.cfg.listen_fd = r->children[rank].listen_fd;
    job.progress = false;
    return run_node(&job, &sink);
}

static int start_node(struct local_rack *r, uint32_t rank)
{
    struct child *c = &r->children[rank];
    pid_t supervisor = getpid();
    int fds[2];

    if (pipe(fds)) {
        complain("no pipe for node %u: %s", rank, strerror(errno));
        return EXIT_FAILED;
    }
    fflush(NULL);
    c->pid = fork();
    if (c->pid == 0) {
        close(fds[0]);
        exit(be_node(r, rank, fds[1], supervisor)); /* not _exit: sanitizers report at exit */
    }
    close(fds[1]);
    if (c->pid < 0) {
        c->pid = 0;
        close(fds[0]);
        complain("cannot start node %u: %s", rank, strerror(errno));
        return EXIT_FAILED;
    }
    c->pipe.fd = fds[0];
    r->alive++;
    return 0;
}

/* ---- supervising */

static void note_failure(struct local_rack *r, int code)
{
    if (r->code == EXIT_DONE)
        r->code = code;
    if (r->deadline_ms == 0)
        r->deadline_ms = now_ms() + GRACE_MS;
}

static void signal_all(struct local_rack *r, int signal)
{
    for (uint32_t i = 0; i < r->count; i++)
        if (r->children[i].pid > 0)
            kill(r->children[i].pid, signal);
}

static void push(struct local_rack *r)
{
    if (r->deadline_ms == 0 || now_ms() < r->deadline_ms)
        return;
    signal_all(r, r->told ? SIGKILL : SIGTERM);
    r->told = true;
    r->deadline_ms = now_ms() + KILL_MS;
}

/* A node that has not opened its model yet dies by these; later it ends by itself. */
static bool is_interrupt(int signal)
{
    return signal == SIGINT || signal == SIGTERM || signal == SIGHUP;
}

static void reap(struct local_rack *r)
{
    for (uint32_t i = 0; i < r->count; i++) {
        struct child *c = &r->children[i];
        int status;

        if (c->pid <= 0 || waitpid(c->pid, &status, WNOHANG) != c->pid)
            continue;
        c->pid = 0;
        r->alive--;
        if (WIFSIGNALED(status)) {
            if (!r->told)
                c->killed_by = WTERMSIG(status);
            note_failure(r, is_interrupt(WTERMSIG(status)) ? EXIT_INTERRUPTED : EXIT_FAILED);
        } else if (WEXITSTATUS(status) != EXIT_DONE) {
            note_failure(r, WEXITSTATUS(status));
        }
    }
}

static void take_signals(struct local_rack *r)
{
    struct signalfd_siginfo info;

    while (read(r->child_fd, &info, sizeof(info)) == sizeof(info))
        ; /* reap looks for itself */
    while (read(r->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        r->interrupted = stopping = true;
        note_failure(r, EXIT_INTERRUPTED);
        signal_all(r, SIGTERM); /* those of another terminal or group have not seen it */
    }
}

static void supervise(struct local_rack *r)
{
    while (r->alive > 0) {
        struct pollfd fds[NODES_MAX + 2];
        uint32_t open = 0;

        for (uint32_t i = 0; i < r->count; i++) {
            fds[i] = (struct pollfd){.fd = r->children[i].pipe.fd, .events = POLLIN};
            open += fds[i].fd >= 0;
        }
        fds[r->count] = (struct pollfd){.fd = r->signal_fd, .events = POLLIN};
        fds[r->count + 1] = (struct pollfd){.fd = r->child_fd, .events = POLLIN};
        poll(fds, r->count + 2, r->deadline_ms || open == 0 ? 50 : 500);
        take_signals(r);
        for (uint32_t i = 0; i < r->count; i++)
            if (fds[i].revents && !pipe_read(&r->children[i].pipe, r->sink)) {
                close(r->children[i].pipe.fd);
                r->children[i].pipe.fd = -1;
            }
        reap(r);
        push(r);
    }
    take_signals(r); /* sent to all of the group, and the nodes were quicker */
    /* What the last of them wrote. */
    for (uint32_t i = 0; i < r->count; i++)
        while (r->children[i].pipe.fd >= 0 && pipe_read(&r->children[i].pipe, r->sink))
            ;
}

/* ---- what went wrong, in one line: most nodes of a rack that ends only say that it has ended, and
 * what all of them refuse each says for itself */

/* Return: the node whose words say it best; r->count: none has said anything. */
static uint32_t first_failure(const struct local_rack *r, bool peers)
{
    uint32_t i = 0;

    while (i < r->count &&
           (!r->children[i].pipe.failure || r->children[i].pipe.peers_failure != peers))
        i++;
    return i;
}

static void say_failure(const struct local_rack *r)
{
    uint32_t i = first_failure(r, false);
    bool killed = false;

    if (r->interrupted)
        return;
    for (uint32_t n = 0; n < r->count; n++) {
        const struct child *c = &r->children[n];

        if (c->killed_by)
            complain("node %u was killed by signal %d (%s)", n, c->killed_by,
                     strsignal(c->killed_by));
        killed |= c->killed_by != 0;
    }
    if (i == r->count && !killed)
        i = first_failure(r, true);
    if (i < r->count)
        complain("%s", r->children[i].pipe.failure);
}

static void unblock_signals(const struct local_rack *r)
{
    stop_fd = -1;
    if (r->signal_fd >= 0)
        close(r->signal_fd);
    if (r->child_fd >= 0)
        close(r->child_fd);
    sigprocmask(SIG_SETMASK, &r->signals_before, NULL);
}

/* Return: 0 or EXIT_FAILED, said. */
static int block_signals(struct local_rack *r)
{
    sigset_t set, child;

    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, &r->signals_before);
    sigprocmask(SIG_BLOCK, &child, NULL);
    r->signal_fd = stop_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    r->child_fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (r->signal_fd >= 0 && r->child_fd >= 0)
        return 0;
    complain("signalfd: %s", strerror(errno));
    unblock_signals(r);
    return EXIT_FAILED;
}

int run_local_rack(const struct node_job *job, uint32_t nodes, const struct sink *sink)
{
    struct local_rack r = {.job = job, .sink = sink, .count = nodes};
    int rc = 0;

    for (uint32_t i = 0; i < nodes; i++)
        r.children[i].pipe.fd = r.children[i].listen_fd = -1;
    if (block_signals(&r))
        return EXIT_FAILED;
    for (uint32_t i = 0; i < nodes && !rc; i++)
        rc = listen_on_any_port(&r, i);
    for (uint32_t i = 0; i < nodes && !rc; i++)
        rc = start_node(&r, i);
    if (rc) {
        r.code = rc;
        r.told = true;
        signal_all(&r, SIGKILL);
    }
    for (uint32_t i = 0; i < nodes; i++)
        if (r.children[i].listen_fd >= 0)
            close(r.children[i].listen_fd);
    supervise(&r);
    say_failure(&r);
    for (uint32_t i = 0; i < nodes; i++)
        pipe_reader_fini(&r.children[i].pipe);
    unblock_signals(&r);
    return r.code;
}
