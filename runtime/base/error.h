/* SPDX-License-Identifier: Apache-2.0
 *
 * Errors are values: a negative errno code for the program and one sentence for the person. Whoever
 * decides that something is an error writes the sentence, once; callers pass it on untouched.
 */
#ifndef SHUNT_BASE_ERROR_H
#define SHUNT_BASE_ERROR_H

#include "runtime/shunt.h"

/* Fills `err` (may be NULL) and returns `code`, so that a failing function ends with `return
 * shunt_error_set(...)`. */
int shunt_error_set(struct shunt_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
