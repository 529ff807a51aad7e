/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract of struct shunt_transport_ops as a suite that any backend runs.
 */
#ifndef SHUNT_TESTS_TRANSPORT_CONTRACT_H
#define SHUNT_TESTS_TRANSPORT_CONTRACT_H

#include <criterion/criterion.h>

#include "tests/transport/mesh.h"

void transport_keeps_order_and_shows_bytes(const struct transport_backend *backend);
void transport_takes_any_size_that_fits(const struct transport_backend *backend);
void transport_takes_depth_puts_and_no_more(const struct transport_backend *backend);
void transport_counts_puts_until_sent_is_taken(const struct transport_backend *backend);
void transport_leaves_the_source_alone_until_sent(const struct transport_backend *backend);
void transport_sends_only_the_memory_it_was_given(const struct transport_backend *backend);
void transport_wraps_its_rings(const struct transport_backend *backend);
void transport_moves_both_directions_at_once(const struct transport_backend *backend);
void transport_serves_many_peers(const struct transport_backend *backend);
void transport_overwrites_nothing_without_credit(const struct transport_backend *backend);
void transport_gives_credit_by_release(const struct transport_backend *backend);
void transport_keeps_a_sleeper_awake(const struct transport_backend *backend);
void transport_loses_no_wake_up(const struct transport_backend *backend);
void transport_gives_up_a_peer_that_takes_nothing(const struct transport_backend *backend);
void transport_says_once_that_a_peer_is_lost(const struct transport_backend *backend);
void transport_hands_out_what_came_before_the_loss(const struct transport_backend *backend);
void transport_loses_a_peer_at_every_point(const struct transport_backend *backend);
void transport_loses_a_peer_while_it_sleeps(const struct transport_backend *backend);
void transport_loses_a_peer_while_it_opens(const struct transport_backend *backend);
void transport_refuses_memory_it_cannot_use(const struct transport_backend *backend);
void transport_behaves_like_its_model(const struct transport_backend *backend);

#define TRANSPORT_KEEPS(suite, backend, check)                                                     \
    Test(suite, check, .timeout = 250)                                                             \
    {                                                                                              \
        transport_##check(&backend);                                                               \
    }

/* The whole contract, as tests of the suite. */
#define TRANSPORT_KEEPS_ALL(suite, backend)                                                        \
    TRANSPORT_KEEPS(suite, backend, keeps_order_and_shows_bytes)                                   \
    TRANSPORT_KEEPS(suite, backend, takes_any_size_that_fits)                                      \
    TRANSPORT_KEEPS(suite, backend, takes_depth_puts_and_no_more)                                  \
    TRANSPORT_KEEPS(suite, backend, counts_puts_until_sent_is_taken)                               \
    TRANSPORT_KEEPS(suite, backend, leaves_the_source_alone_until_sent)                            \
    TRANSPORT_KEEPS(suite, backend, sends_only_the_memory_it_was_given)                            \
    TRANSPORT_KEEPS(suite, backend, wraps_its_rings)                                               \
    TRANSPORT_KEEPS(suite, backend, moves_both_directions_at_once)                                 \
    TRANSPORT_KEEPS(suite, backend, serves_many_peers)                                             \
    TRANSPORT_KEEPS(suite, backend, overwrites_nothing_without_credit)                             \
    TRANSPORT_KEEPS(suite, backend, gives_credit_by_release)                                       \
    TRANSPORT_KEEPS(suite, backend, keeps_a_sleeper_awake)                                         \
    TRANSPORT_KEEPS(suite, backend, loses_no_wake_up)                                              \
    TRANSPORT_KEEPS(suite, backend, gives_up_a_peer_that_takes_nothing)                            \
    TRANSPORT_KEEPS(suite, backend, says_once_that_a_peer_is_lost)                                 \
    TRANSPORT_KEEPS(suite, backend, hands_out_what_came_before_the_loss)                           \
    TRANSPORT_KEEPS(suite, backend, loses_a_peer_at_every_point)                                   \
    TRANSPORT_KEEPS(suite, backend, loses_a_peer_while_it_sleeps)                                  \
    TRANSPORT_KEEPS(suite, backend, loses_a_peer_while_it_opens)                                   \
    TRANSPORT_KEEPS(suite, backend, refuses_memory_it_cannot_use)                                  \
    TRANSPORT_KEEPS(suite, backend, behaves_like_its_model)

#endif
