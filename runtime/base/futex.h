/* SPDX-License-Identifier: Apache-2.0
 *
 * Sleeping on a word and waking its sleepers. The word carries the meaning and the memory order;
 * these two only sleep and wake, and a sleeper always looks at the word again.
 */
#ifndef SHUNT_BASE_FUTEX_H
#define SHUNT_BASE_FUTEX_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Sleeps while *word == expected, at most `timeout` (NULL: no limit). May return early. */
static inline void shunt_futex_wait(_Atomic uint32_t *word, uint32_t expected,
                                    const struct timespec *timeout)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout, NULL, 0);
}

static inline void shunt_futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Tells the processor that this is a spin loop. */
static inline void shunt_spin_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
