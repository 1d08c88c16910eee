/* The cache of translations: making, linking, entering and forgetting them. */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <ucontext.h>
#include "base/evloop.h"
#include "base/region.h"
#include "core/request.h"
#include "x86/decode/decoded.h"
#include "x86/exec/vector.h"
#include "x86/translate/private.h"
#include "x86/translate/watch.h"
#include "x86/x86.h"

#define FULL_MARGIN ((size_t)1 << 20) /* left when everything is forgotten, an eighth where there is little */
#define HOT         16u        /* runs of a block before it is translated */
#define EPOCH_NEVER 1          /* at no gate: open gates are at least 1, so the sum is not 0 */

#ifndef HWCAP2_FSGSBASE
#define HWCAP2_FSGSBASE 2
#endif

struct x86_code_cache {
  pthread_mutex_t lock; /* making translations; inside it blocks->lock may be taken */
  struct jit_arena arena;
  struct region records;  /* struct x86_code */
  struct translation *work; /* [lock] of the one that is being made: too much for a stack, or for each thread of the client */
  size_t margin;          /* room below which everything is forgotten */
  struct x86_watch *watch;
  struct x86_code **list; /* by address */
  _Atomic unsigned n;
  unsigned max;
  _Atomic bool suspended;
  _Atomic u32 resets;
};

/* ---- life ---- */

int x86_code_create(struct x86_vm *vm) {
  struct x86_code_settings s;
  int r = x86_code_settings(&s);
  if (r || s.off || !(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)) return r;
  struct x86_code_cache *k = calloc(1, sizeof(*k));
  if (!k) return -ENOMEM;
  k->max = (unsigned)(s.cache / 256);
  k->margin = MIN(FULL_MARGIN, s.cache / 8);
  k->list = calloc(k->max, sizeof(struct x86_code *));
  k->work = calloc(1, sizeof(*k->work));
  if (!k->list || !k->work || region_create(&k->records, s.cache) || jit_arena_create(&k->arena, s.cache, s.perf)) { /* no executable memory: the interpreter does everything */
    region_destroy(&k->records);
    free(k->list);
    free(k->work);
    free(k);
    return 0;
  }
  k->arena.used = 16; /* a link at 0 is none */
  k->watch = x86_watch_create(&s, &k->arena);
  pthread_mutex_init(&k->lock, NULL);
  vm->code = k;
  return 0;
}

void x86_code_destroy(struct x86_vm *vm) {
  struct x86_code_cache *k = vm->code;
  if (!k) return;
  region_destroy(&k->records);
  free(k->list);
  free(k->work);
  x86_watch_destroy(k->watch);
  jit_arena_destroy(&k->arena);
  pthread_mutex_destroy(&k->lock);
  free(k);
  vm->code = NULL;
}

/* XSAVE for the x87 registers alone.  The data pointer must not change with every instruction: CPUID.(7,0).EBX[6] says that exceptions alone change it. */
static bool keeps_x87(void) {
  unsigned a, b, d, e;
  if (!__get_cpuid(1, &a, &b, &d, &e) || !(d & bit_OSXSAVE)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &d, &e) && (b & 1u << 6);
}

void x86_code_vcpu_init(struct x86_vcpu *c) {
  c->code.self = c;
  for (unsigned n = 0; n < TLB_COUNT; n++) c->code.deltas[n] = &c->mmu.tables[n * X86_TLB_SIZE].delta;
  c->code.interpret = x86_code_interpret;
  c->code.interpret_at = x86_code_interpret_at;
  c->code.syscall = x86_code_syscall;
  c->code.sysret = x86_code_sysret;
  c->code.load_vectors = x86_code_load_vectors;
  c->code.leave = x86_code_leave;
  c->code.load_x87 = x86_code_load_x87;
  if (getrandom(&c->code.no_return, sizeof(c->code.no_return), GRND_NONBLOCK) < 0) c->code.no_return = (u64)(uintptr_t)c;
  c->code.no_return = (c->code.no_return & ~(3ull << 62)) | 2ull << 62; /* not canonical, whatever the tag of branch.c says */
  c->code.can_x87 = keeps_x87();
  c->code.avx = __builtin_cpu_supports("avx");
  c->code.bmi2 = __builtin_cpu_supports("bmi2");
  c->code.wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

struct jit_arena *x86_code_arena(struct x86_vcpu *c) {
  return &x86_vm_of(c)->code->arena;
}

bool x86_code_is_full(struct x86_vm *vm) {
  return vm->code && (jit_arena_room(&vm->code->arena) < vm->code->margin ||
                      atomic_load_explicit(&vm->code->n, memory_order_relaxed) + 16 > vm->code->max);
}

bool x86_code_suspend(struct x86_vm *vm) {
  if (!vm->code) return true;
  pthread_mutex_lock(&vm->code->lock);
  bool first = !atomic_exchange(&vm->code->suspended, true);
  pthread_mutex_unlock(&vm->code->lock);
  return first;
}

void x86_code_reset(struct x86_vm *vm) {
  struct x86_code_cache *k = vm->code;
  if (!k) return;
  pthread_mutex_lock(&k->lock);
  atomic_fetch_add(&k->resets, 1);
  region_clear(&k->records);
  k->n = 0;
  jit_arena_reset(&k->arena);
  k->arena.used = 16;
  k->suspended = false;
  x86_watch_reset(k->watch, vm);
  pthread_mutex_unlock(&k->lock);
}

/* ---- the word at the gate ---- */

static void set_epoch(struct x86_code *code, u64 value) {
  __atomic_store_n(code->epoch, value, __ATOMIC_SEQ_CST);
}

void x86_code_validated(struct x86_block *b, u64 epoch) {
  for (unsigned n = 0; n < ARRAY_SIZE(b->code); n++)
    for (struct x86_code *code = atomic_load_explicit(&b->code[n], memory_order_acquire); code; code = code->older) set_epoch(code, -epoch);
}

void x86_code_killed(struct x86_block *b) {
  for (unsigned n = 0; n < ARRAY_SIZE(b->code); n++)
    for (struct x86_code *code = atomic_load_explicit(&b->code[n], memory_order_acquire); code; code = code->older) set_epoch(code, EPOCH_NEVER);
}

/* ---- making ---- */

static unsigned slot_of(unsigned right, bool segmented) { return segmented ? TLB_COUNT + right : right; }

/* Where segments are looked at code is translated for where its page lies in the code segment, and for that segment's limit: a block may have several. */
static struct x86_code *fitting(const struct x86_vcpu *c, struct x86_code *code) {
  while (code && code->segmented && (code->page != x86_code_page(c, code->block) || code->limit != x86_code_limit(c))) code = code->older;
  return code;
}

/* Offers it to everyone, unless the block has died meanwhile. */
static void publish(struct x86_block *b, struct x86_code *code) {
  struct x86_code *_Atomic *slot = &b->code[slot_of(code->right, code->segmented)];
  set_epoch(code, EPOCH_NEVER);
  code->older = atomic_load(slot);
  atomic_store(slot, code);
  /* Who compares the block's bytes meanwhile sets b->epoch first, then the word of code that it finds: one of us sees the other. */
  u64 epoch;
  do {
    epoch = atomic_load(&b->epoch);
    set_epoch(code, epoch && !atomic_load(&b->dead) ? -epoch : EPOCH_NEVER);
  } while (atomic_load(&b->epoch) != epoch);
  if (atomic_load(&b->dead)) set_epoch(code, EPOCH_NEVER);
}

static struct x86_code *make(struct x86_vcpu *c, struct x86_block *b, unsigned right, bool segmented) {
  struct x86_code_cache *k = x86_vm_of(c)->code;
  pthread_mutex_lock(&k->lock);
  struct x86_code *code = fitting(c, atomic_load(&b->code[slot_of(right, segmented)]));
  if (!code && !k->suspended && k->n < k->max) {
    u64 began = clock_now_ns();
    code = x86_translate_block(k->work, c, &k->arena, &k->records, b, right, segmented);
    if (code) {
      x86_watch_made(k->watch, c, code, began);
      k->list[k->n] = code;
      atomic_store_explicit(&k->n, k->n + 1, memory_order_release);
      publish(b, code);
    }
  }
  pthread_mutex_unlock(&k->lock);
  return code;
}

/* Code for supervisor rights takes CPL 0 for granted. */
static unsigned right_of(const struct x86_vcpu *c) {
  return c->cpl == 1 || c->cpl == 2 ? TLB_COUNT : (unsigned)(c->tlb - c->mmu.tables) / X86_TLB_SIZE;
}

/* How code is translated: for flat segments, or none; such that it looks at segments; not at all. */
enum kind { KIND_FLAT, KIND_SEGMENTED, KIND_NONE };

/* A stack as wide as the code.  In real and virtual-8086 mode ES to DS have 64 KiB: what loads one there leaves it so. */
static __attribute__((noinline)) enum kind segmented_kind(const struct x86_vcpu *c, u32 mode) {
  bool is32 = mode == X86_MODE_32;
  if ((mode & ~X86_MODE_REAL) != X86_MODE_16 && !is32) return KIND_NONE;
  if (c->seg[SEG_SS].db != is32) return KIND_NONE;
  for (unsigned n = 0; n < SEG_FS; n++) {
    const struct x86_seg *s = &c->seg[n];
    bool whole = s->limit >= 0xffff && !(s->s && (s->type & 12) == 4) && !s->unusable && !s->l;
    if (mode & X86_MODE_REAL ? !whole : s->unusable && s->present) return KIND_NONE;
  }
  return KIND_SEGMENTED;
}

/* 32-bit code of protected mode whose segments, but FS and GS, start at 0 and are 4 GiB: nothing but the interpreter changes that, and leaves. */
static bool is_flat(const struct x86_vcpu *c) {
  const struct x86_seg *s = c->seg, *cs = &s[SEG_CS];
  return s[SEG_SS].flat == X86_SEG_FLAT && s[SEG_SS].db && s[SEG_DS].flat == X86_SEG_FLAT && s[SEG_ES].flat == X86_SEG_FLAT && !cs->base &&
         cs->limit == 0xffffffffu;
}

static enum kind kind_of(const struct x86_vcpu *c, u32 mode) {
  if (likely(mode == X86_MODE_64)) return KIND_FLAT;
  return mode == X86_MODE_32 && is_flat(c) ? KIND_FLAT : segmented_kind(c, mode);
}

enum { VARIANTS = 8 }; /* that a block may have */

/* The block lies where translated code may. */
static bool may_make(const struct x86_vcpu *c, const struct x86_block *b, unsigned right, enum kind kind) {
  unsigned n = 0;
  if (kind == KIND_FLAT) return true;
  for (const struct x86_code *code = atomic_load(&b->code[slot_of(right, true)]); code; code = code->older) n++;
  return n < VARIANTS && c->rip + b->len - 1 <= x86_code_limit(c);
}

struct x86_code *x86_code_for(struct x86_vcpu *c, struct x86_block *b) {
  enum kind kind = kind_of(c, b->mode);
  if (kind == KIND_NONE || !x86_vm_of(c)->code || c->counting) return NULL;
  unsigned right = right_of(c);
  if (right >= TLB_COUNT) return NULL;
  struct x86_code *code = fitting(c, atomic_load_explicit(&b->code[slot_of(right, kind)], memory_order_acquire));
  if (likely(code != NULL)) return code;
  if (__atomic_add_fetch(&b->runs, 1, __ATOMIC_RELAXED) < HOT) return NULL;
  __atomic_store_n(&b->runs, 0, __ATOMIC_RELAXED);
  return may_make(c, b, right, kind) ? make(c, b, right, kind) : NULL;
}

/* ---- linking ---- */

static struct x86_code *code_at(struct x86_code_cache *k, const u8 *rx) {
  unsigned lo = 0, hi = atomic_load_explicit(&k->n, memory_order_acquire);
  while (lo < hi) {
    unsigned mid = (lo + hi) / 2;
    if (k->list[mid]->end <= rx)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo < atomic_load_explicit(&k->n, memory_order_acquire) && k->list[lo]->start <= rx ? k->list[lo] : NULL;
}

/* Whether a jump out of `from` may lead to `code` for good: both lie in one page, whatever maps it.  At the gate only that of code that will never run
 * again, which others still jump to: it leads to what took its place. */
static bool may_link(const struct x86_code *from, const u8 *jump, const struct x86_code *code, u32 link) {
  unsigned right = from->right ^ (link & 2 ? TLB_SUPER ^ TLB_SUPER_SMAP : 0);
  if (from->page != code->page || from->limit != code->limit) return false;
  if (right != code->right || from->mode != code->mode || from->segmented != code->segmented || from->gpa >> PAGE_SHIFT != code->gpa >> PAGE_SHIFT || code->block->gpa2 != ~0ull) return false;
  return jump != from->gate || (from != code && __atomic_load_n(from->epoch, __ATOMIC_RELAXED) == EPOCH_NEVER);
}

/* Others may be about to run it (em_align_displacement()). */
static void put_at_once(u8 *at, s32 displacement) { __asm__ volatile("movl %1, %0" : "=m"(*(s32 (*)[1])(void *)at) : "r"(displacement) : "memory"); }

/* What an address is looked up by in targets[].  Where a code segment begins and ends decides what code is translated for. */
static u64 target_key(const struct x86_vcpu *c) { return unlikely(c->code.segmented) ? c->rip | c->code.cs_key : c->rip; }

/* No number is given out twice.  In real and virtual-8086 mode all limits are one to translated code, and the base says it all (branch.c). */
static u64 cs_key(struct x86_vcpu *c) {
  if (c->mode & X86_MODE_REAL) return c->seg[SEG_CS].base << 32;
  u32 base = (u32)c->seg[SEG_CS].base, limit = c->seg[SEG_CS].limit;
  unsigned n = (base >> 4 ^ base >> 10 ^ limit >> 4) % ARRAY_SIZE(c->code.cs_known);
  if (c->code.cs_known[n].number && c->code.cs_known[n].base == base && c->code.cs_known[n].limit == limit) return (u64)c->code.cs_known[n].number << 32;
  if (c->code.cs_numbers == BIT(30) - 1) {
    memset(c->code.targets, 0, sizeof(c->code.targets));
    memset(c->code.cs_known, 0, sizeof(c->code.cs_known));
    c->code.cs_numbers = 0;
  }
  c->code.cs_known[n].base = base;
  c->code.cs_known[n].limit = limit;
  return (u64)(c->code.cs_known[n].number = ++c->code.cs_numbers) << 32;
}

/* The jump that left last time goes to `code` by itself from now on. */
static void link_jump(struct x86_vcpu *c, struct x86_code *code) {
  struct x86_code_cache *k = x86_vm_of(c)->code;
  u32 link = c->code.link, at = link >> 2;
  c->code.link = 0;
  if (c->code.link_to != target_key(c) || c->code.link_resets != atomic_load(&k->resets)) return; /* something else ran in between */
  const u8 *rx = k->arena.rx + at;
  struct x86_code *from = code_at(k, rx);
  if (!from || !may_link(from, rx, code, link)) return;
  put_at_once(k->arena.rw + at, (s32)((link & 1 ? code->saved : code->host) - (rx + 4)));
}

/* ---- running ---- */

static void set_generation(struct x86_vcpu *c, unsigned right, bool segmented) {
  u64 generation = x86_code_generation(c);
  u64 kind = likely(c->code64) ? 0 : (c->mode & X86_MODE_32 ? BIT(63) : 0) | (segmented ? BIT(62) : 0) | (c->mode & X86_MODE_REAL ? BIT(61) : 0);
  c->code.generation = generation << 2 | right | kind;
  c->code.segmented = segmented;
  if (unlikely(segmented)) c->code.cs_key = cs_key(c);
  c->code.salt = right == TLB_USER ? ((u32)generation * X86_CODE_SALT) >> 16 : 0;
}

static struct x86_code_target *target_of(struct x86_vcpu *c, u64 lin) {
  u64 hash = c->code.salt;
  __asm__("crc32q %1, %0" : "+r"(hash) : "r"(lin)); /* every processor with FSGSBASE has it */
  return &c->code.targets[(hash & X86_TARGET_MASK) / sizeof(struct x86_code_target)];
}

static void own_gs(struct x86_vcpu *c) {
  __asm__ volatile("rdgsbase %0\n\twrgsbase %1" : "=&r"(c->code.host_gs) : "r"(c));
  c->code.on = true;
}

void x86_code_end(struct x86_vcpu *c) {
  if (!c->code.on) return;
  __asm__ volatile("wrgsbase %0" : : "r"(c->code.host_gs));
  c->code.on = false;
}

int x86_code_run(struct x86_vcpu *c, struct x86_code *code) {
  if (unlikely(!c->code.on)) own_gs(c);
  set_generation(c, code->right, code->segmented);
  u64 key = target_key(c);
  *target_of(c, key) = (struct x86_code_target){.lin = key, .generation = c->code.generation, .code = code->saved, .owner = code};
  if (c->code.link) link_jump(c, code);
  c->code.page = c->rip & PAGE_MASK;
  vcpu_open_gate(&c->core);
  if (unlikely(atomic_load(&c->core.requests))) return X86_OK;
  int r = x86_code_enter(c, code->saved);
  c->code.link_to = target_key(c);
  c->code.link_resets = atomic_load_explicit(&x86_vm_of(c)->code->resets, memory_order_relaxed);
  const struct x86_insn *last = c->cur;
  if (!last) return r;
  c->cur = NULL;
  c->code.link = 0;
  return x86_finish_block(c, last, r);
}

/* An exception of the instruction that ended the block goes to the guest's handler at once. */
static int deliver(struct x86_vcpu *c, int flow) {
  while (flow == X86_FAULT) flow = x86_deliver_fault(c);
  return flow;
}

/* Where code behind an instruction that ended its block goes on, when nothing else has to be looked at first: its address is known.  Called by translated
 * code with c->cur at that instruction; NULL: out, with c->code.result. */
const void *x86_code_next(struct x86_vcpu *c, int flow);
__attribute__((used)) const void *x86_code_next(struct x86_vcpu *c, int flow) {
  const struct x86_insn *last = c->cur;
  c->code.link = 0;
  c->code.result = flow;
  bool sti = c->int_shadow == X86_SHADOW_STI;
  bool goes_on = flow == X86_BRANCH || flow == X86_END || (flow == X86_FAULT && !c->code.once);
  if (!goes_on || c->stop || (c->int_shadow && !sti) || c->counting)
    return NULL;
  c->cur = NULL;
  c->code.result = deliver(c, x86_finish_block(c, last, flow));
  unsigned right = right_of(c);
  bool resumed = c->rflags & FL_RF;
  enum kind kind = kind_of(c, c->mode);
  if (c->code.result || c->stop || kind == KIND_NONE || right >= TLB_COUNT || atomic_load_explicit(&c->core.requests, memory_order_relaxed)) return NULL;
  set_generation(c, right, kind);
  u64 key = target_key(c);
  const struct x86_code_target *t = target_of(c, key);
  if (t->lin != key || t->generation != c->code.generation) return NULL;
  c->code.page = c->rip & PAGE_MASK;
  if (!sti && !resumed) return t->code;
  /* Nothing waits.  What comes now must not come before the instruction behind STI, or find that it was not resumed: it is reached without another look. */
  if (__atomic_load_n(t->owner->epoch, __ATOMIC_RELAXED) + atomic_load_explicit(&c->core.vm->write_epoch, memory_order_acquire)) return NULL;
  c->int_shadow = 0;
  c->rflags &= ~(u64)FL_RF;
  return t->owner->behind_gate;
}

bool x86_code_run_once(struct x86_vcpu *c, struct x86_block *b, int *flow) {
  struct x86_code_cache *k = x86_vm_of(c)->code;
  unsigned right = right_of(c);
  enum kind kind = kind_of(c, b->mode);
  if (!k || right >= TLB_COUNT || kind == KIND_NONE) return false;
  if (x86_code_is_full(x86_vm_of(c))) {
    x86_code_reset(x86_vm_of(c));
    x86_mmu_flush_all(c, true);
  }
  memset(b->code, 0, sizeof(b->code));
  struct x86_code *code = may_make(c, b, right, kind) ? make(c, b, right, kind) : NULL;
  if (!code) return false;
  set_epoch(code, -atomic_load(&c->core.vm->write_epoch));
  c->code.once = true;
  u64 start = c->rip;
  *flow = x86_code_run(c, code);
  memset(target_of(c, unlikely(kind == KIND_SEGMENTED) ? start | c->code.cs_key : start), 0, sizeof(struct x86_code_target)); /* nobody gets there by a branch of a later one */
  c->code.once = false;
  x86_code_end(c);
  return true;
}

unsigned x86_code_vector_level(struct x86_vcpu *c);
/* Called by translated code that is about to load them. */
__attribute__((used)) unsigned x86_code_vector_level(struct x86_vcpu *c) {
  if (!x86_vector_enabled(c, VECTOR_SSE) || !x86_mxcsr_live(c)) return VECTORS_NONE;
  if (c->code.wide && x86_vector_enabled(c, VECTOR_AVX512)) return VECTORS_AVX512;
  return c->code.avx && x86_vector_enabled(c, VECTOR_AVX) ? VECTORS_AVX : VECTORS_SSE;
}

/* ---- host faults ---- */

static const u8 *component(const u8 *area, u64 present, unsigned n) {
  unsigned a, b, d, e;
  if (!(present >> n & 1)) return NULL;
  __cpuid_count(13, n, a, b, d, e);
  return area + b;
}

/* The vector registers in a signal frame: the legacy image, and behind it what its header says is there. */
static void recover_vectors(struct x86_vcpu *c, const u8 *area) {
  u32 magic;
  u64 present = 0;
  memcpy(&magic, area + 464, 4);
  if (magic == 0x46505853u) memcpy(&present, area + 512, 8);
  const u8 *avx = component(area, present, 2), *k = component(area, present, 5), *high = component(area, present, 6),
           *more = component(area, present, 7);
  for (unsigned n = 0; n < 16; n++) {
    memcpy(c->fpu.zmm[n], area + 160 + 16 * n, 16);
    if (c->code.avx) avx ? memcpy(c->fpu.zmm[n] + 16, avx + 16 * n, 16) : memset(c->fpu.zmm[n] + 16, 0, 16);
    if (c->code.wide) high ? memcpy(c->fpu.zmm[n] + 32, high + 32 * n, 32) : memset(c->fpu.zmm[n] + 32, 0, 32);
    if (c->code.wide) more ? memcpy(c->fpu.zmm[16 + n], more + 64 * n, 64) : memset(c->fpu.zmm[16 + n], 0, 64);
  }
  for (unsigned n = 0; n < 8 && c->code.wide; n++) k ? memcpy(&c->fpu.k[n], k + 8 * n, 8) : memset(&c->fpu.k[n], 0, 8);
}

/* The x87 registers in a signal frame. */
static void recover_x87(struct x86_vcpu *c, const u8 *area) {
  memcpy(c->fpu.fx, area, 24);
  memcpy(c->fpu.fx + 32, area + 32, 128);
  u64 ip = c->code.x87_page + (u64)c->code.x87_ip;
  if (c->code.x87_ip >= 0) memcpy(c->fpu.fx + 8, &ip, 8);
  __asm__ volatile("fninit\n\tfldcw %0" : : "m"(c->code.host_fcw));
}

/* `where`: as t_flags_end() has it. */
static u64 recover_flags(const struct x86_vcpu *c, const struct x86_code *code, u8 where, u64 host) {
  const struct x86_block *b = code->block;
  ZydisDecodedInstruction z;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  u32 f = c->code.flags;
  if (where == FLAGS_IN_HOST) return host & FL_ARITH;
  if (where == FLAGS_IN_MEMORY) return (f >> 8 & (FL_ARITH & ~FL_OF)) | (f & 1) << 11;
  unsigned insn = where - FLAGS_AGAIN;
  if (!x86_decode_again(b->mode, b->bytes + b->insn[insn].off, b->insn[insn].len, &z, ops)) return 0;
  struct t_producer p = t_producer_of(insn, &z, ops);
  return t_producer_flags(&p, c->regs);
}

static void recover_moved(struct x86_vcpu *c, u8 moved, const greg_t *g) {
  if (moved & MOVED_RAX) c->regs[RAX] = (u64)g[REG_RAX];
  if (moved & MOVED_RCX) c->regs[RCX] = (u64)g[REG_RCX];
  if (moved & MOVED_COUNT) c->regs[RCX] += (u64)g[REG_RCX];
  if (moved & MOVED_RSI) c->regs[RSI] -= c->code.from;
  if (moved & MOVED_RDI) c->regs[RDI] -= c->code.to;
}

static u64 recover_rsp(const struct x86_vcpu *c, const struct x86_code *code, s16 by) {
  u64 rsp = c->regs[RSP] + (u64)(s64)by;
  if ((code->mode & X86_MODE_SIZE) == X86_MODE_16) return (c->regs[RSP] & ~0xffffull) | (rsp & 0xffff);
  return (code->mode & X86_MODE_SIZE) == X86_MODE_64 ? rsp : (u32)rsp;
}

void x86_code_recover(void *vcpu, void *ucontext) {
  static const u8 gregs[16] = {[H_RDX] = REG_RDX, [H_RBX] = REG_RBX, [H_RBP] = REG_RBP, [H_RSI] = REG_RSI, [H_RDI] = REG_RDI,
                               [H_R8] = REG_R8,   [H_R9] = REG_R9,   [H_R10] = REG_R10, [H_R11] = REG_R11, [H_R12] = REG_R12,
                               [H_R13] = REG_R13, [H_R14] = REG_R14, [H_R15] = REG_R15};
  struct x86_vcpu *c = vcpu;
  ucontext_t *uc = ucontext;
  const greg_t *g = uc->uc_mcontext.gregs;
  const u8 *at = (const u8 *)(uintptr_t)g[REG_RIP];
  struct x86_code_cache *k = x86_vm_of(c)->code;
  if (!k || !c->code.on || !jit_arena_holds(&k->arena, at)) return;
  struct x86_code *code = code_at(k, at);
  if (!code) return;
  for (unsigned n = 0; n < 16; n++)
    if (t_mapped(n)) c->regs[n] = (u64)g[gregs[T_HOME(n)]];
  unsigned n = 0, offset = (unsigned)(at - code->start);
  while (n + 2 < code->n_places && code->place[n + 1].at <= offset) n++;
  unsigned insn = code->place[n].insn;
  c->regs[RSP] = recover_rsp(c, code, code->place[n].rsp);
  recover_moved(c, code->place[n].moved, g);
  c->rflags = (c->rflags & ~(u64)FL_ARITH) | recover_flags(c, code, code->place[n].flags, (u64)g[REG_EFL]);
  c->rip = (code->block->gpa & (PAGE_SIZE - 1)) + (code->segmented ? code->page : c->code.page);
  if (code->segmented) c->rip = (u32)c->rip;
  c->cur = &code->block->insn[insn];
  if (c->code.vectors && uc->uc_mcontext.fpregs) recover_vectors(c, (const u8 *)uc->uc_mcontext.fpregs);
  c->code.vectors = VECTORS_NONE;
  if (c->code.x87 && uc->uc_mcontext.fpregs) recover_x87(c, (const u8 *)uc->uc_mcontext.fpregs);
  c->code.x87 = false;
}
