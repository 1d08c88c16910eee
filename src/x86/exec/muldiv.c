/* MUL, IMUL, DIV, IDIV.  Quotients that do not fit are found out before the host divides. */
#include "x86/exec/exec.h"

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
  int r = x86_operand(c, i, &b);
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
  int r = x86_operand(c, i, &b);
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
  int r = x86_operand(c, i, &b);
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

/* Flags after a division are undefined (SDM Vol. 2A DIV, IDIV); Intel processors leave them alone, and so do we. */

/* hi:lo / b, hi < b. */
static inline u64 divide128(u64 hi, u64 lo, u64 b, u64 *rest) {
  u64 q;
  __asm__("divq %[y]" : "=a"(q), "=d"(*rest) : "0"(lo), "1"(hi), [y] "r"(b) : "cc");
  return q;
}

/* The dividend of 16, 32 or 64 bits for divisors of 1, 2 or 4 bytes. */
static inline u64 dividend(const struct x86_vcpu *c, unsigned opsize) {
  if (opsize == 1) return get16(c, RAX);
  return opsize == 2 ? (u64)get16(c, RDX) << 16 | get16(c, RAX) : (u64)get32(c, RDX) << 32 | get32(c, RAX);
}
static inline void put_quotient(struct x86_vcpu *c, unsigned opsize, u64 q, u64 rest) {
  if (opsize == 1) {
    put16(c, RAX, (u16)((u8)q | (u16)(u8)rest << 8));
  } else {
    put_size(c, RAX, opsize, q);
    put_size(c, RDX, opsize, rest);
  }
}

static int divide_u(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 b, q, rest;
  int r = x86_operand(c, i, &b);
  if (r) return r;
  if (i->opsize == 8) {
    if (c->regs[RDX] >= b) return x86_fault(c, VEC_DE); /* also for b = 0 */
    q = divide128(c->regs[RDX], c->regs[RAX], b, &rest);
  } else {
    u64 a = dividend(c, i->opsize);
    if (a >> (8 * i->opsize) >= b) return x86_fault(c, VEC_DE);
    q = a / b;
    rest = a % b;
  }
  put_quotient(c, i->opsize, q, rest);
  return X86_OK;
}

static inline s64 sign_extend(u64 v, unsigned bits) { return (s64)(v << (64 - bits)) >> (64 - bits); }

/* 128 by 64 bits, on magnitudes; false: the quotient does not fit. */
static bool divide_s128(u64 hi, u64 lo, s64 b, u64 *q, u64 *rest) {
  bool negative = (s64)hi < 0, negative_q = negative != (b < 0);
  u64 magnitude = b < 0 ? 0 - (u64)b : (u64)b;
  if (negative) {
    lo = 0 - lo;
    hi = ~hi + (lo == 0);
  }
  if (hi >= magnitude) return false; /* also for b = 0 */
  u64 uq = divide128(hi, lo, magnitude, rest);
  if (uq > (1ull << 63) - !negative_q) return false;
  *q = negative_q ? 0 - uq : uq;
  if (negative) *rest = 0 - *rest;
  return true;
}

static int divide_s(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 raw, q, rest;
  int r = x86_operand(c, i, &raw);
  if (r) return r;
  if (i->opsize == 8) {
    if (!divide_s128(c->regs[RDX], c->regs[RAX], (s64)raw, &q, &rest)) return x86_fault(c, VEC_DE);
  } else {
    unsigned bits = 8 * i->opsize;
    s64 b = sign_extend(raw, bits), a = sign_extend(dividend(c, i->opsize), 2 * bits);
    if (!b || (b == -1 && a == INT64_MIN)) return x86_fault(c, VEC_DE);
    q = (u64)(a / b);
    rest = (u64)(a % b);
    if ((s64)q != sign_extend(q, bits)) return x86_fault(c, VEC_DE);
  }
  put_quotient(c, i->opsize, q, rest);
  return X86_OK;
}
static x86_exec_fn *select_div(const struct x86_decoded *d, struct x86_insn *i) { return source(d, i, 0), divide_u; }
static x86_exec_fn *select_idiv(const struct x86_decoded *d, struct x86_insn *i) { return source(d, i, 0), divide_s; }

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_MUL, select_mul}, {ZYDIS_MNEMONIC_IMUL, select_imul}, {ZYDIS_MNEMONIC_DIV, select_div}, {ZYDIS_MNEMONIC_IDIV, select_idiv},
};
const struct x86_op_family x86_family_muldiv = {"muldiv", rows, ARRAY_SIZE(rows)};
