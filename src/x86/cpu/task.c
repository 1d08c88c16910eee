/* Task switches: by JMP, CALL, IRET and task gates, with 16-bit and 32-bit TSSs.
 *
 * Intel SDM Vol. 3A chapter 7, 7.3 (task switching) with table 7-1 (checks).  Legacy modes only.
 *
 * Two halves.  Everything up to the write of the old TSS can fail without a trace.  From then on the new task is the current one:
 * its faults are raised in it, with its CS:EIP, and whatever segment registers could not be loaded are left with their selectors
 * and no descriptor.
 */
#include <string.h>
#include "x86/cpu/desc.h"
#include "x86/insn.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

/* Where things are in a TSS (figures 7-2 and 7-10): sizes of items, offsets of the fields a switch saves and loads. */
struct tss_format {
  u8 size; /* of EIP, flags and general registers */
  u8 seg_step, segs;
  u8 ip, regs, seg, ldt, trap, cr3;
  u8 save_end; /* the saved fields are [ip, save_end) */
  u8 min_limit;
};
static const struct tss_format formats[2] = {
    {.size = 2,
     .seg_step = 2,
     .segs = 4,
     .ip = 0x0e,
     .regs = 0x12,
     .seg = 0x22,
     .ldt = 0x2a,
     .save_end = 0x2a,
     .min_limit = 0x2b},
    {.size = 4,
     .seg_step = 4,
     .segs = 6,
     .ip = 0x20,
     .regs = 0x28,
     .seg = 0x48,
     .ldt = 0x60,
     .trap = 0x64,
     .cr3 = 0x1c,
     .save_end = 0x60,
     .min_limit = 0x67},
};
#define TSS_BYTES 0x68

static const struct tss_format *format_of(unsigned type) { return &formats[(type & 8) != 0]; }

static u32 tss_get(const u8 *tss, unsigned at, unsigned size) {
  u32 v = 0;
  memcpy(&v, tss + at, size);
  return v;
}
static void tss_put(u8 *tss, unsigned at, unsigned size, u32 v) { memcpy(tss + at, &v, size); }

struct task {
  u16 sel;
  enum task_reason reason;
  unsigned ext;
  struct x86_desc desc;
  const struct tss_format *format;
  u8 tss[TSS_BYTES];
};

static int ts(struct x86_vcpu *c, u16 sel, unsigned ext) { return x86_fault_code(c, VEC_TS, sel_code(sel, ext)); }

/* Table 7-1, rows 1 to 3: the TSS descriptor. */
static int check_descriptor(struct x86_vcpu *c, struct task *t) {
  bool ret = t->reason == TASK_IRET;
  unsigned vector = ret ? VEC_TS : VEC_GP;
  if (sel_null(t->sel) || (t->sel & 4)) return x86_fault_code(c, vector, sel_code(t->sel, t->ext));
  int r = x86_desc_read(c, t->sel, vector, t->ext, &t->desc);
  if (r) return r;
  unsigned type = desc_type(&t->desc), want = ret ? SYS_TSS16_BUSY : SYS_TSS16;
  if (desc_s(&t->desc) || (type & 7) != want) return x86_fault_code(c, vector, sel_code(t->sel, t->ext));
  if (!desc_present(&t->desc)) return x86_fault_code(c, VEC_NP, sel_code(t->sel, t->ext));
  t->format = format_of(type);
  if (desc_limit(&t->desc) < t->format->min_limit) return ts(c, t->sel, t->ext);
  return X86_OK;
}

/* The old task's registers as its TSS keeps them: [ip, save_end). */
static void fill_old(const struct x86_vcpu *c, const struct tss_format *f, u64 next, u64 flags, u8 *tss) {
  tss_put(tss, f->ip, f->size, (u32)next);
  tss_put(tss, f->ip + f->size, f->size, (u32)flags);
  for (unsigned n = 0; n < 8; n++) tss_put(tss, f->regs + n * f->size, f->size, (u32)c->regs[n]);
  for (unsigned n = 0; n < f->segs; n++) tss_put(tss, f->seg + n * f->seg_step, 2, c->seg[n].sel);
}

/* 7.3, steps 5 to 9: memory.  Everything that can fault is tried first; the upper half of a segment field keeps its old bytes. */
static int write_memory(struct x86_vcpu *c, struct task *t, u64 next, u64 flags) {
  const struct tss_format *f = format_of(c->tr.type);
  u8 old[TSS_BYTES];
  bool nested = t->reason == TASK_CALL || t->reason == TASK_GATE;
  u64 base = desc_base(&t->desc), old_desc = c->gdtr.base + (c->tr.sel & 0xfff8u);
  unsigned n = f->save_end - f->ip;
  int r = x86_sys_read(c, c->tr.base + f->ip, old + f->ip, n);
  if (!r) r = x86_probe_write(c, c->tr.base + f->ip, n, 0);
  if (!r && nested) r = x86_probe_write(c, base, 2, 0);
  if (!r && t->reason != TASK_IRET) r = x86_probe_write(c, t->desc.lin, 8, 0);
  if (!r && !nested) r = x86_desc_busy(c, old_desc, false);
  if (r) return r;
  fill_old(c, f, next, flags, old);
  r = x86_sys_write(c, c->tr.base + f->ip, old + f->ip, n);
  if (!r && nested) r = x86_sys_write(c, base, &c->tr.sel, 2);
  if (!r && t->reason != TASK_IRET) r = x86_desc_busy(c, t->desc.lin, true);
  return r;
}

/* Step 11, first part: what needs no check.  Segment registers get their selectors, and no descriptor yet. */
static void load_state(struct x86_vcpu *c, const struct task *t) {
  const struct tss_format *f = t->format;
  bool wide = f->size == 4, nested = t->reason == TASK_CALL || t->reason == TASK_GATE;
  u64 flags = tss_get(t->tss, f->ip + f->size, f->size);
  if (!wide) flags &= 0x7fff;
  flags &= FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID;
  if (nested) flags |= FL_NT;
  for (unsigned n = 0; n < 8; n++) {
    u32 v = tss_get(t->tss, f->regs + n * f->size, f->size);
    c->regs[n] = wide ? v : 0xffff0000u | v;
  }
  c->rip = tss_get(t->tss, f->ip, f->size);
  c->rflags = flags | 2;
  c->tr = x86_desc_seg(t->sel, &t->desc);
  c->tr.type |= 2;
  c->cr0 |= CR0_TS;
  c->dr[7] &= ~0x155ull; /* step 13: local breakpoint enables */
  c->ldtr = seg_null((u16)tss_get(t->tss, f->ldt, 2), 0);
  unsigned cpl = tss_get(t->tss, f->seg + SEG_CS * f->seg_step, 2) & 3;
  for (unsigned n = 0; n < 6; n++) c->seg[n] = seg_null(n < f->segs ? (u16)tss_get(t->tss, f->seg + n * f->seg_step, 2) : 0, cpl);
  x86_mode_changed(c);
}

/* Only a 32-bit TSS has a CR3, and only paging loads it. */
static int load_cr3(struct x86_vcpu *c, const struct task *t) {
  if (!t->format->cr3 || !(c->cr0 & CR0_PG)) return X86_OK;
  u32 cr3 = tss_get(t->tss, t->format->cr3, 4);
  if (c->cr4 & CR4_PAE) {
    int r = x86_mmu_load_pdptrs(c, cr3);
    if (r) return r;
  }
  c->cr3 = cr3;
  x86_mmu_cr3_written(c, true);
  return X86_OK;
}

/* ---- table 7-1, rows from the LDT on: #TS, #NP and #SS in the new task ---- */

static int load_ldt(struct x86_vcpu *c, unsigned ext) {
  struct x86_desc d;
  u16 sel = c->ldtr.sel;
  if (sel_null(sel)) return X86_OK;
  if (sel & 4) return ts(c, sel, ext);
  int r = x86_desc_read(c, sel, VEC_TS, ext, &d);
  if (r) return r;
  if (desc_s(&d) || desc_type(&d) != SYS_LDT || !desc_present(&d)) return ts(c, sel, ext);
  c->ldtr = x86_desc_seg(sel, &d);
  return X86_OK;
}

static int load_cs(struct x86_vcpu *c, unsigned ext) {
  struct x86_desc d;
  u16 sel = c->seg[SEG_CS].sel;
  unsigned rpl = sel & 3;
  if (sel_null(sel)) return ts(c, sel, ext);
  int r = x86_desc_read(c, sel, VEC_TS, ext, &d);
  if (r) return r;
  if (!desc_code(&d)) return ts(c, sel, ext);
  if (desc_conforming(&d) ? desc_dpl(&d) > rpl : desc_dpl(&d) != rpl) return ts(c, sel, ext);
  if (!desc_present(&d)) return x86_fault_code(c, VEC_NP, sel_code(sel, ext));
  r = x86_desc_accessed(c, &d);
  if (r) return r;
  c->seg[SEG_CS] = x86_desc_seg(sel, &d);
  return X86_OK;
}

static int load_ss(struct x86_vcpu *c, unsigned ext) {
  u16 sel = c->seg[SEG_SS].sel;
  if (sel_null(sel)) return ts(c, sel, ext);
  return x86_check_ss(c, sel, c->seg[SEG_CS].sel & 3, VEC_TS, ext, &c->seg[SEG_SS]);
}

static int load_data(struct x86_vcpu *c, unsigned seg, unsigned ext) {
  struct x86_desc d;
  u16 sel = c->seg[seg].sel;
  unsigned rpl = sel & 3, cpl = c->seg[SEG_CS].sel & 3;
  if (sel_null(sel)) return X86_OK;
  int r = x86_desc_read(c, sel, VEC_TS, ext, &d);
  if (r) return r;
  if (!desc_s(&d) || (desc_type(&d) & 10) == 8) return ts(c, sel, ext);
  if (!desc_conforming(&d) && (rpl > desc_dpl(&d) || cpl > desc_dpl(&d))) return ts(c, sel, ext);
  if (!desc_present(&d)) return x86_fault_code(c, VEC_NP, sel_code(sel, ext));
  r = x86_desc_accessed(c, &d);
  if (r) return r;
  c->seg[seg] = x86_desc_seg(sel, &d);
  return X86_OK;
}

static int load_segments(struct x86_vcpu *c, unsigned ext) {
  static const u8 data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
  int r = load_ldt(c, ext);
  if (r) return r;
  if (x86_v86(c)) {
    for (unsigned n = 0; n < 6; n++) x86_seg_real(c, n, c->seg[n].sel);
    return X86_OK;
  }
  r = load_cs(c, ext);
  if (!r) r = load_ss(c, ext);
  for (unsigned n = 0; !r && n < ARRAY_SIZE(data); n++) r = load_data(c, data[n], ext);
  return r;
}

/* The switch is made; the rest happens in the new task. */
static int enter_task(struct x86_vcpu *c, const struct task *t) {
  bool stepping = c->mode & X86_MODE_SINGLE;
  load_state(c, t);
  int r = load_cr3(c, t);
  if (!r) r = load_segments(c, t->ext);
  x86_mode_changed(c);
  if (!r) r = x86_check_target(c, &c->seg[SEG_CS], c->rip, t->ext);
  if (!r) {
    if (stepping && (c->rflags & FL_RF)) c->pending_dbg |= DBG_KEEP_RF;
    if (c->rflags & FL_IF) x86_window_opened(c);
    return X86_OK;
  }
  if (c->cur) c->rip -= c->cur->off; /* the instruction that switched returns X86_FAULT: its offset will be added */
  return r;
}

int x86_task_switch(struct x86_vcpu *c, u16 sel, enum task_reason reason, u64 next, u64 flags, unsigned ext) {
  struct task t = {.sel = sel, .reason = reason, .ext = ext};
  int r = check_descriptor(c, &t);
  if (r) return r;
  if (c->tr.limit < format_of(c->tr.type)->min_limit) return ts(c, c->tr.sel, ext);
  r = x86_sys_read(c, desc_base(&t.desc), t.tss, t.format->min_limit + 1u);
  if (!r) r = write_memory(c, &t, next, flags);
  if (r) return r;
  bool trap = t.format->trap && (t.tss[t.format->trap] & 1);
  r = enter_task(c, &t);
  if (trap) { /* 7.3, step 14: the T flag */
    c->pending_dbg |= DR6_BT;
    x86_request_event(c);
  }
  return r;
}

int x86_task_gate(struct x86_vcpu *c, const struct x86_desc *gate, enum task_reason reason, u64 next, u64 flags, unsigned ext) {
  u16 sel = gate_sel(gate);
  if (sel_null(sel) || (sel & 4)) return x86_fault_code(c, VEC_GP, sel_code(sel, ext));
  return x86_task_switch(c, sel, reason, next, flags, ext);
}
