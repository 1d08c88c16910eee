/* isa-debug-exit: a write ends the machine with a code that the guest chooses; for test programs. */
#include <string.h>

#include "vmm/dev/dev.h"
#include "vmm/vmm.h"

static void debug_exit_read(void *dev, uint64_t addr, void *data, unsigned len) {
  memset(data, 0, len);
}

static void debug_exit_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  uint32_t value = 0;
  memcpy(&value, data, len < sizeof(value) ? len : sizeof(value));
  vmm_end(dev, VMM_END_DEBUG_EXIT + (int)((value << 1 | 1) & 0x5f), "the guest wrote to the debug exit port");
}

int debug_exit_create(struct vmm *vmm) {
  static const struct vmm_range_ops ops = {debug_exit_read, debug_exit_write};
  int r = vmm_pio_add(vmm, 0x501, 2, &ops, vmm);
  return r ? r : vmm_pio_add(vmm, 0xf4, 4, &ops, vmm);
}
