/* SPDX-License-Identifier: Apache-2.0
 *
 * Byte-level BPE as GPT-2 defined it, with the qwen2 pre-tokenizer: special tokens are cut out of
 * the text, what lies between is put in Unicode normal form C (normalize.h) and split by the
 * model's pattern (pretokenize.h), and in each piece neighbouring bytes are merged, lowest rank
 * first (bpe.h). The vocabulary writes bytes as the 256 printable stand-ins that GPT-2 chose.
 * Everything comes from the GGUF header.
 *
 * Which tokens are cut out follows the official tokenizers: of GGUF's types, USER_DEFINED always,
 * CONTROL where SHUNT_TOKENIZE_SPECIAL allows; the leftmost one first, of several that begin at one
 * place the longest. Of a token that the vocabulary has twice the first id counts, of a merge the
 * lower rank.
 *
 * Built once when the model opens; read-only afterwards, so any thread may use it. Encoding
 * allocates.
 */
#ifndef SHUNT_MODEL_TOKENIZER_H
#define SHUNT_MODEL_TOKENIZER_H

#include "runtime/model/gguf.h"

/* Longer tokens are refused. The longest known has 512 bytes in the file. */
#define SHUNT_TOKEN_BYTES_MAX 4096u
#define SHUNT_TOKENS_MAX      (1u << 24)
/* Longer texts are refused, so that positions in a normalised one (at most three times as long) fit
 * 32 bits. */
#define SHUNT_TEXT_BYTES_MAX (1ull << 30)

struct shunt_tokenizer;

/* Return: 0; -ENOTSUP with the kind's name for a model or pre-tokenizer this version does not know,
 * or a file without a tokenizer; -EBADMSG for a table that contradicts itself (path and key are
 * named); -ENOMEM. `gguf` must outlive the tokenizer. */
int shunt_tokenizer_open(struct shunt_tokenizer **t, const struct shunt_gguf *gguf,
                         const char *path, struct shunt_error *err);

/* NULL is allowed. */
void shunt_tokenizer_close(struct shunt_tokenizer *t);

uint32_t shunt_tokenizer_vocab_count(const struct shunt_tokenizer *t);
int32_t shunt_tokenizer_bos(const struct shunt_tokenizer *t); /* -1: none */
int32_t shunt_tokenizer_eos(const struct shunt_tokenizer *t);
bool shunt_tokenizer_adds_bos(const struct shunt_tokenizer *t);
const char *shunt_tokenizer_kind(const struct shunt_tokenizer *t); /* "gpt2/qwen2" */

/* True for ids that end a generation: EOS, EOT and EOM where the file names them, and a CONTROL
 * token <|endoftext|>: the official settings of the chat models end on it too, and GGUF has no key
 * for a second EOS. */
bool shunt_tokenizer_is_end(const struct shunt_tokenizer *t, int32_t id);

/* As shunt_tokenize and shunt_detokenize in shunt.h; -EFBIG for a text beyond SHUNT_TEXT_BYTES_MAX.
 * Decoding does not allocate. Without `special`, CONTROL, UNKNOWN and UNUSED tokens give no bytes;
 * USER_DEFINED ones always give theirs. */
int64_t shunt_tokenizer_encode(const struct shunt_tokenizer *t, const char *text, size_t text_len,
                               uint32_t flags, int32_t *ids, size_t id_max,
                               struct shunt_error *err);
int64_t shunt_tokenizer_decode(const struct shunt_tokenizer *t, int32_t id, bool special,
                               char *text, size_t text_max);

/* The longest piece any id has, in bytes. */
size_t shunt_tokenizer_piece_max(const struct shunt_tokenizer *t);

#endif
