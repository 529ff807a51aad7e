/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Splits at the last colon; brackets around an IPv6 address are taken off. */
static int split(const char *text, char *host, size_t host_bytes, const char **port)
{
    const char *colon = strrchr(text, ':');
    size_t len;

    if (!colon || colon == text || colon[1] == '\0')
        return -EINVAL;
    len = (size_t)(colon - text);
    if (text[0] == '[') {
        if (text[len - 1] != ']')
            return -EINVAL;
        text++;
        len -= 2;
    } else if (memchr(text, ':', len)) {
        return -EINVAL; /* an IPv6 address without brackets: where would the port begin? */
    }
    if (len == 0 || len >= host_bytes)
        return -EINVAL;
    memcpy(host, text, len);
    host[len] = '\0';
    *port = colon + 1;
    return 0;
}

/* getaddrinfo takes any number and keeps its low 16 bits; a node cannot be found at port 0. */
static bool is_port(const char *text)
{
    uint32_t port = 0;

    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        port = port * 10 + (uint32_t)(*text - '0');
        if (port > 65535)
            return false;
    }
    return port > 0;
}

static int resolve(struct shunt_address *address, const char *text, int flags,
                   struct shunt_error *err)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = flags};
    struct addrinfo *found;
    const char *port;
    char host[256];
    int rc;

    if (split(text, host, sizeof(host), &port))
        return shunt_error_set(err, -EINVAL,
                               "rack address '%s': expected host:port or [v6-address]:port", text);
    if (!is_port(port))
        return shunt_error_set(err, -EINVAL,
                               "rack address '%s': the port is no number from 1 to 65535", text);
    rc = getaddrinfo(host, port, &hints, &found);
    if (rc)
        return shunt_error_set(err, -EINVAL, "rack address '%s': %s", text, gai_strerror(rc));
    memcpy(&address->addr, found->ai_addr, found->ai_addrlen);
    address->len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

int shunt_address_parse(struct shunt_address *address, const char *text, struct shunt_error *err)
{
    return resolve(address, text, 0, err);
}

int shunt_address_parse_numeric(struct shunt_address *address, const char *text,
                                struct shunt_error *err)
{
    return resolve(address, text, AI_NUMERICHOST | AI_NUMERICSERV, err);
}

void shunt_address_print(const struct shunt_address *address, char *text, size_t bytes)
{
    char host[64], port[8];

    if (getnameinfo((const struct sockaddr *)&address->addr, address->len, host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
        snprintf(text, bytes, "an unknown address");
    else if (address->addr.ss_family == AF_INET6)
        snprintf(text, bytes, "[%s]:%s", host, port);
    else
        snprintf(text, bytes, "%s:%s", host, port);
}

uint16_t shunt_address_port(const struct shunt_address *address)
{
    if (address->addr.ss_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)&address->addr)->sin_port);
    if (address->addr.ss_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)&address->addr)->sin6_port);
    return 0;
}

void shunt_address_set_port(struct shunt_address *address, uint16_t port)
{
    if (address->addr.ss_family == AF_INET)
        ((struct sockaddr_in *)&address->addr)->sin_port = htons(port);
    else if (address->addr.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&address->addr)->sin6_port = htons(port);
}

bool shunt_address_is_any(const struct shunt_address *address)
{
    if (address->addr.ss_family == AF_INET)
        return ((const struct sockaddr_in *)&address->addr)->sin_addr.s_addr == htonl(INADDR_ANY);
    return address->addr.ss_family == AF_INET6 &&
           IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)&address->addr)->sin6_addr);
}

bool shunt_address_is_loopback(const struct shunt_address *address)
{
    if (address->addr.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&address->addr;

        return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    }
    if (address->addr.ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&address->addr;

        return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
    }
    return false;
}

int shunt_address_listen(const struct shunt_address *address, const char *text, int backlog,
                         struct shunt_error *err)
{
    const int one = 1;
    int fd = socket(address->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc;

    if (fd < 0)
        return shunt_error_set(err, -errno, "%s: no socket: %s", text, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (const struct sockaddr *)&address->addr, address->len) || listen(fd, backlog)) {
        rc = -errno;
        close(fd);
        if (rc == -EADDRINUSE)
            return shunt_error_set(err, rc,
                                   "%s: the port is taken; end the program that listens there "
                                   "(ss -ltnp shows it) or use another port in --rack",
                                   text);
        if (rc == -EADDRNOTAVAIL)
            return shunt_error_set(err, rc, "%s is no address of this machine; is --rank right?",
                                   text);
        return shunt_error_set(err, rc, "%s: cannot listen: %s", text, strerror(-rc));
    }
    return fd;
}

int shunt_address_bind_udp(const struct shunt_address *address, uint16_t *port,
                           struct shunt_error *err)
{
    struct shunt_address a = *address;
    int fd = socket(a.addr.ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc = fd < 0 ? -errno : 0;

    if (!rc && bind(fd, (const struct sockaddr *)&a.addr, a.len)) {
        shunt_address_set_port(&a, 0);
        if (bind(fd, (const struct sockaddr *)&a.addr, a.len))
            rc = -errno;
    }
    if (!rc && getsockname(fd, (struct sockaddr *)&a.addr, &a.len))
        rc = -errno;
    if (!rc) {
        *port = shunt_address_port(&a);
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return shunt_error_set(err, rc, "no socket for datagrams: %s", strerror(-rc));
}
