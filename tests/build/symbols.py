#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""symbols.py ROOT LIBSHUNT

What the public headers mark SHUNT_API, what the export map lists and what the library exports must be the same names.
"""
import re
import subprocess
import sys

root, library = sys.argv[1:3]
header = set()
for name in ('shunt.h', 'shunt_bench.h'):
    with open(f'{root}/runtime/{name}', encoding='utf-8') as f:
        header |= set(re.findall(r'^SHUNT_API[^;(]*?\b(shunt_\w+)\(', f.read(), re.M))
with open(f'{root}/runtime/libshunt.map', encoding='utf-8') as f:
    listed = set(re.findall(r'^\s+(shunt_\w+);', f.read(), re.M))
out = subprocess.run(['nm', '-D', '--defined-only', library], check=True, capture_output=True, text=True).stdout
exported = {line.split()[2].split('@')[0] for line in out.splitlines() if line.split()[1] in 'TDBR'}
print(f'{len(header)} functions')
for name, have in (('the export map', listed), ('the library', exported)):
    if have != header:
        sys.exit(f'{name} lacks {sorted(header - have)} and has {sorted(have - header)} besides the headers')
if len(header) < 15:
    sys.exit('too few functions found: has the form of the headers changed?')
