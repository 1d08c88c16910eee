/* The handlers behind base/fault.h. */
#include "base/fault.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

__thread struct fault_guard *fault_current;

static struct sigaction previous[2];
static const int signals[2] = {SIGSEGV, SIGBUS};

/* Not ours: as if we had never been there. */
static void pass_on(int sig, siginfo_t *info, void *context) {
  const struct sigaction *p = &previous[sig == SIGBUS];
  if (p->sa_flags & SA_SIGINFO) {
    p->sa_sigaction(sig, info, context);
  } else if (p->sa_handler == SIG_DFL || (p->sa_handler == SIG_IGN && info->si_code > 0)) {
    /* The faulting access comes again and meets the default action. */
    signal(sig, SIG_DFL);
    if (info->si_code <= 0) raise(sig);
  } else if (p->sa_handler != SIG_IGN) {
    p->sa_handler(sig);
  }
}

static void handler(int sig, siginfo_t *info, void *context) {
  struct fault_guard *g = fault_current;
  if (!g || info->si_code <= 0) { /* outside a guard, or sent by kill() */
    pass_on(sig, info, context);
    return;
  }
  fault_current = g->outer;
  /* The thread's mask at the fault comes back: the kernel saved it in the context. */
  pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
  siglongjmp(g->env, 1);
}

static void install(void) {
  struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
  sigemptyset(&sa.sa_mask);
  for (int n = 0; n < 2; n++) sigaction(signals[n], &sa, &previous[n]);
}

int fault_init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  return -pthread_once(&once, install);
}
