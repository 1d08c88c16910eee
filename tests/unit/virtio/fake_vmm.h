/* A machine for tests of PCI and virtio: buses, RAM and a log of interrupts, without KVM. */
#ifndef TESTS_FAKE_VMM_H
#define TESTS_FAKE_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/pci/pci.h"
#include "vmm/vmm.h"

enum {
  FAKE_LOW_RAM = 4 << 20,  /* RAM at 0 ... */
  FAKE_HIGH_RAM = 1 << 20, /* ... and at 4 GiB */
};
#define FAKE_HIGH_BASE 0x100000000ull

struct vmm *fake_vmm_create(void);
void fake_vmm_destroy(struct vmm *vmm); /* after pci_host_destroy() */

uint8_t *fake_ram(struct vmm *vmm, uint64_t gpa);
bool fake_level(struct vmm *vmm, unsigned gsi);
/* Messages with these data since the start; fake_msi_wait waits (10 s at most) until there are `count` or more. */
unsigned fake_msi_count(struct vmm *vmm, uint32_t data);
bool fake_msi_wait(struct vmm *vmm, uint32_t data, unsigned count);
void fake_reset(struct vmm *vmm);
/* Runs the event loop for a moment, as the main thread would. */
void fake_loop_turn(struct vmm *vmm);
int fake_end_code(struct vmm *vmm); /* -1: the machine runs */

/* Accesses as a vCPU makes them: through the buses, doorbells first. */
uint64_t fake_mmio_read(struct vmm *vmm, uint64_t gpa, unsigned len);
void fake_mmio_write(struct vmm *vmm, uint64_t gpa, uint64_t value, unsigned len);
uint32_t fake_in(struct vmm *vmm, uint16_t port, unsigned len);
void fake_out(struct vmm *vmm, uint16_t port, uint32_t value, unsigned len);

/* Configuration mechanism #1. */
uint32_t fake_config_read(struct vmm *vmm, unsigned slot, unsigned offset, unsigned len);
void fake_config_write(struct vmm *vmm, unsigned slot, unsigned offset, uint32_t value, unsigned len);

#endif
