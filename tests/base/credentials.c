/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/base/credentials.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DAY_S (24 * 3600L)

static void need(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        abort();
    }
}

static const char *new_path(struct credential_files *f, const char *name)
{
    char *path = f->paths[f->path_count++];

    strcpy(stpcpy(stpcpy(path, f->folder), "/"), name);
    return path;
}

const char *credentials_write(struct credential_files *f, const char *name, const char *text)
{
    const char *path = new_path(f, name);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);

    need(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(fd);
    return path;
}

static const char *write_key(struct credential_files *f, const char *name, EVP_PKEY *key)
{
    const char *path = credentials_write(f, name, "");
    FILE *file = fopen(path, "we");

    need(file && PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), path);
    fclose(file);
    return path;
}

static const char *write_encrypted(struct credential_files *f, const char *name, EVP_PKEY *key,
                                   int (*write)(BIO *, const EVP_PKEY *, const EVP_CIPHER *,
                                                const unsigned char *, int, pem_password_cb *,
                                                void *))
{
    const char *path = credentials_write(f, name, "");
    BIO *file = BIO_new_file(path, "w");

    need(file &&
             write(file, key, EVP_aes_128_cbc(), (const unsigned char *)"secret", 6, NULL, NULL),
         path);
    BIO_free(file);
    return path;
}

static const char *write_cert(struct credential_files *f, const char *name, X509 *cert)
{
    const char *path = credentials_write(f, name, "");
    FILE *file = fopen(path, "we");

    need(file && PEM_write_X509(file, cert), path);
    fclose(file);
    return path;
}

struct authority {
    EVP_PKEY *key;
    X509 *cert;
    bool is_named; /* what it signs names its key, and not only itself */
};

static void add_extension(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *extension;

    X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
    extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    need(extension && X509_add_ext(x, extension, -1) == 1, "extension");
    X509_EXTENSION_free(extension);
}

/* Signed by `by`, or by itself; valid from a day ago until `end_s` from now. */
static X509 *make_cert(const char *name, EVP_PKEY *key, const struct authority *by, long end_s)
{
    static long serial = 1;
    X509 *x = X509_new();
    X509_NAME *subject = X509_get_subject_name(x);

    need(x && subject, "certificate");
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
    X509_gmtime_adj(X509_getm_notBefore(x), -DAY_S);
    X509_gmtime_adj(X509_getm_notAfter(x), end_s);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    if (!by) {
        BASIC_CONSTRAINTS is_authority = {.ca = 0xff};

        need(X509_add1_ext_i2d(x, NID_basic_constraints, &is_authority, 1, 0) == 1, "extension");
        add_extension(x, x, NID_subject_key_identifier, "hash");
    }
    if (by && by->is_named)
        add_extension(x, by->cert, NID_authority_key_identifier, "keyid:always");
    X509_set_issuer_name(x, by ? X509_get_subject_name(by->cert) : subject);
    need(X509_sign(x, by ? by->key : key, EVP_sha256()) > 0, "signature");
    return x;
}

static struct authority make_authority(const char *name)
{
    struct authority a = {.key = EVP_EC_gen("P-256")};

    need(a.key, "key");
    a.cert = make_cert(name, a.key, NULL, DAY_S);
    return a;
}

static const char *issue(struct credential_files *f, const char *name, EVP_PKEY *key,
                         const struct authority *by, long end_s)
{
    X509 *cert = make_cert(name, key, by, end_s);
    const char *path = write_cert(f, name, cert);

    X509_free(cert);
    return path;
}

void credentials_make(struct credential_files *f)
{
    struct authority ca = make_authority("ca"), other = make_authority("other-ca");
    struct authority renewed = make_authority("ca");
    EVP_PKEY *key = EVP_EC_gen("P-256"), *second = EVP_EC_gen("P-256");

    memset(f, 0, sizeof(*f));
    strcpy(f->folder, "/tmp/shunt-test-XXXXXX");
    need(mkdtemp(f->folder), "folder");
    f->key = credentials_write(
        f, "key", "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF\n");
    f->other_key = credentials_write(
        f, "other-key", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeefe\n");
    f->ca = write_cert(f, "ca.pem", ca.cert);
    f->other_ca = write_cert(f, "other-ca.pem", other.cert);
    f->cert_key = write_key(f, "cert.key", key);
    f->second_key = write_key(f, "second.key", second);
    f->encrypted_keys[0] = write_encrypted(f, "pkcs8.key", key, PEM_write_bio_PrivateKey);
    f->encrypted_keys[1] = write_encrypted(f, "old.key", key, PEM_write_bio_PrivateKey_traditional);
    f->cert = issue(f, "cert.pem", key, &ca, DAY_S);
    f->second_cert = issue(f, "second.pem", second, &ca, DAY_S);
    f->expired_cert = issue(f, "expired.pem", key, &ca, -3600);
    f->strange_cert = issue(f, "strange.pem", key, &other, DAY_S);
    f->renewed_bare_cert = issue(f, "renewed-bare.pem", key, &renewed, DAY_S);
    renewed.is_named = true;
    f->renewed_cert = issue(f, "renewed.pem", key, &renewed, DAY_S);
    EVP_PKEY_free(key);
    EVP_PKEY_free(second);
    EVP_PKEY_free(ca.key);
    EVP_PKEY_free(other.key);
    EVP_PKEY_free(renewed.key);
    X509_free(ca.cert);
    X509_free(other.cert);
    X509_free(renewed.cert);
}

void credentials_remove(struct credential_files *f)
{
    for (unsigned i = 0; i < f->path_count; i++)
        unlink(f->paths[i]);
    rmdir(f->folder);
}
