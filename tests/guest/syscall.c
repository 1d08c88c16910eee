/* SYSCALL, SYSRET, SYSENTER, SYSEXIT. */
#include "harness.h"

#define MSR_STAR   0xc0000081
#define MSR_LSTAR  0xc0000082
#define MSR_FMASK  0xc0000084
#define MSR_SE_CS  0x174
#define MSR_SE_ESP 0x175
#define MSR_SE_EIP 0x176

static void set_msr(struct guest *g, u32 index, u64 value) {
  struct {
    struct kvm_msrs h;
    struct kvm_msr_entry e;
  } m = {.h.nmsrs = 1, .e = {.index = index, .data = value}};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_MSRS, &m), 1);
}

/* STAR as Linux has it: SYSCALL loads CS 0x08, SS 0x10; SYSRET CS 0x33 + 16 = 0x43..., so the table has its own user segments. */
#define USER_BASE (SEL_FREE | 3) /* 32-bit code, data, 64-bit code */

static struct guest *start(const u8 *user, unsigned size) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_gdt(g, SEL_FREE, 0, ~0u, D_CODE | D_DPL(3), D_G | D_32);
  guest_gdt(g, SEL_FREE + 8, 0, ~0u, D_DATA | D_DPL(3), D_G | D_32);
  guest_gdt(g, SEL_FREE + 16, 0, ~0u, D_CODE | D_DPL(3), D_G | D_64);
  set_msr(g, MSR_STAR, (u64)USER_BASE << 48 | (u64)SEL_CODE64 << 32);
  set_msr(g, MSR_LSTAR, GUEST_CODE + 0x100);
  set_msr(g, MSR_FMASK, 0x700);
  guest_load(g, GUEST_USER, user, size);
  return g;
}

static void set(struct guest *g, u64 rcx, u64 r11, u64 rdx) {
  struct kvm_regs r = guest_regs(g);
  r.rcx = rcx;
  r.r11 = r11;
  r.rdx = rdx;
  guest_set_regs(g, &r);
}

static void sysret_syscall(void) {
  static const u8 user[] = {0x0f, 0x05, 0x0f, 0x0b}, kernel[] = {0x48, 0x0f, 0x07},
                  entry[] = {0xe6, GUEST_PORT, 0x48, 0x0f, 0x07};
  struct guest *g = start(user, sizeof(user));
  guest_load(g, GUEST_CODE, kernel, sizeof(kernel));
  guest_load(g, GUEST_CODE + 0x100, entry, sizeof(entry));
  set(g, GUEST_USER, 0x3c7fd7 & ~0x100u & ~0x4000u, 0);
  CHECK_EQ(guest_next(g), 0);
  struct kvm_regs r = guest_regs(g);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(r.rcx, GUEST_USER + 2);
  CHECK_EQ(r.r11, (0x3c7fd7 & ~0x4100u) | 2);
  CHECK_EQ(r.rflags, ((0x3c7fd7 & ~0x4100u) | 2) & ~0x700u);
  CHECK_EQ(r.rsp, GUEST_STACK0);
  CHECK_EQ(s.cs.selector, SEL_CODE64);
  CHECK_EQ(s.ss.selector, SEL_DATA);
  CHECK_EQ(s.cs.l, 1);
  CHECK_EQ(s.cs.dpl, 0);
  CHECK_EQ(s.ss.dpl, 0);
  /* Back, and into #UD: the frame tells what SYSRET loaded. */
  CHECK_EQ(guest_next(g), TRAP(6));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_USER + 2);
  CHECK_EQ(guest_stack(g, 1, 8), USER_BASE + 16);
  CHECK_EQ(guest_stack(g, 4, 8), USER_BASE + 8);
  guest_free(g);
}

/* To 32-bit code; Intel's SYSCALL from there is #UD. */
static void sysret32(void) {
  static const u8 user[] = {0x0f, 0x05}, kernel[] = {0x0f, 0x07};
  struct guest *g = start(user, sizeof(user));
  guest_load(g, GUEST_CODE, kernel, sizeof(kernel));
  set(g, 0xabc00000000 | GUEST_USER, 0x202, 0);
  CHECK_EQ(guest_next(g), TRAP(6));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_USER);
  CHECK_EQ(guest_stack(g, 1, 8), USER_BASE);
  CHECK_EQ(guest_stack(g, 2, 8), 0x10202);
  guest_free(g);
}

static void refused(void) {
  static const u8 syscall[] = {0x0f, 0x05}, sysret[] = {0x48, 0x0f, 0x07};
  struct guest *g = start(syscall, sizeof(syscall));
  /* EFER.SCE clear. */
  guest_load(g, GUEST_CODE, syscall, sizeof(syscall));
  struct kvm_sregs s = guest_sregs(g);
  s.efer &= ~1ull;
  guest_set_sregs(g, &s);
  CHECK_EQ(guest_next(g), TRAP(6));
  guest_free(g);
  /* Non-canonical return: #GP(0) in ring 0, nothing changed. */
  g = start(syscall, sizeof(syscall));
  guest_load(g, GUEST_CODE, sysret, sizeof(sysret));
  set(g, 0x800000000000, 0x202, 0);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 8), 0);
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE);
  CHECK_EQ(guest_stack(g, 2, 8), SEL_CODE64);
  guest_free(g);
  /* From ring 3. */
  g = start(sysret, sizeof(sysret));
  guest_load(g, GUEST_CODE, sysret, sizeof(sysret));
  set(g, GUEST_USER, 0x202, 0);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_USER);
  guest_free(g);
}

/* SYSEXIT's code is CS + 32 and its stack CS + 40 in 64-bit mode. */
static void sysexit_sysenter(void) {
  static const u8 user[] = {0x0f, 0x34}, kernel[] = {0x48, 0x0f, 0x35}, entry[] = {0xe6, GUEST_PORT, 0x0f, 0x0b};
  struct guest *g = start(user, sizeof(user));
  guest_load(g, GUEST_CODE, kernel, sizeof(kernel));
  guest_load(g, GUEST_CODE + 0x100, entry, sizeof(entry));
  set_msr(g, MSR_SE_CS, SEL_CODE64);
  set_msr(g, MSR_SE_ESP, GUEST_STACK1);
  set_msr(g, MSR_SE_EIP, GUEST_CODE + 0x100);
  set(g, GUEST_STACK3, 0, GUEST_USER);
  struct kvm_regs r = guest_regs(g);
  r.rflags |= 0x200;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 0);
  r = guest_regs(g);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(r.rsp, GUEST_STACK1);
  CHECK_EQ(r.rflags & 0x200, 0);
  CHECK_EQ(s.cs.selector, SEL_CODE64);
  CHECK_EQ(s.cs.l, 1);
  CHECK_EQ(s.ss.selector, SEL_CODE64 + 8);
  guest_free(g);
  /* SYSENTER_CS null. */
  g = start(user, sizeof(user));
  guest_load(g, GUEST_CODE, user, sizeof(user));
  set_msr(g, MSR_SE_CS, 3);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 8), 0);
  guest_free(g);
}

/* The processor is AMD's: leaf 0 says "AuthenticAMD". */
static void make_amd(struct guest *g) {
  guest_cpuid(g, 0, 1, ~0u, 0x68747541);
  guest_cpuid(g, 0, 3, ~0u, 0x69746e65);
  guest_cpuid(g, 0, 2, ~0u, 0x444d4163);
}

/* SYSRET leaves what is cached of SS: with the null SS of an interrupt, stacks of 32-bit code fault and those of 64-bit code
 * work. */
static void amd_sysret_ss(void) {
  static const u8 user[] = {0x50, 0x0f, 0x0b}, to64[] = {0x48, 0x0f, 0x07}, to32[] = {0x0f, 0x07};
  struct guest *g = start(user, sizeof(user));
  make_amd(g);
  for (unsigned k = 0; k < 4; k++) {
    bool is64 = k & 1, null = k & 2;
    struct kvm_sregs s = guest_sregs(g);
    s.cs.selector = SEL_CODE64;
    s.cs.dpl = s.ss.dpl = 0;
    s.cs.l = 1;
    s.cs.db = 0;
    s.ss.selector = null ? 0 : SEL_DATA;
    s.ss.limit = 0xfffff;
    s.ss.g = 0;
    s.ss.unusable = null;
    guest_set_sregs(g, &s);
    guest_load(g, GUEST_CODE, is64 ? to64 : to32, is64 ? sizeof(to64) : sizeof(to32));
    struct kvm_regs r = guest_regs(g);
    r.rip = GUEST_CODE;
    r.rsp = GUEST_STACK3;
    r.rcx = GUEST_USER;
    r.r11 = 0x202;
    guest_set_regs(g, &r);
    CHECK_EQ(guest_next(g), TRAP(null && !is64 ? 12 : 6));
    CHECK_EQ(guest_stack(g, null && !is64 ? 1 : 0, 8), GUEST_USER + (null && !is64 ? 0 : 1));
    CHECK_EQ(guest_stack(g, null && !is64 ? 5 : 4, 8), USER_BASE + 8);
  }
  guest_free(g);
}

/* The same on Intel's processors: a flat stack. */
static void intel_sysret_ss(void) {
  static const u8 user[] = {0x50, 0x0f, 0x0b}, to32[] = {0x0f, 0x07};
  struct guest *g = start(user, sizeof(user));
  struct kvm_sregs s = guest_sregs(g);
  s.ss.selector = 0;
  s.ss.unusable = 1;
  guest_set_sregs(g, &s);
  guest_load(g, GUEST_CODE, to32, sizeof(to32));
  set(g, GUEST_USER, 0x202, 0);
  struct kvm_regs r = guest_regs(g);
  r.rsp = GUEST_STACK3;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), TRAP(6));
  guest_free(g);
}

GUEST_MAIN({"sysret-syscall", sysret_syscall}, {"sysret32", sysret32}, {"refused", refused},
           {"sysexit-sysenter", sysexit_sysenter}, {"amd-sysret-ss", amd_sysret_ss}, {"intel-sysret-ss", intel_sysret_ss})
