/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads one layer ahead. Every node has heard everybody's guesses and residency for the next layer,
 * so that each expert nobody holds has exactly one node that may read it: the one to which the next
 * layer's rows will be sent.
 */
#include "runtime/engine/moe_impl.h"

/* When the next layer of this lane comes, in layer steps. Between two prefill layers the decode
 * lane may make a full pass. */
static uint64_t next_layer_step(const struct shunt_moe *m)
{
    if (m->lane == SHUNT_LANE_DECODE)
        return m->layer_step + 1;
    return m->layer_step + 1 + m->cfg.arch->layer_count;
}

static void learn(struct shunt_moe *m)
{
    const struct shunt_store_counters *c = shunt_store_get_counters(m->cfg.store);

    shunt_prefetch_learn(&m->governor, c->guesses_useful - m->learned_useful,
                         c->guesses_late - m->learned_late, c->guesses_wasted - m->learned_wasted);
    m->learned_useful = c->guesses_useful;
    m->learned_late = c->guesses_late;
    m->learned_wasted = c->guesses_wasted;
}

/* The router has spoken for the layer that this lane's guesses were for. */
void shunt_moe_drop_wrong_guesses(struct shunt_moe *m)
{
    const uint32_t *guessed = m->guessed[m->lane];

    for (uint32_t i = 0; i < m->guessed_count[m->lane]; i++)
        if (m->needs[guessed[i] % m->cfg.arch->expert_count] == SHUNT_NEED_NONE)
            shunt_store_abandon(m->cfg.store, guessed[i]);
    m->guessed_count[m->lane] = 0;
}

void shunt_moe_prefetch(struct shunt_moe *m)
{
    uint32_t experts = m->cfg.arch->expert_count;
    uint64_t until = next_layer_step(m);
    uint32_t wanted = 0, allowed;

    if (!m->cfg.prefetch || !shunt_moe_has_next(m))
        return;
    learn(m);
    /* First what is here: it must not be evicted for what comes. */
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t key = shunt_moe_key(m, m->layer + 1, e);
        uint64_t resident, loading;

        if (!shunt_bit(m->guesses, e))
            continue;
        shunt_moe_holders(m, m->next_states, e, &resident, &loading);
        if (resident | loading)
            shunt_store_speculate(m->cfg.store, key, m->layer_step, until, false);
        else if (shunt_schedule_reader(m->layer + 1, e, m->placed[key], m->live) == m->cfg.rank)
            m->cursor[wanted++] = e;
    }
    allowed = shunt_prefetch_allow(&m->governor, wanted);
    for (uint32_t i = 0; i < allowed; i++) {
        uint32_t key = shunt_moe_key(m, m->layer + 1, m->cursor[i]);

        if (shunt_store_speculate(m->cfg.store, key, m->layer_step, until, true))
            m->guessed[m->lane][m->guessed_count[m->lane]++] = key;
    }
}
