# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: both sides interleaved, one JSON line per figure.

A figure is the median of the rounds' values; low and high are their quartiles. Where it is a ratio,
each round's value is the ratio of what the two sides gave in that round, one right after the other.
"""
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def machine():
    """The kind of machine, for the line that comes first: figures of others are others."""
    model = 'unknown processor'
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            model = line.split(':', 1)[1].strip()
            break
    return {'machine': model, 'processors': len(os.sched_getaffinity(0)),
            'kernel': platform.release()}


def print_machine(command):
    print(json.dumps({'command': command, **machine()}), flush=True)


def figure(name, values, unit, *, peer=None, goal=None, hardware='real'):
    """Prints one figure of these values, one of each round. Return: the median."""
    if not values:
        print(f'{name}: nothing was measured', file=sys.stderr)
        return None
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, n=4, method='inclusive') if len(ordered) > 1 else [ordered[0]] * 3
    value = statistics.median(ordered)
    line = {'figure': name, 'value': round(value, 4), 'low': round(quartiles[0], 4),
            'high': round(quartiles[2], 4), 'unit': unit, 'n': len(values), 'hardware': hardware}
    if peer:
        line['peer'] = peer
    if goal:
        line['goal'] = goal
    print(json.dumps(line), flush=True)
    return value


def ratios(ours, theirs):
    return [a / b for a, b in zip(ours, theirs) if a and b]


def need(*programs):
    """Peers are Debian packages; those that are missing are installed where that may be."""
    packages = {'iperf3': 'iperf3', 'qperf': 'qperf', 'sockperf': 'sockperf',
                'ucx_perftest': 'ucx-utils', 'ib_write_bw': 'perftest', 'valgrind': 'valgrind',
                'strace': 'strace', 'gcc': 'gcc', 'taskset': 'util-linux'}
    missing = [packages[p] for p in programs if not shutil.which(p)]
    if not missing:
        return
    command = ['apt-get', 'install', '-y', '-qq', '--no-install-recommends', *missing]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        sys.exit(f'missing: {" ".join(missing)}; as root: {" ".join(command)}')
