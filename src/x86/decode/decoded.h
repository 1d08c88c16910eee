/* The full Zydis result that a family's select function looks at while an instruction is being decoded. */
#ifndef X86_DECODE_DECODED_H
#define X86_DECODE_DECODED_H

#include <Zydis/Zydis.h>
#include "x86/insn.h"

struct x86_decoded {
  ZydisDecodedInstruction insn;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  const struct x86_decode_ctx *ctx;
  const u8 *bytes;
};

/* The Zydis result of an instruction that x86_decode() took before. */
bool x86_decode_again(u32 mode, const u8 *bytes, unsigned len, ZydisDecodedInstruction *insn, ZydisDecodedOperand *ops);

#endif
