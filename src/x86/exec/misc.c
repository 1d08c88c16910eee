/* Flag instructions, NOPs and hints, fences, IN and OUT, BOUND, ARPL, undefined instructions. */
#include "x86/exec/exec.h"

int x86_exec_stop(struct x86_vcpu *c, const struct x86_insn *i) { return X86_RESTART; }
int x86_exec_ud(struct x86_vcpu *c, const struct x86_insn *i) { return x86_ud(c); }

static int nop(struct x86_vcpu *c, const struct x86_insn *i) { return X86_OK; }

static int clc(struct x86_vcpu *c, const struct x86_insn *i) { return c->rflags &= ~(u64)FL_CF, X86_OK; }
static int stc(struct x86_vcpu *c, const struct x86_insn *i) { return c->rflags |= FL_CF, X86_OK; }
static int cmc(struct x86_vcpu *c, const struct x86_insn *i) { return c->rflags ^= FL_CF, X86_OK; }
static int cld(struct x86_vcpu *c, const struct x86_insn *i) { return c->rflags &= ~(u64)FL_DF, X86_OK; }
static int std(struct x86_vcpu *c, const struct x86_insn *i) { return c->rflags |= FL_DF, X86_OK; }

/* SDM Vol. 2A CLI, table 3-7; STI, table 4-19 (VME and PVI included). */
static bool virtual_if(const struct x86_vcpu *c) {
  if (x86_v86(c)) return x86_iopl(c) < 3 && (c->cr4 & CR4_VME);
  return c->cpl == 3 && c->cpl > x86_iopl(c) && (c->cr4 & CR4_PVI);
}
static bool may_if(const struct x86_vcpu *c) {
  return !x86_protected(c) || (x86_v86(c) ? x86_iopl(c) == 3 : c->cpl <= x86_iopl(c));
}
static int cli(struct x86_vcpu *c, const struct x86_insn *i) {
  if (likely(may_if(c))) {
    c->rflags &= ~(u64)FL_IF;
    return X86_OK;
  }
  if (!virtual_if(c)) return x86_gp0(c);
  c->rflags &= ~(u64)FL_VIF;
  return X86_OK;
}
static int sti(struct x86_vcpu *c, const struct x86_insn *i) {
  if (likely(may_if(c))) {
    if (!(c->rflags & FL_IF)) {
      x86_set_rflags(c, FL_IF, FL_IF);
      c->int_shadow = X86_SHADOW_STI; /* the next instruction is still shielded */
    }
    return X86_END;
  }
  if (!virtual_if(c) || (c->rflags & FL_VIP)) return x86_gp0(c);
  c->rflags |= FL_VIF;
  return X86_OK;
}

/* i->sub: port in an immediate. */
static u16 port(const struct x86_vcpu *c, const struct x86_insn *i) { return i->sub ? (u8)i->imm : (u16)c->regs[RDX]; }
static int in(struct x86_vcpu *c, const struct x86_insn *i) {
  u32 v;
  int r = x86_io_check(c, port(c, i), i->opsize);
  if (!r) r = x86_pio_in(c, port(c, i), i->opsize, &v);
  if (r) return r;
  put_size(c, RAX, i->opsize, v);
  if (unlikely(c->mode & X86_MODE_SINGLE)) x86_io_breakpoint(c, port(c, i), i->opsize);
  return X86_OK;
}
static int out(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_io_check(c, port(c, i), i->opsize);
  if (!r) r = x86_pio_out(c, port(c, i), i->opsize, (u32)get_size(c, RAX, i->opsize));
  if (r) return r;
  if (unlikely(c->mode & X86_MODE_SINGLE)) x86_io_breakpoint(c, port(c, i), i->opsize);
  return X86_END; /* devices behind ports raise interrupts: look soon */
}
static x86_exec_fn *select_io(const struct x86_decoded *d, struct x86_insn *i) {
  bool is_in = d->insn.mnemonic == ZYDIS_MNEMONIC_IN;
  const ZydisDecodedOperand *p = &d->ops[is_in ? 1 : 0];
  i->opsize = (u8)(d->ops[is_in ? 0 : 1].size / 8);
  i->sub = p->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  return is_in ? in : out;
}

static s64 sign_extend(u64 v, unsigned bits) { return (s64)(v << (64 - bits)) >> (64 - bits); }
static int bound(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 bound[2], ea = x86_ea(c, i);
  unsigned bits = 8 * i->opsize;
  s64 v = sign_extend(c->regs[i->reg], bits);
  int r = load_size(c, i->seg, ea, i->opsize, &bound[0]);
  if (r) return r;
  if (v < sign_extend(bound[0], bits)) return x86_fault(c, VEC_BR); /* the upper bound is not even read */
  r = load_size(c, i->seg, (ea + i->opsize) & i->ea_mask, i->opsize, &bound[1]);
  if (r) return r;
  return v > sign_extend(bound[1], bits) ? x86_fault(c, VEC_BR) : X86_OK;
}
static x86_exec_fn *select_bound(const struct x86_decoded *d, struct x86_insn *i) {
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  i->opsize = (u8)(d->ops[0].size / 8);
  return bound;
}

static int arpl(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!x86_protected(c) || x86_v86(c)) return x86_ud(c);
  u64 dst;
  unsigned rpl = get16(c, i->reg) & 3;
  int r = x86_operand(c, i, &dst);
  if (r) return r;
  bool adjust = (dst & 3) < rpl;
  if (adjust) { /* only then the destination is written */
    dst = (dst & ~3ull) | rpl;
    if (i->iflags & X86_I_MEM) r = x86_store16(c, i->seg, x86_ea(c, i), (u16)dst);
    else put16(c, i->rm, (u16)dst);
    if (r) return r;
  }
  c->rflags = (c->rflags & ~(u64)FL_ZF) | (adjust ? FL_ZF : 0);
  return X86_OK;
}
static x86_exec_fn *select_arpl(const struct x86_decoded *d, struct x86_insn *i) {
  x86_operands(d, i);
  i->opsize = 2;
  return arpl;
}

/* The host's accesses are the guest's: so is their order, that of non-temporal stores and of RDTSC after loads included. */
static int lfence(struct x86_vcpu *c, const struct x86_insn *i) { return __builtin_ia32_lfence(), X86_OK; }
static int sfence(struct x86_vcpu *c, const struct x86_insn *i) { return __builtin_ia32_sfence(), X86_OK; }
static int mfence(struct x86_vcpu *c, const struct x86_insn *i) { return __builtin_ia32_mfence(), X86_OK; }

/* SALC (opcode D6, undocumented): AL = CF ? FFh : 0. */
static int salc(struct x86_vcpu *c, const struct x86_insn *i) { return put8(c, 0, c->rflags & FL_CF ? 0xff : 0), X86_OK; }

#define PLAIN(fn) static x86_exec_fn *select_##fn(const struct x86_decoded *d, struct x86_insn *i) { return fn; }
PLAIN(nop) PLAIN(lfence) PLAIN(sfence) PLAIN(mfence) PLAIN(clc) PLAIN(stc) PLAIN(cmc) PLAIN(cld) PLAIN(std) PLAIN(cli) PLAIN(sti) PLAIN(salc)
static x86_exec_fn *select_ud(const struct x86_decoded *d, struct x86_insn *i) { return i->iflags |= X86_I_END, x86_exec_ud; }

#define ROW(NAME, name) {ZYDIS_MNEMONIC_##NAME, select_##name}
static const struct x86_op_row rows[] = {
    ROW(NOP, nop),         ROW(ENDBR32, nop),     ROW(ENDBR64, nop),     ROW(PREFETCH, nop),   ROW(PREFETCHNTA, nop), ROW(PREFETCHT0, nop),
    ROW(PREFETCHT1, nop),  ROW(PREFETCHT2, nop),  ROW(PREFETCHW, nop),   ROW(PREFETCHWT1, nop), ROW(LFENCE, lfence),  ROW(SFENCE, sfence),
    ROW(MFENCE, mfence),   ROW(CLC, clc),         ROW(STC, stc),         ROW(CMC, cmc),        ROW(CLD, cld),         ROW(STD, std),
    ROW(CLI, cli),         ROW(STI, sti),         ROW(SALC, salc),       ROW(IN, io),          ROW(OUT, io),          ROW(BOUND, bound),
    ROW(ARPL, arpl),       ROW(UD0, ud),          ROW(UD1, ud),          ROW(UD2, ud),
};
const struct x86_op_family x86_family_misc = {"misc", rows, ARRAY_SIZE(rows)};
