/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/model.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/loader.h"

/* ---- header */

struct header_source {
    const struct shunt_file *file;
    uint64_t *device_bytes;
};

static int read_file(void *ctx, uint64_t off, size_t len, void *dst, struct shunt_error *err)
{
    struct header_source *s = ctx;

    return shunt_file_read(s->file, off, len, dst, s->device_bytes, err);
}

static int read_header(struct shunt_model *m, struct shunt_error *err)
{
    struct header_source s = {.file = &m->file, .device_bytes = &m->startup_bytes};
    struct shunt_gguf_source source = {
        .read = read_file, .ctx = &s, .bytes = m->file.bytes, .path = m->file.path};

    return shunt_gguf_parse(&m->gguf, &source, err);
}

static int refuse_split(const struct shunt_model *m, struct shunt_error *err)
{
    uint32_t count = 0, part = 0;

    if (shunt_gguf_get_u32(&m->gguf, "split.count", &count) || count <= 1)
        return 0;
    shunt_gguf_get_u32(&m->gguf, "split.no", &part);
    return shunt_error_set(err, -ENOTSUP,
                           "%s is part %" PRIu32 " of %" PRIu32
                           " of a split model; join the parts with: llama-gguf-split --merge",
                           m->file.path, part + 1, count);
}

/* ---- text for people */

/* NULL when memory is out. */
static char *copy_text(const char *data, size_t len)
{
    char *text = malloc(len + 1);

    if (!text)
        return NULL;
    for (size_t i = 0; i < len; i++)
        text[i] = (unsigned char)data[i] < 0x20 || data[i] == 0x7f ? '?' : data[i];
    text[len] = '\0';
    return text;
}

static int name_tensors(struct shunt_model *m, struct shunt_error *err)
{
    const struct shunt_gguf *g = &m->gguf;
    size_t table = (g->tensor_count + 1u) * sizeof(*m->tensor_names);
    size_t bytes = table;
    char *text;

    for (uint32_t i = 0; i < g->tensor_count; i++)
        bytes += g->tensors[i].name.len + 1;
    m->tensor_names = malloc(bytes);
    if (!m->tensor_names)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for %" PRIu32 " names",
                               m->file.path, g->tensor_count);
    text = (char *)m->tensor_names + table;
    for (uint32_t i = 0; i < g->tensor_count; i++) {
        m->tensor_names[i] = text;
        memcpy(text, g->tensors[i].name.data, g->tensors[i].name.len);
        text += g->tensors[i].name.len;
        *text++ = '\0';
    }
    return 0;
}

static int read_names(struct shunt_model *m, struct shunt_error *err)
{
    struct shunt_gguf_string architecture;
    struct shunt_gguf_string name = {"", 0};

    if (shunt_gguf_get_string(&m->gguf, "general.architecture", &architecture))
        return shunt_error_set(err, -EBADMSG,
                               "%s: key general.architecture is missing or no string; convert the "
                               "model again with a current tool",
                               m->file.path);
    shunt_gguf_get_string(&m->gguf, "general.name", &name);
    m->architecture = copy_text(architecture.data, architecture.len);
    m->name = copy_text(name.data, name.len);
    if (!m->architecture || !m->name)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for names", m->file.path);
    return name_tensors(m, err);
}

/* ---- family */

static const struct {
    const char *architecture;
    int (*load)(struct shunt_loader *l);
} families[] = {
    {"qwen3moe", shunt_qwen3moe_load},
};

#define FAMILY_COUNT (sizeof(families) / sizeof(families[0]))

static int refuse_architecture(const struct shunt_model *m, struct shunt_error *err)
{
    char list[128] = "";
    size_t used = 0;

    for (size_t i = 0; i < FAMILY_COUNT && used < sizeof(list); i++)
        used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "",
                                 families[i].architecture);
    return shunt_error_set(err, -ENOTSUP,
                           "%s: the model's architecture is %.80s; this version computes %s",
                           m->file.path, m->architecture, list);
}

static int load_family(struct shunt_model *m, struct shunt_error *err)
{
    struct shunt_loader l = {.model = m, .err = err};
    size_t i = 0;
    int rc;

    while (i < FAMILY_COUNT && strcmp(m->architecture, families[i].architecture))
        i++;
    if (i == FAMILY_COUNT)
        return refuse_architecture(m, err);
    l.family = families[i].architecture;
    l.taken = calloc(m->gguf.tensor_count + 1u, 1);
    if (!l.taken)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for %" PRIu32 " tensors",
                               m->file.path, m->gguf.tensor_count);
    rc = families[i].load(&l);
    free(l.taken);
    return rc;
}

static void count_bytes(struct shunt_model *m)
{
    for (uint32_t i = 0; i < m->gguf.tensor_count; i++) {
        const struct shunt_gguf_tensor *t = &m->gguf.tensors[i];

        m->dense_bytes += t->bytes; /* the experts are taken off below */
        m->parameter_count += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
    for (uint32_t i = 0; i < m->arch.layer_count; i++) {
        uint64_t bytes = m->layers[i].expert_bytes;

        m->expert_bytes += bytes * m->arch.expert_count;
        if (bytes > m->expert_bytes_max)
            m->expert_bytes_max = bytes;
    }
    m->dense_bytes -= m->expert_bytes;
}

/* ---- tokenizer */

/* A special id of a file whose tokenizer is not read; -1 for none. */
static int32_t bare_id(const struct shunt_model *m, const char *key)
{
    uint32_t id;

    if (shunt_gguf_get_u32(&m->gguf, key, &id) || id >= m->arch.vocab_count)
        return -1;
    return (int32_t)id;
}

/* A tokenizer of an unknown kind leaves a model that computes ids; one that contradicts itself or
 * the weights is a damaged file. */
static int load_tokenizer(struct shunt_model *m, struct shunt_error *err)
{
    const char *path = m->file.path;
    char kind[sizeof(m->tokenizer_error.text) + 3];
    int rc = shunt_tokenizer_open(&m->tokenizer, &m->gguf, path, &m->tokenizer_error);

    if (rc && rc != -ENOTSUP)
        return shunt_error_set(err, rc, "%s", m->tokenizer_error.text);
    if (!rc && shunt_tokenizer_vocab_count(m->tokenizer) != m->arch.vocab_count)
        return shunt_error_set(
            err, -EBADMSG,
            "%s: key tokenizer.ggml.tokens has %" PRIu32
            " tokens, but tensor token_embd.weight has %" PRIu32 " rows; convert the model again",
            path, shunt_tokenizer_vocab_count(m->tokenizer), m->arch.vocab_count);
    if (rc) {
        snprintf(kind, sizeof(kind), "[%s]", m->tokenizer_error.text);
        m->bos_id = bare_id(m, "tokenizer.ggml.bos_token_id");
        m->eos_id = bare_id(m, "tokenizer.ggml.eos_token_id");
    } else {
        snprintf(kind, sizeof(kind), "%s", shunt_tokenizer_kind(m->tokenizer));
        m->bos_id = shunt_tokenizer_bos(m->tokenizer);
        m->eos_id = shunt_tokenizer_eos(m->tokenizer);
    }
    m->tokenizer_kind = copy_text(kind, strlen(kind));
    if (!m->tokenizer_kind)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory for a name", path);
    return 0;
}

/* ---- open and close */

static int load(struct shunt_model *m, const char *path, struct shunt_error *err)
{
    int rc = shunt_file_open(&m->file, path, SHUNT_IO_AUTO, err);

    if (rc)
        return rc;
    m->startup_bytes = m->file.probed_bytes;
    rc = read_header(m, err);
    if (rc)
        return rc;
    rc = refuse_split(m, err);
    if (rc)
        return rc;
    rc = read_names(m, err);
    if (rc)
        return rc;
    rc = load_family(m, err);
    if (rc)
        return rc;
    count_bytes(m);
    rc = load_tokenizer(m, err);
    if (rc)
        return rc;
    return shunt_model_take_fingerprint(m, err);
}

SHUNT_API int shunt_model_open(shunt_model **model, const char *path, struct shunt_error *err)
{
    struct shunt_model *m = calloc(1, sizeof(*m));
    int rc;

    if (!m)
        return shunt_error_set(err, -ENOMEM, "%s: out of memory", path);
    rc = load(m, path, err);
    if (rc) {
        shunt_model_close(m);
        return rc;
    }
    *model = m;
    return 0;
}

SHUNT_API void shunt_model_close(shunt_model *model)
{
    if (!model)
        return;
    shunt_tokenizer_close(model->tokenizer);
    free(model->architecture);
    free(model->name);
    free(model->tokenizer_kind);
    free(model->tensor_names);
    free(model->layers);
    shunt_gguf_fini(&model->gguf);
    shunt_file_close(&model->file);
    free(model);
}
