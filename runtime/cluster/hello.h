/* SPDX-License-Identifier: Apache-2.0
 *
 * What nodes say to each other while a rack forms, in this order, on each pair's connections. The
 * higher rank connects.
 *
 *   control   TLS, where there are credentials; before it is done nothing else is said
 *             hello     >   who is there, and all that must fit
 *             answer    <   refused, and nothing more; or accepted, with a hello and a grant
 *             table     <   only from rank 0, to those who know no other address: everybody's
 *   data      prologue  >   in clear: the token of the grant, which is good once; where TLS
 *                           follows, for as many as show it until one is through with TLS
 *             TLS, where rows are to be encrypted or the transport says things that are secret
 *             answer    <   refused or accepted
 *
 * Each message begins with a magic number and a second word; all values are little-endian and of
 * fixed width. A refused peer learns that it is refused. Whoever refuses knows why.
 */
#ifndef SHUNT_CLUSTER_HELLO_H
#define SHUNT_CLUSTER_HELLO_H

#include "runtime/base/hmac.h"
#include "runtime/cluster/rack.h"

#define SHUNT_HELLO_MAGIC    0x4e554853u /* "SHUN" */
#define SHUNT_ANSWER_MAGIC   0x41554853u /* "SHUA" */
#define SHUNT_TABLE_MAGIC    0x54554853u /* "SHUT" */
#define SHUNT_PROLOGUE_MAGIC 0x44554853u /* "SHUD" */
#define SHUNT_HELLO_PROTOCOL 2u

/* What no message of ours begins with and every TLS handshake does. */
#define SHUNT_TLS_FIRST_BYTE 0x16

#define SHUNT_TOKEN_BYTES   32u
#define SHUNT_ADDRESS_BYTES 64u

enum shunt_stream_kind { SHUNT_STREAM_CONTROL, SHUNT_STREAM_DATA, SHUNT_STREAMS };

enum {
    SHUNT_HELLO_SERVE_ONLY = 1u << 0,
    SHUNT_HELLO_ENCRYPT = 1u << 1,    /* rows in TLS */
    SHUNT_HELLO_RENDEZVOUS = 1u << 2, /* knows rank 0's address only */
};

/* How every message begins. */
struct shunt_message_head {
    uint32_t magic;
    uint32_t word; /* protocol, verdict or count */
};
_Static_assert(sizeof(struct shunt_message_head) == 8, "a wire format");

/*    0  magic u32 | protocol u32
 *    8  flags u32 | rank u32
 *   16  node_count u32 | rows_max u32
 *   24  kernel_levels u32 | transports u32
 *   32  wire_format u32 | live_port u32
 *   40  zero u64
 *   48  fingerprint[16]
 *   64  digest of the rack's addresses [32]; zeros in a rendezvous with rank 0
 *   96  library version, NUL-padded [16]
 *  112  model name, NUL-padded [144]
 *  256  address it listens on, NUL-padded [64]; for a rendezvous
 *  320  the rack's addresses with commas between them, NUL-padded, cut where too long [1728]
 */
struct shunt_hello {
    uint32_t magic;
    uint32_t protocol;
    uint32_t flags;
    uint32_t rank;
    uint32_t node_count;
    uint32_t rows_max;
    uint32_t kernel_levels;
    uint32_t transports;
    uint32_t wire_format;
    uint32_t live_port;
    uint64_t zero;
    uint8_t fingerprint[16];
    uint8_t rack_digest[SHUNT_SHA256_BYTES];
    char version[16];
    char model[144];
    char address[SHUNT_ADDRESS_BYTES];
    char rack[1728];
};
_Static_assert(sizeof(struct shunt_hello) == 2048, "the hello is a wire format");

enum { SHUNT_REFUSED = 1, SHUNT_ACCEPTED = 2 };

/* Of a refusal only the head is sent. */
struct shunt_answer {
    uint32_t magic;
    uint32_t verdict;
    uint8_t token[SHUNT_TOKEN_BYTES];  /* for the data connection */
    uint8_t live_key[SHUNT_KEY_BYTES]; /* of datagrams; zeros in TLS, which has a key of its own */
    struct shunt_hello hello;
};
_Static_assert(sizeof(struct shunt_answer) == 2120, "the answer is a wire format");

struct shunt_prologue {
    uint32_t magic;
    uint32_t protocol;
    uint32_t rank; /* of whoever connects */
    uint32_t zero;
    uint8_t token[SHUNT_TOKEN_BYTES];
};
_Static_assert(sizeof(struct shunt_prologue) == 48, "the prologue is a wire format");

/* Entry r: where rank r listens, NUL-padded; empty beyond the count. */
struct shunt_table {
    uint32_t magic;
    uint32_t count;
    char addresses[SHUNT_NODES_MAX][SHUNT_ADDRESS_BYTES];
};
_Static_assert(sizeof(struct shunt_table) == 8 + 64 * 64, "the table is a wire format");

/* What this node says. `addresses`: the rack's, or NULL while they are not all known. They are
 * compared as they are written: what a name means may differ from node to node. */
void shunt_hello_fill(struct shunt_hello *hello, const struct shunt_rack_config *cfg,
                      const char *const *addresses);

/* Compares a peer's hello with what ours to it says. `who` names the peer in messages.
 * Return: 0; -EPROTO with both sides' values. */
int shunt_hello_check(const struct shunt_hello *theirs, const struct shunt_hello *ours,
                      const char *who, struct shunt_error *err);

/* The first words alone: another version says them as well. Return: as above. */
int shunt_hello_check_protocol(const struct shunt_message_head *head, const char *who,
                               struct shunt_error *err);

void shunt_answer_refuse(struct shunt_message_head *head);

/* True for a prologue that presents this token of this rank. Takes as long when it does not. */
bool shunt_prologue_presents(const struct shunt_prologue *prologue,
                             const uint8_t token[SHUNT_TOKEN_BYTES]);

/* Return: 0 or -EPROTO when it is no table for so many nodes: every address there, no two alike. */
int shunt_table_check(const struct shunt_table *table, uint32_t node_count,
                      struct shunt_error *err);

#endif
