/* SPDX-License-Identifier: Apache-2.0
 *
 * Two nodes and one link: rank 0 waits to be connected to, rank 1 connects. Rank 1, the client,
 * decides what is measured and writes it into the server's inbox; both then walk the same sizes.
 * A ping and its answer always lie in the same area, which the answer shows to be free again, as in
 * perftest and UCX; a stream's messages in a few areas used in turn, as a sender's ring would.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/bench/bench_impl.h"
#include "runtime/bench/ticks.h"

#define CLIENT 1u

#define PLAN_MAGIC  0x4b4e4c42u /* "BLNK" */
#define SIZES_MAX   32u
#define AREAS       8u
#define PAGE        4096u
#define SAMPLES_MAX (1u << 20)

/* What the client asks for. At the beginning of the server's inbox, before the areas. */
struct plan {
    uint32_t magic, sizes, measure, zero;
    uint32_t iterations, bidirectional;
    int64_t duration_ns;
    uint64_t bytes[SIZES_MAX];
};
_Static_assert(sizeof(struct plan) <= PAGE, "the areas begin on the next page");

struct run {
    struct shunt_bench_node b;
    struct plan plan;
    uint64_t area_bytes;
    uint64_t met, data, answers, lasts; /* words of the peer's that have been awaited */
    struct shunt_ticks ticks;
    double tick_ns;
    int64_t *samples; /* [SAMPLES_MAX], in ticks: of round trips */
    int64_t shortest, longest;
    uint64_t random;
    struct shunt_bench_link_result results[SIZES_MAX]; /* rank 1's until all is measured */
};

void shunt_bench_link_init(struct shunt_bench_link *link)
{
    *link = (struct shunt_bench_link){.size = sizeof(*link), .iterations = 10000};
}

static uint32_t peer_of(const struct run *r)
{
    return 1 - r->b.cfg.rank;
}

static bool is_client(const struct run *r)
{
    return r->b.cfg.rank == CLIENT;
}

static int put(struct run *r, uint64_t bytes, uint64_t turn, enum shunt_bench_word word,
               struct shunt_error *err)
{
    uint64_t off = PAGE + turn % AREAS * r->area_bytes;

    return shunt_bench_put(&r->b, peer_of(r), (unsigned char *)r->b.memory.base + off, bytes, off,
                           word, err);
}

static int await(struct run *r, enum shunt_bench_word word, uint64_t *awaited,
                 struct shunt_error *err)
{
    return shunt_bench_await(&r->b, peer_of(r), word, ++*awaited, err);
}

/* Both are here, with nothing under way. */
static int meet(struct run *r, struct shunt_error *err)
{
    int rc = shunt_bench_drain(&r->b, err);

    if (!rc)
        rc = put(r, 0, 0, SHUNT_BENCH_MEET, err);
    return rc ? rc : await(r, SHUNT_BENCH_MEET, &r->met, err);
}

/* ---- latency: put and answer, of the same size */

static int ping(struct run *r, uint64_t bytes, struct shunt_error *err)
{
    int rc = put(r, bytes, 0, SHUNT_BENCH_DATA, err);

    return rc ? rc : await(r, SHUNT_BENCH_DATA, &r->data, err);
}

/* Answers each until LAST says that there are no more. */
static int pong(struct run *r, uint64_t bytes, struct shunt_error *err)
{
    const uint64_t *arrived = r->b.arrived[peer_of(r)];

    for (;;) {
        int rc = shunt_bench_await_either(&r->b, peer_of(r), SHUNT_BENCH_DATA, r->data + 1,
                                          SHUNT_BENCH_LAST, r->lasts + 1, err);

        if (rc)
            return rc;
        if (arrived[SHUNT_BENCH_LAST] > r->lasts) {
            r->lasts++;
            return 0;
        }
        r->data++;
        rc = put(r, bytes, 0, SHUNT_BENCH_DATA, err);
        if (rc)
            return rc;
    }
}

static int64_t ns_since(const struct run *r, int64_t ticks)
{
    return (int64_t)((double)(shunt_ticks_now(&r->ticks) - ticks) * r->tick_ns);
}

static bool goes_on(const struct run *r, const struct plan *p, uint64_t done, int64_t begin)
{
    if (p->iterations > 0)
        return done < p->iterations;
    return ns_since(r, begin) < p->duration_ns;
}

/* Of more than SAMPLES_MAX, each is kept with the same probability (Vitter, "Random sampling with a
 * reservoir", algorithm R). */
static void keep(struct run *r, uint64_t done, int64_t sample)
{
    uint64_t at = done;

    if (done >= SAMPLES_MAX) {
        r->random = r->random * 6364136223846793005u + 1442695040888963407u;
        at = (uint64_t)((double)(r->random >> 11) * 0x1p-53 * (double)(done + 1));
    }
    if (at < SAMPLES_MAX)
        r->samples[at] = sample;
    if (sample < r->shortest)
        r->shortest = sample;
    if (sample > r->longest)
        r->longest = sample;
}

/* A round trip in ticks, as one way in ns. */
static int64_t one_way_ns(const struct run *r, int64_t ticks)
{
    return (int64_t)((double)ticks * r->tick_ns / 2);
}

static struct shunt_bench_times summarize(struct run *r, uint64_t done)
{
    const uint64_t kept = done < SAMPLES_MAX ? done : SAMPLES_MAX;
    struct shunt_bench_times times;

    for (uint64_t i = 0; i < kept; i++)
        r->samples[i] = one_way_ns(r, r->samples[i]);
    times = shunt_bench_summarize(r->samples, kept);
    if (done > kept) {
        times.count = done;
        times.min_ns = one_way_ns(r, r->shortest);
        times.max_ns = one_way_ns(r, r->longest);
    }
    return times;
}

/* Each sample begins where the one before it ended: nothing is left out. */
static int measure_latency(struct run *r, const struct plan *p, uint64_t bytes,
                           struct shunt_bench_times *times, struct shunt_error *err)
{
    const int64_t begin = shunt_ticks_now(&r->ticks);
    int64_t before = begin;
    uint64_t done = 0;
    int rc = 0;

    if (!is_client(r))
        return pong(r, bytes, err);
    r->shortest = INT64_MAX;
    r->longest = 0;
    for (; !rc && goes_on(r, p, done, begin); done++) {
        int64_t now;

        rc = ping(r, bytes, err);
        now = shunt_ticks_now(&r->ticks);
        keep(r, done, now - before);
        before = now;
    }
    if (!rc)
        rc = put(r, 0, 0, SHUNT_BENCH_LAST, err);
    *times = summarize(r, done);
    return rc;
}

/* ---- bandwidth */

/* Tells the peer, once, that its last message has come. */
static int answer_last(struct run *r, struct shunt_error *err)
{
    if (r->b.arrived[peer_of(r)][SHUNT_BENCH_LAST] == r->lasts)
        return 0;
    r->lasts++;
    return put(r, 0, 0, SHUNT_BENCH_ANSWER, err);
}

/* Return: messages sent, or a negative errno value. */
static int64_t send_stream(struct run *r, const struct plan *p, uint64_t bytes,
                           struct shunt_error *err)
{
    const int64_t begin = shunt_ticks_now(&r->ticks);
    uint64_t sent = 0;
    int rc = 0;

    while (!rc && goes_on(r, p, sent + 1, begin)) {
        rc = put(r, bytes, sent++, SHUNT_BENCH_DATA, err);
        if (!rc)
            rc = answer_last(r, err);
    }
    if (!rc)
        rc = put(r, bytes, sent++, SHUNT_BENCH_LAST, err);
    return rc ? rc : (int64_t)sent;
}

/* The peer may begin as soon as it has this node's word: of what it sends none may lie before the
 * beginning. */
static int meet_for(struct run *r, const struct plan *p, int64_t *begin, struct shunt_error *err)
{
    int rc = shunt_bench_drain(&r->b, err);

    *begin = shunt_ticks_now(&r->ticks);
    if (!rc)
        rc = meet(r, err);
    if (!p->bidirectional)
        *begin = shunt_ticks_now(&r->ticks);
    return rc;
}

static int measure_bandwidth(struct run *r, const struct plan *p, uint64_t bytes,
                             struct shunt_bench_link_result *result, struct shunt_error *err)
{
    const bool sends = is_client(r) || p->bidirectional;
    const bool receives = !is_client(r) || p->bidirectional;
    const uint64_t *arrived = r->b.arrived[peer_of(r)];
    const uint64_t lasts = r->lasts;
    int64_t begin, sent = 0;
    int rc = meet_for(r, p, &begin, err);

    if (rc)
        return rc;
    if (sends)
        sent = send_stream(r, p, bytes, err);
    if (sent < 0)
        return (int)sent;
    if (receives && r->lasts == lasts)
        rc = shunt_bench_await(&r->b, peer_of(r), SHUNT_BENCH_LAST, lasts + 1, err);
    if (!rc && receives)
        rc = answer_last(r, err);
    if (!rc && sends)
        rc = await(r, SHUNT_BENCH_ANSWER, &r->answers, err);
    if (receives) /* with LAST */
        sent += (int64_t)(arrived[SHUNT_BENCH_DATA] - r->data + 1);
    r->data = arrived[SHUNT_BENCH_DATA];
    result->messages = (uint64_t)sent;
    result->duration_ns = ns_since(r, begin);
    result->bytes_per_second =
        (double)sent * (double)bytes * 1e9 / (double)(result->duration_ns + !result->duration_ns);
    return rc;
}

/* ---- one size after the other */

static int measure_size(struct run *r, uint64_t bytes, struct shunt_bench_link_result *result,
                        struct shunt_error *err)
{
    struct plan warm = r->plan;
    int rc;

    r->tick_ns = shunt_ticks_ns(&r->ticks); /* the more exact, the later */
    rc = meet(r, err);
    warm.iterations = bytes > 65536 ? 50 : 500;
    *result = (struct shunt_bench_link_result){.bytes = bytes};
    if (!rc && r->plan.measure != SHUNT_BENCH_BANDWIDTH) {
        rc = measure_latency(r, &warm, bytes, &result->latency, err);
        if (!rc)
            rc = measure_latency(r, &r->plan, bytes, &result->latency, err);
    }
    if (rc || r->plan.measure == SHUNT_BENCH_LATENCY)
        return rc;
    rc = measure_bandwidth(r, &warm, bytes, result, err);
    return rc ? rc : measure_bandwidth(r, &r->plan, bytes, result, err);
}

/* The client's plan becomes the server's. */
static int agree(struct run *r, struct shunt_error *err)
{
    uint64_t plans = 0;
    int rc;

    if (is_client(r)) {
        memcpy(r->b.memory.base, &r->plan, sizeof(r->plan));
        return shunt_bench_put(&r->b, peer_of(r), r->b.memory.base, sizeof(r->plan), 0,
                               SHUNT_BENCH_PLAN, err);
    }
    rc = await(r, SHUNT_BENCH_PLAN, &plans, err);
    if (rc)
        return rc;
    memcpy(&r->plan, r->b.inbox.base, sizeof(r->plan));
    rc = r->plan.magic == PLAN_MAGIC && r->plan.sizes <= SIZES_MAX &&
                 r->plan.measure <= SHUNT_BENCH_BANDWIDTH && r->plan.zero == 0
             ? 0
             : -EPROTO;
    for (uint32_t i = 0; !rc && i < r->plan.sizes; i++)
        rc = r->plan.bytes[i] <= r->area_bytes ? 0 : -EPROTO;
    return rc ? shunt_error_set(err, rc, "the client asks for what this version does not measure")
              : 0;
}

static int make_plan(struct run *r, const struct shunt_bench_link *link, struct shunt_error *err)
{
    uint64_t most = 0;

    if (!is_client(r)) {
        r->area_bytes = PAGE;
        return 0;
    }
    if (!link || link->size != sizeof(*link) || link->bytes_count == 0 ||
        link->bytes_count > SIZES_MAX || (uint32_t)link->measure > SHUNT_BENCH_BANDWIDTH ||
        (link->iterations == 0 && link->duration_ns <= 0))
        return shunt_error_set(err, -EINVAL, "1 to %u sizes, and iterations or a duration",
                               SIZES_MAX);
    r->plan = (struct plan){.magic = PLAN_MAGIC,
                            .sizes = link->bytes_count,
                            .measure = (uint32_t)link->measure,
                            .iterations = link->iterations,
                            .bidirectional = link->bidirectional,
                            .duration_ns = link->duration_ns};
    for (uint32_t i = 0; i < link->bytes_count; i++) {
        r->plan.bytes[i] = link->bytes[i];
        most = link->bytes[i] > most ? link->bytes[i] : most;
    }
    if (most > SHUNT_BENCH_LINK_BYTES_MAX)
        return shunt_error_set(err, -EINVAL, "a message of %llu bytes: at most %u",
                               (unsigned long long)most, SHUNT_BENCH_LINK_BYTES_MAX);
    r->area_bytes = most / PAGE * PAGE + PAGE;
    return 0;
}

/* Areas of the size that the client has asked for when it said hello, on both sides. */
static int open_run(struct run *r, struct shunt_error *err)
{
    r->area_bytes = (uint64_t)shunt_rack_nodes(r->b.rack)[CLIENT].rows_max * PAGE;
    r->b.inbox_bytes[0] = r->b.inbox_bytes[1] = PAGE + AREAS * r->area_bytes;
    r->samples = malloc(SAMPLES_MAX * sizeof(*r->samples));
    if (!r->samples)
        return shunt_error_set(err, -ENOMEM, "out of memory for the samples");
    shunt_ticks_start(&r->ticks);
    memset(r->samples, 0, SAMPLES_MAX * sizeof(*r->samples)); /* its pages are there */
    return shunt_bench_open(&r->b, PAGE + AREAS * r->area_bytes, err);
}

static int measure(struct run *r, const struct shunt_bench_rack *rack, struct shunt_error *err)
{
    static const uint8_t shape[16] = "bench link 2";
    int rc = shunt_bench_join(&r->b, rack, "shunt bench link", shape,
                              (uint32_t)(r->area_bytes / PAGE), err);

    if (!rc)
        rc = open_run(r, err);
    if (!rc)
        rc = agree(r, err);
    for (uint32_t i = 0; !rc && i < r->plan.sizes; i++)
        rc = measure_size(r, r->plan.bytes[i], &r->results[i], err);
    return rc ? rc : meet(r, err);
}

int shunt_bench_link_run(const struct shunt_bench_rack *rack, const struct shunt_bench_link *link,
                         struct shunt_bench_link_result *results,
                         enum shunt_bench_hardware *hardware, struct shunt_error *err)
{
    struct run *r = calloc(1, sizeof(*r));
    int rc;

    if (!r)
        return shunt_error_set(err, -ENOMEM, "out of memory");
    r->b.cfg.rank = rack->rank;
    rc = rack->size == sizeof(*rack) && rack->node_count == 2 && rack->rank < 2
             ? make_plan(r, link, err)
             : shunt_error_set(err, -EINVAL, "a link has two nodes");
    if (rc && rack->listen_fd >= 0)
        close(rack->listen_fd);
    if (!rc)
        rc = measure(r, rack, err);
    if (!rc && is_client(r))
        memcpy(results, r->results, r->plan.sizes * sizeof(*results));
    if (!rc && hardware)
        *hardware = shunt_bench_hardware_of(&r->b);
    shunt_bench_close(&r->b);
    free(r->samples);
    free(r);
    return rc;
}
