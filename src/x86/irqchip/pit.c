/* The 8254 programmable interval timer and port 61h, which gates and shows its channel 2.
 *
 * Intel 8254 data sheet (231164-005): control word, read-back, counter latch, modes 0-5.  Counters are not ticked: what they hold
 * follows from the time since their count was loaded.
 *
 * Channel 0 interrupts through GSI 0 from the service thread.  In reinject mode ticks that the guest has not acknowledged are
 * counted and delivered one after another at each acknowledgement (KVM_REINJECT_CONTROL).
 *
 * pit->lock guards the channels and the tick's schedule; pending, irq_ack and reinject are atomic, as acknowledgements come from
 * anywhere.  mode_lock only serializes KVM_REINJECT_CONTROL: its grace period must not be waited for under pit->lock, which vCPUs
 * take inside RCU read sections.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/rcu.h"
#include "x86/irqchip/chips.h"

#define PIT_HZ     1193182ull
#define NS_PER_SEC 1000000000ull
#define MIN_TICKS  239u /* of a periodic channel 0: 200 us, KVM's min_timer_period_us */
#define COUNT_MAX  0x10000u
#define BCD_MAX    10000u

enum { RW_LSB = 1, RW_MSB, RW_WORD0, RW_WORD1 }; /* access states, as in struct kvm_pit_channel_state */

struct channel {
  struct kvm_pit_channel_state s;
  bool null_count; /* a control word came, the count not yet */
  bool triggered;  /* modes 1 and 5: the gate has risen since */
  u64 stopped_ns;  /* modes 0 and 4 while the gate is low: when it fell */
};

struct x86_pit {
  struct x86_vm *vm;
  struct io_device dev, speaker;
  pthread_mutex_t lock, mode_lock;
  struct channel ch[3];
  u32 flags; /* KVM_PIT_FLAGS_* */
  /* channel 0's tick: end of period `periods` counted from base_ns */
  struct evtimer tick;
  bool running, periodic;
  u64 base_ns, periods;
  u32 ticks;
  _Atomic bool reinject, irq_ack;
  _Atomic int pending;
  struct irq_ack_notifier ack;
};

static u64 mul_div(u64 a, u64 b, u64 c) {
  return (u64)((unsigned __int128)a * b / c);
}
static u64 ns_to_ticks(u64 ns) {
  return mul_div(ns, PIT_HZ, NS_PER_SEC);
}
static u64 ticks_to_ns(u64 ticks) {
  return mul_div(ticks, NS_PER_SEC, PIT_HZ);
}

/* ---- the interrupt ---- */

static void reset_reinject(struct x86_pit *p) {
  atomic_store(&p->pending, 0);
  atomic_store(&p->irq_ack, true);
}

static void inject(struct x86_pit *p) {
  if (atomic_load(&p->reinject) && !atomic_exchange(&p->irq_ack, false)) return;
  vm_set_irq(&p->vm->core, IRQ_SOURCE_PIT, 0, 1, false);
  vm_set_irq(&p->vm->core, IRQ_SOURCE_PIT, 0, 0, false);
  x86_apic_lint0_nmi(p->vm->irqchip);
}

/* The chips between here and the guest were set anew: a tick that was on its way is gone, and nobody will acknowledge it. */
void x86_pit_forget_tick(struct x86_vm *vm) {
  struct x86_pit *p = __atomic_load_n(&vm->pit, __ATOMIC_ACQUIRE);
  if (p) atomic_store(&p->irq_ack, true);
}

/* The guest took a tick: the next of those that wait. */
static void acked(struct irq_ack_notifier *n) {
  struct x86_pit *p = container_of(n, struct x86_pit, ack);
  atomic_store(&p->irq_ack, true);
  int left = atomic_load(&p->pending);
  while (left > 0 && !atomic_compare_exchange_weak(&p->pending, &left, left - 1))
    ;
  if (left > 1) inject(p);
}

static u64 due_ns(const struct x86_pit *p) {
  return p->base_ns + ticks_to_ns(p->periods * p->ticks);
}

static void tick_fired(struct evtimer *t) {
  struct x86_pit *p = container_of(t, struct x86_pit, tick);
  int missed = 0;
  pthread_mutex_lock(&p->lock);
  u64 now = clock_now_ns();
  bool due = p->running && now >= due_ns(p);
  if (due && p->periodic) {
    for (p->periods++; due_ns(p) <= now && missed < 100000; p->periods++) missed++;
  } else if (due) {
    p->running = false;
  }
  if (p->running) evtimer_arm(&p->tick, due_ns(p));
  pthread_mutex_unlock(&p->lock);
  if (!due) return;
  if (atomic_load(&p->reinject)) atomic_fetch_add(&p->pending, 1 + missed);
  inject(p);
}

static void start_tick(struct x86_pit *p, u32 count, bool periodic) {
  const struct x86_irqchip *chip = p->vm->irqchip;
  if (!chip || chip->split || (p->flags & KVM_PIT_FLAGS_HPET_LEGACY)) return;
  p->ticks = periodic ? MAX(count, MIN_TICKS) : count;
  p->periodic = periodic;
  p->periods = 1;
  p->base_ns = clock_now_ns();
  p->running = true;
  reset_reinject(p);
  evtimer_arm(&p->tick, due_ns(p));
}

static void stop_tick(struct x86_pit *p) {
  p->running = false;
  evtimer_cancel(&p->tick, false);
}

void x86_pit_pin_unmasked(struct x86_vm *vm, unsigned irqchip, unsigned pin) {
  struct x86_pit *p = __atomic_load_n(&vm->pit, __ATOMIC_ACQUIRE);
  if (p && atomic_load(&p->reinject) && vm_has_ack_notifier(&vm->core, irqchip, pin)) reset_reinject(p);
}

/* ---- what a counter holds ---- */

static u32 modulus(const struct channel *c) {
  return c->s.bcd ? BCD_MAX : COUNT_MAX;
}
static bool counts_down_once(const struct channel *c) {
  return c->s.mode == 0 || c->s.mode == 4;
}
static bool waits_for_trigger(const struct channel *c) {
  return c->s.mode == 1 || c->s.mode == 5;
}

static u64 elapsed_ticks(const struct x86_pit *p, const struct channel *c) {
  u64 now = c->stopped_ns ? c->stopped_ns : clock_now_ns(), from = (u64)c->s.count_load_time;
  if (c == &p->ch[0] && p->running) from = due_ns(p) - ticks_to_ns(p->ticks);
  return now > from ? ns_to_ticks(now - from) : 0;
}

/* Square wave: counts by two, an odd count starts one lower and has one more clock in its first half (data sheet, "Mode 3"). */
static u32 square_count(u32 n, u32 at) {
  u32 first = (n + 1) / 2, even = n & ~1u;
  return at < first ? even - MIN(2 * at, even) : even - 2 * (at - first);
}

static u32 current_count(const struct x86_pit *p, const struct channel *c) {
  u32 n = c->s.count, m = modulus(c), v;
  u64 d = elapsed_ticks(p, c);
  if (c->s.mode == 2)
    v = n - (u32)(d % n);
  else if (c->s.mode == 3)
    v = square_count(n, (u32)(d % n));
  else if (waits_for_trigger(c) && !c->triggered)
    v = n;
  else
    v = (u32)((n + m - d % m) % m);
  v %= m;
  return c->s.bcd ? v / 1000 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10 : v;
}

static bool output(const struct x86_pit *p, const struct channel *c) {
  u32 n = c->s.count;
  if (c->null_count) return c->s.mode != 0;
  u64 d = elapsed_ticks(p, c);
  switch (c->s.mode) {
  case 0:
    return d >= n;
  case 1:
    return !c->triggered || d >= n;
  case 2:
    return !c->s.gate || d % n != n - 1;
  case 3:
    return !c->s.gate || d % n < (n + 1) / 2;
  case 4:
    return d != n;
  case 5:
    return !c->triggered || d != n;
  default:
    return true; /* not programmed yet */
  }
}

static u32 from_bcd(u32 v) {
  return (v >> 12 & 15) * 1000 + (v >> 8 & 15) * 100 + (v >> 4 & 15) * 10 + (v & 15);
}

/* Starts counting from v as the counter holds it: 1 to 10000h. */
static void start_count(struct x86_pit *p, unsigned n, u32 v) {
  struct channel *c = &p->ch[n];
  c->s.count = v && v <= COUNT_MAX ? v : modulus(c);
  c->s.count_load_time = (s64)clock_now_ns();
  c->null_count = false;
  c->triggered = false;
  c->stopped_ns = counts_down_once(c) && !c->s.gate ? (u64)c->s.count_load_time : 0;
  if (n) return;
  if (c->s.mode <= 1 || c->s.mode == 4)
    start_tick(p, c->s.count, false);
  else if (c->s.mode <= 3)
    start_tick(p, c->s.count, true);
  else
    stop_tick(p);
}

static void set_gate(struct channel *c, bool gate) {
  u64 now = clock_now_ns();
  if (c->s.gate == gate) return;
  if (counts_down_once(c)) {
    if (gate && c->stopped_ns) c->s.count_load_time += (s64)(now - c->stopped_ns);
    c->stopped_ns = gate ? 0 : now;
  } else if (gate) {
    c->s.count_load_time = (s64)now;
    c->triggered = true;
  }
  c->s.gate = gate;
}

/* ---- ports 40h-43h ---- */

static void latch_count(struct x86_pit *p, struct channel *c) {
  if (c->s.count_latched) return;
  c->s.latched_count = (u16)current_count(p, c);
  c->s.count_latched = c->s.rw_mode;
}

static void latch_status(struct x86_pit *p, struct channel *c) {
  if (c->s.status_latched) return;
  c->s.status = (u8)(output(p, c) << 7 | c->null_count << 6 | c->s.rw_mode << 4 | (c->s.mode & 7) << 1 | c->s.bcd);
  c->s.status_latched = 1;
}

static void read_back(struct x86_pit *p, u8 v) {
  for (unsigned n = 0; n < 3; n++) {
    if (!(v & 2u << n)) continue;
    if (!(v & 0x20)) latch_count(p, &p->ch[n]);
    if (!(v & 0x10)) latch_status(p, &p->ch[n]);
  }
}

/* A control word stops the counter until it gets its count. */
static void control(struct x86_pit *p, u8 v) {
  unsigned n = v >> 6, access = v >> 4 & 3;
  if (n == 3) {
    read_back(p, v);
    return;
  }
  struct channel *c = &p->ch[n];
  if (!access) {
    latch_count(p, c);
    return;
  }
  c->s.rw_mode = c->s.read_state = c->s.write_state = (u8)access;
  c->s.mode = v >> 1 & 7;
  if (c->s.mode > 5) c->s.mode -= 4; /* 6 and 7 are 2 and 3 */
  c->s.bcd = v & 1;
  c->s.count_latched = 0;
  c->null_count = true;
  c->triggered = false;
  c->stopped_ns = 0;
  if (!n) stop_tick(p);
}

static void load(struct x86_pit *p, unsigned n, u32 v) {
  start_count(p, n, p->ch[n].s.bcd ? from_bcd(v) : v);
}

static void write_count(struct x86_pit *p, unsigned n, u8 v) {
  struct channel *c = &p->ch[n];
  switch (c->s.write_state) {
  case RW_MSB:
    load(p, n, (u32)v << 8);
    break;
  case RW_WORD0:
    c->s.write_latch = v;
    c->s.write_state = RW_WORD1;
    break;
  case RW_WORD1:
    c->s.write_state = RW_WORD0;
    load(p, n, c->s.write_latch | (u32)v << 8);
    break;
  default:
    load(p, n, v);
  }
}

static u8 read_latched(struct channel *c) {
  u8 state = c->s.count_latched;
  c->s.count_latched = state == RW_WORD0 ? RW_MSB : 0;
  return (u8)(state == RW_MSB ? c->s.latched_count >> 8 : c->s.latched_count);
}

static u8 read_count(struct x86_pit *p, unsigned n) {
  struct channel *c = &p->ch[n];
  if (c->s.status_latched) {
    c->s.status_latched = 0;
    return c->s.status;
  }
  if (c->s.count_latched) return read_latched(c);
  u32 v = current_count(p, c);
  u8 state = c->s.read_state;
  if (state >= RW_WORD0) c->s.read_state = state == RW_WORD0 ? RW_WORD1 : RW_WORD0;
  return (u8)(state == RW_MSB || state == RW_WORD1 ? v >> 8 : v);
}

static int port_read(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, void *out) {
  struct x86_pit *p = container_of(dev, struct x86_pit, dev);
  memset(out, 0, len);
  if ((addr & 3) == 3) return 0; /* the control word cannot be read */
  pthread_mutex_lock(&p->lock);
  *(u8 *)out = read_count(p, addr & 3);
  pthread_mutex_unlock(&p->lock);
  return 0;
}

static int port_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *in) {
  struct x86_pit *p = container_of(dev, struct x86_pit, dev);
  u8 v = *(const u8 *)in;
  pthread_mutex_lock(&p->lock);
  if ((addr & 3) == 3)
    control(p, v);
  else
    write_count(p, addr & 3, v);
  pthread_mutex_unlock(&p->lock);
  return 0;
}

/* ---- port 61h: bit 0 gate of channel 2, 1 speaker data, 4 refresh toggle (about 15 us), 5 output of channel 2 ---- */

static int speaker_read(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, void *out) {
  struct x86_pit *p = container_of(dev, struct x86_pit, speaker);
  if (addr != 0x61) return -EOPNOTSUPP;
  memset(out, 0, len);
  pthread_mutex_lock(&p->lock);
  bool data = p->flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON, refresh = clock_now_ns() >> 14 & 1;
  *(u8 *)out = (u8)(output(p, &p->ch[2]) << 5 | refresh << 4 | data << 1 | p->ch[2].s.gate);
  pthread_mutex_unlock(&p->lock);
  return 0;
}

static int speaker_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *in) {
  struct x86_pit *p = container_of(dev, struct x86_pit, speaker);
  u8 v = *(const u8 *)in;
  if (addr != 0x61) return -EOPNOTSUPP;
  pthread_mutex_lock(&p->lock);
  p->flags = (p->flags & ~(u32)KVM_PIT_FLAGS_SPEAKER_DATA_ON) | (v & 2 ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0);
  set_gate(&p->ch[2], v & 1);
  pthread_mutex_unlock(&p->lock);
  return 0;
}

static const struct io_device_ops port_ops = {.read = port_read, .write = port_write};
static const struct io_device_ops speaker_ops = {.read = speaker_read, .write = speaker_write};

/* ---- state ---- */

int x86_pit_get(struct x86_vm *vm, struct kvm_pit_state2 *s) {
  struct x86_pit *p = vm->pit;
  if (!p) return -ENXIO;
  memset(s, 0, sizeof(*s));
  pthread_mutex_lock(&p->lock);
  for (unsigned n = 0; n < 3; n++) s->channels[n] = p->ch[n].s;
  s->flags = p->flags;
  pthread_mutex_unlock(&p->lock);
  return 0;
}

/* Counting starts anew.  A client that takes over the legacy timer interrupt (HPET) stops channel 0. */
int x86_pit_set(struct x86_vm *vm, const struct kvm_pit_state2 *s) {
  struct x86_pit *p = vm->pit;
  if (!p) return -ENXIO;
  pthread_mutex_lock(&p->lock);
  p->flags = s->flags;
  if (p->flags & KVM_PIT_FLAGS_HPET_LEGACY) stop_tick(p);
  for (unsigned n = 0; n < 3; n++) {
    p->ch[n].s = s->channels[n];
    p->ch[n].s.gate = s->channels[n].gate != 0;
    p->ch[n].s.bcd = s->channels[n].bcd != 0;
    start_count(p, n, s->channels[n].count);
  }
  pthread_mutex_unlock(&p->lock);
  return 0;
}

int x86_pit_reinject(struct x86_vm *vm, bool on) {
  struct x86_pit *p = vm->pit;
  if (!p) return -ENXIO;
  pthread_mutex_lock(&p->mode_lock);
  if (atomic_load(&p->reinject) != on) {
    if (on) {
      reset_reinject(p);
      vm_register_ack_notifier(&vm->core, &p->ack);
    } else {
      vm_unregister_ack_notifier(&vm->core, &p->ack);
    }
    atomic_store(&p->reinject, on);
  }
  pthread_mutex_unlock(&p->mode_lock);
  return 0;
}

/* ---- life ---- */

static void reset(struct x86_pit *p) {
  for (unsigned n = 0; n < 3; n++) {
    p->ch[n].s.mode = 0xff; /* not programmed */
    p->ch[n].s.gate = n != 2;
    start_count(p, n, 0);
  }
}

int x86_pit_create(struct x86_vm *vm, const struct kvm_pit_config *cfg) {
  if (vm->pit) return -EEXIST;
  struct x86_pit *p = calloc(1, sizeof(*p));
  if (!p) return -ENOMEM;
  p->vm = vm;
  p->dev.ops = &port_ops;
  p->speaker.ops = &speaker_ops;
  p->ack = (struct irq_ack_notifier){.gsi = 0, .acked = acked};
  pthread_mutex_init(&p->lock, NULL);
  pthread_mutex_init(&p->mode_lock, NULL);
  evtimer_init(&p->tick, vm->core.evloop, tick_fired);
  reset(p);
  __atomic_store_n(&vm->pit, p, __ATOMIC_RELEASE);
  x86_pit_reinject(vm, true);
  int r = io_bus_register(&vm->core, BUS_PIO, 0x40, 4, &p->dev);
  if (!r && (cfg->flags & KVM_PIT_SPEAKER_DUMMY)) r = io_bus_register(&vm->core, BUS_PIO, 0x61, 4, &p->speaker);
  if (r) x86_pit_destroy(vm);
  return r;
}

/* No tick comes any more. */
void x86_pit_quiesce(struct x86_vm *vm) {
  struct x86_pit *p = vm->pit;
  if (!p) return;
  pthread_mutex_lock(&p->lock);
  p->running = false;
  pthread_mutex_unlock(&p->lock);
  evtimer_cancel(&p->tick, true);
}

/* The buses are gone already when the VM ends. */
void x86_pit_destroy(struct x86_vm *vm) {
  struct x86_pit *p = vm->pit;
  if (!p) return;
  if (vm->core.bus[BUS_PIO]) {
    io_bus_unregister(&vm->core, BUS_PIO, &p->dev);
    io_bus_unregister(&vm->core, BUS_PIO, &p->speaker);
  }
  x86_pit_quiesce(vm);
  x86_pit_reinject(vm, false);
  vm->pit = NULL;
  pthread_mutex_destroy(&p->lock);
  pthread_mutex_destroy(&p->mode_lock);
  free(p);
}
