/* Destinations: who gets an IPI or an MSI, in which mode, and what the sender is told. */
#include "fake.h"
#include <errno.h>

static int stop(void **s) {
  fake_stop();
  return 0;
}

/* Acknowledges on every CPU: the mask of those that had `vector`. */
static unsigned takers(unsigned vector) {
  unsigned mask = 0;
  for (unsigned k = 0; k < fake.n; k++) {
    int v = x86_irq_ack(fake.vcpu[k]);
    if (v == (int)vector)
      mask |= 1u << k;
    else
      assert_int_equal(v, -1);
    if (v >= 0) {
      if (lapic_x2(fake.vcpu[k]->lapic))
        x86_x2apic_write(fake.vcpu[k], 0x80b, 0);
      else
        apic_write(k, REG_EOI, 0);
    }
  }
  return mask;
}

enum setup { PHYSICAL, FLAT, CLUSTER, X2 };

static void start(enum setup how) {
  fake_start('k', 6, 0);
  for (unsigned k = 0; k < 6; k++) {
    apic_enable(k);
    if (how == FLAT) apic_write(k, REG_LDR, 1u << (24 + k));
    if (how == CLUSTER) {
      apic_write(k, REG_DFR, 0x0fffffff);
      apic_write(k, REG_LDR, (k / 4) << 28 | 1u << (24 + k % 4));
    }
    if (how == X2) apic_x2(k);
  }
}

#define LOGICAL 0x4800
#define TO_DEST 0x4000

static void icr_destinations(void **s) {
  static const struct {
    u8 how;
    u32 icr, dest;
    unsigned takers; /* sent by CPU 1 */
  } rows[] = {
      {PHYSICAL, TO_DEST, 3, 0x08}, {PHYSICAL, TO_DEST, 9, 0},       {PHYSICAL, TO_DEST, 0xff, 0x3f},
      {PHYSICAL, 0x44000, 0, 0x02}, /* self */
      {PHYSICAL, 0x84000, 0, 0x3f}, /* all */
      {PHYSICAL, 0xc4000, 0, 0x3d}, /* all but self */
      {PHYSICAL, LOGICAL, 0x04, 0}, /* no logical IDs yet */
      {FLAT, LOGICAL, 0x04, 0x04},  {FLAT, LOGICAL, 0x25, 0x25},     {FLAT, LOGICAL, 0xff, 0x3f},
      {FLAT, TO_DEST, 0x04, 0x10},  {CLUSTER, LOGICAL, 0x0f, 0x0f},  {CLUSTER, LOGICAL, 0x12, 0x20},
      {CLUSTER, LOGICAL, 0x2f, 0},  {CLUSTER, LOGICAL, 0xff, 0x3f},  {X2, TO_DEST, 5, 0x20},
      {X2, TO_DEST, 0xff, 0},       {X2, TO_DEST, 0xffffffff, 0x3f}, {X2, LOGICAL, 0x29, 0x29},
      {X2, LOGICAL, 0x10001, 0},    {X2, LOGICAL, 0xffffffff, 0x3f}, {X2, 0xc4000, 0, 0x3d},
  };
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++) {
    start(rows[k].how);
    if (rows[k].how == X2) {
      assert_int_equal(x86_x2apic_write(fake.vcpu[1], 0x830, (u64)rows[k].dest << 32 | rows[k].icr | 0x60), 0);
    } else {
      apic_write(1, REG_ICR2, rows[k].dest << 24);
      apic_write(1, REG_ICR, rows[k].icr | 0x60);
    }
    unsigned got = takers(0x60);
    if (got != rows[k].takers) fail_msg("row %u: %x", k, got);
    fake_stop();
  }
}

/* One candidate at a time, in turn. */
static void lowest_priority(void **s) {
  start(FLAT);
  unsigned order[4];
  for (unsigned k = 0; k < 4; k++) {
    apic_write(0, REG_ICR2, 0x0fu << 24);
    apic_write(0, REG_ICR, 0x4960);
    order[k] = takers(0x60);
  }
  assert_int_equal(order[0] | order[1] << 4 | order[2] << 8 | order[3] << 12, 0x8421);
  apic_write(0, REG_SVR, 0xff); /* CPU 0 does not arbitrate any more */
  apic_write(1, REG_ICR2, 0x03u << 24);
  apic_write(1, REG_ICR, 0x4960);
  assert_int_equal(takers(0x60), 2);
  assert_int_equal(x86_msi_deliver(&fake.vm, 0xfee0c00c, 0x61), 1); /* MSI with redirection hint */
  assert_int_equal(takers(0x61), 4);
}

static void special_modes(void **s) {
  start(PHYSICAL);
  struct x86_vcpu *c = fake.vcpu[2];
  apic_write(0, REG_ICR2, 2u << 24);
  apic_write(0, REG_ICR, 0x4400);
  apic_write(0, REG_ICR, 0x4400);
  apic_write(0, REG_ICR, 0x4400);
  assert_int_equal(atomic_load(&c->nmi_pending), 2); /* one in service, one latched */
  assert_true(fake_event(2));
  apic_write(0, REG_ICR, 0x4200);
  assert_true(atomic_load(&c->smi_pending));
  apic_write(0, REG_ICR, 0xc500); /* INIT, level, assert */
  assert_int_equal(atomic_load(&c->apic_events), 1);
  atomic_store(&c->apic_events, 0);
  apic_write(0, REG_ICR, 0x8500); /* de-assert */
  assert_int_equal(atomic_load(&c->apic_events), 0);
  apic_write(0, REG_ICR, 0x4500);
  apic_write(0, REG_ICR, 0x469a); /* STARTUP at 9a000h */
  assert_int_equal(atomic_load(&c->apic_events), 0x9a03);
  assert_true(fake_event(2));
  apic_write(0, REG_ICR, 0x4500);
  assert_int_equal(atomic_load(&c->apic_events), 1);
  apic_write(2, REG_SVR, 0xff);
  apic_write(0, REG_ICR, 0x4680); /* a software-disabled APIC takes all but fixed ones */
  assert_int_equal(atomic_load(&c->apic_events), 0x8003);
  x86_apic_base_write(c, APIC_BASE_ADDR, true); /* off */
  atomic_store(&c->apic_events, 0);
  apic_write(0, REG_ICR, 0x4500);
  assert_int_equal(atomic_load(&c->apic_events), 0);
  assert_int_equal(apic_read(0, REG_ICR), 0x4500);
  apic_write(0, REG_ICR, ~0u & ~0x700u);
  assert_int_equal(apic_read(0, REG_ICR), ~0x1700u);
}

static void msi(void **s) {
  start(X2);
  struct x86_vm *vm = &fake.vm;
  assert_int_equal(x86_msi_deliver(vm, 0xfee03000, 0x70), 1);
  assert_int_equal(takers(0x70), 8);
  assert_int_equal(x86_msi_deliver(vm, 0xfee0a000, 0x70), 0); /* nobody */
  assert_int_equal(x86_msi_deliver(vm, 0xfeeff000, 0x70), 6); /* broadcast, by KVM's quirk */
  assert_int_equal(takers(0x70), 0x3f);
  assert_int_equal(x86_msi_deliver(vm, 0x100fee03000, 0x70), 1); /* old format: high word means nothing */
  assert_int_equal(takers(0x70), 8);
  vm->x2apic_format = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
  assert_int_equal(x86_msi_deliver(vm, 0x100fee03000, 0x70), 0); /* ID 103h */
  assert_int_equal(x86_msi_deliver(vm, 0x1fee03000, 0x70), -EINVAL);
  assert_int_equal(x86_msi_deliver(vm, 0xfeeff000, 0x70), 0);
  assert_int_equal(x86_msi_deliver(vm, 0xffffff00feeff000, 0x70), 6);
  assert_int_equal(takers(0x70), 0x3f);
  assert_int_equal(x86_msi_deliver(vm, 0xfee06004, 0x71), 2); /* logical */
  assert_int_equal(takers(0x71), 6);
  fake_route_msi(40, 0xfee02000, 0x72);
  assert_int_equal(fake_line(40, 1), 1);
  assert_int_equal(fake_line(40, 0), -1);
  assert_int_equal(takers(0x72), 4);
}

static void wide_ids(void **s) {
  fake_start('k', 3, 0x1fe);
  for (unsigned k = 0; k < 3; k++) apic_enable(k);
  fake.vm.x2apic_format = KVM_X2APIC_API_USE_32BIT_IDS;
  assert_int_equal(x86_msi_deliver(&fake.vm, 0x200fee00000, 0x50), 1); /* 200h, although still in xAPIC mode */
  assert_int_equal(takers(0x50), 4);
  for (unsigned k = 0; k < 3; k++) apic_x2(k);
  assert_int_equal(x86_x2apic_write(fake.vcpu[0], 0x830, 0x1ffull << 32 | 0x4051), 0);
  assert_int_equal(takers(0x51), 2);
  assert_int_equal(x86_x2apic_write(fake.vcpu[0], 0x830, 0x1fc000ull << 32 | 0x4851), 0); /* cluster 1fh: 1feh and 1ffh */
  assert_int_equal(takers(0x51), 3);
}

static void pv_ipi(void **s) {
  start(X2);
  assert_int_equal(x86_lapic_pv_ipi(&fake.vm, 5, 0, 0, 0x80, true), 2);
  assert_int_equal(takers(0x80), 5);
  assert_int_equal(x86_lapic_pv_ipi(&fake.vm, 0xff, 0, 3, 0x80, true), 3);
  assert_int_equal(takers(0x80), 0x38);
  assert_int_equal(x86_lapic_pv_ipi(&fake.vm, 0, 1, 0xffffffe0, 0x80, false), 0); /* no wrap-around */
  assert_int_equal(x86_lapic_pv_ipi(&fake.vm, 1, 0, 0, 0x880, true), -EINVAL);
  assert_int_equal(x86_lapic_pv_ipi(&fake.vm, 2, 0, 0, 0x400, true), 1);
  assert_int_equal(atomic_load(&fake.vcpu[1]->nmi_pending), 1);
}

/* IDs follow writes; the second of two equal IDs answers when the first one leaves. */
static void ids_change(void **s) {
  start(PHYSICAL);
  apic_write(3, REG_ID, 2u << 24);
  assert_int_equal(x86_msi_deliver(&fake.vm, 0xfee02000, 0x70), 1);
  assert_int_equal(takers(0x70), 4);
  apic_write(2, REG_ID, 0x77u << 24);
  assert_int_equal(x86_msi_deliver(&fake.vm, 0xfee02000, 0x70), 1);
  assert_int_equal(takers(0x70), 8);
  assert_int_equal(x86_msi_deliver(&fake.vm, 0xfee77000, 0x70), 1);
  assert_int_equal(takers(0x70), 4);
  assert_int_equal(x86_lapic_id(fake.vcpu[2]), 0x77);
}

int main(void) {
#define TEST(f) cmocka_unit_test_teardown(f, stop)
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(icr_destinations),
      TEST(lowest_priority),
      TEST(special_modes),
      TEST(msi),
      TEST(wide_ids),
      TEST(pv_ipi),
      TEST(ids_change),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
