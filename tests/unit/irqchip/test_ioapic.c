/* The I/O APIC. */
#include "fake.h"
#include <errno.h>

static int start(void **s) {
  fake_start('k', 2, 0);
  apic_enable(0);
  apic_enable(1);
  apic_write(0, REG_LVT_LINT0, 0x10000); /* not listening to the PIC */
  return 0;
}
static int stop(void **s) {
  fake_stop();
  return 0;
}

static u32 get(unsigned reg) {
  fake_mmio_write(0xfec00000, reg);
  return fake_mmio_read(0xfec00010);
}
static void put(unsigned reg, u32 v) {
  fake_mmio_write(0xfec00000, reg);
  fake_mmio_write(0xfec00010, v);
}
static void program(unsigned pin, u32 dest, u32 low) {
  put(0x11 + 2 * pin, dest << 24);
  put(0x10 + 2 * pin, low);
}
static int take(unsigned cpu) {
  return x86_irq_ack(fake.vcpu[cpu]);
}
static void eoi(unsigned cpu) {
  apic_write(cpu, REG_EOI, 0);
}

static void registers(void **s) {
  assert_int_equal(get(1), 0x170011);
  put(0, ~0u);
  assert_int_equal(get(0), 0x0f000000);
  assert_int_equal(get(2), 0x0f000000);
  put(1, ~0u);
  assert_int_equal(get(1), 0x170011);
  assert_int_equal(get(0x10), 0x10000);
  put(0x3e, ~0u); /* pin 23 */
  put(0x3f, ~0u);
  assert_int_equal(get(0x3e), 0xffffafff); /* delivery status and remote IRR are read-only */
  assert_int_equal(get(0x3f), ~0u);
  put(0x40, 1); /* no more pins */
  assert_int_equal(get(0x40), ~0u);
  assert_int_equal(fake_mmio_read(0xfec00040), 0);
  fake_mmio_write(0xfec00000, 0x12345601);
  assert_int_equal(fake_mmio_read(0xfec00000), 1);
}

static void edge(void **s) {
  program(4, 1, 0x44);
  assert_int_equal(fake_line(4, 1), 1 + 1); /* the I/O APIC's and the PIC's */
  assert_int_equal(take(1), 0x44);
  assert_int_equal(fake_line(20, 1), -1);   /* masked */
  assert_int_equal(fake_line(4, 1), 0 + 1); /* still high: the I/O APIC calls it coalesced, the PIC does not */
  fake_line(4, 0);
  fake_line(4, 1);
  eoi(1);
  assert_int_equal(fake.acks[KVM_IRQCHIP_IOAPIC][4], 1);
  assert_int_equal(take(1), 0x44);
  assert_int_equal(take(0), -1);
}

/* An edge on a masked pin is not sent when the pin is unmasked, and the next one counts as coalesced with it. */
static void edge_while_masked(void **s) {
  program(20, 0, 0x10060);
  assert_int_equal(fake_line(20, 1), -1);
  program(20, 0, 0x60);
  assert_int_equal(take(0), -1);
  assert_int_equal(fake_line(20, 1), 0);
  fake_line(20, 0);
  assert_int_equal(fake_line(20, 1), 1);
  assert_int_equal(take(0), 0x60);
}

static void level(void **s) {
  program(20, 0, 0x8060);
  assert_int_equal(fake_line(20, 1), 1);
  assert_int_equal(get(0x38), 0xc060); /* remote IRR */
  assert_int_equal(take(0), 0x60);
  assert_int_equal(apic_read(0, REG_TMR + 3), 1);
  assert_int_equal(fake_line(20, 1), -1); /* waits for the EOI */
  eoi(0);
  assert_int_equal(take(0), 0x60); /* still high */
  fake_line(20, 0);
  eoi(0);
  assert_int_equal(take(0), -1);
  assert_int_equal(get(0x38), 0x8060);
  fake_line(20, 1);
  assert_int_equal(take(0), 0x60);
  program(20, 0, 0x60); /* to edge: clears remote IRR, as an EOI for systems without an EOI register */
  assert_int_equal(get(0x38), 0x60);
}

static void level_while_masked(void **s) {
  program(20, 0, 0x18060);
  assert_int_equal(fake_line(20, 1), -1);
  program(20, 0, 0x8060);
  assert_int_equal(take(0), 0x60);
  program(20, 0, 0x18060);
  eoi(0);
  assert_int_equal(take(0), -1);
  program(20, 0, 0x8060);
  assert_int_equal(take(0), 0x60);
}

/* A line is high while any source holds it. */
static void sources(void **s) {
  struct vm *vm = &fake.vm.core;
  program(20, 0, 0x8060);
  vm_set_irq(vm, 0, 20, 1, true);
  vm_set_irq(vm, 2, 20, 1, true);
  assert_int_equal(take(0), 0x60);
  vm_set_irq(vm, 0, 20, 0, true);
  eoi(0);
  assert_int_equal(take(0), 0x60);
  vm_set_irq(vm, 2, 20, 0, true);
  eoi(0);
  assert_int_equal(take(0), -1);
}

static void logical_and_modes(void **s) {
  apic_write(0, REG_LDR, 1u << 24);
  apic_write(1, REG_LDR, 2u << 24);
  program(20, 3, 0x860);
  assert_int_equal(fake_line(20, 1), 2);
  assert_int_equal(take(0), 0x60);
  assert_int_equal(take(1), 0x60);
  program(21, 3, 0x961); /* lowest priority */
  assert_int_equal(fake_line(21, 1), 1);
  program(22, 1, 0x400);
  fake_line(22, 1);
  assert_int_equal(atomic_load(&fake.vcpu[1]->nmi_pending), 1);
}

static void storm(void **s) {
  program(20, 0, 0x8060);
  fake_line(20, 1);
  unsigned n = 0;
  while (take(0) == 0x60) {
    eoi(0);
    assert_in_range(++n, 1, 20000);
  }
  assert_int_equal(n, 10000);
  fake_sleep(10000000);
  assert_int_equal(take(0), 0x60);
  fake_line(20, 0);
  eoi(0);
}

static void state(void **s) {
  struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC}, again = chip;
  program(20, 0, 0x8060);
  program(21, 1, 0x61);
  program(22, 1, 0x10062);
  fake_line(20, 1);
  fake_line(21, 1);
  fake_line(22, 1);
  assert_int_equal(x86_irqchip_get(&fake.vm, &chip), 0);
  assert_int_equal(chip.chip.ioapic.base_address, 0xfec00000);
  assert_int_equal(chip.chip.ioapic.irr, 1u << 20 | 1u << 22); /* delivered edges do not show */
  assert_int_equal(chip.chip.ioapic.redirtbl[20].fields.remote_irr, 1);
  assert_int_equal(chip.chip.ioapic.redirtbl[21].fields.dest_id, 1);
  assert_int_equal(x86_irqchip_set(&fake.vm, &chip), 0);
  assert_int_equal(x86_irqchip_get(&fake.vm, &again), 0);
  assert_memory_equal(&chip, &again, sizeof(chip));
  chip.chip.ioapic.redirtbl[20].fields.remote_irr = 0;
  take(0), eoi(0);
  x86_irqchip_set(&fake.vm, &chip); /* a line that is high and not delivered is delivered */
  assert_int_equal(take(0), 0x60);
  chip.chip_id = 3;
  assert_int_equal(x86_irqchip_get(&fake.vm, &chip), -EINVAL);
  assert_int_equal(x86_irqchip_set(&fake.vm, &chip), -EINVAL);
  assert_int_equal(x86_irqchip_create(&fake.vm), -EEXIST);
  assert_int_equal(x86_irqchip_create_split(&fake.vm, 24), -EEXIST);
}

static void errors(void **s) {
  static const struct {
    u32 type, chip, pin;
    int result;
  } rows[] = {
      {KVM_IRQ_ROUTING_IRQCHIP, 0, 7, 0},
      {KVM_IRQ_ROUTING_IRQCHIP, 0, 8, -EINVAL},
      {KVM_IRQ_ROUTING_IRQCHIP, 1, 7, 0},
      {KVM_IRQ_ROUTING_IRQCHIP, 1, 8, -EINVAL},
      {KVM_IRQ_ROUTING_IRQCHIP, 2, 23, 0},
      {KVM_IRQ_ROUTING_IRQCHIP, 2, 24, -EINVAL},
      {KVM_IRQ_ROUTING_IRQCHIP, 3, 0, -EINVAL},
      {KVM_IRQ_ROUTING_MSI, 0, 0, 0},
      {3, 0, 0, -EINVAL},
  };
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++) {
    struct kvm_irq_routing_entry ue = {.type = rows[k].type};
    struct irq_route_entry e = {0};
    if (ue.type == KVM_IRQ_ROUTING_IRQCHIP) {
      ue.u.irqchip.irqchip = rows[k].chip;
      ue.u.irqchip.pin = rows[k].pin;
    }
    assert_int_equal(x86_route_set(&fake.vm.core, &e, &ue), rows[k].result);
  }
  struct kvm_irqchip chip = {0};
  fake_stop();
  fake_start('s', 1, 0);
  assert_int_equal(x86_irqchip_get(&fake.vm, &chip), -ENXIO);
  assert_int_equal(x86_irqchip_set(&fake.vm, &chip), -ENXIO);
  struct kvm_irq_routing_entry ue = {.type = KVM_IRQ_ROUTING_IRQCHIP};
  assert_int_equal(x86_route_set(&fake.vm.core, &(struct irq_route_entry){0}, &ue), -EINVAL);
  fake_stop();
  fake_start('n', 1, 0);
  assert_null(fake.vcpu[0]->lapic);
  assert_int_equal(x86_irq_ack(fake.vcpu[0]), -1);
  assert_int_equal(x86_irqchip_create(&fake.vm), -EINVAL); /* there are vCPUs */
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
  const struct CMUnitTest tests[] = {
      TEST(registers),
      TEST(edge),
      TEST(edge_while_masked),
      TEST(level),
      TEST(level_while_masked),
      TEST(sources),
      TEST(logical_and_modes),
      TEST(storm),
      TEST(state),
      TEST(errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
