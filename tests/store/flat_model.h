/* SPDX-License-Identifier: Apache-2.0
 *
 * A model that is only what the store looks at: layers of experts of any size, at any offset of a
 * file of random bytes, with gaps between them; the last matrix ends where the file does. No GGUF,
 * so that a head may be of any size.
 */
#ifndef SHUNT_TESTS_FLAT_MODEL_H
#define SHUNT_TESTS_FLAT_MODEL_H

#include "runtime/store/store.h"

struct flat_model {
    struct shunt_model model;
    unsigned char *bytes; /* the file's */
    uint64_t len;
    int fd;
    char path[32];
};

/* strides[layer * SHUNT_PARTS + part]: bytes of one expert's matrix. Offsets come from the seed.
 * The file is opened buffered, but its slots are laid out for a drive of 512-byte blocks. */
void flat_init(struct flat_model *m, uint32_t layer_count, uint32_t expert_count,
               const uint64_t *strides, uint64_t seed);
void flat_fini(struct flat_model *m);

/* True when the matrices of a resident expert are the file's, byte by byte. */
bool flat_is_right(const struct flat_model *m, const struct shunt_store *store, uint32_t key);

#endif
