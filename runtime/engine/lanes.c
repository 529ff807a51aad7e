/* SPDX-License-Identifier: Apache-2.0
 *
 * Sequences and lanes: whose rows go into a lane's batch, and what becomes of the results.
 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/base/clock.h"
#include "runtime/engine/engine_impl.h"

static uint32_t state_of(const struct shunt_sequence *s)
{
    return atomic_load_explicit(&s->state, memory_order_acquire);
}

static void set_state(struct shunt_sequence *s, enum shunt_sequence_state state)
{
    atomic_store_explicit(&s->state, state, memory_order_release);
}

/* Room for one more token and for the END that may follow it. */
static bool has_room(const struct shunt *e, const struct shunt_sequence *s)
{
    return shunt_outbox_has_room(&s->outbox, 2 * shunt_outbox_bytes(e->text_max));
}

/* ---- beginning and end of a sequence */

static void begin(struct shunt_sequence *s)
{
    s->position = 0;
    s->tokens = 0;
    s->first_ns = 0;
    s->last_ns = 0;
    s->digest = 0;
    set_state(s, SHUNT_SEQUENCE_PREFILL);
}

static void end(struct shunt *e, struct shunt_sequence *s, enum shunt_end_reason reason)
{
    struct shunt_outbox_record record = {.type = SHUNT_EVENT_END};

    s->reason = reason;
    record.text_len = (uint32_t)shunt_text_finish(&s->text, e->text);
    /* First the state, then the event: the reader frees the sequence when it takes the END. */
    set_state(s, SHUNT_SEQUENCE_ENDED);
    shunt_outbox_put(&s->outbox, &record, e->text);
    e->has_events = true;
}

/* A stop string took the text that was held back with it. */
static void end_at_stop(struct shunt *e, struct shunt_sequence *s)
{
    s->text.held_len = 0;
    end(e, s, SHUNT_END_STOP);
}

void shunt_lanes_admit(struct shunt *e)
{
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        struct shunt_sequence *s = &e->sequences[i];
        uint32_t state = state_of(s);

        if (state == SHUNT_SEQUENCE_SUBMITTED) {
            begin(s);
            state = SHUNT_SEQUENCE_PREFILL;
        }
        if (atomic_load_explicit(&s->cancel_id, memory_order_relaxed) !=
            atomic_load_explicit(&s->id, memory_order_relaxed))
            continue;
        /* Rows in the prefill lane finish their way first: their cache must not become another's.
         */
        if (state == SHUNT_SEQUENCE_DECODE ||
            (state == SHUNT_SEQUENCE_PREFILL && e->prefill_layer == 0))
            end(e, s, SHUNT_END_CANCELLED);
    }
}

void shunt_lanes_end_all(struct shunt *e, enum shunt_end_reason reason)
{
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        struct shunt_sequence *s = &e->sequences[i];
        uint32_t state = SHUNT_SEQUENCE_SUBMITTED;

        /* Its submitter may be taking it back. */
        if (atomic_compare_exchange_strong(&s->state, &state, SHUNT_SEQUENCE_PREFILL))
            begin(s);
        state = state_of(s);
        if (state == SHUNT_SEQUENCE_PREFILL || state == SHUNT_SEQUENCE_DECODE)
            end(e, s, reason);
    }
}

bool shunt_lanes_alive(const struct shunt *e)
{
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        uint32_t state = state_of(&e->sequences[i]);

        if (state != SHUNT_SEQUENCE_FREE && state != SHUNT_SEQUENCE_ENDED)
            return true;
    }
    return false;
}

/* ---- filling a lane */

uint32_t shunt_lanes_prefill_rows(const struct shunt *e)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < e->sequence_count; i++)
        if (state_of(&e->sequences[i]) == SHUNT_SEQUENCE_PREFILL)
            rows += e->sequences[i].id_count - e->sequences[i].position;
    return rows;
}

uint32_t shunt_lanes_decode_rows(struct shunt *e)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < e->sequence_count; i++) {
        struct shunt_sequence *s = &e->sequences[i];

        if (state_of(s) != SHUNT_SEQUENCE_DECODE)
            continue;
        if (!has_room(e, s)) {
            /* The reader clears it and wakes us; it may have made room just before. */
            atomic_store(&s->paused, 1);
            atomic_thread_fence(memory_order_seq_cst); /* with the one in take_sequence_event */
            if (!has_room(e, s))
                continue;
            atomic_store(&s->paused, 0);
        }
        rows++;
    }
    return rows;
}

/* The sequence that was submitted first among those that wait for prefill after `after`. */
static uint32_t next_waiting(const struct shunt *e, uint64_t after)
{
    uint64_t lowest = UINT64_MAX;
    uint32_t found = e->sequence_count;

    for (uint32_t i = 0; i < e->sequence_count; i++) {
        uint64_t id = atomic_load_explicit(&e->sequences[i].id, memory_order_relaxed);

        if (state_of(&e->sequences[i]) != SHUNT_SEQUENCE_PREFILL || id <= after || id >= lowest)
            continue;
        lowest = id;
        found = i;
    }
    return found;
}

static void add_row(struct shunt_batch *b, uint32_t sequence, uint32_t position, int32_t id)
{
    b->sequences[b->count] = sequence;
    b->positions[b->count] = position;
    b->ids[b->count] = id;
    b->count++;
}

void shunt_lanes_fill_prefill(struct shunt *e)
{
    struct shunt_batch *b = &e->prefill;
    uint64_t after = 0;
    uint32_t i;

    b->count = 0;
    while (b->count < e->options.chunk && (i = next_waiting(e, after)) < e->sequence_count) {
        const struct shunt_sequence *s = &e->sequences[i];

        for (uint32_t p = s->position; p < s->id_count && b->count < e->options.chunk; p++)
            add_row(b, i, p, s->ids[p]);
        after = atomic_load_explicit(&s->id, memory_order_relaxed);
    }
    shunt_forward_embed(e, b);
}

void shunt_lanes_fill_decode(struct shunt *e)
{
    struct shunt_batch *b = &e->decode;

    b->count = 0;
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        const struct shunt_sequence *s = &e->sequences[i];

        if (state_of(s) == SHUNT_SEQUENCE_DECODE && has_room(e, s))
            add_row(b, i, s->position, s->token);
    }
    shunt_forward_embed(e, b);
}

/* ---- results */

/* A row of logits has come: choose, tell, and see whether that was the last. */
static void take_token(struct shunt *e, struct shunt_sequence *s, const float *logits)
{
    const struct shunt_tokenizer *t = e->model->tokenizer;
    uint32_t vocab = e->model->arch.vocab_count;
    struct shunt_outbox_record record = {.type = SHUNT_EVENT_TOKEN};
    bool stopped = false;

    s->digest = XXH3_64bits_withSeed(logits, vocab * sizeof(*logits), s->digest);
    s->token = shunt_sample(&s->sampler, logits, vocab, e->act.candidates);
    if (!s->ignore_eos && shunt_model_is_end(e->model, s->token)) {
        end(e, s, SHUNT_END_EOS);
        return;
    }
    s->last_ns = shunt_now_ns();
    if (s->tokens == 0)
        s->first_ns = s->last_ns;
    s->tokens++;
    e->tokens++;
    record.token = s->token;
    if (t) {
        int64_t bytes =
            shunt_tokenizer_decode(t, s->token, false, e->piece, shunt_tokenizer_piece_max(t));

        if (bytes > 0)
            record.text_len = (uint32_t)shunt_text_feed(&s->text, (const unsigned char *)e->piece,
                                                        (size_t)bytes, e->text, &stopped);
    }
    shunt_outbox_put(&s->outbox, &record, e->text);
    e->has_events = true;
    if (stopped)
        end_at_stop(e, s);
    else if (s->tokens == s->token_max)
        end(e, s, SHUNT_END_LENGTH);
    else
        set_state(s, SHUNT_SEQUENCE_DECODE);
}

/* Told to stop, the pool skips its tasks: what lies in the buffers then is no result. The flag is
 * set before the pool is told. */
static int check_results(const struct shunt *e, struct shunt_error *err)
{
    return shunt_progress_check(&e->progress, err);
}

/* Computes logits of rows of a batch, a few at a time, and chooses a token from each. */
static int take_tokens(struct shunt *e, const struct shunt_batch *b, const uint32_t *rows,
                       uint32_t count, struct shunt_error *err)
{
    for (uint32_t done = 0; done < count; done += SHUNT_LOGIT_ROWS) {
        uint32_t n = count - done < SHUNT_LOGIT_ROWS ? count - done : SHUNT_LOGIT_ROWS;
        int rc;

        shunt_forward_logits(e, b, rows + done, e->act.logit_rows, n);
        rc = check_results(e, err);
        if (rc)
            return rc;
        for (uint32_t i = 0; i < n; i++)
            take_token(e, &e->sequences[b->sequences[rows[done + i]]], e->act.logit_rows[i]);
    }
    return 0;
}

/* Logits of every prompt position, for a sequence that asked: straight into the caller's memory. */
static void write_prompt_logits(struct shunt *e, const struct shunt_batch *b)
{
    uint32_t rows[SHUNT_LOGIT_ROWS];
    float *out[SHUNT_LOGIT_ROWS];
    uint32_t n = 0;

    for (uint32_t r = 0; r < b->count; r++) {
        const struct shunt_sequence *s = &e->sequences[b->sequences[r]];

        if (s->logits) {
            rows[n] = r;
            out[n++] = s->logits + (size_t)b->positions[r] * e->model->arch.vocab_count;
        }
        if (n == SHUNT_LOGIT_ROWS || (r + 1 == b->count && n > 0)) {
            shunt_forward_logits(e, b, rows, out, n);
            n = 0;
        }
    }
}

int shunt_lanes_finish_prefill(struct shunt *e, struct shunt_error *err)
{
    struct shunt_batch *b = &e->prefill;
    uint32_t complete[SHUNT_SEQUENCES_MAX];
    uint32_t n = 0;
    int rc;

    write_prompt_logits(e, b);
    rc = check_results(e, err);
    if (rc)
        return rc;
    e->prompt_tokens += b->count;
    for (uint32_t r = 0; r < b->count; r++) {
        struct shunt_sequence *s = &e->sequences[b->sequences[r]];

        s->position = b->positions[r] + 1;
        if (s->position < s->id_count)
            continue;
        if (s->token_max > 0)
            complete[n++] = r;
        else
            end(e, s, SHUNT_END_LENGTH);
    }
    rc = take_tokens(e, b, complete, n, err);
    b->count = 0;
    return rc;
}

int shunt_lanes_finish_decode(struct shunt *e, struct shunt_error *err)
{
    struct shunt_batch *b = &e->decode;
    uint32_t rows[SHUNT_SEQUENCES_MAX];
    int rc;

    for (uint32_t r = 0; r < b->count; r++) {
        e->sequences[b->sequences[r]].position++;
        rows[r] = r;
    }
    rc = take_tokens(e, b, rows, b->count, err);
    b->count = 0;
    return rc;
}
