/* SPDX-License-Identifier: Apache-2.0
 *
 * The caller's side of a running engine: submit, poll, cancel, statistics.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/engine/engine_impl.h"

/* ---- submit */

void shunt_request_init(struct shunt_request *request)
{
    *request = (struct shunt_request){.size = sizeof(*request), .top_p = 1};
}

static int check_request(const struct shunt *e, const struct shunt_request *r,
                         struct shunt_error *err)
{
    uint32_t vocab = e->model->arch.vocab_count;

    if (r->size != sizeof(*r))
        return shunt_error_set(err, -EINVAL,
                               "struct shunt_request has %zu bytes here and %zu there; call "
                               "shunt_request_init, and compile against the installed shunt.h",
                               sizeof(*r), r->size);
    if (r->id_count == 0 || !r->ids)
        return shunt_error_set(err, -EINVAL, "the prompt is empty");
    if ((uint64_t)r->id_count + r->token_max > e->context)
        return shunt_error_set(err, -EINVAL,
                               "prompt %u + tokens %u do not fit a context of %u; raise --ctx or "
                               "ask for fewer",
                               r->id_count, r->token_max, e->context);
    for (uint32_t i = 0; i < r->id_count; i++)
        if (r->ids[i] < 0 || (uint32_t)r->ids[i] >= vocab)
            return shunt_error_set(
                err, -ERANGE, "id %" PRId32 " at position %u is outside the vocabulary [0, %u)",
                r->ids[i], i, vocab);
    if (!(r->temperature >= 0) || !isfinite(r->temperature))
        return shunt_error_set(err, -EINVAL, "temperature: %g is not 0 or more",
                               (double)r->temperature);
    if (!(r->top_p > 0 && r->top_p <= 1))
        return shunt_error_set(err, -EINVAL, "top_p: %g is not in (0, 1]", (double)r->top_p);
    if (r->stop_count > SHUNT_STOPS_MAX)
        return shunt_error_set(err, -EINVAL, "%u stop strings; at most %u", r->stop_count,
                               SHUNT_STOPS_MAX);
    if (r->stop_count > 0 && !e->model->tokenizer)
        return shunt_error_set(err, -ENOTSUP, "stop strings need a tokenizer: %s",
                               e->model->tokenizer_error.text);
    for (uint32_t i = 0; i < r->stop_count; i++)
        if (!r->stop[i] || r->stop[i][0] == '\0' || strlen(r->stop[i]) > SHUNT_STOP_BYTES_MAX)
            return shunt_error_set(err, -EINVAL, "a stop string has 1 to %u bytes",
                                   SHUNT_STOP_BYTES_MAX);
    return 0;
}

static void fill_in(struct shunt_sequence *s, const struct shunt_request *r)
{
    memcpy(s->ids, r->ids, r->id_count * sizeof(*s->ids));
    s->id_count = r->id_count;
    s->token_max = r->token_max;
    s->ignore_eos = r->ignore_eos;
    s->logits = r->logits;
    s->submit_ns = shunt_now_ns();
    s->sampler = (struct shunt_sampler){
        .temperature = r->temperature, .top_p = r->top_p, .top_k = r->top_k, .random = r->seed};
    memset(&s->text, 0, sizeof(s->text));
    s->text.stop_count = r->stop_count;
    for (uint32_t i = 0; i < r->stop_count; i++) {
        s->text.stop_lens[i] = (uint32_t)strlen(r->stop[i]);
        memcpy(s->text.stops[i], r->stop[i], s->text.stop_lens[i]);
    }
    shunt_outbox_reset(&s->outbox);
    atomic_store(&s->paused, 0);
}

int shunt_submit(struct shunt *e, const struct shunt_request *request, uint64_t *id,
                 struct shunt_error *err)
{
    int rc;

    if (e->serve_only)
        return shunt_error_set(err, -EINVAL, "this node was opened to serve only");
    rc = check_request(e, request, err);
    if (rc)
        return rc;
    if (atomic_load(&e->leaving) && !shunt_rack_down(e->rack))
        return shunt_error_set(err, -EPIPE, "this node is leaving the rack");
    if (shunt_rack_down(e->rack) || atomic_load(&e->closed))
        return shunt_error_set(err, -EPIPE, "the rack is down");
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        struct shunt_sequence *s = &e->sequences[i];
        uint32_t state = SHUNT_SEQUENCE_FREE;

        if (!atomic_compare_exchange_strong(&s->state, &state, SHUNT_SEQUENCE_CLAIMED))
            continue;
        fill_in(s, request);
        *id = atomic_fetch_add(&e->next_id, 1) + 1;
        atomic_store(&s->id, *id);
        /* Pairs with the acquire in lanes.c; and either the engine's last look sees the sequence,
         * or we see that there was one. */
        atomic_store(&s->state, SHUNT_SEQUENCE_SUBMITTED);
        state = SHUNT_SEQUENCE_SUBMITTED;
        if (atomic_load(&e->closed) &&
            atomic_compare_exchange_strong(&s->state, &state, SHUNT_SEQUENCE_FREE))
            return shunt_error_set(err, -EPIPE, "the rack is down");
        shunt_engine_wake(e);
        return 0;
    }
    return shunt_error_set(err, -EAGAIN, "%u sequences are alive already; wait for one to end",
                           e->sequence_count);
}

int shunt_cancel(struct shunt *e, uint64_t id)
{
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        struct shunt_sequence *s = &e->sequences[i];
        uint32_t state = atomic_load_explicit(&s->state, memory_order_acquire);

        if (atomic_load(&s->id) != id || state == SHUNT_SEQUENCE_FREE ||
            state == SHUNT_SEQUENCE_CLAIMED || state == SHUNT_SEQUENCE_ENDED)
            continue;
        atomic_store(&s->cancel_id, id);
        shunt_engine_wake(e);
        return 0;
    }
    return -ENOENT;
}

/* ---- poll */

static void fill_end(struct shunt_event *event, const struct shunt_sequence *s)
{
    event->reason = s->reason;
    event->prompt_tokens = s->id_count;
    event->tokens = s->tokens;
    event->ttft_ns = s->first_ns ? s->first_ns - s->submit_ns : 0;
    event->decode_ns = s->last_ns - s->first_ns;
    event->digest = s->digest;
}

static bool take_sequence_event(struct shunt *e, uint32_t index, struct shunt_event *event)
{
    struct shunt_sequence *s = &e->sequences[index];
    uint32_t state = atomic_load_explicit(&s->state, memory_order_acquire);
    struct shunt_outbox_record record;

    if (state == SHUNT_SEQUENCE_FREE || state == SHUNT_SEQUENCE_CLAIMED ||
        !shunt_outbox_take(&s->outbox, &record, e->poll_text))
        return false;
    e->poll_text[record.text_len] = '\0';
    event->type = (enum shunt_event_type)record.type;
    event->id = atomic_load(&s->id);
    event->token = record.token;
    event->text = e->poll_text;
    event->text_len = record.text_len;
    if (event->type == SHUNT_EVENT_END) {
        fill_end(event, s);
        if (event->reason == SHUNT_END_ERROR)
            event->error = shunt_rack_down(e->rack);
        atomic_store_explicit(&s->state, SHUNT_SEQUENCE_FREE, memory_order_release);
    } else {
        atomic_thread_fence(memory_order_seq_cst); /* with the one in shunt_lanes_decode_rows */
        if (atomic_exchange(&s->paused, 0))
            shunt_engine_wake(e); /* there is room again */
    }
    return true;
}

static bool take_common_event(struct shunt *e, struct shunt_event *event)
{
    bool taken = false;

    pthread_mutex_lock(&e->mutex);
    if (e->notice_count > 0) {
        event->type = SHUNT_EVENT_NOTICE;
        memcpy(e->notice_text, e->notices[e->notice_head], sizeof(e->notice_text));
        e->notice_head = (e->notice_head + 1) % SHUNT_NOTICES_MAX;
        e->notice_count--;
        taken = true;
    } else if (e->down && !e->down_taken) {
        event->type = SHUNT_EVENT_RACK_DOWN;
        memcpy(e->notice_text, e->down_error.text, sizeof(e->notice_text));
        event->error = e->down_error.code;
        event->rank = e->down_rank;
        e->down_taken = true;
        taken = true;
    }
    pthread_mutex_unlock(&e->mutex);
    event->text = e->notice_text;
    event->text_len = taken ? strlen(e->notice_text) : 0;
    return taken;
}

/* Common events first, then sequences in turn. */
static bool take_any_event(struct shunt *e, struct shunt_event *event)
{
    if (take_common_event(e, event))
        return true;
    for (uint32_t i = 0; i < e->sequence_count; i++) {
        uint32_t index = (e->poll_turn + i) % e->sequence_count;

        if (take_sequence_event(e, index, event)) {
            e->poll_turn = (index + 1) % e->sequence_count;
            return true;
        }
    }
    return false;
}

/* The sequence of that id, or sequence_count. */
static uint32_t find_sequence(struct shunt *e, uint64_t id)
{
    uint32_t i = 0;

    while (i < e->sequence_count) {
        struct shunt_sequence *s = &e->sequences[i];
        uint32_t state = atomic_load_explicit(&s->state, memory_order_acquire);

        if (state > SHUNT_SEQUENCE_CLAIMED && atomic_load(&s->id) == id)
            break;
        i++;
    }
    return i;
}

/* True when no event can come any more. */
static bool is_over(struct shunt *e)
{
    bool over;

    pthread_mutex_lock(&e->mutex);
    over = e->down_taken && atomic_load(&e->finished);
    pthread_mutex_unlock(&e->mutex);
    return over;
}

/* Return: 1 with an event, 0 when there is none now, or why there will be none. */
static int take_event(struct shunt *e, uint64_t id, struct shunt_event *event,
                      struct shunt_error *err)
{
    bool over = is_over(e); /* before looking: what came before it is seen below */
    uint32_t index = id ? find_sequence(e, id) : 0;

    if (index == e->sequence_count)
        return shunt_error_set(err, -ENOENT, "there is no sequence %" PRIu64 ", or it has ended",
                               id);
    *event = (struct shunt_event){.size = sizeof(*event)};
    if (id ? take_sequence_event(e, index, event) : take_any_event(e, event))
        return 1;
    if (!id && over)
        return shunt_error_set(err, -EPIPE, "the rack is down");
    return 0;
}

int shunt_poll(struct shunt *e, uint64_t id, struct shunt_event *event, int64_t timeout_ns,
               struct shunt_error *err)
{
    int64_t deadline = shunt_deadline_ns(timeout_ns);
    bool cleared = false;

    if (event->size != sizeof(*event))
        return shunt_error_set(err, -EINVAL,
                               "struct shunt_event has %zu bytes here and %zu there; set its size",
                               sizeof(*event), event->size);
    for (;;) {
        struct pollfd fd = {.fd = e->event_fd, .events = POLLIN};
        int rc = take_event(e, id, event, err);
        struct timespec timeout;
        uint64_t sink;
        int64_t left;

        if (rc) {
            /* There may be more than this one. */
            if (cleared)
                shunt_engine_signal(e);
            return rc;
        }
        /* Cleared only when nothing was there; what comes after makes it readable again. */
        if (read(e->event_fd, &sink, sizeof(sink)) == sizeof(sink)) {
            cleared = true;
            continue;
        }
        left = deadline - shunt_now_ns();
        if (left <= 0)
            return 0;
        timeout = shunt_timespec(left);
        ppoll(&fd, 1, timeout_ns < 0 ? NULL : &timeout, NULL);
    }
}

int shunt_get_fd(const struct shunt *e)
{
    return e->event_fd;
}

/* ---- statistics */

int shunt_get_stats(const struct shunt *engine, struct shunt_stats *stats)
{
    struct shunt *e = (struct shunt *)(uintptr_t)engine; /* atomics are read through it only */
    uint64_t words[SHUNT_STATS_WORDS];
    uint32_t before, after;

    if (stats->size != sizeof(*stats))
        return -EINVAL;
    do {
        before = atomic_load(&e->stats_version);
        for (uint32_t i = 0; i < SHUNT_STATS_WORDS; i++)
            words[i] = atomic_load(&e->stats_words[i]);
        after = atomic_load(&e->stats_version);
    } while (before != after || before % 2);
    memcpy(stats, words, sizeof(*stats));
    return 0;
}
