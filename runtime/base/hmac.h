/* SPDX-License-Identifier: Apache-2.0
 *
 * SHA-256, HMAC-SHA256 and what else goes with keys, by OpenSSL.
 */
#ifndef SHUNT_BASE_HMAC_H
#define SHUNT_BASE_HMAC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHUNT_SHA256_BYTES 32u
#define SHUNT_KEY_BYTES    32u

/* Return: 0 or -ENOMEM. */
int shunt_sha256(const void *data, size_t bytes, uint8_t digest[SHUNT_SHA256_BYTES]);

int shunt_hmac(const uint8_t key[SHUNT_KEY_BYTES], const void *data, size_t bytes,
               uint8_t mac[SHUNT_SHA256_BYTES]);

/* Compares in a time that does not depend on where they differ. */
bool shunt_secret_equal(const void *a, const void *b, size_t bytes);

/* Bytes that nobody can guess. Return: 0 or a negative errno value. */
int shunt_secret_draw(void *bytes, size_t count);

#endif
