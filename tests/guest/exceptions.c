/* Exceptions: vectors, error codes, saved RIP and RF, stacks and gates, in real, 32-bit and 64-bit mode. */
#include <string.h>
#include "harness.h"

#define RF 0x10000u

struct fault_case {
  const char *name;
  u8 code[16];
  u8 size;
  u8 vector;
  bool has_error;
  u32 error;
  u8 rip;  /* saved RIP, relative to the code */
  bool rf; /* in the saved flags */
};

#define BYTES(...) {__VA_ARGS__}, sizeof((u8[]){__VA_ARGS__})

static const struct fault_case cases32[] = {
    {"ud2", BYTES(0x0f, 0x0b), 6, false, 0, 0, true},
    {"div by zero", BYTES(0x31, 0xc9, 0xf7, 0xf1), 0, false, 0, 2, true},
    {"int3", BYTES(0xcc), 3, false, 0, 1, false},
    {"int $3", BYTES(0xcd, 3), 3, false, 0, 2, false},
    {"into", BYTES(0xb0, 0x7f, 0x04, 1, 0xce), 4, false, 0, 5, false},
    {"int1", BYTES(0xf1), 1, false, 0, 1, false},
    {"bound", BYTES(0xb8, 5, 0, 0, 0, 0x62, 0x05, 0, 0, 6, 0), 5, false, 0, 5, true}, /* bound %eax, 0x60000: 0..0 */
    {"selector beyond the GDT", BYTES(0x66, 0xb8, 0x00, 0x80, 0x8e, 0xd8), 13, true, 0x8000, 4, true},
    {"system descriptor in DS", BYTES(0x66, 0xb8, SEL_TSS, 0, 0x8e, 0xd8), 13, true, SEL_TSS, 4, true},
    {"null in SS", BYTES(0x31, 0xc0, 0x8e, 0xd0), 13, true, 0, 2, true},
    {"RPL in SS", BYTES(0x66, 0xb8, SEL_DATA3, 0, 0x8e, 0xd0), 13, true, SEL_DATA3 & ~3u, 4, true},
    {"absent data", BYTES(0x66, 0xb8, SEL_FREE, 0, 0x8e, 0xd8), 11, true, SEL_FREE, 4, true},
    {"absent stack", BYTES(0x66, 0xb8, SEL_FREE, 0, 0x8e, 0xd0), 12, true, SEL_FREE, 4, true},
    {"null use", BYTES(0x31, 0xc0, 0x8e, 0xd8, 0xa1, 0, 0, 0, 0), 13, true, 0, 4, true},
    {"write to code", BYTES(0x2e, 0xa3, 0, 0, 6, 0), 13, true, 0, 0, true},
    {"far jump to null", BYTES(0xea, 0, 0, 0, 0, 0, 0), 13, true, 0, 0, true},
    {"far jump to data", BYTES(0xea, 0, 0, 0, 0, SEL_DATA, 0), 13, true, SEL_DATA, 0, true},
    {"far jump to other ring", BYTES(0xea, 0, 0, 0, 0, SEL_CODE32U & ~3, 0), 13, true, SEL_CODE32U & ~3u, 0, true},
    {"ltr null", BYTES(0x31, 0xc0, 0x0f, 0x00, 0xd8), 13, true, 0, 2, true},
    {"ltr busy", BYTES(0xb0, SEL_TSS, 0x0f, 0x00, 0xd8), 13, true, SEL_TSS, 2, true},
    {"lldt of a TSS", BYTES(0xb0, SEL_TSS, 0x0f, 0x00, 0xd0), 13, true, SEL_TSS, 2, true},
    {"iret with NT and no link", BYTES(0x9c, 0x80, 0x4c, 0x24, 1, 0x40, 0x9d, 0xcf), 10, true, 0, 7, true},
};

static const struct fault_case cases64[] = {
    {"ud2", BYTES(0x0f, 0x0b), 6, false, 0, 0, true},
    {"int3", BYTES(0xcc), 3, false, 0, 1, false},
    {"int 0x40", BYTES(0xcd, 0x40), 0x40, false, 0, 2, false},
    {"page not present", BYTES(0x8b, 0x04, 0x25, 0, 0, 0, 0x40), 14, true, 0, 0, true},
    {"write to page not present", BYTES(0x89, 0x04, 0x25, 0, 0, 0, 0x40), 14, true, 2, 0, true},
    {"non-canonical load", BYTES(0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x8b, 0x00), 13, true, 0, 10, true},
    {"non-canonical stack", BYTES(0x48, 0xbc, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x58), 12, true, 0, 10, true},
    {"cr4 reserved", BYTES(0x48, 0xc7, 0xc0, 0, 0, 0, 0x80, 0x0f, 0x22, 0xe0), 13, true, 0, 7, true},
    {"far jump to 16-byte TSS", BYTES(0xff, 0x2c, 0x25, 0x00, 0x00, 0x06, 0x00), 13, true, SEL_TSS, 0, true},
    {"ltr busy", BYTES(0xb0, SEL_TSS, 0x0f, 0x00, 0xd8), 13, true, SEL_TSS, 2, true},
    {"iretq with NT", BYTES(0x9c, 0x80, 0x4c, 0x24, 1, 0x40, 0x9d, 0x48, 0xcf), 13, true, 0, 7, true},
    {"push es", BYTES(0x06), 6, false, 0, 0, true},
};

static void prepare(struct guest *g, bool is_long) {
  if (is_long)
    guest_long(g, GUEST_CODE);
  else
    guest_protected(g, GUEST_CODE);
  guest_gdt(g, SEL_FREE, 0, 0xffff, 0x13, D_32); /* data, not present */
  memset(g->mem + GUEST_DATA, 0, 64);
  if (is_long) { /* m16:32 of a jump to the TSS */
    guest_write(g, GUEST_DATA + 4, 2, SEL_TSS);
    guest_idt64(g, 12, 0xe, 0, SEL_CODE64, GUEST_STUBS + 12 * 16, 1);
  }
  guest_write(g, GUEST_TSS, 2, 0);
}

static void run_cases(const struct fault_case *cases, unsigned n, bool is_long) {
  struct guest *g = guest_new();
  unsigned size = is_long ? 8 : 4;
  for (const struct fault_case *t = cases; t < cases + n; t++) {
    prepare(g, is_long);
    guest_load(g, GUEST_CODE, t->code, sizeof(t->code));
    unsigned got = guest_next(g), at = t->has_error ? 1 : 0;
    if (got != TRAP(t->vector)) check_failed(__FILE__, __LINE__, t->name, got, TRAP(t->vector));
    if (t->has_error && guest_stack(g, 0, size) != t->error)
      check_failed(__FILE__, __LINE__, t->name, guest_stack(g, 0, size), t->error);
    u64 rip = guest_stack(g, at, size) - GUEST_CODE, flags = guest_stack(g, at + 2, size);
    if (rip != t->rip) check_failed(__FILE__, __LINE__, t->name, rip, t->rip);
    if (!!(flags & RF) != t->rf) check_failed(__FILE__, __LINE__, t->name, flags, t->rf);
    CHECK_EQ(guest_regs(g).rflags & (RF | 0x100 | 0x4000), 0);
  }
  guest_free(g);
}

static void faults32(void) { run_cases(cases32, sizeof(cases32) / sizeof(cases32[0]), false); }
static void faults64(void) { run_cases(cases64, sizeof(cases64) / sizeof(cases64[0]), true); }

/* ---- the way through the IDT ---- */

static void idt_errors(void) {
  static const u8 int40[] = {0xcd, 0x40};
  struct guest *g = guest_new();
  for (unsigned is_long = 0; is_long < 2; is_long++) {
    unsigned size = is_long ? 8 : 4, entry = is_long ? 16 : 8;
    prepare(g, is_long);
    guest_load(g, GUEST_CODE, int40, sizeof(int40));
    u64 gate = GUEST_IDT + 0x40 * entry;
    guest_write(g, gate + 5, 1, 0x0e); /* not present */
    CHECK_EQ(guest_next(g), TRAP(11));
    CHECK_EQ(guest_stack(g, 0, size), 0x40 * 8 + 2);
    CHECK_EQ(guest_stack(g, 1, size), GUEST_CODE);
    prepare(g, is_long);
    guest_write(g, gate + 5, 1, 0x82); /* an LDT */
    CHECK_EQ(guest_next(g), TRAP(13));
    CHECK_EQ(guest_stack(g, 0, size), 0x40 * 8 + 2);
    prepare(g, is_long);
    guest_write(g, gate + 2, 2, SEL_DATA);
    CHECK_EQ(guest_next(g), TRAP(13));
    CHECK_EQ(guest_stack(g, 0, size), SEL_DATA);
    prepare(g, is_long);
    guest_write(g, gate + 2, 2, 0);
    CHECK_EQ(guest_next(g), TRAP(13));
    CHECK_EQ(guest_stack(g, 0, size), 0);
    prepare(g, is_long);
    struct kvm_sregs s = guest_sregs(g);
    s.idt.limit = (u16)(0x40 * entry + entry - 2);
    guest_set_sregs(g, &s);
    CHECK_EQ(guest_next(g), TRAP(13));
    CHECK_EQ(guest_stack(g, 0, size), 0x40 * 8 + 2);
  }
  guest_free(g);
}

/* Interrupt gates clear IF, trap gates leave it. */
static void gate_types(void) {
  static const u8 code[] = {0xfb, 0xcd, 0x40};
  struct guest *g = guest_new();
  prepare(g, false);
  guest_load(g, GUEST_CODE, code, sizeof(code));
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_regs(g).rflags & 0x200, 0);
  CHECK_EQ(guest_stack(g, 2, 4) & 0x200, 0x200);
  prepare(g, false);
  guest_idt32(g, 0x40, 0xf, 0, SEL_CODE32, GUEST_STUBS + 0x400);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_regs(g).rflags & 0x200, 0x200);
  prepare(g, false);
  guest_idt32(g, 0x40, 6, 0, SEL_CODE32, GUEST_STUBS + 0x400); /* 16-bit gate: 6 bytes */
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_regs(g).rsp, GUEST_STACK0 - 6);
  CHECK_EQ(guest_stack(g, 0, 2), GUEST_CODE + 3);
  CHECK_EQ(guest_stack(g, 1, 2), SEL_CODE32);
  guest_free(g);
}

/* 6.14.2 and 6.14.5: five words on an aligned stack; IST; SS only changes with the ring. */
static void long_frames(void) {
  static const u8 int40[] = {0xcd, 0x40};
  struct guest *g = guest_new();
  prepare(g, true);
  guest_load(g, GUEST_CODE, int40, sizeof(int40));
  struct kvm_regs r = guest_regs(g);
  r.rsp = GUEST_STACK0 - 3;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_regs(g).rsp, GUEST_STACK0 - 16 - 40);
  CHECK_EQ(guest_stack(g, 1, 8), SEL_CODE64);
  CHECK_EQ(guest_stack(g, 3, 8), GUEST_STACK0 - 3);
  CHECK_EQ(guest_stack(g, 4, 8), SEL_DATA);
  CHECK_EQ(guest_sregs(g).ss.selector, SEL_DATA);
  prepare(g, true);
  guest_idt64(g, 0x40, 0xe, 0, SEL_CODE64, GUEST_STUBS + 0x400, 1);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_regs(g).rsp, GUEST_IST1 - 40);
  CHECK_EQ(guest_sregs(g).ss.selector, SEL_DATA);
  guest_free(g);
}

GUEST_BLOB(user64, ".code64\n"
                   "mov $0x1f000, %eax\n"
                   "push $0x33\n"
                   "push %rax\n"
                   "push $0x202\n"
                   "push $0x3b\n"
                   "push $0x10000\n"
                   "iretq\n");

/* From ring 3: RSP0, null SS with the new RPL; IRETQ back. */
static void long_rings(void) {
  static const u8 user[] = {0xcd, 0x40, 0xcd, 0x41, 0xb0, 5, 0xe6, GUEST_PORT, 0x0f, 0x0b};
  struct guest *g = guest_new();
  prepare(g, true);
  guest_load_blob(g, user64);
  guest_load(g, GUEST_USER, user, sizeof(user));
  guest_idt64(g, 0x40, 0xe, 3, SEL_CODE64, GUEST_STUBS + 0x400, 0);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(guest_regs(g).rsp, GUEST_RSP0 - 40);
  CHECK_EQ(s.ss.selector, 0);
  CHECK_EQ(s.ss.dpl, 0);
  CHECK_EQ(s.cs.selector, SEL_CODE64);
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_USER + 2);
  CHECK_EQ(guest_stack(g, 1, 8), SEL_CODE64U);
  CHECK_EQ(guest_stack(g, 2, 8), 0x202);
  CHECK_EQ(guest_stack(g, 3, 8), GUEST_STACK3);
  CHECK_EQ(guest_stack(g, 4, 8), SEL_DATA3);
  /* Gate DPL 0: #GP with the IDT error code, RIP at the INT. */
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 8), 0x41 * 8 + 2);
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_USER + 2);
  guest_write(g, guest_regs(g).rsp + 8, 8, GUEST_USER + 4);
  CHECK_EQ(guest_next(g), 5);
  CHECK_EQ(guest_sregs(g).cs.selector, SEL_CODE64U);
  CHECK_EQ(guest_sregs(g).ss.dpl, 3);
  CHECK_EQ(guest_next(g), TRAP(6));
  guest_free(g);
}

/* Gates and IRETQ find descriptors as they are now, however often they were used before. */
static void descriptors_change(void) {
  static const u8 user[] = {0xcd, 0x40, 0xe6, GUEST_PORT, 0xeb, 0xfa};
  struct guest *g = guest_new();
  prepare(g, true);
  guest_load_blob(g, user64);
  guest_load(g, GUEST_USER, user, sizeof(user));
  guest_idt64(g, 0x40, 0xe, 3, SEL_CODE64, GUEST_STUBS + 0x400, 0);
  for (unsigned n = 0; n < 24; n++) {
    unsigned avl = n >> 2 & 1;
    guest_gdt(g, SEL_CODE64, 0, ~0u, D_CODE, D_G | D_64 | avl);
    guest_gdt(g, SEL_CODE64U & ~3, 0, ~0u, D_CODE | D_DPL(3), D_G | D_64 | !avl);
    guest_gdt(g, SEL_DATA3 & ~3, 0, ~0u, D_DATA | D_DPL(3), D_G | D_32 | avl);
    guest_write(g, GUEST_TSS + 4, 8, GUEST_RSP0 - 16 * (n % 3));
    CHECK_EQ(guest_next(g), TRAP(0x40));
    CHECK_EQ(guest_regs(g).rsp, GUEST_RSP0 - 16 * (n % 3) - 40);
    CHECK_EQ(guest_sregs(g).cs.avl, avl);
    guest_next(g);
    struct kvm_sregs s = guest_sregs(g);
    CHECK_EQ(s.cs.selector, SEL_CODE64U);
    CHECK_EQ(s.cs.avl, !avl);
    CHECK_EQ(s.ss.avl, avl);
  }
  guest_write(g, GUEST_IDT + 0x40 * 16 + 5, 1, 0x8e); /* DPL 0 */
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 8), 0x40 * 8 + 2);
  guest_write(g, GUEST_IDT + 0x40 * 16 + 5, 1, 0x6e); /* absent */
  CHECK_EQ(guest_next(g), TRAP(11));
  CHECK_EQ(guest_stack(g, 0, 8), 0x40 * 8 + 2);
  guest_write(g, GUEST_IDT + 0x40 * 16 + 5, 1, 0xee);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  guest_gdt(g, SEL_DATA3 & ~3, 0, ~0u, (D_DATA & ~0x80) | D_DPL(3), D_G | D_32); /* absent */
  CHECK_EQ(guest_next(g), TRAP(12));
  CHECK_EQ(guest_stack(g, 0, 8), SEL_DATA3 & ~3u);
  guest_free(g);
}

/* IRETQ that must fail leaves everything as it was. */
static void iret_errors(void) {
  static const struct {
    u64 rip, cs, ss;
    u8 vector;
    u32 error;
  } t[] = {
      {GUEST_USER, SEL_CODE64U, SEL_DATA, 13, SEL_DATA}, /* SS RPL */
      {GUEST_USER, SEL_CODE64U, 0, 13, 0},               /* null SS in ring 3 */
      {GUEST_USER, SEL_CODE64U, 3, 13, 0},
      {GUEST_USER, SEL_DATA3, SEL_DATA3, 13, SEL_DATA3 & ~3u}, /* CS not code */
      {GUEST_USER, 0, SEL_DATA3, 13, 0},
      {0x800000000000, SEL_CODE64U, SEL_DATA3, 13, 0},       /* target not canonical */
      {GUEST_USER, SEL_CODE64U, SEL_FREE | 3, 12, SEL_FREE}, /* absent stack */
  };
  static const u8 iretq[] = {0x48, 0xcf};
  struct guest *g = guest_new();
  for (unsigned n = 0; n < sizeof(t) / sizeof(t[0]); n++) {
    prepare(g, true);
    guest_gdt(g, SEL_FREE, 0, 0xffff, 0x13 | D_DPL(3), D_32);
    guest_load(g, GUEST_CODE, iretq, sizeof(iretq));
    struct kvm_regs r = guest_regs(g);
    r.rsp = GUEST_STACK0 - 64;
    guest_set_regs(g, &r);
    guest_write(g, r.rsp, 8, t[n].rip);
    guest_write(g, r.rsp + 8, 8, t[n].cs);
    guest_write(g, r.rsp + 16, 8, 0x202);
    guest_write(g, r.rsp + 24, 8, GUEST_STACK3);
    guest_write(g, r.rsp + 32, 8, t[n].ss);
    CHECK_EQ(guest_next(g), TRAP(t[n].vector));
    CHECK_EQ(guest_stack(g, 0, 8), t[n].error);
    CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE);
    CHECK_EQ(guest_stack(g, 2, 8), SEL_CODE64);
    CHECK_EQ(guest_stack(g, 4, 8), GUEST_STACK0 - 64);
  }
  guest_free(g);
}

/* External interrupts set the EXT bit in error codes of their delivery. */
static void ext_bit(void) {
  static const u8 wait[] = {0xfb, 0x90, 0xeb, 0xfd};
  struct guest *g = guest_new();
  struct kvm_interrupt irq = {.irq = 0x50};
  prepare(g, true);
  guest_load(g, GUEST_CODE, wait, sizeof(wait));
  struct kvm_regs r = guest_regs(g);
  r.rflags |= 0x200;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_INTERRUPT, &irq), 0);
  guest_write(g, GUEST_IDT + 0x50 * 16 + 5, 1, 0x0e);
  CHECK_EQ(guest_next(g), TRAP(11));
  CHECK_EQ(guest_stack(g, 0, 8), 0x50 * 8 + 3);
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE);
  guest_free(g);
}

/* 20.1.4: real mode, three words, no error code. */
static void real_mode(void) {
  static const u8 code[] = {0xfb, 0xcd, 0x40}, stub[] = {0xe6, STUB_PORT, 0xcf};
  struct guest *g = guest_new();
  guest_write(g, 0x40 * 4, 4, 0x0100 << 16 | 0x5000);
  guest_load(g, 0x6000, stub, sizeof(stub));
  guest_load(g, GUEST_CODE, code, sizeof(code));
  guest_real(g, 0x800, 0);
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(g->run->io.port, STUB_PORT);
  CHECK_EQ(guest_sregs(g).cs.selector, 0x100);
  CHECK_EQ(guest_regs(g).rsp, 0x7000 - 6);
  CHECK_EQ(guest_stack(g, 0, 2), 3);
  CHECK_EQ(guest_stack(g, 1, 2), 0x800);
  CHECK_EQ(guest_stack(g, 2, 2), 0x202);
  CHECK_EQ(guest_regs(g).rflags & 0x200, 0);
  guest_free(g);
}

GUEST_MAIN({"faults32", faults32}, {"faults64", faults64}, {"idt-errors", idt_errors}, {"gate-types", gate_types},
           {"long-frames", long_frames}, {"long-rings", long_rings}, {"descriptors-change", descriptors_change}, {"iret-errors", iret_errors}, {"ext-bit", ext_bit},
           {"real-mode", real_mode})
