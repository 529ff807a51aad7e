/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/bench/ticks.h"

#include <stdio.h>
#include <string.h>

#define CLOCKSOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"

#define LOOKS 16u

static bool clock_is_counter(void)
{
    FILE *f = fopen(CLOCKSOURCE, "re");
    char name[16] = "";
    bool is = f && fgets(name, sizeof(name), f) && strcmp(name, "tsc\n") == 0;

    if (f)
        fclose(f);
    return is;
}

/* The clock, and the counter at the same moment: of several looks at the clock the one with the
 * least time around it, for the processor may be taken away in between. */
static void look(const struct shunt_ticks *t, int64_t *ticks, int64_t *ns)
{
    int64_t least = INT64_MAX;

    for (uint32_t i = 0; i < LOOKS; i++) {
        int64_t before = shunt_ticks_now(t);
        int64_t now = shunt_now_ns();
        int64_t around = shunt_ticks_now(t) - before;

        if (around >= least)
            continue;
        least = around;
        *ticks = before + around / 2;
        *ns = now;
    }
}

void shunt_ticks_start(struct shunt_ticks *t)
{
    t->counter = clock_is_counter();
    look(t, &t->begin, &t->begin_ns);
}

double shunt_ticks_ns(const struct shunt_ticks *t)
{
    int64_t ticks, ns;

    if (!t->counter)
        return 1;
    look(t, &ticks, &ns);
    ticks -= t->begin;
    ns -= t->begin_ns;
    return ns > 0 && ticks > 0 ? (double)ns / (double)ticks : 1;
}
