/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/liveness.h"

#include <criterion/criterion.h>
#include <string.h>

#include "tests/random.h"

#define MS SHUNT_NS_PER_MS

static void pair(struct shunt_pulse *here, struct shunt_pulse *there)
{
    uint8_t key[SHUNT_KEY_BYTES] = {1, 2, 3};

    shunt_pulse_init(here, key, 0);
    shunt_pulse_init(there, key, 0);
}

Test(liveness, hears_the_peer)
{
    struct shunt_pulse here, there;
    struct shunt_datagram d;

    pair(&here, &there);
    for (int64_t i = 1; i <= 100; i++) {
        shunt_pulse_write(&there, 7, &d);
        cr_assert_eq(d.sequence, (uint64_t)i);
        cr_assert(shunt_pulse_read(&here, 7, &d, sizeof(d), i * MS));
        cr_assert_eq(here.heard_ns, i * MS);
    }
}

Test(liveness, ignores_what_is_old_forged_or_somebody_elses)
{
    struct shunt_pulse here, there, stranger;
    struct shunt_datagram d[4], changed;
    uint8_t key[SHUNT_KEY_BYTES] = {1, 2, 4};

    pair(&here, &there);
    shunt_pulse_init(&stranger, key, 0);
    for (uint32_t i = 0; i < 4; i++)
        shunt_pulse_write(&there, 1, &d[i]);
    cr_assert(shunt_pulse_read(&here, 1, &d[2], sizeof(d[2]), MS));
    for (uint32_t i = 0; i < 3; i++)
        cr_expect_not(shunt_pulse_read(&here, 1, &d[i], sizeof(d[i]), 2 * MS), "number %u", i);
    cr_expect_not(shunt_pulse_read(&here, 2, &d[3], sizeof(d[3]), 2 * MS), "of another rank");
    cr_expect_not(shunt_pulse_read(&here, 1, &d[3], sizeof(d[3]) - 1, 2 * MS), "cut");
    for (uint32_t bit = 0; bit < 8 * sizeof(changed); bit++) {
        changed = d[3];
        ((uint8_t *)&changed)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_expect_not(shunt_pulse_read(&here, 1, &changed, sizeof(changed), 2 * MS), "bit %u", bit);
    }
    for (uint32_t i = 0; i < 10; i++)
        shunt_pulse_write(&stranger, 1, &changed);
    cr_expect_not(shunt_pulse_read(&here, 1, &changed, sizeof(changed), 2 * MS), "another key");
    cr_expect(here.heard == 3 && here.heard_ns == MS, "what was ignored has changed something");
    cr_expect(shunt_pulse_read(&here, 1, &d[3], sizeof(d[3]), 2 * MS));
}

Test(liveness, survives_any_bytes)
{
    struct shunt_pulse here, there;
    uint8_t bytes[64];

    pair(&here, &there);
    for (uint64_t seed = 1; seed <= 20000; seed++) {
        uint64_t random = seed;
        uint32_t len = random_below(&random, sizeof(bytes) + 1);

        random_fill(&random, bytes, sizeof(bytes));
        if (seed % 2)
            memcpy(bytes, "SHUL\1\0\0\0", 8);
        cr_assert_not(shunt_pulse_read(&here, 1, bytes, seed % 3 ? 32 : len, MS), "seed %lu", seed);
    }
}

static enum shunt_pulse_state look(struct shunt_pulse *p, int64_t now_ms)
{
    int64_t silent;
    enum shunt_pulse_state state = shunt_pulse_look(p, now_ms * MS, 500 * MS, 5000 * MS, &silent);

    cr_assert_eq(silent, now_ms * MS - p->heard_ns);
    return state;
}

Test(liveness, suspects_once_and_then_buries)
{
    struct shunt_pulse p, other;

    pair(&p, &other);
    for (int64_t ms = 0; ms < 5000; ms += 100)
        cr_assert_eq(look(&p, ms), SHUNT_PULSE_FINE); /* never heard: it may still be joining */
    cr_expect_eq(look(&p, 5000), SHUNT_PULSE_DEAD);
    shunt_pulse_heard(&p, 1000 * MS);
    cr_expect_eq(look(&p, 1149), SHUNT_PULSE_FINE);
    cr_expect_eq(look(&p, 1150), SHUNT_PULSE_SUSPECT);
    cr_expect_eq(look(&p, 1300), SHUNT_PULSE_FINE);
    shunt_pulse_heard(&p, 1310 * MS);
    cr_expect_eq(look(&p, 1320), SHUNT_PULSE_BACK);
    cr_expect_eq(look(&p, 1330), SHUNT_PULSE_FINE);
    cr_expect_eq(look(&p, 1460), SHUNT_PULSE_SUSPECT);
    cr_expect_eq(look(&p, 1809), SHUNT_PULSE_FINE);
    cr_expect_eq(look(&p, 1810), SHUNT_PULSE_DEAD);
}

/* The time in which nobody looked counts for nobody, and never into the future. */
Test(liveness, excuses_what_was_not_looked_at)
{
    struct shunt_pulse p, other;

    pair(&p, &other);
    shunt_pulse_heard(&p, 1000 * MS);
    shunt_pulse_excuse(&p, 400 * MS, 1500 * MS);
    cr_expect_eq(look(&p, 1500), SHUNT_PULSE_FINE);
    cr_expect_eq(p.heard_ns, 1400 * MS);
    shunt_pulse_excuse(&p, 10000 * MS, 1600 * MS);
    cr_expect_eq(p.heard_ns, 1600 * MS);
    shunt_pulse_excuse(&p, INT64_MAX, 1700 * MS);
    cr_expect_eq(p.heard_ns, 1700 * MS);
}
