/* SPDX-License-Identifier: Apache-2.0
 *
 * What a tick of the stopwatch lasts, on a machine that takes the processor away in the worst of
 * moments: the linker hands clock_gettime to the function below.
 */
#include "runtime/bench/ticks.h"

#include <criterion/criterion.h>

#define AWAY_NS (2 * SHUNT_NS_PER_MS)

static uint32_t away; /* so many looks at the clock are followed by a pause */

int __real_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t);

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    const struct timespec pause = {.tv_nsec = AWAY_NS};
    int rc = __real_clock_gettime(clock, t);

    if (away > 0) {
        away--;
        nanosleep(&pause, NULL);
    }
    return rc;
}

static void sleep_ns(int64_t ns)
{
    const struct timespec pause = shunt_timespec(ns);

    nanosleep(&pause, NULL);
}

/* Without the counter every tick is a nanosecond, and there is nothing to go wrong. */
Test(ticks, last_as_long_when_the_processor_is_taken_away)
{
    struct shunt_ticks quiet, hindered;
    double tick_ns;

    shunt_ticks_start(&quiet);
    away = 2;
    shunt_ticks_start(&hindered);
    away = 0;
    sleep_ns(5 * SHUNT_NS_PER_MS);
    tick_ns = shunt_ticks_ns(&hindered);
    sleep_ns(50 * SHUNT_NS_PER_MS);
    cr_expect_float_eq(tick_ns / shunt_ticks_ns(&quiet), 1, 0.01);
    shunt_ticks_start(&hindered);
    sleep_ns(5 * SHUNT_NS_PER_MS);
    away = 2;
    cr_expect_float_eq(shunt_ticks_ns(&hindered) / shunt_ticks_ns(&quiet), 1, 0.01);
}
