/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to what nodes tell each other of their queue pairs, before any of it reaches a
 * device. Built and run as wire_fuzz.c says; no corpus is needed.
 */
#include "transport/verbs/connect.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INBOX_MAX (VERBS_INBOX_BLOCKS_MAX * VERBS_BLOCK_BYTES)

/* Fields that pass where the first byte says so, else few inputs would get beyond the first check.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct verbs_peer peers[2];
    struct shunt_transport t = {.node_count = 2, .peers = peers, .rail_count = 2};
    struct verbs_word *w = &peers[1].word;
    struct shunt_error err;

    if (size < 1)
        return 0;
    memset(w, 0, sizeof(*w));
    memcpy(w, data + 1, size - 1 < sizeof(*w) ? size - 1 : sizeof(*w));
    peers[1].inbox_bytes = data[0] & 16 ? w->inbox_bytes : w->inbox_bytes % (2 * INBOX_MAX);
    if (data[0] & 1)
        w->magic = WORD_MAGIC, w->version = WORD_VERSION;
    if (data[0] & 2)
        w->inbox_bytes = peers[1].inbox_bytes;
    if (data[0] & 4)
        w->block_count =
            (uint32_t)((peers[1].inbox_bytes + VERBS_BLOCK_BYTES - 1) / VERBS_BLOCK_BYTES);
    if (data[0] & 8)
        w->rail_count = 2;
    for (uint32_t r = 0; r < 2 && data[0] & 32; r++) {
        w->rails[r].mtu = IBV_MTU_1024;
        w->rails[r].qpn &= PSN_MASK;
        w->rails[r].psn &= PSN_MASK;
    }
    if (check_word(&t, 1, &err))
        return 0;
    /* What is taken can be used: no field of it indexes beyond what it is for. */
    if (w->rail_count > VERBS_RAILS_MAX || w->block_count > VERBS_INBOX_BLOCKS_MAX ||
        w->inbox_bytes > w->block_count * VERBS_BLOCK_BYTES || w->inbox + w->inbox_bytes < w->inbox)
        __builtin_trap();
    for (uint32_t r = 0; r < w->rail_count; r++)
        if (w->rails[r].mtu < IBV_MTU_256 || w->rails[r].mtu > IBV_MTU_4096 ||
            w->rails[r].qpn > PSN_MASK)
            __builtin_trap();
    return 0;
}
