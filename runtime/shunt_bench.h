/* SPDX-License-Identifier: Apache-2.0
 *
 * shunt's measurements of its own transports: what the command shunt bench calls. Every node of a
 * rack calls the same function at about the same time; of a dispatch each gets the result of its
 * own side, of a link rank 1 does. The functions block until they are done; they fail where others
 * do not come within rack.join_timeout_ns, or where nothing at all goes on for rack.step_timeout_ns
 * while something is waited for. They leave nothing behind. They allocate, and use one thread: the
 * caller's, which polls (see rack.busy_poll_ns).
 *
 * Rules of shunt.h hold: 0 or a negative errno value, `err` may be NULL, results are written on
 * success only, a struct that begins with `size` may grow.
 */
#ifndef SHUNT_BENCH_H
#define SHUNT_BENCH_H

#include "shunt.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How the nodes meet, and over what they talk. */
struct shunt_bench_rack {
    size_t size;
    uint32_t rank, node_count;
    const char *const *addresses; /* node_count strings "host:port"; or NULL for all but rank 0,
                                     which is then told where the others are */
    int listen_fd;                /* a listening socket to use; closed in any case; or -1 */
    const char *key_file;         /* these as in struct shunt_config */
    const char *cert_file;
    const char *cert_key_file;
    const char *ca_file;
    bool encrypt;
    const char *transport; /* "tcp", "shm", "verbs" */
    struct shunt_link_options link;
    int64_t busy_poll_ns; /* a wait polls so long, then sleeps until it is woken; -1: for ever */
    int64_t join_timeout_ns, step_timeout_ns; /* to meet; and in which nothing goes on */
    void (*listening)(void *ctx); /* by the thread that measures, once others can come; or NULL */
    void *listening_ctx;
};
/* Fills the defaults: rank 0 of 2 over TCP, polling for ever, 60 s, 10 s. */
SHUNT_API void shunt_bench_rack_init(struct shunt_bench_rack *rack);

/* What the figures were measured with. */
enum shunt_bench_hardware {
    SHUNT_BENCH_HOST = 0,     /* the kernel's TCP, or memory of this host */
    SHUNT_BENCH_RDMA,         /* an RDMA device of the machine */
    SHUNT_BENCH_SOFTWARE_RDMA /* rxe, siw: RDMA by the kernel; no figure of it is one of hardware */
};

/* Times of single operations, in ns. Percentiles are values that were measured: of fewer than 1000
 * the 99.9th is the largest, of more than 2^20 they are those of 2^20 picked at random. */
struct shunt_bench_times {
    uint64_t count;
    int64_t min_ns, p50_ns, p99_ns, p999_ns, max_ns;
};

/* ---- link: two nodes */

#define SHUNT_BENCH_LINK_BYTES_MAX (8u << 20)

enum shunt_bench_measure {
    SHUNT_BENCH_BOTH = 0, /* latency, then bandwidth */
    SHUNT_BENCH_LATENCY,
    SHUNT_BENCH_BANDWIDTH
};

struct shunt_bench_link {
    size_t size;
    enum shunt_bench_measure measure;
    const uint64_t *bytes; /* sizes of messages, in [0, SHUNT_BENCH_LINK_BYTES_MAX] */
    uint32_t bytes_count;
    uint32_t iterations; /* of each measurement; 0: as many as fit into duration_ns */
    int64_t duration_ns;
    bool bidirectional; /* bandwidth with both nodes sending */
};
/* Both, 10000 iterations, one direction. */
SHUNT_API void shunt_bench_link_init(struct shunt_bench_link *link);

/* What was not measured is 0. */
struct shunt_bench_link_result {
    uint64_t bytes;
    /* Latency: half of the time of a put and its answer, a put of the same size, until that has
     * ARRIVED. One follows the other, and where one's time ends the next one's begins. */
    struct shunt_bench_times latency;
    /* Bandwidth: from before the first put until the peer's word that the last has ARRIVED; with
     * `bidirectional` from before the two meet, for either may then put first. */
    uint64_t messages;
    int64_t duration_ns;
    double bytes_per_second; /* with `bidirectional` of both directions together */
};

/* Measures each size, after a warm-up of each measurement. Rank 0 is the server: it is
 * connected to, does what rank 1 asks for, its own `link` may be NULL, and it gets no results.
 * `results` has room for bytes_count.
 * Return: 0; -EINVAL; -ETIMEDOUT, -ECONNRESET and the like for a peer that does not come or goes.
 */
SHUNT_API int shunt_bench_link_run(const struct shunt_bench_rack *rack,
                                   const struct shunt_bench_link *link,
                                   struct shunt_bench_link_result *results,
                                   enum shunt_bench_hardware *hardware, struct shunt_error *err);

/* ---- dispatch: two nodes or more */

enum shunt_bench_dtype { SHUNT_BENCH_F32 = 0, SHUNT_BENCH_BF16, SHUNT_BENCH_FP8 };

/* The traffic of one MoE layer without its arithmetic. Each node has `tokens` tokens, each of which
 * `used` of `experts` experts take; expert e lives on node e * node_count / experts. A token's row
 * goes once to each other node that has one of its experts; a row comes back for each (token,
 * expert). FP8 rows carry a float for each 128 elements. */
struct shunt_bench_dispatch {
    size_t size;
    uint32_t tokens;  /* of each node, in [1, 4096] */
    uint32_t hidden;  /* elements of a row, in [1, 65536] */
    uint32_t experts; /* of the layer, in [node_count, 1024] */
    uint32_t used;    /* experts of a token, in [1, 32], at most `experts` */
    enum shunt_bench_dtype dispatch, combine;
    bool zipf; /* expert popularity falls as 1/rank; else all are equal */
    uint64_t seed;
    uint32_t iterations;
};
/* 128 tokens, hidden 7168, 8 of 256 experts, dispatch FP8, combine BF16, 1000 iterations. */
SHUNT_API void shunt_bench_dispatch_init(struct shunt_bench_dispatch *dispatch);

struct shunt_bench_phase {
    struct shunt_bench_times times;
    /* Of this node, over all iterations. */
    uint64_t bytes;     /* sent, headers counted */
    uint64_t puts;      /* one for each peer and iteration */
    uint64_t writes;    /* work requests or the like that they took */
    uint64_t signalled; /* completions that those asked for */
};

struct shunt_bench_dispatch_result {
    size_t size; /* in */
    struct shunt_bench_phase dispatch, combine;
    uint64_t iterations;
    enum shunt_bench_hardware hardware;
};

/* Runs the layer's traffic on all nodes; every node gives the same `dispatch`. Within the time of a
 * phase lie gathering the rows into the send buffer, the puts, and waiting until every other node's
 * rows of this phase have ARRIVED; routing, which is known before, experts and the final sum do
 * not. */
SHUNT_API int shunt_bench_dispatch_run(const struct shunt_bench_rack *rack,
                                       const struct shunt_bench_dispatch *dispatch,
                                       struct shunt_bench_dispatch_result *result,
                                       struct shunt_error *err);

#ifdef __cplusplus
}
#endif

#endif
