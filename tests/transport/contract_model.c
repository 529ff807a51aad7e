/* SPDX-License-Identifier: Apache-2.0
 *
 * Random operations against a model of the contract.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "tests/random.h"
#include "tests/transport/contract.h"

#define MODEL_NODES 3u
#define AREA        (300u << 10) /* each node's own in each inbox */
#define IN_FLIGHT   (SHUNT_TRANSPORT_DEPTH + 4096u)

struct message {
    uint64_t off, bytes;
    uint32_t imm;
    unsigned char *copy;
};

/* One direction of a pair. */
struct link {
    struct message sent[SHUNT_TRANSPORT_DEPTH]; /* no SENT yet, oldest first */
    unsigned char *sources; /* [SHUNT_TRANSPORT_DEPTH + 1][AREA], used in turn */
    uint64_t next_source, first_source;
    uint32_t sent_count;
    struct message flying[IN_FLIGHT]; /* not ARRIVED yet, oldest first */
    uint32_t flying_count;
    uint32_t next_imm;
};

struct model {
    struct mesh mesh;
    struct link links[MODEL_NODES][MODEL_NODES]; /* [from][to] */
    unsigned char *images[MODEL_NODES];
    uint64_t seed, random;
};

static bool overlaps_one_under_way(const struct link *l, uint64_t off, uint64_t bytes)
{
    for (uint32_t i = 0; i < l->flying_count; i++)
        if (l->flying[i].off < off + bytes && off < l->flying[i].off + l->flying[i].bytes)
            return true;
    return false;
}

static void model_put(struct model *m, uint32_t from, uint32_t to)
{
    struct link *l = &m->links[from][to];
    uint32_t kind = random_below(&m->random, 20);
    uint64_t most = kind == 0 ? AREA : kind < 3 ? 70000 : kind < 18 ? 3000 : 1;
    uint64_t bytes = random_below(&m->random, (uint32_t)most);
    uint64_t off = (uint64_t)from * AREA + random_below(&m->random, (uint32_t)(AREA - bytes));
    unsigned char *source = l->sources + (l->next_source++ % (SHUNT_TRANSPORT_DEPTH + 1)) * AREA;
    unsigned char *copy = malloc(bytes + 1);
    struct message message = {.off = off, .imm = l->next_imm, .copy = copy};
    int rc;

    /* Of two that are under way at once nobody says whose bytes stay. */
    if (overlaps_one_under_way(l, off, bytes))
        bytes = 0;
    message.bytes = bytes;
    cr_assert(copy && l->flying_count < IN_FLIGHT);
    memset(source, (int)random_next(&m->random), bytes);
    if (bytes > 16)
        random_fill(&m->random, source + random_below(&m->random, (uint32_t)bytes - 16), 16);
    memcpy(copy, source, bytes);
    rc = mesh_put(&m->mesh, from, to, source, bytes, off, l->next_imm);
    cr_assert_eq(rc, l->sent_count == SHUNT_TRANSPORT_DEPTH ? -EAGAIN : 0, "seed %lu", m->seed);
    if (rc) {
        l->next_source--;
        free(copy);
        return;
    }
    l->next_imm++;
    l->sent[l->sent_count++] = message;
    l->flying[l->flying_count++] = message;
}

static void model_sent(struct model *m, uint32_t from, const struct shunt_completion *c)
{
    struct link *l = &m->links[from][c->peer];

    cr_assert_gt(l->sent_count, 0, "seed %lu", m->seed);
    cr_assert_eq(c->imm, l->sent[0].imm, "seed %lu: SENT", m->seed);
    /* It is ours again. */
    memset(l->sources + (l->first_source++ % (SHUNT_TRANSPORT_DEPTH + 1)) * AREA, 0xdd,
           l->sent[0].bytes);
    l->sent_count--;
    memmove(l->sent, l->sent + 1, l->sent_count * sizeof(*l->sent));
}

static void model_arrived(struct model *m, uint32_t to, const struct shunt_completion *c)
{
    struct link *l = &m->links[c->peer][to];
    const struct message *first = &l->flying[0];

    cr_assert_gt(l->flying_count, 0, "seed %lu", m->seed);
    cr_assert_eq(c->imm, first->imm, "seed %lu: ARRIVED", m->seed);
    cr_assert_eq(memcmp(m->mesh.nodes[to].inbox + first->off, first->copy, first->bytes), 0,
                 "seed %lu: %u from %u is not there", m->seed, c->imm, c->peer);
    memcpy(m->images[to] + first->off, first->copy, first->bytes);
    free(first->copy);
    l->flying_count--;
    memmove(l->flying, l->flying + 1, l->flying_count * sizeof(*l->flying));
}

static uint32_t model_poll(struct model *m, uint32_t n, uint32_t max)
{
    struct shunt_completion c[16];
    uint32_t count = mesh_poll(&m->mesh, n, c, max);

    for (uint32_t i = 0; i < count; i++) {
        cr_assert(c[i].event == SHUNT_TRANSPORT_SENT || c[i].event == SHUNT_TRANSPORT_ARRIVED,
                  "seed %lu: node %u has lost %u: %s", m->seed, n, c[i].peer, c[i].reason);
        if (c[i].event == SHUNT_TRANSPORT_SENT)
            model_sent(m, n, &c[i]);
        else
            model_arrived(m, n, &c[i]);
    }
    return count;
}

static uint32_t model_open_messages(const struct model *m)
{
    uint32_t count = 0;

    for (uint32_t a = 0; a < MODEL_NODES; a++)
        for (uint32_t b = 0; b < MODEL_NODES; b++)
            count += m->links[a][b].sent_count + m->links[a][b].flying_count;
    return count;
}

static void model_run(struct model *m, uint32_t operations)
{
    for (uint32_t i = 0; i < operations; i++) {
        uint32_t n = random_below(&m->random, MODEL_NODES);

        if (random_below(&m->random, 3) == 0)
            model_put(m, n, (n + 1 + random_below(&m->random, MODEL_NODES - 1)) % MODEL_NODES);
        else
            model_poll(m, n, random_below(&m->random, 17));
    }
    while (model_open_messages(m) > 0) {
        uint32_t moved = 0;

        for (uint32_t n = 0; n < MODEL_NODES; n++)
            moved += model_poll(m, n, 16);
        if (moved == 0)
            mesh_sleep(&m->mesh);
    }
    for (uint32_t n = 0; n < MODEL_NODES; n++)
        cr_assert_eq(memcmp(m->images[n], m->mesh.nodes[n].inbox, MODEL_NODES * AREA), 0,
                     "seed %lu: node %u", m->seed, n);
}

void transport_behaves_like_its_model(const struct transport_backend *backend)
{
    const uint64_t inboxes[] = {MODEL_NODES * AREA, MODEL_NODES * AREA, MODEL_NODES * AREA};
    struct model *m = malloc(sizeof(*m));

    cr_assert(m);
    for (uint64_t seed = 1; seed <= 10; seed++) {
        memset(m, 0, sizeof(*m));
        m->seed = m->random = seed;
        room_used = 0;
        for (uint32_t a = 0; a < MODEL_NODES; a++)
            for (uint32_t b = 0; b < MODEL_NODES; b++)
                m->links[a][b].sources = mesh_room((SHUNT_TRANSPORT_DEPTH + 1) * AREA);
        mesh_open(&m->mesh, backend, MODEL_NODES, inboxes, false);
        for (uint32_t n = 0; n < MODEL_NODES; n++) {
            m->images[n] = calloc(1, MODEL_NODES * AREA);
            cr_assert(m->images[n]);
        }
        model_run(m, 12000);
        mesh_close(&m->mesh);
        for (uint32_t n = 0; n < MODEL_NODES; n++)
            free(m->images[n]);
    }
    free(m);
}
