/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/bench/ticks.h"

#include <stdio.h>
#include <string.h>

#define CLOCKSOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"

static bool clock_is_counter(void)
{
    FILE *f = fopen(CLOCKSOURCE, "re");
    char name[16] = "";
    bool is = f && fgets(name, sizeof(name), f) && strcmp(name, "tsc\n") == 0;

    if (f)
        fclose(f);
    return is;
}

void shunt_ticks_start(struct shunt_ticks *t)
{
    t->counter = clock_is_counter();
    t->begin_ns = shunt_now_ns();
    t->begin = shunt_ticks_now(t);
}

double shunt_ticks_ns(const struct shunt_ticks *t)
{
    int64_t ns = shunt_now_ns() - t->begin_ns;
    int64_t ticks = shunt_ticks_now(t) - t->begin;

    return ns > 0 && ticks > 0 ? (double)ns / (double)ticks : 1;
}
