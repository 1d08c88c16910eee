/* Chooses between the machine's own KVM and libuvirt. */
#include <cpuid.h>
#include <stdbool.h>
#include <stddef.h>

#include <linux/kvm.h>

#include "vmm/kvm.h"

/* VMX: CPUID.1:ECX[5] (SDM vol. 3, 24.6); SVM: CPUID.8000_0001:ECX[2] (APM vol. 2, 15.4). */
static bool cpu_has_virtualization(void) {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) && c & (1u << 5)) return true;
  return __get_cpuid(0x80000001, &a, &b, &c, &d) && c & (1u << 2);
}

const struct vmm_accel *vmm_accel_auto(const char **why) {
  if (!cpu_has_virtualization()) {
    *why = "the CPU reports neither VT-x nor SVM";
    return &vmm_accel_soft;
  }
  int kvm = vmm_accel_host.open();
  if (kvm < 0) {
    *why = "/dev/kvm cannot be opened";
    return &vmm_accel_soft;
  }
  int vm = vmm_accel_host.ioctl(kvm, KVM_CREATE_VM, NULL);
  if (vm >= 0) vmm_accel_host.close(vm);
  vmm_accel_host.close(kvm);
  if (vm < 0) {
    *why = "/dev/kvm cannot create a virtual machine";
    return &vmm_accel_soft;
  }
  *why = "the CPU has hardware virtualization and /dev/kvm works";
  return &vmm_accel_host;
}
