/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/kernels/check.h"

#define COUNT_MAX 17u

static const uint32_t counts[] = {0, 1, 2, 3, 4, 5, 6, 7, COUNT_MAX};

/* A matrix and rows to multiply it with; every piece of memory guarded, and where it begins
 * settable. */
struct problem {
    struct shunt_matrix w;
    uint64_t seed;
    struct guarded weights, scratch, x[COUNT_MAX], y[COUNT_MAX];
    const float *xs[COUNT_MAX];
    float *ys[COUNT_MAX];
};

struct shape {
    uint32_t rows, cols;
};

/* Widths in blocks of the type: less than eight weights, tails, more than one chunk of columns. */
static const struct shape plain_shapes[] = {{1, 1},  {3, 7},   {4, 8},    {5, 9},   {9, 31},
                                            {7, 61}, {2, 255}, {11, 257}, {6, 515}, {4, 4096}};
static const struct shape block_shapes[] = {{1, 1}, {3, 2}, {4, 3}, {5, 9}, {11, 8}, {6, 16}};

static const struct shape *shapes_of(enum shunt_weight_type type, uint32_t *count)
{
    bool plain = shunt_weight_info(type)->block_len == 1;

    *count = plain ? sizeof(plain_shapes) / sizeof(*plain_shapes)
                   : sizeof(block_shapes) / sizeof(*block_shapes);
    return plain ? plain_shapes : block_shapes;
}

static void problem_open(struct problem *p, enum shunt_weight_type type, enum weight_case c,
                         struct shape shape, float magnitude, uint64_t seed)
{
    uint32_t cols = shape.cols * shunt_weight_info(type)->block_len;
    size_t row_bytes = shunt_weight_row_bytes(type, cols);

    p->seed = seed;
    guarded_open(&p->weights, row_bytes * shape.rows, seed % 4);
    random_weights(&seed, type, c, p->weights.data, (uint64_t)cols * shape.rows);
    p->w = (struct shunt_matrix){p->weights.data, type, shape.rows, cols, row_bytes};
    guarded_floats(&p->scratch, SHUNT_MATMUL_PANEL * cols, seed % 8);
    for (uint32_t i = 0; i < COUNT_MAX; i++) {
        float *x = guarded_floats(&p->x[i], cols, (seed + i) % 8);

        random_floats(&seed, x, cols, magnitude);
        p->xs[i] = x;
        p->ys[i] = guarded_floats(&p->y[i], shape.rows, (seed + 2 * i) % 8);
    }
}

static void problem_close(struct problem *p)
{
    guarded_close(&p->weights);
    guarded_close(&p->scratch);
    for (uint32_t i = 0; i < COUNT_MAX; i++) {
        guarded_close(&p->x[i]);
        guarded_close(&p->y[i]);
    }
}

static void multiply(const struct shunt_kernels *k, struct problem *p, uint32_t begin, uint32_t end,
                     uint32_t first, uint32_t count)
{
    k->matmul(&p->w, begin, end, p->xs + first, p->ys + first, count, (float *)p->scratch.data);
}

/* All results, a row and an output at a time: results[i * rows + o]. */
static float *one_by_one(const struct shunt_kernels *k, struct problem *p)
{
    float *results = malloc(sizeof(float) * COUNT_MAX * p->w.rows);

    cr_assert_not_null(results);
    for (uint32_t i = 0; i < COUNT_MAX; i++)
        for (uint32_t o = 0; o < p->w.rows; o++) {
            multiply(k, p, o, o + 1, i, 1);
            results[i * p->w.rows + o] = p->ys[i][o];
        }
    return results;
}

static void forget_results(struct problem *p)
{
    for (uint32_t i = 0; i < COUNT_MAX; i++)
        memset(p->ys[i], GUARD_FILL, p->w.rows * sizeof(float));
}

/* Rows [0, count) and outputs [begin, end) are as in `expected`; nothing else has been written. */
static void check_results(const struct shunt_kernels *k, const struct problem *p,
                          const float *expected, uint32_t begin, uint32_t end, uint32_t count)
{
    float untouched;

    memset(&untouched, GUARD_FILL, sizeof(untouched));
    for (uint32_t i = 0; i < COUNT_MAX; i++)
        for (uint32_t o = 0; o < p->w.rows; o++) {
            bool inside = i < count && o >= begin && o < end;
            float want = inside ? expected[i * p->w.rows + o] : untouched;

            cr_assert(same_float(p->ys[i][o], want),
                      "%s %s %ux%u, %u rows, outputs [%u, %u): y[%u][%u] is %a, alone %a", k->name,
                      shunt_weight_info(p->w.type)->name, p->w.rows, p->w.cols, count, begin, end,
                      i, o, p->ys[i][o], want);
        }
}

static void check_batches_and_splits(const struct shunt_kernels *k, struct problem *p)
{
    float *expected = one_by_one(k, p);

    for (uint32_t c = 0; c < sizeof(counts) / sizeof(*counts); c++)
        for (uint32_t begin = 0; begin <= p->w.rows; begin++)
            for (uint32_t end = begin; end <= p->w.rows; end++) {
                forget_results(p);
                multiply(k, p, begin, end, 0, counts[c]);
                check_results(k, p, expected, begin, end, counts[c]);
            }
    free(expected);
}

/* The promise the whole rack rests on: a result is the same bits in whatever company it is
 * computed: any number of rows, any part of the outputs, any address. */
Test(matmul, result_does_not_depend_on_company)
{
    const struct shunt_kernels *k;
    struct problem p;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t type = 0; type < SHUNT_WEIGHT_TYPES; type++) {
            uint32_t shape_count;
            const struct shape *shapes = shapes_of((enum shunt_weight_type)type, &shape_count);

            for (uint32_t s = 0; s < shape_count; s++)
                for (uint32_t c = 0; c < WEIGHT_CASES; c += WEIGHTS_ANY) {
                    problem_open(&p, (enum shunt_weight_type)type, (enum weight_case)c, shapes[s],
                                 1, 100 * type + s);
                    check_batches_and_splits(k, &p);
                    problem_close(&p);
                }
        }
}

Test(matmul, result_does_not_depend_on_addresses)
{
    const struct shunt_kernels *k;
    struct problem p;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t type = 0; type < SHUNT_WEIGHT_TYPES; type++)
            for (uint32_t skew = 1; skew < 9; skew++) {
                const struct shunt_weight_info *info = shunt_weight_info(type);
                struct shape shape = {5, info->block_len == 1 ? 77 : 3};
                struct guarded moved;
                float *expected;

                problem_open(&p, (enum shunt_weight_type)type, WEIGHTS_TYPICAL, shape, 1, type);
                expected = one_by_one(k, &p);
                guarded_open(&moved, p.weights.bytes, skew);
                memcpy(moved.data, p.weights.data, moved.bytes);
                p.w.data = moved.data;
                for (uint32_t i = 0; i < COUNT_MAX; i++) {
                    size_t bytes = p.x[i].bytes;
                    struct guarded x;

                    memcpy(guarded_floats(&x, bytes / 4, (skew + i) % 8), p.x[i].data, bytes);
                    guarded_close(&p.x[i]);
                    p.x[i] = x;
                    p.xs[i] = (float *)x.data;
                }
                forget_results(&p);
                multiply(k, &p, 0, p.w.rows, 0, COUNT_MAX);
                check_results(k, &p, expected, 0, p.w.rows, COUNT_MAX);
                guarded_close(&moved);
                free(expected);
                problem_close(&p);
            }
}

/* Nothing behind the weights, the activations or the scratch is touched. */
Test(matmul, touches_its_memory_only)
{
    const struct shunt_kernels *k;
    struct problem p;

    for (uint32_t l = 0; (k = next_level(&l)); l++)
        for (uint32_t type = 0; type < SHUNT_WEIGHT_TYPES; type++) {
            uint32_t shape_count;
            const struct shape *shapes = shapes_of((enum shunt_weight_type)type, &shape_count);

            for (uint32_t s = 0; s < shape_count; s++) {
                problem_open(&p, (enum shunt_weight_type)type, WEIGHTS_TYPICAL, shapes[s], 1, s);
                p.w.data = fenced(p.weights.data, p.weights.bytes);
                for (uint32_t i = 0; i < COUNT_MAX; i++)
                    p.xs[i] = fenced(p.x[i].data, p.x[i].bytes);
                k->matmul(&p.w, 0, p.w.rows, p.xs, p.ys, COUNT_MAX, fenced(NULL, p.scratch.bytes));
                problem_close(&p);
            }
        }
}

/* More rows than any tile or group of tiles holds. */
Test(matmul, many_rows)
{
    enum { ROWS = 211, COLS = 96, OUTPUTS = 6 };
    static float x[ROWS][COLS], y[ROWS][OUTPUTS], alone[OUTPUTS];
    static float scratch[SHUNT_MATMUL_PANEL * COLS];
    static unsigned char weights[OUTPUTS * COLS * 4];
    const float *xs[ROWS];
    float *ys[ROWS], *y_alone = alone;
    const struct shunt_kernels *k;
    uint64_t seed = 5;
    struct shunt_matrix w = {weights, SHUNT_WEIGHT_Q8_0, OUTPUTS, COLS,
                             shunt_weight_row_bytes(SHUNT_WEIGHT_Q8_0, COLS)};

    random_weights(&seed, w.type, WEIGHTS_TYPICAL, weights, OUTPUTS * COLS);
    random_floats(&seed, &x[0][0], ROWS * COLS, 1);
    for (uint32_t i = 0; i < ROWS; i++) {
        xs[i] = x[i];
        ys[i] = y[i];
    }
    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        k->matmul(&w, 0, OUTPUTS, xs, ys, ROWS, scratch);
        for (uint32_t i = 0; i < ROWS; i++) {
            k->matmul(&w, 0, OUTPUTS, &xs[i], &y_alone, 1, scratch);
            cr_assert(same_floats(alone, y[i], OUTPUTS), "%s row %u", k->name, i);
        }
    }
}

/* A level against the sum in double. Return: the largest error relative to the sum of |w x|. */
static double check_sums(const struct shunt_kernels *k, struct problem *p, double tolerance)
{
    const struct shunt_kernels *ref = shunt_kernels_get(SHUNT_KERNELS_REF);
    float *w = malloc(sizeof(float) * p->w.cols);
    double worst = 0;

    cr_assert_not_null(w);
    multiply(k, p, 0, p->w.rows, 0, COUNT_MAX);
    for (uint32_t o = 0; o < p->w.rows; o++) {
        ref->dequantize(p->w.type, p->weights.data + o * p->w.row_bytes, w, p->w.cols);
        for (uint32_t i = 0; i < COUNT_MAX; i++) {
            double sum = 0, size = 0, error;

            for (uint32_t c = 0; c < p->w.cols; c++) {
                sum += (double)w[c] * (double)p->xs[i][c];
                size += fabs((double)w[c] * (double)p->xs[i][c]);
            }
            /* Behind the sum: products below the smallest denormal are lost one by one. */
            error = fabs((double)p->ys[i][o] - sum) - p->w.cols * 0x1p-149;
            cr_assert(error <= tolerance * size,
                      "%s %s %ux%u y[%u][%u]: %a, in double %a, relative error %g", k->name,
                      shunt_weight_info(p->w.type)->name, p->w.rows, p->w.cols, i, o, p->ys[i][o],
                      sum, error / size);
            if (error > 0)
                worst = CHECK_MAX(worst, error / size);
        }
    }
    free(w);
    return worst;
}

/* Ordinary and extreme weights with ordinary, tiny (products are denormal) and large activations.
 */
Test(matmul, sums_are_right)
{
    static const float magnitudes[] = {1, 1e-38f, 1e-42f, 1e6f};
    const struct shunt_kernels *k;
    struct problem p;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        double worst = 0;

        for (uint32_t type = 0; type < SHUNT_WEIGHT_TYPES; type++)
            for (uint32_t c = 0; c < WEIGHTS_ANY; c++)
                for (uint32_t m = 0; m < sizeof(magnitudes) / sizeof(*magnitudes); m++) {
                    uint32_t shape_count;
                    const struct shape *shapes =
                        shapes_of((enum shunt_weight_type)type, &shape_count);

                    if (c == WEIGHTS_MAX && magnitudes[m] > 1)
                        continue; /* overflows F32 */
                    for (uint32_t s = 0; s < shape_count; s++) {
                        double error;

                        problem_open(&p, (enum shunt_weight_type)type, (enum weight_case)c,
                                     shapes[s], magnitudes[m], 100 * type + s);
                        error = check_sums(k, &p, SHUNT_TOL_DOT);
                        worst = CHECK_MAX(worst, error);
                        problem_close(&p);
                    }
                }
        cr_log_info("%s: largest error of a dot product %.2g", k->name, worst);
    }
}

/* All of one sign, the longest rows there are: roundings do not cancel. */
Test(matmul, long_sums_of_one_sign)
{
    const struct shunt_kernels *k;
    struct problem p;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        problem_open(&p, SHUNT_WEIGHT_F32, WEIGHTS_TYPICAL, (struct shape){4, 14336}, 1, 3);
        for (uint32_t i = 3; i < p.weights.bytes; i += 4)
            p.weights.data[i] &= 0x7f;
        for (uint32_t i = 0; i < COUNT_MAX; i++)
            for (uint32_t c = 0; c < p.w.cols; c++)
                ((float *)p.x[i].data)[c] = fabsf(p.xs[i][c]);
        cr_log_info("%s: largest error of a sum of one sign %.2g", k->name,
                    check_sums(k, &p, SHUNT_TOL_DOT_ONE_SIGN));
        problem_close(&p);
    }
}

/* A NaN or an infinity among the weights stays in its own output. */
Test(matmul, bad_weights_stay_in_their_output)
{
    const struct shunt_kernels *k;
    struct problem p;

    for (uint32_t l = 0; (k = next_level(&l)); l++) {
        float clean[COUNT_MAX][7];

        problem_open(&p, SHUNT_WEIGHT_F16, WEIGHTS_TYPICAL, (struct shape){7, 261}, 1, 11);
        multiply(k, &p, 0, 7, 0, COUNT_MAX);
        for (uint32_t i = 0; i < COUNT_MAX; i++)
            memcpy(clean[i], p.ys[i], sizeof(clean[i]));
        memcpy(p.weights.data + 2 * p.w.row_bytes + 100, "\x00\x7e", 2); /* NaN, output 2 */
        memcpy(p.weights.data + 5 * p.w.row_bytes + 520, "\x00\x7c", 2); /* inf, output 5 */
        multiply(k, &p, 0, 7, 0, COUNT_MAX);
        for (uint32_t i = 0; i < COUNT_MAX; i++)
            for (uint32_t o = 0; o < 7; o++)
                if (o == 2 || o == 5)
                    cr_assert(!isfinite(p.ys[i][o]));
                else
                    cr_assert(same_float(p.ys[i][o], clean[i][o]));
        problem_close(&p);
    }
}
