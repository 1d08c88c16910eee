/* Stacks in transfers of control: the frame a gate or call pushes, the inner stack from the TSS, items read before they are
 * popped.
 *
 * Intel SDM Vol. 3A 5.8.5, 6.12.1, 6.14.2 to 6.14.5.
 */
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

struct x86_stack x86_stack_current(struct x86_vcpu *c, u32 error) {
  struct x86_stack st = {.ss = c->seg[SEG_SS], .sp = c->regs[RSP], .flat = c->code64, .cpl = c->cpl, .error = error};
  st.mask = seg_sp_mask(&st.ss, c->code64);
  return st;
}

/* 8.7: RSP0-2 and IST1-7 of the 64-bit TSS.  SS becomes null, which is the caller's to commit where the ring changes. */
static int inner_long(struct x86_vcpu *c, unsigned cpl, unsigned ist, unsigned ext, struct x86_stack *st) {
  u32 at = ist ? 0x24 + (ist - 1) * 8 : 4 + cpl * 8;
  if (at + 7 > c->tr.limit) return x86_fault_code(c, VEC_TS, sel_code(c->tr.sel, ext));
  int r = x86_sys_read(c, c->tr.base + at, &st->sp, 8);
  if (r) return r;
  st->ss = seg_null((u16)cpl, cpl);
  st->mask = ~0ull;
  st->flat = true;
  st->error = ext;
  return X86_OK;
}

static int inner_legacy(struct x86_vcpu *c, unsigned cpl, unsigned ext, struct x86_stack *st) {
  bool wide = c->tr.type & 8;
  unsigned half = wide ? 4 : 2;
  u32 at = half + cpl * 2 * half;
  u16 sel;
  st->sp = 0;
  if (at + half + 1 > c->tr.limit) return x86_fault_code(c, VEC_TS, sel_code(c->tr.sel, ext));
  int r = x86_sys_read(c, c->tr.base + at, &st->sp, half);
  if (!r) r = x86_sys_read(c, c->tr.base + at + half, &sel, 2);
  if (r) return r;
  if (sel_null(sel)) return x86_fault_code(c, VEC_TS, ext);
  r = x86_check_ss(c, sel, cpl, VEC_TS, ext, &st->ss);
  if (r) return r;
  st->mask = seg_sp_mask(&st->ss, false);
  st->flat = false;
  st->error = sel_code(sel, ext);
  return X86_OK;
}

int x86_stack_inner(struct x86_vcpu *c, unsigned cpl, unsigned ist, unsigned ext, struct x86_stack *st) {
  st->cpl = (u8)cpl;
  return x86_long(c) ? inner_long(c, cpl, ist, ext, st) : inner_legacy(c, cpl, ext, st);
}

/* The linear address of a part of the frame.  What ring 3 pushes is checked for alignment like any operand. */
static int frame_linear(struct x86_vcpu *c, const struct x86_stack *st, u64 ea, unsigned size, unsigned item, u64 *lin) {
  bool ok = st->flat ? x86_canonical(c, ea) && x86_canonical(c, ea + size - 1) : x86_seg_limit_ok(&st->ss, ea, size);
  if (!ok) return x86_fault_code(c, VEC_SS, st->error);
  *lin = st->flat ? ea : (u32)(st->ss.base + ea);
  if (unlikely(st->cpl == 3 && x86_alignment_checked(c) && (*lin & (item - 1)))) return x86_fault_code(c, VEC_AC, 0);
  return X86_OK;
}

/* Data breakpoints watch what is pushed here, too; they trap when the transfer is done (SDM Vol. 3B 17.2.5). */
static void pushed(struct x86_vcpu *c, u64 lin, unsigned len) {
  if (likely(!(x86_debug_dr7(c) & 0xff))) return;
  x86_data_breakpoint(c, lin, len, true);
  if (c->pending_dbg & DR6_TRAPS) x86_request_event(c);
}

/* The stack pointer wraps inside the frame: item by item, all checked first. */
static int store_wrapped(struct x86_vcpu *c, struct x86_stack *st, const struct x86_frame *f) {
  u64 lin[FRAME_MAX], sp = st->sp;
  for (unsigned n = 0; n < f->n; n++) {
    sp = (sp - f->size) & st->mask;
    int r = frame_linear(c, st, sp, f->size, f->size, &lin[n]);
    if (!r) r = x86_probe_write(c, lin[n], f->size, st->cpl);
    if (r) return r;
  }
  for (unsigned n = 0; n < f->n; n++) {
    int r = x86_write_cpl(c, lin[n], &f->item[n], f->size, st->cpl);
    if (r) return r;
    pushed(c, lin[n], f->size);
  }
  st->sp = (st->sp & ~st->mask) | sp;
  return X86_OK;
}

/* A page of the frame is missing: the address reported is that of the item a processor would have pushed first into it. */
static int frame_fault(struct x86_vcpu *c, const struct x86_stack *st, const struct x86_frame *f, u64 lin) {
  u64 top = lin + (u64)(f->n - 1) * f->size;
  if (c->fault.vector != VEC_PF) return X86_FAULT;
  u32 error = c->fault.error;
  int r = x86_probe_write(c, top, f->size, st->cpl);
  u64 at = top;
  if (r == X86_OK) at = lin + ((top & PAGE_MASK) - 1 - lin) / f->size * f->size;
  c->fault = (struct x86_fault){.vector = VEC_PF, .has_error = true, .error = r ? c->fault.error : error, .payload = at};
  return X86_FAULT;
}

int x86_frame_store(struct x86_vcpu *c, struct x86_stack *st, const struct x86_frame *f) {
  u8 data[FRAME_MAX * 8];
  unsigned len = f->n * f->size;
  u64 lin, bottom = (st->sp - len) & st->mask;
  if (bottom + len - 1 > st->mask) return store_wrapped(c, st, f);
  int r = frame_linear(c, st, bottom, len, f->size, &lin);
  if (r) return r;
  for (unsigned n = 0; n < f->n; n++) {
    u8 *at = data + len - (n + 1) * f->size;
    if (f->size == 8)
      *(x86_u64_unaligned *)at = f->item[n];
    else if (f->size == 4)
      *(x86_u32_unaligned *)at = (u32)f->item[n];
    else
      *(x86_u16_unaligned *)at = (u16)f->item[n];
  }
  r = x86_write_cpl(c, lin, data, len, st->cpl);
  if (unlikely(r)) return r == X86_FAULT ? frame_fault(c, st, f, lin) : r;
  pushed(c, lin, len);
  st->sp = (st->sp & ~st->mask) | bottom;
  return X86_OK;
}

void x86_stack_commit(struct x86_vcpu *c, const struct x86_stack *st) {
  c->regs[RSP] = st->mask == 0xffffffffull ? (u32)st->sp : st->sp;
}

int x86_stack_peek(struct x86_vcpu *c, unsigned n, unsigned size, unsigned skip, u64 *v) {
  u64 ea = (c->regs[RSP] + (u64)n * size + skip) & seg_sp_mask(&c->seg[SEG_SS], c->code64);
  *v = 0;
  return x86_read(c, SEG_SS, ea, v, size);
}
