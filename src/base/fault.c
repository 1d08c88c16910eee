/* The SIGSEGV and SIGBUS handler behind fault guards. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>
#include "base/fault.h"
#include "base/process.h"
#include "base/signals.h"

__thread struct fault_guard *fault_top __attribute__((tls_model("initial-exec")));

/* What faults that are not ours go to, per signal.  Set before our handler is installed, under install_lock. */
static const struct sigaction *_Atomic previous[2];
FORK_MUTEX(install_lock);
/* The signal that this thread's previous handler is at work on, by its context. */
static __thread void *forwarding __attribute__((tls_model("initial-exec")));

static const struct sigaction default_action = {.sa_handler = SIG_DFL};

static const struct sigaction *_Atomic *previous_of(int sig) {
  return &previous[sig == SIGBUS];
}

/* Lets the default action happen: the faulting instruction runs again after the return, or the signal is sent again. */
static void take_default(int sig, const siginfo_t *info) {
  signals_sigaction(sig, &default_action, NULL);
  if (info->si_code <= 0) raise(sig);
}

/* Faults of an instruction have a positive code; BUS_MCEERR_AO is a notice about memory nobody touched. */
static bool is_synchronous(int sig, const siginfo_t *info) {
  return info->si_code > 0 && !(sig == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

/* Ours runs with everything blocked: the gate must not take our mask for the client's.  A handler of the client has the mask that the kernel would have
 * given it. */
static void take_mask_of(const struct sigaction *p, int sig, const ucontext_t *uc) {
  sigset_t mask;
  sigorset(&mask, &uc->uc_sigmask, &p->sa_mask);
  sigaddset(&mask, sig);
  signals_sigmask(SIG_SETMASK, &mask, NULL);
}

static void call_previous(const struct sigaction *p, int sig, siginfo_t *info, void *context) {
  if (p->sa_flags & SA_RESETHAND) atomic_store(previous_of(sig), &default_action);
  forwarding = context;
  signals_call(p, sig, info, context);
  forwarding = NULL; /* a handler that jumps out leaves it: by_kernel tells its next call from a nested one */
}

/* by_kernel: not called by a handler that was installed over ours and calls it in turn. */
static void forward(int sig, siginfo_t *info, void *context, bool by_kernel) {
  const struct sigaction *p = atomic_load(previous_of(sig));
  bool nested = forwarding == context && !by_kernel;
  if (signals_is_hidden(sig) && !is_synchronous(sig, info)) {
    signals_put_back(sig, info, context);
  } else if (p->sa_handler == SIG_IGN && info->si_code <= 0) {
    return;
  } else if (nested || p->sa_handler == SIG_DFL || p->sa_handler == SIG_IGN || signals_is_hidden(sig)) {
    take_default(sig, info);
  } else {
    if (by_kernel) take_mask_of(p, sig, context);
    call_previous(p, sig, info, context);
  }
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

/* The kernel enters a handler with EFLAGS.AC as it was: with it set, the C library would fault in turn. */
static inline void clear_ac(void) { __asm__ volatile("pushfq\n\tandl $~0x40000, (%%rsp)\n\tpopfq" : : : "memory", "cc"); }

/* The kernel lays the context right above the return address (struct rt_sigframe); whoever else calls us has it elsewhere. */
static void on_fault(int sig, siginfo_t *info, void *context) {
  clear_ac();
  struct fault_guard *g = fault_top;
  bool by_kernel = context == (char *)__builtin_frame_address(0) + 16;
  if (g && is_synchronous(sig, info)) {
    fault_top = g->prev;
    g->addr = info->si_addr;
    g->sig = sig;
    g->code = info->si_code;
    if (g->recover) g->recover(g->arg, context);
    resume_in_unwind(context, g);
    return;
  }
  int saved = errno;
  forward(sig, info, context, by_kernel);
  errno = saved;
}

static bool has_handler(const struct sigaction *a) {
  return a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN;
}

static bool is_ours(const struct sigaction *a) {
  return (a->sa_flags & SA_SIGINFO) && a->sa_sigaction == on_fault;
}

/* Records what ours stands in front of, and installs ours: on the stack, and interrupting system calls or not, as that would.
 * install_lock held.  0, or -1 with errno. */
static int install_before(int sig, const struct sigaction *previous_action) {
  struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  sigfillset(&ours.sa_mask);
  const struct sigaction *record = signals_remember(previous_action);
  if (!record) return -1;
  ours.sa_flags |= has_handler(record) ? record->sa_flags & (SA_ONSTACK | SA_RESTART) : SA_ONSTACK;
  atomic_store(previous_of(sig), record);
  return signals_sigaction(sig, &ours, NULL);
}

static void install_one(int sig) {
  struct sigaction now;
  if (!signals_sigaction(sig, NULL, &now) && !is_ours(&now)) install_before(sig, &now);
}

void fault_seen_by_client(int sig, struct sigaction *a) {
  if (is_ours(a)) *a = *atomic_load(previous_of(sig));
}

static int change_previous(int sig, const struct sigaction *act, struct sigaction *old) {
  struct sigaction now;
  if (signals_sigaction(sig, NULL, &now)) return -1;
  if (!is_ours(&now)) return signals_sigaction(sig, act, old);
  fault_seen_by_client(sig, &now);
  if (act && install_before(sig, act)) return -1;
  if (old) *old = now;
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
