/* The pvpanic port, by which a guest kernel tells that it panicked (QEMU: docs/specs/pvpanic). */
#include <string.h>

#include "vmm/acpi/tables.h"
#include "vmm/dev/dev.h"
#include "vmm/vmm.h"

enum { PANICKED = 1, CRASH_KERNEL_TAKES_OVER = 2 };

static void pvpanic_read(void *dev, uint64_t addr, void *data, unsigned len) {
  memset(data, 0, len);
  *(uint8_t *)data = PANICKED | CRASH_KERNEL_TAKES_OVER; /* the events understood */
}

static void pvpanic_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  if (*(const uint8_t *)data & PANICKED) vmm_end(dev, VMM_END_PANIC, "the guest's kernel panicked");
}

int pvpanic_create(struct vmm *vmm) {
  static const struct vmm_range_ops ops = {pvpanic_read, pvpanic_write};
  return vmm_pio_add(vmm, PVPANIC_PORT, 1, &ops, vmm);
}
