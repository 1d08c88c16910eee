/* The gate in front of the client's signal handlers. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/signals.h"

#define N_SIGNALS 65

__thread struct signal_gate signal_gate __attribute__((tls_model("initial-exec")));
_Atomic unsigned signals_generation = 1;
int (*signals_sigaction)(int sig, const struct sigaction *act, struct sigaction *old) = sigaction;

/* What the client installed, by signal; NULL: not behind the gate.  A record is never changed or freed once published: the handler reads it. */
static const struct sigaction *_Atomic client[N_SIGNALS];
static pthread_mutex_t take_lock = PTHREAD_MUTEX_INITIALIZER;

/* Faults of instructions belong to base/fault.c or to the client at once; 32 and 33 are libc's own. */
static bool may_gate(int sig) {
  switch (sig) {
  case SIGKILL:
  case SIGSTOP:
  case SIGSEGV:
  case SIGBUS:
  case SIGILL:
  case SIGFPE:
  case SIGTRAP:
    return false;
  default:
    return sig < 32 || sig >= SIGRTMIN;
  }
}

static bool has_handler(const struct sigaction *a) { return a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN; }

/* The signal goes back to where it came from, with its siginfo; it is blocked from now on. */
static void put_back(int sig, siginfo_t *info) {
  pid_t pid = getpid();
  pid_t tid = (pid_t)syscall(SYS_gettid);
  if (syscall(SYS_rt_tgsigqueueinfo, pid, tid, sig, info)) syscall(SYS_tgkill, pid, tid, sig);
}

static void defer(int sig, siginfo_t *info, ucontext_t *uc) {
  struct signal_gate *g = &signal_gate;
  if (!g->restore) {
    g->mask = g->sleep_mask ? *g->sleep_mask : uc->uc_sigmask;
    g->restore = 1;
  }
  g->deferred = 1;
  sigaddset(&uc->uc_sigmask, sig);
  put_back(sig, info);
  if (g->poke) g->poke(g->arg);
}

/* The client has no handler: what would have happened without the gate. */
static void act_as_default(int sig, siginfo_t *info, const struct sigaction *a) {
  if (a->sa_handler == SIG_IGN) return;
  struct sigaction dfl = {.sa_handler = SIG_DFL};
  signals_sigaction(sig, &dfl, NULL);
  atomic_store(&client[sig], NULL);
  put_back(sig, info); /* delivered with the default action when the handler returns */
}

static void on_signal(int sig, siginfo_t *info, void *context) {
  int saved = errno;
  const struct sigaction *a = atomic_load(&client[sig]);
  if (signal_gate.depth) {
    defer(sig, info, context);
  } else if (a && !has_handler(a)) {
    act_as_default(sig, info, a);
  } else if (a) {
    if (a->sa_flags & SA_RESETHAND) signals_sigaction(sig, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
    if (a->sa_flags & SA_SIGINFO) a->sa_sigaction(sig, info, context);
    else a->sa_handler(sig);
  }
  errno = saved;
}

/* take_lock held. */
static void take_one(int sig, bool even_without_handler) {
  struct sigaction now;
  if (!may_gate(sig) || signals_sigaction(sig, NULL, &now)) return;
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_signal) return;
  if (!has_handler(&now) && !even_without_handler) return;
  struct sigaction *record = malloc(sizeof(*record));
  if (!record) return;
  *record = now;
  atomic_store(&client[sig], record); /* before the gate can be entered */
  struct sigaction gate = now;
  gate.sa_sigaction = on_signal;
  gate.sa_flags = (now.sa_flags & ~SA_RESETHAND) | SA_SIGINFO | (has_handler(&now) ? 0 : SA_RESTART);
  signals_sigaction(sig, &gate, NULL);
}

void signals_take(void) {
  signal_gate.seen = atomic_load(&signals_generation);
  pthread_mutex_lock(&take_lock);
  for (int sig = 1; sig < N_SIGNALS; sig++) take_one(sig, false);
  pthread_mutex_unlock(&take_lock);
}

void signals_changed(void) { atomic_fetch_add(&signals_generation, 1); }

void signals_set_mask(const sigset_t *mask) {
  struct signal_gate *g = &signal_gate;
  sigset_t old, want = *mask;
  pthread_sigmask(SIG_SETMASK, NULL, &old);
  for (int sig = 1; sig < N_SIGNALS; sig++) {
    if (!sigismember(&old, sig) || sigismember(mask, sig)) continue;
    pthread_mutex_lock(&take_lock);
    take_one(sig, true);
    pthread_mutex_unlock(&take_lock);
  }
  /* Faults on guest memory must reach base/fault.c. */
  sigdelset(&want, SIGSEGV);
  sigdelset(&want, SIGBUS);
  g->mask = old;
  g->restore = 1;
  pthread_sigmask(SIG_SETMASK, &want, NULL);
}

void signals_restore(void) {
  sigset_t mask = signal_gate.mask;
  signal_gate.restore = 0;
  signal_gate.deferred = 0;
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

void signals_after_fork(void) { pthread_mutex_init(&take_lock, NULL); }
