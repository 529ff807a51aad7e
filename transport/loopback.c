/* SPDX-License-Identifier: Apache-2.0
 *
 * Each ordered pair of nodes is a link, on which one put flies at a time, as a NIC would write one
 * after the other. Whichever of its two nodes calls moves what is due on it, so that a put lands
 * whether or not its receiver polls. One lock over everything: this is no backend for speed.
 */
#include "transport/loopback.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/region.h"

/* A call takes so long at most, in virtual time. */
#define CALL_NS 200u

struct flying {
    const unsigned char *src;
    uint64_t bytes, off;
    uint32_t imm;
    uint64_t front, back; /* bytes that have landed, from either end */
    int64_t arrive_ns;    /* once it has begun */
    int64_t sent_ns;      /* once it has landed */
    int64_t deadline_ns;  /* virtual */
};

struct arrival {
    uint32_t imm;
    uint64_t bytes;
};

struct credit {
    int64_t due_ns;
    uint32_t count;
};

/* From one node to another. */
struct link {
    /* The sender's open puts, oldest first: of `count` the first `landed` are in the inbox, and the
     * one after them flies if `flies`. */
    struct flying puts[SHUNT_TRANSPORT_DEPTH];
    uint32_t first, count, landed;
    bool flies;
    int64_t arrived_ns, sent_ns; /* of the last put: the next comes no earlier */
    uint32_t unreleased;         /* of the window: begun, and no credit for them has come back */
    struct arrival arrivals[SHUNT_TRANSPORT_WINDOW]; /* not handed out yet */
    uint32_t arrivals_first, arrivals_count;
    uint32_t held; /* handed out and not released */
    struct credit credits[SHUNT_TRANSPORT_WINDOW];
    uint32_t credits_first, credits_count;
};

/* What a node knows of another. */
struct neighbour {
    bool there;
    int lost_error; /* not handed out yet when lost_reason is set */
    const char *lost_reason;
};

struct shunt_transport {
    struct shunt_loopback_net *net;
    uint32_t rank;
    bool dead;
    unsigned char *inbox;
    uint64_t inbox_bytes;
    uint64_t *peer_inbox_bytes; /* [node_count] */
    struct shunt_region *memory;
    uint32_t memory_count;
    int64_t put_timeout_ns;
    bool asleep;                  /* in prepare, with nothing to do */
    int wake_fd;                  /* readable when somebody did something for it then */
    int ready_fd;                 /* always */
    struct neighbour *neighbours; /* [node_count] */
    uint32_t turn;
    struct shunt_transport_counters counters;
};

struct shunt_loopback_net {
    struct shunt_loopback_config cfg;
    pthread_mutex_t mutex;
    uint64_t random;
    int64_t now_ns;
    uint64_t operations;
    struct shunt_transport **nodes; /* [node_count]; NULL: not open */
    struct link *links;             /* [from * node_count + to] */
};

/* ---- the net */

int shunt_loopback_create(struct shunt_loopback_net **out, const struct shunt_loopback_config *cfg,
                          struct shunt_error *err)
{
    struct shunt_loopback_net *net = calloc(1, sizeof(*net));
    const size_t count = cfg->node_count;

    if (net) {
        net->nodes = calloc(count, sizeof(struct shunt_transport *));
        net->links = calloc(count * count, sizeof(*net->links));
    }
    if (!net || !net->nodes || !net->links) {
        if (net)
            free(net->nodes);
        free(net);
        return shunt_error_set(err, -ENOMEM, "out of memory for the loopback net");
    }
    net->cfg = *cfg;
    net->random = cfg->seed;
    pthread_mutex_init(&net->mutex, NULL);
    *out = net;
    return 0;
}

void shunt_loopback_destroy(struct shunt_loopback_net *net)
{
    if (!net)
        return;
    pthread_mutex_destroy(&net->mutex);
    free(net->nodes);
    free(net->links);
    free(net);
}

int64_t shunt_loopback_now_ns(struct shunt_loopback_net *net)
{
    int64_t now;

    pthread_mutex_lock(&net->mutex);
    now = net->now_ns;
    pthread_mutex_unlock(&net->mutex);
    return now;
}

uint64_t shunt_loopback_operations(struct shunt_loopback_net *net)
{
    uint64_t operations;

    pthread_mutex_lock(&net->mutex);
    operations = net->operations;
    pthread_mutex_unlock(&net->mutex);
    return operations;
}

/* In [0, most]. splitmix64. */
static uint64_t roll(struct shunt_loopback_net *net, uint64_t most)
{
    uint64_t x = net->random += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return most == UINT64_MAX ? x : x % (most + 1);
}

static struct link *link_of(const struct shunt_loopback_net *net, uint32_t from, uint32_t to)
{
    return &net->links[(size_t)from * net->cfg.node_count + to];
}

static void wake(const struct shunt_loopback_net *net, uint32_t rank)
{
    struct shunt_transport *t = net->nodes[rank];
    const uint64_t one = 1;

    if (t && t->asleep)
        (void)!write(t->wake_fd, &one, sizeof(one));
}

/* Whoever calls is awake. */
static void wake_up(struct shunt_transport *t)
{
    uint64_t wakes;

    if (t->asleep)
        (void)!read(t->wake_fd, &wakes, sizeof(wakes));
    t->asleep = false;
}

/* A moment on the way, never before `after`. */
static int64_t delay(struct shunt_loopback_net *net, int64_t after)
{
    int64_t due = net->now_ns + (int64_t)roll(net, (uint64_t)net->cfg.delay_max_ns);

    return due > after ? due : after;
}

static void lose(struct shunt_loopback_net *net, uint32_t rank, uint32_t peer, int error,
                 const char *reason)
{
    struct shunt_transport *t = net->nodes[rank];
    struct link *out = link_of(net, rank, peer);

    out->count = 0; /* whatever flies does not arrive */
    out->landed = 0;
    out->flies = false;
    if (!t || !t->neighbours[peer].there)
        return;
    t->neighbours[peer] = (struct neighbour){.lost_error = error, .lost_reason = reason};
    wake(net, rank);
}

static void die(struct shunt_loopback_net *net, uint32_t rank)
{
    for (uint32_t peer = 0; peer < net->cfg.node_count; peer++) {
        if (peer == rank)
            continue;
        lose(net, peer, rank, -ECONNRESET, "it closed the connection");
        lose(net, rank, peer, -ECONNRESET, "this node is gone");
    }
}

/* Every call of a node's. Return: false when it is dead. */
static bool begin_call(struct shunt_transport *t)
{
    struct shunt_loopback_net *net = t->net;

    net->now_ns += (int64_t)roll(net, CALL_NS);
    if (++net->operations == net->cfg.dead_at && net->nodes[net->cfg.dead_rank]) {
        net->nodes[net->cfg.dead_rank]->dead = true;
        die(net, net->cfg.dead_rank);
    }
    return !t->dead;
}

/* ---- a link */

static struct flying *nth_put(struct link *l, uint32_t n)
{
    return &l->puts[(l->first + n) % SHUNT_TRANSPORT_DEPTH];
}

static void take_credits(struct shunt_loopback_net *net, struct link *l)
{
    while (l->credits_count > 0 && l->credits[l->credits_first].due_ns <= net->now_ns) {
        l->unreleased -= l->credits[l->credits_first].count;
        l->credits_first = (l->credits_first + 1) % SHUNT_TRANSPORT_WINDOW;
        l->credits_count--;
    }
}

/* Sends it until it is not lost. Return: false when it always is. */
static bool begin_put(struct shunt_loopback_net *net, struct link *l, struct flying *put)
{
    int64_t lost_ns = 0;
    uint32_t tries = 0;

    while (roll(net, 999) < net->cfg.loss_per_mille) {
        if (tries++ == net->cfg.retry_max)
            return false;
        lost_ns += net->cfg.rto_ns;
    }
    put->arrive_ns = delay(net, l->arrived_ns) + lost_ns;
    l->flies = true;
    l->unreleased++;
    return true;
}

/* Some bytes more of the put that flies, or all that are left. */
static void land_bytes(struct shunt_loopback_net *net, struct flying *put, unsigned char *inbox)
{
    uint64_t left = put->bytes - put->front - put->back;
    uint64_t slice = net->now_ns < put->arrive_ns ? roll(net, left) / 4 : left;

    if (slice == 0)
        return;
    if (roll(net, 1)) {
        memcpy(inbox + put->off + put->front, put->src + put->front, slice);
        put->front += slice;
    } else {
        uint64_t at = put->bytes - put->back - slice;

        memcpy(inbox + put->off + at, put->src + at, slice);
        put->back += slice;
    }
}

static void land(struct shunt_loopback_net *net, struct link *l, struct flying *put)
{
    uint32_t at = (l->arrivals_first + l->arrivals_count++) % SHUNT_TRANSPORT_WINDOW;

    l->arrivals[at] = (struct arrival){.imm = put->imm, .bytes = put->bytes};
    l->arrived_ns = net->now_ns;
    put->sent_ns = l->sent_ns = delay(net, l->sent_ns);
    l->landed++;
    l->flies = false;
}

/* Moves on a link what is due. */
static void step(struct shunt_loopback_net *net, uint32_t from, uint32_t to)
{
    struct link *l = link_of(net, from, to);
    struct shunt_transport *receiver = net->nodes[to];

    take_credits(net, l);
    while (receiver && l->landed < l->count) {
        struct flying *put = nth_put(l, l->landed);

        if (!l->flies && l->unreleased == SHUNT_TRANSPORT_WINDOW)
            return;
        if (!l->flies && !begin_put(net, l, put)) {
            lose(net, from, to, -ETIMEDOUT, "no message gets through to it");
            lose(net, to, from, -ECONNRESET, "it closed the connection");
            return;
        }
        land_bytes(net, put, receiver->inbox);
        if (net->now_ns < put->arrive_ns)
            return;
        land(net, l, put);
        wake(net, to);
    }
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* When something will be due on it for its sender, and for its receiver; INT64_MAX: never. */
static int64_t next_for_sender(struct link *l)
{
    int64_t next = INT64_MAX;

    if (l->landed > 0)
        next = nth_put(l, 0)->sent_ns;
    if (l->flies)
        next = earlier(next, nth_put(l, l->landed)->arrive_ns);
    if (l->count > l->landed && l->credits_count > 0)
        next = earlier(next, l->credits[l->credits_first].due_ns);
    return next;
}

static int64_t next_for_receiver(struct link *l)
{
    if (l->arrivals_count > 0)
        return 0;
    return l->flies ? nth_put(l, l->landed)->arrive_ns : INT64_MAX;
}

/* ---- the table */

static uint64_t loopback_footprint(uint32_t node_count)
{
    return sizeof(struct shunt_transport) +
           node_count * (sizeof(struct neighbour) + sizeof(uint64_t));
}

static void free_node(struct shunt_transport *t)
{
    if (t->wake_fd >= 0)
        close(t->wake_fd);
    if (t->ready_fd >= 0)
        close(t->ready_fd);
    free(t->peer_inbox_bytes);
    free(t->neighbours);
    free(t->memory);
    free(t);
}

static bool loopback_close(struct shunt_transport *t)
{
    struct shunt_loopback_net *net;

    if (!t)
        return true;
    net = t->net;
    pthread_mutex_lock(&net->mutex);
    die(net, t->rank);
    net->nodes[t->rank] = NULL;
    pthread_mutex_unlock(&net->mutex);
    free_node(t);
    return true;
}

static struct shunt_transport *allocate(const struct shunt_transport_config *cfg)
{
    struct shunt_transport *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->ready_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    t->peer_inbox_bytes = calloc(cfg->node_count, sizeof(*t->peer_inbox_bytes));
    t->neighbours = calloc(cfg->node_count, sizeof(*t->neighbours));
    t->memory = calloc(cfg->memory_count + 1, sizeof(*t->memory));
    if (t->wake_fd >= 0 && t->ready_fd >= 0 && t->peer_inbox_bytes && t->neighbours && t->memory)
        return t;
    free_node(t);
    return NULL;
}

static void enter(struct shunt_loopback_net *net, struct shunt_transport *t)
{
    pthread_mutex_lock(&net->mutex);
    net->nodes[t->rank] = t;
    for (uint32_t i = 0; i < net->cfg.node_count; i++)
        if (i != t->rank)
            wake(net, i); /* what was sent before may land now */
    pthread_mutex_unlock(&net->mutex);
}

static int loopback_open(struct shunt_transport **out, const struct shunt_transport_config *cfg,
                         struct shunt_error *err)
{
    struct shunt_transport *t = NULL;
    int rc = shunt_regions_check(cfg, "loopback", err);

    if (!rc && (!cfg->loopback || cfg->loopback->cfg.node_count != cfg->node_count))
        rc = shunt_error_set(err, -EINVAL, "loopback: no net of %u nodes was given",
                             cfg->node_count);
    if (!rc && !(t = allocate(cfg)))
        rc = shunt_error_set(err, -ENOMEM, "out of memory or descriptors for the loopback");
    for (uint32_t i = 0; i < cfg->node_count; i++) {
        struct shunt_stream stream = i == cfg->rank ? SHUNT_STREAM_NONE : cfg->streams[i];

        if (t)
            t->neighbours[i].there = stream.fd >= 0;
        if (t)
            t->peer_inbox_bytes[i] = cfg->peer_inbox_bytes[i];
        shunt_stream_close(&stream);
    }
    if (rc)
        return rc;
    t->net = cfg->loopback;
    t->rank = cfg->rank;
    t->inbox = cfg->inbox.base;
    t->inbox_bytes = cfg->inbox.bytes;
    t->put_timeout_ns = cfg->put_timeout_ns;
    t->memory_count = cfg->memory_count;
    memcpy(t->memory, cfg->memory, cfg->memory_count * sizeof(*cfg->memory));
    enter(t->net, t);
    *out = t;
    return 0;
}

static int put_locked(struct shunt_transport *t, uint32_t peer, const struct flying *put)
{
    struct shunt_loopback_net *net = t->net;
    struct link *l = link_of(net, t->rank, peer);

    if (!begin_call(t) || !t->neighbours[peer].there)
        return -EPIPE;
    if (l->count == SHUNT_TRANSPORT_DEPTH)
        return -EAGAIN;
    *nth_put(l, l->count++) = *put;
    nth_put(l, l->count - 1)->deadline_ns =
        t->put_timeout_ns ? net->now_ns + t->put_timeout_ns : INT64_MAX;
    t->counters.puts_sent++;
    t->counters.bytes_sent += put->bytes;
    t->counters.writes++;
    step(net, t->rank, peer);
    wake(net, peer);
    return 0;
}

static int loopback_put(struct shunt_transport *t, uint32_t peer, const void *src, uint64_t bytes,
                        uint64_t off, uint32_t imm)
{
    const struct flying put = {.src = src, .bytes = bytes, .off = off, .imm = imm};
    int rc;

    if (peer >= t->net->cfg.node_count || peer == t->rank || bytes > t->peer_inbox_bytes[peer] ||
        off > t->peer_inbox_bytes[peer] - bytes ||
        !shunt_regions_hold(t->memory, t->memory_count, src, bytes))
        return -EINVAL;
    pthread_mutex_lock(&t->net->mutex);
    rc = put_locked(t, peer, &put);
    pthread_mutex_unlock(&t->net->mutex);
    return rc;
}

static void loopback_release(struct shunt_transport *t, uint32_t peer, uint32_t count)
{
    struct shunt_loopback_net *net = t->net;
    struct link *l = link_of(net, peer, t->rank);
    uint32_t last;
    int64_t after;

    if (count == 0)
        return;
    pthread_mutex_lock(&net->mutex);
    last = (l->credits_first + l->credits_count - 1) % SHUNT_TRANSPORT_WINDOW;
    after = l->credits_count > 0 ? l->credits[last].due_ns : 0;
    l->held -= count;
    l->credits[(last + 1) % SHUNT_TRANSPORT_WINDOW] =
        (struct credit){.due_ns = delay(net, after), .count = count};
    l->credits_count++;
    wake(net, peer);
    pthread_mutex_unlock(&net->mutex);
}

/* Completions of one poll call. */
struct sink {
    struct shunt_completion *out;
    uint32_t count, max;
};

static void add(struct sink *sink, const struct shunt_completion *c)
{
    sink->out[sink->count++] = *c;
}

static void take_arrivals(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct link *l = link_of(t->net, peer, t->rank);

    while (l->arrivals_count > 0 && sink->count < sink->max) {
        const struct arrival *a = &l->arrivals[l->arrivals_first];

        add(sink, &(struct shunt_completion){
                      .event = SHUNT_TRANSPORT_ARRIVED, .peer = peer, .imm = a->imm});
        t->counters.puts_received++;
        l->arrivals_first = (l->arrivals_first + 1) % SHUNT_TRANSPORT_WINDOW;
        l->arrivals_count--;
        l->held++;
    }
}

static void take_sent(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct link *l = link_of(t->net, t->rank, peer);

    while (l->landed > 0 && nth_put(l, 0)->sent_ns <= t->net->now_ns && sink->count < sink->max) {
        add(sink, &(struct shunt_completion){
                      .event = SHUNT_TRANSPORT_SENT, .peer = peer, .imm = nth_put(l, 0)->imm});
        l->first = (l->first + 1) % SHUNT_TRANSPORT_DEPTH;
        l->count--;
        l->landed--;
    }
}

static void take_loss(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    struct neighbour *n = &t->neighbours[peer];

    if (!n->lost_reason || sink->count == sink->max ||
        link_of(t->net, peer, t->rank)->arrivals_count > 0)
        return;
    add(sink, &(struct shunt_completion){.event = SHUNT_TRANSPORT_LOST,
                                         .peer = peer,
                                         .error = n->lost_error,
                                         .reason = n->lost_reason});
    n->lost_reason = NULL;
}

static void check_deadline(struct shunt_transport *t, uint32_t peer)
{
    struct shunt_loopback_net *net = t->net;
    struct link *l = link_of(net, t->rank, peer);

    if (l->count == 0 || l->landed > 0 || net->now_ns < nth_put(l, 0)->deadline_ns)
        return;
    lose(net, t->rank, peer, -ETIMEDOUT, "it has not taken a message in the time given");
    lose(net, peer, t->rank, -ECONNRESET, "it closed the connection");
}

static void poll_peer(struct shunt_transport *t, uint32_t peer, struct sink *sink)
{
    if (t->neighbours[peer].there) {
        step(t->net, peer, t->rank);
        step(t->net, t->rank, peer);
    }
    take_arrivals(t, peer, sink);
    take_sent(t, peer, sink);
    check_deadline(t, peer);
    take_loss(t, peer, sink);
}

static uint32_t loopback_poll(struct shunt_transport *t, struct shunt_completion *out, uint32_t max)
{
    struct sink sink = {.out = out, .max = max};
    const uint32_t count = t->net->cfg.node_count;

    pthread_mutex_lock(&t->net->mutex);
    wake_up(t);
    if (begin_call(t))
        for (uint32_t i = 0; i < count; i++)
            if ((t->turn + i) % count != t->rank)
                poll_peer(t, (t->turn + i) % count, &sink);
    t->turn = (t->turn + 1) % count;
    pthread_mutex_unlock(&t->net->mutex);
    return sink.count;
}

/* When this node has something to do; INT64_MAX: when somebody wakes it. */
static int64_t next_of_node(struct shunt_transport *t)
{
    int64_t next = INT64_MAX;

    for (uint32_t peer = 0; peer < t->net->cfg.node_count; peer++) {
        if (peer == t->rank)
            continue;
        if (t->neighbours[peer].lost_reason)
            return 0;
        next = earlier(next, next_for_receiver(link_of(t->net, peer, t->rank)));
        next = earlier(next, next_for_sender(link_of(t->net, t->rank, peer)));
    }
    return next;
}

/* Where everybody sleeps, time passes: it jumps to what this node waits for. */
static uint32_t loopback_prepare(struct shunt_transport *t, struct pollfd *fds, uint32_t max)
{
    int64_t next = INT64_MAX;

    if (max == 0)
        return 0;
    pthread_mutex_lock(&t->net->mutex);
    if (begin_call(t))
        next = next_of_node(t);
    if (next != INT64_MAX && next > t->net->now_ns)
        t->net->now_ns = next;
    t->asleep |= next == INT64_MAX;
    pthread_mutex_unlock(&t->net->mutex);
    fds[0] = (struct pollfd){.fd = next == INT64_MAX ? t->wake_fd : t->ready_fd, .events = POLLIN};
    return 1;
}

static const struct shunt_transport_counters *loopback_counters(const struct shunt_transport *t)
{
    return &t->counters;
}

const struct shunt_transport_ops shunt_transport_loopback = {
    .name = "loopback",
    .footprint = loopback_footprint,
    .open = loopback_open,
    .put = loopback_put,
    .release = loopback_release,
    .poll = loopback_poll,
    .prepare = loopback_prepare,
    .counters = loopback_counters,
    .close = loopback_close,
};
