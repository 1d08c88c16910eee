/* Segment registers and descriptor tables: MOV, PUSH, POP and pointer loads of segment registers, LGDT and its kin, LLDT, LTR,
 * LAR, LSL, VERR, VERW, LMSW, SMSW, SWAPGS, the FS and GS base instructions, CLAC and STAC.
 *
 * Intel SDM Vol. 2, the instructions' operation sections.
 */
#include "x86/cpu/cpu.h"
#include "x86/exec/exec.h"

/* The r/m16 source of LLDT, LTR, LAR, VERR, MOV Sreg. */
static int source16(struct x86_vcpu *c, const struct x86_insn *i, u16 *v) {
  if (i->iflags & X86_I_MEM) return x86_load16(c, i->seg, x86_ea(c, i), v);
  *v = get16(c, i->rm);
  return X86_OK;
}

/* The destination of SLDT, STR, MOV from Sreg: 16 bits of memory, or a register, zero-extended. */
static int store_selector(struct x86_vcpu *c, const struct x86_insn *i, u64 v) {
  if (i->iflags & X86_I_MEM) return x86_store16(c, i->seg, x86_ea(c, i), (u16)v);
  put_size(c, i->rm, i->opsize, v);
  return X86_OK;
}

/* CR4.UMIP (SDM Vol. 3A 2.5). */
static bool umip_refuses(const struct x86_vcpu *c) { return (c->cr4 & CR4_UMIP) && c->cpl > 0; }

/* ---- MOV, PUSH, POP ---- */

static int exec_mov_from_sreg(struct x86_vcpu *c, const struct x86_insn *i) { return store_selector(c, i, c->seg[i->sub].sel); }

/* 32-bit code is translated for flat segments, or looks at them each time, as 16-bit code does: but for the width of the stack. */
static int flow_of(const struct x86_vcpu *c, unsigned seg) {
  if ((c->code.segmented || (c->mode & X86_MODE_SIZE) == X86_MODE_16) && seg != SEG_SS) return X86_OK;
  return c->code64 || seg >= SEG_FS || (seg != SEG_SS && c->seg[seg].flat == X86_SEG_FLAT) ? X86_OK : X86_END;
}

/* SS: interrupts and debug traps wait for one more instruction (SDM Vol. 3A 6.8.3). */
static int loaded(struct x86_vcpu *c, const struct x86_insn *i) {
  if (i->sub != SEG_SS) return flow_of(c, i->sub);
  x86_debug_mov_ss(c);
  return X86_END;
}

static int exec_mov_to_sreg(struct x86_vcpu *c, const struct x86_insn *i) {
  u16 sel;
  int r = source16(c, i, &sel);
  if (!r) r = x86_load_seg(c, i->sub, sel);
  return r ? r : loaded(c, i);
}

/* Vol. 2 PUSH: with a 32-bit operand size Intel processors write 16 bits and leave the rest of the slot. */
static int exec_push_sreg(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 sp = (c->regs[RSP] - i->opsize) & stack_mask(c);
  unsigned width = i->opsize == 4 && !x86_is_amd(c) ? 2 : i->opsize;
  int r = store_size(c, SEG_SS, sp, width, c->seg[i->sub].sel);
  if (!r) set_sp(c, sp);
  return r;
}

static int exec_pop_sreg(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 sp = c->regs[RSP] & stack_mask(c);
  u64 old_mask = stack_mask(c);
  u16 sel;
  int r = x86_load16(c, SEG_SS, sp, &sel);
  if (!r) r = x86_load_seg(c, i->sub, sel);
  if (r) return r;
  /* The pointer moves with the size of the stack it was popped from, also for POP SS. */
  if (old_mask == 0xffff)
    put16(c, RSP, (u16)(sp + i->opsize));
  else
    c->regs[RSP] = (sp + i->opsize) & old_mask;
  return loaded(c, i);
}

/* LDS, LES, LSS, LFS, LGS. */
static int exec_load_pointer(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 ea = x86_ea(c, i), off;
  unsigned size = i->opsize == 8 && x86_is_amd(c) ? 4 : i->opsize;
  u16 sel;
  int r = load_size(c, i->seg, ea, size, &off);
  if (!r) r = x86_load16(c, i->seg, (ea + size) & i->ea_mask, &sel);
  if (!r) r = x86_load_seg(c, i->sub, sel);
  if (r) return r;
  put_size(c, i->reg, size, off);
  return flow_of(c, i->sub);
}

/* ---- GDTR, IDTR ---- */

static int store_table(struct x86_vcpu *c, const struct x86_insn *i, u64 base, u16 limit) {
  u8 data[10];
  unsigned size = c->code64 ? 10 : 6;
  u64 ea = x86_ea(c, i);
  if (umip_refuses(c)) return x86_gp0(c);
  if (unlikely(x86_alignment_checked(c))) { /* SDM Vol. 3A 3.5.1: a word and a pointer, each aligned by itself */
    int r = store_size(c, i->seg, ea + 2, size - 2, base);
    return r ? r : x86_store16(c, i->seg, ea, limit);
  }
  *(x86_u16_unaligned *)data = limit;
  *(x86_u64_unaligned *)(data + 2) = base;
  return x86_write(c, i->seg, ea, data, size);
}
static int exec_sgdt(struct x86_vcpu *c, const struct x86_insn *i) { return store_table(c, i, c->gdtr.base, c->gdtr.limit); }
static int exec_sidt(struct x86_vcpu *c, const struct x86_insn *i) { return store_table(c, i, c->idtr.base, c->idtr.limit); }

static int load_table(struct x86_vcpu *c, const struct x86_insn *i, u64 *base, u16 *limit) {
  u8 data[10] = {0};
  if (c->cpl) return x86_gp0(c);
  int r = x86_read(c, i->seg, x86_ea(c, i), data, c->code64 ? 10 : 6);
  if (r) return r;
  *limit = *(x86_u16_unaligned *)data;
  *base = *(x86_u64_unaligned *)(data + 2);
  if (c->code64) return x86_canonical(c, *base) ? X86_OK : x86_gp0(c);
  *base &= i->opsize == 2 ? 0xffffff : 0xffffffff;
  return X86_OK;
}
static int exec_lgdt(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 base;
  u16 limit;
  int r = load_table(c, i, &base, &limit);
  if (r) return r;
  c->gdtr.base = base;
  c->gdtr.limit = limit;
  return X86_OK;
}
static int exec_lidt(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 base;
  u16 limit;
  int r = load_table(c, i, &base, &limit);
  if (r) return r;
  c->idtr.base = base;
  c->idtr.limit = limit;
  return X86_OK;
}

/* ---- LDTR, TR ---- */

static int exec_sldt(struct x86_vcpu *c, const struct x86_insn *i) {
  return umip_refuses(c) ? x86_gp0(c) : store_selector(c, i, c->ldtr.sel);
}
static int exec_str(struct x86_vcpu *c, const struct x86_insn *i) {
  return umip_refuses(c) ? x86_gp0(c) : store_selector(c, i, c->tr.sel);
}

static int exec_lldt(struct x86_vcpu *c, const struct x86_insn *i) {
  u16 sel;
  if (c->cpl) return x86_gp0(c);
  int r = source16(c, i, &sel);
  return r ? r : x86_load_ldt(c, sel);
}
static int exec_ltr(struct x86_vcpu *c, const struct x86_insn *i) {
  u16 sel;
  if (c->cpl) return x86_gp0(c);
  int r = source16(c, i, &sel);
  return r ? r : x86_load_tr(c, sel);
}

/* ---- machine status word ---- */

static int exec_smsw(struct x86_vcpu *c, const struct x86_insn *i) {
  return umip_refuses(c) ? x86_gp0(c) : store_selector(c, i, c->cr0);
}

/* PE can be set, not cleared. */
static int exec_lmsw(struct x86_vcpu *c, const struct x86_insn *i) {
  u16 v;
  if (c->cpl) return x86_gp0(c);
  int r = source16(c, i, &v);
  if (r) return r;
  u64 keep = c->cr0 & ~(u64)(CR0_MP | CR0_EM | CR0_TS);
  r = x86_set_cr0(c, keep | (v & (CR0_PE | CR0_MP | CR0_EM | CR0_TS)));
  return r ? r : X86_END;
}

/* ---- LAR, LSL, VERR, VERW ---- */

static int query(struct x86_vcpu *c, const struct x86_insn *i, enum x86_query what, bool *ok, u32 *value) {
  u16 sel;
  int r = source16(c, i, &sel);
  if (!r) r = x86_seg_query(c, sel, what, ok, value);
  if (!r) c->rflags = (c->rflags & ~(u64)FL_ZF) | (*ok ? FL_ZF : 0);
  return r;
}

static int exec_verify(struct x86_vcpu *c, const struct x86_insn *i) {
  bool ok;
  u32 value;
  return query(c, i, i->sub, &ok, &value);
}

static int exec_lar_lsl(struct x86_vcpu *c, const struct x86_insn *i) {
  bool ok;
  u32 value;
  int r = query(c, i, i->sub, &ok, &value);
  if (!r && ok) put_size(c, i->reg, i->opsize, value);
  return r;
}

/* ---- 64-bit FS and GS ---- */

static int exec_swapgs(struct x86_vcpu *c, const struct x86_insn *i) {
  if (c->cpl) return x86_gp0(c);
  u64 base = c->seg[SEG_GS].base;
  c->seg[SEG_GS].base = c->kernel_gs_base;
  c->kernel_gs_base = base;
  return X86_OK;
}

static int exec_read_base(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!(c->cr4 & CR4_FSGSBASE)) return x86_ud(c);
  put_size(c, i->rm, i->opsize, c->seg[i->sub].base);
  return X86_OK;
}

static int exec_write_base(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!(c->cr4 & CR4_FSGSBASE)) return x86_ud(c);
  u64 base = get_size(c, i->rm, i->opsize);
  if (!x86_canonical(c, base)) return x86_gp0(c);
  c->seg[i->sub].base = base;
  return X86_OK;
}

/* ---- CLAC, STAC ---- */

static int set_ac(struct x86_vcpu *c, u64 v) {
  if (c->cpl) return x86_ud(c);
  x86_set_rflags(c, v, FL_AC);
  return X86_END; /* other rights: translated code is made for them */
}
static int exec_clac(struct x86_vcpu *c, const struct x86_insn *i) { return set_ac(c, 0); }
static int exec_stac(struct x86_vcpu *c, const struct x86_insn *i) { return set_ac(c, FL_AC); }

/* ---- selection ---- */

static bool is_sreg(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}
static u8 sreg(const ZydisDecodedOperand *op) { return (u8)(op->reg.value - ZYDIS_REGISTER_ES); }

/* Loads of SS end the block: the next instruction runs in the shadow. */
static void ends_for_ss(struct x86_insn *i) {
  if (i->sub == SEG_SS) i->iflags |= X86_I_END;
}

static void operand_rm(const ZydisDecodedOperand *op, struct x86_insn *i) {
  if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) i->rm = (u8)x86_reg_number(op->reg.value);
}

static x86_exec_fn *select_mov(const struct x86_decoded *d, struct x86_insn *i) {
  if (is_sreg(&d->ops[1])) {
    i->sub = sreg(&d->ops[1]);
    i->opsize = (u8)(d->ops[0].size / 8);
    operand_rm(&d->ops[0], i);
    return exec_mov_from_sreg;
  }
  if (!is_sreg(&d->ops[0])) return NULL;
  i->sub = sreg(&d->ops[0]);
  operand_rm(&d->ops[1], i);
  ends_for_ss(i);
  return i->sub == SEG_CS ? x86_exec_ud : exec_mov_to_sreg;
}

static x86_exec_fn *select_push(const struct x86_decoded *d, struct x86_insn *i) {
  if (!is_sreg(&d->ops[0])) return NULL;
  i->sub = sreg(&d->ops[0]);
  i->opsize = (u8)(d->insn.operand_width / 8);
  return exec_push_sreg;
}

static x86_exec_fn *select_pop(const struct x86_decoded *d, struct x86_insn *i) {
  if (!is_sreg(&d->ops[0])) return NULL;
  i->sub = sreg(&d->ops[0]);
  i->opsize = (u8)(d->insn.operand_width / 8);
  ends_for_ss(i);
  return exec_pop_sreg;
}

static x86_exec_fn *select_pointer(const struct x86_decoded *d, struct x86_insn *i) {
  if (d->ops[1].type != ZYDIS_OPERAND_TYPE_MEMORY) return NULL;
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_LDS: i->sub = SEG_DS; break;
  case ZYDIS_MNEMONIC_LES: i->sub = SEG_ES; break;
  case ZYDIS_MNEMONIC_LFS: i->sub = SEG_FS; break;
  case ZYDIS_MNEMONIC_LGS: i->sub = SEG_GS; break;
  default: i->sub = SEG_SS;
  }
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  i->opsize = (u8)(d->ops[0].size / 8);
  return exec_load_pointer;
}

static x86_exec_fn *select_table(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = (u8)(d->insn.operand_width / 8);
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_LGDT: return exec_lgdt;
  case ZYDIS_MNEMONIC_LIDT: return exec_lidt;
  case ZYDIS_MNEMONIC_SGDT: return exec_sgdt;
  default: return exec_sidt;
  }
}

/* #UD in real and virtual-8086 mode. */
static x86_exec_fn *select_system_segment(const struct x86_decoded *d, struct x86_insn *i) {
  operand_rm(&d->ops[0], i);
  i->opsize = (u8)(d->ops[0].size / 8);
  if (d->ctx->mode & X86_MODE_REAL) return x86_exec_ud;
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_LLDT: return exec_lldt;
  case ZYDIS_MNEMONIC_LTR: return exec_ltr;
  case ZYDIS_MNEMONIC_SLDT: return exec_sldt;
  case ZYDIS_MNEMONIC_STR: return exec_str;
  case ZYDIS_MNEMONIC_VERR: i->sub = QUERY_VERR; return exec_verify;
  default: i->sub = QUERY_VERW; return exec_verify;
  }
}

static x86_exec_fn *select_lar_lsl(const struct x86_decoded *d, struct x86_insn *i) {
  operand_rm(&d->ops[1], i);
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  i->opsize = (u8)(d->ops[0].size / 8);
  i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_LAR ? QUERY_LAR : QUERY_LSL;
  return d->ctx->mode & X86_MODE_REAL ? x86_exec_ud : exec_lar_lsl;
}

static x86_exec_fn *select_msw(const struct x86_decoded *d, struct x86_insn *i) {
  operand_rm(&d->ops[0], i);
  i->opsize = (u8)(d->ops[0].size / 8);
  if (d->insn.mnemonic == ZYDIS_MNEMONIC_SMSW) return exec_smsw;
  i->iflags |= X86_I_END;
  return exec_lmsw;
}

static x86_exec_fn *select_base(const struct x86_decoded *d, struct x86_insn *i) {
  unsigned m = d->insn.mnemonic;
  operand_rm(&d->ops[0], i);
  i->opsize = (u8)(d->ops[0].size / 8);
  i->sub = m == ZYDIS_MNEMONIC_RDFSBASE || m == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS;
  return m == ZYDIS_MNEMONIC_RDFSBASE || m == ZYDIS_MNEMONIC_RDGSBASE ? exec_read_base : exec_write_base;
}

static x86_exec_fn *select_plain(const struct x86_decoded *d, struct x86_insn *i) {
  if (d->insn.mnemonic == ZYDIS_MNEMONIC_SWAPGS) return exec_swapgs;
  i->iflags |= X86_I_END;
  return d->insn.mnemonic == ZYDIS_MNEMONIC_CLAC ? exec_clac : exec_stac;
}

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_MOV, select_mov},
    {ZYDIS_MNEMONIC_PUSH, select_push},
    {ZYDIS_MNEMONIC_POP, select_pop},
    {ZYDIS_MNEMONIC_LDS, select_pointer},
    {ZYDIS_MNEMONIC_LES, select_pointer},
    {ZYDIS_MNEMONIC_LSS, select_pointer},
    {ZYDIS_MNEMONIC_LFS, select_pointer},
    {ZYDIS_MNEMONIC_LGS, select_pointer},
    {ZYDIS_MNEMONIC_LGDT, select_table},
    {ZYDIS_MNEMONIC_LIDT, select_table},
    {ZYDIS_MNEMONIC_SGDT, select_table},
    {ZYDIS_MNEMONIC_SIDT, select_table},
    {ZYDIS_MNEMONIC_LLDT, select_system_segment},
    {ZYDIS_MNEMONIC_LTR, select_system_segment},
    {ZYDIS_MNEMONIC_SLDT, select_system_segment},
    {ZYDIS_MNEMONIC_STR, select_system_segment},
    {ZYDIS_MNEMONIC_VERR, select_system_segment},
    {ZYDIS_MNEMONIC_VERW, select_system_segment},
    {ZYDIS_MNEMONIC_LAR, select_lar_lsl},
    {ZYDIS_MNEMONIC_LSL, select_lar_lsl},
    {ZYDIS_MNEMONIC_LMSW, select_msw},
    {ZYDIS_MNEMONIC_SMSW, select_msw},
    {ZYDIS_MNEMONIC_SWAPGS, select_plain},
    {ZYDIS_MNEMONIC_CLAC, select_plain},
    {ZYDIS_MNEMONIC_STAC, select_plain},
    {ZYDIS_MNEMONIC_RDFSBASE, select_base},
    {ZYDIS_MNEMONIC_RDGSBASE, select_base},
    {ZYDIS_MNEMONIC_WRFSBASE, select_base},
    {ZYDIS_MNEMONIC_WRGSBASE, select_base},
};
const struct x86_op_family x86_family_segment = {"segment", rows, ARRAY_SIZE(rows)};
