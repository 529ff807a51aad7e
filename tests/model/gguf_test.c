/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/gguf.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/weight_type.h"
#include "tests/model/gguf_writer.h"

#define DATA_BYTES 1024u /* of the small file */
#define MUTATIONS  20000u

/* Where the fields of the small file lie. */
enum mark {
    MAGIC,
    VERSION,
    TENSOR_COUNT,
    KV_COUNT,
    KEY_LEN,
    KEY_BYTE,
    VALUE_TYPE,
    STRING_LEN,
    ALIGNMENT_TYPE,
    ALIGNMENT,
    BOOL_KEY_BYTE,
    BOOL,
    ELEMENT_TYPE,
    ARRAY_COUNT,
    ELEMENT_LEN,
    TENSOR_NAME_LEN,
    TENSOR_NAME_BYTE,
    DIM_COUNT,
    DIM_0,
    DIM_1,
    TENSOR_TYPE,
    TENSOR_OFF,
    SECOND_NAME_BYTE,
    SECOND_OFF,
    MARKS
};

struct small {
    struct gguf_writer w;
    size_t at[MARKS];
    size_t header_len;
};

static void write_small(struct small *s)
{
    static const uint64_t matrix[] = {64, 4}, vector[] = {32};
    static const char *const words[] = {"one", "two", "", "three"};
    struct gguf_writer *w = &s->w;

    gguf_begin(w);
    s->at[MAGIC] = 0;
    s->at[VERSION] = 4;
    s->at[TENSOR_COUNT] = 8;
    s->at[KV_COUNT] = 16;
    s->at[KEY_LEN] = w->len;
    s->at[KEY_BYTE] = w->len + 8;
    s->at[VALUE_TYPE] = w->len + 8 + strlen("general.name");
    s->at[STRING_LEN] = s->at[VALUE_TYPE] + 4;
    gguf_string(w, "general.name", "a small file");
    gguf_u32(w, "general.alignment", 64);
    s->at[ALIGNMENT_TYPE] = w->len - 8;
    s->at[ALIGNMENT] = w->len - 4;
    s->at[BOOL_KEY_BYTE] = w->len + 8;
    gguf_bool(w, "test.bool", true);
    s->at[BOOL] = w->len - 1;
    gguf_f32(w, "test.float", 0.5f);
    gguf_array(w, "test.words", SHUNT_GGUF_STRING, 4);
    s->at[ELEMENT_TYPE] = w->len - 12;
    s->at[ARRAY_COUNT] = w->len - 8;
    s->at[ELEMENT_LEN] = w->len;
    for (int i = 0; i < 4; i++)
        gguf_put_string(w, words[i]);
    s->at[TENSOR_NAME_LEN] = w->len;
    s->at[TENSOR_NAME_BYTE] = w->len + 8;
    gguf_tensor(w, "a.weight", 8, 2, matrix, 0); /* Q8_0: 4 rows of 2 blocks of 34 */
    s->at[TENSOR_OFF] = w->len - 8;
    s->at[TENSOR_TYPE] = w->len - 12;
    s->at[DIM_1] = w->len - 20;
    s->at[DIM_0] = w->len - 28;
    s->at[DIM_COUNT] = w->len - 32;
    s->at[SECOND_NAME_BYTE] = w->len + 8;
    gguf_tensor(w, "b.weight", 0, 1, vector, 320);
    s->at[SECOND_OFF] = w->len - 8;
    s->header_len = w->len;
    gguf_end(w, 64, DATA_BYTES);
}

static int parse(struct shunt_gguf *g, const void *data, size_t len, struct shunt_error *err)
{
    struct gguf_memory memory;
    struct shunt_gguf_source source = gguf_source(&memory, data, len);

    return shunt_gguf_parse(g, &source, err);
}

Test(gguf, reads_a_small_file)
{
    struct small s;
    struct shunt_gguf g;
    struct shunt_gguf_string name;
    const struct shunt_gguf_kv *words;
    const struct shunt_gguf_tensor *a, *b;
    const unsigned char *cursor;
    struct shunt_error err;
    uint32_t align;
    float f;
    bool yes = false;

    write_small(&s);
    cr_assert_eq(parse(&g, s.w.data, s.w.len, &err), 0, "%s", err.text);
    cr_expect_eq(g.kv_count, 5);
    cr_expect_eq(g.tensor_count, 2);
    cr_expect_eq(g.header_bytes, s.header_len);
    cr_expect_eq(g.data_off, s.w.len - DATA_BYTES);
    cr_assert_eq(shunt_gguf_get_string(&g, "general.name", &name), 0);
    cr_expect(name.len == 12 && !memcmp(name.data, "a small file", 12));
    cr_assert_eq(shunt_gguf_get_u32(&g, "general.alignment", &align), 0);
    cr_expect_eq(align, 64);
    cr_assert_eq(shunt_gguf_get_f32(&g, "test.float", &f), 0);
    cr_expect(f == 0.5f);
    cr_assert_eq(shunt_gguf_get_bool(&g, "test.bool", &yes), 0);
    cr_expect(yes);
    words = shunt_gguf_find(&g, "test.words");
    cr_assert(words && words->type == SHUNT_GGUF_ARRAY && words->element == SHUNT_GGUF_STRING);
    cr_expect_eq(words->count, 4);
    cursor = words->data;
    name = shunt_gguf_next_string(&cursor);
    cr_expect(name.len == 3 && !memcmp(name.data, "one", 3));
    shunt_gguf_next_string(&cursor);
    cr_expect_eq(shunt_gguf_next_string(&cursor).len, 0);
    name = shunt_gguf_next_string(&cursor);
    cr_expect(name.len == 5 && !memcmp(name.data, "three", 5));
    a = shunt_gguf_find_tensor(&g, "a.weight");
    b = shunt_gguf_find_tensor(&g, "b.weight");
    cr_assert(a && b);
    cr_expect(a->dims[0] == 64 && a->dims[1] == 4 && a->dims[2] == 1 && a->dims[3] == 1);
    cr_expect(a->off == g.data_off && a->bytes == 4 * 2 * 34);
    cr_expect(b->off == g.data_off + 320 && b->bytes == 128);
    cr_expect_null(shunt_gguf_find(&g, "general"));
    cr_expect_null(shunt_gguf_find_tensor(&g, ""));
    shunt_gguf_fini(&g);
    shunt_gguf_fini(&g);
    gguf_free(&s.w);
}

/* ---- wrong fields */

Test(gguf, names_what_is_wrong_with_a_field)
{
    static const struct {
        const char *name;
        enum mark mark;
        unsigned width;
        uint64_t value;
        int code;
        const char *text;
    } cases[] = {
        {"magic", MAGIC, 1, 'g', -EBADMSG, "begins with 67 47 55 46, not with \"GGUF\""},
        {"old version", VERSION, 4, 2, -ENOTSUP, "GGUF version 2; this version reads 3: convert"},
        {"new version", VERSION, 4, 4, -ENOTSUP, "GGUF version 4; this version reads 3: a newer"},
        {"big-endian", VERSION, 4, 0x03000000, -ENOTSUP, "big-endian"},
        {"tensor count", TENSOR_COUNT, 8, 1u << 19, -EBADMSG, "524288 tensors, more than the file"},
        {"wild tensor count", TENSOR_COUNT, 8, 1ull << 61, -EBADMSG,
         "tensors, more than any model"},
        {"one tensor too many", TENSOR_COUNT, 8, 3, -EBADMSG, "tensor 3 of 3"},
        {"key count", KV_COUNT, 8, 60000, -EBADMSG, "60000 keys, more than the file"},
        {"wild key count", KV_COUNT, 8, UINT64_MAX, -EBADMSG, "keys, more than any model"},
        {"one key too many", KV_COUNT, 8, 6, -EBADMSG, "tensor 1 of 2"},
        {"empty key", KEY_LEN, 8, 0, -EBADMSG, "key 1 of 5 at byte 32: its name has 0 bytes"},
        {"long key", KEY_LEN, 8, 65536, -EBADMSG, "its name has 65536 bytes, not 1 to 65535"},
        {"key past the end", KEY_LEN, 8, 60000, -EBADMSG,
         "60000 bytes should follow, but the file"},
        {"control character", KEY_BYTE, 1, 7, -EBADMSG, "control character 0x07"},
        {"NUL in a key", KEY_BYTE, 1, 0, -EBADMSG, "control character 0x00"},
        {"value type", VALUE_TYPE, 4, 13, -EBADMSG,
         "key general.name at byte 48: value type 13 is unknown"},
        {"string length", STRING_LEN, 8, 1ull << 40, -EBADMSG, "key general.name"},
        {"wild string length", STRING_LEN, 8, UINT64_MAX, -EBADMSG, "download it again"},
        {"alignment 0", ALIGNMENT, 4, 0, -EBADMSG, "general.alignment is 0, not a power of 2"},
        {"alignment 4", ALIGNMENT, 4, 4, -EBADMSG, "general.alignment is 4"},
        {"alignment 48", ALIGNMENT, 4, 48, -EBADMSG, "general.alignment is 48"},
        {"alignment 128 KiB", ALIGNMENT, 4, 1u << 17, -EBADMSG, "general.alignment is 131072"},
        {"alignment as float", ALIGNMENT_TYPE, 4, SHUNT_GGUF_F32, -EBADMSG,
         "general.alignment is no 32-bit integer"},
        {"alignment negative", ALIGNMENT_TYPE, 8, SHUNT_GGUF_I32 | 0xffffffc0ull << 32, -EBADMSG,
         "general.alignment is no 32-bit integer"},
        {"boolean", BOOL, 1, 2, -EBADMSG, "key test.bool at byte"},
        {"nested array", ELEMENT_TYPE, 4, SHUNT_GGUF_ARRAY, -ENOTSUP, "array of arrays"},
        {"element type", ELEMENT_TYPE, 4, 99, -EBADMSG, "key test.words"},
        {"string count", ARRAY_COUNT, 8, 1ull << 40, -EBADMSG, "1099511627776 strings do not fit"},
        {"wild string count", ARRAY_COUNT, 8, UINT64_MAX, -EBADMSG, "strings do not fit"},
        {"element length", ELEMENT_LEN, 8, 1ull << 63, -EBADMSG, "key test.words"},
        {"empty tensor name", TENSOR_NAME_LEN, 8, 0, -EBADMSG, "tensor 1 of 2 at byte"},
        {"line end in a tensor name", TENSOR_NAME_BYTE, 1, '\n', -EBADMSG,
         "control character 0x0a"},
        {"no dimension", DIM_COUNT, 4, 0, -EBADMSG, "tensor a.weight at byte"},
        {"five dimensions", DIM_COUNT, 4, 5, -EBADMSG, "it has 5 dimensions, not 1 to 4"},
        {"dimension 0", DIM_1, 8, 0, -EBADMSG, "dimension 1 is 0"},
        {"product of dimensions", DIM_1, 8, 1ull << 58, -EBADMSG,
         "more weights than any file holds"},
        {"wild dimension", DIM_0, 8, UINT64_MAX, -EBADMSG, "more weights than any file holds"},
        {"too many rows", DIM_1, 8, 1ull << 40, -EBADMSG, "tensor a.weight takes"},
        {"half a block", DIM_0, 8, 48, -EBADMSG,
         "rows of 48 weights, but Q8_0 stores them in blocks"},
        {"offset not aligned", TENSOR_OFF, 8, 32, -EBADMSG, "no multiple of the alignment 64"},
        {"offset past the end", TENSOR_OFF, 8, 1ull << 40, -EBADMSG,
         "tensor a.weight begins at byte"},
        {"offset at the end", TENSOR_OFF, 8, DATA_BYTES, -EBADMSG, "the file ends after 1024"},
        {"data past the end", SECOND_OFF, 8, DATA_BYTES - 64, -EBADMSG,
         "tensor b.weight takes 128"},
        {"wild offset", TENSOR_OFF, 8, UINT64_MAX - 63, -EBADMSG, "tensor a.weight begins at byte"},
        {"overlap", SECOND_OFF, 8, 256, -EBADMSG, "tensors a.weight and b.weight overlap"},
        {"same place", SECOND_OFF, 8, 0, -EBADMSG, "overlap"},
        {"name twice", SECOND_NAME_BYTE, 1, 'a', -EBADMSG, "tensor a.weight is there twice"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct small s;
        struct shunt_gguf g;
        struct shunt_error err = {0};

        write_small(&s);
        gguf_patch(&s.w, s.at[cases[i].mark], &cases[i].value, cases[i].width);
        cr_expect_eq(parse(&g, s.w.data, s.w.len, &err), cases[i].code, "%s: %d %s", cases[i].name,
                     err.code, err.text);
        cr_expect(strstr(err.text, cases[i].text), "%s: %s", cases[i].name, err.text);
        cr_expect(strstr(err.text, "test.gguf: ") == err.text, "%s: %s", cases[i].name, err.text);
        cr_expect_null(g.header, "%s", cases[i].name);
        gguf_free(&s.w);
    }
}

Test(gguf, refuses_a_key_that_comes_twice)
{
    struct gguf_writer w;
    struct shunt_gguf g;
    struct shunt_error err;

    gguf_begin(&w);
    gguf_u32(&w, "a.key", 1);
    gguf_u32(&w, "another.key", 1);
    gguf_u32(&w, "a.key", 1);
    gguf_end(&w, 32, 0);
    cr_assert_eq(parse(&g, w.data, w.len, &err), -EBADMSG);
    cr_expect(strstr(err.text, "key a.key is there twice"), "%s", err.text);
    gguf_free(&w);
}

Test(gguf, says_what_other_files_are)
{
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    struct shunt_gguf g;
    struct shunt_error err;

    cr_expect_eq(parse(&g, lfs, sizeof(lfs), &err), -EBADMSG);
    cr_expect(strstr(err.text, "git lfs pull"), "%s", err.text);
    cr_expect_eq(parse(&g, "", 0, &err), -EBADMSG);
    cr_expect(strstr(err.text, "cut"), "%s", err.text);
    cr_expect_eq(parse(&g, "GG", 2, NULL), -EBADMSG);
}

Test(gguf, refuses_every_cut)
{
    struct small s;
    struct shunt_gguf g;
    struct shunt_error err;
    unsigned char *exact;

    write_small(&s);
    for (size_t len = 0; len < s.w.len - DATA_BYTES + 448; len++) {
        exact = malloc(len + 1); /* a byte beyond the end would be the sanitizer's to find */
        cr_assert(exact);
        memcpy(exact, s.w.data, len);
        cr_assert_eq(parse(&g, exact, len, &err), -EBADMSG, "cut to %zu bytes", len);
        cr_assert(strstr(err.text, "cut"), "cut to %zu bytes: %s", len, err.text);
        free(exact);
    }
    cr_expect_eq(parse(&g, s.w.data, s.w.len - DATA_BYTES + 448, &err), 0, "%s", err.text);
    shunt_gguf_fini(&g);
    gguf_free(&s.w);
}

/* ---- values */

Test(gguf, gives_any_integer_that_fits)
{
    static const struct {
        enum shunt_gguf_type type;
        unsigned width;
        uint64_t bits;
        int rc;
        uint32_t value;
    } cases[] = {
        {SHUNT_GGUF_U8, 1, 0xff, 0, 255},
        {SHUNT_GGUF_I8, 1, 0x7f, 0, 127},
        {SHUNT_GGUF_I8, 1, 0xff, -EBADMSG, 0},
        {SHUNT_GGUF_U16, 2, 0xffff, 0, 65535},
        {SHUNT_GGUF_I16, 2, 0x8000, -EBADMSG, 0},
        {SHUNT_GGUF_U32, 4, 0xffffffff, 0, UINT32_MAX},
        {SHUNT_GGUF_I32, 4, 5, 0, 5},
        {SHUNT_GGUF_I32, 4, 0xffffffff, -EBADMSG, 0},
        {SHUNT_GGUF_U64, 8, 1ull << 32, -EBADMSG, 0},
        {SHUNT_GGUF_U64, 8, UINT32_MAX, 0, UINT32_MAX},
        {SHUNT_GGUF_I64, 8, UINT64_MAX, -EBADMSG, 0},
        {SHUNT_GGUF_BOOL, 1, 1, -EBADMSG, 0},
        {SHUNT_GGUF_F32, 4, 0, -EBADMSG, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct gguf_writer w;
        struct shunt_gguf g;
        uint32_t value = 0;
        float f;
        bool b;
        struct shunt_gguf_string s;

        gguf_begin(&w);
        gguf_key(&w, "n", cases[i].type);
        gguf_put(&w, &cases[i].bits, cases[i].width);
        gguf_end(&w, 32, 0);
        cr_assert_eq(parse(&g, w.data, w.len, NULL), 0);
        cr_expect_eq(shunt_gguf_get_u32(&g, "n", &value), cases[i].rc, "case %zu", i);
        cr_expect_eq(value, cases[i].value, "case %zu", i);
        cr_expect_eq(shunt_gguf_get_string(&g, "n", &s), -EBADMSG);
        if (cases[i].type != SHUNT_GGUF_F32)
            cr_expect_eq(shunt_gguf_get_f32(&g, "n", &f), -EBADMSG);
        if (cases[i].type != SHUNT_GGUF_BOOL)
            cr_expect_eq(shunt_gguf_get_bool(&g, "n", &b), -EBADMSG);
        cr_expect_eq(shunt_gguf_get_u32(&g, "m", &value), -ENOENT);
        shunt_gguf_fini(&g);
        gguf_free(&w);
    }
}

Test(gguf, rounds_doubles_that_fit)
{
    static const double in[] = {0.1, 1e300, -1e300};

    for (size_t i = 0; i < sizeof(in) / sizeof(in[0]); i++) {
        struct gguf_writer w;
        struct shunt_gguf g;
        float f = 0;

        gguf_begin(&w);
        gguf_key(&w, "d", SHUNT_GGUF_F64);
        gguf_put(&w, &in[i], sizeof(in[i]));
        gguf_end(&w, 32, 0);
        cr_assert_eq(parse(&g, w.data, w.len, NULL), 0);
        cr_expect_eq(shunt_gguf_get_f32(&g, "d", &f), i ? -EBADMSG : 0);
        cr_expect(f == (i ? 0.0f : 0.1f));
        shunt_gguf_fini(&g);
        gguf_free(&w);
    }
}

/* ---- how much is read */

struct counted {
    struct gguf_memory memory;
    uint64_t asked, calls;
};

static int read_counted(void *ctx, uint64_t off, size_t len, void *dst, struct shunt_error *err)
{
    struct counted *c = ctx;

    cr_assert(off + len <= c->memory.len, "asked past the end");
    cr_assert_eq(off, c->asked, "asked twice, or left a gap");
    memcpy(dst, c->memory.data + off, len);
    c->asked += len;
    c->calls++;
    (void)err;
    return 0;
}

Test(gguf, reads_no_more_than_a_step_beyond_the_header)
{
    enum { WORDS = 300000, STEP = 1 << 20 };
    struct gguf_writer w;
    struct shunt_gguf g;
    struct shunt_gguf_string s = {0};
    const unsigned char *cursor;
    struct counted c = {0};
    struct shunt_gguf_source source = {.read = read_counted, .ctx = &c, .path = "big.gguf"};

    gguf_begin(&w);
    gguf_array(&w, "words", SHUNT_GGUF_STRING, WORDS);
    for (int i = 0; i < WORDS; i++)
        gguf_put_string(&w, "word");
    gguf_string(&w, "last", "value");
    gguf_end(&w, 32, 5 * STEP);
    c.memory = (struct gguf_memory){.data = w.data, .len = w.len};
    source.bytes = w.len;
    cr_assert_eq(shunt_gguf_parse(&g, &source, NULL), 0);
    cr_expect(c.asked <= g.header_bytes + STEP);
    cr_expect_eq(c.calls, (g.header_bytes + STEP - 1) / STEP);
    /* What was found before the buffer moved is found where it is now. */
    cursor = shunt_gguf_find(&g, "words")->data;
    for (int i = 0; i < WORDS; i++)
        s = shunt_gguf_next_string(&cursor);
    cr_expect(s.len == 4 && !memcmp(s.data, "word", 4));
    cr_expect_eq(shunt_gguf_get_string(&g, "last", &s), 0);
    shunt_gguf_fini(&g);
    gguf_free(&w);
}

Test(gguf, bounds_the_header)
{
    struct gguf_writer w;
    struct shunt_gguf g;
    struct shunt_error err;
    struct gguf_memory m;
    struct shunt_gguf_source source;

    gguf_begin(&w);
    gguf_array(&w, "bytes", SHUNT_GGUF_U8, SHUNT_GGUF_HEADER_MAX);
    gguf_end(&w, 32, 0);
    source = gguf_sparse_source(&m, w.data, w.len, 1ull << 42);
    cr_assert_eq(shunt_gguf_parse(&g, &source, &err), -EBADMSG);
    cr_expect(strstr(err.text, "larger than 256 MiB"), "%s", err.text);
    gguf_free(&w);

    gguf_begin(&w);
    gguf_array(&w, "empty strings", SHUNT_GGUF_STRING, SHUNT_GGUF_HEADER_MAX);
    gguf_end(&w, 32, 0);
    source = gguf_sparse_source(&m, w.data, w.len, 1ull << 42);
    cr_assert_eq(shunt_gguf_parse(&g, &source, &err), -EBADMSG);
    cr_expect(strstr(err.text, "larger than 256 MiB"), "%s", err.text);
    gguf_free(&w);
}

static int read_fails(void *ctx, uint64_t off, size_t len, void *dst, struct shunt_error *err)
{
    (void)ctx;
    (void)off;
    (void)len;
    (void)dst;
    return shunt_error_set(err, -EIO, "the drive is gone");
}

Test(gguf, passes_a_read_error_on)
{
    struct shunt_gguf g;
    struct shunt_error err;
    struct shunt_gguf_source source = {.read = read_fails, .bytes = 100, .path = "x.gguf"};

    cr_assert_eq(shunt_gguf_parse(&g, &source, &err), -EIO);
    cr_expect_str_eq(err.text, "the drive is gone");
}

/* ---- mutations */

/* Looks at everything that a header gave, as the rest of the runtime would. Return: NULL, or what
 * is inconsistent. */
static const char *inspect(const struct shunt_gguf *g, uint64_t file_bytes)
{
    const unsigned char *end = g->header + g->header_bytes;
    char name[SHUNT_GGUF_NAME_MAX + 1];

    for (uint32_t i = 0; i < g->kv_count; i++) {
        const struct shunt_gguf_kv *kv = &g->kvs[i];
        const unsigned char *cursor = kv->data;

        memcpy(name, kv->key.data, kv->key.len);
        name[kv->key.len] = '\0';
        if (shunt_gguf_find(g, name) != kv)
            return "a key is not found";
        if (kv->element == SHUNT_GGUF_STRING)
            for (uint64_t n = 0; n < kv->count; n++) {
                struct shunt_gguf_string s = shunt_gguf_next_string(&cursor);

                if ((const unsigned char *)s.data + s.len > end || cursor > end)
                    return "a string leaves the header";
            }
        if (kv->element == SHUNT_GGUF_ARRAY || kv->type >= SHUNT_GGUF_TYPES)
            return "a value type is out of range";
    }
    for (uint32_t i = 0; i < g->tensor_count; i++) {
        const struct shunt_gguf_tensor *t = &g->tensors[i];
        enum shunt_weight_type type;

        memcpy(name, t->name.data, t->name.len);
        name[t->name.len] = '\0';
        if (shunt_gguf_find_tensor(g, name) != t)
            return "a tensor is not found";
        if (t->off % g->alignment || t->off >= file_bytes || t->bytes > file_bytes - t->off)
            return "a tensor leaves the file";
        if ((t->bytes == 0) != (shunt_weight_from_gguf(t->type, &type) != 0))
            return "a tensor has no size";
    }
    return NULL;
}

/* `data_bytes`: how much of the file follows that is not in memory; it reads as zeros. */
static void mutate_and_parse(const unsigned char *original, size_t len, size_t header_len,
                             uint64_t data_bytes, uint64_t seed)
{
    size_t cap = len + 64;
    unsigned char *data = malloc(cap);
    uint32_t opened = 0;

    cr_assert(data);
    for (uint32_t i = 0; i < MUTATIONS; i++) {
        uint64_t state = seed + i;
        size_t now = len;
        struct gguf_memory memory;
        struct shunt_gguf_source source;
        struct shunt_gguf g;
        struct shunt_error err = {0};
        int rc;

        memcpy(data, original, len);
        gguf_mutate(data, &now, cap, header_len, &state);
        source = data_bytes ? gguf_sparse_source(&memory, data, now, now + data_bytes)
                            : gguf_source(&memory, data, now);
        rc = shunt_gguf_parse(&g, &source, &err);
        if (rc && (err.code != rc || !err.text[0] || g.header))
            cr_assert_fail("seed %" PRIu64 ": %d without a reason", seed + i, rc);
        if (rc == 0) {
            const char *wrong = inspect(&g, source.bytes);

            if (wrong)
                cr_assert_fail("seed %" PRIu64 ": %s", seed + i, wrong);
            shunt_gguf_fini(&g);
            opened++;
        }
    }
    free(data);
    cr_log_info("%u of %u mutations still parse", opened, MUTATIONS);
    /* Either all or none would mean that the mutations are of no use. */
    cr_assert(opened > 0 && opened < MUTATIONS);
}

Test(gguf, survives_mutations_of_a_small_header)
{
    struct small s;

    write_small(&s);
    mutate_and_parse(s.w.data, s.w.len, s.header_len, 0, 1000000);
    gguf_free(&s.w);
}

Test(gguf, survives_mutations_of_the_demo_header)
{
    enum { BYTES = 64 << 10 }; /* the header, and the beginning of the data */
    FILE *f = fopen(SHUNT_TEST_DEMO, "rb");
    unsigned char *data = malloc(BYTES);
    cr_assert(f && data, "cannot open %s", SHUNT_TEST_DEMO);
    cr_assert_eq(fread(data, 1, BYTES, f), BYTES);
    fclose(f);
    mutate_and_parse(data, BYTES, 62011, 8559168 - BYTES, 2000000);
    free(data);
}
