/* Signals that arrive while a vCPU runs: KVM_RUN ends with EINTR and the program's handler runs, masks and immediate_exit count.
 */
#include <sys/signalfd.h>
#include <sys/time.h>
#include "client.h"

static volatile sig_atomic_t handled, handled_here;
static pthread_t vcpu_thread;

static void on_signal(int sig) {
  handled++;
  handled_here += pthread_equal(pthread_self(), vcpu_thread);
}

static void on_info(int sig, siginfo_t *info, void *context) {
  handled++;
  handled_here += info->si_code == SI_QUEUE && info->si_value.sival_int == 4711 && context;
}

/* ---- a thread that sends signals to this one ---- */

/* inc word [0x2000]; jmp back: that it runs can be seen. */
static const uint8_t count_code[] = {0xff, 0x06, 0x00, 0x20, 0xeb, 0xfa};

static uint16_t rounds(const struct machine *m) {
  return __atomic_load_n((uint16_t *)(void *)(m->ram + 0x2000), __ATOMIC_RELAXED);
}

struct sender {
  pthread_t thread, to;
  unsigned delay_ms;
  int sig;
  struct kvm_run *immediate; /* set before the signal */
  const struct machine *in;  /* in whose KVM_RUN it arrives: the delay begins when the guest runs or is halted */
  bool halts;
  int stats;
  uint16_t before;
};

/* Its statistics; they have to be opened while the vCPU does not run. */
static int open_stats(const struct machine *m) {
  int fd = ioctl(m->vcpu, KVM_GET_STATS_FD, 0);
  CHECK(fd >= 0);
  return fd;
}

static bool is_halted(int stats) {
  struct {
    struct kvm_stats_desc desc;
    char name[48];
  } d = {.name = ""};
  struct kvm_stats_header h;
  uint64_t blocking = 0;
  CHECK(pread(stats, &h, sizeof(h), 0) == sizeof(h));
  for (unsigned n = 0; n < h.num_desc && strcmp(d.name, "blocking"); n++)
    CHECK(pread(stats, &d, sizeof(d), h.desc_offset + n * sizeof(d)) == sizeof(d));
  CHECK(pread(stats, &blocking, 8, h.data_offset + d.desc.offset) == 8);
  return blocking;
}

static void wait_for_guest(const struct sender *s) {
  if (s->halts)
    while (!is_halted(s->stats)) sleep_ms(1);
  else
    while (rounds(s->in) == s->before) sched_yield();
}

static void *send_later(void *arg) {
  struct sender *s = arg;
  if (s->in) wait_for_guest(s);
  sleep_ms(s->delay_ms);
  if (s->immediate) __atomic_store_n(&s->immediate->immediate_exit, 1, __ATOMIC_SEQ_CST);
  if (s->sig == SIGRTMIN)
    CHECK(pthread_sigqueue(s->to, s->sig, (union sigval){.sival_int = 4711}) == 0);
  else if (s->sig)
    CHECK(pthread_kill(s->to, s->sig) == 0);
  return NULL;
}

static void start(struct sender *s) {
  s->to = pthread_self();
  if (s->in) s->before = rounds(s->in);
  if (s->halts) s->stats = open_stats(s->in);
  CHECK(pthread_create(&s->thread, NULL, send_later, s) == 0);
}

static void finish(struct sender *s) {
  CHECK(pthread_join(s->thread, NULL) == 0);
  if (s->halts) close(s->stats);
}

static void is_interrupted(struct machine *m) {
  m->run->exit_reason = 77;
  CHECK_ERRNO(ioctl(m->vcpu, KVM_RUN, 0), EINTR);
  CHECK(m->run->exit_reason == KVM_EXIT_INTR);
}

static void reset(void) {
  handled = handled_here = 0;
  vcpu_thread = pthread_self();
}

static void handlers(struct machine *m) {
  const int flags[] = {0, SA_RESTART, SA_NODEFER, SA_ONSTACK};
  for (int i = 0; i < 4; i++) {
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = flags[i]};
    struct sender s = {.delay_ms = 20, .sig = SIGUSR1, .in = m};
    reset();
    CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
    start(&s);
    is_interrupted(m);
    finish(&s);
    CHECK(handled == 1 && handled_here == 1);
  }
  struct sigaction info = {.sa_sigaction = on_info, .sa_flags = SA_SIGINFO};
  struct sender s = {.delay_ms = 20, .sig = SIGRTMIN, .in = m};
  reset();
  CHECK(sigaction(SIGRTMIN, &info, NULL) == 0);
  start(&s);
  is_interrupted(m);
  finish(&s);
  CHECK(handled == 1 && handled_here == 1);
}

/* The handler goes from one act to another while the vCPU runs. */
static void *install_and_send(void *arg) {
  wait_for_guest(arg);
  CHECK(signal(SIGUSR2, on_signal) == SIG_DFL);
  return send_later(arg);
}

static void installed_meanwhile(struct machine *m) {
  struct sender s = {.to = pthread_self(), .sig = SIGUSR2, .in = m, .before = rounds(m)};
  reset();
  CHECK(pthread_create(&s.thread, NULL, install_and_send, &s) == 0);
  is_interrupted(m);
  finish(&s);
  CHECK(handled == 1);
  CHECK(signal(SIGUSR2, SIG_DFL) == on_signal);
}

/* What has no handler, is ignored or is blocked interrupts nothing. */
static void not_interrupted(struct machine *m) {
  struct sender chld = {.delay_ms = 5, .sig = SIGCHLD, .in = m}, usr2 = {.delay_ms = 10, .sig = SIGUSR2, .in = m},
                usr1 = {.delay_ms = 40, .sig = SIGUSR1, .in = m};
  sigset_t set, pending;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
  CHECK(signal(SIGUSR2, on_signal) == SIG_DFL);
  reset();
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  start(&chld), start(&usr2), start(&usr1);
  is_interrupted(m);
  clock_gettime(CLOCK_MONOTONIC, &b);
  CHECK((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 >= 30);
  finish(&chld), finish(&usr2), finish(&usr1);
  CHECK(handled == 1);
  CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR2));
  CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
  CHECK(handled == 2);
  CHECK(signal(SIGUSR2, SIG_DFL) == on_signal);
}

/* KVM_SET_SIGNAL_MASK: the signal ends KVM_RUN, no handler runs, it stays pending for sigtimedwait. */
static void signal_mask(struct machine *m) {
  char room[sizeof(struct kvm_signal_mask) + 8];
  struct kvm_signal_mask *mask = (void *)room;
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  CHECK(pthread_sigmask(SIG_BLOCK, &set, &old) == 0 && !sigismember(&old, SIGUSR1));
  mask->len = 8;
  memcpy(mask->sigset, &old, 8);
  CHECK(ioctl(m->vcpu, KVM_SET_SIGNAL_MASK, mask) == 0);
  for (int i = 0; i < 3; i++) {
    struct sender s = {.delay_ms = i ? 10 : 0, .sig = SIGUSR1, .in = i ? m : NULL};
    siginfo_t info;
    reset();
    start(&s);
    if (i == 0) finish(&s); /* pending already */
    is_interrupted(m);
    if (i) finish(&s);
    CHECK(handled == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &old) == 0 && sigismember(&old, SIGUSR1));
    CHECK(sigtimedwait(&set, &info, &(struct timespec){0}) == SIGUSR1);
  }
  CHECK(ioctl(m->vcpu, KVM_SET_SIGNAL_MASK, NULL) == 0);
  CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
}

static void immediate_exit(struct machine *m) {
  reset();
  m->run->immediate_exit = 1;
  for (int i = 0; i < 2; i++) {
    m->run->exit_reason = 77;
    CHECK_ERRNO(ioctl(m->vcpu, KVM_RUN, 0), EINTR);
    CHECK(m->run->exit_reason == 77); /* nothing was begun, so nothing is reported */
  }
  m->run->immediate_exit = 0;
  struct sender s = {.delay_ms = 10, .sig = SIGUSR1, .immediate = m->run, .in = m};
  start(&s);
  is_interrupted(m);
  finish(&s);
  CHECK(m->run->immediate_exit == 1 && handled == 1);
  m->run->immediate_exit = 0;
}

/* A timer's signals at any point of running and handling; the handler itself calls into the library. */
static struct machine *in_handler;
static volatile sig_atomic_t failed;

static void use_kvm(int sig) {
  struct kvm_regs regs;
  handled++;
  if (ioctl(in_handler->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION || ioctl(in_handler->vcpu, KVM_GET_REGS, &regs) != 0 ||
      (regs.rip != CODE && regs.rip != CODE + 4))
    failed++;
}

static void storm(struct machine *m) {
  struct sigaction act = {.sa_handler = use_kvm, .sa_flags = SA_RESTART};
  struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
  unsigned ends = 0;
  in_handler = m;
  reset();
  CHECK(sigaction(SIGALRM, &act, NULL) == 0);
  CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
  for (ends = 0; ends < 500; ends++) is_interrupted(m);
  CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
  CHECK(handled >= 500 && failed == 0);
  CHECK(signal(SIGALRM, SIG_DFL) == use_kvm);
}

/* A halted vCPU with its own interrupt controller sleeps in KVM_RUN: signals end that too. */
static void halted(void) {
  struct machine m = {.kvm = open_kvm()};
  m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
  CHECK(ioctl(m.vm, KVM_CREATE_IRQCHIP, 0) == 0);
  m.ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(m.ram + CODE, halt_code, sizeof(halt_code));
  struct kvm_userspace_memory_region region = {.memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)m.ram};
  CHECK(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
  m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0);
  m.run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
  start_at_code(&m);
  for (int i = 0; i < 5; i++) {
    struct sender s = {.delay_ms = 5, .sig = SIGUSR1, .in = &m, .halts = true};
    reset();
    start(&s);
    is_interrupted(&m);
    finish(&s);
    CHECK(handled == 1);
  }
}

/* ---- what the program is told of its handlers ---- */

static bool same(const struct sigaction *a, const struct sigaction *b) {
  return a->sa_handler == b->sa_handler && (a->sa_flags & ~0x04000000) == (b->sa_flags & ~0x04000000) && /* SA_RESTORER */
         !memcmp(&a->sa_mask, &b->sa_mask, 8);
}

static void told(void) {
  const int sigs[] = {SIGUSR1, SIGSEGV, SIGBUS, SIGFPE, SIGTERM, SIGCHLD, SIGRTMAX};
  for (int i = 0; i < 7; i++) {
    struct sigaction first = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_NODEFER}, old;
    struct sigaction second = {.sa_sigaction = on_info, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND};
    sigaddset(&first.sa_mask, SIGHUP);
    sigaddset(&second.sa_mask, SIGINT);
    CHECK(sigaction(sigs[i], &first, NULL) == 0);
    CHECK(sigaction(sigs[i], NULL, &old) == 0 && same(&old, &first));
    CHECK(sigaction(sigs[i], &second, &old) == 0 && same(&old, &first));
    CHECK(sigaction(sigs[i], NULL, &old) == 0 && same(&old, &second));
    CHECK(signal(sigs[i], SIG_IGN) == (sighandler_t)(void *)on_info);
    CHECK(signal(sigs[i], SIG_DFL) == SIG_IGN);
    CHECK(signal(sigs[i], on_signal) == SIG_DFL);
    CHECK(sigaction(sigs[i], NULL, &old) == 0 && old.sa_handler == on_signal && (old.sa_flags & SA_RESTART));
    CHECK(siginterrupt(sigs[i], 1) == 0);
    CHECK(sigaction(sigs[i], NULL, &old) == 0 && old.sa_handler == on_signal && !(old.sa_flags & SA_RESTART));
    CHECK(siginterrupt(sigs[i], 0) == 0);
    CHECK(signal(sigs[i], SIG_DFL) == on_signal);
  }
  CHECK_ERRNO(sigaction(SIGKILL, &(struct sigaction){.sa_handler = on_signal}, NULL), EINVAL);
  CHECK_ERRNO(sigaction(0, NULL, &(struct sigaction){0}), EINVAL);
  CHECK(signal(70, SIG_DFL) == SIG_ERR && errno == EINVAL);
}

static void waited_for(struct machine *m) {
  struct sender s = {.delay_ms = 10, .sig = SIGUSR2};
  struct signalfd_siginfo got;
  sigset_t set;
  int sig;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
  start(&s);
  CHECK(sigwait(&set, &sig) == 0 && sig == SIGUSR2);
  finish(&s);
  int fd = signalfd(-1, &set, 0);
  start(&s);
  CHECK(read(fd, &got, sizeof(got)) == sizeof(got) && got.ssi_signo == SIGUSR2);
  finish(&s);
  close(fd);
  CHECK(sigprocmask(SIG_UNBLOCK, &set, NULL) == 0);
}

static void *run_on_thread(void *arg) {
  struct machine *m = arg;
  vcpu_thread = pthread_self();
  is_interrupted(m);
  return NULL;
}

/* A handler from before the library had work, on a thread of its own. */
static void early_handler(void) {
  struct machine m = MACHINE(count_code);
  pthread_t t;
  reset();
  CHECK(pthread_create(&t, NULL, run_on_thread, &m) == 0);
  while (!rounds(&m)) sched_yield();
  CHECK(pthread_kill(t, SIGHUP) == 0);
  CHECK(pthread_join(t, NULL) == 0);
  CHECK(handled == 1 && handled_here == 1);
}

int main(void) {
  CHECK(signal(SIGHUP, on_signal) == SIG_DFL);
  early_handler();
  struct machine m = MACHINE(count_code);
  handlers(&m);
  installed_meanwhile(&m);
  not_interrupted(&m);
  signal_mask(&m);
  immediate_exit(&m);
  storm(&m);
  halted();
  waited_for(&m);
  told();
  return 0;
}
