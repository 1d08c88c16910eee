/* Far forms of CALL, JMP and RET, whose mnemonics exec/branch.c owns. */
#ifndef X86_EXEC_FAR_H
#define X86_EXEC_FAR_H

#include "x86/decode/decoded.h"

/* The handler of a far CALL, JMP or RET; NULL when the instruction is not one (its branch type is not far). */
x86_exec_fn *x86_far_select(const struct x86_decoded *d, struct x86_insn *i);

#endif
