/* Making and ending the interrupt controllers of a VM: the full set, or local APICs only. */
#include <errno.h>
#include <stdlib.h>
#include "x86/irqchip/lapic.h"

#define SPLIT_PINS_MAX 4096

/* GSI 0-15 are the same pin of the PICs and of the I/O APIC, 16-23 of the I/O APIC alone, as KVM starts. */
static int default_routes(struct x86_vm *vm) {
  struct kvm_irq_routing_entry e[16 + KVM_IOAPIC_NUM_PINS] = {0};
  unsigned n = 0;
  for (u32 gsi = 0; gsi < KVM_IOAPIC_NUM_PINS; gsi++) {
    e[n].gsi = gsi;
    e[n].type = KVM_IRQ_ROUTING_IRQCHIP;
    e[n].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    e[n++].u.irqchip.pin = gsi;
    if (gsi >= 16) continue;
    e[n].gsi = gsi;
    e[n].type = KVM_IRQ_ROUTING_IRQCHIP;
    e[n].u.irqchip.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
    e[n++].u.irqchip.pin = gsi & 7;
  }
  return vm_set_routing(&vm->core, e, n, 0);
}

static int create(struct x86_vm *vm, struct x86_irqchip **out) {
  if (vm->irqchip) return -EEXIST;
  if (atomic_load(&vm->core.n_vcpus)) return -EINVAL;
  struct x86_irqchip *chip = calloc(1, sizeof(*chip));
  if (!chip) return -ENOMEM;
  chip->vm = vm;
  pthread_mutex_init(&chip->map_lock, NULL);
  *out = chip;
  return 0;
}

static void discard(struct x86_vm *vm, struct x86_irqchip *chip) {
  __atomic_store_n(&vm->irqchip, NULL, __ATOMIC_RELEASE);
  x86_ioapic_destroy(chip);
  x86_pic_destroy(chip);
  pthread_mutex_destroy(&chip->map_lock);
  free(chip);
}

int x86_irqchip_create(struct x86_vm *vm) {
  struct x86_irqchip *chip;
  int r = create(vm, &chip);
  if (r) return r;
  r = x86_pic_create(chip);
  if (!r) r = x86_ioapic_create(chip);
  if (!r) {
    __atomic_store_n(&vm->irqchip, chip, __ATOMIC_RELEASE); /* routes lead to it */
    r = default_routes(vm);
  }
  if (r) discard(vm, chip);
  return r;
}

int x86_irqchip_create_split(struct x86_vm *vm, unsigned ioapic_pins) {
  struct x86_irqchip *chip;
  if (ioapic_pins > SPLIT_PINS_MAX) return -EINVAL;
  int r = create(vm, &chip);
  if (r) return r;
  chip->split = true;
  chip->split_pins = ioapic_pins;
  __atomic_store_n(&vm->irqchip, chip, __ATOMIC_RELEASE);
  r = vm_set_routing(&vm->core, NULL, 0, 0);
  if (r) discard(vm, chip);
  return r;
}

/* The I/O APIC and the PICs of a split irqchip are the client's, and so are their acknowledgements. */
bool x86_irqfd_allowed(struct vm *v, bool resample) {
  const struct x86_irqchip *chip = x86_vm(v)->irqchip;
  return chip && !(resample && chip->split);
}

void x86_irqchip_destroy(struct x86_vm *vm) {
  if (vm->irqchip) discard(vm, vm->irqchip);
}
