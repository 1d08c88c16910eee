/* Inside the system instruction family. */
#ifndef X86_EXEC_SYSTEM_H
#define X86_EXEC_SYSTEM_H

#include "x86/insn.h"

x86_select_fn x86_select_mov_cr_dr, x86_select_clts; /* system_regs.c */
x86_select_fn x86_select_random;                     /* system_random.c */

#endif
