/* Message-signalled interrupts, and what a GSI route stands for.
 *
 * SDM Vol. 3A (325384) 10.11 "Message signalled interrupts".  With KVM_CAP_X2APIC_API's 32-bit IDs the high address word carries
 * bits 31:8 of the destination, in place (Documentation/virt/kvm/api.rst 4.71).
 */
#include <errno.h>
#include "x86/irqchip/lapic.h"

#define MSI_LOGICAL  0x4u
#define MSI_REDIRECT 0x8u
#define MSI_LEVEL    0x8000u

static bool wide_ids(const struct x86_vm *vm) {
  return vm->x2apic_format & KVM_X2APIC_API_USE_32BIT_IDS;
}

struct apic_msg x86_msi_decode(const struct x86_vm *vm, u64 address, u32 data) {
  u32 high = wide_ids(vm) ? (u32)(address >> 32) & ~0xffu : 0;
  return (struct apic_msg){.dest = high | ((u32)address >> 12 & 0xff),
                           .vector = (u8)data,
                           .mode = data >> 8 & 7,
                           .logical = address & MSI_LOGICAL,
                           .redirect_hint = address & MSI_REDIRECT,
                           .level = data & MSI_LEVEL,
                           .assert = true};
}

static bool address_bad(const struct x86_vm *vm, u64 address) {
  return wide_ids(vm) && (address >> 32 & 0xff);
}

int x86_msi_deliver(struct x86_vm *vm, u64 address, u32 data) {
  if (!vm->irqchip || address_bad(vm, address)) return -EINVAL;
  struct apic_msg m = x86_msi_decode(vm, address, data);
  return x86_apic_deliver(vm, NULL, &m);
}

static u64 route_address(const struct irq_route_entry *e) {
  return (u64)e->msi.address_hi << 32 | e->msi.address_lo;
}

static int set_msi(struct irq_route_entry *e, struct vm *vm, int source, int level, bool line_status) {
  return level ? x86_msi_deliver(x86_vm(vm), route_address(e), e->msi.data) : -1;
}

static int set_pic(struct irq_route_entry *e, struct vm *vm, int source, int level, bool line_status) {
  return x86_pic_set(x86_vm(vm)->irqchip->pic, e->chip.pin, source, level);
}

static int set_ioapic(struct irq_route_entry *e, struct vm *vm, int source, int level, bool line_status) {
  return x86_ioapic_set(x86_vm(vm)->irqchip->ioapic, e->chip.pin, source, level);
}

/* Pins of the slave count on from the master's, here and in acknowledgements. */
static int route_chip(struct x86_vm *vm, struct irq_route_entry *e, u32 chip, u32 pin) {
  static const struct {
    u32 pins, first;
    int (*set)(struct irq_route_entry *e, struct vm *vm, int source, int level, bool line_status);
  } chips[] = {[KVM_IRQCHIP_PIC_MASTER] = {8, 0, set_pic},
               [KVM_IRQCHIP_PIC_SLAVE] = {8, 8, set_pic},
               [KVM_IRQCHIP_IOAPIC] = {KVM_IOAPIC_NUM_PINS, 0, set_ioapic}};
  if (!vm->irqchip || vm->irqchip->split || chip >= ARRAY_SIZE(chips) || pin >= chips[chip].pins) return -EINVAL;
  e->chip.irqchip = chip;
  e->chip.pin = chips[chip].first + pin;
  e->set = chips[chip].set;
  return 0;
}

int x86_route_set(struct vm *v, struct irq_route_entry *e, const struct kvm_irq_routing_entry *ue) {
  struct x86_vm *vm = x86_vm(v);
  if (ue->type == KVM_IRQ_ROUTING_IRQCHIP) return route_chip(vm, e, ue->u.irqchip.irqchip, ue->u.irqchip.pin);
  if (ue->type != KVM_IRQ_ROUTING_MSI) return -EINVAL;
  e->msi.address_lo = ue->u.msi.address_lo;
  e->msi.address_hi = ue->u.msi.address_hi;
  e->msi.data = ue->u.msi.data;
  e->msi.flags = ue->flags;
  e->msi.devid = ue->u.msi.devid;
  e->set = set_msi;
  return address_bad(vm, route_address(e)) ? -EINVAL : 0;
}

void x86_routes_changed(struct vm *v) {
  struct x86_irqchip *chip = x86_vm(v)->irqchip;
  if (chip) atomic_fetch_add_explicit(&chip->route_gen, 1, memory_order_release);
}
