/* SPDX-License-Identifier: Apache-2.0
 *
 * A stopwatch for operations of some 100 ns, of which the clock, which takes 25 to 50 ns to read,
 * would be a good part: the processor's counter, as perftest and UCX read it. Only where the kernel
 * itself takes its time from that counter, so that it runs evenly and alike on all processors; else
 * it is the clock.
 */
#ifndef SHUNT_BENCH_TICKS_H
#define SHUNT_BENCH_TICKS_H

#include <stdbool.h>

#include "runtime/base/clock.h"

struct shunt_ticks {
    bool counter;
    int64_t begin, begin_ns;
};

void shunt_ticks_start(struct shunt_ticks *t);

static inline int64_t shunt_ticks_now(const struct shunt_ticks *t)
{
#if defined(__x86_64__)
    if (t->counter)
        return (int64_t)__builtin_ia32_rdtsc();
#endif
    (void)t;
    return shunt_now_ns();
}

/* Of one tick, seen since the start: the more exact, the longer ago that was (1e-4 after 1 ms).
 * Takes about a microsecond. */
double shunt_ticks_ns(const struct shunt_ticks *t);

#endif
