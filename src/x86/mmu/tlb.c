/* The software TLB: filling, choosing the table by rights, flushing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "core/stats.h"
#include "x86/cpuid/cpuid.h"
#include "x86/mmu/walk.h"
#include "x86/x86.h"

#define TABLE_ENTRIES (TLB_TABLES * X86_TLB_SIZE)

static void entry_clear(struct x86_mmu *m, unsigned n) {
  struct x86_tlb_entry *e = &m->tables[n];
  e->read = e->write = e->exec = x86_tlb_none(n);
}

static void no_large(struct x86_mmu *m) {
  for (unsigned n = 0; n < 2; n++) m->large[n].start = ~0ull, m->large[n].end = 0;
}

int x86_mmu_create(struct x86_vcpu *c) {
  c->mmu.meta = calloc(TLB_COUNT * X86_TLB_SIZE, sizeof(struct x86_tlb_meta));
  c->mmu.log = calloc(X86_TLB_LOG, sizeof(*c->mmu.log));
  if (!c->mmu.meta || !c->mmu.log) {
    x86_mmu_destroy(c);
    return -ENOMEM;
  }
  for (unsigned n = 0; n < TABLE_ENTRIES; n++) entry_clear(&c->mmu, n);
  no_large(&c->mmu);
  c->tlb = c->mmu.tables;
  return 0;
}

void x86_mmu_destroy(struct x86_vcpu *c) {
  free(c->mmu.meta);
  free(c->mmu.log);
  c->mmu.meta = NULL;
  c->mmu.log = NULL;
}

void x86_tlb_fill(struct x86_vcpu *c, u64 lin, unsigned table, gpa_t gpa, bool global, hva_t host, unsigned perms) {
  unsigned n = table * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1));
  u64 page = lin & PAGE_MASK, none = x86_tlb_none(n);
  c->mmu.tables[n] = (struct x86_tlb_entry){
      .read = perms & PERM_R ? page : none,
      .write = perms & PERM_W ? page : none,
      .exec = perms & PERM_X ? page : none,
      .delta = host - page,
  };
  c->mmu.meta[n] = (struct x86_tlb_meta){.gpa = gpa, .global = global};
  if (c->mmu.logged < X86_TLB_LOG) c->mmu.log[c->mmu.logged] = (u16)n;
  c->mmu.logged++;
  vcpu_stat_inc(&c->core, tlb_fills);
}

/* ---- generations of code addresses ---- */

static unsigned current_pcid(const struct x86_vcpu *c) { return c->cr4 & CR4_PCIDE ? (unsigned)c->cr3 & 0xfff : 0; }

static void new_user(struct x86_vcpu *c) {
  struct x86_generations *g = &c->mmu.gen;
  unsigned pcid = current_pcid(c), slot = pcid % X86_PCID_SLOTS;
  g->now[1] = ++g->last;
  g->known[slot].user = g->now[1];
  g->known[slot].pcid = (u16)pcid;
}
static void new_super(struct x86_generations *g) {
  g->now[0] = ++g->last;
  g->super_local = false;
}

void x86_mmu_forget_pcids(struct x86_vcpu *c) {
  for (unsigned n = 0; n < X86_PCID_SLOTS; n++) c->mmu.gen.known[n].user = 0;
}
void x86_mmu_forget_pcid(struct x86_vcpu *c, unsigned pcid) {
  struct x86_generations *g = &c->mmu.gen;
  if (g->known[pcid % X86_PCID_SLOTS].pcid == pcid) g->known[pcid % X86_PCID_SLOTS].user = 0;
}

static unsigned executed_bit(u64 lin) { return (unsigned)((lin >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> (64 - X86_EXECUTED_BITS)); }

void x86_mmu_executed(struct x86_vcpu *c, u64 lin) {
  struct x86_generations *g = &c->mmu.gen;
  unsigned bit = executed_bit(lin), n = c->mmu.right * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1));
  g->executed[c->cpl == 3][bit / 64] |= BIT(bit % 64);
  bool global = c->mmu.tables[n].exec == (lin & PAGE_MASK) && c->mmu.meta[n].global;
  if (c->cpl != 3 && !global) g->super_local = true;
}

static void renew(struct x86_vcpu *c, bool globals) {
  struct x86_generations *g = &c->mmu.gen;
  if (globals) {
    x86_mmu_forget_pcids(c);
    memset(g->executed, 0, sizeof(g->executed));
  }
  if (globals || g->super_local) new_super(g);
  new_user(c);
}

/* A page that a large one covers may have been found under another address of it: x86_mmu_flush_page() drops everything there. */
static void renew_for_page(struct x86_vcpu *c, u64 lin) {
  struct x86_generations *g = &c->mmu.gen;
  unsigned bit = executed_bit(lin);
  if (g->executed[0][bit / 64] >> (bit % 64) & 1) new_super(g);
  if (!(g->executed[1][bit / 64] >> (bit % 64) & 1)) return;
  x86_mmu_forget_pcids(c);
  new_user(c);
}

/* ---- flushes ---- */

static void flush_entries(struct x86_vcpu *c, bool globals) {
  struct x86_mmu *m = &c->mmu;
  unsigned kept = 0;
  vcpu_stat_inc(&c->core, tlb_flush);
  if (m->logged > X86_TLB_LOG) {
    for (unsigned n = 0; n < TLB_COUNT * X86_TLB_SIZE; n++) entry_clear(m, n);
  } else {
    for (unsigned k = 0; k < m->logged; k++) {
      unsigned n = m->log[k];
      if (!globals && m->meta[n].global) m->log[kept++] = (u16)n;
      else entry_clear(m, n);
    }
  }
  m->logged = kept;
  if (!kept) no_large(m);
}

void x86_mmu_flush_all(struct x86_vcpu *c, bool globals) {
  flush_entries(c, globals);
  renew(c, globals);
}

/* Write tags with this guest-physical page. */
void x86_mmu_protect_page(struct x86_vcpu *c, hva_t page) {
  struct x86_mmu *m = &c->mmu;
  if (m->logged > X86_TLB_LOG) {
    flush_entries(c, true);
    return;
  }
  for (unsigned k = 0; k < m->logged; k++) {
    struct x86_tlb_entry *e = &m->tables[m->log[k]];
    if (e->write + e->delta == page) e->write = x86_tlb_none(m->log[k]);
  }
}

void x86_mmu_flush_page(struct x86_vcpu *c, u64 lin) {
  struct x86_mmu *m = &c->mmu;
  if (lin >= m->large[lin >> 63].start && lin <= m->large[lin >> 63].end) { /* INVLPG of any address in a large page drops all of it */
    x86_mmu_flush_all(c, true);
    return;
  }
  for (unsigned t = 0; t < TLB_COUNT; t++) {
    unsigned n = t * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1));
    const struct x86_tlb_entry *e = &m->tables[n];
    u64 page = lin & PAGE_MASK;
    if (e->read == page || e->write == page || e->exec == page) entry_clear(m, n);
  }
  renew_for_page(c, lin);
}

static enum x86_paging paging_of(const struct x86_vcpu *c) {
  if (!(c->cr0 & CR0_PG)) return PAGING_NONE;
  if (!(c->cr4 & CR4_PAE)) return PAGING_32;
  if (!(c->efer & EFER_LMA)) return PAGING_PAE;
  return c->cr4 & CR4_LA57 ? PAGING_5LEVEL : PAGING_4LEVEL;
}

void x86_mmu_mode_changed(struct x86_vcpu *c) {
  unsigned width = c->cpuid->maxphyaddr;
  c->mmu.paging = paging_of(c);
  c->mmu.rsvd_high = width >= 52 ? 0 : 0x000fffffffffffffull & ~((1ull << width) - 1);
  x86_mmu_flush_all(c, true);
  x86_mmu_rights_changed(c);
}

/* Everything that every access must look at goes through the slow table: #AC checks (SDM Vol. 3A 6.15, interrupt 17) and data breakpoints. */
static bool slow_table(const struct x86_vcpu *c) {
  u64 dr7 = c->guest_debug & KVM_GUESTDBG_USE_HW_BP ? c->guest_debug_dr[7] : c->dr[7];
  return x86_alignment_checked(c) || (dr7 & 0xff);
}

void x86_mmu_rights_changed(struct x86_vcpu *c) {
  bool smap = (c->cr4 & CR4_SMAP) && !(c->rflags & FL_AC);
  c->mmu.right = c->cpl == 3 ? TLB_USER : smap ? TLB_SUPER_SMAP : TLB_SUPER;
  c->tlb = &c->mmu.tables[(slow_table(c) ? TLB_SLOW : c->mmu.right) * X86_TLB_SIZE];
}

void x86_mmu_cr3_written(struct x86_vcpu *c, bool flush) {
  struct x86_generations *g = &c->mmu.gen;
  unsigned pcid = current_pcid(c), slot = pcid % X86_PCID_SLOTS;
  /* Translations of data are not tagged with a PCID: the no-flush form may drop more than asked (SDM Vol. 3A 4.10.4.1). */
  flush_entries(c, false);
  bool back = !flush && g->known[slot].user && g->known[slot].pcid == pcid;
  u64 user = g->known[slot].user;
  if (g->super_local) new_super(g);
  if (back) g->now[1] = user;
  else new_user(c);
}
