/* The local APIC timer. */
#include "fake.h"

#define C fake.vcpu[0]

static int start(void **s) {
  fake_start('k', 1, 0);
  apic_enable(0);
  return 0;
}
static int stop(void **s) {
  fake_stop();
  return 0;
}

static int take(void) {
  int v = x86_irq_ack(C);
  if (v >= 0) apic_write(0, REG_EOI, 0);
  return v;
}

static void one_shot(void **s) {
  static const struct { u32 tdcr, divide; } rows[] = {{0xb, 1}, {0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64}, {10, 128}};
  apic_write(0, REG_LVT_TIMER, 0xee);
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++) {
    apic_write(0, REG_TDCR, rows[k].tdcr);
    apic_write(0, REG_TMICT, 1000);
    assert_int_equal(apic_read(0, REG_TMCCT), 1000);
    fake_sleep(400 * rows[k].divide);
    assert_int_equal(apic_read(0, REG_TMCCT), 600);
    fake_sleep(600 * rows[k].divide - 1);
    assert_false(x86_irq_pending(C));
    fake_sleep(1);
    assert_int_equal(take(), 0xee);
    assert_int_equal(apic_read(0, REG_TMCCT), 0);
    fake_sleep(1000000);
    assert_int_equal(take(), -1);
  }
}

static void periodic(void **s) {
  apic_write(0, REG_TDCR, 0xb);
  apic_write(0, REG_LVT_TIMER, 0x200ee);
  apic_write(0, REG_TMICT, 1000000);
  for (unsigned k = 0; k < 5; k++) {
    fake_sleep(1000000);
    assert_int_equal(take(), 0xee);
  }
  fake_sleep(3400000); /* not looking: one interrupt, and the phase stays */
  assert_int_equal(take(), 0xee);
  assert_int_equal(take(), -1);
  fake_sleep(599999);
  assert_int_equal(take(), -1);
  fake_sleep(1);
  assert_int_equal(take(), 0xee);
  apic_write(0, REG_LVT_TIMER, 0x300ee); /* masked: goes on silently */
  fake_sleep(1000000);
  assert_int_equal(take(), -1);
  apic_write(0, REG_LVT_TIMER, 0x200ee);
  fake_sleep(1000000);
  assert_int_equal(take(), 0xee);
  apic_write(0, REG_TMICT, 0);
  fake_sleep(10000000);
  assert_int_equal(take(), -1);
  apic_write(0, REG_TMICT, 10); /* too fast for the host */
  fake_sleep(199999);
  assert_int_equal(take(), -1);
  fake_sleep(1);
  assert_int_equal(take(), 0xee);
}

/* Software disable masks the timer; it runs on and is heard again after. */
static void disabled_meanwhile(void **s) {
  apic_write(0, REG_TDCR, 0xb);
  apic_write(0, REG_LVT_TIMER, 0x200ee);
  apic_write(0, REG_TMICT, 1000000);
  fake_sleep(1000000);
  apic_write(0, REG_SVR, 0xff);
  assert_int_equal(take(), 0xee); /* was due before */
  fake_sleep(1000000);
  assert_int_equal(take(), -1);
  apic_enable(0);
  apic_write(0, REG_LVT_TIMER, 0x200ee);
  fake_sleep(1000000);
  assert_int_equal(take(), 0xee);
}

static void divide_while_running(void **s) {
  apic_write(0, REG_LVT_TIMER, 0xee);
  apic_write(0, REG_TDCR, 0xb);
  apic_write(0, REG_TMICT, 1000);
  fake_sleep(500);
  apic_write(0, REG_TDCR, 0);
  assert_int_equal(apic_read(0, REG_TMCCT), 500);
  fake_sleep(999);
  assert_int_equal(take(), -1);
  fake_sleep(1);
  assert_int_equal(take(), 0xee);
}

static void deadline(void **s) {
  x86_lapic_deadline_set(C, fake.now * 2 + 1000);
  assert_int_equal(x86_lapic_deadline_get(C), 0); /* not in that mode */
  apic_write(0, REG_LVT_TIMER, 0x400ee);
  u64 at = (fake.now + 50000) * 2;
  x86_lapic_deadline_set(C, at);
  assert_int_equal(x86_lapic_deadline_get(C), at);
  assert_int_equal(apic_read(0, REG_TMCCT), 0);
  fake_sleep(49999);
  assert_int_equal(take(), -1);
  fake_sleep(1);
  assert_int_equal(take(), 0xee);
  assert_int_equal(x86_lapic_deadline_get(C), 0);
  x86_lapic_deadline_set(C, 5); /* passed long ago */
  assert_int_equal(take(), 0xee);
  x86_lapic_deadline_set(C, (fake.now + 1000) * 2);
  x86_lapic_deadline_set(C, 0);
  fake_sleep(5000);
  assert_int_equal(take(), -1);
  x86_lapic_deadline_set(C, (fake.now + 1000) * 2);
  apic_write(0, REG_LVT_TIMER, 0xee); /* leaving the mode disarms */
  fake_sleep(5000);
  assert_int_equal(take(), -1);
  fake.deadline = false;
  apic_write(0, REG_LVT_TIMER, 0x400ee);
  assert_int_equal(apic_read(0, REG_LVT_TIMER), 0xee);
}

/* Pushing the deadline out, as tickless kernels do, costs no call of the service thread. */
static void later_is_cheap(void **s) {
  apic_write(0, REG_LVT_TIMER, 0x400ee);
  x86_lapic_deadline_set(C, (fake.now + 1000000) * 2);
  unsigned arms = fake.arms;
  for (unsigned k = 2; k < 100; k++) x86_lapic_deadline_set(C, (fake.now + k * 1000000) * 2);
  assert_int_equal(fake.arms, arms);
  fake_sleep(98999999);
  assert_int_equal(take(), -1);
  fake_sleep(1);
  assert_int_equal(take(), 0xee);
  x86_lapic_deadline_set(C, (fake.now + 2000000) * 2);
  x86_lapic_deadline_set(C, (fake.now + 1000000) * 2);
  fake_sleep(1000000);
  assert_int_equal(take(), 0xee);
}

/* With interrupts off the guest sees the request in IRR and the deadline gone. */
static void polled(void **s) {
  apic_write(0, REG_LVT_TIMER, 0x400ee);
  x86_lapic_deadline_set(C, (fake.now + 1000) * 2);
  assert_int_equal(apic_read(0, REG_IRR + 7), 0);
  fake_sleep(1000);
  assert_int_equal(apic_read(0, REG_IRR + 7), 1u << 14);
  assert_int_equal(x86_lapic_deadline_get(C), 0);
  assert_int_equal(take(), 0xee);
  apic_write(0, REG_LVT_TIMER, 0xee);
  apic_write(0, REG_TMICT, 1000);
  fake.now += 100000; /* the service thread is late */
  assert_int_equal(apic_read(0, REG_TMCCT), 0);
  assert_int_equal(take(), 0xee);
  fake_sleep(0);
  assert_int_equal(take(), -1);
}

/* A firing that a new deadline overtook is not taken for the new one's. */
static void overtaken(void **s) {
  apic_write(0, REG_LVT_TIMER, 0x400ee);
  x86_lapic_deadline_set(C, (fake.now + 10000) * 2);
  fake_sleep(10000);
  x86_lapic_deadline_set(C, (fake.now + 10000) * 2);
  atomic_store(&C->lapic->timer.fired, true);
  atomic_store(&C->lapic->posted, true);
  assert_int_equal(take(), -1);
  fake_sleep(10000);
  assert_int_equal(take(), 0xee);
}

static void restore(void **s) {
  struct kvm_lapic_state state;
  apic_write(0, REG_TDCR, 0xb);
  apic_write(0, REG_LVT_TIMER, 0x200ee);
  apic_write(0, REG_TMICT, 1000000);
  fake_sleep(300000);
  assert_int_equal(x86_lapic_get_state(C, &state), 0);
  fake_sleep(5000000);
  assert_int_equal(x86_lapic_set_state(C, &state), 0);
  assert_int_equal(take(), -1);
  fake_sleep(699999);
  assert_int_equal(take(), -1);
  fake_sleep(1);
  assert_int_equal(take(), 0xee);
  fake_sleep(1000000);
  assert_int_equal(take(), 0xee);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
  const struct CMUnitTest tests[] = {
      TEST(one_shot),
      TEST(periodic),
      TEST(disabled_meanwhile),
      TEST(divide_while_running),
      TEST(deadline),
      TEST(later_is_cheap),
      TEST(polled),
      TEST(overtaken),
      TEST(restore),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
