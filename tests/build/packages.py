#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""packages.py ROOT

tools/packages with a package system that is made up: what it asks for, and when it asks for root. And what quickstart
and check say where they may not install.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

root = sys.argv[1]

# One program under several names. state.json: the architectures a package is installed for, what apt knows, its lists.
FAKE = '''#!%s
import json, os, sys
folder = os.path.dirname(os.path.abspath(__file__))
name, args = os.path.basename(__file__), sys.argv[1:]
with open(folder + '/state.json') as f:
    state = json.load(f)
with open(folder + '/log', 'a') as f:
    f.write(' '.join([name, *args]) + '\\n')
known = state['known'] if state['lists'] else []
if name == 'dpkg-query':
    form, package = args[1][3:], args[2]
    for arch in state['installed'].get(package, []):
        sys.stdout.write(form.replace('${db:Status-Status}', 'installed').replace('${Architecture}', arch)
                         .replace('\\\\n', '\\n'))
    sys.exit(package not in state['installed'])
elif name == 'dpkg':
    print('amd64')
elif name == 'id':
    print(1000)
elif name == 'sudo':
    os.execvp(args[0], args)
elif name == 'clang':
    print(folder)
elif name == 'apt-cache':
    if args[1] not in known:
        sys.exit(100)
    print('clang\\n  Depends: clang-%%s\\n  Breaks: clang-3.2' %% state['clang'])
elif name == 'apt-get':
    if args[0] == 'update':
        state['lists'] = True
        with open(folder + '/state.json', 'w') as f:
            json.dump(state, f)
    else:
        sys.exit(any(p not in known for p in args if p[0] != '-' and p != 'install'))
''' % sys.executable
NAMES = ('dpkg-query', 'dpkg', 'apt-cache', 'apt-get', 'id', 'sudo', 'clang')
BUILD = ('gcc libc6-dev dpkg-dev meson ninja-build pkg-config python3 liburing-dev libpcre2-dev libutf8proc-dev '
         'libxxhash-dev libjansson-dev libibverbs-dev librdmacm-dev libssl-dev').split()
LAB = 'qemu-system-x86 busybox-static cpio kmod zstd rdma-core ibverbs-providers iproute2 strace make'.split()
TEST = BUILD + ['libcriterion-dev', 'g++', 'clang', 'openmpi-bin']


# What the scripts use of the system besides.
BASICS = ('bash', 'dirname', 'env', 'grep', 'sed')


def run(mode, installed, known=(), clang='14', lists=True, without=(), code=0, script='packages'):
    """`mode`: the arguments. Return: what was done as root, and stderr."""
    with tempfile.TemporaryDirectory() as folder:
        for name in set(NAMES) - set(without):
            with open(f'{folder}/{name}', 'w', encoding='ascii') as f:
                f.write(FAKE)
            os.chmod(f'{folder}/{name}', 0o755)
        for name in BASICS:
            os.symlink(shutil.which(name), f'{folder}/{name}')
        with open(f'{folder}/state.json', 'w', encoding='ascii') as f:
            json.dump({'installed': installed, 'known': list(known), 'clang': clang, 'lists': lists}, f)
        done = subprocess.run(['bash', f'{root}/tools/{script}', *mode.split()], capture_output=True, text=True,
                              timeout=60, env=dict(os.environ, PATH=folder))
        if done.returncode != code:
            sys.exit(f'tools/{script} {mode} ends with {done.returncode}, not {code}: {done}')
        with open(f'{folder}/log', encoding='ascii') as f:
            return [line.split()[1:] for line in f if line.startswith('sudo ')], done.stderr


def check(ok, what, got):
    if not ok:
        sys.exit(f'{what}: {got}')


def native(packages):
    return {p: ['all' if p == 'meson' else 'amd64'] for p in packages}


got = run('build', {p: ['i386', *a] for p, a in native(BUILD).items()})
check(got == ([], ''), 'packages that are there for two architectures', got)
got = run('build', {**native(BUILD), 'gcc': ['i386']}, BUILD)
check(got[0] and got[0][-1][-1] == 'gcc' and 'meson' not in got[0][-1], 'one that is there for another only', got)
for clang in ('14', '19'):
    runtime = f'libclang-rt-{clang}-dev'
    got = run('test', native(TEST), TEST + [runtime], clang)
    check(len(got[0]) == 1 and got[0][0][-1] == runtime, f'the runtime of clang {clang}', got)
    got = run('test', native([*TEST, runtime]), TEST + [runtime], clang)
    check(got == ([], ''), f'everything is there, with clang {clang}', got)
got = run('test', native(TEST), TEST, '13')
check(got[0] == [] and 'apt knows no libclang-rt-13-dev' in got[1], 'a clang without runtime package', got)
got = run('test', native(BUILD), TEST + ['libclang-rt-14-dev'], lists=False)
check(got[0][0][:2] == ['apt-get', 'update'] and got[0][-1][-5:] == [*TEST[-4:], 'libclang-rt-14-dev'],
      'a system without package lists', got)

got = run('lab', native(TEST), LAB)
check(len(got[0]) == 1 and got[0][0][-len(LAB):] == LAB, 'what the lab needs', got)

some = native(set(BUILD) - {'meson', 'gcc'})
missing = 'missing: gcc meson; as root, run: apt-get update && apt-get install --no-install-recommends gcc meson\n'
for script, mode, without in (('packages', 'build', ['sudo']), ('packages', 'build --say', []),
                              ('quickstart', '--no-install', [])):
    got = run(mode, some, BUILD, code=1, without=without, script=script)
    check(got == ([], f'packages: {missing}'), f'{script} {mode} where two are missing', got)
got = run('--no-install', native(BUILD), TEST, code=1, script='check')
check(got[0] == [] and got[1].endswith('recommends libcriterion-dev g++ clang openmpi-bin\n'), 'check without its packages', got)
got = run('--no-install', native(BUILD), code=1, script='quickstart')
check(got == ([], 'quickstart: meson or ninja is not found in PATH\n'), 'quickstart without meson', got)
check(run('build --say', native(BUILD)) == ([], ''), 'everything is there', '--say')
