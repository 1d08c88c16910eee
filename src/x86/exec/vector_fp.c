/* Floating-point control and exceptions of SSE to AVX-512.
 *
 * While a vCPU runs, the host's MXCSR holds the guest's as long as that masks all exceptions (fpu.live): loading it costs a hundred cycles when
 * control bits change, and the flags gather by themselves.  Everyone else sees fpu.mxcsr after x86_mxcsr_sync().
 *
 * With an exception unmasked, an instruction runs on copies with all exceptions masked, and its flags decide: SDM Vol. 1 11.5.2 and appendix E.4.
 */
#include <string.h>
#include "x86/exec/vector.h"

#define FLAGS     0x3fu
#define DAZ       0x40u
#define MASKS     0x1f80u
#define FTZ       0x8000u
#define MASK(e)   ((e) << 7)
#define IE        1u
#define DE        2u
#define ZE        4u
#define OE        8u
#define UE        0x10u
#define PE        0x20u
#define OPERANDS  (IE | DE | ZE) /* found before the result is computed */

static inline u32 stmxcsr(void) {
  u32 v;
  __asm__ volatile("stmxcsr %0" : "=m"(v));
  return v;
}
static inline void ldmxcsr(u32 v) { __asm__ volatile("ldmxcsr %0" : : "m"(v)); }

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

/* ---- with an exception unmasked ---- */

/* Copies of the operands, so that nothing is lost when the result does not count. */
struct trial {
  u8 op[ROLE_COUNT][64] __attribute__((aligned(64)));
  u64 flags;
};

static void *operand(struct x86_vcpu *c, const struct x86_insn *i, unsigned role, void *rm) {
  return role == ROLE_RM ? rm : x86_vector_operand(c, i, role);
}

static size_t size_of(const struct x86_vector *v, unsigned role) { return role == ROLE_RM && v->mem_size ? v->mem_size : 64; }

/* Runs it with this MXCSR on a copy of the destination; the new flags. */
static u32 try(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm, u32 mxcsr, struct trial *t) {
  void *p[ROLE_COUNT];
  for (unsigned r = 0; r < ROLE_COUNT; r++) p[r] = operand(c, i, r, rm);
  if (v->dest < ROLE_COUNT) {
    memcpy(t->op[v->dest], p[v->dest], size_of(v, v->dest));
    p[v->dest] = t->op[v->dest];
  }
  u32 host = stmxcsr();
  ldmxcsr((mxcsr | MASKS) & ~FLAGS);
  v->stub(p[ROLE_REG], p[ROLE_RM], p[ROLE_VVVV], p[ROLE_FOURTH], &t->flags);
  u32 raised = stmxcsr() & FLAGS;
  ldmxcsr(host);
  return raised;
}

/* An unmasked underflow needs no loss of accuracy (SDM Vol. 1 4.9.1.5): with FTZ every tiny result raises the flag. */
static bool tiny(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm) {
  struct trial t;
  return try(c, i, v, rm, c->fpu.mxcsr | FTZ, &t) & UE;
}

static u32 result_flags(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm, u32 raised) {
  u32 unmasked = ~c->fpu.mxcsr >> 7 & FLAGS;
  if ((unmasked & UE) && tiny(c, i, v, rm)) raised |= UE;
  if ((unmasked & raised & OE) && x86_vector_overflow_exact(c, i, v, rm)) raised &= ~PE;
  return raised;
}

static int run_unmasked(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm, u64 *flags) {
  struct trial t;
  u32 unmasked = ~c->fpu.mxcsr >> 7 & FLAGS;
  u32 raised = try(c, i, v, rm, unmasked & UE ? c->fpu.mxcsr & ~FTZ : c->fpu.mxcsr, &t); /* FTZ: only while underflow is masked (10.2.3.3) */
  if (raised & unmasked & OPERANDS) raised &= OPERANDS;
  else raised = result_flags(c, i, v, rm, raised);
  c->fpu.mxcsr |= raised;
  if (raised & unmasked) return x86_fault(c, c->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
  if (v->dest < ROLE_COUNT) memcpy(operand(c, i, v->dest, rm), t.op[v->dest], size_of(v, v->dest));
  *flags = t.flags;
  return X86_OK;
}

int x86_vector_run_fp(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm, u64 *flags) {
  if ((c->fpu.mxcsr & MASKS) != MASKS) return run_unmasked(c, i, v, rm, flags);
  make_live(c);
  v->stub(x86_vector_operand(c, i, ROLE_REG), rm, x86_vector_operand(c, i, ROLE_VVVV), x86_vector_operand(c, i, ROLE_FOURTH), flags);
  return X86_OK;
}
