/* Makes sequences: instructions that pass values and flags to one another through few registers, branches between them, a loop.
 *
 * Some registers keep pointers into the arena (bases), one may keep a small number (index), one counts the loop: instructions
 * that would change those are not taken, so that most sequences run to their end.  All others may hold anything.
 */
#include <string.h>
#include "diff.h"
#include "x86/regs.h"

/* What compilers make most of; the rest of the table comes up often enough by itself. */
static const u16 common_general[] = {
    ZYDIS_MNEMONIC_ADD,   ZYDIS_MNEMONIC_ADC,     ZYDIS_MNEMONIC_SUB,    ZYDIS_MNEMONIC_SBB,   ZYDIS_MNEMONIC_AND,
    ZYDIS_MNEMONIC_OR,    ZYDIS_MNEMONIC_XOR,     ZYDIS_MNEMONIC_CMP,    ZYDIS_MNEMONIC_TEST,  ZYDIS_MNEMONIC_INC,
    ZYDIS_MNEMONIC_DEC,   ZYDIS_MNEMONIC_NEG,     ZYDIS_MNEMONIC_NOT,    ZYDIS_MNEMONIC_MOV,   ZYDIS_MNEMONIC_MOV,
    ZYDIS_MNEMONIC_LEA,   ZYDIS_MNEMONIC_SHL,     ZYDIS_MNEMONIC_SHR,    ZYDIS_MNEMONIC_SAR,   ZYDIS_MNEMONIC_ROL,
    ZYDIS_MNEMONIC_ROR,   ZYDIS_MNEMONIC_RCL,     ZYDIS_MNEMONIC_RCR,    ZYDIS_MNEMONIC_SHLD,  ZYDIS_MNEMONIC_SHRD,
    ZYDIS_MNEMONIC_IMUL,  ZYDIS_MNEMONIC_MUL,     ZYDIS_MNEMONIC_MOVZX,  ZYDIS_MNEMONIC_MOVSX, ZYDIS_MNEMONIC_MOVSXD,
    ZYDIS_MNEMONIC_PUSH,  ZYDIS_MNEMONIC_POP,     ZYDIS_MNEMONIC_SETZ,   ZYDIS_MNEMONIC_SETB,  ZYDIS_MNEMONIC_SETL,
    ZYDIS_MNEMONIC_CMOVZ, ZYDIS_MNEMONIC_CMOVNB,  ZYDIS_MNEMONIC_CMOVLE, ZYDIS_MNEMONIC_BT,    ZYDIS_MNEMONIC_BTS,
    ZYDIS_MNEMONIC_XCHG,  ZYDIS_MNEMONIC_XADD,    ZYDIS_MNEMONIC_LAHF,   ZYDIS_MNEMONIC_SAHF,  ZYDIS_MNEMONIC_CMC,
    ZYDIS_MNEMONIC_STC,   ZYDIS_MNEMONIC_CMPXCHG, ZYDIS_MNEMONIC_BSF,    ZYDIS_MNEMONIC_BSR,   ZYDIS_MNEMONIC_TZCNT,
    ZYDIS_MNEMONIC_BSWAP, ZYDIS_MNEMONIC_CDQ,     ZYDIS_MNEMONIC_STOSD,  ZYDIS_MNEMONIC_MOVSB, ZYDIS_MNEMONIC_PUSHFQ,
    ZYDIS_MNEMONIC_PUSHF,
};
static const u16 common_ext[] = {
    ZYDIS_MNEMONIC_MOVAPS,  ZYDIS_MNEMONIC_MOVUPS,    ZYDIS_MNEMONIC_MOVDQA,     ZYDIS_MNEMONIC_MOVDQU,
    ZYDIS_MNEMONIC_MOVD,    ZYDIS_MNEMONIC_MOVQ,      ZYDIS_MNEMONIC_MOVSS,      ZYDIS_MNEMONIC_MOVSD,
    ZYDIS_MNEMONIC_MOVHPS,  ZYDIS_MNEMONIC_MOVLPD,    ZYDIS_MNEMONIC_PXOR,       ZYDIS_MNEMONIC_PADDD,
    ZYDIS_MNEMONIC_PCMPEQB, ZYDIS_MNEMONIC_PMOVMSKB,  ZYDIS_MNEMONIC_PSHUFD,     ZYDIS_MNEMONIC_PUNPCKLBW,
    ZYDIS_MNEMONIC_ADDPS,   ZYDIS_MNEMONIC_ADDSD,     ZYDIS_MNEMONIC_MULSD,      ZYDIS_MNEMONIC_SUBSS,
    ZYDIS_MNEMONIC_DIVSD,   ZYDIS_MNEMONIC_UCOMISD,   ZYDIS_MNEMONIC_COMISS,     ZYDIS_MNEMONIC_CVTSI2SD,
    ZYDIS_MNEMONIC_XORPS,   ZYDIS_MNEMONIC_CVTTSD2SI, ZYDIS_MNEMONIC_SHUFPS,     ZYDIS_MNEMONIC_PTEST,
    ZYDIS_MNEMONIC_VADDPS,  ZYDIS_MNEMONIC_VPADDD,    ZYDIS_MNEMONIC_VMOVDQU,    ZYDIS_MNEMONIC_VPXOR,
    ZYDIS_MNEMONIC_VMOVUPS, ZYDIS_MNEMONIC_VMOVD,     ZYDIS_MNEMONIC_VMOVDQU64,  ZYDIS_MNEMONIC_VZEROUPPER,
    ZYDIS_MNEMONIC_FLD,     ZYDIS_MNEMONIC_FSTP,      ZYDIS_MNEMONIC_FADD,       ZYDIS_MNEMONIC_FMULP,
    ZYDIS_MNEMONIC_FXCH,    ZYDIS_MNEMONIC_FILD,      ZYDIS_MNEMONIC_FISTP,      ZYDIS_MNEMONIC_FNSTSW,
    ZYDIS_MNEMONIC_FCOMI,   ZYDIS_MNEMONIC_KMOVQ,     ZYDIS_MNEMONIC_VPTERNLOGD, ZYDIS_MNEMONIC_VPCMPEQB,
};

unsigned gen_common(bool ext) {
  return ext ? common_ext[rnd_below(ARRAY_SIZE(common_ext))] : common_general[rnd_below(ARRAY_SIZE(common_general))];
}

/* ---- roles of registers ---- */

struct roles {
  struct gen_shape shape;
  u16 kept; /* never written */
  u8 counter;
};

static u16 random_subset(u16 from, unsigned n) {
  u16 set = 0;
  while ((unsigned)__builtin_popcount(set) < n) set |= from & (u16)(1u << rnd_below(16));
  return set;
}

static struct roles cast(unsigned mode) {
  u16 all = mode == 64 ? 0xffff : 0xff, moving = BIT(RSI) | BIT(RDI);
  u16 fixed = mode == 64 ? (u16)(BIT(RBP) | BIT(10) | BIT(13)) : (u16)(BIT(RBX) | BIT(RBP));
  struct roles r = {.counter = RCX, .shape.index = GEN_NO_INDEX};
  if (mode == 64 && rnd_chance(50)) r.shape.index = 14;
  if (mode == 32 && rnd_chance(30)) r.shape.index = RDX;
  if (mode == 64 && rnd_chance(50)) r.counter = 15;
  r.kept = fixed | (u16)BIT(r.counter);
  if (r.shape.index != GEN_NO_INDEX) r.kept |= (u16)(1u << r.shape.index);
  u16 data = all & (u16) ~(r.kept | moving | BIT(RSP) | BIT(RAX));
  r.shape.bases = fixed | moving;
  r.shape.pool = (u16)(BIT(RAX) | random_subset(data, (unsigned)MIN(__builtin_popcount(data), 4)));
  static const u8 mixes[] = {0, 0, 15, 40, 70, 100};
  r.shape.ext = mixes[rnd_below(sizeof(mixes))];
  return r;
}

/* ---- which instructions ---- */

/* General registers that it writes; of those it names in the encoding, and of all. */
static void written(const struct diff_case *k, u16 *named, u16 *all) {
  ZydisMachineMode m = k->mode == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32;
  *named = *all = 0;
  for (unsigned n = 0; n < k->insn.operand_count; n++) {
    const ZydisDecodedOperand *op = &k->ops[n];
    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) continue;
    ZydisRegister r = ZydisRegisterGetLargestEnclosing(m, op->reg.value);
    ZydisRegisterClass c = ZydisRegisterGetClass(r);
    if (c != ZYDIS_REGCLASS_GPR64 && c != ZYDIS_REGCLASS_GPR32) continue;
    u16 bit = (u16)(1u << ZydisRegisterGetId(r));
    *all |= bit;
    if (n < k->insn.operand_count_visible) *named |= bit;
  }
}

/* Images whose contents depend on more than the architecture says (XINUSE, SDM Vol. 1 13.6); and what mostly faults comes seldom.
 */
static bool unwanted(const struct diff_case *k) {
  const char *family = ext_family(&k->insn);
  unsigned m = k->insn.mnemonic;
  const ZydisDecodedOperand *op = gen_memory_operand(k);
  bool writes_code = op && op->mem.segment == ZYDIS_REGISTER_CS && op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
  if (engine_real && (k->insn.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED || writes_code)) return true;
  if (engine_v86 && k->insn.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return !rnd_chance(1); /* undefined there */
  if (family && !strcmp(family, "xsave"))
    return m != ZYDIS_MNEMONIC_FXSAVE && m != ZYDIS_MNEMONIC_FXRSTOR && m != ZYDIS_MNEMONIC_LDMXCSR &&
           m != ZYDIS_MNEMONIC_STMXCSR;
  switch (m) {
  case ZYDIS_MNEMONIC_UD0:
  case ZYDIS_MNEMONIC_UD1:
  case ZYDIS_MNEMONIC_UD2:
    return true;
  case ZYDIS_MNEMONIC_IN:
  case ZYDIS_MNEMONIC_OUT:
  case ZYDIS_MNEMONIC_INSB:
  case ZYDIS_MNEMONIC_INSW:
  case ZYDIS_MNEMONIC_INSD:
  case ZYDIS_MNEMONIC_OUTSB:
  case ZYDIS_MNEMONIC_OUTSW:
  case ZYDIS_MNEMONIC_OUTSD:
  case ZYDIS_MNEMONIC_CLI:
  case ZYDIS_MNEMONIC_STI:
    return !rnd_chance(2);
  case ZYDIS_MNEMONIC_DIV:
  case ZYDIS_MNEMONIC_IDIV:
  case ZYDIS_MNEMONIC_XLAT:
  case ZYDIS_MNEMONIC_MOVDIR64B:
    return !rnd_chance(20);
  default:
    return false;
  }
}

/* Mostly with room on both sides. */
static u64 inside(void) {
  if (rnd_chance(12)) return gen_pointer(64) & ~63ull;
  u64 at = ((rnd_chance(50) ? PAGE_SIZE : 5 * PAGE_SIZE) + 512 + rnd_below(2 * PAGE_SIZE - 1024)) & ~63ull;
  return gen_address(at);
}

/* Locked accesses that cross a cache line are slow, and trapped by hosts: from an aligned base only. */
static bool memory_suits(const struct diff_case *k, const struct roles *r) {
  const ZydisDecodedOperand *op = gen_memory_operand(k);
  unsigned m = k->insn.mnemonic;
  if (!op) return true;
  if (op->mem.type == ZYDIS_MEMOP_TYPE_VSIB) return rnd_chance(20);
  if ((m == ZYDIS_MNEMONIC_BT || m == ZYDIS_MNEMONIC_BTS || m == ZYDIS_MNEMONIC_BTR || m == ZYDIS_MNEMONIC_BTC) &&
      k->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER)
    return !(k->insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) && rnd_chance(10);
  if (!(k->insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) && m != ZYDIS_MNEMONIC_XCHG) return true;
  bool based = ZydisRegisterGetClass(op->mem.base) != ZYDIS_REGCLASS_IP && op->mem.base != ZYDIS_REGISTER_NONE;
  return based && op->mem.index == ZYDIS_REGISTER_NONE && op->mem.segment != ZYDIS_REGISTER_GS &&
         k->insn.address_width == k->mode && (r->kept >> ZydisRegisterGetId(op->mem.base) & 1) && !(op->mem.disp.value & 63);
}

static bool suits(const struct diff_case *k, const struct roles *r) {
  u16 named, all;
  written(k, &named, &all);
  if (all & r->kept || unwanted(k) || !memory_suits(k, r)) return false;
  return !(named & (BIT(RSP) | BIT(RSI) | BIT(RDI))) || rnd_chance(12);
}

static void plain(struct seq_insn *i, struct sequence *s, const struct roles *r) {
  struct diff_case *k = &s->k;
  do k->at = CODE_BASE;
  while (!gen_instruction(k, &r->shape) || !suits(k, r));
  *i = (struct seq_insn){.len = (u8)k->len};
  memcpy(i->code, k->code, k->len);
  const ZydisDecodedOperand *op = gen_memory_operand(k);
  if (op && ZydisRegisterGetClass(op->mem.base) == ZYDIS_REGCLASS_IP) {
    i->fix = FIX_DATA;
    i->fix_at = k->insn.raw.disp.offset;
    i->fix_size = 4;
    i->data = inside() + (rnd_chance(25) ? rnd_below(64) : 0);
    if ((k->insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) || k->insn.mnemonic == ZYDIS_MNEMONIC_XCHG) i->data &= ~63ull;
  }
  if (k->ext) s->ext = true;
}

/* ---- instructions whose operands have to be prepared, or they mostly fault ---- */

struct writer {
  struct seq_insn *i;
  unsigned n;
};

static void put(struct writer *w, const u8 *bytes, unsigned n) {
  if (!n) return;
  w->i[w->n] = (struct seq_insn){.len = (u8)n};
  memcpy(w->i[w->n++].code, bytes, n);
}

static void put_mov_imm(struct writer *w, unsigned reg, u32 v, unsigned mode) {
  u8 b[5] = {(u8)(0xb8 | reg)};
  memcpy(b + 1, &v, 4);
  put(w, b, mode == 16 ? 3 : 5);
}

/* Mostly repeated a few times or over pages.  CMPS goes far where it compares something with itself. */
static void put_string(struct writer *w, const struct roles *r, unsigned mode) {
  static const u8 opcodes[] = {0xa4, 0xa5, 0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xa6, 0xa7, 0xae, 0xaf};
  bool rep = r->counter != RCX && rnd_chance(80);
  u8 opcode = opcodes[rnd_below(sizeof(opcodes))];
  if ((opcode & 0xfe) == 0xa6 && rnd_chance(50)) put(w, (u8[]){0x48, 0x89, 0xfe} + (mode != 64), mode == 64 ? 3 : 2); /* mov rsi, rdi */
  u8 b[6];
  unsigned n = 0, many = rnd_chance(50) ? 40 : rnd_chance(60) ? 1200 : 9000;
  bool flags = rnd_chance(30);
  if (rep) put_mov_imm(w, RCX, rnd_chance(10) ? 0 : rnd_below(many), mode);
  if (flags) put(w, (u8[]){0x85, 0xc9}, 2); /* test ecx, ecx: flags of a register that is about to change */
  if (rnd_chance(4)) b[n++] = 0x67;
  if (rnd_chance(6)) b[n++] = rnd_chance(50) && mode == 64 ? 0x65 : 0x3e;
  if (rnd_chance(20)) b[n++] = 0x66;
  if (rep) b[n++] = rnd_chance(20) ? 0xf2 : 0xf3;
  if (mode == 64 && rnd_chance(30)) b[n++] = 0x48;
  b[n++] = opcode;
  put(w, b, n);
  if (flags) put(w, (u8[]){0x85, 0xc0}, 2); /* test eax, eax */
  if (mode != 16 && rnd_chance(40)) put(w, (u8[]){0x88, (u8)(rnd_chance(50) ? 0x47 : 0x46), 8}, 3); /* mov [rdi or rsi + 8], al */
}

/* reg, [base + displacement]: opcode is up to two bytes, the first 0 for none. */
static void put_memory(struct writer *w, u8 prefix, bool wide, u8 opcode0, u8 opcode1, unsigned reg, unsigned base, s32 disp) {
  u8 b[12];
  unsigned n = 0;
  if (prefix) b[n++] = prefix;
  b[n++] = (u8)(0x40 | (wide ? 8 : 0) | (reg >> 3 << 2) | base >> 3);
  if (opcode0) b[n++] = opcode0;
  b[n++] = opcode1;
  b[n++] = (u8)(0x80 | (reg & 7) << 3 | (base & 7));
  memcpy(b + n, &disp, 4);
  put(w, b, n + 4);
}

static unsigned kept_base(void) {
  static const u8 bases[] = {RBP, 10, 13};
  return bases[rnd_below(sizeof(bases))];
}

/* A dividend that is often small enough. */
static void put_division(struct writer *w) {
  bool is_signed = rnd_chance(50), wide = rnd_chance(50), byte = rnd_chance(12);
  u8 opcode = byte ? 0xf6 : 0xf7, prefix = rnd_chance(15) ? 0x66 : 0;
  unsigned extension = is_signed ? 7 : 6;
  if (is_signed)
    put(w, (u8[]){(u8)(wide ? 0x48 : 0x40), 0x99}, 2); /* cqo or cdq */
  else if (rnd_chance(80))
    put(w, (u8[]){0x31, 0xd2}, 2); /* xor edx, edx */
  if (rnd_chance(40)) {
    put_memory(w, prefix, wide, 0, opcode, extension, kept_base(), (s32)rnd_below(256) - 128);
    return;
  }
  unsigned reg = rnd_below(16);
  u8 b[4];
  unsigned n = 0;
  if (prefix) b[n++] = prefix;
  if (!byte || rnd_chance(50)) b[n++] = (u8)(0x40 | (wide ? 8 : 0) | reg >> 3);
  b[n++] = opcode;
  b[n++] = (u8)(0xc0 | extension << 3 | (reg & 7));
  put(w, b, n);
}

/* BT to BTC with an offset beyond the operand. */
static void put_bit(struct writer *w, const struct roles *r) {
  static const u8 opcodes[] = {0xa3, 0xab, 0xb3, 0xbb}, registers[] = {RAX, RDX, RBX, 8, 14, 15};
  u8 opcode = opcodes[rnd_below(4)];
  unsigned reg;
  do reg = registers[rnd_below(sizeof(registers))];
  while (r->kept >> reg & 1);
  bool lock = opcode != 0xa3 && rnd_chance(40), word = !lock && rnd_chance(25), wide = !word && rnd_chance(60);
  s32 range = rnd_chance(70) ? 2000 : 30000;
  s64 offset = (s64)rnd_below((unsigned)(2 * range)) - range;
  if (!wide) offset = (offset & (word ? 0xffff : 0xffffffff)) | (s64)((word ? rnd_below(3) : rnd()) << (word ? 16 : 32)); /* the rest does not matter */
  u8 b[10] = {(u8)(0x48 | reg >> 3), (u8)(0xb8 | (reg & 7))}; /* mov reg, offset */
  memcpy(b + 2, &offset, 8);
  put(w, b, 10);
  put_memory(w, lock ? 0xf0 : word ? 0x66 : 0, wide, 0x0f, opcode, reg, kept_base(), lock ? 0 : (s32)rnd_below(128) - 64);
}

/* CMPXCHG8B and CMPXCHG16B, often with what is there. */
static void put_wide_exchange(struct writer *w) {
  unsigned base = kept_base(), wide = rnd_chance(50);
  s32 disp = (s32)rnd_below(16) * 64 - 512 + (rnd_chance(90) ? 0 : 8);
  if (rnd_chance(60)) {
    put_memory(w, 0, wide, 0, 0x8b, RAX, base, disp);
    put_memory(w, 0, wide, 0, 0x8b, RDX, base, disp + (wide ? 8 : 4));
  }
  put_memory(w, rnd_chance(60) ? 0xf0 : 0, wide, 0x0f, 0xc7, 1, base, disp);
}

/* MULX, mostly with registers that have no home in the host's. */
static void put_mulx(struct writer *w, const struct roles *r) {
  static const u8 registers[] = {14, 15, 14, 15, RAX, RBX, 8};
  unsigned high, low, source = rnd_chance(50) ? 13 : registers[rnd_below(sizeof(registers))];
  do high = registers[rnd_below(sizeof(registers))];
  while (r->kept >> high & 1);
  do low = registers[rnd_below(sizeof(registers))];
  while (r->kept >> low & 1);
  bool memory = rnd_chance(50), wide = rnd_chance(70);
  if (memory) source = kept_base();
  u8 b[7] = {0xc4, (u8)((~high & 8) << 4 | 0x40 | (~source & 8) << 2 | 2), (u8)((wide ? 0x80 : 0) | (~low & 15) << 3 | 3), 0xf6,
             (u8)((memory ? 0x40 : 0xc0) | (high & 7) << 3 | (source & 7)), 8};
  put(w, b, memory ? 6 : 5);
}

/* Other flags, by way of the stack. */
static void put_popf(struct writer *w) {
  u32 flags = (u32)rnd() & FL_ARITH;
  if (rnd_chance(30)) flags |= FL_ID;
  if (rnd_chance(10)) flags |= (u32)rnd() & (FL_DF | FL_NT | FL_IF | FL_IOPL);
  put(w, (u8[]){0x9c}, 1); /* pushfq */
  u8 b[7] = {0x81, 0x34, 0x24}; /* xor dword [rsp], flags */
  memcpy(b + 3, &flags, 4);
  if (rnd_chance(80)) put(w, b, 7);
  put(w, (u8[]){0x9d}, 1); /* popfq */
}

/* Virtual-8086 mode: segment registers get other selectors that lead into the arena, and are read. */
static void put_segment(struct writer *w) {
  u16 sel = (u16)(0x3000 + rnd_below(rnd_chance(80) ? 64 : 0x800));
  u8 low = sel & 0xff, high = sel >> 8, wide = rnd_chance(20), seg = rnd_chance(45) ? 0 : rnd_chance(80) ? 3 : rnd_below(6);
  if (seg == 1) seg = 5;
  switch (rnd_below(5)) {
  case 0:
    put(w, (u8[]){0xb8, low, high}, 3); /* mov ax, sel */
    put(w, (u8[]){0x8e, (u8)(0xc0 | seg << 3)}, 2);
    break;
  case 1:
    put(w, (u8[]){0x66, 0x68, low, high, 0, 0} + !wide, wide ? 6 : 3); /* push sel */
    put(w, (u8[]){0x66, seg ? 0x1f : 0x07} + !wide, 1u + wide);        /* pop ds or es */
    break;
  case 2:
    put(w, (u8[]){0x66, seg ? 0x06 : 0x1e} + !wide, 1u + wide);
    put(w, (u8[]){0x66, seg ? 0x1f : 0x07} + !wide, 1u + wide);
    break;
  case 3:
    put(w, (u8[]){0x66, 0x8c, (u8)(0xc0 | seg << 3)} + !wide, 2u + wide); /* mov ax or eax, seg */
    break;
  default:
    put(w, (u8[]){0xc7, 0x47, wide ? 4 : 2, low, high}, 5);              /* mov word [bx + 2 or 4], sel */
    put(w, (u8[]){0x66, seg ? 0xc5 : 0xc4, 0x07} + !wide, 2u + wide);    /* lds or les ax or eax, [bx] */
    if (rnd_chance(30)) put(w, (u8[]){0x8e, (u8)(0x47 | (seg ? 3 : 0) << 3), wide ? 4 : 2}, 3); /* mov ds or es, [bx + ...] */
  }
}

enum { PREPARED_MAX = 6 };
static unsigned prepared(struct seq_insn *i, const struct roles *r, unsigned mode) {
  struct writer w = {.i = i};
  if (engine_v86 && rnd_chance(70)) {
    put_segment(&w);
    return w.n;
  }
  bool changed = (r->kept >> RDX & 1) || (r->kept >> RAX & 1);
  switch (mode == 64 && !changed ? rnd_below(6) : 0) {
  case 1: put_division(&w); break;
  case 2: put_bit(&w, r); break;
  case 3: put_wide_exchange(&w); break;
  case 4: put_mulx(&w, r); break;
  case 5: put_popf(&w); break;
  default: put_string(&w, r, mode); break;
  }
  return w.n;
}

/* ---- control flow ---- */

static struct seq_insn branch(const u8 *opcode, unsigned n, unsigned size, enum seq_fix fix, unsigned target) {
  struct seq_insn i = {.len = (u8)(n + size), .fix = (u8)fix, .fix_at = (u8)n, .fix_size = (u8)size, .target = (u8)target};
  memcpy(i.code, opcode, n);
  return i;
}

static struct seq_insn conditional(unsigned cc, bool near, unsigned mode, unsigned target) {
  return near ? branch((u8[]){0x0f, (u8)(0x80 | cc)}, 2, mode == 16 ? 2 : 4, FIX_RELATIVE, target)
              : branch((u8[]){(u8)(0x70 | cc)}, 1, 1, FIX_RELATIVE, target);
}

/* Virtual-8086 mode: far ones, now and then to a segment that begins elsewhere. */
static unsigned forward_far(struct seq_insn *i, unsigned at, unsigned n, unsigned target) {
  unsigned lower = rnd_chance(70) ? 0 : 1 + rnd_below(16);
  u16 sel = (u16)(0x6000 - lower);
  if (at + 3 <= n && rnd_chance(50)) {
    i[0] = (struct seq_insn){.len = 3, .code = {0x68, sel & 0xff, (u8)(sel >> 8)}};
    i[1] = branch((u8[]){0x68}, 1, 2, FIX_ABSOLUTE, MAX(target, at + 3));
    i[1].data = 16 * lower;
    i[2] = (struct seq_insn){.len = 1, .code = {0xcb}};
    return 3;
  }
  i[0] = branch((u8[]){rnd_chance(50) ? 0x9a : 0xea}, 1, 4, FIX_ABSOLUTE, target);
  i[0].data = 16 * lower | (u64)sel << 16;
  return 1;
}

/* One or two instructions that go on at a later one. */
static unsigned forward(struct seq_insn *i, unsigned at, unsigned n, unsigned mode, bool called) {
  unsigned target = at + 1 + rnd_below(MIN(n - at, 7u)), wide = mode == 16 ? 2 : 4;
  bool near = rnd_chance(30);
  if (engine_v86 && !engine_real && rnd_chance(35)) return forward_far(i, at, n, target);
  switch (rnd_below(12)) {
  case 0:
    i[0] = near ? branch((u8[]){0xe9}, 1, wide, FIX_RELATIVE, target) : branch((u8[]){0xeb}, 1, 1, FIX_RELATIVE, target);
    return 1;
  case 1:
    i[0] = branch((u8[]){0xe8}, 1, wide, FIX_RELATIVE, target);
    return 1;
  case 2:
    i[0] = branch((u8[]){0xe3}, 1, 1, FIX_RELATIVE, target);
    return 1;
  case 3:
    if (!called && !rnd_chance(10)) break;
    i[0] = (struct seq_insn){.len = 1, .code = {0xc3}};
    return 1;
  case 4:
  case 5: /* an address, and there: RET, JMP or CALL */
    if (at + 2 > n) break;
    if (target < at + 2) target = at + 2;
    bool stack = rnd_chance(50);
    i[0] = branch((u8[]){stack ? 0x68 : 0xb8}, 1, wide, FIX_ABSOLUTE, target);
    i[1] = stack ? (struct seq_insn){.len = 1, .code = {0xc3}}
                 : (struct seq_insn){.len = 2, .code = {0xff, rnd_chance(50) ? 0xe0 : 0xd0}};
    return 2;
  default:
    break;
  }
  i[0] = conditional(rnd_below(16), near, mode, target);
  return 1;
}

/* Counts down and goes back to `start`. */
static unsigned back(struct seq_insn *i, unsigned at, unsigned start, const struct roles *r, unsigned mode) {
  unsigned c = r->counter;
  bool near = at - start > 6;
  if (c == RCX && !near && rnd_chance(40)) {
    i[0] = branch((u8[]){0xe2}, 1, 1, FIX_RELATIVE, start);
    return 1;
  }
  if (c == RCX)
    i[0] = (struct seq_insn){.len = 2, .code = {0xff, 0xc9}};
  else if (rnd_chance(50))
    i[0] = (struct seq_insn){.len = 3, .code = {0x49, 0xff, (u8)(0xc8 | (c & 7))}};
  else
    i[0] = (struct seq_insn){.len = 4, .code = {0x49, 0x83, (u8)(0xe8 | (c & 7)), 1}};
  i[1] = conditional(5, near, mode, start);
  return 2;
}

/* Nothing may go to the branch of a loop without counting. */
static void keep_counting(struct sequence *s, unsigned count) {
  for (unsigned n = 0; n < count; n++)
    if (s->insn[n].fix && s->insn[n].target == count + 1) s->insn[n].target = (u8)count;
}

/* Nor to a jump through a register without its address, which may be its own. */
static void keep_addresses(struct sequence *s) {
  for (unsigned n = 0; n < s->n; n++) {
    u8 t = s->insn[n].target;
    bool code = s->insn[n].fix == FIX_RELATIVE || s->insn[n].fix == FIX_ABSOLUTE;
    if (code && t && t < s->n && s->insn[t - 1].fix == FIX_ABSOLUTE && t - 1 != (int)n) s->insn[n].target--;
  }
}

static void make_code(struct sequence *s, const struct roles *r) {
  unsigned want = rnd_chance(90) ? 2 + rnd_below(11) : 12 + rnd_below(46), n = 0, mode = s->k.mode;
  bool loop = rnd_chance(40), called = false;
  unsigned start = rnd_below(want), end = start + 1 + rnd_below(want - start);
  while (n < want) {
    unsigned left = want - n;
    if (rnd_chance(15) && left > 1) {
      unsigned more = forward(&s->insn[n], n, want, mode, called);
      called |= s->insn[n].code[0] == 0xe8;
      n += more;
    } else if (rnd_chance(engine_v86 ? 35 : 10) && left >= PREPARED_MAX) {
      n += prepared(&s->insn[n], r, mode);
    } else {
      plain(&s->insn[n++], s, r);
    }
    if (loop && n >= end) {
      unsigned more = back(&s->insn[n], n, start, r, mode);
      if (more == 2) keep_counting(s, n);
      n += more;
      want += more;
      loop = false;
    }
  }
  s->n = n;
  keep_addresses(s);
}

/* ---- the state they start from ---- */

static void poke_typed(u64 at) {
  u8 b[128];
  ext_fill(b, sizeof(b));
  gen_poke(at, b, sizeof(b));
}

static void calm(struct sequence *s) {
  u8 *x = s->k.in.xsave;
  u32 mxcsr;
  u16 fcw, fsw;
  if (rnd_chance(12)) return;
  memcpy(&mxcsr, x + 24, 4);
  memcpy(&fcw, x, 2);
  memcpy(&fsw, x + 2, 2);
  mxcsr |= 0x1f80;
  fcw |= 0x3f;
  fsw &= 0x7f7f;
  memcpy(x + 24, &mxcsr, 4);
  memcpy(x, &fcw, 2);
  memcpy(x + 2, &fsw, 2);
}

static void make_state(struct sequence *s, const struct roles *r) {
  struct diff_case *k = &s->k;
  u64 *g = k->in.gpr, base = diff_data_base(k->mode);
  for (unsigned n = 0; n < 16; n++) g[n] = gen_value();
  for (unsigned n = 0; n < 16; n++) {
    if (!(r->shape.bases >> n & 1)) continue;
    g[n] = inside();
    if (s->ext && rnd_chance(60)) poke_typed(base + g[n]);
  }
  g[RSP] = rnd_chance(95) ? inside() : gen_pointer(0);
  g[r->counter] = rnd_chance(85) ? 2 + rnd_below(5) : 7 + rnd_below(40);
  if (r->shape.index != GEN_NO_INDEX) g[r->shape.index] = 8 * rnd_below(16);
  for (unsigned n = 0; k->mode != 64 && n < 16; n++) g[n] = n < 8 ? (u32)g[n] : 0;
  if (k->mode == 16) g[RSP] = ENTRY_PAGE | (u16)g[RSP];
  k->in.rflags = 2 | FL_IF | (rnd() & FL_ARITH) | (rnd_chance(8) ? FL_DF : 0) | (rnd_chance(2) ? FL_AC : 0) |
                 (rnd_chance(2) ? FL_NT : 0) | (rnd() & FL_ID);
  memset(&k->insn, 0, sizeof(k->insn));
  if (s->ext) ext_randomise(k, NULL, 0), calm(s);
}

/* Anywhere in the code area, often across the end of a page. */
static u64 place(void) {
  u64 page = CODE_BASE + PAGE_SIZE * (1 + rnd_below(CODE_SIZE / PAGE_SIZE - 3));
  return page + (rnd_chance(25) ? PAGE_SIZE - 1 - rnd_below(100) : 256 + rnd_below(PAGE_SIZE - 512));
}

void seq_make(struct sequence *s) {
  unsigned mode = s->k.mode;
  memset(s, 0, sizeof(*s));
  s->k.mode = mode;
  struct roles r = cast(mode);
  make_code(s, &r);
  s->k.ext = s->ext;
  make_state(s, &r);
  s->k.at = place();
  s->cold = (u32)(rnd() | rnd());
  s->hole = (u8)(rnd_chance(40) ? 1 + rnd_below(6) : 0);
  seq_layout(s);
}

void seq_layout(struct sequence *s) {
  unsigned at = 0;
  for (unsigned n = 0; n < s->n; n++) s->offset[n] = (u16)at, at += s->insn[n].len;
  s->offset[s->n] = (u16)at;
  s->len = at;
  s->k.end = s->k.at + at;
  u64 base = s->k.at - diff_code_base(s->k.mode);
  for (unsigned n = 0; n < s->n; n++) {
    struct seq_insn *i = &s->insn[n];
    u64 next = s->offset[n] + i->len, to = s->offset[i->target],
        v = i->fix == FIX_RELATIVE   ? to - next
            : i->fix == FIX_ABSOLUTE ? base + to + i->data
                                     : i->data - (base + next);
    if (i->fix) memcpy(i->code + i->fix_at, &v, i->fix_size);
    memcpy(s->bytes + s->offset[n], i->code, i->len);
  }
}
