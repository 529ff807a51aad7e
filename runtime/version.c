/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/shunt.h"

#define STRING_(x) #x
#define STRING(x)  STRING_(x)

const char *shunt_version(void)
{
    return STRING(SHUNT_API_VERSION) "." STRING(SHUNT_MINOR_VERSION) "." STRING(
        SHUNT_PATCH_VERSION);
}
