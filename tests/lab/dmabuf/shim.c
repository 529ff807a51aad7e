/* SPDX-License-Identifier: Apache-2.0
 *
 * To be preloaded in a guest whose rdma_rxe knows DMA-BUFs (patch_rxe.py): the user-space half of
 * that driver does not, so this hands ibv_reg_dmabuf_mr to libibverbs' generic call, which asks the
 * kernel. That call is for drivers only and has their private version, given as PRIVATE_VERSION.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>

/* A driver's memory region begins with the public one; the rest is libibverbs' own, and no more
 * than this. */
struct private_mr {
    struct ibv_mr mr;
    unsigned char rest[128];
};

typedef int reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t iova, int fd,
                          int access, struct private_mr *mr);

struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t iova,
                                 int fd, int access)
{
    void *generic = dlvsym(RTLD_DEFAULT, "ibv_cmd_reg_dmabuf_mr", PRIVATE_VERSION);
    struct private_mr *mr = calloc(1, sizeof(*mr));
    int rc;

    if (!generic || !mr) {
        free(mr);
        errno = generic ? ENOMEM : ENOSYS;
        return NULL;
    }
    rc = (*(reg_dmabuf_mr **)&generic)(pd, offset, bytes, iova, fd, access, mr);
    if (rc) {
        free(mr);
        errno = rc;
        return NULL;
    }
    mr->mr.context = pd->context;
    mr->mr.pd = pd;
    mr->mr.addr = (void *)(uintptr_t)offset;
    mr->mr.length = bytes;
    return &mr->mr;
}
