/* A vCPU's CPUID table and what is derived from it; what the engine can show. */
#ifndef X86_CPUID_CPUID_H
#define X86_CPUID_CPUID_H

#include "x86/exec/xstate.h"
#include "x86/x86.h"

#define X86_CPUID_MAX_ENTRIES   256 /* KVM_MAX_CPUID_ENTRIES */
#define X86_CPUID_FEATURE_WORDS ((X86_FEATURE_COUNT + 63) / 64)
#define X86_CPUID_CONFIG_WORDS  (X86_CPUID_FEATURE_WORDS + 1)

/* Bits that no instruction depends on, by leaf 7 EDX: they only show that an MSR exists. */
#define X86_CPUID_7_EDX_SPEC_CTRL 0x04000000u
#define X86_CPUID_7_EDX_STIBP     0x08000000u
#define X86_CPUID_7_EDX_ARCH_CAPS 0x20000000u
#define X86_CPUID_7_EDX_SSBD      0x80000000u

struct x86_cpuid {
  u64 features[X86_CPUID_FEATURE_WORDS]; /* shown to the guest, run-time bits included */
  struct kvm_cpuid_entry2 *entries;
  u32 n;
  bool ran;        /* the vCPU has run: the table may not change any more */
  bool amd;        /* vendor AuthenticAMD or HygonGenuine */
  bool pv_enforce; /* KVM_CAP_ENFORCE_PV_FEATURE_CPUID */
  u8 maxphyaddr;
  u32 edx7;                                                 /* leaf 7 EDX: X86_CPUID_7_EDX_* */
  u32 pv_features;                                          /* EAX of the KVM feature leaf */
  u64 xcr0;                                                 /* components that leaf 0xD lets the guest enable */
  struct kvm_cpuid_entry2 *leaf1, *leaf7, *leafd0, *leafd1; /* the entries that follow run-time state; NULL where absent */
  u64 config[X86_CPUID_CONFIG_WORDS]; /* features without the run-time bits, then x86_vcpu.bus_lock_exits: what x86_vcpu.isa numbers.
                                         Other vCPUs compare it under isa_lock */
};

/* The guest may use a paravirtual feature (KVM_* of features.h); always, unless user space enforces the CPUID bits. */
bool x86_pv_has(const struct x86_vcpu *c, enum x86_feature f);
/* XCR0 components the guest may enable; all of the engine's where user space gave no CPUID table. */
u64 x86_cpuid_xcr0(const struct x86_vcpu *c);

/* KVM_SET_CPUID2: takes ownership of entries (malloc) when it returns 0.  -EINVAL, -ENOMEM. */
int x86_cpuid_set(struct x86_vcpu *c, struct kvm_cpuid_entry2 *entries, u32 n);
/* Run-time bits, each by its cause. */
void x86_cpuid_cr4_changed(struct x86_vcpu *c, u64 changed);
void x86_cpuid_mwait_changed(struct x86_vcpu *c);
void x86_cpuid_xcr0_changed(struct x86_vcpu *c); /* XCR0 or IA32_XSS */

/* KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID: fill at most max entries, *n of them.  -E2BIG. */
int x86_cpuid_supported(struct kvm_cpuid_entry2 *entries, u32 max, u32 *n);
int x86_cpuid_emulated(struct kvm_cpuid_entry2 *entries, u32 max, u32 *n);
/* Whether the engine runs a feature. */
bool x86_engine_has(enum x86_feature f);

/* Whether the host's CPUID shows a feature. */
bool x86_host_has(enum x86_feature f);

/* ---- inside the folder ---- */

/* Where a feature's bit is. */
struct x86_feature_row {
  const char *name;
  u32 leaf;
  u8 subleaf, reg, bit;
};
extern const struct x86_feature_row x86_feature_rows[X86_FEATURE_COUNT];
static inline u32 *x86_cpuid_reg(struct kvm_cpuid_entry2 *e, unsigned reg) {
  return reg == CPUID_EAX ? &e->eax : reg == CPUID_EBX ? &e->ebx : reg == CPUID_ECX ? &e->ecx : &e->edx;
}
/* The bits of one register that the engine supports. */
u32 x86_engine_word(u32 leaf, u32 subleaf, unsigned reg);
/* First entry for a function; the sub-leaf counts only where the entry says so.  Counted: events search nothing, only CPUID and
 * setting a table do. */
struct kvm_cpuid_entry2 *x86_cpuid_find(struct x86_vcpu *c, struct kvm_cpuid_entry2 *entries, u32 n, u32 function, u32 index);
/* The small number of a feature configuration within a VM (x86_vcpu.isa). */
int x86_isa_assign(struct x86_vcpu *c, const u64 features[X86_CPUID_FEATURE_WORDS]);

#endif
