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

int x86_mmu_create(struct x86_vcpu *c) {
  c->mmu.meta = calloc(TLB_COUNT * X86_TLB_SIZE, sizeof(struct x86_tlb_meta));
  c->mmu.log = calloc(X86_TLB_LOG, sizeof(*c->mmu.log));
  if (!c->mmu.meta || !c->mmu.log) {
    x86_mmu_destroy(c);
    return -ENOMEM;
  }
  for (unsigned n = 0; n < TABLE_ENTRIES; n++) entry_clear(&c->mmu, n);
  c->mmu.large_start = ~0ull;
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
      .host = host,
  };
  c->mmu.meta[n] = (struct x86_tlb_meta){.gpa = gpa, .global = global};
  if (c->mmu.logged < X86_TLB_LOG) c->mmu.log[c->mmu.logged] = (u16)n;
  c->mmu.logged++;
  vcpu_stat_inc(&c->core, tlb_fills);
}

void x86_mmu_flush_all(struct x86_vcpu *c, bool globals) {
  struct x86_mmu *m = &c->mmu;
  unsigned kept = 0;
  c->code_gen++;
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
  if (!kept) m->large_start = ~0ull, m->large_end = 0;
}

void x86_mmu_flush_page(struct x86_vcpu *c, u64 lin) {
  struct x86_mmu *m = &c->mmu;
  if (lin >= m->large_start && lin <= m->large_end) { /* INVLPG of any address in a large page drops all of it */
    x86_mmu_flush_all(c, true);
    return;
  }
  for (unsigned t = 0; t < TLB_COUNT; t++) {
    unsigned n = t * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1));
    const struct x86_tlb_entry *e = &m->tables[n];
    u64 page = lin & PAGE_MASK;
    if (e->read == page || e->write == page || e->exec == page) entry_clear(m, n);
  }
  c->code_gen++;
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
  /* Translations are not tagged with a PCID: the no-flush form may drop more than asked (SDM Vol. 3A 4.10.4.1). */
  x86_mmu_flush_all(c, false);
}
