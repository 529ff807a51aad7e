/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to the messages of a step:
 *
 *     CC=clang meson setup build-fuzz -Dfuzzers=true -Db_sanitize=address,undefined \
 *         -Db_lundef=false -Dc_args=-fsanitize=fuzzer-no-link
 *     build-fuzz/tests/fuzz-wire -max_len=4096 CORPUS
 *
 * An input is eight bytes of what this node knows, then the message. No corpus is needed: magic,
 * version and what was due are written over the header.
 */
#include <stdlib.h>

#include "tests/engine/wire_walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define KNOWN 8u

static void view(const unsigned char *m, const struct shunt_wire_shape *shape,
                 const struct shunt_wire_expect *expect)
{
    struct shunt_wire_announce_view announce;
    struct shunt_wire_counts_view counts = {
        .counts = calloc(shape->expert_count, sizeof(*counts.counts))};
    struct shunt_wire_dispatch_view dispatch = {
        .groups = calloc(shape->expert_count, sizeof(*dispatch.groups)),
        .entries = calloc(expect->rows_max * shape->used_count + 1u, sizeof(*dispatch.entries))};
    struct shunt_wire_header results;
    bool sound = true;

    switch (expect->kind) {
    case SHUNT_WIRE_ANNOUNCE:
        if (!shunt_wire_view_announce(m, expect, "fuzz", &announce, NULL))
            sound = wire_walk_announce(&announce, shape);
        break;
    case SHUNT_WIRE_COUNTS:
        if (!shunt_wire_view_counts(m, shape, expect, "fuzz", &counts, NULL))
            sound = wire_walk_counts(&counts, shape, expect->rows_max);
        break;
    case SHUNT_WIRE_DISPATCH:
        if (!shunt_wire_view_dispatch(m, shape, expect, "fuzz", &dispatch, NULL))
            sound = wire_walk_dispatch(&dispatch, shape, expect->rows_max);
        break;
    default:
        if (!shunt_wire_view_results(m, expect, "fuzz", &results, NULL))
            sound = results.entry_count == expect->entry_count &&
                    results.waited_count <= results.entry_count;
        break;
    }
    if (!sound)
        abort();
    free(counts.counts);
    free(dispatch.groups);
    free(dispatch.entries);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct shunt_wire_shape shape;
    struct shunt_wire_expect expect = {0};
    struct shunt_wire_header h;
    void *message;
    size_t len, room;

    if (size < KNOWN)
        return 0;
    len = size - KNOWN;
    shape = (struct shunt_wire_shape){.expert_count = 1u + data[1],
                                      .used_count = 1u + data[2] % 8,
                                      .hidden = 1u + data[3] % 32,
                                      .layer_count = 4};
    expect.kind = (enum shunt_wire_kind)(1 + data[0] % 4);
    expect.lane = (enum shunt_lane)(data[4] % 2);
    expect.rows_max = data[5];
    expect.entry_count = data[6];
    room = shunt_wire_gather_max(&shape, expect.rows_max);
    if (posix_memalign(&message, SHUNT_WIRE_ALIGN, room))
        return 0;
    memset(message, 0, room);
    memcpy(message, data + KNOWN, len < room ? len : room);
    if (data[7] % 8) {
        memcpy(&h, message, sizeof(h));
        h.magic = SHUNT_WIRE_MAGIC;
        h.version = SHUNT_WIRE_VERSION;
        h.kind = (uint8_t)expect.kind;
        h.lane = (uint8_t)expect.lane;
        h.row_type = h.combine = 0;
        h.rank = h.layer = 0;
        h.tick = h.step = 0;
        memcpy(message, &h, sizeof(h));
    }
    view(message, &shape, &expect);
    free(message);
    return 0;
}
