/* Control registers, EFER and XCR0: what may be written, and what follows from a write.
 *
 * Manuals: Intel SDM Vol. 3A 2.5 (control registers), 4.1 (paging modes), 4.4.1 (PDPTE registers), 9.8.5 (entering IA-32e mode);
 * Vol. 1 13.3 (XCR0). */
#include "x86/cpu/cr.h"
#include "x86/cpuid/cpuid.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

#define CR0_DEFINED  (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR3_NO_FLUSH BIT(63)
#define CR3_PCID     0xfffull

/* Changes of these reload the PDPTE registers (SDM Vol. 3A 4.4.1). */
#define CR0_PDPTE (CR0_CD | CR0_NW | CR0_PG)
#define CR4_PDPTE (CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP)

/* Changes of these change translations or the rights in them (SDM Vol. 3A 4.10.4.1). */
#define CR0_MMU (CR0_PG | CR0_WP)
#define CR4_MMU (CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_LA57 | CR4_PCIDE)

#define XCR0_X87    BIT(0)
#define XCR0_SSE    BIT(1)
#define XCR0_YMM    BIT(2)
#define XCR0_AVX512 (BIT(5) | BIT(6) | BIT(7))

/* ---- CR0 ---- */

static bool cr0_valid(u64 v) {
  if (v >> 32) return false;
  if ((v & CR0_NW) && !(v & CR0_CD)) return false;
  return !(v & CR0_PG) || (v & CR0_PE);
}

/* Paging goes on or off: rules that involve EFER, CR4 and CS. */
static bool cr0_paging_valid(const struct x86_vcpu *c, u64 v) {
  if ((v & CR0_PG) && !(c->cr0 & CR0_PG) && (c->efer & EFER_LME)) return (c->cr4 & CR4_PAE) && !c->seg[SEG_CS].l;
  if (!(v & CR0_PG) && (c->cr0 & CR0_PG)) return !c->code64 && !(c->cr4 & CR4_PCIDE);
  return true;
}

int x86_set_cr0(struct x86_vcpu *c, u64 v) {
  if (!cr0_valid(v)) return x86_gp0(c);
  v = (v & CR0_DEFINED) | CR0_ET;
  if (!cr0_paging_valid(c, v)) return x86_gp0(c);
  u64 changed = v ^ c->cr0;
  bool pae_paging = (v & CR0_PG) && (c->cr4 & CR4_PAE) && !(c->efer & EFER_LME);
  if (pae_paging && (changed & CR0_PDPTE)) {
    int r = x86_mmu_load_pdptrs(c, c->cr3);
    if (r) return r;
  }
  c->cr0 = v;
  if ((changed & CR0_PG) && (c->efer & EFER_LME)) c->efer = v & CR0_PG ? c->efer | EFER_LMA : c->efer & ~(u64)EFER_LMA;
  if (changed & (CR0_PE | CR0_PG)) x86_mode_changed(c);
  if (changed & CR0_MMU)
    x86_mmu_mode_changed(c);
  else if (changed & CR0_AM)
    x86_mmu_rights_changed(c);
  return X86_OK;
}

/* ---- CR3 ---- */

int x86_set_cr3(struct x86_vcpu *c, u64 v) {
  bool keep = false;
  if (c->cr4 & CR4_PCIDE) {
    keep = v & CR3_NO_FLUSH;
    v &= ~CR3_NO_FLUSH;
  }
  if (c->cpuid->maxphyaddr < 64 && v >> c->cpuid->maxphyaddr) return x86_gp0(c);
  bool pae_paging = (c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !(c->efer & EFER_LMA);
  if (pae_paging) {
    int r = x86_mmu_load_pdptrs(c, v);
    if (r) return r;
  }
  c->cr3 = v;
  x86_mmu_cr3_written(c, !keep);
  return X86_OK;
}

/* ---- CR4 ---- */

static const struct {
  u32 bit;
  u8 feature;
} cr4_bits[] = {
    {CR4_OSXSAVE, X86_FEATURE_XSAVE},     {CR4_SMEP, X86_FEATURE_SMEP},  {CR4_SMAP, X86_FEATURE_SMAP},
    {CR4_FSGSBASE, X86_FEATURE_FSGSBASE}, {CR4_PKE, X86_FEATURE_PKU},    {CR4_LA57, X86_FEATURE_LA57},
    {CR4_UMIP, X86_FEATURE_UMIP},         {CR4_PCIDE, X86_FEATURE_PCID},
};

bool x86_cr4_bits_valid(const struct x86_vcpu *c, u64 v) {
  u64 allowed =
      CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT;
  for (unsigned k = 0; k < ARRAY_SIZE(cr4_bits); k++)
    if (x86_has(c, (enum x86_feature)cr4_bits[k].feature)) allowed |= cr4_bits[k].bit;
  return !(v & ~allowed);
}

bool x86_cr0_bits_valid(u64 v) {
  return cr0_valid(v);
}

int x86_set_cr4(struct x86_vcpu *c, u64 v) {
  u64 changed = v ^ c->cr4;
  if (!x86_cr4_bits_valid(c, v)) return x86_gp0(c);
  if ((changed & v & CR4_PCIDE) && (!x86_long(c) || (c->cr3 & CR3_PCID))) return x86_gp0(c);
  if (x86_long(c)) {
    if (!(v & CR4_PAE) || (changed & CR4_LA57)) return x86_gp0(c);
  } else if ((c->cr0 & CR0_PG) && (v & CR4_PAE) && (changed & CR4_PDPTE)) {
    int r = x86_mmu_load_pdptrs(c, c->cr3);
    if (r) return r;
  }
  c->cr4 = v;
  x86_cpuid_cr4_changed(c, changed);
  if (changed & CR4_MMU) x86_mmu_mode_changed(c);
  return X86_OK;
}

/* ---- CR8 ---- */

int x86_set_cr8(struct x86_vcpu *c, u64 v) {
  if (v & ~0xfull) return x86_gp0(c);
  if (c->lapic)
    x86_lapic_set_cr8(c, v);
  else
    c->cr8 = v;
  return X86_OK;
}

u64 x86_get_cr8(struct x86_vcpu *c) {
  return c->lapic ? x86_lapic_get_cr8(c) : c->cr8;
}

/* ---- EFER ---- */

static bool efer_valid(const struct x86_vcpu *c, u64 v) {
  if ((v & EFER_FFXSR) && !x86_has(c, X86_FEATURE_FXSR_OPT)) return false;
  if ((v & (EFER_LME | EFER_LMA)) && !x86_has(c, X86_FEATURE_LM)) return false;
  return !(v & EFER_NX) || x86_has(c, X86_FEATURE_NX);
}

int x86_set_efer(struct x86_vcpu *c, u64 v, bool host) {
  if (v & ~(u64)(EFER_SCE | EFER_LME | EFER_LMA | EFER_NX | EFER_FFXSR)) return x86_gp0(c);
  if (!host) {
    if (!efer_valid(c, v)) return x86_gp0(c);
    if ((c->cr0 & CR0_PG) && ((v ^ c->efer) & EFER_LME)) return x86_gp0(c); /* SDM Vol. 3A 4.1.1 */
  }
  v = (v & ~(u64)EFER_LMA) | (c->efer & EFER_LMA);
  u64 changed = v ^ c->efer;
  c->efer = v;
  if (changed & EFER_NX) x86_mmu_mode_changed(c);
  return X86_OK;
}

/* ---- XCR0 ---- */

static bool xcr0_valid(const struct x86_vcpu *c, u64 v) {
  if (!(v & XCR0_X87) || ((v & XCR0_YMM) && !(v & XCR0_SSE))) return false;
  if ((v & XCR0_AVX512) && ((v & XCR0_AVX512) != XCR0_AVX512 || !(v & XCR0_YMM))) return false;
  return !(v & ~(x86_cpuid_xcr0(c) | XCR0_X87));
}

int x86_set_xcr0(struct x86_vcpu *c, u64 v) {
  if (!xcr0_valid(c, v)) return x86_gp0(c);
  u64 changed = v ^ c->xcr0;
  c->xcr0 = v;
  if (changed) x86_cpuid_xcr0_changed(c);
  return X86_OK;
}
