/* KVM_GET_LAPIC and KVM_SET_LAPIC. */
#include "fake.h"
#include <errno.h>

#define C fake.vcpu[1]

static int start(void **s) {
  fake_start('k', 2, 0);
  apic_enable(0);
  apic_enable(1);
  return 0;
}
static int stop(void **s) {
  fake_stop();
  return 0;
}

static u32 at(const struct kvm_lapic_state *s, unsigned offset) {
  u32 v;
  memcpy(&v, s->regs + offset, 4);
  return v;
}

/* Every register where the page has it, and the same page back after a round trip through another APIC's state. */
static void round_trip(void **s) {
  struct kvm_lapic_state a, b;
  apic_write(1, REG_TPR, 0x21);
  apic_write(1, REG_LDR, 0x02000000);
  apic_write(1, REG_ICR2, 0x05000000);
  apic_write(1, REG_ICR, 0x4500);
  apic_write(1, REG_LVT_LINT0, 0x8700);
  apic_write(1, REG_LVT_TIMER, 0x20030);
  apic_write(1, REG_TDCR, 3);
  lapic_accept(C->lapic, APIC_FIXED, 0x71, true, true);
  assert_int_equal(x86_irq_ack(C), 0x71);
  lapic_accept(C->lapic, APIC_FIXED, 0x62, true, false);
  static const struct {
    u16 offset;
    u32 value;
  } rows[] = {
      {0x20, 0x01000000}, {0x30, 0x50014},  {0x80, 0x21},     {0xa0, 0x70},     {0xd0, 0x02000000}, {0xe0, ~0u},
      {0xf0, 0x1ff},      {0x130, 0x20000}, {0x1b0, 0x20000}, {0x230, 4},       {0x300, 0x4500},    {0x310, 0x05000000},
      {0x320, 0x20030},   {0x350, 0x8700},  {0x360, 0x10000}, {0x370, 0x10000}, {0x3e0, 3},
  };
  assert_int_equal(x86_lapic_get_state(C, &a), 0);
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++)
    if (at(&a, rows[k].offset) != rows[k].value) fail_msg("%x: %x", rows[k].offset, at(&a, rows[k].offset));
  x86_lapic_reset(C, false);
  fake_event(1);
  assert_int_equal(x86_lapic_set_state(C, &a), 0);
  assert_true(fake_event(1));
  assert_int_equal(x86_lapic_get_state(C, &b), 0);
  assert_memory_equal(&a, &b, sizeof(a));
  assert_int_equal(x86_irq_ack(C), -1); /* 62h waits for 71h */
  apic_write(1, REG_EOI, 0);
  assert_int_equal(x86_irq_ack(C), 0x62);
  assert_int_equal(x86_msi_deliver(&fake.vm, 0xfee02004, 0x50), 1); /* the logical ID is back */
}

static void x2apic_formats(void **s) {
  struct kvm_lapic_state a;
  apic_x2(1);
  assert_int_equal(x86_x2apic_write(C, 0x830, 0x300004500ull), 0);
  assert_int_equal(x86_lapic_get_state(C, &a), 0);
  assert_int_equal(at(&a, 0x20), 0x01000000);
  assert_int_equal(at(&a, 0xd0), 2);
  assert_int_equal(at(&a, 0x300), 0x4500);
  assert_int_equal(at(&a, 0x310), 3);
  assert_int_equal(x86_lapic_set_state(C, &a), 0);
  fake.vm.x2apic_format = KVM_X2APIC_API_USE_32BIT_IDS;
  assert_int_equal(x86_lapic_set_state(C, &a), -EINVAL);
  assert_int_equal(x86_lapic_get_state(C, &a), 0);
  assert_int_equal(at(&a, 0x20), 1);
  assert_int_equal(x86_lapic_set_state(C, &a), 0);
}

/* The request register is a mailbox for some clients: every bit comes back. */
static void all_requests(void **s) {
  struct kvm_lapic_state a, b;
  x86_lapic_get_state(C, &a);
  for (unsigned k = 0; k < 8; k++) memset(a.regs + 0x200 + k * 16, 0xff, 4);
  assert_int_equal(x86_lapic_set_state(C, &a), 0);
  x86_lapic_get_state(C, &b);
  assert_memory_equal(a.regs + 0x200, b.regs + 0x200, 0x80);
  for (int v = 255; v >= 16; v -= 1) {
    assert_int_equal(x86_irq_ack(C), v);
    apic_write(1, REG_EOI, 0);
  }
  assert_int_equal(x86_irq_ack(C), -1);
}

/* A page of any content is taken without harm. */
static void garbage(void **s) {
  struct kvm_lapic_state a;
  for (unsigned k = 0; k < 256; k++) {
    memset(&a, (int)k, sizeof(a));
    assert_int_equal(x86_lapic_set_state(C, &a), 0);
    for (unsigned n = 0; n < 300; n++) {
      int v = x86_irq_ack(C);
      assert_true(v == -1 || (v >= 16 && v < 256) || v < 8);
      apic_write(1, REG_EOI, 0);
    }
    fake_sleep(1000000);
  }
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
  const struct CMUnitTest tests[] = {TEST(round_trip), TEST(x2apic_formats), TEST(all_requests), TEST(garbage)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
