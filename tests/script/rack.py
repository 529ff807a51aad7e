#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A rack computes what one node computes: the same bytes however many nodes, slots, and ways to
read; started by --nodes or as separate commands, in any order; and its report adds up.
"""
import filecmp
import itertools
import json
import os
import re
import socket
import time

from shunttest import (Golden, case, check, check_equal, env, free_ports, main, need, note,
                       rack_of)

LAYERS, USED, EXPERTS, EXPERT_BYTES = 6, 4, 192, 3 * 13056  # of the demo model
GREEDY = 24

NODE_FIELDS = '''
    rank threads chunk slot_count slots_used steps decode_steps prompt_tokens tokens
    calls_local calls_peer calls_read bytes_startup bytes_demand bytes_speculative bytes_placement
    reads_demand reads_speculative reads_placement speculative_useful speculative_late
    speculative_wasted speculative_pending rows_sent rows_received bytes_sent bytes_received
    wait_read_ns wait_peer_ns placement_epoch placed_count memory_bytes memory_limit_bytes
    vm_hwm_bytes kernels io io_direct transport'''.split()
SEQUENCE_FIELDS = '''
    rank prompt_tokens tokens ttft_ns decode_ns end logits_digest ids'''.split()
REPORT_FIELDS = '''
    report_version shunt_version model nodes sequences identical_to_one_node'''.split()


def prompt_ids():
    """Two domains in one prompt, so that many experts take part."""
    prompts = Golden(env.demo).prompts
    return prompts[0]['ids'] + prompts[1]['ids'] + prompts[2]['ids']


def evaluate(t, name, *options):
    """Return: path of the logits, the line of greedy ids, the report."""
    out, report = t.tmp / f'{name}.f32', t.tmp / f'{name}.json'
    result = t.run('eval', '-m', env.demo, '--ids-file', t.ids(prompt_ids()), '--logits', out,
                   '--greedy', str(GREEDY), '--report', report, *options)
    return out, result.out, json.loads(report.read_text())


def same_as_one_node(t, *options):
    alone, ids_alone, _ = evaluate(t, 'alone', '--slots', '100%', '--prefetch', 'off')
    logits, ids, report = evaluate(t, 'rack', *options)
    check(alone.stat().st_size == len(prompt_ids()) * Golden(env.demo).vocab * 4, 'logits are cut')
    check(filecmp.cmp(alone, logits, shallow=False), f'logits differ with {options}')
    check_equal(ids, ids_alone, 'greedy ids')
    check_adds_up(report)
    return report


# ---- the report

def check_adds_up(report, prompts=1):
    check_equal(sorted(report), sorted(REPORT_FIELDS), 'fields of the report')
    nodes, sequences = report['nodes'], report['sequences']
    check_equal(report['report_version'], 1, 'version')
    check_equal(report['shunt_version'], env.version, 'version of shunt')
    check_equal([n['rank'] for n in nodes], list(range(len(nodes))), 'ranks')
    check_equal(len(sequences), prompts, 'sequences')
    for s in sequences:
        check_sequence(s)
    for n in nodes:
        check_node(n, [s for s in sequences if s['rank'] == n['rank']], len(nodes))
    for sent, received in (('rows_sent', 'rows_received'), ('bytes_sent', 'bytes_received')):
        check_equal(sum(n[sent] for n in nodes), sum(n[received] for n in nodes),
                    f'{sent} and {received} of all nodes')
    for shared in ('steps', 'decode_steps', 'kernels', 'transport'):
        check_equal(len({n[shared] for n in nodes}), 1, f'different {shared}')


def check_sequence(s):
    check_equal(sorted(s), sorted(SEQUENCE_FIELDS), 'fields of a sequence')
    check_equal(s['tokens'], len(s['ids']), 'tokens and ids')
    check_equal(s['end'], 'length', 'end')
    check(re.fullmatch('[0-9a-f]{16}', s['logits_digest']), f'digest {s["logits_digest"]}')
    check(s['ttft_ns'] > 0 and s['decode_ns'] > 0, f'times of {s}')


def check_node(n, own, node_count):
    check_equal(sorted(n), sorted(NODE_FIELDS), 'fields of a node')
    for total in ('prompt_tokens', 'tokens'):
        check_equal(n[total], sum(s[total] for s in own), f'{total} of rank {n["rank"]}')
    # The last token of a sequence is chosen, not computed with.
    rows = sum(s['prompt_tokens'] + s['tokens'] - 1 for s in own)
    calls = n['calls_local'] + n['calls_peer'] + n['calls_read']
    check_equal(calls, rows * LAYERS * USED, f'expert calls of rank {n["rank"]}')
    guesses = [n[f'speculative_{how}'] for how in ('useful', 'late', 'wasted', 'pending')]
    check_equal(sum(guesses), n['reads_speculative'], f'guesses of rank {n["rank"]}: {guesses}')
    reads = n['reads_demand'] + n['reads_speculative'] + n['reads_placement']
    asked = n['bytes_demand'] + n['bytes_speculative'] + n['bytes_placement']
    rounded = EXPERT_BYTES + 3 * 2 * 4096  # at most, with either end of a matrix rounded out
    check(asked <= reads * rounded, f'{asked} bytes in {reads} reads')
    check(asked >= (reads - n['speculative_wasted']) * EXPERT_BYTES, f'{asked} bytes in {reads}')
    check(2 <= n['slot_count'] <= EXPERTS and n['slots_used'] <= n['slot_count'],
          f'{n["slots_used"]} of {n["slot_count"]} slots')
    check(n['bytes_startup'] > 800_000, f'startup read {n["bytes_startup"]}')
    check(0 < n['memory_bytes'] and 0 < n['vm_hwm_bytes'] < 1 << 30, f'memory {n["vm_hwm_bytes"]}')
    if node_count == 1:
        check_equal((n['rows_sent'], n['rows_received'], n['calls_peer'], n['transport']),
                    (0, 0, 0, 'none'), 'traffic of a single node')
    else:
        check(n['transport'] in ('tcp', 'shm'), f'transport {n["transport"]}')


# ---- the same bytes

@case('one prompt id more gives other bytes')
def _(t):
    """The comparison itself."""
    a, _, _ = evaluate(t, 'a')
    ids = prompt_ids()
    b = t.tmp / 'b.f32'
    t.run('eval', '-m', env.demo, '--ids-file', t.ids([ids[0] + 1] + ids[1:]), '--logits', b)
    check(not filecmp.cmp(a, b, shallow=False), 'the same bytes for another prompt')


def way(t, nodes, slots, prefetch, io, mode):
    if io == 'uring':
        need('io_uring')
    if mode == 'direct':
        need('O_DIRECT')
    report = same_as_one_node(t, '--nodes', nodes, '--slots', slots, '--prefetch', prefetch,
                              '--io', io, '--io-mode', mode)
    for n in report['nodes']:
        check_equal(n['slot_count'], {'2': 2, '40%': 77, '100%': EXPERTS}[slots], 'slots')
        check_equal(n['io'], {'uring': 'io_uring', 'pread': 'pread'}[io], 'io')
        check_equal(n['io_direct'], mode == 'direct', 'O_DIRECT')
        check(prefetch == 'on' or n['reads_speculative'] == 0, 'speculative reads without prefetch')
    if prefetch == 'on' and slots == '40%':
        check(sum(n['reads_speculative'] for n in report['nodes']) > 0, 'no guess was made')


for nodes, slots, prefetch in itertools.product('23', ('2', '40%', '100%'), ('on', 'off')):
    for io, mode in itertools.product(('uring', 'pread'), ('direct', 'buffered')):
        # Reading in another way matters least where little is read.
        if slots == '100%' and (io, mode) != ('uring', 'direct'):
            continue
        case(f'{nodes} nodes, {slots} slots, prefetch {prefetch}, {io}, {mode}',
             nodes, slots, prefetch, io, mode)(way)

for options in ('--nodes 3 --chunk 1', '--nodes 3 --chunk 7 --threads 2',
                '--nodes 2 --placement spread', '--nodes 2 --placement off',
                '--nodes 3 --plan-interval 0.05 --slots 40%', '--nodes 3 --memory 24M',
                '--nodes 8 --slots 5%'):
    case(options, *options.split())(same_as_one_node)


@case('rows through memory that the nodes share')
def _(t):
    """As one command and as separate ones; the memory has no name that could stay behind."""
    before = os.listdir('/dev/shm')
    report = same_as_one_node(t, '--nodes', '3', '--slots', '40%', '--transport', 'shm')
    check_equal({n['transport'] for n in report['nodes']}, {'shm'}, 'transport')
    rack = rack_of(free_ports(2))
    node = t.start('node', '-m', env.demo, '--rank', '1', '--rack', rack, '--transport', 'shm')
    logits, _, report = evaluate(t, 'separate', '--rank', '0', '--rack', rack, '--transport', 'shm')
    check(filecmp.cmp(t.tmp / 'alone.f32', logits, shallow=False), 'logits differ')
    check_equal(report['nodes'][0]['transport'], 'shm', 'transport')
    check_equal(node.wait().code, 0, 'exit code of a node')
    check_equal(os.listdir('/dev/shm'), before, 'files in /dev/shm')


@case('one node of a rack may use other kernels, slots and chunks than the next')
def _(t):
    """All that a node chooses for itself, at once; the kernels are the best that all have."""
    alone, ids_alone, _ = evaluate(t, 'alone', '--kernels', 'ref')
    rack = rack_of(free_ports(3))
    nodes = [t.start('node', '-m', env.demo, '--rank', '1', '--rack', rack, '--slots', '2'),
             t.start('node', '-m', env.demo, '--rank', '2', '--rack', rack, '--slots', '90%',
                     '--kernels', 'ref', '--threads', '2', '--io', 'pread')]
    logits, ids, report = evaluate(t, 'rack', '--rank', '0', '--rack', rack, '--slots', '10%',
                                   '--chunk', '5', '--prefetch', 'off')
    check(filecmp.cmp(alone, logits, shallow=False), 'logits differ')
    check_equal(ids, ids_alone, 'greedy ids')
    check_equal(report['nodes'][0]['kernels'], 'ref', 'kernels')
    for n in nodes:
        check_equal(n.wait().code, 0, 'exit code of a node')


@case('eval on every rank: rank 0 evaluates, the others serve')
def _(t):
    """With the same command line, and with as little as `node` needs."""
    alone, ids_alone, _ = evaluate(t, 'alone')
    rack = rack_of(free_ports(3))
    more = ('--ids-file', t.tmp / 'ids', '--logits', t.tmp / 'none', '--greedy', str(GREEDY),
            '--report', t.tmp / 'one.json')
    others = [t.start('eval', '-m', env.demo, '--rack', rack, '--rank', '1', *more),
              t.start('eval', '-m', env.demo, '--rack', rack, '--rank', '2')]
    logits, ids, _ = evaluate(t, 'rack', '--rank', '0', '--rack', rack)
    check(filecmp.cmp(alone, logits, shallow=False), 'logits differ')
    check_equal(ids, ids_alone, 'greedy ids')
    for process in others:
        result = process.wait()
        check_equal((result.code, result.out, result.err), (0, '', ''), f'end of {result}')
    check(not (t.tmp / 'none').exists(), 'rank 1 has written logits')
    report = json.loads((t.tmp / 'one.json').read_text())
    check_equal(([n['rank'] for n in report['nodes']], report['sequences']), ([1], []),
                'report of rank 1')


# ---- run

def run_and_verify(t, nodes, prompts, *options):
    report = t.tmp / 'report.json'
    texts = [p['text'] for p in Golden(env.demo).prompts if p['text']]
    arguments = [a for i in range(prompts) for a in ('-p', texts[i % 3])]
    t.run('run', '-m', env.demo, '--nodes', str(nodes), '-n', '20', '--ignore-eos', '--verify',
          *arguments, '--report', report, *options,
          out=r'\nidentical to one node with every expert in memory: yes\n$')
    report = json.loads(report.read_text())
    check_equal(report['identical_to_one_node'], True, 'in the report')
    check_adds_up(report, prompts)
    check_equal([s['rank'] for s in report['sequences']], [i % nodes for i in range(prompts)],
                'who took which prompt')


for nodes, prompts, options in ((1, 1, ()), (1, 3, ('--slots', '2')), (2, 1, ('--slots', '40%')),
                                (2, 5, ('--slots', '2')), (3, 3, ('--slots', '40%')),
                                (3, 7, ('--slots', '100%')), (3, 2, ('--prefetch', 'off')),
                                (3, 3, ('--temp', '0.9', '--seed', '7', '--slots', '40%')),
                                (3, 3, ('--plan-interval', '0.02', '--slots', '40%'))):
    case(f'run: {prompts} prompts on {nodes} nodes {" ".join(options)}', nodes, prompts,
         *options)(run_and_verify)


# ---- separate commands

def separate(t, ports, order, pause=0.1, run=()):
    """Ranks 1 and 2 serve, rank 0 runs; started in this order. Return: the text of rank 0."""
    prompt = Golden(env.demo).prompts[0]
    started = {}
    for rank in order:
        common = ('-m', env.demo, '--rank', str(rank), '--rack', rack_of(ports), '--slots', '40%')
        if rank:
            started[rank] = t.start('node', *common)
        else:
            started[0] = t.start('run', *common, '-p', prompt['text'], '-n', '48', '--quiet', *run)
        time.sleep(pause)
    for process in started.values():
        result = process.wait()
        check_equal((result.code, result.err), (0, ''), f'end of {result}')
    check_equal([started[r].out() for r in (1, 2)], [b'', b''], 'output of nodes that serve')
    check_equal(started[0].result.out, prompt['greedy_text'] + '\n', 'text')


@case('separate commands, started in every order, on the same ports at once')
def _(t):
    ports = free_ports(3)
    for order in itertools.permutations(range(3)):
        begin = time.monotonic()
        separate(t, ports, order)
        note(f'order {order}: {time.monotonic() - begin:.2f} s')


@case('separate commands, all at once, twenty times on the same ports')
def _(t):
    ports = free_ports(3)
    for _ in range(20):
        separate(t, ports, (1, 0, 2), pause=0)


@case('a report of one node of a rack is its own')
def _(t):
    report = t.tmp / 'report.json'
    separate(t, free_ports(3), (0, 1, 2), 0, ('--report', report, '--ignore-eos'))
    report = json.loads(report.read_text())
    check_equal([n['rank'] for n in report['nodes']], [0], 'ranks')
    check_equal([s['rank'] for s in report['sequences']], [0], 'rank of the sequence')
    check_equal(report['identical_to_one_node'], None, 'verified')


@case('two ranks with prompts and one that serves')
def _(t):
    prompts, rack = Golden(env.demo).prompts, rack_of(free_ports(3))
    serving = t.start('node', '-m', env.demo, '--rank', '1', '--rack', rack)
    running = []
    for rank, index in ((0, 1), (2, 2)):
        report = t.tmp / f'{rank}.json'
        running.append((rank, index, report, t.start(
            'run', '-m', env.demo, '--rank', str(rank), '--rack', rack, '--slots', '20%', '-p',
            prompts[index]['text'], '-n', '48', '--quiet', '--report', report)))
    for rank, index, report, process in running:
        result = process.wait()
        check_equal((result.code, result.out), (0, prompts[index]['greedy_text'] + '\n'),
                    f'rank {rank}: {result}')
        check_equal([n['rank'] for n in json.loads(report.read_text())['nodes']], [rank], 'ranks')
    check_equal(serving.wait().code, 0, 'exit code of the node that serves')


@case('options of RDMA devices are named where rows travel over TCP')
def _(t):
    words = ('-m', env.demo, '-p', 'hi', '-n', '2', '--quiet')
    for option, value in (('--ib-dev', 'mlx5_0'), ('--ib-port', '1'), ('--gid-index', '0'),
                          ('--mtu', '4096'), ('--tclass', '0'), ('--sl', '0'),
                          ('--qp-timeout', '14'), ('--retry-count', '0')):
        result = t.run('run', '--nodes', '2', option, value, *words)
        check_equal(result.err, f'shunt: {option} has no effect: rows travel over tcp; '
                                '--transport verbs insists on RDMA\n', option)
    result = t.run('run', '--nodes', '2', *words, before=lambda: os.environ.update(
        NCCL_IB_TC='106', NCCL_IB_GID_INDEX='3'))
    check_equal(result.err, '', 'what is set for NCCL')
    rack = rack_of(free_ports(2))
    node = t.start('node', '-m', env.demo, '--rank', '1', '--rack', rack, '--tclass', '106')
    check_equal(t.run('run', '--rank', '0', '--rack', rack, *words).err, '', 'rank 0')
    check('--tclass has no effect' in node.wait().err, node.err())


@case('other ways to write an address')
def _(t):
    """localhost and IPv6, where the machine has it."""
    for host in ('localhost', '[::1]'):
        if host == '[::1]' and not has_ipv6():
            continue
        rack = ','.join(f'{host}:{p}' for p in free_ports(2))
        node = t.start('node', '-m', env.demo, '--rank', '1', '--rack', rack)
        t.run('run', '-m', env.demo, '--rank', '0', '--rack', rack, '-p', 'hi', '-n', '4')
        check_equal(node.wait().code, 0, f'exit code with {host}')


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(('::1', 0))
        return True
    except OSError:
        return False


if __name__ == '__main__':
    main()
