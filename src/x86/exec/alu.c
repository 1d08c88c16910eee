/* ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT: run as the host's instruction, one handler per form, width and kind of address. */
#include "x86/exec/exec.h"

/* ADC and SBB: the guest's carry goes into the host's first. */
#define CF_IN "bt $0, %k[fl]\n\t"
#define NO_CF ""

#define REG_OP(ins, cf, a, b) __asm__(cf ins " %[y], %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(raw) : [y] "r"(b), [fl] "r"(c->rflags) : "cc")
#define MEM_OP(bits, lock, ins, cf, p, b)                                                                                        \
  __asm__ volatile(cf lock ins " %[y], %[x]" CATCH_FLAGS                                                                         \
                   : [x] "+m"(*(x86_u##bits##_unaligned *)(p)), "=&a"(raw)                                                       \
                   : [y] "r"(b), [fl] "r"(c->rflags)                                                                             \
                   : "cc", "memory")

/* Memory forms: access is general or simple (exec.h), b the other operand's value. */
#define DEFINE_ALU_LOAD(name, bits, ins, cf, access)                                                                             \
  static int name##bits##_rm_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                            \
    u##bits a = get##bits(c, i->reg), b;                                                                                         \
    u32 raw;                                                                                                                     \
    int r = access##_load##bits(c, i, &b);                                                                                       \
    if (unlikely(r)) return r;                                                                                                   \
    REG_OP(ins, cf, a, b);                                                                                                       \
    put##bits(c, i->reg, a);                                                                                                     \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }
#define DEFINE_ALU_RMW(name, bits, ins, cf, form, b_expr, access, lock, is_lock, suffix)                                         \
  static int name##bits##_##form##_##suffix(struct x86_vcpu *c, const struct x86_insn *i) {                                      \
    void *p;                                                                                                                     \
    u32 raw;                                                                                                                     \
    u##bits b = (u##bits)(b_expr);                                                                                               \
    int r = access##_rmw_begin(c, i, bits / 8, is_lock, &p);                                                                     \
    if (unlikely(r)) return r;                                                                                                   \
    MEM_OP(bits, lock, ins, cf, p, b);                                                                                           \
    x86_rmw_end(c);                                                                                                              \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }
#define DEFINE_ALU_RMWS(name, bits, ins, cf, form, b_expr)                                                                       \
  DEFINE_ALU_RMW(name, bits, ins, cf, form, b_expr, general, "", false, general)                                                 \
  DEFINE_ALU_RMW(name, bits, ins, cf, form, b_expr, simple, "", false, simple)                                                   \
  DEFINE_ALU_RMW(name, bits, ins, cf, form, b_expr, general, "lock ", true, locked)

#define DEFINE_ALU(name, bits, ins, cf)                                                                                          \
  static int name##bits##_rr(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a = get##bits(c, i->rm), b = get##bits(c, i->reg);                                                                   \
    u32 raw;                                                                                                                     \
    REG_OP(ins, cf, a, b);                                                                                                       \
    put##bits(c, i->rm, a);                                                                                                      \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_ri(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a = get##bits(c, i->rm), b = (u##bits)i->imm;                                                                        \
    u32 raw;                                                                                                                     \
    REG_OP(ins, cf, a, b);                                                                                                       \
    put##bits(c, i->rm, a);                                                                                                      \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  DEFINE_ALU_LOAD(name, bits, ins, cf, general)                                                                                  \
  DEFINE_ALU_LOAD(name, bits, ins, cf, simple)                                                                                   \
  DEFINE_ALU_RMWS(name, bits, ins, cf, mr, get##bits(c, i->reg))                                                                 \
  DEFINE_ALU_RMWS(name, bits, ins, cf, mi, i->imm)

/* CMP and TEST: read both, write flags. */
#define DEFINE_COMPARE_MEM(name, bits, access)                                                                                   \
  static int name##bits##_rm_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                            \
    u##bits b;                                                                                                                   \
    int r = access##_load##bits(c, i, &b);                                                                                       \
    return unlikely(r) ? r : name##bits##_do(c, get##bits(c, i->reg), b);                                                        \
  }                                                                                                                              \
  static int name##bits##_mr_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                            \
    u##bits a;                                                                                                                   \
    int r = access##_load##bits(c, i, &a);                                                                                       \
    return unlikely(r) ? r : name##bits##_do(c, a, get##bits(c, i->reg));                                                        \
  }                                                                                                                              \
  static int name##bits##_mi_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                            \
    u##bits a;                                                                                                                   \
    int r = access##_load##bits(c, i, &a);                                                                                       \
    return unlikely(r) ? r : name##bits##_do(c, a, (u##bits)i->imm);                                                             \
  }
#define DEFINE_COMPARE(name, bits, ins)                                                                                          \
  static inline int name##bits##_do(struct x86_vcpu *c, u##bits a, u##bits b) {                                                  \
    u32 raw;                                                                                                                     \
    __asm__(ins " %[y], %[x]" CATCH_FLAGS : "=&a"(raw) : [x] "r"(a), [y] "r"(b) : "cc");                                         \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_rr(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    return name##bits##_do(c, get##bits(c, i->rm), get##bits(c, i->reg));                                                        \
  }                                                                                                                              \
  static int name##bits##_ri(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    return name##bits##_do(c, get##bits(c, i->rm), (u##bits)i->imm);                                                             \
  }                                                                                                                              \
  DEFINE_COMPARE_MEM(name, bits, general)                                                                                        \
  DEFINE_COMPARE_MEM(name, bits, simple)

/* INC, DEC (CF kept), NEG, NOT (no flags). */
#define DEFINE_UNARY(name, bits, suffix, mask)                                                                                   \
  static int name##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    u##bits a = get##bits(c, i->rm);                                                                                             \
    u32 raw;                                                                                                                     \
    __asm__(#name " %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(raw) : : "cc");                                                      \
    put##bits(c, i->rm, a);                                                                                                      \
    set_flags_mask(c, raw, mask);                                                                                                \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    void *p;                                                                                                                     \
    u32 raw;                                                                                                                     \
    bool lock = i->iflags & X86_I_LOCK;                                                                                          \
    int r = general_rmw_begin(c, i, bits / 8, lock, &p);                                                                         \
    if (unlikely(r)) return r;                                                                                                   \
    x86_u##bits##_unaligned *m = p;                                                                                              \
    if (lock) __asm__ volatile("lock " #name suffix " %[x]" CATCH_FLAGS : [x] "+m"(*m), "=&a"(raw) : : "cc", "memory");          \
    else __asm__ volatile(#name suffix " %[x]" CATCH_FLAGS : [x] "+m"(*m), "=&a"(raw) : : "cc", "memory");                       \
    x86_rmw_end(c);                                                                                                              \
    set_flags_mask(c, raw, mask);                                                                                                \
    return X86_OK;                                                                                                               \
  }

#define FOUR(D, name, ...) D(name, 8, __VA_ARGS__) D(name, 16, __VA_ARGS__) D(name, 32, __VA_ARGS__) D(name, 64, __VA_ARGS__)
FOUR(DEFINE_ALU, add, "add", NO_CF)
FOUR(DEFINE_ALU, or, "or", NO_CF)
FOUR(DEFINE_ALU, adc, "adc", CF_IN)
FOUR(DEFINE_ALU, sbb, "sbb", CF_IN)
FOUR(DEFINE_ALU, and, "and", NO_CF)
FOUR(DEFINE_ALU, sub, "sub", NO_CF)
FOUR(DEFINE_ALU, xor, "xor", NO_CF)
FOUR(DEFINE_COMPARE, cmp, "cmp")
FOUR(DEFINE_COMPARE, test, "test")
#define UNARY(name, mask)                                                                                                        \
  DEFINE_UNARY(name, 8, "b", mask) DEFINE_UNARY(name, 16, "w", mask) DEFINE_UNARY(name, 32, "l", mask) DEFINE_UNARY(name, 64, "q", mask)
UNARY(inc, FL_ARITH & ~FL_CF)
UNARY(dec, FL_ARITH & ~FL_CF)
UNARY(neg, FL_ARITH)
UNARY(not, 0)

/* ---- selection ---- */

#define BY_WIDTH(name, form) {name##8_##form, name##16_##form, name##32_##form, name##64_##form}
typedef x86_exec_fn *const form_table[FORM_MI + 1][4];

static x86_exec_fn *select_binary(const struct x86_decoded *d, struct x86_insn *i, form_table general, form_table simple, form_table locked) {
  enum x86_form f = x86_operands(d, i);
  if (f > FORM_MI || f == FORM_NONE) return NULL;
  unsigned w = width_index(i->opsize);
  if (i->iflags & X86_I_LOCK) return locked[f][w];
  return f >= FORM_RM && x86_address_simple(d, i) ? simple[f][w] : general[f][w];
}
#define MEMORY_FORMS(name, access)                                                                                               \
  [FORM_RM] = BY_WIDTH(name, rm_##access), [FORM_MR] = BY_WIDTH(name, mr_##access), [FORM_MI] = BY_WIDTH(name, mi_##access)
#define SELECT(name, ...)                                                                                                        \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static form_table general = {[FORM_RR] = BY_WIDTH(name, rr), [FORM_RI] = BY_WIDTH(name, ri), MEMORY_FORMS(name, general)};   \
    static form_table simple = {MEMORY_FORMS(name, simple)};                                                                     \
    static form_table locked = {__VA_ARGS__};                                                                                    \
    return select_binary(d, i, general, simple, locked);                                                                         \
  }
#define BINARY(name) SELECT(name, [FORM_MR] = BY_WIDTH(name, mr_locked), [FORM_MI] = BY_WIDTH(name, mi_locked))
#define COMPARE(name) SELECT(name, {NULL})
BINARY(add) BINARY(or) BINARY(adc) BINARY(sbb) BINARY(and) BINARY(sub) BINARY(xor) COMPARE(cmp) COMPARE(test)

#define SINGLE(name)                                                                                                             \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static x86_exec_fn *const r[4] = BY_WIDTH(name, r), *const m[4] = BY_WIDTH(name, m);                                         \
    enum x86_form f = x86_operands(d, i);                                                                                        \
    return f == FORM_R ? r[width_index(i->opsize)] : f == FORM_M ? m[width_index(i->opsize)] : NULL;                             \
  }
SINGLE(inc) SINGLE(dec) SINGLE(neg) SINGLE(not)

#define ROW(NAME, name) {ZYDIS_MNEMONIC_##NAME, select_##name}
static const struct x86_op_row rows[] = {
    ROW(ADD, add), ROW(OR, or),   ROW(ADC, adc),   ROW(SBB, sbb), ROW(AND, and), ROW(SUB, sub), ROW(XOR, xor),
    ROW(CMP, cmp), ROW(TEST, test), ROW(INC, inc), ROW(DEC, dec), ROW(NEG, neg), ROW(NOT, not),
};
const struct x86_op_family x86_family_alu = {"alu", rows, ARRAY_SIZE(rows)};
