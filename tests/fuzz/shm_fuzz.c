/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to what a node of the shm transport is told of its peer's memory: any process,
 * any descriptor, any place. Built and run as wire_fuzz.c says; no corpus is needed.
 */
#include <sys/socket.h>

#include "transport/shm.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INBOX_BYTES 8192u
#define FDS         16u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct shunt_shared inbox;
    const uint64_t sizes[2] = {INBOX_BYTES, INBOX_BYTES};
    struct shunt_stream streams[2] = {SHUNT_STREAM_NONE, SHUNT_STREAM_NONE};
    const struct shunt_patience none = {.deadline_ns = 0};
    struct shunt_transport_config cfg = {
        .node_count = 2, .streams = streams, .peer_inbox_bytes = sizes, .patience = &none};
    struct word w = {.magic = WORD_MAGIC, .version = WORD_VERSION};
    struct shunt_transport *t;
    int fds[2];

    if (!inbox.base && shunt_shared_create(&inbox, INBOX_BYTES, SHUNT_SHARED_WRITABLE, "", NULL))
        return 0;
    if (size < 1 + sizeof(w) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds))
        return 0;
    memcpy(&w, data + 1, sizeof(w));
    if (data[0] & 1)
        w.magic = WORD_MAGIC, w.version = WORD_VERSION, w.zero = 0;
    if (data[0] & 2)
        w.pid = (uint32_t)getpid();
    if (data[0] & 4)
        w.channel_fd %= FDS, w.inbox_fd %= FDS;
    if (data[0] & 8)
        w.inbox_bytes = INBOX_BYTES, w.inbox_off %= 4 * PAGE;
    if (data[0] & 16)
        w.inbox_fd = (uint32_t)inbox.fd;
    (void)!write(fds[1], &w, sizeof(w));
    (void)!write(fds[1], data + 1 + sizeof(w),
                 size - 1 - sizeof(w) < 64 ? size - 1 - sizeof(w) : 64);
    streams[1].fd = fds[0];
    cfg.inbox = (struct shunt_region){
        .kind = SHUNT_REGION_SHARED, .base = inbox.base, .bytes = INBOX_BYTES, .fd = inbox.fd};
    if (!shunt_transport_shm.open(&t, &cfg, NULL)) {
        struct shunt_completion c[8];

        for (uint32_t i = 0; i < 4; i++)
            shunt_transport_shm.poll(t, c, 8);
        shunt_transport_shm.close(t);
    }
    close(fds[1]);
    return 0;
}
