# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: both sides interleaved, one JSON line per figure.

A figure is the median of the rounds' values; low and high are their quartiles. Where it is a ratio,
each round's value is the ratio of what the two sides gave in that round, one right after the other.
`n` rounds gave a value; `failed` did not, on either side, and are left out of it.
"""
import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
without_value = []


def arguments(doc, only):
    """The options that every benchmark has. `only`: its parts."""
    p = argparse.ArgumentParser(description=doc,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='few rounds: within a minute or so')
    p.add_argument('--build', type=Path, default=ROOT / 'build', metavar='DIR')
    p.add_argument('--only', choices=only)
    a = p.parse_args()
    a.build = a.build.resolve()
    if not (a.build / 'tools' / 'shunt').exists():
        p.error(f'{a.build}: no build with the shunt command; --build DIR names one')
    return a


@contextlib.contextmanager
def guest(a, script, timeout, **env):
    """A guest of the lab with two processors that has run this, with what it has left; None, said,
    where there is no lab."""
    sys.path.insert(0, str(ROOT / 'tests' / 'lab'))
    import lab
    try:
        kernel = lab.prepare(install=True)
    except lab.NoLab as reason:
        print(f'no figures of verbs: {reason}', file=sys.stderr)
        yield None
        return
    folder = a.build / 'lab' / 'bench'
    folder.mkdir(parents=True, exist_ok=True)
    env['SHUNT'] = a.build / 'tools' / 'shunt'
    with lab.Guests(kernel, folder, 1, script, cpus=2, env=env) as guests:
        code, = guests.wait(timeout)
        if code:
            print(guests.story(0), file=sys.stderr)
        yield guests


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


def middle(values):
    """Return: the median and the quartiles."""
    if not values:
        return None, None, None
    low, _, high = (statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else
                    values * 3)
    return tuple(round(v, 4) for v in (statistics.median(values), low, high))


def figure(name, values, unit, *, peer=None, goal=None, hardware='real'):
    """Prints one figure of these values, one of each round: None for a round that failed. Return:
    the median, None where all have."""
    value, low, high = middle([v for v in values if v is not None])
    failed = sum(v is None for v in values)
    if value is None:
        without_value.append(name)
    line = {'figure': name, 'value': value, 'low': low, 'high': high, 'unit': unit,
            'n': len(values) - failed, 'failed': failed, 'hardware': hardware}
    if peer:
        line['peer'] = peer
    if goal:
        line['goal'] = goal
    print(json.dumps(line), flush=True)
    return value


def finish():
    """The end of a benchmark, which has failed when a figure could not be measured."""
    if without_value:
        sys.exit(f'could not be measured: {", ".join(without_value)}')


def ratios(ours, theirs):
    """Of each round; None where a side has failed."""
    return [a / b if a and b else None for a, b in zip(ours, theirs)]


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
