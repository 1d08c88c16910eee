/* ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT: run as the host's instruction, one handler per form and width. */
#include "x86/exec/exec.h"

/* The operation on a register and on memory.  CF_IN loads the carry for ADC and SBB. */
#define CF_IN  "bt $0, %k[fl]\n\t"
#define NO_CF  ""

#define REG_OP(T, ins, cf, a, b) __asm__(cf ins " %[y], %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(raw) : [y] "r"(b), [fl] "r"(c->rflags) : "cc")
#define MEM_OP(T, lock, ins, cf, p, b)                                                                                           \
  __asm__ volatile(cf lock ins " %[y], %[x]" CATCH_FLAGS : [x] "+m"(*(T *)(p)), "=&a"(raw) : [y] "r"(b), [fl] "r"(c->rflags) : "cc", "memory")

#define DEFINE_ALU(name, bits, ins, cf)                                                                                          \
  static int name##bits##_rr(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a = get##bits(c, i->rm), b = get##bits(c, i->reg);                                                                   \
    u32 raw;                                                                                                                     \
    REG_OP(u##bits, ins, cf, a, b);                                                                                              \
    put##bits(c, i->rm, a);                                                                                                      \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_ri(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a = get##bits(c, i->rm), b = (u##bits)i->imm;                                                                        \
    u32 raw;                                                                                                                     \
    REG_OP(u##bits, ins, cf, a, b);                                                                                              \
    put##bits(c, i->rm, a);                                                                                                      \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_rm(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a = get##bits(c, i->reg), b;                                                                                         \
    u32 raw;                                                                                                                     \
    int r = x86_load##bits(c, i->seg, x86_ea(c, i), &b);                                                                         \
    if (unlikely(r)) return r;                                                                                                   \
    REG_OP(u##bits, ins, cf, a, b);                                                                                              \
    put##bits(c, i->reg, a);                                                                                                     \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static inline int name##bits##_mem(struct x86_vcpu *c, const struct x86_insn *i, u##bits b) {                                  \
    void *p;                                                                                                                     \
    u32 raw;                                                                                                                     \
    bool lock = i->iflags & X86_I_LOCK;                                                                                          \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, lock, &p);                                                          \
    if (unlikely(r)) return r;                                                                                                   \
    if (lock) MEM_OP(u##bits, "lock ", ins, cf, p, b);                                                                           \
    else MEM_OP(u##bits, "", ins, cf, p, b);                                                                                     \
    x86_rmw_end(c);                                                                                                              \
    set_flags(c, raw);                                                                                                           \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_mr(struct x86_vcpu *c, const struct x86_insn *i) { return name##bits##_mem(c, i, get##bits(c, i->reg)); } \
  static int name##bits##_mi(struct x86_vcpu *c, const struct x86_insn *i) { return name##bits##_mem(c, i, (u##bits)i->imm); }

/* CMP and TEST: read both, write flags. */
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
  static int name##bits##_rm(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits b;                                                                                                                   \
    int r = x86_load##bits(c, i->seg, x86_ea(c, i), &b);                                                                         \
    return unlikely(r) ? r : name##bits##_do(c, get##bits(c, i->reg), b);                                                        \
  }                                                                                                                              \
  static int name##bits##_mr(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a;                                                                                                                   \
    int r = x86_load##bits(c, i->seg, x86_ea(c, i), &a);                                                                         \
    return unlikely(r) ? r : name##bits##_do(c, a, get##bits(c, i->reg));                                                        \
  }                                                                                                                              \
  static int name##bits##_mi(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a;                                                                                                                   \
    int r = x86_load##bits(c, i->seg, x86_ea(c, i), &a);                                                                         \
    return unlikely(r) ? r : name##bits##_do(c, a, (u##bits)i->imm);                                                             \
  }

/* INC, DEC (CF kept), NEG, NOT (no flags). */
#define DEFINE_UNARY(name, bits, ins, suffix, mask)                                                                              \
  static int name##bits##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    u##bits a = get##bits(c, i->rm);                                                                                             \
    u32 raw;                                                                                                                     \
    __asm__(ins " %[x]" CATCH_FLAGS : [x] "+&r"(a), "=&a"(raw) : : "cc");                                                        \
    put##bits(c, i->rm, a);                                                                                                      \
    set_flags_mask(c, raw, mask);                                                                                                \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int name##bits##_m(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    void *p;                                                                                                                     \
    u32 raw;                                                                                                                     \
    bool lock = i->iflags & X86_I_LOCK;                                                                                          \
    int r = x86_rmw_begin(c, i->seg, x86_ea(c, i), bits / 8, lock, &p);                                                          \
    if (unlikely(r)) return r;                                                                                                   \
    if (lock) __asm__ volatile("lock " ins suffix " %[x]" CATCH_FLAGS : [x] "+m"(*(u##bits *)p), "=&a"(raw) : : "cc", "memory"); \
    else __asm__ volatile(ins suffix " %[x]" CATCH_FLAGS : [x] "+m"(*(u##bits *)p), "=&a"(raw) : : "cc", "memory");              \
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
#define UNARY(name, ins, mask)                                                                                                   \
  DEFINE_UNARY(name, 8, ins, "b", mask) DEFINE_UNARY(name, 16, ins, "w", mask) DEFINE_UNARY(name, 32, ins, "l", mask)            \
  DEFINE_UNARY(name, 64, ins, "q", mask)
UNARY(inc, "inc", FL_ARITH & ~FL_CF)
UNARY(dec, "dec", FL_ARITH & ~FL_CF)
UNARY(neg, "neg", FL_ARITH)
UNARY(not, "not", 0)

typedef x86_exec_fn *const binary_table[5][4];
#define BY_WIDTH(name, form) {name##8_##form, name##16_##form, name##32_##form, name##64_##form}
#define BINARY(name)                                                                                                             \
  static binary_table name##_table = {[FORM_RR] = BY_WIDTH(name, rr), [FORM_RI] = BY_WIDTH(name, ri), [FORM_RM] = BY_WIDTH(name, rm), \
                                      [FORM_MR] = BY_WIDTH(name, mr), [FORM_MI] = BY_WIDTH(name, mi)};                           \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    enum x86_form f = x86_operands(d, i);                                                                                        \
    return f > FORM_MI || f == FORM_NONE ? NULL : name##_table[f][width_index(i->opsize)];                                       \
  }
BINARY(add) BINARY(or) BINARY(adc) BINARY(sbb) BINARY(and) BINARY(sub) BINARY(xor) BINARY(cmp) BINARY(test)

#define SINGLE(name)                                                                                                             \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    static x86_exec_fn *const r[4] = BY_WIDTH(name, r), *const m[4] = BY_WIDTH(name, m);                                         \
    enum x86_form f = x86_operands(d, i);                                                                                        \
    return f == FORM_R ? r[width_index(i->opsize)] : f == FORM_M ? m[width_index(i->opsize)] : NULL;                             \
  }
SINGLE(inc) SINGLE(dec) SINGLE(neg) SINGLE(not)

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_ADD, select_add}, {ZYDIS_MNEMONIC_OR, select_or},   {ZYDIS_MNEMONIC_ADC, select_adc}, {ZYDIS_MNEMONIC_SBB, select_sbb},
    {ZYDIS_MNEMONIC_AND, select_and}, {ZYDIS_MNEMONIC_SUB, select_sub}, {ZYDIS_MNEMONIC_XOR, select_xor}, {ZYDIS_MNEMONIC_CMP, select_cmp},
    {ZYDIS_MNEMONIC_TEST, select_test}, {ZYDIS_MNEMONIC_INC, select_inc}, {ZYDIS_MNEMONIC_DEC, select_dec}, {ZYDIS_MNEMONIC_NEG, select_neg},
    {ZYDIS_MNEMONIC_NOT, select_not},
};
const struct x86_op_family x86_family_alu = {"alu", rows, ARRAY_SIZE(rows)};
