/* SPDX-License-Identifier: Apache-2.0
 *
 * Credentials for tests, right and wrong: files in a folder of their own, made anew by each test
 * that asks. No Criterion: drivers use it as well.
 */
#ifndef SHUNT_TESTS_CREDENTIALS_H
#define SHUNT_TESTS_CREDENTIALS_H

#include "runtime/base/tls.h"

struct credential_files {
    char folder[64];
    char paths[16][96];
    unsigned path_count;
    const char *key, *other_key; /* key files */
    const char *ca, *other_ca;
    const char *cert, *cert_key;          /* of ca */
    const char *second_cert, *second_key; /* of ca as well */
    const char *expired_cert;             /* of cert_key */
    const char *strange_cert;             /* of cert_key, by other_ca */
    const char *encrypted_keys[2];        /* cert_key with a passphrase: PKCS#8, and as of old */
    /* Of cert_key, by an authority with the name of ca and another key: the certificate names the
     * key that it was signed with, or does not. */
    const char *renewed_cert, *renewed_bare_cert;
};

/* The program ends when they cannot be made. */
void credentials_make(struct credential_files *files);

/* Removes the folder. */
void credentials_remove(struct credential_files *files);

/* A file in the folder, readable by its owner only. Return: its path. */
const char *credentials_write(struct credential_files *files, const char *name, const char *text);

static inline struct shunt_credentials credentials_key(const struct credential_files *f)
{
    return (struct shunt_credentials){.key = f->key};
}

static inline struct shunt_credentials credentials_cert(const struct credential_files *f)
{
    return (struct shunt_credentials){.cert = f->cert, .cert_key = f->cert_key, .ca = f->ca};
}

#endif
