/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/address.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static uint16_t port_of(const struct shunt_address *a)
{
    if (a->addr.ss_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)&a->addr)->sin_port);
    return ntohs(((const struct sockaddr_in6 *)&a->addr)->sin6_port);
}

Test(address, parses)
{
    static const struct {
        const char *text;
        int family;
        uint16_t port;
        bool loopback;
    } cases[] = {
        {"127.0.0.1:1", AF_INET, 1, true},
        {"127.0.0.1:65535", AF_INET, 65535, true},
        {"127.255.255.254:80", AF_INET, 80, true},
        {"127.0.0.1:00080", AF_INET, 80, true},
        {"0.0.0.0:7171", AF_INET, 7171, false},
        {"10.1.2.3:7171", AF_INET, 7171, false},
        {"128.0.0.1:7171", AF_INET, 7171, false},
        {"[::1]:7171", AF_INET6, 7171, true},
        {"[::]:7171", AF_INET6, 7171, false},
        {"[::ffff:127.0.0.1]:7171", AF_INET6, 7171, false},
        {"[fe80::1:2]:9", AF_INET6, 9, false},
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct shunt_error err = {0};
        struct shunt_address a;

        cr_assert_eq(shunt_address_parse(&a, cases[i].text, &err), 0, "%s", err.text);
        cr_expect_eq(a.addr.ss_family, cases[i].family, "%s", cases[i].text);
        cr_expect_eq(port_of(&a), cases[i].port, "%s: port %u", cases[i].text, port_of(&a));
        cr_expect_eq(shunt_address_is_loopback(&a), cases[i].loopback, "%s", cases[i].text);
    }
}

/* What the name service would make something of is refused as well. */
Test(address, refuses)
{
    static const char *const texts[] = {
        "",
        ":",
        ":80",
        "127.0.0.1",
        "127.0.0.1:",
        "::1:80",
        "::1",
        "[::1]",
        "[::1]:",
        "[::1]80",
        "[::1:80",
        "::1]:80",
        "[]:80",
        "[127.0.0.1:80",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:70000",
        "127.0.0.1:4294967376",
        "127.0.0.1:-1",
        "127.0.0.1:+80",
        "127.0.0.1: 80",
        "127.0.0.1:80x",
        "127.0.0.1:0x50",
    };
    char host[600];
    struct shunt_error err;
    struct shunt_address a;

    for (uint32_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        int rc = shunt_address_parse(&a, texts[i], &err);

        cr_expect_eq(rc, -EINVAL, "'%s' has port %u", texts[i], port_of(&a));
        if (rc)
            cr_expect(strstr(err.text, texts[i]), "%s", err.text);
    }
    memset(host, 'a', sizeof(host));
    strcpy(host + sizeof(host) - 4, ":80");
    cr_expect_eq(shunt_address_parse(&a, host, &err), -EINVAL);
}

Test(address, listens)
{
    struct shunt_error err = {0};
    struct shunt_address a;
    socklen_t len = sizeof(a.addr);
    int fd, on = 0;
    socklen_t on_len = sizeof(on);

    cr_assert_eq(shunt_address_parse(&a, "127.0.0.1:1", NULL), 0);
    ((struct sockaddr_in *)&a.addr)->sin_port = 0; /* any that is free */
    fd = shunt_address_listen(&a, "here", 3, &err);
    cr_assert_geq(fd, 0, "%s", err.text);
    cr_expect(fcntl(fd, F_GETFL) & O_NONBLOCK && fcntl(fd, F_GETFD) & FD_CLOEXEC);
    cr_expect(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &on_len) == 0 && on);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&a.addr, &len), 0);
    cr_expect_eq(shunt_address_listen(&a, "here", 3, &err), -EADDRINUSE);
    cr_expect(strstr(err.text, "here") && strstr(err.text, "taken"), "%s", err.text);
    close(fd);
    fd = shunt_address_listen(&a, "here", 3, &err); /* at once again */
    cr_expect_geq(fd, 0, "%s", err.text);
    close(fd);
}

/* 192.0.2.0/24 is set aside for documents: no machine has it. */
Test(address, says_when_it_is_not_this_machine)
{
    struct shunt_error err;
    struct shunt_address a;

    cr_assert_eq(shunt_address_parse(&a, "192.0.2.1:7171", NULL), 0);
    cr_expect_eq(shunt_address_listen(&a, "192.0.2.1:7171", 3, &err), -EADDRNOTAVAIL);
    cr_expect(strstr(err.text, "192.0.2.1:7171") && strstr(err.text, "--rank"), "%s", err.text);
}
