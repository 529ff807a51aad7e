/* SPDX-License-Identifier: Apache-2.0
 *
 * What the paper leaves open, and what is done here:
 * - Entropy is the only floating-point number. It is rounded to 2^-24 nat, and from there on shares
 *   of a capacity are exact, so that equal inputs have equal shares and ties are true ties.
 * - A layer without history counts as uniform: we know nothing, so any of its experts may come.
 * - A layer never gets more slots than it has experts: what is over is shared again, by entropy,
 *   over the layers that are not full. What the floors leave goes to the largest fractions, and
 *   among equal ones to the layer of which the rack holds least so far.
 * - Entropy 0 (every token at one expert, which only a top-1 router can do) earns no slot: so says
 *   the paper. Slots that the other layers cannot use come to it all the same.
 * - A layer that lacks slots gets them from the larger nodes first; each slot given makes a node
 *   smaller in this order, so that nodes of one size take turns.
 * - Of experts activated alike a node takes those with the fewest copies, then those with the
 *   lowest id, then those of the lowest layer; the less its ties are worth the later it chooses.
 * - Of several nodes with the most duplicates the one gives whose least used one is used least.
 */
#include "planner/placement.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "runtime/base/carve.h"

struct plan {
    const struct shunt_placement_input *in;
    uint64_t *mask;
    uint32_t room[SHUNT_NODES_MAX]; /* [node]: capacity, at most all experts */
    uint32_t *count;  /* [layer][node]: experts of the layer that the node is to hold */
    uint32_t *total;  /* [layer]: their sum over the nodes */
    uint64_t *weight; /* [layer], for the node in hand: its entropy, 0 once the layer is full */
    uint64_t *rest;   /* [layer], for the node in hand: what the floor cut off, in 1/sum(weight) */
};

/* Layers [first, end). */
struct span {
    uint32_t first, end;
};

static size_t lay_out(struct plan *p, void *scratch)
{
    struct shunt_carve c = {.base = scratch};
    size_t layers = p->in->layer_count;

    p->weight = shunt_carve_aligned(&c, layers, sizeof(*p->weight), 8);
    p->rest = shunt_carve_aligned(&c, layers, sizeof(*p->rest), 8);
    p->total = shunt_carve_aligned(&c, layers, sizeof(*p->total), 8);
    p->count = shunt_carve_aligned(&c, layers * p->in->node_count, sizeof(*p->count), 8);
    return c.used;
}

static uint32_t all_experts(const struct shunt_placement_input *in)
{
    return in->layer_count * in->expert_count;
}

static uint32_t room_of(const struct shunt_placement_input *in, uint32_t n)
{
    uint32_t all = all_experts(in);

    return in->capacity[n] < all ? in->capacity[n] : all;
}

/* What node n's users activated, from expert 0 of the layer on. */
static const uint64_t *activated(const struct shunt_placement_input *in, uint32_t n, uint32_t layer)
{
    return in->activations + ((size_t)n * in->layer_count + layer) * in->expert_count;
}

static uint32_t *count_of(const struct plan *p, uint32_t layer, uint32_t n)
{
    return &p->count[(size_t)layer * p->in->node_count + n];
}

/* ---- Algorithm 1: how many experts of each layer a node holds */

/* Entropy in 2^-24 nat, and one more: the smallest weight there is, so that layers without entropy
 * share alike what the others leave. */
static uint64_t entropy_weight(const uint64_t *f, uint32_t count)
{
    double sum = 0, sum_log = 0, nats;

    for (uint32_t e = 0; e < count; e++) {
        double x = (double)f[e];

        if (f[e] == 0)
            continue;
        sum += x;
        sum_log += x * log(x);
    }
    nats = sum > 0 ? log(sum) - sum_log / sum : log(count);
    return (uint64_t)(nats * 0x1p24 + 0.5) + 1;
}

/* Gives the layers whose share of `left` slots reaches all their experts just these, which leaves
 * the others a larger share. Return: the slots for the others, whose weights add up to *sum. */
static uint64_t fill_layers(const struct plan *p, uint32_t n, uint64_t left, uint64_t *sum)
{
    uint64_t experts = p->in->expert_count;
    bool filled = true;

    while (filled) {
        filled = false;
        for (uint32_t l = 0; l < p->in->layer_count; l++) {
            /* Weights stay below 2^30 and slots below 2^31. */
            if (p->weight[l] == 0 || left * p->weight[l] < experts * *sum)
                continue;
            *count_of(p, l, n) = p->in->expert_count;
            left -= experts;
            *sum -= p->weight[l];
            p->weight[l] = 0;
            filled = true;
        }
    }
    return left;
}

static uint32_t largest_rest(const struct plan *p)
{
    uint32_t best = 0;

    for (uint32_t l = 1; l < p->in->layer_count; l++) {
        if (p->rest[l] > p->rest[best] ||
            (p->rest[l] == p->rest[best] && p->total[l] < p->total[best]))
            best = l;
    }
    return best;
}

/* Shares node n's room over the layers in proportion to their entropies. */
static void split_room(const struct plan *p, uint32_t n)
{
    uint64_t sum = 0, given = 0, left;

    for (uint32_t l = 0; l < p->in->layer_count; l++) {
        p->weight[l] = entropy_weight(activated(p->in, n, l), p->in->expert_count);
        p->rest[l] = 0;
        sum += p->weight[l];
    }
    left = fill_layers(p, n, p->room[n], &sum);
    for (uint32_t l = 0; l < p->in->layer_count; l++) {
        if (p->weight[l] == 0)
            continue;
        *count_of(p, l, n) = (uint32_t)(left * p->weight[l] / sum);
        p->rest[l] = left * p->weight[l] % sum;
        given += *count_of(p, l, n);
    }
    /* The rests add up to the slots left in units of `sum`, so there are fewer such slots than
     * layers with a rest, and none of these is full. */
    for (left -= given; left > 0; left--) {
        uint32_t l = largest_rest(p);

        ++*count_of(p, l, n);
        p->rest[l] = 0;
    }
    for (uint32_t l = 0; l < p->in->layer_count; l++)
        p->total[l] += *count_of(p, l, n);
}

static uint32_t least_total(const struct plan *p)
{
    uint32_t least = 0;

    for (uint32_t l = 1; l < p->in->layer_count; l++) {
        if (p->total[l] < p->total[least])
            least = l;
    }
    return least;
}

/* The layer with the largest surplus in the rack of which node n holds some; layer_count: none. */
static uint32_t largest_surplus(const struct plan *p, uint32_t n)
{
    uint32_t best = p->in->layer_count, most = p->in->expert_count;

    for (uint32_t l = 0; l < p->in->layer_count; l++) {
        if (p->total[l] > most && *count_of(p, l, n) > 0) {
            best = l;
            most = p->total[l];
        }
    }
    return best;
}

/* Moves slots until the nodes together have as many for each layer as it has experts. Ends when
 * they have room for all: while a layer lacks slots no node holds it whole, and another layer has
 * slots to spare on some node; each move makes the lack one smaller. */
static void cover_counts(const struct plan *p)
{
    uint32_t turn[SHUNT_NODES_MAX]; /* room, less the slots moved: larger nodes first */

    memcpy(turn, p->room, sizeof(turn));
    for (;;) {
        uint32_t to = least_total(p), from = p->in->layer_count, giver = 0;

        if (p->total[to] >= p->in->expert_count)
            return;
        for (uint32_t n = 0; n < p->in->node_count; n++) {
            uint32_t l;

            if (from < p->in->layer_count && turn[n] <= turn[giver])
                continue;
            l = largest_surplus(p, n);
            if (l < p->in->layer_count) {
                from = l;
                giver = n;
            }
        }
        assert(from < p->in->layer_count);
        --*count_of(p, from, giver);
        ++*count_of(p, to, giver);
        p->total[from]--;
        p->total[to]++;
        turn[giver]--;
    }
}

/* ---- Algorithm 2: which experts of each layer a node holds */

/* A level that at most `nth` of the values exceed and at least `nth` reach; nth in [1, count]. */
static uint64_t level_of(const uint64_t *value, size_t count, size_t nth)
{
    uint64_t low = 0, high = 0;

    for (size_t i = 0; i < count; i++)
        high = value[i] > high ? value[i] : high;
    while (low < high) {
        uint64_t middle = high - (high - low) / 2;
        size_t reach = 0;

        for (size_t i = 0; i < count; i++)
            reach += value[i] >= middle;
        if (reach == nth)
            return middle - 1;
        if (reach > nth)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Node n takes the experts activated more than `level` there. Return: how many. */
static uint32_t take_above(const struct plan *p, struct span s, uint32_t n, uint64_t level)
{
    size_t experts = p->in->expert_count;
    const uint64_t *f = activated(p->in, n, s.first);
    uint64_t *mask = p->mask + s.first * experts;
    uint32_t taken = 0;

    for (size_t i = 0; i < (s.end - s.first) * experts; i++) {
        if (f[i] > level) {
            mask[i] |= shunt_node_set_of(n);
            taken++;
        }
    }
    return taken;
}

/* Node n takes `need` of the experts activated exactly `level` there: those with the fewest copies,
 * and of these the lowest of all layers, so that no layer is left out. */
static void take_ties(const struct plan *p, struct span s, uint32_t n, uint64_t level,
                      uint32_t need)
{
    size_t experts = p->in->expert_count;
    const uint64_t *f = activated(p->in, n, 0);
    uint32_t with_copies[SHUNT_NODES_MAX + 1] = {0};
    uint32_t last = 0; /* takes all with fewer copies, then of those with so many */

    for (size_t i = s.first * experts; i < s.end * experts; i++) {
        if (f[i] == level)
            with_copies[shunt_node_set_count(p->mask[i])]++;
    }
    for (; with_copies[last] < need; last++)
        need -= with_copies[last];
    for (size_t e = 0; e < experts; e++) {
        for (size_t l = s.first; l < s.end; l++) {
            uint64_t *holders = &p->mask[l * experts + e];
            uint32_t copies = shunt_node_set_count(*holders);

            if (f[l * experts + e] != level || copies > last || (copies == last && need == 0))
                continue;
            *holders |= shunt_node_set_of(n);
            need -= copies == last;
        }
    }
}

/* Each node takes want[n] experts of the span, the most activated first. Ties wait until all nodes
 * have what is no tie for them, and wait longer the less they are worth: so a node takes nothing
 * that is worth nothing to it and that another has, while an expert is on no node. */
static void take_most_activated(const struct plan *p, struct span s, const uint32_t *want)
{
    size_t count = (size_t)(s.end - s.first) * p->in->expert_count;
    uint64_t level[SHUNT_NODES_MAX];
    uint32_t need[SHUNT_NODES_MAX];
    uint64_t waiting = 0;

    for (uint32_t n = 0; n < p->in->node_count; n++) {
        if (want[n] == 0)
            continue;
        level[n] = level_of(activated(p->in, n, s.first), count, want[n]);
        need[n] = want[n] - take_above(p, s, n, level[n]);
        if (need[n] > 0)
            waiting |= shunt_node_set_of(n);
    }
    while (waiting) {
        uint32_t next = shunt_node_set_first(waiting);

        for (uint32_t n = next + 1; n < p->in->node_count; n++) {
            if (shunt_node_set_has(waiting, n) && level[n] > level[next])
                next = n;
        }
        take_ties(p, s, next, level[next], need[next]);
        waiting &= ~shunt_node_set_of(next);
    }
}

static bool is_duplicate(uint64_t holders)
{
    return (holders & (holders - 1)) != 0;
}

#define NONE UINT32_MAX

/* One layer on its way to coverage. */
struct repair {
    uint64_t *mask; /* [expert] */
    uint32_t experts;
    uint32_t uncovered;                   /* experts that are on no node */
    uint32_t duplicates[SHUNT_NODES_MAX]; /* [node]: its experts that another has as well */
    uint32_t drop[SHUNT_NODES_MAX]; /* [node]: the one of these it uses least; NONE: not known */
};

static void survey(struct repair *r)
{
    for (uint32_t n = 0; n < SHUNT_NODES_MAX; n++)
        r->drop[n] = NONE;
    for (uint32_t e = 0; e < r->experts; e++) {
        r->uncovered += r->mask[e] == 0;
        if (!is_duplicate(r->mask[e]))
            continue;
        for (uint64_t set = r->mask[e]; set; set &= set - 1)
            r->duplicates[shunt_node_set_first(set)]++;
    }
}

/* Node n's duplicates only become fewer, so the one found before stays right while it is one. */
static uint32_t least_used_duplicate(struct repair *r, uint32_t n, const uint64_t *f)
{
    uint32_t least = r->drop[n];

    if (least != NONE && is_duplicate(r->mask[least]))
        return least;
    least = NONE;
    for (uint32_t e = 0; e < r->experts; e++) {
        if (shunt_node_set_has(r->mask[e], n) && is_duplicate(r->mask[e]) &&
            (least == NONE || f[e] < f[least]))
            least = e;
    }
    return r->drop[n] = least;
}

static uint32_t most_used_uncovered(const struct repair *r, const uint64_t *f)
{
    uint32_t most = NONE;

    for (uint32_t e = 0; e < r->experts; e++) {
        if (r->mask[e] == 0 && (most == NONE || f[e] > f[most]))
            most = e;
    }
    return most;
}

/* Of the nodes with the most duplicates, the one whose least used duplicate is used least. */
static uint32_t choose_giver(const struct plan *p, uint32_t layer, struct repair *r)
{
    uint32_t most = 0, giver = 0;
    uint64_t least = UINT64_MAX;

    for (uint32_t n = 0; n < p->in->node_count; n++)
        most = r->duplicates[n] > most ? r->duplicates[n] : most;
    for (uint32_t n = p->in->node_count; n-- > 0;) {
        const uint64_t *f = activated(p->in, n, layer);

        if (r->duplicates[n] == most && f[least_used_duplicate(r, n, f)] <= least) {
            giver = n;
            least = f[r->drop[n]];
        }
    }
    return giver;
}

/* Until every expert of the layer is on a node, one with the most duplicates gives the one it uses
 * least for the expert without a node that it would use most. Ends: the nodes hold as many experts
 * of the layer as it has, so while one is on no node, some other is on two; and no exchange takes
 * an expert's last node. */
static void cover_layer(const struct plan *p, uint32_t layer)
{
    struct repair r = {
        .mask = p->mask + (size_t)layer * p->in->expert_count,
        .experts = p->in->expert_count,
    };

    for (survey(&r); r.uncovered > 0; r.uncovered--) {
        uint32_t n = choose_giver(p, layer, &r);
        uint32_t drop = r.drop[n], add = most_used_uncovered(&r, activated(p->in, n, layer));

        assert(drop != NONE && add != NONE);
        r.mask[drop] &= ~shunt_node_set_of(n);
        r.mask[add] = shunt_node_set_of(n);
        r.drop[n] = NONE;
        r.duplicates[n]--;
        if (!is_duplicate(r.mask[drop]))
            r.duplicates[shunt_node_set_first(r.mask[drop])]--;
    }
}

/* ---- the interface */

size_t shunt_placement_scratch_bytes(const struct shunt_placement_input *in)
{
    struct plan p = {.in = in};

    return lay_out(&p, NULL);
}

void shunt_placement_prism(const struct shunt_placement_input *in, uint64_t *mask, void *scratch)
{
    struct plan p = {.in = in, .mask = mask};
    uint64_t room = 0;

    memset(scratch, 0, lay_out(&p, scratch));
    memset(mask, 0, all_experts(in) * sizeof(*mask));
    for (uint32_t n = 0; n < in->node_count; n++) {
        p.room[n] = room_of(in, n);
        room += p.room[n];
    }
    if (room < all_experts(in)) {
        /* No coverage to be had, and without it the most activated experts of all layers at once
         * are the best a node can hold: a count for each layer could only lose. */
        take_most_activated(&p, (struct span){0, in->layer_count}, p.room);
        return;
    }
    for (uint32_t n = 0; n < in->node_count; n++)
        split_room(&p, n);
    cover_counts(&p);
    for (uint32_t l = 0; l < in->layer_count; l++) {
        take_most_activated(&p, (struct span){l, l + 1}, count_of(&p, l, 0));
        cover_layer(&p, l);
    }
}

/* One round of dealing, each node going on where the one before has stopped. Layers alternate from
 * card to card, so that every stretch of the pack has all layers alike. */
void shunt_placement_spread(const struct shunt_placement_input *in, uint64_t *mask)
{
    uint32_t all = all_experts(in), next = 0;

    memset(mask, 0, all * sizeof(*mask));
    for (uint32_t n = 0; n < in->node_count; n++) {
        for (uint32_t left = room_of(in, n); left > 0; left--) {
            uint32_t layer = next % in->layer_count, expert = next / in->layer_count;

            mask[(size_t)layer * in->expert_count + expert] |= shunt_node_set_of(n);
            next = next + 1 < all ? next + 1 : 0;
        }
    }
}

struct shunt_placement_cost shunt_placement_cost(const struct shunt_placement_input *in,
                                                 const uint64_t *mask)
{
    struct shunt_placement_cost cost = {0};
    uint32_t all = all_experts(in);

    for (uint32_t n = 0; n < in->node_count; n++) {
        const uint64_t *f = activated(in, n, 0);

        for (uint32_t i = 0; i < all; i++) {
            cost.total += f[i];
            if (!shunt_node_set_has(mask[i], n))
                cost.remote += f[i];
        }
    }
    return cost;
}
