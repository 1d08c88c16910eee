/* What the instruction families share: register access, flags, conditions, and the table of widths. */
#ifndef X86_EXEC_EXEC_H
#define X86_EXEC_EXEC_H

#include "x86/decode/decoded.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

/* Register operands by width.  8-bit ones are byte offsets into regs[] (insn.h); 32-bit writes zero the upper half. */
static inline u8 get8(const struct x86_vcpu *c, unsigned n) { return ((const u8 *)c->regs)[n]; }
static inline u16 get16(const struct x86_vcpu *c, unsigned n) { return (u16)c->regs[n]; }
static inline u32 get32(const struct x86_vcpu *c, unsigned n) { return (u32)c->regs[n]; }
static inline u64 get64(const struct x86_vcpu *c, unsigned n) { return c->regs[n]; }
static inline void put8(struct x86_vcpu *c, unsigned n, u8 v) { ((u8 *)c->regs)[n] = v; }
static inline void put16(struct x86_vcpu *c, unsigned n, u16 v) { *(volatile x86_u16_unaligned *)&c->regs[n] = v; }
static inline void put32(struct x86_vcpu *c, unsigned n, u32 v) { c->regs[n] = v; }
static inline void put64(struct x86_vcpu *c, unsigned n, u64 v) { c->regs[n] = v; }

static inline u64 get_size(const struct x86_vcpu *c, unsigned n, unsigned size) {
  switch (size) {
  case 1: return get8(c, n);
  case 2: return get16(c, n);
  case 4: return get32(c, n);
  default: return get64(c, n);
  }
}
static inline void put_size(struct x86_vcpu *c, unsigned n, unsigned size, u64 v) {
  switch (size) {
  case 1: put8(c, n, (u8)v); break;
  case 2: put16(c, n, (u16)v); break;
  case 4: put32(c, n, (u32)v); break;
  default: put64(c, n, v);
  }
}

/* Host flags after an instruction, by LAHF and SETO: no stack use, so inline assembly is safe with a red zone.
 * raw: AH = SF ZF . AF . PF . CF, AL = OF. */
#define CATCH_FLAGS "\n\tlahf\n\tseto %%al"
static inline u32 flags_of(u32 raw) { return ((raw >> 8) & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) | ((raw & 1) << 11); }
static inline void set_flags(struct x86_vcpu *c, u32 raw) { c->rflags = (c->rflags & ~(u64)FL_ARITH) | flags_of(raw); }
static inline void set_flags_mask(struct x86_vcpu *c, u32 raw, u32 mask) { c->rflags = (c->rflags & ~(u64)mask) | (flags_of(raw) & mask); }

/* Loads all six guest flags before an instruction, from raw = flags_raw(): for those that keep some of them or leave them undefined. */
#define GIVE_FLAGS "addb $127, %%al\n\tsahf\n\t"
static inline u32 flags_raw(const struct x86_vcpu *c) {
  u32 f = (u32)c->rflags;
  return (f & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) << 8 | (f >> 11 & 1);
}

/* Condition codes as in the low four bits of Jcc, SETcc, CMOVcc (SDM Vol. 1, appendix B). */
static inline bool condition(u64 f, unsigned cc) {
  bool r;
  switch (cc >> 1) {
  case 0: r = f & FL_OF; break;
  case 1: r = f & FL_CF; break;
  case 2: r = f & FL_ZF; break;
  case 3: r = f & (FL_CF | FL_ZF); break;
  case 4: r = f & FL_SF; break;
  case 5: r = f & FL_PF; break;
  case 6: r = !(f & FL_SF) != !(f & FL_OF); break;
  default: r = (f & FL_ZF) || !(f & FL_SF) != !(f & FL_OF);
  }
  return r ^ (cc & 1);
}

/* Operand forms a select function distinguishes. */
enum x86_form { FORM_RR, FORM_RI, FORM_RM, FORM_MR, FORM_MI, FORM_R, FORM_M, FORM_COUNT, FORM_NONE = -1 };

/* Index of a width in a handler table: 1 2 4 8 bytes -> 0 1 2 3. */
static inline unsigned width_index(unsigned size) { return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3; }

/* decode/decode.c: number of a register operand as insn.h wants it. */
unsigned x86_reg_number(ZydisRegister reg);
unsigned x86_segment_number(ZydisRegister reg);
/* Explicit operands' form; fills i->rm (first register), i->reg (second register, or the one beside memory) and i->opsize from the first operand. */
enum x86_form x86_operands(const struct x86_decoded *d, struct x86_insn *i);
/* Destination register in i->reg, r/m source, width of the destination. */
static inline void x86_dest_source(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = (u8)(d->ops[0].size / 8);
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  if (d->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER) i->rm = (u8)x86_reg_number(d->ops[1].reg.value);
}

/* What has no row of its own: SIMD and x87 (native.c).  Far forms of CALL, JMP and RET (far.c). */
x86_exec_fn *x86_native_select(const struct x86_decoded *d, struct x86_insn *i);
x86_exec_fn *x86_far_select(const struct x86_decoded *d, struct x86_insn *i);

/* Memory operands, in two variants.  `simple` is 64-bit mode, 64-bit addresses, no index register and no FS or GS: the linear address is base + displacement. */
static inline bool x86_address_simple(const struct x86_decoded *d, const struct x86_insn *i) {
  return (d->ctx->mode & X86_MODE_SIZE) == X86_MODE_64 && i->adsize == 8 && i->index == X86_REG_NONE && i->seg < SEG_FS;
}
static inline u64 simple_linear(const struct x86_vcpu *c, const struct x86_insn *i) { return c->regs[i->base] + (u64)i->disp; }
/* lin_*: by linear address; seg only chooses #SS or #GP. */
#define DEFINE_OPERAND_ACCESS(bits)                                                                                              \
  GUEST_ACCESS static inline int lin_load##bits(struct x86_vcpu *c, unsigned seg, u64 lin, u##bits *out) {                                    \
    struct x86_tlb_entry *e = x86_tlb_slot(c, lin);                                                                              \
    if (unlikely(((lin + bits / 8 - 1) & PAGE_MASK) != e->read)) return x86_read_slow(c, seg, lin, out, bits / 8);               \
    *out = *(volatile x86_u##bits##_unaligned *)x86_tlb_host(e, lin);                                                    \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  GUEST_ACCESS static inline int lin_store##bits(struct x86_vcpu *c, unsigned seg, u64 lin, u##bits v) {                                      \
    struct x86_tlb_entry *e = x86_tlb_slot(c, lin);                                                                              \
    if (unlikely(((lin + bits / 8 - 1) & PAGE_MASK) != e->write)) return x86_write_slow(c, seg, lin, &v, bits / 8);              \
    *(volatile x86_u##bits##_unaligned *)x86_tlb_host(e, lin) = v;                                                       \
    return X86_OK;                                                                                                               \
  }                                                                                                                              \
  static inline int simple_load##bits(struct x86_vcpu *c, const struct x86_insn *i, u##bits *out) {                              \
    return lin_load##bits(c, i->seg, simple_linear(c, i), out);                                                                  \
  }                                                                                                                              \
  static inline int simple_store##bits(struct x86_vcpu *c, const struct x86_insn *i, u##bits v) {                                \
    return lin_store##bits(c, i->seg, simple_linear(c, i), v);                                                                   \
  }                                                                                                                              \
  static inline int general_load##bits(struct x86_vcpu *c, const struct x86_insn *i, u##bits *out) {                             \
    return x86_load##bits(c, i->seg, x86_ea(c, i), out);                                                                         \
  }                                                                                                                              \
  static inline int general_store##bits(struct x86_vcpu *c, const struct x86_insn *i, u##bits v) {                               \
    return x86_store##bits(c, i->seg, x86_ea(c, i), v);                                                                          \
  }
DEFINE_OPERAND_ACCESS(8) DEFINE_OPERAND_ACCESS(16) DEFINE_OPERAND_ACCESS(32) DEFINE_OPERAND_ACCESS(64)
static inline int simple_rmw_begin(struct x86_vcpu *c, const struct x86_insn *i, unsigned size, bool locked, void **host) {
  u64 lin = simple_linear(c, i);
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  if (unlikely(((lin + size - 1) & PAGE_MASK) != e->write || e->write != e->read)) return x86_rmw_begin_slow(c, i->seg, lin, size, locked, host);
  *host = x86_tlb_host(e, lin);
  c->rmw.kind = 0;
  if (locked) x86_note_lock(c, lin, size);
  return X86_OK;
}
static inline int general_rmw_begin(struct x86_vcpu *c, const struct x86_insn *i, unsigned size, bool locked, void **host) {
  return x86_rmw_begin(c, i->seg, x86_ea(c, i), size, locked, host);
}

/* Pushes and pops with the stack's size; nothing changes when they fail. */
static inline u64 stack_mask(const struct x86_vcpu *c) { return c->code64 ? ~0ull : c->seg[SEG_SS].db ? 0xffffffffull : 0xffffull; }
static inline void set_sp(struct x86_vcpu *c, u64 sp) {
  u64 m = stack_mask(c);
  if (m == 0xffffull) put16(c, RSP, (u16)sp);
  else c->regs[RSP] = sp & m;
}
static inline int store_size(struct x86_vcpu *c, unsigned seg, u64 ea, unsigned size, u64 v) {
  switch (size) {
  case 1: return x86_store8(c, seg, ea, (u8)v);
  case 2: return x86_store16(c, seg, ea, (u16)v);
  case 4: return x86_store32(c, seg, ea, (u32)v);
  default: return x86_store64(c, seg, ea, v);
  }
}
static inline int load_size(struct x86_vcpu *c, unsigned seg, u64 ea, unsigned size, u64 *v) {
  u8 b;
  u16 w;
  u32 l;
  int r;
  switch (size) {
  case 1: r = x86_load8(c, seg, ea, &b), *v = b; return r;
  case 2: r = x86_load16(c, seg, ea, &w), *v = w; return r;
  case 4: r = x86_load32(c, seg, ea, &l), *v = l; return r;
  default: return x86_load64(c, seg, ea, v);
  }
}
/* The r/m operand, register or memory. */
static inline int x86_operand(struct x86_vcpu *c, const struct x86_insn *i, u64 *v) {
  if (i->iflags & X86_I_MEM) return load_size(c, i->seg, x86_ea(c, i), i->opsize, v);
  *v = get_size(c, i->rm, i->opsize);
  return X86_OK;
}
static inline int push_size(struct x86_vcpu *c, unsigned size, u64 v) {
  u64 sp = (c->regs[RSP] - size) & stack_mask(c);
  int r = store_size(c, SEG_SS, sp, size, v);
  if (likely(!r)) set_sp(c, sp);
  return r;
}
static inline int pop_size(struct x86_vcpu *c, unsigned size, u64 *v) {
  u64 sp = c->regs[RSP] & stack_mask(c);
  int r = load_size(c, SEG_SS, sp, size, v);
  if (likely(!r)) set_sp(c, sp + size);
  return r;
}

#endif
