/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/stream.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/tls.h"

static ssize_t result_of(ssize_t n)
{
    if (n >= 0)
        return n;
    return errno == EWOULDBLOCK || errno == EINTR ? -EAGAIN : -errno;
}

ssize_t shunt_stream_sendv(const struct shunt_stream *s, const struct iovec *iov, int count)
{
    const struct msghdr msg = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};

    if (s->tls)
        return shunt_tls_sendv(s->tls, iov, count);
    return result_of(sendmsg(s->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT));
}

ssize_t shunt_stream_send(const struct shunt_stream *s, const void *bytes, size_t len)
{
    return shunt_stream_sendv(s, &(struct iovec){(void *)bytes, len}, 1);
}

ssize_t shunt_stream_recv(const struct shunt_stream *s, void *bytes, size_t len)
{
    if (s->tls)
        return shunt_tls_recv(s->tls, bytes, len);
    return result_of(recv(s->fd, bytes, len, MSG_DONTWAIT));
}

bool shunt_stream_pending(const struct shunt_stream *s)
{
    return s->tls && shunt_tls_pending(s->tls);
}

void shunt_stream_close(struct shunt_stream *s)
{
    if (s->tls)
        shunt_tls_end(s->tls);
    if (s->fd >= 0)
        close(s->fd);
    *s = SHUNT_STREAM_NONE;
}
