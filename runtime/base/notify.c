/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/notify.h"

#include <stdarg.h>
#include <stdio.h>

void shunt_notify_say(const struct shunt_notify *notify, const char *format, ...)
{
    char text[512];
    va_list args;

    if (!notify || !notify->say)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    notify->say(notify->ctx, text);
}
