/* The host side of the bare-metal guest programs: makes guests, sets their starting state, runs them to their reports. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "harness.h"
#include "uvirt.h"

static bool host_kvm;
static unsigned failures;
static const char *current;

/* ---- the KVM in use ---- */

static int kvm_open(void) {
  return host_kvm ? open("/dev/kvm", O_RDWR | O_CLOEXEC) : uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

int guest_ioctl(int fd, unsigned long request, void *arg) {
  return host_kvm ? ioctl(fd, request, arg) : uvirt_ioctl(fd, request, arg);
}

static void *kvm_mmap(size_t size, int fd, u64 offset) {
  int prot = PROT_READ | PROT_WRITE;
  return host_kvm ? mmap(NULL, size, prot, MAP_SHARED, fd, (off_t)offset)
                  : uvirt_mmap(NULL, size, prot, MAP_SHARED, fd, (off_t)offset);
}
static void kvm_close(int fd) {
  host_kvm ? close(fd) : uvirt_close(fd);
}

static int must(int r, const char *what) {
  if (r >= 0) return r;
  fprintf(stderr, "%s: %s: %s\n", current, what, strerror(errno));
  exit(1);
}
#define MUST(fd, request, arg) must(guest_ioctl(fd, request, (void *)(arg)), #request)

/* ---- statistics ---- */

static void read_stats(int fd, void *to, size_t n, u64 at) {
  must(pread(fd, to, n, (off_t)at) == (ssize_t)n ? 0 : -1, "statistics");
}

/* The descriptor of the statistics stays open; the place of the value in it. */
static int find_stat(int fd, const char *name, u64 *at) {
  struct {
    struct kvm_stats_desc desc;
    char name[48];
  } d;
  struct kvm_stats_header h;
  int stats = MUST(fd, KVM_GET_STATS_FD, 0);
  read_stats(stats, &h, sizeof(h), 0);
  for (u32 n = 0; n < h.num_desc; n++) {
    read_stats(stats, &d, sizeof(d), h.desc_offset + n * sizeof(d));
    *at = h.data_offset + d.desc.offset;
    if (!strncmp(d.name, name, sizeof(d.name))) return stats;
  }
  errno = ENOENT;
  return must(-1, name);
}

u64 guest_stat(int fd, const char *name) {
  u64 at, v;
  int stats = find_stat(fd, name, &at);
  read_stats(stats, &v, sizeof(v), at);
  kvm_close(stats);
  return v;
}

void guest_watch_halts(struct guest *g) {
  if (!g->halts) g->halts = find_stat(g->vcpu, "blocking", &g->halts_at);
}

void guest_wait_halted(struct guest *g) {
  u64 blocking = 0;
  for (unsigned n = 0; !blocking && n < 300000; n++) {
    usleep(100);
    read_stats(g->halts, &blocking, sizeof(blocking), g->halts_at);
  }
  CHECK(blocking);
}

/* ---- life ---- */

static struct kvm_cpuid2 *new_cpuid(void) {
  struct kvm_cpuid2 *id = calloc(1, sizeof(*id) + 256 * sizeof(id->entries[0]));
  id->nent = 256;
  return id;
}

static u32 *cpuid_reg(struct kvm_cpuid2 *id, u32 leaf, unsigned reg) {
  for (unsigned n = 0; n < id->nent; n++) {
    struct kvm_cpuid_entry2 *e = &id->entries[n];
    u32 *const regs[] = {&e->eax, &e->ebx, &e->ecx, &e->edx};
    if (e->function == leaf && !e->index) return regs[reg];
  }
  return NULL;
}

/* Protection keys where only the engine has them: PKRU lies behind the components of AVX-512. */
static void add_keys(struct guest *g, struct kvm_cpuid2 *id) {
  struct kvm_cpuid2 *emulated = new_cpuid();
  MUST(g->sys, KVM_GET_EMULATED_CPUID, emulated);
  const u32 *keys = cpuid_reg(emulated, 7, 2);
  if (keys && *keys & 8) {
    *cpuid_reg(id, 7, 2) |= 8;
    *cpuid_reg(id, 0xd, 0) |= 0x200;
    *cpuid_reg(id, 0xd, 2) = 2688 + 8;
    id->entries[id->nent++] = (struct kvm_cpuid_entry2){.function = 0xd, .index = 9, .flags = 1, .eax = 8, .ebx = 2688};
  }
  free(emulated);
}

/* The processor shows the guest everything it has. */
static void set_cpuid(struct guest *g) {
  struct kvm_cpuid2 *id = new_cpuid();
  MUST(g->sys, KVM_GET_SUPPORTED_CPUID, id);
  add_keys(g, id);
  for (unsigned n = 0; g->chips && n < id->nent; n++)
    if (id->entries[n].function == 1) id->entries[n].ecx |= 1u << 24; /* the TSC deadline is a capability of the APIC */
  MUST(g->vcpu, KVM_SET_CPUID2, id);
  free(id);
}

void guest_cpuid(struct guest *g, u32 leaf, unsigned reg, u32 clear, u32 set) {
  struct kvm_cpuid2 *id = new_cpuid();
  MUST(g->vcpu, KVM_GET_CPUID2, id);
  u32 *v = cpuid_reg(id, leaf, reg);
  must(v ? 0 : -1, "CPUID leaf");
  *v = (*v & ~clear) | set;
  MUST(g->vcpu, KVM_SET_CPUID2, id);
  free(id);
}

static bool table_shows(int fd, unsigned long request, u32 leaf, unsigned reg, unsigned bit) {
  struct kvm_cpuid2 *id = new_cpuid();
  MUST(fd, request, id);
  u32 *v = cpuid_reg(id, leaf, reg);
  bool has = v && *v >> bit & 1;
  free(id);
  return has;
}
bool guest_supports(struct guest *g, u32 leaf, unsigned reg, unsigned bit) {
  return table_shows(g->sys, KVM_GET_SUPPORTED_CPUID, leaf, reg, bit);
}
bool guest_shows(struct guest *g, u32 leaf, unsigned reg, unsigned bit) {
  return table_shows(g->vcpu, KVM_GET_CPUID2, leaf, reg, bit);
}

void guest_add_slot(struct guest *g, unsigned space, u64 gpa, void *host, size_t size) {
  if (g->slots < GUEST_SLOTS) g->slot[g->slots] = (struct guest_slot){space, gpa, host, size};
  struct kvm_userspace_memory_region region = {
      .slot = space << 16 | g->slots++, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (u64)(uintptr_t)host};
  MUST(g->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void cpu_new(struct guest *g) {
  g->vcpu = MUST(g->vm, KVM_CREATE_VCPU, (uintptr_t)g->id);
  g->run_size = (size_t)MUST(g->sys, KVM_GET_VCPU_MMAP_SIZE, 0);
  g->run = kvm_mmap(g->run_size, g->vcpu, 0);
  set_cpuid(g);
}

void *guest_map_vcpu(struct guest *g, u64 offset, size_t size) {
  void *p = kvm_mmap(size, g->vcpu, offset);
  must(p == MAP_FAILED ? -1 : 0, "mmap");
  return p;
}

static void cpu_free(struct guest *g) {
  munmap(g->run, g->run_size);
  if (g->halts) kvm_close(g->halts);
  kvm_close(g->vcpu);
}

enum chips { NO_CHIPS, ALL_CHIPS, SPLIT_CHIPS };

static void make_chips(struct guest *g, enum chips chips) {
  struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
  struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
  if (chips == SPLIT_CHIPS) MUST(g->vm, KVM_ENABLE_CAP, &split);
  if (chips != ALL_CHIPS) return;
  MUST(g->vm, KVM_CREATE_IRQCHIP, 0);
  MUST(g->vm, KVM_CREATE_PIT2, &pit);
}

int guest_enable(struct guest *g, u32 cap, u64 arg) {
  struct kvm_enable_cap enable = {.cap = cap, .args = {arg}};
  return guest_ioctl(g->vm, KVM_ENABLE_CAP, &enable);
}

static struct guest *new_guest(enum chips chips, u32 cap, u64 arg) {
  struct guest *g = calloc(1, sizeof(*g));
  g->chips = chips != NO_CHIPS;
  g->sys = must(kvm_open(), "/dev/kvm");
  g->vm = MUST(g->sys, KVM_CREATE_VM, 0);
  if (host_kvm) MUST(g->vm, KVM_SET_TSS_ADDR, 0xfffbd000ul);
  g->mem = mmap(NULL, GUEST_MEM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  guest_add_slot(g, 0, 0, g->mem, GUEST_MEM);
  make_chips(g, chips);
  if (cap) must(guest_enable(g, cap, arg), "KVM_ENABLE_CAP");
  cpu_new(g);
  return g;
}

struct guest *guest_new(void) {
  return new_guest(NO_CHIPS, 0, 0);
}
struct guest *guest_new_chips(void) {
  return new_guest(ALL_CHIPS, 0, 0);
}
struct guest *guest_new_split(void) {
  return new_guest(SPLIT_CHIPS, 0, 0);
}
struct guest *guest_new_cap(u32 cap, u64 arg) {
  return new_guest(NO_CHIPS, cap, arg);
}

struct guest *guest_add_cpu(struct guest *g, unsigned id) {
  struct guest *other = calloc(1, sizeof(*other));
  *other = *g;
  other->id = id;
  cpu_new(other);
  return other;
}

void guest_free_cpu(struct guest *g) {
  cpu_free(g);
  free(g);
}

void guest_free(struct guest *g) {
  cpu_free(g);
  kvm_close(g->vm);
  kvm_close(g->sys);
  munmap(g->mem, GUEST_MEM);
  free(g);
}

/* ---- memory ---- */

void guest_load(struct guest *g, u64 gpa, const void *data, size_t size) {
  memcpy(g->mem + gpa, data, size);
}

u64 guest_read(struct guest *g, u64 gpa, unsigned size) {
  u64 v = 0;
  memcpy(&v, g->mem + gpa, size);
  return v;
}
void guest_write(struct guest *g, u64 gpa, unsigned size, u64 v) {
  memcpy(g->mem + gpa, &v, size);
}

/* ---- descriptor tables ---- */

void guest_gdt_raw(struct guest *g, unsigned sel, u64 lo) {
  guest_write(g, GUEST_GDT + (sel & ~7u), 8, lo);
}
u64 guest_gdt_read(struct guest *g, unsigned sel) {
  return guest_read(g, GUEST_GDT + (sel & ~7u), 8);
}

void guest_gdt(struct guest *g, unsigned sel, u32 base, u32 limit, unsigned access, unsigned flags) {
  u64 l = flags & D_G ? limit >> 12 : limit;
  guest_gdt_raw(g, sel,
                (l & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (l >> 16 & 15) << 48 | (u64)flags << 52 |
                    (u64)(base >> 24) << 56);
}

void guest_gate32(struct guest *g, unsigned sel, unsigned type, unsigned dpl, u16 target, u32 off, unsigned params) {
  guest_gdt_raw(g, sel,
                (off & 0xffff) | (u64)target << 16 | (u64)params << 32 | (u64)(0x80 | dpl << 5 | type) << 40 |
                    (u64)(off >> 16) << 48);
}

void guest_idt32(struct guest *g, unsigned vector, unsigned type, unsigned dpl, u16 target, u32 off) {
  guest_write(g, GUEST_IDT + vector * 8, 8,
              (off & 0xffff) | (u64)target << 16 | (u64)(0x80 | dpl << 5 | type) << 40 | (u64)(off >> 16) << 48);
}

void guest_idt64(struct guest *g, unsigned vector, unsigned type, unsigned dpl, u16 target, u64 off, unsigned ist) {
  guest_write(g, GUEST_IDT + vector * 16, 8,
              (off & 0xffff) | (u64)target << 16 | (u64)ist << 32 | (u64)(0x80 | dpl << 5 | type) << 40 |
                  (off >> 16 & 0xffff) << 48);
  guest_write(g, GUEST_IDT + vector * 16 + 8, 8, off >> 32);
}

static void common_gdt(struct guest *g, bool is_long) {
  memset(g->mem + GUEST_GDT, 0, GDT_ENTRIES * 8);
  guest_gdt(g, SEL_CODE64, 0, ~0u, D_CODE, D_G | D_64);
  guest_gdt(g, SEL_DATA, 0, ~0u, D_DATA, D_G | D_32);
  guest_gdt(g, SEL_CODE32, 0, ~0u, D_CODE, D_G | D_32);
  guest_gdt(g, SEL_CODE16, 0, 0xffff, D_CODE, 0);
  guest_gdt(g, SEL_DATA16, 0, 0xffff, D_DATA, 0);
  guest_gdt(g, SEL_DATA3, 0, ~0u, D_DATA | D_DPL(3), D_G | D_32);
  guest_gdt(g, SEL_CODE64U, 0, ~0u, D_CODE | D_DPL(3), D_G | D_64);
  guest_gdt(g, SEL_CODE32U, 0, ~0u, D_CODE | D_DPL(3), D_G | D_32);
  guest_gdt(g, SEL_TSS, GUEST_TSS, TSS_LIMIT, 0x89, 0);
  guest_gdt(g, SEL_LDT, GUEST_LDT, 0xff, 0x82, 0);
  if (!is_long) guest_gdt(g, SEL_TSS2, GUEST_TSS2, 0x67, 0x89, 0);
  guest_gdt(g, SEL_CONF, 0, ~0u, D_CODE | 4, D_G | (is_long ? D_64 : D_32));
  guest_gdt(g, SEL_CODE1, 0, ~0u, D_CODE | D_DPL(1), D_G | (is_long ? D_64 : D_32));
  guest_gdt(g, SEL_DATA1, 0, ~0u, D_DATA | D_DPL(1), D_G | D_32);
}

/* OUT to STUB_PORT, drop the error code, return: the host sees the vector in RIP and the frame on the stack. */
static void trap_stubs(struct guest *g, bool is_long) {
  static const u8 drop64[] = {0x48, 0x83, 0xc4, 8}, drop32[] = {0x83, 0xc4, 4};
  for (unsigned v = 0; v < 256; v++) {
    bool error = v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21;
    u8 *at = g->mem + GUEST_STUBS + v * 16;
    *at++ = 0xe6;
    *at++ = STUB_PORT;
    if (error && is_long) memcpy(at, drop64, sizeof(drop64)), at += sizeof(drop64);
    if (error && !is_long) memcpy(at, drop32, sizeof(drop32)), at += sizeof(drop32);
    if (is_long) *at++ = 0x48;
    *at = 0xcf;
    u64 stub = GUEST_STUBS + v * 16;
    if (is_long)
      guest_idt64(g, v, 0xe, 0, SEL_CODE64, stub, 0);
    else
      guest_idt32(g, v, 0xe, 0, SEL_CODE32, (u32)stub);
  }
}

/* ---- starting states ---- */

static struct kvm_segment seg_code(unsigned sel, bool is_long) {
  return (struct kvm_segment){
      .selector = (u16)sel, .limit = ~0u, .type = 11, .s = 1, .present = 1, .g = 1, .l = is_long, .db = !is_long};
}
static struct kvm_segment seg_data(unsigned sel) {
  return (struct kvm_segment){.selector = (u16)sel, .limit = ~0u, .type = 3, .s = 1, .present = 1, .g = 1, .db = 1};
}

static void set_start(struct guest *g, u64 rip, u64 rsp) {
  struct kvm_regs r = {.rip = rip, .rsp = rsp, .rflags = 2};
  guest_set_regs(g, &r);
}

void guest_real(struct guest *g, u16 cs, u16 ip) {
  struct kvm_sregs s = guest_sregs(g);
  s.cs.selector = cs;
  s.cs.base = (u64)cs << 4;
  guest_set_sregs(g, &s);
  set_start(g, ip, 0x7000);
}

static void fill_tss(struct guest *g, bool is_long) {
  memset(g->mem + GUEST_TSS, 0, TSS_LIMIT);
  guest_write(g, GUEST_TSS + TSS_LIMIT, 1, 0xff);
  guest_write(g, GUEST_TSS + 0x66, 2, 0x88); /* room for the interrupt redirection map */
  if (is_long) {
    guest_write(g, GUEST_TSS + 4, 8, GUEST_RSP0);
    guest_write(g, GUEST_TSS + 12, 8, GUEST_STACK1);
    guest_write(g, GUEST_TSS + 0x24, 8, GUEST_IST1);
    return;
  }
  guest_write(g, GUEST_TSS + 4, 4, GUEST_RSP0);
  guest_write(g, GUEST_TSS + 8, 4, SEL_DATA);
  guest_write(g, GUEST_TSS + 12, 4, GUEST_STACK1);
  guest_write(g, GUEST_TSS + 16, 4, SEL_DATA1);
}

void guest_tables(struct guest *g, bool is_long) {
  common_gdt(g, is_long);
  trap_stubs(g, is_long);
  fill_tss(g, is_long);
}

static void set_tables(struct guest *g, struct kvm_sregs *s, bool is_long) {
  guest_tables(g, is_long);
  s->gdt.base = GUEST_GDT;
  s->gdt.limit = GDT_ENTRIES * 8 - 1;
  s->idt.base = GUEST_IDT;
  s->idt.limit = is_long ? 0xfff : 0x7ff;
  s->cs = seg_code(is_long ? SEL_CODE64 : SEL_CODE32, is_long);
  s->ds = s->es = s->fs = s->gs = s->ss = seg_data(SEL_DATA);
  s->tr = (struct kvm_segment){.selector = SEL_TSS, .base = GUEST_TSS, .limit = TSS_LIMIT, .type = 11, .present = 1};
  s->ldt = (struct kvm_segment){.unusable = 1, .type = 2};
  guest_write(g, GUEST_GDT + SEL_TSS + 5, 1, 0x8b);
}

void guest_protected(struct guest *g, u32 eip) {
  struct kvm_sregs s = guest_sregs(g);
  set_tables(g, &s, false);
  s.cr0 = (s.cr0 & ~0x60000000ull) | 1 | 0x30; /* PE, NE */
  guest_set_sregs(g, &s);
  set_start(g, eip, GUEST_STACK0);
}

static u64 table_new(struct guest *g) {
  return GUEST_TABLES + 0x1000ull * g->next_table++;
}

static u64 *table_entry(struct guest *g, u64 table, unsigned index) {
  return (u64 *)(void *)(g->mem + table) + index;
}

void guest_map(struct guest *g, u64 lin, u64 gpa, u64 size, unsigned flags) {
  for (u64 at = 0; at < size; at += 0x1000) {
    u64 table = g->cr3;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
      u64 *e = table_entry(g, table, (lin + at) >> shift & 511);
      if (!*e) *e = table_new(g) | 7;
      table = *e & ~0xfffull;
    }
    *table_entry(g, table, (lin + at) >> 12 & 511) = (gpa + at) | flags | 1;
  }
}

void guest_paging(struct guest *g) {
  memset(g->mem + GUEST_TABLES, 0, 0x80000);
  g->next_table = 0;
  g->cr3 = table_new(g);
  guest_map(g, 0, 0, GUEST_MEM, P_W);
  guest_map(g, GUEST_USER, GUEST_USER, 0x10000, P_W | P_U);
}

void guest_long(struct guest *g, u64 rip) {
  struct kvm_sregs s = guest_sregs(g);
  set_tables(g, &s, true);
  guest_paging(g);
  s.cr0 = 0x80010033;
  s.cr3 = g->cr3;
  s.cr4 = 0x620;  /* PAE, OSFXSR, OSXMMEXCPT */
  s.efer = 0xd01; /* SCE, LME, LMA, NX */
  guest_set_sregs(g, &s);
  set_start(g, rip, GUEST_STACK0);
}

#define IMAGE_GPA 0x10000000

extern char __executable_start[], _end[];

static u64 image_start(void) {
  return (u64)(uintptr_t)__executable_start & ~0xfffull;
}
void guest_map_image(struct guest *g) {
  u64 first = image_start(), end = ((u64)(uintptr_t)_end + 0xfff) & ~0xfffull;
  guest_add_slot(g, 0, IMAGE_GPA, (void *)(uintptr_t)first, end - first);
  guest_map(g, first, IMAGE_GPA, end - first, P_W);
}
u64 guest_image_gpa(const volatile void *object) {
  return (u64)(uintptr_t)object - image_start() + IMAGE_GPA;
}

/* ---- running ---- */

struct kvm_regs guest_regs(struct guest *g) {
  struct kvm_regs r;
  MUST(g->vcpu, KVM_GET_REGS, &r);
  return r;
}
void guest_set_regs(struct guest *g, const struct kvm_regs *r) {
  MUST(g->vcpu, KVM_SET_REGS, r);
}
struct kvm_sregs guest_sregs(struct guest *g) {
  struct kvm_sregs s;
  MUST(g->vcpu, KVM_GET_SREGS, &s);
  return s;
}
void guest_set_sregs(struct guest *g, const struct kvm_sregs *s) {
  MUST(g->vcpu, KVM_SET_SREGS, s);
}

u64 guest_stack(struct guest *g, unsigned n, unsigned size) {
  struct kvm_regs r = guest_regs(g);
  struct kvm_sregs s = guest_sregs(g);
  u64 sp = s.cs.l && (s.efer & 0x400) ? r.rsp : s.ss.base + (s.ss.db ? (u32)r.rsp : (u16)r.rsp);
  return guest_read(g, sp + (u64)n * size, size);
}

int guest_run(struct guest *g) {
  int r;
  do r = guest_ioctl(g->vcpu, KVM_RUN, NULL);
  while (r < 0 && (errno == EINTR || errno == EAGAIN)); /* EAGAIN: INIT or SIPI taken */
  return r;
}

/* Completes the OUT, so that the host sees the state after it. */
static void finish_out(struct guest *g) {
  g->run->immediate_exit = 1;
  if (guest_ioctl(g->vcpu, KVM_RUN, NULL) < 0 && errno != EINTR) must(-1, "KVM_RUN");
  g->run->immediate_exit = 0;
}

unsigned guest_next(struct guest *g) {
  if (guest_run(g) < 0) {
    fprintf(stderr, "%s: KVM_RUN: %s\n", current, strerror(errno));
    return EXIT(999);
  }
  struct kvm_run *run = g->run;
  if (run->exit_reason != KVM_EXIT_IO) return EXIT(run->exit_reason);
  u8 value = *((u8 *)run + run->io.data_offset);
  u16 port = run->io.port;
  finish_out(g);
  if (port == GUEST_PORT) return value;
  if (port != STUB_PORT) return EXIT(KVM_EXIT_IO);
  return TRAP((guest_regs(g).rip - GUEST_STUBS) / 16);
}

void guest_resume_at(struct guest *g, u64 rip) {
  struct kvm_regs r = guest_regs(g);
  r.rip = rip;
  guest_set_regs(g, &r);
}

/* ---- checks and main ---- */

void check_failed(const char *file, int line, const char *what, u64 got, u64 want) {
  failures++;
  fprintf(stderr, "%s:%d: %s: %s is %#llx, should be %#llx\n", file, line, current, what, (unsigned long long)got,
          (unsigned long long)want);
}

static bool wanted(int argc, char **argv, const char *name) {
  if (argc < 2) return true;
  for (int n = 1; n < argc; n++)
    if (!strcmp(argv[n], name)) return true;
  return false;
}

int guest_main(int argc, char **argv, const struct guest_test *tests, unsigned n) {
  const char *host = getenv("UVIRT_TEST_HOST_KVM");
  host_kvm = host && !strcmp(host, "1");
  unsigned failed = 0;
  for (unsigned k = 0; k < n; k++) {
    if (!wanted(argc, argv, tests[k].name)) continue;
    unsigned before = failures;
    current = tests[k].name;
    tests[k].run();
    printf("%s %s\n", failures == before ? "ok  " : "FAIL", current);
    fflush(stdout);
    failed += failures != before;
  }
  return failed ? 1 : 0;
}
