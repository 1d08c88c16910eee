/* The cached process id, cleared in children, and the fork handlers. */
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/ownfd.h"
#include "base/process.h"
#include "base/rcu.h"

union process_page process_page __attribute__((aligned(PAGE_SIZE)));

static _Atomic bool ready;
static struct fork_mutex *mutexes; /* grows in constructors only */

void process_add_mutex(struct fork_mutex *m) {
  m->next = mutexes;
  mutexes = m;
}

static void in_child(void) {
  urcu_bp_after_fork_child();
  for (struct fork_mutex *m = mutexes; m; m = m->next) pthread_mutex_init(m->mutex, NULL);
  own_fd_forget_all();
  atomic_store_explicit(&process_page.pid, getpid(), memory_order_relaxed);
}

/* A child that fork handlers know nothing of (clone(2), _Fork). */
pid_t process_forked(void) {
  if (process_ready()) in_child();
  return getpid();
}

static void init(void) {
  madvise(&process_page, sizeof(process_page), MADV_WIPEONFORK); /* without it (Linux before 4.14) fork handlers have to do */
  atomic_store_explicit(&process_page.pid, getpid(), memory_order_relaxed);
  pthread_atfork(urcu_bp_before_fork, urcu_bp_after_fork_parent, in_child);
  atomic_store(&ready, true);
}

void process_init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, init);
}

bool process_ready(void) {
  return atomic_load_explicit(&ready, memory_order_relaxed);
}

bool process_is_guest(void) {
  return process_ready() && process_pid() != getpid();
}

unsigned process_cpus(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set)) return 1;
  int n = CPU_COUNT(&set);
  return n > 0 ? (unsigned)n : 1;
}
