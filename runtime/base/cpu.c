/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/cpu.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define CAP_IPC_LOCK_BIT 14

#if defined(__x86_64__)
#include <cpuid.h>

/* __builtin_cpu_supports does not know "f16c" before gcc 11 and clang 15. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

uint32_t shunt_cpu_features(void)
{
    uint32_t features = 0;

    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        features |= SHUNT_CPU_AVX2;
    return features;
}
#else
uint32_t shunt_cpu_features(void)
{
    return 0;
}
#endif

uint32_t shunt_cpu_count(void)
{
    cpu_set_t set;
    long online;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return (uint32_t)CPU_COUNT(&set);
    online = sysconf(_SC_NPROCESSORS_ONLN); /* more than CPU_SETSIZE processors */
    return online > 0 ? (uint32_t)online : 1;
}

/* The number after `key` in a file of such lines; 0 when absent. */
static uint64_t number_after(const char *path, const char *key)
{
    char line[256];
    uint64_t number = 0;
    FILE *f = fopen(path, "re");

    if (!f)
        return 0;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, strlen(key)))
            continue;
        if (sscanf(line + strlen(key), " %lu", &number) != 1)
            number = 0;
        break;
    }
    fclose(f);
    return number;
}

/* Bytes, of a /proc file with lines "Key:   123 kB". */
static uint64_t proc_value(const char *path, const char *key)
{
    return number_after(path, key) << 10;
}

static bool read_number(const char *path, uint64_t *value)
{
    FILE *f = fopen(path, "re");
    bool ok;

    if (!f)
        return false;
    ok = fscanf(f, "%lu", value) == 1; /* "max" is no number: no limit */
    fclose(f);
    return ok;
}

/* A version of control groups: where the memory groups lie, and its words. */
struct cgroup_names {
    const char *root, *limit, *usage, *inactive_file, *active_file;
};
static const struct cgroup_names cgroup_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                              "memory.usage_in_bytes", "total_inactive_file",
                                              "total_active_file"};
static const struct cgroup_names cgroup_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                              "inactive_file", "active_file"};

/* Room left in one control group. Files in the page cache are on its account and make room when it
 * is needed; the machine's MemAvailable counts them in the same way. */
static uint64_t cgroup_room(const struct cgroup_names *names, const char *group)
{
    char folder[576], path[640];
    uint64_t limit, usage, cached;

    snprintf(folder, sizeof(folder), "%s%s", names->root, group);
    snprintf(path, sizeof(path), "%s/%s", folder, names->limit);
    if (!read_number(path, &limit))
        return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/%s", folder, names->usage);
    if (!read_number(path, &usage))
        return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/memory.stat", folder);
    cached = number_after(path, names->inactive_file) + number_after(path, names->active_file);
    usage -= cached < usage ? cached : usage;
    return limit > usage ? limit - usage : 0;
}

/* Of a line "ID:CONTROLLERS:GROUP" of /proc/self/cgroup; the group may have colons in its name.
 * Return: the group, or NULL when the line is not about memory. */
static char *memory_group(char *line, const struct cgroup_names **names)
{
    char *controllers = strchr(line, ':');
    char *group = controllers ? strchr(controllers + 1, ':') : NULL;

    if (!group)
        return NULL;
    *group++ = '\0';
    group[strcspn(group, "\n")] = '\0';
    *names = !strcmp(line, "0:") ? &cgroup_v2 : &cgroup_v1;
    return *names == &cgroup_v2 || !strcmp(controllers, ":memory") ? group : NULL;
}

/* The least room in this process's memory control group and those above it. */
static uint64_t cgroup_memory_room(void)
{
    uint64_t room = UINT64_MAX;
    char line[512];
    FILE *f = fopen("/proc/self/cgroup", "re");

    if (!f)
        return room;
    while (fgets(line, sizeof(line), f)) {
        const struct cgroup_names *names;
        char *group = memory_group(line, &names);

        while (group) {
            uint64_t r = cgroup_room(names, group);

            if (r < room)
                room = r;
            if (!strrchr(group, '/') || group[1] == '\0')
                break;
            *strrchr(group, '/') = '\0';
        }
    }
    fclose(f);
    return room;
}

uint64_t shunt_memory_available(void)
{
    uint64_t machine = proc_value("/proc/meminfo", "MemAvailable:");
    uint64_t group = cgroup_memory_room();

    return machine < group ? machine : group;
}

uint64_t shunt_memory_resident(void)
{
    return proc_value("/proc/self/status", "VmRSS:") +
           proc_value("/proc/self/status", "HugetlbPages:");
}

/* What lifts the limit: root has it, but not in a container that took it away. */
static bool may_lock_anything(void)
{
    unsigned long long effective = 0;
    char line[256];
    FILE *f = fopen("/proc/self/status", "re");

    while (f && fgets(line, sizeof(line), f))
        sscanf(line, "CapEff: %llx", &effective);
    if (f)
        fclose(f);
    return effective >> CAP_IPC_LOCK_BIT & 1;
}

uint64_t shunt_memory_lockable(void)
{
    struct rlimit limit = {0};

    getrlimit(RLIMIT_MEMLOCK, &limit);
    return limit.rlim_cur == RLIM_INFINITY || may_lock_anything() ? UINT64_MAX : limit.rlim_cur;
}
