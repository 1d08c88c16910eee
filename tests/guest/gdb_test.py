#!/usr/bin/env python3
"""gdb stops in translated code: it names the guest's address and finds the way out, also from the interpreter and from within its callees.

usage: gdb_test.py WATCH      (exit code 77, skip: no gdb, or it may not trace)
"""
import os
import re
import shutil
import subprocess
import sys

COMMANDS = """
set pagination off
set confirm off
set breakpoint pending off
break x86_code_next
run
backtrace
delete
break x86_code_enter
continue
stepi 40
backtrace
info symbol $pc
kill
quit
"""


def check(ok, what, text):
    if not ok:
        print(text)
        print(f"FAILED: {what}")
        sys.exit(1)


def main():
    if not shutil.which("gdb"):
        print("skip: no gdb")
        sys.exit(77)
    args = [a for line in COMMANDS.strip().splitlines() for a in ("-ex", line)]
    p = subprocess.run(["gdb", "-nx", "-batch", *args, "--args", sys.argv[1], "loop"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, env={**os.environ, "UVIRT_GDB_JIT": "1", "DEBUGINFOD_URLS": ""}, timeout=300)
    text = p.stdout.decode(errors="replace")
    if re.search("ptrace: Operation not permitted|Could not trace the inferior|personality: Operation not permitted.*ptrace", text, re.S):
        print("skip: gdb may not trace here")
        sys.exit(77)
    traces = re.split(r"^#0 ", text, flags=re.M)
    check(len(traces) == 3, "not two backtraces", text)
    way_out = r".*guest:[0-9a-f]+.*in x86_code_run .*in main "
    check(re.search(r"x86_code_next .*in x86_code_interpret " + way_out, traces[1], re.S), "no way from the interpreter to main", text)
    check(re.match(r"\s*0x[0-9a-f]+ in guest:[0-9a-f]+ .*in x86_code_run .*in main ", traces[2], re.S), "no way from translated code to main", text)
    check(re.search(r"^guest:[0-9a-f]+ \+ \d+", traces[2], re.M), "gdb does not name the program counter", text)
    print("ok")


if __name__ == "__main__":
    main()
