/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to the frames of a control stream, and the datagrams beside it.
 * Built and run as wire_fuzz.c says; no corpus is needed.
 */
#include <stdlib.h>

/* Its frames have no other door. */
#include "runtime/cluster/rack.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MESSAGE_MAX 200u

static void take_message(void *ctx, uint32_t rank, uint32_t type, const void *data, uint32_t bytes)
{
    uint8_t all = 0;

    (void)ctx;
    for (uint32_t i = 0; i < bytes; i++) /* all of it is there */
        all |= ((const uint8_t *)data)[i];
    if (rank != 1 || type < SHUNT_RACK_MESSAGE_FIRST || (bytes == 0 && all))
        abort();
}

static struct shunt_rack *make_rack(int fd)
{
    struct shunt_rack *rack = calloc(1, sizeof(*rack));

    if (!rack)
        abort();
    rack->cfg = (struct shunt_rack_config){
        .node_count = 2, .message_max = MESSAGE_MAX, .dead_after_ns = 1, .join_timeout_ns = 1};
    pthread_mutex_init(&rack->mutex, NULL);
    pthread_cond_init(&rack->changed, NULL);
    for (uint32_t r = 0; r < SHUNT_NODES_MAX; r++)
        rack->peers[r].stream = rack->data[r] = SHUNT_STREAM_NONE;
    rack->peers[1].stream.fd = fd;
    rack->live_fd = -1;
    rack->callbacks.message = take_message;
    rack->wake_fd = eventfd(0, EFD_NONBLOCK);
    if (alloc_buffers(rack, NULL))
        abort();
    return rack;
}

/* A byte says how long the next datagram is; one bit of it, that its MAC is right. */
static void take_datagrams(struct shunt_rack *rack, const uint8_t *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        struct shunt_datagram d = {0};
        size_t len = data[at] & 63;
        uint64_t heard = rack->peers[1].pulse.heard;

        len = len < size - at - 1 ? len : size - at - 1;
        memcpy(&d, data + at + 1, len < sizeof(d) ? len : sizeof(d));
        if (data[at] & 64) {
            d.magic = SHUNT_PULSE_MAGIC;
            d.rank = 1;
        }
        if (data[at] & 128) {
            struct shunt_pulse p = rack->peers[1].pulse;

            p.sent = d.sequence - 1;
            shunt_pulse_write(&p, d.rank, &d);
        }
        if (take_datagram(rack, &d, data[at] & 128 ? sizeof(d) : len) &&
            (d.sequence <= heard || d.rank != 1))
            abort();
        at += len + 1;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct shunt_rack *rack;
    size_t half = size / 2;
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds))
        return 0;
    rack = make_rack(fds[0]);
    take_datagrams(rack, data + half, size - half);
    for (size_t at = 0; at < half && is_open(&rack->peers[1]);) {
        size_t part = 1 + data[at] % 97;

        part = part < half - at ? part : half - at;
        if (send(fds[1], data + at, part, MSG_NOSIGNAL) < 0)
            break;
        receive(rack, 1);
        at += part;
    }
    rack->left = true;
    shunt_rack_close(rack);
    close(fds[1]);
    return 0;
}
