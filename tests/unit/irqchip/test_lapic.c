/* The local APIC of one CPU: registers, priorities, IA32_APIC_BASE, errors, PV EOI. */
#include "fake.h"
#include <errno.h>

#define C fake.vcpu[0]

static int with_chips(void **s) {
  fake_start('k', 1, 0);
  return 0;
}
static int with_split(void **s) {
  fake_start('s', 2, 0);
  return 0;
}
static int stop(void **s) {
  fake_stop();
  return 0;
}

static void post(unsigned v) {
  lapic_accept(C->lapic, APIC_FIXED, v, true, false);
}

/* What each register keeps of a write of all ones, in xAPIC mode with the APIC enabled. */
static void xapic_registers(void **s) {
  static const struct {
    u8 reg;
    u32 reset, after;
  } rows[] = {
      {REG_ID, 0, 0xff000000},
      {REG_VERSION, 0x50014, 0x50014},
      {REG_TPR, 0, 0xff},
      {REG_LDR, 0, 0xff000000},
      {REG_DFR, ~0u, ~0u},
      {REG_ESR, 0, 0},
      {REG_ICR2, 0, 0xff000000},
      {REG_LVT_TIMER, 0x10000, 0x710ff},
      {REG_LVT_THERMAL, 0x10000, 0x117ff},
      {REG_LVT_PMC, 0x10000, 0x117ff},
      {REG_LVT_LINT1, 0x10000, 0x1f7ff},
      {REG_LVT_ERROR, 0x10000, 0x110ff},
      {REG_TDCR, 0, 0xb},
      {REG_LVT_CMCI, 0, 0},
      {REG_APR, 0, 0},
  };
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++) assert_int_equal(apic_read(0, rows[k].reg), rows[k].reset);
  assert_int_equal(apic_read(0, REG_LVT_LINT0), 0x700); /* the boot CPU listens to the PIC */
  assert_int_equal(apic_read(0, REG_SVR), 0xff);
  apic_enable(0);
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++) {
    apic_write(0, rows[k].reg, ~0u);
    if (rows[k].reg == REG_ESR) continue; /* holds the errors of the missing CMCI register */
    if (apic_read(0, rows[k].reg) != rows[k].after) fail_msg("register %x: %x", rows[k].reg, apic_read(0, rows[k].reg));
  }
  apic_write(0, REG_SVR, ~0u);
  assert_int_equal(apic_read(0, REG_SVR), 0x3ff); /* no EOI-broadcast suppression with the I/O APIC here */
}

static void cmci_and_version(void **s) {
  fake.mcg_cap = BIT(10);
  assert_int_equal(apic_read(0, REG_VERSION), 0x60014);
  apic_enable(0);
  apic_write(0, REG_LVT_CMCI, ~0u);
  assert_int_equal(apic_read(0, REG_LVT_CMCI), 0x117ff);
}

static void access_sizes(void **s) {
  u8 b = 0;
  u16 w = 0;
  u32 v = 0x12345678;
  assert_int_equal(x86_lapic_mmio_read(C, APIC_BASE_ADDR + 0x32, 1, &b), 0);
  assert_int_equal(b, 5);
  assert_int_equal(x86_lapic_mmio_read(C, APIC_BASE_ADDR + 0x30, 2, &w), 0);
  assert_int_equal(w, 0x14);
  x86_lapic_mmio_write(C, APIC_BASE_ADDR + 0x80, 1, &v); /* stores of other sizes or places do nothing */
  x86_lapic_mmio_write(C, APIC_BASE_ADDR + 0x84, 4, &v);
  assert_int_equal(apic_read(0, REG_TPR), 0);
  assert_int_equal(x86_lapic_mmio_read(C, 0xfee01000, 4, &v), -EOPNOTSUPP);
}

/* Requests are taken by priority class; PPR and TPR hold lower ones back; EOI releases them. */
static void priorities(void **s) {
  apic_enable(0);
  post(0x31);
  post(0x55);
  post(0x52);
  assert_true(fake_event(0));
  assert_true(x86_irq_pending(C));
  assert_int_equal(x86_irq_ack(C), 0x55);
  assert_int_equal(apic_read(0, REG_PPR), 0x50);
  assert_int_equal(apic_read(0, REG_ISR + 2), 1u << 21);
  assert_false(x86_irq_pending(C)); /* 0x52 is of the same class */
  post(0x61);
  assert_int_equal(x86_irq_ack(C), 0x61);
  apic_write(0, REG_EOI, 0);
  assert_int_equal(apic_read(0, REG_PPR), 0x50);
  fake_event(0);
  apic_write(0, REG_EOI, 0);
  assert_true(fake_event(0));
  assert_int_equal(x86_irq_ack(C), 0x52);
  apic_write(0, REG_EOI, 0);
  x86_lapic_set_cr8(C, 3);
  assert_int_equal(apic_read(0, REG_TPR), 0x30);
  assert_false(x86_irq_pending(C));
  fake_event(0);
  x86_lapic_set_cr8(C, 2);
  assert_true(fake_event(0));
  assert_int_equal(x86_irq_ack(C), 0x31);
  assert_int_equal(x86_irq_ack(C), -1);
}

static void software_disable(void **s) {
  post(0x40);
  assert_false(x86_irq_pending(C)); /* off after reset: nothing is taken */
  apic_enable(0);
  apic_write(0, REG_LVT_LINT1, 0x400);
  post(0x40);
  apic_write(0, REG_SVR, 0xff);
  assert_int_equal(apic_read(0, REG_LVT_LINT1), 0x10400);
  apic_write(0, REG_LVT_LINT1, 0x400);
  assert_int_equal(apic_read(0, REG_LVT_LINT1), 0x10400);
  assert_int_equal(x86_irq_ack(C), 0x40); /* what was requested before stays */
}

static void local_vectors(void **s) {
  apic_enable(0);
  apic_write(0, REG_LVT_PMC, 0x400);
  x86_lapic_local(C, 0x340);
  assert_int_equal(atomic_load(&C->nmi_pending), 1);
  assert_int_equal(apic_read(0, REG_LVT_PMC), 0x10400); /* masks itself */
  x86_lapic_local(C, 0x340);
  assert_int_equal(atomic_load(&C->nmi_pending), 1);
  apic_write(0, REG_LVT_THERMAL, 0x99);
  x86_lapic_local(C, 0x330);
  assert_int_equal(x86_irq_ack(C), 0x99);
  fake.amd = true;
  apic_write(0, REG_LVT_PMC, 0x400);
  x86_lapic_local(C, 0x340);
  assert_int_equal(apic_read(0, REG_LVT_PMC), 0x400);
}

static void errors(void **s) {
  apic_enable(0);
  apic_write(0, REG_LVT_ERROR, 0xfe);
  apic_write(0, REG_ICR, 0x4008); /* vector 8 */
  assert_int_equal(apic_read(0, REG_ESR), 0);
  assert_int_equal(x86_irq_ack(C), 0xfe);
  apic_write(0, REG_ESR, 0);
  assert_int_equal(apic_read(0, REG_ESR), ESR_SEND_VECTOR);
  apic_write(0, REG_ESR, 0);
  assert_int_equal(apic_read(0, REG_ESR), 0);
  apic_read(0, 0x04);
  apic_write(0, 0x3f, 0x55); /* self IPI is of x2APIC mode */
  post(3);
  apic_write(0, REG_ESR, 0);
  assert_int_equal(apic_read(0, REG_ESR), ESR_REGISTER | ESR_RECEIVE_VECTOR);
}

/* SDM Vol. 3A 10.12.5, figure 10-27. */
static void base_transitions(void **s) {
  enum { OFF = 0, XAPIC = 0x800, X2 = 0xc00, BAD = 0x400 };
  static const struct {
    u32 from, to;
    bool guest, host;
  } rows[] = {
      {OFF, OFF, true, true},   {OFF, XAPIC, true, true}, {OFF, X2, false, true},     {OFF, BAD, false, false},
      {XAPIC, OFF, true, true}, {XAPIC, X2, true, true},  {XAPIC, BAD, false, false}, {X2, XAPIC, false, true},
      {X2, OFF, true, true},    {X2, BAD, false, false},  {X2, X2, true, true},       {XAPIC, XAPIC, true, true},
  };
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++)
    for (int host = 0; host < 2; host++) {
      assert_int_equal(x86_apic_base_write(C, APIC_BASE_ADDR | 0x100 | rows[k].from, true), 0);
      int r = x86_apic_base_write(C, APIC_BASE_ADDR | 0x100 | rows[k].to, host);
      assert_int_equal(r, (host ? rows[k].host : rows[k].guest) ? 0 : -1);
    }
  static const u64 reserved[] = {1, 0x80, 0x200, BIT(46), BIT(63)};
  for (unsigned k = 0; k < ARRAY_SIZE(reserved); k++)
    assert_int_equal(x86_apic_base_write(C, APIC_BASE_ADDR | 0x900 | reserved[k], true), -1);
  fake.x2apic = false;
  assert_int_equal(x86_apic_base_write(C, APIC_BASE_ADDR | X2, true), -1);
}

static void base_moves(void **s) {
  u32 v = 0;
  assert_int_equal(x86_apic_base_write(C, 0xd0000900, false), 0);
  assert_int_equal(x86_lapic_mmio_read(C, 0xd0000030, 4, &v), 0);
  assert_int_equal(v, 0x50014);
  assert_false(x86_lapic_hit(C, APIC_BASE_ADDR));
  assert_int_equal(x86_apic_base_write(C, 0xd0000100, false), 0); /* off: a hole that reads as ones */
  assert_int_equal(x86_lapic_mmio_read(C, 0xd0000030, 4, &v), 0);
  assert_int_equal(v, ~0u);
  fake.vm.disabled_quirks = KVM_X86_QUIRK_LAPIC_MMIO_HOLE;
  assert_int_equal(x86_lapic_mmio_read(C, 0xd0000030, 4, &v), -EOPNOTSUPP);
  assert_int_equal(x86_lapic_mmio_write(C, 0xd0000030, 4, &v), -EOPNOTSUPP);
}

/* SDM Vol. 3A table 10-6: which MSRs can be read and written, and with what. */
static void x2apic_access(void **s) {
  static const struct {
    u16 msr;
    bool read, write;
    u64 good, bad;
  } rows[] = {
      {0x802, true, false, 0, 0},
      {0x803, true, false, 0, 0},
      {0x808, true, true, 0xff, 0x100},
      {0x809, false, false, 0, 0},
      {0x80a, true, false, 0, 0},
      {0x80b, false, true, 0, 1},
      {0x80d, true, false, 0, 0},
      {0x80e, false, false, 0, 0},
      {0x80f, true, true, 0x1ff, 0x400},
      {0x810, true, false, 0, 0},
      {0x818, true, false, 0, 0},
      {0x827, true, false, 0, 0},
      {0x828, true, true, 0, 1},
      {0x82f, false, false, 0, 0},
      {0x830, true, true, 0x7000840f0, 0x2000},
      {0x830, true, true, 0x410f0, 0x100000},
      {0x831, false, false, 0, 0},
      {0x832, true, true, 0x100ff, 0x100},
      {0x833, true, true, 0x104ff, 0x800},
      {0x834, true, true, 0x104ff, 0x2000},
      {0x835, true, true, 0x1a7ff, 0x20000},
      {0x836, true, true, 0x1a7ff, BIT(33)},
      {0x837, true, true, 0x100ff, 0x400},
      {0x838, true, true, 0xffffffff, BIT(32)},
      {0x839, true, false, 0, 0},
      {0x83e, true, true, 0xb, 4},
      {0x83f, false, true, 0xf0, 0x100},
      {0x800, false, false, 0, 0},
      {0x840, false, false, 0, 0},
      {0x8ff, false, false, 0, 0},
  };
  u64 v;
  assert_int_equal(x86_x2apic_read(C, 0x802, &v), -1); /* not in that mode yet */
  apic_enable(0);
  apic_x2(0);
  for (unsigned k = 0; k < ARRAY_SIZE(rows); k++) {
    bool r = !x86_x2apic_read(C, rows[k].msr, &v), w = !x86_x2apic_write(C, rows[k].msr, rows[k].good);
    bool bad = rows[k].write && !x86_x2apic_write(C, rows[k].msr, rows[k].bad);
    if (r != rows[k].read || w != rows[k].write || bad) fail_msg("msr %x: read %d write %d bad %d", rows[k].msr, r, w, bad);
  }
  assert_int_equal(x86_x2apic_write(C, 0x830, 0x1234000410f0), 0);
  assert_int_equal(x86_x2apic_read(C, 0x830, &v), 0);
  assert_int_equal(v, 0x1234000400f0);
}

static void self_ipi(void **s) {
  apic_enable(0);
  apic_x2(0);
  assert_int_equal(x86_x2apic_write(C, 0x83f, 0x77), 0);
  assert_int_equal(x86_irq_ack(C), 0x77);
  assert_int_equal(x86_x2apic_write(C, 0x80b, 0), 0);
  assert_int_equal(x86_irq_ack(C), -1);
}

static void init_keeps_mode(void **s) {
  apic_enable(0);
  apic_x2(0);
  post(0x40);
  x86_lapic_reset(C, true);
  u64 v;
  assert_int_equal(x86_x2apic_read(C, 0x80d, &v), 0);
  assert_int_equal(v, 1);
  assert_int_equal(x86_x2apic_read(C, 0x80f, &v), 0);
  assert_int_equal(v, 0xff);
  assert_int_equal(x86_irq_ack(C), -1);
}

static void pv_eoi(void **s) {
  apic_enable(0);
  assert_int_equal(x86_lapic_pv_eoi_set(C, 0x103), -1);  /* not aligned */
  assert_int_equal(x86_lapic_pv_eoi_set(C, 0x9001), -1); /* no memory */
  assert_int_equal(x86_lapic_pv_eoi_set(C, 0x101), 0);
  post(0x50);
  assert_int_equal(x86_irq_ack(C), 0x50);
  assert_int_equal(fake.memory[0x100], 1);
  fake.memory[0x100] = 0; /* the guest's EOI */
  post(0x41);
  assert_int_equal(x86_irq_ack(C), 0x41); /* seen: 0x50 is not in service any more */
  assert_int_equal(fake.memory[0x100], 1);
  post(0x42);
  assert_false(x86_irq_pending(C));
  assert_int_equal(fake.memory[0x100], 0); /* something waits: the guest must write EOI */
  apic_write(0, REG_EOI, 0);
  assert_int_equal(x86_irq_ack(C), 0x42);
  fake.memory[0x100] = 0;
  assert_int_equal(apic_read(0, REG_PPR), 0);
  post(0x43);
  assert_int_equal(x86_irq_ack(C), 0x43);
  assert_int_equal(fake.memory[0x100], 1);
  x86_lapic_leave(C); /* to the client: memory and state may be copied */
  assert_int_equal(fake.memory[0x100], 0);
  assert_int_equal(apic_read(0, REG_PPR), 0x40);
  apic_write(0, REG_EOI, 0);
  assert_int_equal(apic_read(0, REG_PPR), 0);
  post(0x43);
  assert_int_equal(x86_irq_ack(C), 0x43);
  fake.memory[0x100] = 0;
  x86_lapic_leave(C);
  assert_int_equal(apic_read(0, REG_PPR), 0);
  fake_mmio_write(0xfec00000, 0x20); /* a pin of the I/O APIC: its EOI must be seen */
  fake_mmio_write(0xfec00010, 0x60);
  post(0x60);
  assert_int_equal(x86_irq_ack(C), 0x60);
  assert_int_equal(fake.memory[0x100], 0);
}

static void extint(void **s) {
  fake_out(0x20, 0x11), fake_out(0x21, 0x20), fake_out(0x21, 4), fake_out(0x21, 1);
  fake_event(0);
  fake_line(3, 1);
  assert_true(fake_event(0));
  assert_true(x86_irq_pending(C));
  apic_enable(0);
  post(0xf0);
  assert_int_equal(x86_irq_ack(C), 0x23); /* before the APIC's */
  assert_int_equal(x86_irq_ack(C), 0xf0);
  fake_line(3, 0);
  fake_out(0x20, 0x63);
  apic_write(0, REG_LVT_LINT0, 0x10700);
  fake_line(3, 1);
  assert_false(x86_irq_pending(C));
  fake_event(0);
  apic_write(0, REG_LVT_LINT0, 0x700);
  assert_true(fake_event(0));
  assert_int_equal(x86_irq_ack(C), 0x23);
}

static void split_eoi(void **s) {
  struct x86_vcpu *c1 = fake.vcpu[1];
  apic_enable(0);
  apic_enable(1);
  fake_route_msi(5, 0xfee01000, 0x8050);  /* level, to CPU 1 */
  fake_route_msi(6, 0xfee01000, 0x0051);  /* edge */
  fake_route_msi(30, 0xfee01000, 0x8052); /* no pin of the client's I/O APIC */
  static const u8 vectors[] = {0x50, 0x51, 0x52};
  for (unsigned k = 0; k < 3; k++) {
    assert_int_equal(fake_line(k < 2 ? 5 + k : 30, 1), 1);
    assert_int_equal(x86_irq_ack(c1), vectors[k]);
    apic_write(1, REG_EOI, 0);
    assert_int_equal(x86_lapic_eoi_exit(c1), k == 0);
  }
  assert_int_equal(c1->core.run->exit_reason, KVM_EXIT_IOAPIC_EOI);
  assert_int_equal(c1->core.run->eoi.vector, 0x50);
  assert_true(atomic_load(&c1->core.requests) & BIT(REQ_EOI_EXIT));
  assert_int_equal(apic_read(0, REG_VERSION), 0x1050014);
  assert_int_equal(fake_line(5, 0), -1);
}

static void split_external(void **s) {
  assert_int_equal(x86_lapic_external(C, 0x33), 0);
  assert_int_equal(x86_lapic_external(C, 0x34), -EEXIST);
  assert_true(x86_irq_pending(C));
  assert_int_equal(x86_irq_ack(C), 0x33);
  assert_false(x86_irq_pending(C));
}

int main(void) {
#define TEST(f)  cmocka_unit_test_setup_teardown(f, with_chips, stop)
#define SPLIT(f) cmocka_unit_test_setup_teardown(f, with_split, stop)
  const struct CMUnitTest tests[] = {
      TEST(xapic_registers),  TEST(cmci_and_version), TEST(access_sizes), TEST(priorities),
      TEST(software_disable), TEST(local_vectors),    TEST(errors),       TEST(base_transitions),
      TEST(base_moves),       TEST(x2apic_access),    TEST(self_ipi),     TEST(init_keeps_mode),
      TEST(pv_eoi),           TEST(extint),           SPLIT(split_eoi),   SPLIT(split_external),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
