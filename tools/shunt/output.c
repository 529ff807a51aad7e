/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

static int cannot_write(const struct output *o)
{
    complain("%s: cannot be written: %s", o->path, strerror(errno));
    return -1;
}

int output_open(struct output *o, const char *path)
{
    size_t len = strlen(path) + 8;
    struct stat st;
    mode_t mask;
    int fd;

    *o = (struct output){.path = path};
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        fd = open(path, O_WRONLY | O_CLOEXEC);
        return fd < 0 ? cannot_write(o) : fd;
    }
    o->temporary = malloc(len);
    if (!o->temporary)
        return cannot_write(o);
    snprintf(o->temporary, len, "%s.XXXXXX", path);
    fd = mkostemp(o->temporary, O_CLOEXEC);
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

int output_commit(struct output *o)
{
    if (o->temporary && rename(o->temporary, o->path)) {
        cannot_write(o);
        output_abandon(o);
        return EXIT_FAILED;
    }
    free(o->temporary);
    o->temporary = NULL;
    return 0;
}

void output_abandon(struct output *o)
{
    if (o->temporary)
        unlink(o->temporary);
    free(o->temporary);
    o->temporary = NULL;
}
