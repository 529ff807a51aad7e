/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/tokenizer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#include "runtime/model/normalize.h"
#include "tests/model/gguf_writer.h"
#include "tests/model/tiny_model.h"
#include "tests/random.h"

#define ROOM      8192
#define MUTATIONS 20000u

/* A tokenizer and what it lies on. */
struct opened {
    unsigned char *bytes;
    size_t len;
    struct gguf_memory memory;
    struct shunt_gguf gguf;
    struct shunt_tokenizer *t;
};

static int open_bytes(struct opened *o, unsigned char *bytes, size_t len, struct shunt_error *err)
{
    struct shunt_gguf_source source;
    int rc;

    memset(o, 0, sizeof(*o));
    o->bytes = bytes;
    o->len = len;
    source = gguf_source(&o->memory, bytes, len);
    rc = shunt_gguf_parse(&o->gguf, &source, err);
    return rc ? rc : shunt_tokenizer_open(&o->t, &o->gguf, "test.gguf", err);
}

static void close_opened(struct opened *o)
{
    shunt_tokenizer_close(o->t);
    shunt_gguf_fini(&o->gguf);
    free(o->bytes);
}

static unsigned char *read_whole(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    unsigned char *bytes;
    long size;

    if (!f)
        return NULL;
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    bytes = malloc((size_t)size + 1);
    cr_assert(bytes && fread(bytes, 1, (size_t)size, f) == (size_t)size, "cannot read %s", path);
    bytes[size] = '\0';
    fclose(f);
    *len = (size_t)size;
    return bytes;
}

static void open_path(struct opened *o, const char *path)
{
    struct shunt_error err = {0};
    size_t len = 0;
    unsigned char *bytes = read_whole(path, &len);

    cr_assert(bytes, "cannot open %s", path);
    cr_assert_eq(open_bytes(o, bytes, len, &err), 0, "%s", err.text);
}

static int open_tiny(struct opened *o, const struct tiny_model *m, struct shunt_error *err)
{
    struct gguf_writer w;

    tiny_write(m, &w);
    return open_bytes(o, w.data, w.len, err);
}

static int64_t encode(const struct opened *o, const char *text, uint32_t flags, int32_t *ids)
{
    return shunt_tokenizer_encode(o->t, text, strlen(text), flags, ids, ROOM, NULL);
}

static size_t decode(const struct opened *o, const int32_t *ids, int64_t count, char *text)
{
    size_t len = 0;

    for (int64_t i = 0; i < count; i++) {
        int64_t n = shunt_tokenizer_decode(o->t, ids[i], true, text + len, ROOM - len);

        cr_assert(n >= 0 && len + (size_t)n <= ROOM);
        len += (size_t)n;
    }
    return len;
}

static void expect_ids(const struct opened *o, const char *text, size_t len, uint32_t flags,
                       const int32_t *ids, size_t count)
{
    int32_t *got = malloc(ROOM * sizeof(*got));
    struct shunt_error err = {0};
    int64_t n;

    cr_assert(got);
    n = shunt_tokenizer_encode(o->t, text, len, flags, got, ROOM, &err);
    cr_expect(n == (int64_t)count && !memcmp(got, ids, count * sizeof(*ids)),
              "%.*s gave %" PRId64 " other ids, not %zu %s", (int)len, text, n, count, err.text);
    free(got);
}

/* ---- texts with known ids */

static size_t parse_hex(const char *hex, char *bytes)
{
    size_t len = 0;
    unsigned value;

    while (sscanf(hex + 2 * len, "%2x", &value) == 1)
        bytes[len++] = (char)value;
    return len;
}

/* A line of the fixture: see make_tokenizer.py. */
static void check_line(const struct opened *o, char *line)
{
    static char text[ROOM], back[ROOM];
    static int32_t ids[ROOM];
    struct shunt_normalizer n = {0};
    const char *normal;
    size_t len, count = 0;
    char *save;
    bool special = atoi(strtok_r(line, " \n", &save));

    len = parse_hex(strtok_r(NULL, " \n", &save), text);
    for (char *word = strtok_r(NULL, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
        ids[count++] = atoi(word);
    expect_ids(o, text, len, special ? SHUNT_TOKENIZE_SPECIAL : 0, ids, count);
    /* Decoding gives the normalised text; "e<|im_end|>" + accent is normalised in two parts. */
    cr_assert_eq(shunt_normalize(&n, text, len, &normal, &len), 0);
    if (!special)
        cr_expect(decode(o, ids, (int64_t)count, back) == len && !memcmp(back, normal, len), "%s",
                  text);
    shunt_normalizer_fini(&n);
}

Test(tokenizer, gives_the_ids_of_the_official_one)
{
    static char line[1 << 16];
    FILE *f = fopen(SHUNT_MODEL_FIXTURES "/tokenizer.txt", "r");
    struct opened o;
    int count = 0;

    cr_assert(f);
    open_path(&o, SHUNT_TEST_DEMO);
    while (fgets(line, sizeof(line), f)) {
        if (line[0] == '#')
            continue;
        check_line(&o, line);
        count++;
    }
    cr_expect_geq(count, 300);
    fclose(f);
    close_opened(&o);
}

/* The vocabulary of Qwen2 with the texts that llama.cpp publishes for it: texts apart by a
 * separator, one line of ids for each. */
Test(tokenizer, gives_the_ids_of_qwen2)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    static const char gguf[] = SHUNT_TEST_MODELS_DIR "/vocab/ggml-vocab-qwen2.gguf";
    static const char inp[] = SHUNT_TEST_MODELS_DIR "/vocab/ggml-vocab-qwen2.gguf.inp";
    static const char out[] = SHUNT_TEST_MODELS_DIR "/vocab/ggml-vocab-qwen2.gguf.out";
    static int32_t ids[ROOM];
    struct opened o;
    size_t len;
    char *texts, *lines, *save_line = NULL;
    char *text, *line;
    int texts_seen = 0;

    if (access(gguf, R_OK))
        cr_skip_test("no vocabulary of Qwen2 at models_dir");
    open_path(&o, gguf);
    cr_expect_str_eq(shunt_tokenizer_kind(o.t), "gpt2/qwen2");
    cr_expect_eq(shunt_tokenizer_vocab_count(o.t), 151936);
    cr_expect(shunt_tokenizer_bos(o.t) == 151643 && !shunt_tokenizer_adds_bos(o.t));
    cr_expect_eq(shunt_tokenizer_piece_max(o.t), 128);
    texts = (char *)read_whole(inp, &len);
    lines = (char *)read_whole(out, &len);
    cr_assert(texts && lines);
    text = texts;
    line = lines;
    while (*line) {
        char *end = text ? strstr(text, separator) : NULL;
        char *line_end = strchr(line, '\n');
        size_t count = 0;

        cr_assert(text && line_end, "as many lines as texts");
        *line_end = '\0';
        for (char *w = strtok_r(line, " ", &save_line); w; w = strtok_r(NULL, " ", &save_line))
            ids[count++] = atoi(w);
        expect_ids(&o, text, end ? (size_t)(end - text) : strlen(text), 0, ids, count);
        line = line_end + 1;
        text = end ? end + strlen(separator) : NULL;
        texts_seen++;
    }
    cr_expect(texts_seen >= 40 && !*text);
    free(texts);
    free(lines);
    close_opened(&o);
}

/* Any text comes back in normal form. */
Test(tokenizer, takes_any_text_there_and_back)
{
    static char text[ROOM], back[ROOM];
    static int32_t ids[ROOM];
    struct shunt_normalizer n = {0};
    struct opened o;
    uint64_t state = 5;

    open_path(&o, SHUNT_TEST_DEMO);
    for (int round = 0; round < 5000; round++) {
        size_t len = 0, normal_len, back_len;
        const char *normal;
        int64_t count;

        for (uint64_t i = random_next(&state) % 40; i > 0; i--) {
            static const uint32_t tops[] = {0x80, 0x80, 0x370, 0x3100, 0xd800, 0x110000};
            uint32_t point = (uint32_t)(random_next(&state) % tops[random_next(&state) % 6]);

            if (point >= 0xd800 && point < 0xe000)
                continue;
            len += (size_t)utf8proc_encode_char((utf8proc_int32_t)point,
                                                (utf8proc_uint8_t *)text + len);
        }
        cr_assert_eq(shunt_normalize(&n, text, len, &normal, &normal_len), 0);
        count = shunt_tokenizer_encode(o.t, text, len, 0, ids, ROOM, NULL);
        cr_assert_geq(count, 0);
        back_len = decode(&o, ids, count, back);
        if (back_len != normal_len || memcmp(back, normal, normal_len))
            cr_assert_fail("round %d", round);
        /* Without room the count is the same. */
        cr_assert_eq(shunt_tokenizer_encode(o.t, text, len, 0, NULL, 0, NULL), count);
    }
    shunt_normalizer_fini(&n);
    close_opened(&o);
}

Test(tokenizer, refuses_what_is_no_utf8)
{
    struct opened o;
    struct shunt_error err;
    int32_t id;

    open_path(&o, SHUNT_TEST_DEMO);
    cr_assert_eq(shunt_tokenizer_encode(o.t, "abc\xff", 4, 0, &id, 1, &err), -EILSEQ);
    cr_expect(strstr(err.text, "at byte 3 (0xff)"), "%s", err.text);
    cr_expect_eq(shunt_tokenizer_encode(o.t, NULL, 0, 0, NULL, 0, &err), 0);
    cr_expect_eq(shunt_tokenizer_encode(o.t, "x", SHUNT_TEXT_BYTES_MAX + 1, 0, &id, 1, &err),
                 -EFBIG);
    close_opened(&o);
}

/* ---- special tokens */

static void expect_tiny(const struct opened *o, const char *text, uint32_t flags,
                        const int32_t *ids, size_t count)
{
    expect_ids(o, text, strlen(text), flags, ids, count);
}

Test(tokenizer, cuts_special_tokens_out)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct opened o;
    struct shunt_error err = {0};
    /* The tiny vocabulary begins with the bytes' stand-ins: the id of 'x' is 'x'. */
    const int32_t hello_end[] = {TINY_HELLO, TINY_END, TINY_HELLO};
    const int32_t tools[] = {TINY_TOOLS, TINY_TOOL, TINY_HE};
    const int32_t plain_end[] = {'<', '|', 'e', 'n', 'd', '|', '>'};
    const int32_t no_token[] = {'<', 't', 'o', 'o', 'l', TINY_TOOL};
    const int32_t apart[] = {'e', TINY_END, 0xcc, 0x81};
    int32_t ids[8];
    char text[32];

    cr_assert(m);
    tiny_init(m);
    cr_assert_eq(open_tiny(&o, m, &err), 0, "%s", err.text);

    expect_tiny(&o, "hello<|end|>hello", SHUNT_TOKENIZE_SPECIAL, hello_end, 3);
    expect_tiny(&o, "<tool>s<tool>he", 0, tools, 3); /* the longest */
    expect_tiny(&o, "<tool>s<tool>he", SHUNT_TOKENIZE_SPECIAL, tools, 3);
    expect_tiny(&o, "<|end|>", 0, plain_end, 7);
    expect_tiny(&o, "<tool<tool>", 0, no_token, 6);
    expect_tiny(&o, "e<|end|>\xcc\x81", SHUNT_TOKENIZE_SPECIAL, apart,
                4); /* cut, then normalised */
    cr_expect_eq(encode(&o, "", SHUNT_TOKENIZE_SPECIAL | SHUNT_TOKENIZE_BOS, ids), 0);

    cr_expect_eq(shunt_tokenizer_decode(o.t, TINY_END, false, text, sizeof(text)), 0);
    cr_expect_eq(shunt_tokenizer_decode(o.t, TINY_END, true, text, sizeof(text)), 7);
    cr_expect(!memcmp(text, "<|end|>", 7));
    cr_expect_eq(shunt_tokenizer_decode(o.t, TINY_TOOL, false, text, 3), 6);
    cr_expect(!memcmp(text, "<to", 3));
    cr_expect_eq(shunt_tokenizer_decode(o.t, '\n', false, text, sizeof(text)), 1);
    cr_expect_eq(text[0], '\n');
    cr_expect_eq(shunt_tokenizer_decode(o.t, -1, true, text, sizeof(text)), -ERANGE);
    cr_expect_eq(shunt_tokenizer_decode(o.t, TINY_VOCAB, true, text, sizeof(text)), -ERANGE);
    close_opened(&o);
    free(m);
}

/* The leftmost wins over the longest; of two at one place the longest that is allowed. */
Test(tokenizer, takes_the_leftmost_special_token)
{
    struct tiny_model *m = malloc(sizeof(*m));
    const int32_t left[] = {TINY_TOOL, 'c', 'd'};
    const int32_t allowed[] = {TINY_TOOL, 'x'};
    const int32_t longest[] = {TINY_END};
    struct opened o;

    cr_assert(m);
    tiny_init(m);
    strcpy(m->tokens[TINY_TOOL], "ab");
    strcpy(m->tokens[TINY_TOOLS], "bcd");
    strcpy(m->tokens[TINY_END], "abx"); /* CONTROL */
    strcpy(m->tokens[TINY_END_OF_TEXT], "");
    cr_assert_eq(open_tiny(&o, m, NULL), 0);
    expect_tiny(&o, "abcd", 0, left, 3);
    expect_tiny(&o, "abx", 0, allowed, 2);
    expect_tiny(&o, "abx", SHUNT_TOKENIZE_SPECIAL, longest, 1);
    close_opened(&o);
    free(m);
}

Test(tokenizer, puts_bos_first_where_the_model_wants_it)
{
    struct tiny_model *m = malloc(sizeof(*m));
    const int32_t with[] = {TINY_END_OF_TEXT, TINY_HELLO};
    struct opened o;
    int32_t ids[8];

    cr_assert(m);
    tiny_init(m);
    tiny_u32(m, "tokenizer.ggml.bos_token_id", TINY_END_OF_TEXT);
    tiny_bool(m, "tokenizer.ggml.add_bos_token", true);
    tiny_u32(m, "tokenizer.ggml.eot_token_id", TINY_TOOL);
    cr_assert_eq(open_tiny(&o, m, NULL), 0);
    expect_tiny(&o, "hello", SHUNT_TOKENIZE_BOS, with, 2);
    expect_tiny(&o, "hello", 0, with + 1, 1);
    cr_expect_eq(encode(&o, "", SHUNT_TOKENIZE_BOS, ids), 1);
    cr_expect(shunt_tokenizer_is_end(o.t, TINY_TOOL) && shunt_tokenizer_is_end(o.t, TINY_END));
    cr_expect(shunt_tokenizer_is_end(o.t, TINY_END_OF_TEXT) && !shunt_tokenizer_is_end(o.t, 0));
    close_opened(&o);
    free(m);
}

Test(tokenizer, keeps_unused_tokens_silent)
{
    struct tiny_model *m = malloc(sizeof(*m));
    struct opened o;
    char text[16];

    cr_assert(m);
    tiny_init(m);
    m->types[TINY_TOOL] = 5;                        /* UNUSED */
    strcpy(m->tokens[TINY_TOOLS], "\xe2\x82\xac!"); /* NORMAL, but no stand-ins: as it is */
    m->types[TINY_TOOLS] = 1;
    cr_assert_eq(open_tiny(&o, m, NULL), 0);
    cr_expect_eq(shunt_tokenizer_decode(o.t, TINY_TOOL, false, text, sizeof(text)), 0);
    cr_expect_eq(shunt_tokenizer_decode(o.t, TINY_TOOL, true, text, sizeof(text)), 6);
    cr_expect_eq(shunt_tokenizer_decode(o.t, TINY_TOOLS, false, text, sizeof(text)), 4);
    cr_expect(!memcmp(text, "\xe2\x82\xac!", 4));
    close_opened(&o);
    free(m);
}

/* ---- tables that contradict themselves */

static void without_types(struct tiny_model *m)
{
    m->type_count = 10;
}

static void with_wild_type(struct tiny_model *m)
{
    m->types[3] = 9;
}

static void with_negative_type(struct tiny_model *m)
{
    m->types[3] = -1;
}

static void without_newline(struct tiny_model *m)
{
    strcpy(m->tokens['\n'], "nl");
}

static void with_unknown_left(struct tiny_model *m)
{
    strcpy(m->merges[2], "hx ll");
}

static void with_unknown_right(struct tiny_model *m)
{
    strcpy(m->merges[3], "hell ox");
}

static void with_unknown_whole(struct tiny_model *m)
{
    strcpy(m->merges[1], "l h");
}

static void with_half_a_merge(struct tiny_model *m)
{
    strcpy(m->merges[0], "he");
}

static void with_split_character(struct tiny_model *m)
{
    strcpy(m->tokens[TINY_TOOL], "\x82x");
}

static void without_tokens(struct tiny_model *m)
{
    m->token_count = m->type_count = m->merge_count = 0;
}

Test(tokenizer, names_what_contradicts_itself)
{
    static const struct {
        void (*change)(struct tiny_model *m);
        const char *text;
    } cases[] = {
        {without_types, "token_type has 10 entries, but tokenizer.ggml.tokens has 264"},
        {with_wild_type, "token_type gives token 3 the unknown type 9"},
        {with_negative_type, "token_type gives token 3 the unknown type -1"},
        {without_newline, "the stand-in of byte 0x0a"},
        {with_unknown_left, "entry 2, 'hx ll', joins tokens of which the left one"},
        {with_unknown_right, "entry 3, 'hell ox', joins tokens of which the right one"},
        {with_unknown_whole, "entry 1, 'l h', joins tokens of which their whole"},
        {with_half_a_merge, "entry 0, 'he', joins tokens of which the right one"},
        {with_split_character, "special token 262 is no UTF-8"},
        {without_tokens, "tokens has 0 tokens"},
    };
    struct tiny_model *m = malloc(sizeof(*m));

    cr_assert(m);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct shunt_error err = {0};
        struct opened o;

        tiny_init(m);
        tiny_remove(m, "tokenizer.ggml.eos_token_id");
        cases[i].change(m);
        cr_expect_eq(open_tiny(&o, m, &err), -EBADMSG, "case %zu", i);
        cr_expect(strstr(err.text, cases[i].text), "case %zu: %s", i, err.text);
        cr_expect(strstr(err.text, "test.gguf: key tokenizer.ggml.") == err.text, "%s", err.text);
        close_opened(&o);
    }
    free(m);
}

Test(tokenizer, takes_the_first_of_equal_tokens)
{
    struct tiny_model *m = malloc(sizeof(*m));
    const int32_t first[] = {TINY_HE};
    struct opened o;

    cr_assert(m);
    tiny_init(m);
    strcpy(m->tokens[TINY_TOOLS], "he");
    m->types[TINY_TOOLS] = 1;
    strcpy(m->merges[m->merge_count++], "h e"); /* again, at a higher rank */
    cr_assert_eq(open_tiny(&o, m, NULL), 0);
    expect_tiny(&o, "he", 0, first, 1);
    close_opened(&o);
    free(m);
}

/* Opening a damaged header fails, or gives a tokenizer that works on the rest. */
Test(tokenizer, survives_mutations_of_the_demo_header)
{
    enum { BYTES = 64 << 10, HEADER = 62011 };
    static const char text[] = "It's  a <|im_end|>\n\n e\xcc\x81\xcc\x96 42 caf\xc3\xa9";
    size_t len;
    unsigned char *whole = read_whole(SHUNT_TEST_DEMO, &len);
    unsigned char *data = malloc(BYTES + 64);
    uint32_t opened = 0;

    cr_assert(whole && data);
    for (uint32_t i = 0; i < MUTATIONS; i++) {
        uint64_t state = 5000000 + i;
        size_t now = BYTES;
        struct gguf_memory memory;
        struct shunt_gguf_source source;
        struct shunt_gguf gguf;
        struct shunt_tokenizer *t;
        struct shunt_error err = {0};
        int32_t ids[64];
        int64_t count;
        char piece[SHUNT_TOKEN_BYTES_MAX];
        int rc;

        memcpy(data, whole, BYTES);
        gguf_mutate(data, &now, BYTES + 64, HEADER, &state);
        source = gguf_sparse_source(&memory, data, now, len);
        if (shunt_gguf_parse(&gguf, &source, NULL))
            continue;
        rc = shunt_tokenizer_open(&t, &gguf, "test.gguf", &err);
        if (rc && (rc != err.code || !err.text[0]))
            cr_assert_fail("mutation %u: %d without a reason", i, rc);
        if (rc == 0) {
            opened++;
            count = shunt_tokenizer_encode(t, text, strlen(text), SHUNT_TOKENIZE_SPECIAL, ids, 64,
                                           NULL);
            for (int64_t k = 0; k < count && k < 64; k++)
                if (shunt_tokenizer_decode(t, ids[k], true, piece, sizeof(piece)) >
                    (int64_t)shunt_tokenizer_piece_max(t))
                    cr_assert_fail("mutation %u: a piece is too long", i);
            shunt_tokenizer_close(t);
        }
        shunt_gguf_fini(&gguf);
    }
    cr_log_info("%u of %u mutations still open", opened, MUTATIONS);
    cr_expect(opened > 0 && opened < MUTATIONS);
    free(whole);
    free(data);
}

/* ---- long texts */

/* Ten million of the same: the pattern walks back over every space, the merges of letters and
 * spaces form one piece. Anything but (nearly) linear would not end. */
Test(tokenizer, does_not_choke_on_long_runs, .timeout = 110)
{
    static const char *const units[] = {" ", "a", "\n", " \n", "'", "\xcc\x81", "<|im_"};
    size_t len = 10000000;
    char *text = malloc(len + 8);
    struct opened o;

    cr_assert(text);
    open_path(&o, SHUNT_TEST_DEMO);
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        size_t unit = strlen(units[i]);
        struct shunt_error err = {0};
        int64_t n;

        for (size_t at = 0; at < len; at += unit)
            memcpy(text + at, units[i], unit);
        n = shunt_tokenizer_encode(o.t, text, len / unit * unit, SHUNT_TOKENIZE_SPECIAL, NULL, 0,
                                   &err);
        cr_expect_gt(n, 0, "%s: %s", units[i], err.text);
    }
    free(text);
    close_opened(&o);
}

/* ---- threads */

struct job {
    const struct opened *o;
    int64_t count;
};

static void *encode_often(void *arg)
{
    struct job *job = arg;
    int32_t ids[64];

    for (int i = 0; i < 2000; i++)
        job->count +=
            encode(job->o, "Two  threads, e\xcc\x81 <|im_end|>", SHUNT_TOKENIZE_SPECIAL, ids);
    return NULL;
}

Test(tokenizer, serves_many_threads)
{
    struct opened o;
    struct job jobs[4];
    pthread_t threads[4];

    open_path(&o, SHUNT_TEST_DEMO);
    for (int i = 0; i < 4; i++) {
        jobs[i] = (struct job){.o = &o};
        cr_assert_eq(pthread_create(&threads[i], NULL, encode_often, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 1; i < 4; i++)
        cr_expect_eq(jobs[i].count, jobs[0].count);
    close_opened(&o);
}
