#!/usr/bin/env python3
"""Debian's QEMU under `uvirt exec`: snapshots (savevm, loadvm) and live migration of a guest that writes memory all the time.

usage: migrate_test.py UVIRT BUSY snapshot|migrate|postcopy MACHINE CPUS [ACCEL]

The guest (busy.c) checks itself; besides, all of its memory and its registers are compared between the stopped source and what was loaded.
Exit code 77 (skip) without QEMU or the guest's files.
"""
import os
import subprocess
import sys
import tempfile
import time

import qemu_pair as pair
from qemu_pair import Qemu, check

MEMORY = 256


def machine_args(tmp, machine, cpus):
    guest = os.path.join(pair.GUEST, "amd64")
    return ["-machine", machine, "-cpu", "host", "-smp", str(cpus), "-m", str(MEMORY), "-kernel", os.path.join(guest, "vmlinuz"),
            "-initrd", os.path.join(tmp, "initrd"), "-append", "console=ttyS0 panic=-1 quiet"]


def compare(what, before, after):
    for name in before:
        if name == "memory":
            at = pair.same_memory(before[name], after[name])
            check(at is None, f"{what}: memory differs, first at {at or 0:#x}")
        elif before[name] != after[name]:
            lines = [f"{a} | {b}" for a, b in zip(before[name].splitlines(), after[name].splitlines()) if a != b]
            check(False, f"{what}: registers differ:\n" + "\n".join(lines))


def state(qemu, tmp, cpus):
    return {"memory": qemu.memory(os.path.join(tmp, "memory"), MEMORY << 20), "registers": qemu.registers(cpus)}


def goes_on(qemu, ticks, what):
    """The next tick is the one behind the last before the stop (a line that was half printed may be missing)."""
    seen = len(qemu.ticks())
    first = qemu.wait_ticks(3)[seen]
    check(ticks <= first <= ticks + 2, f"{what}: tick {first} follows tick {ticks}")


def snapshot(uvirt, tmp, machine, cpus, accel):
    disk = os.path.join(tmp, "disk.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"], check=True)
    args = machine_args(tmp, machine, cpus) + ["-drive", f"file={disk},if=virtio,format=qcow2"]
    with_qemu = Qemu(uvirt, tmp, "first", args, accel)
    try:
        qemu = with_qemu
        qemu.wait_ticks(3)
        # Of the running guest.
        check(qemu.human("savevm running") == "", "savevm failed")
        qemu.wait_ticks(3)
        # Of the stopped one, whose memory can be compared.
        qemu.do("stop")
        ticks = qemu.ticks()[-1]
        before = state(qemu, tmp, cpus)
        check(qemu.human("savevm stopped") == "", "savevm failed")
        qemu.do("cont")
        qemu.wait_ticks(4)
        for name in ("stopped", "running", "stopped"):
            qemu.do("stop") # else loadvm lets the guest go on at once
            start = time.monotonic()
            said = qemu.human(f"loadvm {name}")
            check(said == "", f"loadvm {name}: {said}")
            print(f"loadvm {name}: {time.monotonic() - start:.2f} s")
            if name == "stopped":
                compare("loadvm", before, state(qemu, tmp, cpus))
                qemu.do("cont")
                goes_on(qemu, ticks, "loadvm")
            else:
                qemu.do("cont")
                qemu.wait_ticks(3)
    finally:
        with_qemu.close()
    # And in a new process.
    with_qemu = Qemu(uvirt, tmp, "second", args + ["-loadvm", "stopped", "-S"], accel)
    try:
        compare("a new QEMU with -loadvm", before, state(with_qemu, tmp, cpus))
        with_qemu.do("cont")
        goes_on(with_qemu, ticks, "a new QEMU with -loadvm")
    finally:
        with_qemu.close()


def ended(source, target, what):
    """The source's account of a migration that is over."""
    start = time.monotonic()
    while True:
        info = source.do("query-migrate")
        if info["status"] in ("completed", "failed", "cancelled"):
            break
        check(time.monotonic() - start < 120, f"{what}: not converged: {info}")
        time.sleep(0.05)
    check(info["status"] == "completed", f"{what}: {info} source: {source.said()} target: {target.said()}")
    return info


def migrate_once(source, target, address, what):
    source.do("migrate-set-parameters", **{"downtime-limit": 1000, "max-bandwidth": 4 << 30})
    start = time.monotonic()
    source.do("migrate", uri=address)
    info = ended(source, target, what)
    while target.do("query-status")["status"] == "inmigrate":
        time.sleep(0.02)
    ram = info["ram"]
    print(f"{what}: {time.monotonic() - start:.2f} s, {ram['dirty-sync-count']} rounds, {ram['transferred'] >> 20} MiB, downtime {info['downtime']} ms")
    return ram


def migrate(uvirt, tmp, machine, cpus, accel):
    """There and, from the process that came about, on to a third one."""
    args = machine_args(tmp, machine, cpus)
    qemus = [Qemu(uvirt, tmp, "0", args, accel)]
    try:
        qemus[0].wait_ticks(3)
        for n in (1, 2):
            address = "unix:" + os.path.join(tmp, f"migrate{n}")
            qemus.append(Qemu(uvirt, tmp, str(n), args + ["-incoming", address, "-S"], accel))
            source, target = qemus[-2:]
            seen = source.ticks()[-1]
            migrate_once(source, target, address, f"migration {n}")
            ticks = source.ticks()[-1]
            check(ticks >= seen, "the guest went back")
            compare(f"migration {n}", state(source, tmp, cpus), state(target, tmp, cpus))
            source.close()
            target.do("cont")
            goes_on(target, ticks, f"migration {n}")
    finally:
        for qemu in qemus:
            qemu.close()


def postcopy(uvirt, tmp, machine, cpus, accel):
    """The guest goes on before its memory has come: pages are fetched when the engine touches them (userfaultfd)."""
    args = machine_args(tmp, machine, cpus)
    address = "unix:" + os.path.join(tmp, "migrate")
    qemus = [Qemu(uvirt, tmp, "0", args, accel)]
    try:
        qemus[0].wait_ticks(3)
        qemus.append(Qemu(uvirt, tmp, "1", args + ["-incoming", "defer"], accel))
        source, target = qemus
        for qemu in qemus:
            try:
                qemu.do("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
            except pair.Failure as failure:
                pair.skip(f"no postcopy here: {failure}")
        target.do("migrate-incoming", uri=address)
        # Slow enough that most memory is still missing at the switch.
        source.do("migrate-set-parameters", **{"max-bandwidth": 40 << 20, "max-postcopy-bandwidth": 100 << 20, "downtime-limit": 1})
        source.do("migrate", uri=address)
        while source.do("query-migrate")["status"] in ("setup", "none"):
            time.sleep(0.02)
        source.do("migrate-start-postcopy")
        info = ended(source, target, "postcopy")
        print(f"postcopy: {info['ram']['postcopy-requests']} pages were asked for")
        check(info["ram"]["postcopy-requests"] > 0, "no page came late")
        ticks = source.ticks()[-1]
        source.close()
        first = target.wait_ticks(3)[0]
        check(ticks <= first <= ticks + 2, f"postcopy: tick {first} follows tick {ticks}")
    finally:
        for qemu in qemus:
            qemu.close()


CASES = {"snapshot": snapshot, "migrate": migrate, "postcopy": postcopy}


def main():
    uvirt, busy, case, machine, cpus = sys.argv[1:6]
    accel = sys.argv[6] if len(sys.argv) > 6 else "kvm"
    pair.need_guest()
    with tempfile.TemporaryDirectory(prefix="uvirt-migrate.") as tmp:
        pair.make_initrd(os.path.join(tmp, "initrd"), busy, 16)
        try:
            CASES[case](uvirt, tmp, machine, int(cpus), accel)
        except pair.Failure as failure:
            sys.exit(f"FAILED: {failure}")


if __name__ == "__main__":
    main()
