/* System management mode: KVM_SMI, the state-save area, RSM. */
#include "harness.h"

#define SMBASE 0x30000

static void smi_and_back(void) {
  static const u8 code[] = {0x90, 0xb0, 2, 0xe6, GUEST_PORT}, handler[] = {0xb0, 1, 0xe6, GUEST_PORT, 0x0f, 0xaa};
  struct guest *g = guest_new();
  if (guest_ioctl(g->vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_X86_SMM) <= 0) {
    guest_free(g);
    return;
  }
  guest_add_slot(g, 1, 0, g->mem, GUEST_MEM);
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, sizeof(code));
  guest_load(g, SMBASE + 0x8000, handler, sizeof(handler));
  struct kvm_regs r = guest_regs(g);
  r.r15 = 0x1515151515151515;
  r.rsp = 0x20000;
  guest_set_regs(g, &r);
  struct kvm_sregs before = guest_sregs(g), s;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SMI, NULL), 0);
  CHECK_EQ(guest_next(g), 1);
  s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SMBASE >> 4);
  CHECK_EQ(s.cs.base, SMBASE);
  CHECK_EQ(s.cs.limit, 0xffffffff);
  CHECK_EQ(s.cr0 & 0x80000001, 0);
  CHECK_EQ(s.cr4, 0);
  CHECK_EQ(s.efer, 0);
  CHECK_EQ(g->run->flags & KVM_RUN_X86_SMM, KVM_RUN_X86_SMM);
  CHECK_EQ(guest_read(g, SMBASE + 0xfefc, 4), 0x20064);
  CHECK_EQ(guest_read(g, SMBASE + 0xff78, 8), GUEST_CODE);
  CHECK_EQ(guest_read(g, SMBASE + 0xff80, 8), 0x1515151515151515);
  CHECK_EQ(guest_read(g, SMBASE + 0xff00, 4), SMBASE);
  guest_write(g, SMBASE + 0xff00, 4, 0x40000); /* relocation */
  CHECK_EQ(guest_next(g), 2);
  s = guest_sregs(g);
  CHECK_EQ(s.cr0, before.cr0);
  CHECK_EQ(s.cr3, before.cr3);
  CHECK_EQ(s.cr4, before.cr4);
  CHECK_EQ(s.efer, before.efer);
  CHECK_EQ(s.cs.l, 1);
  CHECK_EQ(s.cs.selector, before.cs.selector);
  CHECK_EQ(s.ss.selector, before.ss.selector);
  CHECK_EQ(s.tr.base, before.tr.base);
  CHECK_EQ(s.idt.limit, before.idt.limit);
  CHECK_EQ(guest_regs(g).r15, 0x1515151515151515);
  CHECK_EQ(g->run->flags & KVM_RUN_X86_SMM, 0);
  guest_free(g);
}

/* A processor without long mode: the 32-bit save area. */
static void without_long_mode(void) {
  static const u8 code[] = {0x90, 0xb0, 2, 0xe6, GUEST_PORT}, handler[] = {0xb0, 1, 0xe6, GUEST_PORT, 0x0f, 0xaa};
  struct guest *g = guest_new();
  struct {
    struct kvm_cpuid2 h;
    struct kvm_cpuid_entry2 e[2];
  } id = {.h.nent = 2, .e = {{.function = 0, .eax = 1}, {.function = 1, .edx = 0x178bfbff}}};
  if (guest_ioctl(g->vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_X86_SMM) <= 0) {
    guest_free(g);
    return;
  }
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_CPUID2, &id), 0);
  guest_add_slot(g, 1, 0, g->mem, GUEST_MEM);
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, sizeof(code));
  guest_load(g, SMBASE + 0x8000, handler, sizeof(handler));
  struct kvm_regs r = guest_regs(g);
  r.rbp = 0x12345678;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SMI, NULL), 0);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_read(g, SMBASE + 0xfefc, 4), 0x20000);
  CHECK_EQ(guest_read(g, SMBASE + 0xfff0, 4), GUEST_CODE);
  CHECK_EQ(guest_read(g, SMBASE + 0xffe4, 4), 0x12345678);
  CHECK_EQ(guest_read(g, SMBASE + 0xffac, 4), SEL_CODE32);
  CHECK_EQ(guest_read(g, SMBASE + 0xffc4, 4), SEL_TSS);
  CHECK_EQ(guest_next(g), 2);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(s.cs.selector, SEL_CODE32);
  CHECK_EQ(s.cs.db, 1);
  CHECK_EQ(s.ss.selector, SEL_DATA);
  CHECK_EQ(s.gdt.base, GUEST_GDT);
  CHECK_EQ(s.tr.selector, SEL_TSS);
  CHECK_EQ(guest_regs(g).rbp, 0x12345678);
  guest_free(g);
}

static void rsm_outside(void) {
  static const u8 code[] = {0x0f, 0xaa};
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, sizeof(code));
  CHECK_EQ(guest_next(g), TRAP(6));
  guest_free(g);
}

GUEST_MAIN({"smi-and-back", smi_and_back}, {"without-long-mode", without_long_mode}, {"rsm-outside", rsm_outside})
