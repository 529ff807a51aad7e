/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to reports and placements, on rank 0 and on another.
 * Built and run as wire_fuzz.c says; no corpus is needed.
 */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/cluster/planning.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LAYERS  2u
#define EXPERTS 3u
#define KEYS    (LAYERS * EXPERTS)

static struct shunt_planning *open_at(uint32_t rank)
{
    static _Atomic uint32_t activations[KEYS];
    const struct shunt_planning_config cfg = {.rank = rank,
                                              .node_count = 3,
                                              .layer_count = LAYERS,
                                              .expert_count = EXPERTS,
                                              .policy = SHUNT_PLACEMENT_PRISM,
                                              .interval_ns = 3600 * SHUNT_NS_PER_S,
                                              .capacity = 4,
                                              .activations = activations};
    struct shunt_planning *p;

    if (shunt_planning_open(&p, &cfg, NULL))
        abort();
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct shunt_planning *nodes[2];
    uint64_t message[32];
    uint32_t bytes, type;

    for (uint32_t r = 0; r < 2; r++)
        if (!nodes[r])
            nodes[r] = open_at(r);
    if (size < 2)
        return 0;
    memset(message, 0, sizeof(message));
    memcpy(message, data + 2, size - 2 < sizeof(message) ? size - 2 : sizeof(message));
    bytes = size - 2 < sizeof(message) ? (uint32_t)size - 2 : sizeof(message);
    type = SHUNT_RACK_MESSAGE_FIRST + data[0] % 4;
    if (data[0] & 16) { /* of the length that is due */
        bytes = type == SHUNT_RACK_MESSAGE_FIRST ? 8 + 4 * KEYS : 16 + 8 * KEYS;
        ((uint32_t *)message)[1] = type == SHUNT_RACK_MESSAGE_FIRST ? KEYS : 0;
        message[1] = type == SHUNT_RACK_MESSAGE_FIRST ? message[1] : KEYS;
    }
    shunt_planning_message(nodes[data[1] & 1], data[1] >> 1 & 1 ? 0 : 1 + data[1] % 2, type,
                           message, bytes);
    if (shunt_planning_acknowledged(nodes[1]))
        shunt_planning_activated(nodes[1]);
    return 0;
}
