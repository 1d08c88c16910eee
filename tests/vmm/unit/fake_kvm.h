/* A machine without a processor: the buses, event loop and hooks of a real one over a KVM that only notes interrupt lines. */
#ifndef TESTS_VMM_UNIT_FAKE_KVM_H
#define TESTS_VMM_UNIT_FAKE_KVM_H

#include <stdbool.h>
#include <stdint.h>

struct vmm;

struct vmm *fake_machine_create(void);
void fake_machine_destroy(struct vmm *vmm);

bool fake_line(unsigned gsi);       /* level of an interrupt line */
unsigned fake_edges(unsigned gsi);  /* how often it rose */
int fake_end_code(struct vmm *vmm); /* -1: no vmm_end() yet */
void fake_reset(struct vmm *vmm);   /* runs the reset hooks */

uint32_t fake_in(struct vmm *vmm, uint16_t port, unsigned len);
void fake_out(struct vmm *vmm, uint16_t port, uint32_t value, unsigned len);

/* Runs the event loop for about that long. */
void fake_loop(struct vmm *vmm, unsigned ms);

#endif
