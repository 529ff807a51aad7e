/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to the headers of the tcp transport.
 * Built and run as wire_fuzz.c says; no corpus is needed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/transport.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INBOX_BYTES (256u << 10)
#define HEADER      32u

/* Headers that pass where the input says so, each after a byte that says how. Return: bytes. */
static size_t shape(uint8_t *out, const uint8_t *data, size_t size)
{
    size_t len = 0;

    for (size_t at = 0; at + 1 + HEADER <= size; at += 1 + HEADER) {
        uint8_t *h = out + len;

        memcpy(h, data + at + 1, HEADER);
        if (data[at] & 1)
            memcpy(h, "SHP2", 4);
        if (data[at] & 2)
            memcpy(h + 4, data[at] & 4 ? "\1\0\0\0" : "\2\0\0\0", 4);
        if (data[at] & 8)
            memset(h + 12, 0, 4);
        if (data[at] & 16) /* offset and length within reach */
            memset(h + 18, 0, 6), memset(h + 25, 0, 7);
        len += HEADER;
    }
    return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t inbox[INBOX_BYTES + 64], bytes[1 << 16];
    const uint64_t sizes[2] = {INBOX_BYTES, INBOX_BYTES};
    struct shunt_stream streams[2] = {SHUNT_STREAM_NONE, SHUNT_STREAM_NONE};
    const struct shunt_region memory = {.base = inbox, .bytes = INBOX_BYTES, .fd = -1};
    struct shunt_transport_config cfg = {.node_count = 2,
                                         .streams = streams,
                                         .inbox = memory,
                                         .peer_inbox_bytes = sizes,
                                         .memory = &memory,
                                         .memory_count = 1};
    struct shunt_transport *t;
    size_t len;
    int fds[2];

    if (size > sizeof(bytes) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds))
        return 0;
    streams[1].fd = fds[0];
    memset(inbox + INBOX_BYTES, 0x5a, 64);
    if (shunt_transport_tcp.open(&t, &cfg, NULL))
        abort();
    shunt_transport_tcp.put(t, 1, inbox, 100, 0, 7);
    len = shape(bytes, data, size);
    for (size_t at = 0; at < len; at += 4096) {
        struct shunt_completion c[3];
        uint32_t count;

        if (send(fds[1], bytes + at, len - at < 4096 ? len - at : 4096, MSG_NOSIGNAL) < 0)
            break;
        while ((count = shunt_transport_tcp.poll(t, c, 3)) > 0)
            for (uint32_t i = 0; i < count; i++)
                if (c[i].event == SHUNT_TRANSPORT_ARRIVED && data[0] & 32)
                    shunt_transport_tcp.release(t, c[i].peer, 1);
    }
    for (uint32_t i = 0; i < 64; i++)
        if (inbox[INBOX_BYTES + i] != 0x5a)
            abort();
    shunt_transport_tcp.close(t);
    close(fds[1]);
    return 0;
}
