# SPDX-License-Identifier: Apache-2.0
"""A peer that is not shunt: speaks the hello of runtime/cluster/hello.h and the frames of the
control stream (runtime/cluster/rack.c), right or wrong.
"""
import socket
import struct
import time

from shunttest import check, env

HELLO = struct.Struct('<8I16s16s192s')
HELLO_MAGIC, HELLO_PROTOCOL, HELLO_REFUSED = 0x4e554853, 1, 2
CONTROL, DATA = 0, 1
MESSAGE_HEARTBEAT, MESSAGE_READY, MESSAGE_FAILED, MESSAGE_GOODBYE = 1, 2, 3, 4


def hello(stream, rank, nodes, fingerprint, magic=HELLO_MAGIC, protocol=HELLO_PROTOCOL, flags=0,
          rows=8, levels=1, version=None, text=b'fake'):
    return HELLO.pack(magic, protocol, stream, flags, rank, nodes, rows, levels, fingerprint,
                      (version or env.version).encode(), text)


def frame(kind, payload=b''):
    return struct.pack('<II', kind, len(payload)) + payload


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
