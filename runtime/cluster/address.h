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

/* The same for numbers only: a peer's word must not lead to a question to the name service. */
int shunt_address_parse_numeric(struct shunt_address *address, const char *text,
                                struct shunt_error *err);

/* "10.0.0.1:7171", "[::1]:7171". */
void shunt_address_print(const struct shunt_address *address, char *text, size_t bytes);

uint16_t shunt_address_port(const struct shunt_address *address);
void shunt_address_set_port(struct shunt_address *address, uint16_t port);

bool shunt_address_is_any(const struct shunt_address *address);
bool shunt_address_is_loopback(const struct shunt_address *address);

/* A listening, non-blocking socket. Return: the descriptor, or -EADDRINUSE and the like. */
int shunt_address_listen(const struct shunt_address *address, const char *text, int backlog,
                         struct shunt_error *err);

/* A bound, non-blocking UDP socket: at this port, or where that is taken at any. *port is which.
 * Return: the descriptor or a negative errno value. */
int shunt_address_bind_udp(const struct shunt_address *address, uint16_t *port,
                           struct shunt_error *err);

#endif
