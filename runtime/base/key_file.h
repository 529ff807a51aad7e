/* SPDX-License-Identifier: Apache-2.0
 *
 * Files with secrets: the rack's key, the private key of a certificate. One that others could read
 * or could have written is refused, since the rack would only look authenticated.
 */
#ifndef SHUNT_BASE_KEY_FILE_H
#define SHUNT_BASE_KEY_FILE_H

#include "runtime/base/error.h"

#define SHUNT_KEY_FILE_MIN 32u /* bytes of key */
#define SHUNT_KEY_FILE_MAX 64u

/* How to make one, for messages: a format with one %s for the file's name. */
#define SHUNT_KEY_FILE_REMEDY "make one with: (umask 077; openssl rand -hex 32 > %s)"

/* Reads a file that only its owner, who is this user or root, may read and write. Return: its bytes
 * (at most `max`), or -EACCES, -ENOENT and the like, -EFBIG, with the remedy. */
int64_t shunt_secret_read(const char *path, void *bytes, size_t max, struct shunt_error *err);

/* The key of a rack: hexadecimal digits, such as openssl rand prints. Return: bytes of `key`, from
 * SHUNT_KEY_FILE_MIN to SHUNT_KEY_FILE_MAX; or as above, or -EINVAL. */
int shunt_key_read(const char *path, uint8_t key[SHUNT_KEY_FILE_MAX], struct shunt_error *err);

#endif
