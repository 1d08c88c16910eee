/* Bit tests, scans, counts, BMI1, BMI2, ADX, CRC32. */
#include "x86/exec/exec.h"

static int operand(struct x86_vcpu *c, const struct x86_insn *i, u64 *v) {
  if (!(i->iflags & X86_I_MEM)) {
    *v = get_size(c, i->rm, i->opsize);
    return X86_OK;
  }
  return load_size(c, i->seg, x86_ea(c, i), i->opsize, v);
}

/* BT, BTS, BTR, BTC.  i->sub: 0-3; a register bit offset reaches beyond the operand in memory (SDM Vol. 2A BT).  CF is the bit; others stay. */
static u64 changed(u64 v, unsigned op, u64 bit) { return op == 1 ? v | bit : op == 2 ? v & ~bit : op == 3 ? v ^ bit : v; }
static void carry(struct x86_vcpu *c, bool cf) { c->rflags = (c->rflags & ~(u64)FL_CF) | cf; }

static int bt_reg(struct x86_vcpu *c, const struct x86_insn *i) {
  unsigned n = (unsigned)((i->vvvv ? i->imm : get_size(c, i->reg, i->opsize)) & (i->opsize * 8 - 1));
  u64 v = get_size(c, i->rm, i->opsize);
  if (i->sub) put_size(c, i->rm, i->opsize, changed(v, i->sub, 1ull << n));
  carry(c, v >> n & 1);
  return X86_OK;
}
#define LOCKED_BIT(T, suffix, p, n, cf)                                                                                          \
  switch (i->sub) {                                                                                                              \
  case 1: __asm__ volatile("lock bts" suffix " %[n], %[m]\n\tsetc %[c]" : [m] "+m"(*(T *)(p)), [c] "=q"(cf) : [n] "r"((T)(n)) : "cc", "memory"); break; \
  case 2: __asm__ volatile("lock btr" suffix " %[n], %[m]\n\tsetc %[c]" : [m] "+m"(*(T *)(p)), [c] "=q"(cf) : [n] "r"((T)(n)) : "cc", "memory"); break; \
  default: __asm__ volatile("lock btc" suffix " %[n], %[m]\n\tsetc %[c]" : [m] "+m"(*(T *)(p)), [c] "=q"(cf) : [n] "r"((T)(n)) : "cc", "memory");      \
  }
static int bt_mem(struct x86_vcpu *c, const struct x86_insn *i) {
  unsigned bits = i->opsize * 8;
  u64 ea = x86_ea(c, i), n = i->imm;
  if (!i->vvvv) {
    s64 offset = i->opsize == 8 ? (s64)get64(c, i->reg) : i->opsize == 4 ? (s32)get32(c, i->reg) : (s16)get16(c, i->reg);
    ea = (ea + (u64)(offset >> __builtin_ctz(bits)) * i->opsize) & i->ea_mask;
    n = (u64)offset;
  }
  n &= bits - 1;
  if (!i->sub) {
    u64 v;
    int r = load_size(c, i->seg, ea, i->opsize, &v);
    if (!r) carry(c, v >> n & 1);
    return r;
  }
  void *p;
  bool lock = i->iflags & X86_I_LOCK, cf;
  int r = x86_rmw_begin(c, i->seg, ea, i->opsize, lock, &p);
  if (r) return r;
  if (lock) {
    if (i->opsize == 8) LOCKED_BIT(u64, "q", p, n, cf)
    else if (i->opsize == 4) LOCKED_BIT(u32, "l", p, n, cf)
    else LOCKED_BIT(u16, "w", p, n, cf)
  } else {
    u64 v = i->opsize == 8 ? *(x86_u64_unaligned *)p : i->opsize == 4 ? *(x86_u32_unaligned *)p : *(x86_u16_unaligned *)p;
    u64 w = changed(v, i->sub, 1ull << n);
    if (i->opsize == 8) *(x86_u64_unaligned *)p = w;
    else if (i->opsize == 4) *(x86_u32_unaligned *)p = (u32)w;
    else *(x86_u16_unaligned *)p = (u16)w;
    cf = v >> n & 1;
  }
  x86_rmw_end(c);
  carry(c, cf);
  return X86_OK;
}
static x86_exec_fn *select_bt(const struct x86_decoded *d, struct x86_insn *i) {
  enum x86_form f = x86_operands(d, i);
  i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_BT ? 0 : d->insn.mnemonic == ZYDIS_MNEMONIC_BTS ? 1 : d->insn.mnemonic == ZYDIS_MNEMONIC_BTR ? 2 : 3;
  i->vvvv = f == FORM_RI || f == FORM_MI; /* the offset is an immediate */
  return f == FORM_RR || f == FORM_RI ? bt_reg : bt_mem;
}

/* dst = op(src), flags from the host.  `dst` goes in too: BSF and BSR leave it alone for a zero source. */
#define DEFINE_SCAN(name, bits, ins)                                                                                             \
  static u64 name##bits(struct x86_vcpu *c, u##bits dst, u##bits src) {                                                          \
    u32 raw;                                                                                                                     \
    __asm__(ins " %[y], %[x]" CATCH_FLAGS : [x] "+&r"(dst), "=&a"(raw) : [y] "r"(src) : "cc");                                   \
    set_flags(c, raw);                                                                                                           \
    return dst;                                                                                                                  \
  }
#define SCAN(name, ins)                                                                                                          \
  DEFINE_SCAN(name, 16, ins) DEFINE_SCAN(name, 32, ins) DEFINE_SCAN(name, 64, ins)                                               \
  static int name(struct x86_vcpu *c, const struct x86_insn *i) {                                                                \
    u64 v;                                                                                                                       \
    int r = operand(c, i, &v);                                                                                                   \
    if (r) return r;                                                                                                             \
    u64 dst = get_size(c, i->reg, i->opsize);                                                                                    \
    u64 res = i->opsize == 8 ? name##64(c, dst, v) : i->opsize == 4 ? name##32(c, (u32)dst, (u32)v) : name##16(c, (u16)dst, (u16)v); \
    put_size(c, i->reg, i->opsize, res);                                                                                         \
    return X86_OK;                                                                                                               \
  }
SCAN(tzcnt, "tzcnt") SCAN(lzcnt, "lzcnt") SCAN(popcnt, "popcnt")
#define DEFINE_BS(name)                                                                                                          \
  DEFINE_SCAN(name, 16, #name) DEFINE_SCAN(name, 32, #name) DEFINE_SCAN(name, 64, #name)                                         \
  static int name(struct x86_vcpu *c, const struct x86_insn *i) {                                                                \
    u64 v;                                                                                                                       \
    int r = operand(c, i, &v);                                                                                                   \
    if (r) return r;                                                                                                             \
    u64 dst = get_size(c, i->reg, i->opsize);                                                                                    \
    u64 res = i->opsize == 8 ? name##64(c, dst, v) : i->opsize == 4 ? name##32(c, (u32)dst, (u32)v) : name##16(c, (u16)dst, (u16)v); \
    if (v || i->opsize == 8) put_size(c, i->reg, i->opsize, v ? res : dst); /* zero source: all 64 bits stay, as processors do */ \
    return X86_OK;                                                                                                               \
  }
DEFINE_BS(bsf) DEFINE_BS(bsr)

static void dest_source(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = (u8)(d->ops[0].size / 8);
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  if (d->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER) i->rm = (u8)x86_reg_number(d->ops[1].reg.value);
}
#define SELECT2(name) static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) { return dest_source(d, i), name; }
SELECT2(tzcnt) SELECT2(lzcnt) SELECT2(popcnt) SELECT2(bsf) SELECT2(bsr)

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
    int r = operand(c, i, &m);                                                                                                   \
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
    int r = operand(c, i, &m);                                                                                                   \
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
  int r = operand(c, i, &m);
  if (r) return r;
  unsigned bits = i->opsize * 8, n = (unsigned)i->imm & (bits - 1);
  put_size(c, i->reg, i->opsize, n ? m >> n | m << (bits - n) : m);
  return X86_OK;
}
/* MULX: RDX * r/m to i->reg (high) and i->vvvv (low); the high half wins where both are one register. */
static int mulx(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 m;
  int r = operand(c, i, &m);
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
    dest_source(d, i);                                                                                                           \
    i->vvvv = i->reg;                                                                                                            \
    return name;                                                                                                                 \
  }
BLS(blsi) BLS(blsr) BLS(blsmsk)
static x86_exec_fn *select_rorx(const struct x86_decoded *d, struct x86_insn *i) { return dest_source(d, i), rorx; }

/* ADCX, ADOX: add with CF or OF alone. */
static int adx(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 m;
  int r = operand(c, i, &m);
  if (r) return r;
  u64 flag = i->sub ? FL_OF : FL_CF;
  unsigned __int128 sum = (unsigned __int128)get_size(c, i->reg, i->opsize) + m + !!(c->rflags & flag);
  put_size(c, i->reg, i->opsize, (u64)sum);
  c->rflags = (c->rflags & ~flag) | ((sum >> (i->opsize * 8)) & 1 ? flag : 0);
  return X86_OK;
}
static x86_exec_fn *select_adx(const struct x86_decoded *d, struct x86_insn *i) {
  i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_ADOX;
  return dest_source(d, i), adx;
}

static int crc32(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  u64 crc = (u32)c->regs[i->reg];
  int r = operand(c, i, &v);
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
  dest_source(d, i);
  i->opsize = (u8)(d->ops[1].size / 8);
  return crc32;
}

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_BT, select_bt},         {ZYDIS_MNEMONIC_BTS, select_bt},       {ZYDIS_MNEMONIC_BTR, select_bt},     {ZYDIS_MNEMONIC_BTC, select_bt},
    {ZYDIS_MNEMONIC_BSF, select_bsf},       {ZYDIS_MNEMONIC_BSR, select_bsr},      {ZYDIS_MNEMONIC_TZCNT, select_tzcnt}, {ZYDIS_MNEMONIC_LZCNT, select_lzcnt},
    {ZYDIS_MNEMONIC_POPCNT, select_popcnt}, {ZYDIS_MNEMONIC_ANDN, select_andn},    {ZYDIS_MNEMONIC_BEXTR, select_bextr}, {ZYDIS_MNEMONIC_BZHI, select_bzhi},
    {ZYDIS_MNEMONIC_BLSI, select_blsi},     {ZYDIS_MNEMONIC_BLSR, select_blsr},    {ZYDIS_MNEMONIC_BLSMSK, select_blsmsk}, {ZYDIS_MNEMONIC_SHLX, select_shlx},
    {ZYDIS_MNEMONIC_SHRX, select_shrx},     {ZYDIS_MNEMONIC_SARX, select_sarx},    {ZYDIS_MNEMONIC_PDEP, select_pdep},  {ZYDIS_MNEMONIC_PEXT, select_pext},
    {ZYDIS_MNEMONIC_RORX, select_rorx},     {ZYDIS_MNEMONIC_MULX, select_mulx},    {ZYDIS_MNEMONIC_ADCX, select_adx},   {ZYDIS_MNEMONIC_ADOX, select_adx},
    {ZYDIS_MNEMONIC_CRC32, select_crc32},
};
const struct x86_op_family x86_family_bits = {"bits", rows, ARRAY_SIZE(rows)};
