/* Small fixed ports of a PC: POST code 0x80, delay port 0xed, system control port A 0x92. */
#include <string.h>

#include "vmm/dev/dev.h"
#include "vmm/vmm.h"

static void read_zero(void *dev, uint64_t addr, void *data, unsigned len) {
  memset(data, 0, len);
}
static void write_ignored(void *dev, uint64_t addr, const void *data, unsigned len) {}

/* Port 0x92: bit 0 pulses the processors' reset, bit 1 is the A20 gate, which is always open here. */
static void control_read(void *dev, uint64_t addr, void *data, unsigned len) {
  memset(data, 0, len);
  *(uint8_t *)data = 2;
}

static void control_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  if (*(const uint8_t *)data & 1) vmm_end(dev, VMM_END_RESET, "the guest asked for a reset (port 0x92)");
}

int system_ports_create(struct vmm *vmm) {
  static const struct vmm_range_ops silent = {read_zero, write_ignored}, control = {control_read, control_write};
  int r = vmm_pio_add(vmm, 0x80, 1, &silent, vmm);
  if (r == 0) r = vmm_pio_add(vmm, 0xed, 1, &silent, vmm);
  if (r == 0) r = vmm_pio_add(vmm, 0x92, 1, &control, vmm);
  return r;
}
