/* The software TLB: linear page -> host address, one table per set of access rights. */
#ifndef X86_MMU_TLB_H
#define X86_MMU_TLB_H

#include "base/types.h"

#define X86_TLB_BITS 10
#define X86_TLB_SIZE (1u << X86_TLB_BITS)
#define X86_TLB_NONE (~0ull) /* equals no page address */

/* A tag holds the linear page address where that access may go the fast way (RAM, rights checked, accessed and dirty bits set, no code on
 * a writable page, dirty logging done), else X86_TLB_NONE.  host address = linear address + addend. */
struct x86_tlb_entry {
  u64 read, write, exec;
  u64 addend;
};

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
};

#define X86_TLB_LOG 2048

struct x86_mmu {
  struct x86_tlb_entry *tables;   /* TLB_TABLES * X86_TLB_SIZE */
  struct x86_tlb_meta *meta;      /* TLB_COUNT * X86_TLB_SIZE */
  u16 *log;                       /* table slots filled since the last flush, so that a flush touches only them */
  unsigned logged;                /* > X86_TLB_LOG: the log overflowed */
  u64 large_start, large_end;     /* linear range in which large guest pages were seen: INVLPG there flushes all */
  u8 right;                       /* enum x86_tlb_index that TLB_SLOW stands for */
  u8 paging;                      /* enum x86_paging, kept by x86_mmu_mode_changed() */
  u64 rsvd_high;                  /* physical-address bits beyond MAXPHYADDR, up to bit 51 */
};

#endif
