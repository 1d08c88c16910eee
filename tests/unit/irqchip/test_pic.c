/* The 8259 pair. */
#include "fake.h"
#include <errno.h>

#define PIC fake.vm.irqchip->pic

static void init(u8 icw4) {
  fake_out(0x20, 0x11), fake_out(0x21, 0x20), fake_out(0x21, 0x04), fake_out(0x21, icw4);
  fake_out(0xa0, 0x11), fake_out(0xa1, 0x28), fake_out(0xa1, 0x02), fake_out(0xa1, 0x01);
}
static int start(void **s) {
  fake_start('k', 1, 0);
  init(1);
  return 0;
}
static int stop(void **s) {
  fake_stop();
  return 0;
}

static void raise_lines(u16 lines) {
  for (unsigned k = 0; k < 16; k++)
    if (lines >> k & 1) fake_line(k, 1);
}
static void pulse(unsigned k) {
  fake_line(k, 1), fake_line(k, 0);
}
static int take(void) {
  return x86_pic_output(PIC) ? x86_pic_ack(PIC) : -1;
}
static u8 reg(u16 port, u8 ocw3) {
  fake_out(port, ocw3);
  return fake_in(port);
}
#define IRR(port) reg(port, 0x0a)
#define ISR(port) reg(port, 0x0b)

static void masks_and_ports(void **s) {
  fake_out(0x21, 0x5a);
  fake_out(0xa1, 0xa5);
  assert_int_equal(fake_in(0x21), 0x5a);
  assert_int_equal(fake_in(0xa1), 0xa5);
  fake_out(0x4d0, 0xff);
  fake_out(0x4d1, 0xff);
  assert_int_equal(fake_in(0x4d0), 0xf8);
  assert_int_equal(fake_in(0x4d1), 0xde);
}

/* Fixed priorities: 0, 1, 8-15 through the cascade, 3-7. */
static void priorities(void **s) {
  static const u8 order[] = {0x20, 0x21, 0x28, 0x29, 0x2a, 0x2f, 0x23, 0x27};
  raise_lines(0x878b & ~0x0800u);
  raise_lines(1u << 10);
  for (unsigned k = 0; k < ARRAY_SIZE(order); k++) {
    assert_int_equal(take(), order[k]);
    assert_int_equal(take(), -1); /* lower ones wait for the EOI */
    if (order[k] >= 0x28) fake_out(0xa0, 0x20);
    fake_out(0x20, 0x20);
  }
  assert_int_equal(take(), -1);
}

static void nesting(void **s) {
  fake_line(5, 1);
  assert_int_equal(take(), 0x25);
  fake_line(6, 1);
  assert_int_equal(take(), -1);
  fake_line(1, 1);
  assert_int_equal(take(), 0x21);
  assert_int_equal(ISR(0x20), 0x22);
  assert_int_equal(IRR(0x20), 0x40);
  fake_out(0x20, 0x65); /* specific EOI of 5 while 1 is in service */
  assert_int_equal(ISR(0x20), 0x02);
  assert_int_equal(take(), -1);
  fake_out(0x20, 0x20);
  assert_int_equal(take(), 0x26);
  assert_int_equal(fake.acks[KVM_IRQCHIP_PIC_MASTER][5], 1);
  assert_int_equal(fake.acks[KVM_IRQCHIP_PIC_MASTER][1], 1);
}

static void edge_and_level(void **s) {
  fake_out(0x4d1, 0x08); /* IRQ 11 */
  assert_int_equal(fake_line(3, 1), 1);
  assert_int_equal(x86_pic_set(PIC, 3, 0, 1), 1); /* still high: an edge has been remembered */
  assert_int_equal(take(), 0x23);
  fake_out(0x20, 0x20);
  assert_int_equal(take(), -1);
  fake_line(3, 0);
  pulse(3);
  assert_int_equal(x86_pic_set(PIC, 3, 0, 1), 0); /* coalesced */
  x86_pic_set(PIC, 3, 0, 0);
  assert_int_equal(take(), 0x23); /* the edge stays after the line fell */
  fake_out(0x20, 0x20);
  fake_line(11, 1);
  assert_int_equal(take(), 0x2b);
  fake_out(0xa0, 0x20), fake_out(0x20, 0x20);
  assert_int_equal(take(), 0x2b); /* still high */
  fake_line(11, 0);
  fake_out(0xa0, 0x20), fake_out(0x20, 0x20);
  assert_int_equal(take(), -1);
  assert_int_equal(fake.acks[KVM_IRQCHIP_PIC_SLAVE][11], 2);
  fake_out(0x21, 0x08);
  assert_int_equal(x86_pic_set(PIC, 3, 0, 1), -1);
}

static void spurious(void **s) {
  fake_out(0x4d0, 0x20);
  fake_line(5, 1);
  fake_line(5, 0);
  assert_int_equal(x86_pic_ack(PIC), 0x27);
  assert_int_equal(ISR(0x20), 0);
  fake_out(0x4d1, 0x04);
  fake_line(10, 1);
  fake_line(10, 0);
  assert_int_equal(x86_pic_ack(PIC), 0x2f); /* the master has seen the slave's edge */
  assert_int_equal(ISR(0x20), 0x04);
  assert_int_equal(ISR(0xa0), 0);
}

static void rotation(void **s) {
  raise_lines(0x18);
  assert_int_equal(take(), 0x23);
  fake_out(0x20, 0xa0); /* rotate on non-specific EOI: 3 is lowest now */
  fake_line(3, 0), fake_line(3, 1);
  assert_int_equal(take(), 0x24);
  fake_out(0x20, 0xe4); /* rotate on specific EOI: 4 is lowest */
  fake_line(0, 1);
  fake_line(6, 1);
  assert_int_equal(take(), 0x26);
  fake_out(0x20, 0x20);
  fake_out(0x20, 0xc2); /* set priority: 2 is lowest, 3 highest */
  assert_int_equal(take(), 0x23);
  fake_out(0x20, 0x20);
  assert_int_equal(take(), 0x20);
}

static void auto_eoi(void **s) {
  init(3);
  fake_out(0x20, 0x80); /* rotate in auto-EOI mode */
  raise_lines(0x03);
  assert_int_equal(take(), 0x20);
  assert_int_equal(ISR(0x20), 0);
  pulse(0), fake_line(0, 1);
  assert_int_equal(take(), 0x21);
  assert_int_equal(take(), 0x20);
  fake_out(0x20, 0x00);
}

static void special_mask(void **s) {
  fake_line(1, 1);
  assert_int_equal(take(), 0x21);
  fake_line(4, 1);
  assert_int_equal(take(), -1);
  fake_out(0x21, 0x02);
  assert_int_equal(take(), -1);
  fake_out(0x20, 0x68); /* a level in service that is masked inhibits nothing */
  assert_int_equal(take(), 0x24);
  fake_out(0x20, 0x48);
}

static void special_fully_nested(void **s) {
  init(0x11);
  fake_line(12, 1);
  assert_int_equal(take(), 0x2c);
  fake_line(9, 1);
  assert_int_equal(take(), 0x29); /* a higher one of the same slave */
  init(1);
}

static void polling(void **s) {
  fake_line(6, 1);
  fake_out(0x20, 0x0c);
  assert_int_equal(fake_in(0x20), 0x86);
  assert_int_equal(ISR(0x20), 0x40);
  fake_out(0x20, 0x20);
  fake_out(0x20, 0x0c);
  assert_int_equal(fake_in(0x20), 0x07);
}

static void state(void **s) {
  struct kvm_irqchip a = {.chip_id = KVM_IRQCHIP_PIC_SLAVE}, b = a;
  fake_out(0x4d1, 0x08);
  fake_out(0xa1, 0x40);
  fake_line(12, 1);
  fake_line(11, 1);
  assert_int_equal(x86_irqchip_get(&fake.vm, &a), 0);
  assert_int_equal(a.chip.pic.irr, 0x18);
  assert_int_equal(a.chip.pic.last_irr, 0x18);
  assert_int_equal(a.chip.pic.imr, 0x40);
  assert_int_equal(a.chip.pic.irq_base, 0x28);
  assert_int_equal(a.chip.pic.elcr, 0x08);
  assert_int_equal(a.chip.pic.elcr_mask, 0xde);
  fake_out(0xa0, 0x11); /* initialization forgets edges */
  assert_int_equal(IRR(0xa0), 0x08);
  assert_int_equal(x86_irqchip_set(&fake.vm, &a), 0);
  assert_int_equal(x86_irqchip_get(&fake.vm, &b), 0);
  assert_memory_equal(&a, &b, sizeof(a));
  a.chip.pic.priority_add = 0xff;
  a.chip.pic.init_state = 0x77;
  x86_irqchip_set(&fake.vm, &a);
  while (take() >= 0) fake_out(0xa0, 0x20), fake_out(0x20, 0x20), fake_line(11, 0);
}

static void wakes_listener(void **s) {
  fake_stop();
  fake_start('k', 3, 0);
  init(1);
  apic_enable(1);
  apic_write(0, REG_LVT_LINT0, 0x10700);
  apic_write(1, REG_LVT_LINT0, 0x700);
  for (unsigned k = 0; k < 3; k++) fake_event(k);
  fake_line(7, 1);
  assert_false(fake_event(0));
  assert_true(fake_event(1));
  assert_false(fake_event(2));
  assert_int_equal(x86_irq_ack(fake.vcpu[1]), 0x27);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
  const struct CMUnitTest tests[] = {
      TEST(masks_and_ports), TEST(priorities),     TEST(nesting),      TEST(edge_and_level),       TEST(spurious),
      TEST(rotation),        TEST(auto_eoi),       TEST(special_mask), TEST(special_fully_nested), TEST(polling),
      TEST(state),           TEST(wakes_listener),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
