#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""sanitize.py ROOT FOLDER address|thread [MESON OPTION...]

Builds the command and the plain-C drivers with a sanitizer and runs them: a rack of three nodes, the invariants, bad
input. Any report fails the job; and so does a planted error that is not reported. (Criterion does not run under the
thread sanitizer, and a leak leaves its tests green: hence drivers.)
"""
import os
import signal
import subprocess
import sys
import tempfile
import time

root, folder, kind, options = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
OPTIONS = {
    'address': ['-Db_sanitize=address,undefined'],
    'thread': ['-Db_sanitize=thread'],
}
PLANTED = {
    'address': {'leak': 'LeakSanitizer', 'overflow': 'heap-buffer-overflow', 'undefined': 'runtime error'},
    'thread': {'race': 'data race'},
}
REPORTS = ('ERROR: AddressSanitizer', 'ERROR: LeakSanitizer', 'WARNING: ThreadSanitizer', 'runtime error:')
ENV = dict(os.environ, ASAN_OPTIONS='detect_leaks=1', UBSAN_OPTIONS='halt_on_error=1:print_stacktrace=1',
           TSAN_OPTIONS='halt_on_error=1')


def run(args, expect, stdin=None):
    """Runs a command in a process group of its own, with a deadline; fails on a report or another exit code."""
    begin = time.monotonic()
    p = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         errors='replace', env=ENV, start_new_session=True)
    try:
        out, _ = p.communicate(stdin, timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        out, _ = p.communicate()
        sys.exit(f'{args}: no end within 600 s\n{out}')
    report = next((r for r in REPORTS if r in out), None)
    if report or p.returncode != expect:
        sys.exit(f'{args}: exit code {p.returncode} ({expect} expected), report: {report}\n{out}')
    print(f'ok {time.monotonic() - begin:6.1f} s', ' '.join(args[:2] + [a for a in args[2:] if len(a) < 40]), flush=True)


def expect_report(driver, error, words):
    p = subprocess.run([driver, error], capture_output=True, text=True, env=ENV, timeout=60, check=False)
    if p.returncode == 0 or words not in p.stderr:
        sys.exit(f'a planted {error} went unreported: exit code {p.returncode}\n{p.stderr}')
    print(f'ok: a planted {error} is reported')


if not os.path.exists(os.path.join(folder, 'build.ninja')):
    subprocess.run(['meson', 'setup', folder, root, '-Db_lundef=false', '-Dwerror=true', *OPTIONS[kind], *options],
                   check=True)
subprocess.run(['ninja', '-C', folder, 'tools/shunt', 'tests/driver/api', 'tests/driver/identity',
                'tests/driver/planted', 'tests/driver/shm', 'tests/driver/soak', 'tests/driver/threads'], check=True)
shunt, driver = f'{folder}/tools/shunt', f'{folder}/tests/driver'
model = f'{root}/tools/demo/qwen3moe-demo-Q8_0.gguf'
for planted, text in PLANTED[kind].items():
    expect_report(f'{driver}/planted', planted, text)
prompts = [a for name in ('drama', 'prosa', 'code') for a in ('-f', f'{root}/tools/demo/prompts/{name}.txt')]
with tempfile.TemporaryDirectory() as temp:
    rack = ['--nodes', '3', '--slots', '40%', '--plan-interval', '0.2', '--dead-after', '30']
    run([shunt, 'run', '-m', model, *rack, '-n', '24', *prompts, '--verify', '--report', f'{temp}/r.json'], 0)
    run([shunt, 'run', '-m', model, *rack, '-n', '8', '--io', 'pread', '--temp', '0.8', '--stop', 'the', *prompts], 0)
    with open(os.open(f'{temp}/key', os.O_CREAT | os.O_WRONLY, 0o600), 'w', encoding='ascii') as f:
        f.write(os.urandom(32).hex())
    for how in ([], ['--encrypt']):
        run([shunt, 'run', '-m', model, *rack, '-n', '8', '--key-file', f'{temp}/key', *how, *prompts], 0)
    run([shunt, 'run', '-m', model, '-n', '8', '--slots', '2'], 0, stdin='What say you')
    run([shunt, 'inspect', model, '--tensors', '--experts'], 0)
    run([shunt, 'doctor', model], 0)
    run([shunt, 'run', '-m', model, *rack, '-n', '8', '--transport', 'shm', *prompts, '--verify'], 0)
    for transport in ('tcp', 'shm'):
        run([shunt, 'bench', 'link', '--local', '--transport', transport, '-a', '-n', '20', '-b', '--busy-poll', '20'],
            0)
        run([shunt, 'bench', 'dispatch', '--nodes', '3', '--transport', transport, '--hidden', '512', '-n', '20',
             '--busy-poll', '20'], 0)
    for cut in (0, 3, 100, 5000, 61000, 700000):
        with open(model, 'rb') as f, open(f'{temp}/cut.gguf', 'wb') as out:
            out.write(f.read(cut))
        run([shunt, 'inspect', f'{temp}/cut.gguf'], 1)
    run([shunt, 'run', '-m', model, '-p', 'x', '--rank', '0', '--rack', '127.0.0.1:1,127.0.0.1:2',
         '--join-timeout', '1'], 1)
run([f'{driver}/identity', model], 0)
run([f'{driver}/api', model], 0)
run([f'{driver}/soak', model, '6', '1'], 0)
run([f'{driver}/threads', '1'], 0)
run([f'{driver}/shm', '1'], 0)
