/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/hmac.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

int shunt_sha256(const void *data, size_t bytes, uint8_t digest[SHUNT_SHA256_BYTES])
{
    return EVP_Digest(data, bytes, digest, NULL, EVP_sha256(), NULL) == 1 ? 0 : -ENOMEM;
}

int shunt_hmac(const uint8_t key[SHUNT_KEY_BYTES], const void *data, size_t bytes,
               uint8_t mac[SHUNT_SHA256_BYTES])
{
    return HMAC(EVP_sha256(), key, SHUNT_KEY_BYTES, data, bytes, mac, NULL) ? 0 : -ENOMEM;
}

bool shunt_secret_equal(const void *a, const void *b, size_t bytes)
{
    return CRYPTO_memcmp(a, b, bytes) == 0;
}

int shunt_secret_draw(void *bytes, size_t count)
{
    uint8_t *at = bytes;

    while (count > 0) {
        ssize_t n = getrandom(at, count, 0);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            at += n;
            count -= (size_t)n;
        }
    }
    return 0;
}
