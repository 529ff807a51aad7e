/* SPDX-License-Identifier: Apache-2.0
 *
 * A byte stream to a peer: a connected socket, in TLS where there is a key. Nothing here blocks.
 * What TLS has decrypted and not handed out yet is not seen by poll(2): whoever reads, reads until
 * -EAGAIN, or asks shunt_stream_pending before it sleeps.
 */
#ifndef SHUNT_BASE_STREAM_H
#define SHUNT_BASE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

struct shunt_stream {
    int fd;             /* -1: none */
    struct ssl_st *tls; /* NULL: in clear */
};

#define SHUNT_STREAM_NONE ((struct shunt_stream){.fd = -1})

/* Return: bytes taken, at least 1; -EAGAIN; a negative errno value. After -EAGAIN the next call
 * begins with the same bytes: TLS may have made a record of them already. */
ssize_t shunt_stream_send(const struct shunt_stream *s, const void *bytes, size_t len);
ssize_t shunt_stream_sendv(const struct shunt_stream *s, const struct iovec *iov, int count);

/* Return: bytes received; 0 when the peer has closed; -EAGAIN; a negative errno value. */
ssize_t shunt_stream_recv(const struct shunt_stream *s, void *bytes, size_t len);

/* True when something has been received that poll(2) does not show. */
bool shunt_stream_pending(const struct shunt_stream *s);

/* Closes what is there; accepts SHUNT_STREAM_NONE. */
void shunt_stream_close(struct shunt_stream *s);

#endif
