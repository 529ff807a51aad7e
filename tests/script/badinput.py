#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad input: the exit code, one line that names the thing and what to do, nothing on stdout, nothing
left in the folder, no hang. 1 is a failure, 2 a wrong command line.
"""
import json
import os
import re
import socket
import struct


import gguffile
from gguffile import ARRAY, Gguf, STRING, TYPE_Q8_0, U64, f32, string, strings, u32
from shunttest import (Skip, case, check, check_equal, env, free_ports, main, need, rack_of)

CONTROL_CHARACTERS = re.compile(r'[\x00-\x09\x0b-\x1f\x7f]')


def patterns(says):
    return [says] if isinstance(says, str) else list(says)


def refused(t, *arguments, code=1, says=(), leaves=(), lines=None, **how):
    """Runs a command that must fail. `says`: patterns that stderr has; `leaves`: names in the
    folder afterwards; `lines`: how many lines stderr has (default: 1, and 2 for usage)."""
    before = {e.name for e in t.tmp.iterdir()}
    result = t.run(*arguments, code=code, timeout=20, **how)
    check_equal(result.out, '', f'stdout of {result}')
    text = result.err
    for pattern in patterns(says):
        check(re.search(pattern, text), lambda: f'stderr lacks {pattern!r}: {result}')
    wanted = lines or (2 if code == 2 else 1)
    check_equal(text.count('\n'), wanted, f'lines of {text!r}')
    check(text.startswith('shunt: '), f'stderr begins otherwise: {text!r}')
    if code == 2:
        check(re.search(r'\ntry: shunt \S+ --help\n$', text), f'no hint at the help: {text!r}')
    check(not CONTROL_CHARACTERS.search(text), f'control characters: {text!r}')
    after = {e.name for e in t.tmp.iterdir() if not e.name.startswith('process-')}
    check_equal(sorted(after - before), sorted(leaves), 'new files')
    return result


# ---- the model file

def tiny():
    return gguffile.make_model()


def refused_model(t, content, says, command='run'):
    model = t.file('bad.gguf', content)
    if command == 'inspect':
        return refused(t, 'inspect', model, says=says)
    return refused(t, command, '-m', model, '-p', 'hi', says=says)


@case('the tiny model is a good one')
def _(t):
    """Else every case below would prove nothing."""
    model = t.file('good.gguf', tiny().bytes())
    t.run('run', '-m', model, '-p', 'hi', '-n', '8', '--nodes', '2', '--slots', '2', '--verify',
          out='memory: yes')
    again = t.file('again.gguf', Gguf(model.read_bytes()).bytes())
    check_equal(again.read_bytes() == model.read_bytes(), True, 'taken apart and put together')


@case('a file cut at every kind of length')
def _(t):
    whole = tiny().bytes()
    header = len(tiny_header())
    lengths = [0, 1, 3, 4, 7, 8, 16, 23, 24, 25, 40, 100, 1000, header - 1, header, header + 31,
               len(whole) // 2, len(whole) - 5000, len(whole) - 1]
    for length in lengths:
        refused_model(t, whole[:length], [r'bad\.gguf: ', r'cut|no GGUF'], 'inspect')


@case('the demo model cut')
def _(t):
    whole = env.demo.read_bytes()
    for length in (1 << 20, len(whole) // 2, len(whole) - 1):
        model = t.file('bad.gguf', whole[:length])
        for command in (['run', '-p', 'hi'], ['eval', '--ids-file', t.ids([1, 2])]):
            refused(t, *command, '-m', model, says=[r'bad\.gguf', 'it is cut or damaged'])


def tiny_header():
    g = tiny()
    g.bytes()
    return g.header()


HEADER = {
    # name: (what to do to the file, what the message says)
    'magic': (lambda g: setattr(g, 'magic', b'GGML'), ['this is no GGUF file', '47 47 4d 4c']),
    'empty magic': (lambda g: setattr(g, 'magic', bytes(4)), 'this is no GGUF file'),
    'version 1': (lambda g: setattr(g, 'version', 1), ['version 1', 'convert the model again']),
    'version 4': (lambda g: setattr(g, 'version', 4), ['version 4', 'a newer shunt']),
    'big-endian': (lambda g: setattr(g, 'version', 3 << 24), ['big-endian', 'convert']),
    'no tensors': (lambda g: setattr(g, 'tensor_count', 0), ['token_embd.weight is missing']),
    'too many tensors': (lambda g: setattr(g, 'tensor_count', 1 << 63), ['tensors, more than']),
    'one tensor more': (lambda g: setattr(g, 'tensor_count', len(g.tensors) + 1), r'bad\.gguf'),
    'no keys': (lambda g: setattr(g, 'key_count', 0), r'bad\.gguf'),
    'too many keys': (lambda g: setattr(g, 'key_count', (1 << 64) - 1), ['keys, more than']),
    'one key less': (lambda g: setattr(g, 'key_count', len(g.keys) - 1), r'bad\.gguf'),
    'one key more': (lambda g: setattr(g, 'key_count', len(g.keys) + 1), r'bad\.gguf'),
    'unknown value type': (lambda g: set_key(g, 'general.name', (13, b'')), 'value type 13'),
    'nested array': (lambda g: set_key(g, 'x', (ARRAY, struct.pack('<IQ', ARRAY, 1))),
                     'array of arrays'),
    'endless string': (lambda g: set_key(g, 'x', (STRING, struct.pack('<Q', 1 << 62))), 'key x'),
    'endless array': (lambda g: set_key(g, 'x', (ARRAY, struct.pack('<IQ', 4, 1 << 61))), 'key x'),
    'key without a name': (lambda g: set_key(g, '', u32(1)), 'its name has 0 bytes'),
    'key with an escape': (lambda g: set_key(g, 'a\x1b[31m', u32(1)), 'control character 0x1b'),
    'alignment 3': (lambda g: set_key(g, 'general.alignment', u32(3)), 'general.alignment is 3'),
    'alignment text': (lambda g: set_key(g, 'general.alignment', string('a')), 'alignment'),
    'split': (lambda g: set_key(g, 'split.count', u32(3)), ['part 1 of 3', '--merge']),
}

ARCH = 'qwen3moe.'
KEYS = {
    # key: wrong values; each must be refused with the key's name
    'block_count': [0, 3, 1, 1 << 20, 0xffffffff],
    'context_length': [0, 0xffffffff],
    'embedding_length': [0, 31, 33, 0xffffffff],
    'attention.head_count': [0, 3, 1 << 20, 0xffffffff],
    'attention.head_count_kv': [0, 3, 2, 0xffffffff],
    'attention.key_length': [0, 15, 17, 32, 0xffffffff],
    'attention.value_length': [0, 8, 0xffffffff],
    'rope.dimension_count': [0, 8, 0xffffffff],
    'expert_count': [0, 3, 5, 0xffffffff],
    'expert_used_count': [0, 5, 0xffffffff],
    'expert_feed_forward_length': [0, 31, 64, 0xffffffff],
    'expert_shared_count': [1],
    'expert_gating_func': [2],
    'expert_group_count': [2],
    'leading_dense_block_count': [1],
    'attention.sliding_window': [128],
}
FLOATS = {
    'attention.layer_norm_rms_epsilon': [0.0, -1.0, float('nan'), float('inf'), 2.0],
    'rope.freq_base': [0.0, -1.0, float('nan'), float('inf')],
    'expert_weights_scale': [2.5, float('nan')],
}
NEEDED = ['block_count', 'context_length', 'embedding_length', 'attention.head_count',
          'attention.layer_norm_rms_epsilon', 'expert_count', 'expert_used_count',
          'expert_feed_forward_length']


def set_key(g, name, value):
    g.keys[name] = value


def changed(change):
    g = tiny()
    g.bytes()  # offsets are given
    change(g)
    return g.bytes()


def header_case(t, change, says):
    refused_model(t, changed(change), says, 'inspect')


for name, (change, says) in HEADER.items():
    case(f'header: {name}', change, says)(header_case)


@case('every number of the architecture wrong')
def _(t):
    # A wrong dimension shows in the shape of a tensor; each message names a key or a tensor.
    for key, values in KEYS.items():
        for value in values:
            content = changed(lambda g: set_key(g, ARCH + key, u32(value)))
            refused_model(t, content, [r'bad\.gguf: ', r'(key|tensor|keys) \S+|this version|heads'],
                          'inspect')


@case('every float of the architecture wrong')
def _(t):
    for key, values in FLOATS.items():
        for value in values:
            content = changed(lambda g: set_key(g, ARCH + key, f32(value)))
            refused_model(t, content, re.escape(key), 'inspect')


@case('every key of the architecture of the wrong type')
def _(t):
    for key in [*KEYS, *FLOATS]:
        for value in (string('7'), strings(['7']), (U64, struct.pack('<Q', 1 << 40))):
            content = changed(lambda g: set_key(g, ARCH + key, value))
            refused_model(t, content, re.escape(key), 'inspect')


@case('every needed key missing')
def _(t):
    for key in NEEDED:
        content = changed(lambda g: g.keys.pop(ARCH + key))
        refused_model(t, content, [re.escape(key) + ' is missing', 'convert the model again'],
                      'inspect')


@case('architecture missing, of the wrong type, unknown')
def _(t):
    for change, says in (
            (lambda g: g.keys.pop('general.architecture'), 'general.architecture is missing'),
            (lambda g: set_key(g, 'general.architecture', u32(1)), 'general.architecture'),
            (lambda g: set_key(g, 'general.architecture', string('llama')),
             ['architecture is llama', 'computes qwen3moe']),
            (lambda g: set_key(g, 'general.architecture', string('a\x1b[2Jb')),
             ['architecture is', 'computes qwen3moe'])):
        refused_model(t, changed(change), says, 'inspect')


@case('every kind of rope scaling')
def _(t):
    for key, value in (('scaling.type', string('yarn')), ('scaling.type', string('linear')),
                       ('scaling.factor', f32(4.0)), ('scale_linear', f32(2.0))):
        content = changed(lambda g: set_key(g, f'{ARCH}rope.{key}', value))
        refused_model(t, content, ['rotary positions', 'unscaled file'], 'inspect')
    t.file('good.gguf', changed(lambda g: set_key(g, ARCH + 'rope.scaling.type', string('none'))))
    t.run('inspect', t.tmp / 'good.gguf')


# ---- tensors

def set_tensor(g, tensor, **fields):
    for field, value in fields.items():
        setattr(g.tensor(tensor), field, value)


TENSORS = {
    'offset past the end': (lambda g: set_tensor(g, 'output_norm.weight', off=1 << 40),
                            ['tensor output_norm.weight', 'cut or damaged']),
    'offset that wraps': (lambda g: set_tensor(g, 'output_norm.weight', off=(1 << 64) - 32),
                          ['tensor output_norm.weight', 'cut or damaged']),
    'end past the end': (lambda g: set_tensor(g, 'blk.1.ffn_down_exps.weight',
                                              off=(len(g.data) - 64) // 32 * 32),
                         ['tensor blk.1.ffn_down_exps.weight', 'cut or damaged']),
    'offset not aligned': (lambda g: set_tensor(g, 'output_norm.weight', off=4),
                           ['output_norm.weight', 'no multiple of the alignment 32']),
    'overlap': (lambda g: set_tensor(g, 'blk.0.attn_k.weight',
                                     off=g.tensor('blk.0.attn_q.weight').off), 'overlap'),
    'five dimensions': (lambda g: set_tensor(g, 'output_norm.weight', dims=[1] * 5),
                        '5 dimensions'),
    'no dimension': (lambda g: set_tensor(g, 'output_norm.weight', dims=[]), '0 dimensions'),
    'dimension 0': (lambda g: set_tensor(g, 'output_norm.weight', dims=[0]), 'dimension 0 is 0'),
    'dimensions that wrap': (lambda g: set_tensor(g, 'output_norm.weight', dims=[1 << 33] * 2),
                             'more weights than any file holds'),
    'another shape': (lambda g: set_tensor(g, 'blk.0.attn_q.weight', dims=[32, 16]),
                      ['tensor blk.0.attn_q.weight has the shape 32 x 16', '32 x 32']),
    'transposed experts': (lambda g: set_tensor(g, 'blk.0.ffn_gate_exps.weight', dims=[32, 4, 32]),
                           'tensor blk.0.ffn_gate_exps.weight has the shape'),
    'fewer embeddings': (lambda g: set_tensor(g, 'token_embd.weight', dims=[32, 256]),
                         ['256', 'token_embd.weight']),
    'IQ2_XXS': (lambda g: set_tensor(g, 'blk.0.ffn_up_exps.weight', kind=16),
                ['tensor blk.0.ffn_up_exps.weight has the weight type IQ2_XXS', 'quantise']),
    'Q5_1': (lambda g: set_tensor(g, 'blk.0.attn_q.weight', kind=7), ['weight type Q5_1']),
    'type 99': (lambda g: set_tensor(g, 'blk.0.attn_q.weight', kind=99), ['type number 99']),
    'norm in Q8_0': (lambda g: set_tensor(g, 'blk.0.attn_norm.weight', kind=TYPE_Q8_0),
                     ['blk.0.attn_norm.weight has the weight type Q8_0', 'norms']),
    'missing': (lambda g: g.tensors.remove(g.tensor('blk.1.attn_v.weight')),
                'tensor blk.1.attn_v.weight is missing'),
    'one too many': (lambda g: g.add('blk.0.attn_q.bias', [32], 0, bytes(128)),
                     ['tensor blk.0.attn_q.bias is no part of qwen3moe']),
    'name twice': (lambda g: set_tensor(g, 'blk.0.attn_k.weight', name='blk.0.attn_v.weight'),
                   'blk.0.attn_v.weight is there twice'),
    'name with a newline': (lambda g: set_tensor(g, 'blk.0.attn_k.weight', name='a\nb'),
                            'control character 0x0a'),
    'endless name': (lambda g: set_tensor(g, 'blk.0.attn_k.weight', name='x' * 70000), 'its name'),
}

for name, (change, says) in TENSORS.items():
    case(f'tensor: {name}', change, says)(header_case)


# ---- tokenizers

def fewer_tokens(g):
    set_key(g, 'tokenizer.ggml.tokens', strings(gguffile.byte_stand_ins()))
    set_key(g, 'tokenizer.ggml.token_type', gguffile.integers([1] * 256))
    del g.keys['tokenizer.ggml.eos_token_id']


@case('a tokenizer that contradicts itself')
def _(t):
    tokens = gguffile.byte_stand_ins()
    for change, says in (
            (fewer_tokens, ['256 tokens', '257 rows']),
            (lambda g: set_key(g, 'tokenizer.ggml.tokens', u32(1)), 'no array of strings'),
            (lambda g: set_key(g, 'tokenizer.ggml.tokens', strings([])), 'tokenizer.ggml.tokens'),
            (lambda g: set_key(g, 'tokenizer.ggml.tokens', strings(tokens + ['x' * 70000])),
             'token 256 has 70000 bytes'),
            (lambda g: set_key(g, 'tokenizer.ggml.token_type', gguffile.integers([1])),
             'tokenizer.ggml.token_type'),
            (lambda g: set_key(g, 'tokenizer.ggml.merges', strings(['nospace'])),
             'tokenizer.ggml.merges'),
            (lambda g: set_key(g, 'tokenizer.ggml.eos_token_id', u32(257)), 'eos_token_id')):
        refused_model(t, changed(change), ['tokenizer', *patterns(says)], 'inspect')


@case('a tokenizer of another kind: ids are computed, text is refused')
def _(t):
    for change, says in (
            (lambda g: set_key(g, 'tokenizer.ggml.model', string('llama')), 'llama'),
            (lambda g: set_key(g, 'tokenizer.ggml.pre', string('deepseek-llm')), 'deepseek-llm'),
            (lambda g: g.keys.pop('tokenizer.ggml.model'), 'tokenizer')):
        model = t.file('other.gguf', changed(change))
        refused(t, 'run', '-m', model, '-p', 'hi', says=['tokenizer', says])
        t.run('eval', '-m', model, '--ids-file', t.ids([1, 2, 3]), '--greedy', '2',
              out=r'^\d+ \d+\n$')
        t.run('inspect', model, out=says)


# ---- the model's path

@case('no file, a folder, a FIFO, a device, a text')
def _(t):
    os.mkfifo(t.tmp / 'fifo')
    t.file('text', 'version https://git-lfs.github.com/spec/v1\noid sha256:1\n')
    for path, says in (('missing.gguf', 'No such file'), ('', r'folder'),
                       ('fifo', 'not a file'), ('text', ['Git LFS', 'git lfs pull'])):
        for command in ('run', 'inspect'):
            arguments = ['run', '-p', 'hi', '-m'] if command == 'run' else ['inspect']
            refused(t, *arguments, t.tmp / path, says=says)
    refused(t, 'inspect', '/dev/null', says=['/dev/null', 'not a file'])


@case('a file that may not be read')
def _(t):
    model = t.file('secret.gguf', tiny().bytes())
    model.chmod(0)
    as_other = as_nobody() if os.geteuid() == 0 else None
    refused(t, 'inspect', model, says=[r'secret\.gguf', 'Permission denied'], before=as_other)


def as_nobody():
    def drop():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    path = env.tmp
    path.chmod(0o755)
    # Where the whole way down to the folder is not open to others, this says nothing.
    while path != path.parent:
        if not path.stat().st_mode & 0o001:
            raise Skip(f'{path} is closed to other users')
        path = path.parent
    return drop


@case('a path with a newline and an escape in it')
def _(t):
    refused(t, 'inspect', t.tmp / 'a\n\x1b[31mb', says='No such file')


@case('a very long path')
def _(t):
    refused(t, 'inspect', 'x' * 300, says='File name too long')


@case('an empty path')
def _(t):
    refused(t, 'run', '-m', '', '-p', 'hi', says='No such file')


@case('a model that is cut while it is used')
def _(t):
    model = t.file('model.gguf', env.demo.read_bytes())
    process = t.start('run', '-m', model, '--nodes', '3', '--slots', '2', '-p', 'KING', '-n', '4000',
                      '--ctx', '4096', '--ignore-eos')
    process.wait_output('[0] ')
    nodes = process.nodes(3)
    os.truncate(model, 1 << 20)
    result = process.wait(20)
    check_equal(result.code, 1, 'exit code')
    check('it was cut while it was in use' in result.err, f'{result}')
    check(all(not os.path.exists(f'/proc/{n}') for n in nodes), 'a node is left')


# ---- ids

@case('ids outside the vocabulary')
def _(t):
    for bad in (2048, 1 << 20, 2147483647):
        refused(t, 'eval', '-m', env.demo, '--ids-file', t.ids([1, bad]), '--greedy', '1',
                says=[f'{bad}', 'position 1', r'vocabulary \[0, 2048\)'])


@case('ids that are none')
def _(t):
    for text, says in (('', 'no ids'), (' \n\t ', 'no ids'), ('1 2 x 3', ["number 3, 'x'"]),
                       ('1 -2', "number 2, '-2'"), ('1.5', "'1.5'"), ('2147483648', 'no token id'),
                       ('99999999999999999999999999', 'no token id'), ('0x10', "'0x10'"),
                       ('1,2,3', "'1,2,3'"), ('1\x002', 'no token id'),
                       ('00000000000000000000000000000000000000005', 'no token id')):
        refused(t, 'eval', '-m', env.demo, '--ids-file', t.file('ids', text),
                says=['/ids: ', *patterns(says)])


@case('binary ids')
def _(t):
    """16-bit ids, as the training data has them; a mistake that is easily made."""
    refused(t, 'eval', '-m', env.demo, '--ids-file', t.file('ids', struct.pack('<3H', 27, 7, 800)),
            says='no token id')


@case('an ids file that is missing, a folder')
def _(t):
    for path, says in ((t.tmp / 'none', 'No such file'), (t.tmp, 'directory')):
        refused(t, 'eval', '-m', env.demo, '--ids-file', path, says=says)


# ---- memory and sizes

SIZES = {
    'more slots than experts': (['--slots', '193'], ['slots: 193', 'between 2 and 192']),
    'a context beyond the model': (['--ctx', '4097'], ['context: 4097', '4096']),
    'little memory': (['--memory', '3M'], [r'\d MiB of memory are needed, and 3 MiB given', 'Raise --memory']),
    'memory without a unit': (['--memory', '20'], 'memory are needed, and 20 bytes given'),
    'slots that do not fit': (['--memory', '14M', '--slots', '100%'],
                              ['[0-9] MiB of memory are needed, and 14 MiB given',
                                'slots at least 7.6 MiB']),
    'two slots that do not fit': (['--memory', '1M', '--slots', '2'], 'Raise --memory'),
    'more tokens than the context': (['-n', '2048'], ['prompt 1 [+] tokens 2048', 'raise --ctx']),
    'very many tokens': (['-n', '4294967295'], ['tokens 4294967295', 'raise --ctx']),
}


def size_case(t, options, says):
    refused(t, 'run', '-m', env.demo, '-p', 'K', *options, says=says)


for name, (options, says) in SIZES.items():
    case(name, options, says)(size_case)


@case('a rack says it once')
def _(t):
    """What every node would refuse is said by none of them, and nothing has begun."""
    for options, says in ((['--slots', '193'], 'slots: 193'), (['--memory', '3M'], 'are needed'),
                          (['--ctx', '5000'], 'context: 5000'), (['-n', '5000'], 'raise --ctx')):
        refused(t, 'run', '-m', env.demo, '-p', 'a', '-p', 'b', '--nodes', '3', *options,
                says=says)
    refused(t, 'run', '-m', t.tmp / 'none', '-p', 'a', '-p', 'b', '--nodes', '3',
            says='No such file')
    refused(t, 'run', '-m', env.demo, '-p', 'a', '-p', b'\xff', '--nodes', '3', says='UTF-8')
    refused(t, 'eval', '-m', t.tmp / 'none', '--ids-file', t.ids([1]), '--nodes', '3',
            says='No such file')
    refused(t, 'eval', '-m', env.demo, '--ids-file', t.ids([5000]), '--nodes', '3',
            says='outside the vocabulary')


@case('a context exceeded by the prompt')
def _(t):
    refused(t, 'eval', '-m', env.demo, '--ids-file', t.ids([1] * 100), '--ctx', '99',
            says=['100', 'context of 99'])
    refused(t, 'eval', '-m', env.demo, '--ids-file', t.ids([1] * 4097), says='4097')
    for ids, greedy in ((8, 4294967295), (1, 4294967295), (8, 4294967288)):
        refused(t, 'eval', '-m', env.demo, '--ids-file', t.ids([1] * ids), '--greedy', str(greedy),
                says=f'{ids} ids and --greedy {greedy}: no context')
    refused(t, 'eval', '-m', env.demo, '--ids-file', t.ids([1] * 8), '--greedy', '4294967287',
            says='context: 4294967295 is not between 1 and 4096')


# ---- prompts

@case('prompts that are none')
def _(t):
    for options, says in ((['-p', ''], 'empty'), (['-f', t.file('empty')], 'empty'),
                          (['-f', t.tmp / 'none'], 'No such file'), (['-f', t.tmp], 'directory'),
                          (['-f', t.file('nul', b'a\0b')], 'NUL'),
                          (['-p', b'ab\xc3'], ['UTF-8', 'byte 2']), ([], 'empty')):
        refused(t, 'run', '-m', env.demo, *options, says=says)


# ---- where results go

def read_only(folder):
    if os.geteuid() == 0:
        raise Skip('root may write everywhere')
    folder.chmod(0o555)


def target_cases(t, option):
    command = ['run', '-m', env.demo, '-p', 'hi', '-n', '4', '--quiet', '--report']
    if option == '--logits':
        command = ['eval', '-m', env.demo, '--ids-file', t.ids([1, 2]), '--logits']
    elif option == 'eval --report':
        command = ['eval', '-m', env.demo, '--ids-file', t.ids([1, 2]), '--greedy', '2', '--report']
    return command


for option in ('--report', 'eval --report', '--logits'):
    @case(f'{option} where nothing can be written', option)
    def _(t, option):
        command = target_cases(t, option)
        t.file('file')
        (t.tmp / 'folder').mkdir()
        for path, says in (('none/x', 'No such file'), ('file/x', 'Not a directory'),
                           ('folder', 'folder|directory'), ('', 'folder|directory'),
                           ('folder/', 'folder|directory')):
            # Before the work: no text has been generated.
            refused(t, *command, f'{t.tmp}/{path}', says=says)
        check_equal(list((t.tmp / 'folder').iterdir()), [], 'in the folder')

    @case(f'{option} with an empty name', option)
    def _(t, option):
        refused(t, *target_cases(t, option), '', says='No such file|empty|name')

    @case(f'{option} in a folder that is read-only', option)
    def _(t, option):
        command = target_cases(t, option)
        folder = t.tmp / 'closed'
        folder.mkdir()
        read_only(folder)
        refused(t, *command, folder / 'x', says='Permission denied')

    @case(f'{option} to a full drive', option)
    def _(t, option):
        """A link, so that a command that renames over its target spoils no device."""
        target = t.tmp / 'link'
        target.symlink_to('/dev/full')
        before = {e.name for e in t.tmp.iterdir()}
        result = t.start(*target_cases(t, option), target).wait()
        check(target.is_symlink(), 'the device was replaced by a file')
        check_equal(result.code, 1, f'exit code of {result}')
        check(re.search('No space left|no file|not a file|device', result.err), f'{result}')
        after = {e.name for e in t.tmp.iterdir() if not e.name.startswith('process-')}
        check_equal(after - before, {'ids'} & after - before, 'new files')

    @case(f'{option} keeps what was there when it fails', option)
    def _(t, option):
        target = t.file('old', 'old')
        command = target_cases(t, option)
        command[command.index('-m') + 1] = t.file('bad.gguf', 'GGUF')
        t.run(*command, target, code=1)
        check_equal(target.read_text(), 'old', 'the file')
        check_equal({e.name for e in t.tmp.iterdir()} - {'old', 'bad.gguf', 'ids'},
                    {'process-0.out', 'process-0.err'}, 'other files')

    @case(f'{option} has the mode of any new file', option)
    def _(t, option):
        target = t.tmp / 'new'
        t.run(*target_cases(t, option), target)
        check_equal(oct(target.stat().st_mode & 0o777), oct(0o666 & ~current_umask()), 'mode')


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@case('a report to standard output comes after the text')
def _(t):
    """--report /dev/stdout is a way people write; what stdout is (here a file) must stay."""
    link = t.tmp / 'link'
    link.symlink_to('/dev/stdout')
    for path in (link, '-'):
        result = t.run('run', '-m', env.demo, '-p', 'hi', '-n', '4', '--report', path,
                       before=lambda: os.chdir(t.tmp))
        check(link.is_symlink(), 'the link was replaced by a file')
        text, table, report = result.out.partition('{')
        check(text.startswith(', e che,\n') and 'peak memory' in text, f'no text: {result}')
        check_equal(json.loads(table + report)['report_version'], 1, 'report')
    check(not (t.tmp / '-').exists(), 'a file called -')
    refused(t, 'eval', '-m', env.demo, '--ids-file', t.ids([1, 2]), '--logits', '-',
            says='logits need a file')


@case('a report to a pipe that nobody reads')
def _(t):
    os.mkfifo(t.tmp / 'fifo')
    refused(t, 'run', '-m', env.demo, '-p', 'hi', '-n', '4', '--report', t.tmp / 'fifo',
            says='cannot be written')


@case('a report to a pipe that somebody reads')
def _(t):
    os.mkfifo(t.tmp / 'fifo')
    reader = os.open(t.tmp / 'fifo', os.O_RDONLY | os.O_NONBLOCK)
    t.run('eval', '-m', env.demo, '--ids-file', t.ids([1, 2]), '--report', t.tmp / 'fifo')
    check('report_version' in os.read(reader, 1 << 16).decode(), 'no report in the pipe')
    os.close(reader)


@case('a report through a link to a file')
def _(t):
    target = t.file('target', 'old')
    (t.tmp / 'link').symlink_to('target')
    t.run('eval', '-m', env.demo, '--ids-file', t.ids([1, 2]), '--report', t.tmp / 'link')
    check((t.tmp / 'link').is_symlink(), 'the link was replaced')
    check('report_version' in target.read_text(), 'the file behind it was not written')


@case('standard output that is full')
def _(t):
    """Text that could not be written is a failure, not a success."""
    with open('/dev/full', 'wb') as full:
        for command in (['run', '-m', env.demo, '-p', 'hi', '-n', '4'],
                        ['run', '-m', env.demo, '-p', 'hi', '-n', '4', '--nodes', '2'],
                        ['eval', '-m', env.demo, '--ids-file', t.ids([1, 2]), '--greedy', '2'],
                        ['inspect', env.demo], ['doctor'], ['--version'], ['run', '--help']):
            result = t.start(*command, stdout=full).wait()
            check_equal(result.code, 1, f'exit code of {result}')
            check('No space left' in result.err, f'{result}')


@case('standard output that is closed')
def _(t):
    result = t.start('run', '-m', env.demo, '-p', 'hi', '-n', '4',
                     before=lambda: os.close(1)).wait()
    check_equal(result.code, 1, f'exit code of {result}')


# ---- the command line

USAGE = {
    'an unknown option': (['run', '--frobnicate'], 'no option --frobnicate'),
    'an unknown letter': (['run', '-z'], 'no option -z'),
    'an option of another command': (['eval', '--verify'], 'no option --verify'),
    'a missing value': (['run', '-m'], '--model needs a value: --model FILE'),
    'a value too many': (['run', '--verify=yes'], '--verify takes no value'),
    'no model': (['run', '-p', 'hi'], 'no model: -m FILE'),
    'no ids': (['eval', '-m', 'x'], 'no ids: --ids-file'),
    'a prompt without -p': (['run', '-m', 'x', 'hello'], "'hello': a prompt is given with -p"),
    'an argument to node': (['node', '-m', 'x', 'y'], "'y': node takes options only"),
    'an argument to eval': (['eval', '-m', 'x', 'y'], "'y': eval takes options only"),
    'two models': (['inspect', 'a', 'b'], "'b': one model"),
    'no model to inspect': (['inspect'], 'no model'),
    'two folders for doctor': (['doctor', 'a', 'b'], "'b': doctor takes one"),
    'no slots': (['run', '-m', 'x', '--slots', '0'], "--slots: '0'"),
    'slots of 0 %': (['run', '-m', 'x', '--slots', '0%'], "--slots: '0%'"),
    'slots of 101 %': (['run', '-m', 'x', '--slots', '101%'], "--slots: '101%'"),
    'slots as a word': (['run', '-m', 'x', '--slots', 'all'], "--slots: 'all'"),
    'slots below 0': (['run', '-m', 'x', '--slots', '-4'], "--slots: '-4'"),
    'no memory': (['run', '-m', 'x', '--memory', '0'], "--memory: '0'"),
    'memory as a word': (['run', '-m', 'x', '--memory', 'much'], "'much' is no size, such as 2G"),
    'memory in furlongs': (['run', '-m', 'x', '--memory', '2F'], "'2F' is no size"),
    'memory below 0': (['run', '-m', 'x', '--memory', '-2G'], "'-2G' is no size"),
    'memory beyond any machine': (['run', '-m', 'x', '--memory', '1e300'], "'1e300' is no size"),
    'a context as a word': (['run', '-m', 'x', '--ctx', 'long'], "--ctx: 'long'"),
    'a context beyond 32 bits': (['run', '-m', 'x', '--ctx', '4294967296'], '--ctx'),
    'tokens beyond 32 bits': (['run', '-m', 'x', '-n', '4294967296'], '--tokens'),
    'tokens below 0': (['run', '-m', 'x', '-n', '-1'], "--tokens: '-1'"),
    'tokens with a space': (['run', '-m', 'x', '-n', ' 1'], "--tokens: ' 1'"),
    'an empty number': (['run', '-m', 'x', '-n', ''], "--tokens: ''"),
    'a temperature as a word': (['run', '-m', 'x', '--temp', 'hot'], "--temp: 'hot'"),
    'a time as a word': (['run', '-m', 'x', '--join-timeout', 'soon'], "--join-timeout: 'soon'"),
    'a time of 0': (['run', '-m', 'x', '--dead-after', '0'], "--dead-after: '0'"),
    'prefetch as a number': (['run', '-m', 'x', '--prefetch', '1'], "'1' is neither on nor off"),
    'one slot': (['run', '-m', 'x', '--slots', '1'], ["--slots: '1'", 'at least 2', '40%']),
    'a context of 0': (['run', '-m', 'x', '--ctx', '0'], "--ctx: '0' is no number from 1 to"),
    'a chunk beyond the limit': (['run', '-m', 'x', '--chunk', '4097'], "'4097'.*from 0 to 4096"),
    'more threads than the limit': (['run', '-m', 'x', '-t', '257'], "--threads: '257'.*to 256"),
    'a rank beyond the limit': (['run', '-m', 'x', '--rank', '64'], "--rank: '64'.*0 to 63"),
    'silence too short': (['run', '-m', 'x', '--dead-after', '0.1'],
                          "--dead-after: '0.1' is too short; give at least 0.2 s"),
    'unknown kernels': (['run', '-m', 'x', '--kernels', 'avx512'],
                        r"--kernels: 'avx512' is none of auto\|ref\|avx2"),
    'half a name': (['run', '-m', 'x', '--kernels', 'avx'], "'avx' is none of"),
    'two names': (['run', '-m', 'x', '--kernels', 'auto|ref'], "'auto.ref' is none of"),
    'an empty name': (['node', '-m', 'x', '--io', ''], "'' is none of auto"),
    'unknown io': (['run', '-m', 'x', '--io', 'aio'], r"'aio' is none of auto\|uring\|pread"),
    'unknown io mode': (['eval', '-m', 'x', '--io-mode', 'mmap'],
                        r"'mmap' is none of auto\|direct\|buffered"),
    'unknown transport': (['run', '-m', 'x', '--transport', 'rdma'], r"'rdma'.* auto\|tcp\|shm"),
    'unknown placement': (['run', '-m', 'x', '--placement', 'x'], r"'x'.* prism\|spread\|off"),
    'temperature below 0': (['run', '-m', 'x', '--temp', '-0.1'], "--temp: '-0.1'.* 0 or more"),
    'temperature that is no number': (['run', '-m', 'x', '--temp', 'nan'], "--temp: 'nan'"),
    'infinite temperature': (['run', '-m', 'x', '--temp', 'inf'], "--temp: 'inf'"),
    'a temperature that becomes infinite': (['run', '-m', 'x', '--temp', '1e39'], "--temp: '1e39'"),
    'top-p of 0': (['run', '-m', 'x', '--top-p', '0'], "--top-p: '0' is no number above 0"),
    'top-p above 1': (['run', '-m', 'x', '--top-p', '1.5'], "--top-p: '1.5'.* up to 1"),
    'an empty stop string': (['run', '-m', 'x', '--stop', ''], ['--stop', '0 bytes']),
    'a long stop string': (['run', '-m', 'x', '--stop', 'x' * 129], ['--stop', '129.* to 128']),
    'inspect with a chunk beyond the limit': (['inspect', 'x', '--chunk', '99999999'], '--chunk'),
    'inspect with a context of 0': (['inspect', 'x', '--ctx', '0'], '--ctx'),
    'greedy below 0': (['eval', '-m', 'x', '--greedy', '-1'], "'-1' is no number from 0 to 4294"),
    'no nodes': (['run', '-m', 'x', '--nodes', '0'], '--nodes'),
    'too many nodes': (['run', '-m', 'x', '--nodes', '65'], 'from 1 to 64'),
    '--nodes with --rank': (['run', '-m', 'x', '--nodes', '2', '--rank', '0', '--rack', 'a:1,b:2'],
                            'which'),
    '--rank alone': (['run', '-m', 'x', '--rank', '0'], '--rank and --rack belong together'),
    '--rack alone': (['run', '-m', 'x', '--rack', 'a:1'], '--rank and --rack belong together'),
    'a rank outside the rack': (['run', '-m', 'x', '--rank', '2', '--rack', 'a:1,b:2'],
                                '--rack has 2 nodes'),
    'a rack of 65': (['node', '-m', 'x', '--rank', '0', '--rack', ','.join(['a:1'] * 65)],
                     'more than 64 nodes'),
    'an empty rack': (['run', '-m', 'x', '-p', 'a', '--rank', '0', '--rack', ''],
                      '--rack: the address of node 0 is empty'),
    'a rack with a comma before': (['node', '-m', 'x', '--rank', '0', '--rack', ',a:1'],
                                   'node 0 is empty'),
    'a rack with two commas': (['node', '-m', 'x', '--rank', '0', '--rack', 'a:1,,b:2'],
                               'node 1 is empty'),
    'a rack with a comma behind': (['eval', '-m', 'x', '--rank', '0', '--rack', 'a:1,b:2,'],
                                   'node 2 is empty'),
    'a node without a rack': (['node', '-m', 'x'], 'needs a rack'),
    'a node with --nodes': (['node', '-m', 'x', '--nodes', '2'], 'needs a rack'),
    'a rack of one': (['node', '-m', 'x', '--rank', '0', '--rack', 'a:1'], 'needs a rack'),
    '--verify on a larger rack': (['run', '-m', 'x', '-p', 'a', '--verify', '--rank', '0', '--rack',
                                   'a:1,b:2'], '--verify works where all nodes are here'),
    'nine stop strings': (['run', '-m', 'x'] + ['--stop', 'a'] * 9, 'more than 8 stop strings'),
    'too many prompts': (['run', '-m', 'x'] + ['-p', 'a'] * 257, 'more than 256 prompts'),
    'a control character': (['run', '--a\x1b[31mb'], 'no option'),
}


def usage_case(t, arguments, says):
    refused(t, *arguments, code=2, says=says)


for name, (arguments, says) in USAGE.items():
    case(f'usage: {name}', arguments, says)(usage_case)


@case('usage: no command, an unknown command')
def _(t):
    for arguments, says in (([], 'usage: shunt COMMAND'), (['dance'], "no command 'dance'")):
        result = t.run(*arguments, code=2, err=says)
        check_equal(result.out, '', 'stdout')


@case('usage: logits and report to one file')
def _(t):
    """Also by another path, through a link, and when there is no such file yet."""
    (t.tmp / 'folder').mkdir()
    (t.tmp / 'way').symlink_to('folder')
    (t.tmp / 'link').symlink_to('old')
    t.file('old', 'old')
    ids = t.ids([1, 2])
    for a, b in (('new', 'new'), ('new', './new'), ('new', 'folder/../new'), ('old', 'link'),
                 ('link', 'old'), ('folder/new', 'way/new'), ('way/../old', 'link')):
        refused(t, 'eval', '-m', env.demo, '--ids-file', ids, '--logits', f'{t.tmp}/{a}',
                '--report', f'{t.tmp}/{b}', code=2, says='name the same file')
        check_equal((t.tmp / 'old').read_text(), 'old', 'what was there')
    t.run('eval', '-m', env.demo, '--ids-file', ids, '--logits', t.tmp / 'folder' / 'a',
          '--report', t.tmp / 'way' / 'b')


@case('usage: an output that is an input')
def _(t):
    """The model above all, and keys; also by another path, and through links of both kinds."""
    content = tiny().bytes()
    model, ids, prompt = t.file('model', content), t.ids([1, 2]), t.file('prompt', 'hi')
    secret = t.file('secret', 'secret')
    (t.tmp / 'link').symlink_to('model')
    os.link(model, t.tmp / 'other')
    run = ['run', '-f', prompt, '-n', '2', '--report']
    evaluate = ['eval', '--ids-file', ids]
    for command in (run, [*evaluate, '--report'], [*evaluate, '--logits']):
        for given, output in (('model', 'model'), ('model', './model'), ('model', 'link'),
                              ('link', 'model'), ('model', 'other')):
            refused(t, *command, f'{t.tmp}/{output}', '-m', t.tmp / given, code=2,
                    says=[command[-1], 'is read by this command'])
        text = prompt if command is run else ids
        refused(t, *command, text, '-m', model, code=2, says='is read by this command')
        for option in ('--key-file', '--cert', '--cert-key', '--ca'):
            refused(t, *command, t.tmp / 'secret', '-m', model, option, secret, code=2,
                    says='is read by this command')
    for name in ('model', 'other'):
        check((t.tmp / name).read_bytes() == content, f'{name} has changed')
    check_equal(secret.read_text(), 'secret', 'the secret')
    check((t.tmp / 'link').is_symlink(), 'the link was replaced')
    t.run(*run, t.tmp / 'report', '-m', model)


# ---- addresses

ADDRESSES = {
    'no port': ('127.0.0.1,127.0.0.1:{b}', ["'127.0.0.1'", 'expected host:port']),
    'port 0': ('127.0.0.1:0,127.0.0.1:{b}', ['127.0.0.1:0', 'port']),
    'port 65536': ('127.0.0.1:65536,127.0.0.1:{b}', ['127.0.0.1:65536', 'port']),
    'port -1': ('127.0.0.1:-1,127.0.0.1:{b}', ['127.0.0.1:-1']),
    'a port as a word': ('127.0.0.1:http-x,127.0.0.1:{b}', ['127.0.0.1:http-x']),
    'IPv6 without brackets': ('::1:{a},127.0.0.1:{b}', 'expected host:port'),
    'a host that nobody knows': ('no.such.host.invalid:{a},127.0.0.1:{b}', 'no.such.host.invalid'),
    'the same address twice': ('127.0.0.1:{a},127.0.0.1:{a}', ['127.0.0.1', 'twice']),
    'no loopback': ('192.0.2.1:{a},127.0.0.1:{b}', ['192.0.2.1', '--key-file', 'openssl rand']),
    'an address of another machine': ('192.0.2.1:{a},127.0.0.1:{b} --key-file {key}',
                                      ['192.0.2.1', 'is no address of this machine', '--rank']),
}


def address_case(t, rack, says):
    if '{key}' in rack:
        need('TLS')
    a, b = free_ports(2)
    rack, *more = rack.format(a=a, b=b, key=t.key()).split()
    refused(t, 'node', '-m', env.demo, '--rank', '0', '--rack', rack, '--join-timeout', '3', *more,
            says=says)


for name, (rack, says) in ADDRESSES.items():
    case(f'rack address: {name}', rack, says)(address_case)


@case('a port that is taken')
def _(t):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        rack = rack_of([s.getsockname()[1], *free_ports(1)])
        for command in (['node'], ['run', '-p', 'hi'], ['eval', '--ids-file', t.ids([1])]):
            refused(t, *command, '-m', env.demo, '--rank', '0', '--rack', rack,
                    says=['the port is taken', '--rack'])


@case('direct reads where the file system has none')
def _(t):
    """tmpfs knows O_DIRECT since Linux 6.6; before, it is refused, and auto reads otherwise."""
    folder = '/dev/shm'
    if not os.access(folder, os.W_OK):
        raise Skip('no /dev/shm')
    path = f'{folder}/shunt-test-{os.getpid()}.gguf'
    try:
        with open(path, 'wb') as f:
            f.write(tiny().bytes())
        direct = t.start('run', '-m', path, '-p', 'hi', '-n', '2', '--io-mode', 'direct').wait()
        if direct.code:
            check(re.search('O_DIRECT.*--io-mode auto', direct.err), f'{direct}')
        t.run('run', '-m', path, '-p', 'hi', '-n', '2', '--nodes', '2', '--verify', out='yes')
    finally:
        os.unlink(path)


if __name__ == '__main__':
    main()
