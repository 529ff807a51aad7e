#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""includes.py ROOT

Walks every #include "..." of the tree and fails when a layer includes what lies above or beside it:

    tools -> runtime -> { transport, kernels, planner } -> runtime/base

The public header has no dependencies and may be included by all; tools and test drivers may include nothing else of ours
(but tests/driver/shm.c and threads.c, which hammer hidden parts).
"""
import os
import re
import sys
import tempfile

# Longest prefix first. Each layer: what it may include besides itself.
LAYERS = [
    ('runtime/base/', []),
    ('transport/', ['runtime/base/']),
    ('kernels/', ['runtime/base/']),
    ('planner/', ['runtime/base/']),
    ('runtime/', ['runtime/base/', 'transport/', 'kernels/', 'planner/']),
    ('tools/', []),
    ('tests/driver/shm.c', []),  # of layers that are not walked
    ('tests/driver/threads.c', []),
    ('tests/driver/', []),
]
PUBLIC = ('runtime/shunt.h', 'runtime/shunt_bench.h', 'runtime/shunt_version.h')
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def layer_of(path):
    return next((layer for layer in LAYERS if path.startswith(layer[0])), None)


def resolve(root, path, name):
    """The file an include means: beside the including file, or from the root."""
    beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
    return beside if os.path.exists(os.path.join(root, beside)) else name


def violations(root):
    found, files = [], 0
    for layer, _ in LAYERS:
        for folder, _, names in os.walk(os.path.join(root, layer)):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), root)
                own = layer_of(path)
                if not name.endswith(('.c', '.h')) or own[0] != layer:
                    continue
                files += 1
                with open(os.path.join(root, path), encoding='utf-8') as f:
                    text = f.read()
                for include in INCLUDE.findall(text):
                    target = resolve(root, path, include)
                    other = layer_of(target)
                    allowed = target in PUBLIC or other is not None and (other[0] == own[0] or other[0] in own[1])
                    if not allowed:
                        found.append(f'{path} includes {target}')
    return found, files


def check_the_check():
    """A tree with one wrong include of each kind must be refused."""
    for path, include in [('kernels/a.c', 'runtime/store/b.h'), ('runtime/base/a.c', 'kernels/b.h'),
                          ('planner/a.c', 'transport/b.h'), ('tools/a.c', 'runtime/base/b.h'),
                          ('transport/a.c', 'runtime/engine/b.h'), ('runtime/engine/a.c', 'tools/b.h'),
                          ('tests/driver/a.c', 'runtime/base/b.h')]:
        with tempfile.TemporaryDirectory() as root:
            for file, text in [(path, f'#include "{include}"\n'), (include, '\n')]:
                os.makedirs(os.path.dirname(os.path.join(root, file)), exist_ok=True)
                with open(os.path.join(root, file), 'w', encoding='utf-8') as f:
                    f.write(text)
            if not violations(root)[0]:
                sys.exit(f'the check does not see {path} including {include}')


check_the_check()
wrong, count = violations(sys.argv[1])
print(f'{count} files')
if count < 50:
    sys.exit('too few files: is this the source root?')
if wrong:
    sys.exit('\n'.join(wrong))
