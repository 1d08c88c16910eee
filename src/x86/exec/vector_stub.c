/* Makes and keeps the stubs: load the registers read, the instruction, store the registers written.
 *
 * In a stub: rdi, rsi, rdx, rcx are the addresses of the operands by role, r8 that of the flags (x86_vector_stub).  MXCSR is the
 * caller's business.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/process.h"
#include "jit/codemem.h"
#include "x86/exec/vector.h"
#include "x86/exec/xstate.h"

/* ---- code ---- */

struct code {
  u8 b[160];
  unsigned n;
};

static void put(struct code *e, const u8 *p, unsigned n) {
  memcpy(e->b + e->n, p, n); /* at most four operands, one instruction: it fits */
  e->n += n;
}
#define PUT(e, ...) put(e, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))

static bool host_avx512;
static const u8 address_register[ROLE_COUNT] = {[ROLE_REG] = 7, [ROLE_RM] = 6, [ROLE_VVVV] = 2, [ROLE_FOURTH] = 1};

static bool is_vector(unsigned kind) {
  return kind == ZYDIS_REGCLASS_XMM || kind == ZYDIS_REGCLASS_YMM || kind == ZYDIS_REGCLASS_ZMM;
}

/* movups, or its VEX or EVEX form of the size. */
static void move_vector(struct code *e, u8 opcode, unsigned reg, unsigned address, unsigned size, bool legacy) {
  if (size == 64)
    PUT(e, 0x62, 0xf1, 0x7c, 0x48);
  else if (size == 32)
    PUT(e, 0xc5, 0xfc);
  else if (legacy)
    PUT(e, 0x0f);
  else
    PUT(e, 0xc5, 0xf8);
  PUT(e, opcode, (u8)(reg << 3 | address));
}

static void load(struct code *e, const struct x86_vector_form *f, unsigned role) {
  const struct x86_vector_operand *op = &f->op[role];
  u8 at = address_register[role], modrm = (u8)(op->host << 3 | at);
  if (is_vector(op->kind))
    move_vector(e, 0x10, op->host, at, op->size, f->class == VECTOR_SSE || f->class == VECTOR_MIXED);
  else if (op->kind == ZYDIS_REGCLASS_MASK)
    PUT(e, 0xc4, 0xe1, 0xf8, 0x90, modrm); /* kmovq */
  else if (op->kind == ZYDIS_REGCLASS_MMX)
    PUT(e, 0x0f, 0x6f, modrm); /* movq */
  else
    PUT(e, 0x48, 0x8b, modrm);
}

/* VEX and EVEX forms zero the register up to the largest size there is (SDM Vol. 1, 14.1.2). */
static void store(struct code *e, const struct x86_vector_form *f, unsigned role) {
  const struct x86_vector_operand *op = &f->op[role];
  bool legacy = f->class == VECTOR_SSE || f->class == VECTOR_MIXED;
  u8 at = address_register[role], modrm = (u8)(op->host << 3 | at);
  if (is_vector(op->kind))
    move_vector(e, 0x11, op->host, at, legacy ? 16 : host_avx512 ? 64 : 32, legacy);
  else if (op->kind == ZYDIS_REGCLASS_MASK)
    PUT(e, 0xc4, 0xe1, 0xf8, 0x91, modrm);
  else if (op->kind == ZYDIS_REGCLASS_MMX)
    PUT(e, 0x0f, 0x7f, modrm);
  else
    PUT(e, 0x48, 0x89, modrm);
}

static void emit(const struct x86_vector_form *f, bool flags, struct code *e) {
  bool wide = f->mem && f->mem->size > 128;
  for (unsigned r = 0; r < ROLE_COUNT; r++) {
    if (f->op[r].used && f->op[r].read) load(e, f, r);
    wide |= f->op[r].used && f->op[r].size > 16;
  }
  if (f->implied)
    PUT(e, 0x49, 0x89, 0xc9, 0x49, 0x89, 0xd2, 0x49, 0x8b, 0x01, 0x49, 0x8b, 0x51,
        0x10); /* mov r9, rcx; mov r10, rdx; mov rax, [r9]; mov rdx, [r9 + 16] */
  put(e, f->bytes, f->len);
  if (flags) PUT(e, 0x9c, 0x41, 0x8f, 0x00);          /* pushfq; pop [r8] */
  if (f->implied_rcx) PUT(e, 0x49, 0x89, 0x49, 0x08); /* mov [r9 + 8], rcx */
  if (f->implied) PUT(e, 0x4c, 0x89, 0xd2);           /* mov rdx, r10 */
  for (unsigned r = 0; r < ROLE_COUNT; r++)
    if (f->op[r].used && f->op[r].write) store(e, f, r);
  if (f->class == VECTOR_MIXED) PUT(e, 0x0f, 0x77); /* emms */
  if (wide) PUT(e, 0xc5, 0xf8, 0x77);               /* vzeroupper: the library's own code is SSE */
  PUT(e, 0xc3);
}

/* ---- what handlers have to know ---- */

/* Operands that must be aligned to their size (SDM Vol. 2A, exception classes 1, 2 and 4 of legacy SSE; class 1 of VEX and EVEX).
 */
static bool aligned(const struct x86_decoded *d, const struct x86_vector_form *f) {
  switch (d->insn.meta.exception_class) {
  case ZYDIS_EXCEPTION_CLASS_SSE1:
  case ZYDIS_EXCEPTION_CLASS_SSE2:
  case ZYDIS_EXCEPTION_CLASS_AVX1:
  case ZYDIS_EXCEPTION_CLASS_E1:
  case ZYDIS_EXCEPTION_CLASS_E1NF:
    return true;
  default:
    break;
  }
  if (f->class != VECTOR_SSE && f->class != VECTOR_MIXED) return false;
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_MOVUPS:
  case ZYDIS_MNEMONIC_MOVUPD:
  case ZYDIS_MNEMONIC_MOVDQU:
  case ZYDIS_MNEMONIC_LDDQU:
  case ZYDIS_MNEMONIC_PCMPESTRI:
  case ZYDIS_MNEMONIC_PCMPESTRM:
  case ZYDIS_MNEMONIC_PCMPISTRI:
  case ZYDIS_MNEMONIC_PCMPISTRM:
    return false;
  default:
    return true;
  }
}

/* The exception classes with floating-point exceptions. */
static bool raises(const ZydisDecodedInstruction *in) {
  switch (in->meta.exception_class) {
  case ZYDIS_EXCEPTION_CLASS_SSE2:
  case ZYDIS_EXCEPTION_CLASS_SSE3:
  case ZYDIS_EXCEPTION_CLASS_AVX2:
  case ZYDIS_EXCEPTION_CLASS_AVX3:
  case ZYDIS_EXCEPTION_CLASS_AVX11:
  case ZYDIS_EXCEPTION_CLASS_E2:
  case ZYDIS_EXCEPTION_CLASS_E2NF:
  case ZYDIS_EXCEPTION_CLASS_E3:
  case ZYDIS_EXCEPTION_CLASS_E3NF:
  case ZYDIS_EXCEPTION_CLASS_E11:
  case ZYDIS_EXCEPTION_CLASS_E11NF:
    return true;
  default:
    break;
  }
  switch (in->mnemonic) { /* conversions with MMX registers have no class */
  case ZYDIS_MNEMONIC_CVTPI2PS:
  case ZYDIS_MNEMONIC_CVTPS2PI:
  case ZYDIS_MNEMONIC_CVTTPS2PI:
  case ZYDIS_MNEMONIC_CVTPD2PI:
  case ZYDIS_MNEMONIC_CVTTPD2PI:
    return true;
  default:
    return false;
  }
}

/* What raises none, but rounds or flushes as MXCSR says. */
static bool obeys(const ZydisDecodedInstruction *in) {
  switch (in->mnemonic) {
  case ZYDIS_MNEMONIC_VFMULCPH:
  case ZYDIS_MNEMONIC_VFMULCSH:
  case ZYDIS_MNEMONIC_VFCMULCPH:
  case ZYDIS_MNEMONIC_VFCMULCSH:
  case ZYDIS_MNEMONIC_VFMADDCPH:
  case ZYDIS_MNEMONIC_VFMADDCSH:
  case ZYDIS_MNEMONIC_VFCMADDCPH:
  case ZYDIS_MNEMONIC_VFCMADDCSH:
  case ZYDIS_MNEMONIC_VFPCLASSPD:
  case ZYDIS_MNEMONIC_VFPCLASSPS:
  case ZYDIS_MNEMONIC_VFPCLASSSD:
  case ZYDIS_MNEMONIC_VFPCLASSSS:
  case ZYDIS_MNEMONIC_VFPCLASSPH:
  case ZYDIS_MNEMONIC_VFPCLASSSH:
  case ZYDIS_MNEMONIC_RCPPS:
  case ZYDIS_MNEMONIC_RCPSS:
  case ZYDIS_MNEMONIC_RSQRTPS:
  case ZYDIS_MNEMONIC_RSQRTSS:
  case ZYDIS_MNEMONIC_VRCPPS:
  case ZYDIS_MNEMONIC_VRCPSS:
  case ZYDIS_MNEMONIC_VRSQRTPS:
  case ZYDIS_MNEMONIC_VRSQRTSS:
  case ZYDIS_MNEMONIC_VRCP14PD:
  case ZYDIS_MNEMONIC_VRCP14PS:
  case ZYDIS_MNEMONIC_VRCP14SD:
  case ZYDIS_MNEMONIC_VRCP14SS:
  case ZYDIS_MNEMONIC_VRSQRT14PD:
  case ZYDIS_MNEMONIC_VRSQRT14PS:
  case ZYDIS_MNEMONIC_VRSQRT14SD:
  case ZYDIS_MNEMONIC_VRSQRT14SS:
  case ZYDIS_MNEMONIC_VRCPPH:
  case ZYDIS_MNEMONIC_VRCPSH:
  case ZYDIS_MNEMONIC_VRSQRTPH:
  case ZYDIS_MNEMONIC_VRSQRTSH:
    return true;
  default:
    return false;
  }
}

static bool writes_flags(const ZydisDecodedInstruction *in) {
  const ZyanU32 arithmetic =
      ZYDIS_CPUFLAG_CF | ZYDIS_CPUFLAG_PF | ZYDIS_CPUFLAG_AF | ZYDIS_CPUFLAG_ZF | ZYDIS_CPUFLAG_SF | ZYDIS_CPUFLAG_OF;
  const ZydisAccessedFlags *f = in->cpu_flags;
  return f && ((f->modified | f->set_0 | f->set_1 | f->undefined) & arithmetic);
}

/* Elements that are computed: the operands of conversions and insertions have different numbers of them. */
static u8 elements_of(const struct x86_decoded *d) {
  bool broadcast = d->insn.avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID;
  unsigned n = d->ops[0].element_count;
  for (unsigned k = 0; k < d->insn.operand_count_visible; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
      n = MIN(n, broadcast && op->type == ZYDIS_OPERAND_TYPE_MEMORY ? d->insn.avx.vector_length / op->element_size
                                                                    : op->element_count);
    if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) n = MIN(n, op->element_count);
  }
  return (u8)n;
}

static u8 destination(const struct x86_vector_form *f) {
  for (unsigned r = 0; r < ROLE_COUNT; r++)
    if (f->op[r].used && f->op[r].write) return (u8)r;
  return f->mem && (f->mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) ? ROLE_RM : ROLE_COUNT;
}

/* ---- the table of forms ---- */

#define BUCKETS 4096
static struct x86_vector *buckets[BUCKETS];
FORK_MUTEX(lock); /* a stub is entered whole */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void probe_host(void) {
  host_avx512 = x86_native_supports(X86_FEATURE_AVX512F);
}

static void describe(const struct x86_decoded *d, const struct x86_vector_form *f, struct x86_vector *v) {
  v->class = f->class;
  v->mnemonic = (u16)d->insn.mnemonic;
  v->fp = raises(&d->insn) || obeys(&d->insn);
  v->flags = writes_flags(&d->insn);
  v->opmask = f->op[ROLE_FOURTH].used && f->op[ROLE_FOURTH].kind == ZYDIS_REGCLASS_MASK;
  v->broadcast = d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && f->mem && d->insn.raw.evex.b;
  v->quiet =
      !raises(&d->insn) || (d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && !f->mem && d->insn.raw.evex.b); /* SAE */
  v->elements = elements_of(d);
  v->dest = destination(f);
  memcpy(v->key, f->bytes, sizeof(v->key));
  if (!f->mem) return;
  v->mem_size = (u8)(f->mem->size / 8);
  v->store = (f->mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
  v->unchecked =
      d->insn.meta.exception_class == ZYDIS_EXCEPTION_CLASS_AVX11 || d->insn.meta.exception_class == ZYDIS_EXCEPTION_CLASS_E11;
  if (v->mem_size >= 16 && aligned(d, f)) v->align = (u8)(v->mem_size - 1);
  x86_vector_describe_mask(d, f, v);
}

static struct x86_vector *make(const struct x86_decoded *d, const struct x86_vector_form *f) {
  struct x86_vector *v = calloc(1, sizeof(*v));
  struct code e = {.n = 0};
  if (!v) return NULL;
  describe(d, f, v);
  emit(f, v->flags, &e);
  v->stub = (x86_vector_stub *)(uintptr_t)codemem_add(e.b, e.n);
  if (v->stub) return v;
  free(v);
  return NULL;
}

static unsigned hash(const u8 *key) {
  u64 a, b;
  memcpy(&a, key, 8);
  memcpy(&b, key + 8, 8);
  return (unsigned)(((a ^ b * 0x9e3779b97f4a7c15ull) * 0xff51afd7ed558ccdull) >> 52);
}

struct x86_vector *x86_vector_get(const struct x86_decoded *d, const struct x86_vector_form *f) {
  struct x86_vector **b = &buckets[hash(f->bytes)], *v;
  pthread_once(&once, probe_host);
  pthread_mutex_lock(&lock);
  for (v = *b; v && memcmp(v->key, f->bytes, sizeof(v->key)); v = v->next) {
  }
  if (!v && (v = make(d, f))) {
    v->next = *b;
    *b = v;
  }
  pthread_mutex_unlock(&lock);
  return v;
}
