/* CPUID: the supported table, setting and reading it, run-time bits, out-of-range leaves. */
#include <cpuid.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "guest.h"

static void supported_table(void **state) {
  struct guest g;
  struct cpuid_table t;
  guest_open(&g, 0, false);
  guest_supported(&g, &t);
  struct kvm_cpuid_entry2 *e = cpuid_entry(&t, 0x40000000, 0);
  assert_non_null(e);
  assert_memory_equal(&e->ebx, "KVMK", 4);
  e = cpuid_entry(&t, 1, 0);
  assert_true(e->ecx & 1u << 21);  /* x2APIC */
  assert_false(e->ecx & 1u << 24); /* TSC deadline: by capability */
  assert_false(e->ecx & 1u << 27); /* OSXSAVE is CR4's */
  assert_true(e->ecx & 1u << 31);  /* hypervisor */
  assert_true(e->edx & 1u << 26);  /* SSE2 */
  assert_true(cpuid_entry(&t, 0x80000001, 0)->edx & 1u << 29);
  assert_int_equal(cpuid_entry(&t, 0xd, 0)->eax & 3, 3);
  t.head.nent = 2;
  assert_int_equal(guest_ioctl(g.sys, KVM_GET_SUPPORTED_CPUID, &t), -E2BIG);
  t.head.nent = 0;
  assert_int_equal(guest_ioctl(g.sys, KVM_GET_SUPPORTED_CPUID, &t), -E2BIG);
  guest_close(&g);
}

CODE16(cpuid_highest, "cpuid; hlt");

static void out_of_range_leaves(void **state) {
  for (int amd = 0; amd < 2; amd++) {
    struct guest g;
    struct cpuid_table t = {.head = {.nent = 3}};
    t.entries[0] = (struct kvm_cpuid_entry2){.function = 0, .eax = 1};
    memcpy(&t.entries[0].ebx, amd ? "Auth" : "Genu", 4);
    memcpy(&t.entries[0].edx, amd ? "enti" : "ineI", 4);
    memcpy(&t.entries[0].ecx, amd ? "cAMD" : "ntel", 4);
    t.entries[1] = (struct kvm_cpuid_entry2){.function = 1, .eax = 0x12345, .edx = 0x11};
    t.entries[2] = (struct kvm_cpuid_entry2){.function = 0x80000000, .eax = 0x80000000};
    guest_open(&g, 1, false);
    assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_CPUID2, &t), 0);
    guest_code16(&g, cpuid_highest_begin, cpuid_highest_end);
    struct kvm_regs r = guest_regs(&g, 0);
    r.rax = 0x77;
    assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_REGS, &r), 0);
    assert_int_equal(guest_run(&g, 0), KVM_EXIT_HLT);
    assert_int_equal(guest_regs(&g, 0).rax, amd ? 0 : 0x12345);
    guest_close(&g);
  }
}

/* Clients take offsets of an XSAVE image from the host's own CPUID (api.rst 4.42). */
static void components_are_where_the_host_has_them(void **state) {
  struct cpuid_table t = {.head = {.nent = ROOM}};
  struct guest g;
  guest_open(&g, 1, false);
  assert_int_equal(guest_ioctl(g.sys, KVM_GET_SUPPORTED_CPUID, &t), 0);
  for (uint32_t n = 2; n < 32; n++) {
    uint32_t a, b, c, d;
    struct kvm_cpuid_entry2 *e = cpuid_entry(&t, 0xd, n);
    bool enabled = cpuid_entry(&t, 0xd, 0)->eax >> n & 1;
    assert_true(enabled == (e != NULL));
    if (!e) continue;
    __cpuid_count(0xd, n, a, b, c, d);
    assert_int_equal(e->eax, a);
    assert_int_equal(e->ebx, b);
    assert_int_equal(e->ecx, c & 3);
    assert_int_equal(e->edx, d);
  }
  assert_int_equal(cpuid_entry(&t, 7, 0)->ecx >> 3 & 1, cpuid_entry(&t, 0xd, 0)->eax >> 9 & 1);
  guest_close(&g);
}

static void table_is_fixed_after_the_first_run(void **state) {
  struct guest g;
  struct cpuid_table t;
  guest_open(&g, 1, true);
  guest_supported(&g, &t);
  guest_code16(&g, cpuid_highest_begin, cpuid_highest_end);
  assert_int_equal(guest_run(&g, 0), KVM_EXIT_HLT);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_CPUID2, &t), 0);
  cpuid_entry(&t, 7, 0)->ebx ^= 1;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_CPUID2, &t), -EINVAL);
  t.head.nent = 257;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_CPUID2, &t), -E2BIG);
  guest_close(&g);
}

static uint32_t leaf1_ecx(struct guest *g) {
  struct cpuid_table t = {.head = {.nent = ROOM}};
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_GET_CPUID2, &t), 0);
  return cpuid_entry(&t, 1, 0)->ecx;
}

static void run_time_bits_follow(void **state) {
  struct guest g;
  struct kvm_sregs s;
  guest_open(&g, 1, true);
  assert_false(leaf1_ecx(&g) & 1u << 27);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &s), 0);
  s.cr4 |= 1u << 18;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS, &s), 0);
  assert_true(leaf1_ecx(&g) & 1u << 27);
  s.cr4 &= ~(1ull << 18);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS, &s), 0);
  assert_false(leaf1_ecx(&g) & 1u << 27);
  struct cpuid_table t = {.head = {.nent = ROOM}};
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_CPUID2, &t), 0);
  assert_int_equal(cpuid_entry(&t, 0xd, 0)->ebx, 0x240);
  guest_close(&g);
}

static void mwait_bit_follows_misc_enable(void **state) {
  struct guest g;
  struct kvm_enable_cap cap = {.cap = KVM_CAP_DISABLE_QUIRKS2, .args = {KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT}};
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
  assert_false(leaf1_ecx(&g) & 8);
  assert_true(guest_set_msr(&g, 0, 0x1a0, guest_get_msr(&g, 0, 0x1a0) | 1 << 18));
  assert_true(leaf1_ecx(&g) & 8);
  cap.args[0] = 0x80;
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), -EINVAL);
  guest_close(&g);
}

/* The bits that follow run-time state, worked out from that state. */
struct expected {
  uint64_t cr4, xcr0, apic_base, misc_enable;
};

static uint32_t area_size(struct cpuid_table *t, uint64_t xcr0) {
  uint32_t size = 576;
  for (uint32_t k = 2; k < 63; k++) {
    struct kvm_cpuid_entry2 *e = xcr0 >> k & 1 ? cpuid_entry(t, 0xd, k) : NULL;
    if (e && e->eax + e->ebx > size) size = e->eax + e->ebx;
  }
  return size;
}

static void compare(struct guest *g, const struct expected *x) {
  struct cpuid_table t = {.head = {.nent = ROOM}};
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_GET_CPUID2, &t), 0);
  assert_int_equal(cpuid_entry(&t, 1, 0)->ecx >> 27 & 1, x->cr4 >> 18 & 1);
  assert_int_equal(cpuid_entry(&t, 7, 0)->ecx >> 4 & 1, x->cr4 >> 22 & 1);
  assert_int_equal(cpuid_entry(&t, 1, 0)->edx >> 9 & 1, x->apic_base >> 11 & 1);
  assert_int_equal(cpuid_entry(&t, 1, 0)->ecx >> 3 & 1, x->misc_enable >> 18 & 1);
  assert_int_equal(cpuid_entry(&t, 0xd, 0)->ebx, area_size(&t, x->xcr0));
}

static void random_events_keep_the_bits_right(void **state) {
  static const uint64_t xcr0s[] = {1, 3, 7, 0x203, 0x207};
  struct kvm_enable_cap cap = {.cap = KVM_CAP_DISABLE_QUIRKS2, .args = {KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT}};
  struct expected x = {.xcr0 = 1, .apic_base = 0xfee00900};
  struct guest g;
  struct kvm_sregs s;
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
  x.misc_enable = guest_get_msr(&g, 0, 0x1a0);
  srand(22);
  for (int k = 0; k < 50000; k++) {
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0].value = xcr0s[rand() % 5]};
    assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &s), 0);
    switch (rand() % 4) {
    case 0:
      s.cr4 ^= 1 << 18;
      break;
    case 1:
      s.cr4 ^= 1 << 22;
      break;
    case 2:
      s.apic_base ^= 1 << 11;
      break;
    default:
      if (rand() & 1) {
        if (!guest_ioctl(g.cpu[0], KVM_SET_XCRS, &xcrs)) x.xcr0 = xcrs.xcrs[0].value;
      } else {
        x.misc_enable ^= 1 << 18;
        assert_true(guest_set_msr(&g, 0, 0x1a0, x.misc_enable));
      }
    }
    assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS, &s), 0);
    x.cr4 = s.cr4;
    x.apic_base = s.apic_base;
    compare(&g, &x);
  }
  guest_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(supported_table),
      cmocka_unit_test(out_of_range_leaves),
      cmocka_unit_test(components_are_where_the_host_has_them),
      cmocka_unit_test(table_is_fixed_after_the_first_run),
      cmocka_unit_test(run_time_bits_follow),
      cmocka_unit_test(mwait_bit_follows_misc_enable),
      cmocka_unit_test(random_events_keep_the_bits_right),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
