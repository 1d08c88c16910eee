/* SSE to AVX-512 on the host CPU: the handlers.
 *
 * Order: #UD and #NM, address, alignment, memory, then the stub; what is written to memory comes last.
 */
#include <string.h>
#include "x86/exec/native.h"
#include "x86/exec/vector.h"

#define INLINE static inline __attribute__((always_inline))

int x86_vector_refuse(struct x86_vcpu *c, enum x86_vector_class class) {
  u64 need = x86_vector_xcr0(class);
  bool ud = need ? !(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & need) != need : (c->cr0 & CR0_EM) || !(c->cr4 & CR4_OSFXSR);
  return ud ? x86_ud(c) : x86_fault(c, VEC_NM);
}

/* ---- the stub ---- */

INLINE int run(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm) {
  u64 flags;
  if (v->fp && unlikely(!c->fpu.live)) {
    int r = x86_vector_run_fp(c, i, v, rm, &flags);
    if (r) return r;
  } else {
    v->stub(x86_vector_operand(c, i, ROLE_REG), rm, x86_vector_operand(c, i, ROLE_VVVV), x86_vector_operand(c, i, ROLE_FOURTH),
            &flags);
  }
  if (v->flags) c->rflags = (c->rflags & ~(u64)FL_ARITH) | (flags & FL_ARITH);
  return X86_OK;
}

/* ---- operands in registers ---- */

INLINE int registers(struct x86_vcpu *c, const struct x86_insn *i, enum x86_vector_class class) {
  if (unlikely(!x86_vector_enabled(c, class))) return x86_vector_refuse(c, class);
  return run(c, i, i->aux, x86_vector_operand(c, i, ROLE_RM));
}

/* ---- an operand in memory ---- */

static u64 all_bytes(const struct x86_vector *v) {
  return ~0ull >> (64 - v->mem_size);
}

/* Not in one page of the TLB: through a buffer. */
static int load_slow(struct x86_vcpu *c, const struct x86_insn *i, u64 lin) {
  const struct x86_vector *v = i->aux;
  u8 buf[64] __attribute__((aligned(64)));
  int r = v->unchecked ? x86_vector_read(c, i, x86_ea(c, i), all_bytes(v), buf) : x86_read_slow(c, i->seg, lin, buf, v->mem_size);
  return r ? r : run(c, i, v, buf);
}

/* Stores change no register. */
static int store_slow(struct x86_vcpu *c, const struct x86_insn *i, u64 lin) {
  const struct x86_vector *v = i->aux;
  u8 buf[64] __attribute__((aligned(64)));
  int r = run(c, i, v, buf);
  return r ? r : x86_write_slow(c, i->seg, lin, buf, v->mem_size);
}

INLINE int memory(struct x86_vcpu *c, const struct x86_insn *i, enum x86_vector_class class, bool simple, bool store) {
  const struct x86_vector *v = i->aux;
  u64 lin;
  if (unlikely(!x86_vector_enabled(c, class))) return x86_vector_refuse(c, class);
  if (simple) {
    lin = simple_linear(c, i);
  } else {
    int r = x86_linear(c, i->seg, x86_ea(c, i), v->mem_size, store ? ACC_WRITE : ACC_READ, &lin);
    if (unlikely(r)) return r;
  }
  if (unlikely(lin & v->align)) return x86_gp0(c);
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  u64 last = (lin + v->mem_size - 1) & PAGE_MASK;
  if (unlikely(last != (store ? e->write : e->read))) return store ? store_slow(c, i, lin) : load_slow(c, i, lin);
  return run(c, i, v, x86_tlb_host(e, lin));
}

static int check_alignment(struct x86_vcpu *c, const struct x86_vector *v, u64 lin) {
  if (lin & v->align) return x86_gp0(c);
  if (c->code64 && !x86_canonical(c, lin)) return X86_OK; /* the access will tell */
  bool misaligned = v->mem_size <= 8 && (lin & (v->mem_size - 1u)) && !v->unchecked;
  return unlikely(misaligned && x86_alignment_checked(c)) ? x86_fault_code(c, VEC_AC, 0) : X86_OK;
}

/* Masked: the fast way where all of the operand may be accessed; the host's instruction then leaves alone what it must. */
static int masked_slow(struct x86_vcpu *c, const struct x86_insn *i, u64 lin) {
  const struct x86_vector *v = i->aux;
  u8 buf[64] __attribute__((aligned(64))) = {0};
  u64 needed = x86_vector_needed(c, i, v), ea = x86_ea(c, i);
  int r = needed ? check_alignment(c, v, lin) : X86_OK; /* an operand that is not accessed may lie anywhere */
  if (r) return r;
  if (!v->store) r = x86_vector_read(c, i, ea, needed, buf);
  if (!r) r = run(c, i, v, buf);
  if (!r && v->store) r = v->whole ? x86_vector_touch_whole(c, i, ea, v->mem_size) : x86_vector_probe(c, i, ea, needed);
  return r || !v->store ? r : x86_vector_write(c, i, ea, needed, buf);
}

INLINE int masked(struct x86_vcpu *c, const struct x86_insn *i, enum x86_vector_class class) {
  const struct x86_vector *v = i->aux;
  u64 lin = 0;
  if (unlikely(!x86_vector_enabled(c, class))) return x86_vector_refuse(c, class);
  if (unlikely(x86_linear(c, i->seg, x86_ea(c, i), v->mem_size, v->store ? ACC_WRITE : ACC_READ, &lin)))
    return masked_slow(c, i, lin);
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  u64 last = (lin + v->mem_size - 1) & PAGE_MASK;
  if (unlikely(last != (v->store ? e->write : e->read) || (lin & v->align))) return masked_slow(c, i, lin);
  return run(c, i, v, x86_tlb_host(e, lin));
}

/* VCVTPS2PH to memory: the flags of MXCSR change before the memory operand is looked at, and stay when that faults. */
INLINE int convert_store(struct x86_vcpu *c, const struct x86_insn *i, enum x86_vector_class class) {
  const struct x86_vector *v = i->aux;
  u8 buf[64] __attribute__((aligned(64)));
  if (unlikely(!x86_vector_enabled(c, class))) return x86_vector_refuse(c, class);
  u64 needed = v->mask ? x86_vector_needed(c, i, v) : all_bytes(v), ea = x86_ea(c, i);
  int r = run(c, i, v, buf);
  if (!r) r = v->mask && !v->whole ? x86_vector_probe(c, i, ea, needed) : x86_vector_probe_whole(c, i, ea, v->mem_size);
  return r ? r : x86_vector_write(c, i, ea, needed, buf);
}

/* ---- handlers by class ---- */

#define HANDLERS(name, class)                                                                                                    \
  static int name##_registers(struct x86_vcpu *c, const struct x86_insn *i) {                                                    \
    return registers(c, i, class);                                                                                               \
  }                                                                                                                              \
  static int name##_load(struct x86_vcpu *c, const struct x86_insn *i) {                                                         \
    return memory(c, i, class, false, false);                                                                                    \
  }                                                                                                                              \
  static int name##_load_simple(struct x86_vcpu *c, const struct x86_insn *i) {                                                  \
    return memory(c, i, class, true, false);                                                                                     \
  }                                                                                                                              \
  static int name##_store(struct x86_vcpu *c, const struct x86_insn *i) {                                                        \
    return memory(c, i, class, false, true);                                                                                     \
  }                                                                                                                              \
  static int name##_store_simple(struct x86_vcpu *c, const struct x86_insn *i) {                                                 \
    return memory(c, i, class, true, true);                                                                                      \
  }                                                                                                                              \
  static int name##_convert_store(struct x86_vcpu *c, const struct x86_insn *i) {                                                \
    return convert_store(c, i, class);                                                                                           \
  }                                                                                                                              \
  static int name##_masked(struct x86_vcpu *c, const struct x86_insn *i) {                                                       \
    return masked(c, i, class);                                                                                                  \
  }
HANDLERS(sse, VECTOR_SSE)
HANDLERS(avx, VECTOR_AVX)
HANDLERS(avx512, VECTOR_AVX512)

enum { REGISTERS, LOAD, LOAD_SIMPLE, STORE, STORE_SIMPLE, MASKED, CONVERT_STORE, KINDS };
#define ROW(name)                                                                                                                \
  { name##_registers, name##_load, name##_load_simple, name##_store, name##_store_simple, name##_masked, name##_convert_store }
static x86_exec_fn *const handlers[VECTOR_MIXED][KINDS] = {
    [VECTOR_SSE] = ROW(sse),
    [VECTOR_AVX] = ROW(avx),
    [VECTOR_AVX512] = ROW(avx512),
};

/* ---- MMX and XMM registers in one instruction ---- */

static int load_operand(struct x86_vcpu *c, const struct x86_insn *i, u8 *buf) {
  const struct x86_vector *v = i->aux;
  u64 lin;
  int r = x86_linear(c, i->seg, x86_ea(c, i), v->mem_size, ACC_READ, &lin);
  if (r) return r;
  return lin & v->align ? x86_gp0(c) : x86_read(c, i->seg, x86_ea(c, i), buf, v->mem_size);
}

#define FSW_TOP 0x3800u

/* MMX register n is physical x87 register n; the image in fx is in stack order. */
void *x86_mmx_register(struct x86_vcpu *c, unsigned n) {
  unsigned top = (c->fpu.fx[3] & FSW_TOP >> 8) >> 3;
  return &c->fpu.fx[32 + 16 * ((n - top) & 7)];
}

/* The image holds the stack from its top on: another top is another order of the same registers. */
void x86_x87_set_top(struct x86_vcpu *c, unsigned top) {
  unsigned old = (c->fpu.fx[3] & FSW_TOP >> 8) >> 3;
  u8 order[128];
  if (top == old) return;
  for (unsigned n = 0; n < 8; n++) memcpy(order + 16 * n, &c->fpu.fx[32 + 16 * ((n + top - old) & 7)], 16);
  memcpy(&c->fpu.fx[32], order, sizeof(order));
  c->fpu.fx[3] = (u8)((c->fpu.fx[3] & ~(FSW_TOP >> 8)) | top << 3);
}
void x86_mmx_top(struct x86_vcpu *c) {
  x86_x87_set_top(c, 0);
}

/* After an MMX instruction (SDM Vol. 3A 12.2): TOP is 0, all registers are valid. */
void x86_mmx_state(struct x86_vcpu *c) {
  x86_mmx_top(c);
  c->fpu.fx[4] = 0xff;
}

/* i->reg: number of the MMX register, i->sub: its role. */
static int mixed(struct x86_vcpu *c, const struct x86_insn *i) {
  const struct x86_vector *v = i->aux;
  struct x86_insn at = *i;
  u8 buf[16] __attribute__((aligned(16)));
  int r = x86_x87_check(c, true, true);
  if (!r && !(c->cr4 & CR4_OSFXSR)) r = x86_ud(c);
  if (!r && v->mem_size) r = load_operand(c, i, buf);
  if (r) return r;
  u64 offset = (u64)((u8 *)x86_mmx_register(c, i->reg) - (u8 *)c);
  at.imm = (i->imm & ~(0xffffull << (16 * i->sub))) | offset << (16 * i->sub);
  r = run(c, &at, v, v->mem_size ? buf : x86_vector_operand(c, &at, ROLE_RM));
  x86_mmx_state(c); /* also when a floating-point exception holds back the result */
  if (!r && v->dest == i->sub) memset(&c->fpu.fx[32 + 16 * i->reg + 8], 0xff, 2); /* SDM Vol. 3A 12.2: bits 79:64 */
  return r;
}

/* ---- selection ---- */

static unsigned kind_of(const struct x86_decoded *d, const struct x86_insn *i, const struct x86_vector *v) {
  if (!v->mem_size) return REGISTERS;
  if (v->store && v->fp) return CONVERT_STORE;
  if (v->mask) return MASKED;
  return (v->store ? STORE : LOAD) + x86_address_simple(d, i);
}

static u64 storage(const struct x86_vector_operand *op) {
  if (op->kind == ZYDIS_REGCLASS_MASK) return offsetof(struct x86_vcpu, fpu.k) + 8 * op->id;
  if (op->kind == ZYDIS_REGCLASS_XMM || op->kind == ZYDIS_REGCLASS_YMM || op->kind == ZYDIS_REGCLASS_ZMM)
    return offsetof(struct x86_vcpu, fpu.zmm) + 64 * op->id;
  return offsetof(struct x86_vcpu, regs) + 8 * op->id;
}
_Static_assert(offsetof(struct x86_vcpu, fpu) + sizeof(struct x86_fpu) <= 0x10000, "operands' offsets have 16 bits");

static void place_operands(const struct x86_vector_form *f, struct x86_insn *i) {
  i->imm = 0;
  for (unsigned r = 0; r < ROLE_COUNT; r++) {
    const struct x86_vector_operand *op = &f->op[r];
    if (op->used && op->kind == ZYDIS_REGCLASS_MMX)
      i->sub = (u8)r, i->reg = op->id;
    else if (op->used)
      i->imm |= storage(op) << (16 * r);
  }
  if (f->implied) i->imm |= offsetof(struct x86_vcpu, regs) << (16 * ROLE_FOURTH);
}

x86_exec_fn *x86_vector_select(const struct x86_decoded *d, struct x86_insn *i) {
  struct x86_vector_form f;
  if (!x86_vector_form(d, &f)) return NULL;
  struct x86_vector *v = x86_vector_get(d, &f);
  if (!v) return NULL;
  i->aux = v;
  place_operands(&f, i);
  return v->class == VECTOR_MIXED ? mixed : handlers[v->class][kind_of(d, i, v)];
}

bool x86_vector_is_plain(const struct x86_insn *i) {
  x86_exec_fn *const *all = &handlers[0][0], *fn = __atomic_load_n(&i->fn, __ATOMIC_RELAXED); /* it may die meanwhile */
  for (unsigned k = 0; k < VECTOR_MIXED * KINDS; k++)
    if (fn == all[k]) return true;
  return false;
}
