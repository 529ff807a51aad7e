# SPDX-License-Identifier: Apache-2.0
"""A peer that is not shunt: speaks the messages of runtime/cluster/hello.h and the frames of the
control stream (runtime/cluster/rack.c), right or wrong.
"""
import hashlib
import hmac
import socket
import struct
import time

from shunttest import check, env

HEAD = struct.Struct('<II')
HELLO = struct.Struct('<10IQ16s32s16s144s64s1728s')
ANSWER = struct.Struct('<II32s32s')  # and a hello
PROLOGUE = struct.Struct('<IIII32s')
HELLO_MAGIC, ANSWER_MAGIC, TABLE_MAGIC, PROLOGUE_MAGIC = 0x4e554853, 0x41554853, 0x54554853, 0x44554853
PROTOCOL = 2
REFUSED, ACCEPTED = 1, 2
CONTROL, DATA = 0, 1
MESSAGE_IGNORED, MESSAGE_READY, MESSAGE_FAILED, MESSAGE_GOODBYE = 1, 2, 3, 4

assert HELLO.size == 2048 and ANSWER.size == 72 and PROLOGUE.size == 48


def rack_digest(addresses):
    each = [hashlib.sha256(a.encode()).digest() for a in addresses]
    return hashlib.sha256(b''.join(each)).digest()


def hello(rank, addresses, fingerprint, magic=HELLO_MAGIC, protocol=PROTOCOL, flags=0, nodes=None,
          rows=8, levels=1, transports=1, wire=1, live_port=9, version=None, model=b'fake'):
    """`addresses`: the rack's, as the nodes of shunt were given them."""
    return HELLO.pack(magic, protocol, flags, rank, len(addresses) if nodes is None else nodes, rows,
                      levels, transports, wire, live_port, 0, fingerprint, rack_digest(addresses),
                      (version or env.version).encode(), model, b'', ','.join(addresses).encode())


def answer(hello_bytes, token=bytes(32), live_key=bytes(32)):
    return ANSWER.pack(ANSWER_MAGIC, ACCEPTED, token, live_key) + hello_bytes


REFUSAL = HEAD.pack(ANSWER_MAGIC, REFUSED)


def prologue(rank, token, magic=PROLOGUE_MAGIC, protocol=PROTOCOL, zero=0):
    return PROLOGUE.pack(magic, protocol, rank, zero, token)


def frame(kind, payload=b''):
    return struct.pack('<II', kind, len(payload)) + payload


def pulse(rank, sequence, key):
    """A datagram of runtime/cluster/liveness.h."""
    head = struct.pack('<IIQ', 0x4c554853, rank, sequence)
    return head + hmac.new(key, head, hashlib.sha256).digest()[:16]


def connect(port, timeout=10):
    """Connects as soon as somebody listens."""
    end = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection(('127.0.0.1', port), timeout=timeout)
        except ConnectionRefusedError:
            check(time.monotonic() < end, f'nobody listened on port {port} within {timeout} s')
            time.sleep(0.01)


def receive(sock, count):
    data = b''
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data
