/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/patience.h"

#include <errno.h>
#include <poll.h>

#include "runtime/base/clock.h"

int shunt_patience_check(const struct shunt_patience *p, struct shunt_error *err)
{
    struct pollfd fd = {.fd = p->cancel_fd ? *p->cancel_fd : -1, .events = POLLIN};

    if ((p->abort && atomic_load(p->abort)) || (fd.fd >= 0 && poll(&fd, 1, 0) > 0))
        return shunt_error_set(err, -ECANCELED, "told to stop");
    return shunt_now_ns() >= p->deadline_ns ? -ETIMEDOUT : 0;
}
