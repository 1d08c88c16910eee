/* Saved states of the interrupt controllers: KVM_GET/SET_LAPIC, KVM_GET/SET_IRQCHIP. */
#include <errno.h>
#include <string.h>
#include "x86/irqchip/chips.h"
#include "x86/irqchip/lapic.h"

/* ---- the local APIC: its page, one 32-bit register every 16 bytes ---- */

static u32 page_get(const struct kvm_lapic_state *s, unsigned reg) {
  u32 v;
  memcpy(&v, s->regs + reg * 16, 4);
  return v;
}

static void page_put(struct kvm_lapic_state *s, unsigned reg, u32 v) {
  memcpy(s->regs + reg * 16, &v, 4);
}

static void vectors_put(struct kvm_lapic_state *s, unsigned reg, const u64 *map) {
  for (unsigned k = 0; k < 8; k++) page_put(s, reg + k, (u32)(map[k >> 1] >> (k & 1) * 32));
}

static void vectors_get(const struct kvm_lapic_state *s, unsigned reg, u64 *map) {
  for (unsigned k = 0; k < 4; k++) map[k] = page_get(s, reg + 2 * k) | (u64)page_get(s, reg + 2 * k + 1) << 32;
}

static bool wide_ids(struct x86_lapic *l) {
  return l->chip->vm->x2apic_format & KVM_X2APIC_API_USE_32BIT_IDS;
}

int x86_lapic_get_state(struct x86_vcpu *c, struct kvm_lapic_state *s) {
  struct x86_lapic *l = c->lapic;
  u64 tmr[4];
  if (!l) return -EINVAL;
  x86_lapic_sync(c);
  memset(s, 0, sizeof(*s));
  for (unsigned reg = 0; reg < APIC_REGS; reg++) page_put(s, reg, l->regs[reg]);
  for (unsigned k = 0; k < 4; k++) tmr[k] = atomic_load(&l->tmr[k]);
  vectors_put(s, REG_ISR, l->isr);
  vectors_put(s, REG_IRR, l->irr);
  vectors_put(s, REG_TMR, tmr);
  page_put(s, REG_VERSION, lapic_version(l));
  page_put(s, REG_PPR, lapic_ppr(l));
  page_put(s, REG_TMCCT, lapic_timer_current(l));
  /* x2APIC IDs are 32 bits in the new format, bits 31:24 in the old one (api.rst, KVM_CAP_X2APIC_API). */
  if (lapic_x2(l) && !wide_ids(l)) page_put(s, REG_ID, l->regs[REG_ID] << 24);
  return 0;
}

static void load_registers(struct x86_lapic *l, const struct kvm_lapic_state *s) {
  for (unsigned reg = 0; reg < APIC_REGS; reg++) l->regs[reg] = page_get(s, reg);
  for (unsigned reg = REG_ISR; reg < REG_IRR + 8; reg++) l->regs[reg] = 0; /* kept elsewhere */
  l->regs[REG_VERSION] = l->regs[REG_PPR] = l->regs[REG_TMCCT] = 0;
  if (lapic_x2(l)) {
    l->regs[REG_ID] = l->c->core.id;
    l->regs[REG_LDR] = x2apic_ldr(l->c->core.id);
  }
}

/* All bits are kept, also those of vectors 0-15, which never have the priority to be delivered. */
static void load_vectors(struct x86_lapic *l, const struct kvm_lapic_state *s) {
  u64 tmr[4];
  lapic_clear_vectors(l);
  vectors_get(s, REG_ISR, l->isr);
  vectors_get(s, REG_IRR, l->irr);
  vectors_get(s, REG_TMR, tmr);
  for (unsigned k = 0; k < 4; k++) atomic_store(&l->tmr[k], tmr[k]);
}

int x86_lapic_set_state(struct x86_vcpu *c, struct kvm_lapic_state *s) {
  struct x86_lapic *l = c->lapic;
  if (!l || (lapic_x2(l) && wide_ids(l) && page_get(s, REG_ID) != c->core.id)) return -EINVAL;
  load_registers(l, s);
  load_vectors(l, s);
  atomic_store(&l->arb_prio, 0);
  l->pv_eoi_pending = false;
  lapic_timer_restore(l, page_get(s, REG_TMCCT));
  lapic_publish(l);
  atomic_fetch_add(&l->chip->route_gen, 1);
  x86_pit_forget_tick(l->chip->vm);
  x86_request_event(c);
  return 0;
}

/* ---- PIC pair and I/O APIC ---- */

int x86_irqchip_get(struct x86_vm *vm, struct kvm_irqchip *s) {
  struct x86_irqchip *chip = vm->irqchip;
  if (!chip || chip->split) return -ENXIO;
  switch (s->chip_id) {
  case KVM_IRQCHIP_PIC_MASTER:
  case KVM_IRQCHIP_PIC_SLAVE:
    x86_pic_get(chip->pic, s->chip_id, &s->chip.pic);
    return 0;
  case KVM_IRQCHIP_IOAPIC:
    x86_ioapic_get(chip->ioapic, &s->chip.ioapic);
    return 0;
  default:
    return -EINVAL;
  }
}

int x86_irqchip_set(struct x86_vm *vm, const struct kvm_irqchip *s) {
  struct x86_irqchip *chip = vm->irqchip;
  if (!chip || chip->split) return -ENXIO;
  x86_pit_forget_tick(vm);
  switch (s->chip_id) {
  case KVM_IRQCHIP_PIC_MASTER:
  case KVM_IRQCHIP_PIC_SLAVE:
    x86_pic_put(chip->pic, s->chip_id, &s->chip.pic);
    return 0;
  case KVM_IRQCHIP_IOAPIC:
    x86_ioapic_put(chip->ioapic, &s->chip.ioapic);
    return 0;
  default:
    return -EINVAL;
  }
}
