#!/usr/bin/env python3
"""The same kernel and initramfs under uvirt and under QEMU's TCG in one run; a table at the end, JSON with --json FILE.

A ratio is uvirt's time divided by TCG's: 1 is equal, smaller is faster.
"""
import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../tests/vmm"))
from vmm_test import cpio  # noqa: E402


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
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--json")
    o = parser.parse_args()
    qemu = "qemu-system-x86_64"
    with tempfile.TemporaryDirectory() as tmp:
        guest_bench = os.path.join(tmp, "guest_bench")
        subprocess.run(["cc", "-O2", "-static", "-o", guest_bench, os.path.join(os.path.dirname(__file__), "guest_bench.c")], check=True)
        initrd = os.path.join(tmp, "initrd")
        with open(initrd, "wb") as f:
            f.write(open(os.path.join(o.guest, "initrd"), "rb").read())
            f.write(cpio({"bench": open(guest_bench, "rb").read(), "test.sh": b"/bench\n"}))
        kernel = os.path.join(o.guest, "vmlinuz")
        common = ["--kernel", kernel, "--initrd", initrd, "--append", "console=ttyS0 quiet"]
        tcg = run("tcg", [qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(o.cpus), "-m", "512", "-nographic", "-no-reboot",
                          *[a.replace("--", "-", 1) for a in common]])
        uvirt = run("uvirt", [os.path.join(o.build, "cli/uvirt"), "run", "--accel", "soft", "--memory", "512M", "--cpus", str(o.cpus), *common])
        native = {}
        for line in subprocess.run([guest_bench], stdout=subprocess.PIPE, check=True).stdout.decode().splitlines():
            _, name, value = line.split()
            native[name] = float(value)
        under_uvirt = [os.path.join(o.build, "cli/uvirt"), "exec", "--"]
        for command in ([os.path.join(o.build, "bench/exits")], [*under_uvirt, os.path.join(o.build, "bench/kick")]):
            for line in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines():
                _, name, value = line.split()
                uvirt[name] = float(value)
    rows = []
    print(f"{'figure':18}{'uvirt ns':>16}{'tcg ns':>16}{'native ns':>12}{'uvirt/tcg':>11}")
    for name, value in uvirt.items():
        t, n = tcg.get(name), native.get(name)
        ratio = value / t if t else None
        rows.append({"name": name, "uvirt_ns": value, "tcg_ns": t, "native_ns": n, "ratio_to_tcg": ratio})
        print(f"{name:18}{value:16.1f}{t if t else '-':>16}{n if n else '-':>12}{f'{ratio:.2f}' if ratio else '-':>11}")
    if o.json:
        with open(o.json, "w") as f:
            json.dump({"host": platform.processor() or platform.machine(), "cpus": o.cpus, "figures": rows}, f, indent=1)


if __name__ == "__main__":
    main()
