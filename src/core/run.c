/* The neutral half of KVM_RUN: immediate exit, signals, cancellation, and the call of the architecture. */
#include <errno.h>
#include "base/evloop.h"
#include "base/fault.h"
#include "base/signals.h"
#include "core/dirty_ring.h"
#include "core/stats.h"
#include "core/vm.h"

#define LOOK_NS 10000000ull

/* The thread sanitizer keeps a signal back until the thread next calls something it knows of, which translated code never does. */
#ifdef __SANITIZE_THREAD__
enum { SIGNALS_COME_LATE = true };
#else
enum { SIGNALS_COME_LATE = false };
#endif

static void poke(void *arg) { vcpu_request(arg, REQ_EXIT); }

static int interrupted_exit(struct vcpu *vcpu) {
  vcpu->run->exit_reason = KVM_EXIT_INTR;
  vcpu_stat_exit(vcpu, signal_exits);
  return -EINTR;
}

static bool immediate_exit(const struct vcpu *vcpu) { return __atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_RELAXED); }

/* A signal was pending already, or the client asked not to run: only the last exit is completed (api.rst, immediate_exit).  The
 * latter is no exit of its own: kvm_run still tells of the one completed. */
static int complete_only(struct vcpu *vcpu) {
  bool immediate = immediate_exit(vcpu);
  int r = vcpu->vm->arch->vcpu_complete_io(vcpu);
  if (r > 0) return 0; /* the completion is an exit itself */
  if (r) return r;
  return immediate ? -EINTR : interrupted_exit(vcpu);
}

static bool asked_to_leave(struct vcpu *vcpu) {
  return signal_gate.deferred || immediate_exit(vcpu) || atomic_load_explicit(&vcpu->vm->dead, memory_order_relaxed);
}

/* What asked the last KVM_RUN to end came too late for it and is no reason for this one.  Before asked_to_leave(), which sees everything else that asks. */
static void forget_exit(struct vcpu *vcpu) {
  if (unlikely(atomic_load_explicit(&vcpu->requests, memory_order_relaxed) & BIT(REQ_EXIT)))
    atomic_fetch_and(&vcpu->requests, ~BIT(REQ_EXIT));
}

static int run_once(struct vcpu *vcpu) {
  if (unlikely(asked_to_leave(vcpu))) return complete_only(vcpu);
  if (vcpu_ring_soft_full(vcpu)) { /* before the last exit is completed, which may dirty pages */
    vcpu->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
    return 0;
  }
  int r = vcpu->vm->arch->vcpu_run(vcpu);
  if (r == -EINTR) vcpu_stat_exit(vcpu, signal_exits);
  return r;
}

/* ---- a thread that has to look up now and then: it may be cancelled at any instruction ---- */

struct regular_look {
  struct evtimer timer;
  struct vcpu *vcpu;
};

static void look_up(struct evtimer *t) {
  struct regular_look *look = container_of(t, struct regular_look, timer);
  vcpu_request(look->vcpu, REQ_EXIT);
  evtimer_arm(t, clock_now_ns() + LOOK_NS);
}

/* The thread ends in pthread_testcancel(). */
static void cancelled(void *arg) {
  (void)arg;
  if (signal_gate.abandon) signal_gate.abandon(signal_gate.abandon_arg);
  signal_gate.depth = 0;
}

/* The mutex is free while the thread may end. */
static void test_cancel(struct vcpu *vcpu) {
  int state;
  pthread_mutex_unlock(&vcpu->mutex);
  pthread_cleanup_push(cancelled, NULL);
  pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
  pthread_testcancel();
  pthread_setcancelstate(state, NULL);
  pthread_cleanup_pop(0);
  pthread_mutex_lock(&vcpu->mutex);
}

/* Cancellation is disabled inside the library, so pthread_cancel() only leaves a note and sends no signal.  A thread that asked
 * for asynchronous cancellation expects to end inside KVM_RUN all the same: its vCPU is taken out every few milliseconds to look. */
static int run_looking(struct vcpu *vcpu, bool cancellable) {
  struct regular_look look = {.vcpu = vcpu};
  int r;
  evtimer_init(&look.timer, vcpu->vm->evloop, look_up);
  do {
    if (cancellable) test_cancel(vcpu);
    forget_exit(vcpu); /* a vCPU that sleeps leaves the request of the last look where it is */
    evtimer_arm(&look.timer, clock_now_ns() + LOOK_NS);
    r = run_once(vcpu);
    evtimer_cancel(&look.timer, true);
  } while (r == -EINTR && !asked_to_leave(vcpu));
  return r;
}

/* The client may have installed handlers of its own since the VM was made. */
static __attribute__((noinline)) void take_signals(void) {
  signals_take();
  fault_install();
}

int vcpu_run(struct vcpu *vcpu) {
  int cancel_type;
  if (unlikely(signals_not_taken())) take_signals();
  vcpu->thread = pthread_self();
  forget_exit(vcpu);
  signal_gate.arg = vcpu;
  atomic_signal_fence(memory_order_seq_cst);
  signal_gate.poke = poke; /* a signal before this line is seen in `deferred` */
  atomic_signal_fence(memory_order_seq_cst);
  if (unlikely(vcpu->sigset_active)) signals_set_mask(&vcpu->sigset);
  pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &cancel_type); /* no cost when it is that already */
  bool cancellable = cancel_type != PTHREAD_CANCEL_DEFERRED;
  int r = unlikely(cancellable || SIGNALS_COME_LATE) ? run_looking(vcpu, cancellable) : run_once(vcpu);
  if (unlikely(cancellable)) pthread_setcanceltype(cancel_type, NULL);
  signal_gate.poke = NULL;
  return r;
}
