#!/usr/bin/env python3
"""libvirt without root and without systemd: a libvirtd under `uvirt exec` and a domain of type kvm whose emulator is a script that runs
QEMU under `uvirt exec`.  Started, paused, saved, restored, snapshotted, reverted, destroyed; the guest (busy.c) checks itself.

usage: libvirt_test.py UVIRT BUSY

Exit code 77 (skip) without libvirt's daemon, QEMU or the guest's files.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time

import qemu_pair as pair
from qemu_pair import check

NOBODY = 65534
LIBVIRTD = shutil.which("libvirtd", path=os.environ.get("PATH", "") + ":/usr/sbin")
DRIVER = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"
MEMORY = 256

DOMAIN = """<domain type='kvm'>
  <name>busy</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{tmp}/vmlinuz</kernel>
    <initrd>{tmp}/initrd</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'/>
  <devices>
    <emulator>{tmp}/qemu</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{tmp}/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{tmp}/console'/></serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""

EMULATOR = """#!/bin/sh
exec '{uvirt}' exec -- '{qemu}' "$@"
"""


def need_libvirt():
    if not LIBVIRTD or not shutil.which("virsh") or not os.path.exists(DRIVER):
        pair.skip("no libvirtd, virsh or QEMU driver; script/setup --clients installs them")
    pair.need_guest()


class Session:
    """A libvirtd of its own for one directory: qemu:///session of a user that is not root."""

    def __init__(self, uvirt, tmp, busy):
        self.tmp = tmp
        self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        self.environment = {"PATH": os.environ["PATH"] + ":/usr/sbin", "HOME": tmp, "XDG_RUNTIME_DIR": tmp, "LC_ALL": "C"}
        self.prepare(os.path.abspath(uvirt), busy)
        if self.user and self.run([uvirt, "exec", "--", "test", "-w", "/dev/kvm"]).returncode:
            pair.skip("libvirt's session is for users, and another user cannot run what root has built here")
        self.daemon = self.start_daemon(uvirt)

    def prepare(self, uvirt, busy):
        shutil.copyfile(os.path.join(pair.GUEST, "amd64", "vmlinuz"), self.path("vmlinuz"))
        pair.make_initrd(self.path("initrd"), busy, 16)
        self.write("domain.xml", DOMAIN.format(memory=MEMORY, tmp=self.tmp))
        self.write("qemu", EMULATOR.format(uvirt=uvirt, qemu=shutil.which(pair.QEMU)))
        os.chmod(self.path("qemu"), 0o755)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.path("disk.qcow2"), "1G"], check=True)
        if self.user:
            for name in [".", *os.listdir(self.tmp)]:
                os.chown(self.path(name), NOBODY, NOBODY)

    def start_daemon(self, uvirt):
        self.log = open(self.path("libvirtd.log"), "wb")
        daemon = subprocess.Popen([uvirt, "exec", "--", LIBVIRTD], env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log,
                                  stderr=self.log, **self.user)
        for _ in range(300):
            if os.path.exists(self.path("libvirt/libvirt-sock")):
                return daemon
            check(daemon.poll() is None, f"libvirtd ended: {self.said()}")
            time.sleep(0.1)
        check(False, f"libvirtd does not listen: {self.said()}")

    def path(self, name):
        return os.path.join(self.tmp, name)

    def write(self, name, text):
        with open(self.path(name), "w") as f:
            f.write(text)

    def said(self):
        """The daemon's and the emulator's last words."""
        logs = [self.path("libvirtd.log"), self.path(".cache/libvirt/qemu/log/busy.log")]
        return "\n".join(open(f, errors="replace").read()[-3000:] for f in logs if os.path.exists(f))

    def run(self, command):
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, **self.user)

    def virsh(self, *command):
        start = time.monotonic()
        done = self.run(["virsh", "-q", "-c", "qemu:///session", *command])
        check(done.returncode == 0, f"virsh {' '.join(command)}: {done.stdout}\n{self.said()}")
        print(f"virsh {command[0]}: {time.monotonic() - start:.2f} s")
        return done.stdout.strip()

    def ticks(self):
        return pair.ticks_of(open(self.path("console"), "rb").read() if os.path.exists(self.path("console")) else b"")

    def wait_ticks(self, count, timeout=60):
        end = time.monotonic() + timeout
        start = len(self.ticks())
        while len(self.ticks()) < start + count:
            if time.monotonic() > end:
                raise pair.Failure(f"no ticks: {self.virsh('list', '--all')} {self.said()}")
            time.sleep(0.1)
        return self.ticks()

    def stands_still(self):
        """Two looks at the last tick: the guest does not run."""
        last = self.ticks()[-1]
        time.sleep(1)
        check(self.ticks()[-1] == last, "the guest runs")
        return last

    def close(self):
        subprocess.run(["virsh", "-q", "-c", "qemu:///session", "destroy", "busy"], env=self.environment, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, **self.user)
        self.daemon.terminate()
        self.daemon.wait()
        self.log.close()


def life(session):
    virsh = session.virsh
    check("<domain>kvm</domain>" in virsh("domcapabilities", "--virttype", "kvm", "--emulatorbin", session.path("qemu")), "no type kvm")
    virsh("define", session.path("domain.xml"))
    virsh("start", "busy")
    session.wait_ticks(3)
    answer = virsh("qemu-monitor-command", "busy", '{"execute":"query-kvm"}')
    check('"enabled":true' in answer and '"present":true' in answer, f"not KVM: {answer}")

    virsh("suspend", "busy")
    check(virsh("domstate", "busy") == "paused", "suspend does not pause")
    last = session.stands_still()
    virsh("resume", "busy")
    ticks = session.wait_ticks(2)
    check(ticks[ticks.index(last) + 1] == last + 1, f"behind {last}: {ticks}")

    virsh("suspend", "busy")
    last = session.stands_still()
    virsh("save", "busy", session.path("saved"), "--running")
    check(virsh("domstate", "busy") == "shut off", "save leaves the domain running")
    virsh("restore", session.path("saved"))
    first = session.wait_ticks(2)[0]  # a new file
    check(last < first <= last + 2, f"restored at tick {first}, saved at {last}")

    virsh("suspend", "busy")
    last = session.stands_still()
    virsh("snapshot-create-as", "busy", "here")
    virsh("resume", "busy")
    session.wait_ticks(3)
    virsh("snapshot-revert", "busy", "here", "--running")
    ticks = session.wait_ticks(3)
    check(ticks[-1] - last <= len(ticks), f"not reverted to {last}: {ticks}")

    virsh("destroy", "busy")
    virsh("undefine", "busy", "--snapshots-metadata")
    check(virsh("list", "--all") == "", "the domain is still there")


def main():
    uvirt, busy = sys.argv[1:3]
    need_libvirt()
    with tempfile.TemporaryDirectory(prefix="uvirt-libvirt.") as tmp:
        os.chmod(tmp, 0o755)
        try:
            session = Session(uvirt, tmp, busy)
            try:
                life(session)
            finally:
                session.close()
        except pair.Failure as failure:
            sys.exit(f"FAILED: {failure}")


if __name__ == "__main__":
    main()
