/* Floating-point control and exceptions of SSE to AVX-512.
 *
 * While a vCPU runs, the host's MXCSR holds the guest's as long as that masks all exceptions (fpu.live): loading it costs a
 * hundred cycles when control bits change, and the flags gather by themselves.  Everyone else sees fpu.mxcsr after
 * x86_mxcsr_sync().
 *
 * With an exception unmasked, an instruction runs beside its destination with all exceptions masked, and its flags decide: SDM
 * Vol. 1 11.5.2 and appendix E.4.
 */
#include <string.h>
#include "x86/exec/vector.h"

#define FLAGS    0x3fu
#define MASKS    0x1f80u
#define FTZ      0x8000u
#define IE       1u
#define DE       2u
#define ZE       4u
#define OE       8u
#define UE       0x10u
#define PE       0x20u
#define OPERANDS (IE | DE | ZE) /* found before the result is computed */

static inline u32 stmxcsr(void) {
  u32 v;
  __asm__ volatile("stmxcsr %0" : "=m"(v));
  return v;
}
static inline void ldmxcsr(u32 v) {
  __asm__ volatile("ldmxcsr %0" : : "m"(v));
}

void x86_mxcsr_sync(struct x86_vcpu *c) {
  if (!c->fpu.live) return;
  c->fpu.mxcsr = stmxcsr();
  c->fpu.live = false;
  ldmxcsr(c->fpu.host_mxcsr);
}

void x86_mxcsr_lost(struct x86_vcpu *c, u32 mxcsr) {
  if (c->fpu.live) c->fpu.mxcsr = mxcsr;
  c->fpu.live = false;
}

static void make_live(struct x86_vcpu *c) {
  c->fpu.host_mxcsr = stmxcsr();
  ldmxcsr(c->fpu.mxcsr);
  c->fpu.live = true;
}

bool x86_mxcsr_live(struct x86_vcpu *c) {
  if (!c->fpu.live && (c->fpu.mxcsr & MASKS) == MASKS) make_live(c);
  return c->fpu.live;
}

/* ---- with an exception unmasked ---- */

/* What a run left, beside the destination. */
struct trial {
  u8 result[64] __attribute__((aligned(64)));
  u64 flags;
};

/* Runs it with this MXCSR on a copy of the destination; the new flags. */
static u32 try(const struct x86_vector *v, void *const operand[ROLE_COUNT], u32 mxcsr, struct trial *t) {
  void *p[ROLE_COUNT];
  memcpy(p, operand, sizeof(p));
  if (v->dest < ROLE_COUNT) {
    memcpy(t->result, p[v->dest], v->dest_size);
    p[v->dest] = t->result;
  }
  u32 host = stmxcsr();
  ldmxcsr((mxcsr | MASKS) & ~FLAGS);
  v->stub(p[ROLE_REG], p[ROLE_RM], p[ROLE_VVVV], p[ROLE_FOURTH], &t->flags);
  u32 raised = stmxcsr() & FLAGS;
  ldmxcsr(host);
  return raised;
}

/* An unmasked underflow needs no loss of accuracy (SDM Vol. 1 4.9.1.5): with FTZ every tiny result raises the flag.  Half
 * precision knows no FTZ. */
static bool tiny(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *const operand[ROLE_COUNT],
                 const struct trial *t) {
  struct trial flushed;
  return (try(v, operand, c->fpu.mxcsr | FTZ, &flushed) & UE) || x86_vector_tiny_half(c, i, v, t->result);
}

/* An unmasked overflow or underflow is inexact only if the digits do not fit, whatever the exponent (4.9.1.4, 4.9.1.5); a masked
 * one always is. */
static u32 result_flags(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *const operand[ROLE_COUNT],
                        u32 raised, const struct trial *t) {
  u32 unmasked = ~c->fpu.mxcsr >> 7 & FLAGS;
  if ((unmasked & UE) && x86_vector_underflows(v) && tiny(c, i, v, operand, t)) raised |= UE;
  if ((raised & unmasked & (OE | UE)) && !(raised & ~unmasked & (OE | UE)) && x86_vector_exact(c, i, v, operand)) raised &= ~PE;
  return raised;
}

static int run_unmasked(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *const operand[ROLE_COUNT],
                        u64 *flags) {
  struct trial t;
  u32 unmasked = ~c->fpu.mxcsr >> 7 & FLAGS;
  bool no_ftz = (unmasked & UE) && !v->quiet && x86_vector_underflows(v); /* FTZ is for masked underflows (10.2.3.3) */
  u32 raised = try(v, operand, no_ftz ? c->fpu.mxcsr & ~FTZ : c->fpu.mxcsr, &t);
  if (v->quiet)
    unmasked = 0;
  else if (raised & unmasked & OPERANDS)
    raised &= OPERANDS;
  else
    raised = result_flags(c, i, v, operand, raised, &t);
  c->fpu.mxcsr |= raised;
  if (raised & unmasked) return x86_fault(c, c->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
  if (v->dest < ROLE_COUNT) memcpy(operand[v->dest], t.result, v->dest_size);
  *flags = t.flags;
  return X86_OK;
}

int x86_vector_run_fp(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm, u64 *flags) {
  void *operand[ROLE_COUNT];
  for (unsigned r = 0; r < ROLE_COUNT; r++) operand[r] = r == ROLE_RM ? rm : x86_vector_operand(c, i, r);
  if ((c->fpu.mxcsr & MASKS) != MASKS) return run_unmasked(c, i, v, operand, flags);
  make_live(c);
  v->stub(operand[ROLE_REG], operand[ROLE_RM], operand[ROLE_VVVV], operand[ROLE_FOURTH], flags);
  return X86_OK;
}
