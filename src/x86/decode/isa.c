/* Instruction-set extension -> CPUID feature, and what an encoding becomes without it. */
#include "x86/decode/isa.h"
#include "x86/x86.h"

#define F(x) X86_FEATURE_##x
#define NONE X86_FEATURE_COUNT

/* By Zydis' ISA set.  Absent rows need nothing (the base instruction set). */
static const struct {
  u16 set;
  u8 feature;
} rows[] = {
    {ZYDIS_ISA_SET_ADOX_ADCX, F(ADX)},           {ZYDIS_ISA_SET_AES, F(AES)},                     {ZYDIS_ISA_SET_AVX, F(AVX)},
    {ZYDIS_ISA_SET_AVX2, F(AVX2)},               {ZYDIS_ISA_SET_AVX2GATHER, F(AVX2)},             {ZYDIS_ISA_SET_AVXAES, F(AES)},
    {ZYDIS_ISA_SET_AVX_GFNI, F(GFNI)},           {ZYDIS_ISA_SET_AVX_VNNI, F(AVX_VNNI)},           {ZYDIS_ISA_SET_BMI1, F(BMI1)},
    {ZYDIS_ISA_SET_BMI2, F(BMI2)},               {ZYDIS_ISA_SET_CLFLUSHOPT, F(CLFLUSHOPT)},       {ZYDIS_ISA_SET_CLWB, F(CLWB)},
    {ZYDIS_ISA_SET_CLZERO, F(CLZERO)},           {ZYDIS_ISA_SET_CMOV, F(CMOV)},                   {ZYDIS_ISA_SET_CMPXCHG16B, F(CX16)},
    {ZYDIS_ISA_SET_F16C, F(F16C)},               {ZYDIS_ISA_SET_FMA, F(FMA)},                     {ZYDIS_ISA_SET_FMA4, F(FMA4)},
    {ZYDIS_ISA_SET_FXSAVE, F(FXSR)},             {ZYDIS_ISA_SET_FXSAVE64, F(FXSR)},               {ZYDIS_ISA_SET_GFNI, F(GFNI)},
    {ZYDIS_ISA_SET_INVPCID, F(INVPCID)},         {ZYDIS_ISA_SET_LONGMODE, F(LM)},                 {ZYDIS_ISA_SET_MONITOR, NONE},
    {ZYDIS_ISA_SET_MOVBE, F(MOVBE)},             {ZYDIS_ISA_SET_MOVDIR, F(MOVDIRI)},              {ZYDIS_ISA_SET_PCLMULQDQ, F(PCLMULQDQ)},
    {ZYDIS_ISA_SET_PENTIUMMMX, F(MMX)},          {ZYDIS_ISA_SET_PKU, F(PKU)},                     {ZYDIS_ISA_SET_POPCNT, F(POPCNT)},
    {ZYDIS_ISA_SET_RDPID, F(RDPID)},             {ZYDIS_ISA_SET_RDRAND, F(RDRAND)},               {ZYDIS_ISA_SET_RDSEED, F(RDSEED)},
    {ZYDIS_ISA_SET_RDTSCP, F(RDTSCP)},           {ZYDIS_ISA_SET_RDWRFSGS, F(FSGSBASE)},           {ZYDIS_ISA_SET_RTM, F(RTM)},
    {ZYDIS_ISA_SET_SERIALIZE, F(SERIALIZE)},     {ZYDIS_ISA_SET_SHA, F(SHA_NI)},                  {ZYDIS_ISA_SET_SMAP, F(SMAP)},
    {ZYDIS_ISA_SET_SSE, F(SSE)},                 {ZYDIS_ISA_SET_SSE2, F(SSE2)},                   {ZYDIS_ISA_SET_SSE2MMX, F(SSE2)},
    {ZYDIS_ISA_SET_SSE3, F(SSE3)},               {ZYDIS_ISA_SET_SSE3X87, F(SSE3)},                {ZYDIS_ISA_SET_SSE4, F(SSE41)},
    {ZYDIS_ISA_SET_SSE42, F(SSE42)},             {ZYDIS_ISA_SET_SSE4A, F(SSE4A)},                 {ZYDIS_ISA_SET_SSEMXCSR, F(SSE)},
    {ZYDIS_ISA_SET_SSE_PREFETCH, NONE},          {ZYDIS_ISA_SET_SSSE3, F(SSSE3)},                 {ZYDIS_ISA_SET_SSSE3MMX, F(SSSE3)},
    {ZYDIS_ISA_SET_SVM, F(SVM)},                 {ZYDIS_ISA_SET_TBM, F(TBM)},                     {ZYDIS_ISA_SET_VAES, F(VAES)},
    {ZYDIS_ISA_SET_VPCLMULQDQ, F(VPCLMULQDQ)},   {ZYDIS_ISA_SET_XOP, F(XOP)},                     {ZYDIS_ISA_SET_XSAVE, F(XSAVE)},
    {ZYDIS_ISA_SET_XSAVEC, F(XSAVEC)},           {ZYDIS_ISA_SET_XSAVEOPT, F(XSAVEOPT)},           {ZYDIS_ISA_SET_XSAVES, F(XSAVES)},
};

static bool has(const struct x86_cpuid *id, unsigned feature) { return feature == NONE || x86_cpuid_has(id, (enum x86_feature)feature); }

/* EVEX and mask instructions: by what their encoding needs. */
static bool evex_allowed(const struct x86_cpuid *id, const ZydisDecodedInstruction *insn) {
  if (!has(id, F(AVX512F))) return false;
  switch (insn->meta.isa_ext) {
  case ZYDIS_ISA_EXT_AVX512EVEX:
  case ZYDIS_ISA_EXT_AVX512VEX: return true; /* the finer sets are the native executor's to check */
  default: return true;
  }
}

bool x86_isa_allows(const struct x86_cpuid *id, struct x86_decoded *d) {
  const ZydisDecodedInstruction *insn = &d->insn;
  if (insn->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) return evex_allowed(id, insn);
  if (insn->meta.isa_ext == ZYDIS_ISA_EXT_AVX512VEX) return has(id, F(AVX512F));
  /* F3 0F BC/BD are BSF/BSR with an ignored prefix on processors without BMI1 / LZCNT (SDM Vol. 2, TZCNT, LZCNT). */
  if (insn->mnemonic == ZYDIS_MNEMONIC_TZCNT || insn->mnemonic == ZYDIS_MNEMONIC_LZCNT) {
    bool tz = insn->mnemonic == ZYDIS_MNEMONIC_TZCNT;
    if (!has(id, tz ? F(BMI1) : F(ABM))) d->insn.mnemonic = tz ? ZYDIS_MNEMONIC_BSF : ZYDIS_MNEMONIC_BSR;
    return true;
  }
  for (size_t k = 0; k < ARRAY_SIZE(rows); k++)
    if (rows[k].set == insn->meta.isa_set) return has(id, rows[k].feature);
  return true;
}
