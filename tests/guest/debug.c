/* Single step, breakpoints, and the debugger outside (KVM_SET_GUEST_DEBUG): SDM Vol. 3B chapter 17. */
#include <string.h>
#include "harness.h"

#define TF 0x100u
#define RF 0x10000u

static struct guest *start(const u8 *code, unsigned size, u64 flags) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, size);
  struct kvm_regs r = guest_regs(g);
  r.rflags |= flags;
  r.rbx = GUEST_DATA;
  guest_set_regs(g, &r);
  return g;
}
#define START(code, flags) start(code, sizeof(code), flags)

static struct kvm_debugregs debugregs(struct guest *g) {
  struct kvm_debugregs d;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &d), 0);
  return d;
}

static void set_bp(struct guest *g, unsigned n, u64 addr, u64 dr7) {
  struct kvm_debugregs d = debugregs(g);
  d.db[n] = addr;
  d.dr7 = dr7 | 0x400;
  d.dr6 = 0xffff0ff0;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &d), 0);
}

static void expect_db(struct guest *g, u64 rip, u64 dr6) {
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + rip);
  CHECK_EQ(debugregs(g).dr6 & 0xe00f, dr6);
}

/* TF traps after every instruction, the one that clears it included; not after the one that sets it. */
static void single_step(void) {
  static const u8 code[] = {0x9c, 0x80, 0x4c, 0x24, 1,    1,    0x9d, 0x90, 0x90, 0x9c,      0x80,
                            0x64, 0x24, 1,    0xfe, 0x9d, 0x90, 0xb0, 4,    0xe6, GUEST_PORT};
  struct guest *g = START(code, 0);
  expect_db(g, 8, 0x4000); /* the NOP behind POPF */
  CHECK_EQ(guest_stack(g, 2, 8) & (TF | RF), TF);
  CHECK_EQ(guest_regs(g).rflags & TF, 0);
  expect_db(g, 9, 0x4000);
  expect_db(g, 10, 0x4000);
  expect_db(g, 15, 0x4000);
  expect_db(g, 16, 0x4000); /* POPF cleared TF; its own trap still comes */
  CHECK_EQ(guest_stack(g, 2, 8) & TF, 0);
  CHECK_EQ(guest_next(g), 4);
  guest_free(g);
}

/* A faulting instruction does not trap; INT n does not either. */
static void step_and_events(void) {
  static const u8 code[] = {0x0f, 0x0b, 0xcd, 0x40, 0x90};
  struct guest *g = START(code, TF);
  CHECK_EQ(guest_next(g), TRAP(6));
  CHECK_EQ(guest_stack(g, 2, 8) & (TF | RF), TF | RF);
  guest_write(g, guest_regs(g).rsp, 8, GUEST_CODE + 2);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 4);
  CHECK_EQ(guest_stack(g, 2, 8) & TF, TF);
  expect_db(g, 5, 0x4000);
  guest_free(g);
}

/* No trap between MOV SS and the next instruction. */
static void step_mov_ss(void) {
  static const u8 code[] = {0x66, 0x8c, 0xd0, 0x8e, 0xd0, 0x90, 0x90};
  struct guest *g = START(code, TF);
  expect_db(g, 3, 0x4000);
  expect_db(g, 6, 0x4000);
  guest_free(g);
}

static void data_breakpoint(void) {
  static const u8 code[] = {0x8b, 0x03, 0x89, 0x03, 0x88, 0x43, 3, 0x88, 0x43, 4, 0xb0, 4, 0xe6, GUEST_PORT};
  struct guest *g = START(code, 0);
  set_bp(g, 2, GUEST_DATA, 1u << 5 | 0xdu << 24); /* global, write, 4 bytes */
  expect_db(g, 4, 4);
  CHECK_EQ(guest_stack(g, 2, 8) & RF, 0);
  expect_db(g, 7, 4);
  CHECK_EQ(guest_next(g), 4);
  guest_free(g);
  g = START(code, 0);
  set_bp(g, 0, GUEST_DATA, 1 | 0xfu << 16); /* local, read or write */
  expect_db(g, 2, 1);
  expect_db(g, 4, 1);
  guest_free(g);
}

/* A fault before the instruction; RF lets it run once. */
static void code_breakpoint(void) {
  static const u8 code[] = {0x90, 0x90, 0xeb, 0xfc};
  struct guest *g = START(code, 0);
  set_bp(g, 1, GUEST_CODE + 1, 1u << 2);
  expect_db(g, 1, 2);
  CHECK_EQ(guest_stack(g, 2, 8) & RF, 0);
  guest_write(g, guest_regs(g).rsp + 16, 8, 0x10002);
  expect_db(g, 1, 2); /* once around the loop */
  guest_free(g);
}

/* IRET with RF: exactly one instruction is exempt. */
static void rf_once(void) {
  static const u8 code[] = {0x90, 0x90, 0xb0, 1, 0xe6, GUEST_PORT};
  struct guest *g = START(code, RF);
  set_bp(g, 0, GUEST_CODE, 1);
  set_bp(g, 1, GUEST_CODE + 1, 5);
  expect_db(g, 1, 2);
  CHECK_EQ(guest_stack(g, 2, 8) & RF, 0);
  guest_free(g);
}

/* A data breakpoint on POP SS waits: INT n runs, then the trap comes at its handler's first instruction. */
static void pop_ss_int(void) {
  static const u8 code[] = {0x8e, 0x13, 0xcd, 0x40}; /* mov (%rbx), %ss; int $0x40 */
  struct guest *g = START(code, 0);
  guest_write(g, GUEST_DATA, 2, SEL_DATA);
  set_bp(g, 3, GUEST_DATA, 1u << 7 | 7u << 28);
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_STUBS + 0x400);
  CHECK_EQ(debugregs(g).dr6 & 0xe00f, 8);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 4);
  guest_free(g);
}

/* Port breakpoints need CR4.DE. */
static void io_breakpoint(void) {
  static const u8 code[] = {0xb0, 1, 0xe6, GUEST_PORT, 0x90, 0x90};
  for (unsigned de = 0; de < 2; de++) {
    struct guest *g = START(code, 0);
    struct kvm_sregs s = guest_sregs(g);
    s.cr4 |= de << 3;
    guest_set_sregs(g, &s);
    set_bp(g, 0, GUEST_PORT, 1 | 2u << 16);
    CHECK_EQ(guest_run(g), 0);
    CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
    if (de) expect_db(g, 4, 1);
    guest_free(g);
  }
}

/* SYSRET that sets TF traps before the first instruction of user code. */
static void sysret_step(void) {
  static const u8 kernel[] = {0x48, 0x0f, 0x07};
  struct guest *g = START(kernel, 0);
  struct {
    struct kvm_msrs h;
    struct kvm_msr_entry e;
  } m = {.h.nmsrs = 1, .e = {.index = 0xc0000081, .data = (u64)(SEL_FREE | 3) << 48 | (u64)SEL_CODE64 << 32}};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_MSRS, &m), 1);
  struct kvm_regs r = guest_regs(g);
  r.rcx = GUEST_USER;
  r.r11 = 2 | TF;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_USER);
  CHECK_EQ(guest_stack(g, 1, 8), (SEL_FREE | 3) + 16);
  guest_free(g);
}

/* DR7.GD: #DB before a MOV DR; the handler may look. */
static void general_detect(void) {
  static const u8 code[] = {0x90, 0x0f, 0x21, 0xf8};
  struct guest *g = START(code, 0);
  set_bp(g, 0, 0, 1u << 13);
  expect_db(g, 1, 0x2000);
  CHECK_EQ(debugregs(g).dr7 & (1u << 13), 0);
  guest_free(g);
}

/* ---- the debugger outside ---- */

static void guest_debug(struct guest *g, u32 control, u64 addr, u64 dr7) {
  struct kvm_guest_debug d = {.control = control};
  d.arch.debugreg[0] = addr;
  d.arch.debugreg[7] = dr7 | 0x400;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
}

static void expect_debug_exit(struct guest *g, unsigned exception, u64 rip, u64 dr6) {
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_DEBUG));
  CHECK_EQ(g->run->debug.arch.exception, exception);
  CHECK_EQ(g->run->debug.arch.pc, GUEST_CODE + rip);
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + rip);
  if (exception == 1) CHECK_EQ(g->run->debug.arch.dr6 & 0xe00f, dr6);
}

static void outside_step(void) {
  static const u8 code[] = {0x90, 0xb0, 1, 0xeb, 0x01, 0x90, 0x9c, 0x58, 0x90};
  struct guest *g = START(code, 0);
  guest_debug(g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, 0, 0);
  expect_debug_exit(g, 1, 1, 0x4000);
  expect_debug_exit(g, 1, 3, 0x4000);
  expect_debug_exit(g, 1, 6, 0x4000);
  expect_debug_exit(g, 1, 7, 0x4000);
  expect_debug_exit(g, 1, 8, 0x4000);
  guest_free(g);
}

static void outside_step_mov_ss(void) {
  static const u8 code[] = {0x66, 0x8c, 0xd0, 0x8e, 0xd0, 0x90, 0x90};
  struct guest *g = START(code, 0);
  guest_debug(g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, 0, 0);
  expect_debug_exit(g, 1, 3, 0x4000);
  expect_debug_exit(g, 1, 6, 0x4000);
  expect_debug_exit(g, 1, 7, 0x4000);
  guest_free(g);
}

static void outside_int3(void) {
  static const u8 code[] = {0x90, 0xcc, 0x90};
  struct guest *g = START(code, 0);
  guest_debug(g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, 0, 0);
  expect_debug_exit(g, 3, 1, 0);
  guest_debug(g, 0, 0, 0);
  CHECK_EQ(guest_next(g), TRAP(3));
  guest_free(g);
}

static void outside_hardware(void) {
  static const u8 code[] = {0x90, 0x90, 0x89, 0x03, 0x90};
  struct guest *g = START(code, 0);
  guest_debug(g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, GUEST_CODE + 1, 1);
  expect_debug_exit(g, 1, 1, 1);
  guest_debug(g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, GUEST_DATA, 1 | 0xdu << 16);
  expect_debug_exit(g, 1, 4, 1);
  guest_free(g);
}

/* General detect of the debugger's DR7; the guest's own sets no trap while the debugger's registers are in force. */
static void outside_general_detect(void) {
  static const u8 code[] = {0x0f, 0x21, 0xc0, 0x90}; /* mov %dr0, %rax */
  struct guest *g = START(code, 0);
  guest_debug(g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 0, 0x2400);
  expect_debug_exit(g, 1, 0, 0x2000);
  struct kvm_debugregs d = {.dr7 = 0x2400, .dr6 = 0xffff0ff0};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &d), 0);
  guest_debug(g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, GUEST_CODE + 3, 1);
  expect_debug_exit(g, 1, 3, 1);
  guest_free(g);
}

GUEST_MAIN({"single-step", single_step}, {"step-and-events", step_and_events}, {"step-mov-ss", step_mov_ss},
           {"outside-step-mov-ss", outside_step_mov_ss}, {"data-breakpoint", data_breakpoint},
           {"code-breakpoint", code_breakpoint}, {"rf-once", rf_once}, {"pop-ss-int", pop_ss_int},
           {"io-breakpoint", io_breakpoint}, {"sysret-step", sysret_step}, {"general-detect", general_detect},
           {"outside-step", outside_step}, {"outside-int3", outside_int3}, {"outside-hardware", outside_hardware},
           {"outside-general-detect", outside_general_detect})
