/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/pool.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

struct marks {
    unsigned char ran[4096];
    uint32_t by_worker[8];
};

static void mark(void *ctx, uint32_t index, uint32_t worker)
{
    struct marks *m = ctx;

    m->ran[index]++;
    m->by_worker[worker]++;
}

/* Every task of every run is run once, whatever the number of threads, and however short the runs.
 */
Test(pool, each_task_runs_once)
{
    for (uint32_t threads = 1; threads <= 5; threads++) {
        struct shunt_pool *pool;
        struct shunt_error err;

        cr_assert_eq(shunt_pool_open(&pool, threads, &err), 0);
        for (uint32_t run = 0; run < 2000; run++) {
            struct marks m = {0};
            uint32_t count = run % 97;
            uint32_t total = 0;

            shunt_pool_run(pool, mark, &m, count);
            for (uint32_t i = 0; i < sizeof(m.ran); i++)
                cr_assert_eq(m.ran[i], i < count, "threads %u run %u task %u", threads, run, i);
            for (uint32_t i = 0; i < 8; i++)
                total += m.by_worker[i];
            cr_assert_eq(total, count);
        }
        shunt_pool_close(pool);
    }
}

static void count_hook(void *ctx)
{
    ++*(uint32_t *)ctx;
}

Test(pool, hook_runs_between_tasks)
{
    struct shunt_pool *pool;
    struct marks m = {0};
    uint32_t hooks = 0;

    cr_assert_eq(shunt_pool_open(&pool, 1, NULL), 0);
    shunt_pool_set_hook(pool, count_hook, &hooks);
    shunt_pool_run(pool, mark, &m, 10);
    cr_assert_eq(hooks, 10);
    shunt_pool_close(pool);
}

Test(pool, refuses_a_wrong_number_of_threads)
{
    struct shunt_pool *pool;
    struct shunt_error err;

    cr_assert_lt(shunt_pool_open(&pool, 0, &err), 0);
    cr_assert(strstr(err.text, "threads"));
    cr_assert_lt(shunt_pool_open(&pool, SHUNT_POOL_THREADS_MAX + 1, &err), 0);
}
