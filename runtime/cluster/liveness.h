/* SPDX-License-Identifier: Apache-2.0
 *
 * Signs of life: datagrams that a peer's control thread sends every 30 ms, since a TCP stream that
 * loses a packet falls silent for longer than a dead peer may take. What is not from the peer is
 * ignored: each carries a number, higher than all before, and a MAC over it with the key of the
 * pair's session, so that none is forged, replayed, or sent back to where it came from.
 *
 * Pure functions of what came and when; sockets and the clock are rack.c's.
 */
#ifndef SHUNT_CLUSTER_LIVENESS_H
#define SHUNT_CLUSTER_LIVENESS_H

#include "runtime/base/clock.h"
#include "runtime/base/hmac.h"

#define SHUNT_PULSE_NS   (30 * SHUNT_NS_PER_MS)  /* between two of them */
#define SHUNT_SUSPECT_NS (150 * SHUNT_NS_PER_MS) /* of silence */

#define SHUNT_PULSE_MAGIC 0x4c554853u /* "SHUL" */

/*   0  magic u32 | rank u32 of the sender
 *   8  sequence u64, from 1
 *  16  HMAC-SHA256 of the above, its first 16 bytes */
struct shunt_datagram {
    uint32_t magic;
    uint32_t rank;
    uint64_t sequence;
    uint8_t mac[16];
};
_Static_assert(sizeof(struct shunt_datagram) == 32, "the datagram is a wire format");

/* One peer. */
struct shunt_pulse {
    uint8_t key[SHUNT_KEY_BYTES];
    uint64_t sent;  /* the last number of ours */
    uint64_t heard; /* the last number of its */
    int64_t heard_ns;
    bool ever;    /* it has given a sign of life: before, it may still be joining */
    bool suspect; /* and this has been said */
};

void shunt_pulse_init(struct shunt_pulse *pulse, const uint8_t key[SHUNT_KEY_BYTES],
                      int64_t now_ns);

/* Our next datagram to it. */
void shunt_pulse_write(struct shunt_pulse *pulse, uint32_t own_rank, struct shunt_datagram *d);

/* Return: true for a sign of life of this peer; false for anything else, which changes nothing. */
bool shunt_pulse_read(struct shunt_pulse *pulse, uint32_t peer_rank, const void *bytes, size_t len,
                      int64_t now_ns);

/* A sign of life of another kind, that is authenticated as well. */
void shunt_pulse_heard(struct shunt_pulse *pulse, int64_t now_ns);

/* This node has not looked for so long: the peer is not to blame. */
void shunt_pulse_excuse(struct shunt_pulse *pulse, int64_t ns, int64_t now_ns);

enum shunt_pulse_state {
    SHUNT_PULSE_FINE,
    SHUNT_PULSE_SUSPECT, /* silent for SHUNT_SUSPECT_NS; once per silence */
    SHUNT_PULSE_BACK,    /* after that; once */
    SHUNT_PULSE_DEAD,    /* silent for dead_after_ns; a peer that was never heard, first_ns */
};

/* *silent_ns: for how long. */
enum shunt_pulse_state shunt_pulse_look(struct shunt_pulse *pulse, int64_t now_ns,
                                        int64_t dead_after_ns, int64_t first_ns,
                                        int64_t *silent_ns);

#endif
