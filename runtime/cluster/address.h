/* SPDX-License-Identifier: Apache-2.0
 *
 * "host:port" and "[v6]:port" to socket addresses, and the sockets on them.
 */
#ifndef SHUNT_CLUSTER_ADDRESS_H
#define SHUNT_CLUSTER_ADDRESS_H

#include <sys/socket.h>

#include "runtime/base/error.h"

struct shunt_address {
    struct sockaddr_storage addr;
    socklen_t len;
};

/* Resolves `text`; may ask the name service. Return: 0 or -EINVAL with what is wrong. */
int shunt_address_parse(struct shunt_address *address, const char *text, struct shunt_error *err);

bool shunt_address_is_loopback(const struct shunt_address *address);

/* A listening, non-blocking socket. Return: the descriptor, or -EADDRINUSE and the like. */
int shunt_address_listen(const struct shunt_address *address, const char *text, int backlog,
                         struct shunt_error *err);

#endif
