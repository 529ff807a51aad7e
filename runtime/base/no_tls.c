/* SPDX-License-Identifier: Apache-2.0
 *
 * tls.h where OpenSSL is absent.
 */
#include "runtime/base/tls.h"

#include <errno.h>

int shunt_tls_open(struct shunt_tls **tls, const struct shunt_credentials *credentials,
                   struct shunt_error *err)
{
    (void)tls;
    (void)credentials;
    return shunt_error_set(err, -ENOTSUP,
                           "this build of shunt is without TLS and cannot authenticate anybody; "
                           "install libssl-dev and build again");
}

void shunt_tls_close(struct shunt_tls *tls)
{
    (void)tls;
}

int shunt_tls_begin(struct shunt_tls *tls, struct shunt_stream *stream, enum shunt_tls_side side)
{
    (void)tls;
    (void)stream;
    (void)side;
    return -ENOTSUP;
}

int shunt_tls_handshake(const struct shunt_stream *stream, short *events, struct shunt_error *err)
{
    (void)stream;
    (void)events;
    return shunt_error_set(err, -ENOTSUP, "built without TLS");
}

int shunt_tls_export(const struct shunt_stream *stream, const char *label, void *out, size_t bytes)
{
    (void)stream;
    (void)label;
    (void)out;
    (void)bytes;
    return -ENOTSUP;
}

const char *shunt_tls_library(void)
{
    return NULL;
}

ssize_t shunt_tls_sendv(struct ssl_st *ssl, const struct iovec *iov, int count)
{
    (void)ssl;
    (void)iov;
    (void)count;
    return -ENOTSUP;
}

ssize_t shunt_tls_recv(struct ssl_st *ssl, void *bytes, size_t len)
{
    (void)ssl;
    (void)bytes;
    (void)len;
    return -ENOTSUP;
}

bool shunt_tls_pending(const struct ssl_st *ssl)
{
    (void)ssl;
    return false;
}

void shunt_tls_end(struct ssl_st *ssl)
{
    (void)ssl;
}
