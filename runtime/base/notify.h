/* SPDX-License-Identifier: Apache-2.0
 *
 * Notices: things a person should know that are no failures (a slower path was taken). A component
 * says each once, while it opens or at the moment it happens; the engine turns them into events.
 */
#ifndef SHUNT_BASE_NOTIFY_H
#define SHUNT_BASE_NOTIFY_H

#include <stddef.h>

struct shunt_notify {
    void (*say)(void *ctx, const char *text); /* copies the text; may be called from any thread */
    void *ctx;
};

/* Formats and says; does nothing when nobody listens. */
void shunt_notify_say(const struct shunt_notify *notify, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
