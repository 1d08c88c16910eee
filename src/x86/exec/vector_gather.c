/* Gathers and scatters: element by element, from the least significant on.  What was done when an element faults is done: its
 * mask bit is clear (SDM Vol. 2C VGATHERDPS, VPGATHERDD, VPSCATTERDD).
 */
#include <string.h>
#include "x86/exec/native.h"
#include "x86/exec/vector.h"

/* i->reg: destination or source, i->vvvv: vector of indices, i->rm: mask (a vector register; for EVEX an opmask), i->shift: log2
 * of the scale, i->sub: bytes of an element, i->opsize: number of elements, i->imm: bytes of an index, and of the vectors in the
 * next byte. */

static unsigned index_size(const struct x86_insn *i) {
  return (u8)i->imm;
}
static unsigned vector_size(const struct x86_insn *i) {
  return (u8)(i->imm >> 8);
}

static u64 element_address(struct x86_vcpu *c, const struct x86_insn *i, unsigned n) {
  const u8 *at = c->fpu.zmm[i->vvvv] + n * index_size(i);
  u64 index = index_size(i) == 8 ? *(const x86_u64_unaligned *)at : (u64)(s64)(s32) * (const x86_u32_unaligned *)at;
  return (c->regs[i->base] + (u64)i->disp + (index << i->shift)) & i->ea_mask;
}

static void zero_above(struct x86_vcpu *c, const struct x86_insn *i, unsigned used) {
  memset(c->fpu.zmm[i->reg] + used, 0, 64 - used);
}

static u64 all_bytes(const struct x86_insn *i) {
  return i->sub == 4 ? 15 : 255;
}

static int load_element(struct x86_vcpu *c, const struct x86_insn *i, unsigned n) {
  u8 *to = c->fpu.zmm[i->reg] + n * i->sub;
  u64 ea = element_address(c, i, n), v8 = 0;
  u32 v4 = 0;
  int r;
  if (unlikely(x86_alignment_checked(c)))
    r = x86_vector_read(c, i, ea, all_bytes(i), i->sub == 4 ? (u8 *)&v4 : (u8 *)&v8); /* not here */
  else
    r = i->sub == 4 ? x86_load32(c, i->seg, ea, &v4) : x86_load64(c, i->seg, ea, &v8);
  if (r) return r;
  zero_above(c, i, vector_size(i)); /* already with the first element */
  if (i->sub == 4)
    *(x86_u32_unaligned *)to = v4;
  else
    *(x86_u64_unaligned *)to = v8;
  x86_io_commit(c);
  return X86_OK;
}

static int store_element(struct x86_vcpu *c, const struct x86_insn *i, unsigned n) {
  const u8 *from = c->fpu.zmm[i->reg] + n * i->sub;
  u64 ea = element_address(c, i, n);
  if (unlikely(x86_alignment_checked(c))) {
    int r = x86_vector_probe_whole(c, i, ea, i->sub);
    return r ? r : x86_vector_write(c, i, ea, all_bytes(i), from);
  }
  return i->sub == 4 ? x86_store32(c, i->seg, ea, *(const x86_u32_unaligned *)from)
                     : x86_store64(c, i->seg, ea, *(const x86_u64_unaligned *)from);
}

/* The mask's elements become all ones or zero, what is above them zero. */
static void extend_signs(u8 *mask, unsigned size, unsigned vector) {
  for (unsigned at = 0; at < vector; at += size) memset(mask + at, mask[at + size - 1] & 0x80 ? 0xff : 0, size);
  memset(mask + vector, 0, 64 - vector);
}

static int gather_signs(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(!x86_vector_enabled(c, VECTOR_AVX))) return x86_vector_refuse(c, VECTOR_AVX);
  u8 *mask = c->fpu.zmm[i->rm];
  extend_signs(mask, i->sub, vector_size(i));
  for (unsigned n = 0; n < i->opsize; n++) {
    if (!mask[n * i->sub]) continue;
    int r = load_element(c, i, n);
    if (r) return r;
    memset(mask + n * i->sub, 0, i->sub);
  }
  memset(mask, 0, 64);
  zero_above(c, i, i->opsize * i->sub);
  return X86_OK;
}

static int gather(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(!x86_vector_enabled(c, VECTOR_AVX512))) return x86_vector_refuse(c, VECTOR_AVX512);
  u64 *mask = &c->fpu.k[i->rm];
  for (unsigned n = 0; n < i->opsize; n++) {
    if (!(*mask >> n & 1)) continue;
    int r = load_element(c, i, n);
    if (r) return r;
    *mask &= ~BIT(n);
  }
  *mask = 0;
  zero_above(c, i, i->opsize * i->sub);
  return X86_OK;
}

static int scatter(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(!x86_vector_enabled(c, VECTOR_AVX512))) return x86_vector_refuse(c, VECTOR_AVX512);
  u64 *mask = &c->fpu.k[i->rm];
  for (unsigned n = 0; n < i->opsize; n++) {
    if (!(*mask >> n & 1)) continue;
    int r = store_element(c, i, n);
    if (r) return r;
    *mask &= ~BIT(n);
  }
  *mask = 0;
  return X86_OK;
}

static const struct {
  u16 mnemonic;
  u8 element, index; /* bytes */
  bool scatter;
} rows[] = {
    {ZYDIS_MNEMONIC_VGATHERDPS, 4, 4},        {ZYDIS_MNEMONIC_VPGATHERDD, 4, 4},        {ZYDIS_MNEMONIC_VGATHERQPS, 4, 8},
    {ZYDIS_MNEMONIC_VPGATHERQD, 4, 8},        {ZYDIS_MNEMONIC_VGATHERDPD, 8, 4},        {ZYDIS_MNEMONIC_VPGATHERDQ, 8, 4},
    {ZYDIS_MNEMONIC_VGATHERQPD, 8, 8},        {ZYDIS_MNEMONIC_VPGATHERQQ, 8, 8},        {ZYDIS_MNEMONIC_VSCATTERDPS, 4, 4, true},
    {ZYDIS_MNEMONIC_VPSCATTERDD, 4, 4, true}, {ZYDIS_MNEMONIC_VSCATTERQPS, 4, 8, true}, {ZYDIS_MNEMONIC_VPSCATTERQD, 4, 8, true},
    {ZYDIS_MNEMONIC_VSCATTERDPD, 8, 4, true}, {ZYDIS_MNEMONIC_VPSCATTERDQ, 8, 4, true}, {ZYDIS_MNEMONIC_VSCATTERQPD, 8, 8, true},
    {ZYDIS_MNEMONIC_VPSCATTERQQ, 8, 8, true},
};

static void place_operand(const ZydisDecodedOperand *op, struct x86_insn *i) {
  if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    i->vvvv = (u8)ZydisRegisterGetId(op->mem.index);
    i->shift = (u8)__builtin_ctz(op->mem.scale ? op->mem.scale : 1);
  } else if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) {
    i->reg = (u8)ZydisRegisterGetId(op->reg.value);
  } else if (op->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD || op->encoding == ZYDIS_OPERAND_ENCODING_MASK) {
    i->rm = (u8)ZydisRegisterGetId(op->reg.value);
  }
}

x86_exec_fn *x86_vector_gather_select(const struct x86_decoded *d, struct x86_insn *i) {
  unsigned k = 0;
  while (k < ARRAY_SIZE(rows) && rows[k].mnemonic != d->insn.mnemonic) k++;
  if (k == ARRAY_SIZE(rows)) return NULL;
  bool evex = d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
  for (unsigned n = 0; n < d->insn.operand_count_visible; n++) place_operand(&d->ops[n], i);
  i->sub = rows[k].element;
  i->imm = rows[k].index | (u64)(d->insn.avx.vector_length / 8) << 8;
  i->opsize = (u8)(d->insn.avx.vector_length / 8 / MAX(rows[k].element, rows[k].index));
  bool same = i->reg == i->vvvv || (!evex && (i->reg == i->rm || i->vvvv == i->rm));
  if (same && !rows[k].scatter) return x86_exec_ud;
  return rows[k].scatter ? scatter : evex ? gather : gather_signs;
}
