/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/temp_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

int temp_file(const void *data, size_t len, char path[32])
{
    char name[] = "shunt-test-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);

    check(fd >= 0, "a temporary file in the working folder");
    check(unlink(name) == 0, name);
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)data + done, len - done);

        check(n > 0, name);
        done += (size_t)n;
    }
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return fd;
}
