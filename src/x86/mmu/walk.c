/* The guest page walk: one walker for 32-bit, PAE, 4- and 5-level paging, with rights, reserved bits and accessed/dirty updates.
 *
 * Intel SDM Vol. 3A chapter 4.
 */
#include "core/dirty_ring.h"
#include "core/stats.h"
#include "x86/mmu/walk.h"
#include "x86/block.h"
#include "x86/decode/table.h"
#include "x86/cpuid/cpuid.h"
#include "x86/x86.h"

#define PTE_P  0x1ull
#define PTE_W  0x2ull
#define PTE_U  0x4ull
#define PTE_A  0x20ull
#define PTE_D  0x40ull
#define PTE_PS 0x80ull
#define PTE_G  0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull

#define PF_P    1u
#define PF_W    2u
#define PF_U    4u
#define PF_RSVD 8u
#define PF_I    16u
#define PF_PK   32u

/* One row per paging mode. */
static const struct format {
  u8 levels, index_bits, entry_size, max_large_level;
} formats[] = {
    [PAGING_32] = {2, 10, 4, 2},
    [PAGING_PAE] = {2, 9, 8, 2}, /* below the four PDPTE registers */
    [PAGING_4LEVEL] = {4, 9, 8, 3},
    [PAGING_5LEVEL] = {5, 9, 8, 3},
};

/* 4.6.2: protection keys act on user pages, data accesses only. */
static bool obeys_key(const struct x86_vcpu *c, const struct x86_walk *w) {
  return (c->cr4 & CR4_PKE) && w->user && (c->efer & EFER_LMA);
}

unsigned x86_page_perms(struct x86_vcpu *c, const struct x86_walk *w, struct x86_rights r, unsigned *pk) {
  unsigned perms = PERM_R | PERM_W | PERM_X;
  bool wp = c->cr0 & CR0_WP;
  *pk = 0;
  if (r.user) { /* 4.6.1: user-mode accesses */
    if (!w->user) return 0;
    if (!w->writable) perms &= ~PERM_W;
  } else {
    if (!w->writable && wp) perms &= ~PERM_W;
    if (w->user && r.smap) perms &= ~(PERM_R | PERM_W);
    if (w->user && (c->cr4 & CR4_SMEP)) perms &= ~PERM_X;
  }
  if (w->nx) perms &= ~PERM_X;
  if (obeys_key(c, w)) {
    unsigned key = (c->pkru >> (2 * w->pkey)) & 3;
    if (key & 1) *pk = PERM_R | PERM_W;
    else if ((key & 2) && (r.user || wp)) *pk = PERM_W;
    perms &= ~*pk;
  }
  return perms;
}

static int page_fault(struct x86_vcpu *c, u64 lin, u32 error) {
  c->fault = (struct x86_fault){.vector = VEC_PF, .has_error = true, .error = error, .payload = lin};
  return X86_FAULT;
}

static u32 access_bits(struct x86_vcpu *c, enum x86_access acc, bool user) {
  u32 e = user ? PF_U : 0;
  if (acc == ACC_WRITE || acc == ACC_RMW) e |= PF_W;
  /* 4.7: I/D is reported only where fetches can be refused. */
  if (acc == ACC_EXEC && (((c->cr4 & CR4_PAE) && (c->efer & EFER_NX)) || (c->cr4 & CR4_SMEP))) e |= PF_I;
  return e;
}

/* Host address of a paging-structure entry; NULL where the table is not in RAM (as KVM: not present). */
static void *entry_host(struct x86_vcpu *c, gpa_t gpa, const struct memslot **slot) {
  *slot = x86_memslot(c, gpa >> PAGE_SHIFT);
  if (!*slot) return NULL;
  return (void *)(uintptr_t)(memslot_hva(*slot, gpa >> PAGE_SHIFT) + (gpa & (PAGE_SIZE - 1)));
}

/* An entry that a walk used. */
struct entry {
  const struct memslot *slot;
  gpa_t gpa;
  void *host;
  u64 e;
};

/* Sets accessed/dirty bits with a compare-and-swap; false when the entry changed under us (walk again). */
GUEST_ACCESS static bool entry_set_bits(struct x86_vcpu *c, const struct entry *p, unsigned size, u64 bits) {
  if ((p->e & bits) == bits || (p->slot->flags & KVM_MEM_READONLY)) return true;
  bool ok;
  u64 old = p->e;
  if (size == 8) ok = __atomic_compare_exchange_n((u64 *)p->host, &old, old | bits, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
  else {
    u32 old32 = (u32)old;
    ok = __atomic_compare_exchange_n((u32 *)p->host, &old32, old32 | (u32)bits, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
  }
  if (!ok) return false;
  if (p->slot->flags & KVM_MEM_LOG_DIRTY_PAGES) mark_page_dirty(&c->core, p->slot, p->gpa >> PAGE_SHIFT);
  if (unlikely(x86_page_has_code(c->core.vm, p->host))) x86_blocks_written(x86_vm_of(c), p->host, size);
  return true;
}

/* 4.8: once the access is known not to fault, as KVM's walker does it: accessed in all entries used, dirty in the one that maps the page. */
static bool set_accessed_dirty(struct x86_vcpu *c, const struct entry *top, const struct entry *leaf, unsigned size, bool write) {
  for (const struct entry *p = top; p > leaf; p--)
    if (!entry_set_bits(c, p, size, PTE_A)) return false;
  return entry_set_bits(c, leaf, size, PTE_A | (write ? PTE_D : 0));
}

/* Table 4-4: PSE-36 puts the address bits above 31, at most 8 of them, from bit 13 on; what is left up to bit 21 is reserved. */
static u64 pse_reserved(struct x86_vcpu *c) {
  unsigned width = x86_has(c, X86_FEATURE_PSE36) ? MIN(c->cpuid->maxphyaddr, 40) : 32, high = width > 32 ? width - 32 : 0;
  return 0x3fe000u & ~((1u << (13 + high)) - 1);
}

/* Reserved bits of an entry: tables 4-2 to 4-20. */
static bool entry_reserved(struct x86_vcpu *c, enum x86_paging mode, unsigned level, u64 e, bool large) {
  if (mode == PAGING_32) return large && (e & pse_reserved(c));
  u64 rsvd = c->mmu.rsvd_high;
  if (!(c->efer & EFER_NX)) rsvd |= PTE_NX;
  if (mode == PAGING_PAE) rsvd |= 0x7ff0000000000000ull;
  else if (level >= 4) rsvd |= PTE_PS;
  else if (level == 3 && !x86_has(c, X86_FEATURE_GBPAGES)) rsvd |= PTE_PS;
  if (large) rsvd |= level == 3 ? 0x3fffe000ull : 0x1fe000ull;
  return e & rsvd;
}

/* An address beyond the guest's MAXPHYADDR that the host's reaches: KVM sees no fault of the processor there, so it runs the
 * access in its instruction emulator to raise the guest's.  Instructions that are not for the emulator end up with the client
 * where it asked for that (KVM_CAP_EXIT_ON_EMULATION_FAILURE): here those that run on the host's processor. */
static bool only_host_could(struct x86_vcpu *c, enum x86_paging mode, unsigned level, u64 e, bool large) {
  if (likely(!x86_vm_of(c)->exit_on_emulation_failure) || !c->cur || x86_table_known(c->cur->op)) return false;
  return !entry_reserved(c, mode, level, e & ~c->mmu.rsvd_high, large);
}

struct walk_state {
  gpa_t table; /* the current one */
  bool writable, user, nx;
};

/* ---- paging-structure caches ---- */

/* The entry for the address, and in *key what its `lin` is when it is that. */
static struct x86_structure_entry *structure(struct x86_vcpu *c, enum x86_structure kind, u64 lin, u64 *key) {
  *key = lin >> (kind == STRUCTURE_PDPTE ? 30 : c->mmu.paging == PAGING_32 ? 22 : 21);
  return &c->mmu.structures[kind][(*key ^ *key >> X86_STRUCTURE_BITS) % (1u << X86_STRUCTURE_BITS)];
}

/* The level at which the walk may begin, with the state there; 0: at the top. */
static unsigned structures_find(struct x86_vcpu *c, u64 lin, struct walk_state *s) {
  for (enum x86_structure kind = 0; kind < STRUCTURES; kind++) {
    u64 key;
    const struct x86_structure_entry *e = structure(c, kind, lin, &key);
    if (e->epoch != c->mmu.structures_epoch || e->lin != key) continue;
    *s = (struct walk_state){.table = e->table, .writable = e->writable, .user = e->user, .nx = e->nx};
    return kind + 1;
  }
  return 0;
}

/* 4.10.4.1: a page fault invalidates what is cached for its address. */
static void structures_drop(struct x86_vcpu *c, u64 lin) {
  u64 key;
  for (enum x86_structure kind = 0; kind < STRUCTURES; kind++) structure(c, kind, lin, &key)->epoch = 0;
}

/* After a walk from level `first` that set the accessed bits: states[level] is what it had before the entry of that level, `last` the one that maps the
 * page.  The top's is CR3 or a PDPTE register. */
static void structures_note(struct x86_vcpu *c, u64 lin, unsigned first, unsigned last, const struct walk_state *states) {
  for (unsigned level = last; level <= STRUCTURES && level < first; level++) {
    u64 key;
    struct x86_structure_entry *e = structure(c, level - 1, lin, &key);
    const struct walk_state *s = &states[level];
    *e = (struct x86_structure_entry){key, c->mmu.structures_epoch, s->table, s->writable, s->user, s->nx};
  }
}

/* ---- the walk ---- */

/* From level `first` on, with *start; 0: from the top. */
static int walk_once(struct x86_vcpu *c, u64 lin, enum x86_access acc, struct x86_rights rights, bool set_ad, unsigned first, const struct walk_state *start,
                     struct x86_walk *out, bool *again) {
  enum x86_paging mode = c->mmu.paging;
  const struct format *f = &formats[mode];
  u32 err = access_bits(c, acc, rights.user);
  struct entry used[6];
  struct walk_state s = {.writable = true, .user = true}, states[6];
  *again = false;

  if (first) {
    s = *start;
  } else if (mode == PAGING_PAE) { /* 4.4.1: the PDPTEs are registers; reserved bits were checked when they were loaded */
    u64 pdpte = c->pdptr[(lin >> 30) & 3];
    if (!(pdpte & PTE_P)) return page_fault(c, lin, err);
    s.table = pdpte & PTE_ADDR;
  } else {
    s.table = mode == PAGING_32 ? c->cr3 & 0xfffff000u : c->cr3 & PTE_ADDR;
  }

  if (!first) first = f->levels;

  for (unsigned level = first;; level--) {
    unsigned shift = PAGE_SHIFT + f->index_bits * (level - 1);
    gpa_t gpa = s.table + ((lin >> shift) & ((1u << f->index_bits) - 1)) * f->entry_size;
    const struct memslot *slot;
    void *host = entry_host(c, gpa, &slot);
    if (!host) return page_fault(c, lin, err);
    states[level] = s;
    u64 e = f->entry_size == 8 ? __atomic_load_n((u64 *)host, __ATOMIC_RELAXED) : __atomic_load_n((u32 *)host, __ATOMIC_RELAXED);
    if (!(e & PTE_P)) return page_fault(c, lin, err);
    bool pse = mode == PAGING_32 ? (c->cr4 & CR4_PSE) != 0 : true;
    bool large = level > 1 && level <= f->max_large_level && (e & PTE_PS) && pse;
    if (entry_reserved(c, mode, level, e, large))
      return only_host_could(c, mode, level, e, large) ? x86_emulation_failure(c) : page_fault(c, lin, err | PF_RSVD | PF_P);
    s.writable &= (e & PTE_W) != 0;
    s.user &= (e & PTE_U) != 0;
    s.nx |= mode != PAGING_32 && (e & PTE_NX) && (c->efer & EFER_NX);
    used[level] = (struct entry){.slot = slot, .gpa = gpa, .host = host, .e = e};

    if (level > 1 && !large) {
      s.table = mode == PAGING_32 ? e & 0xfffff000u : e & PTE_ADDR;
      continue;
    }

    u64 mask = (1ull << shift) - 1;
    u64 base = mode == PAGING_32 ? (large ? (e & 0xffc00000u) | ((e & 0x1fe000u) << 19) : e & 0xfffff000u) : e & PTE_ADDR & ~mask;
    *out = (struct x86_walk){.gpa = base | (lin & mask), .page_bits = (u8)shift, .writable = s.writable, .user = s.user, .nx = s.nx,
                             .global = (e & PTE_G) && (c->cr4 & CR4_PGE), .dirty = (e & PTE_D) != 0, .pkey = (e >> 59) & 15};
    unsigned pk, need = acc == ACC_READ ? PERM_R : acc == ACC_EXEC ? PERM_X : PERM_W;
    if (!(x86_page_perms(c, out, rights, &pk) & need)) return page_fault(c, lin, err | PF_P | (pk & need ? PF_PK : 0));
    bool write = acc == ACC_WRITE || acc == ACC_RMW;
    *again = set_ad && !set_accessed_dirty(c, &used[first], &used[level], f->entry_size, write);
    if (set_ad && !*again) structures_note(c, lin, first, level, states);
    if (write) out->dirty = true;
    return X86_OK;
  }
}

static int walk_page(struct x86_vcpu *c, u64 lin, enum x86_access acc, struct x86_rights rights, bool set_ad, struct x86_walk *out) {
  if (c->mmu.paging == PAGING_NONE) {
    *out = (struct x86_walk){.gpa = lin & 0xffffffffull, .page_bits = 30, .writable = true, .user = true, .dirty = true};
    return X86_OK;
  }
  struct walk_state start;
  unsigned first = set_ad ? structures_find(c, lin, &start) : 0;
  bool again;
  int r;
  if (first && !walk_once(c, lin, acc, rights, set_ad, first, &start, out, &again) && !again) return X86_OK;
  do r = walk_once(c, lin, acc, rights, set_ad, 0, NULL, out, &again);
  while (again);
  if (r && first) structures_drop(c, lin);
  return r;
}

int x86_walk_page(struct x86_vcpu *c, u64 lin, enum x86_access acc, bool user, bool implicit, bool set_ad, struct x86_walk *out) {
  bool smap = !user && (c->cr4 & CR4_SMAP) && (implicit || !(c->rflags & FL_AC));
  return walk_page(c, lin, acc, (struct x86_rights){.user = user, .smap = smap}, set_ad, out);
}

int x86_mmu_load_pdptrs(struct x86_vcpu *c, u64 cr3) {
  u64 pdpte[4];
  vcpu_stat_inc(&c->core, pdpte_loads);
  for (unsigned n = 0; n < 4; n++) {
    const struct memslot *slot;
    u64 *host = entry_host(c, (cr3 & 0xffffffe0u) + 8 * n, &slot);
    pdpte[n] = host ? __atomic_load_n(host, __ATOMIC_RELAXED) : 0;
    /* 4.4.1: a present PDPTE with a reserved bit (1, 2, 5-8, above MAXPHYADDR) makes the instruction fault. */
    if ((pdpte[n] & PTE_P) && (pdpte[n] & (0x1e6 | 0xfff0000000000000ull | c->mmu.rsvd_high))) return x86_gp0(c);
  }
  for (unsigned n = 0; n < 4; n++) c->pdptr[n] = pdpte[n];
  return X86_OK;
}

/* Neither data nor accessed bits are stored: the instruction comes again when the client has harvested. */
static int ring_full(struct x86_vcpu *c) {
  c->core.run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
  return X86_EXIT;
}

/* ---- pages of devices ---- */

static struct x86_device_page *device_page(struct x86_vcpu *c, u64 lin) { return &c->mmu.devices[(lin >> PAGE_SHIFT) % X86_DEVICE_PAGES]; }

static bool is_device(struct x86_vcpu *c, u64 lin, bool write, unsigned table, gpa_t *gpa) {
  const struct x86_device_page *d = device_page(c, lin);
  if (d->epoch != c->mmu.structures_epoch || d->lin != (lin & PAGE_MASK) || d->table != table || !(d->perms & (write ? PERM_W : PERM_R))) return false;
  *gpa = d->gpa | (lin & ~PAGE_MASK);
  return true;
}

/* After a walk that set the accessed bit, and the dirty bit where w says so.  A page that obeys a protection key is walked to each time. */
static void note_device(struct x86_vcpu *c, u64 lin, const struct x86_walk *w, unsigned table) {
  unsigned pk, perms = x86_page_perms(c, w, x86_rights_of(table), &pk);
  if (obeys_key(c, w)) return;
  if (!w->dirty) perms &= ~PERM_W;
  *device_page(c, lin) = (struct x86_device_page){lin & PAGE_MASK, c->mmu.structures_epoch, w->gpa & PAGE_MASK, (u8)table, (u8)perms};
}

int x86_translate(struct x86_vcpu *c, u64 lin, enum x86_access acc, unsigned table, struct x86_xlat *x) {
  bool write = acc == ACC_WRITE || acc == ACC_RMW;
  unsigned n = table * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1));
  struct x86_tlb_entry *e = &c->mmu.tables[n];
  u64 tag = write ? e->write : acc == ACC_EXEC ? e->exec : e->read;
  if (tag == (lin & PAGE_MASK)) {
    *x = (struct x86_xlat){.host = x86_tlb_host(e, lin), .gpa = c->mmu.meta[n].gpa | (lin & ~PAGE_MASK)};
    return X86_OK;
  }

  if (vcpu_ring_hard_full(&c->core)) return ring_full(c);
  *x = (struct x86_xlat){0};
  if (acc != ACC_EXEC && is_device(c, lin, write, table, &x->gpa)) return X86_OK;
  struct x86_walk w;
  struct x86_rights rights = x86_rights_of(table);
  int r = walk_page(c, lin, acc, rights, true, &w);
  if (r) return r;
  x->gpa = w.gpa;
  gfn_t gfn = w.gpa >> PAGE_SHIFT;
  const struct memslot *slot = x86_memslot(c, gfn);
  if (!slot) {
    note_device(c, lin, &w, table);
    return X86_OK;
  }
  hva_t host = memslot_hva(slot, gfn);
  if (write && (slot->flags & KVM_MEM_READONLY)) {
    x->rom = (const u8 *)(uintptr_t)(host + (w.gpa & (PAGE_SIZE - 1)));
    return X86_OK;
  }

  unsigned pk, perms = x86_page_perms(c, &w, rights, &pk);
  x->code = x86_page_has_code(c->core.vm, (const void *)(uintptr_t)host);
  bool logged = slot->flags & KVM_MEM_LOG_DIRTY_PAGES;
  if (write && logged) mark_page_dirty(&c->core, slot, gfn);
  /* A page may be written the fast way only when nothing has to be noticed about it: guest dirty bit set, no code, logged already. */
  if (!w.dirty || x->code || (slot->flags & KVM_MEM_READONLY) || (logged && !write)) perms &= ~PERM_W;
  if (w.page_bits > PAGE_SHIFT) x86_tlb_large(c, lin);
  struct x86_tlb_meta meta = {.gpa = w.gpa & PAGE_MASK, .global = w.global, .key = obeys_key(c, &w) ? 1 + w.pkey : 0};
  x86_tlb_fill(c, lin, table, &meta, host, perms);
  x->host = (u8 *)(uintptr_t)(host + (w.gpa & (PAGE_SIZE - 1)));
  return X86_OK;
}
