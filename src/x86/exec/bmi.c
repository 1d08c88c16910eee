/* BMI1, BMI2, ADX, CRC32. */
#include "x86/exec/exec.h"

/* BMI with a destination, r/m and (for some) a VEX register: i->reg, operand(), i->vvvv. */
#define DEFINE_BMI(name, bits, ins)                                                                                              \
  static u64 name##bits(struct x86_vcpu *c, u##bits a, u##bits b) {                                                              \
    u##bits dst = 0;                                                                                                             \
    u32 raw;                                                                                                                     \
    __asm__(ins CATCH_FLAGS : [x] "=&r"(dst), "=&a"(raw) : [a] "r"(a), [b] "r"(b) : "cc");                                       \
    set_flags(c, raw);                                                                                                           \
    return dst;                                                                                                                  \
  }
#define BMI(name, ins)                                                                                                           \
  DEFINE_BMI(name, 32, ins) DEFINE_BMI(name, 64, ins)                                                                            \
  static int name(struct x86_vcpu *c, const struct x86_insn *i) {                                                                \
    u64 m;                                                                                                                       \
    int r = x86_operand(c, i, &m);                                                                                                   \
    if (r) return r;                                                                                                             \
    u64 v = get_size(c, i->vvvv, i->opsize);                                                                                     \
    put_size(c, i->reg, i->opsize, i->opsize == 8 ? name##64(c, m, v) : name##32(c, (u32)m, (u32)v));                            \
    return X86_OK;                                                                                                               \
  }
/* a: r/m operand, b: the VEX register (AT&T order: sources reversed). */
BMI(andn, "andn %[a], %[b], %[x]")
BMI(bextr, "bextr %[b], %[a], %[x]")
BMI(bzhi, "bzhi %[b], %[a], %[x]")
BMI(blsi, "blsi %[a], %[x]")
BMI(blsr, "blsr %[a], %[x]")
BMI(blsmsk, "blsmsk %[a], %[x]")
#define NOFLAGS(name, ins)                                                                                                       \
  static int name(struct x86_vcpu *c, const struct x86_insn *i) {                                                                \
    u64 m, x;                                                                                                                    \
    int r = x86_operand(c, i, &m);                                                                                                   \
    if (r) return r;                                                                                                             \
    u64 v = get_size(c, i->vvvv, i->opsize);                                                                                     \
    if (i->opsize == 8) {                                                                                                        \
      __asm__(ins : [x] "=r"(x) : [a] "r"(m), [b] "r"(v));                                                                       \
    } else {                                                                                                                     \
      u32 x32;                                                                                                                   \
      __asm__(ins : [x] "=r"(x32) : [a] "r"((u32)m), [b] "r"((u32)v));                                                           \
      x = x32;                                                                                                                   \
    }                                                                                                                            \
    put_size(c, i->reg, i->opsize, x);                                                                                           \
    return X86_OK;                                                                                                               \
  }
NOFLAGS(shlx, "shlx %[b], %[a], %[x]")
NOFLAGS(shrx, "shrx %[b], %[a], %[x]")
NOFLAGS(sarx, "sarx %[b], %[a], %[x]")
NOFLAGS(pdep, "pdep %[a], %[b], %[x]")
NOFLAGS(pext, "pext %[a], %[b], %[x]")

static int rorx(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 m;
  int r = x86_operand(c, i, &m);
  if (r) return r;
  unsigned bits = i->opsize * 8, n = (unsigned)i->imm & (bits - 1);
  put_size(c, i->reg, i->opsize, n ? m >> n | m << (bits - n) : m);
  return X86_OK;
}
/* MULX: RDX * r/m to i->reg (high) and i->vvvv (low); the high half wins where both are one register. */
static int mulx(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 m;
  int r = x86_operand(c, i, &m);
  if (r) return r;
  unsigned __int128 p = (unsigned __int128)get_size(c, RDX, i->opsize) * m;
  put_size(c, i->vvvv, i->opsize, (u64)p);
  put_size(c, i->reg, i->opsize, (u64)(p >> (i->opsize * 8)));
  return X86_OK;
}

/* Operand 0 destination, 1 and 2 in the order of the instruction. */
static x86_exec_fn *three(const struct x86_decoded *d, struct x86_insn *i, unsigned rm, unsigned vex, x86_exec_fn *fn) {
  i->opsize = (u8)(d->ops[0].size / 8);
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  if (d->ops[rm].type == ZYDIS_OPERAND_TYPE_REGISTER) i->rm = (u8)x86_reg_number(d->ops[rm].reg.value);
  i->vvvv = (u8)x86_reg_number(d->ops[vex].reg.value);
  return fn;
}
#define RM1(name) static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) { return three(d, i, 1, 2, name); }
#define RM2(name) static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) { return three(d, i, 2, 1, name); }
RM2(andn) RM1(bextr) RM1(bzhi) RM1(shlx) RM1(shrx) RM1(sarx) RM2(pdep) RM2(pext) RM2(mulx)
/* BLSI and friends: the destination is the VEX register. */
#define BLS(name)                                                                                                                \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    x86_dest_source(d, i);                                                                                                           \
    i->vvvv = i->reg;                                                                                                            \
    return name;                                                                                                                 \
  }
BLS(blsi) BLS(blsr) BLS(blsmsk)
static x86_exec_fn *select_rorx(const struct x86_decoded *d, struct x86_insn *i) { return x86_dest_source(d, i), rorx; }

/* ADCX, ADOX: add with CF or OF alone. */
static int adx(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 m;
  int r = x86_operand(c, i, &m);
  if (r) return r;
  u64 flag = i->sub ? FL_OF : FL_CF;
  unsigned __int128 sum = (unsigned __int128)get_size(c, i->reg, i->opsize) + m + !!(c->rflags & flag);
  put_size(c, i->reg, i->opsize, (u64)sum);
  c->rflags = (c->rflags & ~flag) | ((sum >> (i->opsize * 8)) & 1 ? flag : 0);
  return X86_OK;
}
static x86_exec_fn *select_adx(const struct x86_decoded *d, struct x86_insn *i) {
  i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_ADOX;
  return x86_dest_source(d, i), adx;
}

static int crc32(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  u64 crc = (u32)c->regs[i->reg];
  int r = x86_operand(c, i, &v);
  if (r) return r;
  switch (i->opsize) {
  case 1: __asm__("crc32b %b1, %q0" : "+r"(crc) : "r"(v)); break;
  case 2: __asm__("crc32w %w1, %k0" : "+r"(crc) : "r"(v)); break;
  case 4: __asm__("crc32l %k1, %k0" : "+r"(crc) : "r"(v)); break;
  default: __asm__("crc32q %1, %0" : "+r"(crc) : "r"(v));
  }
  c->regs[i->reg] = (u32)crc;
  return X86_OK;
}
static x86_exec_fn *select_crc32(const struct x86_decoded *d, struct x86_insn *i) {
  x86_dest_source(d, i);
  i->opsize = (u8)(d->ops[1].size / 8);
  return crc32;
}

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_ANDN, select_andn}, {ZYDIS_MNEMONIC_BEXTR, select_bextr}, {ZYDIS_MNEMONIC_BZHI, select_bzhi},     {ZYDIS_MNEMONIC_BLSI, select_blsi},
    {ZYDIS_MNEMONIC_BLSR, select_blsr}, {ZYDIS_MNEMONIC_BLSMSK, select_blsmsk}, {ZYDIS_MNEMONIC_SHLX, select_shlx},   {ZYDIS_MNEMONIC_SHRX, select_shrx},
    {ZYDIS_MNEMONIC_SARX, select_sarx}, {ZYDIS_MNEMONIC_PDEP, select_pdep},   {ZYDIS_MNEMONIC_PEXT, select_pext},     {ZYDIS_MNEMONIC_RORX, select_rorx},
    {ZYDIS_MNEMONIC_MULX, select_mulx}, {ZYDIS_MNEMONIC_ADCX, select_adx},    {ZYDIS_MNEMONIC_ADOX, select_adx},      {ZYDIS_MNEMONIC_CRC32, select_crc32},
};
const struct x86_op_family x86_family_bmi = {"bmi", rows, ARRAY_SIZE(rows)};
