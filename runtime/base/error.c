/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int shunt_error_set(struct shunt_error *err, int code, const char *format, ...)
{
    va_list args;
    int len;

    if (!err)
        return code;
    va_start(args, format);
    len = vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    if (len < 0)
        err->text[0] = '\0';
    else if ((size_t)len >= sizeof(err->text))
        memcpy(err->text + sizeof(err->text) - 4, "...", 4);
    /* One sentence on one line, whatever a file or a peer put into it. */
    for (char *c = err->text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    err->code = code;
    return code;
}
