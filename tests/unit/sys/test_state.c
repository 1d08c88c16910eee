/* State ioctls: what is read is what was set; wrong values are refused as KVM refuses them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "guest.h"

static void registers(void **state) {
  struct guest g;
  struct kvm_regs a, b;
  guest_open(&g, 1, true);
  for (size_t k = 0; k < sizeof(a); k++) ((uint8_t *)&a)[k] = (uint8_t)(k * 7 + 1);
  a.rflags = 0x202;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_REGS, &a), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_REGS, &b), 0);
  assert_memory_equal(&a, &b, sizeof(a));
  guest_close(&g);
}

static void power_on_state(void **state) {
  struct guest g;
  struct kvm_sregs s;
  guest_open(&g, 1, true);
  struct kvm_regs r = guest_regs(&g, 0);
  assert_int_equal(r.rip, 0xfff0);
  assert_int_equal(r.rflags, 2);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &s), 0);
  assert_int_equal(s.cs.base, 0xffff0000);
  assert_int_equal(s.cr0, 0x60000010);
  assert_int_equal(s.apic_base, 0xfee00900);
  guest_close(&g);
}

static void special_registers(void **state) {
  static const struct {
    uint64_t cr0, cr4, efer;
    uint8_t l;
    int result;
  } cases[] = {
      {0x80000031, 0x20, 0x500, 1, 0},
      {0x80000031, 0x00, 0x500, 1, -EINVAL}, /* long mode without PAE */
      {0x80000031, 0x20, 0x100, 1, -EINVAL}, /* ... without LMA */
      {0x80000011, 0x20, 0x400, 0, -EINVAL}, /* LMA without LME */
      {0x00000011, 0x20, 0x100, 1, -EINVAL}, /* CS.L outside long mode */
      {0x80000010, 0x00, 0x000, 0, -EINVAL}, /* PG without PE */
      {0x20000011, 0x00, 0x000, 0, -EINVAL}, /* NW without CD */
      {1ull << 32 | 0x11, 0x00, 0x000, 0, -EINVAL},
      {0x00000011, 1 << 13, 0x000, 0, -EINVAL}, /* VMXE without VMX */
      {0x00000011, 1ull << 40, 0x000, 0, -EINVAL},
      {0x00000011, 0x6f8, 0x000, 0, 0},
  };
  struct guest g;
  struct kvm_sregs start, s, back;
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &start), 0);
  for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
    s = start;
    s.cr0 = cases[k].cr0, s.cr4 = cases[k].cr4, s.efer = cases[k].efer, s.cs.l = cases[k].l;
    if (cases[k].l) s.cs.db = 0;
    if (guest_ioctl(g.cpu[0], KVM_SET_SREGS, &s) != cases[k].result) fail_msg("case %zu", k);
    assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &back), 0);
    if (!cases[k].result) assert_memory_equal(&s, &back, sizeof(s));
  }
  start.interrupt_bitmap[1] = 4;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS, &start), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &back), 0);
  assert_int_equal(back.interrupt_bitmap[1], 4);
  guest_close(&g);
}

/* Without a CPUID table every CR4 bit of the engine may be set; with one, only those it shows. */
static void cr4_follows_cpuid(void **state) {
  struct guest g;
  struct kvm_sregs s;
  struct cpuid_table t;
  guest_open(&g, 1, false);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &s), 0);
  s.cr4 = 1 << 20 | 1 << 21 | 1 << 18;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS, &s), 0);
  guest_supported(&g, &t);
  cpuid_entry(&t, 7, 0)->ebx &= ~(1u << 20);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_CPUID2, &t), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS, &s), -EINVAL);
  guest_close(&g);
}

static void sregs2_pdptrs(void **state) {
  struct guest g;
  struct kvm_sregs2 s, back;
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS2, &s), 0);
  assert_int_equal(s.flags, 0);
  s.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS2, &s), -EINVAL); /* not PAE paging */
  s.flags = 2;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS2, &s), -EINVAL);
  s.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
  s.cr0 = 0x80000011, s.cr4 = 0x20, s.cr3 = 0x5000;
  for (int k = 0; k < 4; k++) s.pdptrs[k] = 0x6001 + 0x1000 * k;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS2, &s), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS2, &back), 0);
  assert_int_equal(back.flags, KVM_SREGS2_FLAGS_PDPTRS_VALID);
  assert_memory_equal(back.pdptrs, s.pdptrs, sizeof(s.pdptrs));
  /* Without the flag they come from memory. */
  uint64_t table[4] = {0xa001, 0xb001, 0, 0xc001};
  memcpy(g.memory + 0x5000, table, sizeof(table));
  s.flags = 0;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS2, &s), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS2, &back), 0);
  assert_memory_equal(back.pdptrs, table, sizeof(table));
  guest_close(&g);
}

static void extended_state(void **state) {
  struct guest g;
  struct kvm_xsave x, y;
  struct kvm_fpu f;
  struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = 7}};
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_XSAVE, &x), 0);
  uint16_t fcw;
  memcpy(&fcw, x.region, 2);
  assert_int_equal(fcw, 0x37f); /* as KVM creates a vCPU (a processor would have 40H, SDM Vol. 3A table 9-1) */
  memset((char *)x.region + 160, 0x5a, 256);
  x.region[128] |= 3; /* XSTATE_BV */
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_XSAVE, &x), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_XSAVE, &y), 0);
  assert_memory_equal((char *)x.region + 160, (char *)y.region + 160, 256);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_FPU, &f), 0);
  assert_memory_equal(f.xmm, (char *)y.region + 160, 256);
  memset(f.xmm, 0x33, sizeof(f.xmm));
  f.fcw = 0x37f;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_FPU, &f), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_XSAVE, &y), 0);
  assert_int_equal(((uint8_t *)y.region)[160], 0x33);
  x.region[128] = 1u << 30;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_XSAVE, &x), -EINVAL);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_XCRS, &xcrs), 0);
  xcrs.xcrs[0].value = 4;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_XCRS, &xcrs), -EINVAL);
  xcrs.nr_xcrs = 17;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_XCRS, &xcrs), -EINVAL);
  guest_close(&g);
}

static void events(void **state) {
  struct guest g;
  struct kvm_vcpu_events e = {0}, back;
  guest_open(&g, 1, true);
  e.flags = 1 << 10;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_VCPU_EVENTS, &e), -EINVAL);
  e.flags = KVM_VCPUEVENT_VALID_PAYLOAD;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_VCPU_EVENTS, &e), -EINVAL); /* not enabled */
  e.flags = 0;
  e.exception.injected = 1;
  e.exception.nr = 2;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_VCPU_EVENTS, &e), -EINVAL);
  e.exception.nr = 32;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_VCPU_EVENTS, &e), -EINVAL);
  e.exception.nr = 13;
  e.exception.has_error_code = 1;
  e.exception.error_code = 0x18;
  e.nmi.masked = 1;
  e.nmi.pending = 1;
  e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_VCPU_EVENTS, &e), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_VCPU_EVENTS, &back), 0);
  assert_int_equal(back.exception.injected, 1);
  assert_int_equal(back.exception.nr, 13);
  assert_int_equal(back.exception.error_code, 0x18);
  assert_int_equal(back.nmi.masked, 1);
  assert_int_equal(back.nmi.pending, 1);
  assert_int_equal(back.flags, KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM);
  guest_close(&g);
}

static void debug_registers(void **state) {
  struct guest g;
  struct kvm_debugregs d, back;
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_DEBUGREGS, &d), 0);
  assert_int_equal(d.dr6, 0xffff0ff0);
  assert_int_equal(d.dr7, 0x400);
  d.db[2] = 0x1234;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_DEBUGREGS, &d), 0);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_DEBUGREGS, &back), 0);
  assert_memory_equal(&d, &back, sizeof(d));
  d.dr7 = 1ull << 32;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_DEBUGREGS, &d), -EINVAL);
  d.dr7 = 0x400;
  d.flags = 1;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_DEBUGREGS, &d), -EINVAL);
  guest_close(&g);
}

static void run_state(void **state) {
  struct guest g;
  struct kvm_mp_state m;
  guest_open(&g, 2, true);
  assert_int_equal(guest_ioctl(g.cpu[1], KVM_GET_MP_STATE, &m), 0);
  assert_int_equal(m.mp_state, KVM_MP_STATE_RUNNABLE); /* no APICs in the library */
  m.mp_state = KVM_MP_STATE_HALTED;
  assert_int_equal(guest_ioctl(g.cpu[1], KVM_SET_MP_STATE, &m), -EINVAL);
  m.mp_state = 77;
  assert_int_equal(guest_ioctl(g.cpu[1], KVM_SET_MP_STATE, &m), -EINVAL);
  assert_int_equal(guest_ioctl(g.cpu[1], KVM_GET_LAPIC, &m), -EINVAL);
  guest_close(&g);
}

CODE64(just_hlt, "hlt");

static void translation(void **state) {
  struct guest g;
  struct kvm_translation t = {.linear_address = 0x12345};
  guest_open(&g, 1, true);
  guest_code64(&g, 0, just_hlt_begin, just_hlt_end);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_TRANSLATE, &t), 0);
  assert_int_equal(t.valid, 1);
  assert_int_equal(t.physical_address, 0x12345);
  t.linear_address = 0x40000000;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_TRANSLATE, &t), 0);
  assert_int_equal(t.valid, 0);
  assert_int_equal(t.physical_address, ~0ull);
  guest_close(&g);
}

static void machine_checks(void **state) {
  struct guest g;
  uint64_t cap;
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.sys, KVM_X86_GET_MCE_CAP_SUPPORTED, &cap), 0);
  uint64_t set = cap | 10;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_X86_SETUP_MCE, &set), 0);
  assert_int_equal(guest_get_msr(&g, 0, 0x179), set);
  assert_int_equal(guest_get_msr(&g, 0, 0x400), ~0ull);
  struct kvm_x86_mce e = {.bank = 10, .status = 1ull << 63};
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_X86_SET_MCE, &e), -EINVAL);
  e.bank = 1;
  e.addr = 0x1234;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_X86_SET_MCE, &e), 0);
  assert_int_equal(guest_get_msr(&g, 0, 0x406), 0x1234);
  e.status = 0;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_X86_SET_MCE, &e), -EINVAL);
  set = 33;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_X86_SETUP_MCE, &set), -EINVAL);
  guest_close(&g);
}

static void vm_settings(void **state) {
  struct guest g;
  uint64_t addr = 0;
  struct kvm_reinject_control control = {0};
  struct kvm_enable_cap cap = {.cap = KVM_CAP_MAX_VCPU_ID, .args = {4097}};
  guest_open(&g, 0, false);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_TSS_ADDR, (void *)0xffffe000), -EINVAL);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000), 0);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_IDENTITY_MAP_ADDR, &addr), 0);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_NR_MMU_PAGES, (void *)63), -EINVAL);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_NR_MMU_PAGES, (void *)5000), 0);
  assert_int_equal(guest_ioctl(g.vm, KVM_GET_NR_MMU_PAGES, NULL), 5000);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_NR_MMU_PAGES, (void *)(1ull << 63)), 0); /* the answer is an int */
  assert_int_equal(guest_ioctl(g.vm, KVM_GET_NR_MMU_PAGES, NULL), 0);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_NR_MMU_PAGES, (void *)(1ull << 31)), 0);
  assert_int_equal(guest_ioctl(g.vm, KVM_GET_NR_MMU_PAGES, NULL), INT32_MIN); /* and no error */
  assert_int_equal(guest_ioctl(g.vm, KVM_REINJECT_CONTROL, &control), -ENXIO);
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), -EINVAL);
  cap.args[0] = 2;
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
  cap.args[0] = 3;
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), -EINVAL);
  assert_int_equal(guest_ioctl(g.vm, KVM_CREATE_VCPU, (void *)2), -EINVAL);
  int cpu = guest_ioctl(g.vm, KVM_CREATE_VCPU, (void *)1);
  assert_true(cpu >= 0);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_BOOT_CPU_ID, (void *)1), -EBUSY);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_IDENTITY_MAP_ADDR, &addr), -EINVAL);
  assert_int_equal(guest_ioctl(g.vm, KVM_CREATE_IRQCHIP, NULL), -EINVAL);
  uvirt_close(cpu);
  guest_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(registers),
      cmocka_unit_test(power_on_state),
      cmocka_unit_test(special_registers),
      cmocka_unit_test(cr4_follows_cpuid),
      cmocka_unit_test(sregs2_pdptrs),
      cmocka_unit_test(extended_state),
      cmocka_unit_test(events),
      cmocka_unit_test(debug_registers),
      cmocka_unit_test(run_state),
      cmocka_unit_test(translation),
      cmocka_unit_test(machine_checks),
      cmocka_unit_test(vm_settings),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
