#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command at a terminal: what is typed, and what is shown there and nowhere else."""
import contextlib
import os
import pty
import re
import time

from shunttest import case, check, check_equal, env, free_ports, main, rack_of, wait_until

CTRL_D = b'\x04'
ERASE = '\r\x1b[K'


@contextlib.contextmanager
def terminal():
    """Return: the two ends of it, ours first."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def shown(ours):
    """What has come to the terminal and was not taken yet."""
    text = b''
    with contextlib.suppress(BlockingIOError, OSError):
        while piece := os.read(ours, 1 << 16):
            text += piece
    return text.decode()


# ---- what is typed

def typed(t, what, says, *arguments):
    with terminal() as (ours, theirs):
        process = t.start(*arguments, stdin=theirs)
        process.wait_output(says, where='err')
        os.write(ours, what + CTRL_D)
        return process.wait(10)


@case('a prompt that is typed ends with one Ctrl-D')
def _(t):
    command = ('run', '-m', env.demo, '-n', '8', '--quiet')
    wanted = t.run(*command, '-p', 'KING RICHARD:\n').out
    for more in ([], ['-f', '-']):
        result = typed(t, b'KING RICHARD:\n', 'the prompt', *command, *more)
        check_equal((result.code, result.out), (0, wanted), f'end of {result}')
        check_equal(result.err, 'shunt: type the prompt, then Enter and Ctrl-D\n', 'stderr')


@case('ids that are typed end with one Ctrl-D')
def _(t):
    command = ('eval', '-m', env.demo, '--greedy', '4', '--ids-file')
    result = typed(t, b'1 2 3\n', 'the ids', *command, '-')
    check_equal((result.code, result.out), (0, t.run(*command, t.ids([1, 2, 3])).out), 'end')


@case('nothing is announced where nobody types')
def _(t):
    with open(t.file('prompt', 'hi'), 'rb') as stdin:
        check_equal(t.run('run', '-m', env.demo, '-n', '2', stdin=stdin).err, '', 'stderr')


# ---- what is shown

@case('a node shows that it waits for the others, and erases it')
def _(t):
    for others, words in ((1, 'the other 1 node of'), (2, 'the other 2 nodes of')):
        rack = rack_of(free_ports(1 + others))
        common = ('-m', env.demo, '--rack', rack, '--rank')
        with terminal() as (ours, theirs):
            process = t.start('node', *common, '0', stderr=theirs)
            got = [wait_until(lambda: shown(ours), 'a sign of life')]
            check_equal(got[0].strip(), f'waiting for {words} the rack', 'terminal')
            rest = [t.start('node', *common, str(r)) for r in range(1, others)]
            user = t.start('run', *common, str(others), '-p', 'hi', '-n', '2')
            for p in (process, user, *rest):
                check_equal(p.wait().code, 0, f'end of {p.result}')
            check_equal(shown(ours), ERASE, 'what follows')
            check_equal(user.result.err, '', 'where stderr is no terminal')


@case('a node that waited in vain erases it before it says so')
def _(t):
    with terminal() as (ours, theirs):
        process = t.start('run', '-m', env.demo, '--rack', rack_of(free_ports(2)), '--rank', '0', '-p',
                          'hi', '--join-timeout', '0.5', stderr=theirs)
        check_equal(process.wait().code, 1, 'exit code')
        time.sleep(0.05)
        text = shown(ours)
        check(re.search(r'the rack\r\x1b\[Kshunt: no answer within 0.5 s from', text), f'{text!r}')


if __name__ == '__main__':
    main()
