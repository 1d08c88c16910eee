#!/usr/bin/env python3
"""Resident memory of `uvirt run` besides the memory that its guest has touched: at init, and when the guest has been idle for a while.

Shared pages of programs and libraries count in full.  Exit code 1 when an idle guest takes more than --limit.  --update FILE puts the table into a document
(docs/performance.md), between two lines "<!-- memory -->" and "<!-- end of memory -->".
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

import bench  # finds the modules of tests/vmm
from smaps import resident
from vmm_test import cpio

MARKS = "<!-- memory -->\n", "<!-- end of memory -->\n"


def measure(o, cpus, tmp):
    """The sizes at init and after the wait."""
    initrd = os.path.join(tmp, "initrd")
    with open(initrd, "wb") as f:
        f.write(open(os.path.join(o.guest, "initrd"), "rb").read() + cpio({"test.sh": b"echo test-idle\nsleep 100000\n"}))
    p = subprocess.Popen([os.path.join(o.build, "cli/uvirt"), "run", "--accel", "soft", "--memory", f"{o.memory}M", "--cpus", str(cpus), "--kernel",
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


def markdown(runs):
    """runs: [(cpus, at init, idle)]"""
    lines = ["| vCPUs | " + " | ".join(name for name in runs[0][1] if name != "guest") + " | together, idle | at init |", "|--:" * (len(runs[0][1]) + 2) + "|"]
    for cpus, first, idle in runs:
        cells = [f"{idle[name] / 1024:.1f}" for name in idle if name != "guest"] + [f"**{overhead(idle) / 1024:.1f} MiB**", f"{overhead(first) / 1024:.1f} MiB"]
        lines.append(f"| {cpus} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--guest", default="build/guest/amd64")
    parser.add_argument("--cpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--memory", type=int, default=512, help="MiB")
    parser.add_argument("--wait", type=float, default=8, help="seconds of idleness")
    parser.add_argument("--limit", type=float, default=24, help="MiB")
    parser.add_argument("--update", metavar="FILE", help="replace the table in this document")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        runs = [(cpus, *measure(o, cpus, tmp)) for cpus in o.cpus]
    print(markdown(runs), end="")
    if o.update:
        bench.update(o.update, markdown(runs), MARKS)
    sys.exit(max(overhead(idle) for _, _, idle in runs) > o.limit * 1024)


if __name__ == "__main__":
    main()
