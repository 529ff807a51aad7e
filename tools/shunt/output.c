/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

/* ---- temporary files end with the process, also when a signal ends it */

#define TEMPORARIES_MAX 4

static const char *volatile temporaries[TEMPORARIES_MAX];
static volatile pid_t temporaries_owner;

/* The default action follows: the handler is gone once it runs. */
static void remove_and_die(int number)
{
    /* The nodes of a local rack inherit the list, not the files. */
    for (int i = 0; i < TEMPORARIES_MAX && getpid() == temporaries_owner; i++)
        if (temporaries[i])
            unlink(temporaries[i]);
    raise(number);
}

static const int deadly[] = {SIGHUP, SIGINT, SIGTERM, SIGPIPE};

#define DEADLY_COUNT (sizeof(deadly) / sizeof(deadly[0]))

static void catch_signals(void)
{
    const struct sigaction dying = {.sa_handler = remove_and_die,
                                    .sa_flags = SA_RESETHAND | SA_NODEFER};

    for (size_t i = 0; i < DEADLY_COUNT; i++) {
        struct sigaction now;

        if (sigaction(deadly[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL)
            sigaction(deadly[i], &dying, NULL);
    }
}

/* While a file and the list of them say different things. */
static void hold_signals(sigset_t *before)
{
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < DEADLY_COUNT; i++)
        sigaddset(&set, deadly[i]);
    sigprocmask(SIG_BLOCK, &set, before);
}

static void remember(const char *temporary)
{
    temporaries_owner = getpid();
    catch_signals();
    for (int i = 0; i < TEMPORARIES_MAX; i++)
        if (!temporaries[i]) {
            temporaries[i] = temporary;
            return;
        }
}

static void forget(const char *temporary)
{
    for (int i = 0; i < TEMPORARIES_MAX; i++)
        if (temporaries[i] == temporary)
            temporaries[i] = NULL;
}

/* ---- names */

/* The path without links, also of a file that is not there yet. Return: NULL when its folder is not
 * there either. */
static char *resolve(const char *path)
{
    char *whole = realpath(path, NULL);
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    char folder[PATH_MAX], real[PATH_MAX];

    if (whole)
        return whole;
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash + 1 - path) : 1,
             slash ? path : ".");
    if (!realpath(folder, real) || asprintf(&whole, "%s/%s", real, name) < 0)
        return NULL;
    return whole;
}

bool output_is_same(const char *a, const char *b)
{
    struct stat st_a, st_b;
    bool there_a = stat(a, &st_a) == 0, there_b = stat(b, &st_b) == 0;
    char *real_a, *real_b;
    bool same;

    /* Nothing is lost in a terminal, a pipe or /dev/null. */
    if ((there_a && !S_ISREG(st_a.st_mode)) || (there_b && !S_ISREG(st_b.st_mode)))
        return false;
    if (there_a && there_b && st_a.st_dev == st_b.st_dev && st_a.st_ino == st_b.st_ino)
        return true;
    real_a = resolve(a);
    real_b = resolve(b);
    same = real_a && real_b && !strcmp(real_a, real_b);
    free(real_a);
    free(real_b);
    return same;
}

int output_spares(const char *command, const char *name, const char *output,
                  const char *const *read, uint32_t read_count)
{
    if (output && !strcmp(output, "-"))
        return 0;
    for (uint32_t i = 0; output && i < read_count; i++)
        if (read[i] && strcmp(read[i], "-") && output_is_same(output, read[i]))
            return usage_error(command,
                               "%s: '%s' is read by this command, and would be overwritten", name,
                               output);
    return 0;
}

/* ---- open */

static int cannot_write(const struct output *o)
{
    complain("%s: cannot be written: %s", o->path, strerror(errno));
    return -1;
}

static int open_standard_output(const struct output *o)
{
    int fd = dup(STDOUT_FILENO);
    int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);

    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY)
        return fd;
    if (fd >= 0) { /* it was closed, and is a place holder */
        close(fd);
        errno = EBADF;
    }
    return cannot_write(o);
}

static bool is_standard_output(const struct stat *st)
{
    struct stat out;

    return fstat(STDOUT_FILENO, &out) == 0 && out.st_dev == st->st_dev && out.st_ino == st->st_ino;
}

/* A pipe that nobody reads from is refused, not waited for. */
static int open_in_place(const struct output *o)
{
    int fd = open(o->path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK))
        return cannot_write(o);
    return fd;
}

static int open_temporary(struct output *o)
{
    size_t len = strlen(o->target) + 8;
    sigset_t before;
    mode_t mask;
    int fd;

    o->temporary = malloc(len);
    if (!o->temporary)
        return cannot_write(o);
    snprintf(o->temporary, len, "%s.XXXXXX", o->target);
    hold_signals(&before);
    fd = mkostemp(o->temporary, O_CLOEXEC);
    if (fd >= 0)
        remember(o->temporary);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (fd < 0) {
        cannot_write(o);
        free(o->temporary);
        o->temporary = NULL;
        return -1;
    }
    /* As any program would have created it. */
    mask = umask(0);
    umask(mask);
    fchmod(fd, 0666 & ~mask);
    return fd;
}

int output_open(struct output *o, const char *path)
{
    struct stat st;
    int fd;

    *o = (struct output){.path = path};
    if (!strcmp(path, "-"))
        return open_standard_output(o);
    if (path[0] == '\0') {
        errno = ENOENT;
        return cannot_write(o);
    }
    if (stat(path, &st) == 0) {
        if (is_standard_output(&st))
            return open_standard_output(o);
        if (!S_ISREG(st.st_mode))
            return open_in_place(o);
        o->target = realpath(path, NULL); /* a link stays, and what it leads to is replaced */
    } else {
        o->target = strdup(path);
    }
    fd = o->target ? open_temporary(o) : cannot_write(o);
    if (fd < 0)
        output_abandon(o);
    return fd;
}

/* ---- the end */

int output_commit(struct output *o)
{
    if (o->temporary && rename(o->temporary, o->target)) {
        cannot_write(o);
        output_abandon(o);
        return EXIT_FAILED;
    }
    if (o->temporary)
        forget(o->temporary);
    free(o->temporary);
    free(o->target);
    o->temporary = o->target = NULL;
    return 0;
}

void output_abandon(struct output *o)
{
    if (o->temporary) {
        unlink(o->temporary);
        forget(o->temporary);
    }
    free(o->temporary);
    free(o->target);
    o->temporary = o->target = NULL;
}
