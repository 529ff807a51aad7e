#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_sparse_model.py OUT.gguf [--layers N] [--experts N] [--vocab N]

Writes a GGUF file with the header of Qwen3-30B-A3B as a Q4_K_M (48 layers of 128 experts, 17 GiB): true names, types,
shapes and offsets, extents beyond 4 GiB. The weights are a hole in the file, so it takes a few MB of disk, but for the
norms (ones), the routers and the embeddings of the first 256 ids (both random, by a fixed seed): rows differ, and each
layer routes them to other experts. Python's standard library only.
"""
import argparse
import random
import struct

U32, F32_T, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
F32, Q4_K, Q6_K = 0, 12, 14
BLOCK = {F32: (1, 4), Q4_K: (256, 144), Q6_K: (256, 210)}
ALIGN = 32
IDS = 256


def string(text):
    data = text.encode()
    return struct.pack('<Q', len(data)) + data


def kv(key, kind, payload):
    return string(key) + struct.pack('<I', kind) + payload


def array(kind, items):
    return struct.pack('<IQ', kind, len(items)) + b''.join(items)


def byte_stand_ins():
    """GPT-2's printable stand-ins of the 256 bytes."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    out, extra = [], 0
    for b in range(256):
        if b in keep:
            out.append(chr(b))
        else:
            out.append(chr(256 + extra))
            extra += 1
    return out


def tensor_list(a):
    """(name, type, dims), in the order of the file. Half of the down matrices and of v are Q6_K, as llama.cpp's
    Q4_K_M has them."""
    h, ff, hd, heads, kv_heads = a.hidden, a.ff, 128, 32, 4
    yield 'token_embd.weight', Q4_K, (h, a.vocab)
    yield 'output_norm.weight', F32, (h,)
    yield 'output.weight', Q6_K, (h, a.vocab)
    for n in range(a.layers):
        more = n < a.layers // 8 or n >= 7 * a.layers // 8 or (n - a.layers // 8) % 3 == 2
        high = Q6_K if more else Q4_K
        b = f'blk.{n}.'
        yield b + 'attn_norm.weight', F32, (h,)
        yield b + 'attn_q.weight', Q4_K, (h, heads * hd)
        yield b + 'attn_k.weight', Q4_K, (h, kv_heads * hd)
        yield b + 'attn_v.weight', high, (h, kv_heads * hd)
        yield b + 'attn_output.weight', Q4_K, (heads * hd, h)
        yield b + 'attn_q_norm.weight', F32, (hd,)
        yield b + 'attn_k_norm.weight', F32, (hd,)
        yield b + 'ffn_norm.weight', F32, (h,)
        yield b + 'ffn_gate_inp.weight', F32, (h, a.experts)
        yield b + 'ffn_gate_exps.weight', Q4_K, (h, ff, a.experts)
        yield b + 'ffn_up_exps.weight', Q4_K, (h, ff, a.experts)
        yield b + 'ffn_down_exps.weight', high, (ff, h, a.experts)


def tensor_bytes(kind, dims):
    elements = 1
    for d in dims:
        elements *= d
    length, size = BLOCK[kind]
    assert dims[0] % length == 0
    return elements // length * size


def metadata(a):
    tokens = byte_stand_ins()
    tokens += [f'filler{i}' for i in range(a.vocab - 1 - len(tokens))] + ['<|endoftext|>']
    types = [1] * (a.vocab - 1) + [3]
    p = 'qwen3moe.'
    return [
        kv('general.architecture', STRING, string('qwen3moe')),
        kv('general.name', STRING, string('sparse, shaped like Qwen3-30B-A3B')),
        kv(p + 'block_count', U32, struct.pack('<I', a.layers)),
        kv(p + 'context_length', U32, struct.pack('<I', 40960)),
        kv(p + 'embedding_length', U32, struct.pack('<I', a.hidden)),
        kv(p + 'feed_forward_length', U32, struct.pack('<I', 6144)),
        kv(p + 'attention.head_count', U32, struct.pack('<I', 32)),
        kv(p + 'attention.head_count_kv', U32, struct.pack('<I', 4)),
        kv(p + 'rope.freq_base', F32_T, struct.pack('<f', 1e6)),
        kv(p + 'attention.layer_norm_rms_epsilon', F32_T, struct.pack('<f', 1e-6)),
        kv(p + 'expert_count', U32, struct.pack('<I', a.experts)),
        kv(p + 'expert_used_count', U32, struct.pack('<I', 8)),
        kv(p + 'attention.key_length', U32, struct.pack('<I', 128)),
        kv(p + 'attention.value_length', U32, struct.pack('<I', 128)),
        kv(p + 'expert_feed_forward_length', U32, struct.pack('<I', a.ff)),
        kv('tokenizer.ggml.model', STRING, string('gpt2')),
        kv('tokenizer.ggml.pre', STRING, string('qwen2')),
        kv('tokenizer.ggml.tokens', ARRAY, array(STRING, [string(t) for t in tokens])),
        kv('tokenizer.ggml.token_type', ARRAY, array(I32, [struct.pack('<i', t) for t in types])),
        kv('tokenizer.ggml.merges', ARRAY, array(STRING, [])),
        kv('tokenizer.ggml.eos_token_id', U32, struct.pack('<I', a.vocab - 1)),
        kv('general.quantization_version', U32, struct.pack('<I', 2)),
        kv('general.file_type', U32, struct.pack('<I', 15)),
    ]


def align(off):
    return (off + ALIGN - 1) // ALIGN * ALIGN


def random_floats(rng, count, scale):
    return struct.pack(f'<{count}f', *(rng.gauss(0, scale) for _ in range(count)))


def random_q4_k(rng, rows, cols):
    """Blocks of 256: f16 d and dmin, 12 bytes of 6-bit scales and minima, 128 bytes of 4-bit values."""
    out = []
    for _ in range(rows * cols // 256):
        d = struct.pack('<ee', 0.01, 0.07)
        out.append(d + bytes(rng.randrange(1, 64) for _ in range(12)) + rng.randbytes(128))
    return b''.join(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('out')
    ap.add_argument('--layers', type=int, default=48)
    ap.add_argument('--experts', type=int, default=128)
    ap.add_argument('--vocab', type=int, default=151936)
    ap.add_argument('--hidden', type=int, default=2048)
    ap.add_argument('--ff', type=int, default=768)
    a = ap.parse_args()
    rng = random.Random(1)
    tensors, infos, off = [], [], 0
    for name, kind, dims in tensor_list(a):
        tensors.append((name, kind, dims, off))
        infos.append(string(name) + struct.pack('<I', len(dims)) + struct.pack(f'<{len(dims)}Q', *dims) +
                     struct.pack('<IQ', kind, off))
        off = align(off + tensor_bytes(kind, dims))
    kvs = metadata(a)
    header = struct.pack('<IIQQ', 0x46554747, 3, len(tensors), len(kvs)) + b''.join(kvs) + b''.join(infos)
    start = align(len(header))
    with open(a.out, 'wb') as f:
        f.write(header)
        f.truncate(start + off)
        for name, kind, dims, at in tensors:
            f.seek(start + at)
            if 'norm' in name:
                f.write(struct.pack('<f', 1.0) * dims[0])
            elif name.endswith('ffn_gate_inp.weight'):
                for _ in range(dims[1]):
                    f.write(random_floats(rng, dims[0], 0.05))
            elif name == 'token_embd.weight':
                f.write(random_q4_k(rng, IDS, dims[0]))
    print(f'{a.out}: {start + off} bytes, {len(tensors)} tensors')


main()
