/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/cpu.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

/* The value in bytes after `key` in a /proc file of "Key:   123 kB" lines; 0 when absent. */
static uint64_t proc_value(const char *path, const char *key)
{
    char line[256];
    uint64_t kib = 0;
    FILE *f = fopen(path, "re");

    if (!f)
        return 0;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, strlen(key)))
            continue;
        if (sscanf(line + strlen(key), " %lu", &kib) != 1)
            kib = 0;
        break;
    }
    fclose(f);
    return kib << 10;
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

/* Room left in one control group, through the limit and usage files of `folder`. */
static uint64_t cgroup_room(const char *folder, const char *limit_file, const char *usage_file)
{
    char path[640];
    uint64_t limit, usage;

    snprintf(path, sizeof(path), "%s/%s", folder, limit_file);
    if (!read_number(path, &limit))
        return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/%s", folder, usage_file);
    if (!read_number(path, &usage))
        return UINT64_MAX;
    return limit > usage ? limit - usage : 0;
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
        bool v2 = !strncmp(line, "0::", 3);
        bool v1 = strstr(line, ":memory:") != NULL;
        char *group = strrchr(line, ':');
        char folder[576];

        if ((!v1 && !v2) || !group)
            continue;
        group++;
        group[strcspn(group, "\n")] = '\0';
        for (;;) {
            uint64_t r;

            snprintf(folder, sizeof(folder), "/sys/fs/cgroup%s%s", v1 ? "/memory" : "", group);
            r = v1 ? cgroup_room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
                   : cgroup_room(folder, "memory.max", "memory.current");
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
