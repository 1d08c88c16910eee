/* CPUID feature bits by name: one row each (leaf, sub-leaf, register, bit). */
#ifndef X86_CPUID_FEATURES_H
#define X86_CPUID_FEATURES_H

enum { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

/* F(NAME, leaf, subleaf, register, bit): SDM Vol. 2A CPUID, APM Vol. 3 appendix E, Documentation/virt/kvm/x86/cpuid.rst */
#define X86_FEATURES(F)                                                                                                          \
  F(FPU, 1, 0, EDX, 0) F(VME, 1, 0, EDX, 1) F(DE, 1, 0, EDX, 2) F(PSE, 1, 0, EDX, 3) F(TSC, 1, 0, EDX, 4) F(MSR, 1, 0, EDX, 5)   \
  F(PAE, 1, 0, EDX, 6) F(MCE, 1, 0, EDX, 7) F(CX8, 1, 0, EDX, 8) F(APIC, 1, 0, EDX, 9) F(SEP, 1, 0, EDX, 11)                     \
  F(MTRR, 1, 0, EDX, 12) F(PGE, 1, 0, EDX, 13) F(MCA, 1, 0, EDX, 14) F(CMOV, 1, 0, EDX, 15) F(PAT, 1, 0, EDX, 16)                \
  F(PSE36, 1, 0, EDX, 17) F(CLFLUSH, 1, 0, EDX, 19) F(MMX, 1, 0, EDX, 23) F(FXSR, 1, 0, EDX, 24) F(SSE, 1, 0, EDX, 25)           \
  F(SSE2, 1, 0, EDX, 26) F(SS, 1, 0, EDX, 27) F(HT, 1, 0, EDX, 28)                                                               \
  F(SSE3, 1, 0, ECX, 0) F(PCLMULQDQ, 1, 0, ECX, 1) F(MONITOR, 1, 0, ECX, 3) F(VMX, 1, 0, ECX, 5) F(SSSE3, 1, 0, ECX, 9)          \
  F(FMA, 1, 0, ECX, 12) F(CX16, 1, 0, ECX, 13) F(PDCM, 1, 0, ECX, 15) F(PCID, 1, 0, ECX, 17) F(SSE41, 1, 0, ECX, 19)             \
  F(SSE42, 1, 0, ECX, 20) F(X2APIC, 1, 0, ECX, 21) F(MOVBE, 1, 0, ECX, 22) F(POPCNT, 1, 0, ECX, 23)                              \
  F(TSC_DEADLINE, 1, 0, ECX, 24) F(AES, 1, 0, ECX, 25) F(XSAVE, 1, 0, ECX, 26) F(OSXSAVE, 1, 0, ECX, 27) F(AVX, 1, 0, ECX, 28)   \
  F(F16C, 1, 0, ECX, 29) F(RDRAND, 1, 0, ECX, 30) F(HYPERVISOR, 1, 0, ECX, 31)                                                   \
  F(ARAT, 6, 0, EAX, 2)                                                                                                          \
  F(FSGSBASE, 7, 0, EBX, 0) F(TSC_ADJUST, 7, 0, EBX, 1) F(BMI1, 7, 0, EBX, 3) F(HLE, 7, 0, EBX, 4) F(AVX2, 7, 0, EBX, 5)         \
  F(SMEP, 7, 0, EBX, 7) F(BMI2, 7, 0, EBX, 8) F(ERMS, 7, 0, EBX, 9) F(INVPCID, 7, 0, EBX, 10) F(RTM, 7, 0, EBX, 11)              \
  F(AVX512F, 7, 0, EBX, 16) F(AVX512DQ, 7, 0, EBX, 17) F(RDSEED, 7, 0, EBX, 18) F(ADX, 7, 0, EBX, 19) F(SMAP, 7, 0, EBX, 20)     \
  F(AVX512_IFMA, 7, 0, EBX, 21) F(CLFLUSHOPT, 7, 0, EBX, 23) F(CLWB, 7, 0, EBX, 24) F(AVX512CD, 7, 0, EBX, 28)                   \
  F(SHA_NI, 7, 0, EBX, 29) F(AVX512BW, 7, 0, EBX, 30) F(AVX512VL, 7, 0, EBX, 31)                                                 \
  F(AVX512_VBMI, 7, 0, ECX, 1) F(UMIP, 7, 0, ECX, 2) F(PKU, 7, 0, ECX, 3) F(OSPKE, 7, 0, ECX, 4) F(AVX512_VBMI2, 7, 0, ECX, 6)   \
  F(GFNI, 7, 0, ECX, 8) F(VAES, 7, 0, ECX, 9) F(VPCLMULQDQ, 7, 0, ECX, 10) F(AVX512_VNNI, 7, 0, ECX, 11)                         \
  F(AVX512_BITALG, 7, 0, ECX, 12) F(AVX512_VPOPCNTDQ, 7, 0, ECX, 14) F(LA57, 7, 0, ECX, 16) F(RDPID, 7, 0, ECX, 22)              \
  F(MOVDIRI, 7, 0, ECX, 27) F(MOVDIR64B, 7, 0, ECX, 28)                                                                          \
  F(FSRM, 7, 0, EDX, 4) F(SERIALIZE, 7, 0, EDX, 14) F(AVX512_FP16, 7, 0, EDX, 23)                                                \
  F(AVX_VNNI, 7, 1, EAX, 4) F(AVX512_BF16, 7, 1, EAX, 5)                                                                         \
  F(XSAVEOPT, 0xd, 1, EAX, 0) F(XSAVEC, 0xd, 1, EAX, 1) F(XGETBV1, 0xd, 1, EAX, 2) F(XSAVES, 0xd, 1, EAX, 3)                     \
  F(SYSCALL, 0x80000001, 0, EDX, 11) F(NX, 0x80000001, 0, EDX, 20) F(MMXEXT, 0x80000001, 0, EDX, 22)                             \
  F(FXSR_OPT, 0x80000001, 0, EDX, 25) F(GBPAGES, 0x80000001, 0, EDX, 26) F(RDTSCP, 0x80000001, 0, EDX, 27)                       \
  F(LM, 0x80000001, 0, EDX, 29)                                                                                                  \
  F(LAHF_LM, 0x80000001, 0, ECX, 0) F(SVM, 0x80000001, 0, ECX, 2) F(CR8_LEGACY, 0x80000001, 0, ECX, 4)                           \
  F(ABM, 0x80000001, 0, ECX, 5) F(SSE4A, 0x80000001, 0, ECX, 6) F(PREFETCHW, 0x80000001, 0, ECX, 8)                              \
  F(XOP, 0x80000001, 0, ECX, 11) F(FMA4, 0x80000001, 0, ECX, 16) F(TBM, 0x80000001, 0, ECX, 21)                                  \
  F(INVTSC, 0x80000007, 0, EDX, 8) F(CLZERO, 0x80000008, 0, EBX, 0)                                                              \
  F(KVM_CLOCK, 0x40000001, 0, EAX, 0) F(KVM_NOP_IO_DELAY, 0x40000001, 0, EAX, 1) F(KVM_CLOCK2, 0x40000001, 0, EAX, 3)            \
  F(KVM_ASYNC_PF, 0x40000001, 0, EAX, 4) F(KVM_STEAL_TIME, 0x40000001, 0, EAX, 5) F(KVM_PV_EOI, 0x40000001, 0, EAX, 6)           \
  F(KVM_PV_UNHALT, 0x40000001, 0, EAX, 7) F(KVM_PV_TLB_FLUSH, 0x40000001, 0, EAX, 9)                                             \
  F(KVM_ASYNC_PF_VMEXIT, 0x40000001, 0, EAX, 10) F(KVM_PV_SEND_IPI, 0x40000001, 0, EAX, 11)                                      \
  F(KVM_POLL_CONTROL, 0x40000001, 0, EAX, 12) F(KVM_PV_SCHED_YIELD, 0x40000001, 0, EAX, 13)                                      \
  F(KVM_ASYNC_PF_INT, 0x40000001, 0, EAX, 14) F(KVM_MSI_EXT_DEST_ID, 0x40000001, 0, EAX, 15)                                     \
  F(KVM_CLOCK_STABLE, 0x40000001, 0, EAX, 24)

enum x86_feature {
#define X86_FEATURE_ENUM(name, leaf, sub, reg, bit) X86_FEATURE_##name,
  X86_FEATURES(X86_FEATURE_ENUM)
#undef X86_FEATURE_ENUM
  X86_FEATURE_COUNT
};

#endif
