/* Loads, stores and read-modify-write off the fast path: TLB misses, page crossings, devices, code pages, #AC, data breakpoints.
 *
 * Order in every function: canonical and alignment checks, translation of all pages touched, then the data; so nothing is half done when a fault comes.
 * A fault of the host is known only when it comes: x86_mmu_untear() undoes the half then, or before the next instruction when the first page is refused,
 * too.
 */
#include <string.h>
#include "base/fault.h"
#include "core/memslot.h"
#include "x86/block.h"
#include "x86/mmu/walk.h"
#include "x86/x86.h"

/* One access, as one or two page parts. */
struct parts {
  unsigned n, len[2];
  struct x86_xlat x[2];
};

/* Aligned sizes must reach memory in one piece: other vCPUs look on. */
GUEST_ACCESS static void copy(void *dst, const void *src, unsigned size) {
  switch (size) {
  case 1: *(volatile u8 *)dst = *(const volatile u8 *)src; break;
  case 2: *(volatile x86_u16_unaligned *)dst = *(const volatile x86_u16_unaligned *)src; break;
  case 4: *(volatile x86_u32_unaligned *)dst = *(const volatile x86_u32_unaligned *)src; break;
  case 8: *(volatile x86_u64_unaligned *)dst = *(const volatile x86_u64_unaligned *)src; break;
  default: x86_copy_guest(dst, src, size);
  }
}

static int check_canonical(struct x86_vcpu *c, unsigned seg, u64 lin, unsigned size) {
  if (!c->code64) return X86_OK;
  if (likely(x86_canonical(c, lin) && x86_canonical(c, lin + size - 1))) return X86_OK;
  return x86_fault_code(c, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
}

/* SDM Vol. 3A table 6-7, by the size of the operand: 10 is the extended real and BCD, 14 and 28 the x87 environment.  Vectors of 16
 * bytes and more ask for nothing here: their instructions that do raise #GP. */
static unsigned alignment_of(unsigned size) {
  switch (size) {
  case 2:
  case 14: return 2;
  case 4:
  case 28: return 4;
  case 8:
  case 10: return 8;
  default: return 1;
  }
}

/* What the slow table stands for. */
static int check_watched(struct x86_vcpu *c, u64 lin, unsigned size, bool write) {
  if (likely(c->tlb != &c->mmu.tables[TLB_SLOW * X86_TLB_SIZE])) return X86_OK;
  if (x86_alignment_checked(c) && (lin & (alignment_of(size) - 1))) return x86_fault_code(c, VEC_AC, 0);
  return X86_OK;
}

static void note_data_breakpoint(struct x86_vcpu *c, u64 lin, unsigned size, bool write) {
  if (unlikely(c->tlb == &c->mmu.tables[TLB_SLOW * X86_TLB_SIZE])) x86_data_breakpoint(c, lin, size, write);
}

static int translate_parts(struct x86_vcpu *c, u64 lin, unsigned size, enum x86_access acc, unsigned table, struct parts *p) {
  u64 mask = c->code64 || c->mmu.paging >= PAGING_4LEVEL ? ~0ull : 0xffffffffull;
  unsigned room = (unsigned)(PAGE_SIZE - (lin & (PAGE_SIZE - 1)));
  p->n = size > room ? 2 : 1;
  p->len[0] = size > room ? room : size;
  p->len[1] = size - p->len[0];
  int r = x86_translate(c, lin, acc, table, &p->x[0]);
  if (r || p->n == 1) return r;
  return x86_translate(c, (lin + room) & mask, acc, table, &p->x[1]);
}

static int read_part(struct x86_vcpu *c, const struct x86_xlat *x, u8 *data, unsigned len) {
  const u8 *host = x->host ? x->host : x->rom;
  if (likely(host)) {
    copy(data, host, len);
    return X86_OK;
  }
  for (unsigned done = 0; done < len;) {
    unsigned n = MIN(8u, len - done);
    int r = x86_io_read(c, x->gpa + done, data + done, n);
    if (r) return r;
    done += n;
  }
  return X86_OK;
}

static void write_part(struct x86_vcpu *c, const struct x86_xlat *x, const u8 *data, unsigned len) {
  if (likely(x->host)) {
    copy(x->host, data, len);
    if (x->code) x86_blocks_written(x86_vm_of(c), x->host, len);
    return;
  }
  for (unsigned done = 0; done < len; done += 8) x86_io_write(c, x->gpa + done, data + done, MIN(8u, len - done));
}

/* A host fault on the second page takes the store on the first one back: the instruction will run again from its start.  A store
 * to a device cannot fault: memory beside it comes first. */
static void write_parts(struct x86_vcpu *c, const struct x86_xlat x[2], const u8 *data, const unsigned len[2]) {
  if (!x[0].host) {
    bool first = x[1].host;
    write_part(c, &x[first], data + (first ? len[0] : 0), len[first]);
    write_part(c, &x[!first], data + (first ? 0 : len[0]), len[!first]);
    return;
  }
  copy(c->torn.old, x[0].host, len[0]);
  c->torn.host = x[0].host;
  c->torn.gpa = x[0].gpa;
  atomic_signal_fence(memory_order_seq_cst);
  c->torn.len = (u8)len[0];
  write_part(c, &x[0], data, len[0]);
  write_part(c, &x[1], data + len[0], len[1]);
  atomic_signal_fence(memory_order_seq_cst);
  c->torn.len = 0;
}

bool x86_mmu_untear(struct x86_vcpu *c) {
  gfn_t gfn = c->torn.gpa >> PAGE_SHIFT;
  const struct memslot *slot = x86_memslot(c, gfn);
  bool same = slot && memslot_hva(slot, gfn) == ((hva_t)(uintptr_t)c->torn.host & PAGE_MASK);
  if (same && fault_copy(c->torn.host, c->torn.old, c->torn.len)) return false;
  if (same && x86_page_has_code(c->core.vm, c->torn.host)) x86_blocks_written(x86_vm_of(c), c->torn.host, c->torn.len);
  c->torn.len = 0;
  return true;
}

static int read_with(struct x86_vcpu *c, u64 lin, void *data, unsigned size, unsigned table) {
  struct parts p;
  int r = translate_parts(c, lin, size, ACC_READ, table, &p);
  if (r) return r;
  r = read_part(c, &p.x[0], data, p.len[0]);
  if (r || p.n == 1) return r;
  return read_part(c, &p.x[1], (u8 *)data + p.len[0], p.len[1]);
}

static int write_with(struct x86_vcpu *c, u64 lin, const void *data, unsigned size, unsigned table) {
  struct parts p;
  int r = translate_parts(c, lin, size, ACC_WRITE, table, &p);
  if (r) return r;
  if (p.n == 2)
    write_parts(c, p.x, data, p.len);
  else
    write_part(c, &p.x[0], data, p.len[0]);
  return X86_OK;
}

int x86_read_slow(struct x86_vcpu *c, unsigned seg, u64 lin, void *data, unsigned size) {
  int r = check_canonical(c, seg, lin, size);
  if (!r) r = check_watched(c, lin, size, false);
  if (!r) r = read_with(c, lin, data, size, c->mmu.right);
  if (!r) note_data_breakpoint(c, lin, size, false);
  return r;
}

int x86_write_slow(struct x86_vcpu *c, unsigned seg, u64 lin, const void *data, unsigned size) {
  int r = check_canonical(c, seg, lin, size);
  if (!r) r = check_watched(c, lin, size, true);
  if (!r) r = write_with(c, lin, data, size, c->mmu.right);
  if (!r) note_data_breakpoint(c, lin, size, true);
  return r;
}

int x86_read(struct x86_vcpu *c, unsigned seg, u64 ea, void *data, unsigned size) {
  u64 lin;
  int r = x86_linear(c, seg, ea, size, ACC_READ, &lin);
  if (r) return r;
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  if (likely(((lin + size - 1) & PAGE_MASK) == e->read)) {
    copy(data, x86_tlb_host(e, lin), size);
    return X86_OK;
  }
  return x86_read_slow(c, seg, lin, data, size);
}

int x86_write(struct x86_vcpu *c, unsigned seg, u64 ea, const void *data, unsigned size) {
  u64 lin;
  int r = x86_linear(c, seg, ea, size, ACC_WRITE, &lin);
  if (r) return r;
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  if (likely(((lin + size - 1) & PAGE_MASK) == e->write)) {
    copy(x86_tlb_host(e, lin), data, size);
    return X86_OK;
  }
  return x86_write_slow(c, seg, lin, data, size);
}

enum { RMW_DIRECT = 0, RMW_CODE = 1, RMW_BOUNCE = 2 };

int x86_rmw_begin_slow(struct x86_vcpu *c, unsigned seg, u64 lin, unsigned size, bool locked, void **host) {
  struct parts p;
  int r = check_canonical(c, seg, lin, size);
  if (!r) r = check_watched(c, lin, size, true);
  if (!r) r = translate_parts(c, lin, size, ACC_RMW, c->mmu.right, &p);
  if (r) return r;
  note_data_breakpoint(c, lin, size, true);
  c->rmw.len = (u8)size;
  for (unsigned k = 0; k < p.n; k++) {
    c->rmw.host[k] = p.x[k].host;
    c->rmw.gpa[k] = p.x[k].gpa;
    c->rmw.n[k] = (u8)p.len[k];
  }
  if (p.n == 1) c->rmw.n[1] = 0;
  if (locked && p.x[0].host && (p.n == 1 || p.x[1].host)) x86_note_lock(c, lin, size);
  if (p.n == 1 && p.x[0].host) {
    c->rmw.kind = p.x[0].code ? RMW_CODE : RMW_DIRECT;
    *host = p.x[0].host;
    return X86_OK;
  }
  /* Across two pages (or on a device) the access is not atomic with respect to other vCPUs' accesses to one of the halves. */
  r = read_part(c, &p.x[0], c->rmw.buf, p.len[0]);
  if (!r && p.n == 2) r = read_part(c, &p.x[1], c->rmw.buf + p.len[0], p.len[1]);
  if (r) return r;
  c->rmw.kind = RMW_BOUNCE;
  *host = c->rmw.buf;
  return X86_OK;
}

void x86_rmw_end_slow(struct x86_vcpu *c) {
  unsigned kind = c->rmw.kind;
  c->rmw.kind = RMW_DIRECT;
  if (kind == RMW_CODE) {
    x86_blocks_written(x86_vm_of(c), c->rmw.host[0], c->rmw.len);
    return;
  }
  struct x86_xlat x[2];
  unsigned len[2] = {c->rmw.n[0], c->rmw.n[1]};
  for (unsigned k = 0; k < 2; k++) {
    x[k] = (struct x86_xlat){.host = c->rmw.host[k], .gpa = c->rmw.gpa[k]};
    x[k].code = x[k].host && x86_page_has_code(c->core.vm, x[k].host);
  }
  if (len[1])
    write_parts(c, x, c->rmw.buf, len);
  else
    write_part(c, &x[0], c->rmw.buf, len[0]);
}

unsigned x86_host_span(struct x86_vcpu *c, u64 lin, unsigned max, enum x86_access acc, void **host) {
  struct x86_tlb_entry *e = x86_tlb_slot(c, lin);
  if ((acc == ACC_WRITE ? e->write : e->read) != (lin & PAGE_MASK)) return 0;
  *host = x86_tlb_host(e, lin);
  return MIN(max, (unsigned)(PAGE_SIZE - (lin & (PAGE_SIZE - 1))));
}

static unsigned implicit_table(const struct x86_vcpu *c) { return c->cr4 & CR4_SMAP ? TLB_SUPER_SMAP : TLB_SUPER; }

static unsigned cpl_table(const struct x86_vcpu *c, unsigned cpl) {
  if (cpl == 3) return TLB_USER;
  return (c->cr4 & CR4_SMAP) && !(c->rflags & FL_AC) ? TLB_SUPER_SMAP : TLB_SUPER;
}

int x86_sys_read(struct x86_vcpu *c, u64 lin, void *data, unsigned size) { return read_with(c, lin, data, size, implicit_table(c)); }

int x86_sys_write(struct x86_vcpu *c, u64 lin, const void *data, unsigned size) {
  return write_with(c, lin, data, size, implicit_table(c));
}

int x86_read_cpl(struct x86_vcpu *c, u64 lin, void *data, unsigned size, unsigned cpl) {
  return read_with(c, lin, data, size, cpl_table(c, cpl));
}

int x86_write_cpl(struct x86_vcpu *c, u64 lin, const void *data, unsigned size, unsigned cpl) {
  return write_with(c, lin, data, size, cpl_table(c, cpl));
}

int x86_probe_write(struct x86_vcpu *c, u64 lin, unsigned size, unsigned cpl) {
  struct x86_xlat x;
  for (u64 at = lin; at - lin < size; at = (at & PAGE_MASK) + PAGE_SIZE) { /* may wrap around */
    int r = x86_translate(c, at, ACC_WRITE, cpl_table(c, cpl), &x);
    if (r) return r;
  }
  return X86_OK;
}

GUEST_ACCESS static void touch(u8 *host) { __atomic_fetch_or(host, 0, __ATOMIC_RELAXED); }

int x86_touch_write(struct x86_vcpu *c, u64 lin, unsigned size, unsigned cpl) {
  struct x86_xlat x;
  int r = x86_probe_write(c, lin, size, cpl);
  for (u64 at = lin; !r && at - lin < size; at = (at & PAGE_MASK) + PAGE_SIZE) {
    r = x86_translate(c, at, ACC_WRITE, cpl_table(c, cpl), &x);
    if (!r && x.host) touch(x.host);
  }
  return r;
}
