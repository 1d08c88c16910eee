/* What the files of core/ offer one another and nobody else. */
#ifndef CORE_PRIV_H
#define CORE_PRIV_H

#include <string.h>
#include "core/vm.h"

int memslots_init(struct vm *vm);
void memslots_destroy(struct vm *vm);
int io_buses_init(struct vm *vm);
void io_buses_destroy(struct vm *vm);
int routing_init(struct vm *vm);
void routing_destroy(struct vm *vm);
void irqfds_destroy(struct vm *vm);
/* Frees a vCPU with its VM: vCPUs live as long as the VM, as other vCPUs may look at them. */
void vcpu_free(struct vcpu *vcpu);

#endif
