/* The run loop's side of device accesses. */
#ifndef X86_MMU_IO_H
#define X86_MMU_IO_H

#include "x86/vcpu.h"

/* Fills kvm_run for the next posted write: X86_EXIT, or X86_OK when none is left. */
int x86_io_writes_exit(struct x86_vcpu *c);

/* run.c, block.c */
u64 x86_linear_ip(const struct x86_vcpu *c);
/* Runs exactly one instruction.  Flow as x86_run_blocks(). */
int x86_run_one(struct x86_vcpu *c);

#endif
