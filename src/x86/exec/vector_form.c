/* The form of a vector instruction: its operands by role, and its bytes with the stub's register numbers.
 *
 * Registers of the stub: the operand in ModRM.reg is vector register 1, opmask 2, MMX register 1 or RAX; that in VEX.vvvv vector
 * register 2 (0 where it stands for the implied XMM0), opmask 3; that in ModRM.rm vector register 3, opmask 4, MMX register 3,
 * RAX or memory at RSI; the one in an immediate vector register 4; the opmask of EVEX is 1.
 */
#include <string.h>
#include "x86/exec/vector.h"

#define NO_ROLE ROLE_COUNT

static const struct {
  u8 vector, opmask, mmx, general;
} host_register[ROLE_COUNT] = {[ROLE_REG] = {1, 2, 1, 0}, [ROLE_RM] = {3, 4, 3, 0}, [ROLE_VVVV] = {2, 3}, [ROLE_FOURTH] = {4, 1}};

/* ---- operands ---- */

static unsigned role_of(const ZydisDecodedOperand *op) {
  switch (op->encoding) {
  case ZYDIS_OPERAND_ENCODING_MODRM_REG:
    return ROLE_REG;
  case ZYDIS_OPERAND_ENCODING_MODRM_RM:
    return ROLE_RM;
  case ZYDIS_OPERAND_ENCODING_NDSNDD:
    return ROLE_VVVV;
  case ZYDIS_OPERAND_ENCODING_IS4:
  case ZYDIS_OPERAND_ENCODING_MASK:
    return ROLE_FOURTH;
  default:
    return NO_ROLE;
  }
}

static u8 size_of(ZydisRegisterClass k) {
  return k == ZYDIS_REGCLASS_ZMM ? 64 : k == ZYDIS_REGCLASS_YMM ? 32 : k == ZYDIS_REGCLASS_XMM ? 16 : 8;
}

static bool place(struct x86_vector_form *f, unsigned role, ZydisRegister reg, u8 host, ZydisOperandActions actions) {
  if (f->op[role].used) return false;
  ZydisRegisterClass k = ZydisRegisterGetClass(reg);
  f->op[role] = (struct x86_vector_operand){.used = true,
                                            .read = (actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0,
                                            .write = (actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0,
                                            .kind = (u8)k,
                                            .id = (u8)ZydisRegisterGetId(reg),
                                            .host = host,
                                            .size = size_of(k)};
  return true;
}

/* Operands that the encoding implies: XMM0 of the legacy blends and of SHA256RNDS2; RAX, RDX and RCX of PCMPESTRx; flags. */
static bool place_implied(struct x86_vector_form *f, const ZydisDecodedOperand *op) {
  switch (ZydisRegisterGetClass(op->reg.value)) {
  case ZYDIS_REGCLASS_XMM:
    return place(f, ROLE_VVVV, op->reg.value, 0, op->actions);
  case ZYDIS_REGCLASS_GPR32:
  case ZYDIS_REGCLASS_GPR64:
    f->implied = true;
    f->implied_rcx |= (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    return true;
  case ZYDIS_REGCLASS_FLAGS:
    return true;
  default:
    return op->reg.value == ZYDIS_REGISTER_MXCSR;
  }
}

static bool place_register(struct x86_vector_form *f, const ZydisDecodedOperand *op) {
  unsigned role = role_of(op);
  if (role == NO_ROLE) return place_implied(f, op);
  bool first = op->encoding == ZYDIS_OPERAND_ENCODING_MASK;
  if (first && op->reg.value == ZYDIS_REGISTER_K0) return true; /* no mask */
  switch (ZydisRegisterGetClass(op->reg.value)) {
  case ZYDIS_REGCLASS_XMM:
  case ZYDIS_REGCLASS_YMM:
  case ZYDIS_REGCLASS_ZMM:
    return place(f, role, op->reg.value, host_register[role].vector, op->actions);
  case ZYDIS_REGCLASS_MASK:
    return place(f, role, op->reg.value, host_register[role].opmask, op->actions);
  case ZYDIS_REGCLASS_MMX:
    return role <= ROLE_RM && place(f, role, op->reg.value, host_register[role].mmx, op->actions);
  case ZYDIS_REGCLASS_GPR16:
  case ZYDIS_REGCLASS_GPR32:
  case ZYDIS_REGCLASS_GPR64:
    return role <= ROLE_RM && place(f, role, op->reg.value, host_register[role].general, op->actions);
  default:
    return false;
  }
}

static bool place_memory(struct x86_vector_form *f, const ZydisDecodedOperand *op) {
  if (f->mem || role_of(op) != ROLE_RM || op->mem.type != ZYDIS_MEMOP_TYPE_MEM || op->size > 512) return false;
  f->mem = op;
  return true;
}

static bool place_operands(const struct x86_decoded *d, struct x86_vector_form *f) {
  for (unsigned k = 0; k < d->insn.operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && !place_register(f, op)) return false;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && !place_memory(f, op)) return false;
  }
  return true;
}

/* Parts of a destination that the instruction leaves as they are make it a source. */
static void add_merging(const ZydisDecodedInstruction *in, struct x86_vector_form *f) {
  bool legacy = in->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
  bool merging = in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && in->raw.evex.aaa && !in->raw.evex.z;
  for (unsigned r = 0; r < ROLE_COUNT; r++) f->op[r].read |= f->op[r].write && (legacy || merging);
}

static u8 class_of(const ZydisDecodedInstruction *in, const struct x86_vector_form *f) {
  bool opmask = false, mmx = false;
  for (unsigned r = 0; r < ROLE_COUNT; r++) {
    opmask |= f->op[r].used && f->op[r].kind == ZYDIS_REGCLASS_MASK;
    mmx |= f->op[r].used && f->op[r].kind == ZYDIS_REGCLASS_MMX;
  }
  if (in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX || opmask) return VECTOR_AVX512;
  if (in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) return VECTOR_AVX;
  return mmx ? VECTOR_MIXED : VECTOR_SSE;
}

/* ---- bytes ---- */

static u8 host_of(const struct x86_vector_form *f, unsigned role) {
  return f->op[role].used ? f->op[role].host : 0;
}

static u8 map_number(ZydisOpcodeMap map) {
  return map == ZYDIS_OPCODE_MAP_0F38   ? 2
         : map == ZYDIS_OPCODE_MAP_0F3A ? 3
         : map == ZYDIS_OPCODE_MAP_MAP5 ? 5
         : map == ZYDIS_OPCODE_MAP_MAP6 ? 6
                                        : 1;
}

static unsigned put_legacy(const ZydisDecodedInstruction *in, u8 *p) {
  unsigned n = 0, map = map_number(in->opcode_map);
  for (unsigned k = 0; k < in->raw.prefix_count; k++)
    if (in->raw.prefixes[k].type == ZYDIS_PREFIX_TYPE_MANDATORY) p[n++] = in->raw.prefixes[k].value;
  if ((in->attributes & ZYDIS_ATTRIB_HAS_REX) && in->raw.rex.W) p[n++] = 0x48;
  p[n++] = 0x0f;
  if (map > 1) p[n++] = map == 2 ? 0x38 : 0x3a;
  return n;
}

static unsigned put_vex(const ZydisDecodedInstruction *in, const struct x86_vector_form *f, bool w, u8 *p) {
  u8 vvvv = host_of(f, ROLE_VVVV);
  p[0] = 0xc4;
  p[1] = (u8)(0xe0 | map_number(in->opcode_map));
  p[2] = (u8)(w << 7 | (~vvvv & 15) << 3 | in->raw.vex.L << 2 | in->raw.vex.pp);
  return 3;
}

static unsigned put_evex(const ZydisDecodedInstruction *in, const struct x86_vector_form *f, bool w, u8 *p) {
  u8 vvvv = host_of(f, ROLE_VVVV), masked = in->raw.evex.aaa ? 1 : 0;
  p[0] = 0x62;
  p[1] = (u8)(0xf0 | map_number(in->opcode_map));
  p[2] = (u8)(w << 7 | (~vvvv & 15) << 3 | 4 | in->raw.evex.pp);
  p[3] = (u8)(in->raw.evex.z << 7 | in->raw.evex.L2 << 6 | in->raw.evex.L << 5 | in->raw.evex.b << 4 | 8 | masked);
  return 4;
}

static unsigned put_operands(const struct x86_decoded *d, const struct x86_vector_form *f, u8 *p) {
  const ZydisDecodedInstruction *in = &d->insn;
  unsigned n = 0, reg = f->op[ROLE_REG].used ? f->op[ROLE_REG].host : in->raw.modrm.reg;
  p[n++] = (u8)(f->mem ? reg << 3 | 6 : 0xc0 | reg << 3 | host_of(f, ROLE_RM));
  for (unsigned k = 0; k < 2; k++) {
    unsigned size = in->raw.imm[k].size / 8;
    memcpy(p + n, d->bytes + in->raw.imm[k].offset, size);
    n += size;
  }
  bool fourth = f->op[ROLE_FOURTH].used && f->op[ROLE_FOURTH].kind != ZYDIS_REGCLASS_MASK;
  if (fourth) p[n - 1] = (u8)(f->op[ROLE_FOURTH].host << 4 | (p[n - 1] & 15));
  return n;
}

static void put_bytes(const struct x86_decoded *d, struct x86_vector_form *f, bool w) {
  const ZydisDecodedInstruction *in = &d->insn;
  u8 *p = f->bytes;
  unsigned n;
  memset(f->bytes, 0, sizeof(f->bytes));
  if (in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
    n = put_evex(in, f, w, p);
  else if (in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
    n = put_vex(in, f, w, p);
  else
    n = put_legacy(in, p);
  p[n++] = in->opcode;
  f->len = (u8)(n + put_operands(d, f, p + n));
}

/* The bytes mean in 64-bit mode, where stubs run, what the guest's mean in its mode. */
static bool means_the_same(const struct x86_decoded *d, const struct x86_vector_form *f) {
  ZydisDecoder decoder;
  ZydisDecodedInstruction in;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, f->bytes, f->len, &in, ops))) return false;
  if (in.length != f->len || in.mnemonic != d->insn.mnemonic || in.operand_count_visible != d->insn.operand_count_visible)
    return false;
  for (unsigned k = 0; k < in.operand_count_visible; k++)
    if (ops[k].type != d->ops[k].type || ops[k].size != d->ops[k].size) return false;
  return true;
}

bool x86_vector_form(const struct x86_decoded *d, struct x86_vector_form *f) {
  const ZydisDecodedInstruction *in = &d->insn;
  bool evex = in->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX, vex = in->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
  if (!evex && !vex && in->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return false;
  *f = (struct x86_vector_form){.mem = NULL};
  if (!(in->attributes & ZYDIS_ATTRIB_HAS_MODRM) || !place_operands(d, f)) return false;
  f->class = class_of(in, f);
  add_merging(in, f);
  bool w = evex ? in->raw.evex.W : vex && in->raw.vex.W;
  if (w && in->machine_mode != ZYDIS_MACHINE_MODE_LONG_64) { /* there it has no meaning for general registers */
    put_bytes(d, f, false);
    if (means_the_same(d, f)) return true;
  }
  put_bytes(d, f, w);
  return means_the_same(d, f);
}
