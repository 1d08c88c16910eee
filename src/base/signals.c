/* The gate in front of the client's signal handlers. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/fault.h"
#include "base/process.h"
#include "base/signals.h"

#define N_SIGNALS 65

__thread struct signal_gate signal_gate __attribute__((tls_model("initial-exec")));
_Atomic unsigned signals_generation = 1;
int (*signals_sigaction)(int sig, const struct sigaction *act, struct sigaction *old) = sigaction;
int (*signals_sigmask)(int how, const sigset_t *set, sigset_t *old) = pthread_sigmask;

/* What the client installed.  A record is never changed or freed: handlers read it without a lock. */
struct record {
  struct sigaction action;
  struct record *next;
};

static const struct sigaction *_Atomic client[N_SIGNALS]; /* by signal; NULL: not behind the gate */
static struct record *_Atomic records;                    /* all there ever were, each kind once; grows at the head */
FORK_MUTEX(take_lock);

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

/* Which of the two fault signals, as in signal_gate.hidden. */
static unsigned fault_bit(int sig) {
  return sig == SIGSEGV ? 1 : sig == SIGBUS ? 2 : 0;
}
static unsigned fault_bits(const sigset_t *set) {
  return (unsigned)(sigismember(set, SIGSEGV) == 1) | (unsigned)(sigismember(set, SIGBUS) == 1) << 1;
}

bool signals_is_hidden(int sig) {
  return signal_gate.hidden & fault_bit(sig);
}

static bool has_handler(const struct sigaction *a) {
  return a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN;
}

/* The signal goes back to where it came from, with its siginfo. */
static void queue_again(int sig, siginfo_t *info) {
  pid_t pid = getpid();
  pid_t tid = (pid_t)syscall(SYS_gettid);
  if (syscall(SYS_rt_tgsigqueueinfo, pid, tid, sig, info)) syscall(SYS_tgkill, pid, tid, sig);
}

#ifdef __SANITIZE_THREAD__
/* The thread sanitizer calls handlers from within libc's functions and drops what they do to the interrupted mask: a signal that
 * is put back would come again, and again.  It is kept here until the way out. */
static __thread struct {
  siginfo_t info[16];
  unsigned n;
} held __attribute__((tls_model("initial-exec")));

static bool hold(int sig, const siginfo_t *info) {
  for (unsigned n = 0; n < held.n && sig < SIGRTMIN; n++)
    if (held.info[n].si_signo == sig) return true; /* pending once */
  if (!signal_gate.depth || held.n == 16) return false;
  held.info[held.n++] = *info;
  return true;
}
static void let_go(void) {
  siginfo_t info[16];
  unsigned n = held.n;
  memcpy(info, held.info, n * sizeof(info[0]));
  held.n = 0;
  for (unsigned k = 0; k < n; k++) queue_again(info[k].si_signo, &info[k]);
}
#else
static inline bool hold(int sig, const siginfo_t *info) {
  return false;
}
static inline void let_go(void) {}
#endif

void signals_put_back(int sig, siginfo_t *info, ucontext_t *uc) {
  sigaddset(&uc->uc_sigmask, sig);
  signal_gate.hidden &= ~fault_bit(sig);
  if (!hold(sig, info)) queue_again(sig, info);
}

static void defer(int sig, siginfo_t *info, ucontext_t *uc) {
  struct signal_gate *g = &signal_gate;
  if (!g->restore) {
    g->mask = g->sleep_mask ? *g->sleep_mask : uc->uc_sigmask;
    g->restore = 1;
  }
  g->deferred = 1;
  signals_put_back(sig, info, uc);
  if (g->poke) g->poke(g->arg);
}

/* The client has no handler: what would have happened without the gate. */
static void act_as_default(int sig, siginfo_t *info, const struct sigaction *a) {
  if (a->sa_handler == SIG_IGN) return;
  struct sigaction dfl = {.sa_handler = SIG_DFL};
  signals_sigaction(sig, &dfl, NULL);
  atomic_store(&client[sig], NULL);
  queue_again(sig, info); /* delivered with the default action when the handler returns */
}

void signals_call(const struct sigaction *a, int sig, siginfo_t *info, void *context) {
  if ((a->sa_flags & SA_NODEFER) && !sigismember(&a->sa_mask, sig)) {
    sigset_t itself;
    sigemptyset(&itself);
    sigaddset(&itself, sig);
    signals_sigmask(SIG_UNBLOCK, &itself, NULL);
  }
  if (a->sa_flags & SA_SIGINFO)
    a->sa_sigaction(sig, info, context);
  else
    a->sa_handler(sig);
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
    signals_call(a, sig, info, context);
  }
  errno = saved;
}

static bool same_action(const struct sigaction *a, const struct sigaction *b) {
  return a->sa_sigaction == b->sa_sigaction && a->sa_flags == b->sa_flags &&
         !memcmp(&a->sa_mask, &b->sa_mask, sizeof(a->sa_mask));
}

const struct sigaction *signals_remember(const struct sigaction *a) {
  struct record *head = atomic_load(&records);
  for (struct record *r = head; r; r = r->next)
    if (same_action(&r->action, a)) return &r->action;
  struct record *r = malloc(sizeof(*r));
  if (!r) return NULL;
  r->action = *a;
  do r->next = head;
  while (!atomic_compare_exchange_weak(&records, &head, r));
  return &r->action;
}

static bool is_gate(const struct sigaction *a) {
  return (a->sa_flags & SA_SIGINFO) && a->sa_sigaction == on_signal;
}

/* take_lock held.  0, or -1 with errno. */
static int install_gate(int sig, const struct sigaction *a) {
  const struct sigaction *record = signals_remember(a);
  if (!record) return -1;             /* errno is malloc's */
  atomic_store(&client[sig], record); /* before the gate can be entered */
  struct sigaction gate = *a;
  gate.sa_sigaction = on_signal;
  /* Blocked inside the gate: a signal that is put back must not come again before the gate returns. */
  gate.sa_flags = (a->sa_flags & ~(SA_RESETHAND | SA_NODEFER)) | SA_SIGINFO | (has_handler(a) ? 0 : SA_RESTART);
  return signals_sigaction(sig, &gate, NULL);
}

/* take_lock held. */
static void take_one(int sig, bool even_without_handler) {
  struct sigaction now;
  if (!may_gate(sig) || signals_sigaction(sig, NULL, &now) || is_gate(&now)) return;
  if (has_handler(&now) || even_without_handler) install_gate(sig, &now);
}

void signals_seen_by_client(int sig, struct sigaction *a) {
  fault_seen_by_client(sig, a);
  const struct sigaction *behind = is_gate(a) ? atomic_load(&client[sig]) : NULL;
  if (behind) *a = *behind;
}

/* take_lock held. */
static int client_sigaction(int sig, const struct sigaction *act, struct sigaction *old) {
  struct sigaction now;
  if (signals_sigaction(sig, NULL, &now)) return -1;
  signals_seen_by_client(sig, &now);
  int r = 0;
  if (act && has_handler(act))
    r = install_gate(sig, act);
  else if (act)
    r = signals_sigaction(sig, act, NULL);
  if (!r && old) *old = now;
  return r;
}

int signals_client_sigaction(int sig, const struct sigaction *act, struct sigaction *old) {
  if (sig == SIGSEGV || sig == SIGBUS) return fault_client_sigaction(sig, act, old);
  if (sig <= 0 || sig >= N_SIGNALS || !may_gate(sig)) return signals_sigaction(sig, act, old);
  signals_enter(); /* a handler that interrupted us here and called sigaction would wait for our lock */
  pthread_mutex_lock(&take_lock);
  int r = client_sigaction(sig, act, old);
  pthread_mutex_unlock(&take_lock);
  signals_leave();
  return r;
}

/* ---- masks ---- */

static void remove_faults(sigset_t *set) {
  sigdelset(set, SIGSEGV);
  sigdelset(set, SIGBUS);
}

static void add_hidden(sigset_t *set, unsigned hidden) {
  if (hidden & fault_bit(SIGSEGV)) sigaddset(set, SIGSEGV);
  if (hidden & fault_bit(SIGBUS)) sigaddset(set, SIGBUS);
}

int signals_client_mask(int how, const sigset_t *set, sigset_t *old) {
  unsigned was = signal_gate.hidden, hidden = was, named = set ? fault_bits(set) : 0;
  sigset_t rest;
  if (set) {
    rest = *set;
    if (how != SIG_UNBLOCK) remove_faults(&rest);
    hidden = how == SIG_BLOCK ? was | named : how == SIG_UNBLOCK ? was & ~named : named;
  }
  int err = signals_sigmask(how, set ? &rest : NULL, old);
  if (err) return err;
  signal_gate.hidden = hidden;
  if (old) add_hidden(old, was);
  return 0;
}

void signals_hide_faults(void) {
  sigset_t faults, mask;
  sigemptyset(&faults);
  sigaddset(&faults, SIGSEGV);
  sigaddset(&faults, SIGBUS);
  if (!signals_sigmask(SIG_UNBLOCK, &faults, &mask)) signal_gate.hidden |= fault_bits(&mask);
}

void signals_take(void) {
  signal_gate.seen = atomic_load(&signals_generation);
  pthread_mutex_lock(&take_lock);
  for (int sig = 1; sig < N_SIGNALS; sig++) take_one(sig, false);
  pthread_mutex_unlock(&take_lock);
}

void signals_changed(void) {
  atomic_fetch_add(&signals_generation, 1);
}

void signals_set_mask(const sigset_t *mask) {
  struct signal_gate *g = &signal_gate;
  sigset_t old, want = *mask;
  signals_sigmask(SIG_SETMASK, NULL, &old);
  for (int sig = 1; sig < N_SIGNALS; sig++) {
    if (!sigismember(&old, sig) || sigismember(mask, sig)) continue;
    pthread_mutex_lock(&take_lock);
    take_one(sig, true);
    pthread_mutex_unlock(&take_lock);
  }
  /* Faults on guest memory must reach base/fault.c. */
  remove_faults(&want);
  if (!g->restore) g->mask = old; /* otherwise a signal was put back since the way in, and `old` blocks it */
  g->restore = 1;
  signals_sigmask(SIG_SETMASK, &want, NULL);
}

void signals_restore(void) {
  sigset_t mask = signal_gate.mask;
  signal_gate.restore = 0;
  signal_gate.deferred = 0;
  signals_sigmask(SIG_SETMASK, &mask, NULL);
  let_go();
}
