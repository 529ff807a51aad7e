/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/store/flat_model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/random.h"
#include "tests/temp_file.h"

#define GAP_MAX 700u

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void place_layer(struct flat_model *m, uint32_t layer, const uint64_t *strides,
                        uint64_t *random)
{
    struct shunt_layer *l = &m->model.layers[layer];

    for (uint32_t p = 0; p < SHUNT_PARTS; p++) {
        m->len += random_below(random, GAP_MAX);
        l->parts[p] = (struct shunt_expert_part){
            .off = m->len,
            .stride = strides[p],
            .type = (enum shunt_weight_type)((layer + p) % SHUNT_WEIGHT_TYPES),
            .rows = strides[p] % 3 ? 1 : 3,
            .cols = 1 + layer * SHUNT_PARTS + p,
        };
        l->expert_bytes += strides[p];
        m->len += strides[p] * m->model.arch.expert_count;
    }
    if (l->expert_bytes > m->model.expert_bytes_max)
        m->model.expert_bytes_max = l->expert_bytes;
}

void flat_init(struct flat_model *m, uint32_t layer_count, uint32_t expert_count,
               const uint64_t *strides, uint64_t seed)
{
    uint64_t random = seed;

    memset(m, 0, sizeof(*m));
    m->model.arch.layer_count = layer_count;
    m->model.arch.expert_count = expert_count;
    m->model.layers = calloc(layer_count, sizeof(*m->model.layers));
    check(m->model.layers);
    for (uint32_t l = 0; l < layer_count; l++)
        place_layer(m, l, strides + l * SHUNT_PARTS, &random);
    m->bytes = malloc(m->len);
    check(m->bytes);
    random_fill(&random, m->bytes, m->len);
    m->fd = temp_file(m->bytes, m->len, m->path);
    check(shunt_file_open(&m->model.file, m->path, SHUNT_IO_BUFFERED, NULL) == 0);
    m->model.file.off_align = 512;
    m->model.file.mem_align = 512;
}

void flat_fini(struct flat_model *m)
{
    shunt_file_close(&m->model.file);
    close(m->fd);
    free(m->model.layers);
    free(m->bytes);
}

bool flat_is_right(const struct flat_model *m, const struct shunt_store *store, uint32_t key)
{
    uint32_t experts = m->model.arch.expert_count;
    const struct shunt_layer *l = &m->model.layers[key / experts];
    struct shunt_matrix parts[SHUNT_PARTS];

    shunt_store_view(store, key, parts);
    for (uint32_t p = 0; p < SHUNT_PARTS; p++) {
        const struct shunt_expert_part *want = &l->parts[p];

        if (parts[p].type != want->type || parts[p].rows != want->rows ||
            parts[p].cols != want->cols || parts[p].row_bytes * want->rows != want->stride ||
            memcmp(parts[p].data, m->bytes + want->off + key % experts * want->stride,
                   want->stride))
            return false;
    }
    return true;
}
