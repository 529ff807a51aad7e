/* SPDX-License-Identifier: Apache-2.0
 *
 * A build without the avx2 level: another processor family, or a compiler that does not know it.
 */
#include "kernels/x86/avx2.h"

const struct shunt_kernels *const shunt_avx2_kernels = NULL;
