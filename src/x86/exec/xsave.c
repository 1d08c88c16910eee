/* FXSAVE, XSAVE and their relatives, XCR0 and MXCSR (SDM Vol. 1, chapters 10.5 and 13).
 *
 * Loads read the whole image before they change anything; stores check all pages before they write.
 */
#include <string.h>
#include "x86/exec/vector.h"
#include "x86/exec/xstate.h"

/* i->sub: which one, and whether it has REX.W. */
enum { SAVE_ALL, SAVE_OPT, SAVE_PACKED, SAVE_SUPERVISOR, RESTORE = 0, RESTORE_SUPERVISOR = 1, WIDE = 4 };
static unsigned kind(const struct x86_insn *i) {
  return i->sub & (WIDE - 1u);
}
static bool wide(const struct x86_insn *i) {
  return i->sub & WIDE;
}

/* ---- memory ---- */

/* Unlike other operands, parts of these areas have their offsets truncated to the address size. */
static u64 part(struct x86_vcpu *c, const struct x86_insn *i, u64 at) {
  return (x86_ea(c, i) + at) & i->ea_mask;
}

static int read_part(struct x86_vcpu *c, const struct x86_insn *i, u64 at, u8 *b, unsigned n) {
  int r = X86_OK;
  for (unsigned done = 0, step; !r && done < n; done += step) {
    step = MIN(64u, n - done);
    r = x86_read(c, i->seg, part(c, i, at + done), b + done, step);
  }
  return r;
}

static int write_part(struct x86_vcpu *c, const struct x86_insn *i, u64 at, const u8 *b, unsigned n) {
  int r = X86_OK;
  for (unsigned done = 0, step; !r && done < n; done += step) {
    step = MIN(64u, n - done);
    r = x86_write(c, i->seg, part(c, i, at + done), b + done, step);
  }
  return r;
}

/* Areas span two pages at most.  Processors look at the last byte first, then at the parts from the first on. */
static int probe(struct x86_vcpu *c, const struct x86_insn *i, u64 at, bool write) {
  u8 b;
  return write ? x86_vector_probe_whole(c, i, part(c, i, at), 1) : x86_load8(c, i->seg, part(c, i, at), &b);
}

static int aligned(struct x86_vcpu *c, const struct x86_insn *i, unsigned to) {
  u64 lin;
  int r = x86_linear(c, i->seg, x86_ea(c, i), 1, ACC_READ, &lin);
  if (r) return r;
  if (c->code64 && !x86_canonical(c, lin)) return x86_fault_code(c, i->seg == SEG_SS ? VEC_SS : VEC_GP, 0);
  if (!(lin & (to - 1))) return X86_OK;
  return x86_alignment_checked(c) && (lin & 3) ? x86_fault_code(c, VEC_AC, 0) : x86_gp0(c);
}

/* Vector registers that the mode knows. */
static unsigned registers(const struct x86_vcpu *c) {
  return c->code64 ? 16 : 8;
}

/* The forms without REX.W have pointers of 32 bits with selectors, which are deprecated: zero (SDM Vol. 1 8.1.8). */
static void drop_selectors(const struct x86_insn *i, u8 *x87) {
  if (wide(i)) return;
  memset(x87 + 12, 0, 4);
  memset(x87 + 20, 0, 4);
}

/* ---- FXSAVE, FXRSTOR ---- */

#define FX_AREA 512u

/* How much of the image is used: without CR4.OSFXSR no XMM registers, outside 64-bit mode eight. */
static unsigned fx_size(const struct x86_vcpu *c) {
  return c->cr4 & CR4_OSFXSR ? 160 + 16 * registers(c) : 160;
}

static int fx_check(struct x86_vcpu *c, const struct x86_insn *i, bool write) {
  if (c->cr0 & (CR0_EM | CR0_TS)) return x86_fault(c, VEC_NM);
  int r = aligned(c, i, 16);
  if (!r) r = probe(c, i, FX_AREA - 1, write);
  return r ? r : probe(c, i, 0, write);
}

/* Bytes behind the 80 bits of a register: images may load anything there, none is stored. */
static void drop_reserved(u8 *b) {
  for (unsigned n = 0; n < 8; n++) memset(b + 32 + 16 * n + 10, 0, 6);
}

static int fxsave(struct x86_vcpu *c, const struct x86_insn *i) {
  const u32 mask = MXCSR_MASK;
  u8 b[416];
  int r = fx_check(c, i, true);
  if (r) return r;
  x86_mxcsr_sync(c);
  x86_xstate_store(c, XC_X87, b, 0);
  drop_selectors(i, b);
  drop_reserved(b);
  memcpy(b + MXCSR_AT, &c->fpu.mxcsr, 4);
  memcpy(b + MXCSR_AT + 4, &mask, 4);
  x86_xstate_store(c, XC_SSE, b + 160, registers(c));
  return write_part(c, i, 0, b, fx_size(c));
}

static int fxrstor(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[416];
  u32 mxcsr;
  unsigned n = fx_size(c);
  int r = fx_check(c, i, false);
  if (!r) r = read_part(c, i, 0, b, n);
  if (r) return r;
  memcpy(&mxcsr, b + MXCSR_AT, 4);
  if (mxcsr & ~MXCSR_MASK) return x86_gp0(c);
  drop_selectors(i, b);
  x86_xstate_load(c, XC_X87, b, 0);
  if (n == 160) return X86_OK;
  x86_mxcsr_sync(c);
  c->fpu.mxcsr = mxcsr;
  x86_xstate_load(c, XC_SSE, b + 160, registers(c));
  return X86_OK;
}

/* ---- what the XSAVE family has in common ---- */

static int xsave_check(struct x86_vcpu *c, const struct x86_insn *i, bool supervisor) {
  if (!(c->cr4 & CR4_OSXSAVE)) return x86_ud(c);
  if (c->cr0 & CR0_TS) return x86_fault(c, VEC_NM);
  if (supervisor && c->cpl) return x86_gp0(c);
  return aligned(c, i, 64);
}

static u64 edx_eax(const struct x86_vcpu *c) {
  return (u64)get32(c, RDX) << 32 | get32(c, RAX);
}

/* MXCSR goes with SSE, in the standard format also with AVX. */
static u64 with_mxcsr(u64 packed) {
  return packed ? XC(SSE) : XC(SSE) | XC(AVX);
}

/* All pages that an area reaches for these components. */
static int probe_area(struct x86_vcpu *c, const struct x86_insn *i, u64 rfbm, u64 packed, bool write) {
  u64 there = packed ? rfbm & (packed | XC(X87) | XC(SSE)) : rfbm;
  int r = probe(c, i, x86_xstate_end(there, packed) - 1, write);
  if (!r && (rfbm & XC(X87))) r = probe(c, i, 0, write);
  if (!r && (rfbm & with_mxcsr(packed))) r = probe(c, i, MXCSR_AT, write);
  if (!r && (rfbm & XC(SSE))) r = probe(c, i, x86_xstate_offset(XC_SSE, packed), write);
  return r || !write ? r : probe(c, i, XSTATE_HEADER, write);
}

/* ---- XSAVE, XSAVEOPT, XSAVEC, XSAVES ---- */

/* One component into its place; x87 leaves out the bytes that belong to MXCSR. */
static int save_component(struct x86_vcpu *c, const struct x86_insn *i, unsigned n, u64 packed) {
  u8 b[1024];
  u64 at = x86_xstate_offset(n, packed);
  x86_xstate_store(c, n, b, registers(c));
  if (n != XC_X87) return write_part(c, i, at, b, x86_xstate_length(n, registers(c)));
  drop_selectors(i, b);
  drop_reserved(b);
  int r = write_part(c, i, 0, b, MXCSR_AT);
  return r ? r : write_part(c, i, 32, b + 32, 128);
}

/* The components in `write`, at their places in an image compacted to `packed` (0: standard); MXCSR with any in `rfbm` that it
 * goes with. */
static int save_components(struct x86_vcpu *c, const struct x86_insn *i, u64 write, u64 rfbm, u64 packed) {
  u64 mxcsr = c->fpu.mxcsr | (u64)MXCSR_MASK << 32;
  int r = X86_OK;
  for (unsigned n = 0; !r && n < XC_COUNT; n++)
    if (write & BIT(n)) r = save_component(c, i, n, packed);
  return r || !(rfbm & with_mxcsr(packed)) ? r : write_part(c, i, MXCSR_AT, (u8 *)&mxcsr, 8);
}

/* 13.7, 13.9: components that were not asked for keep their bits in XSTATE_BV; XSAVEOPT leaves out those in their initial state.
 */
static int xsave(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 bv;
  int r = xsave_check(c, i, false);
  if (r) return r;
  x86_mxcsr_sync(c);
  u64 rfbm = edx_eax(c) & c->xcr0, use = x86_xstate_in_use(c, false) & rfbm;
  r = probe_area(c, i, rfbm, 0, true);
  if (!r) r = x86_load64(c, i->seg, part(c, i, XSTATE_HEADER), &bv);
  if (!r) r = save_components(c, i, kind(i) == SAVE_OPT ? use : rfbm, rfbm, 0);
  return r ? r : x86_store64(c, i->seg, part(c, i, XSTATE_HEADER), (bv & ~rfbm) | use);
}

/* 13.10, 13.11: compacted, without those in their initial state. */
static int xsavec(struct x86_vcpu *c, const struct x86_insn *i) {
  bool supervisor = kind(i) == SAVE_SUPERVISOR;
  int r = xsave_check(c, i, supervisor);
  if (r) return r;
  x86_mxcsr_sync(c);
  u64 rfbm = edx_eax(c) & (c->xcr0 | (supervisor ? c->xss : 0)), use = x86_xstate_in_use(c, true) & rfbm;
  u64 header[2] = {use, rfbm | XCOMP_PACKED};
  r = probe_area(c, i, rfbm, rfbm | XCOMP_PACKED, true);
  if (!r) r = save_components(c, i, use, use, rfbm | XCOMP_PACKED);
  return r ? r : write_part(c, i, XSTATE_HEADER, (u8 *)header, sizeof(header));
}

/* ---- XRSTOR, XRSTORS ---- */

struct header {
  u64 bv, packed, reserved[6];
};

/* What is wrong with XCOMP_BV comes before everything else, the rest after the pages were looked at. */
static bool format_valid(const struct header *h, u64 enabled, bool must_be_packed) {
  return h->packed & XCOMP_PACKED ? !(h->packed & ~XCOMP_PACKED & ~enabled) : !must_be_packed;
}

static bool header_valid(const struct header *h, u64 enabled) {
  u64 any = 0;
  if (!(h->packed & XCOMP_PACKED)) return !(h->bv & ~enabled) && !h->packed && !h->reserved[0];
  for (unsigned n = 0; n < 6; n++) any |= h->reserved[n];
  return !any && !(h->bv & ~h->packed) && !(h->bv & XCOMP_PACKED);
}

/* Whether MXCSR comes out of the image: in the standard format whatever XSTATE_BV says. */
static bool has_mxcsr(const struct header *h, u64 rfbm) {
  return rfbm & with_mxcsr(h->packed) & (h->packed ? h->bv : ~0ull);
}

static int load_image(struct x86_vcpu *c, const struct x86_insn *i, const struct header *h, u64 rfbm, u8 *image) {
  int r = X86_OK;
  if (has_mxcsr(h, rfbm)) r = read_part(c, i, MXCSR_AT, image + MXCSR_AT, 4);
  for (unsigned n = 0; !r && n < XC_COUNT; n++) {
    u32 at = x86_xstate_offset(n, h->packed), length = x86_xstate_length(n, registers(c));
    if (!(rfbm & h->bv & BIT(n))) continue;
    if (n == XC_X87) r = read_part(c, i, 0, image, MXCSR_AT), at = 32, length = 128;
    if (!r) r = read_part(c, i, at, image + at, length);
  }
  return r;
}

static void restore(struct x86_vcpu *c, const struct header *h, u64 rfbm, const u8 *image) {
  x86_mxcsr_sync(c);
  for (unsigned n = 0; n < XC_COUNT; n++) {
    if (!(rfbm & BIT(n))) continue;
    if (h->bv & BIT(n))
      x86_xstate_load(c, n, image + x86_xstate_offset(n, h->packed), registers(c));
    else
      x86_xstate_init(c, n, registers(c));
  }
  if (has_mxcsr(h, rfbm))
    memcpy(&c->fpu.mxcsr, image + MXCSR_AT, 4);
  else if (h->packed && (rfbm & XC(SSE)))
    c->fpu.mxcsr = MXCSR_INIT;
}

/* 13.8, 13.12 */
static int xrstor(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 image[XSTATE_MAX];
  struct header h;
  u32 mxcsr, pkru = c->pkru;
  bool supervisor = kind(i) == RESTORE_SUPERVISOR;
  int r = xsave_check(c, i, supervisor);
  if (!r) r = x86_load64(c, i->seg, part(c, i, XSTATE_HEADER + 8), &h.packed); /* in the order of processors */
  if (!r) r = read_part(c, i, XSTATE_HEADER, (u8 *)&h, sizeof(h));
  if (r) return r;
  u64 enabled = c->xcr0 | (supervisor ? c->xss : 0), rfbm = edx_eax(c) & enabled;
  if (!format_valid(&h, enabled, supervisor)) return x86_gp0(c);
  r = probe_area(c, i, rfbm, h.packed & XCOMP_PACKED ? h.packed : 0, false);
  if (!r) r = header_valid(&h, enabled) ? load_image(c, i, &h, rfbm, image) : x86_gp0(c);
  if (r) return r;
  memcpy(&mxcsr, image + MXCSR_AT, 4);
  if (has_mxcsr(&h, rfbm) && (mxcsr & ~MXCSR_MASK)) return x86_gp0(c);
  drop_selectors(i, image);
  restore(c, &h, rfbm, image);
  if (pkru != c->pkru) x86_mmu_pkru_written(c, pkru);
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

#define PLAIN(fn)                                                                                                                \
  static x86_exec_fn *select_##fn(const struct x86_decoded *d, struct x86_insn *i) {                                             \
    return fn;                                                                                                                   \
  }
#define SUB(name, fn, value)                                                                                                     \
  static x86_exec_fn *select_##name(const struct x86_decoded *d, struct x86_insn *i) {                                           \
    bool w = (d->insn.attributes & ZYDIS_ATTRIB_HAS_REX) && d->insn.raw.rex.W;                                                   \
    i->sub = (value) | (w ? WIDE : 0);                                                                                           \
    return fn;                                                                                                                   \
  }
PLAIN(xgetbv)
SUB(fxsave, fxsave, 0)
SUB(fxrstor, fxrstor, 0) SUB(xsave, xsave, SAVE_ALL) SUB(xsaveopt, xsave, SAVE_OPT) SUB(xsavec, xsavec, SAVE_PACKED)
    SUB(xsaves, xsavec, SAVE_SUPERVISOR) SUB(xrstor, xrstor, RESTORE)
        SUB(xrstors, xrstor, RESTORE_SUPERVISOR) static x86_exec_fn *select_xsetbv(const struct x86_decoded *d,
                                                                                   struct x86_insn *i) {
  return i->iflags |= X86_I_END, xsetbv;
}

#define ROW(NAME, name)                                                                                                          \
  { ZYDIS_MNEMONIC_##NAME, select_##name }
#define BOTH(NAME, name) ROW(NAME, name), ROW(NAME##64, name) /* and the form with REX.W */
static const struct x86_op_row rows[] = {
    BOTH(FXSAVE, fxsave), BOTH(FXRSTOR, fxrstor), BOTH(XSAVE, xsave),     BOTH(XSAVEOPT, xsaveopt), BOTH(XSAVEC, xsavec),
    BOTH(XSAVES, xsaves), BOTH(XRSTOR, xrstor),   BOTH(XRSTORS, xrstors), ROW(XGETBV, xgetbv),      ROW(XSETBV, xsetbv),
};
const struct x86_op_family x86_family_xsave = {"xsave", rows, ARRAY_SIZE(rows)};
