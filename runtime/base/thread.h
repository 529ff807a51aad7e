/* SPDX-License-Identifier: Apache-2.0
 *
 * The library's threads. The program's signals belong to the program's threads, so none of them is
 * delivered to these; but a thread's own faults stay its own, for the program's crash handler or a
 * sanitizer to see.
 */
#ifndef SHUNT_BASE_THREAD_H
#define SHUNT_BASE_THREAD_H

#include <pthread.h>

/* Return: 0 or a negative errno value. */
int shunt_thread_create(pthread_t *thread, void *(*run)(void *arg), void *arg);

#endif
