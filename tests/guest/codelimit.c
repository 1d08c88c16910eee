/* The end of a code segment: EIP goes on behind FFFFh in 16-bit code, the limit decides; the same code reached through segments
 * with different bases and limits. */
#include "harness.h"

/* Linear 10000h: reports 1 and goes to CODE again. */
#define CODE 0x8000
GUEST_BLOB(real, ".code16\n"
                 "mov $3, %cx\n"
                 "1: ljmp $0xf00, $0xff0\n" /* linear fff0, in the middle of a segment */
                 ".org 0x40\n" REPORT(2) "loop 1b\n"
                                         "ljmp $0, $0xfff0\n"                   /* the same code at the end of one */
                                         ".org 0x80\n" REPORT(3) "hlt\n");      /* the handler of #GP */
static const u8 beyond[] = {0xb0, 1, 0xe6, GUEST_PORT, 0xea, 0x40, 0x80, 0, 0}; /* mov $1, %al; report; ljmp $0, $8040h */

static void fill_nops(struct guest *g, u64 at, unsigned n) {
  while (n--) guest_write(g, at++, 1, 0x90);
}

/* Code that has run through a segment whose limit is far does not run past the limit of another. */
static void real_limit(void) {
  struct guest *g = guest_new();
  guest_real(g, 0, CODE);
  guest_load_blob(g, real);
  fill_nops(g, 0xfff0, 16);
  guest_load(g, 0x10000, beyond, sizeof(beyond));
  guest_write(g, 13 * 4, 4, CODE + 0x80);
  for (unsigned n = 0; n < 3; n++) {
    CHECK_EQ(guest_next(g), 1);
    CHECK_EQ(guest_next(g), 2);
  }
  CHECK_EQ(guest_next(g), 3);
  CHECK_EQ(guest_stack(g, 0, 2), 0); /* EIP 10000h, as far as 16 bits hold it */
  CHECK_EQ(guest_stack(g, 1, 2), 0);
  guest_free(g);
}

/* In protected mode the frame shows all of EIP.  16-bit and 32-bit code; where it begins, what is at the end, which EIP the fault
 * has. */
static void run_off(struct guest *g, unsigned limit, bool wide, u32 eip, u32 want) {
  guest_gdt(g, SEL_FREE, 0x100000, limit, D_CODE, wide ? D_32 : 0);
  static const u8 jump[] = {0xff, 0x2b}; /* ljmp *(%ebx) */
  guest_load(g, GUEST_CODE, jump, sizeof(jump));
  guest_write(g, GUEST_DATA, 4, eip);
  guest_write(g, GUEST_DATA + 4, 2, SEL_FREE);
  struct kvm_sregs s = guest_sregs(g);
  s.cs.base = 0;
  s.cs.limit = ~0u;
  s.cs.selector = SEL_CODE32;
  s.cs.db = 1;
  guest_set_sregs(g, &s);
  struct kvm_regs r = {.rip = GUEST_CODE, .rsp = GUEST_STACK0, .rflags = 2, .rbx = GUEST_DATA};
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), want < 0x20000 ? TRAP(13) : TRAP(3));
  unsigned n = want < 0x20000;
  if (n) CHECK_EQ(guest_stack(g, 0, 4), 0);
  CHECK_EQ(guest_stack(g, n, 4), want & 0x1ffff);
  CHECK_EQ(guest_stack(g, n + 1, 4), SEL_FREE);
}
#define BREAKPOINT(at) (0x20000 | (at))

static void protected_limit(void) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  fill_nops(g, 0x100000, 0x20000);
  guest_write(g, 0x100010, 1, 0xcc);
  guest_write(g, 0x110010, 1, 0xcc);
  for (unsigned wide = 0; wide < 2; wide++) {
    run_off(g, 0xffff, wide, 0xfff0, 0x10000);
    run_off(g, 0x1ffff, wide, 0xfff0, BREAKPOINT(0x10011));
    run_off(g, 0x10008, wide, 0xfff0, 0x10009);
    run_off(g, 0xfff8, wide, 0xfff0, 0xfff9);
  }
  guest_write(g, 0x10ffff, 1, 0xb8); /* an instruction across the end */
  run_off(g, 0xffff, false, 0xfff0, 0xffff);
  run_off(g, 0x10001, false, 0xfff0, 0x10002);
  run_off(g, 0x10000, false, 0xfff0, 0xffff);
  guest_write(g, 0x10fffe, 2, 0x10eb); /* a short jump has 16 bits */
  run_off(g, 0x1ffff, false, 0xfff0, BREAKPOINT(0x11));
  run_off(g, 0x1ffff, true, 0xfff0, BREAKPOINT(0x10011));
  guest_free(g);
}

GUEST_MAIN({"real-limit", real_limit}, {"protected-limit", protected_limit})
