/* SPDX-License-Identifier: Apache-2.0
 *
 * A rack that somebody else has started, process by process: srun, torchrun, mpirun. What they put
 * into the environment says which node this process is and, mostly, where the others are. Pure:
 * asks its caller for variables, and nobody else for anything.
 *
 * The innermost launcher counts: mpirun and torchrun may themselves have been started by Slurm.
 *
 *   torchrun    RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR
 *   Open MPI    OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_SIZE
 *   Slurm       SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE,
 *               SLURM_LOCALID, SLURM_DISTRIBUTION; a job script outside srun is not in a step
 *   MPICH       PMI_RANK, PMI_SIZE, MPI_LOCALNRANKS
 *   PMIx        PMIX_RANK, which must agree with one of these
 *
 * A node's address is its host and the base port plus its place among the ranks of that host, or
 * the loopback address and base port plus rank where all are on one host.
 */
#ifndef SHUNT_TOOLS_LAUNCH_H
#define SHUNT_TOOLS_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

#define LAUNCH_NODES_MAX    64
#define LAUNCH_HOST_MAX     255                   /* bytes of a host's name */
#define LAUNCH_ADDRESS_SIZE (LAUNCH_HOST_MAX + 9) /* "[host]:65535" */

struct launch_environment {
    const char *(*get)(void *ctx, const char *name); /* NULL: not set */
    void *ctx;
    const char *master; /* rank 0's host, as the user gives it; or NULL */
    uint32_t port;      /* the base port, in [1, 65535] */
};

struct launch {
    const char *by; /* the launcher */
    uint32_t rank, count;
    uint32_t local;                                        /* ranks on this host; 0: unknown */
    char addresses[LAUNCH_NODES_MAX][LAUNCH_ADDRESS_SIZE]; /* "" where unknown: then all but [0] */
};

/* Return: 1 and *launch for one of several ranks; 0 where nobody has launched this process, or it
 * is alone; -EINVAL with one sentence in `why` that names the variable. */
int launch_from_environment(const struct launch_environment *env, struct launch *launch, char *why,
                            uint32_t why_bytes);

#endif
