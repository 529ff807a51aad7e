/* SPDX-License-Identifier: Apache-2.0
 *
 * The arena, over a kernel that a test can make refuse: the linker hands its calls to the functions
 * below, which also keep account of what is mapped.
 */
#include "runtime/base/arena.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/cpu.h"
#include "runtime/base/shared.h"
#include "tests/random.h"

#define HUGE (2u << 20)

static struct {
    uint32_t mapped, until_refused; /* 0: refuses nothing */
    uint64_t bytes;
    int error; /* what a refused call says */
    bool no_huge_pages, no_table;
    uint32_t advised;
} kernel;

int __real_munmap(void *at, size_t bytes);
int __real_madvise(void *at, size_t bytes, int advice);
void *__real_realloc(void *p, size_t bytes);
void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *at, size_t bytes, int prot, int flags, int fd, off_t off);
int __wrap_munmap(void *at, size_t bytes);
int __wrap_madvise(void *at, size_t bytes, int advice);
void *__wrap_realloc(void *p, size_t bytes);

void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off)
{
    long p;

    if (kernel.until_refused && --kernel.until_refused == 0) {
        errno = kernel.error;
        return MAP_FAILED;
    }
    p = syscall(SYS_mmap, at, bytes, prot, flags, fd, off);
    if (p == -1)
        return MAP_FAILED;
    kernel.mapped++;
    kernel.bytes += bytes;
    return (void *)p;
}

/* What the C library's header may make of it where file offsets have 64 bits. */
void *__wrap_mmap64(void *at, size_t bytes, int prot, int flags, int fd, off_t off)
{
    return __wrap_mmap(at, bytes, prot, flags, fd, off);
}

int __wrap_munmap(void *at, size_t bytes)
{
    int rc = __real_munmap(at, bytes);

    kernel.mapped -= rc == 0;
    kernel.bytes -= rc == 0 ? bytes : 0;
    return rc;
}

int __wrap_madvise(void *at, size_t bytes, int advice)
{
    kernel.advised += advice == MADV_HUGEPAGE;
    if (kernel.no_huge_pages) {
        errno = EINVAL;
        return -1;
    }
    return __real_madvise(at, bytes, advice);
}

void *__wrap_realloc(void *p, size_t bytes)
{
    return kernel.no_table ? NULL : __real_realloc(p, bytes);
}

static void expect_untouched(const struct shunt_arena *a, const struct shunt_arena *before)
{
    cr_expect_eq(a->block_count, before->block_count);
    cr_expect_eq(a->bytes, before->bytes);
    cr_expect_eq(kernel.mapped, a->block_count);
    cr_expect_eq(kernel.bytes, a->bytes);
}

static void expect_nothing_left(struct shunt_arena *a)
{
    shunt_arena_fini(a);
    cr_expect(a->blocks == NULL && a->block_count == 0 && a->bytes == 0);
    cr_expect_eq(kernel.mapped, 0);
    cr_expect_eq(kernel.bytes, 0);
    shunt_arena_fini(a); /* nothing is left to give back */
    cr_expect_eq(kernel.mapped, 0);
}

/* Pieces of every odd size: each on pages of its own, of zeros, and all of it ours. */
Test(arena, gives_pages_of_zeros)
{
    static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 100000, HUGE - 1, HUGE, HUGE + 1};
    const uint32_t count = sizeof(sizes) / sizeof(sizes[0]);
    unsigned char *pieces[sizeof(sizes) / sizeof(sizes[0])];
    struct shunt_arena a = {0};
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < count; i++) {
        struct shunt_error err;
        void *p;

        cr_assert_eq(shunt_arena_alloc(&a, sizes[i], "a piece", &p, &err), 0, "%s", err.text);
        pieces[i] = p;
        cr_expect_eq((uintptr_t)p % SHUNT_ARENA_PAGE, 0);
        cr_expect_eq(a.block_count, i + 1);
        cr_expect_eq(a.blocks[i].base, p);
        cr_expect_eq(a.blocks[i].bytes % SHUNT_ARENA_PAGE, 0);
        cr_expect(a.blocks[i].bytes >= sizes[i] && a.blocks[i].bytes < sizes[i] + 4097);
        bytes += a.blocks[i].bytes;
        for (size_t b = 0; b < a.blocks[i].bytes; b++)
            cr_assert_eq(pieces[i][b], 0);
        memset(p, (int)i + 1, a.blocks[i].bytes);
    }
    cr_expect_eq(a.bytes, bytes);
    for (uint32_t i = 0; i < count; i++) /* none lies in another */
        for (size_t b = 0; b < a.blocks[i].bytes; b++)
            cr_assert_eq(pieces[i][b], i + 1);
    expect_nothing_left(&a);
}

/* Slots of any size: as many to a block as fit, none across two, each at a multiple of the stride
 * from its block's page. Nothing is touched, so the memory is not taken. */
Test(arena, cuts_blocks_into_pieces)
{
    static const struct {
        size_t stride;
        uint32_t count, blocks;
    } cases[] = {
        {1, 1, 1},
        {64, 1000, 1},
        {4096, 0, 0},
        {SHUNT_ARENA_BLOCK_BYTES, 3, 3},
        {SHUNT_ARENA_BLOCK_BYTES / 2, 3, 2},
        {SHUNT_ARENA_BLOCK_BYTES / 2 + 512, 3, 3},
        {SHUNT_ARENA_BLOCK_BYTES / 4, 4, 1},
        {100u << 20, 31, 4},
        {(100u << 20) + 512, 30, 3},
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned char *out[1000];
        struct shunt_arena a = {0};
        uint32_t block = 0;

        cr_assert_eq(
            shunt_arena_alloc_many(&a, cases[i].stride, cases[i].count, "slots", out, NULL), 0);
        cr_assert_eq(a.block_count, cases[i].blocks, "case %u", i);
        for (uint32_t n = 0; n < cases[i].count; n++) {
            const unsigned char *end = out[n] + cases[i].stride;

            if (n > 0 && out[n] != out[n - 1] + cases[i].stride)
                block++;
            cr_assert(out[n] >= a.blocks[block].base &&
                          end <= a.blocks[block].base + a.blocks[block].bytes,
                      "case %u piece %u lies across blocks", i, n);
            cr_assert_eq((uintptr_t)(out[n] - a.blocks[block].base) % cases[i].stride, 0);
        }
        for (uint32_t b = 0; b < a.block_count; b++) {
            cr_expect_leq(a.blocks[b].bytes, SHUNT_ARENA_BLOCK_BYTES);
            cr_expect_eq((uintptr_t)a.blocks[b].base % SHUNT_ARENA_PAGE, 0);
        }
        expect_nothing_left(&a);
    }
}

Test(arena, takes_one_weight_larger_than_a_block)
{
    struct shunt_arena a = {0};
    void *p;

    cr_assert_eq(shunt_arena_alloc(&a, SHUNT_ARENA_BLOCK_BYTES + 1, "embeddings", &p, NULL), 0);
    cr_expect_eq(a.block_count, 1);
    cr_expect_eq(a.blocks[0].bytes, SHUNT_ARENA_BLOCK_BYTES + SHUNT_ARENA_PAGE);
    ((unsigned char *)p)[SHUNT_ARENA_BLOCK_BYTES] = 1;
    expect_nothing_left(&a);
}

static void expect_refusal(int rc, int want, const struct shunt_error *err, const char *what)
{
    cr_expect_eq(rc, want, "%d: %s", rc, err->text);
    cr_expect_eq(err->code, want);
    cr_expect(strstr(err->text, what), "%s", err->text);
}

/* What cannot be had is said, by name, and changes nothing. */
Test(arena, refuses_and_stays_as_it_was)
{
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 4094, SIZE_MAX - 4095, SIZE_MAX / 2,
                                   1ull << 56};
    unsigned char *out[3] = {(unsigned char *)&kernel};
    struct shunt_arena a = {0}, before;
    struct shunt_error err;
    void *first, *p = &kernel;

    cr_assert_eq(shunt_arena_alloc(&a, 100, "the first", &first, NULL), 0);
    memset(first, 7, 100);
    before = a;
    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        int rc = shunt_arena_alloc(&a, sizes[i], "the KV cache", &p, &err);

        expect_refusal(rc, -ENOMEM, &err, "the KV cache");
        expect_untouched(&a, &before);
    }
    for (uint32_t i = 0; i < 2; i++) {
        kernel.until_refused = 1;
        kernel.error = i ? EAGAIN : ENOMEM; /* a process that locks all of its memory gets EAGAIN */
        expect_refusal(shunt_arena_alloc(&a, 8192, "the KV cache", &p, &err), -ENOMEM, &err,
                       "the KV cache");
        expect_untouched(&a, &before);
    }
    kernel.no_table = true;
    expect_refusal(shunt_arena_alloc(&a, 8192, "the KV cache", &p, &err), -ENOMEM, &err, "table");
    kernel.no_table = false;
    expect_untouched(&a, &before);
    expect_refusal(shunt_arena_alloc_many(&a, SHUNT_ARENA_BLOCK_BYTES + 1, 1, "slots", out, &err),
                   -EINVAL, &err, "slots");
    expect_untouched(&a, &before);
    cr_expect(p == &kernel && out[0] == (unsigned char *)&kernel, "outputs only on success");
    for (uint32_t b = 0; b < 100; b++)
        cr_assert_eq(((unsigned char *)first)[b], 7);
    cr_assert_eq(shunt_arena_alloc(&a, 8192, "another try", &p, &err), 0);
    expect_nothing_left(&a);
}

/* The second of three blocks is refused: what was had before goes with the arena. */
Test(arena, gives_back_what_it_has_after_a_refusal)
{
    unsigned char *out[3];
    struct shunt_arena a = {0};
    struct shunt_error err;

    kernel.until_refused = 2;
    kernel.error = ENOMEM;
    expect_refusal(shunt_arena_alloc_many(&a, SHUNT_ARENA_BLOCK_BYTES, 3, "slots", out, &err),
                   -ENOMEM, &err, "slots");
    cr_expect_eq(kernel.mapped, a.block_count);
    cr_expect_eq(kernel.bytes, a.bytes);
    expect_nothing_left(&a);
}

Test(arena, has_a_limit_of_blocks)
{
    struct shunt_arena a = {0}, before;
    struct shunt_error err;
    void *p;

    for (uint32_t i = 0; i < SHUNT_ARENA_BLOCKS_MAX; i++)
        cr_assert_eq(shunt_arena_alloc(&a, 1, "a piece", &p, &err), 0, "%u: %s", i, err.text);
    before = a;
    expect_refusal(shunt_arena_alloc(&a, 1, "one too many", &p, &err), -ENOMEM, &err,
                   "one too many");
    expect_untouched(&a, &before);
    expect_nothing_left(&a);
}

/* ---- huge pages */

/* Bytes of this process that become resident when `a` byte of the block is touched. */
static uint64_t taken_by_a_touch(unsigned char *base)
{
    uint64_t before = shunt_memory_resident();

    base[0] = 1;
    return shunt_memory_resident() - before;
}

/* They are asked for where a block holds whole ones; a small node takes what it asked for. */
Test(arena, asks_for_huge_pages_where_they_fit)
{
    static const size_t sizes[] = {4096, HUGE - 4096, HUGE + 4096, 3 * HUGE + 8192};
    struct shunt_arena a = {0};
    void *p;

    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        cr_assert_eq(shunt_arena_alloc(&a, sizes[i], "weights", &p, NULL), 0);
    cr_expect_eq(kernel.advised, 0);
    cr_assert_eq(shunt_arena_alloc(&a, HUGE, "weights", &p, NULL), 0);
    cr_assert_eq(shunt_arena_alloc(&a, 5 * HUGE, "weights", &p, NULL), 0);
    cr_expect_eq(kernel.advised, 2);
    expect_nothing_left(&a);
}

/* Where the kernel has none, ordinary ones do. */
Test(arena, does_without_huge_pages)
{
    unsigned char *out[40];
    struct shunt_arena a = {0};
    struct shunt_error err;
    uint64_t random = 3;
    void *p;

    kernel.no_huge_pages = true;
    cr_assert_eq(shunt_arena_alloc(&a, 4 * HUGE, "weights", &p, &err), 0, "%s", err.text);
    cr_assert_eq(shunt_arena_alloc_many(&a, HUGE / 4, 40, "slots", out, &err), 0, "%s", err.text);
    cr_expect_eq(kernel.advised, 2);
    random_fill(&random, p, 4 * HUGE);
    for (uint32_t i = 0; i < 40; i++)
        memset(out[i], (int)i, HUGE / 4);
    for (uint32_t i = 0; i < 40; i++)
        for (uint32_t b = 0; b < HUGE / 4; b++)
            cr_assert_eq(out[i][b], i);
    random = 3;
    for (uint32_t b = 0; b < 4 * HUGE; b++)
        cr_assert_eq(((unsigned char *)p)[b], (unsigned char)random_next(&random));
    expect_nothing_left(&a);
}

/* Mapped is not taken: a footprint holds because only what is written becomes resident. */
Test(arena, takes_no_memory_before_it_is_touched)
{
    uint64_t before = shunt_memory_resident();
    struct shunt_arena a = {0};
    void *p;

    cr_assert_eq(
        shunt_arena_alloc(&a, SHUNT_ARENA_BLOCK_BYTES + SHUNT_ARENA_PAGE, "weights", &p, NULL), 0);
    cr_expect_leq(taken_by_a_touch(p), HUGE + (1u << 20)); /* huge where all memory is */
    cr_expect_lt(shunt_memory_resident() - before, 4u << 20);
    memset(p, 1, 64u << 20);
    cr_expect_gt(shunt_memory_resident() - before, 60u << 20);
    expect_nothing_left(&a);
    cr_expect_lt(shunt_memory_resident() - before, 8u << 20);
}

/* A block that others can map: what they write is there, and it goes with the arena. */
Test(arena, shares_a_block)
{
    struct shunt_arena arena = {0};
    unsigned char *private, *shared, *others;
    int fd = -1;

    cr_assert_eq(shunt_arena_alloc(&arena, 100, "a", (void **)&private, NULL), 0);
    cr_assert_eq(shunt_arena_alloc_shared(&arena, 5000, "b", (void **)&shared, &fd, NULL), 0);
    cr_expect(arena.block_count == 2 && arena.bytes == 3 * SHUNT_ARENA_PAGE);
    cr_expect(arena.blocks[0].fd == -1 && arena.blocks[1].fd == fd && fd >= 0);
    cr_expect_null(shunt_shared_flaw(fd, 8192));
    cr_expect_not_null(shunt_shared_flaw(fd, 8193));
    others = mmap(NULL, 5000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(others, MAP_FAILED);
    others[4999] = 7;
    cr_expect(shared[4999] == 7 && shared[0] == 0);
    munmap(others, 5000);
    shunt_arena_fini(&arena);
    cr_expect_not_null(shunt_shared_flaw(fd, 0));
    cr_expect_eq(kernel.mapped, 0);
}

/* Whatever is refused, nothing stays open or mapped. */
Test(arena, shares_nothing_when_refused)
{
    struct shunt_arena arena = {0};
    struct shunt_error err = {0};
    void *out = NULL;
    int fd = -1, next = dup(0);

    close(next);
    kernel.until_refused = 1;
    kernel.error = ENOMEM;
    cr_expect_eq(shunt_arena_alloc_shared(&arena, 100, "b", &out, &fd, &err), -ENOMEM);
    cr_expect(strstr(err.text, "for b"), "%s", err.text);
    cr_expect_eq(shunt_arena_alloc_shared(&arena, SIZE_MAX, "b", &out, &fd, NULL), -ENOMEM);
    cr_expect_eq(shunt_arena_alloc_shared(&arena, 1ull << 62, "b", &out, &fd, NULL), -ENOMEM);
    cr_expect(out == NULL && fd == -1 && arena.block_count == 0 && kernel.mapped == 0);
    cr_expect_eq(dup(0), next); /* the lowest free one still is */
    shunt_arena_fini(&arena);
}
