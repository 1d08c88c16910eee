/* The 8254 and port 61h. */
#include "fake.h"
#include <errno.h>

#define TICKS(n) (((u64)(n)*1000000000ull + 1193181) / 1193182)

static void start_with(u32 flags) {
  fake_start('k', 1, 0);
  fake_out(0x20, 0x11), fake_out(0x21, 0x20), fake_out(0x21, 0x04), fake_out(0x21, 1);
  struct kvm_pit_config cfg = {.flags = flags};
  assert_int_equal(x86_pit_create(&fake.vm, &cfg), 0);
}
static int start(void **s) {
  start_with(KVM_PIT_SPEAKER_DUMMY);
  return 0;
}
static int stop(void **s) {
  fake_stop();
  return 0;
}

static void program(unsigned ch, unsigned mode, unsigned count) {
  fake_out(0x43, (u8)(ch << 6 | 0x30 | mode << 1));
  fake_out((u16)(0x40 + ch), (u8)count);
  fake_out((u16)(0x40 + ch), (u8)(count >> 8));
}
static unsigned read16(unsigned ch) {
  unsigned low = fake_in((u16)(0x40 + ch));
  return low | fake_in((u16)(0x40 + ch)) << 8;
}
static bool out2(void) {
  return fake_in(0x61) & 0x20;
}
/* Acknowledges and ends one interrupt of the PIC. */
static bool irq0(void) {
  if (!x86_pic_output(fake.vm.irqchip->pic)) return false;
  assert_int_equal(x86_pic_ack(fake.vm.irqchip->pic), 0x20);
  fake_out(0x20, 0x20);
  return true;
}

/* Count and output after some clocks, channel 2 with its gate high. */
static void modes(void **s) {
  static const struct {
    u8 mode;
    u16 load;
    u32 clocks;
    u16 count;
    bool out;
  } rows[] = {
      {0, 1000, 0, 1000, false}, {0, 1000, 999, 1, false},  {0, 1000, 1000, 0, true},      {0, 1000, 1001, 0xffff, true},
      {2, 1000, 0, 1000, true},  {2, 1000, 998, 2, true},   {2, 1000, 999, 1, false},      {2, 1000, 1000, 1000, true},
      {2, 0, 65535, 1, false},   {3, 1000, 0, 1000, true},  {3, 1000, 499, 2, true},       {3, 1000, 500, 1000, false},
      {3, 1000, 999, 2, false},  {3, 1001, 500, 0, true},   {3, 1001, 501, 1000, false},   {3, 1001, 1000, 2, false},
      {4, 1000, 999, 1, true},   {4, 1000, 1000, 0, false}, {4, 1000, 1001, 0xffff, true},
  };
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++) {
    fake_out(0x61, 1);
    program(2, rows[k].mode, rows[k].load);
    fake_sleep(TICKS(rows[k].clocks));
    unsigned count = read16(2);
    if (count != rows[k].count || out2() != rows[k].out) fail_msg("row %u: count %u out %d", k, count, out2());
  }
}

static void gate(void **s) {
  fake_out(0x61, 1);
  program(2, 0, 1000);
  fake_sleep(TICKS(400));
  fake_out(0x61, 0); /* stops */
  fake_sleep(TICKS(5000));
  assert_int_equal(read16(2), 600);
  fake_out(0x61, 1); /* goes on */
  fake_sleep(TICKS(100));
  assert_in_range(read16(2), 499, 500);
  fake_out(0x61, 0);
  program(2, 1, 100); /* one-shot, by the gate */
  assert_true(out2());
  fake_sleep(TICKS(1000));
  fake_out(0x61, 3);
  assert_int_equal(fake_in(0x61) & 0x23, 3);
  fake_sleep(TICKS(99));
  assert_false(out2());
  fake_sleep(TICKS(2));
  assert_true(out2());
  fake_out(0x61, 0), fake_out(0x61, 1); /* again */
  assert_false(out2());
  program(2, 2, 10);
  fake_sleep(TICKS(9));
  assert_false(out2());
  fake_out(0x61, 0);
  assert_true(out2());
  program(2, 5, 100);
  fake_out(0x61, 1);
  fake_sleep(TICKS(100));
  assert_false(out2());
  fake_sleep(TICKS(1));
  assert_true(out2());
}

static void access_modes(void **s) {
  fake_out(0x43, 0x94); /* low byte only, mode 2 */
  fake_out(0x42, 0x80);
  fake_out(0x61, 1);
  assert_int_equal(fake_in(0x42), 0x80);
  assert_int_equal(fake_in(0x42), 0x80);
  fake_out(0x43, 0xa4); /* high byte only */
  fake_out(0x42, 0x12);
  assert_int_equal(fake_in(0x42), 0x12);
  program(2, 0, 0x1234);
  fake_out(0x43, 0x80); /* latch */
  fake_sleep(TICKS(0x100));
  fake_out(0x43, 0x80); /* a second latch is ignored until the first is read */
  assert_int_equal(read16(2), 0x1234);
  assert_int_equal(read16(2), 0x1134);
  fake_out(0x43, 0xb1); /* BCD, mode 0 */
  fake_out(0x42, 0x00), fake_out(0x42, 0x10);
  fake_sleep(TICKS(1));
  assert_int_equal(read16(2), 0x0999);
  fake_sleep(TICKS(1000));
  assert_int_equal(read16(2), 0x9999);
}

static void read_back(void **s) {
  fake_out(0x43, 0xb6); /* mode 3, no count yet */
  fake_out(0x43, 0xe8);
  assert_int_equal(fake_in(0x42), 0xf6); /* OUT high, null count */
  fake_out(0x42, 0x10), fake_out(0x42, 0x00);
  fake_out(0x61, 1);
  fake_out(0x43, 0xc8); /* status and count */
  assert_int_equal(fake_in(0x42), 0xb6);
  assert_int_equal(read16(2), 0x10);
  fake_out(0x43, 0xb0);
  fake_out(0x43, 0xe8);
  assert_int_equal(fake_in(0x42), 0x70);
}

static void periodic_irq(void **s) {
  x86_pit_reinject(&fake.vm, false);
  program(0, 2, 11932); /* 10 ms */
  for (unsigned k = 0; k < 100; k++) {
    fake_sleep(k ? TICKS(11932) : TICKS(11932) + 1000);
    assert_true(irq0());
    assert_false(irq0());
    assert_in_range(read16(0), 11900, 11932);
  }
  fake_sleep(10 * TICKS(11932));
  assert_true(irq0()); /* those not taken are lost */
  assert_false(irq0());
  program(0, 0, 11932);
  fake_sleep(TICKS(11932));
  assert_true(irq0());
  fake_sleep(TICKS(50000));
  assert_false(irq0());
  fake_out(0x43, 0x34); /* a control word stops it */
  fake_sleep(TICKS(50000));
  assert_false(irq0());
}

static void reinjection(void **s) {
  program(0, 2, 11932);
  fake_sleep(10 * TICKS(11932) + 1000);
  unsigned n = 0;
  while (irq0()) n++;
  assert_int_equal(n, 10);
  fake_out(0x21, 1); /* while masked ticks pile up and are dropped */
  fake_sleep(10 * TICKS(11932));
  fake_out(0x21, 0);
  for (n = 0; irq0();) n++;
  assert_int_equal(n, 1);
  assert_int_equal(x86_pit_reinject(&fake.vm, true), 0);
}

/* Through the I/O APIC: acknowledged by the local APIC's EOI. */
static void through_ioapic(void **s) {
  apic_enable(0);
  apic_write(0, REG_LVT_LINT0, 0x10000);
  fake_out(0x21, 0xff);
  fake_mmio_write(0xfec00000, 0x10);
  fake_mmio_write(0xfec00010, 0x30);
  program(0, 2, 11932);
  fake_sleep(5 * TICKS(11932) + 1000);
  unsigned n = 0;
  while (x86_irq_ack(fake.vcpu[0]) == 0x30) {
    apic_write(0, REG_EOI, 0);
    n++;
  }
  assert_int_equal(n, 5);
}

static void nmi_watchdog(void **s) {
  apic_enable(0);
  apic_write(0, REG_LVT_LINT0, 0x400);
  program(0, 2, 11932);
  fake_sleep(TICKS(11932));
  assert_int_equal(atomic_load(&fake.vcpu[0]->nmi_pending), 1);
}

static void state(void **s) {
  struct kvm_pit_state2 a, b;
  program(0, 2, 11932);
  program(2, 3, 0x1234);
  fake_out(0x61, 3);
  assert_int_equal(x86_pit_get(&fake.vm, &a), 0);
  assert_int_equal(a.channels[0].count, 11932);
  assert_int_equal(a.channels[0].mode, 2);
  assert_int_equal(a.channels[0].rw_mode, 3);
  assert_int_equal(a.channels[2].gate, 1);
  assert_int_equal(a.flags, KVM_PIT_FLAGS_SPEAKER_DATA_ON);
  program(0, 0, 1);
  assert_int_equal(x86_pit_set(&fake.vm, &a), 0);
  assert_int_equal(x86_pit_get(&fake.vm, &b), 0);
  for (unsigned k = 0; k < 3; k++) a.channels[k].count_load_time = b.channels[k].count_load_time;
  assert_memory_equal(&a, &b, sizeof(a));
  fake_sleep(TICKS(11932));
  assert_true(irq0());
  a.flags |= KVM_PIT_FLAGS_HPET_LEGACY; /* the client has taken the timer interrupt */
  x86_pit_set(&fake.vm, &a);
  fake_sleep(10 * TICKS(11932));
  assert_false(irq0());
  memset(&a, 0xff, sizeof(a)); /* nonsense does no harm */
  x86_pit_set(&fake.vm, &a);
  for (unsigned k = 0; k < 3; k++) read16(k), fake_out(0x43, 0xc2), read16(k);
  assert_int_equal(x86_pit_create(&fake.vm, &(struct kvm_pit_config){0}), -EEXIST);
}

static void none(void **s) {
  struct kvm_pit_state2 a = {0};
  fake_stop();
  fake_start('k', 1, 0);
  assert_int_equal(x86_pit_get(&fake.vm, &a), -ENXIO);
  assert_int_equal(x86_pit_set(&fake.vm, &a), -ENXIO);
  assert_int_equal(x86_pit_reinject(&fake.vm, true), -ENXIO);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
  const struct CMUnitTest tests[] = {
      TEST(modes),       TEST(gate),           TEST(access_modes), TEST(read_back), TEST(periodic_irq),
      TEST(reinjection), TEST(through_ioapic), TEST(nmi_watchdog), TEST(state),     TEST(none),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
