/* SPDX-License-Identifier: Apache-2.0
 *
 * What the machine gives: against what /proc says, and against machines that are only written down.
 * The linker hands fopen to the function below, which reads these instead.
 */
#include "runtime/base/cpu.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MIB (1ull << 20)

struct text_file {
    const char *path, *text;
};

static const struct text_file *machine; /* ends with a path of NULL; NULL: this one */

FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode);

static FILE *open_text(const char *path, const char *mode)
{
    for (const struct text_file *f = machine; f->path; f++)
        if (!strcmp(path, f->path))
            return fmemopen((void *)(uintptr_t)f->text, strlen(f->text), mode);
    return NULL;
}

FILE *__wrap_fopen(const char *path, const char *mode)
{
    return machine ? open_text(path, "r") : __real_fopen(path, mode);
}

FILE *__wrap_fopen64(const char *path, const char *mode)
{
    return __wrap_fopen(path, mode);
}

static uint64_t available_on(const struct text_file *files)
{
    uint64_t bytes;

    machine = files;
    bytes = shunt_memory_available();
    machine = NULL;
    return bytes;
}

/* ---- this machine */

#if defined(__x86_64__)
Test(cpu, has_the_features_the_kernel_lists)
{
    char line[8192] = "";
    FILE *f = fopen("/proc/cpuinfo", "re");
    bool all;

    cr_assert(f);
    while (strncmp(line, "flags", 5) && fgets(line, sizeof(line), f))
        ;
    fclose(f);
    line[strcspn(line, "\n")] = '\0';
    strcat(line, " ");
    all = strstr(line, " avx2 ") && strstr(line, " fma ") && strstr(line, " f16c ");
    cr_expect_eq(shunt_cpu_features(), all ? SHUNT_CPU_AVX2 : 0);
}
#endif

Test(cpu, counts_the_processors_it_may_use)
{
    cpu_set_t set, one;
    int first = 0;

    cr_assert_eq(sched_getaffinity(0, sizeof(set), &set), 0);
    cr_expect_eq(shunt_cpu_count(), (uint32_t)CPU_COUNT(&set));
    while (!CPU_ISSET(first, &set))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    cr_assert_eq(sched_setaffinity(0, sizeof(one), &one), 0);
    cr_expect_eq(shunt_cpu_count(), 1);
}

Test(cpu, knows_what_is_resident)
{
    uint64_t before = shunt_memory_resident(), after;
    void *p = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    cr_assert_neq(p, MAP_FAILED);
    cr_expect_lt(shunt_memory_resident(), before + MIB);
    memset(p, 1, 64 * MIB);
    after = shunt_memory_resident();
    cr_expect(after > before + 63 * MIB && after < before + 66 * MIB, "%lu, then %lu", before,
              after);
    cr_expect_gt(shunt_memory_available(), 0);
}

/* ---- machines on paper */

#define MEMINFO                                                                                    \
    {                                                                                              \
        "/proc/meminfo", "MemTotal:   900 kB\nMemFree:  1 kB\nMemAvailable:    500000 kB\n"        \
    }
#define FREE (500000ull << 10)

Test(cpu, has_no_more_memory_than_the_machine)
{
    const struct text_file bare[] = {MEMINFO, {NULL, NULL}};
    const struct text_file nothing[] = {{NULL, NULL}};
    const struct text_file no_limit[] = {MEMINFO,
                                         {"/proc/self/cgroup", "0::/user.slice\n"},
                                         {"/sys/fs/cgroup/user.slice/memory.max", "max\n"},
                                         {"/sys/fs/cgroup/user.slice/memory.current", "5\n"},
                                         {NULL, NULL}};
    const struct text_file no_usage[] = {MEMINFO,
                                         {"/proc/self/cgroup", "0::/a\n"},
                                         {"/sys/fs/cgroup/a/memory.max", "1000000\n"},
                                         {NULL, NULL}};

    cr_expect_eq(available_on(bare), FREE);
    cr_expect_eq(available_on(nothing), 0);
    cr_expect_eq(available_on(no_limit), FREE);
    cr_expect_eq(available_on(no_usage), FREE);
}

/* The least room on the way up, whichever group has it. */
Test(cpu, has_no_more_memory_than_any_of_its_groups)
{
    static const char *const limits[3] = {"/sys/fs/cgroup/memory.max",
                                          "/sys/fs/cgroup/a/memory.max",
                                          "/sys/fs/cgroup/a/b/memory.max"};
    static const char *const usages[3] = {"/sys/fs/cgroup/memory.current",
                                          "/sys/fs/cgroup/a/memory.current",
                                          "/sys/fs/cgroup/a/b/memory.current"};

    for (uint32_t tight = 0; tight < 3; tight++) {
        struct text_file files[] = {MEMINFO,
                                    {"/proc/self/cgroup", "0::/a/b\n"},
                                    {limits[0], "90000000\n"},
                                    {usages[0], "1000000\n"},
                                    {limits[1], "90000000\n"},
                                    {usages[1], "1000000\n"},
                                    {limits[2], "90000000\n"},
                                    {usages[2], "1000000\n"},
                                    {NULL, NULL}};

        files[2 + 2 * tight].text = "30000000\n";
        cr_expect_eq(available_on(files), 29000000, "group %u", tight);
        files[3 + 2 * tight].text = "30000001\n"; /* it has more than it may have */
        cr_expect_eq(available_on(files), 0, "group %u", tight);
    }
}

/* Version 1 names each kind of resource; a group's name may have colons in it. */
Test(cpu, finds_its_group)
{
    const struct text_file first[] = {
        MEMINFO,
        {"/proc/self/cgroup", "9:cpuset:/x\n4:memory:/jobs/7\n1:name=systemd:/jobs\n"},
        {"/sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "70000000\n"},
        {"/sys/fs/cgroup/memory/jobs/7/memory.usage_in_bytes", "10000000\n"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
        {"/sys/fs/cgroup/memory/memory.usage_in_bytes", "10000000\n"},
        {NULL, NULL}};
    const struct text_file root[] = {MEMINFO,
                                     {"/proc/self/cgroup", "0::/\n"},
                                     {"/sys/fs/cgroup//memory.max", "5000\n"},
                                     {"/sys/fs/cgroup//memory.current", "1000\n"},
                                     {NULL, NULL}};
    const struct text_file colons[] = {
        MEMINFO,
        {"/proc/self/cgroup", "0::/pods/pod-1.slice:cri-containerd:0123abcd\n"},
        {"/sys/fs/cgroup/pods/pod-1.slice:cri-containerd:0123abcd/memory.max", "8000000\n"},
        {"/sys/fs/cgroup/pods/pod-1.slice:cri-containerd:0123abcd/memory.current", "2000000\n"},
        {NULL, NULL}};
    const struct text_file named_so[] = {
        MEMINFO,
        {"/proc/self/cgroup", "1:name=systemd:/a:memory:/b\nrubbish\n\n"},
        {"/sys/fs/cgroup/memory/b/memory.limit_in_bytes", "1\n"},
        {"/sys/fs/cgroup/memory/b/memory.usage_in_bytes", "0\n"},
        {NULL, NULL}};

    cr_expect_eq(available_on(first), 60000000);
    cr_expect_eq(available_on(root), 4000);
    cr_expect_eq(available_on(colons), 6000000);
    cr_expect_eq(available_on(named_so), FREE);
}

/* Files that were read lie in the page cache, on the group's account, until somebody needs the
 * room: a model that was copied into a container takes none of its memory. */
Test(cpu, counts_cached_files_as_room)
{
    struct text_file second[] = {MEMINFO,
                                 {"/proc/self/cgroup", "0::/a\n"},
                                 {"/sys/fs/cgroup/a/memory.max", "50000000\n"},
                                 {"/sys/fs/cgroup/a/memory.current", "49000000\n"},
                                 {"/sys/fs/cgroup/a/memory.stat",
                                  "anon 5\nfile 46000000\ninactive_file 30000000\n"
                                  "active_file 10000000\nshmem 6000000\n"},
                                 {NULL, NULL}};
    const struct text_file first[] = {
        MEMINFO,
        {"/proc/self/cgroup", "4:memory:/a\n"},
        {"/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "50000000\n"},
        {"/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "49000000\n"},
        {"/sys/fs/cgroup/memory/a/memory.stat",
         "cache 5\ninactive_file 7\nactive_file 7\ntotal_inactive_file 20000000\n"
         "total_active_file 1000000\n"},
        {NULL, NULL}};

    cr_expect_eq(available_on(second), 41000000);
    cr_expect_eq(available_on(first), 22000000);
    second[3].text = "30000000\n"; /* the files are not counted at the same moment */
    cr_expect_eq(available_on(second), 50000000);
}
