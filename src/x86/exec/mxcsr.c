/* LDMXCSR and STMXCSR; VZEROUPPER and VZEROALL. */
#include <string.h>
#include "x86/exec/vector.h"
#include "x86/exec/xstate.h"

/* i->sub: enum x86_vector_class */

static int ldmxcsr(struct x86_vcpu *c, const struct x86_insn *i) {
  u32 v;
  if (unlikely(!x86_vector_enabled(c, i->sub))) return x86_vector_refuse(c, i->sub);
  int r = x86_load32(c, i->seg, x86_ea(c, i), &v);
  if (r) return r;
  if (v & ~MXCSR_MASK) return x86_gp0(c);
  x86_mxcsr_sync(c);
  c->fpu.mxcsr = v;
  return X86_OK;
}

static int stmxcsr(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(!x86_vector_enabled(c, i->sub))) return x86_vector_refuse(c, i->sub);
  x86_mxcsr_sync(c);
  return x86_store32(c, i->seg, x86_ea(c, i), c->fpu.mxcsr);
}

/* Registers that exist: 32-bit code has eight, and of those above 15 none is touched. */
static int vzero(struct x86_vcpu *c, unsigned from) {
  if (unlikely(!x86_vector_enabled(c, VECTOR_AVX))) return x86_vector_refuse(c, VECTOR_AVX);
  for (unsigned n = 0; n < (c->code64 ? 16u : 8u); n++) memset(c->fpu.zmm[n] + from, 0, 64 - from);
  return X86_OK;
}
static int vzeroall(struct x86_vcpu *c, const struct x86_insn *i) {
  return vzero(c, 0);
}
static int vzeroupper(struct x86_vcpu *c, const struct x86_insn *i) {
  return vzero(c, 16);
}

static u8 class_of(const struct x86_decoded *d) {
  return d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? VECTOR_AVX : VECTOR_SSE;
}
static x86_exec_fn *select_ldmxcsr(const struct x86_decoded *d, struct x86_insn *i) {
  return i->sub = class_of(d), ldmxcsr;
}
static x86_exec_fn *select_stmxcsr(const struct x86_decoded *d, struct x86_insn *i) {
  return i->sub = class_of(d), stmxcsr;
}
static x86_exec_fn *select_vzeroall(const struct x86_decoded *d, struct x86_insn *i) {
  return vzeroall;
}
static x86_exec_fn *select_vzeroupper(const struct x86_decoded *d, struct x86_insn *i) {
  return vzeroupper;
}

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_LDMXCSR, select_ldmxcsr},   {ZYDIS_MNEMONIC_STMXCSR, select_stmxcsr},
    {ZYDIS_MNEMONIC_VLDMXCSR, select_ldmxcsr},  {ZYDIS_MNEMONIC_VSTMXCSR, select_stmxcsr},
    {ZYDIS_MNEMONIC_VZEROALL, select_vzeroall}, {ZYDIS_MNEMONIC_VZEROUPPER, select_vzeroupper},
};
const struct x86_op_family x86_family_mxcsr = {"mxcsr", rows, ARRAY_SIZE(rows)};
