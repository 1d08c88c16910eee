/* String instructions: single, and repeated with bulk work inside a page.
 *
 * A repeated instruction commits after every piece; after a bounded amount, or when a request is pending, it returns X86_RESTART with RCX, RSI and RDI at
 * the next iteration, which is where an interrupt may come (SDM Vol. 2B REP).
 */
#include <string.h>
#include "x86/exec/exec.h"

#define CHUNK 65536u /* bytes before the run loop gets a look */

static s64 step(const struct x86_vcpu *c, const struct x86_insn *i) { return c->rflags & FL_DF ? -(s64)i->opsize : (s64)i->opsize; }
static u64 reg_at(const struct x86_vcpu *c, const struct x86_insn *i, unsigned n) { return c->regs[n] & i->ea_mask; }
static void advance(struct x86_vcpu *c, const struct x86_insn *i, unsigned n, s64 by) {
  put_size(c, n, i->adsize, (c->regs[n] + (u64)by) & i->ea_mask);
}
static bool repeated(const struct x86_insn *i) { return i->iflags & (X86_I_REP | X86_I_REPNE); }

/* What a repeated instruction does between iterations. */
typedef int step_fn(struct x86_vcpu *c, const struct x86_insn *i);
static int repeat(struct x86_vcpu *c, const struct x86_insn *i, step_fn *one, bool compares) {
  if (!repeated(i)) return one(c, i);
  for (unsigned done = 0;; done += i->opsize) {
    u64 n = reg_at(c, i, RCX);
    if (!n) {
      /* A 32-bit count clears the upper half also when nothing was done (checked on hardware). */
      return X86_OK;
    }
    if (done && (done >= CHUNK || atomic_load_explicit(&c->core.requests, memory_order_relaxed) || (c->mode & X86_MODE_SINGLE) || c->stop))
      return X86_RESTART;
    int r = one(c, i);
    if (r) return r;
    x86_io_commit(c);
    put_size(c, RCX, i->adsize, n - 1);
    if (compares && !(c->rflags & FL_ZF) == !(i->iflags & X86_I_REPNE)) return X86_OK;
  }
}

static int movs_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, reg_at(c, i, RSI), i->opsize, &v);
  if (!r) r = store_size(c, SEG_ES, reg_at(c, i, RDI), i->opsize, v);
  if (r) return r;
  advance(c, i, RSI, step(c, i));
  advance(c, i, RDI, step(c, i));
  return X86_OK;
}

/* Bytes that may be accessed at once from (seg, offset) upwards: within the page, the address size and the segment. */
static unsigned span(struct x86_vcpu *c, const struct x86_insn *i, unsigned seg, u64 ea, u64 max, enum x86_access acc, void **host) {
  u64 lin;
  if (max > CHUNK) max = CHUNK;
  if (i->ea_mask != ~0ull && ea + max - 1 > i->ea_mask) max = i->ea_mask - ea + 1;
  if (!c->code64 && !c->seg[seg].flat) return 0;
  if (x86_linear(c, seg, ea, i->opsize, acc, &lin)) return 0;
  return x86_host_span(c, lin, (unsigned)max, acc, host) & ~(i->opsize - 1u);
}

/* REP MOVS upwards: as much as both pages hold.  An overlap that a byte-wise copy would smear takes the host's REP MOVS, which smears alike. */
static unsigned movs_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n) {
  void *from, *to;
  u64 bytes = n > CHUNK ? CHUNK : n * i->opsize;
  unsigned a = span(c, i, i->seg, reg_at(c, i, RSI), bytes, ACC_READ, &from);
  unsigned b = a ? span(c, i, SEG_ES, reg_at(c, i, RDI), a, ACC_WRITE, &to) : 0;
  if (!b) return 0;
  u64 count = b / i->opsize;
  void *src = from, *dst = to;
  switch (i->opsize) {
  case 1: __asm__ volatile("rep movsb" : "+S"(src), "+D"(dst), "+c"(count) : : "memory"); break;
  case 2: __asm__ volatile("rep movsw" : "+S"(src), "+D"(dst), "+c"(count) : : "memory"); break;
  case 4: __asm__ volatile("rep movsl" : "+S"(src), "+D"(dst), "+c"(count) : : "memory"); break;
  default: __asm__ volatile("rep movsq" : "+S"(src), "+D"(dst), "+c"(count) : : "memory");
  }
  advance(c, i, RSI, b);
  advance(c, i, RDI, b);
  return b / i->opsize;
}

static int stos_one(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = store_size(c, SEG_ES, reg_at(c, i, RDI), i->opsize, c->regs[RAX]);
  if (!r) advance(c, i, RDI, step(c, i));
  return r;
}
static unsigned stos_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n) {
  void *to;
  unsigned b = span(c, i, SEG_ES, reg_at(c, i, RDI), n > CHUNK ? CHUNK : n * i->opsize, ACC_WRITE, &to);
  if (!b) return 0;
  u64 count = b / i->opsize;
  switch (i->opsize) {
  case 1: __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(c->regs[RAX]) : "memory"); break;
  case 2: __asm__ volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(c->regs[RAX]) : "memory"); break;
  case 4: __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(c->regs[RAX]) : "memory"); break;
  default: __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(c->regs[RAX]) : "memory");
  }
  advance(c, i, RDI, b);
  return b / i->opsize;
}

/* Bulk pieces with single steps where a page, a device or code is in the way. */
static int repeat_bulk(struct x86_vcpu *c, const struct x86_insn *i, step_fn *one, unsigned (*bulk)(struct x86_vcpu *, const struct x86_insn *, u64)) {
  if (!(i->iflags & (X86_I_REP | X86_I_REPNE)) || (c->rflags & FL_DF) || (c->mode & X86_MODE_SINGLE)) return repeat(c, i, one, false);
  for (u64 done = 0;;) {
    u64 n = reg_at(c, i, RCX);
    if (!n) return X86_OK;
    if (done && (done >= CHUNK || atomic_load_explicit(&c->core.requests, memory_order_relaxed) || c->stop)) return X86_RESTART;
    u64 k = bulk(c, i, n);
    if (!k) {
      int r = one(c, i);
      if (r) return r;
      x86_io_commit(c);
      k = 1;
    }
    put_size(c, RCX, i->adsize, n - k);
    done += k * i->opsize;
  }
}
static int movs(struct x86_vcpu *c, const struct x86_insn *i) { return repeat_bulk(c, i, movs_one, movs_bulk); }
static int stos(struct x86_vcpu *c, const struct x86_insn *i) { return repeat_bulk(c, i, stos_one, stos_bulk); }

static int lods_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, reg_at(c, i, RSI), i->opsize, &v);
  if (r) return r;
  put_size(c, RAX, i->opsize, v);
  advance(c, i, RSI, step(c, i));
  return X86_OK;
}
static int lods(struct x86_vcpu *c, const struct x86_insn *i) { return repeat(c, i, lods_one, false); }

static void compare(struct x86_vcpu *c, u64 a, u64 b, unsigned size) {
  u32 raw;
  if (size == 1) __asm__("cmpb %b2, %b1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc");
  else if (size == 2) __asm__("cmpw %w2, %w1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc");
  else if (size == 4) __asm__("cmpl %k2, %k1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc");
  else __asm__("cmpq %q2, %q1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc");
  set_flags(c, raw);
}
static int cmps_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 a, b;
  int r = load_size(c, i->seg, reg_at(c, i, RSI), i->opsize, &a);
  if (!r) r = load_size(c, SEG_ES, reg_at(c, i, RDI), i->opsize, &b);
  if (r) return r;
  compare(c, a, b, i->opsize);
  advance(c, i, RSI, step(c, i));
  advance(c, i, RDI, step(c, i));
  return X86_OK;
}
static int scas_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 b;
  int r = load_size(c, SEG_ES, reg_at(c, i, RDI), i->opsize, &b);
  if (r) return r;
  compare(c, get_size(c, RAX, i->opsize), b, i->opsize);
  advance(c, i, RDI, step(c, i));
  return X86_OK;
}
static int cmps(struct x86_vcpu *c, const struct x86_insn *i) { return repeat(c, i, cmps_one, true); }
static int scas(struct x86_vcpu *c, const struct x86_insn *i) { return repeat(c, i, scas_one, true); }

/* INS: the destination is checked for writing before the port is read. */
static int ins_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u32 v;
  u64 lin;
  u64 ea = reg_at(c, i, RDI);
  int r = x86_io_check(c, (u16)c->regs[RDX], i->opsize);
  if (!r) r = x86_linear(c, SEG_ES, ea, i->opsize, ACC_WRITE, &lin);
  if (!r) r = x86_probe_write(c, lin, i->opsize, c->cpl);
  if (!r) r = x86_pio_in(c, (u16)c->regs[RDX], i->opsize, &v);
  if (!r) r = store_size(c, SEG_ES, ea, i->opsize, v);
  if (!r) advance(c, i, RDI, step(c, i));
  return r;
}
static int outs_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = x86_io_check(c, (u16)c->regs[RDX], i->opsize);
  if (!r) r = load_size(c, i->seg, reg_at(c, i, RSI), i->opsize, &v);
  if (!r) r = x86_pio_out(c, (u16)c->regs[RDX], i->opsize, (u32)v);
  if (!r) advance(c, i, RSI, step(c, i));
  return r;
}
static int ins(struct x86_vcpu *c, const struct x86_insn *i) { return repeat(c, i, ins_one, false); }
static int outs(struct x86_vcpu *c, const struct x86_insn *i) { return repeat(c, i, outs_one, false); }

/* Width and, for the source, segment come from the hidden operands; the SSE instructions MOVSD and CMPSD share the names. */
static x86_exec_fn *select_string(const struct x86_decoded *d, struct x86_insn *i, unsigned size, x86_exec_fn *fn) {
  if (d->insn.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT) return NULL;
  i->opsize = (u8)size;
  i->iflags &= ~(u32)X86_I_MEM;
  i->seg = SEG_DS;
  for (unsigned k = 0; k < d->insn.operand_count; k++) {
    const ZydisDecodedOperand *op = &d->ops[k];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && ZydisRegisterGetId(op->mem.base) == RSI) i->seg = (u8)(op->mem.segment - ZYDIS_REGISTER_ES);
  }
  /* REPNE works as REP where no comparison is made. */
  return fn;
}
#define SELECT(fn, size) static x86_exec_fn *select_##fn##size(const struct x86_decoded *d, struct x86_insn *i) { return select_string(d, i, size, fn); }
SELECT(movs, 1) SELECT(movs, 2) SELECT(movs, 4) SELECT(movs, 8) SELECT(stos, 1) SELECT(stos, 2) SELECT(stos, 4) SELECT(stos, 8)
SELECT(lods, 1) SELECT(lods, 2) SELECT(lods, 4) SELECT(lods, 8) SELECT(cmps, 1) SELECT(cmps, 2) SELECT(cmps, 4) SELECT(cmps, 8)
SELECT(scas, 1) SELECT(scas, 2) SELECT(scas, 4) SELECT(scas, 8) SELECT(ins, 1) SELECT(ins, 2) SELECT(ins, 4) SELECT(outs, 1) SELECT(outs, 2) SELECT(outs, 4)

#define Q(N, n) {ZYDIS_MNEMONIC_##N##B, select_##n##1}, {ZYDIS_MNEMONIC_##N##W, select_##n##2}, {ZYDIS_MNEMONIC_##N##D, select_##n##4}
static const struct x86_op_row rows[] = {
    Q(MOVS, movs), Q(STOS, stos), Q(LODS, lods), Q(CMPS, cmps), Q(SCAS, scas), Q(INS, ins), Q(OUTS, outs), {ZYDIS_MNEMONIC_MOVSQ, select_movs8},
    {ZYDIS_MNEMONIC_STOSQ, select_stos8}, {ZYDIS_MNEMONIC_LODSQ, select_lods8}, {ZYDIS_MNEMONIC_CMPSQ, select_cmps8}, {ZYDIS_MNEMONIC_SCASQ, select_scas8},
};
const struct x86_op_family x86_family_string = {"string", rows, ARRAY_SIZE(rows)};
