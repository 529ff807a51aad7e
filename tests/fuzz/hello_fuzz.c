/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to the messages of a rack that forms: hello, answer, table, prologue.
 * Built and run as wire_fuzz.c says; no corpus is needed.
 */
#include <stdlib.h>
#include <string.h>

#include "runtime/cluster/hello.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const rack[] = {"a:1", "b:2", "c:3"};

/* A message as it is read: what did not come is zero. */
static void take(void *message, size_t bytes, const uint8_t *data, size_t size)
{
    memset(message, 0, bytes);
    memcpy(message, data, size < bytes ? size : bytes);
}

static void check_hello(const uint8_t *data, size_t size, bool plausible)
{
    const struct shunt_rack_config cfg = {.rank = 1,
                                          .node_count = 3,
                                          .model_name = "fuzz",
                                          .kernel_levels = 3,
                                          .transports = 3,
                                          .rows_max = 8};
    struct shunt_hello ours, theirs;
    struct shunt_error err = {0};

    shunt_hello_fill(&ours, &cfg, rack);
    take(&theirs, sizeof(theirs), data, size);
    if (plausible) {
        memcpy(&theirs, &ours, offsetof(struct shunt_hello, rack_digest));
        memcpy(theirs.version, ours.version, sizeof(ours.version));
        theirs.live_port = 1;
    }
    if (shunt_hello_check(&theirs, &ours, "fuzz", &err))
        return;
    if (theirs.rows_max == 0 || theirs.rows_max > SHUNT_ROWS_MAX || theirs.node_count != 3 ||
        theirs.live_port == 0 || theirs.live_port > 65535 || !(theirs.transports & 3))
        abort();
}

static void check_table(const uint8_t *data, size_t size, bool plausible)
{
    struct shunt_table table;
    struct shunt_error err;

    take(&table, sizeof(table), data, size);
    if (plausible)
        table = (struct shunt_table){.magic = SHUNT_TABLE_MAGIC, .count = 3};
    for (uint32_t r = 0; plausible && r < 3 && size > r * 64; r++)
        memcpy(table.addresses[r], data + r * 64, size - r * 64 < 64 ? size - r * 64 : 64);
    if (shunt_table_check(&table, 3, &err))
        return;
    for (uint32_t r = 0; r < 3; r++)
        if (strnlen(table.addresses[r], SHUNT_ADDRESS_BYTES) % SHUNT_ADDRESS_BYTES == 0)
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t token[SHUNT_TOKEN_BYTES] = {1, 2, 3};
    struct shunt_prologue prologue;

    if (size < 1)
        return 0;
    check_hello(data + 1, size - 1, data[0] & 1);
    check_table(data + 1, size - 1, data[0] & 2);
    take(&prologue, sizeof(prologue), data + 1, size - 1);
    if (shunt_prologue_presents(&prologue, token) && memcmp(prologue.token, token, sizeof(token)))
        abort();
    return 0;
}
