/* The ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, MCFG.
 *
 * Manual: ACPI 6.4; section numbers below are its. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/acpi/aml.h"
#include "vmm/acpi/tables.h"
#include "vmm/boot/layout.h"

uint8_t table_checksum(const void *data, size_t len) {
  const uint8_t *p = data;
  uint8_t sum = 0;
  while (len--) sum = (uint8_t)(sum + *p++);
  return (uint8_t)-sum;
}

/* 5.2.6 */
struct sdt_header {
  char signature[4];
  uint32_t length;
  uint8_t revision, checksum;
  char oem_id[6], oem_table_id[8];
  uint32_t oem_revision;
  char creator_id[4];
  uint32_t creator_revision;
} __attribute__((packed));

/* 5.2.3.2; access_size 0: undefined, 1: byte, 2: word, 3: dword */
struct gas {
  uint8_t space, bit_width, bit_offset, access_size;
  uint64_t address;
} __attribute__((packed));
enum { GAS_IO = 1 };

/* 5.2.5.3 */
struct rsdp {
  char signature[8];
  uint8_t checksum;
  char oem_id[6];
  uint8_t revision;
  uint32_t rsdt, length;
  uint64_t xsdt;
  uint8_t extended_checksum, reserved[3];
} __attribute__((packed));

/* 5.2.9 */
struct fadt {
  struct sdt_header h;
  uint32_t facs, dsdt;
  uint8_t reserved0, preferred_pm_profile;
  uint16_t sci_int;
  uint32_t smi_cmd;
  uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
  uint32_t pm1a_evt_blk, pm1b_evt_blk, pm1a_cnt_blk, pm1b_cnt_blk, pm2_cnt_blk, pm_tmr_blk, gpe0_blk, gpe1_blk;
  uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_blk_len, gpe1_blk_len, gpe1_base, cst_cnt;
  uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
  uint8_t duty_offset, duty_width, day_alrm, mon_alrm, century;
  uint16_t iapc_boot_arch;
  uint8_t reserved1;
  uint32_t flags;
  struct gas reset_reg;
  uint8_t reset_value;
  uint16_t arm_boot_arch;
  uint8_t minor_version;
  uint64_t x_facs, x_dsdt;
  struct gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0, x_gpe1, sleep_control, sleep_status;
  uint64_t hypervisor_vendor;
} __attribute__((packed));
_Static_assert(sizeof(struct fadt) == 276, "FADT revision 6");

/* FADT flags, table 5.10, and IA-PC boot flags, table 5.11. */
enum {
  FADT_WBINVD = 1 << 0,
  FADT_PROC_C1 = 1 << 2,
  FADT_PWR_BUTTON = 1 << 4, /* no fixed power button */
  FADT_SLP_BUTTON = 1 << 5, /* no fixed sleep button */
  FADT_TMR_VAL_EXT = 1 << 8,
  FADT_RESET_REG_SUP = 1 << 10,
};
enum { BOOT_LEGACY_DEVICES = 1 << 0, BOOT_NO_VGA = 1 << 2, BOOT_NO_ASPM = 1 << 4 }; /* not bit 1: no PS/2 devices */

/* 5.2.12 and its structures */
enum { MADT_LAPIC = 0, MADT_IOAPIC = 1, MADT_ISO = 2, MADT_LAPIC_NMI = 4, MADT_X2APIC = 9, MADT_X2APIC_NMI = 10 };
enum { MADT_PCAT_COMPAT = 1, MADT_CPU_ENABLED = 1 };
enum { MPS_INTI_LEVEL_HIGH = 0xd }; /* table 5.26: active high (bits 1-0), level-triggered (bits 3-2) */

/* Tables are appended one after another, each on 16 bytes. */
struct builder {
  uint8_t *area;
  uint64_t gpa;
  size_t len, used;
  bool overflow;
};

static void *take(struct builder *b, size_t len, uint64_t *gpa, size_t align) {
  size_t at = (b->used + align - 1) & ~(align - 1);
  if (at > b->len || len > b->len - at) {
    b->overflow = true;
    return NULL;
  }
  b->used = at + len;
  if (gpa) *gpa = b->gpa + at;
  return b->area + at;
}

static void fill_header(struct sdt_header *h, const char *signature, uint8_t revision, size_t len) {
  memcpy(h->signature, signature, 4);
  h->length = (uint32_t)len;
  h->revision = revision;
  memcpy(h->oem_id, "UVIRT ", 6);
  memcpy(h->oem_table_id, "UVIRTVM ", 8);
  h->oem_revision = 1;
  memcpy(h->creator_id, "UVRT", 4);
  h->creator_revision = 1;
  h->checksum = 0;
}

static void seal(struct sdt_header *h) {
  h->checksum = 0;
  h->checksum = table_checksum(h, h->length);
}

/* Appends header and body as one table; returns its address, 0 on overflow. */
static uint64_t append(struct builder *b, const char *signature, uint8_t revision, const void *body, size_t body_len) {
  uint64_t gpa;
  struct sdt_header *h = take(b, sizeof(*h) + body_len, &gpa, 16);
  if (!h) return 0;
  fill_header(h, signature, revision, sizeof(*h) + body_len);
  memcpy(h + 1, body, body_len);
  seal(h);
  return gpa;
}

static uint64_t build_dsdt(struct builder *b, const struct firmware_config *config) {
  struct aml a = {0};
  dsdt_build(&a, config);
  uint64_t gpa = a.failed ? 0 : append(b, "DSDT", 2, a.data, a.len);
  if (a.failed) b->overflow = true;
  aml_free(&a);
  return gpa;
}

/* 5.2.10 */
static uint64_t build_facs(struct builder *b) {
  uint64_t gpa = 0;
  uint8_t *facs = take(b, 64, &gpa, 64);
  if (!facs) return 0;
  memset(facs, 0, 64);
  memcpy(facs, "FACS", 4);
  facs[4] = 64;
  facs[32] = 2; /* version */
  return gpa;
}

static struct gas io_register(uint16_t port, uint8_t bytes) {
  return (struct gas){GAS_IO, (uint8_t)(bytes * 8), 0, bytes == 4 ? 3 : bytes, port};
}

/* SMI_CMD is 0: the machine is always in ACPI mode (5.2.9, table 5.9). */
static uint64_t build_fadt(struct builder *b, uint64_t facs, uint64_t dsdt) {
  uint64_t gpa;
  struct fadt *f = take(b, sizeof(*f), &gpa, 16);
  if (!f) return 0;
  *f = (struct fadt){
      .facs = (uint32_t)facs,
      .dsdt = (uint32_t)dsdt,
      .sci_int = ACPI_SCI_GSI,
      .pm1a_evt_blk = ACPI_PM1_EVT,
      .pm1a_cnt_blk = ACPI_PM1_CNT,
      .pm_tmr_blk = ACPI_PM_TMR,
      .pm1_evt_len = 4,
      .pm1_cnt_len = 2,
      .pm_tmr_len = 4,
      .p_lvl2_lat = 0xffff, /* more than 100: no C2; more than 1000: no C3 */
      .p_lvl3_lat = 0xffff,
      .century = 0x32,
      .iapc_boot_arch = BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_ASPM,
      .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_PWR_BUTTON | FADT_SLP_BUTTON | FADT_TMR_VAL_EXT | FADT_RESET_REG_SUP,
      .reset_reg = io_register(ACPI_RESET_PORT, 1),
      .reset_value = ACPI_RESET_VALUE,
      .minor_version = 4,
      .x_dsdt = dsdt,
      .x_pm1a_evt = io_register(ACPI_PM1_EVT, 4),
      .x_pm1a_cnt = io_register(ACPI_PM1_CNT, 2),
      .x_pm_tmr = io_register(ACPI_PM_TMR, 4),
  };
  f->x_pm1a_evt.access_size = 2;
  memcpy(&f->hypervisor_vendor, "UVIRT", 5);
  fill_header(&f->h, "FACP", 6, sizeof(*f));
  seal(&f->h);
  return gpa;
}

static void madt_cpu(struct aml *a, uint32_t id) {
  if (id < 255) { /* 5.2.12.2; larger ids need the x2APIC structure, 5.2.12.12 */
    uint8_t e[8] = {MADT_LAPIC, sizeof(e), (uint8_t)id, (uint8_t)id, MADT_CPU_ENABLED};
    aml_bytes(a, e, sizeof(e));
  } else {
    struct {
      uint8_t type, length;
      uint16_t reserved;
      uint32_t x2apic_id, flags, uid;
    } __attribute__((packed)) e = {MADT_X2APIC, sizeof(e), 0, id, MADT_CPU_ENABLED, id};
    aml_bytes(a, &e, sizeof(e));
  }
}

static void madt_override(struct aml *a, uint8_t source, uint32_t gsi, uint16_t flags) {
  struct {
    uint8_t type, length, bus, source;
    uint32_t gsi;
    uint16_t flags;
  } __attribute__((packed)) e = {MADT_ISO, sizeof(e), 0, source, gsi, flags}; /* 5.2.12.5 */
  aml_bytes(a, &e, sizeof(e));
}

static uint64_t build_madt(struct builder *b, const struct firmware_config *config) {
  struct aml a = {0};
  uint32_t head[2] = {LAYOUT_LAPIC, MADT_PCAT_COMPAT};
  aml_bytes(&a, head, sizeof(head));
  for (unsigned i = 0; i < config->cpus; i++) madt_cpu(&a, i);
  struct {
    uint8_t type, length, id, reserved;
    uint32_t address, gsi_base;
  } __attribute__((packed)) ioapic = {MADT_IOAPIC, sizeof(ioapic), 0, 0, LAYOUT_IOAPIC, 0}; /* 5.2.12.3 */
  aml_bytes(&a, &ioapic, sizeof(ioapic));
  madt_override(&a, 0, 2, 0); /* the timer is on pin 2, as on a PC */
  madt_override(&a, ACPI_SCI_GSI, ACPI_SCI_GSI, MPS_INTI_LEVEL_HIGH);
  uint8_t nmi[6] = {MADT_LAPIC_NMI, sizeof(nmi), 0xff, 0, 0, 1}; /* 5.2.12.7: LINT1 of all processors */
  aml_bytes(&a, nmi, sizeof(nmi));
  if (config->cpus > 255) {
    uint8_t x2nmi[12] = {MADT_X2APIC_NMI, sizeof(x2nmi), 0, 0, 0xff, 0xff, 0xff, 0xff, 1}; /* 5.2.12.13 */
    aml_bytes(&a, x2nmi, sizeof(x2nmi));
  }
  uint64_t gpa = a.failed ? 0 : append(b, "APIC", 5, a.data, a.len);
  if (a.failed) b->overflow = true;
  aml_free(&a);
  return gpa;
}

/* PCI Firmware Specification 3.2, 4.1.2 */
static uint64_t build_mcfg(struct builder *b, const struct firmware_config *config) {
  struct {
    uint64_t reserved, base;
    uint16_t segment;
    uint8_t first_bus, last_bus;
    uint32_t reserved2;
  } __attribute__((packed)) m = {.base = config->ecam_base};
  return append(b, "MCFG", 1, &m, sizeof(m));
}

static void fill_rsdp(struct rsdp *r, uint64_t rsdt, uint64_t xsdt) {
  *r = (struct rsdp){.revision = 2, .rsdt = (uint32_t)rsdt, .length = sizeof(*r), .xsdt = xsdt};
  memcpy(r->signature, "RSD PTR ", 8);
  memcpy(r->oem_id, "UVIRT ", 6);
  r->checksum = table_checksum(r, 20); /* of the ACPI 1.0 part */
  r->extended_checksum = table_checksum(r, sizeof(*r));
}

int acpi_build(const struct firmware_config *config, uint8_t *area, uint64_t gpa, size_t len) {
  struct builder b = {area, gpa, len, 0, false};
  struct rsdp *rsdp = take(&b, sizeof(*rsdp), NULL, 16);
  uint64_t facs = build_facs(&b), dsdt = build_dsdt(&b, config);
  uint64_t tables[4];
  uint32_t tables32[4];
  unsigned n = 0;
  tables[n++] = build_fadt(&b, facs, dsdt);
  tables[n++] = build_madt(&b, config);
  if (config->ecam_base) tables[n++] = build_mcfg(&b, config);
  for (unsigned i = 0; i < n; i++) tables32[i] = (uint32_t)tables[i];
  uint64_t rsdt = append(&b, "RSDT", 1, tables32, n * sizeof(tables32[0]));
  uint64_t xsdt = append(&b, "XSDT", 1, tables, n * sizeof(tables[0]));
  if (b.overflow) return -1;
  fill_rsdp(rsdp, rsdt, xsdt);
  return 0;
}
