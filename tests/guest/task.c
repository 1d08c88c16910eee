/* Task switches: JMP, CALL and IRET, task gates for interrupts and exceptions, busy bits, links, errors, the T flag. */
#include <string.h>
#include "harness.h"

/* Task 1 jumps or calls; task 2 reports and returns. */
GUEST_BLOB(tasks,
           ".code32\n"
           "mov $0x11, %ebx\n"
           "lcall $0x68, $0\n"
           "1: " REPORT(2) "ljmp $0x68, $0\n"
                           "2: " REPORT(4) "ud2\n"
                                           ".balign 64\n"
                                           ".globl tasks_second\ntasks_second: " REPORT(1) "iret\n" REPORT(3) "ljmp $0x48, $0\n");
extern const u8 tasks_second[];

static void tss32(struct guest *g, u32 at, u32 eip) {
  memset(g->mem + at, 0, 0x68);
  guest_write(g, at + 4, 4, GUEST_RSP0);
  guest_write(g, at + 8, 4, SEL_DATA);
  guest_write(g, at + 0x20, 4, eip);
  guest_write(g, at + 0x24, 4, 2);
  guest_write(g, at + 0x28, 4, 0xaaaa0001);
  guest_write(g, at + 0x38, 4, GUEST_IST1);
  for (unsigned n = 0; n < 6; n++) guest_write(g, at + 0x48 + n * 4, 2, n == 1 ? SEL_CODE32 : SEL_DATA);
}

static struct guest *start(void) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load_blob(g, tasks);
  tss32(g, GUEST_TSS2, GUEST_CODE + (u32)(tasks_second - tasks_start));
  return g;
}

static unsigned type_of(struct guest *g, unsigned sel) { return guest_gdt_read(g, sel) >> 40 & 15; }

static void call_and_return(void) {
  struct guest *g = start();
  CHECK_EQ(guest_next(g), 1);
  struct kvm_sregs s = guest_sregs(g);
  struct kvm_regs r = guest_regs(g);
  CHECK_EQ(s.tr.selector, SEL_TSS2);
  CHECK_EQ(s.tr.base, GUEST_TSS2);
  CHECK_EQ(s.cr0 & 8, 8); /* TS */
  CHECK_EQ(r.rax, 0xaaaa0001);
  CHECK_EQ(r.rsp, GUEST_IST1);
  CHECK_EQ(r.rflags & 0x4000, 0x4000); /* NT */
  CHECK_EQ(guest_read(g, GUEST_TSS2, 2), SEL_TSS);
  CHECK_EQ(type_of(g, SEL_TSS), 11);
  CHECK_EQ(type_of(g, SEL_TSS2), 11);
  CHECK_EQ(guest_read(g, GUEST_TSS + 0x34, 4), 0x11); /* EBX saved */
  CHECK_EQ(guest_next(g), 2);
  s = guest_sregs(g);
  CHECK_EQ(s.tr.selector, SEL_TSS);
  CHECK_EQ(guest_regs(g).rbx, 0x11);
  CHECK_EQ(guest_regs(g).rflags & 0x4000, 0);
  CHECK_EQ(type_of(g, SEL_TSS), 11);
  CHECK_EQ(type_of(g, SEL_TSS2), 9);
  CHECK_EQ(guest_read(g, GUEST_TSS2 + 0x24, 4) & 0x4000, 0);
  /* JMP: task 2 goes on behind its IRET, not nested. */
  CHECK_EQ(guest_next(g), 3);
  CHECK_EQ(type_of(g, SEL_TSS), 9);
  CHECK_EQ(type_of(g, SEL_TSS2), 11);
  CHECK_EQ(guest_regs(g).rflags & 0x4000, 0);
  CHECK_EQ(guest_next(g), 4);
  CHECK_EQ(guest_sregs(g).tr.selector, SEL_TSS);
  CHECK_EQ(guest_next(g), TRAP(6));
  guest_free(g);
}

/* Errors before the switch: nothing has happened. */
static void early_errors(void) {
  static const struct {
    unsigned offset, size;
    u64 value;
    u8 vector;
    u32 error;
  } t[] = {
      {GUEST_GDT + SEL_TSS2 + 5, 1, 0x8b, 13, SEL_TSS2}, /* busy */
      {GUEST_GDT + SEL_TSS2 + 5, 1, 0x09, 11, SEL_TSS2}, /* absent */
      {GUEST_GDT + SEL_TSS2, 2, 0x66, 10, SEL_TSS2},     /* too short */
  };
  for (unsigned n = 0; n < sizeof(t) / sizeof(t[0]); n++) {
    struct guest *g = start();
    guest_write(g, t[n].offset, t[n].size, t[n].value);
    CHECK_EQ(guest_next(g), TRAP(t[n].vector));
    CHECK_EQ(guest_stack(g, 0, 4), t[n].error);
    CHECK_EQ(guest_stack(g, 1, 4), GUEST_CODE + 5);
    CHECK_EQ(guest_sregs(g).tr.selector, SEL_TSS);
    guest_free(g);
  }
}

/* Errors after the switch are the new task's. */
static void late_errors(void) {
  static const struct {
    unsigned offset;
    u16 value;
    u8 vector;
    u32 error;
  } t[] = {
      {GUEST_TSS2 + 0x54, SEL_TSS, 10, SEL_TSS},   /* DS: a system descriptor */
      {GUEST_TSS2 + 0x60, SEL_DATA, 10, SEL_DATA}, /* LDT */
      {GUEST_TSS2 + 0x54, SEL_FREE, 11, SEL_FREE}, /* DS absent */
  };
  for (unsigned n = 0; n < sizeof(t) / sizeof(t[0]); n++) {
    struct guest *g = start();
    guest_gdt(g, SEL_FREE, 0, 0xffff, 0x13, D_32);
    guest_write(g, t[n].offset, 2, t[n].value);
    bool ldt = t[n].offset == GUEST_TSS2 + 0x60;
    unsigned got = guest_next(g);
    if (ldt) { /* without CS and SS there is no handler to run on: every delivery fails */
      CHECK(got == TRAP(t[n].vector) || got == EXIT(KVM_EXIT_SHUTDOWN));
    } else {
      CHECK_EQ(got, TRAP(t[n].vector));
      CHECK_EQ(guest_stack(g, 0, 4), t[n].error);
      CHECK_EQ(guest_stack(g, 1, 4), GUEST_CODE + (u32)(tasks_second - tasks_start));
    }
    CHECK_EQ(guest_sregs(g).tr.selector, SEL_TSS2);
    guest_free(g);
  }
}

/* INT n and #GP through task gates; the error code lies on the new task's stack. */
static void task_gates(void) {
  static const u8 code[] = {0xcd, 0x40, 0x90, 0x66, 0xb8, 0x00, 0x80, 0x8e, 0xd8, 0x0f, 0x0b};
  static const u8 handler[] = {0xe6, STUB_PORT, 0xcf, 0xe6, STUB_PORT, 0x58, 0xcf};
  struct guest *g = start();
  guest_load(g, GUEST_CODE, code, sizeof(code));
  guest_load(g, GUEST_CODE + 0x100, handler, sizeof(handler));
  tss32(g, GUEST_TSS2, GUEST_CODE + 0x100);
  guest_idt32(g, 0x40, 5, 0, SEL_TSS2, 0);
  guest_idt32(g, 13, 5, 0, SEL_TSS2, 0);
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(guest_sregs(g).tr.selector, SEL_TSS2);
  CHECK_EQ(guest_read(g, GUEST_TSS + 0x20, 4), GUEST_CODE + 2);
  CHECK_EQ(guest_regs(g).rsp, GUEST_IST1);
  CHECK_EQ(guest_run(g), 0); /* IRET; then the #GP switches in again behind the IRET */
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(guest_sregs(g).tr.selector, SEL_TSS2);
  CHECK_EQ(guest_read(g, GUEST_TSS + 0x20, 4), GUEST_CODE + 7);
  CHECK_EQ(guest_read(g, GUEST_TSS + 0x24, 4) & 0x10000, 0x10000); /* RF */
  CHECK_EQ(guest_regs(g).rsp, GUEST_IST1 - 4);
  CHECK_EQ(guest_stack(g, 0, 4), 0x8000);
  guest_free(g);
}

/* The T flag: #DB with BT before the first instruction of the task. */
static void debug_trap(void) {
  struct guest *g = start();
  guest_write(g, GUEST_TSS2 + 0x64, 2, 1);
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(guest_stack(g, 0, 4), GUEST_CODE + (u32)(tasks_second - tasks_start));
  struct kvm_debugregs d;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &d), 0);
  CHECK_EQ(d.dr6 & 0x8000, 0x8000);
  guest_free(g);
}

/* A 16-bit TSS: only the low halves travel; the upper ones of the general registers read as ones. */
static void tss16(void) {
  struct guest *g = start();
  guest_gdt(g, SEL_TSS2, GUEST_TSS2, 0x2b, 0x81, 0);
  memset(g->mem + GUEST_TSS2, 0, 0x2c);
  guest_write(g, GUEST_TSS2 + 0x0e, 2, GUEST_CODE + (u32)(tasks_second - tasks_start));
  guest_write(g, GUEST_TSS2 + 0x10, 2, 2);
  guest_write(g, GUEST_TSS2 + 0x12, 2, 0x1234);
  guest_write(g, GUEST_TSS2 + 0x1a, 2, 0x7000);
  for (unsigned n = 0; n < 4; n++) guest_write(g, GUEST_TSS2 + 0x22 + n * 2, 2, n == 1 ? SEL_CODE32 : SEL_DATA);
  CHECK_EQ(guest_next(g), 1);
  struct kvm_regs r = guest_regs(g);
  CHECK_EQ(r.rax & 0xff00, 0x1200);
  CHECK_EQ(r.rsp & 0xffff, 0x7000);
  CHECK_EQ(r.rflags & 0x4000, 0x4000);
  CHECK_EQ(guest_sregs(g).fs.selector, 0);
  CHECK_EQ(guest_read(g, GUEST_TSS2, 2), SEL_TSS);
  CHECK_EQ(guest_next(g), 2);
  CHECK_EQ(guest_sregs(g).tr.selector, SEL_TSS);
  CHECK_EQ(guest_regs(g).rbx, 0x11);
  CHECK_EQ(guest_read(g, GUEST_TSS2 + 0x1a, 2), 0x7000);
  CHECK_EQ(type_of(g, SEL_TSS2), 1);
  guest_free(g);
}

/* A task whose EFLAGS say virtual-8086. */
static void v86_task(void) {
  static const u8 code[] = {0xb0, 9, 0xe6, GUEST_PORT};
  struct guest *g = start();
  tss32(g, GUEST_TSS2, 0x10);
  guest_load(g, 0x10010, code, sizeof(code));
  guest_write(g, GUEST_TSS2 + 0x24, 4, 0x23002);
  for (unsigned n = 0; n < 6; n++) guest_write(g, GUEST_TSS2 + 0x48 + n * 4, 2, 0x1000);
  CHECK_EQ(guest_next(g), 9);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(s.cs.base, 0x10000);
  CHECK_EQ(s.ds.selector, 0x1000);
  CHECK_EQ(s.ss.dpl, 3);
  CHECK_EQ(guest_regs(g).rflags & 0x24000, 0x24000);
  guest_free(g);
}

/* A page directory of its own. */
static void new_cr3(void) {
  struct guest *g = start();
  for (unsigned n = 0; n < 2; n++) guest_write(g, 0x200000 + n * 0x1000, 4, 0x83); /* 4 MiB identity */
  struct kvm_sregs s = guest_sregs(g);
  s.cr4 |= 0x10;
  s.cr3 = 0x200000;
  s.cr0 |= 0x80000000;
  guest_set_sregs(g, &s);
  guest_write(g, GUEST_TSS + 0x1c, 4, 0x200000);
  guest_write(g, GUEST_TSS2 + 0x1c, 4, 0x201000);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_sregs(g).cr3, 0x201000);
  CHECK_EQ(guest_next(g), 2);
  CHECK_EQ(guest_sregs(g).cr3, 0x200000);
  guest_free(g);
}

GUEST_MAIN({"call-and-return", call_and_return}, {"early-errors", early_errors}, {"late-errors", late_errors},
           {"task-gates", task_gates}, {"debug-trap", debug_trap}, {"tss16", tss16}, {"v86-task", v86_task}, {"new-cr3", new_cr3})
