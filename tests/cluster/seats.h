/* SPDX-License-Identifier: Apache-2.0
 *
 * A rack on the loopback for tests: a bound socket for each rank, so that no port is guessed, and a
 * thread for each node. No Criterion: a driver uses it as well.
 */
#ifndef SHUNT_TESTS_SEATS_H
#define SHUNT_TESTS_SEATS_H

#include "runtime/cluster/rack.h"

struct seats {
    uint32_t count;
    char texts[SHUNT_NODES_MAX][32];
    const char *addresses[SHUNT_NODES_MAX];
    int fds[SHUNT_NODES_MAX]; /* bound, not listening; -1: given away */
};

void seats_take(struct seats *s, uint32_t count);

/* A configuration that joins; gives the socket of the rank away. */
struct shunt_rack_config seats_config(struct seats *s, uint32_t rank);

/* Closes what has not been given away. */
void seats_leave(struct seats *s);

/* A connection to a rank, which must be listening. */
int seats_connect(const struct seats *s, uint32_t rank);

/* Calls fn(args + i * bytes) for i in [0, count), each on a thread of its own, and waits. */
void at_once(uint32_t count, void (*fn)(void *arg), void *args, size_t bytes);

#endif
