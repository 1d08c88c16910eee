/* Virtual-8086 mode: entry by IRET, INT n by IOPL, frames, faults of the mode, CR4.VME redirection and the virtual interrupt
 * flag. */
#include <string.h>
#include "harness.h"

#define VM    0x20000u
#define VIF   0x80000u
#define IOPL3 0x3000u

/* IRET into virtual-8086 mode; the frame is the host's. */
static struct guest *start(const u8 *code, unsigned size, u32 flags) {
  static const u8 iret[] = {0xcf};
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, iret, sizeof(iret));
  guest_load(g, 0x10000, code, size);
  u32 frame[9] = {0, 0x1000, VM | 2 | flags, 0xf00, 0x1e00, 0x1111, 0x2222, 0x3333, 0x4444};
  struct kvm_regs r = guest_regs(g);
  r.rsp = GUEST_STACK0 - sizeof(frame);
  guest_load(g, r.rsp, frame, sizeof(frame));
  guest_set_regs(g, &r);
  return g;
}

static void enter_and_fault(void) {
  static const u8 code[] = {0xe6, GUEST_PORT, 0xf4};
  struct guest *g = start(code, sizeof(code), 0);
  CHECK_EQ(guest_next(g), 0);
  struct kvm_sregs s = guest_sregs(g);
  CHECK_EQ(guest_regs(g).rflags & VM, VM);
  CHECK_EQ(s.cs.selector, 0x1000);
  CHECK_EQ(s.cs.base, 0x10000);
  CHECK_EQ(s.cs.limit, 0xffff);
  CHECK_EQ(s.cs.dpl, 3);
  CHECK_EQ(s.ss.base, 0x1e000);
  CHECK_EQ(s.es.selector, 0x1111);
  CHECK_EQ(s.ds.selector, 0x2222);
  CHECK_EQ(s.fs.selector, 0x3333);
  CHECK_EQ(s.gs.selector, 0x4444);
  CHECK_EQ(guest_regs(g).rsp, 0xf00);
  /* HLT: #GP(0); the frame holds the segments, they are null now. */
  CHECK_EQ(guest_next(g), TRAP(13));
  s = guest_sregs(g);
  CHECK_EQ(guest_regs(g).rflags & VM, 0);
  CHECK_EQ(guest_regs(g).rsp, GUEST_RSP0 - 40);
  CHECK_EQ(guest_stack(g, 0, 4), 0);
  CHECK_EQ(guest_stack(g, 1, 4), 2);
  CHECK_EQ(guest_stack(g, 2, 4), 0x1000);
  CHECK_EQ(guest_stack(g, 3, 4) & VM, VM);
  CHECK_EQ(guest_stack(g, 4, 4), 0xf00);
  CHECK_EQ(guest_stack(g, 5, 4), 0x1e00);
  CHECK_EQ(guest_stack(g, 6, 4), 0x1111);
  CHECK_EQ(guest_stack(g, 7, 4), 0x2222);
  CHECK_EQ(guest_stack(g, 8, 4), 0x3333);
  CHECK_EQ(guest_stack(g, 9, 4), 0x4444);
  CHECK_EQ(s.ds.selector, 0);
  CHECK_EQ(s.gs.unusable, 1);
  guest_free(g);
}

/* Table 20-2 without VME. */
static void int_by_iopl(void) {
  static const u8 code[] = {0xcd, 0x40};
  struct guest *g = start(code, sizeof(code), IOPL3);
  guest_idt32(g, 0x40, 0xe, 3, SEL_CODE32, GUEST_STUBS + 0x400);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_stack(g, 0, 4), 2);
  CHECK_EQ(guest_stack(g, 2, 4) & VM, VM);
  guest_free(g);
  g = start(code, sizeof(code), 0);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 4), 0);
  CHECK_EQ(guest_stack(g, 1, 4), 0);
  guest_free(g);
  /* INT3 does not care for IOPL, only for the gate's DPL. */
  static const u8 int3[] = {0xcc};
  g = start(int3, sizeof(int3), 0);
  guest_idt32(g, 3, 0xe, 3, SEL_CODE32, GUEST_STUBS + 3 * 16);
  CHECK_EQ(guest_next(g), TRAP(3));
  guest_free(g);
}

/* The handler must be ring 0. */
static void handler_ring(void) {
  static const u8 code[] = {0x0f, 0x0b};
  struct guest *g = start(code, sizeof(code), 0);
  guest_idt32(g, 6, 0xe, 0, SEL_CODE1, GUEST_STUBS + 6 * 16);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 4), (SEL_CODE1 & ~3u) | 1); /* EXT: #UD was being delivered */
  guest_free(g);
}

static void set_vme(struct guest *g) {
  struct kvm_sregs s = guest_sregs(g);
  s.cr4 |= 1;
  guest_set_sregs(g, &s);
}

/* 20.3.3.5: bit clear, IOPL 3: the program's own handler. */
static void vme_redirect(void) {
  static const u8 code[] = {0xcd, 0x40, 0xe6, GUEST_PORT, 0xf4}, handler[] = {0xb0, 7, 0xe6, GUEST_PORT, 0xcf};
  struct guest *g = start(code, sizeof(code), IOPL3 | 0x200);
  set_vme(g);
  guest_load(g, 0x11000, handler, sizeof(handler));
  guest_write(g, 0x40 * 4, 4, 0x11000000);
  g->mem[0x11000 + 0] = handler[0];
  guest_write(g, 0x40 * 4, 4, 0x11000000); /* 1100:0000 */
  CHECK_EQ(guest_next(g), 7);
  CHECK_EQ(guest_sregs(g).cs.selector, 0x1100);
  CHECK_EQ(guest_regs(g).rflags & (VM | 0x200), VM);
  CHECK_EQ(guest_stack(g, 0, 2), 2);
  CHECK_EQ(guest_stack(g, 1, 2), 0x1000);
  CHECK_EQ(guest_stack(g, 2, 2) & 0x200, 0x200);
  CHECK_EQ(guest_next(g), 7);
  CHECK_EQ(guest_sregs(g).cs.selector, 0x1000);
  CHECK_EQ(guest_regs(g).rflags & 0x200, 0x200);
  guest_free(g);
}

/* 20.3.3.6: IOPL < 3: IF in the image is VIF, VIF is cleared; IRET brings it back. */
static void vme_vif(void) {
  static const u8 code[] = {0xcd, 0x40, 0xe6, GUEST_PORT, 0xf4}, handler[] = {0xb0, 7, 0xe6, GUEST_PORT, 0xcf};
  struct guest *g = start(code, sizeof(code), VIF | 0x200);
  set_vme(g);
  guest_load(g, 0x11000, handler, sizeof(handler));
  guest_write(g, 0x40 * 4, 4, 0x11000000);
  CHECK_EQ(guest_next(g), 7);
  CHECK_EQ(guest_regs(g).rflags & (VIF | 0x200), 0x200);
  CHECK_EQ(guest_stack(g, 2, 2), 0x3202);
  CHECK_EQ(guest_next(g), 7);
  CHECK_EQ(guest_sregs(g).cs.selector, 0x1000);
  CHECK_EQ(guest_regs(g).rflags & VIF, VIF);
  CHECK_EQ(guest_regs(g).rflags & IOPL3, 0);
  guest_free(g);
  /* Bit set, IOPL < 3: #GP(0). */
  g = start(code, sizeof(code), VIF);
  set_vme(g);
  guest_write(g, GUEST_TSS + 0x68 + 8, 1, 1);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 1, 4), 0);
  guest_free(g);
}

GUEST_MAIN({"enter-and-fault", enter_and_fault}, {"int-by-iopl", int_by_iopl}, {"handler-ring", handler_ring},
           {"vme-redirect", vme_redirect}, {"vme-vif", vme_vif})
