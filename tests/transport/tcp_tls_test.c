/* SPDX-License-Identifier: Apache-2.0
 *
 * TCP with --encrypt: the contract that every transport keeps, over streams in TLS.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <sys/socket.h>

#include "runtime/base/tls.h"
#include "tests/base/credentials.h"
#include "tests/transport/contract.h"

static struct credential_files files;
static struct shunt_tls *tls;

static void make_tls(void)
{
    struct shunt_credentials c;

    credentials_make(&files);
    c = credentials_key(&files);
    cr_assert_eq(shunt_tls_open(&tls, &c, NULL), 0);
}

static void close_tls(void)
{
    shunt_tls_close(tls);
    credentials_remove(&files);
}

TestSuite(tcp_tls, .init = make_tls, .fini = close_tls, .timeout = 100);

static void connect_pair(uint32_t a, uint32_t b, int fds[2])
{
    (void)a, (void)b;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

static void secure(struct shunt_stream ends[2])
{
    int rc[2] = {-EAGAIN, -EAGAIN};

    cr_assert_eq(shunt_tls_begin(tls, &ends[0], SHUNT_TLS_CONNECTED), 0);
    cr_assert_eq(shunt_tls_begin(tls, &ends[1], SHUNT_TLS_ACCEPTED), 0);
    for (uint32_t turn = 0; turn < 20; turn++)
        for (uint32_t s = 0; s < 2; s++)
            if (rc[s] == -EAGAIN)
                rc[s] = shunt_tls_handshake(&ends[s], &(short){0}, NULL);
    cr_assert(rc[0] == 0 && rc[1] == 0);
}

static const struct transport_backend tcp_tls = {
    .ops = &shunt_transport_tcp, .connect = connect_pair, .secure = secure};

TRANSPORT_KEEPS_ALL(tcp_tls, tcp_tls)
