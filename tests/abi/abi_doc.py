#!/usr/bin/env python3
"""Writes docs/abi.md: every KVM ioctl and capability of the x86 uAPI headers, and what the engine's tables say of it.

usage: abi_doc.py [--check] ABI_DUMP docs/abi.md
"""
import argparse
import json
import re
import subprocess
import sys

HEADER = "/usr/include/linux/kvm.h"
OTHER_ARCHITECTURES = re.compile(
    r"S390|PPC|SPAPR|_ARM_|_ARM(64)?\b|MIPS|RISCV|HTAB|SLB|UCAS|CMMA|SKEYS|_PV_|IRQ_STATE|_XICS|_XIVE|_MPIC|_DTL|SMT|RMMU|RMA|HPT|ARM_|HWRNG|LOONGARCH|"
    r"VGA_|EXTENSION_END|_SW_TLB|_BOOKE|GIC|PSCI|SVE|PMU_V3|PTRAUTH|STORE_STATUS|STSI|_TEC|ADAPTER|VCPU_RESETS|CPU_TOPOLOGY|VIRT_XATTR|FWNMI|"
    r"_OP\b|_IRQ_ROUTING_DEV|ASSIGN_|DEVICE_DEASSIGN|KVM_SET_MEMORY_(REGION|ALIAS)$|DIRTY_TLB|_IOMMU|PCI_2_3|ZPCI|AIS|BPB|GS\b|RI\b|USER_SIGP|USER_STSI|CSS_SUPPORT|USER_INSTR0|INJECT_IRQ|MEM_OP|PROTECTED_DUMP|"
    r"HAVE_EL|_NV\b|INJECT_SERROR|INJECT_EXT_DABT|USER_IRQ|ARM|MTE|DEVICE_CTRL_ARM|NESTED_HV|SECURE_GUEST|DAWR|RPT_INVALIDATE|AIL_MODE|ENABLE_HCALL|"
    r"SET_GUEST_DEBUG_HW|VIRTUAL|ONE_REG|REG_LIST|MEMORY_ENCRYPT_(REG|UNREG)_NONE")
# Values that follow the machine.
BY_HOST = {"KVM_CAP_STEAL_TIME", "KVM_CAP_NR_VCPUS", "KVM_CAP_XSAVE2"}
# Why something is not there, where that is not simply work to do.
REASONS = {
    "KVM_CAP_VM_DISABLE_NX_HUGE_PAGES": "the engine does not run guests in huge pages of the host's page tables",
    "KVM_CAP_PCI_SEGMENT": "about a device assignment that Linux 6.1 no longer has either",
}
WHERE = {"system": "/dev/kvm", "vm": "VM", "vcpu": "vCPU", "device": "device"}


def header_names():
    text = open(HEADER).read()
    ioctls = re.findall(r"^#define\s+(KVM_\w+)\s+_IO[RW]*\s*\(\s*KVMIO", text, re.M)
    caps = {name: int(number) for name, number in re.findall(r"^#\s*define\s+(KVM_CAP_\w+)\s+(\d+)", text, re.M)}
    return ioctls, caps


def page(tables):
    ioctls, caps = header_names()
    rows = {}
    for row in tables["ioctls"]:
        rows.setdefault(row["name"], []).append(row)
    out = ["# The KVM ABI of the x86 engine", "",
           "Made from the tables in `src/api`, `src/core` and `src/x86/api` by `tests/abi/abi_doc.py`; `ninja -C build abi-doc` writes it again.",
           "Numbers, structures and errors are those of Linux 6.1, `Documentation/virt/kvm/api.rst`. What is not there is refused with the kernel's error for an unknown",
           "request (`ENOTTY` or `EINVAL`) and not announced. Ioctls and capabilities of other architectures are left out.", "",
           "## Ioctls", "", "| ioctl | on | argument |", "|---|---|---|"]
    for name in sorted(rows):
        on = ", ".join(WHERE[r["on"]] for r in rows[name])
        out.append(f"| `{name}` | {on} | {rows[name][0]['argument']} |")
    missing = sorted(n for n in set(ioctls) - set(rows) if not OTHER_ARCHITECTURES.search(n))
    out += ["", f"Not there: {', '.join(f'`{n}`' for n in missing)}.", "", "## Capabilities", "",
            "What `KVM_CHECK_EXTENSION` answers.", "", "| capability | number | value |", "|---|---|---|"]
    present = {int(n): value for n, value in tables["capabilities"].items()}
    for name, number in sorted(caps.items(), key=lambda c: c[1]):
        if number in present:
            out.append(f"| `{name}` | {number} | {'by the host' if name in BY_HOST else present[number]} |")
    missing = sorted(n for n, number in caps.items() if number not in present and not OTHER_ARCHITECTURES.search(n))
    out += ["", f"Not there: {', '.join(f'`{n}`' for n in missing)}.", ""]
    out += [f"- `{name}`: {REASONS[name]}." for name in missing if name in REASONS] + [""]
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 where the page is out of date")
    parser.add_argument("dump", help="the program abi-dump")
    parser.add_argument("page", help="docs/abi.md")
    options = parser.parse_args()
    text = page(json.loads(subprocess.run([options.dump], stdout=subprocess.PIPE, check=True).stdout))
    if options.check:
        if text != open(options.page).read():
            sys.exit(f"{options.page} is out of date: `ninja -C build abi-doc` writes it again")
    else:
        open(options.page, "w").write(text)


if __name__ == "__main__":
    main()
