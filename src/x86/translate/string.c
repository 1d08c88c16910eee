/* MOVS, STOS and LODS, repeated CMPS and SCAS, with addresses as wide as the mode has them.
 *
 * A repeated one runs the host's over what lies in the page of each operand, page after page; between two pages it looks at the
 * gate.  Where a page is not in the TLB, where somebody wants the vCPU, and with DF set the interpreter goes on from the
 * registers as they are then.  While the host's runs, RSI and RDI are host addresses and RCX counts what is left of this page
 * (MOVED_*).
 */
#include "x86/translate/private.h"

#define FIELD(f) EM_GS(offsetof(struct x86_vcpu, f))

enum { ADD = 0x03, SUB = 0x2b, CMP = 0x3b, TEST = 0x85, CMOVB = 0x0f42, CMOVA = 0x0f47 };

static bool repeated(const struct translation *t) {
  return t->i->iflags & (X86_I_REP | X86_I_REPNE);
}

/* Flags are lost already. */
static void slow_if_down(struct translation *t) {
  em_mem(&t->e, 0, 0xf7, 0, FIELD(rflags)), em32(&t->e, FL_DF); /* test */
  t_slow_if(t, CC_NE);
}

/* op, with the prefixes of the operand size; byte: the opcode for bytes, one less than that for words. */
static void sized(struct translation *t, u8 byte, unsigned reg, struct em_mem m) {
  if (t->i->opsize == 2) em8(&t->e, 0x66);
  em_mem(&t->e, t->i->opsize == 8, byte | (t->i->opsize != 1), reg, m);
}

static void advance(struct translation *t, unsigned host) {
  if (t->i->adsize == 2) em8(&t->e, 0x66);
  t_lea(t, host, EM_AT(host, t->i->opsize));
}

/* ---- repeated ---- */

/* 32-bit code: nothing but a register's lower half counts, and addresses go round. */
static void keep_low(struct translation *t, unsigned host) {
  if (t->m32) em_reg(&t->e, 0, 0x8b, host, host);
}

static void look_up(struct translation *t, unsigned at, bool write, struct em_mem delta) {
  struct t_slow *s = t_slow(t);
  s->from[s->n_from++] = t_look_up(t, at, t->i->opsize, write);
  em_store(&t->e, delta, H_RCX);
}

/* RCX: how many elements lie in the page, RAX being the offset of the first, and are wanted; the guest's RCX goes down. */
static void take(struct translation *t) {
  struct emitter *e = &t->e;
  unsigned shift = (unsigned)__builtin_ctz(t->i->opsize);
  em_mov_imm32(e, H_RCX, PAGE_SIZE);
  em_reg(e, 0, SUB, H_RCX, H_RAX);
  if (shift) em_reg(e, 0, 0xc1, 5, H_RCX), em8(e, shift); /* shr */
  em_reg(e, 1, CMP, H_RCX, T_HOME(RCX));
  em_reg(e, 1, CMOVA, H_RCX, T_HOME(RCX));
  em_reg(e, 1, SUB, T_HOME(RCX), H_RCX);
}

/* What the operands of a repeated one are. */
struct kind {
  u8 opcode; /* for bytes */
  bool source, write, compare;
};

/* The host's.  A comparison leaves its flags in AX, as LAHF and SETO give them. */
static void host_string(struct translation *t, const struct kind *k) {
  struct emitter *e = &t->e;
  if (k->source) em_mem(e, 1, ADD, H_RSI, FIELD(code.from));
  em_mem(e, 1, ADD, H_RDI, FIELD(code.to));
  if (!k->source) em_mov(e, H_RAX, T_HOME(RAX));
  if (t->i->opsize == 2) em8(e, 0x66);
  em8(e, k->compare && (t->i->iflags & X86_I_REPNE) ? 0xf2 : 0xf3);
  if (t->i->opsize == 8) em8(e, 0x48);
  em8(e, k->opcode | (t->i->opsize != 1));
  if (k->compare) {
    em8(e, 0x9f);                                                                 /* lahf */
    em8(e, 0x0f), em8(e, 0x90), em8(e, 0xc0);                                     /* seto al */
    em_lea(e, T_HOME(RCX), (struct em_mem){.base = T_HOME(RCX), .index = H_RCX}); /* those that it did not come to */
  }
  if (k->source) em_mem(e, 1, SUB, H_RSI, FIELD(code.from)), keep_low(t, H_RSI);
  em_mem(e, 1, SUB, H_RDI, FIELD(code.to)), keep_low(t, H_RDI);
}

static u8 *if_zero(struct translation *t) {
  em_reg(&t->e, 1, TEST, T_HOME(RCX), T_HOME(RCX));
  return em_jcc(&t->e, CC_E);
}

/* The flags of a comparison that ends here become the guest's. */
static void finish_comparison(struct translation *t) {
  em8(&t->e, 0x66), em_mem(&t->e, 0, 0x89, H_RAX, FIELD(code.flags));
}

/* ZF in AX: whether it goes on. */
static u8 *if_decided(struct translation *t) {
  em8(&t->e, 0xa9), em32(&t->e, FL_ZF << 8); /* test eax */
  return em_jcc(&t->e, t->i->iflags & X86_I_REPNE ? CC_NE : CC_E);
}

static bool repeat(struct translation *t, const struct kind *k) {
  struct emitter *e = &t->e;
  if (k->source && (t->i->seg >= SEG_FS || (t->m32 && t->i->seg == SEG_CS))) return false;
  t->moved = MOVED_COUNT | MOVED_RDI | (k->source ? MOVED_RSI : 0);
  t_settle_flags(t);
  if (k->source) keep_low(t, H_RSI);
  keep_low(t, H_RDI);
  keep_low(t, T_HOME(RCX));
  u8 *nothing = if_zero(t);
  slow_if_down(t);
  u8 *again = e->p;
  look_up(t, H_RDI, k->write, FIELD(code.to));
  if (k->source) {
    em_store(e, FIELD(code.room), H_RAX);
    look_up(t, H_RSI, false, FIELD(code.from));
    em_mem(e, 1, CMP, H_RAX, FIELD(code.room));
    em_mem(e, 1, CMOVB, H_RAX, FIELD(code.room));
  }
  take(t);
  host_string(t, k);
  u8 *decided = k->compare ? if_decided(t) : NULL, *done = if_zero(t);
  t_load_gate(t);
  em_patch(e, em_jcc(e, CC_E), again);
  struct t_slow *s = t_slow(t);
  s->from[s->n_from++] = em_jmp(e);
  if (decided) em_here(e, decided);
  em_here(e, done);
  if (k->compare) finish_comparison(t);
  em_here(e, nothing);
  if (k->compare) t_stored_flags(t);
  return true;
}

/* ---- one element: DF is looked at when nothing else can go to the interpreter ---- */

static bool move(struct translation *t) {
  struct emitter *e = &t->e;
  struct em_mem m;
  t_lose_flags(t);
  if (!t_access(t, 0, &m)) return false;
  sized(t, 0x8a, H_RAX, m);
  em_store(e, FIELD(code.scratch), H_RAX);
  if (!t_access(t, 1, &m)) return false;
  slow_if_down(t);
  em_load(e, H_RAX, FIELD(code.scratch));
  sized(t, 0x88, H_RAX, m);
  advance(t, H_RSI);
  advance(t, H_RDI);
  return true;
}

/* STOS or LODS: the host's MOV in one direction or the other. */
static bool accumulator(struct translation *t, u8 opcode, unsigned pointer) {
  struct em_mem m;
  t_lose_flags(t);
  if (!t_access(t, 0, &m)) return false;
  slow_if_down(t);
  sized(t, opcode, T_HOME(RAX), m);
  advance(t, pointer);
  return true;
}

bool t_string(struct translation *t) {
  static const struct kind kinds[] = {
      {.opcode = 0xa4, .source = true, .write = true},   /* MOVS */
      {.opcode = 0xa6, .source = true, .compare = true}, /* CMPS */
      {.opcode = 0xaa, .write = true},                   /* STOS */
      {.opcode = 0xae, .compare = true},                 /* SCAS */
  };
  u8 opcode = t->z->opcode & 0xfe;
  if (t->z->meta.category != ZYDIS_CATEGORY_STRINGOP || (t->segmented ? repeated(t) : t->i->adsize != t->word)) return false;
  for (size_t k = 0; repeated(t) && k < ARRAY_SIZE(kinds); k++)
    if (kinds[k].opcode == opcode) return repeat(t, &kinds[k]);
  if (repeated(t)) return false;
  return opcode == 0xa4 ? move(t) : opcode == 0xaa ? accumulator(t, 0x88, H_RDI) : opcode == 0xac && accumulator(t, 0x8a, H_RSI);
}
