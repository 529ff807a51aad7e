/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that other processes can map: a memfd, which has no name in any file system and goes with
 * the last process that has it open or mapped, however that one ends. It is sealed at its size and
 * its pages are there from the start, so that nobody who maps it runs into SIGBUS, neither because
 * the other side cut it short nor because memory has run out.
 */
#ifndef SHUNT_BASE_SHARED_H
#define SHUNT_BASE_SHARED_H

#include "runtime/base/error.h"

struct shunt_shared {
    void *base; /* mapped, aligned to a page, zeroed */
    size_t bytes;
    int fd;
};

enum shunt_shared_access {
    SHUNT_SHARED_WRITABLE,  /* whoever maps it may write */
    SHUNT_SHARED_READ_ONLY, /* only this mapping may: who maps it later reads */
};

/* Maps `bytes`, at least 1. Return: 0, -ENOMEM, or -ENOSYS where the kernel has no such seals. */
int shunt_shared_create(struct shunt_shared *s, size_t bytes, enum shunt_shared_access access,
                        const char *what, struct shunt_error *err);

/* Whether a descriptor, of this process's or of a peer's, is such memory and reaches to `end`.
 * Return: NULL, or what is wrong with it. */
const char *shunt_shared_flaw(int fd, uint64_t end);

/* What is mapped, here and elsewhere, stays. */
void shunt_shared_close_fd(struct shunt_shared *s);

/* Unmaps and closes. */
void shunt_shared_fini(struct shunt_shared *s);

#endif
