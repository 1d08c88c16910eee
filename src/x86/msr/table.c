/* The registers: one row each, in ascending order.  Handlers are in the owning files, or the plain ones of this file.
 *
 * Manuals: Intel SDM Vol. 4; AMD APM Vol. 2 appendix A; Documentation/virt/kvm/x86/msr.rst.  What a register is allowed to hold
 * follows Linux 6.1's KVM. */
#include <errno.h>
#include <asm/kvm_para.h>
#include <stdlib.h>
#include "x86/cpuid/cpuid.h"
#include "x86/msr/msr.h"
#include "x86/pv/pv.h"

#define IN_STATE(field) .offset = offsetof(struct x86_msr_state, field)
#define IN_VCPU(field)  .offset = offsetof(struct x86_vcpu, field)

#define GETTER(name) static int name(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 *value)
#define SETTER(name) static int name(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 value)

/* ---- plain handlers ---- */

static u64 *state_slot(struct x86_vcpu *c, const struct x86_msr_row *row) {
  return (u64 *)((char *)c->msr + row->offset);
}
static u64 *vcpu_slot(struct x86_vcpu *c, const struct x86_msr_row *row) {
  return (u64 *)((char *)c + row->offset);
}

GETTER(get_const) {
  *value = row->value;
  return MSR_OK;
}
GETTER(get_state) {
  *value = *state_slot(c, row);
  return MSR_OK;
}
GETTER(get_vcpu) {
  *value = *vcpu_slot(c, row);
  return MSR_OK;
}
GETTER(get_vcpu_host) {
  return host ? get_vcpu(c, row, index, host, value) : MSR_INVAL;
}
GETTER(get_inval) {
  return MSR_INVAL;
}

SETTER(set_ignore) {
  return MSR_OK;
}
SETTER(set_inval) {
  return MSR_INVAL;
}
SETTER(set_state) {
  *state_slot(c, row) = value;
  return MSR_OK;
}
SETTER(set_vcpu) {
  *vcpu_slot(c, row) = value;
  return MSR_OK;
}
SETTER(set_state_host) {
  return host ? set_state(c, row, index, host, value) : MSR_INVAL;
}
SETTER(set_vcpu_host) {
  return host ? set_vcpu(c, row, index, host, value) : MSR_INVAL;
}
SETTER(set_zero) {
  return value ? MSR_INVAL : MSR_OK;
}

/* ---- system calls and segment bases ---- */

SETTER(set_canonical) {
  return x86_canonical(c, value) ? set_vcpu(c, row, index, host, value) : MSR_INVAL;
}

/* AMD keeps 64 bits and drops non-canonical ones when used; Intel faults: KVM makes the value canonical for both. */
SETTER(set_sysenter) {
  unsigned unused = c->cr4 & CR4_LA57 ? 64 - 57 : 64 - 48;
  return set_vcpu(c, row, index, host, (u64)((s64)(value << unused) >> unused));
}

SETTER(set_sysenter_cs) {
  return set_vcpu(c, row, index, host, (u32)value);
}

static unsigned base_segment(u32 index) {
  return index == 0xc0000100u ? SEG_FS : SEG_GS;
}

GETTER(get_segment_base) {
  *value = c->seg[base_segment(index)].base;
  return MSR_OK;
}
SETTER(set_segment_base) {
  if (!x86_canonical(c, value)) return MSR_INVAL;
  struct x86_seg *s = &c->seg[base_segment(index)];
  s->base = value;
  x86_seg_update(s);
  return MSR_OK;
}

SETTER(set_efer) {
  return x86_set_efer(c, value, host) ? MSR_INVAL : MSR_OK;
}

static bool has_tsc_aux(const struct x86_vcpu *c) {
  return x86_has(c, X86_FEATURE_RDTSCP) || x86_has(c, X86_FEATURE_RDPID);
}
GETTER(get_tsc_aux) {
  return host || has_tsc_aux(c) ? get_vcpu(c, row, index, host, value) : MSR_INVAL;
}
SETTER(set_tsc_aux) {
  if (!host && !has_tsc_aux(c)) return MSR_INVAL;
  if (!x86_is_amd(c) && value >> 32) return MSR_INVAL;
  c->tsc_aux = (u32)value;
  return MSR_OK;
}

/* ---- time ---- */

GETTER(get_tsc) {
  *value = x86_guest_tsc(c);
  return MSR_OK;
}
SETTER(set_tsc) {
  if (host)
    x86_tsc_write_host(c, value);
  else
    x86_tsc_write_guest(c, value);
  return MSR_OK;
}
SETTER(set_tsc_adjust) {
  if (!x86_has(c, X86_FEATURE_TSC_ADJUST)) return MSR_OK;
  if (host)
    c->tsc_adjust = value;
  else
    x86_tsc_adjust_write_guest(c, value);
  return MSR_OK;
}
GETTER(get_deadline) {
  *value = c->lapic ? x86_lapic_deadline_get(c) : 0;
  return MSR_OK;
}
SETTER(set_deadline) {
  if (c->lapic) x86_lapic_deadline_set(c, value);
  return MSR_OK;
}

/* ---- APIC ---- */

SETTER(set_apic_base) {
  return x86_apic_base_write(c, value, host) ? MSR_INVAL : MSR_OK;
}
GETTER(get_x2apic) {
  return c->lapic && !x86_x2apic_read(c, index, value) ? MSR_OK : MSR_INVAL;
}
SETTER(set_x2apic) {
  return c->lapic && !x86_x2apic_write(c, index, value) ? MSR_OK : MSR_INVAL;
}

/* ---- features and their control ---- */

#define MISC_ENABLE_EMON     BIT(7)
#define MISC_ENABLE_BTS_NONE BIT(11)
#define MISC_ENABLE_PEBS     BIT(12)
#define MISC_ENABLE_MWAIT    BIT(18)
#define PLATFORM_CPUID_FAULT BIT(31)
#define FEAT_CTL_LOCKED      BIT(0)
#define FEAT_CTL_HOST        (BIT(0) | BIT(1) | BIT(2) | BIT(17) | BIT(18) | BIT(20))
#define DEBUGCTL_LBR_BTF     3ull

/* What this processor is not vulnerable to: guest code runs through checked accesses, none of which the host can speculate past
 * by these flaws (SDM Vol. 4, IA32_ARCH_CAPABILITIES): RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO,
 * TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO. */
#define ARCH_CAPS                                                                                                                \
  (BIT(0) | BIT(1) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(8) | BIT(13) | BIT(14) | BIT(15) | BIT(20) | BIT(24) | BIT(26) |    \
   BIT(27) | BIT(62))

SETTER(set_misc_enable) {
  u64 old = c->msr->misc_enable;
  if (!host) {
    if ((old ^ value) & (MISC_ENABLE_BTS_NONE | MISC_ENABLE_PEBS)) return MSR_INVAL;
    value = (value & ~MISC_ENABLE_EMON) | (old & MISC_ENABLE_EMON);
  }
  bool follows = x86_vm_of(c)->disabled_quirks & KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT;
  if (follows && ((old ^ value) & MISC_ENABLE_MWAIT) && !x86_has(c, X86_FEATURE_SSE3)) return MSR_INVAL;
  c->msr->misc_enable = value;
  if ((old ^ value) & MISC_ENABLE_MWAIT) x86_cpuid_mwait_changed(c);
  return MSR_OK;
}

static bool has_bits(const struct x86_vcpu *c, u32 edx7) {
  return c->cpuid->edx7 & edx7;
}
#define SPEC_CTRL_FEATURES (X86_CPUID_7_EDX_SPEC_CTRL | X86_CPUID_7_EDX_STIBP | X86_CPUID_7_EDX_SSBD)
GETTER(get_spec_ctrl) {
  return host || has_bits(c, SPEC_CTRL_FEATURES) ? get_state(c, row, index, host, value) : MSR_INVAL;
}
SETTER(set_spec_ctrl) {
  if (!host && !has_bits(c, SPEC_CTRL_FEATURES)) return MSR_INVAL;
  return value & ~row->value ? MSR_INVAL : set_state(c, row, index, host, value);
}
SETTER(set_pred_cmd) {
  return (host || has_bits(c, X86_CPUID_7_EDX_SPEC_CTRL)) && !(value & ~row->value) ? MSR_OK : MSR_INVAL;
}
GETTER(get_arch_caps) {
  return host || has_bits(c, X86_CPUID_7_EDX_ARCH_CAPS) ? get_state(c, row, index, host, value) : MSR_INVAL;
}

GETTER(get_perf_caps) {
  return host || x86_has(c, X86_FEATURE_PDCM) ? get_state(c, row, index, host, value) : MSR_INVAL;
}
SETTER(set_feat_ctl) {
  if (!host && (c->msr->feat_ctl & FEAT_CTL_LOCKED)) return MSR_INVAL;
  return value & ~(host ? FEAT_CTL_HOST : FEAT_CTL_LOCKED) ? MSR_INVAL : set_state(c, row, index, host, value);
}

SETTER(set_ucode_rev) {
  return host ? set_state(c, row, index, host, value) : MSR_OK;
}

GETTER(get_platform_info) {
  return host || !x86_vm_of(c)->clock->hide_platform_info ? get_state(c, row, index, host, value) : MSR_INVAL;
}
SETTER(set_platform_info) {
  if (!host || (!(value & PLATFORM_CPUID_FAULT) && (c->msr->misc_features & 1))) return MSR_INVAL;
  return set_state(c, row, index, host, value);
}
SETTER(set_misc_features) {
  if ((value & ~1ull) || ((value & 1) && !(c->msr->platform_info & PLATFORM_CPUID_FAULT))) return MSR_INVAL;
  return set_state(c, row, index, host, value);
}

/* Branch tracing is not there: its bits are dropped, others refused. */
SETTER(set_debugctl) {
  return value & ~DEBUGCTL_LBR_BTF ? MSR_INVAL : MSR_OK;
}

GETTER(get_xss) {
  return host || x86_has(c, X86_FEATURE_XSAVES) ? get_vcpu(c, row, index, host, value) : MSR_INVAL;
}
SETTER(set_xss) {
  if ((!host && !x86_has(c, X86_FEATURE_XSAVES)) || value) return MSR_INVAL; /* no supervisor components */
  c->xss = value;
  x86_cpuid_xcr0_changed(c);
  return MSR_OK;
}

/* APM Vol. 2 3.2.10: bits that only tune are dropped; McStatusWrEn is kept. */
SETTER(set_hwcr) {
  value &= ~(0x40ull | 0x100 | 0x8);
  if (value && value != BIT(18)) return MSR_INVAL;
  if (value) c->msr->hwcr = value;
  return MSR_OK;
}

SETTER(set_de_cfg) {
  return value & ~row->value ? MSR_INVAL : set_state(c, row, index, host, value);
}

/* ---- KVM ---- */

static bool pv(const struct x86_vcpu *c, u64 feature) {
  return x86_pv_has(c, (enum x86_feature)feature);
}

GETTER(get_wall_clock) {
  if (!pv(c, row->value)) return MSR_UNKNOWN;
  *value = atomic_load(&x86_vm_of(c)->clock->wall_clock);
  return MSR_OK;
}
SETTER(set_wall_clock) {
  if (!pv(c, row->value)) return MSR_UNKNOWN;
  x86_pv_wall_clock_write(c, value);
  return MSR_OK;
}

/* Registers kept in struct x86_pv. */
GETTER(get_pv) {
  if (!pv(c, row->value)) return MSR_UNKNOWN;
  *value = *(const u64 *)((const char *)c->pv + row->offset);
  return MSR_OK;
}
SETTER(set_system_time) {
  if (!pv(c, row->value)) return MSR_UNKNOWN;
  x86_pv_system_time_write(c, value, index == MSR_KVM_SYSTEM_TIME);
  return MSR_OK;
}
SETTER(set_steal) {
  if (!pv(c, row->value)) return MSR_UNKNOWN;
  return x86_pv_steal_write(c, value, host) ? MSR_OK : MSR_INVAL;
}
SETTER(set_pv_eoi) {
  if (!pv(c, row->value)) return MSR_UNKNOWN;
  if (c->lapic ? x86_lapic_pv_eoi_set(c, value) != 0 : (value & 2) != 0) return MSR_INVAL; /* 4-byte aligned */
  c->pv->eoi = value;
  return MSR_OK;
}
SETTER(set_poll_control) {
  if (!pv(c, row->value)) return MSR_UNKNOWN;
  if (value & ~1ull) return MSR_INVAL;
  c->pv->poll_control = value;
  return MSR_OK;
}
#define IN_PV(field) .offset = offsetof(struct x86_pv, field)

/* ---- rows ---- */

#define ROW(first_, name_, get_, set_, ...)                                                                                      \
  { .first = first_, .last = first_, .name = name_, .get = get_, .set = set_, __VA_ARGS__ }
#define RANGE(first_, last_, name_, get_, set_, ...)                                                                             \
  { .first = first_, .last = last_, .name = name_, .get = get_, .set = set_, __VA_ARGS__ }
#define SAVE    .flags = MSR_LIST_SAVE
#define FEATURE .flags = MSR_LIST_SAVE | MSR_LIST_FEATURE
#define ONLY(v) .flags = v

/* clang-format off */
const struct x86_msr_row x86_msr_rows[] = {
    RANGE(0x0, 0x1, "P5_MC_ADDR", get_const, NULL, .value = 0),
    ROW(0x10, "TSC", get_tsc, set_tsc, SAVE),
    ROW(0x11, "KVM_WALL_CLOCK", get_wall_clock, set_wall_clock, SAVE, .value = X86_FEATURE_KVM_CLOCK),
    ROW(0x12, "KVM_SYSTEM_TIME", get_pv, set_system_time, SAVE, IN_PV(system_time), .value = X86_FEATURE_KVM_CLOCK),
    ROW(0x17, "PLATFORM_ID", get_const, NULL, .value = 0),
    ROW(0x1b, "APIC_BASE", get_vcpu, set_apic_base, IN_VCPU(apic_base)),
    ROW(0x2a, "EBL_CR_POWERON", get_const, NULL, .value = 0),
    ROW(0x2c, "EBC_FREQUENCY_ID", get_const, NULL, .value = 1 << 24),
    ROW(0x34, "SMI_COUNT", get_state, set_state_host, SAVE, IN_STATE(smi_count)),
    ROW(0x3a, "FEAT_CTL", get_state, set_feat_ctl, .flags = MSR_LIST_SAVE | MSR_INTEL, IN_STATE(feat_ctl)),
    ROW(0x3b, "TSC_ADJUST", get_vcpu, set_tsc_adjust, SAVE, IN_VCPU(tsc_adjust)),
    ROW(0x48, "SPEC_CTRL", get_spec_ctrl, set_spec_ctrl, SAVE, IN_STATE(spec_ctrl), .value = 0x407), /* IBRS, STIBP, SSBD, BHI_DIS_S */
    ROW(0x49, "PRED_CMD", NULL, set_pred_cmd, .value = 1),
    ROW(0x79, "UCODE_WRITE", NULL, set_ignore),
    ROW(0x8b, "UCODE_REV", get_state, set_ucode_rev, FEATURE, IN_STATE(ucode_rev)),
    ROW(0x9e, "SMBASE", get_vcpu_host, set_vcpu_host, SAVE, IN_VCPU(smbase)),
    RANGE(0xc1, 0xc4, "PERFCTR", x86_pmu_get, x86_pmu_set, SAVE),
    ROW(0xcd, "FSB_FREQ", get_const, NULL, .value = 3),
    ROW(0xce, "PLATFORM_INFO", get_platform_info, set_platform_info, SAVE, IN_STATE(platform_info)),
    ROW(0xfe, "MTRRCAP", get_const, NULL, .value = 0x500 | X86_VAR_MTRRS), /* fixed ranges, write combining */
    ROW(0x10a, "ARCH_CAPABILITIES", get_arch_caps, set_state_host, FEATURE, IN_STATE(arch_caps)),
    ROW(0x11e, "BBL_CR_CTL3", get_const, set_ignore, .value = 0xbe702111), /* L2: 256 KiB, enabled */
    ROW(0x140, "MISC_FEATURES_ENABLES", get_state, set_misc_features, SAVE, IN_STATE(misc_features)),
    ROW(0x174, "SYSENTER_CS", get_vcpu, set_sysenter_cs, SAVE, IN_VCPU(sysenter_cs)),
    ROW(0x175, "SYSENTER_ESP", get_vcpu, set_sysenter, SAVE, IN_VCPU(sysenter_esp)),
    ROW(0x176, "SYSENTER_EIP", get_vcpu, set_sysenter, SAVE, IN_VCPU(sysenter_eip)),
    ROW(0x179, "MCG_CAP", get_state, NULL, IN_STATE(mcg_cap)),
    ROW(0x17a, "MCG_STATUS", get_state, set_state, SAVE, IN_STATE(mcg_status)),
    ROW(0x17b, "MCG_CTL", x86_mce_get, x86_mce_set, SAVE),
    RANGE(0x186, 0x189, "EVNTSEL", x86_pmu_get, x86_pmu_set, SAVE),
    ROW(0x198, "PERF_STATUS", get_const, NULL, .value = 1000 | 4ull << 40), /* TSC increment, CPU multiplier */
    ROW(0x199, "PERF_CTL", get_const, NULL, .value = 0),
    ROW(0x1a0, "MISC_ENABLE", get_state, set_misc_enable, SAVE, IN_STATE(misc_enable)),
    ROW(0x1d9, "DEBUGCTL", get_const, set_debugctl, .value = 0),
    RANGE(0x1db, 0x1de, "LASTBRANCH", get_const, NULL, .value = 0),
    ROW(0x1fc, "POWER_CTL", get_state, set_state, SAVE, IN_STATE(power_ctl)),
    RANGE(0x200, 0x276, "MTRR", x86_mtrr_get, x86_mtrr_set),
    ROW(0x277, "PAT", get_state, x86_pat_set, SAVE, IN_STATE(pat)),
    RANGE(0x278, 0x27f, "MTRR", x86_mtrr_get, x86_mtrr_set),
    RANGE(0x280, 0x29f, "MCi_CTL2", x86_mce_get, x86_mce_set),
    RANGE(0x2a0, 0x2ff, "MTRR", x86_mtrr_get, x86_mtrr_set),
    RANGE(0x309, 0x30b, "FIXED_CTR", x86_pmu_get, x86_pmu_set, SAVE),
    ROW(0x345, "PERF_CAPABILITIES", get_perf_caps, x86_perf_caps_set, FEATURE, IN_STATE(perf_caps)),
    RANGE(0x38d, 0x390, "FIXED_CTR_CTRL, PERF_GLOBAL_STATUS, _CTRL, _OVF_CTRL", x86_pmu_get, x86_pmu_set, SAVE),
    RANGE(0x400, 0x47f, "MCi", x86_mce_get, x86_mce_set),
    RANGE(0x480, 0x491, "VMX", get_inval, set_inval, ONLY(MSR_INTEL)),
    RANGE(0x4c1, 0x4c4, "PMC", x86_pmu_get, x86_pmu_set),
    ROW(0x4d0, "MCG_EXT_CTL", get_inval, set_inval, ONLY(MSR_INTEL)),
    ROW(0x606, "RAPL_POWER_UNIT", get_const, NULL, .value = 0),
    ROW(0x611, "PKG_ENERGY_STATUS", get_const, NULL, .value = 0),
    ROW(0x619, "DRAM_ENERGY_STATUS", get_const, NULL, .value = 0),
    ROW(0x639, "PP0_ENERGY_STATUS", get_const, NULL, .value = 0),
    ROW(0x641, "PP1_ENERGY_STATUS", get_const, NULL, .value = 0),
    ROW(0x6e0, "TSC_DEADLINE", get_deadline, set_deadline, SAVE),
    RANGE(0x800, 0x8ff, "X2APIC", get_x2apic, set_x2apic),
    ROW(0xda0, "XSS", get_xss, set_xss, SAVE, IN_VCPU(xss)),
    ROW(0x4b564d00, "KVM_WALL_CLOCK_NEW", get_wall_clock, set_wall_clock, SAVE, .value = X86_FEATURE_KVM_CLOCK2),
    ROW(0x4b564d01, "KVM_SYSTEM_TIME_NEW", get_pv, set_system_time, SAVE, IN_PV(system_time), .value = X86_FEATURE_KVM_CLOCK2),
    ROW(0x4b564d03, "KVM_STEAL_TIME", get_pv, set_steal, SAVE, IN_PV(steal), .value = X86_FEATURE_KVM_STEAL_TIME),
    ROW(0x4b564d04, "KVM_PV_EOI_EN", get_pv, set_pv_eoi, SAVE, IN_PV(eoi), .value = X86_FEATURE_KVM_PV_EOI),
    ROW(0x4b564d05, "KVM_POLL_CONTROL", get_pv, set_poll_control, SAVE, IN_PV(poll_control), .value = X86_FEATURE_KVM_POLL_CONTROL),
    ROW(0xc0000080, "EFER", get_vcpu, set_efer, IN_VCPU(efer)),
    ROW(0xc0000081, "STAR", get_vcpu, set_vcpu, SAVE, IN_VCPU(star)),
    ROW(0xc0000082, "LSTAR", get_vcpu, set_canonical, SAVE, IN_VCPU(lstar)),
    ROW(0xc0000083, "CSTAR", get_vcpu, set_canonical, SAVE, IN_VCPU(cstar)),
    ROW(0xc0000084, "SYSCALL_MASK", get_vcpu, set_vcpu, SAVE, IN_VCPU(sfmask)),
    RANGE(0xc0000100, 0xc0000101, "FS_BASE, GS_BASE", get_segment_base, set_segment_base),
    ROW(0xc0000102, "KERNEL_GS_BASE", get_vcpu, set_canonical, SAVE, IN_VCPU(kernel_gs_base)),
    ROW(0xc0000103, "TSC_AUX", get_tsc_aux, set_tsc_aux, SAVE, IN_VCPU(tsc_aux)),
    RANGE(0xc0010000, 0xc0010007, "K7_EVNTSEL, K7_PERFCTR", get_const, set_ignore, .value = 0),
    ROW(0xc0010010, "SYSCFG", get_const, NULL, .value = 0),
    ROW(0xc0010015, "HWCR", get_state, set_hwcr, SAVE, IN_STATE(hwcr)),
    ROW(0xc001001b, "K7_CLK_CTL", get_const, set_ignore, .value = 0x20000000),
    ROW(0xc001001f, "NB_CFG", get_const, set_ignore, .value = 0),
    ROW(0xc0010020, "PATCH_LOADER", NULL, set_ignore),
    ROW(0xc0010055, "INT_PENDING_MSG", get_const, NULL, .value = 0),
    ROW(0xc0010058, "MMIO_CONF_BASE", get_const, set_zero, .value = 0),
    RANGE(0xc0010112, 0xc0010113, "TSEG", get_const, NULL, .value = 0),
    ROW(0xc0010114, "VM_CR", get_const, set_zero, ONLY(MSR_AMD), .value = 0),
    ROW(0xc0010115, "VM_IGNNE", NULL, set_ignore, ONLY(MSR_AMD)),
    ROW(0xc0010117, "VM_HSAVE_PA", get_const, set_ignore, .value = 0),
    ROW(0xc0011021, "IC_CFG", get_const, NULL, ONLY(MSR_AMD), .value = 0),
    RANGE(0xc0011022, 0xc0011023, "DC_CFG, TW_CFG", get_const, set_ignore, .value = 0),
    ROW(0xc0011029, "DE_CFG", get_state, set_de_cfg, .flags = MSR_AMD, IN_STATE(de_cfg), .value = BIT(1)), /* LFENCE serialises */
    ROW(0xc001102a, "BU_CFG2", get_const, set_ignore, .value = 0),
    ROW(0xc001102c, "EX_CFG", get_const, set_ignore, .value = 0),
};
/* clang-format on */
const unsigned x86_n_msr_rows = ARRAY_SIZE(x86_msr_rows);

const struct x86_msr_row *x86_msr_find(u32 index) {
  unsigned low = 0, high = x86_n_msr_rows;
  while (low < high) {
    unsigned mid = (low + high) / 2;
    if (index > x86_msr_rows[mid].last)
      low = mid + 1;
    else
      high = mid;
  }
  return low < x86_n_msr_rows && index >= x86_msr_rows[low].first ? &x86_msr_rows[low] : NULL;
}

void x86_msr_list(u32 list, void (*fn)(void *arg, u32 index), void *arg) {
  for (unsigned k = 0; k < x86_n_msr_rows; k++)
    for (u32 index = x86_msr_rows[k].first; x86_msr_rows[k].flags & list && index <= x86_msr_rows[k].last; index++)
      fn(arg, index);
}

/* ---- values from the start ---- */

#define PAT_DEFAULT     0x0007040600070406ull
#define UCODE_REV_INTEL 0x100000000ull

int x86_msr_feature(u32 index, u64 *value) {
  static const struct {
    u32 index;
    u64 value;
  } features[] = {{0x8b, UCODE_REV_INTEL}, {0x10a, ARCH_CAPS}, {0x345, X86_PERF_CAPS}};
  for (unsigned k = 0; k < ARRAY_SIZE(features); k++)
    if (features[k].index == index) {
      *value = features[k].value;
      return 0;
    }
  return -EINVAL;
}

int x86_msr_create(struct x86_vcpu *c) {
  c->msr = calloc(1, sizeof(*c->msr));
  if (!c->msr) return -ENOMEM;
  c->msr->pat = PAT_DEFAULT;
  c->msr->arch_caps = ARCH_CAPS;
  c->msr->ucode_rev = UCODE_REV_INTEL;
  c->msr->platform_info = PLATFORM_CPUID_FAULT;
  c->msr->mcg_cap = X86_MCE_BANKS;
  c->msr->perf_caps = X86_PERF_CAPS;
  x86_msr_reset(c, false);
  return 0;
}

void x86_msr_destroy(struct x86_vcpu *c) {
  free(c->msr);
  c->msr = NULL;
}

/* INIT leaves model-specific registers alone (SDM Vol. 3A table 9-1). */
void x86_msr_reset(struct x86_vcpu *c, bool init) {
  if (init) return;
  c->smbase = 0x30000;
  c->msr->misc_features = 0;
  c->msr->misc_enable = MISC_ENABLE_BTS_NONE | MISC_ENABLE_PEBS;
}
