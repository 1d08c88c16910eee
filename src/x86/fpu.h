/* The extended state of a vCPU, laid out for direct use by native stubs (owner: exec/native). */
#ifndef X86_FPU_H
#define X86_FPU_H

#include "base/types.h"

struct x86_fpu {
  u8 zmm[32][64] __attribute__((aligned(64))); /* XMM/YMM/ZMM share storage; unsupported upper parts stay 0 */
  u64 k[8];
  u8 fx[512] __attribute__((aligned(64)));     /* x87/MMX in FXSAVE64 layout (FCW.. ST7); its XMM part and MXCSR are unused */
  u64 header[8];                               /* behind it, for XSAVE and XRSTOR (SDM Vol. 1, 13.4.2) */
  u32 mxcsr;                                   /* behind the host's register while live: x86_mxcsr_sync() */
  u32 host_mxcsr;                              /* of the client, while live */
  bool live;                                   /* the host's MXCSR holds the guest's, which masks all exceptions */
};

#endif
