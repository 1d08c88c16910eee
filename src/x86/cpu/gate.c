/* Delivery of an event in protected, virtual-8086 and IA-32e mode through the IDT.
 *
 * Intel SDM Vol. 2 INT n, operation; Vol. 3A 6.12 (protected mode), 6.14 (64-bit), 20.3 (virtual-8086).
 */
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

/* The IDT entry, or a fault with the IDT error code. */
static int read_gate(struct x86_vcpu *c, const struct x86_event *e, struct x86_desc *d) {
  unsigned size = x86_long(c) ? 16 : 8;
  u32 code = e->vector * 8u + 2 + e->ext, at = e->vector * size;
  u64 raw[2] = {0, 0};
  if (at + size - 1 > c->idtr.limit) return x86_fault_code(c, VEC_GP, code);
  int r = x86_sys_read(c, c->idtr.base + at, raw, size);
  if (r) return r;
  *d = (struct x86_desc){.lo = raw[0], .hi = (u32)raw[1]};
  unsigned type = desc_type(d);
  bool ok = type == SYS_INT32 || type == SYS_TRAP32 ||
            (!x86_long(c) && (type == SYS_INT16 || type == SYS_TRAP16 || type == SYS_TASK_GATE));
  if (desc_s(d) || !ok) return x86_fault_code(c, VEC_GP, code);
  /* 6.12.1.1: only software interrupts look at the gate's DPL. */
  bool soft = e->kind == EV_SOFT_INT || e->kind == EV_SOFT_EXCEPTION;
  if (soft && desc_dpl(d) < c->cpl) return x86_fault_code(c, VEC_GP, code);
  return desc_present(d) ? X86_OK : x86_fault_code(c, VEC_NP, code);
}

/* 6.14.2: RSP is aligned before anything is pushed. */
static void align_long(struct x86_stack *st) { st->sp &= ~15ull; }

/* The stack the frame goes to, and whether the ring changes. */
static int choose_stack(struct x86_vcpu *c, const struct x86_event *e, const struct x86_desc *gate, bool inner, unsigned cpl,
                        struct x86_stack *st) {
  unsigned ist = x86_long(c) ? gate_ist(gate) : 0;
  int r = X86_OK;
  if (inner || ist)
    r = x86_stack_inner(c, cpl, ist, e->ext, st);
  else
    *st = x86_stack_current(c, e->ext);
  if (r || !x86_long(c)) return r;
  st->flat = true; /* the handler is 64-bit code, whatever was interrupted */
  st->mask = ~0ull;
  align_long(st);
  return X86_OK;
}

/* 6.12.1, 6.14.2, 20.3.1: what the handler finds on its stack. */
static void build_frame(struct x86_vcpu *c, const struct x86_event *e, bool with_stack, struct x86_frame *f) {
  if (x86_v86(c)) {
    frame_push(f, c->seg[SEG_GS].sel);
    frame_push(f, c->seg[SEG_FS].sel);
    frame_push(f, c->seg[SEG_DS].sel);
    frame_push(f, c->seg[SEG_ES].sel);
  }
  if (with_stack) {
    frame_push(f, c->seg[SEG_SS].sel);
    frame_push(f, c->regs[RSP]);
  }
  frame_push(f, e->flags);
  frame_push(f, c->seg[SEG_CS].sel);
  frame_push(f, e->ret);
  if (e->has_error) frame_push(f, e->error);
}

static void leave_v86(struct x86_vcpu *c) {
  static const u8 segs[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
  for (unsigned n = 0; n < ARRAY_SIZE(segs); n++) c->seg[segs[n]] = seg_null(0, 0);
}

/* Interrupt and trap gates. */
static int through_gate(struct x86_vcpu *c, const struct x86_event *e, const struct x86_desc *gate) {
  struct x86_desc d;
  struct x86_stack st;
  struct x86_frame f = {.size = x86_long(c) ? 8 : desc_type(gate) & 8 ? 4 : 2};
  u16 sel = gate_sel(gate);
  bool v86 = x86_v86(c), interrupt = !(desc_type(gate) & 1);
  int r = x86_gate_code(c, sel, e->ext, &d);
  if (r) return r;
  bool inner = !desc_conforming(&d) && desc_dpl(&d) < c->cpl;
  if (v86 && (!inner || desc_dpl(&d) != 0)) return x86_fault_code(c, VEC_GP, sel_code(sel, e->ext));
  unsigned cpl = inner ? desc_dpl(&d) : c->cpl;
  struct x86_seg cs = x86_desc_seg(sel, &d);
  r = choose_stack(c, e, gate, inner, cpl, &st);
  if (!r) r = x86_check_target(c, &cs, gate_off(gate), e->ext);
  if (!r) r = x86_desc_accessed(c, &d);
  if (r) return r;
  build_frame(c, e, inner || x86_long(c), &f);
  r = x86_frame_store(c, &st, &f);
  if (r) return r;

  u64 flags = c->rflags & ~(u64)(FL_TF | FL_NT | FL_RF | FL_VM);
  if (interrupt) flags &= ~(u64)FL_IF;
  if (v86) leave_v86(c);
  if (inner) c->seg[SEG_SS] = st.ss;
  x86_stack_commit(c, &st);
  x86_commit_cs(c, &cs, cpl);
  c->rip = gate_off(gate);
  x86_commit_flags(c, flags);
  return X86_OK;
}

/* 7.3, last steps: an exception's error code goes to the new task's stack. */
static int through_task(struct x86_vcpu *c, const struct x86_event *e, const struct x86_desc *gate) {
  int r = x86_task_gate(c, gate, TASK_GATE, e->ret, e->flags, e->ext);
  if (r || !e->has_error) return r;
  struct x86_stack st = x86_stack_current(c, e->ext);
  struct x86_frame f = {.size = c->tr.type & 8 ? 4 : 2};
  frame_push(&f, e->error);
  r = x86_frame_store(c, &st, &f);
  if (!r) x86_stack_commit(c, &st);
  return r;
}

/* ---- virtual-8086 mode ---- */

/* 20.3.3: the bit of INT n in the software interrupt redirection bitmap, 32 bytes below the I/O map.  0: the program's own
 * handler. */
static int redirection_bit(struct x86_vcpu *c, unsigned vector, bool *bit) {
  u16 map;
  u8 byte;
  if ((c->tr.type & 13) != 9 || c->tr.limit < 103) return x86_gp0(c);
  int r = x86_sys_read(c, c->tr.base + 102, &map, 2);
  if (r) return r;
  u32 at = map - 32u + vector / 8;
  if (map < 32 || at > c->tr.limit) return x86_gp0(c);
  r = x86_sys_read(c, c->tr.base + at, &byte, 1);
  *bit = (byte >> (vector & 7)) & 1;
  return r;
}

/* 20.3.3.4 to 20.3.3.6: through the interrupt table at linear address 0, staying in virtual-8086 mode. */
static int v86_redirect(struct x86_vcpu *c, const struct x86_event *e) {
  u32 entry;
  bool vif = x86_iopl(c) < 3;
  u64 image = e->flags;
  struct x86_stack st = x86_stack_current(c, 0);
  struct x86_frame f = {.size = 2};
  int r = x86_sys_read(c, e->vector * 4u, &entry, 4);
  if (r) return r;
  if (vif) image = (image & ~(u64)FL_IF) | FL_IOPL | (c->rflags & FL_VIF ? FL_IF : 0);
  frame_push(&f, image);
  frame_push(&f, c->seg[SEG_CS].sel);
  frame_push(&f, e->ret);
  r = x86_frame_store(c, &st, &f);
  if (r) return r;
  x86_stack_commit(c, &st);
  x86_seg_real(c, SEG_CS, (u16)(entry >> 16));
  c->rip = entry & 0xffff;
  x86_commit_flags(c, c->rflags & ~(u64)(FL_TF | FL_RF | (vif ? FL_VIF : FL_IF)));
  return X86_OK;
}

/* 20.3, table 20-2: INT n in virtual-8086 mode.  *done: handled here. */
static int v86_soft_int(struct x86_vcpu *c, const struct x86_event *e, bool *done) {
  bool bit = true;
  *done = true;
  if (c->cr4 & CR4_VME) {
    int r = redirection_bit(c, e->vector, &bit);
    if (r) return r;
    if (!bit) return v86_redirect(c, e);
  }
  if (x86_iopl(c) < 3) return x86_gp0(c);
  *done = false;
  return X86_OK;
}

int x86_gate_deliver(struct x86_vcpu *c, const struct x86_event *e) {
  struct x86_desc gate;
  if (x86_gate64(c, e)) return X86_OK;
  if (x86_v86(c) && e->kind == EV_SOFT_INT) {
    bool done;
    int r = v86_soft_int(c, e, &done);
    if (r || done) return r;
  }
  int r = read_gate(c, e, &gate);
  if (r) return r;
  return desc_type(&gate) == SYS_TASK_GATE ? through_task(c, e, &gate) : through_gate(c, e, &gate);
}
