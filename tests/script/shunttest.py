# SPDX-License-Identifier: Apache-2.0
"""What the script tests share: named cases that report in TAP, processes with a deadline, and the
check that none is left.

A script registers its cases and calls main():

    @case('an empty file is refused')
    def _(t):
        t.run('run', '-m', t.file('empty.gguf', b''), '-p', 'hi', code=1, err='is no GGUF file')

Each case gets a folder of its own (t.tmp) that is removed after it, and must end every process that
it starts: this program makes itself the one to whom orphans fall, so a node that outlives its
supervisor is seen, named and ended. Arguments of each script: SHUNT SOURCE_ROOT MODELS_DIR
[--only TEXT].
"""
import argparse
import array
import contextlib
import ctypes
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

DEADLINE = 60  # seconds for a command that should take one at most
PR_SET_CHILD_SUBREAPER = 36


# A test that a launcher has started is no node of its rack.
for name in list(os.environ):
    if re.match(r'(SLURM|OMPI|PMIX?|MPI)_|(RANK|WORLD_SIZE|MASTER_ADDR)$', name):
        del os.environ[name]


class Failure(AssertionError):
    pass


class Skip(Exception):
    pass


def check(ok, message):
    if not ok:
        raise Failure(message() if callable(message) else message)


def check_equal(got, wanted, what):
    check(got == wanted, f'{what}: {got!r}, expected {wanted!r}')


# ---- processes as /proc shows them

def proc_stat(pid):
    """(state, parent, ticks of processor time, start) or None."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19])


def children_of(pid):
    """Living and dead children, oldest first."""
    found = []
    for entry in os.listdir('/proc'):
        stat = proc_stat(entry) if entry.isdigit() else None
        if stat and stat[1] == pid:
            found.append((stat[3], int(entry)))
    return [p for _, p in sorted(found)]


def descendants_of(pid):
    found = []
    for child in children_of(pid):
        found += [child] + descendants_of(child)
    return found


def cpu_seconds(pid):
    stat = proc_stat(pid)
    return stat[2] / os.sysconf('SC_CLK_TCK') if stat else 0


def proc_status(pid, field):
    """A figure of /proc/PID/status in bytes."""
    found = re.search(rf'^{field}:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text(), re.M)
    return int(found.group(1)) << 10 if found else 0


def proc_io(pid):
    return {k: int(v) for k, v in re.findall(r'(\w+): (\d+)', Path(f'/proc/{pid}/io').read_text())}


def major_faults(pid):
    """Pages that had to be read from a drive, also for children whose exit codes were taken."""
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return int(fields[9]) + int(fields[10])


def mem_available():
    text = Path('/proc/meminfo').read_text()
    return int(re.search(r'MemAvailable:\s+(\d+) kB', text).group(1)) << 10


def is_alive(pid):
    stat = proc_stat(pid)
    return stat is not None and stat[0] not in 'ZX'


def wait_until(condition, what, timeout=DEADLINE, interval=0.01):
    end = time.monotonic() + timeout
    while True:
        got = condition()
        if got:
            return got
        check(time.monotonic() < end, lambda: f'{what}: did not happen within {timeout} s')
        time.sleep(interval)


def seconds_to_end(pids, act, timeout=20):
    """Calls act() and returns {pid: seconds from then until its process had ended}."""
    fds = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fds[os.pidfd_open(pid)] = pid
    try:
        ended = {pid: 0.0 for pid in pids if pid not in fds.values()}
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        begin = time.monotonic()
        act()
        while len(ended) < len(pids):
            left = begin + timeout - time.monotonic()
            ready = poll.poll(max(0, left) * 1000)
            now = time.monotonic() - begin
            for fd, _ in ready:
                ended[fds[fd]] = now
                poll.unregister(fd)
            check(ready, lambda: f'still there after {timeout} s: '
                                 f'{[describe(p) for p in pids if p not in ended]}')
        return ended
    finally:
        for fd in fds:
            os.close(fd)


def words(args):
    return ' '.join(os.fsdecode(a) for a in args[1:])[:300]


class Result:
    def __init__(self, args, code, out, err, seconds):
        self.args, self.code, self.raw, self.err, self.seconds = args, code, out, err, seconds

    @property
    def out(self):
        return self.raw.decode('utf-8', 'replace')

    def __str__(self):
        return (f'{words(self.args)}\n  exit {self.code} after {self.seconds:.2f} s\n'
                f'  stdout: {self.out[-600:]!r}\n  stderr: {self.err[-1500:]!r}')


class Process:
    """A command under test, in a process group of its own; its output goes to files."""

    def __init__(self, args, folder, number, stdin=subprocess.DEVNULL, stdout=None, stderr=None,
                 before=None):
        self.args = [os.fspath(a) for a in args]
        self.base = f'{folder}/process-{number}'
        self.begin = time.monotonic()
        with open(self.base + '.out', 'wb') as out, open(self.base + '.err', 'wb') as err:
            self.popen = subprocess.Popen(
                self.args, stdin=stdin, stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                start_new_session=True, preexec_fn=before)
        self.pid = self.popen.pid
        self.result = None

    def out(self):
        return Path(self.base + '.out').read_bytes()

    def err(self):
        return Path(self.base + '.err').read_text(errors='replace')

    def running(self):
        return self.popen.poll() is None

    def nodes(self, count):
        """Pids of the node processes of `--nodes`, by rank."""
        wait_until(lambda: len(children_of(self.pid)) == count, f'{count} nodes of {self.pid}')
        return children_of(self.pid)

    def nodes_now(self):
        return children_of(self.pid)

    def wait_output(self, text, timeout=DEADLINE, where='out'):
        def seen():
            check(self.running() or text in self.text(where),
                  lambda: f'ended before {text!r} came: {self.wait()}')
            return text in self.text(where)
        wait_until(seen, f'{text!r} on std{where} of {self.args[1:3]}', timeout)

    def text(self, where):
        return self.out().decode('utf-8', 'replace') if where == 'out' else self.err()

    def signal(self, number):
        self.popen.send_signal(number)

    def signal_group(self, number):
        os.killpg(self.pid, number)

    def wait(self, timeout=DEADLINE):
        if self.result is None:
            try:
                code = self.popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.end()
                raise Failure(f'still running after {timeout} s: {words(self.args)}\n'
                              f'  stderr: {self.err()[-1500:]!r}') from None
            self.result = Result(self.args, code, self.out(), self.err(),
                                 time.monotonic() - self.begin)
        return self.result

    def end(self):
        """Ends it and what it has started, whatever state they are in."""
        for pid in descendants_of(self.pid) + [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                if pid != self.pid or self.popen.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        self.popen.wait()


# ---- watching a run from outside

class Watch(threading.Thread):
    """The highest VmHWM of each process while it lives, and bytes of a file in the page cache."""

    def __init__(self, pids, path=None):
        super().__init__()
        self.pids, self.path = pids, path
        self.peaks, self.cached, self.done = {}, 0, threading.Event()

    def run(self):
        while not self.done.wait(0.005):
            for pid in self.pids():
                with contextlib.suppress(OSError):
                    peak = proc_status(pid, 'VmHWM') + proc_status(pid, 'HugetlbPages')
                    self.peaks[pid] = max(peak, self.peaks.get(pid, 0))
            if self.path:
                self.cached = max(self.cached, cached_bytes(self.path))

    def stop(self):
        self.done.set()
        self.join()


@contextlib.contextmanager
def watch(pids, path=None):
    watcher = Watch(pids, path)
    watcher.start()
    try:
        yield watcher
    finally:
        watcher.stop()


def cached_bytes(path):
    """By mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = path.stat().st_size
    pages = (size + 4095) // 4096
    fd = os.open(path, os.O_RDONLY)
    at = libc.mmap(None, ctypes.c_size_t(size), 1, 1, fd, ctypes.c_long(0))
    os.close(fd)
    check(at not in (None, ctypes.c_void_p(-1).value), 'mmap')
    present = (ctypes.c_ubyte * pages)()
    rc = libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), present)
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
    check_equal(rc, 0, 'mincore')
    return 4096 * sum(p & 1 for p in present)


# ---- goldens: what the official implementation computes (tools/demo/README.md has the format)

class Golden:
    def __init__(self, model):
        self.model = Path(model)
        described = json.loads(Path(f'{model}.golden.json').read_text())
        self.vocab, self.prompts = described['vocab'], described['prompts']
        self.logits = read_floats(f'{model}.golden.f32')

    def row(self, prompt, index):
        begin = (prompt['logits_offset_rows'] + index) * self.vocab
        return self.logits[begin:begin + self.vocab]


def read_floats(path):
    values = array.array('f')
    values.frombytes(Path(path).read_bytes())
    if sys.byteorder == 'big':
        values.byteswap()
    return values


def greatest_difference(a, b):
    """Infinite when a value is no number."""
    worst = max(map(abs, map(float.__sub__, a, b)))
    return worst if all(x == x for x in a) else float('inf')


# ---- cases

class Environment:
    pass


env = Environment()
cases = []


def case(name, *args):
    """Registers a function as a case of this name; it is called with a Test and these arguments."""
    def register(fn):
        cases.append((name, fn, args))
        return fn
    return register


def note(text):
    for line in str(text).splitlines():
        print('#', line, flush=True)


class Test:
    def __init__(self, folder):
        self.tmp = folder
        self.processes = []

    def file(self, name, content=b''):
        path = self.tmp / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def ids(self, ids, name='ids'):
        return self.file(name, ' '.join(map(str, ids)))

    def start(self, *args, **how):
        """Starts a shunt command."""
        process = Process([env.shunt, *args], self.tmp, len(self.processes), **how)
        self.processes.append(process)
        return process

    def run(self, *args, code=0, out=None, err=None, timeout=DEADLINE, **how):
        """Runs a shunt command to its end; checks its exit code and, by patterns, its output."""
        result = self.start(*args, **how).wait(timeout)
        check(result.code == code, lambda: f'exit code {result.code}, expected {code}: {result}')
        for pattern, text, what in ((out, result.out, 'stdout'), (err, result.err, 'stderr')):
            check(pattern is None or re.search(pattern, text),
                  lambda: f'{what} lacks {pattern!r}: {result}')
        return result

    def key(self, name='rack.key'):
        """The file of a key for a rack: the same one for the same name, another for another."""
        path = self.tmp / name
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(os.urandom(32).hex() + '\n')
        return path

    def left_behind(self):
        """Descendants that are still there, given a moment to end."""
        mine = {p.pid for p in self.processes if p.result is None}
        left = []
        for _ in range(50):
            reap_orphans(self.processes)
            left = [pid for pid in descendants_of(os.getpid()) if is_alive(pid) or pid in mine]
            if not left:
                break
            time.sleep(0.02)
        return left

    def end_all(self):
        for process in self.processes:
            process.end()
        for pid in descendants_of(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap_orphans(self.processes)


def reap_orphans(processes):
    """Takes the exit codes of dead children that are not ours by birth."""
    own = {p.pid for p in processes}
    for pid in children_of(os.getpid()):
        if pid not in own and not is_alive(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def describe(pid):
    with contextlib.suppress(OSError):
        words = Path(f'/proc/{pid}/cmdline').read_bytes().decode(errors='replace').split('\0')
        return f'{pid} ({" ".join(words)[:160]})'
    return str(pid)


def run_case(fn, args):
    folder = Path(tempfile.mkdtemp(dir=env.tmp))
    t = Test(folder)
    try:
        fn(t, *args)
        left = t.left_behind()
        check(not left, lambda: f'processes are left: {", ".join(map(describe, left))}')
        return None, None
    except Skip as skip:
        return None, str(skip)
    except Failure as failure:
        return str(failure), None
    except Exception:
        return traceback.format_exc(), None
    finally:
        t.end_all()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count):
    """Ports that nobody uses, outside the range the kernel takes its own from."""
    found = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(('127.0.0.1', port))
            if port not in found:
                found.append(port)
    return found


def established(port):
    """Connections that somebody has made to this port of this machine."""
    return len(re.findall(rf'^ *\d+: \w+:{port:04X} \w+:\w+ 01 ', Path('/proc/net/tcp').read_text(),
                          re.M))


def rack_of(ports):
    return ','.join(f'127.0.0.1:{p}' for p in ports)


def without_suspicions(text):
    """Standard error without the notices of a peer that is silent for a while, which a machine under
    load may be the cause of."""
    return re.sub(r'^shunt: rank \d+ \(\S+\) is (silent for [\d.]+ s|back)\n', '', text, flags=re.M)


def doctor():
    """{name: (status, detail)} of this machine."""
    text = subprocess.run([env.shunt, 'doctor', env.tmp], capture_output=True, text=True,
                          timeout=DEADLINE, check=True).stdout
    lines = re.findall(r'^(ok|limited|no) +(\S+(?: \S+)*)  +(.*)', text, re.M)
    return {name: (status, detail) for status, name, detail in lines}


def kernel_levels():
    return re.search(r'kernels: (.*)', doctor()['processor'][1]).group(1).split(', ')


def need(what):
    """Skips the case where this machine lacks something."""
    status, detail = doctor()[what]
    if status == 'no':
        raise Skip(f'{what}: {detail}')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('shunt')
    parser.add_argument('root', type=Path)
    parser.add_argument('models', type=Path)
    parser.add_argument('--only', default='')
    a = parser.parse_args()
    env.shunt, env.root, env.models = os.path.abspath(a.shunt), a.root.resolve(), a.models
    env.demo = env.root / 'tools' / 'demo' / 'qwen3moe-demo-Q8_0.gguf'
    env.version = subprocess.run([env.shunt, '--version'], capture_output=True, text=True,
                                 timeout=DEADLINE, check=True).stdout.split()[1]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    chosen = [c for c in cases if a.only in c[0]]
    failures = 0
    print(f'1..{len(chosen)}', flush=True)
    # Beside the program, on a real drive: /tmp may be in memory.
    with tempfile.TemporaryDirectory(prefix='script-test-', dir=os.path.dirname(env.shunt)) as tmp:
        env.tmp = Path(tmp)
        for number, (name, fn, args) in enumerate(chosen, 1):
            begin = time.monotonic()
            failure, skip = run_case(fn, args)
            if failure:
                note(failure)
            failures += failure is not None
            print(f'{"not ok" if failure else "ok"} {number} - {name.replace("#", "")}'
                  f'{" # SKIP " + skip if skip else ""}', flush=True)
            if time.monotonic() - begin > 2:
                note(f'{time.monotonic() - begin:.1f} s')
    sys.exit(1 if failures else 0)
