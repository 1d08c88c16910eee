/* Shifts and rotates, by the host's instruction; a count of zero changes nothing (SDM Vol. 2B SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR). */
#include "x86/exec/exec.h"

/* OF and AF come as the host leaves them, also where the manual calls them undefined.  */

/* Rotates must keep four flags: they are merged from the old ones instead of loading them (POPF is slow); RCL and RCR need CF only. */
#define DEFINE_SHIFT(name, bits, ins, cf, mask, count_ok)                                                                        \
  static inline u##bits name##bits##_do(struct x86_vcpu *c, u##bits a, u8 n) {                                                   \
    u32 raw;                                                                                                                     \
    __asm__(cf ins " %%cl, %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(raw) : "c"(n), [fl] "r"(c->rflags) : "cc");                   \
    set_flags_mask(c, raw, mask);                                                                                                \
    return a;                                                                                                                    \
  }
#define CF_IN "bt $0, %k[fl]\n\t"
#define ROT   (FL_CF | FL_OF)

#define FOUR(name, ins, cf, mask)                                                                                                \
  DEFINE_SHIFT(name, 8, ins, cf, mask, 0) DEFINE_SHIFT(name, 16, ins, cf, mask, 0) DEFINE_SHIFT(name, 32, ins, cf, mask, 0)      \
  DEFINE_SHIFT(name, 64, ins, cf, mask, 0)
FOUR(shl, "shl", "", FL_ARITH)
FOUR(shr, "shr", "", FL_ARITH)
FOUR(sar, "sar", "", FL_ARITH)
FOUR(rol, "rol", "", ROT)
FOUR(ror, "ror", "", ROT)
FOUR(rcl, "rcl", CF_IN, ROT)
FOUR(rcr, "rcr", CF_IN, ROT)

/* Count from CL or an immediate (X86 masks it to 5 or 6 bits); 1 is an immediate here. */
static inline unsigned count(const struct x86_vcpu *c, const struct x86_insn *i) {
  return (i->sub ? (unsigned)get8(c, RCX * 8) : (unsigned)i->imm) & (i->opsize == 8 ? 63 : 31);
}

#define DEFINE_FORMS(name, bits)                                                                                                 \
  static int name##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    unsigned n = count(c, i);                                                                                                    \
    if (n) put##bits(c, i->rm, name##bits##_do(c, get##bits(c, i->rm), (u8)n));                                                  \
    else if (bits == 32) put##bits(c, i->rm, get##bits(c, i->rm));                                                               \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    unsigned n = count(c, i);                                                                                                    \
    void *p;                                                                                                                     \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, false, &p);                                                         \
    if (unlikely(r)) return r;                                                                                                   \
    x86_u##bits##_unaligned *m = p;                                                                                              \
    if (n) *m = name##bits##_do(c, *m, (u8)n);                                                                                   \
    x86_rmw_end(c);                                                                                                              \
    return X86_OK;                                                                                                               \
  }
#define FORMS(name)                                                                                                              \
  DEFINE_FORMS(name, 8) DEFINE_FORMS(name, 16) DEFINE_FORMS(name, 32) DEFINE_FORMS(name, 64)                                     \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static x86_exec_fn *const r[4] = {name##8_r, name##16_r, name##32_r, name##64_r};                                            \
    static x86_exec_fn *const m[4] = {name##8_m, name##16_m, name##32_m, name##64_m};                                            \
    i->opsize = (u8)(d->ops[0].size / 8);                                                                                        \
    i->sub = d->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;                                                                      \
    if (d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY) return m[width_index(i->opsize)];                                           \
    i->rm = (u8)x86_reg_number(d->ops[0].reg.value);                                                                             \
    return r[width_index(i->opsize)];                                                                                            \
  }
FORMS(shl) FORMS(shr) FORMS(sar) FORMS(rol) FORMS(ror) FORMS(rcl) FORMS(rcr)

/* SHLD, SHRD. */
#define DEFINE_DOUBLE(name, bits)                                                                                                \
  static inline u##bits name##bits##_do(struct x86_vcpu *c, u##bits a, u##bits b, u8 n) {                                        \
    u32 raw;                                                                                                                     \
    __asm__(#name " %%cl, %[y], %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(raw) : "c"(n), [y] "r"(b) : "cc");                       \
    set_flags(c, raw);                                                                                                           \
    return a;                                                                                                                    \
  }                                                                                                                              \
  static int name##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    unsigned n = count(c, i);                                                                                                    \
    put##bits(c, i->rm, n ? name##bits##_do(c, get##bits(c, i->rm), get##bits(c, i->reg), (u8)n) : get##bits(c, i->rm));         \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    unsigned n = count(c, i);                                                                                                    \
    void *p;                                                                                                                     \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, false, &p);                                                         \
    if (unlikely(r)) return r;                                                                                                   \
    x86_u##bits##_unaligned *m = p;                                                                                              \
    if (n) *m = name##bits##_do(c, *m, get##bits(c, i->reg), (u8)n);                                                             \
    x86_rmw_end(c);                                                                                                              \
    return X86_OK;                                                                                                               \
  }
#define DOUBLE(name)                                                                                                             \
  DEFINE_DOUBLE(name, 16) DEFINE_DOUBLE(name, 32) DEFINE_DOUBLE(name, 64)                                                        \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static x86_exec_fn *const r[3] = {name##16_r, name##32_r, name##64_r}, *const m[3] = {name##16_m, name##32_m, name##64_m};   \
    enum x86_form f = x86_operands(d, i);                                                                                        \
    i->sub = d->ops[2].type == ZYDIS_OPERAND_TYPE_REGISTER;                                                                      \
    return f == FORM_RR ? r[width_index(i->opsize) - 1] : m[width_index(i->opsize) - 1];                                         \
  }
DOUBLE(shld) DOUBLE(shrd)

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_SHL, select_shl}, {ZYDIS_MNEMONIC_SHR, select_shr}, {ZYDIS_MNEMONIC_SAR, select_sar},   {ZYDIS_MNEMONIC_ROL, select_rol},
    {ZYDIS_MNEMONIC_ROR, select_ror}, {ZYDIS_MNEMONIC_RCL, select_rcl}, {ZYDIS_MNEMONIC_RCR, select_rcr},   {ZYDIS_MNEMONIC_SHLD, select_shld},
    {ZYDIS_MNEMONIC_SHRD, select_shrd},
};
const struct x86_op_family x86_family_shift = {"shift", rows, ARRAY_SIZE(rows)};
