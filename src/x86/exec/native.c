/* SSE to AVX-512 and MMX on the host CPU: checks, memory operand, stub, floating-point exceptions. */
#include <string.h>
#include "x86/exec/native.h"

#define MXCSR_FLAGS 0x3fu
#define MXCSR_MASKS 0x1f80u
#define XCR0_AVX    6u
#define XCR0_AVX512 0xe6u

/* SDM Vol. 3A table 2-2 (SSE), Vol. 2A tables 2-18 to 2-25 (VEX), 2-41 and on (EVEX): #UD conditions, then #NM. */
int x86_native_enabled(struct x86_vcpu *c, const struct x86_native *n) {
  if (n->avx) {
    u64 need = n->evex ? XCR0_AVX512 : XCR0_AVX;
    if (!x86_protected(c) || x86_v86(c) || !(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & need) != need) return x86_ud(c);
  } else if ((c->cr0 & CR0_EM) || !(c->cr4 & CR4_OSFXSR)) {
    return x86_ud(c);
  }
  return c->cr0 & CR0_TS ? x86_fault(c, VEC_NM) : X86_OK;
}

/* With an exception unmasked: run on a copy of the state; what was raised decides whether the results count (SDM Vol. 1, 11.5.2). */
static int run_unmasked(struct x86_vcpu *c, const struct x86_native *n, void *mem, u64 *flags) {
  struct x86_fpu saved = c->fpu;
  u64 regs[X86_NREGS];
  memcpy(regs, c->regs, sizeof(regs));
  u32 masks = (c->fpu.mxcsr & MXCSR_MASKS) >> 7;
  c->fpu.mxcsr_run = (c->fpu.mxcsr | MXCSR_MASKS) & ~MXCSR_FLAGS;
  n->stub(c, mem, flags);
  u32 raised = c->fpu.mxcsr_run & MXCSR_FLAGS, hit = raised & ~masks;
  if (!hit) {
    c->fpu.mxcsr |= raised;
    return X86_OK;
  }
  memcpy(c->regs, regs, sizeof(regs));
  c->fpu = saved;
  if (hit & 7) raised &= 7; /* invalid, denormal, divide are found before the result is computed: nothing later is reported */
  c->fpu.mxcsr |= raised;
  return x86_fault(c, c->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
}

static int run(struct x86_vcpu *c, const struct x86_native *n, void *mem) {
  u64 flags;
  int r = X86_OK;
  if (n->fp) {
    if (unlikely((c->fpu.mxcsr & MXCSR_MASKS) != MXCSR_MASKS)) {
      r = run_unmasked(c, n, mem, &flags);
    } else {
      c->fpu.mxcsr_run = c->fpu.mxcsr;
      n->stub(c, mem, &flags);
      c->fpu.mxcsr = c->fpu.mxcsr_run;
    }
  } else {
    n->stub(c, mem, &flags);
  }
  if (!r && n->flags) c->rflags = (c->rflags & ~(u64)FL_ARITH) | (flags & FL_ARITH);
  return r;
}

static int run_any(struct x86_vcpu *c, const struct x86_native *n, void *mem) {
  return n->x87 || n->mmx ? x86_x87_run(c, n, mem) : run(c, n, mem);
}

static int check(struct x86_vcpu *c, const struct x86_native *n) {
  if (n->x87 || n->mmx) return x86_x87_check(c, n->mmx, n->waits);
  return x86_native_enabled(c, n);
}

static int native_reg(struct x86_vcpu *c, const struct x86_insn *i) {
  const struct x86_native *n = i->aux;
  int r = check(c, n);
  return r ? r : run_any(c, n, NULL);
}

/* The memory operand in place where one page holds it and the TLB allows it; else through a buffer. */
static int native_mem(struct x86_vcpu *c, const struct x86_insn *i) {
  const struct x86_native *n = i->aux;
  u8 buf[64] __attribute__((aligned(64)));
  u64 lin, ea = x86_ea(c, i);
  int r = check(c, n);
  if (r) return r;
  r = x86_linear(c, i->seg, ea, n->mem_size, n->mem_write ? ACC_WRITE : ACC_READ, &lin);
  if (r) return r;
  if (n->mem_aligned && (lin & (n->mem_size - 1u))) return x86_gp0(c);
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  u64 last = (lin + n->mem_size - 1) & PAGE_MASK;
  if (likely((!n->mem_write || last == e->write) && (!n->mem_read || last == e->read))) return run_any(c, n, (void *)(uintptr_t)(lin + e->addend));
  if (n->mem_read) {
    r = x86_read(c, i->seg, ea, buf, n->mem_size);
    if (r) return r;
  }
  if (!n->mem_write) return run_any(c, n, buf);
  /* Stores change no other register: the memory part comes last and may fault. */
  r = run_any(c, n, buf);
  return r ? r : x86_write(c, i->seg, ea, buf, n->mem_size);
}

/* MASKMOVQ, MASKMOVDQU: bytes chosen by the mask go to DS:rDI. */
static int maskmov(struct x86_vcpu *c, const struct x86_insn *i) {
  unsigned size = i->sub;
  int r = size == 8 ? x86_x87_check(c, true, true) : x86_native_enabled(c, &(struct x86_native){.sse = true});
  const u8 *src = size == 8 ? &c->fpu.fx[32 + 16 * i->reg] : c->fpu.zmm[i->reg], *mask = size == 8 ? &c->fpu.fx[32 + 16 * i->rm] : c->fpu.zmm[i->rm];
  for (unsigned k = 0; !r && k < size; k++)
    if (mask[k] & 0x80) r = x86_store8(c, i->seg, (c->regs[RDI] + k) & i->ea_mask, src[k]);
  return r;
}

x86_exec_fn *x86_native_select(const struct x86_decoded *d, struct x86_insn *i) {
  if (d->insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || d->insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU) {
    i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ? 8 : 16;
    i->seg = SEG_DS;
    unsigned n = 0, reg[2] = {0, 0};
    for (unsigned k = 0; k < d->insn.operand_count && n < 2; k++)
      if (d->ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER) reg[n++] = (unsigned)ZydisRegisterGetId(d->ops[k].reg.value);
    i->reg = (u8)reg[0];
    i->rm = (u8)reg[1];
    return maskmov;
  }
  x86_exec_fn *special = x86_x87_select(d, i);
  if (!special) special = x86_masked_select(d, i);
  if (special) return special;
  switch (d->insn.meta.isa_ext) { /* what a stub may hold: nothing that touches system state */
  case ZYDIS_ISA_EXT_X87: case ZYDIS_ISA_EXT_MMX: case ZYDIS_ISA_EXT_SSE: case ZYDIS_ISA_EXT_SSE2: case ZYDIS_ISA_EXT_SSE3: case ZYDIS_ISA_EXT_SSSE3:
  case ZYDIS_ISA_EXT_SSE4: case ZYDIS_ISA_EXT_AES: case ZYDIS_ISA_EXT_PCLMULQDQ: case ZYDIS_ISA_EXT_SHA: case ZYDIS_ISA_EXT_AVX: case ZYDIS_ISA_EXT_AVX2:
  case ZYDIS_ISA_EXT_AVXAES: case ZYDIS_ISA_EXT_FMA: case ZYDIS_ISA_EXT_F16C: case ZYDIS_ISA_EXT_GFNI: case ZYDIS_ISA_EXT_VAES: break;
  default: return NULL;
  }
  struct x86_native *n = x86_native_get(d);
  if (!n) return NULL;
  i->aux = n;
  return n->mem_size ? native_mem : native_reg;
}
