/* System management mode: entry by SMI, return by RSM, and the state-save area as KVM lays it out.
 *
 * Intel SDM Vol. 3C chapter 31; AMD APM Vol. 2, 10.2 (the 64-bit save area).  Offsets are from SMBASE + 0x8000, the area is its
 * last 512 bytes.
 */
#include <string.h>
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/cpuid/cpuid.h"
#include "x86/mmu/walk.h"
#include "x86/x86.h"

#define SAVE_BASE 0x7e00u
#define SAVE_SIZE 512u

static u64 get(const u8 *area, unsigned at, unsigned size) {
  u64 v = 0;
  memcpy(&v, area + at - SAVE_BASE, size);
  return v;
}
static void put(u8 *area, unsigned at, unsigned size, u64 v) { memcpy(area + at - SAVE_BASE, &v, size); }

/* Attributes as in the second word of a descriptor, bits 8-23. */
static u32 seg_flags(const struct x86_seg *s) {
  return (u32)s->g << 23 | (u32)s->db << 22 | (u32)s->l << 21 | (u32)s->avl << 20 | (u32)(s->present && !s->unusable) << 15 |
         (u32)s->dpl << 13 | (u32)s->s << 12 | (u32)s->type << 8;
}
static struct x86_seg seg_of(u16 sel, u64 base, u32 limit, u32 flags) {
  struct x86_seg s = {.sel = sel,
                      .base = base,
                      .limit = limit,
                      .g = (flags >> 23) & 1,
                      .db = (flags >> 22) & 1,
                      .l = (flags >> 21) & 1,
                      .avl = (flags >> 20) & 1,
                      .present = (flags >> 15) & 1,
                      .dpl = (flags >> 13) & 3,
                      .s = (flags >> 12) & 1,
                      .type = (flags >> 8) & 15};
  s.unusable = !s.present;
  x86_seg_update(&s);
  return s;
}

/* ---- the 64-bit layout: processors with long mode ---- */

enum {
  S64_FLAGS = 0x7f70,
  S64_RIP = 0x7f78,
  S64_DR6 = 0x7f68,
  S64_DR7 = 0x7f60,
  S64_CR0 = 0x7f58,
  S64_CR3 = 0x7f50,
  S64_CR4 = 0x7f48,
  S64_SMBASE = 0x7f00,
  S64_REVISION = 0x7efc,
  S64_EFER = 0x7ed0,
  S64_TR = 0x7e90,
  S64_IDTR = 0x7e80,
  S64_LDTR = 0x7e70,
  S64_GDTR = 0x7e60,
  S64_SEG = 0x7e00
};

static void put_seg64(u8 *area, unsigned at, const struct x86_seg *s) {
  put(area, at, 2, s->sel);
  put(area, at + 2, 2, seg_flags(s) >> 8);
  put(area, at + 4, 4, s->limit);
  put(area, at + 8, 8, s->base);
}
static struct x86_seg get_seg64(const u8 *area, unsigned at) {
  return seg_of((u16)get(area, at, 2), get(area, at + 8, 8), (u32)get(area, at + 4, 4), (u32)get(area, at + 2, 2) << 8);
}

static void save64(struct x86_vcpu *c, u8 *area) {
  for (unsigned n = 0; n < 16; n++) put(area, 0x7ff8 - n * 8, 8, c->regs[n]);
  put(area, S64_RIP, 8, c->rip);
  put(area, S64_FLAGS, 4, c->rflags);
  put(area, S64_DR6, 8, c->dr[6]);
  put(area, S64_DR7, 8, c->dr[7]);
  put(area, S64_CR0, 8, c->cr0);
  put(area, S64_CR3, 8, c->cr3);
  put(area, S64_CR4, 8, c->cr4);
  put(area, S64_SMBASE, 4, c->smbase);
  put(area, S64_REVISION, 4, 0x00020064);
  put(area, S64_EFER, 8, c->efer);
  put_seg64(area, S64_TR, &c->tr);
  put_seg64(area, S64_LDTR, &c->ldtr);
  put(area, S64_IDTR + 4, 4, c->idtr.limit);
  put(area, S64_IDTR + 8, 8, c->idtr.base);
  put(area, S64_GDTR + 4, 4, c->gdtr.limit);
  put(area, S64_GDTR + 8, 8, c->gdtr.base);
  for (unsigned n = 0; n < 6; n++) put_seg64(area, S64_SEG + n * 16, &c->seg[n]);
}

/* ---- the 32-bit layout ---- */

enum {
  S32_CR0 = 0x7ffc,
  S32_CR3 = 0x7ff8,
  S32_FLAGS = 0x7ff4,
  S32_RIP = 0x7ff0,
  S32_REGS = 0x7fd0,
  S32_DR6 = 0x7fcc,
  S32_DR7 = 0x7fc8,
  S32_TR_SEL = 0x7fc4,
  S32_LDTR_SEL = 0x7fc0,
  S32_SEG_SEL = 0x7fa8,
  S32_LDTR = 0x7f78,
  S32_GDTR = 0x7f70,
  S32_TR = 0x7f5c,
  S32_IDTR = 0x7f54,
  S32_CR4 = 0x7f14,
  S32_REVISION = 0x7efc,
  S32_SMBASE = 0x7ef8
};

static unsigned seg32_at(unsigned n) { return n < 3 ? 0x7f84 + n * 12 : 0x7f2c + (n - 3) * 12; }

static void put_seg32(u8 *area, unsigned sel_at, unsigned at, const struct x86_seg *s) {
  put(area, sel_at, 4, s->sel);
  put(area, at, 4, seg_flags(s));
  put(area, at + 4, 4, s->limit);
  put(area, at + 8, 4, s->base);
}
static struct x86_seg get_seg32(const u8 *area, unsigned sel_at, unsigned at) {
  return seg_of((u16)get(area, sel_at, 4), get(area, at + 8, 4), (u32)get(area, at + 4, 4), (u32)get(area, at, 4));
}

static void save32(struct x86_vcpu *c, u8 *area) {
  put(area, S32_CR0, 4, c->cr0);
  put(area, S32_CR3, 4, c->cr3);
  put(area, S32_FLAGS, 4, c->rflags);
  put(area, S32_RIP, 4, c->rip);
  for (unsigned n = 0; n < 8; n++) put(area, S32_REGS + n * 4, 4, c->regs[n]);
  put(area, S32_DR6, 4, c->dr[6]);
  put(area, S32_DR7, 4, c->dr[7]);
  put_seg32(area, S32_TR_SEL, S32_TR, &c->tr);
  put_seg32(area, S32_LDTR_SEL, S32_LDTR, &c->ldtr);
  put(area, S32_GDTR, 4, c->gdtr.limit);
  put(area, S32_GDTR + 4, 4, c->gdtr.base);
  put(area, S32_IDTR, 4, c->idtr.limit);
  put(area, S32_IDTR + 4, 4, c->idtr.base);
  for (unsigned n = 0; n < 6; n++) put_seg32(area, S32_SEG_SEL + n * 4, seg32_at(n), &c->seg[n]);
  put(area, S32_CR4, 4, c->cr4);
  put(area, S32_REVISION, 4, 0x00020000);
  put(area, S32_SMBASE, 4, c->smbase);
}

/* ---- entry ---- */

/* 31.4.1: 4 GiB segments, real-mode addressing from SMBASE. */
static void smm_state(struct x86_vcpu *c) {
  struct x86_seg data = seg_of(0, 0, 0xffffffffu, 0x00809300);
  for (unsigned n = 0; n < 6; n++) c->seg[n] = data;
  c->seg[SEG_CS] = seg_of((u16)(c->smbase >> 4), c->smbase, 0xffffffffu, 0x00809300);
  c->idtr.base = c->idtr.limit = 0;
  c->rflags = 2;
  c->rip = 0x8000;
  c->cr0 &= ~(u64)(CR0_PE | CR0_EM | CR0_TS | CR0_PG);
  c->cr4 = 0;
  c->efer = 0;
  c->dr[7] = 0x400;
  c->pending_dbg = 0;
}

static void recompute(struct x86_vcpu *c) {
  x86_mmu_mode_changed(c);
  x86_mode_changed(c);
}

static u64 save_area(const struct x86_vcpu *c) { return c->smbase + 0x8000 + SAVE_BASE; }

/* A client that gave SMM no memory there loses the state, as with KVM. */
static bool area_is_ram(struct x86_vcpu *c) {
  return x86_memslot(c, save_area(c) >> PAGE_SHIFT) && x86_memslot(c, (save_area(c) + SAVE_SIZE - 1) >> PAGE_SHIFT);
}

void x86_smi_enter(struct x86_vcpu *c) {
  u8 area[SAVE_SIZE] = {0};
  u64 cr4 = c->cr4;
  if (x86_has(c, X86_FEATURE_LM))
    save64(c, area);
  else
    save32(c, area);
  c->smm = true;
  c->smm_nmi_mask = c->nmi_blocked;
  c->nmi_blocked = true;
  smm_state(c);
  x86_cpuid_cr4_changed(c, cr4 ^ c->cr4);
  recompute(c);
  /* Paging is off now, and the SMM address space in force: linear is physical. */
  if (area_is_ram(c)) x86_sys_write(c, save_area(c), area, SAVE_SIZE);
}

/* ---- return ---- */

/* Every control register through its checks, in an order in which each is legal; X86_FAULT if the image is not. */
static int restore_control(struct x86_vcpu *c, u64 cr0, u64 cr3, u64 cr4) {
  u64 pcid = cr4 & CR4_PCIDE ? cr3 & 0xfff : 0;
  int r = x86_set_cr3(c, cr3 & ~pcid);
  if (!r) r = x86_set_cr4(c, cr4 & ~(u64)CR4_PCIDE);
  if (!r) r = x86_set_cr0(c, cr0);
  if (!r && (cr4 & CR4_PCIDE)) r = x86_set_cr4(c, cr4);
  if (!r && pcid) r = x86_set_cr3(c, cr3);
  return r == X86_FAULT || r == X86_EXIT ? r : X86_OK;
}

static int load64(struct x86_vcpu *c, const u8 *area) {
  for (unsigned n = 0; n < 16; n++) c->regs[n] = get(area, 0x7ff8 - n * 8, 8);
  c->rip = get(area, S64_RIP, 8);
  c->rflags = get(area, S64_FLAGS, 4) | 2;
  c->dr[6] = get(area, S64_DR6, 4) | 0xffff0ff0u;
  c->dr[7] = get(area, S64_DR7, 4) | 0x400;
  c->smbase = get(area, S64_SMBASE, 4);
  c->tr = get_seg64(area, S64_TR);
  c->ldtr = get_seg64(area, S64_LDTR);
  c->idtr.limit = (u16)get(area, S64_IDTR + 4, 4);
  c->idtr.base = get(area, S64_IDTR + 8, 8);
  c->gdtr.limit = (u16)get(area, S64_GDTR + 4, 4);
  c->gdtr.base = get(area, S64_GDTR + 8, 8);
  int r = x86_set_efer(c, get(area, S64_EFER, 8) & ~(u64)EFER_LMA, true);
  if (!r) r = restore_control(c, get(area, S64_CR0, 8), get(area, S64_CR3, 8), get(area, S64_CR4, 8));
  for (unsigned n = 0; n < 6; n++) c->seg[n] = get_seg64(area, S64_SEG + n * 16);
  return r;
}

static int load32(struct x86_vcpu *c, const u8 *area) {
  c->rflags = get(area, S32_FLAGS, 4) | 2;
  c->rip = get(area, S32_RIP, 4);
  for (unsigned n = 0; n < 8; n++) c->regs[n] = get(area, S32_REGS + n * 4, 4);
  c->dr[6] = get(area, S32_DR6, 4) | 0xffff0ff0u;
  c->dr[7] = get(area, S32_DR7, 4) | 0x400;
  c->tr = get_seg32(area, S32_TR_SEL, S32_TR);
  c->ldtr = get_seg32(area, S32_LDTR_SEL, S32_LDTR);
  c->gdtr.limit = (u16)get(area, S32_GDTR, 4);
  c->gdtr.base = get(area, S32_GDTR + 4, 4);
  c->idtr.limit = (u16)get(area, S32_IDTR, 4);
  c->idtr.base = get(area, S32_IDTR + 4, 4);
  for (unsigned n = 0; n < 6; n++) c->seg[n] = get_seg32(area, S32_SEG_SEL + n * 4, seg32_at(n));
  c->smbase = get(area, S32_SMBASE, 4);
  return restore_control(c, get(area, S32_CR0, 4), get(area, S32_CR3, 4), get(area, S32_CR4, 4));
}

/* Back to real mode, from whatever the handler had set up; then the area can be read by physical address. */
static bool read_area(struct x86_vcpu *c, u8 *area) {
  c->cr0 &= ~(u64)(CR0_PG | CR0_PE);
  c->cr4 &= ~(u64)(CR4_PCIDE | CR4_PAE);
  c->efer = 0;
  c->rflags &= ~(u64)FL_VM;
  for (unsigned n = 0; n < 6; n++) c->seg[n].l = 0;
  recompute(c);
  return area_is_ram(c) && x86_sys_read(c, save_area(c), area, SAVE_SIZE) == X86_OK;
}

int x86_rsm(struct x86_vcpu *c) {
  u8 area[SAVE_SIZE];
  if (!c->smm) return x86_ud(c);
  bool ok = read_area(c, area);
  c->smm = false;
  if (!c->smm_nmi_mask) c->nmi_blocked = false;
  c->smm_nmi_mask = false;
  ok = ok && (x86_has(c, X86_FEATURE_LM) ? load64(c, area) : load32(c, area)) == X86_OK;
  recompute(c);
  x86_request_event(c); /* NMIs, SMIs and INITs may have waited */
  if (ok) return X86_BRANCH;
  /* 31.4: an invalid image is a shutdown. */
  c->triple_fault = true;
  vcpu_request(&c->core, REQ_TRIPLE_FAULT);
  return X86_BRANCH;
}
