/* Instructions that run as themselves: the same opcode with other register numbers, and a host address for the memory operand.
 *
 * General registers are renumbered; vector and opmask registers keep their numbers.  A guest register without a host register of
 * its own takes part through a scratch register.
 */
#include "x86/decode/decoded.h"
#include "x86/exec/vector.h"
#include "x86/translate/private.h"

enum { MAX_GENERAL = 4 };

/* A general register in an operand of the encoding. */
struct general {
  u8 guest, host;
  bool read, write;
};

/* How the instruction is encoded anew: register numbers by field, and the address. */
struct fields {
  unsigned reg, rm, vvvv; /* host registers; rm: of a register operand */
  bool memory;
  struct em_mem mem;
  struct general g[MAX_GENERAL];
  unsigned n;
  bool byte; /* an 8-bit general register is among them */
  bool rax, rcx; /* fixed registers that are not at home: one is read, the other written */
};

/* ---- which instructions ---- */

/* General-register instructions without fixed registers: what they do depends on their operands alone. */
static const u16 plain[] = {
    ZYDIS_MNEMONIC_MOV,    ZYDIS_MNEMONIC_MOVZX,  ZYDIS_MNEMONIC_MOVSX,   ZYDIS_MNEMONIC_MOVSXD, ZYDIS_MNEMONIC_ADD,
    ZYDIS_MNEMONIC_ADC,    ZYDIS_MNEMONIC_SUB,    ZYDIS_MNEMONIC_SBB,     ZYDIS_MNEMONIC_AND,    ZYDIS_MNEMONIC_OR,
    ZYDIS_MNEMONIC_XOR,    ZYDIS_MNEMONIC_CMP,    ZYDIS_MNEMONIC_TEST,    ZYDIS_MNEMONIC_INC,    ZYDIS_MNEMONIC_DEC,
    ZYDIS_MNEMONIC_NEG,    ZYDIS_MNEMONIC_NOT,    ZYDIS_MNEMONIC_IMUL,    ZYDIS_MNEMONIC_SHL,    ZYDIS_MNEMONIC_SHR,
    ZYDIS_MNEMONIC_SAR,    ZYDIS_MNEMONIC_ROL,    ZYDIS_MNEMONIC_ROR,     ZYDIS_MNEMONIC_RCL,    ZYDIS_MNEMONIC_RCR,
    ZYDIS_MNEMONIC_SHLD,   ZYDIS_MNEMONIC_SHRD,   ZYDIS_MNEMONIC_BSWAP,   ZYDIS_MNEMONIC_BT,     ZYDIS_MNEMONIC_BTS,
    ZYDIS_MNEMONIC_BTR,    ZYDIS_MNEMONIC_BTC,    ZYDIS_MNEMONIC_BSF,     ZYDIS_MNEMONIC_BSR,    ZYDIS_MNEMONIC_TZCNT,
    ZYDIS_MNEMONIC_LZCNT,  ZYDIS_MNEMONIC_POPCNT, ZYDIS_MNEMONIC_MOVBE,   ZYDIS_MNEMONIC_XADD,   ZYDIS_MNEMONIC_XCHG,
    ZYDIS_MNEMONIC_ANDN,   ZYDIS_MNEMONIC_BEXTR,  ZYDIS_MNEMONIC_BLSI,    ZYDIS_MNEMONIC_BLSMSK, ZYDIS_MNEMONIC_BLSR,
    ZYDIS_MNEMONIC_BZHI,   ZYDIS_MNEMONIC_MULX,   ZYDIS_MNEMONIC_PDEP,    ZYDIS_MNEMONIC_PEXT,   ZYDIS_MNEMONIC_RORX,
    ZYDIS_MNEMONIC_SARX,   ZYDIS_MNEMONIC_SHLX,   ZYDIS_MNEMONIC_SHRX,    ZYDIS_MNEMONIC_ADCX,   ZYDIS_MNEMONIC_ADOX,
    ZYDIS_MNEMONIC_CRC32,  ZYDIS_MNEMONIC_MOVNTI, ZYDIS_MNEMONIC_CMOVB,   ZYDIS_MNEMONIC_CMOVBE, ZYDIS_MNEMONIC_CMOVL,
    ZYDIS_MNEMONIC_CMOVLE, ZYDIS_MNEMONIC_CMOVNB, ZYDIS_MNEMONIC_CMOVNBE, ZYDIS_MNEMONIC_CMOVNL, ZYDIS_MNEMONIC_CMOVNLE,
    ZYDIS_MNEMONIC_CMOVNO, ZYDIS_MNEMONIC_CMOVNP, ZYDIS_MNEMONIC_CMOVNS,  ZYDIS_MNEMONIC_CMOVNZ, ZYDIS_MNEMONIC_CMOVO,
    ZYDIS_MNEMONIC_CMOVP,  ZYDIS_MNEMONIC_CMOVS,  ZYDIS_MNEMONIC_CMOVZ,   ZYDIS_MNEMONIC_SETB,   ZYDIS_MNEMONIC_SETBE,
    ZYDIS_MNEMONIC_SETL,   ZYDIS_MNEMONIC_SETLE,  ZYDIS_MNEMONIC_SETNB,   ZYDIS_MNEMONIC_SETNBE, ZYDIS_MNEMONIC_SETNL,
    ZYDIS_MNEMONIC_SETNLE, ZYDIS_MNEMONIC_SETNO,  ZYDIS_MNEMONIC_SETNP,   ZYDIS_MNEMONIC_SETNS,  ZYDIS_MNEMONIC_SETNZ,
    ZYDIS_MNEMONIC_SETO,   ZYDIS_MNEMONIC_SETP,   ZYDIS_MNEMONIC_SETS,    ZYDIS_MNEMONIC_SETZ,
};

static bool is_plain(unsigned mnemonic) {
  static _Atomic bool made;
  static bool known[ZYDIS_MNEMONIC_MAX_VALUE + 1];
  if (!atomic_load_explicit(&made, memory_order_acquire)) { /* several threads make the same */
    for (size_t k = 0; k < ARRAY_SIZE(plain); k++) __atomic_store_n(&known[plain[k]], true, __ATOMIC_RELAXED);
    atomic_store_explicit(&made, true, memory_order_release);
  }
  return __atomic_load_n(&known[mnemonic], __ATOMIC_RELAXED);
}

/* ---- operands ---- */

static bool is_general(ZydisRegister r) {
  ZydisRegisterClass k = ZydisRegisterGetClass(r);
  return k == ZYDIS_REGCLASS_GPR8 || k == ZYDIS_REGCLASS_GPR16 || k == ZYDIS_REGCLASS_GPR32 || k == ZYDIS_REGCLASS_GPR64;
}

static struct general *add_general(struct fields *f, const struct translation *t, const ZydisDecodedOperand *op) {
  unsigned guest = x86_plan_general(op->reg.value);
  bool byte = op->size == 8;
  if (x86_plan_is_high(op->reg.value)) return NULL;
  f->byte |= byte;
  struct general *g = NULL;
  for (unsigned n = 0; n < f->n; n++)
    if (f->g[n].guest == guest) g = &f->g[n];
  if (!g) {
    if (f->n == MAX_GENERAL) return NULL;
    g = &f->g[f->n++];
    *g = (struct general){.guest = (u8)guest, .host = T_HOME(guest)};
  }
  bool bit_scan = t->z->mnemonic == ZYDIS_MNEMONIC_BSF ||
                  t->z->mnemonic == ZYDIS_MNEMONIC_BSR; /* keep their destination when the source is 0 */
  bool write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
  g->write |= write;
  g->read |= (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) || (op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE) ||
             (write && (op->size < 32 || bit_scan));
  return g;
}

/* Strings in vector registers have an index in ECX, and lengths in EAX and EDX. */
static bool is_vector_string(unsigned mnemonic) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_PCMPESTRI:
  case ZYDIS_MNEMONIC_PCMPESTRM:
  case ZYDIS_MNEMONIC_PCMPISTRI:
  case ZYDIS_MNEMONIC_PCMPISTRM:
  case ZYDIS_MNEMONIC_VPCMPESTRI:
  case ZYDIS_MNEMONIC_VPCMPESTRM:
  case ZYDIS_MNEMONIC_VPCMPISTRI:
  case ZYDIS_MNEMONIC_VPCMPISTRM:
    return true;
  default:
    return false;
  }
}

/* Fixed registers are fine where the host's has the same number; flags and the instruction pointer always are. */
static bool hidden_is_fine(const ZydisDecodedOperand *op) {
  if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) return false;
  if (op->type != ZYDIS_OPERAND_TYPE_REGISTER) return true;
  ZydisRegisterClass k = ZydisRegisterGetClass(op->reg.value);
  if (k == ZYDIS_REGCLASS_FLAGS || op->reg.value == ZYDIS_REGISTER_MXCSR) return true;
  if (k == ZYDIS_REGCLASS_XMM || k == ZYDIS_REGCLASS_YMM || k == ZYDIS_REGCLASS_ZMM || k == ZYDIS_REGCLASS_MASK) return true;
  unsigned n = (unsigned)ZydisRegisterGetId(op->reg.value);
  return (k == ZYDIS_REGCLASS_GPR64 || k == ZYDIS_REGCLASS_GPR32) && n < 16 && T_HOME(n) == n;
}

/* MOV between the accumulator and an address in the instruction: as the form with ModRM. */
static bool has_offset(const ZydisDecodedInstruction *z) {
  return z->mnemonic == ZYDIS_MNEMONIC_MOV && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (z->opcode & 0xfc) == 0xa0;
}

/* XCHG of the accumulator and a register that the opcode names: as the form with ModRM. */
static bool is_exchange(const ZydisDecodedInstruction *z) {
  return z->mnemonic == ZYDIS_MNEMONIC_XCHG && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (z->opcode & 0xf8) == 0x90;
}

static bool fixed(struct fields *f, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op) {
  if (hidden_is_fine(op)) return true;
  if (!is_vector_string(z->mnemonic) || op->type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  bool write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
  unsigned n = x86_plan_general(op->reg.value);
  f->rax |= n == RAX && !write;
  f->rcx |= n == RCX && write;
  return n == (write ? RCX : RAX);
}

/* Which field of the encoding the operand is in; accumulators that the opcode implies are made ModRM.rm. */
static bool place(struct translation *t, struct fields *f, const ZydisDecodedOperand *op, bool accumulator,
                  u8 which[MAX_GENERAL + 4], unsigned *n) {
  if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) return true;
  if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
    f->memory = true;
    return (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM || has_offset(t->z)) && op->mem.type == ZYDIS_MEMOP_TYPE_MEM;
  }
  if (op->type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  unsigned field = op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG                                                   ? 1u
                   : op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM || op->encoding == ZYDIS_OPERAND_ENCODING_OPCODE ? 2u
                   : op->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD                                                    ? 3u
                   : has_offset(t->z) || is_exchange(t->z)                                                            ? 1u
                   : accumulator                                                                                      ? 2u
                                                                                                                      : 0u;
  ZydisRegisterClass k = ZydisRegisterGetClass(op->reg.value);
  if (is_general(op->reg.value)) {
    struct general *g = field ? add_general(f, t, op) : NULL;
    if (!g) return false;
    which[(*n)++] = (u8)(field | (u8)(g - f->g) << 4);
    return true;
  }
  if (k == ZYDIS_REGCLASS_XMM || k == ZYDIS_REGCLASS_YMM || k == ZYDIS_REGCLASS_ZMM || k == ZYDIS_REGCLASS_MASK) {
    unsigned id = (unsigned)ZydisRegisterGetId(op->reg.value);
    if (field == 1) f->reg = id;
    if (field == 2) f->rm = id;
    if (field == 3) f->vvvv = id;
    return field || op->encoding == ZYDIS_OPERAND_ENCODING_MASK || op->encoding == ZYDIS_OPERAND_ENCODING_IS4 ||
           op->visibility == ZYDIS_OPERAND_VISIBILITY_IMPLICIT;
  }
  return false;
}

static bool find_home(struct general *g, unsigned *read, unsigned *written) {
  for (unsigned host = H_RAX; host <= H_RCX; host++) {
    if ((g->read && (*read >> host & 1)) || (g->write && (*written >> host & 1))) continue;
    g->host = (u8)host;
    if (g->read) *read |= 1u << host;
    if (g->write) *written |= 1u << host;
    return true;
  }
  return false;
}

/* RAX and RCX for what has no home.  What is only written may have the place of what is only read, the address for one, which is in RCX. */
static bool find_homes(struct fields *f) {
  unsigned read = f->memory ? 1u << H_RCX : 0, written = 0;
  for (unsigned pass = 0; pass < 2; pass++)
    for (unsigned n = 0; n < f->n; n++)
      if (f->g[n].read == !pass && f->g[n].host == H_NONE && !find_home(&f->g[n], &read, &written)) return false;
  return true;
}

/* ---- encoding ---- */

static bool is_accumulator_form(const ZydisDecodedInstruction *z) {
  return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
         ((z->opcode < 0x40 && (z->opcode & 7) >= 4 && (z->opcode & 7) <= 5) || z->opcode == 0xa8 || z->opcode == 0xa9);
}

static void immediates(struct translation *t) {
  const u8 *bytes = t->b->bytes + t->i->off;
  for (unsigned n = 0; n < 2; n++)
    for (unsigned k = 0; k < t->z->raw.imm[n].size / 8u; k++) em8(&t->e, bytes[t->z->raw.imm[n].offset + k]);
}

/* Whether the code is the instruction that the guest means: W, and a register's number in an immediate, are partly ignored outside 64-bit mode. */
static bool means_the_same(const struct translation *t, const u8 *code) {
  ZydisDecodedInstruction z;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  if (!x86_decode_again(X86_MODE_64, code, (unsigned)(t->e.p - code), &z, ops)) return false;
  if (z.mnemonic != t->z->mnemonic || z.operand_count_visible != t->z->operand_count_visible) return false;
  for (unsigned k = 0; k < z.operand_count_visible; k++) {
    if (ops[k].type != t->ops[k].type || ops[k].size != t->ops[k].size) return false;
    if (ops[k].encoding == ZYDIS_OPERAND_ENCODING_IS4 && ops[k].reg.value != t->ops[k].reg.value) return false;
  }
  return true;
}

static void modrm(struct translation *t, const struct fields *f, unsigned reg) {
  if (f->memory)
    em_modrm_disp(&t->e, reg, f->mem, t->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX);
  else
    em8(&t->e, 0xc0 | (reg & 7) << 3 | (f->rm & 7));
}

/* REX.X and REX.B. */
static unsigned extensions(const struct fields *f) {
  return f->memory ? em_rex_mem(0, f->mem) : (f->rm & 8) >> 3;
}

static void encode_legacy(struct translation *t, const struct fields *f, bool reg_is_operand) {
  static const u16 maps[] = {[ZYDIS_OPCODE_MAP_0F] = 0x0f, [ZYDIS_OPCODE_MAP_0F38] = 0x0f38, [ZYDIS_OPCODE_MAP_0F3A] = 0x0f3a};
  const ZydisDecodedInstruction *z = t->z;
  unsigned opcode = z->opcode, reg = reg_is_operand ? f->reg : z->raw.modrm.reg;
  bool sized = t->m16 && is_plain(z->mnemonic); /* operands of 16 bits have a prefix where they had none, and the other way round */
  if (sized && z->operand_width == 16) em8(&t->e, 0x66);
  for (unsigned k = 0; k < z->raw.prefix_count; k++) {
    u8 p = z->raw.prefixes[k].value;
    if (p == 0x66 && sized) continue;
    if (p == 0x66 || p == 0xf2 || p == 0xf3 || p == 0xf0) em8(&t->e, p);
  }
  bool opcode_register = false, short_step = t->m32 && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (opcode & 0xf0) == 0x40;
  for (unsigned k = 0; k < z->operand_count_visible; k++) opcode_register |= t->ops[k].encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
  if (is_accumulator_form(z)) {
    reg = opcode >= 0xa8 ? 0 : opcode >> 3;
    opcode = (opcode >= 0xa8 ? 0xf6u : 0x80u) | (opcode & 1);
  }
  if (short_step) { /* INC and DEC where 64-bit mode has REX prefixes */
    reg = opcode >> 3 & 1;
    opcode = 0xff;
    opcode_register = false;
  }
  if (z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && opcode == 0x82) opcode = 0x80;
  if (has_offset(z)) opcode = 0x88 | (~opcode & 2) | (opcode & 1);
  if (is_exchange(z)) {
    opcode = 0x87;
    opcode_register = false;
  }
  unsigned rex = (z->raw.rex.W ? 8 : 0) | (opcode_register ? 0 : (reg & 8) >> 1) | extensions(f);
  if (rex || f->byte) em8(&t->e, 0x40 | rex);
  if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT) em_opcode(&t->e, maps[z->opcode_map]);
  if (opcode_register) {
    em8(&t->e, (opcode & 0xf8) | (f->rm & 7));
  } else {
    em8(&t->e, opcode);
    modrm(t, f, reg);
  }
  immediates(t);
}

/* Outside 64-bit mode W has no meaning for general registers, lengths of strings among them. */
static unsigned vex_w(const struct translation *t) {
  return t->z->raw.vex.W && !(t->m32 && (is_plain(t->z->mnemonic) || is_vector_string(t->z->mnemonic)));
}

static void encode_vex(struct translation *t, const struct fields *f, bool reg_is_operand) {
  const ZydisDecodedInstruction *z = t->z;
  unsigned reg = reg_is_operand ? f->reg : z->raw.modrm.reg;
  em8(&t->e, 0xc4);
  em8(&t->e, (~(reg & 8) & 8) << 4 | (~extensions(f) & 3) << 5 | z->raw.vex.m_mmmm);
  em8(&t->e, vex_w(t) << 7 | (~f->vvvv & 15) << 3 | z->raw.vex.L << 2 | z->raw.vex.pp);
  em8(&t->e, z->opcode);
  modrm(t, f, reg);
  immediates(t);
}

static void encode_evex(struct translation *t, const struct fields *f, bool reg_is_operand) {
  const ZydisDecodedInstruction *z = t->z;
  unsigned reg = reg_is_operand ? f->reg : z->raw.modrm.reg;
  unsigned xb = f->memory ? extensions(f) : (f->rm & 16) >> 3 | (f->rm & 8) >> 3;
  em8(&t->e, 0x62);
  em8(&t->e, (~(reg & 8) & 8) << 4 | (~xb & 3) << 5 | (~(reg & 16) & 16) | z->raw.evex.mmm);
  em8(&t->e, z->raw.evex.W << 7 | (~f->vvvv & 15) << 3 | 4 | z->raw.evex.pp);
  em8(&t->e, z->raw.evex.z << 7 | z->raw.evex.L2 << 6 | z->raw.evex.L << 5 | z->raw.evex.b << 4 | (~(f->vvvv >> 1) & 8) |
                 z->raw.evex.aaa);
  em8(&t->e, z->opcode);
  modrm(t, f, reg);
  immediates(t);
}

/* ---- one instruction ---- */

static void load_generals(struct translation *t, const struct fields *f) {
  if (f->rax) em_mov(&t->e, H_RAX, T_HOME(RAX));
  for (unsigned n = 0; n < f->n; n++)
    if (!t_mapped(f->g[n].guest) && f->g[n].read) em_load(&t->e, f->g[n].host, t_slot(f->g[n].guest));
}
static void store_generals(struct translation *t, const struct fields *f) {
  if (f->rcx) em_mov(&t->e, T_HOME(RCX), H_RCX);
  for (unsigned n = 0; n < f->n; n++)
    if (!t_mapped(f->g[n].guest) && f->g[n].write) em_store(&t->e, t_slot(f->g[n].guest), f->g[n].host);
}

/* align: address bits that must be 0. */
static bool rewrite(struct translation *t, unsigned align) {
  const ZydisDecodedInstruction *z = t->z;
  struct fields f = {.rm = 0};
  u8 which[MAX_GENERAL + 4];
  unsigned n = 0;
  bool reg_is_operand = false, accumulator = is_accumulator_form(z);
  for (unsigned k = 0; k < z->operand_count; k++) {
    const ZydisDecodedOperand *op = &t->ops[k];
    if (k >= z->operand_count_visible) {
      if (!fixed(&f, z, op)) return false;
      continue;
    }
    if (n >= MAX_GENERAL) return false;
    if (!place(t, &f, op, accumulator && k == 0, which, &n)) return false;
    reg_is_operand |= op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG || has_offset(z) || is_exchange(z);
  }
  bool uses_rax = f.rax;
  for (unsigned k = 0; k < f.n; k++) uses_rax |= !t_mapped(f.g[k].guest);
  if (f.memory) {
    t->align = align;
    t->rax_free = !uses_rax && (!t->p->needs || t->f.host);
    if (!t_access(t, 0, &f.mem)) return false;
    if (t->align) {
      t_lose_flags(t);
      t->rax = PLAN_ALONE;
      em_lea(&t->e, H_RAX, f.mem);
      em8(&t->e, 0xa9), em32(&t->e, align); /* test eax, align: pages are aligned */
      t_slow_if(t, CC_NE);
    }
  }
  if (t->p->needs) t_need_flags(t);
  if (!find_homes(&f)) return false;
  t->keeps_rcx = !f.rcx;
  t->keeps_rax = !uses_rax;
  for (unsigned k = 0; k < f.n; k++) t->keeps_rcx &= f.g[k].host != H_RCX;
  for (unsigned k = 0; k < n; k++) {
    unsigned host = f.g[which[k] >> 4].host, field = which[k] & 15;
    if (field == 1) f.reg = host;
    if (field == 2) f.rm = host;
    if (field == 3) f.vvvv = host;
  }
  load_generals(t, &f);
  const u8 *code = t->e.p;
  if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
    encode_legacy(t, &f, reg_is_operand);
  else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
    encode_vex(t, &f, reg_is_operand);
  else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
    encode_evex(t, &f, reg_is_operand);
  else
    return false;
  if (t->m32 && (t->m16 || z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) && !em_overflow(&t->e) && !means_the_same(t, code)) return false;
  store_generals(t, &f);
  if (t->i->flags_written) t_wrote_flags(t);
  return true;
}

static const ZydisDecodedOperand *memory_operand(const struct translation *t) {
  for (unsigned k = 0; k < t->z->operand_count_visible; k++)
    if (t->ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY) return &t->ops[k];
  return NULL;
}

static bool rewrite_plain(struct translation *t) {
  const ZydisDecodedOperand *m = memory_operand(t);
  unsigned mnemonic = t->z->mnemonic;
  bool bits = mnemonic == ZYDIS_MNEMONIC_BT || mnemonic == ZYDIS_MNEMONIC_BTS || mnemonic == ZYDIS_MNEMONIC_BTR ||
              mnemonic == ZYDIS_MNEMONIC_BTC;
  if (bits && m && t->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER) return false; /* the bit may lie anywhere */
  if (m && m->size > 64) return false;
  return rewrite(t, 0);
}

static bool rewrite_vector(struct translation *t) {
  const struct x86_vector *v = t->i->aux;
  t_need_vectors(t, x86_plan_vector_level(t->i));
  return rewrite(t, v->align);
}

/* 16-bit code: addresses of 16 and 32 bits, into registers of both sizes. */
static bool rewrite_lea16(struct translation *t) {
  const struct x86_insn *i = t->i;
  struct em_mem m = {.base = i->base == X86_REG_NONE ? H_NONE : T_HOME(i->base), .index = i->index == X86_REG_NONE ? H_NONE : T_HOME(i->index), .shift = i->shift, .disp = (s32)i->disp};
  em_mem(&t->e, 0, 0x8d, H_RAX, m);
  if (i->adsize == 2) em_reg(&t->e, 0, 0x0fb7, H_RAX, H_RAX); /* movzx */
  em_sized_reg(&t->e, 8u * i->opsize, 0x8b, T_HOME(i->reg), H_RAX);
  return t->keeps_rcx = true;
}

static bool rewrite_lea(struct translation *t) {
  struct em_mem m;
  if (t->m16) return rewrite_lea16(t);
  if (t->i->opsize == 2 || !t_address(t, &m)) return false;
  bool home = t_mapped(t->i->reg);
  t->keeps_rcx = t->i->index == X86_REG_NONE || t_mapped(t->i->index);
  t->keeps_rax = home && (t->i->base == X86_REG_NONE || (t->i->base < 16 && t_mapped(t->i->base)));
  unsigned dst = home ? T_HOME(t->i->reg) : H_RAX;
  em_mem(&t->e, t->i->opsize == 8, 0x8d, dst, m);
  if (!home) em_store(&t->e, t_slot(t->i->reg), dst);
  return true;
}

static bool is_nop(unsigned mnemonic) {
  return mnemonic == ZYDIS_MNEMONIC_NOP || mnemonic == ZYDIS_MNEMONIC_ENDBR64 || mnemonic == ZYDIS_MNEMONIC_PREFETCHT0 ||
         mnemonic == ZYDIS_MNEMONIC_PREFETCHT1 || mnemonic == ZYDIS_MNEMONIC_PREFETCHT2 ||
         mnemonic == ZYDIS_MNEMONIC_PREFETCHNTA || mnemonic == ZYDIS_MNEMONIC_PREFETCHW || mnemonic == ZYDIS_MNEMONIC_PREFETCH;
}

bool t_rewrite(struct translation *t) {
  if (is_nop(t->z->mnemonic)) return t->keeps_rcx = t->keeps_rax = true;
  if (t->z->mnemonic == ZYDIS_MNEMONIC_LEA) return rewrite_lea(t);
  if (x86_vector_is_plain(t->i)) return rewrite_vector(t);
  return is_plain(t->z->mnemonic) && rewrite_plain(t);
}
