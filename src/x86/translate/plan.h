/* What is known of a block before it is translated: which memory accesses share one look into the TLB, and which flags matter. */
#ifndef X86_TRANSLATE_PLAN_H
#define X86_TRANSLATE_PLAN_H

#include <Zydis/Zydis.h>
#include "x86/block.h"

enum { PLAN_SEGMENT = 8 };
enum { PLAN_GROUPS = X86_CODE_DELTAS, PLAN_ALONE = 0xff, PLAN_INSNS = 2 * X86_BLOCK_MAX };

struct x86_decoded_insn {
  ZydisDecodedInstruction insn;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
};

/* How much of the extended state translated code may use now: c->code.vectors. */
enum x86_vector_level { VECTORS_NONE, VECTORS_SSE, VECTORS_AVX, VECTORS_AVX512 };
/* How much this instruction needs. */
unsigned x86_plan_vector_level(const struct x86_insn *i);

/* AH to BH: no number of an encoding with REX stands for them. */
static inline bool x86_plan_is_high(ZydisRegister r) { return r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH; }
/* The number of the general register that it is or is part of; 16: none. */
unsigned x86_plan_general(ZydisRegister r);

bool x86_plan_is_string(const struct x86_decoded_insn *d);
bool x86_plan_is_bit_string(const struct x86_decoded_insn *d);

/* How an address is formed.  RIP: page-relative, only accesses to the same page share a key. */
struct plan_address {
  u8 seg; /* SEG_FS, SEG_GS, or 0; where segments are looked at any, with PLAN_SEGMENT */
  u8 base, index, shift;
  u8 size; /* then: bytes of the offset */
  s32 disp;
};

/* One memory access of an instruction: it needs no check when an access before it has checked the same page. */
struct plan_access {
  struct plan_address at;
  u8 size;
  bool write;
  u8 group;     /* number, or PLAN_ALONE */
  bool leads;   /* the first of its group */
  bool last;    /* nobody of the group comes later */
  s32 moved;    /* how far the base register has moved since the first access of the group */
};

struct plan_insn {
  struct plan_access access[2];
  u8 n_access;
  u32 writes; /* general registers, by number; bit 16: others */
  u8 live;    /* flags that somebody may look at after this instruction, as x86_insn.flags_read has them */
  bool loads; /* may have to load the vector registers first */
  u8 needs;   /* flags it takes part of its own result from */
};

struct plan_group {
  struct plan_address at; /* disp: of the lowest byte, for the first access's registers */
  s32 span;               /* bytes from there */
  bool write;
};

struct plan {
  const struct x86_block *b;
  bool segmented; /* accesses name their segment */
  u32 constant; /* groups that hold from one round of a loop to the next */
  u32 writes; /* registers that any instruction writes */
  struct plan_insn insn[PLAN_INSNS];
  struct plan_group group[PLAN_GROUPS];
  unsigned n_groups;
};

/* interpreted: bit n: instruction n is left to the interpreter.  grouped: whether accesses may share checks.  copies: how often the block is there, one after the other; the last is followed by the second.  exact: all flags
 * matter everywhere. */
void x86_plan(struct plan *p, const struct x86_block *b, bool segmented, const struct x86_decoded_insn *d, u64 interpreted, bool grouped,
              unsigned copies, bool exact);

#endif
