#!/usr/bin/env python3
"""Debian's QEMU starts the same kernel with the same devices under `uvirt exec` (-accel kvm) and with its own TCG, by turns in one run.

For each number of CPUs: the best and the median time from the command to init's first line, and the processor time that QEMU had taken by then; then TCG's by
uvirt's.  --update FILE puts the table into a document (docs/performance.md), between two lines "<!-- qemu boot -->" and "<!-- end of qemu boot -->".
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time

import bench

QEMU = bench.QEMU
MARKS = "<!-- qemu boot -->\n", "<!-- end of qemu boot -->\n"
ACCELS = {"uvirt": ["-accel", "kvm", "-cpu", "host"], "qemu64": ["-accel", "kvm", "-cpu", "qemu64"], "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max"]}


def processor_time(pid):
    """Seconds of user and system time of all threads (proc(5), stat)."""
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def boot(o, accel, cpus):
    """(seconds, processor seconds) until init."""
    command = [QEMU, "-machine", o.machine, *ACCELS[accel], "-smp", str(cpus), "-m", "512M", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
               "-kernel", os.path.join(o.guest, "vmlinuz"), "-initrd", os.path.join(o.guest, "initrd"), "-append", "console=ttyS0 quiet"]
    if accel != "tcg":
        command = [os.path.join(o.build, "cli/uvirt"), "exec", "--", *command]
    start = time.monotonic()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        text = b""
        for line in p.stdout:
            text += line
            if b"init: reached" in line:
                return time.monotonic() - start, processor_time(p.pid)
        sys.exit(f"qemu_boot: {accel} did not get to init:\n{text.decode(errors='replace')[-2000:]}")
    finally:
        p.kill()
        p.wait()


def measure(o):
    """{cpus: {accel: [(seconds, processor seconds)]}}"""
    runs = {cpus: {accel: [] for accel in o.accel} for cpus in o.cpus}
    for n in range(o.repeat):
        for cpus in o.cpus:
            for accel in o.accel:
                runs[cpus][accel].append(boot(o, accel, cpus))
                print(f"qemu_boot: {n + 1}/{o.repeat}: {cpus} CPUs, {accel}: {runs[cpus][accel][-1][0]:.2f} s, "
                      f"{runs[cpus][accel][-1][1]:.2f} s of processor time", file=sys.stderr, flush=True)
    return runs


def summary(runs):
    """Rows: CPUs, and for either time the best of uvirt, of TCG and their ratio, then the ratio of the medians."""
    rows = []
    for cpus, accels in runs.items():
        row = [cpus]
        for k in (0, 1):
            uvirt, tcg = ([r[k] for r in accels[a]] for a in ("uvirt", "tcg"))
            row += [min(uvirt), min(tcg), min(tcg) / min(uvirt), statistics.median(tcg) / statistics.median(uvirt)]
        rows.append(row)
    return rows


def markdown(runs, o):
    lines = [f"{bench.host(False)}; `-machine {o.machine}`, {o.repeat} boots of each by turns, the best of each.", "",
             "| CPUs | uvirt | TCG | times faster | by the medians | processor time: uvirt | TCG | times less | by the medians |", "|--:" * 9 + "|"]
    for cpus, *v in summary(runs):
        lines.append(f"| {cpus} | " + " | ".join(f"{x:.2f} s" if n % 4 < 2 else f"{x:.2f}" for n, x in enumerate(v)) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--guest", default="build/guest/amd64")
    parser.add_argument("--machine", default="q35")
    parser.add_argument("--cpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--accel", nargs="+", choices=ACCELS, default=["uvirt", "tcg"], help="qemu64: uvirt with QEMU's default CPU model")
    parser.add_argument("--update", metavar="FILE", help="replace the table in this document")
    o = parser.parse_args()
    if not shutil.which(QEMU):
        sys.exit("qemu_boot: no qemu-system-x86_64; script/setup --bench installs it")
    runs = measure(o)
    if {"uvirt", "tcg"} <= set(o.accel):
        print(markdown(runs, o))
        if o.update:
            bench.update(o.update, markdown(runs, o), MARKS)


if __name__ == "__main__":
    main()
