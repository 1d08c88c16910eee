/* Two passes over a block.  Forwards: accesses through the same registers, which move by constants only, are grouped, so that the
 * first checks the page for all.  Backwards: flags that are overwritten before anyone looks at them.  A fault shows all flags, so
 * everything that may fault looks at them. */
#include "x86/translate/plan.h"
#include "x86/exec/vector.h"

/* Accesses so far apart share a check: the farther, the more often a page ends between them. */
enum { ALL_FLAGS = 63, SPAN_MAX = 512, MOVE_MAX = 4096 };

unsigned x86_plan_vector_level(const struct x86_insn *i) {
  static const u8 levels[] = {[VECTOR_SSE] = VECTORS_SSE, [VECTOR_AVX] = VECTORS_AVX, [VECTOR_AVX512] = VECTORS_AVX512};
  if (i->op == ZYDIS_MNEMONIC_VZEROUPPER || i->op == ZYDIS_MNEMONIC_VZEROALL) return VECTORS_AVX;
  return x86_vector_is_plain(i) ? levels[((const struct x86_vector *)i->aux)->class] : VECTORS_NONE;
}

/* ---- accesses ---- */

static bool is_hint(unsigned mnemonic) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_LEA:
  case ZYDIS_MNEMONIC_NOP:
  case ZYDIS_MNEMONIC_PREFETCHT0:
  case ZYDIS_MNEMONIC_PREFETCHT1:
  case ZYDIS_MNEMONIC_PREFETCHT2:
  case ZYDIS_MNEMONIC_PREFETCHNTA:
  case ZYDIS_MNEMONIC_PREFETCHW:
  case ZYDIS_MNEMONIC_PREFETCH:
    return true;
  default:
    return false;
  }
}

static const ZydisDecodedOperand *memory_operand(const struct x86_decoded_insn *d) {
  for (unsigned k = 0; k < d->insn.operand_count_visible; k++)
    if (d->ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY) return &d->ops[k];
  return NULL;
}

static void add(struct plan_insn *p, struct plan_address at, unsigned size, bool write) {
  if (p->n_access < 2)
    p->access[p->n_access++] =
        (struct plan_access){.at = at, .size = (u8)size, .write = write, .group = PLAN_ALONE, .last = true};
}

static bool is_32(const struct x86_block *b) { return (b->mode & X86_MODE_SIZE) == X86_MODE_32; }
static bool is_16(const struct x86_block *b) { return (b->mode & X86_MODE_SIZE) == X86_MODE_16; }
static unsigned word_of(const struct x86_block *b) { return is_16(b) ? 2 : is_32(b) ? 4 : 8; }

static void add_operand(struct plan_insn *p, const struct plan *all, const struct x86_insn *i, const struct x86_decoded_insn *d) {
  const struct x86_block *b = all->b;
  const ZydisDecodedOperand *m = memory_operand(d);
  s64 disp = i->disp + (i->base == X86_REG_RIP ? (s64)(b->gpa & (PAGE_SIZE - 1)) : 0);
  if (!m || !(i->iflags & X86_I_MEM) || is_hint(d->insn.mnemonic) || (!all->segmented && i->adsize != word_of(b))) return;
  if (!all->segmented && (is_32(b) ? i->seg == SEG_CS : disp != (s32)disp)) return; /* CS has rights of its own */
  struct plan_address at = {
      .seg = i->seg >= SEG_FS ? i->seg : 0, .base = i->base, .index = i->index, .shift = i->shift, .disp = (s32)disp};
  if (all->segmented) at.seg = i->seg | PLAN_SEGMENT, at.size = i->adsize;
  if (x86_vector_is_plain(i)) {
    const struct x86_vector *v = i->aux;
    add(p, at, v->mem_size, v->store);
  } else {
    add(p, at, m->size / 8, m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
  }
}

/* BT to BTC with a register for the bit's number reach beyond the operand: another address each time. */
bool x86_plan_is_bit_string(const struct x86_decoded_insn *d) {
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_BT:
  case ZYDIS_MNEMONIC_BTS:
  case ZYDIS_MNEMONIC_BTR:
  case ZYDIS_MNEMONIC_BTC:
    return d->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY && d->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
  default:
    return false;
  }
}

static void add_stack(struct plan_insn *p, const struct plan *all, unsigned word, unsigned reg, s32 disp, bool write) {
  struct plan_address at = {.base = (u8)reg, .index = X86_REG_NONE, .disp = disp};
  if (all->segmented) at.seg = SEG_SS | PLAN_SEGMENT, at.size = is_16(all->b) ? 2 : 4;
  add(p, at, word, write);
}

bool x86_plan_is_string(const struct x86_decoded_insn *d) {
  return d->insn.meta.category == ZYDIS_CATEGORY_STRINGOP;
}

/* One element.  A repeated one sees to its pages itself. */
static void add_string(struct plan_insn *p, const struct plan *all, const struct x86_insn *i, const struct x86_decoded_insn *d) {
  const struct x86_block *b = all->b;
  struct plan_address source = {.seg = i->seg >= SEG_FS ? i->seg : 0, .base = RSI, .index = X86_REG_NONE},
                      destination = {.base = RDI, .index = X86_REG_NONE};
  if (all->segmented) {
    source.seg = i->seg | PLAN_SEGMENT;
    destination.seg = SEG_ES | PLAN_SEGMENT;
    source.size = destination.size = i->adsize;
  }
  if ((!all->segmented && (i->adsize != word_of(b) || (is_32(b) && i->seg == SEG_CS))) || (i->iflags & (X86_I_REP | X86_I_REPNE))) return;
  switch (d->insn.opcode & 0xfe) {
  case 0xa4: /* MOVS */
    add(p, source, i->opsize, false);
    add(p, destination, i->opsize, true);
    break;
  case 0xaa: /* STOS */
    add(p, destination, i->opsize, true);
    break;
  case 0xac: /* LODS */
    add(p, source, i->opsize, false);
    break;
  }
}

static void accesses(struct plan_insn *p, const struct plan *all, const struct x86_insn *i, const struct x86_decoded_insn *d) {
  const struct x86_block *b = all->b;
  unsigned word = is_16(b) ? d->insn.operand_width / 8u : word_of(b);
  bool far = d->insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
  p->n_access = 0;
  if (all->segmented && far) { /* CS and IP; branch.c does no others */
    if (d->insn.mnemonic == ZYDIS_MNEMONIC_CALL) add_stack(p, all, 4, RSP, -4, true);
    if (d->insn.mnemonic == ZYDIS_MNEMONIC_RET) add_stack(p, all, 4, RSP, 0, false);
    return;
  }
  if (x86_plan_is_string(d)) {
    add_string(p, all, i, d);
    return;
  }
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_PUSHFD:
  case ZYDIS_MNEMONIC_PUSHFQ:
  case ZYDIS_MNEMONIC_PUSH:
  case ZYDIS_MNEMONIC_CALL:
    add_operand(p, all, i, d);
    add_stack(p, all, word, RSP, -(s32)word, true);
    break;
  case ZYDIS_MNEMONIC_POP:
  case ZYDIS_MNEMONIC_POPFD:
  case ZYDIS_MNEMONIC_POPFQ:
  case ZYDIS_MNEMONIC_RET:
    add_stack(p, all, word, RSP, 0, false);
    break;
  case ZYDIS_MNEMONIC_LEAVE:
    add_stack(p, all, word, RBP, 0, false);
    break;
  default:
    add_operand(p, all, i, d);
    if (d->insn.mnemonic == ZYDIS_MNEMONIC_PUSHF && is_16(b)) add_stack(p, all, word, RSP, -(s32)word, true);
  }
}

/* ---- what happens to registers ---- */

unsigned x86_plan_general(ZydisRegister r) {
  switch (ZydisRegisterGetClass(r)) {
  case ZYDIS_REGCLASS_GPR8:
    if (r >= ZYDIS_REGISTER_SPL) return (unsigned)(r - ZYDIS_REGISTER_SPL) + 4;
    return (unsigned)(r - ZYDIS_REGISTER_AL) & 3;
  case ZYDIS_REGCLASS_GPR16:
  case ZYDIS_REGCLASS_GPR32:
  case ZYDIS_REGCLASS_GPR64:
    return (unsigned)ZydisRegisterGetId(r);
  default:
    return 16;
  }
}

/* Zydis 4.0 does not say that CMPS and SCAS move RSI and RDI. */
static u32 written(const struct x86_decoded_insn *d) {
  u32 mask = x86_plan_is_string(d) ? 1u << RSI | 1u << RDI : 0;
  for (unsigned k = 0; k < d->insn.operand_count; k++)
    if (d->ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER && (d->ops[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
      mask |= 1u << x86_plan_general(d->ops[k].reg.value);
  return mask;
}

/* How far the instruction moves the register, when that is a constant. */
static bool moves(unsigned word, const struct x86_insn *i, const struct x86_decoded_insn *d, unsigned reg, s32 *by) {
  const ZydisDecodedOperand *a = &d->ops[0];
  unsigned bits = a->type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, a->reg.value) : 0;
  bool fits = bits == 8 * word || (word == 2 && bits == 32); /* what is in the upper half does not matter */
  bool same = fits && x86_plan_general(a->reg.value) == reg;
  bool imm = d->insn.operand_count_visible == 2 && d->ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  s64 n;
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_PUSH:
  case ZYDIS_MNEMONIC_PUSHF:
  case ZYDIS_MNEMONIC_PUSHFD:
  case ZYDIS_MNEMONIC_PUSHFQ:
    n = -(s64)(word == 2 ? d->insn.operand_width / 8u : word);
    same = reg == RSP && d->insn.operand_width == 8 * (u64)-n && (word == 2 || d->insn.stack_width == 8 * word);
    break;
  case ZYDIS_MNEMONIC_POP:
    n = word == 2 ? d->insn.operand_width / 8u : word;
    same = reg == RSP && d->insn.operand_width == 8 * (u64)n && (word == 2 || d->insn.stack_width == 8 * word) && !same;
    break;
  case ZYDIS_MNEMONIC_ADD:
    same &= imm;
    n = (s64)i->imm;
    break;
  case ZYDIS_MNEMONIC_SUB:
    same &= imm;
    n = -(s64)i->imm;
    break;
  case ZYDIS_MNEMONIC_INC:
    n = 1;
    break;
  case ZYDIS_MNEMONIC_DEC:
    n = -1;
    break;
  case ZYDIS_MNEMONIC_LEA:
    same &= i->base == reg && i->index == X86_REG_NONE && i->adsize == word;
    n = i->disp;
    break;
  default:
    return false;
  }
  *by = (s32)n;
  return same && n >= -MOVE_MAX && n <= MOVE_MAX;
}

/* Instructions of system.c that may turn to the interpreter or change what addresses mean. */
static bool is_system(unsigned mnemonic) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_CLI:
  case ZYDIS_MNEMONIC_STI:
  case ZYDIS_MNEMONIC_STAC:
  case ZYDIS_MNEMONIC_CLAC:
  case ZYDIS_MNEMONIC_SWAPGS:
  case ZYDIS_MNEMONIC_RDFSBASE:
  case ZYDIS_MNEMONIC_RDGSBASE:
  case ZYDIS_MNEMONIC_WRFSBASE:
  case ZYDIS_MNEMONIC_WRGSBASE:
  case ZYDIS_MNEMONIC_RDPKRU:
  case ZYDIS_MNEMONIC_RDTSC:
  case ZYDIS_MNEMONIC_RDTSCP:
    return true;
  default:
    return false;
  }
}

/* MOV, POP, LDS and LES where the translator does them: addresses mean something else afterwards. */
static bool loads_segment(const struct x86_decoded_insn *d) {
  for (unsigned k = 0; k < d->insn.operand_count; k++)
    if (d->ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(d->ops[k].reg.value) == ZYDIS_REGCLASS_SEGMENT &&
        d->ops[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
      return true;
  return false;
}

/* ---- groups ---- */

struct open_group {
  s32 low, high; /* of the bytes accessed, for the registers of the first access */
  s32 moved;     /* by how far the base register has moved since */
  bool closed;
  struct plan_access *newest;
};

static bool same_registers(const struct plan_address *a, const struct plan_address *b) {
  if (a->seg != b->seg || a->base != b->base || a->index != b->index || a->shift != b->shift || a->size != b->size) return false;
  return a->base != X86_REG_RIP || (a->disp >> PAGE_SHIFT) == (b->disp >> PAGE_SHIFT);
}

static bool join(struct plan_group *g, struct open_group *o, unsigned number, struct plan_access *a) {
  s64 low = (s64)a->at.disp + o->moved, high = low + a->size;
  if (o->closed || !same_registers(&g->at, &a->at)) return false;
  low = MIN(low, o->low);
  high = MAX(high, o->high);
  bool crosses = g->at.base == X86_REG_RIP && (low >> PAGE_SHIFT) != ((high - 1) >> PAGE_SHIFT);
  if (high - low > SPAN_MAX || crosses) return false;
  g->write |= a->write;
  o->low = (s32)low;
  o->high = (s32)high;
  o->newest->last = false;
  o->newest = a;
  a->group = (u8)number;
  a->moved = o->moved;
  return true;
}

static void place(struct plan *p, struct open_group *open, struct plan_access *a) {
  for (unsigned n = p->n_groups; n-- > 0;)
    if (join(&p->group[n], &open[n], n, a)) return;
  if (p->n_groups == PLAN_GROUPS) return;
  unsigned n = p->n_groups++;
  p->group[n] = (struct plan_group){.at = a->at, .write = a->write};
  open[n] = (struct open_group){.low = a->at.disp, .high = a->at.disp + a->size, .newest = a};
  a->group = (u8)n;
  a->leads = true;
}

/* The registers of open groups after this instruction. */
static void moved(struct plan *p, unsigned word, struct open_group *open, const struct x86_insn *i, const struct x86_decoded_insn *d,
                  struct plan_insn *at) {
  u32 mask = at->writes;
  for (unsigned n = 0; n < p->n_groups; n++) {
    const struct plan_address *a = &p->group[n].at;
    s32 by = 0;
    if (open[n].closed) continue;
    bool base = a->base < 16 && (mask >> a->base & 1), index = a->index < 16 && (mask >> a->index & 1);
    if (index || (base && !moves(a->size ? a->size : word, i, d, a->base, &by)) ||
        (base && (open[n].moved + by > 4 * MOVE_MAX || open[n].moved + by < -4 * MOVE_MAX))) {
      open[n].closed = true;
      continue;
    }
    open[n].moved += by;
  }
}

/* Whether nobody in the block changes its registers: in a loop one look is enough for all rounds. */
static bool is_constant(const struct plan *p, const struct plan_address *a, bool constant) {
  return constant && !(a->base < 16 && (p->writes >> a->base & 1)) && !(a->index < 16 && (p->writes >> a->index & 1));
}

/* The second copy is where a loop goes on: what the first one has looked at holds there only if it is constant. */
static void begin_loop(struct plan *p, struct open_group *open, bool constant) {
  for (unsigned n = 0; n < p->n_groups; n++) {
    if (!open[n].closed && is_constant(p, &p->group[n].at, constant)) {
      p->constant |= 1u << n;
      open[n].newest->last = false;
    } else {
      open[n].closed = true;
    }
  }
}

static void group(struct plan *p, const struct x86_block *b, const struct x86_decoded_insn *d, u64 interpreted, unsigned copies) {
  struct open_group open[PLAN_GROUPS];
  bool constant = !interpreted;
  for (unsigned k = 0; k < b->n; k++) constant &= !loads_segment(&d[k]);
  for (unsigned j = 0; j < copies * b->n; j++) {
    struct plan_insn *i = &p->insn[j];
    unsigned k = j % b->n;
    if (j == b->n) begin_loop(p, open, constant);
    if ((interpreted >> k & 1) || is_system(d[k].insn.mnemonic)) { /* it may change what addresses mean */
      for (unsigned n = 0; n < p->n_groups; n++) open[n].closed = true;
      i->n_access = 0;
      continue;
    }
    for (unsigned n = 0; n < i->n_access && !x86_plan_is_bit_string(&d[k]); n++) place(p, open, &i->access[n]);
    moved(p, word_of(b), open, &b->insn[k], &d[k], i);
    for (unsigned n = 0; n < p->n_groups && loads_segment(&d[k]); n++) open[n].closed = true;
  }
  for (unsigned n = 0; n < p->n_groups; n++) {
    if (p->constant >> n & 1) open[n].newest->last = false;
    p->group[n].at.disp = open[n].low;
    p->group[n].span = open[n].high - open[n].low;
  }
}

/* ---- flags ---- */

/* Flags that it reads only to leave them as they are. */
static bool passes_flags(unsigned mnemonic) {
  switch (mnemonic) {
  case ZYDIS_MNEMONIC_SHL:
  case ZYDIS_MNEMONIC_SHR:
  case ZYDIS_MNEMONIC_SAR:
  case ZYDIS_MNEMONIC_ROL:
  case ZYDIS_MNEMONIC_ROR:
  case ZYDIS_MNEMONIC_SHLD:
  case ZYDIS_MNEMONIC_SHRD:
  case ZYDIS_MNEMONIC_BSF:
  case ZYDIS_MNEMONIC_BSR:
    return true;
  default:
    return false;
  }
}

/* Instructions that find out more than their pages before they are done, and may leave that to the interpreter. */
static bool may_refuse(const struct x86_decoded_insn *d) {
  unsigned m = d->insn.mnemonic;
  return x86_plan_is_string(d) || m == ZYDIS_MNEMONIC_DIV || m == ZYDIS_MNEMONIC_IDIV || m == ZYDIS_MNEMONIC_CMPXCHG16B;
}

/* Whether somebody may find the state between this instruction and the one before. */
static bool may_stop(const struct plan_insn *p, const struct x86_insn *i, const struct x86_decoded_insn *d) {
  if (i->iflags & (X86_I_END | X86_I_MAYBE) || p->loads || i->op == ZYDIS_MNEMONIC_PUSHFQ || i->op == ZYDIS_MNEMONIC_PUSHFD || i->op == ZYDIS_MNEMONIC_PUSHF || may_refuse(d)) return true;
  if (x86_vector_is_plain(i) && ((const struct x86_vector *)i->aux)->align) return true;
  for (unsigned k = 0; k < p->n_access; k++)
    if (p->access[k].group == PLAN_ALONE || p->access[k].leads) return true;
  return false;
}

/* Instructions that may have to load the vector or x87 registers first. */
static void loads(struct plan *p, const struct x86_block *b, const struct x86_decoded_insn *d, u64 interpreted, unsigned copies) {
  unsigned loaded = 0;
  bool x87_loaded = false;
  for (unsigned j = 0; j < copies * b->n; j++) {
    unsigned k = j % b->n, level = x86_plan_vector_level(&b->insn[k]);
    bool x87 = d[k].insn.meta.isa_ext == ZYDIS_ISA_EXT_X87;
    p->insn[j].loads = level > loaded || (x87 && !x87_loaded);
    loaded = interpreted >> k & 1 ? 0 : MAX(loaded, level);
    x87_loaded = !(interpreted >> k & 1) && (x87_loaded || x87);
  }
}

static void flags(struct plan *p, const struct x86_block *b, const struct x86_decoded_insn *d, u64 interpreted, unsigned copies,
                  bool exact) {
  u8 live = ALL_FLAGS;
  for (unsigned j = copies * b->n; j-- > 0;) {
    unsigned k = j % b->n;
    const struct x86_insn *i = &b->insn[k];
    struct plan_insn *at = &p->insn[j];
    at->live = exact ? ALL_FLAGS : live;
    u8 read = passes_flags(d[k].insn.mnemonic) ? i->flags_read & at->live : i->flags_read;
    at->needs = i->flags_written ? (u8)(read | (at->live & ~i->flags_written)) : read;
    live = (u8)((live & ~i->flags_written) | read);
    if ((interpreted >> k & 1) || is_system(d[k].insn.mnemonic) || may_stop(at, i, &d[k])) live = ALL_FLAGS;
  }
}

/* Those of system.c that may be left to the interpreter after all, or change what addresses mean. */
static u64 system_insns(const struct x86_block *b, const struct x86_decoded_insn *d) {
  u64 mask = 0;
  for (unsigned k = 0; k < b->n; k++) {
    switch (d[k].insn.mnemonic) {
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
    case ZYDIS_MNEMONIC_RDPKRU:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
      mask |= 1ull << k;
      break;
    default:
      break;
    }
  }
  return mask;
}

void x86_plan(struct plan *p, const struct x86_block *b, bool segmented, const struct x86_decoded_insn *d, u64 interpreted, bool grouped,
              unsigned copies, bool exact) {
  p->b = b;
  p->segmented = segmented;
  p->n_groups = 0;
  p->constant = p->writes = 0;
  interpreted |= system_insns(b, d);
  for (unsigned j = 0; j < copies * b->n; j++) {
    unsigned k = j % b->n;
    accesses(&p->insn[j], p, &b->insn[k], &d[k]);
    p->insn[j].writes = written(&d[k]);
    p->writes |= p->insn[j].writes;
  }
  if (grouped) group(p, b, d, interpreted, copies);
  loads(p, b, d, interpreted, copies);
  flags(p, b, d, interpreted, copies, exact);
}
