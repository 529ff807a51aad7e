/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's door to the header reader and the tokenizer:
 *
 *     CC=clang meson setup build-fuzz -Dfuzzers=true -Db_sanitize=address,undefined \
 *         -Db_lundef=false -Dc_args=-fsanitize=fuzzer-no-link
 *     build-fuzz/tests/fuzz-gguf -max_len=65536 CORPUS
 *
 * A good start of a corpus is the first 64 KiB of the demo model. What is not in the input reads as
 * zeros, so that tensors may lie somewhere.
 */
#include <stdlib.h>
#include <string.h>

#include "runtime/model/tokenizer.h"

#define FILE_BYTES (16ull << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size;
};

static int read_input(void *ctx, uint64_t off, size_t len, void *dst, struct shunt_error *err)
{
    const struct input *in = ctx;

    (void)err;
    memset(dst, 0, len);
    if (off < in->size)
        memcpy(dst, in->data + off, in->size - off < len ? in->size - off : len);
    return 0;
}

static void try_tokenizer(const struct shunt_gguf *gguf)
{
    static const char text[] = "It's  a <|im_end|> e\xcc\x81\xcc\x96 42\n\n caf\xc3\xa9";
    struct shunt_tokenizer *t;
    char piece[SHUNT_TOKEN_BYTES_MAX];
    int32_t ids[64];
    int64_t count;

    if (shunt_tokenizer_open(&t, gguf, "fuzz", NULL))
        return;
    count =
        shunt_tokenizer_encode(t, text, sizeof(text) - 1, SHUNT_TOKENIZE_SPECIAL, ids, 64, NULL);
    for (int64_t i = 0; i < count && i < 64; i++)
        if (shunt_tokenizer_decode(t, ids[i], true, piece, sizeof(piece)) < 0)
            abort();
    shunt_tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {.data = data, .size = size};
    struct shunt_gguf_source source = {.read = read_input,
                                       .ctx = &in,
                                       .bytes = size < FILE_BYTES ? FILE_BYTES : size,
                                       .path = "fuzz"};
    struct shunt_gguf gguf;

    if (shunt_gguf_parse(&gguf, &source, NULL))
        return 0;
    try_tokenizer(&gguf);
    shunt_gguf_fini(&gguf);
    return 0;
}
