#!/usr/bin/env python3
"""QEMU's gdbstub under `uvirt exec`: breakpoints, single steps and watchpoints, in a boot sector and in a running Linux with 2 CPUs.

usage: gdbstub_test.py UVIRT sector|linux [--repeat N]
"""
import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

from qemu_test import TIMEOUT, Failure, arguments, check, need

HERE = os.path.dirname(os.path.abspath(__file__))
RIP = 16  # its place among the registers of a `g` packet


class Gdb:
    """The client's side of the remote serial protocol."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(300):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.1)
        self.socket.settimeout(120)
        self.input = self.socket.makefile("rb")

    def send(self, text):
        self.socket.sendall(f"${text}#{sum(text.encode()) & 255:02x}".encode())

    def answer(self):
        while (byte := self.input.read(1)) != b"$":
            check(byte, "QEMU closed the connection")
        text = b""
        while (byte := self.input.read(1)) != b"#":
            check(byte, "QEMU closed the connection")
            text += byte
        self.input.read(2)
        self.socket.sendall(b"+")
        return text.decode()

    def ask(self, text, expected=None):
        self.send(text)
        answer = self.answer()
        check(expected is None or answer == expected, f"{text}: {answer!r}, not {expected!r}")
        return answer

    def register(self, n):
        return int.from_bytes(bytes.fromhex(self.ask("g")[16 * n:16 * n + 16]), "little")

    def word(self, address):
        return int.from_bytes(bytes.fromhex(self.ask(f"m{address:x},2")), "little")

    def go_on(self, how="c"):
        stop = self.ask(how)
        check(stop.startswith("T05"), f"{how}: {stop}")
        return stop

    def run_to(self, address, kind, how="c"):
        """Sets a breakpoint (0: an instruction in memory, 1: a debug register), goes on to it and takes it away."""
        self.ask(f"Z{kind},{address:x},1", "OK")
        self.go_on(how)
        check(self.register(RIP) == address, f"stopped at {self.register(RIP):#x}, not at the breakpoint {address:#x}")
        self.ask(f"z{kind},{address:x},1", "OK")

    def step(self, address, what):
        self.go_on("s")
        check(self.register(RIP) == address, f"the step {what} ends at {self.register(RIP):#x}, not {address:#x}")


def symbols(elf):
    lines = subprocess.run(["nm", elf], stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()
    return {name: int(value, 16) for value, _, name in map(str.split, lines)}


def sector(uvirt, tmp):
    """Each instruction of a boot sector, in real mode."""
    path = {end: os.path.join(tmp, end) for end in ("o", "elf", "disk", "gdb")}
    subprocess.run(["cc", "-c", "-m16", "-o", path["o"], os.path.join(HERE, "sector.S")], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext=0x7c00", "-e", "start", "-o", path["elf"], path["o"]], check=True)
    subprocess.run(["objcopy", "-O", "binary", path["elf"], path["disk"]], check=True)
    at = symbols(path["elf"])
    args = ["-machine", "pc,accel=kvm", "-cpu", "host", "-nodefaults", "-display", "none", "-drive", f"if=ide,format=raw,file={path['disk']}", "-S",
            "-gdb", f"unix:{path['gdb']},server=on,wait=off"]
    with subprocess.Popen([uvirt, "exec", "--", "qemu-system-x86_64", *args], stdin=subprocess.DEVNULL) as p:
        try:
            gdb = Gdb(path["gdb"])
            check(gdb.register(RIP) == 0xfff0, "the processor does not start at its reset vector")
            gdb.run_to(0x7c00, 1)
            for n in range(1, 20):
                if n == 16:  # two of three iterations
                    gdb.step(at["in_15"], "over one iteration")
                    gdb.step(at["in_15"], "over another iteration")
                if n == 17:
                    gdb.step(at["inner"], "into a call")
                gdb.step(at[f"in_{n}"], f"from in_{n - 1}")
            check(gdb.ask("m6000,3") == gdb.ask("m7c00,3"), "the string was not copied")
            for n in range(1, 5):
                gdb.run_to(at["stop"], n & 1)
                check(gdb.word(at["counter"]) == n, f"the breakpoint was not hit for the {n}. time")
                gdb.step(at["stop"] + 1, "from a breakpoint")
            gdb.run_to(at["wait"], 1)
            check(gdb.word(at["traps"]) == 1, "the guest did not get its own breakpoint")
            gdb.ask(f"Z2,{at['watched']:x},2", "OK")
            what = gdb.go_on()
            check("watch:" in what and gdb.register(RIP) == at["after_write"], f"{what}: no stop behind the write")
            gdb.ask(f"z2,{at['watched']:x},2", "OK")
            gdb.ask(f"Z4,{at['watched']:x},2", "OK")
            what = gdb.go_on()
            check("watch:" in what and gdb.register(RIP) == at["after_read"], f"{what}: no stop behind the read")
            gdb.ask(f"z4,{at['watched']:x},2", "OK")
            gdb.run_to(at["end"], 0)
            gdb.send("k")
            check(p.wait(20) == 0, f"QEMU ends with {p.returncode}")
        finally:
            p.kill()


def linux(uvirt, tmp):
    """A function of a running kernel: stopped at by software and hardware, stepped through, left."""
    path = os.path.join(tmp, "gdb")
    script = """echo function $(grep -E ' __x64_sys_sethostname$' /proc/kallsyms)
n=0
while [ $n -lt 300 ]; do hostname a; cat /proc/uptime >/dev/null; n=$((n + 1)); done
echo test-end
"""
    disk = os.path.join(tmp, "disk")
    open(disk, "wb").write(bytes(1 << 20))
    args = arguments("q35,seabios,on,2,virtio", tmp, script) + ["-S", "-gdb", f"unix:{path},server=on,wait=off"]
    text = ""
    with subprocess.Popen([uvirt, "exec", "--", "qemu-system-x86_64", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as p:
        try:
            gdb = Gdb(path)
            check(len(gdb.ask("qfThreadInfo")) and gdb.ask("qsThreadInfo"), "no threads")
            gdb.send("c")
            for line in p.stdout:
                text += line.decode(errors="replace")
                if found := re.search(r"function ([0-9a-f]{16}) T", text):
                    break
            check(found, "the guest did not say where its function is")
            function = int(found[1], 16)
            gdb.socket.sendall(b"\x03")
            stop = gdb.answer()
            check(stop.startswith("T02"), f"interrupted: {stop}")
            for kind in (0, 1):
                gdb.run_to(function, kind)
                seen = {function}
                for _ in range(40):
                    gdb.go_on("s")
                    seen.add(gdb.register(RIP))
                check(len(seen) > 15 and all(a >> 47 == 0x1ffff for a in seen), f"steps through {sorted(map(hex, seen))}")
            gdb.send("D")
            gdb.answer()
            text += p.communicate(timeout=TIMEOUT)[0].decode(errors="replace")
            check(p.returncode == 0 and "test-end" in text, f"exit code {p.returncode}")
        except Failure:
            print(text[-4000:])
            raise
        finally:
            p.kill()


CASES = {"sector": sector, "linux": linux}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uvirt")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    need("amd64")
    for n in range(options.repeat):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as tmp:
            try:
                CASES[options.case](options.uvirt, tmp)
            except Failure as e:
                print(f"FAILED: {options.case}: {e}")
                sys.exit(1)
        print(f"{options.case} {n + 1}/{options.repeat}: ok in {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
