/* Far transfers between rings: call gates with parameters, RETF to the outer ring, conforming code, 64-bit call gates, and their
 * errors. */
#include "harness.h"

#define GATE     SEL_FREE
#define GATE_BAD (SEL_FREE + 0x10)

/* Ring 0 returns to ring 3 with a data segment it may not keep; ring 3 calls through the gate with two parameters. */
GUEST_BLOB(rings,
           ".code32\n"
           "mov $0x33, %eax\n"
           "mov %eax, %es\n"
           "push $0x33\n"
           "push $0x1f000\n"
           "push $0x43\n"
           "push $" AT(rings,
                       1f) "\n"
                           "lret\n"
                           "1: " REPORT(1) "push $0x11111111\n"
                                           "push $0x22222222\n"
                                           "lcall $0x8b, $0\n" REPORT(3) "mov $0x20, %eax\n"
                                                                         "ud2\n"
                                                                         ".balign 64\n"
                                                                         ".globl rings_gate\nrings_gate: " REPORT(2) "lret $8\n");
extern const u8 rings_gate[];

static struct guest *start32(void) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load_blob(g, rings);
  guest_gate32(g, GATE, 12, 3, SEL_CODE32, GUEST_CODE + (u32)(rings_gate - rings_start), 2);
  return g;
}

static void inner_and_back(void) {
  struct guest *g = start32();
  CHECK_EQ(guest_next(g), 1);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SEL_CODE32U);
  CHECK_EQ(s.ss.selector, SEL_DATA3);
  CHECK_EQ(s.ds.selector, 0); /* DPL 0 data did not survive */
  CHECK_EQ(s.ds.unusable, 1);
  CHECK_EQ(s.es.selector, SEL_DATA3);
  CHECK_EQ(guest_regs(g).rsp, GUEST_STACK3);
  CHECK_EQ(guest_next(g), 2);
  s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SEL_CODE32);
  CHECK_EQ(s.ss.selector, SEL_DATA);
  CHECK_EQ(guest_regs(g).rsp, GUEST_RSP0 - 24);
  CHECK_EQ(guest_stack(g, 1, 4), SEL_CODE32U);
  CHECK_EQ(guest_stack(g, 2, 4), 0x22222222);
  CHECK_EQ(guest_stack(g, 3, 4), 0x11111111);
  CHECK_EQ(guest_stack(g, 4, 4), GUEST_STACK3 - 8);
  CHECK_EQ(guest_stack(g, 5, 4), SEL_DATA3);
  CHECK_EQ(guest_next(g), 3);
  s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SEL_CODE32U);
  CHECK_EQ(guest_regs(g).rsp, GUEST_STACK3); /* both sides released the parameters */
  CHECK_EQ(guest_next(g), TRAP(6));
  guest_free(g);
}

/* A fault on the way in leaves the caller untouched. */
static void gate_errors(void) {
  struct {
    unsigned offset, size;
    u64 value;
    u8 vector;
    u32 error;
  } t[] = {
      {GUEST_GDT + GATE + 5, 1, 0x8c, 13, GATE},             /* gate DPL 0 */
      {GUEST_GDT + GATE + 5, 1, 0x6c, 11, GATE},             /* gate absent */
      {GUEST_GDT + GATE + 2, 2, 0, 13, 0},                   /* no code selector */
      {GUEST_GDT + GATE + 2, 2, SEL_DATA, 13, SEL_DATA},     /* not code */
      {GUEST_GDT + SEL_CODE32 + 5, 1, 0x1b, 11, SEL_CODE32}, /* code absent */
      {GUEST_TSS + 8, 2, 0, 10, 0},                          /* no stack in the TSS */
      {GUEST_TSS + 8, 2, SEL_DATA3, 10, SEL_DATA3 & ~3u},    /* its RPL */
      {GUEST_TSS + 8, 2, SEL_CODE32, 10, SEL_CODE32},        /* not data */
      {GUEST_TSS + 8, 2, GATE_BAD, 12, GATE_BAD},            /* absent stack */
  };
  for (unsigned n = 0; n < sizeof(t) / sizeof(t[0]); n++) {
    struct guest *g = start32();
    guest_gdt(g, GATE_BAD, 0, ~0u, 0x13, D_G | D_32);
    CHECK_EQ(guest_next(g), 1);
    /* The fault itself needs a good way into ring 0: a second code segment, and a task gate is not wanted, so SS0 is put right by
     * hand below. */
    bool stack = t[n].offset == GUEST_TSS + 8, code = t[n].offset == GUEST_GDT + SEL_CODE32 + 5;
    unsigned other = GATE_BAD + 0x10;
    guest_gdt(g, other, 0, ~0u, D_CODE, D_G | D_32);
    if (code) guest_idt32(g, t[n].vector, 0xe, 0, (u16)other, GUEST_STUBS + t[n].vector * 16u);
    if (stack) { /* stay in ring 3's reach: a conforming handler runs on the caller's stack */
      guest_idt32(g, t[n].vector, 0xe, 0, SEL_CONF, GUEST_STUBS + t[n].vector * 16u);
    }
    guest_write(g, t[n].offset, t[n].size, t[n].value);
    CHECK_EQ(guest_next(g), TRAP(t[n].vector));
    CHECK_EQ(guest_stack(g, 0, 4), t[n].error);
    u32 eip = (u32)guest_stack(g, 1, 4);
    CHECK_EQ(guest_read(g, eip, 1), 0x9a); /* still at the CALL */
    guest_free(g);
  }
}

/* Conforming code runs at the caller's level. */
GUEST_BLOB(conforming,
           ".code32\n"
           "push $0x33\n"
           "push $0x1f000\n"
           "push $0x43\n"
           "push $" AT(conforming, 1f) "\n"
                                       "lret\n"
                                       "1: lcall $0x70, $" AT(conforming, 2f) "\n" REPORT(2) "ud2\n"
                                                                                             "2: " REPORT(1) "lret\n");

static void conforming_code(void) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load_blob(g, conforming);
  CHECK_EQ(guest_next(g), 1);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SEL_CONF | 3);
  CHECK_EQ(s.ss.dpl, 3);
  CHECK_EQ(guest_stack(g, 1, 4), SEL_CODE32U);
  CHECK_EQ(guest_next(g), 2);
  CHECK_EQ(guest_sregs(g).cs.selector, SEL_CODE32U);
  guest_free(g);
}

/* 16-byte gate from 64-bit ring 3. */
GUEST_BLOB(call64,
           ".code64\n"
           "push $0x33\n"
           "push $0x1f000\n"
           "push $0x202\n"
           "push $0x3b\n"
           "push $" AT(call64, 1f) "\n"
                                   "iretq\n"
                                   "1: lcall *0x1e000\n" REPORT(2) "ud2\n"
                                                                   ".balign 64\n"
                                                                   ".globl call64_gate\ncall64_gate: " REPORT(1) "lretq\n");
extern const u8 call64_gate[];

static void gate64(void) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_map(g, GUEST_CODE, GUEST_CODE, 0x1000, P_W | P_U);
  guest_load_blob(g, call64);
  guest_gate32(g, GATE, 12, 3, SEL_CODE64, GUEST_CODE + (u32)(call64_gate - call64_start), 0);
  guest_gdt_raw(g, GATE + 8, 0);
  guest_write(g, 0x1e004, 2, GATE | 3);
  CHECK_EQ(guest_next(g), 1);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SEL_CODE64);
  CHECK_EQ(s.ss.selector, 0);
  CHECK_EQ(guest_regs(g).rsp, GUEST_RSP0 - 32);
  CHECK_EQ(guest_stack(g, 1, 8), SEL_CODE64U);
  CHECK_EQ(guest_stack(g, 2, 8), GUEST_STACK3);
  CHECK_EQ(guest_stack(g, 3, 8), SEL_DATA3);
  CHECK_EQ(guest_next(g), 2);
  CHECK_EQ(guest_sregs(g).cs.selector, SEL_CODE64U);
  guest_free(g);
  /* The upper half must have type 0, the target must be 64-bit code. */
  for (unsigned n = 0; n < 2; n++) {
    g = guest_new();
    guest_long(g, GUEST_CODE);
    guest_map(g, GUEST_CODE, GUEST_CODE, 0x1000, P_W | P_U);
    guest_load_blob(g, call64);
    guest_gate32(g, GATE, 12, 3, n ? SEL_CODE32 : SEL_CODE64, GUEST_CODE, 0);
    guest_gdt_raw(g, GATE + 8, n ? 0 : 0x010000000000);
    guest_write(g, 0x1e004, 2, GATE | 3);
    CHECK_EQ(guest_next(g), TRAP(13));
    CHECK_EQ(guest_stack(g, 0, 8), n ? SEL_CODE32 : GATE);
    guest_free(g);
  }
}

/* 16-bit stack that wraps inside the frame. */
static void wrapped_stack(void) {
  static const u8 int40[] = {0xcd, 0x40};
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, int40, sizeof(int40));
  guest_gdt(g, SEL_FREE, 0x100000, 0xffff, D_DATA, 0);
  struct kvm_sregs s = guest_sregs(g);
  s.ss = (struct kvm_segment){.selector = SEL_FREE, .base = 0x100000, .limit = 0xffff, .type = 3, .s = 1, .present = 1};
  guest_set_sregs(g, &s);
  struct kvm_regs r = guest_regs(g);
  r.rsp = 0xabcd0004;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_regs(g).rsp, 0xabcdfff8);
  CHECK_EQ(guest_read(g, 0x100000, 4) & 0xffff, 2); /* EFLAGS */
  CHECK_EQ(guest_read(g, 0x10fffc, 4), SEL_CODE32);
  CHECK_EQ(guest_read(g, 0x10fff8, 4), GUEST_CODE + 2);
  guest_free(g);
}

GUEST_MAIN({"inner-and-back", inner_and_back}, {"gate-errors", gate_errors}, {"conforming-code", conforming_code},
           {"gate64", gate64}, {"wrapped-stack", wrapped_stack})
