/* Double and triple faults: SDM Vol. 3A 6.15, tables 6-4 and 6-5. */
#include "harness.h"

static const u8 gp[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x8b, 0x00}; /* non-canonical load */
static const u8 pf[] = {0x8b, 0x04, 0x25, 0, 0, 0, 0x40};                   /* unmapped load */
static const u8 ud[] = {0x0f, 0x0b};
static const u8 int40[] = {0xcd, 0x40};

static void absent(struct guest *g, unsigned vector) {
  guest_write(g, GUEST_IDT + vector * 16 + 5, 1, 0x0e);
}

static struct guest *start(const u8 *code, unsigned size) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, size);
  return g;
}
#define START(code) start(code, sizeof(code))

static void expect_df(struct guest *g, u64 rip) {
  CHECK_EQ(guest_next(g), TRAP(8));
  CHECK_EQ(guest_stack(g, 0, 8), 0);
  CHECK_EQ(guest_stack(g, 1, 8), rip);
  guest_free(g);
}

static void contributory_twice(void) {
  struct guest *g = START(gp);
  absent(g, 13);
  expect_df(g, GUEST_CODE + 10);
}

static void page_then_contributory(void) {
  struct guest *g = START(pf);
  absent(g, 14);
  struct kvm_sregs s;
  CHECK_EQ(guest_next(g), TRAP(8));
  s = guest_sregs(g);
  CHECK_EQ(s.cr2, 0x40000000);
  CHECK_EQ(guest_stack(g, 0, 8), 0);
  guest_free(g);
}

/* The handler's stack is unmapped: #PF while a #PF is delivered. */
static void page_twice(void) {
  struct guest *g = START(pf);
  guest_idt64(g, 8, 0xe, 0, SEL_CODE64, GUEST_STUBS + 8 * 16, 1);
  struct kvm_regs r = guest_regs(g);
  r.rsp = 0x50000000;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), TRAP(8));
  CHECK_EQ(guest_regs(g).rsp, GUEST_IST1 - 48);
  CHECK_EQ(guest_sregs(g).cr2, 0x50000000 - 8); /* the first push */
  guest_free(g);
}

/* #GP whose delivery page-faults: the page fault is handled. */
static void contributory_then_page(void) {
  struct guest *g = START(gp);
  guest_idt64(g, 14, 0xe, 0, SEL_CODE64, GUEST_STUBS + 14 * 16, 1);
  struct kvm_regs r = guest_regs(g);
  r.rsp = 0x50000000;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), TRAP(14));
  CHECK_EQ(guest_stack(g, 0, 8), 2);
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE + 10);
  guest_free(g);
}

static void benign_then_contributory(void) {
  struct guest *g = START(ud);
  absent(g, 6);
  CHECK_EQ(guest_next(g), TRAP(11));
  CHECK_EQ(guest_stack(g, 0, 8), 6 * 8 + 3); /* EXT */
  guest_free(g);
}

/* INT n is benign: what its delivery raises is an ordinary fault of the INT. */
static void software_interrupt(void) {
  struct guest *g = START(int40);
  absent(g, 0x40);
  absent(g, 11);
  expect_df(g, GUEST_CODE);
}

static void triple(void) {
  struct guest *g = START(gp);
  absent(g, 13);
  absent(g, 8);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_SHUTDOWN));
  guest_free(g);
}

static void no_idt(void) {
  struct guest *g = START(ud);
  struct kvm_sregs s = guest_sregs(g);
  s.idt.limit = 0;
  guest_set_sregs(g, &s);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_SHUTDOWN));
  guest_free(g);
}

static void real_no_idt(void) {
  struct guest *g = guest_new();
  guest_load(g, GUEST_CODE, ud, sizeof(ud));
  guest_real(g, 0, GUEST_CODE);
  struct kvm_sregs s = guest_sregs(g);
  s.idt.limit = 0;
  guest_set_sregs(g, &s);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_SHUTDOWN));
  guest_free(g);
}

/* ---- table 6-5 as a whole: any event, and a fault of its delivery ---- */

enum class { BENIGN, CONTRIBUTORY, PAGE, DOUBLE };
static enum class class_of(unsigned vector) {
  switch (vector){
    case 0 : case 10 : case 11 : case 12 : case 13 : case 21 : return CONTRIBUTORY; case 14 : case 20 : return PAGE;
    case 8 : return DOUBLE;
    default : return BENIGN;
  }
}

/* How the gate of the first event is broken, and the fault that makes. */
enum broken { ABSENT, BAD_TYPE, BAD_CS, STACK_UNMAPPED, STACK_NOT_CANONICAL, N_BROKEN };
static const u8 fault_of[N_BROKEN] = {11, 13, 13, 14, 12};

static void break_gate(struct guest *g, unsigned vector, enum broken how) {
  u64 stub = GUEST_STUBS + vector * 16;
  guest_write(g, GUEST_TSS + 0x2c, 8, 0x50000000);         /* IST2 */
  guest_write(g, GUEST_TSS + 0x34, 8, 0x8000000000000000); /* IST3 */
  guest_idt64(g, vector, how == BAD_TYPE ? 0xc : 0xe, 0, how == BAD_CS ? SEL_DATA : SEL_CODE64, stub,
              how == STACK_UNMAPPED        ? 2
              : how == STACK_NOT_CANONICAL ? 3
                                           : 0);
  if (how == ABSENT) absent(g, vector);
}

static void inject_exception(struct guest *g, unsigned vector) {
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  e.exception.injected = 1;
  e.exception.nr = (u8)vector;
  e.exception.has_error_code = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21;
  e.exception.error_code = 0;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
}

static unsigned expected(unsigned first, unsigned second) {
  enum class a = class_of(first), b = class_of(second);
  if (a == DOUBLE) return EXIT(KVM_EXIT_SHUTDOWN);
  if (a == CONTRIBUTORY && b == CONTRIBUTORY) return TRAP(8);
  if (a == PAGE && b != BENIGN) return TRAP(8);
  return TRAP(second);
}

static void table(void) {
  static const u8 nop[] = {0x90};
  for (unsigned vector = 0; vector < 32; vector++)
    for (unsigned how = 0; how < N_BROKEN; how++) {
      struct guest *g = START(nop);
      break_gate(g, vector, how);
      if (vector == 2)
        CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
      else
        inject_exception(g, vector);
      unsigned want = expected(vector, fault_of[how]), got = guest_next(g);
      CHECK_EQ(got, want);
      if (got == want && want != EXIT(KVM_EXIT_SHUTDOWN)) {
        CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE);
        if (want == TRAP(8)) CHECK_EQ(guest_stack(g, 0, 8), 0);
        if (want == TRAP(11)) CHECK_EQ(guest_stack(g, 0, 8), vector * 8 + 3);
        if (want == TRAP(13)) CHECK_EQ(guest_stack(g, 0, 8), how == BAD_CS ? SEL_DATA + 1 : vector * 8 + 3);
        if (want == TRAP(14)) CHECK_EQ(guest_sregs(g).cr2, 0x50000000 - 8);
      }
      guest_free(g);
    }
}

GUEST_MAIN({"contributory-twice", contributory_twice}, {"page-then-contributory", page_then_contributory},
           {"page-twice", page_twice}, {"contributory-then-page", contributory_then_page},
           {"benign-then-contributory", benign_then_contributory}, {"software-interrupt", software_interrupt}, {"triple", triple},
           {"table", table}, {"no-idt", no_idt}, {"real-no-idt", real_no_idt})
