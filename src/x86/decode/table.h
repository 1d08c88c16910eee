/* Parts of the decoder: the mnemonic table, and Zydis as it must be set up (tests/diff decodes with it too). */
#ifndef X86_DECODE_TABLE_H
#define X86_DECODE_TABLE_H

#include "x86/decode/decoded.h"

void x86_table_build(void);
bool x86_table_known(unsigned mnemonic);
/* The first handler a family offers; NULL: none. */
x86_exec_fn *x86_table_select(const struct x86_decoded *d, struct x86_insn *i);

void x86_decoder_init(ZydisDecoder *d, ZydisMachineMode mode, ZydisStackWidth stack);
/* Puts operands right that Zydis decodes wrongly. */
void x86_decoded_fix(const ZydisDecodedInstruction *insn, ZydisDecodedOperand *ops);

#endif
