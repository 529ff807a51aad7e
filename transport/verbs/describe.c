/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/verbs/describe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "transport/verbs/verbs_impl.h"

bool verbs_is_software(const char *device)
{
    char path[160];

    snprintf(path, sizeof(path), "/sys/class/infiniband/%s", device);
    if (access(path, F_OK))
        return false;
    /* Those that the kernel emulates over a network interface name it here. */
    snprintf(path, sizeof(path), "/sys/class/infiniband/%s/parent", device);
    if (access(path, F_OK) == 0)
        return true;
    snprintf(path, sizeof(path), "/sys/class/infiniband/%s/device", device);
    return access(path, F_OK) != 0; /* a NIC is a device on a bus */
}

/* A driver that cannot says so before it looks at the descriptor; one that can says EBADF. */
static bool takes_dmabuf(struct ibv_context *device)
{
    struct ibv_pd *pd = ibv_alloc_pd(device);
    bool takes;

    if (!pd)
        return false;
    errno = 0;
    takes = !ibv_reg_dmabuf_mr(pd, 0, 1, 0, -1, 0) && errno != EOPNOTSUPP && errno != ENOSYS &&
            errno != EPROTONOSUPPORT;
    ibv_dealloc_pd(pd);
    return takes;
}

static void find_address(struct ibv_context *device, struct verbs_port *p)
{
    struct ibv_gid_entry entries[VERBS_GIDS_MAX];
    ssize_t n = ibv_query_gid_table(device, entries, VERBS_GIDS_MAX, 0);

    for (ssize_t i = 0; i < n; i++) {
        const uint8_t *gid = entries[i].gid.raw;

        if (entries[i].port_num != p->port || entries[i].gid_type != IBV_GID_TYPE_ROCE_V2)
            continue;
        if (verbs_gid_has_ipv4(&entries[i].gid)) {
            inet_ntop(AF_INET, gid + 12, p->address, sizeof(p->address));
            return;
        }
        if (!p->address[0])
            inet_ntop(AF_INET6, gid, p->address, sizeof(p->address));
    }
}

static void describe(struct ibv_context *device, uint8_t port, bool dmabuf, struct verbs_port *p)
{
    struct ibv_port_attr attr;

    memset(p, 0, sizeof(*p));
    snprintf(p->device, sizeof(p->device), "%s", ibv_get_device_name(device->device));
    p->port = port;
    p->protocol = device->device->transport_type == IBV_TRANSPORT_IWARP ? VERBS_IWARP : VERBS_ROCE;
    p->software = verbs_is_software(p->device);
    p->dmabuf = dmabuf;
    if (ibv_query_port(device, port, &attr)) {
        snprintf(p->state, sizeof(p->state), "not there");
        return;
    }
    snprintf(p->state, sizeof(p->state), "%s", ibv_port_state_str(attr.state));
    if (attr.link_layer != IBV_LINK_LAYER_ETHERNET)
        p->protocol = VERBS_INFINIBAND;
    p->mtu = verbs_mtu_bytes(attr.active_mtu);
    find_address(device, p);
    p->usable = attr.state == IBV_PORT_ACTIVE && p->protocol == VERBS_ROCE && p->address[0];
}

int verbs_list_ports(struct verbs_port *ports, uint32_t max)
{
    int devices = 0;
    struct ibv_device **list = ibv_get_device_list(&devices);
    uint32_t count = 0;

    for (int i = 0; i < devices; i++) {
        struct ibv_context *device = ibv_open_device(list[i]);
        struct ibv_device_attr attr = {0};
        bool dmabuf;

        if (!device)
            continue;
        dmabuf = takes_dmabuf(device);
        if (!ibv_query_device(device, &attr))
            for (uint32_t p = 1; p <= attr.phys_port_cnt; p++, count++)
                if (count < max)
                    describe(device, (uint8_t)p, dmabuf, &ports[count]);
        ibv_close_device(device);
    }
    if (list)
        ibv_free_device_list(list);
    return (int)count;
}
