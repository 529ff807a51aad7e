/* SPDX-License-Identifier: Apache-2.0 */
#include "launch.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct look {
    const struct launch_environment *env;
    struct launch *launch;
    char *why;
    uint32_t why_bytes;
};

__attribute__((format(printf, 2, 3))) static int wrong(struct look *l, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(l->why, l->why_bytes, format, args);
    va_end(args);
    return -EINVAL;
}

static const char *get(const struct look *l, const char *name)
{
    return l->env->get(l->env->ctx, name);
}

static bool is_set(const struct look *l, const char *name)
{
    return get(l, name) != NULL;
}

/* Digits only, and few: no sum of these overflows. Return: behind them, or NULL. */
static const char *read_number(const char *at, uint32_t *value)
{
    const char *begin = at;

    for (*value = 0; isdigit((unsigned char)*at) && at - begin < 9; at++)
        *value = *value * 10 + (uint32_t)(*at - '0');
    return at > begin && !isdigit((unsigned char)*at) ? at : NULL;
}

/* A number below `limit` that the launcher must have set. Return: 0 or -EINVAL. */
static int take_number(struct look *l, const char *name, uint32_t limit, uint32_t *value)
{
    const char *text = get(l, name);
    const char *end;

    if (!text)
        return wrong(l, "%s started this, but %s is not set", l->launch->by, name);
    end = read_number(text, value);
    if (!end || *end)
        return wrong(l, "%s: '%.40s' is no number", name, text);
    if (*value >= limit)
        return wrong(l, "%s is %u; it must be below %u", name, *value, limit);
    return 0;
}

static int take_place(struct look *l, const char *rank, const char *count)
{
    struct launch *launch = l->launch;
    int rc = take_number(l, count, LAUNCH_NODES_MAX + 1, &launch->count);

    if (rc)
        return rc;
    if (launch->count == 0)
        return wrong(l, "%s is 0", count);
    rc = take_number(l, rank, UINT32_MAX, &launch->rank);
    if (rc)
        return rc;
    if (launch->rank >= launch->count)
        return wrong(l, "%s is %u, but %s is %u", rank, launch->rank, count, launch->count);
    return 0;
}

/* ---- addresses */

static int set_address(struct look *l, uint32_t rank, const char *host, uint32_t offset)
{
    const bool v6 = strchr(host, ':') && host[0] != '[';
    const uint32_t port = l->env->port + offset;

    if (port > 65535)
        return wrong(l, "--port %u is too high for %u ranks on one host", l->env->port, offset + 1);
    if (strlen(host) > LAUNCH_HOST_MAX)
        return wrong(l, "the name of rank %u's host is longer than %d bytes", rank,
                     LAUNCH_HOST_MAX);
    snprintf(l->launch->addresses[rank], LAUNCH_ADDRESS_SIZE, "%s%s%s:%u", v6 ? "[" : "", host,
             v6 ? "]" : "", port);
    return 0;
}

static int all_here(struct look *l)
{
    int rc = 0;

    l->launch->local = l->launch->count;
    for (uint32_t rank = 0; rank < l->launch->count && !rc; rank++)
        rc = set_address(l, rank, "127.0.0.1", rank);
    return rc;
}

/* From a launcher that names no hosts, or rank 0's only. `local`: its variable of how many ranks
 * this host has, which it need not set. */
static int where_master_is(struct look *l, const char *local, const char *master)
{
    struct launch *launch = l->launch;
    int rc;

    if (launch->count == 1)
        return all_here(l);
    if (is_set(l, local)) {
        rc = take_number(l, local, launch->count + 1, &launch->local);
        if (rc)
            return rc;
        if (launch->local == 0)
            return wrong(l, "%s is 0", local);
        if (launch->local == launch->count)
            return all_here(l);
    }
    if (l->env->master)
        master = l->env->master;
    if (!master)
        return wrong(l,
                     "%s does not say where its ranks run; give rank 0's host with --master, or "
                     "all of them with --rank and --rack",
                     launch->by);
    if (*master == '\0')
        return wrong(l, "the host of rank 0 is empty (%s)",
                     l->env->master ? "--master" : "MASTER_ADDR");
    return set_address(l, 0, master, 0);
}

/* ---- Slurm */

struct hosts {
    char names[LAUNCH_NODES_MAX][LAUNCH_HOST_MAX + 1];
    uint32_t tasks[LAUNCH_NODES_MAX];
    uint32_t count;
};

#define NODELIST "SLURM_STEP_NODELIST"
#define TASKS    "SLURM_STEP_TASKS_PER_NODE"

/* One name of the list with its brackets, "r[1-2]n[01-03,7]", to names; `done` of it are written to
 * `name` already. Nested as deep as there are brackets. */
static int expand(struct look *l, struct hosts *h, char *name, size_t done, const char *at,
                  const char *end)
{
    const char *open = memchr(at, '[', (size_t)(end - at));
    const size_t plain = (size_t)((open ? open : end) - at);
    const char *close;

    if (done + plain + 10 > LAUNCH_HOST_MAX)
        return wrong(l, "%s: a host's name is longer than %d bytes", NODELIST, LAUNCH_HOST_MAX);
    memcpy(name + done, at, plain);
    done += plain;
    if (!open) {
        if (done == 0 || memchr(name, ']', done))
            return wrong(l, "%s: '%.80s' is no list of hosts", NODELIST, get(l, NODELIST));
        if (h->count == LAUNCH_NODES_MAX)
            return wrong(l, "%s has more than %d hosts", NODELIST, LAUNCH_NODES_MAX);
        memcpy(h->names[h->count], name, done);
        h->names[h->count++][done] = '\0';
        return 0;
    }
    close = memchr(open, ']', (size_t)(end - open));
    for (at = open + 1; close;) {
        uint32_t first, last;
        const char *behind = read_number(at, &first);
        const int width = behind ? (int)(behind - at) : 0;

        last = first;
        if (behind && *behind == '-')
            behind = read_number(behind + 1, &last);
        if (!behind || last < first || (*behind != ',' && behind != close))
            break;
        for (uint32_t n = first; n <= last; n++) {
            char number[16];
            int len = snprintf(number, sizeof(number), "%0*u", width, n);
            int rc;

            memcpy(name + done, number, (size_t)len);
            rc = expand(l, h, name, done + (size_t)len, close + 1, end);
            if (rc)
                return rc;
        }
        if (behind == close)
            return 0;
        at = behind + 1;
    }
    return wrong(l, "%s: '%.80s' is no list of hosts", NODELIST, get(l, NODELIST));
}

/* "node[01-03,7],gpu5": at commas outside brackets. */
static int take_hosts(struct look *l, struct hosts *h)
{
    const char *at = get(l, NODELIST);

    while (true) {
        char name[LAUNCH_HOST_MAX + 1];
        const char *end = at;
        bool within = false;
        int rc;

        for (; *end && (within || *end != ','); end++)
            within = *end == '[' || (within && *end != ']');
        rc = expand(l, h, name, 0, at, end);
        if (rc || *end == '\0')
            return rc;
        at = end + 1;
    }
}

/* "2(x3),1": two tasks on each of three hosts, one on the next. */
static int take_tasks(struct look *l, struct hosts *h)
{
    const char *text = get(l, TASKS);
    const char *at = text;
    uint32_t host = 0, sum = 0;

    if (!text)
        return wrong(l, "%s started this, but %s is not set", l->launch->by, TASKS);
    while (at) {
        uint32_t tasks, times = 1;

        at = read_number(at, &tasks);
        if (at && !strncmp(at, "(x", 2)) {
            at = read_number(at + 2, &times);
            at = at && *at == ')' ? at + 1 : NULL;
        }
        if (!at || tasks == 0 || times == 0 || (*at && *at != ','))
            return wrong(l, "%s: '%.80s' is no list of counts", TASKS, text);
        if (times > h->count - host)
            return wrong(l, "%s: '%.80s' is of more hosts than the %u of %s", TASKS, text, h->count,
                         NODELIST);
        while (times--) {
            h->tasks[host++] = tasks;
            sum += tasks < LAUNCH_NODES_MAX ? tasks : LAUNCH_NODES_MAX + 1;
        }
        at = *at ? at + 1 : NULL;
    }
    if (host != h->count)
        return wrong(l, "%s: '%.80s' is of %u hosts, but %s has %u", TASKS, text, host, NODELIST,
                     h->count);
    if (sum != l->launch->count)
        return wrong(l, "%s: '%.80s' is not %u tasks together", TASKS, text, l->launch->count);
    return 0;
}

/* How ranks were dealt to hosts: one host after the other, or in turns. */
static int take_distribution(struct look *l, bool *cyclic)
{
    const char *text = get(l, "SLURM_DISTRIBUTION");
    const size_t len = text ? strcspn(text, ":,") : 0;

    *cyclic = len == 6 && !strncmp(text, "cyclic", 6);
    if (*cyclic || len == 0 || (len == 5 && !strncmp(text, "block", 5)) || text[0] == '*')
        return 0;
    return wrong(l,
                 "SLURM_DISTRIBUTION is '%.40s', of which shunt knows block and cyclic; give "
                 "--rank and --rack",
                 text);
}

static int deal_ranks(struct look *l, const struct hosts *h, bool cyclic)
{
    uint32_t used[LAUNCH_NODES_MAX] = {0};
    uint32_t local = 0, host = 0;
    int rc;

    for (uint32_t rank = 0; rank < l->launch->count; rank++) {
        while (used[host] == h->tasks[host])
            host = (host + 1) % h->count;
        rc = set_address(l, rank, h->names[host], used[host]);
        if (rc)
            return rc;
        if (rank == l->launch->rank) {
            local = used[host];
            l->launch->local = h->tasks[host];
        }
        used[host]++;
        host = cyclic ? (host + 1) % h->count : host;
    }
    if (is_set(l, "SLURM_LOCALID")) {
        uint32_t said;

        rc = take_number(l, "SLURM_LOCALID", LAUNCH_NODES_MAX, &said);
        if (!rc && said != local)
            rc = wrong(l, "SLURM_LOCALID is %u, but by %s rank %u has place %u on its host", said,
                       TASKS, l->launch->rank, local);
        return rc;
    }
    return 0;
}

static int slurm(struct look *l)
{
    struct hosts h = {.count = 0};
    bool cyclic;
    int rc =
        take_place(l, "SLURM_PROCID",
                   is_set(l, "SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS");

    if (!rc && l->launch->count == 1)
        return all_here(l);
    if (!rc)
        rc = take_hosts(l, &h);
    if (!rc)
        rc = take_tasks(l, &h);
    if (!rc)
        rc = take_distribution(l, &cyclic);
    if (!rc)
        rc = deal_ranks(l, &h, cyclic);
    if (!rc && h.count == 1)
        rc = all_here(l);
    return rc;
}

/* ---- the others */

static int torchrun(struct look *l)
{
    int rc = take_place(l, "RANK", "WORLD_SIZE");

    return rc ? rc : where_master_is(l, "LOCAL_WORLD_SIZE", get(l, "MASTER_ADDR"));
}

static int openmpi(struct look *l)
{
    int rc = take_place(l, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");

    return rc ? rc : where_master_is(l, "OMPI_COMM_WORLD_LOCAL_SIZE", NULL);
}

static int mpich(struct look *l)
{
    int rc = take_place(l, "PMI_RANK", "PMI_SIZE");

    return rc ? rc : where_master_is(l, "MPI_LOCALNRANKS", NULL);
}

/* What srun with a PMI plugin sets besides its own; it differs where MPICH's launcher runs in a
 * step of Slurm. */
static bool pmi_is_slurms(const struct look *l)
{
    const char *pmi = get(l, "PMI_RANK");
    const char *slurms = get(l, "SLURM_PROCID");

    return !pmi || (slurms && !strcmp(pmi, slurms));
}

static int (*find_launcher(const struct look *l, const char **by))(struct look *)
{
    if (is_set(l, "RANK") && is_set(l, "WORLD_SIZE"))
        return *by = "torchrun", torchrun;
    if (is_set(l, "OMPI_COMM_WORLD_RANK"))
        return *by = "Open MPI", openmpi;
    if (is_set(l, "SLURM_PROCID") && is_set(l, NODELIST) && pmi_is_slurms(l))
        return *by = "Slurm", slurm;
    if (is_set(l, "PMI_RANK") && is_set(l, "PMI_SIZE"))
        return *by = "MPICH", mpich;
    return NULL;
}

/* PMIX_RANK says nothing that another variable does not say, and must not say otherwise. */
static int check_pmix(struct look *l)
{
    uint32_t rank;
    int rc;

    if (!is_set(l, "PMIX_RANK"))
        return 0;
    if (!l->launch->by)
        return wrong(l, "PMIX_RANK is set, but no variable says how many ranks there are; give "
                        "--rank and --rack, or --nodes N for nodes here");
    rc = take_number(l, "PMIX_RANK", UINT32_MAX, &rank);
    if (!rc && rank != l->launch->rank && strcmp(l->launch->by, "torchrun") != 0)
        rc = wrong(l, "PMIX_RANK is %u, but the rank by %s is %u", rank, l->launch->by,
                   l->launch->rank);
    return rc;
}

int launch_from_environment(const struct launch_environment *env, struct launch *launch, char *why,
                            uint32_t why_bytes)
{
    struct look l = {.env = env, .launch = launch, .why = why, .why_bytes = why_bytes};
    int (*launcher)(struct look *);
    int rc;

    memset(launch, 0, sizeof(*launch));
    launcher = find_launcher(&l, &launch->by);
    rc = launcher ? launcher(&l) : 0;
    if (!rc)
        rc = check_pmix(&l);
    return rc ? rc : launch->count > 1;
}
