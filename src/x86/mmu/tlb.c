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

static unsigned hash(u64 key, unsigned bits) { return (unsigned)(key * 0x9e3779b97f4a7c15ull >> (64 - bits)); }

/* Large pages have at most 1 GiB. */
void x86_tlb_large(struct x86_vcpu *c, u64 lin) {
  unsigned n = hash(lin >> 30, X86_LARGE_BITS);
  c->mmu.large[n / 64] |= BIT(n % 64);
}
static bool may_be_large(const struct x86_mmu *m, u64 lin) {
  unsigned n = hash(lin >> 30, X86_LARGE_BITS);
  return m->large[n / 64] >> (n % 64) & 1;
}

int x86_mmu_create(struct x86_vcpu *c) {
  struct x86_mmu *m = &c->mmu;
  m->meta = calloc(TLB_COUNT * X86_TLB_SIZE, sizeof(struct x86_tlb_meta));
  m->aside = calloc(X86_PCID_SLOTS, sizeof(*m->aside));
  for (unsigned n = 0; n < 2; n++) m->log[n].slot = calloc(X86_TLB_LOG, sizeof(u16));
  if (!m->meta || !m->aside || !m->log[0].slot || !m->log[1].slot) {
    x86_mmu_destroy(c);
    return -ENOMEM;
  }
  for (unsigned n = 0; n < TABLE_ENTRIES; n++) entry_clear(m, n);
  m->structures_epoch = 1;
  c->tlb = m->tables;
  return 0;
}

void x86_mmu_destroy(struct x86_vcpu *c) {
  struct x86_mmu *m = &c->mmu;
  free(m->meta);
  free(m->aside);
  m->meta = NULL;
  m->aside = NULL;
  for (unsigned n = 0; n < 2; n++) {
    free(m->log[n].slot);
    m->log[n].slot = NULL;
  }
}

static void note(struct x86_tlb_log *l, unsigned slot) {
  if (l->n < X86_TLB_LOG) l->slot[l->n] = (u16)slot;
  l->n++;
}

void x86_tlb_fill(struct x86_vcpu *c, u64 lin, unsigned table, const struct x86_tlb_meta *meta, hva_t host, unsigned perms) {
  unsigned n = table * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1));
  u64 page = lin & PAGE_MASK, none = x86_tlb_none(n);
  c->mmu.tables[n] = (struct x86_tlb_entry){
      .read = perms & PERM_R ? page : none,
      .write = perms & PERM_W ? page : none,
      .exec = perms & PERM_X ? page : none,
      .delta = host - page,
  };
  c->mmu.meta[n] = *meta;
  c->mmu.keys |= 1u << meta->key;
  note(&c->mmu.log[meta->global], n);
  unsigned bit = hash(host >> PAGE_SHIFT, X86_WRITTEN_BITS);
  if (perms & PERM_W) c->mmu.written[bit / 64] |= BIT(bit % 64);
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

static void forget_users(struct x86_generations *g) {
  for (unsigned n = 0; n < X86_PCID_SLOTS; n++) g->known[n].user = 0;
}

void x86_mmu_forget_pcids(struct x86_vcpu *c) {
  forget_users(&c->mmu.gen);
  for (unsigned n = 0; n < X86_PCID_SLOTS; n++) c->mmu.aside[n].n = 0;
}
void x86_mmu_forget_pcid(struct x86_vcpu *c, unsigned pcid) {
  struct x86_generations *g = &c->mmu.gen;
  unsigned slot = pcid % X86_PCID_SLOTS;
  if (g->known[slot].pcid == pcid) g->known[slot].user = 0;
  if (c->mmu.aside[slot].pcid == pcid) c->mmu.aside[slot].n = 0;
}

/* Where the filters tell of the page.  Kernel and user addresses have their own: kernels invalidate the pages of programs all the time. */
static u64 *executed_word(struct x86_generations *g, bool user, u64 lin, u64 *bit) {
  unsigned n = hash(lin >> PAGE_SHIFT, X86_EXECUTED_BITS);
  *bit = BIT(n % 64);
  return &g->executed[user][lin >> 63][n / 64];
}
static bool was_executed(struct x86_generations *g, bool user, u64 lin) {
  u64 bit;
  return *executed_word(g, user, lin, &bit) & bit;
}

void x86_mmu_executed(struct x86_vcpu *c, u64 lin) {
  struct x86_generations *g = &c->mmu.gen;
  unsigned n = c->mmu.right * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1));
  u64 bit, *word = executed_word(g, c->cpl == 3, lin, &bit);
  *word |= bit;
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
  if (was_executed(g, false, lin)) new_super(g);
  if (!was_executed(g, true, lin)) return;
  forget_users(g); /* it may be global */
  new_user(c);
}

/* ---- flushes ---- */

/* The global entries, or the others. */
static void flush_kind(struct x86_mmu *m, bool global) {
  struct x86_tlb_log *l = &m->log[global];
  if (l->n > X86_TLB_LOG) {
    for (unsigned n = 0; n < TLB_COUNT * X86_TLB_SIZE; n++)
      if (m->meta[n].global == global) entry_clear(m, n);
  } else {
    for (unsigned k = 0; k < l->n; k++)
      if (m->meta[l->slot[k]].global == global) entry_clear(m, l->slot[k]);
  }
  l->n = 0;
}

static void flush_entries(struct x86_vcpu *c, bool globals) {
  struct x86_mmu *m = &c->mmu;
  vcpu_stat_inc(&c->core, tlb_flush);
  m->pcid = (u16)current_pcid(c);
  m->structures_epoch++;
  flush_kind(m, false);
  if (!globals) return;
  flush_kind(m, true);
  for (unsigned n = 0; n < X86_PCID_SLOTS; n++) m->aside[n].n = 0;
  m->keys = 0;
  memset(m->large, 0, sizeof(m->large));
  memset(m->written, 0, sizeof(m->written));
}

void x86_mmu_flush_all(struct x86_vcpu *c, bool globals) {
  flush_entries(c, globals);
  renew(c, globals);
}

static void protect(struct x86_tlb_entry *e, hva_t page, unsigned slot) {
  if (e->write + e->delta == page) e->write = x86_tlb_none(slot);
}

/* Write tags with this page. */
void x86_mmu_protect_page(struct x86_vcpu *c, hva_t page) {
  struct x86_mmu *m = &c->mmu;
  unsigned bit = hash(page >> PAGE_SHIFT, X86_WRITTEN_BITS);
  if (!(m->written[bit / 64] >> (bit % 64) & 1)) return;
  if (m->log[0].n > X86_TLB_LOG || m->log[1].n > X86_TLB_LOG) {
    flush_entries(c, true);
    return;
  }
  for (unsigned n = 0; n < 2; n++)
    for (unsigned k = 0; k < m->log[n].n; k++) protect(&m->tables[m->log[n].slot[k]], page, m->log[n].slot[k]);
  for (unsigned n = 0; n < X86_PCID_SLOTS; n++)
    for (unsigned k = 0; k < m->aside[n].n; k++) protect(&m->aside[n].kept[k].entry, page, m->aside[n].kept[k].slot);
}

/* ---- protection keys ---- */

/* Bits by meta.key of those whose rights are other ones now. */
static u32 keys_between(u32 old, u32 new) {
  u32 keys = 0;
  for (unsigned key = 0; key < 16; key++)
    if ((old ^ new) >> 2 * key & 3) keys |= 2u << key;
  return keys;
}

/* Fetches obey no key: what is known of code stays. */
void x86_mmu_pkru_written(struct x86_vcpu *c, u32 old) {
  struct x86_mmu *m = &c->mmu;
  u32 keys = keys_between(old, c->pkru) & m->keys;
  if (!keys) return;
  if (m->log[0].n > X86_TLB_LOG || m->log[1].n > X86_TLB_LOG) {
    flush_entries(c, true);
    return;
  }
  for (unsigned n = 0; n < 2; n++)
    for (unsigned k = 0; k < m->log[n].n; k++)
      if (keys >> m->meta[m->log[n].slot[k]].key & 1) entry_clear(m, m->log[n].slot[k]);
  for (unsigned n = 0; n < X86_PCID_SLOTS; n++)
    for (unsigned k = 0; k < m->aside[n].n; k++) {
      u64 none = x86_tlb_none(m->aside[n].kept[k].slot);
      if (keys >> m->aside[n].kept[k].meta.key & 1) m->aside[n].kept[k].entry = (struct x86_tlb_entry){none, none, none, 0};
    }
  m->keys &= ~keys;
}

/* ---- entries of other address spaces ---- */

static bool is_empty(const struct x86_tlb_entry *e, unsigned slot) {
  u64 none = x86_tlb_none(slot);
  return e->read == none && e->write == none && e->exec == none;
}

/* Those in the tables that are not global. */
static void put_aside(struct x86_mmu *m) {
  struct x86_tlb_aside *a = &m->aside[m->pcid % X86_PCID_SLOTS];
  struct x86_tlb_log *l = &m->log[false];
  a->pcid = m->pcid;
  a->n = 0;
  if (l->n > X86_TLB_LOG) return;
  for (unsigned k = l->n; k-- > 0 && a->n < X86_TLB_ASIDE;) { /* the newest first */
    unsigned slot = l->slot[k];
    if (m->meta[slot].global || is_empty(&m->tables[slot], slot)) continue;
    a->kept[a->n].entry = m->tables[slot];
    a->kept[a->n].meta = m->meta[slot];
    a->kept[a->n++].slot = (u16)slot;
    entry_clear(m, slot);
  }
}

static void bring_back(struct x86_mmu *m, unsigned pcid) {
  struct x86_tlb_aside *a = &m->aside[pcid % X86_PCID_SLOTS];
  if (a->pcid != pcid) return;
  for (unsigned k = a->n; k-- > 0;) {
    unsigned slot = a->kept[k].slot;
    m->tables[slot] = a->kept[k].entry;
    m->meta[slot] = a->kept[k].meta;
    note(&m->log[false], slot);
  }
  a->n = 0;
}

void x86_mmu_flush_page(struct x86_vcpu *c, u64 lin) {
  struct x86_mmu *m = &c->mmu;
  m->structures_epoch++; /* SDM Vol. 3A 4.10.4.1: INVLPG invalidates all of them, whatever the address */
  if (may_be_large(m, lin)) { /* INVLPG of any address in a large page drops all of it */
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

/* SDM Vol. 3A 4.10.4.1: bit 63 keeps what is cached of the new PCID; what is cached of others may stay in any case. */
void x86_mmu_cr3_written(struct x86_vcpu *c, bool flush) {
  struct x86_mmu *m = &c->mmu;
  struct x86_generations *g = &m->gen;
  unsigned pcid = current_pcid(c), slot = pcid % X86_PCID_SLOTS;
  if (flush) x86_mmu_forget_pcid(c, pcid);
  if (pcid == m->pcid && !flush) return;
  if (pcid != m->pcid) put_aside(m);
  flush_entries(c, false);
  bring_back(m, pcid);
  u64 user = g->known[slot].pcid == pcid ? g->known[slot].user : 0;
  if (g->super_local) new_super(g);
  if (user) g->now[1] = user;
  else new_user(c);
}
