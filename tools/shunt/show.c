/* SPDX-License-Identifier: Apache-2.0
 *
 * What a person sees: text as it comes, and the table at the end.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

/* A labelled line is printed when it is so long, at the last space. */
#define LINE_COLUMNS 72

void results_init(struct results *r, uint32_t prompt_count, uint32_t node_count)
{
    memset(r, 0, sizeof(*r));
    r->prompt_count = prompt_count;
    r->node_count = node_count;
    r->identical = -1;
    r->labelled = prompt_count > 1 || node_count > 1;
}

void results_fini(struct results *r)
{
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        free(r->tokens[i]);
        free(r->lines[i]);
    }
}

/* ---- text: straight out for a single prompt, by lines with the node's number for several */

/* Whose line it is: the node, and which of its prompts where it may have several. */
static void print_label(const struct results *r, uint32_t prompt)
{
    const uint32_t rank = r->first_rank + prompt % r->node_count;

    if (r->prompt_count > r->node_count)
        printf("[%u.%u] ", rank, prompt / r->node_count);
    else
        printf("[%u] ", rank);
}

static void print_line(const struct results *r, uint32_t prompt, const char *text, size_t len)
{
    if (len == 0 || !wait_for_stdout())
        return; /* a blank line of one text is noise between the lines of others */
    print_label(r, prompt);
    fwrite(text, 1, len, stdout); /* a NUL is a character like any other */
    putchar('\n');
    fflush(stdout);
}

/* Characters, not bytes. */
static size_t columns(const char *text, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++)
        n += (text[i] & 0xc0) != 0x80;
    return n;
}

/* How much of the pending text makes a line now; 0: none yet. *skip: bytes to drop after it. */
static size_t line_end(const char *text, size_t len, size_t *skip)
{
    const char *newline = memchr(text, '\n', len);

    *skip = 1;
    if (newline)
        return (size_t)(newline - text);
    if (columns(text, len) < LINE_COLUMNS)
        return SIZE_MAX;
    for (size_t i = len; i-- > 0;)
        if (text[i] == ' ')
            return i;
    *skip = 0;
    return len;
}

/* A file's text may hold what a terminal obeys: control characters, those beyond ASCII (of two
 * bytes in UTF-8) included. */
static void print_harmless(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)text[i];
        const bool wide = c == 0xc2 && i + 1 < len && (text[i + 1] & 0xe0) == 0x80;

        if (wide)
            i++;
        putchar(wide || (c < 0x20 && c != '\t') || c == 0x7f ? '?' : c);
    }
}

/* When the first text comes: a run that fails before has printed nothing. */
static void print_prompts(struct results *r)
{
    for (uint32_t i = 0; r->prompts && i < r->prompt_count; i++) {
        const char *text = r->prompts[i].text;
        const size_t len = strcspn(text, "\n");

        if (!wait_for_stdout())
            return;
        print_label(r, i);
        fputs("prompt: ", stdout);
        print_harmless(text, len);
        puts(text[len] ? " ..." : "");
    }
    r->prompts = NULL;
    fflush(stdout);
}

static void add_text(struct results *r, uint32_t prompt, const char *text, size_t len)
{
    char *grown = realloc(r->lines[prompt], r->line_lens[prompt] + len + 1);
    size_t end, skip;

    if (!grown)
        return;
    memcpy(grown + r->line_lens[prompt], text, len);
    r->lines[prompt] = grown;
    r->line_lens[prompt] += len;
    while ((end = line_end(grown, r->line_lens[prompt], &skip)) != SIZE_MAX) {
        print_line(r, prompt, grown, end);
        memmove(grown, grown + end + skip, r->line_lens[prompt] - end - skip);
        r->line_lens[prompt] -= end + skip;
    }
}

static void take_token(void *ctx, uint32_t prompt, int32_t id, const char *text, size_t len)
{
    struct results *r = ctx;

    if (prompt >= r->prompt_count)
        return;
    if (id >= 0) {
        int32_t *grown = realloc(r->tokens[prompt], (r->token_counts[prompt] + 1) * sizeof(*grown));

        if (!grown)
            return;
        grown[r->token_counts[prompt]++] = id;
        r->tokens[prompt] = grown;
    }
    if (r->quiet)
        return;
    print_prompts(r);
    if (len == 0)
        return;
    if (r->labelled) {
        add_text(r, prompt, text, len);
    } else if (wait_for_stdout()) {
        fwrite(text, 1, len, stdout);
        fflush(stdout);
    }
}

static void take_end(void *ctx, const struct outcome *outcome)
{
    struct results *r = ctx;
    uint32_t p = outcome->prompt;

    if (p >= r->prompt_count)
        return;
    r->outcomes[p] = *outcome;
    r->ended[p] = true;
    if (r->quiet)
        return;
    print_prompts(r);
    if (!r->labelled)
        putchar('\n');
    else if (r->line_lens[p] > 0)
        print_line(r, p, r->lines[p], r->line_lens[p]);
    r->line_lens[p] = 0;
}

/* The nodes of one machine find the same things: each is said once. */
static void take_notice(void *ctx, const char *text)
{
    struct results *r = ctx;

    for (uint32_t i = 0; i < r->notice_count; i++)
        if (!strcmp(r->notices[i], text))
            return;
    if (r->silent)
        return;
    if (r->notice_count < NOTICES_MAX)
        snprintf(r->notices[r->notice_count++], sizeof(r->notices[0]), "%s", text);
    complain("%s", text);
}

static void take_failure(void *ctx, bool peers, const char *text)
{
    (void)ctx;
    (void)peers;
    complain("%s", text);
}

static void take_summary(void *ctx, const struct node_summary *summary)
{
    struct results *r = ctx;
    uint32_t n = summary->stats.rank - r->first_rank;

    if (n >= r->node_count)
        return;
    r->nodes[n] = *summary;
    r->has_node[n] = true;
}

struct sink results_sink(struct results *r)
{
    return (struct sink){.ctx = r,
                         .token = take_token,
                         .end = take_end,
                         .notice = take_notice,
                         .failure = take_failure,
                         .summary = take_summary};
}

bool results_equal(const struct results *a, const struct results *b)
{
    for (uint32_t p = 0; p < a->prompt_count; p++)
        if (!a->ended[p] || !b->ended[p] || a->outcomes[p].digest != b->outcomes[p].digest ||
            a->token_counts[p] != b->token_counts[p] ||
            memcmp(a->tokens[p], b->tokens[p], a->token_counts[p] * sizeof(*a->tokens[p])))
            return false;
    return true;
}

/* ---- the table */

const char *size_text(uint64_t value, char *text, size_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)value;
    uint32_t unit = 0;

    while (v >= 1024 && unit < 4) {
        v /= 1024;
        unit++;
    }
    snprintf(text, bytes, unit ? "%.1f %s" : "%.0f %s", v, units[unit]);
    return text;
}

/* One cell: a figure of a node, as text. */
typedef void cell_fn(const struct results *r, uint32_t node, char *text, size_t bytes);

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static uint64_t calls(const struct shunt_stats *s)
{
    return s->calls_local + s->calls_peer + s->calls_read;
}

static void cell_prompt(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    snprintf(text, bytes, "%llu", (unsigned long long)r->nodes[n].stats.prompt_tokens);
}

static void cell_tokens(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    snprintf(text, bytes, "%llu", (unsigned long long)r->nodes[n].stats.tokens);
}

/* Means over a node's prompts. */
static void cell_ttft(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    double sum = 0;
    uint32_t count = 0;

    for (uint32_t p = n; p < r->prompt_count; p += r->node_count)
        if (r->outcomes[p].ttft_ns > 0) {
            sum += (double)r->outcomes[p].ttft_ns;
            count++;
        }
    if (count)
        snprintf(text, bytes, "%.1f ms", sum / count / 1e6);
    else
        snprintf(text, bytes, "-");
}

static void cell_tpot(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    double sum = 0;
    uint64_t count = 0;

    for (uint32_t p = n; p < r->prompt_count; p += r->node_count)
        if (r->outcomes[p].tokens > 1) {
            sum += (double)r->outcomes[p].decode_ns;
            count += r->outcomes[p].tokens - 1;
        }
    if (count)
        snprintf(text, bytes, "%.2f ms", sum / (double)count / 1e6);
    else
        snprintf(text, bytes, "-");
}

static void cell_local(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    const struct shunt_stats *s = &r->nodes[n].stats;

    snprintf(text, bytes, "%.1f %%", percent(s->calls_local, calls(s)));
}

static void cell_peer(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    const struct shunt_stats *s = &r->nodes[n].stats;

    snprintf(text, bytes, "%.1f %%", percent(s->calls_peer, calls(s)));
}

static void cell_read(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    const struct shunt_stats *s = &r->nodes[n].stats;

    snprintf(text, bytes, "%.1f %%", percent(s->calls_read, calls(s)));
}

static void cell_slots(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    const struct shunt_stats *s = &r->nodes[n].stats;

    snprintf(text, bytes, "%u of %u", s->slots_used, s->slot_count);
}

static void cell_demand(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    size_text(r->nodes[n].stats.bytes_demand, text, bytes);
}

static void cell_speculative(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    size_text(r->nodes[n].stats.bytes_speculative, text, bytes);
}

static void cell_placement(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    size_text(r->nodes[n].stats.bytes_placement, text, bytes);
}

static void cell_guesses(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    const struct shunt_stats *s = &r->nodes[n].stats;

    snprintf(text, bytes, "%llu/%llu/%llu/%llu", (unsigned long long)s->speculative_useful,
             (unsigned long long)s->speculative_late, (unsigned long long)s->speculative_wasted,
             (unsigned long long)s->speculative_pending);
}

static void cell_rows(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    const struct shunt_stats *s = &r->nodes[n].stats;

    snprintf(text, bytes, "%llu/%llu", (unsigned long long)s->rows_sent,
             (unsigned long long)s->rows_received);
}

static void cell_memory(const struct results *r, uint32_t n, char *text, size_t bytes)
{
    size_text(r->nodes[n].vm_hwm_bytes, text, bytes);
}

static const struct {
    const char *name;
    cell_fn *cell;
} rows[] = {
    {"prompt tokens", cell_prompt},
    {"generated tokens", cell_tokens},
    {"time to first token", cell_ttft},
    {"time per output token", cell_tpot},
    {"expert calls: resident here", cell_local},
    {"  resident on a peer", cell_peer},
    {"  after a demand read", cell_read},
    {"slots used", cell_slots},
    {"read on demand", cell_demand},
    {"read speculatively", cell_speculative},
    {"read for the placement", cell_placement},
    {"guesses useful/late/wasted/open", cell_guesses},
    {"rows sent/received", cell_rows},
    {"peak memory", cell_memory},
};

void print_table(const struct results *r, FILE *out)
{
    fprintf(out, "\n%-32s", "");
    for (uint32_t n = 0; n < r->node_count; n++)
        fprintf(out, " %*s%u", r->first_rank + n < 10 ? 15 : 14, "node ", r->first_rank + n);
    fputc('\n', out);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        fprintf(out, "%-32s", rows[i].name);
        for (uint32_t n = 0; n < r->node_count; n++) {
            char text[64] = "-";

            if (r->has_node[n])
                rows[i].cell(r, n, text, sizeof(text));
            fprintf(out, " %16s", text);
        }
        fputc('\n', out);
    }
}

void print_verdict(const struct results *r, FILE *out)
{
    if (r->identical >= 0)
        fprintf(out, "\nidentical to one node with every expert in memory: %s\n",
                r->identical ? "yes" : "NO");
}
