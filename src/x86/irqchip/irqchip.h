/* The interrupt controllers as the rest of the engine sees them. */
#ifndef X86_IRQCHIP_H
#define X86_IRQCHIP_H

#include "x86/vcpu.h"

/* Creation (KVM_CREATE_IRQCHIP, KVM_CAP_SPLIT_IRQCHIP, KVM_CREATE_PIT2): vm->lock held.  0 or -errno. */
int x86_irqchip_create(struct x86_vm *vm);
int x86_irqchip_create_split(struct x86_vm *vm, unsigned ioapic_pins);
void x86_irqchip_destroy(struct x86_vm *vm);
int x86_lapic_create(struct x86_vcpu *c);   /* when the VM has in-library APICs; called at vCPU creation */
void x86_lapic_destroy(struct x86_vcpu *c);
void x86_lapic_reset(struct x86_vcpu *c, bool init);

/* An interrupt the vCPU could take if allowed (extINT through LVT0/PIC, or LAPIC above PPR). */
bool x86_irq_pending(struct x86_vcpu *c);
/* Whether one may come to be pending without a request: by a store of the guest (vapic), or at the client's. */
bool x86_irq_unannounced(const struct x86_vcpu *c);
/* Acknowledges it: the vector, or -1.  On the vCPU's thread. */
int x86_irq_ack(struct x86_vcpu *c);
/* Folds what other threads posted into the APIC (REQ_APIC); on the vCPU's thread. */
void x86_lapic_sync(struct x86_vcpu *c);

/* The vCPU returns to the client: an EOI that the guest may do in memory is settled, so that state and memory copied from here agree. */
void x86_lapic_leave(struct x86_vcpu *c);

/* TPR as CR8 (bits 3:0). */
u64 x86_lapic_get_cr8(struct x86_vcpu *c);
void x86_lapic_set_cr8(struct x86_vcpu *c, u64 v);
/* The APIC page. 0 handled, -EOPNOTSUPP (disabled, x2APIC, other address). */
int x86_lapic_mmio_read(struct x86_vcpu *c, gpa_t gpa, unsigned len, void *data);
int x86_lapic_mmio_write(struct x86_vcpu *c, gpa_t gpa, unsigned len, const void *data);
static inline bool x86_lapic_hit(struct x86_vcpu *c, gpa_t gpa) { return c->lapic && (gpa & PAGE_MASK) == (c->apic_base & PAGE_MASK & 0xfffffffffffffull); }
/* x2APIC MSRs 0x800-0x8ff and IA32_APIC_BASE: 0, or -1 for #GP(0). */
int x86_x2apic_read(struct x86_vcpu *c, u32 msr, u64 *value);
int x86_x2apic_write(struct x86_vcpu *c, u32 msr, u64 value);
int x86_apic_base_write(struct x86_vcpu *c, u64 value, bool host);
/* IA32_TSC_DEADLINE. */
u64 x86_lapic_deadline_get(struct x86_vcpu *c);
void x86_lapic_deadline_set(struct x86_vcpu *c, u64 tsc);
void x86_lapic_tsc_changed(struct x86_vcpu *c); /* offset or scale changed: re-arm */
/* PV: EOI by memory bit (MSR_KVM_PV_EOI_EN value), IPI hypercall. */
int x86_lapic_pv_eoi_set(struct x86_vcpu *c, u64 value);
long x86_lapic_pv_ipi(struct x86_vm *vm, u64 low, u64 high, u32 min, u32 icr, bool mode64);
/* Accept a local interrupt such as the PMU's or CMCI (LVT offset). */
void x86_lapic_local(struct x86_vcpu *c, unsigned lvt_offset);
/* KVM_SET_VAPIC_ADDR, KVM_TPR_ACCESS_REPORTING: 0 or -EINVAL; REQ_TPR_EXIT: fills kvm_run for KVM_EXIT_TPR_ACCESS. */
int x86_vapic_set_address(struct x86_vcpu *c, u64 gpa);
int x86_tpr_reporting(struct x86_vcpu *c, const struct kvm_tpr_access_ctl *ctl);
void x86_tpr_exit(struct x86_vcpu *c);
/* KVM_GET/SET_LAPIC. */
int x86_lapic_get_state(struct x86_vcpu *c, struct kvm_lapic_state *s);
int x86_lapic_set_state(struct x86_vcpu *c, struct kvm_lapic_state *s);
bool x86_lapic_enabled(struct x86_vcpu *c);
u32 x86_lapic_id(struct x86_vcpu *c);

/* Split irqchip, REQ_EOI_EXIT: fills kvm_run for KVM_EXIT_IOAPIC_EOI and returns true when one is pending. */
bool x86_lapic_eoi_exit(struct x86_vcpu *c);

/* Delivery from any thread. */
int x86_msi_deliver(struct x86_vm *vm, u64 address, u32 data);
int x86_route_set(struct vm *vm, struct irq_route_entry *entry, const struct kvm_irq_routing_entry *ue); /* arch_ops.route_set */
void x86_routes_changed(struct vm *vm);
bool x86_irqfd_allowed(struct vm *vm, bool resample); /* arch_ops.irqfd_allowed */

/* Chip state ioctls (arguments as KVM's): 0 or -errno. */
int x86_irqchip_get(struct x86_vm *vm, struct kvm_irqchip *chip);
int x86_irqchip_set(struct x86_vm *vm, const struct kvm_irqchip *chip);
int x86_pit_create(struct x86_vm *vm, const struct kvm_pit_config *cfg);
void x86_pit_destroy(struct x86_vm *vm);
int x86_pit_get(struct x86_vm *vm, struct kvm_pit_state2 *s);
int x86_pit_set(struct x86_vm *vm, const struct kvm_pit_state2 *s);
int x86_pit_reinject(struct x86_vm *vm, bool on);

#endif
