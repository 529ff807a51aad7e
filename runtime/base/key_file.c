/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/key_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_file(const char *path, int fd, struct shunt_error *err)
{
    struct stat st;

    if (fstat(fd, &st))
        return shunt_error_set(err, -errno, "key file %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return shunt_error_set(
            err, -EINVAL, "key file %s is no regular file; " SHUNT_KEY_FILE_REMEDY, path, "FILE");
    if (st.st_uid != 0 && st.st_uid != geteuid())
        return shunt_error_set(err, -EACCES,
                               "key file %s belongs to user %u, who is neither this one (%u) nor "
                               "root; copy it, or: sudo chown %u %s",
                               path, (unsigned)st.st_uid, (unsigned)geteuid(), (unsigned)geteuid(),
                               path);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return shunt_error_set(err, -EACCES,
                               "key file %s may be read or written by others (mode %04o); "
                               "chmod 600 %s, and make a new key if somebody may have seen it",
                               path, (unsigned)(st.st_mode & 07777), path);
    return 0;
}

static int64_t read_all(const char *path, int fd, uint8_t *bytes, size_t max,
                        struct shunt_error *err)
{
    size_t done = 0;
    uint8_t more;

    for (;;) {
        ssize_t n = done < max ? read(fd, bytes + done, max - done) : read(fd, &more, 1);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return shunt_error_set(err, -errno, "key file %s: %s", path, strerror(errno));
        if (n == 0)
            return (int64_t)done;
        if (done == max)
            return shunt_error_set(err, -EFBIG, "key file %s is larger than %zu bytes: no key",
                                   path, max);
        done += (size_t)n;
    }
}

int64_t shunt_secret_read(const char *path, void *bytes, size_t max, struct shunt_error *err)
{
    /* Not to wait for the writer of a pipe that lies there. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int64_t rc;

    if (fd < 0)
        return shunt_error_set(err, -errno, "key file %s: %s; " SHUNT_KEY_FILE_REMEDY, path,
                               strerror(errno), path);
    rc = check_file(path, fd, err);
    if (!rc)
        rc = read_all(path, fd, bytes, max, err);
    if (rc == 0)
        rc = shunt_error_set(err, -EINVAL, "key file %s is empty; " SHUNT_KEY_FILE_REMEDY, path,
                             path);
    close(fd);
    return rc;
}

static int digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int shunt_key_read(const char *path, uint8_t key[SHUNT_KEY_FILE_MAX], struct shunt_error *err)
{
    uint8_t text[2 * SHUNT_KEY_FILE_MAX + 8]; /* and the end of the line */
    int64_t len = shunt_secret_read(path, text, sizeof(text), err);
    int rc = 0;

    if (len < 0)
        return (int)len;
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r' || text[len - 1] == ' '))
        len--;
    for (int64_t i = 0; i < len && !rc; i++)
        if (digit(text[i]) < 0)
            rc = shunt_error_set(
                err, -EINVAL,
                "key file %s: character %lld is no hexadecimal digit; " SHUNT_KEY_FILE_REMEDY, path,
                (long long)i + 1, path);
    if (!rc && (len % 2 || len / 2 < SHUNT_KEY_FILE_MIN || len / 2 > SHUNT_KEY_FILE_MAX))
        rc = shunt_error_set(err, -EINVAL,
                             "key file %s: %lld hexadecimal digits; a key has from %u to %u, an "
                             "even number; " SHUNT_KEY_FILE_REMEDY,
                             path, (long long)len, 2 * SHUNT_KEY_FILE_MIN, 2 * SHUNT_KEY_FILE_MAX,
                             path);
    for (int64_t i = 0; i < len / 2 && !rc; i++)
        key[i] = (uint8_t)(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
    explicit_bzero(text, sizeof(text));
    return rc ? rc : (int)(len / 2);
}
