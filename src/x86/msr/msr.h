/* Model-specific registers: one row each, and the state of those that no other part owns. */
#ifndef X86_MSR_MSR_H
#define X86_MSR_MSR_H

#include "x86/x86.h"

#define X86_MCE_BANKS 32
#define X86_VAR_MTRRS 8

/* Machine-check capabilities a client may ask for: MCG_CTL, CMCI, software error recovery (SDM Vol. 3B 16.3.1.1). */
#define MCG_CTL_P          BIT(8)
#define MCG_CMCI_P         BIT(10)
#define MCG_SER_P          BIT(24)
#define X86_MCG_CAP_CLIENT (MCG_CTL_P | MCG_CMCI_P | MCG_SER_P)

/* IA32_PERF_CAPABILITIES: counters can be written at full width. */
#define X86_PERF_CAPS BIT(13)

struct x86_msr_state {
  u64 pat, misc_enable, power_ctl, feat_ctl, ucode_rev, arch_caps, spec_ctrl, perf_caps;
  u64 platform_info, misc_features, smi_count, hwcr, de_cfg;
  u64 mtrr_def_type, mtrr_var[2 * X86_VAR_MTRRS], mtrr_fixed[11];
  u64 mcg_cap, mcg_status, mcg_ctl, mce[4 * X86_MCE_BANKS], mci_ctl2[X86_MCE_BANKS];
};

/* Results of a row's handlers. */
enum x86_msr_result {
  MSR_OK,
  MSR_INVAL,   /* the register exists, but not for this access or value */
  MSR_UNKNOWN, /* there is no such register */
};

struct x86_msr_row;
typedef int x86_msr_get(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 *value);
typedef int x86_msr_set(struct x86_vcpu *c, const struct x86_msr_row *row, u32 index, bool host, u64 value);

/* Lists that a register is in. */
#define MSR_LIST_SAVE    1 /* KVM_GET_MSR_INDEX_LIST */
#define MSR_LIST_FEATURE 2 /* KVM_GET_MSR_FEATURE_INDEX_LIST */
/* Registers of one vendor's processors. */
#define MSR_INTEL 4
#define MSR_AMD   8

struct x86_msr_row {
  u32 first, last;
  const char *name;
  x86_msr_get *get; /* NULL: unknown for this direction */
  x86_msr_set *set;
  u32 flags;
  u32 offset; /* of the value in x86_msr_state or x86_vcpu, for the plain handlers */
  u64 value;  /* constant to read, or the bits that may be written */
};

extern const struct x86_msr_row x86_msr_rows[];
extern const unsigned x86_n_msr_rows;
const struct x86_msr_row *x86_msr_find(u32 index);
/* Calls fn for each register of a list, in ascending order. */
void x86_msr_list(u32 list, void (*fn)(void *arg, u32 index), void *arg);
/* Feature registers, without a vCPU: 0 or -EINVAL. */
int x86_msr_feature(u32 index, u64 *value);

/* Filters (KVM_X86_SET_MSR_FILTER). */
struct kvm_msr_filter;
int x86_msr_filter_set(struct x86_vm *vm, const struct kvm_msr_filter *filter);
void x86_msr_filter_destroy(struct x86_vm *vm);
bool x86_msr_allowed(struct x86_vm *vm, u32 index, u32 access);

/* KVM_X86_SETUP_MCE, KVM_X86_SET_MCE: 0 or -EINVAL. */
int x86_mce_setup(struct x86_vcpu *c, u64 mcg_cap);
int x86_mce_inject(struct x86_vcpu *c, const struct kvm_x86_mce *mce);

/* Handlers of rows, by file. */
x86_msr_get x86_mtrr_get, x86_mce_get, x86_pmu_get;
x86_msr_set x86_mtrr_set, x86_mce_set, x86_pat_set, x86_pmu_set, x86_perf_caps_set;

#endif
