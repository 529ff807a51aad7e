/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>

#include "transport/transport.h"

static const char *const names[SHUNT_TRANSPORT_KINDS] = {
    [SHUNT_TRANSPORT_TCP] = "tcp",
    [SHUNT_TRANSPORT_VERBS] = "verbs",
    [SHUNT_TRANSPORT_SHM] = "shm",
};

const struct shunt_transport_ops *shunt_transport_get(enum shunt_transport_kind kind)
{
    switch (kind) {
    case SHUNT_TRANSPORT_TCP:
        return &shunt_transport_tcp;
    case SHUNT_TRANSPORT_VERBS:
        return &shunt_transport_verbs;
    case SHUNT_TRANSPORT_SHM:
        return &shunt_transport_shm;
    default:
        return NULL;
    }
}

void shunt_transport_names(uint32_t kinds, char *text, size_t bytes)
{
    size_t len = 0;

    snprintf(text, bytes, "none known here");
    for (uint32_t k = 0; k < SHUNT_TRANSPORT_KINDS && len < bytes; k++)
        if (kinds >> k & 1)
            len += (size_t)snprintf(text + len, bytes - len, "%s%s", len > 0 ? ", " : "", names[k]);
}

int shunt_transports_encrypted(uint32_t *kinds, const char *name, struct shunt_error *err)
{
    *kinds &= 1u << SHUNT_TRANSPORT_TCP;
    if (*kinds)
        return 0;
    return shunt_error_set(err, -EINVAL,
                           "rows cannot be encrypted over %s; --encrypt goes with --transport tcp",
                           name);
}

void shunt_transport_drop_streams(const struct shunt_transport_config *cfg)
{
    for (uint32_t i = 0; i < cfg->node_count; i++) {
        struct shunt_stream stream = cfg->streams[i];

        shunt_stream_close(&stream);
    }
}
