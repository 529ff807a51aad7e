# SPDX-License-Identifier: Apache-2.0
"""The cases of the lab: what is only true over a real (if emulated) network and RDMA devices.

Every rack here computes with `--kernels ref` (the guests' processor has no AVX), and what it
answers is compared with one node's answer, computed on the host by the same binary: the same bits.
"""
import json
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab import ROOT, Guests, NoLab, prepare

sys.path.insert(0, str(ROOT / 'tests' / 'script'))
from shunttest import Skip, check, check_equal, wait_until  # noqa: E402

DEMO = ROOT / 'tools/demo/qwen3moe-demo-Q8_0.gguf'
PORT = 7170
STARVED = 0.4
TIMEOUT = 120  # of what takes 5 s here: a machine may be slow, and have other work
cases = []


class Case:
    def __init__(self, fn, name, args):
        self.fn, self.name, self.args = fn, name, args
        self.title = fn.__doc__.splitlines()[0].format(*args)


def case(*args, name=None):
    """Registers a function as a case, called with the lab and these arguments; they complete its
    name and its title."""
    def register(fn):
        words = '-'.join([name or fn.__name__, *map(str, args)])
        cases.append(Case(fn, re.sub('[ _]', '-', words), args))
        return fn
    return register


class Lab:
    """What a case has to work with: a build, a kernel, a folder of its own. `install`: what is
    missing may be fetched."""

    def __init__(self, kernel, build, folder, install):
        self.kernel, self.build, self.folder, self.install = kernel, build, folder, install
        self.shunt = build / 'tools' / 'shunt'
        self.started = []

    def guests(self, count, *commands, **how):
        guests = Guests(self.kernel, self.folder, count, '\n'.join(commands), **how)
        self.started.append(guests)
        return guests

    def excuse(self):
        """Why a failure has shown nothing, or None."""
        if any(guests.tripped() for guests in self.started):
            return "a guest's kernel died of the emulator (int3)"
        # Nodes that other work keeps from running fall silent.
        share = max((guests.starved() for guests in self.started), default=0)
        if share >= STARVED:
            return (f'guests waited {share:.0%} of the time for a processor of this machine, which '
                    'has other work')
        return None

    def one_node(self, *words):
        """The same on the host, alone."""
        done = subprocess.run(list(map(str, [self.shunt, *words])), capture_output=True, text=True,
                              timeout=TIMEOUT, stdin=subprocess.DEVNULL)
        check_equal(done.returncode, 0, f'exit code of one node here ({done.stderr.strip()})')


# ---- the words of a command

MODEL = ['-m', str(DEMO), '--kernels', 'ref']


def access(folder):
    """What makes nodes talk to other machines. The one place that knows."""
    key = folder / 'rack.key'
    if not key.exists():
        key.touch(0o600)
        key.write_text(secrets.token_hex(32) + '\n')
    return ['--key-file', str(key)]


def seat(lab, count, transport):
    """Of each guest in a rack of all. Each has memory for a part of the experts only."""
    addresses = ','.join(f'10.77.0.{n + 1}:{PORT}' for n in range(count))
    words = ['--rack', addresses, '--transport', transport, '--slots', '40%', *access(lab.folder)]
    return f'--rank $NODE {shlex.join(words)}'


def ended(guests, wanted, timeout=TIMEOUT):
    codes = guests.wait(timeout)
    check(codes == wanted, lambda: '\n'.join([
        f'exit codes {codes}, expected {wanted}', *map(guests.story, range(guests.count))]))


# ---- the contract of a transport

RAILS = {'one rail': '', 'two rails': 'rxe0,rxe2 rxe1,rxe3'}


def contract(lab, rails):
    """the contract that every transport keeps, over verbs and {0}"""
    program = lab.build / 'tests' / 'test-transport-verbs'
    if not program.exists():
        raise Skip(f'no {program.name} in the build: it is without verbs, or Criterion')
    devices = {'SHUNT_TEST_RDMA_DEVICES': RAILS[rails]} if RAILS[rails] else {}
    with lab.guests(1, f'{shlex.quote(str(program))} -j1 --tap || exit',
                    # Credit keeps a receive for whatever comes: nobody is ever told to try again.
                    'cat /sys/class/infiniband/*/ports/1/hw_counters/rcvd_rnr_err >/run/lab/rnr',
                    cpus=2, rails=2 if devices else 1, env=devices) as guests:
        ended(guests, [0], 3 * TIMEOUT)
        text = guests.text(0, 'stdout')
        check(re.search(r'^ok ', text, re.M) and not re.search(r'^not ok|# SKIP', text, re.M), text)
        check_equal(set(guests.text(0, 'rnr').split()), {'0'}, 'receiver not ready')


for rails in RAILS:
    case(rails, name='contract-verbs')(contract)


@case('dmabuf', name='memory')
def device_memory(lab, _):
    """memory of other devices (udmabuf) is registered, sent from and written into"""
    try:
        lab.kernel = prepare(install=lab.install, dmabuf=True)
    except NoLab as reason:
        raise Skip(str(reason)) from reason
    program = lab.build / 'tests' / 'test-transport-verbs'
    if not program.exists():
        raise Skip(f'no {program.name} in the build: it is without verbs, or Criterion')
    with lab.guests(1, '[ -c /dev/udmabuf ] || exit', f'{shlex.quote(str(lab.shunt))} doctor',
                    f'exec {shlex.quote(str(program))} -j1 --tap '
                    "--filter 'verbs/moves_memory_of_other_devices'", cpus=2) as guests:
        ended(guests, [0])
        text = guests.text(0, 'stdout')
        check(re.search(r'^ok +GPU memory .*by DMA-BUF$', text, re.M), text)
        check(re.search(r'^ok - verbs::moves_memory_of_other_devices +\(', text, re.M), text)


# ---- what a layer's traffic costs, counted

ITERATIONS = 100


def dispatch_commands(lab, tokens, under=''):
    """Both nodes of `shunt bench dispatch` in one guest; rank 1 writes its figures."""
    words = (f'bench dispatch --transport verbs --tokens {tokens} --hidden 256 --experts 64 '
             f'-n {ITERATIONS} --rack 127.0.0.1:{PORT},127.0.0.1:{PORT + 1}')
    shunt = shlex.quote(str(lab.shunt))
    return [f'{shunt} {words} --rank 0 -d rxe0 >/dev/null &',
            f'{under} {shunt} {words} --rank 1 -d rxe1 --json /tmp/{tokens}.json >/dev/null'
            ' || exit',
            'wait $! || exit', f'cp /tmp/{tokens}.json /run/lab/']


@case('verbs', name='writes')
def counts_writes(lab, _):
    """a dispatch over verbs asks for one completion a peer, however many tokens go"""
    with lab.guests(1, *dispatch_commands(lab, 1), *dispatch_commands(lab, 128), cpus=2) as guests:
        ended(guests, [0])
        for tokens in (1, 128):
            result = json.loads((guests.folders[0] / f'{tokens}.json').read_text())
            check_equal(result['emulated'], True, 'emulated')
            for phase in ('dispatch', 'combine'):
                p = result[phase]
                check_equal((p['puts'], p['signalled']), (ITERATIONS, ITERATIONS),
                            f'puts and completions of {phase}, {tokens} tokens')
                # What a device takes in one work request is far more than this.
                check(p['writes'] <= 2 * ITERATIONS, f'{phase}, {tokens} tokens: {p}')


@case('verbs', name='system-calls')
def counts_calls(lab, _):
    """more rows over verbs take no more system calls"""
    if not shutil.which('strace'):
        raise Skip('strace is not installed')
    commands = [line for n in (8, 128)
                for line in dispatch_commands(lab, n, f'strace -f -c -o /run/lab/calls.{n}')]
    with lab.guests(1, *commands, cpus=2) as guests:
        ended(guests, [0])
        calls = {}
        for tokens in (8, 128):
            total = guests.text(0, f'calls.{tokens}').splitlines()[-1].split()
            calls[tokens] = int(total[-2] if len(total) == 5 and total[3].isdigit() else total[2])
        # Twice a row goes: there, and back. A few come with the time it takes: streams are looked
        # at once in a millisecond.
        rows = 2 * (128 - 8) * ITERATIONS
        each = (calls[128] - calls[8]) / rows
        check(each < 0.1, f'{each:.3f} system calls a row: {calls}')


# ---- a rack's answer is one node's

def same_logits(lab, count, transport):
    """a rack of {0} guests over {1} computes the bytes of one node's logits"""
    prompt = json.loads(Path(f'{DEMO}.golden.json').read_text())['prompts'][0]
    ids = lab.folder / 'ids'
    ids.write_text(' '.join(map(str, prompt['ids'][:48])))
    words = ['eval', *MODEL, '--ids-file', str(ids), '--greedy', '8', '--chunk', '16', '--logits']
    lab.one_node(*words, lab.folder / 'logits.f32')
    # They are written through a mapping, which files of the host do not have in a guest.
    command = shlex.join([str(lab.shunt), *words, '/tmp/logits.f32'])
    place = f'{seat(lab, count, transport)} --dead-after {PATIENT_S}'
    with lab.guests(count, f'{command} {place} || exit',
                    '[ $NODE != 0 ] || cp /tmp/logits.f32 /run/lab') as guests:
        ended(guests, [0] * count)
        got = (guests.folders[0] / 'logits.f32').read_bytes()
    check_equal(len(got), len(prompt['ids'][:48]) * vocabulary() * 4, 'bytes of logits')
    check(got == (lab.folder / 'logits.f32').read_bytes(), "the logits are not one node's")


def vocabulary():
    return json.loads(Path(f'{DEMO}.golden.json').read_text())['vocab']


for transport in ('verbs', 'tcp'):
    for count in (2, 3):
        case(count, transport, name='rack')(same_logits)


# ---- faults: a rack of two; rank 0 has the user, rank 1 only serves

DEAD_AFTER_S = 0.5
PATIENT_S = 20  # where it is not death that is asked about: this machine may have other work
ENDED_WITHIN_S = DEAD_AFTER_S + 2  # an emulated processor takes a second for what takes 20 ms


def generation(tokens):
    return ['run', *MODEL, '-p', 'KING RICHARD:', '-n', str(tokens), '--ignore-eos',
            '--ctx', '4096']


def generating(lab, transport, tokens, *before, dead_after=DEAD_AFTER_S, **how):
    """Guests that generate; rank 1's node dies when it is told to with the word `kill`."""
    common = f'{seat(lab, 2, transport)} --dead-after {dead_after}'
    shunt = shlex.quote(str(lab.shunt))
    return lab.guests(
        2, *before,
        'if [ $NODE = 0 ]; then',
        f'    {shunt} {shlex.join(generation(tokens))} {common} --report /run/lab/report.json',
        'else',
        f'    {shunt} node {shlex.join(MODEL)} --ctx 4096 {common} &',
        '    node=$!',
        '    (until [ -e /run/lab/kill ]; do sleep 0.02; done; kill -9 $node) &',
        '    wait $node',
        'fi',
        'code=$?',
        'tc -s qdisc show dev eth0 >/run/lab/qdisc',
        'exit $code',
        **how)


def until_text(guests):
    wait_until(lambda: guests.code(0) is not None or len(guests.text(0, 'stdout')) > 40,
               'text from rank 0', TIMEOUT)
    check(guests.code(0) is None, lambda: f'ended too soon: {guests.story(0)}')


def answer(path):
    sequence, = json.loads(path.read_text())['sequences']
    return sequence['ids'], sequence['logits_digest']


def check_answer(lab, guests, tokens):
    """The run ended well, and every row of logits has the bits of one node's."""
    ended(guests, [0, 0])
    lab.one_node(*generation(tokens), '--report', lab.folder / 'one.json')
    check_equal(answer(guests.folders[0] / 'report.json'), answer(lab.folder / 'one.json'),
                'ids and digest of the logits')


def said(guests):
    """What the nodes have said, line by line, without progress."""
    return [line for node in range(guests.count)
            for line in guests.text(node, 'stderr').splitlines()]


def bad_link(lab, transport, fault):
    """a link with {1} under {0}: the same answer, and nothing said"""
    netem = {'loss': 'loss 1%', 'delay': 'delay 5ms'}[fault]
    with generating(lab, transport, 60, f'tc qdisc add dev eth0 root netem {netem}',
                    modules=['sch_netem'], dead_after=PATIENT_S) as guests:
        check_answer(lab, guests, 60)
        check_equal(said(guests), [], 'said')
        text = ''.join(guests.text(n, 'qdisc') for n in range(2))
        packets, dropped = map(sum, zip(*(map(int, pair) for pair in re.findall(
            r'(\d+) pkt \(dropped (\d+)', text))))
        check(packets > 100 and (fault != 'loss' or dropped > 0), f'the fault was none: {text}')


for transport in ('verbs', 'tcp'):
    for fault in ('loss', 'delay'):
        case(transport, fault, name='link')(bad_link)


def short_pull(lab, transport):
    """a cable pulled for 300 ms under {0} is survived: suspected, and nothing else"""
    with generating(lab, transport, 100) as guests:
        until_text(guests)
        guests.pull_cable(1, 0.3)
        check_answer(lab, guests, 100)
        lines = said(guests)
        check(lines and all(re.search('is silent for|is back', line) for line in lines),
              f'said: {lines}')


def check_ended(guests, nodes, lost_at):
    """These end with an error that names the other, in time."""
    codes = guests.wait(ENDED_WITHIN_S - (time.monotonic() - lost_at), nodes)
    check(codes == [1] * len(nodes), lambda: '\n'.join([
        f'exit codes {codes} in time, expected 1', *map(guests.story, nodes)]))
    for node in nodes:
        text = guests.text(node, 'stderr')
        check(re.search(rf'(rank|node) {1 - node}\b.*(heard|gone|left|failed|lost|dead)', text),
              f'rank {1 - node} is not named: {text!r}')


def long_pull(lab, transport):
    """a cable pulled for 2 s under {0}: both sides end in time and name the other"""
    with generating(lab, transport, 4000) as guests:
        until_text(guests)
        lost_at = time.monotonic()
        guests.pull_cable(1, 2)
        check_ended(guests, [0, 1], lost_at)


def killed(lab, transport, what):
    """a {1} killed under {0}: the other ends in time and names it"""
    with generating(lab, transport, 4000) as guests:
        until_text(guests)
        lost_at = time.monotonic()
        if what == 'guest':
            guests.kill(1)
        else:
            guests.tell(1, 'kill')
        check_ended(guests, [0], lost_at)


for transport in ('verbs', 'tcp'):
    case(transport, name='short-pull')(short_pull)
    case(transport, name='long-pull')(long_pull)
    for what in ('guest', 'process'):
        case(transport, what, name='killed')(killed)
