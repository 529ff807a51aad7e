/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/store/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/carve.h"

#define BOUNCE_BYTES  (1u << 20)
#define ALIGN_DEFAULT 4096u /* what every drive takes, where the kernel does not say */
#define ALIGN_MAX     (64u << 10)

/* The kernel's word on O_DIRECT alignment (Linux 6.1); else the safe default. */
static void query_alignment(struct shunt_file *file)
{
    file->off_align = ALIGN_DEFAULT;
    file->mem_align = ALIGN_DEFAULT;
#ifdef STATX_DIOALIGN
    struct statx sx;

    if (statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
        (sx.stx_mask & STATX_DIOALIGN) && sx.stx_dio_offset_align &&
        sx.stx_dio_offset_align <= ALIGN_MAX && sx.stx_dio_mem_align &&
        sx.stx_dio_mem_align <= ALIGN_MAX) {
        file->off_align = sx.stx_dio_offset_align;
        file->mem_align = sx.stx_dio_mem_align;
    }
#endif
}

/* Some file systems accept the flag and refuse the read. */
static bool direct_read_works(struct shunt_file *file)
{
    void *buf;
    ssize_t n;

    if (posix_memalign(&buf, ALIGN_MAX, ALIGN_MAX))
        return false;
    n = pread(file->fd, buf, shunt_align_up(1, file->off_align), 0);
    free(buf);
    if (n > 0)
        file->probed_bytes = shunt_align_up(n, file->off_align);
    return n >= 0;
}

/* O_NONBLOCK: a path that is a FIFO must not hang the open. */
#define OPEN_FLAGS (O_RDONLY | O_CLOEXEC | O_NONBLOCK)

/* Past the page cache where `mode` and the file system allow it. */
static int open_fd(struct shunt_file *file, enum shunt_io_mode mode, struct shunt_error *err)
{
    file->direct = false;
    file->off_align = 1;
    file->mem_align = 1;
    if (mode != SHUNT_IO_BUFFERED) {
        file->fd = open(file->path, OPEN_FLAGS | O_DIRECT);
        if (file->fd >= 0) {
            query_alignment(file);
            file->direct = true;
            return 0;
        }
        if (errno != EINVAL)
            return shunt_error_set(err, -errno, "%s: cannot open: %s", file->path, strerror(errno));
    }
    file->fd = open(file->path, OPEN_FLAGS);
    if (file->fd < 0)
        return shunt_error_set(err, -errno, "%s: cannot open: %s", file->path, strerror(errno));
    return 0;
}

static const char *kind_of(mode_t mode)
{
    if (S_ISDIR(mode))
        return "folder";
    return S_ISFIFO(mode) ? "pipe" : "device";
}

int shunt_file_open(struct shunt_file *file, const char *path, enum shunt_io_mode mode,
                    struct shunt_error *err)
{
    struct stat st;
    int rc;

    memset(file, 0, sizeof(*file));
    file->fd = -1;
    file->path = strdup(path);
    if (!file->path)
        return shunt_error_set(err, -ENOMEM, "out of memory");
    rc = open_fd(file, mode, err);
    if (rc)
        goto err;
    if (fstat(file->fd, &st)) {
        rc = shunt_error_set(err, -errno, "%s: cannot stat: %s", path, strerror(errno));
        goto err;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = shunt_error_set(err, -EINVAL, "%s is a %s, not a file", path, kind_of(st.st_mode));
        goto err;
    }
    if (mode == SHUNT_IO_DIRECT && !file->direct) {
        rc = shunt_error_set(err, -EOPNOTSUPP,
                             "%s: the file system refuses O_DIRECT; move the file to a disk or use "
                             "--io-mode auto",
                             path);
        goto err;
    }
    if (file->direct && !direct_read_works(file)) {
        if (mode == SHUNT_IO_DIRECT) {
            rc = shunt_error_set(err, -EOPNOTSUPP,
                                 "%s: the file system opens with O_DIRECT but refuses to read; use "
                                 "--io-mode auto",
                                 path);
            goto err;
        }
        close(file->fd);
        rc = open_fd(file, SHUNT_IO_BUFFERED, err);
        if (rc)
            goto err;
    }
    /* The flag has done its work. io_uring would take it as a wish never to wait: where the drive
     * cannot promise that, every read is -EAGAIN or, with newer kernels, blocks the submit. */
    fcntl(file->fd, F_SETFL, fcntl(file->fd, F_GETFL) & ~O_NONBLOCK);
    file->bytes = (uint64_t)st.st_size;
    file->dev = st.st_dev;
    file->ino = st.st_ino;
    file->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    return 0;
err:
    shunt_file_close(file);
    return rc;
}

void shunt_file_close(struct shunt_file *file)
{
    if (!file->path)
        return;
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    memset(file, 0, sizeof(*file));
    file->fd = -1;
}

bool shunt_file_same(const struct shunt_file *a, const struct shunt_file *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->bytes == b->bytes &&
           a->mtime_ns == b->mtime_ns;
}

int shunt_file_watch(const struct shunt_file *file)
{
    char path[32];
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

    /* The open file, whatever has become of its name. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file->fd);
    if (watch >= 0 && inotify_add_watch(watch, path, IN_MODIFY) < 0) {
        close(watch);
        watch = -1;
    }
    return watch;
}

bool shunt_file_written(int watch)
{
    _Alignas(struct inotify_event) char events[4096];

    return watch >= 0 && read(watch, events, sizeof(events)) > 0;
}

/* Reads at most `len` aligned bytes at an aligned offset into an aligned buffer; whole unless the
 * file ends. */
static ssize_t read_full(const struct shunt_file *file, uint64_t off, size_t len,
                         unsigned char *dst)
{
    size_t got = 0;

    while (got < len) {
        ssize_t n = pread(file->fd, dst + got, len - got, (off_t)(off + got));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        got += (size_t)n;
        if (got % file->off_align)
            break; /* the file's end: a direct read stops short of alignment only there */
    }
    return (ssize_t)got;
}

int shunt_file_read(const struct shunt_file *file, uint64_t off, size_t len, void *dst,
                    uint64_t *device_bytes, struct shunt_error *err)
{
    unsigned char *out = dst;
    unsigned char *bounce;

    if (len > file->bytes || off > file->bytes - len)
        return shunt_error_set(err, -EBADMSG,
                               "%s: wanted bytes %" PRIu64 " to %" PRIu64 " of a file of %" PRIu64,
                               file->path, off, off + len, file->bytes);
    if (posix_memalign((void **)&bounce, ALIGN_MAX, BOUNCE_BYTES))
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for a read buffer", file->path);
    while (len > 0) {
        uint64_t begin = off / file->off_align * file->off_align;
        size_t head = (size_t)(off - begin);
        size_t want = len < BOUNCE_BYTES - head ? len : BOUNCE_BYTES - head;
        size_t ask = shunt_align_up(head + want, file->off_align);
        ssize_t got = read_full(file, begin, ask, bounce);

        if (got < (ssize_t)(head + want)) {
            free(bounce);
            if (got < 0)
                return shunt_error_set(err, (int)got,
                                       "%s: cannot read %zu bytes at offset %" PRIu64 ": %s",
                                       file->path, ask, begin, strerror((int)-got));
            return shunt_error_set(err, -EBADMSG,
                                   "%s: the file was cut to %" PRIu64 " bytes while it was read",
                                   file->path, begin + (uint64_t)got);
        }
        memcpy(out, bounce + head, want);
        if (device_bytes)
            *device_bytes += ask;
        out += want;
        off += want;
        len -= want;
    }
    free(bounce);
    return 0;
}
