/* The SIGSEGV and SIGBUS handler behind fault guards. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include "base/fault.h"
#include "base/signals.h"

__thread struct fault_guard *fault_top __attribute__((tls_model("initial-exec")));

/* What was installed before us, per signal.  Written before our handler is installed, under install_lock. */
static struct sigaction previous[2];
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
/* This thread is in the previous handler: a handler that was installed over ours and calls ours in turn must not recurse. */
static __thread bool forwarding __attribute__((tls_model("initial-exec")));

static struct sigaction *previous_of(int sig) { return &previous[sig == SIGBUS]; }

/* Lets the default action happen: the faulting instruction runs again after the return, or the signal is sent again. */
static void take_default(int sig, const siginfo_t *info) {
  struct sigaction dfl = {.sa_handler = SIG_DFL};
  signals_sigaction(sig, &dfl, NULL);
  if (info->si_code <= 0) raise(sig);
}

static void forward(int sig, siginfo_t *info, void *context) {
  struct sigaction *p = previous_of(sig);
  if (p->sa_handler == SIG_IGN && info->si_code <= 0) return;
  if (forwarding || p->sa_handler == SIG_DFL || p->sa_handler == SIG_IGN) {
    take_default(sig, info);
    return;
  }
  forwarding = true;
  if (p->sa_flags & SA_SIGINFO) p->sa_sigaction(sig, info, context);
  else p->sa_handler(sig);
  forwarding = false;
}

/* Faults of an instruction have a positive code; BUS_MCEERR_AO is a notice about memory nobody touched. */
static bool is_synchronous(int sig, const siginfo_t *info) {
  return info->si_code > 0 && !(sig == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

static void on_fault(int sig, siginfo_t *info, void *context) {
  struct fault_guard *g = fault_top;
  if (g && is_synchronous(sig, info)) {
    fault_top = g->prev;
    g->addr = info->si_addr;
    g->sig = sig;
    g->code = info->si_code;
    /* The mask needs no restoring: SA_NODEFER and an empty sa_mask left it as it was. */
    _longjmp(g->env, 1);
  }
  int saved = errno;
  forward(sig, info, context);
  errno = saved;
}

static void install_one(int sig) {
  struct sigaction now, ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  if (signals_sigaction(sig, NULL, &now) || (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault)) return;
  *previous_of(sig) = now;
  signals_sigaction(sig, &ours, NULL);
}

void fault_install(void) {
  pthread_mutex_lock(&install_lock);
  install_one(SIGSEGV);
  install_one(SIGBUS);
  pthread_mutex_unlock(&install_lock);
}

void fault_after_fork(void) { pthread_mutex_init(&install_lock, NULL); }

int fault_copy(void *dst, const void *src, size_t len) {
  struct fault_guard guard;
  if (fault_try(&guard)) return -EFAULT;
  memcpy(dst, src, len);
  fault_end(&guard);
  return 0;
}
