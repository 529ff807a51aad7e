/* SPDX-License-Identifier: Apache-2.0
 *
 * A build without liburing: the backend says so when it is opened, and the store takes pread.
 */
#include <errno.h>

#include "runtime/store/expert_io.h"

static int none_open(struct shunt_expert_io **io, const struct shunt_io_config *cfg,
                     struct shunt_error *err)
{
    (void)io;
    (void)cfg;
    return shunt_error_set(err, -ENOSYS,
                           "this build has no io_uring; install liburing-dev and build again");
}

const struct shunt_expert_io_ops shunt_io_uring = {.name = "io_uring", .open = none_open};
