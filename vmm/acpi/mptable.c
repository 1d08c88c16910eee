/* The MP configuration table, for guests that do not use ACPI (MultiProcessor Specification 1.4, chapter 4). */
#include <string.h>

#include "vmm/acpi/tables.h"
#include "vmm/boot/layout.h"

/* 4.1 */
struct mp_pointer {
  char signature[4];
  uint32_t table;
  uint8_t length, revision, checksum, features[5];
} __attribute__((packed));

/* 4.2 */
struct mp_header {
  char signature[4];
  uint16_t length;
  uint8_t revision, checksum;
  char oem_id[8], product_id[12];
  uint32_t oem_table;
  uint16_t oem_size, entries;
  uint32_t lapic;
  uint16_t ext_length;
  uint8_t ext_checksum, reserved;
} __attribute__((packed));

/* 4.3 */
enum { MP_CPU = 0, MP_BUS = 1, MP_IOAPIC = 2, MP_IOINT = 3, MP_LINT = 4 };
enum { MP_CPU_ENABLED = 1, MP_CPU_BSP = 2, MP_INT = 0, MP_NMI = 1, MP_EXTINT = 3 };
enum { BUS_PCI = 0, BUS_ISA = 1, MP_LEVEL_HIGH = 0xd, MP_ALL_LAPICS = 0xff, APIC_VERSION = 0x14, IOAPIC_VERSION = 0x11 };

struct mp_cpu {
  uint8_t type, apic_id, version, flags;
  uint32_t signature, features, reserved[2];
} __attribute__((packed));
struct mp_bus {
  uint8_t type, id;
  char name[6];
} __attribute__((packed));
struct mp_ioapic {
  uint8_t type, id, version, flags;
  uint32_t address;
} __attribute__((packed));
struct mp_int {
  uint8_t type, kind;
  uint16_t flags;
  uint8_t bus, irq, dst_apic, dst_pin;
} __attribute__((packed));

struct mp_writer {
  uint8_t *at, *end;
  unsigned entries;
  bool overflow;
};

static void put(struct mp_writer *w, const void *entry, size_t len) {
  if ((size_t)(w->end - w->at) < len) {
    w->overflow = true;
    return;
  }
  memcpy(w->at, entry, len);
  w->at += len;
  w->entries++;
}

static void put_int(struct mp_writer *w, uint8_t type, uint8_t kind, uint16_t flags, uint8_t bus, uint8_t irq, uint8_t apic,
                    uint8_t pin) {
  struct mp_int e = {type, kind, flags, bus, irq, apic, pin};
  put(w, &e, sizeof(e));
}

static void put_interrupts(struct mp_writer *w, const struct firmware_config *config, uint8_t ioapic) {
  for (uint8_t irq = 0; irq < 16; irq++) {
    if (irq == 2) continue; /* the cascade; pin 2 carries the timer */
    put_int(w, MP_IOINT, MP_INT, irq == ACPI_SCI_GSI ? MP_LEVEL_HIGH : 0, BUS_ISA, irq, ioapic, irq == 0 ? 2 : irq);
  }
  for (unsigned slot = 0; config->pci && slot < 32; slot++)
    for (unsigned pin = 0; pin < 4 && config->slot_present(config->opaque, slot); pin++)
      /* D.3: a PCI source is the device number in bits 6-2 and the pin in bits 1-0. */
      put_int(w, MP_IOINT, MP_INT, MP_LEVEL_HIGH, BUS_PCI, (uint8_t)(slot << 2 | pin), ioapic,
              (uint8_t)config->intx_gsi(slot, pin));
  put_int(w, MP_LINT, MP_EXTINT, 0, BUS_ISA, 0, 0, 0);
  put_int(w, MP_LINT, MP_NMI, 0, BUS_ISA, 0, MP_ALL_LAPICS, 1);
}

int mptable_build(const struct firmware_config *config, uint8_t *area, uint64_t gpa, size_t len) {
  unsigned cpus = config->cpus < 254 ? config->cpus : 254; /* ids are bytes, one is the I/O APIC's, 255 means all */
  struct mp_pointer *ptr = (struct mp_pointer *)area;
  struct mp_header *h = (struct mp_header *)(area + sizeof(*ptr));
  struct mp_writer w = {(uint8_t *)(h + 1), area + len, 0, false};
  for (unsigned i = 0; i < cpus; i++) {
    struct mp_cpu e = {MP_CPU, (uint8_t)i, APIC_VERSION, (uint8_t)(MP_CPU_ENABLED | (i == 0 ? MP_CPU_BSP : 0)),
                       0x600,  0x201,      {0, 0}};
    put(&w, &e, sizeof(e));
  }
  if (config->pci) put(&w, &(struct mp_bus){MP_BUS, BUS_PCI, {'P', 'C', 'I', ' ', ' ', ' '}}, sizeof(struct mp_bus));
  put(&w, &(struct mp_bus){MP_BUS, BUS_ISA, {'I', 'S', 'A', ' ', ' ', ' '}}, sizeof(struct mp_bus));
  uint8_t ioapic = (uint8_t)cpus;
  put(&w, &(struct mp_ioapic){MP_IOAPIC, ioapic, IOAPIC_VERSION, 1, LAYOUT_IOAPIC}, sizeof(struct mp_ioapic));
  put_interrupts(&w, config, ioapic);
  if (w.overflow) return -1;
  *h = (struct mp_header){
      .length = (uint16_t)(w.at - (uint8_t *)h), .revision = 4, .entries = (uint16_t)w.entries, .lapic = LAYOUT_LAPIC};
  memcpy(h->signature, "PCMP", 4);
  memcpy(h->oem_id, "UVIRT   ", 8);
  memcpy(h->product_id, "UVIRTVM     ", 12);
  h->checksum = table_checksum(h, h->length);
  *ptr = (struct mp_pointer){.table = (uint32_t)(gpa + sizeof(*ptr)), .length = 1, .revision = 4};
  memcpy(ptr->signature, "_MP_", 4);
  ptr->checksum = table_checksum(ptr, sizeof(*ptr));
  return 0;
}
