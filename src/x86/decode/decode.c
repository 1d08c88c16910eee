/* Bytes to struct x86_insn, with Zydis 4.0.
 *
 * Where Zydis and processors differ (found by tests/diff) is put right in x86_decoder_init(), x86_decoded_fix() and real_mode_allows().
 */
#include <pthread.h>
#include <string.h>
#include "x86/decode/isa.h"
#include "x86/decode/table.h"
#include "x86/exec/exec.h"

static ZydisDecoder decoders[3]; /* by X86_MODE_SIZE */
static pthread_once_t once = PTHREAD_ONCE_INIT;

void x86_decoder_init(ZydisDecoder *d, ZydisMachineMode mode, ZydisStackWidth stack) {
  ZydisDecoderInit(d, mode, stack);
  /* Encodings that are hint NOPs on processors without these extensions, which no guest has. */
  ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
  ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
  ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
  ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
}

static void init(void) {
  x86_decoder_init(&decoders[X86_MODE_16], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
  x86_decoder_init(&decoders[X86_MODE_32], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
  x86_decoder_init(&decoders[X86_MODE_64], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  x86_table_build();
}

/* ---- corrections ---- */

/* ModRM.mod 0 with SIB base 5 has a displacement in place of a base register, whatever REX.B says (SDM Vol. 2A table 2-3); with 32-bit addresses Zydis 4.0
 * takes R13D alone. */
static void fix_base(const ZydisDecodedInstruction *insn, ZydisDecodedOperand *op) {
  bool sib = insn->attributes & ZYDIS_ATTRIB_HAS_SIB;
  if (!sib || insn->raw.modrm.mod != 0 || insn->raw.sib.base != 5) return;
  op->mem.base = ZYDIS_REGISTER_NONE;
  op->mem.disp.has_displacement = ZYAN_TRUE;
  op->mem.disp.value = insn->raw.disp.value;
}

void x86_decoded_fix(const ZydisDecodedInstruction *insn, ZydisDecodedOperand *ops) {
  for (unsigned k = 0; k < insn->operand_count_visible; k++)
    if (ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY) fix_base(insn, &ops[k]);
}

/* What real-address and virtual-8086 mode do not know: VEX, EVEX and XOP encodings (SDM Vol. 2A 2.3.1, APM Vol. 3 1.2.7), protected-mode descriptors, virtual
 * machines.  (Zydis' own real mode refuses SYSENTER too, which is valid in virtual-8086 mode.) */
static bool real_mode_allows(const ZydisDecodedInstruction *insn) {
  if (insn->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return false;
  switch (insn->mnemonic) {
  case ZYDIS_MNEMONIC_ARPL:
  case ZYDIS_MNEMONIC_LAR:
  case ZYDIS_MNEMONIC_LSL:
  case ZYDIS_MNEMONIC_LLDT:
  case ZYDIS_MNEMONIC_LTR:
  case ZYDIS_MNEMONIC_SLDT:
  case ZYDIS_MNEMONIC_STR:
  case ZYDIS_MNEMONIC_VERR:
  case ZYDIS_MNEMONIC_VERW: return false;
  case ZYDIS_MNEMONIC_VMCALL: /* hypercalls work everywhere */
  case ZYDIS_MNEMONIC_VMMCALL: return true;
  default: return insn->meta.isa_set != ZYDIS_ISA_SET_SVM && insn->meta.isa_set != ZYDIS_ISA_SET_VTX;
  }
}

/* ---- operands ---- */

unsigned x86_reg_number(ZydisRegister r) {
  if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BL) return (unsigned)(r - ZYDIS_REGISTER_AL) * 8;
  if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH) return (unsigned)(r - ZYDIS_REGISTER_AH) * 8 + 1;
  if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B) return (unsigned)(r - ZYDIS_REGISTER_SPL + 4) * 8;
  return (unsigned)ZydisRegisterGetId(r);
}

unsigned x86_segment_number(ZydisRegister r) {
  return r >= ZYDIS_REGISTER_ES && r <= ZYDIS_REGISTER_GS ? (unsigned)(r - ZYDIS_REGISTER_ES) : SEG_DS;
}

static unsigned address_register(ZydisRegister r) {
  if (r == ZYDIS_REGISTER_NONE) return X86_REG_NONE;
  if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP || r == ZYDIS_REGISTER_IP) return X86_REG_RIP;
  return (unsigned)ZydisRegisterGetId(r);
}

static void fill_memory(const ZydisDecodedOperand *op, struct x86_insn *i) {
  i->iflags |= X86_I_MEM;
  i->base = (u8)address_register(op->mem.base);
  if (op->mem.index != ZYDIS_REGISTER_NONE && op->mem.type != ZYDIS_MEMOP_TYPE_VSIB) {
    i->index = (u8)address_register(op->mem.index);
    i->shift = (u8)__builtin_ctz(op->mem.scale ? op->mem.scale : 1);
  }
  i->disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
  if (i->base == X86_REG_RIP) i->disp += i->off + i->len;
  i->seg = (u8)x86_segment_number(op->mem.segment);
}

static void fill_operands(const struct x86_decoded *d, struct x86_insn *i) {
  bool memory = false, immediate = false;
  for (unsigned k = 0; k < d->insn.operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && !memory && k < d->insn.operand_count_visible) {
      fill_memory(op, i);
      memory = true;
    }
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !immediate) {
      i->imm = op->imm.is_relative ? op->imm.value.u + i->off + i->len : op->imm.value.u;
      immediate = true;
    }
  }
}

/* ---- flags ---- */

enum { CF = 1, PF = 2, AF = 4, ZF = 8, SF = 16, OF = 32, ALL = 63 };

/* Where Zydis 4.0's tables are wrong or silent.  written: every flag that may change.  read: every flag whose old value may show in the result or in
 * another flag, or that is in `written` and yet may survive.  So what is written and not read is dead before the instruction.  (diff --flags) */
static const struct {
  u16 mnemonic;
  u8 read, written;
} flag_corrections[] = {
    /* undefined flags that some processors leave alone (SDM Vol. 2) */
    {ZYDIS_MNEMONIC_BT, 0, CF},   {ZYDIS_MNEMONIC_BTS, 0, CF},  {ZYDIS_MNEMONIC_BTR, 0, CF},  {ZYDIS_MNEMONIC_BTC, 0, CF},
    {ZYDIS_MNEMONIC_ROL, OF, CF | OF}, {ZYDIS_MNEMONIC_ROR, OF, CF | OF}, {ZYDIS_MNEMONIC_RCL, CF | OF, CF | OF}, {ZYDIS_MNEMONIC_RCR, CF | OF, CF | OF},
    {ZYDIS_MNEMONIC_DIV, 0, 0},   {ZYDIS_MNEMONIC_IDIV, 0, 0},  {ZYDIS_MNEMONIC_BSF, ALL & ~ZF, ALL}, {ZYDIS_MNEMONIC_BSR, ALL & ~ZF, ALL},
    {ZYDIS_MNEMONIC_CMPXCHG8B, 0, ZF}, {ZYDIS_MNEMONIC_CMPXCHG16B, 0, ZF}, {ZYDIS_MNEMONIC_TZCNT, 0, ALL}, {ZYDIS_MNEMONIC_LZCNT, 0, ALL},
    {ZYDIS_MNEMONIC_ADCX, CF, CF}, {ZYDIS_MNEMONIC_ADOX, OF, OF}, {ZYDIS_MNEMONIC_SAHF, 0, ALL & ~OF}, {ZYDIS_MNEMONIC_LAHF, ALL & ~OF, 0},
    {ZYDIS_MNEMONIC_PUSHF, ALL, 0}, {ZYDIS_MNEMONIC_PUSHFD, ALL, 0}, {ZYDIS_MNEMONIC_PUSHFQ, ALL, 0},
    {ZYDIS_MNEMONIC_POPF, 0, ALL}, {ZYDIS_MNEMONIC_POPFD, 0, ALL}, {ZYDIS_MNEMONIC_POPFQ, 0, ALL},
    {ZYDIS_MNEMONIC_CMC, CF, CF}, {ZYDIS_MNEMONIC_SALC, CF, 0},
};

static u8 flag_bits(ZyanU32 f) {
  return (u8)((f & ZYDIS_CPUFLAG_CF ? CF : 0) | (f & ZYDIS_CPUFLAG_PF ? PF : 0) | (f & ZYDIS_CPUFLAG_AF ? AF : 0) | (f & ZYDIS_CPUFLAG_ZF ? ZF : 0) |
              (f & ZYDIS_CPUFLAG_SF ? SF : 0) | (f & ZYDIS_CPUFLAG_OF ? OF : 0));
}

/* A repeated string instruction whose count is zero writes nothing. */
static void fill_flags(const ZydisDecodedInstruction *insn, struct x86_insn *i) {
  const ZydisAccessedFlags *f = insn->cpu_flags;
  if (f) {
    i->flags_read = flag_bits(f->tested);
    i->flags_written = flag_bits(f->modified | f->set_0 | f->set_1 | f->undefined);
  }
  for (size_t k = 0; k < ARRAY_SIZE(flag_corrections); k++)
    if (flag_corrections[k].mnemonic == insn->mnemonic) {
      i->flags_read = flag_corrections[k].read;
      i->flags_written = flag_corrections[k].written;
    }
  if (insn->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
    i->flags_read |= i->flags_written;
  }
}

static void fill(const struct x86_decoded *d, struct x86_insn *i) {
  const ZydisDecodedInstruction *insn = &d->insn;
  i->op = (u16)insn->mnemonic;
  i->opsize = (u8)(insn->operand_width / 8);
  i->adsize = (u8)(insn->address_width / 8);
  i->ea_mask = i->adsize == 8 ? ~0ull : i->adsize == 4 ? 0xffffffffull : 0xffffull;
  i->base = i->index = X86_REG_NONE;
  i->seg = SEG_DS;
  if (insn->attributes & ZYDIS_ATTRIB_HAS_LOCK) i->iflags |= X86_I_LOCK;
  if (insn->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) i->iflags |= X86_I_REP;
  if (insn->attributes & ZYDIS_ATTRIB_HAS_REPNE) i->iflags |= X86_I_REPNE;
  fill_operands(d, i);
  fill_flags(insn, i);
}

enum x86_form x86_operands(const struct x86_decoded *d, struct x86_insn *i) {
  const ZydisDecodedOperand *a = &d->ops[0], *b = &d->ops[1];
  unsigned n = 0;
  while (n < d->insn.operand_count && d->ops[n].visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN) n++;
  if (!n) return FORM_NONE;
  i->opsize = (u8)(a->size / 8);
  bool am = a->type == ZYDIS_OPERAND_TYPE_MEMORY, ar = a->type == ZYDIS_OPERAND_TYPE_REGISTER;
  if (ar) i->rm = (u8)x86_reg_number(a->reg.value);
  if (n == 1) return am ? FORM_M : ar ? FORM_R : FORM_NONE;
  bool bm = b->type == ZYDIS_OPERAND_TYPE_MEMORY, br = b->type == ZYDIS_OPERAND_TYPE_REGISTER, bi = b->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  if (br) i->reg = (u8)x86_reg_number(b->reg.value);
  if (ar && br) return FORM_RR;
  if (ar && bi) return FORM_RI;
  if (am && br) return FORM_MR;
  if (am && bi) return FORM_MI;
  if (ar && bm) {
    i->reg = i->rm;
    return FORM_RM;
  }
  return FORM_NONE;
}

/* ---- the door ---- */

/* An encoding that raises an exception instead of running. */
static int refuse(struct x86_insn *i, unsigned len, x86_exec_fn *fn) {
  i->fn = fn;
  i->len = (u8)len;
  i->next = (u16)(i->off + len);
  i->iflags = X86_I_END;
  i->op = ZYDIS_MNEMONIC_INVALID;
  return (int)len;
}

static int exec_too_long(struct x86_vcpu *c, const struct x86_insn *i) { return x86_gp0(c); }

static x86_exec_fn *select_handler(const struct x86_decoded *d, struct x86_insn *i) {
  x86_exec_fn *fn = x86_table_known(d->insn.mnemonic) ? x86_table_select(d, i) : NULL;
  return fn ? fn : x86_native_select(d, i);
}

int x86_decode(const struct x86_decode_ctx *ctx, const u8 *bytes, unsigned avail, struct x86_insn *i) {
  struct x86_decoded d;
  pthread_once(&once, init);
  ZyanStatus s = ZydisDecoderDecodeFull(&decoders[ctx->mode & X86_MODE_SIZE], bytes, MIN(avail, 15u), &d.insn, d.ops);
  /* SDM Vol. 3A 6.15, interrupt 13: more than 15 bytes */
  if (s == ZYDIS_STATUS_NO_MORE_DATA) return avail < 15 ? 0 : refuse(i, 15, exec_too_long);
  if (s == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) return refuse(i, 15, exec_too_long);
  if (!ZYAN_SUCCESS(s)) return refuse(i, MIN(avail, 15u), x86_exec_ud); /* any of the bytes may have decided it: all are part of the block */
  d.ctx = ctx;
  d.bytes = bytes;
  i->len = d.insn.length;
  i->next = (u16)(i->off + i->len);
  if ((ctx->mode & X86_MODE_REAL && !real_mode_allows(&d.insn)) || !x86_isa_allows(ctx->cpuid, &d)) return refuse(i, i->len, x86_exec_ud);
  x86_decoded_fix(&d.insn, d.ops);
  fill(&d, i);
  i->fn = select_handler(&d, i);
  return i->fn ? i->len : refuse(i, i->len, x86_exec_ud);
}

bool x86_decode_again(u32 mode, const u8 *bytes, unsigned len, ZydisDecodedInstruction *insn, ZydisDecodedOperand *ops) {
  if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoders[mode & X86_MODE_SIZE], bytes, len, insn, ops))) return false;
  x86_decoded_fix(insn, ops);
  return true;
}
