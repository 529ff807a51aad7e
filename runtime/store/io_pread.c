/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads with a pool of threads that call pread, for where io_uring is refused. A read lies in the
 * entry of its tag from submit to poll; the entry's state says whose it is. The semaphore counts
 * posted entries, so a thread that gets past it finds one.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/base/thread.h"
#include "runtime/store/expert_io.h"

/* Enough to fill a drive with reads of 1 MiB; more only cost memory. */
#define THREADS_MAX 16u

enum { FREE, QUEUED, POSTED, TAKEN, DONE };

struct entry {
    _Atomic uint32_t state; /* release on every step, acquire by whoever takes the entry over */
    struct shunt_io_read read;
    int32_t result;
};

struct shunt_expert_io {
    const struct shunt_file *files;
    uint32_t depth;
    int eventfd;
    pthread_t threads[THREADS_MAX];
    uint32_t thread_count;
    sem_t posted; /* entries posted and not yet taken, plus one per thread at the end */
    _Atomic uint32_t stop;
    _Atomic uint32_t working; /* threads that may be reading */
    uint32_t in_flight;       /* owner's */
    uint32_t queued;          /* owner's: entries to post at the next flush */
    struct entry *entries;    /* [depth] */
};

static int32_t read_once(const struct shunt_expert_io *io, const struct shunt_io_read *read)
{
    ssize_t n;

    do
        n = pread(io->files[read->file].fd, read->buf, read->bytes, (off_t)read->off);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int32_t)n;
}

/* Takes some posted entry over. There is one for each time the semaphore let a thread pass. */
static struct entry *take(struct shunt_expert_io *io)
{
    for (uint32_t i = 0;; i = (i + 1) % io->depth) {
        uint32_t expected = POSTED;

        if (atomic_compare_exchange_strong(&io->entries[i].state, &expected, TAKEN))
            return &io->entries[i];
    }
}

static void *reader_main(void *arg)
{
    struct shunt_expert_io *io = arg;
    const uint64_t one = 1;

    for (;;) {
        struct entry *e;

        while (sem_wait(&io->posted))
            ;
        /* Before looking at `stop`: whoever has set that and sees nobody working knows that nobody
         * will. */
        atomic_fetch_add(&io->working, 1);
        if (!atomic_load(&io->stop)) {
            e = take(io);
            e->result = read_once(io, &e->read);
            atomic_store(&e->state, DONE);
            if (write(io->eventfd, &one, sizeof(one)) < 0)
                e = NULL; /* the counter is full, so it is readable */
        }
        atomic_fetch_sub(&io->working, 1);
        if (atomic_load(&io->stop))
            return NULL;
    }
}

static bool wait_for_threads(struct shunt_expert_io *io)
{
    int64_t deadline = shunt_now_ns() + SHUNT_IO_CLOSE_NS;

    while (atomic_load(&io->working) > 0 && shunt_now_ns() < deadline)
        usleep(500);
    return atomic_load(&io->working) == 0;
}

static bool pread_close(struct shunt_expert_io *io)
{
    if (!io)
        return true;
    atomic_store(&io->stop, 1);
    for (uint32_t i = 0; i < io->thread_count; i++)
        sem_post(&io->posted);
    if (!wait_for_threads(io)) {
        for (uint32_t i = 0; i < io->thread_count; i++)
            pthread_detach(io->threads[i]);
        return false; /* and `io` is theirs */
    }
    for (uint32_t i = 0; i < io->thread_count; i++)
        pthread_join(io->threads[i], NULL);
    sem_destroy(&io->posted);
    if (io->eventfd >= 0)
        close(io->eventfd);
    free(io->entries);
    free(io);
    return true;
}

static int start_threads(struct shunt_expert_io *io, struct shunt_error *err)
{
    uint32_t want = io->depth < THREADS_MAX ? io->depth : THREADS_MAX;
    int rc = 0;

    while (io->thread_count < want && !rc) {
        rc = shunt_thread_create(&io->threads[io->thread_count], reader_main, io);
        io->thread_count += !rc;
    }
    if (io->thread_count == 0)
        return shunt_error_set(err, rc, "cannot start a thread for reads: %s", strerror(-rc));
    return 0; /* fewer threads than wanted read more slowly, no less rightly */
}

static int pread_open(struct shunt_expert_io **out, const struct shunt_io_config *cfg,
                      struct shunt_error *err)
{
    struct shunt_expert_io *io = calloc(1, sizeof(*io));
    int rc;

    if (!io)
        return shunt_error_set(err, -ENOMEM, "out of memory for the pread pool");
    sem_init(&io->posted, 0, 0);
    io->files = cfg->files;
    io->depth = cfg->depth;
    io->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    io->entries = calloc(cfg->depth, sizeof(*io->entries));
    if (io->eventfd < 0 || !io->entries)
        rc = shunt_error_set(err, -ENOMEM, "no memory or descriptors for the pread pool");
    else
        rc = start_threads(io, err);
    if (rc) {
        pread_close(io);
        return rc;
    }
    *out = io;
    return 0;
}

static int pread_submit(struct shunt_expert_io *io, const struct shunt_io_read *read)
{
    struct entry *e = &io->entries[read->tag];

    if (io->in_flight == io->depth)
        return -EAGAIN;
    e->read = *read;
    atomic_store(&e->state, QUEUED);
    io->in_flight++;
    io->queued++;
    return 0;
}

static int pread_flush(struct shunt_expert_io *io)
{
    for (uint32_t i = 0; i < io->depth && io->queued > 0; i++) {
        uint32_t expected = QUEUED;

        if (!atomic_compare_exchange_strong(&io->entries[i].state, &expected, POSTED))
            continue;
        io->queued--;
        sem_post(&io->posted);
    }
    return 0;
}

static uint32_t pread_poll(struct shunt_expert_io *io, struct shunt_io_done *done, uint32_t max)
{
    uint64_t waiting;
    uint32_t n = 0;

    /* The counter is the number of entries done and not handed out. Kept so, it is readable exactly
     * while there is something to take: who sleeps on it does not wake for nothing. */
    if (io->in_flight == 0 || read(io->eventfd, &waiting, sizeof(waiting)) < 0)
        return 0;
    for (uint32_t i = 0; i < io->depth && n < max && n < waiting; i++) {
        struct entry *e = &io->entries[i];

        if (atomic_load(&e->state) != DONE)
            continue;
        done[n++] = (struct shunt_io_done){.tag = i, .result = e->result};
        atomic_store(&e->state, FREE);
    }
    io->in_flight -= n;
    waiting -= n;
    if (waiting > 0 && write(io->eventfd, &waiting, sizeof(waiting)) < 0)
        return n; /* the counter is full, so it is readable */
    return n;
}

static int pread_fd(const struct shunt_expert_io *io)
{
    return io->eventfd;
}

const struct shunt_expert_io_ops shunt_io_pread = {
    .name = "pread",
    .open = pread_open,
    .submit = pread_submit,
    .flush = pread_flush,
    .poll = pread_poll,
    .fd = pread_fd,
    .close = pread_close,
};
