/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SHUNT_BASE_CLOCK_H
#define SHUNT_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define SHUNT_NS_PER_US 1000ll
#define SHUNT_NS_PER_MS 1000000ll
#define SHUNT_NS_PER_S  1000000000ll

/* Monotonic time. No system call on Linux (vDSO). */
static inline int64_t shunt_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SHUNT_NS_PER_S + t.tv_nsec;
}

/* The moment `timeout_ns` from now; INT64_MAX, which never comes, for a negative timeout and for
 * one that would pass the end of the clock. */
static inline int64_t shunt_deadline_ns(int64_t timeout_ns)
{
    int64_t now = shunt_now_ns();

    return timeout_ns < 0 || timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
}

static inline struct timespec shunt_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / SHUNT_NS_PER_S),
                             .tv_nsec = (long)(ns % SHUNT_NS_PER_S)};
}

#endif
