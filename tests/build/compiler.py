#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compiler.py ROOT FOLDER CC [MESON OPTION...]

Builds the tree with another compiler or other options, warnings as errors, and runs the unit tests. Exits 77 (skipped)
where the compiler is not installed.
"""
import os
import shutil
import subprocess
import sys

root, folder, cc, options = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
if not shutil.which(cc):
    print(f'{cc} is not installed')
    sys.exit(77)
env = dict(os.environ, CC=cc)
if not os.path.exists(os.path.join(folder, 'build.ninja')):
    subprocess.run(['meson', 'setup', folder, root, '-Dwerror=true', *options], check=True, env=env)
subprocess.run(['ninja', '-C', folder], check=True)
subprocess.run(['meson', 'test', '-C', folder, '--no-rebuild', '--suite', 'unit', '--print-errorlogs'], check=True)
