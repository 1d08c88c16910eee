/* The guest's arithmetic flags: kept where they are cheapest, made again where they are needed. */
#include "x86/translate/private.h"

enum { ALL_FLAGS = 63 };

/* ---- code ---- */

void t_emit_save_flags(struct emitter *e) {
  em8(e, 0x9f);                             /* lahf */
  em8(e, 0x0f), em8(e, 0x90), em8(e, 0xc0); /* seto al */
  em8(e, 0x66), em_mem(e, 0, 0x89, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.flags)));
}

/* AL + 127 overflows exactly when AL is 1. */
void t_emit_restore_flags(struct emitter *e) {
  em_mem(e, 0, 0x0fb7, H_RAX, EM_GS(offsetof(struct x86_vcpu, code.flags)));
  em8(e, 0x04), em8(e, 127); /* add al, 127 */
  em8(e, 0x9e);              /* sahf */
}

/* op a, src or imm; opcode: the form for bytes with ModRM.rm as destination, /extension with an immediate. */
static void operate(struct emitter *e, const struct t_producer *p, unsigned a, u32 opcode, u32 imm_opcode, unsigned extension) {
  unsigned wide = p->bits != 8;
  if (p->src != X86_REG_NONE) {
    em_sized_reg(e, p->bits, opcode | wide, T_HOME(p->src), a);
    return;
  }
  em_sized_reg(e, p->bits, imm_opcode | wide, extension, a);
  if (p->bits == 8)
    em8(e, (u8)p->imm);
  else if (p->bits == 16)
    em8(e, (u8)p->imm), em8(e, (u32)p->imm >> 8 & 0xff);
  else
    em32(e, (u32)p->imm);
}
static void compare(struct emitter *e, const struct t_producer *p, unsigned a) { operate(e, p, a, 0x38, 0x80, 7); }
static void test(struct emitter *e, const struct t_producer *p, unsigned a) { operate(e, p, a, 0x84, 0xf6, 0); }
static void add(struct emitter *e, const struct t_producer *p, unsigned a) { operate(e, p, a, 0x00, 0x80, 0); }
static void subtract(struct emitter *e, const struct t_producer *p, unsigned a) { operate(e, p, a, 0x28, 0x80, 5); }
static void negate(struct emitter *e, const struct t_producer *p, unsigned a) { em_sized_reg(e, p->bits, 0xf6 | (p->bits != 8), 3, a); }

void t_emit_flags_again(struct emitter *e, const struct t_producer *p) {
  unsigned dst = T_HOME(p->dst);
  switch (p->op) {
  case PRODUCER_COMPARE: compare(e, p, dst); break;
  case PRODUCER_TEST: test(e, p, dst); break;
  case PRODUCER_RESULT: em_sized_reg(e, p->bits, 0x84 | (p->bits != 8), dst, dst); break;
  case PRODUCER_ADD: em_mov(e, H_RAX, dst), subtract(e, p, H_RAX), add(e, p, H_RAX); break;
  case PRODUCER_SUB: em_mov(e, H_RAX, dst), add(e, p, H_RAX), subtract(e, p, H_RAX); break;
  case PRODUCER_NEG: em_mov(e, H_RAX, dst), negate(e, p, H_RAX), negate(e, p, H_RAX); break;
  case PRODUCER_NONE: break;
  }
}

/* ---- producers ---- */

static unsigned operand_register(const ZydisDecodedOperand *op) {
  if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || x86_plan_is_high(op->reg.value)) return X86_REG_NONE;
  unsigned n = x86_plan_general(op->reg.value);
  return n < 16 ? n : X86_REG_NONE;
}

static unsigned op_of(unsigned mnemonic, bool same) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_CMP: return PRODUCER_COMPARE;
  case ZYDIS_MNEMONIC_TEST: return PRODUCER_TEST;
  case ZYDIS_MNEMONIC_AND:
  case ZYDIS_MNEMONIC_OR:
  case ZYDIS_MNEMONIC_XOR: return PRODUCER_RESULT;
  case ZYDIS_MNEMONIC_ADD: return same ? PRODUCER_NONE : PRODUCER_ADD;
  case ZYDIS_MNEMONIC_SUB: return same ? PRODUCER_COMPARE : PRODUCER_SUB;
  case ZYDIS_MNEMONIC_NEG: return PRODUCER_NEG;
  default: return PRODUCER_NONE;
  }
}

struct t_producer t_producer_of(unsigned insn, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops) {
  struct t_producer none = {.op = PRODUCER_NONE}, p = {.insn = (u8)insn, .bits = (u8)ops[0].size, .src = X86_REG_NONE};
  unsigned dst = operand_register(&ops[0]);
  if (z->operand_count_visible < 1 || z->operand_count_visible > 2 || dst == X86_REG_NONE || !t_mapped(dst)) return none;
  p.dst = (u8)dst;
  bool two = z->operand_count_visible == 2;
  if (two && ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
    p.imm = (s32)ops[1].imm.value.s;
  } else if (two) {
    unsigned src = operand_register(&ops[1]);
    p.src = (u8)src;
  }
  p.op = op_of(z->mnemonic, p.src == p.dst);
  bool memory = two && ops[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
  if (p.op == PRODUCER_RESULT) { /* whatever the other operand was */
    p.src = X86_REG_NONE;
    return p;
  }
  if (p.op == PRODUCER_NONE || memory || (two && ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER && (p.src == X86_REG_NONE || !t_mapped(p.src)))) return none;
  return p;
}

static bool uses(const struct t_producer *p, u32 registers) {
  return p->op != PRODUCER_NONE && ((registers >> p->dst & 1) || (p->src != X86_REG_NONE && (registers >> p->src & 1)));
}

/* Bits of the operands are moved to the top, so that one size does for all; PF and AF come from the lowest byte. */
u64 t_producer_flags(const struct t_producer *p, const u64 *regs) {
  unsigned up = 64u - p->bits;
  u64 d = regs[p->dst] << up, s = (p->src == X86_REG_NONE ? (u64)(s64)p->imm : regs[p->src]) << up;
  u64 a = d, b = s, r, carry = 0, overflow = 0, aux = 0;
  switch (p->op) {
  case PRODUCER_ADD:
    r = d, a = r - b;
    carry = r < a, overflow = (~(a ^ b) & (a ^ r)) >> 63, aux = 1;
    break;
  case PRODUCER_SUB:
    r = d, a = r + b;
    carry = a < b, overflow = ((a ^ b) & (a ^ r)) >> 63, aux = 1;
    break;
  case PRODUCER_NEG:
    r = d, a = 0, b = -r;
    carry = b != 0, overflow = ((a ^ b) & (a ^ r)) >> 63, aux = 1;
    break;
  case PRODUCER_COMPARE:
    r = a - b;
    carry = a < b, overflow = ((a ^ b) & (a ^ r)) >> 63, aux = 1;
    break;
  case PRODUCER_TEST: r = a & b; break;
  default: r = d; break;
  }
  aux &= (a ^ b ^ r) >> up >> 4;
  return carry | (!__builtin_parityll(r >> up & 0xff) ? FL_PF : 0) | (aux ? FL_AF : 0) | (!r ? FL_ZF : 0) | (r >> 63 ? FL_SF : 0) | (overflow ? FL_OF : 0);
}

/* ---- while translating ---- */

static void first_use(struct translation *t, int use) {
  if (t->f.first == FIRST_NONE) t->f.first = use;
}

static bool nowhere(const struct t_flags *f) { return !f->host && !f->saved; }

void t_save_flags(struct translation *t) {
  first_use(t, FIRST_SAVED);
  if (t->f.saved) return;
  if (!t->f.host) t_emit_flags_again(&t->e, &t->f.producer);
  t_emit_save_flags(&t->e);
  t->rax = PLAN_ALONE;
  t->f.host = t->f.saved = true;
}

void t_store_flags(struct translation *t) {
  t_save_flags(t);
  t->f.host = false;
}

void t_settle_flags(struct translation *t) {
  t_store_flags(t);
  t->f.lost = true;
  t->f.again = (struct t_producer){.op = PRODUCER_NONE};
}

/* Whether the producer's registers are as they are while somebody may want these flags. */
static bool can_wait(const struct translation *t) {
  if (t->f.producer.op == PRODUCER_NONE) return false;
  return !t->f.overwrites || !t->p->live || t->i->flags_written == ALL_FLAGS || t->p->needs;
}

void t_lose_flags(struct translation *t) {
  first_use(t, FIRST_SAVED);
  t->f.lost = true;
  if (!t->f.saved && can_wait(t))
    t->f.again = t->f.producer;
  else
    t_save_flags(t);
  t->f.host = false;
}

void t_need_flags(struct translation *t) {
  first_use(t, FIRST_READ);
  if (!t->f.host) t->rax = PLAN_ALONE;
  if (!t->f.host && t->f.producer.op != PRODUCER_NONE)
    t_emit_flags_again(&t->e, &t->f.producer);
  else if (!t->f.host)
    t_emit_restore_flags(&t->e);
  t->f.host = true;
}

/* Flags that nobody looks at are good enough wherever they are. */
void t_wrote_flags(struct translation *t) {
  first_use(t, FIRST_WRITTEN);
  t->f.host = true;
  t->f.saved = !t->p->live;
}

void t_stored_flags(struct translation *t) {
  t_wrote_flags(t);
  t->f.host = false;
  t->f.saved = true;
}

void t_flags_begin(struct translation *t) {
  struct t_flags *f = &t->f;
  f->overwrites = uses(&f->producer, t->p->writes);
  f->lost = false;
  f->again = (struct t_producer){.op = PRODUCER_NONE};
  if (nowhere(f) && !can_wait(t)) t_save_flags(t);
  f->begin_host = f->host && !f->saved;
  if (nowhere(f)) f->again = f->producer;
}

u8 t_flags_end(struct translation *t) {
  struct t_flags *f = &t->f;
  if (t->i->flags_written) {
    f->producer = t->i->flags_written == ALL_FLAGS ? t_producer_of(t->k, t->z, t->ops) : (struct t_producer){.op = PRODUCER_NONE};
  } else if (f->overwrites) {
    f->producer.op = PRODUCER_NONE;
    if (nowhere(f)) f->saved = true; /* nobody looks at them */
  }
  if (f->again.op != PRODUCER_NONE) return (u8)(FLAGS_AGAIN + f->again.insn);
  return f->begin_host && !f->lost ? FLAGS_IN_HOST : FLAGS_IN_MEMORY;
}
