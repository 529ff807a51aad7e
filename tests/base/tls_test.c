/* SPDX-License-Identifier: Apache-2.0
 *
 * Two ends of a socket pair in one thread, with credentials that fit and such that do not.
 */
#include "runtime/base/tls.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/hmac.h"
#include "runtime/base/key_file.h"
#include "tests/base/credentials.h"
#include "tests/random.h"

static struct credential_files files;

static void make_files(void)
{
    credentials_make(&files);
}

static void remove_files(void)
{
    credentials_remove(&files);
}

TestSuite(tls, .init = make_files, .fini = remove_files, .timeout = 60);

/* Side 0 has connected, side 1 has accepted. */
struct pair {
    struct shunt_tls *tls[2];
    struct shunt_stream ends[2];
    int rc[2];
    struct shunt_error err[2];
};

static struct shunt_tls *open_tls(struct shunt_credentials c)
{
    struct shunt_tls *tls = NULL;
    struct shunt_error err;

    cr_assert_eq(shunt_tls_open(&tls, &c, &err), 0, "%s", err.text);
    return tls;
}

static void shake(struct pair *p)
{
    p->rc[0] = p->rc[1] = -EAGAIN;
    for (uint32_t turn = 0; turn < 50; turn++)
        for (uint32_t s = 0; s < 2; s++) {
            short events = 0;

            if (p->rc[s] != -EAGAIN)
                continue;
            p->rc[s] = shunt_tls_handshake(&p->ends[s], &events, &p->err[s]);
            cr_assert(p->rc[s] != -EAGAIN || events);
        }
}

static void connect_pair(struct pair *p, struct shunt_credentials a, struct shunt_credentials b)
{
    int fds[2];

    memset(p, 0, sizeof(*p));
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    p->tls[0] = open_tls(a);
    p->tls[1] = open_tls(b);
    for (uint32_t s = 0; s < 2; s++) {
        p->ends[s] = (struct shunt_stream){.fd = fds[s]};
        cr_assert_eq(
            shunt_tls_begin(p->tls[s], &p->ends[s], s ? SHUNT_TLS_ACCEPTED : SHUNT_TLS_CONNECTED),
            0);
    }
    shake(p);
}

static void disconnect(struct pair *p)
{
    for (uint32_t s = 0; s < 2; s++) {
        shunt_tls_close(p->tls[s]); /* before its stream: that goes on */
        shunt_stream_close(&p->ends[s]);
    }
    cr_expect_eq(ERR_peek_error(), 0, "errors of ours are left to the caller's OpenSSL");
}

static void expect_talk(struct pair *p)
{
    for (uint32_t s = 0; s < 2; s++) {
        char got[16] = "";

        cr_assert_eq(shunt_stream_send(&p->ends[s], "row", 4), 4);
        cr_assert_eq(shunt_stream_recv(&p->ends[!s], got, sizeof(got)), 4);
        cr_assert_str_eq(got, "row");
        cr_assert_eq(shunt_stream_recv(&p->ends[!s], got, sizeof(got)), -EAGAIN);
    }
}

Test(tls, joins_those_with_the_same_key)
{
    uint8_t a[32], b[32], c[32];
    struct pair p;

    connect_pair(&p, credentials_key(&files), credentials_key(&files));
    cr_assert(p.rc[0] == 0 && p.rc[1] == 0, "%s; %s", p.err[0].text, p.err[1].text);
    cr_expect_str_eq(SSL_get_version(p.ends[0].tls), "TLSv1.3");
    cr_expect_neq(SSL_get_negotiated_group(p.ends[0].tls), 0, "no fresh secret");
    expect_talk(&p);
    cr_expect_eq(shunt_tls_export(&p.ends[0], "EXPORTER-shunt-a", a, 32), 0);
    cr_expect_eq(shunt_tls_export(&p.ends[1], "EXPORTER-shunt-a", b, 32), 0);
    cr_expect_eq(shunt_tls_export(&p.ends[1], "EXPORTER-shunt-b", c, 32), 0);
    cr_expect(memcmp(a, b, 32) == 0 && memcmp(b, c, 32) != 0);
    disconnect(&p);
    connect_pair(&p, credentials_key(&files), credentials_key(&files));
    cr_expect_eq(shunt_tls_export(&p.ends[0], "EXPORTER-shunt-a", b, 32), 0);
    cr_expect(memcmp(a, b, 32) != 0, "another session has the same secret");
    disconnect(&p);
}

Test(tls, joins_those_with_certificates_of_one_authority)
{
    struct shunt_credentials second = {
        .cert = files.second_cert, .cert_key = files.second_key, .ca = files.ca};
    struct pair p;

    connect_pair(&p, credentials_cert(&files), second);
    cr_assert(p.rc[0] == 0 && p.rc[1] == 0, "%s; %s", p.err[0].text, p.err[1].text);
    expect_talk(&p);
    disconnect(&p);
}

/* Where one side is turned away: who sees what. `says`: for the side that refuses. */
static void expect_refused(struct shunt_credentials a, struct shunt_credentials b, uint32_t who,
                           const char *says)
{
    struct pair p;
    char byte;

    connect_pair(&p, a, b);
    cr_expect_eq(p.rc[who], -EACCES, "%d %s", p.rc[who], p.err[who].text);
    cr_expect(strstr(p.err[who].text, says), "no '%s': %s", says, p.err[who].text);
    /* The other is told, at the latest when it reads: a client ends its handshake first. */
    if (p.rc[!who] == 0)
        cr_expect_eq(shunt_stream_recv(&p.ends[!who], &byte, 1), -EPROTO);
    else
        cr_expect_eq(p.rc[!who], -ECONNREFUSED, "%d %s", p.rc[!who], p.err[!who].text);
    disconnect(&p);
}

Test(tls, refuses_another_key)
{
    struct shunt_credentials other = {.key = files.other_key};

    expect_refused(credentials_key(&files), other, 1, "another key");
    expect_refused(other, credentials_key(&files), 1, "another key");
}

Test(tls, refuses_certificates_that_are_not_the_racks)
{
    struct shunt_credentials expired = credentials_cert(&files), strange = expired, ours = expired;

    expired.cert = files.expired_cert;
    strange.cert = files.strange_cert;
    expect_refused(ours, expired, 0, "expired");
    expect_refused(expired, ours, 1, "expired");
    expect_refused(ours, strange, 0, "its certificate: ");
    expect_refused(strange, ours, 1, "its certificate: ");
    ours.ca = files.other_ca;
    expect_refused(ours, credentials_cert(&files), 0, "its certificate: ");
}

Test(tls, tells_a_renewed_authority_from_a_strange_one)
{
    struct shunt_credentials ours = credentials_cert(&files), renewed = ours;

    for (uint32_t i = 0; i < 2; i++) {
        renewed.cert = i ? files.renewed_cert : files.renewed_bare_cert;
        expect_refused(ours, renewed, 0, "another key (was it renewed?); give every node the same");
        expect_refused(renewed, ours, 1, "another key (was it renewed?); give every node the same");
    }
}

Test(tls, refuses_a_key_where_certificates_are_asked_for_and_the_other_way_round)
{
    struct pair p;

    for (uint32_t i = 0; i < 2; i++) {
        struct shunt_credentials key = credentials_key(&files), cert = credentials_cert(&files);

        connect_pair(&p, i ? key : cert, i ? cert : key);
        cr_expect(p.rc[0] < 0 && p.rc[1] < 0, "%d %d", p.rc[0], p.rc[1]);
        disconnect(&p);
    }
}

/* ---- clients of another make */

struct client {
    const char *identity; /* NULL: offers no key */
    const char *key;
    int version;
};

static const struct client *client;

static int offer_something(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len,
                           SSL_SESSION **session)
{
    static const unsigned char suite[2] = {0x13, 0x01};
    uint8_t key[SHUNT_KEY_FILE_MAX];
    int bytes = shunt_key_read(client->key, key, NULL);

    (void)md;
    *id = (const unsigned char *)client->identity;
    *id_len = strlen(client->identity);
    *session = SSL_SESSION_new();
    return bytes > 0 && SSL_SESSION_set1_master_key(*session, key, (size_t)bytes) &&
           SSL_SESSION_set_cipher(*session, SSL_CIPHER_find(ssl, suite)) &&
           SSL_SESSION_set_protocol_version(*session, TLS1_3_VERSION);
}

/* What the server sends to such a client. Return: bytes; its verdict in p->rc[1]. */
static ssize_t answer_to(const struct client *c, struct pair *p, uint8_t *answer, size_t room)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(ctx);
    short events;
    ssize_t n;
    int fds[2];

    memset(p, 0, sizeof(*p));
    client = c;
    if (c->identity)
        SSL_set_psk_use_session_callback(ssl, offer_something);
    SSL_set_min_proto_version(ssl, c->version);
    SSL_set_max_proto_version(ssl, c->version);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    p->tls[1] = open_tls(credentials_key(&files));
    p->ends[0] = SHUNT_STREAM_NONE;
    p->ends[1] = (struct shunt_stream){.fd = fds[1]};
    cr_assert_eq(shunt_tls_begin(p->tls[1], &p->ends[1], SHUNT_TLS_ACCEPTED), 0);
    SSL_set_fd(ssl, fds[0]);
    SSL_connect(ssl);
    p->rc[1] = shunt_tls_handshake(&p->ends[1], &events, &p->err[1]);
    n = recv(fds[0], answer, room, 0);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    ERR_clear_error();
    close(fds[0]);
    return n;
}

Test(tls, answers_an_unknown_name_like_a_wrong_key)
{
    const struct client clients[] = {{"shunt", files.other_key, TLS1_3_VERSION},
                                     {"nobody", files.key, TLS1_3_VERSION},
                                     {"nobody", files.other_key, TLS1_3_VERSION},
                                     {"shun", files.key, TLS1_3_VERSION},
                                     {"shunt2", files.key, TLS1_3_VERSION}};
    uint8_t answers[5][512];
    ssize_t lens[5];

    for (uint32_t i = 0; i < 5; i++) {
        struct pair p;

        lens[i] = answer_to(&clients[i], &p, answers[i], sizeof(answers[i]));
        cr_expect_eq(p.rc[1], -EACCES, "%u: %d %s", i, p.rc[1], p.err[1].text);
        cr_expect(strstr(p.err[1].text, "another key"), "%s", p.err[1].text);
        disconnect(&p);
        cr_assert_eq(lens[i], 7, "client %u: an alert and nothing else, not %zd bytes", i, lens[i]);
        cr_expect_eq(memcmp(answers[i], answers[0], 7), 0, "client %u", i);
    }
}

Test(tls, gives_nothing_to_a_client_without_a_key)
{
    const struct client clients[] = {{NULL, NULL, TLS1_3_VERSION}, {NULL, NULL, TLS1_2_VERSION}};

    for (uint32_t i = 0; i < 2; i++) {
        uint8_t answer[512];
        struct pair p;
        ssize_t n = answer_to(&clients[i], &p, answer, sizeof(answer));

        cr_expect(p.rc[1] == -EACCES || p.rc[1] == -EPROTO, "%d %s", p.rc[1], p.err[1].text);
        cr_expect_eq(n, 7, "%u: an alert and nothing else, not %zd bytes", i, n);
        cr_expect_eq(answer[0], 21);
        disconnect(&p);
    }
}

/* Any bytes instead of a handshake, all at once or in pieces, with a right beginning or not. */
Test(tls, survives_any_bytes)
{
    for (uint64_t seed = 1; seed <= 400; seed++) {
        uint64_t random = seed;
        uint8_t bytes[600];
        size_t at = 0;
        struct pair p;
        int fds[2];

        memset(&p, 0, sizeof(p));
        cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
        p.tls[0] = open_tls(credentials_key(&files));
        p.ends[0] = (struct shunt_stream){.fd = fds[0]};
        p.ends[1] = SHUNT_STREAM_NONE;
        cr_assert_eq(shunt_tls_begin(p.tls[0], &p.ends[0],
                                     seed % 2 ? SHUNT_TLS_ACCEPTED : SHUNT_TLS_CONNECTED),
                     0);
        random_fill(&random, bytes, sizeof(bytes));
        if (seed % 3) {
            memcpy(bytes, "\x16\x03\x01\x01\x20\x01\0\x01\x1c\x03\x03", 11);
            bytes[0] = seed % 7 ? 22 : 23;
            bytes[5] = seed % 5 ? 1 : 2;
        }
        p.rc[0] = -EAGAIN;
        while (at < sizeof(bytes) && p.rc[0] == -EAGAIN) {
            size_t part = 1 + random_below(&random, 300);
            short events;

            part = part > sizeof(bytes) - at ? sizeof(bytes) - at : part;
            cr_assert_eq(send(fds[1], bytes + at, part, MSG_NOSIGNAL), (ssize_t)part);
            at += part;
            p.rc[0] = shunt_tls_handshake(&p.ends[0], &events, &p.err[0]);
        }
        cr_assert_neq(p.rc[0], 0, "seed %lu", seed);
        close(fds[1]);
        disconnect(&p);
    }
}

/* ---- a stream under load */

/* More than the socket takes, in pieces of all sizes: what was refused is offered again. */
Test(tls, carries_what_the_socket_does_not_take_at_once)
{
    static uint8_t sent[3 << 20], got[sizeof(sent)];
    uint64_t random = 9;
    size_t out = 0, in = 0, refused = 0, count = 0;
    struct pair p;

    random_fill(&random, sent, sizeof(sent));
    connect_pair(&p, credentials_key(&files), credentials_key(&files));
    cr_assert(p.rc[0] == 0 && p.rc[1] == 0);
    while (in < sizeof(sent)) {
        ssize_t n = 1;

        while (out < sizeof(sent) && n > 0) {
            struct iovec iov[2];

            if (count == 0)
                count = 1 + random_below(&random, 50000);
            count = count > sizeof(sent) - out ? sizeof(sent) - out : count;
            iov[0] = (struct iovec){sent + out, count < 32 ? count : 32};
            iov[1] = (struct iovec){sent + out + iov[0].iov_len, count - iov[0].iov_len};
            n = shunt_stream_sendv(&p.ends[0], iov, 2);
            cr_assert(n > 0 || n == -EAGAIN, "%zd", n);
            refused += n < 0;
            out += n > 0 ? (size_t)n : 0;
            count -= n > 0 ? (size_t)n : 0;
        }
        for (uint32_t i = random_below(&random, 30); i > 0; i--) {
            n = shunt_stream_recv(&p.ends[1], got + in, 1 + random_below(&random, 20000));
            cr_assert(n > 0 || n == -EAGAIN, "%zd", n);
            in += n > 0 ? (size_t)n : 0;
            if (n < 0)
                cr_assert_not(shunt_stream_pending(&p.ends[1]));
        }
    }
    cr_expect_gt(refused, 0);
    cr_expect_eq(memcmp(sent, got, sizeof(sent)), 0);
    disconnect(&p);
}

Test(tls, knows_what_poll_does_not_see)
{
    char bytes[1000] = {0};
    struct pair p;

    connect_pair(&p, credentials_key(&files), credentials_key(&files));
    cr_assert_eq(shunt_stream_send(&p.ends[0], bytes, sizeof(bytes)), sizeof(bytes));
    cr_expect_not(shunt_stream_pending(&p.ends[1])); /* it lies in the socket */
    cr_assert_eq(shunt_stream_recv(&p.ends[1], bytes, 1), 1);
    cr_expect(shunt_stream_pending(&p.ends[1]));
    cr_assert_eq(shunt_stream_recv(&p.ends[1], bytes, sizeof(bytes)), sizeof(bytes) - 1);
    cr_expect_not(shunt_stream_pending(&p.ends[1]));
    disconnect(&p);
}

/* Without a signal; Criterion would call it a crash. */
Test(tls, says_that_the_peer_is_gone)
{
    char byte = 0;
    struct pair p;
    ssize_t n = 1;

    signal(SIGPIPE, SIG_DFL);
    connect_pair(&p, credentials_key(&files), credentials_key(&files));
    shunt_stream_close(&p.ends[1]);
    cr_expect_eq(shunt_stream_recv(&p.ends[0], &byte, 1), 0);
    for (uint32_t i = 0; i < 10 && n > 0; i++)
        n = shunt_stream_send(&p.ends[0], &byte, 1);
    cr_expect(n == -EPIPE || n == -ECONNRESET, "%zd", n);
    disconnect(&p);
}

/* A bit of a record changed on its way. */
Test(tls, notices_what_was_changed)
{
    uint8_t record[256];
    struct pair p;
    ssize_t n;

    connect_pair(&p, credentials_key(&files), credentials_key(&files));
    cr_assert_eq(shunt_stream_send(&p.ends[0], "row", 4), 4);
    n = recv(p.ends[1].fd, record, sizeof(record), 0);
    cr_assert_gt(n, 5);
    record[n - 1] ^= 1;
    cr_assert_eq(send(p.ends[0].fd, record, (size_t)n, 0), n);
    cr_expect_eq(shunt_stream_recv(&p.ends[1], record, sizeof(record)), -EPROTO);
    disconnect(&p);
}

/* ---- files */

static void expect_no_context(struct shunt_credentials c, int code, const char *a, const char *b)
{
    struct shunt_tls *tls = NULL;
    struct shunt_error err = {0};

    cr_expect_eq(shunt_tls_open(&tls, &c, &err), code, "%d %s", err.code, err.text);
    cr_expect(strstr(err.text, a) && strstr(err.text, b), "no '%s', '%s': %s", a, b, err.text);
    cr_expect_null(tls);
    cr_expect_eq(ERR_peek_error(), 0);
}

Test(tls, refuses_files_that_do_not_belong_together)
{
    struct shunt_credentials c = credentials_cert(&files);

    c.key = files.key;
    expect_no_context(c, -EINVAL, "--key-file", "which?");
    c = credentials_cert(&files);
    c.ca = NULL;
    expect_no_context(c, -EINVAL, "--ca", "belong together");
    c = credentials_cert(&files);
    c.cert_key = files.second_key;
    expect_no_context(c, -EINVAL, files.second_key, "is not the private key of");
    c = credentials_cert(&files);
    c.cert = files.key;
    expect_no_context(c, -EINVAL, files.key, "no PEM file");
    c = credentials_cert(&files);
    c.cert_key = files.key;
    expect_no_context(c, -EINVAL, files.key, "no PEM file");
    for (uint32_t i = 0; i < 2; i++) {
        c.cert_key = files.encrypted_keys[i];
        expect_no_context(c, -EINVAL, files.encrypted_keys[i], "openssl pkey -in");
    }
    c = credentials_cert(&files);
    c.ca = "/nowhere/ca.pem";
    expect_no_context(c, -ENOENT, "/nowhere/ca.pem", "No such file");
    c = credentials_cert(&files);
    cr_assert_eq(chmod(files.cert_key, 0644), 0);
    expect_no_context(c, -EACCES, files.cert_key, "chmod 600");
    expect_no_context((struct shunt_credentials){.key = "/nowhere/key"}, -ENOENT, "/nowhere/key",
                      "openssl rand -hex 32");
}
