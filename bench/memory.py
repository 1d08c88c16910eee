#!/usr/bin/env python3
"""Resident memory of `uvirt run` besides the memory that its guest has touched: at init, and when the guest has been idle for a while.

Shared pages of programs and libraries count in full.  Exit code 1 when the idle guest takes more than --limit.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../tests/vmm"))
from smaps import resident  # noqa: E402
from vmm_test import cpio  # noqa: E402


def measure(o, tmp):
    """The sizes at init and after the wait."""
    initrd = os.path.join(tmp, "initrd")
    with open(initrd, "wb") as f:
        f.write(open(os.path.join(o.guest, "initrd"), "rb").read() + cpio({"test.sh": b"echo test-idle\nsleep 100000\n"}))
    p = subprocess.Popen([os.path.join(o.build, "cli/uvirt"), "run", "--accel", "soft", "--memory", f"{o.memory}M", "--cpus", str(o.cpus), "--kernel",
                          os.path.join(o.guest, "vmlinuz"), "--initrd", initrd, "--append", "console=ttyS0 quiet"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for line in p.stdout:
            if b"test-idle" in line:
                break
        first = resident(p.pid, o.memory << 20)
        time.sleep(o.wait)
        return first, resident(p.pid, o.memory << 20)
    finally:
        p.kill()
        p.wait()


def overhead(sizes):
    return sum(sizes.values()) - sizes["guest"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--guest", default="build/guest/amd64")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory", type=int, default=512, help="MiB")
    parser.add_argument("--wait", type=float, default=8, help="seconds of idleness")
    parser.add_argument("--limit", type=float, default=24, help="MiB")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        first, idle = measure(o, tmp)
    print(f"{'MiB':30}{'at init':>10}{'idle':>10}")
    for name in idle:
        print(f"{name:30}{first[name] / 1024:10.1f}{idle[name] / 1024:10.1f}")
    print(f"{'all but the guest':30}{overhead(first) / 1024:10.1f}{overhead(idle) / 1024:10.1f}")
    sys.exit(overhead(idle) > o.limit * 1024)


if __name__ == "__main__":
    main()
