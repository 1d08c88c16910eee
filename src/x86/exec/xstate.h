/* The components of the extended state (SDM Vol. 1, chapter 13): where they lie in an image, how they get in and out, what CPUID
 * says of them. */
#ifndef X86_EXEC_XSTATE_H
#define X86_EXEC_XSTATE_H

#include "x86/x86.h"

enum { XC_X87, XC_SSE, XC_AVX, XC_OPMASK = 5, XC_ZMM_HI, XC_HI16, XC_PKRU = 9, XC_COUNT };
#define XC(n)        BIT(XC_##n)
#define XC_AVX512    (XC(OPMASK) | XC(ZMM_HI) | XC(HI16))
#define XCOMP_PACKED BIT(63) /* XCOMP_BV: the image is compacted */

#define XSTATE_HEADER   512u
#define XSTATE_EXTENDED 576u /* behind the legacy region and the header */
#define XSTATE_MAX      2696u
#define MXCSR_AT        24u
#define MXCSR_MASK      0xffffu
#define MXCSR_INIT      0x1f80u

/* Sub-leaf n >= 2 of CPUID.0DH, EAX to EDX; zeros for components that are not supported. */
void x86_xstate_leaf(u32 n, u32 out[4]);
/* Offset of component n in an image: in the standard format, or in one compacted to these components. */
u32 x86_xstate_offset(unsigned n, u64 packed);
/* Bytes of a component with that many vector registers: outside 64-bit mode XSAVE and XRSTOR know eight, and HI16 has none. */
u32 x86_xstate_length(unsigned n, unsigned registers);
/* Size of a compacted image. */
size_t x86_xstate_packed_size(u64 components);
/* The end of the last of these components in an image (standard, or compacted to `packed`), at least that of the header. */
size_t x86_xstate_end(u64 components, u64 packed);

/* Between the vCPU and the component's place in an image; x87 without the bytes that hold MXCSR. */
void x86_xstate_store(const struct x86_vcpu *c, unsigned n, u8 *at, unsigned registers);
void x86_xstate_load(struct x86_vcpu *c, unsigned n, const u8 *at, unsigned registers);
void x86_xstate_init(struct x86_vcpu *c, unsigned n, unsigned registers);
/* XINUSE: components that differ from their initial state (13.6).  mxcsr: that of MXCSR counts for SSE, as the compacting
 * instructions have it; it must be up to date. */
u64 x86_xstate_in_use(const struct x86_vcpu *c, bool mxcsr);
/* Brings what was loaded into the x87 words to what the registers can hold: reserved bits, ES and B (x87.c). */
void x86_x87_sanitize(struct x86_vcpu *c);

/* Whether this host and the executor run a feature. */
bool x86_native_supports(enum x86_feature f);

#endif
