/* SPDX-License-Identifier: Apache-2.0
 *
 * What people have set for NCCL on the same rack stands in for options of RDMA links that are not
 * given. Only the command looks there, and what NCCL can take and shunt cannot is left alone: these
 * are another program's settings.
 */
#include <dirent.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define RAILS_MAX 4u

struct variable {
    const char *name;
    size_t offset; /* of a member that holds the value plus `bias`, 0 when it is not given */
    uint64_t min, max;
    uint32_t bias;
};

static const struct variable variables[] = {
    {"NCCL_IB_GID_INDEX", offsetof(struct shunt_link_options, gid_index), 0, 255, 1},
    {"NCCL_IB_TC", offsetof(struct shunt_link_options, tclass), 0, 255, 1},
    {"NCCL_IB_SL", offsetof(struct shunt_link_options, sl), 0, 7, 1},
    {"NCCL_IB_TIMEOUT", offsetof(struct shunt_link_options, qp_timeout), 1, 31, 0},
    {"NCCL_IB_RETRY_CNT", offsetof(struct shunt_link_options, retry_count), 0, 7, 1},
};

/* Whether the device is one that `list` means: names of it begin the device's or, after "=", are
 * the device's; ports are behind colons. */
static bool is_meant(const char *list, const char *device, const char **port, size_t *port_len)
{
    bool exact = list[0] == '=';

    for (list += exact; *list; list += strcspn(list, ","), list += *list == ',') {
        size_t len = strcspn(list, ",:"), all = strcspn(list, ",");

        if (len == 0 || strncmp(device, list, len) || (exact && device[len] != '\0'))
            continue;
        *port = list + len;
        *port_len = all - len;
        return true;
    }
    return false;
}

/* NCCL_IB_HCA: "mlx5", "mlx5_0:1,mlx5_1", "=mlx5_0"; "^..." says which not to use, and then the
 * choice stays with the library, as where more are meant than shunt takes. */
static const char *find_devices(const char *list)
{
    static char found[512];
    struct dirent **entries;
    int count = scandir("/sys/class/infiniband", &entries, NULL, alphasort);
    uint32_t rails = 0;
    size_t len = 0;

    for (int i = 0; i < count; i++) {
        const char *port;
        size_t port_len;

        if (entries[i]->d_name[0] != '.' && is_meant(list, entries[i]->d_name, &port, &port_len) &&
            len < sizeof(found) && ++rails <= RAILS_MAX)
            len += (size_t)snprintf(found + len, sizeof(found) - len, "%s%s%.*s", len ? "," : "",
                                    entries[i]->d_name, (int)port_len, port);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
    return rails > 0 && rails <= RAILS_MAX && len < sizeof(found) ? found : NULL;
}

void link_environment(struct shunt_link_options *link)
{
    const char *list = getenv("NCCL_IB_HCA");

    if (!link->device && list && *list && *list != '^')
        link->device = find_devices(list);
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        const struct variable *v = &variables[i];
        uint32_t *member = (uint32_t *)((char *)link + v->offset);
        const char *text = getenv(v->name);
        uint64_t value;

        if (*member == 0 && text && parse_count(text, v->max, &value) && value >= v->min)
            *member = (uint32_t)value + v->bias;
    }
}
