/* The run loop, for arch.c; and what it needs of the folders besides x86.h. */
#ifndef X86_RUN_H
#define X86_RUN_H

#include "x86/vcpu.h"

/* arch_ops.vcpu_run */
int x86_vcpu_run(struct vcpu *v);
/* arch_ops.vcpu_complete_io: 0 done; 1 it needs the client again (kvm_run is filled); negative errno. */
int x86_vcpu_complete_io(struct vcpu *v);

#endif
