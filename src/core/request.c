/* Requests, kicks, halting. */
#include "core/request.h"
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>
#include "base/evloop.h"
#include "core/vm.h"

#define HALT_SPIN_NS 20000

void vcpu_wake(struct vcpu *v) {
  /* Pairs with the fence in sleep_once(): either we see halted, or the sleeper sees what we stored before. */
  atomic_thread_fence(memory_order_seq_cst);
  if (!atomic_load_explicit(&v->halted, memory_order_relaxed)) return;
  u64 one = 1;
  int saved = errno;
  if (write(v->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN) errno = saved;
  errno = saved;
}

void vcpu_request(struct vcpu *v, unsigned req) {
  atomic_fetch_or_explicit(&v->requests, BIT(req), memory_order_release);
  vcpu_wake(v);
}

void vcpu_enter(struct vcpu *v) {
  /* Full barrier: the mode is visible before any slot or request is read; pairs with vm_request_all(). */
  atomic_store_explicit(&v->mode, VCPU_RUNNING, memory_order_seq_cst);
}

void vcpu_leave(struct vcpu *v) { atomic_store_explicit(&v->mode, VCPU_OUTSIDE, memory_order_release); }

u64 vcpu_take_requests(struct vcpu *v) {
  /* Odd while requests are being acted on; the increment is before the exchange for whoever sees the bits gone. */
  atomic_fetch_add_explicit(&v->handled, 1, memory_order_seq_cst);
  return atomic_exchange_explicit(&v->requests, 0, memory_order_seq_cst);
}

void vcpu_requests_done(struct vcpu *v) { atomic_fetch_add_explicit(&v->handled, 1, memory_order_release); }

static void relax(unsigned spin) {
  if (spin > 100) sched_yield();
  else __builtin_ia32_pause();
}

/* Until v has acted on `req`, or is outside (it will see the request when it enters). */
static void wait_handled(struct vcpu *v, unsigned req) {
  unsigned spin = 0;
  while (atomic_load(&v->requests) & BIT(req)) {
    if (atomic_load(&v->mode) != VCPU_RUNNING) return;
    relax(spin++);
  }
  u32 seen = atomic_load(&v->handled);
  while ((seen & 1) && atomic_load(&v->handled) == seen && atomic_load(&v->mode) == VCPU_RUNNING) relax(spin++);
}

void vm_request_all(struct vm *vm, struct vcpu *self, unsigned req, bool wait) {
  unsigned n = atomic_load_explicit(&vm->n_vcpus, memory_order_acquire);
  for (unsigned k = 0; k < n; k++)
    if (vm->vcpus[k] != self) vcpu_request(vm->vcpus[k], req);
  if (!wait) return;
  atomic_thread_fence(memory_order_seq_cst); /* requests are visible before modes are read; pairs with vcpu_enter() */
  for (unsigned k = 0; k < n; k++)
    if (vm->vcpus[k] != self) wait_handled(vm->vcpus[k], req);
}

/* Something to do besides sleeping. */
static bool awake(struct vcpu *v) {
  return atomic_load_explicit(&v->requests, memory_order_acquire) || v->vm->arch->vcpu_runnable(v);
}

/* Sleeps with signals let through only inside ppoll(): a signal before it makes it return at once, so none is lost. */
static int sleep_once(struct vcpu *v) {
  sigset_t all, old;
  u64 count;
  int r = 0;
  sigfillset(&all);
  sigdelset(&all, SIGSEGV);
  sigdelset(&all, SIGBUS);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  atomic_store_explicit(&v->halted, true, memory_order_relaxed);
  atomic_thread_fence(memory_order_seq_cst); /* pairs with vcpu_wake() */
  if (!awake(v) && !READ_ONCE(v->run->immediate_exit)) {
    struct pollfd p = {.fd = v->wake_fd, .events = POLLIN};
    if (ppoll(&p, 1, NULL, &old) < 0 && errno == EINTR) r = -EINTR;
  }
  atomic_store_explicit(&v->halted, false, memory_order_relaxed);
  if (read(v->wake_fd, &count, sizeof(count)) < 0) count = 0;
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return r;
}

int vcpu_halt(struct vcpu *v) {
  u64 until = clock_now_ns() + HALT_SPIN_NS;
  do {
    if (awake(v)) return 0;
    __builtin_ia32_pause();
  } while (clock_now_ns() < until);
  for (;;) {
    if (READ_ONCE(v->run->immediate_exit)) return -EINTR;
    if (awake(v)) return 0;
    int r = sleep_once(v);
    if (r) return r;
  }
}
