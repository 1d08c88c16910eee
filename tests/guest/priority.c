/* Several events at one instruction boundary: what is taken first (SDM Vol. 3A table 6-2), and what each frame shows. */
#include <errno.h>
#include "harness.h"

#define CODE_OUT 0xe6, 1 /* exits: the boundary behind it is where everything meets */
#define STUB(v)  (GUEST_STUBS + (v)*16)
#define FLAG_TF  0x100u
#define FLAG_IF  0x200u
#define FLAG_RF  0x10000u
#define VECTOR   0x50

static struct guest *start(const u8 *code, unsigned size, u64 flags) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, size);
  struct kvm_regs r = guest_regs(g);
  r.rflags |= flags;
  guest_set_regs(g, &r);
  return g;
}
#define START(code, flags) start(code, sizeof(code), flags)

static void inject(struct guest *g, unsigned vector) {
  struct kvm_interrupt irq = {.irq = vector};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_INTERRUPT, &irq), 0);
}
static void nmi(struct guest *g) {
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
}
static void set_dr(struct guest *g, u64 dr0, u64 dr7) {
  struct kvm_debugregs d;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &d), 0);
  d.db[0] = dr0;
  d.dr7 = dr7;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &d), 0);
}
/* To the exit of the OUT, not past it. */
static void to_out(struct guest *g) {
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(g->run->io.port, 1);
}
/* The next stub, entered from there. */
static void taken(struct guest *g, unsigned vector, u64 from) {
  CHECK_EQ(guest_next(g), TRAP(vector));
  CHECK_EQ(guest_stack(g, 0, 8), from);
}

/* The interrupts of a local APIC, which the guest switches on. */
static struct guest *start_apic(void) {
  /* movl $0x1ff, (%rbx): enabled; report 1; sti; nop; nop; report 7 */
  static const u8 code[] = {0xc7, 0x03, 0xff, 1, 0, 0, 0xb0, 1, 0xe6, GUEST_PORT, 0xfb, 0x90, 0x90, 0xb0, 7, 0xe6, GUEST_PORT};
  struct guest *g = guest_new_chips();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, sizeof(code));
  guest_map(g, 0xfee00000, 0xfee00000, 0x1000, P_W);
  struct kvm_regs r = guest_regs(g);
  r.rbx = 0xfee000f0;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  return g;
}
static void message(struct guest *g, unsigned vector) {
  struct kvm_msi m = {.address_lo = 0xfee00000, .data = vector};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SIGNAL_MSI, &m), 1);
}
#define NOPS (GUEST_CODE + 11)

/* An NMI before an interrupt.  Through a trap gate IF stays set: the interrupt comes before the NMI's first instruction. */
static void nmi_interrupt(void) {
  for (unsigned k = 0; k < 2; k++) {
    struct guest *g = start_apic();
    struct kvm_regs r = guest_regs(g);
    r.rip = NOPS;
    r.rflags |= FLAG_IF;
    guest_set_regs(g, &r);
    if (k) guest_idt64(g, 2, 0xf, 0, SEL_CODE64, STUB(2), 0);
    message(g, VECTOR);
    nmi(g);
    taken(g, k ? VECTOR : 2, k ? STUB(2) : NOPS);
    taken(g, k ? 2 : VECTOR, NOPS);
    CHECK_EQ(guest_next(g), 7);
    guest_free(g);
  }
}

/* Of several interrupts the highest vector; the others wait for its EOI, which does not come here. */
static void several_interrupts(void) {
  struct guest *g = start_apic();
  message(g, VECTOR);
  message(g, VECTOR + 0x21);
  message(g, VECTOR + 0x20);
  taken(g, VECTOR + 0x21, NOPS + 1); /* behind the shadow of STI */
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* What the client injects is on its way already: before an NMI. */
static void injected_interrupt(void) {
  static const u8 code[] = {0x90, 0x90, 0xb0, 7, 0xe6, GUEST_PORT};
  struct guest *g = START(code, FLAG_IF);
  nmi(g);
  inject(g, VECTOR);
  taken(g, 2, STUB(VECTOR));
  taken(g, VECTOR, GUEST_CODE);
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* The single-step trap of the last instruction before both; they follow at its handler's first instruction as its gate allows. */
static void trap_first(void) {
  static const u8 code[] = {CODE_OUT, 0x90, 0xb0, 7, 0xe6, GUEST_PORT};
  struct guest *g = START(code, FLAG_IF | FLAG_TF);
  to_out(g);
  nmi(g);
  inject(g, VECTOR);
  taken(g, 2, STUB(1));
  CHECK_EQ(guest_stack(g, 2, 8) & (FLAG_TF | FLAG_IF), 0);
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 2);
  CHECK_EQ(guest_stack(g, 2, 8) & (FLAG_TF | FLAG_IF), FLAG_TF | FLAG_IF);
  guest_write(g, guest_regs(g).rsp + 16, 8, FLAG_IF | 2); /* no more steps */
  taken(g, VECTOR, GUEST_CODE + 2);
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* A data breakpoint's trap likewise. */
static void data_trap_first(void) {
  static const u8 code[] = {0x6e, 0x90, 0xb0, 7, 0xe6, GUEST_PORT}; /* outsb */
  struct guest *g = START(code, FLAG_IF);
  struct kvm_regs r = guest_regs(g);
  r.rdx = 1;
  r.rsi = GUEST_DATA;
  guest_set_regs(g, &r);
  set_dr(g, GUEST_DATA, 0x401 | 3 << 16); /* reads and writes, 1 byte, local 0 */
  to_out(g);
  nmi(g);
  inject(g, VECTOR);
  taken(g, 2, STUB(1));
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 1);
  taken(g, VECTOR, GUEST_CODE + 1);
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* An interrupt before the breakpoint on the next instruction, whose fault comes after the return. */
static void interrupt_before_breakpoint(void) {
  static const u8 code[] = {CODE_OUT, 0x90, 0xb0, 7, 0xe6, GUEST_PORT};
  struct guest *g = START(code, FLAG_IF);
  set_dr(g, GUEST_CODE + 2, 0x401);
  to_out(g);
  inject(g, VECTOR);
  taken(g, VECTOR, GUEST_CODE + 2);
  CHECK_EQ(guest_stack(g, 2, 8) & FLAG_RF, 0);
  taken(g, 1, GUEST_CODE + 2);
  CHECK_EQ(guest_stack(g, 2, 8) & FLAG_RF, 0);
  guest_write(g, guest_regs(g).rsp + 16, 8, FLAG_IF | FLAG_RF | 2);
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* The breakpoint before the faults of fetching the same instruction. */
static void breakpoint_before_fetch(void) {
  static const u8 code[] = {0xff, 0xe3}; /* jmp *%rbx */
  struct guest *g = START(code, 0);
  struct kvm_regs r = guest_regs(g);
  r.rbx = 0x50000000; /* not mapped */
  guest_set_regs(g, &r);
  set_dr(g, 0x50000000, 0x401);
  taken(g, 1, 0x50000000);
  guest_write(g, guest_regs(g).rsp + 16, 8, FLAG_RF | 2);
  CHECK_EQ(guest_next(g), TRAP(14));
  CHECK_EQ(guest_stack(g, 1, 8), 0x50000000);
  guest_free(g);
}

/* An exception that the client puts back, before everything else. */
static void injected_first(void) {
  static const u8 code[] = {0x90, 0xb0, 7, 0xe6, GUEST_PORT};
  struct guest *g = START(code, FLAG_IF);
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  e.exception.injected = 1;
  e.exception.nr = 6;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
  nmi(g);
  inject(g, VECTOR);
  taken(g, 2, STUB(6));
  taken(g, 6, GUEST_CODE);
  taken(g, VECTOR, GUEST_CODE);
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* KVM keeps one NMI beside the one that is handled: of five two come, and of five during a handler one. */
static void nmi_count(void) {
  static const u8 code[] = {0x90, 0xb0, 7, 0xe6, GUEST_PORT};
  struct guest *g = START(code, 0);
  for (unsigned n = 0; n < 5; n++) nmi(g);
  taken(g, 2, GUEST_CODE);
  for (unsigned n = 0; n < 5; n++) nmi(g);
  taken(g, 2, GUEST_CODE);
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* A fault of the next instruction comes after an interrupt. */
static void interrupt_before_fault(void) {
  static const u8 code[] = {CODE_OUT, 0x0f, 0x0b};
  struct guest *g = START(code, FLAG_IF);
  to_out(g);
  inject(g, VECTOR);
  taken(g, VECTOR, GUEST_CODE + 2);
  taken(g, 6, GUEST_CODE + 2);
  guest_free(g);
}

/* SMI before NMI, which waits for RSM. */
static void smi_before_nmi(void) {
  static const u8 code[] = {0x90, 0xb0, 7, 0xe6, GUEST_PORT}, handler[] = {0xb0, 8, 0xe6, GUEST_PORT, 0x0f, 0xaa};
  struct guest *g = START(code, 0);
  guest_add_slot(g, 1, 0, g->mem, GUEST_MEM); /* the memory of SMM */
  guest_load(g, 0x38000, handler, sizeof(handler));
  if (guest_ioctl(g->vcpu, KVM_SMI, NULL) < 0) {
    CHECK(errno == ENOTTY || errno == EINVAL); /* the KVM has no SMM */
    guest_free(g);
    return;
  }
  nmi(g);
  CHECK_EQ(guest_next(g), 8);
  taken(g, 2, GUEST_CODE);
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

GUEST_MAIN({"nmi-interrupt", nmi_interrupt}, {"several-interrupts", several_interrupts},
           {"injected-interrupt", injected_interrupt}, {"trap-first", trap_first}, {"data-trap-first", data_trap_first},
           {"interrupt-before-breakpoint", interrupt_before_breakpoint}, {"breakpoint-before-fetch", breakpoint_before_fetch},
           {"injected-first", injected_first}, {"nmi-count", nmi_count}, {"interrupt-before-fault", interrupt_before_fault},
           {"smi-before-nmi", smi_before_nmi})
