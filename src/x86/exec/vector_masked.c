/* Memory operands of which an instruction accesses only parts: opmasks, VMASKMOV, MASKMOVDQU and MASKMOVQ.  What is masked off
 * cannot fault (SDM Vol. 2A 2.7.5 and the exception classes of EVEX; VMASKMOV).
 */
#include <string.h>
#include "x86/exec/native.h"
#include "x86/exec/vector.h"

/* ---- which bytes ---- */

/* What must be accessible as a whole, whatever the mask: the classes without fault suppression, and those Zydis takes for others.
 */
static bool reaches_all(const ZydisDecodedInstruction *in) {
  switch (in->meta.exception_class) {
  case ZYDIS_EXCEPTION_CLASS_E1NF:
  case ZYDIS_EXCEPTION_CLASS_E2NF:
  case ZYDIS_EXCEPTION_CLASS_E3NF:
  case ZYDIS_EXCEPTION_CLASS_E4NF:
  case ZYDIS_EXCEPTION_CLASS_E5NF:
  case ZYDIS_EXCEPTION_CLASS_E6NF:
  case ZYDIS_EXCEPTION_CLASS_E9NF:
  case ZYDIS_EXCEPTION_CLASS_E10NF:
  case ZYDIS_EXCEPTION_CLASS_E11NF:
    return true;
  default:
    break;
  }
  switch (in->mnemonic) {
  case ZYDIS_MNEMONIC_VDBPSADBW:
  case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
  case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
  case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
    return true;
  default:
    return false;
  }
}

static bool packs(const ZydisDecodedInstruction *in) {
  return in->meta.category == ZYDIS_CATEGORY_EXPAND || in->meta.category == ZYDIS_CATEGORY_COMPRESS;
}

static void describe_opmask(const struct x86_decoded *d, const struct x86_vector_form *f, struct x86_vector *v) {
  bool broadcast = d->insn.avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID;
  v->whole = reaches_all(&d->insn);
  if (!v->store && v->whole) return;
  v->mask = packs(&d->insn) ? MASK_PACKED : MASK_ELEMENTS;
  v->mask_bits = v->elements;
  v->mask_bytes = (u8)(broadcast ? f->mem->element_size / 8 : v->mem_size / v->mask_bits);
}

static bool is_vmaskmov(unsigned mnemonic) {
  return mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD ||
         mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD || mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

void x86_vector_describe_mask(const struct x86_decoded *d, const struct x86_vector_form *f, struct x86_vector *v) {
  if (is_vmaskmov(d->insn.mnemonic)) {
    v->mask = MASK_SIGNS;
    v->mask_bytes = d->insn.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD || d->insn.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ ? 8 : 4;
    v->mask_bits = v->mem_size / v->mask_bytes;
  } else if (d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && d->insn.raw.evex.aaa) {
    describe_opmask(d, f, v);
  }
}

static u64 low_bits(unsigned n) {
  return n >= 64 ? ~0ull : (1ull << n) - 1;
}

/* A bit for each element that is accessed. */
static u64 selected(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v) {
  u64 bits = 0;
  if (v->mask == MASK_SIGNS) {
    const u8 *signs = x86_vector_operand(c, i, ROLE_VVVV);
    for (unsigned n = 0; n < v->mask_bits; n++) bits |= (u64)(signs[(n + 1) * v->mask_bytes - 1] >> 7) << n;
    return bits;
  }
  memcpy(&bits, x86_vector_operand(c, i, ROLE_FOURTH), 8);
  bits &= low_bits(v->mask_bits);
  return v->mask == MASK_PACKED ? low_bits((unsigned)__builtin_popcountll(bits)) : bits;
}

u64 x86_vector_needed(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v) {
  u64 bits = selected(c, i, v), bytes = 0;
  unsigned elements = v->mem_size / v->mask_bytes;
  for (unsigned n = 0; n < v->mask_bits; n++) /* of a broadcast several bits stand for one element in memory */
    if (bits >> n & 1) bytes |= low_bits(v->mask_bytes) << (n % elements * v->mask_bytes);
  return bytes;
}

/* ---- accesses ---- */

/* Takes the lowest run of ones out of needed.  Alignment checks are for whole operands: single bytes never meet them. */
static unsigned next_run(const struct x86_vcpu *c, u64 *needed, unsigned *length) {
  unsigned first = (unsigned)__builtin_ctzll(*needed);
  u64 rest = ~(*needed >> first);
  *length = x86_alignment_checked(c) ? 1 : rest ? (unsigned)__builtin_ctzll(rest) : 64 - first;
  *needed &= ~(low_bits(*length) << first);
  return first;
}

int x86_vector_read(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u64 needed, u8 *buf) {
  int r = X86_OK;
  while (!r && needed) {
    unsigned n, first = next_run(c, &needed, &n);
    r = x86_read(c, i->seg, ea + first, buf + first, n);
  }
  return r;
}

static int check_address(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, unsigned n, u64 *lin) {
  int r = x86_linear(c, i->seg, ea, n, ACC_WRITE, lin);
  if (r || !c->code64 || (x86_canonical(c, *lin) && x86_canonical(c, *lin + n - 1))) return r;
  return x86_fault_code(c, i->seg == SEG_SS ? VEC_SS : VEC_GP, 0);
}

static int probe(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, unsigned n, u64 *lin) {
  int r = check_address(c, i, ea, n, lin);
  return r ? r : x86_probe_write(c, *lin, n, c->cpl);
}

/* Processors take what is selected as one span: a fault on its second page is reported at its last byte. */
int x86_vector_probe(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u64 needed) {
  u64 lin;
  if (!needed) return X86_OK;
  unsigned first = (unsigned)__builtin_ctzll(needed), last = 63 - (unsigned)__builtin_clzll(needed);
  int r = probe(c, i, ea + first, 1, &lin);
  bool crosses = (lin ^ (lin + last - first)) & PAGE_MASK;
  return r || !crosses ? r : probe(c, i, ea + last, 1, &lin);
}

int x86_vector_touch_whole(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, unsigned n) {
  u64 lin;
  int r = check_address(c, i, ea, n, &lin);
  return r ? r : x86_touch_write(c, lin, n, c->cpl);
}

int x86_vector_write(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u64 needed, const u8 *buf) {
  int r = X86_OK;
  while (!r && needed) {
    unsigned n, first = next_run(c, &needed, &n);
    r = x86_write(c, i->seg, ea + first, buf + first, n);
  }
  return r;
}

int x86_vector_probe_whole(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, unsigned n) {
  u64 lin;
  return probe(c, i, ea, n, &lin);
}

/* ---- MASKMOVDQU and MASKMOVQ: bytes chosen by the signs of a register go to DS:rDI; all of them must be writable ---- */

static int store_bytes(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, const u8 *data, const u8 *signs) {
  u64 needed = 0;
  for (unsigned n = 0; n < i->opsize; n++) needed |= (u64)(signs[n] >> 7) << n;
  return x86_vector_write(c, i, ea, needed, data);
}

/* One half of eight bytes. */
static int probe_half(struct x86_vcpu *c, const struct x86_insn *i, u64 ea) {
  u64 lin;
  int r = check_address(c, i, ea & i->ea_mask, 8, &lin);
  if (r) return r;
  if ((lin & 7) && x86_alignment_checked(c)) return x86_fault_code(c, VEC_AC, 0);
  return x86_probe_write(c, lin, 8, c->cpl);
}

static int maskmovdqu(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 ea = c->regs[RDI] & i->ea_mask;
  if (unlikely(!x86_vector_enabled(c, i->sub))) return x86_vector_refuse(c, i->sub);
  int r = probe_half(c, i, ea + 8); /* in the order of processors */
  if (!r) r = probe_half(c, i, ea);
  return r ? r : store_bytes(c, i, ea, c->fpu.zmm[i->reg], c->fpu.zmm[i->rm]);
}

static int maskmovq(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 ea = c->regs[RDI] & i->ea_mask;
  int r = x86_x87_check(c, true, true);
  if (r) return r;
  x86_mmx_state(c); /* also where the store faults, as processors do */
  r = probe_half(c, i, ea);
  return r ? r : store_bytes(c, i, ea, x86_mmx_register(c, i->reg), x86_mmx_register(c, i->rm));
}

x86_exec_fn *x86_vector_masked_select(const struct x86_decoded *d, struct x86_insn *i) {
  unsigned m = d->insn.mnemonic;
  if (m != ZYDIS_MNEMONIC_MASKMOVDQU && m != ZYDIS_MNEMONIC_VMASKMOVDQU && m != ZYDIS_MNEMONIC_MASKMOVQ) return NULL;
  for (unsigned k = 0; k < d->insn.operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
      i->seg = (u8)x86_segment_number(op->mem.segment);
    else if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
      i->reg = (u8)ZydisRegisterGetId(op->reg.value);
    else if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
      i->rm = (u8)ZydisRegisterGetId(op->reg.value);
  }
  i->sub = m == ZYDIS_MNEMONIC_VMASKMOVDQU ? VECTOR_AVX : VECTOR_SSE;
  i->opsize = m == ZYDIS_MNEMONIC_MASKMOVQ ? 8 : 16;
  return m == ZYDIS_MNEMONIC_MASKMOVQ ? maskmovq : maskmovdqu;
}
