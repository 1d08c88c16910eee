/* Random extended states and operands: the corners of every floating-point format, plain numbers and noise. */
#include <string.h>
#include "diff.h"
#include "x86/regs.h"

static u64 pick(const u64 *from, unsigned n) {
  return from[rnd_below(n)];
}
#define PICK(table) pick(table, ARRAY_SIZE(table))

static u64 half(void) {
  static const u64 corners[] = {0,      0x8000, 1,      0x3ff,  0x400,  0x3c00, 0xbc00, 0x7bff,
                                0x7c00, 0xfc00, 0x7c01, 0x7e00, 0xfe00, 0x3555, 0x4000, 0x5bff};
  return rnd_chance(60) ? PICK(corners) : (u16)rnd();
}

static u64 single(void) {
  static const u64 corners[] = {0,          0x80000000, 1,          0x80000001, 0x7fffff,   0x800000,   0x3f800000,
                                0xbf800000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0x7fc00000,
                                0xffc00000, 0x3f000000, 0x3fc00000, 0x40200000, 0x4b000000, 0x4effffff, 0x4f000000,
                                0xcf000000, 0x4f800000, 0x5f000000, 0x33800000, 0x3eaaaaab, 0x40490fdb};
  switch (rnd_below(4)) {
  case 0:
    return PICK(corners);
  case 1:
    return (u32)rnd();
  case 2:
    return (u32)((rnd() & 0x80ffffff) | 0x3f000000); /* near one */
  default: {
    float f = (float)(s32)((s32)rnd() >> rnd_below(31));
    u32 v;
    memcpy(&v, &f, 4);
    return v;
  }
  }
}

static u64 dbl(void) {
  static const u64 corners[] = {0,
                                1ull << 63,
                                1,
                                0xfffffffffffffull,
                                0x10000000000000ull,
                                0x3ff0000000000000ull,
                                0xbff0000000000000ull,
                                0x7fefffffffffffffull,
                                0xffefffffffffffffull,
                                0x7ff0000000000000ull,
                                0xfff0000000000000ull,
                                0x7ff0000000000001ull,
                                0x7ff8000000000000ull,
                                0xfff8000000000000ull,
                                0x3fe0000000000000ull,
                                0x4004000000000000ull,
                                0x41dfffffffc00000ull,
                                0x41e0000000000000ull,
                                0xc1e0000000000000ull,
                                0x43e0000000000000ull,
                                0xc3e0000000000000ull,
                                0x4330000000000000ull,
                                0x3690000000000000ull,
                                0x36a0000000000000ull,
                                0x47efffffe0000000ull,
                                0x47f0000000000000ull,
                                0x400921fb54442d18ull,
                                0x3810000000000000ull};
  switch (rnd_below(4)) {
  case 0:
    return PICK(corners);
  case 1:
    return rnd();
  case 2:
    return (rnd() & 0x801fffffffffffffull) | 0x3fe0000000000000ull;
  default: {
    double d = (double)((s64)rnd() >> rnd_below(63));
    u64 v;
    memcpy(&v, &d, 8);
    return v;
  }
  }
}

static u64 integer(void) {
  static const u64 corners[] = {
      0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 1ull << 63, ~0ull};
  return rnd_chance(50) ? PICK(corners) : rnd();
}

/* size bytes, elements of one kind. */
void ext_fill(u8 *p, unsigned size) {
  unsigned kind = rnd_below(5), step = kind == 0 ? 2 : kind == 1 ? 4 : 8;
  bool same = rnd_chance(10);
  u64 v = 0;
  for (unsigned n = 0; n < size; n += step) {
    if (!same || !n) v = kind == 0 ? half() : kind == 1 ? single() : kind == 2 ? dbl() : kind == 3 ? integer() : rnd();
    memcpy(p + n, &v, size - n < step ? size - n : step);
  }
}

/* An 80-bit value: also those that only exist there (SDM Vol. 1, 8.2.2). */
static void extended(u8 *p) {
  static const u64 significands[] = {0,
                                     1,
                                     1ull << 63,
                                     1ull << 62,
                                     0xc000000000000000ull,
                                     ~0ull,
                                     0x8000000000000001ull,
                                     0x7fffffffffffffffull,
                                     0xaaaaaaaaaaaaaaabull,
                                     0xc90fdaa22168c235ull,
                                     0xfffffffffffff800ull,
                                     0xfffffffffffffc00ull,
                                     0xffffff7fffffffffull};
  static const u64 exponents[] = {0,      0,      1,      0x3fff, 0x3fff, 0x3ffe, 0x4000, 0x7fff, 0x7ffe, 0x403e, 0x401e,
                                  0x400d, 0x3c01, 0x3c00, 0x43fe, 0x43ff, 0x3f81, 0x3f80, 0x407e, 0x407f, 0x4001};
  u64 m = rnd_chance(40) ? PICK(significands) : rnd() | (rnd_chance(90) ? 1ull << 63 : 0);
  u64 e = rnd_chance(50) ? PICK(exponents) : rnd_chance(60) ? 0x3fff - 40 + rnd_below(110) : rnd() & 0x7fff;
  if (rnd_chance(20)) m = m >> 63 << 63 | (m & (~0ull << rnd_below(63))); /* few digits: exact results */
  u16 se = (u16)(e | (rnd_chance(50) ? 0x8000 : 0));
  memcpy(p, &m, 8);
  memcpy(p + 8, &se, 2);
  memset(p + 10, 0, 6);
}

static void put16(u8 *p, u64 v) {
  u16 x = (u16)v;
  memcpy(p, &x, 2);
}

static u32 random_mxcsr(void) {
  u32 v = (u32)(rnd() & 0x3f) & (rnd_chance(70) ? 0 : ~0u);
  v |= rnd_chance(65) ? 0x1f80 : (u32)rnd() & 0x1f80;
  if (rnd_chance(30)) v |= (u32)rnd() & 0x6000;
  if (rnd_chance(15)) v |= 0x8000;
  if (rnd_chance(15)) v |= 0x40;
  return v;
}

/* ES and B follow from the flags and masks (SDM Vol. 1, 8.1.3.3). */
static void random_x87(u8 *x, unsigned mode) {
  u16 fcw = (u16)(0x40 | (rnd_chance(70) ? 0x3f : rnd() & 0x3f) | (rnd_chance(60) ? 0x300 : rnd() & 0x300) |
                  (rnd_chance(60) ? 0 : rnd() & 0xc00));
  u16 fsw = (u16)((rnd() & 0x4700) | (rnd_below(8) << 11) | (rnd_chance(85) ? 0 : rnd() & 0x7f));
  if (fsw & ~fcw & 0x3f) fsw |= 0x8080;
  put16(x, fcw);
  put16(x + 2, fsw);
  x[4] = rnd_chance(60) ? 0xff : rnd_chance(30) ? 0 : (u8)rnd();
  put16(x + 6, rnd() & 0x7ff);
  u64 ip = rnd() & 0xffffffff, dp = rnd() & 0xffffffff;
  if (mode == 64 && rnd_chance(50)) ip |= 0x7f0000000000, dp |= 0x7f0000000000;
  memcpy(x + 8, &ip, 8);
  memcpy(x + 16, &dp, 8);
  for (unsigned n = 0; n < 8; n++) extended(x + 32 + 16 * n);
}

static void random_xsave(u8 *x, unsigned mode) {
  u64 bv = rnd_chance(80) ? 0xe7 : rnd() & 0xe7;
  if ((bv & 4) && !(bv & 2)) bv |= 2;
  memset(x, 0, DIFF_XSAVE_SIZE);
  random_x87(x, mode);
  u32 mxcsr = random_mxcsr();
  memcpy(x + 24, &mxcsr, 4);
  u32 mask = 0xffff;
  memcpy(x + 28, &mask, 4);
  for (unsigned n = 0; n < (mode == 64 ? 16u : 8u); n++) {
    ext_fill(x + 160 + 16 * n, 16);
    ext_fill(x + 576 + 16 * n, 16);
    ext_fill(x + 1152 + 32 * n, 32);
    if (mode == 64) ext_fill(x + 1664 + 64 * n, 64);
  }
  for (unsigned n = 0; n < 8; n++) {
    u64 k = rnd_chance(30) ? 0 : rnd_chance(30) ? ~0ull : rnd();
    memcpy(x + 1088 + 8 * n, &k, 8);
  }
  memcpy(x + 512, &bv, 8);
}

/* The index vector of a gather or scatter: near and mostly positive, with some far away. */
static void random_index(struct diff_case *k, const ZydisDecodedOperand *op) {
  unsigned r = (unsigned)ZydisRegisterGetId(op->mem.index);
  bool wide = rnd_chance(50);
  u8 v[64];
  for (unsigned n = 0; n < 64; n += wide ? 8 : 4) {
    s64 i = rnd_chance(97) ? (s64)rnd_below(300) - 100 : (s64)rnd();
    memcpy(v + n, &i, wide ? 8 : 4);
  }
  if (r < 16) {
    memcpy(k->in.xsave + 160 + 16 * r, v, 16);
    memcpy(k->in.xsave + 576 + 16 * r, v + 16, 16);
    memcpy(k->in.xsave + 1152 + 32 * r, v + 32, 32);
  } else {
    memcpy(k->in.xsave + 1664 + 64 * (r - 16), v, 64);
  }
}

/* Lengths of PCMPESTRx, and the bits XSAVE takes of EDX:EAX: only what both sides know. */
static void set_general(struct diff_case *k) {
  u64 *g = k->in.gpr;
  const char *family = ext_family(&k->insn);
  if (k->insn.mnemonic == ZYDIS_MNEMONIC_PCMPESTRI || k->insn.mnemonic == ZYDIS_MNEMONIC_PCMPESTRM ||
      k->insn.mnemonic == ZYDIS_MNEMONIC_VPCMPESTRI || k->insn.mnemonic == ZYDIS_MNEMONIC_VPCMPESTRM) {
    if (rnd_chance(80)) g[RAX] = rnd_below(40) - 20ull, g[RDX] = rnd_below(40) - 20ull;
  }
  if (family && !strcmp(family, "xsave")) g[RAX] = rnd_chance(40) ? 0xe7 : g[RAX] & 0xe7, g[RDX] = 0;
}

static void random_image(struct diff_case *k, u8 *x, unsigned *size) {
  random_xsave(x, k->mode);
  *size = 2688;
  if (k->insn.mnemonic == ZYDIS_MNEMONIC_XRSTOR || k->insn.mnemonic == ZYDIS_MNEMONIC_XRSTOR64) {
    unsigned reserved = rnd_below(64);
    bool others = (reserved & 7) == 1 || (reserved & 7) == 2; /* of XSTATE_BV and XCOMP_BV: components that the host may have and guests have not, or the other way round */
    if (rnd_chance(10) && (reserved > 15 || !others)) x[512 + reserved] ^= (u8)(1u << rnd_below(8));
    if (rnd_chance(15)) x[527] |= 0x80, x[520] = x[512];                    /* a compacted image */
  } else {
    *size = 512;
  }
  if (rnd_chance(5)) x[24 + rnd_below(4)] ^= (u8)(1u << rnd_below(8));
}

/* Environments and states of FLDENV and FRSTOR: control, status and tag words in their 16- or 32-bit places. */
static void random_environment(struct diff_case *k, u8 *x, unsigned *size) {
  u8 state[160];
  bool wide = k->insn.operand_width == 32 || k->insn.operand_width == 64;
  unsigned step = wide ? 4 : 2, head = 7 * step;
  for (unsigned n = 0; n < 108; n++) x[n] = (u8)rnd();
  random_x87(state, k->mode);
  memcpy(x, state, 2);
  memcpy(x + step, state + 2, 2);
  if (rnd_chance(50)) put16(x + 2 * step, rnd_chance(50) ? 0 : 0xffff);
  for (unsigned n = 0; n < 8; n++) memcpy(x + head + 10 * n, state + 32 + 16 * n, 10);
  *size = head + (k->insn.mnemonic == ZYDIS_MNEMONIC_FRSTOR ? 80 : 0);
}

/* What lies at a memory operand. */
static void fill_operand(struct diff_case *k, u64 at, unsigned size) {
  static u8 x[DIFF_XSAVE_SIZE] __attribute__((aligned(64)));
  switch (k->insn.mnemonic) {
  case ZYDIS_MNEMONIC_XRSTOR:
  case ZYDIS_MNEMONIC_XRSTOR64:
  case ZYDIS_MNEMONIC_FXRSTOR:
  case ZYDIS_MNEMONIC_FXRSTOR64:
    random_image(k, x, &size);
    break;
  case ZYDIS_MNEMONIC_FLDENV:
  case ZYDIS_MNEMONIC_FRSTOR:
    random_environment(k, x, &size);
    break;
  case ZYDIS_MNEMONIC_LDMXCSR:
  case ZYDIS_MNEMONIC_VLDMXCSR: {
    u32 v = rnd_chance(90) ? random_mxcsr() : (u32)rnd();
    memcpy(x, &v, 4);
    break;
  }
  case ZYDIS_MNEMONIC_FBLD:
    for (unsigned n = 0; n < 10; n++) x[n] = (u8)(rnd_below(10) << 4 | rnd_below(10));
    if (rnd_chance(80)) x[9] &= 0x80;
    break;
  default:
    if (k->insn.meta.isa_ext == ZYDIS_ISA_EXT_X87 && size == 10)
      extended(x);
    else
      ext_fill(x, size > 64 ? 64 : size);
    if (size > 64) size = 64;
  }
  gen_poke(at, x, size);
}

void ext_randomise(struct diff_case *k, const ZydisDecodedOperand *mem, u64 at) {
  random_xsave(k->in.xsave, k->mode);
  set_general(k);
  if (!mem) return;
  if (mem->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
    random_index(k, mem);
  else if (at && rnd_chance(90))
    fill_operand(k, at, mem->size / 8);
}
