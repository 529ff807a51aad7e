/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes GGUF headers in memory, right ones and, byte by byte, wrong ones.
 */
#ifndef SHUNT_TESTS_GGUF_WRITER_H
#define SHUNT_TESTS_GGUF_WRITER_H

#include "runtime/model/gguf.h"

struct gguf_writer {
    unsigned char *data; /* owned */
    size_t len, cap;
    uint64_t kv_count, tensor_count; /* written by end */
};

/* Magic, version, and room for the counts. */
void gguf_begin(struct gguf_writer *w);

void gguf_put(struct gguf_writer *w, const void *bytes, size_t len);
void gguf_put_u32(struct gguf_writer *w, uint32_t value);
void gguf_put_u64(struct gguf_writer *w, uint64_t value);
void gguf_put_string(struct gguf_writer *w, const char *text);

/* A key and the type of its value, which must follow. */
void gguf_key(struct gguf_writer *w, const char *key, enum shunt_gguf_type type);
void gguf_array(struct gguf_writer *w, const char *key, enum shunt_gguf_type element,
                uint64_t count);

void gguf_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_f32(struct gguf_writer *w, const char *key, float value);
void gguf_bool(struct gguf_writer *w, const char *key, bool value);
void gguf_string(struct gguf_writer *w, const char *key, const char *value);

/* `off` is relative to the data section. */
void gguf_tensor(struct gguf_writer *w, const char *name, uint32_t type, uint32_t dim_count,
                 const uint64_t *dims, uint64_t off);

/* Writes the counts, pads to `alignment` and appends `data_bytes` of data. */
void gguf_end(struct gguf_writer *w, uint32_t alignment, size_t data_bytes);

/* Fields inside what has been written. */
void gguf_patch(struct gguf_writer *w, size_t off, const void *bytes, size_t len);

void gguf_free(struct gguf_writer *w);

/* A source over memory. */
struct gguf_memory {
    const unsigned char *data;
    size_t len;
};
struct shunt_gguf_source gguf_source(struct gguf_memory *memory, const void *data, size_t len);

/* A source of `bytes` bytes of which the first `len` are in memory; the rest reads as zeros. */
struct shunt_gguf_source gguf_sparse_source(struct gguf_memory *memory, const void *data,
                                            size_t len, uint64_t bytes);

/* An anonymous file with these bytes; `path` opens it. Return: its descriptor. */
int gguf_file(const void *data, size_t len, char path[32]);

/* Changes the first `header_len` bytes of *len: flips bits, writes extreme numbers, removes or
 * repeats bytes. Only the last two change *len, within `cap`. */
void gguf_mutate(unsigned char *data, size_t *len, size_t cap, size_t header_len, uint64_t *state);

#endif
