/* SPDX-License-Identifier: Apache-2.0
 *
 * What the variables of srun, mpirun and torchrun mean.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/shunt/launch.h"

#define VARIABLES_MAX 12

/* An environment, and what comes of it. */
struct row {
    const char *set[VARIABLES_MAX]; /* "NAME=value" */
    const char *master;
    uint32_t port; /* 0: 7170 */
    int rc;
    const char *by;        /* when rc is 1 */
    uint32_t rank;         /* likewise */
    const char *addresses; /* "a:1 b:2 ?", ? unknown; likewise */
    const char *why;       /* a part of it, when rc is -EINVAL */
};

static const char *get(void *ctx, const char *name)
{
    const struct row *row = ctx;
    const size_t len = strlen(name);

    for (uint32_t i = 0; i < VARIABLES_MAX && row->set[i]; i++)
        if (!strncmp(row->set[i], name, len) && row->set[i][len] == '=')
            return row->set[i] + len + 1;
    return NULL;
}

static void check_row(const struct row *row, uint32_t number)
{
    static struct launch launch;
    const struct launch_environment env = {.get = get,
                                           .ctx = (struct row *)(uintptr_t)row,
                                           .master = row->master,
                                           .port = row->port ? row->port : 7170};
    char addresses[LAUNCH_NODES_MAX * LAUNCH_ADDRESS_SIZE] = "";
    char why[256] = "";
    int rc = launch_from_environment(&env, &launch, why, sizeof(why));

    cr_expect_eq(rc, row->rc, "row %u: %d, %s", number, rc, why);
    if (row->why)
        cr_expect_not_null(strstr(why, row->why), "row %u: '%s' lacks '%s'", number, why, row->why);
    if (rc != 1)
        return;
    for (uint32_t i = 0, at = 0; i < launch.count; i++)
        at += (uint32_t)snprintf(addresses + at, sizeof(addresses) - at, "%s%s", i ? " " : "",
                                 launch.addresses[i][0] ? launch.addresses[i] : "?");
    cr_expect_str_eq(launch.by, row->by, "row %u: by %s", number, launch.by);
    cr_expect_eq(launch.rank, row->rank, "row %u: rank %u", number, launch.rank);
    cr_expect_str_eq(addresses, row->addresses, "row %u: %s", number, addresses);
}

static void check_rows(const struct row *rows, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        check_row(&rows[i], i);
}

#define CHECK_ROWS(rows) check_rows(rows, sizeof(rows) / sizeof((rows)[0]))
#define STEP(rank, tasks, list)                                                                    \
    "SLURM_PROCID=" rank, "SLURM_STEP_NUM_TASKS=" tasks, "SLURM_STEP_NODELIST=" list
#define PER_NODE(list) "SLURM_STEP_TASKS_PER_NODE=" list

Test(launch, nobody)
{
    static const struct row rows[] = {
        {.set = {NULL}},
        {.set = {"HOME=/", "WORLD_SIZE=3"}},
        /* A job script, and a shell within an allocation. */
        {.set = {"SLURM_PROCID=0", "SLURM_NTASKS=4", "SLURM_JOB_NODELIST=n[1-4]"}},
        /* Alone. */
        {.set = {STEP("0", "1", "n1"), PER_NODE("1")}},
        {.set = {"RANK=0", "WORLD_SIZE=1"}},
        {.set = {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=1", "PMIX_RANK=0"}},
    };

    CHECK_ROWS(rows);
}

Test(launch, slurm)
{
    static const struct row rows[] = {
        {.set = {STEP("2", "3", "n1,n2,n3"), PER_NODE("1(x3)"), "SLURM_LOCALID=0"},
         .rc = 1,
         .by = "Slurm",
         .rank = 2,
         .addresses = "n1:7170 n2:7170 n3:7170"},
        {.set = {STEP("6", "9", "node[01-03,7],gpu5"), PER_NODE("2(x3),1,2"), "SLURM_LOCALID=0"},
         .port = 9000,
         .rc = 1,
         .by = "Slurm",
         .rank = 6,
         .addresses = "node01:9000 node01:9001 node02:9000 node02:9001 node03:9000 node03:9001 "
                      "node7:9000 gpu5:9000 gpu5:9001"},
        {.set = {STEP("0", "4", "r[1-2]n[08-09]-ib"), PER_NODE("1(x4)")},
         .rc = 1,
         .by = "Slurm",
         .addresses = "r1n08-ib:7170 r1n09-ib:7170 r2n08-ib:7170 r2n09-ib:7170"},
        {.set = {STEP("3", "5", "a,b"), PER_NODE("3,2"), "SLURM_DISTRIBUTION=cyclic:block",
                 "SLURM_LOCALID=1"},
         .rc = 1,
         .by = "Slurm",
         .rank = 3,
         .addresses = "a:7170 b:7170 a:7171 b:7171 a:7172"},
        /* One host: nobody else need be talked to. */
        {.set = {STEP("1", "2", "n1"), PER_NODE("2"), "SLURM_DISTRIBUTION=block,Pack"},
         .rc = 1,
         .by = "Slurm",
         .rank = 1,
         .addresses = "127.0.0.1:7170 127.0.0.1:7171"},
        {.set = {"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_STEP_NODELIST=n[1-2]",
                 PER_NODE("1(x2)"), "PMIX_RANK=1", "PMI_RANK=1", "PMI_SIZE=2"},
         .rc = 1,
         .by = "Slurm",
         .rank = 1,
         .addresses = "n1:7170 n2:7170"},
    };

    CHECK_ROWS(rows);
}

Test(launch, slurm_malformed)
{
    static const struct row rows[] = {
        {.set = {STEP("x", "2", "a,b")}, .rc = -EINVAL, .why = "SLURM_PROCID: 'x' is no number"},
        {.set = {STEP("", "2", "a,b")}, .rc = -EINVAL, .why = "SLURM_PROCID: ''"},
        {.set = {STEP("-1", "2", "a,b")}, .rc = -EINVAL, .why = "SLURM_PROCID: '-1'"},
        {.set = {STEP("2", "2", "a,b")},
         .rc = -EINVAL,
         .why = "SLURM_PROCID is 2, but SLURM_STEP_NUM_TASKS is 2"},
        {.set = {STEP("0", "0", "a")}, .rc = -EINVAL, .why = "SLURM_STEP_NUM_TASKS is 0"},
        {.set = {STEP("0", "65", "a")}, .rc = -EINVAL, .why = "must be below 65"},
        {.set = {STEP("0", "99999999999", "a")}, .rc = -EINVAL, .why = "is no number"},
        {.set = {"SLURM_PROCID=0", "SLURM_STEP_NODELIST=a"},
         .rc = -EINVAL,
         .why = "SLURM_NTASKS is not set"},
        {.set = {STEP("0", "2", "a,b")}, .rc = -EINVAL, .why = "TASKS_PER_NODE is not set"},
        {.set = {STEP("0", "2", "")}, .rc = -EINVAL, .why = "SLURM_STEP_NODELIST: ''"},
        {.set = {STEP("0", "2", "a,")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", ",a")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n[1-2")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n1-2]")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n[]")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n[2-1]")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n[1,]")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n[1-x]")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n[[1]]")}, .rc = -EINVAL, .why = "is no list of hosts"},
        {.set = {STEP("0", "2", "n[0-999999999]")}, .rc = -EINVAL, .why = "more than 64 hosts"},
        {.set = {STEP("0", "2", "[1-9][1-9][1-9]")}, .rc = -EINVAL, .why = "more than 64 hosts"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("")}, .rc = -EINVAL, .why = "no list of counts"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("1(x2")},
         .rc = -EINVAL,
         .why = "no list of counts"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("1(x0),1")},
         .rc = -EINVAL,
         .why = "no list of counts"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("1(x3)")},
         .rc = -EINVAL,
         .why = "more hosts than the 2"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("2")}, .rc = -EINVAL, .why = "is of 1 hosts"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("2,1")}, .rc = -EINVAL, .why = "not 2 tasks"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("999999999(x2)")},
         .rc = -EINVAL,
         .why = "not 2 tasks"},
        {.set = {STEP("1", "3", "a,b"), PER_NODE("2,1"), "SLURM_LOCALID=0"},
         .rc = -EINVAL,
         .why = "SLURM_LOCALID is 0"},
        {.set = {STEP("1", "3", "a,b"), PER_NODE("2,1"), "SLURM_DISTRIBUTION=plane=2"},
         .rc = -EINVAL,
         .why = "SLURM_DISTRIBUTION is 'plane=2'"},
        {.set = {STEP("1", "3", "a,b"), PER_NODE("2,1")},
         .port = 65535,
         .rc = -EINVAL,
         .why = "--port 65535 is too high"},
        {.set = {STEP("0", "2", "a,b"), PER_NODE("1(x2)"), "PMIX_RANK=1"},
         .rc = -EINVAL,
         .why = "PMIX_RANK is 1, but the rank by Slurm is 0"},
    };

    CHECK_ROWS(rows);
}

Test(launch, a_host_with_a_long_name)
{
    char list[600] = "SLURM_STEP_NODELIST=";
    struct row row = {.set = {"SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=2", list},
                      .rc = -EINVAL,
                      .why = "longer than 255 bytes"};

    memset(list + strlen(list), 'n', 500);
    check_row(&row, 0);
}

Test(launch, torchrun)
{
    static const struct row rows[] = {
        {.set = {"RANK=1", "WORLD_SIZE=3", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=3", "MASTER_ADDR=host",
                 "MASTER_PORT=29500"},
         .rc = 1,
         .by = "torchrun",
         .rank = 1,
         .addresses = "127.0.0.1:7170 127.0.0.1:7171 127.0.0.1:7172"},
        {.set = {"RANK=1", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=1", "MASTER_ADDR=host"},
         .rc = 1,
         .by = "torchrun",
         .rank = 1,
         .addresses = "host:7170 ?"},
        {.set = {"RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=fd00::1"},
         .rc = 1,
         .by = "torchrun",
         .rank = 1,
         .addresses = "[fd00::1]:7170 ?"},
        {.set = {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=host"},
         .master = "other",
         .rc = 1,
         .by = "torchrun",
         .addresses = "other:7170 ?"},
        /* Each of its agents was started by Slurm. */
        {.set = {STEP("1", "2", "a,b"), PER_NODE("1(x2)"), "RANK=3", "WORLD_SIZE=4",
                 "MASTER_ADDR=a", "PMIX_RANK=1"},
         .rc = 1,
         .by = "torchrun",
         .rank = 3,
         .addresses = "a:7170 ? ? ?"},
        {.set = {"RANK=0", "WORLD_SIZE=2"}, .rc = -EINVAL, .why = "--master"},
        {.set = {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR="}, .rc = -EINVAL, .why = "MASTER_ADDR"},
        {.set = {"RANK=2", "WORLD_SIZE=2"}, .rc = -EINVAL, .why = "RANK is 2, but WORLD_SIZE is 2"},
        {.set = {"RANK=0", "WORLD_SIZE=two"}, .rc = -EINVAL, .why = "WORLD_SIZE: 'two'"},
        {.set = {"RANK=0", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=3"},
         .rc = -EINVAL,
         .why = "LOCAL_WORLD_SIZE is 3"},
        {.set = {"RANK=0", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=0"},
         .rc = -EINVAL,
         .why = "LOCAL_WORLD_SIZE is 0"},
    };

    CHECK_ROWS(rows);
}

Test(launch, mpi)
{
    static const struct row rows[] = {
        {.set = {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2",
                 "PMIX_RANK=0"},
         .rc = 1,
         .by = "Open MPI",
         .addresses = "127.0.0.1:7170 127.0.0.1:7171"},
        /* mpirun's daemons were started by Slurm. */
        {.set = {"OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=2",
                 "PMIX_RANK=2", STEP("0", "1", "b"), PER_NODE("1")},
         .master = "a",
         .rc = 1,
         .by = "Open MPI",
         .rank = 2,
         .addresses = "a:7170 ? ? ?"},
        {.set = {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2",
                 "OMPI_COMM_WORLD_LOCAL_SIZE=1"},
         .rc = -EINVAL,
         .why = "--master"},
        {.set = {"OMPI_COMM_WORLD_RANK=0"},
         .rc = -EINVAL,
         .why = "OMPI_COMM_WORLD_SIZE is not set"},
        {.set = {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2",
                 "PMIX_RANK=0"},
         .rc = -EINVAL,
         .why = "PMIX_RANK is 0, but the rank by Open MPI is 1"},
        {.set = {"PMI_RANK=1", "PMI_SIZE=2", "MPI_LOCALNRANKS=2"},
         .rc = 1,
         .by = "MPICH",
         .rank = 1,
         .addresses = "127.0.0.1:7170 127.0.0.1:7171"},
        {.set = {"PMI_RANK=3", "PMI_SIZE=4", "MPI_LOCALNRANKS=2", STEP("1", "2", "a,b")},
         .master = "a",
         .rc = 1,
         .by = "MPICH",
         .rank = 3,
         .addresses = "a:7170 ? ? ?"},
        {.set = {"PMIX_RANK=0", "PMIX_NAMESPACE=1"}, .rc = -EINVAL, .why = "PMIX_RANK is set"},
    };

    CHECK_ROWS(rows);
}
