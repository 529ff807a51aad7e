/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames on the pipe between a node process and its supervisor. Both are the same program, so
 * structs travel as they are.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

enum { FRAME_TOKEN = 1, FRAME_END, FRAME_NOTICE, FRAME_FAILURE, FRAME_SUMMARY };

struct frame {
    uint32_t type;
    uint32_t bytes;
};

struct token_frame {
    uint32_t prompt;
    int32_t id;
};

/* ---- the node's side */

static void write_all(int fd, const void *bytes, size_t len)
{
    const char *at = bytes;

    while (len > 0) {
        ssize_t n = write(fd, at, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return; /* the supervisor is gone, and this process ends with it */
        at += n;
        len -= (size_t)n;
    }
}

static void write_frame(void *ctx, uint32_t type, const void *head, size_t head_len,
                        const void *tail, size_t tail_len)
{
    const int *fd = ctx;
    const struct frame frame = {.type = type, .bytes = (uint32_t)(head_len + tail_len)};

    write_all(*fd, &frame, sizeof(frame));
    write_all(*fd, head, head_len);
    write_all(*fd, tail, tail_len);
}

static void send_token(void *ctx, uint32_t prompt, int32_t id, const char *text, size_t len)
{
    const struct token_frame t = {.prompt = prompt, .id = id};

    write_frame(ctx, FRAME_TOKEN, &t, sizeof(t), text, len);
}

static void send_end(void *ctx, const struct outcome *outcome)
{
    write_frame(ctx, FRAME_END, outcome, sizeof(*outcome), NULL, 0);
}

static void send_notice(void *ctx, const char *text)
{
    write_frame(ctx, FRAME_NOTICE, text, strlen(text) + 1, NULL, 0);
}

static void send_failure(void *ctx, bool peers, const char *text)
{
    write_frame(ctx, FRAME_FAILURE, &peers, sizeof(peers), text, strlen(text) + 1);
}

static void send_summary(void *ctx, const struct node_summary *summary)
{
    write_frame(ctx, FRAME_SUMMARY, summary, sizeof(*summary), NULL, 0);
}

struct sink pipe_sink(int *fd)
{
    return (struct sink){.ctx = fd,
                         .token = send_token,
                         .end = send_end,
                         .notice = send_notice,
                         .failure = send_failure,
                         .summary = send_summary};
}

/* ---- the supervisor's side */

static void keep_failure(struct pipe_reader *r, const unsigned char *data)
{
    free(r->failure);
    memcpy(&r->peers_failure, data, sizeof(r->peers_failure));
    r->failure = strdup((const char *)data + sizeof(r->peers_failure));
}

static void take_frame(struct pipe_reader *r, const struct frame *frame, const unsigned char *data,
                       const struct sink *sink)
{
    struct token_frame token;
    struct outcome outcome;
    struct node_summary summary;

    switch (frame->type) {
    case FRAME_TOKEN:
        memcpy(&token, data, sizeof(token));
        sink->token(sink->ctx, token.prompt, token.id, (const char *)data + sizeof(token),
                    frame->bytes - sizeof(token));
        break;
    case FRAME_END:
        memcpy(&outcome, data, sizeof(outcome));
        sink->end(sink->ctx, &outcome);
        break;
    case FRAME_NOTICE:
        sink->notice(sink->ctx, (const char *)data);
        break;
    case FRAME_FAILURE:
        keep_failure(r, data);
        break;
    case FRAME_SUMMARY:
        memcpy(&summary, data, sizeof(summary));
        sink->summary(sink->ctx, &summary);
        break;
    }
}

static void take_frames(struct pipe_reader *r, const struct sink *sink)
{
    size_t at = 0;

    while (r->len - at >= sizeof(struct frame)) {
        struct frame frame;

        memcpy(&frame, r->bytes + at, sizeof(frame));
        if (r->len - at - sizeof(frame) < frame.bytes)
            break;
        take_frame(r, &frame, r->bytes + at + sizeof(frame), sink);
        at += sizeof(frame) + frame.bytes;
    }
    memmove(r->bytes, r->bytes + at, r->len - at);
    r->len -= at;
}

bool pipe_read(struct pipe_reader *r, const struct sink *sink)
{
    ssize_t n;

    if (r->capacity - r->len < 4096) {
        size_t capacity = r->capacity ? 2 * r->capacity : 16384;
        unsigned char *grown = realloc(r->bytes, capacity);

        if (!grown)
            return false;
        r->bytes = grown;
        r->capacity = capacity;
    }
    n = read(r->fd, r->bytes + r->len, r->capacity - r->len);
    if (n < 0)
        return errno == EINTR || errno == EAGAIN;
    r->len += (size_t)n;
    take_frames(r, sink);
    return n > 0;
}

void pipe_reader_fini(struct pipe_reader *r)
{
    if (r->fd >= 0)
        close(r->fd);
    free(r->bytes);
    free(r->failure);
}
