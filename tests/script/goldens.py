#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Logits and greedy ids against the official implementation, for each weight type and kernel level.

tools/demo has one model; the others come from MODELS_DIR and are skipped where that is absent.
"""
import json
import re

from shunttest import (Golden, Skip, case, check, check_equal, env, greatest_difference,
                       kernel_levels, main, note, read_floats)

FILES = ['qwen3moe-demo-F16', 'qwen3moe-demo-Q8_0', 'qwen3moe-demo-Q4_0',
         'qwen3moe-k-Q4_K_M', 'qwen3moe-k-Q5_K_M', 'qwen3moe-k-Q6_K']
LEVELS = ['ref', 'avx2']


def tolerance():
    """The bound lives with the others, in tests/tolerances.h."""
    text = (env.root / 'tests' / 'tolerances.h').read_text()
    return float(re.search(r'#define SHUNT_TOL_LOGITS\s+(\S+)', text).group(1))


def open_golden(path):
    if not path.exists():
        raise Skip(f'{path.name} is not in {path.parent} (-Dmodels_dir)')
    return Golden(path)


def check_levels(level):
    if level not in kernel_levels():
        raise Skip(f'this processor has no {level}')


def evaluate(t, golden, prompt, *options):
    """Return: logits of every position, greedy ids."""
    out = t.tmp / 'logits.f32'
    result = t.run('eval', '-m', golden.model, '--ids-file', t.ids(prompt['ids']), '--logits', out,
                   '--greedy', str(len(prompt['greedy'])), *options)
    check_equal(out.stat().st_size, len(prompt['ids']) * golden.vocab * 4, 'bytes of logits')
    return read_floats(out), [int(i) for i in result.out.split()]


def compare(t, path, level):
    check_levels(level)
    golden = open_golden(path)
    worst, rows, ids = 0.0, 0, 0
    for prompt in golden.prompts:
        logits, greedy = evaluate(t, golden, prompt, '--kernels', level)
        for index, row in enumerate(prompt['logit_rows']):
            if row >= prompt['comparable_rows']:
                break
            got = logits[row * golden.vocab:(row + 1) * golden.vocab]
            worst = max(worst, greatest_difference(got, golden.row(prompt, index)))
            rows += 1
        comparable = prompt['greedy_comparable']
        check_equal(greedy[:comparable], prompt['greedy'][:comparable],
                    f'greedy ids of {prompt["domain"]}')
        ids += comparable
    note(f'{path.name}, {level}: largest difference {worst:.2e} in {rows} rows, '
         f'{ids} greedy ids equal')
    check(rows > 0 and ids > 0, 'nothing was comparable')
    check(worst <= tolerance(), f'largest difference {worst:.3e}, allowed {tolerance():.0e}')


def check_texts(t, *options):
    """All prompts that are texts, at once, in one command."""
    golden = Golden(env.demo)
    prompts = [p for p in golden.prompts if p['text']]
    arguments = [a for p in prompts for a in ('-p', p['text'])]
    report = t.tmp / 'report.json'
    t.run('run', '-m', golden.model, *arguments, '-n', '48', '--report', report, *options)
    for prompt, sequence in zip(prompts, json.loads(report.read_text())['sequences'], strict=True):
        check_equal(sequence['prompt_tokens'], len(prompt['ids']), f'ids of {prompt["domain"]}')
        comparable = prompt['greedy_comparable']
        check_equal(sequence['ids'][:comparable], prompt['greedy'][:comparable],
                    f'ids after {prompt["domain"]}')


def check_text(t, index):
    """What a person sees: the text itself, byte for byte, and nothing else."""
    prompt = Golden(env.demo).prompts[index]
    check_equal(prompt['greedy_comparable'], len(prompt['greedy']), 'comparable ids')
    result = t.run('run', '-m', env.demo, '-p', prompt['text'], '-n', str(len(prompt['greedy'])),
                   '--quiet')
    check_equal(result.out, prompt['greedy_text'] + '\n', 'text')


@case('a wrong id is seen')
def _(t):
    """The comparison itself: another prompt must not pass."""
    golden = Golden(env.demo)
    prompt = dict(golden.prompts[0])
    prompt['ids'] = prompt['ids'][:5] + [prompt['ids'][5] + 1] + prompt['ids'][6:]
    logits, _ = evaluate(t, golden, prompt)
    differences = [greatest_difference(logits[r * golden.vocab:(r + 1) * golden.vocab],
                                       golden.row(prompt, r)) for r in range(len(prompt['ids']))]
    check(max(differences[:5]) <= tolerance() < min(differences[5:]), f'differences {differences}')


@case('a logit that is no number is seen')
def _(t):
    check_equal(greatest_difference([1.0, float('nan')], [1.0, 1.0]), float('inf'), 'difference')


for level in LEVELS:
    case(f'demo: {level}')(lambda t, level=level: compare(t, env.demo, level))
    for name in FILES:
        case(f'{name}: {level}')(
            lambda t, name=name, level=level: compare(t, env.models / f'{name}.gguf', level))
for index, domain in enumerate(('drama', 'prosa', 'code')):
    case(f'text of {domain}')(lambda t, index=index: check_text(t, index))
case('three texts at once on one node')(check_texts)
case('three texts at once on three nodes', '--nodes', '3', '--slots', '40%')(check_texts)

if __name__ == '__main__':
    main()
