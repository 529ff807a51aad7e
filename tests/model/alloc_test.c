/* SPDX-License-Identifier: Apache-2.0
 *
 * Every allocation of the model layer fails once, in turn: what could not be done is -ENOMEM, and
 * (as the sanitizers see) nothing is lost or touched after. The linker hands the allocator's
 * functions to those below; what other libraries allocate for themselves is not counted.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/model/model.h"
#include "tests/model/gguf_writer.h"
#include "tests/model/tiny_model.h"

#define ALLOCATIONS_MAX 1000

static long until_failure = -1; /* allocations that still succeed; negative: all */

static bool fails_now(void)
{
    return until_failure >= 0 && until_failure-- == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
int __real_posix_memalign(void **p, size_t align, size_t size);
char *__real_strdup(const char *text);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
int __wrap_posix_memalign(void **p, size_t align, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    return fails_now() ? NULL : __real_realloc(p, size);
}

int __wrap_posix_memalign(void **p, size_t align, size_t size)
{
    return fails_now() ? ENOMEM : __real_posix_memalign(p, align, size);
}

char *__wrap_strdup(const char *text)
{
    return fails_now() ? NULL : __real_strdup(text);
}

Test(alloc, opening_a_model)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct gguf_writer w;
    char path[32];
    int fd, failed = 0;

    cr_assert(m);
    tiny_init(m);
    tiny_write(m, &w);
    fd = gguf_file(w.data, w.len, path);
    for (long n = 0; n < ALLOCATIONS_MAX; n++) {
        shunt_model *model = NULL;
        struct shunt_error err = {0};
        bool reached;
        int rc;

        until_failure = n;
        rc = shunt_model_open(&model, path, &err);
        reached = until_failure < 0;
        until_failure = -1;
        cr_assert(rc == 0 || rc == -ENOMEM, "allocation %ld: %d %s", n, rc, err.text);
        cr_assert(rc == 0 || strstr(err.text, "out of memory"), "allocation %ld: %s", n, err.text);
        shunt_model_close(model);
        failed += rc != 0;
        if (!reached)
            break;
    }
    /* Some may fail without harm: giving memory back, probing for O_DIRECT. */
    cr_expect(failed >= 25 && failed < ALLOCATIONS_MAX, "%d failures", failed);
    close(fd);
    gguf_free(&w);
    free(m);
}

Test(alloc, encoding_a_text)
{
    /* Marks out of order, a character of many, a piece larger than the first buffer. */
    static const char text[] =
        "hello <|end|>e\xcc\x81\xcc\x96 "
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    shunt_model *model;
    struct shunt_error err = {0};
    int64_t whole;
    int failed = 0;

    cr_assert_eq(shunt_model_open(&model, SHUNT_TEST_DEMO, &err), 0, "%s", err.text);
    whole = shunt_tokenize(model, text, strlen(text), SHUNT_TOKENIZE_SPECIAL, NULL, 0, &err);
    cr_assert_gt(whole, 0);
    for (long n = 0; n < ALLOCATIONS_MAX; n++) {
        bool reached;
        int64_t count;

        until_failure = n;
        count = shunt_tokenize(model, text, strlen(text), SHUNT_TOKENIZE_SPECIAL, NULL, 0, &err);
        reached = until_failure < 0;
        until_failure = -1;
        cr_assert(count == (reached ? -ENOMEM : whole), "allocation %ld: %d", n, (int)count);
        failed += reached;
        if (!reached)
            break;
    }
    cr_expect(failed >= 6, "%d failures", failed);
    shunt_model_close(model);
}
