/* Checks of control-register values that user space sets. */
#ifndef X86_CPU_CR_H
#define X86_CPU_CR_H

#include "x86/vcpu.h"

bool x86_cr0_bits_valid(u64 v);
bool x86_cr4_bits_valid(const struct x86_vcpu *c, u64 v);

#endif
