/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner thread: it gathers what the nodes activated, and at intervals asks placement.h for a
 * better placement. It runs on one node of a rack and knows no network: telemetry goes in, plans
 * come out. Its functions may be called from any thread and never wait for a plan to be computed.
 */
#ifndef SHUNT_PLANNER_PLANNER_H
#define SHUNT_PLANNER_PLANNER_H

#include "runtime/base/error.h"

enum shunt_placement_policy {
    SHUNT_PLACEMENT_OFF,    /* no plan at all: the store's own eviction decides */
    SHUNT_PLACEMENT_SPREAD, /* one even plan when all nodes are known */
    SHUNT_PLACEMENT_PRISM,  /* by activation, renewed at intervals */
};

struct shunt_planner_config {
    enum shunt_placement_policy policy;
    uint32_t node_count, layer_count, expert_count;
    int64_t interval_ns;
};

struct shunt_planner;

int shunt_planner_open(struct shunt_planner **planner, const struct shunt_planner_config *cfg,
                       struct shunt_error *err);
void shunt_planner_close(struct shunt_planner *planner);

/* What a node has activated since it started, [layer][expert] (counts may wrap), and how many
 * experts it can hold. The first plan is made once every node has reported. */
void shunt_planner_report(struct shunt_planner *planner, uint32_t node, const uint32_t *activations,
                          uint32_t capacity);

/* Takes the newest plan if it has not been taken: mask[layer * expert_count + expert] has a bit for
 * each node; *epoch counts plans from 1. Return: true when there was one. */
bool shunt_planner_take(struct shunt_planner *planner, uint64_t *mask, uint64_t *epoch);

#endif
