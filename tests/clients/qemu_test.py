#!/usr/bin/env python3
"""Boots Debian guests in Debian's unmodified QEMU under `uvirt exec`: machines, firmware, interrupt controllers, devices.

usage: qemu_test.py UVIRT [MACHINE ...] [--full] [--strace] [--repeat N] [--jobs N]

A MACHINE is a name as the test prints it: machine,firmware,irqchip,cpus,devices (pc,seabios,split,2,virtio).  Without one: a few that
together have everything once; --full: every combination that QEMU has.  Exit code 77 (skip) without QEMU or without the guest's files.
"""
import argparse
import concurrent.futures
import hashlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../vmm"))
from vmm_test import GUEST, NOISE, cpio  # noqa: E402

QEMU = "qemu-system-x86_64"
OVMF = "/usr/share/OVMF"
SIZE = 1 << 20  # bytes that go over each wire
TIMEOUT = 300

# What a machine may be made of, in the order of its name.
MACHINES = ("pc", "q35", "microvm")
FIRMWARE = ("seabios", "ovmf", "qboot")
IRQCHIPS = ("on", "split", "off")
CPUS = ("1", "2", "4")
# devices: kernel, disk, network card
DEVICES = {
    "virtio": ("amd64", "virtio-blk-pci", "virtio-net-pci"),
    "iothread": ("amd64", "virtio-blk-pci,iothread=io", "virtio-net-pci"),  # interrupts of its disk go through irqfds
    "ide": ("amd64-generic", "ide-hd,bus=ide.0", "rtl8139"),
    "ahci": ("amd64-generic", "ide-hd,bus=ahci.0", "e1000e"),
    "e1000": ("amd64-generic", "usb-storage,bus=xhci.0", "e1000"),
    "nvme": ("amd64-generic", "nvme,serial=1", "e1000e"),
    "mmio": ("amd64", "virtio-blk-device", "virtio-net-device"),
}
QUICK = (
    "pc,seabios,on,1,ide",
    "q35,seabios,split,2,ahci",
    "q35,seabios,off,1,virtio",
    "q35,seabios,on,2,iothread",
    "microvm,qboot,split,2,mmio",
)

SCRIPT = """
nproc
for n in $(seq 100); do # a disk on USB comes when it comes
  disk=$(ls /sys/block | grep -E '^(vd|sd|nvme)' | head -n 1)
  [ -z "$disk" ] || break
  sleep 0.1
done
dd if=/dev/$disk bs=64k 2>/dev/null | sha256sum | sed 's/^/disk-holds /'
ip link set eth0 up
udhcpc -i eth0 -s /etc/udhcpc.sh -n -q
nc 10.0.2.2 PORT </dev/null >/tmp/got
sha256sum </tmp/got | sed 's/^/net-brought /'
dd if=/tmp/got of=/dev/$disk bs=64k conv=fsync 2>/dev/null
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
cat /proc/interrupts
echo test-end
"""


class Failure(Exception):
    pass


def check(ok, what):
    if not ok:
        raise Failure(what)


def need(*guests):
    """Ends the test as skipped if QEMU or a guest is not there."""
    if not shutil.which(QEMU):
        print("skip: no qemu-system-x86_64; script/setup --clients installs it")
        sys.exit(77)
    for guest in guests:
        if not os.path.exists(os.path.join(GUEST, guest, "initrd")):
            print(f"skip: no guest in {GUEST}/{guest}; script/guest {guest} makes it")
            sys.exit(77)


def sensible(machine, firmware, irqchip, cpus, devices):
    """Whether QEMU has such a machine, and can run it: without KVM's interrupt controllers its second processor never gets to KVM_RUN."""
    if irqchip == "off" and cpus != "1":
        return False
    if machine == "microvm":
        return devices == "mmio" and firmware != "ovmf"
    if devices == "ide" and (machine != "pc" or firmware == "ovmf"):  # OVMF leaves PIIX3's IDE off when it starts a kernel; under TCG, too
        return False
    return devices != "mmio" and firmware != "qboot"


def everything():
    return [",".join(c) for c in itertools.product(MACHINES, FIRMWARE, IRQCHIPS, CPUS, DEVICES) if sensible(*c)]


def arguments(name, tmp, script):
    """QEMU's command line for a machine that runs the script; the disk is in tmp."""
    machine, firmware, irqchip, cpus, devices = name.split(",")
    kernel, disk, card = DEVICES[devices]
    kernel = os.path.join(GUEST, kernel)
    initrd = os.path.join(tmp, "initrd")
    with open(initrd, "wb") as f:
        f.write(open(os.path.join(kernel, "initrd"), "rb").read() + cpio({"test.sh": script.encode()}))
    if machine == "microvm" and irqchip == "on":
        machine += ",ioapic2=off"  # that one is QEMU's own and hears of no EOI from KVM's APICs
    # OVMF makes page tables for all physical addresses: 512 MiB hold those for 40 bits, not for 48.
    cpu = "host,host-phys-bits=off,phys-bits=40" if firmware == "ovmf" else "host"
    args = ["-machine", f"{machine},accel=kvm,kernel-irqchip={irqchip}", "-cpu", cpu, "-smp", cpus, "-m", "512M", "-nodefaults", "-display", "none",
            "-no-reboot", "-serial", "stdio", "-kernel", os.path.join(kernel, "vmlinuz"), "-initrd", initrd, "-append", "console=ttyS0 panic=-1"]
    if firmware == "ovmf":
        variables = shutil.copy(os.path.join(OVMF, "OVMF_VARS_4M.fd"), tmp)
        for file in (os.path.join(OVMF, "OVMF_CODE_4M.fd") + ",readonly=on", variables):
            args += ["-drive", f"if=pflash,format=raw,file={file}"]
    elif firmware == "qboot":
        args += ["-bios", "qboot.rom"]
    args += {"ahci": ["-device", "ahci,id=ahci"], "e1000": ["-device", "qemu-xhci,id=xhci"], "iothread": ["-object", "iothread,id=io"]}.get(devices, [])
    args += ["-drive", f"if=none,id=disk,format=raw,file={os.path.join(tmp, 'disk')}", "-device", f"{disk},drive=disk"]
    return args + ["-netdev", "user,id=net", "-device", f"{card},netdev=net"]


def serve(listener, data):
    """Sends data to whoever connects."""
    def run():
        try:
            with listener.accept()[0] as s:
                s.sendall(data)
        except OSError:
            pass
    threading.Thread(target=run, daemon=True).start()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def boot(uvirt, name, prefix=()):
    """One boot to the end of the guest's script and off.  Returns the seconds to init by the guest's clock."""
    first, second = os.urandom(SIZE), os.urandom(SIZE)
    with tempfile.TemporaryDirectory() as tmp, socket.create_server(("127.0.0.1", 0)) as listener:
        disk = os.path.join(tmp, "disk")
        with open(disk, "wb") as f:
            f.write(first)
        serve(listener, second)
        args = arguments(name, tmp, SCRIPT.replace("PORT", str(listener.getsockname()[1])))
        with subprocess.Popen([*prefix, uvirt, "exec", "--", QEMU, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as p:
            try:
                out = p.communicate(timeout=TIMEOUT)[0]
            except subprocess.TimeoutExpired:
                p.kill()
                out = p.communicate()[0]
        text = out.decode(errors="replace").replace("\r", "")
        try:
            check(p.returncode == 0, f"exit code {p.returncode}")
            check("test-end" in text, "the guest did not get to the end of its script")
            check(re.search(f"^{name.split(',')[3]}$", text, re.M), "the guest does not see its CPUs")
            check("disk-holds " + sha(first) in text, "the guest read other bytes from its disk")
            check("net-brought " + sha(second) in text, "the guest got other bytes over the network")
            check(open(disk, "rb").read() == second, "the disk does not hold what the guest wrote")
            noise = NOISE.search(text)
            check(not noise, f"the guest complains: {noise and noise.group(0)}")
        except Failure as e:
            print(f"{text[-12000:]}\n{uvirt} exec -- {QEMU} {' '.join(args)}")
            raise Failure(f"{name}: {e}") from None
    return float(re.search(r"init: reached after ([\d.]+)", text).group(1))


def boot_traced(uvirt, name):
    """The same under strace: no path of a device node reaches the kernel, and no KVM request is answered by it."""
    if not shutil.which("strace"):
        print("skip: no strace; script/setup installs it")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as tmp:
        trace = os.path.join(tmp, "trace")
        uptime = boot(uvirt, name, ["strace", "-f", "--seccomp-bpf", "-o", trace, "-e", "trace=%file,ioctl"])
        lines = open(trace, errors="replace").read().splitlines()
    check(sum("bzImage" in line or "vmlinuz" in line for line in lines), "strace does not see what QEMU opens")
    bad = [line for line in lines if re.search(r'"(/dev/|[^"]*/)kvm"', line) or re.search(r"ioctl\(\d+, (KVM_|_IOC\(.*0xae).* = \d", line)]
    check(not bad, "a device node is touched: " + "\n".join(bad[:5]))
    return uptime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uvirt")
    parser.add_argument("machine", nargs="*")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--strace", action="store_true", help="look at QEMU's system calls")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_intermixed_args()
    names = options.machine or (everything() if options.full else QUICK)
    need(*{DEVICES[name.split(",")[4]][0] for name in names})

    def one(name):
        start = time.monotonic()
        try:
            uptime = (boot_traced if options.strace else boot)(options.uvirt, name)
        except Failure as e:
            print(f"FAILED: {e}", flush=True)
            return False
        print(f"{name}: ok, init after {uptime:.1f} s, {time.monotonic() - start:.1f} s in all", flush=True)
        return True

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, [name for _ in range(options.repeat) for name in names]))
    print(f"{sum(results)} of {len(results)} boots without a fault")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
