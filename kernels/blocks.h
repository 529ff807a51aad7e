/* SPDX-License-Identifier: Apache-2.0
 *
 * The blocks of GGUF's quantised types, drawn. All fields are bytes, so that a block may lie at any
 * address, and a pointer into a file or a slot may be read through these structs as it is.
 *
 * d, dmin: F16 scales. q: the stored integer of a weight. The product of a scale (11 significant
 * bits), the scale of a group (6 or 7) and a q (5) has at most 24 and is exact in float32, and so
 * is d * q of Q8_0 (11 + 7): the order of factors does not matter, and only the subtraction of a
 * minimum rounds.
 */
#ifndef SHUNT_KERNELS_BLOCKS_H
#define SHUNT_KERNELS_BLOCKS_H

#include <stdint.h>

#define SHUNT_Q_LEN 32u  /* weights of a Q8_0 or Q4_0 block */
#define SHUNT_K_LEN 256u /* weights of a K block ("super-block") */

/* Q8_0: w[i] = d * q[i]
 *
 *   byte 0    2                                   34
 *        |  d | q0 | q1 |  ...              | q31 |       q: int8
 */
struct shunt_q8_0 {
    uint8_t d[2];
    int8_t q[SHUNT_Q_LEN];
};

/* Q4_0: w[i] = d * (q[i] - 8)
 *
 *   byte 0    2                                   18
 *        |  d | q16 q0 | q17 q1 |  ...  | q31 q15 |       q: 4 bits, high half first
 */
struct shunt_q4_0 {
    uint8_t d[2];
    uint8_t q[SHUNT_Q_LEN / 2];
};

/* The 6-bit scales s0..s7 and minima m0..m7 of the eight groups of a Q4_K or Q5_K block:
 *
 *   byte           bits 7 6    5 4     3 2 1 0
 *   i      (0..3)  s(i+4)[5:4] | s(i)[5:0]
 *   i + 4          m(i+4)[5:4] | m(i)[5:0]
 *   i + 8          m(i+4)[3:0]         | s(i+4)[3:0]
 */
#define SHUNT_K_GROUPS      8u
#define SHUNT_K_GROUP_LEN   32u
#define SHUNT_K_SCALE_BYTES 12u

/* Q4_K: group g = i / 32:  w[i] = (d * s[g]) * q[i] - (dmin * m[g])
 *
 *   byte 0    2      4          16                                        144
 *        |  d | dmin | scales   | groups 0 and 1 | 2, 3 | 4, 5 | 6 and 7 |
 *                               \_ 32 bytes: the low halves are the even group, the high the odd
 */
struct shunt_q4_k {
    uint8_t d[2];
    uint8_t dmin[2];
    uint8_t scales[SHUNT_K_SCALE_BYTES];
    uint8_t q[SHUNT_K_LEN / 2];
};

/* Q5_K: as Q4_K, and the fifth bit of weight i is bit i / 32 of high[i % 32]
 *
 *   byte 0    2      4          16               48                       176
 *        |  d | dmin | scales   | high: 32 bytes | low four bits as Q4_K |
 */
struct shunt_q5_k {
    uint8_t d[2];
    uint8_t dmin[2];
    uint8_t scales[SHUNT_K_SCALE_BYTES];
    uint8_t high[SHUNT_K_LEN / 8];
    uint8_t q[SHUNT_K_LEN / 2];
};

/* Q6_K: w[i] = (d * s[i / 16]) * (q[i] - 32), s: int8
 *
 *   byte 0                  64                 128       160       192        208   210
 *        | low of half 0    | low of half 1    | high 0  | high 1  | s0..s15  |  d  |
 *
 * Each half holds 128 weights, four runs of 32. Weight j of run r has its low four bits in
 * low[32 * (r % 2) + j], in the low half of the byte for r < 2 and in the high half otherwise, and
 * its two high bits in bits 2r+1..2r of high[j].
 */
struct shunt_q6_k {
    uint8_t low[2][64];
    uint8_t high[2][32];
    int8_t scales[SHUNT_K_LEN / 16];
    uint8_t d[2];
};

_Static_assert(sizeof(struct shunt_q8_0) == 34, "as in the file");
_Static_assert(sizeof(struct shunt_q4_0) == 18, "as in the file");
_Static_assert(sizeof(struct shunt_q4_k) == 144, "as in the file");
_Static_assert(sizeof(struct shunt_q5_k) == 176, "as in the file");
_Static_assert(sizeof(struct shunt_q6_k) == 210, "as in the file");

#endif
