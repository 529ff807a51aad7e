/* SPDX-License-Identifier: Apache-2.0
 *
 * The control thread and what it knows. State that other threads touch (send queues, who is ready,
 * why the rack ended) is under one mutex; none of it lies on the path of a step, which only reads
 * the atomic `down`.
 */
#include "runtime/cluster/rack.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/thread.h"
#include "runtime/cluster/join.h"
#include "runtime/cluster/liveness.h"

#define TICK_NS            (100 * SHUNT_NS_PER_MS)
#define GOODBYE_TIMEOUT_NS (500 * SHUNT_NS_PER_MS)
#define GOODBYE_PAUSE_US   500
#define VERDICT_TIMEOUT_NS (500 * SHUNT_NS_PER_MS)
#define RECEIVES_MAX       16u
#define DATAGRAMS_MAX      256u
/* Room for small messages beside a large one. */
#define QUEUE_SLACK 4096u

enum message {
    MESSAGE_READY = 2,
    MESSAGE_FAILED,  /* the text of what failed on the sender */
    MESSAGE_GOODBYE, /* one byte: 1 when all have agreed to leave */
    MESSAGE_DOWN,    /* struct verdict, text: why the sender's rack has ended, by a third node */
};

/*  0      4       8
 *  | type | bytes | payload ... */
struct frame {
    uint32_t type;
    uint32_t bytes;
};
_Static_assert(sizeof(struct frame) == 8, "the frame is a wire format");

struct verdict {
    uint32_t rank;
    int32_t code;
};

struct control {
    struct shunt_stream stream; /* none: this node, or closed */
    bool ready;
    bool left; /* said goodbye */
    struct shunt_pulse pulse;
    struct shunt_address live; /* where it takes our signs of life */
    unsigned char *in;         /* [frame_max] */
    size_t in_bytes;
    unsigned char *out; /* [queue_max], under the mutex */
    size_t out_begin, out_end;
};

struct shunt_rack {
    struct shunt_rack_config cfg;
    struct shunt_rack_node nodes[SHUNT_NODES_MAX];
    struct shunt_stream data[SHUNT_NODES_MAX]; /* until it is given away */
    enum shunt_transport_kind transport;
    int live_fd; /* -1: alone */
    _Atomic uint64_t ignored;
    struct control peers[SHUNT_NODES_MAX];
    size_t frame_max, queue_max;
    unsigned char *buffers;

    struct shunt_rack_callbacks callbacks;
    pthread_t thread;
    bool started;
    bool left;  /* has said goodbye */
    bool ended; /* in order: nobody is missed any more; under the mutex */
    int wake_fd;
    _Atomic int stop;
    _Atomic int down; /* code of `why`, set once, after it */

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a peer became ready, or the rack went down */
    struct shunt_error why;
};

/* ---- going down */

static void queue_to_all(struct shunt_rack *rack, uint32_t type, const void *data, uint32_t bytes);
static void wake(struct shunt_rack *rack);

/* Whoever hears of a peer's end leaves, and for those who have not heard of it yet the goodbye
 * would be the first they know: so the reason goes ahead of it. */
static void pass_on(struct shunt_rack *rack, uint32_t rank, const struct shunt_error *why)
{
    const struct verdict verdict = {.rank = rank, .code = why->code};
    unsigned char message[sizeof(verdict) + sizeof(why->text)];
    size_t len = strlen(why->text);

    memcpy(message, &verdict, sizeof(verdict));
    memcpy(message + sizeof(verdict), why->text, len);
    queue_to_all(rack, MESSAGE_DOWN, message, (uint32_t)(sizeof(verdict) + len));
}

/* The first reason stays; after the end in order there is none. */
static void go_down(struct shunt_rack *rack, uint32_t rank, const struct shunt_error *why)
{
    bool first;

    pthread_mutex_lock(&rack->mutex);
    first = atomic_load(&rack->down) == 0 && !rack->ended;
    if (first) {
        rack->why = *why;
        atomic_store(&rack->down, why->code);
        pthread_cond_broadcast(&rack->changed);
    }
    pthread_mutex_unlock(&rack->mutex);
    if (!first)
        return;
    if (rank == rack->cfg.rank)
        queue_to_all(rack, MESSAGE_FAILED, why->text, (uint32_t)strlen(why->text));
    else
        pass_on(rack, rank, why);
    wake(rack);
    if (rack->callbacks.down)
        rack->callbacks.down(rack->callbacks.ctx, rank, why);
}

int shunt_rack_down(const struct shunt_rack *rack)
{
    return atomic_load_explicit(&rack->down, memory_order_acquire);
}

int shunt_rack_why(struct shunt_rack *rack, struct shunt_error *why)
{
    pthread_mutex_lock(&rack->mutex);
    if (why)
        *why = rack->why;
    pthread_mutex_unlock(&rack->mutex);
    return shunt_rack_down(rack);
}

static bool is_open(const struct control *p)
{
    return p->stream.fd >= 0;
}

static void peer_gone(struct shunt_rack *rack, uint32_t rank, int code, const char *how)
{
    struct shunt_error why;

    shunt_stream_close(&rack->peers[rank].stream);
    if (rack->peers[rank].left)
        return;
    shunt_error_set(&why, code, "%s is gone: %s", rack->nodes[rank].label, how);
    go_down(rack, rank, &why);
}

/* The stream broke: how depends on what was under way when the peer's process ended. */
static void stream_broke(struct shunt_rack *rack, uint32_t rank, int error)
{
    if (error == 0 || error == ECONNRESET || error == EPIPE)
        peer_gone(rack, rank, -ECONNRESET,
                  "its process ended without leaving the rack (look at its own last message, or "
                  "for the kernel's out-of-memory killer)");
    else
        peer_gone(rack, rank, -error, strerror(error));
}

/* ---- sending */

static int queue_frame(struct shunt_rack *rack, uint32_t rank, uint32_t type, const void *data,
                       uint32_t bytes)
{
    struct control *p = &rack->peers[rank];
    struct frame frame = {.type = type, .bytes = bytes};
    int rc = -EAGAIN;

    pthread_mutex_lock(&rack->mutex);
    if (p->out_begin > 0) {
        memmove(p->out, p->out + p->out_begin, p->out_end - p->out_begin);
        p->out_end -= p->out_begin;
        p->out_begin = 0;
    }
    if (rack->queue_max - p->out_end >= sizeof(frame) + bytes) {
        memcpy(p->out + p->out_end, &frame, sizeof(frame));
        if (bytes)
            memcpy(p->out + p->out_end + sizeof(frame), data, bytes);
        p->out_end += sizeof(frame) + bytes;
        rc = 0;
    }
    pthread_mutex_unlock(&rack->mutex);
    return rc;
}

static void wake(struct shunt_rack *rack)
{
    const uint64_t one = 1;

    if (write(rack->wake_fd, &one, sizeof(one)) < 0)
        return; /* it is awake already */
}

int shunt_rack_send(struct shunt_rack *rack, uint32_t rank, uint32_t type, const void *data,
                    uint32_t bytes)
{
    int rc = queue_frame(rack, rank, type, data, bytes);

    if (!rc)
        wake(rack);
    return rc;
}

static void queue_to_all(struct shunt_rack *rack, uint32_t type, const void *data, uint32_t bytes)
{
    for (uint32_t r = 0; r < rack->cfg.node_count; r++)
        if (r != rack->cfg.rank)
            queue_frame(rack, r, type, data, bytes);
}

/* ---- receiving */

static void take_failure(struct shunt_rack *rack, uint32_t rank, const char *text, uint32_t bytes)
{
    struct shunt_error why;

    shunt_error_set(&why, -EREMOTEIO, "%s failed: %.*s", rack->nodes[rank].label, (int)bytes, text);
    go_down(rack, rank, &why);
}

static void take_verdict(struct shunt_rack *rack, const unsigned char *data, uint32_t bytes)
{
    struct verdict verdict;
    struct shunt_error why;

    if (bytes < sizeof(verdict))
        return;
    memcpy(&verdict, data, sizeof(verdict));
    if (verdict.rank >= rack->cfg.node_count)
        return;
    shunt_error_set(&why, verdict.code < 0 ? verdict.code : -EREMOTEIO, "%.*s",
                    (int)(bytes - sizeof(verdict)), (const char *)data + sizeof(verdict));
    go_down(rack, verdict.rank, &why);
}

static void take_goodbye(struct shunt_rack *rack, uint32_t rank, bool orderly)
{
    struct shunt_error why;

    rack->peers[rank].left = true;
    if (orderly)
        return;
    shunt_error_set(&why, -ESHUTDOWN, "%s has left the rack", rack->nodes[rank].label);
    go_down(rack, rank, &why);
}

static void take_frame(struct shunt_rack *rack, uint32_t rank, const struct frame *frame,
                       const unsigned char *data)
{
    switch (frame->type) {
    case MESSAGE_READY:
        pthread_mutex_lock(&rack->mutex);
        rack->peers[rank].ready = true;
        pthread_cond_broadcast(&rack->changed);
        pthread_mutex_unlock(&rack->mutex);
        return;
    case MESSAGE_FAILED:
        take_failure(rack, rank, (const char *)data, frame->bytes);
        return;
    case MESSAGE_GOODBYE:
        take_goodbye(rack, rank, frame->bytes == 1 && data[0] == 1);
        return;
    case MESSAGE_DOWN:
        take_verdict(rack, data, frame->bytes);
        return;
    default:
        if (frame->type >= SHUNT_RACK_MESSAGE_FIRST && rack->callbacks.message)
            rack->callbacks.message(rack->callbacks.ctx, rank, frame->type, data, frame->bytes);
    }
}

/* Takes the whole frames that have come. Return: false when the peer breaks the protocol. */
static bool take_frames(struct shunt_rack *rack, uint32_t rank)
{
    struct control *p = &rack->peers[rank];
    size_t at = 0;

    while (p->in_bytes - at >= sizeof(struct frame)) {
        struct frame frame;

        memcpy(&frame, p->in + at, sizeof(frame));
        if (frame.bytes > rack->frame_max - sizeof(frame))
            return false;
        if (p->in_bytes - at - sizeof(frame) < frame.bytes)
            break;
        take_frame(rack, rank, &frame, p->in + at + sizeof(frame));
        at += sizeof(frame) + frame.bytes;
    }
    memmove(p->in, p->in + at, p->in_bytes - at);
    p->in_bytes -= at;
    return true;
}

/* Takes what has come, but not for ever from one that sends without end. */
static void receive(struct shunt_rack *rack, uint32_t rank)
{
    struct control *p = &rack->peers[rank];

    for (uint32_t i = 0; i < RECEIVES_MAX; i++) {
        ssize_t n =
            shunt_stream_recv(&p->stream, p->in + p->in_bytes, rack->frame_max - p->in_bytes);

        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            stream_broke(rack, rank, (int)-n);
            return;
        }
        shunt_pulse_heard(&p->pulse, shunt_now_ns());
        p->in_bytes += (size_t)n;
        if (!take_frames(rack, rank)) {
            peer_gone(rack, rank, -EPROTO, "it sent a control message that is too long");
            return;
        }
    }
}

/* ---- the thread */

/* Return: true while bytes wait for the socket. */
static bool flush_peer(struct shunt_rack *rack, uint32_t rank)
{
    struct control *p = &rack->peers[rank];
    ssize_t n = 0;
    bool more;

    pthread_mutex_lock(&rack->mutex);
    while (p->out_begin < p->out_end && n >= 0) {
        n = shunt_stream_send(&p->stream, p->out + p->out_begin, p->out_end - p->out_begin);
        if (n > 0)
            p->out_begin += (size_t)n;
    }
    more = p->out_begin < p->out_end;
    pthread_mutex_unlock(&rack->mutex);
    if (n >= 0 || n == -EAGAIN)
        return more;
    /* Its last words come first: a goodbye, or why it failed. */
    receive(rack, rank);
    if (is_open(p))
        stream_broke(rack, rank, (int)-n);
    return false;
}

/* ---- signs of life */

static void send_pulses(struct shunt_rack *rack)
{
    for (uint32_t r = 0; r < rack->cfg.node_count; r++) {
        struct control *p = &rack->peers[r];
        struct shunt_datagram d;

        if (!is_open(p))
            continue;
        shunt_pulse_write(&p->pulse, rack->cfg.rank, &d);
        /* One that does not go out is one that got lost. */
        sendto(rack->live_fd, &d, sizeof(d), MSG_DONTWAIT | MSG_NOSIGNAL,
               (const struct sockaddr *)&p->live.addr, p->live.len);
    }
}

static bool take_datagram(struct shunt_rack *rack, const void *bytes, size_t len)
{
    struct shunt_datagram d;

    if (len != sizeof(d))
        return false;
    memcpy(&d, bytes, sizeof(d));
    return d.rank < rack->cfg.node_count && is_open(&rack->peers[d.rank]) &&
           shunt_pulse_read(&rack->peers[d.rank].pulse, d.rank, bytes, len, shunt_now_ns());
}

/* Whoever floods this socket costs time, and only so much in a turn. */
static void receive_pulses(struct shunt_rack *rack)
{
    for (uint32_t i = 0; i < DATAGRAMS_MAX; i++) {
        unsigned char bytes[sizeof(struct shunt_datagram) + 1];
        ssize_t n = recv(rack->live_fd, bytes, sizeof(bytes), MSG_DONTWAIT);

        if (n < 0)
            return;
        if (!take_datagram(rack, bytes, (size_t)n))
            atomic_fetch_add_explicit(&rack->ignored, 1, memory_order_relaxed);
    }
}

uint64_t shunt_rack_ignored(const struct shunt_rack *rack)
{
    return atomic_load_explicit(&rack->ignored, memory_order_relaxed);
}

static void bury(struct shunt_rack *rack, uint32_t rank, int64_t silent_ns)
{
    double seconds = (double)silent_ns / 1e9;
    char how[160];

    if (rack->peers[rank].pulse.heard || rack->peers[rank].pulse.ever)
        snprintf(how, sizeof(how), "nothing heard for %.1f s (--dead-after)", seconds);
    else
        snprintf(how, sizeof(how),
                 "not one datagram of it has come in %.1f s; does a firewall stop UDP between the "
                 "nodes?",
                 seconds);
    peer_gone(rack, rank, -ETIMEDOUT, how);
}

static void look_at_peer(struct shunt_rack *rack, uint32_t rank, int64_t now)
{
    struct shunt_pulse *pulse = &rack->peers[rank].pulse;
    const char *label = rack->nodes[rank].label;
    int64_t silent_ns;

    switch (shunt_pulse_look(pulse, now, rack->cfg.dead_after_ns, rack->cfg.join_timeout_ns,
                             &silent_ns)) {
    case SHUNT_PULSE_SUSPECT:
        shunt_notify_say(&rack->cfg.notify, "%s is silent for %.2f s", label,
                         (double)silent_ns / 1e9);
        return;
    case SHUNT_PULSE_BACK:
        shunt_notify_say(&rack->cfg.notify, "%s is back", label);
        return;
    case SHUNT_PULSE_DEAD:
        bury(rack, rank, silent_ns);
        return;
    default:
        return;
    }
}

/* After the sockets have been read. What this thread has slept too long by (or has been kept from
 * running, with its process or its machine) is not the peers' silence. */
static void check_silence(struct shunt_rack *rack, int64_t *looked_ns)
{
    int64_t now = shunt_now_ns();
    int64_t late = now - *looked_ns - SHUNT_PULSE_NS;

    *looked_ns = now;
    for (uint32_t r = 0; r < rack->cfg.node_count; r++) {
        struct control *p = &rack->peers[r];

        if (!is_open(p) || p->left)
            continue;
        if (late > SHUNT_PULSE_NS)
            shunt_pulse_excuse(&p->pulse, late, now);
        look_at_peer(rack, r, now);
    }
}

/* Before compute, where the system lets us; silent where not: it is no more than a precaution. */
static void claim_priority(void)
{
    const struct sched_param first = {.sched_priority = sched_get_priority_min(SCHED_RR)};

    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first))
        setpriority(PRIO_PROCESS, 0, -10);
}

/* Sends what is queued and takes what has come; sleeps until there is something or `until_ns`.
 * Return: true while something is still queued. */
static bool serve(struct shunt_rack *rack, int64_t until_ns)
{
    struct pollfd fds[SHUNT_NODES_MAX + 2];
    int64_t now = shunt_now_ns();
    struct timespec timeout;
    bool queued = false, pending = false;
    uint64_t sink;

    for (uint32_t r = 0; r < rack->cfg.node_count; r++) {
        struct control *p = &rack->peers[r];
        bool more = is_open(p) && flush_peer(rack, r);

        fds[r] = (struct pollfd){.fd = p->stream.fd,
                                 .events = (short)(more ? POLLIN | POLLOUT : POLLIN)};
        queued |= more;
        pending |= shunt_stream_pending(&p->stream); /* which is no event of the socket */
    }
    fds[rack->cfg.node_count] = (struct pollfd){.fd = rack->wake_fd, .events = POLLIN};
    fds[rack->cfg.node_count + 1] = (struct pollfd){.fd = rack->live_fd, .events = POLLIN};
    timeout = shunt_timespec(until_ns > now && !pending ? until_ns - now : 0);
    if (ppoll(fds, rack->cfg.node_count + 2, &timeout, NULL) <= 0 && !pending)
        return queued;
    if (fds[rack->cfg.node_count + 1].revents)
        receive_pulses(rack);
    if (fds[rack->cfg.node_count].revents && read(rack->wake_fd, &sink, sizeof(sink)) < 0)
        return queued;
    for (uint32_t r = 0; r < rack->cfg.node_count; r++) {
        struct control *p = &rack->peers[r];

        if (is_open(p) && (fds[r].revents || shunt_stream_pending(&p->stream)))
            receive(rack, r);
    }
    return queued;
}

static void *control_main(void *arg)
{
    struct shunt_rack *rack = arg;
    int64_t next_tick = 0, next_pulse = 0, looked_ns = shunt_now_ns();
    int64_t give_up;

    claim_priority();
    while (!atomic_load(&rack->stop)) {
        int64_t now = shunt_now_ns();

        if (now >= next_pulse) {
            send_pulses(rack);
            next_pulse = now + SHUNT_PULSE_NS;
        }
        if (now >= next_tick) {
            next_tick = now + TICK_NS;
            if (rack->callbacks.tick)
                rack->callbacks.tick(rack->callbacks.ctx);
        }
        serve(rack, next_pulse < next_tick ? next_pulse : next_tick);
        check_silence(rack, &looked_ns);
    }
    /* The goodbye goes out, but nobody waits long for a peer that does not read. */
    give_up = shunt_now_ns() + GOODBYE_TIMEOUT_NS;
    while (serve(rack, shunt_now_ns()) && shunt_now_ns() < give_up)
        usleep(GOODBYE_PAUSE_US);
    return NULL;
}

/* ---- set up and tear down */

const struct shunt_rack_node *shunt_rack_nodes(const struct shunt_rack *rack)
{
    return rack->nodes;
}

void shunt_rack_take_streams(struct shunt_rack *rack, struct shunt_stream *streams)
{
    for (uint32_t r = 0; r < rack->cfg.node_count; r++) {
        streams[r] = rack->data[r];
        rack->data[r] = SHUNT_STREAM_NONE;
    }
}

enum shunt_transport_kind shunt_rack_transport(const struct shunt_rack *rack)
{
    return rack->transport;
}

static struct shunt_stream take_stream(struct shunt_stream *stream)
{
    struct shunt_stream taken = *stream;

    *stream = SHUNT_STREAM_NONE;
    return taken;
}

static void adopt_peers(struct shunt_rack *rack, struct shunt_mesh *mesh)
{
    const int one = 1;

    rack->transport = mesh->transport;
    rack->live_fd = mesh->live_fd;
    mesh->live_fd = -1;
    for (uint32_t r = 0; r < rack->cfg.node_count; r++) {
        struct shunt_rack_node *node = &rack->nodes[r];
        struct shunt_joined *joined = &mesh->peers[r];
        struct control *p = &rack->peers[r];

        if (r == rack->cfg.rank) {
            node->rows_max = rack->cfg.rows_max;
            node->kernel_levels = rack->cfg.kernel_levels;
            node->serve_only = rack->cfg.serve_only;
            snprintf(node->label, sizeof(node->label), "rank %" PRIu32 " (this node)", r);
            continue;
        }
        node->rows_max = joined->hello.rows_max;
        node->kernel_levels = joined->hello.kernel_levels;
        node->serve_only = joined->hello.flags & SHUNT_HELLO_SERVE_ONLY;
        shunt_join_label(r, joined->address, node->label, sizeof(node->label));
        p->stream = take_stream(&joined->streams[SHUNT_STREAM_CONTROL]);
        rack->data[r] = take_stream(&joined->streams[SHUNT_STREAM_DATA]);
        p->live = joined->live;
        shunt_pulse_init(&p->pulse, joined->live_key, 0);
        /* A message must not wait for the acknowledgement of the one before it. */
        setsockopt(p->stream.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
}

/* Of each peer: what is coming in, and what waits to go out. */
static size_t frame_max_of(uint32_t message_max)
{
    return sizeof(struct frame) + message_max + QUEUE_SLACK;
}

static size_t queue_max_of(uint32_t message_max)
{
    return frame_max_of(message_max) + QUEUE_SLACK;
}

uint64_t shunt_rack_buffer_bytes(uint32_t node_count, uint32_t message_max)
{
    return (uint64_t)node_count * (frame_max_of(message_max) + queue_max_of(message_max));
}

static int alloc_buffers(struct shunt_rack *rack, struct shunt_error *err)
{
    unsigned char *at;

    rack->frame_max = frame_max_of(rack->cfg.message_max);
    rack->queue_max = queue_max_of(rack->cfg.message_max);
    rack->buffers = at =
        malloc(shunt_rack_buffer_bytes(rack->cfg.node_count, rack->cfg.message_max));
    if (!at)
        return shunt_error_set(err, -ENOMEM, "out of memory for the control channel");
    for (uint32_t r = 0; r < rack->cfg.node_count; r++) {
        rack->peers[r].in = at;
        rack->peers[r].out = at + rack->frame_max;
        at += rack->frame_max + rack->queue_max;
    }
    return 0;
}

/* What is said while joining is much more than what is kept. */
static int join(struct shunt_rack *rack, struct shunt_error *err)
{
    struct shunt_mesh *mesh = malloc(sizeof(*mesh));
    int rc;

    if (!mesh) {
        if (rack->cfg.listen_fd >= 0)
            close(rack->cfg.listen_fd);
        return shunt_error_set(err, -ENOMEM, "out of memory to join the rack");
    }
    shunt_mesh_init(mesh);
    if (rack->cfg.node_count > 1)
        rc = shunt_join(&rack->cfg, mesh, err);
    else
        rc = rack->cfg.listen_fd >= 0 ? -close(rack->cfg.listen_fd) : 0;
    if (!rc)
        adopt_peers(rack, mesh);
    explicit_bzero(mesh, sizeof(*mesh));
    free(mesh);
    return rc;
}

int shunt_rack_join(struct shunt_rack **out, const struct shunt_rack_config *cfg,
                    struct shunt_error *err)
{
    struct shunt_rack *rack = calloc(1, sizeof(*rack));
    pthread_condattr_t monotonic;
    int rc;

    if (!rack) {
        if (cfg->listen_fd >= 0)
            close(cfg->listen_fd);
        return shunt_error_set(err, -ENOMEM, "out of memory for the rack");
    }
    rack->cfg = *cfg;
    rack->wake_fd = -1;
    pthread_mutex_init(&rack->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&rack->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    rack->live_fd = -1;
    for (uint32_t r = 0; r < SHUNT_NODES_MAX; r++)
        rack->peers[r].stream = rack->data[r] = SHUNT_STREAM_NONE;
    rc = join(rack, err);
    if (!rc)
        rc = alloc_buffers(rack, err);
    if (!rc) {
        rack->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (rack->wake_fd < 0)
            rc = shunt_error_set(err, -errno, "no descriptor for the control thread: %s",
                                 strerror(errno));
    }
    if (rc) {
        shunt_rack_close(rack);
        return rc;
    }
    *out = rack;
    return 0;
}

int shunt_rack_start(struct shunt_rack *rack, const struct shunt_rack_callbacks *callbacks,
                     struct shunt_error *err)
{
    int64_t now = shunt_now_ns();
    int rc;

    rack->callbacks = *callbacks;
    for (uint32_t r = 0; r < rack->cfg.node_count; r++)
        rack->peers[r].pulse.heard_ns = now;
    rc = shunt_thread_create(&rack->thread, control_main, rack);
    if (rc)
        return shunt_error_set(err, rc, "cannot start the control thread: %s", strerror(-rc));
    rack->started = true;
    return 0;
}

static uint32_t first_not_ready(const struct shunt_rack *rack)
{
    uint32_t r = 0;

    while (r < rack->cfg.node_count && (r == rack->cfg.rank || rack->peers[r].ready))
        r++;
    return r;
}

int shunt_rack_wait_ready(struct shunt_rack *rack, const struct shunt_patience *patience,
                          struct shunt_error *err)
{
    uint32_t missing;
    int rc = 0;

    queue_to_all(rack, MESSAGE_READY, NULL, 0);
    wake(rack);
    pthread_mutex_lock(&rack->mutex);
    while ((missing = first_not_ready(rack)) < rack->cfg.node_count && !rc) {
        struct timespec slice = shunt_timespec(shunt_now_ns() + SHUNT_PATIENCE_SLICE_NS);

        if (atomic_load(&rack->down)) {
            rc = rack->why.code;
            if (err)
                *err = rack->why;
            break;
        }
        rc = shunt_patience_check(patience, err);
        if (rc == -ETIMEDOUT)
            shunt_error_set(err, rc,
                            "%s has not loaded its weights in the time given (--ready-timeout)",
                            rack->nodes[missing].label);
        if (!rc)
            pthread_cond_timedwait(&rack->changed, &rack->mutex, &slice);
    }
    pthread_mutex_unlock(&rack->mutex);
    return rc;
}

void shunt_rack_end(struct shunt_rack *rack)
{
    pthread_mutex_lock(&rack->mutex);
    rack->ended = true;
    pthread_mutex_unlock(&rack->mutex);
}

void shunt_rack_fail(struct shunt_rack *rack, const struct shunt_error *why)
{
    go_down(rack, rack->cfg.rank, why);
}

void shunt_rack_peer_lost(struct shunt_rack *rack, uint32_t rank, const struct shunt_error *why)
{
    int64_t deadline = shunt_now_ns() + VERDICT_TIMEOUT_NS;

    pthread_mutex_lock(&rack->mutex);
    while (atomic_load(&rack->down) == 0 && shunt_now_ns() < deadline) {
        struct timespec slice = shunt_timespec(deadline);

        pthread_cond_timedwait(&rack->changed, &rack->mutex, &slice);
    }
    pthread_mutex_unlock(&rack->mutex);
    go_down(rack, rank, why);
}

void shunt_rack_leave(struct shunt_rack *rack, bool orderly)
{
    const unsigned char flag = orderly;

    queue_to_all(rack, MESSAGE_GOODBYE, &flag, 1);
    rack->left = true;
    if (!rack->started) {
        /* Nobody sends for us: as much as the sockets take at once, which is a reason and a
         * goodbye. */
        for (uint32_t r = 0; r < rack->cfg.node_count; r++)
            if (is_open(&rack->peers[r]))
                flush_peer(rack, r);
        return;
    }
    atomic_store(&rack->stop, 1);
    wake(rack);
    pthread_join(rack->thread, NULL);
    rack->started = false;
}

void shunt_rack_close(struct shunt_rack *rack)
{
    if (!rack)
        return;
    if (rack->buffers && !rack->left)
        shunt_rack_leave(rack, false);
    for (uint32_t r = 0; r < SHUNT_NODES_MAX; r++) {
        shunt_stream_close(&rack->peers[r].stream);
        shunt_stream_close(&rack->data[r]);
        explicit_bzero(&rack->peers[r].pulse, sizeof(rack->peers[r].pulse));
    }
    if (rack->live_fd >= 0)
        close(rack->live_fd);
    if (rack->wake_fd >= 0)
        close(rack->wake_fd);
    pthread_mutex_destroy(&rack->mutex);
    pthread_cond_destroy(&rack->changed);
    free(rack->buffers);
    free(rack);
}
