/* Far JMP, CALL and RET: code segments, call gates, TSS and task gates.
 *
 * Intel SDM Vol. 2 CALL, JMP, RET; Vol. 3A 5.8.  The order of checks is that of the manual's operation sections; every check and
 * every memory access that can fault comes before the first change.
 */
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

static int gp(struct x86_vcpu *c, u16 sel) { return x86_fault_code(c, VEC_GP, sel_code(sel, 0)); }

static int finish(struct x86_vcpu *c, u64 off) {
  c->rip = off;
  x86_mode_changed(c);
  return X86_BRANCH;
}

/* ---- real and virtual-8086 mode ---- */

static int real_target(struct x86_vcpu *c, u16 sel, u64 off) {
  if (off > c->seg[SEG_CS].limit) return x86_gp0(c);
  x86_seg_real(c, SEG_CS, sel);
  return finish(c, off);
}

static int real_call(struct x86_vcpu *c, u16 sel, u64 off, unsigned opsize, u64 next) {
  struct x86_stack st = x86_stack_current(c, 0);
  struct x86_frame f = {.size = opsize};
  frame_push(&f, c->seg[SEG_CS].sel);
  frame_push(&f, next);
  if (off > c->seg[SEG_CS].limit) return x86_gp0(c);
  int r = x86_frame_store(c, &st, &f);
  if (r) return r;
  x86_stack_commit(c, &st);
  return real_target(c, sel, off);
}

/* ---- code segments ---- */

/* JMP and CALL straight to a code segment: no change of privilege. */
static int direct_code(struct x86_vcpu *c, u16 sel, struct x86_desc *d, u64 off, struct x86_seg *cs) {
  unsigned rpl = sel & 3, dpl = desc_dpl(d);
  if (x86_long(c) && desc_l(d) && desc_db(d)) return gp(c, sel);
  if (desc_conforming(d) ? dpl > c->cpl : (rpl > c->cpl || dpl != c->cpl)) return gp(c, sel);
  if (!desc_present(d)) return x86_fault_code(c, VEC_NP, sel_code(sel, 0));
  *cs = x86_desc_seg(sel, d);
  int r = x86_check_target(c, cs, off, 0);
  return r ? r : x86_desc_accessed(c, d);
}

int x86_gate_code(struct x86_vcpu *c, u16 sel, unsigned ext, struct x86_desc *d) {
  if (sel_null(sel)) return x86_fault_code(c, VEC_GP, ext);
  int r = x86_desc_read(c, sel, VEC_GP, ext, d);
  if (r) return r;
  if (!desc_code(d) || desc_dpl(d) > c->cpl) return x86_fault_code(c, VEC_GP, sel_code(sel, ext));
  if (x86_long(c) && (!desc_l(d) || desc_db(d))) return x86_fault_code(c, VEC_GP, sel_code(sel, ext));
  if (!desc_present(d)) return x86_fault_code(c, VEC_NP, sel_code(sel, ext));
  return X86_OK;
}

/* ---- gates and task descriptors, common to JMP and CALL ---- */

/* Privilege to use a gate or TSS from here: max(CPL, RPL) <= DPL. */
static int check_use(struct x86_vcpu *c, u16 sel, const struct x86_desc *d) {
  return desc_dpl(d) < c->cpl || desc_dpl(d) < (sel & 3) ? gp(c, sel) : X86_OK;
}

static int to_task(struct x86_vcpu *c, u16 sel, const struct x86_desc *d, enum task_reason reason, u64 next) {
  int r = check_use(c, sel, d);
  if (r) return r;
  if (desc_type(d) == SYS_TASK_GATE) {
    if (!desc_present(d)) return x86_fault_code(c, VEC_NP, sel_code(sel, 0));
    r = x86_task_gate(c, d, reason, next, c->rflags, 0);
  } else {
    r = x86_task_switch(c, sel, reason, next, c->rflags, 0);
  }
  return r ? r : X86_BRANCH;
}

/* Whether a system descriptor may be the operand of a far JMP or CALL; #GP(sel) if not. */
static bool is_task(const struct x86_vcpu *c, const struct x86_desc *d) {
  unsigned type = desc_type(d);
  return !x86_long(c) &&
         (type == SYS_TASK_GATE || type == SYS_TSS16 || type == SYS_TSS32 || type == SYS_TSS16_BUSY || type == SYS_TSS32_BUSY);
}
static bool is_call_gate(const struct x86_vcpu *c, const struct x86_desc *d) {
  return desc_type(d) == SYS_CALL32 || (!x86_long(c) && desc_type(d) == SYS_CALL16);
}

/* 5.8.4: the gate itself; reads its upper half. */
static int check_call_gate(struct x86_vcpu *c, u16 sel, struct x86_desc *gate) {
  int r = x86_desc_read_upper(c, sel, VEC_GP, 0, gate);
  if (!r) r = check_use(c, sel, gate);
  if (r) return r;
  return desc_present(gate) ? X86_OK : x86_fault_code(c, VEC_NP, sel_code(sel, 0));
}

static int jump_gate(struct x86_vcpu *c, u16 sel, struct x86_desc *gate) {
  struct x86_desc d;
  int r = check_call_gate(c, sel, gate);
  if (!r) r = x86_gate_code(c, gate_sel(gate), 0, &d);
  if (r) return r;
  if (!desc_conforming(&d) && desc_dpl(&d) != c->cpl) return gp(c, gate_sel(gate));
  struct x86_seg cs = x86_desc_seg(gate_sel(gate), &d);
  r = x86_check_target(c, &cs, gate_off(gate), 0);
  if (!r) r = x86_desc_accessed(c, &d);
  if (r) return r;
  x86_commit_cs(c, &cs, c->cpl);
  return finish(c, gate_off(gate));
}

int x86_far_jump(struct x86_vcpu *c, u16 sel, u64 off, unsigned opsize, u64 next) {
  struct x86_desc d;
  if (c->mode & X86_MODE_REAL) return real_target(c, sel, off);
  if (sel_null(sel)) return x86_gp0(c);
  int r = x86_desc_read(c, sel, VEC_GP, 0, &d);
  if (r) return r;
  if (desc_code(&d)) {
    struct x86_seg cs;
    r = direct_code(c, sel, &d, off, &cs);
    if (r) return r;
    x86_commit_cs(c, &cs, c->cpl);
    return finish(c, off);
  }
  if (desc_s(&d)) return gp(c, sel);
  if (is_call_gate(c, &d)) return jump_gate(c, sel, &d);
  if (is_task(c, &d)) return to_task(c, sel, &d, TASK_JMP, next);
  return gp(c, sel);
}

/* ---- CALL ---- */

/* The stack of the CALL that will run in 64-bit mode or not: its pushes belong to the code that executes the CALL. */
static int push_return(struct x86_vcpu *c, unsigned size, u64 next) {
  struct x86_stack st = x86_stack_current(c, 0);
  struct x86_frame f = {.size = size};
  frame_push(&f, c->seg[SEG_CS].sel);
  frame_push(&f, next);
  int r = x86_frame_store(c, &st, &f);
  if (!r) x86_stack_commit(c, &st);
  return r;
}

/* 5.8.5: parameters move to the new stack, in their order. */
static int copy_params(struct x86_vcpu *c, struct x86_frame *f, unsigned n) {
  while (n--) {
    u64 v;
    int r = x86_stack_peek(c, n, f->size, 0, &v);
    if (r) return r;
    frame_push(f, v);
  }
  return X86_OK;
}

static int call_inner(struct x86_vcpu *c, const struct x86_desc *gate, struct x86_desc *d, u64 next) {
  struct x86_seg cs = x86_desc_seg(gate_sel(gate), d);
  unsigned cpl = desc_dpl(d);
  struct x86_stack st;
  struct x86_frame f = {.size = x86_long(c) ? 8 : desc_type(gate) == SYS_CALL32 ? 4 : 2};
  int r = x86_stack_inner(c, cpl, 0, 0, &st);
  if (r) return r;
  frame_push(&f, c->seg[SEG_SS].sel);
  frame_push(&f, c->regs[RSP]);
  if (!x86_long(c)) r = copy_params(c, &f, gate_params(gate));
  if (r) return r;
  frame_push(&f, c->seg[SEG_CS].sel);
  frame_push(&f, next);
  r = x86_check_target(c, &cs, gate_off(gate), 0);
  if (!r) r = x86_desc_accessed(c, d);
  if (!r) r = x86_frame_store(c, &st, &f);
  if (r) return r;
  c->seg[SEG_SS] = st.ss;
  x86_stack_commit(c, &st);
  x86_commit_cs(c, &cs, cpl);
  return finish(c, gate_off(gate));
}

static int call_gate(struct x86_vcpu *c, u16 sel, struct x86_desc *gate, u64 next) {
  struct x86_desc d;
  int r = check_call_gate(c, sel, gate);
  if (!r) r = x86_gate_code(c, gate_sel(gate), 0, &d);
  if (r) return r;
  if (!desc_conforming(&d) && desc_dpl(&d) < c->cpl) return call_inner(c, gate, &d, next);
  struct x86_seg cs = x86_desc_seg(gate_sel(gate), &d);
  r = x86_check_target(c, &cs, gate_off(gate), 0);
  if (!r) r = x86_desc_accessed(c, &d);
  if (!r) r = push_return(c, x86_long(c) ? 8 : desc_type(gate) == SYS_CALL32 ? 4 : 2, next);
  if (r) return r;
  x86_commit_cs(c, &cs, c->cpl);
  return finish(c, gate_off(gate));
}

int x86_far_call(struct x86_vcpu *c, u16 sel, u64 off, unsigned opsize, u64 next) {
  struct x86_desc d;
  if (c->mode & X86_MODE_REAL) return real_call(c, sel, off, opsize, next);
  if (sel_null(sel)) return x86_gp0(c);
  int r = x86_desc_read(c, sel, VEC_GP, 0, &d);
  if (r) return r;
  if (desc_code(&d)) {
    struct x86_seg cs;
    r = direct_code(c, sel, &d, off, &cs);
    if (!r) r = push_return(c, opsize, next);
    if (r) return r;
    x86_commit_cs(c, &cs, c->cpl);
    return finish(c, off);
  }
  if (desc_s(&d)) return gp(c, sel);
  if (is_call_gate(c, &d)) return call_gate(c, sel, &d, next);
  if (is_task(c, &d)) return to_task(c, sel, &d, TASK_CALL, next);
  return gp(c, sel);
}

/* ---- RET ---- */

int x86_return_cs(struct x86_vcpu *c, u16 sel, struct x86_desc *d) {
  unsigned rpl = sel & 3;
  if (sel_null(sel)) return x86_gp0(c);
  int r = x86_desc_read(c, sel, VEC_GP, 0, d);
  if (r) return r;
  if (!desc_code(d) || rpl < c->cpl) return gp(c, sel);
  if (x86_long(c) && desc_l(d) && desc_db(d)) return gp(c, sel);
  if (desc_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl) return gp(c, sel);
  if (!desc_present(d)) return x86_fault_code(c, VEC_NP, sel_code(sel, 0));
  return x86_desc_accessed(c, d);
}

int x86_return_ss(struct x86_vcpu *c, u16 sel, unsigned rpl, bool target64, struct x86_seg *ss) {
  if (!sel_null(sel)) return x86_check_ss(c, sel, rpl, VEC_GP, 0, ss);
  if (!target64 || rpl == 3 || (sel & 3) != rpl) return x86_gp0(c);
  *ss = seg_null(sel, rpl);
  return X86_OK;
}

void x86_null_data_segs(struct x86_vcpu *c, unsigned cpl) {
  static const u8 segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
  for (unsigned n = 0; n < ARRAY_SIZE(segs); n++) {
    struct x86_seg *s = &c->seg[segs[n]];
    bool conforming = (s->type & 12) == 12;
    if (!s->unusable && s->dpl < cpl && !conforming) *s = seg_null(0, 0);
  }
}

static int real_ret(struct x86_vcpu *c, unsigned opsize, unsigned release) {
  u64 off, sel;
  struct x86_stack st = x86_stack_current(c, 0);
  int r = x86_stack_peek(c, 0, opsize, 0, &off);
  if (!r) r = x86_stack_peek(c, 1, opsize, 0, &sel);
  if (r) return r;
  if (off > c->seg[SEG_CS].limit) return x86_gp0(c);
  st.sp = (st.sp & ~st.mask) | ((st.sp + 2 * opsize + release) & st.mask);
  x86_stack_commit(c, &st);
  return real_target(c, (u16)sel, off);
}

/* To a numerically larger ring: the caller's stack comes back too. */
static int ret_outer(struct x86_vcpu *c, const struct x86_seg *cs, u64 off, unsigned opsize, unsigned release) {
  u64 sp, ss_sel;
  struct x86_stack st = {0};
  unsigned rpl = cs->sel & 3;
  bool target64 = x86_long(c) && cs->l;
  int r = x86_stack_peek(c, 2, opsize, release, &sp);
  if (!r) r = x86_stack_peek(c, 3, opsize, release, &ss_sel);
  if (!r) r = x86_return_ss(c, (u16)ss_sel, rpl, target64, &st.ss);
  if (!r) r = x86_check_target(c, cs, off, 0);
  if (r) return r;
  st.mask = seg_sp_mask(&st.ss, target64);
  st.sp = (c->regs[RSP] & ~st.mask) | ((sp + release) & st.mask);
  x86_commit_cs(c, cs, rpl);
  c->seg[SEG_SS] = st.ss;
  x86_stack_commit(c, &st);
  x86_null_data_segs(c, rpl);
  return finish(c, off);
}

int x86_far_ret(struct x86_vcpu *c, unsigned opsize, unsigned release) {
  u64 off, sel;
  struct x86_desc d;
  if (c->mode & X86_MODE_REAL) return real_ret(c, opsize, release);
  int r = x86_stack_peek(c, 0, opsize, 0, &off);
  if (!r) r = x86_stack_peek(c, 1, opsize, 0, &sel);
  if (!r) r = x86_return_cs(c, (u16)sel, &d);
  if (r) return r;
  struct x86_seg cs = x86_desc_seg((u16)sel, &d);
  if ((sel & 3) > c->cpl) return ret_outer(c, &cs, off, opsize, release);
  r = x86_check_target(c, &cs, off, 0);
  if (r) return r;
  struct x86_stack st = x86_stack_current(c, 0);
  st.sp = (st.sp & ~st.mask) | ((st.sp + 2 * opsize + release) & st.mask);
  x86_stack_commit(c, &st);
  x86_commit_cs(c, &cs, c->cpl);
  return finish(c, off);
}
