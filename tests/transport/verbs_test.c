/* SPDX-License-Identifier: Apache-2.0
 *
 * RDMA: the contract that every transport keeps, between two addresses of this machine that belong
 * to RDMA devices: SHUNT_TEST_RDMA, "10.77.0.1 10.77.0.2" where it is not set (tests/lab). Skipped
 * where there is no device.
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

/* From one address to the other, so that the writes cross a wire. */
static void connect_rdma(int fds[2])
{
    struct sockaddr_in to;
    socklen_t len = sizeof(to);
    int listener;

    find_addresses();
    to = addresses[0];
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(bind(listener, (struct sockaddr *)&to, len) == 0 && listen(listener, 1) == 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&to, &len), 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(fds[1], (struct sockaddr *)&addresses[1], sizeof(addresses[1])), 0);
    cr_assert_eq(connect(fds[1], (struct sockaddr *)&to, len), 0);
    fds[0] = accept(listener, NULL, NULL);
    cr_assert_geq(fds[0], 0);
    close(listener);
}

static const struct transport_backend verbs = {
    .ops = &shunt_transport_verbs, .connect = connect_rdma, .by_nic = true};

TRANSPORT_KEEPS_ALL(verbs, verbs)
