/* Instructions with AH, CH, DH or BH.
 *
 * No home can stand for these: the encoding knows only the high bytes of the first four registers, and no REX prefix beside them.
 * So the whole guest registers go through RAX and RCX, whose high bytes have the encodings of AH and CH.
 */
#include "x86/translate/private.h"

static const u16 mnemonics[] = {
    ZYDIS_MNEMONIC_MOV,   ZYDIS_MNEMONIC_MOVZX, ZYDIS_MNEMONIC_MOVSX,  ZYDIS_MNEMONIC_ADD,   ZYDIS_MNEMONIC_ADC,
    ZYDIS_MNEMONIC_SUB,   ZYDIS_MNEMONIC_SBB,   ZYDIS_MNEMONIC_AND,    ZYDIS_MNEMONIC_OR,    ZYDIS_MNEMONIC_XOR,
    ZYDIS_MNEMONIC_CMP,   ZYDIS_MNEMONIC_TEST,  ZYDIS_MNEMONIC_INC,    ZYDIS_MNEMONIC_DEC,   ZYDIS_MNEMONIC_NEG,
    ZYDIS_MNEMONIC_NOT,   ZYDIS_MNEMONIC_XCHG,  ZYDIS_MNEMONIC_SETB,   ZYDIS_MNEMONIC_SETBE, ZYDIS_MNEMONIC_SETL,
    ZYDIS_MNEMONIC_SETLE, ZYDIS_MNEMONIC_SETNB, ZYDIS_MNEMONIC_SETNBE, ZYDIS_MNEMONIC_SETNL, ZYDIS_MNEMONIC_SETNLE,
    ZYDIS_MNEMONIC_SETNO, ZYDIS_MNEMONIC_SETNP, ZYDIS_MNEMONIC_SETNS,  ZYDIS_MNEMONIC_SETNZ, ZYDIS_MNEMONIC_SETO,
    ZYDIS_MNEMONIC_SETP,  ZYDIS_MNEMONIC_SETS,  ZYDIS_MNEMONIC_SETZ,
};

static bool known(unsigned mnemonic) {
  for (size_t k = 0; k < ARRAY_SIZE(mnemonics); k++)
    if (mnemonics[k] == mnemonic) return true;
  return false;
}

static bool is_high(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER && x86_plan_is_high(op->reg.value);
}

/* A register operand, and the register that stands for it. */
struct part {
  const ZydisDecodedOperand *op;
  unsigned guest, host;
};

struct parts {
  struct part p[2];
  unsigned n;
  bool memory;
};

static bool add(struct parts *f, const ZydisDecodedOperand *op) {
  if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) return true;
  if (op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_REG && op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM &&
      op->encoding != ZYDIS_OPERAND_ENCODING_OPCODE)
    return false;
  if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) return f->memory = true;
  if (op->type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  unsigned guest = x86_plan_general(op->reg.value);
  unsigned host = f->n && f->p[0].guest != guest ? H_RCX : H_RAX;
  f->p[f->n++] = (struct part){.op = op, .guest = guest, .host = host};
  return true;
}

static bool collect(const struct translation *t, struct parts *f) {
  bool high = false;
  if (!known(t->z->mnemonic) || !t->z->operand_count_visible || t->z->operand_count_visible > 2) return false;
  for (unsigned k = 0; k < t->z->operand_count_visible; k++) {
    high |= is_high(&t->ops[k]);
    if (!add(f, &t->ops[k])) return false;
  }
  return high;
}

static unsigned code_of(const struct part *p) {
  return p->host + (is_high(p->op) ? 4 : 0);
}

static void encode(struct translation *t, const struct parts *f) {
  const ZydisDecodedInstruction *z = t->z;
  const u8 *bytes = t->b->bytes + t->i->off;
  unsigned opcode = z->opcode, reg = z->raw.modrm.reg, rm = 0;
  bool in_opcode = false;
  for (unsigned n = 0; n < f->n; n++) {
    const struct part *p = &f->p[n];
    if (p->op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
      reg = code_of(p);
    else
      rm = code_of(p);
    in_opcode |= p->op->encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
  }
  if (opcode == 0x82 && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT) opcode = 0x80; /* not in 64-bit mode */
  if (t->i->iflags & X86_I_LOCK) em8(&t->e, 0xf0);
  if (t->m16 ? z->operand_width == 16 : (z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) != 0) em8(&t->e, 0x66);
  if (z->opcode_map == ZYDIS_OPCODE_MAP_0F) em8(&t->e, 0x0f);
  em8(&t->e, in_opcode ? (opcode & 0xf8) | rm : opcode);
  if (!in_opcode && f->memory)
    em_modrm_mem(&t->e, reg, EM_AT(H_RCX, 0));
  else if (!in_opcode)
    em8(&t->e, 0xc0 | reg << 3 | rm);
  for (unsigned k = 0; k < z->raw.imm[0].size / 8u; k++) em8(&t->e, bytes[z->raw.imm[0].offset + k]);
}

bool t_high_byte(struct translation *t) {
  struct parts f = {.n = 0};
  if (!collect(t, &f)) return false;
  if (f.memory) {
    struct em_mem m;
    if (!t_access(t, 0, &m)) return false;
    em_lea(&t->e, H_RCX, m);
  }
  if (t->p->needs) t_need_flags(t);
  for (unsigned n = 0; n < f.n; n++) em_mov(&t->e, f.p[n].host, T_HOME(f.p[n].guest));
  encode(t, &f);
  for (unsigned n = 0; n < f.n; n++)
    if (f.p[n].op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) em_mov(&t->e, T_HOME(f.p[n].guest), f.p[n].host);
  if (t->i->flags_written) t_wrote_flags(t);
  return true;
}
