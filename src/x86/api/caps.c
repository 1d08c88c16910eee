/* Capabilities of the x86 engine: what KVM_CHECK_EXTENSION answers and KVM_ENABLE_CAP switches. */
#include <errno.h>
#include <linux/kvm_para.h>
#include "x86/api/api.h"
#include "x86/cpuid/cpuid.h"
#include "x86/msr/msr.h"
#include "x86/pv/pv.h"

#define QUIRKS                                                                                                                   \
  (KVM_X86_QUIRK_LINT0_REENABLED | KVM_X86_QUIRK_CD_NW_CLEARED | KVM_X86_QUIRK_LAPIC_MMIO_HOLE | KVM_X86_QUIRK_OUT_7E_INC_RIP |  \
   KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT | KVM_X86_QUIRK_FIX_HYPERCALL_INSN | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)
#define GUEST_DEBUG                                                                                                              \
  (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_BP |    \
   KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_BLOCKIRQ)
#define CLOCK_FLAGS    (KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)
#define X2APIC_FLAGS   (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
#define MSR_REASONS    (KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)
#define HYPERCALL_EXITS BIT(KVM_HC_MAP_GPA_RANGE)
#define BUS_LOCK_MODES (KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT)
#define NOTIFY_FLAGS   (KVM_X86_NOTIFY_VMEXIT_ENABLED | KVM_X86_NOTIFY_VMEXIT_USER)
/* PAUSE never exits.  Not CSTATE: residency counters are MSRs, which a program cannot read. */
#define DISABLED_EXITS (KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE)

static const struct {
  u16 cap;
  u32 value;
} caps[] = {
    /* interrupt controllers */
    {KVM_CAP_IRQCHIP, 1},
    {KVM_CAP_PIT, 1},
    {KVM_CAP_PIT2, 1},
    {KVM_CAP_PIT_STATE2, 1},
    {KVM_CAP_REINJECT_CONTROL, 1},
    {KVM_CAP_IRQ_INJECT_STATUS, 1},
    {KVM_CAP_IOAPIC_POLARITY_IGNORED, 1},
    {KVM_CAP_TSC_DEADLINE_TIMER, 1},
    {KVM_CAP_X2APIC_API, X2APIC_FLAGS},
    {KVM_CAP_SPLIT_IRQCHIP, 1},
    {KVM_CAP_USER_NMI, 1},
    {KVM_CAP_HLT, 1},
    {KVM_CAP_VAPIC, 1},
    {KVM_CAP_SET_BOOT_CPU_ID, 1},
    /* set-up */
    {KVM_CAP_SET_TSS_ADDR, 1},
    {KVM_CAP_SET_IDENTITY_MAP_ADDR, 1},
    {KVM_CAP_EXT_CPUID, 1},
    {KVM_CAP_EXT_EMUL_CPUID, 1},
    {KVM_CAP_SMALLER_MAXPHYADDR, 1},
    {KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1},
    {KVM_CAP_LAST_CPU, 1},
    {KVM_CAP_EXIT_HYPERCALL, HYPERCALL_EXITS},
    {KVM_CAP_X86_BUS_LOCK_EXIT, BUS_LOCK_MODES},
    {KVM_CAP_DISABLE_QUIRKS, 1},
    {KVM_CAP_DISABLE_QUIRKS2, QUIRKS},
    {KVM_CAP_X86_DISABLE_EXITS, DISABLED_EXITS},
    {KVM_CAP_X86_NOTIFY_VMEXIT, 1},
    {KVM_CAP_MMU_SHADOW_CACHE_CONTROL, 1},
    /* vCPU state */
    {KVM_CAP_MP_STATE, 1},
    {KVM_CAP_VCPU_EVENTS, 1},
    {KVM_CAP_EXCEPTION_PAYLOAD, 1},
    {KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1},
    {KVM_CAP_DEBUGREGS, 1},
    {KVM_CAP_SET_GUEST_DEBUG, 1},
    {KVM_CAP_SET_GUEST_DEBUG2, GUEST_DEBUG},
    {KVM_CAP_X86_ROBUST_SINGLESTEP, 1},
    {KVM_CAP_XSAVE, 1},
    {KVM_CAP_XCRS, 1},
    {KVM_CAP_SREGS2, 1},
    {KVM_CAP_SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS},
    {KVM_CAP_X86_SMM, 1},
    {KVM_CAP_VCPU_ATTRIBUTES, 1},
    {KVM_CAP_SYS_ATTRIBUTES, 1},
    /* MSRs */
    {KVM_CAP_GET_MSR_FEATURES, 1},
    {KVM_CAP_MSR_PLATFORM_INFO, 1},
    {KVM_CAP_X86_USER_SPACE_MSR, 1},
    {KVM_CAP_X86_MSR_FILTER, 1},
    {KVM_CAP_MCE, X86_MCE_BANKS},
    {KVM_CAP_PMU_EVENT_FILTER, 1},
    {KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE},
    /* time */
    {KVM_CAP_CLOCKSOURCE, 1},
    {KVM_CAP_ADJUST_CLOCK, CLOCK_FLAGS},
    {KVM_CAP_KVMCLOCK_CTRL, 1},
    {KVM_CAP_GET_TSC_KHZ, 1},
    {KVM_CAP_TSC_CONTROL, 1},
    {KVM_CAP_VM_TSC_CONTROL, 1},
    {KVM_CAP_NOP_IO_DELAY, 1},
    {KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1},
};

int x86_check_extension(struct vm *vm, long cap) {
  if (cap == KVM_CAP_STEAL_TIME) return x86_pv_steal_known();
  if (cap == KVM_CAP_XSAVE2) return (int)MAX(x86_xsave_size(x86_xcr0_supported()), sizeof(struct kvm_xsave));
  for (unsigned k = 0; k < ARRAY_SIZE(caps); k++)
    if (caps[k].cap == cap) return (int)caps[k].value;
  return 0;
}

/* ---- enabling ---- */

static int enable_quirks(struct x86_vm *vm, const u64 *args) {
  vm->disabled_quirks = args[0];
  return 0;
}

static int enable_quirks2(struct x86_vm *vm, const u64 *args) {
  return args[0] & ~(u64)QUIRKS ? -EINVAL : enable_quirks(vm, args);
}

static int enable_split_irqchip(struct x86_vm *vm, const u64 *args) {
  if (args[0] > 4096) return -EINVAL; /* MAX_NR_RESERVED_IOAPIC_PINS */
  pthread_mutex_lock(&vm->core.lock);
  int r = vm->irqchip || atomic_load(&vm->core.n_vcpus) ? -EEXIST : x86_irqchip_create_split(vm, (unsigned)args[0]);
  pthread_mutex_unlock(&vm->core.lock);
  return r;
}

static int enable_x2apic(struct x86_vm *vm, const u64 *args) {
  if (args[0] & ~(u64)X2APIC_FLAGS) return -EINVAL;
  vm->x2apic_format |= (u32)args[0];
  return 0;
}

static int enable_disabled_exits(struct x86_vm *vm, const u64 *args) {
  if (args[0] & ~(u64)KVM_X86_DISABLE_VALID_EXITS) return -EINVAL;
  vm->exits_disabled |= args[0] & DISABLED_EXITS;
  vm->core.halt_in_guest = vm->exits_disabled & KVM_X86_DISABLE_EXITS_HLT;
  return 0;
}

static int enable_notify(struct x86_vm *vm, const u64 *args) {
  u32 flags = (u32)args[0];
  int r = -EINVAL;
  if ((flags & ~NOTIFY_FLAGS) || !(flags & KVM_X86_NOTIFY_VMEXIT_ENABLED)) return r;
  pthread_mutex_lock(&vm->core.lock);
  if (!atomic_load(&vm->core.n_vcpus)) {
    vm->notify_flags = flags;
    vm->notify_window = (u32)(args[0] >> 32);
    r = 0;
  }
  pthread_mutex_unlock(&vm->core.lock);
  return r;
}

static int enable_platform_info(struct x86_vm *vm, const u64 *args) {
  vm->clock->hide_platform_info = !args[0];
  return 0;
}

static int enable_payload(struct x86_vm *vm, const u64 *args) {
  vm->exception_payload = args[0];
  return 0;
}

static int enable_triple_fault(struct x86_vm *vm, const u64 *args) {
  vm->triple_fault_event = args[0];
  return 0;
}

static int enable_user_msr(struct x86_vm *vm, const u64 *args) {
  if (args[0] & ~(u64)MSR_REASONS) return -EINVAL;
  vm->user_msr_mask = args[0];
  return 0;
}

static int enable_pmu_capability(struct x86_vm *vm, const u64 *args) {
  int r = -EINVAL;
  if (args[0] & ~(u64)KVM_PMU_CAP_DISABLE) return r;
  pthread_mutex_lock(&vm->core.lock);
  if (!atomic_load(&vm->core.n_vcpus)) {
    vm->pmu_disabled = args[0];
    r = 0;
  }
  pthread_mutex_unlock(&vm->core.lock);
  return r;
}

static int enable_hypercall_exits(struct x86_vm *vm, const u64 *args) {
  if (args[0] & ~(u64)HYPERCALL_EXITS) return -EINVAL;
  vm->hypercall_exits = args[0];
  return 0;
}

/* OFF is the default, and does not take an earlier EXIT back. */
static int enable_bus_lock(struct x86_vm *vm, const u64 *args) {
  if (args[0] & ~(u64)BUS_LOCK_MODES || args[0] == BUS_LOCK_MODES) return -EINVAL;
  if (args[0] & KVM_BUS_LOCK_DETECTION_EXIT) vm->bus_lock_exits = true;
  return 0;
}

static int enable_emulation_exit(struct x86_vm *vm, const u64 *args) {
  if (args[0] & ~1ull) return -EINVAL;
  vm->exit_on_emulation_failure = args[0];
  return 0;
}

/* Once: the same value again is fine, another is not. */
static int enable_max_vcpu_id(struct x86_vm *vm, const u64 *args) {
  int r = -EINVAL;
  if (args[0] > vm->core.arch->max_vcpu_id) return r;
  pthread_mutex_lock(&vm->core.lock);
  if (!vm->clock->max_vcpu_ids || vm->clock->max_vcpu_ids == args[0]) {
    vm->clock->max_vcpu_ids = (u32)args[0];
    r = 0;
  }
  pthread_mutex_unlock(&vm->core.lock);
  return r;
}

static const struct {
  u16 cap;
  int (*enable)(struct x86_vm *vm, const u64 *args);
} vm_caps[] = {
    {KVM_CAP_DISABLE_QUIRKS, enable_quirks},
    {KVM_CAP_DISABLE_QUIRKS2, enable_quirks2},
    {KVM_CAP_SPLIT_IRQCHIP, enable_split_irqchip},
    {KVM_CAP_X2APIC_API, enable_x2apic},
    {KVM_CAP_X86_DISABLE_EXITS, enable_disabled_exits},
    {KVM_CAP_X86_NOTIFY_VMEXIT, enable_notify},
    {KVM_CAP_MSR_PLATFORM_INFO, enable_platform_info},
    {KVM_CAP_EXCEPTION_PAYLOAD, enable_payload},
    {KVM_CAP_X86_TRIPLE_FAULT_EVENT, enable_triple_fault},
    {KVM_CAP_X86_USER_SPACE_MSR, enable_user_msr},
    {KVM_CAP_MAX_VCPU_ID, enable_max_vcpu_id},
    {KVM_CAP_PMU_CAPABILITY, enable_pmu_capability},
    {KVM_CAP_EXIT_HYPERCALL, enable_hypercall_exits},
    {KVM_CAP_X86_BUS_LOCK_EXIT, enable_bus_lock},
    {KVM_CAP_EXIT_ON_EMULATION_FAILURE, enable_emulation_exit},
};

int x86_vm_enable_cap(struct vm *vm, u32 cap, u32 flags, const u64 *args) {
  if (flags) return -EINVAL;
  for (unsigned k = 0; k < ARRAY_SIZE(vm_caps); k++)
    if (vm_caps[k].cap == cap) return vm_caps[k].enable(x86_vm(vm), args);
  return -EINVAL;
}

int x86_vcpu_enable_cap(struct vcpu *vcpu, u32 cap, u32 flags, const u64 *args) {
  if (flags || cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID) return -EINVAL;
  x86_vcpu(vcpu)->cpuid->pv_enforce = args[0];
  return 0;
}
