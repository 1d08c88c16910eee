/* Fuzz target: random code in a vCPU, in every mode of the processor, over the public API.
 *
 * The input is a mode, options, a seed for registers and tables, and the code.  Whatever the code does, KVM_RUN comes back with
 * an exit that KVM knows (a timer bounds it), the processor's state can be read and written back, and memory outside the guest's
 * slots is not touched: guard pages turn that into EFAULT, which only a slot whose memory is gone explains.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include "fuzz_code.h"
#include "uvirt.h"

enum mode { REAL, PROT16, PROT32, PAGED32, PAE, V86, COMPAT16, COMPAT32, LONG64, MODES };

enum {
  STEP = 1,      /* single steps */
  CHIPS = 2,     /* interrupt controllers in the library */
  USER = 4,      /* CPL 3 */
  GONE = 8,      /* a slot's memory is not there */
  LOGGED = 16,   /* dirty log */
  ALL_BITS = 32, /* CPUID shows every feature bit */
  CROSSING = 64, /* the code begins at the end of a page */
  WATCH = 128,   /* debug registers */
};

/* The guest's memory map: RAM with everything the processor needs, a read-only page, a page that may be gone, devices. */
#define RAM       0x10000u
#define GDT       0x1000u
#define IDT       0x2000u
#define TSS       0x3000u
#define TABLES    0x4000u
#define STACK     0x9f00u
#define CODE      0xa000u
#define CODE_ROOM 0x1f00u
#define READ_ONLY 0x10000u
#define MAY_GO    0x11000u
#define MAPPED    0x12000u
#define PAGE      0x1000u

enum { HEADER = 10, MAX_EXITS = 64, MAX_STEPS = 256, RUN_US = 3000 };

struct machine {
  int sys, vm, cpu;
  struct kvm_run *run;
  size_t run_size;
  uint8_t *mem;
  uint8_t mode, options;
  uint64_t rng;
};

static int call(int fd, unsigned long request, const void *arg) {
  return uvirt_ioctl(fd, request, (void *)(uintptr_t)arg);
}

static void fail(const struct machine *m, const char *what) {
  struct kvm_sregs s = {0};
  struct kvm_regs r = {0};
  fprintf(stderr, "not so: %s; exit reason %u, errno %d\n", what, m->run ? m->run->exit_reason : 0, errno);
  call(m->cpu, KVM_GET_SREGS, &s);
  call(m->cpu, KVM_GET_REGS, &r);
  fprintf(stderr,
          "rip %llx flags %llx, cs %x base %llx type %u l %u db %u, cr0 %llx cr3 %llx cr4 %llx efer %llx apic base %llx\n", r.rip,
          r.rflags, s.cs.selector, s.cs.base, s.cs.type, s.cs.l, s.cs.db, s.cr0, s.cr3, s.cr4, s.efer, s.apic_base);
  abort();
}

#define fail_unless(m, condition) ((condition) ? (void)0 : fail(m, #condition))
#define MUST(m, fd, request, arg) (call(fd, request, arg) >= 0 ? (void)0 : fail(m, #request))

static uint64_t rnd(struct machine *m) {
  m->rng ^= m->rng >> 12;
  m->rng ^= m->rng << 25;
  m->rng ^= m->rng >> 27;
  return m->rng * 0x2545f4914f6cdd1dull;
}

/* ---- memory ---- */

static void store(struct machine *m, uint32_t at, unsigned size, uint64_t v) {
  memcpy(m->mem + at, &v, size);
}

/* With a guard page on either side. */
static void make_memory(struct machine *m) {
  uint8_t *p = mmap(NULL, MAPPED + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  fail_unless(m, p != MAP_FAILED);
  m->mem = p + PAGE;
  fail_unless(m, !mprotect(m->mem, m->options & GONE ? MAY_GO : MAPPED, PROT_READ | PROT_WRITE));
}

static void add_slot(struct machine *m, unsigned id, uint32_t gpa, uint32_t size, uint32_t flags) {
  struct kvm_userspace_memory_region region = {
      .slot = id, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)m->mem + gpa};
  MUST(m, m->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void add_slots(struct machine *m) {
  add_slot(m, 0, 0, RAM, m->options & LOGGED ? KVM_MEM_LOG_DIRTY_PAGES : 0);
  add_slot(m, 1, READ_ONLY, PAGE, KVM_MEM_READONLY);
  add_slot(m, 2, MAY_GO, PAGE, 0);
}

/* ---- tables ---- */

/* Selector 8 n is descriptor n of this list; the rest of the table repeats it with random types. */
static const uint64_t descriptors[] = {
    0,
    0x00af9b000000ffff, /* 08: code, 64 bits */
    0x00cf93000000ffff, /* 10: data */
    0x00cf9b000000ffff, /* 18: code, 32 bits */
    0x000f9b000000ffff, /* 20: code, 16 bits */
    0x000093000000ffff, /* 28: data, 64 KiB */
    0x00cff3000000ffff, /* 30: data, user */
    0x00affb000000ffff, /* 38: code, 64 bits, user */
    0x00cffb000000ffff, /* 40: code, 32 bits, user */
    0x00008b0030000fff, /* 48: TSS, and its upper half */
    0x0000000000000000,
    0x0000ec000008a010, /* 58: call gate to the code */
    0x0000000000000000,
    0x000fff000000ffff, /* 68: conforming code, 16 bits, user */
    0x0000890030000fff, /* 70: TSS, available */
    0x0000000000000000,
};

static void make_gdt(struct machine *m) {
  enum { LIST = sizeof(descriptors) / sizeof(descriptors[0]) };
  for (unsigned n = 0; n < 4 * LIST; n++) {
    uint64_t random = n < LIST ? 0 : (rnd(m) & 0x00f00f0000000000);
    store(m, GDT + 8 * n, 8, descriptors[n % LIST] ^ random);
  }
}

static bool is_long(const struct machine *m) {
  return m->mode >= COMPAT16;
}

/* Gates lead back into the code; one in eight is broken.  Real mode has vectors at address 0. */
static void make_idt(struct machine *m, uint32_t code, uint32_t len) {
  for (unsigned v = 0; v < 256; v++) {
    uint32_t target = code + (uint32_t)(rnd(m) % len);
    uint64_t selector = is_long(m) ? 0x08 : m->mode == PROT16 ? 0x20 : 0x18;
    uint64_t gate = (target & 0xffff) | selector << 16 | 0xee00ull << 32;
    if (!(rnd(m) % 8)) gate ^= rnd(m) & 0x0000ff0000ff0000;
    store(m, 4 * v, 4, target);
    if (is_long(m)) {
      store(m, IDT + 16 * v, 8, gate);
      store(m, IDT + 16 * v + 8, 8, 0);
    } else {
      store(m, IDT + 8 * v, 8, gate);
    }
  }
}

static void make_tss(struct machine *m) {
  for (unsigned at = 0; at < 0x68; at += 4) store(m, TSS + at, 4, is_long(m) && at % 8 ? 0 : STACK);
  if (!is_long(m)) store(m, TSS + 8, 4, 0x10);
  store(m, TSS + 0x66, 2, 0x68);
}

enum { P = 1, W = 2, U = 4, LARGE = 0x80 };

/* The first 2 MiB are themselves (a few pages with random rights), 2 to 4 MiB are a large page at 0.  Returns CR3. */
static uint32_t make_paging(struct machine *m) {
  unsigned entry = m->mode == PAGED32 || m->mode == V86 ? 4 : 8;
  uint32_t top = TABLES, dir = TABLES + 2 * PAGE, table = TABLES + 3 * PAGE;
  for (unsigned n = 0; n < 512; n++) {
    uint64_t rights = n * PAGE < RAM || rnd(m) % 4 ? P | W | U : rnd(m) & 0x1ff;
    store(m, table + entry * n, entry, n * PAGE | rights);
  }
  store(m, dir, entry, table | P | W | U);
  store(m, dir + entry, entry, LARGE | P | W | U);
  if (entry == 4) return dir;
  uint32_t pdpt = TABLES + PAGE;
  store(m, pdpt, 8, dir | (m->mode == PAE ? P : P | W | U));
  store(m, pdpt + 8, 8, m->mode == PAE ? 0 : LARGE | P | W | U);
  store(m, top, 8, pdpt | P | W | U);
  store(m, top + 8 * 511, 8, top | P | W);
  return m->mode == PAE ? pdpt : top;
}

/* ---- the processor ---- */

static struct kvm_segment segment(unsigned selector, unsigned type, unsigned dpl, bool db, bool l) {
  return (struct kvm_segment){.limit = db || l ? ~0u : 0xffff,
                              .selector = (uint16_t)(selector | dpl),
                              .type = (uint8_t)type,
                              .present = 1,
                              .dpl = (uint8_t)dpl,
                              .s = 1,
                              .db = db,
                              .l = l,
                              .g = db || l};
}

static void set_sregs(struct machine *m) {
  static const struct {
    unsigned cr0, cr4, efer, selector;
    bool db, l;
  } modes[MODES] = {
      [REAL] = {0x10, 0x600, 0, 0, false, false},
      [PROT16] = {0x31, 0x600, 0, 0x20, false, false},
      [PROT32] = {0x31, 0x600, 0, 0x18, true, false},
      [PAGED32] = {0x80010031, 0x690, 0, 0x18, true, false},
      [PAE] = {0x80010031, 0x6a0, 0x800, 0x18, true, false},
      [V86] = {0x80010031, 0x611, 0, 0, false, false},
      [COMPAT16] = {0x80010031, 0x6a0, 0xd01, 0x20, false, false},
      [COMPAT32] = {0x80050031, 0x6a0, 0xd01, 0x18, true, false},
      [LONG64] = {0x80050031, 0x406a0, 0xd01, 0x08, false, true},
  };
  struct kvm_sregs s;
  unsigned mode = m->mode, dpl = m->options & USER && mode != REAL ? 3 : 0;
  bool db = modes[mode].db, l = modes[mode].l;
  MUST(m, m->cpu, KVM_GET_SREGS, &s);
  if (mode == V86) {
    dpl = 3;
    s.ds = segment(0, 3, 3, false, false);
    s.cs = s.ds;
  } else {
    s.cs = segment(modes[mode].selector, 11, dpl, db, l);
    s.ds = segment(mode == REAL ? 0 : dpl ? 0x30 : 0x10, 3, dpl, db || l, false);
  }
  if (mode == V86) s.cs.selector = s.ds.selector = 0;
  s.es = s.fs = s.gs = s.ss = s.ds;
  s.fs.base = s.gs.base = is_long(m) ? MAY_GO - 8 : 0;
  s.tr = (struct kvm_segment){.selector = 0x48, .base = TSS, .limit = 0xfff, .type = 11, .present = 1};
  s.gdt.base = GDT, s.gdt.limit = 4 * sizeof(descriptors) - 1;
  s.idt.base = mode == REAL ? 0 : IDT, s.idt.limit = is_long(m) ? 0xfff : 0x7ff;
  s.cr0 = modes[mode].cr0;
  s.cr4 = modes[mode].cr4;
  s.efer = modes[mode].efer;
  if (s.cr0 & 0x80000000) s.cr3 = make_paging(m);
  MUST(m, m->cpu, KVM_SET_SREGS, &s);
}

/* An address in memory or near its end, a small number, or anything. */
static uint64_t interesting(struct machine *m) {
  uint64_t v = rnd(m);
  switch (v >> 60) {
  case 0:
  case 1:
    return rnd(m);
  case 2:
    return v & 15;
  case 3:
    return 0 - (v & 0xff);
  case 4:
    return MAPPED - (v & 0x3f);
  default:
    return v % MAPPED;
  }
}

static void set_regs(struct machine *m, uint32_t code) {
  struct kvm_regs r;
  __u64 *all = &r.rax;
  for (unsigned n = 0; n < 16; n++) all[n] = interesting(m);
  r.rip = code;
  r.rsp = STACK;
  r.rflags = 2 | (rnd(m) & 0x47ed5) | (m->mode == V86 ? 0x23000 : 0);
  if (m->options & STEP) r.rflags &= ~0x100ull;
  MUST(m, m->cpu, KVM_SET_REGS, &r);
}

static void set_debug(struct machine *m) {
  struct kvm_guest_debug g = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
  if (m->options & STEP) MUST(m, m->cpu, KVM_SET_GUEST_DEBUG, &g);
  if (!(m->options & WATCH)) return;
  struct kvm_debugregs d = {.dr6 = 0xffff0ff0, .dr7 = 0x400 | (rnd(m) & 0xffff03ff)};
  for (unsigned n = 0; n < 4; n++) d.db[n] = interesting(m);
  MUST(m, m->cpu, KVM_SET_DEBUGREGS, &d);
}

static void set_cpuid(struct machine *m) {
  static struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
  } table;
  table.head.nent = 256;
  MUST(m, m->sys, KVM_GET_SUPPORTED_CPUID, &table);
  for (unsigned n = 0; m->options & ALL_BITS && n < table.head.nent; n++) {
    struct kvm_cpuid_entry2 *e = &table.entries[n];
    if (e->function == 1 || e->function == 7 || e->function == 0x80000001) e->ebx = e->ecx = e->edx = ~0u;
  }
  MUST(m, m->cpu, KVM_SET_CPUID2, &table);
}

/* ---- life ---- */

static volatile struct kvm_run *running;

/* Bounds a run.  The interval is for a signal that comes before KVM_RUN. */
static void on_alarm(int sig) {
  if (running) running->immediate_exit = 1;
}

static void set_timer(unsigned us) {
  struct itimerval t = {.it_value.tv_usec = us, .it_interval.tv_usec = us ? 50000 : 0};
  setitimer(ITIMER_REAL, &t, NULL);
}

static void start(struct machine *m, const uint8_t *code, uint32_t len) {
  struct sigaction alarm = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &alarm, NULL);
  uint32_t at = m->options & CROSSING ? CODE + PAGE - 8 : CODE;
  m->sys = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  fail_unless(m, m->sys >= 0);
  m->vm = call(m->sys, KVM_CREATE_VM, NULL);
  fail_unless(m, m->vm >= 0);
  make_memory(m);
  add_slots(m);
  if (m->options & CHIPS) MUST(m, m->vm, KVM_CREATE_IRQCHIP, NULL);
  m->cpu = call(m->vm, KVM_CREATE_VCPU, NULL);
  fail_unless(m, m->cpu >= 0);
  m->run_size = (size_t)call(m->sys, KVM_GET_VCPU_MMAP_SIZE, NULL);
  m->run = uvirt_mmap(NULL, m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->cpu, 0);
  fail_unless(m, m->run != MAP_FAILED);
  set_cpuid(m);
  make_gdt(m);
  make_idt(m, at, len);
  make_tss(m);
  set_sregs(m);
  set_regs(m, at);
  set_debug(m);
  memcpy(m->mem + at, code, len);
}

static void end(struct machine *m) {
  munmap(m->run, m->run_size);
  uvirt_close(m->cpu);
  uvirt_close(m->vm);
  uvirt_close(m->sys);
  munmap(m->mem - PAGE, MAPPED + 2 * PAGE);
}

/* ---- running ---- */

static void answer(struct machine *m) {
  struct kvm_run *run = m->run;
  uint64_t v = rnd(m);
  if (run->exit_reason == KVM_EXIT_MMIO) memcpy(run->mmio.data, &v, sizeof(v));
  if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_IN) memcpy((uint8_t *)run + run->io.data_offset, &v, 4);
}

/* One KVM_RUN; whether to go on. */
static bool run_once(struct machine *m) {
  if (call(m->cpu, KVM_RUN, NULL) < 0) {
    fail_unless(m, errno == EINTR || (errno == EFAULT && m->options & GONE) || (errno == EAGAIN && m->options & CHIPS));
    return false;
  }
  switch (m->run->exit_reason) {
  case KVM_EXIT_IO:
  case KVM_EXIT_MMIO:
    answer(m);
    return true;
  case KVM_EXIT_DEBUG:
    return true;
  case KVM_EXIT_HLT:
    fail_unless(m, !(m->options & CHIPS));
    return false;
  case KVM_EXIT_SHUTDOWN:
  case KVM_EXIT_INTERNAL_ERROR:
    return false;
  case KVM_EXIT_HYPERCALL:
  case KVM_EXIT_SET_TPR:
    return true;
  default:
    fail(m, "a known exit reason");
    return false;
  }
}

/* What can be read can be written back: otherwise the guest could not be moved. */
static void check_state(struct machine *m) {
  struct kvm_regs regs;
  struct kvm_sregs sregs;
  struct kvm_vcpu_events events;
  struct kvm_debugregs debug;
  struct kvm_xcrs xcrs;
  struct kvm_mp_state mp;
  struct kvm_xsave xsave;
  MUST(m, m->cpu, KVM_GET_REGS, &regs);
  MUST(m, m->cpu, KVM_GET_SREGS, &sregs);
  MUST(m, m->cpu, KVM_GET_VCPU_EVENTS, &events);
  MUST(m, m->cpu, KVM_GET_DEBUGREGS, &debug);
  MUST(m, m->cpu, KVM_GET_XCRS, &xcrs);
  MUST(m, m->cpu, KVM_GET_MP_STATE, &mp);
  MUST(m, m->cpu, KVM_SET_XCRS, &xcrs);
  if (!(sregs.efer & 0x400)) sregs.cs.l = 0; /* a bit without meaning there, which KVM reads back but refuses to set */
  MUST(m, m->cpu, KVM_SET_SREGS, &sregs);
  MUST(m, m->cpu, KVM_SET_REGS, &regs);
  MUST(m, m->cpu, KVM_SET_DEBUGREGS, &debug);
  MUST(m, m->cpu, KVM_SET_MP_STATE, &mp);
  MUST(m, m->cpu, KVM_SET_VCPU_EVENTS, &events);
  if (call(m->cpu, KVM_GET_XSAVE, &xsave) >= 0) MUST(m, m->cpu, KVM_SET_XSAVE, &xsave);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size <= HEADER) return 0;
  struct machine m = {.mode = data[0] % MODES, .options = data[1]};
  memcpy(&m.rng, data + 2, 8);
  m.rng |= 1;
  uint32_t len = size - HEADER < CODE_ROOM - PAGE ? (uint32_t)(size - HEADER) : CODE_ROOM - PAGE;
  start(&m, data + HEADER, len);
  running = m.run;
  set_timer(RUN_US);
  unsigned left = m.options & STEP ? MAX_STEPS : MAX_EXITS;
  while (left-- && run_once(&m)) {
  }
  set_timer(0);
  running = NULL;
  check_state(&m);
  end(&m);
  return 0;
}

/* Each opcode map in each mode; options and registers differ from one to the next. */
const uint8_t *fuzz_seed_input(unsigned i, size_t *size) {
  static uint8_t input[256];
  unsigned maps = fuzz_opcode_maps();
  if (i >= MODES * maps) return NULL;
  uint64_t seed = i * 0x9e3779b97f4a7c15ull;
  input[0] = (uint8_t)(i / maps);
  input[1] = (uint8_t)(seed >> 56);
  memcpy(input + 2, &seed, 8);
  *size = HEADER + fuzz_opcodes(i % maps, i, input + HEADER, sizeof(input) - HEADER);
  return input;
}
