/* SPDX-License-Identifier: Apache-2.0
 *
 * The one place where the version lives: the build reads the soname and the package version from here.
 * API: raised when a program has to be changed or recompiled. MINOR: something was added. PATCH: nothing visible.
 */
#ifndef SHUNT_VERSION_H
#define SHUNT_VERSION_H

#define SHUNT_API_VERSION 0
#define SHUNT_MINOR_VERSION 1
#define SHUNT_PATCH_VERSION 0

#endif
