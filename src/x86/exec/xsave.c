/* FXSAVE, XSAVE and their relatives, XCR0 and MXCSR (SDM Vol. 1, chapters 10.5 and 13).
 *
 * Loads read the whole image before they change anything; stores check all pages before they write.
 */
#include <string.h>
#include "x86/exec/exec.h"
#include "x86/exec/xstate.h"

/* ---- memory ---- */

/* n bytes from ea on: page by page where the TLB knows the page, else in pieces that know how to fault. */
static int read_image(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u8 *b, unsigned n) {
  int r = X86_OK;
  for (unsigned at = 0, step; !r && at < n; at += step) {
    step = MIN(64u, n - at);
    r = x86_read(c, i->seg, ea + at, b + at, step);
  }
  return r;
}

static int write_image(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, const u8 *b, unsigned n) {
  int r = X86_OK;
  for (unsigned at = 0, step; !r && at < n; at += step) {
    step = MIN(64u, n - at);
    r = x86_write(c, i->seg, ea + at, b + at, step);
  }
  return r;
}

static int aligned(struct x86_vcpu *c, const struct x86_insn *i, unsigned to) {
  u64 lin;
  int r = x86_linear(c, i->seg, x86_ea(c, i), 1, ACC_READ, &lin);
  if (!r && c->code64 && !x86_canonical(c, lin)) r = x86_fault_code(c, i->seg == SEG_SS ? VEC_SS : VEC_GP, 0);
  if (r || !(lin & (to - 1))) return r;
  return x86_alignment_checked(c) && (lin & 3) ? x86_fault_code(c, VEC_AC, 0) : x86_gp0(c); /* SDM Vol. 2A FXSAVE: one or the other; processors do this */
}

/* Without REX.W the pointers have 32 bits, and selectors that read as 0 (CPUID.(07H,0).EBX[13]; SDM Vol. 1, 10.5.1). */
static void cut_pointers(const struct x86_insn *i, u8 *x87) {
  if (i->opsize == 8) return;
  memset(x87 + 12, 0, 4);
  memset(x87 + 20, 0, 4);
}

/* Before anything else processors look at the head (header or first byte) and at the end of the area, also where nothing will be stored. */
static int probe_one(struct x86_vcpu *c, const struct x86_insn *i, u64 ea) {
  u64 lin;
  int r = x86_linear(c, i->seg, ea & i->ea_mask, 1, ACC_WRITE, &lin);
  if (!r && c->code64 && !x86_canonical(c, lin)) r = x86_fault_code(c, i->seg == SEG_SS ? VEC_SS : VEC_GP, 0);
  return r ? r : x86_probe_write(c, lin, 1, c->cpl);
}
static int probe_store(struct x86_vcpu *c, const struct x86_insn *i, unsigned head, size_t size) {
  int r = probe_one(c, i, x86_ea(c, i) + head);
  return r ? r : probe_one(c, i, x86_ea(c, i) + size - 1);
}

/* ---- FXSAVE, FXRSTOR ---- */

#define FX_AREA 512u
/* How much of the image is used: without CR4.OSFXSR no XMM registers, outside 64-bit mode eight. */
static unsigned fx_size(const struct x86_vcpu *c) { return !(c->cr4 & CR4_OSFXSR) ? 160 : c->code64 ? 416 : 288; }

static int fxsave(struct x86_vcpu *c, const struct x86_insn *i) {
  const u32 mask = MXCSR_MASK;
  u8 b[416];
  if (c->cr0 & (CR0_EM | CR0_TS)) return x86_fault(c, VEC_NM);
  int r = aligned(c, i, 16);
  if (!r) r = probe_store(c, i, 0, FX_AREA);
  if (r) return r;
  x86_mxcsr_sync(c);
  x86_xstate_store(c, XC_X87, b);
  cut_pointers(i, b);
  memcpy(b + MXCSR_AT, &c->fpu.mxcsr, 4);
  memcpy(b + MXCSR_AT + 4, &mask, 4);
  x86_xstate_store(c, XC_SSE, b + 160);
  return write_image(c, i, x86_ea(c, i), b, fx_size(c));
}

static int fxrstor(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[416];
  u32 mxcsr;
  if (c->cr0 & (CR0_EM | CR0_TS)) return x86_fault(c, VEC_NM);
  unsigned n = fx_size(c);
  int r = aligned(c, i, 16);
  u8 last;
  if (!r) r = x86_load8(c, i->seg, (x86_ea(c, i) + FX_AREA - 1) & i->ea_mask, &last);
  if (!r) r = read_image(c, i, x86_ea(c, i), b, n);
  if (r) return r;
  memcpy(&mxcsr, b + MXCSR_AT, 4);
  if (mxcsr & ~MXCSR_MASK) return x86_gp0(c);
  cut_pointers(i, b);
  x86_xstate_load(c, XC_X87, b);
  if (n == 160) return X86_OK;
  x86_mxcsr_sync(c);
  c->fpu.mxcsr = mxcsr;
  for (unsigned k = 0; k < (n - 160) / 16; k++) memcpy(c->fpu.zmm[k], b + 160 + 16 * k, 16);
  return X86_OK;
}

/* ---- XSAVE, XSAVEOPT, XSAVEC, XSAVES ---- */

enum { SAVE_ALL, SAVE_OPT, SAVE_PACKED, SAVE_SUPERVISOR };

static int xsave_check(struct x86_vcpu *c, const struct x86_insn *i, bool supervisor) {
  if (!(c->cr4 & CR4_OSXSAVE)) return x86_ud(c);
  if (c->cr0 & CR0_TS) return x86_fault(c, VEC_NM);
  if (supervisor && c->cpl) return x86_gp0(c);
  return aligned(c, i, 64);
}

static u64 edx_eax(const struct x86_vcpu *c) { return (u64)get32(c, RDX) << 32 | get32(c, RAX); }

/* One component into its place; x87 leaves out the bytes that belong to MXCSR. */
static int save_component(struct x86_vcpu *c, const struct x86_insn *i, unsigned n, u64 ea) {
  u8 b[1024];
  x86_xstate_store(c, n, b);
  if (n != XC_X87) return write_image(c, i, ea, b, x86_xstate_length(n));
  cut_pointers(i, b);
  int r = write_image(c, i, ea, b, MXCSR_AT);
  return r ? r : write_image(c, i, ea + 32, b + 32, 128);
}

static int save_mxcsr(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v = c->fpu.mxcsr | (u64)MXCSR_MASK << 32;
  return write_image(c, i, x86_ea(c, i) + MXCSR_AT, (u8 *)&v, 8);
}

/* The components in `write`, at their places in an image compacted to `packed` (0: standard). */
static int save_components(struct x86_vcpu *c, const struct x86_insn *i, u64 write, u64 packed) {
  int r = X86_OK;
  for (unsigned n = 0; !r && n < XC_COUNT; n++)
    if (write & BIT(n)) r = save_component(c, i, n, x86_ea(c, i) + x86_xstate_offset(n, packed));
  return r;
}

/* 13.7, 13.9: components that were not asked for keep their bits in XSTATE_BV; XSAVEOPT leaves out those in their initial state. */
static int xsave(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 bv, ea = x86_ea(c, i);
  int r = xsave_check(c, i, false);
  if (r) return r;
  x86_mxcsr_sync(c);
  u64 rfbm = edx_eax(c) & c->xcr0, use = x86_xstate_in_use(c, false) & rfbm;
  r = probe_store(c, i, XSTATE_HEADER, x86_xsave_size(rfbm));
  if (!r) r = x86_load64(c, i->seg, ea + XSTATE_HEADER, &bv);
  if (!r) r = save_components(c, i, i->sub == SAVE_OPT ? use : rfbm, 0);
  if (!r && (rfbm & (XC(SSE) | XC(AVX)))) r = save_mxcsr(c, i);
  return r ? r : x86_store64(c, i->seg, ea + XSTATE_HEADER, (bv & ~rfbm) | use);
}

/* 13.10, 13.11: compacted, without those in their initial state; MXCSR belongs to SSE. */
static int xsavec(struct x86_vcpu *c, const struct x86_insn *i) {
  bool supervisor = i->sub == SAVE_SUPERVISOR;
  int r = xsave_check(c, i, supervisor);
  if (r) return r;
  x86_mxcsr_sync(c);
  u64 rfbm = edx_eax(c) & (c->xcr0 | (supervisor ? c->xss : 0)), use = x86_xstate_in_use(c, true) & rfbm;
  u64 header[2] = {use, rfbm | XCOMP_PACKED};
  r = probe_store(c, i, XSTATE_HEADER, x86_xstate_packed_size(rfbm));
  if (!r) r = save_components(c, i, use, rfbm | XCOMP_PACKED);
  if (!r && (use & XC(SSE))) r = save_mxcsr(c, i);
  return r ? r : write_image(c, i, x86_ea(c, i) + XSTATE_HEADER, (u8 *)header, sizeof(header));
}

/* ---- XRSTOR, XRSTORS ---- */

struct header {
  u64 bv, packed, reserved[6];
};

static bool header_valid(const struct header *h, u64 enabled, bool must_be_packed) {
  if (!(h->packed & XCOMP_PACKED)) return !must_be_packed && !(h->bv & ~enabled) && !h->packed && !h->reserved[0];
  u64 any = 0;
  for (unsigned n = 0; n < 6; n++) any |= h->reserved[n];
  return !any && !(h->packed & ~XCOMP_PACKED & ~enabled) && !(h->bv & ~h->packed) && !(h->bv & XCOMP_PACKED);
}

/* Whether MXCSR comes out of the image: in the standard format also for AVX, and whatever XSTATE_BV says. */
static bool has_mxcsr(const struct header *h, u64 rfbm) {
  if (h->packed) return rfbm & h->bv & XC(SSE);
  return rfbm & (XC(SSE) | XC(AVX));
}

static int load_image(struct x86_vcpu *c, const struct x86_insn *i, const struct header *h, u64 rfbm, u8 *image) {
  u64 ea = x86_ea(c, i);
  int r = X86_OK;
  if (has_mxcsr(h, rfbm)) r = read_image(c, i, ea + MXCSR_AT, image + MXCSR_AT, 4);
  for (unsigned n = 0; !r && n < XC_COUNT; n++) {
    u32 at = x86_xstate_offset(n, h->packed), length = x86_xstate_length(n);
    if (!(rfbm & h->bv & BIT(n))) continue;
    if (n == XC_X87) r = read_image(c, i, ea, image, MXCSR_AT), at = 32, length = 128;
    if (!r) r = read_image(c, i, ea + at, image + at, length);
  }
  return r;
}

static void restore(struct x86_vcpu *c, const struct x86_insn *i, const struct header *h, u64 rfbm, u8 *image) {
  x86_mxcsr_sync(c);
  cut_pointers(i, image);
  for (unsigned n = 0; n < XC_COUNT; n++) {
    if (!(rfbm & BIT(n))) continue;
    if (h->bv & BIT(n)) x86_xstate_load(c, n, image + x86_xstate_offset(n, h->packed));
    else x86_xstate_init(c, n);
  }
  if (has_mxcsr(h, rfbm)) memcpy(&c->fpu.mxcsr, image + MXCSR_AT, 4);
  else if (h->packed && (rfbm & XC(SSE))) c->fpu.mxcsr = MXCSR_INIT;
}

/* 13.8, 13.12.  i->sub: XRSTORS. */
static int xrstor(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 image[XSTATE_MAX];
  struct header h;
  u32 mxcsr, pkru = c->pkru;
  int r = xsave_check(c, i, i->sub);
  if (!r) r = read_image(c, i, x86_ea(c, i) + XSTATE_HEADER, (u8 *)&h, sizeof(h));
  if (r) return r;
  u64 enabled = c->xcr0 | (i->sub ? c->xss : 0), rfbm = edx_eax(c) & enabled;
  if (!header_valid(&h, enabled, i->sub)) return x86_gp0(c);
  r = load_image(c, i, &h, rfbm, image);
  if (r) return r;
  memcpy(&mxcsr, image + MXCSR_AT, 4);
  if (has_mxcsr(&h, rfbm) && (mxcsr & ~MXCSR_MASK)) return x86_gp0(c);
  restore(c, i, &h, rfbm, image);
  if (pkru != c->pkru && (c->cr4 & CR4_PKE)) x86_mmu_flush_all(c, true);
  return X86_OK;
}

/* ---- XCR0 ---- */

static int xgetbv(struct x86_vcpu *c, const struct x86_insn *i) {
  u32 n = get32(c, RCX);
  if (!(c->cr4 & CR4_OSXSAVE)) return x86_ud(c);
  if (n > 1 || (n && !x86_has(c, X86_FEATURE_XGETBV1))) return x86_gp0(c);
  if (n) x86_mxcsr_sync(c);
  u64 v = n ? x86_xstate_in_use(c, true) & c->xcr0 : c->xcr0;
  put32(c, RAX, (u32)v);
  put32(c, RDX, (u32)(v >> 32));
  return X86_OK;
}

static int xsetbv(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!(c->cr4 & CR4_OSXSAVE)) return x86_ud(c);
  if (c->cpl || get32(c, RCX)) return x86_gp0(c);
  int r = x86_set_xcr0(c, edx_eax(c));
  return r ? r : X86_END;
}

#define PLAIN(fn) static x86_exec_fn *select_##fn(const struct x86_decoded *d, struct x86_insn *i) { return fn; }
#define SUB(name, fn, value) static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) { return i->sub = (value), fn; }
PLAIN(fxsave) PLAIN(fxrstor) PLAIN(xgetbv)
SUB(xsave, xsave, SAVE_ALL) SUB(xsaveopt, xsave, SAVE_OPT) SUB(xsavec, xsavec, SAVE_PACKED) SUB(xsaves, xsavec, SAVE_SUPERVISOR)
SUB(xrstor, xrstor, 0) SUB(xrstors, xrstor, 1)
static x86_exec_fn *select_xsetbv(const struct x86_decoded *d, struct x86_insn *i) { return i->iflags |= X86_I_END, xsetbv; }

#define ROW(NAME, name) {ZYDIS_MNEMONIC_##NAME, select_##name}
#define BOTH(NAME, name) ROW(NAME, name), ROW(NAME##64, name) /* and the form with REX.W */
static const struct x86_op_row rows[] = {
    BOTH(FXSAVE, fxsave), BOTH(FXRSTOR, fxrstor), BOTH(XSAVE, xsave),   BOTH(XSAVEOPT, xsaveopt), BOTH(XSAVEC, xsavec), BOTH(XSAVES, xsaves),
    BOTH(XRSTOR, xrstor), BOTH(XRSTORS, xrstors), ROW(XGETBV, xgetbv), ROW(XSETBV, xsetbv),
};
const struct x86_op_family x86_family_xsave = {"xsave", rows, ARRAY_SIZE(rows)};
