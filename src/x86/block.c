/* Decoded blocks: lookup, decoding, re-validation, invalidation, and the loop that runs them. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/region.h"
#include "core/memslot.h"
#include "core/stats.h"
#include "x86/block.h"
#include "x86/cpu/cpu.h"
#include "x86/decode/decoded.h"
#include "x86/mmu/io.h"
#include "x86/mmu/walk.h"
#include "x86/translate/code.h"
#include "x86/x86.h"

#define BLOCK_BUCKETS (1u << 17)
#define PAGE_BUCKETS  (1u << 13)
#define DEAD_MAX      4096
#define BYTES_MAX     ((size_t)128 << 20) /* decoded code kept before everything is thrown away */
#define KEEP          ((size_t)4 << 20)   /* an idle VM does not bother about less */
#define PROTECTED     64                  /* pages that became code lately */

/* A page that has, or had, blocks.  Never freed before the VM. */
struct code_page {
  struct code_page *next;  /* bucket chain: published once, never changed */
  u64 page;                /* number of the host page */
  _Atomic bool has_code;   /* set before the first block is decoded, cleared with the last one (blocks->lock) */
  u64 phase, settled;      /* blocks->lock: how often has_code was set; for which of these no TLB has the page writable any more */
  struct x86_block *head;  /* blocks->lock; linked by page_next of the block's part on this page */
};

/* Lookups are lock-free: buckets are read with acquire loads; blocks are freed only after every vCPU has passed a point where it holds none
 * (vm_request_all(REQ_TLB_FLUSH), which also makes its lookup cache stale). */
struct x86_blocks {
  pthread_mutex_t lock;
  struct x86_block *bucket[BLOCK_BUCKETS];
  struct code_page *page[PAGE_BUCKETS];
  u64 protected[PROTECTED]; /* ring of page numbers, */
  u64 n_protected;          /* that many in all; both: lock */
  struct x86_block *dead;
  _Atomic unsigned n_dead;
  struct region memory; /* lock; holds the blocks, dead ones too */
  bool closed;          /* lock; no block is published while all are thrown away, so that the region gets empty */
};

static u64 page_of(const void *host) { return (u64)(uintptr_t)host >> PAGE_SHIFT; }

static unsigned block_hash(const void *host, u32 mode) { return (unsigned)((((u64)(uintptr_t)host ^ (u64)mode << 52) * 0x9e3779b97f4a7c15ull) >> 47); }

int x86_blocks_create(struct x86_vm *vm) {
  vm->blocks = calloc(1, sizeof(*vm->blocks));
  if (!vm->blocks) return -ENOMEM;
  if (region_create(&vm->blocks->memory, BYTES_MAX + PAGE_SIZE)) {
    free(vm->blocks);
    vm->blocks = NULL;
    return -ENOMEM;
  }
  pthread_mutex_init(&vm->blocks->lock, NULL);
  atomic_store(&vm->core.write_epoch, 1);
  return 0;
}

_Static_assert(sizeof(struct x86_block) + (X86_BLOCK_MAX + 1) * sizeof(struct x86_insn) + X86_BLOCK_MAX * 15 <= REGION_MAX, "the largest block");
static size_t size_of(unsigned n, unsigned len) { return sizeof(struct x86_block) + (n + 1) * sizeof(struct x86_insn) + len; }

static void free_block(struct x86_blocks *bs, struct x86_block *b) { region_free(&bs->memory, b, size_of(b->n, b->len)); }

static void free_dead(struct x86_blocks *bs, struct x86_block *b, unsigned n) {
  if (n == bs->memory.live) {
    region_clear(&bs->memory);
    return;
  }
  while (b) {
    struct x86_block *next = b->page_next;
    free_block(bs, b);
    b = next;
  }
}

void x86_blocks_destroy(struct x86_vm *vm) {
  struct x86_blocks *bs = vm->blocks;
  if (!bs) return;
  region_destroy(&bs->memory);
  for (unsigned n = 0; n < PAGE_BUCKETS; n++)
    for (struct code_page *p = bs->page[n], *next; p; p = next) next = p->next, free(p);
  pthread_mutex_destroy(&bs->lock);
  free(bs);
  vm->blocks = NULL;
}

static struct code_page *page_find(struct x86_blocks *bs, u64 page) {
  struct code_page *p = __atomic_load_n(&bs->page[page & (PAGE_BUCKETS - 1)], __ATOMIC_ACQUIRE);
  while (p && p->page != page) p = p->next;
  return p;
}

bool x86_page_has_code(struct vm *vm, const void *host) {
  struct code_page *p = page_find(x86_vm(vm)->blocks, page_of(host));
  return p && atomic_load_explicit(&p->has_code, memory_order_relaxed);
}

/* A block that spans two pages is on two lists, unless both are the same page in memory. */
static bool has_second_page(const struct x86_block *b) { return b->host2 && page_of(b->host2) != page_of(b->host); }

/* The list field of a block for the page at hand. */
static struct x86_block **page_link(struct x86_block *b, u64 page) { return page_of(b->host) == page ? &b->page_next : &b->page2_next; }

static void page_unlink(struct x86_blocks *bs, u64 page, struct x86_block *b) {
  struct code_page *p = page_find(bs, page);
  struct x86_block **at = &p->head;
  while (*at != b) at = page_link(*at, page);
  *at = *page_link(b, page);
  if (!p->head) atomic_store(&p->has_code, false);
}

/* Takes a block out of every list and makes vCPUs that are inside it stop at their next instruction. */
static void kill_locked(struct x86_blocks *bs, struct x86_block *b) {
  atomic_store(&b->dead, true); /* before its epochs: see revalidate() */
  atomic_store_explicit(&b->epoch, 0, memory_order_relaxed); /* equals no write_epoch: the next entry looks closer */
  x86_code_killed(b);
  for (unsigned n = 0; n < b->n; n++) __atomic_store_n(&b->insn[n].fn, x86_exec_stop, __ATOMIC_RELEASE);
  struct x86_block **at = &bs->bucket[block_hash(b->host, b->mode)];
  while (*at != b) at = &(*at)->hash_next;
  /* Readers may stand on b: its own hash_next has to stay intact until it is freed, so the dead list has a link of its own. */
  __atomic_store_n(at, b->hash_next, __ATOMIC_RELEASE);
  page_unlink(bs, page_of(b->host), b);
  if (has_second_page(b)) page_unlink(bs, page_of(b->host2), b);
  b->page_next = bs->dead;
  bs->dead = b;
  bs->n_dead++;
}

/* Bytes of it on the first page. */
static unsigned first_part(const struct x86_block *b) { return b->host2 ? (unsigned)(PAGE_SIZE - (b->gpa & (PAGE_SIZE - 1))) : b->len; }

static bool overlaps(const struct x86_block *b, const u8 *at, unsigned len) {
  unsigned first = first_part(b);
  if (at < b->host + first && b->host < at + len) return true;
  return b->host2 && at < b->host2 + (b->len - first) && b->host2 < at + len;
}

void x86_blocks_written(struct x86_vm *vm, const void *host, unsigned len) {
  struct x86_blocks *bs = vm->blocks;
  u64 page = page_of(host);
  pthread_mutex_lock(&bs->lock);
  struct code_page *p = page_find(bs, page);
  if (p && !p->head) atomic_store(&p->has_code, false);
  for (struct x86_block *b = p ? p->head : NULL, *next; b; b = next) {
    next = *page_link(b, page);
    if (overlaps(b, host, len)) kill_locked(bs, b);
  }
  pthread_mutex_unlock(&bs->lock);
}

static void flush_locked(struct x86_blocks *bs) {
  for (unsigned n = 0; n < BLOCK_BUCKETS; n++)
    while (bs->bucket[n]) kill_locked(bs, bs->bucket[n]);
}

void x86_blocks_flush(struct x86_vm *vm) {
  pthread_mutex_lock(&vm->blocks->lock);
  flush_locked(vm->blocks);
  pthread_mutex_unlock(&vm->blocks->lock);
}

/* Bytes that blocks take, or took before they died: a hint, so relaxed. */
static size_t bytes_of(const struct x86_blocks *bs) { return atomic_load_explicit(&bs->memory.used, memory_order_relaxed); }

/* Frees dead blocks, or all blocks.  On a vCPU between blocks. */
static void reclaim(struct x86_vcpu *c, bool all) {
  struct x86_vm *vm = x86_vm_of(c);
  struct x86_blocks *bs = vm->blocks;
  if (all && !x86_code_suspend(vm)) return; /* no translation is made of what comes after the flush */
  pthread_mutex_lock(&bs->lock);
  if (all) flush_locked(bs);
  if (all) bs->closed = true;
  struct x86_block *dead = bs->dead;
  unsigned n_dead = bs->n_dead;
  bs->dead = NULL;
  bs->n_dead = 0;
  pthread_mutex_unlock(&bs->lock);
  vcpu_leave(&c->core);
  vm_request_all(&vm->core, &c->core, REQ_TLB_FLUSH, true);
  vcpu_enter(&c->core);
  x86_mmu_flush_all(c, true);
  if (all) x86_code_reset(vm);
  pthread_mutex_lock(&bs->lock);
  free_dead(bs, dead, n_dead);
  if (all) bs->closed = false;
  pthread_mutex_unlock(&bs->lock);
}

/* Stores to the page are seen by x86_blocks_written(), all of them.  blocks->lock held. */
static bool is_settled(const struct code_page *p) { return atomic_load(&p->has_code) && p->settled == p->phase; }

void x86_blocks_protected(struct x86_vcpu *c) {
  struct x86_blocks *bs = x86_vm_of(c)->blocks;
  u64 page[PROTECTED];
  pthread_mutex_lock(&bs->lock);
  u64 n = bs->n_protected - c->pages_protected;
  for (u64 k = 0; k < n && n <= PROTECTED; k++) page[k] = bs->protected[(c->pages_protected + k) % PROTECTED];
  c->pages_protected = bs->n_protected;
  pthread_mutex_unlock(&bs->lock);
  if (n > PROTECTED) x86_mmu_flush_all(c, true);
  for (u64 k = 0; k < n && n <= PROTECTED; k++) x86_mmu_protect_page(c, page[k] << PAGE_SHIFT);
}

/* Makes sure the page is known to have code and is writable in no TLB.  *already: it was so; else state was left and entered again. */
static int page_protect(struct x86_vcpu *c, const void *host, bool *already) {
  struct x86_vm *vm = x86_vm_of(c);
  struct x86_blocks *bs = vm->blocks;
  u64 page = page_of(host);
  pthread_mutex_lock(&bs->lock);
  struct code_page *p = page_find(bs, page);
  if (!p) {
    p = calloc(1, sizeof(*p));
    if (!p) {
      pthread_mutex_unlock(&bs->lock);
      return -ENOMEM;
    }
    p->page = page;
    p->next = bs->page[page & (PAGE_BUCKETS - 1)];
    __atomic_store_n(&bs->page[page & (PAGE_BUCKETS - 1)], p, __ATOMIC_RELEASE);
  }
  *already = is_settled(p); /* another vCPU may be about it, and not have reached all yet */
  if (!atomic_exchange(&p->has_code, true)) p->phase++;
  u64 phase = p->phase;
  if (!*already) bs->protected[bs->n_protected++ % PROTECTED] = page;
  pthread_mutex_unlock(&bs->lock);
  if (*already) return 0;
  /* Whoever holds a writable translation must drop it, and finish a store it has begun, before the bytes are read. */
  if (atomic_load(&vm->core.n_vcpus) > 1) {
    vcpu_leave(&c->core);
    vm_request_all(&vm->core, &c->core, REQ_PROTECT, true);
    vcpu_enter(&c->core);
  }
  x86_mmu_protect_page(c, page << PAGE_SHIFT);
  pthread_mutex_lock(&bs->lock);
  p->settled = MAX(p->settled, phase);
  pthread_mutex_unlock(&bs->lock);
  return 0;
}

static struct x86_block *find(struct x86_vcpu *c, const u8 *host, const u8 *host2, u32 mode) {
  struct x86_block *b = __atomic_load_n(&x86_vm_of(c)->blocks->bucket[block_hash(host, mode)], __ATOMIC_ACQUIRE);
  while (b && !(b->host == host && b->mode == mode && b->isa == c->isa && (!b->host2 || b->host2 == host2)))
    b = __atomic_load_n(&b->hash_next, __ATOMIC_ACQUIRE);
  return b;
}

static bool bytes_equal(const struct x86_block *b) {
  unsigned first = first_part(b);
  return x86_equal_guest(b->bytes, b->host, first) && (!b->host2 || x86_equal_guest(b->bytes + first, b->host2, b->len - first));
}

/* Others may have written: compare.  false: the block is (now) dead. */
static bool revalidate(struct x86_vcpu *c, struct x86_block *b, u64 epoch) {
  struct x86_blocks *bs = x86_vm_of(c)->blocks;
  if (atomic_load_explicit(&b->dead, memory_order_relaxed)) return false;
  if (bytes_equal(b)) {
    atomic_store_explicit(&b->epoch, epoch, memory_order_relaxed);
    /* Another vCPU may be at it with another epoch.  The words of translated code must end up with the block's: left behind, every entry would be refused
     * while the block itself looks fresh, until something else moves the VM's epoch.  Whoever writes them last sees both stores here. */
    for (u64 now; x86_code_validated(b, epoch), now = atomic_load(&b->epoch), now && now != epoch; epoch = now) {}
    if (!atomic_load(&b->dead)) return true;
    x86_code_killed(b); /* after us or before us: it stays dead */
    atomic_store_explicit(&b->epoch, 0, memory_order_relaxed);
    return false;
  }
  pthread_mutex_lock(&bs->lock);
  if (!atomic_load_explicit(&b->dead, memory_order_relaxed)) kill_locked(bs, b);
  pthread_mutex_unlock(&bs->lock);
  return false;
}

void x86_blocks_abandon(struct x86_vcpu *c) {
  if (unlikely(c->counting)) x86_pmu_block_abandoned(c);
  if (c->cur) c->rip = x86_insn_ip(c, c->cur);
  c->cur = NULL;
  c->stop = 0;
  c->bus_lock = false;
  if (!c->publishing) return;
  free_block(x86_vm_of(c)->blocks, c->publishing);
  pthread_mutex_unlock(&x86_vm_of(c)->blocks->lock);
  c->publishing = NULL;
}

/* Falls off the end of a block that was cut for length or at a page's end. */
static int exec_fallthrough(struct x86_vcpu *c, const struct x86_insn *i) {
  c->rip = x86_insn_ip(c, i);
  return X86_BRANCH;
}

/* A block goes on behind a forward branch, which seldom is taken, but not for ever. */
enum { BRANCHES_MAX = 4 };

static bool ends_here(const struct x86_insn *i, unsigned *branches) {
  if (i->iflags & X86_I_MAYBE) return (s64)i->imm < (s64)i->next || ++*branches > BRANCHES_MAX;
  return i->iflags & X86_I_END;
}

/* Decodes from `bytes` into `insn` (X86_BLOCK_MAX + 1 entries).  Returns the number of bytes; *n instructions.  0: the first one needs more bytes. */
static unsigned decode_run(struct x86_vcpu *c, u32 mode, const u8 *bytes, unsigned avail, struct x86_insn *insn, unsigned *n) {
  struct x86_decode_ctx ctx = {.mode = mode, .cpuid = c->cpuid, .vm = x86_vm_of(c)};
  unsigned at = 0, branches = 0, max = mode & X86_MODE_SINGLE ? 1 : X86_BLOCK_MAX;
  for (*n = 0; *n < max && at < avail; (*n)++) {
    struct x86_insn *i = &insn[*n];
    memset(i, 0, sizeof(*i));
    i->off = (u16)at;
    int len = x86_decode(&ctx, bytes + at, avail - at, i);
    if (!len) break;
    i->len = (u8)len;
    i->next = (u16)(at + len);
    at += len;
    if (ends_here(i, &branches)) {
      (*n)++;
      break;
    }
  }
  memset(&insn[*n], 0, sizeof(insn[*n]));
  insn[*n].fn = exec_fallthrough;
  insn[*n].off = insn[*n].next = (u16)at;
  return at;
}

struct fetch {
  gpa_t gpa, gpa2;
  const u8 *host, *host2;
  u64 room;       /* bytes up to the segment limit */
  unsigned avail; /* bytes of them on the first page */
};

/* Whether memory slots still put gpa at this host address: a translation may be older than a slot change whose x86_blocks_flush() is over. */
static bool still_backed(struct x86_vcpu *c, gpa_t gpa, const u8 *host) {
  const struct memslot *slot = x86_memslot(c, gpa >> PAGE_SHIFT);
  return slot && memslot_hva(slot, gpa >> PAGE_SHIFT) + (gpa & (PAGE_SIZE - 1)) == (hva_t)(uintptr_t)host;
}

static bool has_locked(const struct x86_insn *insn, unsigned n) {
  for (unsigned k = 0; k < n; k++)
    if (insn[k].iflags & X86_I_LOCK || (insn[k].op == ZYDIS_MNEMONIC_XCHG && insn[k].iflags & X86_I_MEM)) return true;
  return false;
}

/* Publishes a block unless memory changed meanwhile (then NULL: look again). */
static struct x86_block *publish(struct x86_vcpu *c, u32 mode, const struct fetch *f, const u8 *bytes, unsigned len, const struct x86_insn *insn,
                                 unsigned n) {
  struct x86_blocks *bs = x86_vm_of(c)->blocks;
  pthread_mutex_lock(&bs->lock);
  struct x86_block *b = bs->closed ? NULL : region_alloc(&bs->memory, size_of(n, len));
  if (!b) {
    pthread_mutex_unlock(&bs->lock);
    return NULL;
  }
  b->gpa = f->gpa;
  b->gpa2 = f->gpa2;
  b->host = f->host;
  b->host2 = f->host2;
  b->mode = mode;
  b->isa = c->isa;
  b->len = (u16)len;
  b->n = (u8)n;
  b->interpreted = c->bus_lock_exits && has_locked(insn, n);
  b->bytes = (u8 *)&b->insn[n + 1];
  memcpy(b->insn, insn, (n + 1) * sizeof(*insn));
  memcpy(b->bytes, bytes, len);
  u64 epoch = atomic_load_explicit(&c->core.vm->write_epoch, memory_order_acquire);
  atomic_store_explicit(&b->epoch, epoch, memory_order_relaxed);
  c->publishing = b;
  /* A store between our copy and this lock either is seen by the comparison, or waits for the lock and finds the block. */
  struct code_page *p = page_find(bs, page_of(f->host)), *p2 = f->host2 ? page_find(bs, page_of(f->host2)) : NULL;
  bool same = is_settled(p) && (!p2 || is_settled(p2)) && still_backed(c, b->gpa, b->host) &&
              (!p2 || still_backed(c, b->gpa2, b->host2)) && bytes_equal(b);
  c->publishing = NULL;
  if (!same) {
    free_block(bs, b);
    pthread_mutex_unlock(&bs->lock);
    return NULL;
  }
  struct x86_block **bucket = &bs->bucket[block_hash(b->host, mode)];
  b->hash_next = *bucket;
  __atomic_store_n(bucket, b, __ATOMIC_RELEASE);
  b->page_next = p->head;
  p->head = b;
  if (has_second_page(b)) {
    b->page2_next = p2->head;
    p2->head = b;
  }
  pthread_mutex_unlock(&bs->lock);
  vcpu_stat_inc(&c->core, blocks_decoded);
  if (bytes_of(bs) > KEEP) x86_idle_watch(c);
  return b;
}

/* Translates a fetch; devices as code end in KVM_EXIT_INTERNAL_ERROR, as in KVM, which cannot emulate without instruction bytes. */
static int fetch_page(struct x86_vcpu *c, u64 lin, gpa_t *gpa, const u8 **host) {
  struct x86_xlat x;
  int r = x86_translate(c, lin, ACC_EXEC, c->mmu.right, &x);
  if (r) return r;
  if (!x.host) {
    x86_emulation_failure(c);
    return X86_EXIT;
  }
  *gpa = x.gpa;
  *host = x.host;
  return X86_OK;
}

u64 x86_linear_ip(const struct x86_vcpu *c) { return c->code64 ? c->rip : (u32)(c->rip + c->seg[SEG_CS].base); }

static int fetch_first(struct x86_vcpu *c, u64 lin, struct fetch *f) {
  f->room = ~0ull;
  f->gpa2 = ~0ull;
  f->host2 = NULL;
  if (c->code64) {
    if (!x86_canonical(c, lin)) return x86_gp0(c);
  } else {
    if (c->rip > c->seg[SEG_CS].limit) return x86_gp0(c);
    f->room = (u64)c->seg[SEG_CS].limit - c->rip + 1;
  }
  f->avail = (unsigned)MIN(f->room, PAGE_SIZE - (lin & (PAGE_SIZE - 1)));
  if (x86_debug_active(c) && x86_code_breakpoint(c, lin)) return X86_FAULT;
  return fetch_page(c, lin, &f->gpa, &f->host);
}

/* An instruction that goes on on the next page: a block of its own. */
static int fetch_second(struct x86_vcpu *c, u64 lin, struct fetch *f) {
  if (f->room <= f->avail) return x86_gp0(c);
  u64 next = c->code64 ? lin + f->avail : (u32)(lin + f->avail);
  if (c->code64 && !x86_canonical(c, next)) return x86_gp0(c);
  return fetch_page(c, next, &f->gpa2, &f->host2);
}

static bool is_full(struct x86_vm *vm) { return x86_code_is_full(vm) || bytes_of(vm->blocks) > BYTES_MAX - REGION_MAX; }

/* A hint, so relaxed: reclaim() takes the lock. */
static bool has_much_dead(struct x86_vm *vm) { return atomic_load_explicit(&vm->blocks->n_dead, memory_order_relaxed) > DEAD_MAX; }

void x86_blocks_forget(struct x86_vcpu *c) {
  if (bytes_of(x86_vm_of(c)->blocks) > KEEP) reclaim(c, true);
}

/* The block at the current RIP, decoded if need be.  X86_RESTART: something moved, try again. */
static int lookup(struct x86_vcpu *c, u64 lin, u32 mode, struct x86_block **out) {
  struct x86_insn insn[X86_BLOCK_MAX + 1];
  u8 bytes[X86_BLOCK_MAX * 15];
  struct fetch f;
  bool full = is_full(x86_vm_of(c));
  if (unlikely(full || has_much_dead(x86_vm_of(c)))) reclaim(c, full);
  int r = fetch_first(c, lin, &f);
  if (r) return r;
  u64 epoch = atomic_load_explicit(&c->core.vm->write_epoch, memory_order_acquire);
  struct x86_block *b = find(c, f.host, NULL, mode);
  if (b && !b->host2 && b->len <= f.avail) {
    if (atomic_load_explicit(&b->epoch, memory_order_relaxed) != epoch && !revalidate(c, b, epoch)) return X86_RESTART;
    *out = b;
    return X86_OK;
  }

  bool protected_already;
  if (page_protect(c, f.host, &protected_already)) return X86_RESTART;
  if (!protected_already) return X86_RESTART;
  unsigned n, avail = MIN(f.avail, (unsigned)sizeof(bytes));
  x86_copy_guest(bytes, f.host, avail);
  unsigned len = decode_run(c, mode, bytes, avail, insn, &n);
  if (!n) {
    r = fetch_second(c, lin, &f);
    if (r) return r;
    b = find(c, f.host, f.host2, mode);
    if (b && b->host2 && b->len <= f.room) {
      if (atomic_load_explicit(&b->epoch, memory_order_relaxed) != epoch && !revalidate(c, b, epoch)) return X86_RESTART;
      *out = b;
      return X86_OK;
    }
    if (page_protect(c, f.host2, &protected_already) || !protected_already) return X86_RESTART;
    unsigned more = (unsigned)MIN(f.room - f.avail, 15u);
    x86_copy_guest(bytes + f.avail, f.host2, more);
    len = decode_run(c, mode | X86_MODE_SINGLE, bytes, f.avail + more, insn, &n);
    if (!n) return x86_gp0(c); /* it goes on behind the limit */
  }
  *out = publish(c, mode, &f, bytes, len, insn, n);
  return *out ? X86_OK : X86_RESTART;
}

/* Runs instructions until one ends the block; *last is that one. */
static inline int run_insns(struct x86_vcpu *c, const struct x86_block *b, const struct x86_insn **last) {
  const struct x86_insn *i = b->insn;
  int r;
  do {
    c->cur = i;
    r = __atomic_load_n(&i->fn, __ATOMIC_RELAXED)(c, i); /* kill_locked() may replace it */
    i++;
  } while (likely(!(r | c->stop)));
  c->cur = NULL;
  *last = i - 1;
  return r;
}

int x86_finish_block(struct x86_vcpu *c, const struct x86_insn *last, int r) {
  if (likely(r == X86_BRANCH)) return X86_OK;
  if (r == X86_END || r == X86_OK) {
    c->rip = x86_next_ip(c, last);
    return X86_OK;
  }
  c->rip = x86_insn_ip(c, last);
  return r;
}

static __attribute__((noinline)) int run_block_counted(struct x86_vcpu *c, const struct x86_block *b) {
  const struct x86_insn *last;
  unsigned ring = c->cpl == 3;
  x86_pmu_block_begin(c, b);
  int r = run_insns(c, b, &last);
  x86_pmu_block_end(c, b, ring, last, r == X86_BRANCH || r == X86_END || r == X86_OK, r == X86_BRANCH);
  return x86_finish_block(c, last, r);
}

/* Runs one block.  Flow: X86_OK (RIP is where to go on), X86_RESTART, X86_FAULT, X86_EXIT. */
static inline int run_block(struct x86_vcpu *c, const struct x86_block *b) {
  const struct x86_insn *last;
  if (unlikely(c->counting)) return run_block_counted(c, b);
  int r = run_insns(c, b, &last);
  return x86_finish_block(c, last, r);
}

/* Whether a block that was found by its linear address ends within the code segment: other segments may lead to it. */
static inline bool within_limit(const struct x86_vcpu *c, const struct x86_block *b) {
  return c->code64 || c->rip + b->len - 1 <= c->seg[SEG_CS].limit;
}

/* The block at RIP in `mode`: from the lookup cache, or the slow way. */
static inline int next_block(struct x86_vcpu *c, u32 mode, struct x86_block **out) {
  u64 lin = x86_linear_ip(c);
  /* Rights to execute differ between CPL 3 and the others. */
  u32 key = mode | (c->cpl == 3 ? 1u << 31 : 0);
  struct x86_jcache_entry *e = x86_jcache_slot(c, lin);
  if (likely(e->lin == lin && e->gen == x86_code_generation(c) && e->mode == key && within_limit(c, e->block))) {
    u64 epoch = atomic_load_explicit(&c->core.vm->write_epoch, memory_order_relaxed);
    if (likely(atomic_load_explicit(&e->block->epoch, memory_order_relaxed) == epoch) || revalidate(c, e->block, epoch)) {
      *out = e->block;
      return X86_OK;
    }
  }
  int r = lookup(c, lin, mode, out);
  if (r || (mode & X86_MODE_SINGLE)) return r;
  x86_mmu_executed(c, lin);
  if ((*out)->gpa2 != ~0ull) x86_mmu_executed(c, lin + PAGE_SIZE);
  *e = (struct x86_jcache_entry){.lin = lin, .gen = x86_code_generation(c), .mode = key, .block = *out};
  return r;
}

/* RF lasts for one instruction (SDM Vol. 3B 17.3.1.1).  Only breakpoints could tell that it ends before that one, and they make instructions run singly. */
static bool one_by_one(struct x86_vcpu *c) {
  if (!(c->mode & X86_MODE_SINGLE)) c->rflags &= ~(u64)FL_RF;
  return c->int_shadow | (c->mode & X86_MODE_SINGLE);
}

int x86_run_one(struct x86_vcpu *c) {
  struct x86_block *b;
  bool stepping = c->mode & X86_MODE_SINGLE;
  int r;
  while ((r = next_block(c, c->mode | X86_MODE_SINGLE, &b)) == X86_RESTART) x86_drop_stale(c); /* a slot that is being deleted is not found again */
  if (r) return r;
  if (c->int_shadow) c->int_shadow |= X86_SHADOW_RUNNING;
  u64 rcx = c->regs[RCX];
  r = run_block(c, b);
  c->stop = 0;
  if (c->int_shadow & X86_SHADOW_RUNNING && r == X86_EXIT) {
    c->int_shadow &= ~X86_SHADOW_RUNNING; /* it has not run yet: it comes again with the client's answer */
  } else if (c->int_shadow & X86_SHADOW_RUNNING) {
    c->int_shadow = 0;
    vcpu_request_self(&c->core, BIT(REQ_EVENT));
  }
  if (stepping && r == X86_OK) r = x86_after_single_step(c);
  if (stepping && r == X86_RESTART && c->regs[RCX] != rcx) r = x86_after_iteration(c); /* SDM Vol. 3B 17.3.1.4: a trap after each iteration */
  return r == X86_RESTART ? X86_OK : r;
}

/* To enter translated code and to leave it again costs as much as to interpret this many instructions: blocks that are shorter are interpreted when KVM_RUN has
 * just begun, because there the next exit is often near: a driver that reads one register of a device after the other. */
enum { SHORT_BLOCK = 6, FIRST_BLOCKS = 2 };

int x86_run_blocks(struct x86_vcpu *c) {
  for (unsigned first = 0;; first++) {
    struct x86_block *b;
    if (unlikely(atomic_load_explicit(&c->core.requests, memory_order_acquire) | READ_ONCE(c->core.run->immediate_exit))) return X86_OK;
    int r;
    bool resumed = c->rflags & FL_RF; /* an instruction must run before an event may come that would find RF clear: translated code looks first */
    if (unlikely(c->int_shadow | (c->mode & X86_MODE_SINGLE) | resumed) && one_by_one(c)) {
      r = x86_run_one(c);
      if (c->io.n_writes | c->bus_lock) return r;
    } else {
      r = next_block(c, c->mode, &b);
      bool translated = likely(!r && !resumed) && likely(!b->interpreted) && (first >= FIRST_BLOCKS || b->n > SHORT_BLOCK);
      struct x86_code *code = translated ? x86_code_for(c, b) : NULL;
      if (code) r = x86_code_run(c, code);
      else if (likely(!r)) r = run_block(c, b);
      if (unlikely(c->stop)) {
        c->stop = 0;
        return r == X86_RESTART ? X86_OK : r;
      }
    }
    if (unlikely(r != X86_OK && r != X86_RESTART)) return r;
  }
}
