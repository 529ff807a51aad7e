/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/notify.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct heard {
    char text[600];
    uint32_t count;
};

static void hear(void *ctx, const char *text)
{
    struct heard *h = ctx;

    h->count++;
    snprintf(h->text, sizeof(h->text), "%s", text);
}

Test(notify, says_what_was_formatted)
{
    struct heard h = {0};
    const struct shunt_notify notify = {.say = hear, .ctx = &h};

    shunt_notify_say(&notify, "%s: %u of %u", "io_uring", 3u, 7u);
    cr_expect_str_eq(h.text, "io_uring: 3 of 7");
    shunt_notify_say(&notify, "again");
    cr_expect(h.count == 2 && !strcmp(h.text, "again"));
}

Test(notify, speaks_to_nobody_as_well)
{
    shunt_notify_say(NULL, "%s", "nobody");
    shunt_notify_say(&(struct shunt_notify){0}, "%s", "nobody");
}

/* A path may have 4096 bytes: what comes is cut, and ends. */
Test(notify, cuts_what_is_too_long)
{
    struct heard h = {0};
    const struct shunt_notify notify = {.say = hear, .ctx = &h};
    char path[5000];

    memset(path, 'p', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    shunt_notify_say(&notify, "cannot register: %s", path);
    cr_expect_eq(strlen(h.text), 511);
    cr_expect_eq(strncmp(h.text, "cannot register: ppp", 20), 0);
}
