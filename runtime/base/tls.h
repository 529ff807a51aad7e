/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS 1.3 on streams, with a key that the whole rack has or with certificates of a common
 * authority. Nothing else is spoken: no older version, no resumption, no tickets, and with a key
 * never without a fresh Diffie-Hellman exchange, so that what was recorded stays secret when the
 * key gets out.
 *
 * Everybody who has the key can be any node: it keeps strangers out, not nodes apart. A handshake
 * that is reflected or led to another node than the one meant is seen by the ranks in the hello
 * that follows it.
 */
#ifndef SHUNT_BASE_TLS_H
#define SHUNT_BASE_TLS_H

#include "runtime/base/error.h"
#include "runtime/base/stream.h"

/* Files: a key, or certificate, its private key and the authority's certificate. */
struct shunt_credentials {
    const char *key;
    const char *cert, *cert_key, *ca;
};

struct shunt_tls;

static inline bool shunt_credentials_given(const struct shunt_credentials *c)
{
    return c->key || c->cert || c->cert_key || c->ca;
}

/* Reads the files. Return: 0; -EINVAL, -EACCES, -ENOENT with the file and the remedy. */
int shunt_tls_open(struct shunt_tls **tls, const struct shunt_credentials *credentials,
                   struct shunt_error *err);

/* NULL is allowed. Streams that are in TLS go on; the last of them frees what they share. */
void shunt_tls_close(struct shunt_tls *tls);

enum shunt_tls_side { SHUNT_TLS_CONNECTED, SHUNT_TLS_ACCEPTED };

/* Puts a connected stream into TLS; nothing is sent yet. Return: 0 or -ENOMEM. */
int shunt_tls_begin(struct shunt_tls *tls, struct shunt_stream *stream, enum shunt_tls_side side);

/* Goes on with the handshake. Never blocks.
 * Return: 0 when both sides are known; -EAGAIN when it waits for *events; -ECONNREFUSED when the
 * peer refuses us; -EACCES when we refuse the peer, which the alert on its way does not tell why;
 * -EPROTO for what is no TLS; -ECONNRESET and the like. `err` is for this side's person. */
int shunt_tls_handshake(const struct shunt_stream *stream, short *events, struct shunt_error *err);

/* Bytes that only the two ends of the session know. Return: 0 or -EIO. */
int shunt_tls_export(const struct shunt_stream *stream, const char *label, void *out, size_t bytes);

/* Its version: "3.0.16". */
const char *shunt_tls_library(void);

/* ---- for stream.c */

ssize_t shunt_tls_sendv(struct ssl_st *ssl, const struct iovec *iov, int count);
ssize_t shunt_tls_recv(struct ssl_st *ssl, void *bytes, size_t len);
bool shunt_tls_pending(const struct ssl_st *ssl);
void shunt_tls_end(struct ssl_st *ssl);

#endif
