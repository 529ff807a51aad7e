/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/hmac.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define BLOCK_BYTES 64u

/* The first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t rounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

struct sha256 {
    uint32_t state[8];
    uint8_t block[BLOCK_BYTES];
    size_t held; /* bytes in `block` */
    uint64_t bytes;
};

static uint32_t rotate(uint32_t x, uint32_t by)
{
    return x >> by | x << (32 - by);
}

static uint32_t load_big(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void store_big(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t)(x >> 24);
    p[1] = (uint8_t)(x >> 16);
    p[2] = (uint8_t)(x >> 8);
    p[3] = (uint8_t)x;
}

static void compress(struct sha256 *h)
{
    uint32_t w[64], s[8];

    for (uint32_t i = 0; i < 16; i++)
        w[i] = load_big(h->block + 4 * i);
    for (uint32_t i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] +
               (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, h->state, sizeof(s));
    for (uint32_t i = 0; i < 64; i++) {
        uint32_t e = s[4], a = s[0];
        uint32_t t1 = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                      ((e & s[5]) ^ (~e & s[6])) + rounds[i] + w[i];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
                      ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

        memmove(s + 1, s, 7 * sizeof(s[0]));
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (uint32_t i = 0; i < 8; i++)
        h->state[i] += s[i];
}

static void begin(struct sha256 *h)
{
    /* The same of the square roots of the first eight. */
    *h = (struct sha256){.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
                                   0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

static void add(struct sha256 *h, const void *data, size_t bytes)
{
    const uint8_t *p = data;

    h->bytes += bytes;
    while (bytes > 0) {
        size_t part = BLOCK_BYTES - h->held < bytes ? BLOCK_BYTES - h->held : bytes;

        memcpy(h->block + h->held, p, part);
        h->held += part;
        p += part;
        bytes -= part;
        if (h->held == BLOCK_BYTES) {
            compress(h);
            h->held = 0;
        }
    }
}

static void end(struct sha256 *h, uint8_t digest[SHUNT_SHA256_BYTES])
{
    static const uint8_t padding[BLOCK_BYTES] = {0x80};
    uint64_t bits = h->bytes * 8;
    uint8_t length[8];

    store_big(length, (uint32_t)(bits >> 32));
    store_big(length + 4, (uint32_t)bits);
    add(h, padding, 1 + (BLOCK_BYTES + 55 - h->held) % BLOCK_BYTES);
    add(h, length, sizeof(length));
    for (uint32_t i = 0; i < 8; i++)
        store_big(digest + 4 * i, h->state[i]);
}

void shunt_sha256(const void *data, size_t bytes, uint8_t digest[SHUNT_SHA256_BYTES])
{
    struct sha256 h;

    begin(&h);
    add(&h, data, bytes);
    end(&h, digest);
}

void shunt_hmac(const uint8_t key[SHUNT_KEY_BYTES], const void *data, size_t bytes,
                uint8_t mac[SHUNT_SHA256_BYTES])
{
    uint8_t pad[BLOCK_BYTES], inner[SHUNT_SHA256_BYTES];
    struct sha256 h;

    for (uint32_t i = 0; i < BLOCK_BYTES; i++)
        pad[i] = (uint8_t)((i < SHUNT_KEY_BYTES ? key[i] : 0) ^ 0x36);
    begin(&h);
    add(&h, pad, sizeof(pad));
    add(&h, data, bytes);
    end(&h, inner);
    for (uint32_t i = 0; i < BLOCK_BYTES; i++)
        pad[i] ^= 0x36 ^ 0x5c;
    begin(&h);
    add(&h, pad, sizeof(pad));
    add(&h, inner, sizeof(inner));
    end(&h, mac);
}

bool shunt_secret_equal(const void *a, const void *b, size_t bytes)
{
    const volatile uint8_t *p = a, *q = b;
    uint8_t different = 0;

    for (size_t i = 0; i < bytes; i++)
        different |= (uint8_t)(p[i] ^ q[i]);
    return different == 0;
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
