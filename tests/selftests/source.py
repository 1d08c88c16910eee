"""Linux 6.1's KVM selftests from Debian's source package: fetched once, unpacked as far as needed, built in the build directory."""
import concurrent.futures
import fcntl
import hashlib
import os
import subprocess
import tarfile
import tempfile

PACKAGE = "linux-source-6.1"
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "uvirt")
# What the selftests include, besides their own directory; headers of the kernel itself come from the system (linux-libc-dev).
NEEDED = (
    "tools/testing/selftests/kvm/", "tools/testing/selftests/rseq/", "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h", "tools/include/", "tools/arch/x86/include/", "tools/lib/rbtree.c",
)
LIBRARY = (
    "assert", "elf", "guest_modes", "io", "kvm_util", "perf_test_util", "rbtree", "sparsebit", "test_util", "x86_64/apic",
    "x86_64/perf_test_util", "x86_64/processor", "x86_64/svm", "x86_64/ucall", "x86_64/vmx",
)
# TEST_ASSERT_EQ was renamed in a library of the stable series but not in all of its tests.
FLAGS = ("-O2 -g -std=gnu99 -w -U_FORTIFY_SOURCE -fno-stack-protector -fno-PIE -DTEST_ASSERT_EQ=ASSERT_EQ "
         "-include linux/stddef.h").split()


class Unavailable(Exception):
    """There is no source and none can be had: no network, or not a Debian system."""


def apt(*command, cwd=None, **state):
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **state)


def download(into):
    """The package, by a private apt state: works without root."""
    with tempfile.TemporaryDirectory(prefix="uvirt-apt.") as state:
        for d in ("lists/partial", "archives/partial"):
            os.makedirs(f"{state}/{d}")
        open(f"{state}/status", "w").close()
        options = ["-qq", "-o", f"Dir::State={state}", "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::State::status={state}/status",
                   "-o", f"Dir::Cache={state}", "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none"]
        try:
            log = apt("apt-get", *options, "update").stdout
            log += apt("apt-get", *options, "download", PACKAGE, cwd=into).stdout
        except FileNotFoundError as e:
            raise Unavailable(f"no {e.filename}") from e
    debs = [f for f in os.listdir(into) if f.endswith(".deb")]
    if not debs:
        raise Unavailable(f"apt-get download {PACKAGE} failed: {log.strip()[-300:]}")
    return os.path.join(into, debs[0])


def unpack(deb, into):
    """The needed part of the tar archive that is the package's content."""
    with tempfile.TemporaryDirectory(prefix="uvirt-deb.", dir=into) as work:
        subprocess.run(["dpkg-deb", "-x", deb, work], check=True)
        with tarfile.open(f"{work}/usr/src/{PACKAGE}.tar.xz", "r|xz") as tar:
            tar.extractall(into, (m for m in tar if m.name.removeprefix(f"{PACKAGE}/").startswith(NEEDED)))


def tree():
    """The source tree's path."""
    path = os.path.join(CACHE, f"{PACKAGE}-{hashlib.sha256(repr(NEEDED).encode()).hexdigest()[:8]}")
    os.makedirs(CACHE, exist_ok=True)
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(path):
            print(f"fetching Debian's {PACKAGE} to {CACHE}", flush=True)
            with tempfile.TemporaryDirectory(prefix="fetch.", dir=CACHE) as work:
                unpack(download(work), work)
                os.rename(f"{work}/{PACKAGE}", path)
    return path


def compile_one(command):
    p = apt(*command)
    if p.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{p.stdout}")


def newer(output, inputs):
    return os.path.exists(output) and all(os.path.getmtime(output) >= os.path.getmtime(i) for i in inputs)


def edited(path, out, change):
    """The test's source, with (old text, new text) exchanged."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    old, new = change
    if text.count(old) != 1:
        raise RuntimeError(f"{path}: no {old!r}")
    with open(out, "w", encoding="utf-8") as f:
        f.write(text.replace(old, new))
    return out


def build(source, out, names, jobs):
    """Builds the tests (name: change or None) into `out`; what is there already stays."""
    kvm, tools = f"{source}/tools/testing/selftests/kvm", f"{source}/tools"
    cc = os.environ.get("CC", "cc").split()
    flags = FLAGS + [f"-I{tools}/include", f"-I{tools}/arch/x86/include", f"-I{kvm}/include", f"-I{kvm}/include/x86_64",
                     f"-I{tools}/testing/selftests/rseq", f"-I{tools}/testing/selftests"]
    stamp = os.path.join(out, hashlib.sha256("\0".join([source, *cc, *flags]).encode()).hexdigest()[:16])
    os.makedirs(stamp, exist_ok=True)
    objects, work = [], []
    for name, extra in [(f"{n}.c", []) for n in LIBRARY] + [("x86_64/handlers.S", []), ("string_override.c", ["-ffreestanding"])]:
        obj = os.path.join(stamp, "lib-" + name.replace("/", "-") + ".o")
        objects.append(obj)
        if not os.path.exists(obj):
            work.append([*cc, *flags, *extra, "-c", f"{kvm}/lib/{name}", "-o", obj])
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile_one, work))
        link, made = [], {}
        for name, change in sorted(names.items()):
            exe = made[name] = os.path.join(stamp, name.replace("/", "-") + ("-fewer" if change else ""))
            if not newer(exe, objects):
                text = edited(f"{kvm}/{name}.c", exe + ".c", change) if change else f"{kvm}/{name}.c"
                link.append([*cc, *flags, "-no-pie", "-pthread", f"-I{os.path.dirname(f'{kvm}/{name}')}", text, *objects,
                             "-ldl", "-lrt", "-o", exe])
        list(pool.map(compile_one, link))
    return made
