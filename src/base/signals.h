/* Signals of the client: kept out of the library's critical parts, and noticed by a running vCPU.
 *
 * A system call is never interrupted half-way by a handler: the kernel lets it finish (with EINTR) and runs the handler on the
 * way out. The library does the same.  The client's handlers are entered through a gate.  When a signal hits a thread that is
 * inside the library, the gate puts it back (blocked and pending) and pokes what the thread is doing; leaving the library
 * restores the thread's signal mask, and the handler runs then, with no lock of the library held.
 *
 * The gate finds handlers by looking at the installed ones (signals_take): at the first KVM_RUN of each thread, and at the next
 * KVM_RUN after a VM or vCPU was created.  A preload library that has a sigaction of its own tells it at once
 * (signals_client_sigaction).
 */
#ifndef BASE_SIGNALS_H
#define BASE_SIGNALS_H

#include <signal.h>
#include <ucontext.h>
#include "base/types.h"

struct signal_gate {
  unsigned depth;                 /* > 0: inside the library */
  unsigned seen;                  /* generation of the last signals_take() this thread knows of */
  volatile sig_atomic_t deferred; /* a signal waits for the way out */
  volatile sig_atomic_t restore;  /* `mask` must be put back on the way out */
  sigset_t mask;
  unsigned hidden;            /* SIGSEGV (1), SIGBUS (2): blocked in the client's eyes, but not really (signals_client_mask) */
  const sigset_t *sleep_mask; /* while the thread sleeps with everything blocked: the mask that counts */
  void (*poke)(void *arg);    /* makes what the thread is doing end soon; async-signal-safe */
  void *arg;
  void (*abandon)(void *arg); /* the thread ends here by cancellation: gives back what the way in took */
  void *abandon_arg;
};
extern __thread struct signal_gate signal_gate __attribute__((tls_model("initial-exec")));

static inline void signals_enter(void) {
  signal_gate.depth++;
  atomic_signal_fence(memory_order_seq_cst);
}

void signals_restore(void);

static inline void signals_leave(void) {
  atomic_signal_fence(memory_order_seq_cst);
  if (--signal_gate.depth == 0 && signal_gate.restore) signals_restore();
}

/* Changes the mask until the way out.  Signals it lets in that have no handler get the gate too, so that they end up pending
 * again. */
void signals_set_mask(const sigset_t *mask);

/* Looks for handlers that are not behind the gate yet. */
void signals_take(void);
/* Makes every thread look again at its next KVM_RUN. */
void signals_changed(void);

extern _Atomic unsigned signals_generation;
static inline bool signals_not_taken(void) {
  return signal_gate.seen != atomic_load_explicit(&signals_generation, memory_order_relaxed);
}

/* sigaction(2) as the client means it: what it installs goes behind the gate (or behind base/fault.c), what it is told is what it
 * installed.  For the preload library.  0, or -1 with errno. */
int signals_client_sigaction(int sig, const struct sigaction *act, struct sigaction *old);

/* Where *a is the library's: what the client takes it for. */
void signals_seen_by_client(int sig, struct sigaction *a);

/* pthread_sigmask(3) as the client means it.  A fault on guest memory while SIGSEGV is blocked would kill the process, so the two
 * fault signals are never blocked really: the client is told they are, its handler does not run, and its own faults kill as they
 * should.  0 or errno. */
int signals_client_mask(int how, const sigset_t *set, sigset_t *old);
/* The same for what this thread has blocked already. */
void signals_hide_faults(void);
bool signals_is_hidden(int sig);
/* The signal goes back to where it came from, with its siginfo, and is blocked when the handler with this context returns. */
void signals_put_back(int sig, siginfo_t *info, ucontext_t *uc);

/* Calls the client's handler from one of ours, which has its mask but not SA_NODEFER. */
void signals_call(const struct sigaction *a, int sig, siginfo_t *info, void *context);

/* A copy of *a that is never changed or freed, for handlers to read without a lock.  NULL: no memory. */
const struct sigaction *signals_remember(const struct sigaction *a);

/* libc's functions; the preload library, which has its own, points them to the real ones. */
extern int (*signals_sigaction)(int sig, const struct sigaction *act, struct sigaction *old);
extern int (*signals_sigmask)(int how, const sigset_t *set, sigset_t *old);

#endif
