/* SPDX-License-Identifier: Apache-2.0
 *
 * exp, as every level computes it; levels differ only in where they round.
 *
 *   x is first clamped to [SHUNT_EXP_MIN, SHUNT_EXP_MAX], where the result is 0 and +inf anyway
 *   n = x / ln 2 rounded to an integer, r = x - n ln 2, so |r| <= 0.347
 *   exp(x) = 2^n * (1 + r + r^2/2! + ... + r^7/7!)
 *
 * The terms left out are below r^8/8! = 6e-9, a tenth of a float32 rounding. 2^n is applied as two
 * factors, because n from -150 to 128 does not fit one exponent: so results below FLT_MIN are the
 * nearest denormals and none is lost to 0 early. A NaN passes through all of it without a branch.
 */
#ifndef SHUNT_KERNELS_EXP_TERMS_H
#define SHUNT_KERNELS_EXP_TERMS_H

#define SHUNT_EXP_MIN -104.0f /* exp is less than half the smallest denormal */
#define SHUNT_EXP_MAX 89.0f   /* exp is more than FLT_MAX */

#define SHUNT_LOG2_E 0x1.715476p+0f

/* Added to a small number, it leaves that number, rounded to the nearest integer, in the low bits
 * of the sum: no conversion to an integer is needed, which a NaN would make undefined. */
#define SHUNT_EXP_ROUNDER 0x1.8p+23f

/* ln 2 = HI + LO. HI has 15 bits, so that n * HI is exact for every n that occurs. */
#define SHUNT_LN2_HI 0x1.62e4p-1f
#define SHUNT_LN2_LO 0x1.7f7d1cp-20f

#define SHUNT_EXP_C2 (1.0f / 2)
#define SHUNT_EXP_C3 (1.0f / 6)
#define SHUNT_EXP_C4 (1.0f / 24)
#define SHUNT_EXP_C5 (1.0f / 120)
#define SHUNT_EXP_C6 (1.0f / 720)
#define SHUNT_EXP_C7 (1.0f / 5040)

#endif
