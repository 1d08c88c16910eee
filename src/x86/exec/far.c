/* Far JMP, CALL and RET, IRET, SYSCALL, SYSRET, SYSENTER, SYSEXIT: operands; the work is in cpu/. */
#include "x86/cpu/cpu.h"
#include "x86/exec/exec.h"
#include "x86/exec/far.h"

/* ptr16:16, ptr16:32: selector above the offset in imm. */
static int exec_jmp_ptr(struct x86_vcpu *c, const struct x86_insn *i) {
  return x86_far_jump(c, (u16)(i->imm >> 32), (u32)i->imm, i->opsize, x86_next_ip(c, i));
}

static int exec_call_ptr(struct x86_vcpu *c, const struct x86_insn *i) {
  return x86_far_call(c, (u16)(i->imm >> 32), (u32)i->imm, i->opsize, x86_next_ip(c, i));
}

/* m16:16, m16:32, m16:64: offset first.  AMD processors have no 64-bit offset here (APM Vol. 3, CALL far). */
static int load_pointer(struct x86_vcpu *c, const struct x86_insn *i, unsigned *size, u64 *off, u16 *sel) {
  u64 ea = x86_ea(c, i);
  *size = i->opsize == 8 && x86_is_amd(c) ? 4 : i->opsize;
  int r = load_size(c, i->seg, ea, *size, off);
  return r ? r : x86_load16(c, i->seg, (ea + *size) & i->ea_mask, sel);
}

static int exec_jmp_mem(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 off;
  u16 sel;
  unsigned size;
  int r = load_pointer(c, i, &size, &off, &sel);
  return r ? r : x86_far_jump(c, sel, off, size, x86_next_ip(c, i));
}

static int exec_call_mem(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 off;
  u16 sel;
  unsigned size;
  int r = load_pointer(c, i, &size, &off, &sel);
  return r ? r : x86_far_call(c, sel, off, size, x86_next_ip(c, i));
}

static int exec_retf(struct x86_vcpu *c, const struct x86_insn *i) { return x86_far_ret(c, i->opsize, (unsigned)(u16)i->imm); }
static int exec_iret(struct x86_vcpu *c, const struct x86_insn *i) { return x86_iret(c, i->opsize, x86_next_ip(c, i)); }
static int exec_syscall(struct x86_vcpu *c, const struct x86_insn *i) { return x86_syscall(c, x86_next_ip(c, i)); }
static int exec_sysret(struct x86_vcpu *c, const struct x86_insn *i) { return x86_sysret(c, i->opsize); }
static int exec_sysenter(struct x86_vcpu *c, const struct x86_insn *i) { return x86_sysenter(c); }
static int exec_sysexit(struct x86_vcpu *c, const struct x86_insn *i) { return x86_sysexit(c, i->opsize); }
static int exec_rsm(struct x86_vcpu *c, const struct x86_insn *i) { return x86_rsm(c); }

/* The operand size of these instructions is never changed by the 64-bit default: 16, 32, or 64 with REX.W. */
static void fixed_size(const struct x86_decoded *d, struct x86_insn *i) {
  i->opsize = (u8)(d->insn.operand_width / 8);
  i->iflags |= X86_I_END;
}

static x86_exec_fn *select_ptr(const struct x86_decoded *d, struct x86_insn *i, bool call) {
  const ZydisDecodedOperand *op = &d->ops[0];
  i->imm = (u64)op->ptr.segment << 32 | op->ptr.offset;
  if (i->opsize == 2) i->imm &= 0xffff0000ffffull;
  return call ? exec_call_ptr : exec_jmp_ptr;
}

x86_exec_fn *x86_far_select(const struct x86_decoded *d, struct x86_insn *i) {
  if (d->insn.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR) return NULL;
  fixed_size(d, i);
  unsigned m = d->insn.mnemonic;
  if (m == ZYDIS_MNEMONIC_RET) return exec_retf;
  bool call = m == ZYDIS_MNEMONIC_CALL;
  if (d->ops[0].type == ZYDIS_OPERAND_TYPE_POINTER) return select_ptr(d, i, call);
  return call ? exec_call_mem : exec_jmp_mem;
}

static x86_exec_fn *select_iret(const struct x86_decoded *d, struct x86_insn *i) {
  i->iflags |= X86_I_END;
  i->opsize = d->insn.mnemonic == ZYDIS_MNEMONIC_IRET ? 2 : d->insn.mnemonic == ZYDIS_MNEMONIC_IRETD ? 4 : 8;
  return exec_iret;
}

static x86_exec_fn *select_plain(const struct x86_decoded *d, struct x86_insn *i) {
  fixed_size(d, i);
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_SYSCALL: return exec_syscall;
  case ZYDIS_MNEMONIC_SYSRET: return exec_sysret;
  case ZYDIS_MNEMONIC_SYSENTER: return x86_cpuid_has(d->ctx->cpuid, X86_FEATURE_SEP) ? exec_sysenter : x86_exec_ud;
  case ZYDIS_MNEMONIC_SYSEXIT: return x86_cpuid_has(d->ctx->cpuid, X86_FEATURE_SEP) ? exec_sysexit : x86_exec_ud;
  default: return exec_rsm;
  }
}

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_CALL, x86_far_select},  {ZYDIS_MNEMONIC_JMP, x86_far_select},  {ZYDIS_MNEMONIC_RET, x86_far_select},
    {ZYDIS_MNEMONIC_IRET, select_iret},     {ZYDIS_MNEMONIC_IRETD, select_iret},   {ZYDIS_MNEMONIC_IRETQ, select_iret},
    {ZYDIS_MNEMONIC_SYSCALL, select_plain}, {ZYDIS_MNEMONIC_SYSRET, select_plain}, {ZYDIS_MNEMONIC_SYSENTER, select_plain},
    {ZYDIS_MNEMONIC_SYSEXIT, select_plain}, {ZYDIS_MNEMONIC_RSM, select_plain},
};
const struct x86_op_family x86_family_far = {"far", rows, ARRAY_SIZE(rows)};
