/* XCR0, IA32_XSS and the XSAVE family at CPL 0, and what CPUID says of them (SDM Vol. 1, chapter 13).  What CPL 3 can see is in
 * tests/diff. */
#include <string.h>
#include "inside.h"

#define CR4_ALL (0x200ull | 0x400ull | 0x40000ull) /* OSFXSR, OSXMMEXCPT, OSXSAVE */
#define MSR_XSS 0xda0u
#define AREA    GUEST_DATA
#define HEADER  512u
#define PACKED  (1ull << 63)
#define UD      FAULT(6, 0)
#define NM      FAULT(7, 0)

static volatile u64 supported; /* XCR0 */

static volatile u32 arg[3]; /* EAX, EDX, ECX: TRY has these registers for itself */
#define LOAD_ARG "mov arg(%%rip), %%eax\n mov arg+4(%%rip), %%edx\n mov arg+8(%%rip), %%ecx\n"

static void set_arg(u64 v, u32 index) {
  arg[0] = (u32)v;
  arg[1] = (u32)(v >> 32);
  arg[2] = index;
}
static u32 xsetbv(u32 index, u64 v) {
  set_arg(v, index);
  return TRY(LOAD_ARG "xsetbv", "b"(0));
}
static u32 try_wrmsr(u32 index, u64 v) {
  set_arg(v, index);
  return TRY(LOAD_ARG "wrmsr", "b"(0));
}
static u64 xgetbv(u32 index) {
  u32 lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(index));
  return lo | (u64)hi << 32;
}
static void cpuid(u32 leaf, u32 sub, u32 r[4]) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
static void enable(u64 xcr0) {
  write_cr0(read_cr0() & ~12ull);
  write_cr4(read_cr4() | CR4_ALL);
  EXPECT_EQ(xsetbv(0, xcr0), NO_FAULT);
}

/* The XSAVE instructions with a mask in EDX:EAX. */
#define ON_AREA(insn, mask, where) (set_arg(mask, 0), TRY(LOAD_ARG insn " (%%rbx)", "b"((u64)(where))))

static u64 at(u64 where) {
  return *(volatile u64 *)(uintptr_t)where;
}
static void put(u64 where, u64 v) {
  *(volatile u64 *)(uintptr_t)where = v;
}
static void clear(u64 where, u64 size) {
  for (u64 n = 0; n < size; n += 8) put(where + n, 0);
}

/* ---- XCR0 ---- */

static void guest_xcr0(void) {
  write_cr4(read_cr4() & ~0x40000ull);
  EXPECT_EQ(xsetbv(0, 7), UD);
  EXPECT_EQ(TRY("xor %%ecx, %%ecx\n xgetbv", "b"(0)), UD);
  write_cr4(read_cr4() | CR4_ALL);
  EXPECT_EQ(xgetbv(0), 1); /* after a reset */
  EXPECT_EQ(xsetbv(1, 7), GP0);
  EXPECT_EQ(TRY("mov $2, %%ecx\n xgetbv", "b"(0)), GP0);
  /* What the SDM forbids: without x87, AVX without SSE, AVX-512 in parts or without AVX, bits that do not exist. */
  static const u64 refused[] = {0,    2,    4,    6,    5,    0x23, 0x27, 0x43,  0x47,  0x67,          0xa7,
                                0xc7, 0xe1, 0xe3, 0xe5, 0xe6, 9,    0x11, 0x101, 0x403, 1ull << 63 | 1};
  for (unsigned n = 0; n < sizeof(refused) / sizeof(refused[0]); n++) EXPECT_EQ(xsetbv(0, refused[n]), GP0);
  EXPECT_EQ(xgetbv(0), 1);
  static const u64 accepted[] = {1, 3, 7, 0xe7, 0x207, 0x2e7};
  for (unsigned n = 0; n < sizeof(accepted) / sizeof(accepted[0]); n++) {
    EXPECT_EQ(xsetbv(0, accepted[n]), accepted[n] & ~supported ? GP0 : NO_FAULT);
    if (!(accepted[n] & ~supported)) EXPECT_EQ(xgetbv(0), accepted[n]);
  }
  EXPECT_EQ(xsetbv(0, 7), NO_FAULT);
  write_cr0(read_cr0() | 8); /* TS is nothing to these */
  EXPECT_EQ(xsetbv(0, 3), NO_FAULT);
  EXPECT_EQ(xgetbv(0), 3);
  done();
}

/* CPL 3 may read XCR0 and not write it. */
GUEST_BLOB(user, "xor %ecx, %ecx\n xgetbv\n xsetbv\n");
static void guest_user_xcr0(void) {
  enable(7);
  EXPECT_EQ(user_run(GUEST_USER, 0), GP0);
  EXPECT_EQ(fault_ip, GUEST_USER + 5);
  done();
}

static struct guest *start(void (*f)(void)) {
  struct guest *g = inside_start(f);
  struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
  } t = {.head.nent = 256};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_CPUID2, &t), 0);
  for (u32 n = 0; n < t.head.nent; n++)
    if (t.entries[n].function == 0xd && t.entries[n].index == 0) supported = t.entries[n].eax | (u64)t.entries[n].edx << 32;
  return g;
}
static void xcr0(void) {
  struct guest *g = start(guest_xcr0);
  inside_run(g);
  g = start(guest_user_xcr0);
  guest_load(g, GUEST_USER, user_start, (size_t)(user_end - user_start));
  inside_run(g);
}

/* ---- CPUID leaf 0DH ---- */

static void guest_leaf(void) {
  u32 r[4], c[4];
  u64 packed = 576;
  enable(supported);
  cpuid(0xd, 0, r);
  EXPECT_EQ(r[0] | (u64)r[3] << 32, supported);
  EXPECT_EQ(r[1], r[2]); /* all are enabled */
  u32 end = 576;
  for (u32 n = 2; n < 63; n++) {
    cpuid(0xd, n, c);
    if (!(supported >> n & 1)) {
      EXPECT_EQ(c[0] | c[1] | c[2] | c[3], 0);
      continue;
    }
    EXPECT_EQ(c[2] & 1, 0); /* user state */
    if (c[0] + c[1] > end) end = c[0] + c[1];
    packed = (c[2] & 2 ? (packed + 63) & ~63ull : packed) + c[0];
  }
  EXPECT_EQ(r[1], end);
  cpuid(0xd, 1, r);
  EXPECT_EQ(r[0] & 15, 15); /* XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES */
  EXPECT_EQ(r[1], packed);
  EXPECT_EQ(r[2] | r[3], 0); /* no supervisor components */
  enable(1);
  cpuid(0xd, 0, c);
  EXPECT_EQ(c[1], 576);
  EXPECT_EQ(c[2], end);
  cpuid(0xd, 1, c);
  EXPECT_EQ(c[1], 576);
  enable(7);
  cpuid(0xd, 0, c);
  EXPECT_EQ(c[1], 832);
  cpuid(0xd, 1, c);
  EXPECT_EQ(c[1], 832);
  done();
}
static void leaf(void) {
  struct guest *g = start(guest_leaf);
  inside_run(g);
}

/* ---- XSAVES, XRSTORS, IA32_XSS ---- */

static void guest_supervisor(void) {
  enable(7);
  EXPECT_EQ(try_wrmsr(MSR_XSS, 0), NO_FAULT);
  EXPECT_EQ(try_wrmsr(MSR_XSS, 1), GP0);
  EXPECT_EQ(try_wrmsr(MSR_XSS, 0x100), GP0);  /* processor trace */
  EXPECT_EQ(try_wrmsr(MSR_XSS, 0x1800), GP0); /* control-flow enforcement */
  /* A compacted image with what is in use. */
  clear(AREA, 1024);
  put(AREA + 24, 0x1f80);
  put(AREA + HEADER, 0);
  EXPECT_EQ(ON_AREA("xrstor64", 7, AREA), NO_FAULT); /* everything initial */
  EXPECT_EQ(xgetbv(1), 0);
  __asm__ volatile("vpcmpeqd %xmm3, %xmm3, %xmm3");
  EXPECT_EQ(xgetbv(1), 2);
  __asm__ volatile("vpcmpeqd %ymm3, %ymm3, %ymm3");
  EXPECT_EQ(xgetbv(1), 6);
  for (u64 n = 0; n < 1024; n += 8) put(AREA + n, 0x5a5a5a5a5a5a5a5a);
  EXPECT_EQ(ON_AREA("xsaves64", 7, AREA), NO_FAULT);
  EXPECT_EQ(at(AREA + HEADER), 6);
  EXPECT_EQ(at(AREA + HEADER + 8), PACKED | 7);
  EXPECT_EQ(at(AREA), 0x5a5a5a5a5a5a5a5a); /* x87 is initial: not written */
  EXPECT_EQ(at(AREA + 24), 0x0000ffff00001f80);
  EXPECT_EQ(at(AREA + 160 + 3 * 16), ~0ull);
  EXPECT_EQ(at(AREA + 576 + 3 * 16), ~0ull);
  EXPECT_EQ(at(AREA + 576 + 4 * 16), 0);
  EXPECT_EQ(ON_AREA("xsaves64", 5, AREA), NO_FAULT);
  EXPECT_EQ(at(AREA + HEADER), 4);
  EXPECT_EQ(at(AREA + HEADER + 8), PACKED | 5);
  clear(AREA + HEADER + 16, 48);
  __asm__ volatile("vzeroall");
  EXPECT_EQ(ON_AREA("xrstors64", 7, AREA), NO_FAULT);
  EXPECT_EQ(xgetbv(1), 4);
  /* Images that it refuses. */
  put(AREA + HEADER + 8, 0); /* not compacted */
  EXPECT_EQ(ON_AREA("xrstors64", 7, AREA), GP0);
  EXPECT_EQ(ON_AREA("xrstor64", 7, AREA), NO_FAULT);
  put(AREA + HEADER + 8, PACKED | 0x105);
  EXPECT_EQ(ON_AREA("xrstors64", 7, AREA), GP0);
  put(AREA + HEADER + 8, PACKED | 3);
  EXPECT_EQ(ON_AREA("xrstors64", 7, AREA), GP0); /* AVX is in XSTATE_BV alone */
  put(AREA + HEADER + 8, PACKED | 7);
  EXPECT_EQ(ON_AREA("xrstors64", 7, AREA), NO_FAULT);
  put(AREA + HEADER + 56, 1);
  EXPECT_EQ(ON_AREA("xrstors64", 7, AREA), GP0);
  EXPECT_EQ(ON_AREA("xsaves64", 7, AREA + 32), GP0);
  EXPECT_EQ(ON_AREA("xsaves64", 7, 0x50000000), PF(2));
  write_cr0(read_cr0() | 8);
  EXPECT_EQ(ON_AREA("xsaves64", 7, AREA), NM);
  EXPECT_EQ(ON_AREA("xrstors64", 7, AREA + 1), NM);
  write_cr0(read_cr0() & ~8ull);
  write_cr4(read_cr4() & ~0x40000ull);
  EXPECT_EQ(ON_AREA("xsaves64", 7, AREA), UD);
  done();
}
GUEST_BLOB(user_xsaves, "xor %eax, %eax\n xor %edx, %edx\n xsavec (%rbx)\n xsaves (%rbx)\n");
static void guest_user_xsaves(void) {
  enable(7);
  EXPECT_EQ(user_run(GUEST_USER, GUEST_USER + 0x1000), GP0);
  EXPECT_EQ(fault_ip, GUEST_USER + 7);
  done();
}
static void supervisor(void) {
  struct guest *g = start(guest_supervisor);
  inside_run(g);
  g = start(guest_user_xsaves);
  guest_load(g, GUEST_USER, user_xsaves_start, (size_t)(user_xsaves_end - user_xsaves_start));
  inside_run(g);
}

/* ---- protection keys in an image ---- */

/* PKRU is a component of the state: what is loaded is in force at once. */
static void guest_pkru(void) {
  if (!(supported & 0x200)) done();
  enable(0x203);
  write_cr4(read_cr4() | 0x400000);
  clear(AREA, 2816);
  put(AREA + 24, 0x1f80);
  put(AREA + HEADER, 0x200);
  put(AREA + HEADER + 8, PACKED | 0x200);
  put(AREA + 576, 0x4); /* key 1: no access */
  EXPECT_EQ(ON_AREA("xrstors64", 0x200, AREA), NO_FAULT);
  EXPECT_EQ(TRY("xor %%ecx, %%ecx\n rdpkru\n cmp $4, %%eax\n je 1f\n ud2", "b"(0)), NO_FAULT);
  EXPECT_EQ(xgetbv(1) & 0x200, 0x200);
  put(AREA + HEADER, 0);
  EXPECT_EQ(ON_AREA("xrstors64", 0x200, AREA), NO_FAULT);
  EXPECT_EQ(xgetbv(1) & 0x200, 0);
  done();
}
static void pkru(void) {
  struct guest *g = start(guest_pkru);
  inside_run(g);
}

GUEST_MAIN({"xcr0", xcr0}, {"leaf", leaf}, {"supervisor", supervisor}, {"pkru", pkru})
