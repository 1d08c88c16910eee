/* The software TLB: linear page -> host address, one table per set of access rights. */
#ifndef X86_MMU_TLB_H
#define X86_MMU_TLB_H

#include "base/types.h"

#define X86_TLB_BITS 12
#define X86_TLB_SIZE (1u << X86_TLB_BITS)

/* A tag holds the linear page address where that access may go the fast way (RAM, rights checked, accessed and dirty bits set, no code on
 * a writable page, dirty logging done), else x86_tlb_none().  Linear plus `delta` is the host address. */
struct x86_tlb_entry {
  u64 read, write, exec;
  u64 delta;
};

/* The tag of an empty entry at this index: a page that belongs to another one, so that neither an address that leads here nor the one after a page's
 * end equals it, and their exclusive or is not below a page's size either (which is how translated code compares). */
static inline u64 x86_tlb_none(unsigned index) { return 1ull << 63 | (u64)((index ^ X86_TLB_SIZE / 2) & (X86_TLB_SIZE - 1)) << 12; }

static inline void *x86_tlb_host(const struct x86_tlb_entry *e, u64 lin) { return (void *)(uintptr_t)(e->delta + lin); }

/* Access rights differ by these; x86_vcpu.tlb points at the current table. */
enum x86_tlb_index {
  TLB_SUPER,      /* supervisor access, SMAP not in force */
  TLB_SUPER_SMAP, /* supervisor access, SMAP in force (CR4.SMAP and EFLAGS.AC = 0) */
  TLB_USER,       /* CPL 3 */
  TLB_COUNT,
  TLB_SLOW = TLB_COUNT, /* a table that never hits: alignment checks or data breakpoints are on */
  TLB_TABLES
};

/* What the fast path does not need, by the same index. */
struct x86_tlb_meta {
  gpa_t gpa; /* of the page */
  bool global;
  u8 key; /* 1 + the protection key that data accesses obey; 0: none */
};

#define X86_TLB_LOG 4096

/* Table slots that were filled since the last flush, so that a flush touches only them. */
struct x86_tlb_log {
  u16 *slot;
  unsigned n; /* > X86_TLB_LOG: it overflowed */
};

/* What was known of an address space that CR3 has left, until its PCID comes back. */
#define X86_TLB_ASIDE 128
struct x86_tlb_aside {
  u16 pcid;
  u16 n;
  struct {
    struct x86_tlb_entry entry;
    struct x86_tlb_meta meta;
    u16 slot;
  } kept[X86_TLB_ASIDE];
};

/* What a linear address was found to lead to, as code, is remembered with a generation (block.c, translate/); it holds while that generation is in force.
 * CPL 3 and the other levels have one each: supervisor code is usually global and survives a new CR3.  User code that comes back with its PCID gets its
 * generation back. */
#define X86_PCID_SLOTS     16
#define X86_EXECUTED_BITS  15 /* log2 of the pages a filter tells apart */
struct x86_generations {
  u64 last;             /* given out */
  u64 now[2];           /* [CPL == 3] */
  struct {
    u64 user;           /* 0: none */
    u16 pcid;
  } known[X86_PCID_SLOTS];
  bool super_local;     /* supervisor code was found on a page that is not global */
  u64 executed[2][2][(1u << X86_EXECUTED_BITS) / 64]; /* [CPL == 3][address bit 63] pages on which code was found, hashed: INVLPG of any other matters to no code */
};

/* Paging-structure caches (SDM Vol. 3A 4.10.3): where the walk of a linear address may begin, with the rights of the entries above.  PDE says which table
 * maps the pages of 2 MiB (4 MiB in 32-bit paging), PDPTE which directory those of 1 GiB, so a page of 2 MiB is one entry away, too.  They are of the
 * current address space alone. */
enum x86_structure { STRUCTURE_PDE, STRUCTURE_PDPTE, STRUCTURES };
#define X86_STRUCTURE_BITS 6
struct x86_structure_entry {
  u64 lin;   /* shifted, so that all its addresses are one */
  u64 epoch; /* counts if it is x86_mmu.structures_epoch */
  gpa_t table;
  bool writable, user, nx;
};

/* Pages of devices, which the tables above do not hold: to know where they are spares an access the walk.  They count under the same epoch. */
#define X86_DEVICE_PAGES 8
struct x86_device_page {
  u64 lin;
  u64 epoch;
  gpa_t gpa;
  u8 table, perms; /* enum x86_tlb_index, PERM_* */
};

/* Filters by hash: host pages that translations let be written; regions of 1 GiB of linear addresses in which large guest pages were seen. */
#define X86_WRITTEN_BITS 15
#define X86_LARGE_BITS   12

struct x86_mmu {
  struct x86_tlb_entry tables[TLB_TABLES * X86_TLB_SIZE]; /* within the vCPU: translated code finds it by a constant offset */
  struct x86_tlb_meta *meta;      /* TLB_COUNT * X86_TLB_SIZE */
  struct x86_tlb_log log[2];      /* [global] */
  struct x86_tlb_aside *aside;    /* X86_PCID_SLOTS, by PCID */
  u16 pcid;                       /* whose entries are in the tables */
  u64 written[(1u << X86_WRITTEN_BITS) / 64]; /* since all was flushed: x86_mmu_protect_page() of any other page has nothing to look for */
  u64 large[(1u << X86_LARGE_BITS) / 64];     /* INVLPG of any address there flushes all */
  u32 keys;                       /* bits by meta.key: those that entries may have, put aside ones included */
  struct x86_generations gen;
  struct x86_structure_entry structures[STRUCTURES][1u << X86_STRUCTURE_BITS];
  struct x86_device_page devices[X86_DEVICE_PAGES];
  u64 structures_epoch;           /* counts up with whatever invalidates any of them; never 0 */
  u8 right;                       /* enum x86_tlb_index that TLB_SLOW stands for */
  u8 paging;                      /* enum x86_paging, kept by x86_mmu_mode_changed() */
  u64 rsvd_high;                  /* physical-address bits beyond MAXPHYADDR, up to bit 51 */
};

#endif
