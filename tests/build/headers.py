#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""headers.py ROOT CC...

Each public header compiles alone, in strict C11 and, where there is a C++ compiler, in C++.
"""
import os
import shutil
import subprocess
import sys
import tempfile

root, cc = sys.argv[1], sys.argv[2:]
cxx = next((c for c in ('c++', 'g++', 'clang++') if shutil.which(c)), None)
for header in ('shunt.h', 'shunt_bench.h', 'shunt_version.h'):
    for compiler, flags, suffix in ((cc, ['-std=c11'], 'c'), (cxx and [cxx], ['-std=c++11'], 'cc')):
        if not compiler:
            print('no C++ compiler: C only')
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, f'alone.{suffix}')
            with open(source, 'w', encoding='utf-8') as f:
                f.write(f'#include <{header}>\nint main(void) {{ return 0; }}\n')
            subprocess.run([*compiler, *flags, '-pedantic-errors', '-Wall', '-Wextra', '-Werror', '-fsyntax-only',
                            f'-I{root}/runtime', source], check=True)
            print(f'{header}: {" ".join(compiler)} {flags[0]}')
