/* SPDX-License-Identifier: Apache-2.0
 *
 * Reader of GGUF headers (version 3): metadata and tensor table. It trusts nothing: every count,
 * length, offset and product is checked against what the file can hold before it is used, and the
 * header as a whole is bounded. The header's bytes are kept in one buffer; strings and arrays point
 * into it (they are not NUL-terminated there, except names and string values, see below).
 *
 * Source of the format: the GGUF specification in the ggml project's documentation (docs/gguf.md).
 */
#ifndef SHUNT_MODEL_GGUF_H
#define SHUNT_MODEL_GGUF_H

#include "runtime/base/error.h"

/* A header larger than this is refused: the largest known (262144 tokens with scores) has 20 MB. */
#define SHUNT_GGUF_HEADER_MAX (256ull << 20)
#define SHUNT_GGUF_DIMS_MAX   4u

enum shunt_gguf_type {
    SHUNT_GGUF_U8,
    SHUNT_GGUF_I8,
    SHUNT_GGUF_U16,
    SHUNT_GGUF_I16,
    SHUNT_GGUF_U32,
    SHUNT_GGUF_I32,
    SHUNT_GGUF_F32,
    SHUNT_GGUF_BOOL,
    SHUNT_GGUF_STRING,
    SHUNT_GGUF_ARRAY,
    SHUNT_GGUF_U64,
    SHUNT_GGUF_I64,
    SHUNT_GGUF_F64,
    SHUNT_GGUF_TYPES
};

/* Where the header comes from: a file, or memory in tests. read copies [off, off + len), which lies
 * inside `bytes`. */
struct shunt_gguf_source {
    int (*read)(void *ctx, uint64_t off, size_t len, void *dst, struct shunt_error *err);
    void *ctx;
    uint64_t bytes;
    const char *path; /* for messages */
};

struct shunt_gguf_string {
    const char *data; /* into the header buffer, no NUL */
    size_t len;
};

struct shunt_gguf_kv {
    struct shunt_gguf_string key;
    enum shunt_gguf_type type;
    enum shunt_gguf_type element; /* of an ARRAY */
    uint64_t count;               /* elements of an ARRAY, else 1 */
    const unsigned char *data;    /* the value's bytes as stored; of an ARRAY its first element */
};

struct shunt_gguf_tensor {
    struct shunt_gguf_string name;
    uint32_t type; /* GGUF's number, see shunt_weight_from_gguf */
    uint32_t dim_count;
    uint64_t dims[SHUNT_GGUF_DIMS_MAX]; /* unused ones are 1 */
    uint64_t off;                       /* from the start of the file */
    uint64_t
        bytes; /* 0 for a type that shunt does not know; else off + bytes lies inside the file */
};

struct shunt_gguf {
    unsigned char *header; /* owned */
    uint64_t header_bytes; /* up to the end of the tensor table */
    uint64_t data_off;
    uint32_t alignment;
    uint32_t kv_count;
    uint32_t tensor_count;
    struct shunt_gguf_kv *kvs;         /* owned */
    struct shunt_gguf_tensor *tensors; /* owned */
};

/* Reads and checks a header. On failure nothing is left allocated.
 * Return: 0; -EBADMSG with path, offset and what is wrong there; -ENOTSUP for another version of
 * GGUF or a big-endian file; -ENOMEM; what read returned. */
int shunt_gguf_parse(struct shunt_gguf *gguf, const struct shunt_gguf_source *source,
                     struct shunt_error *err);
void shunt_gguf_fini(struct shunt_gguf *gguf);

/* NULL when absent. */
const struct shunt_gguf_kv *shunt_gguf_find(const struct shunt_gguf *gguf, const char *key);
const struct shunt_gguf_tensor *shunt_gguf_find_tensor(const struct shunt_gguf *gguf,
                                                       const char *name);

/* Any integer type, when the value fits. Return: 0, -ENOENT when absent, -EBADMSG for another type
 * or range. */
int shunt_gguf_get_u32(const struct shunt_gguf *gguf, const char *key, uint32_t *value);
int shunt_gguf_get_f32(const struct shunt_gguf *gguf, const char *key, float *value);
int shunt_gguf_get_bool(const struct shunt_gguf *gguf, const char *key, bool *value);
int shunt_gguf_get_string(const struct shunt_gguf *gguf, const char *key,
                          struct shunt_gguf_string *value);

/* Walks an array of strings: *cursor starts at kv->data; call at most kv->count times. Lengths were
 * checked by parse. */
struct shunt_gguf_string shunt_gguf_next_string(const unsigned char **cursor);

#endif
