#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model of the size people use: a GGUF with the header and shape of Qwen3-30B-A3B (Q4_K_M, 17 GiB,
extents beyond 4 GiB; a hole where the weights are) opens, is inspected, and decodes on three nodes
within --memory 2G each.
"""
import json
import re
import shutil
import subprocess
import sys

from shunttest import (DEADLINE, Skip, case, check, check_equal, children_of, env, main,
                       mem_available, note, watch)

GIB = 1 << 30
LAYERS, EXPERTS, USED, IDS = 48, 128, 8, [65, 66, 67, 68]
LIMIT = 2 * GIB

made = {}


def make_sparse(path, *options):
    script = env.root / 'tests' / 'script' / 'make_sparse_model.py'
    done = subprocess.run([sys.executable, script, path, *options], capture_output=True, text=True,
                          timeout=DEADLINE)
    if done.returncode or path.stat().st_blocks * 512 > GIB // 4:
        if path.exists():
            path.unlink()
        raise Skip(f'no sparse files here: {done.stderr[-200:].strip()}')


def model():
    if 'skip' in made:
        raise Skip(made['skip'])
    if 'path' not in made:
        path = env.tmp / 'sparse.gguf'
        if shutil.disk_usage(env.tmp).free < GIB:
            made['skip'] = f'less than 1 GiB is free in {env.tmp}'
            raise Skip(made['skip'])
        try:
            make_sparse(path)
        except Skip as skip:
            made['skip'] = str(skip)
            raise
        made['path'] = path
    return made['path']


@case('it is inspected')
def _(t):
    result = t.run('inspect', model(), '--tensors', '--experts', '--nodes', '3')
    for pattern in (r'architecture +qwen3moe: sparse', r'layers +48, hidden 2048, 32 heads \(4 kv\) '
                    r'of 128, context 40960', r'experts +128 per layer, 8 used, width 768',
                    r'vocabulary +151936 ids', r'parameters +30\.5\d G', r'6144 experts in all'):
        check(re.search(pattern, result.out), f'lacks {pattern!r}: {result.out[:2000]}')
    extents = [tuple(map(int, e)) for e in re.findall(r'(\d+) \+(\d+)', result.out)]
    check_equal(len(extents), 3 * LAYERS * EXPERTS, 'extents')
    size = model().stat().st_size
    check(size > 16 * GIB, f'{size} bytes')
    check_equal(max(off + length for off, length in extents), size, 'end of the last expert')
    check(sum(off > 4 * GIB for off, _ in extents) > len(extents) // 2, 'few beyond 4 GiB')
    check(result.seconds < 10, f'{result.seconds:.1f} s for a header')


@case('half of that is refused')
def _(t):
    """The weights that every node keeps take most of it."""
    t.run('run', '-m', model(), '-p', 'hi', '--nodes', '3', '--memory', '1G', code=1,
          err=r'\d MiB of memory are needed, and 1024 MiB given.*non-expert weights.*Raise --memory')


@case('--verify where one node cannot hold the model')
def _(t):
    """The run is done: its figures are not lost."""
    path = t.tmp / 'wide.gguf'
    if mem_available() > 256 * GIB:
        raise Skip('too much memory: a rack would need much of it as well')
    # 512 experts, together larger than what this machine has; a matrix of Q4_K has 1152 bytes for
    # each of its rows of 2048 columns.
    width = mem_available() // (512 * 3 * 1152) // 256 * 256 + 256
    make_sparse(path, '--layers', '8', '--experts', '64', '--vocab', '512', '--ff', str(width))
    report = t.tmp / 'report.json'
    result = t.run('run', '-m', path, '-p', 'A', '-n', '1', '--ctx', '16', '--nodes', '2',
                   '--slots', '9', '--verify', '--report', report, code=1,
                   err='^shunt: the answers are not verified: .*memory are needed.*\n$')
    check('peak memory' in result.out and 'identical' not in result.out, f'no table: {result}')
    report = json.loads(report.read_text())
    check_equal(report['identical_to_one_node'], None, 'verified')
    check_equal([n['tokens'] for n in report['nodes']], [1, 0], 'tokens')


@case('it decodes on three nodes within 2 GiB each')
def _(t):
    if mem_available() < 7 * GIB:
        raise Skip(f'{mem_available() / GIB:.1f} GiB of memory available, 7 are needed')
    report = t.tmp / 'report.json'
    process = t.start('eval', '-m', model(), '--ids-file', t.ids(IDS), '--greedy', '3', '--nodes',
                      '3', '--memory', '2G', '--report', report)
    with watch(lambda: children_of(process.pid)) as watcher:
        result = process.wait()
    check_equal(result.code, 0, f'exit code of {result}')
    nodes = json.loads(report.read_text())['nodes']
    note(f'{result.seconds:.1f} s; peak {[round(n["vm_hwm_bytes"] / GIB, 2) for n in nodes]} GiB, '
         f'{[n["slot_count"] for n in nodes]} slots')
    check_equal(len(result.out.split()), 3, 'ids')
    rows = len(IDS) + 2
    calls = nodes[0]['calls_local'] + nodes[0]['calls_peer'] + nodes[0]['calls_read']
    check_equal(calls, rows * LAYERS * USED, 'expert calls')
    for n in nodes:
        check(GIB < n['vm_hwm_bytes'] <= LIMIT, f'peak {n["vm_hwm_bytes"]}')
        check(n['slot_count'] > 100, f'{n["slot_count"]} slots')
    peaks = watcher.peaks
    check(len(peaks) == 3 and max(peaks.values()) <= LIMIT, f'seen from outside: {peaks}')
    check(sum(n['calls_peer'] for n in nodes) > 0, 'no call went to a peer')


if __name__ == '__main__':
    main()
