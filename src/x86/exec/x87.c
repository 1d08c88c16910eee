/* x87 and MMX: availability, pending exceptions, the control instructions; arithmetic runs through stubs. */
#include <string.h>
#include "x86/exec/native.h"
#include "x86/exec/xstate.h"

/* FXSAVE64 image fields (SDM Vol. 1, table 10-2). */
static u16 *fcw(struct x86_vcpu *c) { return (u16 *)(void *)&c->fpu.fx[0]; }
static u16 *fsw(struct x86_vcpu *c) { return (u16 *)(void *)&c->fpu.fx[2]; }
static u8 *ftw(struct x86_vcpu *c) { return &c->fpu.fx[4]; }
static u16 *fop(struct x86_vcpu *c) { return (u16 *)(void *)&c->fpu.fx[6]; }

#define FSW_ES 0x80u
#define FSW_B  0x8000u
#define FSW_IE 0x01u
#define FSW_OE 0x08u
#define FSW_UE 0x10u

/* ES and B summarise unmasked pending exceptions. */
static void summarize(struct x86_vcpu *c) {
  bool pending = *fsw(c) & ~*fcw(c) & 0x3f;
  *fsw(c) = (u16)((*fsw(c) & ~(FSW_ES | FSW_B)) | (pending ? FSW_ES | FSW_B : 0));
}

void x86_x87_sanitize(struct x86_vcpu *c) {
  *fcw(c) = (u16)((*fcw(c) & 0x1f3f) | 0x40);
  *fop(c) &= 0x7ff;
  c->fpu.fx[5] = 0; /* reserved */
  summarize(c);
}

int x86_x87_check(struct x86_vcpu *c, bool mmx, bool waits) {
  if (c->cr0 & CR0_EM) return mmx ? x86_ud(c) : x86_fault(c, VEC_NM);
  if (c->cr0 & CR0_TS) return x86_fault(c, VEC_NM);
  if (waits && (*fsw(c) & FSW_ES)) return x86_fault(c, VEC_MF); /* with CR0.NE = 0 a PC would raise IRQ 13; KVM, too, reports #MF */
  return X86_OK;
}

bool x86_x87_not_stored(struct x86_vcpu *c) { return *fsw(c) & ~*fcw(c) & (FSW_IE | FSW_OE | FSW_UE); }

static u64 *fip(struct x86_vcpu *c) { return (u64 *)(void *)&c->fpu.fx[8]; }
static u64 *fdp(struct x86_vcpu *c) { return (u64 *)(void *)&c->fpu.fx[16]; }

/* The stub runs with the guest's own masks: the next instruction that waits would take the exception, and the stub ends with one that does not.  The
 * pointers and the opcode that the host recorded are the stub's; they become the guest's (SDM Vol. 1, 8.1.8). */
int x86_x87_run(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_native *n, void *mem) {
  u64 flags;
  u16 op = *fop(c);
  n->stub(c, mem, &flags);
  if (n->mmx) return X86_OK;
  *fip(c) = x86_insn_ip(c, i);
  if (mem && *fdp(c) == (u64)(uintptr_t)mem) *fdp(c) = x86_ea(c, i);
  if (*fop(c) != op || *fsw(c) & FSW_ES) *fop(c) = (u16)i->imm;
  if (n->flags) c->rflags = (c->rflags & ~(u64)FL_ARITH) | (flags & FL_ARITH);
  return X86_OK;
}

static void init(struct x86_vcpu *c) {
  x86_mmx_top(c); /* the registers keep what they hold */
  memset(c->fpu.fx, 0, 24);
  *fcw(c) = 0x37f;
}

/* FENI, FDISI and FSETPM of the 8087 and 80287. */
static int nothing(struct x86_vcpu *c, const struct x86_insn *i) { return x86_x87_check(c, false, false); }
static int fninit(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_x87_check(c, false, false);
  if (!r) init(c);
  return r;
}
static int fnclex(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_x87_check(c, false, false);
  if (!r) *fsw(c) &= 0x7f00;
  return r;
}
static int fwait(struct x86_vcpu *c, const struct x86_insn *i) {
  /* WAIT looks at TS only together with MP (SDM Vol. 3A, 2.5). */
  if ((c->cr0 & (CR0_TS | CR0_MP)) == (CR0_TS | CR0_MP)) return x86_fault(c, VEC_NM);
  return *fsw(c) & FSW_ES ? x86_fault(c, VEC_MF) : X86_OK;
}
static int fnstcw(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_x87_check(c, false, false);
  return r ? r : x86_store16(c, i->seg, x86_ea(c, i), *fcw(c));
}
static int fldcw(struct x86_vcpu *c, const struct x86_insn *i) {
  u16 v;
  int r = x86_x87_check(c, false, true);
  if (!r) r = x86_load16(c, i->seg, x86_ea(c, i), &v);
  if (r) return r;
  *fcw(c) = (u16)((v & 0x1f3f) | 0x40); /* bit 6 reads as 1, others are reserved */
  summarize(c);
  return X86_OK;
}
static int fnstsw_m(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_x87_check(c, false, false);
  return r ? r : x86_store16(c, i->seg, x86_ea(c, i), *fsw(c));
}
static int fnstsw_ax(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_x87_check(c, false, false);
  if (!r) put16(c, RAX, *fsw(c));
  return r;
}
static int emms(struct x86_vcpu *c, const struct x86_insn *i) {
  int r = x86_x87_check(c, true, true);
  if (r) return r;
  x86_mmx_state(c);
  *ftw(c) = 0;
  return r;
}

/* The full tag word, two bits a register, from the abridged one and the contents (SDM Vol. 1, 8.1.7). */
static u16 full_tags(struct x86_vcpu *c) {
  unsigned top = (*fsw(c) >> 11) & 7;
  u16 tags = 0;
  for (unsigned n = 0; n < 8; n++) {
    const u8 *st = &c->fpu.fx[32 + 16 * ((n - top) & 7)];
    u64 m;
    u16 e;
    memcpy(&m, st, 8);
    memcpy(&e, st + 8, 2);
    unsigned t = !(*ftw(c) >> n & 1) ? 3 : (e & 0x7fff) == 0x7fff ? 2 : !(e & 0x7fff) ? (m ? 2 : 1) : m >> 63 ? 0 : 2;
    tags |= (u16)(t << (2 * n));
  }
  return tags;
}
static u8 short_tags(u16 tags) {
  u8 s = 0;
  for (unsigned n = 0; n < 8; n++) s |= (u8)(((tags >> (2 * n) & 3) != 3) << n);
  return s;
}

/* Environment images: 14 or 28 bytes, real or protected layout (SDM Vol. 1, figures 8-9 to 8-12). */
static unsigned env_store(struct x86_vcpu *c, const struct x86_insn *i, u8 *b) {
  u64 ip, dp;
  memcpy(&ip, &c->fpu.fx[8], 8);
  memcpy(&dp, &c->fpu.fx[16], 8);
  u16 tags = full_tags(c), op = *fop(c) & 0x7ff;
  bool real = !x86_protected(c) || x86_v86(c);
  ip = (u32)ip, dp = (u32)dp; /* CS and DS read as 0: CPUID.(07H,0).EBX[13] */
  if (i->opsize == 2) {
    u16 v[7] = {*fcw(c), *fsw(c), tags, (u16)ip, real ? (u16)((ip >> 4 & 0xf000) | op) : (u16)(ip >> 32), (u16)dp,
                real ? (u16)(dp >> 4 & 0xf000) : (u16)(dp >> 32)};
    memcpy(b, v, 14);
    return 14;
  }
  u32 v[7] = {0xffff0000u | *fcw(c), 0xffff0000u | *fsw(c), 0xffff0000u | tags, (u32)ip, ((u32)op << 16) | (u16)(ip >> 32), (u32)dp,
              0xffff0000u | (u16)(dp >> 32)};
  if (real) {
    v[3] = 0xffff0000u | (u16)ip;
    v[4] = ((u32)ip >> 4 & 0x0ffff000u) | op;
    v[5] = 0xffff0000u | (u16)dp;
    v[6] = (u32)dp >> 4 & 0x0ffff000u;
  }
  memcpy(b, v, 28);
  return 28;
}
static void env_load(struct x86_vcpu *c, const struct x86_insn *i, const u8 *b) {
  unsigned w = i->opsize == 2 ? 2 : 4;
  u16 cw, sw, tags, op = 0;
  u32 ip = 0, dp = 0;
  memcpy(&cw, b, 2);
  memcpy(&sw, b + w, 2);
  memcpy(&tags, b + 2 * w, 2);
  memcpy(&ip, b + 3 * w, w);
  memcpy(&dp, b + 5 * w, w);
  if (w == 4) memcpy(&op, b + 4 * w + 2, 2);
  x86_x87_set_top(c, sw >> 11 & 7);
  *fcw(c) = (u16)((cw & 0x1f3f) | 0x40);
  *fsw(c) = sw;
  *ftw(c) = short_tags(tags);
  *fop(c) = op & 0x7ff;
  memset(&c->fpu.fx[8], 0, 16);
  memcpy(&c->fpu.fx[8], &ip, 4);
  memcpy(&c->fpu.fx[16], &dp, 4);
  summarize(c);
}
static int fnstenv(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[28];
  int r = x86_x87_check(c, false, false);
  if (r) return r;
  unsigned n = env_store(c, i, b);
  r = x86_write(c, i->seg, x86_ea(c, i), b, n);
  if (r) return r;
  *fcw(c) |= 0x3f; /* SDM Vol. 2A FSTENV: masks all */
  summarize(c);
  return X86_OK;
}
static int fldenv(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[28];
  int r = x86_x87_check(c, false, true);
  if (!r) r = x86_read(c, i->seg, x86_ea(c, i), b, i->opsize == 2 ? 14 : 28);
  if (!r) env_load(c, i, b);
  return r;
}
static int fnsave(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[108];
  int r = x86_x87_check(c, false, false);
  if (r) return r;
  unsigned n = env_store(c, i, b);
  for (unsigned k = 0; k < 8; k++) memcpy(b + n + 10 * k, &c->fpu.fx[32 + 16 * k], 10);
  r = x86_write(c, i->seg, x86_ea(c, i), b, n);
  for (unsigned at = n; !r && at < n + 80; at += 40) r = x86_write(c, i->seg, (x86_ea(c, i) + at) & i->ea_mask, b + at, 40);
  if (!r) init(c);
  return r;
}
static int frstor(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[108];
  unsigned head = i->opsize == 2 ? 14 : 28;
  int r = x86_x87_check(c, false, true);
  if (!r) r = x86_read(c, i->seg, x86_ea(c, i), b, head);
  for (unsigned at = head; !r && at < head + 80; at += 40) r = x86_read(c, i->seg, (x86_ea(c, i) + at) & i->ea_mask, b + at, 40);
  if (r) return r;
  env_load(c, i, b);
  for (unsigned k = 0; k < 8; k++) memcpy(&c->fpu.fx[32 + 16 * k], b + head + 10 * k, 10);
  return X86_OK;
}

x86_exec_fn *x86_x87_select(const struct x86_decoded *d, struct x86_insn *i) {
  bool mem = i->iflags & X86_I_MEM;
  switch (d->insn.mnemonic) {
  case ZYDIS_MNEMONIC_FENI8087_NOP:
  case ZYDIS_MNEMONIC_FDISI8087_NOP:
  case ZYDIS_MNEMONIC_FSETPM287_NOP: return nothing;
  case ZYDIS_MNEMONIC_FNINIT: return fninit;
  case ZYDIS_MNEMONIC_FNCLEX: return fnclex;
  case ZYDIS_MNEMONIC_FWAIT: return fwait;
  case ZYDIS_MNEMONIC_FNSTCW: return fnstcw;
  case ZYDIS_MNEMONIC_FLDCW: return fldcw;
  case ZYDIS_MNEMONIC_FNSTSW: return mem ? fnstsw_m : fnstsw_ax;
  case ZYDIS_MNEMONIC_EMMS: return emms;
  case ZYDIS_MNEMONIC_FNSTENV: return fnstenv;
  case ZYDIS_MNEMONIC_FLDENV: return fldenv;
  case ZYDIS_MNEMONIC_FNSAVE: return fnsave;
  case ZYDIS_MNEMONIC_FRSTOR: return frstor;
  default: return NULL;
  }
}
