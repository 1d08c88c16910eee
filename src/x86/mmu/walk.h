/* Private to mmu/: paging formats, rights, and translation to host memory. */
#ifndef X86_MMU_WALK_H
#define X86_MMU_WALK_H

#include "core/memslot.h"
#include "x86/mmu/access.h"

enum x86_paging { PAGING_NONE, PAGING_32, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL };

/* The memory slots a vCPU sees: address space 1 in SMM where the VM has it. */
static inline const struct memslot *x86_memslot(struct x86_vcpu *c, gfn_t gfn) {
  return memslot_find(vm_memslots(c->core.vm, c->smm ? 1 : 0), gfn);
}

/* Rights of one access. */
struct x86_rights {
  bool user;     /* CPL-3 access */
  bool smap;     /* supervisor access for which SMAP is in force */
};
static inline struct x86_rights x86_rights_of(unsigned table) {
  return (struct x86_rights){.user = table == TLB_USER, .smap = table == TLB_SUPER_SMAP};
}

enum { PERM_R = 1, PERM_W = 2, PERM_X = 4 };
/* What the translation `w` allows with these rights: PERM_* bits; *pk says which of R, W a protection key took away. */
unsigned x86_page_perms(struct x86_vcpu *c, const struct x86_walk *w, struct x86_rights rights, unsigned *pk);

/* One page of an access, translated. */
struct x86_xlat {
  u8 *host;  /* NULL: not RAM (a device, or a write to a read-only slot) */
  const u8 *rom; /* write to a read-only slot: what a read would find; else NULL */
  gpa_t gpa;
  bool code; /* written page has decoded blocks */
};
/* lin .. page end; rights by TLB table index.  Fills the TLB, marks pages dirty.  X86_OK or X86_FAULT. */
int x86_translate(struct x86_vcpu *c, u64 lin, enum x86_access acc, unsigned table, struct x86_xlat *x);
void x86_tlb_fill(struct x86_vcpu *c, u64 lin, unsigned table, const struct x86_tlb_meta *meta, hva_t host, unsigned perms);

/* Device access of 1..8 bytes (io.c). */
int x86_io_read(struct x86_vcpu *c, gpa_t gpa, void *data, unsigned len);
void x86_io_write(struct x86_vcpu *c, gpa_t gpa, const void *data, unsigned len);

#endif
