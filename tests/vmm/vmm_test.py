#!/usr/bin/env python3
"""Boots real Debian guests with `uvirt run` and looks at what they say.

usage: vmm_test.py UVIRT CASE [--repeat N]

The guest is made by script/guest (kernel and busybox initramfs); a test appends a second cpio archive with its /test.sh.
Exit code 77 (skip) when the guest files are not there.
"""
import argparse
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

from smaps import resident

GUEST = os.environ.get("UVIRT_GUEST_DIR") or os.path.join(os.path.dirname(__file__), "../../build/guest")
TIMEOUT = 600
NOISE = re.compile(r"WARNING:|BUG:|Call Trace|Oops|general protection|unchecked MSR|soft lockup|rcu.*stall|irq .*nobody cared|clocksource: .*unstable")


def cpio(files):
    """A newc archive of {name: bytes}."""
    out = b""
    for n, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")]):
        mode = 0o100755 if name != "TRAILER!!!" else 0
        fields = [n + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
        out += head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
    return out


class Guest:
    def __init__(self, uvirt, tmp, script, arch="amd64", append="", args=()):
        files = [os.path.join(GUEST, arch, f) for f in ("vmlinuz", "initrd")]
        if not all(map(os.path.exists, files)):
            print(f"skip: no guest in {GUEST}/{arch}; script/guest {arch} makes it")
            sys.exit(77)
        initrd = os.path.join(tmp, "initrd")
        with open(initrd, "wb") as f:
            f.write(open(files[1], "rb").read())
            f.write(cpio({"test.sh": script.encode()}))
        self.command = [uvirt, "run", "--accel", "soft", "--kernel", files[0], "--initrd", initrd, "--append", f"console=ttyS0 {append}", *args]

    def run(self, timeout=TIMEOUT):
        """Returns (exit code, console text)."""
        p = subprocess.run(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
        return p.returncode, p.stdout.decode(errors="replace")


def check(ok, what, text=""):
    if not ok:
        print(text[-12000:])
        print(f"FAILED: {what}")
        sys.exit(1)


def boot(uvirt, tmp, cpus, arch="amd64", args=(), append="", has="kvm-clock"):
    script = "nproc; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/clocksource/clocksource0/current_clocksource; cat /proc/interrupts; echo test-end\n"
    code, text = Guest(uvirt, tmp, script, arch, append, ["--cpus", str(cpus), *args]).run()
    check(code == 0, f"exit code {code}, expected 0 (power-off)", text)
    check("init: reached" in text and "test-end" in text, "the guest did not reach the end of its script", text)
    check(re.search(rf"^{cpus}\r?$", text, re.M), f"the guest does not see {cpus} CPUs", text)
    check(has in text, f"the guest does not say {has}", text)
    noise = NOISE.search(text)
    check(not noise, f"the guest complains: {noise and noise.group(0)}", text)
    return text


def boot1(uvirt, tmp): boot(uvirt, tmp, 1)


def boot2(uvirt, tmp):
    check("x2apic" in boot(uvirt, tmp, 2), "no x2apic")


def boot4(uvirt, tmp): boot(uvirt, tmp, 4)


def clock72(uvirt, tmp):
    """More vCPUs than one page of kvmclock areas has room for, in each way Linux allocates them; time never goes back between CPUs."""
    for append, args in (("no-kvmclock-vsyscall", []), ("", ["--cpu", "max,-kvmclock-stable-bit"])):
        # 72 vCPUs on a few loaded processors may wait for seconds, as they would under any hypervisor: not what this test is about.
        append += " nosoftlockup"
        text = boot(uvirt, tmp, 72, args=["--memory", "1G", *args], append=append)
        check("Brought up 1 node, 72 CPUs" in text and "kvm-clock: Using msrs 4b564d01" in text, "not all CPUs came up with kvm-clock", text)
        check("TSC warp" not in text, "the time-stamp counters differ", text)


def noclock(uvirt, tmp):
    """Without kvmclock the guest takes the TSC, which must be one for all CPUs."""
    text = boot(uvirt, tmp, 2, append="no-kvmclock", has="Switched to clocksource tsc")
    check("kvm-clock" not in text.replace("no-kvmclock", ""), "kvm-clock in spite of no-kvmclock", text)
    check("TSC warp" not in text and "Marking TSC unstable" not in text, "the time-stamp counters differ", text)


def noacpi(uvirt, tmp):
    """MP tables instead of ACPI: the i386 kernel (the cloud kernel has no MP table support) finds both CPUs; without ACPI it can only reset."""
    code, text = Guest(uvirt, tmp, "nproc\ncat /proc/interrupts\nreboot -f\n", "i386", "acpi=off", ["--cpus", "2", "--no-reboot"]).run()
    check(code == 3, f"exit code {code}, expected 3 (reset)", text)
    check(re.search(r"^2\r?$", text, re.M), "the guest does not see 2 CPUs", text)
    check("IO-APIC" in text, "no I/O APIC without ACPI", text)


def pae(uvirt, tmp): boot(uvirt, tmp, 1, "i386")


def pae2(uvirt, tmp): boot(uvirt, tmp, 2, "i386")


def disk(uvirt, tmp):
    """An ext4 file system written in one boot and verified in the next."""
    image = os.path.join(tmp, "disk")
    with open(image, "wb") as f:
        f.truncate(64 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", image], check=True)
    write = "mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/data bs=64k count=128 2>/dev/null && sha256sum /mnt/data && sync && umount /mnt; echo test-end\n"
    read = "mount -t ext4 -o ro /dev/vda /mnt && sha256sum /mnt/data && umount /mnt; echo test-end\n"
    sums = []
    for script, option in ((write, image), (read, image + ",ro")):
        code, text = Guest(uvirt, tmp, script, args=["--cpus", "2", "--disk", option]).run()
        check(code == 0 and "test-end" in text, f"exit code {code}", text)
        found = re.search(r"([0-9a-f]{64})  /mnt/data", text)
        check(found, "no checksum", text)
        sums.append(found.group(1))
    check(sums[0] == sums[1], "the file differs after the second boot")
    check(subprocess.run(["/sbin/fsck.ext4", "-f", "-n", image], stdout=subprocess.DEVNULL).returncode == 0, "fsck finds errors")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def net(uvirt, tmp):
    """DHCP, and 4 MiB over TCP in both directions through user networking's forwarding on loopback."""
    port = free_port()
    data = os.urandom(4 << 20)
    script = """ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -s /etc/udhcpc.sh -n -q && echo dhcp-ok
ip addr show eth0
echo listening-1
nc -l -p 7000 > /tmp/got
sha256sum /tmp/got
echo listening-2
nc -l -p 7000 < /tmp/got
echo test-end
"""
    guest = Guest(uvirt, tmp, script, args=["--net", f"user,hostfwd=tcp:127.0.0.1:{port}-:7000"])
    p = subprocess.Popen(guest.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines, marks = [], {"listening-1": threading.Event(), "listening-2": threading.Event()}

    def reader():
        for line in p.stdout:
            lines.append(line.decode(errors="replace"))
            for mark, event in marks.items():
                if mark in lines[-1]:
                    event.set()
        for event in marks.values():
            event.set()

    def connect(mark):
        check(marks[mark].wait(TIMEOUT) and p.poll() is None, f"the guest did not get to {mark}", "".join(lines))
        time.sleep(3)  # nc starts right behind the mark
        return socket.create_connection(("127.0.0.1", port), timeout=120)

    t = threading.Thread(target=reader)
    t.start()
    try:
        with connect("listening-1") as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        back = b""
        with connect("listening-2") as s:
            while len(back) < len(data):
                part = s.recv(65536)
                if not part:
                    break
                back += part
        check(len(back) == len(data), f"got {len(back)} bytes back, not {len(data)}", "".join(lines))
        code = p.wait(TIMEOUT)
    finally:
        p.kill()
        t.join()
    text = "".join(lines)
    check(code == 0 and "dhcp-ok" in text and "10.0.2.15" in text, f"exit code {code} or no DHCP lease", text)
    check(hashlib.sha256(data).hexdigest() in text, "the guest got other bytes than were sent", text)
    check(back == data, f"got {len(back)} bytes back, not the {len(data)} sent", text)


def ends(uvirt, tmp):
    """Reboot, panic and triple fault end in their documented exit codes; a reboot without --no-reboot starts again."""
    for script, append, args, expected in (
        ("reboot -f", "", ["--no-reboot"], 3),
        ("echo c > /proc/sysrq-trigger", "panic=0", [], 4),
        ("echo 1; reboot -f", "reboot=triple", ["--no-reboot"], 5),
    ):
        code, text = Guest(uvirt, tmp, script + "\n", append=append, args=args).run()
        check(code == expected, f"'{script}' with '{append}': exit code {code}, expected {expected}", text)
    script = "echo boot-number; grep -q second /proc/cmdline; dd if=/dev/vda bs=1 count=1 2>/dev/null | grep -q x && poweroff -f; echo x > /dev/vda; sync; reboot -f\n"
    image = os.path.join(tmp, "flag")
    with open(image, "wb") as f:
        f.truncate(1 << 20)
    code, text = Guest(uvirt, tmp, script, args=["--disk", image]).run()
    check(code == 0 and text.count("init: reached") == 2, f"reboot did not start the guest again (exit code {code})", text)


def again(uvirt, tmp):
    """A reset loads the kernel and the initrd once more: from files that have no name any more, and from pipes, which can be read once only."""
    script = "if grep -q x /dev/vda; then poweroff -f; fi\necho x > /dev/vda; sync; reboot -f\n"
    image = os.path.join(tmp, "flag")

    def feed(path, data):
        with open(path, "wb") as f:
            f.write(data)

    for make in ("file", "pipe"):
        with open(image, "wb") as f:
            f.truncate(512)
        command = Guest(uvirt, tmp, script, args=["--disk", image]).command
        names = {option: os.path.join(tmp, f"{make}{option}") for option in ("--kernel", "--initrd")}
        for option, name in names.items():
            at = command.index(option) + 1
            data, command[at] = open(command[at], "rb").read(), name
            if make == "pipe":
                os.mkfifo(name)
                threading.Thread(target=feed, args=(name, data), daemon=True).start()
            else:
                feed(name, data)
        guest = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = ""
        for line in guest.stdout:
            text += line.decode(errors="replace")
            if b"init: reached" in line:
                for name in names.values():
                    if os.path.exists(name):
                        os.unlink(name)
        code = guest.wait(TIMEOUT)
        check(code == 0 and text.count("init: reached") == 2, f"{make}: exit code {code}", text)


def hvc(uvirt, tmp):
    """The virtio console carries both directions; the serial port goes elsewhere meanwhile."""
    serial = os.path.join(tmp, "serial")
    script = "exec 3<>/dev/hvc0\necho say-something >&3\nread line <&3\necho got-$line >&3\n" # open all the time: the guest drops what comes to a closed console
    guest = subprocess.Popen(Guest(uvirt, tmp, script, args=["--console", f"file={serial}", "--virtio-console", "stdio"]).command,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = b""
    while b"say-something" not in text:
        byte = guest.stdout.read(1)
        check(byte, "the guest ended without a word on hvc0", text.decode(errors="replace"))
        text += byte
    text += guest.communicate(b"two words\n", timeout=TIMEOUT)[0]
    check(b"got-two words" in text and guest.returncode == 0, f"no answer on hvc0, exit code {guest.returncode}", text.decode(errors="replace"))
    check("init: reached" in open(serial, errors="replace").read(), "nothing on the serial port")


def stat(uvirt, tmp):
    """`uvirt stat` of a running machine: its objects, plausible counts that go on growing, and clear errors."""
    guest = subprocess.Popen(Guest(uvirt, tmp, "while true; do cat /proc/interrupts > /dev/null; done\n", args=["--cpus", "2"]).command,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for line in guest.stdout:
            if b"init: reached" in line:
                break
        out = subprocess.run([uvirt, "stat", "--json", "--interval", "0.5", str(guest.pid)], stdout=subprocess.PIPE, check=True).stdout
        report = json.loads(out)
        check((report["machines"], report["vcpus"], report["pid"]) == (1, 2, guest.pid), "wrong objects", out.decode())
        total = {(s["owner"], s["name"]): s for s in report["statistics"]}
        for name in ("exits", "io_exits", "mmio_exits", "halt_exits", "irq_injections", "pf_guest", "tlb_fills", "blocks_decoded", "translations", "translated_guest_bytes",
                     "translated_host_bytes", "translation_ns"):
            check(total["vcpu", name]["total"] > 100, f"{name} was not counted", out.decode())
        check(total["vcpu", "irq_injections"]["per_second"] > 0, "no rate", out.decode())
        table = subprocess.run([uvirt, "stat", "--interval", "0.1", str(guest.pid)], stdout=subprocess.PIPE, check=True).stdout.decode()
        check(re.search(r"^vcpu irq_injections +[1-9]", table, re.M), "no table", table)
    finally:
        guest.kill()
        guest.wait()
    for arguments, code in ((["1"], 1), ([str(guest.pid)], 1), (["x"], 2), (["--interval", "0"], 2)):
        p = subprocess.run([uvirt, "stat", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check(p.returncode == code and p.stderr.count(b"\n") == 1 and not p.stdout, f"stat {arguments}: {p.returncode} {p.stderr}")


# A multiboot kernel; it ends with the number of the step that went wrong, 0 for none.
MIGRATION = """
.set show, {show}
.macro want reg, value
  inc %ebp
  cmp $\\value, \\reg
  jne end
.endm
.text
.globl _start
.balign 4
.long 0x1badb002, 0, -0x1badb002
_start:
  xor %ebp, %ebp
  mov $0x40000001, %eax
  cpuid
  and $0x30000, %eax
  want %eax, show
  mov $0x4b564d08, %ecx
  rdmsr
  want %eax, 1
  want %edx, 0
.if show == 0x30000
  xor %eax, %eax
  wrmsr
  mov $2, %eax
  rdmsr
  want %eax, 0
.endif
  mov $12, %eax
  mov $0x100000, %ebx
  mov $16, %ecx
  mov $0x10, %edx
  vmcall
  want %eax, {result}
  mov $12, %eax
  mov $0x100001, %ebx
  vmcall
  want %eax, -22
  mov $13, %eax
  vmcall
  want %eax, -1000
  xor %ebp, %ebp
end:
  mov %ebp, %eax
  mov $0xf4, %dx
  out %eax, %dx
  hlt
"""


def migration(uvirt, tmp):
    """The hypercall and the register for a guest's migration: offered, answered, taken away by name."""
    source, object, kernel = (os.path.join(tmp, name) for name in ("k.s", "k.o", "k"))
    for show, result, cpu in ((0x30000, 0, "max"), (0x20000, -1000, "max,-kvm-hc-map-gpa-range")):
        with open(source, "w") as f:
            f.write(MIGRATION.format(show=show, result=result))
        subprocess.run(["as", "--32", "-o", object, source], check=True)
        subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x200000", "-o", kernel, object], check=True)
        p = subprocess.run([uvirt, "run", "--accel", "soft", "--kernel", kernel, "--debug-exit", "--cpu", cpu], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=TIMEOUT)
        check(p.returncode == 33, f"--cpu {cpu}: exit code {p.returncode}, step {(p.returncode - 32) >> 1}", p.stdout.decode())


STEAL = """read up _ < /proc/uptime
end=$((${up%.*} + 4))
head -n 1 /proc/stat
while [ ${up%.*} -lt $end ]; do read up _ < /proc/uptime; done
head -n 1 /proc/stat
"""


def run_delay(pid, name):
    """Nanoseconds for which the thread of that name could have run but did not."""
    for task in os.listdir(f"/proc/{pid}/task"):
        if open(f"/proc/{pid}/task/{task}/comm").read().strip() == name:
            return int(open(f"/proc/{pid}/task/{task}/schedstat").read().split()[1])
    check(False, f"no thread {name}")


def steal(uvirt, tmp):
    """A guest that shares its processor with another program: the column steal of its /proc/stat is its thread's run delay."""
    if not os.path.exists("/proc/self/schedstat"):
        sys.exit(77)
    processor = {min(os.sched_getaffinity(0))}
    pin = lambda: os.sched_setaffinity(0, processor)
    guest = subprocess.Popen(Guest(uvirt, tmp, STEAL).command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=pin)
    other = None
    text, columns, delays = "", [], []
    try:
        for line in guest.stdout:
            text += line.decode(errors="replace")
            if b"init: reached" in line:
                other = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=pin)
            if line.startswith(b"cpu "):
                delays.append(run_delay(guest.pid, "vcpu0"))
                columns.append(int(line.split()[8]))
    finally:
        guest.kill()
        guest.wait()
        if other:
            other.kill()
            other.wait()
    check(len(columns) == 2, "the guest does not tell", text)
    stolen, delay = (columns[1] - columns[0]) / 100, (delays[1] - delays[0]) / 1e9
    print(f"run delay {delay:.3f} s, steal {stolen:.2f} s")
    check(delay > 0.5 and abs(stolen - delay) <= 0.05 * delay, f"steal {stolen:.2f} s, run delay {delay:.3f} s", text)


def watch(uvirt, tmp):
    """The start of a boot: every translation is listed, and named for perf with the symbols given."""
    listing, symbols = os.path.join(tmp, "listing"), os.path.join(tmp, "System.map")
    with open(symbols, "w") as f:
        f.write("0000000000001000 T low\nffffffff81000000 T kernel_text\nffffffffff000000 T kernel_end\n")
    guest = subprocess.Popen(Guest(uvirt, tmp, "", args=[f"--trace-code={listing}", "--perf-map", "--symbols", symbols]).command,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    perf = f"/tmp/perf-{guest.pid}.map"
    try:
        for line in guest.stdout:
            if b"Linux version" in line:
                break
    finally:
        guest.kill()
        guest.communicate()
    text, names = open(listing).read(), open(perf).read()
    os.unlink(perf)
    heads = re.findall(r"^#(\d+) (guest:\S+) \(([0-9a-f]+), gpa ([0-9a-f]+)\), (supervisor|user)[^:]*: (\d+) instructions, (\d+) bytes to (\d+) at (0x[0-9a-f]+)$", text, re.M)
    check(len(heads) > 200 and [int(h[0]) for h in heads] == list(range(1, len(heads) + 1)), f"{len(heads)} listings", text)
    check(all(int(h[2], 16) & 0xfff == int(h[3], 16) & 0xfff for h in heads), "linear and physical address differ in the page", text)
    check(sum(h[1].startswith("guest:kernel_text+") for h in heads) > 100, "no symbols", text)
    check(len(re.findall(r"^[0-9a-f]{16}  \S.* {2,}\+[0-9a-f]+ +\S", text, re.M)) > len(heads), "no two columns", text)
    check("(bad)" not in text and "no instruction" not in text, "host code that is none", text)
    lines = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) (\S+)$", names, re.M)
    check(abs(len(lines) - len(heads)) <= 1 and all(h[1] == l[2] and int(h[8], 16) == int(l[0], 16) and int(h[7]) == int(l[1], 16)
                                                    for h, l in zip(heads, lines)), "perf is told something else than the listing says", names)


def cache(uvirt, tmp):
    """The smallest cache of translations: everything is forgotten again and again, and nothing goes wrong."""
    script = "cat /proc/interrupts\nfind /sys -type f | head -n 500 | wc -l\necho test-mark; sleep 3\necho test-end\n"
    guest = subprocess.Popen(Guest(uvirt, tmp, script, args=["--cpus", "2", "--code-cache", "1M"]).command,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text, report = "", b""
    try:
        for line in guest.stdout:
            text += line.decode(errors="replace")
            if b"test-mark" in line:
                report = subprocess.run([uvirt, "stat", "--json", "--interval", "0.01", str(guest.pid)], stdout=subprocess.PIPE, check=True).stdout
        code = guest.wait(TIMEOUT)
    finally:
        guest.kill()
    check(code == 0 and "test-end" in text, f"exit code {code}", text)
    check(not NOISE.search(text), "the guest complains", text)
    resets = [s["total"] for s in json.loads(report)["statistics"] if s["name"] == "translation_resets"]
    check(resets and resets[0] > 2, "nothing was ever forgotten", report.decode())


def idle(uvirt, tmp):
    """An idle guest's machine gives back what it does not need: less than 24 MiB besides the guest's own memory, and the guest goes on as before."""
    script = "echo test-idle\nread line\nfind /sys -type f | wc -l\necho test-idle\nread line\necho test-end\n"
    guest = subprocess.Popen(Guest(uvirt, tmp, script, args=["--memory", "512M", "--cpus", "2"]).command,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text, sizes = "", {}
    try:
        for line in guest.stdout:
            text += line.decode(errors="replace")
            if line.startswith(b"test-idle"):
                end = time.monotonic() + TIMEOUT / 4
                while True:
                    sizes = resident(guest.pid, 512 << 20)
                    rest = sum(sizes.values()) - sizes["guest"]
                    if rest < 24 << 10 or time.monotonic() > end:
                        break
                    time.sleep(0.2)
                check(rest < 24 << 10, f"{rest} KiB besides the guest's memory: {sizes}", text)
                guest.stdin.write(b"go on\n")
                guest.stdin.flush()
        code = guest.wait(TIMEOUT)
    finally:
        guest.kill()
    check(code == 0 and "test-end" in text and text.count("test-idle") == 2, f"exit code {code}", text)
    check(not NOISE.search(text), "the guest complains", text)


def bad_input(uvirt, tmp):
    """One clear message, non-zero exit, nothing left behind."""
    kernel = os.path.join(GUEST, "amd64", "vmlinuz")
    if not os.path.exists(kernel):
        sys.exit(77)
    image = open(kernel, "rb").read()

    def path(name, data):
        p = os.path.join(tmp, name)
        with open(p, "wb") as f:
            f.write(data)
        return p

    big = path("big", b"")
    os.truncate(big, 300 << 20)
    disk = path("disk", b"\0" * 4096)
    cases = [
        ["--kernel", os.path.join(tmp, "missing")],
        ["--kernel", path("empty", b"")],
        ["--kernel", path("garbage", os.urandom(65536))],
        ["--kernel", path("half", image[: len(image) // 2])],
        ["--kernel", path("head", image[:700])],
        ["--kernel", path("elf", b"\x7fELF" + os.urandom(4000))],
        ["--kernel", tmp],
        ["--kernel", kernel, "--initrd", os.path.join(tmp, "missing")],
        ["--kernel", kernel, "--initrd", big, "--memory", "256M"],
        ["--kernel", kernel, "--memory", "0"],
        ["--kernel", kernel, "--memory", "64T"],
        ["--kernel", kernel, "--memory", "12parsecs"],
        ["--kernel", kernel, "--cpus", "0"],
        ["--kernel", kernel, "--cpus", "99999"],
        ["--kernel", kernel, "--cpu", "pentium9"],
        ["--kernel", kernel, "--disk", os.path.join(tmp, "missing")],
        ["--kernel", kernel, "--disk", tmp],
        ["--kernel", kernel, "--disk", disk, "--disk", disk],
        ["--kernel", kernel, "--net", "user,hostfwd=nonsense"],
        ["--kernel", kernel, "--code-cache", "1000K"],
        ["--kernel", kernel, "--code-cache", "2G"],
        ["--kernel", kernel, f"--trace-code={tmp}/missing/file"],
        ["--kernel", kernel, "--symbols", os.path.join(tmp, "missing")],
        ["--kernel", kernel, "--perf-map=1"],
        ["--kernel", kernel, "--frobnicate"],
        [],
    ]
    before = set(os.listdir(tmp))
    for args in cases:
        p = subprocess.run([uvirt, "run", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        err = p.stderr.decode(errors="replace")
        messages = [l for l in err.splitlines() if l.startswith("uvirt: ") and "accelerator" not in l]
        check(p.returncode > 0 and p.returncode < 128, f"{args}: exit code {p.returncode}", err)
        check(len(messages) == 1 or not args, f"{args}: {len(messages)} messages, expected one", err)
    check(set(os.listdir(tmp)) == before, "files were left behind")


CASES = {f.__name__: f for f in (boot1, boot2, boot4, clock72, noclock, noacpi, pae, pae2, disk, net, ends, again, hvc, migration, stat, steal, watch, cache, idle, bad_input)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uvirt")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    for n in range(options.repeat):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as tmp:
            CASES[options.case](options.uvirt, tmp)
        print(f"{options.case} {n + 1}/{options.repeat}: ok in {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
