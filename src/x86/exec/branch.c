/* Near branches, loops, calls, returns, and software interrupts. */
#include "x86/exec/exec.h"

/* A target outside the segment or not canonical faults with RIP still at the branch (SDM Vol. 2A JMP, CALL). */
static inline int check_target64(struct x86_vcpu *c, u64 target) {
  bool canonical48 = (u64)((s64)(target << 16) >> 16) == target; /* canonical with any paging */
  return likely(canonical48) || x86_canonical(c, target) ? X86_OK : x86_gp0(c);
}
static inline int check_target(struct x86_vcpu *c, u64 target) {
  if (likely(c->code64)) return check_target64(c, target);
  return likely(target <= c->seg[SEG_CS].limit) ? X86_OK : x86_gp0(c);
}

static u64 operand_mask(const struct x86_insn *i) { return i->opsize == 8 ? ~0ull : i->opsize == 4 ? 0xffffffffull : 0xffffull; }

static inline int jump64(struct x86_vcpu *c, u64 target) {
  int r = check_target64(c, target);
  if (unlikely(r)) return r;
  c->rip = target;
  return X86_BRANCH;
}
static inline int jump(struct x86_vcpu *c, u64 target) {
  int r = check_target(c, target);
  if (unlikely(r)) return r;
  c->rip = target;
  return X86_BRANCH;
}

#define DEFINE_JCC(n)                                                                                                            \
  static int jcc64_##n(struct x86_vcpu *c, const struct x86_insn *i) {                                                           \
    return condition(c->rflags, n) ? jump64(c, c->rip + i->imm) : X86_OK;                                                        \
  }
DEFINE_JCC(0) DEFINE_JCC(1) DEFINE_JCC(2) DEFINE_JCC(3) DEFINE_JCC(4) DEFINE_JCC(5) DEFINE_JCC(6) DEFINE_JCC(7)
DEFINE_JCC(8) DEFINE_JCC(9) DEFINE_JCC(10) DEFINE_JCC(11) DEFINE_JCC(12) DEFINE_JCC(13) DEFINE_JCC(14) DEFINE_JCC(15)
static x86_exec_fn *const jcc64[16] = {jcc64_0, jcc64_1, jcc64_2,  jcc64_3,  jcc64_4,  jcc64_5,  jcc64_6,  jcc64_7,
                                       jcc64_8, jcc64_9, jcc64_10, jcc64_11, jcc64_12, jcc64_13, jcc64_14, jcc64_15};

static int not_taken(struct x86_vcpu *c, const struct x86_insn *i) {
  c->rip = x86_next_ip(c, i);
  return X86_BRANCH;
}
static int jcc(struct x86_vcpu *c, const struct x86_insn *i) {
  return condition(c->rflags, i->sub) ? jump(c, (c->rip + i->imm) & operand_mask(i)) : X86_OK;
}

/* 64-bit mode ignores the operand-size prefix for near branches on Intel processors (SDM Vol. 2A Jcc, JMP, CALL). */
static void branch_size(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = (d->ctx->mode & X86_MODE_SIZE) == X86_MODE_64 ? 8 : (u8)(d->insn.operand_width / 8);
  i->iflags |= X86_I_END;
}

static x86_exec_fn *select_jcc(const struct x86_decoded *d, struct x86_insn *i) {
  branch_size(d, i);
  i->iflags ^= X86_I_END | X86_I_MAYBE;
  i->sub = d->insn.opcode & 15;
  return i->opsize == 8 ? jcc64[i->sub] : jcc;
}

static int jmp_rel64(struct x86_vcpu *c, const struct x86_insn *i) { return jump64(c, c->rip + i->imm); }
static int jmp_rel(struct x86_vcpu *c, const struct x86_insn *i) { return jump(c, (c->rip + i->imm) & operand_mask(i)); }
static int jmp_r(struct x86_vcpu *c, const struct x86_insn *i) { return jump(c, get_size(c, i->rm, i->opsize)); }
static int jmp_m(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, x86_ea(c, i), i->opsize, &v);
  return r ? r : jump(c, v);
}

static inline int call(struct x86_vcpu *c, const struct x86_insn *i, u64 target) {
  /* The return address is written before the target is looked at (as Intel processors do); RSP moves only when all is well. */
  u64 sp = (c->regs[RSP] - i->opsize) & stack_mask(c);
  int r = store_size(c, SEG_SS, sp, i->opsize, x86_next_ip(c, i));
  if (unlikely(r)) return r;
  r = check_target(c, target);
  if (unlikely(r)) return r;
  set_sp(c, sp);
  c->rip = target;
  return X86_BRANCH;
}
/* 64-bit mode: the stack's linear address is RSP. */
static inline int call64(struct x86_vcpu *c, const struct x86_insn *i, u64 target) {
  u64 sp = c->regs[RSP] - 8;
  int r = lin_store64(c, SEG_SS, sp, c->rip + i->next);
  if (unlikely(r)) return r;
  r = check_target64(c, target);
  if (unlikely(r)) return r;
  c->regs[RSP] = sp;
  c->rip = target;
  return X86_BRANCH;
}
static int call_rel64(struct x86_vcpu *c, const struct x86_insn *i) { return call64(c, i, c->rip + i->imm); }
static int call_r64(struct x86_vcpu *c, const struct x86_insn *i) { return call64(c, i, c->regs[i->rm]); }
static int call_rel(struct x86_vcpu *c, const struct x86_insn *i) { return call(c, i, (c->rip + i->imm) & operand_mask(i)); }
static int call_r(struct x86_vcpu *c, const struct x86_insn *i) { return call(c, i, get_size(c, i->rm, i->opsize)); }
static int call_m(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, x86_ea(c, i), i->opsize, &v);
  return r ? r : call(c, i, v);
}

static x86_exec_fn *select_jump(const struct x86_decoded *d, struct x86_insn *i, x86_exec_fn *rel64, x86_exec_fn *rel, x86_exec_fn *reg64,
                                x86_exec_fn *reg, x86_exec_fn *mem) {
  branch_size(d, i);
  if (d->insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
    i->opsize = (u8)(d->insn.operand_width / 8);
    return x86_far_select(d, i);
  }
  if (d->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) return i->opsize == 8 ? rel64 : rel;
  if (d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY) return mem;
  i->rm = (u8)x86_reg_number(d->ops[0].reg.value);
  return i->opsize == 8 ? reg64 : reg;
}
static x86_exec_fn *select_jmp(const struct x86_decoded *d, struct x86_insn *i) { return select_jump(d, i, jmp_rel64, jmp_rel, jmp_r, jmp_r, jmp_m); }
static x86_exec_fn *select_call(const struct x86_decoded *d, struct x86_insn *i) { return select_jump(d, i, call_rel64, call_rel, call_r64, call_r, call_m); }

static int ret(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 target, sp = c->regs[RSP];
  int r = pop_size(c, i->opsize, &target);
  if (unlikely(r)) return r;
  r = check_target(c, target);
  if (unlikely(r)) {
    c->regs[RSP] = sp;
    return r;
  }
  if (i->imm) set_sp(c, c->regs[RSP] + (u16)i->imm);
  c->rip = target;
  return X86_BRANCH;
}
static int ret64(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 target, sp = c->regs[RSP];
  int r = lin_load64(c, SEG_SS, sp, &target);
  if (unlikely(r)) return r;
  r = check_target64(c, target);
  if (unlikely(r)) return r;
  c->regs[RSP] = sp + 8 + (u16)i->imm;
  c->rip = target;
  return X86_BRANCH;
}
static x86_exec_fn *select_ret(const struct x86_decoded *d, struct x86_insn *i) {
  branch_size(d, i);
  if (d->insn.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR) return i->opsize == 8 ? ret64 : ret;
  i->opsize = (u8)(d->insn.operand_width / 8);
  return x86_far_select(d, i);
}

/* LOOP, LOOPE, LOOPNE, JCXZ: the counter has the address size. */
static int loop(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 n = (get_size(c, RCX, i->adsize) - 1) & i->ea_mask;
  bool zf = c->rflags & FL_ZF;
  bool take = n && (i->sub == 0 || (i->sub == 1) == zf);
  u64 target = take ? (c->rip + i->imm) & operand_mask(i) : x86_next_ip(c, i);
  int r = take ? check_target(c, target) : X86_OK;
  if (r) return r;
  put_size(c, RCX, i->adsize, n);
  c->rip = target;
  return X86_BRANCH;
}
static int jcxz(struct x86_vcpu *c, const struct x86_insn *i) {
  return get_size(c, RCX, i->adsize) ? not_taken(c, i) : jump(c, (c->rip + i->imm) & operand_mask(i));
}
static x86_exec_fn *select_loop(const struct x86_decoded *d, struct x86_insn *i) {
  branch_size(d, i);
  i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_LOOP ? 0 : d->insn.mnemonic == ZYDIS_MNEMONIC_LOOPE ? 1 : 2;
  return loop;
}
static x86_exec_fn *select_jcxz(const struct x86_decoded *d, struct x86_insn *i) {
  branch_size(d, i);
  return jcxz;
}

/* INT n, INT3, INTO, INT1: delivered with RIP behind the instruction; a fault during delivery leaves it there with RIP restored. */
static int deliver(struct x86_vcpu *c, const struct x86_insn *i, enum x86_event_kind kind, unsigned vector) {
  u64 start = c->rip;
  c->rip = x86_next_ip(c, i);
  int r = x86_deliver(c, kind, vector, false, 0);
  if (r == X86_OK && !c->triple_fault) return X86_BRANCH;
  c->rip = start;
  if (r != X86_OK) return r;
  c->rip = x86_insn_ip(c, i); /* shut down at this instruction */
  return X86_BRANCH;
}
static int int_n(struct x86_vcpu *c, const struct x86_insn *i) { return deliver(c, i, EV_SOFT_INT, (u8)i->imm); }
static int int3(struct x86_vcpu *c, const struct x86_insn *i) { return deliver(c, i, EV_SOFT_EXCEPTION, VEC_BP); }
static int int1(struct x86_vcpu *c, const struct x86_insn *i) { return deliver(c, i, EV_PRIV_SOFT_EXCEPTION, VEC_DB); }
static int into(struct x86_vcpu *c, const struct x86_insn *i) {
  return c->rflags & FL_OF ? deliver(c, i, EV_SOFT_EXCEPTION, VEC_OF) : not_taken(c, i);
}
static x86_exec_fn *select_int(const struct x86_decoded *d, struct x86_insn *i) {
  i->iflags |= X86_I_END;
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_INT: return int_n;
  case ZYDIS_MNEMONIC_INT3: return int3;
  case ZYDIS_MNEMONIC_INT1: return int1;
  default: return into;
  }
}

#define J(cc) {ZYDIS_MNEMONIC_J##cc, select_jcc}
static const struct x86_op_row rows[] = {
    J(O), J(NO), J(B), J(NB), J(Z), J(NZ), J(BE), J(NBE), J(S), J(NS), J(P), J(NP), J(L), J(NL), J(LE), J(NLE),
    {ZYDIS_MNEMONIC_JMP, select_jmp}, {ZYDIS_MNEMONIC_CALL, select_call}, {ZYDIS_MNEMONIC_RET, select_ret}, {ZYDIS_MNEMONIC_LOOP, select_loop},
    {ZYDIS_MNEMONIC_LOOPE, select_loop}, {ZYDIS_MNEMONIC_LOOPNE, select_loop}, {ZYDIS_MNEMONIC_JCXZ, select_jcxz}, {ZYDIS_MNEMONIC_JECXZ, select_jcxz},
    {ZYDIS_MNEMONIC_JRCXZ, select_jcxz}, {ZYDIS_MNEMONIC_INT, select_int}, {ZYDIS_MNEMONIC_INT3, select_int}, {ZYDIS_MNEMONIC_INT1, select_int},
    {ZYDIS_MNEMONIC_INTO, select_int},
};
const struct x86_op_family x86_family_branch = {"branch", rows, ARRAY_SIZE(rows)};
