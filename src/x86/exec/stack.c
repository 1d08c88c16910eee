/* PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE. */
#include "x86/exec/exec.h"

static int push_r64(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 sp = c->regs[RSP] - 8;
  int r = lin_store64(c, SEG_SS, sp, c->regs[i->rm]);
  if (likely(!r)) c->regs[RSP] = sp;
  return r;
}
static int pop_r64(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = lin_load64(c, SEG_SS, c->regs[RSP], &v);
  if (unlikely(r)) return r;
  c->regs[RSP] += 8;
  c->regs[i->rm] = v; /* POP RSP: the value wins over the increment */
  return X86_OK;
}
static int push_r(struct x86_vcpu *c, const struct x86_insn *i) { return push_size(c, i->opsize, get_size(c, i->rm, i->opsize)); }
static int push_i(struct x86_vcpu *c, const struct x86_insn *i) { return push_size(c, i->opsize, i->imm); }
static int push_m(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, x86_ea(c, i), i->opsize, &v);
  return r ? r : push_size(c, i->opsize, v);
}
static int pop_r(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = pop_size(c, i->opsize, &v);
  if (!r) put_size(c, i->rm, i->opsize, v);
  return r;
}
/* The address is computed with RSP incremented (SDM Vol. 2B POP). */
static int pop_m(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v, mask = stack_mask(c), sp = c->regs[RSP], after = (sp & ~mask) | ((sp + i->opsize) & mask);
  int r = load_size(c, SEG_SS, sp & mask, i->opsize, &v);
  if (r) return r;
  u64 ea = i->base == RSP ? (x86_ea(c, i) + after - sp) & i->ea_mask : x86_ea(c, i);
  r = store_size(c, i->seg, ea, i->opsize, v);
  if (!r) set_sp(c, after);
  return r;
}

static bool segment(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static x86_exec_fn *select_push(const struct x86_decoded *d, struct x86_insn *i) {
  if (segment(&d->ops[0])) return NULL;
  bool imm = d->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE, mem = d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  if (!imm && !mem) i->rm = (u8)x86_reg_number(d->ops[0].reg.value);
  i->opsize = (u8)(d->insn.operand_width / 8);
  if (i->opsize == 4 && (d->ctx->mode & X86_MODE_SIZE) == X86_MODE_64) i->opsize = 8;
  return imm ? push_i : mem ? push_m : i->opsize == 8 ? push_r64 : push_r;
}
static x86_exec_fn *select_pop(const struct x86_decoded *d, struct x86_insn *i) {
  if (segment(&d->ops[0])) return NULL;
  bool mem = d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  if (!mem) i->rm = (u8)x86_reg_number(d->ops[0].reg.value);
  i->opsize = (u8)(d->insn.operand_width / 8);
  if (i->opsize == 4 && (d->ctx->mode & X86_MODE_SIZE) == X86_MODE_64) i->opsize = 8;
  return mem ? pop_m : i->opsize == 8 ? pop_r64 : pop_r;
}

static int pusha(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 mask = stack_mask(c), sp = c->regs[RSP];
  for (unsigned n = 0; n < 8; n++) {
    int r = store_size(c, SEG_SS, (sp - (n + 1) * i->opsize) & mask, i->opsize, c->regs[n]);
    if (r) return r;
  }
  set_sp(c, sp - 8 * i->opsize);
  return X86_OK;
}
static int popa(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 mask = stack_mask(c), sp = c->regs[RSP], v;
  for (unsigned n = 0; n < 8; n++) { /* a fault leaves what was popped before it in place; RSP has not moved, so it can run again */
    int r = load_size(c, SEG_SS, (sp + n * i->opsize) & mask, i->opsize, &v);
    if (r) return r;
    if (7 - n != RSP) put_size(c, 7 - n, i->opsize, v);
  }
  set_sp(c, sp + 8 * i->opsize);
  return X86_OK;
}
static x86_exec_fn *select_pusha(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = d->insn.mnemonic == ZYDIS_MNEMONIC_PUSHAD ? 4 : 2;
  return pusha;
}
static x86_exec_fn *select_popa(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = d->insn.mnemonic == ZYDIS_MNEMONIC_POPAD ? 4 : 2;
  return popa;
}

/* SDM Vol. 2B PUSHF: VM and RF are pushed as 0; in v86 mode with IOPL < 3, #GP or (16-bit, VME) VIF in IF's place and IOPL as 3. */
static int pushf(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 f = c->rflags & ~(u64)(FL_VM | FL_RF);
  if (x86_v86(c) && x86_iopl(c) < 3) {
    if (i->opsize != 2 || !(c->cr4 & CR4_VME)) return x86_gp0(c);
    f = (f & ~(u64)FL_IF) | FL_IOPL | (c->rflags & FL_VIF ? FL_IF : 0);
  }
  return push_size(c, i->opsize, f);
}

/* SDM Vol. 2B POPF, and tables 4-15 to 4-17: what may change by mode, CPL and IOPL. */
static int popf(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v, sp = c->regs[RSP] & stack_mask(c);
  u64 mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
  bool virtual_if = x86_v86(c) && x86_iopl(c) < 3;
  if (virtual_if && (i->opsize != 2 || !(c->cr4 & CR4_VME))) return x86_gp0(c);
  int r = load_size(c, SEG_SS, sp, i->opsize, &v);
  if (r) return r;
  if (virtual_if) {
    if ((v & FL_TF) || ((v & FL_IF) && (c->rflags & FL_VIP))) return x86_gp0(c);
    mask |= FL_VIF;
    v = (v & ~(u64)FL_VIF) | (v & FL_IF ? FL_VIF : 0);
  } else if (c->cpl <= x86_iopl(c)) { /* in v86 mode CPL and IOPL are 3 here */
    mask |= FL_IF;
  }
  if (c->cpl == 0) mask |= FL_IOPL | FL_IF;
  if (i->opsize != 2) {
    mask |= FL_AC | FL_ID | FL_RF;
    v &= ~(u64)FL_RF; /* RF is cleared */
  }
  set_sp(c, sp + i->opsize);
  x86_set_rflags(c, v, mask);
  return X86_END;
}
static x86_exec_fn *select_pushf(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = d->insn.mnemonic == ZYDIS_MNEMONIC_PUSHF ? 2 : d->insn.mnemonic == ZYDIS_MNEMONIC_PUSHFD ? 4 : 8;
  return pushf;
}
static x86_exec_fn *select_popf(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = d->insn.mnemonic == ZYDIS_MNEMONIC_POPF ? 2 : d->insn.mnemonic == ZYDIS_MNEMONIC_POPFD ? 4 : 8;
  i->iflags |= X86_I_END;
  return popf;
}

/* SDM Vol. 2A ENTER: imm holds the allocation size, reg the nesting level. */
static int enter(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 mask = stack_mask(c), sp = c->regs[RSP], bp = c->regs[RBP];
  unsigned size = i->opsize, level = i->reg & 31;
  int r = store_size(c, SEG_SS, (sp - size) & mask, size, bp);
  if (r) return r;
  u64 at = (sp - size) & mask, frame = (sp & ~mask) | at; /* all of ESP, also with a 16-bit stack */
  for (unsigned n = 1; n < level; n++) {
    u64 v;
    bp -= size;
    at -= size;
    r = load_size(c, SEG_SS, bp & mask, size, &v);
    if (!r) r = store_size(c, SEG_SS, at & mask, size, v);
    if (r) return r;
  }
  if (level) {
    at -= size;
    r = store_size(c, SEG_SS, at & mask, size, frame);
    if (r) return r;
  }
  at -= (u16)i->imm;
  /* A write there must be possible, none is made (#PF and #SS conditions of ENTER). */
  void *probe;
  r = x86_rmw_begin(c, SEG_SS, at & mask, size, false, &probe);
  if (r) return r;
  x86_rmw_end(c);
  put_size(c, RBP, size, frame);
  set_sp(c, at);
  return X86_OK;
}
static x86_exec_fn *select_enter(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = (u8)(d->insn.operand_width / 8);
  if (i->opsize == 4 && (d->ctx->mode & X86_MODE_SIZE) == X86_MODE_64) i->opsize = 8;
  i->imm = d->ops[0].imm.value.u;
  i->reg = (u8)d->ops[1].imm.value.u;
  return enter;
}

static int leave(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v, mask = stack_mask(c), bp = c->regs[RBP] & mask;
  int r = load_size(c, SEG_SS, bp, i->opsize, &v);
  if (r) return r;
  set_sp(c, bp + i->opsize);
  put_size(c, RBP, i->opsize, v);
  return X86_OK;
}
static x86_exec_fn *select_leave(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = (u8)(d->insn.operand_width / 8);
  if (i->opsize == 4 && (d->ctx->mode & X86_MODE_SIZE) == X86_MODE_64) i->opsize = 8;
  return leave;
}

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_PUSH, select_push},   {ZYDIS_MNEMONIC_POP, select_pop},     {ZYDIS_MNEMONIC_PUSHA, select_pusha},   {ZYDIS_MNEMONIC_PUSHAD, select_pusha},
    {ZYDIS_MNEMONIC_POPA, select_popa},   {ZYDIS_MNEMONIC_POPAD, select_popa},  {ZYDIS_MNEMONIC_PUSHF, select_pushf},   {ZYDIS_MNEMONIC_PUSHFD, select_pushf},
    {ZYDIS_MNEMONIC_PUSHFQ, select_pushf}, {ZYDIS_MNEMONIC_POPF, select_popf},  {ZYDIS_MNEMONIC_POPFD, select_popf},    {ZYDIS_MNEMONIC_POPFQ, select_popf},
    {ZYDIS_MNEMONIC_ENTER, select_enter}, {ZYDIS_MNEMONIC_LEAVE, select_leave},
};
const struct x86_op_family x86_family_stack = {"stack", rows, ARRAY_SIZE(rows)};
