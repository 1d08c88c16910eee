/* MSRs: lists, access rules, exits to user space, filters. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "guest.h"
#include "x86/msr/msr.h"
#undef rip /* of regs.h; struct kvm_regs has a member of that name */

static void rows_are_sorted(void **state) {
  for (unsigned k = 0; k < x86_n_msr_rows; k++) {
    assert_true(x86_msr_rows[k].first <= x86_msr_rows[k].last);
    if (k) assert_true(x86_msr_rows[k - 1].last < x86_msr_rows[k].first);
    assert_ptr_equal(x86_msr_find(x86_msr_rows[k].first), &x86_msr_rows[k]);
    assert_ptr_equal(x86_msr_find(x86_msr_rows[k].last), &x86_msr_rows[k]);
  }
  assert_null(x86_msr_find(0x13));
  assert_null(x86_msr_find(~0u));
}

struct list {
  struct kvm_msr_list head;
  uint32_t index[256];
};

/* What the list names can be read, and written back as it was. */
static void listed_registers_can_be_saved(void **state) {
  struct guest g;
  struct list l = {0};
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.sys, KVM_GET_MSR_INDEX_LIST, &l), -E2BIG);
  assert_true(l.head.nmsrs > 20);
  assert_int_equal(guest_ioctl(g.sys, KVM_GET_MSR_INDEX_LIST, &l), 0);
  for (uint32_t k = 0; k < l.head.nmsrs; k++) {
    uint64_t v = guest_get_msr(&g, 0, l.index[k]);
    if (!guest_set_msr(&g, 0, l.index[k], v)) fail_msg("MSR 0x%x cannot be written back", l.index[k]);
  }
  l.head.nmsrs = 0;
  assert_int_equal(guest_ioctl(g.sys, KVM_GET_MSR_FEATURE_INDEX_LIST, &l), -E2BIG);
  guest_close(&g);
}

static void io_stops_at_the_first_refused(void **state) {
  struct guest g;
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entry[3];
  } m = {.head = {.nmsrs = 3}, .entry = {{.index = 0x174}, {.index = 0x13371337}, {.index = 0x175}}};
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_MSRS, &m), 1);
  m.head.nmsrs = 256;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_MSRS, &m), -E2BIG);
  guest_close(&g);
}

static void bad_values_are_refused(void **state) {
  static const struct {
    uint32_t index;
    uint64_t value;
    bool ok;
  } cases[] = {
      {0x277, 0x0007040600070406, true},
      {0x277, 2, false},
      {0x2ff, 0xc06, true},
      {0x2ff, 0x1006, false},
      {0x2ff, 2, false},
      {0x200, 6, true},
      {0x200, 0x106, false},
      {0x201, 0x800, true},
      {0x201, 1, false},
      {0x250, 0x0606060606060606, true},
      {0x250, 2, false},
      {0xc0000082, 0x7fffffffffff, true},
      {0xc0000082, 0x800000000000, false},
      {0xc0000103, 1, true},
      {0xda0, 1, false},
      {0x400, ~0ull, true},
      {0x400, 1, false},
      {0x4b564d05, 2, false},
      {0xc0010015, 1, false},
      {0x48, 0x407, true},
      {0x48, 8, false},
      {0x210, 0, false},
  };
  struct guest g;
  guest_open(&g, 1, true);
  for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++)
    if (guest_set_msr(&g, 0, cases[k].index, cases[k].value) != cases[k].ok) fail_msg("MSR 0x%x", cases[k].index);
  guest_close(&g);
}

CODE64(rdmsr_unknown, "mov $0x35, %ecx; xor %eax, %eax; xor %edx, %edx; rdmsr; hlt");
CODE64(wrmsr_known, "mov $0x174, %ecx; mov $0x10, %eax; mov $1, %edx; wrmsr; rdmsr; hlt");

static void unknown_register_exits_to_user_space(void **state) {
  struct guest g;
  struct kvm_enable_cap cap = {.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = {KVM_MSR_EXIT_REASON_UNKNOWN}};
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
  guest_code64(&g, 0, rdmsr_unknown_begin, rdmsr_unknown_end);
  assert_int_equal(guest_run(&g, 0), KVM_EXIT_X86_RDMSR);
  assert_int_equal(g.run[0]->msr.index, 0x35);
  assert_int_equal(g.run[0]->msr.reason, KVM_MSR_EXIT_REASON_UNKNOWN);
  g.run[0]->msr.data = 0x1122334455667788;
  assert_int_equal(guest_run(&g, 0), KVM_EXIT_HLT);
  assert_int_equal(guest_regs(&g, 0).rax, 0x55667788);
  assert_int_equal(guest_regs(&g, 0).rdx, 0x11223344);
  guest_close(&g);
}

/* Completion without running: the instruction is over when KVM_RUN returns. */
static void exit_completes_with_immediate_exit(void **state) {
  struct guest g;
  struct kvm_enable_cap cap = {.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = {KVM_MSR_EXIT_REASON_UNKNOWN}};
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
  guest_code64(&g, 0, rdmsr_unknown_begin, rdmsr_unknown_end);
  assert_int_equal(guest_run(&g, 0), KVM_EXIT_X86_RDMSR);
  uint64_t at = guest_regs(&g, 0).rip;
  g.run[0]->immediate_exit = 1;
  assert_int_equal(guest_run(&g, 0), -EINTR);
  assert_int_equal(guest_regs(&g, 0).rip, at + 2);
  guest_close(&g);
}

static void filter_denies(void **state) {
  struct guest g;
  uint64_t bitmap = 0;
  struct kvm_enable_cap cap = {.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = {KVM_MSR_EXIT_REASON_FILTER}};
  struct kvm_msr_filter f = {
      .ranges[0] = {.flags = KVM_MSR_FILTER_WRITE, .base = 0x174, .nmsrs = 3, .bitmap = (uint8_t *)&bitmap}};
  guest_open(&g, 1, true);
  assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
  assert_int_equal(guest_ioctl(g.vm, KVM_X86_SET_MSR_FILTER, &f), 0);
  guest_code64(&g, 0, wrmsr_known_begin, wrmsr_known_end);
  assert_int_equal(guest_run(&g, 0), KVM_EXIT_X86_WRMSR);
  assert_int_equal(g.run[0]->msr.data, 0x100000010);
  assert_int_equal(g.run[0]->msr.reason, KVM_MSR_EXIT_REASON_FILTER);
  assert_int_equal(guest_run(&g, 0), KVM_EXIT_HLT); /* reads are allowed, and the write did not happen */
  assert_int_equal(guest_regs(&g, 0).rax, 0);
  guest_close(&g);
}

static void filter_errors(void **state) {
  struct guest g;
  static uint8_t bitmap[0x601];
  struct kvm_msr_filter f;
  guest_open(&g, 0, false);
#define FILTER(...) (f = (struct kvm_msr_filter){__VA_ARGS__}, guest_ioctl(g.vm, KVM_X86_SET_MSR_FILTER, &f))
  assert_int_equal(FILTER(.flags = 2), -EINVAL);
  assert_int_equal(FILTER(.flags = KVM_MSR_FILTER_DEFAULT_DENY), -EINVAL);
  assert_int_equal(FILTER(.ranges[0] = {.flags = 0, .nmsrs = 1, .bitmap = bitmap}), -EINVAL);
  assert_int_equal(FILTER(.ranges[0] = {.flags = 4, .nmsrs = 1, .bitmap = bitmap}), -EINVAL);
  assert_int_equal(FILTER(.ranges[0] = {.flags = 1, .nmsrs = 0x3001, .bitmap = bitmap}), -EINVAL);
  assert_int_equal(FILTER(.ranges[0] = {.flags = 1, .nmsrs = 0x3000, .bitmap = bitmap}), 0);
  assert_int_equal(FILTER(.ranges[0] = {.flags = 1, .nmsrs = 8, .bitmap = NULL}), -EFAULT);
  assert_int_equal(FILTER(.flags = 0), 0);
  guest_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_are_sorted),
      cmocka_unit_test(listed_registers_can_be_saved),
      cmocka_unit_test(io_stops_at_the_first_refused),
      cmocka_unit_test(bad_values_are_refused),
      cmocka_unit_test(unknown_register_exits_to_user_space),
      cmocka_unit_test(exit_completes_with_immediate_exit),
      cmocka_unit_test(filter_denies),
      cmocka_unit_test(filter_errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
