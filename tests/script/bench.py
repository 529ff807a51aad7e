#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""shunt bench from outside: its options, the JSON it writes, and what can be counted. No figure of
time is looked at: this machine may do anything meanwhile.
"""
import json
import os
import re
import socket

from shunttest import (case, check, check_equal, env, established, free_ports, main, rack_of,
                       wait_until)

HEAD = '''bench_version shunt_version bench transport device hardware emulated oversubscribed'''.split()
TIMES = 'count min_ns p50_ns p99_ns p99.9_ns max_ns'.split()
ROW_HEADER, ENTRY = 64, 8  # of a message, and of a (token, expert) pair in it


def measure(t, *arguments, **how):
    """Return: what --json wrote."""
    path = t.tmp / 'bench.json'
    result = t.run('bench', *arguments, '--json', path, **how)
    o = json.loads(path.read_text())
    hint = r'shunt: \d+ nodes poll on \d+ processors?, so times are those .*\n'
    check(re.fullmatch(hint if o['oversubscribed'] else '', result.err), f'stderr: {result.err!r}')
    return o, result.out


def check_head(o, out, bench, transport):
    check_equal({k: o[k] for k in HEAD if k not in ('device', 'hardware', 'oversubscribed')},
                {'bench_version': 1, 'shunt_version': env.version, 'bench': bench,
                 'transport': transport, 'emulated': False}, 'head')
    check_equal((o['device'], o['hardware']), (None, 'host'), 'what it ran on')
    check(out.startswith(f"shunt {env.version}, bench {bench} over {transport}: no RDMA"),
          f'first line: {out[:80]!r}')


def check_times(times, count):
    check_equal(list(times), TIMES, 'fields of times')
    check_equal(times['count'], count, 'samples')
    values = [times[k] for k in TIMES[1:]]
    check(values == sorted(values) and values[0] > 0, f'order of {values}')


# ---- link

def link(t, transport):
    o, out = measure(t, 'link', '--local', '--transport', transport, '-s', '1000', '-n', '300')
    check_head(o, out, 'link', transport)
    check_equal((o['bidirectional'], len(o['sizes'])), (False, 1), 'what was measured')
    size = o['sizes'][0]
    check_equal((size['bytes'], size['messages']), (1000, 300), 'messages')
    check_times(size['latency'], 300)
    check(size['bytes_per_second'] > 0 and size['duration_ns'] > 0, f'{size}')


for name in ('tcp', 'shm'):
    case(f'link over {name}', name)(link)


@case('link: every size')
def _(t):
    o, out = measure(t, 'link', '--local', '--transport', 'shm', '-a', '-n', '5')
    check_equal([s['bytes'] for s in o['sizes']], [1 << i for i in range(24)], 'sizes')
    check_equal(re.findall(r'^ +(\d+) ', out, re.M), [str(1 << i) for i in range(24)], 'lines')
    for s in o['sizes']:
        check_times(s['latency'], 5)
        check_equal(s['messages'], 5, 'messages')


@case('link: no bytes, both directions')
def _(t):
    o, out = measure(t, 'link', '--local', '-s', '0', '-n', '50', '-b')
    check_equal((o['bidirectional'], o['sizes'][0]['messages']), (True, 100), 'messages')
    check_equal(o['sizes'][0]['bytes_per_second'], 0, 'bytes')
    check('both' in out, out)


@case('link: the later of two that exclude each other holds')
def _(t):
    def messages(*options):
        o, _ = measure(t, 'link', '--local', '--transport', 'shm', '--only', 'bandwidth', *options)
        return [s['messages'] for s in o['sizes']]
    check_equal(messages('-D', '9', '-n', '7', '-a', '-s', '16'), [7], 'one size, so often')
    check_equal(messages('-s', '16', '-n', '5', '-a'), [5] * 24, 'all sizes')
    check(messages('-n', '1', '-D', '0.1')[0] > 1, 'for a time')


@case('link: for a time')
def _(t):
    o, _ = measure(t, 'link', '--local', '--transport', 'shm', '-D', '0.2')
    size = o['sizes'][0]
    check(size['messages'] > 10 and size['latency']['count'] > 10, f'{size}')
    check(size['duration_ns'] >= 0.2e9, f'{size}')


@case('link: longer than it may be silent')
def _(t):
    o, _ = measure(t, 'link', '--local', '-D', '2.5', '--step-timeout', '1', '-s', '64K')
    check(o['sizes'][0]['duration_ns'] >= 2.5e9, f'{o["sizes"]}')


@case('link: one measurement alone')
def _(t):
    both = {'bytes', 'latency', 'messages', 'duration_ns', 'bytes_per_second'}
    for only, fields, columns in (('latency', {'bytes', 'latency'}, 5),
                                  ('bandwidth', both - {'latency'}, 2)):
        o, out = measure(t, 'link', '--local', '--only', only, '-n', '20')
        check_equal(set(o['sizes'][0]), fields, only)
        check_equal(len(out.splitlines()[-1].split()), columns, 'columns')


@case('link: waits that sleep')
def _(t):
    for transport in ('tcp', 'shm'):
        o, _ = measure(t, 'link', '--local', '--transport', transport, '--busy-poll', '0', '-n',
                       '300', '-b')
        check_equal((o['sizes'][0]['latency']['count'], o['sizes'][0]['messages']), (300, 600),
                    transport)


@case('link: a server and a client')
def _(t):
    address = f'127.0.0.1:{free_ports(1)[0]}'
    server = t.start('bench', 'link', '--listen', address)
    o, _ = measure(t, 'link', address, '-n', '20', '-s', '8M')
    check_equal((o['sizes'][0]['bytes'], o['sizes'][0]['messages']), (8 << 20, 20), 'messages')
    result = server.wait()
    check_equal((result.code, result.out), (0, ''), f'end of {result}')
    check(re.fullmatch(r'listening on 127\.0\.0\.1:\d+\n', result.err), f'{result.err!r}')


@case('link: a server that cannot listen does not say that it does')
def _(t):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        result = t.run('bench', 'link', '--listen', f'127.0.0.1:{taken.getsockname()[1]}', code=1)
    check('listening' not in result.err and 'is taken' in result.err, f'{result.err!r}')
    result = t.run('bench', 'link', '--listen', '127.0.0.1:1', '--key-file', '/none', code=1)
    check('listening' not in result.err and '/none' in result.err, f'{result.err!r}')


@case('more nodes than processors: times are said to be the scheduler\'s')
def _(t):
    shape = ['--hidden', '64', '-n', '2', '--transport', 'shm']
    one = {os.sched_getaffinity(0).pop()}
    for options, said in ([], True), (['--busy-poll', '50'], False):
        result = t.run('bench', 'dispatch', *shape, *options, '--json', '-',
                       before=lambda: os.sched_setaffinity(0, one))
        check_equal('2 nodes poll on 1 processor, so times' in result.err, said, options)
        check_equal(json.loads(result.out)['oversubscribed'], said, options)


@case('figures on a standard output that is closed')
def _(t):
    for command in (['bench', 'link', '--local', '-n', '2', '--json', '-'],
                    ['bench', 'dispatch', '-n', '2', '--json', '/dev/stdout']):
        result = t.run(*command, code=1, before=lambda: os.close(1))
        check('cannot be written' in result.err, f'{result.err!r}')


@case('link: nobody there')
def _(t):
    t.run('bench', 'link', f'127.0.0.1:{free_ports(1)[0]}', '--join-timeout', '0.3', code=1,
          err='rank 0')


@case('link: a client that is killed')
def _(t):
    address = f'127.0.0.1:{free_ports(1)[0]}'
    server = t.start('bench', 'link', '--listen', address)
    client = t.start('bench', 'link', address, '-D', '60')
    port = int(address.split(':')[1])
    wait_until(lambda: established(port), 'a connection')
    client.signal(9)
    client.wait()
    result = server.wait()
    check_equal(result.code, 1, f'end of {result}')
    check('rank 1' in result.err, result.err)


@case('link: figures that cannot be written are not measured')
def _(t):
    t.run('bench', 'link', '--local', '-D', '60', '--json', t.tmp / 'nowhere' / 'x', code=1,
          err='nowhere/x: cannot be written')


@case('figures on standard output are there alone')
def _(t):
    path = t.file('-', 'mine')
    for bench in (['link', '--local'], ['dispatch']):
        result = t.run('bench', *bench, '-n', '3', '--json', '-', before=lambda: os.chdir(t.tmp))
        check_equal(json.loads(result.out)['bench'], bench[0], 'all of the output')
    check_equal(path.read_text(), 'mine', 'a file of this name')


# ---- dispatch

def all_to_all(t, nodes, transport):
    """Every token takes every expert, so that all can be counted by hand."""
    tokens, hidden, n = 5, 100, 30
    o, out = measure(t, 'dispatch', '--nodes', str(nodes), '--transport', transport, '--dtype',
                     'f32', '--tokens', str(tokens), '--hidden', str(hidden), '--experts',
                     str(2 * nodes), '--top-k', str(2 * nodes), '-n', str(n))
    check_head(o, out, 'dispatch', transport)
    check_equal(o['shape'], {'nodes': nodes, 'tokens': tokens, 'hidden': hidden,
                             'experts': 2 * nodes, 'top_k': 2 * nodes, 'dispatch': 'f32',
                             'combine': 'f32', 'routing': 'uniform', 'seed': 1}, 'shape')
    check_equal(o['iterations'], n, 'iterations')
    peers, pairs = nodes - 1, 2 * tokens
    wanted = {'dispatch': ROW_HEADER + tokens * hidden * 4 + pairs * ENTRY,
              'combine': ROW_HEADER + pairs * hidden * 4}
    for phase, size in wanted.items():
        check_times(o[phase]['times'], n)
        check_equal(o[phase]['bytes'], n * peers * size, f'bytes of {phase}')
        check_equal(o[phase]['puts'], n * peers, f'puts of {phase}: one for each peer')
        check_equal(o[phase]['writes'], n * peers, f'writes of {phase}')
        check(o[phase]['signalled'] <= n * peers, f'{phase} asked for completions')


for nodes, name in ((2, 'tcp'), (2, 'shm'), (4, 'tcp'), (4, 'shm')):
    case(f'dispatch: {nodes} nodes over {name}', nodes, name)(all_to_all)


@case("dispatch: the field's shape, and one token")
def _(t):
    o, _ = measure(t, 'dispatch', '--preset', 'deepep', '--transport', 'shm', '-n', '3')
    check_equal(o['shape'], {'nodes': 2, 'tokens': 128, 'hidden': 7168, 'experts': 256, 'top_k': 8,
                             'dispatch': 'fp8', 'combine': 'bf16', 'routing': 'uniform',
                             'seed': 1}, 'shape')
    row, pairs = 7168 + 7168 // 128 * 4, 128 * 8
    # A token has an expert on the other node in all but about 1 of 2^8 cases.
    check(3 * 120 * row < o['dispatch']['bytes'] < 3 * (ROW_HEADER + 128 * row + pairs * ENTRY),
          f'{o["dispatch"]["bytes"]} bytes dispatched')
    check(0.8 < o['combine']['bytes'] / (3 * pairs / 2 * 7168 * 2) < 1.2,
          f'{o["combine"]["bytes"]} bytes combined')
    o, _ = measure(t, 'dispatch', '--preset', 'deepep', '--tokens', '1', '-n', '3')
    check(0 < o['dispatch']['bytes'] <= 3 * (ROW_HEADER + row + 8 * ENTRY), 'one token')


@case('dispatch: the seed decides, and popular experts make it uneven')
def _(t):
    def bytes_of(*options):
        o, _ = measure(t, 'dispatch', '--nodes', '4', '--transport', 'shm', '--hidden', '64', '-n',
                       '8', *options)
        return o['dispatch']['bytes'], o['combine']['bytes']
    check_equal(bytes_of('--seed', '7'), bytes_of('--seed', '7'), 'bytes of one seed')
    check(bytes_of('--seed', '7') != bytes_of('--seed', '8'), 'two seeds are one')
    check(bytes_of('--routing', 'zipf') != bytes_of(), 'zipf is uniform')


@case('dispatch: separate commands, which must want the same')
def _(t):
    rack = rack_of(free_ports(2))
    other = t.start('bench', 'dispatch', '--rack', rack, '--rank', '1', '-n', '5')
    o, _ = measure(t, 'dispatch', '--rack', rack, '--rank', '0', '-n', '5')
    check_equal((o['shape']['nodes'], other.wait().code), (2, 0), 'a rack of two')
    rack = rack_of(free_ports(2))
    other = t.start('bench', 'dispatch', '--rack', rack, '--rank', '1', '--tokens', '7',
                    '--join-timeout', '5')
    t.run('bench', 'dispatch', '--rack', rack, '--rank', '0', '--tokens', '8', '--join-timeout',
          '5', code=1, err='rank')
    check_equal(other.wait().code, 1, 'the other')


# ---- wrong usage

WRONG = {
    'nothing': ([], 'usage: shunt bench link'),
    'another bench': (['lynx'], "'lynx' is neither link nor dispatch"),
    'a size too large': (['link', '-s', '9M'], "--size: '9M' is no size of at most 8M"),
    'no iterations': (['link', '-n', '0'], "--iterations: '0' is no number from 1"),
    'a transport that is none': (['link', '--transport', 'rdma'], 'none of tcp'),
    'two servers': (['link', 'a:1', 'b:2'], "'b:2': one server is enough"),
    'both ends and a server': (['link', '--local', 'a:1'], 'which?'),
    'a size for the server': (['link', '--listen', '127.0.0.1:1', '-s', '64'],
                              '--size: the client says what is measured'),
    'both directions for the server': (['link', '-b'], '--bidirectional: the client says'),
    'figures of the server': (['link', '--json', '/nowhere/x'], '--json: the client says'),
    'both directions of a latency': (['link', '--local', '-b', '--only', 'latency'],
                                     '--bidirectional is of bandwidth'),
    'a measurement that is none': (['link', '--only', 'x'], 'neither latency nor bandwidth'),
    'a device that is not used': (['link', '-d', 'mlx5_0'], '--ib-dev is for --transport verbs, not tcp'),
    'a dtype that is none': (['dispatch', '--dtype', 'fp4'], "'fp4' is none of f32"),
    'a preset that is none': (['dispatch', '--preset', 'x'], 'none of deepep'),
    'a routing that is none': (['dispatch', '--routing', 'x'], 'neither uniform nor zipf'),
    'one node': (['dispatch', '--nodes', '1'], 'from 2 to 64'),
    'a rank alone': (['dispatch', '--rank', '0'], 'belong together'),
    'a rank outside': (['dispatch', '--rank', '2', '--rack', 'a:1,b:2'], 'has 2 nodes'),
}


for what, (arguments, message) in WRONG.items():
    @case(f'wrong: {what}', arguments, message)
    def _(t, arguments, message):
        t.run('bench', *arguments, code=2, err=re.escape(message))


@case('wrong: figures in place of a key')
def _(t):
    key = t.file('key', '00' * 32)
    for bench in (['link', '--local'], ['dispatch']):
        for option in ('--key-file', '--cert', '--cert-key', '--ca'):
            t.run('bench', *bench, option, key, '--json', key, code=2,
                  err='--json: .* is read by this command')
    check_equal(key.read_text(), '00' * 32, 'the key')


@case('wrong: rows in TLS where there is none')
def _(t):
    key = t.file('key', '00' * 32)
    key.chmod(0o600)
    for bench in (['link', '--local'], ['dispatch']):
        t.run('bench', *bench, '--transport', 'shm', '--key-file', key, '--encrypt', code=1,
              err='cannot be encrypted over shm')


@case('wrong: fewer experts than nodes')
def _(t):
    t.run('bench', 'dispatch', '--nodes', '3', '--experts', '2', '--top-k', '1', code=1,
          err='2 experts: at least one on each of 3 nodes')


@case('help names every option')
def _(t):
    source = (env.root / 'tools' / 'shunt' / 'bench.c').read_text()
    options = set(re.findall(r'^\s*\{"(--[a-z-]+)", ', source, re.M))
    listed = set()
    for bench in ('link', 'dispatch'):
        result = t.run('bench', bench, '--help')
        check(result.out.startswith(f'usage: shunt bench {bench}'), result.out[:80])
        listed |= set(re.findall(r'^  (?:-.,|   ) (--[a-z-]+)', result.out, re.M))
    check_equal(listed, options, 'options')
    compared = set(re.findall(r'strcmp\(name, "(--[a-z-]+)"\)', source))
    check(compared <= options, f'not listed: {compared - options}')
    manual = (env.root / 'tools' / 'shunt.1').read_text()
    manual = manual[manual.index('.Ss Options of bench'):].replace('Fl -', '--')
    check_equal([o for o in sorted(options) if o not in manual and o != '--local'
                 and o != '--listen'], [], 'options that the manual does not name')


main()
