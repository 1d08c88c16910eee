/* Moves, extensions, exchanges, address and conditional moves. */
#include "x86/exec/exec.h"

#define DEFINE_MOV_MEM(bits, access)                                                                                             \
  static int mov##bits##_rm_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                             \
    u##bits v;                                                                                                                   \
    int r = access##_load##bits(c, i, &v);                                                                                       \
    if (unlikely(r)) return r;                                                                                                   \
    put##bits(c, i->reg, v);                                                                                                     \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int mov##bits##_mr_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                             \
    return access##_store##bits(c, i, get##bits(c, i->reg));                                                                     \
  }                                                                                                                              \
  static int mov##bits##_mi_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                             \
    return access##_store##bits(c, i, (u##bits)i->imm);                                                                          \
  }
#define DEFINE_MOV(bits)                                                                                                         \
  static int mov##bits##_rr(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    put##bits(c, i->rm, get##bits(c, i->reg));                                                                                   \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int mov##bits##_ri(struct x86_vcpu *c, const struct x86_insn *i) {                                                      \
    put##bits(c, i->rm, (u##bits)i->imm);                                                                                        \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  DEFINE_MOV_MEM(bits, general)                                                                                                  \
  DEFINE_MOV_MEM(bits, simple)                                                                                                   \
  static int xchg##bits##_rr(struct x86_vcpu *c, const struct x86_insn *i) {                                                     \
    u##bits a = get##bits(c, i->rm), b = get##bits(c, i->reg);                                                                   \
    put##bits(c, i->rm, b);                                                                                                      \
    put##bits(c, i->reg, a);                                                                                                     \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int xchg##bits##_mr(struct x86_vcpu *c, const struct x86_insn *i) { /* locked without a prefix, too */                  \
    void *p;                                                                                                                     \
    u##bits v = get##bits(c, i->reg);                                                                                            \
    int r = general_rmw_begin(c, i, bits / 8, true, &p);                                                                         \
    if (unlikely(r)) return r;                                                                                                   \
    __asm__ volatile("xchg %0, %1" : "+r"(v), "+m"(*(x86_u##bits##_unaligned *)p) : : "memory");                                 \
    x86_rmw_end(c);                                                                                                              \
    put##bits(c, i->reg, v);                                                                                                     \
    return X86_OK;                                                                                                               \
  }
DEFINE_MOV(8) DEFINE_MOV(16) DEFINE_MOV(32) DEFINE_MOV(64)

#define BY_WIDTH(name, form) {name##8_##form, name##16_##form, name##32_##form, name##64_##form}
#define MEMORY_FORMS(access)                                                                                                     \
  [FORM_RM] = BY_WIDTH(mov, rm_##access), [FORM_MR] = BY_WIDTH(mov, mr_##access), [FORM_MI] = BY_WIDTH(mov, mi_##access)

static bool general_operand(const ZydisDecodedOperand *op) {
  if (op->type != ZYDIS_OPERAND_TYPE_REGISTER) return true;
  ZydisRegisterClass k = ZydisRegisterGetClass(op->reg.value);
  return k == ZYDIS_REGCLASS_GPR8 || k == ZYDIS_REGCLASS_GPR16 || k == ZYDIS_REGCLASS_GPR32 || k == ZYDIS_REGCLASS_GPR64;
}

static x86_exec_fn *select_mov(const struct x86_decoded *d, struct x86_insn *i) {
  static x86_exec_fn *const general[5][4] = {[FORM_RR] = BY_WIDTH(mov, rr), [FORM_RI] = BY_WIDTH(mov, ri), MEMORY_FORMS(general)};
  static x86_exec_fn *const simple[5][4] = {MEMORY_FORMS(simple)};
  if (!general_operand(&d->ops[0]) || !general_operand(&d->ops[1])) return NULL; /* segment, control and debug registers are others' */
  enum x86_form f = x86_operands(d, i);
  if (f > FORM_MI || f == FORM_NONE) return NULL;
  return f >= FORM_RM && x86_address_simple(d, i) ? simple[f][width_index(i->opsize)] : general[f][width_index(i->opsize)];
}

static x86_exec_fn *select_xchg(const struct x86_decoded *d, struct x86_insn *i) {
  static x86_exec_fn *const rr[4] = BY_WIDTH(xchg, rr), *const mr[4] = BY_WIDTH(xchg, mr);
  enum x86_form f = x86_operands(d, i);
  return f == FORM_RR ? rr[width_index(i->opsize)] : f == FORM_MR || f == FORM_RM ? mr[width_index(i->opsize)] : NULL;
}

/* MOVZX, MOVSX, MOVSXD: source width (i->sub, bytes) and destination width are independent. */
#define DEFINE_EXTEND_MEM(name, from, to, expr, access)                                                                          \
  static int name##from##_##to##_##access(struct x86_vcpu *c, const struct x86_insn *i) {                                        \
    u##from v;                                                                                                                   \
    int r = access##_load##from(c, i, &v);                                                                                       \
    if (unlikely(r)) return r;                                                                                                   \
    put##to(c, i->reg, (u##to)expr);                                                                                             \
    return X86_OK;                                                                                                               \
  }
#define DEFINE_EXTEND(name, from, to, expr)                                                                                      \
  static int name##from##_##to##_r(struct x86_vcpu *c, const struct x86_insn *i) {                                               \
    u##from v = get##from(c, i->reg);                                                                                            \
    put##to(c, i->rm, (u##to)expr);                                                                                              \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  DEFINE_EXTEND_MEM(name, from, to, expr, general)                                                                               \
  DEFINE_EXTEND_MEM(name, from, to, expr, simple)
DEFINE_EXTEND(zx, 8, 16, v) DEFINE_EXTEND(zx, 8, 32, v) DEFINE_EXTEND(zx, 8, 64, v) DEFINE_EXTEND(zx, 16, 16, v) DEFINE_EXTEND(zx, 16, 32, v)
DEFINE_EXTEND(zx, 16, 64, v) DEFINE_EXTEND(sx, 8, 16, (s8)v) DEFINE_EXTEND(sx, 8, 32, (s8)v) DEFINE_EXTEND(sx, 8, 64, (s64)(s8)v)
DEFINE_EXTEND(sx, 16, 16, (s16)v) DEFINE_EXTEND(sx, 16, 32, (s16)v) DEFINE_EXTEND(sx, 16, 64, (s64)(s16)v) DEFINE_EXTEND(sx, 32, 64, (s64)(s32)v)
DEFINE_EXTEND(sx, 32, 32, v)

static x86_exec_fn *select_extend(const struct x86_decoded *d, struct x86_insn *i) {
#define EXTEND(sign, from, to, name) {sign, from / 8, to / 8, name##from##_##to##_r, name##from##_##to##_general, name##from##_##to##_simple}
  static const struct {
    bool sign;
    u8 from, to;
    x86_exec_fn *r, *general, *simple;
  } t[] = {EXTEND(0, 8, 16, zx),  EXTEND(0, 8, 32, zx),  EXTEND(0, 8, 64, zx),  EXTEND(0, 16, 16, zx), EXTEND(0, 16, 32, zx),
           EXTEND(0, 16, 64, zx), EXTEND(1, 8, 16, sx),  EXTEND(1, 8, 32, sx),  EXTEND(1, 8, 64, sx),  EXTEND(1, 16, 16, sx),
           EXTEND(1, 16, 32, sx), EXTEND(1, 16, 64, sx), EXTEND(1, 32, 64, sx), EXTEND(1, 32, 32, sx)};
#undef EXTEND
  bool sign = d->insn.mnemonic != ZYDIS_MNEMONIC_MOVZX;
  enum x86_form f = x86_operands(d, i);
  unsigned from = d->ops[1].size / 8;
  if (from == 4 && i->opsize == 2) from = 2; /* MOVSXD with a 16-bit operand size moves 16 bits (SDM Vol. 2B) */
  for (size_t k = 0; k < ARRAY_SIZE(t); k++)
    if (t[k].sign == sign && t[k].from == from && t[k].to == i->opsize)
      return f == FORM_RR ? t[k].r : f != FORM_RM ? NULL : x86_address_simple(d, i) ? t[k].simple : t[k].general;
  return NULL;
}

#define DEFINE_LEA(bits)                                                                                                         \
  static int lea##bits(struct x86_vcpu *c, const struct x86_insn *i) {                                                           \
    put##bits(c, i->reg, (u##bits)x86_ea(c, i));                                                                                 \
    return X86_OK;                                                                                                               \
  }
DEFINE_LEA(16) DEFINE_LEA(32) DEFINE_LEA(64)

static x86_exec_fn *select_lea(const struct x86_decoded *d, struct x86_insn *i) {
  if (x86_operands(d, i) != FORM_RM) return NULL;
  return i->opsize == 2 ? lea16 : i->opsize == 4 ? lea32 : lea64;
}

/* CMOVcc loads in any case, and with 32 bits clears the upper half even when the condition is false (SDM Vol. 2A). */
#define DEFINE_CMOV(cc, bits)                                                                                                    \
  static int cmov##bits##_r_##cc(struct x86_vcpu *c, const struct x86_insn *i) {                                                 \
    put##bits(c, i->rm, condition(c->rflags, cc) ? get##bits(c, i->reg) : get##bits(c, i->rm));                                  \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int cmov##bits##_m_##cc(struct x86_vcpu *c, const struct x86_insn *i) {                                                 \
    u##bits v;                                                                                                                   \
    int r = general_load##bits(c, i, &v);                                                                                        \
    if (unlikely(r)) return r;                                                                                                   \
    put##bits(c, i->reg, condition(c->rflags, cc) ? v : get##bits(c, i->reg));                                                   \
    return X86_OK;                                                                                                               \
  }
#define DEFINE_CC(cc)                                                                                                            \
  DEFINE_CMOV(cc, 16) DEFINE_CMOV(cc, 32) DEFINE_CMOV(cc, 64)                                                                    \
  static int setcc_r_##cc(struct x86_vcpu *c, const struct x86_insn *i) {                                                        \
    put8(c, i->rm, condition(c->rflags, cc));                                                                                    \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static int setcc_m_##cc(struct x86_vcpu *c, const struct x86_insn *i) { return general_store8(c, i, condition(c->rflags, cc)); }
DEFINE_CC(0) DEFINE_CC(1) DEFINE_CC(2) DEFINE_CC(3) DEFINE_CC(4) DEFINE_CC(5) DEFINE_CC(6) DEFINE_CC(7)
DEFINE_CC(8) DEFINE_CC(9) DEFINE_CC(10) DEFINE_CC(11) DEFINE_CC(12) DEFINE_CC(13) DEFINE_CC(14) DEFINE_CC(15)
#define BY_CC(name)                                                                                                              \
  {name##_0, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8, name##_9, name##_10, name##_11,     \
   name##_12, name##_13, name##_14, name##_15}

static x86_exec_fn *select_cmov(const struct x86_decoded *d, struct x86_insn *i) {
  static x86_exec_fn *const r[3][16] = {BY_CC(cmov16_r), BY_CC(cmov32_r), BY_CC(cmov64_r)};
  static x86_exec_fn *const m[3][16] = {BY_CC(cmov16_m), BY_CC(cmov32_m), BY_CC(cmov64_m)};
  enum x86_form f = x86_operands(d, i);
  unsigned w = width_index(i->opsize) - 1, cc = d->insn.opcode & 15;
  return f == FORM_RR ? r[w][cc] : f == FORM_RM ? m[w][cc] : NULL;
}

static x86_exec_fn *select_setcc(const struct x86_decoded *d, struct x86_insn *i) {
  static x86_exec_fn *const r[16] = BY_CC(setcc_r), *const m[16] = BY_CC(setcc_m);
  enum x86_form f = x86_operands(d, i);
  return f == FORM_R ? r[d->insn.opcode & 15] : f == FORM_M ? m[d->insn.opcode & 15] : NULL;
}

static int bswap(struct x86_vcpu *c, const struct x86_insn *i) {
  if (i->opsize == 8) c->regs[i->rm] = __builtin_bswap64(c->regs[i->rm]);
  else if (i->opsize == 4) c->regs[i->rm] = __builtin_bswap32((u32)c->regs[i->rm]);
  else put16(c, i->rm, 0); /* undefined (SDM Vol. 2A BSWAP); processors give 0 */
  return X86_OK;
}
static x86_exec_fn *select_bswap(const struct x86_decoded *d, struct x86_insn *i) { return x86_operands(d, i) == FORM_R ? bswap : NULL; }

static u64 swapped(u64 v, unsigned size) { return __builtin_bswap64(v) >> (64 - 8 * size); }
static int movbe_rm(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, x86_ea(c, i), i->opsize, &v);
  if (!r) put_size(c, i->reg, i->opsize, swapped(v, i->opsize));
  return r;
}
static int movbe_mr(struct x86_vcpu *c, const struct x86_insn *i) {
  return store_size(c, i->seg, x86_ea(c, i), i->opsize, swapped(get_size(c, i->reg, i->opsize), i->opsize));
}
static x86_exec_fn *select_movbe(const struct x86_decoded *d, struct x86_insn *i) {
  enum x86_form f = x86_operands(d, i);
  return f == FORM_RM ? movbe_rm : f == FORM_MR ? movbe_mr : NULL;
}

/* MOVNTI, MOVDIRI: stores. */
static x86_exec_fn *select_store(const struct x86_decoded *d, struct x86_insn *i) {
  if (x86_operands(d, i) != FORM_MR) return NULL;
  return i->opsize == 8 ? mov64_mr_general : mov32_mr_general;
}

/* MOVDIR64B: 64 bytes from memory to ES:[register], which must be aligned (SDM Vol. 2B). */
static int movdir64b(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 data[64];
  u64 to = c->regs[i->reg] & i->ea_mask, lin;
  int r = x86_read(c, i->seg, x86_ea(c, i), data, 64);
  if (!r) r = x86_linear(c, SEG_ES, to, 64, ACC_WRITE, &lin);
  if (!r && (lin & 63)) r = x86_gp0(c);
  return r ? r : x86_write(c, SEG_ES, to, data, 64);
}
static x86_exec_fn *select_movdir64b(const struct x86_decoded *d, struct x86_insn *i) {
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  return movdir64b;
}

/* XLAT: AL = [rBX + AL]. */
static int xlat(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 v;
  int r = x86_load8(c, i->seg, (c->regs[RBX] + get8(c, 0)) & i->ea_mask, &v);
  if (!r) put8(c, 0, v);
  return r;
}
static x86_exec_fn *select_xlat(const struct x86_decoded *d, struct x86_insn *i) {
  for (unsigned k = 0; k < d->insn.operand_count; k++)
    if (d->ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY) i->seg = (u8)(d->ops[k].mem.segment - ZYDIS_REGISTER_ES);
  return xlat;
}

/* Sign extensions of the accumulator. */
static int cbw(struct x86_vcpu *c, const struct x86_insn *i) { return put16(c, RAX, (u16)(s8)c->regs[RAX]), X86_OK; }
static int cwde(struct x86_vcpu *c, const struct x86_insn *i) { return put32(c, RAX, (u32)(s16)c->regs[RAX]), X86_OK; }
static int cdqe(struct x86_vcpu *c, const struct x86_insn *i) { return put64(c, RAX, (u64)(s32)c->regs[RAX]), X86_OK; }
static int cwd(struct x86_vcpu *c, const struct x86_insn *i) { return put16(c, RDX, (u16)((s16)c->regs[RAX] >> 15)), X86_OK; }
static int cdq(struct x86_vcpu *c, const struct x86_insn *i) { return put32(c, RDX, (u32)((s32)c->regs[RAX] >> 31)), X86_OK; }
static int cqo(struct x86_vcpu *c, const struct x86_insn *i) { return put64(c, RDX, (u64)((s64)c->regs[RAX] >> 63)), X86_OK; }
#define PLAIN(fn) static x86_exec_fn *select_##fn(const struct x86_decoded *d, struct x86_insn *i) { return fn; }
PLAIN(cbw) PLAIN(cwde) PLAIN(cdqe) PLAIN(cwd) PLAIN(cdq) PLAIN(cqo)

static int lahf(struct x86_vcpu *c, const struct x86_insn *i) { return put8(c, 1, (u8)(c->rflags & 0xd7) | 2), X86_OK; }
static int sahf(struct x86_vcpu *c, const struct x86_insn *i) {
  c->rflags = (c->rflags & ~0xd5ull) | (get8(c, 1) & 0xd5);
  return X86_OK;
}
PLAIN(lahf) PLAIN(sahf)

#define CMOV(cc) {ZYDIS_MNEMONIC_CMOV##cc, select_cmov}, {ZYDIS_MNEMONIC_SET##cc, select_setcc}
static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_MOV, select_mov}, {ZYDIS_MNEMONIC_XCHG, select_xchg}, {ZYDIS_MNEMONIC_MOVZX, select_extend}, {ZYDIS_MNEMONIC_MOVSX, select_extend},
    {ZYDIS_MNEMONIC_MOVSXD, select_extend}, {ZYDIS_MNEMONIC_LEA, select_lea}, {ZYDIS_MNEMONIC_BSWAP, select_bswap}, {ZYDIS_MNEMONIC_MOVBE, select_movbe},
    {ZYDIS_MNEMONIC_MOVNTI, select_store}, {ZYDIS_MNEMONIC_MOVDIRI, select_store}, {ZYDIS_MNEMONIC_MOVDIR64B, select_movdir64b}, {ZYDIS_MNEMONIC_XLAT, select_xlat}, {ZYDIS_MNEMONIC_CBW, select_cbw},
    {ZYDIS_MNEMONIC_CWDE, select_cwde}, {ZYDIS_MNEMONIC_CDQE, select_cdqe}, {ZYDIS_MNEMONIC_CWD, select_cwd}, {ZYDIS_MNEMONIC_CDQ, select_cdq},
    {ZYDIS_MNEMONIC_CQO, select_cqo}, {ZYDIS_MNEMONIC_LAHF, select_lahf}, {ZYDIS_MNEMONIC_SAHF, select_sahf},
    CMOV(O), CMOV(NO), CMOV(B), CMOV(NB), CMOV(Z), CMOV(NZ), CMOV(BE), CMOV(NBE), CMOV(S), CMOV(NS), CMOV(P), CMOV(NP), CMOV(L), CMOV(NL), CMOV(LE), CMOV(NLE),
};
const struct x86_op_family x86_family_mov = {"mov", rows, ARRAY_SIZE(rows)};
