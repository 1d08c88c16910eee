/* The firmware tables of the machine: ACPI, MultiProcessor Specification, SMBIOS. */
#ifndef VMM_ACPI_TABLES_H
#define VMM_ACPI_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ports of the ACPI fixed hardware (vmm/dev/acpi_pm.c answers there). */
enum {
  ACPI_PM1_EVT = 0x600, /* status, enable: 2 bytes each */
  ACPI_PM1_CNT = 0x604, /* 2 bytes */
  ACPI_PM_TMR = 0x608,  /* 4 bytes */
  ACPI_RESET_PORT = 0xcf9,
  ACPI_RESET_VALUE = 0x06,
  ACPI_SLP_TYP_S5 = 5,
  ACPI_SCI_GSI = 9,
  PVPANIC_PORT = 0x505,
};

/* What the tables describe. */
struct firmware_config {
  unsigned cpus; /* APIC ids 0 .. cpus-1 */
  uint64_t memory;
  bool pci;
  uint32_t pci_mmio_base, pci_mmio_last;
  uint64_t ecam_base; /* 0: none */
  unsigned (*intx_gsi)(unsigned slot, unsigned pin);
  bool (*slot_present)(void *opaque, unsigned slot);
  void *opaque;
};

/* Each writes its tables to `area`, guest address gpa, of len bytes.  0, or -1 when they do not fit. */
int acpi_build(const struct firmware_config *config, uint8_t *area, uint64_t gpa, size_t len); /* the RSDP is at gpa */
int mptable_build(const struct firmware_config *config, uint8_t *area, uint64_t gpa, size_t len);
int smbios_build(const struct firmware_config *config, uint8_t *area, uint64_t gpa, size_t len);

/* dsdt.c: the definition block's AML, without the table header. */
struct aml;
void dsdt_build(struct aml *a, const struct firmware_config *config);

/* The sum of all bytes of a table with this checksum byte is 0 modulo 256. */
uint8_t table_checksum(const void *data, size_t len);

#endif
