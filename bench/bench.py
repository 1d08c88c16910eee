#!/usr/bin/env python3
"""The same kernel and initramfs under uvirt and under QEMU's TCG in one run; a table at the end, JSON with --json FILE.

Ratios say how many times faster than TCG, and how many times slower than native code on the host, uvirt is.  --update FILE puts the table into a document
(docs/performance.md), between two lines "<!-- bench -->" and "<!-- end of bench -->".
"""
import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../tests/vmm"))
from vmm_test import cpio  # noqa: E402

# The kernels that the mean over all of them is taken of, and those of user mode that are compared with native code.
EIGHTEEN = ("integer sieve pointer-chase qsort sha256 memcpy matrix x87 strings indirect-call recursive-call syscall page-fault fork pipe "
            "proc-file self-modifying atomic-add").split()
QEMU = "qemu-system-x86_64"
COMPUTE = "integer sieve qsort sha256 matrix x87 strings memcpy".split()


def mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


MARKS = "<!-- bench -->\n", "<!-- end of bench -->\n"


def translator(uvirt, pid):
    """What the translator has done so far in this process."""
    report = subprocess.run([uvirt, "stat", "--json", "--interval", "0.01", str(pid)], stdout=subprocess.PIPE, check=True).stdout
    return {s["name"]: s["total"] for s in json.loads(report)["statistics"] if s["name"].startswith("transla")}


def run(name, command, counters=None):
    """Runs a guest; returns {figure: value}.  counters: called with the process when the guest's init has been reached."""
    print(f"bench: {name}: booting", file=sys.stderr, flush=True)
    figures, start = {}, time.monotonic()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for raw in p.stdout:
        line = raw.decode(errors="replace")
        if "init: reached" in line and "boot-to-init" not in figures:
            figures["boot-to-init"] = (time.monotonic() - start) * 1e9
            print(f"bench: {name}: init after {figures['boot-to-init'] / 1e9:.2f} s", file=sys.stderr, flush=True)
            if counters:
                counters(p)
        m = re.search(r"BENCH (\S+) ([0-9.]+)", line)
        if m:
            figures[m.group(1)] = float(m.group(2))
            print(f"bench: {name}: {m.group(1)} {m.group(2)} ns", file=sys.stderr, flush=True)
    p.wait()
    return figures


def output_of(command):
    """The figures that a program on the host prints."""
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()
    return {name: float(value) for _, name, value in map(str.split, lines)}


def measure(o, tmp):
    """Returns the figures of uvirt, of TCG and of the host, and what the translator did during the boot."""
    guest_bench, initrd = os.path.join(tmp, "guest_bench"), os.path.join(tmp, "initrd")
    subprocess.run(["cc", "-O2", "-static", "-pthread", "-o", guest_bench, os.path.join(os.path.dirname(__file__), "guest_bench.c")], check=True)
    with open(initrd, "wb") as f:
        f.write(open(os.path.join(o.guest, "initrd"), "rb").read())
        f.write(cpio({"bench": open(guest_bench, "rb").read(), "test.sh": b"/bench %s\n" % " ".join(o.only).encode()}))
    common = ["--kernel", os.path.join(o.guest, "vmlinuz"), "--initrd", initrd, "--append", "console=ttyS0 quiet"]
    tcg = {} if o.no_tcg else run("tcg", [QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(o.cpus), "-m", "512", "-nographic", "-no-reboot",
                                          *[a.replace("--", "-", 1) for a in common]])
    exe, boot = os.path.join(o.build, "cli/uvirt"), {}
    uvirt = run("uvirt", [exe, "run", "--accel", "soft", "--memory", "512M", "--cpus", str(o.cpus), *common],
                lambda p: boot.update(translator(exe, p.pid)))
    if not o.only:
        for command in ([os.path.join(o.build, "bench", name)] for name in ("exits", "kicks", "dirty")):
            uvirt.update(output_of(command))
    return uvirt, tcg, output_of([guest_bench, *o.only]), boot


def summary(uvirt, tcg, native, boot):
    """The table as data."""
    rows = []
    for name, value in uvirt.items():
        t, n = tcg.get(name), native.get(name)
        rows.append({"name": name, "uvirt_ns": value, "tcg_ns": t, "native_ns": n, "times_faster_than_tcg": t and t / value,
                     "times_slower_than_native": n and value / n})
    code = {}
    if boot.get("translations"):
        code = {"translations": boot["translations"], "guest_bytes": boot["translated_guest_bytes"], "host_bytes": boot["translated_host_bytes"],
                "host_bytes_per_guest_byte": boot["translated_host_bytes"] / boot["translated_guest_bytes"], "ns": boot["translation_ns"],
                "share_of_boot": boot["translation_ns"] / uvirt["boot-to-init"]}
    return {"figures": rows, "boot_translation": code, "mean_to_tcg": mean([tcg[k] / uvirt[k] for k in EIGHTEEN if k in tcg and k in uvirt]),
            "mean_to_native": mean([uvirt[k] / native[k] for k in COMPUTE if k in native and k in uvirt])}


def code_line(code):
    return (f"translated until init: {code['translations']} blocks, {code['guest_bytes'] / 1024:.0f} KiB of guest code into {code['host_bytes'] / 1024:.0f} KiB "
            f"({code['host_bytes_per_guest_byte']:.1f} host bytes per guest byte), in {code['ns'] / 1e6:.0f} ms ({code['share_of_boot']:.1%} of the boot)")


def means(s):
    return [f"{s[key]:.2f} times {what}" for key, what in (("mean_to_tcg", f"faster than TCG over the {len(EIGHTEEN)} kernels"),
                                                           ("mean_to_native", "native time over " + ", ".join(COMPUTE))) if s[key]]


def print_table(s):
    print(f"{'figure':18}{'uvirt ns':>16}{'tcg ns':>16}{'native ns':>12}{'tcg/uvirt':>11}{'uvirt/native':>14}")
    for r in s["figures"]:
        t, n, faster, slower = r["tcg_ns"], r["native_ns"], r["times_faster_than_tcg"], r["times_slower_than_native"]
        print(f"{r['name']:18}{r['uvirt_ns']:16.1f}{t or '-':>16}{n or '-':>12}{f'{faster:.2f}' if t else '-':>11}{f'{slower:.2f}' if n else '-':>14}")
    if s["boot_translation"]:
        print(code_line(s["boot_translation"]))
    if means(s):
        print("geometric means: " + "; ".join(means(s)))


# ---- the document ----

def duration(ns):
    for limit, unit, digits in ((1e3, "ns", 1), (1e6, "µs", 1), (1e9, "ms", 1)):
        if ns < limit:
            return f"{ns / limit * 1e3:.{digits}f} {unit}"
    return f"{ns / 1e9:.2f} s"


def host(no_tcg):
    """Where and with what this was measured."""
    model = re.search(r"^model name\s*: (.*)$", open("/proc/cpuinfo").read(), re.M)
    qemu = "" if no_tcg or not shutil.which(QEMU) else "; " + subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()[0]
    return (f"{time.strftime('%Y-%m-%d')}: {model.group(1) if model else platform.machine()}, {len(os.sched_getaffinity(0))} processors, Linux {platform.release()}"
            f"{qemu}")


def markdown(s, o):
    lines = [f"{host(o.no_tcg)}; guests with {o.cpus} CPUs.", "", "| | uvirt | TCG | native | times faster than TCG | times native time |", "|---|--:|--:|--:|--:|--:|"]
    for r in s["figures"]:
        cells = [duration(r[k]) if r[k] else "" for k in ("uvirt_ns", "tcg_ns", "native_ns")]
        cells += [f"{r[k]:.2f}" if r[k] else "" for k in ("times_faster_than_tcg", "times_slower_than_native")]
        lines.append(f"| {r['name']} | " + " | ".join(cells) + " |")
    if means(s):
        lines += ["", "Geometric means: " + "; ".join(means(s)) + "."]
    if s["boot_translation"]:
        line = code_line(s["boot_translation"])
        lines += ["", line[0].upper() + line[1:] + "."]
    return "\n".join(lines) + "\n"


def update(path, text, marks=MARKS):
    old = open(path).read()
    if [old.count(m) for m in marks] != [1, 1] or old.index(marks[0]) > old.index(marks[1]):
        sys.exit(f"bench: {path} has not one line each of " + " and ".join(m.strip() for m in marks))
    head, tail = old[: old.index(marks[0])], old[old.index(marks[1]):]
    with open(path + ".new", "w") as f:
        f.write(head + marks[0] + text + tail)
    os.replace(path + ".new", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build")
    parser.add_argument("--guest", default="build/guest/amd64")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--update", metavar="FILE", help="replace the table in this document")
    parser.add_argument("--only", nargs="+", default=[], metavar="KERNEL", help="only these of the guest's kernels")
    parser.add_argument("--no-tcg", action="store_true", help="leave QEMU out")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        s = summary(*measure(o, tmp))
    print_table(s)
    if o.update:
        update(o.update, markdown(s, o))
    if o.json:
        with open(o.json, "w") as f:
            json.dump({"host": platform.processor() or platform.machine(), "cpus": o.cpus, **s}, f, indent=1)


if __name__ == "__main__":
    main()
