/* The PCI bus: configuration mechanism #1, write masks, BARs that move, shared INTx, MSI-X masking and pending bits, reset. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include <linux/pci_regs.h>

#include "fake_vmm.h"

enum { VECTORS = 3, BAR0_SIZE = 0x1000, MSIX_BAR = 1, IO_BAR = 4, BIG_BAR = 2 };

struct gadget {
  struct pci_dev pci;
  uint64_t last_offset, mapped_at;
  uint32_t value;
  unsigned destroyed;
};

struct bench {
  struct vmm *vmm;
  struct pci_host *host;
  struct gadget gadget[5]; /* slots 1 to 5: the first and the last share a GSI */
};

static void gadget_read(struct pci_dev *pci, unsigned bar, uint64_t offset, void *data, unsigned len) {
  struct gadget *g = (struct gadget *)pci;
  g->last_offset = offset;
  memcpy(data, &g->value, len > 4 ? 4 : len);
}

static void gadget_write(struct pci_dev *pci, unsigned bar, uint64_t offset, const void *data, unsigned len) {
  struct gadget *g = (struct gadget *)pci;
  g->last_offset = offset;
  memcpy(&g->value, data, len > 4 ? 4 : len);
}

static void gadget_mapped(struct pci_dev *pci, unsigned bar, uint64_t base) {
  if (bar == 0) ((struct gadget *)pci)->mapped_at = base;
}

static void gadget_unmapped(struct pci_dev *pci, unsigned bar, uint64_t base) {
  struct gadget *g = (struct gadget *)pci;
  if (bar != 0) return;
  assert_int_equal(base, g->mapped_at);
  g->mapped_at = 0;
}

static void gadget_destroy(struct pci_dev *pci) {
  ((struct gadget *)pci)->destroyed++;
  pci_dev_fini(pci);
}

static const struct pci_dev_ops gadget_ops = {
    .bar_read = gadget_read,
    .bar_write = gadget_write,
    .bar_mapped = gadget_mapped,
    .bar_unmapped = gadget_unmapped,
    .destroy = gadget_destroy,
};

static int setup(void **state) {
  static const struct pci_id id = {
      .vendor = 0x1234, .device = 0x5678, .subsystem_vendor = 0x1111, .subsystem = 0x2222, .class_code = 0xff0000, .intx = true};
  struct bench *b = calloc(1, sizeof *b);
  b->vmm = fake_vmm_create();
  b->host = pci_host_create(b->vmm);
  assert_non_null(b->host);
  for (unsigned i = 0; i < 5; i++) {
    struct pci_dev *pci = &b->gadget[i].pci;
    pci_dev_init(pci, &gadget_ops, &id);
    pci_bar_init(pci, 0, PCI_BAR_MEM32, BAR0_SIZE);
    pci_bar_init(pci, BIG_BAR, PCI_BAR_MEM64, 0x10000);
    pci_bar_init(pci, IO_BAR, PCI_BAR_IO, 0x20);
    assert_int_equal(msix_init(pci, MSIX_BAR, VECTORS), 0);
    assert_int_equal(pci_dev_add(b->host, pci), 0);
    assert_int_equal(pci->slot, i + 1);
  }
  *state = b;
  return 0;
}

static int teardown(void **state) {
  struct bench *b = *state;
  pci_host_destroy(b->host);
  for (unsigned i = 0; i < 5; i++) assert_int_equal(b->gadget[i].destroyed, 1);
  fake_vmm_destroy(b->vmm);
  free(b);
  return 0;
}

static uint32_t bar(struct bench *b, unsigned slot, unsigned index) {
  return fake_config_read(b->vmm, slot, PCI_BASE_ADDRESS_0 + 4 * index, 4) & ~0xfu;
}

static void test_mechanism(void **state) {
  struct bench *b = *state;
  assert_int_equal(fake_config_read(b->vmm, 0, PCI_CLASS_DEVICE, 2), 0x0600);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_VENDOR_ID, 4), 0x56781234);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_DEVICE_ID, 2), 0x5678);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_DEVICE_ID + 1, 1), 0x56);
  assert_int_equal(fake_config_read(b->vmm, 9, PCI_VENDOR_ID, 4), 0xffffffff);
  assert_true(pci_slot_present(b->host, 5));
  assert_false(pci_slot_present(b->host, 6));
  assert_false(pci_slot_present(b->host, 32));
  /* Other functions and buses, and a disabled mechanism. */
  fake_out(b->vmm, PCI_PIO_ADDRESS, 0x80000000u | 1 << 11 | 1 << 8, 4);
  assert_int_equal(fake_in(b->vmm, PCI_PIO_DATA, 4), 0xffffffff);
  fake_out(b->vmm, PCI_PIO_ADDRESS, 0x80010800u, 4);
  assert_int_equal(fake_in(b->vmm, PCI_PIO_DATA, 4), 0xffffffff);
  fake_out(b->vmm, PCI_PIO_ADDRESS, 0x00000800u, 4);
  assert_int_equal(fake_in(b->vmm, PCI_PIO_DATA, 4), 0xffffffff);
  /* Only dwords reach the address register. */
  fake_out(b->vmm, PCI_PIO_ADDRESS, 0x80000800u, 4);
  fake_out(b->vmm, PCI_PIO_ADDRESS, 0, 2);
  assert_int_equal(fake_in(b->vmm, PCI_PIO_ADDRESS, 4), 0x80000800u);
}

static void test_masks(void **state) {
  struct bench *b = *state;
  fake_config_write(b->vmm, 1, PCI_VENDOR_ID, 0, 4);
  fake_config_write(b->vmm, 1, PCI_CLASS_REVISION, 0, 4);
  fake_config_write(b->vmm, 1, PCI_SUBSYSTEM_VENDOR_ID, 0, 4);
  fake_config_write(b->vmm, 1, PCI_INTERRUPT_PIN, 9, 1);
  fake_config_write(b->vmm, 1, PCI_INTERRUPT_LINE, 99, 1);
  fake_config_write(b->vmm, 1, PCI_STATUS, 0xffff, 2);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_VENDOR_ID, 4), 0x56781234);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_CLASS_REVISION, 4), 0xff000000);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_SUBSYSTEM_VENDOR_ID, 4), 0x22221111);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_INTERRUPT_PIN, 1), 1);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_INTERRUPT_LINE, 1), 99);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_STATUS, 2), PCI_STATUS_CAP_LIST);
}

static void test_bar_sizing(void **state) {
  struct bench *b = *state;
  uint32_t before = fake_config_read(b->vmm, 1, PCI_BASE_ADDRESS_0, 4);
  assert_true(before >= PCI_MMIO_BASE && before < PCI_MMIO_LIMIT);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_0, 0xffffffff, 4);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_BASE_ADDRESS_0, 4), (uint32_t)-BAR0_SIZE);
  assert_int_equal(b->gadget[0].mapped_at, 0);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_0, before, 4);
  assert_int_equal(b->gadget[0].mapped_at, before);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_4, 0xffffffff, 4);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_BASE_ADDRESS_4, 4), 0xffffffe1);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_2, 0xffffffff, 4);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_3, 0xffffffff, 4);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_BASE_ADDRESS_2, 4), 0xffff0004);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_BASE_ADDRESS_3, 4), 0xffffffff);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_5, 0xffffffff, 4); /* no such BAR */
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_BASE_ADDRESS_5, 4), 0);
}

static void test_bar_moves(void **state) {
  struct bench *b = *state;
  uint32_t first = bar(b, 1, 0), second = bar(b, 2, 0);
  fake_mmio_write(b->vmm, first + 0x10, 0xabcd, 4);
  assert_int_equal(b->gadget[0].value, 0xabcd);
  assert_int_equal(b->gadget[0].last_offset, 0x10);
  /* On top of another: the older mapping stays; when it goes away, the newer one appears. */
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_0, second, 4);
  assert_int_equal(b->gadget[0].mapped_at, 0);
  assert_int_equal(b->gadget[1].mapped_at, second);
  fake_config_write(b->vmm, 2, PCI_BASE_ADDRESS_0, first, 4);
  assert_int_equal(b->gadget[0].mapped_at, second);
  assert_int_equal(b->gadget[1].mapped_at, first);
  /* Over RAM, or over the interrupt controllers: nowhere. */
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_0, 0x200000, 4);
  assert_int_equal(b->gadget[0].mapped_at, 0);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_0, 0xfee00000, 4);
  assert_int_equal(b->gadget[0].mapped_at, 0);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_0, second, 4);
  /* Decoding off and on. */
  fake_config_write(b->vmm, 1, PCI_COMMAND, 0, 2);
  assert_int_equal(b->gadget[0].mapped_at, 0);
  assert_int_equal(fake_mmio_read(b->vmm, second, 4), 0xffffffff);
  fake_config_write(b->vmm, 1, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
  assert_int_equal(b->gadget[0].mapped_at, second);
  /* A 64-bit BAR above 4 GiB. */
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_3, 0x20, 4);
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_2, 0x10000, 4);
  fake_mmio_write(b->vmm, 0x2000010008ull, 77, 4);
  assert_int_equal(b->gadget[0].value, 77);
  assert_int_equal(b->gadget[0].last_offset, 8);
}

static void test_intx(void **state) {
  struct bench *b = *state;
  struct pci_dev *one = &b->gadget[0].pci, *five = &b->gadget[4].pci;
  unsigned gsi = pci_intx_gsi(1, 0);
  assert_int_equal(gsi, 17);
  assert_int_equal(gsi, pci_intx_gsi(5, 0));
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_INTERRUPT_LINE, 1), gsi);
  pci_intx_set(one, true);
  pci_intx_set(five, true);
  assert_true(fake_level(b->vmm, gsi));
  assert_true(fake_config_read(b->vmm, 1, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
  pci_intx_set(one, false);
  assert_true(fake_level(b->vmm, gsi));
  assert_false(fake_config_read(b->vmm, 1, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
  fake_config_write(b->vmm, 5, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, 2);
  assert_false(fake_level(b->vmm, gsi));
  assert_true(fake_config_read(b->vmm, 5, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
  fake_config_write(b->vmm, 5, PCI_COMMAND, 0, 2);
  assert_true(fake_level(b->vmm, gsi));
  /* MSI-X in use takes the line away. */
  fake_config_write(b->vmm, 5, five->msix.cap + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE, 2);
  assert_false(fake_level(b->vmm, gsi));
}

static void program_vector(struct bench *b, unsigned vector, uint32_t data, bool masked) {
  uint64_t at = bar(b, 1, MSIX_BAR) + 16 * vector;
  fake_mmio_write(b->vmm, at, 0xfee00000, 4);
  fake_mmio_write(b->vmm, at + 4, 0, 4);
  fake_mmio_write(b->vmm, at + 8, data, 4);
  fake_mmio_write(b->vmm, at + 12, masked, 4);
}

static void test_msix(void **state) {
  struct bench *b = *state;
  struct pci_dev *pci = &b->gadget[0].pci;
  unsigned flags = pci->msix.cap + PCI_MSIX_FLAGS;
  uint64_t pba = bar(b, 1, MSIX_BAR) + 0x800;
  assert_int_equal(fake_config_read(b->vmm, 1, flags, 2), VECTORS - 1);
  assert_int_equal(fake_mmio_read(b->vmm, bar(b, 1, MSIX_BAR) + 12, 4), 1); /* masked after reset */
  msix_notify(pci, 0);                                                      /* not enabled: nothing, not even pending */
  fake_config_write(b->vmm, 1, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
  fake_config_write(b->vmm, 1, flags, PCI_MSIX_FLAGS_ENABLE, 2);
  program_vector(b, 0, 100, false);
  program_vector(b, 1, 101, true);
  assert_int_equal(fake_mmio_read(b->vmm, pba, 8), 0);
  msix_notify(pci, 0);
  assert_int_equal(fake_msi_count(b->vmm, 100), 1);
  msix_notify(pci, 1);
  msix_notify(pci, 1);
  assert_int_equal(fake_msi_count(b->vmm, 101), 0);
  assert_int_equal(fake_mmio_read(b->vmm, pba, 8), 2);
  fake_mmio_write(b->vmm, pba, 0, 8); /* read-only */
  assert_int_equal(fake_mmio_read(b->vmm, pba, 4), 2);
  program_vector(b, 1, 101, false);
  assert_int_equal(fake_msi_count(b->vmm, 101), 1);
  assert_int_equal(fake_mmio_read(b->vmm, pba, 4), 0);
  /* The function mask. */
  fake_config_write(b->vmm, 1, flags, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, 2);
  msix_notify(pci, 0);
  assert_int_equal(fake_msi_count(b->vmm, 100), 1);
  fake_config_write(b->vmm, 1, flags, PCI_MSIX_FLAGS_ENABLE, 2);
  assert_int_equal(fake_msi_count(b->vmm, 100), 2);
  /* No bus mastering, no message. */
  fake_config_write(b->vmm, 1, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
  msix_notify(pci, 0);
  assert_int_equal(fake_msi_count(b->vmm, 100), 2);
  fake_config_write(b->vmm, 1, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
  assert_int_equal(fake_msi_count(b->vmm, 100), 3);
  /* Vectors and accesses that do not exist. */
  msix_notify(pci, VECTORS);
  fake_mmio_write(b->vmm, bar(b, 1, MSIX_BAR) + 16 * VECTORS, 1, 4);
  fake_mmio_write(b->vmm, bar(b, 1, MSIX_BAR) + 1, 1, 2);
  assert_int_equal(fake_mmio_read(b->vmm, bar(b, 1, MSIX_BAR), 8), 0xfee00000);
}

static void test_reset(void **state) {
  struct bench *b = *state;
  uint32_t first = bar(b, 1, 0);
  unsigned flags = b->gadget[0].pci.msix.cap + PCI_MSIX_FLAGS;
  fake_config_write(b->vmm, 1, PCI_BASE_ADDRESS_0, 0xd0000000, 4);
  fake_config_write(b->vmm, 1, flags, PCI_MSIX_FLAGS_ENABLE, 2);
  program_vector(b, 0, 100, false);
  pci_intx_set(&b->gadget[1].pci, true);
  fake_reset(b->vmm);
  assert_int_equal(bar(b, 1, 0), first);
  assert_int_equal(b->gadget[0].mapped_at, first);
  assert_false(msix_enabled(&b->gadget[0].pci));
  assert_int_equal(fake_config_read(b->vmm, 1, flags, 2), VECTORS - 1);
  assert_int_equal(fake_mmio_read(b->vmm, bar(b, 1, MSIX_BAR) + 12, 4), 1);
  assert_false(fake_level(b->vmm, pci_intx_gsi(2, 0)));
}

static void test_ecam(void **state) {
  struct bench *b = *state;
  const uint64_t base = 0xb0000000;
  assert_int_equal(pci_host_add_ecam(b->host, base), 0);
  assert_int_equal(fake_mmio_read(b->vmm, base + (1 << 15), 4), 0x56781234);
  assert_int_equal(fake_mmio_read(b->vmm, base + (1 << 15) + 0x100, 4), 0); /* no extended capabilities */
  assert_int_equal(fake_mmio_read(b->vmm, base + (9 << 15), 4), 0xffffffff);
  fake_mmio_write(b->vmm, base + (1 << 15) + PCI_INTERRUPT_LINE, 5, 1);
  assert_int_equal(fake_config_read(b->vmm, 1, PCI_INTERRUPT_LINE, 1), 5);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_mechanism, setup, teardown),
      cmocka_unit_test_setup_teardown(test_masks, setup, teardown),
      cmocka_unit_test_setup_teardown(test_bar_sizing, setup, teardown),
      cmocka_unit_test_setup_teardown(test_bar_moves, setup, teardown),
      cmocka_unit_test_setup_teardown(test_intx, setup, teardown),
      cmocka_unit_test_setup_teardown(test_msix, setup, teardown),
      cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
      cmocka_unit_test_setup_teardown(test_ecam, setup, teardown),
  };
  return cmocka_run_group_tests_name("pci", tests, NULL, NULL);
}
