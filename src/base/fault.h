/* Host faults on client memory as results instead of crashes.
 *
 * The library owns SIGSEGV and SIGBUS from the first VM on.  A synchronous fault while the thread has an armed guard unwinds to
 * that guard; every other one goes to the handler that was installed before, or to the default action, unchanged.
 *
 *   struct fault_guard guard;
 *   if (!fault_try(&guard)) {
 *     ... touch client memory ...
 *     fault_end(&guard);
 *   } else {
 *     ... it faulted: the guard is disarmed already, guard.addr says where ...
 *   }
 *
 * Guards nest; each is a stack variable of the function that arms it.  Arming costs a setjmp that saves no signal mask, so it can
 * be done once per KVM_RUN.  After a fault the floating-point control words are those of fault_try(), the x87 stack is empty;
 * vector registers are undefined.  Between fault_try and fault_end no lock may be taken that the else branch does not release,
 * and local variables that change there and are read in the else branch must be volatile.
 */
#ifndef BASE_FAULT_H
#define BASE_FAULT_H

#include <setjmp.h>
#include <signal.h>
#include "base/types.h"

struct fault_guard {
  struct fault_guard *prev;
  jmp_buf env;
  u32 mxcsr; /* the floating-point control words at fault_try(): a fault may hit code that runs with the guest's */
  u16 x87_control;
  void *addr; /* after a fault: the address, as in siginfo_t */
  int sig;    /* SIGSEGV or SIGBUS */
  int code;   /* si_code: SEGV_MAPERR, BUS_MCEERR_AR, ... */
  u32 fault_mxcsr; /* MXCSR of the code that faulted */
  void (*recover)(void *arg, void *ucontext); /* NULL, or called in the handler: saves what the registers held.  Set after fault_try() */
  void *arg;
};

/* Innermost armed guard of this thread.  initial-exec: the signal handler must not allocate thread-local storage. */
extern __thread struct fault_guard *fault_top __attribute__((tls_model("initial-exec")));

static inline void fault_push(struct fault_guard *g) {
  __asm__("stmxcsr %0\n\tfnstcw %1" : "=m"(g->mxcsr), "=m"(g->x87_control));
  g->prev = fault_top;
  g->recover = NULL;
  fault_top = g;
}

/* 0 when armed; non-zero when it comes back from a fault. */
#define fault_try(g) (fault_push(g), _setjmp((g)->env))

static inline void fault_end(struct fault_guard *g) {
  atomic_signal_fence(memory_order_seq_cst); /* accesses of the guarded part stay before the disarming */
  fault_top = g->prev;
}

/* Takes SIGSEGV and SIGBUS over (again, when the client has replaced the handlers).  Any thread. */
void fault_install(void);
/* Where a is ours: what the client takes it for. */
void fault_seen_by_client(int sig, struct sigaction *a);
/* sigaction(2) of the client for these two: changes what our handler forwards to, once it is installed. */
int fault_client_sigaction(int sig, const struct sigaction *act, struct sigaction *old);

/* memcpy that answers -EFAULT for a bad address on either side. */
int fault_copy(void *dst, const void *src, size_t len);

#endif
