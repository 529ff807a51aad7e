/* SPDX-License-Identifier: Apache-2.0
 *
 * shunt doctor: what this machine can and cannot do, and the command that repairs it.
 */
#include "cli.h"

#define CHECKS_MAX 32

static const struct option_help own_options[] = {{0}};

static int take_argument(void *ctx, const char *name, const char *value)
{
    const char **path = ctx;

    if (name || *path)
        return usage_error("doctor", "'%s': doctor takes one model file or folder", value);
    *path = value;
    return 0;
}

int cmd_doctor(int argc, char **argv)
{
    static const char *const marks[] = {"ok", "limited", "no", "failed"};
    struct shunt_check checks[CHECKS_MAX];
    const char *path = NULL;
    bool failed = false;
    int count;
    int rc = parse_arguments(argc, argv, "doctor",
                             "doctor [MODEL|FOLDER]\n\n"
                             "Says what this machine gives shunt, and how to repair what it does "
                             "not. Changes nothing.",
                             own_options, NULL, take_argument, &path);

    if (rc)
        return rc < 0 ? EXIT_DONE : rc;
    printf("shunt %s\n", shunt_version());
    count = shunt_doctor(path, checks, CHECKS_MAX);
    for (int i = 0; i < count && i < CHECKS_MAX; i++) {
        failed |= checks[i].status == SHUNT_CHECK_FAILED;
        printf("%-8s %-14s %s\n", marks[checks[i].status], checks[i].name, checks[i].detail);
        if (checks[i].remedy[0])
            printf("%-8s %-14s   -> %s\n", "", "", checks[i].remedy);
    }
    return failed ? EXIT_FAILED : EXIT_DONE;
}
