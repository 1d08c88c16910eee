/* Bytes to struct x86_insn, with Zydis. */
#include <pthread.h>
#include <string.h>
#include "x86/decode/isa.h"
#include "x86/decode/table.h"
#include "x86/exec/exec.h"

static ZydisDecoder decoders[4]; /* by X86_MODE_SIZE; the real-address one differs from 16-bit protected mode in what is #UD */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init(void) {
  ZydisDecoderInit(&decoders[X86_MODE_16], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
  ZydisDecoderInit(&decoders[X86_MODE_32], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
  ZydisDecoderInit(&decoders[X86_MODE_64], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  ZydisDecoderInit(&decoders[3], ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16);
  for (unsigned k = 0; k < 4; k++) {
    ZydisDecoderEnableMode(&decoders[k], ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE); /* bound registers do not exist here: hint NOPs */
    ZydisDecoderEnableMode(&decoders[k], ZYDIS_DECODER_MODE_CET, ZYAN_TRUE);
    ZydisDecoderEnableMode(&decoders[k], ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
    ZydisDecoderEnableMode(&decoders[k], ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
  }
  x86_table_build();
}

unsigned x86_reg_number(ZydisRegister r) {
  if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BL) return (unsigned)(r - ZYDIS_REGISTER_AL) * 8;
  if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH) return (unsigned)(r - ZYDIS_REGISTER_AH) * 8 + 1;
  if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B) return (unsigned)(r - ZYDIS_REGISTER_SPL + 4) * 8;
  return (unsigned)ZydisRegisterGetId(r);
}

static unsigned segment_number(ZydisRegister r) {
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
  i->index = X86_REG_NONE;
  i->shift = 0;
  if (op->mem.index != ZYDIS_REGISTER_NONE && op->mem.type != ZYDIS_MEMOP_TYPE_VSIB) {
    i->index = (u8)address_register(op->mem.index);
    i->shift = (u8)__builtin_ctz(op->mem.scale ? op->mem.scale : 1);
  }
  i->disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
  if (i->base == X86_REG_RIP) i->disp += i->off + i->len;
  i->seg = (u8)segment_number(op->mem.segment);
}

static u8 flag_bits(ZyanU32 f) {
  return (u8)((f & ZYDIS_CPUFLAG_CF ? 1 : 0) | (f & ZYDIS_CPUFLAG_PF ? 2 : 0) | (f & ZYDIS_CPUFLAG_AF ? 4 : 0) | (f & ZYDIS_CPUFLAG_ZF ? 8 : 0) |
              (f & ZYDIS_CPUFLAG_SF ? 16 : 0) | (f & ZYDIS_CPUFLAG_OF ? 32 : 0));
}

static void fill_flags(const ZydisDecodedInstruction *insn, struct x86_insn *i) {
  const ZydisAccessedFlags *f = insn->cpu_flags;
  if (!f) return;
  i->flags_read = flag_bits(f->tested);
  i->flags_written = flag_bits(f->modified | f->set_0 | f->set_1 | f->undefined);
}

static void fill(const struct x86_decoded *d, struct x86_insn *i) {
  const ZydisDecodedInstruction *insn = &d->insn;
  i->op = (u16)insn->mnemonic;
  i->len = insn->length;
  i->opsize = (u8)(insn->operand_width / 8);
  i->adsize = (u8)(insn->address_width / 8);
  i->ea_mask = i->adsize == 8 ? ~0ull : i->adsize == 4 ? 0xffffffffull : 0xffffull;
  i->base = i->index = X86_REG_NONE;
  i->seg = SEG_DS;
  if (insn->attributes & ZYDIS_ATTRIB_HAS_LOCK) i->iflags |= X86_I_LOCK;
  if (insn->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) i->iflags |= X86_I_REP;
  if (insn->attributes & ZYDIS_ATTRIB_HAS_REPNE) i->iflags |= X86_I_REPNE;
  bool memory = false, immediate = false;
  for (unsigned k = 0; k < insn->operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && !memory && k < insn->operand_count_visible) {
      fill_memory(op, i);
      memory = true;
    }
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !immediate) {
      i->imm = op->imm.is_relative ? op->imm.value.u + i->off + i->len : op->imm.value.u;
      immediate = true;
    }
  }
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

/* An encoding that raises an exception instead of running. */
static int refuse(struct x86_insn *i, unsigned len, x86_exec_fn *fn) {
  i->fn = fn;
  i->len = (u8)len;
  i->iflags = X86_I_END;
  return (int)len;
}

static int exec_too_long(struct x86_vcpu *c, const struct x86_insn *i) { return x86_gp0(c); }

int x86_decode(const struct x86_decode_ctx *ctx, const u8 *bytes, unsigned avail, struct x86_insn *i) {
  struct x86_decoded d;
  pthread_once(&once, init);
  unsigned size = ctx->mode & X86_MODE_SIZE;
  const ZydisDecoder *decoder = &decoders[size == X86_MODE_16 && (ctx->mode & X86_MODE_REAL) ? 3 : size];
  ZyanStatus s = ZydisDecoderDecodeFull(decoder, bytes, MIN(avail, 15u), &d.insn, d.ops);
  d.ctx = ctx;
  d.bytes = bytes;
  if (s == ZYDIS_STATUS_NO_MORE_DATA) {
    if (avail < 15) return 0;
    return refuse(i, 15, exec_too_long); /* SDM Vol. 3A 6.15, interrupt 13: more than 15 bytes */
  }
  if (s == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) return refuse(i, 15, exec_too_long);
  if (!ZYAN_SUCCESS(s)) return refuse(i, 1, x86_exec_ud);
  i->len = d.insn.length;
  i->next = (u16)(i->off + i->len);
  if (!x86_isa_allows(ctx->cpuid, &d)) return refuse(i, d.insn.length, x86_exec_ud);
  fill(&d, i);
  x86_exec_fn *fn = x86_table_known(d.insn.mnemonic) ? x86_table_select(&d, i) : NULL;
  if (!fn) fn = x86_native_select(&d, i);
  if (!fn) return refuse(i, d.insn.length, x86_exec_ud);
  i->fn = fn;
  return i->len;
}
