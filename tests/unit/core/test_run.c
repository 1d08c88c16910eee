/* KVM_RUN: immediate exit, signals of every kind, halts and wake-ups, requests to all, cancellation. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include "base/evloop.h"
#include "base/signals.h"
#include "fake_arch.h"

#define MS 1000000ull

static void sleep_ms(unsigned ms) {
  struct timespec t = {.tv_nsec = (long)ms * 1000000};
  nanosleep(&t, NULL);
}

static int spin_step(struct fake_vcpu *c) {
  return 0;
}
static int halt_step(struct fake_vcpu *c) {
  return FAKE_HALT;
}
static int exit_step(struct fake_vcpu *c) {
  c->core.run->exit_reason = KVM_EXIT_HLT;
  c->pending_io = true;
  return FAKE_EXIT;
}

static void immediate_exit(void **state) {
  struct machine m;
  machine_up(&m, 1);
  m.vcpu[0]->step = exit_step;
  assert_int_equal(call(m.vcpu_fd[0], KVM_RUN, NULL), 0);
  assert_int_equal(m.run[0]->exit_reason, KVM_EXIT_HLT);
  m.run[0]->immediate_exit = 1;
  assert_int_equal(call(m.vcpu_fd[0], KVM_RUN, NULL), -EINTR); /* completes the exit, runs nothing */
  assert_int_equal(m.run[0]->exit_reason, KVM_EXIT_HLT);       /* no exit of its own */
  assert_int_equal(m.vcpu[0]->completions, 1);
  assert_int_equal(m.vcpu[0]->steps, 1);
  m.run[0]->immediate_exit = 0;
  assert_int_equal(call(m.vcpu_fd[0], KVM_RUN, NULL), 0);
  assert_int_equal(call(m.vcpu_fd[0], KVM_RUN, (void *)1), -EINVAL);
  machine_down(&m);
}

/* ---- signals ---- */

static _Atomic int handled;
static _Atomic bool handled_outside;
static void on_signal(int sig) {
  handled++;
  handled_outside = signal_gate.depth == 0;
}

/* A signal before KVM_RUN would be the client's own race. */
static void wait_in_run(struct machine *m, fake_step *step) {
  if (step == halt_step)
    while (!atomic_load(&m->vcpu[0]->core.halted)) sched_yield();
  else
    machine_turns(m, 0, 5);
}

/* The handler runs after KVM_RUN has let go of everything, and KVM_RUN returns EINTR. */
static void signal_kicks(fake_step *step) {
  SKIP_UNDER_TSAN(); /* it delays signals */
  struct machine m;
  machine_up(&m, 1);
  u64 last;
  for (unsigned round = 0; again(round, 100, &last); round++) {
    void *r;
    handled = 0;
    machine_start(&m, 0, step, NULL);
    wait_in_run(&m, step);
    if (step == halt_step && round % 2) sleep_ms(2);
    pthread_kill(m.thread[0], SIGUSR1);
    pthread_join(m.thread[0], &r);
    assert_int_equal((intptr_t)r, -EINTR);
    assert_int_equal(handled, 1);
    assert_true(handled_outside);
    assert_int_equal(m.run[0]->exit_reason, KVM_EXIT_INTR);
  }
  machine_down(&m);
}

static void signal_while_running(void **state) {
  signal_kicks(spin_step);
}
static void signal_while_halted(void **state) {
  signal_kicks(halt_step);
}

/* KVM_SET_SIGNAL_MASK: the blocked signal ends KVM_RUN and stays pending; no handler is needed. */
static void *masked_thread(void *arg) {
  struct machine *m = arg;
  sigset_t set, pending, now;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  intptr_t r = call(m->vcpu_fd[0], KVM_RUN, NULL);
  sigpending(&pending);
  if (!sigismember(&pending, SIGUSR2)) r = 1;
  pthread_sigmask(SIG_SETMASK, NULL, &now);
  if (!sigismember(&now, SIGUSR2)) r = 2;
  intptr_t again = call(m->vcpu_fd[0], KVM_RUN, NULL); /* still pending: returns at once */
  if (again != -EINTR) r = 3;
  struct timespec zero = {0};
  if (sigtimedwait(&set, NULL, &zero) != SIGUSR2) r = 4;
  return (void *)r;
}

static void signal_mask(fake_step *step) {
  SKIP_UNDER_TSAN();
  struct machine m;
  struct {
    struct kvm_signal_mask head;
    u64 set;
  } __attribute__((packed)) mask = {.head.len = 8};
  pthread_t t;
  void *r;
  machine_up(&m, 1);
  mask.head.len = 4;
  assert_int_equal(call(m.vcpu_fd[0], KVM_SET_SIGNAL_MASK, &mask), -EINVAL);
  assert_int_equal(call(m.vcpu_fd[0], KVM_SET_SIGNAL_MASK, (void *)8), -EFAULT);
  mask.head.len = 8;
  assert_int_equal(call(m.vcpu_fd[0], KVM_SET_SIGNAL_MASK, &mask), 0);
  m.vcpu[0]->step = step;
  pthread_create(&t, NULL, masked_thread, &m);
  wait_in_run(&m, step);
  pthread_kill(t, SIGUSR2);
  pthread_join(t, &r);
  assert_int_equal((intptr_t)r, -EINTR);
  assert_int_equal(call(m.vcpu_fd[0], KVM_SET_SIGNAL_MASK, NULL), 0);
  assert_false(m.vcpu[0]->core.sigset_active);
  machine_down(&m);
}

static void mask_while_running(void **state) {
  signal_mask(spin_step);
}
static void mask_while_halted(void **state) {
  signal_mask(halt_step);
}

/* ---- halt ---- */

struct counter {
  _Atomic u64 wakes;
};

static int count_step(struct fake_vcpu *c) {
  ((struct counter *)c->arg)->wakes++;
  return FAKE_HALT;
}

/* Every wake-up arrives, whether it meets the vCPU before, in or after its sleep, or while it expects one. */
static void no_wake_is_lost(void **state) {
  struct machine m;
  struct counter n = {0};
  machine_up(&m, 1);
  machine_start(&m, 0, count_step, &n);
  u64 last, seen = 0; /* a step more comes from a thread that looks up now and then (core/run.c) */
  for (unsigned i = 1; again(i - 1, 3000, &last); i++) {
    u64 end = clock_now_ns() + 30000 * MS;
    while (n.wakes == seen && clock_now_ns() < end) {
    }
    assert_true(n.wakes > seen);
    seen = n.wakes;
    if (i % 3 == 0) vcpu_wake_near(&m.vcpu[0]->core, clock_now_ns() + i % 7 * 10000);
    for (unsigned spin = (unsigned)(i % 64) * 50; spin; spin--) __builtin_ia32_pause();
    m.vcpu[0]->runnable = true;
    vcpu_wake(&m.vcpu[0]->core);
  }
  assert_int_equal(machine_stop(&m, 0), -EINTR);
  assert_true(m.vcpu[0]->core.stats->halt_wait_ns[0] > 0);
  machine_down(&m);
}

static void halt_polls(void **state) {
  struct machine m;
  machine_up(&m, 1);
  struct kvm_enable_cap cap = {.cap = KVM_CAP_HALT_POLL, .args = {1000000}};
  assert_int_equal(call(m.vm_fd, KVM_ENABLE_CAP, &cap), 0);
  assert_int_equal(m.vm->core.max_halt_poll_ns, 1000000);
  cap.args[0] = 1ull << 32;
  assert_int_equal(call(m.vm_fd, KVM_ENABLE_CAP, &cap), -EINVAL);
  struct counter n = {0};
  machine_start(&m, 0, count_step, &n);
  u64 last;
  for (unsigned i = 1; again(i - 1, 300, &last); i++) {
    while (n.wakes < i) sched_yield();
    m.vcpu[0]->runnable = true;
    vcpu_wake(&m.vcpu[0]->core);
  }
  machine_stop(&m, 0);
  assert_true(m.vcpu[0]->core.stats->halt_attempted_poll[0] > 0);
  machine_down(&m);
}

/* No descriptor left for the wake-up: halts still end. */
static void halt_without_descriptors(void **state) {
  struct machine m;
  struct counter n = {0};
  int fds[4096];
  unsigned used = 0;
  machine_up(&m, 1);
  while (used < 4096 && (fds[used] = dup(0)) >= 0) used++;
  machine_start(&m, 0, count_step, &n);
  for (u64 i = 1; i <= 20; i++) {
    while (n.wakes < i) sched_yield();
    m.vcpu[0]->runnable = true;
    vcpu_wake(&m.vcpu[0]->core);
  }
  assert_int_equal(machine_stop(&m, 0), -EINTR);
  while (used) close(fds[--used]);
  machine_down(&m);
}

/* ---- requests ---- */

/* After vm_request_all(wait) nobody is still in the old world. */
static _Atomic int world;
static _Atomic int stale_uses;

struct view {
  int world;
  u64 flushes;
  bool valid;
};

static int view_step(struct fake_vcpu *c) {
  struct view *v = c->arg;
  if (!v->valid || v->flushes != c->flushes) *v = (struct view){world, c->flushes, true};
  if (v->world < world - 1) stale_uses++; /* the change before the last has been waited for */
  return c->steps % 512 == 511 ? FAKE_HALT : 0;
}

static _Atomic bool waker_stop;

static void *waker(void *arg) {
  struct machine *m = arg;
  while (!waker_stop) {
    for (unsigned i = 0; i < m->n; i++) {
      m->vcpu[i]->runnable = true;
      vcpu_wake(&m->vcpu[i]->core);
    }
    sched_yield();
  }
  return NULL;
}

static void request_all(void **state) {
  struct machine m;
  struct view v[3] = {0};
  pthread_t t;
  machine_up(&m, 3);
  for (unsigned i = 0; i < 3; i++) machine_start(&m, i, view_step, &v[i]);
  pthread_create(&t, NULL, waker, &m);
  u64 last;
  for (unsigned i = 0; again(i, 100, &last); i++) {
    world++;
    vm_request_all(&m.vm->core, NULL, REQ_TLB_FLUSH, true);
  }
  for (unsigned i = 0; i < 3; i++) assert_int_equal(machine_stop(&m, i), -EINTR);
  waker_stop = true;
  pthread_join(t, NULL);
  assert_int_equal(stale_uses, 0);
  machine_down(&m);
}

/* Two vCPUs that both wait for all others: neither waits for the other for ever. */
static int waiting_step(struct fake_vcpu *c) {
  vm_request_all(c->core.vm, &c->core, REQ_TLB_FLUSH, true);
  return 0;
}

static void mutual_wait(void **state) {
  struct machine m;
  machine_up(&m, 2);
  machine_start(&m, 0, waiting_step, NULL);
  machine_start(&m, 1, waiting_step, NULL);
  machine_turns(&m, 0, 50);
  machine_turns(&m, 1, 50);
  assert_int_equal(machine_stop(&m, 0), -EINTR);
  assert_int_equal(machine_stop(&m, 1), -EINTR);
  machine_down(&m);
}

/* ---- cancellation ---- */

static void *cancelled_thread(void *arg) {
  int old;
  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
  for (;;) call(*(int *)arg, KVM_RUN, NULL);
  return NULL;
}

static void cancel_in_run(fake_step *step) {
  struct machine m;
  pthread_t t;
  void *r;
  machine_up(&m, 1);
  m.vcpu[0]->step = step;
  pthread_create(&t, NULL, cancelled_thread, &m.vcpu_fd[0]);
  wait_in_run(&m, step);
  pthread_cancel(t);
  pthread_join(t, &r);
  assert_ptr_equal(r, PTHREAD_CANCELED);
  m.vcpu[0]->step = exit_step;
  assert_int_equal(call(m.vcpu_fd[0], KVM_RUN, NULL), 0); /* the vCPU is free for another thread */
  machine_down(&m);
}

static void cancel_while_running(void **state) {
  cancel_in_run(spin_step);
}
static void cancel_while_halted(void **state) {
  cancel_in_run(halt_step);
}

int main(void) {
  struct sigaction sa = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &sa, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(immediate_exit),     cmocka_unit_test(signal_while_running),     cmocka_unit_test(signal_while_halted),
      cmocka_unit_test(mask_while_running), cmocka_unit_test(mask_while_halted),        cmocka_unit_test(no_wake_is_lost),
      cmocka_unit_test(halt_polls),         cmocka_unit_test(halt_without_descriptors), cmocka_unit_test(request_all),
      cmocka_unit_test(mutual_wait),        cmocka_unit_test(cancel_while_running),     cmocka_unit_test(cancel_while_halted),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
