/* The x86 ioctls: one row each; and the handlers that only pass on. */
#include <errno.h>
#include <string.h>
#include "x86/api/api.h"
#include "x86/cpuid/cpuid.h"
#include "x86/msr/msr.h"
#include "x86/pv/pv.h"

#define IDENTITY_MAP_DEFAULT 0xfffbc000ull
#define MMU_PAGES_MIN        64
#define TSC_KHZ_MAX          0x7fffffffull

static struct x86_vm *vm_of(struct ioctl_ctx *ctx) {
  return x86_vm(ctx->vm);
}
static struct x86_vcpu *vcpu_of(struct ioctl_ctx *ctx) {
  return x86_vcpu(ctx->vcpu);
}
static bool has_vcpus(struct ioctl_ctx *ctx) {
  return atomic_load(&ctx->vm->n_vcpus) != 0;
}

/* ---- system ---- */

static long mce_cap(struct ioctl_ctx *ctx, void *data) {
  *(u64 *)data = X86_MCG_CAP_CLIENT;
  return 0;
}

/* KVM_CAP_SYS_ATTRIBUTES: group 0, the XSAVE components a guest may have. */
static bool sys_attr_known(const struct kvm_device_attr *a) {
  return !a->group && a->attr == KVM_X86_XCOMP_GUEST_SUPP;
}

static long sys_has_attr(struct ioctl_ctx *ctx, void *data) {
  return sys_attr_known(data) ? 0 : -ENXIO;
}

static long sys_get_attr(struct ioctl_ctx *ctx, void *data) {
  const struct kvm_device_attr *a = data;
  u64 xcr0 = x86_xcr0_announced();
  return sys_attr_known(a) ? copy_to_user((void *)(uintptr_t)a->addr, &xcr0, sizeof(xcr0)) : -ENXIO;
}

#define ROW(request_, arg_, locks_, fn_)                                                                                         \
  { .request = request_, .name = #request_, .arg = arg_, .locks = locks_, .fn = fn_ }

const struct ioctl_row x86_system_ioctls[] = {
    ROW(KVM_GET_MSR_INDEX_LIST, ARG_USER, LOCK_NONE, x86_ioctl_msr_list),
    ROW(KVM_GET_MSR_FEATURE_INDEX_LIST, ARG_USER, LOCK_NONE, x86_ioctl_feature_msr_list),
    ROW(KVM_GET_MSRS, ARG_USER, LOCK_NONE, x86_ioctl_get_feature_msrs),
    ROW(KVM_GET_SUPPORTED_CPUID, ARG_USER, LOCK_NONE, x86_ioctl_get_supported_cpuid),
    ROW(KVM_GET_EMULATED_CPUID, ARG_USER, LOCK_NONE, x86_ioctl_get_emulated_cpuid),
    ROW(KVM_X86_GET_MCE_CAP_SUPPORTED, ARG_OUT, LOCK_NONE, mce_cap),
    ROW(KVM_GET_DEVICE_ATTR, ARG_IN, LOCK_NONE, sys_get_attr),
    ROW(KVM_HAS_DEVICE_ATTR, ARG_IN, LOCK_NONE, sys_has_attr),
};
_Static_assert(ARRAY_SIZE(x86_system_ioctls) == X86_N_SYSTEM_IOCTLS, "api.h");

/* ---- VM ---- */

/* Three pages for real mode on old processors; not needed here, but the address is checked (api.rst 4.41). */
static long set_tss_addr(struct ioctl_ctx *ctx, void *data) {
  if (ctx->value > (u32)(-3 * (int)PAGE_SIZE)) return -EINVAL;
  vm_of(ctx)->tss_addr = ctx->value;
  return 0;
}

static long set_identity_map_addr(struct ioctl_ctx *ctx, void *data) {
  u64 addr = *(const u64 *)data;
  if (has_vcpus(ctx)) return -EINVAL;
  vm_of(ctx)->identity_map_addr = addr ? addr : IDENTITY_MAP_DEFAULT;
  return 0;
}

static long set_boot_cpu_id(struct ioctl_ctx *ctx, void *data) {
  if (has_vcpus(ctx)) return -EBUSY;
  vm_of(ctx)->boot_cpu_id = (u32)ctx->value;
  return 0;
}

static long set_nr_mmu_pages(struct ioctl_ctx *ctx, void *data) {
  if (ctx->value < MMU_PAGES_MIN) return -EINVAL;
  vm_of(ctx)->clock->mmu_pages = ctx->value;
  return 0;
}

/* An int in KVM, too: a number of pages without its upper half. */
static long get_nr_mmu_pages(struct ioctl_ctx *ctx, void *data) {
  return (int)vm_of(ctx)->clock->mmu_pages;
}

static long create_irqchip(struct ioctl_ctx *ctx, void *data) {
  return x86_irqchip_create(vm_of(ctx));
}

static long create_pit(struct ioctl_ctx *ctx, void *data) {
  struct kvm_pit_config speaker = {.flags = KVM_PIT_SPEAKER_DUMMY};
  return x86_pit_create(vm_of(ctx), &speaker);
}

static long create_pit2(struct ioctl_ctx *ctx, void *data) {
  return x86_pit_create(vm_of(ctx), data);
}
static long get_irqchip(struct ioctl_ctx *ctx, void *data) {
  return x86_irqchip_get(vm_of(ctx), data);
}
static long set_irqchip(struct ioctl_ctx *ctx, void *data) {
  return x86_irqchip_set(vm_of(ctx), data);
}
static long get_pit2(struct ioctl_ctx *ctx, void *data) {
  return x86_pit_get(vm_of(ctx), data);
}
static long set_pit2(struct ioctl_ctx *ctx, void *data) {
  return x86_pit_set(vm_of(ctx), data);
}

/* The old form is the new one without flags. */
static long get_pit(struct ioctl_ctx *ctx, void *data) {
  struct kvm_pit_state2 s;
  int r = x86_pit_get(vm_of(ctx), &s);
  if (!r) memcpy(data, s.channels, sizeof(struct kvm_pit_state));
  return r;
}

static long set_pit(struct ioctl_ctx *ctx, void *data) {
  struct kvm_pit_state2 s;
  int r = x86_pit_get(vm_of(ctx), &s);
  if (r) return r;
  memcpy(s.channels, data, sizeof(struct kvm_pit_state));
  return x86_pit_set(vm_of(ctx), &s);
}

static long reinject_control(struct ioctl_ctx *ctx, void *data) {
  struct kvm_reinject_control control;
  int r = copy_from_user(&control, ctx->user, sizeof(control));
  if (r) return r;
  return vm_of(ctx)->pit ? x86_pit_reinject(vm_of(ctx), control.pit_reinject) : -ENXIO;
}

static long get_clock(struct ioctl_ctx *ctx, void *data) {
  x86_vm_clock_get(vm_of(ctx), data);
  return 0;
}

static long set_clock(struct ioctl_ctx *ctx, void *data) {
  return x86_vm_clock_set(vm_of(ctx), data);
}

static long vm_set_tsc_khz(struct ioctl_ctx *ctx, void *data) {
  u32 khz = (u32)ctx->value;
  if (khz >= TSC_KHZ_MAX) return -EINVAL;
  vm_of(ctx)->tsc_khz = khz ? khz : x86_host_tsc_khz();
  return 0;
}

static long vm_get_tsc_khz(struct ioctl_ctx *ctx, void *data) {
  return (long)vm_of(ctx)->tsc_khz;
}
static long set_pmu_filter(struct ioctl_ctx *ctx, void *data) {
  return x86_pmu_filter_set(vm_of(ctx), ctx->user);
}
static long set_msr_filter(struct ioctl_ctx *ctx, void *data) {
  return x86_msr_filter_set(vm_of(ctx), data);
}

const struct ioctl_row x86_vm_ioctls[] = {
    ROW(KVM_SET_TSS_ADDR, ARG_VALUE, LOCK_VM, set_tss_addr),
    ROW(KVM_SET_IDENTITY_MAP_ADDR, ARG_IN, LOCK_VM, set_identity_map_addr),
    ROW(KVM_SET_BOOT_CPU_ID, ARG_VALUE, LOCK_VM, set_boot_cpu_id),
    ROW(KVM_SET_NR_MMU_PAGES, ARG_VALUE, LOCK_VM, set_nr_mmu_pages),
    ROW(KVM_GET_NR_MMU_PAGES, ARG_NONE, LOCK_VM, get_nr_mmu_pages),
    ROW(KVM_CREATE_IRQCHIP, ARG_NONE, LOCK_VM, create_irqchip),
    ROW(KVM_CREATE_PIT, ARG_NONE, LOCK_VM, create_pit),
    ROW(KVM_CREATE_PIT2, ARG_IN, LOCK_VM, create_pit2),
    ROW(KVM_GET_IRQCHIP, ARG_INOUT, LOCK_NONE, get_irqchip),
    ROW(KVM_SET_IRQCHIP, ARG_IN, LOCK_NONE, set_irqchip),
    ROW(KVM_GET_PIT, ARG_OUT, LOCK_VM, get_pit),
    ROW(KVM_SET_PIT, ARG_IN, LOCK_VM, set_pit),
    ROW(KVM_GET_PIT2, ARG_OUT, LOCK_VM, get_pit2),
    ROW(KVM_SET_PIT2, ARG_IN, LOCK_VM, set_pit2),
    ROW(KVM_REINJECT_CONTROL, ARG_USER, LOCK_VM, reinject_control),
    ROW(KVM_GET_CLOCK, ARG_OUT, LOCK_NONE, get_clock),
    ROW(KVM_SET_CLOCK, ARG_IN, LOCK_NONE, set_clock),
    ROW(KVM_SET_TSC_KHZ, ARG_VALUE, LOCK_VM, vm_set_tsc_khz),
    ROW(KVM_GET_TSC_KHZ, ARG_NONE, LOCK_VM, vm_get_tsc_khz),
    ROW(KVM_SET_PMU_EVENT_FILTER, ARG_USER, LOCK_VM, set_pmu_filter),
    ROW(KVM_X86_SET_MSR_FILTER, ARG_IN, LOCK_VM, set_msr_filter),
};
_Static_assert(ARRAY_SIZE(x86_vm_ioctls) == X86_N_VM_IOCTLS, "api.h");

/* ---- vCPU ---- */

static long get_lapic(struct ioctl_ctx *ctx, void *data) {
  return vcpu_of(ctx)->lapic ? x86_lapic_get_state(vcpu_of(ctx), data) : -EINVAL;
}
static long set_lapic(struct ioctl_ctx *ctx, void *data) {
  return vcpu_of(ctx)->lapic ? x86_lapic_set_state(vcpu_of(ctx), data) : -EINVAL;
}
static long set_vapic_addr(struct ioctl_ctx *ctx, void *data) {
  return x86_vapic_set_address(vcpu_of(ctx), ((const struct kvm_vapic_addr *)data)->vapic_addr);
}
static long tpr_reporting(struct ioctl_ctx *ctx, void *data) {
  return x86_tpr_reporting(vcpu_of(ctx), data);
}
static long setup_mce(struct ioctl_ctx *ctx, void *data) {
  return x86_mce_setup(vcpu_of(ctx), *(const u64 *)data);
}
static long inject_mce(struct ioctl_ctx *ctx, void *data) {
  return x86_mce_inject(vcpu_of(ctx), data);
}
static long vcpu_set_tsc_khz(struct ioctl_ctx *ctx, void *data) {
  return x86_tsc_set_khz(vcpu_of(ctx), (u32)ctx->value);
}
static long vcpu_get_tsc_khz(struct ioctl_ctx *ctx, void *data) {
  return (long)vcpu_of(ctx)->tsc_khz;
}
static long clock_stopped(struct ioctl_ctx *ctx, void *data) {
  return x86_pv_clock_stopped(vcpu_of(ctx));
}

/* KVM_CAP_VCPU_ATTRIBUTES: the TSC offset. */
static bool vcpu_attr_known(const struct kvm_device_attr *a) {
  return a->group == KVM_VCPU_TSC_CTRL && a->attr == KVM_VCPU_TSC_OFFSET;
}

static long vcpu_has_attr(struct ioctl_ctx *ctx, void *data) {
  return vcpu_attr_known(data) ? 0 : -ENXIO;
}

static long vcpu_get_attr(struct ioctl_ctx *ctx, void *data) {
  const struct kvm_device_attr *a = data;
  u64 offset = vcpu_of(ctx)->tsc_offset;
  return vcpu_attr_known(a) ? copy_to_user((void *)(uintptr_t)a->addr, &offset, sizeof(offset)) : -ENXIO;
}

static long vcpu_set_attr(struct ioctl_ctx *ctx, void *data) {
  const struct kvm_device_attr *a = data;
  u64 offset;
  if (!vcpu_attr_known(a)) return -ENXIO;
  int r = copy_from_user(&offset, (const void *)(uintptr_t)a->addr, sizeof(offset));
  if (!r) x86_tsc_set_offset(vcpu_of(ctx), offset);
  return r;
}

#define VCPU_ROW(request, arg, fn) {request, #request, arg, LOCK_VCPU, fn} /* not through ROW: that would expand the name */

const struct ioctl_row x86_vcpu_ioctls[] = {
    VCPU_ROW(KVM_GET_REGS, ARG_OUT, x86_ioctl_get_regs),
    VCPU_ROW(KVM_SET_REGS, ARG_IN, x86_ioctl_set_regs),
    VCPU_ROW(KVM_GET_SREGS, ARG_OUT, x86_ioctl_get_sregs),
    VCPU_ROW(KVM_SET_SREGS, ARG_IN, x86_ioctl_set_sregs),
    VCPU_ROW(KVM_GET_SREGS2, ARG_OUT, x86_ioctl_get_sregs2),
    VCPU_ROW(KVM_SET_SREGS2, ARG_IN, x86_ioctl_set_sregs2),
    VCPU_ROW(KVM_GET_FPU, ARG_OUT, x86_ioctl_get_fpu),
    VCPU_ROW(KVM_SET_FPU, ARG_IN, x86_ioctl_set_fpu),
    VCPU_ROW(KVM_GET_XSAVE, ARG_OUT, x86_ioctl_get_xsave),
    VCPU_ROW(KVM_SET_XSAVE, ARG_USER, x86_ioctl_set_xsave),
    VCPU_ROW(KVM_GET_XSAVE2, ARG_USER, x86_ioctl_get_xsave2),
    VCPU_ROW(KVM_GET_XCRS, ARG_OUT, x86_ioctl_get_xcrs),
    VCPU_ROW(KVM_SET_XCRS, ARG_IN, x86_ioctl_set_xcrs),
    VCPU_ROW(KVM_TRANSLATE, ARG_INOUT, x86_ioctl_translate),
    VCPU_ROW(KVM_GET_VCPU_EVENTS, ARG_OUT, x86_ioctl_get_events),
    VCPU_ROW(KVM_SET_VCPU_EVENTS, ARG_IN, x86_ioctl_set_events),
    VCPU_ROW(KVM_GET_DEBUGREGS, ARG_OUT, x86_ioctl_get_debugregs),
    VCPU_ROW(KVM_SET_DEBUGREGS, ARG_IN, x86_ioctl_set_debugregs),
    VCPU_ROW(KVM_SET_GUEST_DEBUG, ARG_IN, x86_ioctl_set_guest_debug),
    VCPU_ROW(KVM_GET_MP_STATE, ARG_OUT, x86_ioctl_get_mp_state),
    VCPU_ROW(KVM_SET_MP_STATE, ARG_IN, x86_ioctl_set_mp_state),
    VCPU_ROW(KVM_INTERRUPT, ARG_IN, x86_ioctl_interrupt),
    VCPU_ROW(KVM_NMI, ARG_NONE, x86_ioctl_nmi),
    VCPU_ROW(KVM_SMI, ARG_NONE, x86_ioctl_smi),
    VCPU_ROW(KVM_SET_CPUID, ARG_USER, x86_ioctl_set_cpuid),
    VCPU_ROW(KVM_SET_CPUID2, ARG_USER, x86_ioctl_set_cpuid2),
    VCPU_ROW(KVM_GET_CPUID2, ARG_USER, x86_ioctl_get_cpuid2),
    VCPU_ROW(KVM_GET_MSRS, ARG_USER, x86_ioctl_get_msrs),
    VCPU_ROW(KVM_SET_MSRS, ARG_USER, x86_ioctl_set_msrs),
    VCPU_ROW(KVM_GET_LAPIC, ARG_OUT, get_lapic),
    VCPU_ROW(KVM_SET_LAPIC, ARG_IN, set_lapic),
    VCPU_ROW(KVM_SET_VAPIC_ADDR, ARG_IN, set_vapic_addr),
    VCPU_ROW(KVM_TPR_ACCESS_REPORTING, ARG_INOUT, tpr_reporting),
    VCPU_ROW(KVM_X86_SETUP_MCE, ARG_IN, setup_mce),
    VCPU_ROW(KVM_X86_SET_MCE, ARG_IN, inject_mce),
    VCPU_ROW(KVM_SET_TSC_KHZ, ARG_VALUE, vcpu_set_tsc_khz),
    VCPU_ROW(KVM_GET_TSC_KHZ, ARG_NONE, vcpu_get_tsc_khz),
    VCPU_ROW(KVM_KVMCLOCK_CTRL, ARG_NONE, clock_stopped),
    VCPU_ROW(KVM_GET_DEVICE_ATTR, ARG_IN, vcpu_get_attr),
    VCPU_ROW(KVM_SET_DEVICE_ATTR, ARG_IN, vcpu_set_attr),
    VCPU_ROW(KVM_HAS_DEVICE_ATTR, ARG_IN, vcpu_has_attr),
};
_Static_assert(ARRAY_SIZE(x86_vcpu_ioctls) == X86_N_VCPU_IOCTLS, "api.h");
