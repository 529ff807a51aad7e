/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the TCP transport's way of receiving changes, for tcp.c and for its test, which looks at
 * both sides of each.
 */
#ifndef SHUNT_TRANSPORT_TCP_STAGE_H
#define SHUNT_TRANSPORT_TCP_STAGE_H

/* Of each peer's staging buffer: copying some 16 KiB from there to the inbox costs as much as a
 * second recv would. */
#define TCP_STAGE_BYTES (20u << 10)

/* A payload of which so much is still to come is received straight into the inbox. */
#define TCP_DIRECT_BYTES (4u << 10)

#endif
