/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/schedule.h"

#include <criterion/criterion.h>
#include <string.h>

#include "tests/random.h"

/* ---- reader and decode */

/* How uneven: the sum of squared deviations from the mean, over the mean. Were nodes drawn by lot,
 * it would be node_count - 1 on average, with a standard deviation of sqrt(2 * (node_count - 1)).
 */
static double unevenness(const uint32_t *reads, uint32_t node_count, uint32_t total)
{
    double mean = (double)total / node_count, sum = 0;

    for (uint32_t n = 0; n < node_count; n++)
        sum += (reads[n] - mean) * (reads[n] - mean) / mean;
    return sum;
}

/* Within four standard deviations, about. */
static double unevenness_max(uint32_t node_count)
{
    return node_count + 6 * __builtin_sqrt(node_count);
}

Test(schedule, readers_are_spread_evenly)
{
    for (uint32_t nodes = 2; nodes <= SHUNT_NODES_MAX; nodes++) {
        uint32_t reads[SHUNT_NODES_MAX] = {0};
        uint64_t live = UINT64_MAX >> (64 - nodes);

        for (uint32_t layer = 0; layer < 58; layer++) {
            for (uint32_t e = 0; e < 256; e++)
                reads[shunt_schedule_reader(layer, e, 0, live)]++;
        }
        cr_assert_lt(unevenness(reads, nodes, 58 * 256), unevenness_max(nodes), "%u nodes", nodes);
    }
}

/* Also over the experts of one layer and over the layers of one expert: 64 times 4 nodes have a
 * mean of 64 * 3 and a standard deviation of 20. */
Test(schedule, readers_are_spread_evenly_each_way)
{
    double experts = 0, layers = 0;

    for (uint32_t i = 0; i < 64; i++) {
        uint32_t by_expert[4] = {0}, by_layer[4] = {0};

        for (uint32_t j = 0; j < 1024; j++) {
            by_expert[shunt_schedule_reader(i, j, 0, 0xf)]++;
            by_layer[shunt_schedule_reader(j, i, 0, 0xf)]++;
        }
        experts += unevenness(by_expert, 4, 1024);
        layers += unevenness(by_layer, 4, 1024);
    }
    cr_assert_lt(experts, 64 * 3 + 60);
    cr_assert_lt(layers, 64 * 3 + 60);
}

Test(schedule, readers_are_live_and_placed_where_that_can_be)
{
    for (uint64_t s = 1; s <= 100000; s++) {
        uint64_t seed = s, placed = random_next(&seed) & random_next(&seed);
        uint64_t live = (random_next(&seed) & random_next(&seed)) | shunt_node_set_of(s % 64);
        uint32_t reader;

        placed = random_below(&seed, 4) ? placed : 0;
        reader =
            shunt_schedule_reader(random_below(&seed, 60), random_below(&seed, 256), placed, live);
        cr_assert(shunt_node_set_has(live, reader), "seed %lu", s);
        cr_assert(!(placed & live) || shunt_node_set_has(placed, reader), "seed %lu", s);
    }
}

Test(schedule, decode_goes_to_the_nearest)
{
    static const struct {
        uint64_t resident, loading, placed, live, expected; /* nodes that may be chosen by node 1 */
    } cases[] = {
        {0x7, 0x0, 0x8, 0xf, 0x2}, /* resident here: stays */
        {0xd, 0x2, 0x2, 0xf, 0xd}, /* resident at peers: no use waiting for the load here */
        {0xd, 0x0, 0x0, 0xb, 0x9}, /* one of them gone */
        {0x0, 0x6, 0x8, 0xf, 0x2}, /* loading here */
        {0x0, 0xc, 0x1, 0xf, 0xc}, /* loading at peers */
        {0x4, 0x8, 0x1, 0xb, 0x8}, /* resident only at one that is gone */
        {0x0, 0x0, 0x5, 0xf, 0x5}, /* nowhere: the reader */
        {0x0, 0x0, 0x4, 0xb, 0xb}, /* nowhere, and placed on one that is gone */
        {0x4, 0x4, 0x4, 0x2, 0x2}, /* alone */
    };

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t chosen = 0;

        for (uint32_t e = 0; e < 256; e++)
            chosen |= shunt_node_set_of(shunt_schedule_decode(
                1, 3, e, cases[i].resident, cases[i].loading, cases[i].placed, cases[i].live));
        cr_expect_eq(chosen, cases[i].expected, "case %u: %#lx", i, chosen);
    }
}

/* Nodes that ask for the same expert do not all go to the same holder, and one that asks for many
 * goes to all alike. */
Test(schedule, decode_spreads_over_the_holders)
{
    uint32_t rows[SHUNT_NODES_MAX] = {0};
    uint32_t same = 0;

    for (uint32_t self = 4; self < 64; self++) {
        for (uint32_t e = 0; e < 256; e++)
            rows[shunt_schedule_decode(self, 5, e, 0xf, 0, 0, UINT64_MAX)]++;
    }
    cr_assert_lt(unevenness(rows, 4, 60 * 256), unevenness_max(4));
    for (uint32_t e = 0; e < 256; e++)
        same += shunt_schedule_decode(8, 5, e, 0xf, 0, 0, UINT64_MAX) ==
                shunt_schedule_decode(9, 5, e, 0xf, 0, 0, UINT64_MAX);
    cr_assert(same > 40 && same < 88, "%u of 256 alike, about 64 expected", same);
}

Test(schedule, decode_without_holders_asks_the_reader)
{
    for (uint32_t e = 0; e < 256; e++) {
        for (uint32_t self = 0; self < 4; self++)
            cr_assert_eq(shunt_schedule_decode(self, 7, e, 0, 0, 0x6, 0xf),
                         shunt_schedule_reader(7, e, 0x6, 0xf));
    }
}

/* ---- prefill */

#define NODES_MAX   5u
#define EXPERTS_MAX 12u

struct small_case {
    struct shunt_schedule_input in;
    uint32_t counts[NODES_MAX * EXPERTS_MAX];
    uint8_t states[NODES_MAX * EXPERTS_MAX];
    uint64_t placed[EXPERTS_MAX];
    uint64_t read_ns[NODES_MAX];
    uint64_t live;
};

static void point(struct small_case *c, uint32_t nodes, uint32_t experts, uint32_t layer)
{
    c->in = (struct shunt_schedule_input){.node_count = nodes,
                                          .expert_count = experts,
                                          .layer = layer,
                                          .live = c->live,
                                          .counts = c->counts,
                                          .states = c->states,
                                          .placed = c->placed,
                                          .read_ns = c->read_ns};
}

static void random_case(struct small_case *c, uint64_t *seed)
{
    uint32_t nodes = 1 + random_below(seed, NODES_MAX);
    uint32_t experts = 1 + random_below(seed, EXPERTS_MAX);
    uint32_t absent = random_below(seed, 101), resident = random_below(seed, 101);

    c->live = random_next(seed) >> (64 - nodes);
    if (random_below(seed, 2) || !c->live)
        c->live = UINT64_MAX >> (64 - nodes);
    for (uint32_t n = 0; n < nodes; n++)
        c->read_ns[n] = random_below(seed, 2) ? 1000 : 1 + random_below(seed, 3000);
    for (uint32_t e = 0; e < experts; e++)
        c->placed[e] = random_next(seed) & random_next(seed);
    for (uint32_t i = 0; i < nodes * experts; i++) {
        c->counts[i] = random_below(seed, 2) ? random_below(seed, 100) : 0;
        c->states[i] = (uint8_t)(1 + random_below(seed, SHUNT_STATE_LOADING_MAX));
        if (random_below(seed, 100) < absent)
            c->states[i] = SHUNT_STATE_ABSENT;
        else if (random_below(seed, 100) < resident)
            c->states[i] = SHUNT_STATE_RESIDENT;
    }
    point(c, nodes, experts, random_below(seed, 60));
}

static uint64_t nodes_where(const struct shunt_schedule_input *in, uint32_t e, uint32_t low,
                            uint32_t high)
{
    uint64_t set = 0;

    for (uint32_t n = 0; n < in->node_count; n++) {
        uint32_t state = in->states[n * in->expert_count + e];

        if (shunt_node_set_has(in->live, n) && state >= low && state <= high)
            set |= shunt_node_set_of(n);
    }
    return set;
}

static uint64_t load_ns(const struct shunt_schedule_input *in, uint32_t e, uint32_t n)
{
    uint32_t state = in->states[n * in->expert_count + e];

    return in->read_ns[n] * (state ? state : SHUNT_STATE_LOADING_MAX) / SHUNT_STATE_LOADING_MAX;
}

/* Every token of expert e is computed by a live node that may do so, and by one node only where the
 * expert is resident nowhere. Return: that node; node_count: nobody has tokens, or it is resident.
 */
static uint32_t check_expert(const struct shunt_schedule_input *in, const uint8_t *node, uint32_t e,
                             uint64_t s)
{
    uint64_t resident = nodes_where(in, e, SHUNT_STATE_RESIDENT, SHUNT_STATE_RESIDENT);
    uint64_t loading = nodes_where(in, e, 1, SHUNT_STATE_LOADING_MAX);
    uint32_t reader = in->node_count;

    for (uint32_t n = 0; n < in->node_count; n++) {
        uint32_t i = n * in->expert_count + e, to = node[i];

        if (!in->counts[i] || !shunt_node_set_has(in->live, n)) {
            cr_assert_eq(to, n, "seed %lu: node %u has no tokens of %u", s, n, e);
            continue;
        }
        cr_assert(shunt_node_set_has(in->live, to), "seed %lu", s);
        if (shunt_node_set_has(resident, n))
            cr_assert_eq(to, n, "seed %lu: %u is resident at node %u", s, e, n);
        else if (resident)
            cr_assert(shunt_node_set_has(resident, to), "seed %lu: %u is resident", s, e);
        else if (reader < in->node_count)
            cr_assert_eq(to, reader, "seed %lu: %u is read twice", s, e);
        if (!resident)
            reader = to;
    }
    for (uint32_t n = 0; n < in->node_count && reader < in->node_count && loading; n++)
        cr_assert(
            shunt_node_set_has(loading, reader) &&
                (!shunt_node_set_has(loading, n) || load_ns(in, e, reader) <= load_ns(in, e, n)),
            "seed %lu: %u would be at node %u before", s, e, n);
    return reader;
}

/* The shortest time in which the live drives can do `left` more reads after `busy` ones. */
static uint64_t least_time(const struct shunt_schedule_input *in, uint64_t *busy, uint32_t left)
{
    uint64_t best = left > 0 ? UINT64_MAX : 0;

    for (uint32_t n = 0; n < in->node_count; n++) {
        if (!shunt_node_set_has(in->live, n))
            continue;
        if (left == 0) {
            best = busy[n] > best ? busy[n] : best;
        } else {
            uint64_t time;

            busy[n] += in->read_ns[n];
            time = least_time(in, busy, left - 1);
            busy[n] -= in->read_ns[n];
            best = time < best ? time : best;
        }
    }
    return best;
}

static uint64_t longest(const uint64_t *busy, uint32_t count)
{
    uint64_t most = 0;

    for (uint32_t n = 0; n < count; n++)
        most = busy[n] > most ? busy[n] : most;
    return most;
}

/* Reads are all of one size, so giving each to the drive that is done with it first is not only
 * good but the best there is; few enough are tried in all ways. */
static void check_schedule(const struct shunt_schedule_input *in, const uint8_t *node, uint64_t s)
{
    uint64_t before[NODES_MAX] = {0}, after[NODES_MAX] = {0};
    uint32_t reads = 0;

    for (uint32_t e = 0; e < in->expert_count; e++) {
        uint32_t reader = check_expert(in, node, e, s);
        bool loading = nodes_where(in, e, 1, SHUNT_STATE_LOADING_MAX) != 0;

        if (reader == in->node_count)
            continue;
        after[reader] += load_ns(in, e, reader);
        before[reader] += loading ? load_ns(in, e, reader) : 0;
        reads += !loading;
    }
    if (reads <= 5)
        cr_assert_eq(longest(after, in->node_count), least_time(in, before, reads), "seed %lu", s);
}

Test(schedule, prefill_keeps_its_promises)
{
    for (uint64_t s = 1; s <= 120000; s++) {
        uint64_t seed = s;
        uint8_t node[NODES_MAX * EXPERTS_MAX], elsewhere[NODES_MAX * EXPERTS_MAX];
        struct small_case c, other;

        random_case(&c, &seed);
        memset(node, 0xee, sizeof(node));
        shunt_schedule_prefill(&c.in, node);
        check_schedule(&c.in, node, s);

        /* Another node with the same bytes, except for what nodes that are gone have left. */
        other = c;
        point(&other, c.in.node_count, c.in.expert_count, c.in.layer);
        for (uint32_t i = 0; i < c.in.node_count * c.in.expert_count; i++) {
            if (shunt_node_set_has(c.live, i / c.in.expert_count))
                continue;
            other.counts[i] = (uint32_t)random_next(&seed);
            other.states[i] = (uint8_t)random_next(&seed);
        }
        memset(elsewhere, 0x55, sizeof(elsewhere));
        shunt_schedule_prefill(&other.in, elsewhere);
        cr_assert_arr_eq(node, elsewhere, c.in.node_count * c.in.expert_count, "seed %lu", s);
    }
}

static void expect(const struct shunt_schedule_input *in, const uint8_t *expected)
{
    uint8_t node[NODES_MAX * EXPERTS_MAX];

    shunt_schedule_prefill(in, node);
    for (uint32_t i = 0; i < in->node_count * in->expert_count; i++)
        cr_expect_eq(node[i], expected[i], "node %u expert %u: to %u, not %u", i / in->expert_count,
                     i % in->expert_count, node[i], expected[i]);
}

/* Three nodes, six experts. By tokens: 0 has 110, 1 has 60, 2 and 3 have 20, 4 has 10, 5 none.
 * Expert 0 is at home on node 0, whose 100 tokens of it stay; node 0 therefore starts with 100.
 * Expert 0, node 2's 10 tokens: resident on 0 and 1; 1 has none so far.       Tokens 100 10 0.
 * Expert 1: resident on 1 and 2. Node 0's 30 go to 2 (0 < 10).                 Tokens 100 10 30.
 *           Node 2's own 30 have stayed and counted from the start: 2 had 30 before expert 0 was
 *           looked at. So node 0's 30 go to 1 (10 < 30).                       Tokens 100 40 30.
 * Expert 2: resident on 1 and 2. Node 0's 20 go to 2 (30 < 40).                Tokens 100 40 50.
 * Expert 3: the same, node 0's 20 go to 1 (40 < 50).                           Tokens 100 60 50.
 * Expert 4: resident on 0 and 2. Node 1's 10 go to 2. */
Test(schedule, prefill_shares_tokens_among_holders)
{
    struct small_case c = {
        .counts = {100, 30, 20, 20, 0, 0,     /* node 0 */
                   0, 0, 0, 0, 10, 0,         /* node 1 */
                   10, 30, 0, 0, 0, 0},       /* node 2 */
        .states = {255, 0, 0, 0, 255, 0,      /* node 0 */
                   255, 255, 255, 255, 0, 0,  /* node 1 */
                   0, 255, 255, 255, 255, 0}, /* node 2 */
        .read_ns = {1, 1, 1},
        .live = 0x7,
    };
    static const uint8_t expected[] = {
        0, 1, 2, 1, 0, 0, /* node 0 */
        1, 1, 1, 1, 2, 1, /* node 1 */
        1, 2, 2, 2, 2, 2, /* node 2 */
    };

    point(&c, 3, 6, 0);
    expect(&c.in, expected);
}

/* Two nodes; node 1's drive takes three times as long. Expert 0 is loading: a fifth left to go on
 * node 1 (600 ns), half on node 0 (500 ns): it goes to node 0. The others are absent everywhere.
 * By tokens: 3 (90), 2 (80), 1 (70), 4 (60). Done with one more, the drives would be at
 *     expert 3:  1500  3000   to 0
 *     expert 2:  2500  3000   to 0
 *     expert 1:  3500  3000   to 1
 *     expert 4:  3500  6000   to 0 */
Test(schedule, prefill_balances_reads)
{
    struct small_case c = {
        .counts = {5, 35, 80, 0, 30,  /* node 0 */
                   5, 35, 0, 90, 30}, /* node 1 */
        .states = {127, 0, 0, 0, 0,   /* node 0 */
                   51, 0, 0, 0, 0},   /* node 1: 51/254 of 3000 ns are 602 */
        .placed = {0x2, 0x1, 0x2, 0x2, 0x2},
        .read_ns = {1000, 3000},
        .live = 0x3,
    };
    static const uint8_t expected[] = {
        0, 1, 0, 0, 0, /* node 0 */
        0, 1, 1, 0, 0, /* node 1 */
    };

    point(&c, 2, 5, 0);
    expect(&c.in, expected);
}

/* Equal drives, all absent, so all nodes are equal for the first: the placement's node; then of the
 * two left the one with most tokens; then what is left. */
Test(schedule, prefill_breaks_ties_by_placement_then_tokens)
{
    struct small_case c = {
        .counts = {30, 9, 0,   /* node 0 */
                   10, 11, 0,  /* node 1 */
                   20, 0, 5},  /* node 2 */
        .placed = {0x6, 0, 0}, /* expert 0 on nodes 1 and 2: node 2 has more tokens of it */
        .read_ns = {1000, 1000, 1000},
        .live = 0x7,
    };
    static const uint8_t expected[] = {
        2, 1, 0, /* node 0 */
        2, 1, 1, /* node 1 */
        2, 2, 0, /* node 2 */
    };

    point(&c, 3, 3, 0);
    expect(&c.in, expected);
}

/* ---- at full size */

#define FULL_NODES   SHUNT_NODES_MAX
#define FULL_EXPERTS SHUNT_EXPERTS_MAX

static uint32_t counts[FULL_NODES * FULL_EXPERTS];
static uint8_t states[FULL_NODES * FULL_EXPERTS];
static uint8_t chosen[FULL_NODES * FULL_EXPERTS];
static uint64_t placed[FULL_EXPERTS];
static uint64_t read_ns[FULL_NODES];

/* Equal drives and nothing in memory: every node reads as many experts as any other, to one. */
Test(schedule, prefill_reads_are_even)
{
    for (uint64_t s = 1; s <= 200; s++) {
        uint64_t seed = s;
        uint32_t nodes = 1 + random_below(&seed, FULL_NODES);
        uint32_t experts = nodes + random_below(&seed, FULL_EXPERTS - nodes + 1);
        struct shunt_schedule_input in = {nodes,  experts, 3,      UINT64_MAX >> (64 - nodes),
                                          counts, states,  placed, read_ns};
        uint32_t reads[FULL_NODES] = {0}, least = UINT32_MAX, most = 0;

        memset(states, SHUNT_STATE_ABSENT, sizeof(states));
        for (uint32_t i = 0; i < nodes * experts; i++)
            counts[i] = 1 + random_below(&seed, 1000);
        for (uint32_t e = 0; e < experts; e++)
            placed[e] = random_next(&seed) & in.live;
        for (uint32_t n = 0; n < nodes; n++)
            read_ns[n] = 3000000;
        shunt_schedule_prefill(&in, chosen);
        for (uint32_t e = 0; e < experts; e++)
            reads[chosen[e]]++;
        for (uint32_t n = 0; n < nodes; n++) {
            least = reads[n] < least ? reads[n] : least;
            most = reads[n] > most ? reads[n] : most;
        }
        cr_assert_leq(most - least, 1, "seed %lu: %u nodes, %u experts: %u to %u", s, nodes,
                      experts, least, most);
    }
}

/* The largest numbers the types hold: sums stay right, so reads and tokens stay balanced. */
Test(schedule, prefill_does_not_overflow)
{
    struct shunt_schedule_input in = {FULL_NODES, FULL_EXPERTS, 57,     UINT64_MAX,
                                      counts,     states,       placed, read_ns};
    uint32_t reads[FULL_NODES] = {0};
    uint32_t sent[FULL_NODES] = {0};

    memset(states, SHUNT_STATE_ABSENT, sizeof(states));
    memset(placed, 0, sizeof(placed));
    for (uint32_t i = 0; i < FULL_NODES * FULL_EXPERTS; i++)
        counts[i] = UINT32_MAX;
    for (uint32_t n = 0; n < FULL_NODES; n++)
        read_ns[n] = (1ull << 48) - 1;
    shunt_schedule_prefill(&in, chosen);
    for (uint32_t i = 0; i < FULL_NODES * FULL_EXPERTS; i++) {
        cr_assert_eq(chosen[i], chosen[i % FULL_EXPERTS]);
        reads[chosen[i]] += i < FULL_EXPERTS;
    }
    for (uint32_t n = 0; n < FULL_NODES; n++)
        cr_assert_eq(reads[n], FULL_EXPERTS / FULL_NODES);

    /* All experts on nodes 62 and 63: what the others have is halved between them. */
    memset(states + 62 * FULL_EXPERTS, SHUNT_STATE_RESIDENT, 2 * FULL_EXPERTS);
    shunt_schedule_prefill(&in, chosen);
    for (uint32_t i = 0; i < FULL_NODES * FULL_EXPERTS; i++)
        sent[chosen[i]]++;
    cr_assert_eq(sent[62], FULL_NODES * FULL_EXPERTS / 2);
    cr_assert_eq(sent[63], FULL_NODES * FULL_EXPERTS / 2);
}
