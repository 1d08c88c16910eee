/* Instruction-set extension -> CPUID feature: what a guest whose CPUID does not show a feature may not decode. */
#include "x86/decode/isa.h"
#include "x86/cpuid/cpuid.h"

/* What an ISA set needs: a feature (+1, so that 0 is "never"), with flags. */
#define NEEDS(x) (X86_FEATURE_##x + 1)
#define ALWAYS   0x100 /* part of every processor, a hint, or checked by its handler */
#define EVEX     0x200 /* AVX512F too */
#define VL       0x400 /* AVX512F and AVX512VL too: 128- and 256-bit forms */

#define SET(set, feature)  [ZYDIS_ISA_SET_##set] = NEEDS(feature)
#define BASE(set)          [ZYDIS_ISA_SET_##set] = ALWAYS
/* The sets of an AVX-512 extension by vector length. */
#define EVEX_SETS(name, feature)                                                                                                 \
  [ZYDIS_ISA_SET_##name##_128] = NEEDS(feature) | VL, [ZYDIS_ISA_SET_##name##_256] = NEEDS(feature) | VL, [ZYDIS_ISA_SET_##name##_512] = NEEDS(feature) | EVEX
#define EVEX_SET(set, feature) [ZYDIS_ISA_SET_##set] = NEEDS(feature) | EVEX

/* Sets without a row are never there: MPX, CET, AMX, SGX, TDX, UINTR, WAITPKG, KEYLOCKER, 3DNow!, LWP, VIA's and Knights' extensions, ... */
static const u16 needs[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
    BASE(I86), BASE(I186), BASE(I286PROTECTED), BASE(I286REAL), BASE(I386), BASE(I486), BASE(I486REAL), BASE(PENTIUMREAL), BASE(PPRO), BASE(FAT_NOP),
    BASE(PAUSE), BASE(PREFETCH_NOP), BASE(PREFETCHWT1), BASE(SSE_PREFETCH), BASE(RDPMC), BASE(MONITOR), BASE(LAHF), BASE(VTX), BASE(SVM),
    SET(X87, FPU), SET(CMOV, CMOV), SET(FCMOV, CMOV), SET(LONGMODE, LM), SET(CLFSH, CLFLUSH), SET(CMPXCHG16B, CX16), SET(MOVBE, MOVBE),
    SET(POPCNT, POPCNT), SET(LZCNT, ABM), SET(BMI1, BMI1), SET(BMI2, BMI2), SET(ADOX_ADCX, ADX), SET(TBM, TBM), SET(RDRAND, RDRAND),
    SET(RDSEED, RDSEED), SET(RDTSCP, RDTSCP), SET(RDPID, RDPID), SET(RDWRFSGS, FSGSBASE), SET(SMAP, SMAP), SET(INVPCID, INVPCID), SET(PKU, PKU),
    SET(CLFLUSHOPT, CLFLUSHOPT), SET(CLWB, CLWB), SET(CLZERO, CLZERO), SET(MOVDIR, MOVDIRI), SET(SERIALIZE, SERIALIZE), SET(RTM, RTM),
    SET(FXSAVE, FXSR), SET(FXSAVE64, FXSR), SET(XSAVE, XSAVE), SET(XSAVEOPT, XSAVEOPT), SET(XSAVEC, XSAVEC), SET(XSAVES, XSAVES),
    SET(PENTIUMMMX, MMX), SET(SSE, SSE), SET(SSEMXCSR, SSE), SET(SSE2, SSE2), SET(SSE2MMX, SSE2), SET(SSE3, SSE3), SET(SSE3X87, SSE3),
    SET(SSSE3, SSSE3), SET(SSSE3MMX, SSSE3), SET(SSE4, SSE41), SET(SSE42, SSE42), SET(SSE4A, SSE4A), SET(AES, AES), SET(PCLMULQDQ, PCLMULQDQ),
    SET(SHA, SHA_NI), SET(GFNI, GFNI), SET(AVX, AVX), SET(AVXAES, AES), SET(AVX_GFNI, GFNI), SET(AVX_VNNI, AVX_VNNI), SET(AVX2, AVX2),
    SET(AVX2GATHER, AVX2), SET(F16C, F16C), SET(FMA, FMA), SET(FMA4, FMA4), SET(XOP, XOP), SET(VAES, VAES), SET(VPCLMULQDQ, VPCLMULQDQ),
    EVEX_SETS(AVX512F, AVX512F), EVEX_SET(AVX512F_128N, AVX512F), EVEX_SET(AVX512F_KOP, AVX512F), EVEX_SET(AVX512F_SCALAR, AVX512F),
    EVEX_SETS(AVX512BW, AVX512BW), EVEX_SET(AVX512BW_128N, AVX512BW), EVEX_SET(AVX512BW_KOP, AVX512BW),
    EVEX_SETS(AVX512DQ, AVX512DQ), EVEX_SET(AVX512DQ_128N, AVX512DQ), EVEX_SET(AVX512DQ_KOP, AVX512DQ), EVEX_SET(AVX512DQ_SCALAR, AVX512DQ),
    EVEX_SETS(AVX512CD, AVX512CD), EVEX_SETS(AVX512_BF16, AVX512_BF16), EVEX_SETS(AVX512_BITALG, AVX512_BITALG), EVEX_SETS(AVX512_GFNI, GFNI),
    EVEX_SETS(AVX512_FP16, AVX512_FP16), EVEX_SET(AVX512_FP16_128N, AVX512_FP16), EVEX_SET(AVX512_FP16_SCALAR, AVX512_FP16),
    EVEX_SETS(AVX512_IFMA, AVX512_IFMA), EVEX_SETS(AVX512_VAES, VAES), EVEX_SETS(AVX512_VBMI, AVX512_VBMI), EVEX_SETS(AVX512_VBMI2, AVX512_VBMI2),
    EVEX_SETS(AVX512_VNNI, AVX512_VNNI), EVEX_SETS(AVX512_VPCLMULQDQ, VPCLMULQDQ), EVEX_SETS(AVX512_VPOPCNTDQ, AVX512_VPOPCNTDQ),
};

/* Instructions with a feature bit of their own inside a larger set. */
static const struct {
  u16 mnemonic;
  u8 feature;
} singles[] = {
    {ZYDIS_MNEMONIC_CMPXCHG8B, X86_FEATURE_CX8},   {ZYDIS_MNEMONIC_RDTSC, X86_FEATURE_TSC},      {ZYDIS_MNEMONIC_RDMSR, X86_FEATURE_MSR},
    {ZYDIS_MNEMONIC_WRMSR, X86_FEATURE_MSR},       {ZYDIS_MNEMONIC_SYSENTER, X86_FEATURE_SEP},   {ZYDIS_MNEMONIC_SYSEXIT, X86_FEATURE_SEP},
    {ZYDIS_MNEMONIC_MOVDIR64B, X86_FEATURE_MOVDIR64B}, {ZYDIS_MNEMONIC_VMXON, X86_FEATURE_VMX},  {ZYDIS_MNEMONIC_VMXOFF, X86_FEATURE_VMX},
    {ZYDIS_MNEMONIC_VMCLEAR, X86_FEATURE_VMX},     {ZYDIS_MNEMONIC_VMPTRLD, X86_FEATURE_VMX},    {ZYDIS_MNEMONIC_VMPTRST, X86_FEATURE_VMX},
    {ZYDIS_MNEMONIC_VMREAD, X86_FEATURE_VMX},      {ZYDIS_MNEMONIC_VMWRITE, X86_FEATURE_VMX},    {ZYDIS_MNEMONIC_VMLAUNCH, X86_FEATURE_VMX},
    {ZYDIS_MNEMONIC_VMRESUME, X86_FEATURE_VMX},    {ZYDIS_MNEMONIC_INVEPT, X86_FEATURE_VMX},     {ZYDIS_MNEMONIC_INVVPID, X86_FEATURE_VMX},
    {ZYDIS_MNEMONIC_VMRUN, X86_FEATURE_SVM},       {ZYDIS_MNEMONIC_VMLOAD, X86_FEATURE_SVM},     {ZYDIS_MNEMONIC_VMSAVE, X86_FEATURE_SVM},
    {ZYDIS_MNEMONIC_STGI, X86_FEATURE_SVM},        {ZYDIS_MNEMONIC_CLGI, X86_FEATURE_SVM},       {ZYDIS_MNEMONIC_SKINIT, X86_FEATURE_SVM},
    {ZYDIS_MNEMONIC_INVLPGA, X86_FEATURE_SVM},
};

/* Shown to the guest, and the engine runs it: clients may show what the host has not. */
static bool has(const struct x86_cpuid *id, enum x86_feature f) { return x86_cpuid_has(id, f) && x86_engine_has(f); }

static bool single_allowed(const struct x86_cpuid *id, unsigned mnemonic) {
  for (size_t k = 0; k < ARRAY_SIZE(singles); k++)
    if (singles[k].mnemonic == mnemonic) return x86_cpuid_has(id, (enum x86_feature)singles[k].feature);
  return true;
}

/* F3 0F BC and F3 0F BD are BSF and BSR with an ignored prefix on processors without BMI1 and LZCNT (SDM Vol. 2, TZCNT, LZCNT). */
static bool scan_allowed(const struct x86_cpuid *id, struct x86_decoded *d) {
  bool tz = d->insn.mnemonic == ZYDIS_MNEMONIC_TZCNT;
  if (!x86_cpuid_has(id, tz ? X86_FEATURE_BMI1 : X86_FEATURE_ABM)) d->insn.mnemonic = tz ? ZYDIS_MNEMONIC_BSF : ZYDIS_MNEMONIC_BSR;
  return true;
}

bool x86_isa_allows(const struct x86_cpuid *id, struct x86_decoded *d) {
  unsigned m = d->insn.mnemonic, n = needs[d->insn.meta.isa_set];
  if (!n) return false;
  if (m == ZYDIS_MNEMONIC_TZCNT || m == ZYDIS_MNEMONIC_LZCNT) return scan_allowed(id, d);
  if (n & (EVEX | VL) && !has(id, X86_FEATURE_AVX512F)) return false;
  if (n & VL && !has(id, X86_FEATURE_AVX512VL)) return false;
  if (n & 0xff && !has(id, (enum x86_feature)((n & 0xff) - 1))) return false;
  if (m == ZYDIS_MNEMONIC_LAHF || m == ZYDIS_MNEMONIC_SAHF) /* SDM Vol. 2A LAHF: in 64-bit mode only with the feature bit */
    return d->insn.machine_mode != ZYDIS_MACHINE_MODE_LONG_64 || x86_cpuid_has(id, X86_FEATURE_LAHF_LM);
  return single_allowed(id, m);
}
