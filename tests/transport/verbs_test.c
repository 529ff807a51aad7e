/* SPDX-License-Identifier: Apache-2.0
 *
 * RDMA: the contract that every transport keeps, between two addresses of this machine that belong
 * to RDMA devices: SHUNT_TEST_RDMA, "10.77.0.1 10.77.0.2" where it is not set (tests/lab); over the
 * devices of SHUNT_TEST_RDMA_DEVICES where that is set. Skipped where there is no device.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/transport/contract.h"

extern const struct shunt_transport_ops shunt_transport_verbs;

static struct sockaddr_in addresses[2];

static void find_addresses(void)
{
    const char *text = getenv("SHUNT_TEST_RDMA");
    char names[2][16];
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);

    if (list)
        ibv_free_device_list(list);
    if (count == 0)
        cr_skip_test("no RDMA device here; tests/lab/run has some");
    cr_assert_eq(sscanf(text ? text : "10.77.0.1 10.77.0.2", "%15s %15s", names[0], names[1]), 2);
    for (uint32_t i = 0; i < 2; i++) {
        addresses[i] = (struct sockaddr_in){.sin_family = AF_INET};
        cr_assert_eq(inet_pton(AF_INET, names[i], &addresses[i].sin_addr), 1);
    }
}

/* A node has one of the addresses, and its neighbour the other, so that writes cross a wire. */
static void connect_rdma(uint32_t a, uint32_t b, int fds[2])
{
    struct sockaddr_in to;
    socklen_t len = sizeof(to);
    int listener;

    find_addresses();
    to = addresses[a % 2];
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(bind(listener, (struct sockaddr *)&to, len) == 0 && listen(listener, 1) == 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&to, &len), 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(fds[1], (struct sockaddr *)&addresses[b % 2], sizeof(addresses[0])), 0);
    cr_assert_eq(connect(fds[1], (struct sockaddr *)&to, len), 0);
    fds[0] = accept(listener, NULL, NULL);
    cr_assert_geq(fds[0], 0);
    close(listener);
}

/* "rxe0,rxe2 rxe1,rxe3": two rails for nodes at the first address and for those at the second. */
static const struct shunt_link_options *name_devices(uint32_t node)
{
    static struct shunt_link_options links[2];
    static char names[2][64];
    const char *text = getenv("SHUNT_TEST_RDMA_DEVICES");

    if (!text)
        return NULL;
    cr_assert_eq(sscanf(text, "%63s %63s", names[0], names[1]), 2);
    links[node % 2].device = names[node % 2];
    return &links[node % 2];
}

static const struct transport_backend verbs = {
    .ops = &shunt_transport_verbs, .connect = connect_rdma, .link = name_devices};

#define VERBS_KEEPS(check)                                                                         \
    Test(verbs, check, .timeout = 250)                                                             \
    {                                                                                              \
        transport_##check(&verbs);                                                                 \
    }

VERBS_KEEPS(keeps_order_and_shows_bytes)
VERBS_KEEPS(takes_any_size_that_fits)
VERBS_KEEPS(takes_depth_puts_and_no_more)
VERBS_KEEPS(counts_puts_until_sent_is_taken)
VERBS_KEEPS(leaves_the_source_alone_until_sent)
VERBS_KEEPS(moves_both_directions_at_once)
VERBS_KEEPS(serves_many_peers)
VERBS_KEEPS(overwrites_nothing_without_credit)
VERBS_KEEPS(says_once_that_a_peer_is_lost)
VERBS_KEEPS(hands_out_what_came_before_the_loss)
VERBS_KEEPS(behaves_like_its_model)
