/* SPDX-License-Identifier: Apache-2.0
 *
 * How long a blocking call of the library waits: until a deadline, and no longer than until
 * somebody sets a flag or makes a descriptor readable. Whoever waits in slices asks between two of
 * them.
 */
#ifndef SHUNT_BASE_PATIENCE_H
#define SHUNT_BASE_PATIENCE_H

#include <stdatomic.h>

#include "runtime/base/error.h"

struct shunt_patience {
    int64_t deadline_ns;      /* monotonic */
    const _Atomic int *abort; /* or NULL */
    const int *cancel_fd;     /* or NULL */
};

/* Longest slice between two looks. */
#define SHUNT_PATIENCE_SLICE_NS 100000000ll

/* Return: 0 to go on; -ECANCELED; -ETIMEDOUT, which the caller words. */
int shunt_patience_check(const struct shunt_patience *patience, struct shunt_error *err);

#endif
