/* Instructions with fixed registers, and those of the stack. */
#include "x86/exec/vector.h"
#include "x86/translate/private.h"

/* A register operand, but for byte registers that have no number of their own. */
static bool usable(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER && !x86_plan_is_high(op->reg.value);
}
static unsigned number(const ZydisDecodedOperand *op) { return x86_plan_general(op->reg.value); }

/* op reg-field, [address]: with operand-size prefix and REX as the width wants them. */
static void sized_mem(struct emitter *e, unsigned bits, u32 opcode, unsigned reg, unsigned address) {
  unsigned rex = (bits == 64 ? 8 : 0) | (reg & 8) >> 1 | (address & 8) >> 3;
  if (bits == 16) em8(e, 0x66);
  if (rex || bits == 8) em8(e, 0x40 | rex);
  em_opcode(e, opcode);
  em_modrm_mem(e, reg, EM_AT(address, 0));
}

/* ---- shifts and rotates by CL ---- */

/* A count of 0 leaves the flags: they are needed. */
static bool shift_by_cl(struct translation *t) {
  const ZydisDecodedOperand *dst = &t->ops[0];
  struct emitter *e = &t->e;
  unsigned opcode = dst->size == 8 ? 0xd2 : 0xd3, extension = t->z->raw.modrm.reg;
  if (t->z->operand_count_visible != 2 || t->ops[1].type != ZYDIS_OPERAND_TYPE_REGISTER ||
      t->ops[1].reg.value != ZYDIS_REGISTER_CL)
    return false;
  if (dst->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    struct em_mem m;
    if (!t_access(t, 0, &m)) return false;
    t_lose_flags(t);
    em_lea(e, H_RAX, m);
    em_store(e, EM_GS(offsetof(struct x86_vcpu, code.scratch)), H_RAX);
    if (t->p->needs) t_need_flags(t);
    em_load(e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.scratch)));
    em_mov(e, H_RCX, T_HOME(RCX));
    sized_mem(e, dst->size, opcode, extension, H_RAX);
  } else {
    if (!usable(dst)) return false;
    if (t->p->needs) t_need_flags(t);
    unsigned guest = number(dst), host = t_read(t, guest, H_RAX);
    em_mov(e, H_RCX, T_HOME(RCX));
    em_sized_reg(e, dst->size, opcode, extension, host);
    t_write(t, guest, host);
  }
  t_wrote_flags(t);
  return true;
}

/* SHLD and SHRD. */
static bool double_shift_by_cl(struct translation *t) {
  const ZydisDecodedOperand *dst = &t->ops[0], *src = &t->ops[1];
  struct em_mem scratch = EM_GS(offsetof(struct x86_vcpu, code.scratch));
  struct emitter *e = &t->e;
  if (t->ops[2].type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  unsigned opcode = 0x0f00u | t->z->opcode, guest = number(src);
  if (dst->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    struct em_mem m;
    if (!t_mapped(guest) || !t_access(t, 0, &m)) return false;
    t_lose_flags(t);
    em_lea(e, H_RAX, m);
    em_store(e, scratch, H_RAX);
    if (t->p->needs) t_need_flags(t);
    em_load(e, H_RAX, scratch);
    em_mov(e, H_RCX, T_HOME(RCX));
    sized_mem(e, dst->size, opcode, T_HOME(guest), H_RAX);
  } else {
    unsigned to = number(dst);
    if (!t_mapped(to) && !t_mapped(guest) && to != guest) return false;
    if (t->p->needs) t_need_flags(t);
    unsigned from = t_read(t, guest, H_RAX), host = t_read(t, to, H_RAX);
    em_mov(e, H_RCX, T_HOME(RCX));
    em_sized_reg(e, dst->size, opcode, from, host);
    t_write(t, to, host);
  }
  t_wrote_flags(t);
  return true;
}

/* ---- RAX and RDX ---- */

/* MUL and IMUL with one operand. */
static bool multiply(struct translation *t) {
  const ZydisDecodedOperand *src = &t->ops[0];
  struct emitter *e = &t->e;
  unsigned opcode = src->size == 8 ? 0xf6 : 0xf7, extension = t->z->raw.modrm.reg;
  if (t->z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || (t->z->opcode & 0xfe) != 0xf6) return false;
  if (src->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    struct em_mem m;
    if (!t_access(t, 0, &m)) return false;
    em_lea(e, H_RCX, m);
    em_mov(e, H_RAX, T_HOME(RAX));
    sized_mem(e, src->size, opcode, extension, H_RCX);
  } else {
    if (!usable(src)) return false;
    unsigned host = t_read(t, number(src), H_RCX);
    em_mov(e, H_RAX, T_HOME(RAX));
    em_sized_reg(e, src->size, opcode, extension, host);
  }
  em_mov(e, T_HOME(RAX), H_RAX);
  t_wrote_flags(t);
  return true;
}

/* ---- DIV and IDIV ---- */

/* movzx or movsx ecx, of 8 or 16 bits; mov of more. */
static void load_divisor(struct translation *t, const struct em_mem *m, unsigned host, bool is_signed) {
  unsigned bits = t->ops[0].size;
  u32 opcode = bits > 16 ? 0x8b : (is_signed ? 0x0fbe : 0x0fb6) | (bits == 16);
  if (m)
    em_mem(&t->e, bits == 64, opcode, H_RCX, *m);
  else if (bits == 8)
    em_byte_rm(&t->e, opcode, H_RCX, host);
  else
    em_reg(&t->e, bits == 64, opcode, H_RCX, host);
}

/* The quotient fits when the upper half of the dividend is below the divisor. */
static void slow_unless_fits(struct translation *t, unsigned bits) {
  struct emitter *e = &t->e;
  if (bits == 8)
    em8(e, 0x38), em8(e, 0xcc); /* cmp ah, cl */
  else
    em_sized_reg(e, bits, 0x3b, T_HOME(RDX), H_RCX);
  t_slow_if(t, CC_AE);
}

/* It does when the upper half is nothing but sign, unless the divisor is 0 or -1.  RAX changes. */
static void slow_unless_fits_signed(struct translation *t, unsigned bits) {
  struct emitter *e = &t->e;
  if (bits == 8) {
    em_sized_reg(e, 16, 0x0fbe, H_RAX, H_RAX); /* movsx ax, al */
    em_sized_reg(e, 16, 0x3b, H_RAX, T_HOME(RAX));
  } else {
    em_sized_reg(e, bits, 0xc1, 7, H_RAX), em8(e, bits - 1); /* sar */
    em_sized_reg(e, bits, 0x3b, H_RAX, T_HOME(RDX));
  }
  t_slow_if(t, CC_NE);
  em_lea(e, H_RAX, EM_AT(H_RCX, 1));
  em_sized_reg(e, bits == 64 ? 64 : 32, 0x83, 7, H_RAX), em8(e, 1); /* cmp */
  t_slow_if(t, CC_BE);
}

/* Flags stay as they were, as in the interpreter. */
static bool divide(struct translation *t) {
  const ZydisDecodedOperand *src = &t->ops[0];
  struct emitter *e = &t->e;
  bool memory = src->type == ZYDIS_OPERAND_TYPE_MEMORY, is_signed = t->z->mnemonic == ZYDIS_MNEMONIC_IDIV;
  struct em_mem m;
  if (memory ? !t_access(t, 0, &m) : !usable(src)) return false;
  t_lose_flags(t);
  load_divisor(t, memory ? &m : NULL, memory ? 0 : t_read(t, number(src), H_RCX), is_signed);
  em_mov(e, H_RAX, T_HOME(RAX));
  if (is_signed) {
    slow_unless_fits_signed(t, src->size);
    em_mov(e, H_RAX, T_HOME(RAX));
  } else {
    slow_unless_fits(t, src->size);
  }
  em_sized_reg(e, src->size, src->size == 8 ? 0xf6 : 0xf7, is_signed ? 7 : 6, H_RCX);
  em_mov(e, T_HOME(RAX), H_RAX);
  return true;
}

/* ---- bit strings ---- */

static bool bit_string(struct translation *t) {
  struct em_mem m, scratch = EM_GS(offsetof(struct x86_vcpu, code.scratch));
  struct emitter *e = &t->e;
  unsigned bits = t->ops[1].size, guest = number(&t->ops[1]);
  if (t->ops[0].type != ZYDIS_OPERAND_TYPE_MEMORY || t->ops[1].type != ZYDIS_OPERAND_TYPE_REGISTER || !t_access_bit(t, guest, &m)) return false;
  em_reg(e, 0, 0x8b, H_RAX, t_read(t, guest, H_RAX));
  em_reg(e, 0, 0x83, 4, H_RAX), em8(e, bits - 1); /* and eax: the word at hand */
  if (t->p->needs) {
    em_store(e, scratch, H_RAX);
    t_need_flags(t);
    em_load(e, H_RAX, scratch);
  }
  if (t->i->iflags & X86_I_LOCK) em8(e, 0xf0);
  sized_mem(e, bits, 0x0f00u | t->z->opcode, H_RAX, H_RCX);
  t_wrote_flags(t);
  return true;
}

/* ---- compare and exchange ---- */

static bool compare_exchange(struct translation *t) {
  const ZydisDecodedOperand *dst = &t->ops[0], *src = &t->ops[1];
  struct emitter *e = &t->e;
  unsigned opcode = src->size == 8 ? 0x0fb0 : 0x0fb1;
  if (!usable(src)) return false;
  bool homeless = !t_mapped(number(src)); /* takes the home of RAX, which is in RAX */
  unsigned s = homeless ? T_HOME(RAX) : T_HOME(number(src));
  if (homeless && dst->type != ZYDIS_OPERAND_TYPE_MEMORY) return false;
  if (dst->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    struct em_mem m;
    if (!t_access(t, 0, &m)) return false;
    em_lea(e, H_RCX, m);
    em_mov(e, H_RAX, T_HOME(RAX));
    if (homeless) {
      em_load(e, s, t_slot(number(src)));
      t->moved = MOVED_RAX;
    }
    if (t->i->iflags & X86_I_LOCK) em8(e, 0xf0);
    sized_mem(e, dst->size, opcode, s, H_RCX);
    em_mov(e, T_HOME(RAX), H_RAX);
  } else {
    if (!usable(dst) || !t_mapped(number(dst)) || number(dst) == RAX) return false;
    em_mov(e, H_RAX, T_HOME(RAX));
    em_sized_reg(e, dst->size, opcode, s, T_HOME(number(dst)));
    em_mov(e, T_HOME(RAX), H_RAX);
  }
  t_wrote_flags(t);
  return true;
}

/* CMPXCHG8B and CMPXCHG16B.  No register is left for the address but the home of RCX, which has to be in RCX. */
static bool compare_exchange_wide(struct translation *t) {
  bool wide = t->z->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
  struct emitter *e = &t->e;
  struct em_mem m;
  t->align = wide ? 15 : 0;
  if (!t_access(t, 0, &m)) return false;
  em_lea(e, H_RCX, m);
  if (t->align) {
    t_lose_flags(t);
    em_reg(e, 0, 0xf7, 0, H_RCX), em32(e, t->align); /* test: pages are aligned */
    t_slow_if(t, CC_NE);
  }
  if (t->p->needs) t_need_flags(t);
  em_mov(e, H_RAX, T_HOME(RAX));
  em_reg(e, 1, 0x87, H_RCX, T_HOME(RCX)); /* xchg */
  t->moved = MOVED_RCX;
  if (t->i->iflags & X86_I_LOCK) em8(e, 0xf0);
  em_mem(e, wide, 0x0fc7, 1, EM_AT(T_HOME(RCX), 0));
  em_mov(e, T_HOME(RCX), H_RCX);
  em_mov(e, T_HOME(RAX), H_RAX);
  t_wrote_flags(t);
  return true;
}

static bool widen_rax(struct translation *t) { /* CBW, CWDE, CDQE */
  unsigned bits = t->z->mnemonic == ZYDIS_MNEMONIC_CBW ? 16 : t->z->mnemonic == ZYDIS_MNEMONIC_CWDE ? 32 : 64;
  em_sized_reg(&t->e, bits, bits == 16 ? 0x0fbe : bits == 32 ? 0x0fbf : 0x63, T_HOME(RAX), T_HOME(RAX));
  return true;
}
static bool widen_into_rdx(struct translation *t) { /* CWD, CDQ, CQO */
  em_mov(&t->e, H_RAX, T_HOME(RAX));
  if (t->z->mnemonic == ZYDIS_MNEMONIC_CWD) em8(&t->e, 0x66);
  if (t->z->mnemonic == ZYDIS_MNEMONIC_CQO) em8(&t->e, 0x48);
  em8(&t->e, 0x99);
  return true;
}

/* ---- the stack, as wide as the mode has it ---- */

/* A general register of that width. */
static bool is_word(const struct translation *t, const ZydisDecodedOperand *op) {
  return usable(op) && ZydisRegisterGetClass(op->reg.value) == (t_slot_size(t) == 2 ? ZYDIS_REGCLASS_GPR16 : t->m32 ? ZYDIS_REGCLASS_GPR32 : ZYDIS_REGCLASS_GPR64);
}

static bool is_known(const struct translation *t) {
  const struct plan_access *a = &t->p->access[0];
  return t->p->n_access == 1 && a->group != PLAN_ALONE && (t->ready >> a->group & 1);
}

bool t_special_delays_rsp(const struct translation *t) {
  const ZydisDecodedOperand *op = &t->ops[0];
  if ((t->z->mnemonic != ZYDIS_MNEMONIC_PUSH && t->z->mnemonic != ZYDIS_MNEMONIC_POP) || !t_is_word(t) || !is_known(t)) return false;
  if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) return true;
  return is_word(t, op) && number(op) != RSP;
}

/* The slot at hand; RSP moves by so many bytes, now or later. */
static bool stack(struct translation *t, s32 by, bool delay, struct em_mem *m) {
  if (!t_access(t, 0, m)) return false;
  if (!t->m32) m->disp += t->rsp; /* that of 32-bit code does not depend on where RSP is */
  if (delay) t->rsp += by;
  return true;
}
static bool push_memory(struct translation *t) {
  struct emitter *e = &t->e;
  struct em_mem m;
  if (!t_access(t, 0, &m)) return false;
  t_load_slot(t, H_RAX, m);
  em_store(e, EM_GS(offsetof(struct x86_vcpu, code.scratch)), H_RAX);
  if (!t_access(t, 1, &m)) return false;
  em_load(e, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.scratch)));
  t_store_slot(t, m, H_RAX);
  t_move_rsp(t, -t_slot_size(t));
  return true;
}

static void push_immediate(struct translation *t, struct em_mem m) {
  struct emitter *e = &t->e;
  bool half = t_slot_size(t) == 2;
  if (half) em8(e, 0x66);
  em_mem(e, !t->m32, 0xc7, 0, m);
  if (half)
    em8(e, t->i->imm & 0xff), em8(e, t->i->imm >> 8 & 0xff);
  else
    em32(e, (u32)t->i->imm);
}

static bool push(struct translation *t) {
  const ZydisDecodedOperand *src = &t->ops[0];
  struct em_mem m;
  if (!t_is_word(t)) return false;
  if (src->type == ZYDIS_OPERAND_TYPE_MEMORY) return push_memory(t);
  bool imm = src->type == ZYDIS_OPERAND_TYPE_IMMEDIATE, delay = t_special_delays_rsp(t);
  if (!imm && !is_word(t, src)) return false;
  if (!stack(t, -t_slot_size(t), delay, &m)) return false;
  if (imm)
    push_immediate(t, m);
  else
    t_store_slot(t, m, t_read(t, number(src), H_RAX));
  if (!delay) t_move_rsp(t, -t_slot_size(t));
  t->keeps_rax = imm || t_mapped(number(src));
  return t->keeps_rcx = true;
}

static bool pop(struct translation *t) {
  const ZydisDecodedOperand *dst = &t->ops[0];
  struct em_mem m;
  if (!t_is_word(t) || !is_word(t, dst)) return false;
  bool delay = t_special_delays_rsp(t);
  if (t->m16 && number(dst) == RSP) return false;
  if (!stack(t, t_slot_size(t), delay, &m)) return false;
  unsigned guest = number(dst), host = t_mapped(guest) && guest != RSP ? T_HOME(guest) : H_RAX;
  if (t_slot_size(t) == 2) em8(&t->e, 0x66); /* the rest of the register stays */
  t_load_word(t, host, m);
  if (!delay) t_move_rsp(t, t_slot_size(t));
  if (host == H_RAX) t_write(t, guest, H_RAX);
  t->keeps_rax = host != H_RAX;
  return t->keeps_rcx = true;
}

static bool leave(struct translation *t) {
  struct em_mem m;
  if (!t_is_word(t) || !t_access(t, 0, &m)) return false;
  t_load_slot(t, H_RAX, m);
  if (t->m16) em8(&t->e, 0x66); /* SP alone */
  t_lea(t, T_HOME(RSP), EM_AT(T_HOME(RBP), t_slot_size(t)));
  if (t_slot_size(t) == 2)
    em_sized_reg(&t->e, 16, 0x8b, T_HOME(RBP), H_RAX);
  else
    em_mov(&t->e, T_HOME(RBP), H_RAX);
  return true;
}

/* ---- others ---- */

static bool as_it_is(struct translation *t) {
  for (unsigned k = 0; k < t->i->len; k++) em8(&t->e, t->b->bytes[t->i->off + k]);
  return true;
}

/* Outside 64-bit mode the upper eight stay as they are. */
static bool zero_upper(struct translation *t) {
  if (t->m32) return false;
  t_need_vectors(t, VECTORS_AVX);
  return as_it_is(t);
}

/* CLC, STC, CMC */
static bool carry(struct translation *t) {
  t_need_flags(t);
  as_it_is(t);
  t_wrote_flags(t);
  return true;
}

static const struct {
  u16 mnemonic;
  bool (*translate)(struct translation *t);
} rows[] = {
    {ZYDIS_MNEMONIC_SHL, shift_by_cl},
    {ZYDIS_MNEMONIC_SHR, shift_by_cl},
    {ZYDIS_MNEMONIC_SAR, shift_by_cl},
    {ZYDIS_MNEMONIC_ROL, shift_by_cl},
    {ZYDIS_MNEMONIC_ROR, shift_by_cl},
    {ZYDIS_MNEMONIC_RCL, shift_by_cl},
    {ZYDIS_MNEMONIC_RCR, shift_by_cl},
    {ZYDIS_MNEMONIC_SHLD, double_shift_by_cl},
    {ZYDIS_MNEMONIC_SHRD, double_shift_by_cl},
    {ZYDIS_MNEMONIC_MUL, multiply},
    {ZYDIS_MNEMONIC_IMUL, multiply},
    {ZYDIS_MNEMONIC_DIV, divide},
    {ZYDIS_MNEMONIC_IDIV, divide},
    {ZYDIS_MNEMONIC_CMPXCHG, compare_exchange},
    {ZYDIS_MNEMONIC_CMPXCHG8B, compare_exchange_wide},
    {ZYDIS_MNEMONIC_CMPXCHG16B, compare_exchange_wide},
    {ZYDIS_MNEMONIC_BT, bit_string},
    {ZYDIS_MNEMONIC_BTS, bit_string},
    {ZYDIS_MNEMONIC_BTR, bit_string},
    {ZYDIS_MNEMONIC_BTC, bit_string},
    {ZYDIS_MNEMONIC_PAUSE, as_it_is},
    {ZYDIS_MNEMONIC_CBW, widen_rax},
    {ZYDIS_MNEMONIC_CWDE, widen_rax},
    {ZYDIS_MNEMONIC_CDQE, widen_rax},
    {ZYDIS_MNEMONIC_CWD, widen_into_rdx},
    {ZYDIS_MNEMONIC_CDQ, widen_into_rdx},
    {ZYDIS_MNEMONIC_CQO, widen_into_rdx},
    {ZYDIS_MNEMONIC_PUSH, push},
    {ZYDIS_MNEMONIC_POP, pop},
    {ZYDIS_MNEMONIC_LEAVE, leave},
    {ZYDIS_MNEMONIC_LFENCE, as_it_is},
    {ZYDIS_MNEMONIC_MFENCE, as_it_is},
    {ZYDIS_MNEMONIC_SFENCE, as_it_is},
    {ZYDIS_MNEMONIC_VZEROUPPER, zero_upper},
    {ZYDIS_MNEMONIC_VZEROALL, zero_upper},
    {ZYDIS_MNEMONIC_CLC, carry},
    {ZYDIS_MNEMONIC_STC, carry},
    {ZYDIS_MNEMONIC_CMC, carry},
};

bool t_special(struct translation *t) {
  for (size_t k = 0; k < ARRAY_SIZE(rows); k++)
    if (rows[k].mnemonic == t->z->mnemonic) return rows[k].translate(t);
  return false;
}
