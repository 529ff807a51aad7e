#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What happens when a node dies, hangs or is told to stop, in every phase of a run: the others end
within a second and name it, no process and no half-written file is left.
"""
import fcntl
import os
import re
import signal
import struct
import termios
import time

import gguffile
from shunttest import (case, check, check_equal, cpu_seconds, doctor, env, established, free_ports,
                       is_alive, main, note, proc_stat, rack_of, seconds_to_end, wait_until,
                       without_suspicions)

WITHIN_S = 1.0  # what a rack may take to end after one of its nodes has died

# Slow enough to be caught in the act, and without an end of their own.
SLOW = ['--slots', '2', '--ctx', '4096']
DECODE = ['-p', 'KING RICHARD:', '-n', '4000', '--ignore-eos']


def prefill(t):
    """A prompt of some 3000 ids, one position at a time."""
    text = (env.root / 'tools/demo/prompts/code.txt').read_text()
    return ['-f', t.file('long', (text * 200)[:6000]), '-n', '4', '--chunk', '1']


def start_local(t, *arguments, nodes=3, **how):
    return t.start('run', '-m', env.demo, '--nodes', str(nodes), *SLOW, *arguments, **how)


def until_decode(process):
    wait_until(lambda: len(process.out()) > 100, 'text')
    check(process.running(), lambda: f'ended by itself: {process.wait()}')


def until_prefill(process, pids):
    wait_until(lambda: all(cpu_seconds(p) >= 0.2 for p in pids), 'work on the prompt')
    check(process.running(), lambda: f'ended by itself: {process.wait()}')


def no_text(process):
    text = process.out().decode()
    check(not re.search(r'^\[\d\](?! prompt)', text, re.M), f'text came during the prompt: {text!r}')


def check_named(text, rank):
    check(re.search(rf'(rank|node) {rank}\b.*(gone|killed|ended|left|failed)', text),
          f'rank {rank} is not named: {text!r}')


def check_no_files(t, *allowed):
    left = [e.name for e in t.tmp.iterdir() if not e.name.startswith('process-')]
    check_equal(sorted(left), sorted(allowed), 'files left')


# ---- kill -9 of a node: one rack of --nodes

def kill_in(t, phase, rank, *options):
    report = t.tmp / 'report.json'
    what = prefill(t) if phase == 'prefill' else DECODE
    process = start_local(t, *what, *options, '--report', report)
    nodes = process.nodes(3)
    until_prefill(process, nodes) if phase == 'prefill' else until_decode(process)
    others = [n for r, n in enumerate(nodes) if r != rank] + [process.pid]
    times = seconds_to_end(others, lambda: os.kill(nodes[rank], signal.SIGKILL))
    result = process.wait()
    if phase == 'prefill':
        no_text(process)
    note(f'{phase}, rank {rank}: nodes ended after {max(times[p] for p in others[:-1]):.3f} s, '
         f'the command after {times[process.pid]:.3f} s')
    check(max(times.values()) < WITHIN_S, f'ended after {times}')
    check_equal(result.code, 1, f'exit code of {result}')
    check_named(result.err, rank)
    check_equal(without_suspicions(result.err).count('\n'), 1, f'lines of {result.err!r}')
    check_no_files(t, *(['long'] if phase == 'prefill' else []))


for phase in ('prefill', 'decode'):
    for rank in range(3):
        case(f'kill -9 of rank {rank} during {phase}', phase, rank)(kill_in)


@case('kill -9 of a node that shares memory')
def _(t):
    """What it shared goes with the last that had it mapped."""
    before = os.listdir('/dev/shm')
    kill_in(t, 'decode', 1, '--transport', 'shm')
    check_equal(os.listdir('/dev/shm'), before, 'files in /dev/shm')


@case('kill -9 of a node that only serves')
def _(t):
    """Two users, so that rank 2 has no rows of its own."""
    process = start_local(t, *DECODE, *DECODE[:2])
    nodes = process.nodes(3)
    until_decode(process)
    times = seconds_to_end([*nodes[:2], process.pid], lambda: os.kill(nodes[2], signal.SIGKILL))
    check(max(times.values()) < WITHIN_S, f'ended after {times}')
    check_named(process.wait().err, 2)


@case('kill -9 of each node soon after the start')
def _(t):
    """Wherever it is: opening the model, joining, loading."""
    for delay in (0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03):
        for rank in range(3):
            process = start_local(t, *DECODE)
            nodes = process.nodes(3)
            time.sleep(delay)
            others = [n for r, n in enumerate(nodes) if r != rank] + [process.pid]
            times = seconds_to_end(others, lambda: os.kill(nodes[rank], signal.SIGKILL))
            result = process.wait()
            check(max(times.values()) < WITHIN_S, f'after {delay} s: ended after {times}')
            check_equal(result.code, 1, f'after {delay} s: exit code of {result}')
            check_named(result.err, rank)


# ---- kill -9 of a node: separate commands

def start_rack(t, run, *options, ports=None, **how):
    """Return: processes by rank."""
    ports = ports or free_ports(3)
    common = ('-m', env.demo, '--rack', rack_of(ports), *SLOW, *options)
    return [t.start('node', '--rank', str(r), *common) if r > 0
            else t.start('run', '--rank', str(r), *common, *run, **how) for r in range(3)], ports


def check_others(t, processes, rank, act, within=WITHIN_S):
    others = [p for r, p in enumerate(processes) if r != rank]
    times = seconds_to_end([p.pid for p in others], act)
    for p in others:
        result = p.wait()
        check_equal(result.code, 1, f'exit code of {result}')
        check_named(result.err, rank)
        check_equal(without_suspicions(result.err).count('\n'), 1, f'lines of {result.err!r}')
    check(max(times.values()) < within, f'ended after {times}')
    return max(times.values())


def kill_separate(t, phase, rank):
    if phase == 'prefill':
        processes, _ = start_rack(t, prefill(t))
        until_prefill(processes[0], [p.pid for p in processes])
    else:
        processes, _ = start_rack(t, DECODE)
        until_decode(processes[0])
    took = check_others(t, processes, rank, lambda: processes[rank].signal(signal.SIGKILL))
    check_equal(processes[rank].wait().code, -9, 'the one that was killed')
    note(f'{phase}, rank {rank}: the others ended after {took:.3f} s')


for phase in ('prefill', 'decode'):
    for rank in range(3):
        case(f'separate commands: kill -9 of rank {rank} during {phase}', phase, rank)(
            kill_separate)


def kill_idle(t, rank):
    """The only user's output is not taken any more, so no step is made."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    try:
        processes, _ = start_rack(t, DECODE, stdout=write_end)
        seconds = None
        while seconds is None or [cpu_seconds(p.pid) for p in processes[1:]] != seconds:
            seconds = [cpu_seconds(p.pid) for p in processes[1:]]
            time.sleep(0.5)
        servers = [p for r, p in enumerate(processes) if r not in (0, rank)]
        times = seconds_to_end([p.pid for p in servers],
                               lambda: processes[rank].signal(signal.SIGKILL))
        check(max(times.values()) < WITHIN_S, f'ended after {times}')
        for p in servers:
            check_named(p.wait().err, rank)
    finally:
        os.close(read_end)  # now rank 0 has nobody to write to
        os.close(write_end)
    for p in processes:
        p.wait()


for rank in range(3):
    case(f'separate commands: kill -9 of rank {rank} while the rack is idle', rank)(kill_idle)


@case('separate commands: kill -9 of a node while the last one is awaited')
def _(t):
    """Ranks 0 and 1 have found each other, rank 2 never comes."""
    for rank in (0, 1):
        ports = free_ports(3)
        processes = [t.start('node', '-m', env.demo, '--rank', str(r), '--rack', rack_of(ports))
                     for r in range(2)]
        wait_until(lambda: established(ports[0]) == 1, 'two of three')
        time.sleep(0.1)
        check_others(t, processes, rank, lambda: processes[rank].signal(signal.SIGKILL))
        check_equal(processes[rank].wait().code, -9, 'the one that was killed')


# ---- a node that does not answer

@case('a model that is written to while it is in use')
def _(t):
    """With the same bytes: it is the writing that is noticed."""
    model = t.file('model.gguf', env.demo.read_bytes())
    for options in (('--slots', '2'), ('--nodes', '2', '--slots', '2')):
        process = t.start('run', '-m', model, '-p', 'KING', '-n', '2000', '--ignore-eos', *options)
        until_decode(process)
        with open(model, 'r+b') as f:
            f.seek(5 << 20)
            same = f.read(1 << 20)
            f.seek(5 << 20)
            f.write(same)
        result = process.wait(10)
        check_equal(result.code, 1, f'exit code of {result}')
        check(re.search(r'model\.gguf was written to while it was in use', result.err), f'{result}')


@case('a node that is stopped counts as dead after --dead-after')
def _(t):
    process = start_local(t, *DECODE, '--dead-after', '1')
    nodes = process.nodes(3)
    until_decode(process)
    times = seconds_to_end([nodes[0], nodes[2]], lambda: os.kill(nodes[1], signal.SIGSTOP))
    check(0.8 < min(times.values()) and max(times.values()) < 2, f'ended after {times}')
    result = process.wait(10)  # it ends the one that is stopped
    check_equal(result.code, 1, f'exit code of {result}')
    check(re.search(r'rank 1 .*nothing heard for 1\.\d s \(--dead-after\)', result.err), result.err)


@case('a node that is stopped is dead after half a second, if nothing else is said')
def _(t):
    for key in ([], ['--key-file', t.key()] if doctor()['TLS'][0] == 'ok' else []):
        process = start_local(t, *DECODE, *key)
        nodes = process.nodes(3)
        until_decode(process)
        times = seconds_to_end([nodes[0], nodes[2]], lambda: os.kill(nodes[1], signal.SIGSTOP))
        note(f'ended after {max(times.values()):.3f} s')
        check(0.45 < min(times.values()) and max(times.values()) < 0.9, f'ended after {times}')
        result = process.wait(10)
        check(re.search(r'rank 1 .*nothing heard for 0\.5 s', result.err), result.err)


@case('separate commands: a node that is stopped, and goes on later')
def _(t):
    processes, _ = start_rack(t, DECODE, '--dead-after', '1')
    until_decode(processes[0])
    took = check_others(t, processes, 1, lambda: processes[1].signal(signal.SIGSTOP), within=2)
    check(took > 0.8, f'dead after {took}')
    processes[1].signal(signal.SIGCONT)
    result = processes[1].wait(10)
    check_equal(result.code, 1, f'exit code of {result}')
    check(re.search(r'rank [02] .*(gone|left|failed)', result.err), f'{result}')


@case('a node that is stopped for less than that is waited for')
def _(t):
    process = start_local(t, '-p', 'KING', '-n', '2000', '--ignore-eos', '--verify')
    nodes = process.nodes(3)
    until_decode(process)
    for node in nodes:
        os.kill(node, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(node, signal.SIGCONT)
    result = process.wait()
    check_equal(result.code, 0, f'exit code of {result}')
    check(re.search(r'rank \d \(\S+\) is silent for 0\.\d\d s', result.err), f'{result}')
    check(re.search(r'rank \d \(\S+\) is back', result.err), f'{result}')
    check('memory: yes' in result.out, f'{result}')


# ---- told to stop

def check_stopped(t, process, act, allowed=(), within=WITHIN_S):
    pids = [process.pid, *[p for p in process.nodes_now() if is_alive(p)]]
    times = seconds_to_end(pids, act)
    result = process.wait()
    check(result.code in (130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP),
          f'exit code of {result}')
    check_equal(result.err, '', f'stderr of {result}')
    check(max(times.values()) < within, f'ended after {times}')
    check_no_files(t, *allowed)
    return max(times.values())


def stop(t, number, how, phase, local):
    report = ['--report', t.tmp / 'report.json']
    what = prefill(t) if phase == 'prefill' else DECODE
    allowed = ['long'] if phase == 'prefill' else []
    if local:
        process = start_local(t, *what, *report)
        process.nodes(3)
    else:
        process = t.start('run', '-m', env.demo, *SLOW, *what, *report)
    if phase == 'prefill':
        until_prefill(process, process.nodes_now() or [process.pid])
    else:
        until_decode(process)
    act = {'command': process.signal, 'group': process.signal_group}[how]
    took = check_stopped(t, process, lambda: act(number), allowed)
    note(f'ended after {took:.3f} s')


for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    for how in ('command', 'group'):
        case(f'{number.name} to the {how} of a rack', number, how, 'decode', True)(stop)
case('SIGINT to the group of a rack during the prompt', signal.SIGINT, 'group', 'prefill', True)(
    stop)
case('SIGTERM to a rack during the prompt', signal.SIGTERM, 'command', 'prefill', True)(stop)
case('SIGINT to one node', signal.SIGINT, 'command', 'decode', False)(stop)
case('SIGTERM to one node during the prompt', signal.SIGTERM, 'command', 'prefill', False)(stop)


@case('SIGINT to the group soon after the start')
def _(t):
    for step in range(12):
        process = start_local(t, *DECODE, '--report', t.tmp / 'report.json')
        wait_until(lambda: b'shunt' in cmdline(process.pid), 'exec')
        time.sleep(0.003 * step)
        check_stopped(t, process, lambda: process.signal_group(signal.SIGINT))
        for e in t.tmp.iterdir():
            e.unlink()


def cmdline(pid):
    with open(f'/proc/{pid}/cmdline', 'rb') as f:
        return f.read()


# ---- told to stop while the model is being opened

def slow_to_open(t):
    """A vocabulary of two million words, which takes a good part of a second to take in."""
    words = [f'word{i:x}' for i in range(2_000_000)]
    g = gguffile.make_model()
    g.keys['tokenizer.ggml.tokens'] = gguffile.strings(
        gguffile.byte_stand_ins() + ['<|end|>'] + words)
    g.keys['tokenizer.ggml.token_type'] = gguffile.integers([1] * 256 + [3] + [4] * len(words))
    # The embeddings come last, and are a hole.
    embeddings = g.tensors.pop(0)
    g.bytes()
    embeddings.dims[1] += len(words)
    embeddings.data, embeddings.off = None, len(g.data) + -len(g.data) % 32
    g.tensors.append(embeddings)
    path = t.file('model.gguf', g.bytes())
    os.truncate(path, path.stat().st_size + 32 + 4 * 32 * embeddings.dims[1])
    return path


def opens(pid, path):
    folder = f'/proc/{pid}/fd'
    return any(os.path.realpath(f'{folder}/{fd}') == str(path) for fd in os.listdir(folder))


def blocks(pid, number):
    with open(f'/proc/{pid}/status', encoding='utf-8') as f:
        return int(re.search(r'SigBlk:\s*(\w+)', f.read()).group(1), 16) >> (number - 1) & 1


def start_slowly(t, nodes):
    """Return: a command, and its nodes, each stopped while it opens the model."""
    path = slow_to_open(t)
    process = t.start('run', '-m', path, '-p', 'hi', '--report', t.tmp / 'report.json',
                      *(['--nodes', str(nodes)] if nodes else []))
    pids = process.nodes(nodes) if nodes else [process.pid]
    for pid in pids:
        wait_until(lambda: opens(pid, path), 'the model is open', interval=0.001)
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        wait_until(lambda: proc_stat(pid)[0] == 'T', 'stopped', interval=0.001)
        check(not any(blocks(pid, n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
              'a signal would wait until the model is open')
    return process, pids


def stop_while_opening(t, number, how, nodes):
    process, pids = start_slowly(t, nodes)

    def act():
        {'command': process.signal, 'group': process.signal_group}[how](number)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    took = check_stopped(t, process, act, ['model.gguf'])
    check_equal(process.wait().code, 130 if nodes else -number, 'exit code')
    note(f'ended after {took:.3f} s')


for number, how, nodes in ((signal.SIGINT, 'group', 0), (signal.SIGINT, 'group', 2),
                           (signal.SIGTERM, 'command', 0), (signal.SIGTERM, 'command', 2),
                           (signal.SIGHUP, 'command', 1)):
    case(f'{number.name} to the {how} while the model is opened, '
         f'{f"--nodes {nodes}" if nodes else "one node"}', number, how, nodes)(stop_while_opening)


@case('SIGTERM to one of two nodes while the model is opened')
def _(t):
    process, pids = start_slowly(t, 2)

    def act():
        os.kill(pids[1], signal.SIGTERM)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    times = seconds_to_end([process.pid, *pids], act)
    result = process.wait()
    check_equal(result.code, 130, f'exit code of {result}')
    check_named(result.err, 1)
    check(max(times.values()) < WITHIN_S, f'ended after {times}')
    check_no_files(t, 'model.gguf')


@case('SIGINT and SIGTERM while the others are awaited')
def _(t):
    for number in (signal.SIGINT, signal.SIGTERM):
        ports = free_ports(2)
        common = ('-m', env.demo, '--rack', rack_of(ports), '--join-timeout', '30')
        for command in (('node', '--rank', '0'), ('run', '--rank', '1', '-p', 'hi', '--report',
                                                  t.tmp / 'report.json')):
            process = t.start(*command, *common)
            time.sleep(0.3)
            check_stopped(t, process, lambda: process.signal(number))


@case('SIGINT while the prompt is awaited')
def _(t):
    read, write = os.pipe()
    try:
        for nodes in ([], ['--nodes', '2']):
            process = t.start('run', '-m', env.demo, *nodes, '--report', t.tmp / 'r', stdin=read)
            time.sleep(0.2)
            check_stopped(t, process, lambda: process.signal(signal.SIGINT))
    finally:
        os.close(read)
        os.close(write)


@case('SIGINT during --verify')
def _(t):
    process = start_local(t, '-p', 'KING', '-n', '4000', '--ignore-eos', '--verify', '--report',
                          t.tmp / 'report.json', nodes=2)
    process.nodes(2)
    wait_until(lambda: not process.nodes_now(), 'the end of the rack')
    check(process.running(), lambda: f'ended too soon: {process.wait()}')
    check_stopped(t, process, lambda: process.signal(signal.SIGINT))


@case('SIGTERM during eval leaves no logits')
def _(t):
    ids = t.ids([5] * 4000)
    process = t.start('eval', '-m', env.demo, '--ids-file', ids, '--logits', t.tmp / 'l', '--report',
                      t.tmp / 'r', '--slots', '2', '--chunk', '1', '--nodes', '2')
    until_prefill(process, process.nodes(2))
    check_stopped(t, process, lambda: process.signal(signal.SIGTERM), ['ids'])


@case('separate commands: a node that is told to stop leaves')
def _(t):
    for rank in range(3):
        processes, _ = start_rack(t, DECODE)
        until_decode(processes[0])
        took = check_others(t, processes, rank, lambda: processes[rank].signal(signal.SIGTERM))
        result = processes[rank].wait()
        check_equal((result.code, result.err), (130, ''), f'the one that was told: {result}')
        for p in processes:
            check(p is processes[rank] or 'has left the rack' in p.result.err, p.result.err)
        note(f'rank {rank}: the others ended after {took:.3f} s')


@case('kill -9 of the command ends its nodes')
def _(t):
    for phase in ('prefill', 'decode'):
        process = start_local(t, *(prefill(t) if phase == 'prefill' else DECODE))
        nodes = process.nodes(3)
        until_prefill(process, nodes) if phase == 'prefill' else until_decode(process)
        times = seconds_to_end(nodes, lambda: process.signal(signal.SIGKILL))
        check_equal(process.wait().code, -9, 'exit code')
        check(max(times.values()) < WITHIN_S, f'ended after {times}')


# ---- standard output

def piped(t, *arguments, size=4096, **how):
    """A command whose output goes into a small pipe. Return: process, the pipe's other end."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, size)
    process = t.start(*arguments, stdout=write, **how)
    os.close(write)
    return process, os.fdopen(read, 'rb', buffering=0)


def until_full(pipe):
    """The pipe takes no more: for half a second nothing has been added."""
    def filled():
        return struct.unpack('i', fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]

    def settled():
        before = filled()
        time.sleep(0.5)
        return before == filled() > 0
    wait_until(settled, 'a full pipe')


@case('a reader that goes away ends the run, quietly')
def _(t):
    """As in: shunt run ... | head -1"""
    report = t.tmp / 'report.json'
    for nodes in ([], ['--nodes', '3']):
        process, pipe = piped(t, 'run', '-m', env.demo, *SLOW, *DECODE, *nodes, '--report', report)
        pids = [process.pid, *(process.nodes(3) if nodes else [])]
        check(pipe.read(1), 'some text')
        times = seconds_to_end(pids, pipe.close)
        result = process.wait()
        check_equal((result.code, result.err), (-signal.SIGPIPE, ''), f'end of {result}')
        check(max(times.values()) < 2, f'ended after {times}')
        check_no_files(t)


@case('a reader that goes away where SIGPIPE is ignored')
def _(t):
    process, pipe = piped(t, 'run', '-m', env.demo, *SLOW, '-p', 'KING', '-n', '300',
                          before=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN))
    pipe.close()
    result = process.wait()
    check_equal(result.code, 1, f'exit code of {result}')


@case('a reader that stops reading for seconds breaks nothing')
def _(t):
    command = ['run', '-m', env.demo, '-n', '1500', '--ignore-eos', '--ctx', '2048', '--quiet',
               '-p', 'KING', '-p', 'Renzo', '--dead-after', '1', '--step-timeout', '1']
    wanted = {}
    for nodes in ([], ['--nodes', '2']):
        wanted = t.run(*command, *nodes).out
        process, pipe = piped(t, *command, *nodes)
        got = pipe.read(1)
        time.sleep(3)
        check(process.running(), lambda: f'ended while nobody read: {process.wait()}')
        while chunk := pipe.read(65536):
            got += chunk
        pipe.close()
        check_equal(process.wait().code, 0, f'exit code of {process.wait()}')
        # Who comes first is a matter of time; what each says is not.
        check_equal(sorted(got.decode().splitlines()), sorted(wanted.splitlines()), 'text')


@case('a rack is told to stop while nobody reads its output')
def _(t):
    for nodes in ([], ['--nodes', '2']):
        process, pipe = piped(t, 'run', '-m', env.demo, '--ctx', '4096', *DECODE, *nodes)
        until_full(pipe)
        check_stopped(t, process, lambda: process.signal(signal.SIGTERM), within=4)
        pipe.close()


@case('a node of a rack dies while nobody reads its output')
def _(t):
    process, pipe = piped(t, 'run', '-m', env.demo, '--ctx', '4096', *DECODE, '--nodes', '2')
    nodes = process.nodes(2)
    until_full(pipe)
    seconds_to_end(nodes, lambda: os.kill(nodes[1], signal.SIGKILL))
    while pipe.read(65536):
        pass
    pipe.close()
    check_equal(process.wait(10).code, 1, 'exit code')


# ---- under load

@case('a rack of eight on two processors ends in time')
def _(t):
    process = start_local(t, *DECODE, nodes=8)
    nodes = process.nodes(8)
    until_decode(process)
    others = [n for n in nodes if n != nodes[5]] + [process.pid]
    times = seconds_to_end(others, lambda: os.kill(nodes[5], signal.SIGKILL))
    note(f'ended after {max(times.values()):.3f} s')
    check(max(times.values()) < WITHIN_S, f'ended after {times}')
    check_named(process.wait().err, 5)


if __name__ == '__main__':
    main()
