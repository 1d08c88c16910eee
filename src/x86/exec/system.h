/* Inside the system instruction family. */
#ifndef X86_EXEC_SYSTEM_H
#define X86_EXEC_SYSTEM_H

#include "x86/insn.h"

x86_select_fn x86_select_mov_cr_dr, x86_select_clts; /* system_regs.c */
x86_select_fn x86_select_random;                     /* system_random.c */
x86_select_fn x86_select_monitor, x86_select_mwait;  /* system_mwait.c */

/* The segment of an implied operand at rAX: DS, or what a prefix says. */
u8 x86_implied_segment(const struct x86_decoded *d);

#endif
