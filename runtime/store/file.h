/* SPDX-License-Identifier: Apache-2.0
 *
 * A model file opened for reading past the page cache. Where the file system refuses O_DIRECT
 * (tmpfs and others) reads are buffered; `direct` says which, and the caller decides whether that
 * is a notice or an error.
 */
#ifndef SHUNT_STORE_FILE_H
#define SHUNT_STORE_FILE_H

#include <sys/types.h>

#include "runtime/base/error.h"

enum shunt_io_mode { SHUNT_IO_AUTO, SHUNT_IO_DIRECT, SHUNT_IO_BUFFERED };

struct shunt_file {
    int fd; /* -1: not open */
    bool direct;
    uint32_t off_align; /* offsets and lengths of reads, power of 2; 1 when buffered */
    uint32_t mem_align; /* addresses of read buffers, power of 2; 1 when buffered */
    uint64_t bytes;
    uint64_t probed_bytes; /* asked of the file system to see whether O_DIRECT works */
    dev_t dev;             /* with ino, bytes and mtime: which file this was */
    ino_t ino;
    int64_t mtime_ns;
    char *path; /* owned */
};

/* Opens a regular file. SHUNT_IO_AUTO takes O_DIRECT where it works. Return: 0; -errno; -EINVAL for
 * a file that is no regular file; -EOPNOTSUPP when SHUNT_IO_DIRECT was asked for and is refused. */
int shunt_file_open(struct shunt_file *file, const char *path, enum shunt_io_mode mode,
                    struct shunt_error *err);

/* Closes; accepts a zeroed or closed file. */
void shunt_file_close(struct shunt_file *file);

/* True when both are the same unchanged file. */
bool shunt_file_same(const struct shunt_file *a, const struct shunt_file *b);

/* A descriptor that tells of writes into the open file from now on, by this machine; -1 when there
 * is none to be had. Asking a file server for its attributes could block for as long as it likes.
 */
int shunt_file_watch(const struct shunt_file *file);

/* Whether something was written since this last said so. Never blocks. */
bool shunt_file_written(int watch);

/* Reads [off, off + len) into dst (any address), rounding out as the drive wants through an aligned
 * buffer of its own when needed. Blocks. *device_bytes (may be NULL) grows by what was asked of the
 * file system. Return: 0; -EIO with the file, offset and cause; -EBADMSG when the file ends before
 * off + len. */
int shunt_file_read(const struct shunt_file *file, uint64_t off, size_t len, void *dst,
                    uint64_t *device_bytes, struct shunt_error *err);

#endif
