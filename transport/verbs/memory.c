/* SPDX-License-Identifier: Apache-2.0
 *
 * Registration. Only the inbox is open to the peers' writes; what puts read from is registered for
 * local use. Regions are cut into blocks of at most 1 GiB.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "runtime/base/cpu.h"
#include "transport/verbs/verbs_impl.h"

#define LESS "send less at once: a lower --chunk (of bench: --size, --tokens)"

static uint64_t kib_up(uint64_t bytes)
{
    return (bytes >> 10) + ((bytes & 1023) > 0);
}

/* ---- one block */

/* Memory of a GPU: the kernel's DMA-BUF way first, then a driver that knows the address by itself
 * (nvidia-peermem). Where neither is there, rows go through host memory: the caller's to do. */
static struct ibv_mr *register_device_memory(struct ibv_pd *pd, const struct shunt_region *r,
                                             uint64_t off, uint64_t bytes, int access)
{
    unsigned char *at = (unsigned char *)r->base + off;
    struct ibv_mr *mr =
        ibv_reg_dmabuf_mr(pd, r->fd_offset + off, bytes, (uintptr_t)at, r->fd, access);
    int error = errno;

    if (!mr)
        mr = ibv_reg_mr(pd, at, bytes, access);
    errno = error; /* the first refusal says more */
    return mr;
}

static int refuse_registration(const struct verbs_rail *rail, const struct shunt_region *r,
                               uint64_t bytes, int error, struct shunt_error *err)
{
    if (r->kind == SHUNT_REGION_DMABUF)
        return shunt_error_set(err, -EOPNOTSUPP,
                               "verbs: %s registers no device memory (DMA-BUF: %s); rows must go "
                               "through host memory",
                               rail->label, strerror(error));
    if (error == ENOMEM && shunt_memory_lockable() != UINT64_MAX)
        return shunt_error_set(err, -ENOMEM,
                               "verbs: %s cannot register %" PRIu64
                               " KiB: the limit on locked memory, which all processes of this user "
                               "share, is used up; raise it: ulimit -l unlimited, or LimitMEMLOCK="
                               "infinity of the systemd unit",
                               rail->label, kib_up(bytes));
    return shunt_error_set(err, -error, "verbs: %s cannot register %" PRIu64 " bytes: %s",
                           rail->label, bytes, strerror(error));
}

static int register_block(struct shunt_transport *t, const struct shunt_region *r, uint64_t off,
                          int access, struct verbs_block *block, struct shunt_error *err)
{
    uint64_t bytes = r->bytes - off < VERBS_BLOCK_BYTES ? r->bytes - off : VERBS_BLOCK_BYTES;

    block->base = (unsigned char *)r->base + off;
    block->bytes = bytes;
    block->of_device = r->kind == SHUNT_REGION_DMABUF;
    for (uint32_t i = 0; i < t->rail_count; i++) {
        struct ibv_pd *pd = t->rails[i].pd;

        block->mrs[i] = r->kind == SHUNT_REGION_DMABUF
                            ? register_device_memory(pd, r, off, bytes, access)
                            : ibv_reg_mr(pd, block->base, bytes, access);
        if (!block->mrs[i])
            return refuse_registration(&t->rails[i], r, bytes, errno, err);
    }
    return 0;
}

/* ---- all of it */

/* Said before the kernel says ENOMEM, with what is needed. */
static int check_limit(const struct shunt_transport_config *cfg, uint32_t rails,
                       struct shunt_error *err)
{
    uint64_t limit = shunt_memory_lockable();
    uint64_t needed = cfg->inbox.bytes;

    for (uint32_t i = 0; i < cfg->memory_count; i++)
        if (cfg->memory[i].kind != SHUNT_REGION_DMABUF)
            needed += cfg->memory[i].bytes;
    needed *= rails;
    if (needed <= limit)
        return 0;
    /* Rounded apart, so that the two never look alike. */
    return shunt_error_set(
        err, -ENOMEM,
        "verbs: %" PRIu64 " KiB must be locked for RDMA, and this user may lock "
        "%" PRIu64 " KiB; raise the limit: ulimit -l unlimited (root first: '* - "
        "memlock unlimited' in /etc/security/limits.conf), LimitMEMLOCK=infinity "
        "of the systemd unit, --ulimit memlock=-1 of docker; or " LESS,
        kib_up(needed), limit >> 10);
}

static int register_inbox(struct shunt_transport *t, const struct shunt_region *inbox,
                          struct shunt_error *err)
{
    const int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;

    for (uint64_t off = 0; off < inbox->bytes; off += VERBS_BLOCK_BYTES) {
        int rc;

        if (t->inbox_block_count == VERBS_INBOX_BLOCKS_MAX)
            return shunt_error_set(err, -E2BIG, "verbs: an inbox of more than %u GiB; " LESS,
                                   VERBS_INBOX_BLOCKS_MAX);
        rc = register_block(t, inbox, off, access, &t->inbox_blocks[t->inbox_block_count++], err);
        if (rc)
            return rc;
    }
    return 0;
}

int verbs_register(struct shunt_transport *t, const struct shunt_transport_config *cfg,
                   struct shunt_error *err)
{
    int rc = check_limit(cfg, t->rail_count, err);

    if (!rc)
        rc = register_inbox(t, &cfg->inbox, err);
    for (uint32_t i = 0; i < cfg->memory_count && !rc; i++)
        for (uint64_t off = 0; off < cfg->memory[i].bytes && !rc; off += VERBS_BLOCK_BYTES)
            rc = register_block(t, &cfg->memory[i], off, 0, &t->memory[t->memory_count++], err);
    return rc;
}

uint32_t verbs_count_blocks(const struct shunt_transport_config *cfg)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < cfg->memory_count; i++)
        count += (cfg->memory[i].bytes + VERBS_BLOCK_BYTES - 1) / VERBS_BLOCK_BYTES;
    return (uint32_t)count;
}

static bool deregister_block(struct verbs_block *block, uint32_t rails)
{
    bool gone = true;

    for (uint32_t i = 0; i < rails; i++)
        gone &= !block->mrs[i] || ibv_dereg_mr(block->mrs[i]) == 0;
    return gone;
}

bool verbs_deregister(struct shunt_transport *t)
{
    bool gone = true;

    for (uint32_t i = 0; i < t->inbox_block_count; i++)
        gone &= deregister_block(&t->inbox_blocks[i], t->rail_count);
    for (uint32_t i = 0; i < t->memory_count; i++)
        gone &= deregister_block(&t->memory[i], t->rail_count);
    return gone;
}
