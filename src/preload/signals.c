/* Signal handlers and masks: the library stands between the kernel and the program's handlers while it has work in the process
 * (base/signals.h, base/fault.h); the program sees what it installed. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include "preload/preload.h"

INTERPOSE int sigaction(int sig, const struct sigaction *act, struct sigaction *old) {
  return front_sigaction(sig, act, old);
}
INTERPOSE int __sigaction(int sig, const struct sigaction *act, struct sigaction *old) ALIAS(sigaction);

INTERPOSE int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) {
  return front_sigmask(how, set, old);
}

INTERPOSE int sigprocmask(int how, const sigset_t *set, sigset_t *old) {
  int err = front_sigmask(how, set, old);
  return err ? fail(err) : 0;
}

/* ---- the older interfaces: libc's call its own sigaction ---- */

/* Signals whose handlers interrupt system calls: what siginterrupt(3) leaves for later calls of signal(3). */
static sigset_t interrupting;

static sighandler_t set_handler(int sig, sighandler_t handler, int flags, bool block_itself) {
  struct sigaction act = {.sa_handler = handler, .sa_flags = flags}, old;
  if (block_itself) sigaddset(&act.sa_mask, sig);
  return front_sigaction(sig, &act, &old) ? SIG_ERR : old.sa_handler;
}

INTERPOSE sighandler_t signal(int sig, sighandler_t handler) {
  if (!front_started()) return REAL(signal)(sig, handler);
  if (sig < 1 || sig >= NSIG || handler == SIG_ERR) {
    errno = EINVAL;
    return SIG_ERR;
  }
  return set_handler(sig, handler, sigismember(&interrupting, sig) ? 0 : SA_RESTART, true);
}

INTERPOSE sighandler_t bsd_signal(int sig, sighandler_t handler) ALIAS(signal);
INTERPOSE sighandler_t ssignal(int sig, sighandler_t handler) ALIAS(signal);

INTERPOSE sighandler_t sysv_signal(int sig, sighandler_t handler) {
  if (!front_started()) return REAL(sysv_signal)(sig, handler);
  return set_handler(sig, handler, (int)(SA_RESETHAND | SA_NODEFER), false);
}

INTERPOSE sighandler_t __sysv_signal(int sig, sighandler_t handler) ALIAS(sysv_signal);

INTERPOSE int sigignore(int sig) {
  if (!front_started()) return REAL(sigignore)(sig);
  return set_handler(sig, SIG_IGN, 0, false) == SIG_ERR ? -1 : 0;
}

/* SIG_HOLD only blocks; any other disposition unblocks.  Returned is SIG_HOLD where it was blocked. */
INTERPOSE sighandler_t sigset(int sig, sighandler_t handler) {
  if (!front_started()) return REAL(sigset)(sig, handler);
  struct sigaction was;
  sigset_t set, old;
  sigemptyset(&set);
  if (sigaddset(&set, sig) || front_sigaction(sig, NULL, &was)) return SIG_ERR;
  if (handler != SIG_HOLD && set_handler(sig, handler, 0, false) == SIG_ERR) return SIG_ERR;
  int err = front_sigmask(handler == SIG_HOLD ? SIG_BLOCK : SIG_UNBLOCK, &set, &old);
  if (err) {
    errno = err;
    return SIG_ERR;
  }
  return sigismember(&old, sig) ? SIG_HOLD : was.sa_handler;
}

INTERPOSE int siginterrupt(int sig, int interrupt) {
  struct sigaction act;
  if (!front_started() && REAL(siginterrupt)(sig, interrupt)) return -1;
  if (front_sigaction(sig, NULL, &act)) return -1;
  if (interrupt)
    sigaddset(&interrupting, sig);
  else
    sigdelset(&interrupting, sig);
  act.sa_flags = interrupt ? act.sa_flags & ~SA_RESTART : act.sa_flags | SA_RESTART;
  return front_sigaction(sig, &act, NULL);
}
