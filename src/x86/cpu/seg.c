/* Segment registers: descriptor loads with all their checks, limit and type checks of accesses, the I/O permission bitmap.
 *
 * Intel SDM Vol. 3A chapters 3.4 and 5; Vol. 2 MOV, LDS, LLDT, LTR, LAR, LSL, VERR.
 */
#include "x86/block.h"
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/mmu/walk.h"
#include "x86/x86.h"

void x86_seg_update(struct x86_seg *s) {
  bool writable_up = s->s && (s->type & 14) == 2;
  bool whole = !s->unusable && s->present && writable_up && s->limit == 0xffffffffu;
  s->flat = !whole ? X86_SEG_OTHER : s->base ? X86_SEG_BASED : X86_SEG_FLAT;
}

/* ---- descriptors in memory ---- */

/* 3.5.1: index within the limit of the GDT or LDT. */
static bool desc_find(struct x86_vcpu *c, u16 sel, unsigned size, u64 *lin) {
  u64 base = c->gdtr.base;
  u32 limit = c->gdtr.limit, index = sel & 0xfff8u;
  if (sel & 4) {
    if (c->ldtr.unusable) return false;
    base = c->ldtr.base;
    limit = c->ldtr.limit;
  }
  if (index + size - 1 > limit) return false;
  *lin = base + index;
  if (!x86_long(c)) *lin = (u32)*lin;
  return true;
}

int x86_desc_read(struct x86_vcpu *c, u16 sel, unsigned vector, unsigned ext, struct x86_desc *d) {
  d->hi = 0;
  if (!desc_find(c, sel, 8, &d->lin)) return x86_fault_code(c, vector, sel_code(sel, ext));
  return x86_sys_read(c, d->lin, &d->lo, 8);
}

int x86_desc_read_upper(struct x86_vcpu *c, u16 sel, unsigned vector, unsigned ext, struct x86_desc *d) {
  u64 lin;
  if (!x86_long(c)) return X86_OK;
  if (!desc_find(c, sel, 16, &lin)) return x86_fault_code(c, vector, sel_code(sel, ext));
  int r = x86_sys_read(c, lin + 8, &d->hi, 8);
  if (r) return r;
  if (d->hi & 0x1f0000000000ull) return x86_fault_code(c, vector, sel_code(sel, ext)); /* 5.8.3.1: type 0 there */
  d->hi = (u32)d->hi;
  return X86_OK;
}

GUEST_ACCESS static void change_byte(u8 *host, u8 set, u8 clear) {
  if (set) __atomic_fetch_or(host, set, __ATOMIC_SEQ_CST);
  if (clear) __atomic_fetch_and(host, (u8)~clear, __ATOMIC_SEQ_CST);
}

/* Locked OR and AND of one byte of a descriptor. */
static int desc_change(struct x86_vcpu *c, u64 lin, u8 set, u8 clear) {
  struct x86_xlat x;
  u8 v;
  int r = x86_translate(c, lin, ACC_RMW, c->cr4 & CR4_SMAP ? TLB_SUPER_SMAP : TLB_SUPER, &x);
  if (r) return r;
  if (x.host) {
    change_byte(x.host, set, clear);
    if (x.code) x86_blocks_written(x86_vm_of(c), x.host, 1);
    return X86_OK;
  }
  r = x86_sys_read(c, lin, &v, 1);
  if (r) return r;
  v = (u8)((v | set) & ~clear);
  return x86_sys_write(c, lin, &v, 1);
}

int x86_desc_accessed(struct x86_vcpu *c, struct x86_desc *d) {
  if (desc_type(d) & 1) return X86_OK;
  d->lo |= BIT(40);
  return desc_change(c, d->lin + 5, 1, 0);
}

int x86_desc_busy(struct x86_vcpu *c, u64 lin, bool busy) { return desc_change(c, lin + 5, busy ? 2 : 0, busy ? 0 : 2); }

struct x86_seg x86_desc_seg(u16 sel, const struct x86_desc *d) {
  struct x86_seg s = {
      .base = desc_base(d),
      .limit = desc_limit(d),
      .sel = sel,
      .type = (u8)desc_type(d),
      .s = desc_s(d),
      .dpl = (u8)desc_dpl(d),
      .present = desc_present(d),
      .avl = (d->lo >> 52) & 1,
      .l = desc_l(d),
      .db = desc_db(d),
      .g = (d->lo >> 55) & 1,
  };
  x86_seg_update(&s);
  return s;
}

/* ---- loads ---- */

void x86_seg_real(struct x86_vcpu *c, unsigned seg, u16 sel) {
  struct x86_seg *s = &c->seg[seg];
  if (x86_v86(c)) { /* 20.2.1: 64 KiB, read-write, ring 3 */
    *s = (struct x86_seg){.limit = 0xffff, .dpl = 3};
  } else if (s->unusable) { /* left over from protected mode */
    *s = (struct x86_seg){.limit = 0xffff};
  }
  /* Real mode keeps the limit and size that were loaded in protected mode (SDM Vol. 3A 9.9.2, step 4). */
  if (!x86_v86(c)) s->dpl = 0;
  s->type = 3;
  s->s = s->present = 1;
  s->unusable = s->l = 0;
  s->sel = sel;
  s->base = (u32)sel << 4;
  x86_seg_update(s);
}

int x86_check_ss(struct x86_vcpu *c, u16 sel, unsigned cpl, unsigned vector, unsigned ext, struct x86_seg *ss) {
  struct x86_desc d;
  int r = x86_desc_read(c, sel, vector, ext, &d);
  if (r) return r;
  if ((sel & 3) != cpl) return x86_fault_code(c, vector, sel_code(sel, ext));
  if (!desc_writable_data(&d)) return x86_fault_code(c, vector, sel_code(sel, ext));
  if (desc_dpl(&d) != cpl) return x86_fault_code(c, vector, sel_code(sel, ext));
  if (!desc_present(&d)) return x86_fault_code(c, VEC_SS, sel_code(sel, ext));
  r = x86_desc_accessed(c, &d);
  if (r) return r;
  *ss = x86_desc_seg(sel, &d);
  return X86_OK;
}

/* Vol. 2 MOV, "loading SS". */
static int load_ss(struct x86_vcpu *c, u16 sel) {
  if (!sel_null(sel)) return x86_check_ss(c, sel, c->cpl, VEC_GP, 0, &c->seg[SEG_SS]);
  if (!c->code64 || c->cpl == 3 || (sel & 3) != c->cpl) return x86_gp0(c);
  c->seg[SEG_SS] = seg_null(sel, c->cpl);
  return X86_OK;
}

/* Vol. 2 MOV, "loading DS, ES, FS, GS". */
static int load_data(struct x86_vcpu *c, unsigned seg, u16 sel) {
  struct x86_desc d;
  unsigned rpl = sel & 3;
  if (sel_null(sel)) {
    u64 base = x86_is_amd(c) ? c->seg[seg].base : 0; /* AMD processors leave the base of FS and GS alone */
    c->seg[seg] = seg_null(sel, 0);
    c->seg[seg].base = base;
    return X86_OK;
  }
  int r = x86_desc_read(c, sel, VEC_GP, 0, &d);
  if (r) return r;
  unsigned type = desc_type(&d);
  if (!desc_s(&d) || (type & 10) == 8) return x86_fault_code(c, VEC_GP, sel_code(sel, 0)); /* system, or execute-only */
  if (!desc_conforming(&d) && (rpl > desc_dpl(&d) || c->cpl > desc_dpl(&d))) return x86_fault_code(c, VEC_GP, sel_code(sel, 0));
  if (!desc_present(&d)) return x86_fault_code(c, VEC_NP, sel_code(sel, 0));
  r = x86_desc_accessed(c, &d);
  if (r) return r;
  c->seg[seg] = x86_desc_seg(sel, &d);
  return X86_OK;
}

int x86_load_seg(struct x86_vcpu *c, unsigned seg, u16 sel) {
  if (c->mode & X86_MODE_REAL) {
    x86_seg_real(c, seg, sel);
    return X86_OK;
  }
  return seg == SEG_SS ? load_ss(c, sel) : load_data(c, seg, sel);
}

int x86_load_ldt(struct x86_vcpu *c, u16 sel) {
  struct x86_desc d;
  if (sel_null(sel)) {
    c->ldtr = seg_null(sel, 0);
    return X86_OK;
  }
  if (sel & 4) return x86_fault_code(c, VEC_GP, sel_code(sel, 0));
  int r = x86_desc_read(c, sel, VEC_GP, 0, &d);
  if (r) return r;
  if (desc_s(&d) || desc_type(&d) != SYS_LDT) return x86_fault_code(c, VEC_GP, sel_code(sel, 0));
  r = x86_desc_read_upper(c, sel, VEC_GP, 0, &d);
  if (r) return r;
  if (!x86_canonical(c, desc_base(&d))) return x86_fault_code(c, VEC_GP, sel_code(sel, 0));
  if (!desc_present(&d)) return x86_fault_code(c, VEC_NP, sel_code(sel, 0));
  c->ldtr = x86_desc_seg(sel, &d);
  return X86_OK;
}

int x86_load_tr(struct x86_vcpu *c, u16 sel) {
  struct x86_desc d;
  if (sel_null(sel)) return x86_gp0(c);
  if (sel & 4) return x86_fault_code(c, VEC_GP, sel_code(sel, 0));
  int r = x86_desc_read(c, sel, VEC_GP, 0, &d);
  if (r) return r;
  unsigned type = desc_type(&d);
  bool available = !desc_s(&d) && (type == SYS_TSS32 || (type == SYS_TSS16 && !x86_long(c)));
  if (!available) return x86_fault_code(c, VEC_GP, sel_code(sel, 0));
  r = x86_desc_read_upper(c, sel, VEC_GP, 0, &d);
  if (r) return r;
  if (!x86_canonical(c, desc_base(&d))) return x86_fault_code(c, VEC_GP, sel_code(sel, 0));
  if (!desc_present(&d)) return x86_fault_code(c, VEC_NP, sel_code(sel, 0));
  r = x86_desc_busy(c, d.lin, true);
  if (r) return r;
  c->tr = x86_desc_seg(sel, &d);
  c->tr.type |= 2;
  return X86_OK;
}

void x86_commit_cs(struct x86_vcpu *c, const struct x86_seg *cs, unsigned cpl) {
  struct x86_seg *s = &c->seg[SEG_CS];
  *s = *cs;
  s->sel = (u16)((cs->sel & 0xfffc) | cpl);
}

int x86_check_target(struct x86_vcpu *c, const struct x86_seg *cs, u64 off, unsigned ext) {
  bool ok = x86_long(c) && cs->l ? x86_canonical(c, off) : off <= cs->limit;
  return ok ? X86_OK : x86_fault_code(c, VEC_GP, ext);
}

/* ---- accesses ---- */

bool x86_seg_limit_ok(const struct x86_seg *s, u64 ea, u64 size) {
  u64 last = ea + size - 1;
  bool expand_down = s->s && (s->type & 12) == 4;
  if (!expand_down) return last <= s->limit || (s->limit == 0xffffffffu && !s->base); /* 5.3: wrapping at 4 GiB need not fault; with a base it does */
  return ea > s->limit && last <= (s->db ? 0xffffffffu : 0xffffu);
}

static bool type_allows(const struct x86_seg *s, enum x86_access acc) {
  bool code = s->type & 8, rw = s->type & 2;
  if (acc == ACC_WRITE || acc == ACC_RMW) return !code && rw;
  return !code || rw;
}

int x86_seg_check(struct x86_vcpu *c, unsigned seg, u64 ea, unsigned size, enum x86_access acc, u64 *lin) {
  const struct x86_seg *s = &c->seg[seg];
  bool ok = x86_seg_limit_ok(s, ea, size);
  /* 5.3, 5.5: type and null checks are protected mode's; in real and virtual-8086 mode only limits count. */
  if (!(c->mode & X86_MODE_REAL)) ok = ok && !s->unusable && type_allows(s, acc);
  if (!ok) return x86_fault_code(c, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
  *lin = (u32)(s->base + ea);
  return X86_OK;
}

/* SDM Vol. 1 19.5.2: the bitmap of a 32-bit or 64-bit TSS; two bytes are read so that an access may straddle them. */
int x86_io_check(struct x86_vcpu *c, u16 port, unsigned size) {
  u16 map, bits;
  if (!x86_protected(c) || (!x86_v86(c) && c->cpl <= x86_iopl(c))) return X86_OK;
  if (c->tr.unusable || (c->tr.type & 13) != 9 || c->tr.limit < 103) return x86_gp0(c);
  int r = x86_sys_read(c, c->tr.base + 102, &map, 2);
  if (r) return r;
  u32 at = map + port / 8u;
  if (at + 1 > c->tr.limit) return x86_gp0(c);
  r = x86_sys_read(c, c->tr.base + at, &bits, 2);
  if (r) return r;
  return (bits >> (port & 7)) & ((1u << size) - 1) ? x86_gp0(c) : X86_OK;
}

/* ---- LAR, LSL, VERR, VERW ---- */

/* Vol. 2 LAR table 3-53, LSL table 3-56: system types that have what is asked; bit n stands for type n. */
static bool query_system(const struct x86_vcpu *c, unsigned type, enum x86_query what) {
  unsigned lar = x86_long(c) ? 0x1a04 : 0x1a3e, lsl = x86_long(c) ? 0x0a04 : 0x0a0e;
  if (what == QUERY_LAR) return (lar >> type) & 1;
  return what == QUERY_LSL && ((lsl >> type) & 1);
}

static bool query_segment(const struct x86_desc *d, enum x86_query what) {
  unsigned type = desc_type(d);
  if (what == QUERY_VERR) return (type & 10) != 8;
  return what != QUERY_VERW || (type & 10) == 2;
}

int x86_seg_query(struct x86_vcpu *c, u16 sel, enum x86_query what, bool *ok, u32 *value) {
  struct x86_desc d = {0};
  *ok = false;
  if (sel_null(sel) || !desc_find(c, sel, 8, &d.lin)) return X86_OK;
  int r = x86_sys_read(c, d.lin, &d.lo, 8);
  if (r) return r;
  bool system = !desc_s(&d);
  if (system ? !query_system(c, desc_type(&d), what) : !query_segment(&d, what)) return X86_OK;
  unsigned rpl = sel & 3, dpl = desc_dpl(&d);
  if (!desc_conforming(&d) && (c->cpl > dpl || rpl > dpl)) return X86_OK;
  if (system && x86_long(c) && x86_desc_read_upper(c, sel, VEC_GP, 0, &d)) {
    if (c->fault.vector != VEC_GP) return X86_FAULT;
    return X86_OK;
  }
  *value = what == QUERY_LSL ? desc_limit(&d) : (u32)(d.lo >> 32) & 0x00ffff00u;
  *ok = true;
  return X86_OK;
}
