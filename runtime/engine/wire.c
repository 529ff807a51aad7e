/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/wire.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "runtime/base/bytes.h"
#include "runtime/base/carve.h"

static const char *kind_name(uint32_t kind)
{
    static const char *const names[] = {"nothing", "ANNOUNCE", "COUNTS", "DISPATCH", "RESULTS"};

    return kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "an unknown message";
}

uint64_t shunt_wire_announce_bytes(const struct shunt_wire_shape *shape)
{
    return sizeof(struct shunt_wire_header) + sizeof(struct shunt_wire_announce) +
           shape->expert_count;
}

uint64_t shunt_wire_counts_bytes(const struct shunt_wire_shape *shape)
{
    return sizeof(struct shunt_wire_header) + sizeof(uint64_t) + 6ull * shape->expert_count +
           shunt_wire_bits_bytes(shape->expert_count);
}

struct shunt_wire_dispatch_layout shunt_wire_dispatch_layout(const struct shunt_wire_shape *shape,
                                                             uint32_t groups, uint32_t entries,
                                                             uint32_t rows)
{
    struct shunt_wire_dispatch_layout at;

    at.states = sizeof(struct shunt_wire_header);
    at.guesses = at.states + shape->expert_count;
    at.groups = shunt_align_up(at.guesses + shunt_wire_bits_bytes(shape->expert_count), 8);
    at.entries = at.groups + groups * sizeof(struct shunt_wire_group);
    at.rows = shunt_align_up(at.entries + (uint64_t)entries * sizeof(uint32_t), SHUNT_WIRE_ALIGN);
    at.bytes = at.rows + (uint64_t)rows * shape->hidden * sizeof(float);
    return at;
}

uint64_t shunt_wire_gather_max(const struct shunt_wire_shape *shape, uint32_t rows)
{
    struct shunt_wire_dispatch_layout d =
        shunt_wire_dispatch_layout(shape, shape->expert_count, rows * shape->used_count, rows);
    uint64_t max = d.bytes;

    if (shunt_wire_counts_bytes(shape) > max)
        max = shunt_wire_counts_bytes(shape);
    if (shunt_wire_announce_bytes(shape) > max)
        max = shunt_wire_announce_bytes(shape);
    return shunt_align_up(max, SHUNT_WIRE_ALIGN);
}

static int check_header(struct shunt_wire_header *h, const void *message,
                        const struct shunt_wire_expect *expect, const char *who,
                        struct shunt_error *err)
{
    memcpy(h, message, sizeof(*h));
    if (h->magic != SHUNT_WIRE_MAGIC || h->version != SHUNT_WIRE_VERSION)
        return shunt_error_set(err, -EPROTO, "%s sent a message that is none of this version", who);
    if (h->kind != expect->kind || h->rank != expect->rank || h->tick != expect->tick ||
        h->step != expect->step)
        return shunt_error_set(err, -EPROTO,
                               "%s sent %s as rank %" PRIu32 " in exchange %" PRIu64
                               " of step %" PRIu64 " where %s of rank %" PRIu32
                               " in exchange %" PRIu64 " of step %" PRIu64
                               " was due; the nodes are out of step",
                               who, kind_name(h->kind), h->rank, h->tick, h->step,
                               kind_name(expect->kind), expect->rank, expect->tick, expect->step);
    if (expect->kind == SHUNT_WIRE_ANNOUNCE)
        return 0;
    if (h->lane != expect->lane || h->layer != expect->layer)
        return shunt_error_set(
            err, -EPROTO,
            "%s sent %s of lane %u, layer %" PRIu32 " where lane %u, layer %" PRIu32
            " was due; the nodes are out of step",
            who, kind_name(h->kind), h->lane, h->layer, expect->lane, expect->layer);
    return 0;
}

int shunt_wire_view_announce(const void *message, const struct shunt_wire_expect *expect,
                             const char *who, struct shunt_wire_announce_view *view,
                             struct shunt_error *err)
{
    const unsigned char *m = message;
    struct shunt_wire_header h;
    int rc = check_header(&h, message, expect, who, err);

    if (rc)
        return rc;
    memcpy(&view->announce, m + sizeof(h), sizeof(view->announce));
    view->states = m + sizeof(h) + sizeof(view->announce);
    return 0;
}

int shunt_wire_view_counts(const void *message, const struct shunt_wire_shape *shape,
                           const struct shunt_wire_expect *expect, const char *who,
                           struct shunt_wire_counts_view *view, struct shunt_error *err)
{
    const unsigned char *m = message;
    struct shunt_wire_header h;
    int rc = check_header(&h, message, expect, who, err);
    uint64_t total = 0;

    if (rc)
        return rc;
    view->read_ns = shunt_load_u64(m + sizeof(h));
    memcpy(view->counts, m + sizeof(h) + sizeof(uint64_t), 4ull * shape->expert_count);
    view->states = m + sizeof(h) + sizeof(uint64_t) + 4ull * shape->expert_count;
    view->next_states = view->states + shape->expert_count;
    view->guesses = view->next_states + shape->expert_count;
    for (uint32_t e = 0; e < shape->expert_count; e++)
        total += view->counts[e];
    if (total > (uint64_t)expect->rows_max * shape->used_count)
        return shunt_error_set(err, -EPROTO,
                               "%s announces %" PRIu64 " expert calls; it may have %" PRIu64, who,
                               total, (uint64_t)expect->rows_max * shape->used_count);
    return 0;
}

/* Groups ascending, none empty, entries in range. */
static int check_groups(const struct shunt_wire_dispatch_view *v,
                        const struct shunt_wire_shape *shape, const char *who,
                        struct shunt_error *err)
{
    uint64_t total = 0;

    for (uint32_t g = 0; g < v->header.group_count; g++) {
        const struct shunt_wire_group *group = &v->groups[g];

        if (group->expert >= shape->expert_count || group->count == 0 ||
            (g > 0 && group->expert <= v->groups[g - 1].expert))
            return shunt_error_set(err, -EPROTO,
                                   "%s sent rows for expert %" PRIu32 " (group %" PRIu32
                                   "), which is out of order or out of range",
                                   who, group->expert, g);
        total += group->count;
    }
    if (total != v->header.entry_count)
        return shunt_error_set(err, -EPROTO,
                               "%s sent groups of %" PRIu64 " entries, and %" PRIu32 " entries",
                               who, total, v->header.entry_count);
    for (uint32_t i = 0; i < v->header.entry_count; i++)
        if (v->entries[i] >= v->header.row_count)
            return shunt_error_set(err, -EPROTO,
                                   "%s refers to row %" PRIu32 " of %" PRIu32 " it sent", who,
                                   v->entries[i], v->header.row_count);
    return 0;
}

int shunt_wire_view_dispatch(const void *message, const struct shunt_wire_shape *shape,
                             const struct shunt_wire_expect *expect, const char *who,
                             struct shunt_wire_dispatch_view *view, struct shunt_error *err)
{
    const unsigned char *m = message;
    struct shunt_wire_dispatch_layout at;
    struct shunt_wire_header h;
    int rc = check_header(&h, message, expect, who, err);

    if (rc)
        return rc;
    if (h.row_type != SHUNT_ROW_F32 || h.combine != SHUNT_COMBINE_ROW_PER_EXPERT)
        return shunt_error_set(err, -EPROTO,
                               "%s sends rows of type %u and wants results in layout %u; this "
                               "version knows 0 and 0",
                               who, h.row_type, h.combine);
    if (h.row_count > expect->rows_max || h.group_count > shape->expert_count ||
        h.entry_count > (uint64_t)h.row_count * shape->used_count)
        return shunt_error_set(err, -EPROTO,
                               "%s sent %" PRIu32 " rows, %" PRIu32 " experts, %" PRIu32
                               " entries; at most %" PRIu32 " rows were agreed",
                               who, h.row_count, h.group_count, h.entry_count, expect->rows_max);
    at = shunt_wire_dispatch_layout(shape, h.group_count, h.entry_count, h.row_count);
    view->header = h;
    view->states = m + at.states;
    view->guesses = m + at.guesses;
    memcpy(view->groups, m + at.groups, h.group_count * sizeof(*view->groups));
    memcpy(view->entries, m + at.entries, h.entry_count * sizeof(*view->entries));
    view->rows = (const float *)(const void *)(m + at.rows);
    return check_groups(view, shape, who, err);
}

int shunt_wire_view_results(const void *message, const struct shunt_wire_expect *expect,
                            const char *who, struct shunt_wire_header *header,
                            struct shunt_error *err)
{
    int rc = check_header(header, message, expect, who, err);

    if (rc)
        return rc;
    if (header->entry_count != expect->entry_count || header->waited_count > header->entry_count)
        return shunt_error_set(err, -EPROTO, "%s sent %" PRIu32 " results for %" PRIu32 " entries",
                               who, header->entry_count, expect->entry_count);
    return 0;
}
