#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command at a terminal: what is typed, and what is shown there and nowhere else."""
import contextlib
import os
import pty

from shunttest import case, check_equal, env, main

CTRL_D = b'\x04'


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


if __name__ == '__main__':
    main()
