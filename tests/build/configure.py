#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""configure.py ROOT CC

Options that only need to be configured to be seen: what would be built, and what is said.
"""
import json
import os
import subprocess
import sys
import tempfile

root, cc = sys.argv[1], sys.argv[2:]


def configure(*options):
    """Return: what meson says, and the names of what it would build."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(['meson', 'setup', folder, root, *options], capture_output=True, text=True, timeout=120,
                              env=dict(os.environ, CC=' '.join(cc)))
        if done.returncode:
            sys.exit(f'meson setup {" ".join(options)} has failed:\n{done.stdout[-1500:]}{done.stderr[-500:]}')
        targets = subprocess.run(['meson', 'introspect', '--targets', folder], check=True, capture_output=True,
                                 text=True).stdout
        return done.stdout, {t['name'] for t in json.loads(targets)}


FUZZERS = {'fuzz-' + door for door in ('control', 'gguf', 'hello', 'join', 'planning', 'shm', 'tcp', 'wire')}
said, names = configure('-Dtests=disabled', '-Dfuzzers=true')
if not FUZZERS <= names:
    sys.exit(f'-Dtests=disabled -Dfuzzers=true builds {names}')
said, names = configure('-Dtests=disabled')
if FUZZERS & names or 'WARNING: cuda' in said:
    sys.exit(f'without options: {names}\n{said}')
# Without what may not be installed here: this is about the others.
for options in (['-Dauto_features=enabled', '-During=disabled', '-Dtests=disabled'],
                ['-Dtests=disabled', '-Dcuda=enabled']):
    said, names = configure(*options)
    if 'cuda is enabled, but this version does not have it' not in said or 'not in this version' not in said:
        sys.exit(f'{options}: {said}')
said, names = configure('-Dtests=disabled', '-Dverbs=disabled')
if 'verbs        : no: rows travel by TCP' not in said:
    sys.exit(f'without verbs: {said}')
