/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads with io_uring: files and arena blocks registered, so that a read costs neither a file
 * look-up nor the pinning of its pages.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "runtime/store/expert_io.h"

struct shunt_expert_io {
    struct io_uring ring;
    uint32_t depth;
    uint32_t in_flight; /* submitted and not yet handed out by poll */
    bool blocks_registered;
    bool files_registered;
    int *fds;
};

/* Registered memory counts against RLIMIT_MEMLOCK for an ordinary user, that of all his processes
 * together, and 8 MiB is the usual limit: then reads go on unregistered. */
static void register_blocks(struct shunt_expert_io *io, const struct shunt_io_config *cfg)
{
    struct iovec *iov;
    uint64_t bytes = 0;
    struct rlimit limit = {0};
    int rc;

    if (cfg->block_count == 0)
        return;
    iov = calloc(cfg->block_count, sizeof(*iov));
    if (!iov)
        return;
    for (uint32_t i = 0; i < cfg->block_count; i++) {
        iov[i] = (struct iovec){cfg->blocks[i].base, cfg->blocks[i].bytes};
        bytes += cfg->blocks[i].bytes;
    }
    rc = io_uring_register_buffers(&io->ring, iov, cfg->block_count);
    free(iov);
    io->blocks_registered = rc == 0;
    if (rc == 0)
        return;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    shunt_notify_say(
        &cfg->notify,
        "io_uring: %llu MiB of slots are not registered (%s); reads cost more "
        "processor time. The limit on locked memory is %llu KiB for all processes of "
        "this user together: raise it with 'ulimit -l unlimited' or LimitMEMLOCK=infinity",
        (unsigned long long)(bytes >> 20), strerror(-rc),
        (unsigned long long)(limit.rlim_cur >> 10));
}

static void wait_for_reads(struct shunt_expert_io *io)
{
    int64_t deadline = shunt_now_ns() + SHUNT_IO_CLOSE_NS;

    io_uring_submit(&io->ring);
    while (io->in_flight > 0) {
        int64_t left = deadline - shunt_now_ns();
        struct __kernel_timespec limit = {.tv_sec = left / SHUNT_NS_PER_S,
                                          .tv_nsec = left % SHUNT_NS_PER_S};
        struct io_uring_cqe *cqe;
        int rc = left > 0 ? io_uring_wait_cqe_timeout(&io->ring, &cqe, &limit) : -ETIME;

        if (rc == -EINTR)
            continue;
        if (rc)
            return;
        io_uring_cqe_seen(&io->ring, cqe);
        io->in_flight--;
    }
}

static bool uring_close(struct shunt_expert_io *io)
{
    bool idle;

    if (!io)
        return true;
    wait_for_reads(io);
    idle = io->in_flight == 0;
    io_uring_queue_exit(&io->ring);
    free(io->fds);
    free(io);
    return idle;
}

static int uring_open(struct shunt_expert_io **out, const struct shunt_io_config *cfg,
                      struct shunt_error *err)
{
    struct shunt_expert_io *io = calloc(1, sizeof(*io));
    int rc;

    if (!io)
        return shunt_error_set(err, -ENOMEM, "out of memory for io_uring");
    io->fds = calloc(cfg->file_count + 1, sizeof(*io->fds));
    if (!io->fds) {
        free(io);
        return shunt_error_set(err, -ENOMEM, "out of memory for io_uring");
    }
    rc = io_uring_queue_init(cfg->depth, &io->ring, IORING_SETUP_CLAMP);
    if (rc) {
        free(io->fds);
        free(io);
        return shunt_error_set(err, rc,
                               "io_uring is refused here: %s (containers and "
                               "kernel.io_uring_disabled do that)",
                               strerror(-rc));
    }
    io->depth = cfg->depth;
    for (uint32_t i = 0; i < cfg->file_count; i++)
        io->fds[i] = cfg->files[i].fd;
    io->files_registered = io_uring_register_files(&io->ring, io->fds, cfg->file_count) == 0;
    register_blocks(io, cfg);
    *out = io;
    return 0;
}

static int uring_submit(struct shunt_expert_io *io, const struct shunt_io_read *read)
{
    bool fixed = io->blocks_registered && read->block != SHUNT_IO_NO_BLOCK;
    int fd = io->files_registered ? (int)read->file : io->fds[read->file];
    struct io_uring_sqe *sqe;

    if (io->in_flight == io->depth)
        return -EAGAIN;
    sqe = io_uring_get_sqe(&io->ring);
    if (!sqe)
        return -EAGAIN;
    if (fixed)
        io_uring_prep_read_fixed(sqe, fd, read->buf, read->bytes, read->off, (int)read->block);
    else
        io_uring_prep_read(sqe, fd, read->buf, read->bytes, read->off);
    if (io->files_registered)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, read->tag);
    io->in_flight++;
    return 0;
}

static int uring_flush(struct shunt_expert_io *io)
{
    int rc = io_uring_submit(&io->ring);

    /* Busy: completions must be taken first, which the caller's next poll does. */
    return rc < 0 && rc != -EBUSY && rc != -EAGAIN && rc != -EINTR ? rc : 0;
}

static uint32_t uring_poll(struct shunt_expert_io *io, struct shunt_io_done *done, uint32_t max)
{
    struct io_uring_cqe *cqe;
    uint32_t head;
    uint32_t n = 0;

    io_uring_for_each_cqe(&io->ring, head, cqe)
    {
        if (n == max)
            break;
        done[n].tag = (uint32_t)io_uring_cqe_get_data64(cqe);
        done[n].result = cqe->res;
        n++;
    }
    io_uring_cq_advance(&io->ring, n);
    io->in_flight -= n;
    return n;
}

static int uring_fd(const struct shunt_expert_io *io)
{
    return io->ring.ring_fd;
}

const struct shunt_expert_io_ops shunt_io_uring = {
    .name = "io_uring",
    .open = uring_open,
    .submit = uring_submit,
    .flush = uring_flush,
    .poll = uring_poll,
    .fd = uring_fd,
    .close = uring_close,
};
