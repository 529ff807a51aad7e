#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Racks that a launcher starts, every rank with the same command line: by the variables of srun,
torchrun, mpirun and mpiexec, and by mpirun itself where it is installed. What each variable may be
is tested in tests/tools/launch_test.c.
"""
import contextlib
import json
import os
import shutil
import socket

from shunttest import (Golden, Process, Skip, case, check, check_equal, env, free_ports, main,
                       rack_of)

NODES = 3


def free_range():
    """A port, and the next ones free as well."""
    while True:
        port, = free_ports(1)
        with contextlib.suppress(OSError), contextlib.ExitStack() as sockets:
            for p in range(port, port + NODES):
                sockets.enter_context(socket.socket()).bind(('127.0.0.1', p))
            return port


def slurm(rank):
    return {'SLURM_PROCID': rank, 'SLURM_STEP_NUM_TASKS': NODES, 'SLURM_LOCALID': rank,
            'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_TASKS_PER_NODE': NODES}


def slurm_hosts(rank):
    """Three names of this machine, one task on each: each at the base port itself."""
    return {'SLURM_PROCID': rank, 'SLURM_STEP_NUM_TASKS': NODES, 'SLURM_LOCALID': 0,
            'SLURM_STEP_NODELIST': '127.0.0.[1-3]', 'SLURM_STEP_TASKS_PER_NODE': f'1(x{NODES})'}


def torchrun(rank):
    return {'RANK': rank, 'WORLD_SIZE': NODES, 'LOCAL_RANK': rank, 'LOCAL_WORLD_SIZE': NODES,
            'MASTER_ADDR': 'localhost', 'MASTER_PORT': 29500}


def torchrun_hosts(rank):
    """One rank to a host: each knows where rank 0 is, which tells it of the others."""
    return {**torchrun(rank), 'LOCAL_WORLD_SIZE': 1, 'MASTER_ADDR': '127.0.0.1'}


def openmpi(rank):
    return {'OMPI_COMM_WORLD_RANK': rank, 'OMPI_COMM_WORLD_SIZE': NODES, 'PMIX_RANK': rank,
            'OMPI_COMM_WORLD_LOCAL_SIZE': NODES, 'OMPI_COMM_WORLD_LOCAL_RANK': rank}


def mpich(rank):
    return {'PMI_RANK': rank, 'PMI_SIZE': NODES, 'MPI_LOCALNRANKS': NODES}


def setting(variables):
    """What Process calls before it becomes the command."""
    return lambda: os.environ.update({name: str(value) for name, value in variables.items()})


def launched(t, variables, *words):
    return t.start(*words, before=setting(variables))


def start_all(t, launcher, *words):
    port = free_range()
    return [launched(t, launcher(rank), *words, '--port', str(port)) for rank in range(NODES)]


def check_served(processes):
    for process in processes:
        result = process.wait()
        check_equal((result.code, result.out, result.err), (0, '', ''), f'end of {result}')


def run_launched(t, launcher, by):
    prompt = Golden(env.demo).prompts[0]
    report = t.tmp / 'report.json'
    first, *others = start_all(t, launcher, 'run', '-m', env.demo, '-p', prompt['text'], '-n', '48',
                               '--quiet', '--slots', '40%', '--report', report)
    result = first.wait()
    check_equal((result.code, result.out), (0, prompt['greedy_text'] + '\n'), f'rank 0: {result}')
    check_equal(result.err.splitlines()[1:], [], 'said besides')
    check(f'started by {by}: rank 0 of {NODES}, on ' in result.err, result.err)
    check_served(others)
    check_equal([n['rank'] for n in json.loads(report.read_text())['nodes']], [0], 'whose report')


for launcher, by in ((slurm, 'Slurm'), (slurm_hosts, 'Slurm'), (torchrun, 'torchrun'),
                     (torchrun_hosts, 'torchrun'),
                     (openmpi, 'Open MPI'), (mpich, 'MPICH')):
    case(f'run by the variables of {launcher.__name__}', launcher, by)(run_launched)


@case('eval: rank 0 evaluates, the others serve, and write no report over its own')
def _(t):
    prompt = Golden(env.demo).prompts[0]
    report = t.tmp / 'report.json'
    first, *others = start_all(t, openmpi, 'eval', '-m', env.demo, '--ids-file',
                               t.ids(prompt['ids']), '--greedy', '8', '--report', report)
    check_equal(first.wait().out.split(), [str(i) for i in prompt['greedy'][:8]], 'greedy ids')
    check_served(others)
    check_equal([n['rank'] for n in json.loads(report.read_text())['nodes']], [0], 'whose report')


@case('bench dispatch: one rack, and rank 0 has the figures')
def _(t):
    figures = t.tmp / 'bench.json'
    for launcher in (slurm, torchrun_hosts, openmpi):
        first, *others = start_all(t, launcher, 'bench', 'dispatch', '-n', '5', '--json', figures)
        result = first.wait()
        check_equal(result.code, 0, f'rank 0: {result}')
        check(f'rank 0 of {NODES}' in result.err, result.err)
        check(f'{NODES} nodes' in result.out, result.out)
        check_served(others)
        check_equal(json.loads(figures.read_text())['shape']['nodes'], NODES, 'whose figures')
        figures.unlink()


@case('bench dispatch: --nodes wins')
def _(t):
    result = launched(t, openmpi(1), 'bench', 'dispatch', '--nodes', '2', '-n', '2').wait()
    check_equal((result.code, result.err), (0, ''), f'end of {result}')


@case('bench link: no end of it is given by a launcher')
def _(t):
    text = f'has started {NODES} of these, and a link has two ends'
    for words in ((), ('--local',)):
        t.run('bench', 'link', *words, code=2, err=text, before=setting(openmpi(1)))
    t.run('bench', 'link', code=2, err=text, before=setting(torchrun_hosts(1)))
    t.run('bench', 'link', '--local', '-n', '5', before=setting(torchrun_hosts(1)))
    t.run('bench', 'link', f'127.0.0.1:{free_ports(1)[0]}', '--join-timeout', '0.2', code=1,
          err='rank 0', before=setting(openmpi(1)))


@case('--rack and --nodes win')
def _(t):
    words = ('-m', env.demo, '-p', 'hi', '-n', '4', '--quiet')
    rack = rack_of(free_ports(2))
    node = launched(t, openmpi(0), 'node', '-m', env.demo, '--rank', '1', '--rack', rack)
    first = launched(t, openmpi(2), 'run', '--rank', '0', '--rack', rack, *words)
    alone = launched(t, slurm(1), 'run', '--nodes', '1', *words)
    for process in (first, alone):
        result = process.wait()
        check_equal((result.code, result.err), (0, ''), f'end of {result}')
        check(result.out.strip(), 'text')
    check_served([node])


@case('what cannot be is wrong usage, and says which variable')
def _(t):
    wrong = [({**slurm(0), 'SLURM_LOCALID': 1}, 'SLURM_LOCALID is 1'),
             ({**torchrun(0), 'WORLD_SIZE': 'many'}, "WORLD_SIZE: 'many' is no number"),
             ({'PMIX_RANK': 0}, 'PMIX_RANK is set, but')]
    for variables, text in wrong:
        t.run('run', '-m', env.demo, '-p', 'hi', code=2, err=text, before=setting(variables))


@case('mpirun')
def _(t):
    if not shutil.which('mpirun'):
        raise Skip('mpirun is not installed')
    prompt = Golden(env.demo).prompts[0]
    as_root = {'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'}
    words = ['mpirun', '--oversubscribe', '-n', str(NODES), env.shunt, 'run', '-m', env.demo, '-p',
             prompt['text'], '-n', '48', '--quiet', '--port', str(free_range())]
    process = Process(words, t.tmp, len(t.processes), before=setting(as_root))
    t.processes.append(process)
    result = process.wait()
    check_equal((result.code, result.out), (0, prompt['greedy_text'] + '\n'), f'{result}')


if __name__ == '__main__':
    main()
