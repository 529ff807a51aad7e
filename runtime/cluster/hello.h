/* SPDX-License-Identifier: Apache-2.0
 *
 * The hello: the first 256 bytes each way on every connection. The connecting side speaks first;
 * the other answers with its own hello or with a refusal that says why.
 */
#ifndef SHUNT_CLUSTER_HELLO_H
#define SHUNT_CLUSTER_HELLO_H

#include "runtime/cluster/rack.h"

#define SHUNT_HELLO_MAGIC    0x4e554853u /* "SHUN" */
#define SHUNT_HELLO_PROTOCOL 1u

enum shunt_stream_kind { SHUNT_STREAM_CONTROL, SHUNT_STREAM_DATA, SHUNT_STREAMS };

enum { SHUNT_HELLO_SERVE_ONLY = 1u << 0, SHUNT_HELLO_REFUSED = 1u << 1 };

/*    0  magic u32 | protocol u32
 *    8  stream u32 | flags u32
 *   16  rank u32 | node_count u32
 *   24  rows_max u32 | kernel_levels u32
 *   32  fingerprint[16]
 *   48  library version, NUL-padded [16]
 *   64  model name, or the reason of a refusal, NUL-padded [192]
 */
struct shunt_hello {
    uint32_t magic;
    uint32_t protocol;
    uint32_t stream;
    uint32_t flags;
    uint32_t rank;
    uint32_t node_count;
    uint32_t rows_max;
    uint32_t kernel_levels;
    uint8_t fingerprint[16];
    char version[16];
    char text[192];
};
_Static_assert(sizeof(struct shunt_hello) == 256, "the hello is a wire format");

void shunt_hello_fill(struct shunt_hello *hello, const struct shunt_rack_config *cfg,
                      enum shunt_stream_kind stream);

/* Turns a hello of ours into a refusal that carries the reason. */
void shunt_hello_refuse(struct shunt_hello *hello, const struct shunt_error *why);

/* True for bytes that are a hello at all, of whatever version. */
bool shunt_hello_is_one(const struct shunt_hello *hello);

/* Compares a peer's hello with our configuration. `who` names the peer in messages.
 * Return: 0; -EPROTO with both sides' values; -ECONNREFUSED when it is a refusal, with the peer's
 * reason. */
int shunt_hello_check(const struct shunt_hello *hello, const struct shunt_rack_config *cfg,
                      const char *who, struct shunt_error *err);

#endif
