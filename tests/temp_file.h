/* SPDX-License-Identifier: Apache-2.0
 *
 * Files for tests that read from a drive. They lie in the working folder, which for `meson test` is
 * the build folder, and have no name, so that nothing is left behind.
 */
#ifndef SHUNT_TESTS_TEMP_FILE_H
#define SHUNT_TESTS_TEMP_FILE_H

#include <stddef.h>

/* A file with these bytes; `path` opens it while the descriptor is open. Return: the descriptor;
 * the program ends when there can be none. */
int temp_file(const void *data, size_t len, char path[32]);

#endif
