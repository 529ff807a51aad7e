/* SPDX-License-Identifier: Apache-2.0
 *
 * Byte-level BPE as GPT-2 defined it, with the qwen2 pre-tokenizer: text is put in Unicode normal
 * form C, special tokens are cut out, the rest is split by the model's pattern, each piece's bytes
 * are written as the 256 printable stand-ins that GPT-2 chose, and neighbours are merged, lowest
 * rank first. Everything comes from the GGUF header.
 *
 * Built once when the model opens; read-only afterwards, so any thread may use it. Encoding
 * allocates.
 */
#ifndef SHUNT_MODEL_TOKENIZER_H
#define SHUNT_MODEL_TOKENIZER_H

#include "runtime/model/gguf.h"

struct shunt_tokenizer;

/* Return: 0; -ENOTSUP with the kind's name for a model or pre-tokenizer this version does not know;
 * -EBADMSG for a table that contradicts itself (path and key are named); -ENOMEM. `gguf` must
 * outlive the tokenizer. */
int shunt_tokenizer_open(struct shunt_tokenizer **t, const struct shunt_gguf *gguf,
                         const char *path, struct shunt_error *err);
void shunt_tokenizer_close(struct shunt_tokenizer *t);

uint32_t shunt_tokenizer_vocab_count(const struct shunt_tokenizer *t);
int32_t shunt_tokenizer_bos(const struct shunt_tokenizer *t); /* -1: none */
int32_t shunt_tokenizer_eos(const struct shunt_tokenizer *t);
bool shunt_tokenizer_adds_bos(const struct shunt_tokenizer *t);
const char *shunt_tokenizer_kind(const struct shunt_tokenizer *t); /* "gpt2/qwen2" */

/* True for ids that end a generation: EOS, and EOT / EOM ids where the file names them. */
bool shunt_tokenizer_is_end(const struct shunt_tokenizer *t, int32_t id);

/* As shunt_tokenize and shunt_detokenize in shunt.h. Detokenising does not allocate. */
int64_t shunt_tokenizer_encode(const struct shunt_tokenizer *t, const char *text, size_t text_len,
                               uint32_t flags, int32_t *ids, size_t id_max,
                               struct shunt_error *err);
int64_t shunt_tokenizer_decode(const struct shunt_tokenizer *t, int32_t id, bool special,
                               char *text, size_t text_max);

/* The longest piece any id has, in bytes. */
size_t shunt_tokenizer_piece_max(const struct shunt_tokenizer *t);

#endif
