/* Bit tests, scans and counts. */
#include "x86/exec/exec.h"

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
  default: __asm__ volatile("lock btc" suffix " %[n], %[m]\n\tsetc %[c]" : [m] "+m"(*(T *)(p)), [c] "=q"(cf) : [n] "r"((T)(n)) : "cc", "memory"); \
  }
/* Returns the old value. */
GUEST_ACCESS static u64 change_unlocked(void *p, unsigned size, unsigned how, u64 bit) {
  u64 v = size == 8 ? *(x86_u64_unaligned *)p : size == 4 ? *(x86_u32_unaligned *)p : *(x86_u16_unaligned *)p;
  u64 w = changed(v, how, bit);
  if (size == 8) *(x86_u64_unaligned *)p = w;
  else if (size == 4) *(x86_u32_unaligned *)p = (u32)w;
  else *(x86_u16_unaligned *)p = (u16)w;
  return v;
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
    if (i->opsize == 8) LOCKED_BIT(x86_u64_unaligned, "q", p, n, cf)
    else if (i->opsize == 4) LOCKED_BIT(x86_u32_unaligned, "l", p, n, cf)
    else LOCKED_BIT(x86_u16_unaligned, "w", p, n, cf)
  } else {
    cf = change_unlocked(p, i->opsize, i->sub, 1ull << n) >> n & 1;
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
    int r = x86_operand(c, i, &v);                                                                                                   \
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
    int r = x86_operand(c, i, &v);                                                                                                   \
    if (r) return r;                                                                                                             \
    u64 dst = get_size(c, i->reg, i->opsize);                                                                                    \
    u64 res = i->opsize == 8 ? name##64(c, dst, v) : i->opsize == 4 ? name##32(c, (u32)dst, (u32)v) : name##16(c, (u16)dst, (u16)v); \
    if (v || i->opsize == 8) put_size(c, i->reg, i->opsize, v ? res : dst); /* zero source: all 64 bits stay, as processors do */ \
    return X86_OK;                                                                                                               \
  }
DEFINE_BS(bsf) DEFINE_BS(bsr)

#define SELECT2(name) static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) { return x86_dest_source(d, i), name; }
SELECT2(tzcnt) SELECT2(lzcnt) SELECT2(popcnt) SELECT2(bsf) SELECT2(bsr)

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_BT, select_bt},       {ZYDIS_MNEMONIC_BTS, select_bt},      {ZYDIS_MNEMONIC_BTR, select_bt},
    {ZYDIS_MNEMONIC_BTC, select_bt},      {ZYDIS_MNEMONIC_BSF, select_bsf},     {ZYDIS_MNEMONIC_BSR, select_bsr},
    {ZYDIS_MNEMONIC_TZCNT, select_tzcnt}, {ZYDIS_MNEMONIC_LZCNT, select_lzcnt}, {ZYDIS_MNEMONIC_POPCNT, select_popcnt},
};
const struct x86_op_family x86_family_bits = {"bits", rows, ARRAY_SIZE(rows)};
