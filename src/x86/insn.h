/* A decoded instruction: what decode/ makes, exec/ runs and translate/ will compile from. */
#ifndef X86_INSN_H
#define X86_INSN_H

#include "x86/vcpu.h"

struct x86_insn;

/* Runs one instruction.  Order inside: address, read, operate, write memory, then commit registers and flags, so that X86_FAULT, X86_EXIT and
 * X86_RESTART leave the state as it was before the instruction (a REP iteration counts as an instruction).
 * A host SIGSEGV on guest memory unwinds out of any access: the same order makes that precise too. */
typedef int x86_exec_fn(struct x86_vcpu *c, const struct x86_insn *i);

enum {
  X86_I_MEM = 1,       /* has a memory operand (rm) */
  X86_I_LOCK = 2,
  X86_I_REP = 4,       /* F3 */
  X86_I_REPNE = 8,     /* F2 */
  X86_I_END = 16,      /* ends its block (branches, system instructions) */
  X86_I_CYCLES = 32,
  X86_I_MAYBE = 64,    /* a branch that falls through when it is not taken: X86_OK */
};

struct x86_insn {
  x86_exec_fn *fn;     /* atomically replaced by x86_exec_stop when the block is invalidated: read with a plain load each time */
  u64 imm;             /* sign-extended as the instruction wants it; branch: displacement from the BLOCK's first byte to the target */
  u64 ea_mask;         /* address-size mask of the effective address */
  s64 disp;            /* RIP-relative: relative to the BLOCK's first byte, so that regs[X86_REG_RIP] + disp is the address */
  void *aux;           /* family-specific: a native stub, a table row */
  u32 iflags;          /* X86_I_* */
  u16 off;             /* offset of the instruction in its block */
  u16 next;            /* off + length */
  u16 op;              /* ZydisMnemonic */
  u8 len;
  u8 opsize;           /* operand size in bytes: 1 2 4 8 (16 32 64 for vectors) */
  u8 adsize;           /* address size in bytes */
  u8 seg;              /* segment of the memory operand, overrides applied */
  u8 base, index, shift; /* of the memory operand; X86_REG_NONE where absent */
  u8 reg;              /* ModRM.reg operand: register number; for 8-bit operands the BYTE OFFSET into regs[] (AH is 1, CL is 8) */
  u8 rm;               /* ModRM.rm register operand (same convention), where !X86_I_MEM */
  u8 vvvv;             /* VEX.vvvv register */
  u8 sub;              /* family-specific */
  u8 flags_read, flags_written; /* arithmetic flags as bits: CF 0, PF 1, AF 2, ZF 3, SF 4, OF 5 (liveness for the translator) */
};

/* Effective address of the memory operand, without the segment base. */
static inline u64 x86_ea(const struct x86_vcpu *c, const struct x86_insn *i) {
  return (c->regs[i->base] + (c->regs[i->index] << i->shift) + (u64)i->disp) & i->ea_mask;
}

/* Address of the instruction itself and of the one after it.  Also 16-bit code goes on behind FFFFh, where its limit allows that: only branches have 16 bits. */
static inline u64 x86_ip_mask(const struct x86_vcpu *c) { return (c->mode & X86_MODE_SIZE) == X86_MODE_64 ? ~0ull : 0xffffffffull; }
static inline u64 x86_insn_ip(const struct x86_vcpu *c, const struct x86_insn *i) { return (c->rip + i->off) & x86_ip_mask(c); }
static inline u64 x86_next_ip(const struct x86_vcpu *c, const struct x86_insn *i) { return (c->rip + i->next) & x86_ip_mask(c); }

/* What the decoder has to know besides the bytes. */
struct x86_decode_ctx {
  u32 mode;                     /* X86_MODE_* */
  const struct x86_cpuid *cpuid; /* features: an instruction the guest's CPUID does not show is #UD */
  struct x86_vm *vm;            /* owner of native stubs */
};

/* Decodes one instruction of at most `avail` bytes.  i->off must be set by the caller.  Returns its length (1-15), or
 * 0 when `avail` bytes are not enough (and avail < 15).  Undefined or unsupported encodings decode to an instruction
 * that raises #UD (or #GP for more than 15 bytes, SDM Vol. 3A 6.15 interrupt 13); the length of an undefined one covers every byte that may have
 * decided it. */
int x86_decode(const struct x86_decode_ctx *ctx, const u8 *bytes, unsigned avail, struct x86_insn *i);

/* Families offer rows; decode/table.c lists the families. */
struct x86_decoded; /* decode/decoded.h: the Zydis result plus operands */
typedef x86_exec_fn *x86_select_fn(const struct x86_decoded *d, struct x86_insn *i); /* NULL: not this form (→ #UD) */
struct x86_op_row {
  u16 mnemonic; /* ZYDIS_MNEMONIC_* */
  x86_select_fn *select;
};
struct x86_op_family {
  const char *name;
  const struct x86_op_row *rows;
  unsigned n;
};

x86_exec_fn x86_exec_stop;      /* ends the block before this instruction (X86_RESTART) */
x86_exec_fn x86_exec_ud;        /* #UD */

#endif
