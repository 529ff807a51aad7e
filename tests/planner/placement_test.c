/* SPDX-License-Identifier: Apache-2.0 */
#include "planner/placement.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/random.h"

#define NODES_MAX   5u
#define LAYERS_MAX  3u
#define EXPERTS_MAX 7u
#define ITEMS_MAX   (LAYERS_MAX * EXPERTS_MAX)

struct small_case {
    struct shunt_placement_input in;
    uint64_t activations[NODES_MAX * ITEMS_MAX];
    uint32_t capacity[NODES_MAX];
};

static uint32_t items(const struct shunt_placement_input *in)
{
    return in->layer_count * in->expert_count;
}

static const uint64_t *row(const struct shunt_placement_input *in, uint32_t n)
{
    return in->activations + (size_t)n * items(in);
}

static uint32_t room(const struct shunt_placement_input *in, uint32_t n)
{
    return in->capacity[n] < items(in) ? in->capacity[n] : items(in);
}

static uint64_t rack_room(const struct shunt_placement_input *in)
{
    uint64_t sum = 0;

    for (uint32_t n = 0; n < in->node_count; n++)
        sum += room(in, n);
    return sum;
}

/* Scratch memory of exactly the size asked for, and never twice the same garbage. */
static void run_prism(const struct shunt_placement_input *in, uint64_t *mask)
{
    static unsigned char garbage;
    size_t bytes = shunt_placement_scratch_bytes(in);
    void *scratch = malloc(bytes);

    memset(scratch, ++garbage, bytes);
    memset(mask, garbage, items(in) * sizeof(*mask));
    shunt_placement_prism(in, mask, scratch);
    free(scratch);
}

/* What the activations of a case look like. */
enum shape { EMPTY, FEW_VALUES, SKEWED, ALIKE, GAPS, SHAPES };

static uint64_t draw(uint64_t *seed, enum shape shape)
{
    switch (shape) {
    case FEW_VALUES:
        return random_below(seed, 3);
    case SKEWED:
        return 100000u / (1 + random_below(seed, 1000));
    case GAPS:
        return random_below(seed, 2) ? random_below(seed, 1000) : 0;
    default:
        return 0;
    }
}

static void fill_case(struct small_case *c, uint64_t *seed, uint32_t nodes, uint32_t layers,
                      uint32_t experts)
{
    enum shape shape = random_below(seed, SHAPES);
    uint32_t all = layers * experts;
    uint32_t room_max = 1 + random_below(seed, all + 3);

    c->in = (struct shunt_placement_input){nodes, layers, experts, c->activations, c->capacity};
    for (uint32_t n = 0; n < nodes; n++) {
        c->capacity[n] = random_below(seed, 8) ? random_below(seed, room_max + 1) : room_max;
        for (uint32_t i = 0; i < all; i++) {
            c->activations[n * all + i] = shape == ALIKE && n > 0
                                              ? c->activations[i]
                                              : draw(seed, shape == ALIKE ? SKEWED : shape);
        }
    }
}

/* What routers leave behind that pick two experts for each token, some far more often than others:
 * a node's layers have as many calls each. Without such routers a layer may have all its calls at
 * one expert, that is entropy 0 and no slot by Algorithm 1, and any distance from the optimum. */
static void route(struct small_case *c, uint64_t *seed)
{
    uint32_t experts = c->in.expert_count, layers = c->in.layer_count;
    uint32_t alike = random_below(seed, 2), tokens = 0;

    memset(c->activations, 0, sizeof(c->activations));
    for (uint32_t i = 0; i < c->in.node_count * layers; i++) {
        uint64_t *f = c->activations + (size_t)i * experts;
        uint32_t favourite = alike ? 0 : random_below(seed, experts);
        uint32_t spread = 1 + random_below(seed, experts);

        tokens = i % layers ? tokens : 1 + random_below(seed, 50);
        for (uint32_t t = 0; t < tokens; t++) {
            uint32_t first = random_below(seed, 1 + random_below(seed, spread));
            uint32_t second = 1 + random_below(seed, 1 + random_below(seed, experts - 1));

            f[(favourite + first) % experts]++;
            f[(favourite + first + second) % experts]++;
        }
    }
}

static void random_case(struct small_case *c, uint64_t *seed)
{
    fill_case(c, seed, 1 + random_below(seed, NODES_MAX), 1 + random_below(seed, LAYERS_MAX),
              1 + random_below(seed, EXPERTS_MAX));
}

static uint32_t held_by(const struct shunt_placement_input *in, const uint64_t *mask, uint32_t n)
{
    uint32_t held = 0;

    for (uint32_t i = 0; i < items(in); i++)
        held += shunt_node_set_has(mask[i], n);
    return held;
}

static uint32_t uncovered(const struct shunt_placement_input *in, const uint64_t *mask)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < items(in); i++)
        count += mask[i] == 0;
    return count;
}

static void check_rooms(const struct shunt_placement_input *in, const uint64_t *mask, uint64_t seed)
{
    for (uint32_t n = 0; n < in->node_count; n++)
        cr_assert_eq(held_by(in, mask, n), room(in, n), "seed %lu node %u", seed, n);
    for (uint32_t i = 0; i < items(in); i++)
        cr_assert_eq(mask[i] >> in->node_count, 0, "seed %lu", seed);
    if (rack_room(in) >= items(in))
        cr_assert_eq(uncovered(in, mask), 0, "seed %lu", seed);
}

/* With coverage: a node that holds `a` and not `b` of the same layer, though b is activated more
 * there, is the only one that holds a. For it either took a in a repair, when a was nowhere, and
 * nobody takes what is somewhere; or it began with both and gave b, the least used of its
 * duplicates, while a was none. Without coverage there is no such pair, in any two layers. */
static void check_choice(const struct shunt_placement_input *in, const uint64_t *mask,
                         uint64_t seed)
{
    bool covers = rack_room(in) >= items(in);

    for (uint32_t n = 0; n < in->node_count; n++) {
        const uint64_t *f = row(in, n);

        for (uint32_t a = 0; a < items(in); a++) {
            for (uint32_t b = 0; shunt_node_set_has(mask[a], n) && b < items(in); b++) {
                if (shunt_node_set_has(mask[b], n) || f[b] <= f[a])
                    continue;
                if (covers && a / in->expert_count != b / in->expert_count)
                    continue;
                cr_assert(covers && mask[a] == shunt_node_set_of(n), "seed %lu node %u: %u, not %u",
                          seed, n, a, b);
            }
        }
    }
}

/* While an expert is nowhere, nobody holds what is worth nothing to it and is elsewhere too. */
static void check_nothing_twice(const struct shunt_placement_input *in, const uint64_t *mask,
                                uint64_t seed)
{
    if (uncovered(in, mask) == 0)
        return;
    for (uint32_t i = 0; i < items(in); i++) {
        for (uint32_t n = 0; n < in->node_count && shunt_node_set_count(mask[i]) > 1; n++)
            cr_assert(!shunt_node_set_has(mask[i], n) || row(in, n)[i] > 0, "seed %lu node %u: %u",
                      seed, n, i);
    }
}

Test(placement, keeps_its_promises)
{
    for (uint64_t s = 1; s <= 150000; s++) {
        uint64_t seed = s, mask[ITEMS_MAX], again[ITEMS_MAX];
        struct small_case c;

        random_case(&c, &seed);
        run_prism(&c.in, mask);
        check_rooms(&c.in, mask, s);
        check_choice(&c.in, mask, s);
        check_nothing_twice(&c.in, mask, s);
        run_prism(&c.in, again);
        cr_assert_arr_eq(mask, again, items(&c.in) * sizeof(*mask), "seed %lu", s);
    }
}

static uint32_t held_of_layer(const struct shunt_placement_input *in, const uint64_t *mask,
                              uint32_t layer, uint32_t n)
{
    uint32_t held = 0;

    for (uint32_t e = 0; e < in->expert_count; e++)
        held += shunt_node_set_has(mask[layer * in->expert_count + e], n);
    return held;
}

/* Copies of any two experts differ by one at most, and so do the layers' shares of a node. */
Test(placement, spread_is_even)
{
    for (uint64_t s = 1; s <= 100000; s++) {
        uint64_t seed = s, mask[ITEMS_MAX];
        uint32_t copies;
        struct small_case c;

        random_case(&c, &seed);
        c.in.activations = NULL; /* not read */
        shunt_placement_spread(&c.in, mask);
        check_rooms(&c.in, mask, s);
        copies = (uint32_t)(rack_room(&c.in) / items(&c.in));
        for (uint32_t i = 0; i < items(&c.in); i++) {
            cr_assert_geq(shunt_node_set_count(mask[i]), copies, "seed %lu", s);
            cr_assert_leq(shunt_node_set_count(mask[i]), copies + 1, "seed %lu", s);
        }
        for (uint32_t n = 0; n < c.in.node_count; n++) {
            uint32_t share = room(&c.in, n) / c.in.layer_count;

            for (uint32_t l = 0; l < c.in.layer_count; l++) {
                cr_assert_geq(held_of_layer(&c.in, mask, l, n), share, "seed %lu", s);
                cr_assert_leq(held_of_layer(&c.in, mask, l, n), share + 1, "seed %lu", s);
            }
        }
    }
}

/* Also the layers' slots in the whole rack differ by one at most. */
static void check_layers_alike(const struct shunt_placement_input *in, const uint64_t *mask,
                               uint64_t seed)
{
    uint32_t least = (uint32_t)(rack_room(in) / in->layer_count);

    for (uint32_t l = 0; l < in->layer_count; l++) {
        uint32_t total = 0;

        for (uint32_t n = 0; n < in->node_count; n++)
            total += held_of_layer(in, mask, l, n);
        cr_assert(total == least || total == least + 1, "seed %lu layer %u: %u", seed, l, total);
    }
}

Test(placement, without_history_nodes_complement_each_other)
{
    for (uint64_t s = 1; s <= 100000; s++) {
        uint64_t seed = s, mask[ITEMS_MAX], spread[ITEMS_MAX], distinct = 0;
        struct small_case c;

        random_case(&c, &seed);
        memset(c.activations, 0, sizeof(c.activations));
        run_prism(&c.in, mask);
        check_layers_alike(&c.in, mask, s);
        for (uint32_t i = 0; i < items(&c.in); i++)
            distinct += mask[i] != 0;
        if (rack_room(&c.in) >= items(&c.in)) {
            cr_assert_eq(distinct, items(&c.in), "seed %lu", s);
            continue;
        }
        cr_assert_eq(distinct, rack_room(&c.in), "seed %lu", s);
        shunt_placement_spread(&c.in, spread);
        cr_assert_arr_eq(mask, spread, items(&c.in) * sizeof(*mask), "seed %lu", s);
    }
}

/* ---- worked by hand */

static void expect(const struct shunt_placement_input *in, const uint64_t *expected)
{
    uint64_t mask[ITEMS_MAX];

    run_prism(in, mask);
    for (uint32_t i = 0; i < items(in); i++)
        cr_expect_eq(mask[i], expected[i], "layer %u expert %u: %#lx, not %#lx",
                     i / in->expert_count, i % in->expert_count, mask[i], expected[i]);
}

/* Node 0 uses four experts of layer 0 alike and two of layer 1: entropies ln 4 and ln 2, so its 9
 * slots are split 6 to 3. Node 1 uses two of layer 0 and four of layer 1: 3 to 6. That makes 9
 * slots for the 7 experts of each layer.
 *
 * Layer 0: node 0 takes 0 1 2 3, node 1 takes 4 5. What is left is worth nothing to either. Node 0
 * wants two of 4 5 6: first 6, which nobody has, then the lower of 4 and 5. Node 1 wants one of
 * 0 1 2 3 6, of which each has a copy: 0.
 * Layer 1: node 0 takes 0 1, node 1 takes 2 3 4 5. Node 0 wants one of 2 .. 6: 6, which nobody has.
 * Node 1 wants two of 0 1 6: 0 and 1. */
Test(placement, counts_follow_the_entropy)
{
    static const uint64_t activations[] = {
        5, 5, 5, 5, 0, 0, 0, /* node 0, layer 0 */
        9, 9, 0, 0, 0, 0, 0, /*         layer 1 */
        0, 0, 0, 0, 9, 9, 0, /* node 1, layer 0 */
        0, 0, 5, 5, 5, 5, 0, /*         layer 1 */
    };
    static const uint32_t capacity[] = {9, 9};
    static const uint64_t expected[] = {
        3, 1, 1, 1, 3, 2, 1, /* layer 0 */
        3, 3, 2, 2, 2, 2, 1, /* layer 1 */
    };

    expect(&(struct shunt_placement_input){2, 2, 7, activations, capacity}, expected);
}

/* Layer 0 is used evenly and layer 1 at one expert only, so its entropy is 0 and it earns no slot.
 * Node 0 with 5 slots fills layer 0 and has one left for layer 1; node 1 puts all its 4 in layer 0.
 * So the rack has 8 and 1 for layers of 4 experts, and 3 slots have to move. Node 0, the larger,
 * gives the first and, being first among equals now, the second; then it is node 1's turn: node 0
 * has 2 and 3, node 1 has 3 and 1.
 *
 * Layer 0: to node 0 the experts are worth 4 3 2 1 and to node 1 as much in reverse. Node 0 takes
 * 0 1, node 1 takes 3 2 1: all are covered.
 * Layer 1: both use expert 2 alone. Node 0 takes it and wants two of 0 1 3; node 1 takes it and is
 * done. Nobody has 0 1 3: node 0 takes 0 1. Expert 3 is nowhere and 2 is on both. Each has one
 * duplicate and it is used as much: the lower node gives it for 3. */
Test(placement, slots_move_to_a_layer_that_lacks_them)
{
    static const uint64_t activations[] = {
        40, 30, 20, 10, /* node 0, layer 0 */
        0,  0,  70, 0,  /*         layer 1 */
        10, 20, 30, 40, /* node 1, layer 0 */
        0,  0,  70, 0,  /*         layer 1 */
    };
    static const uint32_t capacity[] = {5, 4};
    static const uint64_t expected[] = {
        1, 3, 2, 2, /* layer 0 */
        1, 1, 2, 1, /* layer 1 */
    };

    expect(&(struct shunt_placement_input){2, 2, 4, activations, capacity}, expected);
}

/* Three nodes with two slots each for six experts. All begin with 0 and 1, so 2 to 5 are nowhere
 * and everybody has two duplicates.
 * Node 2 uses its 1 least (6 against 7 and 8): it gives 1 for 4.  Duplicates: 2 2 1.
 * Of nodes 0 and 1, node 1 uses its 1 less (7): it gives 1 for 2, and node 0 alone has 1 now.
 *                                                                 Duplicates: 1 1 1.
 * Of all, node 2 uses its 0 least (10): it gives 0 for 5.         Duplicates: 1 1 0.
 * Node 1 uses its 0 less than node 0 (11 against 12): it gives 0 for 3. */
Test(placement, repair_takes_the_least_used_duplicates)
{
    static const uint64_t activations[] = {
        12, 8, 1, 2, 3, 4, /* node 0 */
        11, 7, 5, 4, 1, 0, /* node 1 */
        10, 6, 1, 0, 5, 4, /* node 2 */
    };
    static const uint32_t capacity[] = {2, 2, 2};
    static const uint64_t expected[] = {1, 1, 2, 2, 4, 4};
    static const struct shunt_placement_input in = {3, 1, 6, activations, capacity};
    struct shunt_placement_cost cost;

    expect(&in, expected);
    cost = shunt_placement_cost(&in, expected);
    cr_expect_eq(cost.total, 30 + 28 + 26);
    cr_expect_eq(cost.remote, 10 + 19 + 17);
}

/* Five slots for eight experts: no coverage, and each node takes what it uses most in any layer.
 * Node 0: 90 and 80, both of layer 0, and one of the two that are worth 10; node 1: 90 of layer 0
 * and 80 of layer 1. Node 1 has layer 1's expert 0 already, so node 0 takes its other 10. */
Test(placement, too_little_room_goes_by_benefit)
{
    static const uint64_t activations[] = {
        90, 80, 0, 0, /* node 0, layer 0 */
        10, 10, 0, 0, /*         layer 1 */
        90, 0,  0, 0, /* node 1, layer 0 */
        80, 10, 0, 0, /*         layer 1 */
    };
    static const uint32_t capacity[] = {3, 2};
    static const uint64_t expected[] = {3, 1, 0, 0, 2, 1, 0, 0};

    expect(&(struct shunt_placement_input){2, 2, 4, activations, capacity}, expected);
}

/* ---- against the optimum */

#define ORACLE_NODES 3u
#define ORACLE_ITEMS 8u
#define ORACLE_ROOMS (ORACLE_ITEMS + 1)

typedef int64_t oracle_table[ORACLE_ROOMS][ORACLE_ROOMS][ORACLE_ROOMS];

/* From `before`, the most activations kept at home by the experts so far for each use of the rooms,
 * to `after`, with one expert more, on the nodes in `set`, worth `gain`. */
static void oracle_add(const uint32_t *rooms, oracle_table before, oracle_table after, uint32_t set,
                       int64_t gain)
{
    uint32_t x = set & 1, y = set >> 1 & 1, z = set >> 2 & 1;

    for (uint32_t a = x; a <= rooms[0]; a++) {
        for (uint32_t b = y; b <= rooms[1]; b++) {
            for (uint32_t c = z; c <= rooms[2]; c++) {
                int64_t value = before[a - x][b - y][c - z];

                if (value >= 0 && value + gain > after[a][b][c])
                    after[a][b][c] = value + gain;
            }
        }
    }
}

/* The most activations that any placement keeps at home: every set of nodes is tried for every
 * expert, the empty one only where coverage cannot be had. */
static int64_t oracle(const struct shunt_placement_input *in)
{
    static oracle_table tables[2];
    uint32_t rooms[ORACLE_NODES] = {0};
    int64_t best = -1;

    for (uint32_t n = 0; n < in->node_count; n++)
        rooms[n] = room(in, n);
    memset(tables, 0xff, sizeof(tables));
    tables[0][0][0][0] = 0;
    for (uint32_t i = 0; i < items(in); i++) {
        memset(tables[(i + 1) % 2], 0xff, sizeof(tables[0]));
        for (uint32_t set = rack_room(in) >= items(in); set < 1u << in->node_count; set++) {
            int64_t gain = 0;

            for (uint32_t n = 0; n < in->node_count; n++)
                gain += shunt_node_set_has(set, n) ? (int64_t)row(in, n)[i] : 0;
            oracle_add(rooms, tables[i % 2], tables[(i + 1) % 2], set, gain);
        }
    }
    for (uint32_t a = 0; a < ORACLE_ROOMS; a++) {
        for (uint32_t b = 0; b < ORACLE_ROOMS; b++) {
            for (uint32_t c = 0; c < ORACLE_ROOMS; c++) {
                int64_t value = tables[items(in) % 2][a][b][c];

                best = value > best ? value : best;
            }
        }
    }
    return best;
}

/* Without coverage prism is exact, whatever the activations. */
Test(placement, optimal_with_too_little_room)
{
    for (uint64_t s = 1; s <= 40000; s++) {
        uint64_t seed = s, mask[ITEMS_MAX];
        uint32_t layers = 1 + random_below(&seed, 2);
        struct shunt_placement_cost cost;
        struct small_case c;

        fill_case(&c, &seed, 1 + random_below(&seed, ORACLE_NODES), layers,
                  1 + random_below(&seed, ORACLE_ITEMS / layers));
        if (rack_room(&c.in) >= items(&c.in))
            continue;
        run_prism(&c.in, mask);
        cost = shunt_placement_cost(&c.in, mask);
        cr_assert_eq((int64_t)(cost.total - cost.remote), oracle(&c.in), "seed %lu", s);
    }
}

static double fraction(struct shunt_placement_cost cost)
{
    return (double)cost.remote / (double)cost.total;
}

/* Near the optimum on the whole. How far off it can be in one case is shown, and checked only to
 * leave half of the optimum's calls at home. */
Test(placement, near_the_optimum_with_room_for_all)
{
    double prism = 0, spread = 0, optimum = 0, worst = 1;
    uint32_t count = 0;

    for (uint64_t s = 1; s <= 40000; s++) {
        uint64_t seed = s, mask[ITEMS_MAX];
        uint32_t layers = 1 + random_below(&seed, 2);
        struct shunt_placement_cost cost;
        struct small_case c;
        int64_t best, home;

        fill_case(&c, &seed, 1 + random_below(&seed, ORACLE_NODES), layers,
                  2 + random_below(&seed, ORACLE_ITEMS / layers - 1));
        route(&c, &seed);
        if (rack_room(&c.in) < items(&c.in))
            continue;
        best = oracle(&c.in);
        shunt_placement_spread(&c.in, mask);
        spread += fraction(shunt_placement_cost(&c.in, mask));
        run_prism(&c.in, mask);
        cost = shunt_placement_cost(&c.in, mask);
        prism += fraction(cost);
        optimum += 1 - (double)best / (double)cost.total;
        home = (int64_t)(cost.total - cost.remote);
        cr_assert(home <= best && 2 * home >= best, "seed %lu: %ld of %ld", s, home, best);
        worst = (double)home / (double)best < worst ? (double)home / (double)best : worst;
        count++;
    }
    fprintf(stderr,
            "# %u small cases, mean remote fraction: optimum %.4f, prism %.4f, spread %.4f; at "
            "worst prism keeps %.2f of the calls at home that the optimum keeps\n",
            count, optimum / count, prism / count, spread / count, worst);
    cr_assert_lt(prism - optimum, (spread - optimum) / 2);
}

/* The same nodes with their ranks in reverse. */
static void reverse(struct small_case *to, const struct small_case *from)
{
    uint32_t all = items(&from->in);

    to->in = from->in;
    to->in.activations = to->activations;
    to->in.capacity = to->capacity;
    for (uint32_t n = 0; n < from->in.node_count; n++) {
        uint32_t other = from->in.node_count - 1 - n;

        to->capacity[other] = from->capacity[n];
        memcpy(to->activations + other * all, row(&from->in, n), all * sizeof(*to->activations));
    }
}

/* Ranks are names: another order of the same nodes can only change ties, and little. */
Test(placement, the_order_of_nodes_matters_little)
{
    double worst = 0, sum = 0;
    uint32_t count = 50000;

    for (uint64_t s = 1; s <= count; s++) {
        uint64_t seed = s, mask[ITEMS_MAX];
        struct small_case c, turned;
        double difference;

        fill_case(&c, &seed, 1 + random_below(&seed, NODES_MAX),
                  1 + random_below(&seed, LAYERS_MAX), 2 + random_below(&seed, EXPERTS_MAX - 1));
        route(&c, &seed);
        reverse(&turned, &c);
        run_prism(&c.in, mask);
        difference = fraction(shunt_placement_cost(&c.in, mask));
        run_prism(&turned.in, mask);
        difference -= fraction(shunt_placement_cost(&turned.in, mask));
        difference = difference < 0 ? -difference : difference;
        worst = difference > worst ? difference : worst;
        sum += difference;
    }
    fprintf(stderr,
            "# ranks in reverse: the remote fraction differs by %.4f on average, %.4f at worst\n",
            sum / count, worst);
    cr_assert_lt(sum / count, 0.005);
}

/* ---- at full size */

/* The largest rack and model in sight; the time is shown, for sanitizers and slow machines take
 * many times as long. */
Test(placement, full_size)
{
    enum { NODES = 16, LAYERS = 58, EXPERTS = 256 };
    uint64_t *activations = calloc((size_t)NODES * LAYERS * EXPERTS, sizeof(*activations));
    uint64_t *mask = calloc((size_t)LAYERS * EXPERTS, sizeof(*mask));
    uint32_t capacity[NODES];
    uint64_t seed = 1;
    struct shunt_placement_input in = {NODES, LAYERS, EXPERTS, activations, capacity};

    for (size_t i = 0; i < (size_t)NODES * LAYERS * EXPERTS; i++)
        activations[i] = draw(&seed, SKEWED);
    for (uint32_t percent = 90; percent <= 180; percent += 30) {
        struct shunt_placement_cost prism, spread;
        struct timespec from, to;

        for (uint32_t n = 0; n < NODES; n++)
            capacity[n] = LAYERS * EXPERTS * percent / 100 / NODES + 1;
        clock_gettime(CLOCK_MONOTONIC, &from);
        run_prism(&in, mask);
        clock_gettime(CLOCK_MONOTONIC, &to);
        check_rooms(&in, mask, percent);
        prism = shunt_placement_cost(&in, mask);
        shunt_placement_spread(&in, mask);
        check_rooms(&in, mask, percent);
        spread = shunt_placement_cost(&in, mask);
        cr_assert_lt(prism.remote, spread.remote);
        fprintf(stderr,
                "# %d nodes, %d x %d experts, room for %u %%: %.2f ms, remote %.3f (spread "
                "%.3f)\n",
                NODES, LAYERS, EXPERTS, percent,
                (double)(to.tv_sec - from.tv_sec) * 1e3 +
                    (double)(to.tv_nsec - from.tv_nsec) * 1e-6,
                (double)prism.remote / (double)prism.total,
                (double)spread.remote / (double)spread.total);
    }
    free(activations);
    free(mask);
}

/* A rack of the most nodes, some of them without any room, some with more than there is. */
Test(placement, extremes)
{
    static uint64_t activations[SHUNT_NODES_MAX * 4], mask[4];
    uint32_t capacity[SHUNT_NODES_MAX] = {[63] = UINT32_MAX};
    struct shunt_placement_input in = {SHUNT_NODES_MAX, 2, 2, activations, capacity};

    for (uint32_t i = 0; i < SHUNT_NODES_MAX * 4; i++)
        activations[i] = UINT64_MAX / (SHUNT_NODES_MAX * 4);
    run_prism(&in, mask);
    for (uint32_t i = 0; i < 4; i++)
        cr_assert_eq(mask[i], 1ull << 63);
    capacity[63] = 0;
    run_prism(&in, mask);
    cr_assert_eq(uncovered(&in, mask), 4);
    shunt_placement_spread(&in, mask);
    cr_assert_eq(uncovered(&in, mask), 4);
    for (uint32_t n = 0; n < SHUNT_NODES_MAX; n++)
        capacity[n] = 4;
    run_prism(&in, mask);
    for (uint32_t i = 0; i < 4; i++)
        cr_assert_eq(mask[i], UINT64_MAX);
}
