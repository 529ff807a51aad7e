/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/shared.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/cpu.h"

#ifndef F_SEAL_FUTURE_WRITE /* Linux 5.1; C libraries came later */
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* What keeps a size, and itself. */
#define SIZE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int refused(const char *what, size_t bytes, struct shunt_error *err)
{
    int error = errno;

    return shunt_error_set(err, error == ENOSYS || error == EINVAL ? -ENOSYS : -ENOMEM,
                           "cannot share %zu bytes of memory for %s: %s", bytes, what,
                           strerror(error));
}

int shunt_shared_create(struct shunt_shared *s, size_t bytes, enum shunt_shared_access access,
                        const char *what, struct shunt_error *err)
{
    const int seals = SIZE_SEALS | (access == SHUNT_SHARED_READ_ONLY ? F_SEAL_FUTURE_WRITE : 0);
    void *base = MAP_FAILED;
    int fd, rc;

    /* The kernel would put pages in place until there are none, and then end other processes. */
    if (bytes > shunt_memory_available())
        return shunt_error_set(err, -ENOMEM,
                               "cannot share %zu bytes of memory for %s: less is available", bytes,
                               what);
    fd = memfd_create("shunt", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fallocate(fd, 0, 0, (off_t)bytes) == 0)
        base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base != MAP_FAILED && fcntl(fd, F_ADD_SEALS, seals) == 0) {
        *s = (struct shunt_shared){.base = base, .bytes = bytes, .fd = fd};
        return 0;
    }
    rc = refused(what, bytes, err);
    if (base != MAP_FAILED)
        munmap(base, bytes);
    if (fd >= 0)
        close(fd);
    return rc;
}

const char *shunt_shared_flaw(int fd, uint64_t end)
{
    struct stat st;
    int seals;

    if (fd < 0 || fstat(fd, &st))
        return "it is no open descriptor";
    seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0)
        return "it is no memfd";
    if ((seals & SIZE_SEALS) != SIZE_SEALS)
        return "it is not sealed at its size";
    if (st.st_size < 0 || (uint64_t)st.st_size < end)
        return "it is too short";
    return NULL;
}

void shunt_shared_close_fd(struct shunt_shared *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

void shunt_shared_fini(struct shunt_shared *s)
{
    munmap(s->base, s->bytes);
    shunt_shared_close_fd(s);
}
