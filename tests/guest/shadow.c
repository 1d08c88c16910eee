/* Interrupt windows: the shadows of STI and MOV SS, KVM_INTERRUPT, NMI blocking until IRET. */
#include <errno.h>
#include "harness.h"

static struct guest *start(const u8 *code, unsigned size) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, size);
  return g;
}
#define START(code) start(code, sizeof(code))

static void inject(struct guest *g, unsigned vector) {
  struct kvm_interrupt irq = {.irq = vector};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_INTERRUPT, &irq), 0);
}

/* KVM_EXIT_IRQ_WINDOW_OPEN comes when IF is set and STI's shadow is over. */
static void sti_window(void) {
  static const u8 code[] = {0x90, 0xfb, 0x90, 0x90, 0xeb, 0xfe};
  struct guest *g = START(code);
  g->run->request_interrupt_window = 1;
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_IRQ_WINDOW_OPEN));
  CHECK_EQ(g->run->ready_for_interrupt_injection, 1);
  CHECK_EQ(g->run->if_flag, 1);
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 3);
  g->run->request_interrupt_window = 0;
  inject(g, 0x50);
  CHECK_EQ(guest_next(g), TRAP(0x50));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 3);
  guest_free(g);
}

/* STI; CLI: no window at all. */
static void sti_cli(void) {
  static const u8 code[] = {0xfb, 0xfa, 0xb0, 9, 0xe6, GUEST_PORT};
  struct guest *g = START(code);
  g->run->request_interrupt_window = 1;
  CHECK_EQ(guest_next(g), 9);
  guest_free(g);
}

/* MOV SS holds interrupts off for one instruction. */
static void mov_ss_window(void) {
  static const u8 code[] = {0xfb, 0x8e, 0xd0, 0x90, 0x90, 0xeb, 0xfe};
  struct guest *g = START(code);
  struct kvm_regs r = guest_regs(g);
  r.rax = SEL_DATA;
  guest_set_regs(g, &r);
  g->run->request_interrupt_window = 1;
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_IRQ_WINDOW_OPEN));
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 4);
  guest_free(g);
}

/* IF comes back by POPF and IRET without a shadow. */
static void popf_window(void) {
  static const u8 code[] = {0x68, 0x02, 0x02, 0, 0, 0x9d, 0x90, 0x90, 0xeb, 0xfe};
  struct guest *g = START(code);
  g->run->request_interrupt_window = 1;
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_IRQ_WINDOW_OPEN));
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 6);
  guest_free(g);
}

/* The shadowed instruction is an INT through a trap gate: the window is at the handler's first instruction. */
static void sti_int(void) {
  static const u8 code[] = {0xfb, 0xcd, 0x40};
  struct guest *g = START(code);
  guest_idt64(g, 0x40, 0xf, 0, SEL_CODE64, GUEST_STUBS + 0x400, 0);
  g->run->request_interrupt_window = 1;
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_IRQ_WINDOW_OPEN));
  CHECK_EQ(guest_regs(g).rip, GUEST_STUBS + 0x400);
  guest_free(g);
}

/* KVM_GUESTDBG_BLOCKIRQ: the debugger steps past interrupts. */
static void blocked_by_debugger(void) {
  static const u8 code[] = {0x90, 0x90, 0x90};
  struct guest *g = START(code);
  struct kvm_guest_debug d = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_DEBUG));
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 1);
  d.control = 0;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
  CHECK_EQ(guest_next(g), TRAP(2));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 1);
  guest_free(g);
}

static int nmi_masked(struct guest *g) {
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  return e.nmi.masked;
}

/* A second NMI waits for the IRET of the first. */
static void nmi_blocking(void) {
  static const u8 code[] = {0x90, 0x90, 0xb0, 3, 0xe6, GUEST_PORT};
  struct guest *g = START(code);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  CHECK_EQ(guest_next(g), TRAP(2));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE);
  CHECK_EQ(nmi_masked(g), 1);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  CHECK_EQ(guest_next(g), TRAP(2)); /* after the IRETQ, before the first NOP */
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE);
  CHECK_EQ(guest_next(g), 3);
  CHECK_EQ(nmi_masked(g), 0);
  guest_free(g);
}

/* An exception handler's IRET inside the NMI handler unblocks too. */
static void nmi_nested_iret(void) {
  static const u8 code[] = {0x90, 0xb0, 3, 0xe6, GUEST_PORT}, handler[] = {0xcd, 0x40, 0xe6, STUB_PORT, 0x48, 0xcf};
  struct guest *g = START(code);
  guest_load(g, GUEST_CODE + 0x200, handler, sizeof(handler));
  guest_idt64(g, 2, 0xe, 0, SEL_CODE64, GUEST_CODE + 0x200, 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(nmi_masked(g), 1);
  guest_next(g);
  CHECK_EQ(nmi_masked(g), 0);
  CHECK_EQ(guest_next(g), 3);
  guest_free(g);
}

/* KVM_SET_VCPU_EVENTS: an exception put back. */
static void injected_exception(void) {
  static const u8 code[] = {0x90};
  struct guest *g = START(code);
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  e.exception.injected = 1;
  e.exception.nr = 13;
  e.exception.has_error_code = 1;
  e.exception.error_code = 0x1234;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 8), 0x1234);
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE);
  guest_free(g);
}

/* HLT without an interrupt controller is the client's. */
static void halt(void) {
  static const u8 code[] = {0xfb, 0xf4, 0x90, 0xeb, 0xfe};
  struct guest *g = START(code);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_HLT));
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 2);
  inject(g, 0x51);
  CHECK_EQ(guest_next(g), TRAP(0x51));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 2);
  guest_free(g);
}

/* KVM_GET_VCPU_EVENTS tells whose shadow it is, at an exit of the shielded instruction; and KVM_SET_VCPU_EVENTS makes one. */
static u32 shadow_of(struct guest *g) {
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  CHECK_EQ(e.flags & KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SHADOW);
  return e.interrupt.shadow;
}
static void set_shadow(struct guest *g, u32 shadow) {
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  e.flags = KVM_VCPUEVENT_VALID_SHADOW;
  e.interrupt.shadow = (u8)shadow;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
}

static void kinds(void) {
  /* sti; out; mov %ss, %eax; mov %eax, %ss; out; cli; mov %eax, %ss; out; sti; nop; out */
  static const u8 code[] = {0xfb, 0xe6, 1, 0x8c, 0xd0, 0x8e, 0xd0, 0xe6, 1, 0xfa, 0x8e, 0xd0, 0xe6, 1, 0xfb, 0x90, 0xe6, 1};
  static const u8 want[] = {KVM_X86_SHADOW_INT_STI, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_MOV_SS, 0};
  struct guest *g = START(code);
  for (unsigned n = 0; n < sizeof(want); n++) {
    CHECK_EQ(guest_run(g), 0);
    CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
    CHECK_EQ(shadow_of(g), want[n]);
    CHECK_EQ(g->run->ready_for_interrupt_injection, !want[n]);
  }
  guest_free(g);
}

static void set_and_get(void) {
  static const u8 code[] = {0x90, 0x90, 0x90, 0xeb, 0xfe};
  struct guest *g = START(code);
  set_shadow(g, KVM_X86_SHADOW_INT_MOV_SS);
  CHECK_EQ(shadow_of(g), KVM_X86_SHADOW_INT_MOV_SS);
  set_shadow(g, KVM_X86_SHADOW_INT_STI);
  CHECK_EQ(shadow_of(g), KVM_X86_SHADOW_INT_STI);
  set_shadow(g, KVM_X86_SHADOW_INT_STI | KVM_X86_SHADOW_INT_MOV_SS);
  CHECK_EQ(shadow_of(g), KVM_X86_SHADOW_INT_MOV_SS); /* never both */
  struct kvm_regs r = guest_regs(g);
  r.rflags |= 0x200;
  guest_set_regs(g, &r);
  inject(g, 0x50);
  CHECK_EQ(guest_next(g), TRAP(0x50));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 1); /* one instruction was shielded */
  CHECK_EQ(shadow_of(g), 0);
  guest_free(g);
}

GUEST_MAIN({"sti-window", sti_window}, {"sti-cli", sti_cli}, {"mov-ss-window", mov_ss_window}, {"popf-window", popf_window},
           {"sti-int", sti_int}, {"blocked-by-debugger", blocked_by_debugger}, {"nmi-blocking", nmi_blocking},
           {"nmi-nested-iret", nmi_nested_iret}, {"injected-exception", injected_exception}, {"halt", halt}, {"kinds", kinds},
           {"set-and-get", set_and_get})
