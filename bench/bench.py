#!/usr/bin/env python3
"""The same kernel and initramfs under uvirt and under QEMU's TCG in one run; a table at the end, JSON with --json FILE.

Ratios say how many times faster than TCG, and how many times slower than native code on the host, uvirt is.
"""
import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../tests/vmm"))
from vmm_test import cpio  # noqa: E402

# The kernels that the mean over all of them is taken of, and those of user mode that are compared with native code.
EIGHTEEN = ("integer sieve pointer-chase qsort sha256 memcpy matrix x87 strings indirect-call recursive-call syscall page-fault fork pipe "
            "proc-file self-modifying atomic-add").split()
COMPUTE = "integer sieve qsort sha256 matrix x87 strings memcpy".split()


def mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def run(name, command):
    """Runs a guest; returns {figure: value}."""
    print(f"bench: {name}: booting", file=sys.stderr, flush=True)
    figures, start = {}, time.monotonic()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for raw in p.stdout:
        line = raw.decode(errors="replace")
        if "init: reached" in line and "boot-to-init" not in figures:
            figures["boot-to-init"] = (time.monotonic() - start) * 1e9
            print(f"bench: {name}: init after {figures['boot-to-init'] / 1e9:.2f} s", file=sys.stderr, flush=True)
        m = re.search(r"BENCH (\S+) ([0-9.]+)", line)
        if m:
            figures[m.group(1)] = float(m.group(2))
            print(f"bench: {name}: {m.group(1)} {m.group(2)} ns", file=sys.stderr, flush=True)
    p.wait()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--guest", default="build/guest/amd64")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--only", nargs="+", default=[], metavar="KERNEL", help="only these of the guest's kernels")
    parser.add_argument("--no-tcg", action="store_true", help="leave QEMU out")
    o = parser.parse_args()
    qemu = "qemu-system-x86_64"
    with tempfile.TemporaryDirectory() as tmp:
        guest_bench = os.path.join(tmp, "guest_bench")
        subprocess.run(["cc", "-O2", "-static", "-pthread", "-o", guest_bench, os.path.join(os.path.dirname(__file__), "guest_bench.c")], check=True)
        initrd = os.path.join(tmp, "initrd")
        with open(initrd, "wb") as f:
            f.write(open(os.path.join(o.guest, "initrd"), "rb").read())
            f.write(cpio({"bench": open(guest_bench, "rb").read(), "test.sh": b"/bench %s\n" % " ".join(o.only).encode()}))
        kernel = os.path.join(o.guest, "vmlinuz")
        common = ["--kernel", kernel, "--initrd", initrd, "--append", "console=ttyS0 quiet"]
        tcg = {} if o.no_tcg else run("tcg", [qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(o.cpus), "-m", "512", "-nographic", "-no-reboot",
                          *[a.replace("--", "-", 1) for a in common]])
        uvirt = run("uvirt", [os.path.join(o.build, "cli/uvirt"), "run", "--accel", "soft", "--memory", "512M", "--cpus", str(o.cpus), *common])
        native = {}
        for line in subprocess.run([guest_bench, *o.only], stdout=subprocess.PIPE, check=True).stdout.decode().splitlines():
            _, name, value = line.split()
            native[name] = float(value)
        for name in () if o.only else ("exits", "kicks", "dirty"):
            for line in subprocess.run([os.path.join(o.build, "bench", name)], stdout=subprocess.PIPE, check=True).stdout.decode().splitlines():
                _, name, value = line.split()
                uvirt[name] = float(value)
    rows = []
    print(f"{'figure':18}{'uvirt ns':>16}{'tcg ns':>16}{'native ns':>12}{'tcg/uvirt':>11}{'uvirt/native':>14}")
    for name, value in uvirt.items():
        t, n = tcg.get(name), native.get(name)
        rows.append({"name": name, "uvirt_ns": value, "tcg_ns": t, "native_ns": n, "times_faster_than_tcg": t and t / value,
                     "times_slower_than_native": n and value / n})
        print(f"{name:18}{value:16.1f}{t or '-':>16}{n or '-':>12}{f'{t / value:.2f}' if t else '-':>11}{f'{value / n:.2f}' if n else '-':>14}")
    to_tcg = mean([tcg[k] / uvirt[k] for k in EIGHTEEN if k in tcg and k in uvirt])
    to_native = mean([uvirt[k] / native[k] for k in COMPUTE if k in native and k in uvirt])
    print(f"geometric means: {to_tcg:.2f} times faster than TCG over the eighteen kernels; {to_native:.2f} times native time over "
          + ", ".join(COMPUTE))
    if o.json:
        with open(o.json, "w") as f:
            json.dump({"host": platform.processor() or platform.machine(), "cpus": o.cpus, "figures": rows, "mean_to_tcg": to_tcg,
                       "mean_to_native": to_native}, f, indent=1)


if __name__ == "__main__":
    main()
