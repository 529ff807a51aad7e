/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/hello.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"

void shunt_hello_fill(struct shunt_hello *hello, const struct shunt_rack_config *cfg,
                      enum shunt_stream_kind stream)
{
    memset(hello, 0, sizeof(*hello));
    hello->magic = SHUNT_HELLO_MAGIC;
    hello->protocol = SHUNT_HELLO_PROTOCOL;
    hello->stream = stream;
    hello->flags = cfg->serve_only ? SHUNT_HELLO_SERVE_ONLY : 0;
    hello->rank = cfg->rank;
    hello->node_count = cfg->node_count;
    hello->rows_max = cfg->rows_max;
    hello->kernel_levels = cfg->kernel_levels;
    memcpy(hello->fingerprint, cfg->fingerprint, sizeof(hello->fingerprint));
    snprintf(hello->version, sizeof(hello->version), "%s", shunt_version());
    snprintf(hello->text, sizeof(hello->text), "%s", cfg->model_name);
}

void shunt_hello_refuse(struct shunt_hello *hello, const struct shunt_error *why)
{
    hello->flags |= SHUNT_HELLO_REFUSED;
    snprintf(hello->text, sizeof(hello->text), "%.*s", (int)sizeof(hello->text) - 1, why->text);
    if (strlen(why->text) >= sizeof(hello->text))
        memcpy(hello->text + sizeof(hello->text) - 4, "...", 4);
}

bool shunt_hello_is_one(const struct shunt_hello *hello)
{
    return hello->magic == SHUNT_HELLO_MAGIC;
}

static void print_hex(char out[33], const uint8_t bytes[16])
{
    for (uint32_t i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

int shunt_hello_check(const struct shunt_hello *hello, const struct shunt_rack_config *cfg,
                      const char *who, struct shunt_error *err)
{
    int version_len = (int)strnlen(hello->version, sizeof(hello->version));
    int text_len = (int)strnlen(hello->text, sizeof(hello->text));

    if (hello->protocol != SHUNT_HELLO_PROTOCOL ||
        strncmp(hello->version, shunt_version(), sizeof(hello->version)))
        return shunt_error_set(err, -EPROTO,
                               "%s runs shunt %.*s (protocol %u), this node %s (protocol %u); "
                               "install the same version on every node",
                               who, version_len, hello->version, hello->protocol, shunt_version(),
                               SHUNT_HELLO_PROTOCOL);
    if (hello->flags & SHUNT_HELLO_REFUSED)
        return shunt_error_set(err, -ECONNREFUSED, "%s refused this node: %.*s", who, text_len,
                               hello->text);
    if (hello->node_count != cfg->node_count)
        return shunt_error_set(err, -EPROTO,
                               "%s belongs to a rack of %u nodes, this node to one of %u; give "
                               "every node the same --rack",
                               who, hello->node_count, cfg->node_count);
    if (memcmp(hello->fingerprint, cfg->fingerprint, sizeof(hello->fingerprint))) {
        char theirs[33], ours[33];

        print_hex(theirs, hello->fingerprint);
        print_hex(ours, cfg->fingerprint);
        return shunt_error_set(err, -EPROTO,
                               "%s has another model: '%.*s' (%s), this node '%s' (%s); give every "
                               "node the same file",
                               who, text_len, hello->text, theirs, cfg->model_name, ours);
    }
    if ((hello->kernel_levels & cfg->kernel_levels) == 0) {
        char theirs[64], ours[64];

        shunt_kernels_names(hello->kernel_levels, theirs, sizeof(theirs));
        shunt_kernels_names(cfg->kernel_levels, ours, sizeof(ours));
        return shunt_error_set(err, -EPROTO,
                               "%s and this node have no kernels in common (%s; and %s); use "
                               "--kernels auto everywhere",
                               who, theirs, ours);
    }
    if (hello->rows_max == 0 || hello->rows_max > SHUNT_ROWS_MAX)
        return shunt_error_set(err, -EPROTO, "%s announces %u rows at once; at most %u are allowed",
                               who, hello->rows_max, SHUNT_ROWS_MAX);
    return 0;
}
