/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cluster/hello.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"

/* Over all of them, also where the text of the hello has no room. Without memory for it, something
 * that no other node's is equal to. */
static void digest_rack(uint8_t digest[SHUNT_SHA256_BYTES], const char *const *addresses,
                        uint32_t count)
{
    uint8_t all[SHUNT_NODES_MAX][SHUNT_SHA256_BYTES];

    bool done = true;

    for (uint32_t r = 0; r < count && done; r++)
        done = shunt_sha256(addresses[r], strlen(addresses[r]), all[r]) == 0;
    if (!done || shunt_sha256(all, count * sizeof(all[0]), digest))
        memset(digest, 0, SHUNT_SHA256_BYTES);
}

static void list_rack(char *text, size_t bytes, const char *const *addresses, uint32_t count)
{
    size_t len = 0;

    for (uint32_t r = 0; r < count && len < bytes - 1; r++)
        len += (size_t)snprintf(text + len, bytes - len, "%s%s", r ? "," : "", addresses[r]);
}

void shunt_hello_fill(struct shunt_hello *hello, const struct shunt_rack_config *cfg,
                      const char *const *addresses)
{
    memset(hello, 0, sizeof(*hello));
    hello->magic = SHUNT_HELLO_MAGIC;
    hello->protocol = SHUNT_HELLO_PROTOCOL;
    hello->flags =
        (cfg->serve_only ? SHUNT_HELLO_SERVE_ONLY : 0) | (cfg->encrypt ? SHUNT_HELLO_ENCRYPT : 0);
    hello->rank = cfg->rank;
    hello->node_count = cfg->node_count;
    hello->rows_max = cfg->rows_max;
    hello->kernel_levels = cfg->kernel_levels;
    hello->transports = cfg->transports;
    hello->wire_format = cfg->wire_format;
    memcpy(hello->fingerprint, cfg->fingerprint, sizeof(hello->fingerprint));
    snprintf(hello->version, sizeof(hello->version), "%s", shunt_version());
    snprintf(hello->model, sizeof(hello->model), "%s", cfg->model_name);
    if (addresses) {
        digest_rack(hello->rack_digest, addresses, cfg->node_count);
        list_rack(hello->rack, sizeof(hello->rack), addresses, cfg->node_count);
    } else {
        hello->flags |= SHUNT_HELLO_RENDEZVOUS;
    }
}

void shunt_answer_refuse(struct shunt_message_head *head)
{
    *head = (struct shunt_message_head){.magic = SHUNT_ANSWER_MAGIC, .word = SHUNT_REFUSED};
}

/* ---- comparing */

#define FLAGS (SHUNT_HELLO_SERVE_ONLY | SHUNT_HELLO_ENCRYPT | SHUNT_HELLO_RENDEZVOUS)

static void print_hex(char out[33], const uint8_t bytes[16])
{
    for (uint32_t i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

int shunt_hello_check_protocol(const struct shunt_message_head *head, const char *who,
                               struct shunt_error *err)
{
    if (head->word == SHUNT_HELLO_PROTOCOL)
        return 0;
    return shunt_error_set(err, -EPROTO,
                           "%s runs another version of shunt (protocol %u), this node %s (protocol "
                           "%u); install the same version on every node",
                           who, head->word, shunt_version(), SHUNT_HELLO_PROTOCOL);
}

static int check_version(const struct shunt_hello *theirs, const char *who, struct shunt_error *err)
{
    int len = (int)strnlen(theirs->version, sizeof(theirs->version));

    if (theirs->protocol == SHUNT_HELLO_PROTOCOL &&
        !strncmp(theirs->version, shunt_version(), sizeof(theirs->version)))
        return 0;
    return shunt_error_set(err, -EPROTO,
                           "%s runs shunt %.*s (protocol %u), this node %s (protocol %u); install "
                           "the same version on every node",
                           who, len, theirs->version, theirs->protocol, shunt_version(),
                           SHUNT_HELLO_PROTOCOL);
}

static int check_model(const struct shunt_hello *theirs, const struct shunt_hello *ours,
                       const char *who, struct shunt_error *err)
{
    char their_print[33], our_print[33];

    if (!memcmp(theirs->fingerprint, ours->fingerprint, sizeof(ours->fingerprint)))
        return 0;
    print_hex(their_print, theirs->fingerprint);
    print_hex(our_print, ours->fingerprint);
    return shunt_error_set(err, -EPROTO,
                           "%s has another model: '%.*s' (%s), this node '%s' (%s); give every "
                           "node the same file",
                           who, (int)strnlen(theirs->model, sizeof(theirs->model)), theirs->model,
                           their_print, ours->model, our_print);
}

static int check_kernels(const struct shunt_hello *theirs, const struct shunt_hello *ours,
                         const char *who, struct shunt_error *err)
{
    char their_levels[64], our_levels[64];

    if (theirs->kernel_levels & ours->kernel_levels)
        return 0;
    shunt_kernels_names(theirs->kernel_levels, their_levels, sizeof(their_levels));
    shunt_kernels_names(ours->kernel_levels, our_levels, sizeof(our_levels));
    return shunt_error_set(err, -EPROTO,
                           "%s and this node have no kernels in common (%s; and %s); use --kernels "
                           "auto everywhere",
                           who, their_levels, our_levels);
}

static int check_transports(const struct shunt_hello *theirs, const struct shunt_hello *ours,
                            const char *who, struct shunt_error *err)
{
    char their_kinds[64], our_kinds[64];

    if (theirs->transports & ours->transports)
        return 0;
    shunt_transport_names(theirs->transports, their_kinds, sizeof(their_kinds));
    shunt_transport_names(ours->transports, our_kinds, sizeof(our_kinds));
    return shunt_error_set(err, -EPROTO,
                           "%s and this node have no transport in common (%s; and %s); give every "
                           "node the same --transport",
                           who, their_kinds, our_kinds);
}

static int check_wire(const struct shunt_hello *theirs, const struct shunt_hello *ours,
                      const char *who, struct shunt_error *err)
{
    const char *const words[2] = {"in clear", "encrypted (--encrypt)"};
    bool their_choice = theirs->flags & SHUNT_HELLO_ENCRYPT;
    bool our_choice = ours->flags & SHUNT_HELLO_ENCRYPT;

    if (theirs->wire_format != ours->wire_format)
        return shunt_error_set(err, -EPROTO,
                               "%s sends rows in format %u, this node in format %u; install the "
                               "same version on every node",
                               who, theirs->wire_format, ours->wire_format);
    if (their_choice != our_choice)
        return shunt_error_set(err, -EPROTO,
                               "%s sends rows %s, this node %s; give --encrypt to all or to none",
                               who, words[their_choice], words[our_choice]);
    return 0;
}

/* Rank of the first address that differs, and both sides' words for it. */
static uint32_t first_difference(const char **a, int *a_len, const char **b, int *b_len)
{
    for (uint32_t r = 0;; r++) {
        *a_len = (int)strcspn(*a, ",");
        *b_len = (int)strcspn(*b, ",");
        if (*a_len != *b_len || memcmp(*a, *b, (size_t)*a_len) || !(*a)[*a_len] || !(*b)[*b_len])
            return r;
        *a += *a_len + 1;
        *b += *b_len + 1;
    }
}

static int check_rack(const struct shunt_hello *theirs, const struct shunt_hello *ours,
                      const char *who, struct shunt_error *err)
{
    char text[sizeof(theirs->rack) + 1];
    const char *a = text, *b = ours->rack;
    bool theirs_known = !(theirs->flags & SHUNT_HELLO_RENDEZVOUS);
    bool ours_known = !(ours->flags & SHUNT_HELLO_RENDEZVOUS);
    int a_len, b_len;
    uint32_t rank;

    if (theirs_known != ours_known)
        return shunt_error_set(err, -EPROTO,
                               "%s knows %s, this node %s; start all nodes in one way", who,
                               theirs_known ? "every node's address" : "rank 0's address only",
                               ours_known ? "every node's" : "rank 0's only");
    if (!memcmp(theirs->rack_digest, ours->rack_digest, sizeof(ours->rack_digest)))
        return 0;
    memcpy(text, theirs->rack, sizeof(theirs->rack));
    text[sizeof(theirs->rack)] = '\0';
    rank = first_difference(&a, &a_len, &b, &b_len);
    return shunt_error_set(err, -EPROTO,
                           "%s has another list of nodes: it looks for rank %u at '%.*s', this "
                           "node at '%.*s'; give every node the same --rack",
                           who, rank, a_len, a, b_len, b);
}

int shunt_hello_check(const struct shunt_hello *theirs, const struct shunt_hello *ours,
                      const char *who, struct shunt_error *err)
{
    int rc = check_version(theirs, who, err);

    if (rc)
        return rc;
    if (theirs->zero || theirs->flags & ~FLAGS)
        return shunt_error_set(err, -EPROTO, "%s says something that shunt %s does not know", who,
                               shunt_version());
    if (theirs->node_count != ours->node_count)
        return shunt_error_set(err, -EPROTO,
                               "%s belongs to a rack of %u nodes, this node to one of %u; give "
                               "every node the same --rack",
                               who, theirs->node_count, ours->node_count);
    rc = check_model(theirs, ours, who, err);
    if (!rc)
        rc = check_kernels(theirs, ours, who, err);
    if (!rc)
        rc = check_transports(theirs, ours, who, err);
    if (!rc)
        rc = check_wire(theirs, ours, who, err);
    if (!rc)
        rc = check_rack(theirs, ours, who, err);
    if (rc)
        return rc;
    if (theirs->rows_max == 0 || theirs->rows_max > SHUNT_ROWS_MAX)
        return shunt_error_set(err, -EPROTO, "%s announces %u rows at once; at most %u are allowed",
                               who, theirs->rows_max, SHUNT_ROWS_MAX);
    if (theirs->live_port == 0 || theirs->live_port > 65535)
        return shunt_error_set(err, -EPROTO,
                               "%s says it listens for datagrams on port %u; it is none from 1 to "
                               "65535",
                               who, theirs->live_port);
    return 0;
}

bool shunt_prologue_presents(const struct shunt_prologue *prologue,
                             const uint8_t token[SHUNT_TOKEN_BYTES])
{
    return shunt_secret_equal(prologue->token, token, SHUNT_TOKEN_BYTES) && prologue->zero == 0;
}

/* ---- the table */

static bool is_address(const char text[SHUNT_ADDRESS_BYTES])
{
    size_t len = strnlen(text, SHUNT_ADDRESS_BYTES);

    if (len == 0 || len == SHUNT_ADDRESS_BYTES)
        return false;
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] > '~' || text[i] == ',')
            return false;
    return true;
}

int shunt_table_check(const struct shunt_table *table, uint32_t node_count, struct shunt_error *err)
{
    if (table->magic != SHUNT_TABLE_MAGIC || table->count != node_count)
        return shunt_error_set(err, -EPROTO, "rank 0 sent a table of %u nodes, not of %u",
                               table->magic == SHUNT_TABLE_MAGIC ? table->count : 0, node_count);
    for (uint32_t r = 0; r < node_count; r++) {
        if (!is_address(table->addresses[r]))
            return shunt_error_set(err, -EPROTO, "rank 0 sent no address for rank %u", r);
        for (uint32_t other = 0; other < r; other++)
            if (!strcmp(table->addresses[r], table->addresses[other]))
                return shunt_error_set(err, -EPROTO,
                                       "rank 0 sent the address '%s' for rank %u and for rank %u",
                                       table->addresses[r], other, r);
    }
    return 0;
}
