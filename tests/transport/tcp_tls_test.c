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

static void connect_pair(int fds[2])
{
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

#define TCP_TLS_KEEPS(check)                                                                       \
    Test(tcp_tls, check)                                                                           \
    {                                                                                              \
        transport_##check(&tcp_tls);                                                               \
    }

TCP_TLS_KEEPS(keeps_order_and_shows_bytes)
TCP_TLS_KEEPS(takes_any_size_that_fits)
TCP_TLS_KEEPS(takes_depth_puts_and_no_more)
TCP_TLS_KEEPS(counts_puts_until_sent_is_taken)
TCP_TLS_KEEPS(leaves_the_source_alone_until_sent)
TCP_TLS_KEEPS(moves_both_directions_at_once)
TCP_TLS_KEEPS(serves_many_peers)
TCP_TLS_KEEPS(overwrites_nothing_without_credit)
TCP_TLS_KEEPS(says_once_that_a_peer_is_lost)
TCP_TLS_KEEPS(hands_out_what_came_before_the_loss)
TCP_TLS_KEEPS(behaves_like_its_model)
