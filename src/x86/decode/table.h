/* The mnemonic table, private to decode/. */
#ifndef X86_DECODE_TABLE_H
#define X86_DECODE_TABLE_H

#include "x86/decode/decoded.h"

void x86_table_build(void);
bool x86_table_known(unsigned mnemonic);
/* The first handler a family offers; NULL: none. */
x86_exec_fn *x86_table_select(const struct x86_decoded *d, struct x86_insn *i);

#endif
