#!/usr/bin/env python3
"""Runs Linux 6.1's KVM selftests on uvirt's /dev/kvm: one line per test.

usage: selftests.py UVIRT BUILD_DIRECTORY [--list] [--full] [--jobs N] [--verbose] [NAME...]

The tests are those for x86 that need no nested virtualization, Hyper-V, Xen, SEV or AMX.  Their source is Debian's package
linux-source-6.1, kept in ~/.cache/uvirt, and not modified, except that two of them repeat what they do fewer times (FEWER;
--full: as often as they do by themselves).  A test passes with exit code 0 and skips with 4 (kselftest.h); the exit code of this
program is 1 when one failed, 77 when there is no source to be had.
"""
import argparse
import os
import signal
import subprocess
import sys
import time

import source

# name, arguments, seconds it may take on a busy machine
TESTS = [
    ("x86_64/cpuid_test", "", 120),
    ("x86_64/cr4_cpuid_sync_test", "", 120),
    ("x86_64/debug_regs", "", 120),
    ("x86_64/emulator_error_test", "", 120),
    ("x86_64/fix_hypercall_test", "", 120),
    ("x86_64/get_msr_index_features", "", 120),
    ("x86_64/kvm_clock_test", "", 120),
    ("x86_64/kvm_pv_test", "", 120),
    ("x86_64/max_vcpuid_cap_test", "", 120),
    ("x86_64/mmio_warning_test", "", 120),
    ("x86_64/monitor_mwait_test", "", 120),
    ("x86_64/nx_huge_pages_test", "-t 887563923 -p 100", 120),
    ("x86_64/platform_info_test", "", 120),
    ("x86_64/pmu_event_filter_test", "", 120),
    ("x86_64/set_boot_cpu_id", "", 120),
    ("x86_64/set_sregs_test", "", 120),
    ("x86_64/smm_test", "", 120),
    ("x86_64/state_test", "", 120),
    ("x86_64/sync_regs_test", "", 120),
    ("x86_64/tsc_msrs_test", "", 120),
    ("x86_64/tsc_scaling_sync", "", 120),
    ("x86_64/ucna_injection_test", "", 120),
    ("x86_64/userspace_io_test", "", 120),
    ("x86_64/userspace_msr_exit_test", "", 120),
    ("x86_64/vmx_exception_with_invalid_guest_state", "", 120),
    ("x86_64/vmx_pmu_caps_test", "", 120),
    ("x86_64/xapic_ipi_test", "", 120),
    ("x86_64/xapic_state_test", "", 120),
    ("x86_64/xss_msr_test", "", 120),
    ("access_tracking_perf_test", "", 240),
    ("demand_paging_test", "", 240),
    ("demand_paging_test", "-u MISSING", 240),
    ("demand_paging_test", "-u MINOR -s shmem", 240),
    ("dirty_log_perf_test", "", 240),
    ("dirty_log_perf_test", "-g", 240),
    ("dirty_log_test", "-M dirty-log", 240),
    ("dirty_log_test", "-M clear-log", 240),
    ("dirty_log_test", "-M dirty-ring", 240),
    ("hardware_disable_test", "", 600),
    ("kvm_binary_stats_test", "", 120),
    ("kvm_create_max_vcpus", "", 120),
    ("kvm_page_table_test", "", 240),
    ("max_guest_memory_test", "", 300),
    ("memslot_modification_stress_test", "", 240),
    ("memslot_perf_test", "-l 1", 300),
    ("rseq_test", "", 300),
    ("set_memory_region_test", "", 240),
    ("steal_time", "", 120),
    ("system_counter_offset_test", "", 120),
]
# test: the number in its source, the smaller one.  One repeats a fork of a VM that is killed, the other a change of CPU.
FEWER = {
    "hardware_disable_test": ("FORK_NUM (1ULL << 9)", "FORK_NUM (1ULL << 6)"),
    "rseq_test": ("NR_TASK_MIGRATIONS 100000", "NR_TASK_MIGRATIONS 20000"),
}
SKIP = 4


def reason(text):
    """Of a skip, as kselftest.h or the tests themselves print it."""
    lines = [line for line in text.splitlines() if "SKIP" in line or "skip" in line] or text.splitlines()[-1:]
    return lines[-1].split("SKIP", 1)[-1].strip(" -:") if lines else "no reason given"


def run(command, timeout):
    """(exit code or None, text).  A test and what it started end with it."""
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        out = p.communicate(timeout=timeout)[0]
        code = p.returncode
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        out, code = p.communicate()[0], None
    return code, out.decode(errors="replace")


def report(name, args, code, text, seconds, verbose):
    """Prints the line; whether it is a failure."""
    what = f"{name.removeprefix('x86_64/')} {args}".strip()
    if code == 0:
        print(f"pass  {what}  ({seconds:.1f} s)", flush=True)
    elif code == SKIP:
        print(f"skip  {what}: {reason(text)}", flush=True)
    else:
        print(f"FAIL  {what}: {'timeout' if code is None else f'exit code {code}'} after {seconds:.1f} s", flush=True)
    if verbose or code not in (0, SKIP):
        print("".join(f"      {line}\n" for line in text.splitlines()[-25:]), end="", flush=True)
    return code not in (0, SKIP)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("uvirt")
    p.add_argument("build")
    p.add_argument("names", nargs="*", help="only these tests")
    p.add_argument("--list", action="store_true")
    p.add_argument("--full", action="store_true", help="with all repetitions")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    p.add_argument("--verbose", action="store_true")
    a = p.parse_args()
    chosen = [t for t in TESTS if not a.names or t[0] in a.names or os.path.basename(t[0]) in a.names]
    if a.list or not chosen:
        print("\n".join(" ".join(t[:2]).strip() for t in TESTS))
        return 0 if a.list else 2
    try:
        names = {t[0]: None if a.full else FEWER.get(t[0]) for t in chosen}
        tests = source.build(source.tree(), os.path.join(a.build, "tests/selftests"), names, a.jobs)
    except source.Unavailable as e:
        print(f"skip: {e}")
        return 77
    started = time.monotonic()
    counts = {"pass": 0, "skip": 0, "fail": 0}
    for name, args, timeout in chosen:
        start = time.monotonic()
        code, text = run([a.uvirt, "exec", tests[name], *args.split()], timeout)
        failed = report(name, args, code, text, time.monotonic() - start, a.verbose)
        counts["fail" if failed else "pass" if code == 0 else "skip"] += 1
    print(", ".join(f"{n} {what}" for what, n in counts.items()) + f" in {time.monotonic() - started:.0f} s")
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
