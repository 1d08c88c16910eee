/* The components of the extended state.  Offsets are the host's (CPUID.0DH), so images are laid out as the host's own. */
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include "x86/cpuid/cpuid.h"
#include "x86/exec/xstate.h"

static struct component {
  u32 offset, size;
  bool aligned; /* to 64 bytes in a compacted image */
} comp[XC_COUNT] = {[XC_X87] = {0, 160}, [XC_SSE] = {160, 256}};
static u64 supported = XC(X87) | XC(SSE);
static bool own_pkru; /* the host's layout has no place for PKRU, the engine's has */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static u64 host_xcr0(void) {
  u32 a, b, c, d;
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
  __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return a | (u64)d << 32;
}

static void probe_component(unsigned n) {
  u32 a = 0, b = 0, c = 0, d = 0;
  __get_cpuid_count(0xd, n, &a, &b, &c, &d);
  if (n == XC_PKRU && !a) a = 8, b = 2688, own_pkru = true; /* kept by the engine: the host need not have it; its usual place */
  comp[n] = (struct component){.offset = b, .size = a, .aligned = c & 2};
  supported |= BIT(n);
}

static void probe(void) {
  u64 host = host_xcr0();
  if (!host) return;
  for (unsigned n = XC_AVX; n < XC_COUNT; n++)
    if (n == XC_PKRU || (host & BIT(n) & (XC(AVX) | XC_AVX512))) probe_component(n);
  if ((supported & XC_AVX512) != XC_AVX512) supported &= ~XC_AVX512;
}

u64 x86_xcr0_supported(void) {
  pthread_once(&once, probe);
  return supported;
}

u64 x86_xcr0_announced(void) {
  u64 all = x86_xcr0_supported();
  return own_pkru ? all & ~XC(PKRU) : all;
}

/* ---- layout ---- */

u32 x86_xstate_length(unsigned n, unsigned registers) {
  if (n == XC_HI16) return registers < 16 ? 0 : comp[n].size;
  return n == XC_SSE || n == XC_AVX || n == XC_ZMM_HI ? comp[n].size * registers / 16 : comp[n].size;
}

static u32 place_packed(u32 at, unsigned n) {
  return comp[n].aligned ? ALIGN_UP(at, 64u) : at;
}

/* SDM Vol. 1 13.4.3: components follow one another, some aligned. */
u32 x86_xstate_offset(unsigned n, u64 packed) {
  if (!packed || n < XC_AVX) return comp[n].offset;
  u32 at = XSTATE_EXTENDED;
  for (unsigned k = XC_AVX; k < n; k++)
    if (packed & BIT(k)) at = place_packed(at, k) + comp[k].size;
  return place_packed(at, n);
}

size_t x86_xstate_packed_size(u64 components) {
  u32 size = XSTATE_EXTENDED;
  pthread_once(&once, probe);
  for (unsigned n = XC_AVX; n < XC_COUNT; n++)
    if (components & supported & BIT(n)) size = place_packed(size, n) + comp[n].size;
  return size;
}

size_t x86_xstate_end(u64 components, u64 packed) {
  size_t end = XSTATE_EXTENDED;
  for (unsigned n = XC_AVX; n < XC_COUNT; n++)
    if (components & supported & BIT(n)) end = MAX(end, (size_t)x86_xstate_offset(n, packed) + comp[n].size);
  return end;
}

size_t x86_xsave_size(u64 components) {
  pthread_once(&once, probe);
  return x86_xstate_end(components, 0);
}

void x86_xstate_leaf(u32 n, u32 out[4]) {
  memset(out, 0, 16);
  if (n < XC_AVX || n >= XC_COUNT || !(x86_xcr0_supported() & BIT(n))) return;
  out[0] = comp[n].size;
  out[1] = comp[n].offset;
  out[2] = comp[n].aligned ? 2 : 0;
}

/* ---- features ---- */

/* What stubs run, and the state that it needs.  The moves of AVX-512 stubs are AVX512BW instructions. */
static const struct {
  u8 feature;
  u16 components;
} native[] = {
    {X86_FEATURE_MMX, 0},
    {X86_FEATURE_FXSR, 0},
    {X86_FEATURE_SSE, 0},
    {X86_FEATURE_SSE2, 0},
    {X86_FEATURE_SSE3, 0},
    {X86_FEATURE_SSSE3, 0},
    {X86_FEATURE_SSE41, 0},
    {X86_FEATURE_SSE42, 0},
    {X86_FEATURE_AES, 0},
    {X86_FEATURE_PCLMULQDQ, 0},
    {X86_FEATURE_SHA_NI, 0},
    {X86_FEATURE_GFNI, 0},
    {X86_FEATURE_AVX, XC(AVX)},
    {X86_FEATURE_AVX2, XC(AVX)},
    {X86_FEATURE_FMA, XC(AVX)},
    {X86_FEATURE_F16C, XC(AVX)},
    {X86_FEATURE_VAES, XC(AVX)},
    {X86_FEATURE_VPCLMULQDQ, XC(AVX)},
    {X86_FEATURE_AVX_VNNI, XC(AVX)},
    {X86_FEATURE_AVX512F, XC_AVX512},
    {X86_FEATURE_AVX512CD, XC_AVX512},
    {X86_FEATURE_AVX512BW, XC_AVX512},
    {X86_FEATURE_AVX512DQ, XC_AVX512},
    {X86_FEATURE_AVX512VL, XC_AVX512},
    {X86_FEATURE_AVX512_IFMA, XC_AVX512},
    {X86_FEATURE_AVX512_VBMI, XC_AVX512},
    {X86_FEATURE_AVX512_VBMI2, XC_AVX512},
    {X86_FEATURE_AVX512_VNNI, XC_AVX512},
    {X86_FEATURE_AVX512_BITALG, XC_AVX512},
    {X86_FEATURE_AVX512_VPOPCNTDQ, XC_AVX512},
    {X86_FEATURE_AVX512_BF16, XC_AVX512},
    {X86_FEATURE_AVX512_FP16, XC_AVX512},
};

bool x86_native_supports(enum x86_feature f) {
  switch (f) {
  case X86_FEATURE_XSAVE: /* C code: on every host */
  case X86_FEATURE_XSAVEOPT:
  case X86_FEATURE_XSAVEC:
  case X86_FEATURE_XGETBV1:
  case X86_FEATURE_XSAVES:
    return true;
  default:
    break;
  }
  for (size_t k = 0; k < ARRAY_SIZE(native); k++) {
    if (native[k].feature != f) continue;
    u64 need = native[k].components;
    if ((x86_xcr0_supported() & need) != need) return false;
    return x86_host_has(f) && (need != XC_AVX512 || x86_host_has(X86_FEATURE_AVX512BW));
  }
  return false;
}

/* ---- contents ---- */

static const u8 x87_init[24] = {0x7f, 0x03};

static u64 ones(const void *p, unsigned words) {
  const u64 *w = p;
  u64 any = 0;
  while (words--) any |= *w++;
  return any;
}

u64 x86_xstate_in_use(const struct x86_vcpu *c, bool mxcsr) {
  u64 use = 0, sse = mxcsr ? c->fpu.mxcsr ^ MXCSR_INIT : 0, avx = 0, zmm = 0;
  if (memcmp(c->fpu.fx, x87_init, sizeof(x87_init)) || ones(&c->fpu.fx[32], 16)) use |= XC(X87);
  for (unsigned n = 0; n < 16; n++) {
    sse |= ones(c->fpu.zmm[n], 2);
    avx |= ones(c->fpu.zmm[n] + 16, 2);
    zmm |= ones(c->fpu.zmm[n] + 32, 4);
  }
  if (sse) use |= XC(SSE);
  if (avx) use |= XC(AVX);
  if (zmm) use |= XC(ZMM_HI);
  if (ones(c->fpu.zmm[16], 128)) use |= XC(HI16);
  if (ones(c->fpu.k, 8)) use |= XC(OPMASK);
  if (c->pkru) use |= XC(PKRU);
  return use & supported;
}

/* Bytes [from, from + size) of the first registers. */
static void store_parts(const struct x86_vcpu *c, unsigned from, unsigned size, u8 *at, unsigned registers) {
  for (unsigned n = 0; n < registers; n++) memcpy(at + n * size, c->fpu.zmm[n] + from, size);
}
static void load_parts(struct x86_vcpu *c, unsigned from, unsigned size, const u8 *at, unsigned registers) {
  for (unsigned n = 0; n < registers; n++) memcpy(c->fpu.zmm[n] + from, at + n * size, size);
}
static void clear_parts(struct x86_vcpu *c, unsigned from, unsigned size, unsigned registers) {
  for (unsigned n = 0; n < registers; n++) memset(c->fpu.zmm[n] + from, 0, size);
}

void x86_xstate_store(const struct x86_vcpu *c, unsigned n, u8 *at, unsigned registers) {
  switch (n) {
  case XC_X87:
    memcpy(at, c->fpu.fx, MXCSR_AT);
    memcpy(at + 32, &c->fpu.fx[32], 128);
    break;
  case XC_SSE:
    store_parts(c, 0, 16, at, registers);
    break;
  case XC_AVX:
    store_parts(c, 16, 16, at, registers);
    break;
  case XC_OPMASK:
    memcpy(at, c->fpu.k, sizeof(c->fpu.k));
    break;
  case XC_ZMM_HI:
    store_parts(c, 32, 32, at, registers);
    break;
  case XC_HI16:
    memcpy(at, c->fpu.zmm[16], x86_xstate_length(n, registers));
    break;
  case XC_PKRU:
    memcpy(at, &c->pkru, 4);
    memset(at + 4, 0, 4);
    break;
  default:
    break;
  }
}

/* The instruction pointer, not the operand's, reads back as a canonical address. */
static void canonical_ip(struct x86_vcpu *c) {
  const unsigned unused = x86_has(c, X86_FEATURE_LA57) ? 64 - 57 : 64 - 48;
  u64 ip;
  memcpy(&ip, &c->fpu.fx[8], 8);
  ip = (u64)((s64)(ip << unused) >> unused);
  memcpy(&c->fpu.fx[8], &ip, 8);
}

void x86_xstate_load(struct x86_vcpu *c, unsigned n, const u8 *at, unsigned registers) {
  switch (n) {
  case XC_X87:
    memcpy(c->fpu.fx, at, MXCSR_AT);
    memcpy(&c->fpu.fx[32], at + 32, 128);
    x86_x87_sanitize(c);
    canonical_ip(c);
    break;
  case XC_SSE:
    load_parts(c, 0, 16, at, registers);
    break;
  case XC_AVX:
    load_parts(c, 16, 16, at, registers);
    break;
  case XC_OPMASK:
    memcpy(c->fpu.k, at, sizeof(c->fpu.k));
    break;
  case XC_ZMM_HI:
    load_parts(c, 32, 32, at, registers);
    break;
  case XC_HI16:
    memcpy(c->fpu.zmm[16], at, x86_xstate_length(n, registers));
    break;
  case XC_PKRU:
    memcpy(&c->pkru, at, 4);
    break;
  default:
    break;
  }
}

void x86_xstate_init(struct x86_vcpu *c, unsigned n, unsigned registers) {
  switch (n) {
  case XC_X87:
    memset(c->fpu.fx, 0, 160);
    memcpy(c->fpu.fx, x87_init, sizeof(x87_init));
    break;
  case XC_SSE:
    clear_parts(c, 0, 16, registers);
    break;
  case XC_AVX:
    clear_parts(c, 16, 16, registers);
    break;
  case XC_OPMASK:
    memset(c->fpu.k, 0, sizeof(c->fpu.k));
    break;
  case XC_ZMM_HI:
    clear_parts(c, 32, 32, registers);
    break;
  case XC_HI16:
    memset(c->fpu.zmm[16], 0, x86_xstate_length(n, registers));
    break;
  case XC_PKRU:
    c->pkru = 0;
    break;
  default:
    break;
  }
}

void x86_fpu_reset(struct x86_vcpu *c, bool init) {
  if (init) return; /* SDM Vol. 3A table 9-1: INIT leaves x87, SSE and AVX state alone */
  x86_mxcsr_sync(c);
  memset(&c->fpu, 0, sizeof(c->fpu));
  memcpy(c->fpu.fx, x87_init, sizeof(x87_init)); /* as KVM shows it; FCW would be 0040H */
  c->fpu.mxcsr = MXCSR_INIT;
}

/* ---- images of KVM's ioctls ---- */

void x86_fpu_to_xsave(struct x86_vcpu *c, void *area, size_t size, u64 mask) {
  const u32 mxcsr_mask = MXCSR_MASK;
  u8 *b = area;
  x86_mxcsr_sync(c);
  mask &= x86_xcr0_supported();
  memset(b, 0, size);
  for (unsigned n = 0; n < XC_COUNT; n++)
    if ((mask & BIT(n)) && comp[n].offset + comp[n].size <= size) x86_xstate_store(c, n, b + comp[n].offset, 16);
  u64 use = x86_xstate_in_use(c, true) & mask;
  memcpy(b + MXCSR_AT, &c->fpu.mxcsr, 4);
  memcpy(b + MXCSR_AT + 4, &mxcsr_mask, 4);
  if (size >= XSTATE_EXTENDED) memcpy(b + XSTATE_HEADER, &use, 8);
}

int x86_fpu_from_xsave(struct x86_vcpu *c, const void *area, size_t size) {
  const u8 *b = area;
  u64 bv, packed;
  u32 mxcsr;
  memcpy(&mxcsr, b + MXCSR_AT, 4);
  memcpy(&bv, b + XSTATE_HEADER, 8);
  memcpy(&packed, b + XSTATE_HEADER + 8, 8);
  if ((mxcsr & ~MXCSR_MASK) || (bv & ~x86_xcr0_supported()) || packed) return -EINVAL;
  x86_mxcsr_sync(c);
  for (unsigned n = 0; n < XC_COUNT; n++) {
    if (!(supported & BIT(n)) || comp[n].offset + comp[n].size > size) continue;
    if (bv & BIT(n))
      x86_xstate_load(c, n, b + comp[n].offset, 16);
    else
      x86_xstate_init(c, n, 16);
  }
  c->fpu.mxcsr = bv & (XC(SSE) | XC(AVX)) ? mxcsr : MXCSR_INIT;
  return 0;
}
