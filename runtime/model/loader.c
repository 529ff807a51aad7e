/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/loader.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define KEY_ROOM 128 /* longer than any key a family asks for */

/* ---- keys */

static const char *full_key(const struct shunt_loader *l, const char *key, char room[KEY_ROOM])
{
    snprintf(room, KEY_ROOM, "%s.%s", l->family, key);
    return room;
}

static int refuse_missing_key(struct shunt_loader *l, const char *key)
{
    char room[KEY_ROOM];

    return shunt_error_set(l->err, -EBADMSG,
                           "%s: key %s is missing; convert the model again with a current tool",
                           l->model->file.path, full_key(l, key, room));
}

int shunt_loader_u32_or(struct shunt_loader *l, const char *key, uint32_t min, uint32_t max,
                        uint32_t *value)
{
    char room[KEY_ROOM];
    uint32_t found = 0;
    int rc = shunt_gguf_get_u32(&l->model->gguf, full_key(l, key, room), &found);

    if (rc == -ENOENT)
        return 0;
    if (rc)
        return shunt_error_set(l->err, rc, "%s: key %s is no single 32-bit integer",
                               l->model->file.path, room);
    if (found < min)
        return shunt_error_set(l->err, -EBADMSG,
                               "%s: key %s is %" PRIu32 ", which makes no sense: at least %" PRIu32
                               " is needed",
                               l->model->file.path, room, found, min);
    if (found > max)
        return shunt_error_set(l->err, -ENOTSUP,
                               "%s: key %s is %" PRIu32 "; this version computes up to %" PRIu32,
                               l->model->file.path, room, found, max);
    *value = found;
    return 0;
}

int shunt_loader_u32(struct shunt_loader *l, const char *key, uint32_t min, uint32_t max,
                     uint32_t *value)
{
    char room[KEY_ROOM];

    if (!shunt_gguf_find(&l->model->gguf, full_key(l, key, room)))
        return refuse_missing_key(l, key);
    return shunt_loader_u32_or(l, key, min, max, value);
}

int shunt_loader_f32_or(struct shunt_loader *l, const char *key, float min, float max, float *value)
{
    char room[KEY_ROOM];
    float found = 0;
    int rc = shunt_gguf_get_f32(&l->model->gguf, full_key(l, key, room), &found);

    if (rc == -ENOENT)
        return 0;
    if (rc)
        return shunt_error_set(l->err, rc, "%s: key %s is no single 32-bit float",
                               l->model->file.path, room);
    if (!(found >= min && found <= max)) /* a NaN is out of range as well */
        return shunt_error_set(l->err, -EBADMSG, "%s: key %s is %g, not in [%g, %g]",
                               l->model->file.path, room, (double)found, (double)min, (double)max);
    *value = found;
    return 0;
}

int shunt_loader_f32(struct shunt_loader *l, const char *key, float min, float max, float *value)
{
    char room[KEY_ROOM];

    if (!shunt_gguf_find(&l->model->gguf, full_key(l, key, room)))
        return refuse_missing_key(l, key);
    return shunt_loader_f32_or(l, key, min, max, value);
}

int shunt_loader_bool_or(struct shunt_loader *l, const char *key, bool *value)
{
    char room[KEY_ROOM];
    int rc = shunt_gguf_get_bool(&l->model->gguf, full_key(l, key, room), value);

    if (rc == -EBADMSG)
        return shunt_error_set(l->err, rc, "%s: key %s is no boolean", l->model->file.path, room);
    return 0;
}

int shunt_loader_refuse_u32(struct shunt_loader *l, const char *key, uint32_t harmless,
                            const char *meaning)
{
    char room[KEY_ROOM];
    uint32_t value = harmless;
    int rc = shunt_loader_u32_or(l, key, 0, UINT32_MAX, &value);

    if (rc)
        return rc;
    if (value == harmless)
        return 0;
    return shunt_error_set(l->err, -ENOTSUP,
                           "%s: key %s is %" PRIu32 ": this version does not compute %s",
                           l->model->file.path, full_key(l, key, room), value, meaning);
}

/* ---- tensors */

bool shunt_loader_has(const struct shunt_loader *l, const char *name)
{
    return shunt_gguf_find_tensor(&l->model->gguf, name) != NULL;
}

static int find(struct shunt_loader *l, const char *name, const struct shunt_gguf_tensor **tensor)
{
    *tensor = shunt_gguf_find_tensor(&l->model->gguf, name);
    if (!*tensor)
        return shunt_error_set(l->err, -EBADMSG,
                               "%s: tensor %s is missing; convert the model again, or join its "
                               "parts when it was split",
                               l->model->file.path, name);
    return 0;
}

static int check_shape(struct shunt_loader *l, const char *name,
                       const struct shunt_gguf_tensor *tensor, uint32_t d0, uint32_t d1,
                       uint32_t d2)
{
    const uint64_t *d = tensor->dims;

    if (d[0] == d0 && d[1] == d1 && d[2] == d2 && d[3] == 1)
        return 0;
    return shunt_error_set(l->err, -EBADMSG,
                           "%s: tensor %s has the shape %" PRIu64 " x %" PRIu64 " x %" PRIu64
                           " x %" PRIu64 ", but the dimensions of the model ask for %" PRIu32
                           " x %" PRIu32 " x %" PRIu32 " x 1; convert the model again",
                           l->model->file.path, name, d[0], d[1], d[2], d[3], d0, d1, d2);
}

static int refuse_type(struct shunt_loader *l, const char *name, uint32_t gguf_id,
                       const char *computed)
{
    const char *known = shunt_weight_gguf_name(gguf_id);
    char number[24];

    snprintf(number, sizeof(number), "number %" PRIu32, gguf_id);
    return shunt_error_set(l->err, -ENOTSUP,
                           "%s: tensor %s has the weight type %s; this version computes %s: "
                           "quantise the model to one of them (llama-quantize)",
                           l->model->file.path, name, known ? known : number, computed);
}

static int refuse_unknown_type(struct shunt_loader *l, const char *name, uint32_t gguf_id)
{
    char list[128] = "";
    size_t used = 0;

    for (uint32_t i = 0; i < SHUNT_WEIGHT_TYPES && used < sizeof(list); i++)
        used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "",
                                 shunt_weight_info((enum shunt_weight_type)i)->name);
    return refuse_type(l, name, gguf_id, list);
}

/* A tensor of exactly this shape (GGUF's order) and a type that shunt computes with. */
static int take(struct shunt_loader *l, const char *name, uint32_t d0, uint32_t d1, uint32_t d2,
                const struct shunt_gguf_tensor **tensor, enum shunt_weight_type *type)
{
    int rc = find(l, name, tensor);

    if (rc)
        return rc;
    rc = check_shape(l, name, *tensor, d0, d1, d2);
    if (rc)
        return rc;
    if (shunt_weight_from_gguf((*tensor)->type, type))
        return refuse_unknown_type(l, name, (*tensor)->type);
    l->taken[*tensor - l->model->gguf.tensors] = 1;
    return 0;
}

int shunt_loader_rows(struct shunt_loader *l, const char *name, uint32_t max, uint32_t *rows)
{
    const struct shunt_gguf_tensor *tensor;
    int rc = find(l, name, &tensor);

    if (rc)
        return rc;
    if (tensor->dims[1] > max)
        return shunt_error_set(l->err, -ENOTSUP,
                               "%s: tensor %s has %" PRIu64
                               " rows; this version computes up to %" PRIu32,
                               l->model->file.path, name, tensor->dims[1], max);
    *rows = (uint32_t)tensor->dims[1];
    return 0;
}

int shunt_loader_matrix(struct shunt_loader *l, const char *name, uint32_t rows, uint32_t cols,
                        struct shunt_dense *out)
{
    const struct shunt_gguf_tensor *tensor;
    enum shunt_weight_type type;
    int rc = take(l, name, cols, rows, 1, &tensor, &type);

    if (rc)
        return rc;
    *out = (struct shunt_dense){
        .off = tensor->off, .bytes = tensor->bytes, .type = type, .rows = rows, .cols = cols};
    return 0;
}

int shunt_loader_vector(struct shunt_loader *l, const char *name, uint32_t len,
                        struct shunt_dense *out)
{
    struct shunt_dense found = {0};
    int rc = shunt_loader_matrix(l, name, 1, len, &found);

    if (rc)
        return rc;
    if (found.type != SHUNT_WEIGHT_F32 && found.type != SHUNT_WEIGHT_F16 &&
        found.type != SHUNT_WEIGHT_BF16)
        return refuse_type(l, name, shunt_weight_info(found.type)->gguf_id,
                           "F32, F16 and BF16 for norms");
    *out = found;
    return 0;
}

int shunt_loader_experts(struct shunt_loader *l, const char *name, uint32_t count, uint32_t rows,
                         uint32_t cols, struct shunt_expert_part *out)
{
    const struct shunt_gguf_tensor *tensor;
    enum shunt_weight_type type;
    int rc = take(l, name, cols, rows, count, &tensor, &type);

    if (rc)
        return rc;
    *out = (struct shunt_expert_part){.off = tensor->off,
                                      .stride = tensor->bytes / count,
                                      .type = type,
                                      .rows = rows,
                                      .cols = cols};
    return 0;
}

int shunt_loader_finish(struct shunt_loader *l)
{
    for (uint32_t i = 0; i < l->model->gguf.tensor_count; i++)
        if (!l->taken[i])
            return shunt_error_set(l->err, -ENOTSUP,
                                   "%s: tensor %s is no part of %s as this version computes it; "
                                   "leaving it out would give wrong answers",
                                   l->model->file.path, l->model->tensor_names[i], l->family);
    return 0;
}
