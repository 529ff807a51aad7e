#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""install.py BUILD MODEL CC...

`meson install` into a folder, then a program outside the tree that knows nothing but `pkg-config shunt` is compiled,
linked and run: the example of the README.
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

build, model, cc = sys.argv[1], sys.argv[2], sys.argv[3:]
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def readme_example():
    with open(os.path.join(root, 'README.md'), encoding='utf-8') as f:
        found = re.search(r'```c\n(.*?)```', f.read(), re.S)
    if not found:
        sys.exit('README.md has no example in C')
    lines = found.group(1).count('\n')
    if lines > 25:
        sys.exit(f'the example in README.md has {lines} lines; it may have 25')
    return found.group(1)


def check_unit(folder):
    """systemd must know every word of it, and find its programs."""
    found = glob.glob(f'{folder}/**/shunt-node@.service', recursive=True)
    if len(found) != 1:
        sys.exit(f'one shunt-node@.service was expected: {found}')
    with open(found[0], encoding='utf-8') as f:
        text = f.read()
    if not shutil.which('systemd-analyze'):
        print('systemd-analyze is not installed: the unit is not verified')
        return
    unit = f'{folder}/shunt-node@verified.service'
    with open(unit, 'w', encoding='utf-8') as f:
        f.write(re.sub('^ExecStart=', f'ExecStart={folder}', text, flags=re.M))
    done = subprocess.run(['systemd-analyze', 'verify', '--man=no', unit], capture_output=True, text=True, timeout=60)
    if done.returncode or 'shunt-node' in done.stderr:
        sys.exit(f'systemd-analyze verify: {done.stderr}')


with tempfile.TemporaryDirectory() as folder:
    env = dict(os.environ, DESTDIR=folder)
    subprocess.run(['meson', 'install', '-C', build, '--no-rebuild', '--quiet'], check=True, env=env)
    pc = glob.glob(f'{folder}/**/shunt.pc', recursive=True)
    if len(pc) != 1:
        sys.exit(f'one shunt.pc was expected: {pc}')
    env['PKG_CONFIG_PATH'] = os.path.dirname(pc[0])
    env['PKG_CONFIG_SYSROOT_DIR'] = folder
    flags = subprocess.run(['pkg-config', '--cflags', '--libs', 'shunt'], check=True, env=env, capture_output=True,
                           text=True).stdout.split()
    source = os.path.join(folder, 'embed.c')
    with open(source, 'w', encoding='utf-8') as f:
        f.write(readme_example())
    program = os.path.join(folder, 'embed')
    subprocess.run([*cc, '-std=c11', '-Wall', '-Wextra', '-Werror', '-o', program, source, *flags], check=True)
    libdir = os.path.dirname(glob.glob(f'{folder}/**/libshunt.so', recursive=True)[0])
    env['LD_LIBRARY_PATH'] = libdir
    out = subprocess.run([program, model, 'What say you, my lord?'], check=True, timeout=120, capture_output=True,
                         text=True, env=env).stdout
    print(repr(out))
    if len(out.strip()) < 10:
        sys.exit('the example has generated no text')
    for arguments, says in (([], 'usage'), ([folder + '/none', 'hi'], 'No such file'), ([model, ''], 'empty'),
                            ([model, b'\xff'], 'UTF-8'), ([model, 'word ' * 3000], 'context of 2048')):
        bad = subprocess.run([program, *arguments], timeout=120, capture_output=True, text=True, env=env)
        if bad.returncode != 1 or bad.stdout or says not in bad.stderr:
            sys.exit(f'the example with {str(arguments)[:80]} ends otherwise: {str(bad)[-500:]}')
    check_unit(folder)
    for name in ('bin/shunt', 'man/man1/shunt.1', 'include/shunt.h', 'include/shunt_version.h'):
        if not glob.glob(f'{folder}/**/{name}', recursive=True):
            sys.exit(f'{name} is not installed')
