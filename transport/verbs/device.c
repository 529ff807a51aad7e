/* SPDX-License-Identifier: Apache-2.0
 *
 * Which ports of which devices a node uses. Without a word from the user rdma_cm is asked: it knows
 * which device leads to the peer's address, as the kernel routes it. Devices that are named are
 * taken as they are, in order, one rail each.
 */
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "runtime/base/clock.h"
#include "transport/verbs/describe.h"
#include "transport/verbs/verbs_impl.h"

#define RESOLVE_MS    2000
#define WRITE_MAX     (1ull << 30)
#define GID_CHOSEN(l) ((l)->gid_index > 0)

/* ---- rdma_cm */

/* Waits for the answer to what was asked of rdma_cm; the kernel gives one within RESOLVE_MS. */
static int await(struct rdma_event_channel *channel, enum rdma_cm_event_type wanted)
{
    struct pollfd fd = {.fd = channel->fd, .events = POLLIN};
    struct rdma_cm_event *event;
    int rc;

    if (poll(&fd, 1, 2 * RESOLVE_MS) <= 0)
        return -ETIMEDOUT;
    if (rdma_get_cm_event(channel, &event))
        return -errno;
    rc = event->event == wanted ? 0 : event->status ? event->status : -EHOSTUNREACH;
    rdma_ack_cm_event(event);
    return rc;
}

static int resolve(struct rdma_cm_id *id, struct rdma_event_channel *channel,
                   struct sockaddr *local, struct sockaddr *remote)
{
    int rc = rdma_resolve_addr(id, local, remote, RESOLVE_MS) ? -errno : 0;

    if (!rc)
        rc = await(channel, RDMA_CM_EVENT_ADDR_RESOLVED);
    if (!rc)
        rc = rdma_resolve_route(id, RESOLVE_MS) ? -errno : 0;
    return rc ? rc : await(channel, RDMA_CM_EVENT_ROUTE_RESOLVED);
}

/* A port that is not yet opened. */
struct place {
    char device[IBV_SYSFS_NAME_MAX];
    uint32_t port;
    union ibv_gid gid; /* zero: any of the port */
};

/* Where the route of this connection leaves the machine. */
static int ask_rdma_cm(int fd, struct place *place)
{
    struct sockaddr_storage local = {0}, remote = {0};
    socklen_t local_len = sizeof(local), remote_len = sizeof(remote);
    struct rdma_event_channel *channel;
    struct rdma_cm_id *id = NULL;
    int rc = 0;

    if (getsockname(fd, (struct sockaddr *)&local, &local_len) ||
        getpeername(fd, (struct sockaddr *)&remote, &remote_len))
        return -errno;
    if (local.ss_family == AF_INET)
        ((struct sockaddr_in *)&local)->sin_port = 0;
    else if (local.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&local)->sin6_port = 0;
    channel = rdma_create_event_channel();
    if (!channel || rdma_create_id(channel, &id, NULL, RDMA_PS_TCP))
        rc = -errno;
    if (!rc)
        rc = resolve(id, channel, (struct sockaddr *)&local, (struct sockaddr *)&remote);
    if (!rc && !id->verbs)
        rc = -ENODEV;
    if (!rc) {
        snprintf(place->device, sizeof(place->device), "%s",
                 ibv_get_device_name(id->verbs->device));
        place->port = id->port_num;
        place->gid = id->route.addr.addr.ibaddr.sgid;
    }
    if (id)
        rdma_destroy_id(id);
    if (channel)
        rdma_destroy_event_channel(channel);
    return rc;
}

/* ---- ports */

static bool is_zero(const union ibv_gid *gid)
{
    static const union ibv_gid zero;

    return !memcmp(gid, &zero, sizeof(zero));
}

/* The RoCE v2 GID of the port: the one asked for, else that of the route, else the first with an
 * IPv4 address. */
static int choose_gid(struct verbs_rail *rail, const struct shunt_link_options *link,
                      const union ibv_gid *wanted, struct shunt_error *err)
{
    struct ibv_gid_entry entries[VERBS_GIDS_MAX];
    ssize_t n = ibv_query_gid_table(rail->device, entries, VERBS_GIDS_MAX, 0);
    const struct ibv_gid_entry *found = NULL;

    for (ssize_t i = 0; i < n && !found; i++) {
        const struct ibv_gid_entry *e = &entries[i];

        /* A queue pair's path has 8 bits for the index. */
        if (e->port_num != rail->port || e->gid_type != IBV_GID_TYPE_ROCE_V2 ||
            e->gid_index > UINT8_MAX)
            continue;
        if (GID_CHOSEN(link)  ? e->gid_index == link->gid_index - 1
            : is_zero(wanted) ? verbs_gid_has_ipv4(&e->gid)
                              : !memcmp(&e->gid, wanted, sizeof(*wanted)))
            found = e;
    }
    if (found) {
        rail->gid = found->gid;
        rail->gid_index = found->gid_index;
        return 0;
    }
    if (GID_CHOSEN(link))
        return shunt_error_set(err, -EINVAL,
                               "verbs: GID index %" PRIu32 " of %s is no RoCE v2 address "
                               "(--gid-index; show_gids or ibv_devinfo -v lists them)",
                               link->gid_index - 1, rail->label);
    return shunt_error_set(err, -EADDRNOTAVAIL,
                           "verbs: %s has no RoCE v2 address; give its network interface an IP "
                           "address",
                           rail->label);
}

static int choose_mtu(struct verbs_rail *rail, const struct shunt_link_options *link,
                      enum ibv_mtu active, struct shunt_error *err)
{
    rail->mtu = active;
    if (link->mtu == 0)
        return 0;
    for (enum ibv_mtu m = IBV_MTU_256; m <= active; m++) {
        if (verbs_mtu_bytes(m) != link->mtu)
            continue;
        rail->mtu = m;
        return 0;
    }
    return shunt_error_set(err, -EINVAL,
                           "verbs: an MTU of %" PRIu32 " (--mtu) is not possible: %s can 256, 512, "
                           "... up to %u; more needs a larger MTU of its network interface",
                           link->mtu, rail->label, verbs_mtu_bytes(active));
}

static int check_port(struct verbs_rail *rail, const struct shunt_link_options *link,
                      const union ibv_gid *gid, struct shunt_error *err)
{
    struct ibv_port_attr port;
    int rc;

    if (ibv_query_port(rail->device, rail->port, &port))
        return shunt_error_set(err, -ENODEV, "verbs: %s is not there (--ib-port)", rail->label);
    if (rail->device->device->transport_type == IBV_TRANSPORT_IWARP)
        return shunt_error_set(
            err, -ENOTSUP,
            "verbs: %s speaks iWARP, which cannot announce a write (no immediate "
            "data); shunt speaks RoCE v2, use --transport tcp",
            rail->label);
    if (port.link_layer != IBV_LINK_LAYER_ETHERNET)
        return shunt_error_set(err, -ENOTSUP,
                               "verbs: %s is no Ethernet port; shunt speaks RoCE v2, use "
                               "--transport tcp over IPoIB",
                               rail->label);
    if (port.state != IBV_PORT_ACTIVE)
        return shunt_error_set(err, -ENETDOWN,
                               "verbs: %s is %s; is its cable in, and its interface up (ip link)?",
                               rail->label, ibv_port_state_str(port.state));
    rail->write_max = port.max_msg_sz < WRITE_MAX ? port.max_msg_sz : WRITE_MAX;
    rc = choose_mtu(rail, link, port.active_mtu, err);
    return rc ? rc : choose_gid(rail, link, gid, err);
}

static struct ibv_context *open_by_name(const char *name)
{
    struct ibv_context *device = NULL;
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);

    for (int i = 0; i < count && !device; i++)
        if (!strcmp(ibv_get_device_name(list[i]), name))
            device = ibv_open_device(list[i]);
    if (list)
        ibv_free_device_list(list);
    return device;
}

/* "rxe0, rxe1", for messages. */
static void list_devices(char *names, size_t bytes)
{
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);
    size_t len = 0;

    snprintf(names, bytes, "none");
    for (int i = 0; i < count && len < bytes; i++)
        len += (size_t)snprintf(names + len, bytes - len, "%s%s", i ? ", " : "",
                                ibv_get_device_name(list[i]));
    if (list)
        ibv_free_device_list(list);
}

static int add_rail(struct shunt_transport *t, const struct place *place, struct shunt_error *err)
{
    struct verbs_rail *rail = &t->rails[t->rail_count];

    snprintf(rail->label, sizeof(rail->label), "%.40s port %" PRIu32, place->device, place->port);
    rail->port = (uint8_t)place->port;
    rail->software = verbs_is_software(place->device);
    rail->device = open_by_name(place->device);
    if (!rail->device) {
        char names[160];

        list_devices(names, sizeof(names));
        return shunt_error_set(err, -ENODEV,
                               "verbs: there is no RDMA device %s that this user may open "
                               "(--ib-dev); devices here: %s",
                               place->device, names);
    }
    t->rail_count++;
    return check_port(rail, &t->link, &place->gid, err);
}

/* ---- which */

/* "mlx5_0", "mlx5_0:2,mlx5_1:1". */
static int add_named(struct shunt_transport *t, struct shunt_error *err)
{
    const char *at = t->link.device;

    while (*at) {
        size_t len = strcspn(at, ",");
        size_t name = strcspn(at, ",:");
        struct place place = {.port = t->link.port ? t->link.port : 1};
        int rc;

        if (name == 0 || name >= sizeof(place.device))
            return shunt_error_set(err, -EINVAL, "verbs: '%s' names no device (--ib-dev)",
                                   t->link.device);
        if (t->rail_count == VERBS_RAILS_MAX)
            return shunt_error_set(err, -EINVAL, "verbs: more than %u devices (--ib-dev)",
                                   VERBS_RAILS_MAX);
        memcpy(place.device, at, name);
        if (name < len) {
            char *end;
            unsigned long port = strtoul(at + name + 1, &end, 10);

            if (end != at + len || port == 0 || port > UINT8_MAX)
                return shunt_error_set(err, -EINVAL,
                                       "verbs: '%s': a port is a number from 1 on (--ib-dev)",
                                       t->link.device);
            place.port = (uint32_t)port;
        }
        rc = add_rail(t, &place, err);
        if (rc)
            return rc;
        at += len + (at[len] == ',');
    }
    return 0;
}

/* The address as RoCE v2 has it: IPv4 mapped into IPv6. */
static bool gid_of_socket(int fd, union ibv_gid *gid)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);

    memset(gid, 0, sizeof(*gid));
    if (getsockname(fd, (struct sockaddr *)&a, &len))
        return false;
    if (a.ss_family == AF_INET6)
        memcpy(gid->raw, &((struct sockaddr_in6 *)&a)->sin6_addr, 16);
    if (a.ss_family != AF_INET)
        return a.ss_family == AF_INET6;
    gid->raw[10] = gid->raw[11] = 0xff;
    memcpy(gid->raw + 12, &((struct sockaddr_in *)&a)->sin_addr, 4);
    return true;
}

/* Without rdma_cm: the port that has the address of this socket. */
static bool search_gid_tables(int fd, struct place *place)
{
    struct ibv_gid_entry entries[VERBS_GIDS_MAX];
    int count = 0;
    struct ibv_device **list;
    bool found = false;

    if (!gid_of_socket(fd, &place->gid))
        return false;
    list = ibv_get_device_list(&count);
    for (int i = 0; i < count && !found; i++) {
        struct ibv_context *device = ibv_open_device(list[i]);
        ssize_t n = device ? ibv_query_gid_table(device, entries, VERBS_GIDS_MAX, 0) : 0;

        for (ssize_t g = 0; g < n && !found; g++) {
            if (entries[g].gid_type != IBV_GID_TYPE_ROCE_V2 ||
                memcmp(&entries[g].gid, &place->gid, sizeof(place->gid)))
                continue;
            snprintf(place->device, sizeof(place->device), "%s", ibv_get_device_name(list[i]));
            place->port = entries[g].port_num;
            found = true;
        }
        if (device)
            ibv_close_device(device);
    }
    if (list)
        ibv_free_device_list(list);
    return found;
}

/* One rail leads to all peers, or somebody has to say which devices there are. */
static int check_one_address(const struct shunt_transport *t, uint32_t first,
                             struct shunt_error *err)
{
    union ibv_gid here, other;

    gid_of_socket(t->peers[first].stream.fd, &here);
    for (uint32_t i = first + 1; i < t->node_count; i++) {
        if (t->peers[i].stream.fd < 0)
            continue;
        gid_of_socket(t->peers[i].stream.fd, &other);
        if (memcmp(&here, &other, sizeof(here)))
            return shunt_error_set(err, -EINVAL,
                                   "verbs: rank %" PRIu32 " and rank %" PRIu32
                                   " are reached from two addresses of this node; name the RDMA "
                                   "device that leads to both with --ib-dev",
                                   first, i);
    }
    return 0;
}

int verbs_open_rails(struct shunt_transport *t, uint32_t first, struct shunt_error *err)
{
    const int fd = t->peers[first].stream.fd;
    struct place place = {0};
    char names[160];
    int rc;

    if (t->link.device && *t->link.device)
        return add_named(t, err);
    rc = check_one_address(t, first, err);
    if (rc)
        return rc;
    rc = ask_rdma_cm(fd, &place);
    if (!rc)
        return add_rail(t, &place, err);
    if (search_gid_tables(fd, &place)) {
        shunt_notify_say(&t->notify,
                         "rdma_cm gives no route (%s): the RDMA device is the one that has this "
                         "node's address; modprobe rdma_ucm",
                         strerror(-rc));
        return add_rail(t, &place, err);
    }
    list_devices(names, sizeof(names));
    return shunt_error_set(err, -ENODEV,
                           "verbs: no RDMA device leads to the other nodes' addresses (%s); use "
                           "addresses of the RDMA network in --rack, name the device with "
                           "--ib-dev, or use --transport tcp. Devices here: %s",
                           strerror(-rc), names);
}
