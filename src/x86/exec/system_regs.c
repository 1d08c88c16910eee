/* MOV to and from control and debug registers, CLTS.
 *
 * Manual: Intel SDM Vol. 2B MOV (control registers, debug registers); Vol. 3B 17.2 (debug registers). */
#include "x86/cpu/cpu.h"
#include "x86/exec/exec.h"
#include "x86/exec/system.h"

/* i->sub: number of the control or debug register; i->rm: the general one; i->opsize: 4, or 8 in 64-bit mode. */

static u64 operand(const struct x86_vcpu *c, const struct x86_insn *i) {
  return i->opsize == 8 ? c->regs[i->rm] : (u32)c->regs[i->rm];
}
static void put_operand(struct x86_vcpu *c, const struct x86_insn *i, u64 v) {
  c->regs[i->rm] = i->opsize == 8 ? v : (u32)v;
}

/* ---- control registers ---- */

static int exec_mov_from_cr(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(c->cpl)) return x86_gp0(c);
  u64 v = i->sub == 0 ? c->cr0 : i->sub == 2 ? c->cr2 : i->sub == 3 ? c->cr3 : i->sub == 4 ? c->cr4 : x86_get_cr8(c);
  put_operand(c, i, v);
  return X86_OK;
}

static int set_cr2(struct x86_vcpu *c, u64 v) {
  c->cr2 = v;
  return X86_OK;
}

static int exec_mov_to_cr(struct x86_vcpu *c, const struct x86_insn *i) {
  static int (*const set[9])(struct x86_vcpu * c,
                             u64 v) = {[0] = x86_set_cr0, [2] = set_cr2, [3] = x86_set_cr3, [4] = x86_set_cr4, [8] = x86_set_cr8};
  if (unlikely(c->cpl)) return x86_gp0(c);
  int r = set[i->sub](c, operand(c, i));
  return r ? r : X86_END;
}

static int exec_clts(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(c->cpl)) return x86_gp0(c);
  c->cr0 &= ~(u64)CR0_TS;
  return X86_END;
}

/* ---- debug registers ---- */

#define DR6_FIXED    0xffff0ff0ull
#define DR6_WRITABLE 0xe00full /* B0-B3, BD, BS, BT */
#define DR6_BD       0x2000ull
#define DR7_FIXED    0x400ull
#define DR7_WRITABLE 0xffff2bffull
#define DR7_GD       0x2000ull

/* DR4 and DR5 are DR6 and DR7, or nothing with CR4.DE; general detect comes last (SDM Vol. 3B 17.2.2, 17.2.4). */
static int check_dr(struct x86_vcpu *c, unsigned *dr) {
  if (*dr == 4 || *dr == 5) {
    if (c->cr4 & CR4_DE) return x86_ud(c);
    *dr += 2;
  }
  if (c->cpl) return x86_gp0(c);
  if (x86_debug_dr7(c) & DR7_GD) {
    c->fault = (struct x86_fault){.vector = VEC_DB, .payload = DR6_BD};
    return X86_FAULT;
  }
  return X86_OK;
}

static int exec_mov_from_dr(struct x86_vcpu *c, const struct x86_insn *i) {
  unsigned dr = i->sub;
  int r = check_dr(c, &dr);
  if (!r) put_operand(c, i, c->dr[dr]);
  return r;
}

static int exec_mov_to_dr(struct x86_vcpu *c, const struct x86_insn *i) {
  unsigned dr = i->sub;
  u64 v = operand(c, i);
  int r = check_dr(c, &dr);
  if (r) return r;
  if (dr >= 6 && v >> 32) return x86_gp0(c);
  if (dr == 6) v = (v & DR6_WRITABLE) | DR6_FIXED;
  if (dr == 7) v = (v & DR7_WRITABLE) | DR7_FIXED;
  c->dr[dr] = v;
  if (dr == 7) {
    x86_mode_changed(c);       /* breakpoints on or off: how blocks run */
    x86_mmu_rights_changed(c); /* ... and which table data accesses use */
  }
  return X86_END;
}

/* ---- selection ---- */

static bool is_cr(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->reg.value >= ZYDIS_REGISTER_CR0 && op->reg.value <= ZYDIS_REGISTER_CR15;
}
static bool is_dr(const ZydisDecodedOperand *op) {
  return op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->reg.value >= ZYDIS_REGISTER_DR0 && op->reg.value <= ZYDIS_REGISTER_DR15;
}

x86_exec_fn *x86_select_mov_cr_dr(const struct x86_decoded *d, struct x86_insn *i) {
  const ZydisDecodedOperand *to = &d->ops[0], *from = &d->ops[1];
  bool write = is_cr(to) || is_dr(to);
  const ZydisDecodedOperand *special = write ? to : from;
  if (!is_cr(special) && !is_dr(special)) return NULL;
  i->sub = (u8)ZydisRegisterGetId(special->reg.value);
  i->rm = (u8)x86_reg_number((write ? from : to)->reg.value);
  i->opsize = d->insn.machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? 8 : 4;
  if (write) i->iflags |= X86_I_END;
  if (is_dr(special)) return i->sub > 7 ? NULL : write ? exec_mov_to_dr : exec_mov_from_dr;
  if (i->sub == 1 || (i->sub > 4 && i->sub != 8)) return NULL;
  return write ? exec_mov_to_cr : exec_mov_from_cr;
}

x86_exec_fn *x86_select_clts(const struct x86_decoded *d, struct x86_insn *i) {
  i->iflags |= X86_I_END;
  return exec_clts;
}
