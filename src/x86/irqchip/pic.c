/* The pair of 8259A interrupt controllers with the edge/level control registers of a PIIX.
 *
 * Intel 8259A data sheet (231468-003): initialization words, operation words, priorities, special modes.  82371SB (PIIX3) for
 * ports 4d0h and 4d1h.
 *
 * pic->lock guards everything but `output`, which vCPUs read without it.  Acknowledgements and wake-ups are collected under the
 * lock and told to others after it (struct told).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "x86/irqchip/chips.h"

enum { MASTER, SLAVE };
enum { READY, WANT_ICW2, WANT_ICW3, WANT_ICW4 }; /* kvm_pic_state.init_state */

struct x86_pic {
  struct x86_irqchip *chip;
  struct io_device dev;
  pthread_mutex_t lock;
  struct kvm_pic_state state[2];
  u32 sources[16];
  _Atomic bool output;
  bool registered;
  /* Consequences that wait for the lock to be released. */
  bool wake;
  u16 acked, unmasked;
};

#define PIC_BIT(irq) ((u8)(1u << (irq)))

static void lock(struct x86_pic *p) {
  pthread_mutex_lock(&p->lock);
}

static unsigned chip_of(unsigned pin) {
  return pin < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
}

static void unlock(struct x86_pic *p) {
  bool wake = p->wake;
  u16 acked = p->acked, unmasked = p->unmasked;
  p->wake = false;
  p->acked = p->unmasked = 0;
  pthread_mutex_unlock(&p->lock);
  if (wake) x86_apic_extint(p->chip);
  for (unsigned pin = 0; acked >> pin; pin++)
    if (acked >> pin & 1) vm_notify_ack(&p->chip->vm->core, chip_of(pin), pin);
  for (unsigned pin = 0; unmasked >> pin; pin++)
    if (unmasked >> pin & 1) x86_pit_pin_unmasked(p->chip->vm, chip_of(pin), pin);
}

/* ---- one controller ---- */

/* The number of the highest-priority bit, counted from the highest priority; 8 for none. */
static unsigned priority_of(const struct kvm_pic_state *s, u8 bits) {
  unsigned n = 0;
  if (!bits) return 8;
  while (!(bits & PIC_BIT((n + s->priority_add) & 7))) n++;
  return n;
}

/* The request to be taken now, -1 for none.  In special mask mode masked levels in service inhibit nothing; in special fully
 * nested mode the master takes requests of the slave while one is in service (data sheet, "Special mask mode", "Special fully
 * nested mode"). */
static int request(const struct x86_pic *p, unsigned which) {
  const struct kvm_pic_state *s = &p->state[which];
  unsigned wanted = priority_of(s, s->irr & (u8)~s->imr);
  u8 busy = s->isr;
  if (s->special_mask) busy &= (u8)~s->imr;
  if (s->special_fully_nested_mode && which == MASTER) busy &= (u8)~PIC_BIT(2);
  return wanted < priority_of(s, busy) ? (int)((wanted + s->priority_add) & 7) : -1;
}

/* 1 taken, 0 coalesced with one that waits, -1 masked. */
static int set_pin(struct kvm_pic_state *s, unsigned irq, int level) {
  u8 bit = PIC_BIT(irq);
  bool fresh = true;
  if (level) {
    bool edge = !(s->elcr & bit);
    if (!edge || !(s->last_irr & bit)) {
      fresh = !(s->irr & bit);
      s->irr |= bit;
    }
    s->last_irr |= bit;
  } else {
    if (s->elcr & bit) s->irr &= (u8)~bit;
    s->last_irr &= (u8)~bit;
  }
  return s->imr & bit ? -1 : fresh;
}

static void update(struct x86_pic *p) {
  if (request(p, SLAVE) >= 0) { /* the slave's output is an edge on the master's pin 2 */
    set_pin(&p->state[MASTER], 2, 1);
    set_pin(&p->state[MASTER], 2, 0);
  }
  bool now = request(p, MASTER) >= 0;
  if (now && !atomic_load_explicit(&p->output, memory_order_relaxed)) p->wake = true;
  atomic_store_explicit(&p->output, now, memory_order_release);
}

static void end(struct x86_pic *p, unsigned which, unsigned irq) {
  p->state[which].isr &= (u8)~PIC_BIT(irq);
  p->acked |= (u16)(1u << (which * 8 + irq));
}

static void acknowledge(struct x86_pic *p, unsigned which, unsigned irq) {
  struct kvm_pic_state *s = &p->state[which];
  s->isr |= PIC_BIT(irq);
  if (!(s->elcr & PIC_BIT(irq))) s->irr &= (u8)~PIC_BIT(irq);
  if (!s->auto_eoi) return;
  if (s->rotate_on_auto_eoi) s->priority_add = (irq + 1) & 7;
  end(p, which, irq);
}

/* ---- lines and the processor's side ---- */

int x86_pic_set(struct x86_pic *p, unsigned pin, int source, int level) {
  lock(p);
  int r = set_pin(&p->state[pin >> 3], pin & 7, irq_line_level(&p->sources[pin], source, level));
  update(p);
  unlock(p);
  return r;
}

bool x86_pic_output(struct x86_pic *p) {
  return atomic_load_explicit(&p->output, memory_order_acquire);
}

/* INTA: when the request is gone, level 7 answers in its place (data sheet, "Interrupt sequence"). */
int x86_pic_ack(struct x86_pic *p) {
  lock(p);
  int irq = request(p, MASTER), vector;
  atomic_store_explicit(&p->output, false, memory_order_relaxed);
  if (irq >= 0) acknowledge(p, MASTER, (unsigned)irq);
  if (irq == 2) {
    int irq2 = request(p, SLAVE);
    if (irq2 >= 0) acknowledge(p, SLAVE, (unsigned)irq2);
    vector = p->state[SLAVE].irq_base + (irq2 >= 0 ? irq2 : 7);
  } else {
    vector = p->state[MASTER].irq_base + (irq >= 0 ? irq : 7);
  }
  update(p);
  unlock(p);
  return vector;
}

/* ---- ports ---- */

/* Edges that were remembered are forgotten; whoever waits for their end is told so. */
static void icw1(struct x86_pic *p, unsigned which, u8 v) {
  struct kvm_pic_state *s = &p->state[which];
  u8 lost = s->irr & (u8)~s->elcr;
  s->init4 = v & 1;
  s->last_irr = 0;
  s->irr &= s->elcr;
  s->imr = s->priority_add = s->special_mask = s->read_reg_select = 0;
  if (!s->init4) s->special_fully_nested_mode = s->auto_eoi = 0;
  s->init_state = WANT_ICW2;
  for (unsigned irq = 0; irq < 8; irq++)
    if (lost & PIC_BIT(irq)) end(p, which, irq);
  update(p);
}

static void ocw3(struct x86_pic *p, unsigned which, u8 v) {
  struct kvm_pic_state *s = &p->state[which];
  if (v & 0x04) s->poll = 1;
  if (v & 0x02) s->read_reg_select = v & 1;
  if (v & 0x40) {
    s->special_mask = v >> 5 & 1;
    update(p);
  }
}

/* OCW2: bits 7:5 are rotate, specific, end of interrupt. */
static void ocw2(struct x86_pic *p, unsigned which, u8 v) {
  struct kvm_pic_state *s = &p->state[which];
  bool rotate = v & 0x80, specific = v & 0x40, eoi = v & 0x20;
  if (!eoi && !specific) {
    s->rotate_on_auto_eoi = rotate;
    return;
  }
  unsigned irq = v & 7;
  if (!specific) {
    unsigned n = priority_of(s, s->isr);
    if (n == 8) return;
    irq = (n + s->priority_add) & 7;
  }
  if (rotate) s->priority_add = (irq + 1) & 7;
  if (eoi) end(p, which, irq);
  if (eoi || rotate) update(p);
}

static void command(struct x86_pic *p, unsigned which, u8 v) {
  if (v & 0x10)
    icw1(p, which, v);
  else if (v & 0x08)
    ocw3(p, which, v);
  else
    ocw2(p, which, v);
}

static void data(struct x86_pic *p, unsigned which, u8 v) {
  struct kvm_pic_state *s = &p->state[which];
  switch (s->init_state) {
  case READY:
    p->unmasked |= (u16)((s->imr & (u8)~v) << which * 8);
    s->imr = v;
    update(p);
    break;
  case WANT_ICW2:
    s->irq_base = v & 0xf8;
    s->init_state = WANT_ICW3;
    break;
  case WANT_ICW3:
    s->init_state = s->init4 ? WANT_ICW4 : READY;
    break;
  default:
    s->special_fully_nested_mode = v >> 4 & 1;
    s->auto_eoi = v >> 1 & 1;
    s->init_state = READY;
  }
}

/* A poll is an acknowledge whose answer is read from the port: bit 7 says that there was a request (data sheet, "Poll command").
 */
static u8 poll(struct x86_pic *p, unsigned which) {
  int irq = request(p, which);
  p->state[which].poll = 0;
  if (irq >= 0) acknowledge(p, which, (unsigned)irq);
  update(p);
  return irq >= 0 ? (u8)(0x80 | irq) : 7;
}

static u8 read_port(struct x86_pic *p, unsigned which, unsigned a0) {
  const struct kvm_pic_state *s = &p->state[which];
  if (s->poll) return poll(p, which);
  if (a0) return s->imr;
  return s->read_reg_select ? s->isr : s->irr;
}

static u8 read_elcr(struct x86_pic *p, unsigned which, unsigned a0) {
  return p->state[which].elcr;
}

static void write_elcr(struct x86_pic *p, unsigned which, u8 v) {
  p->state[which].elcr = v & p->state[which].elcr_mask;
}

static const struct port_row {
  u16 port;
  u8 which, a0;
  u8 (*read)(struct x86_pic *p, unsigned which, unsigned a0);
  void (*write)(struct x86_pic *p, unsigned which, u8 v);
} port_rows[] = {
    {0x20, MASTER, 0, read_port, command}, {0x21, MASTER, 1, read_port, data},        {0xa0, SLAVE, 0, read_port, command},
    {0xa1, SLAVE, 1, read_port, data},     {0x4d0, MASTER, 0, read_elcr, write_elcr}, {0x4d1, SLAVE, 0, read_elcr, write_elcr},
};

static const struct port_row *find_port(u64 addr) {
  for (unsigned k = 0; k < ARRAY_SIZE(port_rows); k++)
    if (port_rows[k].port == addr) return &port_rows[k];
  return NULL;
}

/* Only byte accesses mean something. */
static int io_read(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, void *out) {
  struct x86_pic *p = container_of(dev, struct x86_pic, dev);
  const struct port_row *row = find_port(addr);
  if (!row) return -EOPNOTSUPP;
  memset(out, 0, len);
  if (len != 1) return 0;
  lock(p);
  *(u8 *)out = row->read(p, row->which, row->a0);
  unlock(p);
  return 0;
}

static int io_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *in) {
  struct x86_pic *p = container_of(dev, struct x86_pic, dev);
  const struct port_row *row = find_port(addr);
  if (!row) return -EOPNOTSUPP;
  if (len != 1) return 0;
  lock(p);
  row->write(p, row->which, *(const u8 *)in);
  unlock(p);
  return 0;
}

static const struct io_device_ops io_ops = {.read = io_read, .write = io_write};

/* ---- state and life ---- */

void x86_pic_get(struct x86_pic *p, unsigned which, struct kvm_pic_state *s) {
  lock(p);
  *s = p->state[which];
  unlock(p);
}

/* Values that no register can hold must not become shift counts or states. */
void x86_pic_put(struct x86_pic *p, unsigned which, const struct kvm_pic_state *s) {
  lock(p);
  p->state[which] = *s;
  p->state[which].priority_add &= 7;
  p->state[which].init_state &= 3;
  update(p);
  unlock(p);
}

int x86_pic_create(struct x86_irqchip *chip) {
  struct x86_pic *p = calloc(1, sizeof(*p));
  if (!p) return -ENOMEM;
  p->chip = chip;
  p->dev.ops = &io_ops;
  p->state[MASTER].elcr_mask = 0xf8;
  p->state[SLAVE].elcr_mask = 0xde;
  pthread_mutex_init(&p->lock, NULL);
  chip->pic = p;
  static const u16 first[] = {0x20, 0xa0, 0x4d0};
  int r = 0;
  for (unsigned k = 0; !r && k < ARRAY_SIZE(first); k++) {
    r = io_bus_register(&chip->vm->core, BUS_PIO, first[k], 2, &p->dev);
    if (!r) p->registered = true;
  }
  if (r) x86_pic_destroy(chip);
  return r;
}

/* The buses are gone already when the VM ends. */
void x86_pic_destroy(struct x86_irqchip *chip) {
  struct x86_pic *p = chip->pic;
  if (!p) return;
  if (p->registered && chip->vm->core.bus[BUS_PIO]) io_bus_unregister(&chip->vm->core, BUS_PIO, &p->dev);
  pthread_mutex_destroy(&p->lock);
  chip->pic = NULL;
  free(p);
}
