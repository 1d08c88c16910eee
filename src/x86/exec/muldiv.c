/* MUL, IMUL, DIV, IDIV.  Quotients that do not fit are found out before the host divides. */
#include "x86/exec/exec.h"

typedef unsigned __int128 u128;
typedef __int128 s128;

static int operand(struct x86_vcpu *c, const struct x86_insn *i, u64 *v) {
  if (!(i->iflags & X86_I_MEM)) {
    *v = get_size(c, i->rm, i->opsize);
    return X86_OK;
  }
  return load_size(c, i->seg, x86_ea(c, i), i->opsize, v);
}

#define DEFINE_MUL(name, bits, ins, suffix)                                                                                      \
  static void name##bits(struct x86_vcpu *c, u##bits b) {                                                                        \
    u##bits lo = get##bits(c, RAX), hi;                                                                                          \
    u32 raw;                                                                                                                     \
    u64 keep;                                                                                                                    \
    __asm__(ins " %[y]\n\tmov %%rax, %[k]" CATCH_FLAGS : "=a"(raw), "=&d"(hi), [k] "=&r"(keep) : "0"(lo), [y] "r"(b) : "cc");    \
    put##bits(c, RAX, (u##bits)keep);                                                                                            \
    put##bits(c, RDX, hi);                                                                                                       \
    set_flags(c, raw);                                                                                                           \
  }
DEFINE_MUL(mul, 16, "mulw", "w") DEFINE_MUL(mul, 32, "mull", "l") DEFINE_MUL(mul, 64, "mulq", "q")
DEFINE_MUL(imul, 16, "imulw", "w") DEFINE_MUL(imul, 32, "imull", "l") DEFINE_MUL(imul, 64, "imulq", "q")

#define DEFINE_MUL8(name, ins)                                                                                                   \
  static void name##8(struct x86_vcpu *c, u8 b) {                                                                                \
    u8 a = get8(c, 0);                                                                                                           \
    u32 raw;                                                                                                                     \
    u64 keep;                                                                                                                    \
    __asm__(ins " %[y]\n\tmov %%rax, %[k]" CATCH_FLAGS : "=a"(raw), [k] "=&r"(keep) : "0"((u32)a), [y] "r"(b) : "cc");           \
    put16(c, RAX, (u16)keep);                                                                                                    \
    set_flags(c, raw);                                                                                                           \
  }
DEFINE_MUL8(mul, "mulb")
DEFINE_MUL8(imul, "imulb")

static int mul(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 b;
  int r = operand(c, i, &b);
  if (r) return r;
  switch (i->opsize) {
  case 1: mul8(c, (u8)b); break;
  case 2: mul16(c, (u16)b); break;
  case 4: mul32(c, (u32)b); break;
  default: mul64(c, b);
  }
  return X86_OK;
}
static int imul1(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 b;
  int r = operand(c, i, &b);
  if (r) return r;
  switch (i->opsize) {
  case 1: imul8(c, (u8)b); break;
  case 2: imul16(c, (u16)b); break;
  case 4: imul32(c, (u32)b); break;
  default: imul64(c, b);
  }
  return X86_OK;
}

#define DEFINE_IMUL2(bits)                                                                                                       \
  static u64 imul2_##bits(struct x86_vcpu *c, u##bits a, u##bits b) {                                                            \
    u32 raw;                                                                                                                     \
    __asm__("imul %[y], %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(raw) : [y] "r"(b) : "cc");                                       \
    set_flags(c, raw);                                                                                                           \
    return a;                                                                                                                    \
  }
DEFINE_IMUL2(16) DEFINE_IMUL2(32) DEFINE_IMUL2(64)

/* Two and three operands: i->reg is the destination; i->sub: the second factor is the immediate, else the destination. */
static int imul2(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 b, a;
  int r = operand(c, i, &b);
  if (r) return r;
  a = i->sub ? i->imm : get_size(c, i->reg, i->opsize);
  u64 v = i->opsize == 8 ? imul2_64(c, a, b) : i->opsize == 4 ? imul2_32(c, (u32)a, (u32)b) : imul2_16(c, (u16)a, (u16)b);
  put_size(c, i->reg, i->opsize, v);
  return X86_OK;
}

static void source(const struct x86_decoded *d, struct x86_insn *i, unsigned n) {
  i->opsize = (u8)(d->ops[n].size / 8);
  if (d->ops[n].type == ZYDIS_OPERAND_TYPE_REGISTER) i->rm = (u8)x86_reg_number(d->ops[n].reg.value);
}
static x86_exec_fn *select_mul(const struct x86_decoded *d, struct x86_insn *i) { return source(d, i, 0), mul; }
static x86_exec_fn *select_imul(const struct x86_decoded *d, struct x86_insn *i) {
  if (d->insn.operand_count_visible < 2) return source(d, i, 0), imul1;
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  source(d, i, 1);
  i->opsize = (u8)(d->ops[0].size / 8);
  i->sub = d->insn.operand_count_visible == 3;
  return imul2;
}

/* Flags after a division are undefined (SDM Vol. 2A DIV); processors leave them as they were or not: they are kept. */
static int divide_u(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 b;
  int r = operand(c, i, &b);
  if (r) return r;
  unsigned bits = i->opsize * 8;
  u128 a = i->opsize == 1 ? (u128)get16(c, RAX) : ((u128)get_size(c, RDX, i->opsize) << bits) | get_size(c, RAX, i->opsize);
  if (!b || (u64)(a >> bits) >= b) return x86_fault(c, VEC_DE);
  u64 q, m;
  if (i->opsize == 8) {
    __asm__("divq %[y]" : "=a"(q), "=d"(m) : "0"((u64)a), "1"((u64)(a >> 64)), [y] "r"(b) : "cc");
  } else {
    q = (u64)a / b;
    m = (u64)a % b;
  }
  if (i->opsize == 1) {
    put16(c, RAX, (u16)(q | m << 8));
  } else {
    put_size(c, RAX, i->opsize, q);
    put_size(c, RDX, i->opsize, m);
  }
  return X86_OK;
}

static s128 sign_extend(u128 v, unsigned bits) { return (s128)(v << (128 - bits)) >> (128 - bits); }

static int divide_s(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 raw;
  int r = operand(c, i, &raw);
  if (r) return r;
  unsigned bits = i->opsize * 8;
  s128 b = sign_extend(raw, bits);
  u128 ua = i->opsize == 1 ? (u128)get16(c, RAX) : ((u128)get_size(c, RDX, i->opsize) << bits) | get_size(c, RAX, i->opsize);
  s128 a = sign_extend(ua, 2 * bits);
  if (!b) return x86_fault(c, VEC_DE);
  if (b == -1 && a == (s128)((u128)1 << 127)) return x86_fault(c, VEC_DE);
  s128 q = a / b, m = a % b;
  if (q != sign_extend((u128)q, bits)) return x86_fault(c, VEC_DE);
  if (i->opsize == 1) {
    put16(c, RAX, (u16)((u8)q | (u16)((u8)m << 8)));
  } else {
    put_size(c, RAX, i->opsize, (u64)q);
    put_size(c, RDX, i->opsize, (u64)m);
  }
  return X86_OK;
}
static x86_exec_fn *select_div(const struct x86_decoded *d, struct x86_insn *i) { return source(d, i, 0), divide_u; }
static x86_exec_fn *select_idiv(const struct x86_decoded *d, struct x86_insn *i) { return source(d, i, 0), divide_s; }

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_MUL, select_mul}, {ZYDIS_MNEMONIC_IMUL, select_imul}, {ZYDIS_MNEMONIC_DIV, select_div}, {ZYDIS_MNEMONIC_IDIV, select_idiv},
};
const struct x86_op_family x86_family_muldiv = {"muldiv", rows, ARRAY_SIZE(rows)};
