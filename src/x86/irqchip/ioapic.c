/* The I/O APIC: 24 redirection entries at fec00000h.
 *
 * Intel 82093AA data sheet (290566-001): IOREGSEL, IOWIN, redirection table, remote IRR.  No EOI register (version 11h).
 *
 * io->lock guards everything but rte[] and vectors[], which are written under it and read without it (EOI of edge-triggered
 * interrupts, PV EOI).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "x86/irqchip/chips.h"

#define IOAPIC_BASE    0xfec00000ull
#define IOAPIC_SIZE    0x100
#define IOAPIC_VERSION 0x11u
#define PINS           KVM_IOAPIC_NUM_PINS

#define RTE_VECTOR     0xffull
#define RTE_LOGICAL    BIT(11)
#define RTE_STATUS     BIT(12)
#define RTE_REMOTE_IRR BIT(14)
#define RTE_LEVEL      BIT(15)
#define RTE_MASKED     BIT(16)
#define RTE_READ_ONLY  (RTE_STATUS | RTE_REMOTE_IRR)

/* After this many interrupts in a row that come back at their EOI, the next one waits (a stuck line must not stop the guest). */
#define STORM_COUNT    10000
#define STORM_DELAY_NS 10000000ull

struct x86_ioapic {
  struct x86_irqchip *chip;
  struct io_device dev;
  pthread_mutex_t lock;
  u64 base;
  u32 regsel, id;
  u32 irr;           /* lines that are high, or edges not delivered because masked */
  u32 irr_delivered; /* edges among them that were delivered */
  u32 sources[PINS];
  u32 eoi_count[PINS];
  _Atomic u64 rte[PINS];
  _Atomic u64 vectors[4]; /* those of rte[] */
  struct evtimer storm;
};

static u64 rte(struct x86_ioapic *io, unsigned pin) {
  return atomic_load_explicit(&io->rte[pin], memory_order_acquire);
}
static void set_rte(struct x86_ioapic *io, unsigned pin, u64 v) {
  atomic_store_explicit(&io->rte[pin], v, memory_order_release);
}

/* ---- delivery ---- */

/* Sends the pin's message unless masked or, for level, not ended yet.  Result as KVM_IRQ_LINE_STATUS. */
static int service(struct x86_ioapic *io, unsigned pin) {
  u64 e = rte(io, pin);
  bool level = e & RTE_LEVEL;
  if ((e & RTE_MASKED) || (level && (e & RTE_REMOTE_IRR))) return -1;
  if (!level) io->irr_delivered |= 1u << pin;
  vm_irq_from_outside(&io->chip->vm->core); /* a level that stays may have a new reason */
  struct apic_msg m = {
      .dest = (u32)(e >> 56), .vector = (u8)e, .mode = e >> 8 & 7, .logical = e & RTE_LOGICAL, .level = level, .assert = true};
  int r = x86_apic_deliver(io->chip->vm, NULL, &m);
  if (r > 0 && level) set_rte(io, pin, e | RTE_REMOTE_IRR);
  return r;
}

/* An edge is delivered once; one that comes while masked is remembered but not sent when unmasked, as KVM. */
static int set_level(struct x86_ioapic *io, unsigned pin, int level) {
  u32 bit = 1u << pin;
  if (!level) {
    io->irr &= ~bit;
    return 1;
  }
  bool was = io->irr & bit;
  io->irr |= bit;
  if (!(rte(io, pin) & RTE_LEVEL)) {
    io->irr_delivered &= ~bit;
    if (was) return 0;
  }
  return service(io, pin);
}

int x86_ioapic_set(struct x86_ioapic *io, unsigned pin, int source, int level) {
  pthread_mutex_lock(&io->lock);
  int r = set_level(io, pin, irq_line_level(&io->sources[pin], source, level));
  pthread_mutex_unlock(&io->lock);
  return r;
}

/* ---- end of interrupt ---- */

bool x86_ioapic_uses(struct x86_ioapic *io, unsigned vector) {
  return atomic_load_explicit(&io->vectors[vector >> 6], memory_order_acquire) >> (vector & 63) & 1;
}

static void collect_vectors(struct x86_ioapic *io) {
  u64 map[4] = {0};
  for (unsigned pin = 0; pin < PINS; pin++) {
    unsigned v = rte(io, pin) & RTE_VECTOR;
    map[v >> 6] |= 1ull << (v & 63);
  }
  for (unsigned k = 0; k < 4; k++) atomic_store_explicit(&io->vectors[k], map[k], memory_order_release);
}

/* A line that is still high interrupts again. */
static void end_level(struct x86_ioapic *io, unsigned pin) {
  u64 e = rte(io, pin) & ~RTE_REMOTE_IRR;
  set_rte(io, pin, e);
  if ((e & RTE_MASKED) || !(io->irr & 1u << pin)) {
    io->eoi_count[pin] = 0;
  } else if (++io->eoi_count[pin] == STORM_COUNT) {
    io->eoi_count[pin] = 0;
    evtimer_arm(&io->storm, clock_now_ns() + STORM_DELAY_NS);
  } else {
    service(io, pin);
  }
}

void x86_ioapic_eoi(struct x86_ioapic *io, unsigned vector, bool level, bool directed) {
  for (unsigned pin = 0; pin < PINS; pin++) {
    if ((rte(io, pin) & RTE_VECTOR) != vector) continue;
    vm_notify_ack(&io->chip->vm->core, KVM_IRQCHIP_IOAPIC, pin); /* may change the line */
    if (!level || directed) continue;
    pthread_mutex_lock(&io->lock);
    u64 e = rte(io, pin);
    if ((e & RTE_LEVEL) && (e & RTE_VECTOR) == vector) end_level(io, pin);
    pthread_mutex_unlock(&io->lock);
  }
}

/* What waited for the end of a storm. */
static void storm_over(struct evtimer *t) {
  struct x86_ioapic *io = container_of(t, struct x86_ioapic, storm);
  pthread_mutex_lock(&io->lock);
  for (unsigned pin = 0; pin < PINS; pin++)
    if ((rte(io, pin) & RTE_LEVEL) && (io->irr & 1u << pin)) service(io, pin);
  pthread_mutex_unlock(&io->lock);
}

/* ---- registers ---- */

static u32 read_window(struct x86_ioapic *io) {
  switch (io->regsel) {
  case 0:
  case 2:
    return (io->id & 0xf) << 24;
  case 1:
    return (PINS - 1) << 16 | IOAPIC_VERSION;
  }
  unsigned pin = (io->regsel - 0x10) >> 1;
  u64 e = io->regsel >= 0x10 && pin < PINS ? rte(io, pin) : ~0ull;
  return (u32)(io->regsel & 1 ? e >> 32 : e);
}

/* Half of an entry.  Status and remote IRR are read-only; edge trigger clears remote IRR, which systems without an EOI register
 * use as one.  True when the pin was unmasked. */
static bool write_rte(struct x86_ioapic *io, unsigned pin, bool high, u32 v) {
  u64 old = rte(io, pin), e;
  if (high)
    e = (old & 0xffffffff) | (u64)v << 32;
  else
    e = (old & ~0xffffffffull) | v;
  e = (e & ~RTE_READ_ONLY) | (old & RTE_READ_ONLY);
  if (!(e & RTE_LEVEL)) e &= ~RTE_REMOTE_IRR;
  set_rte(io, pin, e);
  collect_vectors(io); /* before an interrupt can be delivered with the new vector */
  if ((e & RTE_LEVEL) && (io->irr & 1u << pin)) service(io, pin);
  return (old & RTE_MASKED) && !(e & RTE_MASKED);
}

/* The pin that was unmasked, -1 for none. */
static int write_window(struct x86_ioapic *io, u32 v) {
  if (io->regsel == 0) io->id = v >> 24 & 0xf;
  if (io->regsel < 0x10) return -1;
  unsigned pin = (io->regsel - 0x10) >> 1;
  return pin < PINS && write_rte(io, pin, io->regsel & 1, v) ? (int)pin : -1;
}

static int io_read(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, void *out) {
  struct x86_ioapic *io = container_of(dev, struct x86_ioapic, dev);
  if (addr < io->base || addr >= io->base + IOAPIC_SIZE) return -EOPNOTSUPP;
  pthread_mutex_lock(&io->lock);
  unsigned at = (unsigned)(addr - io->base);
  u32 v = at == 0 ? io->regsel : at == 0x10 ? read_window(io) : 0;
  pthread_mutex_unlock(&io->lock);
  memset(out, 0, len);
  memcpy(out, &v, MIN(len, 4u));
  return 0;
}

static int io_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *in) {
  struct x86_ioapic *io = container_of(dev, struct x86_ioapic, dev);
  if (addr < io->base || addr >= io->base + IOAPIC_SIZE) return -EOPNOTSUPP;
  u32 v = 0;
  int unmasked = -1;
  memcpy(&v, in, MIN(len, 4u));
  pthread_mutex_lock(&io->lock);
  unsigned at = (unsigned)(addr - io->base);
  if (at == 0)
    io->regsel = v & 0xff;
  else if (at == 0x10)
    unmasked = write_window(io, v);
  pthread_mutex_unlock(&io->lock);
  if (unmasked >= 0) x86_pit_pin_unmasked(io->chip->vm, KVM_IRQCHIP_IOAPIC, (unsigned)unmasked);
  return 0;
}

static const struct io_device_ops io_ops = {.read = io_read, .write = io_write};

/* ---- state and life ---- */

/* irr shows what is still to be delivered. */
void x86_ioapic_get(struct x86_ioapic *io, struct kvm_ioapic_state *s) {
  memset(s, 0, sizeof(*s));
  pthread_mutex_lock(&io->lock);
  s->base_address = io->base;
  s->ioregsel = io->regsel;
  s->id = io->id;
  s->irr = io->irr & ~io->irr_delivered;
  for (unsigned pin = 0; pin < PINS; pin++) s->redirtbl[pin].bits = rte(io, pin);
  pthread_mutex_unlock(&io->lock);
}

void x86_ioapic_put(struct x86_ioapic *io, const struct kvm_ioapic_state *s) {
  pthread_mutex_lock(&io->lock);
  io->base = s->base_address;
  io->regsel = s->ioregsel & 0xff;
  io->id = s->id;
  io->irr = io->irr_delivered = 0;
  for (unsigned pin = 0; pin < PINS; pin++) set_rte(io, pin, s->redirtbl[pin].bits);
  collect_vectors(io);
  for (unsigned pin = 0; pin < PINS; pin++)
    if (s->irr & 1u << pin) set_level(io, pin, 1);
  pthread_mutex_unlock(&io->lock);
}

int x86_ioapic_create(struct x86_irqchip *chip) {
  struct x86_ioapic *io = calloc(1, sizeof(*io));
  if (!io) return -ENOMEM;
  io->chip = chip;
  io->dev.ops = &io_ops;
  io->base = IOAPIC_BASE;
  for (unsigned pin = 0; pin < PINS; pin++) set_rte(io, pin, RTE_MASKED);
  pthread_mutex_init(&io->lock, NULL);
  evtimer_init(&io->storm, chip->vm->core.evloop, storm_over);
  int r = io_bus_register(&chip->vm->core, BUS_MMIO, IOAPIC_BASE, IOAPIC_SIZE, &io->dev);
  if (r) {
    pthread_mutex_destroy(&io->lock);
    free(io);
    return r;
  }
  chip->ioapic = io;
  return 0;
}

void x86_ioapic_quiesce(struct x86_ioapic *io) {
  evtimer_cancel(&io->storm, true);
}

void x86_ioapic_destroy(struct x86_irqchip *chip) {
  struct x86_ioapic *io = chip->ioapic;
  if (!io) return;
  x86_ioapic_quiesce(io);
  if (chip->vm->core.bus[BUS_MMIO]) io_bus_unregister(&chip->vm->core, BUS_MMIO, &io->dev);
  pthread_mutex_destroy(&io->lock);
  chip->ioapic = NULL;
  free(io);
}
