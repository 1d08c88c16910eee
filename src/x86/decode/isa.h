/* Which instruction-set extensions a guest's CPUID allows. */
#ifndef X86_DECODE_ISA_H
#define X86_DECODE_ISA_H

#include "x86/decode/decoded.h"

/* false: the instruction is #UD for this CPUID. */
bool x86_isa_allows(const struct x86_cpuid *id, struct x86_decoded *d);

#endif
