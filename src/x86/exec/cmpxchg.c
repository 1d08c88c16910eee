/* CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD: by the host's instruction, with LOCK where the guest has it (SDM Vol. 2A). */
#include "x86/exec/exec.h"

/* The register form runs on whole registers, so that the upper halves come out as the host leaves them (32 bits: the destination's is kept when
 * nothing is stored). */
#define DEFINE_CMPXCHG(bits, suffix)                                                                                             \
  static int cmpxchg##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                   \
    void *p;                                                                                                                     \
    u##bits src = get##bits(c, i->reg);                                                                                          \
    u64 acc = c->regs[RAX];                                                                                                      \
    u32 raw;                                                                                                                     \
    bool lock = i->iflags & X86_I_LOCK;                                                                                          \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, lock, &p);                                                          \
    if (unlikely(r)) return r;                                                                                                   \
    if (lock)                                                                                                                    \
      __asm__ volatile("lock cmpxchg" suffix " %[s], %[d]\n\tmov %%rax, %[k]" CATCH_FLAGS                                        \
                       : [d] "+m"(*(x86_u##bits##_unaligned *)p), "=&a"(raw), [k] "=&r"(acc)                                     \
                       : "1"(acc), [s] "r"(src)                                                                                  \
                       : "cc", "memory");                                                                                        \
    else                                                                                                                         \
      __asm__ volatile("cmpxchg" suffix " %[s], %[d]\n\tmov %%rax, %[k]" CATCH_FLAGS                                             \
                       : [d] "+m"(*(x86_u##bits##_unaligned *)p), "=&a"(raw), [k] "=&r"(acc)                                     \
                       : "1"(acc), [s] "r"(src)                                                                                  \
                       : "cc", "memory");                                                                                        \
    x86_rmw_end(c);                                                                                                              \
    c->regs[RAX] = acc;                                                                                                          \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }
DEFINE_CMPXCHG(8, "b") DEFINE_CMPXCHG(16, "w") DEFINE_CMPXCHG(32, "l") DEFINE_CMPXCHG(64, "q")

static u32 compare(u64 a, u64 b, unsigned size) {
  u32 raw;
  switch (size) {
  case 1: __asm__("cmpb %b2, %b1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc"); break;
  case 2: __asm__("cmpw %w2, %w1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc"); break;
  case 4: __asm__("cmpl %k2, %k1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc"); break;
  default: __asm__("cmpq %2, %1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc");
  }
  return raw;
}

/* With 32 bits the register that is not written keeps its upper half, as on Intel processors; the accumulator is loaded before the destination is stored. */
static int cmpxchg_r(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 dst = get_size(c, i->rm, i->opsize), src = get_size(c, i->reg, i->opsize);
  u32 raw = compare(c->regs[RAX], dst, i->opsize);
  if (flags_of(raw) & FL_ZF) put_size(c, i->rm, i->opsize, src);
  else put_size(c, RAX, i->opsize, dst);
  set_flags(c, raw);
  return X86_OK;
}

#define DEFINE_XADD(bits)                                                                                                        \
  static int xadd##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    u##bits d = get##bits(c, i->rm), s = get##bits(c, i->reg), sum = d;                                                          \
    u32 raw;                                                                                                                     \
    __asm__("add %[y], %[x]" CATCH_FLAGS : [x] "+&r"(sum), "=&a"(raw) : [y] "r"(s) : "cc");                                      \
    put##bits(c, i->reg, d);                                                                                                     \
    put##bits(c, i->rm, sum); /* wins where both are one register */                                                             \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int xadd##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    void *p;                                                                                                                     \
    u##bits s = get##bits(c, i->reg);                                                                                            \
    u32 raw;                                                                                                                     \
    bool lock = i->iflags & X86_I_LOCK;                                                                                          \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, lock, &p);                                                          \
    if (unlikely(r)) return r;                                                                                                   \
    if (lock)                                                                                                                    \
      __asm__ volatile("lock xadd %[s], %[d]" CATCH_FLAGS                                                                        \
                       : [d] "+m"(*(x86_u##bits##_unaligned *)p), [s] "+&r"(s), "=&a"(raw)                                       \
                       :                                                                                                         \
                       : "cc", "memory");                                                                                        \
    else                                                                                                                         \
      __asm__ volatile("xadd %[s], %[d]" CATCH_FLAGS                                                                             \
                       : [d] "+m"(*(x86_u##bits##_unaligned *)p), [s] "+&r"(s), "=&a"(raw)                                       \
                       :                                                                                                         \
                       : "cc", "memory");                                                                                        \
    x86_rmw_end(c);                                                                                                              \
    put##bits(c, i->reg, s);                                                                                                     \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }
DEFINE_XADD(8) DEFINE_XADD(16) DEFINE_XADD(32) DEFINE_XADD(64)

static x86_exec_fn *select_cmpxchg(const struct x86_decoded *d, struct x86_insn *i) {
  static x86_exec_fn *const m[4] = {cmpxchg8_m, cmpxchg16_m, cmpxchg32_m, cmpxchg64_m};
  enum x86_form f = x86_operands(d, i);
  return f == FORM_RR ? cmpxchg_r : f == FORM_MR ? m[width_index(i->opsize)] : NULL;
}
static x86_exec_fn *select_xadd(const struct x86_decoded *d, struct x86_insn *i) {
  static x86_exec_fn *const r[4] = {xadd8_r, xadd16_r, xadd32_r, xadd64_r}, *const m[4] = {xadd8_m, xadd16_m, xadd32_m, xadd64_m};
  enum x86_form f = x86_operands(d, i);
  return f == FORM_RR ? r[width_index(i->opsize)] : f == FORM_MR ? m[width_index(i->opsize)] : NULL;
}

static void set_zf(struct x86_vcpu *c, bool zf) { c->rflags = (c->rflags & ~(u64)FL_ZF) | (zf ? FL_ZF : 0); }

/* Locked also without the prefix: nobody can tell. */
static int cmpxchg8b(struct x86_vcpu *c, const struct x86_insn *i) {
  void *p;
  bool ok;
  u32 lo = get32(c, RAX), hi = get32(c, RDX);
  int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), 8, true, &p);
  if (r) return r;
  __asm__ volatile("lock cmpxchg8b %[m]\n\tsete %[z]"
                   : [m] "+m"(*(x86_u64_unaligned *)p), "+a"(lo), "+d"(hi), [z] "=qm"(ok)
                   : "b"(get32(c, RBX)), "c"(get32(c, RCX))
                   : "cc", "memory");
  x86_rmw_end(c);
  if (!ok) {
    put32(c, RAX, lo);
    put32(c, RDX, hi);
  }
  set_zf(c, ok);
  return X86_OK;
}

static int cmpxchg16b(struct x86_vcpu *c, const struct x86_insn *i) {
  void *p;
  bool ok;
  u64 ea = x86_ea(c, i), lin, lo = c->regs[RAX], hi = c->regs[RDX];
  int r = x86_linear(c, i->seg, ea, 16, ACC_WRITE, &lin);
  if (r) return r;
  if (lin & 15) return x86_gp0(c); /* before any page fault */
  r = x86_rmw_begin(c, i->seg, ea, 16, true, &p);
  if (r) return r;
  if (unlikely((uintptr_t)p & 15)) { /* a bounce buffer: private, so any compare will do */
    u64 *v = p;
    ok = v[0] == lo && v[1] == hi;
    lo = v[0], hi = v[1];
    if (ok) v[0] = c->regs[RBX], v[1] = c->regs[RCX];
  } else
    __asm__ volatile("lock cmpxchg16b %[m]\n\tsete %[z]"
                     : [m] "+m"(*(u8(*)[16])p), "+a"(lo), "+d"(hi), [z] "=qm"(ok)
                     : "b"(c->regs[RBX]), "c"(c->regs[RCX])
                     : "cc", "memory");
  x86_rmw_end(c);
  if (!ok) {
    c->regs[RAX] = lo;
    c->regs[RDX] = hi;
  }
  set_zf(c, ok);
  return X86_OK;
}
static x86_exec_fn *select_cmpxchg8b(const struct x86_decoded *d, struct x86_insn *i) { return cmpxchg8b; }
static x86_exec_fn *select_cmpxchg16b(const struct x86_decoded *d, struct x86_insn *i) { return cmpxchg16b; }

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_CMPXCHG, select_cmpxchg},
    {ZYDIS_MNEMONIC_XADD, select_xadd},
    {ZYDIS_MNEMONIC_CMPXCHG8B, select_cmpxchg8b},
    {ZYDIS_MNEMONIC_CMPXCHG16B, select_cmpxchg16b},
};
const struct x86_op_family x86_family_cmpxchg = {"cmpxchg", rows, ARRAY_SIZE(rows)};
