/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes that more than one layer builds on.
 */
#ifndef SHUNT_BASE_LIMITS_H
#define SHUNT_BASE_LIMITS_H

#define SHUNT_NODES_MAX   64u   /* of a rack: a set of nodes is one word */
#define SHUNT_EXPERTS_MAX 1024u /* of a layer */

#endif
