#!/usr/bin/env python3
"""`uvirt exec` as a command: which programs it takes, exit codes, what programs see, and that no real /dev/kvm is touched.

usage: exec_test.py UVIRT CLIENT CASE
"""
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile

UVIRT, CLIENT, CASE = [os.path.abspath(a) for a in sys.argv[1:3]] + sys.argv[3:4]
CC = shutil.which("cc") or "gcc"

PYTHON_CLIENT = """
import ctypes, fcntl, mmap, os, struct
with open("/dev/kvm", "rb+", buffering=0) as f:
    assert fcntl.ioctl(f, 0xae00, 0) == 12
    vm = fcntl.ioctl(f, 0xae01, 0)
    vcpu = fcntl.ioctl(vm, 0xae41, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(f, 0xae04, 0))
    ram = mmap.mmap(-1, 65536)
    ram[0xfff0] = 0xf4  # hlt where the processor starts
    at = ctypes.addressof(ctypes.c_char.from_buffer(ram))
    fcntl.ioctl(vm, 0x4020ae46, struct.pack("IIQQQ", 0, 0, 0xffff0000, 65536, at))
    assert fcntl.ioctl(vcpu, 0xae80, 0) == 0
    assert struct.unpack_from("I", run, 8)[0] == 5  # KVM_EXIT_HLT
    os.close(vcpu)
    try:
        fcntl.ioctl(vcpu, 0xae80, 0)
        raise SystemExit(9)
    except OSError as e:
        assert e.errno == 9
print("halted")
"""


def run(*command, env=None, **kw):
    p = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, env=env, **kw)
    return p.returncode, p.stdout.decode(), p.stderr.decode()


def execute(*args, **kw):
    return run(UVIRT, "exec", *args, **kw)


def check(ok, what, seen=None):
    if not ok:
        print(f"FAILED: {what}: {seen!r}")
        sys.exit(1)


def write(path, text, mode=0o755):
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)
    return path


def build(tmp, name, *flags, text="int main(void) { return 0; }\n"):
    source = write(os.path.join(tmp, name + ".c"), text)
    out = os.path.join(tmp, name)
    subprocess.run([CC, "-o", out, source, *flags], check=True)
    return out


def refused(program, why, *args):
    code, out, err = execute(program, *args)
    check(code == 126 and err.startswith("uvirt: ") and err.count("\n") == 1 and why in err, f"{program} is refused", (code, err))


def reach(tmp):
    """Programs that the library cannot be loaded into are refused in one sentence."""
    static = build(tmp, "static", "-static")
    refused(static, "statically linked")
    refused(build(tmp, "static-pie", "-static-pie", "-fPIE"), "statically linked")
    refused(build(tmp, "go", text='__attribute__((section(".go.buildinfo"), used)) static int i = 1;\nint main(void) { return 0; }\n'), "Go program")
    refused(build(tmp, "musl", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"), "another C library")
    for at, value, name in ((4, 1, "elf32"), (18, 183, "arm64")):
        other = shutil.copy(build(tmp, "plain"), os.path.join(tmp, name))
        with open(other, "r+b") as f:
            f.seek(at)
            f.write(bytes([value]))
        refused(other, "not an x86-64 program")
    refused(write(os.path.join(tmp, "script"), f"#! {static} -x\n"), "statically linked")
    refused(write(os.path.join(tmp, "script2"), f"#!{tmp}/script\n"), "statically linked")
    refused(write(os.path.join(tmp, "script3"), f"#!/usr/bin/env -S A=b {static} x\n"), "statically linked")
    if os.geteuid() == 0:
        privileged = build(tmp, "privileged")
        os.chown(privileged, 65534, 65534)
        os.chmod(privileged, 0o4755)
        refused(privileged, "rights of its own")
    check(execute("--force", static)[0] == 0, "--force runs it all the same")
    for script in ("#!/bin/sh\nexit 6\n", "#!/usr/bin/env sh\nexit 6\n", "exit 6\n"):
        check(execute(write(os.path.join(tmp, "fine"), script))[0] == 6, "a script runs", script)


def codes(tmp):
    """Exit codes and the command line."""
    for args, code in (
        ((), 125), (("--nonsense",), 125), (("--log",), 125), (("--log", "/nonexistent/x", "true"), 125),
        (("/nonexistent",), 127), (("nonexistent-program",), 127), (("/",), 126), ((write(os.path.join(tmp, "no"), "", 0o644),), 126),
        (("true",), 0), (("--", "false"), 1), (("sh", "-c", "exit 42"), 42), (("--", "sh", "-c", "kill -9 $$"), -9),
    ):
        got, out, err = execute(*args)
        check(got == code, f"uvirt exec {' '.join(args)} ends with {code}", (got, err))
        check(code not in (125, 126, 127) or (err.startswith("uvirt: ") and err.count("\n") == 1), "one sentence", err)
    code, out, err = execute("--help")
    check(code == 0 and "--log" in out and "126" in out, "--help", out)
    code, out, err = execute("sh", "-c", 'echo "$1"', "sh", "--help")
    check(code == 0 and out == "--help\n", "the program's options are its own", out)


def python(tmp):
    code, out, err = execute(sys.executable, "-c", PYTHON_CLIENT)
    check(code == 0 and out == "halted\n", "a Python client", (code, out, err))


def shell(tmp):
    """What command-line tools see; and their children, in any environment."""
    script = "test -c /dev/kvm && test -r /dev/kvm && test -w /dev/kvm && cd /dev && test -e kvm && stat -c '%t:%T %a' /dev/kvm && ls -l /dev/kvm"
    code, out, err = execute("sh", "-c", script)
    check(code == 0 and out.startswith("a:e8 666\ncrw-rw-rw-"), "the node in the shell", (code, out, err))
    code, out, err = execute("env", "-i", "PATH=" + os.environ["PATH"], sys.executable, "-c", PYTHON_CLIENT)
    check(code == 0 and out == "halted\n", "a child with an empty environment", (code, out, err))
    code, out, err = execute("sh", "-c", "grep -E -c -w 'vmx|svm' /proc/cpuinfo")
    check(code == 0 and int(out) >= 1, "the flag in /proc/cpuinfo", out)


def log(tmp):
    path = os.path.join(tmp, "log")
    client = "import fcntl, os\nf = os.open('/dev/kvm', os.O_RDWR)\ntry: fcntl.ioctl(f, 0xaeff, 0)\nexcept OSError: pass\n"
    code, out, err = execute("--log", path, sys.executable, "-c", client)
    text = open(path).read()
    check(code == 0 and re.fullmatch(r"uvirt\[\d+\]: unknown ioctl \(0xaeff\): Invalid argument\n", text), "the log", (code, text, err))
    check(err == "", "nothing else is said", err)


def untouched(tmp):
    """strace sees no system call with a path of a device node, and no KVM request that the kernel answers."""
    if not shutil.which("strace"):
        print("skip: strace is not installed")
        sys.exit(77)
    trace = os.path.join(tmp, "trace")
    code, out, err = run("strace", "-f", "-o", trace, "-e", "trace=%file,%desc,ioctl", UVIRT, "exec", "--", CLIENT)
    check(code == 0, "the client under strace", (code, err))
    lines = open(trace).read().splitlines()
    check(len(lines) > 100, "strace sees system calls", len(lines))
    calls = re.compile(r"\b(open|openat|openat2|creat|access|faccessat2?|stat|lstat|newfstatat|statx|readlink|readlinkat|execve)\(")
    bad = [l for l in lines if (calls.search(l) and re.search(r'"[^"]*\bkvm"', l)) or re.search(r"ioctl\(\d+, (KVM_|_IOC\(.*0xae).* = \d", l)]
    # The test's own look through /proc and at paths that end alike is not the device's.
    bad = [l for l in bad if '"/proc/self/root/dev/kvm"' not in l and '"/tmp/no/such/kvm"' not in l]
    check(not bad, "a device node is touched", bad[:5])


def doctor(tmp):
    """Its JSON and exit codes; under `uvirt exec`, so that it does not look at the machine's own device."""
    def examine(**kw):
        code, out, err = execute(UVIRT, "doctor", "--json", **kw)
        report = json.loads(out)
        checks = {c["name"]: c for c in report["checks"]}
        check(all(("cost" in c) == (c["state"] != "ok") and c["value"] for c in checks.values()), "each lack has its cost", out)
        check(report["works"] == (code == 0), "exit code", code)
        return code, checks

    def few(n):
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))

    code, checks = examine()
    check(code == 0 and checks["engine"]["state"] == "ok", "it works here", checks)
    code, checks = examine(preexec_fn=few(64))
    check(code == 0 and checks["open descriptors"]["state"] == "lack" and checks["open descriptors"]["value"] == "64", "a low limit", checks)
    code, checks = examine(preexec_fn=few(5))
    check(code == 1 and checks["engine"]["state"] == "FAIL", "too low a limit", checks)
    code, checks = examine(env={**os.environ, "PATH": "/nonexistent"})
    check(code == 0 and checks["QEMU"]["state"] == "lack" and checks["tools for guests"]["state"] == "lack", "no tools", checks)
    code, checks = examine(env={**os.environ, "UVIRT_ENGINE": "interpreter"})
    check(code == 0 and checks["translator"]["state"] == "lack" and "UVIRT_ENGINE" in checks["translator"]["value"], "no translator", checks)
    code, checks = examine(env={k: v for k, v in os.environ.items() if k != "UVIRT_ENGINE"})
    fsgsbase = " fsgsbase " in open("/proc/cpuinfo").read()
    check(checks["translator"]["value"].startswith("on" if fsgsbase else "off"), "the translator", checks)
    code, out, err = execute(UVIRT, "doctor")
    check(code == 0 and out.endswith("uvirt works on this host.\n"), "text", out)
    check(execute(UVIRT, "doctor", "--jsn")[0] == 2, "a bad option")


def main():
    tmp = tempfile.mkdtemp(prefix="uvirt-exec.")
    os.chmod(tmp, stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)
    try:
        {f.__name__: f for f in (reach, codes, python, shell, log, untouched, doctor)}[CASE](tmp)
    finally:
        shutil.rmtree(tmp)


main()
