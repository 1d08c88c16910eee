/* The legacy devices of the machine: each makes itself and registers its ports, reset and destruction. */
#ifndef VMM_DEV_DEV_H
#define VMM_DEV_DEV_H

#include <stdint.h>

struct console;
struct vmm;

/* All return 0 or -errno; call before the vCPUs run. */
int uart_create(struct vmm *vmm, uint16_t base, unsigned gsi, struct console *con); /* does not own con */
int rtc_create(struct vmm *vmm, uint64_t memory, unsigned cpus);
int i8042_create(struct vmm *vmm);
int acpi_pm_create(struct vmm *vmm);
int system_ports_create(struct vmm *vmm); /* 0x80, 0x92, 0xed */
int pvpanic_create(struct vmm *vmm);
int debug_exit_create(struct vmm *vmm);

#endif
