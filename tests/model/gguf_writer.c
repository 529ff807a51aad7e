/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/model/gguf_writer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/random.h"

static void *check(void *p)
{
    if (!p) {
        perror("test support");
        exit(1);
    }
    return p;
}

/* ---- writing */

void gguf_put(struct gguf_writer *w, const void *bytes, size_t len)
{
    if (w->len + len > w->cap) {
        w->cap = 2 * (w->len + len);
        w->data = check(realloc(w->data, w->cap));
    }
    memcpy(w->data + w->len, bytes, len);
    w->len += len;
}

void gguf_put_u32(struct gguf_writer *w, uint32_t value)
{
    gguf_put(w, &value, sizeof(value));
}

void gguf_put_u64(struct gguf_writer *w, uint64_t value)
{
    gguf_put(w, &value, sizeof(value));
}

void gguf_put_string(struct gguf_writer *w, const char *text)
{
    gguf_put_u64(w, strlen(text));
    gguf_put(w, text, strlen(text));
}

void gguf_begin(struct gguf_writer *w)
{
    memset(w, 0, sizeof(*w));
    gguf_put(w, "GGUF", 4);
    gguf_put_u32(w, SHUNT_GGUF_VERSION);
    gguf_put_u64(w, 0);
    gguf_put_u64(w, 0);
}

void gguf_key(struct gguf_writer *w, const char *key, enum shunt_gguf_type type)
{
    gguf_put_string(w, key);
    gguf_put_u32(w, type);
    w->kv_count++;
}

void gguf_array(struct gguf_writer *w, const char *key, enum shunt_gguf_type element,
                uint64_t count)
{
    gguf_key(w, key, SHUNT_GGUF_ARRAY);
    gguf_put_u32(w, element);
    gguf_put_u64(w, count);
}

void gguf_u32(struct gguf_writer *w, const char *key, uint32_t value)
{
    gguf_key(w, key, SHUNT_GGUF_U32);
    gguf_put_u32(w, value);
}

void gguf_f32(struct gguf_writer *w, const char *key, float value)
{
    gguf_key(w, key, SHUNT_GGUF_F32);
    gguf_put(w, &value, sizeof(value));
}

void gguf_bool(struct gguf_writer *w, const char *key, bool value)
{
    unsigned char byte = value;

    gguf_key(w, key, SHUNT_GGUF_BOOL);
    gguf_put(w, &byte, 1);
}

void gguf_string(struct gguf_writer *w, const char *key, const char *value)
{
    gguf_key(w, key, SHUNT_GGUF_STRING);
    gguf_put_string(w, value);
}

void gguf_tensor(struct gguf_writer *w, const char *name, uint32_t type, uint32_t dim_count,
                 const uint64_t *dims, uint64_t off)
{
    gguf_put_string(w, name);
    gguf_put_u32(w, dim_count);
    gguf_put(w, dims, dim_count * sizeof(*dims));
    gguf_put_u32(w, type);
    gguf_put_u64(w, off);
    w->tensor_count++;
}

void gguf_end(struct gguf_writer *w, uint32_t alignment, size_t data_bytes)
{
    gguf_patch(w, 8, &w->tensor_count, 8);
    gguf_patch(w, 16, &w->kv_count, 8);
    while (w->len % alignment)
        gguf_put(w, "", 1);
    for (size_t i = 0; i < data_bytes; i++) {
        unsigned char byte = (unsigned char)(i * 7);

        gguf_put(w, &byte, 1);
    }
}

void gguf_patch(struct gguf_writer *w, size_t off, const void *bytes, size_t len)
{
    memcpy(w->data + off, bytes, len);
}

void gguf_free(struct gguf_writer *w)
{
    free(w->data);
    memset(w, 0, sizeof(*w));
}

/* ---- reading back */

static int read_memory(void *ctx, uint64_t off, size_t len, void *dst, struct shunt_error *err)
{
    const struct gguf_memory *m = ctx;

    if (off > m->len || len > m->len - off)
        return shunt_error_set(err, -EFAULT, "the reader asked for bytes past the end");
    memcpy(dst, m->data + off, len);
    return 0;
}

struct shunt_gguf_source gguf_source(struct gguf_memory *memory, const void *data, size_t len)
{
    *memory = (struct gguf_memory){.data = data, .len = len};
    return (struct shunt_gguf_source){
        .read = read_memory, .ctx = memory, .bytes = len, .path = "test.gguf"};
}

static int read_sparse(void *ctx, uint64_t off, size_t len, void *dst, struct shunt_error *err)
{
    const struct gguf_memory *m = ctx;

    (void)err;
    memset(dst, 0, len);
    if (off < m->len)
        memcpy(dst, m->data + off, m->len - off < len ? m->len - off : len);
    return 0;
}

struct shunt_gguf_source gguf_sparse_source(struct gguf_memory *memory, const void *data,
                                            size_t len, uint64_t bytes)
{
    struct shunt_gguf_source source = gguf_source(memory, data, len);

    source.read = read_sparse;
    source.bytes = bytes;
    return source;
}

int gguf_file(const void *data, size_t len, char path[32])
{
    int fd = memfd_create("shunt-test", MFD_CLOEXEC);

    if (fd < 0 || write(fd, data, len) != (ssize_t)len)
        check(NULL);
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return fd;
}

/* ---- mutations */

static const uint64_t extremes[] = {0,
                                    1,
                                    2,
                                    7,
                                    0x7f,
                                    0x80,
                                    0xff,
                                    0x7fff,
                                    0xffff,
                                    0x7fffffff,
                                    0x80000000,
                                    0xfffffff8,
                                    0xffffffff,
                                    1ull << 32,
                                    1ull << 40,
                                    1ull << 56,
                                    1ull << 60,
                                    1ull << 61,
                                    (1ull << 63) - 1,
                                    1ull << 63,
                                    UINT64_MAX - 31,
                                    UINT64_MAX};

static void overwrite(unsigned char *data, size_t header_len, uint64_t *state)
{
    uint64_t value = extremes[random_next(state) % (sizeof(extremes) / sizeof(extremes[0]))];
    size_t width = (size_t)1 << random_next(state) % 4;

    if (header_len >= width)
        memcpy(data + random_next(state) % (header_len - width + 1), &value, width);
}

void gguf_mutate(unsigned char *data, size_t *len, size_t cap, size_t header_len, uint64_t *state)
{
    uint32_t count = 1 + (uint32_t)(random_next(state) % 3);

    for (uint32_t i = 0; i < count; i++) {
        size_t at = random_next(state) % header_len;
        size_t n = 1 + random_next(state) % 16;

        switch (random_next(state) % 8) {
        case 0: /* a piece is missing */
            if (at + n < *len) {
                memmove(data + at, data + at + n, *len - at - n);
                *len -= n;
            }
            break;
        case 1: /* a piece is there twice */
            if (at + n < *len && *len + n <= cap) {
                memmove(data + at + n, data + at, *len - at);
                *len += n;
            }
            break;
        case 2:
        case 3:
        case 4:
            overwrite(data, header_len, state);
            break;
        default:
            data[at] ^= (unsigned char)(1u << random_next(state) % 8);
            break;
        }
        if (header_len > *len)
            header_len = *len;
    }
}
