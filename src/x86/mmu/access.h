/* The only way to guest memory by linear address: loads, stores, read-modify-write, host pointers.
 *
 * All return enum x86_flow: X86_OK; X86_FAULT (c->fault set: #PF, #GP(0), #SS(0), #AC); X86_EXIT (a device read has to be
 * answered by the client first: the instruction will run again from its start and then find the answer).
 *
 * Device accesses.  Reads of one instruction are remembered in order (c->io.reads); re-execution consumes them, so an instruction may read
 * devices several times.  Writes are posted: they are queued, the instruction completes and commits, and the run loop leaves
 * to the client before the next instruction.  So write memory last, once everything that can fault has been checked.
 */
#ifndef X86_MMU_ACCESS_H
#define X86_MMU_ACCESS_H

#include "x86/vcpu.h"

enum x86_access { ACC_READ, ACC_WRITE, ACC_EXEC, ACC_RMW /* read whose faults are reported as write faults */ };

/* Segment base, limit and type checks: (segment, offset) -> linear address.  #GP(0), or #SS(0) for SS.  Non-64-bit modes only; the inline
 * below handles 64-bit mode and writable segments of 4 GiB. */
int x86_seg_check(struct x86_vcpu *c, unsigned seg, u64 ea, unsigned size, enum x86_access acc, u64 *lin);

static inline int x86_linear(struct x86_vcpu *c, unsigned seg, u64 ea, unsigned size, enum x86_access acc, u64 *lin) {
  if (likely(c->code64)) { /* SDM Vol. 3A 3.4.4: only FS and GS have bases; canonical check happens on a TLB miss */
    *lin = seg >= SEG_FS ? ea + c->seg[seg].base : ea;
    return X86_OK;
  }
  if (likely(c->seg[seg].flat)) {
    *lin = (u32)(c->seg[seg].base + ea);
    return likely((u32)ea <= (u32)(0u - size)) ? X86_OK : x86_seg_check(c, seg, ea, size, acc, lin);
  }
  return x86_seg_check(c, seg, ea, size, acc, lin);
}

/* Slow paths (access.c): TLB miss, page crossing, devices, code pages, dirty logging, alignment checks, data breakpoints.  seg only chooses #SS or #GP for
 * non-canonical addresses.  size 1..64. */
int x86_read_slow(struct x86_vcpu *c, unsigned seg, u64 lin, void *data, unsigned size);
int x86_write_slow(struct x86_vcpu *c, unsigned seg, u64 lin, const void *data, unsigned size);

static inline struct x86_tlb_entry *x86_tlb_slot(struct x86_vcpu *c, u64 lin) {
  return &c->tlb[(lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1)];
}

/* Fixed-size accesses.  A page-crossing access fails the comparison (its last byte is on another page) and goes the slow way. */
#define X86_DEFINE_ACCESS(bits)                                                                                                  \
  GUEST_ACCESS static inline int x86_load##bits(struct x86_vcpu *c, unsigned seg, u64 ea, u##bits *out) {                                     \
    u64 lin;                                                                                                                     \
    int r = x86_linear(c, seg, ea, bits / 8, ACC_READ, &lin);                                                                    \
    if (unlikely(r)) return r;                                                                                                   \
    struct x86_tlb_entry *e = x86_tlb_slot(c, lin);                                                                              \
    if (likely(((lin + bits / 8 - 1) & PAGE_MASK) == e->read)) {                                                                 \
      *out = *(volatile x86_u##bits##_unaligned *)x86_tlb_host(e, lin);                                                  \
      return X86_OK;                                                                                                             \
    }                                                                                                                            \
    return x86_read_slow(c, seg, lin, out, bits / 8);                                                                            \
  }                                                                                                                              \
  GUEST_ACCESS static inline int x86_store##bits(struct x86_vcpu *c, unsigned seg, u64 ea, u##bits v) {                                       \
    u64 lin;                                                                                                                     \
    int r = x86_linear(c, seg, ea, bits / 8, ACC_WRITE, &lin);                                                                   \
    if (unlikely(r)) return r;                                                                                                   \
    struct x86_tlb_entry *e = x86_tlb_slot(c, lin);                                                                              \
    if (likely(((lin + bits / 8 - 1) & PAGE_MASK) == e->write)) {                                                                \
      *(volatile x86_u##bits##_unaligned *)x86_tlb_host(e, lin) = v;                                                     \
      return X86_OK;                                                                                                             \
    }                                                                                                                            \
    return x86_write_slow(c, seg, lin, &v, bits / 8);                                                                            \
  }
typedef u8 x86_u8_unaligned;
typedef u16 x86_u16_unaligned __attribute__((aligned(1), may_alias));
typedef u32 x86_u32_unaligned __attribute__((aligned(1), may_alias));
typedef u64 x86_u64_unaligned __attribute__((aligned(1), may_alias));
X86_DEFINE_ACCESS(8)
X86_DEFINE_ACCESS(16)
X86_DEFINE_ACCESS(32)
X86_DEFINE_ACCESS(64)

/* Guest memory that others may be writing meanwhile: pieces of 8 bytes each in one access. */
GUEST_ACCESS static inline void x86_copy_guest(void *to, const void *from, size_t len) {
  u8 *t = to;
  const u8 *f = from;
  for (; len >= 8; t += 8, f += 8, len -= 8) *(volatile x86_u64_unaligned *)t = *(const volatile x86_u64_unaligned *)f;
  for (; len; t++, f++, len--) *(volatile u8 *)t = *(const volatile u8 *)f;
}
GUEST_ACCESS static inline bool x86_equal_guest(const void *own, const void *guest, size_t len) {
  const u8 *o = own, *g = guest;
  for (; len >= 8; o += 8, g += 8, len -= 8)
    if (*(const x86_u64_unaligned *)o != *(const volatile x86_u64_unaligned *)g) return false;
  for (; len; o++, g++, len--)
    if (*o != *(const volatile u8 *)g) return false;
  return true;
}

/* Whether misaligned operands are #AC (SDM Vol. 3A 6.15, interrupt 17). */
static inline bool x86_alignment_checked(const struct x86_vcpu *c) {
  return (c->cr0 & CR0_AM) && (c->rflags & FL_AC) && c->cpl == 3;
}

/* Any size up to 64 bytes, (segment, offset). */
int x86_read(struct x86_vcpu *c, unsigned seg, u64 ea, void *data, unsigned size);
int x86_write(struct x86_vcpu *c, unsigned seg, u64 ea, const void *data, unsigned size);

/* Read-modify-write.  On X86_OK *host points at `size` bytes (1..64) to be changed in place: guest RAM itself (locked host instructions are then atomic
 * between vCPUs), or a buffer where the operand is a device, spans two pages or its page has code.  Write rights are checked first, faults are write faults.
 * x86_rmw_end() must follow once the operation was done (also when nothing changed: CMPXCHG); it cannot fail. */
int x86_rmw_begin_slow(struct x86_vcpu *c, unsigned seg, u64 lin, unsigned size, bool locked, void **host);
void x86_rmw_end_slow(struct x86_vcpu *c);
/* After a host fault (c->torn.len): a store of which one page was written already is taken back.  false: not now, that page is
 * refused, too. */
bool x86_mmu_untear(struct x86_vcpu *c);

/* A locked operation on RAM will happen: where it crosses a cache line a processor locks the bus (SDM Vol. 3A 9.1.2.3).  All memory is
 * write-back, as KVM's EPT maps it. */
static inline void x86_note_lock(struct x86_vcpu *c, u64 lin, unsigned size) {
  if (likely((lin & 63) + size <= 64) || !c->bus_lock_exits) return;
  c->bus_lock = true;
  c->stop |= X86_STOP_LOCK;
}

static inline int x86_rmw_begin(struct x86_vcpu *c, unsigned seg, u64 ea, unsigned size, bool locked, void **host) {
  u64 lin;
  int r = x86_linear(c, seg, ea, size, ACC_WRITE, &lin);
  if (unlikely(r)) return r;
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  if (likely(((lin + size - 1) & PAGE_MASK) == e->write && e->write == e->read)) {
    *host = x86_tlb_host(e, lin);
    c->rmw.kind = 0;
    if (locked) x86_note_lock(c, lin, size);
    return X86_OK;
  }
  return x86_rmw_begin_slow(c, seg, lin, size, locked, host);
}
static inline void x86_rmw_end(struct x86_vcpu *c) {
  if (unlikely(c->rmw.kind)) x86_rmw_end_slow(c);
}

/* Host pointer for bulk work (string instructions): how many bytes from lin (up to the page's end, at most max) may be accessed directly at *host; 0 if none may
 * (then use the single accesses, which also produce the faults).  acc: ACC_READ or ACC_WRITE.  Valid until the end of the instruction. */
unsigned x86_host_span(struct x86_vcpu *c, u64 lin, unsigned max, enum x86_access acc, void **host);

/* Implicit supervisor accesses (descriptor tables, TSS, IDT): linear address, CPL ignored, SMAP enforced whatever EFLAGS.AC says (SDM Vol. 3A 4.6.1). */
int x86_sys_read(struct x86_vcpu *c, u64 lin, void *data, unsigned size);
int x86_sys_write(struct x86_vcpu *c, u64 lin, const void *data, unsigned size);
/* Access with the rights of CPL `cpl` by linear address (stack pushes of a gate to an inner or outer ring; explicit SMAP rules). */
int x86_read_cpl(struct x86_vcpu *c, u64 lin, void *data, unsigned size, unsigned cpl);
int x86_write_cpl(struct x86_vcpu *c, u64 lin, const void *data, unsigned size, unsigned cpl);
/* Checks that [lin, lin+size) can be written at `cpl`, without writing: for multi-part pushes that must not fault half way. */
int x86_probe_write(struct x86_vcpu *c, u64 lin, unsigned size, unsigned cpl);
/* The same, and the client's memory is there: a store of which no byte may be selected needs it all the same. */
int x86_touch_write(struct x86_vcpu *c, u64 lin, unsigned size, unsigned cpl);

/* --- translations and their invalidation --- */

/* Page walk with error code and A/D updates.  *gpa on success.  X86_FAULT with #PF otherwise.  user: CPL-3 rights; implicit: SMAP ignores AC.
 * set_ad false: no accessed/dirty update and no fault recorded in c->fault beyond the value (KVM_TRANSLATE, debuggers). */
struct x86_walk {
  u64 gpa;
  u8 page_bits;   /* 12, 21, 22 or 30 */
  bool writable, user, nx, dirty, global;
  u8 pkey;
};
int x86_walk_page(struct x86_vcpu *c, u64 lin, enum x86_access acc, bool user, bool implicit, bool set_ad, struct x86_walk *out);

/* Control state changed: CR0, CR3, CR4, EFER, CPL, EFLAGS.AC, PKRU, DR7, SMM.  x86_mmu_rights_changed() is the cheap half (CPL, AC): it only chooses the table. */
void x86_mmu_mode_changed(struct x86_vcpu *c);   /* paging mode or permission bits: full flush */
void x86_mmu_rights_changed(struct x86_vcpu *c);
void x86_mmu_cr3_written(struct x86_vcpu *c, bool flush); /* flush: not the PCID no-flush form */
void x86_mmu_flush_page(struct x86_vcpu *c, u64 lin);
void x86_mmu_flush_all(struct x86_vcpu *c, bool globals);
/* PKRU has a new value: entries whose rights follow from a key that changed go. */
void x86_mmu_pkru_written(struct x86_vcpu *c, u32 old);
/* INVPCID: translations of a PCID that is not the current one; of all PCIDs. */
void x86_mmu_forget_pcid(struct x86_vcpu *c, unsigned pcid);
void x86_mmu_forget_pcids(struct x86_vcpu *c);
/* No vCPU may write the page the fast way any more: for one's own. */
void x86_mmu_protect_page(struct x86_vcpu *c, hva_t page);
/* The generation of code addresses in force, and that code was found at one. */
static inline u64 x86_code_generation(const struct x86_vcpu *c) { return c->mmu.gen.now[c->cpl == 3]; }
void x86_mmu_executed(struct x86_vcpu *c, u64 lin);
/* Loads the four PDPTEs where the SDM says so (Vol. 3A 4.4.1); #GP(0) for reserved bits.  cr3 is the value being loaded. */
int x86_mmu_load_pdptrs(struct x86_vcpu *c, u64 cr3);
int x86_mmu_create(struct x86_vcpu *c);
void x86_mmu_destroy(struct x86_vcpu *c);

/* One iteration of a REP instruction is committed: answers to its device reads must not be taken for the next one's. */
void x86_io_forget(struct x86_vcpu *c);
static inline void x86_io_commit(struct x86_vcpu *c) {
  if (unlikely(c->io.n_reads)) x86_io_forget(c);
}

/* --- ports --- */
/* IN/OUT of one element, permission already checked.  In: X86_OK with the value, or X86_EXIT.  Out: posted like a device write. */
int x86_pio_in(struct x86_vcpu *c, u16 port, unsigned size, u32 *value);
int x86_pio_out(struct x86_vcpu *c, u16 port, unsigned size, u32 value);
/* A repeated IN of up to `max` elements: X86_OK with *n of them (at least 1) at *data, or X86_EXIT. */
int x86_pio_in_string(struct x86_vcpu *c, u16 port, unsigned size, unsigned max, unsigned *n, const u8 **data);

#endif
