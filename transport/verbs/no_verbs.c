/* SPDX-License-Identifier: Apache-2.0
 *
 * In place of the verbs transport where the build has no RDMA libraries: says so.
 */
#include <errno.h>

#include "transport/transport.h"
#include "transport/verbs/describe.h"

int verbs_list_ports(struct verbs_port *ports, uint32_t max)
{
    (void)ports, (void)max;
    return -ENOTSUP;
}

bool verbs_is_software(const char *device)
{
    (void)device;
    return false;
}

static uint64_t no_footprint(uint32_t node_count)
{
    (void)node_count;
    return 0;
}

static int no_open(struct shunt_transport **t, const struct shunt_transport_config *cfg,
                   struct shunt_error *err)
{
    (void)t;
    shunt_transport_drop_streams(cfg);
    return shunt_error_set(err, -ENOTSUP, "verbs: %s", shunt_transport_verbs.absent);
}

const struct shunt_transport_ops shunt_transport_verbs = {
    .name = "verbs",
    .stream_is_secret = true,
    .absent = "this build has no RDMA; install libibverbs-dev and librdmacm-dev and build again",
    .footprint = no_footprint,
    .open = no_open,
};
