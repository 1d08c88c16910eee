/* CMPXCHG, XADD, flag instructions, NOPs, decimal adjustments, IN and OUT, BOUND, ARPL, undefined instructions. */
#include "x86/exec/exec.h"

int x86_exec_stop(struct x86_vcpu *c, const struct x86_insn *i) { return X86_RESTART; }
int x86_exec_ud(struct x86_vcpu *c, const struct x86_insn *i) { return x86_ud(c); }

static int nop(struct x86_vcpu *c, const struct x86_insn *i) { return X86_OK; }

#define DEFINE_XADD(bits)                                                                                                        \
  static int cmpxchg##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                   \
    u##bits dst = get##bits(c, i->rm), a = get##bits(c, RAX), src = get##bits(c, i->reg);                                        \
    u32 raw;                                                                                                                     \
    u64 keep;                                                                                                                    \
    __asm__("cmpxchg %[s], %[d]\n\tmov %%rax, %[k]" CATCH_FLAGS                                                                  \
            : [d] "+&r"(dst), "=&a"(raw), [k] "=&r"(keep)                                                                        \
            : "1"((u64)a), [s] "r"(src)                                                                                          \
            : "cc");                                                                                                             \
    if (raw >> 8 & FL_ZF) put##bits(c, i->rm, dst);                                                                              \
    else {                                                                                                                       \
      put##bits(c, RAX, (u##bits)keep);                                                                                          \
      put##bits(c, i->rm, dst);                                                                                                  \
    }                                                                                                                            \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int cmpxchg##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                   \
    void *p;                                                                                                                     \
    u##bits a = get##bits(c, RAX), src = get##bits(c, i->reg);                                                                   \
    u32 raw;                                                                                                                     \
    u64 keep;                                                                                                                    \
    bool lock = i->iflags & X86_I_LOCK;                                                                                          \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, lock, &p);                                                          \
    if (unlikely(r)) return r;                                                                                                   \
    if (lock)                                                                                                                    \
      __asm__ volatile("lock cmpxchg %[s], %[d]\n\tmov %%rax, %[k]" CATCH_FLAGS                                                  \
                       : [d] "+m"(*(u##bits *)p), "=&a"(raw), [k] "=&r"(keep)                                                    \
                       : "1"((u64)a), [s] "r"(src)                                                                               \
                       : "cc", "memory");                                                                                        \
    else                                                                                                                         \
      __asm__ volatile("cmpxchg %[s], %[d]\n\tmov %%rax, %[k]" CATCH_FLAGS                                                       \
                       : [d] "+m"(*(u##bits *)p), "=&a"(raw), [k] "=&r"(keep)                                                    \
                       : "1"((u64)a), [s] "r"(src)                                                                               \
                       : "cc", "memory");                                                                                        \
    x86_rmw_end(c);                                                                                                              \
    if (!(raw >> 8 & FL_ZF)) put##bits(c, RAX, (u##bits)keep);                                                                   \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int xadd##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    u##bits d = get##bits(c, i->rm), s = get##bits(c, i->reg), sum = d;                                                          \
    u32 raw;                                                                                                                     \
    __asm__("add %[y], %[x]" CATCH_FLAGS : [x] "+&r"(sum), "=&a"(raw) : [y] "r"(s) : "cc");                                      \
    put##bits(c, i->reg, d);                                                                                                     \
    put##bits(c, i->rm, sum);                                                                                                    \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int xadd##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    void *p;                                                                                                                     \
    u##bits s = get##bits(c, i->reg);                                                                                            \
    u32 raw;                                                                                                                     \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, i->iflags & X86_I_LOCK, &p);                                        \
    if (unlikely(r)) return r;                                                                                                   \
    __asm__ volatile("lock xadd %[s], %[d]" CATCH_FLAGS : [d] "+m"(*(u##bits *)p), [s] "+&r"(s), "=&a"(raw) : : "cc", "memory"); \
    x86_rmw_end(c);                                                                                                              \
    put##bits(c, i->reg, s);                                                                                                     \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }
DEFINE_XADD(8) DEFINE_XADD(16) DEFINE_XADD(32) DEFINE_XADD(64)
#define SELECT_RM(name)                                                                                                          \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static x86_exec_fn *const r[4] = {name##8_r, name##16_r, name##32_r, name##64_r};                                            \
    static x86_exec_fn *const m[4] = {name##8_m, name##16_m, name##32_m, name##64_m};                                            \
    enum x86_form f = x86_operands(d, i);                                                                                        \
    return f == FORM_RR ? r[width_index(i->opsize)] : f == FORM_MR ? m[width_index(i->opsize)] : NULL;                           \
  }
SELECT_RM(cmpxchg) SELECT_RM(xadd)

static int cmpxchg8b(struct x86_vcpu *c, const struct x86_insn *i) {
  void *p;
  u64 old = (u64)get32(c, RDX) << 32 | get32(c, RAX), new = (u64)get32(c, RCX) << 32 | get32(c, RBX);
  int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), 8, true, &p);
  if (r) return r;
  bool ok = __atomic_compare_exchange_n((u64 *)p, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  x86_rmw_end(c);
  if (!ok) put32(c, RAX, (u32)old), put32(c, RDX, (u32)(old >> 32));
  c->rflags = (c->rflags & ~(u64)FL_ZF) | (ok ? FL_ZF : 0);
  return X86_OK;
}
static int cmpxchg16b(struct x86_vcpu *c, const struct x86_insn *i) {
  void *p;
  u64 ea = x86_ea(c, i), lin;
  u64 lo = c->regs[RAX], hi = c->regs[RDX];
  bool ok;
  int r = x86_linear(c, i->seg, ea, 16, ACC_WRITE, &lin);
  if (r) return r;
  if (lin & 15) return x86_gp0(c); /* SDM Vol. 2A CMPXCHG16B: alignment */
  r = x86_rmw_begin(c, i->seg, ea, 16, true, &p);
  if (r) return r;
  __asm__ volatile("lock cmpxchg16b %[m]\n\tsete %[z]"
                   : [m] "+m"(*(unsigned __int128 *)p), "+a"(lo), "+d"(hi), [z] "=q"(ok)
                   : "b"(c->regs[RBX]), "c"(c->regs[RCX])
                   : "cc", "memory");
  x86_rmw_end(c);
  if (!ok) c->regs[RAX] = lo, c->regs[RDX] = hi;
  c->rflags = (c->rflags & ~(u64)FL_ZF) | (ok ? FL_ZF : 0);
  return X86_OK;
}

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
      c->int_shadow = 1; /* the next instruction is still shielded */
    }
    return X86_END;
  }
  if (!virtual_if(c) || (c->rflags & FL_VIP)) return x86_gp0(c);
  c->rflags |= FL_VIF;
  return X86_OK;
}

/* BCD: by the book (SDM Vol. 2A AAA, AAD, AAM, AAS, DAA, DAS); flags the book calls undefined come from the same operation on the host where it exists. */
static void szp(struct x86_vcpu *c, u8 v, u64 extra) {
  u64 f = extra | (v ? 0 : FL_ZF) | (v & 0x80 ? FL_SF : 0) | (__builtin_parity(v) ? 0 : FL_PF);
  c->rflags = (c->rflags & ~(u64)FL_ARITH) | f;
}
static int daa(struct x86_vcpu *c, const struct x86_insn *i) {
  bool sub = i->sub, cf = c->rflags & FL_CF, af = c->rflags & FL_AF;
  u8 al = get8(c, 0), old = al;
  u64 f = 0;
  if ((al & 15) > 9 || af) {
    if (cf || (sub ? old < 6 : old > 0xf9)) f |= FL_CF;
    al = sub ? al - 6 : al + 6;
    f |= FL_AF;
  }
  if (old > 0x99 || cf) {
    al = sub ? al - 0x60 : al + 0x60;
    f |= FL_CF;
  } else if (!sub) {
    f &= ~(u64)FL_CF;
  }
  put8(c, 0, al);
  szp(c, al, f);
  return X86_OK;
}
static int aaa(struct x86_vcpu *c, const struct x86_insn *i) {
  u16 ax = get16(c, RAX);
  bool adjust = (ax & 15) > 9 || (c->rflags & FL_AF);
  if (adjust) ax = i->sub ? ax - 0x106 : ax + 0x106;
  ax &= 0xff0f;
  put16(c, RAX, ax);
  szp(c, (u8)ax, adjust ? FL_AF | FL_CF : 0);
  return X86_OK;
}
static int aam(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 al = get8(c, 0), base = (u8)i->imm;
  if (!base) return x86_fault(c, VEC_DE);
  put16(c, RAX, (u16)((al / base) << 8 | al % base));
  szp(c, al % base, 0);
  return X86_OK;
}
static int aad(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 al = (u8)(get8(c, 0) + get8(c, 1) * (u8)i->imm);
  put16(c, RAX, al);
  szp(c, al, 0);
  return X86_OK;
}
static int salc(struct x86_vcpu *c, const struct x86_insn *i) { return put8(c, 0, c->rflags & FL_CF ? 0xff : 0), X86_OK; }

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

static int bound(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 lo, hi, ea = x86_ea(c, i);
  int r = load_size(c, i->seg, ea, i->opsize, &lo);
  if (!r) r = load_size(c, i->seg, (ea + i->opsize) & i->ea_mask, i->opsize, &hi);
  if (r) return r;
  s64 v = i->opsize == 4 ? (s32)c->regs[i->reg] : (s16)c->regs[i->reg];
  s64 l = i->opsize == 4 ? (s32)lo : (s16)lo, h = i->opsize == 4 ? (s32)hi : (s16)hi;
  return v < l || v > h ? x86_fault(c, VEC_BR) : X86_OK;
}
static x86_exec_fn *select_bound(const struct x86_decoded *d, struct x86_insn *i) {
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  i->opsize = (u8)(d->ops[0].size / 8);
  return bound;
}

static int arpl(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!x86_protected(c) || x86_v86(c)) return x86_ud(c);
  u16 src = get16(c, i->reg), dst, *p = &dst;
  void *host = NULL;
  if (i->iflags & X86_I_MEM) {
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), 2, false, &host);
    if (r) return r;
    p = host;
  } else {
    dst = get16(c, i->rm);
  }
  bool adjust = (*p & 3) < (src & 3);
  if (adjust) *p = (u16)((*p & ~3) | (src & 3));
  if (host) x86_rmw_end(c);
  else if (adjust) put16(c, i->rm, dst);
  c->rflags = (c->rflags & ~(u64)FL_ZF) | (adjust ? FL_ZF : 0);
  return X86_OK;
}
static x86_exec_fn *select_arpl(const struct x86_decoded *d, struct x86_insn *i) {
  x86_operands(d, i);
  return arpl;
}

/* The host's accesses are the guest's: so is their order. */
static int mfence(struct x86_vcpu *c, const struct x86_insn *i) { return __atomic_thread_fence(__ATOMIC_SEQ_CST), X86_OK; }

#define PLAIN(fn) static x86_exec_fn *select_##fn(const struct x86_decoded *d, struct x86_insn *i) { return fn; }
PLAIN(nop) PLAIN(mfence) PLAIN(cmpxchg8b) PLAIN(cmpxchg16b) PLAIN(clc) PLAIN(stc) PLAIN(cmc) PLAIN(cld) PLAIN(std) PLAIN(cli) PLAIN(aam) PLAIN(aad) PLAIN(salc)
static x86_exec_fn *select_sti(const struct x86_decoded *d, struct x86_insn *i) { return i->iflags |= X86_I_END, sti; }
static x86_exec_fn *select_daa(const struct x86_decoded *d, struct x86_insn *i) { return i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_DAS, daa; }
static x86_exec_fn *select_aaa(const struct x86_decoded *d, struct x86_insn *i) { return i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_AAS, aaa; }
static x86_exec_fn *select_ud(const struct x86_decoded *d, struct x86_insn *i) { return i->iflags |= X86_I_END, x86_exec_ud; }

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_NOP, select_nop}, {ZYDIS_MNEMONIC_ENDBR32, select_nop}, {ZYDIS_MNEMONIC_ENDBR64, select_nop}, {ZYDIS_MNEMONIC_PREFETCH, select_nop},
    {ZYDIS_MNEMONIC_PREFETCHNTA, select_nop}, {ZYDIS_MNEMONIC_PREFETCHT0, select_nop}, {ZYDIS_MNEMONIC_PREFETCHT1, select_nop},
    {ZYDIS_MNEMONIC_PREFETCHT2, select_nop}, {ZYDIS_MNEMONIC_PREFETCHW, select_nop}, {ZYDIS_MNEMONIC_PREFETCHWT1, select_nop},
    {ZYDIS_MNEMONIC_LFENCE, select_nop}, {ZYDIS_MNEMONIC_MFENCE, select_mfence}, {ZYDIS_MNEMONIC_SFENCE, select_nop}, {ZYDIS_MNEMONIC_CMPXCHG, select_cmpxchg}, {ZYDIS_MNEMONIC_XADD, select_xadd},
    {ZYDIS_MNEMONIC_CMPXCHG8B, select_cmpxchg8b}, {ZYDIS_MNEMONIC_CMPXCHG16B, select_cmpxchg16b}, {ZYDIS_MNEMONIC_CLC, select_clc},
    {ZYDIS_MNEMONIC_STC, select_stc}, {ZYDIS_MNEMONIC_CMC, select_cmc}, {ZYDIS_MNEMONIC_CLD, select_cld}, {ZYDIS_MNEMONIC_STD, select_std},
    {ZYDIS_MNEMONIC_CLI, select_cli}, {ZYDIS_MNEMONIC_STI, select_sti}, {ZYDIS_MNEMONIC_DAA, select_daa}, {ZYDIS_MNEMONIC_DAS, select_daa},
    {ZYDIS_MNEMONIC_AAA, select_aaa}, {ZYDIS_MNEMONIC_AAS, select_aaa}, {ZYDIS_MNEMONIC_AAM, select_aam}, {ZYDIS_MNEMONIC_AAD, select_aad},
    {ZYDIS_MNEMONIC_SALC, select_salc}, {ZYDIS_MNEMONIC_IN, select_io}, {ZYDIS_MNEMONIC_OUT, select_io}, {ZYDIS_MNEMONIC_BOUND, select_bound},
    {ZYDIS_MNEMONIC_ARPL, select_arpl}, {ZYDIS_MNEMONIC_UD0, select_ud}, {ZYDIS_MNEMONIC_UD1, select_ud}, {ZYDIS_MNEMONIC_UD2, select_ud},
};
const struct x86_op_family x86_family_misc = {"misc", rows, ARRAY_SIZE(rows)};
