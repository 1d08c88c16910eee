/* What a 64-bit kernel does all the time: interrupt and trap gates into ring 0, IRETQ to its own ring and to ring 3.
 *
 * Intel SDM Vol. 3A 6.14; Vol. 2 INT n and IRET, operation.  Everything read or written has to be found in the TLB, nothing may be out of the ordinary: false
 * means that nothing has changed, and that gate.c or iret.c, which know all cases and all faults, do it.
 */
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

enum { GATE_TRAP = 0x8f, GATE_DPL = 0x60 }; /* byte 5: present, type; an interrupt gate is one less (6.14.1) */

/* Present, code, accessed, 64-bit, not conforming; present, data, writable, accessed. */
#define CODE_MASK (BIT(47) | BIT(44) | BIT(43) | BIT(42) | BIT(40) | BIT(53) | BIT(54))
#define CODE_BITS (BIT(47) | BIT(44) | BIT(43) | BIT(40) | BIT(53))
#define DATA_MASK (BIT(47) | BIT(44) | BIT(43) | BIT(41) | BIT(40))
#define DATA_BITS (BIT(47) | BIT(44) | BIT(41) | BIT(40))

/* Host address of [lin, lin+size), which one page of this table of the TLB must let be read, or written; NULL otherwise. */
static void *mapped(struct x86_vcpu *c, unsigned table, u64 lin, unsigned size, bool write) {
  const struct x86_tlb_entry *e = &c->mmu.tables[table * X86_TLB_SIZE + ((lin >> PAGE_SHIFT) & (X86_TLB_SIZE - 1))];
  u64 page = (lin + size - 1) & PAGE_MASK;
  return page == (lin & PAGE_MASK) && page == (write ? e->write : e->read) ? x86_tlb_host(e, lin) : NULL;
}

/* 4.6.1: SMAP is in force for tables whatever EFLAGS.AC says. */
static unsigned implicit(const struct x86_vcpu *c) { return c->cr4 & CR4_SMAP ? TLB_SUPER_SMAP : TLB_SUPER; }
static unsigned supervisor(const struct x86_vcpu *c) { return (c->cr4 & CR4_SMAP) && !(c->rflags & FL_AC) ? TLB_SUPER_SMAP : TLB_SUPER; }

GUEST_ACCESS static bool read64(struct x86_vcpu *c, u64 lin, unsigned n, u64 *v) {
  const volatile x86_u64_unaligned *p = mapped(c, implicit(c), lin, 8 * n, false);
  for (unsigned k = 0; p && k < n; k++) v[k] = p[k];
  return p;
}

/* A segment of the GDT with these bits: the selector's RPL is its DPL. */
static bool segment(struct x86_vcpu *c, u16 sel, u64 mask, u64 bits, struct x86_seg *s) {
  struct x86_desc d = {0};
  if ((sel & 4) || sel_null(sel) || (sel & 0xfff8u) + 7 > c->gdtr.limit || !read64(c, c->gdtr.base + (sel & 0xfff8u), 1, &d.lo)) return false;
  if ((d.lo & mask) != bits || desc_dpl(&d) != (sel & 3)) return false;
  struct x86_known_segment *k = &c->known_segments[sel >> 3 & (X86_KNOWN_SEGMENTS - 1)];
  if (k->descriptor != d.lo || k->seg.sel != sel) *k = (struct x86_known_segment){.descriptor = d.lo, .seg = x86_desc_seg(sel, &d)};
  *s = k->seg;
  return true;
}

GUEST_ACCESS static bool store_frame(struct x86_vcpu *c, u64 sp, const u64 *frame, unsigned n) {
  volatile x86_u64_unaligned *to = mapped(c, supervisor(c), sp, 8 * n, true);
  for (unsigned k = 0; to && k < n; k++) to[k] = frame[k];
  return to;
}

bool x86_gate64(struct x86_vcpu *c, const struct x86_event *e) {
  u64 gate[2], sp = c->regs[RSP];
  u32 at = e->vector * 16u;
  struct x86_seg cs;
  if (x86_debug_dr7(c) & 0xff) return false; /* what is pushed may be watched */
  if (!x86_long(c) || !c->code64 || (c->cpl && c->cpl != 3) || at + 15 > c->idtr.limit || !read64(c, c->idtr.base + at, 2, gate)) return false;
  unsigned access = (gate[0] >> 40) & 0xff, ist = (gate[0] >> 32) & 7;
  if (((access & ~GATE_DPL) | 1) != GATE_TRAP || ist) return false;
  bool soft = e->kind == EV_SOFT_INT || e->kind == EV_SOFT_EXCEPTION;
  if (soft && (access >> 5 & 3) < c->cpl) return false;
  u64 target = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
  if (!x86_canonical(c, target) || !segment(c, (u16)(gate[0] >> 16) & 0xfffc, CODE_MASK, CODE_BITS, &cs)) return false;
  bool inner = c->cpl;
  if (inner && (c->tr.limit < 11 || !read64(c, c->tr.base + 4, 1, &sp))) return false;

  u64 frame[6] = {e->error, e->ret, c->seg[SEG_CS].sel, e->flags, c->regs[RSP], c->seg[SEG_SS].sel};
  unsigned skip = !e->has_error;
  sp = (sp & ~15ull) - 8 * (6 - skip);
  if (!x86_canonical(c, sp) || !store_frame(c, sp, frame + skip, 6 - skip)) return false;
  if (inner) c->seg[SEG_SS] = seg_null(0, 0);
  c->regs[RSP] = sp;
  c->seg[SEG_CS] = cs;
  c->rip = target;
  u64 flags = c->rflags & ~(u64)(FL_TF | FL_NT | FL_RF | FL_VM);
  if (!(access & 1)) flags &= ~(u64)FL_IF;
  x86_commit_flags(c, flags);
  return true;
}

GUEST_ACCESS bool x86_iret64(struct x86_vcpu *c, u64 v[5], struct x86_seg *cs, struct x86_seg *ss) {
  u64 sp = c->regs[RSP];
  const struct x86_tlb_entry *e = x86_tlb_slot(c, sp); /* it is an access like any other of the program: the table in force */
  if (((sp + 39) & PAGE_MASK) != e->read) return false;
  const volatile x86_u64_unaligned *from = x86_tlb_host(e, sp);
  for (unsigned n = 0; n < 5; n++) v[n] = from[n];
  u16 sel = (u16)v[1], stack = (u16)v[4];
  unsigned rpl = sel & 3;
  if (rpl < c->cpl || !x86_canonical(c, v[0]) || !segment(c, sel, CODE_MASK, CODE_BITS, cs)) return false;
  if (!sel_null(stack)) return (stack & 3) == rpl && segment(c, stack, DATA_MASK, DATA_BITS, ss);
  *ss = seg_null(stack, rpl);
  return rpl != 3 && (stack & 3) == rpl;
}
