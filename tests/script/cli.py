#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command as people use it: help, version, inspect, doctor; prompts from everywhere; stop strings,
sampling, several prompts a node; a machine that refuses io_uring.
"""
import ctypes
import json
import os
import re
import resource
import struct
import subprocess

import gguffile
from gguffile import u32
from shunttest import (Golden, Skip, case, check, check_equal, env, free_ports, main, rack_of)

COMMANDS = ('run', 'node', 'eval', 'inspect', 'doctor')


# ---- help

def source(name):
    return (env.root / 'tools' / 'shunt' / f'{name}.c').read_text()


def options_in(text):
    """Names in the tables of struct option_help."""
    return set(re.findall(r'^\s*\{"(--[a-z-]+)", ', text, re.M))


def known_options(command):
    own = options_in(source(command))
    return own | (options_in(source('options')) if command in ('run', 'node', 'eval') else set())


def compared_options(command):
    """Names that the code compares an option's name with: what it would take."""
    pattern = r'strcmp\(name, "(--[a-z-]+)"\)'
    found = set(re.findall(pattern, source(command)))
    if command in ('run', 'node', 'eval'):
        found |= set(re.findall(pattern, source('options')))
        found |= set(re.findall(r'\{"(--[a-z-]+)", offsetof', source('options')))
    return found


def help_of(t, command):
    result = t.run(command, '--help')
    check_equal(result.err, '', 'stderr')
    return result.out


@case('--help of every command lists every option')
def _(t):
    for command in COMMANDS:
        text = help_of(t, command)
        check(text.startswith(f'usage: shunt {command}'), f'{command}: {text[:100]!r}')
        listed = set(re.findall(r'^  (?:-.,|   ) (--[a-z-]+)', text, re.M))
        check_equal(listed, known_options(command), f'options of {command}')
        missing = compared_options(command) - listed - {'--help'}
        check(not missing, f'{command} takes {missing} and does not list it')
        check(all(len(line) <= 120 for line in text.splitlines()), f'{command}: long lines')
        check_equal(t.run(command, '-h').out, text, f'{command} -h')
    check(len(known_options('run')) > 30, 'the tables were not found in the source')


@case('--help wherever it stands')
def _(t):
    check_equal(t.run('run', '-m', 'x', '--help', '--nonsense').out, help_of(t, 'run'), 'help')


@case('help of the whole')
def _(t):
    texts = [t.run(word).out for word in ('--help', '-h', 'help')]
    check_equal(len(set(texts)), 1, 'different helps')
    for command in COMMANDS:
        check(re.search(rf'^  {command} +\w', texts[0], re.M), f'{command} is not in the help')


@case('--version')
def _(t):
    header = (env.root / 'runtime' / 'shunt_version.h').read_text()
    parts = [re.search(rf'_{p}_VERSION\s+(\d+)', header).group(1) for p in ('API', 'MINOR', 'PATCH')]
    for word in ('--version', 'version'):
        check_equal(t.run(word).out, f'shunt {".".join(parts)}\n', word)


def man_page():
    pages = [p for p in env.root.glob('**/shunt.1*') if 'build' not in p.parts[-3:-1]]
    if not pages:
        raise Skip('no man page in the tree')
    return pages[0].read_text().replace('\\-', '-').replace('Fl -', '--')


@case('the man page names every command and option')
def _(t):
    page = man_page()
    for command in COMMANDS:
        check(re.search(rf'\b{command}\b', page), f'{command} is not in the man page')
        for option in known_options(command):
            check(re.search(rf'{option}(?![\w-])', page),
                  f'{option} of {command} is not in the man page')


@case('the man page documents every field of the report')
def _(t):
    page = man_page()
    report = t.tmp / 'report.json'
    t.run('run', '-m', env.demo, '-p', 'hi', '-n', '2', '--report', report)
    report = json.loads(report.read_text())
    for field in [*report, *report['nodes'][0], *report['sequences'][0]]:
        check(re.search(rf'\b{field}\b', page.replace('\\_', '_')), f'{field} is not documented')


# ---- inspect and doctor

@case('inspect')
def _(t):
    text = t.run('inspect', env.demo).out
    for pattern in (r'architecture +qwen3moe: ', r'layers +6, hidden 128, 4 heads \(2 kv\) of 32',
                    r'experts +32 per layer, 4 used, width 96', r'vocabulary +2048 ids, gpt2/qwen2',
                    r'parameters +7\.92 M\n', r'weights +8\.1 MiB: experts 7\.\d MiB, the rest \d',
                    r'one expert +38\.\d KiB at most, 192 experts in all', r'fingerprint +[0-9a-f]{32}\n', r'Q8_0 +44 ',
                    r'F32 +31 ', r' minimum +2 ', r' 40 % +77 ', r' 100 % +192 '):
        check(re.search(pattern, text), f'lacks {pattern!r}: {text}')
    # The table counts what the process has resident, which is not always the same.
    again = t.run('inspect', '-m', env.demo).out
    check_equal(again.split('memory per node')[0], text.split('memory per node')[0], 'with -m')


@case('inspect says where tensors and experts lie')
def _(t):
    text = t.run('inspect', env.demo, '--tensors', '--experts').out
    data = env.demo.read_bytes()
    g = gguffile.Gguf(data)
    start = len(data) - len(g.data)
    for tensor in g.tensors:
        line = re.search(rf'^{re.escape(tensor.name)} +\S+ +(\d+) +\d+ +(.*)$', text, re.M)
        check(line, f'{tensor.name} is not listed')
        check_equal(int(line.group(1)), start + tensor.off, f'offset of {tensor.name}')
        check_equal(line.group(2), ' x '.join(map(str, tensor.dims)), f'shape of {tensor.name}')
    experts = re.findall(r'^ +(\d+) +(\d+) +(\d+) \+(\d+) +(\d+) \+(\d+) +(\d+) \+(\d+) *$', text, re.M)
    check_equal(len(experts), 192, 'experts')
    for layer, expert, *extents in (map(int, e) for e in experts):
        for i, part in enumerate(('gate', 'up', 'down')):
            begin = start + g.tensor(f'blk.{layer}.ffn_{part}_exps.weight').off + expert * 13056
            check_equal(extents[2 * i:2 * i + 2], [begin, 13056], f'{part} of {layer}.{expert}')


@case('inspect with more nodes, a smaller context and chunk')
def _(t):
    def needed(*options):
        return float(re.search(r'minimum +2 +[\d.]+ +(\d+)', t.run('inspect', env.demo, *options).out)
                     .group(1))
    check(needed('--nodes', '16') > needed(), 'more nodes take no more')
    check(needed('--ctx', '128') < needed() < needed('--ctx', '4096'), 'the context takes nothing')
    # What two processes have resident differs by a tenth of a MiB, and that may round differently.
    check(abs(needed('--chunk', '8') - needed()) <= 1, 'the minimum, with the least chunk there is')
    check(needed() < needed('--chunk', '512'), 'the chunk takes nothing')


@case('the words for what is read of a model: header and samples')
def _(t):
    page = man_page()
    for text, what in ((help_of(t, 'inspect'), '--help'), (page, 'the man page')):
        check('header only' not in text, f'{what} says "header only"')
        check(re.search(r'samples of the\sweights', text), f'{what} does not speak of the samples')
    startup = re.search(r'asked of its drive.*?;', page, re.S).group(0)
    check('samples' in startup, f'bytes_startup: {startup}')


@case('inspect and pipes')
def _(t):
    """inspect | head"""
    read, write = os.pipe()
    os.close(read)
    result = t.start('inspect', env.demo, '--experts', stdout=write).wait()
    os.close(write)
    check(result.code != 0 and result.err == '', f'{result}')


@case('doctor')
def _(t):
    for arguments in ([], [env.demo], [t.tmp]):
        lines = t.run('doctor', *arguments).out.splitlines()
        check_equal(lines[0], f'shunt {env.version}', 'first line')
        checks = [line for line in lines[1:] if line[0] != ' ']
        for line in checks:
            check(re.match(r'(ok|limited|no) +\S.*  \S', line), f'line {line!r}')
        for name in ('processor', 'memory', 'io_uring', 'O_DIRECT', 'locked memory', 'huge pages',
                     'TLS', 'verbs', 'CUDA'):
            check(any(re.match(rf'\w+ +{name} ', line) for line in checks), f'nothing of {name}')
        for line in lines[1:]:
            check(line[0] != ' ' or re.match(r' +-> \S', line), f'remedy {line!r}')


@case('doctor of something that is not there')
def _(t):
    t.run('doctor', '/no/such/folder', code=1, out='failed +O_DIRECT .*No such file')
    t.run('doctor', '/dev/null', code=1, out='failed +O_DIRECT .*not a file')


@case('doctor under little locked memory and where io_uring is refused')
def _(t):
    def less():
        """A container's root: without CAP_IPC_LOCK, which lifts the limit."""
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        if ctypes.CDLL(None).prctl(24, 14, 0, 0, 0) and os.geteuid() == 0:  # PR_CAPBSET_DROP
            os._exit(99)
    text = t.run('doctor', '/tmp', before=less).out
    check(re.search(r'limited +locked memory +64', text), text)
    text = t.run('doctor', before=refuse_io_uring).out
    check(re.search(r'(no|limited) +io_uring .*\n +-> ', text), text)


# ---- io_uring refused, as in many containers

def refuse_io_uring():
    """io_uring_setup answers EPERM in this process and its children: a seccomp filter."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    ld_nr, jeq, ret = 0x20, 0x15, 0x06
    code = [(ld_nr, 0, 0, 0), (jeq, 0, 1, 425), (ret, 0, 0, 0x00050000 | 1), (ret, 0, 0, 0x7fff0000)]
    filters = ctypes.create_string_buffer(b''.join(struct.pack('<HBBI', *c) for c in code))
    program = struct.pack('<HxxxxxxQ', len(code), ctypes.addressof(filters))
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.c_char_p(program), 0, 0):
        os._exit(99)


@case('io_uring refused: reads by threads, said once')
def _(t):
    prompt = Golden(env.demo).prompts[0]
    for nodes in ([], ['--nodes', '3']):
        report = t.tmp / 'report.json'
        result = t.run('run', '-m', env.demo, '-p', prompt['text'], '-n', '48', '--slots', '40%',
                       '--report', report, *nodes, before=refuse_io_uring)
        check(re.search(r'io_uring.*(pool of threads|instead)', result.err), f'{result}')
        check_equal(result.err.count('\n'), 1, f'lines of {result.err!r}')
        report = json.loads(report.read_text())
        check_equal({n['io'] for n in report['nodes']}, {'pread'}, 'io')
        check_equal(report['sequences'][0]['ids'], prompt['greedy'], 'ids')
    result = t.run('run', '-m', env.demo, '-p', 'hi', '--io', 'uring', code=1,
                   before=refuse_io_uring)
    check(re.search('io_uring.*--io auto', result.err), f'no remedy: {result}')


# ---- prompts

def run_text(t, *arguments, **how):
    return t.run('run', '-m', env.demo, '--quiet', '-n', '16', *arguments, **how).out


@case('a prompt from the command line, a file and standard input')
def _(t):
    for prompt in Golden(env.demo).prompts[:3]:
        path = t.file('prompt', prompt['text'])
        wanted = run_text(t, '-p', prompt['text'])
        check(len(wanted) > 20, f'text {wanted!r}')
        check_equal(run_text(t, '-f', path), wanted, '-f')
        check_equal(run_text(t, f'--prompt={prompt["text"]}'), wanted, '--prompt=')
        for arguments in ([], ['-f', '-'], ['--prompt-file=-']):
            with open(path, 'rb') as stdin:
                check_equal(run_text(t, *arguments, stdin=stdin), wanted, f'stdin with {arguments}')


@case('a prompt from a pipe that is slow')
def _(t):
    read, write = os.pipe()
    process = t.start('run', '-m', env.demo, '--quiet', '-n', '16', stdin=read)
    os.close(read)
    for piece in ('KING ', 'RICH', 'ARD:'):
        os.write(write, piece.encode())
    os.close(write)
    check_equal(process.wait().out, run_text(t, '-p', 'KING RICHARD:'), 'text')


@case('a large prompt')
def _(t):
    """Longer than the buffers of anything on its way; 4096 positions are the model's limit."""
    code = (env.root / 'tools/demo/prompts/code.txt').read_text()
    path = t.file('prompt', (code * 100)[:9000])
    result = t.run('run', '-m', env.demo, '-f', path, '-n', '4', '--ctx', '4096', '--quiet',
                   '--nodes', '2', '--verify', '--report', t.tmp / 'r')
    report = json.loads((t.tmp / 'r').read_text())
    check(report['sequences'][0]['prompt_tokens'] > 2000, 'a short prompt')
    check_equal(report['identical_to_one_node'], True, f'verified: {result}')


@case('several prompts are labelled, and each is what it is alone')
def _(t):
    texts = [p['text'] for p in Golden(env.demo).prompts if p['text']] * 2
    alone = [run_text(t, '-p', text)[:-1] for text in texts]
    for nodes in (1, 2, 3):
        options = ['--nodes', str(nodes)] if nodes > 1 else []
        out = run_text(t, *(a for text in texts for a in ('-p', text)), *options)
        for i, text in enumerate(alone):
            lines = re.findall(rf'^\[{i % nodes}\.{i // nodes}\] (.*)$', out, re.M)
            # Lines are broken at spaces, and blank ones left out.
            check_equal(squeeze(''.join(lines)), squeeze(text), f'prompt {i} on {nodes} nodes')


@case('prompts are shown with the label of their text')
def _(t):
    prompts = ('-p', 'KING', '-p', 'RENZO\nand more', '-p', '\x1b[31mred\x07\t\u009b2J\x7f \u00e0')
    shown = ('KING', 'RENZO ...', '?[31mred?\t?2J? \u00e0')
    command = ('run', '-m', env.demo, '-n', '16')
    a, b = free_ports(2)
    rack = ('--rack', rack_of([a, b]), '--rank')
    node = t.start('node', '-m', env.demo, *rack, '0')
    for options, labels in (([], ('0.0', '0.1', '0.2')), (['--nodes', '2'], ('0.0', '1.0', '0.1')),
                            (['--nodes', '3'], '012'), ([*rack, '1'], ('1.0', '1.1', '1.2'))):
        lines = t.run(*command, *prompts, *options).out.split('\n')
        wanted = [f'[{label}] prompt: {text}' for label, text in zip(labels, shown)]
        check_equal(lines[:3], wanted, 'prompts')
        for label in labels:
            check(any(line.startswith(f'[{label}] ') for line in lines[3:]), f'no text of {label}')
    check_equal(node.wait().code, 0, 'the other node')
    for options in ([], ['--nodes', '2']):
        out = t.run(*command, *prompts, *options, '--quiet').out
        check('prompt:' not in out and 'peak memory' not in out, f'--quiet: {out!r}')
    check('prompt:' not in t.run(*command, '-p', 'KING').out, 'a single prompt is shown')


@case('--quiet leaves the verdict')
def _(t):
    result = t.run('run', '-m', env.demo, '-p', 'KING', '-n', '4', '--nodes', '2', '--verify', '-q')
    check(re.search(r'\n\nidentical to one node .*: yes\n$', result.out), f'{result}')
    check('peak memory' not in result.out, f'a table: {result}')


def squeeze(text):
    return re.sub(r'\s+', '', text)


@case('fifty prompts on one node and on two')
def _(t):
    """More than steps' rows, slots of the KV cache per chunk, and labels."""
    arguments = [a for i in range(50) for a in ('-p', f'{"KING RENZO static".split()[i % 3]} {i}')]
    reports = []
    for nodes in ('1', '2'):
        t.run('run', '-m', env.demo, *arguments, '-n', '6', '--ctx', '64', '--ignore-eos', '--nodes',
              nodes, '--slots', '30%', '--report', t.tmp / 'r')
        reports.append(json.loads((t.tmp / 'r').read_text())['sequences'])
    check_equal(len(reports[0]), 50, 'sequences')
    for a, b in zip(*reports):
        check_equal((a['ids'], a['logits_digest']), (b['ids'], b['logits_digest']), 'a sequence')


@case('no tokens')
def _(t):
    for nodes in ([], ['--nodes', '2']):
        out = t.run('run', '-m', env.demo, '-p', 'hi', '-n', '0', '--quiet', '--report', t.tmp / 'r',
                    *nodes).out
        check_equal(out.strip(), '', 'text')
        sequence, = json.loads((t.tmp / 'r').read_text())['sequences']
        check_equal((sequence['tokens'], sequence['ids'], sequence['ttft_ns']), (0, [], 0), 'tokens')


@case('one token')
def _(t):
    for nodes in ([], ['--nodes', '3']):
        t.run('run', '-m', env.demo, '-p', 'KING', '-n', '1', '--report', t.tmp / 'r', '--verify',
              *nodes, out='memory: yes')
        sequence, = json.loads((t.tmp / 'r').read_text())['sequences']
        check_equal((sequence['tokens'], sequence['decode_ns']), (1, 0), 'tokens')


@case('the context filled to the last position')
def _(t):
    report = t.tmp / 'r'
    t.run('run', '-m', env.demo, '-p', 'KING', '-n', '63', '--ctx', '64', '--ignore-eos',
          '--report', report)
    sequence, = json.loads(report.read_text())['sequences']
    check_equal(sequence['prompt_tokens'] + sequence['tokens'], 64, 'positions')
    t.run('run', '-m', env.demo, '-p', 'KING', '-n', '64', '--ctx', '64', code=1, err='raise --ctx')


# ---- sampling and stopping

def ids_of(t, *options):
    report = t.tmp / 'r'
    t.run('run', '-m', env.demo, '-p', 'KING RICHARD:', '-n', '40', '--ignore-eos', '--report',
          report, *options)
    return json.loads(report.read_text())['sequences'][0]['ids']


@case('--temp and --seed: reproducible, and different')
def _(t):
    greedy = ids_of(t)
    hot = ids_of(t, '--temp', '1.0', '--seed', '3')
    check(hot != greedy, 'a temperature changes nothing')
    check_equal(ids_of(t, '--temp', '1.0', '--seed', '3'), hot, 'the same seed')
    check_equal(ids_of(t, '--temp', '1.0', '--seed', '3', '--nodes', '3', '--slots', '2'), hot,
                'the same seed on three nodes')
    check(ids_of(t, '--temp', '1.0', '--seed', '4') != hot, 'another seed changes nothing')
    check_equal(ids_of(t, '--temp', '0', '--seed', '4'), greedy, 'a seed without temperature')
    check_equal(ids_of(t, '--temp', '1.0', '--top-k', '1', '--seed', '5'), greedy, 'the best of one')
    check_equal(ids_of(t, '--temp', '1.0', '--top-p', '0.000001'), greedy, 'almost no probability')
    check(ids_of(t, '--temp', '1.0', '--seed', '3', '--top-k', '5') != greedy, 'five')


@case('the seed of the second prompt is one more')
def _(t):
    def sequences(*options):
        t.run('run', '-m', env.demo, '-n', '20', '--temp', '1', '--report', t.tmp / 'r', *options)
        return [s['ids'] for s in json.loads((t.tmp / 'r').read_text())['sequences']]
    both = sequences('-p', 'KING', '-p', 'KING', '--seed', '7')
    check(both[0] != both[1], 'two prompts with one seed')
    check_equal(sequences('-p', 'KING', '--seed', '8'), both[1:], 'the second')


@case('a stop string ends the text before it')
def _(t):
    prompt = Golden(env.demo).prompts[0]
    whole = prompt['greedy_text']
    for stops in (['nothing'], ['nothing but\nTo'], ['but', 'thing'], ['\n\n'], ['zebra'],
                  [whole[:1]], [whole[10:60]], ['a', 'e', 'i', 'o', 'u', 'H', 'zebra', 'horse']):
        options = [o for s in stops for o in ('--stop', s)]
        for nodes in ([], ['--nodes', '2']):
            out = t.run('run', '-m', env.demo, '-p', prompt['text'], '-n', '48', *options,
                        '--report', t.tmp / 'r', '--quiet').out
            found = [whole.find(s) for s in stops if s in whole]
            wanted = whole[:min(found)] if found else whole
            check_equal(out, wanted + '\n', f'text with {stops}')
            sequence, = json.loads((t.tmp / 'r').read_text())['sequences']
            check_equal(sequence['end'], 'stop' if found else 'length', 'end')


@case('the end of the text ends it, and --ignore-eos does not')
def _(t):
    """The demo model with a word that it says after a while as its end token."""
    prompt = Golden(env.demo).prompts[0]
    at = next(i for i, word in enumerate(prompt['greedy']) if i > 8 and word not in
              prompt['greedy'][:i])
    g = gguffile.Gguf(env.demo.read_bytes())
    g.keys['tokenizer.ggml.eos_token_id'] = u32(prompt['greedy'][at])
    model = t.file('model.gguf', g.bytes())
    for nodes in ([], ['--nodes', '2']):
        for options, end, ids in (([], 'eos', prompt['greedy'][:at]),
                                  (['--ignore-eos'], 'length', prompt['greedy'])):
            t.run('run', '-m', model, '-p', prompt['text'], '-n', '48', '--report', t.tmp / 'r',
                  *options, *nodes)
            sequence, = json.loads((t.tmp / 'r').read_text())['sequences']
            check_equal((sequence['end'], sequence['ids']), (end, ids), f'end with {options}')
            check_equal(sequence['tokens'], len(ids), 'tokens')


@case('characters come whole')
def _(t):
    """Random bytes from a random model: whatever it says, the output is UTF-8."""
    model = t.file('model.gguf', gguffile.make_model(seed=5).bytes())
    for seed in range(5):
        raw = t.run('run', '-m', model, '-p', 'è', '-n', '200', '--temp', '2', '--seed', str(seed),
                    '--quiet', '--ignore-eos').raw
        raw.decode('utf-8')
        check(len(raw) > 50, f'{raw!r}')


# ---- processors

def threads_of(t, processors, *options):
    """Compute threads of each node, where the command may run on these processors."""
    t.run('run', '-m', env.demo, '-p', 'hi', '-n', '1', '--report', t.tmp / 'r', *options,
          before=lambda: os.sched_setaffinity(0, processors))
    return [n['threads'] for n in json.loads((t.tmp / 'r').read_text())['nodes']]


@case('threads: the processors that the command may run on, shared by the nodes')
def _(t):
    processors = sorted(os.sched_getaffinity(0))
    for count in {1, 2, 3, min(4, len(processors))}:
        some = processors[:count]
        for nodes in (1, 2, 3):
            check_equal(threads_of(t, some, '--nodes', str(nodes)),
                        [max(1, len(some) // nodes)] * nodes, f'threads on {len(some)} processors')
        check_equal(threads_of(t, some), [len(some)], f'threads on {len(some)} processors')
    check_equal(threads_of(t, processors[:1], '--nodes', '2', '-t', '2'), [2, 2], 'with -t 2')


@case('a NUL that the model says is passed on')
def _(t):
    """A model of zeros always says its first token, which here is the byte 0."""
    g = gguffile.make_model()
    for tensor in g.tensors:
        tensor.data = bytes(len(tensor.data))
    g.keys['tokenizer.ggml.tokens'] = gguffile.strings(['\u0100', *gguffile.byte_stand_ins()[1:],
                                                        '<|end|>'])
    model = t.file('model.gguf', g.bytes())
    common = ('run', '-m', model, '-n', '5', '--quiet', '--ignore-eos')
    check_equal(t.run(*common, '-p', 'a').raw, bytes(5) + b'\n', 'text of one prompt')
    check_equal(t.run(*common, '-p', 'a', '-p', 'b').raw.split(b'\n'),
                [b'[0.0] ' + bytes(5), b'[0.1] ' + bytes(5), b''], 'text of two')
    check_equal(sorted(t.run(*common, '-p', 'a', '-p', 'b', '--nodes', '2').raw.split(b'\n')[-3:]),
                [b'', b'[0] ' + bytes(5), b'[1] ' + bytes(5)], 'text of two nodes')


# ---- odd places

@case('from another folder, by a relative path, with the model open elsewhere')
def _(t):
    t.file('model.gguf', env.demo.read_bytes())
    wanted = run_text(t, '-p', 'KING')
    got = subprocess.run([env.shunt, 'run', '-m', 'model.gguf', '-p', 'KING', '-n', '16', '--quiet',
                          '--report', 'report.json'], cwd=t.tmp, capture_output=True, text=True,
                         timeout=60)
    check_equal((got.returncode, got.stdout), (0, wanted), f'{got}')
    check((t.tmp / 'report.json').exists(), 'no report')


@case('with an empty environment and few descriptors')
def _(t):
    def few():
        os.environ.clear()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    check_equal(run_text(t, '-p', 'KING', before=few), run_text(t, '-p', 'KING'), 'text')
    t.run('run', '-m', env.demo, '-p', 'KING', '-n', '4', '--nodes', '3', before=few)


@case('with too few descriptors: said, not hung')
def _(t):
    for limit in range(4, 40, 3):
        for nodes in ([], ['--nodes', '3']):
            result = t.start('run', '-m', env.demo, '-p', 'KING', '-n', '4', *nodes, before=lambda:
                             resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))).wait(20)
            check(result.code in (0, 1), f'{limit} descriptors: {result}')
            check(result.code == 0 or result.err.startswith('shunt: '), f'{limit}: {result}')


@case('with no descriptor for signals: no node is started')
def _(t):
    """Four: the standard streams, and the one with which a program reads its libraries."""
    for extra in (0, 1):
        result = t.start('run', '-m', env.demo, '-p', 'KING', '--nodes', '2', before=lambda:
                         resource.setrlimit(resource.RLIMIT_NOFILE, (4 + extra, 4 + extra))).wait()
        check_equal((result.code, result.out), (1, ''), f'end of {result}')
        check_equal(result.err, ('shunt: signalfd: Too many open files\n',
                                 'shunt: cannot listen on 127.0.0.1: Too many open files\n')[extra],
                    f'stderr with {4 + extra} descriptors')


@case('with little address space: said, not crashed')
def _(t):
    for mib in (20, 40, 60, 80, 100, 150):
        result = t.start('run', '-m', env.demo, '-p', 'KING', '-n', '4', before=lambda:
                         resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))).wait(20)
        check(result.code in (0, 1, 127), f'{mib} MiB: {result}')
        check(result.code == 0 or result.err, f'{mib} MiB: {result}')


if __name__ == '__main__':
    main()
