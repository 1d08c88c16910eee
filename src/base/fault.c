/* The SIGSEGV and SIGBUS handler behind fault guards. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>
#include "base/fault.h"
#include "base/signals.h"

__thread struct fault_guard *fault_top __attribute__((tls_model("initial-exec")));

/* What faults that are not ours go to, per signal.  Set before our handler is installed, under install_lock. */
static const struct sigaction *_Atomic previous[2];
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
/* This thread is in the previous handler: a handler that was installed over ours and calls ours in turn must not recurse. */
static __thread bool forwarding __attribute__((tls_model("initial-exec")));

static const struct sigaction *_Atomic *previous_of(int sig) { return &previous[sig == SIGBUS]; }

/* Lets the default action happen: the faulting instruction runs again after the return, or the signal is sent again. */
static void take_default(int sig, const siginfo_t *info) {
  struct sigaction dfl = {.sa_handler = SIG_DFL};
  signals_sigaction(sig, &dfl, NULL);
  if (info->si_code <= 0) raise(sig);
}

static void forward(int sig, siginfo_t *info, void *context) {
  const struct sigaction *p = atomic_load(previous_of(sig));
  if (p->sa_handler == SIG_IGN && info->si_code <= 0) return;
  if (forwarding || p->sa_handler == SIG_DFL || p->sa_handler == SIG_IGN) {
    take_default(sig, info);
    return;
  }
  forwarding = true;
  if (p->sa_flags & SA_SIGINFO)
    p->sa_sigaction(sig, info, context);
  else
    p->sa_handler(sig);
  forwarding = false;
}

/* Faults of an instruction have a positive code; BUS_MCEERR_AO is a notice about memory nobody touched. */
static bool is_synchronous(int sig, const siginfo_t *info) {
  return info->si_code > 0 && !(sig == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

/* Runs in place of the faulting instruction, on its stack. */
__attribute__((noreturn)) static void unwind(struct fault_guard *g) {
  __asm__ volatile("stmxcsr %0\n\tfninit\n\tfldcw %1\n\tldmxcsr %2" : "=m"(g->fault_mxcsr) : "m"(g->x87_control), "m"(g->mxcsr));
  _longjmp(g->env, 1);
}

/* The handler returns in the ordinary way, which gives mask and alternate stack back, but into unwind(guard). */
static void resume_in_unwind(ucontext_t *uc, struct fault_guard *g) {
  greg_t *reg = uc->uc_mcontext.gregs;
  reg[REG_RSP] = ((reg[REG_RSP] - 128) & ~15ll) - 8; /* past the red zone, aligned as after a call */
  reg[REG_RIP] = (greg_t)(uintptr_t)unwind;
  reg[REG_RDI] = (greg_t)(uintptr_t)g;
  reg[REG_EFL] &= ~0x40500ll; /* AC, DF, TF: guest flags may have been live */
}

static void on_fault(int sig, siginfo_t *info, void *context) {
  struct fault_guard *g = fault_top;
  if (g && is_synchronous(sig, info)) {
    fault_top = g->prev;
    g->addr = info->si_addr;
    g->sig = sig;
    g->code = info->si_code;
    resume_in_unwind(context, g);
    return;
  }
  int saved = errno;
  forward(sig, info, context);
  errno = saved;
}

static bool is_ours(const struct sigaction *a) { return (a->sa_flags & SA_SIGINFO) && a->sa_sigaction == on_fault; }

static void install_one(int sig) {
  struct sigaction now, ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  if (signals_sigaction(sig, NULL, &now) || is_ours(&now)) return;
  const struct sigaction *record = signals_remember(&now);
  if (!record) return;
  atomic_store(previous_of(sig), record);
  signals_sigaction(sig, &ours, NULL);
}

static int change_previous(int sig, const struct sigaction *act, struct sigaction *old) {
  struct sigaction now, was;
  if (signals_sigaction(sig, NULL, &now)) return -1;
  if (!is_ours(&now)) return signals_sigaction(sig, act, old);
  was = *atomic_load(previous_of(sig));
  const struct sigaction *record = act ? signals_remember(act) : NULL;
  if (act && !record) return -1;
  if (act) atomic_store(previous_of(sig), record);
  if (old) *old = was;
  return 0;
}

int fault_client_sigaction(int sig, const struct sigaction *act, struct sigaction *old) {
  signals_enter();
  pthread_mutex_lock(&install_lock);
  int r = change_previous(sig, act, old);
  pthread_mutex_unlock(&install_lock);
  signals_leave();
  return r;
}

void fault_install(void) {
  pthread_mutex_lock(&install_lock);
  install_one(SIGSEGV);
  install_one(SIGBUS);
  pthread_mutex_unlock(&install_lock);
}

void fault_after_fork(void) { pthread_mutex_init(&install_lock, NULL); }

/* Not memcpy: that uses vector registers, which may hold the guest's, and sanitizers look at its addresses, which are the
 * client's business. */
static inline void copy_bytes(void *dst, const void *src, size_t len) {
  __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(len) : : "memory");
}

int fault_copy(void *dst, const void *src, size_t len) {
  struct fault_guard guard;
  if (fault_try(&guard)) return -EFAULT;
  copy_bytes(dst, src, len);
  fault_end(&guard);
  return 0;
}
