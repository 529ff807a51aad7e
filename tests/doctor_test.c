/* SPDX-License-Identifier: Apache-2.0
 *
 * What the doctor says of RDMA on machines that are only written down: the linker hands
 * verbs_list_ports to the function below.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "runtime/shunt.h"
#include "transport/verbs/describe.h"

#define CHECKS_MAX 16
#define PORTS_MAX  3

static const struct verbs_port cabled = {.device = "mlx5_0",
                                         .port = 1,
                                         .usable = true,
                                         .mtu = 4096,
                                         .protocol = VERBS_ROCE,
                                         .state = "PORT_ACTIVE",
                                         .address = "10.0.0.1"};
static const struct verbs_port unplugged = {
    .device = "mlx5_1", .port = 1, .mtu = 1024, .protocol = VERBS_ROCE, .state = "PORT_DOWN"};
static const struct verbs_port infiniband = {.device = "mlx5_2",
                                             .port = 1,
                                             .mtu = 4096,
                                             .protocol = VERBS_INFINIBAND,
                                             .state = "PORT_ACTIVE"};
static const struct verbs_port siw = {.device = "siw0",
                                      .port = 1,
                                      .software = true,
                                      .mtu = 1024,
                                      .protocol = VERBS_IWARP,
                                      .state = "PORT_ACTIVE"};
static const struct verbs_port rxe = {.device = "rxe0",
                                      .port = 1,
                                      .usable = true,
                                      .software = true,
                                      .mtu = 1024,
                                      .protocol = VERBS_ROCE,
                                      .state = "PORT_ACTIVE",
                                      .address = "10.0.0.2"};
static const struct verbs_port rxe_down = {.device = "rxe1",
                                           .port = 1,
                                           .software = true,
                                           .mtu = 1024,
                                           .protocol = VERBS_ROCE,
                                           .state = "PORT_DOWN"};

static const struct verbs_port *const *machine; /* [PORTS_MAX], NULL after the last */

int __wrap_verbs_list_ports(struct verbs_port *ports, uint32_t max);

int __wrap_verbs_list_ports(struct verbs_port *ports, uint32_t max)
{
    int count = 0;

    for (; count < PORTS_MAX && machine[count]; count++)
        if ((uint32_t)count < max)
            ports[count] = *machine[count];
    return count;
}

static void expect(const struct verbs_port *const ports[PORTS_MAX], enum shunt_check_status status,
                   const char *detail, const char *remedy)
{
    struct shunt_check checks[CHECKS_MAX];
    int count;

    machine = ports;
    count = shunt_doctor(NULL, checks, CHECKS_MAX);
    cr_assert_leq(count, CHECKS_MAX);
    for (int i = 0; i < count; i++) {
        if (strcmp(checks[i].name, "verbs") != 0)
            continue;
        cr_expect_eq(checks[i].status, status, "%s", checks[i].detail);
        cr_expect(strstr(checks[i].detail, detail), "no '%s': %s", detail, checks[i].detail);
        cr_expect(strstr(checks[i].remedy, remedy), "no '%s': %s", remedy, checks[i].remedy);
        return;
    }
    cr_expect_fail("nothing of verbs");
}

#define PORTS(...) ((const struct verbs_port *const[PORTS_MAX]){__VA_ARGS__})

Test(doctor, speaks_of_the_port_that_rows_would_use)
{
    expect(PORTS(&siw, &rxe, &cabled), SHUNT_CHECK_OK, "3 ports; mlx5_0 port 1: PORT_ACTIVE", "");
    expect(PORTS(&infiniband, &unplugged, &rxe), SHUNT_CHECK_LIMITED, "rxe0 port 1", "");
}

/* Whatever else is there: a port that only wants its cable is no want of a NIC. */
Test(doctor, speaks_of_the_port_that_can_be_brought_up)
{
    expect(PORTS(&infiniband, &unplugged), SHUNT_CHECK_LIMITED, "mlx5_1 port 1: PORT_DOWN",
           "put the cable in");
    expect(PORTS(&siw, &rxe_down), SHUNT_CHECK_LIMITED, "rxe1 port 1: PORT_DOWN",
           "put the cable in");
    expect(PORTS(&infiniband, &rxe_down, &unplugged), SHUNT_CHECK_LIMITED, "mlx5_1 port 1",
           "put the cable in");
}

Test(doctor, asks_for_a_nic_where_none_speaks_roce)
{
    expect(PORTS(&siw, &infiniband), SHUNT_CHECK_MISSING, "mlx5_2 port 1 speaks InfiniBand",
           "a NIC that speaks RoCE v2");
    expect(PORTS(NULL), SHUNT_CHECK_MISSING, "no RDMA device", "a RoCE NIC with its driver");
}
