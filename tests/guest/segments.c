/* Segment registers and descriptor queries: limits, expand-down, null selectors, LDT, LAR, LSL, VERR, VERW, UMIP, FS and GS
 * bases, I/O permission. */
#include <string.h>
#include "harness.h"

static struct guest *start32(const u8 *code, unsigned size) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, size);
  return g;
}
static struct guest *start64(const u8 *code, unsigned size) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, size);
  return g;
}
#define START32(code) start32(code, sizeof(code))
#define START64(code) start64(code, sizeof(code))

static void set_ax_bx(struct guest *g, u64 ax, u64 bx) {
  struct kvm_regs r = guest_regs(g);
  r.rax = ax;
  r.rbx = bx;
  guest_set_regs(g, &r);
}

/* Loads DS with AX and reads one dword at EBX: reports, or #GP(0). */
static unsigned probe(unsigned access, unsigned flags, u32 limit, u32 at) {
  static const u8 code[] = {0x8e, 0xd8, 0x8b, 0x13, 0xe6, GUEST_PORT};
  struct guest *g = START32(code);
  guest_gdt(g, SEL_FREE, 0, limit, access, flags);
  set_ax_bx(g, SEL_FREE, at);
  unsigned got = guest_next(g);
  if (got == TRAP(13))
    CHECK_EQ(guest_stack(g, 0, 4), 0);
  else
    CHECK_EQ(guest_gdt_read(g, SEL_FREE) >> 40 & 1, 1); /* accessed */
  guest_free(g);
  return got;
}
#define OK (SEL_FREE & 0xff)

static void limits(void) {
  CHECK_EQ(probe(0x92, D_32, 0xfff, 0xffc), OK);
  CHECK_EQ(probe(0x92, D_32, 0xfff, 0xffd), TRAP(13));
  CHECK_EQ(probe(0x92, D_32, 0xfff, 0x1000), TRAP(13));
  CHECK_EQ(probe(0x92, D_32 | D_G, 0x1fff, 0x1ffc), OK);
  CHECK_EQ(probe(0x96, D_32, 0xfff, 0x1000), OK); /* expand-down: above the limit */
  CHECK_EQ(probe(0x96, D_32, 0xfff, 0xfff), TRAP(13));
  CHECK_EQ(probe(0x96, 0, 0xfff, 0xfffc), OK); /* to 64 KiB without B */
  CHECK_EQ(probe(0x96, 0, 0xfff, 0xfffe), TRAP(13));
  CHECK_EQ(probe(0x96, 0, 0xfff, 0x10000), TRAP(13));
  CHECK_EQ(probe(0x9a, D_32 | D_G, ~0u, 0x1000), OK); /* readable code */
}

/* LAR, LSL, VERR, VERW of AX: EDX, ZF. */
static void query(u8 op, bool group6, unsigned sel, bool zf, u32 value) {
  u8 code[] = {0x0f, op, 0xd0, 0x9c, 0x59, 0xb0, 1, 0xe6, GUEST_PORT}; /* lar/lsl %ax, %edx; pushf; pop %ecx */
  if (group6) code[1] = 0x00, code[2] = op;
  struct guest *g = START32(code);
  guest_gdt(g, SEL_FREE, 0, 0x1234, 0x13 | D_DPL(1), 0);
  set_ax_bx(g, sel, 0);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rcx & 0x40, zf ? 0x40 : 0);
  if (!group6 && zf) CHECK_EQ(guest_regs(g).rdx, value);
  if (!zf) CHECK_EQ(guest_regs(g).rdx, 0);
  guest_free(g);
}

static void queries(void) {
  query(2, false, SEL_DATA, true, 0x00cf9300);
  query(2, false, SEL_FREE, true, 0x00003300);
  query(2, false, SEL_TSS2, true, 0x00008900);
  query(2, false, 0, false, 0);
  query(2, false, 0x8000, false, 0);
  query(2, false, SEL_DATA | 3, false, 0);
  query(2, false, SEL_CONF | 3, true, 0x00cf9f00);
  query(3, false, SEL_DATA, true, 0xffffffff);
  query(3, false, SEL_FREE, true, 0x1234);
  query(3, false, SEL_TSS2, true, 0x67);
  query(0xe0, true, SEL_DATA, true, 0); /* verr */
  query(0xe8, true, SEL_DATA, true, 0); /* verw */
  query(0xe8, true, SEL_CODE32, false, 0);
  query(0xe0, true, SEL_CODE32, true, 0);
  query(0xe0, true, SEL_TSS2, false, 0);
}

static void ldt(void) {
  /* lldt %ax; mov %bx, %ds; sldt %ecx; str %edx; report */
  static const u8 code[] = {0x0f, 0x00, 0xd0, 0x8e, 0xdb, 0x0f, 0x00, 0xc1, 0x0f, 0x00, 0xca, 0xe6, GUEST_PORT};
  struct guest *g = START32(code);
  guest_write(g, GUEST_LDT + 8, 8, guest_gdt_read(g, SEL_DATA));
  set_ax_bx(g, SEL_LDT, 0xc);
  CHECK_EQ(guest_next(g), SEL_LDT);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(s.ldt.base, GUEST_LDT);
  CHECK_EQ(s.ldt.limit, 0xff);
  CHECK_EQ(s.ds.selector, 0xc);
  CHECK_EQ(guest_regs(g).rcx, SEL_LDT);
  CHECK_EQ(guest_regs(g).rdx, SEL_TSS);
  guest_free(g);
  /* No LDT: a selector into it is beyond every limit. */
  g = START32(code);
  set_ax_bx(g, 0, 0xc);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 4), 0xc);
  guest_free(g);
}

/* PUSH and POP of segment registers, LSS. */
static void moves(void) {
  /* push %ds; pop %es; lss (%ebx), %esp; mov %ss, %ecx; report */
  static const u8 code[] = {0x1e, 0x07, 0x0f, 0xb2, 0x23, 0x8c, 0xd1, 0xe6, GUEST_PORT};
  struct guest *g = START32(code);
  guest_write(g, GUEST_DATA, 4, 0x20000);
  guest_write(g, GUEST_DATA + 4, 2, SEL_DATA);
  set_ax_bx(g, 1, GUEST_DATA);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_sregs(g).es.selector, SEL_DATA);
  CHECK_EQ(guest_regs(g).rsp, 0x20000);
  CHECK_EQ(guest_regs(g).rcx, SEL_DATA);
  guest_free(g);
}

/* 64-bit mode: null SS in ring 0, FS and GS bases, SWAPGS. */
static void long_mode(void) {
  /* mov %eax, %ss; mov %eax, %fs; wrfsbase %rbx; rdfsbase %rcx; wrgsbase %rcx; swapgs; rdgsbase %rdx; report */
  static const u8 code[] = {0x8e, 0xd0, 0x8e, 0xe0, 0xf3, 0x48, 0x0f, 0xae, 0xd3, 0xf3, 0x48, 0x0f, 0xae, 0xc1,      0xf3,
                            0x48, 0x0f, 0xae, 0xd9, 0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xca, 0xe6, GUEST_PORT};
  struct guest *g = START64(code);
  struct kvm_sregs s = guest_sregs(g);
  s.cr4 |= 1u << 16;
  guest_set_sregs(g, &s);
  set_ax_bx(g, 0, 0x123456789abc);
  CHECK_EQ(guest_next(g), 0);
  s = guest_sregs(g);
  CHECK_EQ(s.ss.selector, 0);
  CHECK_EQ(s.ss.unusable, 1);
  CHECK_EQ(s.fs.base, 0x123456789abc);
  CHECK_EQ(guest_regs(g).rcx, 0x123456789abc);
  CHECK_EQ(guest_regs(g).rdx, 0);
  guest_free(g);
  /* Non-canonical base. */
  g = START64(code);
  s = guest_sregs(g);
  s.cr4 |= 1u << 16;
  guest_set_sregs(g, &s);
  set_ax_bx(g, 0, 0x800000000000);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE + 4);
  guest_free(g);
  /* CR4.FSGSBASE clear. */
  g = START64(code);
  CHECK_EQ(guest_next(g), TRAP(6));
  guest_free(g);
}

static void tables(void) {
  /* sgdt (%rbx); sidt 16(%rbx); report */
  static const u8 code[] = {0x0f, 0x01, 0x03, 0x0f, 0x01, 0x4b, 16, 0xe6, GUEST_PORT};
  struct guest *g = START64(code);
  set_ax_bx(g, 1, GUEST_DATA);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_read(g, GUEST_DATA, 2), GDT_ENTRIES * 8 - 1);
  CHECK_EQ(guest_read(g, GUEST_DATA + 2, 8), GUEST_GDT);
  CHECK_EQ(guest_read(g, GUEST_DATA + 16, 2), 0xfff);
  CHECK_EQ(guest_read(g, GUEST_DATA + 18, 8), GUEST_IDT);
  guest_free(g);
}

/* Ring 3: port access by the bitmap, UMIP. */
static unsigned ring3(const u8 *code, unsigned size, bool umip, unsigned port_bit) {
  static const u8 iretq[] = {0x48, 0xcf};
  struct guest *g = START64(iretq);
  u64 frame[5] = {GUEST_USER, SEL_CODE64U, 2, GUEST_STACK3, SEL_DATA3};
  guest_load(g, GUEST_USER, code, size);
  guest_load(g, GUEST_STACK0 - 64, frame, sizeof(frame));
  if (port_bit) g->mem[GUEST_TSS + 0x88 + port_bit / 8] |= 1 << (port_bit & 7);
  struct kvm_regs r = guest_regs(g);
  r.rsp = GUEST_STACK0 - 64;
  r.rax = 5;
  guest_set_regs(g, &r);
  struct kvm_sregs s = guest_sregs(g);
  if (umip) s.cr4 |= 1u << 11;
  guest_set_sregs(g, &s);
  unsigned got = guest_next(g);
  guest_free(g);
  return got;
}

static void permissions(void) {
  static const u8 out[] = {0xe6, GUEST_PORT}, out16[] = {0x66, 0xe7, GUEST_PORT}, str[] = {0x0f, 0x00, 0xc8, 0x0f, 0x0b};
  CHECK_EQ(ring3(out, sizeof(out), false, 0), 5);
  CHECK_EQ(ring3(out, sizeof(out), false, GUEST_PORT), TRAP(13));
  CHECK_EQ(ring3(out, sizeof(out), false, GUEST_PORT + 1), 5);
  CHECK_EQ(ring3(out16, sizeof(out16), false, GUEST_PORT + 1), TRAP(13));
  CHECK_EQ(ring3(str, sizeof(str), false, 0), TRAP(6));
  CHECK_EQ(ring3(str, sizeof(str), true, 0), TRAP(13));
}

GUEST_MAIN({"limits", limits}, {"queries", queries}, {"ldt", ldt}, {"moves", moves}, {"long-mode", long_mode}, {"tables", tables},
           {"permissions", permissions})
