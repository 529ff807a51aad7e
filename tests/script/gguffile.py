# SPDX-License-Identifier: Apache-2.0
"""GGUF files: taken apart and put together again, changed; and small models with random weights."""
import random
import struct

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TYPE_F32, TYPE_F16, TYPE_Q8_0 = 0, 1, 8
BLOCKS = {TYPE_F32: (1, 4), TYPE_F16: (1, 2), TYPE_Q8_0: (32, 34)}


def gguf_string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack('<Q', len(data)) + data


def u32(value):
    return U32, struct.pack('<I', value & 0xffffffff)


def f32(value):
    return F32, struct.pack('<f', value)


def string(text):
    return STRING, gguf_string(text)


def strings(items):
    return ARRAY, struct.pack('<IQ', STRING, len(items)) + b''.join(gguf_string(i) for i in items)


def integers(items):
    return ARRAY, struct.pack('<IQ', 5, len(items)) + struct.pack(f'<{len(items)}i', *items)


class Tensor:
    def __init__(self, name, dims, kind, off, data=None):
        self.name, self.dims, self.kind, self.off, self.data = name, list(dims), kind, off, data


class Gguf:
    """A file as keys {name: (type, bytes)}, tensors and the bytes of its data section."""

    def __init__(self, data=None):
        self.magic, self.version, self.keys, self.tensors, self.data = b'GGUF', 3, {}, [], b''
        self.tensor_count = self.key_count = None  # None: the true ones
        if data is None:
            return
        at = 24
        self.version, tensors, keys = struct.unpack_from('<IQQ', data, 4)
        for _ in range(keys):
            name, at = self._string(data, at)
            kind, = struct.unpack_from('<I', data, at)
            end = self._value_end(data, kind, at + 4)
            self.keys[name.decode()] = kind, data[at + 4:end]
            at = end
        for _ in range(tensors):
            name, at = self._string(data, at)
            count, = struct.unpack_from('<I', data, at)
            dims = struct.unpack_from(f'<{count}Q', data, at + 4)
            kind, off = struct.unpack_from('<IQ', data, at + 4 + 8 * count)
            at += 16 + 8 * count
            self.tensors.append(Tensor(name.decode(), dims, kind, off))
        self.data = data[(at + 31) // 32 * 32:]

    @staticmethod
    def _string(data, at):
        length, = struct.unpack_from('<Q', data, at)
        return data[at + 8:at + 8 + length], at + 8 + length

    def _value_end(self, data, kind, at):
        if kind == STRING:
            return self._string(data, at)[1]
        if kind != ARRAY:
            return at + WIDTHS[kind]
        element, count = struct.unpack_from('<IQ', data, at)
        at += 12
        if element != STRING:
            return at + count * WIDTHS[element]
        for _ in range(count):
            at = self._string(data, at)[1]
        return at

    def tensor(self, name):
        return next(t for t in self.tensors if t.name == name)

    def add(self, name, dims, kind, data):
        self.tensors.append(Tensor(name, dims, kind, None, data))

    def header(self):
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        keys = len(self.keys) if self.key_count is None else self.key_count
        out = [self.magic, struct.pack('<IQQ', self.version, tensors, keys)]
        for name, (kind, payload) in self.keys.items():
            out.append(gguf_string(name) + struct.pack('<I', kind) + payload)
        for t in self.tensors:
            out.append(gguf_string(t.name) + struct.pack('<I', len(t.dims)) +
                       struct.pack(f'<{len(t.dims)}Q', *t.dims) + struct.pack('<IQ', t.kind, t.off))
        return b''.join(out)

    def bytes(self):
        data = bytearray(self.data)
        for t in self.tensors:
            if t.data is not None:
                data += bytes(-len(data) % 32)
                t.off = len(data)
                data += t.data
                t.data = None
        self.data = bytes(data)
        header = self.header()
        return header + bytes(-len(header) % 32) + self.data


def byte_stand_ins():
    """GPT-2's printable stand-ins of the 256 bytes."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(b if b in keep else next(other)) for b in range(256)]


def random_weights(rng, kind, count, scale):
    """`count` weights of about `scale`, as this type stores them."""
    if kind == TYPE_F32:
        return struct.pack(f'<{count}f', *(rng.gauss(0, scale) for _ in range(count)))
    assert kind == TYPE_Q8_0 and count % 32 == 0
    blocks = count // 32
    out = bytearray(34 * blocks)
    factor = struct.pack('<e', scale / 74)  # bytes spread evenly over [-128, 127] deviate by 74
    out[0::34] = factor[:1] * blocks
    out[1::34] = factor[1:] * blocks
    noise = rng.randbytes(32 * blocks)
    for i in range(32):
        out[2 + i::34] = noise[i * blocks:(i + 1) * blocks]
    return bytes(out)


def make_model(layers=2, hidden=32, experts=4, used=2, ff=32, kind=TYPE_F32, seed=1,
               context=256):
    """A qwen3moe with random weights and a vocabulary of the 256 bytes and one end token."""
    rng = random.Random(seed)
    vocab, head_dim, heads, kv_heads = 257, 16, 2, 1
    g = Gguf()
    p = 'qwen3moe.'
    g.keys = {
        'general.architecture': string('qwen3moe'),
        'general.name': string(f'random {seed}'),
        p + 'block_count': u32(layers),
        p + 'context_length': u32(context),
        p + 'embedding_length': u32(hidden),
        p + 'attention.head_count': u32(heads),
        p + 'attention.head_count_kv': u32(kv_heads),
        p + 'attention.key_length': u32(head_dim),
        p + 'attention.value_length': u32(head_dim),
        p + 'attention.layer_norm_rms_epsilon': f32(1e-6),
        p + 'rope.freq_base': f32(1e6),
        p + 'expert_count': u32(experts),
        p + 'expert_used_count': u32(used),
        p + 'expert_feed_forward_length': u32(ff),
        'tokenizer.ggml.model': string('gpt2'),
        'tokenizer.ggml.pre': string('qwen2'),
        'tokenizer.ggml.tokens': strings(byte_stand_ins() + ['<|end|>']),
        'tokenizer.ggml.token_type': integers([1] * 256 + [3]),
        'tokenizer.ggml.merges': strings([]),
        'tokenizer.ggml.eos_token_id': u32(256),
    }

    def matrix(name, *dims, dtype=kind, scale=None):
        count = 1
        for d in dims:
            count *= d
        data = random_weights(rng, dtype, count, scale or dims[0] ** -0.5)
        g.add(name + '.weight', dims, dtype, data)

    def norm(name, length):
        g.add(name + '.weight', [length], TYPE_F32, struct.pack('<f', 1) * length)

    matrix('token_embd', hidden, vocab, scale=1)
    norm('output_norm', hidden)
    for n in range(layers):
        b = f'blk.{n}.'
        norm(b + 'attn_norm', hidden)
        matrix(b + 'attn_q', hidden, heads * head_dim)
        matrix(b + 'attn_k', hidden, kv_heads * head_dim)
        matrix(b + 'attn_v', hidden, kv_heads * head_dim)
        matrix(b + 'attn_output', heads * head_dim, hidden)
        norm(b + 'attn_q_norm', head_dim)
        norm(b + 'attn_k_norm', head_dim)
        norm(b + 'ffn_norm', hidden)
        matrix(b + 'ffn_gate_inp', hidden, experts, dtype=TYPE_F32)
        matrix(b + 'ffn_gate_exps', hidden, ff, experts)
        matrix(b + 'ffn_up_exps', hidden, ff, experts)
        matrix(b + 'ffn_down_exps', ff, hidden, experts)
    return g
