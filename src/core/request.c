/* Requests and kicks, the wait for all vCPUs, and the sleep of a halted vCPU.
 *
 * Five hand-shakes, each between a requester R and a vCPU thread V:
 *
 * 1. R sets a bit, V runs guest code.  V polls the word at every block; nothing else is needed.
 * 2. R sets a bit, V goes to sleep.  R: set bit, then read `halted`.  V: set `halted`, then read the bits.  Both sides are
 * sequentially consistent, so at least one sees the other's store: either V does not sleep or R writes wake_fd.
 * 3. R changes shared state, sets a bit, and waits until V is outside or has handled it; V enters.  R: set bit, then read `mode`.
 * V: set `mode`, full barrier, then read the bits (vcpu_enter).  Either R sees V running and waits, or V sees the bit before it
 * touches guest memory.
 *
 * 4. R sets a bit, V runs translated code, which looks at the gate alone.  R: set bit, then close the gate.  V: open the gate, then read
 * the bits.  If V does not see the bit, R's store to the gate comes after V's, and stays.
 *
 * 5. R bumps write_epoch, then raises every gate that is open.  V: open the gate with the epoch it knows, then read the epoch again.  Either V sees the
 * new one, or R sees the gate open.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "base/evloop.h"
#include "base/ownfd.h"
#include "base/signals.h"
#include "base/lead.h"
#include "core/stats.h"
#include "core/vm.h"

static inline void cpu_relax(void) { __builtin_ia32_pause(); }

/* ---- requests ---- */

/* `halted` goes to false with the first wake-up, so that a burst of requests writes once. */
static void wake_if_halted(struct vcpu *vcpu) {
  if (!atomic_load(&vcpu->halted) || !atomic_exchange(&vcpu->halted, false)) return;
  static const u64 one = 1;
  ssize_t n = write(atomic_load(&vcpu->wake_fd), &one, sizeof(one));
  (void)n; /* full counter: it is readable, which is all that is asked */
}

/* The gate last: hand-shake 4. */
static void set_bits(struct vcpu *vcpu, u64 bits) {
  atomic_fetch_or(&vcpu->requests, bits);
  atomic_store(&vcpu->gate, 0);
}

void vcpu_request(struct vcpu *vcpu, unsigned req) {
  u64 bit = BIT(req);
  /* Setting it again would change nothing; the fence keeps hand-shake 2 in that case too. */
  if (atomic_load_explicit(&vcpu->requests, memory_order_relaxed) & bit)
    atomic_thread_fence(memory_order_seq_cst);
  else
    set_bits(vcpu, bit);
  wake_if_halted(vcpu);
}

void vcpu_request_self(struct vcpu *vcpu, u64 bits) {
  atomic_fetch_or_explicit(&vcpu->requests, bits, memory_order_relaxed);
  atomic_store_explicit(&vcpu->gate, 0, memory_order_relaxed);
}

void vcpu_open_gate(struct vcpu *vcpu) {
  _Atomic u64 *epoch = &vcpu->vm->write_epoch;
  if (likely(atomic_load_explicit(&vcpu->gate, memory_order_relaxed) == atomic_load_explicit(epoch, memory_order_acquire))) return;
  u64 now;
  do {
    now = atomic_load(epoch);
    atomic_store(&vcpu->gate, now); /* hand-shakes 4 and 5 */
  } while (atomic_load(epoch) != now);
}

void vm_memory_changed(struct vm *vm) {
  u64 now = atomic_fetch_add(&vm->write_epoch, 1) + 1; /* hand-shake 5 */
  unsigned n = atomic_load_explicit(&vm->n_vcpus, memory_order_acquire);
  for (unsigned i = 0; i < n; i++) {
    _Atomic u64 *gate = &vm->vcpus[i]->gate;
    u64 seen = atomic_load(gate);
    while (seen && seen < now && !atomic_compare_exchange_weak(gate, &seen, now)) {}
  }
}

void vcpu_wake(struct vcpu *vcpu) {
  atomic_thread_fence(memory_order_seq_cst); /* what makes it runnable was stored before; see hand-shake 2 */
  wake_if_halted(vcpu);
}

void vcpu_wake_near(struct vcpu *vcpu, u64 ns) {
  atomic_store_explicit(&vcpu->near_ns, ns, memory_order_release);
  vcpu_wake(vcpu);
}

void vcpu_enter(struct vcpu *vcpu) {
  atomic_store_explicit(&vcpu->mode, VCPU_RUNNING, memory_order_relaxed);
  atomic_thread_fence(memory_order_seq_cst); /* hand-shake 3 */
}

void vcpu_leave(struct vcpu *vcpu) {
  /* release: accesses to guest memory and slots are finished before a waiter sees us outside. */
  atomic_store_explicit(&vcpu->mode, VCPU_OUTSIDE, memory_order_release);
}

void vcpu_requests_done(struct vcpu *vcpu) {
  /* One writer; release: dropped translations are dropped before a waiter goes on. */
  atomic_store_explicit(&vcpu->handled, atomic_load_explicit(&vcpu->handled, memory_order_relaxed) + 1, memory_order_release);
}

static bool is_outside(struct vcpu *vcpu) { return atomic_load(&vcpu->mode) == VCPU_OUTSIDE; }

/* ---- waiting for all ---- */

/* Shortest first: the other side usually needs less than a microsecond, but it may be off its processor. */
static void back_off(unsigned round) {
  if (round < 200) {
    cpu_relax();
  } else if (round < 400) {
    sched_yield();
  } else {
    struct timespec t = {.tv_nsec = 50000};
    nanosleep(&t, NULL);
  }
}

/* Until V has taken the bit out of its word or is outside. */
static void wait_taken(struct vcpu *vcpu, u64 bit) {
  for (unsigned round = 0; !is_outside(vcpu) && (atomic_load(&vcpu->requests) & bit); round++) back_off(round);
}

/* Until V has finished what it took.  The bit was seen clear, so the work on it has at least begun: any later increase of
 * `handled` comes from finishing it or something after it.  It may have been finished before we looked: REQ_SYNC makes sure that
 * there is a later one. */
static void wait_done(struct vcpu *vcpu) {
  u32 before = atomic_load(&vcpu->handled);
  if (is_outside(vcpu)) return;
  set_bits(vcpu, BIT(REQ_SYNC));
  for (unsigned round = 0; !is_outside(vcpu) && atomic_load(&vcpu->handled) == before; round++) back_off(round);
}

void vm_request_all(struct vm *vm, struct vcpu *self, unsigned req, bool wait) {
  unsigned n = atomic_load_explicit(&vm->n_vcpus, memory_order_acquire);
  bool quiet = req == REQ_TLB_FLUSH || req == REQ_SYNC || req == REQ_PROTECT; /* matter only to a vCPU that runs: a halted one may sleep on */
  bool was_running = wait && self && !is_outside(self);
  if (was_running) vcpu_leave(self);
  for (unsigned i = 0; i < n; i++) {
    struct vcpu *vcpu = vm->vcpus[i];
    if (vcpu == self) continue;
    if (quiet)
      set_bits(vcpu, BIT(req));
    else
      vcpu_request(vcpu, req);
  }
  for (unsigned i = 0; wait && i < n; i++) {
    struct vcpu *vcpu = vm->vcpus[i];
    if (vcpu == self || is_outside(vcpu)) continue;
    wait_taken(vcpu, BIT(req));
    wait_done(vcpu);
  }
  if (was_running) vcpu_enter(self);
  if (req == REQ_TLB_FLUSH) vm_stat_inc(vm, remote_tlb_flush);
}

/* ---- halt ---- */

static bool must_wake(struct vcpu *vcpu) { return atomic_load(&vcpu->requests) || vcpu->vm->arch->vcpu_runnable(vcpu); }

/* A signal, immediate_exit, or anybody's REQ_EXIT (which stays set for the run loop to see). */
static bool interrupted(struct vcpu *vcpu) {
  return signal_gate.deferred || __atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_RELAXED) ||
         (atomic_load(&vcpu->requests) & BIT(REQ_EXIT));
}

#define POLL_GROW_START 5000u

/* Time that passed between two looks: somebody else wants the processor, and spinning only keeps it from who would wake us.  The kernel's KVM
 * stops as soon as another task waits for the processor; this is how a process learns of that. */
#define PREEMPTED_NS 50000u

/* Spins for as long as it paid off lately.  True when there is a reason to end the halt. */
static bool halt_spin(struct vcpu *vcpu, u64 start) {
  if (!vcpu->halt_poll_ns) return false;
  u64 now = start, end = start + vcpu->halt_poll_ns;
  bool woken = false;
  while (!woken && now < end) {
    for (unsigned i = 0; i < 16 && !woken; i++) {
      woken = must_wake(vcpu) || interrupted(vcpu);
      cpu_relax();
    }
    u64 last = now;
    now = clock_now_ns();
    if (!woken && now - last > PREEMPTED_NS) {
      vcpu->halt_poll_ns = 0;
      break;
    }
  }
  vcpu_stat_inc(vcpu, halt_attempted_poll);
  if (woken) {
    vcpu_stat_inc(vcpu, halt_successful_poll);
    vcpu_stat_add(vcpu, halt_poll_success_ns, now - start);
    vcpu_stat_hist(vcpu, halt_poll_success_hist, now - start);
  } else {
    vcpu_stat_add(vcpu, halt_poll_fail_ns, now - start);
    vcpu_stat_hist(vcpu, halt_poll_fail_hist, now - start);
  }
  return woken;
}

/* With more vCPUs than processors somebody else wants this one as a rule. */
#define CROWD_POLL_NS 20000u
static u32 max_poll(const struct vm *vm) {
  u32 max = atomic_load_explicit(&vm->max_halt_poll_ns, memory_order_relaxed);
  return atomic_load_explicit(&vm->n_vcpus, memory_order_relaxed) > vm->processors ? MIN(max, CROWD_POLL_NS) : max;
}

/* A halt that was short although we slept: spinning would have paid.  A long one: it will not. */
static void halt_adapt(struct vcpu *vcpu, u64 halted_ns) {
  u32 max = max_poll(vcpu->vm);
  u32 poll_ns = vcpu->halt_poll_ns;
  if (halted_ns > poll_ns) poll_ns = halted_ns < max ? MAX(poll_ns * 2, POLL_GROW_START) : poll_ns / 2;
  if (poll_ns < POLL_GROW_START) poll_ns = 0;
  vcpu->halt_poll_ns = MIN(poll_ns, max);
}

static int open_wake_fd(struct vcpu *vcpu) {
  int fd = atomic_load(&vcpu->wake_fd);
  if (fd >= 0) return fd;
  fd = own_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  atomic_store(&vcpu->wake_fd, fd); /* before `halted` is set: who sees that sees this */
  return fd;
}

/* One sleep with the client's signals let in only while asleep; `near`: only a look.  ppoll by number: libc's is a cancellation point.  0, or -EINTR
 * for a signal. */
static int sleep_once(int fd, const sigset_t *mask, bool near) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  struct timespec timeout = {.tv_nsec = near ? 0 : 1000000};
  long n = syscall(SYS_ppoll, &p, fd >= 0 ? 1 : 0, fd >= 0 && !near ? NULL : &timeout, mask, 8 /* bytes in the kernel's sigset_t */);
  if (n < 0) return errno == EINTR ? -EINTR : 0;
  if (n > 0) {
    u64 count;
    ssize_t got = read(fd, &count, sizeof(count));
    (void)got;
  }
  return 0;
}

#define NEAR_AFTER_NS 20000u /* who was to come may be late */

/* Whether to stay awake.  *last: the time that it was told of when it looked last. */
static bool is_near(struct vcpu *vcpu, u64 *last) {
  u64 near = atomic_load_explicit(&vcpu->near_ns, memory_order_acquire);
  if (!near) return false;
  u64 now = clock_now_ns();
  if (near != *last) lead_learn(&vcpu->wake_lead_ns, now, near);
  *last = near;
  if (now < near + NEAR_AFTER_NS) return true;
  atomic_compare_exchange_strong(&vcpu->near_ns, &near, 0);
  return false;
}

/* Signals are blocked from before the last look at the reasons to wake until ppoll() lets them in: none can slip between. */
static int halt_sleep(struct vcpu *vcpu) {
  int fd = open_wake_fd(vcpu); /* no descriptor left: sleep_once() looks every millisecond */
  sigset_t all, mask;
  int r = 0;
  u64 near = 0;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &mask);
  signal_gate.sleep_mask = &mask;
  for (;;) {
    if (fd >= 0) atomic_store(&vcpu->halted, true); /* hand-shake 2 */
    if (interrupted(vcpu)) r = -EINTR;
    if (r || must_wake(vcpu)) break;
    r = sleep_once(fd, &mask, is_near(vcpu, &near));
  }
  atomic_store(&vcpu->halted, false);
  is_near(vcpu, &near); /* learns from what has ended the sleep */
  signal_gate.sleep_mask = NULL;
  pthread_sigmask(SIG_SETMASK, &mask, NULL); /* one that was put back comes at once, and is put back blocked */
  return r;
}

/* No exit, no statistic: as if a processor executed HLT. */
static int halt_in_guest(struct vcpu *vcpu) {
  while (!must_wake(vcpu))
    for (unsigned i = 0; i < 16; i++) {
      if (interrupted(vcpu)) return -EINTR;
      cpu_relax();
    }
  return 0;
}

int vcpu_halt(struct vcpu *vcpu) {
  if (interrupted(vcpu)) return -EINTR;
  if (must_wake(vcpu)) return 0;
  if (unlikely(vcpu->vm->halt_in_guest)) return halt_in_guest(vcpu);
  u64 start = clock_now_ns();
  int r = 0;
  if (!halt_spin(vcpu, start)) {
    vcpu_stat_set(vcpu, blocking, 1);
    u64 slept = clock_now_ns();
    atomic_store_explicit(&vcpu->asleep_since, slept, memory_order_relaxed);
    if (vcpu->vm->arch->vcpu_sleeps) vcpu->vm->arch->vcpu_sleeps(vcpu);
    r = halt_sleep(vcpu);
    u64 now = clock_now_ns();
    vcpu_stat_set(vcpu, blocking, 0);
    atomic_store_explicit(&vcpu->asleep_since, 0, memory_order_relaxed);
    __atomic_store_n(&vcpu->stats->halt_wait_ns[0], vcpu->stats->halt_wait_ns[0] + (now - slept), __ATOMIC_RELEASE);
    vcpu_stat_hist(vcpu, halt_wait_hist, now - slept);
    vcpu->slept_ns = now - slept;
    halt_adapt(vcpu, now - start);
  } else if (interrupted(vcpu)) {
    r = -EINTR;
  }
  if (!r) vcpu_stat_inc(vcpu, halt_wakeup);
  return r;
}
