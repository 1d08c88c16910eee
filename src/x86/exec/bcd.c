/* Decimal adjustments: AAA, AAD, AAM, AAS, DAA, DAS (SDM Vol. 2A).  They do not exist in 64-bit mode, so the host cannot run them for us. */
#include "x86/exec/exec.h"

/* ZF, SF and PF of an 8-bit result, with CF, AF and OF as given. */
static void set_result_flags(struct x86_vcpu *c, u8 v, u64 others) {
  u64 f = others | (v ? 0 : FL_ZF) | (v & 0x80 ? FL_SF : 0) | (__builtin_parity(v) ? 0 : FL_PF);
  c->rflags = (c->rflags & ~(u64)FL_ARITH) | f;
}

static int daa(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 old = get8(c, 0), al = old;
  bool low = (old & 15) > 9 || (c->rflags & FL_AF), high = old > 0x99 || (c->rflags & FL_CF);
  if (low) al += 6;
  if (high) al += 0x60;
  put8(c, 0, al);
  set_result_flags(c, al, (low ? FL_AF : 0) | (high ? FL_CF : 0));
  return X86_OK;
}

static int das(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 old = get8(c, 0), al = old;
  bool low = (old & 15) > 9 || (c->rflags & FL_AF), high = old > 0x99 || (c->rflags & FL_CF);
  bool borrow = low && old < 6;
  if (low) al -= 6;
  if (high) al -= 0x60;
  put8(c, 0, al);
  set_result_flags(c, al, (low ? FL_AF : 0) | (high || borrow ? FL_CF : 0));
  return X86_OK;
}

/* AAA and AAS work on AX as a whole. */
static inline int ascii_adjust(struct x86_vcpu *c, int by) {
  u16 ax = get16(c, RAX);
  bool adjust = (ax & 15) > 9 || (c->rflags & FL_AF);
  if (adjust) ax = (u16)(ax + by);
  put16(c, RAX, ax & 0xff0f);
  set_result_flags(c, (u8)(ax & 15), adjust ? FL_AF | FL_CF : 0);
  return X86_OK;
}
static int aaa(struct x86_vcpu *c, const struct x86_insn *i) { return ascii_adjust(c, 0x106); }
static int aas(struct x86_vcpu *c, const struct x86_insn *i) { return ascii_adjust(c, -0x106); }

static int aam(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 al = get8(c, 0), base = (u8)i->imm;
  if (!base) return x86_fault(c, VEC_DE);
  put16(c, RAX, (u16)((al / base) << 8 | al % base));
  set_result_flags(c, al % base, 0);
  return X86_OK;
}

/* CF, AF and OF are undefined; processors leave those of the addition. */
static int aad(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 al = get8(c, 0), tens = (u8)(get8(c, 1) * (u8)i->imm);
  u32 raw;
  __asm__("add %[y], %[x]" CATCH_FLAGS : [x] "+&r"(al), "=&a"(raw) : [y] "r"(tens) : "cc");
  put16(c, RAX, al);
  set_flags(c, raw);
  return X86_OK;
}

#define PLAIN(fn) static x86_exec_fn *select_##fn(const struct x86_decoded *d, struct x86_insn *i) { return fn; }
PLAIN(daa) PLAIN(das) PLAIN(aaa) PLAIN(aas) PLAIN(aam) PLAIN(aad)

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_DAA, select_daa}, {ZYDIS_MNEMONIC_DAS, select_das}, {ZYDIS_MNEMONIC_AAA, select_aaa},
    {ZYDIS_MNEMONIC_AAS, select_aas}, {ZYDIS_MNEMONIC_AAM, select_aam}, {ZYDIS_MNEMONIC_AAD, select_aad},
};
const struct x86_op_family x86_family_bcd = {"bcd", rows, ARRAY_SIZE(rows)};
