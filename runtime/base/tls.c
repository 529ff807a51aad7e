/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/hmac.h"
#include "runtime/base/key_file.h"

/* What a client with a key calls itself. Everybody has the same key, so there is one name. */
#define IDENTITY "shunt"
/* Sessions of keys and those of the context must name one; which does not matter. */
#define SESSION_ID "shunt"
/* Both have SHA-256, which a key for TLS is bound to. */
#define SUITES     "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
#define TLS_GROUPS "X25519:P-256"

#define PEM_MAX    (64u << 10)
#define RECORD_MAX (16u << 10) /* bytes of payload in a TLS record */

struct shunt_tls {
    SSL_CTX *ctx;
    BIO_METHOD *method;
    uint8_t key[SHUNT_KEY_FILE_MAX];
    size_t key_bytes;       /* 0: certificates */
    _Atomic uint32_t users; /* whoever opened it, and each stream */
};

/* What lies below an SSL: our own socket calls, which raise no signal and never block. */
struct link {
    struct shunt_tls *tls;
    int fd;
    int error;        /* errno of the last call that failed, 0 for the end of the stream */
    bool by_namesake; /* the peer's certificate is of an authority named as ours, by another key */
};

/* ---- below: the socket */

static int link_result(BIO *bio, struct link *link, ssize_t n)
{
    BIO_clear_retry_flags(bio);
    if (n >= 0)
        return (int)n;
    link->error = errno;
    if (errno == EAGAIN || errno == EINTR)
        BIO_set_flags(bio, BIO_FLAGS_SHOULD_RETRY);
    return -1;
}

static int link_write(BIO *bio, const char *bytes, int len)
{
    struct link *link = BIO_get_data(bio);
    int n = link_result(bio, link, send(link->fd, bytes, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT));

    if (n < 0 && BIO_should_retry(bio))
        BIO_set_retry_write(bio);
    return n;
}

static int link_read(BIO *bio, char *bytes, int len)
{
    struct link *link = BIO_get_data(bio);
    int n = link_result(bio, link, recv(link->fd, bytes, (size_t)len, MSG_DONTWAIT));

    if (n == 0) {
        link->error = 0;
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    }
    if (n < 0 && BIO_should_retry(bio))
        BIO_set_retry_read(bio);
    return n;
}

static long link_ctrl(BIO *bio, int cmd, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    if (cmd == BIO_CTRL_EOF)
        return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
    return cmd == BIO_CTRL_FLUSH;
}

static BIO_METHOD *make_method(void)
{
    BIO_METHOD *m = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "shunt stream");

    if (!m)
        return NULL;
    BIO_meth_set_write(m, link_write);
    BIO_meth_set_read(m, link_read);
    BIO_meth_set_ctrl(m, link_ctrl);
    return m;
}

/* ---- a key */

static SSL_SESSION *make_session(SSL *ssl, const uint8_t *key, size_t bytes)
{
    static const unsigned char suite[2] = {0x13, 0x01}; /* TLS_AES_128_GCM_SHA256 */
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, suite);
    SSL_SESSION *s = SSL_SESSION_new();

    if (s && cipher && SSL_SESSION_set1_master_key(s, key, bytes) &&
        SSL_SESSION_set_cipher(s, cipher) && SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION) &&
        SSL_SESSION_set1_id_context(s, (const unsigned char *)SESSION_ID, sizeof(SESSION_ID)))
        return s;
    SSL_SESSION_free(s);
    return NULL;
}

static const struct shunt_tls *tls_of(const SSL *ssl)
{
    return ((const struct link *)SSL_get_app_data(ssl))->tls;
}

static int offer_key(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len,
                     SSL_SESSION **session)
{
    const struct shunt_tls *tls = tls_of(ssl);

    *session = NULL;
    *id = (const unsigned char *)IDENTITY;
    *id_len = strlen(IDENTITY);
    if (md && EVP_MD_get_type(md) != NID_sha256)
        return 1; /* a handshake that asks for another hash, which ours does not: no key fits */
    *session = make_session(ssl, tls->key, tls->key_bytes);
    return *session != NULL;
}

/* A name that is not known gets a key that nobody has, and so fails where a wrong key does. */
static int find_key(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
    const struct shunt_tls *tls = tls_of(ssl);
    uint8_t nobodys[SHUNT_KEY_FILE_MAX];
    bool known = id_len == strlen(IDENTITY) && !memcmp(id, IDENTITY, id_len);

    *session = NULL;
    if (shunt_secret_draw(nobodys, sizeof(nobodys)))
        return 0;
    *session = make_session(ssl, known ? tls->key : nobodys, tls->key_bytes);
    return *session != NULL;
}

static int use_key(struct shunt_tls *tls, const char *path, struct shunt_error *err)
{
    int bytes = shunt_key_read(path, tls->key, err);

    if (bytes < 0)
        return bytes;
    tls->key_bytes = (size_t)bytes;
    SSL_CTX_set_psk_use_session_callback(tls->ctx, offer_key);
    SSL_CTX_set_psk_find_session_callback(tls->ctx, find_key);
    return 0;
}

/* ---- certificates */

static int refuse_file(const char *path, struct shunt_error *err)
{
    unsigned long code = ERR_peek_last_error();
    const char *why = code ? ERR_reason_error_string(code) : NULL;

    ERR_clear_error();
    if (access(path, R_OK)) /* of which OpenSSL says "system lib" */
        return shunt_error_set(err, -errno, "%s: %s", path, strerror(errno));
    return shunt_error_set(err, -EINVAL, "%s: no PEM file that can be used: %s", path,
                           why ? why : "nothing is in it");
}

/* Never asks at a terminal, and keeps that a passphrase was wanted. */
static int no_passphrase(char *text, int size, int writing, void *wanted)
{
    (void)text;
    (void)size;
    (void)writing;
    *(bool *)wanted = true;
    return -1;
}

static int refuse_passphrase(const char *path, struct shunt_error *err)
{
    ERR_clear_error();
    return shunt_error_set(
        err, -EINVAL,
        "%s is encrypted, and shunt asks for no passphrase; write the key without "
        "one: (umask 077; openssl pkey -in %s -out FILE), and give that FILE",
        path, path);
}

static int use_private_key(SSL_CTX *ctx, const char *path, const char *cert,
                           struct shunt_error *err)
{
    char *pem = malloc(PEM_MAX);
    int64_t len = pem ? shunt_secret_read(path, pem, PEM_MAX, err)
                      : shunt_error_set(err, -ENOMEM, "out of memory for %s", path);
    BIO *bio = len > 0 ? BIO_new_mem_buf(pem, (int)len) : NULL;
    bool encrypted = false;
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, &encrypted) : NULL;
    int rc = len < 0 ? (int)len : 0;

    if (!rc && !key)
        rc = encrypted ? refuse_passphrase(path, err) : refuse_file(path, err);
    /* Compares it with the certificate, which is there already. */
    if (!rc && SSL_CTX_use_PrivateKey(ctx, key) != 1)
        rc = shunt_error_set(err, -EINVAL, "%s is not the private key of %s", path, cert);
    ERR_clear_error();
    EVP_PKEY_free(key);
    BIO_free(bio);
    if (pem)
        explicit_bzero(pem, PEM_MAX);
    free(pem);
    return rc;
}

/* Whether we trust authorities named as the one that has signed this, and none of them has. */
static bool is_by_namesake(X509_STORE_CTX *chain, X509 *cert)
{
    STACK_OF(X509) *namesakes = X509_STORE_CTX_get1_certs(chain, X509_get_issuer_name(cert));
    int count = namesakes ? sk_X509_num(namesakes) : 0;
    bool signed_it = false;

    for (int i = 0; i < count; i++)
        signed_it |= X509_verify(cert, X509_get0_pubkey(sk_X509_value(namesakes, i))) == 1;
    sk_X509_pop_free(namesakes, X509_free);
    return count > 0 && !signed_it;
}

/* Keeps the verdict, and with it what handshake_failed says of it. */
static int look_at_verdict(int ok, X509_STORE_CTX *chain)
{
    const SSL *ssl = X509_STORE_CTX_get_ex_data(chain, SSL_get_ex_data_X509_STORE_CTX_idx());
    X509 *cert = X509_STORE_CTX_get_current_cert(chain);

    if (!ok && cert) {
        ((struct link *)SSL_get_app_data(ssl))->by_namesake = is_by_namesake(chain, cert);
        ERR_clear_error(); /* of signatures; the handshake's own comes next */
    }
    return ok;
}

static int use_certificates(struct shunt_tls *tls, const struct shunt_credentials *c,
                            struct shunt_error *err)
{
    int rc;

    if (!c->cert || !c->cert_key || !c->ca)
        return shunt_error_set(err, -EINVAL,
                               "a certificate (--cert), its private key (--cert-key) and the "
                               "authority's certificate (--ca) belong together");
    if (SSL_CTX_use_certificate_chain_file(tls->ctx, c->cert) != 1)
        return refuse_file(c->cert, err);
    rc = use_private_key(tls->ctx, c->cert_key, c->cert, err);
    if (rc)
        return rc;
    if (SSL_CTX_load_verify_file(tls->ctx, c->ca) != 1)
        return refuse_file(c->ca, err);
    return 0;
}

/* ---- the context */

static void release(struct shunt_tls *tls)
{
    if (atomic_fetch_sub(&tls->users, 1) > 1)
        return;
    SSL_CTX_free(tls->ctx);
    BIO_meth_free(tls->method);
    explicit_bzero(tls->key, sizeof(tls->key));
    free(tls);
}

/* With a key, a peer that shows a certificate instead fails: no authority is trusted. */
static bool set_up(SSL_CTX *ctx)
{
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, look_at_verdict);
    return SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) &&
           SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) &&
           SSL_CTX_set_ciphersuites(ctx, SUITES) && SSL_CTX_set1_groups_list(ctx, TLS_GROUPS) &&
           SSL_CTX_set_session_id_context(ctx, (const unsigned char *)SESSION_ID,
                                          sizeof(SESSION_ID)) &&
           SSL_CTX_set_num_tickets(ctx, 0) && SSL_CTX_set_max_early_data(ctx, 0);
}

int shunt_tls_open(struct shunt_tls **out, const struct shunt_credentials *c,
                   struct shunt_error *err)
{
    struct shunt_tls *tls;
    int rc;

    if (c->key && (c->cert || c->cert_key || c->ca))
        return shunt_error_set(err, -EINVAL,
                               "a key (--key-file) and certificates (--cert, --cert-key, --ca) "
                               "are given; which?");
    tls = calloc(1, sizeof(*tls));
    if (!tls)
        return shunt_error_set(err, -ENOMEM, "out of memory for TLS");
    atomic_init(&tls->users, 1);
    tls->ctx = SSL_CTX_new(TLS_method());
    tls->method = make_method();
    if (!tls->ctx || !tls->method || !set_up(tls->ctx)) {
        rc = shunt_error_set(err, -ENOTSUP, "OpenSSL (%s) cannot be set up for TLS 1.3",
                             shunt_tls_library());
        ERR_clear_error();
    } else {
        rc = c->key ? use_key(tls, c->key, err) : use_certificates(tls, c, err);
    }
    if (rc) {
        release(tls);
        return rc;
    }
    *out = tls;
    return 0;
}

void shunt_tls_close(struct shunt_tls *tls)
{
    if (tls)
        release(tls);
}

const char *shunt_tls_library(void)
{
    return OpenSSL_version(OPENSSL_VERSION_STRING);
}

/* ---- a stream */

int shunt_tls_begin(struct shunt_tls *tls, struct shunt_stream *stream, enum shunt_tls_side side)
{
    struct link *link = calloc(1, sizeof(*link));
    SSL *ssl = SSL_new(tls->ctx);
    BIO *bio = BIO_new(tls->method);

    if (!link || !ssl || !bio) {
        ERR_clear_error();
        BIO_free(bio);
        SSL_free(ssl);
        free(link);
        return -ENOMEM;
    }
    *link = (struct link){.tls = tls, .fd = stream->fd};
    atomic_fetch_add(&tls->users, 1);
    BIO_set_data(bio, link);
    BIO_set_init(bio, 1);
    SSL_set_app_data(ssl, link);
    SSL_set_bio(ssl, bio, bio);
    if (side == SHUNT_TLS_CONNECTED)
        SSL_set_connect_state(ssl);
    else
        SSL_set_accept_state(ssl);
    stream->tls = ssl;
    return 0;
}

void shunt_tls_end(struct ssl_st *ssl)
{
    struct link *link = SSL_get_app_data(ssl);
    struct shunt_tls *tls = link->tls;

    ERR_clear_error();
    if (SSL_is_init_finished(ssl))
        SSL_shutdown(ssl); /* says that this was the end, if the socket takes it */
    SSL_free(ssl);
    ERR_clear_error();
    free(link);
    release(tls);
}

/* What a call that has not succeeded means to whoever called. */
static int result_of(SSL *ssl, int rc)
{
    const struct link *link = SSL_get_app_data(ssl);

    switch (SSL_get_error(ssl, rc)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SYSCALL:
        return link->error ? -link->error : -ECONNRESET;
    default:
        return -EPROTO;
    }
}

static bool is_alert(unsigned long code)
{
    return ERR_GET_LIB(code) == ERR_LIB_SSL && ERR_GET_REASON(code) > SSL_AD_REASON_OFFSET;
}

/* A handshake that ends in one of these has met somebody who does speak TLS. */
static int handshake_failed(SSL *ssl, struct shunt_error *err)
{
    unsigned long code = ERR_peek_error();
    long verdict = SSL_get_verify_result(ssl);
    const char *why = ERR_reason_error_string(code);

    if (is_alert(code))
        return shunt_error_set(err, -ECONNREFUSED, "%s", why ? why : "refused");
    switch (ERR_GET_REASON(code)) {
    case SSL_R_BINDER_DOES_NOT_VERIFY:
        return shunt_error_set(err, -EACCES, "it has another key");
    case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
    case SSL_R_NO_SHARED_CIPHER:
    case SSL_R_NO_CERTIFICATE_SET:
        return shunt_error_set(err, -EACCES, "it has no key");
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return shunt_error_set(err, -EACCES, "it has no certificate");
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        if (tls_of(ssl)->key_bytes)
            return shunt_error_set(err, -EACCES,
                                   "it shows a certificate and does not have the key");
        if (((const struct link *)SSL_get_app_data(ssl))->by_namesake)
            return shunt_error_set(
                err, -EACCES,
                "its certificate: the authority that signed it has the name of "
                "the one in --ca, but another key (was it renewed?); give every "
                "node the same --ca file, and a certificate signed with its key");
        return shunt_error_set(err, -EACCES, "its certificate: %s",
                               X509_verify_cert_error_string(verdict));
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_UNEXPECTED_MESSAGE:
        return shunt_error_set(err, -EPROTO, "it does not speak TLS");
    default:
        return shunt_error_set(err, -EPROTO, "%s", why ? why : "an unknown failure");
    }
}

int shunt_tls_handshake(const struct shunt_stream *stream, short *events, struct shunt_error *err)
{
    SSL *ssl = stream->tls;
    int rc, code;

    ERR_clear_error();
    rc = SSL_do_handshake(ssl);
    if (rc == 1) {
        /* OpenSSL would also be content with less. */
        if (tls_of(ssl)->key_bytes && !SSL_session_reused(ssl))
            return shunt_error_set(err, -EACCES, "it has not shown that it has the key");
        return 0;
    }
    *events = SSL_want_write(ssl) ? POLLOUT : POLLIN;
    code = result_of(ssl, rc);
    if (code == -EPROTO)
        code = handshake_failed(ssl, err);
    else if (code != -EAGAIN)
        code = shunt_error_set(err, code ? code : -ECONNRESET, "it hung up: %s",
                               strerror(code ? -code : ECONNRESET));
    ERR_clear_error();
    return code;
}

int shunt_tls_export(const struct shunt_stream *stream, const char *label, void *out, size_t bytes)
{
    int rc = SSL_export_keying_material(stream->tls, out, bytes, label, strlen(label), NULL, 0, 0);

    ERR_clear_error();
    return rc == 1 ? 0 : -EIO;
}

ssize_t shunt_tls_recv(struct ssl_st *ssl, void *bytes, size_t len)
{
    ssize_t n;

    ERR_clear_error();
    n = SSL_read(ssl, bytes, len > INT32_MAX ? INT32_MAX : (int)len);
    if (n <= 0)
        n = result_of(ssl, (int)n);
    ERR_clear_error();
    return n;
}

static ssize_t send_record(SSL *ssl, const void *bytes, size_t len)
{
    ssize_t n;

    ERR_clear_error();
    n = SSL_write(ssl, bytes, (int)len);
    if (n <= 0)
        n = result_of(ssl, (int)n);
    ERR_clear_error();
    return n == 0 ? -EPIPE : n;
}

/* A record's worth at a time. Small pieces go together: a record each would be a system call each.
 */
ssize_t shunt_tls_sendv(struct ssl_st *ssl, const struct iovec *iov, int count)
{
    unsigned char record[RECORD_MAX];
    size_t len = 0;

    while (count > 0 && iov->iov_len == 0)
        iov++, count--;
    if (count == 0)
        return 0;
    if (count == 1 || iov->iov_len >= RECORD_MAX)
        return send_record(ssl, iov->iov_base,
                           iov->iov_len < RECORD_MAX ? iov->iov_len : RECORD_MAX);
    for (int i = 0; i < count && len < RECORD_MAX; i++) {
        size_t part = iov[i].iov_len < RECORD_MAX - len ? iov[i].iov_len : RECORD_MAX - len;

        memcpy(record + len, iov[i].iov_base, part);
        len += part;
    }
    return send_record(ssl, record, len);
}

bool shunt_tls_pending(const struct ssl_st *ssl)
{
    /* Of the record under way; without read-ahead none lies behind it. A part of a record is
     * nothing that could be read. */
    return SSL_pending(ssl) > 0;
}
