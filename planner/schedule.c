/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/schedule.h"

#include <stdbool.h>

/* What this schedule has given each node so far. */
struct ledger {
    uint64_t tokens[SHUNT_NODES_MAX];  /* below 2^48: 64 * 1024 counts of 32 bits */
    uint64_t read_ns[SHUNT_NODES_MAX]; /* below 2^59: 1024 reads and one to try, of 48 bits */
};

/* The last step of splitmix64 (Steele, Lea, Flood 2014): each bit of the result depends on every
 * bit of x. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A node of the set, each as often as the others over many keys. */
static uint32_t pick(uint64_t set, uint64_t key)
{
    uint64_t nth = (mix(key) >> 32) * shunt_node_set_count(set) >> 32;

    return shunt_node_set_nth(set, (uint32_t)nth);
}

/* A hash and no turn by turn: with (layer + expert) mod nodes, a placement that itself goes by
 * expert id could leave nodes without any read. Never 0, where mix() gives 0. */
static uint64_t expert_key(uint32_t layer, uint32_t expert)
{
    return ((uint64_t)layer << 32 | expert) + 1;
}

uint32_t shunt_schedule_reader(uint32_t layer, uint32_t expert, uint64_t placed, uint64_t live)
{
    return pick(placed & live ? placed & live : live, expert_key(layer, expert));
}

uint32_t shunt_schedule_decode(uint32_t self, uint32_t layer, uint32_t expert, uint64_t resident,
                               uint64_t loading, uint64_t placed, uint64_t live)
{
    uint64_t holders = resident & live ? resident & live : loading & live;

    if (!holders)
        return shunt_schedule_reader(layer, expert, placed, live);
    if (shunt_node_set_has(holders, self))
        return self;
    return pick(holders, expert_key(layer, expert) ^ (uint64_t)self << 58);
}

/* ---- prefill */

static uint32_t count_at(const struct shunt_schedule_input *in, uint32_t n, uint32_t expert)
{
    return in->counts[n * in->expert_count + expert];
}

static uint32_t state_at(const struct shunt_schedule_input *in, uint32_t n, uint32_t expert)
{
    return in->states[n * in->expert_count + expert];
}

/* Nanoseconds until node n has the expert, as far as its drive is concerned. */
static uint64_t load_ns(const struct shunt_schedule_input *in, uint32_t n, uint32_t expert)
{
    return in->read_ns[n] * state_at(in, n, expert) / SHUNT_STATE_LOADING_MAX;
}

/* Every node's tokens to itself: right where they need no more thought, overwritten elsewhere.
 * Those of rule 1 are entered; what is entered for a node that is not live, nobody looks up. */
static void place_at_home(const struct shunt_schedule_input *in, uint8_t *node, struct ledger *l)
{
    for (uint32_t n = 0; n < in->node_count; n++) {
        for (uint32_t e = 0; e < in->expert_count; e++) {
            node[n * in->expert_count + e] = (uint8_t)n;
            if (state_at(in, n, e) == SHUNT_STATE_RESIDENT)
                l->tokens[n] += count_at(in, n, e);
        }
    }
}

static void sift_down(uint64_t *heap, uint32_t root, uint32_t count)
{
    for (;;) {
        uint32_t child = 2 * root + 1;
        uint64_t held = heap[root];

        if (child >= count)
            return;
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (held <= heap[child])
            return;
        heap[root] = heap[child];
        heap[child] = held;
        root = child;
    }
}

/* A heap sort: libc's may allocate. */
static void sort_descending(uint64_t *key, uint32_t count)
{
    for (uint32_t i = count / 2; i-- > 0;)
        sift_down(key, i, count);
    while (count > 1) {
        uint64_t least = key[0];

        key[0] = key[--count];
        key[count] = least;
        sift_down(key, 0, count);
    }
}

/* Experts that have tokens, those with most first, then by id. Return: how many. */
static uint32_t order_by_tokens(const struct shunt_schedule_input *in, uint64_t *order)
{
    uint32_t count = 0;

    for (uint32_t e = 0; e < in->expert_count; e++) {
        uint64_t tokens = 0;

        for (uint64_t set = in->live; set; set &= set - 1)
            tokens += count_at(in, shunt_node_set_first(set), e);
        if (tokens > 0)
            order[count++] = tokens * SHUNT_EXPERTS_MAX + in->expert_count - 1 - e;
    }
    sort_descending(order, count);
    for (uint32_t i = 0; i < count; i++)
        order[i] = in->expert_count - 1 - order[i] % SHUNT_EXPERTS_MAX;
    return count;
}

static uint32_t fewest_tokens(const struct ledger *l, uint64_t set)
{
    uint32_t best = shunt_node_set_first(set);

    for (; set; set &= set - 1) {
        uint32_t n = shunt_node_set_first(set);

        best = l->tokens[n] < l->tokens[best] ? n : best;
    }
    return best;
}

/* Rule 2. */
static void send_to_holders(const struct shunt_schedule_input *in, uint32_t e, uint64_t resident,
                            uint8_t *node, struct ledger *l)
{
    for (uint64_t set = in->live & ~resident; set; set &= set - 1) {
        uint32_t from = shunt_node_set_first(set), to;

        if (count_at(in, from, e) == 0)
            continue;
        to = fewest_tokens(l, resident);
        node[from * in->expert_count + e] = (uint8_t)to;
        l->tokens[to] += count_at(in, from, e);
    }
}

/* All tokens of an expert that is resident nowhere go to one node, which spends `ns` on reading. */
static void send_to_reader(const struct shunt_schedule_input *in, uint32_t e, uint32_t to,
                           uint64_t ns, uint8_t *node, struct ledger *l)
{
    for (uint64_t set = in->live; set; set &= set - 1) {
        uint32_t from = shunt_node_set_first(set);

        if (count_at(in, from, e) > 0)
            node[from * in->expert_count + e] = (uint8_t)to;
        l->tokens[to] += count_at(in, from, e);
    }
    l->read_ns[to] += ns;
}

static uint32_t least_to_load(const struct shunt_schedule_input *in, uint32_t e, uint64_t loading)
{
    uint32_t best = shunt_node_set_first(loading);

    for (; loading; loading &= loading - 1) {
        uint32_t n = shunt_node_set_first(loading);

        best = load_ns(in, n, e) < load_ns(in, best, e) ? n : best;
    }
    return best;
}

/* Of the nodes in `set`, those with most tokens of the expert. */
static uint64_t most_tokens_of(const struct shunt_schedule_input *in, uint32_t e, uint64_t set)
{
    uint64_t best = 0;
    uint32_t most = 0;

    for (; set; set &= set - 1) {
        uint32_t n = shunt_node_set_first(set);
        uint32_t tokens = count_at(in, n, e);

        if (tokens > most) {
            best = 0;
            most = tokens;
        }
        if (tokens == most)
            best |= shunt_node_set_of(n);
    }
    return best;
}

/* Of the live nodes, those whose drives would be done with one more expert first. */
static uint64_t first_to_read(const struct shunt_schedule_input *in, const struct ledger *l)
{
    uint64_t best = 0, least = UINT64_MAX;

    for (uint64_t set = in->live; set; set &= set - 1) {
        uint32_t n = shunt_node_set_first(set);
        uint64_t ns = l->read_ns[n] + in->read_ns[n];

        if (ns < least) {
            best = 0;
            least = ns;
        }
        if (ns == least)
            best |= shunt_node_set_of(n);
    }
    return best;
}

/* Rule 4. */
static uint32_t choose_reader(const struct shunt_schedule_input *in, uint32_t e,
                              const struct ledger *l)
{
    uint64_t best = first_to_read(in, l);

    if (best & in->placed[e])
        best &= in->placed[e];
    return shunt_schedule_reader(in->layer, e, 0, most_tokens_of(in, e, best));
}

void shunt_schedule_prefill(const struct shunt_schedule_input *in, uint8_t *node)
{
    uint64_t order[SHUNT_EXPERTS_MAX];
    struct ledger l = {0};
    uint32_t count = order_by_tokens(in, order), absent = 0;

    place_at_home(in, node, &l);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t e = (uint32_t)order[i];
        uint64_t resident = 0, loading = 0;

        for (uint64_t set = in->live; set; set &= set - 1) {
            uint32_t n = shunt_node_set_first(set), state = state_at(in, n, e);

            if (state == SHUNT_STATE_RESIDENT)
                resident |= shunt_node_set_of(n);
            else if (state != SHUNT_STATE_ABSENT)
                loading |= shunt_node_set_of(n);
        }
        if (resident) {
            send_to_holders(in, e, resident, node, &l);
        } else if (loading) {
            uint32_t to = least_to_load(in, e, loading);

            send_to_reader(in, e, to, load_ns(in, to, e), node, &l);
        } else {
            order[absent++] = e;
        }
    }
    for (uint32_t i = 0; i < absent; i++) {
        uint32_t e = (uint32_t)order[i];
        uint32_t to = choose_reader(in, e, &l);

        send_to_reader(in, e, to, in->read_ns[to], node, &l);
    }
}
