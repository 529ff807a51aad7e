/* SPDX-License-Identifier: Apache-2.0
 *
 * api MODEL
 *
 * What a program that embeds libshunt relies on, through shunt.h alone.
 */
#include <errno.h>
#include <fenv.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rack.h"

#define SECOND  1000000000ll
#define TIMEOUT (60 * SECOND)

static const shunt_model *model;
static struct shunt_model_info info = {.size = sizeof(info)};
static int failures, tests;

/* Ends a case at its first unmet expectation. */
#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("# %s:%d: %s\n", __FILE__, __LINE__, #condition);                               \
            return false;                                                                          \
        }                                                                                          \
    } while (0)

/* ---- helpers */

static struct shunt_config config(void)
{
    struct shunt_config cfg;

    shunt_config_init(&cfg);
    cfg.threads = 1;
    cfg.context = 2048;
    return cfg;
}

static shunt *open_engine(const struct shunt_config *cfg)
{
    struct shunt_error err;
    shunt *engine;

    if (shunt_open(&engine, model, cfg, &err)) {
        printf("# shunt_open: %s\n", err.text);
        return NULL;
    }
    return engine;
}

static const int32_t some_ids[] = {43, 1500, 77, 900};

static struct shunt_request request(uint32_t tokens)
{
    struct shunt_request r;

    shunt_request_init(&r);
    r.ids = some_ids;
    r.id_count = 4;
    r.token_max = tokens;
    r.ignore_eos = true;
    return r;
}

/* Everything a sequence says until its end. */
struct heard {
    char text[16384];
    int32_t ids[2048];
    uint32_t count;
    struct shunt_event end;
};

static bool hear(shunt *engine, uint64_t id, struct heard *h)
{
    memset(h, 0, sizeof(*h));
    for (;;) {
        struct shunt_event event = {.size = sizeof(event)};
        struct shunt_error err;

        if (shunt_poll(engine, id, &event, TIMEOUT, &err) != 1)
            return false;
        if (event.id != id)
            continue;
        strncat(h->text, event.text, sizeof(h->text) - strlen(h->text) - 1);
        if (event.type == SHUNT_EVENT_END) {
            h->end = event;
            h->end.text = NULL;
            return true;
        }
        h->ids[h->count++] = event.token;
    }
}

static bool generate(shunt *engine, const struct shunt_request *r, struct heard *h)
{
    struct shunt_error err;
    uint64_t id;

    return shunt_submit(engine, r, &id, &err) == 0 && hear(engine, id, h);
}

/* ---- cases */

static bool wrong_options_are_named(void)
{
    static const struct {
        const char *word;
        size_t offset;
        uint32_t value;
    } numbers[] = {
        {"nodes", offsetof(struct shunt_config, node_count), 65},
        {"rank", offsetof(struct shunt_config, rank), 1},
        {"context", offsetof(struct shunt_config, context), 1000000},
        {"sequences", offsetof(struct shunt_config, sequences_max), 257},
        {"chunk", offsetof(struct shunt_config, chunk), 5000},
        {"threads", offsetof(struct shunt_config, threads), 1000},
        {"local nodes", offsetof(struct shunt_config, local_nodes), 65},
        {"slots", offsetof(struct shunt_config, slot_count), 1},
        {"slots", offsetof(struct shunt_config, slot_count), 100000},
        {"slots", offsetof(struct shunt_config, slot_percent), 101},
    };
    static const struct {
        const char *word;
        size_t offset;
    } texts[] = {
        {"kernels", offsetof(struct shunt_config, kernels)},
        {"io", offsetof(struct shunt_config, io)},
        {"io mode", offsetof(struct shunt_config, io_mode)},
        {"transport", offsetof(struct shunt_config, transport)},
        {"placement", offsetof(struct shunt_config, placement)},
    };
    const char *nonsense = "nonsense";
    struct shunt_config cfg;
    struct shunt_error err;
    shunt *engine = NULL;

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        cfg = config();
        memcpy((char *)&cfg + numbers[i].offset, &numbers[i].value, sizeof(uint32_t));
        EXPECT(shunt_open(&engine, model, &cfg, &err) == -EINVAL);
        EXPECT(strstr(err.text, numbers[i].word));
    }
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        cfg = config();
        memcpy((char *)&cfg + texts[i].offset, &nonsense, sizeof(nonsense));
        EXPECT(shunt_open(&engine, model, &cfg, &err) == -EINVAL);
        EXPECT(strstr(err.text, texts[i].word) && strstr(err.text, "nonsense"));
    }
    cfg = config();
    cfg.size -= 8;
    EXPECT(shunt_open(&engine, model, &cfg, &err) == -EINVAL);
    cfg = config();
    cfg.memory_bytes = 1 << 20;
    EXPECT(shunt_open(&engine, model, &cfg, &err) == -ENOMEM && strstr(err.text, "--memory"));
    cfg = config();
    cfg.node_count = 2;
    EXPECT(shunt_open(&engine, model, &cfg, &err) == -EINVAL && strstr(err.text, "address"));
    EXPECT(engine == NULL);
    return true;
}

static bool wrong_requests_are_refused(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(4);
    struct shunt_error err;
    const int32_t outside[] = {1, (int32_t)info.vocab_count}, negative[] = {-1};
    const char *stops[] = {""};
    uint64_t id;

    EXPECT(engine);
    r.id_count = 0;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -EINVAL);
    r = request(4);
    r.ids = outside;
    r.id_count = 2;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -ERANGE && strstr(err.text, "position 1"));
    r.ids = negative;
    r.id_count = 1;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -ERANGE);
    r = request(2045);
    EXPECT(shunt_submit(engine, &r, &id, &err) == -EINVAL && strstr(err.text, "2048"));
    r = request(4);
    r.temperature = -1;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -EINVAL);
    r = request(4);
    r.top_p = 0;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -EINVAL);
    r = request(4);
    r.stop = stops;
    r.stop_count = 1;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -EINVAL);
    r.stop_count = 9;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -EINVAL);
    r = request(4);
    r.size = 8;
    EXPECT(shunt_submit(engine, &r, &id, &err) == -EINVAL);
    EXPECT(shunt_cancel(engine, 12345) == -ENOENT);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static bool sequences_have_a_limit_and_places_are_used_again(void)
{
    struct shunt_config cfg = config();
    struct shunt_request r = request(8);
    struct shunt_error err;
    struct heard h;
    uint64_t ids[3];
    shunt *engine;

    cfg.sequences_max = 2;
    engine = open_engine(&cfg);
    EXPECT(engine);
    for (int round = 0; round < 20; round++) {
        EXPECT(shunt_submit(engine, &r, &ids[0], &err) == 0);
        EXPECT(shunt_submit(engine, &r, &ids[1], &err) == 0);
        EXPECT(shunt_submit(engine, &r, &ids[2], &err) == -EAGAIN);
        EXPECT(ids[0] != ids[1]);
        EXPECT(hear(engine, ids[1], &h) && h.count == 8 && h.end.reason == SHUNT_END_LENGTH);
        EXPECT(hear(engine, ids[0], &h) && h.end.prompt_tokens == 4 && h.end.tokens == 8);
        EXPECT(h.end.ttft_ns > 0 && h.end.decode_ns > 0);
    }
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static bool a_prompt_alone_is_computed_without_tokens(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(0);
    struct heard h;

    EXPECT(engine);
    EXPECT(generate(engine, &r, &h));
    EXPECT(h.count == 0 && h.end.reason == SHUNT_END_LENGTH && h.end.ttft_ns == 0);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static bool cancel_ends_a_sequence(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(2000);
    struct shunt_error err;
    struct heard h;
    uint64_t id;

    EXPECT(engine);
    EXPECT(shunt_submit(engine, &r, &id, &err) == 0);
    EXPECT(shunt_cancel(engine, id) == 0);
    EXPECT(hear(engine, id, &h));
    EXPECT(h.end.reason == SHUNT_END_CANCELLED && h.count < 2000);
    EXPECT(shunt_cancel(engine, id) == -ENOENT);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

/* One sequence's events are left lying; it pauses, another runs to its end, then the first goes on.
 */
static bool a_slow_reader_pauses_its_own_sequence_only(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(600);
    struct shunt_stats stats = {.size = sizeof(stats)};
    struct shunt_error err;
    static struct heard slow, fast;
    uint64_t slow_id, fast_id;

    EXPECT(engine);
    EXPECT(shunt_submit(engine, &r, &slow_id, &err) == 0);
    EXPECT(shunt_submit(engine, &r, &fast_id, &err) == 0);
    EXPECT(hear(engine, fast_id, &fast) && fast.count == 600);
    EXPECT(shunt_get_stats(engine, &stats) == 0);
    EXPECT(stats.tokens < 1000); /* the slow one has not been carried along */
    EXPECT(hear(engine, slow_id, &slow) && slow.count == 600);
    EXPECT(!memcmp(slow.ids, fast.ids, 600 * sizeof(int32_t)));
    EXPECT(slow.end.digest == fast.end.digest);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static bool text_is_the_tokens_text(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(200);
    char expected[16384] = "";
    struct heard h;

    EXPECT(engine);
    EXPECT(generate(engine, &r, &h));
    for (uint32_t i = 0; i < h.count; i++) {
        char piece[256];
        int64_t n = shunt_detokenize(model, h.ids[i], false, piece, sizeof(piece) - 1);

        EXPECT(n >= 0);
        piece[n] = '\0';
        strcat(expected, piece);
    }
    EXPECT(strlen(expected) > 20);
    /* The last character may be cut; then it is replaced. */
    EXPECT(!strncmp(h.text, expected, strlen(expected) - 4));
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static bool a_stop_string_ends_before_itself(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(100);
    const char *stops[2] = {"never in this text", NULL};
    char stop[8] = "";
    struct heard all, h;

    EXPECT(engine);
    EXPECT(generate(engine, &r, &all) && strlen(all.text) > 60);
    memcpy(stop, all.text + 40, 5); /* across tokens, most likely */
    stops[1] = stop;
    r.stop = stops;
    r.stop_count = 2;
    EXPECT(generate(engine, &r, &h));
    EXPECT(h.end.reason == SHUNT_END_STOP && h.count < all.count);
    EXPECT(strlen(h.text) == (size_t)(strstr(all.text, stop) - all.text));
    EXPECT(!strncmp(h.text, all.text, strlen(h.text)));
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static bool sampling_is_reproducible(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(64);
    struct heard greedy, a, b, c;

    EXPECT(engine);
    EXPECT(generate(engine, &r, &greedy));
    r.temperature = 1.2f;
    r.top_k = 50;
    r.top_p = 0.95f;
    r.seed = 7;
    EXPECT(generate(engine, &r, &a) && generate(engine, &r, &b));
    EXPECT(!memcmp(a.ids, b.ids, sizeof(a.ids)));
    EXPECT(memcmp(a.ids, greedy.ids, sizeof(a.ids)));
    r.seed = 8;
    EXPECT(generate(engine, &r, &c) && memcmp(a.ids, c.ids, sizeof(a.ids)));
    r.top_k = 1;
    EXPECT(generate(engine, &r, &c) && !memcmp(greedy.ids, c.ids, sizeof(c.ids)));
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

/* Threads inherit the floating-point environment of whoever creates them. */
static bool the_callers_rounding_does_not_show(void)
{
    struct shunt_config cfg = config();
    struct shunt_request r = request(32);
    struct heard nearest, downward;
    shunt *engine;

    cfg.threads = 2;
    engine = open_engine(&cfg);
    EXPECT(engine && generate(engine, &r, &nearest) && shunt_close(engine, TIMEOUT) == 0);
    fesetround(FE_DOWNWARD);
    engine = open_engine(&cfg);
    fesetround(FE_TONEAREST);
    EXPECT(engine && generate(engine, &r, &downward) && shunt_close(engine, TIMEOUT) == 0);
    EXPECT(nearest.end.digest == downward.end.digest && nearest.end.digest != 0);
    return true;
}

static bool the_descriptor_tells_of_events(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(3);
    struct shunt_event event = {.size = sizeof(event)};
    struct shunt_error err;
    struct pollfd fd;
    uint64_t id;
    int events = 0;

    EXPECT(engine);
    fd = (struct pollfd){.fd = shunt_get_fd(engine), .events = POLLIN};
    while (shunt_poll(engine, 0, &event, 0, &err) == 1)
        ; /* notices of opening */
    EXPECT(poll(&fd, 1, 0) == 0);
    EXPECT(shunt_poll(engine, 0, &event, 1000, &err) == 0);
    EXPECT(shunt_submit(engine, &r, &id, &err) == 0);
    while (events < 4) {
        EXPECT(poll(&fd, 1, 60000) == 1);
        while (shunt_poll(engine, 0, &event, 0, &err) == 1) {
            events++;
            EXPECT((event.type == SHUNT_EVENT_END) == (events == 4));
        }
    }
    EXPECT(events == 4);
    EXPECT(poll(&fd, 1, 0) == 0);
    EXPECT(shunt_poll(engine, id, &event, 0, &err) == -ENOENT);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

/* Who takes one event each time it is readable gets them all. */
static bool the_descriptor_stays_readable_while_there_are_events(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(100);
    struct shunt_event event = {.size = sizeof(event)};
    struct pollfd fd;
    uint64_t id;

    EXPECT(engine);
    fd = (struct pollfd){.fd = shunt_get_fd(engine), .events = POLLIN};
    for (int round = 0; round < 20; round++) {
        EXPECT(shunt_submit(engine, &r, &id, NULL) == 0);
        do {
            EXPECT(poll(&fd, 1, 20000) == 1);
            EXPECT(shunt_poll(engine, 0, &event, 0, NULL) >= 0);
        } while (event.type != SHUNT_EVENT_END);
    }
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

/* The reader takes its time: the sequence is paused for want of room when the node leaves. */
static bool leaving_finishes_what_runs(void)
{
    struct shunt_config cfg = config();
    struct shunt_request r = request(600);
    struct shunt_stats before = {.size = sizeof(before)}, after = {.size = sizeof(after)};
    shunt *engine = open_engine(&cfg);
    static struct heard h;
    uint64_t id;

    EXPECT(engine);
    EXPECT(shunt_submit(engine, &r, &id, NULL) == 0);
    do { /* until it stands still */
        EXPECT(shunt_get_stats(engine, &before) == 0);
        nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
        EXPECT(shunt_get_stats(engine, &after) == 0);
    } while (after.tokens == 0 || after.tokens != before.tokens);
    EXPECT(after.tokens < 600);
    shunt_leave(engine);
    EXPECT(hear(engine, id, &h));
    EXPECT(h.end.reason == SHUNT_END_LENGTH && h.count == 600);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static void *leave_soon(void *engine)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    shunt_leave(engine);
    return NULL;
}

/* Whatever was accepted gets its END, however close to the end of the rack it came. */
static bool every_sequence_gets_its_end(void)
{
    struct shunt_config cfg = config();
    struct shunt_request r = request(1);

    for (int round = 0; round < 10; round++) {
        shunt *engine = open_engine(&cfg);
        uint32_t submitted = 0, ended = 0;
        struct shunt_error err;
        pthread_t thread;
        uint64_t id;
        int rc;

        EXPECT(engine && pthread_create(&thread, NULL, leave_soon, engine) == 0);
        do {
            struct shunt_event event = {.size = sizeof(event)};

            rc = shunt_submit(engine, &r, &id, &err);
            submitted += rc == 0;
            while (shunt_poll(engine, 0, &event, 0, &err) == 1)
                ended += event.type == SHUNT_EVENT_END;
        } while (rc == 0 || rc == -EAGAIN);
        EXPECT(rc == -EPIPE);
        for (;;) {
            struct shunt_event event = {.size = sizeof(event)};

            rc = shunt_poll(engine, 0, &event, TIMEOUT, &err);
            if (rc != 1)
                break;
            ended += event.type == SHUNT_EVENT_END;
        }
        EXPECT(rc == -EPIPE && submitted > 0 && ended == submitted);
        pthread_join(thread, NULL);
        EXPECT(shunt_close(engine, TIMEOUT) == 0);
    }
    return true;
}

static bool steps_are_counted(void)
{
    struct shunt_config cfg = config();
    struct shunt_stats stats = {.size = sizeof(stats)};
    struct shunt_request r = request(8);
    shunt *engine = open_engine(&cfg);
    struct heard h;

    EXPECT(engine && generate(engine, &r, &h));
    while (shunt_get_stats(engine, &stats) == 0 && stats.decode_steps < 7)
        ; /* published after the events */
    EXPECT(stats.decode_steps == 7 && stats.steps == info.layer_count + 7);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

static bool closing_cancels_what_runs(void)
{
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);
    struct shunt_request r = request(2000);
    struct shunt_stats stats = {.size = sizeof(stats)};
    uint64_t id;

    EXPECT(engine);
    EXPECT(shunt_get_stats(engine, &stats) == 0 && stats.kernels && stats.slot_count > 0);
    stats.size = 1;
    EXPECT(shunt_get_stats(engine, &stats) == -EINVAL);
    for (int i = 0; i < 4; i++)
        EXPECT(shunt_submit(engine, &r, &id, NULL) == 0);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    EXPECT(shunt_close(NULL, 0) == 0);
    return true;
}

static bool a_footprint_is_what_an_engine_takes(void)
{
    struct shunt_config cfg = config();
    struct shunt_footprint f = {.size = sizeof(f)};
    struct shunt_stats stats = {.size = sizeof(stats)};
    struct shunt_error err;
    shunt *engine;

    cfg.slot_percent = 50;
    EXPECT(shunt_get_footprint(model, &cfg, &f, &err) == 0);
    EXPECT(f.slot_count == 96 && f.total_bytes > f.slot_bytes + f.dense_bytes + f.kv_bytes);
    engine = open_engine(&cfg);
    EXPECT(engine);
    EXPECT(shunt_get_stats(engine, &stats) == 0);
    EXPECT(stats.memory_bytes <= f.dense_bytes + f.kv_bytes + f.work_bytes + f.slot_bytes);
    EXPECT(stats.memory_bytes >= f.dense_bytes + f.kv_bytes);
    EXPECT(shunt_close(engine, TIMEOUT) == 0);
    return true;
}

/* ---- two nodes */

struct node {
    struct shunt_config cfg;
    shunt *engine;
    pthread_t thread;
};

static void *open_node(void *arg)
{
    struct node *n = arg;

    n->engine = open_engine(&n->cfg);
    return NULL;
}

static bool open_pair(struct node nodes[2], bool second_serves)
{
    static char addresses[2][32];
    static const char *rack[2] = {addresses[0], addresses[1]};

    for (uint32_t i = 0; i < 2; i++) {
        nodes[i].cfg = config();
        nodes[i].cfg.rank = i;
        nodes[i].cfg.node_count = 2;
        nodes[i].cfg.rack = rack;
        nodes[i].cfg.serve_only = i == 1 && second_serves;
        nodes[i].cfg.listen_fd = driver_listen(addresses[i], sizeof(addresses[i]));
        EXPECT(nodes[i].cfg.listen_fd >= 0);
    }
    for (uint32_t i = 0; i < 2; i++)
        pthread_create(&nodes[i].thread, NULL, open_node, &nodes[i]);
    for (uint32_t i = 0; i < 2; i++)
        pthread_join(nodes[i].thread, NULL);
    EXPECT(nodes[0].engine && nodes[1].engine);
    return true;
}

static bool wait_for_down(shunt *engine, struct shunt_event *event)
{
    struct shunt_error err;

    do
        *event = (struct shunt_event){.size = sizeof(*event)};
    while (shunt_poll(engine, 0, event, TIMEOUT, &err) == 1 &&
           event->type != SHUNT_EVENT_RACK_DOWN);
    return event->type == SHUNT_EVENT_RACK_DOWN;
}

static bool a_rack_ends_in_order(void)
{
    struct shunt_request r = request(16);
    struct shunt_error err;
    struct shunt_event event;
    struct node nodes[2];
    struct heard h;
    uint64_t id;

    EXPECT(open_pair(nodes, true));
    EXPECT(shunt_submit(nodes[1].engine, &r, &id, &err) == -EINVAL && strstr(err.text, "serve"));
    EXPECT(generate(nodes[0].engine, &r, &h) && h.count == 16);
    shunt_leave(nodes[0].engine);
    EXPECT(shunt_submit(nodes[0].engine, &r, &id, &err) == -EPIPE);
    for (int i = 0; i < 2; i++) {
        EXPECT(wait_for_down(nodes[i].engine, &event) && event.error == 0);
        EXPECT(shunt_poll(nodes[i].engine, 0, &event, TIMEOUT, &err) == -EPIPE);
        EXPECT(shunt_close(nodes[i].engine, 0) == 0);
    }
    return true;
}

static bool a_node_that_leaves_early_is_named(void)
{
    struct shunt_request r = request(2000);
    struct shunt_error err;
    struct shunt_event event;
    struct node nodes[2];
    struct heard h;
    uint64_t id;

    EXPECT(open_pair(nodes, false));
    EXPECT(shunt_submit(nodes[0].engine, &r, &id, &err) == 0);
    EXPECT(shunt_close(nodes[1].engine, 0) == -ETIMEDOUT);
    EXPECT(wait_for_down(nodes[0].engine, &event));
    EXPECT(event.error < 0 && event.rank == 1 && strstr(event.text, "rank 1"));
    EXPECT(hear(nodes[0].engine, id, &h) && h.end.reason == SHUNT_END_ERROR && h.end.error < 0);
    EXPECT(shunt_submit(nodes[0].engine, &r, &id, &err) == -EPIPE);
    EXPECT(shunt_close(nodes[0].engine, TIMEOUT) == event.error);
    return true;
}

struct death {
    shunt *engine;
    int64_t after_ns;
};

static void *die(void *arg)
{
    const struct death *d = arg;

    nanosleep(&(struct timespec){.tv_nsec = (long)d->after_ns}, NULL);
    shunt_close(d->engine, 0);
    return NULL;
}

/* A peer goes at any moment: what is told until then is what one node alone says. */
static bool no_wrong_token_is_told_when_a_peer_goes(void)
{
    static struct heard alone, h;
    struct shunt_request r = request(1500);
    struct shunt_config cfg = config();
    shunt *engine = open_engine(&cfg);

    EXPECT(engine && generate(engine, &r, &alone) && shunt_close(engine, TIMEOUT) == 0);
    for (int round = 0; round < 12; round++) {
        struct shunt_event event;
        struct node nodes[2];
        struct death death;
        pthread_t thread;
        uint64_t id;

        EXPECT(open_pair(nodes, true));
        EXPECT(shunt_submit(nodes[0].engine, &r, &id, NULL) == 0);
        death = (struct death){nodes[1].engine, 10000000 + round * 3700000};
        EXPECT(pthread_create(&thread, NULL, die, &death) == 0);
        EXPECT(hear(nodes[0].engine, id, &h) && h.end.reason == SHUNT_END_ERROR);
        EXPECT(h.count < 1500 && !memcmp(h.ids, alone.ids, h.count * sizeof(h.ids[0])));
        pthread_join(thread, NULL);
        EXPECT(wait_for_down(nodes[0].engine, &event));
        shunt_close(nodes[0].engine, 0);
    }
    return true;
}

static const struct {
    const char *name;
    bool (*run)(void);
} cases[] = {
    {"wrong options are named", wrong_options_are_named},
    {"wrong requests are refused", wrong_requests_are_refused},
    {"sequences have a limit, places are used again",
     sequences_have_a_limit_and_places_are_used_again},
    {"a prompt alone is computed without tokens", a_prompt_alone_is_computed_without_tokens},
    {"cancel ends a sequence", cancel_ends_a_sequence},
    {"a slow reader pauses its own sequence only", a_slow_reader_pauses_its_own_sequence_only},
    {"text is the tokens' text", text_is_the_tokens_text},
    {"a stop string ends before itself", a_stop_string_ends_before_itself},
    {"sampling is reproducible", sampling_is_reproducible},
    {"the caller's rounding does not show", the_callers_rounding_does_not_show},
    {"the descriptor tells of events", the_descriptor_tells_of_events},
    {"the descriptor stays readable while there are events",
     the_descriptor_stays_readable_while_there_are_events},
    {"leaving finishes what runs", leaving_finishes_what_runs},
    {"every sequence gets its end", every_sequence_gets_its_end},
    {"steps are counted", steps_are_counted},
    {"closing cancels what runs", closing_cancels_what_runs},
    {"a footprint is what an engine takes", a_footprint_is_what_an_engine_takes},
    {"a rack ends in order", a_rack_ends_in_order},
    {"a node that leaves early is named", a_node_that_leaves_early_is_named},
    {"no wrong token is told when a peer goes", no_wrong_token_is_told_when_a_peer_goes},
};

int main(int argc, char **argv)
{
    struct shunt_error err;
    shunt_model *opened;

    if (argc < 2 || shunt_model_open(&opened, argv[1], &err)) {
        fprintf(stderr, "%s\n", argc < 2 ? "usage: api MODEL" : err.text);
        return 2;
    }
    model = opened;
    shunt_model_get_info(model, &info);
    printf("1..%zu\n", sizeof(cases) / sizeof(cases[0]));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bool ok = cases[i].run();

        printf("%s %d - %s\n", ok ? "ok" : "not ok", ++tests, cases[i].name);
        fflush(stdout);
        failures += !ok;
    }
    shunt_model_close(opened);
    return failures ? 1 : 0;
}
