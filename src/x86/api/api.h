/* x86's own ioctls and capabilities, as core's operations table wants them. */
#ifndef X86_API_API_H
#define X86_API_API_H

#include "api/ioctl.h"
#include "x86/vcpu.h"

enum { X86_N_SYSTEM_IOCTLS = 8, X86_N_VM_IOCTLS = 21, X86_N_VCPU_IOCTLS = 41 };
extern const struct ioctl_row x86_system_ioctls[X86_N_SYSTEM_IOCTLS];
extern const struct ioctl_row x86_vm_ioctls[X86_N_VM_IOCTLS];
extern const struct ioctl_row x86_vcpu_ioctls[X86_N_VCPU_IOCTLS];

int x86_check_extension(struct vm *vm, long cap);
int x86_vm_enable_cap(struct vm *vm, u32 cap, u32 flags, const u64 *args);
int x86_vcpu_enable_cap(struct vcpu *vcpu, u32 cap, u32 flags, const u64 *args);

/* Of pv/ and msr/, for the operations table. */
int x86_vm_clock_create(struct x86_vm *vm);
void x86_vm_clock_destroy(struct x86_vm *vm);
void x86_msr_filter_destroy(struct x86_vm *vm);

/* ---- inside the folder ---- */

void x86_get_regs(struct x86_vcpu *c, struct kvm_regs *r);
void x86_set_regs(struct x86_vcpu *c, const struct kvm_regs *r);
void x86_get_sregs(struct x86_vcpu *c, struct kvm_sregs *s);
int x86_set_sregs(struct x86_vcpu *c, const struct kvm_sregs *s);
void x86_get_vcpu_events(struct x86_vcpu *c, struct kvm_vcpu_events *e);
int x86_set_vcpu_events(struct x86_vcpu *c, struct kvm_vcpu_events *e);

/* Handlers by file: state.c, events.c, tables.c, device.c. */
ioctl_fn x86_ioctl_get_regs, x86_ioctl_set_regs, x86_ioctl_get_sregs, x86_ioctl_set_sregs, x86_ioctl_get_sregs2,
    x86_ioctl_set_sregs2;
ioctl_fn x86_ioctl_get_fpu, x86_ioctl_set_fpu, x86_ioctl_get_xsave, x86_ioctl_set_xsave, x86_ioctl_get_xsave2, x86_ioctl_get_xcrs,
    x86_ioctl_set_xcrs;
ioctl_fn x86_ioctl_translate;
ioctl_fn x86_ioctl_get_events, x86_ioctl_set_events, x86_ioctl_get_debugregs, x86_ioctl_set_debugregs, x86_ioctl_set_guest_debug;
ioctl_fn x86_ioctl_get_mp_state, x86_ioctl_set_mp_state, x86_ioctl_interrupt, x86_ioctl_nmi, x86_ioctl_smi;
ioctl_fn x86_ioctl_set_cpuid, x86_ioctl_set_cpuid2, x86_ioctl_get_cpuid2, x86_ioctl_get_supported_cpuid,
    x86_ioctl_get_emulated_cpuid;
ioctl_fn x86_ioctl_get_msrs, x86_ioctl_set_msrs, x86_ioctl_get_feature_msrs, x86_ioctl_msr_list, x86_ioctl_feature_msr_list;

#endif
