# SPDX-License-Identifier: Apache-2.0
"""Guests with RDMA devices, on a machine that has none: QEMU runs Debian's kernel, whose rdma_rxe
makes every network card an RDMA device (RoCE v2, in software). A guest sees the host's root file
system over 9p, read-only under a throw-away overlay, so the programs of a build tree run in it as
they are. Emulated without KVM; the processor is one without AVX.

    prepare     the kernel, unpacked in a cache; a few seconds of download, once
    Guests      one guest or several, each running one command

Addresses: of several guests, guest N (from 0) has rxe0 on 10.77.0.N+1. A guest alone has rxe0 on
10.77.0.1 and rxe1 on 10.77.0.2, and what goes from one to the other crosses a (virtual) wire. A
second rail is 10.78.0, and so on.
"""
import contextlib
import fcntl
import hashlib
import json
import lzma
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOOLS = ('qemu-system-x86_64', 'busybox', 'cpio', 'depmod', 'modprobe', 'rdma', 'ip', 'tc', 'zstd')
KERNEL = 'linux-image-amd64'  # whatever the release has
DMABUF_KERNEL = 'linux-image-6.12-amd64'  # has udmabuf, and the driver that dmabuf/ can patch

# What a guest needs before it sees the host's files.
BOOT_MODULES = ('virtio_pci', '9pnet_virtio', '9p', 'overlay', 'virtio_net', 'crc32_generic',
                'rdma_rxe', 'ib_uverbs', 'rdma_ucm')

# A package of Debian's kernel has 400 MB of modules, most for hardware that a guest has not.
MODULES = ('crypto/', 'lib/', 'net/', 'arch/x86/crypto/', 'fs/9p/', 'fs/netfs/', 'fs/fscache/',
           'fs/overlayfs/', 'fs/configfs/', 'fs/ext4/', 'fs/jbd2/', 'fs/mbcache', 'drivers/virtio/',
           'drivers/block/virtio_blk', 'drivers/block/null_blk/', 'drivers/char/hw_random/',
           'drivers/dma-buf/', 'drivers/infiniband/core/', 'drivers/infiniband/sw/',
           'drivers/net/virtio_net', 'drivers/net/net_failover', 'drivers/net/veth',
           'drivers/net/dummy', 'drivers/nvme/host/', 'drivers/nvme/common/')

# The folders a guest mounts over: what lies there on the host it does not see.
HIDDEN = ('/proc', '/sys', '/dev', '/run')

FAILED = 125  # of a guest: the lab's own failure, or the guest's kernel's
OUT_OF_TIME = 124
AFTER_A_FAILURE_S = 10


class NoLab(Exception):
    """This machine cannot have a lab; the text says why."""


# Debian keeps modprobe and the like from the PATH of ordinary users.
os.environ['PATH'] += ':/usr/sbin:/sbin'


def run(*words, **how):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, **how)
    if done.returncode:
        said = done.stderr.decode(errors='replace').strip()[-400:]
        raise NoLab(f'{shlex.join(map(str, words))[:200]}: {said or f"exit {done.returncode}"}')
    return done.stdout


# ---- packages and kernel

def missing_tools():
    return [t for t in TOOLS if not shutil.which(t)]


def install_packages():
    """As root, or with sudo where that asks nothing; else the reason names the command."""
    if os.uname().machine != 'x86_64':
        raise NoLab(f'the guests are x86-64, this machine is {os.uname().machine}')
    can = os.geteuid() == 0 or shutil.which('sudo') and subprocess.run(
        ['sudo', '-n', 'true'], capture_output=True).returncode == 0
    run(ROOT / 'tools' / 'packages', 'lab', *([] if can else ['--say']))


def cache_folder():
    if os.environ.get('SHUNT_LAB_CACHE'):
        return Path(os.environ['SHUNT_LAB_CACHE'])
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'shunt-lab'


def fetch_kernel(package, folder):
    """Unpacks the package that `package` depends on: image and modules, nothing is installed."""
    shown = subprocess.run(['apt-cache', 'show', '--no-all-versions', package],
                           capture_output=True, text=True).stdout
    found = re.search(r'^Depends:.*?(linux-image-\d[^ ,]*)', shown, re.M)
    if not found:
        raise NoLab(f'apt knows no kernel package {package}')
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix='fetch-') as tmp:
        run('apt-get', 'download', '-q', found.group(1), cwd=tmp)
        deb, = Path(tmp).glob('*.deb')
        new = Path(tmp) / 'kernel'
        new.mkdir()
        run('bash', '-o', 'pipefail', '-c', 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" '
            '--no-same-owner --wildcards "./boot/vmlinuz-*" "./lib/modules/*"',
            'bash', deb, new)
        modules, = (new / 'lib/modules').iterdir()
        keep_modules(modules)
        run('depmod', '-b', new, modules.name)
        unpack_image(next((new / 'boot').glob('vmlinuz-*')), new / 'vmlinux')
        shutil.rmtree(new / 'boot')
        new.rename(folder)


def keep_modules(modules):
    for path in sorted((modules / 'kernel').rglob('*.ko*')):
        name = str(path.relative_to(modules / 'kernel'))
        if not name.startswith(MODULES):
            path.unlink()


def unpack_image(image, to):
    """The ELF file within a bzImage, which QEMU starts at once: the emulated processor would take
    seconds to decompress it."""
    data = image.read_bytes()
    setup_sectors = (data[0x1f1] or 4) + 1
    offset, length = struct.unpack_from('<II', data, 0x248)
    payload = data[setup_sectors * 512 + offset:][:length]
    if payload.startswith(b'\xfd7zXZ\0'):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b'\x28\xb5\x2f\xfd'):
        # Behind it the kernel's build appends the length.
        elf = subprocess.run(['zstd', '-dcq'], input=payload[:-4], capture_output=True).stdout
    else:
        raise NoLab(f'{image.name}: compressed in a way that is not known here')
    if not elf.startswith(b'\x7fELF'):
        raise NoLab(f'{image.name}: no ELF file within')
    to.write_bytes(elf)


def make_ramdisk(kernel, instead):
    """busybox, /init and the modules every guest needs; all else comes from the host. `instead`: a
    folder of modules that replace those of the same name, or None."""
    init = (HERE / 'guest' / 'init').read_bytes()
    content = init + ' '.join([*BOOT_MODULES, str(instead)]).encode()
    mark = hashlib.sha256(content).hexdigest()[:16]
    ramdisk = kernel / f'ramdisk-{mark}'
    if ramdisk.exists():
        return ramdisk
    release, = os.listdir(kernel / 'lib/modules')
    with tempfile.TemporaryDirectory(dir=kernel) as tmp:
        tree = Path(tmp) / 'tree'
        (tree / 'bin').mkdir(parents=True)
        (tree / 'modules').mkdir()
        shutil.copy(shutil.which('busybox'), tree / 'bin' / 'busybox')
        (tree / 'init').write_bytes(init)
        (tree / 'init').chmod(0o755)
        names = []
        for module in BOOT_MODULES:
            plan = run('modprobe', '-d', kernel, '-S', release, '--show-depends', module).decode()
            for path in re.findall(r'^insmod (\S+)', plan, re.M):
                name = os.path.basename(path).removesuffix('.xz')
                if name not in names:
                    if instead and (instead / name).exists():
                        path = str(instead / name)
                    data = Path(path).read_bytes()
                    data = lzma.decompress(data) if path.endswith('.xz') else data
                    (tree / 'modules' / name).write_bytes(data)
                    names.append(name)
        (tree / 'modules.list').write_text('\n'.join(names) + '\n')
        archive = Path(tmp) / 'archive'
        run('bash', '-o', 'pipefail', '-c',
            'cd "$1" && find . | cpio -o -H newc -R 0:0 --quiet >"$2"', 'bash', tree, archive)
        archive.rename(ramdisk)
    return ramdisk


class Kernel:
    """`dmabuf`: a folder that dmabuf/build has made, or None."""

    def __init__(self, folder, dmabuf=None):
        self.folder = folder
        self.image = folder / 'vmlinux'
        self.ramdisk = make_ramdisk(folder, dmabuf)
        self.preload = dmabuf / 'shim.so' if dmabuf else None


def prepare(package=KERNEL, install=True, dmabuf=False):
    """Return: a kernel to boot. `install`: fetch what is missing. `dmabuf`: its rdma_rxe registers
    DMA-BUFs; takes a kernel that dmabuf/ knows, and builds that driver once."""
    package = DMABUF_KERNEL if dmabuf else package
    try:
        if install:
            install_packages()
        if missing_tools():
            raise NoLab(f'not found: {" ".join(missing_tools())}; tools/packages lab installs them')
        folder = cache_folder() / package
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / 'lock', 'w', encoding='ascii') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be preparing the same
            if not folder.exists():
                if not install:
                    raise NoLab(f'no kernel in {folder}; tests/lab/run --prepare fetches it')
                fetch_kernel(package, folder)
            if not dmabuf:
                return Kernel(folder)
            built = folder / 'dmabuf'
            if not built.exists():
                if not install:
                    raise NoLab(f'no {built}; tests/lab/run --dmabuf --prepare builds it')
                run(HERE / 'dmabuf' / 'build', folder, built)
            return Kernel(folder, built)
    except OSError as e:
        raise NoLab(str(e)) from e


# ---- guests

class Guests:
    """`count` guests that run the same shell command, told apart by NODE. Each has a folder of its
    own (folder/N), which it sees as /run/lab: stdout, stderr, code are there, live.

    As a context manager: on leaving it, no guest runs any more."""

    def __init__(self, kernel, folder, count, command, *, rails=1, cpus=1, memory_mib=1024,
                 mtu=9000, modules=(), env=None, cpu='qemu64'):
        self.kernel, self.count, self.rails = kernel, count, rails
        self.cpus, self.memory_mib, self.cpu = cpus, memory_mib, cpu
        self.folders = [Path(folder) / str(n) for n in range(count)]
        self.sockets = None  # a folder with a short name: a socket's has 108 bytes at most
        self.qemus = []
        self.delays = {}  # of each of their threads: seconds it could have run and did not
        self.begin = time.monotonic()
        for node, own in enumerate(self.folders):
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(parents=True)
            seen = {'NODE': node, 'NODES': count, 'RAILS': rails, 'MTU': mtu,
                    'KERNEL': kernel.folder, 'MODULES': ' '.join(modules),
                    'FOLDER': os.getcwd(), **(env or {})}
            lines = [f'{name}={shlex.quote(str(value))}\n' for name, value in seen.items()]
            (own / 'env').write_text(''.join(lines))
            preload = f'export LD_PRELOAD={kernel.preload}\n' if kernel.preload else ''
            (own / 'command').write_text(f'{preload}{command}\n')
            shutil.copy(HERE / 'guest' / 'setup', own / 'setup')
            for name in ('stdout', 'stderr'):
                (own / name).touch()

    def __enter__(self):
        for path in (*self.folders, Path.cwd()):
            if str(path.resolve()).startswith(tuple(f'{h}/' for h in HIDDEN)):
                raise NoLab(f'{path}: a guest does not see what is under {", ".join(HIDDEN)}')
        self.sockets = tempfile.mkdtemp(prefix='lab-')
        for node in range(self.count):
            self.start(node)
        return self

    def __exit__(self, *_):
        for node in range(self.count):
            self.kill(node)
        shutil.rmtree(self.sockets)

    # Two guests' cards are joined directly. Of more, guest 0's QEMU is the hub.
    def cards(self, node):
        def wire(name, own, other):
            return ['-netdev', f'dgram,id={name},local.type=unix,local.path={self.sockets}/{own},'
                               f'remote.type=unix,remote.path={self.sockets}/{other}']
        words = []
        for rail in range(self.rails if self.count > 1 else 0):
            if self.count == 2:
                words += wire(f'net{rail}', f'{rail}.{node}', f'{rail}.{1 - node}')
            elif node > 0:
                words += wire(f'net{rail}', f'{rail}.{node}', f'{rail}.0.{node}')
            else:
                words += ['-netdev', f'hubport,id=net{rail},hubid={rail}']
                for peer in range(1, self.count):
                    words += wire(f'wire{rail}.{peer}', f'{rail}.0.{peer}', f'{rail}.{peer}')
                    words += ['-netdev', f'hubport,id=port{rail}.{peer},hubid={rail},'
                                         f'netdev=wire{rail}.{peer}']
            words += ['-device', f'virtio-net-pci,id=card{rail},netdev=net{rail},'
                                 f'mac=52:54:00:77:0{rail}:0{node + 1},host_mtu=9000,romfile=']
        return words

    def start(self, node):
        own = self.folders[node]
        shared = 'security_model=none'
        words = [
            'qemu-system-x86_64', '-accel', 'tcg,thread=multi,tb-size=256', '-cpu', self.cpu,
            '-smp', str(self.cpus), '-m', str(self.memory_mib), '-M', 'q35',
            '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
            '-kernel', self.kernel.image, '-initrd', self.kernel.ramdisk,
            '-append', 'console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable '
                       'random.trust_cpu=on no_timer_check',
            '-serial', f'file:{own}/console', '-qmp',
            f'unix:{self.sockets}/control{node},server=on,wait=off',
            '-virtfs', f'local,path=/,mount_tag=host,readonly=on,multidevs=remap,{shared}',
            '-virtfs', f'local,path={own},mount_tag=lab,{shared}',
            '-device', 'virtio-rng-pci', *self.cards(node)]
        with open(own / 'qemu', 'wb') as log:
            self.qemus.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log,
                                               stderr=log))

    def running(self, node):
        return self.qemus[node].poll() is None

    def look_at_delays(self):
        for qemu in self.qemus:
            for path in Path(f'/proc/{qemu.pid}/task').glob('*/schedstat'):
                with contextlib.suppress(OSError):
                    self.delays[path] = int(path.read_text().split()[1]) / 1e9

    def starved(self):
        """The share of the time in which the machine kept a processor of a guest waiting for one
        of its own: other work's doing, which looks like a fault from within."""
        return max(self.delays.values(), default=0) / (time.monotonic() - self.begin)

    def tripped(self):
        """True when a guest's kernel has died of the emulator: of two processors one ran into the
        breakpoint by which the other replaces an instruction, and found it gone when it looked."""
        return any('Oops: int3' in (own / 'console').read_text(errors='replace')
                   for own in self.folders if (own / 'console').exists())

    def kill(self, node):
        """As if its power were cut."""
        if node < len(self.qemus) and self.running(node):
            self.qemus[node].kill()
            self.qemus[node].wait()

    def set_cable(self, node, plugged):
        """Takes or gives the carrier of a guest's cards; others keep theirs, as at a switch."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f'{self.sockets}/control{node}')
            s.settimeout(10)
            with s.makefile('rw') as control:
                def ask(command, **arguments):
                    control.write(json.dumps({'execute': command, 'arguments': arguments}) + '\n')
                    control.flush()
                    while 'return' not in (said := json.loads(control.readline())):
                        if 'error' in said:
                            raise RuntimeError(f'QEMU: {said["error"]["desc"]}')
                control.readline()  # its greeting
                ask('qmp_capabilities')
                for rail in range(self.rails):
                    ask('set_link', name=f'card{rail}', up=plugged)

    def pull_cable(self, node, seconds):
        self.set_cable(node, False)
        time.sleep(seconds)
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            self.set_cable(node, True)

    def tell(self, node, word):
        """A file that the guest's command finds as /run/lab/WORD."""
        (self.folders[node] / word).touch()

    def text(self, node, name):
        """What the command has written so far: name 'stdout' or 'stderr'."""
        return (self.folders[node] / name).read_text(errors='replace')

    def code(self, node):
        """Of the command; None while it runs."""
        path = self.folders[node] / 'code'
        running = self.running(node)  # first: the code is there before the guest has ended
        if path.exists():
            return int(path.read_text())
        return None if running else FAILED

    def wait(self, timeout, nodes=None):
        """Waits for the commands to end; once one has failed, for the others not as long. Return:
        their codes, 124 of one that has not ended."""
        nodes = range(self.count) if nodes is None else nodes
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            codes = [self.code(n) for n in nodes]
            if None not in codes:
                break
            self.look_at_delays()
            if any(codes):
                end = min(end, time.monotonic() + AFTER_A_FAILURE_S)
            time.sleep(0.02)
        return [OUT_OF_TIME if self.code(n) is None else self.code(n) for n in nodes]

    def story(self, node):
        """For the one who must find out what went wrong."""
        def tail(name):
            path = self.folders[node] / name
            text = path.read_text(errors='replace').strip() if path.exists() else ''
            return ''.join(f'\n    {name}: {line}' for line in text.splitlines()[-12:])
        return f'guest {node}, code {self.code(node)}' + ''.join(
            map(tail, ('stdout', 'stderr', 'console', 'qemu')))
