/* What a guest tells somebody who would move it elsewhere: which of its memory is encrypted (KVM_HC_MAP_GPA_RANGE) and whether it
 * is ready (MSR_KVM_MIGRATION_CONTROL); Linux: virt/kvm/x86/hypercalls.rst and msr.rst.
 *
 * Nothing is encrypted here, so a guest is ready from the start, and its calls are answered and change nothing.
 */
#include <errno.h>

#include "vmm/machine/machine_priv.h"

enum { MSR_MIGRATION_CONTROL = 0x4b564d08, READY = 1, HC_MAP_GPA_RANGE = 12 };
enum { FEATURE_HC_MAP_GPA_RANGE = 1 << 16, FEATURE_MIGRATION_CONTROL = 1 << 17 }; /* of KVM's leaf 0x40000001 EAX */
enum { KVM_ENOSYS_RESULT = 1000 };

static bool has(struct vmm *vmm, int cap, int value) {
  int r = vmm->accel->ioctl(vmm->kvm_fd, KVM_CHECK_EXTENSION, (void *)(intptr_t)cap);
  return r > 0 && (r & value) == value;
}

static int enable(struct vmm *vmm, uint32_t cap, uint64_t arg) {
  struct kvm_enable_cap c = {.cap = cap, .args = {arg}};
  return vm_ioctl(vmm, KVM_ENABLE_CAP, &c);
}

/* The register is in no KVM: a filter leaves it to us. */
static int filter(struct vmm *vmm) {
  uint8_t none = 0;
  struct kvm_msr_filter f = {
      .ranges[0] = {
          .flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, .nmsrs = 1, .base = MSR_MIGRATION_CONTROL, .bitmap = &none}};
  return vm_ioctl(vmm, KVM_X86_SET_MSR_FILTER, &f);
}

int migration_open(struct vmm *vmm) {
  vmm->migration_ready = READY;
  if (!has(vmm, KVM_CAP_EXIT_HYPERCALL, 1 << HC_MAP_GPA_RANGE) || !has(vmm, KVM_CAP_X86_USER_SPACE_MSR, 1) ||
      !has(vmm, KVM_CAP_X86_MSR_FILTER, 1))
    return 0;
  int r = enable(vmm, KVM_CAP_EXIT_HYPERCALL, 1 << HC_MAP_GPA_RANGE);
  if (r >= 0) r = enable(vmm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER);
  if (r >= 0) r = filter(vmm);
  if (r >= 0) vmm->migration_features = FEATURE_HC_MAP_GPA_RANGE | FEATURE_MIGRATION_CONTROL;
  return r;
}

/* The bits are the VMM's to offer, KVM_GET_SUPPORTED_CPUID never has them. */
void migration_offer(struct vmm *vmm, struct kvm_cpuid2 *cpuid) {
  for (uint32_t i = 0; i < cpuid->nent; i++)
    if (cpuid->entries[i].function == 0x40000001) cpuid->entries[i].eax |= vmm->migration_features;
}
void migration_offered(struct vmm *vmm, const struct kvm_cpuid2 *cpuid) {
  uint32_t offered = 0;
  for (uint32_t i = 0; i < cpuid->nent; i++)
    if (cpuid->entries[i].function == 0x40000001) offered = cpuid->entries[i].eax;
  vmm->migration_features &= offered;
}

void migration_reset(struct vmm *vmm) {
  vmm->migration_ready = READY;
}

/* ---- exits ---- */

void migration_hypercall(struct vcpu *vcpu) {
  struct kvm_run *run = vcpu->run;
  bool known = run->hypercall.nr == HC_MAP_GPA_RANGE && (vcpu->vmm->migration_features & FEATURE_HC_MAP_GPA_RANGE);
  run->hypercall.ret = known ? 0 : (uint64_t)-KVM_ENOSYS_RESULT;
}

static bool is_ours(const struct vcpu *vcpu) {
  return vcpu->run->msr.index == MSR_MIGRATION_CONTROL && (vcpu->vmm->migration_features & FEATURE_MIGRATION_CONTROL);
}

void migration_rdmsr(struct vcpu *vcpu) {
  vcpu->run->msr.error = !is_ours(vcpu);
  vcpu->run->msr.data = atomic_load(&vcpu->vmm->migration_ready);
}

/* A guest that cannot tell of its memory has no say in it. */
void migration_wrmsr(struct vcpu *vcpu) {
  struct kvm_run *run = vcpu->run;
  bool may = is_ours(vcpu) && (vcpu->vmm->migration_features & FEATURE_HC_MAP_GPA_RANGE) && !(run->msr.data & ~(uint64_t)READY);
  run->msr.error = !may;
  if (may) atomic_store(&vcpu->vmm->migration_ready, run->msr.data);
}
