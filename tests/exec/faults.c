/* SIGSEGV and SIGBUS of the program's own: they behave as without the library, while bad addresses in requests and missing guest
 * memory are errors and no signals. */
#include <setjmp.h>
#include "client.h"

static volatile sig_atomic_t handled, on_alternate;
static sigjmp_buf out;
static char *nowhere; /* a page without access */
static char *alternate;

enum { ALTERNATE_SIZE = 65536 };

static bool is_alternate(const void *p) {
  return (char *)p >= alternate && (char *)p < alternate + ALTERNATE_SIZE;
}

static void jump_out(int sig, siginfo_t *info, void *context) {
  char here;
  handled += info->si_addr == nowhere && sig == SIGSEGV;
  on_alternate = is_alternate(&here);
  siglongjmp(out, 1);
}

/* Opens the page: the instruction runs again. */
static void repair(int sig, siginfo_t *info, void *context) {
  handled++;
  mprotect(nowhere, 4096, PROT_READ | PROT_WRITE);
}

static void just_count(int sig) {
  handled++;
}

static void touch(void) {
  *(volatile char *)nowhere = 1;
}

static void fault_with(int flags, void (*fn)(int, siginfo_t *, void *)) {
  struct sigaction act = {.sa_sigaction = fn, .sa_flags = SA_SIGINFO | flags};
  CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
  handled = 0;
  if (!sigsetjmp(out, 1)) touch();
  CHECK(handled == 1);
}

static void handlers(void) {
  stack_t ss = {.ss_sp = alternate, .ss_size = ALTERNATE_SIZE}, now;
  for (int i = 0; i < 3; i++) fault_with(0, jump_out); /* again and again */
  CHECK(sigaltstack(&ss, NULL) == 0);
  fault_with(0, jump_out);
  CHECK(!on_alternate);
  for (int i = 0; i < 3; i++) {
    fault_with(SA_ONSTACK, jump_out);
    CHECK(on_alternate);
  }
  CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == alternate && !(now.ss_flags & SS_ONSTACK));
  fault_with(0, repair);
  CHECK(mprotect(nowhere, 4096, PROT_NONE) == 0);
  CHECK(signal(SIGSEGV, just_count) != SIG_ERR);
  handled = 0;
  CHECK(raise(SIGSEGV) == 0 && handled == 1);
}

/* The mask in a handler, and after it. */
static volatile sig_atomic_t blocked_inside;
static void look_at_mask(int sig, siginfo_t *info, void *context) {
  sigset_t now;
  sigprocmask(SIG_BLOCK, NULL, &now);
  blocked_inside = sigismember(&now, SIGUSR1) && sigismember(&now, SIGSEGV) && !sigismember(&now, SIGUSR2);
  repair(sig, info, context);
}

static void handler_mask(void) {
  struct sigaction act = {.sa_sigaction = look_at_mask, .sa_flags = SA_SIGINFO};
  sigset_t now;
  sigaddset(&act.sa_mask, SIGUSR1);
  CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
  touch();
  CHECK(blocked_inside);
  CHECK(sigprocmask(SIG_BLOCK, NULL, &now) == 0 && !sigismember(&now, SIGUSR1) && !sigismember(&now, SIGSEGV));
  CHECK(mprotect(nowhere, 4096, PROT_NONE) == 0);
}

/* ---- ways to die ---- */

static void by_default(void *arg) {
  signal(SIGSEGV, SIG_DFL);
  touch();
}

static void ignored(void *arg) {
  signal(SIGSEGV, SIG_IGN);
  raise(SIGSEGV); /* this one is ignored */
  touch();
}

static void return_only(int sig) {
  signal(SIGSEGV, SIG_DFL);
}
static void once(void *arg) {
  signal(SIGSEGV, return_only);
  touch();
}

static void reset_hand(void *arg) {
  struct sigaction act = {.sa_handler = just_count, .sa_flags = (int)SA_RESETHAND}, now;
  sigaction(SIGSEGV, &act, NULL);
  raise(SIGSEGV);
  sigaction(SIGSEGV, NULL, &now);
  if (now.sa_handler == SIG_DFL) touch();
}

static void fault_again(int sig) {
  touch();
}
static void in_handler(void *arg) {
  signal(SIGSEGV, fault_again);
  touch();
}

static void while_blocked(void *arg) {
  sigset_t set;
  signal(SIGSEGV, just_count);
  sigfillset(&set);
  sigprocmask(SIG_SETMASK, &set, NULL);
  touch();
}

static void from_outside(void *arg) {
  signal(SIGSEGV, SIG_DFL);
  kill(getpid(), SIGSEGV);
}

static void bus(void *arg) {
  signal(SIGBUS, SIG_DFL);
  char *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, memfd_create("empty", 0), 0);
  *(volatile char *)p;
}

static void deaths(void) {
  void (*const ways[])(void *) = {by_default, ignored, once, reset_hand, in_handler, while_blocked, from_outside};
  for (int i = 0; i < 7; i++) {
    int code = in_child(ways[i], NULL);
    if (code != 128 + SIGSEGV) fprintf(stderr, "way %d ends with %d\n", i, code);
    CHECK(code == 128 + SIGSEGV);
  }
  CHECK(in_child(bus, NULL) == 128 + SIGBUS);
}

/* ---- blocked in the program's eyes ---- */

static void masks(void) {
  sigset_t set, old, now;
  sigemptyset(&set);
  sigaddset(&set, SIGSEGV);
  sigaddset(&set, SIGBUS);
  sigaddset(&set, SIGUSR1);
  CHECK(pthread_sigmask(SIG_BLOCK, &set, &old) == 0 && !sigismember(&old, SIGSEGV));
  CHECK(sigprocmask(SIG_BLOCK, NULL, &now) == 0);
  CHECK(sigismember(&now, SIGSEGV) && sigismember(&now, SIGBUS) && sigismember(&now, SIGUSR1));
  sigemptyset(&set);
  sigaddset(&set, SIGBUS);
  CHECK(pthread_sigmask(SIG_UNBLOCK, &set, &now) == 0 && sigismember(&now, SIGBUS));
  CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGSEGV) && !sigismember(&now, SIGBUS));
  /* One from outside waits. */
  CHECK(signal(SIGSEGV, just_count) != SIG_ERR);
  handled = 0;
  CHECK(raise(SIGSEGV) == 0 && handled == 0);
  CHECK(sigpending(&now) == 0 && sigismember(&now, SIGSEGV));
  CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
  CHECK(handled == 1);
  CHECK_ERRNO(sigprocmask(17, &set, NULL), EINVAL);
}

/* ---- what is no signal ---- */

static void bad_addresses(const struct machine *m) {
  handled = 0;
  CHECK(signal(SIGSEGV, just_count) != SIG_ERR && signal(SIGBUS, just_count) != SIG_ERR);
  CHECK_ERRNO(ioctl(m->vcpu, KVM_GET_REGS, NULL), EFAULT);
  CHECK_ERRNO(ioctl(m->vcpu, KVM_SET_REGS, nowhere), EFAULT);
  CHECK_ERRNO(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, (void *)16), EFAULT);
  char *cut = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_create("cut", 0), 0);
  CHECK_ERRNO(ioctl(m->vcpu, KVM_GET_SREGS, cut), EFAULT);
  CHECK(handled == 0);
}

static void *all_blocked(void *arg) {
  sigset_t set, now;
  sigfillset(&set);
  CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
  bad_addresses(arg);
  CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGSEGV) && sigismember(&now, SIGBUS));
  return NULL;
}

/* Started, and its mask set, before the library had work. */
static pthread_barrier_t ready;
static struct machine *shared;

static void *blocked_early(void *arg) {
  sigset_t set;
  sigfillset(&set);
  CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
  pthread_barrier_wait(&ready); /* the other opens the node between these two */
  pthread_barrier_wait(&ready);
  bad_addresses(shared);
  CHECK(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0 && sigismember(&set, SIGSEGV));
  return NULL;
}

static void missing_memory(struct machine *m) {
  handled = 0;
  start_at_code(m);
  CHECK(mprotect(m->ram, RAM_SIZE, PROT_NONE) == 0);
  CHECK_ERRNO(ioctl(m->vcpu, KVM_RUN, 0), EFAULT);
  CHECK(mprotect(m->ram, RAM_SIZE, PROT_READ | PROT_WRITE) == 0);
  CHECK(runs_to_halt(m) && handled == 0);
}

int main(void) {
  pthread_t early, late;
  nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  alternate = malloc(ALTERNATE_SIZE);
  fault_with(0, jump_out); /* from before the library's own */
  pthread_barrier_init(&ready, NULL, 2);
  CHECK(pthread_create(&early, NULL, blocked_early, NULL) == 0);
  pthread_barrier_wait(&ready);
  struct machine m = MACHINE(halt_code);
  shared = &m;
  CHECK(runs_to_halt(&m));
  pthread_barrier_wait(&ready);
  CHECK(pthread_join(early, NULL) == 0);
  fault_with(0, jump_out);
  handlers();
  handler_mask();
  deaths();
  masks();
  bad_addresses(&m);
  CHECK(pthread_create(&late, NULL, all_blocked, &m) == 0);
  CHECK(pthread_join(late, NULL) == 0);
  missing_memory(&m);
  return 0;
}
