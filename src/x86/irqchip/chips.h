/* What the interrupt controllers of a VM are made of: PIC pair, I/O APIC, PIT, and the messages they send to local APICs.
 *
 * Lock order: vm->lock, then one of pit->lock, pic->lock, ioapic->lock, irqchip->map_lock; none of the last four is taken while
 * another of them is held.  Delivery to a local APIC takes no lock and may be done under any of them.  Notifications of core
 * (vm_notify_ack) and vm_set_irq are called with none of them held.
 */
#ifndef X86_IRQCHIP_CHIPS_H
#define X86_IRQCHIP_CHIPS_H

#include <pthread.h>
#include "base/evloop.h"
#include "core/iobus.h"
#include "core/route.h"
#include "x86/x86.h"

#define APIC_MAX_VCPUS 1024
#define APIC_MAX_ID    4096 /* one more than the highest local APIC ID */

#define APIC_BROADCAST   0xffu
#define X2APIC_BROADCAST 0xffffffffu

/* Delivery modes of ICR, LVT, MSI and redirection entries (SDM Vol. 3A 10.6.1, 10.11.2). */
enum apic_mode { APIC_FIXED, APIC_LOWEST, APIC_SMI, APIC_REMOTE_READ, APIC_NMI, APIC_INIT, APIC_STARTUP, APIC_EXTINT };
enum apic_shorthand { APIC_TO_DEST, APIC_TO_SELF, APIC_TO_ALL, APIC_TO_OTHERS };

/* An interrupt message on its way to local APICs. */
struct apic_msg {
  u32 dest;
  u8 vector, mode, shorthand;
  bool logical;       /* destination mode */
  bool level;         /* trigger mode */
  bool assert;        /* level, as the ICR names it */
  bool redirect_hint; /* an MSI that asks for the lowest-priority CPU */
};

/* Legend: (o) set once at creation  [m] map_lock */
struct x86_irqchip {
  struct x86_vm *vm;         /* (o) */
  bool split;                /* (o) local APICs only; PIC, I/O APIC and PIT are the client's */
  unsigned split_pins;       /* (o) GSIs that are the client's I/O APIC pins */
  struct x86_pic *pic;       /* (o) NULL when split */
  struct x86_ioapic *ioapic; /* (o) NULL when split */
  _Atomic u32 route_gen;     /* grows when EOI maps of a split irqchip are stale */
  pthread_mutex_t map_lock;
  _Atomic unsigned n_lapics;                        /* entries of lapics[], published after them */
  struct x86_lapic *_Atomic lapics[APIC_MAX_VCPUS]; /* by vCPU index */
  _Atomic u32 modes;                           /* IDENT_X2, IDENT_FLAT, IDENT_CLUSTER: logical modes in use; written under [m] */
  struct x86_lapic *_Atomic phys[APIC_MAX_ID]; /* by APIC ID; written under [m] */
  struct x86_lapic *scratch[APIC_MAX_ID];      /* [m] */
};

/* ---- ipi.c ---- */
/* Sends a message from src (NULL: not a local APIC).  Any thread.  Number of APICs that took it; -1 when it named none. */
int x86_apic_deliver(struct x86_vm *vm, struct x86_lapic *src, const struct apic_msg *m);
/* A PIT tick on the LINT0 pins that are set to NMI (the watchdog wiring of MP systems). */
void x86_apic_lint0_nmi(struct x86_irqchip *chip);
/* Makes the first vCPU that listens to the PIC look at it. */
void x86_apic_extint(struct x86_irqchip *chip);

/* ---- msi.c ---- */
struct apic_msg x86_msi_decode(const struct x86_vm *vm, u64 address, u32 data);
/* KVM_INTERRUPT with a split irqchip: -ENXIO with any other, -EEXIST while one waits. */
int x86_lapic_external(struct x86_vcpu *c, u8 vector);

/* ---- pic.c ---- */
int x86_pic_create(struct x86_irqchip *chip);
void x86_pic_destroy(struct x86_irqchip *chip);
int x86_pic_set(struct x86_pic *p, unsigned pin, int source, int level);
bool x86_pic_output(struct x86_pic *p);
int x86_pic_ack(struct x86_pic *p); /* the vector; a spurious one when nothing is pending any more */
void x86_pic_get(struct x86_pic *p, unsigned which, struct kvm_pic_state *s);
void x86_pic_put(struct x86_pic *p, unsigned which, const struct kvm_pic_state *s);

/* ---- ioapic.c ---- */
int x86_ioapic_create(struct x86_irqchip *chip);
void x86_ioapic_destroy(struct x86_irqchip *chip);
void x86_ioapic_quiesce(struct x86_ioapic *io); /* no timer of it runs afterwards */
int x86_ioapic_set(struct x86_ioapic *io, unsigned pin, int source, int level);
/* Whether some redirection entry uses the vector.  Any thread, no lock. */
bool x86_ioapic_uses(struct x86_ioapic *io, unsigned vector);
/* EOI of a vector by a local APIC; level: it was taken as level-triggered; directed: broadcasts are suppressed (SDM 10.8.5). */
void x86_ioapic_eoi(struct x86_ioapic *io, unsigned vector, bool level, bool directed);
void x86_ioapic_get(struct x86_ioapic *io, struct kvm_ioapic_state *s);
void x86_ioapic_put(struct x86_ioapic *io, const struct kvm_ioapic_state *s);

/* ---- pit.c ---- */
/* A pin of a chip was unmasked: lost ticks of the time it was masked are not made up for. */
void x86_pit_pin_unmasked(struct x86_vm *vm, unsigned irqchip, unsigned pin);
void x86_pit_quiesce(struct x86_vm *vm);
void x86_pit_forget_tick(struct x86_vm *vm);

/* Lines of a pin: high while any source holds it high. */
static inline int irq_line_level(u32 *sources, int source, int level) {
  if (level)
    *sources |= 1u << source;
  else
    *sources &= ~(1u << source);
  return *sources != 0;
}

#define IRQ_SOURCE_PIT 3

#endif
