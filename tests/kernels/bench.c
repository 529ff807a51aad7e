/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast each level is on this machine, on one thread.
 *
 * Inside the timed window: the function alone, with memory touched before and the best of several
 * runs kept (the machine may be shared; the best run is the one least disturbed). matmul with one
 * row streams 32 MiB or more of weights, which is decoding; GB/s are bytes of stored weights.
 * matmul with 32 rows uses a part of them, which is prefill; GFLOP/s count a multiply and an add
 * per weight and row. attend is one head of 128 over 4096 keys; its GB/s are keys and values.
 *
 *   usage: bench [--quick]
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "runtime/base/clock.h"

#define COLS         4096u
#define ROWS_MAX     32u
#define WEIGHT_BYTES (32u << 20)
#define HEAD_DIM     128u
#define KEYS         4096u

struct bench {
    const struct shunt_kernels *kernels;
    unsigned char *weights;
    float *scratch, *kv;
    float *x[ROWS_MAX], *y[ROWS_MAX];
    uint32_t runs;
};

static void *allocate(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);

    if (!p) {
        fprintf(stderr, "bench: out of memory\n");
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

static void prepare(struct bench *b, uint32_t outputs_max)
{
    uint32_t state = 1;

    b->weights = allocate(WEIGHT_BYTES);
    /* Any bytes do, but for infinite scales and NaNs: bit 6 of each byte off keeps F16s finite. */
    for (size_t i = 0; i < WEIGHT_BYTES; i++) {
        state = state * 1664525u + 1013904223u;
        b->weights[i] = (unsigned char)(state >> 24 & 0xbf);
    }
    b->scratch = allocate(sizeof(float) * SHUNT_MATMUL_PANEL * COLS);
    b->kv = allocate(sizeof(float) * 2 * HEAD_DIM * KEYS);
    for (uint32_t i = 0; i < ROWS_MAX; i++) {
        b->x[i] = allocate(sizeof(float) * COLS);
        b->y[i] = allocate(sizeof(float) * outputs_max);
        for (uint32_t c = 0; c < COLS; c++)
            b->x[i][c] = (float)((i + c) % 17) - 8;
    }
}

/* Seconds of the best run. */
static double time_matmul(struct bench *b, enum shunt_weight_type type, uint32_t outputs,
                          uint32_t count)
{
    struct shunt_matrix w = {b->weights, type, outputs, COLS, shunt_weight_row_bytes(type, COLS)};
    int64_t best = INT64_MAX;

    for (uint32_t run = 0; run < b->runs; run++) {
        int64_t start = shunt_now_ns(), took;

        b->kernels->matmul(&w, 0, outputs, (const float *const *)b->x, b->y, count, b->scratch);
        took = shunt_now_ns() - start;
        best = took < best ? took : best;
    }
    return (double)best / SHUNT_NS_PER_S;
}

static double time_attend(struct bench *b)
{
    struct shunt_attend a = {.q = b->x[0],
                             .k = b->kv,
                             .v = b->kv + HEAD_DIM * KEYS,
                             .stride = HEAD_DIM,
                             .key_count = KEYS,
                             .head_dim = HEAD_DIM,
                             .scale = 0.1f,
                             .out = b->y[0]};
    int64_t best = INT64_MAX;

    for (uint32_t run = 0; run < 10 * b->runs; run++) {
        int64_t start = shunt_now_ns(), took;

        b->kernels->attend(&a);
        took = shunt_now_ns() - start;
        best = took < best ? took : best;
    }
    return (double)best / SHUNT_NS_PER_S;
}

static void report_type(struct bench *b, enum shunt_weight_type type)
{
    double gbps[SHUNT_KERNEL_LEVELS], gflops[SHUNT_KERNEL_LEVELS];
    uint32_t outputs = (uint32_t)(WEIGHT_BYTES / shunt_weight_row_bytes(type, COLS));
    uint32_t part = 256;

    for (uint32_t level = 0; level < SHUNT_KERNEL_LEVELS; level++) {
        b->kernels = shunt_kernels_get((enum shunt_kernel_level)level);
        if (!b->kernels)
            continue;
        gbps[level] = WEIGHT_BYTES / time_matmul(b, type, outputs, 1) * 1e-9;
        gflops[level] = 2.0 * part * COLS * ROWS_MAX / time_matmul(b, type, part, ROWS_MAX) * 1e-9;
        printf("%-6s %-6s %8.2f %6.1fx %10.2f %6.1fx\n", shunt_weight_info(type)->name,
               b->kernels->name, gbps[level], gbps[level] / gbps[SHUNT_KERNELS_REF], gflops[level],
               gflops[level] / gflops[SHUNT_KERNELS_REF]);
    }
}

static void report_attend(struct bench *b)
{
    double bytes = sizeof(float) * 2.0 * HEAD_DIM * KEYS;
    double ref = 0;

    for (uint32_t level = 0; level < SHUNT_KERNEL_LEVELS; level++) {
        double gbps;

        b->kernels = shunt_kernels_get((enum shunt_kernel_level)level);
        if (!b->kernels)
            continue;
        gbps = bytes / time_attend(b) * 1e-9;
        ref = level == SHUNT_KERNELS_REF ? gbps : ref;
        printf("%-6s %-6s %8.2f %6.1fx\n", "attend", b->kernels->name, gbps, gbps / ref);
    }
}

int main(int argc, char **argv)
{
    struct bench b = {.runs = argc > 1 && !strcmp(argv[1], "--quick") ? 1 : 5};

    prepare(&b, WEIGHT_BYTES / COLS * 2);
    printf("%-6s %-6s %8s %7s %10s %7s\n", "type", "level", "GB/s", "vs ref", "GFLOP/s", "vs ref");
    printf("%-6s %-6s %8s %7s %10s %7s\n", "", "", "1 row", "", "32 rows", "");
    for (uint32_t type = 0; type < SHUNT_WEIGHT_TYPES; type++)
        report_type(&b, (enum shunt_weight_type)type);
    report_attend(&b);
    return 0; /* the process ends here; its memory goes with it */
}
