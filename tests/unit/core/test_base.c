/* Timers, watched descriptors, host faults, the gate in front of signal handlers, regions, leads. */
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>
#include "base/evloop.h"
#include "base/fault.h"
#include "base/lead.h"
#include "base/process.h"
#include "base/region.h"
#include "base/signals.h"
#include "fake_arch.h"

#define MS    1000000ull
#define NEVER (clock_now_ns() + 3600000 * MS)

static void sleep_ms(unsigned ms) {
  struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
  nanosleep(&t, NULL);
}

/* Waits up to half a minute. */
#define UNTIL(condition)                                                                                                         \
  do {                                                                                                                           \
    u64 end_ = clock_now_ns() + 30000 * MS;                                                                                      \
    while (!(condition) && clock_now_ns() < end_) sleep_ms(1);                                                                   \
    assert_true(condition);                                                                                                      \
  } while (0)

struct tick {
  struct evtimer timer;
  _Atomic int fired;
  _Atomic u64 at;
  int repeat, slow_ms;
};

static void on_tick(struct evtimer *t) {
  struct tick *k = container_of(t, struct tick, timer);
  k->at = clock_now_ns();
  if (k->slow_ms) sleep_ms((unsigned)k->slow_ms);
  if (++k->fired < k->repeat) evtimer_arm(t, clock_now_ns() + MS);
}

static void timers(void **state) {
  struct evloop *loop = evloop_create("test");
  struct tick k[20] = {0};
  u64 now = clock_now_ns();
  for (unsigned i = 0; i < 20; i++) {
    evtimer_init(&k[i].timer, loop, on_tick);
    evtimer_arm(&k[i].timer, i == 3 || i == 5 ? NEVER : now + (20 - i) * 5 * MS); /* each one earlier than the last */
  }
  evtimer_cancel(&k[3].timer, true);
  evtimer_arm(&k[5].timer, NEVER + MS);     /* later */
  evtimer_arm(&k[5].timer, now + 200 * MS); /* earlier */
  evtimer_arm(&k[0].timer, 0);              /* long over */
  UNTIL(k[5].fired);
  for (unsigned i = 0; i < 20; i++) assert_int_equal(k[i].fired, i != 3);
  for (unsigned i = 4; i < 19; i++)
    if (i != 5) assert_true(k[i].at >= now + (20 - i) * 5 * MS);
  assert_true(k[5].at >= now + 200 * MS);
  k[7] = (struct tick){.repeat = 10};
  evtimer_init(&k[7].timer, loop, on_tick);
  evtimer_arm(&k[7].timer, clock_now_ns());
  UNTIL(k[7].fired == 10);
  k[8] = (struct tick){.slow_ms = 50};
  evtimer_init(&k[8].timer, loop, on_tick);
  evtimer_arm(&k[8].timer, clock_now_ns());
  UNTIL(k[8].at);
  evtimer_cancel(&k[8].timer, true); /* waits for the slow callback */
  assert_int_equal(k[8].fired, 1);
  evloop_stop(loop);
  evtimer_arm(&k[9].timer, 0);
  evtimer_cancel(&k[9].timer, true);
  evloop_destroy(loop);
}

static void many_timers(void **state) {
  struct evloop *loop = evloop_create("test");
  struct tick *k = calloc(500, sizeof(*k));
  srand(7);
  for (unsigned i = 0; i < 500; i++) evtimer_init(&k[i].timer, loop, on_tick);
  u64 now = clock_now_ns();
  for (unsigned n = 0; n < 5000; n++) {
    struct tick *t = &k[rand() % 500];
    if (rand() % 4)
      evtimer_arm(&t->timer, now + (u64)(rand() % 100) * MS);
    else
      evtimer_cancel(&t->timer, rand() % 2);
  }
  for (unsigned i = 0; i < 500; i++) {
    evtimer_cancel(&k[i].timer, true);
    k[i].fired = 0;
    evtimer_arm(&k[i].timer, now + (u64)(rand() % 100) * MS);
  }
  for (unsigned i = 0; i < 500; i++) UNTIL(k[i].fired == 1);
  evloop_destroy(loop);
  free(k);
}

static _Atomic int seen;
static void on_fd(void *arg, int fd, u32 events) {
  u64 n;
  if (read(fd, &n, sizeof(n)) == sizeof(n)) seen += (int)n;
  if (arg) evloop_del_fd(arg, fd); /* from its own callback */
}

static void descriptors(void **state) {
  struct evloop *loop = evloop_create("test");
  int a = eventfd(3, EFD_NONBLOCK), b = eventfd(0, EFD_NONBLOCK);
  seen = 0;
  assert_int_equal(evloop_add_fd(loop, a, EPOLLIN, on_fd, NULL), 0);
  assert_int_equal(evloop_add_fd(loop, b, EPOLLIN, on_fd, loop), 0);
  assert_int_equal(evloop_add_fd(loop, 99999, EPOLLIN, on_fd, NULL), -EBADF);
  UNTIL(seen == 3);
  eventfd_write(b, 10);
  UNTIL(seen == 13);
  eventfd_write(b, 100); /* no longer watched */
  evloop_del_fd(loop, a);
  eventfd_write(a, 1000);
  sleep_ms(20);
  assert_int_equal(seen, 13);
  close(a);
  close(b);
  evloop_destroy(loop);
}

static void faults(void **state) {
  struct fault_guard outer, inner;
  char buf[16] = "abc";
  fault_install();
  u8 *p = map_pages(2);
  munmap(p + PAGE_SIZE, PAGE_SIZE);
  assert_int_equal(fault_copy(buf, p, 4), 0);
  assert_int_equal(fault_copy(buf, NULL, 1), -EFAULT);
  assert_int_equal(fault_copy(p + PAGE_SIZE - 2, buf, 4), -EFAULT);
  assert_int_equal(fault_copy(buf, (void *)0x8000000000000000ull, 4), -EFAULT); /* not canonical */
  volatile int reached = 0;
  if (!fault_try(&outer)) {
    if (!fault_try(&inner)) {
      *(volatile u8 *)(p + PAGE_SIZE) = 1;
      fault_end(&inner);
      reached = 100;
    } else {
      assert_ptr_equal(inner.addr, p + PAGE_SIZE);
      assert_int_equal(inner.sig, SIGSEGV);
      reached = 1;
    }
    *(volatile u8 *)(p + PAGE_SIZE + 8) = 1;
    reached = 100;
  } else {
    assert_ptr_equal(outer.addr, p + PAGE_SIZE + 8);
    reached++;
  }
  assert_int_equal(reached, 2);
  assert_null(fault_top);
  int fd = memfd_create("short", 0);
  u8 *q = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
  if (!fault_try(&outer)) {
    (void)*(volatile u8 *)q;
    fault_end(&outer);
    fail();
  } else {
    assert_int_equal(outer.sig, SIGBUS);
  }
  close(fd);
  munmap(q, PAGE_SIZE);
  munmap(p, PAGE_SIZE);
}

static volatile int *volatile nowhere = (int *)16;
static sigjmp_buf client_env;
static void client_handler(int sig, siginfo_t *info, void *context) {
  siglongjmp(client_env, info->si_addr == (void *)16 ? 1 : 2);
}

/* In a child, for it changes what the process does with faults. */
static volatile uintptr_t wild = 16; /* unmapped; volatile, so that the compiler does not see it */
static int child_faults(void) {
  struct sigaction sa = {.sa_sigaction = client_handler, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &sa, NULL);
  fault_install(); /* over the client's */
  char c;
  if (fault_copy(&c, NULL, 1) != -EFAULT) return 1;
  if (sigsetjmp(client_env, 1) == 0) {
    *nowhere = 0;
    return 2;
  }
  sigaction(SIGSEGV, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
  fault_install();
  if (fault_copy(&c, NULL, 1) != -EFAULT) return 3;
  *nowhere = 0; /* dies of SIGSEGV */
  return 4;
}

static void forwarding(void **state) {
  int status;
  pid_t pid = fork();
  if (!pid) _exit(child_faults());
  waitpid(pid, &status, 0);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

static volatile sig_atomic_t handled, depth_in_handler, handled_value;
static void count_signal(int sig, siginfo_t *info, void *context) {
  handled++;
  depth_in_handler = (sig_atomic_t)signal_gate.depth;
  handled_value = info->si_value.sival_int;
}

static void gate(void **state) {
  SKIP_UNDER_TSAN(); /* it delays signals */
  struct sigaction sa = {.sa_sigaction = count_signal, .sa_flags = SA_SIGINFO};
  handled = 0;
  sigaction(SIGUSR1, &sa, NULL);
  signals_take();
  raise(SIGUSR1);
  assert_int_equal(handled, 1); /* outside the library: at once */
  signals_enter();
  sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 42});
  assert_int_equal(handled, 1);
  assert_true(signal_gate.deferred);
  signals_leave();
  assert_int_equal(handled, 2); /* on the way out, as it was sent */
  assert_int_equal(handled_value, 42);
  assert_int_equal(depth_in_handler, 0);
  sigset_t now;
  pthread_sigmask(SIG_SETMASK, NULL, &now);
  assert_false(sigismember(&now, SIGUSR1));
  /* A mask that lets a blocked signal in which has no handler: it ends pending, not in the default action. */
  sigset_t block, pending;
  sigemptyset(&block);
  sigaddset(&block, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &block, NULL);
  raise(SIGUSR2);
  signals_enter();
  sigset_t none;
  sigemptyset(&none);
  signals_set_mask(&none);
  assert_true(signal_gate.deferred);
  signals_leave();
  sigpending(&pending);
  assert_true(sigismember(&pending, SIGUSR2));
  struct timespec zero = {0};
  assert_int_equal(sigtimedwait(&block, NULL, &zero), SIGUSR2);
  pthread_sigmask(SIG_UNBLOCK, &block, NULL);
  sigaction(SIGUSR1, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
}

static void client_view(void **state) {
  SKIP_UNDER_TSAN();
  struct sigaction a = {.sa_sigaction = count_signal, .sa_flags = SA_SIGINFO | SA_RESTART}, b = {.sa_handler = SIG_IGN}, old;
  handled = 0;
  assert_int_equal(signals_client_sigaction(SIGUSR1, &a, &old), 0);
  assert_ptr_equal(old.sa_handler, SIG_DFL);
  signals_enter();
  raise(SIGUSR1);
  assert_int_equal(handled, 0); /* behind the gate at once */
  signals_leave();
  assert_int_equal(handled, 1);
  assert_int_equal(signals_client_sigaction(SIGUSR1, &b, &old), 0);
  assert_ptr_equal(old.sa_sigaction, count_signal);
  assert_int_equal(old.sa_flags & ~0x04000000, SA_SIGINFO | SA_RESTART);
  assert_int_equal(signals_client_sigaction(SIGUSR1, NULL, &old), 0);
  assert_ptr_equal(old.sa_handler, SIG_IGN);
  raise(SIGUSR1);
  assert_int_equal(signals_client_sigaction(SIGUSR1, &(struct sigaction){.sa_handler = SIG_DFL}, NULL), 0);
  assert_int_equal(signals_client_sigaction(SIGKILL, &a, NULL), -1);
  assert_int_equal(signals_client_sigaction(1000, &a, NULL), -1);
  /* The fault handlers: ours stays in front. */
  struct sigaction first;
  fault_install();
  assert_int_equal(signals_client_sigaction(SIGSEGV, &a, &first), 0);
  assert_int_equal(signals_client_sigaction(SIGSEGV, &first, &old), 0);
  assert_ptr_equal(old.sa_sigaction, count_signal);
  char c;
  assert_int_equal(fault_copy(&c, NULL, 1), -EFAULT);
}

/* What stands behind the gate for a signal without handler is still the default action. */
static void gate_default(void **state) {
  SKIP_UNDER_TSAN();
  int status;
  pid_t pid = fork();
  if (!pid) {
    sigset_t set, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signals_enter();
    signals_set_mask(&none);
    signals_leave();
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(SIGUSR2);
    _exit(0);
  }
  waitpid(pid, &status, 0);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR2);
}

static void process(void **state) {
  process_init();
  assert_int_equal(process_pid(), getpid());
  int status;
  pid_t pid = fork();
  if (!pid) _exit(process_pid() == getpid() ? 5 : 6);
  waitpid(pid, &status, 0);
  assert_int_equal(WEXITSTATUS(status), 5);
}

/* ---- regions ---- */

static void fill_region(struct region *r, unsigned char *objects[], unsigned n, size_t size) {
  for (unsigned i = 0; i < n; i++) {
    objects[i] = region_alloc(r, size);
    assert_non_null(objects[i]);
    for (size_t k = 0; k < size; k++) assert_int_equal(objects[i][k], 0);
    memset(objects[i], 0xa5, size);
  }
}

static void regions(void **state) {
  struct region r;
  unsigned char *object[64], *again[32];
  assert_int_equal(region_create(&r, 64 * 1024), 0);
  assert_null(region_alloc(&r, REGION_MAX + 1));
  fill_region(&r, object, 64, 1000); /* 1024 of the region each */
  assert_null(region_alloc(&r, 1));
  for (unsigned i = 0; i < 32; i++) region_free(&r, object[2 * i], 1000);
  assert_null(region_alloc(&r, 100)); /* what was freed is for its own size */
  fill_region(&r, again, 32, 961);
  assert_null(region_alloc(&r, 1000));
  assert_int_equal(r.live, 64);
  for (unsigned i = 0; i < 32; i++) region_free(&r, again[i], 961);
  for (unsigned i = 0; i < 32; i++) region_free(&r, object[2 * i + 1], 1000);
  assert_int_equal(r.live, 0);
  assert_int_equal(r.used, 0);
  fill_region(&r, object, 16, REGION_MAX / 2); /* all of it is for any size again */
  region_clear(&r);
  fill_region(&r, object, 64, 1024);
  region_destroy(&r);
}

/* ---- leads ---- */

/* It settles where one time in eight is late, and forgets what was. */
static void lead(void **state) {
  u32 lead_ns = 0;
  unsigned late = 0;
  for (unsigned n = 0; n < 16000; n++) {
    u64 lateness = 20000 + n * 7919 % 1000 * 40; /* 20 to 60 us */
    u64 due = 1000000, came = due - lead_ns + lateness;
    if (n >= 8000) late += came > due;
    lead_learn(&lead_ns, came, due);
  }
  assert_in_range(late, 8000 / 16, 8000 / 5);
  assert_in_range(lead_ns, 40000, 60000);
  lead_learn(&lead_ns, 5000000, 1000000); /* was not let run */
  assert_in_range(lead_ns, 40000, 60000);
  for (unsigned n = 0; n < 1000; n++) lead_learn(&lead_ns, 1, 2);
  assert_int_equal(lead_ns, 0);
  for (unsigned n = 0; n < 1000; n++) lead_learn(&lead_ns, 900000, 1);
  assert_int_equal(lead_ns, LEAD_MAX_NS);
}

int main(void) {
  process_init();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(timers),      cmocka_unit_test(many_timers),  cmocka_unit_test(descriptors),
      cmocka_unit_test(faults),      cmocka_unit_test(forwarding),   cmocka_unit_test(gate),
      cmocka_unit_test(client_view), cmocka_unit_test(gate_default), cmocka_unit_test(process),
      cmocka_unit_test(regions),     cmocka_unit_test(lead),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
