/* Makes cases: encodings collected once by trying the opcode space, operands and registers that reach the arena and the corners. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "diff.h"
#include "x86/decode/table.h"
#include "x86/regs.h"

/* The families of the engine, as decode/table.c knows them; only user-mode instructions of theirs are accepted (rejected_mnemonic, rejected_operand). */
extern const struct x86_op_family x86_family_alu, x86_family_mov, x86_family_stack, x86_family_branch, x86_family_shift, x86_family_muldiv,
    x86_family_string, x86_family_bits, x86_family_bmi, x86_family_cmpxchg, x86_family_bcd, x86_family_misc;
static const struct x86_op_family *const families[] = {
    &x86_family_alu,    &x86_family_mov,  &x86_family_stack, &x86_family_branch,  &x86_family_shift, &x86_family_muldiv,
    &x86_family_string, &x86_family_bits, &x86_family_bmi,   &x86_family_cmpxchg, &x86_family_bcd,   &x86_family_misc,
};

static ZydisDecoder decoder;
static unsigned mode;
static u8 accepted[ZYDIS_MNEMONIC_MAX_VALUE + 1];
static const char *only_family, *only_mnemonic;

/* ---- which instructions ---- */

/* Those that would leave the program's hands (system calls, interrupts). */
static bool rejected_mnemonic(unsigned m) {
  switch (m) {
  case ZYDIS_MNEMONIC_INT:
  case ZYDIS_MNEMONIC_INT1:
  case ZYDIS_MNEMONIC_INT3:
  case ZYDIS_MNEMONIC_INTO: return true;
  default: return false;
  }
}

static bool rejected_operand(const ZydisDecodedOperand *op, bool visible) {
  if (op->type == ZYDIS_OPERAND_TYPE_POINTER) return true;
  if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) return op->mem.segment == ZYDIS_REGISTER_FS; /* the program's thread pointer */
  if (!visible || op->type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  ZydisRegisterClass c = ZydisRegisterGetClass(op->reg.value);
  return c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG || c == ZYDIS_REGCLASS_XMM;
}

static bool ext_accepts(const ZydisDecodedInstruction *insn) {
  const char *f = ext_family(insn);
  if (!f || (only_family && strcmp(only_family, f) && strcmp(only_family, "ext"))) return false;
  return !only_mnemonic || !strcasecmp(only_mnemonic, ZydisMnemonicGetString(insn->mnemonic));
}

static bool acceptable(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *ops) {
  if (ext_accepts(insn)) return true;
  if (!accepted[insn->mnemonic] || insn->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) return false;
  for (unsigned n = 0; n < insn->operand_count; n++)
    if (rejected_operand(&ops[n], n < insn->operand_count_visible)) return false;
  return true;
}


/* ---- templates ---- */

enum { MAP_1, MAP_0F, MAP_0F38, MAP_0F3A, MAP_VEX1, MAP_VEX2, MAP_VEX3, MAP_EVEX1, MAP_EVEX2, MAP_EVEX3, MAP_EVEX4, MAP_EVEX5, MAP_EVEX6, MAPS };

struct template {
  u8 map, pp, w, l, opcode, reg;
  bool memory;
};

#define TEMPLATES_MAX 4096
static struct bucket {
  struct template *t;
  unsigned n;
} buckets[ZYDIS_MNEMONIC_MAX_VALUE + 1];
/* General instructions and those on extended state: each kind gets half of the cases. */
static struct kind {
  u16 mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
  unsigned n;
} kinds[2];

static const u8 prefix_of[4] = {0, 0x66, 0xf3, 0xf2};

static unsigned put_legacy_opcode(u8 *p, const struct template *t) {
  unsigned n = 0;
  if (t->map != MAP_1) p[n++] = 0x0f;
  if (t->map == MAP_0F38) p[n++] = 0x38;
  if (t->map == MAP_0F3A) p[n++] = 0x3a;
  p[n++] = t->opcode;
  return n;
}

/* The fields of EVEX that VEX has not (SDM Vol. 2A, table 2-30). */
struct evex {
  u8 high, mask, broadcast; /* high: R', V' */
  bool zeroing;
};

static unsigned put_evex(u8 *p, const struct template *t, unsigned rxb, unsigned vvvv, const struct evex *e) {
  p[0] = 0x62;
  p[1] = (u8)((~rxb & 7) << 5 | (~e->high & 1) << 4 | (t->map - MAP_EVEX1 + 1));
  p[2] = (u8)(t->w << 7 | (~vvvv & 15) << 3 | 4 | t->pp);
  p[3] = (u8)((e->zeroing ? 0x80 : 0) | t->l << 5 | e->broadcast << 4 | (~e->high >> 1 & 1) << 3 | e->mask);
  p[4] = t->opcode;
  return 5;
}

/* Opcode with its prefixes; rxb: the three high register bits. */
static unsigned put_opcode(u8 *p, const struct template *t, unsigned rxb, bool rex, unsigned vvvv, const struct evex *e) {
  unsigned n = 0;
  if (t->map >= MAP_EVEX1) return put_evex(p, t, rxb, vvvv, e);
  if (t->map >= MAP_VEX1) {
    p[n++] = 0xc4;
    p[n++] = (u8)((~rxb & 7) << 5 | (t->map - MAP_VEX1 + 1));
    p[n++] = (u8)(t->w << 7 | (~vvvv & 15) << 3 | t->l << 2 | t->pp);
    p[n++] = t->opcode;
    return n;
  }
  if (t->pp) p[n++] = prefix_of[t->pp];
  if (rex || t->w || rxb) p[n++] = (u8)(0x40 | t->w << 3 | rxb);
  return n + put_legacy_opcode(p + n, t);
}

static unsigned unclaimed;
static bool seen_unclaimed[ZYDIS_MNEMONIC_MAX_VALUE + 1];

static bool try_one(const struct template *t, u8 mask, bool vsib) {
  u8 bytes[16] = {0};
  ZydisDecodedInstruction insn;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  unsigned n = put_opcode(bytes, t, 0, false, 0, &(struct evex){.mask = mask});
  bytes[n] = (u8)((t->memory ? 0 : 0xc0) | t->reg << 3 | (vsib ? 4 : 3));
  bytes[n + 1] = 0x33; /* index, base */
  if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, 15, &insn, ops)) || !acceptable(&insn, ops)) return false;
  if (insn.opcode != t->opcode) return false; /* a prefix in its place */
  if (ext_family(&insn) && !engine_decodes(bytes)) { /* not in the CPUID shown to guests */
    unclaimed += !seen_unclaimed[insn.mnemonic];
    seen_unclaimed[insn.mnemonic] = true;
    return true;
  }
  struct bucket *b = &buckets[insn.mnemonic];
  if (b->n == TEMPLATES_MAX) return true;
  if (!(b->n & (b->n - 1))) b->t = realloc(b->t, (b->n ? 2 * b->n : 1) * sizeof(*b->t));
  if (!b->n) {
    struct kind *kind = &kinds[ext_family(&insn) != NULL];
    kind->mnemonic[kind->n++] = insn.mnemonic;
  }
  b->t[b->n++] = *t;
  return true;
}

/* Most encodings want no mask and no SIB byte; some cannot be without. */
static void collect_one(const struct template *t) {
  if (try_one(t, 0, false) || t->map < MAP_VEX1) return;
  if (t->memory && (try_one(t, 0, true) || try_one(t, 1, true))) return;
  if (t->map >= MAP_EVEX1) try_one(t, 1, false);
}

static void collect(void) {
  for (unsigned map = 0; map < MAPS; map++)
    for (unsigned bits = 0; bits < (1u << 17); bits++) {
      struct template t = {.map = (u8)map, .opcode = (u8)bits, .reg = bits >> 8 & 7, .pp = bits >> 11 & 3, .w = bits >> 13 & 1, .memory = bits >> 14 & 1, .l = (u8)(bits >> 15)};
      if ((t.l || (t.w && mode != 64)) && map < MAP_VEX1) continue;
      if (t.l > (map < MAP_EVEX1 ? 1 : 2)) continue;
      collect_one(&t);
    }
}

unsigned gen_init(const char *family, const char *mnemonic, unsigned bits) {
  mode = bits;
  only_family = family;
  only_mnemonic = mnemonic;
  if (mode == 64) x86_decoder_init(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  else if (mode == 32) x86_decoder_init(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
  else x86_decoder_init(&decoder, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
  for (size_t f = 0; f < ARRAY_SIZE(families); f++) {
    if (family && strcmp(family, families[f]->name) && strcmp(family, "general")) continue;
    for (unsigned n = 0; n < families[f]->n; n++) {
      unsigned m = families[f]->rows[n].mnemonic;
      if (!mnemonic || !strcasecmp(mnemonic, ZydisMnemonicGetString((ZydisMnemonic)m))) accepted[m] = !rejected_mnemonic(m);
    }
  }
  collect();
  if (unclaimed) printf("%u mnemonics on extended state are not in the CPUID that guests see\n", unclaimed);
  return kinds[0].n + kinds[1].n;
}

/* ---- values ---- */

static u64 landing(void) { return CODE_BASE - diff_code_base(mode) + rnd_below(PAGE_SIZE - 64); } /* nothing but int3 */

/* An address in the arena; most accesses from there succeed, some cross into other pages. */
static u64 target(unsigned align) {
  static const u8 edges[] = {1, 2, 2, 2, 3, 3, 4, 5, 6, 6, 7};
  u64 a;
  if (rnd_chance(70)) a = (rnd_chance(50) ? PAGE_SIZE : 5 * PAGE_SIZE) + rnd_below(2 * PAGE_SIZE - 64);
  else a = edges[rnd_below(ARRAY_SIZE(edges))] * PAGE_SIZE - 72 + rnd_below(96);
  if (rnd_chance(align ? 96 : 60)) a &= ~(u64)((align ? align : 8) - 1);
  return ARENA_BASE + a;
}

/* The same as a register holds it. */
static u64 pointer(unsigned align) { return target(align) - diff_data_base(mode); }

static u64 value(void) {
  static const u64 corners[] = {0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
                                0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000, ~0ull, ~1ull, 0x5555555555555555, 0xaaaaaaaaaaaaaaaa};
  switch (rnd_below(8)) {
  case 0:
  case 1: return corners[rnd_below(ARRAY_SIZE(corners))];
  case 2: return rnd_below(256);
  case 3: return rnd() >> rnd_below(64);
  case 4: return (u64)((s64)rnd() >> rnd_below(64));
  case 5: return (u64)1 << rnd_below(64);
  case 6: return rnd_below(8) ? pointer(0) : landing();
  default: return rnd();
  }
}

static u8 imm_byte(void) {
  static const u8 corners[] = {0, 1, 2, 0x7f, 0x80, 0xff, 8, 16, 31, 32, 63, 64};
  return rnd_chance(50) ? corners[rnd_below(ARRAY_SIZE(corners))] : (u8)rnd();
}

static bool writable(u64 a, unsigned size) {
  u64 first = (a - ARENA_BASE) / PAGE_SIZE, last = (a + size - 1 - ARENA_BASE) / PAGE_SIZE;
  return first < ARENA_PAGES && last < ARENA_PAGES && arena_map[first] == PAGE_RW && arena_map[last] == PAGE_RW;
}
void gen_poke(u64 a, const void *data, unsigned size) {
  if (!writable(a, size)) return;
  memcpy((void *)a, data, size);
  memcpy(engine_arena + (a - ARENA_BASE), data, size);
}
static void poke64(u64 a, u64 v) { gen_poke(a, &v, 8); }
static void peek(u64 a, void *data, unsigned size) {
  if (writable(a, size)) memcpy(data, (void *)a, size);
}

/* ---- bytes ---- */

/* ModRM and SIB, and the high bits of their register numbers. */
struct operands {
  u8 modrm, sib;
  bool has_sib;
  unsigned rxb; /* R 4, X 2, B 1 */
};

static struct operands any_operands(const struct template *t) {
  struct operands o = {.modrm = (u8)((t->memory ? rnd_below(3) << 6 : 0xc0) | t->reg << 3 | rnd_below(8)), .sib = (u8)rnd()};
  o.has_sib = t->memory && (o.modrm & 7) == 4;
  o.rxb = mode == 64 && rnd_chance(50) ? rnd_below(8) : 0;
  return o;
}

static unsigned pick_register(u16 set) {
  unsigned n = rnd_below((unsigned)__builtin_popcount(set));
  while (n--) set &= (u16)(set - 1);
  return (unsigned)__builtin_ctz(set);
}

/* A base register of the shape's, sometimes with its index; in 16-bit addressing one of BX, BP, SI, DI. */
static struct operands shaped_operands(const struct template *t, const struct gen_shape *s) {
  static const u8 rm16[8] = {[RBX] = 7, [RBP] = 6, [RSI] = 4, [RDI] = 5};
  unsigned rm = pick_register(t->memory ? s->bases : s->pool), mod = t->memory ? rnd_below(3) : 3;
  struct operands o = {.rxb = rm >> 3};
  if (s->pool >> 8 && rnd_chance(40)) o.rxb |= 4;
  if (mode == 16 && t->memory) {
    rm = rm16[rm & 7];
    if (rm == 6 && !mod) mod = 1;
  } else if (t->memory) {
    bool index = s->index != GEN_NO_INDEX && rnd_chance(25);
    bool relative = mode == 64 && rnd_chance(8);
    if (relative) rm = 5, mod = 0, index = false, o.rxb &= 4;
    if ((rm & 7) == 5 && !mod && !relative) mod = 1;
    o.has_sib = index || (rm & 7) == 4;
    o.sib = (u8)((index ? rnd_below(4) << 6 | (s->index & 7) << 3 : 0x20) | (rm & 7));
    if (index) o.rxb |= s->index >> 3 << 1;
    if (o.has_sib) rm = 4;
  }
  o.modrm = (u8)(mod << 6 | t->reg << 3 | (rm & 7));
  return o;
}

static u8 segment_prefix(const struct gen_shape *s) {
  static const u8 segments[] = {0x26, 0x2e, 0x36, 0x3e, 0x65, 0x65, 0x64};
  if (mode == 32 && rnd_chance(30)) return 0x65;
  return segments[rnd_below(s && mode != 64 ? 4 : mode == 64 ? 6 : 7)]; /* FS cannot be used outside 64-bit mode, GS not in 16-bit mode */
}

static const struct template *pick_template(const struct gen_shape *s) {
  unsigned ext = s ? s->ext : 50;
  const struct kind *kind = &kinds[!kinds[0].n || (kinds[1].n && rnd_chance(ext))];
  const struct bucket *b = &buckets[kind->mnemonic[rnd_below(kind->n)]];
  if (s && rnd_chance(40)) {
    const struct bucket *common = &buckets[gen_common(kind == &kinds[1])];
    if (common->n) b = common;
  }
  return &b->t[rnd_below(b->n)];
}

static unsigned vector_operand(const struct gen_shape *s, bool third) {
  if (!third || !rnd_chance(70)) return 0;
  return s && rnd_chance(80) ? pick_register(s->pool) : rnd_below(diff_gprs(mode));
}

static void make_bytes(struct diff_case *k, const struct gen_shape *s) {
  const struct template *t = pick_template(s);
  u8 *p = k->code;
  unsigned n = 0;
  bool legacy = t->map < MAP_VEX1;
  struct operands o = s ? shaped_operands(t, s) : any_operands(t);
  if (rnd_chance(legacy ? (s ? 3 : 8) : 1)) p[n++] = 0xf0;
  if (rnd_chance(s ? 5 : 10)) p[n++] = segment_prefix(s);
  if (rnd_chance(s && mode != 64 ? 1 : 8)) p[n++] = 0x67;
  if (rnd_chance(legacy ? 5 : 1)) p[n++] = 0x66;
  if (rnd_chance(legacy ? 4 : 1)) p[n++] = rnd_chance(50) ? 0xf2 : 0xf3;
  struct evex e = {.high = mode == 64 && rnd_chance(s ? 25 : 50) ? (u8)rnd_below(4) : 0, .mask = rnd_chance(50) ? (u8)rnd_below(8) : 0, .broadcast = rnd_chance(25)};
  e.zeroing = e.mask && rnd_chance(40);
  bool third = t->map < MAP_EVEX1 || rnd_chance(70); /* EVEX: many have no third register */
  if (!third) e.high &= 1;
  n += put_opcode(p + n, t, o.rxb, mode == 64 && rnd_chance(25), legacy ? 0 : vector_operand(s, third), &e);
  p[n++] = o.modrm;
  if (o.has_sib) p[n++] = o.sib;
  k->fixed = n;
  while (n < sizeof(k->code)) p[n++] = imm_byte();
}

static bool decode(struct diff_case *k) {
  ZyanStatus s = ZydisDecoderDecodeFull(&decoder, k->code, 15, &k->insn, k->ops);
  k->len = k->insn.length;
  if (ZYAN_SUCCESS(s)) x86_decoded_fix(&k->insn, k->ops);
  return ZYAN_SUCCESS(s);
}

/* An encoding that the decoder refuses for its prefixes: the host must raise #UD. */
static bool refused(struct diff_case *k) {
  ZyanStatus s = ZydisDecoderDecodeFull(&decoder, k->code, 15, &k->insn, k->ops);
  if (s != ZYDIS_STATUS_ILLEGAL_LOCK && s != ZYDIS_STATUS_ILLEGAL_REX && s != ZYDIS_STATUS_ILLEGAL_LEGACY_PFX && s != ZYDIS_STATUS_BAD_REGISTER) return false;
  memset(&k->insn, 0, sizeof(k->insn));
  memset(k->code + k->fixed, 0xcc, sizeof(k->code) - k->fixed); /* should it run, it does not run far */
  k->len = 15;
  k->branch = true;
  return true;
}

/* ---- operands ---- */

static u64 *gpr(struct diff_case *k, ZydisRegister r) {
  ZydisRegisterClass c = ZydisRegisterGetClass(r);
  if (c == ZYDIS_REGCLASS_GPR8) return NULL;
  return &k->in.gpr[ZydisRegisterGetId(r)];
}

static void patch_disp(struct diff_case *k, u64 disp) {
  memcpy(k->code + k->insn.raw.disp.offset, &disp, k->insn.raw.disp.size / 8);
  decode(k);
}

/* Makes a memory operand point at `to`: through its base register, else through index and displacement. */
static void aim(struct diff_case *k, const ZydisDecodedOperand *op, u64 to) {
  u64 address = op->mem.segment == ZYDIS_REGISTER_GS ? to - DIFF_GS_BASE : to - diff_data_base(mode);
  ZydisRegister base = op->mem.base, index = op->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? ZYDIS_REGISTER_NONE : op->mem.index;
  u64 disp = op->mem.disp.has_displacement ? (u64)op->mem.disp.value : 0;
  if (base == ZYDIS_REGISTER_RIP || base == ZYDIS_REGISTER_EIP) {
    patch_disp(k, address - k->at - k->len);
    return;
  }
  if (base == ZYDIS_REGISTER_NONE) {
    if (index != ZYDIS_REGISTER_NONE) *gpr(k, index) = rnd_below(4096);
    u64 offset = index == ZYDIS_REGISTER_NONE ? 0 : *gpr(k, index) * op->mem.scale;
    if (k->insn.raw.disp.size >= (mode == 16 ? 16 : 32)) patch_disp(k, address - offset);
    return;
  }
  u64 high = mode == 64 && k->insn.address_width == 32 && rnd_chance(50) ? rnd() << 32 : 0;
  if (index == base) {
    *gpr(k, base) = ((address - disp) / (1u + op->mem.scale)) | high;
  } else {
    u64 offset = index == ZYDIS_REGISTER_NONE ? 0 : *gpr(k, index) * MAX(op->mem.scale, 1u);
    u64 v = address - disp - offset;
    *gpr(k, base) = k->insn.address_width == 32 ? (u32)v | high : k->insn.address_width == 16 ? (u16)v : v;
  }
}

static const ZydisDecodedOperand *memory_operand(const struct diff_case *k) {
  for (unsigned n = 0; n < k->insn.operand_count_visible; n++)
    if (k->ops[n].type == ZYDIS_OPERAND_TYPE_MEMORY) return &k->ops[n];
  return NULL;
}

static bool is_bit_test(unsigned m) {
  return m == ZYDIS_MNEMONIC_BT || m == ZYDIS_MNEMONIC_BTS || m == ZYDIS_MNEMONIC_BTR || m == ZYDIS_MNEMONIC_BTC;
}
static bool is_indirect_branch(const struct diff_case *k) {
  return k->branch && k->insn.operand_count_visible && k->ops[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

/* What the operand in memory holds, where a random value would hit one case only. */
static void fill_memory(struct diff_case *k, u64 at) {
  u64 *g = k->in.gpr;
  if (is_indirect_branch(k) && rnd_chance(60)) {
    poke64(at, landing());
    return;
  }
  if (rnd_chance(30)) poke64(at, value());
  if (rnd_chance(50)) return;
  switch (k->insn.mnemonic) {
  case ZYDIS_MNEMONIC_CMPXCHG: peek(at, &g[RAX], 8); break;
  case ZYDIS_MNEMONIC_CMPXCHG8B:
    peek(at, &g[RAX], 4);
    peek(at + 4, &g[RDX], 4);
    break;
  case ZYDIS_MNEMONIC_CMPXCHG16B:
    peek(at, &g[RAX], 8);
    peek(at + 8, &g[RDX], 8);
    break;
  default: break;
  }
}

/* Returns the operand's linear address, 0 where there is none or it is left to chance. */
static u64 set_memory(struct diff_case *k) {
  const ZydisDecodedOperand *op = memory_operand(k);
  if (!op) return 0;
  unsigned size = op->size / 8;
  bool locked = (k->insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) || k->insn.mnemonic == ZYDIS_MNEMONIC_XCHG; /* split locks are slow, and trapped by hosts */
  bool aligned = locked || (size >= 16 && rnd_chance(60));
  unsigned align = size > 64 ? 64 : size & (size - 1) ? 0 : size;
  if (is_bit_test(k->insn.mnemonic) && k->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER && rnd_chance(80))
    *gpr(k, k->ops[1].reg.value) = rnd_chance(50) ? rnd_below(20000) : 0ull - rnd_below(20000);
  u64 at = target(aligned ? align : 0);
  if (!rnd_chance(97)) return 0;
  aim(k, op, at);
  if (k->insn.mnemonic != ZYDIS_MNEMONIC_XCHG && k->insn.mnemonic != ZYDIS_MNEMONIC_LEA) fill_memory(k, at);
  return at;
}

/* Displacements of direct branches stay near, off the instruction itself. */
static void set_branch(struct diff_case *k) {
  if (!k->branch) return;
  const ZydisDecodedOperand *op = &k->ops[0];
  if (k->insn.operand_count_visible && op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op->imm.is_relative) {
    unsigned size = k->insn.raw.imm[0].size / 8;
    s32 d = rnd_chance(50) ? (s32)rnd_below(60) : -(s32)(k->len + 1 + rnd_below(40));
    memcpy(k->code + k->insn.raw.imm[0].offset, &d, size);
    decode(k);
  } else if (k->insn.mnemonic == ZYDIS_MNEMONIC_RET) {
    if (rnd_chance(60)) poke64(diff_data_base(mode) + (mode == 16 ? (u16)k->in.gpr[RSP] : k->in.gpr[RSP]), landing());
  } else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && rnd_chance(60)) {
    u64 *r = gpr(k, op->reg.value);
    if (r) *r = landing();
  }
}

static void set_registers(struct diff_case *k) {
  u64 *g = k->in.gpr;
  for (unsigned n = 0; n < 16; n++) g[n] = value();
  g[RSP] = pointer(rnd_chance(90) ? 8 : 0);
  if (rnd_chance(80)) g[RBP] = pointer(0);
  if (rnd_chance(85)) g[RSI] = pointer(0);
  if (rnd_chance(85)) g[RDI] = pointer(0);
  k->in.rflags = 2 | FL_IF | (rnd() & FL_ARITH) | (rnd_chance(12) ? FL_DF : 0) | (rnd_chance(3) ? FL_AC : 0) | (rnd_chance(5) ? FL_NT : 0) | (rnd() & FL_ID);
}

static void set_implicit(struct diff_case *k) {
  u64 *g = k->in.gpr;
  if (k->insn.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
    if (rnd_chance(95)) g[RCX] = rnd_below(rnd_chance(90) ? 40 : 1500);
    if (rnd_chance(20)) g[RDI] = g[RSI] + rnd_below(32) - 16; /* overlap */
    if (mode == 64 && k->insn.address_width == 32 && rnd_chance(50)) g[RCX] |= rnd() << 32, g[RSI] |= rnd() << 32, g[RDI] |= rnd() << 32;
    u64 from = g[RSI] + diff_data_base(mode), to = g[RDI] + diff_data_base(mode);
    if (rnd_chance(50) && writable(from, 256) && writable(to, 256)) { /* equal stretches for CMPS and SCAS */
      u8 same[256];
      memset(same, (int)g[RAX], sizeof(same));
      if (rnd_chance(50)) peek(from, same, sizeof(same));
      gen_poke(to, same, rnd_below(256));
    }
  }
  switch (k->insn.mnemonic) {
  case ZYDIS_MNEMONIC_DIV:
    if (rnd_chance(60)) g[RDX] = rnd_below(4), g[RAX] = rnd_chance(50) ? g[RAX] & 0xff : g[RAX];
    break;
  case ZYDIS_MNEMONIC_IDIV:
    if (rnd_chance(60)) g[RDX] = (u64)((s64)g[RAX] >> 63);
    break;
  case ZYDIS_MNEMONIC_MOVDIR64B:
    if (rnd_chance(90)) *gpr(k, k->ops[0].reg.value) = pointer(64);
    break;
  case ZYDIS_MNEMONIC_XLAT:
    if (rnd_chance(90)) g[RBX] = pointer(0) - (u8)g[RAX];
    break;
  default: break;
  }
}

static bool is_branch(const ZydisDecodedInstruction *insn) {
  unsigned c = insn->meta.category;
  return c == ZYDIS_CATEGORY_COND_BR || c == ZYDIS_CATEGORY_UNCOND_BR || c == ZYDIS_CATEGORY_CALL || c == ZYDIS_CATEGORY_RET;
}

static bool make(struct diff_case *k) {
  k->branch = false;
  k->operand = 0;
  k->ext = false;
  make_bytes(k, NULL);
  if (!decode(k)) {
    if (!rnd_chance(10) || !refused(k)) return false;
    set_registers(k);
    return true;
  }
  if (!acceptable(&k->insn, k->ops)) return false;
  k->branch = is_branch(&k->insn);
  k->ext = ext_family(&k->insn) != NULL;
  set_registers(k);
  set_implicit(k);
  u64 at = k->operand = set_memory(k);
  set_branch(k);
  if (k->ext) ext_randomise(k, memory_operand(k), at);
  return true;
}

void gen_case(struct diff_case *k) {
  k->at = host_next_slot();
  while (!make(k));
  for (unsigned n = 0; mode != 64 && n < 16; n++) k->in.gpr[n] = n < 8 ? (u32)k->in.gpr[n] : 0;
  if (mode == 16) k->in.gpr[RSP] = ENTRY_PAGE | (u16)k->in.gpr[RSP];
}

/* ---- for sequences (seq_gen.c) ---- */

u64 gen_value(void) { return value(); }
u64 gen_pointer(unsigned align) { return pointer(align); }
u64 gen_address(u64 offset) { return ARENA_BASE + offset - diff_data_base(mode); }
bool gen_decode(struct diff_case *k) { return decode(k); }
bool gen_is_branch(const ZydisDecodedInstruction *insn) { return is_branch(insn); }

/* Displacements stay near; mostly multiples of 64, so that aligned accesses stay so. */
static void shape_displacement(struct diff_case *k, const ZydisDecodedOperand *op) {
  if (!k->insn.raw.disp.size) return;
  s64 d = (s64)rnd_below(8) * 64 - 256;
  if (rnd_chance(25)) d += rnd_below(64);
  if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) return;
  if (k->insn.raw.disp.size == 8) d = rnd_chance(75) ? (d & 64) : (s8)rnd();
  patch_disp(k, (u64)d);
}

const ZydisDecodedOperand *gen_memory_operand(const struct diff_case *k) { return memory_operand(k); }

bool gen_instruction(struct diff_case *k, const struct gen_shape *s) {
  make_bytes(k, s);
  if (!decode(k) || !acceptable(&k->insn, k->ops) || is_branch(&k->insn)) return false;
  if (memory_operand(k)) shape_displacement(k, memory_operand(k));
  k->ext = ext_family(&k->insn) != NULL;
  return true;
}
