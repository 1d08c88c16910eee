"""QEMU processes under `uvirt exec` with a busy Linux guest: started, spoken to over QMP, their console watched."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../vmm"))
from vmm_test import GUEST, cpio  # noqa: E402

QEMU = "qemu-system-x86_64"
TICK = re.compile(rb"busy: tick (\d+) ([0-9a-f]+)")
MASK = (1 << 64) - 1


class Failure(Exception):
    pass


def check(ok, what):
    if not ok:
        raise Failure(what)


def skip(why):
    print(f"skip: {why}")
    sys.exit(77)


def need_guest():
    if not shutil.which(QEMU):
        skip("no qemu-system-x86_64; script/setup --clients installs it")
    if not os.path.exists(os.path.join(GUEST, "amd64", "vmlinuz")):
        skip(f"no guest in {GUEST}/amd64; script/guest amd64 makes it")


def mix(v):
    """As in busy.c."""
    v = ((v ^ v >> 31) * 0x9E3779B97F4A7C15) & MASK
    return v ^ v >> 29


def ticks_of(text):
    """The ticks on a console so far; each carries what belongs to it."""
    text = text[: text.rfind(b"\n") + 1]
    check(b"BROKEN" not in text, f"the guest lost state: {text[-3000:].decode(errors='replace')}")
    check(b"Oops" not in text and b"Call Trace" not in text and b"panic" not in text.replace(b"panic=", b""),
          f"the guest's kernel complains: {text[-4000:].decode(errors='replace')}")
    found = [(int(n), int(value, 16)) for n, value in TICK.findall(text)]
    for n, value in found:
        check(value == mix(n), f"tick {n} has {value:x}")
    return [n for n, _ in found]


def make_initrd(path, busy, megabytes):
    """The guest's initramfs with the busy program as its test."""
    with open(path, "wb") as out:
        out.write(open(os.path.join(GUEST, "amd64", "initrd"), "rb").read())
        out.write(cpio({"busy": open(busy, "rb").read(), "test.sh": f"/busy {megabytes}\n".encode()}))


class Qemu:
    """One QEMU process.  `name` keeps its files apart from those of another in the same directory."""

    def __init__(self, uvirt, tmp, name, args, accel="kvm"):
        self.console = os.path.join(tmp, name + ".console")
        qmp = os.path.join(tmp, name + ".qmp")
        self.errors = open(os.path.join(tmp, name + ".errors"), "wb+")
        self.process = subprocess.Popen(
            [uvirt, "exec", "--", QEMU, "-accel", accel, "-nodefaults", "-display", "none", "-qmp", f"unix:{qmp},server=on,wait=off",
             "-serial", f"file:{self.console}", *args], stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors)
        self.qmp = socket.socket(socket.AF_UNIX)
        for _ in range(300):
            try:
                self.qmp.connect(qmp)
                break
            except OSError:
                check(self.process.poll() is None, f"QEMU ended at once: {self.said()}")
                time.sleep(0.1)
        self.qmp.settimeout(120)
        self.lines = self.qmp.makefile("r")
        self.lines.readline()
        self.events = []
        self.do("qmp_capabilities")

    def said(self):
        self.errors.flush()
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def do(self, command, **arguments):
        self.qmp.sendall((json.dumps({"execute": command, "arguments": arguments}) + "\n").encode())
        while True:
            line = self.lines.readline()
            check(line, f"QEMU closed its monitor during {command}: exit code {self.process.poll()}, {self.said()}")
            answer = json.loads(line)
            if "event" in answer:
                self.events.append(answer)
                continue
            check("error" not in answer, f"{command}: {answer.get('error')}")
            return answer["return"]

    def human(self, line):
        return self.do("human-monitor-command", **{"command-line": line})

    def text(self):
        return open(self.console, "rb").read() if os.path.exists(self.console) else b""

    def ticks(self):
        return ticks_of(self.text())

    def wait_ticks(self, count, timeout=120):
        """Until that many more ticks have come than at the call."""
        end = time.monotonic() + timeout
        start = len(self.ticks())
        while len(self.ticks()) < start + count:
            check(self.process.poll() is None, f"QEMU ended: {self.process.poll()} {self.said()}")
            if time.monotonic() > end:
                raise Failure(f"no more ticks after {start}; {self.do('query-status')} {self.human('info registers')} console: "
                              f"{self.text()[-3000:].decode(errors='replace')}")
            time.sleep(0.1)
        return self.ticks()

    def registers(self, cpus):
        return "".join(self.do("human-monitor-command", **{"command-line": "info registers", "cpu-index": n}) for n in range(cpus))

    def memory(self, path, size):
        self.do("pmemsave", val=0, size=size, filename=path)
        with open(path, "rb") as f:
            data = f.read()
        os.unlink(path)
        return data

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.qmp.close()
        self.errors.close()


def wall_clock(a, b):
    """Whether two pages differ by a newer wall clock of KVM alone (version, seconds, nanoseconds), which setting its MSR writes."""
    differ = [n for n in range(len(a)) if a[n] != b[n]]
    at = differ[0] & ~3
    return differ[-1] < at + 12 and 0 < (b[at] - a[at]) % 256 <= 32 and a[at] % 2 == b[at] % 2 == 0


def same_memory(a, b):
    """The first page that differs, or None.  The wall clock may have been set anew."""
    clocks = 0
    for at in range(0, max(len(a), len(b)), 4096):
        if a[at:at + 4096] != b[at:at + 4096]:
            clocks += 1
            if clocks > 1 or len(a) != len(b) or not wall_clock(a[at:at + 4096], b[at:at + 4096]):
                return at
    return None
