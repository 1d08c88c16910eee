/* The checks of `uvirt doctor`: one function and one row each. */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/doctor.h"
#include "vmm/kvm.h"

#ifndef HWCAP2_FSGSBASE
#define HWCAP2_FSGSBASE 2 /* asm/hwcap2.h */
#endif

__attribute__((format(printf, 2, 3))) static void say(struct finding *f, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(f->value, sizeof(f->value), fmt, ap);
  va_end(ap);
}

static void lack(struct finding *f, const char *cost) {
  f->state = FINDING_LACK;
  f->cost = cost;
}

static void fail(struct finding *f, const char *cost) {
  f->state = FINDING_FAIL;
  f->cost = cost;
}

/* The first line of a file without its end; empty: there is none. */
static void read_line(const char *path, char *line, size_t size) {
  FILE *file = fopen(path, "r");
  line[0] = 0;
  if (!file) return;
  if (!fgets(line, (int)size, file)) line[0] = 0;
  line[strcspn(line, "\n")] = 0;
  fclose(file);
}

/* ---- the engine ---- */

/* Boots the least guest there is: a HLT where the processor starts. */
static const char *run_guest(const struct vmm_accel *a) {
  int kvm = a->open(), vm = kvm < 0 ? -1 : a->ioctl(kvm, KVM_CREATE_VM, NULL);
  int vcpu = vm < 0 ? -1 : a->ioctl(vm, KVM_CREATE_VCPU, NULL);
  uint8_t *ram = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_run *run = vcpu < 0 ? NULL : a->mmap(4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  const char *wrong = "no virtual machine can be made";
  if (run && ram != MAP_FAILED) {
    struct kvm_userspace_memory_region region = {
        .guest_phys_addr = 0xffff0000, .memory_size = 65536, .userspace_addr = (uintptr_t)ram};
    ram[0xfff0] = 0xf4;
    bool halted = a->ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0 && a->ioctl(vcpu, KVM_RUN, NULL) == 0 &&
                  run->exit_reason == KVM_EXIT_HLT;
    wrong = halted ? NULL : "a guest does not run";
    munmap(run, 4096);
  }
  if (ram != MAP_FAILED) munmap(ram, 65536);
  if (vcpu >= 0) a->close(vcpu);
  if (vm >= 0) a->close(vm);
  if (kvm >= 0) a->close(kvm);
  return wrong;
}

static void check_engine(struct finding *f) {
  const char *wrong = run_guest(&vmm_accel_soft);
  say(f, "%s", wrong ? wrong : "a guest ran and halted");
  if (wrong) fail(f, "neither `uvirt run` nor `uvirt exec` works; UVIRT_TRACE=1 with a debug build says where");
}

static void check_memfd(struct finding *f) {
  int fd = memfd_create("doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  say(f, fd < 0 ? "refused: %s" : "works", strerror(errno));
  if (fd < 0) fail(f, "descriptors of virtual machines are memfds");
  if (fd >= 0) close(fd);
}

/* As the engine maps its code: one file, writable here and executable there. */
static void check_executable_memory(struct finding *f) {
  int fd = memfd_create("doctor", MFD_CLOEXEC);
  bool sized = fd >= 0 && ftruncate(fd, 4096) == 0;
  void *p = sized ? mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) : MAP_FAILED;
  say(f, p == MAP_FAILED ? "refused: %s" : "works", strerror(errno));
  if (p == MAP_FAILED) fail(f, "x87, MMX, SSE and AVX instructions of guests run in memory that must be executable");
  if (p != MAP_FAILED) munmap(p, 4096);
  if (fd >= 0) close(fd);
}

/* CPUID.(7,0).EBX[6]: the x87 data pointer changes with exceptions only (SDM Vol. 1, 8.1.8); else the host's would not be the guest's. */
static bool x87_is_kept(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 6));
}

/* What src/x86/translate asks of the host; executable memory is a check of its own. */
static void check_translator(struct finding *f) {
  const char *engine = getenv("UVIRT_ENGINE");
  if (engine && strcmp(engine, "interpreter") == 0) {
    say(f, "off: UVIRT_ENGINE=interpreter");
    lack(f, "guests run in the interpreter alone, many times slower");
  } else if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)) {
    say(f, "off: no FSGSBASE");
    lack(f, "guests run in the interpreter alone, many times slower; it takes a processor with FSGSBASE and Linux 5.9");
  } else if (!x87_is_kept()) {
    say(f, "on, without x87");
    lack(f, "x87 instructions of guests run in the interpreter: the processor shows another data pointer, or has no XSAVE");
  } else {
    say(f, "on, with x87");
  }
}

static void check_preload(struct finding *f) {
  char path[4096];
  bool found = exec_find_preload(path);
  say(f, "%s", found ? path : "not found");
  if (!found) lack(f, "`uvirt exec` does not work");
}

/* ---- the processor ---- */

static void check_model(struct finding *f) {
  unsigned r[12] = {0};
  if (__get_cpuid_max(0x80000000, NULL) >= 0x80000004)
    for (unsigned i = 0; i < 3; i++) __cpuid(0x80000002 + i, r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]);
  char name[sizeof(r) + 1] = "";
  memcpy(name, r, sizeof(r));
  say(f, "%s", name[0] ? name + strspn(name, " ") : "unknown");
}

/* Appends name to the list in f where it is present. */
static bool list(struct finding *f, bool present, const char *name) {
  size_t n = strlen(f->value);
  if (present) snprintf(f->value + n, sizeof(f->value) - n, "%s%s", n ? " " : "", name);
  return present;
}
#define LIST(f, feature, name) list(f, __builtin_cpu_supports(feature), name)

static void check_vectors(struct finding *f) {
  LIST(f, "sse4.2", "SSE4.2");
  LIST(f, "aes", "AES");
  LIST(f, "avx", "AVX");
  bool avx2 = LIST(f, "avx2", "AVX2") && LIST(f, "fma", "FMA");
  LIST(f, "avx512f", "AVX-512");
  if (!avx2) lack(f, "guests have no AVX2 and FMA either, so nothing built for x86-64-v3 runs in them");
}

static void check_bits(struct finding *f) {
  LIST(f, "popcnt", "POPCNT");
  bool first = LIST(f, "bmi", "BMI1"), second = LIST(f, "bmi2", "BMI2");
  if (!first || !second) lack(f, "guests have no BMI1 and BMI2 either, so nothing built for x86-64-v3 runs in them");
}

static void check_xsave(struct finding *f) {
  unsigned a, b, c = 0, d;
  __get_cpuid(1, &a, &b, &c, &d);
  say(f, "%s", c & bit_OSXSAVE ? "on" : "off");
  if (!(c & bit_OSXSAVE)) lack(f, "guests have neither XSAVE nor AVX");
}

/* CPUID.80000007H:EDX[8] (SDM Vol. 3, 18.17.1). */
static void check_tsc(struct finding *f) {
  unsigned a, b, c, d = 0;
  __get_cpuid(0x80000007, &a, &b, &c, &d);
  bool invariant = d & (1u << 8);
  say(f, "%s", invariant ? "invariant" : "not invariant");
  if (!invariant) lack(f, "the clocks of guests run unevenly when the host changes its frequency");
}

static void check_processors(struct finding *f) {
  cpu_set_t set;
  int n = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
  say(f, "%d", n);
  if (n < 2) lack(f, "the vCPUs of a guest take turns, and devices wait for them");
}

/* ---- memory and limits ---- */

static void check_memory(struct finding *f) {
  long pages = sysconf(_SC_AVPHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  unsigned long long mib = (unsigned long long)pages * (unsigned long long)size >> 20;
  say(f, "%llu MiB free", mib);
  if (mib < 768) lack(f, "a guest of the usual 512 MiB may not fit");
}

static void check_huge_pages(struct finding *f) {
  char line[128];
  read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line));
  bool never = !line[0] || strstr(line, "[never]");
  say(f, "%s", line[0] ? line : "not available");
  if (never) lack(f, "access to the memory of large guests costs more");
}

static void check_userfaultfd(struct finding *f) {
  long fd = syscall(SYS_userfaultfd, O_CLOEXEC);
  if (fd >= 0) {
    say(f, "for faults of programs and of the kernel");
  } else if ((fd = syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */)) >= 0) {
    say(f, "for faults of programs only");
    lack(f,
         "a client that fills guest memory on demand cannot let the kernel write to missing pages (vm.unprivileged_userfaultfd)");
  } else {
    say(f, "not available: %s", strerror(errno));
    lack(f, "clients cannot fill guest memory on demand, as migration after the switch does");
  }
  if (fd >= 0) close((int)fd);
}

static void say_limit(struct finding *f, int resource, rlim_t least, const char *cost) {
  struct rlimit l = {0};
  getrlimit(resource, &l);
  if (l.rlim_cur == RLIM_INFINITY)
    say(f, "unlimited");
  else
    say(f, "%llu", (unsigned long long)l.rlim_cur);
  if (l.rlim_cur < least) lack(f, cost);
}

static void check_descriptors(struct finding *f) {
  say_limit(f, RLIMIT_NOFILE, 1024, "guests of many vCPUs and devices run out of descriptors: two for each (ulimit -n)");
}

static void check_locked_memory(struct finding *f) {
  say_limit(f, RLIMIT_MEMLOCK, 8u << 20, "clients that lock guest memory into RAM, or use io_uring, are refused (ulimit -l)");
}

/* ---- the machine's own virtualization: no part of uvirt ---- */

static void check_hardware(struct finding *f) {
  const char *why;
  const struct vmm_accel *a = vmm_accel_auto(&why);
  const char *node = access("/dev/kvm", F_OK)          ? "there is no /dev/kvm"
                     : access("/dev/kvm", R_OK | W_OK) ? "/dev/kvm is not yours to open"
                                                       : "/dev/kvm is there";
  say(f, "%s; %s%s", node, why, a == &vmm_accel_host ? "; `uvirt run` uses it" : "");
}

/* ---- what guests are made with ---- */

static bool in_path(const char *name) {
  char path[4096];
  const char *dirs = getenv("PATH");
  char *copy = strdup(dirs ? dirs : ""), *save = NULL;
  bool found = false;
  for (char *d = copy ? strtok_r(copy, ":", &save) : NULL; d && !found; d = strtok_r(NULL, ":", &save)) {
    snprintf(path, sizeof(path), "%s/%s", d, name);
    found = access(path, X_OK) == 0;
  }
  free(copy);
  return found || (snprintf(path, sizeof(path), "/usr/sbin/%s", name) > 0 && access(path, X_OK) == 0);
}

static void check_guest_tools(struct finding *f) {
  static const char *const tools[] = {"apt-get", "dpkg-deb", "cpio", "depmod", "busybox"};
  char missing[sizeof(f->value)] = "";
  for (size_t i = 0; i < sizeof(tools) / sizeof(tools[0]); i++) {
    if (in_path(tools[i])) continue;
    size_t n = strlen(missing);
    snprintf(missing + n, sizeof(missing) - n, " %s", tools[i]);
  }
  say(f, missing[0] ? "missing:%s" : "there%s", missing);
  if (missing[0]) lack(f, "script/guest cannot make a guest to try (script/setup installs them)");
}

static void check_qemu(struct finding *f) {
  bool there = in_path("qemu-system-x86_64");
  say(f, "%s", there ? "there" : "not installed");
  if (!there)
    lack(f, "script/bench has nothing to compare with, and there is no QEMU to run under `uvirt exec` (qemu-system-x86)");
}

const struct check doctor_checks[] = {
    {"engine", check_engine},
    {"descriptors from memory", check_memfd},
    {"executable memory", check_executable_memory},
    {"translator", check_translator},
    {"preload library", check_preload},
    {"processor", check_model},
    {"vector instructions", check_vectors},
    {"bit instructions", check_bits},
    {"XSAVE", check_xsave},
    {"time stamp counter", check_tsc},
    {"processors", check_processors},
    {"memory", check_memory},
    {"transparent huge pages", check_huge_pages},
    {"userfaultfd", check_userfaultfd},
    {"open descriptors", check_descriptors},
    {"locked memory", check_locked_memory},
    {"hardware virtualization", check_hardware},
    {"tools for guests", check_guest_tools},
    {"QEMU", check_qemu},
};
const unsigned doctor_check_count = sizeof(doctor_checks) / sizeof(doctor_checks[0]);
