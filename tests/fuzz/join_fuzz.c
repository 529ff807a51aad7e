/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to a connection while a rack forms: whatever a peer sends, in pieces.
 * Built and run as wire_fuzz.c says; no corpus is needed.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/cluster/join_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define NODES 3u

/* What cannot be guessed and what must be right to get any further. */
static void complete(uint8_t *bytes, size_t size, const struct shunt_joining *j, bool outgoing)
{
    struct shunt_answer answer = {.magic = SHUNT_ANSWER_MAGIC, .verdict = SHUNT_ACCEPTED};
    struct shunt_rack_config cfg = *j->cfg;

    cfg.rank = outgoing ? 0 : 2;
    shunt_hello_fill(&answer.hello, &cfg, j->has_table ? j->texts : NULL);
    answer.hello.live_port = 1 + bytes[0];
    if (outgoing)
        memcpy(bytes, &answer, size < sizeof(answer) ? size : sizeof(answer));
    else
        memcpy(bytes, &answer.hello, size < sizeof(answer.hello) ? size : sizeof(answer.hello));
}

static void feed(struct shunt_joining *j, int fd, const uint8_t *data, size_t size, size_t piece)
{
    struct shunt_connection *c = &j->connections[0];
    struct shunt_error err;
    int rc = 0;

    for (size_t at = 0; at < size && !rc && c->state != SHUNT_JOIN_UNUSED; at += piece) {
        size_t part = piece < size - at ? piece : size - at;

        if (send(fd, data + at, part, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            break;
        rc = shunt_join_advance(j, c, &err);
        if (c->state == SHUNT_JOIN_WAITING)
            break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const known[NODES] = {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"};
    static const char *const unknown[NODES] = {"127.0.0.1:1", NULL, NULL};
    static struct shunt_mesh mesh;
    struct shunt_connection c = {.stream = SHUNT_STREAM_NONE};
    struct shunt_joining j = {.mesh = &mesh, .connections = &c, .connection_max = 1};
    struct shunt_rack_config cfg = {.node_count = NODES,
                                    .model_name = "fuzz",
                                    .kernel_levels = 1,
                                    .transports = 1,
                                    .rows_max = 8};
    uint8_t *copy;
    int fds[2];

    if (size < 3 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds))
        return 0;
    shunt_mesh_init(&mesh);
    c.outgoing = data[0] & 1;
    c.kind = data[0] & 2 ? SHUNT_STREAM_DATA : SHUNT_STREAM_CONTROL;
    if (!c.outgoing)
        c.kind = SHUNT_STREAM_CONTROL;
    cfg.rank = c.outgoing ? 1 : 0;
    cfg.addresses = data[0] & 4 ? unknown : known;
    j.cfg = &cfg;
    j.has_table = !(data[0] & 4);
    j.settled = data[0] & 8;
    j.live_port = 5;
    j.listen_fd = -1;
    j.controls_missing = j.data_missing = 2;
    for (uint32_t r = 0; r < NODES; r++) {
        j.texts[r] = r == cfg.rank ? known[r] : cfg.addresses[r];
        if (shunt_address_parse_numeric(&j.addresses[r], known[r], NULL))
            abort();
    }
    if (data[0] & 32) /* a token that a prologue of zeros presents */
        j.places[2].granted = true;
    c.stream.fd = fds[0];
    c.state = c.outgoing ? SHUNT_JOIN_CONNECTING : SHUNT_JOIN_OPENING;
    c.deadline_ns = INT64_MAX;
    copy = malloc(size - 2);
    if (!copy)
        abort();
    memcpy(copy, data + 2, size - 2);
    if (data[0] & 16)
        complete(copy, size - 2, &j, c.outgoing);
    feed(&j, fds[1], copy, size - 2, 1u + data[1] * 16u);
    free(copy);
    shunt_join_drop(&c);
    shunt_mesh_close(&mesh);
    close(fds[1]);
    return 0;
}
