/* SPDX-License-Identifier: Apache-2.0
 *
 * How far results may be apart, in one place, with the reason. What is not listed here is compared
 * bit for bit.
 *
 *   name              bound  relative to           observed         why
 *                                                  ref     avx2
 *   SHUNT_TOL_DOT     1e-6   sum of |w x|          3e-7    1e-7     roundings of up to 4096 sums
 *                                                                   of mixed sign mostly cancel
 *   ..._DOT_ONE_SIGN  2e-5   sum of |w x|          4e-6    7e-7     14336 products of one sign: the
 *                                                                   sum grows, its roundings drift
 *   SHUNT_TOL_EXP     2e-7   exp(x)                1e-7    1e-7     nine roundings near 1
 *   SHUNT_TOL_SILU    5e-7   the result            2e-7    2e-7     exp, a sum, quotient, product
 *   SHUNT_TOL_NORM    2e-6   the element           8e-7    2e-7     4096 squares: one sign
 *   SHUNT_TOL_ATTEND  1e-5   largest |v|, 1 here   3e-6    1e-6     exp makes the rounding of a
 *                                                                   score of 20 relative
 *   SHUNT_TOL_ROUTE   4e-6   the weight            3e-6             1024 terms of one sign
 *   SHUNT_TOL_LOGITS  1e-4   1: logits as such     2e-5    1e-5     another order of sums through 6
 *                                                                   layers; activations rounded to
 *                                                                   8 bits would be off by 1e-2
 *
 * Right values are computed in double; each level is held to the bound by itself, so two levels
 * are at most twice as far from each other. `observed` is the largest error in the tests of this
 * version; the rest is for other inputs and processors.
 */
#ifndef SHUNT_TESTS_TOLERANCES_H
#define SHUNT_TESTS_TOLERANCES_H

#define SHUNT_TOL_DOT          1e-6
#define SHUNT_TOL_DOT_ONE_SIGN 2e-5
#define SHUNT_TOL_EXP          2e-7
#define SHUNT_TOL_SILU         5e-7
#define SHUNT_TOL_NORM         2e-6
#define SHUNT_TOL_ATTEND       1e-5
#define SHUNT_TOL_ROUTE        4e-6
#define SHUNT_TOL_LOGITS       1e-4

#endif
