/* Shifts and rotates, by the host's instruction; a count of zero changes no flag (SDM Vol. 2B SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD). */
#include "x86/exec/exec.h"

/* Shifts write all flags without looking at the old ones.  Rotates keep four of them, and OF for counts other than 1 (undefined in the manual) depends on
 * the old one on some processors: they run with the guest's flags loaded. */
#define DEFINE_SHIFT(name, bits)                                                                                                 \
  static inline u##bits name##bits##_do(const struct x86_vcpu *c, u##bits a, u8 n, u32 *raw) {                                   \
    __asm__(#name " %%cl, %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(*raw) : "c"(n) : "cc");                                        \
    return a;                                                                                                                    \
  }
#define DEFINE_ROTATE(name, bits)                                                                                                \
  static inline u##bits name##bits##_do(const struct x86_vcpu *c, u##bits a, u8 n, u32 *raw) {                                   \
    u32 f = flags_raw(c);                                                                                                        \
    __asm__(GIVE_FLAGS #name " %%cl, %[x]" CATCH_FLAGS : [x] "+&r"(a), "+&a"(f) : "c"(n) : "cc");                                \
    *raw = f;                                                                                                                    \
    return a;                                                                                                                    \
  }
#define FOUR(DEFINE, name) DEFINE(name, 8) DEFINE(name, 16) DEFINE(name, 32) DEFINE(name, 64)
FOUR(DEFINE_SHIFT, shl) FOUR(DEFINE_SHIFT, shr) FOUR(DEFINE_SHIFT, sar)
FOUR(DEFINE_ROTATE, rol) FOUR(DEFINE_ROTATE, ror) FOUR(DEFINE_ROTATE, rcl) FOUR(DEFINE_ROTATE, rcr)

static inline unsigned count_mask(unsigned opsize) { return opsize == 8 ? 63 : 31; }

/* ROL and ROR of a register by an immediate other than 1 leave OF (undefined) alone on Intel processors, unlike those by CL or in memory. */
static inline void set_flags_shift(struct x86_vcpu *c, u32 raw, bool keep_of) { set_flags_mask(c, raw, keep_of ? FL_ARITH & ~FL_OF : FL_ARITH); }

/* A zero count accesses memory too: the client may have taken it away. */
static inline void touch(const void *p) { (void)*(const volatile u8 *)p; }

/* form: count in CL (c) or in i->imm, already masked (i).  A zero count still clears the upper half of a 32-bit register, and still writes memory. */
#define DEFINE_FORM(name, bits, form, n_expr, keep_of)                                                                           \
  static int name##bits##_r##form(struct x86_vcpu *c, const struct x86_insn *i) {                                                \
    u8 n = (u8)(n_expr);                                                                                                         \
    u##bits a = get##bits(c, i->rm);                                                                                             \
    u32 raw;                                                                                                                     \
    if (likely(n)) {                                                                                                             \
      a = name##bits##_do(c, a, n, &raw);                                                                                        \
      set_flags_shift(c, raw, keep_of);                                                                                          \
    }                                                                                                                            \
    put##bits(c, i->rm, a);                                                                                                      \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_m##form(struct x86_vcpu *c, const struct x86_insn *i) {                                                \
    u8 n = (u8)(n_expr);                                                                                                         \
    u32 raw;                                                                                                                     \
    void *p;                                                                                                                     \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, false, &p);                                                         \
    if (unlikely(r)) return r;                                                                                                   \
    if (n) *(x86_u##bits##_unaligned *)p = name##bits##_do(c, *(x86_u##bits##_unaligned *)p, n, &raw);                           \
    else touch(p);                                                                                                               \
    x86_rmw_end(c);                                                                                                              \
    if (n) set_flags(c, raw);                                                                                                    \
    return X86_OK;                                                                                                               \
  }
#define DEFINE_FORMS(name, bits)                                                                                                 \
  DEFINE_FORM(name, bits, i, i->imm, IS_ROTATE_##name && n != 1)                                                                 \
  DEFINE_FORM(name, bits, c, get8(c, RCX * 8) & count_mask(bits / 8), false)
enum { IS_ROTATE_shl, IS_ROTATE_shr = 0, IS_ROTATE_sar = 0, IS_ROTATE_rol = 1, IS_ROTATE_ror = 1, IS_ROTATE_rcl = 0, IS_ROTATE_rcr = 0 };
#define FORMS(name)                                                                                                              \
  FOUR(DEFINE_FORMS, name)                                                                                                       \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static x86_exec_fn *const table[4][4] = {{name##8_ri, name##16_ri, name##32_ri, name##64_ri},                                \
                                             {name##8_rc, name##16_rc, name##32_rc, name##64_rc},                                \
                                             {name##8_mi, name##16_mi, name##32_mi, name##64_mi},                                \
                                             {name##8_mc, name##16_mc, name##32_mc, name##64_mc}};                               \
    bool mem = d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY, cl = d->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;                  \
    i->opsize = (u8)(d->ops[0].size / 8);                                                                                        \
    i->imm = cl ? 0 : i->imm & count_mask(i->opsize);                                                                            \
    if (!mem) i->rm = (u8)x86_reg_number(d->ops[0].reg.value);                                                                   \
    flags_by_count(i, cl);                                                                                                       \
    return table[2 * mem + cl][width_index(i->opsize)];                                                                          \
  }

/* Liveness: flags that a zero count may leave alone are also read. */
static void flags_by_count(struct x86_insn *i, bool variable) {
  if (variable) i->flags_read |= i->flags_written;
  else if (!i->imm) i->flags_read = i->flags_written = 0;
}
FORMS(shl) FORMS(shr) FORMS(sar) FORMS(rol) FORMS(ror) FORMS(rcl) FORMS(rcr)

/* SHLD, SHRD: counts above the operand size (16 bits) give an undefined result, the host's. */
#define DEFINE_DOUBLE(name, bits)                                                                                                \
  static inline u##bits name##bits##_do(const struct x86_vcpu *c, u##bits a, u##bits b, u8 n, u32 *raw) {                        \
    __asm__(#name " %%cl, %[y], %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(*raw) : "c"(n), [y] "r"(b) : "cc");                      \
    return a;                                                                                                                    \
  }                                                                                                                              \
  static int name##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    u8 n = double_count(c, i);                                                                                                   \
    u##bits a = get##bits(c, i->rm);                                                                                             \
    u32 raw;                                                                                                                     \
    if (likely(n)) {                                                                                                             \
      a = name##bits##_do(c, a, get##bits(c, i->reg), n, &raw);                                                                  \
      set_flags(c, raw);                                                                                                         \
    }                                                                                                                            \
    put##bits(c, i->rm, a);                                                                                                      \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    u8 n = double_count(c, i);                                                                                                   \
    u32 raw;                                                                                                                     \
    void *p;                                                                                                                     \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, false, &p);                                                         \
    if (unlikely(r)) return r;                                                                                                   \
    if (n) *(x86_u##bits##_unaligned *)p = name##bits##_do(c, *(x86_u##bits##_unaligned *)p, get##bits(c, i->reg), n, &raw);     \
    else touch(p);                                                                                                               \
    x86_rmw_end(c);                                                                                                              \
    if (n) set_flags(c, raw);                                                                                                    \
    return X86_OK;                                                                                                               \
  }
#define DOUBLE(name)                                                                                                             \
  DEFINE_DOUBLE(name, 16) DEFINE_DOUBLE(name, 32) DEFINE_DOUBLE(name, 64)                                                        \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static x86_exec_fn *const r[3] = {name##16_r, name##32_r, name##64_r}, *const m[3] = {name##16_m, name##32_m, name##64_m};   \
    enum x86_form f = x86_operands(d, i);                                                                                        \
    i->sub = d->ops[2].type == ZYDIS_OPERAND_TYPE_REGISTER; /* count in CL */                                                    \
    i->imm &= count_mask(i->opsize);                                                                                             \
    flags_by_count(i, i->sub);                                                                                                   \
    return f == FORM_RR ? r[width_index(i->opsize) - 1] : m[width_index(i->opsize) - 1];                                         \
  }

static inline u8 double_count(const struct x86_vcpu *c, const struct x86_insn *i) {
  return (u8)(i->sub ? get8(c, RCX * 8) & count_mask(i->opsize) : i->imm);
}
DOUBLE(shld) DOUBLE(shrd)

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_SHL, select_shl},   {ZYDIS_MNEMONIC_SHR, select_shr}, {ZYDIS_MNEMONIC_SAR, select_sar},
    {ZYDIS_MNEMONIC_ROL, select_rol},   {ZYDIS_MNEMONIC_ROR, select_ror}, {ZYDIS_MNEMONIC_RCL, select_rcl},
    {ZYDIS_MNEMONIC_RCR, select_rcr},   {ZYDIS_MNEMONIC_SHLD, select_shld}, {ZYDIS_MNEMONIC_SHRD, select_shrd},
};
const struct x86_op_family x86_family_shift = {"shift", rows, ARRAY_SIZE(rows)};
