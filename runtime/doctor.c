/* SPDX-License-Identifier: Apache-2.0
 *
 * What this machine and this build give the library. Each check looks at one thing, says what it
 * found, and names the command that repairs it. Nothing is changed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "runtime/base/cpu.h"
#include "runtime/base/tls.h"
#include "runtime/store/expert_io.h"
#include "transport/verbs/describe.h"

/* Below this a limit on locked memory keeps most arenas from being registered. */
#define MEMLOCK_ENOUGH (1ull << 30)

#define PORTS_MAX 16

static void found(struct shunt_check *c, enum shunt_check_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void found(struct shunt_check *c, enum shunt_check_status status, const char *format, ...)
{
    va_list args;

    c->status = status;
    va_start(args, format);
    vsnprintf(c->detail, sizeof(c->detail), format, args);
    va_end(args);
}

static void remedy(struct shunt_check *c, const char *text)
{
    snprintf(c->remedy, sizeof(c->remedy), "%s", text);
}

/* ---- processor and memory */

static void check_processor(struct shunt_check *c, const char *path)
{
    bool avx2 = shunt_kernels_available() & 1u << SHUNT_KERNELS_AVX2;

    (void)path;
    found(c, avx2 ? SHUNT_CHECK_OK : SHUNT_CHECK_LIMITED, "%u processors, kernels: ref%s",
          shunt_cpu_count(), avx2 ? ", avx2" : " only (no AVX2, FMA and F16C)");
}

static void check_memory(struct shunt_check *c, const char *path)
{
    (void)path;
    found(c, SHUNT_CHECK_OK, "%.1f GiB available to this process",
          (double)shunt_memory_available() / (1 << 30));
}

static void check_locked_memory(struct shunt_check *c, const char *path)
{
    uint64_t lockable = shunt_memory_lockable();

    (void)path;
    if (lockable == UINT64_MAX) {
        found(c, SHUNT_CHECK_OK, "no limit for this process");
        return;
    }
    if (lockable >= MEMLOCK_ENOUGH) {
        found(c, SHUNT_CHECK_OK, "%llu MiB may be locked, by all of this user's processes together",
              (unsigned long long)(lockable >> 20));
        return;
    }
    found(c, SHUNT_CHECK_LIMITED,
          "%llu KiB may be locked, by all of this user's processes together: slots beyond that are "
          "not registered with io_uring, and RDMA may find too little",
          (unsigned long long)(lockable >> 10));
    remedy(c, "ulimit -l unlimited (root first: '* - memlock unlimited' in "
              "/etc/security/limits.conf); systemd: LimitMEMLOCK=infinity; docker: --ulimit "
              "memlock=-1");
}

static void check_huge_pages(struct shunt_check *c, const char *path)
{
    static const char file[] = "/sys/kernel/mm/transparent_hugepage/enabled";
    char line[128] = "";
    FILE *f = fopen(file, "re");

    (void)path;
    if (f) {
        if (!fgets(line, sizeof(line), f))
            line[0] = '\0';
        fclose(f);
    }
    line[strcspn(line, "\n")] = '\0';
    if (strstr(line, "[always]") || strstr(line, "[madvise]")) {
        found(c, SHUNT_CHECK_OK, "transparent huge pages: %s", line);
        return;
    }
    found(c, SHUNT_CHECK_LIMITED, "transparent huge pages: %s", line[0] ? line : "not there");
    if (line[0])
        remedy(c, "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
}

/* ---- storage */

static void check_uring(struct shunt_check *c, const char *path)
{
    const struct shunt_io_config cfg = {.depth = 4};
    struct shunt_expert_io *io;
    struct shunt_error err;
    int rc = shunt_io_uring.open(&io, &cfg, &err);

    (void)path;
    if (rc == 0) {
        shunt_io_uring.close(io);
        found(c, SHUNT_CHECK_OK, "works");
        return;
    }
    found(c, rc == -ENOSYS ? SHUNT_CHECK_MISSING : SHUNT_CHECK_LIMITED,
          "%s; experts are read by a pool of threads", err.text);
    if (rc == -EPERM)
        remedy(c, "sudo sysctl kernel.io_uring_disabled=0; in a container allow io_uring_setup, "
                  "io_uring_enter and io_uring_register in its seccomp profile");
}

/* A folder has no file to read: an unnamed one, which disappears by itself, stands in. */
static int open_unnamed(const char *folder, int flags)
{
    return open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
}

static void check_direct_folder(struct shunt_check *c, const char *path)
{
    int fd = open_unnamed(path, O_DIRECT);

    if (fd >= 0) {
        close(fd);
        found(c, SHUNT_CHECK_OK, "%s takes O_DIRECT", path);
        return;
    }
    fd = open_unnamed(path, 0);
    if (fd < 0) {
        found(c, SHUNT_CHECK_LIMITED, "%s: cannot be tried (%s)", path, strerror(errno));
        remedy(c, "name the model file: shunt doctor MODEL");
        return;
    }
    close(fd);
    found(c, SHUNT_CHECK_LIMITED, "%s refuses O_DIRECT: reads go through the page cache", path);
    remedy(c, "put the model on a disk (ext4, xfs, btrfs), not on tmpfs or an overlay");
}

static void check_direct(struct shunt_check *c, const char *path)
{
    struct shunt_file file;
    struct shunt_error err;
    struct stat st;

    if (stat(path, &st)) {
        found(c, SHUNT_CHECK_FAILED, "%s: %s", path, strerror(errno));
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        check_direct_folder(c, path);
        return;
    }
    if (shunt_file_open(&file, path, SHUNT_IO_AUTO, &err)) {
        found(c, SHUNT_CHECK_FAILED, "%s", err.text);
        return;
    }
    if (file.direct) {
        found(c, SHUNT_CHECK_OK, "%s: alignment %u bytes (memory %u)", path, file.off_align,
              file.mem_align);
    } else {
        found(c, SHUNT_CHECK_LIMITED, "%s: refused, reads go through the page cache", path);
        remedy(c, "put the model on a disk (ext4, xfs, btrfs), not on tmpfs or an overlay");
    }
    shunt_file_close(&file);
}

/* ---- devices */

/* A usable port is worth more than any other; one that may become so by a cable or an address more
 * than one that never will; and a NIC's more than one in software. */
static uint32_t worth(const struct verbs_port *p)
{
    return 4u * p->usable + 2u * (p->protocol == VERBS_ROCE) + !p->software;
}

/* The port that says most. */
static const struct verbs_port *best_port(const struct verbs_port *ports, int count)
{
    const struct verbs_port *best = &ports[0];

    for (int i = 1; i < count; i++)
        if (worth(&ports[i]) > worth(best))
            best = &ports[i];
    return best;
}

static void check_verbs(struct shunt_check *c, const char *path)
{
    struct verbs_port ports[PORTS_MAX];
    const struct verbs_port *best;
    int count = verbs_list_ports(ports, PORTS_MAX);

    (void)path;
    if (count < 0) {
        found(c, SHUNT_CHECK_MISSING, "this build has no RDMA; rows travel by TCP");
        remedy(c, "install libibverbs-dev and librdmacm-dev, and build again");
        return;
    }
    if (count == 0) {
        found(c, SHUNT_CHECK_MISSING, "no RDMA device; rows travel by TCP");
        remedy(c, "a RoCE NIC with its driver (apt install rdma-core); to try without one: "
                  "sudo modprobe rdma_rxe && sudo rdma link add rxe0 type rxe netdev eth0");
        return;
    }
    best = best_port(ports, count < PORTS_MAX ? count : PORTS_MAX);
    if (best->protocol != VERBS_ROCE) {
        found(c, SHUNT_CHECK_MISSING, "%d port%s; %s port %u speaks %s; rows travel by TCP", count,
              count == 1 ? "" : "s", best->device, best->port,
              best->protocol == VERBS_IWARP ? "iWARP" : "InfiniBand");
        remedy(c, "a NIC that speaks RoCE v2, or this one set to Ethernet where it can be");
        return;
    }
    found(c, best->usable && !best->software ? SHUNT_CHECK_OK : SHUNT_CHECK_LIMITED,
          "%d port%s; %s port %u: %s, RoCE v2 address %s, MTU %u%s", count, count == 1 ? "" : "s",
          best->device, best->port, best->state, best->address[0] ? best->address : "none",
          best->mtu, best->software ? ", software RDMA (for trying, not for speed)" : "");
    if (!best->usable)
        remedy(c, "put the cable in, give the port's network interface an IP address and bring it "
                  "up: ip link; ip address");
}

/* How rows would get from a GPU's memory to the NIC. */
static void check_gpu_direct(struct shunt_check *c, const char *path)
{
    struct verbs_port ports[PORTS_MAX];
    int count = verbs_list_ports(ports, PORTS_MAX);
    const struct verbs_port *best =
        count > 0 ? best_port(ports, count < PORTS_MAX ? count : PORTS_MAX) : NULL;

    (void)path;
    if (best && best->dmabuf) {
        found(c, SHUNT_CHECK_OK, "%s registers GPU memory by DMA-BUF", best->device);
        return;
    }
    if (best && access("/sys/module/nvidia_peermem", F_OK) == 0) {
        found(c, SHUNT_CHECK_OK, "%s registers GPU memory by nvidia-peermem", best->device);
        return;
    }
    found(c, SHUNT_CHECK_LIMITED, "%s: rows of a GPU go through pinned host memory",
          best ? "neither DMA-BUF nor nvidia-peermem" : "no RDMA device");
}

static uint32_t count_gpus(void)
{
    DIR *dir = opendir("/proc/driver/nvidia/gpus");
    struct dirent *entry;
    uint32_t count = 0;

    while (dir && (entry = readdir(dir)))
        count += entry->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return count;
}

static void check_tls(struct shunt_check *c, const char *path)
{
    (void)path;
    found(c, SHUNT_CHECK_OK, "OpenSSL %s: racks of several machines, with --key-file or --cert",
          shunt_tls_library());
}

static void check_cuda(struct shunt_check *c, const char *path)
{
    (void)path;
    found(c, SHUNT_CHECK_MISSING, "this version has no CUDA kernels; GPUs here: %u", count_gpus());
}

static const struct {
    const char *name;
    void (*check)(struct shunt_check *c, const char *path);
} checks[] = {
    {"processor", check_processor},
    {"memory", check_memory},
    {"io_uring", check_uring},
    {"O_DIRECT", check_direct},
    {"locked memory", check_locked_memory},
    {"huge pages", check_huge_pages},
    {"TLS", check_tls},
    {"verbs", check_verbs},
    {"GPU memory", check_gpu_direct},
    {"CUDA", check_cuda},
};

int shunt_doctor(const char *path, struct shunt_check *out, uint32_t check_max)
{
    uint32_t count = sizeof(checks) / sizeof(checks[0]);

    for (uint32_t i = 0; i < count && i < check_max; i++) {
        memset(&out[i], 0, sizeof(out[i]));
        out[i].name = checks[i].name;
        checks[i].check(&out[i], path ? path : ".");
    }
    return (int)count;
}
