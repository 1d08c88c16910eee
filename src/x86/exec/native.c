/* Instructions that run on the host CPU: which way, and the handlers of x87 and MMX. */
#include <string.h>
#include "x86/exec/native.h"
#include "x86/exec/vector.h"

static int native_reg(struct x86_vcpu *c, const struct x86_insn *i) {
  const struct x86_native *n = i->aux;
  int r = x86_x87_check(c, n->mmx, n->waits);
  return r ? r : x86_x87_run(c, i, n, NULL);
}

/* Through a buffer; a store that faults changes nothing, nor does one that finds no host memory and never comes back. */
static int native_store(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_native *n, u64 ea) {
  u8 buf[16], before[sizeof(c->fpu.fx)], after[sizeof(c->fpu.fx)];
  memcpy(before, c->fpu.fx, sizeof(before));
  int r = x86_x87_run(c, i, n, buf);
  if (r || (n->x87 && x86_x87_not_stored(c))) return r;
  memcpy(after, c->fpu.fx, sizeof(after));
  memcpy(c->fpu.fx, before, sizeof(before));
  r = x86_write(c, i->seg, ea, buf, n->mem_size);
  if (!r) memcpy(c->fpu.fx, after, sizeof(after));
  else if (n->mmx) x86_mmx_top(c); /* as processors do; the manual has nothing about it */
  return r;
}

/* The memory operand in place where one page holds it and the TLB allows it; else through a buffer. */
static int native_mem(struct x86_vcpu *c, const struct x86_insn *i) {
  const struct x86_native *n = i->aux;
  u8 buf[64] __attribute__((aligned(64)));
  u64 lin, ea = x86_ea(c, i);
  int r = x86_x87_check(c, n->mmx, n->waits);
  if (r) return r;
  r = x86_linear(c, i->seg, ea, n->mem_size, n->mem_write ? ACC_WRITE : ACC_READ, &lin);
  if (unlikely(r)) return n->mem_read ? r : native_store(c, i, n, ea);
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  u64 last = (lin + n->mem_size - 1) & PAGE_MASK;
  if (likely((!n->mem_write || last == e->write) && (!n->mem_read || last == e->read))) return x86_x87_run(c, i, n, x86_tlb_host(e, lin));
  if (n->mem_read) {
    r = x86_read(c, i->seg, ea, buf, n->mem_size);
    if (r) return r;
  }
  if (!n->mem_write) return x86_x87_run(c, i, n, buf);
  return native_store(c, i, n, ea);
}

bool x86_x87_is_plain(const struct x86_insn *i) {
  x86_exec_fn *fn = __atomic_load_n(&i->fn, __ATOMIC_RELAXED); /* it may die meanwhile */
  const struct x86_native *n = i->aux;
  return (fn == native_reg || fn == native_mem) && n->x87 && !n->mmx;
}

/* What may run natively: nothing that touches system state. */
static bool runs_natively(ZydisISAExt ext) {
  switch (ext) {
  case ZYDIS_ISA_EXT_X87:
  case ZYDIS_ISA_EXT_MMX:
  case ZYDIS_ISA_EXT_SSE:
  case ZYDIS_ISA_EXT_SSE2:
  case ZYDIS_ISA_EXT_SSE3:
  case ZYDIS_ISA_EXT_SSSE3:
  case ZYDIS_ISA_EXT_SSE4:
  case ZYDIS_ISA_EXT_AES:
  case ZYDIS_ISA_EXT_PCLMULQDQ:
  case ZYDIS_ISA_EXT_SHA:
  case ZYDIS_ISA_EXT_GFNI:
  case ZYDIS_ISA_EXT_AVX:
  case ZYDIS_ISA_EXT_AVX2:
  case ZYDIS_ISA_EXT_AVX2GATHER:
  case ZYDIS_ISA_EXT_AVXAES:
  case ZYDIS_ISA_EXT_AVX_VNNI:
  case ZYDIS_ISA_EXT_FMA:
  case ZYDIS_ISA_EXT_F16C:
  case ZYDIS_ISA_EXT_VAES:
  case ZYDIS_ISA_EXT_VPCLMULQDQ:
  case ZYDIS_ISA_EXT_AVX512EVEX:
  case ZYDIS_ISA_EXT_AVX512VEX: return true;
  default: return false;
  }
}

/* x87 and pure MMX instructions: their registers are one state, which stubs load as a whole. */
static bool on_x87_state(const struct x86_decoded *d) {
  bool mmx = false;
  switch (d->insn.mnemonic) { /* floating-point conversions, also of a memory operand */
  case ZYDIS_MNEMONIC_CVTPS2PI:
  case ZYDIS_MNEMONIC_CVTTPS2PI:
  case ZYDIS_MNEMONIC_CVTPD2PI:
  case ZYDIS_MNEMONIC_CVTTPD2PI: return false;
  default: break;
  }
  if (d->insn.meta.isa_ext == ZYDIS_ISA_EXT_X87) return true;
  for (unsigned k = 0; k < d->insn.operand_count; k++) {
    if (d->ops[k].type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
    ZydisRegisterClass class = ZydisRegisterGetClass(d->ops[k].reg.value);
    if (class == ZYDIS_REGCLASS_X87) return true;
    if (class == ZYDIS_REGCLASS_XMM) return false;
    mmx |= class == ZYDIS_REGCLASS_MMX;
  }
  return mmx;
}

x86_exec_fn *x86_native_select(const struct x86_decoded *d, struct x86_insn *i) {
  x86_exec_fn *special = x86_x87_select(d, i);
  if (!special) special = x86_vector_masked_select(d, i);
  if (!special) special = x86_vector_gather_select(d, i);
  if (special) return special;
  if (!runs_natively(d->insn.meta.isa_ext)) return NULL;
  if (!on_x87_state(d)) return x86_vector_select(d, i);
  struct x86_native *n = x86_native_get(d);
  if (!n) return NULL;
  i->aux = n;
  i->imm = (u64)(d->insn.opcode & 7) << 8 | (d->insn.raw.modrm.mod << 6 | d->insn.raw.modrm.reg << 3 | d->insn.raw.modrm.rm);
  return n->mem_size ? native_mem : native_reg;
}
