/* The local APIC timer: one-shot, periodic and TSC-deadline (SDM Vol. 3A 10.5.4), on the VM's service thread.
 *
 * The owner says when the timer is due (set_target); the service thread's timer then marks it fired and requests, and the owner
 * delivers the interrupt when it looks (lapic_timer_expire).  A deadline that moves later does not touch the service thread: it
 * wakes at the earlier time and finds out.  A fired mark that a new setting overtook is recognized by the owner and dropped.
 *
 * Lock order: timer->lock is innermost except for the service loop's own.
 */
#include "base/lead.h"
#include "x86/irqchip/lapic.h"

#define MIN_PERIOD_NS 200000ull /* shorter periods would starve the host, as KVM's min_timer_period_us */
#define SPIN_CYCLES   6000ull   /* a deadline this near is waited for */
#define RETRY_NS      1000000ull

/* With lock held: makes ev fire no later than target_ns. */
static void arm_locked(struct lapic_timer *t) {
  if (!t->target_ns || (t->wake_ns && t->wake_ns <= t->target_ns)) return;
  t->wake_ns = t->target_ns;
  evtimer_arm(&t->ev, t->wake_ns);
}

/* On the service thread. */
static void woken(struct evtimer *ev) {
  struct lapic_timer *t = container_of(ev, struct lapic_timer, ev);
  struct x86_lapic *l = container_of(t, struct x86_lapic, timer);
  pthread_mutex_lock(&t->lock);
  t->wake_ns = 0;
  u64 now = clock_now_ns();
  bool due = t->target_ns && now >= t->target_ns;
  if (t->target_ns && t->target_ns <= now + LEAD_MAX_NS) vcpu_wake_near(&l->c->core, t->target_ns);
  if (due)
    t->target_ns = 0;
  else
    arm_locked(t);
  pthread_mutex_unlock(&t->lock);
  if (!due) return;
  atomic_store_explicit(&t->fired, true, memory_order_release);
  lapic_posted(l);
}

/* To set the service thread's timer anew is a system call: not for one that is far off when sleeps are short, which something else will end. */
void lapic_timer_sleeps(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  const struct vcpu *v = &l->c->core;
  u64 lead = v->wake_lead_ns, far = clock_now_ns() + lead + 8 * v->slept_ns;
  if (!lead) return;
  pthread_mutex_lock(&t->lock);
  u64 early = t->target_ns > lead && t->target_ns < far ? t->target_ns - lead : 0;
  if (early && t->wake_ns > early) {
    t->wake_ns = early;
    evtimer_arm(&t->ev, early);
  }
  pthread_mutex_unlock(&t->lock);
}

/* When the timer is due next; 0: not at all. */
static void set_target(struct lapic_timer *t, u64 ns) {
  pthread_mutex_lock(&t->lock);
  t->target_ns = ns;
  atomic_store_explicit(&t->fired, false, memory_order_relaxed);
  arm_locked(t);
  pthread_mutex_unlock(&t->lock);
}

static u64 count_to_ns(const struct lapic_timer *t, u32 count) {
  return (u64)count * t->divide;
}

static void set_period(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  t->period_ns = count_to_ns(t, l->regs[REG_TMICT]);
  if (t->mode == LVT_PERIODIC && t->period_ns && t->period_ns < MIN_PERIOD_NS) t->period_ns = MIN_PERIOD_NS;
}

/* Divide configuration: bits 0, 1 and 3 (SDM Vol. 3A figure 10-10). */
static void set_divide(struct x86_lapic *l) {
  u32 v = l->regs[REG_TDCR];
  l->timer.divide = 1u << ((((v & 3) | (v & 8) >> 1) + 1) & 7);
}

static void start_count(struct x86_lapic *l, u64 ns) {
  l->timer.due_ns = clock_now_ns() + ns;
  set_target(&l->timer, l->timer.due_ns);
}

static void stop_count(struct lapic_timer *t) {
  t->due_ns = 0;
  set_target(t, 0);
}

/* The next end of a period after now: missed ones are not made up for, the phase stays. */
static void next_period(struct lapic_timer *t, u64 now) {
  t->due_ns += t->period_ns;
  if (t->due_ns <= now) t->due_ns = now + t->period_ns - (now - t->due_ns) % t->period_ns;
  set_target(t, t->due_ns);
}

static void count_expired(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  u64 now = clock_now_ns();
  if (!t->due_ns || now < t->due_ns) return;
  lapic_lvt_deliver(l, REG_LVT_TIMER);
  if (t->mode == LVT_PERIODIC && t->period_ns)
    next_period(t, now);
  else
    stop_count(t);
}

/* Delivers a deadline that has passed, or waits for it: here when it is very near, else by the service thread. */
static void deadline_check(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  if (!t->deadline) return;
  u64 tsc = x86_guest_tsc(l->c);
  if (tsc < t->deadline) {
    if (t->deadline - tsc > SPIN_CYCLES) {
      u64 ns = x86_tsc_deadline_to_ns(l->c, t->deadline);
      set_target(t, ns ? ns : clock_now_ns() + RETRY_NS);
      return;
    }
    while (x86_guest_tsc(l->c) < t->deadline) __builtin_ia32_pause();
  }
  t->deadline = 0;
  set_target(t, 0);
  lapic_lvt_deliver(l, REG_LVT_TIMER);
}

void lapic_timer_expire(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  if (!atomic_exchange_explicit(&t->fired, false, memory_order_acquire)) return;
  if (t->mode == LVT_DEADLINE)
    deadline_check(l);
  else
    count_expired(l);
}

void lapic_timer_init(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  pthread_mutex_init(&t->lock, NULL);
  evtimer_init(&t->ev, l->c->core.vm->evloop, woken);
  set_divide(l);
}

void lapic_timer_destroy(struct x86_lapic *l) {
  set_target(&l->timer, 0);
  evtimer_cancel(&l->timer.ev, true);
  pthread_mutex_destroy(&l->timer.lock);
}

void lapic_timer_stop(struct x86_lapic *l) {
  l->timer.deadline = 0;
  stop_count(&l->timer);
}

/* Entering or leaving TSC-deadline mode disarms the timer; between one-shot and periodic the count goes on (SDM Vol.
 * 3A 10.5.4.1). */
void lapic_timer_lvt_changed(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  u32 mode = l->regs[REG_LVT_TIMER] & LVT_TIMER;
  if (mode == t->mode) return;
  if ((mode == LVT_DEADLINE) != (t->mode == LVT_DEADLINE)) {
    lapic_timer_stop(l);
    l->regs[REG_TMICT] = 0;
    t->period_ns = 0;
  }
  t->mode = mode;
  if (mode != LVT_DEADLINE) set_period(l);
}

void lapic_timer_start(struct x86_lapic *l, u32 initial) {
  if (l->timer.mode == LVT_DEADLINE) return;
  l->regs[REG_TMICT] = initial;
  set_divide(l);
  set_period(l);
  if (l->timer.period_ns)
    start_count(l, l->timer.period_ns);
  else
    stop_count(&l->timer);
}

/* A running count keeps its value and goes on at the new rate. */
void lapic_timer_divide_changed(struct x86_lapic *l) {
  struct lapic_timer *t = &l->timer;
  u32 old = t->divide;
  set_divide(l);
  if (t->divide == old || !t->period_ns) return;
  u64 now = clock_now_ns(), left = t->due_ns > now ? t->due_ns - now : 0;
  bool running = t->due_ns != 0;
  set_period(l);
  if (running) start_count(l, left * t->divide / old);
}

/* KVM_SET_LAPIC: a one-shot count at its end fires at once (its interrupt may have been lost on the way), a periodic one starts a
 * new period. */
void lapic_timer_restore(struct x86_lapic *l, u32 current) {
  struct lapic_timer *t = &l->timer;
  t->mode = l->regs[REG_LVT_TIMER] & LVT_TIMER;
  lapic_timer_stop(l);
  set_divide(l);
  if (t->mode == LVT_DEADLINE) return;
  set_period(l);
  if (!t->period_ns) return;
  u64 left = count_to_ns(t, current);
  if (left && left <= t->period_ns)
    start_count(l, left);
  else if (left || t->mode == LVT_PERIODIC)
    start_count(l, t->period_ns);
  else
    start_count(l, 0);
}

/* Who sees the end of the count sees the interrupt, too. */
u32 lapic_timer_current(struct x86_lapic *l) {
  const struct lapic_timer *t = &l->timer;
  if (t->mode == LVT_DEADLINE) return 0;
  count_expired(l);
  if (!t->period_ns || !t->due_ns) return 0;
  u64 now = clock_now_ns(), left = t->due_ns > now ? t->due_ns - now : 0;
  return (u32)(MIN(left, t->period_ns) / t->divide);
}

u64 x86_lapic_deadline_get(struct x86_vcpu *c) {
  struct x86_lapic *l = c->lapic;
  if (!l || !lapic_hw(l) || l->timer.mode != LVT_DEADLINE) return 0;
  if (l->timer.deadline && x86_guest_tsc(c) >= l->timer.deadline) deadline_check(l);
  return l->timer.deadline;
}

void x86_lapic_deadline_set(struct x86_vcpu *c, u64 tsc) {
  struct x86_lapic *l = c->lapic;
  if (!l || !lapic_hw(l) || l->timer.mode != LVT_DEADLINE) return;
  l->timer.deadline = tsc;
  if (!tsc) {
    set_target(&l->timer, 0);
    return;
  }
  u64 ns = x86_guest_tsc(c) < tsc ? x86_tsc_deadline_to_ns(c, tsc) : 0;
  if (ns)
    set_target(&l->timer, ns);
  else
    deadline_check(l);
}

void x86_lapic_tsc_changed(struct x86_vcpu *c) {
  struct x86_lapic *l = c->lapic;
  if (l && l->timer.mode == LVT_DEADLINE && l->timer.deadline) x86_lapic_deadline_set(c, l->timer.deadline);
}
