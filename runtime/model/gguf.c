/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/gguf.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "kernels/weight_type.h"
#include "runtime/base/bytes.h"
#include "runtime/base/carve.h"
#include "runtime/base/seed.h"

/* What is read at a time: larger than most headers without a tokenizer, small beside one with. */
#define READ_STEP (1u << 20)

/* Magic, version, number of tensors, number of keys. */
#define PREAMBLE_BYTES 24u

/* The smallest records there can be: a key of one byte with a value of one; a tensor with a name of
 * one byte and one dimension. They bound the counts by what is left of the file. */
#define KV_BYTES_MIN     14u
#define TENSOR_BYTES_MIN 33u

/* Far more weights than any file holds, and few enough that their bytes cannot overflow. */
#define ELEMENTS_MAX (1ull << 60)

/* The stored size of each value type; 0 for those with a size of their own. */
static const unsigned char value_bytes[SHUNT_GGUF_TYPES] = {
    [SHUNT_GGUF_U8] = 1,  [SHUNT_GGUF_I8] = 1,  [SHUNT_GGUF_U16] = 2, [SHUNT_GGUF_I16] = 2,
    [SHUNT_GGUF_U32] = 4, [SHUNT_GGUF_I32] = 4, [SHUNT_GGUF_F32] = 4, [SHUNT_GGUF_BOOL] = 1,
    [SHUNT_GGUF_U64] = 8, [SHUNT_GGUF_I64] = 8, [SHUNT_GGUF_F64] = 8,
};

struct reader {
    const struct shunt_gguf_source *source;
    unsigned char *data; /* bytes [0, got) of the file */
    size_t got;          /* <= source->bytes, <= SHUNT_GGUF_HEADER_MAX */
    size_t pos;          /* <= got */
    char subject[96];    /* what is being read, for messages */
    size_t *kv_places;   /* where each record begins: `data` moves while it grows */
    size_t *tensor_places;
    struct shunt_error *err;
};

/* ---- reading */

static int fail(const struct reader *r, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(const struct reader *r, int code, const char *format, ...)
{
    char detail[320];
    va_list args;

    va_start(args, format);
    vsnprintf(detail, sizeof(detail), format, args);
    va_end(args);
    return shunt_error_set(r->err, code, "%s: %s at byte %zu: %s", r->source->path, r->subject,
                           r->pos, detail);
}

static void set_subject(struct reader *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void set_subject(struct reader *r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(r->subject, sizeof(r->subject), format, args);
    va_end(args);
}

/* Reads on until `n` bytes lie beyond pos. */
static int grow(struct reader *r, uint64_t n)
{
    uint64_t left = r->source->bytes - r->pos;
    unsigned char *data;
    uint64_t end;
    int rc;

    if (n > left)
        return fail(r, -EBADMSG,
                    "%" PRIu64 " bytes should follow, but the file ends after %" PRIu64
                    ": it is cut or damaged; download it again",
                    n, left);
    if (n > SHUNT_GGUF_HEADER_MAX - r->pos)
        return fail(r, -EBADMSG, "the header is larger than %llu MiB, which no known model needs",
                    SHUNT_GGUF_HEADER_MAX >> 20);
    end = r->pos + n > r->got + READ_STEP ? r->pos + n : r->got + READ_STEP;
    if (end > SHUNT_GGUF_HEADER_MAX)
        end = SHUNT_GGUF_HEADER_MAX;
    if (end > r->source->bytes)
        end = r->source->bytes;
    data = realloc(r->data, (size_t)end);
    if (!data)
        return fail(r, -ENOMEM, "out of memory for %" PRIu64 " bytes of header", end);
    r->data = data;
    rc = r->source->read(r->source->ctx, r->got, (size_t)end - r->got, r->data + r->got, r->err);
    if (rc)
        return rc;
    r->got = (size_t)end;
    return 0;
}

/* Makes [pos, pos + n) readable. */
static int need(struct reader *r, uint64_t n)
{
    return n <= r->got - r->pos ? 0 : grow(r, n);
}

static uint32_t take_u32(struct reader *r)
{
    r->pos += 4;
    return shunt_load_u32(r->data + r->pos - 4);
}

static uint64_t take_u64(struct reader *r)
{
    r->pos += 8;
    return shunt_load_u64(r->data + r->pos - 8);
}

/* How much of a name goes into a message, so that the rest of the sentence has room. */
static int shown(size_t len)
{
    return len < 80 ? (int)len : 80;
}

static bool is_control(unsigned char c)
{
    return c < 0x20 || c == 0x7f;
}

/* A name is printed, compared and handed out as a C string, so it must be able to be one. */
static int read_name(struct reader *r, size_t *name_len)
{
    uint64_t len;
    int rc = need(r, 8);

    if (rc)
        return rc;
    len = take_u64(r);
    if (len < 1 || len > SHUNT_GGUF_NAME_MAX)
        return fail(r, -EBADMSG,
                    "its name has %" PRIu64 " bytes, not 1 to %u: the file is damaged; download it "
                    "again",
                    len, SHUNT_GGUF_NAME_MAX);
    rc = need(r, len);
    if (rc)
        return rc;
    for (size_t i = 0; i < len; i++)
        if (is_control(r->data[r->pos + i]))
            return fail(r, -EBADMSG, "its name contains control character 0x%02x",
                        r->data[r->pos + i]);
    r->pos += (size_t)len;
    *name_len = (size_t)len;
    return 0;
}

/* ---- preamble */

/* Says what the file is when it is something else that people hand to a GGUF reader. */
static int refuse_magic(struct reader *r)
{
    static const char lfs[] = "version https://git-lfs";

    if (r->got >= sizeof(lfs) - 1 && !memcmp(r->data, lfs, sizeof(lfs) - 1))
        return fail(r, -EBADMSG,
                    "this is a Git LFS pointer, not the model; fetch it with: git lfs pull");
    return fail(r, -EBADMSG,
                "it begins with %02x %02x %02x %02x, not with \"GGUF\": this is no GGUF file",
                r->data[0], r->data[1], r->data[2], r->data[3]);
}

static int check_count(struct reader *r, uint64_t count, uint64_t bytes_min, uint64_t max,
                       const char *what)
{
    if (count > max || count > (r->source->bytes - r->pos) / bytes_min)
        return fail(r, -EBADMSG,
                    "it announces %" PRIu64 " %s, more than %s: it is cut or damaged; download it "
                    "again",
                    count, what, count > max ? "any model has" : "the file can hold");
    return 0;
}

static int read_preamble(struct reader *r, struct shunt_gguf *gguf)
{
    uint64_t tensor_count, kv_count;
    uint32_t version;
    int rc;

    set_subject(r, "the magic");
    rc = need(r, 4);
    if (rc)
        return rc;
    if (memcmp(r->data, "GGUF", 4))
        return refuse_magic(r);
    r->pos = 4;
    set_subject(r, "the preamble");
    rc = need(r, PREAMBLE_BYTES - 4);
    if (rc)
        return rc;
    version = shunt_load_u32(r->data + r->pos);
    /* The magic is bytes and looks the same in both orders; the version is the first number. */
    if (version && !(version & 0xffff))
        return fail(r, -ENOTSUP,
                    "the file is big-endian; convert it to little-endian with gguf-convert-endian");
    if (version != SHUNT_GGUF_VERSION)
        return fail(r, -ENOTSUP, "GGUF version %" PRIu32 "; this version reads %u: %s", version,
                    SHUNT_GGUF_VERSION,
                    version < SHUNT_GGUF_VERSION ? "convert the model again with a current tool"
                                                 : "a newer shunt may read it");
    r->pos += 4;
    tensor_count = take_u64(r);
    kv_count = take_u64(r);
    rc = check_count(r, kv_count, KV_BYTES_MIN, SHUNT_GGUF_KVS_MAX, "keys");
    if (rc)
        return rc;
    rc = check_count(r, tensor_count, TENSOR_BYTES_MIN, SHUNT_GGUF_TENSORS_MAX, "tensors");
    if (rc)
        return rc;
    gguf->kv_count = (uint32_t)kv_count;
    gguf->tensor_count = (uint32_t)tensor_count;
    return 0;
}

/* ---- records */

static int skip_strings(struct reader *r, uint64_t count)
{
    if (count > (r->source->bytes - r->pos) / 8)
        return fail(r, -EBADMSG,
                    "%" PRIu64 " strings do not fit in what is left of the file: it is cut or "
                    "damaged; download it again",
                    count);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t len;
        int rc = need(r, 8);

        if (rc)
            return rc;
        len = take_u64(r);
        rc = need(r, len);
        if (rc)
            return rc;
        r->pos += (size_t)len;
    }
    return 0;
}

static int skip_values(struct reader *r, enum shunt_gguf_type type, uint64_t count)
{
    uint64_t bytes;
    int rc;

    if (type == SHUNT_GGUF_STRING)
        return skip_strings(r, count);
    if (count > (r->source->bytes - r->pos) / value_bytes[type])
        return fail(r, -EBADMSG,
                    "%" PRIu64 " values of %u bytes do not fit in what is left of the file: it is "
                    "cut or damaged; download it again",
                    count, value_bytes[type]);
    bytes = count * value_bytes[type];
    rc = need(r, bytes);
    if (rc)
        return rc;
    for (uint64_t i = 0; type == SHUNT_GGUF_BOOL && i < count; i++)
        if (r->data[r->pos + i] > 1)
            return fail(r, -EBADMSG, "a boolean has the value %u", r->data[r->pos + i]);
    r->pos += (size_t)bytes;
    return 0;
}

static int read_value_type(struct reader *r, enum shunt_gguf_type *type)
{
    uint32_t number;
    int rc = need(r, 4);

    if (rc)
        return rc;
    number = take_u32(r);
    if (number >= SHUNT_GGUF_TYPES)
        return fail(r, -EBADMSG,
                    "value type %" PRIu32 " is unknown to GGUF version %u: the file is damaged; "
                    "download it again",
                    number, SHUNT_GGUF_VERSION);
    *type = (enum shunt_gguf_type)number;
    return 0;
}

static int read_kv(struct reader *r, struct shunt_gguf_kv *kv)
{
    size_t begin = r->pos;
    int rc = read_name(r, &kv->key.len);

    if (rc)
        return rc;
    set_subject(r, "key %.*s", shown(kv->key.len), (const char *)r->data + begin + 8);
    rc = read_value_type(r, &kv->type);
    if (rc)
        return rc;
    kv->element = kv->type;
    kv->count = 1;
    if (kv->type == SHUNT_GGUF_ARRAY) {
        rc = read_value_type(r, &kv->element);
        if (rc)
            return rc;
        if (kv->element == SHUNT_GGUF_ARRAY)
            return fail(r, -ENOTSUP, "an array of arrays, which no known model uses");
        rc = need(r, 8);
        if (rc)
            return rc;
        kv->count = take_u64(r);
    }
    return skip_values(r, kv->element, kv->count);
}

static int read_dims(struct reader *r, struct shunt_gguf_tensor *tensor)
{
    uint64_t elements = 1;

    if (tensor->dim_count < 1 || tensor->dim_count > SHUNT_GGUF_DIMS_MAX)
        return fail(r, -EBADMSG,
                    "it has %" PRIu32 " dimensions, not 1 to %u: the file is damaged; download it "
                    "again",
                    tensor->dim_count, SHUNT_GGUF_DIMS_MAX);
    for (uint32_t i = 0; i < SHUNT_GGUF_DIMS_MAX; i++)
        tensor->dims[i] = 1;
    for (uint32_t i = 0; i < tensor->dim_count; i++) {
        int rc = need(r, 8);

        if (rc)
            return rc;
        tensor->dims[i] = take_u64(r);
        if (tensor->dims[i] == 0)
            return fail(r, -EBADMSG, "dimension %" PRIu32 " is 0", i);
        if (tensor->dims[i] > ELEMENTS_MAX / elements)
            return fail(r, -EBADMSG,
                        "dimension %" PRIu32 " is %" PRIu64 ": more weights than any file holds", i,
                        tensor->dims[i]);
        elements *= tensor->dims[i];
    }
    return 0;
}

/* `off` stays relative to the data section until the section's start is known. */
static int read_tensor(struct reader *r, struct shunt_gguf_tensor *tensor)
{
    size_t begin = r->pos;
    int rc = read_name(r, &tensor->name.len);

    if (rc)
        return rc;
    set_subject(r, "tensor %.*s", shown(tensor->name.len), (const char *)r->data + begin + 8);
    rc = need(r, 4);
    if (rc)
        return rc;
    tensor->dim_count = take_u32(r);
    rc = read_dims(r, tensor);
    if (rc)
        return rc;
    rc = need(r, 4 + 8);
    if (rc)
        return rc;
    tensor->type = take_u32(r);
    tensor->off = take_u64(r);
    return 0;
}

static int read_tables(struct reader *r, struct shunt_gguf *gguf)
{
    int rc = read_preamble(r, gguf);

    if (rc)
        return rc;
    /* + 1: a table may be empty, and calloc(0) may answer NULL. */
    gguf->kvs = calloc(gguf->kv_count + 1u, sizeof(*gguf->kvs));
    gguf->tensors = calloc(gguf->tensor_count + 1u, sizeof(*gguf->tensors));
    r->kv_places = calloc(gguf->kv_count + 1u, sizeof(*r->kv_places));
    r->tensor_places = calloc(gguf->tensor_count + 1u, sizeof(*r->tensor_places));
    if (!gguf->kvs || !gguf->tensors || !r->kv_places || !r->tensor_places)
        return fail(r, -ENOMEM, "out of memory for %" PRIu32 " keys and %" PRIu32 " tensors",
                    gguf->kv_count, gguf->tensor_count);
    for (uint32_t i = 0; i < gguf->kv_count; i++) {
        r->kv_places[i] = r->pos;
        set_subject(r, "key %" PRIu32 " of %" PRIu32, i + 1, gguf->kv_count);
        rc = read_kv(r, &gguf->kvs[i]);
        if (rc)
            return rc;
    }
    for (uint32_t i = 0; i < gguf->tensor_count; i++) {
        r->tensor_places[i] = r->pos;
        set_subject(r, "tensor %" PRIu32 " of %" PRIu32, i + 1, gguf->tensor_count);
        rc = read_tensor(r, &gguf->tensors[i]);
        if (rc)
            return rc;
    }
    return 0;
}

/* The header is complete and stays where it is: the tables may point into it. */
static void adopt_header(struct reader *r, struct shunt_gguf *gguf)
{
    unsigned char *trimmed = realloc(r->data, r->pos);

    gguf->header = trimmed ? trimmed : r->data;
    gguf->header_bytes = r->pos;
    r->data = NULL;
    for (uint32_t i = 0; i < gguf->kv_count; i++) {
        struct shunt_gguf_kv *kv = &gguf->kvs[i];
        const unsigned char *at = gguf->header + r->kv_places[i];

        kv->key = shunt_gguf_next_string(&at);
        kv->data = at + (kv->type == SHUNT_GGUF_ARRAY ? 4 + 4 + 8 : 4);
    }
    for (uint32_t i = 0; i < gguf->tensor_count; i++) {
        const unsigned char *at = gguf->header + r->tensor_places[i];

        gguf->tensors[i].name = shunt_gguf_next_string(&at);
    }
}

/* ---- names */

/* Both tables begin their entries with the name. */
static const struct shunt_gguf_string *name_at(const void *table, size_t stride, uint32_t i)
{
    return (const struct shunt_gguf_string *)((const char *)table + i * stride);
}

static bool equal(const struct shunt_gguf_string *a, const char *data, size_t len)
{
    return a->len == len && !memcmp(a->data, data, len);
}

/* The slot that holds the name, or the free one where it belongs. */
static uint32_t *find_slot(const struct shunt_gguf_index *index, const void *table, size_t stride,
                           const char *data, size_t len)
{
    uint32_t at = (uint32_t)XXH3_64bits_withSeed(data, len, index->seed) & index->mask;

    while (index->slots[at] && !equal(name_at(table, stride, index->slots[at] - 1), data, len))
        at = (at + 1) & index->mask;
    return &index->slots[at];
}

/* Refuses a name that comes twice. `what` is "key" or "tensor". */
static int build_index(struct shunt_gguf_index *index, const void *table, size_t stride,
                       uint32_t count, const char *what, const char *path, struct shunt_error *err)
{
    uint32_t slot_count = 4;

    while (slot_count < 2 * count)
        slot_count *= 2;
    index->slots = calloc(slot_count, sizeof(*index->slots));
    if (!index->slots)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for the index of %" PRIu32 " %ss",
                               path, count, what);
    index->mask = slot_count - 1;
    index->seed = shunt_hash_seed();
    for (uint32_t i = 0; i < count; i++) {
        const struct shunt_gguf_string *name = name_at(table, stride, i);
        uint32_t *slot = find_slot(index, table, stride, name->data, name->len);

        if (*slot)
            return shunt_error_set(err, -EBADMSG,
                                   "%s: %s %.*s is there twice: the file is damaged; download it "
                                   "again",
                                   path, what, shown(name->len), name->data);
        *slot = i + 1;
    }
    return 0;
}

/* ---- tensors */

static int read_alignment(struct shunt_gguf *gguf, const char *path, struct shunt_error *err)
{
    uint32_t align = SHUNT_GGUF_ALIGN_DEFAULT;
    int rc = shunt_gguf_get_u32(gguf, "general.alignment", &align);

    if (rc == -EBADMSG)
        return shunt_error_set(err, rc, "%s: key general.alignment is no 32-bit integer", path);
    if (align < SHUNT_GGUF_ALIGN_MIN || align > SHUNT_GGUF_ALIGN_MAX || (align & (align - 1)))
        return shunt_error_set(err, -EBADMSG,
                               "%s: key general.alignment is %" PRIu32
                               ", not a power of 2 from %u to %u",
                               path, align, SHUNT_GGUF_ALIGN_MIN, SHUNT_GGUF_ALIGN_MAX);
    gguf->alignment = align;
    gguf->data_off = shunt_align_up(gguf->header_bytes, align);
    return 0;
}

/* Sets `bytes`; the data has `room` bytes from the tensor's beginning to the end of the file. */
static int measure_tensor(struct shunt_gguf_tensor *tensor, uint64_t room, const char *path,
                          struct shunt_error *err)
{
    const struct shunt_weight_info *info;
    enum shunt_weight_type type;

    if (shunt_weight_from_gguf(tensor->type, &type))
        return 0; /* not one of ours: its family will say so by name */
    info = shunt_weight_info(type);
    if (tensor->dims[0] % info->block_len)
        return shunt_error_set(err, -EBADMSG,
                               "%s: tensor %.*s has rows of %" PRIu64
                               " weights, but %s stores them in blocks of %" PRIu32,
                               path, shown(tensor->name.len), tensor->name.data, tensor->dims[0],
                               info->name, info->block_len);
    /* read_dims bounds the product of the dimensions by ELEMENTS_MAX. */
    tensor->bytes = tensor->dims[0] / info->block_len * tensor->dims[1] * tensor->dims[2] *
                    tensor->dims[3] * info->block_bytes;
    if (tensor->bytes > room)
        return shunt_error_set(
            err, -EBADMSG,
            "%s: tensor %.*s takes %" PRIu64 " bytes, but the file ends after %" PRIu64
            ": it is cut or damaged; download it again",
            path, shown(tensor->name.len), tensor->name.data, tensor->bytes, room);
    return 0;
}

/* Turns the offset into one from the start of the file and checks that the data lies inside it. */
static int place_tensor(const struct shunt_gguf *gguf, struct shunt_gguf_tensor *tensor,
                        uint64_t file_bytes, const char *path, struct shunt_error *err)
{
    uint64_t room = file_bytes > gguf->data_off ? file_bytes - gguf->data_off : 0;
    int rc;

    if (tensor->off % gguf->alignment)
        return shunt_error_set(err, -EBADMSG,
                               "%s: tensor %.*s begins at byte %" PRIu64
                               " of the data, which is no multiple of the alignment %" PRIu32,
                               path, shown(tensor->name.len), tensor->name.data, tensor->off,
                               gguf->alignment);
    if (tensor->off >= room)
        return shunt_error_set(err, -EBADMSG,
                               "%s: tensor %.*s begins at byte %" PRIu64
                               " of the data, but the file ends after %" PRIu64
                               ": it is cut or damaged; download it again",
                               path, shown(tensor->name.len), tensor->name.data, tensor->off, room);
    rc = measure_tensor(tensor, room - tensor->off, path, err);
    tensor->off += gguf->data_off;
    return rc;
}

static int by_offset(const void *a, const void *b)
{
    const struct shunt_gguf_tensor *x = *(const struct shunt_gguf_tensor *const *)a;
    const struct shunt_gguf_tensor *y = *(const struct shunt_gguf_tensor *const *)b;

    return (x->off > y->off) - (x->off < y->off);
}

static int refuse_overlap(const struct shunt_gguf *gguf, const char *path, struct shunt_error *err)
{
    const struct shunt_gguf_tensor **order = calloc(gguf->tensor_count + 1u, sizeof(*order));
    int rc = 0;

    if (!order)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for %" PRIu32 " tensors", path,
                               gguf->tensor_count);
    for (uint32_t i = 0; i < gguf->tensor_count; i++)
        order[i] = &gguf->tensors[i];
    qsort(order, gguf->tensor_count, sizeof(*order), by_offset);
    for (uint32_t i = 1; i < gguf->tensor_count && !rc; i++) {
        const struct shunt_gguf_tensor *a = order[i - 1], *b = order[i];

        if (a->off + a->bytes > b->off)
            rc = shunt_error_set(err, -EBADMSG,
                                 "%s: tensors %.*s and %.*s overlap at byte %" PRIu64
                                 ": the file is damaged; download it again",
                                 path, shown(a->name.len), a->name.data, shown(b->name.len),
                                 b->name.data, b->off);
    }
    free(order);
    return rc;
}

/* ---- the whole */

static int index_and_place(struct shunt_gguf *gguf, const struct shunt_gguf_source *source,
                           struct shunt_error *err)
{
    int rc = build_index(&gguf->kv_index, gguf->kvs, sizeof(*gguf->kvs), gguf->kv_count, "key",
                         source->path, err);

    if (rc)
        return rc;
    rc = build_index(&gguf->tensor_index, gguf->tensors, sizeof(*gguf->tensors), gguf->tensor_count,
                     "tensor", source->path, err);
    if (rc)
        return rc;
    rc = read_alignment(gguf, source->path, err);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < gguf->tensor_count; i++) {
        rc = place_tensor(gguf, &gguf->tensors[i], source->bytes, source->path, err);
        if (rc)
            return rc;
    }
    return refuse_overlap(gguf, source->path, err);
}

int shunt_gguf_parse(struct shunt_gguf *gguf, const struct shunt_gguf_source *source,
                     struct shunt_error *err)
{
    struct reader r = {.source = source, .err = err};
    int rc;

    memset(gguf, 0, sizeof(*gguf));
    rc = read_tables(&r, gguf);
    if (!rc)
        adopt_header(&r, gguf);
    free(r.data);
    free(r.kv_places);
    free(r.tensor_places);
    if (!rc)
        rc = index_and_place(gguf, source, err);
    if (rc)
        shunt_gguf_fini(gguf);
    return rc;
}

void shunt_gguf_fini(struct shunt_gguf *gguf)
{
    free(gguf->header);
    free(gguf->kvs);
    free(gguf->tensors);
    free(gguf->kv_index.slots);
    free(gguf->tensor_index.slots);
    memset(gguf, 0, sizeof(*gguf));
}

/* ---- looking up */

const struct shunt_gguf_kv *shunt_gguf_find(const struct shunt_gguf *gguf, const char *key)
{
    uint32_t slot = *find_slot(&gguf->kv_index, gguf->kvs, sizeof(*gguf->kvs), key, strlen(key));

    return slot ? &gguf->kvs[slot - 1] : NULL;
}

const struct shunt_gguf_tensor *shunt_gguf_find_tensor(const struct shunt_gguf *gguf,
                                                       const char *name)
{
    uint32_t slot =
        *find_slot(&gguf->tensor_index, gguf->tensors, sizeof(*gguf->tensors), name, strlen(name));

    return slot ? &gguf->tensors[slot - 1] : NULL;
}

/* The value of an integer; a negative one comes out beyond every 32-bit range. */
static int load_integer(const struct shunt_gguf_kv *kv, uint64_t *value)
{
    switch (kv->type) {
    case SHUNT_GGUF_U8:
        *value = kv->data[0];
        return 0;
    case SHUNT_GGUF_I8:
        *value = (uint64_t)(int8_t)kv->data[0];
        return 0;
    case SHUNT_GGUF_U16:
        *value = shunt_load_u16(kv->data);
        return 0;
    case SHUNT_GGUF_I16:
        *value = (uint64_t)(int16_t)shunt_load_u16(kv->data);
        return 0;
    case SHUNT_GGUF_U32:
        *value = shunt_load_u32(kv->data);
        return 0;
    case SHUNT_GGUF_I32:
        *value = (uint64_t)(int32_t)shunt_load_u32(kv->data);
        return 0;
    case SHUNT_GGUF_U64:
    case SHUNT_GGUF_I64:
        *value = shunt_load_u64(kv->data);
        return 0;
    default:
        return -EBADMSG;
    }
}

int shunt_gguf_get_u32(const struct shunt_gguf *gguf, const char *key, uint32_t *value)
{
    const struct shunt_gguf_kv *kv = shunt_gguf_find(gguf, key);
    uint64_t wide;

    if (!kv)
        return -ENOENT;
    if (load_integer(kv, &wide) || wide > UINT32_MAX)
        return -EBADMSG;
    *value = (uint32_t)wide;
    return 0;
}

int shunt_gguf_get_f32(const struct shunt_gguf *gguf, const char *key, float *value)
{
    const struct shunt_gguf_kv *kv = shunt_gguf_find(gguf, key);
    double wide;

    if (!kv)
        return -ENOENT;
    if (kv->type == SHUNT_GGUF_F32) {
        *value = shunt_load_f32(kv->data);
        return 0;
    }
    if (kv->type != SHUNT_GGUF_F64)
        return -EBADMSG;
    memcpy(&wide, kv->data, sizeof(wide));
    if (wide > FLT_MAX || wide < -FLT_MAX)
        return -EBADMSG;
    *value = (float)wide;
    return 0;
}

int shunt_gguf_get_bool(const struct shunt_gguf *gguf, const char *key, bool *value)
{
    const struct shunt_gguf_kv *kv = shunt_gguf_find(gguf, key);

    if (!kv)
        return -ENOENT;
    if (kv->type != SHUNT_GGUF_BOOL)
        return -EBADMSG;
    *value = kv->data[0];
    return 0;
}

int shunt_gguf_get_string(const struct shunt_gguf *gguf, const char *key,
                          struct shunt_gguf_string *value)
{
    const struct shunt_gguf_kv *kv = shunt_gguf_find(gguf, key);
    const unsigned char *at;

    if (!kv)
        return -ENOENT;
    if (kv->type != SHUNT_GGUF_STRING)
        return -EBADMSG;
    at = kv->data;
    *value = shunt_gguf_next_string(&at);
    return 0;
}

struct shunt_gguf_string shunt_gguf_next_string(const unsigned char **cursor)
{
    struct shunt_gguf_string s = {.data = (const char *)*cursor + 8,
                                  .len = (size_t)shunt_load_u64(*cursor)};

    *cursor += 8 + s.len;
    return s;
}
