/* String instructions: single, and repeated with bulk work inside a page.
 *
 * Intel SDM Vol. 2B REP, MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS; Vol. 1 7.3.9.
 *
 * A repeated instruction commits RCX, RSI and RDI after every piece; after a bounded amount, or when a request is pending, it returns X86_RESTART
 * with them at the next iteration, which is where an interrupt may come.  CMPS and SCAS write the flags once, at the end: a fault half way finds them as
 * they were before the instruction (REP, "restored to the state prior to the execution").
 */
#include <string.h>
#include "x86/exec/exec.h"

#define CHUNK 16384u /* bytes before the run loop gets a look */

static inline bool repeated(const struct x86_insn *i) { return i->iflags & (X86_I_REP | X86_I_REPNE); }
static inline bool down(const struct x86_vcpu *c) { return c->rflags & FL_DF; }
static inline u64 at(const struct x86_vcpu *c, const struct x86_insn *i, unsigned n) { return c->regs[n] & i->ea_mask; }
static inline void advance(struct x86_vcpu *c, const struct x86_insn *i, unsigned n, u64 elements) {
  u64 by = elements * i->opsize;
  put_size(c, n, i->adsize, down(c) ? c->regs[n] - by : c->regs[n] + by);
}

/* Whether a repeated instruction lets the run loop look: `done` bytes since it was entered. */
static inline bool pause_due(const struct x86_vcpu *c, u64 done) {
  return done && (done >= CHUNK || c->stop || (c->mode & X86_MODE_SINGLE) || atomic_load_explicit(&c->core.requests, memory_order_relaxed));
}

/* SDM Vol. 3B 17.3.1.1: what comes between two iterations finds RF set, so that the rest does not hit the instruction's breakpoint again. */
static inline int pause_here(struct x86_vcpu *c) {
  c->rflags |= FL_RF;
  return X86_RESTART;
}

/* With 32-bit addresses in 64-bit mode a repeated instruction clears the upper half of RCX first, even when it then faults or does nothing; MOVS and STOS
 * do so with RSI and RDI too.  (Not in the manual; as Intel processors do it.) */
static inline u64 count(struct x86_vcpu *c, const struct x86_insn *i) {
  if (i->adsize == 4) put32(c, RCX, get32(c, RCX));
  return at(c, i, RCX);
}
static inline void clear_high(struct x86_vcpu *c, const struct x86_insn *i, unsigned n) {
  if (i->adsize == 4) put32(c, n, get32(c, n));
}

/* How many elements from (seg, ea) on, in the direction of DF, may be accessed directly: within the page, the address size and the segment. */
static u64 span(struct x86_vcpu *c, const struct x86_insn *i, unsigned seg, u64 ea, u64 max, enum x86_access acc, void **host) {
  u64 size = i->opsize, lin;
  if (i->ea_mask - ea < size - 1) return 0; /* wraps inside the element */
  if (x86_linear(c, seg, ea, (unsigned)size, acc, &lin)) return 0;
  u64 offset = lin & (PAGE_SIZE - 1);
  if (offset + size > PAGE_SIZE) return 0;
  u64 n = down(c) ? MIN(offset, ea) / size + 1 : (MIN(PAGE_SIZE - 1 - offset, i->ea_mask - ea) + 1) / size;
  n = MIN(n, max);
  u64 back = down(c) ? (n - 1) * size : 0, whole;
  if (!c->code64 && x86_linear(c, seg, ea - back, (unsigned)(n * size), acc, &whole)) return 0;
  if (x86_host_span(c, lin - back, (unsigned)(n * size), acc, host) < n * size) return 0;
  *host = (u8 *)*host + back;
  return n;
}

/* ---- MOVS, STOS, LODS ---- */

typedef int one_fn(struct x86_vcpu *c, const struct x86_insn *i);
typedef u64 bulk_fn(struct x86_vcpu *c, const struct x86_insn *i, u64 n); /* elements done; 0: take a single step */

static inline int repeat(struct x86_vcpu *c, const struct x86_insn *i, one_fn *one, bulk_fn *bulk) {
  u64 n = count(c, i);
  for (u64 done = 0; n; n = at(c, i, RCX)) {
    if (pause_due(c, done)) return pause_here(c);
    u64 k = c->mode & X86_MODE_SINGLE ? 0 : bulk(c, i, n);
    if (!k) {
      int r = one(c, i);
      if (r) return r;
      x86_io_commit(c);
      k = 1;
    }
    put_size(c, RCX, i->adsize, n - k);
    done += k * i->opsize;
  }
  return X86_OK;
}

/* The host's repeated instruction on host addresses: overlapping operands come out as element-wise copying makes them. */
#define HOST_REP(ins, ...)                                                                                                       \
  do {                                                                                                                           \
    if (down(c)) __asm__ volatile("std\n\trep " ins "\n\tcld" : __VA_ARGS__ : "memory", "cc");                                   \
    else __asm__ volatile("rep " ins : __VA_ARGS__ : "memory");                                                                  \
  } while (0)

static int movs_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, at(c, i, RSI), i->opsize, &v);
  if (!r) r = store_size(c, SEG_ES, at(c, i, RDI), i->opsize, v);
  if (r) return r;
  advance(c, i, RSI, 1);
  advance(c, i, RDI, 1);
  return X86_OK;
}
static u64 movs_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n) {
  void *from, *to;
  n = span(c, i, i->seg, at(c, i, RSI), n, ACC_READ, &from);
  if (n) n = span(c, i, SEG_ES, at(c, i, RDI), n, ACC_WRITE, &to);
  if (!n) return 0;
  u64 left = n;
  switch (i->opsize) {
  case 1: HOST_REP("movsb", "+S"(from), "+D"(to), "+c"(left) :); break;
  case 2: HOST_REP("movsw", "+S"(from), "+D"(to), "+c"(left) :); break;
  case 4: HOST_REP("movsl", "+S"(from), "+D"(to), "+c"(left) :); break;
  default: HOST_REP("movsq", "+S"(from), "+D"(to), "+c"(left) :);
  }
  advance(c, i, RSI, n);
  advance(c, i, RDI, n);
  return n;
}
static int movs(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!repeated(i)) return movs_one(c, i);
  clear_high(c, i, RSI);
  clear_high(c, i, RDI);
  return repeat(c, i, movs_one, movs_bulk);
}

static int stos_one(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = store_size(c, SEG_ES, at(c, i, RDI), i->opsize, c->regs[RAX]);
  if (!r) advance(c, i, RDI, 1);
  return r;
}
static u64 stos_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n) {
  void *to;
  n = span(c, i, SEG_ES, at(c, i, RDI), n, ACC_WRITE, &to);
  if (!n) return 0;
  u64 left = n;
  switch (i->opsize) {
  case 1: HOST_REP("stosb", "+D"(to), "+c"(left) : "a"(c->regs[RAX])); break;
  case 2: HOST_REP("stosw", "+D"(to), "+c"(left) : "a"(c->regs[RAX])); break;
  case 4: HOST_REP("stosl", "+D"(to), "+c"(left) : "a"(c->regs[RAX])); break;
  default: HOST_REP("stosq", "+D"(to), "+c"(left) : "a"(c->regs[RAX]));
  }
  advance(c, i, RDI, n);
  return n;
}
static int stos(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!repeated(i)) return stos_one(c, i);
  clear_high(c, i, RDI);
  return repeat(c, i, stos_one, stos_bulk);
}

static int lods_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, at(c, i, RSI), i->opsize, &v);
  if (r) return r;
  put_size(c, RAX, i->opsize, v);
  advance(c, i, RSI, 1);
  return X86_OK;
}
/* Only the last element of a stretch is seen; but the client may have taken its page away. */
static u64 lods_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n) {
  void *from;
  n = span(c, i, i->seg, at(c, i, RSI), n, ACC_READ, &from);
  if (n < 2) return 0;
  (void)*(const volatile u8 *)from;
  advance(c, i, RSI, n - 1);
  return n - 1;
}
static int lods(struct x86_vcpu *c, const struct x86_insn *i) { return repeated(i) ? repeat(c, i, lods_one, lods_bulk) : lods_one(c, i); }

/* ---- CMPS, SCAS ---- */

typedef int compare_fn(struct x86_vcpu *c, const struct x86_insn *i, u32 *raw);
typedef u64 compare_bulk_fn(struct x86_vcpu *c, const struct x86_insn *i, u64 n, u32 *raw);

static u32 compare(u64 a, u64 b, unsigned size) {
  u32 raw;
  switch (size) {
  case 1: __asm__("cmpb %b2, %b1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc"); break;
  case 2: __asm__("cmpw %w2, %w1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc"); break;
  case 4: __asm__("cmpl %k2, %k1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc"); break;
  default: __asm__("cmpq %2, %1" CATCH_FLAGS : "=&a"(raw) : "r"(a), "r"(b) : "cc");
  }
  return raw;
}

static inline int repeat_compare(struct x86_vcpu *c, const struct x86_insn *i, compare_fn *one, compare_bulk_fn *bulk) {
  u32 raw = 0, zf_goes_on = i->iflags & X86_I_REPNE ? 0 : FL_ZF;
  u64 n = count(c, i);
  if (!n) return X86_OK;
  for (u64 done = 0; n; n = at(c, i, RCX)) {
    if (pause_due(c, done)) return pause_here(c);
    u64 k = c->mode & X86_MODE_SINGLE ? 0 : bulk(c, i, n, &raw);
    if (!k) {
      int r = one(c, i, &raw);
      if (r) return r;
      x86_io_commit(c);
      k = 1;
    }
    put_size(c, RCX, i->adsize, n - k);
    done += k * i->opsize;
    if ((flags_of(raw) & FL_ZF) != zf_goes_on) break;
  }
  set_flags(c, raw);
  return X86_OK;
}

/* Elements compared by the host's REPE or REPNE, forwards. */
#define HOST_COMPARE(ins, ...)                                                                                                   \
  do {                                                                                                                           \
    if (i->iflags & X86_I_REPNE) __asm__ volatile("repne " ins CATCH_FLAGS : __VA_ARGS__ : "memory", "cc");                      \
    else __asm__ volatile("repe " ins CATCH_FLAGS : __VA_ARGS__ : "memory", "cc");                                               \
  } while (0)

static int cmps_one(struct x86_vcpu *c, const struct x86_insn *i, u32 *raw) {
  u64 a, b;
  int r = load_size(c, SEG_ES, at(c, i, RDI), i->opsize, &b); /* this one faults first, as on Intel processors */
  if (!r) r = load_size(c, i->seg, at(c, i, RSI), i->opsize, &a);
  if (r) return r;
  *raw = compare(a, b, i->opsize);
  advance(c, i, RSI, 1);
  advance(c, i, RDI, 1);
  return X86_OK;
}
static u64 cmps_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n, u32 *raw) {
  void *a, *b;
  if (down(c)) return 0;
  n = span(c, i, i->seg, at(c, i, RSI), n, ACC_READ, &a);
  if (n) n = span(c, i, SEG_ES, at(c, i, RDI), n, ACC_READ, &b);
  if (!n) return 0;
  u64 left = n;
  switch (i->opsize) {
  case 1: HOST_COMPARE("cmpsb", "+S"(a), "+D"(b), "+c"(left), "=a"(*raw) :); break;
  case 2: HOST_COMPARE("cmpsw", "+S"(a), "+D"(b), "+c"(left), "=a"(*raw) :); break;
  case 4: HOST_COMPARE("cmpsl", "+S"(a), "+D"(b), "+c"(left), "=a"(*raw) :); break;
  default: HOST_COMPARE("cmpsq", "+S"(a), "+D"(b), "+c"(left), "=a"(*raw) :);
  }
  advance(c, i, RSI, n - left);
  advance(c, i, RDI, n - left);
  return n - left;
}
static int cmps(struct x86_vcpu *c, const struct x86_insn *i) {
  if (repeated(i)) return repeat_compare(c, i, cmps_one, cmps_bulk);
  u32 raw;
  int r = cmps_one(c, i, &raw);
  if (!r) set_flags(c, raw);
  return r;
}

static int scas_one(struct x86_vcpu *c, const struct x86_insn *i, u32 *raw) {
  u64 b;
  int r = load_size(c, SEG_ES, at(c, i, RDI), i->opsize, &b);
  if (r) return r;
  *raw = compare(c->regs[RAX], b, i->opsize);
  advance(c, i, RDI, 1);
  return X86_OK;
}
static u64 scas_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n, u32 *raw) {
  void *p;
  if (down(c)) return 0;
  n = span(c, i, SEG_ES, at(c, i, RDI), n, ACC_READ, &p);
  if (!n) return 0;
  u64 left = n, a = c->regs[RAX];
  switch (i->opsize) {
  case 1: HOST_COMPARE("scasb", "+D"(p), "+c"(left), "+a"(a) :); break;
  case 2: HOST_COMPARE("scasw", "+D"(p), "+c"(left), "+a"(a) :); break;
  case 4: HOST_COMPARE("scasl", "+D"(p), "+c"(left), "+a"(a) :); break;
  default: HOST_COMPARE("scasq", "+D"(p), "+c"(left), "+a"(a) :);
  }
  *raw = (u32)a;
  advance(c, i, RDI, n - left);
  return n - left;
}
static int scas(struct x86_vcpu *c, const struct x86_insn *i) {
  if (repeated(i)) return repeat_compare(c, i, scas_one, scas_bulk);
  u32 raw;
  int r = scas_one(c, i, &raw);
  if (!r) set_flags(c, raw);
  return r;
}

/* ---- INS, OUTS ---- */

static inline u16 port(const struct x86_vcpu *c) { return (u16)c->regs[RDX]; }
static void watch_port(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(c->mode & X86_MODE_SINGLE)) x86_io_breakpoint(c, port(c), i->opsize);
}

/* One element, or as many of a repeated INS as the client answers in one exit: within the destination's page.  The destination is
 * checked for writing before the port is read: what a device gave must not get lost. */
static int ins_some(struct x86_vcpu *c, const struct x86_insn *i, u64 max, u64 *done) {
  const u8 *data;
  void *host;
  unsigned n;
  u64 lin, ea = at(c, i, RDI);
  int r = x86_linear(c, SEG_ES, ea, i->opsize, ACC_WRITE, &lin);
  if (!r) r = x86_probe_write(c, lin, i->opsize, c->cpl);
  if (r) return r;
  u64 room = max > 1 && !down(c) ? span(c, i, SEG_ES, ea, max, ACC_WRITE, &host) : 0;
  r = x86_pio_in_string(c, port(c), i->opsize, (unsigned)MAX(room, 1ull), &n, &data);
  if (r) return r;
  if (n <= room) {
    x86_copy_guest(host, data, n * i->opsize);
  } else { /* also where the page changed its nature meanwhile: the rest of the answer is void */
    u32 v = 0;
    memcpy(&v, data, i->opsize);
    n = 1;
    r = store_size(c, SEG_ES, ea, i->opsize, v);
    if (r) return r;
  }
  *done = n;
  advance(c, i, RDI, n);
  watch_port(c, i);
  return X86_OK;
}
static int ins_repeat(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 n = count(c, i), k;
  for (u64 done = 0; n; n = at(c, i, RCX)) {
    if (pause_due(c, done)) return X86_RESTART;
    int r = ins_some(c, i, c->mode & X86_MODE_SINGLE ? 1 : n, &k);
    if (r) return r;
    x86_io_commit(c);
    put_size(c, RCX, i->adsize, n - k);
    done += k * i->opsize;
  }
  return X86_OK;
}
static int outs_one(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = load_size(c, i->seg, at(c, i, RSI), i->opsize, &v);
  if (!r) r = x86_pio_out(c, port(c), i->opsize, (u32)v);
  if (r) return r;
  advance(c, i, RSI, 1);
  watch_port(c, i);
  return X86_OK;
}
static u64 no_bulk(struct x86_vcpu *c, const struct x86_insn *i, u64 n) { return 0; }

/* The port's permission is checked even when the count is zero. */
static int ins(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 done;
  int r = x86_io_check(c, port(c), i->opsize);
  if (r) return r;
  return repeated(i) ? ins_repeat(c, i) : ins_some(c, i, 1, &done);
}
static int outs(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_io_check(c, port(c), i->opsize);
  if (r) return r;
  return repeated(i) ? repeat(c, i, outs_one, no_bulk) : outs_one(c, i);
}

/* ---- selection ---- */

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
  return fn; /* REPNE works as REP where nothing is compared */
}
#define SELECT(fn, size)                                                                                                         \
  static x86_exec_fn *select_##fn##size(const struct x86_decoded *d, struct x86_insn *i) { return select_string(d, i, size, fn); }
#define SELECT3(fn) SELECT(fn, 1) SELECT(fn, 2) SELECT(fn, 4)
SELECT3(movs) SELECT3(stos) SELECT3(lods) SELECT3(cmps) SELECT3(scas) SELECT3(ins) SELECT3(outs)
SELECT(movs, 8) SELECT(stos, 8) SELECT(lods, 8) SELECT(cmps, 8) SELECT(scas, 8)

#define ROW(N, n) {ZYDIS_MNEMONIC_##N##B, select_##n##1}, {ZYDIS_MNEMONIC_##N##W, select_##n##2}, {ZYDIS_MNEMONIC_##N##D, select_##n##4}
static const struct x86_op_row rows[] = {
    ROW(MOVS, movs), {ZYDIS_MNEMONIC_MOVSQ, select_movs8}, ROW(STOS, stos), {ZYDIS_MNEMONIC_STOSQ, select_stos8},
    ROW(LODS, lods), {ZYDIS_MNEMONIC_LODSQ, select_lods8}, ROW(CMPS, cmps), {ZYDIS_MNEMONIC_CMPSQ, select_cmps8},
    ROW(SCAS, scas), {ZYDIS_MNEMONIC_SCASQ, select_scas8}, ROW(INS, ins),   ROW(OUTS, outs),
};
const struct x86_op_family x86_family_string = {"string", rows, ARRAY_SIZE(rows)};
