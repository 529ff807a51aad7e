#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Peers that do not belong together, and strangers: another model, version, rack or rank; nobody at
all; silence and garbage on the port, while a rack forms and after; a node of the rack that breaks the
protocol. An error that names who it was, never a hang, and a stranger never disturbs.
"""

import contextlib
import re
import socket
import struct
import threading
import time

import gguffile
from peer import (ACCEPTED, ANSWER, CONTROL, DATA, HEAD, HELLO, MESSAGE_FAILED, MESSAGE_GOODBYE,
                  MESSAGE_IGNORED, MESSAGE_READY, REFUSAL, answer, connect, frame, hello, prologue,
                  pulse, receive)
from shunttest import (Golden, Skip, case, check, check_equal, env, established, free_ports,
                       kernel_levels, main, need, note, rack_of, seconds_to_end, wait_until,
                       without_suspicions)


def node(t, rank, ports, *options, model=None, command=('node',)):
    return t.start(*command, '-m', model or env.demo, '--rank', str(rank), '--rack',
                   rack_of(ports), *options)


def ends(process, *patterns, within=20):
    result = process.wait(within)
    check_equal((result.code, result.out), (1, ''), f'end of {result}')
    check_equal(without_suspicions(result.err).count('\n'), 1, f'lines of {result.err!r}')
    for pattern in patterns:
        check(re.search(pattern, result.err), lambda: f'stderr lacks {pattern!r}: {result}')
    check(not re.search(r'[\x00-\x09\x0b-\x1f\x7f]', result.err), f'control: {result.err!r}')
    return result


REFUSED = r"rank (\d) \(127\.0\.0\.1:\d+\) refused this node; rank \1's own message says why"


def one_refuses(processes, *patterns, within=5):
    """Of two that do not fit the lower says what does not, to its own person only."""
    owner, refused = processes
    ends(owner, *patterns, within=within)
    check(re.fullmatch(f'shunt: {REFUSED}\n', ends(refused, within=within).err), refused.result.err)


def fingerprint(t, model=None):
    text = t.run('inspect', model or env.demo).out
    return bytes.fromhex(re.search(r'fingerprint\s+(\w{32})', text).group(1))


# ---- nodes of shunt that do not belong together

@case('a peer that never comes')
def _(t):
    ports = free_ports(3)
    for rank, missing in ((0, ('1', '2')), (2, ('0', '1'))):
        begin = time.monotonic()
        ends(node(t, rank, ports, '--join-timeout', '1'),
             *(rf'rank {m} \(127\.0\.0\.1:{ports[int(m)]}\)' for m in missing),
             'start the missing nodes', '--join-timeout')
        check(0.9 < time.monotonic() - begin < 3, 'not after a second')


@case('a rack in which nobody takes prompts')
def _(t):
    ports = free_ports(2)
    for process in (node(t, 0, ports), node(t, 1, ports)):
        ends(process, 'none takes prompts', 'shunt run --rank', within=5)


@case('three peers that have kernels in common two by two')
def _(t):
    if len(kernel_levels()) < 2:
        raise Skip('one kernel level here')
    ports = free_ports(3)
    for process in [node(t, r, ports, '--kernels', k, '--join-timeout', '3')
                    for r, k in enumerate(('auto', 'ref', 'avx2'))]:
        ends(process, within=10)  # rank 0 may not have met the others before they part


@case('a peer that comes late')
def _(t):
    ports = free_ports(2)
    first = node(t, 1, ports)
    time.sleep(1)
    second = node(t, 0, ports, command=('run', '-p', 'hi', '-n', '2'))
    check_equal((second.wait().code, first.wait().code), (0, 0), 'exit codes')


@case('a peer with another model')
def _(t):
    other = t.file('other.gguf', gguffile.make_model().bytes())
    for first, second in ((0, 1), (1, 0)):
        ports = free_ports(2)
        a, b = node(t, first, ports), node(t, second, ports, model=other)
        one_refuses((a, b) if first == 0 else (b, a), 'rank 1 ', 'another model', 'qwen3moe-demo',
                    'random 1', 'the same file')


@case('a peer with the same model, but for one byte of a weight')
def _(t):
    g = gguffile.Gguf(env.demo.read_bytes())
    data = bytearray(g.data)
    data[g.tensor('blk.3.ffn_up_exps.weight').off + 5] ^= 1
    g.data = bytes(data)
    other = t.file('other.gguf', g.bytes())
    ports = free_ports(2)
    one_refuses((node(t, 0, ports), node(t, 1, ports, model=other)), 'another model')


@case('a peer whose --rack is longer')
def _(t):
    ports = free_ports(3)
    one_refuses((node(t, 0, ports[:2]), node(t, 1, ports)), 'a rack of 3 nodes', 'one of 2',
                'the same --rack')


@case('the same rank twice at one address')
def _(t):
    ports = free_ports(2)
    first = node(t, 0, ports)
    wait_until(lambda: listening(ports[0]), 'the first')
    ends(node(t, 0, ports), 'the port is taken', within=5)
    node(t, 1, ports, command=('run', '-p', 'hi', '-n', '2')).wait()
    check_equal(first.wait().code, 0, 'the first, which goes on')


@case('the same rank twice at two addresses')
def _(t):
    """A copied command line on another machine, where the port is free."""
    ports = free_ports(4)
    racks = [ports[:3], [ports[0], ports[3], ports[2]]]
    zero = node(t, 0, racks[0])
    first = node(t, 1, racks[0])
    wait_until(lambda: established(ports[0]) == 1, 'rank 1')
    ends(node(t, 1, racks[1]), REFUSED, within=5)
    ends(zero, 'rank 1 ', 'another list of nodes', f':{ports[1]}', f':{ports[3]}', within=5)
    ends(first, 'rank 0', within=5)


@case('the same rank twice with one list')
def _(t):
    """The list is right, and two machines that share an address each hold the second."""
    ports = free_ports(3)
    zero = node(t, 0, ports)
    print_, addresses = fingerprint(t), rack_of(ports).split(',')
    with connect(ports[0]) as first, connect(ports[0]) as second:
        first.sendall(hello(1, addresses, print_))
        check_equal(HEAD.unpack(receive(first, 8))[1], ACCEPTED, 'verdict')
        second.sendall(hello(1, addresses, print_))
        check_equal(receive(second, 100), REFUSAL, 'answer')
    ends(zero, 'calls itself rank 1', 'its own --rank', within=5)


@case('ranks swapped between two nodes')
def _(t):
    """Each has the addresses of the two in another order."""
    a, b = free_ports(2)
    for process in (node(t, 0, [a, b], '--join-timeout', '3'),
                    node(t, 0, [b, a], '--join-timeout', '3')):
        ends(process, 'rank 1')


@case('lists of nodes that differ')
def _(t):
    a, b, c = free_ports(3)
    one_refuses((node(t, 0, [a, b]), t.start('node', '-m', env.demo, '--rank', '1', '--rack',
                                             f'127.0.0.1:{a},localhost:{b}')),
                f"looks for rank 1 at 'localhost:{b}', this node at '127.0.0.1:{b}'", '--rack')


@case('kernels that have nothing in common')
def _(t):
    if 'avx2' not in kernel_levels():
        raise Skip('only one level here')
    ports = free_ports(2)
    one_refuses([node(t, r, ports, '--kernels', k) for r, k in ((0, 'ref'), (1, 'avx2'))],
                'no kernels in common', 'ref', 'avx2', '--kernels')


def listening(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(('127.0.0.1', port))
            return False
        except OSError:
            return True


# ---- strangers on the port

def finish(t, ports, zero):
    """Rank 1 comes after all, and the rack does its work."""
    prompt = Golden(env.demo).prompts[0]
    result = t.run('run', '-m', env.demo, '--rank', '1', '--rack', rack_of(ports), '-p',
                   prompt['text'], '-n', '48', '--quiet')
    check_equal(result.out, prompt['greedy_text'] + '\n', 'text')
    check_equal((zero.wait().code, zero.wait().err), (0, ''), 'rank 0')


STRANGERS = {
    'nothing': b'',
    'one byte': b'S',
    'a request of a browser': b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n',
    'half a hello': struct.pack('<II', 0x4e554853, 2) + bytes(100),
    'half a prologue': struct.pack('<II', 0x44554853, 2) + bytes(10),
    'a handshake of TLS': bytes.fromhex('16030100c8010000c40303') + bytes(30),
    '256 bytes of zeros': bytes(256),
    '256 random bytes': bytes((i * 167 + 13) % 256 for i in range(256)),
    'a megabyte of garbage': bytes(range(256)) * 4096,
}


@case('strangers who connect and go')
def _(t):
    ports = free_ports(2)
    zero = node(t, 0, ports)
    for data in STRANGERS.values():
        for _ in range(3):
            with connect(ports[0]) as s:
                send_all(s, data)
    finish(t, ports, zero)


@case('strangers who connect and stay')
def _(t):
    """More than there are places for: each is shown out after a while, and nobody waits longer."""
    ports = free_ports(2)
    zero = node(t, 0, ports)
    strangers = []
    for i in range(60):
        s = connect(ports[0])
        send_all(s, list(STRANGERS.values())[i % len(STRANGERS)][:200])
        strangers.append(s)
    begin = time.monotonic()
    finish(t, ports, zero)
    note(f'joined after {time.monotonic() - begin:.1f} s')
    check(time.monotonic() - begin < 20, 'strangers held up the join')
    for s in strangers:
        s.close()


@case('a stranger who comes again and again')
def _(t):
    ports = free_ports(2)
    zero = node(t, 0, ports)
    stop = threading.Event()

    def pester():
        while not stop.is_set():
            try:
                with socket.create_connection(('127.0.0.1', ports[0]), timeout=1) as s:
                    # Closed by a reset, which leaves the machine no socket that lingers.
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    s.sendall(b'GET / HTTP/1.0\r\n\r\n')
            except OSError:
                pass  # nobody listens any more: the rack stands
            time.sleep(0.001)
    thread = threading.Thread(target=pester)
    thread.start()
    try:
        time.sleep(0.5)
        finish(t, ports, zero)
    finally:
        stop.set()
        thread.join()


@case('nobody listens once the rack stands')
def _(t):
    ports = free_ports(2)
    one = node(t, 1, ports)
    zero = node(t, 0, ports, '-p', 'KING', '-n', '2000', '--ignore-eos', '--slots', '2',
                command=('run',))
    wait_until(zero.out, 'text')
    for port in ports:
        check(not listening(port) or not accepts(port), f'port {port} still takes connections')
    for process in (zero, one):
        process.end()


def accepts(port):
    try:
        socket.create_connection(('127.0.0.1', port), timeout=1).close()
        return True
    except OSError:
        return False


def send_all(sock, data):
    try:
        sock.sendall(data)
    except OSError:
        pass  # it has hung up already, as it may


# ---- a peer that speaks the hello: shunt is rank 0, the peer connects as rank 1

HELLOS = {
    'another version': (dict(version='9.9.9'), ['9.9.9', 'install the same version']),
    'another protocol': (dict(protocol=77), ['protocol 77', 'install the same version']),
    'a rack of three': (dict(nodes=3), ['a rack of 3 nodes', 'the same --rack']),
    'another fingerprint': (dict(fingerprint=bytes(16)), ['another model', '00' * 16]),
    'no kernels': (dict(levels=0), ['no kernels in common']),
    'unknown kernels': (dict(levels=1 << 20), ['no kernels in common']),
    'no transport': (dict(transports=0), ['no transport in common']),
    'another transport': (dict(transports=2), ['no transport in common', 'verbs', 'tcp']),
    'an unknown transport': (dict(transports=1 << 31), ['no transport in common', 'none known']),
    'another wire format': (dict(wire=99), ['format 99', 'format 1']),
    'encrypted rows': (dict(flags=2), ['encrypted', 'in clear', '--encrypt']),
    'a rendezvous': (dict(flags=4), ["rank 0's address only"]),
    'no port for datagrams': (dict(live_port=0), ['on port 0']),
    'a port beyond ports': (dict(live_port=65536), ['on port 65536']),
    'no rows': (dict(rows=0), ['announces 0 rows']),
    'too many rows': (dict(rows=4097), ['announces 4097 rows']),
    'rank 0, which is taken': (dict(rank=0), ['rank 0', 'its own --rank']),
    'a rank outside the rack': (dict(rank=7), ['rank 7', 'its own --rank']),
    'an enormous rank': (dict(rank=0xffffffff), ['rank 4294967295']),
    'a name with an escape': (dict(fingerprint=bytes(16), model=b'\x1b[2J\nx'), ['another model']),
    'a name without an end': (dict(fingerprint=bytes(16), model=b'x' * 144), ['another model']),
    'a version without an end': (dict(version='9' * 16), ['9' * 16]),
}


def wrong_hello(t, change, says):
    ports = free_ports(2)
    zero = node(t, 0, ports)
    with connect(ports[0]) as s:
        fields = dict(rank=1, addresses=rack_of(ports).split(','), fingerprint=fingerprint(t)) | change
        s.sendall(hello(**fields))
        ends(zero, *says, within=5)
        got = until_end(s)
        # What it did not read of another version may cost the peer the answer.
        check(got == REFUSAL or 'protocol' in change and not got, f'a refused peer learns {got!r}')


for name, (change, says) in HELLOS.items():
    case(f'hello with {name}', change, says)(wrong_hello)


# ---- and shunt is rank 1, the peer is rank 0 and listens

ANSWERS = {
    'not shunt': (lambda h: b'HTTP/1.1 400 Bad Request\r\n' + bytes(2000), ['not shunt', 'port']),
    'a refusal': (lambda h: REFUSAL, ['refused this node; rank 0.s own message says why']),
    'neither a refusal nor not': (lambda h: HEAD.pack(0x41554853, 3) + bytes(2200), ['not shunt']),
    'accepted, and no hello': (lambda h: answer(bytes(2048)), ['not shunt']),
    'another version': (lambda h: answer(h(0, version='9.9.9')), ['9.9.9']),
    'another rank': (lambda h: answer(h(1)), ['calls itself rank 1']),
    'another model': (lambda h: answer(h(0, fingerprint=bytes(16))), ['another model']),
    'no port for datagrams': (lambda h: answer(h(0, live_port=0)), ['on port 0']),
}


def wrong_answer(t, make, says):
    print_ = fingerprint(t)
    with socket.create_server(('127.0.0.1', 0)) as server:
        ports = [server.getsockname()[1], *free_ports(1)]
        addresses = rack_of(ports).split(',')
        one = node(t, 1, ports)
        s, _ = server.accept()
        with s:
            receive(s, HELLO.size)
            s.sendall(make(lambda rank, fingerprint=print_, **how:
                           hello(rank, addresses, fingerprint, **how)))
            ends(one, rf'rank 0 \(127\.0\.0\.1:{ports[0]}\)', *says, within=5)


for name, (make, says) in ANSWERS.items():
    case(f'answer: {name}', make, says)(wrong_answer)


@case('a listener that takes connections and says nothing')
def _(t):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        one = node(t, 1, [port, *free_ports(1)], '--join-timeout', '2')
        ends(one, rf'rank 0 \(127\.0\.0\.1:{port}\)', '--join-timeout', within=5)


@case('a listener that hangs up each time')
def _(t):
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        one = node(t, 1, [port, *free_ports(1)], '--join-timeout', '2')
        while one.running():
            try:
                server.accept()[0].close()
            except TimeoutError:
                pass
        ends(one, rf'rank 0 \(127\.0\.0\.1:{port}\)', '--join-timeout')


# ---- a peer that joins and then breaks the rules

def say_hello(t, ports, **how):
    """As rank 1 to rank 0. Return: the socket, what it was granted, and where datagrams go."""
    s = connect(ports[0])
    s.sendall(hello(1, rack_of(ports).split(','), fingerprint(t), **how))
    got = receive(s, ANSWER.size + HELLO.size)
    check_equal(len(got), ANSWER.size + HELLO.size, 'bytes of the answer')
    _, verdict, token, key = ANSWER.unpack(got[:ANSWER.size])
    check_equal(verdict, ACCEPTED, 'verdict')
    return s, token, (key, ('127.0.0.1', HELLO.unpack(got[ANSWER.size:])[9]))


class Joined:
    """Rank 1 of two, with both streams; shunt is rank 0."""

    def __init__(self, t, *options, command=('run', '-p', 'hi'), ready=False):
        ports = free_ports(2)
        self.zero = node(t, 0, ports, '--step-timeout', '5', *options, command=command)
        self.control, token, self.live = say_hello(t, ports)
        self.udp, self.sequence = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0
        self.data = connect(ports[0])
        self.data.sendall(prologue(1, token))
        check_equal(HEAD.unpack(receive(self.data, HEAD.size))[1], ACCEPTED, 'of the data stream')
        self.streams = [self.control, self.data]
        if ready:
            self.control.sendall(frame(MESSAGE_READY))

    def pulse(self):
        key, address = self.live
        self.sequence += 1
        self.udp.sendto(pulse(1, self.sequence, key), address)

    def beat(self, seconds):
        """Alive, and nothing else."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.zero.running():
            self.pulse()
            time.sleep(0.03)

    def close(self):
        for s in (*self.streams, self.udp):
            s.close()


@case('a peer that dies while the weights are loaded')
def _(t):
    """It has not said that it is ready, so rank 0 waits for it."""
    for half in (CONTROL, None):
        peer = Joined(t)
        time.sleep(0.3)
        check(peer.zero.running(), lambda: f'ended too soon: {peer.zero.wait()}')
        act = peer.close if half is None else peer.streams[half].close
        took = seconds_to_end([peer.zero.pid], act)
        check(max(took.values()) < 1, f'ended after {took}')
        ends(peer.zero, 'rank 1 .*gone')
        peer.close()


@case('a peer that falls silent while the weights are loaded')
def _(t):
    peer = Joined(t, '--dead-after', '1')
    peer.pulse()
    took = seconds_to_end([peer.zero.pid], lambda: None)
    ends(peer.zero, r'rank 1 .*nothing heard for 1\.\d s \(--dead-after\)')
    check(0.5 < max(took.values()) < 2, f'ended after {took}')
    peer.close()


@case('a peer that is kept alive by nothing but its datagrams')
def _(t):
    """And by none that is replayed, forged, or of another rank."""
    peer = Joined(t, '--dead-after', '0.5')
    peer.beat(2)
    check(peer.zero.running(), lambda: f'ended: {peer.zero.wait()}')
    key, address = peer.live
    end = time.monotonic() + 2
    while time.monotonic() < end and peer.zero.running():
        for data in (pulse(1, peer.sequence, key), pulse(1, 10 ** 9, bytes(32)), b'',
                     pulse(0, 10 ** 9, key), pulse(1, 10 ** 9, key)[:-1], b'x' * 32, b'x' * 1400):
            peer.udp.sendto(data, address)
        time.sleep(0.02)
    ends(peer.zero, r'rank 1 .*nothing heard for 0\.[56] s \(--dead-after\)')
    peer.close()


@case('a peer that is never ready')
def _(t):
    peer = Joined(t, '--ready-timeout', '1.5')
    peer.beat(5)
    ends(peer.zero, 'rank 1 ', '--ready-timeout')
    peer.close()


@case('a peer that is alive and sends no step')
def _(t):
    peer = Joined(t, '--step-timeout', '1.5', ready=True)
    peer.beat(5)
    ends(peer.zero, 'rank 1 ', '--step-timeout')
    peer.close()


GARBAGE = {
    'zeros': bytes(4096),
    'ones': b'\xff' * 4096,
    'text': b'GET / HTTP/1.1\r\n' * 300,
    'one byte': b'x',
}


def garbage(t, stream, data):
    peer = Joined(t, '--step-timeout', '1.5', '--dead-after', '4', ready=True)
    send_all(peer.streams[stream], data)
    if stream == CONTROL:
        peer.beat(0.5)
    else:
        peer.beat(4)
    peer.close()
    ends(peer.zero, 'rank 1 ')


for name, data in GARBAGE.items():
    case(f'a peer that sends {name} on its data stream', DATA, data)(garbage)
    case(f'a peer that sends {name} on its control stream', CONTROL, data)(garbage)


@case('control messages that are none')
def _(t):
    for data, says in ((struct.pack('<II', 1, 0xffffffff), 'too long'),
                       (struct.pack('<II', 1, 1 << 20), 'too long'),
                       (frame(MESSAGE_FAILED, b'\x1b[31mdisk\non fire'), r'failed: .*disk.on fire'),
                       (frame(MESSAGE_FAILED, b''), 'rank 1 .*failed'),
                       (frame(MESSAGE_FAILED, b'x' * 4000), 'rank 1 .*failed: x+'),
                       (frame(MESSAGE_GOODBYE), 'rank 1 .*left'),
                       (frame(MESSAGE_GOODBYE, b'\0'), 'rank 1 .*left'),
                       (frame(5, b'\1'), None), (frame(5, struct.pack('<Ii', 99, -5)), None),
                       (frame(5, struct.pack('<Ii', 1, 5) + b'gone fishing'), 'gone fishing'),
                       (frame(64), None), (frame(65, b'x'), None), (frame(66, b'x' * 200), None),
                       (frame(0xffffffff, b'x' * 100), None)):
        peer = Joined(t, ready=True)
        peer.control.sendall(data)
        if says is None:  # not for this version: nothing happens, and it goes on
            peer.beat(0.4)
            check(peer.zero.running(), lambda: f'{data[:16]!r}: {peer.zero.wait()}')
            peer.close()
            ends(peer.zero, 'rank 1 .*gone')
        else:
            ends(peer.zero, says, within=5)
            peer.close()


@case('a peer that says an orderly goodbye in the middle')
def _(t):
    peer = Joined(t, '--step-timeout', '1', ready=True)
    peer.control.sendall(frame(MESSAGE_GOODBYE, b'\1'))
    peer.close()
    ends(peer.zero, 'rank 1 ', within=5)


@case('a hello byte by byte')
def _(t):
    ports = free_ports(2)
    zero = node(t, 0, ports)
    with connect(ports[0]) as s:
        for byte in hello(1, rack_of(ports).split(','), fingerprint(t)):
            s.sendall(bytes([byte]))
        check_equal(HEAD.unpack(receive(s, HEAD.size))[1], ACCEPTED, 'verdict')
    ends(zero, 'rank 1 .*gone', within=5)


# ---- data connections: a token is good once, and for its own rank

GRANTED = HEAD.pack(0x41554853, ACCEPTED)


def until_end(sock):
    """All that comes; that it ends in a reset says that something was not even read."""
    data = b''
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(4096):
            data += more
    return data


@case('tokens that are wrong, and then the right one')
def _(t):
    ports = free_ports(2)
    zero = node(t, 0, ports, command=('run', '-p', 'hi'))
    control, token, _ = say_hello(t, ports)
    wrong = bytes([token[0] ^ 1]) + token[1:]
    for data in (prologue(1, wrong), prologue(1, bytes(32)), prologue(0, token), prologue(2, token),
                 prologue(0xffffffff, token), prologue(1, token, zero=1),
                 prologue(1, token, protocol=3), prologue(1, token, magic=0x44554854)):
        with connect(ports[0]) as s:
            s.sendall(data)
            check_equal(until_end(s), b'', 'the answer to a wrong token')
    check(zero.running(), lambda: f'ended: {zero.wait()}')
    with connect(ports[0]) as s:
        s.sendall(prologue(1, token))
        check_equal(HEAD.unpack(receive(s, 8))[1], ACCEPTED, 'the right one')
    control.close()
    ends(zero, 'rank 1 .*gone', within=5)


@case('a token twice, and one of another pair')
def _(t):
    """Rank 1 is there with both streams, rank 2 with its control stream."""
    ports = free_ports(3)
    zero = node(t, 0, ports, command=('run', '-p', 'hi'))
    addresses, print_ = rack_of(ports).split(','), fingerprint(t)
    controls, tokens = [], []
    for rank in (1, 2):
        s = connect(ports[0])
        s.sendall(hello(rank, addresses, print_))
        tokens.append(ANSWER.unpack(receive(s, ANSWER.size + HELLO.size)[:ANSWER.size])[2])
        controls.append(s)
    for rank, token, accepted in ((1, tokens[1], False), (2, tokens[0], False), (1, tokens[0], True),
                                  (1, tokens[0], False)):
        s = connect(ports[0])
        s.sendall(prologue(rank, token))
        check_equal(receive(s, 8) if accepted else until_end(s), GRANTED if accepted else b'',
                    f'answer to rank {rank}')
        controls.append(s)
    check(zero.running(), lambda: f'ended: {zero.wait()}')
    for s in controls:
        s.close()
    ends(zero, 'rank [12] .*gone', within=5)


@case('a data connection before everybody is there waits')
def _(t):
    ports = free_ports(3)
    zero = node(t, 0, ports, '--join-timeout', '3')
    s, token, _ = say_hello(t, ports)
    data = connect(ports[0])
    data.sendall(prologue(1, token))
    data.settimeout(1)
    try:
        check(False, f'answered: {data.recv(8)!r}')
    except TimeoutError:
        pass
    s.close()
    data.close()
    ends(zero, 'rank 1 .*gone', within=5)


# ---- keys

@case('a rack with a key, in clear and encrypted, says what it says without')
def _(t):
    need('TLS')
    prompt = Golden(env.demo).prompts[0]
    for options in (['--key-file', t.key()], ['--key-file', t.key(), '--encrypt']):
        ports = free_ports(2)
        one = node(t, 1, ports, *options)
        result = t.run('run', '-m', env.demo, '--rank', '0', '--rack', rack_of(ports), '-p',
                       prompt['text'], '-n', '48', '--quiet', *options)
        check_equal(result.out, prompt['greedy_text'] + '\n', 'text')
        check_equal(one.wait().code, 0, 'rank 1')


@case('another key, no key, and then the right one')
def _(t):
    need('TLS')
    ports = free_ports(2)
    zero = node(t, 0, ports, '--key-file', t.key())
    wait_until(lambda: listening(ports[0]), 'rank 0')
    for options in (['--key-file', t.key('other.key')], []):
        ends(node(t, 1, ports, *options), REFUSED, within=5)
    t.run('run', '-m', env.demo, '--rank', '1', '--rack', rack_of(ports), '-p', 'hi', '-n', '4',
          '--key-file', t.key())
    result = zero.wait()
    check_equal(result.code, 0, f'{result}')
    check(re.fullmatch(r'shunt: turned away 127\.0\.0\.1:\d+: it has another key\n',
                       without_suspicions(result.err)), f'{result}')


@case('a key that others may read')
def _(t):
    need('TLS')
    t.key().chmod(0o640)
    ends(node(t, 0, free_ports(2), '--key-file', t.key()), 'mode 0640', 'chmod 600', within=5)


@case('rows that cannot be encrypted')
def _(t):
    ends(node(t, 0, free_ports(2), '--encrypt'), '--encrypt', '--key-file', within=5)
    if t.start('run', '-m', env.demo, '-p', 'hi', '-n', '1', '--transport', 'verbs').wait().code == 0:
        ends(node(t, 0, free_ports(2), '--encrypt', '--key-file', t.key(), '--transport', 'verbs'),
             'over verbs', '--transport tcp', within=5)


if __name__ == '__main__':
    main()
