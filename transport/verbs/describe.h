/* SPDX-License-Identifier: Apache-2.0
 *
 * What RDMA devices this machine has, for the doctor and for reports. Opens devices, changes
 * nothing.
 */
#ifndef SHUNT_TRANSPORT_VERBS_DESCRIBE_H
#define SHUNT_TRANSPORT_VERBS_DESCRIBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Only RoCE is ever usable. */
enum verbs_protocol { VERBS_ROCE, VERBS_INFINIBAND, VERBS_IWARP };

struct verbs_port {
    char device[64];
    uint32_t port;
    bool usable;   /* active Ethernet with a RoCE v2 address */
    bool software; /* rxe or siw: no NIC behind it */
    bool dmabuf;   /* registers DMA-BUF memory */
    uint32_t mtu;  /* bytes, of RDMA packets */
    enum verbs_protocol protocol;
    char state[24];   /* "PORT_ACTIVE" */
    char address[48]; /* of its first RoCE v2 GID with an IPv4 address, else its first; or "" */
};

/* Writes at most `max`. Return: how many ports there are; -ENOTSUP where the build has no RDMA. */
int verbs_list_ports(struct verbs_port *ports, uint32_t max);

/* True for a device that the kernel emulates; false also for one that is not there. */
bool verbs_is_software(const char *device);

#endif
