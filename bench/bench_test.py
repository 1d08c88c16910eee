#!/usr/bin/env python3
"""The tables of docs/performance.md: made from figures, and put between their marks, which are there."""
import argparse
import os
import sys
import tempfile

import bench
import memory
import qemu_boot

UVIRT = {"boot-to-init": 2.5e9, "integer": 2.0, "syscall": 1500.0, "pio-exit": 250000.0}
TCG = {"boot-to-init": 5e9, "integer": 8.0, "syscall": 3000.0}
NATIVE = {"integer": 1.0, "syscall": 100.0}
BOOT = {"translations": 100, "translated_guest_bytes": 2048, "translated_host_bytes": 20480, "translation_ns": 250000000, "translation_resets": 0}


def main():
    s = bench.summary(UVIRT, TCG, NATIVE, BOOT)
    table = bench.markdown(s, argparse.Namespace(no_tcg=True, cpus=2))
    assert "| boot-to-init | 2.50 s | 5.00 s |  | 2.00 |  |" in table, table
    assert "| integer | 2.0 ns | 8.0 ns | 1.0 ns | 4.00 | 2.00 |" in table and "| pio-exit | 250.0 µs |  |  |  |  |" in table, table
    assert "2.83 times faster than TCG" in table and "2.00 times native time" in table, table  # the root of 4 * 2; 2 alone
    assert "100 blocks, 2 KiB of guest code into 20 KiB (10.0 host bytes per guest byte), in 250 ms (10.0% of the boot)" in table, table
    empty = bench.summary({"boot-to-init": 1e9}, {}, {}, {})
    assert empty["mean_to_tcg"] is None and "means" not in bench.markdown(empty, argparse.Namespace(no_tcg=True, cpus=1))
    runs = {2: {"uvirt": [(1.0, 0.5), (2.0, 1.0), (4.0, 2.0)], "tcg": [(3.0, 2.0), (5.0, 4.0), (9.0, 6.0)]}}
    table = qemu_boot.markdown(runs, argparse.Namespace(machine="q35", repeat=3))
    assert "| 2 | 1.00 s | 3.00 s | 3.00 | 2.50 | 0.50 s | 2.00 s | 4.00 | 4.00 |" in table, table
    table = memory.markdown([(1, {"guest": 1 << 20, "malloc": 3072, "stack": 0}, {"guest": 1 << 20, "malloc": 1024, "stack": 512})])
    assert "| 1 | 1.0 | 0.5 | **1.5 MiB** | 3.0 MiB |" in table, table
    document = open(os.path.join(os.path.dirname(__file__), "../docs/performance.md")).read()
    for mark in bench.MARKS + memory.MARKS + qemu_boot.MARKS:
        assert document.count(mark) == 1, mark
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "performance.md")
        for text in ("one\n", "two\n"):
            with open(path, "w") as f:
                f.write(document)
            bench.update(path, text)
            document = open(path).read()
        assert bench.MARKS[0] + "two\n" + bench.MARKS[1] in document and "one\n" + bench.MARKS[1] not in document, document
        with open(path, "w") as f:
            f.write("no marks\n")
        try:
            bench.update(path, "three\n")
        except SystemExit as e:
            assert "has not one line each" in str(e)
        else:
            sys.exit("a document without marks was updated")
        assert open(path).read() == "no marks\n" and os.listdir(tmp) == ["performance.md"]
    print("ok")


if __name__ == "__main__":
    main()
