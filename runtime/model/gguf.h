/* SPDX-License-Identifier: Apache-2.0
 *
 * Reader of GGUF headers (version 3): metadata and tensor table. It trusts nothing: every count,
 * length, offset and product is checked against what the file can hold before it is used, and the
 * header as a whole is bounded. The header's bytes are kept in one buffer; strings and arrays point
 * into it, so they carry a length and no NUL. Names (of keys and tensors) are checked to be unique,
 * not empty and free of control characters; string values may hold any bytes.
 *
 * Read-only after parse: any thread may look things up.
 *
 * Source of the format: the GGUF specification in the ggml project's documentation (docs/gguf.md).
 */
#ifndef SHUNT_MODEL_GGUF_H
#define SHUNT_MODEL_GGUF_H

#include "runtime/base/error.h"

#define SHUNT_GGUF_VERSION 3u

/* A header larger than this is refused: the largest known (262144 tokens with scores) has 20 MB. */
#define SHUNT_GGUF_HEADER_MAX  (256ull << 20)
#define SHUNT_GGUF_NAME_MAX    65535u /* bytes of a key or of a tensor's name */
#define SHUNT_GGUF_KVS_MAX     (1u << 16)
#define SHUNT_GGUF_TENSORS_MAX (1u << 20)
#define SHUNT_GGUF_DIMS_MAX    4u

/* The data of every tensor starts at a multiple of the file's alignment, a power of 2. */
#define SHUNT_GGUF_ALIGN_DEFAULT 32u
#define SHUNT_GGUF_ALIGN_MIN     8u
#define SHUNT_GGUF_ALIGN_MAX     (64u << 10)

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
    uint64_t off;                       /* from the start of the file, inside it */
    /* 0 for a type that shunt does not compute with; else off + bytes lies inside the file, and no
     * two tensors overlap. */
    uint64_t bytes;
};

/* Open addressing over the names of a table; a slot holds an index + 1, 0 is free. */
struct shunt_gguf_index {
    uint32_t *slots; /* owned */
    uint32_t mask;   /* a power of 2, minus 1 */
    uint64_t seed;
};

struct shunt_gguf {
    unsigned char *header; /* owned */
    uint64_t header_bytes; /* up to the end of the tensor table */
    uint64_t data_off;     /* header_bytes, aligned; past the end of a file without tensors */
    uint32_t alignment;
    uint32_t kv_count;
    uint32_t tensor_count;
    struct shunt_gguf_kv *kvs;         /* owned */
    struct shunt_gguf_tensor *tensors; /* owned */
    struct shunt_gguf_index kv_index;
    struct shunt_gguf_index tensor_index;
};

/* Reads and checks a header, in steps: at most 1 MiB more than the header is asked of `source`,
 * never past its end. On failure nothing is left allocated and `gguf` is zeroed. Return: 0;
 * -EBADMSG with path, offset or name, and what is wrong there; -ENOTSUP for another version of
 * GGUF, a big-endian file or nested arrays; -ENOMEM; what read returned. */
int shunt_gguf_parse(struct shunt_gguf *gguf, const struct shunt_gguf_source *source,
                     struct shunt_error *err);

/* Frees what parse allocated; accepts a zeroed struct. */
void shunt_gguf_fini(struct shunt_gguf *gguf);

/* NULL when absent. */
const struct shunt_gguf_kv *shunt_gguf_find(const struct shunt_gguf *gguf, const char *key);
const struct shunt_gguf_tensor *shunt_gguf_find_tensor(const struct shunt_gguf *gguf,
                                                       const char *name);

/* u32: any integer type, when the value fits. f32: F32, or F64 rounded to it.
 * Return: 0, -ENOENT when absent, -EBADMSG for another type or range. */
int shunt_gguf_get_u32(const struct shunt_gguf *gguf, const char *key, uint32_t *value);
int shunt_gguf_get_f32(const struct shunt_gguf *gguf, const char *key, float *value);
int shunt_gguf_get_bool(const struct shunt_gguf *gguf, const char *key, bool *value);
int shunt_gguf_get_string(const struct shunt_gguf *gguf, const char *key,
                          struct shunt_gguf_string *value);

/* Walks an array of strings: *cursor starts at kv->data; call at most kv->count times. Lengths were
 * checked by parse. */
struct shunt_gguf_string shunt_gguf_next_string(const unsigned char **cursor);

#endif
