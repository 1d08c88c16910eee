/* Unit tests of the firmware tables: checksums, links, sizes, for few and for many CPUs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/acpi/tables.h"
#include "vmm/boot/layout.h"
#include "vmm/pci/pci.h"

static uint8_t *memory;

static int set_up(void **state) {
  memory = calloc(1, 1 << 20);
  return memory ? 0 : -1;
}

static int tear_down(void **state) {
  free(memory);
  return 0;
}

static bool slot_present(void *opaque, unsigned slot) {
  return slot < 3;
}

static struct firmware_config config_of(unsigned cpus) {
  return (struct firmware_config){.cpus = cpus,
                                  .memory = 1 << 30,
                                  .pci = true,
                                  .pci_mmio_base = 0xc0000000,
                                  .pci_mmio_last = 0xfebfffff,
                                  .ecam_base = LAYOUT_ECAM,
                                  .intx_gsi = pci_intx_gsi,
                                  .slot_present = slot_present};
}

static uint32_t get32(uint64_t gpa) {
  uint32_t v;
  memcpy(&v, memory + gpa, 4);
  return v;
}

static uint64_t get64(uint64_t gpa) {
  return get32(gpa) | (uint64_t)get32(gpa + 4) << 32;
}

static int build_acpi(unsigned cpus) {
  struct firmware_config c = config_of(cpus);
  return acpi_build(&c, memory + LAYOUT_ACPI, LAYOUT_ACPI, LAYOUT_ACPI_END - LAYOUT_ACPI);
}

/* The table of that signature in the XSDT, its checksum checked. */
static uint64_t find_table(const char *signature) {
  uint64_t xsdt = get64(LAYOUT_ACPI + 24), found = 0;
  assert_int_equal(table_checksum(memory + xsdt, get32(xsdt + 4)), 0);
  for (uint64_t at = xsdt + 36; at < xsdt + get32(xsdt + 4); at += 8) {
    uint64_t t = get64(at);
    assert_true(t >= LAYOUT_ACPI && t + get32(t + 4) <= LAYOUT_ACPI_END);
    assert_int_equal(table_checksum(memory + t, get32(t + 4)), 0);
    if (memcmp(memory + t, signature, 4) == 0) found = t;
  }
  return found;
}

static void acpi_root(void **state) {
  assert_int_equal(build_acpi(2), 0);
  assert_memory_equal(memory + LAYOUT_ACPI, "RSD PTR ", 8);
  assert_int_equal(table_checksum(memory + LAYOUT_ACPI, 20), 0);
  assert_int_equal(table_checksum(memory + LAYOUT_ACPI, 36), 0);
  uint32_t rsdt = get32(LAYOUT_ACPI + 16);
  assert_memory_equal(memory + rsdt, "RSDT", 4);
  assert_int_equal(table_checksum(memory + rsdt, get32(rsdt + 4)), 0);
}

static void fadt_links(void **state) {
  assert_int_equal(build_acpi(2), 0);
  uint64_t fadt = find_table("FACP");
  assert_true(fadt);
  uint32_t facs = get32(fadt + 36), dsdt = get32(fadt + 40);
  assert_memory_equal(memory + facs, "FACS", 4);
  assert_int_equal(facs % 64, 0);
  assert_memory_equal(memory + dsdt, "DSDT", 4);
  assert_int_equal(get64(fadt + 140), dsdt);
  assert_int_equal(table_checksum(memory + dsdt, get32(dsdt + 4)), 0);
}

/* Counts the processors in the MADT, of either structure. */
static unsigned madt_cpus(uint64_t madt) {
  unsigned cpus = 0;
  for (uint64_t at = madt + 44; at < madt + get32(madt + 4); at += memory[at + 1]) {
    assert_true(memory[at + 1] >= 6);
    cpus += memory[at] == 0 || memory[at] == 9;
  }
  return cpus;
}

static void madt_lists_all_cpus(void **state) {
  static const unsigned counts[] = {1, 2, 254, 255, 256, 300, 1024};
  for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
    assert_int_equal(build_acpi(counts[i]), 0);
    assert_int_equal(madt_cpus(find_table("APIC")), counts[i]);
  }
}

static void too_many_cpus_do_not_fit(void **state) {
  assert_int_equal(build_acpi(4096), -1);
}

/* Walks the terms of the DSDT that have a package length: they must nest exactly. */
static void walk_aml(uint64_t at, uint64_t end, unsigned depth) {
  assert_true(depth < 8);
  while (at < end) {
    bool device = memory[at] == 0x5b && memory[at + 1] == 0x82, scope = memory[at] == 0x10;
    if (!device && !scope) return; /* names follow: the contents of a device */
    uint64_t length_at = at + (device ? 2 : 1);
    assert_int_equal(memory[length_at] >> 6, 3);
    uint64_t length = (memory[length_at] & 0xf) | (uint64_t)memory[length_at + 1] << 4 | (uint64_t)memory[length_at + 2] << 12 |
                      (uint64_t)memory[length_at + 3] << 20;
    assert_true(length_at + length <= end);
    if (scope) walk_aml(length_at + 4 + 5, length_at + length, depth + 1); /* "\_SB_" */
    at = length_at + length;
  }
  assert_int_equal(at, end);
}

static void dsdt_nests(void **state) {
  assert_int_equal(build_acpi(3), 0);
  uint32_t dsdt = get32(find_table("FACP") + 40);
  static const uint8_t s5[] = {0x08, '\\', '_', 'S', '5', '_', 0x12};
  assert_memory_equal(memory + dsdt + 36, s5, sizeof(s5));
  uint64_t scope = dsdt + 36 + sizeof(s5) + 4 + 1 + 2 + 2 + 1 + 1; /* package: length, count, two byte constants, two zeros */
  assert_int_equal(memory[scope], 0x10);
  walk_aml(scope, dsdt + get32(dsdt + 4), 0);
}

static void mp_table(void **state) {
  struct firmware_config c = config_of(3);
  assert_int_equal(mptable_build(&c, memory + LAYOUT_MPTABLE, LAYOUT_MPTABLE, LAYOUT_MPTABLE_END - LAYOUT_MPTABLE), 0);
  assert_memory_equal(memory + LAYOUT_MPTABLE, "_MP_", 4);
  assert_int_equal(table_checksum(memory + LAYOUT_MPTABLE, 16), 0);
  uint32_t t = get32(LAYOUT_MPTABLE + 4);
  unsigned length = memory[t + 4] | memory[t + 5] << 8, entries = memory[t + 34] | memory[t + 35] << 8, cpus = 0, pci = 0;
  assert_int_equal(table_checksum(memory + t, length), 0);
  uint32_t at = t + 44;
  for (unsigned i = 0; i < entries; i++) {
    cpus += memory[at] == 0;
    pci += memory[at] == 3 && memory[at + 4] == 0;
    at += memory[at] == 0 ? 20 : 8;
  }
  assert_int_equal(at, t + length);
  assert_int_equal(cpus, 3);
  assert_int_equal(pci, 3 * 4);
}

static void smbios(void **state) {
  struct firmware_config c = config_of(1);
  assert_int_equal(smbios_build(&c, memory + LAYOUT_SMBIOS, LAYOUT_SMBIOS, LAYOUT_SMBIOS_END - LAYOUT_SMBIOS), 0);
  assert_memory_equal(memory + LAYOUT_SMBIOS, "_SM3_", 5);
  assert_int_equal(table_checksum(memory + LAYOUT_SMBIOS, memory[LAYOUT_SMBIOS + 6]), 0);
  uint64_t at = get64(LAYOUT_SMBIOS + 16), end = at + get32(LAYOUT_SMBIOS + 12);
  unsigned type = 0;
  while (at < end) {
    type = memory[at];
    at += memory[at + 1];
    while (memory[at] || memory[at + 1]) at++;
    at += 2;
  }
  assert_int_equal(type, 127);
  assert_int_equal(at, end);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(acpi_root), TEST(fadt_links), TEST(madt_lists_all_cpus), TEST(too_many_cpus_do_not_fit), TEST(dsdt_nests),
      TEST(mp_table),  TEST(smbios)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
