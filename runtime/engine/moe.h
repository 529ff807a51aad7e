/* SPDX-License-Identifier: Apache-2.0
 *
 * The MoE layers of a model on one node of a rack: from a row's normalised state to the weighted
 * sum of its experts, wherever those experts are. It knows nothing of attention, sequences or
 * tokens; the engine stands on top of it.
 *
 * All nodes of a rack call shunt_moe_step for the same lane and layer in the same order, with
 * whatever rows they have, also none. Engine thread only; nothing here allocates after init.
 */
#ifndef SHUNT_ENGINE_MOE_H
#define SHUNT_ENGINE_MOE_H

#include "planner/prefetch.h"
#include "runtime/engine/linear.h"
#include "runtime/engine/progress.h"

struct shunt_moe_config {
    const struct shunt_arch *arch;
    const struct shunt_matrix *routers; /* [layer] */
    struct shunt_compute compute;
    struct shunt_store *store;
    struct shunt_exchange *exchange;
    struct shunt_progress *progress;
    uint32_t rank, node_count;
    uint32_t rows_max[SHUNT_NODES_MAX];
    bool prefetch;
};

struct shunt_moe_counters {
    uint64_t calls_local, calls_peer, calls_read;
    uint64_t rows_sent, rows_received;
};

/* Rows of one step. */
struct shunt_moe_rows {
    const float *const *x; /* [count]: what router and experts see */
    float *const *out;     /* [count]: out += sum over the row's experts of weight * expert(x) */
    uint32_t count;        /* at most rows_max of this rank */
};

/* An expert this node has to compute in the layer under way. */
enum shunt_need { SHUNT_NEED_NONE, SHUNT_NEED_BLOCKED, SHUNT_NEED_READ, SHUNT_NEED_HELD };

/* What a peer has sent in the layer under way. */
struct shunt_moe_peer {
    uint32_t entries_out;  /* of ours that it computes */
    uint64_t result_off;   /* where in our inbox its results come */
    uint32_t entries_in;   /* of its rows that we compute */
    uint32_t entries_left; /* not computed yet */
    uint32_t waited;       /* entries whose expert had to be read */
    uint64_t their_result_off;
};

/* A piece of work for the pool: rows of one expert. */
struct shunt_moe_group {
    struct shunt_matrix parts[SHUNT_PARTS];
    uint32_t expert;
    uint32_t first; /* entry */
    uint32_t count;
    uint32_t at; /* in the activation buffers */
};

struct shunt_moe {
    struct shunt_moe_config cfg;
    uint64_t live;       /* mask of nodes */
    uint64_t layer_step; /* counts shunt_moe_step calls; the store's clock */
    struct shunt_prefetch_governor governor;
    uint64_t learned_useful, learned_late, learned_wasted; /* of the store's counters */
    struct shunt_moe_counters counters;
    uint64_t *placed;              /* [layer][expert]: mask of nodes, the active placement */
    uint8_t *placed_here;          /* [layer][expert] */
    _Atomic uint32_t *activations; /* [layer][expert] tokens of this node, for the planner */

    /* The layer under way. */
    enum shunt_lane lane;
    uint32_t layer;
    uint64_t step;
    struct shunt_moe_rows rows;

    /* Routing of own rows. Entry (row, k) is item row * used + k. */
    float *logits;      /* [rows][expert] */
    float **logit_rows; /* [rows] */
    uint16_t *ids;      /* [item] */
    float *weights;     /* [item] */
    uint32_t *counts;   /* [expert] */
    uint32_t *items_at; /* [expert + 1]: own items by expert, rows ascending */
    uint32_t *items;    /* [item] */
    uint8_t *node_of;   /* [expert]: who computes own rows */
    float **results;    /* [item] */

    /* What the nodes have told each other. */
    uint8_t *states;       /* [node][expert]: of this layer */
    uint8_t *next_states;  /* [node][expert]: of the next layer */
    uint8_t *first_states; /* [node][expert]: of layer 0, from the announcements */
    uint8_t *guesses;      /* bits over experts: somebody's rows will need it in the next layer */
    uint8_t *own_guesses;
    uint32_t *all_counts; /* [node][expert], prefill */
    uint8_t *all_nodes;   /* [node][expert], prefill: the schedule */
    uint64_t *read_ns;    /* [node] */
    struct shunt_moe_peer peers[SHUNT_NODES_MAX];

    /* What this node computes: entries by expert. */
    enum shunt_need *needs;             /* [expert] */
    bool *waited;                       /* [expert] */
    uint32_t *entries_at;               /* [expert + 1] */
    uint32_t *entries_done;             /* [expert] */
    const float **entry_x;              /* [entry] */
    float **entry_y;                    /* [entry] */
    uint32_t *group_counts;             /* [node][expert]: entries of each node */
    struct shunt_wire_group *groups_in; /* [node][expert]: copies from the peers' messages */
    uint32_t *entries_in;               /* [entry], node by node */
    uint32_t *cursor;                   /* [expert] */
    uint32_t *row_slot;                 /* [row]: place in the message being built */
    uint32_t *row_stamp;                /* [row]: == stamp when row_slot is valid */
    uint32_t *row_list;                 /* [row] */
    uint32_t stamp;

    struct shunt_moe_group *groups; /* [expert] of one batch */
    uint32_t group_count;
    uint32_t batch_max;           /* entries of one batch */
    float *gate, *up;             /* [batch_max][expert_ff] */
    float **gate_rows, **up_rows; /* [batch_max] */

    /* Keys read ahead for the next step of each lane. */
    uint32_t *guessed[SHUNT_LANES];
    uint32_t guessed_count[SHUNT_LANES];
};

/* Lays out the tables; run once to measure, once to place. */
void shunt_moe_carve(struct shunt_moe *moe, const struct shunt_moe_config *cfg,
                     struct shunt_carve *carve);

/* After carve on real memory. */
void shunt_moe_init(struct shunt_moe *moe);

/* Residency of layer 0 for an announcement; and what the peers announced, for the decode pass to
 * come. */
void shunt_moe_write_states(const struct shunt_moe *moe, uint32_t layer, uint8_t *states);
void shunt_moe_take_states(struct shunt_moe *moe, uint32_t node, const uint8_t *states);

/* Makes a placement active: mask of nodes per [layer][expert]. */
void shunt_moe_place(struct shunt_moe *moe, const uint64_t *mask);

/* One layer of one lane, on all nodes together. Return: 0, or why the rack cannot go on. */
int shunt_moe_step(struct shunt_moe *moe, enum shunt_lane lane, uint32_t layer, uint64_t step,
                   const struct shunt_moe_rows *rows, struct shunt_error *err);

#endif
