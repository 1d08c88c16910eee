/* VMASKMOVPS/PD, VPMASKMOVD/Q and the AVX2 gathers, element by element: only selected elements are accessed. */
#include <string.h>
#include "x86/exec/native.h"

/* i->reg: destination or source, i->vvvv: mask, i->rm: index register of a gather, i->sub: element size in bytes, i->opsize: vector size in bytes. */

static bool selected(const struct x86_vcpu *c, const struct x86_insn *i, unsigned n) {
  return c->fpu.zmm[i->vvvv][(n + 1) * i->sub - 1] & 0x80;
}

static int masked_load(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 v[64] = {0};
  int r = x86_native_enabled(c, &(struct x86_native){.avx = true});
  for (unsigned n = 0; !r && n < i->opsize / i->sub; n++)
    if (selected(c, i, n)) r = x86_read(c, i->seg, (x86_ea(c, i) + n * i->sub) & i->ea_mask, v + n * i->sub, i->sub);
  if (!r) memcpy(c->fpu.zmm[i->reg], v, sizeof(v));
  return r;
}

/* All selected elements are checked before the first is written. */
static int masked_store(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_native_enabled(c, &(struct x86_native){.avx = true});
  for (unsigned n = 0; !r && n < i->opsize / i->sub; n++) {
    u64 lin, ea = (x86_ea(c, i) + n * i->sub) & i->ea_mask;
    if (!selected(c, i, n)) continue;
    r = x86_linear(c, i->seg, ea, i->sub, ACC_WRITE, &lin);
    if (!r && c->code64 && !x86_canonical(c, lin)) r = x86_fault_code(c, i->seg == SEG_SS ? VEC_SS : VEC_GP, 0);
    if (!r) r = x86_probe_write(c, lin, i->sub, c->cpl);
  }
  for (unsigned n = 0; !r && n < i->opsize / i->sub; n++)
    if (selected(c, i, n)) r = x86_write(c, i->seg, (x86_ea(c, i) + n * i->sub) & i->ea_mask, c->fpu.zmm[i->reg] + n * i->sub, i->sub);
  return r;
}

/* SDM Vol. 2C VGATHERDPS: elements that were loaded are in the destination and gone from the mask when a later one faults. */
static int gather(struct x86_vcpu *c, const struct x86_insn *i) {
  unsigned index_size = (unsigned)i->imm, count = MIN(i->opsize / i->sub, i->opsize / index_size);
  int r = x86_native_enabled(c, &(struct x86_native){.avx = true});
  if (r) return r;
  if (i->reg == i->rm || i->reg == i->vvvv || i->rm == i->vvvv) return x86_ud(c);
  u8 *dst = c->fpu.zmm[i->reg], *mask = c->fpu.zmm[i->vvvv];
  for (unsigned n = 0; n < count; n++) {
    if (!selected(c, i, n)) continue;
    s64 index;
    s32 index32;
    memcpy(&index, c->fpu.zmm[i->rm] + n * index_size, index_size);
    memcpy(&index32, &index, 4);
    if (index_size == 4) index = index32;
    u64 ea = (c->regs[i->base] + (u64)i->disp + ((u64)index << i->shift)) & i->ea_mask;
    r = x86_read(c, i->seg, ea, dst + n * i->sub, i->sub);
    if (r) return r;
    memset(mask + n * i->sub, 0, i->sub);
  }
  memset(mask, 0, 64);
  memset(dst + count * i->sub, 0, 64 - count * i->sub);
  return X86_OK;
}

static unsigned vector(const ZydisDecodedOperand *op) { return (unsigned)ZydisRegisterGetId(op->reg.value); }

x86_exec_fn *x86_masked_select(const struct x86_decoded *d, struct x86_insn *i) {
  if (d->insn.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX) return NULL;
  i->opsize = (u8)(d->insn.avx.vector_length / 8);
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VPMASKMOVD: i->sub = 4; break;
  case ZYDIS_MNEMONIC_VMASKMOVPD: case ZYDIS_MNEMONIC_VPMASKMOVQ: i->sub = 8; break;
  case ZYDIS_MNEMONIC_VGATHERDPS: case ZYDIS_MNEMONIC_VPGATHERDD: i->sub = 4, i->imm = 4; break;
  case ZYDIS_MNEMONIC_VGATHERQPS: case ZYDIS_MNEMONIC_VPGATHERQD: i->sub = 4, i->imm = 8; break;
  case ZYDIS_MNEMONIC_VGATHERDPD: case ZYDIS_MNEMONIC_VPGATHERDQ: i->sub = 8, i->imm = 4; break;
  case ZYDIS_MNEMONIC_VGATHERQPD: case ZYDIS_MNEMONIC_VPGATHERQQ: i->sub = 8, i->imm = 8; break;
  default: return NULL;
  }
  if (i->imm) { /* destination, memory with a vector index, mask */
    i->reg = (u8)vector(&d->ops[0]);
    i->rm = (u8)ZydisRegisterGetId(d->ops[1].mem.index);
    i->shift = (u8)__builtin_ctz(d->ops[1].mem.scale);
    i->vvvv = (u8)vector(&d->ops[2]);
    return gather;
  }
  bool store = d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  i->reg = (u8)vector(&d->ops[store ? 2 : 0]);
  i->vvvv = (u8)vector(&d->ops[1]);
  return store ? masked_store : masked_load;
}
