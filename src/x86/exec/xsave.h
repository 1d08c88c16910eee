/* What CPUID asks of the extended state. */
#ifndef X86_EXEC_XSAVE_H
#define X86_EXEC_XSAVE_H

#include "x86/x86.h"

/* CPUID.0DH sub-leaf `sub` for the given XCR0. */
void x86_xsave_leaf(u64 xcr0, u32 sub, u32 out[4]);
/* Whether this host and the native executor run a feature. */
bool x86_native_supports(enum x86_feature f);

#endif
