/* FXSAVE, XSAVE and their relatives, and the state as KVM's ioctls exchange it.
 *
 * SDM Vol. 1, chapter 13.  Component offsets are the host's (CPUID.0DH), so images are laid out as the host's own.
 */
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include "x86/exec/native.h"
#include "x86/exec/xsave.h"

#define MXCSR_MASK 0xffffu

enum { XC_X87, XC_SSE, XC_AVX, XC_OPMASK = 5, XC_ZMM_HI, XC_HI16, XC_PKRU = 9, XC_COUNT };
#define XC(n) (1ull << XC_##n)

static struct component {
  u32 offset, size;
} comp[XC_COUNT];
static u64 supported;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void probe(void) {
  u32 a, b, c, d;
  supported = XC(X87) | XC(SSE);
  comp[XC_X87] = (struct component){0, 160};
  comp[XC_SSE] = (struct component){160, 256};
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return;
  u32 lo, hi;
  __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  u64 host = lo | (u64)hi << 32;
  for (unsigned n = 2; n < XC_COUNT; n++) {
    u64 bit = 1ull << n;
    if (n == 3 || n == 4 || n == 8 || (!(host & bit) && n != XC_PKRU)) continue;
    __get_cpuid_count(0xd, n, &a, &b, &c, &d);
    if (n == XC_PKRU && !a) a = 8, b = 2688; /* PKRU is kept by the engine: the host need not have it; its usual place */
    comp[n] = (struct component){b, a};
    supported |= bit;
  }
  u64 avx512 = XC(OPMASK) | XC(ZMM_HI) | XC(HI16);
  if ((supported & avx512) != avx512) supported &= ~avx512;
}

u64 x86_xcr0_supported(void) {
  pthread_once(&once, probe);
  return supported;
}

size_t x86_xsave_size(u64 xcr0) {
  size_t size = 576;
  pthread_once(&once, probe);
  for (unsigned n = 2; n < XC_COUNT; n++)
    if (xcr0 >> n & 1) size = MAX(size, (size_t)comp[n].offset + comp[n].size);
  return size;
}

static size_t compact_size(u64 mask) {
  size_t size = 576;
  for (unsigned n = 2; n < XC_COUNT; n++)
    if (mask >> n & 1) size += comp[n].size;
  return size;
}

void x86_xsave_leaf(u64 xcr0, u32 sub, u32 out[4]) {
  u64 all = x86_xcr0_supported();
  memset(out, 0, 16);
  if (sub == 0) {
    out[0] = (u32)all;
    out[1] = (u32)x86_xsave_size(xcr0);
    out[2] = (u32)x86_xsave_size(all);
    out[3] = (u32)(all >> 32);
  } else if (sub == 1) {
    out[1] = (u32)compact_size(xcr0);
  } else if (sub < XC_COUNT && (all >> sub & 1)) {
    out[0] = comp[sub].size;
    out[1] = comp[sub].offset;
  }
}

bool x86_native_supports(enum x86_feature f) {
  u64 all = x86_xcr0_supported();
  switch (f) {
  case X86_FEATURE_FPU: case X86_FEATURE_MMX: case X86_FEATURE_FXSR: case X86_FEATURE_SSE: case X86_FEATURE_SSE2: return true;
  case X86_FEATURE_SSE3: return __builtin_cpu_supports("sse3");
  case X86_FEATURE_SSSE3: return __builtin_cpu_supports("ssse3");
  case X86_FEATURE_SSE41: return __builtin_cpu_supports("sse4.1");
  case X86_FEATURE_SSE42: return __builtin_cpu_supports("sse4.2");
  case X86_FEATURE_PCLMULQDQ: return __builtin_cpu_supports("pclmul");
  case X86_FEATURE_AES: return __builtin_cpu_supports("aes");
  case X86_FEATURE_XSAVE: return true;
  case X86_FEATURE_XGETBV1: return true;
  case X86_FEATURE_XSAVEOPT: return true;
  case X86_FEATURE_AVX: return all & XC(AVX);
  case X86_FEATURE_AVX2: return (all & XC(AVX)) && __builtin_cpu_supports("avx2");
  case X86_FEATURE_FMA: return (all & XC(AVX)) && __builtin_cpu_supports("fma");
  case X86_FEATURE_F16C: return (all & XC(AVX)) && __builtin_cpu_supports("avx2");
  default: return false;
  }
}

void x86_fpu_reset(struct x86_vcpu *c, bool init) {
  if (init) return; /* SDM Vol. 3A table 9-1: INIT leaves x87, SSE and AVX state alone */
  memset(&c->fpu, 0, sizeof(c->fpu));
  c->fpu.fx[0] = 0x40; /* FCW 0040H after power-up */
  c->fpu.mxcsr = 0x1f80;
  c->xcr0 = 1;
}

static bool all_zero(const void *p, size_t n) {
  const u8 *b = p;
  while (n--)
    if (*b++) return false;
  return true;
}

/* XINUSE: components that differ from their initial state (SDM Vol. 1, 13.6). */
static u64 in_use(struct x86_vcpu *c) {
  static const u8 fresh[32] = {0x7f, 0x03};
  u64 m = 0;
  if (memcmp(c->fpu.fx, fresh, 24) || !all_zero(&c->fpu.fx[32], 128)) m |= XC(X87);
  for (unsigned n = 0; n < 16; n++) {
    if (!all_zero(c->fpu.zmm[n], 16)) m |= XC(SSE);
    if (!all_zero(c->fpu.zmm[n] + 16, 16)) m |= XC(AVX);
    if (!all_zero(c->fpu.zmm[n] + 32, 32)) m |= XC(ZMM_HI);
    if (!all_zero(c->fpu.zmm[16 + n], 64)) m |= XC(HI16);
  }
  if (c->fpu.mxcsr != 0x1f80) m |= XC(SSE);
  if (!all_zero(c->fpu.k, sizeof(c->fpu.k))) m |= XC(OPMASK);
  if (c->pkru) m |= XC(PKRU);
  return m;
}

/* One component to or from its place in an image. */
static void component_copy(struct x86_vcpu *c, unsigned n, u8 *p, bool store) {
#define MOVE(state, at, len) (store ? memcpy(p + (at), (state), (len)) : memcpy((state), p + (at), (len)))
  switch (n) {
  case XC_X87:
    MOVE(c->fpu.fx, 0, 24);
    MOVE(&c->fpu.fx[32], 32, 128);
    break;
  case XC_SSE:
    for (unsigned k = 0; k < 16; k++) MOVE(c->fpu.zmm[k], 16 * k, 16);
    break;
  case XC_AVX:
    for (unsigned k = 0; k < 16; k++) MOVE(c->fpu.zmm[k] + 16, 16 * k, 16);
    break;
  case XC_OPMASK: MOVE(c->fpu.k, 0, 64); break;
  case XC_ZMM_HI:
    for (unsigned k = 0; k < 16; k++) MOVE(c->fpu.zmm[k] + 32, 32 * k, 32);
    break;
  case XC_HI16: MOVE(c->fpu.zmm[16], 0, 1024); break;
  case XC_PKRU: MOVE(&c->pkru, 0, 4); break;
  }
#undef MOVE
}

static void component_init(struct x86_vcpu *c, unsigned n) {
  static u8 zero[1024];
  if (n == XC_X87) {
    memset(c->fpu.fx, 0, 160);
    c->fpu.fx[0] = 0x7f, c->fpu.fx[1] = 0x03;
  } else {
    component_copy(c, n, zero, false);
  }
}

void x86_fpu_to_xsave(struct x86_vcpu *c, void *area, size_t size, u64 mask) {
  u8 *b = area;
  u64 mxcsr_mask = MXCSR_MASK, use = in_use(c) & x86_xcr0_supported() & mask;
  memset(b, 0, size);
  for (unsigned n = 0; n < XC_COUNT; n++)
    if ((supported & mask) >> n & 1 && comp[n].offset + comp[n].size <= size) component_copy(c, n, b + comp[n].offset, true);
  memcpy(b + 24, &c->fpu.mxcsr, 4);
  memcpy(b + 28, &mxcsr_mask, 4);
  if (size >= 576) memcpy(b + 512, &use, 8);
}

int x86_fpu_from_xsave(struct x86_vcpu *c, const void *area, size_t size) {
  const u8 *b = area;
  u64 bv, comp_bv;
  u32 mxcsr;
  memcpy(&mxcsr, b + 24, 4);
  memcpy(&bv, b + 512, 8);
  memcpy(&comp_bv, b + 520, 8);
  if ((mxcsr & ~MXCSR_MASK) || (bv & ~x86_xcr0_supported()) || comp_bv) return -EINVAL;
  for (unsigned n = 0; n < XC_COUNT; n++) {
    if (!(supported >> n & 1) || comp[n].offset + comp[n].size > size) continue;
    if (bv >> n & 1) component_copy(c, n, (u8 *)(uintptr_t)b + comp[n].offset, false);
    else component_init(c, n);
  }
  c->fpu.mxcsr = bv & (XC(SSE) | XC(AVX)) ? mxcsr : 0x1f80;
  return 0;
}

/* ---- instructions ---- */

static int read_all(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u8 *b, unsigned n) {
  int r = X86_OK;
  for (unsigned at = 0; !r && at < n; at += 64) r = x86_read(c, i->seg, (ea + at) & i->ea_mask, b + at, MIN(64u, n - at));
  return r;
}
static int write_all(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, const u8 *b, unsigned n) {
  int r = X86_OK;
  for (unsigned at = 0; !r && at < n; at += 64) r = x86_write(c, i->seg, (ea + at) & i->ea_mask, b + at, MIN(64u, n - at));
  return r;
}

static int aligned(struct x86_vcpu *c, const struct x86_insn *i, unsigned to) {
  u64 lin;
  int r = x86_linear(c, i->seg, x86_ea(c, i), 1, ACC_READ, &lin);
  if (r) return r;
  return lin & (to - 1) ? x86_gp0(c) : X86_OK;
}

/* i->sub: the 64-bit (REX.W) form, whose pointers have 64 bits; the other has selectors, which the engine keeps in the upper halves. */
static int fxsave(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[416];
  if (c->cr0 & (CR0_EM | CR0_TS)) return x86_fault(c, VEC_NM);
  int r = aligned(c, i, 16);
  if (r) return r;
  u32 mask = MXCSR_MASK;
  memcpy(b, c->fpu.fx, 160);
  memcpy(b + 24, &c->fpu.mxcsr, 4);
  memcpy(b + 28, &mask, 4);
  for (unsigned k = 0; k < 16; k++) memcpy(b + 160 + 16 * k, c->fpu.zmm[k], 16);
  unsigned n = !(c->cr4 & CR4_OSFXSR) ? 160 : c->code64 ? 416 : 288;
  return write_all(c, i, x86_ea(c, i), b, n);
}
static int fxrstor(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 b[416];
  u32 mxcsr;
  if (c->cr0 & (CR0_EM | CR0_TS)) return x86_fault(c, VEC_NM);
  int r = aligned(c, i, 16);
  unsigned n = !(c->cr4 & CR4_OSFXSR) ? 160 : c->code64 ? 416 : 288;
  if (!r) r = read_all(c, i, x86_ea(c, i), b, n);
  if (r) return r;
  memcpy(&mxcsr, b + 24, 4);
  if (mxcsr & ~MXCSR_MASK) return x86_gp0(c);
  memcpy(c->fpu.fx, b, 24);
  memcpy(&c->fpu.fx[32], b + 32, 128);
  if (n > 160) {
    c->fpu.mxcsr = mxcsr;
    for (unsigned k = 0; k < (n - 160) / 16; k++) memcpy(c->fpu.zmm[k], b + 160 + 16 * k, 16);
  }
  return X86_OK;
}

static int xsave_check(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!(c->cr4 & CR4_OSXSAVE)) return x86_ud(c);
  if (c->cr0 & CR0_TS) return x86_fault(c, VEC_NM);
  return aligned(c, i, 64);
}
static u64 edx_eax(const struct x86_vcpu *c) { return (u64)get32(c, RDX) << 32 | get32(c, RAX); }

/* SDM Vol. 1, 13.7 and 13.9: XSAVE writes all requested components, XSAVEOPT leaves out those in their initial state. */
static int xsave(struct x86_vcpu *c, const struct x86_insn *i) {
  static const u32 mask = MXCSR_MASK;
  u8 b[1024];
  u64 bv, use = in_use(c), ea = x86_ea(c, i), rfbm;
  int r = xsave_check(c, i);
  if (r) return r;
  rfbm = edx_eax(c) & c->xcr0;
  r = read_all(c, i, (ea + 512) & i->ea_mask, (u8 *)&bv, 8);
  if (r) return r;
  bv = (bv & ~rfbm) | (use & rfbm);
  for (unsigned n = 0; n < XC_COUNT; n++) {
    if (!(rfbm >> n & 1) || (i->sub && !(use >> n & 1))) continue;
    memset(b, 0, comp[n].size);
    component_copy(c, n, b, true);
    if (n == XC_X87) { /* bytes 24 to 31 belong to MXCSR */
      r = write_all(c, i, ea, b, 24);
      if (!r) r = write_all(c, i, (ea + 32) & i->ea_mask, b + 32, 128);
    } else {
      r = write_all(c, i, (ea + comp[n].offset) & i->ea_mask, b, comp[n].size);
    }
    if (r) return r;
  }
  if (rfbm & (XC(SSE) | XC(AVX))) { /* MXCSR and its mask */
    r = x86_store32(c, i->seg, (ea + 24) & i->ea_mask, c->fpu.mxcsr);
    if (!r) r = x86_store32(c, i->seg, (ea + 28) & i->ea_mask, mask);
    if (r) return r;
  }
  return x86_store64(c, i->seg, (ea + 512) & i->ea_mask, bv);
}

/* SDM Vol. 1, 13.8 (standard form only: the compacted one is not announced). */
static int xrstor(struct x86_vcpu *c, const struct x86_insn *i) {
  u8 head[64], b[1024];
  u64 bv, ea = x86_ea(c, i), rfbm;
  u32 mxcsr = 0;
  int r = xsave_check(c, i);
  if (!r) r = read_all(c, i, (ea + 512) & i->ea_mask, head, 64);
  if (r) return r;
  rfbm = edx_eax(c) & c->xcr0;
  memcpy(&bv, head, 8);
  if ((bv & ~c->xcr0) || !all_zero(head + 8, 16)) return x86_gp0(c);
  if (rfbm & (XC(SSE) | XC(AVX))) {
    r = x86_load32(c, i->seg, (ea + 24) & i->ea_mask, &mxcsr);
    if (r) return r;
    if (mxcsr & ~MXCSR_MASK) return x86_gp0(c);
  }
  u32 pkru = c->pkru;
  for (unsigned n = 0; n < XC_COUNT; n++) {
    if (!(rfbm >> n & 1)) continue;
    if (bv >> n & 1) {
      r = read_all(c, i, (ea + comp[n].offset) & i->ea_mask, b, comp[n].size);
      if (r) return r;
      component_copy(c, n, b, false);
    } else {
      component_init(c, n);
    }
  }
  if (rfbm & (XC(SSE) | XC(AVX))) c->fpu.mxcsr = mxcsr;
  if (pkru != c->pkru && (c->cr4 & CR4_PKE)) x86_mmu_flush_all(c, true);
  return X86_OK;
}

static int xgetbv(struct x86_vcpu *c, const struct x86_insn *i) {
  u32 n = get32(c, RCX);
  if (!(c->cr4 & CR4_OSXSAVE)) return x86_ud(c);
  if (n > 1 || (n && !x86_has(c, X86_FEATURE_XGETBV1))) return x86_gp0(c);
  u64 v = n ? in_use(c) & c->xcr0 : c->xcr0;
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

static int ldmxcsr(struct x86_vcpu *c, const struct x86_insn *i) {
  u32 v;
  if ((c->cr0 & CR0_EM) || !(c->cr4 & CR4_OSFXSR)) return x86_ud(c);
  if (c->cr0 & CR0_TS) return x86_fault(c, VEC_NM);
  int r = x86_load32(c, i->seg, x86_ea(c, i), &v);
  if (r) return r;
  if (v & ~MXCSR_MASK) return x86_gp0(c);
  c->fpu.mxcsr = v;
  return X86_OK;
}
static int stmxcsr(struct x86_vcpu *c, const struct x86_insn *i) {
  if ((c->cr0 & CR0_EM) || !(c->cr4 & CR4_OSFXSR)) return x86_ud(c);
  if (c->cr0 & CR0_TS) return x86_fault(c, VEC_NM);
  return x86_store32(c, i->seg, x86_ea(c, i), c->fpu.mxcsr);
}
static int vzero(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!x86_protected(c) || x86_v86(c) || !(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & 6) != 6) return x86_ud(c);
  if (c->cr0 & CR0_TS) return x86_fault(c, VEC_NM);
  for (unsigned n = 0; n < (c->code64 ? 16u : 8u); n++) memset(c->fpu.zmm[n] + i->sub, 0, 64u - i->sub);
  return X86_OK;
}

#define PLAIN(fn) static x86_exec_fn *select_##fn(const struct x86_decoded *d, struct x86_insn *i) { return fn; }
PLAIN(fxsave) PLAIN(fxrstor) PLAIN(xrstor) PLAIN(xgetbv) PLAIN(ldmxcsr) PLAIN(stmxcsr)
static x86_exec_fn *select_xsave(const struct x86_decoded *d, struct x86_insn *i) {
  i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_XSAVEOPT || d->insn.mnemonic == ZYDIS_MNEMONIC_XSAVEOPT64;
  return xsave;
}
static x86_exec_fn *select_xsetbv(const struct x86_decoded *d, struct x86_insn *i) { return i->iflags |= X86_I_END, xsetbv; }
static x86_exec_fn *select_vzero(const struct x86_decoded *d, struct x86_insn *i) { return i->sub = d->insn.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER ? 16 : 0, vzero; }

static const struct x86_op_row rows[] = {
    {ZYDIS_MNEMONIC_FXSAVE, select_fxsave},   {ZYDIS_MNEMONIC_FXSAVE64, select_fxsave},   {ZYDIS_MNEMONIC_FXRSTOR, select_fxrstor},
    {ZYDIS_MNEMONIC_FXRSTOR64, select_fxrstor}, {ZYDIS_MNEMONIC_XSAVE, select_xsave},     {ZYDIS_MNEMONIC_XSAVE64, select_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT, select_xsave},  {ZYDIS_MNEMONIC_XSAVEOPT64, select_xsave},  {ZYDIS_MNEMONIC_XRSTOR, select_xrstor},
    {ZYDIS_MNEMONIC_XRSTOR64, select_xrstor}, {ZYDIS_MNEMONIC_XGETBV, select_xgetbv},     {ZYDIS_MNEMONIC_XSETBV, select_xsetbv},
    {ZYDIS_MNEMONIC_LDMXCSR, select_ldmxcsr}, {ZYDIS_MNEMONIC_STMXCSR, select_stmxcsr},   {ZYDIS_MNEMONIC_VLDMXCSR, select_ldmxcsr},
    {ZYDIS_MNEMONIC_VSTMXCSR, select_stmxcsr}, {ZYDIS_MNEMONIC_VZEROALL, select_vzero},   {ZYDIS_MNEMONIC_VZEROUPPER, select_vzero},
};
const struct x86_op_family x86_family_xsave = {"xsave", rows, ARRAY_SIZE(rows)};
