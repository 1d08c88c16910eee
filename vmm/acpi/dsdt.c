/* The machine's definition block: processors, PCI root, the ISA devices, the S5 state. */
#include <stdio.h>

#include "vmm/acpi/aml.h"
#include "vmm/acpi/tables.h"
#include "vmm/boot/layout.h"

/* ISA devices, one row each: name, hardware id, ports, interrupt (0: none). */
static const struct isa_device {
  const char *name, *hid;
  bool hid_is_string; /* not of the form PNPxxxx */
  struct {
    uint16_t base;
    uint8_t len;
  } io[2];
  uint8_t irq;
} isa_devices[] = {
    {"COM1", "PNP0501", false, {{0x3f8, 8}}, 4},
    {"RTC_", "PNP0B00", false, {{0x70, 2}}, 8},
    {"PVPC", "QEMU0001", true, {{PVPANIC_PORT, 1}}, 0}, /* the id that guests know the pvpanic port by */
};

static void add_isa_device(struct aml *a, const struct isa_device *d) {
  size_t dev = aml_device(a, d->name);
  aml_name(a, "_HID");
  if (d->hid_is_string)
    aml_string(a, d->hid);
  else
    aml_eisaid(a, d->hid);
  aml_name_int(a, "_UID", 0);
  aml_name_int(a, "_STA", 0xf);
  struct aml_crs crs = aml_crs_begin(a, "_CRS");
  for (int i = 0; i < 2; i++)
    if (d->io[i].len) aml_crs_io(a, d->io[i].base, d->io[i].len);
  if (d->irq) aml_crs_irq(a, d->irq);
  aml_crs_end(a, crs);
  aml_end(a, dev);
}

/* Ports and addresses that no device driver may take (PNP0C02, motherboard resources). */
static void add_motherboard(struct aml *a, const struct firmware_config *config) {
  size_t dev = aml_device(a, "MBRD");
  aml_name_eisaid(a, "_HID", "PNP0C02");
  aml_name_int(a, "_UID", 0);
  struct aml_crs crs = aml_crs_begin(a, "_CRS");
  aml_crs_io(a, ACPI_PM1_EVT, 16);
  if (config->ecam_base) aml_crs_memory32(a, (uint32_t)config->ecam_base, 1 << 20);
  aml_crs_end(a, crs);
  aml_end(a, dev);
}

/* ACPI 6.4, 6.2.13: packages of address, pin, source (0: a GSI), GSI. */
static void add_prt(struct aml *a, const struct firmware_config *config) {
  aml_name(a, "_PRT");
  size_t prt = aml_package(a, 32 * 4);
  for (unsigned slot = 0; slot < 32; slot++)
    for (unsigned pin = 0; pin < 4; pin++) {
      size_t entry = aml_package(a, 4);
      aml_int(a, (uint64_t)slot << 16 | 0xffff);
      aml_int(a, pin);
      aml_int(a, 0);
      aml_int(a, config->intx_gsi(slot, pin));
      aml_end(a, entry);
    }
  aml_end(a, prt);
}

static void add_pci(struct aml *a, const struct firmware_config *config) {
  size_t dev = aml_device(a, "PCI0");
  aml_name_eisaid(a, "_HID", "PNP0A03");
  aml_name_int(a, "_ADR", 0);
  aml_name_int(a, "_BBN", 0);
  aml_name_int(a, "_SEG", 0);
  aml_name_int(a, "_UID", 0);
  struct aml_crs crs = aml_crs_begin(a, "_CRS");
  aml_crs_bus(a, 0, 0);
  aml_crs_io(a, 0xcf8, 8);
  aml_crs_io_window(a, 0, 0xcf7);
  aml_crs_io_window(a, 0xd00, 0xffff);
  aml_crs_memory32_window(a, config->pci_mmio_base, config->pci_mmio_last);
  aml_crs_end(a, crs);
  add_prt(a, config);
  aml_end(a, dev);
}

/* ACPI 6.4, 8.4: processors are devices ACPI0007 in a container ACPI0010; _UID matches the MADT. */
static void add_cpus(struct aml *a, unsigned cpus) {
  size_t container = aml_device(a, "CPUS");
  aml_name(a, "_HID");
  aml_string(a, "ACPI0010");
  aml_name_int(a, "_UID", 0);
  for (unsigned i = 0; i < cpus; i++) {
    char name[16];
    snprintf(name, sizeof(name), "C%03X", i & 0xfff);
    size_t dev = aml_device(a, name);
    aml_name(a, "_HID");
    aml_string(a, "ACPI0007");
    aml_name_int(a, "_UID", i);
    aml_end(a, dev);
  }
  aml_end(a, container);
}

/* 7.4.2.6: the values that the guest writes to SLP_TYP of PM1a and PM1b to switch off. */
static void add_s5(struct aml *a) {
  aml_name(a, "\\_S5_");
  size_t s5 = aml_package(a, 4);
  aml_int(a, ACPI_SLP_TYP_S5);
  aml_int(a, ACPI_SLP_TYP_S5);
  aml_int(a, 0);
  aml_int(a, 0);
  aml_end(a, s5);
}

void dsdt_build(struct aml *a, const struct firmware_config *config) {
  add_s5(a);
  size_t sb = aml_scope(a, "\\_SB_");
  add_cpus(a, config->cpus);
  if (config->pci) add_pci(a, config);
  add_motherboard(a, config);
  for (size_t i = 0; i < sizeof(isa_devices) / sizeof(isa_devices[0]); i++) add_isa_device(a, &isa_devices[i]);
  aml_end(a, sb);
}
