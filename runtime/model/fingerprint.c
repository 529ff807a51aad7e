/* SPDX-License-Identifier: Apache-2.0
 *
 * Which model this is, to a rack whose nodes must all hold the same one. The header alone would not
 * tell two trainings of one architecture apart, and reading every weight would take as long as
 * loading them; some bytes of every matrix change with any training or quantisation. A copy that
 * is damaged elsewhere looks the same: that is for checksums.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/model/model.h"

#define SAMPLE_BYTES 4096u

static int hash_sample(struct shunt_model *m, XXH3_state_t *state, unsigned char *sample,
                       uint64_t off, uint64_t bytes, struct shunt_error *err)
{
    size_t len = bytes < SAMPLE_BYTES ? (size_t)bytes : SAMPLE_BYTES;
    int rc = shunt_file_read(&m->file, off, len, sample, &m->startup_bytes, err);

    if (!rc)
        XXH3_128bits_update(state, sample, len);
    return rc;
}

/* One block of one matrix of every expert, each at another place of it: the matrices of a layer's
 * experts lie in one tensor, and each expert is trained for itself. */
static int hash_experts(struct shunt_model *m, XXH3_state_t *state, unsigned char *sample,
                        struct shunt_error *err)
{
    uint32_t key = 0;

    for (uint32_t l = 0; l < m->arch.layer_count; l++) {
        for (uint32_t e = 0; e < m->arch.expert_count; e++, key++) {
            const struct shunt_expert_part *part = &m->layers[l].parts[key % SHUNT_PARTS];
            uint64_t blocks = part->stride / SAMPLE_BYTES;
            uint64_t at = blocks > 1 ? key * 0x9e3779b1ull % blocks * SAMPLE_BYTES : 0;
            int rc = hash_sample(m, state, sample, part->off + e * part->stride + at,
                                 part->stride - at, err);

            if (rc)
                return rc;
        }
    }
    return 0;
}

static int hash_samples(struct shunt_model *m, XXH3_state_t *state, unsigned char *sample,
                        struct shunt_error *err)
{
    for (uint32_t i = 0; i < m->gguf.tensor_count; i++) {
        const struct shunt_gguf_tensor *t = &m->gguf.tensors[i];
        int rc = hash_sample(m, state, sample, t->off, t->bytes, err);

        if (rc)
            return rc;
    }
    return hash_experts(m, state, sample, err);
}

int shunt_model_take_fingerprint(struct shunt_model *m, struct shunt_error *err)
{
    XXH3_state_t *state = XXH3_createState();
    unsigned char *sample = malloc(SAMPLE_BYTES);
    XXH128_canonical_t canonical;
    int rc;

    _Static_assert(sizeof(canonical) == sizeof(m->fingerprint), "a fingerprint is 128 bits");
    if (state && sample) {
        XXH3_128bits_reset(state);
        XXH3_128bits_update(state, m->gguf.header, m->gguf.header_bytes);
        /* Little-endian, as every machine shunt runs on: see base/bytes.h. */
        XXH3_128bits_update(state, &m->file.bytes, sizeof(m->file.bytes));
        rc = hash_samples(m, state, sample, err);
    } else {
        rc = shunt_error_set(err, -ENOMEM, "%s: out of memory for its fingerprint", m->file.path);
    }
    if (!rc) {
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
        memcpy(m->fingerprint, canonical.digest, sizeof(m->fingerprint));
    }
    XXH3_freeState(state);
    free(sample);
    return rc;
}
