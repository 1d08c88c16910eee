/* ACPI fixed hardware: PM1 event and control registers, the power management timer, the reset register 0xcf9.
 *
 * Manual: ACPI 6.4, 4.8.3.  The machine has no fixed events, so the status register stays 0 and the SCI is never raised. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vmm/acpi/tables.h"
#include "vmm/dev/dev.h"
#include "vmm/vmm.h"

enum { CNT_SCI_EN = 1, CNT_SLP_TYP_SHIFT = 10, CNT_SLP_EN = 1 << 13 };
enum { REGS = 16 }; /* ports from ACPI_PM1_EVT */

struct acpi_pm {
  struct vmm *vmm;
  uint16_t enable, control; /* lock: vmm->lock */
};

/* 4.8.3.3: 3.579545 MHz, 32 bits wide (TMR_VAL_EXT). */
static uint32_t timer_value(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint32_t)((uint64_t)ts.tv_sec * 3579545u + (uint64_t)ts.tv_nsec * 3579545u / 1000000000u);
}

/* The registers as they lie in the port range. */
static void pm_read(void *dev, uint64_t addr, void *data, unsigned len) {
  struct acpi_pm *pm = dev;
  uint8_t regs[REGS + 8] = {0};
  uint32_t timer = timer_value();
  memcpy(regs + 2, &pm->enable, 2);
  memcpy(regs + (ACPI_PM1_CNT - ACPI_PM1_EVT), &pm->control, 2);
  memcpy(regs + (ACPI_PM_TMR - ACPI_PM1_EVT), &timer, 4);
  memcpy(data, regs + addr, len);
}

static void write_control(struct acpi_pm *pm, uint16_t value) {
  pm->control = (uint16_t)((value & ~CNT_SLP_EN) | CNT_SCI_EN); /* SCI_EN is fixed: there is no legacy mode */
  if (value & CNT_SLP_EN && (value >> CNT_SLP_TYP_SHIFT & 7) == ACPI_SLP_TYP_S5)
    vmm_end(pm->vmm, VMM_END_POWEROFF, "the guest switched the machine off");
}

static void pm_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  struct acpi_pm *pm = dev;
  uint16_t value = *(const uint8_t *)data;
  if (len > 1) value = (uint16_t)(value | ((const uint8_t *)data)[1] << 8);
  if (addr == 0 && len == 4)
    memcpy(&pm->enable, (const uint8_t *)data + 2, 2);
  else if (addr == 2)
    pm->enable = value;
  else if (addr == ACPI_PM1_CNT - ACPI_PM1_EVT)
    write_control(pm, len > 1 ? value : (uint16_t)((pm->control & 0xff00) | value));
  else if (addr == ACPI_PM1_CNT - ACPI_PM1_EVT + 1)
    write_control(pm, (uint16_t)((pm->control & 0xff) | value << 8));
}

static void pm_reset(void *dev) {
  struct acpi_pm *pm = dev;
  pm->enable = 0;
  pm->control = CNT_SCI_EN;
}

/* Reset control register of PC chipsets: bit 2 going to 1 resets; bit 1 chooses a full one. */
static void reset_read(void *dev, uint64_t addr, void *data, unsigned len) {
  memset(data, 0, len);
}
static void reset_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  if (*(const uint8_t *)data & 4)
    vmm_end(((struct acpi_pm *)dev)->vmm, VMM_END_RESET, "the guest asked for a reset (port 0xcf9)");
}

int acpi_pm_create(struct vmm *vmm) {
  static const struct vmm_range_ops ops = {pm_read, pm_write}, reset = {reset_read, reset_write};
  struct acpi_pm *pm = calloc(1, sizeof(*pm));
  if (!pm) return -ENOMEM;
  pm->vmm = vmm;
  pm_reset(pm);
  int r = vmm_on_destroy(vmm, free, pm);
  if (r) {
    free(pm);
    return r;
  }
  r = vmm_on_reset(vmm, pm_reset, pm);
  if (r == 0) r = vmm_pio_add(vmm, ACPI_PM1_EVT, REGS, &ops, pm);
  return r ? r : vmm_pio_add(vmm, ACPI_RESET_PORT, 1, &reset, pm);
}
