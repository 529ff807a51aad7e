/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/liveness.h"

#include <string.h>

static bool sign(const struct shunt_pulse *pulse, const struct shunt_datagram *d, uint8_t mac[16])
{
    uint8_t whole[SHUNT_SHA256_BYTES];

    if (shunt_hmac(pulse->key, d, offsetof(struct shunt_datagram, mac), whole))
        return false;
    memcpy(mac, whole, 16);
    return true;
}

void shunt_pulse_init(struct shunt_pulse *pulse, const uint8_t key[SHUNT_KEY_BYTES], int64_t now_ns)
{
    *pulse = (struct shunt_pulse){.heard_ns = now_ns};
    memcpy(pulse->key, key, sizeof(pulse->key));
}

void shunt_pulse_write(struct shunt_pulse *pulse, uint32_t own_rank, struct shunt_datagram *d)
{
    *d = (struct shunt_datagram){
        .magic = SHUNT_PULSE_MAGIC, .rank = own_rank, .sequence = ++pulse->sent};
    if (!sign(pulse, d, d->mac)) /* one that is lost, as the net loses them */
        d->magic = 0;
}

bool shunt_pulse_read(struct shunt_pulse *pulse, uint32_t peer_rank, const void *bytes, size_t len,
                      int64_t now_ns)
{
    struct shunt_datagram d;
    uint8_t mac[16];

    if (len != sizeof(d))
        return false;
    memcpy(&d, bytes, sizeof(d));
    if (d.magic != SHUNT_PULSE_MAGIC || d.rank != peer_rank || d.sequence <= pulse->heard)
        return false;
    if (!sign(pulse, &d, mac) || !shunt_secret_equal(mac, d.mac, sizeof(mac)))
        return false;
    pulse->heard = d.sequence;
    shunt_pulse_heard(pulse, now_ns);
    return true;
}

void shunt_pulse_heard(struct shunt_pulse *pulse, int64_t now_ns)
{
    pulse->heard_ns = now_ns;
    pulse->ever = true;
}

void shunt_pulse_excuse(struct shunt_pulse *pulse, int64_t ns, int64_t now_ns)
{
    pulse->heard_ns = ns > now_ns - pulse->heard_ns ? now_ns : pulse->heard_ns + ns;
}

enum shunt_pulse_state shunt_pulse_look(struct shunt_pulse *pulse, int64_t now_ns,
                                        int64_t dead_after_ns, int64_t first_ns, int64_t *silent_ns)
{
    *silent_ns = now_ns - pulse->heard_ns;
    if (*silent_ns >= (pulse->ever ? dead_after_ns : first_ns))
        return SHUNT_PULSE_DEAD;
    if (pulse->suspect && *silent_ns < SHUNT_SUSPECT_NS) {
        pulse->suspect = false;
        return SHUNT_PULSE_BACK;
    }
    if (pulse->suspect || !pulse->ever || *silent_ns < SHUNT_SUSPECT_NS)
        return SHUNT_PULSE_FINE;
    pulse->suspect = true;
    return SHUNT_PULSE_SUSPECT;
}
