/* Machine-check registers and errors that user space injects.
 *
 * Manual: Intel SDM Vol. 3B 16.3 (machine-check MSRs), 16.5 (CMCI), 16.6 (software recovery). */
#include <errno.h>
#include "x86/msr/msr.h"

#define MSR_MCG_STATUS 0x17au
#define MSR_MCG_CTL    0x17bu
#define MSR_MC0_CTL2   0x280u
#define MSR_MC0_CTL    0x400u

#define MCG_STATUS_MCIP BIT(2)
#define MCI_VAL         BIT(63)
#define MCI_OVER        BIT(62)
#define MCI_UC          BIT(61)
#define MCI_PCC         BIT(57)
#define MCI_S           BIT(56)
#define MCI_AR          BIT(55)
#define CTL2_CMCI_EN    BIT(30)
#define CTL2_BITS       (CTL2_CMCI_EN | 0x7fffull)
#define HWCR_STATUS_WR  BIT(18)
#define LVT_CMCI        0x2f0u

static unsigned banks(const struct x86_vcpu *c) {
  return c->msr->mcg_cap & 0xff;
}

/* One of the four registers of a bank, or CTL2; NULL past the last bank. */
static u64 *bank_slot(struct x86_vcpu *c, u32 index) {
  struct x86_msr_state *m = c->msr;
  if (index >= MSR_MC0_CTL) return index - MSR_MC0_CTL < 4 * banks(c) ? &m->mce[index - MSR_MC0_CTL] : NULL;
  return index - MSR_MC0_CTL2 < banks(c) ? &m->mci_ctl2[index - MSR_MC0_CTL2] : NULL;
}

/* The capability a register belongs to; user space may always read what is not there as zero. */
static bool capable(const struct x86_vcpu *c, u32 index) {
  if (index == MSR_MCG_CTL) return c->msr->mcg_cap & MCG_CTL_P;
  if (index >= MSR_MC0_CTL2 && index < MSR_MC0_CTL) return c->msr->mcg_cap & MCG_CMCI_P;
  return true;
}

int x86_mce_get(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 *value) {
  if (!capable(c, index) && !host) return MSR_INVAL;
  if (index == MSR_MCG_CTL) {
    *value = c->msr->mcg_ctl;
    return MSR_OK;
  }
  const u64 *s = bank_slot(c, index);
  if (!s) return MSR_INVAL;
  *value = *s;
  return MSR_OK;
}

/* MCi_CTL takes all ones or zero, but some kernels leave bit 10 of bank 4 (AMD errata) or bit 0 clear; MCi_STATUS is only
 * cleared, except on AMD with HWCR.McStatusWrEn (APM Vol. 2 9.3.2). */
static bool bank_value_valid(const struct x86_vcpu *c, u32 index, bool host, u64 v) {
  unsigned reg = (index - MSR_MC0_CTL) & 3;
  if (reg == 0) return !v || (v | BIT(10) | 1) == ~0ull;
  if (reg == 1) return host || !v || (x86_is_amd(c) && (c->msr->hwcr & HWCR_STATUS_WR));
  return true;
}

int x86_mce_set(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 value) {
  if (!capable(c, index) && (value || !host)) return MSR_INVAL;
  if (index == MSR_MCG_CTL) {
    if (value && value != ~0ull) return MSR_INVAL;
    c->msr->mcg_ctl = value;
    return MSR_OK;
  }
  u64 *s = bank_slot(c, index);
  if (!s) return MSR_INVAL;
  if (index < MSR_MC0_CTL ? value & ~CTL2_BITS : !bank_value_valid(c, index, host, value)) return MSR_INVAL;
  *s = value;
  return MSR_OK;
}

int x86_mce_setup(struct x86_vcpu *c, u64 mcg_cap) {
  struct x86_msr_state *m = c->msr;
  unsigned n = mcg_cap & 0xff;
  if (!n || n > X86_MCE_BANKS || (mcg_cap & ~(X86_MCG_CAP_CLIENT | 0xff | 0xff0000))) return -EINVAL;
  m->mcg_cap = mcg_cap;
  if (mcg_cap & MCG_CTL_P) m->mcg_ctl = ~0ull;
  for (unsigned k = 0; k < n; k++) {
    m->mce[4 * k] = ~0ull;
    if (mcg_cap & MCG_CMCI_P) m->mci_ctl2[k] = 0;
  }
  return 0;
}

/* Uncorrected, no action required: told by CMCI only. */
static bool is_ucna(const struct kvm_x86_mce *e) {
  return !e->mcg_status && !(e->status & (MCI_PCC | MCI_S | MCI_AR)) && (e->status & MCI_VAL) && (e->status & MCI_UC);
}

static void record(struct x86_vcpu *c, u64 *bank, const struct kvm_x86_mce *e, u64 status) {
  bank[1] = status;
  bank[2] = e->addr;
  bank[3] = e->misc;
}

static void inject_uncorrected(struct x86_vcpu *c, u64 *bank, const struct kvm_x86_mce *e) {
  if ((c->msr->mcg_status & MCG_STATUS_MCIP) || !(c->cr4 & CR4_MCE)) { /* SDM Vol. 3B 16.3.1.2: shutdown */
    c->triple_fault = true;
    vcpu_request(&c->core, REQ_TRIPLE_FAULT);
    return;
  }
  record(c, bank, e, e->status | (bank[1] & MCI_VAL ? MCI_OVER : 0));
  c->msr->mcg_status = e->mcg_status;
  c->exception.pending = true;
  c->exception.injected = c->exception.has_payload = false;
  c->exception.ex = (struct x86_fault){.vector = VEC_MC};
  x86_request_event(c);
}

int x86_mce_inject(struct x86_vcpu *c, const struct kvm_x86_mce *e) {
  struct x86_msr_state *m = c->msr;
  if (e->bank >= banks(c) || !(e->status & MCI_VAL)) return -EINVAL;
  u64 *bank = &m->mce[4 * e->bank];
  if (is_ucna(e)) {
    record(c, bank, e, e->status);
    m->mcg_status = e->mcg_status;
    if ((m->mcg_cap & MCG_CMCI_P) && (m->mci_ctl2[e->bank] & CTL2_CMCI_EN) && c->lapic) x86_lapic_local(c, LVT_CMCI);
    return 0;
  }
  if (e->status & MCI_UC) { /* not reported where the guest switched it off */
    if (((m->mcg_cap & MCG_CTL_P) && m->mcg_ctl != ~0ull) || bank[0] != ~0ull) return 0;
    inject_uncorrected(c, bank, e);
  } else if (!(bank[1] & MCI_VAL) || !(bank[1] & MCI_UC)) {
    record(c, bank, e, e->status | (bank[1] & MCI_VAL ? MCI_OVER : 0));
  } else {
    bank[1] |= MCI_OVER; /* an uncorrected error stays */
  }
  return 0;
}
