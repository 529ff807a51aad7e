/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/hmac.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static void expect_hex(const uint8_t digest[32], const char *hex)
{
    char text[65];

    for (uint32_t i = 0; i < 32; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    cr_expect_str_eq(text, hex);
}

/* The examples of FIPS 180-4, and lengths around the end of a block. */
Test(hmac, digests)
{
    static const struct {
        const char *text, *digest;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    static const struct {
        size_t bytes;
        const char *digest;
    } as[] = {
        {55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"},
        {56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"},
        {63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34"},
        {64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"},
        {65, "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0"},
    };
    uint8_t digest[32];
    char text[65];

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        shunt_sha256(cases[i].text, strlen(cases[i].text), digest);
        expect_hex(digest, cases[i].digest);
    }
    memset(text, 'a', sizeof(text));
    for (uint32_t i = 0; i < sizeof(as) / sizeof(as[0]); i++) {
        shunt_sha256(text, as[i].bytes, digest);
        expect_hex(digest, as[i].digest);
    }
}

/* Keys of 32 bytes, against another implementation. */
Test(hmac, authenticates)
{
    uint8_t key[32], mac[32], data[200];

    for (uint32_t i = 0; i < 32; i++)
        key[i] = (uint8_t)i;
    for (uint32_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(3 * i);
    shunt_hmac(key, data, 0, mac);
    expect_hex(mac, "d38b42096d80f45f826b44a9d5607de72496a415d3f4a1a8c88e3bb9da8dc1cb");
    shunt_hmac(key, data, 16, mac);
    expect_hex(mac, "7594a8a673aedb17330c2ae823cec74a8dc8169b3c5d96154c96454071197c2a");
    shunt_hmac(key, data, 200, mac);
    expect_hex(mac, "ee7f2616d247c1730fd9b28a02dcf58253de7fb368a5e891cb84a6b1a9e18e30");
}

Test(hmac, compares_and_draws)
{
    uint8_t a[64] = {0}, b[64] = {0};

    for (uint32_t i = 0; i < sizeof(a); i++) {
        cr_assert(shunt_secret_equal(a, b, sizeof(a)));
        b[i] = 0x80;
        cr_assert_not(shunt_secret_equal(a, b, sizeof(a)));
        cr_assert(shunt_secret_equal(a, b, i));
        b[i] = 0;
    }
    cr_assert_eq(shunt_secret_draw(a, sizeof(a)), 0);
    cr_assert_eq(shunt_secret_draw(b, sizeof(b)), 0);
    cr_assert_not(shunt_secret_equal(a, b, sizeof(a)));
}
