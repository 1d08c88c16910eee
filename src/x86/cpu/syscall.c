/* SYSCALL, SYSRET, SYSENTER, SYSEXIT.
 *
 * Intel SDM Vol. 2B, operation sections; AMD APM Vol. 3 where the guest's processor is AMD's: legacy and compatibility modes of
 * SYSCALL, no SYSENTER in long mode, SYSRET to a non-canonical address faults in the new ring.
 */
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/x86.h"

/* The flat segments these instructions load without looking at a descriptor. */
static struct x86_seg flat_code(u16 sel, unsigned dpl, bool is64) {
  return (struct x86_seg){
      .limit = 0xffffffffu, .sel = sel, .type = 11, .s = 1, .dpl = (u8)dpl, .present = 1, .l = is64, .db = !is64, .g = 1};
}
static struct x86_seg flat_stack(u16 sel, unsigned dpl) {
  struct x86_seg s = {.limit = 0xffffffffu, .sel = sel, .type = 3, .s = 1, .dpl = (u8)dpl, .present = 1, .db = 1, .g = 1};
  x86_seg_update(&s);
  return s;
}

/* AMD's SYSRET loads the selector of SS alone: what is cached of it stays, also where it is null (APM Vol. 3, SYSRET).  CPL is kept
 * as SS.DPL. */
static struct x86_seg kept_stack(const struct x86_vcpu *c, u16 sel) {
  struct x86_seg s = c->seg[SEG_SS];
  s.sel = sel;
  s.dpl = 3;
  return s;
}

static int enter_with(struct x86_vcpu *c, u16 cs_sel, const struct x86_seg *ss, unsigned cpl, bool is64, u64 ip, u64 flags) {
  struct x86_seg cs = flat_code(cs_sel, cpl, is64);
  x86_commit_cs(c, &cs, cpl);
  c->seg[SEG_SS] = *ss;
  c->rip = ip;
  x86_commit_flags(c, flags);
  return X86_BRANCH;
}

static int enter(struct x86_vcpu *c, u16 cs_sel, u16 ss_sel, unsigned cpl, bool is64, u64 ip, u64 flags) {
  struct x86_seg ss = flat_stack((u16)((ss_sel & 0xfffc) | cpl), cpl);
  return enter_with(c, cs_sel, &ss, cpl, is64, ip, flags);
}

int x86_syscall(struct x86_vcpu *c, u64 next) {
  u16 sel = (u16)(c->star >> 32);
  if (!(c->efer & EFER_SCE)) return x86_ud(c);
  if (!c->code64 && !x86_is_amd(c)) return x86_ud(c);
  if (!x86_protected(c)) return x86_ud(c);
  if (!x86_long(c)) { /* AMD legacy mode */
    c->regs[RCX] = (u32)next;
    return enter(c, sel & 0xfffc, (u16)(sel + 8), 0, false, (u32)c->star, c->rflags & ~(u64)(FL_IF | FL_RF | FL_VM));
  }
  bool stepping = c->mode & X86_MODE_SINGLE;
  u64 flags = c->rflags & ~(u64)FL_RF, target = c->code64 ? c->lstar : c->cstar;
  c->regs[RCX] = next;
  c->regs[R11] = flags;
  enter(c, sel & 0xfffc, (u16)(sel + 8), 0, true, target, flags & ~c->sfmask);
  x86_debug_new_tf(c, stepping);
  return X86_BRANCH;
}

int x86_sysret(struct x86_vcpu *c, unsigned opsize) {
  u16 sel = (u16)(c->star >> 48);
  bool amd = x86_is_amd(c), to64 = opsize == 8, stepping = c->mode & X86_MODE_SINGLE;
  if (!(c->efer & EFER_SCE) || !x86_protected(c)) return x86_ud(c);
  if (!c->code64 && !amd) return x86_ud(c);
  if (c->cpl) return x86_gp0(c);
  if (to64 && !amd && !x86_canonical(c, c->regs[RCX])) return x86_gp0(c);
  u64 ip = to64 ? c->regs[RCX] : (u32)c->regs[RCX];
  u64 flags = x86_long(c) ? c->regs[R11] & 0x3c7fd7u : c->rflags | FL_IF;
  u16 ss_sel = (u16)((sel + 8) | 3);
  struct x86_seg ss = amd ? kept_stack(c, ss_sel) : flat_stack(ss_sel, 3);
  enter_with(c, (u16)(to64 ? sel + 16 : sel), &ss, 3, to64, ip, flags);
  if (x86_long(c)) x86_debug_new_tf(c, stepping); /* the trap comes before the first instruction of user code */
  return X86_BRANCH;
}

int x86_sysenter(struct x86_vcpu *c) {
  u16 sel = (u16)c->sysenter_cs & 0xfffc;
  bool is64 = x86_long(c);
  if (is64 && x86_is_amd(c)) return x86_ud(c);
  if (!x86_protected(c) || !sel) return x86_gp0(c);
  c->regs[RSP] = is64 ? c->sysenter_esp : (u32)c->sysenter_esp;
  return enter(c, sel, (u16)(sel + 8), 0, is64, is64 ? c->sysenter_eip : (u32)c->sysenter_eip,
               c->rflags & ~(u64)(FL_VM | FL_IF | FL_RF));
}

int x86_sysexit(struct x86_vcpu *c, unsigned opsize) {
  u16 sel = (u16)c->sysenter_cs & 0xfffc;
  bool to64 = opsize == 8;
  if (x86_long(c) && x86_is_amd(c)) return x86_ud(c);
  if (!x86_protected(c) || !sel || c->cpl) return x86_gp0(c);
  if (to64 && !(x86_canonical(c, c->regs[RCX]) && x86_canonical(c, c->regs[RDX]))) return x86_gp0(c);
  u16 cs = (u16)(sel + (to64 ? 32 : 16));
  u64 ip = to64 ? c->regs[RDX] : (u32)c->regs[RDX];
  c->regs[RSP] = to64 ? c->regs[RCX] : (u32)c->regs[RCX];
  return enter(c, cs, (u16)(cs + 8), 3, to64, ip, c->rflags & ~(u64)FL_RF);
}
