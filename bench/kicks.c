/* How late things come to a vCPU, from outside and from inside: signals that end KVM_RUN, interrupts for a halted and for a
 * running vCPU, interrupts between two vCPUs, the local APIC's timer.  In both engines where that makes a difference.
 *
 * usage: kicks [NAME...]   (kick-native, kick-loop, kick-loop-immediate, kick-string, interrupt-running, ...)
 * Prints "BENCH name-p50 ns", -p99 and -max.  With UVIRT_TEST_HOST_KVM=1 the same program measures the kernel's KVM.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include "guest/lapic.h"

enum { SAMPLES = 2000, MAX_SAMPLES = 20000 };

static u64 now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

static void wait_until(u64 t) {
  while (now() < t) relax();
}

/* ---- results ---- */

static u64 took[MAX_SAMPLES];

static int compare(const void *a, const void *b) {
  u64 x = *(const u64 *)a, y = *(const u64 *)b;
  return x < y ? -1 : x > y;
}

static void print(const char *name, unsigned n) {
  qsort(took, n, sizeof(took[0]), compare);
  printf("BENCH %s-p50 %llu\nBENCH %s-p99 %llu\nBENCH %s-max %llu\n", name, (unsigned long long)took[n / 2], name,
         (unsigned long long)took[n * 99 / 100], name, (unsigned long long)took[n - 1]);
  fflush(stdout);
}

/* What the guest measured, in ticks of its TSC. */
static volatile u64 ticks[MAX_SAMPLES];
static void print_ticks(const char *name, unsigned n) {
  for (unsigned k = 0; k < n; k++) took[k] = ticks[k] * 1000000 / ticks_per_ms;
  print(name, n);
}

/* ---- a signal ends KVM_RUN ---- */

static atomic_bool came, spinning, stop_spinning;
static _Atomic u64 arrived; /* when the spinning ended; 0: it spins */
static struct guest *spinner_guest;

static void on_signal(int sig) {
  atomic_store(&came, true);
}

static void spin_here(void) {
  while (!atomic_load_explicit(&came, memory_order_relaxed)) relax();
}
static void spin_in_guest(void) {
  if (guest_ioctl(spinner_guest->vcpu, KVM_RUN, NULL) == -1 && errno == EINTR) return;
  perror("KVM_RUN");
  exit(1);
}

static void *spinner(void *arg) {
  void (*spin)(void) = (void (*)(void))(uintptr_t)arg;
  while (!atomic_load(&stop_spinning)) {
    atomic_store(&came, false);
    if (spinner_guest) spinner_guest->run->immediate_exit = 0;
    atomic_store(&spinning, true);
    spin();
    u64 t = now();
    atomic_store(&spinning, false);
    atomic_store(&arrived, t);
    while (atomic_load(&arrived) && !atomic_load(&stop_spinning)) relax();
  }
  return NULL;
}

static void kicks(const char *name, void (*spin)(void), bool immediate) {
  pthread_t thread;
  atomic_store(&stop_spinning, false);
  atomic_store(&arrived, 0);
  if (pthread_create(&thread, NULL, spinner, (void *)(uintptr_t)spin)) exit(1);
  for (unsigned n = 0; n < SAMPLES; n++) {
    while (!atomic_load(&spinning)) relax();
    wait_until(now() + 20000 + (u64)rand() % 80000); /* well inside the guest */
    u64 t = now();
    if (immediate) spinner_guest->run->immediate_exit = 1;
    pthread_kill(thread, SIGUSR1);
    while (!atomic_load(&arrived)) relax();
    took[n] = atomic_load(&arrived) - t;
    if (n == SAMPLES - 1) atomic_store(&stop_spinning, true);
    atomic_store(&arrived, 0);
  }
  pthread_join(thread, NULL);
  print(name, SAMPLES);
}

static volatile u64 counter;
static u8 from[1 << 20], to[1 << 20];

static void guest_loop(void) {
  for (;;) counter = counter + 1;
}
static void guest_string(void) {
  for (;;) {
    void *d = to, *s = from;
    u64 n = sizeof(to);
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
  }
}

/* An engine may be chosen for each VM. */
static void choose_engine(bool interpreter) {
  interpreter ? setenv("UVIRT_ENGINE", "interpreter", 1) : unsetenv("UVIRT_ENGINE");
}
static const char *named(const char *what, bool interpreter) {
  static char name[64];
  snprintf(name, sizeof(name), "%s-%s", what, interpreter ? "interpreted" : "translated");
  return name;
}

static void kick_guest(const char *name, void (*f)(void), bool interpreter, bool immediate) {
  choose_engine(interpreter);
  spinner_guest = start_function(f);
  kicks(named(name, interpreter), spin_in_guest, immediate);
  guest_free(spinner_guest);
  spinner_guest = NULL;
}

/* ---- interrupts from outside ---- */

static volatile u64 taken;
static volatile bool go_to_sleep, end;

HANDLER take_interrupt(struct frame *f) {
  taken = taken + 1;
  eoi();
}

static void guest_takes(void) {
  apic_on();
  pic_off();
  taken = 1;
  if (go_to_sleep)
    while (!end) halt_once();
  sti();
  while (!end) counter = counter + 1;
  done();
}

static void *run_to_end(void *arg) {
  return (void *)(uintptr_t)guest_next(arg);
}

/* From KVM_SIGNAL_MSI to a store of the guest's handler. */
static void interrupts(const char *name, bool halted, bool interpreter) {
  pthread_t thread;
  struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x50};
  choose_engine(interpreter);
  go_to_sleep = halted, end = false, taken = 0;
  struct guest *g = start_function(guest_takes);
  HANDLE(g, 0x50, take_interrupt);
  if (pthread_create(&thread, NULL, run_to_end, g)) exit(1);
  while (!taken) relax();
  for (unsigned n = 0; n < SAMPLES; n++) {
    u64 before = taken;
    if (halted)
      usleep(1000 + (unsigned)rand() % 1000); /* it sleeps, and so does this one */
    else
      wait_until(now() + 20000 + (u64)rand() % 80000);
    u64 t = now();
    guest_ioctl(g->vm, KVM_SIGNAL_MSI, &msi);
    while (taken == before) relax();
    took[n] = now() - t;
  }
  end = true;
  guest_ioctl(g->vm, KVM_SIGNAL_MSI, &msi);
  pthread_join(thread, NULL);
  guest_free(g);
  print(halted ? name : named(name, interpreter), SAMPLES);
}

/* ---- from inside ---- */

enum { ROUND_TRIPS = 20000, TIMERS = 3000 };
static volatile u64 answers, questions, deadline;

HANDLER take_question(struct frame *f) {
  questions = questions + 1;
  eoi();
  ipi(0, 0x51);
}
HANDLER take_answer(struct frame *f) {
  answers = answers + 1;
  eoi();
}

static void guest_other(void) {
  apic_on();
  taken = 1;
  sti();
  while (!end) relax();
  done();
}
static void guest_asks(void) {
  apic_on();
  pic_off();
  sti();
  while (!taken) relax();
  for (unsigned n = 0; n < ROUND_TRIPS; n++) {
    u64 t = rdtsc();
    ipi(1, 0x50);
    while (answers == n) relax();
    ticks[n] = rdtsc() - t;
  }
  end = true;
  done();
}

static void round_trips(void) {
  pthread_t thread;
  choose_engine(false);
  end = false, taken = answers = questions = 0;
  struct guest *g = start_function(guest_asks), *other = guest_add_cpu(g, 1);
  HANDLE(g, 0x50, take_question);
  HANDLE(g, 0x51, take_answer);
  struct kvm_sregs s = guest_sregs(g), own = guest_sregs(other);
  struct kvm_mp_state running = {.mp_state = KVM_MP_STATE_RUNNABLE};
  s.apic_base = own.apic_base;
  guest_set_sregs(other, &s);
  guest_set_regs(other, &(struct kvm_regs){.rip = (u64)(uintptr_t)guest_other, .rsp = GUEST_RSP0, .rflags = 2});
  guest_ioctl(other->vcpu, KVM_SET_MP_STATE, &running);
  if (pthread_create(&thread, NULL, run_to_end, other)) exit(1);
  guest_next(g);
  pthread_join(thread, NULL);
  guest_free_cpu(other);
  guest_free(g);
  print_ticks("ipi-round-trip", ROUND_TRIPS);
}

static volatile u64 late;
HANDLER take_timer(struct frame *f) {
  late = rdtsc() - deadline;
  taken = taken + 1;
  eoi();
}

static void guest_timers(void) {
  u64 random = 1;
  apic_on();
  pic_off();
  apic_write(A_LVT_TIME, 0x40050); /* TSC deadline */
  if (!go_to_sleep) sti();
  for (u64 n = 0; n < TIMERS; n++) {
    random = random * 6364136223846793005 + 1;
    deadline = rdtsc() + ticks_per_ms / 10 + (random >> 33) % (ticks_per_ms / 2);
    wrmsr(MSR_TSC_DEADLINE, deadline);
    while (taken == n) go_to_sleep ? halt_once() : relax();
    ticks[n] = late;
  }
  done();
}

static void timers(const char *name, bool halted) {
  choose_engine(false);
  go_to_sleep = halted, taken = 0;
  struct guest *g = start_function(guest_timers);
  HANDLE(g, 0x50, take_timer);
  guest_next(g);
  guest_free(g);
  print_ticks(name, TIMERS);
}

/* A thread of the host that waits for its timer with epoll, as the one does that runs guests' timers: what lateness there is without a guest. */
static void native_timers(void) {
  int fd = timerfd_create(CLOCK_MONOTONIC, 0), set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN};
  epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
  for (unsigned n = 0; n < TIMERS; n++) {
    u64 at = now() + 100000 + (u64)rand() % 500000, expirations;
    struct itimerspec when = {.it_value = {(time_t)(at / 1000000000), (long)(at % 1000000000)}};
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL);
    epoll_wait(set, &e, 1, -1);
    took[n] = now() - at;
    if (read(fd, &expirations, sizeof(expirations)) < 0) perror("timerfd");
  }
  close(set);
  close(fd);
  print("timer-native", TIMERS);
}

static char **names; /* of what is wanted; none: all */
static bool wanted(const char *name) {
  for (char **n = names; *n; n++)
    if (!strcmp(*n, name)) return true;
  return !*names;
}

static void both_engines(bool interpreter) {
  if (wanted("kick-loop")) kick_guest("kick-loop", guest_loop, interpreter, false);
  if (wanted("kick-loop-immediate")) kick_guest("kick-loop-immediate", guest_loop, interpreter, true);
  if (wanted("kick-string")) kick_guest("kick-string", guest_string, interpreter, false);
  if (wanted("interrupt-running")) interrupts("interrupt-running", false, interpreter);
}

int main(int argc, char **argv) {
  names = argv + 1;
  sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL);
  if (wanted("kick-native")) kicks("kick-native", spin_here, false);
  both_engines(false);
  both_engines(true);
  if (wanted("interrupt-halted")) interrupts("interrupt-halted", true, false);
  if (wanted("ipi-round-trip")) round_trips();
  if (wanted("timer-native")) native_timers();
  if (wanted("timer-running")) timers("timer-running", false);
  if (wanted("timer-halted")) timers("timer-halted", true);
  return 0;
}
